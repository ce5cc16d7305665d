/* scheduler.h - which tokens run in the next step, and which pages they own.
 *
 * Owns the queues and the life of a sequence: PARKED -> WAITING -> RUNNING -> DONE; of beams also HELD,
 * in no queue and without pages until la_sched_reform. Integers only: token values, floats and events
 * are the engine's. A step is la_sched_plan, the forward, and
 * la_sched_commit; a plan that is not committed may be planned again.
 * Invariants: order is (priority, arrival, branch) everywhere, least first; a step holds at most
 * `budget` tokens, and exactly that many while prompts are left that pages and places (max_seqs)
 * allow; pages are taken away from the last in order only, so the first always advances.
 * Called by engine.c.
 */
#ifndef LA_SCHEDULER_H
#define LA_SCHEDULER_H

#include "heap.h"
#include "kvcache.h"

enum { LA_SEQ_PARKED = 0, LA_SEQ_WAITING, LA_SEQ_RUNNING, LA_SEQ_DONE, LA_SEQ_HELD };

typedef struct la_group la_group;

/* One branch of a request. */
typedef struct la_seq {
    la_heap_node
        node; /* in the waiting queue or among its group's parked; key (priority, ticket) */
    la_group *group;
    int branch;
    int state;       /* LA_SEQ_* */
    int n_todo;      /* tokens that are known and have to be fed */
    int n_done;      /* fed: their keys and values are in the pages */
    int n_run;       /* fed by the planned step */
    int n_high;      /* most tokens ever fed; feeding one below again is recomputing */
    int n_max;       /* most tokens that will ever be fed */
    int n_forced;    /* prompt and suffix: rows before position n_forced - 1 score a given token */
    int first_row;   /* fed positions from here on give a row of logits */
    int forced_cost; /* result entries of a scoring row */
    int sample_cost; /* result entries of a sampling row */
    la_table table;  /* [ceil(n_max / 64)] */
} la_seq;

/* The branches of a request share the pages of positions 0 .. n_prefix - 1, the prompt less its
 * last token: every branch feeds that one itself, because it wants the logits; where only the first
 * does, all of the prompt. One branch (the leader) computes them while the others are parked; then the
 * group holds them until no branch is left that has yet to start from them. */
struct la_group {
    la_seq *seqs; /* [n_seqs] */
    int n_seqs;
    int n_prefix;  /* 0: nothing to share */
    int n_waiting; /* branches in state WAITING */
    la_seq *leader;
    la_heap parked;
    la_table prefix;       /* [ceil(n_prefix / 64)]; n is 0 when not held */
    la_table *spare;       /* [n_seqs] empty, of beams: tables in the making; NULL: no beams */
    la_group *prev_holder; /* list of groups that hold a prefix */
    la_group *next_holder;
};

typedef struct la_sched {
    la_kvcache *cache;
    int max_seqs;
    int budget;          /* tokens of a step */
    int64_t max_entries; /* result entries of a step; any single row fits */
    int64_t next_ticket;
    la_heap waiting;
    int64_t n_parked;
    la_seq **running; /* [max_seqs] in order */
    int n_running;
    int under_way; /* 1: a step is, whose draws are still to come; set by the engine before each plan */
    la_group *holders;
    int room;         /* tokens left in the plan */
    int64_t entries;  /* result entries left in the plan */
    la_seq **planned; /* [max_seqs] sequences with n_run > 0, in order */
    int n_planned;
    int64_t n_preempted;
    int64_t n_recomputed; /* tokens */
} la_sched;

la_status la_sched_init(la_sched *s, la_kvcache *cache, int max_seqs, int budget,
                        int64_t max_entries);
void la_sched_free(la_sched *s); /* what init took; groups are their owner's */

/* Queues the branches that are neither DONE nor HELD. The caller has filled in seqs, n_prefix and, of every
 * branch, the counts, costs, tables and node.hi (the priority); the rest is zero. */
void la_sched_add(la_sched *s, la_group *g);
/* Decides the next step: planned[] and their n_run. Pages are theirs already; cache->copies must
 * be carried out before the forward. */
void la_sched_plan(la_sched *s);
/* The planned tokens were fed. */
void la_sched_commit(la_sched *s);
/* A fed sequence got one more token. */
void la_sched_extend(la_seq *q);
/* Every beam of the group is fed: of the first n, number k goes on from what parents[k] has fed, with
 * one more token, sharing its pages; the others are HELD. n >= 1; sequence 0 is a beam every time. */
void la_sched_reform(la_sched *s, la_group *g, const int *parents, int n);
/* Takes the sequence out of every queue, whatever its state, and frees its pages. */
void la_sched_finish(la_sched *s, la_seq *q);
/* Sends the last n running sequences back to wait; they are computed again later. */
void la_sched_preempt(la_sched *s, int n);

#endif
