/* request.h - a request from the door to its last event: checked, copied, one allocation.
 *
 * Owns everything about a request that is not integers of the scheduler: prompt, suffixes, outputs,
 * sampling state. Invariant: after la_request_admit nothing in it can be wrong, and no later step
 * needs more memory for it. Admitted by any thread (la_engine_add), then touched by the stepping
 * thread alone, apart from the fields inbox.c guards.
 */
#ifndef LA_REQUEST_H
#define LA_REQUEST_H

#include "beam.h"
#include "sampler.h"
#include "scheduler.h"

enum { LA_MAX_BRANCHES = 16384 };

/* What the engine makes of one branch. */
typedef struct la_branch {
    const int32_t *suffix; /* [n_suffix] */
    int n_suffix;
    int32_t *output; /* [max_tokens]; beams: of its path */
    int n_output;
    int n_told;    /* beams: tokens of its result that events have told of */
    int under_way; /* row of the step under way that draws one more; -1: none */
    int foreseen;  /* 1: that one is among the tokens to feed */
    la_sampler sampler;
    int reason; /* LA_FINISH_*, once the sequence is done */
    int32_t stop_token;
    struct la_branch *next_finished;
    struct la_live *live;
} la_branch;

typedef struct la_live {
    la_group group; /* branch b is group.seqs[b] and branches[b] */
    int64_t id;
    int n_branches;
    la_branch *branches;        /* [n_branches] */
    la_beam *beam;              /* NULL: no search */
    struct la_live *next_ready; /* engine.c's: whose beams all have their tokens */
    int n_open;                 /* branches whose last event is still to come */
    int n_rows;                 /* of the step under way */
    int ahead;                  /* 1: what it draws may be fed before it is known */
    const int32_t *prompt;      /* [n_prompt] */
    int n_prompt;
    la_sampling sampling;     /* arrays point into this allocation; max_tokens fits max_len */
    const uint32_t *allowed;  /* [ceil(V/32)] or NULL */
    const uint32_t *breakers; /* the same, of DRY */
    /* the caller's, as la_request has them */
    float *logits, *drawn_logits, *states, *drawn_states;
    const int32_t *state_layers; /* [n_states] */
    int n_states, state_from, state_to;
    int n_drawn;          /* rows of a branch in drawn_logits and drawn_states */
    la_logits_fn process; /* with its argument and rows the caller's, or NULL */
    void *process_arg;
    float *process_rows;        /* [n_branches, V] */
    double deadline;            /* la_now() time; 0: none */
    la_heap_node deadline_node; /* engine.c's queue; hi in nanoseconds */
    double scheduled;           /* la_now() of the step that first fed it; 0: none yet */
    /* guarded by the inbox's mutex */
    unsigned char *cancelled; /* [n_branches] */
    int in_cancels;
    struct la_live *next_new;
    struct la_live *next_cancel;
    struct la_live *next_in_bucket;
} la_live;

/* What a request is checked against. */
typedef struct la_door {
    int n_vocab, n_layers, d_model;
    int shows_states;
    int max_len;
    int64_t n_pages;
    int max_seqs;
} la_door;

/* Checks and copies. Free with la_free. */
la_status la_request_admit(const la_door *door, const la_request *r, la_live **out);

/* Token at a position that is already known. */
int32_t la_request_token(const la_live *live, int branch, int position);

/* What a branch looks back on before the draw of the token at `position`. */
la_draw la_request_draw(const la_live *live, const la_branch *b, int position);

#endif
