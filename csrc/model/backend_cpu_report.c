/* backend_cpu_report.c - what a row reports beside its token: log probabilities or logits, ranks, the best.
 *
 * Owns the row that a draw was made from, made again for the report: the rules, the temperature, and
 * -INFINITY for what filters dropped. Invariant: a row's report depends on that row alone, its sums being
 * those of slices, added in order; the draw is the same whatever is reported. Called by
 * backend_cpu_sample.c.
 */
#include "backend_cpu_sample.h"

#include <math.h>

/* Makes *v what was drawn from, in own->ruled. */
static void drawn_view(const la_sample_row *r, la_kept kept, const la_cpu_local *own, la_view *v)
{
    la_cpu_rule(r, own, v);
    la_cpu_scale(v->k, kept.scale, own->ruled, v->V);
    if (kept.n >= 0) {
        for (int i = 0; i < kept.n; i++) {
            own->probs[i] = own->ruled[own->ids[i]];
        }
        for (int i = 0; i < v->V; i++) {
            own->ruled[i] = -INFINITY;
        }
        for (int i = 0; i < kept.n; i++) {
            own->ruled[own->ids[i]] = own->probs[i];
        }
    }
    v->k->block_max(own->ruled, v->V, own->ruled_best);
}

/* log of the sum of exp of a row, 0 where rules left nothing of it; mass: its slices' sums, NULL: to be made. */
static double log_sum(const la_view *v, const la_mass *mass)
{
    float max;
    double sum = 0.0;
    (void)v->k->argmax(v->best, v->units, &max);
    if (max == -INFINITY) {
        return 0.0;
    }
    for (int at = 0; at < v->V; at += LA_SLICE) {
        int n = v->V - at < LA_SLICE ? v->V - at : LA_SLICE;
        sum += mass != NULL ? mass[at / LA_SLICE].raw : v->k->sum_exp(v->x + at, 1.0f, max, n);
    }
    return (double)max + log(sum);
}

void la_cpu_report(const la_view *raw, const la_sample_row *r, const la_mass *mass,
                   const la_outcome *outcome, const la_cpu_local *own)
{
    la_view v = *raw;
    int drawn = la_cpu_reports_draw(r);
    int logits = r->report == LA_REPORT_LOGITS || r->report == LA_REPORT_DRAWN_LOGITS;
    if (drawn) {
        drawn_view(r, outcome->kept, own, &v);
    }
    double less = logits ? 0.0 : log_sum(&v, drawn ? NULL : mass);
    *r->out_logprob = (float)((double)v.x[outcome->token] - less);
    *r->out_rank = 1 + la_cpu_above(&v, v.x[outcome->token], own->units, NULL);
    if (r->n_top > 0) {
        la_cpu_best(&v, r->n_top, own, r->top_ids);
        for (int i = 0; i < r->n_top; i++) {
            r->top_logprobs[i] = (float)((double)v.x[r->top_ids[i]] - less);
        }
    }
    for (int i = 0; i < r->n_score; i++) {
        r->top_ids[r->n_top + i] = r->score_ids[i];
        r->top_logprobs[r->n_top + i] = (float)((double)v.x[r->score_ids[i]] - less);
    }
}
