/* backend_cpu_draw.c - draws for a backend whose logits come from elsewhere.
 *
 * Owns a CPU backend of its own, with a pool of as many threads as the limits say and the scratch of one
 * tile of rows. Invariant: the same logits give the same tokens, logprobs and ranks as in a step of the
 * CPU backend, since the same code draws. Reached through la_host_api by backends in shared objects.
 */
#include "backend_cpu.h"

struct la_drawer {
    la_backend *b;
    la_workspace w;
};

/* w's parts and, with w->base NULL, the bytes that they need. */
static void lay_out(const la_model_desc *d, int max_rows, int n_threads, la_workspace *w)
{
    la_limits limits = {
        .max_seqs = max_rows, .max_batch_tokens = max_rows, .max_len = d->max_len, .kv_pages = 1};
    la_workspace_layout(la_backend_cpu_ops(), d, &limits, n_threads, w);
}

size_t la_drawer_bytes(const la_model_desc *d, int max_rows, int n_threads)
{
    la_workspace w = {0};
    lay_out(d, max_rows, la_cpu_threads(n_threads), &w);
    return w.bytes;
}

la_status la_drawer_open(const la_model_desc *d, int max_rows, int n_threads, la_drawer **out)
{
    la_status st;
    *out = NULL;
    la_drawer *own = la_alloc(1, sizeof *own);
    if (own == NULL) {
        return la_fail(LA_ERR_MEMORY, "sampling: out of memory");
    }
    LA_TRY(la_backend_cpu_open(NULL, n_threads, &own->b));
    lay_out(d, max_rows, own->b->n_threads, &own->w);
    own->w.base = la_map(own->w.bytes);
    if (own->w.base == NULL) {
        st = la_fail(LA_ERR_MEMORY, "sampling: cannot map %zu bytes", own->w.bytes);
        goto done;
    }
    lay_out(d, max_rows, own->b->n_threads, &own->w);
    *out = own;
    return LA_OK;
done:
    la_drawer_close(own);
    return st;
}

void la_drawer_close(la_drawer *own)
{
    if (own != NULL) {
        la_unmap(own->w.base, own->w.bytes);
        la_backend_close(own->b);
        la_free(own);
    }
}

/* A tile of rows that begins with the batch's first. */
static void draw(la_ctx *c)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    la_rows logits = c->w->logits;
    la_share share;
    la_cpu_share_begin(c, &share, logits.n, NULL);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        k->block_max(logits.p + (int64_t)i * logits.ld, c->m->desc.n_vocab,
                     c->w->best.p + (int64_t)i * c->w->best.ld);
    }
    la_cpu_barrier(c);
    la_cpu_sample(c, 0, logits);
}

void la_drawer_run(la_drawer *own, la_model *m, const la_batch *batch, int first, la_rows logits)
{
    /* No spans: where tokens stand is the other backend's business. */
    la_batch tile = {.n_tokens = logits.n, .n_rows = logits.n, .rows = batch->rows + first};
    la_workspace w = own->w;
    w.logits = logits;
    la_ctx proto = {own->b, m, NULL, &w, &tile, 0, 1};
    (void)own->b->ops->run(own->b, draw, &proto); /* this backend has no device that could fail */
}
