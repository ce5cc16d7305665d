/* py_desc.c - la_model_desc, la_limits and number formats from Python values.
 *
 * Owns DESC_FIELDS, the table from the names of llmaccel.config.ModelConfig to the fields of
 * la_model_desc, and the names of formats and choices. Invariant: every field must be in the mapping;
 * ranges are checked by the la_ calls. Used by py_model.c and py_engine.c.
 */
#include "py_module.h"

#include <limits.h>
#include <stddef.h>

enum { FIELD_INT, FIELD_FLOAT, FIELD_CHOICE };

static const char *const NORM_NAMES[] = {[LA_NORM_RMS] = "rms", [LA_NORM_LAYER] = "layer", NULL};
static const char *const ACT_NAMES[] = {[LA_GATE_SILU] = "silu",           [LA_GATE_GELU] = "gelu",
                                        [LA_GATE_GELU_TANH] = "gelu_tanh", [LA_GATE_RELU] = "relu",
                                        [LA_GATE_CLIP] = "clip",           NULL};
static const char *const QK_NORM_NAMES[] = {[LA_QK_NORM_NONE] = "none",
                                            [LA_QK_NORM_HEAD] = "head",
                                            [LA_QK_NORM_ROW] = "row",
                                            [LA_QK_NORM_UNIT] = "unit",
                                            NULL};
static const char *const ROUTE_NAMES[] = {
    [LA_ROUTE_SOFTMAX] = "softmax", [LA_ROUTE_SIGMOID] = "sigmoid", NULL};
static const char *const ATTN_NAMES[] = {
    [LA_ATTN_HEADS] = "heads", [LA_ATTN_LATENT] = "latent", NULL};
static const char *const ACTIVATION_NAMES[] = {
    [LA_ACT_F32] = "f32", [LA_ACT_F64] = "f64", [LA_ACT_BF16] = "bf16", [LA_ACT_I8] = "i8", NULL};
static const char *const KV_NAMES[] = {[LA_KV_F32] = "f32",
                                       [LA_KV_BF16] = "bf16",
                                       [LA_KV_I8] = "i8",
                                       [LA_KV_F8] = "f8",
                                       [LA_KV_FORM_COUNT] = NULL};
static const char *const DTYPE_NAMES[] = {
    [LA_F32] = "F32",        [LA_F16] = "F16",       [LA_BF16] = "BF16",     [LA_Q4_0] = "Q4_0",
    [LA_Q4_1] = "Q4_1",      [LA_Q5_0] = "Q5_0",     [LA_Q5_1] = "Q5_1",     [LA_Q8_0] = "Q8_0",
    [LA_Q2_K] = "Q2_K",      [LA_Q3_K] = "Q3_K",     [LA_Q4_K] = "Q4_K",     [LA_Q5_K] = "Q5_K",
    [LA_Q6_K] = "Q6_K",      [LA_IQ4_NL] = "IQ4_NL", [LA_IQ4_XS] = "IQ4_XS", [LA_MXFP4] = "MXFP4",
    [LA_DTYPE_COUNT] = NULL,
};

static const char *const QUANT_NAMES[] = {[LA_QUANT_KEEP] = "keep",
                                          [LA_QUANT_INT8] = "int8",
                                          [LA_QUANT_W4G128] = "w4g128",
                                          [LA_QUANT_W4G32] = "w4g32",
                                          [LA_QUANT_FP8] = "fp8",
                                          [LA_QUANT_W6G16] = "w6g16",
                                          NULL};

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
    CHOICE(attn, ATTN_NAMES),
    INT(kv_rank),
    INT(q_rank),
    INT(d_nope),
    INT(d_v),
    FLOAT(latent_eps),
    FLOAT(attn_scale),
    FLOAT(attn_softcap),
    FLOAT(attn_grow),
    INT(attn_grow_every),
    INT(fast_math),
    FLOAT(logit_softcap),
    FLOAT(logit_scale),
    FLOAT(embed_scale),
    FLOAT(residual_scale),
    INT(n_experts),
    INT(n_experts_used),
    INT(d_expert),
    INT(d_shared),
    INT(shared_gate),
    CHOICE(route_score, ROUTE_NAMES),
    INT(route_norm),
    FLOAT(route_scale),
    INT(route_groups),
    INT(route_groups_used),
    INT(route_group_best),
    INT(route_input),
    CHOICE(activation, ACTIVATION_NAMES),
    CHOICE(kv_form, KV_NAMES),
#undef INT
#undef FLOAT
#undef CHOICE
};
enum { N_DESC_FIELDS = sizeof DESC_FIELDS / sizeof DESC_FIELDS[0] };

void py_desc_clear(py_desc *holder)
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

static int parse_layers(const py_state *state, PyObject *mapping, py_desc *holder)
{
    int n = holder->desc.n_layers;
    if (n < 1 || n > LA_MAX_LAYERS) {
        py_raise_format(state, LA_ERR_ARGUMENT, "n_layers: expected 1 to %d, got %d",
                        (int)LA_MAX_LAYERS, n);
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
        PyObject *tuple = PySequence_Tuple(PySequence_Fast_GET_ITEM(layers, i));
        la_layer_desc *layer = &holder->layers[i];
        int ok = tuple != NULL &&
                 PyArg_ParseTuple(tuple, "iii;layers: expected tuples (window, rope, moe)",
                                  &layer->window, &layer->rope, &layer->moe);
        Py_XDECREF(tuple);
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
static int parse_inv_freq(const py_state *state, PyObject *value, int index, py_desc *holder)
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

static int parse_ropes(const py_state *state, PyObject *mapping, py_desc *holder)
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
        py_raise_format(
            state, LA_ERR_ARGUMENT,
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

/* 0, or -1 with an exception set; py_desc_clear in both cases. */
int py_desc_parse(const py_state *state, PyObject *mapping, py_desc *holder)
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
    const char *const names[] = {"max_seqs", "max_batch_tokens", "max_len", "host_threads"};
    int *const fields[] = {&out->max_seqs, &out->max_batch_tokens, &out->max_len,
                           &out->host_threads};
    int n = 3 + (PyMapping_HasKeyString(mapping, names[3]) == 1);
    out->host_threads = 0;
    for (int i = 0; i < n; i++) {
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

/* Plain rows: "QI4_G128", then "_O" (offsets), "_H" (fp16 scales), "_P" (ordered), as
 * models/plain.py spells them; "_R" instead of a group: one scale a row. */
static int plain_from(const char *name, la_dtype *out)
{
    static const char *const codes[LA_CODES_COUNT] = {"QI4",  "QI8",   "QF8",  "QNF4",
                                                      "QFP4", "QE2M1", "QIQ4", "QMX4"};
    static const char *const groups[] = {"_R", "_G16", "_G32", "_G64", "_G128", "_G256"};
    static const char *const flags[] = {"_O", "_H", "_P"};
    int kind = 0, group = 0, seen[3] = {0, 0, 0};
    while (kind < LA_CODES_COUNT && strncmp(name, codes[kind], strlen(codes[kind])) != 0) {
        kind++;
    }
    if (kind == LA_CODES_COUNT) {
        return 0;
    }
    name += strlen(codes[kind]);
    while (group < 6 && strncmp(name, groups[group], strlen(groups[group])) != 0) {
        group++;
    }
    if (group == 6) {
        return 0;
    }
    name += strlen(groups[group]);
    for (int i = 0; i < 3; i++) {
        seen[i] = strncmp(name, flags[i], 2) == 0;
        name += 2 * seen[i];
    }
    la_plain p = {(uint8_t)kind, (uint8_t)seen[0], (uint8_t)seen[1], (uint8_t)seen[2],
                  group == 0 ? 0 : 8 << group};
    *out = (la_dtype)la_plain_type(p);
    return *name == '\0';
}

int py_dtype_from(const py_state *state, const char *name, la_dtype *out)
{
    if (plain_from(name, out)) {
        return 0;
    }
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
static int parse_floats(const py_state *state, PyObject *value, la_dtype *out)
{
    const char *name = PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    if (name == NULL) {
        PyErr_Clear();
        py_raise_format(state, LA_ERR_ARGUMENT, "weights: expected a name or a mapping, got %R",
                        value);
        return -1;
    }
    if (strcmp(name, "auto") == 0) {
        *out = LA_DTYPE_COUNT;
        return 0;
    }
    return py_dtype_from(state, name, out);
}

/* Slot names as bits. */
static int parse_wide(const py_state *state, PyObject *value, uint64_t *out)
{
    PyObject *list = PySequence_Fast(value, "wide: expected a sequence of slot names");
    int failed = list == NULL;
    for (Py_ssize_t i = 0; !failed && i < PySequence_Fast_GET_SIZE(list); i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(list, i);
        const char *name = PyUnicode_Check(item) ? PyUnicode_AsUTF8(item) : NULL;
        la_slot slot = name != NULL ? la_slot_from_name(name) : LA_SLOT_COUNT;
        failed = slot == LA_SLOT_COUNT;
        if (failed) {
            PyErr_Clear();
            py_raise_format(state, LA_ERR_ARGUMENT, "wide: unknown slot %R", item);
        }
        else {
            *out |= (uint64_t)1 << slot;
        }
    }
    Py_XDECREF(list);
    return failed ? -1 : 0;
}

int py_quant_from(const py_state *state, const char *name, la_quant *out)
{
    for (int i = 0; i < LA_QUANT_COUNT; i++) {
        if (strcmp(name, QUANT_NAMES[i]) == 0) {
            *out = (la_quant)i;
            return 0;
        }
    }
    py_raise_format(state, LA_ERR_ARGUMENT, "quantization: '%s' is unknown", name);
    return -1;
}

int py_recipe_from(const py_state *state, PyObject *value, la_recipe *out)
{
    *out = (la_recipe){LA_DTYPE_COUNT, LA_QUANT_KEEP, LA_QUANT_KEEP, LA_QUANT_KEEP, 0};
    if (value == NULL) {
        return 0;
    }
    if (!PyDict_Check(value)) {
        return parse_floats(state, value, &out->floats);
    }
    PyObject *floats = require(state, value, "floats");
    int failed = floats == NULL || parse_floats(state, floats, &out->floats) < 0;
    Py_XDECREF(floats);
    const char *const names[] = {"body", "head", "embed"};
    la_quant *const fields[] = {&out->body, &out->head, &out->embed};
    for (int i = 0; i < 3 && !failed; i++) {
        int quant = 0;
        PyObject *name = require(state, value, names[i]);
        failed = name == NULL || parse_choice(state, name, names[i], QUANT_NAMES, &quant) < 0;
        Py_XDECREF(name);
        *fields[i] = (la_quant)quant;
    }
    PyObject *wide = failed ? NULL : require(state, value, "wide");
    failed = wide == NULL || parse_wide(state, wide, &out->wide) < 0;
    Py_XDECREF(wide);
    return failed ? -1 : 0;
}

/* Names by value, up to the NULL that ends them. */
static int add_names(PyObject *module, const char *attribute, const char *const *names)
{
    Py_ssize_t n = 0;
    while (names[n] != NULL) {
        n++;
    }
    PyObject *tuple = PyTuple_New(n);
    for (Py_ssize_t i = 0; tuple != NULL && i < n; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        if (name == NULL) {
            Py_CLEAR(tuple);
            break;
        }
        PyTuple_SET_ITEM(tuple, i, name);
    }
    int failed = tuple == NULL || PyModule_AddObjectRef(module, attribute, tuple) < 0;
    Py_XDECREF(tuple);
    return failed ? -1 : 0;
}

int py_desc_register(PyObject *module)
{
    return add_names(module, "DTYPES", DTYPE_NAMES) < 0 ||
                   add_names(module, "QUANTIZATIONS", QUANT_NAMES) < 0
               ? -1
               : 0;
}
