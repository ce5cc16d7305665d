/* py_kernels.h - what the two files of kernel functions share, and how the module gets them.
 *
 * Called by py_module.c (registration) and by py_kernels_rows.c (argument helpers).
 */
#ifndef LA_PY_KERNELS_H
#define LA_PY_KERNELS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../kernels/kernels.h"

/* Adds the functions of both files to the module; 0, or -1 with an exception set. */
int py_kernels_register(PyObject *module);
/* The part of py_kernels_rows.c. */
int py_kernels_rows_register(PyObject *module);

/* Table of a level by name; its number, or -1 with an exception set. */
int py_kernels_isa(const char *name, la_kernels *out);
/* Contiguous float32 buffer of obj; 0, or -1 with an exception that names the argument. */
int py_kernels_floats(PyObject *obj, const char *name, Py_buffer *view);

#endif
