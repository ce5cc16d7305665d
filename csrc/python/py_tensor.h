/* py_tensor.h - the Tensor object as its two files see it.
 *
 * py_tensor.c owns the object and NumPy, py_tensor_dlpack.c the DLPack exchange in both directions.
 * Nobody else includes this.
 */
#ifndef LA_PY_TENSOR_H
#define LA_PY_TENSOR_H

#include "py_module.h"

#include "base/dlpack.h"

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

/* Fills shape, strides and bytes from n_dims extents; 0, or -1 with an exception set. */
int py_tensor_set_shape(const py_tensor_source *from, py_tensor *self, int n_dims,
                        const int64_t *shape);
/* Is data where its elements may lie? 0, or -1 with an exception set. */
int py_tensor_check_address(const py_tensor_source *from, const py_tensor *self);
/* A writable copy in memory of its own, or NULL with an exception set. */
py_tensor *py_tensor_copy(py_tensor *self);

/* From an object with __dlpack__. 0, or -1 with an exception set. */
int py_tensor_import(const py_tensor_source *from, py_tensor *self);
/* Gives an imported tensor back to where it came from. */
void py_tensor_give_back(py_tensor *self);
/* __dlpack__ and __dlpack_device__. */
PyObject *py_tensor_export(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *py_tensor_device(PyObject *object, PyObject *unused);

#endif
