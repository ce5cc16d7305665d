/* py_kernels_call.h - the arguments of one call of a kernel: buffers, ranges, the first thing wrong.
 *
 * Owned by the call: buffers are taken one after another and given back by py_call_end. Invariant: after
 * a failure (an exception is set, ok is 0) every further step does nothing, so a function checks ok once,
 * before its kernel runs. Used by py_kernels_rows.c, _latent.c, _moe.c and _fp8.c.
 */
#ifndef LA_PY_KERNELS_CALL_H
#define LA_PY_KERNELS_CALL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../kernels/kernels.h"

enum { PY_CALL_VIEWS = 8, PY_CALL_ANY = -1 };

typedef struct py_call {
    la_kernels t;
    Py_buffer views[PY_CALL_VIEWS];
    int n_views;
    int n; /* values of the buffer last taken with PY_CALL_ANY */
    int ok;
} py_call;

void py_call_begin(py_call *c, const char *isa);
/* Gives the buffers back; None, or NULL with the exception. */
PyObject *py_call_end(py_call *c);
void py_call_fail(py_call *c, PyObject *type, const char *format, ...);

/* n values (PY_CALL_ANY: one to INT_MAX, how many in c->n): to read, or to write to. */
const float *py_call_in(py_call *c, PyObject *obj, const char *name, Py_ssize_t n);
float *py_call_out(py_call *c, PyObject *obj, const char *name, Py_ssize_t n);
const int32_t *py_call_ints(py_call *c, PyObject *obj, const char *name, Py_ssize_t n);
int32_t *py_call_ints_out(py_call *c, PyObject *obj, const char *name, Py_ssize_t n);
/* Any contiguous buffer of exactly n bytes. */
void *py_call_bytes(py_call *c, PyObject *obj, const char *name, size_t n, int writable);

void py_call_range(py_call *c, const char *name, int x, int low, int high);
/* Rows of d values in the buffer last taken with PY_CALL_ANY. */
int py_call_rows(py_call *c, const char *name, int d);

/* What concerns rows in a call of an attention slot for a chunk: n_pages, first, row_pos, R, set. */
void py_call_attend_rows(py_call *c, PyObject *row_pos, la_attend_args *g);
/* Runs the slot with poisoned scratch of exactly the promised size: a call on its own can be any set and
 * go on with a chunk, but never use the queries of a call before it (`again`). `more`: bytes beside those
 * of la_attend_scratch. */
void py_call_attend(py_call *c, la_attend_fn slot, la_attend_args *g, size_t more);

#endif
