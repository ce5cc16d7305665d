/* py_kernels_device.c - single kernels on Tensors of a device, by device.h.
 *
 * Owns the functions behind kernels/device.py. Invariants: all tensors of a call lie on one device and have the
 * bytes that its numbers say; numbers of pages and tokens are host arrays, checked here as for the CPU's kernels. A
 * call returns when its kernels were asked for, or, where it wrote to memory of others, when they are done: those
 * look at it without asking us.
 */
#include "py_module.h"

#include <limits.h>

#include "../device.h"

#include "py_kernels.h"
#include "py_kernels_cache.h"

/* ---- the tensors of a call --------------------------------------------------------------------- */

typedef struct device_call {
    const py_state *state;
    la_backend *b; /* NULL until the first tensor was taken */
    int ok, wait;
} device_call;

static void refuse(device_call *c, const char *name, const char *what)
{
    if (c->ok) {
        py_raise_format(c->state, LA_ERR_ARGUMENT, "%s: %s", name, what);
        c->ok = 0;
    }
}

/* The address of a tensor of n elements of so many bytes; NULL after a failure. */
static void *take(device_call *c, PyObject *object, const char *name, int64_t n, int size)
{
    py_place at;
    if (!c->ok || py_tensor_place(c->state, object, name, &at) < 0) {
        c->ok = 0;
        return NULL;
    }
    if (c->b != NULL && at.backend != c->b) {
        refuse(c, name, "is on another device than the other arguments");
    }
    if (n < 1 || n > INT64_MAX / size || at.bytes != (size_t)(n * size)) {
        refuse(c, name, "has not the size that the other arguments say");
    }
    c->b = at.backend;
    return at.data;
}

/* Elements of an array of so many rows, or of none where they are no numbers of a size: `take` refuses that. */
static int64_t extent(int64_t rows, int64_t width)
{
    return rows > 0 && width > 0 && rows <= INT64_MAX / width ? rows * width : 0;
}

static const float *take_floats(device_call *c, PyObject *object, const char *name, int64_t n)
{
    return take(c, object, name, n, sizeof(float));
}

/* NULL where it is None. */
static const float *take_optional(device_call *c, PyObject *object, const char *name, int64_t n)
{
    return object != Py_None ? take_floats(c, object, name, n) : NULL;
}

/* One that is written to. */
static void *take_out(device_call *c, PyObject *object, const char *name, int64_t n, int size)
{
    py_place at;
    void *data = take(c, object, name, n, size);
    if (c->ok && py_tensor_place(c->state, object, name, &at) == 0) {
        c->wait |= at.borrowed;
        if (at.read_only) {
            refuse(c, name, "is read-only");
        }
    }
    return data;
}

static void want(device_call *c, int right, const char *names)
{
    if (!right) {
        refuse(c, names, "out of range");
    }
}

/* None, or NULL with an exception set. `run` is called without the GIL. */
static PyObject *finish(device_call *c, la_status (*run)(la_backend *b, const void *args),
                        const void *args)
{
    la_status st;
    if (!c->ok) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    st = run(c->b, args);
    st = st == LA_OK && c->wait ? la_device_wait(c->b) : st;
    Py_END_ALLOW_THREADS
    if (st != LA_OK) {
        return py_raise(c->state, st);
    }
    Py_RETURN_NONE;
}

static device_call begin(const py_state *state)
{
    return (device_call){.state = state, .ok = 1};
}

/* ---- rows -------------------------------------------------------------------------------------- */

static la_status run_norm(la_backend *b, const void *args)
{
    return la_device_run_norm(b, args);
}

static PyObject *device_norm(PyObject *module, PyObject *args)
{
    PyObject *x, *w, *bias, *out;
    la_device_norm a = {0};
    device_call c = begin(py_state_of(module));
    if (!PyArg_ParseTuple(args, "iOOOOiif:device_norm", &a.kind, &x, &w, &bias, &out, &a.n, &a.D,
                          &a.eps)) {
        return NULL;
    }
    want(&c, a.kind == LA_NORM_RMS || a.kind == LA_NORM_LAYER, "kind");
    a.x = take_floats(&c, x, "x", extent(a.n, a.D));
    a.w = take_floats(&c, w, "weight", a.D);
    a.b = take_optional(&c, bias, "bias", a.D);
    a.out = take_out(&c, out, "out", extent(a.n, a.D), sizeof(float));
    return finish(&c, run_norm, &a);
}

static la_status run_elements(la_backend *b, const void *args)
{
    return la_device_run_elements(b, args);
}

static PyObject *device_elements(PyObject *module, PyObject *args)
{
    PyObject *x, *y, *out;
    la_device_elements a = {0};
    device_call c = begin(py_state_of(module));
    if (!PyArg_ParseTuple(args, "iOOOiiff:device_elements", &a.op, &x, &y, &out, &a.n, &a.act,
                          &a.scale, &a.cap)) {
        return NULL;
    }
    want(&c, a.op >= 0 && a.op < LA_ELEMENT_COUNT, "op");
    want(&c, a.act >= LA_GATE_SILU && a.act <= LA_GATE_CLIP, "act");
    want(&c, (a.op == LA_ELEMENT_ADD || a.op == LA_ELEMENT_ACT_MUL) == (y != Py_None), "y");
    int half = a.op == LA_ELEMENT_F16 || a.op == LA_ELEMENT_BF16;
    a.x = take(&c, x, "x", a.n, half ? 2 : 4);
    a.y = take_optional(&c, y, "y", a.n);
    a.out = take_out(&c, out, "out", a.n, sizeof(float));
    return finish(&c, run_elements, &a);
}

static la_status run_rope(la_backend *b, const void *args)
{
    return la_device_run_rope(b, args);
}

static PyObject *device_rope(PyObject *module, PyObject *args)
{
    PyObject *x, *cosines, *sines, *out;
    la_device_rope a = {0};
    device_call c = begin(py_state_of(module));
    if (!PyArg_ParseTuple(args, "OOOO(iiii)p:device_rope", &x, &cosines, &sines, &out, &a.T, &a.H,
                          &a.d, &a.h, &a.interleaved)) {
        return NULL;
    }
    want(&c, a.T > 0 && a.H > 0 && a.d > 0 && a.h > 0 && a.h <= a.d / 2 && a.H <= INT_MAX / a.d,
         "T, H, d, h");
    int64_t n = extent(a.H, a.d);
    want(&c, n <= INT_MAX, "x");
    a.x = take_floats(&c, x, "x", extent(a.T, n));
    a.cos = take_floats(&c, cosines, "cos", extent(a.T, a.h));
    a.sin = take_floats(&c, sines, "sin", extent(a.T, a.h));
    a.out = take_out(&c, out, "out", extent(a.T, n), sizeof(float));
    return finish(&c, run_rope, &a);
}

static la_status run_best(la_backend *b, const void *args)
{
    return la_device_run_best(b, args);
}

static PyObject *device_best(PyObject *module, PyObject *args)
{
    PyObject *x, *ids, *values;
    la_device_best a = {0};
    device_call c = begin(py_state_of(module));
    if (!PyArg_ParseTuple(args, "OOOiii:device_best", &x, &ids, &values, &a.n, &a.V, &a.k)) {
        return NULL;
    }
    want(&c, a.n > 0 && a.V > 0 && a.k > 0 && a.k <= a.V && (values != Py_None || a.k == 1), "k");
    a.x = take_floats(&c, x, "x", extent(a.n, a.V));
    a.ids = take_out(&c, ids, "ids", extent(a.n, a.k), sizeof(int64_t));
    if (values != Py_None) {
        a.values = take_out(&c, values, "values", extent(a.n, a.k), sizeof(float));
    }
    return finish(&c, run_best, &a);
}

static la_status run_linear(la_backend *b, const void *args)
{
    return la_device_run_linear(b, args);
}

PyObject *py_kernels_device_linear(py_state *state, const la_weight *w, PyObject *const arrays[3])
{
    py_place x;
    la_device_linear a = {.w = w};
    device_call c = begin(state);
    if (py_tensor_place(state, arrays[0], "x", &x) < 0) {
        return NULL;
    }
    size_t row = (size_t)w->K * sizeof(float);
    want(&c, x.bytes > 0 && x.bytes % row == 0 && x.bytes / row <= INT_MAX, "x");
    a.M = c.ok ? (int)(x.bytes / row) : 0;
    a.x = take_floats(&c, arrays[0], "x", extent(a.M, w->K));
    a.out = take_out(&c, arrays[1], "out", extent(a.M, w->N), sizeof(float));
    a.bias = take_optional(&c, arrays[2], "bias", w->N);
    return finish(&c, run_linear, &a);
}

/* ---- pages ------------------------------------------------------------------------------------- */

/* The pages of a cache, of which there are *n_pages; after a failure c->ok is 0. */
static void take_cache(device_call *c, PyObject *object, int n_heads, int d, la_device_cache *out,
                       int *n_pages)
{
    py_cache_layout at;
    py_place place;
    if (!c->ok || py_cache_layout_of(c->state, "BF16", n_heads, d, &at) < 0 ||
        py_tensor_place(c->state, object, "cache", &place) < 0) {
        c->ok = 0;
        return;
    }
    size_t pages = place.bytes / at.page_bytes;
    want(c, pages > 0 && pages <= INT32_MAX && place.bytes % at.page_bytes == 0, "cache");
    want(c, (uintptr_t)place.data % 16 == 0, "cache");
    *out = (la_device_cache){place.data, n_heads, d, at.k_bytes, at.head_bytes};
    *n_pages = (int)pages;
    (void)take(c, object, "cache", (int64_t)place.bytes, 1);
}

static la_status run_store(la_backend *b, const void *args)
{
    return la_device_run_store(b, args);
}

static PyObject *device_store(PyObject *module, PyObject *args)
{
    PyObject *cache, *slots_object, *k, *v;
    int n_heads, d, n_pages = 0;
    la_device_store a = {0};
    device_call c = begin(py_state_of(module));
    if (!PyArg_ParseTuple(args, "OOOOii:device_store", &cache, &slots_object, &k, &v, &n_heads,
                          &d)) {
        return NULL;
    }
    int32_t *slots = py_ids_from(c.state, slots_object, "slots", &a.T);
    if (slots == NULL) {
        return NULL;
    }
    take_cache(&c, cache, n_heads, d, &a.cache, &n_pages);
    for (int i = 0; c.ok && i < a.T; i++) {
        if (slots[i] < -1 || slots[i] / LA_PAGE >= n_pages) {
            py_raise_format(c.state, LA_ERR_ARGUMENT, "slots: %d is not in -1..%lld", (int)slots[i],
                            (long long)n_pages * LA_PAGE - 1);
            c.ok = 0;
        }
    }
    int64_t n = extent(extent(a.T, n_heads), d);
    a.slots = slots;
    a.k = take_floats(&c, k, "k", n);
    a.v = take_floats(&c, v, "v", n);
    if (c.ok) {
        (void)take_out(&c, cache, "cache",
                       (int64_t)(a.cache.head_bytes * (size_t)n_heads) * n_pages, 1);
    }
    PyObject *done = finish(&c, run_store, &a);
    PyMem_Free(slots);
    return done;
}

static la_status run_attend(la_backend *b, const void *args)
{
    return la_device_run_attend(b, args);
}

/* Numbers of sequences, positions and pages, as the CPU's attention checks them. */
static void check_numbers(device_call *c, const la_device_attend *a, int n_pages, int n_sequences)
{
    py_cache_view view = {.tables = a->tables,
                          .sequences = a->sequences,
                          .n_pages = n_pages,
                          .n_tables = a->n_tables,
                          .n_sequences = n_sequences,
                          .width = a->width};
    py_attend_job job = {.pages = &view,
                         .length = a->width * LA_PAGE,
                         .T = a->T,
                         .H = a->H,
                         .pos = a->positions,
                         .walk = {.window = a->window}};
    if (c->ok &&
        (py_attend_check_positions(c->state, &job) < 0 || py_cache_check(c->state, &job) < 0)) {
        c->ok = 0;
    }
}

static PyObject *device_attend(PyObject *module, PyObject *args)
{
    PyObject *q, *cache, *numbers[3], *out, *sinks;
    int32_t *host[3] = {NULL, NULL, NULL};
    int n_heads, d, n_pages = 0, n[3] = {0, 0, 0};
    static const char *const names[3] = {"tables", "sequences", "positions"};
    la_device_attend a = {0};
    device_call c = begin(py_state_of(module));
    if (!PyArg_ParseTuple(args, "OOOOOOO(iiii)ffi:device_attend", &q, &cache, &numbers[0],
                          &numbers[1], &numbers[2], &out, &sinks, &n_heads, &a.H, &d, &a.width,
                          &a.scale, &a.softcap, &a.window)) {
        return NULL;
    }
    want(&c,
         a.window >= 0 && a.width >= 1 && a.width <= INT32_MAX / LA_PAGE && n_heads >= 1 &&
             a.H >= 1 && a.H <= PY_ATTEND_HEADS && a.H % n_heads == 0,
         "window, width, q");
    for (int i = 0; c.ok && i < 3; i++) {
        host[i] = py_ids_from(c.state, numbers[i], names[i], &n[i]);
        c.ok = host[i] != NULL;
    }
    take_cache(&c, cache, n_heads, d, &a.cache, &n_pages);
    a.T = n[2];
    a.n_tables = c.ok ? n[0] / a.width : 0;
    a.tables = host[0];
    a.sequences = host[1];
    a.positions = host[2];
    check_numbers(&c, &a, n_pages, n[1]);
    a.q = take_floats(&c, q, "q", extent(extent(a.T, a.H), d));
    a.sinks = take_optional(&c, sinks, "sinks", a.H);
    a.out = take_out(&c, out, "out", extent(extent(a.T, a.H), d), sizeof(float));
    PyObject *done = finish(&c, run_attend, &a);
    for (int i = 0; i < 3; i++) {
        PyMem_Free(host[i]);
    }
    return done;
}

static PyMethodDef methods[] = {
    {"device_norm", device_norm, METH_VARARGS,
     "device_norm(kind, x, weight, bias, out, n, D, eps): kind 0 RMS, 1 LayerNorm; x, out [n, D]; "
     "weight [D]; bias [D] or None."},
    {"device_elements", device_elements, METH_VARARGS,
     "device_elements(op, x, y, out, n, act, scale, cap): as la_device_elements of csrc/device.h."},
    {"device_rope", device_rope, METH_VARARGS,
     "device_rope(x, cos, sin, out, (T, H, d, h), interleaved): x, out [T, H, d]; cos, sin [T, "
     "h]."},
    {"device_best", device_best, METH_VARARGS,
     "device_best(x, ids, values, n, V, k): x [n, V]; ids int64 and values float32 [n, k]. values "
     "None: the largest alone, k 1."},
    {"device_store", device_store, METH_VARARGS,
     "device_store(cache, slots, k, v, n_heads, d): as kv_cache_store, slots in host memory, each "
     "once."},
    {"device_attend", device_attend, METH_VARARGS,
     "device_attend(q, cache, tables, sequences, positions, out, sinks, (n_heads, H, d, width), "
     "scale, softcap, window): as kv_attend; tables, sequences and positions in host memory."},
    {NULL, NULL, 0, NULL},
};

int py_kernels_device_register(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
