/* isa_avx2.c - the AVX2 level: every slot over vec_avx2.h.
 *
 * Compiled with the flags setup.py gives this file. Exports la_kernels_fill_avx2; called by table.c.
 */
#define LA_VEC_AVX2
#include "act.h"
#include "attention.h"
#include "attention_mla_fma.h"
#include "fp8.h"
#include "gemm.h"
#include "gemm_q.h"
#include "gemm_wide.h"
#include "probe.h"
#include "rows.h"
#include "sample.h"

void la_kernels_fill_avx2(la_kernels *t)
{
    t->act_bf16 = act_bf16;
    t->act_i8 = act_i8;
    t->act_i8x2 = act_i8x2;
    t->fp8_encode = fp8_encode;
    t->fp8_decode = fp8_decode;
    fill_gemm(t);
    t->gemm_f32_f64 = gemm_f32_f64;
    fill_gemm_q(t);
    fill_probe(t);
    fill_rows(t);
    fill_attention(t);
    fill_mla(t);
    fill_sample(t);
}
