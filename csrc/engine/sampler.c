/* sampler.c - see sampler.h. Counts are a list plus an open-addressed hash table, both at most as
 * long as the branch: a dense table would be V integers per branch, 600 kB at 152k tokens. */
#include "sampler.h"

#include <string.h>

#include "../base/base.h"

/* ---- looking back ------------------------------------------------------------------------------- */

static int draw_length(const la_draw *d)
{
    return d->n_given[0] + d->n_given[1] + d->n_output;
}

/* Token i of what was given and generated. */
static int32_t draw_token(const la_draw *d, int i)
{
    if (i < d->n_given[0]) {
        return d->given[0][i];
    }
    i -= d->n_given[0];
    return i < d->n_given[1] ? d->given[1][i] : d->output[i - d->n_given[1]];
}

/* Whether the n tokens before `end` are those of `what`. */
static int draw_ends_with(const la_draw *d, int end, const int32_t *what, int n)
{
    for (int i = 0; i < n; i++) {
        if (end < n || draw_token(d, end - n + i) != what[i]) {
            return 0;
        }
    }
    return 1;
}

/* ---- counts ------------------------------------------------------------------------------------- */

/* Whether any penalty needs counts. */
static int needs_counts(const la_sampling *p)
{
    if (p->repeat_last_n == 0) {
        return 0;
    }
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

/* Counts of a window are made anew for each draw: tokens leave it as others enter. */
static void sampler_count_last(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    int n = draw_length(d), n_given = n - d->n_output;
    memset(s->slots, 0, (size_t)s->n_slots * sizeof *s->slots);
    s->n_seen = 0;
    for (int i = n > p->repeat_last_n ? n - p->repeat_last_n : 0; i < n; i++) {
        if (i >= n_given) {
            s->seen_counts[sampler_find(s, draw_token(d, i))]++;
        }
        else if (p->repetition_penalty != 1.0f) {
            (void)sampler_find(s, draw_token(d, i));
        }
    }
}

/* ---- thinking ----------------------------------------------------------------------------------- */

/* Notes the token before `end`. */
static void sampler_think(la_sampler *s, const la_sampling *p, const la_draw *d, int end)
{
    if (!s->thinking) {
        s->thinking = draw_ends_with(d, end, p->think_start, p->n_think_start);
        s->n_thought = 0;
        return;
    }
    s->n_thought++;
    s->thinking = !draw_ends_with(d, end, p->think_end, p->n_think_end);
}

/* The token that closes a thought which is over its budget, or -1. */
static int32_t sampler_closing(const la_sampler *s, const la_sampling *p, const la_draw *d)
{
    if (p->think_budget < 0 || !s->thinking || s->n_thought < p->think_budget) {
        return -1;
    }
    int done = p->n_think_end - 1; /* of the end, as much as stands there already */
    while (done > 0 && !draw_ends_with(d, draw_length(d), p->think_end, done)) {
        done--;
    }
    return p->think_end[done];
}

/* ---- repetition --------------------------------------------------------------------------------- */

static void sampler_run(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    int last = d->n_output - 1;
    for (int n = p->repeat_min; n <= p->repeat_max && n <= last; n++) {
        int same = d->output[last] == d->output[last - n];
        s->runs[n - 1] = same ? s->runs[n - 1] + 1 : 0;
        s->repeats |= s->runs[n - 1] >= (int64_t)n * (p->repeat_count - 1);
    }
}

/* ---- from draw to draw -------------------------------------------------------------------------- */

void la_sampler_start(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    int n = draw_length(d);
    for (int i = 0; s->n_slots != 0 && p->repetition_penalty != 1.0f && i < n; i++) {
        (void)sampler_find(s, draw_token(d, i));
    }
    for (int i = 0; p->think_budget >= 0 && i < n; i++) {
        sampler_think(s, p, d, i + 1);
    }
}

void la_sampler_accept(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    if (s->n_slots != 0 && p->repeat_last_n < 0) {
        s->seen_counts[sampler_find(s, d->output[d->n_output - 1])]++;
    }
    if (p->repeat_count > 0) {
        sampler_run(s, p, d);
    }
    if (p->think_budget >= 0) {
        sampler_think(s, p, d, draw_length(d));
    }
}

size_t la_sampler_bans(const la_sampling *p, int n_tokens)
{
    size_t n = (size_t)p->n_stop + (size_t)p->n_bad;
    return n + (p->no_repeat_ngram > 0 ? (size_t)n_tokens : 0);
}

/* Bans what would end an n-gram that was there before, of the n_ban bans so far. */
static int sampler_ban_ngrams(la_sampler *s, const la_sampling *p, const la_draw *d, int n_ban)
{
    int n = draw_length(d), head = p->no_repeat_ngram - 1;
    for (int end = head; end < n; end++) {
        int same = 1;
        for (int i = 1; i <= head && same; i++) {
            same = draw_token(d, end - i) == draw_token(d, n - i);
        }
        if (same) {
            s->ban_ids[n_ban++] = draw_token(d, end);
        }
    }
    return n_ban;
}

/* Whether the output ends with the first n tokens of a bad word. Generated tokens only: a word
 * that began in the prompt is the prompt's affair (vLLM's rule). */
static int sampler_ends_with(const la_draw *d, const int32_t *word, int n)
{
    return n <= d->n_output && draw_ends_with(d, draw_length(d), word, n);
}

static int sampler_bans(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    int n = 0;
    if (d->n_output < p->min_tokens) {
        for (int i = 0; i < p->n_stop; i++) {
            s->ban_ids[n++] = p->stop_ids[i];
        }
    }
    const int32_t *word = p->bad;
    for (int i = 0; i < p->n_bad; i++) {
        int last = p->bad_len[i] - 1;
        if (sampler_ends_with(d, word, last)) {
            s->ban_ids[n++] = word[last];
        }
        word += p->bad_len[i];
    }
    return p->no_repeat_ngram > 0 ? sampler_ban_ngrams(s, p, d, n) : n;
}

void la_sampler_fill(la_sampler *s, const la_sampling *p, const la_draw *d, la_sample_row *row)
{
    if (s->n_slots != 0 && p->repeat_last_n >= 0) {
        sampler_count_last(s, p, d);
    }
    row->target = -1;
    row->forced = p->n_trace > 0 ? p->trace[d->n_output] : sampler_closing(s, p, d);
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
    row->ban_ids = s->ban_ids;
    row->n_ban = sampler_bans(s, p, d);
    row->seed = p->seed;
    row->stream = (uint64_t)d->branch;
    row->counter = (uint64_t)d->position;
}
