/* la_ptx_mma.h - matrix products of a warp (mma.sync) and how their operands move (ldmatrix, stmatrix).
 *
 * Owns the wrappers of products with operands in registers. With g = lane / 4 and t = lane % 4, a 16-bit
 * A of 16 x 16 holds in a[0] row g, columns 2t and 2t + 1; a[1] the row g + 8; a[2], a[3] the same 8 columns
 * on. B of 16 x 8 holds in b[0] rows 2t, 2t + 1 of column g; b[1] 8 rows on. D of 16 x 8 holds in d[0], d[1]
 * row g, columns 2t, 2t + 1; d[2], d[3] row g + 8. With 8-bit operands four elements share a word and
 * depths double. Included by la_ptx.h.
 */
#ifndef LA_PTX_MMA_H
#define LA_PTX_MMA_H

#include "la_kernel.h"

/* d[16 x 8] += a[16 x 16] b[16 x 8] */
LA_DEV void la_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    LA_PTX(
        la_emu_mma(LA_EMU_BF16, d, a, b),
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),
                     "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]),
                     "r"(a[3]), "r"(b[0]), "r"(b[1])));
}

LA_DEV void la_mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    LA_PTX(
        la_emu_mma(LA_EMU_F16, d, a, b),
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),
                     "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]),
                     "r"(a[3]), "r"(b[0]), "r"(b[1])));
}

/* d[16 x 8] += a[16 x 32] b[32 x 8] of E4M3 codes (sm_89) */
LA_DEV void la_mma_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    LA_PTX(
        la_emu_mma(LA_EMU_E4M3, d, a, b),
        asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),
                     "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]),
                     "r"(a[3]), "r"(b[0]), "r"(b[1])));
}

/* d[16 x 8] += a[16 x 32] b[32 x 8] of signed bytes */
LA_DEV void la_mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    LA_PTX(
        la_emu_mma_s8(d, a, b),
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+r"(d[0]),
                     "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]),
                     "r"(a[3]), "r"(b[0]), "r"(b[1])));
}

/* Loads four 8 x 8 matrices of 16-bit elements. Lanes 8i..8i+7 bring the addresses of the rows of matrix
 * i, 16 bytes each; every lane gets of it columns 2t, 2t + 1 of row g. */
LA_DEV void la_ldmatrix_x4(uint32_t (&r)[4], uint32_t row)
{
    LA_PTX(la_emu_ldmatrix(r, row, 4, 0),
           asm volatile(
               "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]),
               "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory"));
}

/* The same, each matrix transposed: column g, rows 2t and 2t + 1. */
LA_DEV void la_ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row)
{
    LA_PTX(
        la_emu_ldmatrix(r, row, 4, 1),
        asm volatile(
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]),
            "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory"));
}

/* Two matrices; addresses of lanes 16..31 are not read. */
LA_DEV void la_ldmatrix_x2(uint32_t (&r)[2], uint32_t row)
{
    LA_PTX(la_emu_ldmatrix(r, row, 2, 0),
           asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]),
                        "=r"(r[1]) : "r"(row) : "memory"));
}

LA_DEV void la_ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row)
{
    LA_PTX(
        la_emu_ldmatrix(r, row, 2, 1),
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]),
                     "=r"(r[1]) : "r"(row) : "memory"));
}

/* Stores four 8 x 8 matrices, the inverse of la_ldmatrix_x4 (sm_90). */
LA_DEV void la_stmatrix_x4(uint32_t row, const uint32_t (&r)[4])
{
    LA_PTX(
        la_emu_stmatrix(row, r, 4, 0),
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
                     "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory"));
}

LA_DEV void la_stmatrix_x4_trans(uint32_t row, const uint32_t (&r)[4])
{
    LA_PTX(la_emu_stmatrix(row, r, 4, 1),
           asm volatile(
               "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory"));
}

LA_DEV void la_stmatrix_x2(uint32_t row, const uint32_t (&r)[2])
{
    LA_PTX(la_emu_stmatrix(row, r, 2, 0),
           asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(row),
                        "r"(r[0]), "r"(r[1]) : "memory"));
}

LA_DEV void la_stmatrix_x2_trans(uint32_t row, const uint32_t (&r)[2])
{
    LA_PTX(la_emu_stmatrix(row, r, 2, 1),
           asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row),
                        "r"(r[0]), "r"(r[1]) : "memory"));
}

#endif
