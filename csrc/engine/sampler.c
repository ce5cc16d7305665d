/* sampler.c - see sampler.h. Counts are a list plus an open-addressed hash table, both at most as
 * long as the branch: a dense table would be V integers per branch, 600 kB at 152k tokens. */
#include "sampler.h"

#include "../base/base.h"

/* Whether any penalty needs counts. */
static int needs_counts(const la_sampling *p)
{
    return p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f ||
           p->repetition_penalty != 1.0f;
}

int la_sampler_keep(const la_sampling *p, int n_tokens, int n_vocab)
{
    if (!needs_counts(p)) {
        return 0;
    }
    return n_tokens < n_vocab ? n_tokens : n_vocab;
}

int la_sampler_slots(int n_keep)
{
    int n = n_keep > 0 ? 16 : 0;
    while (n < 2 * (int64_t)n_keep && n < (1 << 30)) {
        n *= 2;
    }
    return n;
}

/* The index of the token in the seen list, where it is added with count 0 when new. */
static int sampler_find(la_sampler *s, int32_t token)
{
    uint32_t mask = (uint32_t)s->n_slots - 1;
    uint32_t h = (uint32_t)token * 2654435769u; /* 2^32 / golden ratio: spreads runs of ids */
    h ^= h >> 16;
    for (uint32_t i = h & mask;; i = (i + 1) & mask) {
        int32_t k = s->slots[i];
        if (k == 0) {
            s->slots[i] = s->n_seen + 1;
            s->seen_ids[s->n_seen] = token;
            s->seen_counts[s->n_seen] = 0;
            return s->n_seen++;
        }
        if (s->seen_ids[k - 1] == token) {
            return k - 1;
        }
    }
}

void la_sampler_start(la_sampler *s, const la_sampling *p, const int32_t *given, int n_given)
{
    if (s->n_slots == 0 || p->repetition_penalty == 1.0f) {
        return;
    }
    for (int i = 0; i < n_given; i++) {
        (void)sampler_find(s, given[i]);
    }
}

void la_sampler_accept(la_sampler *s, int32_t token)
{
    if (s->n_slots != 0) {
        s->seen_counts[sampler_find(s, token)]++;
    }
}

/* Whether the output ends with the first n tokens of a bad word. Generated tokens only: a word
 * that began in the prompt is the prompt's affair (vLLM's rule). */
static int sampler_ends_with(const la_draw *d, const int32_t *word, int n)
{
    if (n > d->n_output) {
        return 0;
    }
    for (int i = 0; i < n; i++) {
        if (d->output[d->n_output - n + i] != word[i]) {
            return 0;
        }
    }
    return 1;
}

static int sampler_ban(la_sampler *s, int n, int32_t id, int32_t after)
{
    s->ban_ids[n] = id;
    s->ban_after[n] = after;
    return n + 1;
}

/* Where a token is under way, the last but one of a word is for it to be. */
static int sampler_bans(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    int n = 0, ahead = d->newest >= 0;
    if (d->n_output + ahead < p->min_tokens) {
        for (int i = 0; i < p->n_stop; i++) {
            n = sampler_ban(s, n, p->stop_ids[i], -1);
        }
    }
    const int32_t *word = p->bad;
    for (int i = 0; i < p->n_bad; i++) {
        int last = p->bad_len[i] - 1, open = ahead && last > 0;
        if (sampler_ends_with(d, word, last - open)) {
            n = sampler_ban(s, n, word[last], open ? word[last - 1] : -1);
        }
        word += p->bad_len[i];
    }
    return n;
}

void la_sampler_fill(la_sampler *s, const la_sampling *p, const la_draw *d, la_sample_row *row)
{
    row->target = -1;
    row->temperature = p->temperature;
    row->top_p = p->top_p;
    row->min_p = p->min_p;
    row->top_k = p->top_k;
    row->presence = p->presence_penalty;
    row->frequency = p->frequency_penalty;
    row->repetition = p->repetition_penalty;
    row->seen_ids = s->seen_ids;
    row->seen_counts = s->seen_counts;
    row->n_seen = s->n_seen;
    row->bias_ids = p->bias_ids;
    row->bias = p->bias;
    row->n_bias = p->n_bias;
    row->allowed = d->allowed;
    row->newest = d->newest;
    row->ban_ids = s->ban_ids;
    row->ban_after = s->ban_after;
    row->n_ban = sampler_bans(s, p, d);
    row->seed = p->seed;
    row->stream = (uint64_t)d->branch;
    row->counter = (uint64_t)d->position;
}
