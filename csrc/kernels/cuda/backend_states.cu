/* backend_states.cu - hidden states that requests want, from the device to their own memory.
 *
 * Owns the walk over a step's captures. Rows go to pinned memory as they are made, the final ones normed
 * first, and on to the requests when it is full or the step has been asked for: such a step is waited
 * for, others are not. Invariant: la_cuda_states_end leaves nothing in pinned memory, so that uploads may
 * use it again; a row is in its place before the step's results are. Called by backend.cu.
 */
#include "backend_states.h"

#include <string.h>

/* What is in pinned memory to where it is wanted. */
static void flush(la_cuda *cuda, la_cuda_states *own)
{
    if (own->n > 0 && la_rt_stream_wait(cuda->s) == 0) {
        for (int i = 0; i < own->n; i++) {
            const la_cuda_piece *p = &own->piece[i];
            for (int t = 0; t < p->n; t++) {
                memcpy(p->out + (int64_t)t * p->D, cuda->staging + p->at + (size_t)t * p->pitch,
                       (size_t)p->D * sizeof(float));
            }
        }
    }
    own->n = 0;
    own->used = 0;
}

/* Rows x to out [x.n, D], in as many pieces as pinned memory makes of them. */
static void fetch(la_cuda *cuda, la_cuda_states *own, la_rows x, int D, float *out)
{
    size_t pitch = (size_t)x.ld * sizeof(float); /* accept saw to it that there is room for one */
    for (int first = 0; first < x.n;) {
        if (own->n == LA_STATES_PIECES || LA_CUDA_STAGING - own->used < pitch) {
            flush(cuda, own);
        }
        size_t room = (LA_CUDA_STAGING - own->used) / pitch;
        int n = (size_t)(x.n - first) < room ? x.n - first : (int)room;
        size_t bytes = (size_t)n * pitch;
        la_rt_copy(cuda->s, cuda->staging + own->used, x.p + (int64_t)first * x.ld, bytes,
                   LA_RT_OUT);
        own->piece[own->n++] = la_cuda_piece{own->used, pitch, n, D, out + (int64_t)first * D};
        own->used += bytes;
        first += n;
    }
}

/* norm(x) in rows that nobody needs between two layers. */
static la_rows normed(const la_ctx *c, la_rows x, la_norm norm)
{
    const la_model_desc *d = &c->m->desc;
    la_rows y = c->w->y;
    la_norm_rows_args a = {x.p,  x.ld, norm.w,     norm.b,  y.p,
                           y.ld, x.n,  d->d_model, d->norm, d->norm_eps};
    la_launch_norm_rows(la_cuda_of(c->b)->s, &a);
    y.n = x.n;
    return y;
}

void la_cuda_states_take(la_cuda_states *own, const la_ctx *c, int layer, la_rows x, la_norm norm)
{
    for (int i = 0; i < c->batch->n_captures; i++) {
        const la_capture *of = &c->batch->captures[i];
        la_rows run = {x.p + (int64_t)of->first_token * x.ld, of->n_tokens, x.ld};
        for (int k = 0; k < of->n_layers; k++) {
            if (of->layers[k] == layer) {
                la_rows rows = norm.w != NULL ? normed(c, run, norm) : run;
                fetch(la_cuda_of(c->b), own, rows, c->m->desc.d_model, of->out + k * of->stride);
            }
        }
    }
}

void la_cuda_states_end(la_cuda_states *own, la_cuda *cuda)
{
    flush(cuda, own);
}
