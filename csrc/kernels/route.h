/* route.h - which experts a token goes to, and tokens sorted by expert.
 *
 * Owns the rule by which logits of a router become experts and weights, for the engine and for users
 * alike. Invariant: a token's choice depends on its own logits only, experts come in falling order of what
 * they are chosen by, ties by the lower index, NaN last; a token with a NaN logit gets NaN weights, so that
 * it shows. Every level gives the same bits. Included by model/backend_cpu*.c and python/py_kernels*.c.
 */
#ifndef LA_ROUTE_H
#define LA_ROUTE_H

#include "kernels.h"

#include <math.h>

typedef struct la_route_rule {
    int n_experts;   /* E */
    int n_used;      /* k */
    int sigmoid;     /* an expert's score: 1: sigmoid of its logit; 0: softmax over all */
    int norm;        /* weights are scores divided by the sum of those used */
    float scale;     /* and multiplied by this */
    int groups;      /* of neighbours, dividing E; only those of the best are chosen from; 1: all */
    int groups_used; /* groups_used * E / groups >= k */
    int group_best;  /* so many largest of a group are added up to compare it with others: 1 or 2 */
    const float
        *correction; /* [E] added to scores where experts are chosen, not where they are weighed; or
                                NULL */
} la_route_rule;

/* Puts i with value v into best [n <= most], by falling value, ties by order of arrival. */
static inline int la_route_insert(int32_t *best, float *value, int n, int most, int i, float v)
{
    int at = n < most ? n : most;
    while (at > 0 && (v > value[at - 1] || (v == v && value[at - 1] != value[at - 1]))) {
        at--;
    }
    if (at == most) {
        return n;
    }
    int last = n < most ? n : most - 1;
    for (int j = last; j > at; j--) {
        best[j] = best[j - 1];
        value[j] = value[j - 1];
    }
    best[at] = i;
    value[at] = v;
    return last + 1;
}

/* What a group is compared by: its largest, or its two largest together. */
static inline float la_route_group(const float *choice, int n, int best)
{
    float a = choice[0], b = -INFINITY;
    for (int i = 1; i < n; i++) {
        float v = choice[i];
        b = v > a ? a : v > b ? v : b;
        a = v > a ? v : a;
    }
    return best > 1 ? a + b : a;
}

/* Marks groups from which experts may come: open [groups]. values: [groups] of room. */
static inline void la_route_open(const la_route_rule *r, const float *choice, float *values,
                                 int32_t *best, uint8_t *open)
{
    int size = r->n_experts / r->groups, n = 0;
    for (int g = 0; g < r->groups; g++) {
        float v = la_route_group(choice + g * size, size, r->group_best);
        n = la_route_insert(best, values, n, r->groups_used, g, v);
        open[g] = 0;
    }
    for (int i = 0; i < n; i++) {
        open[best[i]] = 1;
    }
}

/* Bytes of room that la_route_row wants, 4-byte aligned. */
static inline size_t la_route_room(int n_experts)
{
    return (size_t)n_experts * (3 * sizeof(float) + sizeof(int32_t) + 1);
}

/* One token: logits [E] to experts [k] and weights [k]. */
static inline void la_route_row(const la_kernels *k, const la_route_rule *r, const float *logits,
                                void *room, int32_t *experts, float *weights)
{
    const float *correction = r->correction;
    int E = r->n_experts, bad = 0, n = 0, size = E / r->groups;
    float *score = room, *choice = score + E, *value = choice + E;
    int32_t *best = (int32_t *)(void *)(value + E);
    uint8_t *open = (uint8_t *)(best + E);
    float top = 0.0f, sum = 1.0f;
    if (r->sigmoid) {
        k->exp_sub(logits, -1.0f, 0.0f, score, E);
    }
    else {
        (void)k->argmax(logits, E, &top);
        sum = (float)k->sum_exp(logits, 1.0f, top, E);
        k->exp_sub(logits, 1.0f, top, score, E);
    }
    /* both scores rise with the logit, which tells more of them apart */
    const float *by = correction == NULL && r->groups == 1 ? logits : choice;
    for (int e = 0; e < E; e++) {
        bad |= logits[e] != logits[e];
        score[e] = r->sigmoid ? 1.0f / (1.0f + score[e]) : score[e] / sum;
        choice[e] = score[e] + (correction != NULL ? correction[e] : 0.0f);
    }
    if (r->groups > 1) {
        la_route_open(r, choice, value, best, open);
    }
    for (int e = 0; e < E; e++) {
        if (r->groups == 1 || open[e / size]) {
            n = la_route_insert(experts, value, n, r->n_used, e, by[e]);
        }
    }
    float total = 0.0f;
    for (int i = 0; i < n; i++) {
        weights[i] = score[experts[i]];
        total += weights[i];
    }
    total += r->sigmoid ? 1e-20f : 0.0f; /* all scores may have vanished */
    for (int i = 0; i < n; i++) {
        weights[i] = bad ? NAN : (r->norm ? weights[i] / total : weights[i]) * r->scale;
    }
}

/* Sorts n pairs by expert [n] in 0 .. E-1, those of one expert in their order: pair i comes to row[i],
 * entry[row[i]] = i, and expert e has rows first[e] .. first[e + 1] - 1. */
static inline void la_route_sort(const int32_t *expert, int n, int E, int32_t *first, int32_t *row,
                                 int32_t *entry)
{
    memset(first, 0, ((size_t)E + 1) * sizeof *first);
    for (int i = 0; i < n; i++) {
        first[expert[i] + 1]++;
    }
    for (int e = 0; e < E; e++) {
        first[e + 1] += first[e];
    }
    for (int i = 0; i < n; i++) {
        row[i] = first[expert[i]]++;
        entry[row[i]] = i;
    }
    memmove(first + 1, first, (size_t)E * sizeof *first);
    first[0] = 0;
}

#endif
