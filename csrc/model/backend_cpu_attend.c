/* backend_cpu_attend.c - attention over KV pages, and what happens to q, k and v before it.
 *
 * A work item is (sequence, kv head, tile of query rows): all query heads of a kv head and several tokens
 * are rows of one tile, so K and V are read once for all of them. Items are shared out by cost. A tile walks its 256-token chunks in
 * order; each chunk is a softmax of its own, joined to the sum so far. Invariant: chunk borders are
 * absolute positions, so a token's result does not depend on how its prompt was cut into steps.
 */
#include "backend_cpu.h"

#include <math.h>

static uint8_t *kv_block(la_ctx *c, int layer, int kv_head, int32_t page)
{
    const la_kv_layout *at = &c->kv->at;
    return c->kv->base + (size_t)page * at->page_bytes + (size_t)layer * at->layer_bytes +
           (size_t)kv_head * at->head_bytes;
}

static void rotate(la_ctx *c, int layer, int token, float *head)
{
    const la_model *m = c->m;
    int table = m->layer_desc[layer].rope, half = m->desc.d_rope / 2;
    if (table < 0 || half == 0) {
        return;
    }
    int64_t at = (int64_t)c->w->pos[token] * half;
    la_cpu_of(c)->k.rope(head, m->rope_cos[table] + at, m->rope_sin[table] + at, m->desc.d_rope,
                         m->desc.rope_interleaved);
}

static void norm_head(la_ctx *c, const float *w, float *x, int n)
{
    la_norm norm = {(float *)(uintptr_t)w, NULL};
    la_cpu_norm(&la_cpu_of(c)->k, LA_NORM_RMS, norm, c->m->desc.norm_eps, x, x, n);
}

void la_cpu_finish_heads(la_ctx *c, int layer, int token, float *cols, int first_head, int n_heads,
                         la_rows q)
{
    const la_model_desc *d = &c->m->desc;
    const la_layer *w = &c->m->layers[layer];
    const la_kernels *k = &la_cpu_of(c)->k;
    int dh = d->d_head, per_head = d->qk_norm == LA_QK_NORM_HEAD;
    int slot = c->w->pos[token] % LA_PAGE;
    la_store_fn store = la_kernels_store(k, (la_kv_form)d->kv_form);
    for (int i = 0; i < n_heads; i++) {
        int h = first_head + i;
        float *x = cols + i * dh;
        if (h < d->n_heads) {
            if (per_head) {
                norm_head(c, w->q_norm, x, dh);
            }
            rotate(c, layer, token, x);
            memcpy(q.p + (int64_t)token * q.ld + h * dh, x, (size_t)dh * sizeof(float));
            continue;
        }
        int kv = h - d->n_heads, is_v = kv >= d->n_kv_heads;
        if (!is_v) {
            if (per_head) {
                norm_head(c, w->k_norm, x, dh);
            }
            rotate(c, layer, token, x);
        }
        uint8_t *kp = kv_block(c, layer, is_v ? kv - d->n_kv_heads : kv, c->w->page[token]);
        uint8_t *vp = kp + c->kv->at.k_bytes;
        store(is_v ? NULL : x, is_v ? x : NULL, dh, slot, kp, vp);
    }
}

/* Threads take heads, not rows: the first token of a page clears what later ones write. */
void la_cpu_heads(la_ctx *c, int layer, la_rows qkv, la_rows q)
{
    const la_model_desc *d = &c->m->desc;
    const la_layer *w = &c->m->layers[layer];
    if (d->qk_norm == LA_QK_NORM_ROW) {
        la_share rows;
        la_cpu_share_begin(c, &rows, qkv.n, NULL);
        for (int t; la_share_next(&rows, 1, &t) != 0;) {
            float *row = qkv.p + (int64_t)t * qkv.ld;
            norm_head(c, w->q_norm, row, d->n_heads * d->d_head);
            norm_head(c, w->k_norm, row + d->n_heads * d->d_head, d->n_kv_heads * d->d_head);
        }
        la_cpu_barrier(c);
    }
    la_share share;
    la_cpu_share_begin(c, &share, d->n_heads + 2 * d->n_kv_heads, NULL);
    for (int h; la_share_next(&share, 1, &h) != 0;) {
        for (int t = 0; t < qkv.n; t++) {
            float *row = qkv.p + (int64_t)t * qkv.ld + h * d->d_head;
            la_cpu_finish_heads(c, layer, t, row, h, 1, q);
        }
    }
    la_cpu_barrier(c);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* The rows of one kernel call: tokens t0 .. t0+tokens-1 of a span, heads h0 .. h0+heads-1. */
typedef struct query_tile {
    const la_span *span;
    int kv_head;
    int t0, tokens;
    int h0, heads;
} query_tile;

static float *query_row(la_rows x, const query_tile *t, int r, int d_head)
{
    int token = t->span->first_token + t->t0 + r / t->heads;
    return x.p + (int64_t)token * x.ld + (t->h0 + r % t->heads) * d_head;
}

static void attend_tile(la_ctx *c, int layer, const query_tile *t, la_rows q, la_rows a)
{
    const la_model_desc *d = &c->m->desc;
    const la_kernels *k = &la_cpu_of(c)->k;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    int R = t->tokens * t->heads, dh = d->d_head;
    int d16 = (int)la_round_up((size_t)dh, 16), window = c->m->layer_desc[layer].window;
    int start = t->span->first_pos + t->t0, last = start + t->tokens - 1;
    float *part_o = own.attend_o, *sum_o = part_o + (int64_t)LA_CPU_ATTEND_ROWS * d16;
    float *part_m = own.attend_ml, *part_l = part_m + LA_CPU_ATTEND_ROWS;
    float *sum_m = part_l + LA_CPU_ATTEND_ROWS, *sum_l = sum_m + LA_CPU_ATTEND_ROWS;
    for (int r = 0; r < R; r++) {
        memcpy(own.attend_q + r * d16, query_row(q, t, r, dh), (size_t)dh * sizeof(float));
        own.attend_pos[r] = start + r / t->heads;
        sum_m[r] = -INFINITY;
        sum_l[r] = 0.0f;
        memset(sum_o + r * d16, 0, (size_t)d16 * sizeof(float));
    }
    int oldest = window > 0 && start - window + 1 > 0 ? start - window + 1 : 0;
    int begin = oldest / LA_CHUNK * LA_CHUNK;
    for (int first = begin; first <= last; first += LA_CHUNK) {
        const uint8_t *kp[LA_CPU_CHUNK_PAGES], *vp[LA_CPU_CHUNK_PAGES];
        int n = 0;
        for (; n < LA_CPU_CHUNK_PAGES && first + n * LA_PAGE <= last; n++) {
            kp[n] = kv_block(c, layer, t->kv_head, t->span->pages[first / LA_PAGE + n]);
            vp[n] = kp[n] + c->kv->at.k_bytes;
        }
        const int32_t *page = &t->span->pages[first / LA_PAGE + n]; /* the next, if any */
        la_attend_args args = {
            .q = own.attend_q,
            .ldq = d16,
            .R = R,
            .d = dh,
            .again = first > begin,
            .row_pos = own.attend_pos,
            .k_pages = kp,
            .v_pages = vp,
            .n_pages = n,
            .next = first + LA_CHUNK > last ? NULL : kv_block(c, layer, t->kv_head, *page),
            .first = first,
            .window = window,
            .scale = d->attn_scale,
            .softcap = d->attn_softcap,
            .m = part_m,
            .l = part_l,
            .o = part_o,
            .ldo = d16,
            .scratch = own.attend};
        la_kernels_attend(k, (la_kv_form)d->kv_form)(&args);
        for (int r = 0; r < R; r++) {
            if (part_l[r] > 0.0f) {
                k->attend_merge(&sum_m[r], &sum_l[r], sum_o + r * d16, part_m[r], part_l[r],
                                part_o + r * d16, dh);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        k->attend_finish(sum_o + r * d16, sum_l[r], query_row(a, t, r, dh), dh);
    }
}

/* The tiles of a step in their order: spans, kv heads, runs of query heads, runs of tokens. */
typedef struct tile_list {
    const la_batch *batch;
    int n_kv_heads, group; /* query heads of a kv head */
    int heads, tokens;     /* of a whole tile */
    int span, before;      /* the span last looked at and the tiles before it */
} tile_list;

static int span_tiles(const tile_list *l, const la_span *span)
{
    return l->n_kv_heads * la_ceil_div(l->group, l->heads) * la_ceil_div(span->n_tokens, l->tokens);
}

/* Tile number i; fastest for rising i. */
static query_tile tile_at(tile_list *l, int i)
{
    if (i < l->before) {
        l->span = l->before = 0;
    }
    const la_span *span = &l->batch->spans[l->span];
    for (int n = span_tiles(l, span); i >= l->before + n; n = span_tiles(l, span)) {
        l->before += n;
        span = &l->batch->spans[++l->span];
    }
    int cuts = la_ceil_div(span->n_tokens, l->tokens), runs = la_ceil_div(l->group, l->heads);
    int at = i - l->before, t0 = at % cuts * l->tokens, h0 = at / cuts % runs * l->heads;
    int kv = at / cuts / runs, tokens = span->n_tokens - t0, heads = l->group - h0;
    return (query_tile){.span = span,
                        .kv_head = kv,
                        .t0 = t0,
                        .tokens = tokens < l->tokens ? tokens : l->tokens,
                        .h0 = kv * l->group + h0,
                        .heads = heads < l->heads ? heads : l->heads};
}

/* In products of a row and a token. */
static int64_t tile_cost(const query_tile *t)
{
    return (int64_t)t->tokens * t->heads * (t->span->first_pos + t->t0 + t->tokens + 64);
}

/* bounds [nth + 1]: ranges of tiles of about equal cost. */
static void bound_tiles(tile_list *l, int n, int nth, int *bounds)
{
    int64_t total = 0, at = 0;
    for (int i = 0; i < n; i++) {
        query_tile t = tile_at(l, i);
        total += tile_cost(&t);
    }
    int k = 0;
    for (int i = 0; i < n; i++) {
        query_tile t = tile_at(l, i);
        int64_t cost = tile_cost(&t);
        for (; k < nth && at + cost / 2 >= total * k / nth; k++) {
            bounds[k] = i;
        }
        at += cost;
    }
    for (; k <= nth; k++) {
        bounds[k] = n;
    }
}

void la_cpu_attend(la_ctx *c, int layer, la_rows q, la_rows a)
{
    const la_model_desc *d = &c->m->desc;
    int group = d->n_heads / d->n_kv_heads;
    int heads = group < LA_CPU_ATTEND_ROWS ? group : LA_CPU_ATTEND_ROWS;
    tile_list list = {.batch = c->batch,
                      .n_kv_heads = d->n_kv_heads,
                      .group = group,
                      .heads = heads,
                      .tokens = LA_CPU_ATTEND_ROWS / heads};
    int bounds[LA_POOL_MAX_THREADS + 1], n = 0;
    for (int s = 0; s < c->batch->n_spans; s++) {
        n += span_tiles(&list, &c->batch->spans[s]);
    }
    bound_tiles(&list, n, c->nth, bounds);
    la_share share;
    la_cpu_share_begin(c, &share, n, bounds);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        query_tile t = tile_at(&list, i);
        attend_tile(c, layer, &t, q, a);
    }
    la_cpu_barrier(c);
}
