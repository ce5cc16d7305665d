/* sample.h - kernels over a row of logits: largest values, sums of exp, what lies above a threshold.
 *
 * Invariants: a NaN is never chosen while another value is there; ties go to the lowest index; every
 * level gives the same bits. Rows are read once, in blocks that stay in L1 for a second look.
 * block_max is the index of a row: what looks for large values afterwards reads one value in 32.
 * Included by the isa_*.c files, which call fill_sample.
 */
#ifndef LA_SAMPLE_H
#define LA_SAMPLE_H

#include "../kernels.h"
#include "vec_math.h"

enum { SAMPLE_BLOCK = 256, SAMPLE_SUM = 4096 };

/* Largest value of x[0..n), -INFINITY where all are NaN: max keeps what it has if x is NaN. */
LA_INLINE float sample_max(const float *x, int n)
{
    vf m[2][LA_LANES16], v[LA_LANES16]; /* two chains: max may take four cycles */
    for (int j = 0; j < LA_LANES16; j++) {
        m[0][j] = m[1][j] = v_set1(-INFINITY);
    }
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        for (int j = 0; j < LA_LANES16; j++) {
            m[0][j] = v_max(v_loadu(x + i + j * VL), m[0][j]);
            m[1][j] = v_max(v_loadu(x + i + 16 + j * VL), m[1][j]);
        }
    }
    for (; i < n; i += 16) {
        v_load16(x + i, n - i, -INFINITY, v);
        for (int j = 0; j < LA_LANES16; j++) {
            m[0][j] = v_max(v[j], m[0][j]);
        }
    }
    for (int j = 0; j < LA_LANES16; j++) {
        m[0][j] = v_max(m[0][j], m[1][j]);
    }
    return v_max16(m[0]);
}

static int argmax(const float *x, int n, float *max)
{
    float best = -INFINITY;
    int start = 0;
    for (int i = 0; i < n; i += SAMPLE_BLOCK) {
        float m = sample_max(x + i, n - i < SAMPLE_BLOCK ? n - i : SAMPLE_BLOCK);
        if (m > best) {
            best = m;
            start = i;
        }
    }
    for (int i = start; i < n; i++) {
        if (x[i] == best) {
            *max = x[i];
            return i;
        }
    }
    *max = x[0]; /* all are NaN */
    return 0;
}

static void block_max(const float *x, int n, float *out)
{
    for (int b = 0; b < n; b += 32) {
        *out++ = sample_max(x + b, n - b < 32 ? n - b : 32);
    }
}

static double sum_exp(const float *x, float s, float max, int n)
{
    double total = 0.0;
    vf m = v_set1(max), scale = v_set1(s);
    for (int b = 0; b < n; b += SAMPLE_SUM) {
        int end = n - b < SAMPLE_SUM ? n : b + SAMPLE_SUM;
        vf sum[LA_LANES16], v[LA_LANES16];
        for (int j = 0; j < LA_LANES16; j++) {
            sum[j] = v_zero();
        }
        for (int i = b; i < end; i += 16) {
            v_load16(x + i, end - i, -INFINITY, v);
            for (int j = 0; j < LA_LANES16; j++) {
                sum[j] = v_add(v_exp(v_sub(v_mul(v[j], scale), m)), sum[j]);
            }
        }
        total += (double)v_sum16(sum);
    }
    return total;
}

static void exp_sub(const float *x, float s, float max, float *y, int n)
{
    vf m = v_set1(max), scale = v_set1(s);
    int i = 0;
    for (; i + VL <= n; i += VL) {
        v_storeu(y + i, v_exp(v_sub(v_mul(v_loadu(x + i), scale), m)));
    }
    if (i < n) {
        v_storen(y + i, v_exp(v_sub(v_mul(v_loadn(x + i, n - i), scale), m)), n - i);
    }
}

/* Appends the indices first + i of the set bits; returns how many there are with them. */
LA_INLINE int select_bits(int first, uint32_t bits, int found, int32_t *out, int cap)
{
    if (found + VL <= cap) {
        vi_store_set(out + found, first, bits);
    }
    else {
        int at = found;
        for (uint32_t left = bits; left != 0 && at < cap; left &= left - 1) {
            out[at++] = first + __builtin_ctz(left);
        }
    }
    return found + __builtin_popcount(bits);
}

/* Few values pass a useful threshold: a block is looked at again only if its largest passes. */
static int select_above(const float *x, int n, float thr, int32_t *out, int cap)
{
    int found = 0;
    vf t = v_set1(thr);
    for (int b = 0; b < n; b += SAMPLE_BLOCK) {
        int end = n - b < SAMPLE_BLOCK ? n : b + SAMPLE_BLOCK;
        if (!(sample_max(x + b, end - b) > thr)) {
            continue;
        }
        int i = b;
        for (; i + VL <= end; i += VL) {
            uint32_t bits = v_gt_bits(v_loadu(x + i), t);
            found = bits != 0 ? select_bits(i, bits, found, out, cap) : found;
        }
        if (i < end) {
            uint32_t bits = v_gt_bits(v_loadn(x + i, end - i), t) & ((1u << (end - i)) - 1u);
            found = select_bits(i, bits, found, out, cap);
        }
    }
    return found;
}

static void mask(const uint32_t *bits, const float *x, float *y, int n)
{
    vf none = v_set1(-INFINITY);
    int i = 0;
    for (; i + VL <= n; i += VL) {
        v_storeu(y + i, v_pick(bits[i / 32] >> (i % 32), v_loadu(x + i), none));
    }
    if (i < n) {
        v_storen(y + i, v_pick(bits[i / 32] >> (i % 32), v_loadn(x + i, n - i), none), n - i);
    }
}

static void fill_sample(la_kernels *t)
{
    t->argmax = argmax;
    t->block_max = block_max;
    t->sum_exp = sum_exp;
    t->exp_sub = exp_sub;
    t->select_above = select_above;
    t->mask = mask;
}

#endif
