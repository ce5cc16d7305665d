/* py_params.c - sampling parameters: one table from Python names to the fields of la_sampling.
 *
 * Owns PARAM_FIELDS, the only place that knows the names on both sides; tests compare it with the
 * dataclass SamplingParams and with the struct in llmaccel.h. Invariant: every field of the table must
 * be in the mapping and nothing else may be. Ranges are checked by la_engine_add; here values only
 * change type. Arrays are copied, so Python objects may change after the call.
 */
#include "py_module.h"

#include <limits.h>
#include <stddef.h>

typedef enum param_type {
    PARAM_FLOAT,
    PARAM_INT,
    PARAM_UINT64,
    PARAM_IDS,     /* int32 array and its length */
    PARAM_FLOATS,  /* float array as long as the ids before it */
    PARAM_ID_LISTS /* lists of ids: flat array, lengths, number of lists */
} param_type;

static const char *const TYPE_NAMES[] = {"float", "int", "uint64", "ids", "floats", "id_lists"};

typedef struct param_field {
    const char *name;
    param_type type;
    size_t offset;
    size_t length; /* IDS, ID_LISTS: offset of the lengths or the count */
    size_t count;  /* ID_LISTS: offset of the number of lists; FLOATS: of the number expected */
} param_field;

#define AT(field) offsetof(la_sampling, field)
static const param_field PARAM_FIELDS[] = {
    {"temperature", PARAM_FLOAT, AT(temperature), 0, 0},
    {"top_p", PARAM_FLOAT, AT(top_p), 0, 0},
    {"min_p", PARAM_FLOAT, AT(min_p), 0, 0},
    {"top_k", PARAM_INT, AT(top_k), 0, 0},
    {"presence_penalty", PARAM_FLOAT, AT(presence_penalty), 0, 0},
    {"frequency_penalty", PARAM_FLOAT, AT(frequency_penalty), 0, 0},
    {"repetition_penalty", PARAM_FLOAT, AT(repetition_penalty), 0, 0},
    {"repeat_last_n", PARAM_INT, AT(repeat_last_n), 0, 0},
    {"no_repeat_ngram", PARAM_INT, AT(no_repeat_ngram), 0, 0},
    {"seed", PARAM_UINT64, AT(seed), 0, 0},
    {"min_tokens", PARAM_INT, AT(min_tokens), 0, 0},
    {"max_tokens", PARAM_INT, AT(max_tokens), 0, 0},
    {"logprobs", PARAM_INT, AT(logprobs), 0, 0},
    {"prompt_logprobs", PARAM_INT, AT(prompt_logprobs), 0, 0},
    {"prompt_logprob_start", PARAM_INT, AT(prompt_logprob_start), 0, 0},
    {"report", PARAM_INT, AT(report), 0, 0},
    {"score_ids", PARAM_IDS, AT(score_ids), AT(n_score), 0},
    {"prompt_scores", PARAM_IDS, AT(prompt_scores), AT(n_prompt_score), 0},
    {"stop_ids", PARAM_IDS, AT(stop_ids), AT(n_stop), 0},
    {"bias_ids", PARAM_IDS, AT(bias_ids), AT(n_bias), 0},
    {"bias", PARAM_FLOATS, AT(bias), 0, AT(n_bias)},
    {"allowed", PARAM_IDS, AT(allowed), AT(n_allowed), 0},
    {"bad", PARAM_ID_LISTS, AT(bad), AT(bad_len), AT(n_bad)},
    {"trace", PARAM_IDS, AT(trace), AT(n_trace), 0},
    {"dry_multiplier", PARAM_FLOAT, AT(dry_multiplier), 0, 0},
    {"dry_base", PARAM_FLOAT, AT(dry_base), 0, 0},
    {"dry_allowed_length", PARAM_INT, AT(dry_allowed_length), 0, 0},
    {"dry_last_n", PARAM_INT, AT(dry_last_n), 0, 0},
    {"dry_breakers", PARAM_IDS, AT(dry_breakers), AT(n_dry_breakers), 0},
    {"top_n_sigma", PARAM_FLOAT, AT(top_n_sigma), 0, 0},
    {"dynatemp_range", PARAM_FLOAT, AT(dynatemp_range), 0, 0},
    {"dynatemp_exponent", PARAM_FLOAT, AT(dynatemp_exponent), 0, 0},
    {"typical_p", PARAM_FLOAT, AT(typical_p), 0, 0},
    {"xtc_probability", PARAM_FLOAT, AT(xtc_probability), 0, 0},
    {"xtc_threshold", PARAM_FLOAT, AT(xtc_threshold), 0, 0},
    {"mirostat", PARAM_INT, AT(mirostat), 0, 0},
    {"mirostat_tau", PARAM_FLOAT, AT(mirostat_tau), 0, 0},
    {"mirostat_eta", PARAM_FLOAT, AT(mirostat_eta), 0, 0},
    {"pattern_count", PARAM_INT, AT(pattern_count), 0, 0},
    {"pattern_min", PARAM_INT, AT(pattern_min), 0, 0},
    {"pattern_max", PARAM_INT, AT(pattern_max), 0, 0},
    {"think_budget", PARAM_INT, AT(think_budget), 0, 0},
    {"think_start", PARAM_IDS, AT(think_start), AT(n_think_start), 0},
    {"think_end", PARAM_IDS, AT(think_end), AT(n_think_end), 0},
};
#undef AT
enum { N_PARAM_FIELDS = sizeof PARAM_FIELDS / sizeof PARAM_FIELDS[0] };

/* ---- conversions ------------------------------------------------------------------------------ */

static int ids_from_buffer(const py_state *state, const Py_buffer *view, const char *what,
                           int32_t **out, int *n)
{
    if (view->ndim != 1 || view->len / 4 > INT_MAX) {
        py_raise_format(state, LA_ERR_REQUEST, "%s: expected a one-dimensional array of ids", what);
        return -1;
    }
    *n = (int)(view->len / 4);
    *out = PyMem_Malloc(view->len > 0 ? (size_t)view->len : 1);
    if (*out == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(*out, view->buf, (size_t)view->len);
    return 0;
}

static int is_int32(const Py_buffer *view)
{
    return view->itemsize == 4 && view->format != NULL &&
           (strcmp(view->format, "i") == 0 || strcmp(view->format, "l") == 0);
}

static int32_t *ids_from_sequence(const py_state *state, PyObject *object, const char *what, int *n)
{
    PyObject *list = PySequence_Fast(object, "");
    if (list == NULL) {
        PyErr_Clear();
        py_raise_format(state, LA_ERR_REQUEST, "%s: expected token ids, got %.100s", what,
                        Py_TYPE(object)->tp_name);
        return NULL;
    }
    Py_ssize_t size = PySequence_Fast_GET_SIZE(list);
    int32_t *ids = size > INT_MAX ? NULL : PyMem_Malloc((size_t)(size > 0 ? size : 1) * 4);
    if (ids == NULL) {
        Py_DECREF(list);
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(list, i);
        long value = PyLong_AsLong(item);
        int failed = value == -1 && PyErr_Occurred() != NULL;
        if (failed || value < INT32_MIN || value > INT32_MAX) {
            PyErr_Clear();
            py_raise_format(state, LA_ERR_REQUEST, "%s[%zd]: expected a token id, got %R", what, i,
                            item);
            Py_DECREF(list);
            PyMem_Free(ids);
            return NULL;
        }
        ids[i] = (int32_t)value;
    }
    Py_DECREF(list);
    *n = (int)size;
    return ids;
}

int32_t *py_ids_from(const py_state *state, PyObject *object, const char *what, int *n)
{
    if (PyObject_CheckBuffer(object)) {
        Py_buffer view;
        if (PyObject_GetBuffer(object, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) == 0) {
            int32_t *ids = NULL;
            int known = is_int32(&view);
            int failed = known && ids_from_buffer(state, &view, what, &ids, n) < 0;
            PyBuffer_Release(&view);
            if (known) {
                return failed ? NULL : ids;
            }
        }
        PyErr_Clear();
    }
    return ids_from_sequence(state, object, what, n);
}

static void keep_array(py_params *params, void *array)
{
    params->arrays[params->n_arrays++] = array;
}

static int parse_ids(const py_state *state, PyObject *value, const param_field *field,
                     py_params *out)
{
    int n;
    int32_t *ids = py_ids_from(state, value, field->name, &n);
    if (ids == NULL) {
        return -1;
    }
    *(const int32_t **)((char *)&out->sampling + field->offset) = ids;
    *(int *)((char *)&out->sampling + field->length) = n;
    keep_array(out, ids);
    return 0;
}

static int parse_floats(const py_state *state, PyObject *value, const param_field *field,
                        py_params *out)
{
    int expected = *(int *)((char *)&out->sampling + field->count);
    PyObject *list = PySequence_Fast(value, "bias: expected a sequence of numbers");
    if (list == NULL) {
        return -1;
    }
    float *numbers = NULL;
    int result = -1;
    if (PySequence_Fast_GET_SIZE(list) != expected) {
        py_raise_format(state, LA_ERR_REQUEST, "%s: expected %d numbers, got %zd", field->name,
                        expected, PySequence_Fast_GET_SIZE(list));
        goto done;
    }
    numbers = PyMem_Malloc((size_t)(expected > 0 ? expected : 1) * sizeof *numbers);
    if (numbers == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (int i = 0; i < expected; i++) {
        double number = PyFloat_AsDouble(PySequence_Fast_GET_ITEM(list, i));
        if (number == -1.0 && PyErr_Occurred()) {
            goto done;
        }
        numbers[i] = (float)number;
    }
    *(const float **)((char *)&out->sampling + field->offset) = numbers;
    keep_array(out, numbers);
    numbers = NULL;
    result = 0;
done:
    PyMem_Free(numbers);
    Py_DECREF(list);
    return result;
}

/* Appends one list of ids to a growing flat array. */
static int append_ids(const py_state *state, PyObject *item, const char *what, py_id_lists *out)
{
    int n, *length = &out->lengths[out->n];
    int32_t *ids = py_ids_from(state, item, what, &n);
    if (ids == NULL) {
        return -1;
    }
    int32_t *grown = NULL;
    if (n <= INT_MAX - out->total - 1) {
        grown = PyMem_Realloc(out->flat, ((size_t)out->total + (size_t)n + 1) * sizeof *grown);
    }
    if (grown == NULL) {
        PyMem_Free(ids);
        PyErr_NoMemory();
        return -1;
    }
    memcpy(grown + out->total, ids, (size_t)n * sizeof *ids);
    PyMem_Free(ids);
    out->flat = grown;
    out->total += n;
    out->n++;
    *length = n;
    return 0;
}

int py_id_lists_from(const py_state *state, PyObject *object, const char *what, py_id_lists *out)
{
    memset(out, 0, sizeof *out);
    PyObject *list = PySequence_Fast(object, "expected a sequence of lists of token ids");
    if (list == NULL) {
        return -1;
    }
    Py_ssize_t n = PySequence_Fast_GET_SIZE(list);
    int result = -1;
    out->flat = PyMem_Malloc(sizeof *out->flat);
    out->lengths = n > INT_MAX ? NULL : PyMem_Malloc((size_t)(n > 0 ? n : 1) * sizeof(int));
    if (out->flat == NULL || out->lengths == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (append_ids(state, PySequence_Fast_GET_ITEM(list, i), what, out) < 0) {
            goto done;
        }
    }
    result = 0;
done:
    if (result < 0) {
        py_id_lists_clear(out);
    }
    Py_DECREF(list);
    return result;
}

void py_id_lists_clear(py_id_lists *lists)
{
    PyMem_Free(lists->flat);
    PyMem_Free(lists->lengths);
    memset(lists, 0, sizeof *lists);
}

static int parse_id_lists(const py_state *state, PyObject *value, const param_field *field,
                          py_params *out)
{
    py_id_lists lists;
    if (py_id_lists_from(state, value, field->name, &lists) < 0) {
        return -1;
    }
    *(const int32_t **)((char *)&out->sampling + field->offset) = lists.flat;
    *(const int32_t **)((char *)&out->sampling + field->length) = lists.lengths;
    *(int *)((char *)&out->sampling + field->count) = lists.n;
    keep_array(out, lists.flat);
    keep_array(out, lists.lengths);
    return 0;
}

static int parse_number(const py_state *state, PyObject *value, const param_field *field, void *at)
{
    if (field->type == PARAM_FLOAT) {
        double number = PyFloat_AsDouble(value);
        *(float *)at = (float)number;
        return number == -1.0 && PyErr_Occurred() ? -1 : 0;
    }
    if (field->type == PARAM_UINT64) {
        unsigned long long number = PyLong_AsUnsignedLongLong(value);
        *(uint64_t *)at = number;
        return number == (unsigned long long)-1 && PyErr_Occurred() ? -1 : 0;
    }
    long number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (number < INT_MIN || number > INT_MAX) {
        py_raise_format(state, LA_ERR_REQUEST, "%s: %ld does not fit", field->name, number);
        return -1;
    }
    *(int *)at = (int)number;
    return 0;
}

static int parse_field(const py_state *state, PyObject *value, const param_field *field,
                       py_params *out)
{
    switch (field->type) {
    case PARAM_IDS: return parse_ids(state, value, field, out);
    case PARAM_FLOATS: return parse_floats(state, value, field, out);
    case PARAM_ID_LISTS: return parse_id_lists(state, value, field, out);
    default: break;
    }
    if (parse_number(state, value, field, (char *)&out->sampling + field->offset) == 0) {
        return 0;
    }
    if (!PyErr_ExceptionMatches(state->errors[LA_ERR_REQUEST])) {
        PyErr_Clear();
        py_raise_format(state, LA_ERR_REQUEST, "%s: expected %s, got %R", field->name,
                        TYPE_NAMES[field->type], value);
    }
    return -1;
}

int py_params_parse(const py_state *state, PyObject *mapping, py_params *out)
{
    memset(out, 0, sizeof *out);
    for (int i = 0; i < N_PARAM_FIELDS; i++) {
        PyObject *value = PyMapping_GetItemString(mapping, PARAM_FIELDS[i].name);
        if (value == NULL) {
            if (PyErr_ExceptionMatches(PyExc_KeyError)) {
                PyErr_Clear();
                py_raise_format(state, LA_ERR_REQUEST, "%s: missing", PARAM_FIELDS[i].name);
            }
            return -1;
        }
        int failed = parse_field(state, value, &PARAM_FIELDS[i], out);
        Py_DECREF(value);
        if (failed) {
            return -1;
        }
    }
    Py_ssize_t size = PyMapping_Size(mapping);
    if (size > N_PARAM_FIELDS) {
        py_raise_format(state, LA_ERR_REQUEST, "params: expected %d fields, got %zd",
                        (int)N_PARAM_FIELDS, size);
        return -1;
    }
    return size < 0 ? -1 : 0;
}

void py_params_clear(py_params *params)
{
    for (int i = 0; i < params->n_arrays; i++) {
        PyMem_Free(params->arrays[i]);
    }
    params->n_arrays = 0;
}

/* ---- the table, for tests ---------------------------------------------------------------------- */

static PyObject *sampling_fields(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < N_PARAM_FIELDS; i++) {
        PyObject *entry =
            Py_BuildValue("(ssn)", PARAM_FIELDS[i].name, TYPE_NAMES[PARAM_FIELDS[i].type],
                          (Py_ssize_t)PARAM_FIELDS[i].offset);
        if (entry == NULL || PyList_Append(list, entry) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(entry);
    }
    return list;
}

static PyMethodDef params_functions[] = {
    {"sampling_fields", sampling_fields, METH_NOARGS,
     "sampling_fields() -> list\n\n(name, type, offset) of every parameter that Engine.add takes."},
    {NULL, NULL, 0, NULL},
};

int py_params_register(PyObject *module)
{
    return PyModule_AddFunctions(module, params_functions);
}
