/* request.c - see request.h. Checks come first and name the field; then one pass measures the
 * allocation and a second, by the same code, hands out its parts, so that the two cannot differ. */
#include "request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Seconds (30 years) that are as good as no deadline and still count in nanoseconds. */
static const double LA_FOREVER = 1.0e9;

#define REFUSE(...) la_fail(LA_ERR_REQUEST, __VA_ARGS__)

/* ---- checks ----------------------------------------------------------------------------------- */

static la_status check_ids(const char *field, const int32_t *ids, int n, int n_vocab)
{
    if (n < 0) {
        return REFUSE("%s: negative length %d", field, n);
    }
    if (n > 0 && ids == NULL) {
        return REFUSE("%s: no data for %d ids", field, n);
    }
    for (int i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= n_vocab) {
            return REFUSE("%s[%d]: id %d is outside the vocabulary of %d", field, i, (int)ids[i],
                          n_vocab);
        }
    }
    return LA_OK;
}

/* Below it a temperature only multiplies rounding errors, until 1 / t overflows; params.py has the same. */
static const float LEAST_TEMPERATURE = 0.01f;

/* lo <= value <= hi; false for NaN. */
static la_status check_float(const char *field, float value, float lo, float hi)
{
    if (!(value >= lo && value <= hi)) {
        return REFUSE("%s: %g is not in [%g, %g]", field, (double)value, (double)lo, (double)hi);
    }
    return LA_OK;
}

static la_status check_int(const char *field, int value, int lo, int hi)
{
    if (value < lo || value > hi) {
        return REFUSE("%s: %d is not in [%d, %d]", field, value, lo, hi);
    }
    return LA_OK;
}

/* Samplers of sampling.h beyond vLLM's. */
static la_status check_filters(const la_sampling *p)
{
    la_status st = LA_OK;
    LA_TRY(check_float("dry_multiplier", p->dry_multiplier, 0.0f, 1.0e6f));
    LA_TRY(check_float("dry_base", p->dry_base, 1.0f, 1.0e6f));
    LA_TRY(check_int("dry_allowed_length", p->dry_allowed_length, 1, INT32_MAX));
    LA_TRY(check_int("dry_last_n", p->dry_last_n, -1, INT32_MAX));
    LA_TRY(check_float("top_n_sigma", p->top_n_sigma, 0.0f, 1.0e6f));
    LA_TRY(check_float("dynatemp_range", p->dynatemp_range, 0.0f, 1.0e6f));
    LA_TRY(check_float("dynatemp_exponent", p->dynatemp_exponent, 0.0f, 1.0e6f));
    LA_TRY(check_float("typical_p", p->typical_p, 0.0f, 1.0f));
    LA_TRY(check_float("xtc_probability", p->xtc_probability, 0.0f, 1.0f));
    LA_TRY(check_float("xtc_threshold", p->xtc_threshold, 0.0f, 1.0f));
    LA_TRY(check_int("mirostat", p->mirostat, 0, 2));
    LA_TRY(check_float("mirostat_tau", p->mirostat_tau, 0.0f, 1.0e6f));
    LA_TRY(check_float("mirostat_eta", p->mirostat_eta, 0.0f, 1.0e6f));
    if (p->typical_p == 0.0f) {
        return REFUSE("typical_p: 0 is not in (0, 1]");
    }
    if (p->mirostat != 0 && (p->min_p > 0.0f || p->top_k > 0 || p->top_p < 1.0f ||
                             p->typical_p < 1.0f || p->xtc_probability > 0.0f)) {
        return REFUSE("mirostat: not with min_p, top_k, top_p, typical_p or xtc_probability");
    }
done:
    return st;
}

static la_status check_numbers(const la_sampling *p, int n_vocab)
{
    la_status st = LA_OK;
    LA_TRY(check_float("temperature", p->temperature, 0.0f, 3.0e38f));
    LA_TRY(check_float("top_p", p->top_p, 0.0f, 1.0f));
    if (p->top_p == 0.0f) {
        return REFUSE("top_p: 0 is not in (0, 1]");
    }
    LA_TRY(check_float("min_p", p->min_p, 0.0f, 1.0f));
    LA_TRY(check_int("top_k", p->top_k, 0, INT32_MAX));
    LA_TRY(check_float("presence_penalty", p->presence_penalty, -2.0f, 2.0f));
    LA_TRY(check_float("frequency_penalty", p->frequency_penalty, -2.0f, 2.0f));
    LA_TRY(check_float("repetition_penalty", p->repetition_penalty, 1.0e-4f, 1.0e4f));
    LA_TRY(check_int("max_tokens", p->max_tokens, 0, INT32_MAX));
    LA_TRY(check_int("min_tokens", p->min_tokens, 0, p->max_tokens));
    LA_TRY(check_int("logprobs", p->logprobs, -1, n_vocab));
    LA_TRY(check_int("prompt_logprobs", p->prompt_logprobs, -1, n_vocab));
    LA_TRY(check_int("prompt_logprob_start", p->prompt_logprob_start, 0, INT32_MAX));
    LA_TRY(check_int("report", p->report, LA_REPORT_LOGPROBS, LA_REPORT_DRAWN_LOGITS));
    LA_TRY(check_int("repeat_last_n", p->repeat_last_n, -1, INT32_MAX));
    LA_TRY(check_int("no_repeat_ngram", p->no_repeat_ngram, 0, INT32_MAX));
    LA_TRY(check_int("pattern_count", p->pattern_count, 0, INT32_MAX));
    LA_TRY(check_filters(p));
    LA_TRY(check_int("think_budget", p->think_budget, -1, INT32_MAX));
    if (p->pattern_count == 1) {
        return REFUSE("pattern_count: 1, expected 0 or at least 2");
    }
    if (p->pattern_count > 0) {
        LA_TRY(check_int("pattern_max", p->pattern_max, 1, LA_MAX_PATTERN));
        LA_TRY(check_int("pattern_min", p->pattern_min, 1, p->pattern_max));
    }
done:
    return st;
}

/* Bad words lie one after another; *total is their length. */
static la_status check_bad(const la_sampling *p, int n_vocab, int *total)
{
    *total = 0;
    if (p->n_bad < 0) {
        return REFUSE("bad: negative number of words %d", p->n_bad);
    }
    if (p->n_bad > 0 && p->bad_len == NULL) {
        return REFUSE("bad_len: no data for %d words", p->n_bad);
    }
    for (int i = 0; i < p->n_bad; i++) {
        if (p->bad_len[i] < 1 || p->bad_len[i] > INT32_MAX - *total) {
            return REFUSE("bad_len[%d]: %d is no length of a bad word", i, (int)p->bad_len[i]);
        }
        *total += p->bad_len[i];
    }
    return check_ids("bad", p->bad, *total, n_vocab);
}

static la_status check_lists(const la_sampling *p, int n_vocab)
{
    la_status st = LA_OK;
    LA_TRY(check_ids("stop_ids", p->stop_ids, p->n_stop, n_vocab));
    LA_TRY(check_ids("allowed", p->allowed, p->n_allowed, n_vocab));
    LA_TRY(check_ids("bias_ids", p->bias_ids, p->n_bias, n_vocab));
    LA_TRY(check_ids("score_ids", p->score_ids, p->n_score, n_vocab));
    LA_TRY(check_int("score_ids: their number", p->n_score, 0, p->logprobs >= 0 ? n_vocab : 0));
    LA_TRY(check_ids("prompt_scores", p->prompt_scores, p->n_prompt_score, n_vocab));
    LA_TRY(check_int("prompt_scores: their number", p->n_prompt_score, 0,
                     p->prompt_logprobs >= 0 ? n_vocab : 0));
    LA_TRY(check_ids("dry_breakers", p->dry_breakers, p->n_dry_breakers, n_vocab));
    LA_TRY(check_ids("trace", p->trace, p->n_trace, n_vocab));
    LA_TRY(check_ids("think_start", p->think_start, p->n_think_start, n_vocab));
    LA_TRY(check_ids("think_end", p->think_end, p->n_think_end, n_vocab));
    if (p->n_trace > 0 && p->n_trace < p->max_tokens) {
        return REFUSE("trace: %d tokens for max_tokens of %d", p->n_trace, p->max_tokens);
    }
    if (p->think_budget >= 0 && (p->n_think_start == 0 || p->n_think_end == 0)) {
        return REFUSE("think_budget: %d without think_start and think_end", p->think_budget);
    }
    if (p->n_bias > 0 && p->bias == NULL) {
        return REFUSE("bias: no data for %d values", p->n_bias);
    }
    for (int i = 0; i < p->n_bias; i++) {
        if (!isfinite(p->bias[i])) {
            return REFUSE("bias[%d]: %g is not finite", i, (double)p->bias[i]);
        }
    }
done:
    return st;
}

static la_status check_suffix(const la_request *r, int n_vocab, int *total, int *longest)
{
    *total = 0;
    *longest = 0;
    if (r->suffix == NULL) {
        return LA_OK;
    }
    if (r->suffix_len == NULL) {
        return REFUSE("suffix_len: missing for %d suffixes", r->n_branches);
    }
    for (int b = 0; b < r->n_branches; b++) {
        int n = r->suffix_len[b];
        if (n < 1 || n > INT32_MAX - *total) {
            return REFUSE("suffix_len[%d]: %d, expected at least 1", b, n);
        }
        *total += n;
        *longest = n > *longest ? n : *longest;
    }
    return check_ids("suffix", r->suffix, *total, n_vocab);
}

/* Lengths against the context and the page pool. *max_tokens is what the context leaves. */
static la_status check_lengths(const la_door *door, const la_request *r, int longest,
                               int *max_tokens)
{
    int64_t given = (int64_t)r->n_prompt + longest;
    int room = r->sampling.max_tokens > 0 ? 1 : 0;
    given -= longest > 0 && room == 0; /* a suffix's last token is only predicted */
    if (given + room > door->max_len) {
        return REFUSE("prompt: %d tokens%s leave no room in a context of %d%s", r->n_prompt,
                      longest > 0 ? " and the longest suffix" : "", door->max_len,
                      room ? " to generate any" : "");
    }
    int64_t left = door->max_len - given;
    *max_tokens = r->sampling.max_tokens < left ? r->sampling.max_tokens : (int)left;
    int64_t fed = given + *max_tokens - (*max_tokens > 0 ? 1 : 0);
    int64_t pages = (fed + LA_PAGE - 1) / LA_PAGE;
    if (pages > door->n_pages) {
        return REFUSE("max_tokens: %d prompt and suffix tokens and up to %d more need %lld KV "
                      "pages, the cache has %lld",
                      (int)given, *max_tokens, (long long)pages, (long long)door->n_pages);
    }
    return LA_OK;
}

/* A search draws nothing, so that a field that says how to draw would be ignored. */
static la_status check_beam(const la_door *door, const la_request *r)
{
    la_status st = LA_OK;
    const la_sampling *p = &r->sampling;
    int most = door->max_seqs < LA_MAX_BEAMS ? door->max_seqs : LA_MAX_BEAMS;
    if (r->n_branches > most) {
        return REFUSE("beam_width: %d, but max_num_seqs is %d and a search takes %d at most",
                      r->n_branches, door->max_seqs, LA_MAX_BEAMS);
    }
    LA_TRY(check_int("beam", r->beam, LA_BEAM_VLLM, LA_BEAM_NEVER));
    LA_TRY(check_int("max_tokens", p->max_tokens, 1, INT32_MAX));
    if (!(fabs(r->length_penalty) <= 10.0)) { /* 2^31 to the 10th is a number */
        return REFUSE("length_penalty: %g is not in [-10, 10]", r->length_penalty);
    }
    if (r->suffix != NULL || r->logits != NULL || r->drawn_logits != NULL || r->states != NULL ||
        r->drawn_states != NULL) {
        return REFUSE("beam: a search has neither suffixes nor logits nor hidden states");
    }
    if (p->temperature != 0.0f || p->n_bias > 0 || p->n_allowed > 0 || p->n_bad > 0 ||
        p->min_tokens > 0 || p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f ||
        p->repetition_penalty != 1.0f || p->no_repeat_ngram > 0 || p->dry_multiplier != 0.0f ||
        p->top_n_sigma != 0.0f || p->mirostat != 0 || p->n_trace > 0 || p->n_score > 0 ||
        p->pattern_count > 0 || p->n_think_start > 0 || p->report != LA_REPORT_LOGPROBS ||
        r->process != NULL) {
        return REFUSE("beam: a search draws nothing, leave temperature 0 and the rest as it is");
    }
done:
    return st;
}

/* What is to be shown: hidden states and the logits that tokens are drawn from. */
static la_status check_shown(const la_door *door, const la_request *r)
{
    la_status st = LA_OK;
    if (r->drawn_logits != NULL && r->logits != NULL) {
        return REFUSE("drawn_logits: not in a request for logits of the prompt");
    }
    if ((r->drawn_logits != NULL || r->drawn_states != NULL) && r->sampling.max_tokens == 0) {
        return REFUSE("drawn_logits, drawn_states: nothing is drawn");
    }
    if (r->states == NULL && r->drawn_states == NULL) {
        return LA_OK;
    }
    if (!door->shows_states) {
        return la_fail(LA_ERR_UNSUPPORTED, "states: this backend hands out no hidden states");
    }
    LA_TRY(check_int("n_states", r->n_states, 1, 2 * door->n_layers + 2));
    if (r->state_layers == NULL) {
        return REFUSE("state_layers: missing for %d states", r->n_states);
    }
    for (int i = 0; i < r->n_states; i++) {
        LA_TRY(check_int("state_layers", (int)r->state_layers[i], 0, door->n_layers));
    }
    if (r->states != NULL) {
        LA_TRY(check_int("state_from", r->state_from, 0, r->n_prompt - 1));
        LA_TRY(check_int("state_to", r->state_to, r->state_from + 1, r->n_prompt));
    }
done:
    return st;
}

/* Totals that the checks find out and the copy needs. */
typedef struct la_totals {
    int suffix, bad, max_tokens;
    int n_mask; /* words of a mask over the vocabulary */
} la_totals;

static la_status check_request(const la_door *door, const la_request *r, la_totals *t)
{
    la_status st = LA_OK;
    int longest = 0;
    const la_sampling *p = &r->sampling;
    if (r->n_prompt < 1) {
        return REFUSE("prompt: empty");
    }
    LA_TRY(check_ids("prompt", r->prompt, r->n_prompt, door->n_vocab));
    LA_TRY(check_int("n_branches", r->n_branches, 1, LA_MAX_BRANCHES));
    LA_TRY(check_numbers(p, door->n_vocab));
    LA_TRY(check_lists(p, door->n_vocab));
    LA_TRY(check_bad(p, door->n_vocab, &t->bad));
    LA_TRY(check_suffix(r, door->n_vocab, &t->suffix, &longest));
    LA_TRY(r->beam ? check_beam(door, r) : LA_OK);
    LA_TRY(check_lengths(door, r, longest, &t->max_tokens));
    if (r->process != NULL && r->process_rows == NULL) {
        return REFUSE("process: no rows for it to change");
    }
    LA_TRY(check_shown(door, r));
    if (isnan(r->timeout)) {
        return REFUSE("timeout: not a number");
    }
    t->n_mask = (door->n_vocab + 31) / 32;
done:
    return st;
}

/* ---- the one allocation ----------------------------------------------------------------------- */

/* Bits of ids [n], in so many words; NULL where there are none. */
static uint32_t *carve_mask(la_carver *c, const int32_t *ids, int n, int n_words)
{
    uint32_t *mask = la_carve(c, n > 0 ? (size_t)n_words : 0, sizeof *mask);
    for (int i = 0; mask != NULL && i < n; i++) {
        mask[ids[i] / 32] |= 1u << (ids[i] % 32);
    }
    return mask;
}

static int compare_ids(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* A copy in ascending order. */
static int32_t *carve_sorted(la_carver *c, const int32_t *ids, int n)
{
    int32_t *to = la_carve_copy(c, ids, n);
    if (to != NULL) {
        qsort(to, (size_t)n, sizeof *to, compare_ids);
    }
    return to;
}

static void carve_sampling(la_carver *c, const la_sampling *from, const la_totals *t,
                           la_sampling *to)
{
    *to = *from;
    to->max_tokens = t->max_tokens;
    to->stop_ids = carve_sorted(c, from->stop_ids, from->n_stop);
    to->bias_ids = la_carve_copy(c, from->bias_ids, from->n_bias);
    to->bad = la_carve_copy(c, from->bad, t->bad);
    to->bad_len = la_carve_copy(c, from->bad_len, from->n_bad);
    to->allowed = NULL; /* kept as bit masks */
    to->dry_breakers = NULL;
    to->score_ids = la_carve_copy(c, from->score_ids, from->n_score);
    to->prompt_scores = la_carve_copy(c, from->prompt_scores, from->n_prompt_score);
    to->trace = la_carve_copy(c, from->trace, from->n_trace);
    to->think_start = la_carve_copy(c, from->think_start, from->n_think_start);
    to->think_end = la_carve_copy(c, from->think_end, from->n_think_end);
    float *bias = la_carve(c, (size_t)from->n_bias, sizeof *bias);
    if (bias != NULL) {
        memcpy(bias, from->bias, (size_t)from->n_bias * sizeof *bias);
    }
    to->bias = bias;
}

static int branch_forced(const la_request *r, int b)
{
    return r->n_prompt + (r->suffix != NULL ? r->suffix_len[b] : 0);
}

/* Tokens the branch feeds at most: the last generated one never is. */
static int branch_max(const la_request *r, const la_totals *t, int b)
{
    int forced = branch_forced(r, b);
    if (t->max_tokens > 0) {
        return forced + t->max_tokens - 1;
    }
    int shown = r->logits != NULL || r->states != NULL;
    return b == 0 && shown && forced == r->n_prompt ? forced : forced - 1;
}

static void carve_set(la_carver *c, int capacity, la_token_set *to)
{
    to->n_slots = la_sampler_slots(capacity);
    to->ids = la_carve(c, (size_t)capacity, sizeof *to->ids);
    to->slots = la_carve(c, (size_t)to->n_slots, sizeof *to->slots);
}

static void carve_dry(la_carver *c, int window, int n_vocab, la_dry *to)
{
    int capacity = window < n_vocab ? window : n_vocab;
    to->window = window;
    carve_set(c, capacity, &to->next);
    to->lengths = la_carve(c, (size_t)capacity, sizeof *to->lengths);
    to->penalties = la_carve(c, (size_t)capacity, sizeof *to->penalties);
    to->match = la_carve(c, (size_t)window, sizeof *to->match);
}

static void carve_branch(la_carver *c, const la_request *r, const la_totals *t, int n_vocab,
                         la_seq *q, la_branch *branch)
{
    int b = q->branch;
    const la_sampling *p = &r->sampling;
    int cap = la_kvcache_span(branch_max(r, t, b));
    q->table.cap = cap;
    q->table.pages = la_carve(c, (size_t)cap, sizeof *q->table.pages);
    if (!r->beam) { /* beams have paths */
        branch->output = la_carve(c, (size_t)t->max_tokens, sizeof *branch->output);
    }
    int n_tokens = t->max_tokens > 0 ? branch_forced(r, b) + t->max_tokens : 0;
    int keep = la_sampler_keep(p, n_tokens, n_vocab);
    la_sampler *s = &branch->sampler;
    carve_set(c, keep, &s->seen);
    s->seen_counts = la_carve(c, (size_t)keep, sizeof *s->seen_counts);
    carve_dry(c, la_sampler_dry_window(p, n_tokens), n_vocab, &s->dry);
    size_t bans = la_sampler_bans(p, n_tokens);
    s->ban_ids = la_carve(c, bans, sizeof *s->ban_ids);
    s->ban_after = la_carve(c, bans, sizeof *s->ban_after);
    s->runs = la_carve(c, p->pattern_count > 0 ? (size_t)p->pattern_max : 0, sizeof *s->runs);
}

static void carve_beams(la_carver *c, const la_request *r, const la_totals *t, int n_vocab,
                        la_live *to)
{
    if (!r->beam) {
        return;
    }
    int n_looked = la_beam_looked(r->beam, r->n_branches, r->sampling.n_stop, n_vocab);
    to->beam = la_beam_carve(c, r->n_branches, t->max_tokens, n_looked);
    to->group.spare = la_carve(c, (size_t)r->n_branches, sizeof *to->group.spare);
    int cap = la_kvcache_span(branch_max(r, t, 0));
    for (int b = 0; b < r->n_branches; b++) {
        la_table measured, *spare = to->group.spare != NULL ? &to->group.spare[b] : &measured;
        *spare = (la_table){.pages = la_carve(c, (size_t)cap, sizeof *spare->pages), .cap = cap};
    }
}

/* Lays the request out in the carver's block; with no block only measures. */
static la_live *carve_live(la_carver *c, const la_request *r, const la_totals *t, int n_vocab)
{
    la_live measured, *live = la_carve(c, 1, sizeof *live);
    la_live *to = live != NULL ? live : &measured;
    memset(to, 0, sizeof *to);
    size_t n = (size_t)r->n_branches;
    int n_prefix = r->n_branches > 1 ? r->n_prompt - 1 : 0;
    to->group.n_seqs = r->n_branches;
    to->group.n_prefix = n_prefix;
    to->group.seqs = la_carve(c, n, sizeof *to->group.seqs);
    to->group.prefix.cap = la_kvcache_span(n_prefix);
    to->group.prefix.pages = la_carve(c, (size_t)to->group.prefix.cap, sizeof(int32_t));
    to->branches = la_carve(c, n, sizeof *to->branches);
    to->cancelled = la_carve(c, n, 1);
    to->prompt = la_carve_copy(c, r->prompt, r->n_prompt);
    carve_beams(c, r, t, n_vocab, to);
    const int32_t *suffix = la_carve_copy(c, r->suffix, t->suffix);
    to->allowed = carve_mask(c, r->sampling.allowed, r->sampling.n_allowed, t->n_mask);
    to->breakers = carve_mask(c, r->sampling.dry_breakers, r->sampling.n_dry_breakers, t->n_mask);
    int shows = r->states != NULL || r->drawn_states != NULL;
    to->state_layers = la_carve_copy(c, r->state_layers, shows ? r->n_states : 0);
    carve_sampling(c, &r->sampling, t, &to->sampling);
    for (int b = 0; b < r->n_branches; b++) {
        la_seq seq = {.branch = b}, *q = live != NULL ? &live->group.seqs[b] : &seq;
        la_branch none = {0}, *branch = live != NULL ? &live->branches[b] : &none;
        q->branch = b;
        branch->n_suffix = r->suffix != NULL ? r->suffix_len[b] : 0;
        branch->suffix = suffix;
        suffix = suffix != NULL ? suffix + branch->n_suffix : NULL;
        carve_branch(c, r, t, n_vocab, q, branch);
    }
    return live;
}

/* ---- filling it in ---------------------------------------------------------------------------- */

/* Fed position whose row is the first that a request wants of its whole prompt. */
static int first_scored(const la_sampling *p, const la_request *r, int n_prompt)
{
    if (r->logits != NULL || p->prompt_logprob_start < 1) {
        return 0;
    }
    return p->prompt_logprob_start < n_prompt ? p->prompt_logprob_start - 1 : n_prompt - 1;
}

/* The scheduler's view of branch b, and the sampler's start. */
static void start_branch(la_live *live, const la_request *r, const la_totals *t, int b)
{
    const la_sampling *p = &live->sampling;
    la_branch *branch = &live->branches[b];
    la_seq *q = &live->group.seqs[b];
    int forced = live->n_prompt + branch->n_suffix;
    int whole = b == 0 && (p->prompt_logprobs >= 0 || r->logits != NULL);
    int silent = b == 0 && r->states != NULL && !whole && p->max_tokens == 0 && r->suffix == NULL;
    q->group = &live->group;
    q->node.hi = r->priority;
    q->n_max = branch_max(r, t, b);
    q->n_todo = p->max_tokens > 0 ? forced : q->n_max;
    q->n_forced = forced;
    q->first_row = whole    ? first_scored(p, r, live->n_prompt)
                   : silent ? forced
                            : live->n_prompt - 1;
    q->forced_cost = (p->prompt_logprobs > 0 ? p->prompt_logprobs : 0) + p->n_prompt_score;
    q->sample_cost = p->max_tokens > 0 ? (p->logprobs > 0 ? p->logprobs : 0) + p->n_score : 0;
    if (live->beam != NULL) {
        q->sample_cost = live->beam->n_looked;
        q->state = b > 0 ? LA_SEQ_HELD : LA_SEQ_PARKED; /* all start from the first */
    }
    branch->live = live;
    branch->stop_token = -1;
    branch->under_way = -1;
    if (q->n_todo <= q->first_row && !silent) { /* nothing to score and nothing to draw */
        q->state = LA_SEQ_DONE;
        branch->reason = LA_FINISH_LENGTH;
    }
    la_draw d = {.given = {live->prompt, branch->suffix},
                 .n_given = {live->n_prompt, branch->n_suffix}};
    la_sampler_start(&branch->sampler, p, &d);
}

/* Whether some token stays possible in every draw: an allowed one that no bad word ends with and
 * that is not masked as a stop id. Were there none, a draw would have nothing to choose from. */
static int leaves_choice(const la_live *live, int n_vocab, uint32_t *mask)
{
    const la_sampling *p = &live->sampling;
    size_t n_words = (size_t)(n_vocab + 31) / 32;
    if (live->allowed != NULL) {
        memcpy(mask, live->allowed, n_words * sizeof *mask);
    }
    else {
        memset(mask, 0xff, n_words * sizeof *mask);
        if (n_vocab % 32 != 0) {
            mask[n_words - 1] = (1u << (n_vocab % 32)) - 1;
        }
    }
    for (int i = 0; p->min_tokens > 0 && i < p->n_stop; i++) {
        mask[p->stop_ids[i] / 32] &= ~(1u << (p->stop_ids[i] % 32));
    }
    int end = -1;
    for (int i = 0; i < p->n_bad; i++) {
        end += p->bad_len[i];
        mask[p->bad[end] / 32] &= ~(1u << (p->bad[end] % 32));
    }
    uint32_t any = 0;
    for (size_t w = 0; w < n_words; w++) {
        any |= mask[w];
    }
    return any != 0;
}

static la_status check_choice(const la_live *live, int n_vocab)
{
    const la_sampling *p = &live->sampling;
    if (p->max_tokens == 0 || (p->n_bad == 0 && (p->n_stop == 0 || p->min_tokens == 0))) {
        return LA_OK;
    }
    uint32_t *mask = la_alloc((size_t)(n_vocab + 31) / 32, sizeof *mask);
    if (mask == NULL) {
        return la_fail(LA_ERR_MEMORY, "request: a mask of %d tokens", n_vocab);
    }
    int ok = leaves_choice(live, n_vocab, mask);
    la_free(mask);
    return ok ? LA_OK
              : REFUSE("allowed: bad words and stop ids below min_tokens leave no token to draw");
}

la_status la_request_admit(const la_door *door, const la_request *r, la_live **out)
{
    la_status st = LA_OK;
    la_live *live = NULL;
    la_totals t = {0};
    *out = NULL;
    LA_TRY(check_request(door, r, &t));
    la_carver c = {0};
    (void)carve_live(&c, r, &t, door->n_vocab);
    if (!c.overflow) {
        c.base = la_alloc(1, c.used);
    }
    if (c.base == NULL) {
        return la_fail(LA_ERR_MEMORY, "request: %zu bytes for %d branches of up to %d tokens",
                       c.used, r->n_branches, t.max_tokens);
    }
    c.used = 0;
    live = carve_live(&c, r, &t, door->n_vocab);
    if (live->sampling.temperature > 0.0f && live->sampling.temperature < LEAST_TEMPERATURE) {
        live->sampling.temperature = LEAST_TEMPERATURE;
    }
    live->n_branches = r->n_branches;
    live->n_open = r->n_branches;
    live->n_prompt = r->n_prompt;
    live->logits = r->logits;
    if (live->beam != NULL) {
        live->beam->rule = r->beam;
        live->beam->n_prompt = r->beam == LA_BEAM_VLLM ? r->n_prompt : 0;
        live->beam->penalty = r->length_penalty;
    }
    live->process = r->process;
    live->process_arg = r->process_arg;
    live->process_rows = r->process_rows;
    live->drawn_logits = r->drawn_logits;
    live->states = r->states;
    live->drawn_states = r->drawn_states;
    live->n_states = r->n_states;
    live->state_from = r->state_from;
    live->state_to = r->state_to;
    live->n_drawn = r->sampling.max_tokens;
    live->deadline = r->timeout > 0.0 && r->timeout < LA_FOREVER ? la_now() + r->timeout : 0.0;
    for (int b = 0; b < r->n_branches; b++) {
        start_branch(live, r, &t, b);
    }
    LA_TRY(check_choice(live, door->n_vocab));
    *out = live;
    live = NULL;
done:
    la_free(live);
    return st;
}

int32_t la_request_token(const la_live *live, int branch, int position)
{
    const la_branch *b = &live->branches[branch];
    if (position < live->n_prompt) {
        return live->prompt[position];
    }
    position -= live->n_prompt;
    return position < b->n_suffix ? b->suffix[position] : b->output[position - b->n_suffix];
}

la_draw la_request_draw(const la_live *live, const la_branch *b, int position)
{
    return (la_draw){.given = {live->prompt, b->suffix},
                     .n_given = {live->n_prompt, b->n_suffix},
                     .output = b->output,
                     .n_output = b->n_output,
                     .newest = b->under_way,
                     .branch = (int)(b - live->branches),
                     .position = position,
                     .allowed = live->allowed,
                     .breakers = live->breakers};
}
