/* attention_fma.h - the products of attention_core.h by fp32 multiply-adds, for every form of page.
 *
 * Owns the fma tile. A line of bf16 pages is split into even and odd values by shift and mask; a
 * block of codes is opened in registers: each byte twice by unpacking, then shifts, and for int8 a
 * conversion, for E4M3 a mask and one exact product (the code's bits, taken for fp32, are its value
 * times 2^-120, subnormals too). Invariant: values meet a row in order, one fma each, so all levels
 * that use this tile agree bit for bit.
 * Included by attention.h and attention_mla.h, and by attention_vnni.h for the half that has no integer
 * dot.
 */
#ifndef LA_ATTENTION_FMA_H
#define LA_ATTENTION_FMA_H

#include "attention_core.h"

/* What 64 bytes of B hold for a column: one fp32, two bf16, four codes. */
enum { ATTEND_F32 = 0, ATTEND_SPLIT, ATTEND_I8, ATTEND_F8 };
#define ATTEND_VALUES(kind) ((kind) == ATTEND_F32 ? 1 : (kind) == ATTEND_SPLIT ? 2 : 4)

/* Blocks of a tile, and its most rows: accumulators, lines, a broadcast and masks stay in 32
 * (AVX-512) or 16 registers; gcc spills at one row more. */
#define ATTEND_BLOCKS(rows) (VL == 16 ? 4 : VL == 8 && (rows) <= 2 ? 2 : 1)
enum {
    ATTEND_ROWS_F32 = VL == 16 ? 6
    : VL == 8                  ? 5
                               : 1,
    ATTEND_ROWS_SPLIT = VL == 1 ? 1 : 5,
    ATTEND_ROWS_CODES = VL == 1 ? 1 : 4
};

/* Codes 2p and 2p+1 of VL columns from column i * VL of a block, in bits 8..15 and 24..31. */
LA_INLINE vi attend_two_codes(const uint8_t *block, int i, int p)
{
#if defined(LA_VEC_AVX2) || defined(LA_VEC_AVX512)
    vi x = vi_loadu(block + i * VL * 4);
    return p == 0 ? vi_low8x2(x) : vi_high8x2(x);
#else
    const uint8_t *two = block + i / 4 * 16 + p * 8 + i % 4 * 2;
    return (vi)((uint32_t)two[0] << 8 | (uint32_t)two[1] << 24);
#endif
}

/* Value h of VL columns from column i * VL. */
LA_INLINE vf attend_value(const int kind, const uint8_t *block, int i, const int h)
{
    if (kind == ATTEND_F32) {
        return v_bits(vi_loadu(block + i * VL * 4));
    }
    if (kind == ATTEND_SPLIT) {
        vi x = vi_loadu(block + i * VL * 4);
        return v_bits(h == 0 ? vi_shl(x, 16) : vi_and(x, vi_set1((int32_t)0xffff0000u)));
    }
    vi two = attend_two_codes(block, i, h / 2);
    two = h % 2 == 0 ? vi_shl(two, 16) : two;
    if (kind == ATTEND_I8) { /* sign and magnitude */
        vi size = vi_bits(v_from_i(vi_and(vi_sar(two, 24), vi_set1(127))));
        return v_bits(vi_or(size, vi_and(two, vi_set1(INT32_MIN))));
    }
    two = vi_and(vi_sar(two, 4), vi_set1((int32_t)0x87f00000u));
    return v_mul(v_bits(two), v_set1(0x1p120f));
}

LA_INLINE void attend_tile(const int rows, const int blocks, const int kind, const attend_panel *p,
                           int first)
{
    enum { W = LA_LANES16 };
    const int values = ATTEND_VALUES(kind);
    vf acc[ATTEND_ROWS][4 * W], line[4 * W];
    const float *a[ATTEND_ROWS];
    size_t block_bytes = (size_t)p->steps * ATTEND_LINE;
    const uint8_t *b = p->b + (size_t)first * block_bytes;
    const uint8_t *ahead = p->ahead + (size_t)first * block_bytes;
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        a[r] = p->a[r];
        LA_UNROLL
        for (int i = 0; i < blocks * W; i++) {
            acc[r][i] = p->add ? v_loadu(p->c[r] + first * 16 + i * VL) : v_zero();
        }
    }
    for (int s = 0; s < p->steps; s++, b += ATTEND_LINE, ahead += blocks * ATTEND_LINE) {
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            __builtin_prefetch(ahead + i * ATTEND_LINE, 0, ATTEND_HINT);
        }
        LA_UNROLL
        for (int h = 0; h < values; h++) {
            LA_UNROLL
            for (int i = 0; i < blocks * W; i++) {
                line[i] = attend_value(kind, b + (size_t)(i / W) * block_bytes, i % W, h);
            }
            LA_UNROLL
            for (int r = 0; r < rows; r++) {
                vf x = v_set1(a[r][s * values + h]);
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

LA_INLINE void attend_rows(const int rows, const int kind, const attend_panel *p)
{
    int first = 0;
    for (; first + ATTEND_BLOCKS(rows) <= p->n_blocks; first += ATTEND_BLOCKS(rows)) {
        attend_tile(rows, ATTEND_BLOCKS(rows), kind, p, first);
    }
    if (ATTEND_BLOCKS(rows) > 2 && first + 2 <= p->n_blocks) {
        attend_tile(rows, 2, kind, p, first);
        first += 2;
    }
    if (ATTEND_BLOCKS(rows) > 1 && first < p->n_blocks) {
        attend_tile(rows, 1, kind, p, first);
    }
}

LA_INLINE void attend_panel_fma(const int kind, const attend_panel *p)
{
#if defined(LA_VEC_AVX2) || defined(LA_VEC_AVX512)
    switch (p->rows) {
    case 2: attend_rows(2, kind, p); return;
    case 3: attend_rows(3, kind, p); return;
    case 4: attend_rows(4, kind, p); return;
    case 5: attend_rows(5, kind, p); return;
#if defined(LA_VEC_AVX512)
    case 6: attend_rows(6, ATTEND_F32, p); return; /* fp32 pages only */
#endif
    default: break;
    }
#endif
    attend_rows(1, kind, p);
}

LA_INLINE void attend_panel_f32(const attend_panel *p) { attend_panel_fma(ATTEND_F32, p); }

LA_INLINE void attend_panel_split(const attend_panel *p) { attend_panel_fma(ATTEND_SPLIT, p); }

LA_INLINE void attend_panel_i8(const attend_panel *p) { attend_panel_fma(ATTEND_I8, p); }

LA_INLINE void attend_panel_f8(const attend_panel *p) { attend_panel_fma(ATTEND_F8, p); }

LA_INLINE float attend_row_f32(const float *x, int d, void *a)
{
    memcpy(a, x, (size_t)d * sizeof(float));
    return 1.0f;
}

/* Writes whole vectors: a row of A has room for d rounded up to 16 values. */
LA_INLINE float attend_row_split(const float *x, int d, void *a)
{
    float *q = a;
    uint16_t h[VL];
    for (int i = 0; i < d; i += VL) {
        v_store_bf16(h, d - i >= VL ? v_loadu(x + i) : v_loadn(x + i, d - i));
        v_storeu(q + i, v_load_bf16(h));
    }
    for (int i = d; i % 4 != 0; i++) { /* pairs and blocks of four; one lane does not pad */
        q[i] = 0.0f;
    }
    return 1.0f;
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

#endif
