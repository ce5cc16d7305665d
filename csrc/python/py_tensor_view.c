/* py_tensor_view.c - Tensors over memory that another object of ours keeps: bytes, and other shapes with strides.
 *
 * Owns what may be shown of such memory. Invariant: every element lies inside of what the owner has, and the owner stays
 * for as long as the view. In host memory alone. Used by py_tensor.c and, through py_module.h, by objects that show
 * their bytes.
 */
#include "py_tensor.h"

PyObject *py_tensor_of_bytes(const py_state *state, const void *data, size_t bytes, PyObject *owner)
{
    py_tensor_source from = {state, owner, "bytes"};
    py_tensor *self = (py_tensor *)state->tensor_type->tp_alloc(state->tensor_type, 0);
    int64_t shape[1] = {(int64_t)bytes};
    if (self == NULL) {
        return NULL;
    }
    if (py_tensor_find_dtype(state, self, "U8") < 0 ||
        py_tensor_set_shape(&from, self, 1, shape) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->data = (char *)(uintptr_t)data;
    self->read_only = 1;
    self->array = Py_NewRef(owner);
    return (PyObject *)self;
}

/* Sets the strides of a tensor whose shape is set; -1 with an exception where an element would lie outside the
 * `room` elements from its first on. */
static int set_strides(const py_state *state, py_tensor *self, const int64_t *strides, int64_t room)
{
    int64_t last = 0, size = self->dtype->dl.bits / 8, most = PY_SSIZE_T_MAX / size;
    for (int i = 0; i < self->n_dims; i++) {
        int64_t steps = self->shape[i] - 1;
        if (strides[i] < 0 || strides[i] > (most - last) / (steps > 0 ? steps : 1)) {
            py_raise_format(state, LA_ERR_ARGUMENT, "strides: %lld is negative or too large",
                            (long long)strides[i]);
            return -1;
        }
        last += steps > 0 ? steps * strides[i] : 0;
        self->strided |= steps > 0 && strides[i] != self->strides[i];
        self->strides[i] = strides[i];
        self->buffer_strides[i] = strides[i] * size;
    }
    if (self->bytes > 0 && last >= room) {
        py_raise_format(state, LA_ERR_ARGUMENT,
                        "strides: element %lld is outside the %lld from offset on", (long long)last,
                        (long long)room);
        return -1;
    }
    return 0;
}

PyObject *py_tensor_strided(PyObject *object, PyObject *args)
{
    const char *dtype;
    Py_ssize_t offset;
    PyObject *shape, *strides;
    if (!PyArg_ParseTuple(args, "snO!O!:strided", &dtype, &offset, &PyTuple_Type, &shape,
                          &PyTuple_Type, &strides)) {
        return NULL;
    }
    py_tensor *of = (py_tensor *)object;
    py_tensor_source from = {py_state_of_object(object), object, "strided"};
    if (py_tensor_want_host(of, "strided") < 0) {
        return NULL;
    }
    Py_ssize_t n = PyTuple_GET_SIZE(shape);
    if (of->strided || n > PY_TENSOR_DIMS || PyTuple_GET_SIZE(strides) != n) {
        return py_raise_format(from.state, LA_ERR_ARGUMENT,
                               "strided: expected a contiguous Tensor and as many strides as "
                               "extents, at most %d",
                               (int)PY_TENSOR_DIMS);
    }
    int64_t extents[PY_TENSOR_DIMS] = {0}, steps[PY_TENSOR_DIMS] = {0};
    py_tensor *self = (py_tensor *)Py_TYPE(object)->tp_alloc(Py_TYPE(object), 0);
    if (self == NULL) {
        return NULL;
    }
    if (py_tensor_extents_from(shape, extents) < 0 || py_tensor_extents_from(strides, steps) < 0 ||
        py_tensor_find_dtype(from.state, self, dtype) < 0 ||
        py_tensor_set_shape(&from, self, (int)n, extents) < 0) {
        goto failed;
    }
    int size = self->dtype->dl.bits / 8;
    if (offset < 0 || offset > of->bytes / size) {
        py_raise_format(from.state, LA_ERR_ARGUMENT, "offset: %zd is outside the Tensor", offset);
        goto failed;
    }
    self->data = of->data + offset * size;
    self->read_only = of->read_only;
    self->array = Py_NewRef(object);
    if (set_strides(from.state, self, steps, of->bytes / size - offset) == 0 &&
        py_tensor_check_address(&from, self) == 0) {
        return (PyObject *)self;
    }
failed:
    Py_DECREF(self);
    return NULL;
}

PyObject *py_tensor_strides(PyObject *object, void *closure)
{
    (void)closure;
    py_tensor *self = (py_tensor *)object;
    PyObject *strides = PyTuple_New(self->n_dims);
    for (int i = 0; strides != NULL && i < self->n_dims; i++) {
        PyObject *step = PyLong_FromLongLong(self->strides[i]);
        if (step == NULL) {
            Py_CLEAR(strides);
            break;
        }
        PyTuple_SET_ITEM(strides, i, step);
    }
    return strides;
}

PyObject *py_tensor_is_contiguous(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(!((py_tensor *)object)->strided);
}
