/* py_tensor_device.c - Tensors on a device: opening it, its memory, the way there and back.
 *
 * Owns what a Tensor asks of device.h. Invariants: a Tensor holds its Backend, so the device outlives its memory in
 * whatever order objects go; the GIL is not held while a device is waited for, since a step of an engine may want it.
 * A Tensor that a forked child inherited is leaked there. Used by py_tensor.c and py_tensor_dlpack.c.
 */
#include "py_tensor.h"

/* ---- opening ----------------------------------------------------------------------------------- */

PyObject *py_tensor_open_device(const py_state *state, int number)
{
    if (number != 0) { /* the backend is opened on the first one */
        return py_raise_format(state, LA_ERR_UNSUPPORTED, "cuda:%d: only device 0 is used so far",
                               number);
    }
    PyObject *module = PyImport_ImportModule("llmaccel.environment");
    PyObject *backend =
        module != NULL ? PyObject_CallMethod(module, "open_device", "s", "cuda") : NULL;
    Py_XDECREF(module);
    return backend;
}

int py_tensor_device_named(const py_state *state, const char *name, PyObject **backend)
{
    *backend = NULL;
    if (strcmp(name, "cpu") == 0) {
        return 0;
    }
    long number = 0;
    int known = strncmp(name, "cuda", 4) == 0;
    if (known && name[4] != '\0') {
        char *end = NULL;
        number =
            name[4] == ':' && name[5] >= '0' && name[5] <= '9' ? strtol(name + 5, &end, 10) : 0;
        known = end != NULL && *end == '\0' && number <= INT32_MAX;
    }
    if (!known) {
        py_raise_format(state, LA_ERR_ARGUMENT, "device: '%.40s' is none of cpu, cuda, cuda:0",
                        name);
        return -1;
    }
    *backend = py_tensor_open_device(state, (int)number);
    return *backend != NULL ? 0 : -1;
}

int py_tensor_set_device(py_tensor *self, PyObject *backend)
{
    if (backend == NULL) {
        return 0;
    }
    la_backend *b = py_backend_get(py_state_of_object((PyObject *)self), backend);
    if (b == NULL) {
        return -1;
    }
    self->number = la_device_number(b);
    self->backend = Py_NewRef(backend);
    return 0;
}

la_backend *py_tensor_backend(py_tensor *self)
{
    return py_backend_get(py_state_of_object((PyObject *)self), self->backend);
}

/* ---- memory ------------------------------------------------------------------------------------ */

int py_tensor_device_allocate(py_tensor *self)
{
    la_backend *b = py_tensor_backend(self);
    la_status status;
    if (b == NULL) {
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    status = la_device_alloc(b, (size_t)self->bytes, &self->allocation);
    Py_END_ALLOW_THREADS
    self->data = self->allocation;
    if (status != LA_OK) {
        py_raise(py_state_of_object((PyObject *)self), status);
    }
    return status == LA_OK ? 0 : -1;
}

void py_tensor_device_free(py_tensor *self)
{
    la_backend *b = py_tensor_backend(self);
    if (b == NULL) {
        PyErr_Clear(); /* it is another process's */
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    la_device_free(b, self->allocation);
    Py_END_ALLOW_THREADS
}

void py_tensor_device_finish(py_tensor *self)
{
    la_backend *b = py_tensor_backend(self);
    la_status status;
    if (b == NULL) {
        PyErr_Clear();
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    status = la_device_wait(b);
    Py_END_ALLOW_THREADS(void)
    status; /* a device that has failed does nothing any more */
}

int py_tensor_move(py_tensor *to, py_tensor *from)
{
    py_tensor *there = to->backend != NULL ? to : from;
    size_t bytes = (size_t)from->bytes;
    la_backend *b = py_tensor_backend(there);
    la_status status = LA_OK;
    if (bytes == 0) {
        return 0;
    }
    if (b == NULL) {
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    if (from->backend == NULL) {
        status = la_device_upload(b, to->data, from->data, bytes);
    }
    else if (to->backend == NULL) {
        status = la_device_download(b, to->data, from->data, bytes);
    }
    else {
        la_device_copy(b, to->data, from->data, bytes);
    }
    Py_END_ALLOW_THREADS
    if (status != LA_OK) {
        py_raise(py_state_of_object((PyObject *)to), status);
    }
    return status == LA_OK ? 0 : -1;
}

int py_tensor_place(const py_state *state, PyObject *object, const char *name, py_place *out)
{
    if (py_tensor_owner(state, object) == NULL) {
        py_raise_format(state, LA_ERR_ARGUMENT, "%s: expected a Tensor on a device", name);
        return -1;
    }
    py_tensor *self = (py_tensor *)object;
    *out = (py_place){.backend = py_tensor_backend(self),
                      .data = self->data,
                      .bytes = (size_t)self->bytes,
                      .read_only = self->read_only,
                      .borrowed = self->allocation == NULL};
    return out->backend != NULL ? 0 : -1;
}

PyObject *py_tensor_owner(const py_state *state, PyObject *object)
{
    int known = PyObject_TypeCheck(object, state->tensor_type);
    return known ? ((py_tensor *)object)->backend : NULL;
}

/* ---- for Python -------------------------------------------------------------------------------- */

const char *py_tensor_device_name(const py_tensor *self, char *text, size_t n)
{
    if (self->backend == NULL) {
        return strcpy(text, "cpu");
    }
    PyOS_snprintf(text, n, "cuda:%d", self->number);
    return text;
}

int py_tensor_want_host(py_tensor *self, const char *what)
{
    char name[32];
    if (self->backend == NULL) {
        return 0;
    }
    py_raise_format(py_state_of_object((PyObject *)self), LA_ERR_UNSUPPORTED,
                    "%s reads host memory, and this Tensor is on %s; take .to('cpu') of it", what,
                    py_tensor_device_name(self, name, sizeof name));
    return -1;
}

PyObject *py_tensor_to(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"device", NULL};
    py_tensor *self = (py_tensor *)object;
    const char *device;
    PyObject *backend;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s:to", names, &device) ||
        py_tensor_device_named(py_state_of_object(object), device, &backend) < 0) {
        return NULL;
    }
    PyObject *moved =
        backend == self->backend ? Py_NewRef(object) : (PyObject *)py_tensor_copy(self, backend);
    Py_XDECREF(backend);
    return moved;
}

PyObject *py_tensor_get_device(PyObject *object, void *closure)
{
    char name[32];
    (void)closure;
    return PyUnicode_FromString(py_tensor_device_name((py_tensor *)object, name, sizeof name));
}
