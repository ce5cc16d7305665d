/* backend_cpu_sample.h - what the files that draw share: a row with its best values, candidates, chance.
 *
 * Owns la_view (a row of logits as the rules of sampling have left it) and la_tempered. Invariant:
 * what is found in a row depends on that row alone, and ties go to the lower id. Functions are those
 * of backend_cpu_sample.c, but for the draw by filters, which is all of backend_cpu_filter.c.
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

/* In [0, 1), 53 bits: of the draw's place. lane: 0 for the draw itself, 1 for another number. */
double la_cpu_uniform(const la_sample_row *r, int lane);
/* Everything whose p is at least `least`, in id order with its p, into own->ids and own->probs; returns how
 * many. */
int la_cpu_gather(const la_view *v, la_tempered t, float least, const la_cpu_local *own);
double la_cpu_mass_of(const float *p, int n);
/* Index at which the running sum of p [n] passes u of the total. */
int la_cpu_draw_from(const float *p, int n, double u);

/* The draw of a row with r->filters, whose temperature is not 0; best: its largest logit, finite. */
int32_t la_cpu_draw_filtered(const la_view *v, const la_sample_row *r, float best,
                             const la_cpu_local *own);

#endif
