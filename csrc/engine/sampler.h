/* sampler.h - what sampling has to remember of each branch: counts, bans, what is to be emitted, the
 * draw's counter.
 *
 * Owns the per-branch state behind la_sample_row: distinct tokens seen with their counts (for
 * penalties), the list of tokens banned in the next draw (stop ids below min_tokens, bad words,
 * n-grams that would come again), how long patterns have been repeating and whether the text thinks.
 * The arithmetic is the model's. Invariant: every array was sized when the request was admitted.
 * Called by request.c (start) and engine.c (fill, accept).
 */
#ifndef LA_SAMPLER_H
#define LA_SAMPLER_H

#include "../model/model.h"

enum { LA_MAX_PATTERN = 4096 }; /* tokens of a pattern that repetition is looked for */

/* Token ids with a place for each. */
typedef struct la_token_set {
    int32_t *ids; /* [capacity] in order of first sight */
    int n;
    int32_t *slots; /* [n_slots] hash table: index into ids + 1, or 0 */
    int n_slots;    /* a power of two, at least twice the capacity; 0: the set is not used */
} la_token_set;

/* Repetitions that the next token could continue (DRY). */
typedef struct la_dry {
    la_token_set next;
    int32_t *lengths; /* [capacity of next] of the longest that each would continue */
    float *penalties; /* [capacity of next] */
    int32_t *match;   /* [window] tokens that end like the whole, by distance from the end */
    int window;       /* tokens that are looked at; 0: DRY is off */
} la_dry;

typedef struct la_sampler {
    la_token_set seen;    /* of prompt and output, for penalties */
    int32_t *seen_counts; /* [capacity of seen] times generated */
    int32_t *ban_ids;     /* [la_sampler_bans] */
    int32_t *ban_after;   /* [la_sampler_bans] */
    la_dry dry;
    double mu;     /* mirostat's */
    int *runs;     /* [pattern_max] tokens at the end that equal the one L = i + 1 before */
    int repeats;   /* a pattern has come often enough */
    int thinking;  /* think_start has come and think_end has not */
    int n_thought; /* tokens since then */
} la_sampler;

/* What a branch looks back on when it draws or has drawn: given tokens, then its own. */
typedef struct la_draw {
    const int32_t *given[2]; /* [n_given] each: prompt, suffix */
    int n_given[2];
    const int32_t *output; /* [n_output] generated so far */
    int n_output;
    int newest; /* row of the step under way that draws one more; -1: none */
    int branch;
    int position;             /* of the token to be drawn, in prompt + suffix + output */
    const uint32_t *allowed;  /* [ceil(V/32)] bit mask, or NULL */
    const uint32_t *breakers; /* the same, of DRY; NULL: none */
} la_draw;

/* Distinct tokens to make room for, of a branch of n_tokens in all. */
int la_sampler_keep(const la_sampling *p, int n_tokens, int n_vocab);
/* Slots for that many tokens: a power of two at least twice as large. */
int la_sampler_slots(int n_keep);
/* Tokens that DRY looks at, of as many. */
int la_sampler_dry_window(const la_sampling *p, int n_tokens);
/* Most tokens that are banned in one draw. */
size_t la_sampler_bans(const la_sampling *p, int n_tokens);

/* Looks at the given tokens. */
void la_sampler_start(la_sampler *s, const la_sampling *p, const la_draw *d);
/* Notes the last token of the output. */
void la_sampler_accept(la_sampler *s, const la_sampling *p, const la_draw *d);
/* Fills everything of the row that says how to draw; not token, n_top, scores and the results. */
void la_sampler_fill(la_sampler *s, const la_sampling *p, const la_draw *d, la_sample_row *row);

/* Does the token end a sequence? By the copy that a request keeps, whose stop_ids are ascending. */
int la_sampling_stops(const la_sampling *p, int32_t token);

#endif
