/* dequant.h - one row of a checkpoint tensor, in pieces: floats, or codes with scales and offsets.
 *
 * Owns the reading of source formats (GGUF's published block layouts). Invariant: for grouped
 * sources every weight equals scale * code + offset, where scale and offset are exact in fp32 and
 * code is a signed integer. Called by pack.c alone; sizes were checked there.
 */
#ifndef LA_DEQUANT_H
#define LA_DEQUANT_H

#include "../llmaccel.h"

enum { LA_DEQUANT_SPAN = 256 }; /* k of a piece: a multiple of every block */

/* What a source type is made of. */
typedef struct la_source_type {
    int block; /* k of a block, 1 for floats and plain rows, whose last may be shorter; 0: no type */
    int block_bytes;
    int group; /* k that share a scale; 0 for floats, LA_WHOLE_ROW where a row has one */
    int bits;  /* 4, 5, 6, 8: of the narrowest pack that holds the codes */
    int has_offset;
    int centered;   /* codes are signed about 0 (-8..7 for 4 bits) */
    int scale_type; /* LA_F16 where scales and offsets are stored as fp16, LA_F16_I8 of K-quants,
                     * LA_E8M0 of powers of two */
    int pack;       /* la_pack of plain rows, of others LA_PACK_COUNT */
    int head;       /* bytes in front of each group of plain rows */
} la_source_type;

enum { LA_WHOLE_ROW = 1 << 30 };

la_source_type la_source_info(la_dtype t);
size_t la_source_row(const la_source_type *s, int cols); /* bytes */

/* Where codes go, with their groups' scales and offsets. */
typedef struct la_code_room {
    int8_t *code;          /* [n] */
    float *scale, *offset; /* [n / group] */
} la_code_room;

/* Weights k0 .. k0 + n of a row of a grouped type; k0 is a multiple of LA_DEQUANT_SPAN, n at most that and of
 * whole blocks. */
void la_dequant_codes(la_dtype t, const uint8_t *row, int k0, int n, la_code_room to);
/* The two numbers behind each scale and offset of LA_NEST k of a type whose scales are LA_F16_I8. */
typedef struct la_nested {
    uint16_t outer[2]; /* fp16, of scales and of offsets */
    int8_t scale[LA_NEST / 16];
    int8_t offset[LA_NEST / 16];
} la_nested;

void la_dequant_nested(la_dtype t, const uint8_t *row, int k0, la_nested *s);
/* The same as fp32 values, any type: fp32(scale * code) + offset, as the formats define it. */
void la_dequant_f32(la_dtype t, const uint8_t *row, int k0, int n, float *out);

#endif
