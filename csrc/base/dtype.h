/* dtype.h - number formats: what a checkpoint stores, what a packed weight holds, what rows are converted to.
 *
 * Owns the enumerations and the scalar conversions every other room shares. Invariant: a la_format
 * plus (N, K) decides every byte offset of a packed weight; nothing else does. Used by kernels
 * (which see no other base header), by model/pack.c and by the Python layer.
 */
#ifndef LA_DTYPE_H
#define LA_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Element types of checkpoint tensors. Block types carry GGUF's published layouts. */
typedef enum la_dtype {
    LA_F32 = 0,
    LA_F16,
    LA_BF16,
    LA_Q4_0,
    LA_Q4_1,
    LA_Q5_0,
    LA_Q5_1,
    LA_Q8_0,
    LA_Q2_K,
    LA_Q3_K,
    LA_Q4_K,
    LA_Q5_K,
    LA_Q6_K,
    LA_IQ4_NL,
    LA_IQ4_XS,
    LA_MXFP4,
    LA_DTYPE_COUNT
} la_dtype;

/* Types from here on: rows of plain codes, which models/quantized makes of the packings that checkpoints
 * have. A row is blocks of `group` bytes, a code each, behind their fp32 scale and, if there is one, fp32
 * offset; the last block may be shorter. Codes: I4 0..15, I8 0..255, F8 as in packs, w = scale * (q - zero)
 * + offset with the zero of 8 or 128 that packs have without offsets (I4: 0 with them). */
enum { LA_PLAIN = 256 };

typedef enum la_codes {
    LA_CODES_I4 = 0,
    LA_CODES_I8,
    LA_CODES_F8,
    LA_CODES_NF4, /* these five: 0..15, numbers of values in a table, without offsets */
    LA_CODES_FP4,
    LA_CODES_E2M1,
    LA_CODES_IQ4,
    LA_CODES_MX4, /* E2M1 under powers of two */
    LA_CODES_COUNT
} la_codes;

typedef struct la_plain {
    uint8_t codes; /* la_codes */
    uint8_t has_offset;
    uint8_t half;    /* scales are fp16 numbers, and offsets */
    uint8_t ordered; /* k are sorted: la_source.order says which of the row is where */
    int group;       /* 16, 32, .., 256; 0: one block a row */
} la_plain;

static inline int la_plain_type(la_plain p)
{
    int log = 0;
    for (int group = p.group; group > 8; group /= 2) {
        log++;
    }
    return LA_PLAIN + (p.codes | p.has_offset << 4 | p.half << 5 | p.ordered << 6 | log << 7);
}

/* Of any value; codes is LA_CODES_COUNT where it stands for no plain rows. */
static inline la_plain la_plain_of(int type)
{
    unsigned t = (unsigned)type - LA_PLAIN, log = t >> 7;
    if (type < LA_PLAIN || (t & 15) >= LA_CODES_COUNT || log > 5) {
        return (la_plain){LA_CODES_COUNT, 0, 0, 0, 0};
    }
    return (la_plain){(uint8_t)(t & 15), (uint8_t)(t >> 4 & 1), (uint8_t)(t >> 5 & 1),
                      (uint8_t)(t >> 6 & 1), log == 0 ? 0 : 8 << log};
}

/* What a packed weight stores. Groups: w[n][k] = scale * (q - zero) + offset, per 32-column unit and
 * group of `group` consecutive k. I4: q in 0..15, zero 8 when has_offset is 0, else 0. I5: q in
 * 0..31, zero 16 or 0 likewise. I6: q in 0..63, zero 32 always. I8: q in 0..255, zero 128 always (so
 * the signed code is q - 128). F8: q is the value of an E4M3 code (S.EEEE.MMM, bias 7, no
 * infinities), zero 0, never an offset. NF4, FP4 (both of bitsandbytes), E2M1, IQ4: as I4, q is value
 * number 0..15 of a table, zero 0, never an offset. */
typedef enum la_pack {
    LA_PACK_F32 = 0,
    LA_PACK_F16,
    LA_PACK_BF16,
    LA_PACK_I8,
    LA_PACK_I4,
    LA_PACK_F8,
    LA_PACK_I5,
    LA_PACK_I6,
    LA_PACK_NF4,
    LA_PACK_FP4,
    LA_PACK_E2M1,
    LA_PACK_IQ4,
    LA_PACK_COUNT
} la_pack;

/* Types of group scales beside LA_F16 and LA_F32. F16_I8: an fp16 number per column and 256 k (one for
 * scales, one for offsets) times an int8 number per column and group, as K-quants have them; exact in
 * fp32. E8M0: a power of two per column and group, by its biased exponent, 0 to 254; never an offset.
 * Group is at most 128; the last LA_NEST k may be fewer, with numbers for all of its groups. All of them
 * lie at the head of the unit. */
enum { LA_F16_I8 = LA_DTYPE_COUNT, LA_E8M0, LA_NEST = 256 };

/* How activation rows enter a product. */
typedef enum la_act_form {
    LA_ACT_F32 = 0, /* fp32 */
    LA_ACT_F64,     /* fp32, whose products are added up in fp64 */
    LA_ACT_BF16,    /* bf16 round-to-nearest-even */
    LA_ACT_I8,      /* int8 per group with fp32 scale, k-permuted inside each 8 (see kernels.h) */
    LA_ACT_I8X2,    /* two such rows, lanes, that add up: the second has what the first leaves */
    LA_ACT_FORM_COUNT
} la_act_form;

/* Are rows fp32 numbers? */
static inline int la_act_is_float(int form)
{
    return form == LA_ACT_F32 || form == LA_ACT_F64;
}

typedef struct la_format {
    uint8_t pack;       /* la_pack */
    uint8_t scale_type; /* LA_F16, LA_F32, LA_F16_I8, LA_E8M0: group scales and offsets; 0 for
                         * float packs */
    uint8_t has_offset; /* groups carry an offset */
    uint8_t
        row_scale; /* one scale per output row, at the head of the unit, for all groups: sums are
                         * folded per group all the same, or per activation group (la_gemm.fold) */
    int32_t group; /* k per group: 16, 32, .., 256; 0 for float packs. The last may be shorter */
} la_format;

/* How a checkpoint says that rows are rounded before a product: to 8 bits and back, by the largest value of
 * the row or of each group, or by a scale of its own. */
typedef enum la_round {
    LA_ROUND_NONE = 0,
    LA_ROUND_I8,        /* -128..127 about 0 */
    LA_ROUND_I8_OFFSET, /* from the smallest value to the largest, 0 among them */
    LA_ROUND_F8,        /* E4M3 */
    LA_ROUND_F8_POWER,  /* E4M3, its scale a power of two */
    LA_ROUND_COUNT
} la_round;

typedef struct la_rounding {
    int kind;    /* la_round */
    int group;   /* k that share a scale; 0: the row */
    float scale; /* 0: by the largest value */
} la_rounding;

/* How a page stores keys and values. I8 and F8 (E4M3) have one fp32 scale per token and kv head,
 * made when the token is written: its largest value becomes 127 or 448. */
typedef enum la_kv_form {
    LA_KV_F32 = 0,
    LA_KV_BF16,
    LA_KV_I8,
    LA_KV_F8,
    LA_KV_FORM_COUNT
} la_kv_form;

enum { LA_UNIT = 32 };   /* output columns of a unit */
enum { LA_PAGE = 64 };   /* tokens of a KV page */
enum { LA_CHUNK = 256 }; /* tokens of an attention chunk, on absolute positions */

/* Per activation row and group: what folds need. 16 bytes. */
typedef struct la_act_meta {
    float scale;  /* value of one int8 step; 1 for bf16 rows */
    float sum;    /* sum of the row's converted values in the group, fp32 */
    int32_t isum; /* I8: sum of the int8 codes; 0 for bf16 rows */
    int32_t pad;
} la_act_meta;

/* A power of two by its biased exponent; 255 is NaN. */
static inline float la_e8m0_to_f32(uint8_t e)
{
    uint32_t bits = e == 0 ? 0x00400000u : e == 255 ? 0x7fc00000u : (uint32_t)e << 23;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float la_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest even; NaN stays a quiet NaN. */
static inline uint16_t la_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((u >> 16) | 0x40u);
    }
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* Exact for every fp16 code, subnormals and NaN included. */
static inline float la_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exp = (h >> 10) & 0x1fu;
    uint32_t man = h & 0x3ffu;
    uint32_t u;
    float f;
    if (exp == 0) {
        f = (float)man * 0x1p-24f;
        memcpy(&u, &f, 4);
        u |= sign;
    }
    else if (exp == 31) {
        u = sign | 0x7f800000u | (man << 13);
    }
    else {
        u = sign | ((exp + 112u) << 23) | (man << 13);
    }
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest even, overflow to infinity. */
static inline uint16_t la_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (a >= 0x477ff000u) { /* rounds to 2^16 or more */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (a < 0x38800000u) { /* subnormal in fp16: let the fp32 adder round */
        float t;
        memcpy(&t, &a, 4);
        t += 0.5f; /* one ulp of 0.5 is 2^-24, the smallest fp16 step */
        uint32_t r;
        memcpy(&r, &t, 4);
        return (uint16_t)(sign | (r - 0x3f000000u));
    }
    uint32_t r = a + 0xfffu + ((a >> 13) & 1u);
    return (uint16_t)(sign | ((r - 0x38000000u) >> 13));
}

/* Exact for every E4M3 code; 0x7f and 0xff are NaN. */
static inline float la_f8_to_f32(uint8_t c)
{
    uint32_t sign = (uint32_t)(c & 0x80u) << 24;
    uint32_t low = c & 0x7fu;
    uint32_t u;
    float f;
    if (low < 8) { /* subnormal: steps of 2^-9 */
        f = (float)low * 0x1p-9f;
        memcpy(&u, &f, 4);
        u |= sign;
    }
    else {
        u = low == 0x7f ? sign | 0x7fc00000u : sign | ((low << 20) + (120u << 23));
    }
    memcpy(&f, &u, 4);
    return f;
}

/* The 16 values of a pack with a table, as bf16; NULL for others. Those of NF4 are rounded to it, those of
 * FP4 multiplied by 192, which makes them integers. */
static inline const uint16_t *la_pack_table(int pack)
{
    static const uint16_t tables[4][16] = {
        {0xbf80, 0xbf32, 0xbf06, 0xbeca, 0xbe92, 0xbe3d, 0xbdba, 0x0000, 0x3da3, 0x3e25, 0x3e7c,
         0x3ead, 0x3ee2, 0x3f10, 0x3f39, 0x3f80},
        {0x0000, 0x3f80, 0x4300, 0x4340, 0x4280, 0x42c0, 0x4200, 0x4240, 0x8000, 0xbf80, 0xc300,
         0xc340, 0xc280, 0xc2c0, 0xc200, 0xc240},
        {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80,
         0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0},
        {0xc2fe, 0xc2d0, 0xc2a6, 0xc282, 0xc244, 0xc20c, 0xc1b0, 0xc120, 0x3f80, 0x4150, 0x41c8,
         0x4218, 0x4254, 0x428a, 0x42b2, 0x42e2},
    };
    return pack >= LA_PACK_NF4 && pack <= LA_PACK_IQ4 ? tables[pack - LA_PACK_NF4] : NULL;
}

/* Do scales of groups lie at the head of the unit, apart from codes? */
static inline int la_scales_apart(la_format f)
{
    return f.scale_type == LA_F16_I8 || f.scale_type == LA_E8M0;
}

/* Bytes of one set of scales and offsets in a unit, of those apart for LA_NEST k; 0 for float packs. */
static inline size_t la_format_scales(la_format f)
{
    size_t one = LA_UNIT * (f.scale_type == LA_F16 ? 2u : 4u);
    if (f.group == 0) {
        return 0;
    }
    if (la_scales_apart(f)) {
        one = LA_UNIT * ((f.scale_type == LA_F16_I8 ? 2u : 0u) + LA_NEST / (size_t)f.group);
    }
    return f.has_offset ? 2 * one : one;
}

/* Bytes of them in front of each group's codes, and in front of a unit: one of the two is 0. */
static inline size_t la_format_header(la_format f)
{
    return f.row_scale || la_scales_apart(f) ? 0 : la_format_scales(f);
}

static inline size_t la_format_unit_header(la_format f, int K)
{
    if (la_scales_apart(f)) {
        return ((size_t)K + LA_NEST - 1) / LA_NEST * la_format_scales(f);
    }
    return f.row_scale ? la_format_scales(f) : 0;
}

/* Of scales apart: where in a unit the fp16 number for k of scales (i = 0) or offsets (i = 1) of all
 * columns begins, and where the bytes of k's group. */
static inline size_t la_format_outer(la_format f, int i, int k)
{
    return (size_t)(k / LA_NEST) * la_format_scales(f) + (size_t)i * LA_UNIT * 2;
}

static inline size_t la_format_inner(la_format f, int i, int k)
{
    size_t sets = 1u + f.has_offset, group = (size_t)(k % LA_NEST / f.group);
    size_t outer = f.scale_type == LA_F16_I8 ? 2 * sets : 0;
    return la_format_outer(f, 0, k) + (outer + group * sets + (size_t)i) * LA_UNIT;
}

/* k of a step of codes: grouped k is padded to it. */
static inline int la_format_step(la_format f)
{
    return f.pack == LA_PACK_I5 ? 16 : 8;
}

/* Bytes of codes (grouped) or values (float) that k of a unit take. */
static inline size_t la_format_codes(la_format f, int k)
{
    size_t n = (size_t)k;
    switch (f.pack) {
    case LA_PACK_F32: return n * 128;
    case LA_PACK_I8:
    case LA_PACK_F8: return (n + 7) / 8 * 256;
    case LA_PACK_I4:
    case LA_PACK_NF4:
    case LA_PACK_FP4:
    case LA_PACK_E2M1:
    case LA_PACK_IQ4: return (n + 7) / 8 * 128;
    case LA_PACK_I5: return (n + 15) / 16 * 320;
    case LA_PACK_I6: return (n + 7) / 8 * 192;
    default: return (n + 1) / 2 * 128;
    }
}

/* Bytes of a unit (32 columns) of K; a multiple of 64. */
static inline size_t la_format_unit(la_format f, int K)
{
    size_t groups = f.group == 0 ? 0 : ((size_t)K + (size_t)f.group - 1) / (size_t)f.group;
    return la_format_unit_header(f, K) + groups * la_format_header(f) + la_format_codes(f, K);
}

/* Bytes of the K and of the V half of a page of one kv head, multiples of 64; layouts are drawn in
 * kernels.h. */
static inline size_t la_kv_scale_bytes(la_kv_form form)
{
    return form == LA_KV_I8 || form == LA_KV_F8 ? LA_PAGE * sizeof(float) : 0;
}

static inline size_t la_kv_k_bytes(la_kv_form form, int d)
{
    size_t n = (size_t)d;
    switch (form) {
    case LA_KV_F32: return n * LA_PAGE * 4;
    case LA_KV_BF16: return (n + 1) / 2 * LA_PAGE * 4;
    default: return (n + 3) / 4 * LA_PAGE * 4 + la_kv_scale_bytes(form);
    }
}

static inline size_t la_kv_v_bytes(la_kv_form form, int d)
{
    size_t wide = ((size_t)d + 15) / 16 * 16 * LA_PAGE;
    switch (form) {
    case LA_KV_F32: return wide * 4;
    case LA_KV_BF16: return wide * 2;
    default: return wide + la_kv_scale_bytes(form);
    }
}

/* Bytes of a page of latents [r] and rotated keys [p] (MLA), which are stored once, in the order of K:
 * fp8 pages hold codes of the latent, bf16 keys, and a scale per token and LA_LATENT_GROUP values. r is a
 * multiple of 4, p is even. */
enum { LA_LATENT_GROUP = 128 };

static inline size_t la_kv_latent_bytes(la_kv_form form, int r, int p)
{
    size_t groups = ((size_t)r + LA_LATENT_GROUP - 1) / LA_LATENT_GROUP;
    size_t latent = (size_t)r * LA_PAGE, key = (size_t)p * LA_PAGE;
    switch (form) {
    case LA_KV_F32: return (latent + key) * 4;
    case LA_KV_BF16: return (latent + key) * 2;
    default: return latent + key * 2 + groups * LA_PAGE * sizeof(float);
    }
}

/* Code that stands for zero, in packs of integers. */
static inline int la_format_zero(la_format f)
{
    switch (f.pack) {
    case LA_PACK_I4: return f.has_offset ? 0 : 8;
    case LA_PACK_I5: return f.has_offset ? 0 : 16;
    case LA_PACK_I6: return 32;
    default: return f.pack == LA_PACK_I8 ? 128 : 0;
    }
}

#endif
