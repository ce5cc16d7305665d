/* py_kernels_probe.c - the roofline probes of one level, on one thread.
 *
 * Owns the Python functions that run a probe slot: reads of a buffer and rounds of independent dots. The
 * probes of all threads are the backend's (model/backend_cpu_probe.c). Used by tests and benchmarks.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../kernels/kernels.h"

#include "py_kernels.h"

static PyObject *probe_read(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *isa;
    int streams, ahead;
    la_kernels t;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "sy*ii:probe_read", &isa, &view, &streams, &ahead)) {
        return NULL;
    }
    PyObject *out = NULL;
    if (py_kernels_isa(isa, &t) >= 0) {
        if (streams != 1 && streams != 2 && streams != 4 && streams != 8) {
            PyErr_Format(PyExc_ValueError, "streams: %d is none of 1, 2, 4, 8", streams);
        }
        else {
            uint64_t any;
            Py_BEGIN_ALLOW_THREADS
            any = t.probe_read(view.buf, (size_t)view.len, streams, ahead);
            Py_END_ALLOW_THREADS
            out = PyLong_FromUnsignedLongLong(any);
        }
    }
    PyBuffer_Release(&view);
    return out;
}

static PyObject *probe_peak(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *name, *what;
    long long rounds;
    la_kernels t;
    if (!PyArg_ParseTuple(args, "ssL:probe_peak", &name, &what, &rounds)) {
        return NULL;
    }
    int isa = py_kernels_isa(name, &t);
    if (isa < 0) {
        return NULL;
    }
    la_probe_ops ops = la_kernels_probe_ops((la_isa)isa);
    struct {
        const char *name;
        float (*run)(int64_t n);
        int ops;
    } probes[] = {{"f32", t.probe_f32, ops.f32},
                  {"bf16", t.probe_bf16, ops.bf16},
                  {"int8", t.probe_i8, ops.i8}};
    for (int i = 0; i < 3; i++) {
        if (strcmp(what, probes[i].name) == 0) {
            float sink;
            Py_BEGIN_ALLOW_THREADS
            sink = probes[i].run(rounds);
            Py_END_ALLOW_THREADS
            return Py_BuildValue("fi", (double)sink, probes[i].ops);
        }
    }
    return PyErr_Format(PyExc_ValueError, "what: %s is none of f32, bf16, int8", what);
}

static PyMethodDef methods[] = {
    {"probe_read", probe_read, METH_VARARGS, "probe_read(isa, buffer, streams, ahead) -> int"},
    {"probe_peak", probe_peak, METH_VARARGS,
     "probe_peak(isa, what, rounds) -> (sink, operations per round; 0 if there is no instruction)"},
    {NULL, NULL, 0, NULL},
};

int py_kernels_probe_register(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
