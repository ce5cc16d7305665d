/* pack.c - see pack.h. Columns are written one at a time, 256 k at a time, so that the part of the
 * unit being written stays in the first-level cache; nothing is transposed in between.
 */
#include "pack.h"

#include <limits.h>

#include "../base/base.h"
#include "dequant.h"
#include "pack_quant.h"

/* Row buffers of one column, and what the unit's columns are multiplied by to become codes. */
typedef struct la_piece {
    float value[LA_DEQUANT_SPAN];
    uint16_t half[LA_DEQUANT_SPAN + 2];
    int8_t code[LA_DEQUANT_SPAN];
    float scale[LA_DEQUANT_SPAN / 16];
    float offset[LA_DEQUANT_SPAN / 16];
    float inverse[LA_UNIT]; /* of packs with row_scale */
    la_nested nested;       /* LA_F16_I8: instead of scale and offset */
} la_piece;

/* The rows of a unit. */
typedef struct la_columns {
    const uint8_t *row[LA_UNIT]; /* NULL for padding */
    la_dtype dtype[LA_UNIT];
    int part[LA_UNIT];
} la_columns;

static la_status check_parts(const la_source *parts, int n_parts)
{
    if (!parts || n_parts < 1) {
        return la_fail(LA_ERR_ARGUMENT, "pack: a weight needs at least one part");
    }
    for (int i = 0; i < n_parts; i++) {
        if (la_source_info(parts[i].dtype).block == 0) {
            return la_fail(LA_ERR_ARGUMENT, "pack: part %d has unknown type %d", i,
                           (int)parts[i].dtype);
        }
    }
    return LA_OK;
}

/* Bits of a code, 0 of E4M3 and float packs; and the pack with as many. */
static int pack_bits(int pack)
{
    switch (pack) {
    case LA_PACK_I4: return 4;
    case LA_PACK_I5: return 5;
    case LA_PACK_I6: return 6;
    default: return pack == LA_PACK_I8 ? 8 : la_pack_table(pack) != NULL ? 4 : 0;
    }
}

static int pack_of_bits(int bits)
{
    return bits == 4 ? LA_PACK_I4 : bits == 5 ? LA_PACK_I5 : bits == 6 ? LA_PACK_I6 : LA_PACK_I8;
}

/* The zero of a pack depends on its having offsets: then codes about 0 get one. */
static int zero_moves(int pack)
{
    return pack == LA_PACK_I4 || pack == LA_PACK_I5;
}

/* Plain rows and numbers of tables keep their codes; parts of different kinds become F32. */
static la_format coded_format(const la_source *parts, int n_parts)
{
    const la_source_type s = la_source_info(parts[0].dtype);
    const int whole = s.group == LA_WHOLE_ROW;
    la_format f = {(uint8_t)s.pack, (uint8_t)(whole ? LA_F32 : s.scale_type), (uint8_t)s.has_offset,
                   (uint8_t)whole, whole ? LA_NEST : s.group};
    for (int i = 1; i < n_parts; i++) {
        if (parts[i].dtype != parts[0].dtype) {
            f = (la_format){LA_PACK_F32, 0, 0, 0, 0};
        }
    }
    return f;
}

static la_format grouped_format(const la_source *parts, int n_parts)
{
    la_format f = {LA_PACK_I4, LA_F16, 0, 0, INT_MAX};
    int centered = 0, nested = 1, bits = 4;
    for (int i = 0; i < n_parts; i++) {
        const la_source_type s = la_source_info(parts[i].dtype);
        bits = s.bits > bits ? s.bits : bits;
        f.scale_type = s.scale_type == LA_F16 ? f.scale_type : (uint8_t)LA_F32;
        nested = nested && s.scale_type == LA_F16_I8 && parts[i].dtype == parts[0].dtype;
        f.has_offset = (uint8_t)(f.has_offset | s.has_offset);
        f.group = s.group < f.group ? s.group : f.group;
        centered |= s.centered;
    }
    if (nested) {
        f.scale_type = LA_F16_I8;
    }
    f.pack = (uint8_t)pack_of_bits(bits);
    if (zero_moves(f.pack) && f.has_offset && centered) {
        f.scale_type = LA_F32; /* -8 or -16 * scale becomes an offset: fp16 might overflow */
    }
    return f;
}

static la_format quant_format(la_quant quant)
{
    switch (quant) {
    case LA_QUANT_INT8: return (la_format){LA_PACK_I8, LA_F32, 0, 1, 256};
    case LA_QUANT_FP8: return (la_format){LA_PACK_F8, LA_F32, 0, 1, 256};
    case LA_QUANT_W6G16: return (la_format){LA_PACK_I6, LA_F16_I8, 0, 0, 16};
    case LA_QUANT_W4G32: return (la_format){LA_PACK_I4, LA_F16, 0, 0, 32};
    default: return (la_format){LA_PACK_I4, LA_F16, 0, 0, 128};
    }
}

la_status la_pack_format(la_dtype weights, la_quant quant, const la_source *parts, int n_parts,
                         la_format *out)
{
    la_status st = check_parts(parts, n_parts);
    if (st != LA_OK) {
        return st;
    }
    if ((int)quant < 0 || quant >= LA_QUANT_COUNT) {
        return la_fail(LA_ERR_ARGUMENT, "pack: quantization %d is unknown", (int)quant);
    }
    int grouped = 0, coded = 0, same = 1;
    for (int i = 0; i < n_parts; i++) {
        const la_source_type s = la_source_info(parts[i].dtype);
        grouped += s.group != 0;
        coded += s.pack != LA_PACK_COUNT;
        same &= parts[i].dtype == parts[0].dtype;
    }
    la_format f = {LA_PACK_F32, 0, 0, 0, 0};
    la_dtype target = weights == LA_DTYPE_COUNT ? (same ? parts[0].dtype : LA_F32) : weights;
    if (weights != LA_F32 && weights != LA_F16 && weights != LA_BF16 && weights != LA_DTYPE_COUNT) {
        return la_fail(LA_ERR_ARGUMENT, "pack: weights of type %d; expected F32, F16, BF16 or keep",
                       (int)weights);
    }
    if (grouped == 0 && quant != LA_QUANT_KEEP) {
        f = quant_format(quant);
    }
    else if (coded == n_parts && weights != LA_F32) {
        f = coded_format(parts, n_parts);
    }
    else if (coded == 0 && grouped == n_parts && weights != LA_F32) {
        f = grouped_format(parts, n_parts);
    }
    else if (grouped == 0 && target != LA_F32) {
        f.pack = target == LA_F16 ? LA_PACK_F16 : LA_PACK_BF16;
    }
    *out = f;
    return LA_OK;
}

la_status la_source_bytes(la_dtype t, int rows, int cols, size_t *bytes)
{
    const la_source_type s = la_source_info(t);
    if (s.block == 0 || rows < 1 || cols < 1) {
        return la_fail(LA_ERR_ARGUMENT, "tensor of type %d with %d rows and %d columns", (int)t,
                       rows, cols);
    }
    if (cols % s.block != 0) {
        return la_fail(LA_ERR_SHAPE, "%d columns are no multiple of the type's block of %d", cols,
                       s.block);
    }
    if (!la_size_mul(la_source_row(&s, cols), (size_t)rows, bytes)) {
        return la_fail(LA_ERR_SHAPE, "tensor of %d rows and %d columns is too large", rows, cols);
    }
    return LA_OK;
}

/* Can f hold every weight of a part: exactly, with the one rounding of a float target, or quantized? */
static int format_holds(la_format f, const la_source_type *s)
{
    if (f.pack == LA_PACK_F32) {
        return f.group == 0;
    }
    if (f.group != 0 && s->group == 0) {
        return f.has_offset ? 0
               : f.row_scale
                   ? f.scale_type == LA_F32 && (f.pack == LA_PACK_I8 || f.pack == LA_PACK_F8)
               : f.pack == LA_PACK_I6 ? f.scale_type == LA_F16_I8
                                      : f.pack == LA_PACK_I4 && f.scale_type == LA_F16;
    }
    if (f.pack == LA_PACK_F16 || f.pack == LA_PACK_BF16) {
        return f.group == 0 && s->group == 0;
    }
    if (s->pack != LA_PACK_COUNT) {
        return f.pack == s->pack && f.has_offset == s->has_offset &&
               (f.row_scale ? s->group == LA_WHOLE_ROW && f.scale_type == LA_F32
                            : s->group == f.group && f.scale_type == s->scale_type);
    }
    if (f.scale_type == LA_F16_I8) {
        return s->scale_type == LA_F16_I8 && f.group == s->group && f.has_offset == s->has_offset &&
               pack_bits(f.pack) == s->bits && !f.row_scale;
    }
    return s->group != 0 && pack_bits(f.pack) >= s->bits && !f.row_scale &&
           (f.group == 16 || f.group == 32) && s->group % f.group == 0 &&
           (f.has_offset || !s->has_offset) &&
           (f.scale_type == LA_F32 || (f.scale_type == LA_F16 && s->scale_type == LA_F16));
}

static la_status check_part(la_format f, const la_source *parts, int i, int paired)
{
    const la_source *p = &parts[i];
    size_t bytes;
    la_status st = la_source_bytes(p->dtype, p->rows, p->cols, &bytes);
    if (st != LA_OK) {
        return st;
    }
    if (p->cols != parts[0].cols || (paired && p->rows != parts[0].rows)) {
        return la_fail(LA_ERR_SHAPE, "pack: part %d is [%d, %d], part 0 is [%d, %d]", i, p->rows,
                       p->cols, parts[0].rows, parts[0].cols);
    }
    if (p->data && p->bytes != bytes) {
        return la_fail(LA_ERR_SHAPE, "pack: part %d [%d, %d] has %zu bytes, expected %zu", i,
                       p->rows, p->cols, p->bytes, bytes);
    }
    const la_source_type s = la_source_info(p->dtype);
    if (!format_holds(f, &s)) {
        return la_fail(LA_ERR_ARGUMENT, "pack: the format cannot hold part %d of type %d", i,
                       (int)p->dtype);
    }
    return LA_OK;
}

la_status la_pack_plan(la_format f, const la_source *parts, int n_parts, int paired, la_weight *out)
{
    la_status st = check_parts(parts, n_parts);
    if (st != LA_OK) {
        return st;
    }
    if (paired && n_parts != 2) {
        return la_fail(LA_ERR_ARGUMENT, "pack: gate and up are two parts, got %d", n_parts);
    }
    int64_t rows = 0;
    for (int i = 0; i < n_parts; i++) {
        st = check_part(f, parts, i, paired);
        if (st != LA_OK) {
            return st;
        }
        rows += parts[i].rows;
    }
    int columns = paired ? LA_UNIT / 2 : LA_UNIT;
    int64_t units = ((paired ? parts[0].rows : rows) + columns - 1) / columns;
    size_t bytes, unit = la_format_unit(f, parts[0].cols);
    if (rows > INT_MAX || !la_size_mul(unit, (size_t)units, &bytes)) {
        return la_fail(LA_ERR_SHAPE, "pack: %lld rows of %d columns are too large", (long long)rows,
                       parts[0].cols);
    }
    *out = (la_weight){f, (int)rows, parts[0].cols, (int)units, unit, NULL};
    return LA_OK;
}

/* Row `row` of the parts put one after another, or of one part. */
static void set_column(la_columns *c, int j, const la_source *parts, int n_parts, int64_t row)
{
    c->row[j] = NULL;
    for (int i = 0; i < n_parts; i++) {
        const la_source *p = &parts[i];
        if (row < p->rows) {
            const la_source_type s = la_source_info(p->dtype);
            c->row[j] = (const uint8_t *)p->data + (size_t)row * la_source_row(&s, p->cols);
            c->dtype[j] = p->dtype;
            c->part[j] = i;
            return;
        }
        row -= p->rows;
    }
}

static void find_columns(const la_source *parts, int n_parts, int paired, int u, la_columns *c)
{
    for (int j = 0; j < LA_UNIT; j++) {
        if (paired) {
            set_column(c, j, parts + j / 16, 1, (int64_t)u * 16 + j % 16);
            c->part[j] = j / 16;
        }
        else {
            set_column(c, j, parts, n_parts, (int64_t)u * LA_UNIT + j);
        }
    }
}

static void put_u32(uint8_t *p, uint32_t x)
{
    memcpy(p, &x, sizeof x);
}

/* Values k0 .. k0 + n of column j. */
typedef struct la_column_span {
    int j, k0, n;
} la_column_span;

/* They enter an F32 unit. */
static void pack_f32(const la_columns *c, la_column_span of, la_piece *t, uint8_t *unit)
{
    int j = of.j, k0 = of.k0, n = of.n;
    memset(t->value, 0, sizeof t->value);
    if (c->row[j]) {
        la_dequant_f32(c->dtype[j], c->row[j], k0, n, t->value);
    }
    uint8_t *out = unit + (size_t)k0 * 128 + (size_t)j * 4;
    for (int k = 0; k < n; k++) {
        memcpy(out + (size_t)k * 128, &t->value[k], 4);
    }
}

/* The same into an F16 or BF16 unit. Values of the target's own type keep their bits. */
static void pack_half(const la_columns *c, la_column_span of, la_piece *t, int bf16, uint8_t *unit)
{
    int j = of.j, k0 = of.k0, n = of.n;
    t->half[n] = 0; /* the second of an odd pair */
    if (!c->row[j]) {
        memset(t->half, 0, sizeof t->half);
    }
    else if (c->dtype[j] == (bf16 ? LA_BF16 : LA_F16)) {
        memcpy(t->half, c->row[j] + (size_t)k0 * 2, (size_t)n * 2);
    }
    else {
        la_dequant_f32(c->dtype[j], c->row[j], k0, n, t->value);
        for (int k = 0; k < n; k++) {
            t->half[k] = bf16 ? la_f32_to_bf16(t->value[k]) : la_f32_to_f16(t->value[k]);
        }
    }
    uint8_t *out = unit + (size_t)(k0 / 2) * 128 + (size_t)j * 4;
    for (int k = 0; k < n; k += 2, out += 128) {
        memcpy(out, &t->half[k], 4);
    }
}

/* Bytes 0, 4, 1, 5 of 8; of x >> 16 bytes 2, 6, 3, 7. */
static uint32_t four_of(uint64_t x)
{
    uint32_t lo = (uint32_t)x, hi = (uint32_t)(x >> 32);
    return (lo & 0xff) | (hi & 0xff) << 8 | (lo & 0xff00) << 8 | (hi & 0xff00) << 16;
}

/* 8 codes (the first in the low byte) as the words of two I8 steps: k 0 4 1 5 and 2 6 3 7. */
static void put_i8(uint8_t *out, uint64_t x)
{
    put_u32(out, four_of(x));
    put_u32(out + 128, four_of(x >> 16));
}

/* 8 codes below 16 as one word: nibble p holds k 2 * (p % 4) + p / 4. */
static void put_i4(uint8_t *out, uint64_t x)
{
    uint64_t y = x | x >> 12; /* bytes 0, 4, 1, 5: k 0 2, 4 6, 1 3, 5 7 */
    put_u32(out, (uint32_t)((y & 0xff) | (y >> 24 & 0xff00) | (y << 8 & 0xff0000) |
                            (y >> 16 & 0xff000000)));
}

/* What 8 codes have above 4 bits, `bits` each, into the word that two columns share and that the first
 * of them begins. part: how many nibbles of a byte are in front. */
static void put_high(uint8_t *out, uint64_t x, int bits, int part)
{
    uint32_t word = 0;
    x = x >> 4 & 0x0101010101010101u * ((1u << bits) - 1);
    if (part != 0) {
        memcpy(&word, out, sizeof word);
    }
    put_u32(out, word | (four_of(x) | four_of(x >> 16) << bits) << (bits * part));
}

/* 8 codes of column j, the first at k of the group whose codes begin at `codes`. */
static void put_codes(la_format f, uint8_t *codes, int j, int k, uint64_t x)
{
    int span = la_format_step(f), eight = k % span / 8;
    uint8_t *step = codes + (size_t)(k / span) * la_format_codes(f, span);
    uint8_t *out = step + (size_t)(eight * 128 + j * 4);
    if (f.pack == LA_PACK_I8 || f.pack == LA_PACK_F8) {
        put_i8(out, x);
        return;
    }
    put_i4(out, x & 0x0f0f0f0f0f0f0f0fu);
    if (f.pack == LA_PACK_I5 || f.pack == LA_PACK_I6) {
        uint8_t *high = step + (size_t)(span / 8 * 128 + j % 16 * 4);
        put_high(high, x, pack_bits(f.pack) - 4, 4 * eight + j / 16 * 2);
    }
}

static void put_scale(la_format f, uint8_t *head, int i, int j, float x)
{
    if (f.scale_type == LA_F16) {
        uint16_t h = la_f32_to_f16(x);
        memcpy(head + (size_t)(i * LA_UNIT + j) * 2, &h, sizeof h);
    }
    else {
        memcpy(head + (size_t)(i * LA_UNIT + j) * 4, &x, sizeof x);
    }
}

/* The scales and offsets of column j for LA_NEST k from k0. */
static void put_nested(la_format f, const la_nested *s, int j, int k0, uint8_t *unit)
{
    for (int i = 0; i <= f.has_offset; i++) {
        const int8_t *inner = i == 0 ? s->scale : s->offset;
        memcpy(unit + la_format_outer(f, i, k0) + (size_t)j * 2, &s->outer[i], 2);
        for (int k = 0; k < LA_NEST; k += f.group) {
            unit[la_format_inner(f, i, k0 + k) + (size_t)j] = (uint8_t)inner[k / f.group];
        }
    }
}

/* LA_E8M0: the exponents of a column for LA_NEST k, of which of.n are there, by t's scales of `own` k.
 * Returns own, or 0 where one is not a power of two that a byte holds: 2^-127 .. 2^127. */
static int put_powers(la_format f, const la_piece *t, int own, la_column_span of, uint8_t *unit)
{
    for (int k = 0; k < LA_NEST; k += f.group) {
        const uint32_t least = 0x00400000; /* fp32's spelling of 2^-127, which has the exponent 0 */
        uint32_t bits = least;
        if (k < of.n) {
            memcpy(&bits, &t->scale[k / own], sizeof bits);
        }
        uint32_t exponent = bits >> 23;
        if (bits != least && (exponent << 23 != bits || exponent == 0 || exponent >= 255)) {
            return 0;
        }
        unit[la_format_inner(f, 0, of.k0 + k) + (size_t)of.j] = (uint8_t)exponent;
    }
    return own;
}

/* t->value [n] as signed codes with scales as f stores them. */
static la_quant_result quantize(la_format f, int j, int n, la_piece *t)
{
    const int bits = pack_bits(f.pack);
    la_quant_result r = LA_QUANT_DONE;
    if (f.row_scale) {
        la_quant_codes(f.pack, t->value, n, t->inverse[j], t->code);
        return r;
    }
    if (f.scale_type == LA_F16_I8) {
        return la_quant_nest(bits, f.group, t->value, n, t->code, &t->nested);
    }
    for (int k = 0; k < n && r == LA_QUANT_DONE; k += f.group) {
        r = la_quant_group(bits, t->value + k, n - k < f.group ? n - k : f.group, t->code + k,
                           &t->scale[k / f.group]);
    }
    return r;
}

/* Codes k0 .. k0 + n of column j into t, as they are stored, padded to whole 8; scales and offsets per
 * `own` k, which is returned. 0: a value is not finite, -1: one is too large. */
static int read_codes(la_format f, const la_columns *c, int j, int k0, int n, la_piece *t)
{
    static const la_source_type none;
    const la_source_type s = c->row[j] ? la_source_info(c->dtype[j]) : none;
    const la_code_room to = {t->code, t->scale, t->offset};
    int own = f.group, bias = la_pack_table(f.pack) != NULL ? 0 : 1 << pack_bits(f.pack) >> 1;
    memset(t->code, 0, sizeof t->code);
    memset(&t->nested, 0, sizeof t->nested);
    if (c->row[j] == NULL) {
        memset(t->scale, 0, sizeof t->scale);
        memset(t->offset, 0, sizeof t->offset);
    }
    else if (s.group != 0) {
        la_dequant_codes(c->dtype[j], c->row[j], k0, n, to);
        if (f.scale_type == LA_F16_I8) {
            la_dequant_nested(c->dtype[j], c->row[j], k0, &t->nested);
        }
        own = s.group;
        bias = zero_moves(f.pack) && !s.centered ? 0 : bias;
        for (int i = 0; zero_moves(f.pack) && s.centered && f.has_offset && i < n / own; i++) {
            t->offset[i] = (float)-bias * t->scale[i]; /* the zero of 8 or 16 becomes an offset */
        }
    }
    else {
        la_dequant_f32(c->dtype[j], c->row[j], k0, n, t->value);
        la_quant_result r = quantize(f, j, n, t);
        if (r != LA_QUANT_DONE) {
            return r == LA_QUANT_NOT_FINITE ? 0 : -1;
        }
    }
    for (int k = 0; s.head != 0 && f.pack == LA_PACK_F8 && k < n; k++) {
        own = (t->code[k] & 0x7f) == 0x7f ? 0 : own; /* NaN, about which levels disagree */
    }
    for (int k = 0; bias != 0 && k < LA_DEQUANT_SPAN; k++) {
        t->code[k] = (int8_t)(uint8_t)(t->code[k] + bias);
    }
    return own;
}

/* The same into unit u of w. Returns what read_codes does. */
static int pack_codes(const la_weight *w, int u, const la_columns *c, int j, int k0, la_piece *t)
{
    const la_format f = w->f;
    int n = w->K - k0 < LA_DEQUANT_SPAN ? w->K - k0 : LA_DEQUANT_SPAN;
    int own = read_codes(f, c, j, k0, n, t);
    size_t header = la_format_header(f), stride = header + la_format_codes(f, f.group);
    uint8_t *unit = w->data + (size_t)u * w->unit_bytes;
    uint8_t *group = unit + la_format_unit_header(f, w->K) + (size_t)(k0 / f.group) * stride;
    if (f.scale_type == LA_F16_I8) {
        put_nested(f, &t->nested, j, k0, unit);
    }
    if (f.scale_type == LA_E8M0 && own > 0) {
        int there = c->row[j] != NULL ? n : 0; /* columns beyond the matrix have no scales */
        own = put_powers(f, t, own, (la_column_span){j, k0, there}, unit);
    }
    for (int k = 0; own > 0 && k < n; k += f.group, group += stride) {
        if (header != 0) {
            put_scale(f, group, 0, j, t->scale[k / own]);
        }
        if (f.has_offset && header != 0) {
            put_scale(f, group, 1, j, t->offset[k / own]);
        }
        for (int i = 0; i < f.group && k + i < n; i += 8) {
            uint64_t x;
            memcpy(&x, t->code + k + i, sizeof x);
            put_codes(f, group + header, j, i, x);
        }
    }
    return own;
}

/* The scale of every row at the head of the unit. Returns 0, or 1 + the part that holds a value that is
 * not finite. */
static int pack_row_scales(la_format f, const la_columns *c, int K, la_piece *t, uint8_t *unit)
{
    const la_code_room to = {t->code, t->scale, t->offset};
    for (int j = 0; j < LA_UNIT; j++) {
        if (c->row[j] && la_source_info(c->dtype[j]).head != 0) {
            la_dequant_codes(c->dtype[j], c->row[j], 0, 1, to);
            put_scale(f, unit, 0, j, t->scale[0]);
            if (f.has_offset) {
                put_scale(f, unit, 1, j, t->offset[0]);
            }
            continue;
        }
        uint32_t peak = c->row[j] ? la_quant_peak(c->dtype[j], c->row[j], K) : 0;
        if (peak > LA_QUANT_FINITE) {
            return 1 + c->part[j];
        }
        put_scale(f, unit, 0, j, la_quant_row(f.pack, peak, &t->inverse[j]));
        if (f.has_offset) {
            put_scale(f, unit, 1, j, 0.0f);
        }
    }
    return 0;
}

/* Rows are read in spans of one length whatever K is. */
size_t la_pack_scratch(void)
{
    return sizeof(la_piece);
}

int la_pack_unit(const la_weight *w, const la_source *parts, int n_parts, int paired, int u,
                 void *scratch)
{
    la_columns c;
    uint8_t *unit = w->data + (size_t)u * w->unit_bytes;
    find_columns(parts, n_parts, paired, u, &c);
    int bad = w->f.row_scale ? pack_row_scales(w->f, &c, w->K, scratch, unit) : 0;
    for (int k0 = 0; bad == 0 && k0 < w->K; k0 += LA_DEQUANT_SPAN) {
        int n = w->K - k0 < LA_DEQUANT_SPAN ? w->K - k0 : LA_DEQUANT_SPAN;
        for (int j = 0; bad == 0 && j < LA_UNIT; j++) {
            la_column_span of = {j, k0, n};
            switch (w->f.pack) {
            case LA_PACK_F32: pack_f32(&c, of, scratch, unit); break;
            case LA_PACK_F16:
            case LA_PACK_BF16: pack_half(&c, of, scratch, w->f.pack == LA_PACK_BF16, unit); break;
            default: {
                int own = pack_codes(w, u, &c, j, k0, scratch);
                bad = own > 0 ? 0 : own == 0 ? 1 + c.part[j] : -1 - c.part[j];
            }
            }
        }
    }
    return bad;
}

la_status la_pack_failed(int bad, int n_parts)
{
    return la_fail(LA_ERR_SHAPE, "tensor %d of %d holds a value that is %s", bad < 0 ? -bad : bad,
                   n_parts, bad < 0 ? "too large for fp16 scales" : "not finite");
}

void la_pack_vector(const la_source *src, float *out)
{
    for (int k0 = 0; k0 < src->cols; k0 += LA_DEQUANT_SPAN) {
        int n = src->cols - k0 < LA_DEQUANT_SPAN ? src->cols - k0 : LA_DEQUANT_SPAN;
        la_dequant_f32(src->dtype, src->data, k0, n, out + k0);
    }
}
