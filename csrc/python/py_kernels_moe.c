/* py_kernels_moe.c - routing and products of many experts on user tensors.
 *
 * Owns route, one token's logits at a time by kernels/route.h, and grouped_linear, which multiplies segments
 * of rows each with an expert of its own; both layouts of DeepGEMM are lists of segments. Invariant: rows
 * outside the segments are neither read nor written; a row's bits are those of Packed.linear. Wrapped by
 * python/llmaccel/kernels/experts.py.
 */
#include "py_module.h"

#include <limits.h>

#include "../base/base.h"
#include "../base/pool.h"
#include "../kernels/act_rows.h"
#include "../kernels/route.h"
#include "../model/pack.h"

#include "py_kernels.h"
#include "py_kernels_call.h"

/* ---- routing ----------------------------------------------------------------------------------- */

typedef struct route_job {
    la_route_rule rule;
    const float *logits; /* [T][E] */
    int32_t *experts;    /* [T][k] */
    float *weights;      /* [T][k] */
    int T;
} route_job;

static la_status route_run(const la_kernels *k, const route_job *job)
{
    void *room = la_alloc(la_route_room(job->rule.n_experts), 1);
    if (room == NULL) {
        return la_fail(LA_ERR_MEMORY, "route: no memory for %d experts", job->rule.n_experts);
    }
    for (int64_t t = 0; t < job->T; t++) {
        la_route_row(k, &job->rule, job->logits + t * job->rule.n_experts, room,
                     job->experts + t * job->rule.n_used, job->weights + t * job->rule.n_used);
    }
    la_free(room);
    return LA_OK;
}

static void check_rule(py_call *c, const la_route_rule *r, int T)
{
    py_call_range(c, "T", T, 0, INT_MAX);
    py_call_range(c, "E", r->n_experts, 1, LA_MAX_EXPERTS);
    py_call_range(c, "k", r->n_used, 1, r->n_experts);
    py_call_range(c, "groups", r->groups, 1, r->n_experts);
    py_call_range(c, "groups_used", r->groups_used, 1, r->groups);
    int size = c->ok ? r->n_experts / r->groups : 1;
    py_call_range(c, "group_best", r->group_best, 1, size < 2 ? size : 2);
    if (c->ok && r->n_experts % r->groups != 0) {
        py_call_fail(c, PyExc_ValueError, "groups: %d do not divide %d experts", r->groups,
                     r->n_experts);
    }
    if (c->ok && size * r->groups_used < r->n_used) {
        py_call_fail(c, PyExc_ValueError, "groups_used: %d groups of %d experts offer no %d",
                     r->groups_used, size, r->n_used);
    }
}

static PyObject *route(PyObject *module, PyObject *args)
{
    const char *isa;
    PyObject *logits, *correction, *experts, *weights;
    py_call c;
    route_job job = {.T = 0};
    la_route_rule *r = &job.rule;
    if (!PyArg_ParseTuple(args, "sOOOOi(iippfiii):route", &isa, &logits, &correction, &experts,
                          &weights, &job.T, &r->n_experts, &r->n_used, &r->sigmoid, &r->norm,
                          &r->scale, &r->groups, &r->groups_used, &r->group_best)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    check_rule(&c, r, job.T);
    Py_ssize_t all = (Py_ssize_t)job.T * r->n_experts, used = (Py_ssize_t)job.T * r->n_used;
    job.logits = py_call_in(&c, logits, "logits", all);
    job.experts = py_call_ints_out(&c, experts, "experts", used);
    job.weights = py_call_out(&c, weights, "weights", used);
    if (correction != Py_None) {
        r->correction = py_call_in(&c, correction, "correction", r->n_experts);
    }
    la_status st = LA_OK;
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        st = route_run(&c.t, &job);
        Py_END_ALLOW_THREADS
    }
    PyObject *done = py_call_end(&c);
    if (st != LA_OK) {
        Py_XDECREF(done);
        return py_raise(py_state_of(module), st);
    }
    return done;
}

/* ---- grouped products ---------------------------------------------------------------------------- */

/* Rows row0 .. row0 + rows - 1 of x and y meet one expert; items first .. of the list. */
typedef struct segment {
    int expert, row0, rows;
    int blocks, first;
} segment;

typedef struct grouped_job {
    const la_kernels *k;
    la_gemm_fn fn;
    const la_weight *const *w; /* [n_experts], of one shape and format */
    segment *segments;         /* [n] */
    int n, items, at_once;
    la_act_rows rows; /* of all of x, though only those of segments are converted */
    const float *x;   /* [M][K] */
    float *y;         /* [M][N] */
    int M;
    float *tiles;  /* [threads][PY_TILE_FLOATS] */
    la_pool *pool; /* NULL: one thread */
} grouped_job;

static void convert_share(void *arg, int tid, int nth)
{
    const grouped_job *job = arg;
    for (int i = 0; i < job->n; i++) {
        const segment *s = &job->segments[i];
        int end = (int)((int64_t)s->rows * (tid + 1) / nth);
        for (int r = (int)((int64_t)s->rows * tid / nth); r < end; r++) {
            int m = s->row0 + r;
            la_act_rows_convert(job->k, &job->rows, m, job->x + (int64_t)m * job->rows.K);
        }
    }
}

/* The units behind u of a segment's expert, or the first ones of its next block of rows or the next
 * segment, are what this thread reads next. */
static void hint_next(const grouped_job *job, const segment *s, int b, int u, la_gemm *g)
{
    const la_weight *w = job->w[s->expert];
    if (u == w->n_units) {
        s += b + 1 == s->blocks;
        if (s == job->segments + job->n) {
            return;
        }
        w = job->w[s->expert];
        u = 0;
    }
    int units = w->n_units - u < g->n_units ? w->n_units - u : g->n_units;
    g->next = w->data + (size_t)u * w->unit_bytes;
    g->next_bytes = (size_t)units * w->unit_bytes;
}

static void multiply_units(const grouped_job *job, const segment *s, int b, int u, int n,
                           float *tile)
{
    const la_weight *w = job->w[s->expert];
    const la_act_rows *rows = &job->rows;
    int begin = (int)((int64_t)s->rows * b / s->blocks), row0 = s->row0 + begin;
    int M = (int)((int64_t)s->rows * (b + 1) / s->blocks) - begin;
    la_units at = {w->data + (size_t)u * w->unit_bytes, w->unit_bytes, n, w->f};
    la_gemm g = la_act_rows_gemm(rows, row0, M, at, tile);
    hint_next(job, s, b, u + n, &g);
    job->fn(&g);
    int left = w->N - u * LA_UNIT, cols = left < g.ldc ? left : g.ldc;
    for (int r = 0; r < M; r++) {
        memcpy(job->y + (int64_t)(row0 + r) * w->N + u * LA_UNIT,
               la_act_rows_result(job->k, rows, &g, r), (size_t)cols * sizeof(float));
    }
}

/* The last segment that begins at or before an item. */
static int segment_of(const grouped_job *job, int item)
{
    int lo = 0, hi = job->n - 1;
    while (lo < hi) {
        int mid = (lo + hi + 1) / 2;
        if (job->segments[mid].first <= item) {
            lo = mid;
        }
        else {
            hi = mid - 1;
        }
    }
    return lo;
}

static void multiply_items(const grouped_job *job, int first, int n, float *tile)
{
    for (int i = segment_of(job, first); n > 0; i++) {
        const segment *s = &job->segments[i];
        int units = job->w[s->expert]->n_units;
        for (int at = first - s->first; n > 0 && at < s->blocks * units;) {
            int u = at % units, most = py_kernels_units(s->rows, job->rows.lanes);
            int run = units - u < n ? units - u : n;
            run = run < most ? run : most;
            multiply_units(job, s, at / units, u, run, tile);
            at += run;
            first += run;
            n -= run;
        }
    }
}

static void multiply_share(void *arg, int tid, int nth)
{
    const grouped_job *job = arg;
    float *tile = job->tiles + (size_t)tid * PY_TILE_FLOATS;
    (void)nth;
    if (job->pool == NULL) {
        multiply_items(job, 0, job->items, tile);
        return;
    }
    la_share share;
    la_share_begin(&share, job->pool, tid, job->items, NULL);
    for (int n, first; (n = la_share_next(&share, job->at_once, &first)) != 0;) {
        multiply_items(job, first, n, tile);
    }
}

static la_status grouped_run(grouped_job *job, int threads)
{
    la_status st = LA_OK;
    la_act_rows *rows = &job->rows;
    size_t row_bytes = 0, lanes = (size_t)job->M * (size_t)rows->lanes;
    size_t metas = lanes * (size_t)rows->groups;
    size_t tile_bytes = (size_t)threads * PY_TILE_FLOATS * sizeof(float);
    job->tiles = la_map(tile_bytes);
    if (la_size_mul(rows->pitch, lanes, &row_bytes)) {
        rows->a = la_map(row_bytes);
    }
    rows->meta = metas != 0 ? la_alloc(metas, sizeof *rows->meta) : NULL;
    if (job->tiles == NULL || rows->a == NULL || (metas != 0 && rows->meta == NULL)) {
        st = la_fail(LA_ERR_MEMORY, "x: no memory for %d converted rows", job->M);
        goto done;
    }
    LA_TRY(py_kernels_pool(threads, &job->pool));
    py_kernels_run(job->pool, convert_share, job);
    py_kernels_run(job->pool, multiply_share, job);
done:
    la_pool_free(job->pool);
    la_unmap(rows->a, row_bytes);
    la_unmap(job->tiles, tile_bytes);
    la_free(rows->meta);
    return st;
}

/* The weights of a call, which its own references keep alive: another thread may empty the sequence that
 * they came in, or nobody else may hold them. */
typedef struct expert_list {
    PyObject *held;       /* tuple of Packed */
    const la_weight **at; /* [n], of one shape and format */
    int n;
} expert_list;

static void experts_end(expert_list *e)
{
    PyMem_Free(e->at);
    Py_XDECREF(e->held);
}

static void experts_begin(py_call *c, py_state *state, PyObject *sequence, expert_list *e)
{
    *e = (expert_list){NULL, NULL, 0};
    if (!c->ok) {
        return;
    }
    if (Py_TYPE(sequence)->tp_iter == NULL && !PySequence_Check(sequence)) {
        py_call_fail(c, PyExc_TypeError, "experts: expected a sequence of Packed, got %.100s",
                     Py_TYPE(sequence)->tp_name);
        return;
    }
    e->held = PySequence_Tuple(sequence);
    Py_ssize_t n = e->held != NULL ? PyTuple_GET_SIZE(e->held) : 0;
    if (e->held == NULL) {
        c->ok = 0;
        return;
    }
    if (n < 1 || n > INT_MAX) {
        py_call_fail(c, PyExc_ValueError, "experts: %zd are not in 1..%d", n, INT_MAX);
        return;
    }
    e->at = PyMem_Calloc((size_t)n, sizeof *e->at);
    if (e->at == NULL) {
        PyErr_NoMemory();
        c->ok = 0;
        return;
    }
    for (e->n = 0; c->ok && e->n < n; e->n++) {
        const la_weight *w = py_kernels_weight(state, PyTuple_GET_ITEM(e->held, e->n), "experts");
        e->at[e->n] = w;
        const la_weight *first = e->at[0];
        if (w == NULL) {
            c->ok = 0;
        }
        else if (w->N != first->N || w->K != first->K ||
                 memcmp(&w->f, &first->f, sizeof w->f) != 0) {
            py_call_fail(c, PyExc_ValueError, "experts: %d has another shape or format than 0",
                         e->n);
        }
    }
}

/* Segments [n][3] of (expert, row0, rows), checked, with their items. */
static void segments_from(py_call *c, const int32_t *flat, int n_experts, grouped_job *job)
{
    if (!c->ok) {
        return;
    }
    int64_t items = 0;
    int most = PY_TILE_ROWS / job->rows.lanes;
    for (int i = 0; i < job->n; i++) {
        segment *s = &job->segments[i];
        *s = (segment){flat[3 * i], flat[3 * i + 1], flat[3 * i + 2], 0, (int)items};
        if (s->expert < 0 || s->expert >= n_experts || s->row0 < 0 || s->rows < 1 ||
            s->rows > job->M - s->row0) {
            py_call_fail(c, PyExc_ValueError,
                         "segments: %d is %d rows from %d on for expert %d, of %d rows and %d "
                         "experts",
                         i, s->rows, s->row0, s->expert, job->M, n_experts);
            return;
        }
        s->blocks = (s->rows + most - 1) / most;
        items += (int64_t)s->blocks * job->w[s->expert]->n_units;
        if (items > LA_POOL_MAX_ITEMS) {
            py_call_fail(c, PyExc_ValueError, "segments: too many rows for one call");
            return;
        }
        int units = py_kernels_units(s->rows, job->rows.lanes);
        job->at_once = units < job->at_once ? units : job->at_once;
    }
    job->items = (int)items;
}

/* What a call says beside its buffers. */
typedef struct grouped_numbers {
    const char *act;
    int M, n, threads;
} grouped_numbers;

static void grouped_begin(py_call *c, const grouped_numbers *given, const expert_list *e,
                          grouped_job *job)
{
    int form = c->ok ? py_kernels_form(given->act) : -1;
    c->ok = form >= 0;
    py_call_range(c, "M", given->M, 1, INT_MAX);
    py_call_range(c, "n", given->n, 1, INT_MAX);
    if (!c->ok) {
        return;
    }
    const la_weight *first = e->at[0];
    *job = (grouped_job){
        .k = &c->t, .w = e->at, .M = given->M, .n = given->n, .at_once = PY_FEW_UNITS};
    job->rows = la_act_rows_plan((la_act_form)form, first->K, first->f.group);
    job->fn = la_kernels_gemm(&c->t, first->f, job->rows.form);
    if (job->fn == NULL) {
        py_call_fail(c, PyExc_ValueError, "activation: no product of %s rows with these experts",
                     given->act);
        return;
    }
    job->segments = PyMem_Calloc((size_t)given->n, sizeof *job->segments);
    if (job->segments == NULL) {
        PyErr_NoMemory();
        c->ok = 0;
    }
}

static PyObject *grouped_linear(PyObject *module, PyObject *args)
{
    const char *isa;
    PyObject *sequence, *x, *y, *flat;
    grouped_numbers given;
    py_call c;
    if (!PyArg_ParseTuple(args, "ssOOOOiii:grouped_linear", &isa, &given.act, &sequence, &x, &y,
                          &flat, &given.M, &given.n, &given.threads) ||
        py_kernels_threads(&given.threads) < 0) {
        return NULL;
    }
    py_state *state = py_state_of(module);
    grouped_job job = {.n = 0};
    expert_list experts;
    py_call_begin(&c, isa);
    experts_begin(&c, state, sequence, &experts);
    grouped_begin(&c, &given, &experts, &job);
    Py_ssize_t rows = given.M, K = c.ok ? experts.at[0]->K : 0, N = c.ok ? experts.at[0]->N : 0;
    job.x = py_call_in(&c, x, "x", rows * K);
    job.y = py_call_out(&c, y, "y", rows * N);
    segments_from(&c, py_call_ints(&c, flat, "segments", (Py_ssize_t)given.n * 3), experts.n, &job);
    la_status st = LA_OK;
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        st = grouped_run(&job, given.threads);
        Py_END_ALLOW_THREADS
    }
    PyObject *done = py_call_end(&c);
    PyMem_Free(job.segments);
    experts_end(&experts);
    if (st != LA_OK) {
        Py_XDECREF(done);
        return py_raise(state, st);
    }
    return done;
}

static PyMethodDef methods[] = {
    {"route", route, METH_VARARGS,
     "route(isa, logits, correction, experts, weights, T, (E, k, sigmoid, norm, scale, groups, "
     "groups_used, group_best)): experts int32 [T, k], weights float32 [T, k]"},
    {"grouped_linear", grouped_linear, METH_VARARGS,
     "grouped_linear(isa, activation, experts, x, y, segments, M, n, threads): rows of y [M, N] = "
     "rows of x [M, K] times an expert; segments int32 [n, 3]: expert, first row, rows"},
    {NULL, NULL, 0, NULL},
};

int py_kernels_moe_register(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
