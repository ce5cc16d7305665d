/* py_module.c - the module llmaccel._core: creation, state, and the translation of errors.
 *
 * Owns the module definition (multi-phase, one state per module object) and the mapping from la_status
 * to the classes of llmaccel.errors. Invariant: the module keeps no C global but constants, so it can
 * be loaded into several interpreters. The exec slot registers every object in turn.
 */
#include "py_module.h"

#include <unistd.h>

static struct PyModuleDef py_core_module;

py_state *py_state_of(PyObject *module)
{
    return (py_state *)PyModule_GetState(module);
}

py_state *py_state_of_object(PyObject *object)
{
    return (py_state *)PyType_GetModuleState(Py_TYPE(object));
}

PyObject *py_raise(const py_state *state, la_status status)
{
    const char *message = la_last_error();
    if (!PyErr_Occurred()) {
        int known = (int)status > LA_OK && (int)status < PY_N_STATUS;
        PyErr_SetString(state->errors[known ? status : LA_OK],
                        message[0] != '\0' ? message : "the core gave no message");
    }
    return NULL;
}

PyObject *py_raise_format(const py_state *state, la_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    PyErr_FormatV(state->errors[status], format, arguments);
    va_end(arguments);
    return NULL;
}

long py_process(void)
{
    return (long)getpid();
}

int py_same_process(const py_state *state, long pid, const char *what)
{
    if (pid == py_process()) {
        return 0;
    }
    py_raise_format(state, LA_ERR_STATE,
                    "%s was made in process %ld and cannot be used after fork() in process %ld; "
                    "make a new one in the child",
                    what, pid, py_process());
    return -1;
}

int py_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **out)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL) {
        return -1;
    }
    *out = type; /* the state owns this reference */
    return PyModule_AddType(module, type);
}

static int core_load_errors(py_state *state)
{
    static const char *const names[PY_N_STATUS] = {
        [LA_OK] = "LLMAccelError",
        [LA_ERR_ARGUMENT] = "ConfigError",
        [LA_ERR_SHAPE] = "LoadError",
        [LA_ERR_MEMORY] = "MemoryPlanError",
        [LA_ERR_UNSUPPORTED] = "UnsupportedError",
        [LA_ERR_REQUEST] = "RequestError",
        [LA_ERR_STATE] = "LLMAccelError",
        [LA_ERR_SYSTEM] = "LLMAccelError",
    };
    PyObject *errors = PyImport_ImportModule("llmaccel.errors");
    if (errors == NULL) {
        return -1;
    }
    int ok = 1;
    for (int i = 0; ok && i < PY_N_STATUS; i++) {
        state->errors[i] = PyObject_GetAttrString(errors, names[i]);
        ok = state->errors[i] != NULL;
    }
    Py_DECREF(errors);
    return ok ? 0 : -1;
}

static int core_exec(PyObject *module)
{
    static int (*const parts[])(PyObject *) = {
        py_backend_register, py_desc_register,    py_model_register,
        py_params_register,  py_engine_register,  py_tensor_register,
        py_kernels_register, py_testing_register, py_balance_register,
    };
    if (core_load_errors(py_state_of(module)) < 0) {
        return -1;
    }
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (parts[i](module) < 0) {
            return -1;
        }
    }
    return 0;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg)
{
    py_state *state = py_state_of(module);
    for (int i = 0; i < PY_N_STATUS; i++) {
        Py_VISIT(state->errors[i]);
    }
    Py_VISIT(state->backend_type);
    Py_VISIT(state->model_type);
    Py_VISIT(state->engine_type);
    Py_VISIT(state->tensor_type);
    Py_VISIT(state->packed_type);
    Py_VISIT(state->pages_type);
    Py_VISIT(state->latents_type);
    return 0;
}

static int core_clear(PyObject *module)
{
    py_state *state = py_state_of(module);
    for (int i = 0; i < PY_N_STATUS; i++) {
        Py_CLEAR(state->errors[i]);
    }
    Py_CLEAR(state->backend_type);
    Py_CLEAR(state->model_type);
    Py_CLEAR(state->engine_type);
    Py_CLEAR(state->tensor_type);
    Py_CLEAR(state->packed_type);
    Py_CLEAR(state->pages_type);
    Py_CLEAR(state->latents_type);
    return 0;
}

static void core_free(void *module)
{
    core_clear((PyObject *)module);
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
    {0, NULL},
};

static struct PyModuleDef py_core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "llmaccel._core",
    .m_doc = "The C core of llmaccel: Backend, Model, Engine, Tensor. Use llmaccel.LLM instead.",
    .m_size = sizeof(py_state),
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
    .m_free = core_free,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&py_core_module);
}
