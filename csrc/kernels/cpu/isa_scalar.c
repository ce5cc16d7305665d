/* isa_scalar.c - the plain C level: fills every slot of the kernel list.
 *
 * Compiled without ISA flags. Exports la_kernels_fill_scalar; called by table.c.
 */
#include "act.h"
#include "attention.h"
#include "attention_mla_fma.h"
#include "fp8.h"
#include "gemm_scalar.h"
#include "gemm_wide.h"
#include "rows.h"
#include "sample.h"

void la_kernels_fill_scalar(la_kernels *t)
{
    t->act_bf16 = act_bf16;
    t->act_i8 = act_i8;
    t->act_i8x2 = act_i8x2;
    t->fp8_encode = fp8_encode;
    t->fp8_decode = fp8_decode;
    fill_gemm(t);
    t->gemm_f32_f64 = gemm_f32_f64;
    fill_rows(t);
    fill_attention(t);
    fill_mla(t);
    fill_sample(t);
}
