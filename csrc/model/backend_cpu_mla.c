/* backend_cpu_mla.c - what surrounds attention over latents (MLA): the cache write, and heads' own products.
 *
 * A step has three shares beside the linear layers and attention: tokens whose latent and key go to their
 * page, and twice heads by runs of tokens, whose rows meet the head's matrix. Invariant: a token's row
 * depends on that token alone; slots of a page are written in any order, since nothing is cleared
 * (attention_mla.h masks what was not written). Attention itself is la_cpu_attend.
 */
#include "backend_cpu.h"

enum { STORE_TOKENS = 16 }; /* taken at once: those that share lines of a page */

static void rotate_key(la_ctx *c, int layer, int token, float *key)
{
    const la_model *m = c->m;
    int table = m->layer_desc[layer].rope, half = m->desc.d_rope / 2;
    if (table >= 0) {
        int64_t at = (int64_t)c->w->pos[token] * half;
        la_cpu_of(c)->k.rope(key, m->rope_cos[table] + at, m->rope_sin[table] + at, m->desc.d_rope,
                             m->desc.rope_interleaved);
    }
}

static void store_token(la_ctx *c, int layer, int token, float *row, float *u)
{
    const la_model_desc *d = &c->m->desc;
    const la_latent *w = &c->m->layers[layer].latent;
    const la_kernels *k = &la_cpu_of(c)->k;
    const la_kv_layout *at = &c->kv->at;
    float *latent = row + (d->q_rank != 0 ? d->q_rank : d->n_heads * d->d_head);
    if (d->q_rank != 0) {
        k->rms_norm(row, w->q_norm, d->latent_eps, u, d->q_rank);
    }
    k->rms_norm(latent, w->kv_norm, d->latent_eps, latent, d->kv_rank);
    rotate_key(c, layer, token, latent + d->kv_rank);
    uint8_t *page =
        c->kv->base + (size_t)c->w->page[token] * at->page_bytes + (size_t)layer * at->layer_bytes;
    la_kernels_mla_store(k, (la_kv_form)d->kv_form)(latent, latent + d->kv_rank, d->kv_rank,
                                                    d->d_rope, c->w->pos[token] % LA_PAGE, page);
}

void la_cpu_latent(la_ctx *c, int layer, la_rows y, la_rows u)
{
    la_share share;
    la_cpu_share_begin(c, &share, y.n, NULL);
    for (int n, first; (n = la_share_next(&share, STORE_TOKENS, &first)) != 0;) {
        for (int t = first; t < first + n; t++) {
            store_token(c, layer, t, y.p + (int64_t)t * y.ld, u.p + (int64_t)t * u.ld);
        }
    }
    la_cpu_barrier(c);
}

/* ---- products of heads ----------------------------------------------------------------------- */

/* Rows of all heads: those of head h begin at column h * step. */
typedef struct head_rows {
    la_rows of;
    int step;
} head_rows;

/* Rows of a head's matrix, which is floats. */
static la_act_rows rows_plan(const la_head_matrix *m)
{
    return la_act_rows_plan(m->one.f.pack == LA_PACK_BF16 ? LA_ACT_BF16 : LA_ACT_F32, m->one.K, 0);
}

/* Tokens t0 .. t0+n-1 of head h: its columns of `out` = its columns of `in` times its matrix. */
static void head_product(la_ctx *c, const la_head_matrix *m, int h, int t0, int n,
                         const head_rows *in, const head_rows *out)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    la_act_rows v = rows_plan(m);
    v.a = own.few;
    for (int i = 0; i < n; i++) {
        la_act_rows_convert(k, &v, i, in->of.p + (int64_t)(t0 + i) * in->of.ld + h * in->step);
    }
    int most = LA_CPU_TILE_COLS / LA_UNIT;
    for (int u = 0; u < m->one.n_units; u += most) {
        la_gemm g = {.w = m->one.data + m->head_bytes * (size_t)h + m->one.unit_bytes * (size_t)u,
                     .w_pitch = m->one.unit_bytes,
                     .n_units = m->one.n_units - u < most ? m->one.n_units - u : most,
                     .K = m->one.K,
                     .f = m->one.f,
                     .a = la_act_rows_at(&v, 0),
                     .a_pitch = v.pitch,
                     .meta = la_act_rows_meta(&v, 0),
                     .M = n * v.lanes,
                     .c = own.tile,
                     .fold = v.group};
        g.ldc = g.n_units * LA_UNIT;
        la_kernels_gemm(k, g.f, v.form)(&g);
        int left = m->one.N - u * LA_UNIT, cols = left < g.ldc ? left : g.ldc;
        for (int i = 0; i < n; i++) {
            float *to = out->of.p + (int64_t)(t0 + i) * out->of.ld + h * out->step + u * LA_UNIT;
            memcpy(to, la_act_rows_result(k, &v, &g, i), (size_t)cols * sizeof(float));
        }
    }
}

/* Blocks that T rows of K values are cut into, so that a thread can hold one converted. */
static int blocks_of(const la_ctx *c, const la_head_matrix *m, int T)
{
    int most = (int)(la_cpu_few_bytes(&c->m->desc, c->w->max_tokens) / rows_plan(m).pitch);
    most = most < LA_CPU_TILE_ROWS ? most : LA_CPU_TILE_ROWS;
    return la_ceil_div(T, most);
}

void la_cpu_absorb(la_ctx *c, int layer, la_rows q, la_rows z)
{
    const la_model_desc *d = &c->m->desc;
    const la_head_matrix *m = &c->m->layers[layer].latent.uk;
    head_rows in = {q, d->d_head}, out = {z, d->kv_rank + d->d_rope};
    int blocks = blocks_of(c, m, q.n);
    la_share share;
    la_cpu_share_begin(c, &share, d->n_heads * blocks, NULL);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        int h = i / blocks, t0 = la_cpu_border(q.n, i % blocks, blocks);
        int end = la_cpu_border(q.n, i % blocks + 1, blocks);
        head_product(c, m, h, t0, end - t0, &in, &out);
        for (int t = t0; t < end; t++) {
            float *key = z.p + (int64_t)t * z.ld + h * out.step + d->kv_rank;
            memcpy(key, q.p + (int64_t)t * q.ld + h * in.step + d->d_nope,
                   (size_t)d->d_rope * sizeof(float));
            rotate_key(c, layer, t, key);
        }
    }
    la_cpu_barrier(c);
}

void la_cpu_expand(la_ctx *c, int layer, la_rows z, la_rows a)
{
    const la_model_desc *d = &c->m->desc;
    const la_head_matrix *m = &c->m->layers[layer].latent.uv;
    head_rows in = {z, d->kv_rank + d->d_rope}, out = {a, d->d_v};
    int blocks = blocks_of(c, m, z.n);
    la_share share;
    la_cpu_share_begin(c, &share, d->n_heads * blocks, NULL);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        int t0 = la_cpu_border(z.n, i % blocks, blocks);
        int end = la_cpu_border(z.n, i % blocks + 1, blocks);
        head_product(c, m, i / blocks, t0, end - t0, &in, &out);
    }
    la_cpu_barrier(c);
}
