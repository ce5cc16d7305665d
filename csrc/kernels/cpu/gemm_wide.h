/* gemm_wide.h - fp32 weights by fp32 rows, added up in fp64: for comparison with others, not for speed.
 *
 * A product of two fp32 numbers is exact in fp64 and so, but for 2^-53, is their sum: a result is the
 * true one rounded to fp32. Plain C over the compiler's vectors, which every level cuts to its own.
 * Invariant: one chain per result, k ascending, the same bits at every level. Included by isa_scalar.c,
 * isa_avx2.c and isa_avx512.c.
 */
#ifndef LA_GEMM_WIDE_H
#define LA_GEMM_WIDE_H

#include "../kernels.h"
#include "vec.h"

enum {
    WIDE = 8,                    /* lanes */
    WIDE_V = LA_UNIT / WIDE,     /* vectors of a unit */
    WIDE_ROWS = VL == 16 ? 4 : 1 /* rows of a tile: its sums stay in registers */
};

typedef float wide_f32 __attribute__((vector_size(WIDE * sizeof(float))));
typedef double wide_f64 __attribute__((vector_size(WIDE * sizeof(double))));

/* Rows row0 .. row0 + R - 1 by unit u. */
LA_INLINE void wide_tile(const int R, const la_gemm *g, int u, int row0)
{
    const uint8_t *w = g->w + (size_t)u * g->w_pitch; /* [K][32] */
    const uint8_t *a = g->a + (size_t)row0 * g->a_pitch;
    wide_f64 sum[WIDE_ROWS][WIDE_V] = {{{0}}};
    for (int k = 0; k < g->K; k++, w += LA_UNIT * sizeof(float)) {
        wide_f64 b[WIDE_V];
        LA_UNROLL
        for (int c = 0; c < WIDE_V; c++) {
            wide_f32 x;
            memcpy(&x, w + (size_t)c * sizeof x, sizeof x);
            b[c] = __builtin_convertvector(x, wide_f64);
        }
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            double x = ((const float *)(const void *)(a + (size_t)r * g->a_pitch))[k];
            LA_UNROLL
            for (int c = 0; c < WIDE_V; c++) {
                sum[r][c] += x * b[c];
            }
        }
    }
    LA_UNROLL
    for (int r = 0; r < R; r++) {
        float *out = g->c + (size_t)(row0 + r) * (size_t)g->ldc + u * LA_UNIT;
        LA_UNROLL
        for (int c = 0; c < WIDE_V; c++) {
            wide_f32 y = __builtin_convertvector(sum[r][c], wide_f32);
            memcpy(out + c * WIDE, &y, sizeof y);
        }
    }
}

static void gemm_f32_f64(const la_gemm *g)
{
    for (int u = 0; u < g->n_units; u++) {
        int m = 0;
        for (; m + WIDE_ROWS <= g->M; m += WIDE_ROWS) {
            wide_tile(WIDE_ROWS, g, u, m);
        }
        for (; m < g->M; m++) {
            wide_tile(1, g, u, m);
        }
    }
}

#endif
