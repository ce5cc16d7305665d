/* beam.c - see beam.h. Paths are copied from step to step, B times a few kilobytes, rather than kept
 * as a tree: a preempted beam is fed again from its own ids, which must lie in a row. */
#include "beam.h"
#include "sampler.h"

#include <math.h>

/* Rounding can leave a log probability this much above zero. */
static const double SLACK = 1.0e-5;

static la_path *carve_paths(la_carver *c, int width, int max_tokens)
{
    la_path *paths = la_carve(c, (size_t)width, sizeof *paths);
    for (int b = 0; b < width; b++) {
        la_path measured, *p = paths != NULL ? &paths[b] : &measured;
        p->ids = la_carve(c, (size_t)max_tokens, sizeof *p->ids);
        p->logprobs = la_carve(c, (size_t)max_tokens, sizeof *p->logprobs);
        p->ranks = la_carve(c, (size_t)max_tokens, sizeof *p->ranks);
        p->end = -1;
    }
    return paths;
}

int la_beam_looked(int rule, int width, int n_stop, int n_vocab)
{
    int more = rule == LA_BEAM_VLLM ? width : n_stop;
    return more < n_vocab - width ? width + more : n_vocab;
}

la_beam *la_beam_carve(la_carver *c, int width, int max_tokens, int n_looked)
{
    la_beam measured, *m = la_carve(c, 1, sizeof *m);
    la_beam *to = m != NULL ? m : &measured;
    size_t n = (size_t)width;
    *to = (la_beam){.width = width,
                    .n_looked = n_looked,
                    .max_tokens = max_tokens,
                    .n_live = 1,
                    .n_awaited = 1};
    to->live = carve_paths(c, width, max_tokens);
    to->next = carve_paths(c, width, max_tokens);
    to->ended = carve_paths(c, width, max_tokens);
    to->parents = la_carve(c, n, sizeof *to->parents);
    to->cursors = la_carve(c, n, sizeof *to->cursors);
    to->ids = la_carve(c, n * (size_t)n_looked, sizeof *to->ids);
    to->logprobs = la_carve(c, n * (size_t)n_looked, sizeof *to->logprobs);
    return m;
}

int la_beam_take(la_beam *m, int b, const int32_t *ids, const float *logprobs)
{
    size_t at = (size_t)b * (size_t)m->n_looked;
    memcpy(m->ids + at, ids, (size_t)m->n_looked * sizeof *ids);
    memcpy(m->logprobs + at, logprobs, (size_t)m->n_looked * sizeof *logprobs);
    return --m->n_awaited == 0;
}

/* ---- one token further -------------------------------------------------------------------------- */

static void copy_path(la_path *to, const la_path *from)
{
    memcpy(to->ids, from->ids, (size_t)from->n * sizeof *to->ids);
    memcpy(to->logprobs, from->logprobs, (size_t)from->n * sizeof *to->logprobs);
    memcpy(to->ranks, from->ranks, (size_t)from->n * sizeof *to->ranks);
    to->n = from->n;
    to->end = from->end;
    to->sum = from->sum;
}

/* Beam b's token at place j of those looked at. */
static void extend_path(const la_beam *m, int b, int j, la_path *to)
{
    int at = b * m->n_looked + j;
    copy_path(to, &m->live[b]);
    to->ids[to->n] = m->ids[at];
    to->logprobs[to->n] = m->logprobs[at];
    to->ranks[to->n] = j + 1;
    to->n++;
    to->sum += (double)m->logprobs[at];
}

static double score_of(const la_beam *m, double sum, int length)
{
    return sum / pow((double)(m->n_prompt + length), m->penalty);
}

/* A place in `ended` for a path of this score, behind its equals; NULL where B are better. */
static la_path *make_room(la_beam *m, double score)
{
    int at = m->n_ended;
    while (at > 0 && score > m->ended[at - 1].score) {
        at--;
    }
    if (at == m->width) {
        return NULL;
    }
    int last = m->n_ended < m->width ? m->n_ended++ : m->width - 1;
    la_path room = m->ended[last];
    memmove(&m->ended[at + 1], &m->ended[at], (size_t)(last - at) * sizeof room);
    room.score = score;
    m->ended[at] = room;
    return &m->ended[at];
}

/* Beam b's token at place j ends it, at this length. */
static void end_path(la_beam *m, int b, int j, int length)
{
    int at = b * m->n_looked + j;
    la_path *room = make_room(m, score_of(m, m->live[b].sum + (double)m->logprobs[at], length));
    if (room != NULL) {
        extend_path(m, b, j, room);
        room->end = m->ids[at];
    }
}

/* Stop ids among the tokens looked at end their beams. */
static void end_paths(la_beam *m, const la_sampling *p)
{
    for (int b = 0; p->n_stop > 0 && b < m->n_live; b++) {
        for (int j = 0; j < m->n_looked; j++) {
            if (la_sampling_stops(p, m->ids[b * m->n_looked + j])) {
                end_path(m, b, j, m->live[b].n);
            }
        }
    }
}

/* The live beam with the best token left, by its cursor; -1: none is left. */
static int best_head(const la_beam *m)
{
    int best = -1;
    double most = 0.0;
    for (int b = 0; b < m->n_live; b++) {
        int j = m->cursors[b];
        if (j == m->n_looked) {
            continue;
        }
        double sum = m->live[b].sum + (double)m->logprobs[b * m->n_looked + j];
        if (best < 0 || sum > most) {
            best = b;
            most = sum;
        }
    }
    return best;
}

/* Past what has ended. */
static void skip_stops(la_beam *m, int b, const la_sampling *p)
{
    int *j = &m->cursors[b];
    while (*j < m->n_looked && la_sampling_stops(p, m->ids[b * m->n_looked + *j])) {
        ++*j;
    }
}

/* Heirs by vLLM's rule; how many. */
static int choose_all_ends(la_beam *m, const la_sampling *p)
{
    int n = 0;
    end_paths(m, p);
    for (int b = 0; b < m->n_live; b++) {
        skip_stops(m, b, p);
    }
    for (; n < m->width; n++) {
        int b = best_head(m);
        if (b < 0) {
            break;
        }
        extend_path(m, b, m->cursors[b]++, &m->next[n]);
        m->parents[n] = b;
        skip_stops(m, b, p);
    }
    return n;
}

/* Heirs by transformers' rule; how many. With its last token every beam ends, among the first B. */
static int choose_first_ends(la_beam *m, const la_sampling *p)
{
    int n = 0, longest = m->live[0].n + 1;
    int last = longest == m->max_tokens;
    for (int place = 0; n < m->width && (place < m->width || !last); place++) {
        int b = best_head(m);
        if (b < 0) {
            break;
        }
        int j = m->cursors[b]++;
        if (!la_sampling_stops(p, m->ids[b * m->n_looked + j])) {
            extend_path(m, b, j, &m->next[n]);
            m->parents[n++] = b;
        }
        else if (place < m->width) {
            end_path(m, b, j, longest);
        }
    }
    return n;
}

/* Whether the search ends with those that have ended. By vLLM's rule where no beam can come before
 * the worst of them, whatever it draws: sums only fall. */
static int is_decided(const la_beam *m)
{
    if (m->n_ended < m->width) {
        return 0;
    }
    const la_path *best = &m->live[0];
    if (m->rule != LA_BEAM_VLLM) {
        int at = m->rule == LA_BEAM_NEVER && m->penalty > 0.0 ? m->max_tokens : best->n;
        return m->rule == LA_BEAM_FIRST ||
               score_of(m, best->sum, at) <= m->ended[m->width - 1].score;
    }
    double most = best->sum + SLACK * (m->max_tokens - best->n);
    int length = m->penalty >= 0.0 ? m->max_tokens : best->n;
    return most < 0.0 && score_of(m, most, length) < m->ended[m->width - 1].score;
}

int la_beam_advance(la_beam *m, const la_sampling *p)
{
    memset(m->cursors, 0, (size_t)m->n_live * sizeof *m->cursors);
    int n = m->rule == LA_BEAM_VLLM ? choose_all_ends(m, p) : choose_first_ends(m, p);
    la_path *was = m->live;
    m->live = m->next;
    m->next = was;
    m->n_live = n;
    m->n_awaited = n;
    if (n == 0 || m->live[0].n == m->max_tokens) {
        return 0;
    }
    if (is_decided(m)) {
        m->n_live = 0;
    }
    return m->n_live;
}

void la_beam_close(la_beam *m)
{
    for (int b = 0; b < m->n_live; b++) {
        const la_path *p = &m->live[b];
        la_path *room = p->n > 0 ? make_room(m, score_of(m, p->sum, p->n)) : NULL;
        if (room != NULL) {
            copy_path(room, p);
        }
    }
    m->n_live = 0;
}
