/* backend_cpu_draw.c - draws for a backend whose logits come from elsewhere.
 *
 * Owns a CPU backend of its own, with a pool and the scratch of one tile of rows. Invariant: the same
 * logits give the same tokens, logprobs and ranks as in a step of the CPU backend, since the same code
 * draws. Reached through la_host_api by backends in shared objects.
 */
#include "backend_cpu.h"

struct la_drawer {
    la_backend *b;
    la_workspace w;
};

la_status la_drawer_open(const la_model_desc *d, int max_rows, la_drawer **out)
{
    la_status st;
    la_limits limits = {max_rows, max_rows, d->max_len, 1};
    *out = NULL;
    la_drawer *own = la_alloc(1, sizeof *own);
    if (own == NULL) {
        return la_fail(LA_ERR_MEMORY, "sampling: out of memory");
    }
    LA_TRY(la_backend_cpu_open(NULL, 0, &own->b));
    la_workspace_layout(own->b->ops, d, &limits, own->b->n_threads, &own->w);
    own->w.base = la_map(own->w.bytes);
    if (own->w.base == NULL) {
        st = la_fail(LA_ERR_MEMORY, "sampling: cannot map %zu bytes", own->w.bytes);
        goto done;
    }
    la_workspace_layout(own->b->ops, d, &limits, own->b->n_threads, &own->w);
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
