/* pool.h - the one thread pool: fork, barrier, join.
 *
 * Owns the worker threads and every atomic they wait on. Invariant: between two runs workers touch
 * nothing; inside a run all threads execute the same function and meet at the same barriers. Waiting
 * spins briefly, then sleeps in the kernel, so an idle pool uses no processor time.
 * Called by model/backend_cpu.c and the stress test.
 */
#ifndef LA_POOL_H
#define LA_POOL_H

#include "../llmaccel.h"

typedef struct la_pool la_pool;

/* n_threads includes the caller of la_pool_run. */
la_status la_pool_create(int n_threads, la_pool **out);
void la_pool_free(la_pool *p);
/* Runs fn(arg, tid, nth) on every thread, the caller being tid 0; returns when all are done.
 * Several callers take turns. */
void la_pool_run(la_pool *p, void (*fn)(void *arg, int tid, int nth), void *arg);
/* Inside a run: returns when every thread of the run has called it. */
void la_pool_barrier(la_pool *p, int tid);

#endif
