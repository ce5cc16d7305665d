/* py_kernels_rows.c - row, attention and sampling kernels on user buffers.
 *
 * Owns one Python function per slot of rows.h, attention.h and sample.h: each runs that slot of the level
 * it is given. Inputs and outputs are contiguous float32 or int32 buffers, outputs are written in
 * place. Invariant: every size, type and range the kernel takes for granted is checked here first.
 * Used by python/llmaccel/kernels/, which checks shapes, and by the kernel tests.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>

#include "py_kernels.h"
#include "py_kernels_call.h"

enum { ANY = PY_CALL_ANY, MAX_D = 256, MAX_PAGES = LA_CHUNK / LA_PAGE };

/* ---- rows ------------------------------------------------------------------------------------- */

static PyObject *rms_norm(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox, *ow, *oy;
    float eps;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOOfO:rms_norm", &isa, &ox, &ow, &eps, &oy)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *w = py_call_in(&c, ow, "w", ANY);
    int D = c.n;
    const float *x = py_call_in(&c, ox, "x", ANY);
    int rows = py_call_rows(&c, "x", D);
    float *y = py_call_out(&c, oy, "y", c.n);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t i = 0; i < rows; i++) {
            c.t.rms_norm(x + i * D, w, eps, y + i * D, D);
        }
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

static PyObject *layer_norm(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox, *ow, *ob, *oy;
    float eps;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOOOfO:layer_norm", &isa, &ox, &ow, &ob, &eps, &oy)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *w = py_call_in(&c, ow, "w", ANY);
    int D = c.n;
    const float *b = ob == Py_None ? NULL : py_call_in(&c, ob, "b", D);
    const float *x = py_call_in(&c, ox, "x", ANY);
    int rows = py_call_rows(&c, "x", D);
    float *y = py_call_out(&c, oy, "y", c.n);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t i = 0; i < rows; i++) {
            c.t.layer_norm(x + i * D, w, b, eps, y + i * D, D);
        }
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

static PyObject *add_scaled(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox, *oy;
    float s;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOfO:add_scaled", &isa, &ox, &s, &oy)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *x = py_call_in(&c, ox, "x", ANY);
    float *y = py_call_out(&c, oy, "y", c.n);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        c.t.add_scaled(x, s, y, c.n);
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

static PyObject *add(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ob, *oy;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOO:add", &isa, &ob, &oy)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *b = py_call_in(&c, ob, "b", ANY);
    float *y = py_call_out(&c, oy, "y", c.n);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        c.t.add(b, y, c.n);
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

static int call_act(py_call *c, const char *name)
{
    /* as LA_GATE_* */
    static const char *const names[] = {"silu", "gelu", "gelu_tanh", "relu", "clip"};
    for (int i = 0; i <= LA_GATE_CLIP; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    py_call_fail(c, PyExc_ValueError, "act: %s is none of silu, gelu, gelu_tanh, relu, clip", name);
    return -1;
}

static PyObject *act_mul(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa, *name;
    PyObject *og, *ou, *oy;
    py_call c;
    if (!PyArg_ParseTuple(args, "ssOOO:act_mul", &isa, &name, &og, &ou, &oy)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    int kind = call_act(&c, name);
    const float *gate = py_call_in(&c, og, "gate", ANY);
    const float *up = py_call_in(&c, ou, "up", c.n);
    float *y = py_call_out(&c, oy, "y", c.n);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        c.t.act_mul(kind, gate, up, 16, y, c.n);
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

static PyObject *act(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa, *name;
    PyObject *ox, *oy;
    py_call c;
    if (!PyArg_ParseTuple(args, "ssOO:act", &isa, &name, &ox, &oy)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    int kind = call_act(&c, name);
    const float *x = py_call_in(&c, ox, "x", ANY);
    float *y = py_call_out(&c, oy, "y", c.n);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        c.t.act(kind, x, y, c.n);
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

static PyObject *rope(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox, *oc, *os;
    int heads, d, interleaved;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOOOiip:rope", &isa, &ox, &oc, &os, &heads, &d, &interleaved)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    py_call_range(&c, "heads", heads, 1, INT_MAX);
    py_call_range(&c, "d", d, 1, INT_MAX / (heads > 0 ? heads : 1));
    float *x = py_call_out(&c, ox, "x", ANY);
    int tokens = py_call_rows(&c, "x", c.ok ? heads * d : 1);
    const float *co = py_call_in(&c, oc, "cos", ANY);
    int half = c.ok ? c.n / tokens : 0;
    if (c.ok && (c.n % tokens != 0 || half > d / 2)) {
        py_call_fail(&c, PyExc_ValueError, "cos: %d values for %d tokens of %d", c.n, tokens, d);
    }
    const float *si = py_call_in(&c, os, "sin", c.n);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t i = 0; i < (int64_t)tokens * heads; i++) {
            int64_t at = i / heads * half;
            c.t.rope(x + i * d, co + at, si + at, 2 * half, interleaved);
        }
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

static PyObject *softcap(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox;
    float s, cap;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOff:softcap", &isa, &ox, &s, &cap)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    float *x = py_call_out(&c, ox, "x", ANY);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        c.t.softcap(x, s, cap, c.n);
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

/* ---- attention -------------------------------------------------------------------------------- */

static la_kv_form call_form(py_call *c, const char *kv)
{
    static const char *const names[] = {"f32", "bf16", "i8", "f8"};
    for (int i = 0; i < LA_KV_FORM_COUNT; i++) {
        if (strcmp(kv, names[i]) == 0) {
            return (la_kv_form)i;
        }
    }
    py_call_fail(c, PyExc_ValueError, "kv: %s is none of f32, bf16, i8, f8", kv);
    return LA_KV_F32;
}

static PyObject *kv_page_bytes(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *kv;
    int d;
    py_call c = {.ok = 1};
    if (!PyArg_ParseTuple(args, "si:kv_page_bytes", &kv, &d)) {
        return NULL;
    }
    la_kv_form form = call_form(&c, kv);
    py_call_range(&c, "d", d, 1, MAX_D);
    return c.ok ? Py_BuildValue("nn", (Py_ssize_t)la_kv_k_bytes(form, d),
                                (Py_ssize_t)la_kv_v_bytes(form, d))
                : NULL;
}

static PyObject *kv_store(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa, *kv;
    PyObject *ok, *ov, *okp, *ovp;
    int tok;
    py_call c;
    if (!PyArg_ParseTuple(args, "ssOOiOO:kv_store", &isa, &kv, &ok, &ov, &tok, &okp, &ovp)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    la_kv_form form = call_form(&c, kv);
    const float *k = ok == Py_None ? NULL : py_call_in(&c, ok, "k", ANY);
    const float *v = ov == Py_None ? NULL : py_call_in(&c, ov, "v", k != NULL ? c.n : ANY);
    py_call_range(&c, "d", c.n, 1, MAX_D);
    py_call_range(&c, "tok", tok, 0, LA_PAGE - 1);
    void *kp = py_call_bytes(&c, okp, "k_page", la_kv_k_bytes(form, c.n), 1);
    void *vp = py_call_bytes(&c, ovp, "v_page", la_kv_v_bytes(form, c.n), 1);
    if (c.ok) {
        la_kernels_store(&c.t, form)(k, v, c.n, tok, kp, vp);
    }
    return py_call_end(&c);
}

static PyObject *attend(PyObject *Py_UNUSED(self), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "", "", "", "", "", "",     "",    "",
                            "", "", "", "", "", "", "more", "set", NULL};
    const char *isa, *kv;
    PyObject *oq, *opos, *okp, *ovp, *om, *ol, *oo;
    la_attend_args g = {0};
    py_call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ssOOiOOiiiffOOO|$pi:attend", names, &isa, &kv,
                                     &oq, &opos, &g.d, &okp, &ovp, &g.n_pages, &g.first, &g.window,
                                     &g.scale, &g.softcap, &om, &ol, &oo, &g.more, &g.set)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    la_kv_form form = call_form(&c, kv);
    py_call_range(&c, "d", g.d, 1, MAX_D);
    py_call_attend_rows(&c, opos, &g);
    g.q = py_call_in(&c, oq, "q", ANY);
    g.ldq = c.ok ? c.n / g.R : 0;
    if (c.ok && (c.n % g.R != 0 || g.ldq < g.d)) {
        py_call_fail(&c, PyExc_ValueError, "q: %d values are no %d rows of %d", c.n, g.R, g.d);
    }
    g.o = py_call_out(&c, oo, "o", ANY);
    g.ldo = c.ok ? c.n / g.R : 0;
    if (c.ok && (c.n % g.R != 0 || g.ldo < (g.d + 15) / 16 * 16)) {
        py_call_fail(&c, PyExc_ValueError, "o: %d values are no %d rows of %d rounded up to 16",
                     c.n, g.R, g.d);
    }
    g.m = py_call_out(&c, om, "m", g.R);
    g.l = py_call_out(&c, ol, "l", g.R);
    size_t kb = c.ok ? la_kv_k_bytes(form, g.d) : 0, vb = c.ok ? la_kv_v_bytes(form, g.d) : 0;
    const uint8_t *k = py_call_bytes(&c, okp, "k_pages", kb * (size_t)g.n_pages, 0);
    const uint8_t *v = py_call_bytes(&c, ovp, "v_pages", vb * (size_t)g.n_pages, 0);
    if (c.ok) {
        const uint8_t *ks[MAX_PAGES], *vs[MAX_PAGES];
        for (int i = 0; i < g.n_pages; i++) {
            ks[i] = k + (size_t)i * kb;
            vs[i] = v + (size_t)i * vb;
        }
        g.k_pages = ks;
        g.v_pages = vs;
        py_call_attend(&c, la_kernels_attend(&c.t, form), &g, 0);
    }
    return py_call_end(&c);
}

static PyObject *attend_merge(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *oo, *oo2;
    float m, l, m2, l2;
    py_call c;
    if (!PyArg_ParseTuple(args, "sffOffO:attend_merge", &isa, &m, &l, &oo, &m2, &l2, &oo2)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    float *o = py_call_out(&c, oo, "o", ANY);
    const float *o2 = py_call_in(&c, oo2, "o2", c.n);
    if (c.ok) {
        c.t.attend_merge(&m, &l, o, m2, l2, o2, c.n);
    }
    PyObject *done = py_call_end(&c);
    Py_XDECREF(done);
    return done != NULL ? Py_BuildValue("dd", (double)m, (double)l) : NULL;
}

static PyObject *attend_finish(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *oo, *oout;
    float l;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOfO:attend_finish", &isa, &oo, &l, &oout)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *o = py_call_in(&c, oo, "o", ANY);
    float *out = py_call_out(&c, oout, "out", c.n);
    if (c.ok) {
        c.t.attend_finish(o, l, out, c.n);
    }
    return py_call_end(&c);
}

/* ---- sampling --------------------------------------------------------------------------------- */

static PyObject *argmax(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox;
    py_call c;
    if (!PyArg_ParseTuple(args, "sO:argmax", &isa, &ox)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *x = py_call_in(&c, ox, "x", ANY);
    float max = 0.0f;
    int at = c.ok ? c.t.argmax(x, c.n, &max) : 0;
    PyObject *done = py_call_end(&c);
    Py_XDECREF(done);
    return done != NULL ? Py_BuildValue("id", at, (double)max) : NULL;
}

static PyObject *sum_exp(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox;
    float s, max;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOff:sum_exp", &isa, &ox, &s, &max)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *x = py_call_in(&c, ox, "x", ANY);
    double sum = c.ok ? c.t.sum_exp(x, s, max, c.n) : 0.0;
    PyObject *done = py_call_end(&c);
    Py_XDECREF(done);
    return done != NULL ? PyFloat_FromDouble(sum) : NULL;
}

static PyObject *exp_sub(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox, *oy;
    float s, max;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOffO:exp_sub", &isa, &ox, &s, &max, &oy)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *x = py_call_in(&c, ox, "x", ANY);
    float *y = py_call_out(&c, oy, "y", c.n);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        c.t.exp_sub(x, s, max, y, c.n);
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

static PyObject *select_above(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox, *oout;
    float thr;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOfO:select_above", &isa, &ox, &thr, &oout)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *x = py_call_in(&c, ox, "x", ANY);
    int n = c.n;
    int32_t *out = py_call_ints_out(&c, oout, "out", ANY);
    int found = c.ok ? c.t.select_above(x, n, thr, out, c.n) : 0;
    PyObject *done = py_call_end(&c);
    Py_XDECREF(done);
    return done != NULL ? PyLong_FromLong(found) : NULL;
}

static PyObject *block_max(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *ox, *oout;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOO:block_max", &isa, &ox, &oout)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *x = py_call_in(&c, ox, "x", ANY);
    int n = c.n;
    float *out = py_call_out(&c, oout, "out", (n + 31) / 32);
    if (c.ok) {
        c.t.block_max(x, n, out);
    }
    return py_call_end(&c);
}

static PyObject *mask(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    PyObject *obits, *ox, *oy;
    py_call c;
    if (!PyArg_ParseTuple(args, "sOOO:mask", &isa, &obits, &ox, &oy)) {
        return NULL;
    }
    py_call_begin(&c, isa);
    const float *x = py_call_in(&c, ox, "x", ANY);
    int n = c.n;
    const int32_t *bits = py_call_ints(&c, obits, "bits", (n + 31) / 32);
    float *y = py_call_out(&c, oy, "y", n);
    if (c.ok) {
        c.t.mask((const uint32_t *)bits, x, y, n);
    }
    return py_call_end(&c);
}

static PyMethodDef methods[] = {
    {"rms_norm", rms_norm, METH_VARARGS,
     "rms_norm(isa, x, w, eps, y): y [rows, D] = x / rms(x) * w [D]."},
    {"layer_norm", layer_norm, METH_VARARGS,
     "layer_norm(isa, x, w, b, eps, y): y [rows, D] = (x - mean) / std * w + b; b may be None."},
    {"add_scaled", add_scaled, METH_VARARGS, "add_scaled(isa, x, s, y): y [n] += x * s."},
    {"add", add, METH_VARARGS, "add(isa, b, y): y [n] += b."},
    {"act_mul", act_mul, METH_VARARGS,
     "act_mul(isa, act, gate, up, y): y [n] = act(gate) * up; act: silu, gelu, gelu_tanh, relu, "
     "clip."},
    {"act", act, METH_VARARGS, "act(isa, act, x, y): y [n] = act(x)."},
    {"rope", rope, METH_VARARGS,
     "rope(isa, x, cos, sin, heads, d, interleaved): rotates the first 2 * half values of each "
     "head\n"
     "of x [T, heads, d] in place; cos, sin [T, half]."},
    {"softcap", softcap, METH_VARARGS,
     "softcap(isa, x, s, c): x [n] = c * tanh(x * s / c) in place; c 0: x *= s."},
    {"kv_page_bytes", kv_page_bytes, METH_VARARGS,
     "kv_page_bytes(kv, d) -> (bytes of a K page, of a V page) of one head; kv: f32, bf16, i8, "
     "f8."},
    {"kv_store", kv_store, METH_VARARGS,
     "kv_store(isa, kv, k, v, tok, k_page, v_page): writes k, v [d] into slot tok, 0..63.\n\n"
     "k or v may be None: its page stays as it is."},
    {"attend", (PyCFunction)(void (*)(void))attend, METH_VARARGS | METH_KEYWORDS,
     "attend(isa, kv, q, row_pos, d, k_pages, v_pages, n_pages, first, window, scale, softcap,\n"
     "       m, l, o, *, more=False, set=0): one chunk of one kv head.\n\n"
     "q: float32 [R, ldq >= d], R 1..64; row_pos: int32 [R]; k_pages, v_pages: n_pages (1..4)\n"
     "pages one after another; first: position of their first token; window, softcap: 0 is off.\n"
     "Writes m [R], l [R], o [R, ldo >= d rounded up to 16]; more: they are those of the chunk's\n"
     "earlier pages and go on. set: where the converted queries lie, 0 .. 64 / R - 1."},
    {"attend_merge", attend_merge, METH_VARARGS,
     "attend_merge(isa, m, l, o, m2, l2, o2) -> (m, l): joins two partial results, o [d] in "
     "place."},
    {"attend_finish", attend_finish, METH_VARARGS,
     "attend_finish(isa, o, l, out): out [d] = o / l, 0 where l is 0."},
    {"argmax", argmax, METH_VARARGS, "argmax(isa, x) -> (lowest index of the largest, its value)."},
    {"block_max", block_max, METH_VARARGS,
     "block_max(isa, x, out): out [ceil(n/32)] = the largest of every 32 values."},
    {"sum_exp", sum_exp, METH_VARARGS, "sum_exp(isa, x, s, max) -> sum of exp(x * s - max)."},
    {"exp_sub", exp_sub, METH_VARARGS, "exp_sub(isa, x, s, max, y): y [n] = exp(x * s - max)."},
    {"select_above", select_above, METH_VARARGS,
     "select_above(isa, x, thr, out) -> how many x exceed thr; out: int32, takes the first."},
    {"mask", mask, METH_VARARGS,
     "mask(isa, bits, x, y): y [n] = x where the bit is set, else -inf; bits: int32, 32 a word."},
    {NULL, NULL, 0, NULL},
};

int py_kernels_rows_register(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
