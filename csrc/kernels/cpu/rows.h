/* rows.h - kernels over one row: norms, sums of rows, activations, rotation, softcap.
 *
 * Invariants: an element's bits depend on its value alone, not on its lane; sums run in 16 fixed lanes
 * joined by v_sum16; every level runs the same operations, so results are equal bit for bit across
 * levels. Included by the isa_*.c files, which call fill_rows.
 */
#ifndef LA_ROWS_H
#define LA_ROWS_H

#include "../kernels.h"
#include "vec_math.h"

LA_INLINE vf v_silu(vf x) { return v_div(x, v_add(v_set1(1.0f), v_exp(v_sub(v_zero(), x)))); }

/* x Phi(x). The upper tail h = erfc(|x| / sqrt 2) / 2 = exp(-x^2 / 2) t Q(t), t = 1 / (1 + 0.35 |x| / sqrt 2),
 * relative error 1e-8 before rounding, so large negative x keep their digits. */
LA_INLINE vf v_gelu(vf x)
{
    static const float c[10] = {0.0987436175f,  0.098537907f,  0.0941943228f,   0.074525401f,
                                0.0759436861f,  0.0383303426f, -0.00790158752f, 0.0864472017f,
                                -0.0777089149f, 0.0188880228f};
    vf t = v_div(v_set1(1.0f), v_fma(v_set1(0.247487373f), v_abs(x), v_set1(1.0f)));
    vf p = v_set1(c[9]);
    LA_UNROLL
    for (int i = 8; i >= 0; i--) {
        p = v_fma(t, p, v_set1(c[i]));
    }
    vf e = v_exp(v_mul(v_set1(-0.5f), v_mul(x, x)));
    vf h = v_mul(e, v_mul(t, p));
    return v_mul(x, v_gt_select(v_zero(), x, h, v_sub(v_set1(1.0f), h)));
}

/* x (1 + tanh u) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3) */
LA_INLINE vf v_gelu_tanh(vf x)
{
    vf u = v_mul(x, v_fma(v_mul(x, x), v_set1(-0.0713548163f), v_set1(-1.59576912f)));
    return v_div(x, v_add(v_set1(1.0f), v_exp(u)));
}

/* LA_GATE_* of llmaccel.h */
enum { ROWS_SILU = 0, ROWS_GELU, ROWS_GELU_TANH, ROWS_RELU, ROWS_CLIP };

/* x sigmoid(1.702 x) of x <= 7. The first operands of min and max give way to a NaN. */
LA_INLINE vf v_clip(vf x)
{
    x = v_min(v_set1(7.0f), x);
    return v_div(x, v_add(v_set1(1.0f), v_exp(v_mul(v_set1(-1.702f), x))));
}

/* What a gate's up is multiplied as. */
LA_INLINE vf v_up(const int act, vf x)
{
    return act == ROWS_CLIP ? v_add(v_max(v_set1(-7.0f), v_min(v_set1(7.0f), x)), v_set1(1.0f)) : x;
}

LA_INLINE vf v_act(const int act, vf x)
{
    return act == ROWS_SILU        ? v_silu(x)
           : act == ROWS_GELU      ? v_gelu(x)
           : act == ROWS_GELU_TANH ? v_gelu_tanh(x)
           : act == ROWS_CLIP      ? v_clip(x)
                                   : v_max(v_zero(), x);
}

static void rms_norm(const float *x, const float *w, float eps, float *y, int D)
{
    vf sum[LA_LANES16], v[LA_LANES16];
    for (int j = 0; j < LA_LANES16; j++) {
        sum[j] = v_zero();
    }
    for (int i = 0; i < D; i += 16) {
        v_load16(x + i, D - i, 0.0f, v);
        for (int j = 0; j < LA_LANES16; j++) {
            sum[j] = v_fma(v[j], v[j], sum[j]);
        }
    }
    vf r = v_set1(1.0f / sqrtf(v_sum16(sum) / (float)D + eps));
    int i = 0;
    for (; i + VL <= D; i += VL) {
        v_storeu(y + i, v_mul(v_mul(v_loadu(x + i), r), v_loadu(w + i)));
    }
    if (i < D) {
        int n = D - i;
        v_storen(y + i, v_mul(v_mul(v_loadn(x + i, n), r), v_loadn(w + i, n)), n);
    }
}

static void layer_norm(const float *x, const float *w, const float *b, float eps, float *y, int D)
{
    vf sum[LA_LANES16], v[LA_LANES16];
    for (int j = 0; j < LA_LANES16; j++) {
        sum[j] = v_zero();
    }
    for (int i = 0; i < D; i += 16) {
        v_load16(x + i, D - i, 0.0f, v);
        for (int j = 0; j < LA_LANES16; j++) {
            sum[j] = v_add(v[j], sum[j]);
        }
    }
    float mean = v_sum16(sum) / (float)D;
    vf m = v_set1(mean);
    for (int j = 0; j < LA_LANES16; j++) {
        sum[j] = v_zero();
    }
    for (int i = 0; i < D; i += 16) {
        v_load16(x + i, D - i, mean, v);
        for (int j = 0; j < LA_LANES16; j++) {
            vf c = v_sub(v[j], m);
            sum[j] = v_fma(c, c, sum[j]);
        }
    }
    vf r = v_set1(1.0f / sqrtf(v_sum16(sum) / (float)D + eps));
    int i = 0;
    for (; i + VL <= D; i += VL) {
        vf z = v_mul(v_sub(v_loadu(x + i), m), r);
        v_storeu(y + i, v_fma(z, v_loadu(w + i), b != NULL ? v_loadu(b + i) : v_zero()));
    }
    if (i < D) {
        int n = D - i;
        vf z = v_mul(v_sub(v_loadn(x + i, n), m), r);
        z = v_fma(z, v_loadn(w + i, n), b != NULL ? v_loadn(b + i, n) : v_zero());
        v_storen(y + i, z, n);
    }
}

static void add_scaled(const float *x, float s, float *y, int n)
{
    vf f = v_set1(s);
    int i = 0;
    for (; i + VL <= n; i += VL) {
        v_storeu(y + i, v_fma(v_loadu(x + i), f, v_loadu(y + i)));
    }
    if (i < n) {
        v_storen(y + i, v_fma(v_loadn(x + i, n - i), f, v_loadn(y + i, n - i)), n - i);
    }
}

static void add(const float *b, float *y, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL) {
        v_storeu(y + i, v_add(v_loadu(y + i), v_loadu(b + i)));
    }
    if (i < n) {
        v_storen(y + i, v_add(v_loadn(y + i, n - i), v_loadn(b + i, n - i)), n - i);
    }
}

LA_INLINE void rows_act(const int act, const float *x, float *y, int n)
{
    int i = 0;
    for (; i + VL <= n; i += VL) {
        v_storeu(y + i, v_act(act, v_loadu(x + i)));
    }
    if (i < n) {
        v_storen(y + i, v_act(act, v_loadn(x + i, n - i)), n - i);
    }
}

/* Blocks of 16 values, `step` from one to the next in gate and up. */
LA_INLINE void rows_act_mul(const int act, const float *gate, const float *up, int step, float *y,
                            int n)
{
    int i = 0;
    for (; i + 16 <= n; i += 16, gate += step, up += step) {
        LA_UNROLL
        for (int j = 0; j < 16; j += VL) {
            v_storeu(y + i + j, v_mul(v_act(act, v_loadu(gate + j)), v_up(act, v_loadu(up + j))));
        }
    }
    for (int j = 0; i + j < n; j += VL) {
        int left = n - i - j;
        vf z = v_mul(v_act(act, v_loadn(gate + j, left)), v_up(act, v_loadn(up + j, left)));
        v_storen(y + i + j, z, left);
    }
}

static void act_mul(int kind, const float *gate, const float *up, int step, float *y, int n)
{
    switch (kind) {
    case ROWS_SILU: rows_act_mul(ROWS_SILU, gate, up, step, y, n); break;
    case ROWS_GELU: rows_act_mul(ROWS_GELU, gate, up, step, y, n); break;
    case ROWS_GELU_TANH: rows_act_mul(ROWS_GELU_TANH, gate, up, step, y, n); break;
    case ROWS_CLIP: rows_act_mul(ROWS_CLIP, gate, up, step, y, n); break;
    default: rows_act_mul(ROWS_RELU, gate, up, step, y, n); break;
    }
}

static void act(int kind, const float *x, float *y, int n)
{
    switch (kind) {
    case ROWS_SILU: rows_act(ROWS_SILU, x, y, n); break;
    case ROWS_GELU: rows_act(ROWS_GELU, x, y, n); break;
    case ROWS_GELU_TANH: rows_act(ROWS_GELU_TANH, x, y, n); break;
    case ROWS_CLIP: rows_act(ROWS_CLIP, x, y, n); break;
    default: rows_act(ROWS_RELU, x, y, n); break;
    }
}

/* Products are rounded before they are added, as the published models' code does; the two members of a
 * pair are then treated alike. */
static void rope(float *x, const float *co, const float *si, int d_rope, int interleaved)
{
    int half = d_rope / 2;
    if (interleaved) {
        for (int i = 0; i < half; i++) {
            float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * co[i] - b * si[i];
            x[2 * i + 1] = b * co[i] + a * si[i];
        }
        return;
    }
    float *y = x + half;
    int i = 0;
    for (; i + VL <= half; i += VL) {
        vf a = v_loadu(x + i), b = v_loadu(y + i), c = v_loadu(co + i), s = v_loadu(si + i);
        v_storeu(x + i, v_sub(v_mul(a, c), v_mul(b, s)));
        v_storeu(y + i, v_add(v_mul(b, c), v_mul(a, s)));
    }
    if (i < half) {
        int n = half - i;
        vf a = v_loadn(x + i, n), b = v_loadn(y + i, n);
        vf c = v_loadn(co + i, n), s = v_loadn(si + i, n);
        v_storen(x + i, v_sub(v_mul(a, c), v_mul(b, s)), n);
        v_storen(y + i, v_add(v_mul(b, c), v_mul(a, s)), n);
    }
}

LA_INLINE vf v_softcap(vf x, vf s, vf c) { return v_mul(c, v_tanh(v_mul(x, s))); }

static void softcap(float *x, float s, float c, int n)
{
    vf f = v_set1(c != 0.0f ? s / c : s), cap = v_set1(c);
    int i = 0;
    for (; i + VL <= n; i += VL) {
        vf v = v_loadu(x + i);
        v_storeu(x + i, c != 0.0f ? v_softcap(v, f, cap) : v_mul(v, f));
    }
    if (i < n) {
        vf v = v_loadn(x + i, n - i);
        v_storen(x + i, c != 0.0f ? v_softcap(v, f, cap) : v_mul(v, f), n - i);
    }
}

static void fill_rows(la_kernels *t)
{
    t->rms_norm = rms_norm;
    t->layer_norm = layer_norm;
    t->add_scaled = add_scaled;
    t->add = add;
    t->act_mul = act_mul;
    t->act = act;
    t->rope = rope;
    t->softcap = softcap;
}

#endif
