/* assemble.c - the plan of a step as arrays: tokens, spans, rows of logits that are wanted, captures.
 *
 * Owns no state. Invariant: all arrays have room for what the scheduler plans, which counts rows and
 * result entries as it plans; a token that is drawn by the step under way is named by its row. Called
 * by engine.c.
 */
#include "engine.h"

/* Room for the row's results. */
static void place_results(la_assembly *s, la_sample_row *row, int i)
{
    row->out_token = &s->out_tokens[i];
    row->out_logprob = &s->out_logprobs[i];
    row->out_rank = &s->out_ranks[i];
    if (row->n_top >= 0) {
        row->top_ids = s->top_ids + s->entries_used;
        row->top_logprobs = s->top_logprobs + s->entries_used;
        s->entries_used += row->n_top + row->n_score;
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
    *row = (la_sample_row){.token = token, .target = -2, .forced = -1, .n_top = -1, .newest = -1};
    if (next < q->n_forced) {
        if (next >= live->n_prompt ||
            (p->prompt_logprobs >= 0 && next >= p->prompt_logprob_start)) {
            row->target = la_request_token(live, q->branch, next);
            row->n_top = p->prompt_logprobs > 0 ? p->prompt_logprobs : 0;
            row->report = p->report;
            row->score_ids = p->prompt_scores;
            row->n_score = p->n_prompt_score;
        }
    }
    else if (p->max_tokens > 0) {
        la_draw d = la_request_draw(live, b, next);
        la_sampler_fill(&b->sampler, p, &d, row);
        row->n_top = live->beam != NULL ? live->beam->n_looked : p->logprobs;
        row->report = p->report;
        row->score_ids = p->score_ids;
        row->n_score = p->n_score;
        if (live->process != NULL && row->forced < 0) {
            row->process = live->process;
            row->process_arg = live->process_arg;
            row->processed = live->process_rows + (int64_t)q->branch * e->door.n_vocab;
        }
        if (live->drawn_logits != NULL) {
            int64_t drawn = (int64_t)q->branch * live->n_drawn + (next - q->n_forced);
            row->logits = live->drawn_logits + drawn * e->door.n_vocab;
        }
    }
    if (live->logits != NULL && q->branch == 0 && position < live->n_prompt) {
        row->logits = live->logits + (int64_t)position * e->door.n_vocab;
    }
    place_results(s, row, s->n_rows);
    s->row_seqs[s->n_rows] = q;
    s->row_positions[s->n_rows] = position;
    s->n_rows++;
}

/* Where the hidden states of n positions from lo on go, as far as the planned span of q holds them: to row 0
 * and on of each layer. */
static void add_capture(la_engine *e, const la_seq *q, float *out, int lo, int n)
{
    la_assembly *s = e->step;
    const la_live *live = LA_OWNER(q->group, la_live, group);
    int from = q->n_done > lo ? q->n_done : lo, end = q->n_done + q->n_run;
    int to = end - lo < n ? end : lo + n;
    if (from < to) {
        s->captures[s->n_captures++] =
            (la_capture){.first_token = s->n_tokens + from - q->n_done,
                         .n_tokens = to - from,
                         .layers = live->state_layers,
                         .n_layers = live->n_states,
                         .out = out + (int64_t)(from - lo) * e->door.d_model,
                         .stride = (int64_t)n * e->door.d_model};
    }
}

static void add_captures(la_engine *e, const la_seq *q)
{
    const la_live *live = LA_OWNER(q->group, la_live, group);
    if (live->drawn_states != NULL) {
        int64_t rows = (int64_t)q->branch * live->n_states * live->n_drawn;
        add_capture(e, q, live->drawn_states + rows * e->door.d_model, q->n_forced - 1,
                    live->n_drawn);
    }
    if (live->states != NULL && q->branch == 0) {
        add_capture(e, q, live->states, live->state_from, live->state_to - live->state_from);
    }
}

/* Token at a position that is to be fed: known, or drawn by the step under way. */
static int32_t token_at(const la_live *live, int branch, int position)
{
    const la_branch *b = &live->branches[branch];
    int known = live->n_prompt + b->n_suffix + b->n_output;
    return position < known ? la_request_token(live, branch, position) : -1 - b->under_way;
}

void la_assemble(la_engine *e)
{
    la_assembly *s = e->step;
    s->n_tokens = 0;
    s->n_spans = 0;
    s->n_rows = 0;
    s->n_captures = 0;
    s->entries_used = 0;
    double now = la_now();
    for (int i = 0; i < e->sched.n_planned; i++) {
        la_seq *q = e->sched.planned[i];
        la_live *live = LA_OWNER(q->group, la_live, group);
        live->scheduled = live->scheduled > 0.0 ? live->scheduled : now;
        add_captures(e, q);
        s->span_seqs[s->n_spans] = q;
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
    s->batch = (la_batch){s->n_tokens, s->tokens, s->n_spans,    s->spans,
                          s->n_rows,   s->rows,   s->n_captures, s->captures};
}
