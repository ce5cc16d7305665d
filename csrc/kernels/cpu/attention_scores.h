/* attention_scores.h - integer scores of int8 pages by 16-bit multiply-adds.
 *
 * Owns the scores tile of the levels without a byte dot and the int8 rows of q. Scores are
 * sum q k of codes: k is stored as k + 128, so every row starts at -128 sum q. Invariant: the sums are exact
 * (below 2^22), so every level gives the same bits, whatever its instruction.
 * A row of A: 64 bytes whose first int32 is the start, then the codes; here words in the order 0 2 1 3
 * of each four, which meet the even and the odd bytes of a line. Included by attention.h
 * and attention_vnni.h.
 */
#ifndef LA_ATTENTION_SCORES_H
#define LA_ATTENTION_SCORES_H

#include "attention_codes.h"
#include "attention_core.h"

enum { ATTEND_Q_BYTES = 2 }; /* of a code in a row of A */

/* q to codes [d rounded up to 16], their start to a; returns the value of one step. */
LA_INLINE float attend_codes_of(const float *x, int d, void *a, int8_t *code)
{
    float scale = kv_codes(x, d, 0, (uint8_t *)code);
    int32_t sum = 0;
    for (int i = 0; i < d; i++) {
        sum += code[i];
    }
    sum *= -128;
    memcpy(a, &sum, sizeof sum);
    return scale;
}

LA_INLINE float attend_row_scores(const float *x, int d, void *a)
{
    int8_t code[ATTEND_MAX_D];
    float scale = attend_codes_of(x, d, a, code);
    int16_t *word = (int16_t *)a + ATTEND_LINE / sizeof(int16_t);
    for (int i = 0; i < d; i += 4, word += 4) {
        word[0] = code[i];
        word[1] = code[i + 2];
        word[2] = code[i + 1];
        word[3] = code[i + 3];
    }
    return scale;
}

/* acc + codes k of one vector of a line (VL columns, 4 values) times four codes of q */
LA_INLINE vi attend_add_scores(vi acc, vi line, const int32_t *q)
{
#if defined(LA_VEC_AVX2) || defined(LA_VEC_AVX512)
    vi even = vi_madd16(vi_and(line, vi_set1(0x00ff00ff)), vi_set1(q[0]));
    vi odd = vi_madd16(vi_shr16(line, 8), vi_set1(q[1]));
    return vi_add(acc, vi_add(even, odd));
#else
    int16_t w[4];
    memcpy(w, q, sizeof w);
    uint32_t x = (uint32_t)line;
    return acc + (int32_t)(x & 255) * w[0] + (int32_t)(x >> 16 & 255) * w[1] +
           (int32_t)(x >> 8 & 255) * w[2] + (int32_t)(x >> 24) * w[3];
#endif
}

LA_INLINE void attend_scores_tile(const int rows, const attend_panel *p, int block)
{
    enum { W = LA_LANES16 };
    vi acc[ATTEND_ROWS][W], line[W];
    const uint8_t *b = p->b + (size_t)block * (size_t)p->steps * ATTEND_LINE;
    const uint8_t *ahead = p->ahead + (b - p->b);
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        int32_t start;
        memcpy(&start, p->a[r], sizeof start);
        LA_UNROLL
        for (int i = 0; i < W; i++) {
            acc[r][i] = vi_set1(start);
        }
    }
    for (int s = 0; s < p->steps; s++, b += ATTEND_LINE, ahead += ATTEND_LINE) {
        __builtin_prefetch(ahead, 0, ATTEND_HINT);
        LA_UNROLL
        for (int i = 0; i < W; i++) {
            line[i] = vi_loadu(b + i * VL * 4);
        }
        LA_UNROLL
        for (int r = 0; r < rows; r++) {
            int32_t q[2];
            memcpy(q, (const char *)p->a[r] + ATTEND_LINE + s * 8, sizeof q);
            LA_UNROLL
            for (int i = 0; i < W; i++) {
                acc[r][i] = attend_add_scores(acc[r][i], line[i], q);
            }
        }
    }
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        LA_UNROLL
        for (int i = 0; i < W; i++) {
            v_storeu(p->c[r] + block * 16 + i * VL, v_from_i(acc[r][i]));
        }
    }
}

LA_INLINE void attend_panel_scores(const attend_panel *p)
{
    for (int block = 0; block < p->n_blocks; block++) {
        switch (VL == 1 ? 1 : p->rows) {
        case 2: attend_scores_tile(2, p, block); break;
        case 3: attend_scores_tile(3, p, block); break;
        case 4: attend_scores_tile(4, p, block); break;
        default: attend_scores_tile(1, p, block); break;
        }
    }
}

#endif
