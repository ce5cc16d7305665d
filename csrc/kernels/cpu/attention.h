/* attention.h - KV pages, attention over fp32 and bf16 pages by fma, and the join of chunks.
 *
 * Owns the writing of page slots (layouts drawn in kernels.h) and the fma tile of attention_core.h:
 * bf16 lines are split into even and odd values by shift and mask, so any level reads the same bytes.
 * Invariant: V slots without a token are finite zeros, K slots without one may hold anything.
 * Included by the isa_*.c files, which call fill_attention; attention_bf16.h replaces attend_bf16 where the dot is.
 */
#ifndef LA_ATTENTION_H
#define LA_ATTENTION_H

#include "attention_core.h"

/* Blocks of a tile, and its most rows: accumulators, lines, a broadcast and a mask stay in 32
 * (AVX-512) or 16 registers; gcc spills at one row more. */
#define ATTEND_BLOCKS(rows) (VL == 16 ? 4 : VL == 8 && (rows) <= 2 ? 2 : 1)
enum { ATTEND_ROWS_F32 = VL == 16 ? 6 : VL == 8 ? 5 : 1, ATTEND_ROWS_SPLIT = VL == 1 ? 1 : 5 };

LA_INLINE void attend_tile(const int rows, const int blocks, const int pair, const attend_panel *p,
                           int first)
{
    enum { W = LA_LANES16 };
    vf acc[ATTEND_ROWS][4 * W], line[4 * W];
    const float *a[ATTEND_ROWS];
    size_t block_bytes = (size_t)p->steps * ATTEND_LINE;
    const uint8_t *b = p->b + (size_t)first * block_bytes;
    const vi high = vi_set1((int32_t)0xffff0000u);
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        a[r] = p->a[r];
        LA_UNROLL
        for (int i = 0; i < blocks * W; i++) {
            acc[r][i] = p->add ? v_loadu(p->c[r] + first * 16 + i * VL) : v_zero();
        }
    }
    for (int s = 0; s < p->steps; s++, b += ATTEND_LINE) {
        LA_UNROLL
        for (int half = 0; half < pair; half++) {
            LA_UNROLL
            for (int i = 0; i < blocks * W; i++) {
                vi x = vi_loadu(b + (size_t)(i / W) * block_bytes + (i % W) * VL * 4);
                line[i] = v_bits(pair == 1 ? x : half == 0 ? vi_shl(x, 16) : vi_and(x, high));
            }
            LA_UNROLL
            for (int r = 0; r < rows; r++) {
                vf x = v_set1(a[r][s * pair + half]);
                LA_UNROLL
                for (int i = 0; i < blocks * W; i++) {
                    acc[r][i] = v_fma(x, line[i], acc[r][i]);
                }
            }
        }
    }
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        LA_UNROLL
        for (int i = 0; i < blocks * W; i++) {
            v_storeu(p->c[r] + first * 16 + i * VL, acc[r][i]);
        }
    }
}

LA_INLINE void attend_rows(const int rows, const int pair, const attend_panel *p)
{
    int first = 0;
    for (; first + ATTEND_BLOCKS(rows) <= p->n_blocks; first += ATTEND_BLOCKS(rows)) {
        attend_tile(rows, ATTEND_BLOCKS(rows), pair, p, first);
    }
    if (ATTEND_BLOCKS(rows) > 2 && first + 2 <= p->n_blocks) {
        attend_tile(rows, 2, pair, p, first);
        first += 2;
    }
    if (ATTEND_BLOCKS(rows) > 1 && first < p->n_blocks) {
        attend_tile(rows, 1, pair, p, first);
    }
}

LA_INLINE void attend_panel_fma(const int pair, const attend_panel *p)
{
#if defined(LA_VEC_AVX2) || defined(LA_VEC_AVX512)
    switch (p->rows) {
    case 2: attend_rows(2, pair, p); return;
    case 3: attend_rows(3, pair, p); return;
    case 4: attend_rows(4, pair, p); return;
    case 5: attend_rows(5, pair, p); return;
#if defined(LA_VEC_AVX512)
    case 6: attend_rows(6, 1, p); return; /* fp32 pages only */
#endif
    default: break;
    }
#endif
    attend_rows(1, pair, p);
}

static void attend_panel_f32(const attend_panel *p) { attend_panel_fma(1, p); }

static void attend_panel_split(const attend_panel *p) { attend_panel_fma(2, p); }

static void attend_row_f32(const float *x, int d, void *a)
{
    memcpy(a, x, (size_t)d * sizeof(float));
}

/* Writes whole vectors: a row of A has room for d rounded up to 16 values. */
static void attend_row_split(const float *x, int d, void *a)
{
    float *q = a;
    uint16_t h[VL];
    for (int i = 0; i < d; i += VL) {
        v_store_bf16(h, d - i >= VL ? v_loadu(x + i) : v_loadn(x + i, d - i));
        v_storeu(q + i, v_load_bf16(h));
    }
    if (d % 2 != 0) {
        q[d] = 0.0f; /* one lane does not pad */
    }
}

LA_INLINE vf attend_weights_f32(vf p, void *a, int t)
{
    v_storeu((float *)a + t, p);
    return p;
}

/* Rounds to bf16, kept as fp32; p is not negative and not NaN unless the scores are. */
LA_INLINE vf attend_weights_split(vf p, void *a, int t)
{
    vi u = vi_bits(p);
    vi odd = vi_and(vi_shr(u, 16), vi_set1(1));
    p = v_bits(vi_and(vi_add(u, vi_add(odd, vi_set1(0x7fff))), vi_set1((int32_t)0xffff0000u)));
    v_storeu((float *)a + t, p);
    return p;
}

static void attend_f32(const la_attend_args *g)
{
    static const attend_form form = {ATTEND_ROWS_F32,   1, 4, attend_panel_f32, attend_row_f32,
                                     attend_weights_f32};
    attend_run(g, &form);
}

static void attend_bf16(const la_attend_args *g)
{
    static const attend_form form = {
        ATTEND_ROWS_SPLIT, 2, 4, attend_panel_split, attend_row_split, attend_weights_split};
    attend_run(g, &form);
}

static void kv_store_f32(const float *k, const float *v, int d, int tok, void *kp, void *vp)
{
    float *kb = (float *)kp + (int64_t)(tok / 16) * d * 16 + tok % 16;
    for (int i = 0; k != NULL && i < d; i++) {
        kb[(int64_t)i * 16] = k[i];
    }
    if (v == NULL) {
        return;
    }
    if (tok == 0) {
        memset(vp, 0, (size_t)((d + 15) / 16) * LA_PAGE * 16 * sizeof(float));
    }
    for (int i = 0; i < d; i += 16) {
        float *line = (float *)vp + ((int64_t)(i / 16) * LA_PAGE + tok) * 16;
        memcpy(line, v + i, (size_t)(d - i < 16 ? d - i : 16) * sizeof(float));
    }
}

/* Rounds d <= 256 values to h [d rounded up to 16], zeros behind them. */
LA_INLINE void kv_round(const float *x, int d, uint16_t *h)
{
    for (int i = 0; i < (d + 15) / 16 * 16; i += VL) {
        v_store_bf16(h + i, d - i >= VL ? v_loadu(x + i) : v_loadn(x + i, d > i ? d - i : 0));
    }
}

static void kv_store_bf16(const float *k, const float *v, int d, int tok, void *kp, void *vp)
{
    uint16_t h[ATTEND_MAX_D];
    if (k != NULL) {
        int pairs = (d + 1) / 2;
        uint32_t *kb = (uint32_t *)kp + (int64_t)(tok / 16) * pairs * 16 + tok % 16;
        kv_round(k, d, h);
        for (int i = 0; i < pairs; i++) {
            kb[(int64_t)i * 16] = h[2 * i] | (uint32_t)h[2 * i + 1] << 16;
        }
    }
    if (v != NULL) {
        if (tok == 0) {
            memset(vp, 0, (size_t)((d + 15) / 16) * LA_PAGE * 16 * sizeof(uint16_t));
        }
        uint16_t *vb = (uint16_t *)vp + (int64_t)(tok / 2) * 32 + tok % 2;
        kv_round(v, d, h);
        for (int i = 0; i < d; i++) {
            vb[(int64_t)(i / 16) * (LA_PAGE / 2) * 32 + i % 16 * 2] = h[i];
        }
    }
}

static void attend_merge(float *m, float *l, float *o, float m2, float l2, const float *o2, int d)
{
    if (m2 == -INFINITY) {
        return;
    }
    float top = m2 > *m ? m2 : *m;
    float e1 = attend_exp(*m - top), e2 = attend_exp(m2 - top);
    vf lane1 = v_set1(e1), lane2 = v_set1(e2);
    int i = 0;
    for (; i + VL <= d; i += VL) {
        v_storeu(o + i, v_fma(v_loadu(o2 + i), lane2, v_mul(v_loadu(o + i), lane1)));
    }
    if (i < d) {
        int n = d - i;
        v_storen(o + i, v_fma(v_loadn(o2 + i, n), lane2, v_mul(v_loadn(o + i, n), lane1)), n);
    }
    *l = *l * e1 + l2 * e2;
    *m = top;
}

static void attend_finish(const float *o, float l, float *out, int d)
{
    vf inverse = v_set1(l != 0.0f ? 1.0f / l : 0.0f);
    int i = 0;
    for (; i + VL <= d; i += VL) {
        v_storeu(out + i, v_mul(v_loadu(o + i), inverse));
    }
    if (i < d) {
        v_storen(out + i, v_mul(v_loadn(o + i, d - i), inverse), d - i);
    }
}

static void fill_attention(la_kernels *t)
{
    t->kv_store_f32 = kv_store_f32;
    t->kv_store_bf16 = kv_store_bf16;
    t->attend_f32 = attend_f32;
    t->attend_bf16 = attend_bf16;
    t->attend_merge = attend_merge;
    t->attend_finish = attend_finish;
}

#endif
