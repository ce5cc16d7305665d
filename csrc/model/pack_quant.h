/* pack_quant.h - float weights to codes with scales, a piece of one row at a time.
 *
 * Owns the rounding of quantize-at-load. Invariant: a code is the nearest one under the scale that is stored
 * beside it, so what the products read is what these functions say; no result depends on other rows,
 * threads or instruction sets. Called by pack.c alone.
 */
#ifndef LA_PACK_QUANT_H
#define LA_PACK_QUANT_H

#include "dequant.h"

/* Bits of the largest |x| of a row of any float type as fp32; above LA_QUANT_FINITE: the row holds an
 * infinity or a NaN. */
uint32_t la_quant_peak(la_dtype t, const uint8_t *row, int n);
enum { LA_QUANT_FINITE = 0x7f7fffff };

/* Scale of a row whose largest |x| has these bits, and what its weights are multiplied by. 0 and 0 where
 * the row is as good as zero. */
float la_quant_row(la_pack pack, uint32_t peak, float *inverse);
/* code[n] = round(x * inverse): I8 signed -127..127, F8 the bits of an E4M3 value. */
void la_quant_codes(la_pack pack, const float *x, int n, float inverse, int8_t *code);

/* One group of an I4 or I6 pack, n <= 256: scale (fp16's value) and codes of least squared error, -8..7
 * or -32..31. LA_QUANT_TOO_LARGE: for fp16 scales. */
typedef enum la_quant_result {
    LA_QUANT_DONE,
    LA_QUANT_NOT_FINITE,
    LA_QUANT_TOO_LARGE
} la_quant_result;
la_quant_result la_quant_group(int bits, const float *x, int n, int8_t *code, float *scale);
/* The same for n <= LA_NEST k whose scales are LA_F16_I8; of `to` outer[0] and scale [n / group] are set. */
la_quant_result la_quant_nest(int bits, int group, const float *x, int n, int8_t *code,
                              la_nested *to);

#endif
