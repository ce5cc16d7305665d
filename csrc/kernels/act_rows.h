/* act_rows.h - activation rows in the form that a product takes, made by a table of kernels.
 *
 * Owns where a converted row and its groups lie, for the engine and for products on user memory alike.
 * Invariant: a row is made from its own x alone, so who converts which rows changes no bit of them.
 * Included by model/backend_cpu_linear.c, python/py_kernels.c and python/py_kernels_packed.c.
 */
#ifndef LA_ACT_ROWS_H
#define LA_ACT_ROWS_H

#include "kernels.h"

/* Activation rows as a product takes them. */
typedef struct la_act_rows {
    la_act_form form;
    int K, group, groups; /* groups of a row, 0: none */
    uint8_t *a;           /* rows of pitch bytes, 64-byte aligned */
    size_t pitch;
    la_act_meta *meta;    /* [rows][groups]; NULL: no groups */
    const int32_t *order; /* [K] which k of a row goes to each place; NULL: all stay */
    la_rounding rounding; /* before all else; LA_ROUND_NONE: none */
} la_act_rows;

/* All but where they lie. */
static inline la_act_rows la_act_rows_plan(la_act_form form, int K, int group)
{
    size_t width = form == LA_ACT_F32 ? 4 : form == LA_ACT_BF16 ? 2 : 1;
    return (la_act_rows){.form = form,
                         .K = K,
                         .group = group,
                         .groups = group != 0 ? (K + group - 1) / group : 0,
                         .pitch = ((size_t)K * width + 63) / 64 * 64};
}

/* x [K] becomes row m; fp32 rows are x, which may lie there already, with zeros up to 64 bytes. */
static inline void la_act_rows_convert(const la_kernels *k, const la_act_rows *r, int m,
                                       const float *x)
{
    uint8_t *row = r->a + r->pitch * (size_t)m;
    la_act_meta *meta = r->meta != NULL ? r->meta + (int64_t)m * r->groups : NULL;
    size_t n = (size_t)r->K * sizeof(float);
    switch (r->form) {
    case LA_ACT_BF16: k->act_bf16(x, r->K, r->group, (uint16_t *)(void *)row, meta); break;
    case LA_ACT_I8: k->act_i8(x, r->K, r->group, (int8_t *)row, meta); break;
    default:
        if ((const uint8_t *)x != row) {
            memcpy(row, x, n);
        }
        memset(row + n, 0, (n + 63) / 64 * 64 - n);
    }
}

#endif
