/* backend_cpu_sample.c - from a row of logits to a token, its logprob and the best alternatives.
 *
 * The order of operations is that of sampling.h. The product left the largest logit of every unit of
 * 32 beside the row: whoever looks for large values reads those and then few units. Sums over the
 * vocabulary are made in slices of fixed size by all threads and added in slice order. Draws come from
 * a counter RNG keyed by the row alone; those that need more than temperature, min_p, top_k and top_p
 * are in backend_cpu_filter.c, and what is reported of a row in backend_cpu_report.c. Invariant: ties go
 * to the lower id and neither batch nor threads can change a result.
 */
#include "backend_cpu_sample.h"
#include "id_heap.h"

#include <math.h>

enum {
    SELECT_BLOCK = 4096,
    BUCKETS = 2048,   /* 32 octaves of probability; the last bucket takes what is below */
    BUCKET_SHIFT = 17 /* 64 buckets an octave */
};

/* Philox 4x32-10 (Salmon et al. 2011): 64 random bits for (key, stream, counter), and another 64. */
static uint64_t philox(uint64_t key, uint64_t stream, uint64_t counter, int lane)
{
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream,
                     (uint32_t)(stream >> 32)};
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k0, (uint32_t)p1,
                            (uint32_t)(p0 >> 32) ^ c[3] ^ k1, (uint32_t)p0};
        memcpy(c, next, sizeof c);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t)c[2 * lane] << 32 | c[2 * lane + 1];
}

double la_cpu_uniform(const la_sample_row *r, int lane)
{
    return (double)(philox(r->seed, r->stream, r->counter, lane) >> 11) * 0x1p-53;
}

/* Lowest id of the largest value; 0 where all are NaN. */
static int best_id(const la_view *v, float *value)
{
    int u = v->k->argmax(v->best, v->units, value);
    for (int i = u * LA_UNIT; i < v->V; i++) {
        if (v->x[i] == *value) {
            return i;
        }
    }
    *value = v->x[0];
    return 0;
}

int la_cpu_above(const la_view *v, float thr, int32_t *units, int32_t *ids)
{
    int n_units = v->k->select_above(v->best, v->units, thr, units, v->units), n = 0;
    for (int i = 0, run; i < n_units; i += run) { /* runs of neighbours, in one call each */
        for (run = 1; i + run < n_units && units[i + run] == units[i] + run; run++) {
        }
        int first = units[i] * LA_UNIT, len = run * LA_UNIT;
        len = len < v->V - first ? len : v->V - first;
        int32_t *out = ids != NULL ? ids + n : NULL;
        int m = v->k->select_above(v->x + first, len, thr, out, ids != NULL ? v->V - n : 0);
        for (int j = 0; ids != NULL && j < m; j++) {
            out[j] += first;
        }
        n += m;
    }
    return n;
}

/* ---- the best n of a row ----------------------------------------------------------------------- */

/* Is (va, a) before (vb, b): larger value, then lower id. */
static int before(float va, int32_t a, float vb, int32_t b)
{
    return va > vb || (va == vb && a < b);
}

/* The order of heaps whose root is the worst. */
static int worse(const float *x, int32_t a, int32_t b)
{
    return before(x[b], b, x[a], a);
}

/* Sorts such a heap of n into best-first order. */
static void heap_sort(const float *x, int32_t *heap, int n)
{
    for (int end = n - 1; end > 0; end--) {
        int32_t t = heap[0];
        heap[0] = heap[end];
        heap[end] = t;
        la_id_heap_sift(worse, x, heap, end, 0);
    }
}

/* Ids of the n largest of x[V], best first. A later id equal to the worst kept one loses the tie, so
 * only values strictly above it are looked at. */
static void best_of(const la_kernels *k, const float *x, int V, int n, int32_t *out)
{
    for (int i = 0; i < n; i++) {
        out[i] = i;
    }
    la_id_heap_make(worse, x, out, n);
    for (int i = n; i < V; i += SELECT_BLOCK) {
        int32_t found[SELECT_BLOCK];
        int len = V - i < SELECT_BLOCK ? V - i : SELECT_BLOCK;
        int m = k->select_above(x + i, len, x[out[0]], found, SELECT_BLOCK);
        for (int j = 0; j < m; j++) {
            int32_t id = i + found[j];
            if (before(x[id], id, x[out[0]], out[0])) {
                out[0] = id;
                la_id_heap_sift(worse, x, out, n, 0);
            }
        }
    }
    heap_sort(x, out, n);
}

/* By way of the units: the n largest values are in the n units whose largest are largest, or equal the
 * smallest of these. */
void la_cpu_best(const la_view *v, int n, const la_cpu_local *own, int32_t *out)
{
    float least = -INFINITY;
    if (n < v->units) {
        best_of(v->k, v->best, v->units, n, own->units);
        least = v->best[own->units[n - 1]];
    }
    if (!(least > -INFINITY)) {
        best_of(v->k, v->x, v->V, n, out);
        return;
    }
    int m = la_cpu_above(v, nextafterf(least, -INFINITY), own->units, own->ids);
    la_id_heap_make(worse, v->x, own->ids, m);
    heap_sort(v->x, own->ids, m);
    memcpy(out, own->ids, (size_t)n * sizeof *out);
}

/* ---- what sampling parameters do to logits ------------------------------------------------------ */

static int changes_logits(const la_sample_row *r)
{
    return r->process != NULL || r->allowed != NULL || r->n_ban != 0 || r->n_bias != 0 ||
           r->n_seen != 0 || r->n_dry != 0;
}

/* One logit of the ruled row; the best of its unit follows. */
static void set_logit(const la_view *v, const la_cpu_local *own, int32_t id, float value)
{
    float *best = &own->ruled_best[id / LA_UNIT];
    float old = own->ruled[id];
    own->ruled[id] = value;
    if (value > *best) {
        *best = value;
    }
    else if (old == *best) {
        int first = id / LA_UNIT * LA_UNIT;
        v->k->block_max(own->ruled + first, v->V - first < LA_UNIT ? v->V - first : LA_UNIT, best);
    }
}

void la_cpu_rule(const la_sample_row *r, const la_cpu_local *own, la_view *v)
{
    const float *x = r->process != NULL ? r->processed : v->x;
    if (r->allowed != NULL) {
        v->k->mask(r->allowed, x, own->ruled, v->V);
    }
    else {
        memcpy(own->ruled, x, (size_t)v->V * sizeof(float));
    }
    if (x != v->x || r->allowed != NULL) {
        v->k->block_max(own->ruled, v->V, own->ruled_best);
    }
    else {
        memcpy(own->ruled_best, v->best, (size_t)v->units * sizeof(float));
    }
    for (int i = 0; i < r->n_ban; i++) {
        set_logit(v, own, r->ban_ids[i], -INFINITY);
    }
    for (int i = 0; i < r->n_bias; i++) {
        set_logit(v, own, r->bias_ids[i], own->ruled[r->bias_ids[i]] + r->bias[i]);
    }
    for (int i = 0; i < r->n_seen; i++) {
        float y = own->ruled[r->seen_ids[i]];
        y = y > 0.0f ? y / r->repetition : y * r->repetition;
        if (r->seen_counts[i] > 0) {
            y -= r->frequency * (float)r->seen_counts[i] + r->presence;
        }
        set_logit(v, own, r->seen_ids[i], y);
    }
    for (int i = 0; i < r->n_dry; i++) {
        set_logit(v, own, r->dry_ids[i], own->ruled[r->dry_ids[i]] - r->dry[i]);
    }
    v->x = own->ruled;
    v->best = own->ruled_best;
}

/* ---- candidates, best first --------------------------------------------------------------------- */

/* Candidates in id order with their p, never 0, and how much lies in each bucket of p. Few buckets are
 * ever sorted: those in which a set ends or a draw falls. */
typedef struct shortlist {
    const float *p;     /* [n] */
    const int32_t *ids; /* [n] */
    int n;
    int32_t *members; /* [n] scratch: candidates of one bucket, best first */
    double mass[BUCKETS];
    int count[BUCKETS];
} shortlist;

/* 0 for 1, more for less. */
static int bucket_of(float p)
{
    int32_t bits;
    memcpy(&bits, &p, sizeof bits);
    int b = (0x3f800000 - bits) >> BUCKET_SHIFT;
    return b < BUCKETS - 1 ? b : BUCKETS - 1;
}

/* No p of buckets 0..b lies below it. */
static float bucket_floor(int b)
{
    int32_t bits = 0x3f800000 - ((b + 1) << BUCKET_SHIFT);
    float p;
    memcpy(&p, &bits, sizeof p);
    return b < BUCKETS - 1 ? p : 0x1p-149f;
}

/* Where a walk down the list ended: members and mass up to there, the last one's id. */
typedef struct mark {
    int n;
    double mass;
    int32_t id;
} mark;

static int list_members(const shortlist *l, int bucket)
{
    int n = 0;
    for (int i = 0; i < l->n; i++) {
        if (bucket_of(l->p[i]) == bucket) {
            l->members[n++] = i;
        }
    }
    /* members are in id order, so index ties are id ties */
    la_id_heap_make(worse, l->p, l->members, n);
    heap_sort(l->p, l->members, n);
    return n;
}

/* Down the list until `limit` members or a mass of `want` are reached. */
static mark list_walk(const shortlist *l, int limit, double want)
{
    mark at = {0, 0.0, l->ids[0]};
    for (int b = 0; b < BUCKETS && at.n < l->n; b++) {
        if (l->count[b] == 0) {
            continue;
        }
        if (at.n + l->count[b] < limit && at.mass + l->mass[b] < want) {
            at.n += l->count[b];
            at.mass += l->mass[b];
            continue;
        }
        int n = list_members(l, b);
        for (int i = 0; i < n; i++) {
            at.n++;
            at.mass += (double)l->p[l->members[i]];
            at.id = l->ids[l->members[i]];
            if (at.n >= limit || at.mass >= want) {
                return at;
            }
        }
    }
    return at;
}

int la_cpu_gather(const la_view *v, la_tempered t, float least, const la_cpu_local *own)
{
    /* A bound on logits that surely lets them pass; exp then decides. */
    double slack = 0.01 + fabs((double)t.top) * 0x1p-20;
    double thr = ((double)t.top + log((double)least) - slack) / (double)t.scale;
    int n = la_cpu_above(v, nextafterf((float)thr, -INFINITY), own->units, own->ids), kept = 0;
    for (int i = 0; i < n; i++) {
        own->probs[i] = v->x[own->ids[i]];
    }
    v->k->exp_sub(own->probs, t.scale, t.top, own->probs, n);
    for (int i = 0; i < n; i++) {
        float p = own->probs[i];
        own->probs[kept] = p; /* no branch: about half pass where many are looked at */
        own->ids[kept] = own->ids[i];
        kept += p >= least;
    }
    return kept;
}

/* Fills the list with what gather finds; returns its mass. */
static double list_fill(shortlist *l, const la_view *v, la_tempered t, float least,
                        const la_cpu_local *own)
{
    double sum = 0.0;
    memset(l->mass, 0, sizeof l->mass);
    memset(l->count, 0, sizeof l->count);
    l->n = la_cpu_gather(v, t, least, own);
    for (int i = 0; i < l->n; i++) {
        int b = bucket_of(l->p[i]);
        l->mass[b] += (double)l->p[i];
        l->count[b]++;
    }
    for (int b = 0; b < BUCKETS; b++) {
        sum += l->mass[b];
    }
    return sum;
}

double la_cpu_mass_of(const float *p, int n)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += (double)p[i];
    }
    return sum;
}

/* A p that the k best reach: that many units have a value as large. */
static float least_of_best(const la_view *v, la_tempered t, int k, const la_cpu_local *own)
{
    int count[BUCKETS] = {0}, n = 0;
    v->k->exp_sub(v->best, t.scale, t.top, own->probs, v->units);
    for (int u = 0; u < v->units; u++) {
        if (own->probs[u] > 0.0f) {
            count[bucket_of(own->probs[u])]++;
        }
    }
    for (int b = 0; b < BUCKETS; b++) {
        n += count[b];
        if (n >= k) {
            return bucket_floor(b);
        }
    }
    return 0x1p-149f;
}

/* ---- drawing ----------------------------------------------------------------------------------- */

int la_cpu_draw_from(const float *p, int n, double u)
{
    double total = la_cpu_mass_of(p, n), sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += (double)p[i];
        if (sum > u * total) {
            return i;
        }
    }
    return n - 1;
}

/* The id of a draw over the whole vocabulary: by slices, then inside one. */
static int32_t draw_any(const la_view *v, la_tempered t, const la_mass *mass, double total,
                        double u, const la_cpu_local *own)
{
    double sum = 0.0;
    int at = 0;
    for (; at + LA_SLICE < v->V && !(sum + mass[at / LA_SLICE].tempered > u * total);
         at += LA_SLICE) {
        sum += mass[at / LA_SLICE].tempered;
    }
    int n = v->V - at < LA_SLICE ? v->V - at : LA_SLICE, last = -1;
    v->k->exp_sub(v->x + at, t.scale, t.top, own->probs, n);
    for (int i = 0; i < n; i++) {
        sum += (double)own->probs[i];
        last = own->probs[i] > 0.0f ? i : last;
        if (sum > u * total) {
            return at + i;
        }
    }
    float unused;
    return last >= 0 ? at + last : best_id(v, &unused);
}

/* Leaves the members up to `end` in ids; returns how many. A walk to the very end knows no last id. */
static int list_keep(const shortlist *l, mark end, int32_t *ids)
{
    float least = 0.0f;
    int n = 0;
    if (end.n == l->n) {
        return end.n;
    }
    for (int i = 0; i < l->n; i++) {
        least = l->ids[i] == end.id ? l->p[i] : least;
    }
    for (int i = 0; i < l->n; i++) {
        int kept = l->p[i] == least ? l->ids[i] <= end.id : l->p[i] > least;
        ids[n] = l->ids[i];
        n += kept;
    }
    return n;
}

/* The smallest set of best candidates that holds top_p of what min_p leaves, or of the top_k best. */
static int32_t draw_best(const la_view *v, const la_sample_row *r, la_tempered t, double total,
                         const la_cpu_local *own, la_kept *kept)
{
    shortlist l = {.p = own->probs, .ids = own->ids, .members = (int32_t *)(void *)own->ruled};
    float floor = r->min_p > 0.0f ? r->min_p : 0x1p-149f;
    double want = INFINITY, u = la_cpu_uniform(r, 0);
    int limit = r->top_k > 0 ? r->top_k : v->V;
    if (r->top_k > 0) {
        float least = least_of_best(v, t, limit, own);
        list_fill(&l, v, t, least > floor ? least : floor, own);
    }
    else {
        if (r->min_p > 0.0f) {
            total = la_cpu_mass_of(own->probs, la_cpu_gather(v, t, floor, own));
        }
        want = (double)r->top_p * total;
        /* Above falling thresholds, until they hold enough. What lies below `sure` cannot be missed: V
         * such values do not make up the rest. */
        float sure = (float)(0.999 * (1.0 - (double)r->top_p) * total / v->V);
        for (float least = 0x1p-4f;;) {
            double found = list_fill(&l, v, t, least > floor ? least : floor, own);
            if (least <= floor || found >= want) {
                break;
            }
            int near = least > 0x1p-8f && found >= 0.5 * want; /* else the row is flat */
            least = near ? 0x1p-8f : least > sure ? sure : floor;
        }
    }
    mark end = list_walk(&l, limit, want);
    if (r->top_k > 0 && r->top_p < 1.0f) {
        end = list_walk(&l, end.n, (double)r->top_p * end.mass);
    }
    /* past u of it, not at it */
    int32_t id = list_walk(&l, end.n, nextafter(u * end.mass, INFINITY)).id;
    if (la_cpu_reports_draw(r)) {
        kept->n = list_keep(&l, end, own->ids);
    }
    return id;
}

/* Sums of exp of every slice of a row under its temperature. */
static void sum_row(const la_view *v, la_tempered t, la_mass *mass)
{
    for (int at = 0; at < v->V; at += LA_SLICE) {
        int n = v->V - at < LA_SLICE ? v->V - at : LA_SLICE;
        mass[at / LA_SLICE].tempered = v->k->sum_exp(v->x + at, t.scale, t.top, n);
    }
}

/* Whether a draw needs the mass of the whole vocabulary. */
static int needs_mass(const la_sample_row *r)
{
    return r->target == -1 && (r->forced < 0 || la_cpu_reports_draw(r)) && r->temperature > 0.0f &&
           r->top_k == 0 && r->min_p == 0.0f && r->filters == NULL;
}

/* summed: whether mass holds the row's tempered sums. */
static int32_t draw(const la_view *v, const la_sample_row *r, la_mass *mass, int summed,
                    const la_cpu_local *own, la_kept *kept)
{
    la_tempered t = {.scale = 1.0f / r->temperature};
    float best;
    double total = 0.0;
    kept->scale = t.scale;
    (void)v->k->argmax(v->best, v->units, &best);
    t.top = best * t.scale;
    if (!(t.top > -INFINITY) || t.top == INFINITY) {
        /* nothing is left to choose from, or one infinite logit */
        memcpy(own->probs, v->x, (size_t)v->V * sizeof(float));
        la_cpu_scale(v->k, t.scale, own->probs, v->V);
        return v->k->argmax(own->probs, v->V, &best);
    }
    if (r->filters != NULL) {
        return la_cpu_draw_filtered(v, r, best, own, kept);
    }
    if (needs_mass(r) && !summed) {
        sum_row(v, t, mass);
    }
    for (int s = 0; needs_mass(r) && s < la_ceil_div(v->V, LA_SLICE); s++) {
        total += mass[s].tempered;
    }
    if (r->top_k > 0 || r->top_p < 1.0f) {
        return draw_best(v, r, t, total, own, kept);
    }
    if (r->min_p > 0.0f) {
        kept->n = la_cpu_gather(v, t, r->min_p, own);
        return own->ids[la_cpu_draw_from(own->probs, kept->n, la_cpu_uniform(r, 0))];
    }
    return draw_any(v, t, mass, total, la_cpu_uniform(r, 0), own);
}

/* ---- a row -------------------------------------------------------------------------------------- */

/* The draw; of a forced token only what it would be made from, where that is asked for. */
static int32_t choose(la_view v, const la_sample_row *r, la_mass *mass, const la_cpu_local *own,
                      la_kept *kept)
{
    int ruled = changes_logits(r);
    float value;
    *kept = (la_kept){1.0f, -1};
    if (r->forced >= 0 && !la_cpu_reports_draw(r)) {
        return r->forced;
    }
    if (ruled) {
        la_cpu_rule(r, own, &v);
        (void)v.k->argmax(v.best, v.units, &value);
        if (value == -INFINITY) {
            return r->forced >= 0 ? r->forced : LA_DRAW_EMPTY;
        }
    }
    double mu = r->forced >= 0 && r->mu != NULL ? *r->mu : 0.0;
    int32_t token =
        r->temperature <= 0.0f ? best_id(&v, &value) : draw(&v, r, mass, !ruled, own, kept);
    if (r->forced >= 0) {
        if (r->mu != NULL) {
            *r->mu = mu;
        }
        return r->forced;
    }
    return token;
}

static la_view view_of(const la_ctx *c, la_rows logits, int i)
{
    int V = c->m->desc.n_vocab;
    return (la_view){&la_cpu_of(c)->k, logits.p + (int64_t)i * logits.ld,
                     c->w->best.p + (int64_t)i * c->w->best.ld, V, la_ceil_div(V, LA_UNIT)};
}

static int wants_tempered(const la_sample_row *r)
{
    return needs_mass(r) && !changes_logits(r);
}

/* The sums of a slice that the row wants. */
static void sum_slice(const la_view *v, const la_sample_row *r, int at, float best, la_mass *mass)
{
    int raw = la_cpu_wants_sum(r), n = v->V - at < LA_SLICE ? v->V - at : LA_SLICE;
    if (raw) {
        mass->raw = v->k->sum_exp(v->x + at, 1.0f, best, n);
    }
    if (wants_tempered(r)) {
        float scale = 1.0f / r->temperature;
        mass->tempered =
            raw && scale == 1.0f ? mass->raw : v->k->sum_exp(v->x + at, scale, best * scale, n);
    }
}

/* The sums over the vocabulary that rows want of their logits as they are, by all threads. */
static void sum_slices(la_ctx *c, int first, la_rows logits)
{
    int n_slices = la_ceil_div(c->m->desc.n_vocab, LA_SLICE), any = 0, at_row = -1;
    la_view v = {0};
    float best = 0.0f;
    for (int i = 0; i < logits.n; i++) {
        const la_sample_row *r = &c->batch->rows[first + i];
        any |= la_cpu_wants_sum(r) || wants_tempered(r);
    }
    if (!any) { /* rows are the same for all threads, so all meet or none does */
        return;
    }
    la_share share;
    la_cpu_share_begin(c, &share, logits.n * n_slices, NULL);
    for (int item; la_share_next(&share, 1, &item) != 0;) {
        int i = item / n_slices, s = item % n_slices;
        const la_sample_row *r = &c->batch->rows[first + i];
        if (!la_cpu_wants_sum(r) && !wants_tempered(r)) {
            continue;
        }
        if (i != at_row) {
            at_row = i;
            v = view_of(c, logits, i);
            (void)v.k->argmax(v.best, v.units, &best);
        }
        sum_slice(&v, r, s * LA_SLICE, best, c->w->mass + (int64_t)i * n_slices + s);
    }
    la_cpu_barrier(c);
}

/* What callers' own functions do to copies of their logits, on the thread that runs the step. */
static void process_rows(la_ctx *c, int first, la_rows logits)
{
    int any = 0;
    for (int i = 0; i < logits.n; i++) {
        la_sample_row *r = &c->batch->rows[first + i];
        any |= r->process != NULL;
        if (c->tid == 0 && r->process != NULL) {
            memcpy(r->processed, logits.p + (int64_t)i * logits.ld,
                   (size_t)c->m->desc.n_vocab * sizeof(float));
            int failed = r->process(r->process_arg, (int)r->stream, r->processed);
            *r->out_token = failed ? LA_DRAW_FAILED : 0;
        }
    }
    if (any) {
        la_cpu_barrier(c);
    }
}

void la_cpu_sample(la_ctx *c, int first, la_rows logits)
{
    int n_slices = la_ceil_div(c->m->desc.n_vocab, LA_SLICE);
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    process_rows(c, first, logits);
    sum_slices(c, first, logits);
    la_share share;
    la_cpu_share_begin(c, &share, logits.n, NULL);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        const la_sample_row *r = &c->batch->rows[first + i];
        la_mass *mass = c->w->mass + (int64_t)i * n_slices;
        la_view v = view_of(c, logits, i);
        if (r->logits != NULL) {
            memcpy(r->logits, v.x, (size_t)v.V * sizeof(float));
        }
        int32_t token = r->target;
        la_kept kept = {1.0f, -1};
        if (token == -1) {
            int failed = r->process != NULL && *r->out_token == LA_DRAW_FAILED;
            token = failed ? LA_DRAW_FAILED : choose(v, r, mass, &own, &kept);
            *r->out_token = token;
        }
        if (la_cpu_wants_logprobs(r) && token >= 0) {
            la_cpu_report(&v, r, mass, &(la_outcome){token, kept}, &own);
        }
    }
    la_cpu_barrier(c);
}
