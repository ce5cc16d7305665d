/* beam.h - the beams of one request: which continuations go on, which have ended, which are best.
 *
 * Owns the paths of a request that is searched instead of sampled, and the rules of a search.
 * vLLM's: of every beam the 2 B best tokens are looked at; those that end the text leave the beam
 * for the list of the best B that have ended, the best B others go on. transformers': tokens of all
 * beams are taken in the order of their sums until B go on, but one that ends the text counts only
 * among the first B; a length is that of what was drawn, a stop id counted; and with B ended the
 * search is over where the best beam, at its length (SOON) or the longest (NEVER), comes before none
 * of them, or at once (FIRST). Sums of log probabilities are
 * doubles, added in order; a tie goes to the better beam, then to the better token, so the result
 * depends on the rows' bits alone. Invariant: everything lies in the request's one allocation.
 * Called by request.c (start) and engine.c, which moves the sequences as `parents` says.
 */
#ifndef LA_BEAM_H
#define LA_BEAM_H

#include "../model/model.h"
#include "carver.h"

enum { LA_MAX_BEAMS = 256 };

/* What one beam has drawn. */
typedef struct la_path {
    int32_t *ids;    /* [n] */
    float *logprobs; /* [n] */
    int32_t *ranks;  /* [n] from 1 */
    int n;
    int32_t end;  /* the stop id that ended it, its last; -1: none */
    double sum;   /* of logprobs */
    double score; /* of those in `ended` */
} la_path;

typedef struct la_beam {
    int rule;        /* LA_BEAM_* */
    int width;       /* B */
    int n_looked;    /* tokens looked at of each beam */
    int n_prompt;    /* tokens of it that count in the length that scores are divided by */
    int max_tokens;  /* drawn by each */
    double penalty;  /* score = sum / length^penalty */
    int n_live;      /* beams that go on: `live`, best first */
    int n_awaited;   /* of these, those whose tokens are still to come */
    int n_ended;     /* `ended`, best first */
    la_path *live;   /* [B] */
    la_path *next;   /* [B] live beams in the making */
    la_path *ended;  /* [B] */
    int *parents;    /* [B] which live beam each came from, by the last advance */
    int *cursors;    /* [B] */
    int32_t *ids;    /* [B, n_looked] best first */
    float *logprobs; /* [B, n_looked] */
} la_beam;

/* Tokens of a beam that its rule has to see: those that may go on and those that may end it. */
int la_beam_looked(int rule, int width, int n_stop, int n_vocab);
/* Lays out a search of `width` beams; NULL where only measured. */
la_beam *la_beam_carve(la_carver *c, int width, int max_tokens, int n_looked);
/* The tokens of one beam, best first. 1: they were the last awaited, and la_beam_advance follows. */
int la_beam_take(la_beam *m, int b, const int32_t *ids, const float *logprobs);
/* One token further. Returns the beams that go on; 0: the search is over. */
int la_beam_advance(la_beam *m, const la_sampling *p);
/* Moves beams that go on into `ended`, which then holds the results. */
void la_beam_close(la_beam *m);

#endif
