/* py_kernels_fp8.c - conversion to and from 8-bit floats on user buffers.
 *
 * Owns the Python functions fp8_encode and fp8_decode: rows of equal length, a scale for each. Invariant:
 * sizes and types are checked here before a kernel sees them; a row's bits depend on it alone. Wrapped by
 * python/llmaccel/kernels/fp8.py, which makes rows of the scale layouts.
 */
#include "py_kernels.h"
#include "py_kernels_call.h"

/* Buffers of a call: `rows` rows of n values, and as many scales. */
typedef struct fp8_rows {
    const float *in;     /* [rows][n] to encode */
    float *out;          /* [rows][n] decoded */
    uint8_t *codes;      /* [rows][n] */
    const float *scales; /* [rows] */
    int64_t rows;
    int n, e5m2;
} fp8_rows;

static void fp8_begin(py_call *c, PyObject *args, int decode, fp8_rows *x)
{
    const char *isa;
    PyObject *floats, *scales, *codes;
    c->n_views = 0;
    c->ok = PyArg_ParseTuple(args, "spOOO:fp8", &isa, &x->e5m2, &floats, &scales, &codes);
    if (!c->ok) {
        return;
    }
    py_call_begin(c, isa);
    x->scales = py_call_in(c, scales, "scales", PY_CALL_ANY);
    x->rows = c->n;
    x->in = decode ? NULL : py_call_in(c, floats, "floats", PY_CALL_ANY);
    x->out = decode ? py_call_out(c, floats, "floats", PY_CALL_ANY) : NULL;
    if (c->ok && c->n % x->rows != 0) {
        py_call_fail(c, PyExc_ValueError, "scales: %d for %d values", (int)x->rows, c->n);
    }
    x->n = c->ok ? c->n / (int)x->rows : 0;
    x->codes = py_call_bytes(c, codes, "codes", (size_t)c->n, !decode);
}

static PyObject *fp8_encode(PyObject *Py_UNUSED(self), PyObject *args)
{
    py_call c;
    fp8_rows x;
    fp8_begin(&c, args, 0, &x);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t r = 0; r < x.rows; r++) {
            c.t.fp8_encode(x.in + r * x.n, x.scales[r], x.e5m2, x.codes + r * x.n, x.n);
        }
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
}

static PyObject *fp8_decode(PyObject *Py_UNUSED(self), PyObject *args)
{
    py_call c;
    fp8_rows x;
    fp8_begin(&c, args, 1, &x);
    if (c.ok) {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t r = 0; r < x.rows; r++) {
            c.t.fp8_decode(x.codes + r * x.n, x.scales[r], x.e5m2, x.out + r * x.n, x.n);
        }
        Py_END_ALLOW_THREADS
    }
    return py_call_end(&c);
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
