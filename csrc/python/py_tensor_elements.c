/* py_tensor_elements.c - elements of a Tensor as Python's own numbers, and Tensors by value.
 *
 * Owns what scripts written for torch.Tensor or NumPy ask of one: iteration, tolist, item, float, int, bool,
 * the counts of elements and axes, pickling and copying. Invariant: a type that NumPy lacks (bfloat16, 8-bit
 * floats) keeps its bits in a copy and gives exact floats; strides are followed; what lies on a device is
 * refused by name. The methods stand in the table of py_tensor.c.
 */
#include "py_tensor.h"

#include <math.h>

/* The float that a code of `mantissa` bits behind `exponent` bits stands for. */
static double value_of(unsigned code, int exponent, int mantissa, int bias)
{
    unsigned top = (1u << exponent) - 1, low = (1u << mantissa) - 1;
    unsigned e = code >> mantissa & top, m = code & low;
    double sign = code >> (exponent + mantissa) & 1 ? -1.0 : 1.0;
    if (exponent != 4 && e == top) { /* E4M3 has no infinity */
        return m != 0 ? NAN : sign * INFINITY;
    }
    if (exponent == 4 && e == top && m == low) {
        return NAN;
    }
    double value = e != 0 ? (double)(m + low + 1) : (double)m;
    return sign * ldexp(value, (e != 0 ? (int)e : 1) - bias - mantissa);
}

/* Element i of a type without a NumPy number, as a new float. */
static PyObject *wide_item(const py_tensor *self, Py_ssize_t i)
{
    uint8_t code = (uint8_t)self->data[i];
    switch (self->dtype->dl.code) {
    case LA_DL_BFLOAT: {
        uint16_t bits;
        memcpy(&bits, self->data + 2 * i, sizeof bits);
        return PyFloat_FromDouble(value_of(bits, 8, 7, 127));
    }
    case LA_DL_E4M3FN: return PyFloat_FromDouble(value_of(code, 4, 3, 7));
    case LA_DL_E5M2: return PyFloat_FromDouble(value_of(code, 5, 2, 15));
    default: return PyFloat_FromDouble(code == 255 ? NAN : ldexp(1.0, code - 127)); /* E8M0 */
    }
}

/* Nested lists of axis `axis` on, from element `at` of the memory. */
static PyObject *wide_list(const py_tensor *self, int axis, Py_ssize_t at)
{
    if (axis == self->n_dims) {
        return wide_item(self, at);
    }
    PyObject *list = PyList_New((Py_ssize_t)self->shape[axis]);
    for (Py_ssize_t i = 0; list != NULL && i < (Py_ssize_t)self->shape[axis]; i++) {
        PyObject *part = wide_list(self, axis + 1, at + i * (Py_ssize_t)self->strides[axis]);
        if (part == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, part);
    }
    return list;
}

PyObject *py_tensor_tolist(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_tensor *self = (py_tensor *)object;
    if (py_tensor_want_host(self, "reading elements") < 0) {
        return NULL;
    }
    if (self->dtype->numpy < 0) {
        return wide_list(self, 0, 0);
    }
    PyObject *array = PyObject_CallMethod(object, "numpy", NULL);
    PyObject *list = array != NULL ? PyObject_CallMethod(array, "tolist", NULL) : NULL;
    Py_XDECREF(array);
    return list;
}

static Py_ssize_t count_of(const py_tensor *self)
{
    return self->bytes / (self->dtype->dl.bits / 8);
}

PyObject *py_tensor_item(PyObject *object, PyObject *unused)
{
    (void)unused;
    Py_ssize_t count = count_of((py_tensor *)object);
    if (count != 1) {
        PyErr_Format(PyExc_ValueError, "a Tensor of %zd elements is no single number", count);
        return NULL;
    }
    PyObject *value = py_tensor_tolist(object, NULL);
    while (value != NULL && PyList_Check(value)) {
        PyObject *inner = Py_NewRef(PyList_GET_ITEM(value, 0));
        Py_SETREF(value, inner);
    }
    return value;
}

/* What `convert` makes of the one element. */
static PyObject *one_as(PyObject *object, PyObject *(*convert)(PyObject *))
{
    PyObject *value = py_tensor_item(object, NULL);
    PyObject *result = value != NULL ? convert(value) : NULL;
    Py_XDECREF(value);
    return result;
}

PyObject *py_tensor_float(PyObject *object)
{
    return one_as(object, PyNumber_Float);
}

PyObject *py_tensor_int(PyObject *object)
{
    return one_as(object, PyNumber_Long);
}

int py_tensor_bool(PyObject *object)
{
    PyObject *value = py_tensor_item(object, NULL);
    int truth = value != NULL ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return truth;
}

PyObject *py_tensor_iter(PyObject *object)
{
    py_tensor *self = (py_tensor *)object;
    if (self->n_dims == 0) {
        PyErr_SetString(PyExc_TypeError, "a Tensor without dimensions has nothing to iterate over");
        return NULL;
    }
    PyObject *rows = PyObject_CallMethod(object, "numpy", NULL);
    PyObject *result = rows != NULL ? PyObject_GetIter(rows) : NULL;
    Py_XDECREF(rows);
    return result;
}

PyObject *py_tensor_ndim(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromLong(((py_tensor *)object)->n_dims);
}

PyObject *py_tensor_size(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromSsize_t(count_of((py_tensor *)object));
}

/* ---- by value ------------------------------------------------------------------------------------ */

PyObject *py_tensor_from_bytes(PyObject *type, PyObject *args)
{
    Py_buffer data;
    PyObject *shape;
    const char *dtype;
    if (!PyArg_ParseTuple(args, "y*sO:from_bytes", &data, &dtype, &shape)) {
        return NULL;
    }
    PyObject *made = PyObject_CallMethod(type, "zeros", "Os", shape, dtype);
    py_tensor *self = (py_tensor *)made;
    if (made != NULL && self->bytes != data.len) {
        py_raise_format(py_state_of_object(made), LA_ERR_ARGUMENT,
                        "data: expected %zd bytes of dtype %s, got %zd", self->bytes, dtype,
                        data.len);
        Py_CLEAR(made);
    }
    else if (made != NULL && data.len > 0) {
        memcpy(self->data, data.buf, (size_t)data.len);
    }
    PyBuffer_Release(&data);
    return made;
}

PyObject *py_tensor_reduce(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_tensor *self = (py_tensor *)object;
    if (py_tensor_want_host(self, "a copy by value") < 0) {
        return NULL;
    }
    py_tensor *dense = self->strided ? py_tensor_copy(self, NULL) : (py_tensor *)Py_NewRef(object);
    PyObject *maker = PyObject_GetAttrString((PyObject *)Py_TYPE(object), "from_bytes");
    PyObject *shape = PyObject_GetAttrString(object, "shape");
    PyObject *result = NULL;
    if (dense != NULL && maker != NULL && shape != NULL) {
        const char *data =
            dense->bytes > 0 ? dense->data : ""; /* others' empty memory may be NULL */
        result = Py_BuildValue("O(y#sO)", maker, data, dense->bytes, dense->dtype->name, shape);
    }
    Py_XDECREF(dense);
    Py_XDECREF(maker);
    Py_XDECREF(shape);
    return result;
}
