/* gemm_bf16.h - bf16 rows by vdpbf16ps: bf16 weights, and int4, int5, int6, int8 and E4M3 groups
 * decoded to bf16.
 *
 * The tile is that of gemm_vnni.h with pairs of k instead of fours. Codes less their zero are exact
 * in bf16, so grouped products round only in their sums. Few rows decode in registers: int4, int5
 * and int6 by one word permute per pair of k (int4's table repeats: the nibble above needs no mask),
 * int8 and E4M3 by two byte tables over the magnitude. More rows decode a block of K once to a block
 * on the stack.
 * Invariant: both ways run the same chain of pairs (k ascending) and the same folds, so bits do not
 * depend on M. The instruction treats bf16 subnormals as zero. Included by isa_bf16.c.
 */
#ifndef LA_GEMM_BF16_H
#define LA_GEMM_BF16_H

#include "gemm_split.h"

enum { BF16_DECODE_K = 512 };

LA_INLINE vf bf16_dot(vf acc, vi w, vi a)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)a);
}

/* The same with the pair at a broadcast from memory: gcc 12 would keep a register per row and
 * spill. */
LA_INLINE vf bf16_dot_at(vf acc, vi w, const uint8_t *a)
{
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0"
            : "+v"(acc)
            : "v"(w), "m"(*(const int32_t (*)[1])(const void *)a));
    return acc;
}

LA_INLINE vi bf16_row(const uint8_t *a)
{
    int32_t x;
    memcpy(&x, a, sizeof x);
    return vi_set1(x);
}

/* ---- codes to bf16 --------------------------------------------------------------------------- */

/* clang-format off */
/* bf16 of the integers 0..127, by the position of the leading bit. */
#define BF16_INT(m)                         \
    ((m) < 1    ? 0                         \
     : (m) < 2  ? 0x3f80                    \
     : (m) < 4  ? 0x4000 + ((m) - 2) * 64   \
     : (m) < 8  ? 0x4080 + ((m) - 4) * 32   \
     : (m) < 16 ? 0x4100 + ((m) - 8) * 16   \
     : (m) < 32 ? 0x4180 + ((m) - 16) * 8   \
     : (m) < 64 ? 0x4200 + ((m) - 32) * 4   \
                : 0x4280 + ((m) - 64) * 2)
#define BF16_LOW(m) (BF16_INT(m) & 255)
#define BF16_HIGH(m) (BF16_INT(m) >> 8)
/* bf16 of the E4M3 codes 0..127; the first 8 are subnormal there, m * 2^-9. */
#define BF16_E4M3(m)                         \
    ((m) < 1     ? 0                         \
     : (m) < 8   ? BF16_INT(m) - 9 * 128     \
     : (m) < 127 ? 120 * 128 + (m) * 16      \
                 : 0x7fc0)
#define BF16_E4M3_LOW(m) (BF16_E4M3(m) & 255)
#define BF16_E4M3_HIGH(m) (BF16_E4M3(m) >> 8)
#define BF16_4(f, m) f(m), f((m) + 1), f((m) + 2), f((m) + 3)
#define BF16_16(f, m) BF16_4(f, m), BF16_4(f, (m) + 4), BF16_4(f, (m) + 8), BF16_4(f, (m) + 12)
#define BF16_64(f, m) \
    BF16_16(f, m), BF16_16(f, (m) + 16), BF16_16(f, (m) + 32), BF16_16(f, (m) + 48)
#define BF16_Q(m) BF16_INT(m)
#define BF16_LESS(m, z) ((m) < (z) ? 0x8000 | BF16_INT((z) - (m)) : BF16_INT((m) - (z)))
#define BF16_Q8(m) BF16_LESS(m, 8)
#define BF16_Q16(m) BF16_LESS(m, 16)
#define BF16_Q32(m) BF16_LESS(m, 32)
#define BF16_32(f) BF16_16(f, 0), BF16_16(f, 16)
/* clang-format on */

/* The tables of one format, loaded before the loops. */
typedef struct bf16_codes {
    vi word[2];         /* bf16 of code - zero: int4 twice in the first, int5 there, int6 in both */
    vi low[2], high[2]; /* int8, E4M3: bytes of bf16 of the magnitudes 0..127 */
} bf16_codes;

LA_INLINE bf16_codes bf16_tables(const int pack, la_format f)
{
    static const _Alignas(64) uint16_t plain[32] = {BF16_16(BF16_Q, 0), BF16_16(BF16_Q, 0)};
    static const _Alignas(64) uint16_t centered[32] = {BF16_16(BF16_Q8, 0), BF16_16(BF16_Q8, 0)};
    static const _Alignas(64) uint16_t fives[2][32] = {{BF16_32(BF16_Q)}, {BF16_32(BF16_Q16)}};
    static const _Alignas(64) uint16_t sixes[64] = {BF16_64(BF16_Q32, 0)};
    static const _Alignas(64)
        uint8_t low[2][128] = {{BF16_64(BF16_LOW, 0), BF16_64(BF16_LOW, 64)},
                               {BF16_64(BF16_E4M3_LOW, 0), BF16_64(BF16_E4M3_LOW, 64)}};
    static const _Alignas(64)
        uint8_t high[2][128] = {{BF16_64(BF16_HIGH, 0), BF16_64(BF16_HIGH, 64)},
                                {BF16_64(BF16_E4M3_HIGH, 0), BF16_64(BF16_E4M3_HIGH, 64)}};
    const int f8 = pack == LA_PACK_F8;
    bf16_codes t;
    if (TILE_TABLE(pack)) {
        const __m256i *bits = (const __m256i *)(const void *)la_pack_table(f.pack);
        t.word[0] = _mm512_broadcast_i64x4(_mm256_loadu_si256(bits));
    }
    else if (pack == LA_PACK_I4) {
        t.word[0] = _mm512_load_si512(f.has_offset ? plain : centered);
    }
    else if (pack == LA_PACK_I5) {
        t.word[0] = _mm512_load_si512(fives[!f.has_offset]);
    }
    else if (pack == LA_PACK_I6) {
        t.word[0] = _mm512_load_si512(sixes);
        t.word[1] = _mm512_load_si512(sixes + 32);
    }
    else {
        t.low[0] = _mm512_load_si512(low[f8]);
        t.low[1] = _mm512_load_si512(low[f8] + 64);
        t.high[0] = _mm512_load_si512(high[f8]);
        t.high[1] = _mm512_load_si512(high[f8] + 64);
    }
    return t;
}

/* 4 bytes a column to two pairs: bytes 0, 2 and bytes 1, 3. int8: |q - 128| is 0..128; 128 reads
 * entry 0, whose low byte is right and whose high byte is replaced. E4M3: the permutes do not see
 * the sign. */
LA_INLINE void bf16_bytes(const int pack, const bf16_codes *t, vi x, vi *even, vi *odd)
{
    const vi sign = vi_set1((int32_t)0x80808080u), bytes = vi_set1(0x00ff00ff);
    vi v = pack == LA_PACK_F8 ? x : _mm512_xor_si512(x, sign);
    vi m = pack == LA_PACK_F8 ? x : _mm512_abs_epi8(v);
    vi low = _mm512_permutex2var_epi8(t->low[0], m, t->low[1]);
    vi high = _mm512_permutex2var_epi8(t->high[0], m, t->high[1]);
    high = _mm512_ternarylogic_epi32(high, v, sign, 0xf8); /* high | (v & sign) */
    if (pack == LA_PACK_I8) {
        high = _mm512_mask_mov_epi8(high, _mm512_movepi8_mask(m), vi_set1((int32_t)0xc3c3c3c3u));
    }
    /* (low & bytes) | high << 8 and low >> 8 | (high & ~bytes) */
    *even = _mm512_ternarylogic_epi32(low, vi_shl16(high, 8), bytes, 0xec);
    *odd = _mm512_ternarylogic_epi32(vi_shr16(low, 8), high, bytes, 0xf4);
}

/* 4 pairs of vector c of int5 or int6: nibble and high bits of a code meet in the low bits of its
 * 16-bit word, which index the table; the permutes do not see the others. */
LA_INLINE void bf16_split8(const int pack, const bf16_codes *t, const uint8_t *step, const int c,
                           const int eight, vi pair[4])
{
    const int bits = tile_bits(pack), width = bits - 4, part = split_part(c, eight);
    const vi nibble = vi_set1(0x000f000f);
    vi x = _mm512_load_si512(step + eight * 128 + c * 64);
    vi h = _mm512_load_si512(split_high(bits, step, c));
    LA_UNROLL
    for (int j = 0; j < 4; j++) {
        vi high = split_shift(h, 8 * (j / 2) + width * (part + j % 2));
        vi code = _mm512_ternarylogic_epi32(nibble, vi_shr(x, 4 * j), high, 0xca); /* 1 ? 2 : 3 */
        pair[j] = pack == LA_PACK_I5 ? _mm512_permutexvar_epi16(code, t->word[0])
                                     : _mm512_permutex2var_epi16(t->word[0], code, t->word[1]);
    }
}

/* Pairs of 8 k of vector c, k ascending; eight: which of the step. */
LA_INLINE void bf16_decode8(const int pack, const bf16_codes *t, const uint8_t *step, const int c,
                            const int eight, vi pair[4])
{
    if (pack == LA_PACK_I5 || pack == LA_PACK_I6) {
        bf16_split8(pack, t, step, c, eight, pair);
        return;
    }
    vi x = _mm512_load_si512(step + c * 64);
    if (tile_bits(pack) == 4) {
        LA_UNROLL
        for (int j = 0; j < 4; j++) {
            pair[j] = _mm512_permutexvar_epi16(vi_shr(x, 4 * j), t->word[0]);
        }
        return;
    }
    bf16_bytes(pack, t, x, &pair[0], &pair[2]);
    bf16_bytes(pack, t, _mm512_load_si512(step + 128 + c * 64), &pair[1], &pair[3]);
}

/* Pairs [k / 2][n_units * 32] of a range, for the tiles below. */
LA_INLINE void bf16_decode(const int pack, const la_tile *t, int n_units, uint8_t *out)
{
    const bf16_codes tables = bf16_tables(pack, t->f);
    const int bits = tile_bits(pack), step_k = tile_step_k(bits);
    const size_t row = (size_t)n_units * 128;
    for (int u = 0; u < n_units; u++) {
        const uint8_t *w = t->w + (size_t)u * t->w_pitch;
        uint8_t *to = out + (size_t)u * 128;
        for (int k0 = 0; k0 < t->k; k0 += t->f.group) {
            int k = t->k - k0 < t->f.group ? t->k - k0 : t->f.group;
            w += la_format_header(t->f);
            for (int i = 0; i < k; i += step_k, w += tile_step_bytes(bits)) {
                LA_UNROLL
                for (int x = 0; x < step_k / 8; x++, to += 4 * row) {
                    LA_UNROLL
                    for (int c = 0; c < 2; c++) {
                        vi pair[4];
                        bf16_decode8(pack, &tables, w, c, x, pair);
                        LA_UNROLL
                        for (int j = 0; j < 4; j++) {
                            _mm512_store_si512(to + (size_t)j * row + c * 64, pair[j]);
                        }
                    }
                }
            }
        }
    }
}

static void bf16_decode_i8(const la_tile *t, int n_units, uint8_t *out)
{
    bf16_decode(LA_PACK_I8, t, n_units, out);
}

static void bf16_decode_i4(const la_tile *t, int n_units, uint8_t *out)
{
    bf16_decode(LA_PACK_I4, t, n_units, out);
}

static void bf16_decode_i5(const la_tile *t, int n_units, uint8_t *out)
{
    bf16_decode(LA_PACK_I5, t, n_units, out);
}

static void bf16_decode_i6(const la_tile *t, int n_units, uint8_t *out)
{
    bf16_decode(LA_PACK_I6, t, n_units, out);
}

static void bf16_decode_f8(const la_tile *t, int n_units, uint8_t *out)
{
    bf16_decode(LA_PACK_F8, t, n_units, out);
}

static void bf16_decode_t4(const la_tile *t, int n_units, uint8_t *out)
{
    bf16_decode(LA_PACK_E2M1, t, n_units, out);
}

/* ---- tiles ----------------------------------------------------------------------------------- */

LA_INLINE void bf16_zero(const int R, const int C, vf acc[8][4])
{
    LA_UNROLL
    for (int r = 0; r < R; r++) {
        LA_UNROLL
        for (int c = 0; c < C; c++) {
            acc[r][c] = v_zero();
        }
    }
}

/* acc += pairs over `steps` steps; column vectors of a unit are together, units pitch apart. */
LA_INLINE void bf16_range(const int R, const int U, const la_tile *t, int steps, const uint8_t *w,
                          size_t pitch, size_t step, const uint8_t *a, size_t *ahead, vf acc[8][4])
{
    const int C = 2 * U;
    for (int i = 0; i < steps; i++, w += step, a += 4) {
        vi x[4];
        tile_prefetch(t, *ahead, U);
        *ahead += t->ahead_step;
        LA_UNROLL
        for (int c = 0; c < C; c++) {
            x[c] = _mm512_load_si512(w + (size_t)(c / 2) * pitch + c % 2 * 64);
        }
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            vi y = bf16_row(a + (size_t)r * t->a_pitch);
            LA_UNROLL
            for (int c = 0; c < C; c++) {
                acc[r][c] = bf16_dot(acc[r][c], x[c], y);
            }
        }
    }
}

/* bf16 weights as they are. */
LA_INLINE void bf16_tile(const int R, const int U, const la_tile *tile)
{
    const la_tile own = *tile, *t = &own;
    vf acc[8][4];
    size_t ahead = 0;
    LA_UNROLL
    for (int r = 0; r < R; r++) {
        LA_UNROLL
        for (int c = 0; c < 2 * U; c++) {
            acc[r][c] = t->first ? v_zero() : v_load(t->c + (size_t)r * t->ldc + c * VL);
        }
    }
    bf16_range(R, U, t, (t->k + 1) / 2, t->w, t->w_pitch, 128, t->a, &ahead, acc);
    LA_UNROLL
    for (int r = 0; r < R; r++) {
        LA_UNROLL
        for (int c = 0; c < 2 * U; c++) {
            v_store(t->c + (size_t)r * t->ldc + c * VL, acc[r][c]);
        }
    }
}

/* Groups already decoded by bf16_decode. */
LA_INLINE void bf16_decoded_tile(const int R, const int U, const la_tile *tile)
{
    const la_tile own = *tile, *t = &own;
    const size_t step = (size_t)U * 128;
    const uint8_t *w = t->decoded, *a = t->a, *head = t->head;
    const la_act_meta *meta = t->meta;
    size_t ahead = 0;
    vf acc[8][4];
    tile_clear(R, 2 * U, t);
    for (int k0 = 0; k0 < t->k; k0 += t->f.group, head += t->head_step, meta++) {
        int k = t->k - k0 < t->f.group ? t->k - k0 : t->f.group;
        int steps = (k + 7) / 8 * 4;
        bf16_zero(R, 2 * U, acc);
        bf16_range(R, U, t, steps, w, 128, step, a, &ahead, acc);
        tile_fold(R, 2 * U, t, head, meta, acc);
        w += (size_t)steps * step;
        a += (size_t)steps * 4;
    }
}

/* Groups decoded in registers. */
LA_INLINE void bf16_codes_tile(const int pack, const int R, const int U, const la_tile *tile)
{
    const la_tile own = *tile, *t = &own;
    const bf16_codes tables = bf16_tables(pack, t->f);
    const size_t header = la_format_header(t->f);
    const int bits = tile_bits(pack), step_k = tile_step_k(bits);
    const uint8_t *w = t->w, *a = t->a, *head = t->head;
    const la_act_meta *meta = t->meta;
    vf acc[8][4];
    tile_clear(R, 2 * U, t);
    for (int k0 = 0; k0 < t->k; k0 += t->f.group, head += t->head_step, meta++) {
        int k = t->k - k0 < t->f.group ? t->k - k0 : t->f.group;
        bf16_zero(R, 2 * U, acc);
        w += header;
        for (int i = 0; i < k; i += step_k, w += tile_step_bytes(bits)) {
            LA_UNROLL
            for (int x = 0; x < step_k / 8; x++, a += 16) {
                LA_UNROLL
                for (int c = 0; c < 2 * U; c++) {
                    vi pair[4];
                    bf16_decode8(pack, &tables, w + (size_t)(c / 2) * t->w_pitch, c % 2, x, pair);
                    LA_UNROLL
                    for (int j = 0; j < 4; j++) {
                        LA_UNROLL
                        for (int r = 0; r < R; r++) {
                            const uint8_t *row = a + (size_t)r * t->a_pitch + j * 4;
                            acc[r][c] = R > 2 ? bf16_dot_at(acc[r][c], pair[j], row)
                                              : bf16_dot(acc[r][c], pair[j], bf16_row(row));
                        }
                    }
                }
            }
        }
        tile_fold(R, 2 * U, t, head, meta, acc);
    }
}

/* clang-format off */
#define BF16_TILE(name, body, ...)             \
    static void bf16_##name(const la_tile *t)  \
    {                                          \
        body(__VA_ARGS__, t);                  \
    }
#define BF16_ONE(name, body)                                                                     \
    BF16_TILE(name##_1_1, body, 1, 1) BF16_TILE(name##_2_1, body, 2, 1)                           \
    BF16_TILE(name##_3_1, body, 3, 1) BF16_TILE(name##_4_1, body, 4, 1)                           \
    BF16_TILE(name##_5_1, body, 5, 1) BF16_TILE(name##_6_1, body, 6, 1)
#define BF16_TWO(name, body)                                                                     \
    BF16_TILE(name##_1_2, body, 1, 2) BF16_TILE(name##_2_2, body, 2, 2)                           \
    BF16_TILE(name##_3_2, body, 3, 2) BF16_TILE(name##_4_2, body, 4, 2)                           \
    BF16_TILE(name##_5_2, body, 5, 2) BF16_TILE(name##_6_2, body, 6, 2)                           \
    static const la_tile_fn bf16_##name##_two[] = {                                               \
        NULL, bf16_##name##_1_2, bf16_##name##_2_2, bf16_##name##_3_2, bf16_##name##_4_2,         \
        bf16_##name##_5_2, bf16_##name##_6_2};
#define BF16_CODES(name, pack)                                                                   \
    BF16_TILE(name##_1, bf16_codes_tile, pack, 1, 1)                                              \
    BF16_TILE(name##_2, bf16_codes_tile, pack, 2, 1)                                              \
    BF16_TILE(name##_3, bf16_codes_tile, pack, 3, 1)                                              \
    BF16_TILE(name##_4, bf16_codes_tile, pack, 4, 1)                                              \
    BF16_TILE(name##_5, bf16_codes_tile, pack, 5, 1)                                              \
    BF16_TILE(name##_6, bf16_codes_tile, pack, 6, 1)                                              \
    BF16_TILE(name##_7, bf16_codes_tile, pack, 7, 1)                                              \
    BF16_TILE(name##_8, bf16_codes_tile, pack, 8, 1)                                              \
    static const la_tile_fn bf16_##name##_few[] = {                                              \
        NULL, bf16_##name##_1, bf16_##name##_2, bf16_##name##_3, bf16_##name##_4,                \
        bf16_##name##_5, bf16_##name##_6, bf16_##name##_7, bf16_##name##_8};
#define BF16_PAIR(name, pack)                                                                    \
    BF16_TILE(name##_1_2, bf16_codes_tile, pack, 1, 2)                                           \
    BF16_TILE(name##_2_2, bf16_codes_tile, pack, 2, 2)                                           \
    static const la_tile_fn bf16_##name##_pair[] = {NULL, bf16_##name##_1_2, bf16_##name##_2_2};

BF16_ONE(plain, bf16_tile)
BF16_TILE(plain_7_1, bf16_tile, 7, 1)
BF16_TILE(plain_8_1, bf16_tile, 8, 1)
static const la_tile_fn bf16_plain_one[] = {
    NULL, bf16_plain_1_1, bf16_plain_2_1, bf16_plain_3_1, bf16_plain_4_1,
    bf16_plain_5_1, bf16_plain_6_1, bf16_plain_7_1, bf16_plain_8_1};
BF16_TWO(plain, bf16_tile)

BF16_ONE(decoded, bf16_decoded_tile)
static const la_tile_fn bf16_decoded_one[] = {
    NULL, bf16_decoded_1_1, bf16_decoded_2_1, bf16_decoded_3_1, bf16_decoded_4_1,
    bf16_decoded_5_1, bf16_decoded_6_1};
BF16_TWO(decoded, bf16_decoded_tile)

BF16_CODES(i4, LA_PACK_I4)
BF16_CODES(i5, LA_PACK_I5)
BF16_CODES(i6, LA_PACK_I6)
BF16_CODES(i8, LA_PACK_I8)
BF16_CODES(f8, LA_PACK_F8)
BF16_CODES(t4, LA_PACK_E2M1)
BF16_PAIR(i4, LA_PACK_I4)
BF16_PAIR(i5, LA_PACK_I5)
BF16_PAIR(i6, LA_PACK_I6)
BF16_PAIR(t4, LA_PACK_E2M1)
/* clang-format on */

static void gemm_bf16_bf16(const la_gemm *g)
{
    static const la_tiler s = {
        .few = bf16_plain_one,
        .few_rows = TILE_FEW,
        .one = bf16_plain_one,
        .two = bf16_plain_two,
        .rows = TILE_ROWS,
        .a_bytes = 2,
        .step_k = 2,
    };
    tile_drive(g, &s, NULL);
}

/* clang-format off */
#define BF16_GROUPED(name, duo)                                                                       \
    static void gemm_##name##_bf16(const la_gemm *g)                                              \
    {                                                                                             \
        static const la_tiler s = {                                                               \
            .few = bf16_##name##_few,                                                             \
            .few_rows = TILE_FEW,                                                                 \
            .pair = duo,                                                                          \
            .one = bf16_decoded_one,                                                              \
            .two = bf16_decoded_two,                                                              \
            .rows = TILE_ROWS,                                                                    \
            .a_bytes = 2,                                                                         \
            .step_k = 2,                                                                          \
            .decode = bf16_decode_##name,                                                         \
            .decode_k = BF16_DECODE_K,                                                            \
        };                                                                                        \
        _Alignas(64) uint8_t block[BF16_DECODE_K * 2 * LA_UNIT * 2];                              \
        tile_drive(g, &s, block);                                                                 \
    }

BF16_GROUPED(i4, bf16_i4_pair)
BF16_GROUPED(i5, bf16_i5_pair)
BF16_GROUPED(i6, bf16_i6_pair)
BF16_GROUPED(i8, NULL)
BF16_GROUPED(f8, NULL)
BF16_GROUPED(t4, bf16_t4_pair)
/* clang-format on */

static float probe_bf16(int64_t n)
{
    vf acc[16];
    vi w = vi_set1(0x3c003c00), a = vi_set1(0x3f803f80);
    LA_UNROLL
    for (int i = 0; i < 16; i++) {
        acc[i] = v_set1((float)i);
    }
    for (int64_t j = 0; j < n; j++) {
        LA_UNROLL
        for (int i = 0; i < 16; i++) {
            acc[i] = bf16_dot(acc[i], w, a);
        }
    }
    LA_UNROLL
    for (int i = 1; i < 16; i++) {
        acc[0] = v_add(acc[0], acc[i]);
    }
    return _mm512_reduce_add_ps(acc[0]);
}

static void fill_gemm_bf16(la_kernels *t)
{
    t->gemm_bf16_bf16 = gemm_bf16_bf16;
    t->gemm_i8_bf16 = gemm_i8_bf16;
    t->gemm_i4_bf16 = gemm_i4_bf16;
    t->gemm_f8_bf16 = gemm_f8_bf16;
    t->gemm_i5_bf16 = gemm_i5_bf16;
    t->gemm_i6_bf16 = gemm_i6_bf16;
    t->gemm_t4_bf16 = gemm_t4_bf16;
    t->probe_bf16 = probe_bf16;
}

#endif
