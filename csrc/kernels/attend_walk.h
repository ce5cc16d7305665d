/* attend_walk.h - attention of some query rows over the chunks they see, by a table of kernels.
 *
 * Owns the order of chunks: a row meets those of 256 tokens that hold a token it counts, at absolute
 * positions, each a softmax of its own, joined to the sum so far in order. Invariant: where the parts of
 * a row are made, and beside which rows, changes no bit of it; so who makes them may be decided freely.
 * Included by model/backend_cpu*.c and python/py_kernels_attend.h.
 */
#ifndef LA_ATTEND_WALK_H
#define LA_ATTEND_WALK_H

#include "kernels.h"

#include <math.h>

/* Where the pages of a sequence's kv head lie: its K block in page i at base + index[i] * pitch, its V
 * block k_bytes behind. */
typedef struct la_attend_pages {
    const uint8_t *base;
    const int32_t *index; /* NULL: pages 0, 1, 2, .. */
    size_t pitch, k_bytes;
} la_attend_pages;

/* What holds for all rows. */
typedef struct la_attend_walk {
    const la_kernels *k;
    la_kv_form form;
    int d;
    int dv;               /* MLA: width of a result; 0: d */
    int window;           /* 0: none */
    float scale, softcap; /* softcap 0: off */
    const float *sinks;   /* [heads] a logit of each row's softmax beside the keys'; NULL: none */
    int heads;            /* rows go (token, head): row r is of head r % heads; with sinks */
} la_attend_walk;

/* One thread's buffers for up to `rows` rows; d16: d rounded up to 16. */
typedef struct la_attend_room {
    float *q;                        /* [rows][d16] queries, filled by the caller */
    int *pos;                        /* [rows] their positions, filled by the caller */
    float *m, *l, *o;                /* [rows], [rows], [rows][d16] the sum so far */
    float *part_m, *part_l, *part_o; /* a chunk's result */
    void *scratch;                   /* la_attend_scratch(rows, d) */
} la_attend_room;

static inline int la_attend_wide(int d)
{
    return (d + 15) / 16 * 16;
}

/* Columns of a result. */
static inline int la_attend_out(const la_attend_walk *w)
{
    return w->dv != 0 ? w->dv : w->d;
}

/* Bytes of the buffers. */
static inline size_t la_attend_room_bytes(int rows, int d)
{
    size_t line = ((size_t)rows + 15) / 16 * 16, wide = (size_t)rows * (size_t)la_attend_wide(d);
    return (3 * wide + 5 * line) * sizeof(float) + la_attend_scratch(rows, d);
}

/* Lays them out from base, which is 64-byte aligned. */
static inline void la_attend_room_at(void *base, int rows, int d, la_attend_room *out)
{
    size_t line = ((size_t)rows + 15) / 16 * 16, wide = (size_t)rows * (size_t)la_attend_wide(d);
    out->q = base;
    out->o = out->q + wide;
    out->part_o = out->o + wide;
    out->m = out->part_o + wide;
    out->l = out->m + line;
    out->part_m = out->l + line;
    out->part_l = out->part_m + line;
    out->pos = (int *)(void *)(out->part_l + line);
    out->scratch = out->pos + line;
}

/* The call for R rows of the room; its result goes to the room's part. */
static inline la_attend_args la_attend_args_of(const la_attend_walk *w, const la_attend_room *own,
                                               int R)
{
    int wide = la_attend_wide(w->d);
    return (la_attend_args){.q = own->q,
                            .ldq = wide,
                            .R = R,
                            .d = w->d,
                            .dv = w->dv,
                            .row_pos = own->pos,
                            .window = w->window,
                            .scale = w->scale,
                            .softcap = w->softcap,
                            .m = own->part_m,
                            .l = own->part_l,
                            .o = own->part_o,
                            .ldo = wide,
                            .scratch = own->scratch};
}

static inline const uint8_t *la_attend_page(const la_attend_pages *p, int i)
{
    return p->base + (size_t)(p->index != NULL ? p->index[i] : i) * p->pitch;
}

/* First token of the chunk in which a row at pos begins. */
static inline int la_attend_begin(const la_attend_walk *w, int pos)
{
    int oldest = w->window > 0 && pos >= w->window ? pos - w->window + 1 : 0;
    return oldest / LA_CHUNK * LA_CHUNK;
}

/* The chunk from token `first` on, of which tokens after `last` concern no row. */
static inline void la_attend_chunk(const la_attend_walk *w, const la_attend_pages *p,
                                   la_attend_args *a, int first, int last)
{
    const uint8_t *k[LA_CHUNK / LA_PAGE], *v[LA_CHUNK / LA_PAGE];
    int n = 0;
    for (; n < LA_CHUNK / LA_PAGE && first + n * LA_PAGE <= last; n++) {
        k[n] = la_attend_page(p, first / LA_PAGE + n);
        v[n] = k[n] + p->k_bytes;
    }
    a->k_pages = k;
    a->v_pages = v;
    a->n_pages = n;
    a->first = first;
    (w->dv != 0 ? la_kernels_mla_attend : la_kernels_attend)(w->k, w->form)(a);
    a->k_pages = a->v_pages = NULL;
}

/* All chunks of R rows; the sum is in the room. */
static inline void la_attend_rows(const la_attend_walk *w, const la_attend_pages *p,
                                  const la_attend_room *own, int R)
{
    la_attend_args a = la_attend_args_of(w, own, R);
    int begin = la_attend_begin(w, own->pos[0]), last = 0;
    for (int r = 0; r < R; r++) {
        int from = la_attend_begin(w, own->pos[r]);
        begin = from < begin ? from : begin;
        last = own->pos[r] > last ? own->pos[r] : last;
        own->m[r] = w->sinks != NULL ? w->sinks[r % w->heads] : -INFINITY;
        own->l[r] = w->sinks != NULL ? 1.0f : 0.0f;
    }
    memset(own->o, 0, (size_t)R * (size_t)a.ldo * sizeof(float));
    for (int first = begin; first <= last; first += LA_CHUNK) {
        a.next = first + LA_CHUNK > last ? NULL : la_attend_page(p, (first + LA_CHUNK) / LA_PAGE);
        a.next_v = a.next != NULL ? a.next + p->k_bytes : NULL;
        la_attend_chunk(w, p, &a, first, last);
        a.again = 1;
        for (int r = 0; r < R; r++) {
            if (own->part_l[r] > 0.0f) {
                w->k->attend_merge(&own->m[r], &own->l[r], own->o + (int64_t)r * a.ldo,
                                   own->part_m[r], own->part_l[r], own->part_o + (int64_t)r * a.ldo,
                                   la_attend_out(w));
            }
        }
    }
}

#endif
