/* py_kernels.h - what the files of kernel functions share, and how the module gets them.
 *
 * Called by py_module.c (registration) and by py_kernels_*.c (arguments, threads, choice of slots).
 */
#ifndef LA_PY_KERNELS_H
#define LA_PY_KERNELS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../base/pool.h"
#include "../kernels/kernels.h"
#include "../model/pack.h"

#include "py_module.h"

enum { PY_KERNELS_THREADS = 256 }; /* most of one call */

/* How products on user memory are cut into kernel calls. */
enum {
    PY_FEW_ROWS = 8,    /* up to here a call takes many units of few rows */
    PY_FEW_UNITS = 8,   /* units of such a call */
    PY_TILE_UNITS = 2,  /* units of a call with many rows */
    PY_TILE_ROWS = 512, /* most rows of it, lanes counted */
    PY_TILE_FLOATS = PY_TILE_ROWS * PY_TILE_UNITS * LA_UNIT
};

/* Most units of a call for M rows of so many lanes. */
static inline int py_kernels_units(int M, int lanes)
{
    return M <= PY_FEW_ROWS / lanes ? PY_FEW_UNITS : PY_TILE_UNITS;
}

/* Adds the functions and objects of all files to the module; 0, or -1 with an exception set. */
int py_kernels_register(PyObject *module);
/* The parts of the files beside py_kernels.c. */
int py_kernels_rows_register(PyObject *module);
int py_kernels_packed_register(PyObject *module);
int py_kernels_cache_register(PyObject *module);
int py_kernels_pages_register(PyObject *module);
int py_kernels_latent_register(PyObject *module);
int py_kernels_moe_register(PyObject *module);
int py_kernels_probe_register(PyObject *module);
int py_kernels_fp8_register(PyObject *module);
int py_kernels_device_register(PyObject *module);

/* Table of a level by name; its number, or -1 with an exception set. */
int py_kernels_isa(const char *name, la_kernels *out);
/* Contiguous float32 buffer of obj; 0, or -1 with an exception that names the argument. */
int py_kernels_floats(PyObject *obj, const char *name, Py_buffer *view);

/* The weight of a Packed, which lives as long as the object; NULL with an exception set. */
const la_weight *py_kernels_weight(py_state *state, PyObject *object, const char *name);

/* Packed.linear on a device (py_kernels_device.c): out = x W^T + bias, of which None is none. */
PyObject *py_kernels_device_linear(py_state *state, const la_weight *w, PyObject *const arrays[3]);

/* f32, f64, bf16, i8 or i8x2 as la_act_form; -1 with an exception set. */
int py_kernels_form(const char *name);

/* Checks a thread count and replaces 0 by what this process may use; -1 with an exception set. */
int py_kernels_threads(int *threads);
/* A pool for one call; NULL, which py_kernels_run takes, for a single thread. */
la_status py_kernels_pool(int threads, la_pool **out);
void py_kernels_run(la_pool *pool, void (*fn)(void *arg, int tid, int nth), void *arg);

#endif
