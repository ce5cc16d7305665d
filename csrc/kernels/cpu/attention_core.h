/* attention_core.h - attention of R rows over one chunk, for any page format and level.
 *
 * Both products of a page have one form: C [rows][16 n] += A [rows][steps] B, where B is n blocks of
 * `steps` lines, a line 64 bytes: QK has rows of q and the K page (16 tokens a line), PV rows of
 * probabilities and the V page (16 dimensions a line). One register tile serves both:
 *
 *            b0  b1  b2  b3      up to 4 lines of B, each loaded once per step
 *     a0     c   c   c   c       up to 6 rows: 24 accumulators, 4 lines, 1 broadcast of 32 registers
 *     ..     c   c   c   c
 *
 * Fewer rows where more would spill: see the forms. Pages of codes: the scale of a token multiplies
 * its scores and, on the other side, its probability before that is rounded; no value is scaled.
 * Decode is one tile of few rows: it reads a half page once while it asks for the same half of the
 * next page, every line and into L2 (0.6 of the read bandwidth without, 0.8 with).
 * Invariant: an element of C is one chain over the steps in order and a row meets the pages in order,
 * each as 64 whole tokens; so a row's bits depend on that row alone, whatever tile it sits in.
 * Included by attention_fma.h, attention_scores.h and attention_bf16.h, which supply the tiles, by
 * attention_mla.h, whose pages hold both sides, and by attention_store.h.
 */
#ifndef LA_ATTENTION_CORE_H
#define LA_ATTENTION_CORE_H

#include "../kernels.h"
#include "vec_math.h"

enum {
    ATTEND_MAX_ROWS = 64, /* of a call */
    ATTEND_MAX_D = 256,   /* of a head */
    ATTEND_ROWS = 6,      /* of a tile, at most */
    ATTEND_LINE = 64,     /* bytes */
    ATTEND_HINT = 2       /* of prefetches: into L2; a page and the next are more than L1 */
};

/* One product: some rows, all blocks. */
typedef struct attend_panel {
    int rows;                   /* at most those of the side */
    const void *a[ATTEND_ROWS]; /* row of A in the form the tile reads */
    float *c[ATTEND_ROWS];      /* row of C, [16 n_blocks] */
    const uint8_t *b;           /* [n_blocks][steps][64 bytes] */
    const uint8_t *ahead;       /* as many bytes to prefetch, in order */
    const void *table;          /* of the form */
    int n_blocks;
    int steps;
    int add; /* 0: C starts at zero */
    int pace; /* MLA: bytes of `ahead` a step, where several panels share the prefetching of a page */
} attend_panel;

/* How one of the two products is made. */
typedef struct attend_side {
    int rows;   /* of a tile, 1..ATTEND_ROWS */
    int values; /* of A that meet a line of B */
    int bytes;  /* of a value of A */
    void (*panel)(const attend_panel *p);
    /* Where B must be opened to be read: turns all of it into lines for `opened`, worth it when several
     * tiles read it; the bits are the same. NULL: never. */
    void (*open)(const attend_panel *p, uint8_t *lines);
    void (*opened)(const attend_panel *p);
} attend_side;

/* What differs between forms of pages and levels. */
typedef struct attend_form {
    la_kv_form kv;
    attend_side qk;
    float (*row)(const float *x, int d,
                 void *a); /* q row to A, zeros behind; what its scores lack */
    attend_side pv;
    vf (*weights)(vf p, void *a, int t); /* stores VL probabilities at token t; as they count */
    const void *table;                   /* NULL, or what the panels look up */
} attend_form;

/* A row's part of a page. */
typedef struct attend_span {
    int row;
    int t0, t1;     /* tokens of the page that count: t0 <= t < t1 */
    float scale;    /* of the row's scores */
    const float *k; /* [64] scales of the page's keys and values; NULL: none */
    const float *v;
} attend_span;

/* The rows that count at least one token of the page that starts at `base`. */
LA_INLINE int attend_spans(const la_attend_args *g, int base, const float *row_scale,
                           attend_span *out)
{
    int n = 0;
    for (int r = 0; r < g->R; r++) {
        int last = g->row_pos[r] - base;
        int t1 = last < LA_PAGE - 1 ? last + 1 : LA_PAGE;
        int t0 = g->window > 0 && last >= g->window ? last - g->window + 1 : 0;
        if (t0 < t1) {
            out[n++] = (attend_span){r, t0, t1, row_scale[r], NULL, NULL};
        }
    }
    return n;
}

/* Largest of 64 scores. */
LA_INLINE float attend_max(const vf v[LA_PAGE / VL])
{
    vf m[LA_LANES16];
    LA_UNROLL
    for (int j = 0; j < LA_LANES16; j++) {
        m[j] = v_max(v_max(v[j], v[j + LA_LANES16]),
                     v_max(v[j + 2 * LA_LANES16], v[j + 3 * LA_LANES16]));
    }
    return v_max16(m);
}

/* exp of one value, by the same operations. */
LA_INLINE float attend_exp(float x)
{
    float lane[VL];
    v_storeu(lane, v_exp(v_set1(x)));
    return lane[0];
}

/* Sums s [64] of one row and page to scores v: scaled, capped, -INFINITY where none counts. */
LA_INLINE void attend_scores(const la_attend_args *g, const attend_span *span, float *s,
                             vf v[LA_PAGE / VL])
{
    enum { NS = LA_PAGE / VL };
    const vf scale = v_set1(span->scale);
    LA_UNROLL
    for (int i = 0; i < NS; i++) {
        v[i] = v_mul(v_loadu(s + i * VL), scale);
    }
    if (span->k != NULL) {
        LA_UNROLL
        for (int i = 0; i < NS; i++) {
            v[i] = v_mul(v[i], v_loadu(span->k + i * VL));
        }
    }
    if (g->softcap != 0.0f) {
        LA_UNROLL
        for (int i = 0; i < NS; i++) {
            v[i] = v_mul(v_set1(g->softcap), v_tanh(v[i]));
        }
    }
    if (span->t0 > 0 || span->t1 < LA_PAGE) { /* unwritten slots may hold anything, NaN too */
        LA_UNROLL
        for (int i = 0; i < NS; i++) {
            v_storeu(s + i * VL, v[i]);
        }
        for (int t = 0; t < span->t0; t++) {
            s[t] = -INFINITY;
        }
        for (int t = span->t1; t < LA_PAGE; t++) {
            s[t] = -INFINITY;
        }
        LA_UNROLL
        for (int i = 0; i < NS; i++) {
            v[i] = v_loadu(s + i * VL);
        }
    }
}

/* Sums s [64] of one row and page to weights p; m, l and o follow the running maximum. */
LA_INLINE void attend_softmax(const la_attend_args *g, const attend_form *f,
                              const attend_span *span, float *s, void *p)
{
    enum { NS = LA_PAGE / VL };
    int r = span->row;
    float *o = g->o + (int64_t)r * g->ldo;
    vf v[NS];
    attend_scores(g, span, s, v);
    float max = attend_max(v);
    float m = g->m[r];
    if (max > m) {
        if (m != -INFINITY) {
            float shrink = attend_exp(m - max);
            for (int i = 0; i < g->d; i += 16) {
                for (int j = 0; j < 16; j += VL) {
                    v_storeu(o + i + j, v_mul(v_loadu(o + i + j), v_set1(shrink)));
                }
            }
            g->l[r] *= shrink;
        }
        m = max;
        g->m[r] = m;
    }
    vf sum[LA_LANES16];
    for (int j = 0; j < LA_LANES16; j++) {
        sum[j] = v_zero();
    }
    /* Every score -INFINITY so far: nothing to weigh, and m - m would be NaN. */
    vf top = v_set1(m == -INFINITY ? 0.0f : m);
    LA_UNROLL
    for (int i = 0; i < NS; i++) {
        vf e = v_exp(v_sub(v[i], top));
        if (span->v != NULL) {
            f->weights(v_mul(e, v_loadu(span->v + i * VL)), p, i * VL);
        }
        else {
            e = f->weights(e, p, i * VL);
        }
        sum[i % LA_LANES16] = v_add(sum[i % LA_LANES16], e);
    }
    g->l[r] += v_sum16(sum);
}

/* One product for n rows of a page, in tiles of about equal height. a, c: row 0 of the call. mla_product
 * cuts rows alike; it differs in what is prefetched and opens no lines. */
LA_INLINE void attend_product(const attend_side *f, const attend_span *span, int n, const char *a,
                              size_t a_pitch, float *c, int c_pitch, attend_panel *p,
                              uint8_t *lines)
{
    int tiles = (n + f->rows - 1) / f->rows;
    int open = f->open != NULL && tiles > 1;
    if (open) {
        f->open(p, lines);
        p->b = lines;
        p->steps *= 2;
    }
    for (int t = 0; t < tiles; t++) {
        int from = n * t / tiles;
        p->rows = n * (t + 1) / tiles - from;
        for (int i = 0; i < p->rows; i++) {
            int r = span[from + i].row;
            p->a[i] = a + (size_t)r * a_pitch;
            p->c[i] = c + (int64_t)r * c_pitch;
        }
        (open ? f->opened : f->panel)(p);
        p->ahead = p->b; /* once is enough */
    }
}

/* Where the parts of the scratch lie. */
typedef struct attend_room {
    float *s;       /* [R][64] scores */
    char *p, *q;    /* [R] rows of A */
    uint8_t *lines; /* an opened half page */
    size_t p_pitch, q_pitch;
    float *row_scale; /* [ATTEND_MAX_ROWS] */
} attend_room;

LA_INLINE void attend_begin(const la_attend_args *g, const attend_form *f, attend_room *at)
{
    float scale = g->softcap != 0.0f ? g->scale / g->softcap : g->scale;
    size_t head = f->kv == LA_KV_I8 ? ATTEND_LINE : 0; /* before the codes of q */
    at->q_pitch = head + ((size_t)g->d * (size_t)f->qk.bytes + 63) / 64 * 64;
    at->p_pitch = (size_t)LA_PAGE * (size_t)f->pv.bytes;
    at->s = g->scratch;
    at->p = (char *)(at->s + (size_t)g->R * LA_PAGE);
    at->lines = (uint8_t *)at->p + (size_t)g->R * LA_PAGE * sizeof(float);
    char *end = (char *)at->lines + ((size_t)g->d + 15) / 16 * 16 * LA_PAGE * sizeof(uint16_t);
    at->row_scale = (float *)(void *)end + g->set * g->R;
    at->q = end + ATTEND_MAX_ROWS * sizeof(float) + (size_t)(g->set * g->R) * at->q_pitch;
    for (int r = 0; r < g->R; r++) {
        if (!g->again) {
            float own = f->row(g->q + (int64_t)r * g->ldq, g->d, at->q + (size_t)r * at->q_pitch);
            at->row_scale[r] = scale * own;
        }
        if (!g->more) {
            g->m[r] = -INFINITY;
            g->l[r] = 0.0f;
            memset(g->o + (int64_t)r * g->ldo, 0, ((size_t)g->d + 15) / 16 * 64);
        }
    }
}

LA_INLINE void attend_run(const la_attend_args *g, const attend_form *f)
{
    attend_span span[ATTEND_MAX_ROWS];
    attend_room at;
    size_t k_codes = la_kv_k_bytes(f->kv, g->d) - la_kv_scale_bytes(f->kv);
    size_t v_codes = la_kv_v_bytes(f->kv, g->d) - la_kv_scale_bytes(f->kv);
    attend_begin(g, f, &at);
    for (int i = 0; i < g->n_pages; i++) {
        const uint8_t *kb = g->k_pages[i], *vb = g->v_pages[i];
        int n = attend_spans(g, g->first + i * LA_PAGE, at.row_scale, span);
        if (n == 0) {
            continue;
        }
        const uint8_t *next = i + 1 < g->n_pages ? g->k_pages[i + 1] : g->next;
        const uint8_t *next_v = i + 1 < g->n_pages ? g->v_pages[i + 1] : g->next_v;
        attend_panel qk = {.b = kb,
                           .ahead = next != NULL ? next : kb,
                           .table = f->table,
                           .n_blocks = LA_PAGE / 16,
                           .steps = (g->d + f->qk.values - 1) / f->qk.values,
                           .add = 0};
        attend_product(&f->qk, span, n, at.q, at.q_pitch, at.s, LA_PAGE, &qk, at.lines);
        for (int j = 0; j < n; j++) {
            size_t r = (size_t)span[j].row;
            if (f->kv == LA_KV_I8 || f->kv == LA_KV_F8) {
                span[j].k = (const float *)(const void *)(kb + k_codes);
                span[j].v = (const float *)(const void *)(vb + v_codes);
            }
            attend_softmax(g, f, &span[j], at.s + r * LA_PAGE, at.p + r * at.p_pitch);
        }
        attend_panel pv = {.b = vb,
                           .ahead = next_v != NULL ? next_v : vb,
                           .table = f->table,
                           .n_blocks = (g->d + 15) / 16,
                           .steps = LA_PAGE / f->pv.values,
                           .add = 1};
        attend_product(&f->pv, span, n, at.p, at.p_pitch, g->o, g->ldo, &pv, at.lines);
    }
}

#endif
