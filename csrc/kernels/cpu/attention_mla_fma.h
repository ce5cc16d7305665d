/* attention_mla_fma.h - latent pages and their attention at the levels without dots.
 *
 * Owns the writing of page slots (layouts are drawn in kernels.h) and the entries of the list over the
 * fma tile. A token's latent has one scale per 128 values in fp8 pages, made as those of keys are, so its
 * largest value becomes 448; nothing is cleared, since a page is masked when it is read. Invariant: every
 * level writes the same bytes. Included by isa_scalar.c, isa_avx2.c and isa_avx512.c.
 */
#ifndef LA_ATTENTION_MLA_FMA_H
#define LA_ATTENTION_MLA_FMA_H

#include "attention_mla.h"
#include "attention_store.h"

static void mla_store_f32(const float *latent, const float *key, int r, int p, int tok, void *page)
{
    float *at = (float *)page + (int64_t)(tok / 16) * (r + p) * 16 + tok % 16;
    for (int i = 0; i < r + p; i++) {
        at[(int64_t)i * 16] = i < r ? latent[i] : key[i - r];
    }
}

/* n values, an even number, to pairs one line apart. */
LA_INLINE void mla_store_pairs(const float *x, int n, uint32_t *at)
{
    uint16_t h[ATTEND_MAX_D];
    for (int i = 0; i < n; i += ATTEND_MAX_D) {
        int part = n - i < ATTEND_MAX_D ? n - i : ATTEND_MAX_D;
        kv_round(x + i, part, h);
        for (int j = 0; j < part; j += 2, at += 16) {
            *at = h[j] | (uint32_t)h[j + 1] << 16;
        }
    }
}

static void mla_store_bf16(const float *latent, const float *key, int r, int p, int tok, void *page)
{
    uint32_t *at = (uint32_t *)page + (int64_t)(tok / 16) * ((r + p) / 2) * 16 + tok % 16;
    mla_store_pairs(latent, r, at);
    mla_store_pairs(key, p, at + (int64_t)(r / 2) * 16);
}

static void mla_store_f8(const float *latent, const float *key, int r, int p, int tok, void *page)
{
    uint8_t code[LA_LATENT_GROUP], *codes = page, *keys = codes + (size_t)r * LA_PAGE;
    float *scales = (float *)(void *)(keys + (size_t)p * LA_PAGE * sizeof(uint16_t));
    int col = tok % 16;
    uint8_t *at = codes + (size_t)(tok / 16) * (size_t)(r / 4) * ATTEND_LINE;
    at += col / 4 * 16 + col % 4 * 2;
    for (int i = 0; i < r; i += LA_LATENT_GROUP) {
        int part = r - i < LA_LATENT_GROUP ? r - i : LA_LATENT_GROUP;
        scales[i / LA_LATENT_GROUP * LA_PAGE + tok] = kv_codes(latent + i, part, 1, code);
        for (int j = 0; j < part; j += 4, at += ATTEND_LINE) {
            memcpy(at, code + j, 2);
            memcpy(at + 8, code + j + 2, 2);
        }
    }
    uint32_t *pairs = (uint32_t *)(void *)keys + (int64_t)(tok / 16) * (p / 2) * 16 + col;
    mla_store_pairs(key, p, pairs);
}

static void mla_attend_f32(const la_attend_args *g)
{
    static const attend_form form = {
        LA_KV_F32,          {ATTEND_ROWS_F32, 1, 4, attend_panel_f32, NULL, NULL},
        attend_row_f32,     {ATTEND_ROWS_F32, 1, 4, attend_panel_f32, NULL, NULL},
        attend_weights_f32, NULL};
    static const mla_pages pages = {NULL, mla_turn_f32, 0};
    mla_run(g, &form, &pages);
}

/* Pages of codes are opened to what bf16 pages hold. */
LA_INLINE void mla_run_split(const la_attend_args *g, const mla_pages *pages)
{
    static const attend_form form = {
        LA_KV_BF16,           {ATTEND_ROWS_SPLIT, 2, 4, attend_panel_split, NULL, NULL},
        attend_row_split,     {ATTEND_ROWS_SPLIT, 2, 4, attend_panel_split, NULL, NULL},
        attend_weights_split, NULL};
    mla_run(g, &form, pages);
}

static void mla_attend_bf16(const la_attend_args *g)
{
    static const mla_pages pages = {NULL, mla_turn_bf16, 0};
    mla_run_split(g, &pages);
}

static void mla_attend_f8(const la_attend_args *g)
{
    static const mla_pages pages = {mla_open_f8, mla_turn_bf16, 0};
    mla_run_split(g, &pages);
}

static void fill_mla(la_kernels *t)
{
    t->mla_store_f32 = mla_store_f32;
    t->mla_store_bf16 = mla_store_bf16;
    t->mla_store_f8 = mla_store_f8;
    t->mla_attend_f32 = mla_attend_f32;
    t->mla_attend_bf16 = mla_attend_bf16;
    t->mla_attend_f8 = mla_attend_f8;
}

#endif
