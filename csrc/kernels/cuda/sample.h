/* sample.h - the device's draws: what a row asks for, what it gets, and the launch.
 *
 * Owns the structures that a step uploads beside its batch and those that come back. A row of logits is a
 * block's business alone, so neither the batch nor what else is drawn can change a result. The rules, and
 * their order, are those of la_sample_row. Invariant: a row asks for no more than LA_SAMPLE_* allow; what
 * asks for more is drawn on the host (backend_draws.cu). Used by backend_draws.cu and the tests.
 */
#ifndef LA_SAMPLE_DEVICE_H
#define LA_SAMPLE_DEVICE_H

#include "la_rt.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LA_SAMPLE_TOPS = 32,     /* best logprobs of a row */
    LA_SAMPLE_LISTED = 1024, /* biases, and bans */
    LA_SAMPLE_VOCABULARY = 1 << 22
};

/* A row's wishes. *_at: where in `words` its list begins. */
typedef struct la_draw_rule {
    uint64_t seed, stream, counter;
    float temperature, top_p, min_p;
    float presence, frequency, repetition;
    int32_t top_k;           /* 0: all */
    int32_t target;          /* >= 0: reported, -1: drawn, -2: the row is not the device's */
    int32_t n_top;           /* best logprobs; -1: no logprobs at all */
    int32_t top_at;          /* where in `tops` they go */
    int32_t allowed_at;      /* [ceil(V/32)] bits; -1: all are */
    int32_t ban_at, n_ban;   /* (id, the newest token after which it is banned; -1: any) */
    int32_t bias_at, n_bias; /* (id, bits of a float), ids ascending, each once */
    int32_t seen_at, n_seen; /* (id, times generated), each once */
    int32_t newest; /* generated and not in the list; -1: none; <= -2: see la_launch_resume */
} la_draw_rule;

typedef struct la_drawn {
    int32_t id;
    float logprob;
    int32_t rank; /* from 1 */
} la_drawn;

typedef struct la_top {
    int32_t id;
    float logprob;
} la_top;

typedef struct la_sample_args {
    const float *logits; /* [n] rows of ldl */
    int64_t ldl;
    float *ruled; /* [n] rows of ldr, scratch of V values each */
    int64_t ldr;
    const la_draw_rule *rules; /* [n] */
    const uint32_t *words;
    la_drawn *drawn; /* [n] */
    la_top *tops;
    int n, V;
} la_sample_args;
void la_launch_sample(la_rt_stream *s, const la_sample_args *a);

/* What draws and best logprobs found, as arrays of users: the k of `tops` and their values, or where tops is NULL
 * the one of `drawn`. */
typedef struct la_pick_args {
    const float *logits;   /* [n][V] */
    const la_drawn *drawn; /* [n] */
    const la_top *tops;    /* [n][k] */
    int64_t *ids;          /* [n][k] */
    float *values;         /* [n][k]; with tops */
    int n, V, k;
} la_pick_args;
void la_launch_pick(la_rt_stream *s, const la_pick_args *a);

#ifdef __cplusplus
}
#endif

#endif
