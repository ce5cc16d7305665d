/* py_tensor.c - the Python object Tensor: contiguous numbers that cross without a copy.
 *
 * Owns the object and its exchange with NumPy and the buffer protocol, both ways; the only file that
 * uses NumPy's C API. Invariant: every element at a multiple of its size, and row-major without gaps
 * but for what strided() shows of another Tensor;
 * whatever keeps the memory alive (our allocation, a buffer, a NumPy array, somebody's DLPack capsule)
 * is released when the Tensor goes, and every view handed out holds the Tensor. Used by llm.py for
 * logits, for weights given as arrays, and by kernels/ for everything.
 */
#include "py_tensor.h"

#include <limits.h>

#define NPY_NO_DEPRECATED_API NPY_1_23_API_VERSION
#include <numpy/arrayobject.h>

enum { NO_NUMPY = -1 };

const py_tensor_dtype py_tensor_dtypes[PY_TENSOR_DTYPES] = {
    {"F64", {LA_DL_FLOAT, 64, 1}, NPY_DOUBLE, "d"},
    {"F32", {LA_DL_FLOAT, 32, 1}, NPY_FLOAT, "f"},
    {"F16", {LA_DL_FLOAT, 16, 1}, NPY_HALF, "e"},
    {"BF16", {LA_DL_BFLOAT, 16, 1}, NO_NUMPY, "H"},
    {"F8_E4M3", {LA_DL_E4M3FN, 8, 1}, NO_NUMPY, "B"},
    {"F8_E5M2", {LA_DL_E5M2, 8, 1}, NO_NUMPY, "B"},
    {"F8_E8M0", {LA_DL_E8M0FNU, 8, 1}, NO_NUMPY, "B"},
    {"I64", {LA_DL_INT, 64, 1}, NPY_INT64, "q"},
    {"I32", {LA_DL_INT, 32, 1}, NPY_INT32, "i"},
    {"I16", {LA_DL_INT, 16, 1}, NPY_INT16, "h"},
    {"I8", {LA_DL_INT, 8, 1}, NPY_INT8, "b"},
    {"U64", {LA_DL_UINT, 64, 1}, NPY_UINT64, "Q"},
    {"U32", {LA_DL_UINT, 32, 1}, NPY_UINT32, "I"},
    {"U16", {LA_DL_UINT, 16, 1}, NPY_UINT16, "H"},
    {"U8", {LA_DL_UINT, 8, 1}, NPY_UINT8, "B"},
    {"BOOL", {LA_DL_BOOL, 8, 1}, NPY_BOOL, "?"},
};

/* ---- making ------------------------------------------------------------------------------------ */

int py_tensor_set_shape(const py_tensor_source *from, py_tensor *self, int n_dims,
                        const int64_t *shape)
{
    if (n_dims < 0 || n_dims > PY_TENSOR_DIMS) {
        py_raise_format(from->state, LA_ERR_UNSUPPORTED,
                        "%s: %d dimensions, at most %d are supported", from->name, n_dims,
                        (int)PY_TENSOR_DIMS);
        return -1;
    }
    int64_t size = self->dtype->dl.bits / 8;
    int64_t count = 1, bound = size;
    for (int i = n_dims - 1; i >= 0; i--) {
        if (shape[i] < 0 || (shape[i] > 1 && bound > PY_SSIZE_T_MAX / shape[i])) {
            py_raise_format(from->state, LA_ERR_ARGUMENT,
                            "%s: extent %lld is negative or too large", from->name,
                            (long long)shape[i]);
            return -1;
        }
        self->shape[i] = shape[i];
        self->strides[i] = count;
        self->buffer_strides[i] = count * size;
        count *= shape[i] > 0 ? shape[i] : 1; /* an empty dimension must not hide an overflow */
        bound = count * size;
    }
    self->n_dims = n_dims;
    self->bytes = bound;
    for (int i = 0; i < n_dims; i++) {
        self->bytes = shape[i] == 0 ? 0 : self->bytes;
    }
    return 0;
}

int py_tensor_check_address(const py_tensor_source *from, const py_tensor *self)
{
    int size = self->dtype->dl.bits / 8;
    if (self->bytes == 0 || (uintptr_t)self->data % (uintptr_t)size == 0) {
        return 0;
    }
    py_raise_format(from->state, LA_ERR_ARGUMENT,
                    "%s: its address is no multiple of its element's %d bytes; pass a copy",
                    from->name, size);
    return -1;
}

int py_tensor_find_dtype(const py_state *state, py_tensor *self, const char *name)
{
    for (int i = 0; i < PY_TENSOR_DTYPES; i++) {
        if (strcmp(py_tensor_dtypes[i].name, name) == 0) {
            self->dtype = &py_tensor_dtypes[i];
            return 0;
        }
    }
    py_raise_format(state, LA_ERR_UNSUPPORTED, "dtype: unknown name %.40s", name);
    return -1;
}

/* The types that NumPy gets from the ml_dtypes package, known by their names. */
static int tensor_find_user_dtype(const py_tensor_source *from, py_tensor *self,
                                  PyArrayObject *array)
{
    static const char *const names[][2] = {{"bfloat16", "BF16"},
                                           {"float8_e4m3fn", "F8_E4M3"},
                                           {"float8_e5m2", "F8_E5M2"},
                                           {"float8_e8m0fnu", "F8_E8M0"}};
    PyObject *name = PyObject_GetAttrString((PyObject *)PyArray_DESCR(array), "name");
    if (name == NULL) {
        return -1;
    }
    for (size_t i = 0; PyUnicode_Check(name) && i < sizeof names / sizeof names[0]; i++) {
        if (PyUnicode_CompareWithASCIIString(name, names[i][0]) == 0) {
            Py_DECREF(name);
            return py_tensor_find_dtype(from->state, self, names[i][1]);
        }
    }
    py_raise_format(from->state, LA_ERR_UNSUPPORTED, "%s: dtype %S is not supported", from->name,
                    name);
    Py_DECREF(name);
    return -1;
}

/* A borrowed NumPy array; the tensor takes a reference. */
static int tensor_from_array(const py_tensor_source *from, py_tensor *self)
{
    PyArrayObject *array = (PyArrayObject *)from->object;
    if (!PyArray_IS_C_CONTIGUOUS(array) || PyArray_ISBYTESWAPPED(array)) {
        py_raise_format(from->state, LA_ERR_ARGUMENT,
                        "%s: must be row-major without gaps and in native byte order; pass "
                        "np.ascontiguousarray of it",
                        from->name);
        return -1;
    }
    int number = PyArray_TYPE(array);
    for (int i = 0; i < PY_TENSOR_DTYPES && self->dtype == NULL; i++) {
        int own = py_tensor_dtypes[i].numpy;
        if (own != NO_NUMPY && PyArray_EquivTypenums(own, number)) {
            self->dtype = &py_tensor_dtypes[i];
        }
    }
    if (self->dtype == NULL && tensor_find_user_dtype(from, self, array) < 0) {
        return -1;
    }
    int64_t shape[PY_TENSOR_DIMS] = {0};
    int n_dims = PyArray_NDIM(array);
    for (int i = 0; i < n_dims && i < PY_TENSOR_DIMS; i++) {
        shape[i] = PyArray_DIM(array, i);
    }
    if (py_tensor_set_shape(from, self, n_dims, shape) < 0) {
        return -1;
    }
    self->data = PyArray_DATA(array);
    self->read_only = !PyArray_ISWRITEABLE(array);
    self->array = Py_NewRef((PyObject *)array);
    return py_tensor_check_address(from, self);
}

/* The dtype of a buffer's elements: kind and size decide, since 'l' is as wide as the platform says.
 * NULL where there is none. */
static const py_tensor_dtype *buffer_dtype(const Py_buffer *view)
{
    const char *format = view->format != NULL ? view->format : "B";
    if (*format == '@' || *format == '=' || *format == '<') { /* x86 is little-endian */
        format++;
    }
    static const struct {
        const char *letters;
        int code;
    } kinds[] = {
        {"bhilqn", LA_DL_INT}, {"BHILQN", LA_DL_UINT}, {"efd", LA_DL_FLOAT}, {"?", LA_DL_BOOL}};
    for (size_t k = 0; format[0] != '\0' && format[1] == '\0' && k < 4; k++) {
        for (int i = 0; strchr(kinds[k].letters, format[0]) != NULL && i < PY_TENSOR_DTYPES; i++) {
            la_dl_dtype dl = py_tensor_dtypes[i].dl;
            if (dl.code == kinds[k].code && dl.bits == view->itemsize * 8) {
                return &py_tensor_dtypes[i];
            }
        }
    }
    return NULL;
}

/* Anything with the buffer protocol; held until the tensor goes. */
static int tensor_from_buffer(const py_tensor_source *from, py_tensor *self)
{
    if (PyObject_GetBuffer(from->object, &self->view, PyBUF_FULL_RO) < 0) {
        return -1;
    }
    const Py_buffer *view = &self->view;
    self->dtype = buffer_dtype(view);
    if (self->dtype == NULL) {
        py_raise_format(from->state, LA_ERR_UNSUPPORTED, "%s: buffer format %s is not supported",
                        from->name, view->format != NULL ? view->format : "B");
        return -1;
    }
    if (!PyBuffer_IsContiguous(view, 'C')) {
        py_raise_format(from->state, LA_ERR_ARGUMENT,
                        "%s: must be row-major without gaps; pass a contiguous copy", from->name);
        return -1;
    }
    int64_t shape[PY_TENSOR_DIMS] = {0};
    for (int i = 0; i < view->ndim && i < PY_TENSOR_DIMS; i++) {
        shape[i] = view->shape[i];
    }
    if (py_tensor_set_shape(from, self, view->ndim, shape) < 0) {
        return -1;
    }
    self->data = view->buf;
    self->read_only = view->readonly;
    return py_tensor_check_address(from, self);
}

static int tensor_from_object(const py_tensor_source *from, py_tensor *self)
{
    if (PyArray_Check(from->object)) {
        return tensor_from_array(from, self);
    }
    if (PyObject_HasAttrString(from->object, "__dlpack__")) {
        return py_tensor_import(from, self);
    }
    if (PyObject_CheckBuffer(from->object)) {
        return tensor_from_buffer(from, self);
    }
    PyErr_Format(PyExc_TypeError,
                 "%s: expected a NumPy array, a DLPack exporter or a buffer, got %.100s",
                 from->name, Py_TYPE(from->object)->tp_name);
    return -1;
}

static PyObject *tensor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"array", "name", NULL};
    py_tensor_source from = {.state = PyType_GetModuleState(type), .name = "array"};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$s:Tensor", names, &from.object,
                                     &from.name)) {
        return NULL;
    }
    py_tensor *self = (py_tensor *)type->tp_alloc(type, 0);
    if (self != NULL && tensor_from_object(&from, self) < 0) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

/* Memory for a tensor whose shape is set. Fresh zero pages for anything large: nothing is touched
 * before it is written. 0, or -1 with an exception set. */
int py_tensor_allocate(py_tensor *self)
{
    const size_t align = PY_TENSOR_ALIGN;
    if (self->backend != NULL) {
        return py_tensor_device_allocate(self);
    }
    self->allocation = (size_t)self->bytes <= PY_SSIZE_T_MAX - align
                           ? PyMem_RawCalloc(1, (size_t)self->bytes + align)
                           : NULL;
    if (self->allocation == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->data = (char *)(((uintptr_t)self->allocation + align - 1) & ~(uintptr_t)(align - 1));
    return 0;
}

/* All elements one after another to out. */
static void copy_elements(const py_tensor *self, char *out)
{
    int64_t at[PY_TENSOR_DIMS] = {0}, place = 0;
    size_t size = self->dtype->dl.bits / 8;
    if (self->bytes == 0) {
        return;
    }
    if (!self->strided) {
        memcpy(out, self->data, (size_t)self->bytes);
        return;
    }
    for (char *end = out + self->bytes; out < end; out += size) {
        memcpy(out, self->data + place * (int64_t)size, size);
        for (int i = self->n_dims - 1; i >= 0; i--) { /* the next index, last axis first */
            place += self->strides[i];
            if (++at[i] < self->shape[i]) {
                break;
            }
            place -= self->strides[i] * self->shape[i];
            at[i] = 0;
        }
    }
}

py_tensor *py_tensor_like(py_tensor *self, PyObject *backend)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    py_tensor_source from = {py_state_of_object((PyObject *)self), (PyObject *)self, "shape"};
    py_tensor *made = (py_tensor *)type->tp_alloc(type, 0);
    if (made == NULL) {
        return NULL;
    }
    made->dtype = self->dtype;
    if (py_tensor_set_shape(&from, made, self->n_dims, self->shape) < 0 ||
        py_tensor_set_device(made, backend) < 0 || py_tensor_allocate(made) < 0) {
        Py_CLEAR(made);
    }
    return made;
}

py_tensor *py_tensor_copy(py_tensor *self, PyObject *backend)
{
    py_tensor *copy = py_tensor_like(self, backend);
    if (copy == NULL) {
        return NULL;
    }
    if (backend == NULL && self->backend == NULL) {
        copy_elements(self, copy->data);
        return copy;
    }
    py_tensor *whole =
        self->strided ? py_tensor_copy(self, NULL) : (py_tensor *)Py_NewRef((PyObject *)self);
    if (whole == NULL || py_tensor_move(copy, whole) < 0) {
        Py_CLEAR(copy);
    }
    Py_XDECREF((PyObject *)whole);
    return copy;
}

int py_tensor_extents_from(PyObject *tuple, int64_t *out)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++) {
        out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
        if (out[i] == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    return 0;
}

static PyObject *tensor_zeros(PyObject *type_object, PyObject *args)
{
    PyTypeObject *type = (PyTypeObject *)type_object;
    PyObject *extents, *backend;
    const char *dtype, *device = "cpu";
    if (!PyArg_ParseTuple(args, "O!s|s:zeros", &PyTuple_Type, &extents, &dtype, &device)) {
        return NULL;
    }
    py_tensor_source from = {PyType_GetModuleState(type), extents, "shape"};
    int64_t shape[PY_TENSOR_DIMS] = {0};
    Py_ssize_t n_dims = PyTuple_GET_SIZE(extents);
    if (n_dims <= PY_TENSOR_DIMS && py_tensor_extents_from(extents, shape) < 0) {
        return NULL;
    }
    if (py_tensor_device_named(from.state, device, &backend) < 0) {
        return NULL;
    }
    py_tensor *self = (py_tensor *)type->tp_alloc(type, 0);
    if (self != NULL &&
        (py_tensor_find_dtype(from.state, self, dtype) < 0 ||
         py_tensor_set_shape(&from, self, n_dims <= PY_TENSOR_DIMS ? (int)n_dims : INT_MAX, shape) <
             0 ||
         py_tensor_set_device(self, backend) < 0 || py_tensor_allocate(self) < 0)) {
        Py_CLEAR(self);
    }
    Py_XDECREF(backend);
    return (PyObject *)self;
}

/* The owner's code may run here, also while an exception is on its way. */
static void tensor_dealloc(PyObject *object)
{
    py_tensor *self = (py_tensor *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject *error, *value, *trace;
    PyErr_Fetch(&error, &value, &trace);
    if (self->backend == NULL) {
        PyMem_RawFree(self->allocation);
    }
    else if (self->allocation != NULL) {
        py_tensor_device_free(self);
    }
    else {
        py_tensor_device_finish(self);
    }
    Py_XDECREF(self->array);
    PyBuffer_Release(&self->view);
    py_tensor_give_back(self);
    Py_XDECREF(self->backend);
    PyErr_Restore(error, value, trace);
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- handing out ------------------------------------------------------------------------------- */

static int tensor_get_buffer(PyObject *object, Py_buffer *view, int flags)
{
    py_tensor *self = (py_tensor *)object;
    if (self->backend != NULL) {
        char text[32];
        PyErr_Format(PyExc_BufferError,
                     "this Tensor is on %s, not in host memory; take .to('cpu') of it",
                     py_tensor_device_name(self, text, sizeof text));
        return -1;
    }
    if ((flags & PyBUF_WRITABLE) && self->read_only) {
        PyErr_SetString(PyExc_BufferError, "this Tensor is read-only");
        return -1;
    }
    int contiguous = PyBUF_C_CONTIGUOUS | PyBUF_F_CONTIGUOUS | PyBUF_ANY_CONTIGUOUS;
    if (self->strided &&
        ((flags & PyBUF_STRIDES) != PyBUF_STRIDES || (flags & contiguous & ~PyBUF_STRIDES) != 0)) {
        PyErr_SetString(PyExc_BufferError, "this Tensor has strides; pass a contiguous copy");
        return -1;
    }
    view->obj = Py_NewRef(object);
    view->buf = self->data;
    view->len = self->bytes;
    view->itemsize = self->dtype->dl.bits / 8;
    view->readonly = self->read_only;
    view->ndim = self->n_dims;
    view->format = (flags & PyBUF_FORMAT) ? (char *)(uintptr_t)self->dtype->format : NULL;
    view->shape = (flags & PyBUF_ND) ? (Py_ssize_t *)self->shape : NULL;
    view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->buffer_strides : NULL;
    view->suboffsets = NULL;
    view->internal = NULL;
    return 0;
}

static PyObject *tensor_numpy(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_tensor *self = (py_tensor *)object;
    if (py_tensor_want_host(self, "NumPy") < 0) {
        return NULL;
    }
    if (self->dtype->numpy == NO_NUMPY) {
        return py_raise_format(py_state_of_object(object), LA_ERR_UNSUPPORTED,
                               "NumPy has no type for %s; use torch.from_dlpack or tolist()",
                               self->dtype->name);
    }
    npy_intp shape[PY_TENSOR_DIMS], strides[PY_TENSOR_DIMS];
    for (int i = 0; i < self->n_dims; i++) {
        shape[i] = self->shape[i];
        strides[i] = self->buffer_strides[i];
    }
    PyObject *array = PyArray_New(&PyArray_Type, self->n_dims, shape, self->dtype->numpy, strides,
                                  self->data, 0, NPY_ARRAY_WRITEABLE, NULL);
    if (array == NULL) {
        return NULL;
    }
    if (self->read_only) {
        PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
    }
    if (PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(object)) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

/* What np.asarray asks for. */
static PyObject *tensor_array(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dtype", "copy", NULL};
    PyObject *dtype = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:__array__", names, &dtype, &copy)) {
        return NULL;
    }
    py_tensor *self = (py_tensor *)object, *here = self;
    if (self->backend != NULL &&
        copy != Py_True) { /* the one of a transfer is not for NumPy to decide */
        return py_raise_format(py_state_of_object(object), LA_ERR_UNSUPPORTED,
                               "copy: NumPy cannot read this Tensor, which is on a device, without "
                               "one; pass copy=True, or .to('cpu')");
    }
    if (self->backend != NULL) {
        here = py_tensor_copy(self, NULL);
        copy = Py_None;
    }
    else {
        Py_INCREF(object);
    }
    PyObject *array = here != NULL ? tensor_numpy((PyObject *)here, NULL) : NULL;
    Py_XDECREF((PyObject *)here); /* the array holds it */
    if (array == NULL || (dtype == Py_None && copy != Py_True)) {
        return array;
    }
    PyArray_Descr *wanted = NULL;
    if (dtype != Py_None && !PyArray_DescrConverter(dtype, &wanted)) {
        Py_DECREF(array);
        return NULL;
    }
    if (copy == Py_False && wanted != NULL &&
        !PyArray_EquivTypes(PyArray_DESCR((PyArrayObject *)array), wanted)) {
        PyErr_SetString(PyExc_ValueError, "copy: another dtype needs a copy");
        Py_DECREF(wanted);
        Py_DECREF(array);
        return NULL;
    }
    int flags = copy == Py_True ? NPY_ARRAY_ENSURECOPY | NPY_ARRAY_FORCECAST : NPY_ARRAY_FORCECAST;
    PyObject *result = PyArray_FromArray((PyArrayObject *)array, wanted, flags);
    Py_DECREF(array);
    return result;
}

static PyObject *tensor_subscript(PyObject *object, PyObject *index)
{
    PyObject *array = tensor_numpy(object, NULL);
    PyObject *item = array != NULL ? PyObject_GetItem(array, index) : NULL;
    Py_XDECREF(array);
    return item;
}

static Py_ssize_t tensor_length(PyObject *object)
{
    py_tensor *self = (py_tensor *)object;
    if (self->n_dims == 0) {
        PyErr_SetString(PyExc_TypeError, "a Tensor without dimensions has no length");
        return -1;
    }
    return (Py_ssize_t)self->shape[0];
}

static PyObject *tensor_shape(PyObject *object, void *closure)
{
    (void)closure;
    py_tensor *self = (py_tensor *)object;
    PyObject *shape = PyTuple_New(self->n_dims);
    for (int i = 0; shape != NULL && i < self->n_dims; i++) {
        PyObject *extent = PyLong_FromLongLong(self->shape[i]);
        if (extent == NULL) {
            Py_CLEAR(shape);
            break;
        }
        PyTuple_SET_ITEM(shape, i, extent);
    }
    return shape;
}

static PyObject *tensor_get_dtype(PyObject *object, void *closure)
{
    (void)closure;
    return PyUnicode_FromString(((py_tensor *)object)->dtype->name);
}

static PyObject *tensor_data_ptr(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyLong_FromVoidPtr(((py_tensor *)object)->data);
}

static PyObject *tensor_nbytes(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromSsize_t(((py_tensor *)object)->bytes);
}

static PyObject *tensor_read_only(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((py_tensor *)object)->read_only);
}

static PyObject *tensor_repr(PyObject *object)
{
    char name[32];
    py_tensor *self = (py_tensor *)object;
    PyObject *shape = tensor_shape(object, NULL);
    int there = self->backend != NULL;
    (void)py_tensor_device_name(self, name, sizeof name);
    PyObject *text =
        shape == NULL
            ? NULL
            : PyUnicode_FromFormat("Tensor(shape=%R, dtype=%s%s%s)", shape, self->dtype->name,
                                   there ? ", device=" : "", there ? name : "");
    Py_XDECREF(shape);
    return text;
}

static PyMethodDef tensor_methods[] = {
    {"zeros", tensor_zeros, METH_VARARGS | METH_CLASS,
     "zeros(shape, dtype, device='cpu') -> Tensor\n\nNew memory, 64-byte aligned; dtype as in "
     "safetensors: 'F32', 'BF16', ...; device as in to()."},
    {"from_bytes", py_tensor_from_bytes, METH_VARARGS | METH_CLASS,
     "from_bytes(data, dtype, shape) -> Tensor\n\nA copy of row-major bytes, in host memory; "
     "dtype as "
     "in zeros. ConfigError where they are not as many as dtype and shape take."},
    {"__reduce__", py_tensor_reduce, METH_NOARGS,
     "By value, for pickle and copy: from_bytes and its arguments. UnsupportedError on devices."},
    {"tolist", py_tensor_tolist, METH_NOARGS,
     "tolist() -> list\n\nNested lists of Python numbers, without dimensions one number; exact for "
     "BF16 and\n8-bit floats too. UnsupportedError on devices."},
    {"item", py_tensor_item, METH_NOARGS,
     "item() -> number\n\nThe one element. ValueError where there are more or none."},
    {"to", (PyCFunction)(void (*)(void))py_tensor_to, METH_VARARGS | METH_KEYWORDS,
     "to(device) -> Tensor\n\nThis Tensor if it is there, else a copy in new memory. device: "
     "'cpu', "
     "'cuda' or 'cuda:0'.\nUnsupportedError says why a device cannot be used, MemoryPlanError that "
     "it has no room."},
    {"strided", py_tensor_strided, METH_VARARGS,
     "strided(dtype, offset, shape, strides) -> Tensor\n\nThis Tensor's memory as other numbers; "
     "offset "
     "and strides in elements of dtype. ConfigError where one would lie outside."},
    {"numpy", tensor_numpy, METH_NOARGS,
     "numpy() -> numpy.ndarray\n\nA view. UnsupportedError for BF16 and 8-bit floats, which NumPy "
     "lacks, and on devices."},
    {"data_ptr", tensor_data_ptr, METH_NOARGS,
     "data_ptr() -> int\n\nAddress of the first element."},
    {"__array__", (PyCFunction)(void (*)(void))tensor_array, METH_VARARGS | METH_KEYWORDS, NULL},
    {"__dlpack__", (PyCFunction)(void (*)(void))py_tensor_export, METH_VARARGS | METH_KEYWORDS,
     "__dlpack__(*, stream=None, max_version=None, dl_device=None, copy=None) -> capsule\n\n"
     "Versioned if max_version is (1, 0) or later, else the old form, which cannot carry "
     "read-only\n"
     "memory. copy=True exports a copy; without it the capsule shares this memory and keeps it\n"
     "alive. Of a Tensor on a device: what stream is asked afterwards waits for all that was asked "
     "of\nthe Tensor's before; None and 1 are CUDA's legacy default stream, 2 the thread's, others "
     "a\nhandle, -1 leaves the order to the caller. dl_device=(1, 0) gives a copy in host memory. "
     "BufferError\nfor other devices, for streams that are none, for a copy that copy=False "
     "forbids."},
    {"__dlpack_device__", py_tensor_device, METH_NOARGS,
     "__dlpack_device__() -> (int, int)\n\nDLPack's name for the place: (1, 0) host memory, (2, n) "
     "CUDA device n."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tensor_getset[] = {
    {"shape", tensor_shape, NULL, "tuple of int", NULL},
    {"strides", py_tensor_strides, NULL, "tuple of int: elements from one index to the next", NULL},
    {"is_contiguous", py_tensor_is_contiguous, NULL, "bool: row-major without gaps", NULL},
    {"dtype", tensor_get_dtype, NULL, "str, as in safetensors", NULL},
    {"ndim", py_tensor_ndim, NULL, "int: axes", NULL},
    {"size", py_tensor_size, NULL, "int: elements", NULL},
    {"nbytes", tensor_nbytes, NULL, "bytes of all elements", NULL},
    {"device", py_tensor_get_device, NULL, "str: 'cpu' (host memory) or 'cuda:0'", NULL},
    {"read_only", tensor_read_only, NULL, "bool: its owner forbids writing", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot tensor_slots[] = {
    {Py_tp_doc,
     "Tensor(array, *, name='array')\n\n"
     "Numbers, shared without a copy, in host memory or on a device; contiguous unless their\n"
     "maker says so.\n\n"
     "array: a NumPy array, a DLPack exporter (torch.Tensor, ...) or anything with the buffer\n"
     "protocol, row-major without gaps. name: what error messages call it. The Tensor keeps the\n"
     "memory alive; torch.from_dlpack, np.from_dlpack, np.asarray and memoryview share it again,\n"
     "writable if the source was. dtype is named as in safetensors. What lies on a CUDA device "
     "stays\nthere: its owner makes the stream that backend='cuda' computes on wait for it.\n\n"
     "ConfigError: gaps, foreign byte order, odd addresses. UnsupportedError: other devices and\n"
     "dtypes. TypeError: not an array at all."},
    {Py_tp_new, tensor_new},
    {Py_tp_dealloc, tensor_dealloc},
    {Py_tp_repr, tensor_repr},
    {Py_tp_methods, tensor_methods},
    {Py_tp_getset, tensor_getset},
    {Py_tp_iter, py_tensor_iter},
    {Py_nb_float, py_tensor_float},
    {Py_nb_int, py_tensor_int},
    {Py_nb_bool, py_tensor_bool},
    {Py_mp_length, tensor_length},
    {Py_mp_subscript, tensor_subscript},
    {Py_bf_getbuffer, tensor_get_buffer},
    {0, NULL},
};

static PyType_Spec tensor_spec = {
    .name = "llmaccel.Tensor",
    .basicsize = (int)sizeof(py_tensor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tensor_slots,
};

int py_tensor_register(PyObject *module)
{
    import_array1(-1);
    return py_add_type(module, &tensor_spec, &py_state_of(module)->tensor_type);
}
