/* engine.c - requests to tokens: one step is drain, schedule, forward, collect.
 *
 * Owns the page pool, the workspace and every array a step needs, all sized by the limits when the
 * engine is made: a step allocates nothing. Invariants: one thread steps at a time; a request's
 * events come in order, FINISH last for each branch, and the request is freed after its last.
 * Where a backend goes on by itself, the step before is what is collected: its tokens were fed before they were
 * known, and one that proves to be a stop has cost a token, whose result is passed over.
 * Other threads reach the engine through inbox.c only. Called by python/py_engine.c.
 */
#include <math.h>
#include <string.h>

#include "inbox.h"

/* FINISH events of a step beyond one for each sequence (many waiting requests cancelled at once);
 * more than that wait for the next step. */
enum { LA_SPARE_EVENTS = 256 };
/* Result entries (id and logprob) for each token of a step. */
enum { LA_ENTRIES_PER_TOKEN = 64 };

/* The tokens and rows of a step. */
typedef struct la_assembly {
    int32_t *tokens;     /* [max_batch_tokens] */
    la_span *spans;      /* [max_seqs] */
    la_sample_row *rows; /* [max_batch_tokens] */
    la_seq **row_seqs;   /* [max_batch_tokens] whose row it is */
    int *row_positions;  /* [max_batch_tokens] fed position of the row */
    int32_t *out_tokens; /* [max_batch_tokens] */
    float *out_logprobs; /* [max_batch_tokens] */
    int *out_ranks;      /* [max_batch_tokens] */
    int32_t *top_ids;    /* [n_entries] */
    float *top_logprobs; /* [n_entries] */
    int64_t n_entries;
    int64_t entries_used;
    int n_tokens, n_spans, n_rows;
    la_batch batch; /* these arrays */
} la_assembly;

struct la_engine {
    la_model *model;
    la_kv *kv;
    la_workspace *workspace;
    la_limits limits;
    la_door door;
    la_kvcache cache;
    la_sched sched;
    la_inbox inbox;
    la_assembly steps[2]; /* taken in turns */
    la_assembly *step;    /* in the making, or collected */
    la_assembly *flying;  /* under way, to be collected by the next step; NULL: none */
    la_event *events;     /* [max_events] */
    int n_events;
    int max_events;
    la_heap deadlines;
    la_branch *first_finished; /* branches whose FINISH event is still to come, in order */
    la_branch *last_finished;
    la_engine_stats stats; /* the stepping thread's; published after each step */
    int64_t *expert_load;  /* [n_loads] as published; under the inbox's mutex */
    size_t n_loads;
    uint8_t *arrays;    /* one block; the arrays above lie in it */
    size_t array_bytes; /* of it and of the page tables */
};

/* ---- create and free -------------------------------------------------------------------------- */

/* The next `n` items of `size` bytes of a block; NULL while the block is only measured. */
static void *carve(uint8_t *base, size_t *at, size_t n, size_t size)
{
    void *p = base != NULL ? base + *at : NULL;
    *at += la_round_up(n * size, 64); /* n and size are bounded by la_limits_check */
    return p;
}

/* Lays a step's arrays out from base + *end (NULL: only measures). */
static void lay_out_step(la_assembly *s, const la_model_desc *d, const la_limits *limits,
                         uint8_t *base, size_t *end)
{
    size_t t = (size_t)limits->max_batch_tokens, n_seqs = (size_t)limits->max_seqs, at = *end;
    int64_t floor = 2 * (int64_t)d->n_vocab; /* a row asks for V entries at most */
    s->n_entries = (int64_t)t * LA_ENTRIES_PER_TOKEN;
    s->n_entries = s->n_entries > floor ? s->n_entries : floor;
    s->tokens = carve(base, &at, t, sizeof *s->tokens);
    s->spans = carve(base, &at, n_seqs, sizeof *s->spans);
    s->rows = carve(base, &at, t, sizeof *s->rows);
    s->row_seqs = carve(base, &at, t, sizeof *s->row_seqs);
    s->row_positions = carve(base, &at, t, sizeof *s->row_positions);
    s->out_tokens = carve(base, &at, t, sizeof *s->out_tokens);
    s->out_logprobs = carve(base, &at, t, sizeof *s->out_logprobs);
    s->out_ranks = carve(base, &at, t, sizeof *s->out_ranks);
    s->top_ids = carve(base, &at, (size_t)s->n_entries, sizeof *s->top_ids);
    s->top_logprobs = carve(base, &at, (size_t)s->n_entries, sizeof *s->top_logprobs);
    *end = at;
}

static size_t lay_out_arrays(la_engine *e, const la_model_desc *d, const la_limits *limits,
                             uint8_t *base)
{
    size_t at = 0;
    lay_out_step(&e->steps[0], d, limits, base, &at);
    lay_out_step(&e->steps[1], d, limits, base, &at);
    e->step = &e->steps[0];
    e->max_events = limits->max_batch_tokens + limits->max_seqs + LA_SPARE_EVENTS;
    e->events = carve(base, &at, (size_t)e->max_events, sizeof *e->events);
    e->n_loads = (size_t)d->n_layers * (size_t)d->n_experts;
    e->expert_load = carve(base, &at, e->n_loads, sizeof *e->expert_load);
    return at;
}

/* At most two copies for a sequence in a plan: one of each start, and few start twice. */
static int max_copies(const la_limits *limits)
{
    return 2 * limits->max_seqs;
}

size_t la_engine_bytes(const la_model_desc *desc, const la_limits *limits)
{
    la_engine e = {0};
    return lay_out_arrays(&e, desc, limits, NULL) +
           la_kvcache_bytes(limits->kv_pages, max_copies(limits));
}

static la_status create_arrays(la_engine *e)
{
    const la_model_desc *d = la_model_desc_of(e->model);
    size_t bytes = lay_out_arrays(e, d, &e->limits, NULL);
    e->arrays = la_alloc(bytes, 1);
    if (e->arrays == NULL) {
        return la_fail(LA_ERR_MEMORY, "engine: %zu bytes of step arrays", bytes);
    }
    lay_out_arrays(e, d, &e->limits, e->arrays);
    return LA_OK;
}

/* Statistics other threads see before the first step and after each. */
static void publish_stats(la_engine *e)
{
    la_engine_stats *s = &e->stats;
    s->running = e->sched.n_running;
    s->waiting = (int)(e->sched.waiting.n + e->sched.n_parked);
    s->pages_cap = e->cache.n_pages;
    s->pages_used = e->cache.n_used;
    s->pages_committed = la_kv_committed(e->kv);
    s->kv_bytes = (size_t)s->pages_committed * la_kv_page_bytes(e->kv);
    s->workspace_bytes = la_workspace_bytes(e->workspace) + e->array_bytes;
    s->recomputed_tokens = e->sched.n_recomputed;
    s->preemptions = e->sched.n_preempted;
    la_inbox_lock(&e->inbox);
    e->inbox.stats = *s;
    if (e->n_loads != 0) {
        memcpy(e->expert_load, la_workspace_expert_load(e->workspace),
               e->n_loads * sizeof *e->expert_load);
    }
    la_inbox_unlock(&e->inbox);
}

la_status la_engine_create(la_model *m, const la_limits *limits, la_engine **out)
{
    la_status st = LA_OK;
    la_engine *e = NULL;
    *out = NULL;
    LA_TRY(la_limits_check(m, limits));
    if (!la_model_ready(m)) {
        return la_fail(LA_ERR_STATE, "model: not finished, la_model_finish comes first");
    }
    e = la_alloc(1, sizeof *e);
    if (e == NULL) {
        return la_fail(LA_ERR_MEMORY, "engine");
    }
    e->model = m;
    e->limits = *limits;
    e->door = (la_door){la_model_desc_of(m)->n_vocab, limits->max_len, limits->kv_pages};
    LA_TRY(la_inbox_init(&e->inbox));
    LA_TRY(create_arrays(e));
    LA_TRY(la_kvcache_init(&e->cache, limits->kv_pages, max_copies(limits)));
    LA_TRY(la_sched_init(&e->sched, &e->cache, limits->max_seqs, limits->max_batch_tokens,
                         e->step->n_entries));
    e->array_bytes = la_engine_bytes(la_model_desc_of(m), limits);
    LA_TRY(la_kv_create(m, limits->kv_pages, &e->kv));
    LA_TRY(la_workspace_create(m, limits, &e->workspace));
    publish_stats(e);
    *out = e;
    e = NULL;
done:
    la_engine_free(e);
    return st;
}

void la_engine_free(la_engine *e)
{
    if (e == NULL) {
        return;
    }
    la_inbox_free(&e->inbox);
    la_sched_free(&e->sched);
    la_kvcache_free(&e->cache);
    la_workspace_free(e->workspace);
    la_kv_free(e->kv);
    la_free(e->arrays);
    la_free(e);
}

/* ---- any thread ------------------------------------------------------------------------------- */

la_status la_engine_add(la_engine *e, const la_request *r, int64_t *id)
{
    la_live *live = NULL;
    *id = 0;
    la_status st = la_request_admit(&e->door, r, &live);
    if (st == LA_OK) {
        *id = la_inbox_put(&e->inbox, live);
    }
    return st;
}

la_status la_engine_cancel(la_engine *e, int64_t id, int branch)
{
    return la_inbox_cancel(&e->inbox, id, branch);
}

int la_engine_has_work(la_engine *e)
{
    la_inbox_lock(&e->inbox);
    int has = e->inbox.n_live > 0;
    la_inbox_unlock(&e->inbox);
    return has;
}

void la_engine_get_stats(la_engine *e, la_engine_stats *out)
{
    la_inbox_lock(&e->inbox);
    *out = e->inbox.stats;
    out->waiting += e->inbox.n_new;
    la_inbox_unlock(&e->inbox);
}

size_t la_engine_expert_load(la_engine *e, int64_t *out)
{
    if (out != NULL) {
        la_inbox_lock(&e->inbox);
        memcpy(out, e->expert_load, e->n_loads * sizeof *out);
        la_inbox_unlock(&e->inbox);
    }
    return e->n_loads;
}

la_status la_engine_preempt(la_engine *e, int n)
{
    if (n < 0) {
        return la_fail(LA_ERR_ARGUMENT, "n: %d sequences", n);
    }
    la_inbox_lock(&e->inbox);
    e->inbox.n_preempt = n;
    la_inbox_unlock(&e->inbox);
    return LA_OK;
}

/* ---- ends of sequences ------------------------------------------------------------------------ */

/* Queues the FINISH event of a branch whose sequence is done. */
static void queue_finish(la_engine *e, la_branch *b)
{
    b->next_finished = NULL;
    if (e->first_finished == NULL) {
        e->first_finished = b;
    }
    else {
        e->last_finished->next_finished = b;
    }
    e->last_finished = b;
}

static la_branch *branch_of(const la_seq *q)
{
    return &LA_OWNER(q->group, la_live, group)->branches[q->branch];
}

/* Ends a sequence that has not ended yet; its pages are free from here on. */
static void end_seq(la_engine *e, la_seq *q, int reason, int32_t stop_token)
{
    la_branch *b = branch_of(q);
    b->reason = reason;
    b->stop_token = stop_token;
    la_sched_finish(&e->sched, q);
    queue_finish(e, b);
}

static void forget_live(la_engine *e, la_live *live)
{
    if (live->deadline > 0.0) {
        la_heap_remove(&e->deadlines, &live->deadline_node);
    }
    la_inbox_forget(&e->inbox, live);
    la_free(live);
}

/* FINISH events, as many as there is room for. */
static void emit_finishes(la_engine *e)
{
    while (e->first_finished != NULL && e->n_events < e->max_events) {
        la_branch *b = e->first_finished;
        la_live *live = b->live;
        e->first_finished = b->next_finished;
        e->events[e->n_events++] = (la_event){.request = live->id,
                                              .branch = (int)(b - live->branches),
                                              .kind = LA_EVENT_FINISH,
                                              .position = b->n_output,
                                              .token = b->stop_token,
                                              .reason = b->reason,
                                              .logprob = NAN,
                                              .scheduled = live->scheduled};
        if (--live->n_open == 0 && live->n_rows == 0) {
            forget_live(e, live);
        }
    }
}

/* ---- before the plan -------------------------------------------------------------------------- */

/* A request new to this thread: into the queues. */
static void take_new(la_engine *e, la_live *live)
{
    live->ahead = la_model_draws_ahead(e->model, &live->sampling);
    la_sched_add(&e->sched, &live->group);
    if (live->deadline > 0.0) {
        live->deadline_node.hi = (int64_t)(live->deadline * 1.0e9);
        live->deadline_node.lo = live->id;
        la_heap_push(&e->deadlines, &live->deadline_node);
    }
    for (int b = 0; b < live->n_branches; b++) {
        if (live->group.seqs[b].state == LA_SEQ_DONE) { /* asked for nothing: ends at once */
            queue_finish(e, &live->branches[b]);
        }
    }
}

static void end_branches(la_engine *e, la_live *live, const unsigned char *which, int reason)
{
    for (int b = 0; b < live->n_branches; b++) {
        la_seq *q = &live->group.seqs[b];
        if ((which == NULL || which[b]) && q->state != LA_SEQ_DONE) {
            end_seq(e, q, reason, -1);
        }
    }
}

/* New requests, cancellations and deadlines. Requests are freed by emit_finishes, never here. */
static void drain(la_engine *e)
{
    la_inbox *box = &e->inbox;
    la_inbox_lock(box);
    for (la_live *live = box->first_new; live != NULL; live = live->next_new) {
        take_new(e, live);
    }
    box->first_new = NULL;
    box->last_new = NULL;
    box->n_new = 0;
    for (la_live *live = box->first_cancel; live != NULL; live = live->next_cancel) {
        end_branches(e, live, live->cancelled, LA_FINISH_ABORT);
        live->in_cancels = 0;
    }
    box->first_cancel = NULL;
    int n_preempt = box->n_preempt;
    box->n_preempt = 0;
    la_inbox_unlock(box);

    int64_t now = (int64_t)(la_now() * 1.0e9);
    while (e->deadlines.top != NULL && e->deadlines.top->hi <= now) {
        la_live *live = LA_OWNER(e->deadlines.top, la_live, deadline_node);
        la_heap_remove(&e->deadlines, e->deadlines.top);
        live->deadline = 0.0;
        end_branches(e, live, NULL, LA_FINISH_TIMEOUT);
    }
    la_sched_preempt(&e->sched, n_preempt);
}

/* ---- assembling the batch --------------------------------------------------------------------- */

/* Room for the row's results. */
static void place_results(la_assembly *s, la_sample_row *row, int i)
{
    row->out_token = &s->out_tokens[i];
    row->out_logprob = &s->out_logprobs[i];
    row->out_rank = &s->out_ranks[i];
    if (row->n_top > 0) {
        row->top_ids = s->top_ids + s->entries_used;
        row->top_logprobs = s->top_logprobs + s->entries_used;
        s->entries_used += row->n_top;
    }
}

/* The row of the token fed at `position`, index `token` of the batch. */
static void add_row(la_engine *e, la_seq *q, int position, int token)
{
    la_assembly *s = e->step;
    la_live *live = LA_OWNER(q->group, la_live, group);
    la_branch *b = &live->branches[q->branch];
    const la_sampling *p = &live->sampling;
    la_sample_row *row = &s->rows[s->n_rows];
    int next = position + 1;
    *row = (la_sample_row){.token = token, .target = -2, .n_top = -1, .newest = -1};
    if (next < q->n_forced) {
        if (next >= live->n_prompt || p->prompt_logprobs >= 0) {
            row->target = la_request_token(live, q->branch, next);
            row->n_top = p->prompt_logprobs > 0 ? p->prompt_logprobs : 0;
        }
    }
    else if (p->max_tokens > 0) {
        la_draw d = {b->output, b->n_output, b->under_way, q->branch, next, live->allowed};
        la_sampler_fill(&b->sampler, p, &d, row);
        row->n_top = p->logprobs;
    }
    if (live->logits != NULL && q->branch == 0 && position < live->n_prompt) {
        row->logits = live->logits + (int64_t)position * e->door.n_vocab;
    }
    place_results(s, row, s->n_rows);
    s->row_seqs[s->n_rows] = q;
    s->row_positions[s->n_rows] = position;
    s->n_rows++;
}

/* Token at a position that is to be fed: known, or drawn by the step under way. */
static int32_t token_at(const la_live *live, int branch, int position)
{
    const la_branch *b = &live->branches[branch];
    int known = live->n_prompt + b->n_suffix + b->n_output;
    return position < known ? la_request_token(live, branch, position) : -1 - b->under_way;
}

static void assemble(la_engine *e)
{
    la_assembly *s = e->step;
    s->n_tokens = 0;
    s->n_spans = 0;
    s->n_rows = 0;
    s->entries_used = 0;
    double now = la_now();
    for (int i = 0; i < e->sched.n_planned; i++) {
        la_seq *q = e->sched.planned[i];
        la_live *live = LA_OWNER(q->group, la_live, group);
        live->scheduled = live->scheduled > 0.0 ? live->scheduled : now;
        s->spans[s->n_spans++] = (la_span){.first_token = s->n_tokens,
                                           .n_tokens = q->n_run,
                                           .first_pos = q->n_done,
                                           .pages = q->table.pages};
        for (int pos = q->n_done; pos < q->n_done + q->n_run; pos++) {
            s->tokens[s->n_tokens] = token_at(live, q->branch, pos);
            if (pos >= q->first_row) {
                add_row(e, q, pos, s->n_tokens);
            }
            s->n_tokens++;
        }
        if (q->n_high <
            q->n_forced) { /* first feeding of given tokens; drawn ones count as output */
            int from = q->n_done > q->n_high ? q->n_done : q->n_high;
            int to = q->n_done + q->n_run < q->n_forced ? q->n_done + q->n_run : q->n_forced;
            e->stats.prompt_tokens += to > from ? to - from : 0;
        }
    }
    s->batch = (la_batch){s->n_tokens, s->tokens, s->n_spans, s->spans, s->n_rows, s->rows};
}

/* ---- collecting results ----------------------------------------------------------------------- */

static la_event *add_event(la_engine *e, const la_assembly *s, const la_seq *q, int i)
{
    const la_live *live = LA_OWNER(q->group, la_live, group);
    const la_sample_row *row = &s->rows[i];
    la_event *ev = &e->events[e->n_events++];
    *ev = (la_event){
        .request = live->id, .branch = q->branch, .logprob = NAN, .scheduled = live->scheduled};
    if (row->n_top >= 0) {
        ev->logprob = s->out_logprobs[i];
        ev->rank = s->out_ranks[i];
        ev->n_top = row->n_top;
        ev->top_ids = row->top_ids;
        ev->top_logprobs = row->top_logprobs;
    }
    return ev;
}

static int is_stop(const la_sampling *p, int32_t token)
{
    for (int i = 0; i < p->n_stop; i++) {
        if (p->stop_ids[i] == token) {
            return 1;
        }
    }
    return 0;
}

/* A drawn token: noted, reported, and the end of its branch or one more token to feed. */
static void accept(la_engine *e, const la_assembly *s, la_seq *q, int i)
{
    const la_live *live = LA_OWNER(q->group, la_live, group);
    la_branch *b = branch_of(q);
    int32_t token = s->out_tokens[i];
    la_event *ev = add_event(e, s, q, i);
    ev->kind = LA_EVENT_TOKEN;
    ev->position = b->n_output;
    ev->token = token;
    b->output[b->n_output++] = token;
    la_sampler_accept(&b->sampler, token);
    e->stats.output_tokens++;
    if (is_stop(&live->sampling, token)) {
        end_seq(e, q, LA_FINISH_STOP, token);
    }
    else if (b->n_output == live->sampling.max_tokens) {
        end_seq(e, q, LA_FINISH_LENGTH, -1);
    }
    else if (!b->foreseen) {
        la_sched_extend(q);
    }
}

static void collect_row(la_engine *e, const la_assembly *s, la_seq *q, int i)
{
    const la_live *live = LA_OWNER(q->group, la_live, group);
    if (s->rows[i].target >= 0) {
        la_event *ev = add_event(e, s, q, i);
        ev->kind = LA_EVENT_PROMPT;
        ev->position = s->row_positions[i] + 1;
        ev->token = s->rows[i].target;
    }
    else if (s->rows[i].target == -1) {
        accept(e, s, q, i);
    }
    if (live->sampling.max_tokens == 0 && q->state != LA_SEQ_DONE &&
        s->row_positions[i] == q->n_todo - 1) { /* scored to the end, and nothing to draw */
        end_seq(e, q, LA_FINISH_LENGTH, -1);
    }
}

/* Results of a step; rows of sequences that ended while it was under way are passed over. */
static la_status collect(la_engine *e, const la_assembly *s)
{
    double start = la_now();
    la_status st = la_model_results(e->model, e->workspace);
    e->stats.forward_seconds += la_now() - start;
    for (int i = 0; i < s->n_rows && st == LA_OK; i++) {
        la_seq *q = s->row_seqs[i];
        if (q->state != LA_SEQ_DONE) {
            collect_row(e, s, q, i);
        }
    }
    return st;
}

/* ---- steps under way -------------------------------------------------------------------------- */

/* The rows' requests stay, and what they draw is fed before it is known, by the next step. */
static void take_off(la_engine *e)
{
    const la_assembly *s = e->step;
    for (int i = 0; i < s->n_rows; i++) {
        la_seq *q = s->row_seqs[i];
        la_live *live = LA_OWNER(q->group, la_live, group);
        la_branch *b = branch_of(q);
        live->n_rows++;
        if (s->rows[i].target != -1 || q->state == LA_SEQ_DONE) {
            continue;
        }
        b->under_way = i;
        b->foreseen = live->ahead && b->n_output + 1 < live->sampling.max_tokens;
        if (b->foreseen) {
            la_sched_extend(q);
        }
    }
    e->flying = e->step;
    e->step = &e->steps[e->step == &e->steps[0]];
}

/* The step under way is collected; requests that waited for it alone go. */
static la_status land(la_engine *e)
{
    const la_assembly *s = e->flying;
    e->flying = NULL;
    la_status st = collect(e, s);
    for (int i = 0; i < s->n_rows; i++) {
        la_live *live = LA_OWNER(s->row_seqs[i]->group, la_live, group);
        la_branch *b = branch_of(s->row_seqs[i]);
        b->under_way = -1;
        b->foreseen = 0;
        if (--live->n_rows == 0 && live->n_open == 0) {
            forget_live(e, live);
        }
    }
    return st;
}

/* ---- the step --------------------------------------------------------------------------------- */

static la_status run_step(la_engine *e)
{
    la_status st = LA_OK;
    la_kvcache *c = &e->cache;
    drain(e);
    la_sched_plan(&e->sched);
    /* On failure the same plan is made again next time, with fewer pages once some were given up. */
    LA_TRY(la_kv_commit(e->kv, la_kvcache_settle(c)));
    for (int i = 0; i < c->n_copies; i++) {
        la_kv_copy(e->kv, c->copies[i].src, c->copies[i].dst);
    }
    c->n_copies = 0;
    assemble(e);
    int runs = e->step->n_tokens > 0, ahead = la_model_ahead(e->model);
    if (runs) {
        double start = la_now();
        LA_TRY(la_model_forward(e->model, e->kv, e->workspace, &e->step->batch));
        e->stats.forward_seconds += la_now() - start;
        la_sched_commit(&e->sched);
        e->stats.steps++;
    }
    e->stats.last_step_tokens = e->step->n_tokens;
    if (e->flying != NULL) {
        LA_TRY(land(e));
    }
    if (runs && ahead) {
        take_off(e);
    }
    else if (runs) {
        LA_TRY(collect(e, e->step));
    }
    emit_finishes(e);
    if (e->cache.n_used == 0 && e->flying == NULL) { /* idle: keep one slab for the next request */
        (void)la_kvcache_settle(c);
        la_kv_trim(e->kv, 1);
    }
done:
    return st;
}

la_status la_engine_step(la_engine *e, const la_event **events, int *n)
{
    *events = NULL;
    *n = 0;
    if (!la_inbox_enter(&e->inbox)) {
        return la_fail(LA_ERR_STATE, "engine: another thread is in la_engine_step");
    }
    double start = la_now();
    int64_t allocations = la_alloc_count();
    e->n_events = 0;
    la_status st = run_step(e);
    e->stats.step_allocations += la_alloc_count() - allocations;
    e->stats.last_step_tokens = st == LA_OK ? e->stats.last_step_tokens : 0;
    e->stats.last_step_seconds = la_now() - start;
    publish_stats(e);
    if (st == LA_OK) {
        *events = e->events;
        *n = e->n_events;
    }
    la_inbox_leave(&e->inbox);
    return st;
}
