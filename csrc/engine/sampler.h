/* sampler.h - what sampling has to remember of each branch: counts, bans, the draw's counter.
 *
 * Owns the per-branch state behind la_sample_row: distinct tokens seen with their counts (for
 * penalties) and the list of tokens banned in the next draw (stop ids below min_tokens, bad
 * words). The arithmetic is the model's. Invariant: every array was sized when the request was
 * admitted. Called by request.c (start) and engine.c (fill, accept).
 */
#ifndef LA_SAMPLER_H
#define LA_SAMPLER_H

#include "../model/model.h"

typedef struct la_sampler {
    int32_t *seen_ids;    /* [n_keep] distinct, in order of first sight */
    int32_t *seen_counts; /* [n_keep] times generated */
    int n_seen;
    int32_t *slots;     /* [n_slots] hash table: index into seen + 1, or 0 */
    int n_slots;        /* a power of two, or 0: no penalty asks for counts */
    int32_t *ban_ids;   /* [n_stop + n_bad] */
    int32_t *ban_after; /* [n_stop + n_bad] */
} la_sampler;

/* Where a branch stands when it draws. */
typedef struct la_draw {
    const int32_t *output; /* [n_output] generated so far */
    int n_output;
    int newest; /* row of the step under way that draws one more; -1: none */
    int branch;
    int position;            /* of the token to be drawn, in prompt + suffix + output */
    const uint32_t *allowed; /* [ceil(V/32)] bit mask, or NULL */
} la_draw;

/* Distinct tokens to make room for, of a branch of n_tokens in all. */
int la_sampler_keep(const la_sampling *p, int n_tokens, int n_vocab);
/* Slots for that many tokens: a power of two at least twice as large. */
int la_sampler_slots(int n_keep);

/* Given tokens count for the repetition penalty only. */
void la_sampler_start(la_sampler *s, const la_sampling *p, const int32_t *given, int n_given);
/* Notes a generated token. */
void la_sampler_accept(la_sampler *s, int32_t token);
/* Fills everything of the row that says how to draw; not token, n_top and the results. */
void la_sampler_fill(la_sampler *s, const la_sampling *p, const la_draw *d, la_sample_row *row);

#endif
