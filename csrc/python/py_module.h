/* py_module.h - what the files of csrc/python share: module state, errors, and one accessor per object.
 *
 * Every file owns one Python object and offers `py_<name>_register`, which the module's exec slot
 * calls. Invariant: a method parses, makes one la_ call with the GIL released, converts; la_status
 * becomes an exception of llmaccel.errors in py_raise and nowhere else. Objects belong to the process
 * that made them: after fork() their threads are gone, so py_same_process guards every use and a
 * child leaks what it inherited instead of waiting for threads that do not exist.
 */
#ifndef LA_PY_MODULE_H
#define LA_PY_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "llmaccel.h"

enum { PY_N_STATUS = LA_ERR_SYSTEM + 1 };

typedef struct py_state {
    PyObject *errors[PY_N_STATUS]; /* exception class by la_status; [LA_OK] is LLMAccelError */
    PyTypeObject *backend_type;
    PyTypeObject *model_type;
    PyTypeObject *engine_type;
    PyTypeObject *tensor_type;
    PyTypeObject *packed_type;
    PyTypeObject *pages_type;
    PyTypeObject *latents_type;
} py_state;

py_state *py_state_of(PyObject *module);        /* a module of ours */
py_state *py_state_of_object(PyObject *object); /* an instance of one of our heap types */

/* Sets the exception for a failed la_ call of this thread; returns NULL. */
PyObject *py_raise(const py_state *state, la_status status);
/* Sets an exception of the class for `status` with our own message; returns NULL. */
PyObject *py_raise_format(const py_state *state, la_status status, const char *format, ...);
/* 0, or -1 with an exception set where `pid` is not this process. */
int py_same_process(const py_state *state, long pid, const char *what);
long py_process(void);

/* A heap type made from spec, added to the module under its own name; borrowed by *out. */
int py_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **out);

/* The C object behind a Python one, or NULL with an exception set (wrong type, closed, forked). */
la_backend *py_backend_get(py_state *state, PyObject *object);
la_model *py_model_get(py_state *state, PyObject *object);
/* Counts the engines of a model: it cannot be closed while one lives. */
void py_model_hold(PyObject *object, int change);
/* A step of one of its engines begins; 0: not now, its weights are being set. Ends with leave. */
int py_model_enter(PyObject *object);
void py_model_leave(PyObject *object);

typedef struct py_model_sizes {
    int n_vocab, d_model;
} py_model_sizes;

py_model_sizes py_model_sizes_of(PyObject *object);

/* Token ids from an int32 buffer or any sequence of integers: a PyMem array of *n, or NULL with an
 * exception that names `what`. An empty sequence gives a valid pointer and *n == 0. */
int32_t *py_ids_from(const py_state *state, PyObject *object, const char *what, int *n);

/* Lists of token ids, one after another. */
typedef struct py_id_lists {
    int32_t *flat; /* [total] */
    int *lengths;  /* [n] */
    int n, total;
} py_id_lists;

/* 0, or -1 with an exception set and nothing to clear. */
int py_id_lists_from(const py_state *state, PyObject *object, const char *what, py_id_lists *out);
void py_id_lists_clear(py_id_lists *lists);

/* A model description and the arrays it points to. */
typedef struct py_desc {
    la_model_desc desc;
    la_layer_desc *layers;               /* [n_layers] */
    float *inv_freq[LA_MAX_ROPE_TABLES]; /* [d_rope / 2] each, or NULL */
} py_desc;

/* From a mapping with the fields of ModelConfig. 0, or -1 with an exception set; clear in both
 * cases. */
int py_desc_parse(const py_state *state, PyObject *mapping, py_desc *out);
void py_desc_clear(py_desc *desc);
/* "F32", "BF16", "Q4_0", ... 0, or -1 with an exception set. */
int py_dtype_from(const py_state *state, const char *name, la_dtype *out);
/* "keep", "int8", "w4g128", ... */
int py_quant_from(const py_state *state, const char *name, la_quant *out);
/* A form of float tensors, or a mapping: see Model's docstring. NULL: each tensor keeps its own form. */
int py_recipe_from(const py_state *state, PyObject *value, la_recipe *out);

/* la_limits from a mapping with exactly its fields. */
int py_limits_from(const py_state *state, PyObject *object, la_limits *out);

/* Sampling parameters and the arrays they point to. Clear also after failure. */
typedef struct py_params {
    la_sampling sampling;
    void *arrays[16];
    int n_arrays;
} py_params;

int py_params_parse(const py_state *state, PyObject *mapping, py_params *out);
void py_params_clear(py_params *params);

/* A read-only Tensor of bytes that `owner` keeps alive. */
PyObject *py_tensor_of_bytes(const py_state *state, const void *data, size_t bytes,
                             PyObject *owner);

/* A Tensor on a device. */
typedef struct py_place {
    la_backend *backend;
    void *data;
    size_t bytes;
    int read_only;
    int borrowed; /* others' memory, on whose streams they may look at it as soon as we return */
} py_place;

/* 0, or -1 with an exception set that names the argument: no Tensor, or one in host memory. */
int py_tensor_place(const py_state *state, PyObject *object, const char *name, py_place *out);
/* The Backend of a Tensor on a device, NULL where it is in host memory or no Tensor; borrowed. */
PyObject *py_tensor_owner(const py_state *state, PyObject *object);

/* Each adds its object or functions to the module; 0, or -1 with an exception set. */
int py_backend_register(PyObject *module);
int py_desc_register(PyObject *module);
int py_model_register(PyObject *module);
int py_params_register(PyObject *module);
int py_engine_register(PyObject *module);
int py_tensor_register(PyObject *module);
int py_kernels_register(PyObject *module);
int py_testing_register(PyObject *module);
int py_balance_register(PyObject *module);

#endif
