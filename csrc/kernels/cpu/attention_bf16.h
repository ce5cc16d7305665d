/* attention_bf16.h - attention over bf16 pages by vdpbf16ps.
 *
 * Owns the dot tile of attention_core.h for the BF16 level: a line of B (16 columns x 2 values) meets a
 * broadcast pair of A in one instruction. Invariant: one instruction family for every number of
 * rows, since it rounds differently from fma. It takes subnormal bf16 as 0.
 * Included by isa_bf16.c; fill_attention_bf16 overwrites the attend_bf16 slot.
 */
#ifndef LA_ATTENTION_BF16_H
#define LA_ATTENTION_BF16_H

#include "attention_core.h"

LA_INLINE void attend_dot_tile(const int rows, const int blocks, const attend_panel *p, int first)
{
    __m512 acc[ATTEND_ROWS][4];
    __m512i line[4];
    const int32_t *a[ATTEND_ROWS];
    size_t block_bytes = (size_t)p->steps * ATTEND_LINE;
    const uint8_t *b = p->b + (size_t)first * block_bytes;
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        a[r] = p->a[r];
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            acc[r][i] = p->add ? v_loadu(p->c[r] + (first + i) * 16) : v_zero();
        }
    }
    for (int s = 0; s < p->steps; s++, b += ATTEND_LINE) {
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            line[i] = _mm512_loadu_si512(b + (size_t)i * block_bytes);
        }
        LA_UNROLL
        for (int r = 0; r < rows; r++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32(a[r][s]);
            LA_UNROLL
            for (int i = 0; i < blocks; i++) {
                acc[r][i] = _mm512_dpbf16_ps(acc[r][i], x, (__m512bh)line[i]);
            }
        }
    }
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            v_storeu(p->c[r] + (first + i) * 16, acc[r][i]);
        }
    }
}

LA_INLINE void attend_dot_rows(const int rows, const attend_panel *p)
{
    int first = 0;
    for (; first + 4 <= p->n_blocks; first += 4) {
        attend_dot_tile(rows, 4, p, first);
    }
    if (first + 2 <= p->n_blocks) {
        attend_dot_tile(rows, 2, p, first);
        first += 2;
    }
    if (first < p->n_blocks) {
        attend_dot_tile(rows, 1, p, first);
    }
}

static void attend_panel_dot(const attend_panel *p)
{
    switch (p->rows) {
    case 1: attend_dot_rows(1, p); break;
    case 2: attend_dot_rows(2, p); break;
    case 3: attend_dot_rows(3, p); break;
    case 4: attend_dot_rows(4, p); break;
    case 5: attend_dot_rows(5, p); break;
    default: attend_dot_rows(6, p); break;
    }
}

/* Writes whole vectors: a row of A has room for d rounded up to 16 values. */
static void attend_row_dot(const float *x, int d, void *a)
{
    for (int i = 0; i < d; i += 16) {
        v_store_bf16((uint16_t *)a + i, d - i >= 16 ? v_loadu(x + i) : v_loadn(x + i, d - i));
    }
}

LA_INLINE vf attend_weights_dot(vf p, void *a, int t)
{
    __m256i h = (__m256i)_mm512_cvtneps_pbh(p);
    _mm256_storeu_si256((__m256i *)((uint16_t *)a + t), h);
    return v_bits(vi_shl(_mm512_cvtepu16_epi32(h), 16));
}

static void attend_bf16_dot(const la_attend_args *g)
{
    static const attend_form form = {6, 2, 2, attend_panel_dot, attend_row_dot, attend_weights_dot};
    attend_run(g, &form);
}

static void fill_attention_bf16(la_kernels *t) { t->attend_bf16 = attend_bf16_dot; }

#endif
