/* dequant.c - see dequant.h.
 *
 * A block function turns one block into codes, scales and offsets. K-quant scales are the product
 * of an fp16 and a small integer: exact in fp32.
 */
#include "dequant.h"

typedef void (*la_block_fn)(const uint8_t *b, int8_t *code, float *scale, float *offset);
typedef void (*la_nested_fn)(const uint8_t *b, la_nested *s);

static float read_f16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return la_f16_to_f32(h);
}

/* 32 codes of q4_0, q4_1: low nibbles are k 0..15, high ones 16..31. */
static void nibbles(const uint8_t *q, int bias, int8_t *code)
{
    for (int i = 0; i < 16; i++) {
        code[i] = (int8_t)((q[i] & 15) - bias);
        code[i + 16] = (int8_t)((q[i] >> 4) - bias);
    }
}

static void block_q4_0(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    *scale = read_f16(b);
    *offset = 0.0f;
    nibbles(b + 2, 8, code);
}

static void block_q4_1(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    *scale = read_f16(b);
    *offset = read_f16(b + 2);
    nibbles(b + 4, 0, code);
}

/* The fifth bits, bit k of 32; eight at a time: a byte in every byte, bit i kept in byte i, made
 * 16. */
static void fifth_bits(const uint8_t *h, int bias, int8_t *code)
{
    for (int i = 0; i < 4; i++) {
        uint64_t x, bits = h[i] * 0x0101010101010101u & 0x8040201008040201u;
        memcpy(&x, code + 8 * i, sizeof x);
        x |= ((bits + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
        memcpy(code + 8 * i, &x, sizeof x);
    }
    for (int k = 0; k < 32; k++) {
        code[k] = (int8_t)(code[k] - bias);
    }
}

static void block_q5_0(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    *scale = read_f16(b);
    *offset = 0.0f;
    nibbles(b + 6, 0, code);
    fifth_bits(b + 2, 16, code);
}

static void block_q5_1(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    *scale = read_f16(b);
    *offset = read_f16(b + 2);
    nibbles(b + 8, 0, code);
    fifth_bits(b + 4, 0, code);
}

/* Numbers of a table, 0..15, in the order of nibbles. */
static void block_iq4_nl(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    *scale = read_f16(b);
    *offset = 0.0f;
    nibbles(b + 2, 0, code);
}

static void block_mxfp4(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    *scale = la_e8m0_to_f32(b[0]);
    *offset = 0.0f;
    nibbles(b + 1, 0, code);
}

static void block_q8_0(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    *scale = read_f16(b);
    *offset = 0.0f;
    memcpy(code, b + 2, 32);
}

/* 64 bytes hold 2-bit codes of 256 k: byte 32 * h + i, bits 2 * j are k 128 * h + 32 * j + i. */
static void two_bits(const uint8_t *q, int8_t *code)
{
    for (int h = 0; h < 2; h++) {
        for (int j = 0; j < 4; j++) {
            for (int i = 0; i < 32; i++) {
                code[128 * h + 32 * j + i] = (int8_t)((q[32 * h + i] >> (2 * j)) & 3);
            }
        }
    }
}

/* The fp16 numbers of a block at p; minima are taken away, so theirs changes its sign. */
static void read_outer(const uint8_t *p, int has_offset, la_nested *s)
{
    memcpy(&s->outer[0], p, sizeof s->outer[0]);
    s->outer[1] = 0;
    if (has_offset) {
        memcpy(&s->outer[1], p + 2, sizeof s->outer[1]);
        s->outer[1] ^= 0x8000u;
    }
}

/* The numbers of n groups multiplied out. */
static void open_nested(const la_nested *s, int n, float *scale, float *offset)
{
    float d = la_f16_to_f32(s->outer[0]), dmin = la_f16_to_f32(s->outer[1]);
    for (int g = 0; g < n; g++) {
        scale[g] = d * (float)s->scale[g];
        offset[g] = dmin * (float)s->offset[g];
    }
}

static void nested_q2_k(const uint8_t *b, la_nested *s)
{
    read_outer(b + 80, 1, s);
    for (int g = 0; g < 16; g++) {
        s->scale[g] = (int8_t)(b[g] & 15);
        s->offset[g] = (int8_t)(b[g] >> 4);
    }
}

static void block_q2_k(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    la_nested s;
    nested_q2_k(b, &s);
    open_nested(&s, 16, scale, offset);
    two_bits(b + 16, code);
}

static void nested_q3_k(const uint8_t *b, la_nested *s)
{
    const uint8_t *x = b + 96;
    read_outer(b + 108, 0, s);
    for (int g = 0; g < 16; g++) {
        int low = g < 8 ? x[g] & 15 : x[g - 8] >> 4;
        int high = (x[8 + g % 4] >> (2 * (g / 4))) & 3;
        s->scale[g] = (int8_t)((low | high << 4) - 32);
        s->offset[g] = 0;
    }
}

static void block_q3_k(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    la_nested s;
    nested_q3_k(b, &s);
    open_nested(&s, 16, scale, offset);
    two_bits(b + 32, code);
    for (int j = 0; j < 8; j++) {
        for (int i = 0; i < 32; i++) { /* a clear bit takes 4 away */
            code[32 * j + i] = (int8_t)(code[32 * j + i] - 4 + ((b[i] >> j) & 1) * 4);
        }
    }
}

/* The 6-bit scales and minima of q4_K and q5_K: 8 each in 12 bytes. */
static void nested_q4_k(const uint8_t *b, la_nested *s)
{
    const uint8_t *x = b + 4;
    read_outer(b, 1, s);
    for (int g = 0; g < 8; g++) {
        int sc = g < 4 ? x[g] & 63 : (x[g + 4] & 15) | (x[g - 4] >> 6) << 4;
        int m = g < 4 ? x[g + 4] & 63 : x[g + 4] >> 4 | (x[g] >> 6) << 4;
        s->scale[g] = (int8_t)sc;
        s->offset[g] = (int8_t)m;
    }
}

/* 128 bytes: byte 32 * j + i is k 64 * j + i (low nibble) and 64 * j + 32 + i (high). */
static void k_nibbles(const uint8_t *q, int8_t *code)
{
    for (int j = 0; j < 4; j++) {
        for (int i = 0; i < 32; i++) {
            code[64 * j + i] = (int8_t)(q[32 * j + i] & 15);
            code[64 * j + 32 + i] = (int8_t)(q[32 * j + i] >> 4);
        }
    }
}

static void block_q4_k(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    la_nested s;
    nested_q4_k(b, &s);
    open_nested(&s, 8, scale, offset);
    k_nibbles(b + 16, code);
}

static void block_q5_k(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    la_nested s;
    nested_q4_k(b, &s);
    open_nested(&s, 8, scale, offset);
    k_nibbles(b + 48, code);
    for (int j = 0; j < 8; j++) {
        for (int i = 0; i < 32; i++) {
            code[32 * j + i] = (int8_t)(code[32 * j + i] + ((b[16 + i] >> j) & 1) * 16);
        }
    }
}

/* 6-bit scales about 32: 4 low bits in bytes, 2 high ones of all eight in a word. */
static void nested_iq4_xs(const uint8_t *b, la_nested *s)
{
    read_outer(b, 0, s);
    for (int g = 0; g < 8; g++) {
        int low = b[4 + g / 2] >> (4 * (g % 2)) & 15, high = b[2 + g / 4] >> (2 * (g % 4)) & 3;
        s->scale[g] = (int8_t)((low | high << 4) - 32);
        s->offset[g] = 0;
    }
}

static void block_iq4_xs(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    la_nested s;
    nested_iq4_xs(b, &s);
    open_nested(&s, 8, scale, offset);
    for (int g = 0; g < 8; g++) {
        nibbles(b + 8 + 16 * g, 0, code + 32 * g);
    }
}

static void nested_q6_k(const uint8_t *b, la_nested *s)
{
    read_outer(b + 208, 0, s);
    memcpy(s->scale, b + 192, sizeof s->scale);
    memset(s->offset, 0, sizeof s->offset);
}

static void block_q6_k(const uint8_t *b, int8_t *code, float *scale, float *offset)
{
    const uint8_t *low = b, *high = b + 128;
    la_nested s;
    nested_q6_k(b, &s);
    open_nested(&s, 16, scale, offset);
    for (int h = 0; h < 2; h++, low += 64, high += 32, code += 128) {
        for (int i = 0; i < 32; i++) {
            code[i] = (int8_t)(((low[i] & 15) | (high[i] & 3) << 4) - 32);
            code[i + 32] = (int8_t)(((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4) - 32);
            code[i + 64] = (int8_t)((low[i] >> 4 | (high[i] >> 4 & 3) << 4) - 32);
            code[i + 96] = (int8_t)((low[i + 32] >> 4 | (high[i] >> 6) << 4) - 32);
        }
    }
}

/* clang-format off */
static const la_source_type types[LA_DTYPE_COUNT] = {
    /*            block bytes group bits offset centered scales pack head */
    [LA_F32] = {1, 4, 0, 32, 0, 0, LA_F32, LA_PACK_COUNT, 0},
    [LA_F16] = {1, 2, 0, 16, 0, 0, LA_F32, LA_PACK_COUNT, 0},
    [LA_BF16] = {1, 2, 0, 16, 0, 0, LA_F32, LA_PACK_COUNT, 0},
    [LA_Q4_0] = {32, 18, 32, 4, 0, 1, LA_F16, LA_PACK_COUNT, 0},
    [LA_Q4_1] = {32, 20, 32, 4, 1, 0, LA_F16, LA_PACK_COUNT, 0},
    [LA_Q5_0] = {32, 22, 32, 5, 0, 1, LA_F16, LA_PACK_COUNT, 0},
    [LA_Q5_1] = {32, 24, 32, 5, 1, 0, LA_F16, LA_PACK_COUNT, 0},
    [LA_Q8_0] = {32, 34, 32, 8, 0, 1, LA_F16, LA_PACK_COUNT, 0},
    [LA_Q2_K] = {256, 84, 16, 4, 1, 0, LA_F16_I8, LA_PACK_COUNT, 0},
    [LA_Q3_K] = {256, 110, 16, 4, 0, 1, LA_F16_I8, LA_PACK_COUNT, 0},
    [LA_Q4_K] = {256, 144, 32, 4, 1, 0, LA_F16_I8, LA_PACK_COUNT, 0},
    [LA_Q5_K] = {256, 176, 32, 5, 1, 0, LA_F16_I8, LA_PACK_COUNT, 0},
    [LA_Q6_K] = {256, 210, 16, 6, 0, 1, LA_F16_I8, LA_PACK_COUNT, 0},
    [LA_IQ4_NL] = {32, 18, 32, 4, 0, 0, LA_F16, LA_PACK_IQ4, 0},
    [LA_IQ4_XS] = {256, 136, 32, 4, 0, 0, LA_F16_I8, LA_PACK_IQ4, 0},
    [LA_MXFP4] = {32, 17, 32, 4, 0, 0, LA_E8M0, LA_PACK_E2M1, 0},
};

static const la_block_fn blocks[LA_DTYPE_COUNT] = {
    [LA_Q4_0] = block_q4_0, [LA_Q4_1] = block_q4_1, [LA_Q5_0] = block_q5_0,
    [LA_Q5_1] = block_q5_1, [LA_Q8_0] = block_q8_0, [LA_Q2_K] = block_q2_k,
    [LA_Q3_K] = block_q3_k, [LA_Q4_K] = block_q4_k, [LA_Q5_K] = block_q5_k,
    [LA_Q6_K] = block_q6_k, [LA_IQ4_NL] = block_iq4_nl, [LA_IQ4_XS] = block_iq4_xs,
    [LA_MXFP4] = block_mxfp4,
};

static const la_nested_fn nested[LA_DTYPE_COUNT] = {
    [LA_Q2_K] = nested_q2_k, [LA_Q3_K] = nested_q3_k, [LA_Q4_K] = nested_q4_k,
    [LA_Q5_K] = nested_q4_k, [LA_Q6_K] = nested_q6_k, [LA_IQ4_XS] = nested_iq4_xs,
};
/* clang-format on */

static la_source_type plain_info(la_plain p)
{
    static const int packs[LA_CODES_COUNT] = {LA_PACK_I4,  LA_PACK_I8,   LA_PACK_F8,  LA_PACK_NF4,
                                              LA_PACK_FP4, LA_PACK_E2M1, LA_PACK_IQ4, LA_PACK_E2M1};
    int powers = p.codes == LA_CODES_MX4 && p.group <= LA_NEST / 2;
    la_source_type s = {1,
                        1,
                        p.group != 0 ? p.group : LA_WHOLE_ROW,
                        8,
                        p.has_offset,
                        !p.has_offset,
                        powers   ? LA_E8M0
                        : p.half ? LA_F16
                                 : LA_F32,
                        packs[p.codes],
                        p.has_offset ? 8 : 4};
    s.bits = p.codes == LA_CODES_I8 || p.codes == LA_CODES_F8 ? 8 : 4;
    return s;
}

la_source_type la_source_info(la_dtype t)
{
    static const la_source_type none;
    la_plain p = la_plain_of((int)t);
    if (p.codes < LA_CODES_COUNT) {
        return plain_info(p);
    }
    return (int)t >= 0 && t < LA_DTYPE_COUNT ? types[t] : none;
}

size_t la_source_row(const la_source_type *s, int cols)
{
    size_t groups = s->head == 0 ? 0 : ((size_t)cols + (size_t)s->group - 1) / (size_t)s->group;
    return groups * (size_t)s->head + (size_t)(cols / s->block) * (size_t)s->block_bytes;
}

/* The block of plain rows that holds k. */
static const uint8_t *plain_block(const la_source_type *s, const uint8_t *row, int k)
{
    return row + (size_t)(k / s->group) * ((size_t)s->head + (size_t)s->group);
}

/* E4M3 codes keep their bits. */
static void plain_codes(const la_source_type *s, const uint8_t *row, int k0, int n, la_code_room to)
{
    const int zero = s->pack == LA_PACK_I8 ? 128 : s->pack == LA_PACK_I4 && s->centered ? 8 : 0;
    const int mask = s->bits == 4 ? 15 : 255;
    for (int k = k0, i = 0; k < k0 + n; i++) {
        int in = k % s->group, left = s->group - in, here = k0 + n - k < left ? k0 + n - k : left;
        const uint8_t *b = plain_block(s, row, k), *from = b + s->head + in;
        memcpy(&to.scale[i], b, sizeof to.scale[i]);
        to.offset[i] = 0.0f;
        if (s->has_offset) {
            memcpy(&to.offset[i], b + sizeof to.scale[i], sizeof to.offset[i]);
        }
        for (int j = 0; j < here; j++) {
            to.code[k - k0 + j] = (int8_t)((from[j] & mask) - zero);
        }
        k += here;
    }
}

void la_dequant_codes(la_dtype t, const uint8_t *row, int k0, int n, la_code_room to)
{
    const la_source_type s = la_source_info(t);
    if (s.head != 0) {
        plain_codes(&s, row, k0, n, to);
        return;
    }
    const uint8_t *b = row + (size_t)(k0 / s.block) * (size_t)s.block_bytes;
    for (int k = 0; k < n; k += s.block, b += s.block_bytes) {
        blocks[t](b, to.code + k, to.scale + k / s.group, to.offset + k / s.group);
    }
}

void la_dequant_nested(la_dtype t, const uint8_t *row, int k0, la_nested *s)
{
    nested[t](row + (size_t)(k0 / LA_NEST) * (size_t)types[t].block_bytes, s);
}

/* As la_f16_to_f32, without a branch: the exponent is moved by a product, which is exact for subnormals
 * too. */
static void f16_values(const uint8_t *from, int n, float *out)
{
    for (int k = 0; k < n; k++) {
        uint16_t h;
        memcpy(&h, from + (size_t)k * 2, sizeof h);
        uint32_t a = (uint32_t)(h & 0x7fffu) << 13, u;
        float x;
        memcpy(&x, &a, sizeof x);
        x *= 0x1p112f;
        memcpy(&u, &x, sizeof u);
        u = a >= 0x0f800000u ? a | 0x7f800000u : u;
        u |= (uint32_t)(h & 0x8000u) << 16;
        memcpy(&out[k], &u, sizeof u);
    }
}

/* What a code stands for before its scale. NF4 is as published here: fp32, not what packs keep of it. */
static float code_value(const la_source_type *s, int8_t code)
{
    static const float nf4[16] = {
        -1.0f,
        -0.6961928009986877f,
        -0.5250730514526367f,
        -0.39491748809814453f,
        -0.28444138169288635f,
        -0.18477343022823334f,
        -0.09105003625154495f,
        0.0f,
        0.07958029955625534f,
        0.16093020141124725f,
        0.24611230194568634f,
        0.33791524171829224f,
        0.44070982933044434f,
        0.5626170039176941f,
        0.7229568362236023f,
        1.0f,
    };
    if (s->pack == LA_PACK_F8) {
        return la_f8_to_f32((uint8_t)code);
    }
    if (s->pack == LA_PACK_NF4) {
        return nf4[code & 15];
    }
    const uint16_t *table = la_pack_table(s->pack);
    return table != NULL ? la_bf16_to_f32(table[code & 15]) : (float)code;
}

void la_dequant_f32(la_dtype t, const uint8_t *row, int k0, int n, float *out)
{
    const la_source_type s = la_source_info(t);
    if (t == LA_F32) {
        memcpy(out, row + (size_t)k0 * 4, (size_t)n * 4);
        return;
    }
    if (s.group == 0) {
        const uint8_t *from = row + (size_t)k0 * 2;
        if (t == LA_F16) {
            f16_values(from, n, out);
        }
        for (int k = 0; k < n && t == LA_BF16; k++) {
            uint16_t h;
            memcpy(&h, from + (size_t)k * 2, sizeof h);
            out[k] = la_bf16_to_f32(h);
        }
        return;
    }
    int8_t code[LA_DEQUANT_SPAN];
    float scale[LA_DEQUANT_SPAN / 16], offset[LA_DEQUANT_SPAN / 16];
    la_dequant_codes(t, row, k0, n, (la_code_room){code, scale, offset});
    for (int k = 0; k < n; k++) {
        out[k] = scale[k / s.group] * code_value(&s, code[k]) + offset[k / s.group];
    }
}
