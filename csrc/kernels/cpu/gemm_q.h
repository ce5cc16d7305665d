/* gemm_q.h - int4 and int8 weights with int8 rows, for levels without a four-way dot instruction.
 *
 * One vector of columns by up to 4 rows, group by group. int4: u4 * s8 pairs add up to 2 * 15 *
 * 127, so four steps (eight pairs) fit 16 bits: 30480. int8: u8 * s8 pairs would not, so both sides
 * become 16-bit words, even bytes and odd bytes apart. Exact, hence the bits of gemm_scalar.h.
 * Included by isa_avx2.c and isa_avx512.c.
 */
#ifndef LA_GEMM_Q_H
#define LA_GEMM_Q_H

#include "gemm_drive.h"

enum { Q_ROWS = 4 };

LA_INLINE vi q_row(const uint8_t *a)
{
    int32_t x;
    memcpy(&x, a, sizeof x);
    return vi_set1(x);
}

/* acc += int4 dot over n steps of 8 k of one vector of columns. */
LA_INLINE void q_dot_i4(const int R, const uint8_t *w, const uint8_t *a, size_t a_pitch, int n,
                        vi acc[Q_ROWS])
{
    const vi low = vi_set1(0x0f0f0f0f), ones = vi_set1(0x00010001);
    for (int i = 0; i < n; i += 4) {
        vi sum[Q_ROWS];
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            sum[r] = vi_set1(0);
        }
        for (int j = i; j < n && j < i + 4; j++, w += 128, a += 8) {
            vi x = vi_loadu(w);
            vi lo = vi_and(x, low), hi = vi_and(vi_shr(x, 4), low);
            LA_UNROLL
            for (int r = 0; r < R; r++) {
                const uint8_t *row = a + (size_t)r * a_pitch;
                sum[r] = vi_add16(sum[r], vi_maddubs(lo, q_row(row)));
                sum[r] = vi_add16(sum[r], vi_maddubs(hi, q_row(row + 4)));
            }
        }
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            acc[r] = vi_add(acc[r], vi_madd16(sum[r], ones));
        }
    }
}

/* acc += int8 dot over n steps of 4 k of one vector of columns. */
LA_INLINE void q_dot_i8(const int R, const uint8_t *w, const uint8_t *a, size_t a_pitch, int n,
                        vi acc[Q_ROWS])
{
    const vi even = vi_set1(0x00ff00ff);
    for (int i = 0; i < n; i++, w += 128, a += 4) {
        vi x = vi_loadu(w);
        vi we = vi_and(x, even), wo = vi_shr16(x, 8);
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            vi y = q_row(a + (size_t)r * a_pitch);
            acc[r] = vi_add(acc[r], vi_madd16(we, vi_sar16(vi_shl16(y, 8), 8)));
            acc[r] = vi_add(acc[r], vi_madd16(wo, vi_sar16(y, 8)));
        }
    }
}

LA_INLINE void q_tile(const int bits, const int R, const la_tile *t)
{
    const uint8_t *w = t->w, *a = t->a, *head = t->head;
    const size_t header = la_format_header(t->f);
    const int zero = la_format_zero(t->f);
    const la_act_meta *meta = t->meta;
    for (int k0 = 0; k0 < t->k; k0 += t->f.group, head += t->head_step, meta++) {
        int k = t->k - k0 < t->f.group ? t->k - k0 : t->f.group;
        int eights = (k + 7) / 8;
        const uint8_t *codes = w + header;
        for (int c = 0; c < TILE_V; c++) {
            vi acc[Q_ROWS];
            LA_UNROLL
            for (int r = 0; r < R; r++) {
                acc[r] = vi_set1(-zero * meta[(size_t)r * t->meta_pitch].isum);
            }
            if (bits == 4) {
                q_dot_i4(R, codes + c * VL * 4, a, t->a_pitch, eights, acc);
            }
            else {
                q_dot_i8(R, codes + c * VL * 4, a, t->a_pitch, 2 * eights, acc);
            }
            vf scale = tile_scale(t->f, head, 0, c);
            vf offset = t->f.has_offset ? tile_scale(t->f, head, 1, c) : v_zero();
            LA_UNROLL
            for (int r = 0; r < R; r++) {
                const la_act_meta *m = meta + (size_t)r * t->meta_pitch;
                float *out = t->c + (size_t)r * t->ldc + c * VL;
                vf y = t->first && k0 == 0 ? v_zero() : v_load(out);
                y = v_fma(v_from_i(acc[r]), v_mul(scale, v_set1(m->scale)), y);
                if (t->f.has_offset) {
                    y = v_fma(offset, v_set1(m->sum), y);
                }
                v_store(out, y);
            }
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

static void gemm_i8_i8(const la_gemm *g)
{
    static const la_tiler s = {
        .few = q8_tiles,
        .few_rows = Q_ROWS,
        .one = q8_tiles,
        .rows = Q_ROWS,
        .a_bytes = 1,
        .step_k = 4,
    };
    tile_drive(g, &s, NULL);
}

static void fill_gemm_q(la_kernels *t)
{
    t->gemm_i4_i8 = gemm_i4_i8;
    t->gemm_i8_i8 = gemm_i8_i8;
}

#endif
