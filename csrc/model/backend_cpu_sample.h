/* backend_cpu_sample.h - what the files that draw share: a row with its best values, candidates, chance.
 *
 * Owns la_view (a row of logits as the rules of sampling have left it) and la_tempered. Invariant:
 * what is found in a row depends on that row alone, and ties go to the lower id. Functions are those
 * of backend_cpu_sample.c, but for the draw by filters, which is all of backend_cpu_filter.c, and the
 * report, which is all of backend_cpu_report.c.
 */
#ifndef LA_BACKEND_CPU_SAMPLE_H
#define LA_BACKEND_CPU_SAMPLE_H

#include "backend_cpu.h"

/* A row and the largest value of each of its units. */
typedef struct la_view {
    const la_kernels *k;
    const float *x;    /* [V] */
    const float *best; /* [units] */
    int V, units;
} la_view;

/* A row under its temperature: p = exp(x * scale - top), 1 for the best. */
typedef struct la_tempered {
    float scale, top;
} la_tempered;

/* What a draw was made from: the ruled row times scale, of n candidates in own->ids; -1: of all. */
typedef struct la_kept {
    float scale;
    int n;
} la_kept;

/* A row's token, and of a drawn one what it was drawn from. */
typedef struct la_outcome {
    int32_t token;
    la_kept kept;
} la_outcome;

static inline int la_cpu_wants_logprobs(const la_sample_row *r)
{
    return r->n_top >= 0 && r->target >= -1;
}

/* Does it report of what its draw was made from? */
static inline int la_cpu_reports_draw(const la_sample_row *r)
{
    return la_cpu_wants_logprobs(r) && r->target == -1 && r->report >= LA_REPORT_DRAWN_LOGPROBS;
}

/* Does it report log probabilities of the raw row? */
static inline int la_cpu_wants_sum(const la_sample_row *r)
{
    int logits = r->report == LA_REPORT_LOGITS || r->report == LA_REPORT_DRAWN_LOGITS;
    return la_cpu_wants_logprobs(r) && !la_cpu_reports_draw(r) && !logits;
}

/* In [0, 1), 53 bits: of the draw's place. lane: 0 for the draw itself, 1 for another number. */
double la_cpu_uniform(const la_sample_row *r, int lane);
/* Values above thr: their ids in order where ids [V] is given. Returns how many. units: scratch. */
int la_cpu_above(const la_view *v, float thr, int32_t *units, int32_t *ids);
/* Ids of the n largest values, best first. */
void la_cpu_best(const la_view *v, int n, const la_cpu_local *own, int32_t *out);
/* Makes *v the row after the rules, in own->ruled. */
void la_cpu_rule(const la_sample_row *r, const la_cpu_local *own, la_view *v);
/* Everything whose p is at least `least`, in id order with its p, into own->ids and own->probs; returns how
 * many. */
int la_cpu_gather(const la_view *v, la_tempered t, float least, const la_cpu_local *own);
double la_cpu_mass_of(const float *p, int n);
/* Index at which the running sum of p [n] passes u of the total. */
int la_cpu_draw_from(const float *p, int n, double u);

/* The draw of a row with r->filters, whose temperature is not 0; best: its largest logit, finite. */
int32_t la_cpu_draw_filtered(const la_view *v, const la_sample_row *r, float best,
                             const la_cpu_local *own, la_kept *kept);

/* The results beside the token of a row that wants logprobs. mass: the raw row's, where they are of that;
 * candidates of what was drawn are still in own->ids. */
void la_cpu_report(const la_view *raw, const la_sample_row *r, const la_mass *mass,
                   const la_outcome *outcome, const la_cpu_local *own);

#endif
