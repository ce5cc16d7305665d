/* pool.c - see pool.h.
 *
 * A barrier is two epochs: every worker publishes its arrival on a cache line of its own, thread 0
 * gathers them and publishes the release. No counter is shared by writers (a fetch-and-add would move
 * one line through every core). A run is started by a word of each worker's, so those that sit a run out
 * sleep on.
 *
 * A share is one word a worker: phase, first and last item left. Both ends move by compare-and-swap, and
 * whoever comes first, its owner or a thief, replaces the word of an earlier phase by the range that
 * everyone can compute. A thief cannot be late: a barrier lies between two shares.
 */
#include "pool.h"

#include "base.h"
#include "cpu.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE = 128,       /* two lines: the adjacent-line prefetcher pairs them */
    SPIN_ROUNDS = 16, /* pauses between two looks at the clock */
    /* Nanoseconds a waiting thread spins before it sleeps. Being woken costs some 50 us; a spinning
     * thread costs a neighbour its processor. */
    SPIN_LEAST = 4000, /* when waits have been long, or threads outnumber processors */
    SPIN_PHASE = 60000,
    SPIN_RUN = 200000,       /* for the next run, which is a step away */
    CROWD_WINDOW = 50000000, /* ns of steps that are judged together */
    CROWD_PAUSE = 100000000,
    CROWD_PAUSE_MOST = 2000000000,
    VICTIMS = 8 /* ranges looked at for work: bounds the end of a phase with many threads */
};

/* A word others wait on, and how many sleep on it. */
typedef struct la_signal {
    _Alignas(LINE) _Atomic uint32_t epoch;
    _Atomic uint32_t sleepers;
} la_signal;

typedef struct la_worker {
    la_signal go; /* runs this thread is to take part in */
    la_signal arrived;
    _Alignas(LINE) _Atomic uint64_t left; /* of its range: see share_word */
    _Alignas(LINE) la_pool *pool;
    pthread_t thread;
    int tid;
    uint32_t runs;       /* what go was set to last; thread 0's */
    uint32_t round;      /* barriers passed; private to the thread in a run, as are the next four */
    uint32_t phase;      /* shares begun */
    int64_t spin;        /* ns it spins in a run before it sleeps */
    int64_t slept;       /* of the last run, ns */
    int64_t lost;        /* of the last run, ns it could have run but others did */
    int64_t allocations; /* of the last run; thread 0 reads these two behind the last barrier */
} la_worker;

struct la_pool {
    la_signal release;
    la_worker *workers; /* [n] worker 0 is the caller */
    int n;
    int active;            /* take part in this run */
    uint32_t round, phase; /* thread 0's when this run began */
    la_crowd crowd;
    int fixed; /* threads of a step, whatever the crowd; 0: not fixed */
    int n_started;
    int crowded; /* more threads than processors */
    int stop;    /* written before a release, read after it */
    void (*fn)(void *arg, int tid, int nth);
    void *arg;
    /* One run at a time, in the order the callers came: a mutex alone may go round and round to the one
     * that has just let go of it. */
    pthread_mutex_t lock;
    pthread_cond_t turned;
    uint64_t tickets, turn; /* given out; whose run it is */
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
        syscall(SYS_futex, &s->epoch, FUTEX_WAKE_PRIVATE, LA_POOL_MAX_THREADS, NULL, NULL, 0);
    }
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Returns when the epoch is `want` or later: thread 0 may already have started the next run. Spins for
 * `spin` ns, then sleeps and adds to *slept; the result is how long it took, 0 if it was short. */
static int64_t signal_wait(la_signal *s, uint32_t want, int64_t spin, int64_t *slept)
{
    int64_t start = 0, now = 0;
    while (now - start <= spin) {
        for (int i = 0; i < SPIN_ROUNDS; i++) {
            if (reached(atomic_load_explicit(&s->epoch, memory_order_acquire), want)) {
                return now - start;
            }
            cpu_relax();
        }
        now = clock_ns(CLOCK_MONOTONIC);
        start = start == 0 ? now : start;
    }
    atomic_fetch_add(&s->sleepers, 1);
    for (;;) {
        uint32_t epoch = atomic_load(&s->epoch);
        if (reached(epoch, want)) {
            break;
        }
        syscall(SYS_futex, &s->epoch, FUTEX_WAIT_PRIVATE, epoch, NULL, NULL, 0);
    }
    atomic_fetch_sub(&s->sleepers, 1);
    int64_t end = clock_ns(CLOCK_MONOTONIC);
    *slept += end - now;
    return end - start;
}

/* A wait inside a run. After long ones, when others want this processor or that of the one waited for,
 * the next spin is shorter; after one that spinning would have covered it is as long as it may be. */
static void wait_in_run(la_worker *me, la_signal *s, uint32_t want)
{
    int64_t most = me->pool->crowded ? SPIN_LEAST : SPIN_PHASE;
    int64_t took = signal_wait(s, want, me->spin, &me->slept);
    if (took < 2 * SPIN_PHASE) {
        me->spin = most;
    }
    else {
        me->spin = me->spin / 2 > SPIN_LEAST ? me->spin / 2 : SPIN_LEAST;
    }
}

void la_pool_barrier(la_pool *p, int tid)
{
    la_worker *me = &p->workers[tid];
    uint32_t round = ++me->round;
    if (tid != 0) {
        signal_set(&me->arrived, round);
        wait_in_run(me, &p->release, round);
        return;
    }
    for (int i = 1; i < p->active; i++) {
        wait_in_run(me, &p->workers[i].arrived, round);
    }
    signal_set(&p->release, round);
}

/* ---- shares ---------------------------------------------------------------------------------- */

/* 16 bits of the phase, 24 of the first item left, 24 of the one after the last. */
static uint64_t share_word(uint32_t phase, int head, int tail)
{
    return (uint64_t)(phase & 0xffff) << 48 | (uint64_t)head << 24 | (uint64_t)tail;
}

static int share_bound(const la_share *s, int tid)
{
    return s->bounds != NULL ? s->bounds[tid] : (int)((int64_t)s->n * tid / s->pool->active);
}

/* Takes up to `most` items from an end of a thread's range. */
static int share_take(const la_share *s, int tid, int most, int *first)
{
    _Atomic uint64_t *left = &s->pool->workers[tid].left;
    uint64_t old = atomic_load_explicit(left, memory_order_relaxed);
    for (;;) {
        int head = (int)(old >> 24 & 0xffffff), tail = (int)(old & 0xffffff);
        if (old >> 48 != (s->phase & 0xffff)) {
            head = share_bound(s, tid);
            tail = share_bound(s, tid + 1);
        }
        int n = tail - head < most ? tail - head : most;
        if (n <= 0) {
            return 0;
        }
        *first = tid == s->tid ? head : tail - n;
        uint64_t now = tid == s->tid ? share_word(s->phase, head + n, tail)
                                     : share_word(s->phase, head, tail - n);
        if (atomic_compare_exchange_weak(left, &old, now)) {
            return n;
        }
    }
}

void la_share_begin(la_share *s, la_pool *p, int tid, int n, const int *bounds)
{
    la_worker *me = &p->workers[tid];
    *s = (la_share){.pool = p, .bounds = bounds, .n = n, .tid = tid, .phase = ++me->phase};
    s->end = share_bound(s, tid + 1);
    /* Even an empty range takes the phase's number, or one of 65536 shares ago would look like it. */
    uint64_t old = atomic_load_explicit(&me->left, memory_order_relaxed);
    if (old >> 48 != (s->phase & 0xffff)) {
        uint64_t all = share_word(s->phase, share_bound(s, tid), s->end);
        atomic_compare_exchange_strong(&me->left, &old, all); /* fails if a thief was first */
    }
}

int la_share_next(la_share *s, int most, int *first)
{
    for (; s->victim < s->pool->active && s->victim <= VICTIMS; s->victim++) {
        int tid = (s->tid + s->victim) % s->pool->active;
        int n = share_take(s, tid, s->victim == 0 ? most : 1, first);
        if (n > 0) {
            return n;
        }
        s->end = 0;
    }
    return 0;
}

/* ---- runs ------------------------------------------------------------------------------------ */

/* A thread's part of a run. */
static void take_part(la_worker *me)
{
    la_pool *p = me->pool;
    int64_t start = clock_ns(CLOCK_MONOTONIC), used = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    int64_t allocations = la_alloc_count();
    me->slept = 0;
    me->round = p->round;
    me->phase = p->phase;
    p->fn(p->arg, me->tid, p->active);
    me->allocations = la_alloc_count() - allocations;
    used = clock_ns(CLOCK_THREAD_CPUTIME_ID) - used;
    me->lost = clock_ns(CLOCK_MONOTONIC) - start - used - me->slept;
    la_pool_barrier(p, me->tid);
}

static void *worker_main(void *arg)
{
    la_worker *me = arg;
    int64_t slept = 0;
    for (uint32_t run = 1;; run++) {
        signal_wait(&me->go, run, me->pool->crowded ? SPIN_LEAST : SPIN_RUN, &slept);
        if (me->pool->stop) {
            return NULL;
        }
        take_part(me);
    }
}

static void take_turn(la_pool *p)
{
    pthread_mutex_lock(&p->lock);
    for (uint64_t mine = p->tickets++; p->turn != mine;) {
        pthread_cond_wait(&p->turned, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
}

static void end_turn(la_pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->turn++;
    pthread_cond_broadcast(&p->turned);
    pthread_mutex_unlock(&p->lock);
}

/* On the first `active` threads; it is the caller's turn. */
static void run_on(la_pool *p, int active, void (*fn)(void *arg, int tid, int nth), void *arg)
{
    p->fn = fn;
    p->arg = arg;
    p->active = active;
    p->round = p->workers[0].round;
    p->phase = p->workers[0].phase;
    /* A thread that sat runs out may hold numbers of a share and a barrier that come round again. All
     * before the first thread starts: it may take from the others at once. */
    for (int i = 1; i < active; i++) {
        atomic_store_explicit(&p->workers[i].left, share_word(p->phase, 0, 0),
                              memory_order_relaxed);
        atomic_store_explicit(&p->workers[i].arrived.epoch, p->round, memory_order_relaxed);
    }
    for (int i = 1; i < active; i++) {
        signal_set(&p->workers[i].go, ++p->workers[i].runs);
    }
    take_part(&p->workers[0]);
    for (int i = 1; i < active; i++) {
        la_alloc_count_add(p->workers[i].allocations);
    }
}

void la_pool_run(la_pool *p, void (*fn)(void *arg, int tid, int nth), void *arg)
{
    take_turn(p);
    run_on(p, p->n, fn, arg);
    end_turn(p);
}

/* A neighbour that keeps one processor busy makes every barrier wait for the thread that shares it, so a
 * thread sits out, and is tried again after a time that grows while trials fail. Where neighbours are
 * everywhere no thread is better off alone. */
void la_crowd_note(la_crowd *c, int n, int64_t took, int64_t lost, int64_t now)
{
    c->seen += took;
    c->lost += lost;
    if (c->seen < CROWD_WINDOW) {
        return;
    }
    int shared = c->lost > c->seen / 3 && c->lost < c->seen * c->in_step * 2 / 5;
    if (shared && c->in_step > 1) {
        c->in_step--;
        c->pause = 2 * c->pause < CROWD_PAUSE_MOST ? 2 * c->pause : CROWD_PAUSE_MOST;
        c->retry = now + c->pause;
    }
    else if (c->in_step == n) {
        c->pause = CROWD_PAUSE;
    }
    else if (now >= c->retry) {
        c->in_step++;
    }
    c->seen = c->lost = 0;
}

void la_pool_step(la_pool *p, void (*fn)(void *arg, int tid, int nth), void *arg)
{
    take_turn(p);
    int64_t start = clock_ns(CLOCK_MONOTONIC), lost = 0;
    run_on(p, p->fixed != 0 ? p->fixed : p->crowd.in_step, fn, arg);
    if (p->fixed == 0 && !p->crowded) {
        int64_t now = clock_ns(CLOCK_MONOTONIC);
        for (int i = 0; i < p->active; i++) {
            lost += p->workers[i].lost;
        }
        la_crowd_note(&p->crowd, p->n, now - start, lost, now);
    }
    end_turn(p);
}

void la_pool_step_threads(la_pool *p, int n)
{
    take_turn(p);
    p->fixed = n < p->n ? n : p->n;
    end_turn(p);
}

void la_pool_free(la_pool *p)
{
    if (p == NULL) {
        return;
    }
    p->stop = 1;
    for (int i = 1; i <= p->n_started; i++) {
        signal_set(&p->workers[i].go, ++p->workers[i].runs);
        pthread_join(p->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&p->turned);
    pthread_mutex_destroy(&p->lock);
    la_unmap(p->workers, sizeof(la_worker) * (size_t)p->n);
    la_unmap(p, sizeof *p);
}

la_status la_pool_create(int n_threads, la_pool **out)
{
    *out = NULL;
    if (n_threads < 1 || n_threads > LA_POOL_MAX_THREADS) {
        return la_fail(LA_ERR_ARGUMENT, "threads: expected 1 to %d, got %d", LA_POOL_MAX_THREADS,
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
    p->crowd = (la_crowd){.in_step = n_threads, .pause = CROWD_PAUSE};
    p->crowded = n_threads > la_cpu_count();
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->turned, NULL);
    for (int i = 0; i < n_threads; i++) {
        workers[i].pool = p;
        workers[i].tid = i;
        workers[i].spin = SPIN_LEAST;
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
