/* gemm.h - products in fp32 multiply-adds over vec.h: float weights, and grouped ones with bf16
 * rows.
 *
 *         C vectors of columns
 *       +---------------------+      AVX2     3 rows x 1 unit  (12 of 16 registers accumulate)
 *  R    | acc[r][c] += a * b  |      AVX-512  6 rows x 2 units (24 of 32), or 8 x 1 for few rows
 *  rows +---------------------+
 *
 * A step loads R broadcasts and then one vector of weights at a time, each used R times: with the
 * weights first, gcc runs out of registers. Pairs of k (fp16, bf16) take two passes, first k then
 * second; their rows are broadcast from memory for each pass and cut in the vector: as scalars they
 * would take two moves more and, kept from pass to pass, spill. Grouped weights are decoded in
 * registers for few rows, which keeps up with memory, and for more into a block of fp32 on the stack
 * that stays in the caches.
 * Invariant: one chain per result, k ascending. Included by isa_avx2.c and isa_avx512.c.
 */
#ifndef LA_GEMM_H
#define LA_GEMM_H

#include "gemm_split.h"

enum { FMA_F32, FMA_F16, FMA_BF16, FMA_DECODED };
enum {
    FMA_DECODE_K = 256,
    FMA_CODES_ROWS = 3 /* of tiles that decode in registers: as many as AVX2 has registers for */
};

/* Value k + odd of a row in every lane; at: where k is. */
LA_INLINE vf fma_row(const int kind, const uint8_t *at, const int odd)
{
    if (kind == FMA_F32 || kind == FMA_F16) {
        return v_set1(((const float *)(const void *)at)[odd]);
    }
    return v_set1_bf16(at, odd);
}

/* Column vector c, value k + odd; at: where k is in the first unit or in the decoded block. */
LA_INLINE vf fma_column(const int kind, const int U, const uint8_t *at, size_t pitch, const int c,
                        const int odd)
{
    if (kind == FMA_DECODED) {
        return v_load((const float *)(const void *)at + odd * U * LA_UNIT + c * VL);
    }
    const uint8_t *p = at + (size_t)(c / TILE_V) * pitch + (size_t)(c % TILE_V) * VL * 4;
    if (kind == FMA_F32) {
        return v_load((const float *)(const void *)p);
    }
    if (kind == FMA_F16) {
        return v_pick_f16(p, odd);
    }
    return v_from_bf16(vi_loadu(p), odd);
}

/* acc += rows * columns over k values; w and a move on. */
LA_INLINE void fma_range(const int kind, const int R, const int U, const la_tile *t, const int k,
                         const uint8_t **w, const uint8_t **a, size_t *ahead, vf acc[8][4])
{
    const int C = U * TILE_V;
    const int pair = kind == FMA_F32 ? 1 : 2;
    const size_t w_step = kind == FMA_DECODED ? (size_t)U * 2 * LA_UNIT * 4 : 128;
    const size_t a_step = kind == FMA_F32 ? 4 : kind == FMA_F16 ? 8 : 4;
    const uint8_t *wp = *w, *ap = *a;
    for (int i = 0; i < k; i += pair) {
        tile_prefetch(t, *ahead, U);
        *ahead += t->ahead_step;
        for (int odd = 0; odd < pair; odd++) {
            vf x[8];
            LA_UNROLL
            for (int r = 0; r < R; r++) {
                x[r] = fma_row(kind, ap + (size_t)r * t->a_pitch, odd);
            }
            LA_UNROLL
            for (int c = 0; c < C; c++) {
                vf b = fma_column(kind, U, wp, t->w_pitch, c, odd);
                LA_UNROLL
                for (int r = 0; r < R; r++) {
                    acc[r][c] = v_fma(x[r], b, acc[r][c]);
                    __asm__("" : "+v"(acc[r][c])); /* stay in this register: gcc 12 would rotate */
                }
            }
        }
        wp += w_step;
        ap += a_step;
    }
    *w = wp;
    *a = ap;
}

LA_INLINE void fma_tile(const int kind, const int R, const int U, const la_tile *tile)
{
    const la_tile own = *tile, *t = &own;
    vf acc[8][4];
    const uint8_t *w = kind == FMA_DECODED ? t->decoded : t->w, *a = t->a, *head = t->head;
    size_t ahead = 0;
    if (kind != FMA_DECODED) {
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            LA_UNROLL
            for (int c = 0; c < U * TILE_V; c++) {
                acc[r][c] = t->first ? v_zero() : v_load(t->c + (size_t)r * t->ldc + c * VL);
            }
        }
        fma_range(kind, R, U, t, t->k, &w, &a, &ahead, acc);
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            LA_UNROLL
            for (int c = 0; c < U * TILE_V; c++) {
                v_store(t->c + (size_t)r * t->ldc + c * VL, acc[r][c]);
            }
        }
        return;
    }
    const la_act_meta *meta = t->meta;
    tile_clear(R, U * TILE_V, t);
    for (int k0 = 0; k0 < t->k; k0 += t->f.group, head += t->head_step, meta++) {
        int k = t->k - k0 < t->f.group ? (t->k - k0 + 7) / 8 * 8 : t->f.group;
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            LA_UNROLL
            for (int c = 0; c < U * TILE_V; c++) {
                acc[r][c] = v_zero();
            }
        }
        fma_range(kind, R, U, t, k, &w, &a, &ahead, acc);
        tile_fold(R, U * TILE_V, t, head, meta, acc);
    }
}

/* 8 k of vector c as words of 4 bytes, k 0 4 1 5 and 2 6 3 7; eight: which of the step. */
LA_INLINE void fma_codes(const int bits, const uint8_t *step, const int c, const int eight, vi x[2])
{
    if (bits == 8) {
        x[0] = vi_loadu(step + c * VL * 4);
        x[1] = vi_loadu(step + 128 + c * VL * 4);
    }
    else if (bits == 4) {
        vi y = vi_loadu(step + c * VL * 4);
        x[0] = vi_and(y, vi_set1(0x0f0f0f0f));
        x[1] = vi_and(vi_shr(y, 4), vi_set1(0x0f0f0f0f));
    }
    else {
        split_codes(bits, step, c, eight, &x[0], &x[1]);
    }
}

/* What codes are read against: their zero, or the values that they number. */
typedef struct fma_codes_of {
    vf zero;
    v_table table;
} fma_codes_of;

LA_INLINE fma_codes_of fma_codes_start(const int pack, la_format f)
{
    fma_codes_of of = {v_set1((float)la_format_zero(f)), {{v_zero()}}};
    if (TILE_TABLE(pack)) {
        of.table = v_table_load(la_pack_table(f.pack));
    }
    return of;
}

/* Value of byte p of each word. E4M3: the code's exponent and mantissa at those of fp32
 * are 2^120 too small, subnormals included, and the product is exact. */
LA_INLINE vf fma_value(const int pack, const fma_codes_of *of, vi x, const int p)
{
    if (TILE_TABLE(pack)) {
        return v_table_pick(of->table, vi_shr(x, 8 * p));
    }
    if (pack == LA_PACK_F8) {
        x = vi_and(vi_sar(vi_shl(x, 24 - 8 * p), 4), vi_set1((int32_t)0x87f00000u));
        return v_mul(v_bits(x), v_set1(0x1p120f));
    }
    return v_sub(v_from_i(vi_and(vi_shr(x, 8 * p), vi_set1(255))), of->zero);
}

/* q - zero as fp32 [k][n_units * 32]. */
LA_INLINE void fma_decode(const int pack, const la_tile *t, int n_units, uint8_t *decoded)
{
    const int bits = tile_bits(pack);
    const size_t row = (size_t)n_units * LA_UNIT;
    const fma_codes_of of = fma_codes_start(pack, t->f);
    for (int u = 0; u < n_units; u++) {
        const uint8_t *w = t->w + (size_t)u * t->w_pitch;
        float *out = (float *)(void *)decoded + u * LA_UNIT;
        for (int k0 = 0; k0 < t->k; k0 += t->f.group) {
            int k = t->k - k0 < t->f.group ? t->k - k0 : t->f.group;
            w += la_format_header(t->f);
            for (int i = 0; i < k; i += tile_step_k(bits), w += tile_step_bytes(bits)) {
                LA_UNROLL
                for (int j = 0; j < tile_step_k(bits) / 8; j++, out += 8 * row) {
                    LA_UNROLL
                    for (int c = 0; c < TILE_V; c++) {
                        vi x[2];
                        fma_codes(bits, w, c, j, x);
                        LA_UNROLL
                        for (int p = 0; p < 8; p++) {
                            int at = p / 4 * 2 + p % 4 / 2 + p % 2 * 4;
                            v_store(out + (size_t)at * row + c * VL,
                                    fma_value(pack, &of, x[p / 4], p % 4));
                        }
                    }
                }
            }
        }
    }
}

/* Few rows by one unit: the same chains, values decoded where they are used. */
LA_INLINE void fma_codes_tile(const int pack, const int R, const la_tile *tile)
{
    const la_tile own = *tile, *t = &own;
    const uint8_t *w = t->w, *a = t->a, *head = t->head;
    const size_t header = la_format_header(t->f);
    const int bits = tile_bits(pack);
    const fma_codes_of of = fma_codes_start(pack, t->f);
    const la_act_meta *meta = t->meta;
    tile_clear(R, TILE_V, t);
    for (int k0 = 0; k0 < t->k; k0 += t->f.group, head += t->head_step, meta++) {
        int k = t->k - k0 < t->f.group ? t->k - k0 : t->f.group;
        vf acc[8][4];
        LA_UNROLL
        for (int x = 0; x < R * TILE_V; x++) {
            acc[x / TILE_V][x % TILE_V] = v_zero();
        }
        w += header;
        for (int i = 0; i < k; i += tile_step_k(bits), w += tile_step_bytes(bits)) {
            LA_UNROLL
            for (int j = 0; j < tile_step_k(bits) / 8; j++, a += 16) {
                LA_UNROLL
                for (int c = 0; c < TILE_V; c++) {
                    vi x[2];
                    fma_codes(bits, w, c, j, x);
                    LA_UNROLL
                    for (int n = 0; n < 8; n++) {
                        const int p = 2 * (n % 4) + n / 4;
                        vf b = fma_value(pack, &of, x[p / 4], p % 4);
                        LA_UNROLL
                        for (int r = 0; r < R; r++) {
                            vf y = v_set1_bf16(a + (size_t)r * t->a_pitch + n / 2 * 4, n % 2);
                            acc[r][c] = v_fma(y, b, acc[r][c]);
                        }
                    }
                }
            }
        }
        tile_fold(R, TILE_V, t, head, meta, acc);
    }
}

static void fma_decode_i8(const la_tile *t, int n_units, uint8_t *out)
{
    fma_decode(LA_PACK_I8, t, n_units, out);
}

static void fma_decode_i4(const la_tile *t, int n_units, uint8_t *out)
{
    fma_decode(LA_PACK_I4, t, n_units, out);
}

static void fma_decode_f8(const la_tile *t, int n_units, uint8_t *out)
{
    fma_decode(LA_PACK_F8, t, n_units, out);
}

static void fma_decode_i5(const la_tile *t, int n_units, uint8_t *out)
{
    fma_decode(LA_PACK_I5, t, n_units, out);
}

static void fma_decode_i6(const la_tile *t, int n_units, uint8_t *out)
{
    fma_decode(LA_PACK_I6, t, n_units, out);
}

static void fma_decode_t4(const la_tile *t, int n_units, uint8_t *out)
{
    fma_decode(LA_PACK_E2M1, t, n_units, out);
}

/* ---- tiles by number of rows, and the slots -------------------------------------------------- */

/* clang-format off */
#define FMA_TILE(name, kind, R, U)                          \
    static void fma_##name##_##R##_##U(const la_tile *t)    \
    {                                                       \
        fma_tile(kind, R, U, t);                            \
    }

#if defined(LA_VEC_AVX512)
#define FMA_TILES(name, kind)                                                                    \
    FMA_TILE(name, kind, 1, 1) FMA_TILE(name, kind, 2, 1) FMA_TILE(name, kind, 3, 1)              \
    FMA_TILE(name, kind, 4, 1) FMA_TILE(name, kind, 5, 1) FMA_TILE(name, kind, 6, 1)              \
    FMA_TILE(name, kind, 7, 1) FMA_TILE(name, kind, 8, 1)                                         \
    FMA_TILE(name, kind, 1, 2) FMA_TILE(name, kind, 2, 2) FMA_TILE(name, kind, 3, 2)              \
    FMA_TILE(name, kind, 4, 2) FMA_TILE(name, kind, 5, 2) FMA_TILE(name, kind, 6, 2)              \
    static const la_tile_fn fma_##name##_one[] = {                                                \
        NULL, fma_##name##_1_1, fma_##name##_2_1, fma_##name##_3_1, fma_##name##_4_1,             \
        fma_##name##_5_1, fma_##name##_6_1, fma_##name##_7_1, fma_##name##_8_1};                  \
    static const la_tile_fn fma_##name##_two[] = {                                                \
        NULL, fma_##name##_1_2, fma_##name##_2_2, fma_##name##_3_2, fma_##name##_4_2,             \
        fma_##name##_5_2, fma_##name##_6_2};
#define FMA_TWO(name) fma_##name##_two
#else
#define FMA_TILES(name, kind)                                                                    \
    FMA_TILE(name, kind, 1, 1) FMA_TILE(name, kind, 2, 1) FMA_TILE(name, kind, 3, 1)              \
    static const la_tile_fn fma_##name##_one[] = {NULL, fma_##name##_1_1, fma_##name##_2_1,       \
                                                  fma_##name##_3_1};
#define FMA_TWO(name) NULL
#endif

FMA_TILES(f32, FMA_F32)
FMA_TILES(f16, FMA_F16)
FMA_TILES(bf16, FMA_BF16)
FMA_TILES(decoded, FMA_DECODED)

#define FMA_CODES_TILE(name, pack, R)                       \
    static void fma_##name##_##R(const la_tile *t)          \
    {                                                       \
        fma_codes_tile(pack, R, t);                         \
    }
#define FMA_CODES(name, pack)                                                                    \
    FMA_CODES_TILE(name, pack, 1) FMA_CODES_TILE(name, pack, 2) FMA_CODES_TILE(name, pack, 3)     \
    static const la_tile_fn fma_##name##_few[] = {NULL, fma_##name##_1, fma_##name##_2,           \
                                                  fma_##name##_3};

FMA_CODES(i4, LA_PACK_I4)
FMA_CODES(i5, LA_PACK_I5)
FMA_CODES(i6, LA_PACK_I6)
FMA_CODES(i8, LA_PACK_I8)
FMA_CODES(f8, LA_PACK_F8)
FMA_CODES(t4, LA_PACK_E2M1)
/* clang-format on */

static void gemm_f32_f32(const la_gemm *g)
{
    static const la_tiler s = {
        .few = fma_f32_one,
        .few_rows = TILE_FEW,
        .one = fma_f32_one,
        .two = FMA_TWO(f32),
        .rows = TILE_ROWS,
        .a_bytes = 4,
        .step_k = 1,
    };
    tile_drive(g, &s, NULL);
}

static void gemm_f16_f32(const la_gemm *g)
{
    static const la_tiler s = {
        .few = fma_f16_one,
        .few_rows = TILE_FEW,
        .one = fma_f16_one,
        .two = FMA_TWO(f16),
        .rows = TILE_ROWS,
        .a_bytes = 4,
        .step_k = 2,
    };
    tile_drive(g, &s, NULL);
}

static void gemm_bf16_bf16(const la_gemm *g)
{
    static const la_tiler s = {
        .few = fma_bf16_one,
        .few_rows = TILE_FEW,
        .one = fma_bf16_one,
        .two = FMA_TWO(bf16),
        .rows = TILE_ROWS,
        .a_bytes = 2,
        .step_k = 2,
    };
    tile_drive(g, &s, NULL);
}

/* clang-format off */
#define FMA_GROUPED(name)                                                                        \
    static void gemm_##name##_bf16(const la_gemm *g)                                              \
    {                                                                                             \
        static const la_tiler s = {                                                               \
            .few = fma_##name##_few,                                                              \
            .few_rows = FMA_CODES_ROWS,                                                           \
            .one = fma_decoded_one,                                                               \
            .two = FMA_TWO(decoded),                                                              \
            .rows = TILE_ROWS,                                                                    \
            .a_bytes = 2,                                                                         \
            .step_k = 2,                                                                          \
            .decode = fma_decode_##name,                                                          \
            .decode_k = FMA_DECODE_K,                                                             \
        };                                                                                        \
        _Alignas(64) uint8_t block[FMA_DECODE_K * LA_UNIT * (TILE_WIDE + 1) * 4];                 \
        tile_drive(g, &s, block);                                                                 \
    }

FMA_GROUPED(i4)
FMA_GROUPED(i5)
FMA_GROUPED(i6)
FMA_GROUPED(i8)
FMA_GROUPED(f8)
FMA_GROUPED(t4)
/* clang-format on */

static void fill_gemm(la_kernels *t)
{
    t->gemm_f32_f32 = gemm_f32_f32;
    t->gemm_f16_f32 = gemm_f16_f32;
    t->gemm_bf16_bf16 = gemm_bf16_bf16;
    t->gemm_i8_bf16 = gemm_i8_bf16;
    t->gemm_i4_bf16 = gemm_i4_bf16;
    t->gemm_f8_bf16 = gemm_f8_bf16;
    t->gemm_t4_bf16 = gemm_t4_bf16;
    t->gemm_i5_bf16 = gemm_i5_bf16;
    t->gemm_i6_bf16 = gemm_i6_bf16;
}

#endif
