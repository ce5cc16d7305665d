/* py_kernels_attend.h - one call of attention over a user's pages, of whichever kind they are.
 *
 * Owned by the call: job, scratch and buffers end with it. Used by py_kernels_pages.c and
 * py_kernels_latent.c, which say how rows are shared out.
 */
#ifndef LA_PY_KERNELS_ATTEND_H
#define LA_PY_KERNELS_ATTEND_H

#include "../kernels/attend_walk.h"
#include "py_kernels.h"

enum { PY_ATTEND_ROWS = 64, PY_ATTEND_HEADS = 1 << 16 }; /* rows of one kernel call; most heads */

typedef struct py_attend_job {
    la_attend_walk walk; /* all but k by the caller */
    const void *pages;   /* the object, for the share */
    int length;          /* tokens stored in it */
    int T, H;            /* H by the caller */
    const float *q;      /* [T][H][walk.d] */
    const int32_t *pos;  /* [T] */
    float *out;          /* [T][H][la_attend_out(&walk)] */
    uint8_t *scratch;    /* [threads] pieces of `pitch` bytes, a room of PY_ATTEND_ROWS rows each */
    size_t pitch;
    /* what concerns the pages alone, after T and pos are known: 0, or -1 with an exception set; or NULL */
    int (*check)(const py_state *state, const struct py_attend_job *job);
} py_attend_job;

/* What a caller of Python gave. */
typedef struct py_attend_call {
    const char *isa;
    PyObject *q, *positions, *out;
    PyObject *sinks; /* float32 [H], or None */
    int threads;
} py_attend_call;

/* Checks the call and has `share` run by its threads with the job; None, or NULL with an exception that
 * names the argument. */
PyObject *py_attend(py_state *state, const py_attend_call *call, py_attend_job *job,
                    void (*share)(void *job, int tid, int nth));
/* Is every position one of a stored token? 0, or -1 with an exception set. */
int py_attend_check_positions(const py_state *state, const py_attend_job *job);
/* Buffers of thread tid. */
la_attend_room py_attend_room(const py_attend_job *job, int tid);

#endif
