/* backend_cpu_filter.c - the draw by samplers beyond temperature, min_p, top_k and top_p.
 *
 * Owns top-n-sigma, dynamic temperature, locally typical sampling (Meister et al. 2022), XTC and
 * mirostat 1 and 2 (Basu et al. 2020), in the order of sampling.h. One thread holds the candidates of
 * a row in id order and lets each sampler drop some; where the best of a key are wanted it takes them
 * from a heap, so that a row is never sorted. Invariant: a draw depends on its row alone; equal keys
 * go to the lower id. Sums are doubles, in id order.
 */
#include "backend_cpu_sample.h"
#include "id_heap.h"

#include <math.h>

/* As request.c: below it a temperature only multiplies rounding errors. */
static const double LEAST_TEMPERATURE = 0.01;

enum { MIROSTAT_BEST = 100 }; /* candidates that Zipf's exponent is estimated from */

/* Candidates in id order. */
typedef struct filtered {
    float *p;      /* [n] above 0 */
    int32_t *ids;  /* [n] */
    float *key;    /* [n] scratch; may be the row that candidates were gathered from */
    int32_t *heap; /* [n] scratch */
    int n;
} filtered;

/* ---- the least of a key ------------------------------------------------------------------------ */

static void heap_all(const filtered *l)
{
    for (int i = 0; i < l->n; i++) {
        l->heap[i] = i;
    }
    la_id_heap_make(la_id_least, l->key, l->heap, l->n);
}

/* The index of least key of the `left` in the heap, taken out of it. */
static int heap_take(const filtered *l, int left)
{
    int first = l->heap[0];
    l->heap[0] = l->heap[left - 1];
    la_id_heap_sift(la_id_least, l->key, l->heap, left - 1, 0);
    return first;
}

/* Drops all whose p was not made negative, and makes those positive. */
static void keep_marked(filtered *l)
{
    int n = 0;
    for (int i = 0; i < l->n; i++) {
        float p = l->p[i];
        l->p[n] = -p;
        l->ids[n] = l->ids[i];
        n += p < 0.0f;
    }
    l->n = n;
}

/* Keeps those of least key: `limit` of them, or as many as hold a mass of `want`. */
static void keep_least(filtered *l, int limit, double want)
{
    double mass = 0.0;
    heap_all(l);
    for (int kept = 0; kept < l->n && kept < limit && !(kept > 0 && mass >= want); kept++) {
        int i = heap_take(l, l->n - kept);
        mass += (double)l->p[i];
        l->p[i] = -l->p[i];
    }
    keep_marked(l);
}

/* The same by probability. */
static void keep_best(filtered *l, int limit, double want)
{
    for (int i = 0; i < l->n; i++) {
        l->key[i] = -l->p[i];
    }
    keep_least(l, limit, want);
}

/* ---- samplers ----------------------------------------------------------------------------------- */

/* The least logit within n standard deviations of the best; those of -inf do not count. */
static double sigma_floor(const la_view *v, float best, double n_sigma)
{
    double sum = 0.0, squares = 0.0;
    int n = 0;
    for (int i = 0; i < v->V; i++) {
        if (v->x[i] > -INFINITY) {
            double d = (double)v->x[i] - (double)best;
            sum += d;
            squares += d * d;
            n++;
        }
    }
    double variance = squares / n - sum / n * (sum / n);
    return (double)best - n_sigma * sqrt(variance > 0.0 ? variance : 0.0);
}

/* Drops logits below the floor. */
static void keep_above(filtered *l, const la_view *v, double least)
{
    int n = 0;
    for (int i = 0; i < l->n; i++) {
        l->p[n] = l->p[i];
        l->ids[n] = l->ids[i];
        n += (double)v->x[l->ids[i]] >= least;
    }
    l->n = n;
}

static double entropy(const filtered *l)
{
    double total = la_cpu_mass_of(l->p, l->n), sum = 0.0;
    for (int i = 0; i < l->n; i++) {
        sum += (double)l->p[i] * log((double)l->p[i]);
    }
    return log(total) - sum / total;
}

/* Between temperature - range and + range, by how flat the candidates are: entropy over its most. */
static double dynamic_temperature(const filtered *l, double mid, const la_sampling *f)
{
    double range = (double)f->dynatemp_range, least = mid > range ? mid - range : 0.0;
    double flat = l->n > 1 ? entropy(l) / log(l->n) : 0.0;
    flat = pow(flat > 0.0 ? flat : 0.0, (double)f->dynatemp_exponent);
    double t = least + (mid + range - least) * flat;
    return t > LEAST_TEMPERATURE ? t : LEAST_TEMPERATURE;
}

/* Those whose surprise is nearest the entropy. */
static void keep_typical(filtered *l, double typical_p)
{
    double total = la_cpu_mass_of(l->p, l->n), expected = entropy(l), lse = log(total);
    for (int i = 0; i < l->n; i++) {
        l->key[i] = (float)fabs(lse - log((double)l->p[i]) - expected);
    }
    keep_least(l, l->n, typical_p * total);
}

/* With some probability all of the likely ones but the least likely of them are dropped. */
static void exclude_top(filtered *l, const la_sample_row *r)
{
    const la_sampling *f = r->filters;
    double least = (double)f->xtc_threshold * la_cpu_mass_of(l->p, l->n);
    int likely = 0, last = -1;
    if (!(la_cpu_uniform(r, 1) < (double)f->xtc_probability)) {
        return;
    }
    for (int i = 0; i < l->n; i++) {
        if ((double)l->p[i] >= least) {
            likely++;
            last = last < 0 || l->p[i] <= l->p[last] ? i : last;
        }
    }
    for (int i = 0; i < l->n; i++) {
        int drop = likely > 1 && (double)l->p[i] >= least && i != last;
        l->p[i] = drop ? l->p[i] : -l->p[i];
    }
    keep_marked(l);
}

/* How many candidates have an expected surprise of mu, if they follow Zipf's law. */
static int zipf_size(const filtered *l, double mu, int n_vocab)
{
    double products = 0.0, squares = 0.0, before = 0.0;
    int m = l->n < MIROSTAT_BEST ? l->n : MIROSTAT_BEST;
    for (int i = 0; i < l->n; i++) {
        l->key[i] = -l->p[i];
    }
    heap_all(l);
    for (int i = 0; i < m; i++) {
        double now = log((double)l->p[heap_take(l, l->n - i)]);
        if (i > 0) {
            double t = log((i + 1.0) / i);
            products += t * (before - now);
            squares += t * t;
        }
        before = now;
    }
    if (squares == 0.0) { /* one candidate */
        return 1;
    }
    double exponent = products / squares, epsilon = exponent - 1.0;
    double spread = epsilon == 0.0 ? log(n_vocab) : (1.0 - pow(n_vocab, -epsilon)) / epsilon;
    double k = pow(pow(2.0, mu) / spread, 1.0 / exponent);
    return !(k >= 1.0) ? 1 : k < l->n ? (int)k : l->n;
}

/* Drops what is more surprising than mu; the best stays. */
static void keep_expected(filtered *l, double mu)
{
    double total = la_cpu_mass_of(l->p, l->n);
    int best = 0, any = 0;
    for (int i = 0; i < l->n; i++) {
        best = l->p[i] > l->p[best] ? i : best;
    }
    for (int i = 0; i < l->n; i++) {
        if (log2(total / (double)l->p[i]) <= mu) {
            l->p[i] = -l->p[i];
            any = 1;
        }
    }
    l->p[best] = any ? l->p[best] : -l->p[best]; /* the best passes wherever another does */
    keep_marked(l);
}

/* Which candidate, and mu moved towards a surprise of tau. */
static int mirostat(filtered *l, const la_sample_row *r, int n_vocab)
{
    const la_sampling *f = r->filters;
    if (f->mirostat == 1) {
        keep_best(l, zipf_size(l, *r->mu, n_vocab), INFINITY);
    }
    else {
        keep_expected(l, *r->mu);
    }
    int at = la_cpu_draw_from(l->p, l->n, la_cpu_uniform(r, 0));
    double surprise = log2(la_cpu_mass_of(l->p, l->n) / (double)l->p[at]);
    *r->mu -= (double)f->mirostat_eta * (surprise - (double)f->mirostat_tau);
    return at;
}

/* ---- the draw ----------------------------------------------------------------------------------- */

/* Fills the list with logits not below the floor whose p is at least `least`. */
static void fill(filtered *l, const la_view *v, la_tempered t, double floor, float least,
                 const la_cpu_local *own)
{
    l->n = la_cpu_gather(v, t, least > 0.0f ? least : 0x1p-149f, own);
    if (floor > -INFINITY) {
        keep_above(l, v, floor);
    }
}

int32_t la_cpu_draw_filtered(const la_view *v, const la_sample_row *r, float best,
                             const la_cpu_local *own, la_kept *kept)
{
    const la_sampling *f = r->filters;
    filtered l = {.p = own->probs, .ids = own->ids, .key = own->ruled, .heap = own->heap};
    double floor = -INFINITY;
    la_tempered t = {.scale = 1.0f / r->temperature};
    if (f->top_n_sigma > 0.0f) {
        floor = sigma_floor(v, best, (double)f->top_n_sigma);
    }
    if (f->dynatemp_range > 0.0f) {
        fill(&l, v, (la_tempered){1.0f, best}, floor, 0.0f, own);
        t.scale = (float)(1.0 / dynamic_temperature(&l, (double)r->temperature, f));
    }
    t.top = best * t.scale;
    fill(&l, v, t, floor, r->min_p, own);
    if (f->mirostat != 0) {
        int at = mirostat(&l, r, v->V);
        *kept = (la_kept){t.scale, l.n};
        return l.ids[at];
    }
    if (r->top_k > 0 && r->top_k < l.n) {
        keep_best(&l, r->top_k, INFINITY);
    }
    if (f->typical_p < 1.0f) {
        keep_typical(&l, (double)f->typical_p);
    }
    if (r->top_p < 1.0f) {
        keep_best(&l, l.n, (double)r->top_p * la_cpu_mass_of(l.p, l.n));
    }
    if (f->xtc_probability > 0.0f) {
        exclude_top(&l, r);
    }
    *kept = (la_kept){t.scale, l.n};
    return l.ids[la_cpu_draw_from(l.p, l.n, la_cpu_uniform(r, 0))];
}
