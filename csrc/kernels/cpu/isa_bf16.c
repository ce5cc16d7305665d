/* isa_bf16.c - the BF16 level: bf16 products and attention by vdpbf16ps; the rest stays with the level below.
 *
 * Compiled with the flags setup.py gives this file. Exports la_kernels_fill_bf16; called by table.c.
 */
#define LA_VEC_AVX512
#include "attention_bf16.h"
#include "attention_mla_bf16.h"
#include "gemm_bf16.h"

void la_kernels_fill_bf16(la_kernels *t)
{
    fill_gemm_bf16(t);
    fill_attention_bf16(t);
    fill_mla_bf16(t);
}
