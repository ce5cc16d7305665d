/* stress.c - a pool whose threads take each other's work, then two engines on one backend, pulled at
 * from many threads at once; made for TSAN.
 *
 * Owns a tiny random model and nothing else. Shares of work pass when every item was taken exactly once,
 * however late a thread comes. For each engine one thread steps while others add, cancel, preempt and
 * read statistics; both engines share the backend's pool of threads. Passes when every branch of every
 * accepted request ended exactly once, no page is left and no step allocated. Uses llmaccel.h, and pool.h
 * for the shares. Built by `setup.py build_stress`, run by `make tsan`.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/pool.h"
#include "llmaccel.h"

enum {
    N_ENGINES = 2,
    N_ADDERS = 2,
    N_REQUESTS = 60, /* of each adder */
    MAX_BRANCHES = 3,
    MAX_PROMPT = 150,
    MAX_NEW = 24,
    N_VOCAB = 160,
    D_MODEL = 64,
    N_HEADS = 4,
    N_KV_HEADS = 2,
    D_HEAD = 16,
    D_FFN = 96,
    N_EXPERTS = 5,
    D_EXPERT = 40,
    N_LAYERS = 2,
    MAX_LEN = 256,
    MAX_CELLS = N_VOCAB * 2 * D_MODEL,
    N_THREADS = 3,   /* of the engines' pool: more than the processors of a small machine */
    N_TAKERS = 4,    /* of the pool whose shares are counted */
    MAX_ITEMS = 300, /* of a share */
    N_STEPS = 200,
    N_SHARES = 400,          /* with random ranges and late threads */
    N_TURNS = 0x10000 + 999, /* shares of two threads: their numbers wrap around */
    N_RUNS = 40              /* that shares are spread over */
};

typedef struct rng {
    uint64_t state;
} rng;

/* splitmix64 */
static uint64_t rng_next(rng *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static int rng_below(rng *r, int n)
{
    return (int)(rng_next(r) % (uint64_t)n);
}

static void check(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "stress: %s: %s\n", what, la_last_error());
        exit(1);
    }
}

/* ---- shares of work --------------------------------------------------------------------------- */

typedef struct share_job {
    la_pool *pool;
    int n_shares;
    int late;             /* one thread in each share stops for a while */
    int taken[MAX_ITEMS]; /* how often, by whoever took it: two at once are a race */
    int stolen;           /* thread 0's pieces from others */
    int n_threads;        /* of the last run */
} share_job;

/* The same for all threads. Even shares have ranges of random length, some empty. */
static const int *random_bounds(rng *r, int even, int n, int nth, int *bounds)
{
    if (!even) {
        return NULL;
    }
    bounds[0] = 0;
    for (int i = 1; i < nth; i++) {
        bounds[i] = bounds[i - 1] + rng_below(r, n - bounds[i - 1] + 1);
    }
    bounds[nth] = n;
    return bounds;
}

static void take_shares(void *arg, int tid, int nth)
{
    share_job *job = arg;
    rng r = {7};
    if (tid == 0) {
        job->n_threads = nth;
    }
    for (int i = 0; i < job->n_shares; i++) {
        int bounds[N_TAKERS + 1], n = 1 + rng_below(&r, job->late ? MAX_ITEMS : 4);
        const int *ranges = random_bounds(&r, i % 2 == 0, n, nth, bounds);
        int late = rng_below(&r, nth), most = 1 + rng_below(&r, 5);
        if (job->late && tid == late) {
            nanosleep(&(struct timespec){0, 200000}, NULL);
        }
        la_share share;
        la_share_begin(&share, job->pool, tid, n, ranges);
        for (int k, first; (k = la_share_next(&share, most, &first)) != 0;) {
            for (int j = first; j < first + k; j++) {
                job->taken[j]++;
            }
            if (tid == 0 && share.victim != 0) {
                job->stolen++;
            }
        }
        la_pool_barrier(job->pool, tid);
        for (int j = 0; j < n && tid == 0; j++) {
            check(job->taken[j] == 1, "an item was not taken exactly once");
            job->taken[j] = 0;
        }
        la_pool_barrier(job->pool, tid);
    }
}

static void stress_shares(int n_threads, int n_shares, int late)
{
    static share_job job;
    job = (share_job){.n_shares = n_shares / N_RUNS, .late = late};
    check(la_pool_create(n_threads, &job.pool) == LA_OK, "la_pool_create");
    for (int i = 0; i < N_RUNS; i++) {
        la_pool_run(job.pool, take_shares, &job);
    }
    la_pool_free(job.pool);
    check(!late || job.stolen > 0, "nobody took a late thread's items");
    printf("stress: %d shares of %d threads, thread 0 took %d pieces of others\n", n_shares,
           n_threads, job.stolen);
}

/* A neighbour that never lets go of its processor. */
static void *burn(void *arg)
{
    atomic_int *stop = arg;
    while (!atomic_load(stop)) {
    }
    return NULL;
}

/* When a thread is to sit out, and when to come back: one second of steps each. */
static void check_crowd(void)
{
    const int64_t s = 1000000000;
    la_crowd c = {.in_step = 2, .pause = s / 10};
    la_crowd_note(&c, 2, s, s / 10, 0);
    check(c.in_step == 2, "a thread sits out though little was lost");
    la_crowd_note(&c, 2, s, 3 * s / 2, 0);
    check(c.in_step == 2, "a thread sits out though all processors are wanted");
    la_crowd_note(&c, 2, s / 1000, s / 1000, 0);
    check(c.in_step == 2, "a thread sits out after a millisecond");
    la_crowd_note(&c, 2, s, s / 2, 0);
    check(c.in_step == 1, "no thread sits out beside a neighbour");
    int64_t pause = c.pause;
    la_crowd_note(&c, 2, s, s / 2, pause - 1);
    check(c.in_step == 1, "a thread comes back early, or the last one sits out");
    la_crowd_note(&c, 2, s, 0, pause);
    check(c.in_step == 2, "a thread does not come back");
    la_crowd_note(&c, 2, s, s / 2, pause);
    check(c.in_step == 1 && c.pause == 2 * pause, "the pause does not grow while trials fail");
    la_crowd_note(&c, 2, s, 0, 10 * s);
    la_crowd_note(&c, 2, s, 0, 11 * s);
    check(c.in_step == 2 && c.pause < pause,
          "the pause stays long after a trial that did not fail");
}

/* Steps beside a neighbour while threads sit steps out and come back: no item may be lost. */
static void stress_steps(void)
{
    static share_job job;
    atomic_int stop = 0;
    pthread_t neighbour;
    int alone = 0, asked = 0;
    rng r = {9};
    job = (share_job){.n_shares = 20, .late = 1};
    check(la_pool_create(2, &job.pool) == LA_OK, "la_pool_create");
    check(pthread_create(&neighbour, NULL, burn, &stop) == 0, "pthread_create");
    for (int i = 0; i < N_STEPS; i++) {
        if (i % 5 == 0) {
            asked = rng_below(&r, 3);
            la_pool_step_threads(job.pool, asked);
        }
        la_pool_step(job.pool, take_shares, &job);
        check(asked == 0 || job.n_threads == asked, "a step on other threads than asked for");
        alone += job.n_threads == 1;
    }
    atomic_store(&stop, 1);
    check(pthread_join(neighbour, NULL) == 0, "pthread_join");
    la_pool_free(job.pool);
    printf("stress: %d steps beside a neighbour, %d of them on one thread\n", N_STEPS, alone);
}

/* ---- the model -------------------------------------------------------------------------------- */

static void set_random(la_model *m, rng *r, la_slot slot, int layer, int expert,
                       const int (*shapes)[2])
{
    static float data[3][MAX_CELLS]; /* one thread makes the model */
    la_source parts[3];
    int n = 0;
    for (; n < 3 && shapes[n][0] != 0; n++) {
        int cells = shapes[n][0] * shapes[n][1];
        for (int i = 0; i < cells; i++) {
            data[n][i] = ((float)rng_below(r, 2001) - 1000.0f) * 1.0e-4f;
        }
        parts[n] = (la_source){
            data[n],     (size_t)cells * sizeof(float), LA_F32, shapes[n][0], shapes[n][1], NULL,
            {0, 0, 0.0f}};
    }
    check(la_model_set(m, slot, layer, expert, parts, n) == LA_OK, la_slot_name(slot));
}

static void set_experts(la_model *m, rng *r, int layer)
{
    static const int router[3][2] = {{N_EXPERTS, D_MODEL}, {1, D_MODEL}};
    static const int up[3][2] = {{D_EXPERT, D_MODEL}, {D_EXPERT, D_MODEL}};
    static const int down[3][2] = {{D_MODEL, D_EXPERT}};
    set_random(m, r, LA_ROUTER, layer, 0, router);
    set_random(m, r, LA_SHARED_GATE_UP, layer, 0, up);
    set_random(m, r, LA_SHARED_DOWN, layer, 0, down);
    for (int e = 0; e < N_EXPERTS; e++) {
        set_random(m, r, LA_EXPERT_GATE_UP, layer, e, up);
        set_random(m, r, LA_EXPERT_DOWN, layer, e, down);
    }
}

static la_model *make_model(la_backend *backend)
{
    static const int norm[3][2] = {{1, D_MODEL}};
    static const int embed[3][2] = {{N_VOCAB, D_MODEL}};
    static const int qkv[3][2] = {{N_HEADS * D_HEAD, D_MODEL},
                                  {N_KV_HEADS * D_HEAD, D_MODEL},
                                  {N_KV_HEADS * D_HEAD, D_MODEL}};
    static const int out[3][2] = {{D_MODEL, N_HEADS * D_HEAD}};
    static const int gate_up[3][2] = {{D_FFN, D_MODEL}, {D_FFN, D_MODEL}};
    static const int down[3][2] = {{D_MODEL, D_FFN}};
    static const la_layer_desc layers[N_LAYERS] = {{0, 0, 0}, {40, 0, 1}};
    float inv_freq[D_HEAD / 2];
    for (int i = 0; i < D_HEAD / 2; i++) {
        inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)D_HEAD);
    }
    la_model_desc desc = {.n_layers = N_LAYERS,
                          .d_model = D_MODEL,
                          .n_heads = N_HEADS,
                          .n_kv_heads = N_KV_HEADS,
                          .d_head = D_HEAD,
                          .d_ffn = D_FFN,
                          .n_vocab = N_VOCAB,
                          .max_len = MAX_LEN,
                          .norm = LA_NORM_RMS,
                          .norm_eps = 1.0e-5f,
                          .act = LA_GATE_SILU,
                          .gated = 1,
                          .d_rope = D_HEAD,
                          .attn_scale = 0.25f,
                          .logit_scale = 1.0f,
                          .embed_scale = 1.0f,
                          .residual_scale = 1.0f,
                          .n_experts = N_EXPERTS,
                          .n_experts_used = 2,
                          .d_expert = D_EXPERT,
                          .d_shared = D_EXPERT,
                          .shared_gate = 1,
                          .route_scale = 1.0f,
                          .route_groups = 1,
                          .route_groups_used = 1,
                          .route_group_best = 1,
                          .activation = LA_ACT_F32,
                          .kv_form = LA_KV_F32,
                          .layers = layers,
                          .rope_inv_freq = {inv_freq},
                          .rope_scale = {1.0f, 1.0f}};
    la_recipe recipe = {.floats = LA_F32};
    la_model *m = NULL;
    rng r = {1};
    check(la_model_create(backend, &desc, recipe, &m) == LA_OK, "la_model_create");
    set_random(m, &r, LA_EMBED, 0, 0, embed);
    set_random(m, &r, LA_FINAL_NORM, 0, 0, norm);
    for (int i = 0; i < N_LAYERS; i++) {
        set_random(m, &r, LA_ATTN_NORM, i, 0, norm);
        set_random(m, &r, LA_QKV, i, 0, qkv);
        set_random(m, &r, LA_O, i, 0, out);
        set_random(m, &r, LA_FFN_NORM, i, 0, norm);
        if (layers[i].moe) {
            set_experts(m, &r, i);
            continue;
        }
        set_random(m, &r, LA_GATE_UP, i, 0, gate_up);
        set_random(m, &r, LA_DOWN, i, 0, down);
    }
    check(la_model_finish(m) == LA_OK, "la_model_finish");
    return m;
}

/* ---- one engine and those who pull at it ------------------------------------------------------ */

typedef struct rig {
    la_engine *engine;
    atomic_int adders;                                  /* still at work */
    atomic_int expected;                                /* branches of accepted requests */
    int finished;                                       /* the stepping thread's */
    int ended[2 * N_ADDERS * N_REQUESTS][MAX_BRANCHES]; /* by id; the stepping thread's */
} rig;

typedef struct adder {
    rig *rig;
    uint64_t seed;
} adder;

/* A request of random shape; about one in eight has an id outside the vocabulary. */
static la_status add_random(rig *g, rng *r, int64_t *id)
{
    int32_t prompt[MAX_PROMPT], suffix[MAX_BRANCHES * 4], stop[2] = {3, 5};
    int suffix_len[MAX_BRANCHES];
    int n_suffix = 0;
    int n_prompt = 1 + rng_below(r, MAX_PROMPT);
    int n_branches = 1 + rng_below(r, MAX_BRANCHES);
    for (int i = 0; i < n_prompt; i++) {
        prompt[i] = rng_below(r, N_VOCAB);
    }
    int bad = rng_below(r, 8) == 0;
    if (bad) {
        prompt[rng_below(r, n_prompt)] = N_VOCAB;
    }
    for (int b = 0; b < n_branches; b++) {
        suffix_len[b] = 1 + rng_below(r, 4);
        for (int i = 0; i < suffix_len[b]; i++) {
            suffix[n_suffix++] = rng_below(r, N_VOCAB);
        }
    }
    la_request q = {.prompt = prompt,
                    .n_prompt = n_prompt,
                    .n_branches = n_branches,
                    .priority = rng_below(r, 3),
                    .timeout = rng_below(r, 10) == 0 ? 0.02 : 0.0};
    q.sampling = (la_sampling){.temperature = 1.0f,
                               .top_p = 0.9f,
                               .repetition_penalty = 1.1f,
                               .repeat_last_n = rng_below(r, 3) - 1,
                               .no_repeat_ngram = rng_below(r, 4) == 0 ? 4 : 0,
                               .dry_multiplier = rng_below(r, 2) == 0 ? 0.8f : 0.0f,
                               .dry_base = 1.75f,
                               .dry_allowed_length = 2,
                               .dry_last_n = -1,
                               .typical_p = rng_below(r, 2) == 0 ? 0.9f : 1.0f,
                               .xtc_probability = 0.3f,
                               .xtc_threshold = 0.1f,
                               .think_budget = -1,
                               .seed = rng_next(r),
                               .max_tokens = 1 + rng_below(r, MAX_NEW),
                               .logprobs = rng_below(r, 5) - 1,
                               .prompt_logprobs = rng_below(r, 4) - 1,
                               .stop_ids = stop,
                               .n_stop = 2};
    if (rng_below(r, 3) == 0) {
        q.suffix = suffix;
        q.suffix_len = suffix_len;
    }
    la_status st = la_engine_add(g->engine, &q, id);
    check(st == (bad ? LA_ERR_REQUEST : LA_OK), "la_engine_add");
    if (st == LA_OK) {
        atomic_fetch_add(&g->expected, n_branches);
    }
    return st;
}

static void *run_adder(void *arg)
{
    adder *a = arg;
    rng r = {a->seed};
    int64_t last = 0;
    for (int i = 0; i < N_REQUESTS; i++) {
        int64_t id;
        if (add_random(a->rig, &r, &id) == LA_OK) {
            last = id;
        }
        if (last != 0 && rng_below(&r, 4) == 0) {
            check(la_engine_cancel(a->rig->engine, last, rng_below(&r, 2) - 1) == LA_OK,
                  "la_engine_cancel");
        }
        if (rng_below(&r, 8) == 0) {
            check(la_engine_preempt(a->rig->engine, rng_below(&r, 3)) == LA_OK,
                  "la_engine_preempt");
        }
        la_engine_stats stats;
        la_engine_get_stats(a->rig->engine, &stats);
        check(stats.pages_used <= stats.pages_cap, "pages beyond the cap");
    }
    atomic_fetch_sub(&a->rig->adders, 1);
    return NULL;
}

static void count_events(rig *g, const la_event *events, int n)
{
    for (int i = 0; i < n; i++) {
        const la_event *ev = &events[i];
        check(ev->request >= 1 && ev->request < 2 * N_ADDERS * N_REQUESTS, "request of an event");
        check(ev->branch >= 0 && ev->branch < MAX_BRANCHES, "branch of an event");
        check(!g->ended[ev->request][ev->branch], "an event after the end");
        if (ev->kind == LA_EVENT_FINISH) {
            g->ended[ev->request][ev->branch] = 1;
            g->finished++;
        }
        else {
            check(ev->token >= 0 && ev->token < N_VOCAB, "token of an event");
        }
    }
}

static void *run_stepper(void *arg)
{
    rig *g = arg;
    while (atomic_load(&g->adders) > 0 || la_engine_has_work(g->engine)) {
        const la_event *events;
        int n;
        check(la_engine_step(g->engine, &events, &n) == LA_OK, "la_engine_step");
        count_events(g, events, n);
    }
    return NULL;
}

static void start(pthread_t *thread, void *(*run)(void *), void *arg)
{
    check(pthread_create(thread, NULL, run, arg) == 0, "pthread_create");
}

static void check_end(rig *g)
{
    la_engine_stats stats;
    la_engine_get_stats(g->engine, &stats);
    check(g->finished == atomic_load(&g->expected), "a branch did not end, or ended twice");
    check(stats.pages_used == 0, "pages are left");
    check(stats.running == 0 && stats.waiting == 0, "sequences are left");
    check(stats.step_allocations == 0, "a step allocated memory");
    printf("stress: %d branches, %lld steps, %lld tokens out, %lld preemptions\n", g->finished,
           (long long)stats.steps, (long long)stats.output_tokens, (long long)stats.preemptions);
}

int main(void)
{
    static rig rigs[N_ENGINES];
    static adder adders[N_ENGINES][N_ADDERS];
    pthread_t threads[N_ENGINES][N_ADDERS + 1];
    la_limits limits = {.max_seqs = 6, .max_batch_tokens = 48, .max_len = MAX_LEN, .kv_pages = 9};
    la_backend *backend = NULL;
    stress_shares(N_TAKERS, N_SHARES, 1);
    stress_shares(2, N_TURNS, 0);
    check_crowd();
    stress_steps();
    check(la_backend_open("cpu", NULL, -N_THREADS, &backend) == LA_OK, "la_backend_open");
    la_model *model = make_model(backend);
    for (int e = 0; e < N_ENGINES; e++) {
        check(la_engine_create(model, &limits, &rigs[e].engine) == LA_OK, "la_engine_create");
        atomic_store(&rigs[e].adders, N_ADDERS);
    }
    for (int e = 0; e < N_ENGINES; e++) {
        start(&threads[e][N_ADDERS], run_stepper, &rigs[e]);
        for (int i = 0; i < N_ADDERS; i++) {
            adders[e][i] = (adder){&rigs[e], (uint64_t)(100 * e + i)};
            start(&threads[e][i], run_adder, &adders[e][i]);
        }
    }
    for (int e = 0; e < N_ENGINES; e++) {
        for (int i = 0; i <= N_ADDERS; i++) {
            check(pthread_join(threads[e][i], NULL) == 0, "pthread_join");
        }
        check_end(&rigs[e]);
        la_engine_free(rigs[e].engine);
    }
    la_model_free(model);
    la_backend_close(backend);
    return 0;
}
