/* gemm_split.h - int5 and int6 codes, stored as nibbles and a plane of high bits, as words of 4 codes.
 *
 *   step   | 8 k of int4, 32 n | (int5: 8 k more) | 16 n of high bits |
 *   word n |  x: 8 nibbles     |                  | h: parts of n and n + 16, of the low and the high nibbles
 *
 * A part is shifted to bits 4 and 5 of its bytes, so a vector of h serves two (int5: four) vectors of
 * nibbles and each vector of codes takes a shift and two logical operations more than int4's.
 * Invariant: codes come out in the order of int4's nibbles, so tiles treat both alike. Included by
 * gemm.h, gemm_q.h, gemm_vnni.h and gemm_bf16.h.
 */
#ifndef LA_GEMM_SPLIT_H
#define LA_GEMM_SPLIT_H

#include "gemm_drive.h"

/* Bit `at` of each word of h at bit 4. */
LA_INLINE vi split_shift(vi h, const int at)
{
    return at <= 4 ? vi_shl(h, 4 - at) : vi_shr(h, at - 4);
}

/* Where the high bits of a step begin, those of vector c of a unit. */
LA_INLINE const uint8_t *split_high(const int bits, const uint8_t *step, const int c)
{
    return step + (bits == 5 ? 256 : 128) + c % (TILE_V / 2) * VL * 4;
}

/* Nibbles in front of the low ones of vector c in a byte of high bits; eight: which 8 k of the step. */
LA_INLINE int split_part(const int c, const int eight) { return 4 * eight + c / (TILE_V / 2) * 2; }

/* 8 k of vector c as bytes: k 0 4 1 5 and k 2 6 3 7. */
LA_INLINE void split_codes(const int bits, const uint8_t *step, const int c, const int eight,
                           vi *lo, vi *hi)
{
    const vi low = vi_set1(0x0f0f0f0f), high = vi_set1(bits == 5 ? 0x10101010 : 0x30303030);
    const int width = bits - 4, part = split_part(c, eight);
    vi x = vi_loadu(step + eight * 128 + c * VL * 4), h = vi_loadu(split_high(bits, step, c));
    *lo = vi_or_and(vi_and(x, low), split_shift(h, width * part), high);
    *hi = vi_or_and(vi_and(vi_shr(x, 4), low), split_shift(h, width * (part + 1)), high);
}

#endif
