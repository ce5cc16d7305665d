/* backend_cpu_moe.c - layers with experts: choice, the two products of every expert, their sum.
 *
 * Pairs (token, slot) sorted by expert are the rows of both products. Items are runs of units of an expert
 * by blocks of its rows, all experts in one list, the shared expert last with every token. Rows enter the
 * first product converted once a token and copied to where its experts read; what the second makes lies by
 * (token, slot) and is added up in the order of slots. Invariant: a row's bits do not depend on who else
 * goes to its expert. With few rows each thread chooses and converts for itself, which saves barriers.
 */
#include "../kernels/route.h"
#include "backend_cpu.h"

enum { ROUTE_ROWS = 16 }; /* tokens routed at once */

/* ---- choice ---------------------------------------------------------------------------------- */

static int is_few(int tokens)
{
    return tokens <= LA_CPU_FEW_ROWS;
}

static la_routes routes_of(la_ctx *c, int tokens)
{
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    return is_few(tokens) ? own.routes : c->w->routes;
}

static void choose(la_ctx *c, int layer, const la_routes *to, int first, int n)
{
    const la_model_desc *d = &c->m->desc;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    la_route_rule rule = {
        d->n_experts,         d->n_experts_used,   d->route_score == LA_ROUTE_SIGMOID,
        d->route_norm,        d->route_scale,      d->route_groups,
        d->route_groups_used, d->route_group_best, c->m->layers[layer].moe->correction};
    for (int t = first; t < first + n; t++) {
        int64_t at = (int64_t)t * d->n_experts_used;
        la_route_row(&la_cpu_of(c)->k, &rule, c->w->router.p + (int64_t)t * c->w->router.ld,
                     own.route_room, to->expert + at, to->weight + at);
    }
}

static void sort(la_ctx *c, int layer, const la_routes *to, int tokens)
{
    const la_model_desc *d = &c->m->desc;
    la_route_sort(to->expert, tokens * d->n_experts_used, d->n_experts, to->first, to->row,
                  to->entry);
    int64_t *load = c->w->expert_load + (int64_t)layer * d->n_experts;
    for (int e = 0; e < d->n_experts && c->tid == 0; e++) {
        load[e] += to->first[e + 1] - to->first[e];
    }
}

void la_cpu_route(la_ctx *c, int layer, la_rows x)
{
    la_routes to = routes_of(c, x.n);
    la_rows logits = c->w->router;
    la_epilogue store = {.kind = LA_STORE};
    logits.n = x.n;
    la_cpu_linear(c, &c->m->layers[layer].moe->router, x, logits, c->m->layers[layer].ffn_norm,
                  &store);
    if (is_few(x.n)) {
        choose(c, layer, &to, 0, x.n);
        sort(c, layer, &to, x.n);
        return;
    }
    la_share share;
    la_cpu_share_begin(c, &share, x.n, NULL);
    for (int n, first; (n = la_share_next(&share, ROUTE_ROWS, &first)) != 0;) {
        choose(c, layer, &to, first, n);
    }
    la_cpu_barrier(c);
    if (c->tid == 0) {
        sort(c, layer, &to, x.n);
    }
    la_cpu_barrier(c);
}

/* ---- rows ------------------------------------------------------------------------------------ */

enum { ROUTED = 0, SHARED, KINDS }; /* rows of chosen experts, and of the shared one */

/* One of the two products. */
typedef struct product {
    int layer;
    int tokens;
    int gate_up;             /* the first */
    const la_matrix *of;     /* [E] */
    const la_matrix *shared; /* NULL: none */
    la_routes to;
    la_act_rows v[KINDS];
    la_rows out[KINDS];
    la_cpu_group *groups; /* [n_groups] */
    int n_groups, items, at_once;
} product;

static void copy_row(const la_act_rows *from, int a, const la_act_rows *to, int b)
{
    size_t lanes = (size_t)to->lanes;
    memcpy(la_act_rows_at(to, b), la_act_rows_at(from, a), to->pitch * lanes);
    if (to->meta != NULL) {
        memcpy(la_act_rows_meta(to, b), la_act_rows_meta(from, a),
               (size_t)to->groups * lanes * sizeof *to->meta);
    }
}

/* The rows of experts as expert e takes them. */
static la_act_rows rows_of(const product *x, int e)
{
    la_act_rows v = x->v[ROUTED];
    v.order = x->of[e].order[0];
    v.rounding = x->of[e].rounding[0];
    return v;
}

/* Do two experts' rows, made of one token, hold the same numbers? */
static int same_rows(const la_act_rows *a, const la_act_rows *b)
{
    return a->form == b->form && a->group == b->group && a->order == NULL && b->order == NULL &&
           memcmp(&a->rounding, &b->rounding, sizeof a->rounding) == 0;
}

/* norm(x) of tokens first .. first+n-1 to every row that reads it; converted once where experts agree
 * about the order of columns and about rounding. */
static void enter_tokens(la_ctx *c, const product *x, la_rows in, int first, int n)
{
    const la_model_desc *d = &c->m->desc;
    la_norm norm = c->m->layers[x->layer].ffn_norm;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    for (int t = first; t < first + n; t++) {
        const int32_t *row = x->to.row + (int64_t)t * d->n_experts_used;
        const int32_t *expert = x->to.expert + (int64_t)t * d->n_experts_used;
        const float *y = in.p + (int64_t)t * in.ld;
        if (norm.w != NULL) {
            la_cpu_norm(c, norm, y, own.row, d->d_model);
            y = own.row;
        }
        la_act_rows head = rows_of(x, expert[0]);
        la_cpu_enter_row(c, &head, row[0], y);
        for (int s = 1; s < d->n_experts_used; s++) {
            la_act_rows v = rows_of(x, expert[s]);
            if (same_rows(&head, &v)) {
                copy_row(&head, row[0], &v, row[s]);
            }
            else {
                la_cpu_enter_row(c, &v, row[s], y);
            }
        }
        if (x->shared != NULL && same_rows(&head, &x->v[SHARED])) {
            copy_row(&head, row[0], &x->v[SHARED], t);
        }
        else if (x->shared != NULL) {
            la_cpu_enter_row(c, &x->v[SHARED], t, y);
        }
    }
}

static int is_plain(const la_act_rows *v)
{
    return la_act_is_float(v->form) && v->order == NULL && v->rounding.kind == LA_ROUND_NONE;
}

/* Are rows of one kind already what every product of them reads? */
static int are_plain(const la_ctx *c, const product *x, int kind)
{
    int plain = is_plain(&x->v[kind]);
    for (int e = 0; kind == ROUTED && plain && e < c->m->desc.n_experts; e++) {
        la_act_rows v = rows_of(x, e);
        plain = x->to.first[e] == x->to.first[e + 1] || is_plain(&v);
    }
    return plain;
}

/* Row r of the second product. */
static void enter_row(la_ctx *c, const product *x, int kind, la_rows in, int r)
{
    la_act_rows v = kind == ROUTED ? rows_of(x, x->to.expert[x->to.entry[r]]) : x->v[SHARED];
    la_cpu_enter_row(c, &v, r, in.p + (int64_t)r * in.ld);
}

/* Rows of one kind as the second product takes them. */
static void enter_rows(la_ctx *c, product *x, int kind, la_rows in)
{
    if (are_plain(c, x, kind)) {
        x->v[kind].a = (uint8_t *)in.p;
        x->v[kind].pitch = (size_t)in.ld * sizeof(float);
        return;
    }
    if (is_few(x->tokens)) {
        for (int r = 0; r < in.n; r++) {
            enter_row(c, x, kind, in, r);
        }
        return;
    }
    la_share share;
    la_cpu_share_begin(c, &share, in.n, NULL);
    for (int n, first; (n = la_share_next(&share, LA_CPU_CONVERT_ROWS, &first)) != 0;) {
        for (int r = first; r < first + n; r++) {
            enter_row(c, x, kind, in, r);
        }
    }
    la_cpu_barrier(c);
}

/* ---- the products ---------------------------------------------------------------------------- */

static void add_group(product *x, const la_matrix *m, int kind, int row0, int rows)
{
    la_cpu_group *g = &x->groups[x->n_groups++];
    *g = (la_cpu_group){.m = m, .kind = kind, .row0 = row0, .rows = rows, .first = x->items};
    g->blocks = la_ceil_div(rows, LA_CPU_TILE_ROWS / x->v[kind].lanes);
    x->items += g->blocks * m->part[0].n_units;
}

/* The list of items, and how many are taken at once. */
static void plan_product(la_ctx *c, product *x)
{
    const la_model_desc *d = &c->m->desc;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    x->groups = own.groups;
    int most = 0;
    for (int e = 0; e < d->n_experts; e++) {
        int rows = x->to.first[e + 1] - x->to.first[e];
        if (rows != 0) {
            add_group(x, &x->of[e], ROUTED, x->to.first[e], rows);
            most = rows > most ? rows : most;
        }
    }
    if (x->shared != NULL) {
        add_group(x, x->shared, SHARED, 0, x->tokens);
    }
    x->at_once =
        la_cpu_units_at_once(c, most * x->v[ROUTED].lanes, x->items, x->of[0].part[0].unit_bytes);
}

/* A row of a finished tile. */
static void finish_row(la_ctx *c, const product *x, int kind, int row, la_cpu_cols at, float *y)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    const la_model_desc *d = &c->m->desc;
    int entry = kind == ROUTED ? x->to.entry[row] : row;
    if (x->gate_up && d->route_input && kind == ROUTED) { /* products are linear */
        la_cpu_scale(k, x->to.weight[entry], y, la_cpu_cols_wide(at));
    }
    la_cpu_cols_bias(k, at, y);
    float *out = x->out[kind].p + (int64_t)(x->gate_up ? row : entry) * x->out[kind].ld;
    if (x->gate_up) {
        la_cpu_cols_act(k, at, d->act, y, out);
    }
    else {
        la_cpu_cols_store(at, y, out);
    }
}

/* n units from u of block b of a group's rows. */
typedef struct stretch {
    const la_cpu_group *g;
    int b, u, n;
} stretch;

/* What a thread reads after it: as many units of the same expert, of its next block of rows, or of the
 * next expert. */
static void hint_next(const product *x, const stretch *s, la_gemm *gemm)
{
    const la_weight *w = &s->g->m->part[0];
    int u = s->u + s->n;
    if (u == w->n_units) {
        const la_cpu_group *g = s->b + 1 < s->g->blocks ? s->g : s->g + 1;
        if (g == x->groups + x->n_groups) {
            return;
        }
        w = &g->m->part[0];
        u = 0;
    }
    int units = w->n_units - u < s->n ? w->n_units - u : s->n;
    gemm->next = w->data + (size_t)u * w->unit_bytes;
    gemm->next_bytes = (size_t)units * w->unit_bytes;
}

/* more: this thread goes on behind it. */
static void run_units(la_ctx *c, const product *x, const stretch *s, int more)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    const la_cpu_group *g = s->g;
    int u = s->u, n = s->n;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    const la_weight *w = &g->m->part[0];
    const la_act_rows *v = &x->v[g->kind];
    int first = la_cpu_border(g->rows, s->b, g->blocks), row0 = g->row0 + first;
    int rows = la_cpu_border(g->rows, s->b + 1, g->blocks) - first;
    la_units units = {w->data + (size_t)u * w->unit_bytes, w->unit_bytes, n, w->f};
    la_gemm gemm = la_act_rows_gemm(v, row0, rows, units, own.tile);
    if (more) {
        hint_next(x, s, &gemm);
    }
    la_kernels_gemm(k, w->f, v->form)(&gemm);
    int left = w->N - u * LA_UNIT, cols = n * LA_UNIT;
    la_cpu_cols at = {g->m, u * LA_UNIT, left < cols ? left : cols};
    for (int r = 0; r < rows; r++) {
        finish_row(c, x, g->kind, row0 + r, at, la_act_rows_result(k, v, &gemm, r));
    }
}

/* Items first .. first+n-1; after: items that the same thread is likely to take next. */
static void run_items(la_ctx *c, const product *x, int first, int n, int after)
{
    int lo = 0, hi = x->n_groups - 1; /* the last group that begins at or before the first item */
    while (lo < hi) {
        int mid = (lo + hi + 1) / 2;
        if (x->groups[mid].first <= first) {
            lo = mid;
        }
        else {
            hi = mid - 1;
        }
    }
    while (n > 0) {
        const la_cpu_group *g = &x->groups[lo];
        int units = g->m->part[0].n_units, i = first - g->first;
        stretch s = {g, i / units, i % units, n};
        s.n = units - s.u < n ? units - s.u : n;
        run_units(c, x, &s, n + after > s.n);
        first += s.n;
        n -= s.n;
        lo += s.u + s.n == units && s.b + 1 == g->blocks;
    }
}

static void run_product(la_ctx *c, product *x)
{
    plan_product(c, x);
    la_share share;
    la_cpu_share_begin(c, &share, x->items, NULL);
    for (int n, first; (n = la_share_next(&share, x->at_once, &first)) != 0;) {
        run_items(c, x, first, n, share.end - first - n);
    }
    la_cpu_barrier(c);
}

void la_cpu_moe_up(la_ctx *c, int layer, la_rows in)
{
    const la_model_desc *d = &c->m->desc;
    const la_moe *w = c->m->layers[layer].moe;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    product x = {.layer = layer,
                 .tokens = in.n,
                 .gate_up = 1,
                 .of = w->up,
                 .to = routes_of(c, in.n),
                 .out = {c->w->expert_h, c->w->shared_h}};
    x.shared = d->d_shared != 0 ? &w->shared_up : NULL;
    uint8_t *base = is_few(in.n) ? own.few : c->w->shared;
    base += la_cpu_rows_plan(c, &w->up[0], 0, in.n * d->n_experts_used, base, &x.v[ROUTED]);
    if (x.shared != NULL) {
        la_cpu_rows_plan(c, x.shared, 0, in.n, base, &x.v[SHARED]);
    }
    if (is_few(in.n)) {
        enter_tokens(c, &x, in, 0, in.n);
    }
    else {
        la_share share;
        la_cpu_share_begin(c, &share, in.n, NULL);
        for (int n, first; (n = la_share_next(&share, LA_CPU_CONVERT_ROWS, &first)) != 0;) {
            enter_tokens(c, &x, in, first, n);
        }
        la_cpu_barrier(c);
    }
    run_product(c, &x);
}

/* x += residual_scale * (experts by their weights, in the order of slots, and the shared one). */
static void combine(la_ctx *c, const product *p, la_rows x, int t, int col0, int cols)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    const la_model_desc *d = &c->m->desc;
    la_norm post = c->m->layers[p->layer].ffn_post_norm;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    memset(own.row, 0, (size_t)cols * sizeof(float));
    for (int s = 0; s < d->n_experts_used; s++) {
        int64_t at = (int64_t)t * d->n_experts_used + s;
        k->add_scaled(p->out[ROUTED].p + at * p->out[ROUTED].ld + col0,
                      d->route_input ? 1.0f : p->to.weight[at], own.row, cols);
    }
    if (p->shared != NULL) {
        float gate = 1.0f;
        if (d->shared_gate) {
            k->exp_sub(c->w->router.p + (int64_t)t * c->w->router.ld + d->n_experts, -1.0f, 0.0f,
                       &gate, 1);
            gate = 1.0f / (1.0f + gate);
        }
        k->add_scaled(p->out[SHARED].p + (int64_t)t * p->out[SHARED].ld + col0, gate, own.row,
                      cols);
    }
    if (post.w != NULL) {
        la_cpu_norm(c, post, own.row, own.row, cols);
    }
    k->add_scaled(own.row, d->residual_scale, x.p + (int64_t)t * x.ld + col0, cols);
}

void la_cpu_moe_down(la_ctx *c, int layer, la_rows in)
{
    const la_model_desc *d = &c->m->desc;
    const la_moe *w = c->m->layers[layer].moe;
    int pairs = in.n * d->n_experts_used, wide = (int)la_round_up((size_t)d->d_model, 16);
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    product x = {.layer = layer, .tokens = in.n, .of = w->down, .to = routes_of(c, in.n)};
    x.shared = d->d_shared != 0 ? &w->shared_down : NULL;
    float *results = (float *)(void *)(c->w->shared + la_cpu_moe_down_bytes(d, in.n));
    x.out[ROUTED] = (la_rows){results, pairs, wide};
    x.out[SHARED] = (la_rows){results + (int64_t)pairs * wide, in.n, wide};
    uint8_t *base = is_few(in.n) ? own.few : c->w->shared;
    la_rows h = c->w->expert_h;
    h.n = pairs;
    base += la_cpu_rows_plan(c, &w->down[0], 0, pairs, base, &x.v[ROUTED]);
    enter_rows(c, &x, ROUTED, h);
    if (x.shared != NULL) {
        h = c->w->shared_h;
        h.n = in.n;
        la_cpu_rows_plan(c, x.shared, 0, in.n, base, &x.v[SHARED]);
        enter_rows(c, &x, SHARED, h);
    }
    run_product(c, &x);
    int whole = c->m->layers[layer].ffn_post_norm.w != NULL; /* a norm needs the row */
    int cols = whole ? d->d_model : LA_CPU_COMBINE_COLS, blocks = la_ceil_div(d->d_model, cols);
    la_share share;
    la_cpu_share_begin(c, &share, in.n * blocks, NULL);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        int col0 = i % blocks * cols, left = d->d_model - col0;
        combine(c, &x, in, i / blocks, col0, left < cols ? left : cols);
    }
    la_cpu_barrier(c);
}
