/* gemm_q.h - int4, int5, int6 and int8 weights with int8 rows, for levels without a four-way dot
 * instruction.
 *
 * Up to 4 rows by as many vectors of columns as registers hold, group by group: with one row all of
 * a unit, so that memory is read once, front to back. int4: u4 * s8 pairs add up to 2 * 15 *
 * 127, so four steps (eight pairs) fit 16 bits: 30480; of int5 and int6 two pairs do: 32004 at
 * most. int8: u8 * s8 pairs would not, so both sides become 16-bit words, even bytes and odd bytes
 * apart; vectors of columns share the rows' words.
 * Lost: four rows by two vectors of int8 (spills). Exact, hence the bits of gemm_scalar.h.
 * Included by isa_avx2.c and isa_avx512.c.
 */
#ifndef LA_GEMM_Q_H
#define LA_GEMM_Q_H

#include "gemm_split.h"

enum { Q_ROWS = 4 };

LA_INLINE vi q_row(const uint8_t *a)
{
    int32_t x;
    memcpy(&x, a, sizeof x);
    return vi_set1(x);
}

/* acc += int4 dot over n steps of 8 k of C vectors of columns. */
LA_INLINE void q_dot_i4(const int R, const int C, const uint8_t *w, const uint8_t *a,
                        size_t a_pitch, int n, vi acc[Q_ROWS][4])
{
    const vi low = vi_set1(0x0f0f0f0f), ones = vi_set1(0x00010001);
    for (int i = 0; i < n; i += 4) {
        vi sum[Q_ROWS][4];
        LA_UNROLL
        for (int x = 0; x < R * C; x++) {
            sum[x / C][x % C] = vi_set1(0);
        }
        for (int j = i; j < n && j < i + 4; j++, w += 128, a += 8) {
            LA_UNROLL
            for (int c = 0; c < C; c++) {
                vi x = vi_loadu(w + c * VL * 4);
                vi lo = vi_and(x, low), hi = vi_and(vi_shr(x, 4), low);
                LA_UNROLL
                for (int r = 0; r < R; r++) {
                    const uint8_t *row = a + (size_t)r * a_pitch;
                    sum[r][c] = vi_add16(sum[r][c], vi_maddubs(lo, q_row(row)));
                    sum[r][c] = vi_add16(sum[r][c], vi_maddubs(hi, q_row(row + 4)));
                }
            }
        }
        LA_UNROLL
        for (int x = 0; x < R * C; x++) {
            acc[x / C][x % C] = vi_add(acc[x / C][x % C], vi_madd16(sum[x / C][x % C], ones));
        }
    }
}

/* acc += int8 dot over n steps of 4 k of C vectors of columns, which share the rows' words. */
LA_INLINE void q_dot_i8(const int R, const int C, const uint8_t *w, const uint8_t *a,
                        size_t a_pitch, int n, vi acc[Q_ROWS][4])
{
    const vi even = vi_set1(0x00ff00ff);
    for (int i = 0; i < n; i++, w += 128, a += 4) {
        vi we[4], wo[4];
        LA_UNROLL
        for (int c = 0; c < C; c++) {
            vi x = vi_loadu(w + c * VL * 4);
            we[c] = vi_and(x, even);
            wo[c] = vi_shr16(x, 8);
        }
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            vi y = q_row(a + (size_t)r * a_pitch);
            vi ye = vi_sar16(vi_shl16(y, 8), 8), yo = vi_sar16(y, 8);
            LA_UNROLL
            for (int c = 0; c < C; c++) {
                acc[r][c] = vi_add(acc[r][c], vi_madd16(we[c], ye));
                acc[r][c] = vi_add(acc[r][c], vi_madd16(wo[c], yo));
            }
        }
    }
}

/* acc += int5 or int6 dot over n steps of C vectors of columns from c0. */
LA_INLINE void q_dot_split(const int bits, const int R, const int C, const int c0, const uint8_t *w,
                           const uint8_t *a, size_t a_pitch, int n, vi acc[Q_ROWS][4])
{
    const vi ones = vi_set1(0x00010001);
    for (int i = 0; i < n; i++, w += tile_step_bytes(bits)) {
        LA_UNROLL
        for (int j = 0; j < tile_step_k(bits) / 8; j++, a += 8) {
            LA_UNROLL
            for (int c = 0; c < C; c++) {
                vi lo, hi;
                split_codes(bits, w, c0 + c, j, &lo, &hi);
                LA_UNROLL
                for (int r = 0; r < R; r++) {
                    const uint8_t *row = a + (size_t)r * a_pitch;
                    vi sum = vi_add16(vi_maddubs(lo, q_row(row)), vi_maddubs(hi, q_row(row + 4)));
                    acc[r][c] = vi_add(acc[r][c], vi_madd16(sum, ones));
                }
            }
        }
    }
}

/* f = fma(acc, scale_w * scale_a, f), then the offset's term, or fma(acc, scale_a, f), for C vectors
 * of columns from c0. */
LA_INLINE void q_fold(const int R, const int C, const int c0, const la_tile *t, const uint8_t *head,
                      const la_act_meta *meta, vi acc[Q_ROWS][4])
{
    LA_UNROLL
    for (int c = 0; c < C; c++) {
        vf scale = t->late_scale ? v_set1(1.0f) : tile_scale(t->f, head, 0, c0 + c);
        vf offset = t->f.has_offset ? tile_scale(t->f, head, 1, c0 + c) : v_zero();
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            const la_act_meta *m = meta + (size_t)r * t->meta_pitch;
            float *out = t->c + (size_t)r * t->ldc + (c0 + c) * VL;
            vf y = v_fma(v_from_i(acc[r][c]), v_mul(scale, v_set1(m->scale)), v_load(out));
            if (t->f.has_offset) {
                y = v_fma(offset, v_set1(m->sum), y);
            }
            v_store(out, y);
        }
    }
}

LA_INLINE void q_tile(const int bits, const int R, const la_tile *tile)
{
    const la_tile own = *tile, *t = &own;
    const int most = R == 1 ? 4 : R == 2 || (R == 3 && bits == 8) ? 2 : 1; /* of 16 registers */
    const int C = most < TILE_V ? most : TILE_V;
    const uint8_t *w = t->w, *a = t->a, *head = t->head;
    const size_t header = la_format_header(t->f);
    const int zero = la_format_zero(t->f);
    const la_act_meta *meta = t->meta;
    tile_clear(R, TILE_V, t);
    for (int k0 = 0; k0 < t->k; k0 += t->fold, meta++) {
        int k = t->k - k0 < t->fold ? t->k - k0 : t->fold;
        int eights = (k + 7) / 8, begins = tile_begins(t, k0);
        const uint8_t *codes = w + (begins ? header : 0);
        head += begins && k0 > 0 ? t->head_step : 0;
        LA_UNROLL
        for (int c = 0; c < TILE_V; c += C) {
            vi acc[Q_ROWS][4];
            LA_UNROLL
            for (int x = 0; x < R * C; x++) {
                acc[x / C][x % C] = vi_set1(-zero * meta[(size_t)(x / C) * t->meta_pitch].isum);
            }
            if (bits == 4) {
                q_dot_i4(R, C, codes + c * VL * 4, a, t->a_pitch, eights, acc);
            }
            else if (bits == 8) {
                q_dot_i8(R, C, codes + c * VL * 4, a, t->a_pitch, 2 * eights, acc);
            }
            else {
                int steps = (k + tile_step_k(bits) - 1) / tile_step_k(bits);
                q_dot_split(bits, R, C, c, codes, a, t->a_pitch, steps, acc);
            }
            q_fold(R, C, c, t, head, meta, acc);
        }
        w = codes + la_format_codes(t->f, k);
        a += (size_t)eights * 8;
    }
}

/* clang-format off */
#define Q_TILE(bits, R)                               \
    static void q##bits##_##R(const la_tile *t)       \
    {                                                 \
        q_tile(bits, R, t);                           \
    }
#define Q_TILES(bits)                                                                            \
    Q_TILE(bits, 1) Q_TILE(bits, 2) Q_TILE(bits, 3) Q_TILE(bits, 4)                               \
    static const la_tile_fn q##bits##_tiles[] = {NULL, q##bits##_1, q##bits##_2, q##bits##_3,     \
                                                 q##bits##_4};

Q_TILES(4)
Q_TILES(5)
Q_TILES(6)
Q_TILES(8)
/* clang-format on */

static void gemm_i4_i8(const la_gemm *g)
{
    static const la_tiler s = {
        .few = q4_tiles,
        .few_rows = Q_ROWS,
        .one = q4_tiles,
        .rows = Q_ROWS,
        .a_bytes = 1,
        .step_k = 8,
    };
    tile_drive(g, &s, NULL);
}

static void gemm_i5_i8(const la_gemm *g)
{
    static const la_tiler s = {
        .few = q5_tiles,
        .few_rows = Q_ROWS,
        .one = q5_tiles,
        .rows = Q_ROWS,
        .a_bytes = 1,
        .step_k = 16,
    };
    tile_drive(g, &s, NULL);
}

static void gemm_i6_i8(const la_gemm *g)
{
    static const la_tiler s = {
        .few = q6_tiles,
        .few_rows = Q_ROWS,
        .one = q6_tiles,
        .rows = Q_ROWS,
        .a_bytes = 1,
        .step_k = 8,
    };
    tile_drive(g, &s, NULL);
}

static void gemm_i8_i8(const la_gemm *g)
{
    static const la_tiler s = {
        .few = q8_tiles,
        .few_rows = Q_ROWS,
        .one = q8_tiles,
        .rows = Q_ROWS - 1, /* three rows share two vectors of columns, four have but one */
        .a_bytes = 1,
        .step_k = 4,
    };
    tile_drive(g, &s, NULL);
}

static void fill_gemm_q(la_kernels *t)
{
    t->gemm_i4_i8 = gemm_i4_i8;
    t->gemm_i8_i8 = gemm_i8_i8;
    t->gemm_i5_i8 = gemm_i5_i8;
    t->gemm_i6_i8 = gemm_i6_i8;
}

#endif
