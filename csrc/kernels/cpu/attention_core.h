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
 * Fewer rows where more would spill: see the forms.
 * Invariant: an element of C is one chain over the steps in order and a row meets the pages in order,
 * each as 64 whole tokens; so a row's bits depend on that row alone, whatever tile it sits in.
 * Included by attention.h and attention_bf16.h, which supply the tile and the forms of A.
 */
#ifndef LA_ATTENTION_CORE_H
#define LA_ATTENTION_CORE_H

#include "../kernels.h"
#include "vec_math.h"

enum {
    ATTEND_MAX_ROWS = 64, /* of a call */
    ATTEND_MAX_D = 256,   /* of a head */
    ATTEND_ROWS = 6,      /* of a tile, at most */
    ATTEND_LINE = 64      /* bytes */
};

/* One product: some rows, all blocks. */
typedef struct attend_panel {
    int rows;                   /* at most those of the form */
    const void *a[ATTEND_ROWS]; /* row of A in the form the tile reads */
    float *c[ATTEND_ROWS];      /* row of C, [16 n_blocks] */
    const uint8_t *b;           /* [n_blocks][steps][64 bytes] */
    int n_blocks;
    int steps;
    int add; /* 0: C starts at zero */
} attend_panel;

/* What differs between fp32 pages, bf16 pages by shift and mask, and bf16 pages by the dot. */
typedef struct attend_form {
    int rows;  /* of a tile, 1..ATTEND_ROWS */
    int pair;  /* values of A per line: 1, or 2 for bf16 */
    int bytes; /* of a value of A */
    void (*panel)(const attend_panel *p);
    void (*row)(const float *x, int d, void *a); /* q row to A, an odd d padded by 0 */
    vf (*weights)(vf p, void *a, int t); /* stores VL probabilities at token t; as they count */
} attend_form;

typedef struct attend_span {
    int row;
    int t0, t1; /* tokens of the page that count: t0 <= t < t1 */
} attend_span;

/* The rows that count at least one token of the page that starts at `base`. */
LA_INLINE int attend_spans(const la_attend_args *g, int base, attend_span *out)
{
    int n = 0;
    for (int r = 0; r < g->R; r++) {
        int last = g->row_pos[r] - base;
        int t1 = last < LA_PAGE - 1 ? last + 1 : LA_PAGE;
        int t0 = g->window > 0 && last >= g->window ? last - g->window + 1 : 0;
        if (t0 < t1) {
            out[n].row = r;
            out[n].t0 = t0;
            out[n].t1 = t1;
            n++;
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

/* Scores s [64] of one row and page to weights p; m, l and o follow the running maximum. */
LA_INLINE void attend_softmax(const la_attend_args *g, const attend_form *f,
                              const attend_span *span, float *s, void *p)
{
    enum { NS = LA_PAGE / VL };
    int r = span->row;
    float *o = g->o + (int64_t)r * g->ldo;
    vf v[NS], scale = v_set1(g->softcap != 0.0f ? g->scale / g->softcap : g->scale);
    LA_UNROLL
    for (int i = 0; i < NS; i++) {
        v[i] = v_mul(v_loadu(s + i * VL), scale);
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
        vf e = f->weights(v_exp(v_sub(v[i], top)), p, i * VL);
        sum[i % LA_LANES16] = v_add(sum[i % LA_LANES16], e);
    }
    g->l[r] += v_sum16(sum);
}

/* One product for n rows of a page, in tiles of about equal height. a, c: row 0 of the call. */
LA_INLINE void attend_product(const attend_form *f, const attend_span *span, int n, const char *a,
                              size_t a_pitch, float *c, int c_pitch, attend_panel *p)
{
    int tiles = (n + f->rows - 1) / f->rows;
    for (int t = 0; t < tiles; t++) {
        int from = n * t / tiles;
        p->rows = n * (t + 1) / tiles - from;
        for (int i = 0; i < p->rows; i++) {
            int r = span[from + i].row;
            p->a[i] = a + (size_t)r * a_pitch;
            p->c[i] = c + (int64_t)r * c_pitch;
        }
        f->panel(p);
    }
}

LA_INLINE void attend_run(const la_attend_args *g, const attend_form *f)
{
    attend_span span[ATTEND_MAX_ROWS];
    size_t q_pitch = ((size_t)g->d * (size_t)f->bytes + 63) / 64 * 64;
    size_t p_pitch = (size_t)LA_PAGE * (size_t)f->bytes;
    float *s = g->scratch;
    char *p = (char *)(s + (size_t)g->R * LA_PAGE);
    char *q = p + (size_t)g->R * LA_PAGE * sizeof(float);
    int n_blocks = (g->d + 15) / 16;
    for (int r = 0; r < g->R; r++) {
        f->row(g->q + (int64_t)r * g->ldq, g->d, q + (size_t)r * q_pitch);
        g->m[r] = -INFINITY;
        g->l[r] = 0.0f;
        memset(g->o + (int64_t)r * g->ldo, 0, (size_t)n_blocks * 16 * sizeof(float));
    }
    for (int i = 0; i < g->n_pages; i++) {
        int n = attend_spans(g, g->first + i * LA_PAGE, span);
        if (n == 0) {
            continue;
        }
        attend_panel qk = {.b = g->k_pages[i],
                           .n_blocks = LA_PAGE / 16,
                           .steps = (g->d + f->pair - 1) / f->pair,
                           .add = 0};
        attend_product(f, span, n, q, q_pitch, s, LA_PAGE, &qk);
        for (int j = 0; j < n; j++) {
            size_t r = (size_t)span[j].row;
            attend_softmax(g, f, &span[j], s + r * LA_PAGE, p + r * p_pitch);
        }
        attend_panel pv = {
            .b = g->v_pages[i], .n_blocks = n_blocks, .steps = LA_PAGE / f->pair, .add = 1};
        attend_product(f, span, n, p, p_pitch, g->o, g->ldo, &pv);
    }
}

#endif
