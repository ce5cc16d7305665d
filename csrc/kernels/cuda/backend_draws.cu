/* backend_draws.cu - what the host has to do with draws: rows' wishes to the device, results back.
 *
 * Owns the pinned memory of both. The device draws what sample.h allows; rows that ask for more (many
 * logprobs, long lists, raw logits) are drawn on the host by the CPU backend's code, from their logits. Which it
 * is depends on the row alone. Lists that do not fit beside each other go up one after another, with a wait
 * between. Invariant: results are in the rows when la_draws_give returns. Called by backend.cu.
 */
#include "backend_draws.h"
#include "step.h"

#include <string.h>

struct la_draws {
    la_draws_layout at;
    uint8_t *pinned[2];       /* [at.bytes], of each turn */
    int turn;                 /* of the step that is asked for */
    float *logits;            /* [logit_rows] rows as the device's, pinned */
    la_sample_row *host_rows; /* [logit_rows] */
    la_drawer *drawer;
    int packed_end; /* rows before it have their wishes on the device, or had them there */
};

/* A field that is new here must be drawn by the device, or by the host: say so in `device_draws`. */
static_assert(sizeof(la_sample_row) == 288, "la_sample_row has changed");

namespace {

size_t round_up(size_t n)
{
    return (n + 255) / 256 * 256;
}

int words_of_mask(int V)
{
    return (V + 31) / 32;
}

template <class T> T *array_at(const la_draws *own, size_t at)
{
    return reinterpret_cast<T *>(own->pinned[own->turn] + at);
}

uint8_t *on_device(const la_draws *own, const la_ctx *c, size_t at)
{
    return c->w->shared + own->at.begin + at;
}

/* Each id once, in order: threads may add them side by side. */
int ascending(const int32_t *ids, int n)
{
    for (int i = 1; i < n; i++) {
        if (ids[i] <= ids[i - 1]) {
            return 0;
        }
    }
    return 1;
}

int wants_anything(const la_sample_row *r)
{
    return r->target >= -1 || r->logits != NULL;
}

/* Is the row the device's? */
int device_draws(const la_sample_row *r)
{
    int own = r->forced >= 0 || r->process != NULL || r->n_dry > 0 || r->filters != NULL ||
              (r->n_top >= 0 && r->report != LA_REPORT_LOGPROBS);
    return r->target >= -1 && !own && r->logits == NULL && r->n_top <= LA_SAMPLE_TOPS &&
           r->n_score == 0 && r->n_ban <= LA_SAMPLE_LISTED && r->n_bias <= LA_SAMPLE_LISTED &&
           ascending(r->bias_ids, r->n_bias);
}

/* A list's place among the words, and room behind it. */
int32_t take(int *used, int n)
{
    int at = *used;
    *used += n;
    return at;
}

void pack_pairs(uint32_t *out, const int32_t *ids, const void *values, int n)
{
    for (int i = 0; i < n; i++) {
        out[2 * i] = (uint32_t)ids[i];
        memcpy(&out[2 * i + 1], static_cast<const uint8_t *>(values) + 4 * (size_t)i, 4);
    }
}

/* The row's wishes and its lists, behind what is used. 0: there is no room. */
int pack_row(la_draws *own, const la_sample_row *r, int V, la_draw_rule *out, int *used)
{
    uint32_t *words = array_at<uint32_t>(own, own->at.words);
    int draws = r->target == -1;
    int mask = draws && r->allowed != NULL ? words_of_mask(V) : 0;
    int n_ban = draws ? r->n_ban : 0, n_bias = draws ? r->n_bias : 0,
        n_seen = draws ? r->n_seen : 0;
    if (*used + mask + 2 * (n_ban + n_bias + n_seen) > own->at.n_words) {
        return 0;
    }
    out->allowed_at = mask != 0 ? take(used, mask) : -1;
    out->ban_at = take(used, 2 * n_ban);
    out->bias_at = take(used, 2 * n_bias);
    out->seen_at = take(used, 2 * n_seen);
    out->n_ban = n_ban;
    out->n_bias = n_bias;
    out->n_seen = n_seen;
    if (mask != 0) {
        memcpy(words + out->allowed_at, r->allowed, (size_t)mask * 4);
    }
    pack_pairs(words + out->ban_at, r->ban_ids, r->ban_after, n_ban);
    pack_pairs(words + out->bias_at, r->bias_ids, r->bias, n_bias);
    pack_pairs(words + out->seen_at, r->seen_ids, r->seen_counts, n_seen);
    return 1;
}

void pack_numbers(const la_sample_row *r, la_draw_rule *out)
{
    out->seed = r->seed;
    out->stream = r->stream;
    out->counter = r->counter;
    out->temperature = r->temperature;
    out->top_p = r->top_p;
    out->min_p = r->min_p;
    out->presence = r->presence;
    out->frequency = r->frequency;
    out->repetition = r->repetition;
    out->top_k = r->top_k;
    out->target = r->target;
    out->n_top = r->n_top;
}

/* Best logprobs that a row wants of the device: they lie one row after another. */
int tops_of(const la_sample_row *r)
{
    return device_draws(r) && r->n_top > 0 ? r->n_top : 0;
}

} // namespace

la_draws_layout la_draws_layout_of(const la_model_desc *d, const la_limits *limits, size_t begin)
{
    la_draws_layout at;
    size_t T = (size_t)limits->max_batch_tokens;
    int V = d->n_vocab, seqs = limits->max_seqs < limits->max_batch_tokens
                                   ? limits->max_seqs
                                   : limits->max_batch_tokens;
    int seen = limits->max_len < V ? limits->max_len : V, usual = seen < 2048 ? seen : 2048;
    /* what each sequence may usually want, and what one may want at most */
    int64_t words = (int64_t)seqs * (words_of_mask(V) + 2 * usual + 64) + words_of_mask(V) +
                    2 * (int64_t)seen + 4 * LA_SAMPLE_LISTED;
    at.n_words = words < INT32_MAX ? (int)words : INT32_MAX;
    at.n_tops = limits->max_batch_tokens * LA_SAMPLE_TOPS;
    at.begin = begin;
    at.rules = 0;
    at.words = round_up(T * sizeof(la_draw_rule));
    at.drawn = at.words + round_up((size_t)at.n_words * 4);
    at.tops = at.drawn + round_up(T * sizeof(la_drawn));
    at.host = at.tops + round_up((size_t)at.n_tops * sizeof(la_top));
    at.bytes = at.host + round_up(LA_LOGIT_ROWS * sizeof(int32_t));
    return at;
}

/* A tile's logits and rows; as in the workspace. */
static size_t tile_bytes(int rows, int64_t ld)
{
    return (size_t)rows * ((size_t)ld * sizeof(float) + sizeof(la_sample_row));
}

size_t la_draws_host_bytes(const la_cuda *cuda, const la_model_desc *d, const la_limits *limits)
{
    int rows = limits->max_batch_tokens < LA_LOGIT_ROWS ? limits->max_batch_tokens : LA_LOGIT_ROWS;
    return 2 * la_draws_layout_of(d, limits, 0).bytes +
           tile_bytes(rows, (d->n_vocab + 15) / 16 * 16) +
           cuda->host->drawer_bytes(d, rows, limits->host_threads);
}

void la_draws_close(la_cuda *cuda, la_draws *own)
{
    if (own != NULL) {
        la_rt_unpin(cuda->rt, own->pinned[0]);
        la_rt_unpin(cuda->rt, own->pinned[1]);
        la_rt_unpin(cuda->rt, own->logits);
        cuda->host->drawer_close(own->drawer);
        cuda->host->free(own->host_rows);
        cuda->host->free(own);
    }
}

la_status la_draws_open(la_cuda *cuda, const la_model *m, const la_workspace *w,
                        const la_limits *limits, size_t begin, la_draws **out)
{
    la_draws *own = static_cast<la_draws *>(cuda->host->alloc(1, sizeof *own));
    size_t rows = (size_t)w->logit_rows, logits = rows * (size_t)w->logits.ld * sizeof(float);
    *out = own;
    if (own == NULL) {
        return cuda->host->fail(LA_ERR_MEMORY, "sampling: out of memory");
    }
    own->at = la_draws_layout_of(&m->desc, limits, begin);
    own->pinned[0] = static_cast<uint8_t *>(la_rt_pin(cuda->rt, own->at.bytes));
    own->pinned[1] = static_cast<uint8_t *>(la_rt_pin(cuda->rt, own->at.bytes));
    own->logits = static_cast<float *>(la_rt_pin(cuda->rt, logits));
    own->host_rows = static_cast<la_sample_row *>(cuda->host->alloc(rows, sizeof *own->host_rows));
    if (own->pinned[0] == NULL || own->pinned[1] == NULL || own->logits == NULL ||
        own->host_rows == NULL) {
        return cuda->host->fail(LA_ERR_MEMORY, "sampling: cannot pin %zu bytes",
                                2 * own->at.bytes + logits);
    }
    return cuda->host->drawer_open(&m->desc, w->logit_rows, limits->host_threads, &own->drawer);
}

/* Rows from `first` on, and such that want nothing up to `size`; behind 0 there was a wait, and what the step before
 * drew is on the host. */
static int pack(la_draws *own, const la_ctx *c, int first, int size)
{
    la_cuda *cuda = la_cuda_of(c->b);
    const uint8_t *other = own->pinned[!own->turn] + own->at.drawn;
    const la_drawn *before = reinterpret_cast<const la_drawn *>(other);
    la_draw_rule *rules = array_at<la_draw_rule>(own, own->at.rules);
    int V = c->m->desc.n_vocab, used = 0, top_at = 0, end = first;
    for (int i = 0; i < first; i++) {
        top_at += tops_of(&c->batch->rows[i]);
    }
    for (; end < c->batch->n_rows; end++) {
        const la_sample_row *r = &c->batch->rows[end];
        la_draw_rule *rule = &rules[end];
        *rule = {};
        rule->target = -2;
        if (!device_draws(r)) {
            continue;
        }
        if (!pack_row(own, r, V, rule, &used)) {
            break;
        }
        pack_numbers(r, rule);
        rule->newest = r->newest < 0 ? -1 : first == 0 ? -2 - r->newest : before[r->newest].id;
        rule->top_at = top_at;
        top_at += tops_of(r);
    }
    int filled = end;
    for (; end == c->batch->n_rows && filled < size; filled++) {
        rules[filled] = {};
        rules[filled].target = -2;
        rules[filled].newest = -1;
    }
    la_rt_copy(cuda->s, on_device(own, c, own->at.rules) + (size_t)first * sizeof *rules,
               rules + first, (size_t)(filled - first) * sizeof *rules, LA_RT_IN);
    la_rt_copy(cuda->s, on_device(own, c, own->at.words), array_at<uint8_t>(own, own->at.words),
               (size_t)used * 4, LA_RT_IN);
    own->packed_end = filled;
    return end;
}

int la_draws_hosted(const la_batch *batch)
{
    int n = 0;
    for (int i = 0; i < batch->n_rows; i++) {
        n += wants_anything(&batch->rows[i]) && !device_draws(&batch->rows[i]);
    }
    return n;
}

int la_draws_pack(la_draws *own, const la_ctx *c, int turn, int size)
{
    own->turn = turn;
    return pack(own, c, 0, size);
}

void la_draws_resume(la_draws *own, const la_ctx *c, int32_t *tokens)
{
    la_resume_args a = {};
    a.tokens = tokens;
    a.rules = reinterpret_cast<la_draw_rule *>(on_device(own, c, own->at.rules));
    a.drawn = reinterpret_cast<la_drawn *>(on_device(own, c, own->at.drawn));
    a.n_tokens = c->batch->n_tokens;
    a.n_rules = own->packed_end;
    la_launch_resume(la_cuda_of(c->b)->s, &a);
}

void la_draws_launch(la_draws *own, la_ctx *c, int first, la_rows logits, float *scratch)
{
    la_cuda *cuda = la_cuda_of(c->b);
    int end = first + logits.n;
    for (int i = first; i < end;) {
        if (i >= own->packed_end) {
            if (la_rt_stream_wait(cuda->s) != 0) { /* what was packed before is read until then */
                return;
            }
            (void)pack(own, c, i, 0);
        }
        int stop = own->packed_end < end ? own->packed_end : end;
        la_sample_args a = {};
        a.logits = logits.p + (int64_t)(i - first) * logits.ld;
        a.ldl = logits.ld;
        a.ruled = scratch + (int64_t)(i - first) * logits.ld;
        a.ldr = logits.ld;
        a.rules = reinterpret_cast<la_draw_rule *>(on_device(own, c, own->at.rules)) + i;
        a.words = reinterpret_cast<uint32_t *>(on_device(own, c, own->at.words));
        a.drawn = reinterpret_cast<la_drawn *>(on_device(own, c, own->at.drawn)) + i;
        a.tops = reinterpret_cast<la_top *>(on_device(own, c, own->at.tops));
        a.n = stop - i;
        a.V = c->m->desc.n_vocab;
        la_launch_sample(cuda->s, &a);
        i = stop;
    }
}

/* What the host drew for rows of a tile: the next step may feed it. */
static void tell_device(la_draws *own, const la_ctx *c, int first, int n)
{
    la_drawn *drawn = reinterpret_cast<la_drawn *>(on_device(own, c, own->at.drawn));
    int32_t *ids = array_at<int32_t>(own, own->at.host);
    for (int i = 0; i < n; i++) {
        const la_sample_row *r = &c->batch->rows[first + i];
        if (r->target == -1 && !device_draws(r)) {
            ids[i] = *r->out_token;
            la_rt_copy(la_cuda_of(c->b)->s, &drawn[first + i].id, &ids[i], sizeof ids[i], LA_RT_IN);
        }
    }
}

void la_draws_host(la_draws *own, la_ctx *c, int first, la_rows logits)
{
    la_cuda *cuda = la_cuda_of(c->b);
    int n = 0;
    for (int i = 0; i < logits.n; i++) {
        const la_sample_row *r = &c->batch->rows[first + i];
        if (wants_anything(r) && !device_draws(r)) {
            la_rt_copy(cuda->s, own->logits + (int64_t)n * logits.ld,
                       logits.p + (int64_t)i * logits.ld, (size_t)logits.ld * sizeof(float),
                       LA_RT_OUT);
            own->host_rows[n++] = *r;
        }
    }
    if (n > 0 && la_rt_stream_wait(cuda->s) == 0) {
        la_batch rows = {};
        rows.n_tokens = rows.n_rows = n;
        rows.rows = own->host_rows;
        la_rows here = {own->logits, n, logits.ld};
        cuda->host->drawer_run(own->drawer, c->m, &rows, 0, here);
        tell_device(own, c, first, logits.n);
    }
}

void la_draws_fetch(la_draws *own, const la_ctx *c)
{
    la_cuda *cuda = la_cuda_of(c->b);
    int any = 0, tops = 0;
    for (int i = 0; i < c->batch->n_rows; i++) {
        any |= device_draws(&c->batch->rows[i]);
        tops += tops_of(&c->batch->rows[i]);
    }
    la_rt_copy(cuda->s, array_at<uint8_t>(own, own->at.drawn), on_device(own, c, own->at.drawn),
               any ? (size_t)c->batch->n_rows * sizeof(la_drawn) : 0, LA_RT_OUT);
    la_rt_copy(cuda->s, array_at<uint8_t>(own, own->at.tops), on_device(own, c, own->at.tops),
               (size_t)tops * sizeof(la_top), LA_RT_OUT);
}

void la_draws_give(const la_draws *own, const la_batch *batch, int turn)
{
    const uint8_t *pinned = own->pinned[turn];
    const la_drawn *drawn = reinterpret_cast<const la_drawn *>(pinned + own->at.drawn);
    const la_top *tops = reinterpret_cast<const la_top *>(pinned + own->at.tops);
    for (int i = 0; i < batch->n_rows; i++) {
        const la_sample_row *r = &batch->rows[i];
        if (!device_draws(r)) {
            continue;
        }
        if (r->target == -1) {
            *r->out_token = drawn[i].id;
        }
        if (r->n_top >= 0) {
            *r->out_logprob = drawn[i].logprob;
            *r->out_rank = drawn[i].rank;
        }
        for (int k = 0; k < r->n_top; k++) {
            r->top_ids[k] = tops[k].id;
            r->top_logprobs[k] = tops[k].logprob;
        }
        tops += tops_of(r);
    }
}

int la_draws_ahead(const la_sampling *p)
{
    /* What the host draws, or has to see before the next draw. */
    int host = p->n_trace > 0 || p->n_think_start > 0 || p->no_repeat_ngram > 0 ||
               p->repeat_last_n >= 0 || p->dry_multiplier != 0.0f || p->n_score > 0 ||
               (p->logprobs >= 0 && p->report != LA_REPORT_LOGPROBS) || p->top_n_sigma != 0.0f ||
               p->dynatemp_range != 0.0f || p->typical_p != 1.0f || p->xtc_probability != 0.0f ||
               p->mirostat != 0;
    return !host && p->logprobs <= LA_SAMPLE_TOPS && p->n_stop <= LA_SAMPLE_LISTED &&
           p->n_bad <= LA_SAMPLE_LISTED - p->n_stop && p->n_bias <= LA_SAMPLE_LISTED &&
           ascending(p->bias_ids, p->n_bias);
}
