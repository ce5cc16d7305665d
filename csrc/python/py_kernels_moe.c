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

enum {
    FEW_ROWS = 8,    /* up to here a kernel call takes many units of few rows */
    FEW_UNITS = 8,   /* units of such a call */
    TILE_UNITS = 2,  /* units of a call with many rows */
    TILE_ROWS = 256, /* rows of it */
    TILE_FLOATS = TILE_ROWS * TILE_UNITS * LA_UNIT
};

/* ---- routing ----------------------------------------------------------------------------------- */

/* int32 or float32 buffer of exactly n values; 0, or -1 with an exception that names it. */
static int exact_view(PyObject *object, const char *name, char format, Py_ssize_t n, int writable,
                      Py_buffer *view)
{
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0) {
        return -1;
    }
    if (view->itemsize != 4 || view->format == NULL || view->format[0] != format ||
        view->format[1] != '\0' || view->len / 4 != n || (uintptr_t)view->buf % 4 != 0) {
        PyErr_Format(PyExc_ValueError, "%s: expected %zd values of type %c", name, n, (int)format);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

typedef struct route_job {
    la_route_rule rule;
    const float *logits, *correction; /* [T][E], [E] or NULL */
    int32_t *experts;                 /* [T][k] */
    float *weights;                   /* [T][k] */
    int T;
} route_job;

static la_status route_run(const la_kernels *k, const route_job *job)
{
    void *room = la_alloc(la_route_room(job->rule.n_experts), 1);
    if (room == NULL) {
        return la_fail(LA_ERR_MEMORY, "route: no memory for %d experts", job->rule.n_experts);
    }
    for (int64_t t = 0; t < job->T; t++) {
        la_route_row(k, &job->rule, job->logits + t * job->rule.n_experts, job->correction, room,
                     job->experts + t * job->rule.n_used, job->weights + t * job->rule.n_used);
    }
    la_free(room);
    return LA_OK;
}

static int check_rule(const la_route_rule *r, int T)
{
    int ok = r->n_experts >= 1 && r->n_experts <= LA_MAX_EXPERTS && r->n_used >= 1 &&
             r->n_used <= r->n_experts && r->groups >= 1 && r->groups <= r->n_experts &&
             r->n_experts % r->groups == 0 && r->groups_used >= 1 && r->groups_used <= r->groups &&
             r->n_experts / r->groups * r->groups_used >= r->n_used && r->group_best >= 1 &&
             r->group_best <= r->n_experts / r->groups && r->group_best <= 2 && T >= 0;
    if (!ok) {
        PyErr_SetString(PyExc_ValueError, "route: numbers of experts and groups do not fit");
    }
    return ok ? 0 : -1;
}

static PyObject *route(PyObject *module, PyObject *args)
{
    const char *isa;
    PyObject *logits, *correction, *experts, *weights;
    la_kernels k;
    route_job job = {.T = 0};
    la_route_rule *r = &job.rule;
    if (!PyArg_ParseTuple(args, "sOOOOi(iippfiii):route", &isa, &logits, &correction, &experts,
                          &weights, &job.T, &r->n_experts, &r->n_used, &r->sigmoid, &r->norm,
                          &r->scale, &r->groups, &r->groups_used, &r->group_best) ||
        py_kernels_isa(isa, &k) < 0 || check_rule(r, job.T) < 0) {
        return NULL;
    }
    Py_ssize_t all = (Py_ssize_t)job.T * r->n_experts, used = (Py_ssize_t)job.T * r->n_used;
    Py_buffer views[4];
    int held = 0, n = correction == Py_None ? 3 : 4;
    held += exact_view(logits, "logits", 'f', all, 0, &views[0]) == 0;
    held += held == 1 && exact_view(experts, "experts", 'i', used, 1, &views[1]) == 0;
    held += held == 2 && exact_view(weights, "weights", 'f', used, 1, &views[2]) == 0;
    if (held == 3 && n == 4) {
        held += exact_view(correction, "correction", 'f', r->n_experts, 0, &views[3]) == 0;
    }
    la_status st = LA_OK;
    if (held == n) {
        job.logits = views[0].buf;
        job.experts = views[1].buf;
        job.weights = views[2].buf;
        job.correction = n == 4 ? views[3].buf : NULL;
        Py_BEGIN_ALLOW_THREADS
        st = route_run(&k, &job);
        Py_END_ALLOW_THREADS
    }
    int failed = held != n;
    while (held > 0) {
        PyBuffer_Release(&views[--held]);
    }
    if (failed || st != LA_OK) {
        return failed ? NULL : py_raise(py_state_of(module), st);
    }
    Py_RETURN_NONE;
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
    float *tiles;  /* [threads][TILE_FLOATS] */
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
    la_gemm g = {.w = w->data + (size_t)u * w->unit_bytes,
                 .w_pitch = w->unit_bytes,
                 .n_units = n,
                 .K = w->K,
                 .f = w->f,
                 .a = la_act_rows_at(rows, row0),
                 .a_pitch = rows->pitch,
                 .meta = la_act_rows_meta(rows, row0),
                 .M = ((int)((int64_t)s->rows * (b + 1) / s->blocks) - begin) * rows->lanes,
                 .c = tile,
                 .ldc = n * LA_UNIT};
    hint_next(job, s, b, u + n, &g);
    job->fn(&g);
    int left = w->N - u * LA_UNIT, cols = left < g.ldc ? left : g.ldc;
    for (int r = 0; r < g.M / rows->lanes; r++) {
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
            int u = at % units, most = s->rows <= FEW_ROWS ? FEW_UNITS : TILE_UNITS;
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
    float *tile = job->tiles + (size_t)tid * TILE_FLOATS;
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
    size_t tile_bytes = (size_t)threads * TILE_FLOATS * sizeof(float);
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

/* Experts from a list of Packed of one shape and format. NULL with an exception set. */
static const la_weight **experts_from(py_state *state, PyObject *list, int *n)
{
    PyObject *items = PySequence_Fast(list, "experts: expected a sequence");
    Py_ssize_t count = items == NULL ? 0 : PySequence_Fast_GET_SIZE(items);
    const la_weight **w = items == NULL ? NULL : PyMem_Calloc((size_t)count + 1, sizeof *w);
    int ok = w != NULL && count >= 1 && count <= INT_MAX;
    for (Py_ssize_t i = 0; ok && i < count; i++) {
        w[i] = py_kernels_weight(state, PySequence_Fast_GET_ITEM(items, i));
        ok = w[i] != NULL && w[i]->N == w[0]->N && w[i]->K == w[0]->K &&
             memcmp(&w[i]->f, &w[0]->f, sizeof w[0]->f) == 0;
    }
    Py_XDECREF(items);
    if (!ok) {
        PyMem_Free(w);
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "experts: shapes or formats differ");
        }
        return NULL;
    }
    *n = (int)count;
    return w;
}

/* Segments [n][3] of (expert, row0, rows), checked, with their items. 0, or -1 with an exception set. */
static int segments_from(const int32_t *flat, int n, int n_experts, grouped_job *job)
{
    int64_t items = 0;
    for (int i = 0; i < n; i++) {
        segment *s = &job->segments[i];
        *s = (segment){flat[3 * i], flat[3 * i + 1], flat[3 * i + 2], 0, (int)items};
        if (s->expert < 0 || s->expert >= n_experts || s->row0 < 0 || s->rows < 1 ||
            s->rows > job->M - s->row0) {
            PyErr_Format(PyExc_ValueError, "segments: %d of %d is out of range", i, n);
            return -1;
        }
        int most = TILE_ROWS / job->rows.lanes;
        s->blocks = (s->rows + most - 1) / most;
        items += (int64_t)s->blocks * job->w[s->expert]->n_units;
        if (items > LA_POOL_MAX_ITEMS) {
            PyErr_SetString(PyExc_ValueError, "x: too many rows for one call");
            return -1;
        }
        job->at_once = s->rows > FEW_ROWS ? TILE_UNITS : job->at_once;
    }
    job->n = n;
    job->items = (int)items;
    return 0;
}

static PyObject *grouped_linear(PyObject *module, PyObject *args)
{
    const char *isa, *act;
    PyObject *list, *x, *y, *flat, *result = NULL;
    int threads, n_experts = 0, M, n, held = 0;
    la_kernels k;
    Py_buffer views[3];
    if (!PyArg_ParseTuple(args, "ssOOOOiii:grouped_linear", &isa, &act, &list, &x, &y, &flat, &M,
                          &n, &threads) ||
        py_kernels_isa(isa, &k) < 0 || py_kernels_threads(&threads) < 0) {
        return NULL;
    }
    int form = py_kernels_form(act);
    py_state *state = py_state_of(module);
    const la_weight **w = form < 0 ? NULL : experts_from(state, list, &n_experts);
    if (w == NULL) {
        return NULL;
    }
    grouped_job job = {.k = &k, .w = w, .M = M, .at_once = FEW_UNITS};
    job.rows = la_act_rows_plan((la_act_form)form, w[0]->K, w[0]->f.group);
    job.fn = la_kernels_gemm(&k, w[0]->f, job.rows.form);
    job.segments = n > 0 ? PyMem_Calloc((size_t)n, sizeof *job.segments) : NULL;
    if (job.fn == NULL || M < 1 || n < 1 || job.segments == NULL) {
        PyErr_SetString(PyExc_ValueError, "grouped_linear: no such product");
        goto done;
    }
    held += exact_view(x, "x", 'f', (Py_ssize_t)M * w[0]->K, 0, &views[0]) == 0;
    held += held == 1 && exact_view(y, "y", 'f', (Py_ssize_t)M * w[0]->N, 1, &views[1]) == 0;
    held += held == 2 && exact_view(flat, "segments", 'i', (Py_ssize_t)n * 3, 0, &views[2]) == 0;
    if (held != 3 || segments_from(views[2].buf, n, n_experts, &job) < 0) {
        goto done;
    }
    job.x = views[0].buf;
    job.y = views[1].buf;
    la_status st;
    Py_BEGIN_ALLOW_THREADS
    st = grouped_run(&job, threads);
    Py_END_ALLOW_THREADS
    result = st == LA_OK ? Py_NewRef(Py_None) : py_raise(state, st);
done:
    while (held > 0) {
        PyBuffer_Release(&views[--held]);
    }
    PyMem_Free(job.segments);
    PyMem_Free(w);
    return result;
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
