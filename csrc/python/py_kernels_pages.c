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

#include "py_kernels_attend.h"

enum { MAX_D = 256, MAX_TOKENS = 1 << 24 };

typedef struct pages {
    PyObject_HEAD
    la_kv_form form;
    int n_heads, d;
    int length, capacity; /* tokens */
    size_t k_bytes;       /* of one head's K in a page; V follows */
    size_t head_bytes;    /* of both, a multiple of 64 */
    size_t bytes;
    uint8_t *data; /* [pages][n_heads] blocks of head_bytes */
} pages;

/* In the order of la_kv_form. */
static const char *const form_names[LA_KV_FORM_COUNT] = {
    [LA_KV_F32] = "F32", [LA_KV_BF16] = "BF16", [LA_KV_I8] = "int8", [LA_KV_F8] = "fp8"};

static uint8_t *page_block(const pages *p, int page, int head)
{
    return p->data + ((size_t)page * (size_t)p->n_heads + (size_t)head) * p->head_bytes;
}

static PyObject *pages_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"n_heads", "d", "max_tokens", "dtype", NULL};
    py_state *state = PyType_GetModuleState(type);
    int n_heads, d, capacity, form = 0;
    const char *dtype;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiis:Pages", names, &n_heads, &d, &capacity,
                                     &dtype)) {
        return NULL;
    }
    while (form < LA_KV_FORM_COUNT && strcmp(form_names[form], dtype) != 0) {
        form++;
    }
    if (form == LA_KV_FORM_COUNT) {
        return py_raise_format(
            state, LA_ERR_UNSUPPORTED,
            "dtype: pages of %.40s are not supported, only F32, BF16, int8 and fp8", dtype);
    }
    if (n_heads < 1 || n_heads > PY_ATTEND_HEADS || d < 1 || d > MAX_D || capacity < 1 ||
        capacity > MAX_TOKENS) {
        return py_raise_format(state, LA_ERR_ARGUMENT,
                               "n_heads, d, max_tokens: %d, %d, %d; expected 1..%d, 1..%d, 1..%d",
                               n_heads, d, capacity, (int)PY_ATTEND_HEADS, (int)MAX_D,
                               (int)MAX_TOKENS);
    }
    pages *self = (pages *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->form = (la_kv_form)form;
    self->n_heads = n_heads;
    self->d = d;
    self->capacity = capacity;
    self->k_bytes = la_round_up(la_kv_k_bytes(self->form, d), 64);
    self->head_bytes = self->k_bytes + la_round_up(la_kv_v_bytes(self->form, d), 64);
    size_t n = (size_t)la_ceil_div(capacity, LA_PAGE);
    if (!la_size_mul(self->head_bytes, (size_t)n_heads, &self->bytes) ||
        !la_size_mul(self->bytes, n, &self->bytes) || (self->data = la_map(self->bytes)) == NULL) {
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
    Py_ssize_t row = (Py_ssize_t)self->n_heads * self->d, n = k.len / 4 / row;
    int bad = k.len != v.len || k.len != n * row * 4 || n > self->capacity - self->length;
    if (bad) {
        py_raise_format(py_state_of_object(object), LA_ERR_ARGUMENT,
                        "k, v: %zd and %zd values; room for at most %d tokens of %zd", k.len / 4,
                        v.len / 4, self->capacity - self->length, row);
    }
    la_store_fn store = la_kernels_store(&t, self->form);
    for (int64_t i = 0; !bad && i < n; i++) {
        int at = self->length + (int)i;
        for (int h = 0; h < self->n_heads; h++) {
            uint8_t *block = page_block(self, at / LA_PAGE, h);
            const float *from_k = (const float *)k.buf + i * row + h * self->d;
            const float *from_v = (const float *)v.buf + i * row + h * self->d;
            store(from_k, from_v, self->d, at % LA_PAGE, block, block + self->k_bytes);
        }
    }
    self->length += bad ? 0 : (int)n;
    PyBuffer_Release(&k);
    PyBuffer_Release(&v);
    if (bad) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- attend ------------------------------------------------------------------------------------ */

/* Rows of one kernel call: `tokens` tokens from t0 on, `heads` query heads from h0 on. */
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
    const pages *p = job->pages;
    la_attend_walk walk = job->walk;
    int R = tile->tokens * tile->heads, wide = la_attend_wide(p->d);
    for (int r = 0; r < R; r++) {
        own->pos[r] = job->pos[tile->t0 + r / tile->heads];
        memcpy(own->q + r * wide, job->q + tile_row(job, tile, r), (size_t)p->d * sizeof(float));
    }
    if (walk.sinks != NULL) { /* of the tile's heads */
        walk.sinks += tile->h0;
        walk.heads = tile->heads;
    }
    int head = tile->h0 / (job->H / p->n_heads);
    la_attend_pages at = {.base = page_block(p, 0, head),
                          .pitch = p->head_bytes * (size_t)p->n_heads,
                          .k_bytes = p->k_bytes};
    la_attend_rows(&walk, &at, own, R);
    for (int r = 0; r < R; r++) {
        float *out = job->out + tile_row(job, tile, r);
        walk.k->attend_finish(own->o + r * wide, own->l[r], out, p->d);
    }
}

/* Tiles in a fixed order; thread tid takes every nth. */
static void attend_share(void *arg, int tid, int nth)
{
    const py_attend_job *job = arg;
    const pages *p = job->pages;
    int group = job->H / p->n_heads, most = group < PY_ATTEND_ROWS ? group : PY_ATTEND_ROWS;
    int step = PY_ATTEND_ROWS / most, turn = 0;
    la_attend_room own = py_attend_room(job, tid);
    for (int kv = 0; kv < p->n_heads; kv++) {
        for (int h = 0; h < group; h += most) {
            for (int t = 0; t < job->T; t += step, turn = (turn + 1) % nth) {
                attend_tile tile = {t, job->T - t < step ? job->T - t : step, kv * group + h,
                                    group - h < most ? group - h : most};
                if (turn == tid) {
                    attend_rows(job, &own, &tile);
                }
            }
        }
    }
}

static PyObject *pages_attend(PyObject *object, PyObject *args)
{
    const pages *p = (pages *)object;
    py_attend_call call;
    py_attend_job job = {.pages = p, .length = p->length, .walk = {.form = p->form, .d = p->d}};
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
    if (job.H % p->n_heads != 0) {
        return py_raise_format(state, LA_ERR_ARGUMENT,
                               "q: %d heads are no multiple of the pages' %d", job.H, p->n_heads);
    }
    return py_attend(state, &call, &job, attend_share);
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
