/* kernels.h - the CPU kernel list: one line per kernel is its contract.
 *
 * Every kernel is row-independent: a row's bits depend on that row's inputs only, never on how many
 * rows ride along, on the caller's thread or on how work was split. Tails are handled inside.
 * Nothing here allocates, fails or keeps state. Pointers are not aliased unless a line says so.
 * la_kernels_select() fills a table bottom-up: scalar fills every slot, each level up to the one
 * asked for overwrites what it does better. Called by model/backend_cpu*.c and python/py_kernels*.c.
 */
#ifndef LA_KERNELS_H
#define LA_KERNELS_H

#include <stddef.h>

#include "../base/dtype.h"

/* Levels in order; each includes those before it. */
typedef enum la_isa {
    LA_ISA_SCALAR = 0,
    LA_ISA_AVX2,   /* AVX2 + FMA + F16C */
    LA_ISA_AVX512, /* + F, BW, VL, DQ */
    LA_ISA_VNNI,   /* + VNNI, VBMI */
    LA_ISA_BF16,   /* + BF16 */
    LA_ISA_COUNT
} la_isa;

/* One granule of y = x W^T: c[m][32*u + j] = sum_k a[m][k] * w[32*u + j][k], folds in fixed k order.
 * Layout of a unit (32 columns, all K), steps of 128 bytes, see model/pack.h for the writer:
 *   F32  step = 1 k : [32 n] fp32                                  K steps
 *   F16  step = 2 k : [32 n][2 k] fp16, BF16 the same in bf16       ceil(K/2) steps, tail k is 0
 *   I8   per group: scales [32], offsets [32] if any (F16: 64 bytes each, F32: 128), then
 *        steps of 4 k: [32 n][4 k] u8 = q + 128; k of step s inside each 8: {0,4,1,5} for even s,
 *        {2,6,3,7} for odd s
 *   F8   as I8 with E4M3 codes; scales always F32, never offsets. The codes of NaN, 0x7f and 0xff,
 *        do not occur: the writer refuses them, and levels disagree about what they stand for
 *   I4   per group: scales, offsets as above, then steps of 8 k: [32 n] u32, nibble p holds
 *        k = 2*(p%4) + p/4 of the 8
 *   NF4, FP4, E2M1, IQ4   as I4, q numbers a value of la_pack_table; never offsets
 *   I6   per group: scales, offsets as above, then steps of 8 k: the low 4 bits of each code as a step
 *        of I4, then [16 n] u32 of high bits: byte b of word n has those of columns n and n + 16 for
 *        the low and the high nibble of their bytes b: n low, n high, n + 16 low, n + 16 high
 *   I5   as I6 in steps of 16 k: two steps of I4, then the high bits of both, one after the other
 *   row_scale: one set of scales at the head of the unit instead of one per group; without offset it
 *        multiplies the finished sum.
 *   F16_I8: for each 256 k scales [32] fp16, offsets [32] fp16 if any, then per group scales [32] int8,
 *        offsets [32] int8 if any (E8M0: only exponents [32]); those of all k at the head of the unit.
 *   In grouped packs K is padded to whole steps with codes that meet zero activations. */
typedef struct la_gemm {
    const uint8_t *w; /* first unit of the granule, 64-byte aligned */
    size_t w_pitch;   /* bytes from one unit to the next */
    int n_units;      /* 1..8 */
    int K;            /* true K */
    la_format f;
    const uint8_t *a; /* [M] rows of a_pitch bytes, 64-byte aligned, zero-padded to 64 bytes */
    size_t a_pitch;
    const la_act_meta *meta; /* [M][ceil(K/fold)] for grouped packs, else NULL */
    int M;
    float *c;            /* [M][ldc], 64-byte aligned; scratch between K blocks, then the result */
    int ldc;             /* >= 32 * n_units, multiple of 16 */
    const uint8_t *next; /* what this thread reads next (prefetch hint), or NULL */
    size_t next_bytes;
    int fold; /* k of an activation group: 16, 32, .., at most the weights' group; 0: that group */
} la_gemm;

/* Attention of R query rows over one 256-token chunk of one kv head; partial result of a softmax.
 * Page of one kv head, K: F32 [4 sub][d][16 tok]; BF16 [4 sub][ceil(d/2)][16 tok][2 d].
 *                      V: F32 [ceil(d/16)][64 tok][16 d]; BF16 [ceil(d/16)][32 pairs][16 d][2 tok].
 *   I8 K [4 sub][ceil(d/4)][16 tok][4 d] u8 = code + 128; F8 K [4 sub][ceil(d/4)] blocks, V of both
 *   [ceil(d/16)][16] blocks (64 codes, drawn in attention_store.h; I8 V is
 *   sign and magnitude); then scales [64 tok] fp32.
 * A token t of the chunk counts for row r iff t <= row_pos[r] and (window == 0 or t > row_pos[r] - window).
 * I8 rounds q to int8 per row: integer scores, the same at every level.
 * Steps are whole 64-token pages in order, so the same token gives the same bits in prefill and decode.
 * V of tokens that do not count is finite (pages are cleared when they are first written).
 * MLA (mla_attend_*): a page holds latent [r] and key [p] of each token once, as K of d = r + p; V is the
 * latent, dv = r, turned on the way; tokens after the last that counts may hold anything.
 *   F8 page: latents as F8 K without scales; keys as BF16 K; scales [ceil(r/128)][64 tok] fp32. */
typedef struct la_attend_args {
    const float *q; /* [R] rows of ldq floats, [d] used, unscaled */
    int ldq;
    int R; /* 1..64 */
    int d;
    int dv; /* MLA: V is the first dv of K; 0: V has blocks of its own */
    int again; /* 1: R, d, scale, scratch and q are those of an earlier call of this set, whose q is used */
    int more; /* 1: m, l and o are those of earlier pages of the chunk and go on */
    int set;  /* 0..; several sets of rows share a scratch of at least (set + 1) * R rows */
    const int *row_pos;            /* [R] absolute position of the row's token */
    const uint8_t *const *k_pages; /* [n_pages] this kv head's K block of each page */
    const uint8_t *const *v_pages; /* [n_pages] */
    int n_pages;                   /* 1..4 */
    const uint8_t *next, *next_v;  /* blocks of the page after them (prefetch hint), or NULL */
    int first;                     /* absolute position of the chunk's first token */
    int window;                    /* 0: none */
    float scale;
    float softcap; /* 0: off */
    float *m;      /* [R] out: running maximum, -INFINITY if nothing counted */
    float *l;      /* [R] out: sum of exp */
    float *o;      /* [R][ldo] out: unnormalised */
    int ldo;       /* d rounded up to 16 */
    void *scratch; /* la_attend_scratch(R, d) bytes, MLA: and la_mla_scratch, 64-byte aligned */
} la_attend_args;

static inline size_t la_attend_scratch(int R, int d)
{
    /* S [R][64] fp32, P [R][64] fp32, q converted [R][d + 32] fp32 and its scales [64], half a page
     * decoded to bf16 */
    return ((size_t)R * 64 * 2 + (size_t)R * ((size_t)d + 32)) * sizeof(float) + 512 +
           ((size_t)d + 15) / 16 * 16 * LA_PAGE * sizeof(uint16_t);
}

/* A page turned to V, and one of codes opened to bf16; before la_attend_scratch. */
static inline size_t la_mla_scratch(int d, int dv)
{
    return ((size_t)dv + 15) / 16 * 16 * LA_PAGE * sizeof(float) +
           ((size_t)d + 15) / 16 * 16 * LA_PAGE * sizeof(uint16_t);
}

/* X(slot, type of result, (arguments)) */
#define LA_KERNELS(X)                                                                                             \
    /* y = x / rms(x) * w; statistics in 16 fixed lanes; y may be x */                                            \
    X(rms_norm, void, (const float *x, const float *w, float eps, float *y, int D))                               \
    /* y = (x - mean) / sqrt(var + eps) * w + b; b may be NULL */                                                 \
    X(layer_norm, void,                                                                                           \
      (const float *x, const float *w, const float *b, float eps, float *y, int D))                               \
    /* y += x * s; y may be x */                                                                                  \
    X(add_scaled, void, (const float *x, float s, float *y, int n))                                               \
    /* y += b */                                                                                                  \
    X(add, void, (const float *b, float *y, int n))                                                               \
    /* y = act(gate) * up, act: LA_GATE_*; blocks of 16, `step` apart in gate, up; 16: y may be gate */           \
    X(act_mul, void, (int act, const float *gate, const float *up, int step, float *y, int n))                    \
    /* y = act(x); y may be x */                                                                                  \
    X(act, void, (int act, const float *x, float *y, int n))                                                      \
    /* rotates the first d_rope of a head in place; cos, sin [d_rope/2] */                                        \
    X(rope, void, (float *x, const float *cos, const float *sin, int d_rope, int interleaved))                    \
    /* x = c * tanh(x * s / c); c == 0: x *= s */                                                                 \
    X(softcap, void, (float *x, float s, float c, int n))                                                         \
    /* converted row, zero-padded to 64 bytes; meta [ceil(K/group)] or NULL */                                    \
    X(act_bf16, void, (const float *x, int K, int group, uint16_t *out, la_act_meta *meta))                       \
    X(act_i8, void, (const float *x, int K, int group, int8_t *out, la_act_meta *meta))                           \
    /* two such rows, `pitch` bytes apart, whose sum is x: the second has what the first leaves, in steps 254  */ \
    /* times as fine; meta [2][ceil(K/group)] */                                                                  \
    X(act_i8x2, void,                                                                                             \
      (const float *x, int K, int group, int8_t *out, size_t pitch, la_act_meta *meta))                           \
    /* E4M3 or E5M2 codes of x / scale: to nearest even, at most the largest finite value, NaN 0x7f; and back */  \
    X(fp8_encode, void, (const float *x, float scale, int e5m2, uint8_t *out, int n))                             \
    X(fp8_decode, void, (const uint8_t *x, float scale, int e5m2, float *out, int n))                             \
    /* one token's k and v [d] into slot tok (0..63) of a page; tok 0 clears the V block; NULL skips a half */    \
    X(kv_store_f32, void, (const float *k, const float *v, int d, int tok, void *kp, void *vp))                   \
    X(kv_store_bf16, void, (const float *k, const float *v, int d, int tok, void *kp, void *vp))                  \
    X(kv_store_i8, void, (const float *k, const float *v, int d, int tok, void *kp, void *vp))                    \
    X(kv_store_f8, void, (const float *k, const float *v, int d, int tok, void *kp, void *vp))                    \
    X(attend_f32, void, (const la_attend_args *a))                                                                \
    X(attend_bf16, void, (const la_attend_args *a))                                                               \
    X(attend_i8, void, (const la_attend_args *a))                                                                 \
    X(attend_f8, void, (const la_attend_args *a))                                                                 \
    /* one token's latent x [r] and rotated key k [p] into slot tok of a page */                                  \
    X(mla_store_f32, void, (const float *x, const float *k, int r, int p, int tok, void *page))                   \
    X(mla_store_bf16, void, (const float *x, const float *k, int r, int p, int tok, void *page))                  \
    X(mla_store_f8, void, (const float *x, const float *k, int r, int p, int tok, void *page))                    \
    X(mla_attend_f32, void, (const la_attend_args *a))                                                            \
    X(mla_attend_bf16, void, (const la_attend_args *a))                                                           \
    X(mla_attend_f8, void, (const la_attend_args *a))                                                             \
    /* acc (m, l, o) <- acc joined with part (m2, l2, o2), one row */                                             \
    X(attend_merge, void,                                                                                         \
      (float *m, float *l, float *o, float m2, float l2, const float *o2, int d))                                 \
    /* o = o / l, 0 where l is 0 */                                                                               \
    X(attend_finish, void, (const float *o, float l, float *out, int d))                                          \
    /* largest value and its lowest index */                                                                      \
    X(argmax, int, (const float *x, int n, float *max))                                                           \
    /* out[i] = largest of x[32 i] .. x[32 i + 31], the last block short; -INFINITY where all are NaN */          \
    X(block_max, void, (const float *x, int n, float *out))                                                       \
    /* sum of exp(x * s - max) in 16 fixed lanes per 4096 values, blocks added in order, fp32 part, double sum */ \
    X(sum_exp, double, (const float *x, float s, float max, int n))                                               \
    /* y = exp(x * s - max); y may be x */                                                                        \
    X(exp_sub, void, (const float *x, float s, float max, float *y, int n))                                       \
    /* indices of x[i] > thr, ascending, at most cap; returns how many there are; all of out may be touched */    \
    X(select_above, int, (const float *x, int n, float thr, int32_t *out, int cap))                               \
    /* y[i] = x[i] where bit i % 32 of bits[i / 32] is set, else -INFINITY; y may be x */                         \
    X(mask, void, (const uint32_t *bits, const float *x, float *y, int n))                                        \
    /* row n of a unit as fp32 [K] */                                                                             \
    X(unpack_row, void, (const uint8_t *unit, la_format f, int n, int K, float *out))                             \
    X(gemm_f32_f32, void, (const la_gemm *g))                                                                     \
    X(gemm_f32_f64, void, (const la_gemm *g))                                                                     \
    X(gemm_f16_f32, void, (const la_gemm *g))                                                                     \
    X(gemm_bf16_bf16, void, (const la_gemm *g))                                                                   \
    X(gemm_i8_bf16, void, (const la_gemm *g))                                                                     \
    X(gemm_i8_i8, void, (const la_gemm *g))                                                                       \
    X(gemm_i4_bf16, void, (const la_gemm *g))                                                                     \
    X(gemm_i4_i8, void, (const la_gemm *g))                                                                       \
    X(gemm_f8_bf16, void, (const la_gemm *g))                                                                     \
    X(gemm_i5_bf16, void, (const la_gemm *g))                                                                     \
    X(gemm_i5_i8, void, (const la_gemm *g))                                                                       \
    X(gemm_i6_bf16, void, (const la_gemm *g))                                                                     \
    X(gemm_i6_i8, void, (const la_gemm *g))                                                                       \
    X(gemm_t4_bf16, void, (const la_gemm *g))                                                                     \
    /* roofline probes: reads n bytes / runs n rounds of 16 independent dots; results are sinks */                \
    X(probe_read, uint64_t, (const uint8_t *p, size_t n, int streams, int ahead))                                 \
    X(probe_f32, float, (int64_t n))                                                                              \
    X(probe_bf16, float, (int64_t n))                                                                             \
    X(probe_i8, float, (int64_t n))

typedef struct la_kernels {
#define LA_KERNEL_SLOT(name, result, args) result(*name) args;
    LA_KERNELS(LA_KERNEL_SLOT)
#undef LA_KERNEL_SLOT
} la_kernels;

/* Operations (2 per multiply-add) of one round of a probe slot of this level; 0 if the level has no such
 * instruction (the slot then runs a lower level's). */
typedef struct la_probe_ops {
    int f32, bf16, i8;
} la_probe_ops;

/* Fills the table for `isa`; which[i] (in slot order, may be NULL) is the level each slot came from. */
void la_kernels_select(la_isa isa, la_kernels *out, la_isa *which);
/* The slot for a form of page, or for a weight's format and a form of rows; NULL: there is no product. */
typedef void (*la_store_fn)(const float *k, const float *v, int d, int tok, void *kp, void *vp);
typedef void (*la_attend_fn)(const la_attend_args *a);
typedef void (*la_mla_store_fn)(const float *x, const float *k, int r, int p, int tok, void *page);
typedef void (*la_gemm_fn)(const la_gemm *g);
la_store_fn la_kernels_store(const la_kernels *t, la_kv_form form);
la_attend_fn la_kernels_attend(const la_kernels *t, la_kv_form form);
la_mla_store_fn la_kernels_mla_store(const la_kernels *t, la_kv_form form);
la_attend_fn la_kernels_mla_attend(const la_kernels *t, la_kv_form form);
la_gemm_fn la_kernels_gemm(const la_kernels *t, la_format f, la_act_form form);
/* Number of slots and their names, in order. */
int la_kernels_count(void);
const char *la_kernels_name(int slot);
/* Was this level compiled in? (cpuid is model/backend_cpu.c's business through base/cpu.h.) */
int la_kernels_have(la_isa isa);
la_probe_ops la_kernels_probe_ops(la_isa isa);

/* One file per level, kernels/cpu/isa_<level>.c. Only table.c calls these. */
void la_kernels_fill_scalar(la_kernels *t);
void la_kernels_fill_avx2(la_kernels *t);
void la_kernels_fill_avx512(la_kernels *t);
void la_kernels_fill_vnni(la_kernels *t);
void la_kernels_fill_bf16(la_kernels *t);

#endif
