/* backend_cpu.h - what the files of the CPU backend share: the backend itself and a thread's scratch.
 *
 * Owns struct cpu_backend and the layout of per-thread scratch. Invariant: scratch sizes are computed by
 * cpu_scratch alone, from the model's dimensions and the limits. Included by backend_cpu*.c only.
 */
#ifndef LA_BACKEND_CPU_H
#define LA_BACKEND_CPU_H

#include "../base/cpu.h"
#include "../base/pool.h"
#include "../kernels/kernels.h"
#include "backend.h"

enum {
    CPU_FEW_ROWS = 4,       /* up to here every thread converts all rows itself: no barrier */
    CPU_TILE_ROWS = 512,    /* rows of an output tile; more rows are cut into blocks of this */
    CPU_TILE_COLS = 256,    /* widest granule */
    CPU_ATTEND_ROWS = 64,   /* query rows of one attention call */
    CPU_CHUNK_PAGES = LA_CHUNK / LA_PAGE
};

typedef struct cpu_backend {
    la_backend head;
    la_pool *pool;
    la_kernels k;
    la_isa isa;
    const char **slot_names;    /* [slots + 1] */
    const char **slot_isas;     /* [slots + 1] */
} cpu_backend;

/* Per-thread scratch, in the order it is laid out. */
typedef struct cpu_local {
    float *tile;            /* [CPU_TILE_ROWS][CPU_TILE_COLS] */
    float *row;             /* [max K] a normalized row */
    uint8_t *few;           /* converted rows of a small batch, as shared */
    uint8_t *attend;        /* la_attend_scratch */
    float *attend_q;        /* [CPU_ATTEND_ROWS][d] gathered queries */
    float *attend_o;        /* [2][CPU_ATTEND_ROWS][d rounded to 16] a chunk's result, the sum so far */
    float *attend_ml;       /* [4][CPU_ATTEND_ROWS] m and l of both */
    int *attend_pos;        /* [CPU_ATTEND_ROWS] */
    float *probs;           /* [V] sampling */
    int32_t *ids;           /* [V] */
} cpu_local;

static inline cpu_backend *cpu_of(const la_ctx *c)
{
    return (cpu_backend *)c->b;
}

/* Widest K of any product, bytes of a converted row in its widest form, metadata entries of it. */
int cpu_max_k(const la_model_desc *d);
size_t cpu_row_bytes(int K);
/* Bytes of all parts of T converted rows. */
size_t cpu_converted_bytes(const la_model_desc *d, int T);
/* Lays scratch out from base (NULL: sizes only); returns the bytes. */
size_t cpu_local_layout(const la_model_desc *d, int max_tokens, uint8_t *base, cpu_local *out);
void cpu_local_of(la_ctx *c, cpu_local *out);
void cpu_barrier(la_ctx *c);
/* First of thread tid's share of n things. */
static inline int cpu_share(int n, int tid, int nth)
{
    return (int)((int64_t)n * tid / nth);
}

void cpu_linear(la_ctx *c, const la_matrix *m, la_rows in, la_rows out, const la_prologue *pro,
                const la_epilogue *epi);
/* qkv columns col0.. of one token's row, starting at a head border: norm, rope, store. */
void cpu_finish_heads(la_ctx *c, int layer, int token, float *cols, int first_head, int n_heads,
                      la_rows q);
void cpu_norm(const la_kernels *k, int kind, la_norm norm, float eps, const float *x, float *y,
              int n);
void cpu_heads(la_ctx *c, int layer, la_rows qkv, la_rows q);
void cpu_attend(la_ctx *c, int layer, la_rows q, la_rows a);
void cpu_sample(la_ctx *c, int first, la_rows logits);

#endif
