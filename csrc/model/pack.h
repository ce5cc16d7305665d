/* pack.h - checkpoint rows to packed units and their sizes.
 *
 * Owns the byte layout of a packed weight (drawn in kernels/kernels.h) and the decoding of source
 * formats into codes, scales and offsets. Invariant: packing is exact for grouped sources (every
 * value w = scale * (q - zero) + offset equals the source's own), rounds once for float targets, and
 * rounds to the nearest code where a float source is quantized. Called by model.c, backend_cpu.c and
 * python/py_kernels*.c.
 */
#ifndef LA_PACK_H
#define LA_PACK_H

#include "../llmaccel.h"

/* A weight matrix [N, K] in units. gate/up pairs are interleaved 16 + 16 columns inside a unit. */
typedef struct la_weight {
    la_format f;
    int N; /* output rows as the caller sees them (paired: both together) */
    int K;
    int n_units;
    size_t unit_bytes; /* multiple of 64 */
    uint8_t *data;     /* n_units * unit_bytes, 64-byte aligned; NULL while only sized */
} la_weight;

/* Format for the parts under `weights` and `quant` (see la_recipe): float parts are quantized as `quant`
 * says; grouped sources of different widths take the widest and the smallest group, float mixed with grouped
 * becomes F32, both exact. */
la_status la_pack_format(la_dtype weights, la_quant quant, const la_source *parts, int n_parts,
                         la_format *out);
/* Unit size and the like; checks rows, cols and byte counts of each part (data may be NULL).
 * paired: parts[0] and parts[1] are gate and up of equal shape. */
la_status la_pack_plan(la_format f, const la_source *parts, int n_parts, int paired,
                       la_weight *out);
/* Bytes of `rows` x `cols` of a source type; error if cols is no multiple of its block. */
la_status la_source_bytes(la_dtype t, int rows, int cols, size_t *bytes);
/* Fills unit u of w (w->data set). scratch: la_pack_scratch bytes. Returns 0, or of a part that cannot be
 * quantized 1 + its index, because a value is not finite, or minus that, because it is too large for fp16
 * scales; all else the plan checked. */
int la_pack_unit(const la_weight *w, const la_source *parts, int n_parts, int paired, int u,
                 void *scratch);
size_t la_pack_scratch(void);
/* The error that stands for what la_pack_unit returned, not 0. */
la_status la_pack_failed(int bad, int n_parts);
/* A vector of any float type as fp32 [n]. */
void la_pack_vector(const la_source *src, float *out);

#endif
