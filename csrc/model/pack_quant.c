/* pack_quant.c - see pack_quant.h.
 *
 * Loops are written for the compiler's vectors: integer maxima over bits, rounding by adding 1.5 * 2^23,
 * sums in four fixed lanes. The search for a 4-bit scale tries steps that let the group's extreme fall on
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

/* As la_f32_to_f8, without a branch, for |y| up to 448 and a rounding error. */
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

/* ---- 4 bits ---------------------------------------------------------------------------------- */

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

/* A grid: code = round(x * inverse + shift), held in lo .. hi. */
typedef struct grid {
    float inverse, shift, lo, hi;
} grid;

/* What least squares needs of x and its codes. */
typedef struct moments {
    float q, qq, xq;
} moments;

static inline float level(const grid *g, float x)
{
    float q = (x * g->inverse + g->shift + ROUND) - ROUND;
    q = q > g->lo ? q : g->lo;
    return q < g->hi ? q : g->hi;
}

static moments measure(const grid *g, const float *x, int n)
{
    const lanes zero = {0}, inverse = zero + g->inverse, lo = zero + g->lo, hi = zero + g->hi;
    const lanes round = zero + ROUND, shift = zero + g->shift;
    lanes q = zero, qq = zero, xq = zero;
    int k = 0;
    for (; k + LANES <= n; k += LANES) {
        lanes v = load_lanes(x + k), l = (v * inverse + shift + round) - round;
        l = pick(l > lo, l, lo);
        l = pick(l < hi, l, hi);
        q += l;
        qq += l * l;
        xq += l * v;
    }
    for (int j = 0; k < n; k++, j++) {
        float l = level(g, x[k]);
        q[j] += l;
        qq[j] += l * l;
        xq[j] += l * x[k];
    }
    return (moments){lanes_sum(q), lanes_sum(qq), lanes_sum(xq)};
}

/* Smallest, largest and sum. */
static void span_of(const float *x, int n, float *lo, float *hi, float *sum)
{
    lanes zero = {0}, low = zero + x[0], high = low, total = zero;
    int k = 0;
    for (; k + LANES <= n; k += LANES) {
        lanes v = load_lanes(x + k);
        low = pick(v < low, v, low);
        high = pick(v > high, v, high);
        total += v;
    }
    *sum = lanes_sum(total);
    *lo = low[0];
    *hi = high[0];
    for (int j = 1; j < LANES; j++) {
        *lo = low[j] < *lo ? low[j] : *lo;
        *hi = high[j] > *hi ? high[j] : *hi;
    }
    for (; k < n; k++) {
        *lo = x[k] < *lo ? x[k] : *lo;
        *hi = x[k] > *hi ? x[k] : *hi;
        *sum += x[k];
    }
}

/* Where the extreme falls, in steps from zero: from inside the last code to well beyond it. The extreme of
 * a small group is no outlier, that of a large one is: each leaves out the end that never wins there. */
static const float REACH[] = {7.6f, 8.0f, 8.4f, 8.9f, 9.5f, 10.3f, 11.3f};

static int first_reach(int n)
{
    return n > 64 ? 1 : 0;
}

static int end_reach(int n)
{
    return n > 64 ? (int)(sizeof REACH / sizeof *REACH) : 5;
}

static float search_centered(const float *x, int n, float extreme)
{
    float best = 0.0f, scale = 0.0f;
    for (int i = first_reach(n); i < end_reach(n); i++) {
        grid g = {-REACH[i] / extreme, 0.0f, -8.0f, 7.0f}; /* the extreme takes the odd code, -8 */
        moments m = measure(&g, x, n);
        float gain = m.qq > 0.0f ? m.xq * m.xq / m.qq : 0.0f; /* squared error taken away */
        if (gain > best) {
            best = gain;
            scale = m.xq / m.qq;
        }
    }
    return scale;
}

static float search_offset(const float *x, int n, const float *span, float *offset)
{
    float best = -1.0f, scale = 0.0f, lo = span[0], hi = span[1], sum = span[2];
    *offset = lo;
    for (int i = first_reach(n); i < end_reach(n) && hi > lo; i++) {
        float steps = REACH[i] * 2.0f - 1.0f; /* lo and hi lie this far apart */
        grid g = {steps / (hi - lo), 0.0f, 0.0f, 15.0f};
        g.shift = -lo * g.inverse - 0.5f * (steps - 15.0f);
        moments m = measure(&g, x, n);
        float count = (float)n, cov = m.xq - sum * (m.q / count), var = m.qq - m.q * (m.q / count);
        float gain = var > 0.0f ? cov * cov / var : -1.0f;
        if (gain > best) {
            best = gain;
            scale = cov / var;
            *offset = (sum - scale * m.q) / count;
        }
    }
    return scale;
}

la_quant_result la_quant_group(int has_offset, const float *x, int n, int8_t *code, float *scale,
                               float *offset)
{
    float span[3]; /* smallest, largest, sum */
    if (peak_f32((const uint8_t *)x, n) > LA_QUANT_FINITE) {
        return LA_QUANT_NOT_FINITE;
    }
    span_of(x, n, &span[0], &span[1], &span[2]);
    float extreme = span[1] > -span[0] ? span[1] : span[0], s = 0.0f, o = 0.0f;
    if (has_offset) {
        s = search_offset(x, n, span, &o);
    }
    else if (fabsf(extreme) >= TINY) {
        s = search_centered(x, n, extreme);
    }
    *scale = la_f16_to_f32(la_f32_to_f16(s));
    *offset = la_f16_to_f32(la_f32_to_f16(o));
    float inverse = *scale != 0.0f ? 1.0f / *scale : 0.0f;
    grid g = {inverse, -*offset * inverse, has_offset ? 0.0f : -8.0f, has_offset ? 15.0f : 7.0f};
    for (int k = 0; k < n; k++) {
        code[k] = (int8_t)level(&g, x[k]);
    }
    return isfinite(*scale) && isfinite(*offset) ? LA_QUANT_DONE : LA_QUANT_TOO_LARGE;
}
