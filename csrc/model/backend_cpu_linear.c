/* backend_cpu_linear.c - y = x W^T with what comes before (norm, conversion) and after (epilogue).
 *
 * A product is cut into grains: the smallest runs of 32-column units that an epilogue can finish (one
 * unit, a pair for the many-row kernels, whole heads for LA_HEADS). Threads take contiguous grains, so a
 * weight is read once, front to back, by one thread. Invariant: M and the thread count decide only who
 * computes a tile and how many rows ride along, never the order of additions inside a row.
 */
#include "backend_cpu.h"

/* Rows ready for a gemm slot. */
typedef struct converted {
    const uint8_t *a;
    size_t pitch;
    la_act_meta *meta; /* NULL: none */
    int groups;
    la_act_form form;
    int group;
} converted;

la_act_form la_act_form_of(la_format f, int activation)
{
    if (f.pack == LA_PACK_F32 || f.pack == LA_PACK_F16) {
        return LA_ACT_F32;
    }
    return f.pack == LA_PACK_BF16 || f.pack == LA_PACK_F8 ? LA_ACT_BF16 : (la_act_form)activation;
}

static size_t form_bytes(la_act_form form)
{
    return form == LA_ACT_F32 ? 4 : form == LA_ACT_BF16 ? 2 : 1;
}

/* Plans where `rows` converted rows of a part lie, from `base` on; returns the bytes used. */
static size_t plan_converted(converted *v, const la_weight *w, int activation, int rows,
                             uint8_t *base)
{
    v->form = la_act_form_of(w->f, activation);
    v->group = w->f.group;
    v->groups = w->f.group != 0 ? la_ceil_div(w->K, w->f.group) : 0;
    v->pitch = la_round_up((size_t)w->K * form_bytes(v->form), 64);
    v->a = base;
    size_t bytes = v->pitch * (size_t)rows;
    v->meta = v->groups != 0 ? (la_act_meta *)(void *)(base + bytes) : NULL;
    return la_round_up(bytes + (size_t)v->groups * (size_t)rows * sizeof(la_act_meta), 64);
}

static void convert_rows(la_ctx *c, const converted *v, la_rows in, const la_prologue *pro, int K,
                         int first, int end, float *row)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    for (int r = first; r < end; r++) {
        const float *x = in.p + (int64_t)r * in.ld;
        uint8_t *dst = (uint8_t *)(uintptr_t)v->a + v->pitch * (size_t)r;
        la_act_meta *meta = v->meta != NULL ? v->meta + (int64_t)r * v->groups : NULL;
        if (pro->norm.w != NULL) {
            float *y = v->form == LA_ACT_F32 ? (float *)(void *)dst : row;
            la_cpu_norm(k, c->m->desc.norm, pro->norm, c->m->desc.norm_eps, x, y, K);
            x = y;
        }
        if (v->form == LA_ACT_BF16) {
            k->act_bf16(x, K, v->group, (uint16_t *)(void *)dst, meta);
        }
        else if (v->form == LA_ACT_I8) {
            k->act_i8(x, K, v->group, (int8_t *)dst, meta);
        }
        else {
            if ((const uint8_t *)x != dst) {
                memcpy(dst, x, (size_t)K * sizeof(float));
            }
            memset(dst + (size_t)K * sizeof(float), 0, v->pitch - (size_t)K * sizeof(float));
        }
    }
}

/* Converts the rows for every part; parts that want the same form share one conversion. Few rows are
 * converted by every thread for itself, which is cheaper than a barrier. */
static void prepare(la_ctx *c, const la_matrix *m, la_rows in, const la_prologue *pro, converted *v)
{
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    int few = in.n <= LA_CPU_FEW_ROWS, meet = 0;
    uint8_t *base = few ? own.few : c->w->shared;
    int first = few ? 0 : la_cpu_share(in.n, c->tid, c->nth);
    int end = few ? in.n : la_cpu_share(in.n, c->tid + 1, c->nth);
    for (int p = 0; p < m->n_parts; p++) {
        size_t used = plan_converted(&v[p], &m->part[p], m->activation, in.n, base);
        if (p > 0 && v[p].form == v[p - 1].form && v[p].group == v[p - 1].group) {
            v[p] = v[p - 1];
            continue;
        }
        if (v[p].form == LA_ACT_F32 && pro->norm.w == NULL) { /* already what the kernel reads */
            v[p].a = (const uint8_t *)in.p;
            v[p].pitch = (size_t)in.ld * sizeof(float);
            continue;
        }
        convert_rows(c, &v[p], in, pro, m->K, first, end, own.row);
        base += used;
        meet = !few;
    }
    if (meet) {
        la_cpu_barrier(c);
    }
}

static void run_gemm(const la_kernels *k, const la_gemm *g, la_act_form form)
{
    switch (g->f.pack) {
    case LA_PACK_F32: k->gemm_f32_f32(g); break;
    case LA_PACK_F16: k->gemm_f16_f32(g); break;
    case LA_PACK_BF16: k->gemm_bf16_bf16(g); break;
    case LA_PACK_F8: k->gemm_f8_bf16(g); break;
    case LA_PACK_I8: (form == LA_ACT_I8 ? k->gemm_i8_i8 : k->gemm_i8_bf16)(g); break;
    default: (form == LA_ACT_I8 ? k->gemm_i4_i8 : k->gemm_i4_bf16)(g); break;
    }
}

/* One finished tile: rows row0.. of columns col0.. (counted over all parts). */
typedef struct tile {
    float *c;
    int ld;
    int row0, rows;
    int col0; /* output column of the tile's first, pairs counted before gating */
    int cols; /* that exist */
} tile;

static void finish_act(const la_kernels *k, const tile *t, int act, int gated, const float *y,
                       float *out)
{
    if (!gated) {
        k->act(act, y, out + t->col0, t->cols);
        return;
    }
    for (int u = 0; u * LA_UNIT < t->cols; u++) { /* 16 gates, 16 ups */
        int n = (t->cols - u * LA_UNIT) / 2;
        const float *gate = y + u * LA_UNIT;
        k->act_mul(act, gate, gate + 16, out + t->col0 / 2 + u * 16, n < 16 ? n : 16);
    }
}

static void finish_tile(la_ctx *c, const la_matrix *m, const tile *t, la_rows out,
                        const la_epilogue *epi)
{
    const la_kernels *k = &la_cpu_of(c)->k;
    const la_model_desc *d = &c->m->desc;
    for (int r = 0; r < t->rows; r++) {
        float *y = t->c + (int64_t)r * t->ld;
        float *row = out.p + (int64_t)(t->row0 + r) * out.ld;
        if (m->bias != NULL) {
            k->add(m->bias + t->col0, y,
                   m->paired ? (int)la_round_up((size_t)t->cols, LA_UNIT) : t->cols);
        }
        switch (epi->kind) {
        case LA_STORE: memcpy(row + t->col0, y, (size_t)t->cols * sizeof(float)); break;
        case LA_ADD: k->add_scaled(y, epi->scale, row + t->col0, t->cols); break;
        case LA_ACT: finish_act(k, t, d->act, m->paired, y, row); break;
        case LA_LOGITS:
            if (epi->scale != 1.0f || epi->softcap != 0.0f) {
                k->softcap(y, epi->scale, epi->softcap, t->cols);
            }
            memcpy(row + t->col0, y, (size_t)t->cols * sizeof(float));
            break;
        case LA_HEADS:
            la_cpu_finish_heads(c, epi->layer, t->row0 + r, y, t->col0 / d->d_head,
                                t->cols / d->d_head, out);
            break;
        }
    }
}

/* Units that must stay together, and units taken at once. */
static void grain_of(const la_model_desc *d, la_epilogue_kind kind, int M, int *grain, int *step)
{
    *grain = kind == LA_HEADS ? la_head_granule(d->d_head) / LA_UNIT : M > 8 ? 2 : 1;
    int most = M > 8 && *grain <= 2 ? 2 : LA_CPU_TILE_COLS / LA_UNIT;
    *step = most / *grain * *grain;
}

/* Thread's share of one part: grains g0 .. g1-1. */
static void run_part(la_ctx *c, const la_matrix *m, int p, const converted *v, la_rows in,
                     la_rows out, const la_epilogue *epi, const int *range)
{
    la_cpu_local own;
    la_cpu_local_of(c, &own);
    const la_weight *w = &m->part[p];
    int col_base = 0, grain, step;
    for (int i = 0; i < p; i++) {
        col_base += m->part[i].N;
    }
    grain_of(&c->m->desc, epi->kind, in.n, &grain, &step);
    int end = range[1] * grain < w->n_units ? range[1] * grain : w->n_units;
    /* paired: the last unit may hold fewer than 16 pairs, but pairs are whole */
    for (int row0 = 0; row0 < in.n; row0 += LA_CPU_TILE_ROWS) {
        int rows = in.n - row0 < LA_CPU_TILE_ROWS ? in.n - row0 : LA_CPU_TILE_ROWS;
        for (int u = range[0] * grain; u < end; u += step) {
            int n = end - u < step ? end - u : step;
            la_gemm g = {.w = w->data + (size_t)u * w->unit_bytes,
                         .w_pitch = w->unit_bytes,
                         .n_units = n,
                         .K = w->K,
                         .f = w->f,
                         .a = v->a + v->pitch * (size_t)row0,
                         .a_pitch = v->pitch,
                         .meta = v->meta != NULL ? v->meta + (int64_t)row0 * v->groups : NULL,
                         .M = rows,
                         .c = own.tile,
                         .ldc = n * LA_UNIT};
            if (u + n < end) {
                int after = end - u - n < step ? end - u - n : step;
                g.next = g.w + (size_t)n * w->unit_bytes;
                g.next_bytes = (size_t)after * w->unit_bytes;
            }
            run_gemm(&la_cpu_of(c)->k, &g, v->form);
            int left = w->N - u * LA_UNIT;
            tile t = {own.tile,
                      g.ldc,
                      row0,
                      rows,
                      col_base + u * LA_UNIT,
                      left < n * LA_UNIT ? left : n * LA_UNIT};
            finish_tile(c, m, &t, out, epi);
        }
    }
}

void la_cpu_linear(la_ctx *c, const la_matrix *m, la_rows in, la_rows out, const la_prologue *pro,
                   const la_epilogue *epi)
{
    converted v[3];
    int grains[3], total = 0, grain, step;
    grain_of(&c->m->desc, epi->kind, in.n, &grain, &step);
    for (int p = 0; p < m->n_parts; p++) {
        grains[p] = la_ceil_div(m->part[p].n_units, grain);
        total += grains[p];
    }
    prepare(c, m, in, pro, v);
    int first = la_cpu_share(total, c->tid, c->nth), end = la_cpu_share(total, c->tid + 1, c->nth);
    for (int p = 0, at = 0; p < m->n_parts; at += grains[p], p++) {
        int range[2] = {first - at < 0 ? 0 : first - at,
                        end - at < grains[p] ? end - at : grains[p]};
        if (range[0] < range[1]) {
            run_part(c, m, p, &v[p], in, out, epi, range);
        }
    }
    la_cpu_barrier(c);
}
