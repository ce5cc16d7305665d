/* backend_cpu_linear.c - y = x W^T with what comes before (norm, conversion) and after (epilogue).
 *
 * A product is cut into grains: the smallest runs of 32-column units that an epilogue can finish (one
 * unit, whole heads for LA_HEADS), and its rows into even blocks. Grains of a block are the items of a
 * share: a thread takes its own in order, so a weight is read front to back, and finishes what others
 * leave. Invariant: M, the thread count and who takes what decide only who computes a tile and how many
 * rows ride along, never the order of additions inside a row.
 */
#include "backend_cpu.h"

enum {
    FEW_BYTES = 64 << 10, /* of weights taken at once for few rows: a few microseconds */
    FEW_PAIRS = 8 /* takes a thread must be left with for two units to be taken beyond that */
};

/* Rows of a weight under a matrix's `activation`. Levels without an int8 dot widen codes to 16 bits for
 * it: two lanes then take twice the time of bf16 rows in multiply-adds. */
static la_act_form form_of(la_isa isa, la_format f, int activation)
{
    if (f.pack == LA_PACK_F32 || f.pack == LA_PACK_F16) {
        return f.pack == LA_PACK_F32 && activation == LA_ACT_F64 ? LA_ACT_F64 : LA_ACT_F32;
    }
    if (f.pack == LA_PACK_BF16 || f.pack == LA_PACK_F8 || la_pack_table(f.pack) != NULL ||
        (activation == LA_ACT_I8X2 && isa < LA_ISA_VNNI)) {
        return LA_ACT_BF16;
    }
    return (la_act_form)activation;
}

size_t la_cpu_rows_plan(la_ctx *c, const la_matrix *m, int part, int rows, uint8_t *base,
                        la_act_rows *v)
{
    const la_weight *w = &m->part[part];
    la_act_form form = form_of(la_cpu_of(c)->isa, w->f, m->activation);
    *v = la_act_rows_plan(form, w->K, la_act_rows_group(form, w->f));
    v->a = base;
    size_t lanes = (size_t)rows * (size_t)v->lanes, bytes = v->pitch * lanes;
    v->meta = v->groups != 0 ? (la_act_meta *)(void *)(base + bytes) : NULL;
    v->order = m->order[part];
    v->rounding = m->rounding[part];
    return la_round_up(bytes + (size_t)v->groups * lanes * sizeof(la_act_meta), 64);
}

void la_cpu_enter_row(la_ctx *c, const la_act_rows *v, int r, const float *x)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    if (v->rounding.kind == LA_ROUND_NONE && v->order == NULL) {
        la_act_rows_convert(k, v, r, x);
        return;
    }
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    if (v->rounding.kind != LA_ROUND_NONE) {
        la_cpu_round_row(k, v->rounding, x, v->K, own.rounded);
        x = own.rounded;
    }
    for (int i = 0; v->order != NULL && i < v->K; i++) {
        own.sorted[i] = x[v->order[i]];
    }
    la_act_rows_convert(k, v, r, v->order != NULL ? own.sorted : x);
}

static void convert_rows(la_ctx *c, const la_act_rows *v, la_rows in, la_norm norm, int first,
                         int end)
{
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    for (int r = first; r < end; r++) {
        const float *x = in.p + (int64_t)r * in.ld;
        float *place = (float *)(void *)la_act_rows_at(v, r);
        if (norm.w != NULL) {
            float *y = la_act_is_float(v->form) && v->order == NULL ? place : own.row;
            la_cpu_norm(c, norm, x, y, v->K);
            x = y;
        }
        la_cpu_enter_row(c, v, r, x);
    }
}

/* Do two parts want the same rows? */
static int same_rows(const la_act_rows *a, const la_act_rows *b)
{
    return a->form == b->form && a->group == b->group && a->order == NULL && b->order == NULL &&
           memcmp(&a->rounding, &b->rounding, sizeof a->rounding) == 0;
}

/* Converts the rows for every part; parts that want the same form share one conversion. Few rows are
 * converted by every thread for itself, which is cheaper than a barrier. */
static void prepare(la_ctx *c, const la_matrix *m, la_rows in, la_norm norm, la_act_rows *v)
{
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    int few = in.n <= LA_CPU_FEW_ROWS, todo = 0;
    uint8_t *base = few ? own.few : c->w->shared;
    int mine[3];
    for (int p = 0; p < m->n_parts; p++) {
        size_t used = la_cpu_rows_plan(c, m, p, in.n, base, &v[p]);
        if (p > 0 && same_rows(&v[p], &v[p - 1])) {
            v[p] = v[p - 1];
            continue;
        }
        if (la_act_is_float(v[p].form) && norm.w == NULL && v[p].order == NULL &&
            v[p].rounding.kind == LA_ROUND_NONE) { /* already what the kernel reads */
            v[p].a = (uint8_t *)in.p;
            v[p].pitch = (size_t)in.ld * sizeof(float);
            continue;
        }
        mine[todo++] = p;
        base += used;
    }
    if (few) {
        for (int i = 0; i < todo; i++) {
            convert_rows(c, &v[mine[i]], in, norm, 0, in.n);
        }
        return;
    }
    if (todo == 0) {
        return;
    }
    la_share share;
    la_cpu_share_begin(c, &share, in.n, NULL);
    for (int n, first; (n = la_share_next(&share, LA_CPU_CONVERT_ROWS, &first)) != 0;) {
        for (int i = 0; i < todo; i++) {
            convert_rows(c, &v[mine[i]], in, norm, first, first + n);
        }
    }
    la_cpu_barrier(c);
}

/* ---- finished tiles -------------------------------------------------------------------------- */

void la_cpu_cols_bias(const la_kernels *k, la_cpu_cols at, float *y)
{
    if (at.m->bias != NULL) {
        k->add(at.m->bias + at.col0, y, la_cpu_cols_wide(at));
    }
}

void la_cpu_cols_store(la_cpu_cols at, const float *y, float *row)
{
    memcpy(row + at.col0, y, (size_t)at.n * sizeof(float));
}

void la_cpu_cols_act(const la_kernels *k, la_cpu_cols at, int act, const float *y, float *row)
{
    if (!at.m->paired) {
        k->act(act, y, row + at.col0, at.n);
        return;
    }
    /* each unit: 16 gates, 16 ups */
    k->act_mul(act, y, y + LA_UNIT / 2, LA_UNIT, row + at.col0 / 2, at.n / 2);
}

/* One finished tile: rows row0.. of columns that are counted over all parts. */
typedef struct tile {
    const la_gemm *g;     /* whose result it is */
    const la_act_rows *v; /* of which rows */
    int row0;
    la_cpu_cols at;
} tile;

static void finish_row(la_ctx *c, const tile *t, int r, la_rows out, const la_epilogue *epi)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    const la_model_desc *d = &c->m->desc;
    float *y = la_act_rows_result(k, t->v, t->g, r);
    float *row = out.p + (int64_t)(t->row0 + r) * out.ld;
    la_cpu_cols at = t->at;
    la_cpu_cols_bias(k, at, y);
    switch (epi->kind) {
    case LA_STORE: la_cpu_cols_store(at, y, row); break;
    case LA_ADD: k->add_scaled(y, epi->scale, row + at.col0, at.n); break;
    case LA_ACT: la_cpu_cols_act(k, at, d->act, y, row); break;
    case LA_LOGITS:
        if (epi->scale != 1.0f || epi->softcap != 0.0f) {
            k->softcap(y, epi->scale, epi->softcap, at.n);
        }
        la_cpu_cols_store(at, y, row);
        k->block_max(y, at.n,
                     c->w->best.p + (int64_t)(t->row0 + r) * c->w->best.ld + at.col0 / LA_UNIT);
        break;
    case LA_HEADS: {
        la_cpu_heads_run heads = {y, at.col0 / d->d_head, at.n / d->d_head};
        la_cpu_finish_heads(c, epi->layer, t->row0 + r, &heads, out);
        break;
    }
    }
}

/* ---- the product ----------------------------------------------------------------------------- */

/* One product of a step: what every thread computes for itself before it takes items. */
typedef struct product {
    const la_matrix *m;
    const la_epilogue *epi;
    la_act_rows v[3];
    la_rows in, out;
    int grain;     /* units that must stay together */
    int grains[3]; /* of each part */
    int total;     /* of all parts */
    int lanes;     /* most of any part's rows */
    int blocks;    /* of rows */
    int at_once;   /* grains a thread takes at once */
} product;

/* Takes small enough that a thread which the system puts aside holds little, large enough to cost
 * nothing: the pair of units that the many-row kernels want; of few rows, FEW_BYTES of weights, or the
 * pair that kernels read as two streams. */
int la_cpu_units_at_once(const la_ctx *c, int rows, int units, size_t unit_bytes)
{
    if (rows > LA_CPU_SOME_ROWS) {
        return 2;
    }
    int least = units >= 2 * FEW_PAIRS * c->nth ? 2 : 1, most = LA_CPU_TILE_COLS / LA_UNIT;
    int some = (int)(FEW_BYTES / unit_bytes);
    some = some > least ? some : least;
    return some < most ? some : most;
}

static void plan_product(const la_ctx *c, product *x)
{
    const la_model_desc *d = &c->m->desc;
    size_t bytes = 0;
    x->grain = x->epi->kind == LA_HEADS ? la_head_granule(d->d_head) / LA_UNIT : 1;
    x->total = 0;
    x->lanes = 1;
    for (int p = 0; p < x->m->n_parts; p++) {
        const la_weight *w = &x->m->part[p];
        x->lanes = x->v[p].lanes > x->lanes ? x->v[p].lanes : x->lanes;
        x->grains[p] = la_ceil_div(w->n_units, x->grain);
        x->total += x->grains[p];
        bytes = w->unit_bytes > bytes ? w->unit_bytes : bytes;
    }
    int units = la_cpu_units_at_once(c, x->in.n * x->lanes, x->total * x->grain, bytes);
    x->at_once = units > x->grain ? units / x->grain : 1;
    x->blocks = la_ceil_div(x->in.n, LA_CPU_TILE_ROWS / x->lanes);
}

/* Grains first .. first+n-1 of one part, of block `block` of rows; after: those that the same thread is
 * likely to take next. */
typedef struct grain_run {
    int part, block, first, n, after;
} grain_run;

static void run_tile(la_ctx *c, const product *x, grain_run of)
{
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    const la_weight *w = &x->m->part[of.part];
    const la_act_rows *v = &x->v[of.part];
    int u = of.first * x->grain, end = u + of.n * x->grain, col0 = u * LA_UNIT;
    end = end < w->n_units ? end : w->n_units;
    int row0 = la_cpu_border(x->in.n, of.block, x->blocks);
    int rows = la_cpu_border(x->in.n, of.block + 1, x->blocks) - row0;
    for (int i = 0; i < of.part; i++) {
        col0 += x->m->part[i].N;
    }
    la_units units = {w->data + (size_t)u * w->unit_bytes, w->unit_bytes, end - u, w->f};
    la_gemm g = la_act_rows_gemm(v, row0, rows, units, own.tile);
    int after = of.after * x->grain;
    after = after < w->n_units - end ? after : w->n_units - end;
    if (after > 0) {
        g.next = w->data + (size_t)end * w->unit_bytes;
        g.next_bytes = (size_t)(after < g.n_units ? after : g.n_units) * w->unit_bytes;
    }
    la_kernels_gemm(&la_cpu_of(c)->k, g.f, v->form)(&g);
    /* paired: the last unit may hold fewer than 16 pairs, but pairs are whole */
    int left = w->N - u * LA_UNIT, cols = g.n_units * LA_UNIT;
    tile t = {&g, v, row0, {x->m, col0, left < cols ? left : cols}};
    for (int r = 0; r < rows; r++) {
        finish_row(c, &t, r, x->out, x->epi);
    }
}

/* Grains first .. first+n-1, counted over all parts, of one block of rows. */
static void run_grains(la_ctx *c, const product *x, int b, int first, int n, int after)
{
    for (int p = 0; p < x->m->n_parts && n > 0; p++) {
        int here = x->grains[p] - first < n ? x->grains[p] - first : n;
        if (here > 0) {
            run_tile(c, x, (grain_run){p, b, first, here, after});
            first += here;
            n -= here;
        }
        first -= x->grains[p];
    }
}

void la_cpu_linear(la_ctx *c, const la_matrix *m, la_rows in, la_rows out, la_norm norm,
                   const la_epilogue *epi)
{
    product x = {.m = m, .epi = epi, .in = in, .out = out};
    prepare(c, m, in, norm, x.v);
    plan_product(c, &x);
    /* Heads of all rows by one thread, in order: the first token of a page clears what later ones write. */
    int per_item = epi->kind == LA_HEADS ? x.blocks : 1;
    la_share share;
    la_cpu_share_begin(c, &share, x.total * (x.blocks / per_item), NULL);
    for (int n, first; (n = la_share_next(&share, x.at_once, &first)) != 0;) {
        for (int i = 0; i < n;) {
            int g = (first + i) % x.total, b = (first + i) / x.total;
            int run = x.total - g < n - i ? x.total - g : n - i;
            for (int j = 0; j < per_item; j++) {
                run_grains(c, &x, b + j, g, run, share.end - first - n);
            }
            i += run;
        }
    }
    la_cpu_barrier(c);
}
