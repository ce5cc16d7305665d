/* attention_bf16.h - attention by vdpbf16ps, over bf16 pages and pages of codes.
 *
 * Owns the dot tile of attention_core.h for the BF16 level: a line of B (16 columns x 2 values) meets a
 * broadcast pair of A in one instruction. A block of codes becomes two such lines in registers: two
 * byte permutes look up the halves of the bf16 value of a magnitude, the sign is merged, two unpacks
 * pair them (5 instructions for 64 codes, exact for int8 and E4M3). With several tiles of rows the page
 * is opened once into scratch instead; same values, same order, same bits.
 * Invariant: one instruction family for every number of rows, since it rounds differently from fma. It takes
 * subnormal bf16 as 0. int8 scores stay integers (attention_vnni.h): half the dots and no look-up.
 * Included by isa_bf16.c and attention_mla_bf16.h.
 */
#ifndef LA_ATTENTION_BF16_H
#define LA_ATTENTION_BF16_H

#include "attention_core.h"
#include "attention_vnni.h"

/* What B holds: bf16 lines or blocks of codes. */
enum { ATTEND_LINES = 0, ATTEND_CODES };

/* bf16 values of the magnitudes 0..127, low and high bytes. */
typedef struct attend_table {
    uint8_t low[128], high[128];
} attend_table;

/* One step of one block, as the tile reads it: one line, or two from codes. */
LA_INLINE void attend_open_block(const int kind, const uint8_t *b, const __m512i t[4],
                                 __m512i line[2])
{
    __m512i x = vi_loadu(b);
    if (kind == ATTEND_LINES) {
        line[0] = x;
        return;
    }
    /* Permutes use 7 bits of an index: a code, sign and magnitude, is one as it is. */
    __m512i low = _mm512_permutex2var_epi8(t[0], x, t[1]);
    __m512i high = _mm512_permutex2var_epi8(t[2], x, t[3]);
    high = _mm512_ternarylogic_epi32(high, x, vi_set1((int32_t)0x80808080u), 0xf8); /* h | x & s */
    line[0] = _mm512_unpacklo_epi8(low, high);
    line[1] = _mm512_unpackhi_epi8(low, high);
}

LA_INLINE void attend_load_table(const void *table, __m512i t[4])
{
    LA_UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = vi_loadu((const uint8_t *)table + i * 64);
    }
}

LA_INLINE void attend_dot_tile(const int rows, const int blocks, const int kind,
                               const attend_panel *p, int first)
{
    const int lines = kind == ATTEND_LINES ? 1 : 2;
    __m512 acc[ATTEND_ROWS][4];
    __m512i line[2], t[4];
    const int32_t *a[ATTEND_ROWS];
    size_t block_bytes = (size_t)p->steps * ATTEND_LINE;
    const uint8_t *b = p->b + (size_t)first * block_bytes;
    const uint8_t *ahead = p->ahead + (size_t)first * block_bytes;
    if (kind != ATTEND_LINES) {
        attend_load_table(p->table, t);
    }
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        a[r] = p->a[r];
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            acc[r][i] = p->add ? v_loadu(p->c[r] + (first + i) * 16) : v_zero();
        }
    }
    for (int s = 0; s < p->steps; s++, b += ATTEND_LINE, ahead += blocks * ATTEND_LINE) {
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            __builtin_prefetch(ahead + i * ATTEND_LINE, 0, ATTEND_HINT);
            attend_open_block(kind, b + (size_t)i * block_bytes, t, line);
            LA_UNROLL
            for (int j = 0; j < lines; j++) {
                LA_UNROLL
                for (int r = 0; r < rows; r++) {
                    __m512bh x = (__m512bh)_mm512_set1_epi32(a[r][s * lines + j]);
                    acc[r][i] = _mm512_dpbf16_ps(acc[r][i], x, (__m512bh)line[j]);
                }
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

LA_INLINE void attend_dot_rows(const int rows, const int kind, const attend_panel *p)
{
    /* Decode of four heads: two blocks keep the dots busy, and fewer streams read memory faster. */
    const int most = kind == ATTEND_LINES && (rows == 3 || rows == 4) ? 2 : 4;
    int first = 0;
    for (; first + most <= p->n_blocks; first += most) {
        attend_dot_tile(rows, most, kind, p, first);
    }
    if (most > 2 && first + 2 <= p->n_blocks) {
        attend_dot_tile(rows, 2, kind, p, first);
        first += 2;
    }
    if (first < p->n_blocks) {
        attend_dot_tile(rows, 1, kind, p, first);
    }
}

LA_INLINE void attend_panel_dot(const int kind, const attend_panel *p)
{
    switch (p->rows) {
    case 1: attend_dot_rows(1, kind, p); break;
    case 2: attend_dot_rows(2, kind, p); break;
    case 3: attend_dot_rows(3, kind, p); break;
    case 4: attend_dot_rows(4, kind, p); break;
    case 5: attend_dot_rows(5, kind, p); break;
    default: attend_dot_rows(6, kind, p); break;
    }
}

static void attend_panel_lines(const attend_panel *p) { attend_panel_dot(ATTEND_LINES, p); }

static void attend_panel_codes(const attend_panel *p) { attend_panel_dot(ATTEND_CODES, p); }

/* All blocks to lines [n_blocks][2 steps][64 bytes]. */
static void attend_open(const attend_panel *p, uint8_t *lines)
{
    __m512i t[4], line[2];
    attend_load_table(p->table, t);
    for (int i = 0; i < p->n_blocks * p->steps; i++, lines += 2 * ATTEND_LINE) {
        attend_open_block(ATTEND_CODES, p->b + (size_t)i * ATTEND_LINE, t, line);
        vi_storeu(lines, line[0]);
        vi_storeu(lines + ATTEND_LINE, line[1]);
    }
}

/* Integers are their own values; the bits of an E4M3 magnitude, taken for fp32, are 2^-120 of it. */
LA_INLINE void attend_fill_table(const la_kv_form kv, attend_table *t)
{
    vi at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    LA_UNROLL
    for (int i = 0; i < 128; i += 16) {
        vf x = kv == LA_KV_I8 ? v_from_i(at) : v_mul(v_bits(vi_shl(at, 20)), v_set1(0x1p120f));
        vi h = vi_shr(vi_bits(x), 16);
        _mm_storeu_si128((__m128i *)(t->low + i), _mm512_cvtepi32_epi8(h));
        _mm_storeu_si128((__m128i *)(t->high + i), _mm512_cvtepi32_epi8(vi_shr(h, 8)));
        at = vi_add(at, vi_set1(16));
    }
}

/* Writes whole vectors: a row of A has room for d rounded up to 16 values. */
static float attend_row_dot(const float *x, int d, void *a)
{
    for (int i = 0; i < d; i += 16) {
        v_store_bf16((uint16_t *)a + i, d - i >= 16 ? v_loadu(x + i) : v_loadn(x + i, d - i));
    }
    return 1.0f;
}

LA_INLINE vf attend_weights_dot(vf p, void *a, int t)
{
    __m256i h = (__m256i)_mm512_cvtneps_pbh(p);
    _mm256_storeu_si256((__m256i *)((uint16_t *)a + t), h);
    return v_bits(vi_shl(_mm512_cvtepu16_epi32(h), 16));
}

static void attend_bf16_dot(const la_attend_args *g)
{
    static const attend_form form = {
        LA_KV_BF16,         {ATTEND_ROWS, 2, 2, attend_panel_lines, NULL, NULL},
        attend_row_dot,     {ATTEND_ROWS, 2, 2, attend_panel_lines, NULL, NULL},
        attend_weights_dot, NULL};
    attend_run(g, &form);
}

static void attend_i8_dot(const la_attend_args *g)
{
    attend_table table;
    attend_form form = {LA_KV_I8,
                        {ATTEND_ROWS, 4, 1, attend_panel_vnni, NULL, NULL},
                        attend_row_vnni,
                        {ATTEND_ROWS, 4, 2, attend_panel_codes, attend_open, attend_panel_lines},
                        attend_weights_dot,
                        &table};
    attend_fill_table(LA_KV_I8, &table);
    attend_run(g, &form);
}

static void attend_f8_dot(const la_attend_args *g)
{
    attend_table table;
    attend_form form = {LA_KV_F8,
                        {ATTEND_ROWS, 4, 2, attend_panel_codes, attend_open, attend_panel_lines},
                        attend_row_dot,
                        {ATTEND_ROWS, 4, 2, attend_panel_codes, attend_open, attend_panel_lines},
                        attend_weights_dot,
                        &table};
    attend_fill_table(LA_KV_F8, &table);
    attend_run(g, &form);
}

static void fill_attention_bf16(la_kernels *t)
{
    t->attend_bf16 = attend_bf16_dot;
    t->attend_i8 = attend_i8_dot;
    t->attend_f8 = attend_f8_dot;
}

#endif
