/* emu_number.cpp - conversions between number formats and the bit operations of kernels, exactly.
 *
 * Owns bf16, fp16 and E4M3 on the host, written from the formats' definitions with integers, apart from
 * tests/reference*.py and csrc, so that each checks the others. Implements the number half of la_emu_ptx.h.
 * Invariant: results are those of round to nearest, ties to even; NaN gives the format's quiet NaN.
 */
#include "emu_machine.h"

/* Rounds |x| to a format of `digits` bits behind the point and a least exponent, as a multiple of its last
 * place: returns exponent and significand. */
static double round_to(double x, int digits, int least)
{
    if (x == 0 || !isfinite(x)) {
        return x;
    }
    int e;
    frexp(x, &e);
    e = e - 1 < least ? least : e - 1;
    return ldexp(nearbyint(ldexp(x, digits - e)), e - digits);
}

/* The code of a number that a format with these fields holds exactly, without its sign. */
static uint32_t encode(double x, int digits, int bias)
{
    int e;
    frexp(x, &e);
    e = e - 1;
    if (x == 0) {
        return 0;
    }
    if (e < 1 - bias) {
        return uint32_t(ldexp(x, digits + bias - 1));
    }
    return uint32_t(e + bias) << digits | (uint32_t(ldexp(x, digits - e)) & ((1u << digits) - 1));
}

static uint32_t bf16_code(double x)
{
    if (x != x) {
        return 0x7fff;
    }
    double r = round_to(fabs(x), 7, -126);
    uint32_t sign = signbit(x) ? 0x8000 : 0;
    return sign | (r >= ldexp(1, 128) ? 0x7f80 : encode(r, 7, 127));
}

static uint32_t f16_code(double x)
{
    if (x != x) {
        return 0x7fff;
    }
    double r = round_to(fabs(x), 10, -14);
    uint32_t sign = signbit(x) ? 0x8000 : 0;
    return sign | (r >= 65536 ? 0x7c00 : encode(r, 10, 15));
}

static uint32_t e4m3_code(double x)
{
    if (x != x) {
        return 0x7f;
    }
    double r = round_to(fabs(x), 3, -6);
    uint32_t sign = signbit(x) ? 0x80 : 0;
    return sign | (r > 448 ? 0x7e : encode(r, 3, 7));
}

static float decode(uint32_t code, int exponent_bits, int digits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    int e = int(code >> digits) & ((1 << exponent_bits) - 1);
    int m = int(code) & ((1 << digits) - 1);
    float x = e ? ldexpf(float(m + (1 << digits)), e - bias - digits)
                : ldexpf(float(m), 1 - bias - digits);
    return code >> (exponent_bits + digits) & 1 ? -x : x;
}

float la_emu_f16(uint32_t bits)
{
    if ((bits & 0x7c00) == 0x7c00) {
        return bits & 0x3ff ? NAN : bits & 0x8000 ? -INFINITY : INFINITY;
    }
    return decode(bits, 5, 10);
}

float la_emu_e4m3(uint32_t code)
{
    return (code & 0x7f) == 0x7f ? NAN : decode(code, 4, 3);
}

uint32_t la_emu_bf16x2(float lo, float hi)
{
    return bf16_code(lo) | bf16_code(hi) << 16;
}

uint32_t la_emu_f16x2(float lo, float hi)
{
    return f16_code(lo) | f16_code(hi) << 16;
}

uint16_t la_emu_e4m3x2(float lo, float hi)
{
    return uint16_t(e4m3_code(lo) | e4m3_code(hi) << 8);
}

uint32_t la_emu_e4m3x2_f16x2(uint32_t codes)
{
    return la_emu_f16x2(la_emu_e4m3(codes & 0xff), la_emu_e4m3(codes >> 8 & 0xff));
}

/* In double a product of two such numbers is exact. The sum is rounded twice, which shows only where the
 * larger term is an exact tie of the format and the other at least 2^40 smaller. */
uint32_t la_emu_fma_bf16x2(uint32_t x, uint32_t y, uint32_t z)
{
    uint32_t r = 0;
    for (int s = 0; s < 32; s += 16) {
        double p = double(la_emu_bf16(x >> s & 0xffff)) * la_emu_bf16(y >> s & 0xffff);
        r |= bf16_code(p + la_emu_bf16(z >> s & 0xffff)) << s;
    }
    return r;
}

uint32_t la_emu_fma_f16x2(uint32_t x, uint32_t y, uint32_t z)
{
    uint32_t r = 0;
    for (int s = 0; s < 32; s += 16) {
        double p = double(la_emu_f16(x >> s & 0xffff)) * la_emu_f16(y >> s & 0xffff);
        r |= f16_code(p + la_emu_f16(z >> s & 0xffff)) << s;
    }
    return r;
}

uint32_t la_emu_lop3(uint32_t x, uint32_t y, uint32_t z, int table)
{
    uint32_t r = 0;
    for (int i = 0; i < 32; i++) {
        uint32_t at = (x >> i & 1) << 2 | (y >> i & 1) << 1 | (z >> i & 1);
        r |= uint32_t(table >> at & 1) << i;
    }
    return r;
}

uint32_t la_emu_prmt(uint32_t x, uint32_t y, uint32_t pick)
{
    uint64_t all = uint64_t(y) << 32 | x;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t p = pick >> (4 * i) & 15;
        uint32_t byte = uint32_t(all >> (8 * (p & 7))) & 0xff;
        byte = p & 8 ? (byte & 0x80 ? 0xff : 0) : byte;
        r |= byte << (8 * i);
    }
    return r;
}
