/* py_kernels_pages.c - the Python object Pages: keys and values of one sequence, and attention over them.
 *
 * Owns a run of KV pages in the kernels' own layout. Invariants: tokens are stored once, in order, so a
 * page is cleared by its first token before anything reads it; rows walk them as the engine's do
 * (kernels/attend_walk.h), so a row's bits do not depend on the rows beside it or on threads.
 * Wrapped by python/llmaccel/kernels/pages.py.
 */
#include "py_module.h"

#include "../base/base.h"
#include "../kernels/kernels.h"

#include "py_kernels_cache.h"

enum { MAX_TOKENS = 1 << 24 };

typedef struct pages {
    PyObject_HEAD
    py_cache_layout at;
    int length, capacity; /* tokens */
    size_t bytes;
    uint8_t *data; /* pages of at.page_bytes */
} pages;

static PyObject *pages_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"n_heads", "d", "max_tokens", "dtype", NULL};
    py_state *state = PyType_GetModuleState(type);
    int n_heads, d, capacity;
    const char *dtype;
    py_cache_layout at;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiis:Pages", names, &n_heads, &d, &capacity,
                                     &dtype) ||
        py_cache_layout_of(state, dtype, n_heads, d, &at) < 0) {
        return NULL;
    }
    if (capacity < 1 || capacity > MAX_TOKENS) {
        return py_raise_format(state, LA_ERR_ARGUMENT, "max_tokens: %d is not in 1..%d", capacity,
                               (int)MAX_TOKENS);
    }
    pages *self = (pages *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->at = at;
    self->capacity = capacity;
    size_t n = (size_t)la_ceil_div(capacity, LA_PAGE);
    if (!la_size_mul(at.page_bytes, n, &self->bytes) ||
        (self->data = la_map(self->bytes)) == NULL) {
        self->bytes = 0;
        Py_DECREF(self);
        return py_raise_format(state, LA_ERR_MEMORY, "max_tokens: no memory for %d tokens",
                               capacity);
    }
    return (PyObject *)self;
}

static void pages_dealloc(PyObject *object)
{
    pages *self = (pages *)object;
    PyTypeObject *type = Py_TYPE(object);
    la_unmap(self->data, self->bytes);
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- store ------------------------------------------------------------------------------------- */

/* The GIL is held throughout: two stores cannot take the same place. */
static PyObject *pages_store(PyObject *object, PyObject *args)
{
    const char *isa;
    PyObject *ok, *ov;
    la_kernels t;
    Py_buffer k, v;
    pages *self = (pages *)object;
    if (!PyArg_ParseTuple(args, "sOO:store", &isa, &ok, &ov) || py_kernels_isa(isa, &t) < 0 ||
        py_kernels_floats(ok, "k", &k) < 0) {
        return NULL;
    }
    if (py_kernels_floats(ov, "v", &v) < 0) {
        PyBuffer_Release(&k);
        return NULL;
    }
    Py_ssize_t row = (Py_ssize_t)self->at.n_heads * self->at.d, n = k.len / 4 / row;
    int bad = k.len != v.len || k.len != n * row * 4 || n > self->capacity - self->length;
    if (bad) {
        py_raise_format(py_state_of_object(object), LA_ERR_ARGUMENT,
                        "k, v: %zd and %zd values; room for at most %d tokens of %zd", k.len / 4,
                        v.len / 4, self->capacity - self->length, row);
    }
    for (int64_t i = 0; !bad && i < n; i++) {
        int at = self->length + (int)i;
        uint8_t *page = self->data + (size_t)(at / LA_PAGE) * self->at.page_bytes;
        py_cache_store(&t, &self->at, page, at % LA_PAGE, (const float *)k.buf + i * row,
                       (const float *)v.buf + i * row);
    }
    self->length += bad ? 0 : (int)n;
    PyBuffer_Release(&k);
    PyBuffer_Release(&v);
    if (bad) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *pages_attend(PyObject *object, PyObject *args)
{
    const pages *p = (pages *)object;
    py_attend_call call;
    py_cache_view view = {.at = p->at, .data = p->data};
    py_attend_job job = {
        .pages = &view, .length = p->length, .walk = {.form = p->at.form, .d = p->at.d}};
    la_attend_walk *walk = &job.walk;
    py_state *state = py_state_of_object(object);
    if (!PyArg_ParseTuple(args, "sOOOOiffii:attend", &call.isa, &call.q, &call.positions, &call.out,
                          &call.sinks, &job.H, &walk->scale, &walk->softcap, &walk->window,
                          &call.threads)) {
        return NULL;
    }
    if (walk->window < 0) {
        return py_raise_format(state, LA_ERR_ARGUMENT, "window: %d is negative", walk->window);
    }
    if (job.H % p->at.n_heads != 0) {
        return py_raise_format(state, LA_ERR_ARGUMENT,
                               "q: %d heads are no multiple of the pages' %d", job.H,
                               p->at.n_heads);
    }
    return py_attend(state, &call, &job, py_cache_attend);
}

static Py_ssize_t pages_length(PyObject *object)
{
    return ((pages *)object)->length;
}

static PyObject *pages_get_nbytes(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(((pages *)object)->bytes);
}

static PyMethodDef pages_methods[] = {
    {"store", pages_store, METH_VARARGS,
     "store(isa, k, v): appends tokens, k and v float32 [T, n_heads, d]."},
    {"attend", pages_attend, METH_VARARGS,
     "attend(isa, q, positions, out, sinks, H, scale, softcap, window, threads)\n\n"
     "q, out: float32 [T, H, d]; positions: int32 [T], of stored tokens; sinks: float32 [H] or "
     "None; window, softcap: 0 is off."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pages_getset[] = {
    {"nbytes", pages_get_nbytes, NULL, "bytes at max_tokens; touched as tokens come", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pages_slots[] = {
    {Py_tp_doc, "Pages(n_heads, d, max_tokens, dtype)\n\n"
                "KV pages of one sequence; use llmaccel.kernels.KVPages instead."},
    {Py_tp_new, pages_new},
    {Py_tp_dealloc, pages_dealloc},
    {Py_tp_methods, pages_methods},
    {Py_tp_getset, pages_getset},
    {Py_sq_length, pages_length},
    {0, NULL},
};

static PyType_Spec pages_spec = {
    .name = "llmaccel._core.Pages",
    .basicsize = (int)sizeof(pages),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pages_slots,
};

int py_kernels_pages_register(PyObject *module)
{
    return py_add_type(module, &pages_spec, &py_state_of(module)->pages_type);
}
