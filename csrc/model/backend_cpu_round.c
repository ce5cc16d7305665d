/* backend_cpu_round.c - rows rounded to 8 bits and back, as a checkpoint says that others round them.
 *
 * For comparison with other engines (activation="checkpoint"), not for speed: plain C, so that every
 * instruction set gives the same bits. Invariant: a row's result depends on that row alone. Called by
 * backend_cpu_linear.c.
 */
#include "backend_cpu.h"

#include <math.h>

static float largest(const float *x, int n)
{
    float top = 0.0f;
    for (int k = 0; k < n; k++) {
        top = fmaxf(top, fabsf(x[k]));
    }
    return top;
}

static void round_i8(float scale, float zero, const float *x, int n, float *y)
{
    for (int k = 0; k < n; k++) {
        float q = rintf(fminf(fmaxf(x[k] / scale + zero, -128.0f), 127.0f));
        y[k] = (q - zero) * scale;
    }
}

static void round_f8(const la_kernels *t, float scale, const float *x, int n, float *y)
{
    uint8_t code[256];
    for (int k = 0; k < n; k += 256) {
        int here = n - k < 256 ? n - k : 256;
        t->fp8_encode(x + k, scale, 0, code, here);
        t->fp8_decode(code, scale, 0, y + k, here);
    }
}

/* The least power of two that is not below s > 0. */
static float power_above(float s)
{
    int exponent;
    float part = frexpf(s, &exponent);
    return ldexpf(part > 0.5f ? 1.0f : 0.5f, exponent);
}

static void round_group(const la_kernels *t, la_rounding r, const float *x, int n, float *y)
{
    float scale = r.scale, zero = 0.0f;
    int f8 = r.kind == LA_ROUND_F8 || r.kind == LA_ROUND_F8_POWER;
    if (r.kind == LA_ROUND_I8_OFFSET) {
        float low = 0.0f, high = 0.0f;
        for (int k = 0; k < n; k++) {
            low = fminf(low, x[k]);
            high = fmaxf(high, x[k]);
        }
        scale = (high - low) / 255.0f;
        zero = scale > 0.0f ? rintf(fminf(fmaxf(-128.0f - low / scale, -128.0f), 127.0f)) : 0.0f;
    }
    else if (scale == 0.0f) {
        scale = largest(x, n) / (f8 ? 448.0f : 127.5f);
        scale = r.kind == LA_ROUND_F8_POWER && scale > 0.0f ? power_above(scale) : scale;
    }
    if (!(scale > 0.0f)) {
        memset(y, 0, (size_t)n * sizeof *y);
    }
    else if (f8) {
        round_f8(t, scale, x, n, y);
    }
    else {
        round_i8(scale, zero, x, n, y);
    }
}

void la_cpu_round_row(const la_kernels *t, la_rounding r, const float *x, int K, float *y)
{
    int group = r.group > 0 ? r.group : K;
    for (int k = 0; k < K; k += group) {
        round_group(t, r, x + k, K - k < group ? K - k : group, y + k);
    }
}
