/* attention_vnni.h - integer products of int8 pages by vpdpbusd.
 *
 * Owns the byte-dot tiles. Scores: a line (16 tokens x 4 dimensions, k + 128 unsigned) meets four codes
 * of q. Outputs: a line (16 dimensions x 4 tokens, signed) meets the high and the low bytes of four
 * weights, two sums that are joined as integers. The sums are those of attention_scores.h, bit for bit.
 * Included by isa_vnni.c and attention_bf16.h.
 */
#ifndef LA_ATTENTION_VNNI_H
#define LA_ATTENTION_VNNI_H

#include "attention_core.h"
#include "attention_scores.h"

/* A row of A: 64 bytes as in attention_scores.h, then the codes in order, padded to four. */
LA_INLINE float attend_row_vnni(const float *x, int d, void *a)
{
    int8_t code[ATTEND_MAX_D];
    float scale = attend_codes_of(x, d, a, code);
    memcpy((char *)a + ATTEND_LINE, code, (size_t)(d + 3) / 4 * 4);
    return scale;
}

LA_INLINE void attend_vnni_tile(const int rows, const attend_panel *p)
{
    __m512i acc[ATTEND_ROWS][4], line[4];
    const char *a[ATTEND_ROWS];
    size_t block_bytes = (size_t)p->steps * ATTEND_LINE;
    const uint8_t *b = p->b, *ahead = p->ahead;
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        int32_t start;
        a[r] = (const char *)p->a[r] + ATTEND_LINE;
        memcpy(&start, p->a[r], sizeof start);
        LA_UNROLL
        for (int i = 0; i < 4; i++) {
            acc[r][i] = vi_set1(start);
        }
    }
    for (int s = 0; s < p->steps; s++, b += ATTEND_LINE, ahead += 4 * ATTEND_LINE) {
        LA_UNROLL
        for (int i = 0; i < 4; i++) {
            line[i] = vi_loadu(b + (size_t)i * block_bytes);
            __builtin_prefetch(ahead + i * ATTEND_LINE, 0, ATTEND_HINT);
        }
        LA_UNROLL
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, a[r] + 4 * s, sizeof four);
            __m512i x = vi_set1(four);
            LA_UNROLL
            for (int i = 0; i < 4; i++) {
                acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], line[i], x);
            }
        }
    }
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        LA_UNROLL
        for (int i = 0; i < 4; i++) {
            v_storeu(p->c[r] + i * 16, v_from_i(acc[r][i]));
        }
    }
}

/* A K page has four blocks. */
LA_INLINE void attend_panel_vnni(const attend_panel *p)
{
    switch (p->rows) {
    case 1: attend_vnni_tile(1, p); break;
    case 2: attend_vnni_tile(2, p); break;
    case 3: attend_vnni_tile(3, p); break;
    case 4: attend_vnni_tile(4, p); break;
    case 5: attend_vnni_tile(5, p); break;
    default: attend_vnni_tile(6, p); break;
    }
}

/* High and low bytes of 64 weights below 2^16: two lines. */
LA_INLINE void attend_weights_bytes(vf p[LA_PAGE / VL], void *a)
{
    /* Packing goes by quarters of a register: fours of tokens come out in the order of a transpose. */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i low = vi_set1(0x00ff00ff);
    __m512i x = _mm512_packus_epi32(vi_from_f(p[0]), vi_from_f(p[1]));
    __m512i y = _mm512_packus_epi32(vi_from_f(p[2]), vi_from_f(p[3]));
    __m512i hi = _mm512_packus_epi16(vi_shr16(x, 8), vi_shr16(y, 8));
    __m512i lo = _mm512_packus_epi16(vi_and(x, low), vi_and(y, low));
    vi_storeu(a, _mm512_permutexvar_epi32(order, hi));
    vi_storeu((char *)a + ATTEND_LINE, _mm512_permutexvar_epi32(order, lo));
}

LA_INLINE void attend_bytes_tile(const int rows, const int blocks, const attend_panel *p, int first)
{
    __m512i hi[ATTEND_ROWS][2], lo[ATTEND_ROWS][2], line[2];
    const int32_t *a[ATTEND_ROWS];
    size_t block_bytes = (size_t)p->steps * ATTEND_LINE;
    const uint8_t *b = p->b + (size_t)first * block_bytes;
    const uint8_t *ahead = p->ahead + (size_t)first * block_bytes;
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        a[r] = p->a[r];
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            hi[r][i] = lo[r][i] = vi_set1(0);
        }
    }
    for (int s = 0; s < p->steps; s++, b += ATTEND_LINE, ahead += blocks * ATTEND_LINE) {
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            line[i] = vi_loadu(b + (size_t)i * block_bytes);
            __builtin_prefetch(ahead + i * ATTEND_LINE, 0, ATTEND_HINT);
        }
        LA_UNROLL
        for (int r = 0; r < rows; r++) {
            __m512i x = vi_set1(a[r][s]), y = vi_set1(a[r][s + LA_PAGE / 4]);
            LA_UNROLL
            for (int i = 0; i < blocks; i++) {
                hi[r][i] = _mm512_dpbusd_epi32(hi[r][i], x, line[i]);
                lo[r][i] = _mm512_dpbusd_epi32(lo[r][i], y, line[i]);
            }
        }
    }
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            float *c = p->c[r] + (first + i) * 16;
            vf sum = v_from_i(vi_add(vi_shl(hi[r][i], 8), lo[r][i]));
            v_storeu(c, v_fma(sum, v_set1(p->unit[r]), v_loadu(c)));
        }
    }
}

LA_INLINE void attend_bytes_rows(const int rows, const attend_panel *p)
{
    int first = 0;
    for (; first + 2 <= p->n_blocks; first += 2) {
        attend_bytes_tile(rows, 2, p, first);
    }
    if (first < p->n_blocks) {
        attend_bytes_tile(rows, 1, p, first);
    }
}

LA_INLINE void attend_panel_bytes(const attend_panel *p)
{
    switch (p->rows) {
    case 1: attend_bytes_rows(1, p); break;
    case 2: attend_bytes_rows(2, p); break;
    case 3: attend_bytes_rows(3, p); break;
    case 4: attend_bytes_rows(4, p); break;
    case 5: attend_bytes_rows(5, p); break;
    default: attend_bytes_rows(6, p); break;
    }
}

static void attend_i8_vnni(const la_attend_args *g)
{
    static const attend_form form = {LA_KV_I8,
                                     {ATTEND_ROWS, 4, 1, attend_panel_vnni, NULL, NULL},
                                     attend_row_vnni,
                                     {ATTEND_ROWS, 4, 2, attend_panel_bytes, NULL, NULL},
                                     attend_weights_bytes,
                                     NULL};
    attend_run(g, &form);
}

LA_INLINE void fill_attention_vnni(la_kernels *t) { t->attend_i8 = attend_i8_vnni; }

#endif
