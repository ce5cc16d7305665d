/* sampler.c - see sampler.h. Counts are a list plus an open-addressed hash table, both at most as
 * long as the branch: a dense table would be V integers per branch, 600 kB at 152k tokens. */
#include "sampler.h"

#include <math.h>
#include <string.h>

#include "../base/base.h"

/* What no logit can make up for, and is finite all the same. */
static const double MOST_PENALTY = 1.0e30;

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

/* The token's index in the set, where it is added when new. */
static int set_find(la_token_set *s, int32_t token)
{
    uint32_t mask = (uint32_t)s->n_slots - 1;
    uint32_t h = (uint32_t)token * 2654435769u; /* 2^32 / golden ratio: spreads runs of ids */
    h ^= h >> 16;
    for (uint32_t i = h & mask;; i = (i + 1) & mask) {
        int32_t k = s->slots[i];
        if (k == 0) {
            s->slots[i] = s->n + 1;
            s->ids[s->n] = token;
            return s->n++;
        }
        if (s->ids[k - 1] == token) {
            return k - 1;
        }
    }
}

static void set_clear(la_token_set *s)
{
    memset(s->slots, 0, (size_t)s->n_slots * sizeof *s->slots);
    s->n = 0;
}

/* The same with a number for each token, which is 0 when it is new. */
static int32_t *set_number(la_token_set *s, int32_t *numbers, int32_t token)
{
    int n = s->n, i = set_find(s, token);
    if (i == n) {
        numbers[i] = 0;
    }
    return &numbers[i];
}

/* Counts of a window are made anew for each draw: tokens leave it as others enter. */
static void sampler_count_last(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    int n = draw_length(d), n_given = n - d->n_output;
    set_clear(&s->seen);
    for (int i = n > p->repeat_last_n ? n - p->repeat_last_n : 0; i < n; i++) {
        if (i >= n_given) {
            ++*set_number(&s->seen, s->seen_counts, draw_token(d, i));
        }
        else if (p->repetition_penalty != 1.0f) {
            (void)set_number(&s->seen, s->seen_counts, draw_token(d, i));
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

/* ---- DRY ---------------------------------------------------------------------------------------- */

int la_sampler_dry_window(const la_sampling *p, int n_tokens)
{
    if (p->dry_multiplier == 0.0f) {
        return 0;
    }
    return p->dry_last_n >= 0 && p->dry_last_n < n_tokens ? p->dry_last_n : n_tokens;
}

static int draw_breaks(const la_draw *d, int32_t token)
{
    return d->breakers != NULL && (d->breakers[token / 32] >> (token % 32) & 1u) != 0;
}

/* match[i]: how many tokens before the last i equal as many at the end (the Z function of the reversed
 * window of n), at most `most`, where a breaker stands. */
static void dry_match(la_dry *y, const la_draw *d, int n, int most)
{
    int last = draw_length(d) - 1, from = 0, to = 0; /* match of `from` reaches to `to` */
    for (int i = 1; i < n; i++) {
        int m = i < to && y->match[i - from] < to - i ? y->match[i - from] : i < to ? to - i : 0;
        while (i + m < n && draw_token(d, last - m) == draw_token(d, last - i - m)) {
            m++;
        }
        y->match[i] = m;
        if (i + m > to) {
            from = i;
            to = i + m;
        }
    }
    for (int i = 1; i < n; i++) {
        y->match[i] = y->match[i] < most ? y->match[i] : most;
    }
}

static void sampler_dry(la_dry *y, const la_sampling *p, const la_draw *d)
{
    int length = draw_length(d), n = length < y->window ? length : y->window, most = 0;
    set_clear(&y->next);
    while (most < n && !draw_breaks(d, draw_token(d, length - 1 - most))) {
        most++;
    }
    if (most < p->dry_allowed_length) {
        return;
    }
    dry_match(y, d, n, most);
    for (int i = 1; i < n; i++) {
        int32_t token = draw_token(d, length - i); /* what followed there */
        if (y->match[i] >= p->dry_allowed_length && !draw_breaks(d, token)) {
            int32_t *longest = set_number(&y->next, y->lengths, token);
            *longest = y->match[i] > *longest ? y->match[i] : *longest;
        }
    }
    for (int i = 0; i < y->next.n; i++) {
        double more = y->lengths[i] - p->dry_allowed_length;
        double penalty = (double)p->dry_multiplier * pow((double)p->dry_base, more);
        y->penalties[i] = penalty < MOST_PENALTY ? (float)penalty : (float)MOST_PENALTY;
    }
}

/* ---- repetition --------------------------------------------------------------------------------- */

static void sampler_run(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    int last = d->n_output - 1;
    for (int n = p->pattern_min; n <= p->pattern_max && n <= last; n++) {
        int same = d->output[last] == d->output[last - n];
        s->runs[n - 1] = same ? s->runs[n - 1] + 1 : 0;
        s->repeats |= s->runs[n - 1] >= (int64_t)n * (p->pattern_count - 1);
    }
}

/* ---- from draw to draw -------------------------------------------------------------------------- */

void la_sampler_start(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    int n = draw_length(d);
    int counts = s->seen.n_slots != 0 && p->repetition_penalty != 1.0f;
    s->mu = 2.0 * (double)p->mirostat_tau;
    for (int i = 0; counts && i < n; i++) {
        (void)set_number(&s->seen, s->seen_counts, draw_token(d, i));
    }
    for (int i = 0; p->think_budget >= 0 && i < n; i++) {
        sampler_think(s, p, d, i + 1);
    }
}

void la_sampler_accept(la_sampler *s, const la_sampling *p, const la_draw *d)
{
    if (s->seen.n_slots != 0 && p->repeat_last_n < 0) {
        ++*set_number(&s->seen, s->seen_counts, d->output[d->n_output - 1]);
    }
    if (p->pattern_count > 0) {
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

static int sampler_ban(la_sampler *s, int n, int32_t id, int32_t after)
{
    s->ban_ids[n] = id;
    s->ban_after[n] = after;
    return n + 1;
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
            n_ban = sampler_ban(s, n_ban, draw_token(d, end), -1);
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
    return p->no_repeat_ngram > 0 ? sampler_ban_ngrams(s, p, d, n) : n;
}

/* Whether a draw needs more than temperature, min_p, top_k and top_p. */
static int has_filters(const la_sampling *p)
{
    return p->typical_p < 1.0f || p->top_n_sigma > 0.0f || p->xtc_probability > 0.0f ||
           p->dynatemp_range > 0.0f || p->mirostat != 0;
}

void la_sampler_fill(la_sampler *s, const la_sampling *p, const la_draw *d, la_sample_row *row)
{
    if (s->seen.n_slots != 0 && p->repeat_last_n >= 0) {
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
    row->seen_ids = s->seen.ids;
    row->seen_counts = s->seen_counts;
    row->n_seen = s->seen.n;
    row->bias_ids = p->bias_ids;
    row->bias = p->bias;
    row->n_bias = p->n_bias;
    row->allowed = d->allowed;
    row->newest = d->newest;
    row->ban_ids = s->ban_ids;
    row->ban_after = s->ban_after;
    row->n_ban = sampler_bans(s, p, d);
    if (s->dry.window > 0) {
        sampler_dry(&s->dry, p, d);
        row->dry_ids = s->dry.next.ids;
        row->dry = s->dry.penalties;
        row->n_dry = s->dry.next.n;
    }
    row->filters = has_filters(p) ? p : NULL;
    row->mu = &s->mu;
    row->seed = p->seed;
    row->stream = (uint64_t)d->branch;
    row->counter = (uint64_t)d->position;
}

int la_sampling_stops(const la_sampling *p, int32_t token)
{
    int lo = 0, hi = p->n_stop;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (p->stop_ids[mid] < token) {
            lo = mid + 1;
        }
        else {
            hi = mid;
        }
    }
    return lo < p->n_stop && p->stop_ids[lo] == token;
}
