/* pool.c - see pool.h.
 *
 * A barrier is two epochs: every worker publishes its arrival on a cache line of its own, thread 0
 * gathers them and publishes the release. No counter is shared by writers (a fetch-and-add would move
 * one line through every core). A run is started by the same release word, so a worker waits for one
 * thing only.
 */
#include "pool.h"

#include "base.h"
#include "cpu.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    LINE = 128,       /* two lines: the adjacent-line prefetcher pairs them */
    SPIN_SHARED = 64, /* rounds before sleeping when threads outnumber processors */
    SPIN_STEP = 4000, /* in a step: about 50-100 us */
    MAX_THREADS = 1024
};

/* A word others wait on, and how many sleep on it. */
typedef struct la_signal {
    _Alignas(LINE) _Atomic uint32_t epoch;
    _Atomic uint32_t sleepers;
} la_signal;

typedef struct la_worker {
    la_signal arrived;
    la_pool *pool;
    pthread_t thread;
    int tid;
    uint32_t round;      /* barriers passed; private to the thread */
    int64_t allocations; /* of the last run; thread 0 reads it behind the last barrier */
} la_worker;

struct la_pool {
    la_signal release;
    la_worker *workers; /* [n] worker 0 is the caller */
    int n;
    int n_started;
    int spin;
    int stop; /* written before a release, read after it */
    void (*fn)(void *arg, int tid, int nth);
    void *arg;
    pthread_mutex_t turn; /* one run at a time */
};

static void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Epochs wrap around. */
static int reached(uint32_t now, uint32_t want)
{
    return (int32_t)(now - want) >= 0;
}

static void signal_set(la_signal *s, uint32_t epoch)
{
    atomic_store(&s->epoch, epoch);
    if (atomic_load(&s->sleepers) != 0) {
        syscall(SYS_futex, &s->epoch, FUTEX_WAKE_PRIVATE, MAX_THREADS, NULL, NULL, 0);
    }
}

/* Returns when the epoch is `want` or later: thread 0 may already have started the next run. */
static void signal_wait(la_signal *s, uint32_t want, int spin)
{
    for (int i = 0; i < spin; i++) {
        if (reached(atomic_load_explicit(&s->epoch, memory_order_acquire), want)) {
            return;
        }
        cpu_relax();
    }
    atomic_fetch_add(&s->sleepers, 1);
    for (;;) {
        uint32_t now = atomic_load(&s->epoch);
        if (reached(now, want)) {
            break;
        }
        syscall(SYS_futex, &s->epoch, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
    }
    atomic_fetch_sub(&s->sleepers, 1);
}

void la_pool_barrier(la_pool *p, int tid)
{
    la_worker *me = &p->workers[tid];
    uint32_t round = ++me->round;
    if (tid != 0) {
        signal_set(&me->arrived, round);
        signal_wait(&p->release, round, p->spin);
        return;
    }
    for (int i = 1; i < p->n; i++) {
        signal_wait(&p->workers[i].arrived, round, p->spin);
    }
    signal_set(&p->release, round);
}

static void *worker_main(void *arg)
{
    la_worker *me = arg;
    la_pool *p = me->pool;
    for (;;) {
        signal_wait(&p->release, ++me->round, p->spin);
        if (p->stop) {
            return NULL;
        }
        int64_t before = la_alloc_count();
        p->fn(p->arg, me->tid, p->n);
        me->allocations = la_alloc_count() - before;
        la_pool_barrier(p, me->tid);
    }
}

void la_pool_run(la_pool *p, void (*fn)(void *arg, int tid, int nth), void *arg)
{
    pthread_mutex_lock(&p->turn);
    if (p->n == 1) {
        fn(arg, 0, 1);
    }
    else {
        p->fn = fn;
        p->arg = arg;
        signal_set(&p->release, ++p->workers[0].round);
        fn(arg, 0, p->n);
        la_pool_barrier(p, 0);
        for (int i = 1; i < p->n; i++) {
            la_alloc_count_add(p->workers[i].allocations);
        }
    }
    pthread_mutex_unlock(&p->turn);
}

void la_pool_free(la_pool *p)
{
    if (p == NULL) {
        return;
    }
    p->stop = 1;
    signal_set(&p->release, ++p->workers[0].round);
    for (int i = 1; i <= p->n_started; i++) {
        pthread_join(p->workers[i].thread, NULL);
    }
    pthread_mutex_destroy(&p->turn);
    la_unmap(p->workers, sizeof(la_worker) * (size_t)p->n);
    la_unmap(p, sizeof *p);
}

la_status la_pool_create(int n_threads, la_pool **out)
{
    *out = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS) {
        return la_fail(LA_ERR_ARGUMENT, "threads: expected 1 to %d, got %d", MAX_THREADS,
                       n_threads);
    }
    la_pool *p = la_map(sizeof *p); /* mapped: signals want their own lines */
    la_worker *workers = la_map(sizeof(la_worker) * (size_t)n_threads);
    if (p == NULL || workers == NULL) {
        la_unmap(workers, sizeof(la_worker) * (size_t)n_threads);
        la_unmap(p, sizeof *p);
        return la_fail(LA_ERR_MEMORY, "threads: no memory for a pool of %d", n_threads);
    }
    p->workers = workers;
    p->n = n_threads;
    p->spin = n_threads > la_cpu_count() ? SPIN_SHARED : SPIN_STEP;
    pthread_mutex_init(&p->turn, NULL);
    for (int i = 0; i < n_threads; i++) {
        workers[i].pool = p;
        workers[i].tid = i;
    }
    for (int i = 1; i < n_threads; i++) {
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0) {
            la_pool_free(p);
            return la_fail(LA_ERR_SYSTEM, "threads: cannot start thread %d of %d", i, n_threads);
        }
        p->n_started = i;
    }
    *out = p;
    return LA_OK;
}
