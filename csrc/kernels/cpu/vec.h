/* vec.h - the vector of one level: VL fp32 lanes, chosen by the isa_*.c file that includes it.
 *
 * Owns the names shared by the kernel headers: vf (VL floats) and vi (VL int32) and the operations
 * on them, prefix v_ and vi_. A level's header defines every operation, so a kernel written over
 * vec.h compiles at each level. Loads and stores without u want natural alignment. max and min
 * return the second operand if either is NaN, as the instructions do. Included by vec_math.h,
 * act.h, fp8.h, probe.h and gemm_drive.h.
 */
#ifndef LA_VEC_H
#define LA_VEC_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../../base/dtype.h"

#define LA_INLINE static inline __attribute__((always_inline, unused))
#define LA_UNROLL _Pragma("GCC unroll 32")

#if defined(LA_VEC_AVX512)
#include "vec_avx512.h"
#elif defined(LA_VEC_AVX2)
#include "vec_avx2.h"
#else
#include "vec_scalar.h"
#endif

/* Vectors in 16 lanes: statistics keep 16 fixed lanes at every level. */
#define LA_LANES16 (16 / VL)

/* Sum of 16 lanes as the tree (i, i+8), (i, i+4), (i, i+2), (0, 1): the same bits at every level. */
LA_INLINE float v_sum16(const vf x[LA_LANES16])
{
#if defined(LA_VEC_AVX512) || defined(LA_VEC_AVX2)
#if defined(LA_VEC_AVX512)
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x[0]), _mm512_extractf32x8_ps(x[0], 1));
#else
    __m256 h = _mm256_add_ps(x[0], x[1]);
#endif
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
#else
    float s[16];
    memcpy(s, x, sizeof s);
    for (int w = 8; w > 0; w >>= 1) {
        for (int i = 0; i < w; i++) {
            s[i] += s[i + w];
        }
    }
    return s[0];
#endif
}

/* Largest of 16 lanes, in the same tree; a NaN may hide or win. */
LA_INLINE float v_max16(const vf x[LA_LANES16])
{
#if defined(LA_VEC_AVX512) || defined(LA_VEC_AVX2)
#if defined(LA_VEC_AVX512)
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(x[0]), _mm512_extractf32x8_ps(x[0], 1));
#else
    __m256 h = _mm256_max_ps(x[0], x[1]);
#endif
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
#else
    float s[16];
    memcpy(s, x, sizeof s);
    for (int w = 8; w > 0; w >>= 1) {
        for (int i = 0; i < w; i++) {
            s[i] = s[i] > s[i + w] ? s[i] : s[i + w];
        }
    }
    return s[0];
#endif
}

#endif
