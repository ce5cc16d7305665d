/* pack_quant.c - see pack_quant.h.
 *
 * Loops are written for the compiler's vectors: integer maxima over bits, rounding by adding 1.5 * 2^23,
 * sums in four fixed lanes. The search for a group's scale tries steps that let the group's extreme fall on
 * or beyond the last code, takes the least-squares scale of each and keeps the best.
 */
#include "pack_quant.h"

#include <math.h>

/* Added to |x| < 2^22 it leaves x rounded to even in the low bits. */
static const float ROUND = 12582912.0f;
static const float F8_MAX = 448.0f;
/* A row whose largest weight is smaller has no inverse in fp32: F8_MAX / TINY is below the largest. */
static const float TINY = 2e-36f;

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float of_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static uint32_t peak_f32(const uint8_t *row, int n)
{
    int32_t best = 0; /* without the sign, bits order as the values do */
    for (int k = 0; k < n; k++) {
        int32_t u;
        memcpy(&u, row + (size_t)k * 4, sizeof u);
        u &= 0x7fffffff;
        best = u > best ? u : best;
    }
    return (uint32_t)best;
}

static int peak_half(const uint8_t *row, int n)
{
    int16_t best = 0;
    for (int k = 0; k < n; k++) {
        int16_t u;
        memcpy(&u, row + (size_t)k * 2, sizeof u);
        u = (int16_t)(u & 0x7fff);
        best = u > best ? u : best;
    }
    return best;
}

uint32_t la_quant_peak(la_dtype t, const uint8_t *row, int n)
{
    if (t == LA_F32) {
        return peak_f32(row, n);
    }
    uint16_t h = (uint16_t)peak_half(row, n);
    return t == LA_BF16 ? (uint32_t)h << 16 : bits_of(la_f16_to_f32(h));
}

float la_quant_row(la_pack pack, uint32_t peak, float *inverse)
{
    float largest = of_bits(peak), top = pack == LA_PACK_F8 ? F8_MAX : 127.0f;
    *inverse = 0.0f;
    if (largest < TINY) {
        return 0.0f;
    }
    *inverse = top / largest;
    return largest / top;
}

/* E4M3 of y, to nearest even as the kernel fp8_encode, without a branch, for |y| up to 448 and a rounding error. */
static int8_t code_f8(float y)
{
    uint32_t u = bits_of(y), sign = u >> 24 & 0x80u, a = u & 0x7fffffffu;
    uint32_t normal = ((a + 0x7ffffu + (a >> 20 & 1u)) >> 20) - (120u << 3);
    uint32_t small = bits_of(of_bits(a) + 16384.0f) - 0x46800000u; /* one ulp of 16384 is 2^-9 */
    uint32_t code = a < 0x3c800000u ? small : normal;
    return (int8_t)(uint8_t)(sign | code);
}

void la_quant_codes(la_pack pack, const float *x, int n, float inverse, int8_t *code)
{
    if (pack == LA_PACK_F8) {
        for (int k = 0; k < n; k++) {
            code[k] = code_f8(x[k] * inverse);
        }
        return;
    }
    for (int k = 0; k < n; k++) {
        float y = x[k] * inverse + ROUND; /* its low bits hold the code in two's complement */
        uint32_t u;
        memcpy(&u, &y, sizeof u);
        code[k] = (int8_t)(uint8_t)(u & 0xffu);
    }
}

/* ---- 4 and 6 bits ----------------------------------------------------------------------------- */

/* Four lanes, which every x86-64 and ARM processor has; the order of sums is theirs everywhere. */
enum { LANES = 4 };
typedef float lanes __attribute__((vector_size(16)));
typedef int32_t lane_bits __attribute__((vector_size(16)));

static inline lanes load_lanes(const float *x)
{
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline lanes pick(lane_bits mask, lanes a, lanes b)
{
    return (lanes)((mask & (lane_bits)a) | (~mask & (lane_bits)b));
}

static inline float lanes_sum(lanes s)
{
    return (s[0] + s[1]) + (s[2] + s[3]);
}

/* A grid: code = round(x * inverse), held in -half .. half - 1. */
typedef struct grid {
    float inverse, half;
} grid;

/* What least squares needs of x and its codes. */
typedef struct moments {
    float qq, xq;
} moments;

static inline float level(const grid *g, float x)
{
    float q = (x * g->inverse + ROUND) - ROUND;
    q = q > -g->half ? q : -g->half;
    return q < g->half - 1.0f ? q : g->half - 1.0f;
}

static moments measure(const grid *g, const float *x, int n)
{
    const lanes zero = {0}, inverse = zero + g->inverse, round = zero + ROUND;
    const lanes lo = zero - g->half, hi = zero + (g->half - 1.0f);
    lanes qq = zero, xq = zero;
    int k = 0;
    for (; k + LANES <= n; k += LANES) {
        lanes v = load_lanes(x + k), l = (v * inverse + round) - round;
        l = pick(l > lo, l, lo);
        l = pick(l < hi, l, hi);
        qq += l * l;
        xq += l * v;
    }
    for (int j = 0; k < n; k++, j++) {
        float l = level(g, x[k]);
        qq[j] += l * l;
        xq[j] += l * x[k];
    }
    return (moments){lanes_sum(qq), lanes_sum(xq)};
}

/* The value that lies farthest from 0. */
static float extreme_of(const float *x, int n)
{
    lanes zero = {0}, low = zero + x[0], high = low;
    int k = 0;
    for (; k + LANES <= n; k += LANES) {
        lanes v = load_lanes(x + k);
        low = pick(v < low, v, low);
        high = pick(v > high, v, high);
    }
    float lo = low[0], hi = high[0];
    for (int j = 1; j < LANES; j++) {
        lo = low[j] < lo ? low[j] : lo;
        hi = high[j] > hi ? high[j] : hi;
    }
    for (; k < n; k++) {
        lo = x[k] < lo ? x[k] : lo;
        hi = x[k] > hi ? x[k] : hi;
    }
    return hi > -lo ? hi : lo;
}

/* Where the extreme falls, in steps from zero: from inside the last code to well beyond it. Of 4 bits the
 * extreme of a small group is no outlier, that of a large one is: each leaves out the end that never wins
 * there. 6 bits have codes to spare for it. */
static const float REACH4[] = {7.6f, 8.0f, 8.4f, 8.9f, 9.5f, 10.3f, 11.3f};
static const float REACH6[] = {30.0f, 31.0f, 31.8f, 32.1f, 32.6f};

static float search_scale(int bits, const float *x, int n, float extreme)
{
    const float *reach = bits == 6 ? REACH6 : n > 64 ? REACH4 + 1 : REACH4;
    int tries = bits == 6 || n <= 64 ? 5 : 6;
    float best = 0.0f, scale = 0.0f;
    for (int i = 0; i < tries; i++) {
        grid g = {-reach[i] / extreme, (float)(1 << bits >> 1)}; /* it takes the odd code, -half */
        moments m = measure(&g, x, n);
        float gain = m.qq > 0.0f ? m.xq * m.xq / m.qq : 0.0f; /* squared error taken away */
        if (gain > best) {
            best = gain;
            scale = m.xq / m.qq;
        }
    }
    return scale;
}

static void nearest_codes(int bits, const float *x, int n, float scale, int8_t *code)
{
    grid g = {scale != 0.0f ? 1.0f / scale : 0.0f, (float)(1 << bits >> 1)};
    for (int k = 0; k < n; k++) {
        code[k] = (int8_t)level(&g, x[k]);
    }
}

/* The best scale of a group, before it is rounded to what is stored. */
static la_quant_result group_scale(int bits, const float *x, int n, float *scale)
{
    if (peak_f32((const uint8_t *)x, n) > LA_QUANT_FINITE) {
        return LA_QUANT_NOT_FINITE;
    }
    float extreme = extreme_of(x, n);
    *scale = fabsf(extreme) >= TINY ? search_scale(bits, x, n, extreme) : 0.0f;
    return LA_QUANT_DONE;
}

la_quant_result la_quant_group(int bits, const float *x, int n, int8_t *code, float *scale)
{
    la_quant_result r = group_scale(bits, x, n, scale);
    if (r != LA_QUANT_DONE) {
        return r;
    }
    *scale = la_f16_to_f32(la_f32_to_f16(*scale));
    nearest_codes(bits, x, n, *scale, code);
    return isfinite(*scale) ? LA_QUANT_DONE : LA_QUANT_TOO_LARGE;
}

la_quant_result la_quant_nest(int bits, int group, const float *x, int n, int8_t *code,
                              la_nested *to)
{
    float scale[LA_NEST / 16], largest = 0.0f;
    for (int k = 0, i = 0; k < n; k += group, i++) {
        la_quant_result r = group_scale(bits, x + k, n - k < group ? n - k : group, &scale[i]);
        if (r != LA_QUANT_DONE) {
            return r;
        }
        largest = fabsf(scale[i]) > largest ? fabsf(scale[i]) : largest;
    }
    uint16_t *outer = &to->outer[0];
    *outer = la_f32_to_f16(largest / 127.0f);
    if (la_f16_to_f32(*outer) * 127.0f < largest) {
        ++*outer; /* the next above: none of the inner numbers needs more than 127 */
    }
    float step = la_f16_to_f32(*outer), inverse = step != 0.0f ? 1.0f / step : 0.0f;
    if (!isfinite(step)) {
        return LA_QUANT_TOO_LARGE;
    }
    for (int k = 0, i = 0; k < n; k += group, i++) {
        to->scale[i] = (int8_t)lrintf(scale[i] * inverse);
        nearest_codes(bits, x + k, n - k < group ? n - k : group, step * (float)to->scale[i],
                      code + k);
    }
    return LA_QUANT_DONE;
}
