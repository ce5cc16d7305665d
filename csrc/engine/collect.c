/* collect.c - results of a step as events, and the ends of sequences.
 *
 * Owns no state. Invariant: a request's events come in order, FINISH last for each branch; what ends
 * gives its pages back at once, and is freed when its last event has gone. Called by engine.c.
 */
#include "engine.h"

#include <math.h>

/* ---- ends of sequences ------------------------------------------------------------------------ */

void la_queue_finish(la_engine *e, la_branch *b)
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

la_branch *la_branch_of(const la_seq *q)
{
    return &LA_OWNER(q->group, la_live, group)->branches[q->branch];
}

void la_end_seq(la_engine *e, la_seq *q, int reason, int32_t stop_token)
{
    la_branch *b = la_branch_of(q);
    b->reason = reason;
    b->stop_token = stop_token;
    la_sched_finish(&e->sched, q);
    la_queue_finish(e, b);
}

void la_end_search(la_engine *e, la_live *live, int reason)
{
    la_beam_close(live->beam);
    for (int b = 0; b < live->n_branches; b++) {
        const la_path *path = &live->beam->ended[b];
        la_branch *branch = &live->branches[b];
        int found = b < live->beam->n_ended, stopped = found && path->end >= 0;
        branch->output = path->ids;
        branch->n_output = found ? path->n : 0;
        la_end_seq(e, &live->group.seqs[b], stopped ? LA_FINISH_STOP : reason,
                   stopped ? path->end : -1);
    }
}

void la_forget_live(la_engine *e, la_live *live)
{
    if (live->deadline > 0.0) {
        la_heap_remove(&e->deadlines, &live->deadline_node);
    }
    la_inbox_forget(&e->inbox, live);
    la_free(live);
}

/* Tokens of a result of a search, as many as there is room for; 1: there was for all. */
static int emit_path(la_engine *e, la_branch *b)
{
    const la_live *live = b->live;
    int branch = (int)(b - live->branches);
    const la_path *path = &live->beam->ended[branch];
    for (; b->n_told < b->n_output && e->n_events < e->max_events; b->n_told++) {
        e->events[e->n_events++] = (la_event){.request = live->id,
                                              .branch = branch,
                                              .kind = LA_EVENT_TOKEN,
                                              .position = b->n_told,
                                              .token = path->ids[b->n_told],
                                              .logprob = path->logprobs[b->n_told],
                                              .rank = path->ranks[b->n_told],
                                              .scheduled = live->scheduled};
    }
    return b->n_told == b->n_output;
}

void la_emit_finishes(la_engine *e)
{
    while (e->first_finished != NULL && e->n_events < e->max_events) {
        la_branch *b = e->first_finished;
        la_live *live = b->live;
        if (live->beam != NULL && (!emit_path(e, b) || e->n_events == e->max_events)) {
            break;
        }
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
            la_forget_live(e, live);
        }
    }
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
        ev->n_top = row->n_top + row->n_score;
        ev->top_ids = row->top_ids;
        ev->top_logprobs = row->top_logprobs;
    }
    return ev;
}

/* A drawn token: noted, reported, and the end of its branch or one more token to feed. */
static void accept(la_engine *e, const la_assembly *s, la_seq *q, int i)
{
    const la_live *live = LA_OWNER(q->group, la_live, group);
    la_branch *b = la_branch_of(q);
    int32_t token = s->out_tokens[i];
    if (token < 0) {
        la_end_seq(e, q, token == LA_DRAW_FAILED ? LA_FINISH_FAILED : LA_FINISH_EMPTY, -1);
        return;
    }
    la_event *ev = add_event(e, s, q, i);
    ev->kind = LA_EVENT_TOKEN;
    ev->position = b->n_output;
    ev->token = token;
    b->output[b->n_output++] = token;
    la_draw d = la_request_draw(live, b, -1);
    la_sampler_accept(&b->sampler, &live->sampling, &d);
    e->stats.output_tokens++;
    if (la_sampling_stops(&live->sampling, token)) {
        la_end_seq(e, q, LA_FINISH_STOP, token);
    }
    else if (b->sampler.repeats) {
        la_end_seq(e, q, LA_FINISH_REPETITION, -1);
    }
    else if (b->n_output == live->sampling.max_tokens) {
        la_end_seq(e, q, LA_FINISH_LENGTH, -1);
    }
    else if (!b->foreseen) {
        la_sched_extend(q);
    }
}

/* The tokens after one beam; with the last of its search the search is ready for its next. */
static void take_row(la_engine *e, const la_seq *q, const la_sample_row *row)
{
    la_live *live = LA_OWNER(q->group, la_live, group);
    if (la_beam_take(live->beam, q->branch, row->top_ids, row->top_logprobs)) {
        live->next_ready = e->first_ready;
        e->first_ready = live;
    }
}

/* Searches that are ready go one token further. */
static void advance_searches(la_engine *e)
{
    for (la_live *live = e->first_ready; live != NULL; live = live->next_ready) {
        la_beam *m = live->beam;
        int n = la_beam_advance(m, &live->sampling);
        e->stats.output_tokens += m->n_live;
        if (n == 0) {
            la_end_search(e, live, LA_FINISH_LENGTH);
            continue;
        }
        for (int b = 0; b < n; b++) {
            live->branches[b].output = m->live[b].ids;
            live->branches[b].n_output = m->live[b].n;
        }
        la_sched_reform(&e->sched, &live->group, m->parents, n);
    }
    e->first_ready = NULL;
}

/* A row of a sequence that goes on. */
static void collect_row(la_engine *e, const la_assembly *s, la_seq *q, int i)
{
    const la_live *live = LA_OWNER(q->group, la_live, group);
    if (s->rows[i].target >= 0) {
        la_event *ev = add_event(e, s, q, i);
        ev->kind = LA_EVENT_PROMPT;
        ev->position = s->row_positions[i] + 1;
        ev->token = s->rows[i].target;
    }
    else if (s->rows[i].target == -1 && live->beam != NULL) {
        take_row(e, q, &s->rows[i]);
    }
    else if (s->rows[i].target == -1) {
        accept(e, s, q, i);
    }
}

/* The last of a sequence that draws nothing has been fed. */
static void collect_span(la_engine *e, const la_span *span, la_seq *q)
{
    const la_live *live = LA_OWNER(q->group, la_live, group);
    if (live->sampling.max_tokens == 0 && q->state != LA_SEQ_DONE &&
        span->first_pos + span->n_tokens == q->n_todo) {
        la_end_seq(e, q, LA_FINISH_LENGTH, -1);
    }
}

la_status la_collect(la_engine *e, const la_assembly *s)
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
    for (int i = 0; i < s->n_spans && st == LA_OK; i++) {
        collect_span(e, &s->spans[i], s->span_seqs[i]);
    }
    advance_searches(e);
    return st;
}
