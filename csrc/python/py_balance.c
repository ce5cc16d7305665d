/* py_balance.c - the module function balance_experts: a plan of copies from loads.
 *
 * Owns nothing: a buffer of loads comes in, two of integers go out. Invariant: la_balance_check has seen
 * the sizes before anything of them is allocated; the buffer is checked here, what it holds by
 * la_balance_experts. Wrapped by python/llmaccel/balance.py.
 */
#include "py_module.h"

static PyObject *balance_experts(PyObject *module, PyObject *args)
{
    la_balance b;
    Py_buffer load;
    if (!PyArg_ParseTuple(args, "y*iiiiii:balance_experts", &load, &b.n_layers, &b.n_experts,
                          &b.n_slots, &b.n_groups, &b.n_nodes, &b.n_devices)) {
        return NULL;
    }
    py_state *state = py_state_of(module);
    PyObject *slots = NULL, *copies = NULL, *result = NULL;
    la_status st = la_balance_check(&b);
    if (st != LA_OK) {
        py_raise(state, st);
        goto done;
    }
    if (load.len != (Py_ssize_t)b.n_layers * b.n_experts * (Py_ssize_t)sizeof(float) ||
        (uintptr_t)load.buf % sizeof(float) != 0) {
        py_raise_format(state, LA_ERR_ARGUMENT, "load: %zd bytes are not float32 [%d, %d]",
                        load.len, b.n_layers, b.n_experts);
        goto done;
    }
    Py_ssize_t row = (Py_ssize_t)sizeof(int32_t);
    slots = PyBytes_FromStringAndSize(NULL, b.n_layers * row * b.n_slots);
    copies = PyBytes_FromStringAndSize(NULL, b.n_layers * row * b.n_experts);
    if (slots == NULL || copies == NULL) {
        goto done;
    }
    int32_t *slots_out = (int32_t *)(void *)PyBytes_AS_STRING(slots);
    int32_t *copies_out = (int32_t *)(void *)PyBytes_AS_STRING(copies);
    Py_BEGIN_ALLOW_THREADS
    st = la_balance_experts(&b, load.buf, slots_out, copies_out);
    Py_END_ALLOW_THREADS
    result = st == LA_OK ? PyTuple_Pack(2, slots, copies) : py_raise(state, st);
done:
    PyBuffer_Release(&load);
    Py_XDECREF(slots);
    Py_XDECREF(copies);
    return result;
}

static PyMethodDef methods[] = {
    {"balance_experts", balance_experts, METH_VARARGS,
     "balance_experts(load, n_layers, n_experts, n_slots, n_groups, n_nodes, n_devices) -> "
     "tuple[bytes, bytes]\n\nint32 [n_layers, n_slots] and [n_layers, n_experts]."},
    {NULL, NULL, 0, NULL},
};

int py_balance_register(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
