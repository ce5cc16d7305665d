/* pool.h - the one thread pool: fork, share out, barrier, join.
 *
 * Owns the worker threads and every atomic they wait on or take work by. Invariant: between two runs
 * workers touch nothing; inside a run all threads execute the same function, begin the same shares and
 * meet at the same barriers. Waiting spins briefly, then sleeps in the kernel, so an idle pool uses no
 * processor time.
 * Called by model/backend_cpu*.c, python/py_kernels*.c and the stress test.
 */
#ifndef LA_POOL_H
#define LA_POOL_H

#include "../llmaccel.h"

enum { LA_POOL_MAX_THREADS = 1024, LA_POOL_MAX_ITEMS = (1 << 24) - 1 };

typedef struct la_pool la_pool;

/* One thread's view of a piece of work that is dealt to all: items 0 .. n-1 in contiguous ranges, one a
 * thread. A thread takes its own range from the front; when that is empty it takes from the far end of
 * the others', one item at a time. So a thread alone reads in order, and one that the system has put
 * aside keeps nobody longer than the items it holds. */
typedef struct la_share {
    la_pool *pool;
    const int *bounds; /* [threads + 1] first item of each thread's range; NULL: equal ranges */
    int n;
    int tid;
    int victim; /* whose range is being taken from, counted from tid */
    uint32_t phase;
    int end; /* end of the own range: items after those just taken, up to here, come next */
} la_share;

/* What steps lost to others lately, and how many threads follow from it. */
typedef struct la_crowd {
    int in_step;        /* threads that take part in a step */
    int64_t seen, lost; /* ns of steps, ns their threads could have run but others did */
    int64_t pause;      /* how long to wait with another try */
    int64_t retry;      /* and until when */
} la_crowd;

/* Notes that a step of a pool of n threads took `took` ns until `now` and lost `lost`; what was noted is
 * judged from time to time. The pool's own; shown for the stress test. */
void la_crowd_note(la_crowd *c, int n, int64_t took, int64_t lost, int64_t now);

/* Starts n_threads - 1 threads, however many processors there are: the caller of la_pool_run is one. */
la_status la_pool_create(int n_threads, la_pool **out);
void la_pool_free(la_pool *p);
/* Runs fn(arg, tid, nth) on every thread, the caller being tid 0; returns when all are done.
 * Several callers take turns, in the order they came. */
void la_pool_run(la_pool *p, void (*fn)(void *arg, int tid, int nth), void *arg);
/* The same for runs of many short shares, on fewer threads where others keep some processors busy: nth
 * may differ from call to call. */
void la_pool_step(la_pool *p, void (*fn)(void *arg, int tid, int nth), void *arg);
/* Steps use n threads from here on, whatever others do; 0: as many as pay. For tests. */
void la_pool_step_threads(la_pool *p, int n);
/* Inside a run: returns when every thread of the run has called it. */
void la_pool_barrier(la_pool *p, int tid);
/* Inside a run, by every thread with the same n (at most LA_POOL_MAX_ITEMS) and the same bounds. A
 * barrier must lie between two shares, and between the last item and whoever reads its results. */
void la_share_begin(la_share *s, la_pool *p, int tid, int n, const int *bounds);
/* Takes up to `most` items, first .. first + result - 1; 0 when no thread has any left. */
int la_share_next(la_share *s, int most, int *first);

#endif
