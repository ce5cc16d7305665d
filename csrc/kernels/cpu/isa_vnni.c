/* isa_vnni.c - the VNNI level: integer products and scores by vpdpbusd; the rest stays with the level below.
 *
 * Compiled with the flags setup.py gives this file. Exports la_kernels_fill_vnni; called by table.c.
 */
#define LA_VEC_AVX512
#include "attention_vnni.h"
#include "gemm_vnni.h"

void la_kernels_fill_vnni(la_kernels *t)
{
    fill_gemm_vnni(t);
    fill_attention_vnni(t);
}
