/* la_ptx_convert.h - number formats in registers: bf16, fp16, E4M3, 4-bit codes; fast functions.
 *
 * Owns the wrappers of cvt, lop3, prmt, packed arithmetic and the approximate functions. Invariant: the
 * first of a pair lies in the lower half of the word. Conversions round to nearest even; to E4M3 they
 * saturate at 448. Included by la_ptx.h.
 */
#ifndef LA_PTX_CONVERT_H
#define LA_PTX_CONVERT_H

#include "la_kernel.h"

/* ---- bits ---- */

/* Any function of three words, bit by bit: TABLE = f(0xF0, 0xCC, 0xAA). */
template <int TABLE> LA_DEV uint32_t la_lop3(uint32_t x, uint32_t y, uint32_t z)
{
    uint32_t r;
    LA_PTX(r = la_emu_lop3(x, y, z, TABLE),
           asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(x), "r"(y), "r"(z), "n"(TABLE)));
    return r;
}

/* Four bytes out of the eight of (y, x), chosen by the four nibbles of `pick`; bit 3 copies the sign. */
LA_DEV uint32_t la_prmt(uint32_t x, uint32_t y, uint32_t pick)
{
    uint32_t r;
    LA_PTX(r = la_emu_prmt(x, y, pick),
           asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(pick)));
    return r;
}

LA_DEV uint32_t la_bits(float x)
{
    return LA_PTX(la_emu_bits(x), __float_as_uint(x));
}

LA_DEV float la_float(uint32_t bits)
{
    return LA_PTX(la_emu_f32(bits), __uint_as_float(bits));
}

/* ---- bf16 and fp16 ---- */

/* Two floats as a pair of bf16. */
LA_DEV uint32_t la_bf16x2(float lo, float hi)
{
    uint32_t r;
    LA_PTX(r = la_emu_bf16x2(lo, hi),
           asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)));
    return r;
}

LA_DEV float la_bf16_lo(uint32_t pair)
{
    return la_float(pair << 16);
}

LA_DEV float la_bf16_hi(uint32_t pair)
{
    return la_float(pair & 0xffff0000u);
}

/* Two floats as a pair of fp16. */
LA_DEV uint32_t la_f16x2(float lo, float hi)
{
    uint32_t r;
    LA_PTX(r = la_emu_f16x2(lo, hi),
           asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)));
    return r;
}

LA_DEV float la_f16_lo(uint32_t pair)
{
    float r;
    LA_PTX(
        r = la_emu_f16(pair & 0xffff),
        asm("{.reg .b16 l, h;\n mov.b32 {l, h}, %1;\n cvt.f32.f16 %0, l;}" : "=f"(r) : "r"(pair)));
    return r;
}

LA_DEV float la_f16_hi(uint32_t pair)
{
    float r;
    LA_PTX(
        r = la_emu_f16(pair >> 16),
        asm("{.reg .b16 l, h;\n mov.b32 {l, h}, %1;\n cvt.f32.f16 %0, h;}" : "=f"(r) : "r"(pair)));
    return r;
}

/* x * y + z on pairs of bf16, rounded once. */
LA_DEV uint32_t la_fma_bf16x2(uint32_t x, uint32_t y, uint32_t z)
{
    uint32_t r;
    LA_PTX(r = la_emu_fma_bf16x2(x, y, z),
           asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(z)));
    return r;
}

/* x * y + z on pairs of fp16, rounded once. */
LA_DEV uint32_t la_fma_f16x2(uint32_t x, uint32_t y, uint32_t z)
{
    uint32_t r;
    LA_PTX(r = la_emu_fma_f16x2(x, y, z),
           asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(z)));
    return r;
}

/* ---- E4M3 (sm_89) ---- */

/* Two floats as two E4M3 codes in the lower half word, saturated. */
LA_DEV uint32_t la_e4m3x2(float lo, float hi)
{
    uint16_t r;
    LA_PTX(r = la_emu_e4m3x2(lo, hi),
           asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo)));
    return r;
}

/* Two E4M3 codes of the lower half word as a pair of fp16, exactly. */
LA_DEV uint32_t la_e4m3x2_f16x2(uint32_t codes)
{
    uint32_t r;
    LA_PTX(r = la_emu_e4m3x2_f16x2(codes),
           asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((uint16_t)codes)));
    return r;
}

/* ---- 4-bit codes ---- */

/* Nibbles `pair` and `pair + 4` of a word (pair 0..3) as bf16 of 128 + code: the code is or-ed under the
 * exponent of 128, where a unit of the last place is 1. */
template <int PAIR> LA_DEV uint32_t la_i4_bf16x2(uint32_t word)
{
    return la_lop3<(0xf0 & 0xcc) | 0xaa>(word >> (4 * PAIR), 0x000f000fu, 0x43004300u);
}

/* The same as fp16 of 1024 + code. */
template <int PAIR> LA_DEV uint32_t la_i4_f16x2(uint32_t word)
{
    return la_lop3<(0xf0 & 0xcc) | 0xaa>(word >> (4 * PAIR), 0x000f000fu, 0x64006400u);
}

/* ---- floats ---- */

/* x * y + z, rounded once. */
LA_DEV float la_fma(float x, float y, float z)
{
    return LA_PTX(la_emu_fma(x, y, z), __fmaf_rn(x, y, z));
}

/* 2^x, within 2 units of the last place; subnormal results are zero. */
LA_DEV float la_exp2(float x)
{
    float r;
    LA_PTX(r = la_emu_exp2(x), asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)));
    return r;
}

/* log2(x), 1 / x, 1 / sqrt(x), approximated like la_exp2. */
LA_DEV float la_log2(float x)
{
    float r;
    LA_PTX(r = la_emu_log2(x), asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)));
    return r;
}

LA_DEV float la_rcp(float x)
{
    float r;
    LA_PTX(r = la_emu_rcp(x), asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)));
    return r;
}

LA_DEV float la_rsqrt(float x)
{
    float r;
    LA_PTX(r = la_emu_rsqrt(x), asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)));
    return r;
}

#endif
