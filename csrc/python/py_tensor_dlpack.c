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

/* A CUDA device that cannot be used says why; what it is not is passed on. */
static PyObject *open_device(const py_tensor_source *from, int number)
{
    PyObject *backend = py_tensor_open_device(from->state, number);
    PyObject *error, *value, *trace;
    if (backend != NULL || !PyErr_ExceptionMatches(from->state->errors[LA_ERR_UNSUPPORTED])) {
        return backend;
    }
    PyErr_Fetch(&error, &value, &trace);
    py_raise_format(from->state, LA_ERR_UNSUPPORTED,
                    "%s: is on a CUDA device (DLPack type %d), not in host memory; move it to the "
                    "CPU (%S)",
                    from->name, (int)LA_DL_CUDA, value);
    Py_XDECREF(error);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return NULL;
}

static int is_host(la_dl_device device)
{
    return device.type == LA_DL_CPU || device.type == LA_DL_CUDA_HOST ||
           device.type == LA_DL_ROCM_HOST;
}

static int refuse_device(const py_tensor_source *from, la_dl_device device, const char *why)
{
    py_raise_format(from->state, LA_ERR_UNSUPPORTED, "%s: is on a %s device (DLPack type %d), %s",
                    from->name, device_name(device.type), (int)device.type, why);
    return -1;
}

/* Sets the tensor's device where the host cannot read it. 0, or -1 with an exception set. */
static int enter_device(const py_tensor_source *from, py_tensor *self, la_dl_device device)
{
    if (is_host(device)) {
        return 0;
    }
    if (device.type != LA_DL_CUDA) {
        return refuse_device(from, device, "not in host memory; move it to the CPU");
    }
    PyObject *backend = open_device(from, device.id);
    int result = backend != NULL ? py_tensor_set_device(self, backend) : -1;
    Py_XDECREF(backend);
    return result;
}

/* The capsule's device must be the one that was asked for its stream. */
static int check_device(const py_tensor_source *from, const py_tensor *self, la_dl_device device)
{
    int there = device.type == LA_DL_CUDA && device.id == self->number;
    if (self->backend != NULL ? there : is_host(device)) {
        return 0;
    }
    return refuse_device(from, device,
                         self->backend != NULL || device.type == LA_DL_CUDA
                             ? "and its __dlpack_device__ says otherwise"
                             : "not in host memory; move it to the CPU");
}

/* Is its memory the device's? 0, or -1 with an exception set. */
static int check_reach(const py_tensor_source *from, py_tensor *self)
{
    char name[32];
    la_backend *b = self->backend != NULL ? py_tensor_backend(self) : NULL;
    int there;
    if (self->backend == NULL || self->bytes == 0) {
        return 0;
    }
    if (b == NULL) {
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    there = la_device_reaches(b, self->data, (size_t)self->bytes);
    Py_END_ALLOW_THREADS
    if (!there) {
        py_raise_format(from->state, LA_ERR_ARGUMENT,
                        "%s: %zd bytes at %p are no memory of device %s", from->name, self->bytes,
                        self->data, py_tensor_device_name(self, name, sizeof name));
    }
    return there ? 0 : -1;
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
    /* as numbers: an offset that is not to be believed may pass the end of addresses */
    uintptr_t at = (uintptr_t)t->data + (uintptr_t)t->byte_offset;
    self->data = t->data != NULL ? (void *)at : NULL;
    return py_tensor_check_address(from, self) < 0 ? -1 : check_reach(from, self);
}

static int import_tensor(const py_tensor_source *from, py_tensor *self, const la_dl_tensor *t)
{
    if (check_device(from, self, t->device) < 0) {
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

/* Asked first: a device's memory comes with a wait of its stream, and what is refused is not even copied. */
static int ask_device(const py_tensor_source *from, py_tensor *self)
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
    return failed ? -1 : enter_device(from, self, (la_dl_device){type, id});
}

/* What __dlpack__ is asked with: versioned or not, and the stream that is to wait. */
static PyObject *import_keywords(py_tensor *self, int versioned)
{
    PyObject *keywords = PyDict_New();
    PyObject *version = Py_BuildValue("(ii)", LA_DL_MAJOR, LA_DL_MINOR);
    la_backend *b = self->backend != NULL ? py_tensor_backend(self) : NULL;
    PyObject *stream = b != NULL ? PyLong_FromUnsignedLongLong(la_device_stream(b)) : NULL;
    int failed = keywords == NULL || version == NULL || (self->backend != NULL && stream == NULL);
    failed = failed || (versioned && PyDict_SetItemString(keywords, "max_version", version) < 0);
    failed = failed || (stream != NULL && PyDict_SetItemString(keywords, "stream", stream) < 0);
    Py_XDECREF(version);
    Py_XDECREF(stream);
    if (failed) {
        Py_CLEAR(keywords);
    }
    return keywords;
}

static PyObject *ask_capsule(py_tensor *self, PyObject *method, int versioned)
{
    PyObject *none = PyTuple_New(0);
    PyObject *keywords = none != NULL ? import_keywords(self, versioned) : NULL;
    PyObject *capsule = keywords != NULL ? PyObject_Call(method, none, keywords) : NULL;
    Py_XDECREF(none);
    Py_XDECREF(keywords);
    return capsule;
}

int py_tensor_import(const py_tensor_source *from, py_tensor *self)
{
    if (ask_device(from, self) < 0) {
        return -1;
    }
    PyObject *method = PyObject_GetAttrString(from->object, "__dlpack__");
    PyObject *capsule = method != NULL ? ask_capsule(self, method, 1) : NULL;
    if (method != NULL && capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear(); /* an exporter from before DLPack 1.0 knows no max_version */
        capsule = ask_capsule(self, method, 0);
    }
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
    out->device = self->backend != NULL ? (la_dl_device){LA_DL_CUDA, self->number}
                                        : (la_dl_device){LA_DL_CPU, 0};
    out->ndim = self->n_dims;
    out->dtype = self->dtype->dl;
    out->shape = self->shape;
    out->strides = self->strides;
    out->byte_offset = 0;
}

/* What __dlpack__ was asked for. */
typedef struct export_wish {
    int copy;         /* always */
    int to_host;      /* of a tensor on a device */
    int64_t stream;   /* that is to wait; -1: none is */
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

static int refuse(const char *text)
{
    PyErr_SetString(PyExc_BufferError, text);
    return -1;
}

/* DLPack's stream argument for a consumer on a CUDA device. 0, or -1 with an exception set. */
static int parse_stream(PyObject *object, export_wish *wish)
{
    wish->stream = 1; /* the legacy default stream */
    if (object == Py_None) {
        return 0;
    }
    if (!PyLong_Check(object) || PyBool_Check(object)) {
        PyErr_Format(PyExc_TypeError, "stream: expected an integer or None, got %R", object);
        return -1;
    }
    wish->stream = PyLong_AsLongLong(object);
    if (wish->stream == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        return refuse("stream: no stream has a number of more than 63 bits");
    }
    if (wish->stream == 0) {
        return refuse("stream: 0 can mean two streams; pass 1, the legacy default one, or 2, the "
                      "thread's");
    }
    return wish->stream < -1 ? refuse("stream: below -1, which asks for none to wait") : 0;
}

/* What dl_device, copy and stream say together. 0, or -1 with an exception set for what cannot be given. */
static int parse_place(const py_tensor *self, PyObject *device, PyObject *stream, export_wish *wish)
{
    int own = self->backend != NULL ? LA_DL_CUDA : LA_DL_CPU;
    int type = own, id = self->number;
    if (device != Py_None && parse_pair(device, "dl_device", &type, &id) < 0) {
        return -1;
    }
    wish->to_host = own == LA_DL_CUDA && type == LA_DL_CPU && id == 0;
    if (!wish->to_host && (type != own || id != self->number)) {
        char name[32];
        PyErr_Format(PyExc_BufferError,
                     "dl_device: (%d, %d) is not where this Tensor is, %s (%d, %d)", type, id,
                     py_tensor_device_name(self, name, sizeof name), own, self->number);
        return -1;
    }
    if (self->backend != NULL && !wish->to_host) {
        return parse_stream(stream, wish);
    }
    return stream != Py_None ? refuse("stream: host memory has no stream") : 0;
}

/* 0, or -1 with an exception set for what cannot be given. */
static int parse_wish(const py_tensor *self, PyObject *args, PyObject *kwargs, export_wish *wish)
{
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    PyObject *stream = Py_None, *max_version = Py_None, *device = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream,
                                     &max_version, &device, &copy)) {
        return -1;
    }
    *wish = (export_wish){.stream = -1};
    wish->copy = copy == Py_None ? 0 : PyObject_IsTrue(copy);
    if (wish->copy < 0 || parse_place(self, device, stream, wish) < 0) {
        return -1;
    }
    if (wish->to_host && copy != Py_None && !wish->copy) {
        return refuse("copy: host memory of what lies on a device is a copy");
    }
    wish->copy |= wish->to_host;
    return max_version == Py_None
               ? 0
               : parse_pair(max_version, "max_version", &wish->major, &wish->minor);
}

/* The consumer's stream waits for ours. 0, or -1 with an exception set. */
static int hand_over(py_tensor *self, const export_wish *wish)
{
    la_backend *b = wish->stream > 0 ? py_tensor_backend(self) : NULL;
    la_status status;
    if (wish->stream <= 0) {
        return 0;
    }
    if (b == NULL) {
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    status = la_device_follow(b, (uint64_t)wish->stream);
    Py_END_ALLOW_THREADS
    return status == LA_OK ? 0 : refuse(la_last_error());
}

PyObject *py_tensor_export(PyObject *object, PyObject *args, PyObject *kwargs)
{
    export_wish wish;
    py_tensor *self = (py_tensor *)object;
    if (parse_wish(self, args, kwargs, &wish) < 0) {
        return NULL;
    }
    py_tensor *source = wish.copy ? py_tensor_copy(self, wish.to_host ? NULL : self->backend)
                                  : (py_tensor *)Py_NewRef(object);
    if (source == NULL) {
        return NULL;
    }
    PyObject *capsule = NULL;
    if (hand_over(source, &wish) == 0) {
        capsule =
            wish.major >= LA_DL_MAJOR ? export_versioned(source, &wish) : export_managed(source);
    }
    Py_DECREF((PyObject *)source); /* the capsule holds it */
    return capsule;
}

PyObject *py_tensor_device(PyObject *object, PyObject *unused)
{
    const py_tensor *self = (const py_tensor *)object;
    (void)unused;
    return Py_BuildValue("(ii)", self->backend != NULL ? LA_DL_CUDA : LA_DL_CPU, self->number);
}
