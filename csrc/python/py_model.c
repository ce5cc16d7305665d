/* py_model.c - the Python object Model: a description in numbers and the packed weights.
 *
 * Owns one la_model and a reference to its Backend; also the module functions plan and weight_bytes,
 * which need the description alone. Invariant: close() frees the weights at once, and is refused while
 * an Engine lives on them. Checkpoint bytes are borrowed for the call that packs them. C re-checks
 * every shape; here only Python values become C values.
 */
#include "py_module.h"

#include <limits.h>
#include <stddef.h>

typedef struct py_model {
    PyObject_HEAD
    PyObject *backend;
    la_model *handle; /* NULL once closed */
    int engines;      /* alive on this model */
    int calls;        /* inside la_ functions with the GIL released */
    int n_vocab;      /* V */
    long pid;
} py_model;

/* ---- the description -------------------------------------------------------------------------- */

enum { FIELD_INT, FIELD_FLOAT, FIELD_CHOICE };

static const char *const NORM_NAMES[] = {[LA_NORM_RMS] = "rms", [LA_NORM_LAYER] = "layer", NULL};
static const char *const ACT_NAMES[] = {[LA_GATE_SILU] = "silu",
                                        [LA_GATE_GELU] = "gelu",
                                        [LA_GATE_GELU_TANH] = "gelu_tanh",
                                        [LA_GATE_RELU] = "relu",
                                        NULL};
static const char *const QK_NORM_NAMES[] = {
    [LA_QK_NORM_NONE] = "none", [LA_QK_NORM_HEAD] = "head", [LA_QK_NORM_ROW] = "row", NULL};
static const char *const ACTIVATION_NAMES[] = {
    [LA_ACT_F32] = "f32", [LA_ACT_BF16] = "bf16", [LA_ACT_I8] = "i8", NULL};
static const char *const DTYPE_NAMES[] = {
    [LA_F32] = "F32",   [LA_F16] = "F16",   [LA_BF16] = "BF16", [LA_Q4_0] = "Q4_0",
    [LA_Q4_1] = "Q4_1", [LA_Q5_0] = "Q5_0", [LA_Q5_1] = "Q5_1", [LA_Q8_0] = "Q8_0",
    [LA_Q2_K] = "Q2_K", [LA_Q3_K] = "Q3_K", [LA_Q4_K] = "Q4_K", [LA_Q5_K] = "Q5_K",
    [LA_Q6_K] = "Q6_K", [LA_DTYPE_COUNT] = NULL,
};

static const struct {
    const char *name;
    int type;
    size_t offset;
    const char *const *choices; /* names by value, for fields whose Python value is a name */
} DESC_FIELDS[] = {
#define INT(name) {#name, FIELD_INT, offsetof(la_model_desc, name), NULL}
#define FLOAT(name) {#name, FIELD_FLOAT, offsetof(la_model_desc, name), NULL}
#define CHOICE(name, choices) {#name, FIELD_CHOICE, offsetof(la_model_desc, name), choices}
    INT(n_layers),
    INT(d_model),
    INT(n_heads),
    INT(n_kv_heads),
    INT(d_head),
    INT(d_ffn),
    INT(n_vocab),
    INT(max_len),
    CHOICE(norm, NORM_NAMES),
    FLOAT(norm_eps),
    CHOICE(act, ACT_NAMES),
    INT(gated),
    INT(parallel),
    CHOICE(qk_norm, QK_NORM_NAMES),
    INT(d_rope),
    INT(rope_interleaved),
    FLOAT(attn_scale),
    FLOAT(attn_softcap),
    FLOAT(logit_softcap),
    FLOAT(logit_scale),
    FLOAT(embed_scale),
    FLOAT(residual_scale),
    CHOICE(activation, ACTIVATION_NAMES),
    CHOICE(kv_dtype, DTYPE_NAMES),
#undef INT
#undef FLOAT
#undef CHOICE
};
enum { N_DESC_FIELDS = sizeof DESC_FIELDS / sizeof DESC_FIELDS[0], MAX_LAYERS = 1 << 16 };

typedef struct desc_holder {
    la_model_desc desc;
    la_layer_desc *layers;
    float *inv_freq[LA_MAX_ROPE_TABLES];
} desc_holder;

static void desc_clear(desc_holder *holder)
{
    PyMem_Free(holder->layers);
    for (int i = 0; i < LA_MAX_ROPE_TABLES; i++) {
        PyMem_Free(holder->inv_freq[i]);
    }
}

static int parse_int(const py_state *state, PyObject *value, const char *what, int *out)
{
    long number = PyLong_AsLong(value);
    if ((number == -1 && PyErr_Occurred()) || number > INT_MAX || number < INT_MIN) {
        PyErr_Clear();
        py_raise_format(state, LA_ERR_ARGUMENT, "%s: expected an integer of 32 bits, got %R", what,
                        value);
        return -1;
    }
    *out = (int)number;
    return 0;
}

static int parse_float(const py_state *state, PyObject *value, const char *what, float *out)
{
    double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        py_raise_format(state, LA_ERR_ARGUMENT, "%s: expected a number, got %R", what, value);
        return -1;
    }
    *out = (float)number;
    return 0;
}

/* The index of a name in a NULL-terminated list. */
static int parse_choice(const py_state *state, PyObject *value, const char *what,
                        const char *const *choices, int *out)
{
    const char *name = PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    for (int i = 0; name != NULL && choices[i] != NULL; i++) {
        if (strcmp(name, choices[i]) == 0) {
            *out = i;
            return 0;
        }
    }
    PyErr_Clear();
    py_raise_format(state, LA_ERR_ARGUMENT, "%s: unknown value %R", what, value);
    return -1;
}

/* A new reference to mapping[name], or NULL with an exception that names the key. */
static PyObject *require(const py_state *state, PyObject *mapping, const char *name)
{
    PyObject *value = PyMapping_GetItemString(mapping, name);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_KeyError)) {
        PyErr_Clear();
        py_raise_format(state, LA_ERR_ARGUMENT, "%s: missing", name);
    }
    return value;
}

static int parse_layers(const py_state *state, PyObject *mapping, desc_holder *holder)
{
    int n = holder->desc.n_layers;
    if (n < 1 || n > MAX_LAYERS) {
        py_raise_format(state, LA_ERR_ARGUMENT, "n_layers: expected 1 to %d, got %d",
                        (int)MAX_LAYERS, n);
        return -1;
    }
    PyObject *value = require(state, mapping, "layers");
    PyObject *layers = value == NULL ? NULL : PySequence_Fast(value, "layers: expected a sequence");
    Py_XDECREF(value);
    if (layers == NULL) {
        return -1;
    }
    int result = -1;
    if (PySequence_Fast_GET_SIZE(layers) != n) {
        py_raise_format(state, LA_ERR_ARGUMENT, "layers: expected %d entries, got %zd", n,
                        PySequence_Fast_GET_SIZE(layers));
        goto done;
    }
    holder->layers = PyMem_Calloc((size_t)n, sizeof *holder->layers);
    if (holder->layers == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (int i = 0; i < n; i++) {
        PyObject *pair = PySequence_Tuple(PySequence_Fast_GET_ITEM(layers, i));
        la_layer_desc *layer = &holder->layers[i];
        int ok = pair != NULL &&
                 PyArg_ParseTuple(pair, "ii;layers: expected pairs (window, rope)", &layer->window,
                                  &layer->rope);
        Py_XDECREF(pair);
        if (!ok) {
            goto done;
        }
    }
    holder->desc.layers = holder->layers;
    result = 0;
done:
    Py_DECREF(layers);
    return result;
}

/* One table of inverse frequencies, float32 [d_rope / 2] in a buffer. */
static int parse_inv_freq(const py_state *state, PyObject *value, int index, desc_holder *holder)
{
    size_t expected = (size_t)(holder->desc.d_rope / 2) * sizeof(float);
    Py_buffer view;
    if (PyObject_GetBuffer(value, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) < 0) {
        return -1;
    }
    int result = -1;
    if (view.format == NULL || strcmp(view.format, "f") != 0 || (size_t)view.len != expected) {
        py_raise_format(state, LA_ERR_ARGUMENT,
                        "rope_inv_freq[%d]: expected %d float32 values, got %zd bytes of format %s",
                        index, holder->desc.d_rope / 2, view.len,
                        view.format != NULL ? view.format : "B");
        goto done;
    }
    holder->inv_freq[index] = PyMem_Malloc(expected > 0 ? expected : 1);
    if (holder->inv_freq[index] == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    memcpy(holder->inv_freq[index], view.buf, expected);
    holder->desc.rope_inv_freq[index] = holder->inv_freq[index];
    result = 0;
done:
    PyBuffer_Release(&view);
    return result;
}

static int parse_ropes(const py_state *state, PyObject *mapping, desc_holder *holder)
{
    PyObject *tables = require(state, mapping, "rope_inv_freq");
    PyObject *scales = tables == NULL ? NULL : require(state, mapping, "rope_scale");
    int result = -1;
    if (scales == NULL) {
        goto done;
    }
    Py_ssize_t n = PySequence_Size(tables), n_scales = PySequence_Size(scales);
    if (n < 0 || n_scales < 0) {
        goto done;
    }
    if (n > LA_MAX_ROPE_TABLES || n_scales != n || holder->desc.d_rope < 0) {
        py_raise_format(state, LA_ERR_ARGUMENT,
                        "rope_inv_freq, rope_scale: expected up to %d tables and as many scales, got "
                        "%zd and %zd",
                        (int)LA_MAX_ROPE_TABLES, n, n_scales);
        goto done;
    }
    for (int i = 0; i < (int)n; i++) {
        PyObject *table = PySequence_GetItem(tables, i);
        PyObject *scale = table == NULL ? NULL : PySequence_GetItem(scales, i);
        int ok = scale != NULL &&
                 parse_float(state, scale, "rope_scale", &holder->desc.rope_scale[i]) == 0 &&
                 (table == Py_None || parse_inv_freq(state, table, i, holder) == 0);
        Py_XDECREF(table);
        Py_XDECREF(scale);
        if (!ok) {
            goto done;
        }
    }
    result = 0;
done:
    Py_XDECREF(tables);
    Py_XDECREF(scales);
    return result;
}

/* 0, or -1 with an exception set; desc_clear in both cases. */
static int desc_parse(const py_state *state, PyObject *mapping, desc_holder *holder)
{
    memset(holder, 0, sizeof *holder);
    for (int i = 0; i < N_DESC_FIELDS; i++) {
        const char *name = DESC_FIELDS[i].name;
        void *field = (char *)&holder->desc + DESC_FIELDS[i].offset;
        PyObject *value = require(state, mapping, name);
        if (value == NULL) {
            return -1;
        }
        int failed;
        switch (DESC_FIELDS[i].type) {
        case FIELD_INT: failed = parse_int(state, value, name, (int *)field); break;
        case FIELD_FLOAT: failed = parse_float(state, value, name, (float *)field); break;
        default:
            failed = parse_choice(state, value, name, DESC_FIELDS[i].choices, (int *)field);
            break;
        }
        Py_DECREF(value);
        if (failed) {
            return -1;
        }
    }
    return parse_layers(state, mapping, holder) < 0 || parse_ropes(state, mapping, holder) < 0 ? -1
                                                                                              : 0;
}

int py_limits_from(const py_state *state, PyObject *mapping, la_limits *out)
{
    const char *const names[] = {"max_seqs", "max_batch_tokens", "max_len"};
    int *const fields[] = {&out->max_seqs, &out->max_batch_tokens, &out->max_len};
    for (int i = 0; i < 3; i++) {
        PyObject *value = require(state, mapping, names[i]);
        int failed = value == NULL || parse_int(state, value, names[i], fields[i]) < 0;
        Py_XDECREF(value);
        if (failed) {
            return -1;
        }
    }
    PyObject *pages = require(state, mapping, "kv_pages");
    if (pages == NULL) {
        return -1;
    }
    out->kv_pages = PyLong_AsLongLong(pages);
    Py_DECREF(pages);
    return out->kv_pages == -1 && PyErr_Occurred() ? -1 : 0;
}

static int parse_dtype(const py_state *state, const char *name, la_dtype *out)
{
    for (int i = 0; i < (int)LA_DTYPE_COUNT; i++) {
        if (strcmp(name, DTYPE_NAMES[i]) == 0) {
            *out = (la_dtype)i;
            return 0;
        }
    }
    py_raise_format(state, LA_ERR_UNSUPPORTED, "dtype: %.40s is not a weight format of this build",
                    name);
    return -1;
}

/* "F32", "BF16", "F16", or "auto": each tensor keeps its own form. */
static int parse_weights(const py_state *state, const char *name, la_dtype *out)
{
    if (strcmp(name, "auto") == 0) {
        *out = LA_DTYPE_COUNT;
        return 0;
    }
    return parse_dtype(state, name, out);
}

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
    int n;
} parts_holder;

static void parts_clear(parts_holder *parts)
{
    for (int i = 0; i < parts->n; i++) {
        if (parts->views[i].obj != NULL) {
            PyBuffer_Release(&parts->views[i]);
        }
    }
}

static int parse_part(const py_state *state, PyObject *part, int with_data, parts_holder *parts)
{
    la_source *source = &parts->sources[parts->n];
    Py_buffer *view = &parts->views[parts->n];
    const char *dtype;
    PyObject *tuple = PySequence_Tuple(part);
    int ok = tuple != NULL;
    if (ok && with_data) {
        ok = PyArg_ParseTuple(tuple, "y*sii;parts: expected (buffer, dtype, rows, cols)", view,
                              &dtype, &source->rows, &source->cols);
    }
    else if (ok) {
        ok = PyArg_ParseTuple(tuple, "sii;parts: expected (dtype, rows, cols)", &dtype,
                              &source->rows, &source->cols);
    }
    if (ok) {
        parts->n++; /* from here parts_clear releases the view */
        source->data = view->buf;
        source->bytes = (size_t)view->len;
        ok = parse_dtype(state, dtype, &source->dtype) == 0;
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

int py_model_vocab(PyObject *object)
{
    return ((py_model *)object)->n_vocab;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"backend", "desc", "weights", NULL};
    PyObject *backend, *mapping;
    const char *weights_name = "auto";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|s:Model", names, &backend, &mapping,
                                     &weights_name)) {
        return NULL;
    }
    py_state *state = (py_state *)PyType_GetModuleState(type);
    la_backend *backend_handle = py_backend_get(state, backend);
    la_dtype weights;
    if (backend_handle == NULL || parse_weights(state, weights_name, &weights) < 0) {
        return NULL;
    }
    py_model *self = (py_model *)type->tp_alloc(type, 0);
    desc_holder holder;
    if (self == NULL || desc_parse(state, mapping, &holder) < 0) {
        if (self != NULL) {
            desc_clear(&holder);
            self->pid = py_process();
            Py_DECREF(self);
        }
        return NULL;
    }
    self->pid = py_process();
    self->n_vocab = holder.desc.n_vocab;
    self->backend = Py_NewRef(backend);
    la_status status;
    Py_BEGIN_ALLOW_THREADS
    status = la_model_create(backend_handle, &holder.desc, weights, &self->handle);
    Py_END_ALLOW_THREADS
    desc_clear(&holder);
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
    int layer;
    PyObject *list;
    if (!PyArg_ParseTuple(args, "siO:set", &slot_name, &layer, &list)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    py_model *self = model_open(state, object);
    la_slot slot;
    if (self == NULL || parse_slot(state, slot_name, &slot) < 0) {
        return NULL;
    }
    parts_holder parts;
    int failed = parse_parts(state, list, 1, &parts) < 0;
    la_status status = LA_OK;
    if (!failed) {
        self->calls++;
        Py_BEGIN_ALLOW_THREADS
        status = la_model_set(self->handle, slot, layer, parts.sources, parts.n);
        Py_END_ALLOW_THREADS
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
    PyObject *mapping, *limits_mapping;
    if (!PyArg_ParseTuple(args, "OO:plan", &mapping, &limits_mapping)) {
        return NULL;
    }
    py_state *state = py_state_of(module);
    la_limits limits;
    if (py_limits_from(state, limits_mapping, &limits) < 0) {
        return NULL;
    }
    desc_holder holder;
    la_plan plan = {0, 0, 0};
    int failed = desc_parse(state, mapping, &holder) < 0;
    la_status status = failed ? LA_OK : la_model_plan(&holder.desc, &limits, &plan);
    desc_clear(&holder);
    if (failed) {
        return NULL;
    }
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    return Py_BuildValue("{s:n,s:n,s:n}", "kv_page_bytes", (Py_ssize_t)plan.kv_page_bytes,
                         "workspace_bytes", (Py_ssize_t)plan.workspace_bytes, "rope_bytes",
                         (Py_ssize_t)plan.rope_bytes);
}

/* Adds the packed bytes of one (slot, parts) entry to *total. */
static int add_slot_bytes(const py_state *state, const desc_holder *holder, la_dtype weights,
                          PyObject *entry, size_t *total)
{
    const char *slot_name;
    PyObject *list;
    PyObject *tuple = PySequence_Tuple(entry);
    if (tuple == NULL) {
        return -1;
    }
    int result = -1;
    la_slot slot;
    parts_holder parts = {.n = 0};
    if (!PyArg_ParseTuple(tuple, "sO;slots: expected (slot, parts)", &slot_name, &list) ||
        parse_slot(state, slot_name, &slot) < 0 || parse_parts(state, list, 0, &parts) < 0) {
        goto done;
    }
    size_t bytes = 0;
    la_status status =
        la_model_weight_bytes(&holder->desc, weights, slot, parts.sources, parts.n, &bytes);
    if (status != LA_OK) {
        py_raise(state, status);
        goto done;
    }
    if (bytes > (size_t)PY_SSIZE_T_MAX - *total) {
        py_raise_format(state, LA_ERR_MEMORY, "slot %s: the sizes of the weights overflow",
                        slot_name);
        goto done;
    }
    *total += bytes;
    result = 0;
done:
    parts_clear(&parts);
    Py_DECREF(tuple);
    return result;
}

static PyObject *core_weight_bytes(PyObject *module, PyObject *args)
{
    PyObject *mapping, *slots;
    const char *weights_name;
    if (!PyArg_ParseTuple(args, "OsO:weight_bytes", &mapping, &weights_name, &slots)) {
        return NULL;
    }
    py_state *state = py_state_of(module);
    la_dtype weights;
    if (parse_weights(state, weights_name, &weights) < 0) {
        return NULL;
    }
    PyObject *list = PySequence_Fast(slots, "slots: expected a sequence");
    if (list == NULL) {
        return NULL;
    }
    desc_holder holder;
    size_t total = 0;
    int failed = desc_parse(state, mapping, &holder) < 0;
    for (Py_ssize_t i = 0; !failed && i < PySequence_Fast_GET_SIZE(list); i++) {
        failed = add_slot_bytes(state, &holder, weights, PySequence_Fast_GET_ITEM(list, i),
                                &total) < 0;
    }
    desc_clear(&holder);
    Py_DECREF(list);
    return failed ? NULL : PyLong_FromSize_t(total);
}

static PyMethodDef model_methods[] = {
    {"set", model_set, METH_VARARGS,
     "set(slot, layer, parts)\n\nPack parts, a list of (buffer, dtype, rows, cols), into a slot."},
    {"finish", model_finish, METH_NOARGS,
     "finish()\n\nCheck that every tensor is set; LoadError names a missing one."},
    {"close", model_close, METH_NOARGS, "close()\n\nFree the weights; may be called again."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef model_getset[] = {
    {"bytes", model_bytes, NULL, "Resident packed bytes.", NULL},
    {"token_bytes", model_token_bytes, NULL, "Bytes that one decoded token reads.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_doc, "Model(backend, desc, weights='auto')\n\nPacked weights of one model."},
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
     "plan(desc, limits) -> dict\n\nkv_page_bytes, workspace_bytes, rope_bytes; loads nothing."},
    {"weight_bytes", core_weight_bytes, METH_VARARGS,
     "weight_bytes(desc, weights, slots) -> int\n\nPacked bytes of slots, a list of (slot, parts) "
     "with parts (dtype, rows, cols)."},
    {NULL, NULL, 0, NULL},
};

int py_model_register(PyObject *module)
{
    if (PyModule_AddFunctions(module, model_functions) < 0) {
        return -1;
    }
    return py_add_type(module, &model_spec, &py_state_of(module)->model_type);
}
