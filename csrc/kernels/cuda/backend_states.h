/* backend_states.h - hidden states of a step, as backend.cu asks for them.
 *
 * Owns what is in pinned memory and not yet where it is wanted. Invariant: only within `run`, since that memory
 * is the one of uploads. Included by backend*.cu.
 */
#ifndef LA_BACKEND_STATES_H
#define LA_BACKEND_STATES_H

#include "backend_device.h"

enum { LA_STATES_PIECES = 64 };

/* Rows of D floats, `pitch` bytes apart, on their way. */
typedef struct la_cuda_piece {
    size_t at, pitch; /* in la_cuda.staging */
    int n, D;
    float *out; /* [n, D] of the host */
} la_cuda_piece;

typedef struct la_cuda_states {
    la_cuda_piece piece[LA_STATES_PIECES];
    int n;
    size_t used; /* bytes of staging */
} la_cuda_states;

/* la_backend_ops.capture */
void la_cuda_states_take(la_cuda_states *own, const la_ctx *c, int layer, la_rows x, la_norm norm);
/* All that were taken are where they are wanted, unless the device has failed. */
void la_cuda_states_end(la_cuda_states *own, la_cuda *cuda);

#endif
