/* py_tensor.c - the Python object Tensor: contiguous numbers in host memory that cross without a copy.
 *
 * Owns the exchange with NumPy, DLPack and the buffer protocol, both ways; the only file that uses
 * NumPy's C API. Invariant: row-major without gaps; whatever keeps the memory alive (our allocation, a
 * buffer, a NumPy array, somebody's DLPack capsule) is released when the Tensor goes, and every view
 * handed out holds the Tensor. Used by llm.py for logits and for weights given as arrays.
 */
#include "py_module.h"

#define NPY_NO_DEPRECATED_API NPY_1_23_API_VERSION
#include <numpy/arrayobject.h>

#include "base/dlpack.h"

enum { MAX_DIMS = 8, NO_NUMPY = -1 };

static const struct tensor_dtype {
    const char *name; /* as in safetensors */
    la_dl_dtype dl;
    int numpy;          /* type number, NO_NUMPY where NumPy has none */
    const char *format; /* of the buffer protocol; bfloat16 shows its bits */
} DTYPES[] = {
    {"F64", {LA_DL_FLOAT, 64, 1}, NPY_DOUBLE, "d"}, {"F32", {LA_DL_FLOAT, 32, 1}, NPY_FLOAT, "f"},
    {"F16", {LA_DL_FLOAT, 16, 1}, NPY_HALF, "e"},   {"BF16", {LA_DL_BFLOAT, 16, 1}, NO_NUMPY, "H"},
    {"I64", {LA_DL_INT, 64, 1}, NPY_INT64, "q"},    {"I32", {LA_DL_INT, 32, 1}, NPY_INT32, "i"},
    {"I16", {LA_DL_INT, 16, 1}, NPY_INT16, "h"},    {"I8", {LA_DL_INT, 8, 1}, NPY_INT8, "b"},
    {"U16", {LA_DL_UINT, 16, 1}, NPY_UINT16, "H"},  {"U8", {LA_DL_UINT, 8, 1}, NPY_UINT8, "B"},
    {"BOOL", {LA_DL_BOOL, 8, 1}, NPY_BOOL, "?"},
};
enum { N_DTYPES = sizeof DTYPES / sizeof DTYPES[0] };

typedef struct py_tensor {
    PyObject_HEAD
    char *data; /* [shape] */
    const struct tensor_dtype *dtype;
    int n_dims, read_only;
    Py_ssize_t bytes;
    int64_t shape[MAX_DIMS];
    int64_t strides[MAX_DIMS];           /* in elements, as DLPack counts */
    Py_ssize_t buffer_strides[MAX_DIMS]; /* in bytes, as the buffer protocol counts */
    /* what keeps data alive; the rest is NULL */
    void *allocation;
    PyObject *array;
    la_dl_managed *managed;
    la_dl_versioned *versioned;
} py_tensor;

/* ---- making ------------------------------------------------------------------------------------ */

/* Fills shape, strides and bytes; 0, or -1 with an exception set. */
static int tensor_set_shape(const py_state *state, py_tensor *self, int n_dims,
                            const int64_t *shape)
{
    if (n_dims < 0 || n_dims > MAX_DIMS) {
        py_raise_format(state, LA_ERR_UNSUPPORTED, "shape: %d dimensions, at most %d are supported",
                        n_dims, (int)MAX_DIMS);
        return -1;
    }
    int64_t size = self->dtype->dl.bits / 8;
    int64_t count = 1, bound = size;
    for (int i = n_dims - 1; i >= 0; i--) {
        if (shape[i] < 0 || (shape[i] > 1 && bound > PY_SSIZE_T_MAX / shape[i])) {
            py_raise_format(state, LA_ERR_ARGUMENT, "shape: extent %lld is negative or too large",
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

static int tensor_find_dtype(const py_state *state, py_tensor *self, const char *name)
{
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcmp(DTYPES[i].name, name) == 0) {
            self->dtype = &DTYPES[i];
            return 0;
        }
    }
    py_raise_format(state, LA_ERR_UNSUPPORTED, "dtype: unknown name %.40s", name);
    return -1;
}

/* A borrowed NumPy array; the tensor takes a reference. */
static int tensor_from_array(const py_state *state, py_tensor *self, PyArrayObject *array)
{
    if (!PyArray_IS_C_CONTIGUOUS(array) || PyArray_ISBYTESWAPPED(array)) {
        py_raise_format(state, LA_ERR_ARGUMENT,
                        "array: must be row-major without gaps and in native byte order");
        return -1;
    }
    int number = PyArray_TYPE(array);
    for (int i = 0; i < N_DTYPES && self->dtype == NULL; i++) {
        if (DTYPES[i].numpy != NO_NUMPY && PyArray_EquivTypenums(DTYPES[i].numpy, number)) {
            self->dtype = &DTYPES[i];
        }
    }
    if (self->dtype == NULL) { /* the bfloat16 of ml_dtypes is a user type known by its name */
        PyObject *name = PyObject_GetAttrString((PyObject *)PyArray_DESCR(array), "name");
        if (name == NULL) {
            return -1;
        }
        int is_bfloat16 =
            PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "bfloat16") == 0;
        int failed = is_bfloat16 ? tensor_find_dtype(state, self, "BF16") < 0 : 1;
        if (failed && !is_bfloat16) {
            py_raise_format(state, LA_ERR_UNSUPPORTED, "array: dtype %S is not supported", name);
        }
        Py_DECREF(name);
        if (failed) {
            return -1;
        }
    }
    int64_t shape[MAX_DIMS] = {0};
    int n_dims = PyArray_NDIM(array);
    for (int i = 0; i < n_dims && i < MAX_DIMS; i++) {
        shape[i] = PyArray_DIM(array, i);
    }
    if (tensor_set_shape(state, self, n_dims, shape) < 0) {
        return -1;
    }
    self->data = PyArray_DATA(array);
    self->read_only = !PyArray_ISWRITEABLE(array);
    self->array = Py_NewRef((PyObject *)array);
    return 0;
}

static int tensor_from_dl(const py_state *state, py_tensor *self, const la_dl_tensor *t)
{
    if (t->device.type != LA_DL_CPU && t->device.type != LA_DL_CUDA_HOST) {
        py_raise_format(state, LA_ERR_UNSUPPORTED,
                        "array: DLPack device type %d is not host memory; move it to the CPU",
                        (int)t->device.type);
        return -1;
    }
    for (int i = 0; i < N_DTYPES && self->dtype == NULL; i++) {
        if (memcmp(&DTYPES[i].dl, &t->dtype, sizeof t->dtype) == 0) {
            self->dtype = &DTYPES[i];
        }
    }
    if (self->dtype == NULL) {
        py_raise_format(state, LA_ERR_UNSUPPORTED,
                        "array: DLPack dtype (code %d, %d bits, %d lanes) is not supported",
                        (int)t->dtype.code, (int)t->dtype.bits, (int)t->dtype.lanes);
        return -1;
    }
    if (tensor_set_shape(state, self, t->ndim, t->shape) < 0) {
        return -1;
    }
    for (int i = 0; t->strides != NULL && self->bytes > 0 && i < t->ndim; i++) {
        if (t->shape[i] > 1 && t->strides[i] != self->strides[i]) {
            py_raise_format(state, LA_ERR_ARGUMENT, "array: must be row-major without gaps");
            return -1;
        }
    }
    self->data = (char *)t->data + t->byte_offset;
    return 0;
}

/* Takes over what a capsule holds; from then on the tensor calls its deleter. */
static int tensor_take_capsule(const py_state *state, py_tensor *self, PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        la_dl_versioned *v = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (v->version.major != LA_DL_MAJOR) {
            py_raise_format(state, LA_ERR_UNSUPPORTED, "array: DLPack version %u.%u is unknown",
                            v->version.major, v->version.minor);
            return -1;
        }
        if (PyCapsule_SetName(capsule, "used_dltensor_versioned") < 0) {
            return -1;
        }
        self->versioned = v;
        self->read_only = (v->flags & LA_DL_READ_ONLY) != 0;
        return tensor_from_dl(state, self, &v->tensor);
    }
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        la_dl_managed *m = PyCapsule_GetPointer(capsule, "dltensor");
        if (PyCapsule_SetName(capsule, "used_dltensor") < 0) {
            return -1;
        }
        self->managed = m;
        return tensor_from_dl(state, self, &m->tensor);
    }
    PyErr_SetString(PyExc_TypeError, "array: __dlpack__ gave no DLPack capsule");
    return -1;
}

static int tensor_from_exporter(const py_state *state, py_tensor *self, PyObject *object)
{
    PyObject *method = PyObject_GetAttrString(object, "__dlpack__");
    if (method == NULL) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError,
                     "array: expected a NumPy array or a DLPack exporter, got %.100s",
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    PyObject *none = PyTuple_New(0);
    PyObject *keywords = Py_BuildValue("{s:(ii)}", "max_version", LA_DL_MAJOR, LA_DL_MINOR);
    PyObject *capsule = NULL;
    if (none != NULL && keywords != NULL) {
        capsule = PyObject_Call(method, none, keywords);
        if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear(); /* an exporter from before DLPack 1.0 knows no max_version */
            capsule = PyObject_CallNoArgs(method);
        }
    }
    Py_XDECREF(none);
    Py_XDECREF(keywords);
    Py_DECREF(method);
    int result = capsule != NULL ? tensor_take_capsule(state, self, capsule) : -1;
    Py_XDECREF(capsule);
    return result;
}

static PyObject *tensor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"array", NULL};
    PyObject *object;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Tensor", names, &object)) {
        return NULL;
    }
    py_state *state = (py_state *)PyType_GetModuleState(type);
    py_tensor *self = (py_tensor *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    int failed = PyArray_Check(object) ? tensor_from_array(state, self, (PyArrayObject *)object)
                                       : tensor_from_exporter(state, self, object);
    if (failed) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *tensor_zeros(PyObject *type_object, PyObject *args)
{
    PyTypeObject *type = (PyTypeObject *)type_object;
    PyObject *extents;
    const char *dtype;
    if (!PyArg_ParseTuple(args, "O!s:zeros", &PyTuple_Type, &extents, &dtype)) {
        return NULL;
    }
    py_state *state = (py_state *)PyType_GetModuleState(type);
    int64_t shape[MAX_DIMS] = {0};
    Py_ssize_t n_dims = PyTuple_GET_SIZE(extents);
    for (Py_ssize_t i = 0; i < n_dims && i < MAX_DIMS; i++) {
        shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(extents, i));
        if (shape[i] == -1 && PyErr_Occurred()) {
            return NULL;
        }
    }
    py_tensor *self = (py_tensor *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    if (tensor_find_dtype(state, self, dtype) < 0 ||
        tensor_set_shape(state, self, (int)n_dims, shape) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    /* Fresh zero pages for anything large: nothing is touched before it is written. */
    enum { ALIGN = 64 };
    self->allocation = PyMem_RawCalloc(1, (size_t)self->bytes + ALIGN);
    if (self->allocation == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->data = (char *)(((uintptr_t)self->allocation + ALIGN - 1) & ~(uintptr_t)(ALIGN - 1));
    return (PyObject *)self;
}

static void tensor_dealloc(PyObject *object)
{
    py_tensor *self = (py_tensor *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyMem_RawFree(self->allocation);
    Py_XDECREF(self->array);
    if (self->managed != NULL && self->managed->deleter != NULL) {
        self->managed->deleter(self->managed);
    }
    if (self->versioned != NULL && self->versioned->deleter != NULL) {
        self->versioned->deleter(self->versioned);
    }
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- handing out ------------------------------------------------------------------------------- */

static int tensor_get_buffer(PyObject *object, Py_buffer *view, int flags)
{
    py_tensor *self = (py_tensor *)object;
    if ((flags & PyBUF_WRITABLE) && self->read_only) {
        PyErr_SetString(PyExc_BufferError, "this Tensor is read-only");
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

/* Consumers may drop a tensor on any thread, with or without the GIL. */
static void drop_owner(PyObject *owner)
{
    if (Py_IsInitialized()) {
        PyGILState_STATE gil = PyGILState_Ensure();
        Py_DECREF(owner);
        PyGILState_Release(gil);
    }
}

static void managed_deleter(la_dl_managed *managed)
{
    drop_owner(managed->owner);
    PyMem_RawFree(managed);
}

static void versioned_deleter(la_dl_versioned *versioned)
{
    drop_owner(versioned->owner);
    PyMem_RawFree(versioned);
}

/* A capsule that nobody consumed still owns what it holds. */
static void managed_capsule_free(PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        managed_deleter(PyCapsule_GetPointer(capsule, "dltensor"));
    }
}

static void versioned_capsule_free(PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        versioned_deleter(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
    }
}

static void tensor_describe(py_tensor *self, la_dl_tensor *out)
{
    out->data = self->data;
    out->device = (la_dl_device){LA_DL_CPU, 0};
    out->ndim = self->n_dims;
    out->dtype = self->dtype->dl;
    out->shape = self->shape;
    out->strides = self->strides;
    out->byte_offset = 0;
}

static PyObject *export_versioned(py_tensor *self)
{
    la_dl_versioned *versioned = PyMem_RawCalloc(1, sizeof *versioned);
    if (versioned == NULL) {
        return PyErr_NoMemory();
    }
    versioned->version = (la_dl_version){LA_DL_MAJOR, LA_DL_MINOR};
    versioned->owner = Py_NewRef((PyObject *)self);
    versioned->deleter = versioned_deleter;
    versioned->flags = self->read_only ? LA_DL_READ_ONLY : 0;
    tensor_describe(self, &versioned->tensor);
    PyObject *capsule = PyCapsule_New(versioned, "dltensor_versioned", versioned_capsule_free);
    if (capsule == NULL) {
        versioned_deleter(versioned);
    }
    return capsule;
}

static PyObject *export_managed(py_tensor *self)
{
    if (self->read_only) {
        PyErr_SetString(PyExc_BufferError,
                        "this Tensor is read-only, which DLPack before 1.0 cannot say");
        return NULL;
    }
    la_dl_managed *managed = PyMem_RawCalloc(1, sizeof *managed);
    if (managed == NULL) {
        return PyErr_NoMemory();
    }
    managed->owner = Py_NewRef((PyObject *)self);
    managed->deleter = managed_deleter;
    tensor_describe(self, &managed->tensor);
    PyObject *capsule = PyCapsule_New(managed, "dltensor", managed_capsule_free);
    if (capsule == NULL) {
        managed_deleter(managed);
    }
    return capsule;
}

static int parse_pair(PyObject *object, const char *name, int *first, int *second)
{
    if (PyTuple_Check(object) && PyArg_ParseTuple(object, "ii", first, second)) {
        return 0;
    }
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "%s: expected two integers, got %R", name, object);
    return -1;
}

static PyObject *tensor_dlpack(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    PyObject *stream = Py_None, *max_version = Py_None, *device = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream,
                                     &max_version, &device, &copy)) {
        return NULL;
    }
    if (stream != Py_None) {
        PyErr_SetString(PyExc_BufferError, "stream: host memory has no stream");
        return NULL;
    }
    if (copy == Py_True) {
        PyErr_SetString(PyExc_BufferError, "copy: a Tensor is exported without a copy only");
        return NULL;
    }
    int type = LA_DL_CPU, id = 0;
    if (device != Py_None && parse_pair(device, "dl_device", &type, &id) < 0) {
        return NULL;
    }
    if (type != LA_DL_CPU || id != 0) {
        PyErr_SetString(PyExc_BufferError, "dl_device: a Tensor is in host memory (1, 0)");
        return NULL;
    }
    int major = 0, minor = 0;
    if (max_version != Py_None && parse_pair(max_version, "max_version", &major, &minor) < 0) {
        return NULL;
    }
    return major >= LA_DL_MAJOR ? export_versioned((py_tensor *)object)
                                : export_managed((py_tensor *)object);
}

static PyObject *tensor_dlpack_device(PyObject *object, PyObject *unused)
{
    (void)object;
    (void)unused;
    return Py_BuildValue("(ii)", LA_DL_CPU, 0);
}

static PyObject *tensor_numpy(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_tensor *self = (py_tensor *)object;
    if (self->dtype->numpy == NO_NUMPY) {
        return py_raise_format(py_state_of_object(object), LA_ERR_UNSUPPORTED,
                               "NumPy has no type for %s; use torch.from_dlpack",
                               self->dtype->name);
    }
    npy_intp shape[MAX_DIMS];
    for (int i = 0; i < self->n_dims; i++) {
        shape[i] = self->shape[i];
    }
    PyObject *array =
        PyArray_SimpleNewFromData(self->n_dims, shape, self->dtype->numpy, self->data);
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
    PyObject *array = tensor_numpy(object, NULL);
    if (array == NULL || (dtype == Py_None && copy != Py_True)) {
        return array;
    }
    PyArray_Descr *wanted = NULL;
    if (dtype != Py_None && !PyArray_DescrConverter(dtype, &wanted)) {
        Py_DECREF(array);
        return NULL;
    }
    int flags = copy == Py_True ? NPY_ARRAY_ENSURECOPY | NPY_ARRAY_FORCECAST : NPY_ARRAY_FORCECAST;
    PyObject *result = PyArray_FromArray((PyArrayObject *)array, wanted, flags);
    Py_DECREF(array);
    return result;
}

static PyObject *tensor_item(PyObject *object, PyObject *index)
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

static PyObject *tensor_repr(PyObject *object)
{
    PyObject *shape = tensor_shape(object, NULL);
    PyObject *text = shape == NULL ? NULL
                                   : PyUnicode_FromFormat("Tensor(shape=%R, dtype=%s)", shape,
                                                          ((py_tensor *)object)->dtype->name);
    Py_XDECREF(shape);
    return text;
}

static PyMethodDef tensor_methods[] = {
    {"zeros", tensor_zeros, METH_VARARGS | METH_CLASS,
     "zeros(shape, dtype) -> Tensor\n\nNew memory; dtype as in safetensors: 'F32', 'BF16', ..."},
    {"numpy", tensor_numpy, METH_NOARGS,
     "numpy() -> numpy.ndarray\n\nA view. UnsupportedError for BF16, which NumPy lacks."},
    {"data_ptr", tensor_data_ptr, METH_NOARGS,
     "data_ptr() -> int\n\nAddress of the first element."},
    {"__array__", (PyCFunction)(void (*)(void))tensor_array, METH_VARARGS | METH_KEYWORDS, NULL},
    {"__dlpack__", (PyCFunction)(void (*)(void))tensor_dlpack, METH_VARARGS | METH_KEYWORDS,
     "A DLPack capsule: versioned if max_version is 1.0 or later, else the old form."},
    {"__dlpack_device__", tensor_dlpack_device, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tensor_getset[] = {
    {"shape", tensor_shape, NULL, "tuple of int", NULL},
    {"dtype", tensor_get_dtype, NULL, "str, as in safetensors", NULL},
    {"nbytes", tensor_nbytes, NULL, "bytes of all elements", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot tensor_slots[] = {
    {Py_tp_doc, "Tensor(array)\n\nA zero-copy view of a NumPy array or any DLPack exporter in host "
                "memory; itself a DLPack exporter, a buffer, and what np.asarray takes."},
    {Py_tp_new, tensor_new},
    {Py_tp_dealloc, tensor_dealloc},
    {Py_tp_repr, tensor_repr},
    {Py_tp_methods, tensor_methods},
    {Py_tp_getset, tensor_getset},
    {Py_mp_length, tensor_length},
    {Py_mp_subscript, tensor_item},
    {Py_bf_getbuffer, tensor_get_buffer},
    {0, NULL},
};

static PyType_Spec tensor_spec = {
    .name = "llmaccel._core.Tensor",
    .basicsize = (int)sizeof(py_tensor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tensor_slots,
};

int py_tensor_register(PyObject *module)
{
    import_array1(-1);
    return py_add_type(module, &tensor_spec, &py_state_of(module)->tensor_type);
}
