/* vec_avx512.h - sixteen lanes: AVX-512 F, BW, VL, DQ. Meanings are those of vec_scalar.h.
 *
 * bf16 rounding is done in integers: the conversion instruction of AVX512_BF16 flushes subnormals.
 * Included by vec.h alone.
 */
#ifndef LA_VEC_AVX512_H
#define LA_VEC_AVX512_H

#include <immintrin.h>

/* Compilers disagree whether the shift counts of these intrinsics are signed. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"

enum { VL = 16 };
typedef __m512 vf;
typedef __m512i vi;

LA_INLINE vf v_zero(void) { return _mm512_setzero_ps(); }
LA_INLINE vf v_set1(float x) { return _mm512_set1_ps(x); }
LA_INLINE vf v_load(const float *p) { return _mm512_load_ps(p); }
LA_INLINE vf v_loadu(const float *p) { return _mm512_loadu_ps(p); }
LA_INLINE void v_store(float *p, vf a) { _mm512_store_ps(p, a); }
LA_INLINE void v_storeu(float *p, vf a) { _mm512_storeu_ps(p, a); }
LA_INLINE __mmask16 v_first(int n) { return (__mmask16)((1u << n) - 1u); }
LA_INLINE vf v_loadn(const float *p, int n) { return _mm512_maskz_loadu_ps(v_first(n), p); }
LA_INLINE void v_storen(float *p, vf a, int n) { _mm512_mask_storeu_ps(p, v_first(n), a); }
LA_INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
LA_INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
LA_INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
LA_INLINE vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
LA_INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
LA_INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
LA_INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
LA_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
LA_INLINE vf v_abs(vf a) { return _mm512_abs_ps(a); }
LA_INLINE vf v_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LA_INLINE vf v_gt_select(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
LA_INLINE uint32_t v_gt_bits(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
LA_INLINE vf v_pick(uint32_t bits, vf a, vf b)
{
    return _mm512_mask_blend_ps((__mmask16)bits, b, a);
}

LA_INLINE vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
LA_INLINE vi vi_loadu(const void *p) { return _mm512_loadu_si512(p); }
LA_INLINE void vi_storeu(void *p, vi a) { _mm512_storeu_si512(p, a); }
LA_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
LA_INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
LA_INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
/* a | (b & c) */
LA_INLINE vi vi_or_and(vi a, vi b, vi c) { return _mm512_ternarylogic_epi32(a, b, c, 0xf8); }
LA_INLINE vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
LA_INLINE void vi_store_set(int32_t *p, int first, uint32_t bits)
{
    const vi lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    /* compressed in a register: the store that compresses is microcode on Zen 4 */
    vi ids = _mm512_maskz_compress_epi32((__mmask16)bits, vi_add(lane, vi_set1(first)));
    vi_storeu(p, ids);
}
LA_INLINE vi vi_shl(vi a, int n) { return _mm512_slli_epi32(a, n); }
LA_INLINE vi vi_shr(vi a, int n) { return _mm512_srli_epi32(a, n); }
LA_INLINE vi vi_sar(vi a, int n) { return _mm512_srai_epi32(a, n); }
LA_INLINE vi vi_from_f(vf a) { return _mm512_cvtps_epi32(a); }
LA_INLINE vf v_from_i(vi a) { return _mm512_cvtepi32_ps(a); }
LA_INLINE vi vi_bits(vf a) { return _mm512_castps_si512(a); }
LA_INLINE vf v_bits(vi a) { return _mm512_castsi512_ps(a); }

LA_INLINE vf v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
LA_INLINE vf v_load_bf16(const uint16_t *p)
{
    return v_bits(vi_shl(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
/* 16 bf16 values as fp32, and of each lane that which its low 4 bits number. */
typedef struct v_table {
    vf v[1];
} v_table;
LA_INLINE v_table v_table_load(const uint16_t *p) { return (v_table){{v_load_bf16(p)}}; }
LA_INLINE vf v_table_pick(v_table t, vi i) { return _mm512_permutexvar_ps(i, t.v[0]); }
LA_INLINE void v_store_bf16(uint16_t *p, vf a)
{
    vi u = vi_bits(a);
    vi odd = vi_and(vi_shr(u, 16), vi_set1(1));
    vi r = vi_shr(vi_add(u, vi_add(odd, vi_set1(0x7fff))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, vi_shr(u, 16), vi_set1(0x40));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(r));
}
/* Bytes and 16-bit words inside the lanes; the vector levels alone have them. */
LA_INLINE vi vi_maddubs(vi a, vi b) { return _mm512_maddubs_epi16(a, b); } /* a unsigned */
LA_INLINE vi vi_madd16(vi a, vi b) { return _mm512_madd_epi16(a, b); }
LA_INLINE vi vi_low8x2(vi a) { return _mm512_unpacklo_epi8(a, a); } /* each of the low 8 twice */
LA_INLINE vi vi_high8x2(vi a) { return _mm512_unpackhi_epi8(a, a); }
LA_INLINE vf v_load_i8(const int8_t *p)
{
    return v_from_i(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
/* Powers of two by their biased exponents, 0 to 254; 2^-127 has none of its own. */
LA_INLINE vf v_load_e8m0(const uint8_t *p)
{
    vi bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)), 23);
    return _mm512_castsi512_ps(vi_max(bits, _mm512_set1_epi32(0x00400000)));
}
LA_INLINE vi vi_add16(vi a, vi b) { return _mm512_add_epi16(a, b); }
LA_INLINE vi vi_shl16(vi a, int n) { return _mm512_slli_epi16(a, n); }
LA_INLINE vi vi_shr16(vi a, int n) { return _mm512_srli_epi16(a, n); }
LA_INLINE vi vi_sar16(vi a, int n) { return _mm512_srai_epi16(a, n); }
/* The two bf16 of each lane as fp32, and those at p in every lane: loaded for each of the two, with
 * intrinsics gcc keeps the pairs of all rows and spills. */
static const int32_t vi_upper[1] = {-65536};
LA_INLINE vf v_from_bf16(vi a, const int odd)
{
    return v_bits(odd ? vi_and(a, vi_set1(vi_upper[0])) : vi_shl(a, 16));
}
LA_INLINE vf v_set1_bf16(const void *p, const int odd)
{
    const int32_t (*pair)[1] = (const int32_t (*)[1])p;
    vi r;
    if (odd) {
        __asm__("vpbroadcastd %1, %0\n\tvpandd %2%{1to16%}, %0, %0"
                : "=v"(r)
                : "m"(*pair), "m"(vi_upper));
    }
    else {
        __asm__("vpbroadcastd %1, %0\n\tvpslld $16, %0, %0" : "=v"(r) : "m"(*pair));
    }
    return v_bits(r);
}
/* One k of VL columns that hold fp16 in pairs of k: the first (odd 0) or the second. */
LA_INLINE vf v_pick_f16(const void *p, int odd)
{
    vi x = vi_loadu(p);
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(odd ? vi_shr(x, 16) : x));
}

LA_INLINE void vi_store_act(int8_t *p, const vi q[1])
{
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    _mm_storeu_si128((__m128i *)p, _mm_shuffle_epi8(_mm512_cvtepi32_epi8(q[0]), order));
}

#pragma GCC diagnostic pop

#endif
