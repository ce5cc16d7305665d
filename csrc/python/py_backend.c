/* py_backend.c - the Python object Backend: a pool of threads and a table of kernels.
 *
 * Owns one la_backend, freed when the last reference (Model objects hold one) goes. Weakly
 * referencable, so that llm.py can share one backend among engines. Invariant: the handle is set from
 * creation to deallocation; in a forked child it is leaked, as its threads exist in the parent alone.
 */
#include "py_module.h"

#include <stddef.h>
#include <structmember.h>

typedef struct py_backend {
    PyObject_HEAD
    PyObject *weak_references;
    la_backend *handle;
    PyObject *trace; /* called after every op, or NULL */
    long pid;
} py_backend;

la_backend *py_backend_get(py_state *state, PyObject *object)
{
    if (!PyObject_TypeCheck(object, state->backend_type)) {
        PyErr_Format(PyExc_TypeError, "backend: expected a Backend, got %.100s",
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    py_backend *self = (py_backend *)object;
    return py_same_process(state, self->pid, "this Backend") < 0 ? NULL : self->handle;
}

/* la_trace_fn: trace(op, layer, rows, cols, checksum). What it raises is reported, not passed on. */
static void backend_traced(void *arg, const char *op, int layer, int rows, int cols,
                           uint64_t checksum)
{
    PyObject *trace = arg;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *result =
        PyObject_CallFunction(trace, "siiiK", op, layer, rows, cols, (unsigned long long)checksum);
    if (result == NULL) {
        PyErr_WriteUnraisable(trace);
    }
    Py_XDECREF(result);
    PyGILState_Release(gil);
}

static PyObject *backend_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"name", "isa", "threads", "trace", "library", "device", NULL};
    const char *name = "cpu", *isa = NULL, *library = NULL;
    int threads = 0, device = 0;
    PyObject *trace = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|sziOzi:Backend", names, &name, &isa, &threads,
                                     &trace, &library, &device)) {
        return NULL;
    }
    if (trace != Py_None && !PyCallable_Check(trace)) {
        PyErr_SetString(PyExc_TypeError, "trace: expected a callable or None");
        return NULL;
    }
    py_state *state = (py_state *)PyType_GetModuleState(type);
    la_backend *handle = NULL;
    la_status status;
    Py_BEGIN_ALLOW_THREADS
    status = library != NULL ? la_backend_load(library, device, &handle)
                             : la_backend_open(name, isa, threads, &handle);
    Py_END_ALLOW_THREADS
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    py_backend *self = (py_backend *)type->tp_alloc(type, 0);
    if (self == NULL) {
        la_backend_close(handle);
        return NULL;
    }
    self->handle = handle;
    self->pid = py_process();
    if (trace != Py_None) {
        self->trace = Py_NewRef(trace);
        status = la_backend_trace(handle, backend_traced, trace);
        if (status != LA_OK) {
            Py_DECREF(self);
            return py_raise(state, status);
        }
    }
    return (PyObject *)self;
}

static void backend_dealloc(PyObject *object)
{
    py_backend *self = (py_backend *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    if (self->pid == py_process()) {
        Py_BEGIN_ALLOW_THREADS
        la_backend_close(self->handle);
        Py_END_ALLOW_THREADS
    }
    Py_CLEAR(self->trace);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *backend_info(PyObject *object, void *closure)
{
    (void)closure;
    la_backend *handle = py_backend_get(py_state_of_object(object), object);
    if (handle == NULL) {
        return NULL;
    }
    la_backend_info info;
    Py_BEGIN_ALLOW_THREADS /* a device may be at a step, which may want the GIL */
    la_backend_describe(handle, &info);
    Py_END_ALLOW_THREADS
    PyObject *slots = PyDict_New();
    if (slots == NULL) {
        return NULL;
    }
    for (int i = 0; info.slots[i] != NULL; i++) {
        PyObject *isa = PyUnicode_FromString(info.slot_isa[i] != NULL ? info.slot_isa[i] : "");
        int failed = isa == NULL || PyDict_SetItemString(slots, info.slots[i], isa) < 0;
        Py_XDECREF(isa);
        if (failed) {
            Py_DECREF(slots);
            return NULL;
        }
    }
    return Py_BuildValue(
        "{s:s,s:s,s:z,s:n,s:n,s:O,s:L,s:L,s:z,s:L,s:L,s:i,s:i,s:i,s:N}", "name", info.name, "isa",
        info.isa, "device", info.device, "memory_free", (Py_ssize_t)info.memory_free,
        "memory_total", (Py_ssize_t)info.memory_total, "grows", info.grows ? Py_True : Py_False,
        "graphs", (long long)info.graphs, "graph_replays", (long long)info.replays, "library",
        info.library, "library_products", (long long)info.library_products, "library_refused",
        (long long)info.library_refused, "n_asked", info.n_asked, "n_threads", info.n_threads,
        "n_cpus", info.n_cpus, "slots", slots);
}

static PyObject *backend_probe_read(PyObject *object, PyObject *args)
{
    Py_ssize_t bytes;
    int huge = 1;
    if (!PyArg_ParseTuple(args, "n|p:probe_read", &bytes, &huge)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    la_backend *handle = py_backend_get(state, object);
    if (handle == NULL) {
        return NULL;
    }
    if (bytes <= 0) {
        return py_raise_format(state, LA_ERR_ARGUMENT, "bytes: expected > 0, got %zd", bytes);
    }
    double rates[LA_READ_PATTERNS];
    la_status status;
    Py_BEGIN_ALLOW_THREADS
    status = la_backend_probe_read(handle, (size_t)bytes, huge, rates);
    Py_END_ALLOW_THREADS
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    PyObject *found = PyDict_New();
    for (int i = 0; found != NULL && i < LA_READ_PATTERNS; i++) {
        PyObject *rate = PyFloat_FromDouble(rates[i]);
        if (rate == NULL || PyDict_SetItemString(found, la_read_pattern_name(i), rate) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(rate);
    }
    return found;
}

static PyObject *backend_probe_peak(PyObject *object, PyObject *args)
{
    const char *what;
    if (!PyArg_ParseTuple(args, "s:probe_peak", &what)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    la_backend *handle = py_backend_get(state, object);
    if (handle == NULL) {
        return NULL;
    }
    double rate = 0.0;
    la_status status;
    Py_BEGIN_ALLOW_THREADS
    status = la_backend_probe_peak(handle, what, &rate);
    Py_END_ALLOW_THREADS
    return status == LA_OK ? PyFloat_FromDouble(rate) : py_raise(state, status);
}

static PyObject *backend_step_threads(PyObject *object, PyObject *args)
{
    int n;
    if (!PyArg_ParseTuple(args, "i:step_threads", &n)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    la_backend *handle = py_backend_get(state, object);
    if (handle == NULL) {
        return NULL;
    }
    la_status status;
    Py_BEGIN_ALLOW_THREADS
    status = la_backend_step_threads(handle, n);
    Py_END_ALLOW_THREADS
    return status == LA_OK ? Py_NewRef(Py_None) : py_raise(state, status);
}

static PyObject *backend_load_library(PyObject *object, PyObject *args)
{
    const char *file;
    int loaded = 0;
    if (!PyArg_ParseTuple(args, "s|p:load_library", &file, &loaded)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    la_backend *handle = py_backend_get(state, object);
    if (handle == NULL) {
        return NULL;
    }
    la_status status;
    Py_BEGIN_ALLOW_THREADS
    status = la_backend_library(handle, file, loaded);
    Py_END_ALLOW_THREADS
    return status == LA_OK ? Py_NewRef(Py_None) : py_raise(state, status);
}

static PyMethodDef backend_methods[] = {
    {"load_library", backend_load_library, METH_VARARGS,
     "load_library(file, loaded=False)\n\nProducts of models with fast_math by cuBLASLt in this "
     "file from here on; loaded: only if the process has it already. UnsupportedError says why "
     "not."},
    {"probe_read", backend_probe_read, METH_VARARGS,
     "probe_read(bytes, huge=True) -> dict\n\nGB/s (1e9 bytes) of reading fresh memory with every "
     "thread, by access pattern. huge: ask for pages of 2 MiB, else for the smallest."},
    {"probe_peak", backend_probe_peak, METH_VARARGS,
     "probe_peak(what) -> float\n\nPeak 1e9 operations/s of one dot instruction: 'f32', 'bf16', "
     "'int8'. UnsupportedError where the ISA lacks it."},
    {"step_threads", backend_step_threads, METH_VARARGS,
     "step_threads(n)\n\nShort steps run on n of the threads from here on, whatever others do; 0: "
     "on as "
     "many as pay. For tests."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef backend_getset[] = {
    {"info", backend_info, NULL,
     "dict: name, isa; of a device, else None or 0: device, memory_free, memory_total, grows (KV "
     "caches "
     "take memory as they grow), graphs made and graph_replays, library with library_products and "
     "library_refused; n_asked, n_threads, n_cpus, slots (kernel slot -> ISA).",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef backend_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(py_backend, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot backend_slots[] = {
    {Py_tp_doc,
     "Backend(name='cpu', isa=None, threads=0, trace=None, library=None, device=0)\n\nWhere the "
     "arithmetic runs. library: a shared object that holds the backend, in place of name. "
     "trace(op, layer, rows, cols, checksum) is called after every op of a step."},
    {Py_tp_new, backend_new},
    {Py_tp_dealloc, backend_dealloc},
    {Py_tp_methods, backend_methods},
    {Py_tp_getset, backend_getset},
    {Py_tp_members, backend_members},
    {0, NULL},
};

static PyType_Spec backend_spec = {
    .name = "llmaccel._core.Backend",
    .basicsize = (int)sizeof(py_backend),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = backend_slots,
};

int py_backend_register(PyObject *module)
{
    return py_add_type(module, &backend_spec, &py_state_of(module)->backend_type);
}
