/* model.h - what the engine sees of a model: a step, its KV pages, its workspace.
 *
 * Owns the contract between engine/ (requests, integers) and model/ (tensors). Invariant: everything
 * that can be wrong was checked when the model or the request was admitted; la_model_forward
 * returns nothing. Called by engine/engine.c.
 */
#ifndef LA_MODEL_H
#define LA_MODEL_H

#include "../llmaccel.h"

/* The page pool of one engine: a reserved mapping, committed from page 0 upwards. */
typedef struct la_kv la_kv;
/* Activations, logits tile and per-thread scratch of one engine, sized by limits. */
typedef struct la_workspace la_workspace;

const la_model_desc *la_model_desc_of(const la_model *m);
int la_model_ready(const la_model *m);
/* Can its backend hand out hidden states? */
int la_model_shows_states(const la_model *m);
/* The part of limits that concerns a step; kv_pages is la_kv_create's. */
la_status la_limits_check(const la_model *m, const la_limits *limits);

la_status la_kv_create(la_model *m, int64_t max_pages, la_kv **out);
void la_kv_free(la_kv *kv);
/* Makes pages 0 .. n-1 usable (n never beyond max_pages). Rounds up to a slab where there is memory for it.
 * LA_ERR_MEMORY gives sizes, and what was committed stays. */
la_status la_kv_commit(la_kv *kv, int64_t n);
/* Gives back committed pages from n on, rounded up to a slab. */
void la_kv_trim(la_kv *kv, int64_t n);
int64_t la_kv_committed(const la_kv *kv);
size_t la_kv_page_bytes(const la_kv *kv);
/* Copies page src to page dst, all layers. */
void la_kv_copy(la_kv *kv, int32_t src, int32_t dst);
/* Bytes of n pages, and their bytes to out unless it is NULL, layer by layer; *bytes is what out has, LA_ERR_ARGUMENT
 * where that is another number. LA_ERR_UNSUPPORTED where they are out of the host's reach. */
la_status la_kv_read(const la_kv *kv, const int32_t *pages, int n, size_t *bytes, uint8_t *out);

la_status la_workspace_create(la_model *m, const la_limits *limits, la_workspace **out);
void la_workspace_free(la_workspace *w);
size_t la_workspace_bytes(const la_workspace *w);
/* Tokens that every expert was given so far, [L][E], as LLM.expert_load counts; NULL: no experts. */
const int64_t *la_workspace_expert_load(const la_workspace *w);

/* The tokens of one sequence in a step: positions first_pos .. first_pos + n_tokens - 1. */
typedef struct la_span {
    int first_token; /* index into la_batch.tokens */
    int n_tokens;
    int first_pos;        /* tokens already in the pages */
    const int32_t *pages; /* [ceil((first_pos + n_tokens) / 64)] */
} la_span;

/* One row of logits that is wanted, what to do with it and where results go, in the order of sampling.h. */
typedef struct la_sample_row {
    int token; /* index into la_batch.tokens, above that of the row before */
    int32_t
        target; /* >= 0: report this token's logprob, draw nothing; -1: draw; -2: neither (logits only) */
    int32_t forced; /* >= 0: the "draw", whatever the logits; -1 */
    float temperature, top_p, min_p;
    int top_k; /* 0: all */
    float presence, frequency, repetition;
    const int32_t *seen_ids;    /* [n_seen] distinct ids of prompt and output, for penalties */
    const int32_t *seen_counts; /* [n_seen] times generated; 0: prompt only */
    int n_seen;
    const int32_t *bias_ids;
    const float *bias;
    int n_bias;
    const uint32_t *allowed;  /* [ceil(V/32)] bit mask, or NULL */
    const int32_t *ban_ids;   /* [n_ban] probability 0 */
    const int32_t *ban_after; /* [n_ban] if the newest token is this one; -1: whatever it is */
    int n_ban;
    const int32_t *dry_ids; /* [n_dry] continue a repetition */
    const float *dry;       /* [n_dry] subtracted from their logits */
    int n_dry;
    const la_sampling
        *filters; /* typical_p, top_n_sigma, xtc, dynatemp, mirostat; NULL: none is on */
    double *mu;   /* mirostat's, moved by the draw */
    int newest; /* row of the step before that draws the sequence's newest token, which the lists above do
                   not know of yet; -1: they know all */
    uint64_t seed, stream, counter; /* counter RNG: key, branch, position */
    la_logits_fn process;           /* changes processed, a copy of the logits; or NULL */
    void *process_arg;
    float *processed;         /* [V] */
    int n_top;                /* best logprobs wanted; -1: no logprobs at all */
    int report;               /* LA_REPORT_*, of a target the raw one */
    const int32_t *score_ids; /* [n_score] whose logprobs are wanted beside them */
    int n_score;
    /* results, written by the step */
    int32_t *out_token;  /* the draw (target < 0), or LA_DRAW_* */
    float *out_logprob;  /* of target or the draw, when n_top >= 0 */
    int *out_rank;       /* from 1 */
    int32_t *top_ids;    /* [n_top + n_score] best first, ties by lower id; then score_ids */
    float *top_logprobs; /* [n_top + n_score] */
    float *logits;       /* [V] raw logits copied here, or NULL */
} la_sample_row;

/* No token: nothing has a probability, or process failed. */
enum { LA_DRAW_EMPTY = -1, LA_DRAW_FAILED = -2 };
/* Hidden states of a run of tokens that are wanted: copied to out after the layers they come from. */
typedef struct la_capture {
    int first_token; /* index into la_batch.tokens */
    int n_tokens;
    const int32_t *layers; /* [n_layers] as la_request.state_layers */
    int n_layers;
    float *out;     /* [n_layers][stride]: n_tokens rows of D */
    int64_t stride; /* floats from one layer's to the next's */
} la_capture;

typedef struct la_batch {
    int n_tokens;          /* T <= limits.max_batch_tokens */
    const int32_t *tokens; /* [T]; -1 - i: what row i of the step before drew (la_model_ahead) */
    int n_spans;           /* <= limits.max_seqs */
    const la_span *spans;
    int n_rows; /* <= T */
    la_sample_row *rows;
    int n_captures; /* 0 where la_model_shows_states says no */
    const la_capture *captures;
} la_batch;

/* Runs the transformer on every thread of the backend. The rows' results are there after la_model_results, up to
 * which the batch is KEPT. LA_ERR_SYSTEM where a device failed: results are not there, and no later step of
 * this backend will do better. */
la_status la_model_forward(la_model *m, la_kv *kv, la_workspace *w, const la_batch *batch);
/* Waits for the oldest step of the workspace whose results were not asked for, and fills its rows'. */
la_status la_model_results(la_model *m, la_workspace *w);
/* LA_ERR_SYSTEM with the reason where the model's device has failed: nothing that it is asked for will be done. */
la_status la_model_alive(const la_model *m);
/* Steps that may be asked for before the results of the first: 0 or 1. */
int la_model_ahead(const la_model *m);
/* May draws of such a request depend on one that is still under way? */
int la_model_draws_ahead(const la_model *m, const la_sampling *p);

#endif
