/* py_tensor_dlpack.c - Tensors in and out of DLPack capsules, versioned and old.
 *
 * Owns what the exchange asks of a producer and of a consumer. Invariants: a capsule taken over is
 * renamed first, and its deleter runs exactly once, when the Tensor goes; a capsule given out holds
 * its Tensor until its consumer, or nobody, took it. Foreign structures are checked before they are
 * believed. Used by py_tensor.c.
 */
#include "py_tensor.h"

/* ---- in ---------------------------------------------------------------------------------------- */

static const char *device_name(int type)
{
    static const char *const names[] = {
        [2] = "CUDA",      [4] = "OpenCL",  [7] = "Vulkan",     [8] = "Metal",
        [9] = "VPI",       [10] = "ROCm",   [12] = "extension", [13] = "CUDA managed",
        [14] = "oneAPI",   [15] = "WebGPU", [16] = "Hexagon",   [17] = "MAIA",
        [18] = "Trainium",
    };
    int known = type >= 0 && type < (int)(sizeof names / sizeof names[0]) && names[type] != NULL;
    return known ? names[type] : "unknown";
}

static int check_device(const py_tensor_source *from, int type)
{
    if (type == LA_DL_CPU || type == LA_DL_CUDA_HOST || type == LA_DL_ROCM_HOST) {
        return 0;
    }
    py_raise_format(
        from->state, LA_ERR_UNSUPPORTED,
        "%s: is on a %s device (DLPack type %d), not in host memory; move it to the CPU",
        from->name, device_name(type), type);
    return -1;
}

static int import_layout(const py_tensor_source *from, py_tensor *self, const la_dl_tensor *t)
{
    if (t->ndim > 0 && t->shape == NULL) {
        py_raise_format(from->state, LA_ERR_ARGUMENT, "%s: a DLPack tensor without a shape",
                        from->name);
        return -1;
    }
    if (py_tensor_set_shape(from, self, t->ndim, t->shape) < 0) {
        return -1;
    }
    for (int i = 0; t->strides != NULL && self->bytes > 0 && i < t->ndim; i++) {
        if (t->shape[i] > 1 && t->strides[i] != self->strides[i]) {
            py_raise_format(from->state, LA_ERR_ARGUMENT,
                            "%s: must be row-major without gaps; pass a contiguous copy",
                            from->name);
            return -1;
        }
    }
    if (self->bytes > 0 && t->data == NULL) {
        py_raise_format(from->state, LA_ERR_ARGUMENT, "%s: a DLPack tensor without data",
                        from->name);
        return -1;
    }
    self->data = t->data != NULL ? (char *)t->data + t->byte_offset : NULL;
    return py_tensor_check_address(from, self);
}

static int import_tensor(const py_tensor_source *from, py_tensor *self, const la_dl_tensor *t)
{
    if (check_device(from, t->device.type) < 0) {
        return -1;
    }
    for (int i = 0; i < PY_TENSOR_DTYPES && self->dtype == NULL; i++) {
        if (memcmp(&py_tensor_dtypes[i].dl, &t->dtype, sizeof t->dtype) == 0) {
            self->dtype = &py_tensor_dtypes[i];
        }
    }
    if (self->dtype == NULL) {
        py_raise_format(from->state, LA_ERR_UNSUPPORTED,
                        "%s: DLPack dtype (code %d, %d bits, %d lanes) is not supported",
                        from->name, (int)t->dtype.code, (int)t->dtype.bits, (int)t->dtype.lanes);
        return -1;
    }
    return import_layout(from, self, t);
}

/* Takes over what a capsule holds; from then on the tensor calls its deleter. */
static int take_capsule(const py_tensor_source *from, py_tensor *self, PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        la_dl_versioned *v = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (v->version.major != LA_DL_MAJOR) { /* nothing behind the version can be trusted */
            py_raise_format(from->state, LA_ERR_UNSUPPORTED, "%s: DLPack version %u.%u is unknown",
                            from->name, v->version.major, v->version.minor);
            return -1;
        }
        if (PyCapsule_SetName(capsule, "used_dltensor_versioned") < 0) {
            return -1;
        }
        self->versioned = v;
        self->read_only = (v->flags & LA_DL_READ_ONLY) != 0;
        return import_tensor(from, self, &v->tensor);
    }
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        la_dl_managed *m = PyCapsule_GetPointer(capsule, "dltensor");
        if (PyCapsule_SetName(capsule, "used_dltensor") < 0) {
            return -1;
        }
        self->managed = m;
        return import_tensor(from, self, &m->tensor);
    }
    PyErr_Format(PyExc_TypeError, "%s: __dlpack__ gave no DLPack capsule", from->name);
    return -1;
}

/* Asked first, so that a device's memory is not copied or waited for to be refused. */
static int ask_device(const py_tensor_source *from)
{
    PyObject *device = PyObject_CallMethod(from->object, "__dlpack_device__", NULL);
    if (device == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear(); /* the capsule says it as well */
        return 0;
    }
    int type, id, failed = device == NULL;
    if (!failed && (!PyTuple_Check(device) || !PyArg_ParseTuple(device, "ii", &type, &id))) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s: __dlpack_device__ gave %R, not two integers", from->name,
                     device);
        failed = 1;
    }
    Py_XDECREF(device);
    return failed ? -1 : check_device(from, type);
}

int py_tensor_import(const py_tensor_source *from, py_tensor *self)
{
    if (ask_device(from) < 0) {
        return -1;
    }
    PyObject *method = PyObject_GetAttrString(from->object, "__dlpack__");
    PyObject *none = PyTuple_New(0);
    PyObject *keywords = Py_BuildValue("{s:(ii)}", "max_version", LA_DL_MAJOR, LA_DL_MINOR);
    PyObject *capsule = NULL;
    if (method != NULL && none != NULL && keywords != NULL) {
        capsule = PyObject_Call(method, none, keywords);
        if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear(); /* an exporter from before DLPack 1.0 knows no max_version */
            capsule = PyObject_CallNoArgs(method);
        }
    }
    Py_XDECREF(none);
    Py_XDECREF(keywords);
    Py_XDECREF(method);
    int result = capsule != NULL ? take_capsule(from, self, capsule) : -1;
    Py_XDECREF(capsule);
    return result;
}

void py_tensor_give_back(py_tensor *self)
{
    if (self->managed != NULL && self->managed->deleter != NULL) {
        self->managed->deleter(self->managed);
    }
    if (self->versioned != NULL && self->versioned->deleter != NULL) {
        self->versioned->deleter(self->versioned);
    }
}

/* ---- out --------------------------------------------------------------------------------------- */

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

/* What __dlpack__ was asked for. */
typedef struct export_wish {
    int copy;         /* always */
    int major, minor; /* the newest version that the consumer reads; 0: the old form */
} export_wish;

static PyObject *export_versioned(py_tensor *self, const export_wish *wish)
{
    la_dl_versioned *versioned = PyMem_RawCalloc(1, sizeof *versioned);
    if (versioned == NULL) {
        return PyErr_NoMemory();
    }
    int older = wish->major == LA_DL_MAJOR && wish->minor >= 0 && wish->minor < LA_DL_MINOR;
    versioned->version = (la_dl_version){LA_DL_MAJOR, older ? (uint32_t)wish->minor : LA_DL_MINOR};
    versioned->owner = Py_NewRef((PyObject *)self);
    versioned->deleter = versioned_deleter;
    versioned->flags = (self->read_only ? LA_DL_READ_ONLY : 0) | (wish->copy ? LA_DL_IS_COPIED : 0);
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

/* 0, or -1 with an exception set for what cannot be given. */
static int parse_wish(PyObject *args, PyObject *kwargs, export_wish *wish)
{
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    PyObject *stream = Py_None, *max_version = Py_None, *device = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream,
                                     &max_version, &device, &copy)) {
        return -1;
    }
    if (stream != Py_None) {
        PyErr_SetString(PyExc_BufferError, "stream: host memory has no stream");
        return -1;
    }
    wish->copy = copy == Py_None ? 0 : PyObject_IsTrue(copy);
    if (wish->copy < 0) {
        return -1;
    }
    int type = LA_DL_CPU, id = 0;
    if (device != Py_None && parse_pair(device, "dl_device", &type, &id) < 0) {
        return -1;
    }
    if (type != LA_DL_CPU || id != 0) {
        PyErr_SetString(PyExc_BufferError, "dl_device: a Tensor is in host memory (1, 0)");
        return -1;
    }
    wish->major = 0;
    wish->minor = 0;
    return max_version == Py_None
               ? 0
               : parse_pair(max_version, "max_version", &wish->major, &wish->minor);
}

PyObject *py_tensor_export(PyObject *object, PyObject *args, PyObject *kwargs)
{
    export_wish wish;
    if (parse_wish(args, kwargs, &wish) < 0) {
        return NULL;
    }
    py_tensor *self = (py_tensor *)object;
    py_tensor *source = wish.copy ? py_tensor_copy(self) : (py_tensor *)Py_NewRef(object);
    if (source == NULL) {
        return NULL;
    }
    PyObject *capsule =
        wish.major >= LA_DL_MAJOR ? export_versioned(source, &wish) : export_managed(source);
    Py_DECREF(source); /* the capsule holds it */
    return capsule;
}

PyObject *py_tensor_device(PyObject *object, PyObject *unused)
{
    (void)object;
    (void)unused;
    return Py_BuildValue("(ii)", LA_DL_CPU, 0);
}
