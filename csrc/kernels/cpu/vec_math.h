/* vec_math.h - exp and tanh of a vector, and loads of 16 lanes with a tail.
 *
 * Owns the one exp of the CPU kernels. Invariants: no libm and no branch on values; a lane's result
 * depends on that lane alone; every level runs the same operations and gives the same bits.
 * Included by rows.h, sample.h and attention_core.h.
 */
#ifndef LA_VEC_MATH_H
#define LA_VEC_MATH_H

#include "vec.h"

/* exp(x) = s (1 + q): returns q, |q| < 0.42, and s = 2^n; s is 0 below -87.7 and infinite above 88.4.
 * NaN gives a NaN q. */
LA_INLINE vf v_exp_split(vf x, vf *s)
{
    /* min and max keep a NaN in their second operand */
    x = v_min(v_set1(89.0f), v_max(v_set1(-88.0f), x));
    vf n = v_round(v_mul(x, v_set1(1.44269504f)));
    vf r = v_fnma(n, v_set1(0.693359375f), x); /* ln 2 in two parts; the first has 9 bits */
    r = v_fnma(n, v_set1(-2.12194440e-4f), r);
    /* Minimax on +-ln(2)/2: 3e-9 of exp */
    vf p = v_fma(r, v_set1(0x1.6a23d0p-10f), v_set1(0x1.123a20p-7f));
    p = v_fma(r, p, v_set1(0x1.5558f2p-5f));
    p = v_fma(r, p, v_set1(0x1.555492p-3f));
    p = v_fma(r, p, v_set1(0x1.fffffcp-2f));
    *s = v_bits(vi_shl(vi_add(vi_from_f(n), vi_set1(127)), 23));
    return v_fma(v_mul(r, r), p, r);
}

/* exp within 1.1 ulp; exactly 1 at 0, exactly 0 below -87.7, infinity above 88.4. */
LA_INLINE vf v_exp(vf x)
{
    vf s;
    vf q = v_exp_split(x, &s);
    return v_mul(s, v_add(v_set1(1.0f), q));
}

/* tanh, relative error 3e-7: expm1(-2|x|) has no cancellation, so small x need no branch. */
LA_INLINE vf v_tanh(vf x)
{
    vf s;
    vf q = v_exp_split(v_mul(v_set1(-2.0f), v_abs(x)), &s);
    vf em1 = v_fma(s, q, v_sub(s, v_set1(1.0f)));
    vf t = v_div(em1, v_add(v_set1(2.0f), em1)); /* -tanh |x|, never positive */
    return v_gt_select(v_zero(), x, t, v_sub(v_zero(), t));
}

/* 16 values from p, the last 16 - n of them `pad` */
LA_INLINE void v_load16(const float *p, int n, float pad, vf x[LA_LANES16])
{
    if (n >= 16) {
        for (int i = 0; i < LA_LANES16; i++) {
            x[i] = v_loadu(p + i * VL);
        }
        return;
    }
    float t[16];
    for (int i = 0; i < 16; i++) {
        t[i] = i < n ? p[i] : pad;
    }
    for (int i = 0; i < LA_LANES16; i++) {
        x[i] = v_loadu(t + i * VL);
    }
}

#endif
