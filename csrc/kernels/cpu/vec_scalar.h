/* vec_scalar.h - one lane in plain C: what every operation of vec.h means.
 *
 * Invariant: fma rounds once, as the vector levels do, so code written over vec.h can agree bit for
 * bit across levels. Included by vec.h alone.
 */
#ifndef LA_VEC_SCALAR_H
#define LA_VEC_SCALAR_H

enum { VL = 1 };
typedef float vf;
typedef int32_t vi;

LA_INLINE vf v_zero(void) { return 0.0f; }
LA_INLINE vf v_set1(float x) { return x; }
LA_INLINE vf v_load(const float *p) { return *p; }
LA_INLINE vf v_loadu(const float *p) { return *p; }
LA_INLINE void v_store(float *p, vf a) { *p = a; }
LA_INLINE void v_storeu(float *p, vf a) { *p = a; }
/* First n lanes (0..VL); the others are 0 or stay as they are in memory. */
LA_INLINE vf v_loadn(const float *p, int n) { return n > 0 ? *p : 0.0f; }
LA_INLINE void v_storen(float *p, vf a, int n)
{
    if (n > 0) {
        *p = a;
    }
}
LA_INLINE vf v_add(vf a, vf b) { return a + b; }
LA_INLINE vf v_sub(vf a, vf b) { return a - b; }
LA_INLINE vf v_mul(vf a, vf b) { return a * b; }
LA_INLINE vf v_div(vf a, vf b) { return a / b; }
LA_INLINE vf v_max(vf a, vf b) { return a > b ? a : b; }
LA_INLINE vf v_min(vf a, vf b) { return a < b ? a : b; }
LA_INLINE vf v_fma(vf a, vf b, vf c) { return fmaf(a, b, c); }   /* a * b + c */
LA_INLINE vf v_fnma(vf a, vf b, vf c) { return fmaf(-a, b, c); } /* c - a * b */
LA_INLINE vf v_abs(vf a) { return fabsf(a); }
LA_INLINE vf v_round(vf a) { return rintf(a); } /* to nearest even */
/* a > b ? x : y, lane by lane */
LA_INLINE vf v_gt_select(vf a, vf b, vf x, vf y) { return a > b ? x : y; }

LA_INLINE vi vi_set1(int32_t x) { return x; }
LA_INLINE vi vi_loadu(const void *p)
{
    vi x;
    memcpy(&x, p, sizeof x);
    return x;
}
LA_INLINE void vi_storeu(void *p, vi a) { memcpy(p, &a, sizeof a); }
LA_INLINE vi vi_add(vi a, vi b) { return (vi)((uint32_t)a + (uint32_t)b); }
LA_INLINE vi vi_and(vi a, vi b) { return a & b; }
LA_INLINE vi vi_or(vi a, vi b) { return a | b; }
LA_INLINE vi vi_max(vi a, vi b) { return a > b ? a : b; }
LA_INLINE vi vi_shl(vi a, int n) { return (vi)((uint32_t)a << n); }
LA_INLINE vi vi_shr(vi a, int n) { return (vi)((uint32_t)a >> n); } /* zeros come in */
LA_INLINE vi vi_sar(vi a, int n) { return a >> n; }                 /* copies of the sign come in */
LA_INLINE vi vi_from_f(vf a) { return (vi)lrintf(a); } /* to nearest even; |a| < 2^31 */
LA_INLINE vf v_from_i(vi a) { return (float)a; }
LA_INLINE vi vi_bits(vf a)
{
    vi x;
    memcpy(&x, &a, sizeof x);
    return x;
}
LA_INLINE vf v_bits(vi a)
{
    vf x;
    memcpy(&x, &a, sizeof x);
    return x;
}

LA_INLINE vf v_load_f16(const uint16_t *p) { return la_f16_to_f32(*p); }
LA_INLINE vf v_load_bf16(const uint16_t *p) { return la_bf16_to_f32(*p); }
LA_INLINE void v_store_bf16(uint16_t *p, vf a) { *p = la_f32_to_bf16(a); }

/* 16 integers in -128..127 as bytes, in the order 0 4 1 5 2 6 3 7 inside each 8 (LA_ACT_I8 rows). */
LA_INLINE void vi_store_act(int8_t *p, const vi q[16])
{
    for (int b = 0; b < 16; b += 8) {
        for (int i = 0; i < 4; i++) {
            p[b + 2 * i] = (int8_t)q[b + i];
            p[b + 2 * i + 1] = (int8_t)q[b + i + 4];
        }
    }
}

#endif
