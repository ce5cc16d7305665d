/* engine.h - the engine's inside: what a step is made of, shared by the files that make it.
 *
 * Owns nothing by itself: engine.c makes the structures and drives the step, assemble.c fills a step's
 * arrays from the plan, collect.c turns its results into events and ends sequences. Invariant: only
 * the stepping thread touches any of it. Included by those three.
 */
#ifndef LA_ENGINE_H
#define LA_ENGINE_H

#include "inbox.h"

/* FINISH events of a step beyond one for each sequence (many waiting requests cancelled at once);
 * more than that wait for the next step. */
enum { LA_SPARE_EVENTS = 256 };
/* Result entries (id and logprob) for each token of a step. */
enum { LA_ENTRIES_PER_TOKEN = 64 };

/* The tokens and rows of a step. */
typedef struct la_assembly {
    int32_t *tokens;      /* [max_batch_tokens] */
    la_span *spans;       /* [max_seqs] */
    la_seq **span_seqs;   /* [max_seqs] whose span it is */
    la_capture *captures; /* [2 max_seqs] of prompts and of what is drawn */
    la_sample_row *rows;  /* [max_batch_tokens] */
    la_seq **row_seqs;    /* [max_batch_tokens] whose row it is */
    int *row_positions;   /* [max_batch_tokens] fed position of the row */
    int32_t *out_tokens;  /* [max_batch_tokens] */
    float *out_logprobs;  /* [max_batch_tokens] */
    int *out_ranks;       /* [max_batch_tokens] */
    int32_t *top_ids;     /* [n_entries] */
    float *top_logprobs;  /* [n_entries] */
    int64_t n_entries;
    int64_t entries_used;
    int n_tokens, n_spans, n_rows, n_captures;
    la_batch batch; /* these arrays */
} la_assembly;

struct la_engine {
    la_model *model;
    la_kv *kv;
    la_workspace *workspace;
    la_limits limits;
    la_door door;
    la_kvcache cache;
    la_sched sched;
    la_inbox inbox;
    la_assembly steps[2]; /* taken in turns */
    la_assembly *step;    /* in the making, or collected */
    la_assembly *flying;  /* under way, to be collected by the next step; NULL: none */
    la_event *events;     /* [max_events] */
    int n_events;
    int max_events;
    int n_slack; /* steps in a row that needed less than half of the committed pages */
    int lost;    /* the device has failed: what is left is telling who ended */
    la_heap deadlines;
    la_live *first_ready;      /* searches whose beams all have their tokens, this step's */
    la_branch *first_finished; /* branches whose FINISH event is still to come, in order */
    la_branch *last_finished;
    la_engine_stats stats; /* the stepping thread's; published after each step */
    int64_t *expert_load;  /* [n_loads] as published; under the inbox's mutex */
    size_t n_loads;
    uint8_t *arrays;    /* one block; the arrays above lie in it */
    size_t array_bytes; /* of it and of the page tables */
};

/* Fills e->step from the scheduler's plan. */
void la_assemble(la_engine *e);
/* Waits for the results of a step and turns them into events; rows of sequences that ended while it was under way
 * are passed over. */
la_status la_collect(la_engine *e, const la_assembly *s);

la_branch *la_branch_of(const la_seq *q);
/* Ends a sequence that has not ended yet; its pages are free from here on. */
void la_end_seq(la_engine *e, la_seq *q, int reason, int32_t stop_token);
/* Ends a search: branch b is its b-th best result. */
void la_end_search(la_engine *e, la_live *live, int reason);
/* Queues the FINISH event of a branch whose sequence is done. */
void la_queue_finish(la_engine *e, la_branch *b);
/* FINISH events, as many as there is room for. */
void la_emit_finishes(la_engine *e);
/* Frees a request whose events have all gone and of which no row is under way. */
void la_forget_live(la_engine *e, la_live *live);

#endif
