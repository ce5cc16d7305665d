/* attention_mla_bf16.h - attention over latent pages by vdpbf16ps.
 *
 * Owns the dot tile over bf16 lines, which fp8 pages are opened to: that of attention_bf16.h (6 rows by 4
 * blocks, 24 accumulators), and apart from it because all but the corners differs: pages are never opened in
 * the tile, all lines of a step are read before a row meets them, so that a row is broadcast once, and what is
 * prefetched is the panel's share of the next page, not the lines of its own blocks. Invariant: one
 * instruction family for every number of rows. Included by isa_bf16.c.
 */
#ifndef LA_ATTENTION_MLA_BF16_H
#define LA_ATTENTION_MLA_BF16_H

#include "attention_bf16.h"
#include "attention_mla.h"

LA_INLINE void mla_dot_tile(const int rows, const int blocks, const attend_panel *p, int first,
                            const uint8_t *ahead)
{
    __m512 acc[ATTEND_ROWS][4];
    const int32_t *a[ATTEND_ROWS];
    size_t block_bytes = (size_t)p->steps * ATTEND_LINE;
    const uint8_t *b = p->b + (size_t)first * block_bytes;
    LA_UNROLL
    for (int r = 0; r < rows; r++) {
        a[r] = p->a[r];
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            acc[r][i] = p->add ? v_loadu(p->c[r] + (first + i) * 16) : v_zero();
        }
    }
    for (int s = 0; s < p->steps; s++, b += ATTEND_LINE, ahead += p->pace) {
        __m512bh line[4];
        __builtin_prefetch(ahead, 0, 3); /* slow enough for L1: 0.1 faster than into L2 */
        LA_UNROLL
        for (int i = 0; i < blocks; i++) {
            line[i] = (__m512bh)vi_loadu(b + (size_t)i * block_bytes);
        }
        LA_UNROLL
        for (int r = 0; r < rows; r++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32(a[r][s]);
            LA_UNROLL
            for (int i = 0; i < blocks; i++) {
                acc[r][i] = _mm512_dpbf16_ps(acc[r][i], x, line[i]);
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

LA_INLINE void mla_dot_rows(const int rows, const attend_panel *p)
{
    const uint8_t *ahead = p->ahead;
    int first = 0, bytes = p->steps * p->pace;
    for (; first + 4 <= p->n_blocks; first += 4, ahead += bytes) {
        mla_dot_tile(rows, 4, p, first, ahead);
    }
    if (first + 2 <= p->n_blocks) {
        mla_dot_tile(rows, 2, p, first, ahead);
        first += 2;
    }
    if (first < p->n_blocks) {
        mla_dot_tile(rows, 1, p, first, ahead);
    }
}

static void mla_panel_dot(const attend_panel *p)
{
    switch (p->rows) {
    case 1: mla_dot_rows(1, p); break;
    case 2: mla_dot_rows(2, p); break;
    case 3: mla_dot_rows(3, p); break;
    case 4: mla_dot_rows(4, p); break;
    case 5: mla_dot_rows(5, p); break;
    default: mla_dot_rows(6, p); break;
    }
}

/* As mla_open_f8: the look-up of attention_bf16.h, then the scale; the conversion rounds alike, but for
 * subnormals, which it takes for zero. */
static void mla_open_f8_dot(const la_attend_args *g, const uint8_t *page, uint8_t *k)
{
    int r = g->dv, keys = (g->d - r) / 2;
    const uint8_t *code = page, *key = page + (size_t)r * LA_PAGE;
    const float *scales =
        (const float *)(const void *)(key + (size_t)keys * (LA_PAGE / 16) * ATTEND_LINE);
    uint16_t pairs[32];
    attend_table table;
    __m512i t[4], line[2];
    attend_fill_table(LA_KV_F8, &table);
    attend_load_table(&table, t);
    for (int i = 0; i < 32; i++) {
        pairs[i] = (uint16_t)(i / 2 + i % 2 * 16);
    }
    const __m512i order = vi_loadu(pairs);
    for (int sub = 0; sub < LA_PAGE / 16; sub++) {
        for (int i = 0; i < r; i += 4, code += ATTEND_LINE, k += 2 * ATTEND_LINE) {
            vf scale = v_loadu(scales + i / LA_LATENT_GROUP * LA_PAGE + sub * 16);
            attend_open_block(ATTEND_CODES, code, t, line);
            LA_UNROLL
            for (int p = 0; p < 2; p++) {
                vf lo = v_mul(v_from_bf16(line[p], 0), scale);
                vf hi = v_mul(v_from_bf16(line[p], 1), scale);
                __m512i x = (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
                vi_storeu(k + p * ATTEND_LINE, _mm512_permutexvar_epi16(order, x));
            }
        }
        memcpy(k, key, (size_t)keys * ATTEND_LINE);
        k += keys * ATTEND_LINE;
        key += keys * ATTEND_LINE;
    }
}

LA_INLINE void mla_run_dot(const la_attend_args *g, const mla_pages *pages)
{
    static const attend_form form = {
        LA_KV_BF16,         {ATTEND_ROWS, 2, 2, mla_panel_dot, NULL, NULL},
        attend_row_dot,     {ATTEND_ROWS, 2, 2, mla_panel_dot, NULL, NULL},
        attend_weights_dot, NULL};
    mla_run(g, &form, pages);
}

static void mla_attend_bf16_dot(const la_attend_args *g)
{
    static const mla_pages pages = {NULL, mla_turn_bf16, 1};
    mla_run_dot(g, &pages);
}

static void mla_attend_f8_dot(const la_attend_args *g)
{
    static const mla_pages pages = {mla_open_f8_dot, mla_turn_bf16, 1};
    mla_run_dot(g, &pages);
}

static void fill_mla_bf16(la_kernels *t)
{
    t->mla_attend_bf16 = mla_attend_bf16_dot;
    t->mla_attend_f8 = mla_attend_f8_dot;
}

#endif
