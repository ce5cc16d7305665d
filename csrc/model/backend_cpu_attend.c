/* backend_cpu_attend.c - attention over KV pages, and what happens to q, k and v before it.
 *
 * All query heads of a kv head and several tokens are rows of one tile, so K and V are read once for all
 * of them. An item is a tile that walks all its chunks, or, where a sequence has one tile per kv head
 * (decode) and there is room for the results, one chunk of it for half of the kv heads, page by page and
 * the heads of each, which is the order of memory; the chunks' results are joined after a barrier. Items are shared out by
 * cost. Invariant: chunks have absolute borders and are joined in order (kernels/attend_walk.h), so a
 * token's result does not depend on how its prompt was cut into steps, nor on the kind of item.
 */
#include "backend_cpu.h"

#include <math.h>

uint8_t *la_cpu_kv_block(la_ctx *c, int layer, int kv_head, int32_t page)
{
    const la_kv_layout *at = &c->kv->at;
    return c->kv->base + (size_t)page * at->page_bytes + (size_t)layer * at->layer_bytes +
           (size_t)kv_head * at->head_bytes;
}

void la_cpu_rotate(la_ctx *c, int layer, int token, float *head)
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

/* Weights of a norm that has none. */
#define FOUR(x) x, x, x, x
static const float ones[256] = {FOUR(FOUR(FOUR(FOUR(1.0f))))};

/* By how much a query grows with its position, in layers without rotation. */
static float growth(const la_model_desc *d, int pos)
{
    float steps = floorf((float)(pos + 1) / (float)d->attn_grow_every);
    return 1.0f + d->attn_grow * log1pf(steps);
}

static void norm_head(la_ctx *c, const float *w, float *x, int n)
{
    la_cpu_of(c)->k.rms_norm(x, w, c->m->desc.norm_eps, x, n);
}

void la_cpu_finish_heads(la_ctx *c, int layer, int token, const la_cpu_heads_run *heads, la_rows q)
{
    const la_model_desc *d = &c->m->desc;
    const la_layer *w = &c->m->layers[layer];
    const la_kernels *k = &la_cpu_of(c)->k;
    int dh = d->d_head, turned = c->m->layer_desc[layer].rope >= 0;
    int unit = d->qk_norm == LA_QK_NORM_UNIT && turned;
    int per_head = d->qk_norm == LA_QK_NORM_HEAD || unit;
    int slot = c->w->pos[token] % LA_PAGE;
    la_store_fn store = la_kernels_store(k, (la_kv_form)d->kv_form);
    for (int i = 0; i < heads->n; i++) {
        int h = heads->first + i;
        float *x = heads->x + i * dh;
        if (h < d->n_heads) {
            if (per_head) {
                norm_head(c, unit ? ones : w->q_norm, x, dh);
            }
            la_cpu_rotate(c, layer, token, x);
            if (d->attn_grow_every != 0 && !turned) {
                la_cpu_scale(k, growth(d, c->w->pos[token]), x, dh);
            }
            memcpy(q.p + (int64_t)token * q.ld + h * dh, x, (size_t)dh * sizeof(float));
            continue;
        }
        int kv = h - d->n_heads, is_v = kv >= d->n_kv_heads;
        if (!is_v) {
            if (per_head) {
                norm_head(c, unit ? ones : w->k_norm, x, dh);
            }
            la_cpu_rotate(c, layer, token, x);
        }
        uint8_t *kp = la_cpu_kv_block(c, layer, is_v ? kv - d->n_kv_heads : kv, c->w->page[token]);
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
            la_cpu_heads_run one = {qkv.p + (int64_t)t * qkv.ld + h * d->d_head, h, 1};
            la_cpu_finish_heads(c, layer, t, &one, q);
        }
    }
    la_cpu_barrier(c);
}

/* ---- attention ------------------------------------------------------------------------------- */

la_cpu_heads_view la_cpu_heads_of(const la_model_desc *d)
{
    if (d->attn != LA_ATTN_LATENT) {
        return (la_cpu_heads_view){d->n_kv_heads, d->n_heads / d->n_kv_heads, d->d_head};
    }
    int runs = la_ceil_div(d->n_heads, LA_CPU_ATTEND_ROWS);
    while (d->n_heads % runs != 0) {
        runs++;
    }
    return (la_cpu_heads_view){runs, d->n_heads / runs, d->kv_rank + d->d_rope};
}

static void attend_walk_of(const la_ctx *c, int layer, la_attend_walk *out)
{
    const la_model_desc *d = &c->m->desc;
    *out = (la_attend_walk){.k = &la_cpu_of(c)->k,
                            .form = (la_kv_form)d->kv_form,
                            .d = la_cpu_heads_of(d).d,
                            .dv = d->attn == LA_ATTN_LATENT ? d->kv_rank : 0,
                            .window = c->m->layer_desc[layer].window,
                            .scale = d->attn_scale,
                            .softcap = d->attn_softcap,
                            .sinks = c->m->layers[layer].sinks,
                            .heads = d->n_heads};
}

static la_attend_pages pages_of(la_ctx *c, int layer, const la_span *span, int kv_head)
{
    int one = c->m->desc.attn == LA_ATTN_LATENT;
    return (la_attend_pages){.base = la_cpu_kv_block(c, layer, one ? 0 : kv_head, 0),
                             .index = span->pages,
                             .pitch = c->kv->at.page_bytes,
                             .k_bytes = c->kv->at.k_bytes};
}

/* A sequence of the step, and how its tiles are made. */
typedef struct span_view {
    const la_span *span;
    int items;
    int fold;          /* kv heads of an item that is a chunk */
    int begin, chunks; /* first token and number of the chunks that its rows see */
    size_t floats;     /* of room for their results; 0: its tiles walk */
} span_view;

/* The items of a step in their order: sequences; then kv heads, runs of query heads, runs of tokens, or
 * chunks, kv heads. */
typedef struct item_list {
    const la_batch *batch;
    const la_attend_walk *walk;
    int n_kv_heads, group; /* query heads of a kv head */
    int heads, tokens;     /* of a whole tile */
    size_t room;           /* floats for results of chunks */
    int fold;              /* kv heads of an item that is a chunk, if their queries fit */
    int at;                /* the sequence last looked at: */
    span_view now;
    int before;  /* items of those before it */
    size_t used; /* floats of those before it */
    /* kv heads whose queries of sequence `made_of` lie converted in this thread's room */
    int made_of;
    uint64_t made;
} item_list;

/* An item: tokens t0 .. t0+tokens-1 of a span, heads h0 .. h0+heads-1 of a kv head; of a span in chunks
 * one of them. */
typedef struct item {
    const span_view *of;
    int kv_head;
    int t0, tokens;
    int h0, heads;
    int chunk;
} item;

static int last_pos(const la_span *s)
{
    return s->first_pos + s->n_tokens - 1;
}

/* Floats of one chunk's results for all rows of a kv head: o [R][d16], m [R], l [R]. */
static size_t part_floats(int R, int d)
{
    return (size_t)R * (size_t)la_attend_wide(d) + la_round_up(2 * (size_t)R, 16);
}

size_t la_cpu_attend_shared(const la_model_desc *d, const la_limits *limits)
{
    int64_t chunks = la_ceil_div(limits->max_len, LA_CHUNK) + 1;
    int64_t all = chunks * limits->max_seqs;
    int64_t some = chunks > LA_CPU_ATTEND_CHUNKS ? chunks : LA_CPU_ATTEND_CHUNKS;
    la_cpu_heads_view view = la_cpu_heads_of(d);
    size_t one = part_floats(view.group, view.d) * (size_t)view.n_kv;
    size_t floats = (size_t)(all < some ? all : some) * one;
    return (floats < LA_CPU_ATTEND_FLOATS ? floats : LA_CPU_ATTEND_FLOATS) * sizeof(float);
}

static void look_at(item_list *l, int s)
{
    const la_span *span = &l->batch->spans[s];
    int begin = la_attend_begin(l->walk, span->first_pos), R = span->n_tokens * l->group;
    int chunks = last_pos(span) / LA_CHUNK - begin / LA_CHUNK + 1;
    size_t floats = (size_t)chunks * (size_t)l->n_kv_heads * part_floats(R, l->walk->d);
    int split = chunks > 1 && R <= LA_CPU_ATTEND_ROWS && floats <= l->room - l->used;
    l->at = s;
    l->now = (span_view){.span = span, .begin = begin, .chunks = chunks};
    if (split) {
        l->now.fold = l->n_kv_heads * R <= LA_CPU_ATTEND_ROWS ? l->fold : 1;
        l->now.items = chunks * (l->n_kv_heads / l->now.fold);
        l->now.floats = floats;
        return;
    }
    l->now.items =
        l->n_kv_heads * la_ceil_div(l->group, l->heads) * la_ceil_div(span->n_tokens, l->tokens);
}

static void begin_items(item_list *l)
{
    l->before = 0;
    l->used = 0;
    look_at(l, 0);
}

/* To the next sequence; 0 after the last. */
static int next_span(item_list *l)
{
    l->before += l->now.items;
    l->used += l->now.floats;
    if (l->at + 1 == l->batch->n_spans) {
        return 0;
    }
    look_at(l, l->at + 1);
    return 1;
}

/* Item i of the sequence looked at. */
static item item_in(const item_list *l, int i)
{
    const span_view *v = &l->now;
    if (v->floats > 0) {
        int runs = l->n_kv_heads / v->fold, kv = i % runs * v->fold;
        return (item){.of = v,
                      .kv_head = kv,
                      .tokens = v->span->n_tokens,
                      .h0 = kv * l->group,
                      .heads = l->group,
                      .chunk = i / runs};
    }
    int cuts = la_ceil_div(v->span->n_tokens, l->tokens), runs = la_ceil_div(l->group, l->heads);
    int t0 = i % cuts * l->tokens, h0 = i / cuts % runs * l->heads, kv = i / cuts / runs;
    int tokens = v->span->n_tokens - t0, heads = l->group - h0;
    return (item){.of = v,
                  .kv_head = kv,
                  .t0 = t0,
                  .tokens = tokens < l->tokens ? tokens : l->tokens,
                  .h0 = kv * l->group + h0,
                  .heads = heads < l->heads ? heads : l->heads};
}

/* Item i of the step; fastest for rising i. */
static item item_at(item_list *l, int i)
{
    if (i < l->before) {
        begin_items(l);
    }
    while (i >= l->before + l->now.items) {
        next_span(l);
    }
    return item_in(l, i - l->before);
}

/* In products of a row and a token. */
static int64_t item_cost(const item_list *l, const item *t)
{
    if (t->of->floats > 0) {
        return (int64_t)t->tokens * t->heads * t->of->fold * LA_CHUNK;
    }
    int last = t->of->span->first_pos + t->t0 + t->tokens - 1;
    int seen = last + 1 - la_attend_begin(l->walk, last);
    return (int64_t)t->tokens * t->heads * (seen + 64);
}

/* Of the sequence looked at; runs of tokens cost the same for every kv head and run of heads. */
static int64_t span_cost(const item_list *l)
{
    int cuts = l->now.floats > 0 ? 1 : la_ceil_div(l->now.span->n_tokens, l->tokens);
    int64_t sum = 0;
    for (int i = 0; i < cuts; i++) {
        item t = item_in(l, i);
        sum += item_cost(l, &t);
    }
    return sum * (l->now.items / cuts);
}

/* The item of the sequence looked at that begins nearest to `cost`, counted from its start. *i and
 * *sum, the cost before it, carry on from a smaller cost. */
static int item_near(const item_list *l, int64_t cost, int *i, int64_t *sum)
{
    if (l->now.floats > 0) { /* chunks: all alike */
        item t = item_in(l, 0);
        int64_t one = item_cost(l, &t), n = (cost + one / 2) / one;
        return n < l->now.items ? (int)n : l->now.items;
    }
    for (; *i < l->now.items; (*i)++) {
        item t = item_in(l, *i);
        int64_t one = item_cost(l, &t);
        if (*sum + one / 2 >= cost) {
            break;
        }
        *sum += one;
    }
    return *i;
}

/* bounds [nth + 1]: ranges of items of about equal cost; joins: are some of them chunks? Returns the
 * number of items. */
static int bound_items(item_list *l, int nth, int *bounds, int *joins)
{
    int64_t total = 0, at = 0;
    begin_items(l);
    do {
        total += span_cost(l);
    } while (next_span(l));
    int n = l->before, k = 0;
    *joins = l->used > 0;
    begin_items(l);
    do {
        int64_t cost = span_cost(l), sum = 0;
        int i = 0;
        for (; k < nth && total * k / nth < at + cost; k++) {
            bounds[k] = l->before + item_near(l, total * k / nth - at, &i, &sum);
        }
        at += cost;
    } while (next_span(l));
    for (; k <= nth; k++) {
        bounds[k] = n;
    }
    begin_items(l);
    return n;
}

static float *row_of(la_rows x, const item *t, int r, int d)
{
    int token = t->of->span->first_token + t->t0 + r / t->heads;
    return x.p + (int64_t)token * x.ld + (t->h0 + r % t->heads) * d;
}

/* The room's queries. */
static void gather_rows(const item *t, la_rows q, int d, const la_attend_room *own)
{
    for (int r = 0; r < t->tokens * t->heads; r++) {
        memcpy(own->q + r * la_attend_wide(d), row_of(q, t, r, d), (size_t)d * sizeof(float));
        own->pos[r] = t->of->span->first_pos + t->t0 + r / t->heads;
    }
}

static void attend_tile(la_ctx *c, int layer, const item_list *l, const item *t, la_rows q,
                        la_rows a)
{
    const la_attend_walk *w = l->walk;
    la_attend_walk mine = *w;
    int R = t->tokens * t->heads;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    la_attend_pages pages = pages_of(c, layer, t->of->span, t->kv_head);
    gather_rows(t, q, w->d, &own.attend);
    mine.sinks = w->sinks != NULL ? w->sinks + t->h0 : NULL;
    mine.heads = t->heads;
    la_attend_rows(&mine, &pages, &own.attend, R);
    for (int r = 0; r < R; r++) {
        w->k->attend_finish(own.attend.o + r * la_attend_wide(w->d), own.attend.l[r],
                            row_of(a, t, r, w->d), la_attend_out(w));
    }
}

/* Where the result of a chunk of a kv head lies, for R rows. */
static float *part_of(la_ctx *c, const item_list *l, int chunk, int kv_head, int R)
{
    float *base = (float *)(void *)c->w->shared + l->used;
    return base +
           ((size_t)chunk * (size_t)l->n_kv_heads + (size_t)kv_head) * part_floats(R, l->walk->d);
}

/* A thread meets a kv head again with every page: all heads' queries stay converted if they fit. */
static void convert_once(item_list *l, const item *t, la_attend_args *a)
{
    if (l->made_of != l->at) {
        l->made_of = l->at;
        l->made = 0;
    }
    if (l->n_kv_heads * a->R <= LA_CPU_ATTEND_ROWS) {
        a->set = t->kv_head;
        a->again = l->made >> t->kv_head & 1;
        l->made |= (uint64_t)1 << t->kv_head;
    }
}

/* A page of a sequence, and where reading goes on: the page `ahead` of it, kv head `then`. */
typedef struct page_step {
    int page, ahead, then;
} page_step;

/* One page of one kv head of a chunk. */
static void attend_page(la_ctx *c, int layer, item_list *l, const item *t, la_rows q,
                        const page_step *at)
{
    const la_attend_walk *w = l->walk;
    const la_span *span = t->of->span;
    int R = t->tokens * t->heads;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    la_attend_pages pages = pages_of(c, layer, span, t->kv_head);
    la_attend_args args = la_attend_args_of(w, &own.attend, R);
    args.again = args.more = at->page * LA_PAGE > t->of->begin + t->chunk * LA_CHUNK;
    convert_once(l, t, &args);
    if (!args.again) {
        gather_rows(t, q, w->d, &own.attend);
    }
    args.o = part_of(c, l, t->chunk, t->kv_head, R);
    args.m = args.o + (size_t)R * (size_t)args.ldo;
    args.l = args.m + R;
    if (at->page + at->ahead <= last_pos(span) / LA_PAGE) {
        la_attend_pages then = pages_of(c, layer, span, at->then);
        args.next = la_attend_page(&then, at->page + at->ahead);
        args.next_v = args.next + then.k_bytes;
    }
    la_attend_chunk(w, &pages, &args, at->page * LA_PAGE, at->page * LA_PAGE);
}

static void attend_part(la_ctx *c, int layer, item_list *l, const item *t, la_rows q)
{
    int first = (t->of->begin + t->chunk * LA_CHUNK) / LA_PAGE, kv_end = t->kv_head + t->of->fold;
    int end = first + LA_CHUNK / LA_PAGE, pages = last_pos(t->of->span) / LA_PAGE + 1;
    end = end < pages ? end : pages;
    for (int page = first; page < end; page++) {
        for (int kv = t->kv_head; kv < kv_end; kv++) {
            page_step at = {page, 0, kv + 1};
            if (kv + 1 == kv_end && page + 1 < end) {
                at = (page_step){page, 1, t->kv_head};
            }
            else if (kv + 1 == kv_end) { /* the next item */
                int more = kv_end < l->n_kv_heads;
                at = (page_step){page, more ? first - page : 1, more ? kv_end : 0};
            }
            item one = *t;
            one.kv_head = kv;
            one.h0 = kv * l->group;
            attend_page(c, layer, l, &one, q, &at);
        }
    }
}

/* Joins the chunks of query head h for all tokens of the sequence looked at. */
static void join_parts(la_ctx *c, const item_list *l, int h, la_rows a)
{
    const la_attend_walk *w = l->walk;
    const la_span *span = l->now.span;
    int R = span->n_tokens * l->group, wide = la_attend_wide(w->d);
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    float *o = own.attend.o;
    for (int t = 0; t < span->n_tokens; t++) {
        float m = w->sinks != NULL ? w->sinks[h] : -INFINITY;
        float sum = w->sinks != NULL ? 1.0f : 0.0f;
        int r = t * l->group + h % l->group;
        memset(o, 0, (size_t)wide * sizeof(float));
        for (int i = 0; i < l->now.chunks; i++) {
            const float *part = part_of(c, l, i, h / l->group, R);
            const float *part_m = part + (int64_t)R * wide, *part_l = part_m + R;
            if (part_l[r] > 0.0f) {
                w->k->attend_merge(&m, &sum, o, part_m[r], part_l[r], part + (int64_t)r * wide,
                                   la_attend_out(w));
            }
        }
        float *out = a.p + (int64_t)(span->first_token + t) * a.ld + h * w->d;
        w->k->attend_finish(o, sum, out, la_attend_out(w));
    }
}

static void join_all(la_ctx *c, item_list *l, la_rows a)
{
    int H = l->n_kv_heads * l->group;
    la_share share;
    la_cpu_share_begin(c, &share, l->batch->n_spans * H, NULL);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        if (i / H < l->at) {
            begin_items(l);
        }
        while (l->at < i / H) {
            next_span(l);
        }
        if (l->now.floats > 0) {
            join_parts(c, l, i % H, a);
        }
    }
    la_cpu_barrier(c);
}

void la_cpu_attend(la_ctx *c, int layer, la_rows q, la_rows a)
{
    const la_model_desc *d = &c->m->desc;
    la_cpu_heads_view view = la_cpu_heads_of(d);
    int heads = view.group < LA_CPU_ATTEND_ROWS ? view.group : LA_CPU_ATTEND_ROWS;
    size_t room = c->w->shared_bytes / sizeof(float);
    la_attend_walk walk;
    attend_walk_of(c, layer, &walk);
    item_list list = {.batch = c->batch,
                      .walk = &walk,
                      .n_kv_heads = view.n_kv,
                      .group = view.group,
                      .heads = heads,
                      .tokens = LA_CPU_ATTEND_ROWS / heads,
                      .room = room < LA_CPU_ATTEND_FLOATS ? room : LA_CPU_ATTEND_FLOATS};
    list.fold = view.n_kv % 2 == 0 ? view.n_kv / 2 : 1;
    int bounds[LA_POOL_MAX_THREADS + 1], joins, n = bound_items(&list, c->nth, bounds, &joins);
    la_share share;
    la_cpu_share_begin(c, &share, n, bounds);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        item t = item_at(&list, i);
        if (t.of->floats > 0) {
            attend_part(c, layer, &list, &t, q);
        }
        else {
            attend_tile(c, layer, &list, &t, q, a);
            list.made = 0;
        }
    }
    la_cpu_barrier(c);
    if (joins) {
        join_all(c, &list, a);
    }
}
