/* py_tensor.h - the Tensor object as its files see it.
 *
 * py_tensor.c owns the object and NumPy, py_tensor_dlpack.c the DLPack exchange in both directions,
 * py_tensor_device.c memory of devices, py_tensor_view.c Tensors over others,
 * py_tensor_elements.c Python's numbers of one. Nobody else includes this.
 */
#ifndef LA_PY_TENSOR_H
#define LA_PY_TENSOR_H

#include "py_module.h"

#include "base/dlpack.h"
#include "device.h"

enum { PY_TENSOR_DIMS = 8, PY_TENSOR_DTYPES = 16, PY_TENSOR_ALIGN = 64 };

typedef struct py_tensor_dtype {
    const char *name; /* as in safetensors */
    la_dl_dtype dl;
    int numpy;          /* type number, -1 where NumPy has none */
    const char *format; /* of the buffer protocol; what Python has no letter for shows its bits */
} py_tensor_dtype;

extern const py_tensor_dtype py_tensor_dtypes[PY_TENSOR_DTYPES];

typedef struct py_tensor {
    PyObject_HEAD
    char *data; /* [shape] */
    const py_tensor_dtype *dtype;
    int n_dims, read_only;
    int strided; /* not row-major without gaps: made by strided() */
    Py_ssize_t bytes;
    int64_t shape[PY_TENSOR_DIMS];
    int64_t strides[PY_TENSOR_DIMS];           /* in elements, as DLPack counts */
    Py_ssize_t buffer_strides[PY_TENSOR_DIMS]; /* in bytes, as the buffer protocol counts */
    PyObject *backend;                         /* on whose device data is; NULL: host memory */
    int number;                                /* of that device */
    /* what keeps data alive; the rest is empty */
    void *allocation;
    PyObject *array;
    Py_buffer view; /* view.obj is NULL while empty */
    la_dl_managed *managed;
    la_dl_versioned *versioned;
} py_tensor;

/* What a caller hands over and what messages call it. */
typedef struct py_tensor_source {
    const py_state *state;
    PyObject *object;
    const char *name; /* of the argument */
} py_tensor_source;

/* Sets the dtype of that name; 0, or -1 with an exception set. */
int py_tensor_find_dtype(const py_state *state, py_tensor *self, const char *name);
/* The integers of a tuple to out; 0, or -1 with an exception set where one is none. */
int py_tensor_extents_from(PyObject *tuple, int64_t *out);
/* Fills shape, strides and bytes from n_dims extents; 0, or -1 with an exception set. */
int py_tensor_set_shape(const py_tensor_source *from, py_tensor *self, int n_dims,
                        const int64_t *shape);
/* Is data where its elements may lie? 0, or -1 with an exception set. */
int py_tensor_check_address(const py_tensor_source *from, const py_tensor *self);
/* Another tensor of this one's shape on a device, NULL: in host memory, and its bytes; NULL with an exception set. */
py_tensor *py_tensor_like(py_tensor *self, PyObject *backend);
/* A writable copy in memory of its own, there or here; NULL with an exception set. */
py_tensor *py_tensor_copy(py_tensor *self, PyObject *backend);
/* Memory for a tensor whose shape and device are set, cleared. 0, or -1 with an exception set. */
int py_tensor_allocate(py_tensor *self);

/* ---- devices (py_tensor_device.c) ---- */

/* The Backend of CUDA device `number`, which environment.py opens or has open; NULL with an exception set. */
PyObject *py_tensor_open_device(const py_state *state, int number);
/* "cpu", "cuda" or "cuda:0" to a new reference of a Backend, NULL for host memory. 0, or -1 with an exception set. */
int py_tensor_device_named(const py_state *state, const char *name, PyObject **backend);
/* Sets the device; 0, or -1 with an exception set. */
int py_tensor_set_device(py_tensor *self, PyObject *backend);
/* la_backend of a tensor on a device; NULL with an exception set, where it is another process's. */
la_backend *py_tensor_backend(py_tensor *self);
int py_tensor_device_allocate(py_tensor *self);
/* Between contiguous tensors of one shape, of which one at least is on a device. 0, or -1 with an exception set. */
int py_tensor_move(py_tensor *to, py_tensor *from);
/* Before others get their memory back: ours is done with it. */
void py_tensor_device_finish(py_tensor *self);
void py_tensor_device_free(py_tensor *self);
/* "cpu" or "cuda:0" to text[n]. */
const char *py_tensor_device_name(const py_tensor *self, char *text, size_t n);
PyObject *py_tensor_to(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *py_tensor_get_device(PyObject *object, void *closure);
/* -1 with an exception set that says what needs host memory; 0 where the tensor has it. */
int py_tensor_want_host(py_tensor *self, const char *what);

/* From an object with __dlpack__. 0, or -1 with an exception set. */
int py_tensor_import(const py_tensor_source *from, py_tensor *self);
/* Gives an imported tensor back to where it came from. */
void py_tensor_give_back(py_tensor *self);
/* strided(), and what is_contiguous and strides say (py_tensor_view.c). */
PyObject *py_tensor_strided(PyObject *object, PyObject *args);
PyObject *py_tensor_strides(PyObject *object, void *closure);
PyObject *py_tensor_is_contiguous(PyObject *object, void *closure);
/* __dlpack__ and __dlpack_device__. */
PyObject *py_tensor_export(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *py_tensor_device(PyObject *object, PyObject *unused);

/* Methods and slots of the type, by their names in Python (py_tensor_elements.c). */
PyObject *py_tensor_tolist(PyObject *object, PyObject *unused);
PyObject *py_tensor_item(PyObject *object, PyObject *unused);
PyObject *py_tensor_size(PyObject *object, void *closure);
PyObject *py_tensor_ndim(PyObject *object, void *closure);
PyObject *py_tensor_iter(PyObject *object);
PyObject *py_tensor_float(PyObject *object);
PyObject *py_tensor_int(PyObject *object);
int py_tensor_bool(PyObject *object);
PyObject *py_tensor_from_bytes(PyObject *type, PyObject *args);
PyObject *py_tensor_reduce(PyObject *object, PyObject *unused);

#endif
