/* py_kernels_packed.c - the Python object Packed: one weight matrix in units, and what reads it.
 *
 * Owns the packed bytes, on a device if its source was there, or holds the buffer that they lie in. Invariant: they are written once, when
 * the object is made, so products on several threads may read them together; sizes, types and ranges
 * are checked here before a kernel sees them. A row's bits depend on that row and the weight: threads
 * take whole units. Wrapped by python/llmaccel/kernels/packed.py.
 */
#include "py_module.h"

#include <limits.h>

#include "../base/base.h"
#include "../base/cpu.h"
#include "../base/pool.h"
#include "../device.h"
#include "../kernels/act_rows.h"
#include "../model/pack.h"

#include "py_kernels.h"

enum { LINE = 64 };

typedef struct packed {
    PyObject_HEAD
    la_weight w;
    size_t bytes;
    Py_buffer held;        /* of somebody else's bytes; held.obj is NULL where they are ours */
    Py_ssize_t extents[3]; /* [units, bytes of a unit], as the buffer protocol shows them */
    PyObject *backend;     /* on whose device the bytes are; NULL: host memory */
} packed;

/* 0, or -1 with an exception set where the bytes are on a device. */
static int want_host(const packed *self, const char *name)
{
    if (self->backend == NULL) {
        return 0;
    }
    py_raise_format(py_state_of_object((PyObject *)self), LA_ERR_UNSUPPORTED,
                    "%s: this weight is packed on a device, for products there alone", name);
    return -1;
}

const la_weight *py_kernels_weight(py_state *state, PyObject *object, const char *name)
{
    if (!PyObject_TypeCheck(object, state->packed_type)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a Packed, got %.100s", name,
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    return want_host((packed *)object, name) == 0 ? &((packed *)object)->w : NULL;
}

/* ---- making ------------------------------------------------------------------------------------ */

typedef struct pack_job {
    const la_weight *w;
    const la_source *source;
    uint8_t *scratch; /* [threads] pieces of `pitch` bytes */
    size_t pitch;
    int *bad; /* [threads] what la_pack_unit returned */
} pack_job;

static void pack_share(void *arg, int tid, int nth)
{
    const pack_job *job = arg;
    int end = (int)((int64_t)job->w->n_units * (tid + 1) / nth), bad = 0;
    for (int u = (int)((int64_t)job->w->n_units * tid / nth); bad == 0 && u < end; u++) {
        bad = la_pack_unit(job->w, job->source, 1, 0, u, job->scratch + job->pitch * (size_t)tid);
    }
    job->bad[tid] = bad;
}

/* Fills self, whose format is f, from a checked source. */
static la_status pack_source(packed *self, const la_source *source, la_format f, int threads)
{
    la_pool *pool = NULL;
    pack_job job = {&self->w, source, NULL, la_round_up(la_pack_scratch(), LINE), NULL};
    la_status st;
    LA_TRY(la_pack_plan(f, source, 1, 0, &self->w));
    self->bytes = (size_t)self->w.n_units * self->w.unit_bytes;
    self->w.data = la_map(self->bytes);
    job.scratch = la_alloc((size_t)threads, job.pitch);
    job.bad = la_alloc((size_t)threads, sizeof *job.bad);
    if (self->w.data == NULL || job.scratch == NULL || job.bad == NULL) {
        st = la_fail(LA_ERR_MEMORY, "weight: no memory for %zu packed bytes", self->bytes);
        goto done;
    }
    LA_TRY(py_kernels_pool(threads, &pool));
    py_kernels_run(pool, pack_share, &job);
    for (int i = 0; i < threads && st == LA_OK; i++) {
        if (job.bad[i] != 0) {
            st = la_fail(LA_ERR_SHAPE, "a value is %s and cannot be quantized",
                         job.bad[i] < 0 ? "too large for fp16 scales" : "not finite");
        }
    }
done:
    la_pool_free(pool);
    la_free(job.scratch);
    la_free(job.bad);
    return st;
}

/* What decides a format: the source's type and shape, and what becomes of it. */
typedef struct packed_recipe {
    la_source source; /* data and bytes are the caller's to set */
    la_dtype weights; /* LA_DTYPE_COUNT ("auto"): as stored */
    la_quant quant;
} packed_recipe;

static int recipe_from(py_state *state, const char *dtype, const char *format, const char *quantize,
                       packed_recipe *out)
{
    out->weights = LA_DTYPE_COUNT;
    if (py_quant_from(state, quantize, &out->quant) < 0 ||
        py_dtype_from(state, dtype, &out->source.dtype) < 0 ||
        (strcmp(format, "auto") != 0 && py_dtype_from(state, format, &out->weights) < 0)) {
        return -1;
    }
    if (la_plain_of((int)out->source.dtype).ordered) {
        py_raise_format(state, LA_ERR_UNSUPPORTED, "dtype: %s is for models", dtype);
        return -1;
    }
    return 0;
}

/* Shapes are an argument here, not a file's. */
static PyObject *raise_argument(const py_state *state, la_status st)
{
    return py_raise(state, st == LA_ERR_SHAPE ? LA_ERR_ARGUMENT : st);
}

static void set_extents(packed *self)
{
    self->extents[0] = self->w.n_units;
    self->extents[1] = (Py_ssize_t)self->w.unit_bytes;
    self->extents[2] = 1; /* and both strides: [bytes of a unit, 1] */
}

/* The same on the device of a tensor: bytes as its products want them. 0, or -1 with an exception set. */
static int pack_there(py_state *state, packed *self, const la_source *source, la_format f)
{
    la_backend *b = py_backend_get(state, self->backend);
    la_status st = la_pack_plan(f, source, 1, 0, &self->w);
    if (b == NULL) {
        return -1;
    }
    self->bytes = (size_t)self->w.n_units * self->w.unit_bytes;
    if (st == LA_OK) {
        Py_BEGIN_ALLOW_THREADS
        st = la_device_pack(b, &self->w, source);
        Py_END_ALLOW_THREADS
    }
    if (st != LA_OK) {
        raise_argument(state, st);
    }
    return st == LA_OK ? 0 : -1;
}

static int pack_here(py_state *state, packed *self, const la_source *source, la_format f,
                     int threads)
{
    la_status st;
    Py_BEGIN_ALLOW_THREADS
    st = pack_source(self, source, f, threads);
    Py_END_ALLOW_THREADS
    if (st != LA_OK) {
        raise_argument(state, st);
    }
    return st == LA_OK ? 0 : -1;
}

static PyObject *packed_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data",     "dtype",   "rows", "cols", "format",
                            "quantize", "threads", "near", NULL};
    py_state *state = PyType_GetModuleState(type);
    PyObject *data, *near = Py_None;
    const char *dtype, *format, *quantize;
    int threads;
    la_format f;
    packed_recipe r = {.source = {0}};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Osiissi|O:Packed", names, &data, &dtype,
                                     &r.source.rows, &r.source.cols, &format, &quantize, &threads,
                                     &near) ||
        recipe_from(state, dtype, format, quantize, &r) < 0 || py_kernels_threads(&threads) < 0) {
        return NULL;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_C_CONTIGUOUS) < 0) {
        return NULL;
    }
    r.source.data = view.buf;
    r.source.bytes = (size_t)view.len;
    la_status st = la_pack_format(r.weights, r.quant, &r.source, 1, &f);
    packed *self = st == LA_OK ? (packed *)type->tp_alloc(type, 0) : NULL;
    if (st != LA_OK) {
        raise_argument(state, st);
    }
    if (self != NULL) {
        self->backend = Py_XNewRef(py_tensor_owner(state, near));
        int failed = self->backend != NULL ? pack_there(state, self, &r.source, f)
                                           : pack_here(state, self, &r.source, f, threads);
        set_extents(self);
        if (failed < 0) {
            Py_CLEAR(self);
        }
    }
    PyBuffer_Release(&view);
    return (PyObject *)self;
}

/* The weight that a source would become, without its bytes; 0, or -1 with an exception set. */
static int plan_from(py_state *state, packed_recipe *r, la_weight *w)
{
    la_format f;
    la_status st =
        la_source_bytes(r->source.dtype, r->source.rows, r->source.cols, &r->source.bytes);
    if (st == LA_OK) {
        st = la_pack_format(r->weights, r->quant, &r->source, 1, &f);
    }
    if (st == LA_OK) {
        st = la_pack_plan(f, &r->source, 1, 0, w);
    }
    if (st != LA_OK) {
        raise_argument(state, st);
    }
    return st == LA_OK ? 0 : -1;
}

static PyObject *packed_extents(PyObject *type, PyObject *args)
{
    py_state *state = PyType_GetModuleState((PyTypeObject *)type);
    const char *dtype, *format, *quantize;
    packed_recipe r = {.source = {0}};
    la_weight w;
    if (!PyArg_ParseTuple(args, "siiss:extents", &dtype, &r.source.rows, &r.source.cols, &format,
                          &quantize) ||
        recipe_from(state, dtype, format, quantize, &r) < 0 || plan_from(state, &r, &w) < 0) {
        return NULL;
    }
    return Py_BuildValue("(in)", w.n_units, (Py_ssize_t)w.unit_bytes);
}

static PyObject *packed_over(PyObject *type_object, PyObject *args)
{
    PyTypeObject *type = (PyTypeObject *)type_object;
    py_state *state = PyType_GetModuleState(type);
    PyObject *data;
    const char *dtype, *format, *quantize;
    packed_recipe r = {.source = {0}};
    la_weight w;
    if (!PyArg_ParseTuple(args, "Osiiss:over", &data, &dtype, &r.source.rows, &r.source.cols,
                          &format, &quantize) ||
        recipe_from(state, dtype, format, quantize, &r) < 0 || plan_from(state, &r, &w) < 0) {
        return NULL;
    }
    packed *self = (packed *)type->tp_alloc(type, 0);
    if (self == NULL || PyObject_GetBuffer(data, &self->held, PyBUF_C_CONTIGUOUS) < 0) {
        Py_XDECREF(self);
        return NULL;
    }
    self->bytes = (size_t)w.n_units * w.unit_bytes;
    if ((size_t)self->held.len != self->bytes || (uintptr_t)self->held.buf % LINE != 0) {
        py_raise_format(state, LA_ERR_ARGUMENT,
                        "data: expected %zu bytes at a multiple of %d, got %zd at %p", self->bytes,
                        (int)LINE, self->held.len, self->held.buf);
        Py_DECREF(self);
        return NULL;
    }
    self->w = w;
    self->w.data = self->held.buf;
    set_extents(self);
    return (PyObject *)self;
}

/* Units and their bytes; what writes there changes the weight. */
static int packed_get_buffer(PyObject *object, Py_buffer *view, int flags)
{
    packed *self = (packed *)object;
    int read_only = self->held.obj != NULL && self->held.readonly;
    if (self->backend != NULL) {
        PyErr_SetString(PyExc_BufferError, "this weight is packed on a device");
        return -1;
    }
    if (PyBuffer_FillInfo(view, object, self->w.data, (Py_ssize_t)self->bytes, read_only, flags) <
        0) {
        return -1;
    }
    if (flags & PyBUF_ND) {
        view->ndim = 2;
        view->shape = self->extents;
        view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->extents + 1 : NULL;
    }
    return 0;
}

static void drop_there(packed *self)
{
    PyObject *error, *value, *trace;
    PyErr_Fetch(&error, &value, &trace);
    la_backend *b = py_backend_get(py_state_of_object((PyObject *)self), self->backend);
    if (b != NULL) { /* else it is another process's */
        Py_BEGIN_ALLOW_THREADS
        la_device_free(b, self->w.data);
        Py_END_ALLOW_THREADS
    }
    PyErr_Clear();
    PyErr_Restore(error, value, trace);
    Py_DECREF(self->backend);
}

static void packed_dealloc(PyObject *object)
{
    packed *self = (packed *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->held.obj != NULL) {
        PyBuffer_Release(&self->held);
    }
    else if (self->backend == NULL) {
        la_unmap(self->w.data, self->bytes);
    }
    else {
        drop_there(self);
    }
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- products ---------------------------------------------------------------------------------- */

/* y [M][N] = rows [M][K] times the weight, plus bias. */
typedef struct linear_job {
    const la_kernels *k;
    la_gemm_fn fn;
    const la_weight *w;
    la_act_rows rows; /* [M]; where x is right as it is, rows.a is x */
    int M;
    const float *x;    /* [M][K] */
    const float *bias; /* [N] or NULL */
    float *y;          /* [M][N] */
    float *tiles;      /* [threads][PY_TILE_FLOATS] */
} linear_job;

static void convert_share(void *arg, int tid, int nth)
{
    const linear_job *job = arg;
    int end = (int)((int64_t)job->M * (tid + 1) / nth);
    for (int m = (int)((int64_t)job->M * tid / nth); m < end; m++) {
        la_act_rows_convert(job->k, &job->rows, m, job->x + (int64_t)m * job->w->K);
    }
}

static void multiply_tile(const linear_job *job, la_gemm g, int row0, int u)
{
    int left = job->w->N - u * LA_UNIT, cols = left < g.ldc ? left : g.ldc;
    job->fn(&g);
    for (int r = 0; r < g.M / job->rows.lanes; r++) {
        float *c = la_act_rows_result(job->k, &job->rows, &g, r);
        if (job->bias != NULL) {
            job->k->add(job->bias + u * LA_UNIT, c, cols);
        }
        memcpy(job->y + (int64_t)(row0 + r) * job->w->N + u * LA_UNIT, c,
               (size_t)cols * sizeof(float));
    }
}

static void multiply_share(void *arg, int tid, int nth)
{
    const linear_job *job = arg;
    const la_weight *w = job->w;
    int step = py_kernels_units(job->M, job->rows.lanes), most = PY_TILE_ROWS / job->rows.lanes;
    int first = (int)((int64_t)w->n_units * tid / nth);
    int end = (int)((int64_t)w->n_units * (tid + 1) / nth);
    float *tile = job->tiles + (size_t)tid * PY_TILE_FLOATS;
    for (int row0 = 0, rows; row0 < job->M; row0 += rows) {
        rows = job->M - row0 < most ? job->M - row0 : most;
        for (int u = first; u < end; u += step) {
            int n = end - u < step ? end - u : step;
            la_units at = {w->data + (size_t)u * w->unit_bytes, w->unit_bytes, n, w->f};
            multiply_tile(job, la_act_rows_gemm(&job->rows, row0, rows, at, tile), row0, u);
        }
    }
}

/* Rows as the kernel wants them: x itself where it is, and *row_bytes stays 0. */
static int linear_plan(linear_job *job, int threads, size_t *row_bytes)
{
    la_act_rows *rows = &job->rows;
    job->tiles = la_map((size_t)threads * PY_TILE_FLOATS * sizeof(float));
    *row_bytes = 0;
    int right = la_act_is_float(rows->form) && rows->K % 16 == 0 && (uintptr_t)job->x % LINE == 0;
    if (right) {
        rows->a = (uint8_t *)(uintptr_t)job->x;
        return job->tiles != NULL;
    }
    size_t lanes = (size_t)job->M * (size_t)rows->lanes, metas = lanes * (size_t)rows->groups;
    if (!la_size_mul(rows->pitch, lanes, row_bytes)) {
        return 0;
    }
    rows->a = la_map(*row_bytes);
    rows->meta = metas != 0 ? la_alloc(metas, sizeof *rows->meta) : NULL;
    return job->tiles != NULL && rows->a != NULL && (metas == 0 || rows->meta != NULL);
}

static la_status linear_run(linear_job *job, int threads)
{
    la_pool *pool = NULL;
    size_t row_bytes = 0;
    la_status st;
    if (!linear_plan(job, threads, &row_bytes)) {
        st = la_fail(LA_ERR_MEMORY, "x: no memory for %d converted rows", job->M);
        goto done;
    }
    LA_TRY(py_kernels_pool(threads, &pool));
    if (row_bytes != 0) {
        py_kernels_run(pool, convert_share, job);
    }
    py_kernels_run(pool, multiply_share, job);
done:
    la_pool_free(pool);
    la_unmap(row_bytes != 0 ? job->rows.a : NULL, row_bytes);
    la_unmap(job->tiles, (size_t)threads * PY_TILE_FLOATS * sizeof(float));
    la_free(job->rows.meta);
    return st;
}

/* The three buffers of a product: x, y and perhaps bias. 0, or -1 with an exception set. */
static int linear_views(linear_job *job, const Py_buffer *views, int held)
{
    const la_weight *w = job->w;
    Py_ssize_t n = views[0].len / 4;
    if (n == 0 || n % w->K != 0 || n / w->K > INT_MAX) {
        PyErr_Format(PyExc_ValueError, "x: %zd values are no rows of %d", n, w->K);
        return -1;
    }
    job->M = (int)(n / w->K);
    if (views[1].len / 4 != (Py_ssize_t)job->M * w->N || views[1].readonly) {
        PyErr_Format(PyExc_ValueError, "y: expected %d writable rows of %d", job->M, w->N);
        return -1;
    }
    if (held == 3 && views[2].len / 4 != w->N) {
        PyErr_Format(PyExc_ValueError, "bias: %zd values, expected %d", views[2].len / 4, w->N);
        return -1;
    }
    job->x = views[0].buf;
    job->y = views[1].buf;
    job->bias = held == 3 ? views[2].buf : NULL;
    return 0;
}

static PyObject *packed_linear(PyObject *object, PyObject *args)
{
    const char *isa, *act;
    PyObject *arrays[3];
    int threads, held = 0;
    la_kernels t;
    Py_buffer views[3];
    packed *self = (packed *)object;
    if (!PyArg_ParseTuple(args, "ssOOOi:linear", &isa, &act, &arrays[0], &arrays[1], &arrays[2],
                          &threads) ||
        py_kernels_isa(isa, &t) < 0 || py_kernels_threads(&threads) < 0) {
        return NULL;
    }
    int form = py_kernels_form(act);
    if (form < 0) {
        return NULL;
    }
    if (self->backend != NULL) { /* how rows enter is the format's affair there */
        return py_kernels_device_linear(py_state_of_object(object), &self->w, arrays);
    }
    linear_job job = {.k = &t, .w = &self->w};
    job.rows = la_act_rows_plan((la_act_form)form, self->w.K, self->w.f.group);
    job.fn = la_kernels_gemm(&t, self->w.f, job.rows.form);
    if (job.fn == NULL) {
        return PyErr_Format(PyExc_ValueError, "activation: no product of %s rows with this weight",
                            act);
    }
    static const char *const names[] = {"x", "y", "bias"};
    int n = arrays[2] == Py_None ? 2 : 3;
    while (held < n && py_kernels_floats(arrays[held], names[held], &views[held]) == 0) {
        held++;
    }
    la_status st = LA_OK;
    int ready = held == n && linear_views(&job, views, held) == 0;
    if (ready) {
        Py_BEGIN_ALLOW_THREADS
        st = linear_run(&job, threads);
        Py_END_ALLOW_THREADS
    }
    while (held > 0) {
        PyBuffer_Release(&views[--held]);
    }
    if (!ready || st != LA_OK) {
        return ready ? py_raise(py_state_of_object(object), st) : NULL;
    }
    Py_RETURN_NONE;
}

/* ---- rows --------------------------------------------------------------------------------------- */

static PyObject *packed_unpack(PyObject *object, PyObject *args)
{
    const char *isa;
    PyObject *ids_object, *out_object;
    la_kernels t;
    Py_buffer out;
    packed *self = (packed *)object;
    const la_weight *w = &self->w;
    if (!PyArg_ParseTuple(args, "sOO:unpack", &isa, &ids_object, &out_object) ||
        py_kernels_isa(isa, &t) < 0 || want_host(self, "rows") < 0) {
        return NULL;
    }
    int n;
    int32_t *ids = py_ids_from(py_state_of_object(object), ids_object, "ids", &n);
    if (ids == NULL || py_kernels_floats(out_object, "out", &out) < 0) {
        PyMem_Free(ids);
        return NULL;
    }
    int bad = out.readonly || out.len / 4 != (Py_ssize_t)n * w->K;
    if (bad) {
        PyErr_Format(PyExc_ValueError, "out: expected %d writable rows of %d", n, w->K);
    }
    for (int i = 0; !bad && i < n; i++) {
        bad = ids[i] < 0 || ids[i] >= w->N;
        if (bad) {
            py_raise_format(py_state_of_object(object), LA_ERR_ARGUMENT, "ids: %d is not in 0..%d",
                            (int)ids[i], w->N - 1);
        }
    }
    if (!bad) {
        Py_BEGIN_ALLOW_THREADS
        for (int i = 0; i < n; i++) {
            t.unpack_row(w->data + (size_t)(ids[i] / LA_UNIT) * w->unit_bytes, w->f,
                         ids[i] % LA_UNIT, w->K, (float *)out.buf + (int64_t)i * w->K);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out);
    PyMem_Free(ids);
    if (bad) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *packed_get_format(PyObject *object, void *closure)
{
    static const char *const packs[LA_PACK_COUNT] = {
        [LA_PACK_F32] = "F32", [LA_PACK_F16] = "F16",   [LA_PACK_BF16] = "BF16",
        [LA_PACK_I8] = "int8", [LA_PACK_I4] = "int4",   [LA_PACK_F8] = "fp8",
        [LA_PACK_I5] = "int5", [LA_PACK_I6] = "int6",   [LA_PACK_NF4] = "nf4",
        [LA_PACK_FP4] = "fp4", [LA_PACK_E2M1] = "e2m1", [LA_PACK_IQ4] = "iq4",
    };
    (void)closure;
    la_format f = ((packed *)object)->w.f;
    const char *const types[] = {
        [LA_F32] = "F32", [LA_F16] = "F16", [LA_F16_I8] = "F16_I8", [LA_E8M0] = "E8M0"};
    const char *scale = f.group == 0 ? NULL : types[f.scale_type];
    return Py_BuildValue("{sssiszsOsO}", "codes", packs[f.pack], "group", (int)f.group, "scales",
                         scale, "offsets", f.has_offset ? Py_True : Py_False, "per_row",
                         f.row_scale ? Py_True : Py_False);
}

static PyObject *packed_get_shape(PyObject *object, void *closure)
{
    (void)closure;
    return Py_BuildValue("(ii)", ((packed *)object)->w.N, ((packed *)object)->w.K);
}

static PyObject *packed_get_nbytes(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(((packed *)object)->bytes);
}

static PyObject *packed_get_device(PyObject *object, void *closure)
{
    packed *self = (packed *)object;
    (void)closure;
    if (self->backend == NULL) {
        return PyUnicode_FromString("cpu");
    }
    la_backend *b = py_backend_get(py_state_of_object(object), self->backend);
    return b != NULL ? PyUnicode_FromFormat("cuda:%d", la_device_number(b)) : NULL;
}

static PyMethodDef packed_methods[] = {
    {"linear", packed_linear, METH_VARARGS,
     "linear(isa, activation, x, y, bias, threads): y [M, N] = x [M, K] W^T + bias\n\n"
     "activation: f32, f64, bf16, i8 or i8x2; bias: float32 [N] or None; threads: 0 takes all "
     "processors."},
    {"unpack", packed_unpack, METH_VARARGS,
     "unpack(isa, ids, out): out [len(ids), K] = those rows as float32."},
    {"extents", packed_extents, METH_VARARGS | METH_CLASS,
     "extents(dtype, rows, cols, format, quantize): (units, bytes of a unit) that they would "
     "take."},
    {"over", packed_over, METH_VARARGS | METH_CLASS,
     "over(data, dtype, rows, cols, format, quantize): on packed bytes [units, bytes of a unit] of "
     "somebody else, which it holds."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef packed_getset[] = {
    {"shape", packed_get_shape, NULL, "(N, K)", NULL},
    {"nbytes", packed_get_nbytes, NULL, "bytes of the packed form", NULL},
    {"format", packed_get_format, NULL, "dict: codes, group, scales, offsets, per_row", NULL},
    {"device", packed_get_device, NULL, "str: 'cpu' or 'cuda:0'", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot packed_slots[] = {
    {Py_tp_doc,
     "Packed(data, dtype, rows, cols, format, quantize, threads, near=None)\n\n"
     "A weight in the core's layout, on the device of `near` if that is a Tensor on one; "
     "use llmaccel.kernels.pack instead."},
    {Py_tp_new, packed_new},
    {Py_tp_dealloc, packed_dealloc},
    {Py_tp_methods, packed_methods},
    {Py_tp_getset, packed_getset},
    {Py_bf_getbuffer, packed_get_buffer},
    {0, NULL},
};

static PyType_Spec packed_spec = {
    .name = "llmaccel._core.Packed",
    .basicsize = (int)sizeof(packed),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = packed_slots,
};

int py_kernels_packed_register(PyObject *module)
{
    return py_add_type(module, &packed_spec, &py_state_of(module)->packed_type);
}
