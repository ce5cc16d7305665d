/* py_kernels_latent.c - the Python object LatentPages: latents and keys of one sequence, attention over them.
 *
 * Owns a run of MLA pages in the kernels' own layout, and the functions through which tests reach the
 * slots alone. Invariants: tokens are stored once, in order; rows walk them as the engine's do
 * (kernels/attend_walk.h), so a row's bits do not depend on the rows beside it or on threads.
 * Wrapped by python/llmaccel/kernels/latent.py.
 */
#include "py_module.h"

#include "../base/base.h"
#include "../kernels/kernels.h"

#include "py_kernels_attend.h"
#include "py_kernels_call.h"

enum { MAX_RANK = 1 << 13, MAX_KEY = 256, MAX_TOKENS = 1 << 24 };

typedef struct latents {
    PyObject_HEAD
    la_kv_form form;
    int r, p;             /* widths of latent and key */
    int length, capacity; /* tokens */
    size_t page, bytes;
    uint8_t *data; /* pages of `page` bytes */
} latents;

static const char *const form_names[LA_KV_FORM_COUNT] = {
    [LA_KV_F32] = "F32", [LA_KV_BF16] = "BF16", [LA_KV_I8] = "", [LA_KV_F8] = "fp8"};

/* A form by name and the widths of a token; 0, or -1 with an exception set. */
static int parse_form(const char *name, int r, int p, la_kv_form *out)
{
    int form = 0;
    while (form < LA_KV_FORM_COUNT && strcmp(form_names[form], name) != 0) {
        form++;
    }
    if (form == LA_KV_FORM_COUNT || name[0] == 0) {
        PyErr_Format(PyExc_ValueError, "dtype: latents of %.40s are not kept, only F32, BF16, fp8",
                     name);
        return -1;
    }
    if (r < 4 || r > MAX_RANK || r % 4 != 0 || p < 2 || p > MAX_KEY || p % 2 != 0) {
        PyErr_Format(PyExc_ValueError, "r, p: %d, %d; expected 4..%d in fours and 2..%d in pairs",
                     r, p, (int)MAX_RANK, (int)MAX_KEY);
        return -1;
    }
    *out = (la_kv_form)form;
    return 0;
}

static PyObject *latents_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"r", "p", "max_tokens", "dtype", NULL};
    py_state *state = PyType_GetModuleState(type);
    int r, p, capacity;
    const char *dtype;
    la_kv_form form;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiis:LatentPages", names, &r, &p, &capacity,
                                     &dtype) ||
        parse_form(dtype, r, p, &form) < 0) {
        return NULL;
    }
    if (capacity < 1 || capacity > MAX_TOKENS) {
        return py_raise_format(state, LA_ERR_ARGUMENT, "max_tokens: %d is not in 1..%d", capacity,
                               (int)MAX_TOKENS);
    }
    latents *self = (latents *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->form = form;
    self->r = r;
    self->p = p;
    self->capacity = capacity;
    self->page = la_kv_latent_bytes(form, r, p);
    if (!la_size_mul(self->page, (size_t)la_ceil_div(capacity, LA_PAGE), &self->bytes) ||
        (self->data = la_map(self->bytes)) == NULL) {
        self->bytes = 0;
        Py_DECREF(self);
        return py_raise_format(state, LA_ERR_MEMORY, "max_tokens: no memory for %d tokens",
                               capacity);
    }
    return (PyObject *)self;
}

static void latents_dealloc(PyObject *object)
{
    latents *self = (latents *)object;
    PyTypeObject *type = Py_TYPE(object);
    la_unmap(self->data, self->bytes);
    type->tp_free(object);
    Py_DECREF(type);
}

/* The GIL is held throughout: two stores cannot take the same place. */
static PyObject *latents_store(PyObject *object, PyObject *args)
{
    const char *isa;
    PyObject *ox, *ok;
    la_kernels t;
    Py_buffer x, k;
    latents *self = (latents *)object;
    if (!PyArg_ParseTuple(args, "sOO:store", &isa, &ox, &ok) || py_kernels_isa(isa, &t) < 0 ||
        py_kernels_floats(ox, "latent", &x) < 0) {
        return NULL;
    }
    if (py_kernels_floats(ok, "key", &k) < 0) {
        PyBuffer_Release(&x);
        return NULL;
    }
    Py_ssize_t n = x.len / 4 / self->r;
    int bad =
        x.len != n * self->r * 4 || k.len != n * self->p * 4 || n > self->capacity - self->length;
    if (bad) {
        py_raise_format(py_state_of_object(object), LA_ERR_ARGUMENT,
                        "latent, key: %zd and %zd values; room for at most %d tokens of %d and %d",
                        x.len / 4, k.len / 4, self->capacity - self->length, self->r, self->p);
    }
    la_mla_store_fn store = la_kernels_mla_store(&t, self->form);
    for (int64_t i = 0; !bad && i < n; i++) {
        int at = self->length + (int)i;
        store((const float *)x.buf + i * self->r, (const float *)k.buf + i * self->p, self->r,
              self->p, at % LA_PAGE, self->data + (size_t)(at / LA_PAGE) * self->page);
    }
    self->length += bad ? 0 : (int)n;
    PyBuffer_Release(&x);
    PyBuffer_Release(&k);
    if (bad) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- attend ------------------------------------------------------------------------------------ */

/* Rows first .. first + R - 1, counted by token, then head. */
static void attend_rows(const py_attend_job *job, const la_attend_room *own, int first, int R)
{
    const latents *p = job->pages;
    int d = job->walk.d, wide = la_attend_wide(d);
    for (int r = 0; r < R; r++) {
        own->pos[r] = job->pos[(first + r) / job->H];
        memcpy(own->q + r * wide, job->q + (int64_t)(first + r) * d, (size_t)d * sizeof(float));
    }
    la_attend_pages at = {.base = p->data, .pitch = p->page};
    la_attend_rows(&job->walk, &at, own, R);
    for (int r = 0; r < R; r++) {
        float *out = job->out + (int64_t)(first + r) * p->r;
        job->walk.k->attend_finish(own->o + r * wide, own->l[r], out, p->r);
    }
}

/* Tiles in a fixed order; thread tid takes every nth. */
static void attend_share(void *arg, int tid, int nth)
{
    const py_attend_job *job = arg;
    la_attend_room own = py_attend_room(job, tid);
    int rows = job->T * job->H;
    for (int first = tid * PY_ATTEND_ROWS; first < rows; first += nth * PY_ATTEND_ROWS) {
        int R = rows - first < PY_ATTEND_ROWS ? rows - first : PY_ATTEND_ROWS;
        attend_rows(job, &own, first, R);
    }
}

static PyObject *latents_attend(PyObject *object, PyObject *args)
{
    const latents *p = (latents *)object;
    py_attend_call call = {.sinks = Py_None};
    py_attend_job job = {
        .pages = p, .length = p->length, .walk = {.form = p->form, .d = p->r + p->p, .dv = p->r}};
    if (!PyArg_ParseTuple(args, "sOOOifi:attend", &call.isa, &call.q, &call.positions, &call.out,
                          &job.H, &job.walk.scale, &call.threads)) {
        return NULL;
    }
    return py_attend(py_state_of_object(object), &call, &job, attend_share);
}

/* ---- the slots alone --------------------------------------------------------------------------- */

static PyObject *mla_page_bytes(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *dtype;
    int r, p;
    la_kv_form form;
    if (!PyArg_ParseTuple(args, "sii:mla_page_bytes", &dtype, &r, &p) ||
        parse_form(dtype, r, p, &form) < 0) {
        return NULL;
    }
    return PyLong_FromSize_t(la_kv_latent_bytes(form, r, p));
}

static PyObject *mla_store(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa, *dtype;
    PyObject *ox, *ok, *opage;
    int r, p, tok;
    la_kv_form form;
    py_call c;
    if (!PyArg_ParseTuple(args, "ssOOiiiO:mla_store", &isa, &dtype, &ox, &ok, &r, &p, &tok,
                          &opage) ||
        parse_form(dtype, r, p, &form) < 0) {
        return NULL;
    }
    py_call_begin(&c, isa);
    py_call_range(&c, "tok", tok, 0, LA_PAGE - 1);
    const float *x = py_call_in(&c, ox, "latent", r);
    const float *k = py_call_in(&c, ok, "key", p);
    void *page = py_call_bytes(&c, opage, "page", la_kv_latent_bytes(form, r, p), 1);
    if (c.ok) {
        la_kernels_mla_store(&c.t, form)(x, k, r, p, tok, page);
    }
    return py_call_end(&c);
}

static PyObject *mla_attend(PyObject *Py_UNUSED(self), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "", "", "", "", "",     "",    "",
                            "", "", "", "", "", "more", "set", NULL};
    const char *isa, *dtype;
    PyObject *oq, *opos, *opages, *om, *ol, *oo;
    int r, p;
    la_kv_form form;
    la_attend_args g = {0};
    py_call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ssOOiiOiifOOO|$pi:mla_attend", names, &isa,
                                     &dtype, &oq, &opos, &r, &p, &opages, &g.n_pages, &g.first,
                                     &g.scale, &om, &ol, &oo, &g.more, &g.set) ||
        parse_form(dtype, r, p, &form) < 0) {
        return NULL;
    }
    py_call_begin(&c, isa);
    py_call_attend_rows(&c, opos, &g);
    g.d = r + p;
    g.dv = r;
    g.ldq = g.d;
    g.ldo = (g.d + 15) / 16 * 16;
    Py_ssize_t R = g.R;
    size_t page = la_kv_latent_bytes(form, r, p);
    g.q = py_call_in(&c, oq, "q", R * g.ldq);
    const uint8_t *first = py_call_bytes(&c, opages, "pages", page * (size_t)g.n_pages, 0);
    g.m = py_call_out(&c, om, "m", R);
    g.l = py_call_out(&c, ol, "l", R);
    g.o = py_call_out(&c, oo, "o", R * g.ldo);
    const uint8_t *pages[LA_CHUNK / LA_PAGE];
    for (int i = 0; c.ok && i < g.n_pages; i++) {
        pages[i] = first + page * (size_t)i;
    }
    g.k_pages = pages;
    py_call_attend(&c, la_kernels_mla_attend(&c.t, form), &g, la_mla_scratch(g.d, g.dv));
    return py_call_end(&c);
}

/* ---- registration ------------------------------------------------------------------------------ */

static Py_ssize_t latents_length(PyObject *object)
{
    return ((latents *)object)->length;
}

static PyObject *latents_get_nbytes(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(((latents *)object)->bytes);
}

static PyMethodDef latents_methods[] = {
    {"store", latents_store, METH_VARARGS,
     "store(isa, latent, key): appends tokens, float32 [T, r] and [T, p]."},
    {"attend", latents_attend, METH_VARARGS,
     "attend(isa, q, positions, out, H, scale, threads)\n\n"
     "q float32 [T, H, r + p], out [T, H, r]; positions: int32 [T], of stored tokens."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef latents_getset[] = {
    {"nbytes", latents_get_nbytes, NULL, "bytes at max_tokens; touched as tokens come", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot latents_slots[] = {
    {Py_tp_doc, "LatentPages(r, p, max_tokens, dtype)\n\n"
                "MLA pages of one sequence; use llmaccel.kernels.LatentPages instead."},
    {Py_tp_new, latents_new},
    {Py_tp_dealloc, latents_dealloc},
    {Py_tp_methods, latents_methods},
    {Py_tp_getset, latents_getset},
    {Py_sq_length, latents_length},
    {0, NULL},
};

static PyType_Spec latents_spec = {
    .name = "llmaccel._core.LatentPages",
    .basicsize = (int)sizeof(latents),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = latents_slots,
};

static PyMethodDef functions[] = {
    {"mla_page_bytes", mla_page_bytes, METH_VARARGS,
     "mla_page_bytes(dtype, r, p) -> bytes of 64 tokens."},
    {"mla_store", mla_store, METH_VARARGS,
     "mla_store(isa, dtype, latent, key, r, p, tok, page): writes one token into slot tok, 0..63."},
    {"mla_attend", (PyCFunction)(void (*)(void))mla_attend, METH_VARARGS | METH_KEYWORDS,
     "mla_attend(isa, dtype, q, row_pos, r, p, pages, n_pages, first, scale, m, l, o, *, more, "
     "set)\n\n"
     "One chunk: q [R, r + p], m and l [R], o [R, r + p rounded up to 16]; positions int32 [R]."},
    {NULL, NULL, 0, NULL},
};

int py_kernels_latent_register(PyObject *module)
{
    if (PyModule_AddFunctions(module, functions) < 0) {
        return -1;
    }
    return py_add_type(module, &latents_spec, &py_state_of(module)->latents_type);
}
