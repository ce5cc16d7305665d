/* py_kernels_attend.c - one call of attention over a user's pages: arguments, buffers, threads.
 *
 * Invariant: everything that `share` reads was checked here against what the pages hold, with the
 * GIL; it runs without. Called by py_kernels_cache.c, py_kernels_pages.c and py_kernels_latent.c.
 */
#include "py_kernels_attend.h"

#include <limits.h>

#include "../base/base.h"

la_attend_room py_attend_room(const py_attend_job *job, int tid)
{
    la_attend_room room;
    la_attend_room_at(job->scratch + job->pitch * (size_t)tid, PY_ATTEND_ROWS, job->walk.d, &room);
    return room;
}

static la_status run(py_attend_job *job, void (*share)(void *, int, int), int threads)
{
    la_pool *pool = NULL;
    la_status st;
    size_t bytes = la_attend_room_bytes(PY_ATTEND_ROWS, job->walk.d);
    if (job->walk.dv != 0) {
        bytes += la_mla_scratch(job->walk.d, job->walk.dv);
    }
    job->pitch = la_round_up(bytes, 64);
    job->scratch = la_map(job->pitch * (size_t)threads);
    if (job->scratch == NULL) {
        st = la_fail(LA_ERR_MEMORY, "threads: no memory for %d", threads);
        goto done;
    }
    LA_TRY(py_kernels_pool(threads, &pool));
    py_kernels_run(pool, share, job);
done:
    la_pool_free(pool);
    la_unmap(job->scratch, job->pitch * (size_t)threads);
    return st;
}

int py_attend_check_positions(const py_state *state, const py_attend_job *job)
{
    for (int i = 0; i < job->T; i++) {
        if (job->pos[i] < 0 || job->pos[i] >= job->length) {
            py_raise_format(state, LA_ERR_ARGUMENT, "positions: %d is not in 0..%d",
                            (int)job->pos[i], job->length - 1);
            return -1;
        }
    }
    return 0;
}

/* Sizes of the buffers against the job. 0, or -1 with an exception set. */
static int check(const py_state *state, const py_attend_job *job, const Py_buffer *q,
                 const Py_buffer *out)
{
    int64_t rows = (int64_t)job->T * job->H;
    int d = job->walk.d, dv = la_attend_out(&job->walk);
    if (job->H < 1 || job->H > PY_ATTEND_HEADS) {
        py_raise_format(state, LA_ERR_ARGUMENT, "q: %d heads are not in 1..%d", job->H,
                        (int)PY_ATTEND_HEADS);
        return -1;
    }
    /* shares count rows, and step by tiles of all threads, in int */
    if (rows > INT_MAX - PY_ATTEND_ROWS * PY_KERNELS_THREADS) {
        py_raise_format(state, LA_ERR_ARGUMENT, "q: %d tokens of %d heads are too many", job->T,
                        job->H);
        return -1;
    }
    if (q->len != (Py_ssize_t)(rows * d * 4) || out->len != (Py_ssize_t)(rows * dv * 4) ||
        out->readonly) {
        py_raise_format(state, LA_ERR_ARGUMENT,
                        "q, out: expected %d tokens of [%d, %d] and [%d, %d]", job->T, job->H, d,
                        job->H, dv);
        return -1;
    }
    if (py_attend_check_positions(state, job) < 0) {
        return -1;
    }
    return job->check != NULL ? job->check(state, job) : 0;
}

/* The float buffers of a call that are open. */
typedef struct views {
    Py_buffer of[3];
    int n;
} views;

static Py_buffer *view_of(views *open, PyObject *obj, const char *name)
{
    Py_buffer *view = &open->of[open->n];
    if (py_kernels_floats(obj, name, view) < 0) {
        return NULL;
    }
    open->n++;
    return view;
}

/* Opens and checks what the call brings. 0, or -1 with an exception set. */
static int enter(py_state *state, const py_attend_call *call, py_attend_job *job, views *open)
{
    const Py_buffer *q = view_of(open, call->q, "q");
    const Py_buffer *out = q != NULL ? view_of(open, call->out, "out") : NULL;
    if (out == NULL || check(state, job, q, out) < 0) {
        return -1;
    }
    if (call->sinks != Py_None) {
        const Py_buffer *sinks = view_of(open, call->sinks, "sinks");
        if (sinks == NULL) {
            return -1;
        }
        if (sinks->len != (Py_ssize_t)job->H * 4) {
            py_raise_format(state, LA_ERR_ARGUMENT, "sinks: %zd values for %d heads",
                            sinks->len / 4, job->H);
            return -1;
        }
        job->walk.sinks = sinks->buf;
        job->walk.heads = job->H;
    }
    job->q = q->buf;
    job->out = out->buf;
    return 0;
}

PyObject *py_attend(py_state *state, const py_attend_call *call, py_attend_job *job,
                    void (*share)(void *job, int tid, int nth))
{
    la_kernels t;
    views open = {.n = 0};
    int threads = call->threads;
    la_status st = LA_OK;
    if (py_kernels_isa(call->isa, &t) < 0 || py_kernels_threads(&threads) < 0) {
        return NULL;
    }
    int32_t *pos = py_ids_from(state, call->positions, "positions", &job->T);
    if (pos == NULL) {
        return NULL;
    }
    job->walk.k = &t;
    job->pos = pos;
    int ready = enter(state, call, job, &open) == 0;
    if (ready) {
        Py_BEGIN_ALLOW_THREADS
        st = run(job, share, threads);
        Py_END_ALLOW_THREADS
    }
    while (open.n > 0) {
        PyBuffer_Release(&open.of[--open.n]);
    }
    PyMem_Free(pos);
    if (!ready || st != LA_OK) {
        return ready ? py_raise(state, st) : NULL;
    }
    Py_RETURN_NONE;
}
