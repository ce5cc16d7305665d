/* attention_vnni.h - integer scores of int8 pages by vpdpbusd.
 *
 * Owns the byte-dot tile: a line (16 tokens x 4 dimensions, k + 128 unsigned) meets four codes of q in one
 * instruction. The sums are those of attention_scores.h, bit for bit. The weights still meet V by
 * fma here; attention_bf16.h has the dot for them. Included by isa_vnni.c and attention_bf16.h.
 */
#ifndef LA_ATTENTION_VNNI_H
#define LA_ATTENTION_VNNI_H

#include "attention_fma.h"
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

LA_INLINE void attend_i8_vnni(const la_attend_args *g)
{
    static const attend_form form = {LA_KV_I8,
                                     {ATTEND_ROWS, 4, 1, attend_panel_vnni, NULL, NULL},
                                     attend_row_vnni,
                                     {ATTEND_ROWS_CODES, 4, 4, attend_panel_i8, NULL, NULL},
                                     attend_weights_split,
                                     NULL};
    attend_run(g, &form);
}

LA_INLINE void fill_attention_vnni(la_kernels *t) { t->attend_i8 = attend_i8_vnni; }

#endif
