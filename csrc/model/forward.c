/* forward.c - the transformer: five calls a layer (with experts six), run by every thread of the backend.
 *
 * Owns the order of operations and nothing else: what is computed comes from la_model_desc and from
 * which tensors are set (an absent tensor is a feature that is off), how it is computed belongs to the
 * backend. What follows the attention of the last layer is computed for the tokens alone whose logits
 * are wanted: a row depends on no other from there on, and of a prompt it is one row of many. Invariant:
 * all threads make the same calls in the same order. Called by run.c.
 *
 * Shapes: x [T, D] residual stream, q and a [T, H d], h [T, F], y [T, D] or [T, (H + 2K) d]; of latents
 * z [T, H (r + d_rope)] and a [T, H d_v].
 */
#include "backend.h"

static la_rows take(la_rows r, int n)
{
    r.n = n;
    return r;
}

/* FNV-1a over the values an op wrote, by thread 0. */
static void trace_rows(const la_ctx *c, const char *op, int layer, la_rows r, int cols)
{
    uint64_t sum = 0xcbf29ce484222325u;
    for (int i = 0; i < r.n; i++) {
        for (int j = 0; j < cols; j++) {
            uint32_t bits;
            memcpy(&bits, r.p + (int64_t)i * r.ld + j, sizeof bits);
            sum = (sum ^ bits) * 0x100000001b3u;
        }
    }
    c->b->trace(c->b->trace_arg, op, layer, r.n, cols, sum);
}

/* The next op may write what thread 0 reads, so all wait for it. */
static void trace(la_ctx *c, const char *op, int layer, la_rows r, int cols)
{
    if (c->b->trace == NULL) {
        return;
    }
    if (c->tid == 0) {
        trace_rows(c, op, layer, r, cols);
    }
    c->b->ops->meet(c);
}

static void linear(la_ctx *c, const la_matrix *m, la_rows in, la_rows out, la_norm norm,
                   la_epilogue epi)
{
    c->b->ops->linear(c, m, in, out, norm, &epi);
}

/* x += scale * norm(in W), the norm being optional: with it the product goes through y. */
static void add_block(la_ctx *c, const la_matrix *m, la_rows in, la_norm post, la_rows x)
{
    float scale = c->m->desc.residual_scale;
    la_norm plain = {NULL, NULL};
    if (post.w == NULL) {
        linear(c, m, in, x, plain, (la_epilogue){.kind = LA_ADD, .scale = scale});
        return;
    }
    la_rows y = take(c->w->y, x.n);
    linear(c, m, in, y, plain, (la_epilogue){.kind = LA_STORE});
    c->b->ops->add_norm(c, y, post, scale, x);
}

/* q = rope(norm(x) Wq), KV pages <- k, v. */
static void project_heads(la_ctx *c, int l, la_rows x, la_rows q)
{
    const la_model_desc *d = &c->m->desc;
    const la_layer *w = &c->m->layers[l];
    if (d->qk_norm != LA_QK_NORM_ROW && la_head_granule(d->d_head) <= LA_GRANULE_MOST) {
        linear(c, &w->qkv, x, q, w->attn_norm, (la_epilogue){.kind = LA_HEADS, .layer = l});
        return;
    }
    la_rows y = take(c->w->y, x.n); /* a norm over the whole row needs the whole row */
    linear(c, &w->qkv, x, y, w->attn_norm, (la_epilogue){.kind = LA_STORE});
    c->b->ops->heads(c, l, y, q);
}

/* x += what the layer's experts make of norm(x). */
static void feed_experts(la_ctx *c, int l, la_rows x)
{
    const la_model_desc *d = &c->m->desc;
    c->b->ops->route(c, l, x);
    trace(c, "route", l, take(c->w->router, x.n), d->n_experts + d->shared_gate);
    c->b->ops->moe_up(c, l, x);
    trace(c, "moe_up", l, take(c->w->expert_h, x.n * d->n_experts_used), d->d_expert);
    c->b->ops->moe_down(c, l, x);
    trace(c, "moe_down", l, x, d->d_model);
}

/* Does somebody want hidden states of `layer`, as la_request counts them? */
static int is_shown(const la_ctx *c, int layer)
{
    for (int i = 0; i < c->batch->n_captures; i++) {
        const la_capture *of = &c->batch->captures[i];
        for (int k = 0; k < of->n_layers; k++) {
            if (of->layers[k] == layer) {
                return 1;
            }
        }
    }
    return 0;
}

/* Rows that layer l is computed for once its keys and values are in the pages. */
static int rows_left(const la_ctx *c, int l)
{
    int L = c->m->desc.n_layers;
    return l < L - 1 || is_shown(c, L) ? c->batch->n_tokens : c->batch->n_rows;
}

/* Of as many rows as there are tokens those that are wanted. */
static la_rows narrow(la_ctx *c, la_rows r, int width)
{
    if (0 < c->batch->n_rows && c->batch->n_rows < r.n) {
        c->b->ops->narrow(c, r, width);
    }
    return take(r, c->batch->n_rows);
}

/* q = rope(norm(x) Wq), KV pages <- k, v, a = attention(q, pages) */
static void attn_heads(la_ctx *c, int l, la_rows x, la_rows a)
{
    const la_model_desc *d = &c->m->desc;
    la_rows q = take(c->w->q, x.n);
    project_heads(c, l, x, q);
    trace(c, "qkv", l, q, d->n_heads * d->d_head);
    if (rows_left(c, l) == 0) {
        return;
    }
    c->b->ops->attend(c, l, q, a);
    trace(c, "attend", l, a, d->n_heads * d->d_head);
}

/* Absorbed, whatever the number of tokens, so that a token's bits do not depend on it: queries go to the
 * width of the latents, meet them as they lie in the pages, and what is found goes on to the values. */
static void attn_mla(la_ctx *c, int l, la_rows x, la_rows a)
{
    const la_model_desc *d = &c->m->desc;
    const la_layer *w = &c->m->layers[l];
    la_norm plain = {NULL, NULL};
    la_rows y = take(c->w->y, x.n), u = take(c->w->u, x.n), z = take(c->w->z, x.n), q = y;
    linear(c, &w->latent.in, x, y, w->attn_norm, (la_epilogue){.kind = LA_STORE});
    c->b->ops->latent(c, l, y, u);
    if (rows_left(c, l) == 0) {
        return;
    }
    if (d->q_rank != 0) {
        q = take(c->w->q, x.n);
        linear(c, &w->latent.q, u, q, plain, (la_epilogue){.kind = LA_STORE});
    }
    trace(c, "q", l, q, d->n_heads * d->d_head);
    c->b->ops->absorb(c, l, q, z);
    c->b->ops->attend(c, l, z, z);
    c->b->ops->expand(c, l, z, a);
    trace(c, "attend", l, a, d->n_heads * d->d_v);
}

static void layer(la_ctx *c, int l)
{
    const la_layer *w = &c->m->layers[l];
    int T = c->batch->n_tokens, left = rows_left(c, l);
    la_rows x = take(c->w->x, T), a = take(c->w->a, T), h = take(c->w->h, left);

    const la_model_desc *d = &c->m->desc;
    switch (d->attn) {
    case LA_ATTN_LATENT: attn_mla(c, l, x, a); break;
    default: attn_heads(c, l, x, a); break;
    }
    if (left == 0) {
        return;
    }
    if (left < T) {
        a = narrow(c, a, d->n_heads * (d->attn == LA_ATTN_LATENT ? d->d_v : d->d_head));
        x = narrow(c, x, d->d_model);
    }
    if (!d->parallel) {
        add_block(c, &w->o, a, w->attn_post_norm, x);
        trace(c, "o", l, x, d->d_model);
    }
    if (w->moe != NULL) {
        feed_experts(c, l, x);
        return;
    }
    linear(c, &w->gate_up, x, h, w->ffn_norm, (la_epilogue){.kind = LA_ACT});
    trace(c, "gate_up", l, h, d->d_ffn);
    if (d->parallel) { /* both blocks read the x of the layer's start */
        add_block(c, &w->o, a, w->attn_post_norm, x);
        trace(c, "o", l, x, d->d_model);
    }
    add_block(c, &w->down, h, w->ffn_post_norm, x);
    trace(c, "down", l, x, d->d_model);
}

/* Logits of the rows that want them, a tile at a time, so that memory does not grow with the prompt. */
static void sample(la_ctx *c, la_rows x)
{
    const la_model *m = c->m;
    const la_matrix *head = m->head.n_parts != 0 ? &m->head : &m->embed;
    la_epilogue epi = {
        .kind = LA_LOGITS, .scale = m->desc.logit_scale, .softcap = m->desc.logit_softcap};
    for (int first = 0; first < x.n; first += c->w->logit_rows) {
        int n = x.n - first < c->w->logit_rows ? x.n - first : c->w->logit_rows;
        la_rows tile = {x.p + (int64_t)first * x.ld, n, x.ld}, logits = take(c->w->logits, n);
        linear(c, head, tile, logits, m->final_norm, epi);
        trace(c, "head", -1, logits, m->desc.n_vocab);
        c->b->ops->sample(c, first, logits);
    }
}

/* Hidden states of `layer` to whom wants them. */
static void show(la_ctx *c, int layer, la_rows x, la_norm norm)
{
    if (is_shown(c, layer)) {
        c->b->ops->capture(c, layer, x, norm);
    }
}

void la_forward(la_ctx *c)
{
    int L = c->m->desc.n_layers;
    la_rows x = take(c->w->x, c->batch->n_tokens);
    c->b->ops->embed(c, x);
    trace(c, "embed", -1, x, c->m->desc.d_model);
    for (int l = 0; l < L; l++) {
        show(c, l, x, (la_norm){NULL, NULL});
        layer(c, l);
    }
    if (rows_left(c, L - 1) == x.n) {
        show(c, L, x, c->m->final_norm);
        x = narrow(c, x, c->m->desc.d_model);
    }
    sample(c, take(x, c->batch->n_rows));
}
