/* engine.c - requests to tokens: one step is drain, schedule, forward, collect.
 *
 * Owns the page pool, the workspace and every array a step needs, all sized by the limits when the
 * engine is made: a step allocates nothing. Invariants: one thread steps at a time; a request's
 * events come in order, FINISH last for each branch, and the request is freed after its last.
 * Where a backend goes on by itself, the step before is what is collected: its tokens were fed before they were
 * known, and one that proves to be a stop has cost a token, whose result is passed over.
 * A device that fails ends every request (LA_FINISH_LOST): the step says why, later ones tell of the ends.
 * Other threads reach the engine through inbox.c only. Called by python/py_engine.c.
 */
#include <stdio.h>
#include <string.h>

#include "engine.h"

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
    int64_t floor = 2 * (int64_t)d->n_vocab; /* the most a row asks for: V best, V by id */
    s->n_entries = (int64_t)t * LA_ENTRIES_PER_TOKEN;
    s->n_entries = s->n_entries > floor ? s->n_entries : floor;
    s->tokens = carve(base, &at, t, sizeof *s->tokens);
    s->spans = carve(base, &at, n_seqs, sizeof *s->spans);
    s->span_seqs = carve(base, &at, n_seqs, sizeof *s->span_seqs);
    s->captures = carve(base, &at, 2 * n_seqs, sizeof *s->captures);
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
    /* of two steps where one was under way */
    e->max_events = 2 * limits->max_batch_tokens + limits->max_seqs + LA_SPARE_EVENTS;
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
    LA_TRY(la_model_alive(m));
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
    const la_model_desc *d = la_model_desc_of(m);
    e->door = (la_door){.n_vocab = d->n_vocab,
                        .n_layers = d->n_layers,
                        .d_model = d->d_model,
                        .shows_states = la_model_shows_states(m),
                        .max_len = limits->max_len,
                        .n_pages = limits->kv_pages,
                        .max_seqs = limits->max_seqs};
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
    return st == LA_OK ? la_inbox_put(&e->inbox, live, id) : st;
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

la_status la_engine_kv(la_engine *e, int64_t id, int branch, int *n, size_t *bytes, uint8_t *out)
{
    size_t room = *bytes;
    *n = 0;
    *bytes = 0;
    if (!la_inbox_enter(&e->inbox)) {
        return la_fail(LA_ERR_STATE, "engine: another thread is in la_engine_step");
    }
    la_status st;
    la_inbox_lock(&e->inbox);
    la_live *live = la_inbox_find(&e->inbox, id);
    la_inbox_unlock(&e->inbox);
    if (live == NULL || branch < 0 || branch >= live->n_branches) {
        st = la_fail(LA_ERR_ARGUMENT, "request: none alive has the id %lld and a branch %d",
                     (long long)id, branch);
        goto done;
    }
    const la_seq *q = &live->group.seqs[branch];
    int n_pages = la_kvcache_span(q->table.n > 0 ? q->n_done : 0);
    *bytes = room;
    LA_TRY(la_kv_read(e->kv, q->table.pages, n_pages, bytes, out));
    *n = q->table.n > 0 ? q->n_done : 0;
done:
    la_inbox_leave(&e->inbox);
    return st;
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

/* ---- before the plan -------------------------------------------------------------------------- */

/* A request new to this thread: into the queues. */
static void take_new(la_engine *e, la_live *live)
{
    live->ahead = live->beam == NULL && live->process == NULL && live->drawn_logits == NULL &&
                  la_model_draws_ahead(e->model, &live->sampling);
    la_sched_add(&e->sched, &live->group);
    if (live->deadline > 0.0) {
        live->deadline_node.hi = (int64_t)(live->deadline * 1.0e9);
        live->deadline_node.lo = live->id;
        la_heap_push(&e->deadlines, &live->deadline_node);
    }
    for (int b = 0; b < live->n_branches; b++) {
        if (live->group.seqs[b].state == LA_SEQ_DONE) { /* asked for nothing: ends at once */
            la_queue_finish(e, &live->branches[b]);
        }
    }
}

static void end_branches(la_engine *e, la_live *live, const unsigned char *which, int reason)
{
    if (live->beam != NULL) { /* the beams of a search end together */
        if (live->group.seqs[0].state != LA_SEQ_DONE) {
            la_end_search(e, live, reason);
        }
        return;
    }
    for (int b = 0; b < live->n_branches; b++) {
        la_seq *q = &live->group.seqs[b];
        if ((which == NULL || which[b]) && q->state != LA_SEQ_DONE) {
            la_end_seq(e, q, reason, -1);
        }
    }
}

/* All that arrived; the inbox is locked. */
static void take_arrivals(la_engine *e)
{
    la_inbox *box = &e->inbox;
    for (la_live *live = box->first_new; live != NULL; live = live->next_new) {
        take_new(e, live);
    }
    box->first_new = NULL;
    box->last_new = NULL;
    box->n_new = 0;
}

/* New requests, cancellations and deadlines. Requests are freed by emit_finishes, never here. */
static void drain(la_engine *e)
{
    la_inbox *box = &e->inbox;
    la_inbox_lock(box);
    take_arrivals(e);
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

/* ---- steps under way -------------------------------------------------------------------------- */

/* Has every draw of the step a token that may be fed before it is known? Else its sequence, with nothing to feed,
 * could be preempted and drawn for again. */
static int may_take_off(const la_engine *e)
{
    const la_assembly *s = e->step;
    for (int i = 0; i < s->n_rows; i++) {
        if (s->rows[i].target == -1 && !LA_OWNER(s->row_seqs[i]->group, la_live, group)->ahead) {
            return 0;
        }
    }
    return la_model_ahead(e->model);
}

/* The rows' requests stay, and what they draw is fed before it is known, by the next step. */
static void take_off(la_engine *e)
{
    const la_assembly *s = e->step;
    for (int i = 0; i < s->n_rows; i++) {
        la_seq *q = s->row_seqs[i];
        la_live *live = LA_OWNER(q->group, la_live, group);
        la_branch *b = la_branch_of(q);
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

/* Nobody waits for the step under way any more; requests that waited for it alone go. */
static void let_go(la_engine *e, const la_assembly *s)
{
    for (int i = 0; i < s->n_rows; i++) {
        la_live *live = LA_OWNER(s->row_seqs[i]->group, la_live, group);
        la_branch *b = la_branch_of(s->row_seqs[i]);
        b->under_way = -1;
        b->foreseen = 0;
        if (--live->n_rows == 0 && live->n_open == 0) {
            la_forget_live(e, live);
        }
    }
}

static la_status land(la_engine *e)
{
    const la_assembly *s = e->flying;
    e->flying = NULL;
    la_status st = la_collect(e, s);
    let_go(e, s);
    return st;
}

/* The device has failed: what runs, waits or has just come ends here, and nothing is admitted any more. */
static void lose(la_engine *e, const char *why)
{
    la_inbox *box = &e->inbox;
    const la_assembly *s = e->flying;
    e->flying = NULL;
    if (s != NULL) {
        let_go(e, s);
    }
    la_inbox_lock(box);
    (void)snprintf(box->lost, sizeof box->lost, "%s", why);
    take_arrivals(e);
    for (int i = 0; i < LA_INBOX_BUCKETS; i++) {
        for (la_live *live = box->buckets[i]; live != NULL; live = live->next_in_bucket) {
            end_branches(e, live, NULL, LA_FINISH_LOST);
        }
    }
    la_inbox_unlock(box);
    e->sched.n_planned = 0;
    e->cache.n_copies = 0;
    e->lost = 1;
}

/* ---- the step --------------------------------------------------------------------------------- */

/* Steps need the first n pages. The others' memory goes back when less than half was needed for a while, or when
 * nothing is under way; a slab stays. */
static void give_back(la_engine *e, int64_t n)
{
    enum { STEPS = 256 };
    if (e->cache.n_used == 0 && e->flying == NULL) {
        n = 1;
        e->n_slack = STEPS;
    }
    else {
        e->n_slack = 2 * n <= la_kv_committed(e->kv) ? e->n_slack + 1 : 0;
    }
    if (e->n_slack >= STEPS) {
        la_kv_trim(e->kv, n);
        e->n_slack = 0;
    }
}

static la_status run_step(la_engine *e, double begin)
{
    la_status st = LA_OK;
    la_kvcache *c = &e->cache;
    if (e->lost) { /* what ended is still to be told */
        la_emit_finishes(e);
        return LA_OK;
    }
    drain(e);
    e->sched.under_way = e->flying != NULL;
    la_sched_plan(&e->sched);
    /* On failure the same plan is made again next time, with fewer pages once some were given up. */
    LA_TRY(la_kv_commit(e->kv, la_kvcache_settle(c)));
    for (int i = 0; i < c->n_copies; i++) {
        la_kv_copy(e->kv, c->copies[i].src, c->copies[i].dst);
    }
    c->n_copies = 0;
    la_assemble(e);
    int runs = e->step->n_tokens > 0;
    if (runs) {
        double start = la_now();
        LA_TRY(la_model_forward(e->model, e->kv, e->workspace, &e->step->batch));
        e->stats.last_plan_seconds = start - begin;
        e->stats.last_forward_seconds = la_now() - start;
        e->stats.forward_seconds += e->stats.last_forward_seconds;
        la_sched_commit(&e->sched);
        e->stats.steps++;
    }
    e->stats.last_step_tokens = e->step->n_tokens;
    if (e->flying != NULL) {
        LA_TRY(land(e));
    }
    if (runs && may_take_off(e)) {
        take_off(e);
    }
    else if (runs) {
        LA_TRY(la_collect(e, e->step));
    }
    la_emit_finishes(e);
    give_back(e, la_kvcache_settle(c));
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
    la_status st = run_step(e, start);
    if (st != LA_OK && la_model_alive(e->model) != LA_OK) {
        st = LA_ERR_SYSTEM; /* whatever could not be done for it: the message is the device's */
        lose(e, la_last_error());
    }
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
