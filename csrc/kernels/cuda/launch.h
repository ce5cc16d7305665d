/* launch.h - the list of device kernels: a line each is its contract, a function each launches it.
 *
 * Owns the argument structs, which hold device addresses and numbers alone. Every kernel is
 * row-independent: a row's bits depend on that row's inputs, never on how many rows ride along. What is
 * 16 bits wide is bf16, or fp16 where `half` is 1; all else is fp32. Invariant: a launch cannot fail
 * by its arguments, which backend.cu checked when the model was made. Rows of weights lie one after another,
 * K values each, as many as whole units of LA_UNIT have. Called by backend.cu and the tests.
 */
#ifndef LA_LAUNCH_H
#define LA_LAUNCH_H

#include "la_rt.h"

#ifdef __cplusplus
extern "C" {
#endif

struct la_device_elements;

/* out[t] = scale * table[ids[t]], or += where `add` */
typedef struct la_embed_args {
    const uint16_t *table; /* [V][D] */
    const int32_t *ids;    /* [n] */
    float *out;            /* [n] rows of ldo */
    int64_t ldo;
    int n, D, half, add;
    float scale;
} la_embed_args;
void la_launch_embed(la_rt_stream *s, const la_embed_args *a);

/* Rows on their way into a product: out = 16 bits of norm(x), fp16 within +-65504. norm: -1 none, else
 * LA_NORM_* */
typedef struct la_enter_args {
    const float *x; /* [n] rows of ldx */
    int64_t ldx;
    const float *w, *b; /* [D]; b NULL: none */
    uint16_t *out;      /* [n][D] */
    int n, D, half, norm;
    float eps;
} la_enter_args;
void la_launch_enter(la_rt_stream *s, const la_enter_args *a);

/* x += scale * norm(y) */
typedef struct la_add_norm_args {
    const float *y; /* [n] rows of ldy */
    int64_t ldy;
    const float *w, *b;
    float *x; /* [n] rows of ldx */
    int64_t ldx;
    int n, D, norm;
    float eps, scale;
} la_add_norm_args;
void la_launch_add_norm(la_rt_stream *s, const la_add_norm_args *a);

/* out = norm(x); x and out may be one. */
typedef struct la_norm_rows_args {
    const float *x;
    int64_t ldx;
    const float *w, *b; /* [D], [D] or NULL */
    float *out;
    int64_t ldo;
    int n, D, norm;
    float eps;
} la_norm_rows_args;
void la_launch_norm_rows(la_rt_stream *s, const la_norm_rows_args *a);

/* la_device_elements; n up to 2^31 - 1. */
void la_launch_elements(la_rt_stream *s, const struct la_device_elements *a);

/* out[i] = x[from[i]], or x[i] */
typedef struct la_gather_args {
    const float *x;
    int64_t ldx;
    const int32_t *from; /* [n] or NULL */
    float *out;
    int64_t ldo;
    int n, D;
} la_gather_args;
void la_launch_gather(la_rt_stream *s, const la_gather_args *a);

/* A layer's pages of KV in bf16: of each kv head K [64][d], then V [64][d]. */
typedef struct la_pages {
    uint8_t *base; /* of the layer in page 0 */
    int64_t page_bytes, head_bytes, k_bytes;
} la_pages;

/* Raw rows (q heads, k heads, v heads) to queries and pages: norms of heads, rotation, growth. Either kind of heads
 * may be absent. */
typedef struct la_heads_args {
    float *y; /* [n] rows of ldy: [H + 2K][d]; whole-row norms are made in place */
    int64_t ldy;
    float *q; /* [n] rows of ldq: [H][d] */
    int64_t ldq;
    const int32_t *pos, *page;    /* [n]; page -1: k and v are kept nowhere */
    const float *q_norm, *k_norm; /* [d], of whole rows [H d] and [K d]; NULL: none */
    const float *cos, *sin;       /* [positions][d_rope / 2]; NULL: no rotation */
    la_pages pages;
    int n, n_heads, n_kv_heads, d, d_rope, interleaved;
    int norm;   /* LA_QK_NORM_* */
    int turned; /* 1: the layer rotates, if only 0 dimensions; else queries may grow */
    float eps;
    float grow;
    int grow_every; /* 0: off */
} la_heads_args;
void la_launch_heads(la_rt_stream *s, const la_heads_args *a);

/* items[t] = chunks of LA_CHUNK of all tokens before t, up to their positions; items[n] of all. */
typedef struct la_chunks_args {
    const int32_t *pos; /* [n] */
    int32_t *items;     /* [n + 1] */
    int n;              /* up to 32 */
} la_chunks_args;
void la_launch_chunks(la_rt_stream *s, const la_chunks_args *a);

/* Rows that one block takes: of a run of n tokens from `token` on, which follow each other in a sequence and are
 * counted in heads of a group, the LA_ATTEND_ROWS from `row` on, or as many as are left. */
typedef struct la_attend_tile {
    int32_t token, n, row;
} la_attend_tile;
enum { LA_ATTEND_ROWS = 64 };

/* Attention of every token over the pages of its sequence, in page order, on rows and weights in bf16. */
typedef struct la_attend_paged_args {
    const float *q; /* [n] rows of ldq: [H][d] */
    int64_t ldq;
    float *out; /* [n] rows of ldo: [H][d] */
    int64_t ldo;
    const int32_t *pos;          /* [n] */
    const int32_t *table;        /* page tables of all sequences */
    const int32_t *first;        /* [n] where in it the token's sequence begins */
    const float *sinks;          /* [H] or NULL */
    const int32_t *items;        /* [n + 1] of la_launch_chunks: chunks are dealt out; or NULL */
    float *partial;              /* [items][H][d + 2]: values, maximum (of log2), sum of chunks */
    const la_attend_tile *tiles; /* [n_tiles], each row in one; NULL: a token has its own */
    la_pages pages;
    int n, n_heads, n_kv_heads;
    int d; /* even, up to 256 */
    int n_tiles;
    int window; /* 0: all tokens */
    float scale, softcap;
} la_attend_paged_args;
/* Of the device: multiprocessors, and bytes of shared memory that a block may have (99 KiB at least). */
typedef struct la_attend_device {
    int n_sms;
    uint32_t smem;
} la_attend_device;
void la_launch_attend_paged(la_rt_stream *s, const la_attend_paged_args *a,
                            const la_attend_device *on);

/* What happens to a finished product, after the bias: la_epilogue's kinds but LA_HEADS. */
typedef struct la_finish {
    int kind;        /* LA_STORE, LA_ADD, LA_ACT, LA_LOGITS */
    int act, paired; /* LA_ACT: LA_GATE_*, and gates and ups in turns of 16 columns */
    float scale, softcap;
} la_finish;

/* out = finish(a W^T + bias) by mma.sync; K a multiple of 8. */
typedef struct la_product_args {
    const uint16_t *a; /* [M][K] */
    const uint16_t *w; /* [whole units of N][K] */
    const float *bias; /* [whole units of N] or NULL */
    float *out;        /* [M] rows of ldo, from column 0 on: [N], paired and LA_ACT: [N / 2] */
    int64_t ldo;
    int M, N, K;
    la_finish finish;
} la_product_args;
void la_launch_product(la_rt_stream *s, const la_product_args *a, int half);

/* The same by wgmma, on Hopper. partial: la_product_room(M) bytes; K is cut into la_product_pieces. */
void la_launch_product_sm90(la_rt_stream *s, const la_product_args *a, int half, float *partial,
                            int n_sms);
int la_product_pieces(int N, int K);

/* How 4-bit weights lie (gemm_w4.cu draws it): w = scale * (q - 8), or scale * q + offset. */
typedef struct la_w4_form {
    int group;          /* k of a scale, 32, 64, 128 or 256; the last may be shorter; 0: all */
    int has_offset;     /* 1: and offsets */
    int wide;           /* scales and offsets are fp32, else fp16 */
    int64_t unit_bytes; /* of 32 weight rows, a multiple of 64 */
} la_w4_form;
/* The same with such weights at a->w, rows bf16, K a multiple of 32. */
void la_launch_product_w4(la_rt_stream *s, const la_product_args *a, const la_w4_form *f);
size_t la_product_room(int M);

/* out = finish(y + bias), of sums that a library made: p without a, w and K. */
typedef struct la_finish_args {
    la_product_args p;
    const float *y; /* [M] rows of ldy: whole units of columns */
    int64_t ldy;
} la_finish_args;
void la_launch_finish(la_rt_stream *s, const la_finish_args *a);

#ifdef __cplusplus
}
#endif

#endif
