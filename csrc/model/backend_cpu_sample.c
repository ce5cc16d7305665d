/* backend_cpu_sample.c - from a row of logits to a token, its logprob and the best alternatives.
 *
 * Order of operations: raw logprobs, then allowed, banned, bias, penalties, temperature, min_p, top_k,
 * top_p, draw. Draws come from a counter RNG keyed by the row alone. Invariant: a row is computed by one
 * thread in a fixed order, ties go to the lower id, so neither batch nor threads can change a result.
 */
#include "backend_cpu.h"

#include <math.h>
#include <stdlib.h>

enum { SELECT_BLOCK = 4096 };

/* Philox 4x32-10 (Salmon et al. 2011): 64 random bits for (key, stream, counter). */
static uint64_t philox(uint64_t key, uint64_t stream, uint64_t counter)
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
    return (uint64_t)c[0] << 32 | c[1];
}

/* In [0, 1), 53 bits. */
static double uniform(const la_sample_row *r)
{
    return (double)(philox(r->seed, r->stream, r->counter) >> 11) * 0x1p-53;
}

/* ---- the best n of a row ----------------------------------------------------------------------- */

/* Is (va, a) before (vb, b): larger value, then lower id. */
static int before(float va, int32_t a, float vb, int32_t b)
{
    return va > vb || (va == vb && a < b);
}

/* Restores a heap whose root is the worst of its n candidates. */
static void sift_down(const float *x, int32_t *heap, int n, int i)
{
    for (;;) {
        int worst = i, l = 2 * i + 1, r = l + 1;
        if (l < n && before(x[heap[worst]], heap[worst], x[heap[l]], heap[l])) {
            worst = l;
        }
        if (r < n && before(x[heap[worst]], heap[worst], x[heap[r]], heap[r])) {
            worst = r;
        }
        if (worst == i) {
            return;
        }
        int32_t t = heap[i];
        heap[i] = heap[worst];
        heap[worst] = t;
        i = worst;
    }
}

/* Sorts a worst-first heap into best-first order. */
static void heap_sort(const float *x, int32_t *heap, int n)
{
    for (int end = n - 1; end > 0; end--) {
        int32_t t = heap[0];
        heap[0] = heap[end];
        heap[end] = t;
        sift_down(x, heap, end, 0);
    }
}

/* Ids of the n largest of x[V], best first. A later id equal to the worst kept one loses the tie, so
 * only values strictly above it are looked at. */
static void best_of(const la_kernels *k, const float *x, int V, int n, int32_t *out)
{
    for (int i = 0; i < n; i++) {
        out[i] = i;
    }
    for (int i = n / 2 - 1; i >= 0; i--) {
        sift_down(x, out, n, i);
    }
    for (int i = n; i < V; i += SELECT_BLOCK) {
        int32_t found[SELECT_BLOCK];
        int len = V - i < SELECT_BLOCK ? V - i : SELECT_BLOCK;
        int m = k->select_above(x + i, len, x[out[0]], found, SELECT_BLOCK);
        for (int j = 0; j < m; j++) {
            int32_t id = i + found[j];
            if (before(x[id], id, x[out[0]], out[0])) {
                out[0] = id;
                sift_down(x, out, n, 0);
            }
        }
    }
    heap_sort(x, out, n);
}

/* ---- what sampling parameters do to logits ------------------------------------------------------ */

static int changes_logits(const la_sample_row *r)
{
    return r->allowed != NULL || r->n_ban != 0 || r->n_bias != 0 || r->n_seen != 0;
}

static void apply_rules(const la_sample_row *r, float *x, int V)
{
    for (int i = 0; r->allowed != NULL && i < V; i++) {
        if ((r->allowed[i / 32] >> (i % 32) & 1u) == 0) {
            x[i] = -INFINITY;
        }
    }
    for (int i = 0; i < r->n_ban; i++) {
        x[r->ban_ids[i]] = -INFINITY;
    }
    for (int i = 0; i < r->n_bias; i++) {
        x[r->bias_ids[i]] += r->bias[i];
    }
    for (int i = 0; i < r->n_seen; i++) {
        float *v = &x[r->seen_ids[i]];
        *v = *v > 0.0f ? *v / r->repetition : *v * r->repetition;
        if (r->seen_counts[i] > 0) {
            *v -= r->frequency * (float)r->seen_counts[i] + r->presence;
        }
    }
}

/* ---- drawing ----------------------------------------------------------------------------------- */

/* Below, p holds exp(logit - max) by id: the best has 1, ruled-out ids 0. */

static double mass(const float *p, const int32_t *ids, int n)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += (double)p[ids[i]];
    }
    return sum;
}

/* The id at which the running sum passes u of the total. */
static int32_t draw_from(const float *p, const int32_t *ids, int n, double u)
{
    double total = mass(p, ids, n), sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += (double)p[ids[i]];
        if (sum > u * total) {
            return ids[i];
        }
    }
    return ids[n - 1];
}

/* The same over the whole vocabulary in id order. */
static int32_t draw_any(const float *p, int V, double u)
{
    double total = 0.0, sum = 0.0;
    int32_t last = 0;
    for (int i = 0; i < V; i++) {
        total += (double)p[i];
    }
    for (int i = 0; i < V; i++) {
        sum += (double)p[i];
        last = p[i] > 0.0f ? i : last;
        if (sum > u * total) {
            return i;
        }
    }
    return last;
}

/* Ids whose probability is at least `least` of the best's, in id order. */
static int survivors(const la_kernels *k, const float *p, int V, float least, int32_t *ids)
{
    return k->select_above(p, V, nextafterf(least, -INFINITY), ids, V);
}

/* How many of n sorted ids it takes to reach `want` of probability; at least one. */
static int nucleus(const float *p, const int32_t *ids, int n, double want)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += (double)p[ids[i]];
        if (sum >= want) {
            return i + 1;
        }
    }
    return n;
}

/* The smallest set of best ids that holds top_p of what min_p leaves, best first. Candidates are
 * gathered above falling thresholds until they hold enough, so only few are ever sorted. */
static int top_p_set(const la_kernels *k, const la_sample_row *r, const float *p, int V,
                     int32_t *ids)
{
    float least = r->min_p > 0.0f ? r->min_p : 0x1p-149f;
    double want = (double)r->top_p * mass(p, ids, survivors(k, p, V, least, ids));
    int n = 0;
    for (float above = 0x1p-4f;; above *= 0x1p-4f) {
        n = survivors(k, p, V, above > least ? above : least, ids);
        if (above <= least || mass(p, ids, n) >= want) {
            break;
        }
    }
    for (int i = n / 2 - 1; i >= 0; i--) {
        sift_down(p, ids, n, i);
    }
    heap_sort(p, ids, n);
    return nucleus(p, ids, n, want);
}

/* The top_k best of what min_p leaves, cut to top_p of their own probability, best first. */
static int top_k_set(const la_kernels *k, const la_sample_row *r, const float *p, int V,
                     int32_t *ids)
{
    int n = r->top_k < V ? r->top_k : V;
    best_of(k, p, V, n, ids);
    while (n > 1 && (p[ids[n - 1]] < r->min_p || p[ids[n - 1]] == 0.0f)) {
        n--;
    }
    return r->top_p < 1.0f ? nucleus(p, ids, n, (double)r->top_p * mass(p, ids, n)) : n;
}

/* x: logits after the rules, overwritten. */
static int32_t draw(const la_kernels *k, const la_sample_row *r, float *x, int V, int32_t *ids)
{
    float max;
    k->softcap(x, 1.0f / r->temperature, 0.0f, V);
    int best = k->argmax(x, V, &max);
    if (!(max > -INFINITY) || max == INFINITY) {
        return best; /* nothing is left to choose from, or one infinite logit */
    }
    k->exp_sub(x, max, x, V);
    double u = uniform(r);
    int n;
    if (r->top_k > 0) {
        n = top_k_set(k, r, x, V, ids);
    }
    else if (r->top_p < 1.0f) {
        n = top_p_set(k, r, x, V, ids);
    }
    else if (r->min_p > 0.0f) {
        n = survivors(k, x, V, r->min_p, ids);
    }
    else {
        return draw_any(x, V, u);
    }
    return draw_from(x, ids, n, u);
}

/* ---- a row -------------------------------------------------------------------------------------- */

static void report_logprobs(const la_kernels *k, const la_sample_row *r, const float *x, int V,
                            int32_t token, int32_t *ids)
{
    float max;
    (void)k->argmax(x, V, &max);
    double lse = (double)max + log(k->sum_exp(x, max, V));
    *r->out_logprob = (float)((double)x[token] - lse);
    *r->out_rank = 1 + k->select_above(x, V, x[token], ids, 0);
    if (r->n_top > 0) {
        best_of(k, x, V, r->n_top, r->top_ids);
        for (int i = 0; i < r->n_top; i++) {
            r->top_logprobs[i] = (float)((double)x[r->top_ids[i]] - lse);
        }
    }
}

static int32_t choose(const la_kernels *k, const la_sample_row *r, const float *x, int V,
                      const la_cpu_local *own)
{
    float max;
    if (r->temperature <= 0.0f && !changes_logits(r)) {
        return k->argmax(x, V, &max);
    }
    memcpy(own->probs, x, (size_t)V * sizeof(float));
    apply_rules(r, own->probs, V);
    if (r->temperature <= 0.0f) {
        return k->argmax(own->probs, V, &max);
    }
    return draw(k, r, own->probs, V, own->ids);
}

void la_cpu_sample(la_ctx *c, int first, la_rows logits)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    int V = c->m->desc.n_vocab;
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    la_share share;
    la_cpu_share_begin(c, &share, logits.n, NULL);
    for (int i; la_share_next(&share, 1, &i) != 0;) {
        const la_sample_row *r = &c->batch->rows[first + i];
        const float *x = logits.p + (int64_t)i * logits.ld;
        if (r->logits != NULL) {
            memcpy(r->logits, x, (size_t)V * sizeof(float));
        }
        int32_t token = r->target;
        if (token == -1) {
            token = choose(k, r, x, V, &own);
            *r->out_token = token;
        }
        if (r->n_top >= 0 && token >= 0) {
            report_logprobs(k, r, x, V, token, own.ids);
        }
    }
    la_cpu_barrier(c);
}
