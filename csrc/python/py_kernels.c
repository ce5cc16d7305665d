/* py_kernels.c - packing, products and activation rows on user buffers.
 *
 * Owns the Python functions that run one kernel slot of one level on plain buffers (buffer protocol
 * in, bytes out). Invariant: everything a kernel takes for granted (alignment, sizes, formats) is
 * checked or made here. Surroundings of every array are filled with NaN patterns, so a kernel that
 * reads or writes outside its contract shows. Used by the kernel tests, the benchmarks and, for
 * rounding rows, kernels/packed.py. Rows and one chunk of attention are in py_kernels_rows.c; what
 * users get, in py_kernels_packed.c and py_kernels_pages.c.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>

#include "../base/base.h"
#include "../base/cpu.h"
#include "../base/pool.h"
#include "../kernels/act_rows.h"
#include "../model/pack.h"

#include "py_kernels.h"

enum { MAX_PARTS = 8, LINE = 64, POISON = 0xff };

/* A packed weight as Python passes it around: its bytes and the numbers that describe them. */
typedef struct weight {
    la_weight w; /* data is borrowed from view */
    Py_buffer view;
} weight;

int py_kernels_isa(const char *name, la_kernels *out)
{
    int isa = la_cpu_isa_from_name(name);
    if (isa < 0 || !la_kernels_have((la_isa)isa) || !la_cpu_has(isa)) {
        PyErr_Format(PyExc_ValueError, "isa: %s is unknown or not available here", name);
        return -1;
    }
    la_kernels_select((la_isa)isa, out, NULL);
    return isa;
}

int py_kernels_floats(PyObject *obj, const char *name, Py_buffer *view)
{
    if (PyObject_GetBuffer(obj, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        return -1;
    }
    if (view->itemsize != 4 || !view->format || strcmp(view->format, "f") != 0 ||
        (uintptr_t)view->buf % sizeof(float) != 0) {
        PyErr_Format(PyExc_TypeError, "%s: expected contiguous, aligned float32", name);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

int py_kernels_threads(int *threads)
{
    if (*threads < 0 || *threads > PY_KERNELS_THREADS) {
        PyErr_Format(PyExc_ValueError, "threads: %d is not in 0..%d", *threads,
                     (int)PY_KERNELS_THREADS);
        return -1;
    }
    int most = la_cpu_count();
    if (*threads == 0) {
        *threads = most < PY_KERNELS_THREADS ? most : PY_KERNELS_THREADS;
    }
    return 0;
}

la_status py_kernels_pool(int threads, la_pool **out)
{
    *out = NULL;
    return threads > 1 ? la_pool_create(threads, out) : LA_OK;
}

void py_kernels_run(la_pool *pool, void (*fn)(void *arg, int tid, int nth), void *arg)
{
    if (pool != NULL) {
        la_pool_run(pool, fn, arg);
    }
    else {
        fn(arg, 0, 1);
    }
}

/* ---- lists ----------------------------------------------------------------------------------- */

static PyObject *kernel_isas(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    PyObject *list = PyList_New(0);
    for (int isa = 0; list && isa < LA_ISA_COUNT; isa++) {
        if (!la_kernels_have((la_isa)isa) || !la_cpu_has(isa)) {
            continue;
        }
        PyObject *name = PyUnicode_FromString(la_cpu_isa_name(isa));
        if (!name || PyList_Append(list, name) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(name);
    }
    return list;
}

static PyObject *kernel_slots(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *name;
    la_kernels t;
    la_isa which[128] = {LA_ISA_SCALAR};
    if (!PyArg_ParseTuple(args, "s:kernel_slots", &name)) {
        return NULL;
    }
    int isa = py_kernels_isa(name, &t);
    if (isa < 0) {
        return NULL;
    }
    if (la_kernels_count() > (int)(sizeof which / sizeof which[0])) {
        PyErr_SetString(PyExc_SystemError, "more kernel slots than kernel_slots expects");
        return NULL;
    }
    la_kernels_select((la_isa)isa, &t, which);
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < la_kernels_count(); i++) {
        PyObject *level = PyUnicode_FromString(la_cpu_isa_name((int)which[i]));
        if (!level || PyDict_SetItemString(dict, la_kernels_name(i), level) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(level);
    }
    return dict;
}

/* ---- packing --------------------------------------------------------------------------------- */

static int read_part(PyObject *item, la_source *part, Py_buffer *view)
{
    PyObject *data;
    int dtype, rows, cols;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "pack: a part is (data, dtype, rows, cols)");
        return -1;
    }
    if (!PyArg_ParseTuple(item, "Oiii:part", &data, &dtype, &rows, &cols) ||
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    *part =
        (la_source){view->buf, (size_t)view->len, (la_dtype)dtype, rows, cols, NULL, {0, 0, 0.0f}};
    return 0;
}

/* (packed bytes, description) of the parts. */
static PyObject *pack_parts(const la_source *parts, int n, const int *recipe, int paired)
{
    la_format f;
    la_weight w;
    if (la_pack_format((la_dtype)recipe[0], (la_quant)recipe[1], parts, n, &f) != LA_OK ||
        la_pack_plan(f, parts, n, paired, &w) != LA_OK) {
        PyErr_SetString(PyExc_ValueError, la_last_error());
        return NULL;
    }
    size_t bytes = (size_t)w.n_units * w.unit_bytes;
    void *scratch = la_alloc(1, la_pack_scratch());
    PyObject *out = bytes <= PY_SSIZE_T_MAX ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes)
                                            : PyErr_NoMemory();
    if (!scratch || !out) {
        la_free(scratch);
        Py_XDECREF(out);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    w.data = (uint8_t *)PyBytes_AS_STRING(out);
    memset(w.data, POISON, bytes);
    int bad = 0;
    Py_BEGIN_ALLOW_THREADS
    for (int u = 0; bad == 0 && u < w.n_units; u++) {
        bad = la_pack_unit(&w, parts, n, paired, u, scratch);
    }
    Py_END_ALLOW_THREADS
    la_free(scratch);
    if (bad != 0) {
        Py_DECREF(out);
        return PyErr_Format(PyExc_ValueError, "pack: part %d is %s", (bad < 0 ? -bad : bad) - 1,
                            bad < 0 ? "too large for fp16 scales" : "not finite");
    }
    return Py_BuildValue("N{sisisisisisisi}", out, "pack", (int)f.pack, "scale_type",
                         (int)f.scale_type, "has_offset", (int)f.has_offset, "row_scale",
                         (int)f.row_scale, "group", (int)f.group, "N", w.N, "K", w.K);
}

static PyObject *pack(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *list, *result = NULL;
    int recipe[2] = {0, LA_QUANT_KEEP}, paired; /* la_dtype, la_quant */
    la_source parts[MAX_PARTS];
    Py_buffer views[MAX_PARTS];
    if (!PyArg_ParseTuple(args, "O!ip|i:pack", &PyList_Type, &list, &recipe[0], &paired,
                          &recipe[1])) {
        return NULL;
    }
    Py_ssize_t n = PyList_GET_SIZE(list), held = 0;
    if (n > MAX_PARTS) {
        PyErr_Format(PyExc_ValueError, "pack: %zd parts, at most %d", n, (int)MAX_PARTS);
        return NULL;
    }
    while (held < n && read_part(PyList_GET_ITEM(list, held), &parts[held], &views[held]) == 0) {
        held++;
    }
    if (held == n) {
        result = pack_parts(parts, (int)n, recipe, paired);
    }
    while (held > 0) {
        PyBuffer_Release(&views[--held]);
    }
    return result;
}

static int group_valid(int group)
{
    return group == 16 || group == 32 || group == 64 || group == 128 || group == 256;
}

static int format_valid(la_format f)
{
    int f8 = f.pack == LA_PACK_F8, centered = f8 || la_pack_table(f.pack) != NULL;
    int grouped = f.pack >= LA_PACK_I8;
    int scale = f.scale_type == LA_F32 || (f.scale_type == LA_F16 && !f8);
    if (la_scales_apart(f)) {
        scale =
            !f8 && !f.row_scale && f.group < LA_NEST && !(f.scale_type == LA_E8M0 && f.has_offset);
    }
    return f.pack < LA_PACK_COUNT && f.has_offset <= !centered && f.row_scale <= 1 &&
           (grouped ? group_valid(f.group) && scale
                    : f.group == 0 && !f.has_offset && !f.row_scale && !la_scales_apart(f));
}

static int item(PyObject *dict, const char *key, int *out)
{
    PyObject *value = PyDict_GetItemString(dict, key);
    long x = value ? PyLong_AsLong(value) : 0;
    if (!value || (x == -1 && PyErr_Occurred()) || x < 0 || x > INT_MAX) {
        PyErr_Format(PyExc_ValueError, "format: %s is missing or out of range", key);
        return -1;
    }
    *out = (int)x;
    return 0;
}

/* (bytes, description) into p; the buffer is held until packed_release. */
static int packed_read(PyObject *data, PyObject *dict, weight *p)
{
    int pack_, scale_type, has_offset, row_scale, group, K;
    if (item(dict, "pack", &pack_) < 0 || item(dict, "scale_type", &scale_type) < 0 ||
        item(dict, "has_offset", &has_offset) < 0 || item(dict, "row_scale", &row_scale) < 0 ||
        item(dict, "group", &group) < 0 || item(dict, "K", &K) < 0) {
        return -1;
    }
    la_format f = {(uint8_t)(pack_ & 255), (uint8_t)(scale_type & 255), (uint8_t)(has_offset & 255),
                   (uint8_t)(row_scale & 255), group};
    if ((pack_ | scale_type | has_offset | row_scale) > 255 || K < 1 || !format_valid(f)) {
        PyErr_SetString(PyExc_ValueError, "format: not a packed weight");
        return -1;
    }
    if (PyObject_GetBuffer(data, &p->view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    size_t unit = la_format_unit(f, K), bytes = (size_t)p->view.len;
    if (bytes == 0 || bytes % unit != 0 || bytes / unit > INT_MAX / LA_UNIT) {
        PyErr_Format(PyExc_ValueError, "packed: %zu bytes are no units of %zu", bytes, unit);
        PyBuffer_Release(&p->view);
        return -1;
    }
    int units = (int)(bytes / unit);
    p->w = (la_weight){f, units * LA_UNIT, K, units, unit, p->view.buf};
    return 0;
}

static PyObject *unpack(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *data, *dict;
    int row;
    la_kernels t;
    weight p;
    if (!PyArg_ParseTuple(args, "sOO!i:unpack", &isa, &data, &PyDict_Type, &dict, &row) ||
        py_kernels_isa(isa, &t) < 0 || packed_read(data, dict, &p) < 0) {
        return NULL;
    }
    PyObject *out = NULL;
    size_t bytes = p.w.unit_bytes;
    uint8_t *unit = la_map(bytes); /* page-aligned */
    if (row < 0 || row >= p.w.N) {
        PyErr_Format(PyExc_ValueError, "row: %d is not in 0..%d", row, p.w.N - 1);
    }
    else if (!unit) {
        PyErr_NoMemory();
    }
    else {
        out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)p.w.K * 4);
    }
    if (out) {
        memcpy(unit, p.w.data + (size_t)(row / LA_UNIT) * bytes, bytes);
        t.unpack_row(unit, p.w.f, row % LA_UNIT, p.w.K, (float *)(void *)PyBytes_AS_STRING(out));
    }
    la_unmap(unit, bytes);
    PyBuffer_Release(&p.view);
    return out;
}

/* ---- activation rows ------------------------------------------------------------------------- */

typedef struct activations {
    la_act_rows rows; /* [M], a line of padding after each */
    int M;
    size_t bytes, meta_bytes;
} activations;

static void rows_free(activations *r)
{
    la_unmap(r->rows.a, r->bytes);
    la_free(r->rows.meta);
}

/* Rows as a product counts them. */
static int rows_lanes(const activations *r)
{
    return r->M * r->rows.lanes;
}

/* Allocates the rows; padding and everything else is NaN patterns until a slot fills it. */
static int rows_init(activations *r, Py_ssize_t n_floats)
{
    la_act_rows *rows = &r->rows;
    if (n_floats == 0 || n_floats % rows->K != 0 || n_floats / rows->K > INT_MAX / rows->lanes) {
        PyErr_Format(PyExc_ValueError, "x: %zd values are no rows of %d", n_floats, rows->K);
        return -1;
    }
    r->M = (int)(n_floats / rows->K);
    rows->pitch += LINE;
    size_t lanes = (size_t)r->M * (size_t)rows->lanes, metas = lanes * (size_t)rows->groups;
    if (!la_size_mul(rows->pitch, lanes, &r->bytes) || !(rows->a = la_map(r->bytes + LINE)) ||
        (metas && !(rows->meta = la_alloc(metas, sizeof *rows->meta)))) {
        rows_free(r);
        PyErr_NoMemory();
        return -1;
    }
    r->meta_bytes = metas * sizeof *rows->meta;
    memset(rows->a, POISON, r->bytes);
    return 0;
}

static void rows_fill(activations *r, const la_kernels *t, const float *x)
{
    for (int m = 0; m < r->M; m++) {
        la_act_rows_convert(t, &r->rows, m, x + (int64_t)m * r->rows.K);
    }
}

int py_kernels_form(const char *name)
{
    static const char *const forms[LA_ACT_FORM_COUNT] = {"f32", "f64", "bf16", "i8", "i8x2"};
    for (int i = 0; i < LA_ACT_FORM_COUNT; i++) {
        if (strcmp(name, forms[i]) == 0) {
            return i;
        }
    }
    PyErr_Format(PyExc_ValueError, "act: %s is none of f32, f64, bf16, i8, i8x2", name);
    return -1;
}

static PyObject *act_rows(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa, *act;
    PyObject *x;
    int K, group;
    la_kernels t;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "ssOii:act_rows", &isa, &act, &x, &K, &group) ||
        py_kernels_isa(isa, &t) < 0) {
        return NULL;
    }
    int form = py_kernels_form(act);
    if (form < 0) {
        return NULL;
    }
    if (K < 1 || (group != 0 && !group_valid(group)) || (form >= LA_ACT_I8 && group == 0)) {
        return PyErr_Format(PyExc_ValueError, "act_rows: K %d with groups of %d", K, group);
    }
    if (py_kernels_floats(x, "x", &view) < 0) {
        return NULL;
    }
    activations r = {.rows = la_act_rows_plan((la_act_form)form, K, group)};
    PyObject *result = NULL;
    if (rows_init(&r, view.len / 4) == 0) {
        rows_fill(&r, &t, view.buf);
        result = Py_BuildValue("y#ny#", r.rows.a, (Py_ssize_t)r.bytes, (Py_ssize_t)r.rows.pitch,
                               r.rows.meta, (Py_ssize_t)r.meta_bytes);
        rows_free(&r);
    }
    PyBuffer_Release(&view);
    return result;
}

/* ---- products -------------------------------------------------------------------------------- */

/* A slot and the table that it is from. */
typedef struct product {
    la_kernels t;
    la_gemm_fn fn;
} product;

/* Runs the slot granule by granule; y [M][N]. 0, or -1 if it wrote outside its columns. */
static int gemm_run(const product *x, const weight *p, const activations *r, int granule, float *y)
{
    const size_t unit = p->w.unit_bytes, pitch = unit + LINE;
    const size_t w_bytes = (size_t)granule * pitch;
    const int width = granule * LA_UNIT, ldc = width + 16, N = p->w.N, M = rows_lanes(r);
    const size_t c_bytes = (size_t)M * (size_t)ldc * sizeof(float);
    uint8_t *w = la_map(w_bytes);
    float *c = la_map(c_bytes);
    int bad = w && c ? 0 : -2;
    uint32_t poison;
    memset(&poison, POISON, sizeof poison);
    for (int u = 0; u < p->w.n_units && bad == 0; u += granule) {
        int n = p->w.n_units - u < granule ? p->w.n_units - u : granule;
        memset(w, POISON, w_bytes);
        memset(c, POISON, c_bytes);
        for (int i = 0; i < n; i++) {
            memcpy(w + (size_t)i * pitch, p->w.data + (size_t)(u + i) * unit, unit);
        }
        la_gemm g = la_act_rows_gemm(&r->rows, 0, r->M, (la_units){w, pitch, n, p->w.f}, c);
        g.ldc = ldc;
        g.next = u + n < p->w.n_units ? w : NULL;
        g.next_bytes = g.next != NULL ? w_bytes : 0;
        x->fn(&g);
        for (int m = 0; m < r->M; m++) {
            const float *row = la_act_rows_result(&x->t, &r->rows, &g, m);
            memcpy(y + (size_t)m * (size_t)N + u * LA_UNIT, row, (size_t)n * LA_UNIT * 4);
        }
        for (int m = 0; m < M; m++) {
            for (int j = n * LA_UNIT; j < ldc; j++) {
                bad = memcmp(c + (size_t)m * (size_t)ldc + j, &poison, 4) != 0 ? -1 : bad;
            }
        }
    }
    la_unmap(w, w_bytes);
    la_unmap(c, c_bytes);
    return bad;
}

static PyObject *gemm_result(const product *x, const weight *p, const activations *r, int granule)
{
    Py_ssize_t bytes = (Py_ssize_t)r->M * p->w.N * 4;
    PyObject *out = PyBytes_FromStringAndSize(NULL, bytes);
    int bad = 0;
    if (!out) {
        return NULL;
    }
    float *y = (float *)(void *)PyBytes_AS_STRING(out);
    Py_BEGIN_ALLOW_THREADS
    bad = gemm_run(x, p, r, granule, y);
    Py_END_ALLOW_THREADS
    if (bad) {
        Py_DECREF(out);
        return bad == -1 ? PyErr_Format(PyExc_RuntimeError, "the kernel wrote outside its columns")
                         : PyErr_NoMemory();
    }
    return out;
}

static PyObject *gemm(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa, *act;
    PyObject *data, *dict, *x, *result = NULL;
    int granule = 8, fold = 0;
    product run;
    weight p;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "sOO!Os|ii:gemm", &isa, &data, &PyDict_Type, &dict, &x, &act,
                          &granule, &fold) ||
        py_kernels_isa(isa, &run.t) < 0) {
        return NULL;
    }
    int form = py_kernels_form(act);
    if (form < 0 || packed_read(data, dict, &p) < 0) {
        return NULL;
    }
    run.fn = la_kernels_gemm(&run.t, p.w.f, (la_act_form)form);
    fold = fold ? fold : p.w.f.group;
    if (!run.fn || granule < 1 || granule > 8 || fold > p.w.f.group ||
        (fold != p.w.f.group && (form < LA_ACT_I8 || !group_valid(fold)))) {
        PyErr_Format(
            PyExc_ValueError,
            "gemm: pack %d in groups of %d with %s rows in groups of %d and granules of %d",
            (int)p.w.f.pack, (int)p.w.f.group, act, fold, granule);
    }
    else if (py_kernels_floats(x, "x", &view) == 0) {
        activations r = {.rows = la_act_rows_plan((la_act_form)form, p.w.K, fold)};
        if (rows_init(&r, view.len / 4) == 0) {
            rows_fill(&r, &run.t, view.buf);
            result = gemm_result(&run, &p, &r, granule);
            rows_free(&r);
        }
        PyBuffer_Release(&view);
    }
    PyBuffer_Release(&p.view);
    return result;
}

/* One thread's share of every matrix [first, last) of a buffer that holds them one after another. */
typedef struct gemm_share {
    int units; /* of a matrix */
    int first, last;
    int tid, nth;
} gemm_share;

/* As the engine calls a slot: pairs of units when there are many rows, runs of 8 when few. */
static void gemm_shares(const product *x, const weight *p, const activations *r, gemm_share s,
                        float *c)
{
    const size_t pitch = p->w.unit_bytes;
    const int M = rows_lanes(r), step = M > 8 ? 2 : 8;
    int begin = (int)((int64_t)s.units * s.tid / s.nth) / step * step;
    int end =
        s.tid + 1 == s.nth ? s.units : (int)((int64_t)s.units * (s.tid + 1) / s.nth) / step * step;
    for (int i = s.first; i < s.last; i++) {
        const uint8_t *w = p->w.data + (size_t)i * (size_t)s.units * pitch;
        for (int u = begin; u < end; u += step) {
            int n = end - u < step ? end - u : step;
            int after = end - u - n < step ? end - u - n : step;
            la_units units = {w + (size_t)u * pitch, pitch, n, p->w.f};
            la_gemm g = la_act_rows_gemm(&r->rows, 0, r->M, units, c);
            g.next = after ? w + (size_t)(u + n) * pitch : NULL;
            g.next_bytes = (size_t)after * pitch;
            x->fn(&g);
            for (int m = 0; m < r->M; m++) {
                (void)la_act_rows_result(&x->t, &r->rows, &g, m);
            }
        }
    }
}

static PyObject *gemm_time(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa, *act;
    PyObject *data, *dict, *x, *result = NULL;
    gemm_share s;
    product run;
    weight p;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "sOO!Os(iiiii):gemm_time", &isa, &data, &PyDict_Type, &dict, &x,
                          &act, &s.units, &s.first, &s.last, &s.tid, &s.nth) ||
        py_kernels_isa(isa, &run.t) < 0) {
        return NULL;
    }
    int form = py_kernels_form(act);
    if (form < 0 || packed_read(data, dict, &p) < 0) {
        return NULL;
    }
    run.fn = la_kernels_gemm(&run.t, p.w.f, (la_act_form)form);
    if (!run.fn || s.units < 1 || s.first < 0 || s.last > p.w.n_units / s.units || s.tid < 0 ||
        s.tid >= s.nth || (uintptr_t)p.w.data % LINE != 0) {
        PyErr_SetString(PyExc_ValueError, "gemm_time: no such share, or the units are not aligned");
    }
    else if (py_kernels_floats(x, "x", &view) == 0) {
        int group = la_act_rows_group((la_act_form)form, p.w.f);
        activations r = {.rows = la_act_rows_plan((la_act_form)form, p.w.K, group)};
        size_t lanes = (size_t)(view.len / 4 / p.w.K) * (size_t)r.rows.lanes;
        float *c = la_map(lanes * 8 * LA_UNIT * sizeof(float));
        if (!c) {
            PyErr_NoMemory();
        }
        else if (rows_init(&r, view.len / 4) == 0) {
            double begin, end;
            rows_fill(&r, &run.t, view.buf);
            Py_BEGIN_ALLOW_THREADS
            begin = la_now();
            gemm_shares(&run, &p, &r, s, c);
            end = la_now();
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("dd", begin, end);
            rows_free(&r);
        }
        la_unmap(c, lanes * 8 * LA_UNIT * sizeof(float));
        PyBuffer_Release(&view);
    }
    PyBuffer_Release(&p.view);
    return result;
}

static PyMethodDef methods[] = {
    {"kernel_isas", kernel_isas, METH_NOARGS,
     "kernel_isas() -> list of the levels compiled in and supported here, lowest first."},
    {"kernel_slots", kernel_slots, METH_VARARGS,
     "kernel_slots(isa) -> dict of slot name to the level that fills it."},
    {"pack", pack, METH_VARARGS,
     "pack(parts, weights, paired) -> (bytes, format dict)\n\n"
     "parts: list of (buffer, dtype number, rows, cols). weights: dtype number that float\n"
     "tensors become, 0 to dequantize all, the number of dtypes to keep. ValueError if the parts\n"
     "do not fit together."},
    {"unpack", unpack, METH_VARARGS,
     "unpack(isa, packed, format, row) -> float32 bytes [K]; row counts padded columns."},
    {"act_rows", act_rows, METH_VARARGS,
     "act_rows(isa, act, x, K, group) -> (bytes [M][lanes][pitch], pitch, meta bytes)."},
    {"gemm", gemm, METH_VARARGS,
     "gemm(isa, packed, format, x, act, granule=8, fold=0) -> float32 bytes [M, 32 * units]\n\n"
     "x: float32 [M, K]; act: f32, f64, bf16, i8 or i8x2; granule: units per call of the slot; "
     "fold: k\n"
     "of an activation group of int8 rows, 0: the weights' group."},
    {"gemm_time", gemm_time, METH_VARARGS,
     "gemm_time(isa, packed, format, x, act, (units, first, last, tid, nth)) -> (begin, end)\n\n"
     "Runs thread tid's share of matrices first..last-1 of `units` units each, as the engine "
     "would,\n"
     "and gives the monotonic times around it, in seconds. For benchmarks."},
    {NULL, NULL, 0, NULL},
};

int py_kernels_register(PyObject *module)
{
    static int (*const parts[])(PyObject *) = {
        py_kernels_rows_register,  py_kernels_packed_register, py_kernels_cache_register,
        py_kernels_pages_register, py_kernels_latent_register, py_kernels_moe_register,
        py_kernels_fp8_register,   py_kernels_probe_register,  py_kernels_device_register};
    int failed = PyModule_AddFunctions(module, methods) < 0;
    for (size_t i = 0; !failed && i < sizeof parts / sizeof parts[0]; i++) {
        failed = parts[i](module) < 0;
    }
    return failed ? -1 : 0;
}
