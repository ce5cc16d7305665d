/* py_kernels_fp8.c - conversion to and from 8-bit floats on user buffers.
 *
 * Owns the Python functions fp8_encode and fp8_decode: rows of equal length, a scale for each. Invariant:
 * sizes and types are checked here before a kernel sees them; a row's bits depend on it alone. Wrapped by
 * python/llmaccel/kernels/fp8.py, which makes rows of the scale layouts.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>

#include "../kernels/kernels.h"

#include "py_kernels.h"

typedef struct fp8_call {
    la_kernels t;
    Py_buffer floats, scales, codes;
    int taken; /* how many of them */
    int e5m2;
    Py_ssize_t rows, n;
} fp8_call;

static void fp8_end(fp8_call *c)
{
    Py_buffer *views[] = {&c->floats, &c->scales, &c->codes};
    while (c->taken > 0) {
        PyBuffer_Release(views[--c->taken]);
    }
}

/* Takes the buffers; result: which is written, 'f' floats or 'c' codes. */
static int fp8_begin(fp8_call *c, PyObject *args, char result)
{
    const char *isa;
    PyObject *floats, *scales, *codes;
    c->taken = 0;
    if (!PyArg_ParseTuple(args, "spOOO:fp8", &isa, &c->e5m2, &floats, &scales, &codes) ||
        py_kernels_isa(isa, &c->t) < 0 || py_kernels_floats(floats, "floats", &c->floats) < 0) {
        return -1;
    }
    c->taken++;
    if (py_kernels_floats(scales, "scales", &c->scales) < 0) {
        return -1;
    }
    c->taken++;
    if (PyObject_GetBuffer(codes, &c->codes, PyBUF_C_CONTIGUOUS) < 0) {
        return -1;
    }
    c->taken++;
    Py_ssize_t all = c->codes.len;
    c->rows = c->scales.len / 4;
    if (c->rows < 1 || all % c->rows != 0 || c->floats.len / 4 != all || all / c->rows > INT_MAX ||
        (result == 'f' ? c->floats.readonly : c->codes.readonly)) {
        PyErr_SetString(PyExc_ValueError, "fp8: values, scales and codes do not fit together");
        return -1;
    }
    c->n = all / c->rows;
    return 0;
}

static PyObject *fp8_encode(PyObject *Py_UNUSED(self), PyObject *args)
{
    fp8_call c;
    int failed = fp8_begin(&c, args, 'c') < 0;
    if (!failed) {
        const float *x = c.floats.buf, *scale = c.scales.buf;
        uint8_t *out = c.codes.buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t r = 0; r < c.rows; r++) {
            c.t.fp8_encode(x + r * c.n, scale[r], c.e5m2, out + r * c.n, (int)c.n);
        }
        Py_END_ALLOW_THREADS
    }
    fp8_end(&c);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyObject *fp8_decode(PyObject *Py_UNUSED(self), PyObject *args)
{
    fp8_call c;
    int failed = fp8_begin(&c, args, 'f') < 0;
    if (!failed) {
        const uint8_t *x = c.codes.buf;
        const float *scale = c.scales.buf;
        float *out = c.floats.buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t r = 0; r < c.rows; r++) {
            c.t.fp8_decode(x + r * c.n, scale[r], c.e5m2, out + r * c.n, (int)c.n);
        }
        Py_END_ALLOW_THREADS
    }
    fp8_end(&c);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"fp8_encode", fp8_encode, METH_VARARGS,
     "fp8_encode(isa, e5m2, floats, scales, codes): codes = floats / scales, rounded; a scale for "
     "each of len(scales) rows."},
    {"fp8_decode", fp8_decode, METH_VARARGS,
     "fp8_decode(isa, e5m2, floats, scales, codes): floats = values of codes * scales."},
    {NULL, NULL, 0, NULL},
};

int py_kernels_fp8_register(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
