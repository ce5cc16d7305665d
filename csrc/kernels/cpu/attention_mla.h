/* attention_mla.h - attention over pages of latents (MLA), for any form of page and level.
 *
 * Owns the walk over the pages of a chunk where K and V are one: a page holds latent and rotated key of
 * each token once, in the order of K, and its latents are turned into the order of V in scratch ("load
 * once, pack twice"); fp8 pages are opened to bf16 on the way. All query heads are rows of one tile, so
 * turning is paid once for up to 64 of them. Products and softmax are attention_core.h's.
 * Invariants: a row meets the tokens of a page in order, as everywhere; values of tokens that no row of
 * the call counts are zeros, so they add nothing whatever the page holds there.
 * Included by attention_mla_fma.h and attention_mla_bf16.h, which supply the tiles.
 */
#ifndef LA_ATTENTION_MLA_H
#define LA_ATTENTION_MLA_H

#include "attention_core.h"
#include "attention_fma.h"

/* How a page becomes the two operands. */
typedef struct mla_pages {
    /* to K lines of bf16; NULL: the page is that already */
    void (*open)(const la_attend_args *g, const uint8_t *page, uint8_t *k);
    /* K lines to V lines, zeros from token `seen` on */
    void (*turn)(const la_attend_args *g, const uint8_t *k, int seen, uint8_t *v);
    /* Panels prefetch their share of the next page, step by step: with several tiles of rows the first
     * would ask for it faster than memory gives (0.49 of the dots' peak at 16 rows, 0.68 at 128). */
    int paced;
} mla_pages;

/* What is left to prefetch of the next page. */
typedef struct mla_ahead {
    const uint8_t *at;
    size_t share; /* of a panel */
} mla_ahead;

/* K [4 sub][d][16 tok] to V [ceil(dv/16)][64 tok][16 d]. */
LA_INLINE void mla_turn_f32(const la_attend_args *g, const uint8_t *k, int seen, uint8_t *v)
{
    memset(v, 0, (size_t)((g->dv + 15) / 16) * 16 * LA_PAGE * sizeof(float));
    for (int sub = 0; sub * 16 < seen; sub++) {
        int tokens = seen - sub * 16 < 16 ? seen - sub * 16 : 16;
        const float *from = (const float *)(const void *)k + (int64_t)sub * g->d * 16;
        for (int i = 0; i < g->dv; i++, from += 16) {
            float *to = (float *)(void *)v + ((int64_t)(i / 16) * LA_PAGE + sub * 16) * 16 + i % 16;
            for (int t = 0; t < tokens; t++) {
                to[t * 16] = from[t];
            }
        }
    }
}

#if defined(LA_VEC_AVX512)
/* Eight lines of u64 in place: line i, element j to line j, element i. */
LA_INLINE void mla_transpose(__m512i x[8])
{
    __m512i p[8], q[8];
    LA_UNROLL
    for (int i = 0; i < 8; i += 2) { /* pairs of lines: elements of even, of odd places */
        p[i] = _mm512_unpacklo_epi64(x[i], x[i + 1]);
        p[i + 1] = _mm512_unpackhi_epi64(x[i], x[i + 1]);
    }
    LA_UNROLL
    for (int i = 0; i < 8; i += 4) {
        LA_UNROLL
        for (int h = 0; h < 2; h++) {
            q[i + h] = _mm512_shuffle_i64x2(p[i + h], p[i + 2 + h], 0x88);
            q[i + 2 + h] = _mm512_shuffle_i64x2(p[i + h], p[i + 2 + h], 0xdd);
        }
    }
    LA_UNROLL
    for (int h = 0; h < 2; h++) {
        x[h] = _mm512_shuffle_i64x2(q[h], q[4 + h], 0x88);
        x[4 + h] = _mm512_shuffle_i64x2(q[h], q[4 + h], 0xdd);
        x[2 + h] = _mm512_shuffle_i64x2(q[2 + h], q[6 + h], 0x88);
        x[6 + h] = _mm512_shuffle_i64x2(q[2 + h], q[6 + h], 0xdd);
    }
}

/* K [4 sub][d/2][16 tok][2 d] to V [ceil(dv/16)][32 pairs][16 d][2 tok]: the words of two tokens and two
 * dimensions change places in 8 bytes, then those of 8 lines and 8 pairs of tokens. */
LA_INLINE void mla_turn_bf16(const la_attend_args *g, const uint8_t *k, int seen, uint8_t *v)
{
    const __m512i words = _mm512_set4_epi32(0x0f0e0b0a, 0x0d0c0908, 0x07060302, 0x05040100);
    for (int sub = 0; sub < LA_PAGE / 16; sub++) {
        int left = seen - sub * 16 < 0 ? 0 : seen - sub * 16 < 16 ? seen - sub * 16 : 16;
        const uint8_t *from = k + (size_t)sub * (size_t)(g->d / 2) * ATTEND_LINE;
        uint8_t *to = v + (size_t)sub * 8 * ATTEND_LINE;
        for (int i = 0; i < g->dv; i += 16, to += LA_PAGE / 2 * ATTEND_LINE) {
            __m512i x[8];
            LA_UNROLL
            for (int j = 0; j < 8; j++, from += ATTEND_LINE) {
                int there = i + 2 * j < g->dv ? left : 0;
                x[j] = _mm512_maskz_loadu_epi32(v_first(there), from);
                x[j] = _mm512_shuffle_epi8(x[j], words);
            }
            mla_transpose(x);
            LA_UNROLL
            for (int j = 0; j < 8; j++) {
                vi_storeu(to + j * ATTEND_LINE, x[j]);
            }
        }
    }
}
#elif defined(LA_VEC_AVX2)
/* Four half lines of u64 in place: line i, element j to line j, element i. */
LA_INLINE void mla_transpose(__m256i x[4])
{
    __m256i a = _mm256_unpacklo_epi64(x[0], x[1]), b = _mm256_unpackhi_epi64(x[0], x[1]);
    __m256i c = _mm256_unpacklo_epi64(x[2], x[3]), d = _mm256_unpackhi_epi64(x[2], x[3]);
    x[0] = _mm256_permute2x128_si256(a, c, 0x20);
    x[1] = _mm256_permute2x128_si256(b, d, 0x20);
    x[2] = _mm256_permute2x128_si256(a, c, 0x31);
    x[3] = _mm256_permute2x128_si256(b, d, 0x31);
}

/* The same in quarters: four lines by eight tokens. */
LA_INLINE void mla_turn_bf16(const la_attend_args *g, const uint8_t *k, int seen, uint8_t *v)
{
    const __m256i words = _mm256_setr_epi32(0x05040100, 0x07060302, 0x0d0c0908, 0x0f0e0b0a,
                                            0x05040100, 0x07060302, 0x0d0c0908, 0x0f0e0b0a);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int sub = 0; sub < LA_PAGE / 16; sub++) {
        const uint8_t *from = k + (size_t)sub * (size_t)(g->d / 2) * ATTEND_LINE;
        uint8_t *to = v + (size_t)sub * 8 * ATTEND_LINE;
        for (int i = 0; i < g->dv; i += 16, to += LA_PAGE / 2 * ATTEND_LINE) {
            for (int part = 0; part < 4; part++) {
                int half = part % 2, first = part / 2 * 4;
                __m256i there = _mm256_cmpgt_epi32(vi_set1(seen - sub * 16 - half * 8), lane);
                __m256i x[4];
                LA_UNROLL
                for (int j = 0; j < 4; j++) {
                    const uint8_t *line = from + (i / 2 + first + j) * ATTEND_LINE + half * 32;
                    x[j] = _mm256_setzero_si256();
                    if (i + 2 * (first + j) < g->dv) {
                        x[j] = _mm256_maskload_epi32((const int *)(const void *)line, there);
                    }
                    x[j] = _mm256_shuffle_epi8(x[j], words);
                }
                mla_transpose(x);
                LA_UNROLL
                for (int j = 0; j < 4; j++) {
                    vi_storeu(to + (half * 4 + j) * ATTEND_LINE + first * 8, x[j]);
                }
            }
        }
    }
}
#else
LA_INLINE void mla_turn_bf16(const la_attend_args *g, const uint8_t *k, int seen, uint8_t *v)
{
    memset(v, 0, (size_t)((g->dv + 15) / 16) * 16 * LA_PAGE * sizeof(uint16_t));
    for (int sub = 0; sub * 16 < seen; sub++) {
        int tokens = seen - sub * 16 < 16 ? seen - sub * 16 : 16;
        const uint16_t *from = (const uint16_t *)(const void *)k + (int64_t)sub * g->d * 16;
        for (int i = 0; i < g->dv; i += 2, from += 32) {
            uint16_t *to = (uint16_t *)(void *)v + ((int64_t)(i / 16) * 32 + sub * 8) * 32;
            to += i % 16 * 2;
            for (int t = 0; t < tokens; t++) {
                uint16_t *pair = to + t / 2 * 32 + t % 2;
                pair[0] = from[2 * t];
                pair[2] = from[2 * t + 1];
            }
        }
    }
}
#endif

/* To bf16 bits in place, to nearest even. */
LA_INLINE vi mla_round(vf x)
{
    vi u = vi_bits(x);
    vi odd = vi_and(vi_shr(u, 16), vi_set1(1));
    return vi_add(u, vi_add(odd, vi_set1(0x7fff)));
}

/* Codes times scale, rounded to bf16; keys as they are. K lines [4 sub][d/2][16 tok][2 d]. */
LA_INLINE void mla_open_f8(const la_attend_args *g, const uint8_t *page, uint8_t *k)
{
    int r = g->dv, keys = (g->d - r) / 2;
    const uint8_t *code = page, *key = page + (size_t)r * LA_PAGE;
    const float *scales =
        (const float *)(const void *)(key + (size_t)keys * (LA_PAGE / 16) * ATTEND_LINE);
    for (int sub = 0; sub < LA_PAGE / 16; sub++) {
        for (int i = 0; i < r; i += 4, code += ATTEND_LINE, k += 2 * ATTEND_LINE) {
            const float *scale = scales + i / LA_LATENT_GROUP * LA_PAGE + sub * 16;
            LA_UNROLL
            for (int j = 0; j < LA_LANES16; j++) {
                vf s = v_loadu(scale + j * VL);
                LA_UNROLL
                for (int p = 0; p < 2; p++) {
                    vi lo = mla_round(v_mul(attend_value(ATTEND_F8, code, j, 2 * p), s));
                    vi hi = mla_round(v_mul(attend_value(ATTEND_F8, code, j, 2 * p + 1), s));
                    hi = vi_and(hi, vi_set1((int32_t)0xffff0000u));
                    vi_storeu(k + p * ATTEND_LINE + j * VL * 4, vi_or(vi_shr(lo, 16), hi));
                }
            }
        }
        memcpy(k, key, (size_t)keys * ATTEND_LINE);
        k += keys * ATTEND_LINE;
        key += keys * ATTEND_LINE;
    }
}

/* One product for n rows of a page, in tiles of about equal height. a, c: row 0 of the call. */
LA_INLINE void mla_product(const attend_side *f, const attend_span *span, int n, const char *a,
                           size_t a_pitch, float *c, int c_pitch, attend_panel *p, mla_ahead *ahead)
{
    int tiles = (n + f->rows - 1) / f->rows;
    int slots = (p->n_blocks + 3) / 4 * p->steps; /* prefetches of a panel */
    for (int t = 0; t < tiles; t++) {
        int from = n * t / tiles;
        p->rows = n * (t + 1) / tiles - from;
        p->ahead = p->b;
        if (ahead->at != NULL) {
            p->ahead = ahead->at;
            p->pace = (int)(ahead->share / (size_t)slots) + 1;
            ahead->at = ahead->share != 0 ? ahead->at + ahead->share : NULL;
        }
        for (int i = 0; i < p->rows; i++) {
            int r = span[from + i].row;
            p->a[i] = a + (size_t)r * a_pitch;
            p->c[i] = c + (int64_t)r * c_pitch;
        }
        f->panel(p);
    }
}

/* The next page for the panels of n rows, or for the first one where they do not share. */
LA_INLINE mla_ahead mla_ahead_of(const la_attend_args *g, const mla_pages *pages, int rows, int n,
                                 const uint8_t *next)
{
    la_kv_form form = pages->open != NULL ? LA_KV_F8 : LA_KV_BF16;
    size_t bytes = la_kv_latent_bytes(form, g->dv, g->d - g->dv);
    size_t panels = 2 * (size_t)((n + rows - 1) / rows);
    return (mla_ahead){next, pages->paced ? bytes / panels + ATTEND_LINE : 0};
}

LA_INLINE void mla_run(const la_attend_args *g, const attend_form *f, const mla_pages *pages)
{
    attend_span span[ATTEND_MAX_ROWS];
    attend_room at;
    size_t lines = ((size_t)g->dv + 15) / 16 * 16 * LA_PAGE * sizeof(float);
    uint8_t *v = g->scratch, *opened = v + lines;
    la_attend_args in = *g, out = *g;
    in.scratch = v + la_mla_scratch(g->d, g->dv);
    out.d = g->dv;
    attend_begin(&in, f, &at);
    for (int i = 0; i < g->n_pages; i++) {
        const uint8_t *k = g->k_pages[i];
        int n = attend_spans(g, g->first + i * LA_PAGE, at.row_scale, span), seen = 0;
        if (n == 0) {
            continue;
        }
        for (int j = 0; j < n; j++) {
            seen = span[j].t1 > seen ? span[j].t1 : seen;
        }
        const uint8_t *next = i + 1 < g->n_pages ? g->k_pages[i + 1] : g->next;
        mla_ahead ahead = mla_ahead_of(g, pages, f->qk.rows, n, next);
        if (pages->open != NULL) {
            pages->open(g, k, opened);
            k = opened;
        }
        attend_panel qk = {.b = k,
                           .table = f->table,
                           .n_blocks = LA_PAGE / 16,
                           .steps = g->d / f->qk.values,
                           .add = 0};
        mla_product(&f->qk, span, n, at.q, at.q_pitch, at.s, LA_PAGE, &qk, &ahead);
        for (int j = 0; j < n; j++) {
            size_t r = (size_t)span[j].row;
            attend_softmax(&out, f, &span[j], at.s + r * LA_PAGE, at.p + r * at.p_pitch);
        }
        pages->turn(g, k, seen, v);
        attend_panel pv = {.b = v,
                           .table = f->table,
                           .n_blocks = (g->dv + 15) / 16,
                           .steps = LA_PAGE / f->pv.values,
                           .add = 1};
        mla_product(&f->pv, span, n, at.p, at.p_pitch, g->o, g->ldo, &pv, &ahead);
    }
}

#endif
