/* gemm_bf16_sm90.h - bf16 matrix product of Hopper: out[M][N] = x[M][K] w[N][K]^T (+ bias).
 *
 * Owns the kernel and its plan of shared memory. Invariant: the order of additions of an element is that
 * of K alone, so its bits depend on its row and column only, whatever M and the grid are. Not launched by the
 * backend yet: tests do.
 *
 * A persistent grid takes tiles of 128 x BN. A warpgroup of which one thread works loads K in blocks of 64 by
 * TMA into a ring; two warpgroups multiply 64 rows each:
 *
 *     x  [stage][128 rows][128 bytes]   swizzled       full[stage]:  one arrival and the bytes
 *     w  [stage][ BN rows][128 bytes]   swizzled       empty[stage]: one arrival of each multiplying warp
 *     out [group][BN / 64][64 rows][128 bytes]         swizzled, stored by TMA while the next tile runs
 *
 * Out of bounds TMA reads zeros and writes nothing, so tails of M, N and K need no code but the bias's.
 */
#ifndef LA_GEMM_BF16_SM90_H
#define LA_GEMM_BF16_SM90_H

#include "la_ptx_sm90.h"

typedef struct la_gemm_bf16_args {
    la_tensor_map x;   /* [M][K] bf16, boxes of 64 x 128, 128-byte swizzle */
    la_tensor_map w;   /* [N][K] bf16, boxes of 64 x BN, 128-byte swizzle */
    la_tensor_map out; /* [M][N] bf16, boxes of 64 x 64, 128-byte swizzle */
    const float *bias; /* [N] or NULL, 8-byte aligned */
    int M, N, K;       /* N and K multiples of 8 */
} la_gemm_bf16_args;

template <int BN, int STAGES> struct la_gemm_bf16_plan {
    static constexpr int BM = 128, BK = 64, THREADS = 384;
    static constexpr uint32_t X = BM * 128, W = BN * 128, OUT = 64 * BN * 2;
    static constexpr uint32_t W_AT = STAGES * X, OUT_AT = W_AT + STAGES * W;
    static constexpr uint32_t FULL_AT = OUT_AT + 2 * OUT, EMPTY_AT = FULL_AT + STAGES * 8;
    static constexpr uint32_t SMEM = EMPTY_AT + STAGES * 8;
    static_assert(BN % 64 == 0 && BN <= 256, "the output is stored in boxes of 64 columns");
    static_assert(SMEM <= 232448, "stages do not fit into shared memory");
};

/* Where the ring is: the stage, and the parity of its round. */
typedef struct la_ring_place {
    int stage;
    uint32_t parity;
} la_ring_place;

template <int STAGES> LA_DEV void la_ring_step(la_ring_place *at)
{
    if (++at->stage == STAGES) {
        at->stage = 0;
        at->parity ^= 1;
    }
}

/* The loading thread: every K block of every tile of this block. */
template <int BN, int STAGES> LA_DEV void la_gemm_bf16_load(const la_gemm_bf16_args &a, int tiles)
{
    using plan = la_gemm_bf16_plan<BN, STAGES>;
    const uint32_t smem = la_smem();
    const int tiles_m = (a.M + plan::BM - 1) / plan::BM;
    la_ring_place at = {0, 0};
    for (int tile = la_block_x(); tile < tiles; tile += la_grid_x()) {
        const int m0 = tile % tiles_m * plan::BM, n0 = tile / tiles_m * BN;
        for (int k = 0; k < a.K; k += plan::BK) {
            const uint32_t full = smem + plan::FULL_AT + at.stage * 8;
            la_mbar_wait(smem + plan::EMPTY_AT + at.stage * 8, at.parity ^ 1);
            la_mbar_expect(full, plan::X + plan::W);
            la_tma_load(smem + at.stage * plan::X, &a.x, full, k, m0);
            la_tma_load(smem + plan::W_AT + at.stage * plan::W, &a.w, full, k, n0);
            la_ring_step<STAGES>(&at);
        }
    }
}

/* Adds the bias, rounds to bf16 and stores the 64 rows of a warpgroup by TMA. */
template <int BN>
LA_DEV void la_gemm_bf16_store(const la_gemm_bf16_args &a, float (&d)[BN / 2], uint32_t out, int m0,
                               int n0)
{
    const int thread = la_thread() % 128, lane = la_lane(), group = la_thread() / 128;
    const int row = thread / 32 * 16 + (lane & 15); /* that the lane addresses */
    if (thread == 0) {
        la_bulk_wait_read<0>(); /* the last tile has left the buffer */
    }
    la_bar_sync(1 + group, 128);
    LA_UNROLL
    for (int j = 0; j < BN / 8; j += 2) {
        uint32_t r[4];
        LA_UNROLL
        for (int i = 0; i < 4; i++) {
            const int column = n0 + (j + i / 2) * 8 + lane % 4 * 2;
            float lo = d[(j + i / 2) * 4 + i % 2 * 2], hi = d[(j + i / 2) * 4 + i % 2 * 2 + 1];
            if (a.bias && column < a.N) {
                const la_u32x2 pair = la_ldg(reinterpret_cast<const la_u32x2 *>(a.bias + column));
                lo += la_float(pair.x);
                hi += la_float(pair.y);
            }
            r[i] = la_bf16x2(lo, hi);
        }
        const uint32_t chunk = (uint32_t)((j + lane / 16) % 8) ^ (uint32_t)(row % 8);
        la_stmatrix_x4(out + j / 8 * 8192 + row * 128 + chunk * 16, r);
    }
    la_fence_async();
    la_bar_sync(1 + group, 128);
    if (thread == 0) {
        LA_UNROLL
        for (int j = 0; j < BN / 64; j++) {
            la_tma_store(&a.out, out + j * 8192, n0 + j * 64, m0);
        }
        la_bulk_commit();
    }
}

/* A multiplying warpgroup: its 64 rows of every tile of this block. */
template <int BN, int STAGES>
LA_DEV void la_gemm_bf16_multiply(const la_gemm_bf16_args &a, int group, int tiles)
{
    using plan = la_gemm_bf16_plan<BN, STAGES>;
    const uint32_t smem = la_smem(), out = smem + plan::OUT_AT + group * plan::OUT;
    const int tiles_m = (a.M + plan::BM - 1) / plan::BM;
    la_ring_place at = {0, 0};
    float d[BN / 2];
    for (int tile = la_block_x(); tile < tiles; tile += la_grid_x()) {
        int last = 0;
        for (int k = 0; k < a.K; k += plan::BK) {
            la_mbar_wait(smem + plan::FULL_AT + at.stage * 8, at.parity);
            const uint64_t x = la_wgmma_desc_rows(smem + at.stage * plan::X + group * 8192);
            const uint64_t w = la_wgmma_desc_rows(smem + plan::W_AT + at.stage * plan::W);
            la_wgmma_pin(d);
            la_wgmma_fence();
            LA_UNROLL
            for (int step = 0; step < 4; step++) {
                la_wgmma_ss<LA_WGMMA_BF16, BN>(d, x + step * 2, w + step * 2, k + step > 0);
            }
            la_wgmma_commit();
            la_wgmma_pin(d);
            la_wgmma_wait<1>(); /* the block before is done with its stage */
            if (k > 0 && la_lane() == 0) {
                la_mbar_arrive(smem + plan::EMPTY_AT + last * 8);
            }
            last = at.stage;
            la_ring_step<STAGES>(&at);
        }
        la_wgmma_wait<0>();
        la_wgmma_pin(d);
        if (la_lane() == 0) {
            la_mbar_arrive(smem + plan::EMPTY_AT + last * 8);
        }
        la_gemm_bf16_store<BN>(a, d, out, tile % tiles_m * plan::BM + group * 64,
                               tile / tiles_m * BN);
    }
    if (la_thread() % 128 == 0) {
        la_bulk_wait<0>();
    }
}

template <int BN, int STAGES> LA_KERNEL_BOUNDS(la_gemm_bf16_sm90, la_gemm_bf16_args, 384, 1)
{
    using plan = la_gemm_bf16_plan<BN, STAGES>;
    const uint32_t smem = la_smem();
    const int group = la_uniform(la_thread() / 128);
    if (la_thread() == 0) {
        for (int i = 0; i < STAGES; i++) {
            la_mbar_init(smem + plan::FULL_AT + i * 8, 1);
            la_mbar_init(smem + plan::EMPTY_AT + i * 8, 8);
        }
        la_fence_mbar_init();
    }
    la_sync_block();
    la_grid_release();
    la_grid_wait();
    const int tiles = ((a.M + plan::BM - 1) / plan::BM) * ((a.N + BN - 1) / BN);
    if (group == 2) {
        la_regs_shrink<40>();
        if (la_thread() % 128 == 0) {
            la_gemm_bf16_load<BN, STAGES>(a, tiles);
        }
    }
    else {
        la_regs_grow<232>();
        la_sync_warp(); /* or the compiler keeps a value across the grant, and spills it */
        la_gemm_bf16_multiply<BN, STAGES>(a, group, tiles);
    }
}

#endif
