/* attention_mla_bf16.h - attention over latent pages by vdpbf16ps.
 *
 * Owns the entries of the BF16 level: the dot tiles of attention_bf16.h over bf16 lines, which fp8 pages
 * are opened to. Invariant: one instruction family for every number of rows. Included by isa_bf16.c.
 */
#ifndef LA_ATTENTION_MLA_BF16_H
#define LA_ATTENTION_MLA_BF16_H

#include "attention_bf16.h"
#include "attention_mla.h"

LA_INLINE void mla_run_dot(const la_attend_args *g, const mla_pages *pages)
{
    static const attend_form form = {
        LA_KV_BF16,         {ATTEND_ROWS, 2, 2, attend_panel_lines, NULL, NULL},
        attend_row_dot,     {ATTEND_ROWS, 2, 2, attend_panel_lines, NULL, NULL},
        attend_weights_dot, NULL};
    mla_run(g, &form, pages);
}

static void mla_attend_bf16_dot(const la_attend_args *g)
{
    static const mla_pages pages = {NULL, mla_turn_bf16};
    mla_run_dot(g, &pages);
}

static void mla_attend_f8_dot(const la_attend_args *g)
{
    static const mla_pages pages = {mla_open_f8, mla_turn_bf16};
    mla_run_dot(g, &pages);
}

static void fill_mla_bf16(la_kernels *t)
{
    t->mla_attend_bf16 = mla_attend_bf16_dot;
    t->mla_attend_f8 = mla_attend_f8_dot;
}

#endif
