/* product_finish.h - what happens to the numbers of a finished product, for every kernel of products.
 *
 * Owns bias, addition to rows, activations and gates, scale and softcap of logits (la_finish), by the same
 * arithmetic wherever a product is made. Invariant: gates and ups lie in turns of 16 columns, so both are
 * at hand where a unit of 32 columns is. Columns beyond N are not stored. Included by gemm_*.cu and gemm_*.h.
 */
#ifndef LA_PRODUCT_FINISH_H
#define LA_PRODUCT_FINISH_H

#include "la_ptx.h"
#include "launch.h"

#include <math.h>

extern "C" {
#include "../../model/backend.h"
}

LA_DEV float la_sigmoid(float x)
{
    return 1.0f / (1.0f + la_exp2(x * -1.44269504f));
}

LA_DEV float la_gate(int act, float x)
{
    switch (act) {
    case LA_GATE_SILU: return x * la_sigmoid(x);
    case LA_GATE_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case LA_GATE_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    default: return fmaxf(x, 0.0f);
    }
}

LA_DEV float la_gate_up(int act, float g, float up)
{
    if (act == LA_GATE_CLIP) {
        g = fminf(g, 7.0f);
        return (fmaxf(fminf(up, 7.0f), -7.0f) + 1.0f) * g * la_sigmoid(1.702f * g);
    }
    return la_gate(act, g) * up;
}

/* Are gates and ups to become one? */
LA_DEV int la_is_gated(const la_product_args &a)
{
    return a.finish.kind == LA_ACT && a.finish.paired;
}

/* One finished element of column n, which is not gated. */
LA_DEV void la_put(const la_product_args &a, float *row, int n, float y)
{
    const la_finish &f = a.finish;
    if (n >= a.N) {
        return;
    }
    switch (f.kind) {
    case LA_ADD: y = la_fma(f.scale, y, la_ldg(row + n)); break;
    case LA_ACT: y = la_gate(f.act, y); break;
    case LA_LOGITS:
        y *= f.scale;
        y = f.softcap != 0.0f ? f.softcap * tanhf(y / f.softcap) : y;
        break;
    default: break;
    }
    la_stg(row + n, y);
}

/* A gate of column n of its unit, and its up 16 columns on. A last unit may hold fewer than 16 pairs. */
LA_DEV void la_put_gated(const la_product_args &a, float *row, int n, float gate, float up)
{
    int h = n / LA_UNIT * 16 + n % 16;
    if (h < a.N / 2) {
        la_stg(row + h, la_gate_up(a.finish.act, gate, up));
    }
}

/* The bias of column n, of a unit that begins inside of N. */
LA_DEV float la_bias(const la_product_args &a, int n)
{
    return a.bias != NULL && n / LA_UNIT * LA_UNIT < a.N ? la_ldg(a.bias + n) : 0.0f;
}

/* Column n0 + lane of row m, bias to come: a warp has a unit. */
LA_DEV void la_finish_lane(const la_product_args &a, int m, int n0, float y)
{
    float *row = a.out + m * a.ldo;
    y += la_bias(a, n0 + la_lane());
    if (!la_is_gated(a)) {
        la_put(a, row, n0 + la_lane(), y);
        return;
    }
    const float up = la_shfl_f32(y, (la_lane() + 16) % 32);
    if (la_lane() < 16) {
        la_put_gated(a, row, n0 + la_lane(), y, up);
    }
}

/* A unit of columns from n0 on of 16 rows from m0 on, as mma.sync leaves them to a warp: four products of 8
 * columns. */
LA_DEV void la_finish_unit(const la_product_args &a, int m0, int n0, const float (&acc)[4][4])
{
    int g = la_lane() / 4, t = la_lane() % 4, gated = la_is_gated(a);
    LA_UNROLL
    for (int i = 0; i < 4; i++) {
        int m = m0 + g + (i / 2) * 8;
        if (m >= a.M) {
            continue;
        }
        float *row = a.out + (int64_t)m * a.ldo;
        float y[4];
        LA_UNROLL
        for (int j = 0; j < 4; j++) {
            y[j] = acc[j][i] + la_bias(a, n0 + j * 8 + 2 * t + i % 2);
        }
        LA_UNROLL
        for (int j = 0; j < 4; j++) {
            int n = n0 + j * 8 + 2 * t + i % 2;
            if (!gated) {
                la_put(a, row, n, y[j]);
            }
            else if (j < 2) {
                la_put_gated(a, row, n, y[j], y[j + 2]);
            }
        }
    }
}

#endif
