/* backend_cpu_probe.c - what the machine gives at most: read bandwidth and dot peaks.
 *
 * Owns the list of access patterns. Which of them reads fastest differs between machines, page sizes
 * and from minute to minute, so several are tried and the best counts: a probe that an engine beats
 * is wrong. Reading a model's own weights is what decode is held against: the same bytes by the same
 * threads, nothing computed. Called by the benchmarks through llmaccel.h.
 */
#include "backend_cpu.h"

#include <sys/mman.h>

/* How a thread reads its share: streams side by side, bytes prefetched ahead in each (negative: past
 * the caches), and the size of chunks that threads take in turn (0: one contiguous share each). */
typedef struct pattern {
    const char *name;
    int streams, ahead;
    size_t chunk;
} pattern;

static const pattern patterns[LA_READ_PATTERNS] = {
    {"1 stream", 1, 0, 0},
    {"2 streams", 2, 0, 0},
    {"4 streams", 4, 0, 0},
    {"1 stream, 2 KiB ahead", 1, 2048, 0},
    {"1 stream, 4 KiB ahead once", 1, -4096, 0},
    {"2 streams, 1 KiB ahead", 2, 1024, 0},
    {"2 streams, 1 KiB ahead once", 2, -1024, 0},
    {"8 streams, 512 bytes ahead", 8, 512, 0},
    {"64 KiB in turn", 1, 0, (size_t)64 << 10},
};

enum { PEAK_ROUNDS = 400000, READ_ROUNDS = 2 };

typedef struct probe_job {
    const la_cpu_backend *b;
    const la_model *m; /* reads its weights; NULL: reads data */
    const uint8_t *data;
    size_t bytes;
    const pattern *pattern;
    float (*peak)(int64_t n);
    _Atomic uint64_t sink;
} probe_job;

/* Thread tid's part of `bytes` at `data`, read as the job's pattern says. */
static uint64_t read_share(const probe_job *job, const uint8_t *data, size_t bytes, int tid,
                           int nth)
{
    const pattern *p = job->pattern;
    uint64_t any = 0;
    if (p->chunk == 0) {
        size_t lines = bytes / 64, first = lines * (size_t)tid / (size_t)nth * 64;
        size_t end = tid + 1 == nth ? bytes : lines * (size_t)(tid + 1) / (size_t)nth * 64;
        return job->b->k.probe_read(data + first, end - first, p->streams, p->ahead);
    }
    for (size_t at = p->chunk * (size_t)tid; at < bytes; at += p->chunk * (size_t)nth) {
        size_t left = bytes - at;
        any |= job->b->k.probe_read(data + at, left < p->chunk ? left : p->chunk, p->streams,
                                    p->ahead);
    }
    return any;
}

static void read_thread(void *arg, int tid, int nth)
{
    probe_job *job = arg;
    job->sink |= read_share(job, job->data, job->bytes, tid, nth);
}

static uint64_t read_matrix(const probe_job *job, const la_matrix *m, int tid, int nth)
{
    uint64_t any = 0;
    for (int i = 0; i < m->n_parts; i++) {
        const la_weight *w = &m->part[i];
        any |= read_share(job, w->data, (size_t)w->n_units * w->unit_bytes, tid, nth);
    }
    return any;
}

static uint64_t read_latent(const probe_job *job, const la_latent *m, int tid, int nth)
{
    uint64_t any = read_matrix(job, &m->in, tid, nth) | read_matrix(job, &m->q, tid, nth);
    any |= read_share(job, m->uk.one.data, la_head_matrix_bytes(&m->uk), tid, nth);
    return any | read_share(job, m->uv.one.data, la_head_matrix_bytes(&m->uv), tid, nth);
}

/* As many experts as a token uses. */
static uint64_t read_experts(const probe_job *job, const la_moe *w, int tid, int nth)
{
    uint64_t any = read_matrix(job, &w->router, tid, nth);
    for (int e = 0; e < job->m->desc.n_experts_used; e++) {
        any |= read_matrix(job, &w->up[e], tid, nth) | read_matrix(job, &w->down[e], tid, nth);
    }
    return any | read_matrix(job, &w->shared_up, tid, nth) |
           read_matrix(job, &w->shared_down, tid, nth);
}

/* What a decoded token reads, in its order, without the barriers between products. */
static void weights_thread(void *arg, int tid, int nth)
{
    probe_job *job = arg;
    const la_model *m = job->m;
    uint64_t any = 0;
    for (int l = 0; l < m->desc.n_layers; l++) {
        const la_layer *w = &m->layers[l];
        any |= read_matrix(job, &w->qkv, tid, nth) | read_latent(job, &w->latent, tid, nth);
        any |= read_matrix(job, &w->o, tid, nth);
        any |= read_matrix(job, &w->gate_up, tid, nth) | read_matrix(job, &w->down, tid, nth);
        any |= w->moe != NULL ? read_experts(job, w->moe, tid, nth) : 0;
    }
    any |= read_matrix(job, m->head.n_parts != 0 ? &m->head : &m->embed, tid, nth);
    job->sink |= any;
}

static void peak_thread(void *arg, int tid, int nth)
{
    probe_job *job = arg;
    (void)tid;
    (void)nth;
    job->sink |= job->peak(PEAK_ROUNDS) > 0.0f;
}

static void fill_thread(void *arg, int tid, int nth)
{
    probe_job *job = arg;
    size_t first = job->bytes / 4096 * (size_t)tid / (size_t)nth * 4096;
    size_t end = job->bytes / 4096 * (size_t)(tid + 1) / (size_t)nth * 4096;
    memset((uint8_t *)(uintptr_t)job->data + first, 0x3c, end - first);
}

const char *la_read_pattern_name(int p)
{
    return p >= 0 && p < LA_READ_PATTERNS ? patterns[p].name : NULL;
}

la_status la_cpu_probe_read(la_backend *b, size_t bytes, int huge, double *gb_per_s)
{
    la_cpu_backend *cpu = (la_cpu_backend *)b;
    memset(gb_per_s, 0, LA_READ_PATTERNS * sizeof *gb_per_s);
    if (bytes < (size_t)1 << 20) {
        return la_fail(LA_ERR_ARGUMENT, "probe: %zu bytes are too few to measure", bytes);
    }
    uint8_t *data = la_map(bytes);
    if (data == NULL) {
        return la_fail(LA_ERR_MEMORY, "probe: cannot map %zu bytes", bytes);
    }
    if (!huge) {
        madvise(data, bytes, MADV_NOHUGEPAGE); /* a refusal leaves what the system prefers */
    }
    probe_job job = {.b = cpu, .data = data, .bytes = bytes};
    la_pool_run(cpu->pool, fill_thread, &job);
    for (int round = 0; round < READ_ROUNDS; round++) {
        for (int p = 0; p < LA_READ_PATTERNS; p++) {
            job.pattern = &patterns[p];
            double t = la_now();
            la_pool_run(cpu->pool, read_thread, &job);
            double rate = (double)bytes / (la_now() - t) * 1e-9;
            gb_per_s[p] = rate > gb_per_s[p] ? rate : gb_per_s[p];
        }
    }
    la_unmap(data, bytes);
    return LA_OK;
}

la_status la_cpu_read_weights(la_model *m, int which, double seconds, double *gb_per_s)
{
    la_cpu_backend *cpu = (la_cpu_backend *)m->b;
    probe_job job = {.b = cpu, .m = m, .pattern = &patterns[which]};
    double start = la_now(), spent = 0.0, bytes = 0.0;
    do {
        la_pool_run(cpu->pool, weights_thread, &job);
        bytes += (double)la_model_token_bytes(m);
        spent = la_now() - start;
    } while (spent < seconds);
    *gb_per_s = bytes / spent * 1e-9;
    return LA_OK;
}

la_status la_cpu_probe_peak(la_backend *b, const char *what, double *gop_per_s)
{
    la_cpu_backend *cpu = (la_cpu_backend *)b;
    la_probe_ops ops = la_kernels_probe_ops(cpu->isa);
    probe_job job = {.b = cpu};
    int per_round = 0;
    *gop_per_s = 0.0;
    if (strcmp(what, "f32") == 0) {
        job.peak = cpu->k.probe_f32;
        per_round = ops.f32;
    }
    else if (strcmp(what, "bf16") == 0) {
        job.peak = cpu->k.probe_bf16;
        per_round = ops.bf16;
    }
    else if (strcmp(what, "int8") == 0) {
        job.peak = cpu->k.probe_i8;
        per_round = ops.i8;
    }
    if (per_round == 0) {
        return la_fail(LA_ERR_UNSUPPORTED, "probe: isa %s has no %s dot",
                       la_cpu_isa_name((int)cpu->isa), what);
    }
    for (int i = 0; i < 5; i++) {
        double t = la_now();
        la_pool_run(cpu->pool, peak_thread, &job);
        double ops_done = (double)per_round * PEAK_ROUNDS * b->n_threads;
        double rate = ops_done / (la_now() - t) * 1e-9;
        *gop_per_s = rate > *gop_per_s ? rate : *gop_per_s;
    }
    return LA_OK;
}
