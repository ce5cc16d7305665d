/* vec_avx2.h - eight lanes: AVX2, FMA and F16C. Meanings are those of vec_scalar.h.
 *
 * Included by vec.h alone.
 */
#ifndef LA_VEC_AVX2_H
#define LA_VEC_AVX2_H

#include <immintrin.h>

enum { VL = 8 };
typedef __m256 vf;
typedef __m256i vi;

LA_INLINE vf v_zero(void) { return _mm256_setzero_ps(); }
LA_INLINE vf v_set1(float x) { return _mm256_set1_ps(x); }
LA_INLINE vf v_load(const float *p) { return _mm256_load_ps(p); }
LA_INLINE vf v_loadu(const float *p) { return _mm256_loadu_ps(p); }
LA_INLINE void v_store(float *p, vf a) { _mm256_store_ps(p, a); }
LA_INLINE void v_storeu(float *p, vf a) { _mm256_storeu_ps(p, a); }
LA_INLINE vi vi_first(int n) /* all ones in the first n lanes */
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LA_INLINE vf v_loadn(const float *p, int n) { return _mm256_maskload_ps(p, vi_first(n)); }
LA_INLINE void v_storen(float *p, vf a, int n) { _mm256_maskstore_ps(p, vi_first(n), a); }
LA_INLINE vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
LA_INLINE vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
LA_INLINE vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
LA_INLINE vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
LA_INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
LA_INLINE vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
LA_INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
LA_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
LA_INLINE vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
LA_INLINE vf v_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LA_INLINE vf v_gt_select(vf a, vf b, vf x, vf y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
LA_INLINE uint32_t v_gt_bits(vf a, vf b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
LA_INLINE vf v_pick(uint32_t bits, vf a, vf b)
{
    const vi lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    vi set = _mm256_and_si256(_mm256_set1_epi32((int)bits), lane);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
}

LA_INLINE vi vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
LA_INLINE vi vi_loadu(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
LA_INLINE void vi_storeu(void *p, vi a) { _mm256_storeu_si256((__m256i *)p, a); }
LA_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
LA_INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
LA_INLINE vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
/* a | (b & c) */
LA_INLINE vi vi_or_and(vi a, vi b, vi c) { return vi_or(a, vi_and(b, c)); }
LA_INLINE vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
LA_INLINE void vi_store_set(int32_t *p, int first, uint32_t bits)
{
    for (; bits != 0; bits &= bits - 1) {
        *p++ = first + __builtin_ctz(bits);
    }
}
LA_INLINE vi vi_shl(vi a, int n) { return _mm256_slli_epi32(a, n); }
LA_INLINE vi vi_shr(vi a, int n) { return _mm256_srli_epi32(a, n); }
LA_INLINE vi vi_sar(vi a, int n) { return _mm256_srai_epi32(a, n); }
LA_INLINE vi vi_from_f(vf a) { return _mm256_cvtps_epi32(a); }
LA_INLINE vf v_from_i(vi a) { return _mm256_cvtepi32_ps(a); }
LA_INLINE vi vi_bits(vf a) { return _mm256_castps_si256(a); }
LA_INLINE vf v_bits(vi a) { return _mm256_castsi256_ps(a); }

LA_INLINE vf v_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
LA_INLINE vf v_load_bf16(const uint16_t *p)
{
    return v_bits(vi_shl(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
LA_INLINE void v_store_bf16(uint16_t *p, vf a)
{
    vi u = vi_bits(a);
    vi odd = vi_and(vi_shr(u, 16), vi_set1(1));
    vi r = vi_shr(vi_add(u, vi_add(odd, vi_set1(0x7fff))), 16);
    vi nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_or_si256(vi_shr(u, 16), vi_set1(0x40)), nan);
    r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(r));
}
/* 16 bf16 values as fp32, and of each lane that which its low 4 bits number. */
typedef struct v_table {
    vf v[2];
} v_table;
LA_INLINE v_table v_table_load(const uint16_t *p)
{
    return (v_table){{v_load_bf16(p), v_load_bf16(p + 8)}};
}
LA_INLINE vf v_table_pick(v_table t, vi i)
{
    vf low = _mm256_permutevar8x32_ps(t.v[0], i), high = _mm256_permutevar8x32_ps(t.v[1], i);
    return _mm256_blendv_ps(low, high, v_bits(vi_shl(i, 28)));
}
/* Bytes and 16-bit words inside the lanes; the vector levels alone have them. */
LA_INLINE vi vi_maddubs(vi a, vi b) { return _mm256_maddubs_epi16(a, b); } /* a unsigned */
LA_INLINE vi vi_madd16(vi a, vi b) { return _mm256_madd_epi16(a, b); }
LA_INLINE vi vi_low8x2(vi a) { return _mm256_unpacklo_epi8(a, a); } /* each of the low 8 twice */
LA_INLINE vi vi_high8x2(vi a) { return _mm256_unpackhi_epi8(a, a); }
LA_INLINE vf v_load_i8(const int8_t *p)
{
    return v_from_i(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
/* Powers of two by their biased exponents, 0 to 254; 2^-127 has none of its own. */
LA_INLINE vf v_load_e8m0(const uint8_t *p)
{
    vi bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)), 23);
    return _mm256_castsi256_ps(vi_max(bits, _mm256_set1_epi32(0x00400000)));
}
LA_INLINE vi vi_add16(vi a, vi b) { return _mm256_add_epi16(a, b); }
LA_INLINE vi vi_shl16(vi a, int n) { return _mm256_slli_epi16(a, n); }
LA_INLINE vi vi_shr16(vi a, int n) { return _mm256_srli_epi16(a, n); }
LA_INLINE vi vi_sar16(vi a, int n) { return _mm256_srai_epi16(a, n); }
/* The two bf16 of each lane as fp32, and those at p in every lane. The mask stays in memory and a
 * pair is loaded twice: the tiles have no register left, and with intrinsics gcc keeps both and
 * spills. */
static const int32_t vi_upper[8] = {-65536, -65536, -65536, -65536, -65536, -65536, -65536, -65536};
LA_INLINE vf v_from_bf16(vi a, const int odd)
{
    vi r;
    if (!odd) {
        return v_bits(vi_shl(a, 16));
    }
    __asm__("vpand %2, %1, %0" : "=x"(r) : "x"(a), "m"(vi_upper));
    return v_bits(r);
}
LA_INLINE vf v_set1_bf16(const void *p, const int odd)
{
    const int32_t (*pair)[1] = (const int32_t (*)[1])p;
    vi r;
    if (odd) {
        __asm__("vpbroadcastd %1, %0\n\tvpand %2, %0, %0" : "=x"(r) : "m"(*pair), "m"(vi_upper));
    }
    else {
        __asm__("vpbroadcastd %1, %0\n\tvpslld $16, %0, %0" : "=x"(r) : "m"(*pair));
    }
    return v_bits(r);
}
/* One k of VL columns that hold fp16 in pairs of k: the first (odd 0) or the second. */
LA_INLINE vf v_pick_f16(const void *p, int odd)
{
    vi x = vi_loadu(p);
    x = vi_shr(odd ? x : vi_shl(x, 16), 16);
    x = _mm256_permute4x64_epi64(_mm256_packus_epi32(x, x), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(x));
}

LA_INLINE void vi_store_act(int8_t *p, const vi q[2])
{
    vi w = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0], q[1]), 0xd8);
    __m128i b = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    _mm_storeu_si128((__m128i *)p, _mm_shuffle_epi8(b, order));
}

#endif
