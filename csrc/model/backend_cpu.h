/* backend_cpu.h - what the files of the CPU backend share: the backend itself and a thread's scratch.
 *
 * Owns struct la_cpu_backend and what lies in a thread's scratch. Invariant: scratch is laid out by
 * backend_cpu.c alone, from the model's dimensions and the limits. Included by backend_cpu*.c only.
 */
#ifndef LA_BACKEND_CPU_H
#define LA_BACKEND_CPU_H

#include "../base/cpu.h"
#include "../base/pool.h"
#include "../kernels/act_rows.h"
#include "../kernels/attend_walk.h"
#include "backend.h"

enum {
    LA_CPU_FEW_ROWS = 4,    /* up to here every thread converts all rows itself: no barrier */
    LA_CPU_SOME_ROWS = 8,   /* up to here kernels take one unit, or two, at a time */
    LA_CPU_TILE_ROWS = 256, /* most rows of an output tile; more rows are cut into even blocks */
    LA_CPU_TILE_COLS = LA_GRANULE_MOST,
    LA_CPU_CONVERT_ROWS = 8, /* rows converted at once */
    LA_CPU_COMBINE_COLS =
        1024, /* columns of a token that experts' results are added up in at once */
    LA_CPU_SHORT_STEP =
        64, /* tokens of a step whose ops take less than a slice of the scheduler's */
    LA_CPU_ATTEND_ROWS = 64,    /* query rows of one attention call */
    LA_CPU_ATTEND_CHUNKS = 256, /* chunks of decoding tokens whose results find room, if that is: */
    LA_CPU_ATTEND_FLOATS = 1 << 25 /* of results at most, 128 MiB; items of a share */
};

typedef struct la_cpu_backend {
    la_backend head;
    la_pool *pool;
    la_kernels k;
    la_isa isa;
    int n_asked;             /* threads */
    const char **slot_names; /* [slots + 1] */
    const char **slot_isas;  /* [slots + 1] */
} la_cpu_backend;

/* Rows of one expert in a product: items first .. first + blocks * units - 1 of the list. */
typedef struct la_cpu_group {
    const la_matrix *m;
    int kind; /* whose rows */
    int row0, rows;
    int blocks; /* of rows */
    int first;
} la_cpu_group;

/* Per-thread scratch, in the order it is laid out. */
typedef struct la_cpu_local {
    float *tile;           /* [LA_CPU_TILE_ROWS][LA_CPU_TILE_COLS] */
    float *row;            /* [max K] a normalized row */
    float *rounded;        /* [max K] a row rounded as a checkpoint says */
    float *sorted;         /* [max K] a row in the order of a weight's k */
    uint8_t *few;          /* converted rows of a small batch, as shared */
    la_routes routes;      /* of a small batch */
    void *route_room;      /* la_route_room */
    la_cpu_group *groups;  /* [E + 1] */
    la_attend_room attend; /* of LA_CPU_ATTEND_ROWS */
    float *ruled; /* [V] sampling: logits after the rules; once drawn from, a list of candidates */
    float *ruled_best; /* [ceil(V/32)] largest of every unit of them */
    float *probs;      /* [V] of candidates */
    int32_t *ids;      /* [V] candidates */
    int32_t *units;    /* [ceil(V/32)] units that hold some */
    int32_t *heap;     /* [V] places of candidates, ordered by a filter */
} la_cpu_local;

static inline la_cpu_backend *la_cpu_of(const la_ctx *c)
{
    return (la_cpu_backend *)c->b;
}

void la_cpu_local_of(la_ctx *c, la_cpu_local *out);
void la_cpu_barrier(la_ctx *c);
/* la_share_begin for this step's pool and thread. */
void la_cpu_share_begin(la_ctx *c, la_share *s, int n, const int *bounds);
/* First of part i of n things that are cut into even parts. */
static inline int la_cpu_border(int n, int i, int parts)
{
    return (int)((int64_t)n * i / parts);
}

/* Plans where `rows` rows lie in the form that a part of m multiplies, from `base` on; returns the bytes
 * used. */
size_t la_cpu_rows_plan(la_ctx *c, const la_matrix *m, int part, int rows, uint8_t *base,
                        la_act_rows *v);
/* x [K] becomes row r of v: rounded, put in order and converted as v says. */
void la_cpu_enter_row(la_ctx *c, const la_act_rows *v, int r, const float *x);
void la_cpu_linear(la_ctx *c, const la_matrix *m, la_rows in, la_rows out, la_norm norm,
                   const la_epilogue *epi);
/* Units that a thread takes at once, of so many bytes: `rows` rows, lanes counted, meet `units` in all. */
int la_cpu_units_at_once(const la_ctx *c, int rows, int units, size_t unit_bytes);

/* Columns col0 .. col0 + n - 1 of a matrix, pairs counted before gating, as a finished tile holds them. */
typedef struct la_cpu_cols {
    const la_matrix *m;
    int col0, n;
} la_cpu_cols;

/* Columns of the tile that hold them: pairs lie apart in a unit that is not full. */
static inline int la_cpu_cols_wide(la_cpu_cols at)
{
    return at.m->paired ? (int)la_round_up((size_t)at.n, LA_UNIT) : at.n;
}

/* y, the tile's columns, += the matrix's bias if it has one. */
void la_cpu_cols_bias(const la_kernels *k, la_cpu_cols at, float *y);
/* Their place in `row` = y, or act(y), gated where they are pairs. */
void la_cpu_cols_store(la_cpu_cols at, const float *y, float *row);
void la_cpu_cols_act(const la_kernels *k, la_cpu_cols at, int act, const float *y, float *row);

/* Heads of one token's qkv row: n from `first` on, q, k and v counted together. */
typedef struct la_cpu_heads_run {
    float *x; /* [n][d] */
    int first, n;
} la_cpu_heads_run;

/* Norm, rope, store. */
void la_cpu_finish_heads(la_ctx *c, int layer, int token, const la_cpu_heads_run *heads, la_rows q);
/* Rotates a head or a latent's key by the token's position, in layers that do. */
void la_cpu_rotate(la_ctx *c, int layer, int token, float *head);
/* K of a page of one kv head, or of latents (kv_head 0). */
uint8_t *la_cpu_kv_block(la_ctx *c, int layer, int kv_head, int32_t page);
/* y [n] = the model's norm of x; y may be x. */
void la_cpu_norm(la_ctx *c, la_norm norm, const float *x, float *y, int n);
/* x [n] *= s */
static inline void la_cpu_scale(const la_kernels *k, float s, float *x, int n)
{
    k->softcap(x, s, 0.0f, n); /* without a cap it only scales */
}
/* x [K] as r says it is rounded; y may be x. */
void la_cpu_round_row(const la_kernels *t, la_rounding r, const float *x, int K, float *y);
void la_cpu_heads(la_ctx *c, int layer, la_rows qkv, la_rows q);
void la_cpu_attend(la_ctx *c, int layer, la_rows q, la_rows a);
/* How attention sees the heads: kv heads that `group` query heads each read, and the width of a query.
 * With latents a run of heads that make a tile counts as a kv head, though all of them read one block. */
typedef struct la_cpu_heads_view {
    int n_kv, group, d;
} la_cpu_heads_view;

la_cpu_heads_view la_cpu_heads_of(const la_model_desc *d);
void la_cpu_latent(la_ctx *c, int layer, la_rows y, la_rows u);
void la_cpu_absorb(la_ctx *c, int layer, la_rows q, la_rows z);
void la_cpu_expand(la_ctx *c, int layer, la_rows z, la_rows a);
/* Bytes of la_cpu_local.few. */
size_t la_cpu_few_bytes(const la_model_desc *d, int max_tokens);
/* Bytes of la_workspace.shared that attention wants; nothing else lies there meanwhile. */
size_t la_cpu_attend_shared(const la_model_desc *d, const la_limits *limits);
void la_cpu_route(la_ctx *c, int layer, la_rows x);
void la_cpu_moe_up(la_ctx *c, int layer, la_rows in);
void la_cpu_moe_down(la_ctx *c, int layer, la_rows in);
/* Bytes of la_workspace.shared that rows of T tokens take in front of the experts' results. */
size_t la_cpu_moe_down_bytes(const la_model_desc *d, int T);
void la_cpu_sample(la_ctx *c, int first, la_rows logits);
la_status la_cpu_probe_read(la_backend *b, size_t bytes, int huge, double *gb_per_s);
la_status la_cpu_probe_peak(la_backend *b, const char *what, double *gop_per_s);
la_status la_cpu_read_weights(la_model *m, int which, double seconds, double *gb_per_s);

#endif
