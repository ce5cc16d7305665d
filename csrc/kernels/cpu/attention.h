/* attention.h - attention and page slots of the levels without dots, and the join of chunks.
 *
 * Owns the entries of the list over the fma tile (attention_fma.h) and the integer scores
 * (attention_scores.h); attention_vnni.h and attention_bf16.h replace what their instructions do better.
 * Included by isa_scalar.c, isa_avx2.c and isa_avx512.c, which call fill_attention.
 */
#ifndef LA_ATTENTION_H
#define LA_ATTENTION_H

#include "attention_fma.h"
#include "attention_scores.h"
#include "attention_store.h"

static void attend_f32(const la_attend_args *g)
{
    static const attend_form form = {
        LA_KV_F32,          {ATTEND_ROWS_F32, 1, 4, attend_panel_f32, NULL, NULL},
        attend_row_f32,     {ATTEND_ROWS_F32, 1, 4, attend_panel_f32, NULL, NULL},
        attend_weights_f32, NULL};
    attend_run(g, &form);
}

static void attend_bf16(const la_attend_args *g)
{
    static const attend_form form = {
        LA_KV_BF16,           {ATTEND_ROWS_SPLIT, 2, 4, attend_panel_split, NULL, NULL},
        attend_row_split,     {ATTEND_ROWS_SPLIT, 2, 4, attend_panel_split, NULL, NULL},
        attend_weights_split, NULL};
    attend_run(g, &form);
}

static void attend_i8(const la_attend_args *g)
{
    static const attend_form form = {
        LA_KV_I8,
        {ATTEND_ROWS_CODES, 4, ATTEND_Q_BYTES, attend_panel_scores, NULL, NULL},
        attend_row_scores,
        {ATTEND_ROWS_CODES, 4, 4, attend_panel_i8, NULL, NULL},
        attend_weights_split,
        NULL};
    attend_run(g, &form);
}

static void attend_f8(const la_attend_args *g)
{
    static const attend_form form = {LA_KV_F8,
                                     {ATTEND_ROWS_CODES, 4, 4, attend_panel_f8, NULL, NULL},
                                     attend_row_split,
                                     {ATTEND_ROWS_CODES, 4, 4, attend_panel_f8, NULL, NULL},
                                     attend_weights_split,
                                     NULL};
    attend_run(g, &form);
}

static void attend_merge(float *m, float *l, float *o, float m2, float l2, const float *o2, int d)
{
    if (m2 == -INFINITY) {
        return;
    }
    float top = m2 > *m ? m2 : *m;
    float e1 = attend_exp(*m - top), e2 = attend_exp(m2 - top);
    vf lane1 = v_set1(e1), lane2 = v_set1(e2);
    int i = 0;
    for (; i + VL <= d; i += VL) {
        v_storeu(o + i, v_fma(v_loadu(o2 + i), lane2, v_mul(v_loadu(o + i), lane1)));
    }
    if (i < d) {
        int n = d - i;
        v_storen(o + i, v_fma(v_loadn(o2 + i, n), lane2, v_mul(v_loadn(o + i, n), lane1)), n);
    }
    *l = *l * e1 + l2 * e2;
    *m = top;
}

static void attend_finish(const float *o, float l, float *out, int d)
{
    vf inverse = v_set1(l != 0.0f ? 1.0f / l : 0.0f);
    int i = 0;
    for (; i + VL <= d; i += VL) {
        v_storeu(out + i, v_mul(v_loadu(o + i), inverse));
    }
    if (i < d) {
        v_storen(out + i, v_mul(v_loadn(o + i, d - i), inverse), d - i);
    }
}

static void fill_attention(la_kernels *t)
{
    t->kv_store_f32 = kv_store_f32;
    t->kv_store_bf16 = kv_store_bf16;
    t->kv_store_i8 = kv_store_i8;
    t->kv_store_f8 = kv_store_f8;
    t->attend_f32 = attend_f32;
    t->attend_bf16 = attend_bf16;
    t->attend_i8 = attend_i8;
    t->attend_f8 = attend_f8;
    t->attend_merge = attend_merge;
    t->attend_finish = attend_finish;
}

#endif
