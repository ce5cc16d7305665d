/* py_model.c - the Python object Model: a description in numbers and the packed weights.
 *
 * Owns one la_model and a reference to its Backend; also the module functions plan and weight_bytes,
 * which need the description alone. Invariant: close() frees the weights at once, and is refused while
 * an Engine lives on them, and waits for the last Tensor over them; set() is refused while such a one is alive
 * or an engine steps. Checkpoint bytes are borrowed for the call that packs them. C re-checks
 * every shape; here only Python values become C values.
 */
#include "py_module.h"

typedef struct py_model {
    PyObject_HEAD
    PyObject *backend;
    la_model *handle;  /* NULL once closed */
    int engines;       /* alive on this model */
    int calls;         /* inside la_ functions with the GIL released */
    int steps, sets;   /* of engines, of weights, under way: never both */
    int views;         /* Tensors over its weights: while there are some, none is set or freed */
    la_model *retired; /* closed while views were alive: freed with the last of them */
    py_model_sizes sizes;
    long pid;
} py_model;

static int parse_slot(const py_state *state, const char *name, la_slot *out)
{
    *out = la_slot_from_name(name);
    if (*out == LA_SLOT_COUNT) {
        py_raise_format(state, LA_ERR_ARGUMENT, "slot: unknown name %.40s", name);
        return -1;
    }
    return 0;
}

/* ---- parts: the checkpoint tensors that fill one slot ------------------------------------------ */

enum { MAX_PARTS = 3 }; /* q, k, v */

typedef struct parts_holder {
    la_source sources[MAX_PARTS];
    Py_buffer views[MAX_PARTS];
    Py_buffer orders[MAX_PARTS]; /* int32 */
    int n;
} parts_holder;

static void parts_clear(parts_holder *parts)
{
    for (int i = 0; i < parts->n; i++) {
        if (parts->views[i].obj != NULL) {
            PyBuffer_Release(&parts->views[i]);
        }
        if (parts->orders[i].obj != NULL) {
            PyBuffer_Release(&parts->orders[i]);
        }
    }
}

static int order_from(const py_state *state, const Py_buffer *order, la_source *source)
{
    if (source->cols < 0 || order->len != (Py_ssize_t)source->cols * (Py_ssize_t)sizeof(int32_t) ||
        (uintptr_t)order->buf % sizeof(int32_t) != 0) {
        py_raise_format(state, LA_ERR_ARGUMENT, "order: expected %d aligned int32, got %zd bytes",
                        source->cols, order->len);
        return -1;
    }
    source->order = order->buf;
    return 0;
}

static int parse_part(const py_state *state, PyObject *part, int with_data, parts_holder *parts)
{
    la_source *source = &parts->sources[parts->n];
    Py_buffer *view = &parts->views[parts->n], *order = &parts->orders[parts->n];
    const char *dtype;
    PyObject *tuple = PySequence_Tuple(part);
    int ok = tuple != NULL;
    if (ok && with_data) {
        ok = PyArg_ParseTuple(tuple,
                              "y*sii|z*(iif);parts: expected (buffer, dtype, rows, cols[, "
                              "order or None[, (kind, group, scale)]])",
                              view, &dtype, &source->rows, &source->cols, order,
                              &source->rounding.kind, &source->rounding.group,
                              &source->rounding.scale);
    }
    else if (ok) {
        ok = PyArg_ParseTuple(tuple, "sii;parts: expected (dtype, rows, cols)", &dtype,
                              &source->rows, &source->cols);
    }
    if (ok) {
        parts->n++; /* from here parts_clear releases the view */
        source->data = view->buf;
        source->bytes = (size_t)view->len;
        ok = py_dtype_from(state, dtype, &source->dtype) == 0 &&
             (order->obj == NULL || order_from(state, order, source) == 0);
    }
    Py_XDECREF(tuple);
    return ok ? 0 : -1;
}

static int parse_parts(const py_state *state, PyObject *object, int with_data, parts_holder *parts)
{
    memset(parts, 0, sizeof *parts);
    PyObject *list = PySequence_Fast(object, "parts: expected a sequence");
    if (list == NULL) {
        return -1;
    }
    Py_ssize_t n = PySequence_Fast_GET_SIZE(list);
    int result = 0;
    if (n < 1 || n > MAX_PARTS) {
        py_raise_format(state, LA_ERR_ARGUMENT, "parts: expected 1 to %d, got %zd", (int)MAX_PARTS,
                        n);
        result = -1;
    }
    for (Py_ssize_t i = 0; result == 0 && i < n; i++) {
        result = parse_part(state, PySequence_Fast_GET_ITEM(list, i), with_data, parts);
    }
    Py_DECREF(list);
    return result;
}

/* ---- the object ------------------------------------------------------------------------------- */

static py_model *model_open(py_state *state, PyObject *object)
{
    py_model *self = (py_model *)object;
    if (py_same_process(state, self->pid, "this Model") < 0) {
        return NULL;
    }
    if (self->handle == NULL) {
        py_raise_format(state, LA_ERR_STATE, "this Model is closed");
        return NULL;
    }
    return self;
}

la_model *py_model_get(py_state *state, PyObject *object)
{
    if (!PyObject_TypeCheck(object, state->model_type)) {
        PyErr_Format(PyExc_TypeError, "model: expected a Model, got %.100s",
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    py_model *self = model_open(state, object);
    return self != NULL ? self->handle : NULL;
}

void py_model_hold(PyObject *object, int change)
{
    ((py_model *)object)->engines += change;
}

int py_model_enter(PyObject *object)
{
    py_model *self = (py_model *)object;
    if (self->sets > 0) {
        return 0;
    }
    self->steps++;
    return 1;
}

void py_model_leave(PyObject *object)
{
    ((py_model *)object)->steps--;
}

py_model_sizes py_model_sizes_of(PyObject *object)
{
    return ((py_model *)object)->sizes;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"backend", "desc", "weights", NULL};
    PyObject *backend, *mapping, *weights = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:Model", names, &backend, &mapping,
                                     &weights)) {
        return NULL;
    }
    py_state *state = (py_state *)PyType_GetModuleState(type);
    la_backend *backend_handle = py_backend_get(state, backend);
    la_recipe recipe;
    if (backend_handle == NULL || py_recipe_from(state, weights, &recipe) < 0) {
        return NULL;
    }
    py_model *self = (py_model *)type->tp_alloc(type, 0);
    py_desc holder;
    if (self == NULL || py_desc_parse(state, mapping, &holder) < 0) {
        if (self != NULL) {
            py_desc_clear(&holder);
            self->pid = py_process();
            Py_DECREF(self);
        }
        return NULL;
    }
    self->pid = py_process();
    self->sizes = (py_model_sizes){holder.desc.n_vocab, holder.desc.d_model};
    self->backend = Py_NewRef(backend);
    la_status status;
    Py_BEGIN_ALLOW_THREADS
    status = la_model_create(backend_handle, &holder.desc, recipe, &self->handle);
    Py_END_ALLOW_THREADS
    py_desc_clear(&holder);
    if (status != LA_OK) {
        Py_DECREF(self);
        return py_raise(state, status);
    }
    return (PyObject *)self;
}

static void model_free_handle(py_model *self)
{
    la_model *handle = self->handle;
    self->handle = NULL;
    if (handle != NULL && self->views > 0) {
        self->retired = handle;
        return;
    }
    if (handle != NULL && self->pid == py_process()) {
        Py_BEGIN_ALLOW_THREADS
        la_model_free(handle);
        Py_END_ALLOW_THREADS
    }
}

static void model_dealloc(PyObject *object)
{
    py_model *self = (py_model *)object;
    PyTypeObject *type = Py_TYPE(object);
    model_free_handle(self);
    Py_XDECREF(self->backend);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *model_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_model *self = (py_model *)object;
    py_state *state = py_state_of_object(object);
    if (py_same_process(state, self->pid, "this Model") < 0) {
        return NULL;
    }
    if (self->engines > 0 || self->calls > 0) {
        return py_raise_format(state, LA_ERR_STATE, "this Model is in use; close its Engine first");
    }
    model_free_handle(self);
    Py_RETURN_NONE;
}

static PyObject *model_set(PyObject *object, PyObject *args)
{
    const char *slot_name;
    int layer, expert = 0;
    PyObject *list;
    if (!PyArg_ParseTuple(args, "siO|i:set", &slot_name, &layer, &list, &expert)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    py_model *self = model_open(state, object);
    la_slot slot;
    if (self == NULL || parse_slot(state, slot_name, &slot) < 0) {
        return NULL;
    }
    if (self->steps > 0 || self->calls > 0) { /* they may read the slot */
        return py_raise_format(state, LA_ERR_STATE, "this Model is in use by another thread");
    }
    if (self->views > 0) {
        return py_raise_format(state, LA_ERR_STATE, "%d views of this Model's weights are alive",
                               self->views);
    }
    parts_holder parts;
    int failed = parse_parts(state, list, 1, &parts) < 0;
    la_status status = LA_OK;
    if (!failed) {
        self->calls++;
        self->sets++;
        Py_BEGIN_ALLOW_THREADS
        status = la_model_set(self->handle, slot, layer, expert, parts.sources, parts.n);
        Py_END_ALLOW_THREADS
        self->sets--;
        self->calls--;
    }
    parts_clear(&parts);
    if (failed) {
        return NULL;
    }
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    Py_RETURN_NONE;
}

static PyObject *model_finish(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_state *state = py_state_of_object(object);
    py_model *self = model_open(state, object);
    if (self == NULL) {
        return NULL;
    }
    la_status status;
    self->calls++;
    Py_BEGIN_ALLOW_THREADS
    status = la_model_finish(self->handle);
    Py_END_ALLOW_THREADS
    self->calls--;
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    Py_RETURN_NONE;
}

static PyObject *model_read(PyObject *object, PyObject *args)
{
    int pattern;
    double seconds, rate = 0.0;
    if (!PyArg_ParseTuple(args, "id:read", &pattern, &seconds)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    py_model *self = model_open(state, object);
    if (self == NULL) {
        return NULL;
    }
    la_status status;
    self->calls++;
    Py_BEGIN_ALLOW_THREADS
    status = la_model_read(self->handle, pattern, seconds, &rate);
    Py_END_ALLOW_THREADS
    self->calls--;
    return status == LA_OK ? PyFloat_FromDouble(rate) : py_raise(state, status);
}

/* ---- weights shown ------------------------------------------------------------------------------ */

#define VIEW "llmaccel.view"

/* A Tensor over weights has gone; the capsule owned a reference of the Model. */
static void view_gone(PyObject *capsule)
{
    PyObject *object = PyCapsule_GetPointer(capsule, VIEW);
    py_model *self = (py_model *)object;
    if (--self->views == 0 && self->retired != NULL) {
        self->handle = self->retired;
        self->retired = NULL;
        model_free_handle(self);
    }
    Py_DECREF(object);
}

/* Where a place is; NULL with an exception set, else the model. */
static py_model *parse_place(PyObject *object, PyObject *args, const char *format, la_slot *slot,
                             int place[3], PyObject **out)
{
    const char *name;
    py_state *state = py_state_of_object(object);
    if (!PyArg_ParseTuple(args, format, &name, &place[0], &place[1], &place[2], out)) {
        return NULL;
    }
    py_model *self = model_open(state, object);
    if (self == NULL || parse_slot(state, name, slot) < 0) {
        return NULL;
    }
    if (self->sets > 0) {
        py_raise_format(state, LA_ERR_STATE, "this Model is in use by another thread");
        return NULL;
    }
    return self;
}

static const char *shown_dtype(la_dtype dtype)
{
    return dtype == LA_F32 ? "F32" : dtype == LA_F16 ? "F16" : dtype == LA_BF16 ? "BF16" : NULL;
}

static PyObject *model_show(PyObject *object, PyObject *args)
{
    la_slot slot;
    int at[3];
    py_state *state = py_state_of_object(object);
    py_model *self = parse_place(object, args, "siii:show", &slot, at, NULL);
    if (self == NULL) {
        return NULL;
    }
    la_shown shown;
    la_status status = la_model_show(self->handle, slot, at[0], at[1], at[2], &shown);
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    PyObject *owner = PyCapsule_New(object, VIEW, view_gone);
    if (owner == NULL) {
        return NULL;
    }
    Py_INCREF(object);
    self->views++;
    PyObject *memory = py_tensor_of_bytes(state, shown.data, shown.bytes, owner);
    Py_DECREF(owner);
    if (memory == NULL) {
        return NULL;
    }
    return Py_BuildValue("Nzniiii", memory, shown_dtype(shown.dtype), (Py_ssize_t)shown.unit_bytes,
                         shown.first, shown.rows, shown.cols, shown.paired);
}

static PyObject *model_copy(PyObject *object, PyObject *args)
{
    la_slot slot;
    int at[3];
    PyObject *out;
    Py_buffer room;
    py_state *state = py_state_of_object(object);
    py_model *self = parse_place(object, args, "siiiO:copy", &slot, at, &out);
    if (self == NULL ||
        PyObject_GetBuffer(out, &room, PyBUF_FORMAT | PyBUF_ND | PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    la_shown shown;
    la_status status = la_model_show(self->handle, slot, at[0], at[1], at[2], &shown);
    int64_t values = (int64_t)shown.rows * (shown.unit_bytes != 0 ? shown.cols : 1);
    int fits = strcmp(room.format, "f") == 0 && room.len == values * (int64_t)sizeof(float);
    if (status == LA_OK && fits) {
        self->calls++;
        Py_BEGIN_ALLOW_THREADS
        status = la_model_copy(self->handle, slot, at[0], at[1], at[2], room.buf);
        Py_END_ALLOW_THREADS
        self->calls--;
    }
    PyBuffer_Release(&room);
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    if (!fits) {
        return py_raise_format(state, LA_ERR_ARGUMENT, "out: expected %lld float32",
                               (long long)values);
    }
    Py_RETURN_NONE;
}

static PyObject *model_views(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromLong(((py_model *)object)->views);
}

static PyObject *model_bytes(PyObject *object, void *closure)
{
    (void)closure;
    py_model *self = model_open(py_state_of_object(object), object);
    return self == NULL ? NULL : PyLong_FromSize_t(la_model_bytes(self->handle));
}

static PyObject *model_token_bytes(PyObject *object, void *closure)
{
    (void)closure;
    py_model *self = model_open(py_state_of_object(object), object);
    return self == NULL ? NULL : PyLong_FromSize_t(la_model_token_bytes(self->handle));
}

/* ---- module functions: numbers only ------------------------------------------------------------ */

static PyObject *core_plan(PyObject *module, PyObject *args)
{
    PyObject *mapping, *limits_mapping, *backend = Py_None;
    int n_threads = 0;
    if (!PyArg_ParseTuple(args, "OO|iO:plan", &mapping, &limits_mapping, &n_threads, &backend)) {
        return NULL;
    }
    py_state *state = py_state_of(module);
    la_backend *handle = backend != Py_None ? py_backend_get(state, backend) : NULL;
    if (backend != Py_None && handle == NULL) {
        return NULL;
    }
    la_limits limits;
    if (py_limits_from(state, limits_mapping, &limits) < 0) {
        return NULL;
    }
    py_desc holder;
    la_plan plan = {0, 0, 0, 0};
    int failed = py_desc_parse(state, mapping, &holder) < 0;
    la_status status =
        failed ? LA_OK : la_model_plan(handle, &holder.desc, &limits, n_threads, &plan);
    size_t workspace = plan.workspace_bytes;
    if (!failed && status == LA_OK) {
        workspace += la_engine_bytes(&holder.desc, &limits);
    }
    py_desc_clear(&holder);
    if (failed) {
        return NULL;
    }
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    return Py_BuildValue("{s:n,s:n,s:n,s:n}", "kv_page_bytes", (Py_ssize_t)plan.kv_page_bytes,
                         "workspace_bytes", (Py_ssize_t)workspace, "rope_bytes",
                         (Py_ssize_t)plan.rope_bytes, "host_bytes", (Py_ssize_t)plan.host_bytes);
}

/* Adds the packed bytes of one (slot, parts, count) entry to *total. */
static int add_slot_bytes(const py_state *state, const py_desc *holder, la_recipe recipe,
                          PyObject *entry, size_t *total)
{
    const char *slot_name;
    Py_ssize_t count;
    PyObject *list;
    PyObject *tuple = PySequence_Tuple(entry);
    if (tuple == NULL) {
        return -1;
    }
    int result = -1;
    la_slot slot;
    parts_holder parts = {.n = 0};
    if (!PyArg_ParseTuple(tuple, "sOn;slots: expected (slot, parts, count)", &slot_name, &list,
                          &count) ||
        parse_slot(state, slot_name, &slot) < 0 || parse_parts(state, list, 0, &parts) < 0) {
        goto done;
    }
    size_t bytes = 0;
    la_status status =
        la_model_weight_bytes(&holder->desc, recipe, slot, parts.sources, parts.n, &bytes);
    if (status != LA_OK) {
        py_raise(state, status);
        goto done;
    }
    if (count < 1) {
        py_raise_format(state, LA_ERR_ARGUMENT, "slots: %s: count %zd is below 1", slot_name,
                        count);
        goto done;
    }
    if (bytes > ((size_t)PY_SSIZE_T_MAX - *total) / (size_t)count) {
        py_raise_format(state, LA_ERR_MEMORY, "slot %s: the sizes of the weights overflow",
                        slot_name);
        goto done;
    }
    *total += bytes * (size_t)count;
    result = 0;
done:
    parts_clear(&parts);
    Py_DECREF(tuple);
    return result;
}

static PyObject *core_weight_bytes(PyObject *module, PyObject *args)
{
    PyObject *mapping, *slots, *weights;
    if (!PyArg_ParseTuple(args, "OOO:weight_bytes", &mapping, &weights, &slots)) {
        return NULL;
    }
    py_state *state = py_state_of(module);
    la_recipe recipe;
    if (py_recipe_from(state, weights, &recipe) < 0) {
        return NULL;
    }
    PyObject *list = PySequence_Fast(slots, "slots: expected a sequence");
    if (list == NULL) {
        return NULL;
    }
    py_desc holder;
    size_t total = 0;
    int failed = py_desc_parse(state, mapping, &holder) < 0;
    for (Py_ssize_t i = 0; !failed && i < PySequence_Fast_GET_SIZE(list); i++) {
        failed =
            add_slot_bytes(state, &holder, recipe, PySequence_Fast_GET_ITEM(list, i), &total) < 0;
    }
    py_desc_clear(&holder);
    Py_DECREF(list);
    return failed ? NULL : PyLong_FromSize_t(total);
}

static PyMethodDef model_methods[] = {
    {"set", model_set, METH_VARARGS,
     "set(slot, layer, parts, expert=0)\n\nPack parts, a list of (buffer, dtype, rows, cols[, "
     "order[, "
     "rounding]]), into a slot; expert: of slots that every expert has. order: int32 [cols] of "
     "dtypes whose columns are sorted, or None. rounding: (kind, group, scale) of la_rounding."},
    {"finish", model_finish, METH_NOARGS,
     "finish()\n\nCheck that every tensor is set; LoadError names a missing one."},
    {"read", model_read, METH_VARARGS,
     "read(pattern, seconds) -> float\n\nGB/s (1e9 bytes) of reading what a decoded token reads, "
     "pass after pass. pattern: index into the keys of Backend.probe_read()."},
    {"show", model_show, METH_VARARGS,
     "show(slot, layer, expert, part) -> (memory, dtype, unit_bytes, first, rows, cols, paired)\n\n"
     "Where a part lies, as la_shown has it: a Tensor U8, read-only; dtype None: codes, or rows in "
     "another order. While a Tensor over it is alive no slot is set, and close() frees nothing."},
    {"copy", model_copy, METH_VARARGS,
     "copy(slot, layer, expert, part, out)\n\nA part as float32 [rows, cols], or a vector."},
    {"close", model_close, METH_NOARGS, "close()\n\nFree the weights; may be called again."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef model_getset[] = {
    {"bytes", model_bytes, NULL, "Resident packed bytes.", NULL},
    {"views", model_views, NULL, "Tensors over its weights that are alive.", NULL},
    {"token_bytes", model_token_bytes, NULL, "Bytes that one decoded token reads.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_doc,
     "Model(backend, desc, weights='auto')\n\nPacked weights of one model. weights: 'auto', "
     "'F32', 'BF16', 'F16', or a mapping of 'floats' (one of these), 'body', 'head' and "
     "'embed' ('keep', 'int8', 'w4g128', 'w4g32', 'fp8', 'w6g16'), 'wide' (slots whose "
     "activations are finer than int8)."},
    {Py_tp_new, model_new},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_methods, model_methods},
    {Py_tp_getset, model_getset},
    {0, NULL},
};

static PyType_Spec model_spec = {
    .name = "llmaccel._core.Model",
    .basicsize = (int)sizeof(py_model),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};

static PyMethodDef model_functions[] = {
    {"plan", core_plan, METH_VARARGS,
     "plan(desc, limits, threads=0, backend=None) -> dict\n\nkv_page_bytes, workspace_bytes, "
     "rope_bytes; loads nothing. backend: whose sizes; None: a CPU backend of these threads."},
    {"weight_bytes", core_weight_bytes, METH_VARARGS,
     "weight_bytes(desc, weights, slots) -> int\n\nPacked bytes of slots, a list of (slot, parts, "
     "count) with parts (dtype, rows, cols)."},
    {NULL, NULL, 0, NULL},
};

int py_model_register(PyObject *module)
{
    if (PyModule_AddFunctions(module, model_functions) < 0) {
        return -1;
    }
    return py_add_type(module, &model_spec, &py_state_of(module)->model_type);
}
