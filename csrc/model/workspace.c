/* workspace.c - the buffers of a step and the KV page pool: sizes, reservation, commitment.
 *
 * Owns la_workspace and la_kv. Invariant: everything is sized by la_limits when an engine is created;
 * a step allocates nothing. la_model_plan uses the same layout function with no memory behind it, so the
 * plan and the truth cannot differ. Called by the engine through model.h.
 */
#include "backend.h"

int la_head_granule(int d_head)
{
    int a = d_head, b = LA_UNIT;
    while (b != 0) {
        int t = a % b;
        a = b;
        b = t;
    }
    return d_head / a * LA_UNIT;
}

la_kv_layout la_kv_layout_of(const la_model_desc *d)
{
    la_kv_form form = (la_kv_form)d->kv_form;
    la_kv_layout at;
    if (d->attn == LA_ATTN_LATENT) {
        size_t bytes = la_kv_latent_bytes(form, d->kv_rank, d->d_rope);
        return (la_kv_layout){bytes, bytes, bytes, bytes * (size_t)d->n_layers};
    }
    at.k_bytes = la_kv_k_bytes(form, d->d_head);
    at.head_bytes = at.k_bytes + la_kv_v_bytes(form, d->d_head);
    at.layer_bytes = at.head_bytes * (size_t)d->n_kv_heads;
    at.page_bytes = at.layer_bytes * (size_t)d->n_layers;
    return at;
}

/* Takes `bytes` from the end of what is laid out so far. */
static uint8_t *carve(la_workspace *w, size_t bytes)
{
    uint8_t *p = w->base != NULL ? w->base + w->bytes : NULL;
    w->bytes += la_round_up(bytes, 64);
    return p;
}

static la_rows carve_rows(la_workspace *w, int n, int cols)
{
    la_rows r = {NULL, n, (int)la_round_up((size_t)cols, 16)};
    r.p = (float *)(void *)carve(w, (size_t)n * (size_t)r.ld * sizeof(float));
    return r;
}

static int32_t *carve_ints(la_workspace *w, size_t n)
{
    return (int32_t *)(void *)carve(w, n * sizeof(int32_t));
}

/* What layers with experts need. */
static void carve_experts(const la_model_desc *d, int T, la_workspace *w)
{
    if (d->n_experts == 0) {
        return;
    }
    size_t pairs = (size_t)T * (size_t)d->n_experts_used;
    w->router = carve_rows(w, T, d->n_experts + d->shared_gate);
    w->expert_h = carve_rows(w, (int)pairs, d->d_expert);
    w->shared_h = carve_rows(w, T, d->d_shared);
    w->routes.expert = carve_ints(w, pairs);
    w->routes.weight = (float *)(void *)carve(w, pairs * sizeof(float));
    w->routes.row = carve_ints(w, pairs);
    w->routes.entry = carve_ints(w, pairs);
    w->routes.first = carve_ints(w, (size_t)d->n_experts + 1);
    size_t counters = (size_t)d->n_layers * (size_t)d->n_experts;
    w->expert_load = (int64_t *)(void *)carve(w, counters * sizeof(int64_t));
}

/* Is the feed-forward buffer needed, or have all layers experts? */
static int has_dense_layer(const la_model_desc *d)
{
    for (int l = 0; l < d->n_layers; l++) {
        if (!d->layers[l].moe) {
            return 1;
        }
    }
    return 0;
}

/* Rows of the tile of logits: a small vocabulary's head is read for more of them at once. */
static int logit_rows(const la_backend_ops *ops, const la_model_desc *d, int T)
{
    int rows = ops->rows_in_reach ? LA_LOGIT_FLOATS / d->n_vocab : LA_LOGIT_ROWS;
    rows = rows < LA_LOGIT_ROWS ? LA_LOGIT_ROWS : rows > LA_LOGIT_MOST ? LA_LOGIT_MOST : rows;
    return T < rows ? T : rows;
}

void la_workspace_layout(const la_backend_ops *ops, const la_model_desc *d, const la_limits *limits,
                         int n_threads, la_workspace *w)
{
    int T = limits->max_batch_tokens;
    int hd = d->n_heads * d->d_head, raw = (d->n_heads + 2 * d->n_kv_heads) * d->d_head;
    int latent = d->attn == LA_ATTN_LATENT, wide = d->kv_rank + d->d_rope;
    if (latent) {
        raw = (d->q_rank != 0 ? d->q_rank : hd) + wide;
    }
    w->bytes = 0;
    w->max_tokens = T;
    w->logit_rows = logit_rows(ops, d, T);
    w->x = carve_rows(w, T, d->d_model);
    w->y = carve_rows(w, T, d->d_model > raw ? d->d_model : raw);
    w->q = carve_rows(w, T, latent && d->q_rank == 0 ? 0 : hd); /* 0: they lie in y */
    w->a = carve_rows(w, T, latent ? d->n_heads * d->d_v : hd);
    w->u = carve_rows(w, T, d->q_rank);
    w->z = carve_rows(w, T, latent ? d->n_heads * wide : 0);
    w->h = carve_rows(w, has_dense_layer(d) ? T : 0, d->d_ffn);
    carve_experts(d, T, w);
    w->logits = carve_rows(w, w->logit_rows, d->n_vocab);
    w->best = carve_rows(w, w->logit_rows, la_ceil_div(d->n_vocab, LA_UNIT));
    size_t slices = (size_t)la_ceil_div(d->n_vocab, LA_SLICE);
    w->mass = (la_mass *)(void *)carve(w, (size_t)w->logit_rows * slices * sizeof *w->mass);
    w->pos = (int *)(void *)carve(w, (size_t)T * sizeof(int));
    w->page = (int32_t *)(void *)carve(w, (size_t)T * sizeof(int32_t));
    ops->scratch(d, limits, &w->shared_bytes, &w->local_bytes);
    w->shared = carve(w, w->shared_bytes);
    w->local = carve(w, w->local_bytes * (size_t)n_threads);
}

la_status la_workspace_create(la_model *m, const la_limits *limits, la_workspace **out)
{
    *out = NULL;
    la_workspace *w = la_alloc(1, sizeof *w);
    if (w == NULL) {
        return la_fail(LA_ERR_MEMORY, "workspace: out of memory");
    }
    la_workspace_layout(m->b->ops, &m->desc, limits, m->b->n_threads, w);
    size_t bytes = w->bytes;
    w->b = m->b;
    w->base = m->b->ops->map(m->b, bytes);
    if (w->base == NULL) {
        la_free(w);
        return la_fail(LA_ERR_MEMORY, "workspace: cannot map %zu bytes", bytes);
    }
    la_workspace_layout(m->b->ops, &m->desc, limits, m->b->n_threads, w);
    la_status st = m->b->ops->equip(w, m, limits);
    if (st != LA_OK) {
        m->b->ops->unmap(m->b, w->base, bytes);
        la_free(w);
        return st;
    }
    *out = w;
    return LA_OK;
}

void la_workspace_free(la_workspace *w)
{
    if (w != NULL) {
        w->b->ops->strip(w);
        w->b->ops->unmap(w->b, w->base, w->bytes);
        la_free(w);
    }
}

const int64_t *la_workspace_expert_load(const la_workspace *w)
{
    return w->expert_load;
}

size_t la_workspace_bytes(const la_workspace *w)
{
    return w->bytes;
}

la_status la_kv_create(la_model *m, int64_t max_pages, la_kv **out)
{
    *out = NULL;
    size_t bytes;
    la_kv_layout at = la_kv_layout_of(&m->desc);
    if (max_pages < 1 || max_pages > INT32_MAX ||
        !la_size_mul((size_t)max_pages, at.page_bytes, &bytes)) {
        return la_fail(LA_ERR_ARGUMENT, "kv_pages: %lld is out of range", (long long)max_pages);
    }
    la_backend *b = m->b;
    la_kv *kv = la_alloc(1, sizeof *kv);
    uint8_t *base = b->ops->reserve(b, bytes);
    if (kv == NULL || base == NULL) {
        b->ops->release(b, base, bytes);
        la_free(kv);
        return la_fail(LA_ERR_MEMORY, "kv_pages: cannot reserve %zu bytes", bytes);
    }
    /* A slab of about 8 MiB keeps commits rare and the surplus small. */
    int64_t slab = (int64_t)(((size_t)8 << 20) / at.page_bytes);
    *kv = (la_kv){b, at, base, max_pages, 0, slab < 1 ? 1 : slab};
    *out = kv;
    return LA_OK;
}

void la_kv_free(la_kv *kv)
{
    if (kv != NULL) {
        kv->b->ops->release(kv->b, kv->base, (size_t)kv->max_pages * kv->at.page_bytes);
        la_free(kv);
    }
}

static int64_t slab_end(const la_kv *kv, int64_t n)
{
    int64_t end = (n + kv->slab - 1) / kv->slab * kv->slab;
    return end < kv->max_pages ? end : kv->max_pages;
}

/* Byte offset of page n rounded up to a granule: commits must not share one. */
static size_t commit_edge(const la_kv *kv, int64_t n)
{
    return la_round_up((size_t)n * kv->at.page_bytes, kv->b->granule);
}

static la_status short_of_memory(const la_kv *kv, int64_t n, size_t bytes)
{
    la_backend_info info;
    size_t page = kv->at.page_bytes;
    kv->b->ops->describe(kv->b, &info);
    if (info.device == NULL) {
        return la_fail(
            LA_ERR_MEMORY,
            "kv: cannot commit %zu bytes for page %lld beside the %zu of %zu that are there", bytes,
            (long long)n, (size_t)kv->committed * page, (size_t)kv->max_pages * page);
    }
    return la_fail(
        LA_ERR_MEMORY,
        "kv: cannot commit %zu bytes for page %lld beside the %zu of %zu that are there: %zu "
        "bytes free on %s; lower kv_cache_memory_bytes, or leave more of the device",
        bytes, (long long)n, (size_t)kv->committed * page, (size_t)kv->max_pages * page,
        info.memory_free, info.device);
}

la_status la_kv_commit(la_kv *kv, int64_t n)
{
    if (n <= kv->committed) {
        return LA_OK;
    }
    if (n > kv->max_pages) {
        return la_fail(LA_ERR_ARGUMENT, "kv: page %lld of %lld", (long long)n,
                       (long long)kv->max_pages);
    }
    const int64_t ends[] = {slab_end(kv, n),
                            n}; /* a slab, or the pages themselves where memory is short */
    size_t from = commit_edge(kv, kv->committed), to = from;
    int st = -1;
    for (int i = 0; i < 2 && st == -1; i++) {
        to = commit_edge(kv, ends[i]);
        st = to > from ? kv->b->ops->commit(kv->b, kv->base + from, to - from) : 0;
        kv->committed = st == 0 ? ends[i] : kv->committed;
    }
    return st == -1 ? short_of_memory(kv, n, to - from) : (la_status)st;
}

void la_kv_trim(la_kv *kv, int64_t n)
{
    int64_t end = slab_end(kv, n);
    if (end >= kv->committed) {
        return;
    }
    size_t from = commit_edge(kv, end), to = commit_edge(kv, kv->committed);
    if (to > from) {
        kv->b->ops->decommit(kv->b, kv->base + from, to - from);
    }
    kv->committed = end;
}

int64_t la_kv_committed(const la_kv *kv)
{
    return kv->committed;
}

size_t la_kv_page_bytes(const la_kv *kv)
{
    return kv->at.page_bytes;
}

void la_kv_copy(la_kv *kv, int32_t src, int32_t dst)
{
    size_t n = kv->at.page_bytes;
    kv->b->ops->copy(kv->b, kv->base + (size_t)dst * n, kv->base + (size_t)src * n, n);
}

la_status la_kv_read(const la_kv *kv, const int32_t *pages, int n, size_t *bytes, uint8_t *out)
{
    size_t layer = kv->at.layer_bytes, room = *bytes;
    *bytes = (size_t)n * kv->at.page_bytes;
    if (!kv->b->ops->rows_in_reach) {
        return la_fail(LA_ERR_UNSUPPORTED, "pages: they lie on a device in this version");
    }
    if (out != NULL && room != *bytes) {
        return la_fail(LA_ERR_ARGUMENT, "out: expected %zu bytes, got %zu", *bytes, room);
    }
    for (size_t at = 0; out != NULL && at < kv->at.page_bytes; at += layer) {
        for (int i = 0; i < n; i++, out += layer) {
            memcpy(out, kv->base + (size_t)pages[i] * kv->at.page_bytes + at, layer);
        }
    }
    return LA_OK;
}
