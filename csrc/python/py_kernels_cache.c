/* py_kernels_cache.c - a paged KV cache in the user's memory: tokens into it, attention over it.
 *
 * Owns the addresses inside a cache and how rows of several sequences are shared out. Invariants: numbers
 * of pages, sequences and positions are copied and checked before anything is read by them; rows walk
 * pages as the engine's do (kernels/attend_walk.h), so a row's bits do not depend on the rows beside it,
 * on threads or on where its pages lie. Wrapped by python/llmaccel/kernels/pages.py.
 */
#include "py_module.h"

#include "../base/base.h"
#include "../kernels/kernels.h"

#include "py_kernels_cache.h"
#include "py_kernels_call.h"

enum { MAX_D = 256, LINE = 64 };

/* ---- addresses --------------------------------------------------------------------------------- */

/* In the order of la_kv_form. */
static const char *const form_names[LA_KV_FORM_COUNT] = {
    [LA_KV_F32] = "F32", [LA_KV_BF16] = "BF16", [LA_KV_I8] = "int8", [LA_KV_F8] = "fp8"};

int py_cache_layout_of(const py_state *state, const char *dtype, int n_heads, int d,
                       py_cache_layout *out)
{
    int form = 0;
    while (form < LA_KV_FORM_COUNT && strcmp(form_names[form], dtype) != 0) {
        form++;
    }
    if (form == LA_KV_FORM_COUNT) {
        py_raise_format(state, LA_ERR_UNSUPPORTED,
                        "dtype: pages of %.40s are not supported, only F32, BF16, int8 and fp8",
                        dtype);
        return -1;
    }
    if (n_heads < 1 || n_heads > PY_ATTEND_HEADS || d < 1 || d > MAX_D) {
        py_raise_format(state, LA_ERR_ARGUMENT, "n_heads, d: %d, %d; expected 1..%d, 1..%d",
                        n_heads, d, (int)PY_ATTEND_HEADS, (int)MAX_D);
        return -1;
    }
    *out = (py_cache_layout){.form = (la_kv_form)form, .n_heads = n_heads, .d = d};
    out->k_bytes = la_round_up(la_kv_k_bytes(out->form, d), LINE);
    out->head_bytes = out->k_bytes + la_round_up(la_kv_v_bytes(out->form, d), LINE);
    out->page_bytes = out->head_bytes * (size_t)n_heads;
    return 0;
}

void py_cache_store(const la_kernels *t, const py_cache_layout *at, uint8_t *page, int slot,
                    const float *k, const float *v)
{
    la_store_fn store = la_kernels_store(t, at->form);
    for (int h = 0; h < at->n_heads; h++) {
        uint8_t *block = page + (size_t)h * at->head_bytes;
        store(k + h * at->d, v + h * at->d, at->d, slot, block, block + at->k_bytes);
    }
}

/* ---- attention --------------------------------------------------------------------------------- */

/* Rows of one kernel call: `tokens` tokens of one sequence from t0 on, `heads` query heads from h0 on. */
typedef struct attend_tile {
    int t0, tokens, h0, heads;
} attend_tile;

static int64_t tile_row(const py_attend_job *job, const attend_tile *tile, int r)
{
    int64_t token = tile->t0 + r / tile->heads;
    return (token * job->H + tile->h0 + r % tile->heads) * job->walk.d;
}

static void attend_rows(const py_attend_job *job, const la_attend_room *own,
                        const attend_tile *tile)
{
    const py_cache_view *p = job->pages;
    la_attend_walk walk = job->walk;
    int R = tile->tokens * tile->heads, d = p->at.d, wide = la_attend_wide(d);
    for (int r = 0; r < R; r++) {
        own->pos[r] = job->pos[tile->t0 + r / tile->heads];
        memcpy(own->q + r * wide, job->q + tile_row(job, tile, r), (size_t)d * sizeof(float));
    }
    if (walk.sinks != NULL) { /* of the tile's heads */
        walk.sinks += tile->h0;
        walk.heads = tile->heads;
    }
    int head = tile->h0 / (job->H / p->at.n_heads);
    la_attend_pages at = {.base = p->data + (size_t)head * p->at.head_bytes,
                          .pitch = p->at.page_bytes,
                          .k_bytes = p->at.k_bytes};
    if (p->tables != NULL) {
        at.index = p->tables + (int64_t)p->sequences[tile->t0] * p->width;
    }
    la_attend_rows(&walk, &at, own, R);
    for (int r = 0; r < R; r++) {
        float *out = job->out + tile_row(job, tile, r);
        walk.k->attend_finish(own->o + r * wide, own->l[r], out, d);
    }
}

/* Tokens from t on, at most `most`, that are of one sequence. */
static int run_of(const py_attend_job *job, int t, int most)
{
    const py_cache_view *p = job->pages;
    int left = job->T - t, n = left < most ? left : most;
    for (int i = 1; p->tables != NULL && i < n; i++) {
        if (p->sequences[t + i] != p->sequences[t]) {
            return i;
        }
    }
    return n;
}

/* Tiles in a fixed order; thread tid takes every nth. */
void py_cache_attend(void *arg, int tid, int nth)
{
    const py_attend_job *job = arg;
    const py_cache_view *p = job->pages;
    int group = job->H / p->at.n_heads, most = group < PY_ATTEND_ROWS ? group : PY_ATTEND_ROWS;
    int turn = 0;
    la_attend_room own = py_attend_room(job, tid);
    for (int kv = 0; kv < p->at.n_heads; kv++) {
        for (int h = 0; h < group; h += most) {
            for (int t = 0, n; t < job->T; t += n, turn = (turn + 1) % nth) {
                n = run_of(job, t, PY_ATTEND_ROWS / most);
                attend_tile tile = {t, n, kv * group + h, group - h < most ? group - h : most};
                if (turn == tid) {
                    attend_rows(job, &own, &tile);
                }
            }
        }
    }
}

/* ---- the user's memory ------------------------------------------------------------------------- */

/* The bytes of `cache`, which must be whole pages at a multiple of 64. 0, or -1 with an exception set. */
static int cache_open(const py_state *state, const py_cache_layout *at, PyObject *cache, int flags,
                      Py_buffer *view)
{
    if (PyObject_GetBuffer(cache, view, PyBUF_C_CONTIGUOUS | flags) < 0) {
        return -1;
    }
    size_t bytes = (size_t)view->len;
    if (bytes == 0 || bytes % at->page_bytes != 0 || bytes / at->page_bytes > INT32_MAX ||
        (uintptr_t)view->buf % LINE != 0) {
        py_raise_format(state, LA_ERR_ARGUMENT,
                        "cache: %zu bytes at %p are no pages of %zu bytes at a multiple of %d",
                        bytes, view->buf, at->page_bytes, (int)LINE);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

static PyObject *kv_bytes(PyObject *module, PyObject *args)
{
    const char *dtype;
    int n_heads, d;
    py_cache_layout at;
    if (!PyArg_ParseTuple(args, "sii:kv_bytes", &dtype, &n_heads, &d) ||
        py_cache_layout_of(py_state_of(module), dtype, n_heads, d, &at) < 0) {
        return NULL;
    }
    return PyLong_FromSize_t(at.head_bytes);
}

static PyObject *kv_cache_store(PyObject *module, PyObject *args)
{
    const char *isa, *dtype;
    PyObject *cache, *slots_object, *k_object, *v_object;
    int n_heads, d, n;
    py_cache_layout at;
    py_call c;
    py_state *state = py_state_of(module);
    if (!PyArg_ParseTuple(args, "ssOOOOii:kv_cache_store", &isa, &dtype, &cache, &slots_object,
                          &k_object, &v_object, &n_heads, &d) ||
        py_cache_layout_of(state, dtype, n_heads, d, &at) < 0) {
        return NULL;
    }
    Py_buffer view;
    int32_t *slots = py_ids_from(state, slots_object, "slots", &n);
    if (slots == NULL || cache_open(state, &at, cache, PyBUF_WRITABLE, &view) < 0) {
        PyMem_Free(slots);
        return NULL;
    }
    py_call_begin(&c, isa);
    int64_t n_slots = view.len / (Py_ssize_t)at.page_bytes * LA_PAGE;
    Py_ssize_t row = (Py_ssize_t)n_heads * d;
    const float *k = py_call_in(&c, k_object, "k", n * row);
    const float *v = py_call_in(&c, v_object, "v", n * row);
    for (int i = 0; c.ok && i < n; i++) {
        if (slots[i] < -1 || slots[i] >= n_slots) {
            py_call_fail(&c, PyExc_ValueError, "slots: %d is not in -1..%lld", (int)slots[i],
                         (long long)n_slots - 1);
        }
    }
    for (int i = 0; c.ok && i < n; i++) {
        if (slots[i] >= 0) {
            uint8_t *page = (uint8_t *)view.buf + (size_t)(slots[i] / LA_PAGE) * at.page_bytes;
            py_cache_store(&c.t, &at, page, slots[i] % LA_PAGE, k + i * row, v + i * row);
        }
    }
    PyBuffer_Release(&view);
    PyMem_Free(slots);
    return py_call_end(&c);
}

int py_cache_check(const py_state *state, const py_attend_job *job)
{
    const py_cache_view *p = job->pages;
    if (p->n_sequences != job->T) {
        py_raise_format(state, LA_ERR_ARGUMENT, "sequences: %d for %d positions", p->n_sequences,
                        job->T);
        return -1;
    }
    for (int i = 0; i < job->T; i++) {
        int s = p->sequences[i];
        if (s < 0 || s >= p->n_tables) {
            py_raise_format(state, LA_ERR_ARGUMENT, "sequences: %d is not in 0..%d", s,
                            p->n_tables - 1);
            return -1;
        }
        int last = job->pos[i] / LA_PAGE;
        for (int at = la_attend_begin(&job->walk, job->pos[i]) / LA_PAGE; at <= last; at++) {
            int page = p->tables[(int64_t)s * p->width + at];
            if (page < 0 || page >= p->n_pages) {
                py_raise_format(state, LA_ERR_ARGUMENT, "tables: [%d, %d] is %d, not in 0..%d", s,
                                at, page, p->n_pages - 1);
                return -1;
            }
        }
    }
    return 0;
}

/* Copies what a call says about its sequences: another thread may change it meanwhile. 0, or -1 with an
 * exception set; the caller frees both arrays in either case. */
static int tables_from(const py_state *state, PyObject *tables, PyObject *sequences,
                       py_cache_view *view, int *n_sequences)
{
    int n;
    view->tables = py_ids_from(state, tables, "tables", &n);
    if (view->tables == NULL) {
        return -1;
    }
    view->n_tables = n / view->width;
    view->sequences = py_ids_from(state, sequences, "sequences", n_sequences);
    return view->sequences == NULL ? -1 : 0;
}

static PyObject *kv_attend(PyObject *module, PyObject *args)
{
    const char *dtype;
    PyObject *cache, *tables, *sequences, *done = NULL;
    int n_heads;
    py_attend_call call;
    py_cache_view view = {.data = NULL};
    py_attend_job job = {.pages = &view, .check = py_cache_check};
    la_attend_walk *walk = &job.walk;
    py_state *state = py_state_of(module);
    if (!PyArg_ParseTuple(args, "ssOOOOOOO(iiii)ffii:kv_attend", &call.isa, &dtype, &cache, &tables,
                          &sequences, &call.positions, &call.q, &call.out, &call.sinks, &n_heads,
                          &job.H, &walk->d, &view.width, &walk->scale, &walk->softcap,
                          &walk->window, &call.threads) ||
        py_cache_layout_of(state, dtype, n_heads, walk->d, &view.at) < 0) {
        return NULL;
    }
    walk->form = view.at.form;
    if (walk->window < 0 || view.width < 1 || view.width > INT32_MAX / LA_PAGE ||
        job.H % n_heads != 0) {
        return py_raise_format(state, LA_ERR_ARGUMENT,
                               "window, width, q: %d, %d and %d heads for %d of the cache",
                               walk->window, view.width, job.H, n_heads);
    }
    Py_buffer data;
    if (cache_open(state, &view.at, cache, 0, &data) < 0) {
        return NULL;
    }
    view.data = data.buf;
    view.n_pages = (int)(data.len / (Py_ssize_t)view.at.page_bytes);
    if (tables_from(state, tables, sequences, &view, &view.n_sequences) == 0) {
        job.length = view.width * LA_PAGE;
        done = py_attend(state, &call, &job, py_cache_attend);
    }
    PyMem_Free((void *)(uintptr_t)view.tables);
    PyMem_Free((void *)(uintptr_t)view.sequences);
    PyBuffer_Release(&data);
    return done;
}

static PyMethodDef methods[] = {
    {"kv_bytes", kv_bytes, METH_VARARGS,
     "kv_bytes(dtype, n_heads, d): bytes of one kv head's keys and values in a page of 64 tokens"},
    {"kv_cache_store", kv_cache_store, METH_VARARGS,
     "kv_cache_store(isa, dtype, cache, slots, k, v, n_heads, d): k, v float32 [T, n_heads, d] "
     "into "
     "slots "
     "int32 [T] (page * 64 + token of the page; -1: nowhere) of cache [pages, n_heads, kv_bytes]"},
    {"kv_attend", kv_attend, METH_VARARGS,
     "kv_attend(isa, dtype, cache, tables, sequences, positions, q, out, sinks, (n_heads, H, d, "
     "width), scale, softcap, window, threads)\n\n"
     "q, out: float32 [T, H, d]; sequences, positions: int32 [T]; tables: int32 [sequences, "
     "width], pages of the cache; sinks: float32 [H] or None."},
    {NULL, NULL, 0, NULL},
};

int py_kernels_cache_register(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
