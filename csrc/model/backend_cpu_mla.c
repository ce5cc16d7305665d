/* backend_cpu_mla.c - what surrounds attention over latents (MLA): the cache write, and heads' own products.
 *
 * A step has three shares beside the linear layers and attention: tokens whose latent and key go to their
 * page, and twice heads by runs of tokens, whose rows meet the head's matrix. Invariant: a token's row
 * depends on that token alone; slots of a page are written in any order, since nothing is cleared
 * (attention_mla.h masks what was not written). Attention itself is la_cpu_attend.
 */
#include "backend_cpu.h"

enum { STORE_TOKENS = 16 }; /* taken at once: those that share lines of a page */

static void store_token(la_ctx *c, int layer, int token, float *row, float *u)
{
    const la_model_desc *d = &c->m->desc;
    const la_latent *w = &c->m->layers[layer].latent;
    const la_kernels *k = &la_cpu_of(c)->k;
    float *latent = row + (d->q_rank != 0 ? d->q_rank : d->n_heads * d->d_head);
    if (d->q_rank != 0) {
        k->rms_norm(row, w->q_norm, d->latent_eps, u, d->q_rank);
    }
    k->rms_norm(latent, w->kv_norm, d->latent_eps, latent, d->kv_rank);
    if (w->uk.rounding.kind != LA_ROUND_NONE) {
        la_cpu_round_row(k, w->uk.rounding, latent, d->kv_rank, latent);
    }
    la_cpu_rotate(c, layer, token, latent + d->kv_rank);
    uint8_t *page = la_cpu_kv_block(c, layer, 0, c->w->page[token]);
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

/* One product of every head: rows of head h begin at column h * step. */
typedef struct heads_product {
    const la_head_matrix *m;
    la_rows in, out;
    int in_step, out_step;
} heads_product;

/* Rows of a head's matrix, which is floats. */
static la_act_rows rows_plan(const la_ctx *c, const la_head_matrix *m)
{
    int wide = m->one.f.pack == LA_PACK_F32 && c->m->desc.activation == LA_ACT_F64;
    la_act_form form = wide ? LA_ACT_F64 : LA_ACT_F32;
    return la_act_rows_plan(m->one.f.pack == LA_PACK_BF16 ? LA_ACT_BF16 : form, m->one.K, 0);
}

/* Tokens t0 .. t0+n-1 of head h: its columns of `out` = its columns of `in` times its matrix. */
static void head_product(la_ctx *c, const heads_product *x, int h, int t0, int n)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    const la_weight *w = &x->m->one;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    la_act_rows v = rows_plan(c, x->m);
    v.a = own.few;
    for (int i = 0; i < n; i++) {
        la_act_rows_convert(k, &v, i, x->in.p + (int64_t)(t0 + i) * x->in.ld + h * x->in_step);
    }
    const uint8_t *first = w->data + x->m->head_bytes * (size_t)h;
    int most = LA_CPU_TILE_COLS / LA_UNIT;
    for (int u = 0; u < w->n_units; u += most) {
        la_units at = {first + w->unit_bytes * (size_t)u, w->unit_bytes,
                       w->n_units - u < most ? w->n_units - u : most, w->f};
        la_gemm g = la_act_rows_gemm(&v, 0, n, at, own.tile);
        la_kernels_gemm(k, g.f, v.form)(&g);
        int left = w->N - u * LA_UNIT, cols = left < g.ldc ? left : g.ldc;
        for (int i = 0; i < n; i++) {
            float *to = x->out.p + (int64_t)(t0 + i) * x->out.ld + h * x->out_step + u * LA_UNIT;
            memcpy(to, la_act_rows_result(k, &v, &g, i), (size_t)cols * sizeof(float));
        }
    }
}

/* Blocks that T rows of K values are cut into, so that a thread can hold one converted. */
static int blocks_of(const la_ctx *c, const la_head_matrix *m, int T)
{
    int most = (int)(la_cpu_few_bytes(&c->m->desc, c->w->max_tokens) / rows_plan(c, m).pitch);
    most = most < LA_CPU_TILE_ROWS ? most : LA_CPU_TILE_ROWS;
    return la_ceil_div(T, most);
}

void la_cpu_absorb(la_ctx *c, int layer, la_rows q, la_rows z)
{
    const la_model_desc *d = &c->m->desc;
    heads_product x = {&c->m->layers[layer].latent.uk, q, z, d->d_head, d->kv_rank + d->d_rope};
    int blocks = blocks_of(c, x.m, q.n);
    la_share share;
    la_cpu_share_begin(c, &share, d->n_heads * blocks, NULL);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        int h = i / blocks, t0 = la_cpu_border(q.n, i % blocks, blocks);
        int end = la_cpu_border(q.n, i % blocks + 1, blocks);
        head_product(c, &x, h, t0, end - t0);
        for (int t = t0; t < end; t++) {
            float *key = z.p + (int64_t)t * z.ld + h * x.out_step + d->kv_rank;
            memcpy(key, q.p + (int64_t)t * q.ld + h * x.in_step + d->d_nope,
                   (size_t)d->d_rope * sizeof(float));
            la_cpu_rotate(c, layer, t, key);
        }
    }
    la_cpu_barrier(c);
}

void la_cpu_expand(la_ctx *c, int layer, la_rows z, la_rows a)
{
    const la_model_desc *d = &c->m->desc;
    heads_product x = {&c->m->layers[layer].latent.uv, z, a, d->kv_rank + d->d_rope, d->d_v};
    int blocks = blocks_of(c, x.m, z.n);
    la_share share;
    la_cpu_share_begin(c, &share, d->n_heads * blocks, NULL);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        int t0 = la_cpu_border(z.n, i % blocks, blocks);
        int end = la_cpu_border(z.n, i % blocks + 1, blocks);
        head_product(c, &x, i / blocks, t0, end - t0);
    }
    la_cpu_barrier(c);
}
