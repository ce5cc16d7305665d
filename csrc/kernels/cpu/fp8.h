/* fp8.h - floats to E4M3 and E5M2 codes and back, over vec.h.
 *
 * A code is rounded from the bits of |x / scale|: half a step less one is added, and one where the code
 * would be odd; below the smallest normal number the fp32 adder rounds, because a number is added whose
 * last place is the step of the subnormals. Decoding moves exponent and mantissa to their places in fp32
 * and multiplies by a power of two, which is exact for subnormals as well. Invariant: every level gives
 * the bits of the scalar one; division and products round once. Included by the isa_*.c files.
 */
#ifndef LA_FP8_H
#define LA_FP8_H

#include "vec.h"

/* A format: s sign, e exponent and m mantissa bits. */
typedef struct fp8_form {
    int drop;     /* bits of an fp32 mantissa beyond its own */
    float top;    /* largest finite value */
    float normal; /* smallest normal number */
    float adder;  /* its last place is the step below that; its bits */
    int32_t adder_bits;
    int32_t rebias;   /* exponent of 1 in fp32 less that here, in fp32's place */
    float move;       /* 2 to the difference of biases */
    float infinite;   /* what codes beyond the top are moved to, at least */
    int32_t nan_code; /* magnitude that encoding gives a NaN */
} fp8_form;

LA_INLINE fp8_form fp8_form_of(const int e5m2)
{
    const fp8_form e4 = {20,       448.0f, 0x1p-6f, 16384.0f, 0x46800000, 120 * (1 << 23),
                         0x1p120f, 479.0f, 0x7f};
    const fp8_form e5 = {21,       57344.0f, 0x1p-14f, 128.0f, 0x43000000, 112 * (1 << 23),
                         0x1p112f, 65535.0f, 0x7f};
    return e5m2 ? e5 : e4;
}

LA_INLINE vi fp8_codes(const fp8_form *f, vf x)
{
    vf size = v_abs(x), a = v_min(size, v_set1(f->top)), y = v_add(a, v_set1(f->adder));
    vi bits = vi_bits(a), half = vi_set1((1 << (f->drop - 1)) - 1);
    vi odd = vi_and(vi_shr(bits, f->drop), vi_set1(1));
    vi normal = vi_shr(vi_add(vi_add(bits, vi_add(half, odd)), vi_set1(-f->rebias)), f->drop);
    vi below = vi_add(vi_bits(y), vi_set1(-f->adder_bits));
    vf code = v_gt_select(v_set1(f->normal), a, v_bits(below), v_bits(normal));
    code = v_gt_select(size, v_set1(-1.0f), code, v_bits(vi_set1(f->nan_code)));
    return vi_or(vi_bits(code), vi_and(vi_shr(vi_bits(x), 24), vi_set1(0x80)));
}

LA_INLINE vf fp8_values(const fp8_form *f, const int e5m2, vi code)
{
    vi sign = vi_shl(vi_and(code, vi_set1(0x80)), 24);
    vi bits = vi_shl(vi_and(code, vi_set1(0x7f)), f->drop);
    vf y = v_mul(v_bits(bits), v_set1(f->move));
    /* E5M2: the exponent becomes fp32's of infinities, NaN keep their mantissa; E4M3: one NaN */
    vi beyond = e5m2 ? vi_or(bits, vi_set1(0x7f800000)) : vi_set1(0x7fc00000);
    y = v_gt_select(y, v_set1(f->infinite), v_bits(beyond), y);
    return v_bits(vi_or(vi_bits(y), sign));
}

static void fp8_encode(const float *x, float scale, int e5m2, uint8_t *out, int n)
{
    const fp8_form f = fp8_form_of(e5m2);
    const vf by = v_set1(scale);
    int32_t code[VL];
    for (int i = 0; i < n; i += VL) {
        int k = n - i < VL ? n - i : VL;
        vi_storeu(code, fp8_codes(&f, v_div(v_loadn(x + i, k), by)));
        for (int j = 0; j < k; j++) {
            out[i + j] = (uint8_t)code[j];
        }
    }
}

static void fp8_decode(const uint8_t *x, float scale, int e5m2, float *out, int n)
{
    const fp8_form f = fp8_form_of(e5m2);
    const vf by = v_set1(scale);
    int32_t code[VL] = {0};
    for (int i = 0; i < n; i += VL) {
        int k = n - i < VL ? n - i : VL;
        for (int j = 0; j < k; j++) {
            code[j] = x[i + j];
        }
        v_storen(out + i, v_mul(fp8_values(&f, e5m2, vi_loadu(code)), by), k);
    }
}

#endif
