/* sample_row.h - passes of a block over a row of logits: each value, sums of slices, the largest.
 *
 * Owns the block's shape, its shared memory, and how doubles go between threads. Invariants: sums are the
 * CPU's bit for bit where the CPU's are floats (16 chains a slice), exp is the CPU's; a pass keeps several loads
 * of a thread in flight. Included by sample.cu.
 */
#ifndef LA_SAMPLE_ROW_H
#define LA_SAMPLE_ROW_H

#include "la_ptx.h"
#include "sample.h"

#include <math.h>
#include <string.h>

extern "C" {
#include "../../model/backend.h"
}

enum {
    BLOCK = 512,
    WARPS = BLOCK / 32,
    AHEAD = 8,   /* loads of a thread in flight */
    CHAINS = 16, /* of a slice's sum */
    BINS = 2048,
    BINS_EXPONENT = 4, /* bits of a bin's number below the exponent of p */
    ID_BITS = 22,
    LISTED = 2048 /* members of a bin that shared memory holds */
};

/* Shared memory: bins of the row, bins of a level below (or sums of slices), members, what warps tell others. */
enum {
    HISTOGRAM = 3 * 4 * BINS, /* counts, sums of mantissas: lower and upper words */
    WHOLE_AT = 0,
    PART_AT = HISTOGRAM,
    LIST_AT = 2 * HISTOGRAM,
    WARP_AT = LIST_AT + 8 * LISTED, /* [WARPS] of 8 bytes */
    FOUND_AT = WARP_AT + 8 * WARPS, /* mass before a bin, the bin, its members, members before it */
    COUNTER_AT = FOUND_AT + 24,
    SMEM = COUNTER_AT + 8
};

static_assert(BLOCK * 8 == LA_SLICE, "a thread takes eight of a slice");
static_assert(LA_SAMPLE_VOCABULARY / LA_SLICE * 8 <= HISTOGRAM, "sums of slices find room");
static_assert(LA_SAMPLE_VOCABULARY <= 1 << ID_BITS, "ids find room");

/* ---- doubles between threads ---- */

LA_DEV uint64_t la_row_bits(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

LA_DEV double la_row_double(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

LA_DEV void la_row_put(uint32_t at, uint64_t x)
{
    la_u32x2 v = {(uint32_t)x, (uint32_t)(x >> 32)};
    la_sts_x2(at, v);
}

LA_DEV uint64_t la_row_get(uint32_t at)
{
    la_u32x2 v = la_lds_x2(at);
    return (uint64_t)v.y << 32 | v.x;
}

LA_DEV double la_row_shuffle_up(double x, int by)
{
    uint64_t b = la_row_bits(x);
    uint32_t lo = la_shfl_up((uint32_t)b, by), hi = la_shfl_up((uint32_t)(b >> 32), by);
    return la_row_double((uint64_t)hi << 32 | lo);
}

LA_DEV double la_row_shuffle_xor(double x, int bits)
{
    uint64_t b = la_row_bits(x);
    uint32_t lo = la_shfl_xor((uint32_t)b, bits), hi = la_shfl_xor((uint32_t)(b >> 32), bits);
    return la_row_double((uint64_t)hi << 32 | lo);
}

LA_DEV float la_row_shuffle_xor(float x, int bits)
{
    return la_shfl_xor_f32(x, bits);
}

/* Sum over the lanes up to this one. */
LA_DEV double la_row_scan_warp(double x)
{
    for (int by = 1; by < 32; by *= 2) {
        double y = la_row_shuffle_up(x, by);
        x = la_lane() >= by ? x + y : x;
    }
    return x;
}

LA_DEV int la_row_scan_warp(int x)
{
    for (int by = 1; by < 32; by *= 2) {
        int y = (int)la_shfl_up((uint32_t)x, by);
        x = la_lane() >= by ? x + y : x;
    }
    return x;
}

/* ---- passes over a row ---- */

/* f(x[i], i) for the thread's share of the row. */
template <class F> LA_DEV void la_row_each(const float *x, int V, F f)
{
    for (int first = la_thread(); first < V; first += AHEAD * BLOCK) {
        float v[AHEAD];
        LA_UNROLL
        for (int k = 0; k < AHEAD; k++) {
            v[k] = first + k * BLOCK < V ? la_ldg(x + first + k * BLOCK) : 0.0f;
        }
        LA_UNROLL
        for (int k = 0; k < AHEAD; k++) {
            if (first + k * BLOCK < V) {
                f(v[k], first + k * BLOCK);
            }
        }
    }
}

/* Sums of f(x[i], i) over each slice, as the CPU's: 16 chains, then halves of halves. They lie in PART. */
template <class T, class F> LA_DEV void la_row_sum_slices(const float *x, int V, F f)
{
    int chain = la_thread() % CHAINS;
    la_sync_block(); /* what lay there has been read */
    for (int two = la_thread() / 32 * 2; two * LA_SLICE < V; two += 2 * WARPS) {
        int s = two + la_lane() / CHAINS, end = (s + 1) * LA_SLICE;
        end = end < V ? end : V;
        T sum = 0;
        for (int first = s * LA_SLICE + chain; first < end; first += AHEAD * CHAINS) {
            float v[AHEAD];
            LA_UNROLL
            for (int k = 0; k < AHEAD; k++) {
                v[k] = first + k * CHAINS < end ? la_ldg(x + first + k * CHAINS) : 0.0f;
            }
            LA_UNROLL
            for (int k = 0; k < AHEAD; k++) {
                if (first + k * CHAINS < end) {
                    sum = (T)f(v[k], first + k * CHAINS) + sum;
                }
            }
        }
        for (int bits = CHAINS / 2; bits > 0; bits /= 2) {
            sum += la_row_shuffle_xor(sum, bits);
        }
        if (chain == 0 && s * LA_SLICE < V) {
            la_row_put(la_smem() + PART_AT + 8 * (uint32_t)s, la_row_bits((double)sum));
        }
    }
    la_sync_block();
}

LA_DEV double la_row_slice(int s)
{
    return la_row_double(la_row_get(la_smem() + PART_AT + 8 * (uint32_t)s));
}

LA_DEV double la_row_all_slices(int V)
{
    double sum = 0.0;
    for (int s = 0; s * LA_SLICE < V; s++) {
        sum += la_row_slice(s);
    }
    return sum;
}

/* exp by the CPU's operations (v_exp of vec_math.h). */
LA_DEV float la_row_exp(float x)
{
    x = -88.0f > x ? -88.0f : x;
    x = 89.0f < x ? 89.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = la_fma(-n, 0.693359375f, x);
    r = la_fma(-n, -2.12194440e-4f, r);
    float p = la_fma(r, 0x1.6a23d0p-10f, 0x1.123a20p-7f);
    p = la_fma(r, p, 0x1.5558f2p-5f);
    p = la_fma(r, p, 0x1.555492p-3f);
    p = la_fma(r, p, 0x1.fffffcp-2f);
    float s = la_float((uint32_t)((int)n + 127) << 23);
    return s * (1.0f + la_fma(r * r, p, r));
}

/* ---- the largest ---- */

typedef struct la_best {
    float value;
    int id;
} la_best;

LA_DEV la_best la_row_better(la_best x, la_best y)
{
    return y.value > x.value || (y.value == x.value && y.id < x.id) ? y : x;
}

/* The best of `lanes` lanes, a power of two, in all of them. */
LA_DEV la_best la_row_best_lane(la_best x, int lanes)
{
    for (int bits = lanes / 2; bits > 0; bits /= 2) {
        la_best y = {la_shfl_xor_f32(x.value, bits), (int)la_shfl_xor((uint32_t)x.id, bits)};
        x = la_row_better(x, y);
    }
    return x;
}

/* The largest of scale * x, the lowest id of equal ones; NaN counts for nothing, id 0 where nothing counts. */
LA_DEV la_best la_row_best(const float *x, int V, float scale)
{
    la_best best = {-INFINITY, INT32_MAX};
    la_row_each(x, V, [&](float v, int i) {
        la_best one = {v * scale, i};
        best = la_row_better(best, one);
    });
    best = la_row_best_lane(best, 32);
    la_sync_block(); /* what lay there has been read */
    uint32_t at = la_smem() + WARP_AT;
    if (la_lane() == 0) {
        la_sts_f32(at + 8 * (uint32_t)(la_thread() / 32), best.value);
        la_sts(at + 8 * (uint32_t)(la_thread() / 32) + 4, (uint32_t)best.id);
    }
    la_sync_block();
    at += 8 * (uint32_t)(la_lane() % WARPS);
    best.value = la_lds_f32(at);
    best.id = (int)la_lds(at + 4);
    best = la_row_best_lane(best, WARPS);
    best.id = best.id == INT32_MAX ? 0 : best.id;
    return best;
}

#endif
