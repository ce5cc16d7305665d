/* act_rows.h - activation rows in the form that a product takes, made by a table of kernels.
 *
 * Owns where a converted row and its groups lie, for the engine and for products on user memory alike.
 * Invariant: a row is made from its own x alone, so who converts which rows changes no bit of them.
 * Included by model/backend_cpu.h and by python/py_kernels.c, _packed.c and _moe.c.
 */
#ifndef LA_ACT_ROWS_H
#define LA_ACT_ROWS_H

#include "kernels.h"

/* Activation rows as a product takes them. */
typedef struct la_act_rows {
    la_act_form form;
    int K, group, groups; /* groups of a lane, 0: none */
    int lanes;            /* rows of a product that make one row: 2 of LA_ACT_I8X2, else 1 */
    uint8_t *a;           /* [rows][lanes] of pitch bytes, 64-byte aligned */
    size_t pitch;
    la_act_meta *meta;    /* [rows][lanes][groups]; NULL: no groups */
    const int32_t *order; /* [K] which k of a row goes to each place; NULL: all stay */
    la_rounding rounding; /* before all else; LA_ROUND_NONE: none */
} la_act_rows;

enum { LA_ACT_I8_GROUP = 64 }; /* most k that share the scale of an int8 row in the engine */

/* k of an activation group beside a weight's groups. */
static inline int la_act_rows_group(la_act_form form, la_format f)
{
    return form == LA_ACT_I8 && f.group > LA_ACT_I8_GROUP ? LA_ACT_I8_GROUP : f.group;
}

/* All but where they lie. */
static inline la_act_rows la_act_rows_plan(la_act_form form, int K, int group)
{
    size_t width = la_act_is_float(form) ? 4 : form == LA_ACT_BF16 ? 2 : 1;
    return (la_act_rows){.form = form,
                         .K = K,
                         .group = group,
                         .groups = group != 0 ? (K + group - 1) / group : 0,
                         .lanes = form == LA_ACT_I8X2 ? 2 : 1,
                         .pitch = ((size_t)K * width + 63) / 64 * 64};
}

/* Where row m lies. */
static inline uint8_t *la_act_rows_at(const la_act_rows *r, int m)
{
    return r->a + r->pitch * (size_t)m * (size_t)r->lanes;
}

static inline la_act_meta *la_act_rows_meta(const la_act_rows *r, int m)
{
    return r->meta != NULL ? r->meta + (int64_t)m * r->lanes * r->groups : NULL;
}

/* x [K] becomes row m; fp32 rows are x, which may lie there already, with zeros up to 64 bytes. */
static inline void la_act_rows_convert(const la_kernels *k, const la_act_rows *r, int m,
                                       const float *x)
{
    uint8_t *row = la_act_rows_at(r, m);
    la_act_meta *meta = la_act_rows_meta(r, m);
    size_t n = (size_t)r->K * sizeof(float);
    switch (r->form) {
    case LA_ACT_BF16: k->act_bf16(x, r->K, r->group, (uint16_t *)(void *)row, meta); break;
    case LA_ACT_I8: k->act_i8(x, r->K, r->group, (int8_t *)row, meta); break;
    case LA_ACT_I8X2: k->act_i8x2(x, r->K, r->group, (int8_t *)row, r->pitch, meta); break;
    default:
        if ((const uint8_t *)x != row) {
            memcpy(row, x, n);
        }
        memset(row + n, 0, (n + 63) / 64 * 64 - n);
    }
}

/* n units of a weight side by side. */
typedef struct la_units {
    const uint8_t *w; /* the first */
    size_t pitch;     /* bytes from one to the next */
    int n;
    la_format f;
} la_units;

/* The product of rows row0 .. row0+rows-1 with such units, to tile [rows][lanes][32 n]. */
static inline la_gemm la_act_rows_gemm(const la_act_rows *r, int row0, int rows, la_units u,
                                       float *tile)
{
    return (la_gemm){.w = u.w,
                     .w_pitch = u.pitch,
                     .n_units = u.n,
                     .K = r->K,
                     .f = u.f,
                     .a = la_act_rows_at(r, row0),
                     .a_pitch = r->pitch,
                     .meta = la_act_rows_meta(r, row0),
                     .M = rows * r->lanes,
                     .c = tile,
                     .ldc = u.n * LA_UNIT,
                     .fold = r->group};
}

/* Row m of what a product of such rows left in g->c: lanes are added up in the first. Once a row. */
static inline float *la_act_rows_result(const la_kernels *k, const la_act_rows *r, const la_gemm *g,
                                        int m)
{
    float *y = g->c + (int64_t)m * r->lanes * g->ldc;
    if (r->lanes == 2) {
        k->add(y + g->ldc, y, g->n_units * LA_UNIT);
    }
    return y;
}

#endif
