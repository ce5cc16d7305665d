/* py_kernels_call.c - see py_kernels_call.h. */
#include "py_kernels_call.h"

#include <limits.h>

#include "py_kernels.h"

enum { MOST_ROWS = 64, GUARD = 64, POISON = 0xff };

void py_call_begin(py_call *c, const char *isa)
{
    c->n_views = 0;
    c->n = 0;
    c->ok = py_kernels_isa(isa, &c->t) >= 0;
}

PyObject *py_call_end(py_call *c)
{
    while (c->n_views > 0) {
        PyBuffer_Release(&c->views[--c->n_views]);
    }
    if (!c->ok) {
        return NULL;
    }
    Py_RETURN_NONE;
}

void py_call_fail(py_call *c, PyObject *type, const char *format, ...)
{
    va_list args;
    if (!c->ok) {
        return;
    }
    va_start(args, format);
    PyErr_FormatV(type, format, args);
    va_end(args);
    c->ok = 0;
}

/* The next buffer; NULL after a failure. */
static Py_buffer *take(py_call *c, PyObject *obj, int flags)
{
    if (!c->ok) {
        return NULL;
    }
    Py_buffer *view = &c->views[c->n_views];
    if (PyObject_GetBuffer(obj, view, PyBUF_C_CONTIGUOUS | flags) < 0) {
        c->ok = 0;
        return NULL;
    }
    c->n_views++;
    return view;
}

/* Values of 4 bytes whose struct format is `format`. */
static void *take_values(py_call *c, PyObject *obj, const char *name, char format, Py_ssize_t n)
{
    Py_buffer *view = take(c, obj, PyBUF_FORMAT);
    if (view == NULL) {
        return NULL;
    }
    Py_ssize_t have = view->len / 4;
    if (view->itemsize != 4 || !view->format || view->format[0] != format || view->format[1]) {
        py_call_fail(c, PyExc_TypeError, "%s: expected contiguous %s", name,
                     format == 'f' ? "float32" : "int32");
    }
    else if ((uintptr_t)view->buf % 4 != 0) {
        py_call_fail(c, PyExc_ValueError, "%s: its address is no multiple of 4", name);
    }
    else if (n == PY_CALL_ANY && (have < 1 || have > INT_MAX)) {
        py_call_fail(c, PyExc_ValueError, "%s: %zd values are not in 1..%d", name, have, INT_MAX);
    }
    else if (n != PY_CALL_ANY && have != n) {
        py_call_fail(c, PyExc_ValueError, "%s: %zd values, expected %zd", name, have, n);
    }
    else if (n == PY_CALL_ANY) {
        c->n = (int)have;
    }
    return view->buf;
}

static void writable(py_call *c, const char *name)
{
    if (c->ok && c->views[c->n_views - 1].readonly) {
        py_call_fail(c, PyExc_ValueError, "%s: is read-only", name);
    }
}

const float *py_call_in(py_call *c, PyObject *obj, const char *name, Py_ssize_t n)
{
    return take_values(c, obj, name, 'f', n);
}

float *py_call_out(py_call *c, PyObject *obj, const char *name, Py_ssize_t n)
{
    float *p = take_values(c, obj, name, 'f', n);
    writable(c, name);
    return p;
}

const int32_t *py_call_ints(py_call *c, PyObject *obj, const char *name, Py_ssize_t n)
{
    return take_values(c, obj, name, 'i', n);
}

int32_t *py_call_ints_out(py_call *c, PyObject *obj, const char *name, Py_ssize_t n)
{
    int32_t *p = take_values(c, obj, name, 'i', n);
    writable(c, name);
    return p;
}

void *py_call_bytes(py_call *c, PyObject *obj, const char *name, size_t n, int is_out)
{
    Py_buffer *view = take(c, obj, 0);
    if (view == NULL) {
        return NULL;
    }
    if ((size_t)view->len != n) {
        py_call_fail(c, PyExc_ValueError, "%s: %zd bytes, expected %zu", name, view->len, n);
    }
    if (is_out) {
        writable(c, name);
    }
    return view->buf;
}

void py_call_range(py_call *c, const char *name, int x, int low, int high)
{
    if (x < low || x > high) {
        py_call_fail(c, PyExc_ValueError, "%s: %d is not in %d..%d", name, x, low, high);
    }
}

int py_call_rows(py_call *c, const char *name, int d)
{
    if (c->ok && c->n % d != 0) {
        py_call_fail(c, PyExc_ValueError, "%s: %d values are no rows of %d", name, c->n, d);
    }
    return c->ok ? c->n / d : 0;
}

/* ---- attention over a chunk -------------------------------------------------------------------- */

void py_call_attend_rows(py_call *c, PyObject *row_pos, la_attend_args *g)
{
    py_call_range(c, "n_pages", g->n_pages, 1, LA_CHUNK / LA_PAGE);
    py_call_range(c, "first", g->first, 0, INT_MAX - LA_CHUNK);
    py_call_range(c, "window", g->window, 0, INT_MAX);
    g->row_pos = py_call_ints(c, row_pos, "row_pos", PY_CALL_ANY);
    g->R = c->n;
    py_call_range(c, "R", g->R, 1, MOST_ROWS);
    py_call_range(c, "set", g->set, 0, c->ok ? MOST_ROWS / g->R - 1 : 0);
    for (int r = 0; c->ok && r < g->R; r++) {
        py_call_range(c, "row_pos", g->row_pos[r], 0, INT_MAX - 1);
    }
}

void py_call_attend(py_call *c, la_attend_fn slot, la_attend_args *g, size_t more)
{
    if (!c->ok) {
        return;
    }
    size_t bytes = more + la_attend_scratch((g->set + 1) * g->R, g->d);
    char *block = PyMem_Malloc(bytes + 2 * GUARD);
    if (block == NULL) {
        PyErr_NoMemory();
        c->ok = 0;
        return;
    }
    char *scratch = block + (GUARD - (uintptr_t)block % GUARD) % GUARD;
    memset(scratch, POISON, bytes + GUARD);
    g->scratch = scratch;
    Py_BEGIN_ALLOW_THREADS
    slot(g);
    Py_END_ALLOW_THREADS
    for (int i = 0; i < GUARD; i++) {
        if ((unsigned char)scratch[bytes + (size_t)i] != POISON) {
            py_call_fail(c, PyExc_RuntimeError, "the kernel wrote past its scratch");
        }
    }
    PyMem_Free(block);
}
