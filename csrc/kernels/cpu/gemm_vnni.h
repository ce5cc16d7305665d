/* gemm_vnni.h - int4, int5, int6 and int8 weights with int8 rows by vpdpbusd: u8 weights, s8 rows,
 * int32 sums.
 *
 *            unit 0       unit 1       per step: 4 column vectors, each against every row
 *       +------+------+------+------+  3 rows x 2 units: 12 accumulators and 12 sums of folds, 4
 *  rows | 16 n | 16 n | 16 n | 16 n |  weights or 2 nibble halves, the row's 4 bytes in every lane
 *       +------+------+------+------+
 *
 * Three rows, for sums that stay in registers: with six, whose sums of folds pass through memory, the
 * 24 stores of a fold cost 77 cycles beside 384 of a group of 64 (without them 0.89 of peak, with them
 * 0.81, and neither conversion, loads nor starts matter). 0.88 of peak instead of 0.83 (int8, groups of
 * 64), 0.81 instead of 0.71 (int4, two threads), 0.71 instead of 0.58 (of 32); 0.93 instead of 0.92 with
 * groups of 256. Two rows, 8 accumulators, wait for each other (0.66), so a row too many joins a strip
 * of three.
 * Sums start at -zero * sum(a), so codes go in as stored. The dots are written in assembly: with
 * intrinsics gcc 12 copies accumulators and spills. int8 shares one broadcast between the columns.
 * int5 and int6: few rows open codes in registers, more rows open blocks for int8's tiles.
 * Lost: unrolling int8's steps by two or four (gcc gathers their loads and spills: 0.68 of peak), a
 * branch per result for first groups and offsets in the fold (g32: 0.49 of peak instead of 0.70).
 * Invariant: the integers and folds of gemm_scalar.h, hence its bits. Included by isa_vnni.c.
 */
#ifndef LA_GEMM_VNNI_H
#define LA_GEMM_VNNI_H

#include "gemm_split.h"

enum {
    VNNI_ROWS = 3,      /* of a strip */
    VNNI_REGS = 12,     /* most results whose sums stay in registers */
    VNNI_DECODE_K = 256 /* k of a block of int5 or int6 opened to int8 */
};

/* acc + dot of the bytes of w (unsigned) and a (signed), in each lane. */
LA_INLINE vi vnni_dot(vi acc, vi w, vi a)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(a));
    return acc;
}

/* The same with 4 bytes at a for every lane. */
LA_INLINE vi vnni_dot_at(vi acc, vi w, const uint8_t *a)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(acc)
            : "v"(w), "m"(*(const int32_t (*)[1])(const void *)a));
    return acc;
}

LA_INLINE vi vnni_row(const uint8_t *a)
{
    int32_t x;
    memcpy(&x, a, sizeof x);
    return vi_set1(x);
}

/* 8 k of int4: one load per column vector, low nibbles against a, high ones against a + 4. */
LA_INLINE void vnni_step_i4(const int R, const int C, const la_tile *t, const uint8_t *w,
                            const uint8_t *a, vi acc[8][4])
{
    const vi low = vi_set1(0x0f0f0f0f);
    LA_UNROLL
    for (int c = 0; c < C; c++) {
        vi x = _mm512_load_si512(w + (size_t)(c / 2) * t->w_pitch + c % 2 * 64);
        vi lo = vi_and(x, low), hi = vi_and(vi_shr(x, 4), low);
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            const uint8_t *row = a + (size_t)r * t->a_pitch;
            if (R > VNNI_ROWS) { /* registers for the rows are lacking */
                acc[r][c] = vnni_dot_at(acc[r][c], lo, row);
                acc[r][c] = vnni_dot_at(acc[r][c], hi, row + 4);
            }
            else {
                acc[r][c] = vnni_dot(acc[r][c], lo, vnni_row(row));
                acc[r][c] = vnni_dot(acc[r][c], hi, vnni_row(row + 4));
            }
        }
    }
}

/* 4 k of int8. */
LA_INLINE void vnni_step_i8(const int R, const int C, const la_tile *t, const uint8_t *w,
                            const uint8_t *a, vi acc[8][4])
{
    vi x[4];
    LA_UNROLL
    for (int c = 0; c < C; c++) {
        x[c] = _mm512_load_si512(w + (size_t)(c / 2) * t->w_pitch + c % 2 * 64);
    }
    LA_UNROLL
    for (int r = 0; r < R; r++) {
        vi y = vnni_row(a + (size_t)r * t->a_pitch);
        LA_UNROLL
        for (int c = 0; c < C; c++) {
            acc[r][c] = vnni_dot(acc[r][c], x[c], y);
        }
    }
}

/* A step of int5 or int6. */
LA_INLINE void vnni_step_split(const int bits, const int R, const int C, const la_tile *t,
                               const uint8_t *w, const uint8_t *a, vi acc[8][4])
{
    LA_UNROLL
    for (int i = 0; i < tile_step_k(bits) / 8; i++, a += 8) {
        LA_UNROLL
        for (int c = 0; c < C; c++) {
            vi lo, hi;
            split_codes(bits, w + (size_t)(c / 2) * t->w_pitch, c % 2, i, &lo, &hi);
            LA_UNROLL
            for (int r = 0; r < R; r++) {
                const uint8_t *row = a + (size_t)r * t->a_pitch;
                acc[r][c] = vnni_dot(acc[r][c], lo, vnni_row(row));
                acc[r][c] = vnni_dot(acc[r][c], hi, vnni_row(row + 4));
            }
        }
    }
}

/* One step of any width; w and a move on. */
LA_INLINE void vnni_step(const int bits, const int R, const int U, const la_tile *t,
                         const uint8_t **w, const uint8_t **a, size_t *ahead, vi acc[8][4])
{
    tile_prefetch(t, *ahead, U);
    *ahead += t->ahead_step;
    if (bits == 4) {
        vnni_step_i4(R, 2 * U, t, *w, *a, acc);
    }
    else if (bits == 8) {
        vnni_step_i8(R, 2 * U, t, *w, *a, acc);
    }
    else {
        vnni_step_split(bits, R, 2 * U, t, *w, *a, acc);
    }
    *w += bits == 8 ? 128 : tile_step_bytes(bits);
    *a += bits == 8 ? 4 : tile_step_k(bits);
}

/* One group: f = fma(acc, scale_w * scale_a, f), then the offset's term, or fma(acc, scale_a, f).
 * f is in registers where they suffice, else in c. */
LA_INLINE void vnni_fold(const int R, const int C, const int kind, const la_tile *t,
                         const uint8_t *head, const la_act_meta *meta, vi acc[8][4], vf f[8][4])
{
    const int regs = R * C <= VNNI_REGS;
    LA_UNROLL
    for (int c = 0; c < C; c++) {
        const uint8_t *h = head + (size_t)(c / 2) * t->head_pitch;
        vf scale = kind == FOLD_PLAIN ? v_zero() : tile_scale(t->f, h, 0, c % 2);
        vf offset = kind == FOLD_OFFSET ? tile_scale(t->f, h, 1, c % 2) : v_zero();
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            const la_act_meta *m = meta + (size_t)r * t->meta_pitch;
            float *out = t->c + (size_t)r * t->ldc + c * VL;
            vf y = regs ? f[r][c] : v_load(out);
            vf step = v_set1(m->scale);
            y = v_fma(v_from_i(acc[r][c]), kind == FOLD_PLAIN ? step : v_mul(scale, step), y);
            if (kind == FOLD_OFFSET) {
                y = v_fma(offset, v_set1(m->sum), y);
            }
            if (regs) {
                f[r][c] = y;
            }
            else {
                v_store(out, y);
            }
        }
    }
}

LA_INLINE void vnni_tile(const int bits, const int R, const int U, const la_tile *tile)
{
    const la_tile own = *tile, *t = &own;
    const int C = 2 * U, regs = R * C <= VNNI_REGS;
    const uint8_t *w = t->w, *a = t->a, *head = t->head;
    const size_t header = la_format_header(t->f);
    const int zero = la_format_zero(t->f);
    const la_act_meta *meta = t->meta;
    size_t ahead = 0;
    vf f[8][4];
    LA_UNROLL
    for (int r = 0; r < R && regs; r++) {
        LA_UNROLL
        for (int c = 0; c < C; c++) {
            f[r][c] = t->first ? v_zero() : v_load(t->c + (size_t)r * t->ldc + c * VL);
        }
    }
    if (!regs) {
        tile_clear(R, C, t);
    }
    for (int k0 = 0; k0 < t->k; k0 += t->fold, meta++) {
        int k = t->k - k0 < t->fold ? t->k - k0 : t->fold;
        int steps = (k + tile_step_k(bits) - 1) / tile_step_k(bits) * (bits == 8 ? 2 : 1);
        vi acc[8][4];
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            LA_UNROLL
            for (int c = 0; c < C; c++) {
                acc[r][c] = vi_set1(-zero * meta[(size_t)r * t->meta_pitch].isum);
            }
        }
        if (tile_begins(t, k0)) {
            w += header;
            head += k0 > 0 ? t->head_step : 0;
        }
        for (int i = 0; i < steps && bits != 8; i++) {
            vnni_step(bits, R, U, t, &w, &a, &ahead, acc);
        }
        /* int8 in turns of 16: the end of a loop of 64 is guessed wrong (0.88 of peak at 6 rows, with
         * turns 0.93). int4's groups of 128 have 16 steps and lose by it. */
        for (int n; steps > 0 && bits == 8; steps -= n) {
            n = steps < 16 ? steps : 16;
            for (int i = 0; i < n; i++) {
                vnni_step(bits, R, U, t, &w, &a, &ahead, acc);
            }
        }
        switch (tile_fold_kind(t)) {
        case FOLD_OFFSET: vnni_fold(R, C, FOLD_OFFSET, t, head, meta, acc, f); break;
        case FOLD_SCALE: vnni_fold(R, C, FOLD_SCALE, t, head, meta, acc, f); break;
        default: vnni_fold(R, C, FOLD_PLAIN, t, head, meta, acc, f); break;
        }
    }
    LA_UNROLL
    for (int r = 0; r < R && regs; r++) {
        LA_UNROLL
        for (int c = 0; c < C; c++) {
            v_store(t->c + (size_t)r * t->ldc + c * VL, f[r][c]);
        }
    }
}

/* clang-format off */
#define VNNI_TILE(bits, R, U)                               \
    static void vnni##bits##_##R##_##U(const la_tile *t)    \
    {                                                       \
        vnni_tile(bits, R, U, t);                           \
    }
#define VNNI_TILES(bits)                                                                         \
    VNNI_TILE(bits, 1, 1) VNNI_TILE(bits, 2, 1) VNNI_TILE(bits, 3, 1) VNNI_TILE(bits, 4, 1)       \
    VNNI_TILE(bits, 5, 1) VNNI_TILE(bits, 6, 1) VNNI_TILE(bits, 7, 1) VNNI_TILE(bits, 8, 1)       \
    VNNI_TILE(bits, 1, 2) VNNI_TILE(bits, 2, 2) VNNI_TILE(bits, 3, 2) VNNI_TILE(bits, 4, 2)       \
    static const la_tile_fn vnni##bits##_one[] = {                                                \
        NULL, vnni##bits##_1_1, vnni##bits##_2_1, vnni##bits##_3_1, vnni##bits##_4_1,             \
        vnni##bits##_5_1, vnni##bits##_6_1, vnni##bits##_7_1, vnni##bits##_8_1};                  \
    static const la_tile_fn vnni##bits##_two[] = {                                                \
        NULL, vnni##bits##_1_2, vnni##bits##_2_2, vnni##bits##_3_2, vnni##bits##_4_2};

#define VNNI_FEW(bits)                                                                           \
    VNNI_TILE(bits, 1, 1) VNNI_TILE(bits, 2, 1) VNNI_TILE(bits, 3, 1) VNNI_TILE(bits, 4, 1)       \
    VNNI_TILE(bits, 1, 2) VNNI_TILE(bits, 2, 2)                                                   \
    static const la_tile_fn vnni##bits##_few[] = {                                                \
        NULL, vnni##bits##_1_1, vnni##bits##_2_1, vnni##bits##_3_1, vnni##bits##_4_1};            \
    static const la_tile_fn vnni##bits##_pair[] = {NULL, vnni##bits##_1_2, vnni##bits##_2_2};

VNNI_TILES(4)
VNNI_TILES(8)
VNNI_FEW(5)
VNNI_FEW(6)
/* clang-format on */

/* Units of int8 codes, one behind the other. */
LA_INLINE void vnni_decode(const int bits, const la_tile *t, int n_units, uint8_t *out)
{
    const uint32_t shift = 128u - (uint32_t)la_format_zero(t->f);
    const vi zero = vi_set1((int32_t)(shift * 0x01010101u));
    for (int u = 0; u < n_units; u++) {
        const uint8_t *w = t->w + (size_t)u * t->w_pitch;
        uint8_t *to = out + (size_t)u * VNNI_DECODE_K * LA_UNIT;
        for (int k0 = 0; k0 < t->k; k0 += t->f.group) {
            int k = t->k - k0 < t->f.group ? t->k - k0 : t->f.group;
            w += la_format_header(t->f);
            for (int i = 0; i < k; i += tile_step_k(bits), w += tile_step_bytes(bits)) {
                LA_UNROLL
                for (int j = 0; j < tile_step_k(bits) / 8; j++, to += 256) {
                    LA_UNROLL
                    for (int c = 0; c < 2; c++) {
                        vi lo, hi;
                        split_codes(bits, w, c, j, &lo, &hi);
                        _mm512_store_si512(to + c * 64, _mm512_add_epi8(lo, zero));
                        _mm512_store_si512(to + 128 + c * 64, _mm512_add_epi8(hi, zero));
                    }
                }
            }
        }
    }
}

static void vnni_decode_i5(const la_tile *t, int n_units, uint8_t *out)
{
    vnni_decode(5, t, n_units, out);
}

static void vnni_decode_i6(const la_tile *t, int n_units, uint8_t *out)
{
    vnni_decode(6, t, n_units, out);
}

/* 5 to 8 rows of int4 are bound by arithmetic: two strips of 64 columns beat one of 32. */
static void gemm_i4_i8(const la_gemm *g)
{
    static const la_tiler s = {
        .few = vnni4_one,
        .few_rows = TILE_FEW / 2,
        .pair = vnni4_two,
        .pair_all = 1,
        .one = vnni4_one,
        .two = vnni4_two,
        .rows = VNNI_ROWS + 1,
        .aim = VNNI_ROWS,
        .a_bytes = 1,
        .step_k = 8,
    };
    tile_drive(g, &s, NULL);
}

static void gemm_i8_i8(const la_gemm *g)
{
    static const la_tiler s = {
        .few = vnni8_one,
        .few_rows = TILE_FEW,
        .one = vnni8_one,
        .two = vnni8_two,
        .rows = VNNI_ROWS + 1,
        .aim = VNNI_ROWS,
        .a_bytes = 1,
        .step_k = 4,
    };
    tile_drive(g, &s, NULL);
}

/* clang-format off */
#define VNNI_SPLIT(bits)                                                                         \
    static void gemm_i##bits##_i8(const la_gemm *g)                                              \
    {                                                                                            \
        static const la_tiler s = {                                                              \
            .few = vnni##bits##_few,                                                             \
            .few_rows = TILE_FEW / 2,                                                            \
            .pair = vnni##bits##_pair,                                                           \
            .one = vnni8_one,                                                                    \
            .two = vnni8_two,                                                                    \
            .rows = VNNI_ROWS + 1,                                                               \
            .aim = VNNI_ROWS,                                                                    \
            .a_bytes = 1,                                                                        \
            .step_k = 4,                                                                         \
            .decode = vnni_decode_i##bits,                                                       \
            .decode_k = VNNI_DECODE_K,                                                           \
            .as_i8 = 1,                                                                          \
        };                                                                                       \
        _Alignas(64) uint8_t block[VNNI_DECODE_K * 2 * LA_UNIT];                                 \
        tile_drive(g, &s, block);                                                                \
    }

VNNI_SPLIT(5)
VNNI_SPLIT(6)
/* clang-format on */

static float probe_i8(int64_t n)
{
    vi acc[16], w = vi_set1(0x3c003c00), a = vi_set1(0x01010101);
    LA_UNROLL
    for (int i = 0; i < 16; i++) {
        acc[i] = vi_set1(i);
    }
    for (int64_t j = 0; j < n; j++) {
        LA_UNROLL
        for (int i = 0; i < 16; i++) {
            acc[i] = vnni_dot(acc[i], w, a);
        }
    }
    LA_UNROLL
    for (int i = 1; i < 16; i++) {
        acc[0] = vi_or(acc[0], acc[i]);
    }
    return (float)_mm512_reduce_or_epi32(acc[0]);
}

static void fill_gemm_vnni(la_kernels *t)
{
    t->gemm_i4_i8 = gemm_i4_i8;
    t->gemm_i8_i8 = gemm_i8_i8;
    t->gemm_i5_i8 = gemm_i5_i8;
    t->gemm_i6_i8 = gemm_i6_i8;
    t->probe_i8 = probe_i8;
}

#endif
