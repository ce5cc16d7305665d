/* backend_cpu.c - the CPU backend: opening, packing, and the row-wise ops of a step.
 *
 * Owns the pool, the kernel table and the layout of scratch. Products are in backend_cpu_linear.c, rows
 * rounded for them in _round.c, attention in _attend.c, what latents need besides in _mla.c, experts in
 * _moe.c, sampling in _sample.c, probes in _probe.c. Invariant: every op shares its work out over things that do not influence each other, then meets at
 * the barrier.
 */
#include "../kernels/route.h"
#include "backend_cpu.h"

#include <stdlib.h>

/* ---- scratch --------------------------------------------------------------------------------- */

/* Widest K of any product. */
static int max_k(const la_model_desc *d)
{
    int hd = d->n_heads * (d->attn == LA_ATTN_LATENT ? d->d_v : d->d_head);
    int k = d->d_model > d->d_ffn ? d->d_model : d->d_ffn;
    int more[] = {hd,
                  d->q_rank,
                  d->kv_rank,
                  d->d_nope,
                  d->n_experts != 0 ? d->d_expert : 0,
                  d->n_experts != 0 ? d->d_shared : 0};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        k = k > more[i] ? k : more[i];
    }
    return k;
}

/* Two lanes of int8 with metadata per 16 values are the widest form: as many bytes as fp32, but each
 * lane and its groups are rounded up. */
static size_t row_bytes(int K)
{
    size_t groups = (size_t)la_ceil_div(K, 16);
    return la_round_up(2 * (la_round_up((size_t)K, 64) + groups * sizeof(la_act_meta)), 64) + 64;
}

size_t la_cpu_moe_down_bytes(const la_model_desc *d, int T)
{
    return (size_t)T *
           ((size_t)d->n_experts_used * row_bytes(d->d_expert) + row_bytes(d->d_shared));
}

/* Of all parts of T converted rows; experts: a copy for each that reads it. */
static size_t converted_bytes(const la_model_desc *d, int T)
{
    size_t one = row_bytes(max_k(d)), three = 3 * row_bytes(d->d_model);
    size_t bytes = (one > three ? one : three) * (size_t)T;
    if (d->n_experts == 0) {
        return bytes;
    }
    size_t up = ((size_t)d->n_experts_used + 1) * row_bytes(d->d_model) * (size_t)T;
    size_t down = la_cpu_moe_down_bytes(d, T);
    bytes = up > bytes ? up : bytes;
    return down > bytes ? down : bytes;
}

/* With what experts give, behind the rows that they take. */
static size_t moe_bytes(const la_model_desc *d, int T)
{
    if (d->n_experts == 0) {
        return 0;
    }
    size_t row = la_round_up((size_t)d->d_model, 16) * sizeof(float);
    return la_cpu_moe_down_bytes(d, T) + ((size_t)d->n_experts_used + 1) * row * (size_t)T;
}

/* Tokens of a small batch, at most. */
static int few_rows(int max_tokens)
{
    return max_tokens < LA_CPU_FEW_ROWS ? max_tokens : LA_CPU_FEW_ROWS;
}

size_t la_cpu_few_bytes(const la_model_desc *d, int max_tokens)
{
    return converted_bytes(d, few_rows(max_tokens));
}

static uint8_t *take_bytes(uint8_t *base, size_t *at, size_t bytes)
{
    uint8_t *p = base != NULL ? base + *at : NULL;
    *at += la_round_up(bytes, 64);
    return p;
}

static float *take_floats(uint8_t *base, size_t *at, size_t n)
{
    return (float *)(void *)take_bytes(base, at, n * sizeof(float));
}

static int32_t *take_ints(uint8_t *base, size_t *at, size_t n)
{
    return (int32_t *)(void *)take_bytes(base, at, n * sizeof(int32_t));
}

/* The part of it that layers with experts use, from `at` on; returns where it ends. */
static size_t moe_layout(const la_model_desc *d, int few, uint8_t *base, size_t at,
                         la_cpu_local *out)
{
    if (d->n_experts == 0) {
        return at;
    }
    size_t pairs = (size_t)few * (size_t)d->n_experts_used, E = (size_t)d->n_experts;
    out->routes.expert = take_ints(base, &at, pairs);
    out->routes.weight = take_floats(base, &at, pairs);
    out->routes.row = take_ints(base, &at, pairs);
    out->routes.entry = take_ints(base, &at, pairs);
    out->routes.first = take_ints(base, &at, E + 1);
    out->route_room = take_bytes(base, &at, la_route_room(d->n_experts));
    out->groups = (la_cpu_group *)(void *)take_bytes(base, &at, (E + 1) * sizeof *out->groups);
    return at;
}

/* Lays scratch out from base (NULL: sizes only); returns the bytes. */
static size_t local_layout(const la_model_desc *d, int max_tokens, uint8_t *base, la_cpu_local *out)
{
    size_t at = 0;
    int lanes = 2 * max_tokens; /* a row may enter as two */
    size_t rows = (size_t)(lanes < LA_CPU_TILE_ROWS ? lanes : LA_CPU_TILE_ROWS);
    int wide = la_cpu_heads_of(d).d;
    out->tile = take_floats(base, &at, rows * LA_CPU_TILE_COLS);
    out->row = take_floats(base, &at, la_round_up((size_t)max_k(d), 16));
    out->rounded = take_floats(base, &at, la_round_up((size_t)max_k(d), 16));
    out->sorted = take_floats(base, &at, la_round_up((size_t)max_k(d), 16));
    out->few = take_bytes(base, &at, la_cpu_few_bytes(d, max_tokens));
    at = moe_layout(d, few_rows(max_tokens), base, at, out);
    size_t turned = d->attn == LA_ATTN_LATENT ? la_mla_scratch(wide, d->kv_rank) : 0;
    uint8_t *room = take_bytes(base, &at, la_attend_room_bytes(LA_CPU_ATTEND_ROWS, wide) + turned);
    if (room != NULL) {
        la_attend_room_at(room, LA_CPU_ATTEND_ROWS, wide, &out->attend);
    }
    size_t V = (size_t)d->n_vocab, units = (size_t)la_ceil_div(d->n_vocab, LA_UNIT);
    out->ruled = take_floats(base, &at, V);
    out->ruled_best = take_floats(base, &at, units);
    out->probs = take_floats(base, &at, V);
    out->ids = take_ints(base, &at, V);
    out->units = take_ints(base, &at, units);
    out->heap = take_ints(base, &at, V);
    return at;
}

void la_cpu_local_of(la_ctx *c, la_cpu_local *out)
{
    uint8_t *base = c->w->local + c->w->local_bytes * (size_t)c->tid;
    local_layout(&c->m->desc, c->w->max_tokens, base, out);
}

/* Rows are converted inside a product, chunks joined inside attention: both use the same bytes. */
static void scratch(const la_model_desc *d, const la_limits *limits, size_t *shared, size_t *local)
{
    la_cpu_local unused;
    size_t rows = converted_bytes(d, limits->max_batch_tokens);
    size_t chunks = la_cpu_attend_shared(d, limits),
           experts = moe_bytes(d, limits->max_batch_tokens);
    *shared = rows > chunks ? rows : chunks;
    *shared = experts > *shared ? experts : *shared;
    *local = la_round_up(local_layout(d, limits->max_batch_tokens, NULL, &unused), la_page_bytes());
}

/* Units of experts by blocks of their rows, rows of experts, units of the shared one, sums. */
static int64_t moe_items(const la_model_desc *d, int64_t T)
{
    if (d->n_experts == 0) {
        return 0;
    }
    int64_t pairs = T * d->n_experts_used, up = 2 * (int64_t)d->d_expert, D = d->d_model;
    int64_t units = (up > D ? up : D) / LA_UNIT + 2, wide = 2 * (int64_t)d->d_shared;
    int64_t blocks = d->n_experts + 2 * pairs / LA_CPU_TILE_ROWS + 1; /* of two lanes a row */
    int64_t shared = ((wide > D ? wide : D) / LA_UNIT + 2) * (2 * T / LA_CPU_TILE_ROWS + 1);
    int64_t items = units * blocks + shared;
    int64_t sums = T * la_ceil_div(d->d_model, LA_CPU_COMBINE_COLS);
    items = items > sums ? items : sums;
    return items > pairs ? items : pairs;
}

/* The items of an op must fit a share: units by blocks of rows, or tiles of query rows. */
static la_status check(const la_model_desc *d, const la_limits *limits)
{
    int64_t T = limits->max_batch_tokens, spans = T < limits->max_seqs ? T : limits->max_seqs;
    la_cpu_heads_view view = la_cpu_heads_of(d);
    int64_t qkv = ((int64_t)d->n_heads + 2 * d->n_kv_heads) * d->d_head + d->q_rank + d->kv_rank,
            ffn = 2 * (int64_t)d->d_ffn;
    int64_t cols = d->d_model > ffn ? d->d_model : ffn;
    int64_t units = (cols > qkv ? cols : qkv) / LA_UNIT + 3; /* a part's last may be short */
    int64_t blocks = 2 * T / LA_CPU_TILE_ROWS + 1;           /* of two lanes a row */
    int heads = view.group < LA_CPU_ATTEND_ROWS ? view.group : LA_CPU_ATTEND_ROWS;
    int64_t runs = view.n_kv * (int64_t)la_ceil_div(view.group, heads);
    int64_t tiles = runs * (spans + T / (LA_CPU_ATTEND_ROWS / heads));
    tiles += LA_CPU_ATTEND_FLOATS / 32; /* chunks; the smallest has 16 floats of o, 16 of m and l */
    if (d->attn == LA_ATTN_LATENT) {    /* products of heads, by at least LA_CPU_FEW_ROWS tokens */
        int64_t heads_products = d->n_heads * ((T + LA_CPU_FEW_ROWS - 1) / LA_CPU_FEW_ROWS);
        tiles = tiles > heads_products ? tiles : heads_products;
    }
    if (units * blocks > LA_POOL_MAX_ITEMS || moe_items(d, T) > LA_POOL_MAX_ITEMS ||
        tiles > LA_POOL_MAX_ITEMS || spans * d->n_heads > LA_POOL_MAX_ITEMS) {
        return la_fail(LA_ERR_ARGUMENT,
                       "max_num_batched_tokens: steps of %d tokens of %d sequences are too large "
                       "for a model of this width",
                       limits->max_batch_tokens, limits->max_seqs);
    }
    return LA_OK;
}

void la_cpu_barrier(la_ctx *c)
{
    la_pool_barrier(la_cpu_of(c)->pool, c->tid);
}

void la_cpu_share_begin(la_ctx *c, la_share *s, int n, const int *bounds)
{
    la_share_begin(s, la_cpu_of(c)->pool, c->tid, n, bounds);
}

/* ---- row-wise ops ---------------------------------------------------------------------------- */

void la_cpu_norm(la_ctx *c, la_norm norm, const float *x, float *y, int n)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    const la_model_desc *d = &c->m->desc;
    if (d->norm == LA_NORM_RMS) {
        k->rms_norm(x, norm.w, d->norm_eps, y, n);
    }
    else {
        k->layer_norm(x, norm.w, norm.b, d->norm_eps, y, n);
    }
}

static void unpack(const la_backend *b, const la_weight *w, int row, float *out)
{
    const uint8_t *unit = w->data + (size_t)(row / LA_UNIT) * w->unit_bytes;
    ((const la_cpu_backend *)b)->k.unpack_row(unit, w->f, row % LA_UNIT, w->K, out);
}

static void embed(la_ctx *c, la_rows x)
{
    const la_cpu_backend *b = la_cpu_of(c);
    const la_model *m = c->m;
    int D = m->desc.d_model;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    la_share share;
    la_cpu_share_begin(c, &share, x.n, NULL);
    for (int t; la_share_next(&share, 1, &t) != 0;) {
        float *row = x.p + (int64_t)t * x.ld;
        unpack(c->b, &m->embed.part[0], c->batch->tokens[t], row);
        if (m->desc.embed_scale != 1.0f) {
            la_cpu_scale(&b->k, m->desc.embed_scale, row, D);
        }
        if (m->pos_embed.n_parts != 0) {
            unpack(c->b, &m->pos_embed.part[0], c->w->pos[t], own.row);
            b->k.add(own.row, row, D);
        }
    }
    la_cpu_barrier(c);
}

static void add_norm(la_ctx *c, la_rows y, la_norm norm, float scale, la_rows x)
{
    const la_cpu_backend *b = la_cpu_of(c);
    const la_model_desc *d = &c->m->desc;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    la_share share;
    la_cpu_share_begin(c, &share, x.n, NULL);
    for (int t; la_share_next(&share, 1, &t) != 0;) {
        la_cpu_norm(c, norm, y.p + (int64_t)t * y.ld, own.row, d->d_model);
        b->k.add_scaled(own.row, scale, x.p + (int64_t)t * x.ld, d->d_model);
    }
    la_cpu_barrier(c);
}

/* Columns are shared out, and rows move down in order: no value is overwritten before it has moved. */
static void narrow(la_ctx *c, la_rows rows, int width)
{
    int lines = la_ceil_div(width, 16), from = la_cpu_border(lines, c->tid, c->nth) * 16;
    int to = la_cpu_border(lines, c->tid + 1, c->nth) * 16;
    to = to < width ? to : width;
    for (int i = 0; i < c->batch->n_rows && from < to; i++) {
        int t = c->batch->rows[i].token;
        if (t != i) {
            memcpy(rows.p + (int64_t)i * rows.ld + from, rows.p + (int64_t)t * rows.ld + from,
                   (size_t)(to - from) * sizeof(float));
        }
    }
    la_cpu_barrier(c);
}

/* A thread's rows of a run lie together: there is nothing in a copy to wait for. */
static void capture(la_ctx *c, int layer, la_rows x, la_norm norm)
{
    int D = c->m->desc.d_model;
    for (int i = 0; i < c->batch->n_captures; i++) {
        const la_capture *of = &c->batch->captures[i];
        int end = la_cpu_border(of->n_tokens, c->tid + 1, c->nth);
        for (int k = 0; k < of->n_layers; k++) {
            float *out = of->out + k * of->stride;
            int t = of->layers[k] == layer ? la_cpu_border(of->n_tokens, c->tid, c->nth) : end;
            for (; t < end; t++) {
                const float *row = x.p + (int64_t)(of->first_token + t) * x.ld;
                if (norm.w != NULL) {
                    la_cpu_norm(c, norm, row, out + (int64_t)t * D, D);
                }
                else {
                    memcpy(out + (int64_t)t * D, row, (size_t)D * sizeof(float));
                }
            }
        }
    }
    la_cpu_barrier(c);
}

/* ---- runs on the pool ------------------------------------------------------------------------ */

typedef struct step_job {
    void (*fn)(la_ctx *c);
    const la_ctx *proto;
} step_job;

static void step_thread(void *arg, int tid, int nth)
{
    const step_job *job = arg;
    la_ctx c = *job->proto;
    c.tid = tid;
    c.nth = nth;
    job->fn(&c);
}

/* Where each token of the batch stands: its position and the page that holds it. */
static void place_tokens(la_workspace *w, const la_batch *batch)
{
    for (int s = 0; s < batch->n_spans; s++) {
        const la_span *span = &batch->spans[s];
        for (int i = 0; i < span->n_tokens; i++) {
            int pos = span->first_pos + i;
            w->pos[span->first_token + i] = pos;
            w->page[span->first_token + i] = span->pages[pos / LA_PAGE];
        }
    }
}

static la_status run(la_backend *b, void (*fn)(la_ctx *c), const la_ctx *proto)
{
    place_tokens(proto->w, proto->batch);
    step_job job = {fn, proto};
    la_pool *pool = ((la_cpu_backend *)b)->pool;
    /* Ops over many tokens are long enough for others to finish what a late thread leaves. */
    (proto->batch->n_tokens <= LA_CPU_SHORT_STEP ? la_pool_step : la_pool_run)(pool, step_thread,
                                                                               &job);
    return LA_OK;
}

static void step_threads(la_backend *b, int n)
{
    la_pool_step_threads(((la_cpu_backend *)b)->pool, n);
}

typedef struct pack_job {
    la_pool *pool;
    const la_weight *w;
    const la_source *parts;
    int n_parts, paired;
    uint8_t
        *scratch; /* [threads] of scratch_bytes; the first int stays what la_pack_unit returned */
    size_t scratch_bytes;
} pack_job;

enum { PACK_HEAD = 64 };

static void pack_thread(void *arg, int tid, int nth)
{
    const pack_job *job = arg;
    uint8_t *own = job->scratch + job->scratch_bytes * (size_t)tid;
    int bad = 0;
    (void)nth;
    la_share share;
    la_share_begin(&share, job->pool, tid, job->w->n_units, NULL);
    for (int u; bad == 0 && la_share_next(&share, 1, &u) != 0;) {
        bad = la_pack_unit(job->w, job->parts, job->n_parts, job->paired, u, own + PACK_HEAD);
    }
    memcpy(own, &bad, sizeof bad);
}

static la_status pack(la_backend *b, const la_weight *w, const la_source *parts, int n_parts,
                      int paired)
{
    la_cpu_backend *cpu = (la_cpu_backend *)b;
    size_t each = PACK_HEAD + la_round_up(la_pack_scratch(), 64), total;
    uint8_t *own = NULL;
    if (w->n_units > LA_POOL_MAX_ITEMS) {
        return la_fail(LA_ERR_SHAPE, "weights: %d rows are too many", w->N);
    }
    if (la_size_mul(each, (size_t)b->n_threads, &total)) {
        own = la_map(total);
    }
    if (own == NULL) {
        return la_fail(LA_ERR_MEMORY, "weights: no memory to pack rows of %d", w->K);
    }
    pack_job job = {cpu->pool, w, parts, n_parts, paired, own, each};
    la_pool_run(cpu->pool, pack_thread, &job);
    int bad = 0;
    for (int i = 0; bad == 0 && i < b->n_threads; i++) {
        memcpy(&bad, own + each * (size_t)i, sizeof bad);
    }
    la_unmap(own, total);
    return bad != 0 ? la_pack_failed(bad, n_parts) : LA_OK;
}

/* ---- memory: the process's own --------------------------------------------------------------- */

static void *map(la_backend *b, size_t bytes)
{
    (void)b;
    return la_map(bytes);
}

static void unmap(la_backend *b, void *p, size_t bytes)
{
    (void)b;
    la_unmap(p, bytes);
}

static void *reserve(la_backend *b, size_t bytes)
{
    (void)b;
    return la_reserve(bytes);
}

static int commit(la_backend *b, void *p, size_t bytes)
{
    (void)b;
    return la_commit(p, bytes);
}

static void decommit(la_backend *b, void *p, size_t bytes)
{
    (void)b;
    la_decommit(p, bytes);
}

static void *keep(la_backend *b, void *host, size_t bytes)
{
    (void)b;
    (void)bytes;
    return host;
}

static void drop(la_backend *b, void *kept)
{
    (void)b;
    la_free(kept);
}

static void copy(la_backend *b, void *dst, const void *src, size_t bytes)
{
    (void)b;
    memcpy(dst, src, bytes);
}

static la_status accept(const la_backend *b, const la_model_desc *d, la_recipe recipe)
{
    (void)b;
    (void)recipe;
    return d->fast_math
               ? la_fail(LA_ERR_UNSUPPORTED, "fast_math: backend 'cpu' has exact kernels only")
               : LA_OK;
}

static la_status equip(la_workspace *w, const la_model *m, const la_limits *limits)
{
    (void)w;
    (void)m;
    (void)limits;
    return LA_OK;
}

static void strip(la_workspace *w)
{
    (void)w;
}

/* ---- opening --------------------------------------------------------------------------------- */

static void close_backend(la_backend *b)
{
    la_cpu_backend *cpu = (la_cpu_backend *)b;
    la_pool_free(cpu->pool);
    la_free(cpu->slot_names);
    la_free(cpu->slot_isas);
    la_free(cpu);
}

static void describe(const la_backend *b, la_backend_info *out)
{
    const la_cpu_backend *cpu = (const la_cpu_backend *)b;
    *out = (la_backend_info){.name = b->ops->name,
                             .isa = la_cpu_isa_name((int)cpu->isa),
                             .n_asked = cpu->n_asked,
                             .n_threads = b->n_threads,
                             .n_cpus = la_cpu_count(),
                             .slots = cpu->slot_names,
                             .slot_isa = cpu->slot_isas};
}

static const la_backend_ops cpu_ops = {
    .name = "cpu",
    .rows_in_reach = 1,
    .close = close_backend,
    .describe = describe,
    .probe_read = la_cpu_probe_read,
    .probe_peak = la_cpu_probe_peak,
    .read_weights = la_cpu_read_weights,
    .map = map,
    .unmap = unmap,
    .reserve = reserve,
    .commit = commit,
    .decommit = decommit,
    .release = unmap,
    .keep = keep,
    .drop = drop,
    .copy = copy,
    .accept = accept,
    .pack = pack,
    .unpack = unpack,
    .run = run,
    .step_threads = step_threads,
    .check = check,
    .scratch = scratch,
    .equip = equip,
    .strip = strip,
    .meet = la_cpu_barrier,
    .embed = embed,
    .linear = la_cpu_linear,
    .heads = la_cpu_heads,
    .attend = la_cpu_attend,
    .latent = la_cpu_latent,
    .absorb = la_cpu_absorb,
    .expand = la_cpu_expand,
    .route = la_cpu_route,
    .moe_up = la_cpu_moe_up,
    .moe_down = la_cpu_moe_down,
    .add_norm = add_norm,
    .narrow = narrow,
    .sample = la_cpu_sample,
    .capture = capture,
};

const la_backend_ops *la_backend_cpu_ops(void)
{
    return &cpu_ops;
}

static la_status choose_isa(const char *name, la_isa *out)
{
    int best = LA_ISA_COUNT - 1;
    while (best > LA_ISA_SCALAR && (!la_cpu_has(best) || !la_kernels_have((la_isa)best))) {
        best--;
    }
    *out = (la_isa)best;
    if (name == NULL || strcmp(name, "auto") == 0) {
        return LA_OK;
    }
    int want = la_cpu_isa_from_name(name);
    if (want < 0) {
        return la_fail(LA_ERR_ARGUMENT,
                       "isa: '%s' is unknown; known: auto, scalar, avx2, avx512, vnni, bf16", name);
    }
    if (want > best) {
        return la_fail(LA_ERR_UNSUPPORTED, "isa: this machine has no %s; the best it has is %s",
                       name, la_cpu_isa_name(best));
    }
    *out = (la_isa)want;
    return LA_OK;
}

static la_status name_slots(la_cpu_backend *cpu, const la_isa *which)
{
    int n = la_kernels_count();
    cpu->slot_names = la_alloc((size_t)n + 1, sizeof(char *));
    cpu->slot_isas = la_alloc((size_t)n + 1, sizeof(char *));
    if (cpu->slot_names == NULL || cpu->slot_isas == NULL) {
        return la_fail(LA_ERR_MEMORY, "backend: out of memory");
    }
    for (int i = 0; i < n; i++) {
        cpu->slot_names[i] = la_kernels_name(i);
        cpu->slot_isas[i] = la_cpu_isa_name((int)which[i]);
    }
    return LA_OK;
}

la_status la_backend_cpu_open(const char *isa, int n_threads, la_backend **out)
{
    la_status st;
    *out = NULL;
    la_cpu_backend *cpu = la_alloc(1, sizeof *cpu);
    la_isa *which = la_alloc((size_t)la_kernels_count(), sizeof *which);
    if (cpu == NULL || which == NULL) {
        st = la_fail(LA_ERR_MEMORY, "backend: out of memory");
        goto done;
    }
    LA_TRY(choose_isa(isa, &cpu->isa));
    la_kernels_select(cpu->isa, &cpu->k, which);
    LA_TRY(name_slots(cpu, which));
    cpu->head.ops = &cpu_ops;
    cpu->head.granule = la_page_bytes();
    cpu->n_asked = n_threads;
    cpu->head.n_threads = la_cpu_threads(n_threads);
    LA_TRY(la_pool_create(cpu->head.n_threads, &cpu->pool));
    *out = &cpu->head;
    cpu = NULL;
done:
    if (cpu != NULL) {
        close_backend(&cpu->head);
    }
    la_free(which);
    return st;
}
