/* scheduler.c - see scheduler.h.
 *
 * A plan fills the token budget in three kinds: sequences with one token left to feed (decoding)
 * give it first; then prompts, running or waiting, in order, each taking what is left; a prompt
 * longer than that is cut. A sequence that lacks a page takes it from the last in order; if it is
 * itself the last it sits the step out. When nobody could run at all, the last one is sent back
 * to wait and the plan starts again: at the latest the first alone fits, for requests that never
 * could are refused at the door.
 */
#include "scheduler.h"

la_status la_sched_init(la_sched *s, la_kvcache *cache, int max_seqs, int budget,
                        int64_t max_entries)
{
    *s = (la_sched){
        .cache = cache, .max_seqs = max_seqs, .budget = budget, .max_entries = max_entries};
    s->running = la_alloc((size_t)max_seqs, sizeof *s->running);
    s->planned = la_alloc((size_t)max_seqs, sizeof *s->planned);
    if (s->running == NULL || s->planned == NULL) {
        la_sched_free(s);
        return la_fail(LA_ERR_MEMORY, "queues of %d sequences", max_seqs);
    }
    return LA_OK;
}

void la_sched_free(la_sched *s)
{
    la_free(s->running);
    la_free(s->planned);
    *s = (la_sched){0};
}

/* ---- queues ----------------------------------------------------------------------------------- */

static int sched_before(const la_seq *a, const la_seq *b)
{
    return la_heap_before(&a->node, &b->node);
}

static void sched_wait(la_sched *s, la_seq *q)
{
    q->state = LA_SEQ_WAITING;
    q->group->n_waiting++;
    la_heap_push(&s->waiting, &q->node);
}

static void sched_park(la_sched *s, la_seq *q)
{
    q->state = LA_SEQ_PARKED;
    s->n_parked++;
    la_heap_push(&q->group->parked, &q->node);
}

static la_seq *sched_unpark(la_sched *s, la_group *g)
{
    la_heap_node *node = g->parked.top;
    la_heap_remove(&g->parked, node);
    s->n_parked--;
    return LA_OWNER(node, la_seq, node);
}

static void sched_unwait(la_sched *s, la_seq *q)
{
    la_heap_remove(&s->waiting, &q->node);
    q->group->n_waiting--;
}

/* Puts q among the running ones at its place in the order. */
static void sched_run(la_sched *s, la_seq *q)
{
    int i = s->n_running++;
    for (; i > 0 && sched_before(q, s->running[i - 1]); i--) {
        s->running[i] = s->running[i - 1];
    }
    s->running[i] = q;
    q->state = LA_SEQ_RUNNING;
}

static void sched_unrun(la_sched *s, const la_seq *q)
{
    int i = 0;
    while (s->running[i] != q) {
        i++;
    }
    s->n_running--;
    for (; i < s->n_running; i++) {
        s->running[i] = s->running[i + 1];
    }
}

/* ---- shared prefixes -------------------------------------------------------------------------- */

static void sched_hold(la_sched *s, la_group *g, const la_table *from)
{
    la_kvcache_fork(s->cache, from, la_kvcache_span(g->n_prefix), &g->prefix);
    g->prev_holder = NULL;
    g->next_holder = s->holders;
    if (s->holders != NULL) {
        s->holders->prev_holder = g;
    }
    s->holders = g;
}

static void sched_unhold(la_sched *s, la_group *g)
{
    la_kvcache_clear(s->cache, &g->prefix);
    if (g->prev_holder != NULL) {
        g->prev_holder->next_holder = g->next_holder;
    }
    else {
        s->holders = g->next_holder;
    }
    if (g->next_holder != NULL) {
        g->next_holder->prev_holder = g->prev_holder;
    }
}

/* After any change of a branch's state: lets go of a prefix nobody will start from, and sees to it
 * that parked branches have somebody to wait for. */
static void sched_settle(la_sched *s, la_group *g)
{
    if (g->prefix.n > 0 && g->n_waiting == 0) {
        sched_unhold(s, g);
    }
    if (g->parked.n > 0 && g->leader == NULL && g->n_waiting == 0) {
        sched_wait(s, sched_unpark(s, g));
    }
}

/* The leader has computed the prefix: the group holds it and the parked branches may start. */
static void sched_share(la_sched *s, la_group *g)
{
    const la_seq *leader = g->leader;
    g->leader = NULL;
    if (g->n_waiting + g->parked.n == 0) {
        return;
    }
    sched_hold(s, g, &leader->table);
    while (g->parked.n > 0) {
        sched_wait(s, sched_unpark(s, g));
    }
}

/* Rows of the first n tokens still to be fed: those that score and those that sample. */
static void sched_rows(const la_seq *q, int n, int *scoring, int *sampling)
{
    int end = q->n_done + n;
    int first = q->n_done > q->first_row ? q->n_done : q->first_row;
    int split = q->n_forced - 1; /* the row here samples, those before score */
    split = split < first ? first : split > end ? end : split;
    *scoring = first < end ? split - first : 0;
    *sampling = first < end ? end - split : 0;
}

/* Result entries of the rows that n_run tokens give. */
static int64_t sched_cost(const la_seq *q)
{
    int scoring, sampling;
    sched_rows(q, q->n_run, &scoring, &sampling);
    return (int64_t)scoring * q->forced_cost + (int64_t)sampling * q->sample_cost;
}

/* ---- taking pages away ------------------------------------------------------------------------ */

/* Running sequence q loses its place and its pages. */
static void sched_stop(la_sched *s, la_seq *q)
{
    sched_unrun(s, q);
    la_kvcache_clear(s->cache, &q->table);
    s->room += q->n_run;
    s->entries += sched_cost(q);
    q->n_run = 0;
    q->n_done = 0;
    if (q->group->leader == q) {
        q->group->leader = NULL;
    }
}

void la_sched_preempt(la_sched *s, int n)
{
    for (; n > 0 && s->n_running > 0; n--) {
        la_seq *q = s->running[s->n_running - 1];
        int fed = q->n_done == q->n_todo; /* a beam that waits for the others of its group */
        sched_stop(s, q);
        if (fed) {
            q->state = LA_SEQ_HELD;
        }
        else {
            sched_wait(s, q);
        }
        s->n_preempted++;
    }
}

/* Where a held prefix stands in the order: with the last branch of its group. */
static const la_seq *sched_rank(const la_group *g)
{
    return &g->seqs[g->n_seqs - 1];
}

/* The holder that is last in order, leaving out the group `except`; NULL if there is none. */
static la_group *sched_last_holder(const la_sched *s, const la_group *except)
{
    la_group *last = NULL;
    for (la_group *g = s->holders; g != NULL; g = g->next_holder) {
        if (g != except && (last == NULL || sched_before(sched_rank(last), sched_rank(g)))) {
            last = g;
        }
    }
    return last;
}

/* Takes pages from the running sequence or held prefix that is last in order, if it comes after q.
 * 0 when there is none; a page need not have become free, as others may share it. */
static int sched_reclaim(la_sched *s, const la_seq *q)
{
    la_seq *last = s->running[s->n_running - 1]; /* q runs, so there is one */
    la_group *held = sched_last_holder(s, NULL);
    if (held != NULL && sched_before(last, sched_rank(held)) && sched_before(q, sched_rank(held))) {
        sched_unhold(s, held);
        return 1;
    }
    if (last == q) {
        return 0;
    }
    la_sched_preempt(s, 1);
    return 1;
}

/* ---- granting tokens -------------------------------------------------------------------------- */

/* The most of n tokens whose rows find room among the result entries that are left. */
static int sched_afford(const la_sched *s, const la_seq *q, int n)
{
    int scoring, sampling;
    sched_rows(q, n, &scoring, &sampling);
    int64_t left = s->entries;
    if ((int64_t)scoring * q->forced_cost > left) {
        return n - sampling - (scoring - (int)(left / q->forced_cost));
    }
    left -= (int64_t)scoring * q->forced_cost;
    if ((int64_t)sampling * q->sample_cost > left) {
        return n - (sampling - (int)(left / q->sample_cost));
    }
    return n;
}

/* The most of n tokens of running q that find pages it may write. */
static int sched_pages(la_sched *s, la_seq *q, int n)
{
    int first = q->n_done / LA_PAGE;
    if (n > 0 && first < q->table.n) {
        while (!la_kvcache_own(s->cache, &q->table, first)) {
            if (!sched_reclaim(s, q)) {
                return 0;
            }
        }
    }
    while (q->table.n * (int64_t)LA_PAGE < q->n_done + n) {
        if (!la_kvcache_grow(s->cache, &q->table) && !sched_reclaim(s, q)) {
            break;
        }
    }
    int64_t have = q->table.n * (int64_t)LA_PAGE - q->n_done;
    return have < n ? (int)have : n;
}

static void sched_grant(la_sched *s, la_seq *q)
{
    int n = q->n_todo - q->n_done;
    n = n < s->room ? n : s->room;
    n = sched_afford(s, q, n);
    q->n_run = sched_pages(s, q, n);
    s->room -= q->n_run;
    s->entries -= sched_cost(q);
}

/* ---- admission -------------------------------------------------------------------------------- */

/* Pages a running sequence counts on: those of its known tokens that it lacks, and one to grow. */
static int64_t sched_promised(const la_seq *q)
{
    int known = la_kvcache_span(q->n_todo);
    int lacks = known > q->table.n ? known - q->table.n : 0;
    return lacks + (la_kvcache_span(q->n_max) > known);
}

/* Whether pages for all known tokens of waiting q can be had beside what others count on, by taking
 * them from sequences of a lower priority if need be. Checked as a whole, so that a prompt is not
 * begun to be thrown out half way, and nobody is thrown out in vain. */
static int sched_fits(la_sched *s, const la_seq *q)
{
    const la_kvcache *c = s->cache;
    int shared = q->group->prefix.n > 0 ? q->group->n_prefix / LA_PAGE : 0;
    int64_t need = la_kvcache_span(q->n_todo) - shared;
    int64_t all = 0, above = 0, gain = 0;
    for (int i = 0; i < s->n_running; i++) {
        const la_seq *r = s->running[i];
        all += sched_promised(r);
        if (r->node.hi > q->node.hi) {
            gain += r->table.n;
        }
        else {
            above += sched_promised(r);
        }
    }
    if (c->n_pages - c->n_used + gain >= need + above) {
        while (c->n_pages - c->n_used < need + all && s->n_running > 0) {
            const la_seq *last = s->running[s->n_running - 1];
            if (last->node.hi <= q->node.hi) {
                break;
            }
            all -= sched_promised(last);
            la_sched_preempt(s, 1);
        }
    }
    while (c->n_pages - c->n_used < need + all) {
        la_group *held = sched_last_holder(s, q->group);
        if (held == NULL || (s->n_running > 0 && sched_rank(held)->node.hi <= q->node.hi)) {
            return s->n_running == 0; /* alone it fits, or it had been refused */
        }
        sched_unhold(s, held);
    }
    return 1;
}

/* Starts waiting q, from its group's prefix where that is held. */
static void sched_start(la_sched *s, la_seq *q)
{
    la_group *g = q->group;
    sched_unwait(s, q);
    if (g->prefix.n > 0) {
        la_kvcache_fork(s->cache, &g->prefix, g->prefix.n, &q->table);
        q->n_done = g->n_prefix;
    }
    else if (g->n_prefix > 0) {
        g->leader = q;
    }
    sched_run(s, q);
    sched_settle(s, g);
}

/* The first waiting sequence that need not wait for a leader; those that must are parked. */
static la_seq *sched_next(la_sched *s)
{
    while (s->waiting.top != NULL) {
        la_seq *q = LA_OWNER(s->waiting.top, la_seq, node);
        if (q->group->leader == NULL || q->group->prefix.n > 0) {
            return q;
        }
        sched_unwait(s, q);
        sched_park(s, q);
    }
    return NULL;
}

/* ---- the plan --------------------------------------------------------------------------------- */

/* Prompts, running and waiting, merged in order. */
static void sched_fill(la_sched *s)
{
    int blocked =
        0; /* the first waiting sequence has to go on waiting, and so has who comes after */
    int i = 0;
    while (s->room > 0) {
        while (i < s->n_running && s->running[i]->n_todo - s->running[i]->n_done == 1) {
            i++; /* decoding: had its turn */
        }
        la_seq *q = blocked || s->n_running == s->max_seqs ? NULL : sched_next(s);
        if (q != NULL && (i >= s->n_running || sched_before(q, s->running[i]))) {
            if (sched_fits(s, q)) {
                sched_start(s, q); /* at place i or before it */
                sched_grant(s, q);
                i++;
            }
            else {
                blocked = 1;
            }
            continue;
        }
        if (i >= s->n_running) {
            break;
        }
        sched_grant(s, s->running[i]);
        i++;
    }
}

/* Does a running sequence know a token that it has not fed? */
static int sched_hungry(const la_sched *s)
{
    for (int i = 0; i < s->n_running; i++) {
        if (s->running[i]->n_done < s->running[i]->n_todo) {
            return 1;
        }
    }
    return 0;
}

void la_sched_plan(la_sched *s)
{
    for (int tries = 0; tries <= s->max_seqs; tries++) {
        s->room = s->budget;
        s->entries = s->max_entries;
        for (int i = 0; i < s->n_running; i++) {
            s->running[i]->n_run = 0;
        }
        for (int i = 0; i < s->n_running && s->room > 0; i++) {
            if (s->running[i]->n_todo - s->running[i]->n_done == 1) {
                sched_grant(s, s->running[i]);
            }
        }
        sched_fill(s);
        if (s->room < s->budget || s->n_running == 0 || (s->under_way && !sched_hungry(s))) {
            break; /* those that run wait for what the step under way draws */
        }
        la_sched_preempt(s, 1);
    }
    s->n_planned = 0;
    for (int i = 0; i < s->n_running; i++) {
        if (s->running[i]->n_run > 0) {
            s->planned[s->n_planned++] = s->running[i];
        }
    }
}

void la_sched_commit(la_sched *s)
{
    for (int i = 0; i < s->n_planned; i++) {
        la_seq *q = s->planned[i];
        int again = q->n_high - q->n_done;
        again = again < 0 ? 0 : again;
        s->n_recomputed += again < q->n_run ? again : q->n_run;
        q->n_done += q->n_run;
        q->n_run = 0;
        q->n_high = q->n_done > q->n_high ? q->n_done : q->n_high;
        q->first_row = q->n_done > q->first_row ? q->n_done : q->first_row;
        if (q->group->leader == q && q->n_done >= q->group->n_prefix) {
            sched_share(s, q->group);
        }
    }
    s->n_planned = 0;
}

/* ---- the life of a sequence ------------------------------------------------------------------- */

void la_sched_add(la_sched *s, la_group *g)
{
    for (int b = 0; b < g->n_seqs; b++) {
        la_seq *q = &g->seqs[b];
        q->node.lo = s->next_ticket++;
        if (q->state == LA_SEQ_DONE || q->state == LA_SEQ_HELD) {
            continue;
        }
        if (g->n_prefix > 0) {
            sched_park(s, q);
        }
        else {
            sched_wait(s, q);
        }
    }
    sched_settle(s, g);
}

void la_sched_extend(la_seq *q)
{
    q->n_todo++;
}

/* Beam q has its new table and was fed `fed` tokens. It runs on where it has pages and a place; else it
 * waits, without pages but those of the group's prefix, for only running ones can be made to give any. */
static void sched_go_on(la_sched *s, la_seq *q, int fed)
{
    la_group *g = q->group;
    int runs = q->state == LA_SEQ_RUNNING;
    q->n_todo = fed + 1;
    q->n_high = fed;
    q->first_row = fed;
    if (q->table.n > 0 && (runs || s->n_running < s->max_seqs)) {
        q->n_done = fed;
        if (!runs) {
            sched_run(s, q);
        }
        return;
    }
    if (q->table.n > 0 && g->n_prefix > 0 && g->prefix.n == 0) {
        sched_hold(s, g, &q->table);
    }
    if (runs) {
        sched_unrun(s, q);
    }
    la_kvcache_clear(s->cache, &q->table);
    q->n_done = 0;
    sched_wait(s, q);
}

void la_sched_reform(la_sched *s, la_group *g, const int *parents, int n)
{
    int fed = g->seqs[0].n_todo;
    for (int k = 0; k < n; k++) {
        const la_table *from = &g->seqs[parents[k]].table;
        la_kvcache_fork(s->cache, from, from->n, &g->spare[k]);
    }
    for (int b = 0; b < g->n_seqs; b++) {
        la_seq *q = &g->seqs[b];
        la_kvcache_clear(s->cache, &q->table);
        la_table was = q->table;
        q->table = g->spare[b];
        g->spare[b] = was;
    }
    for (int b = n; b < g->n_seqs; b++) { /* first: they leave places */
        la_seq *q = &g->seqs[b];
        if (q->state == LA_SEQ_RUNNING) {
            sched_unrun(s, q);
        }
        q->n_done = 0;
        q->state = LA_SEQ_HELD;
    }
    for (int b = 0; b < n; b++) {
        sched_go_on(s, &g->seqs[b], fed);
    }
    sched_settle(s, g);
}

void la_sched_finish(la_sched *s, la_seq *q)
{
    if (q->state == LA_SEQ_RUNNING) {
        sched_stop(s, q);
    }
    else if (q->state == LA_SEQ_WAITING) {
        sched_unwait(s, q);
    }
    else if (q->state == LA_SEQ_PARKED) {
        la_heap_remove(&q->group->parked, &q->node);
        s->n_parked--;
    }
    q->state = LA_SEQ_DONE;
    sched_settle(s, q->group);
}
