/* gemm_sm90.h - products of 16-bit rows and weights on Hopper: out = finish(x W^T + bias).
 *
 * Owns the kernel, its plan of shared memory and the order of its tiles. K is cut into pieces by N and K
 * alone. Invariant: an element is the sum of its pieces in their order, each one chain of products of 16 k, by
 * the same instruction for every M, so its bits depend on its row and column only; who adds the pieces up, a
 * block (many rows) or a second launch (few, so that pieces fill the GPU), changes nothing.
 *
 * A persistent grid takes tiles of 128 x BN. A warpgroup of which one thread works loads K in blocks of 64 by
 * TMA into a ring; two warpgroups multiply 64 rows each:
 *
 *     x  [stage][128 rows][128 bytes]   swizzled       full[stage]:  one arrival and the bytes
 *     w  [stage][ BN rows][128 bytes]   swizzled       empty[stage]: one arrival of each multiplying warp
 *
 * Weights of the first stages are asked for before the wait for what makes the rows. Out of bounds TMA reads
 * zeros, so tails of M, N and K need no code in the loop. Launched by gemm_sm90.cu.
 */
#ifndef LA_GEMM_SM90_H
#define LA_GEMM_SM90_H

#include "la_ptx_sm90.h"
#include "product_finish.h"

typedef struct la_gemm_sm90_args {
    la_tensor_map x; /* [M][K], boxes of 64 x 128, 128-byte swizzle */
    la_tensor_map w; /* [whole units of N][K], boxes of 64 x BN, 128-byte swizzle */
    la_product_args p;
    int pieces; /* of K */
    float
        *partial; /* [piece][M][whole tiles of N]: a block makes one piece; NULL: it adds up all */
} la_gemm_sm90_args;

template <int BN, int STAGES> struct la_gemm_sm90_plan {
    static constexpr int BM = 128, BK = 64, THREADS = 384;
    static constexpr int TOGETHER = 16; /* tiles of rows that run side by side, for L2 */
    static constexpr uint32_t X = BM * 128, W = BN * 128, W_AT = STAGES * X;
    static constexpr uint32_t FULL_AT = W_AT + STAGES * W, EMPTY_AT = FULL_AT + STAGES * 8;
    static constexpr uint32_t SMEM = EMPTY_AT + STAGES * 8;
    static_assert(BN % LA_UNIT == 0 && BN <= 256, "columns are finished in units");
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

/* What a block does at a time: a tile, and the pieces of K from `first` to before `end`. */
typedef struct la_gemm_item {
    int m0, n0, first, end;
} la_gemm_item;

template <int BM, int BN> LA_DEV int la_gemm_items(const la_gemm_sm90_args &a)
{
    const int tiles = ((a.p.M + BM - 1) / BM) * ((a.p.N + BN - 1) / BN);
    return a.partial != NULL ? tiles * a.pieces : tiles;
}

template <class plan, int BN> LA_DEV la_gemm_item la_gemm_item_of(const la_gemm_sm90_args &a, int i)
{
    const int tiles_m = (a.p.M + plan::BM - 1) / plan::BM, tiles_n = (a.p.N + BN - 1) / BN;
    const int tile = a.partial != NULL ? i / a.pieces : i, piece = i - tile * a.pieces;
    const int top = tile / (plan::TOGETHER * tiles_n) * plan::TOGETHER;
    const int in = tile - top * tiles_n;
    const int high = tiles_m - top < plan::TOGETHER ? tiles_m - top : plan::TOGETHER;
    la_gemm_item at = {(top + in % high) * plan::BM, in / high * BN, 0, a.pieces};
    if (a.partial != NULL) {
        at.first = piece;
        at.end = piece + 1;
    }
    return at;
}

/* First K of a piece. */
LA_DEV int la_gemm_edge(const la_gemm_sm90_args &a, int piece)
{
    const int blocks = (a.p.K + 63) / 64;
    return (int)((int64_t)blocks * piece / a.pieces) * 64;
}

/* The loading thread: every K block of every item of this block, first the weights of those that find an
 * unused stage. */
template <int BN, int STAGES> LA_DEV void la_gemm_load(const la_gemm_sm90_args &a, int items)
{
    using plan = la_gemm_sm90_plan<BN, STAGES>;
    const uint32_t smem = la_smem();
    for (int rows = 0; rows < 2; rows++) { /* 0: the weights alone */
        la_ring_place at = {0, 0};
        int n = 0;
        if (rows) {
            la_grid_wait();
        }
        for (int i = la_block_x(); i < items && (rows || n < STAGES); i += la_grid_x()) {
            const la_gemm_item item = la_gemm_item_of<plan, BN>(a, i);
            int end = la_gemm_edge(a, item.end);
            end = end < a.p.K ? end : a.p.K;
            for (int k = la_gemm_edge(a, item.first); k < end && (rows || n < STAGES);
                 k += plan::BK, n++) {
                const uint32_t full = smem + plan::FULL_AT + at.stage * 8;
                if (n >= STAGES) {
                    la_mbar_wait(smem + plan::EMPTY_AT + at.stage * 8, at.parity ^ 1);
                }
                if (!rows || n >= STAGES) {
                    la_mbar_expect(full, plan::X + plan::W);
                    la_tma_load(smem + plan::W_AT + at.stage * plan::W, &a.w, full, k, item.n0);
                }
                if (rows) {
                    la_tma_load(smem + at.stage * plan::X, &a.x, full, k, item.m0);
                }
                la_ring_step<STAGES>(&at);
            }
        }
    }
}

/* A warp's 16 rows of a tile: to the partial sums of a piece, or finished. */
template <int BN>
LA_DEV void la_gemm_store(const la_gemm_sm90_args &a, const float (&d)[BN / 2],
                          const la_gemm_item &item, int m0)
{
    const int columns = (a.p.N + BN - 1) / BN * BN, lane = la_lane();
    float *to = a.partial;
    if (to != NULL) {
        to += ((int64_t)item.first * a.p.M + m0 + lane / 4) * columns + item.n0 + lane % 4 * 2;
    }
    LA_UNROLL
    for (int u = 0; u < BN / LA_UNIT; u++) {
        float acc[4][4];
        LA_UNROLL
        for (int j = 0; j < 4; j++) {
            LA_UNROLL
            for (int i = 0; i < 4; i++) {
                acc[j][i] = d[(u * 4 + j) * 4 + i];
            }
            LA_UNROLL
            for (int i = 0; i < 2; i++) { /* rows 8 apart */
                if (to != NULL && m0 + lane / 4 + i * 8 < a.p.M) {
                    const la_u32x2 pair = {la_bits(acc[j][2 * i]), la_bits(acc[j][2 * i + 1])};
                    la_stg((la_u32x2 *)(void *)(to + (int64_t)i * 8 * columns + u * 32 + j * 8),
                           pair);
                }
            }
        }
        if (to == NULL && item.n0 + u * LA_UNIT < a.p.N) {
            la_finish_unit(a.p, m0, item.n0 + u * LA_UNIT, acc);
        }
    }
}

/* A multiplying warpgroup: its 64 rows of every item of this block. */
template <la_wgmma_type TYPE, int BN, int STAGES>
LA_DEV void la_gemm_multiply(const la_gemm_sm90_args &a, int group, int items)
{
    using plan = la_gemm_sm90_plan<BN, STAGES>;
    const uint32_t smem = la_smem();
    la_ring_place at = {0, 0};
    float d[BN / 2], sum[BN / 2];
    for (int i = la_block_x(); i < items; i += la_grid_x()) {
        const la_gemm_item item = la_gemm_item_of<plan, BN>(a, i);
        for (int piece = item.first; piece < item.end; piece++) {
            const int begin = la_gemm_edge(a, piece);
            int end = la_gemm_edge(a, piece + 1), last = 0;
            end = end < a.p.K ? end : a.p.K;
            for (int k = begin; k < end; k += plan::BK) {
                la_mbar_wait(smem + plan::FULL_AT + at.stage * 8, at.parity);
                const uint64_t x = la_wgmma_desc_rows(smem + at.stage * plan::X + group * 8192);
                const uint64_t w = la_wgmma_desc_rows(smem + plan::W_AT + at.stage * plan::W);
                la_wgmma_pin(d);
                la_wgmma_fence();
                LA_UNROLL
                for (int step = 0; step < 4; step++) {
                    la_wgmma_ss<TYPE, BN>(d, x + step * 2, w + step * 2, k - begin + step > 0);
                }
                la_wgmma_commit();
                la_wgmma_pin(d);
                la_wgmma_wait<1>(); /* the block before is done with its stage */
                if (k > begin && la_lane() == 0) {
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
            LA_UNROLL
            for (int j = 0; j < BN / 2; j++) {
                sum[j] = piece == item.first ? d[j] : sum[j] + d[j];
            }
        }
        la_gemm_store<BN>(a, sum, item, item.m0 + group * 64 + la_thread() % 128 / 32 * 16);
    }
}

template <la_wgmma_type TYPE, int BN, int STAGES>
LA_KERNEL_BOUNDS(la_gemm_sm90, la_gemm_sm90_args, 384, 1)
{
    using plan = la_gemm_sm90_plan<BN, STAGES>;
    const uint32_t smem = la_smem();
    const int group = la_uniform(la_thread() / 128), items = la_gemm_items<plan::BM, BN>(a);
    if (la_thread() == 0) {
        for (int i = 0; i < STAGES; i++) {
            la_mbar_init(smem + plan::FULL_AT + i * 8, 1);
            la_mbar_init(smem + plan::EMPTY_AT + i * 8, 8);
        }
        la_fence_mbar_init();
    }
    la_sync_block();
    la_grid_release();
    if (group == 2) {
        la_regs_shrink<40>();
        if (la_thread() % 128 == 0) {
            la_gemm_load<BN, STAGES>(a, items);
        }
    }
    else {
        la_regs_grow<232>();
        la_sync_warp(); /* or the compiler keeps a value across the grant, and spills it */
        /* Rows that are added to, and partial sums that are still read. No test misses this wait: the loader's
         * comes before the rows whose arrival is waited for below. But what it expects of the first stages it
         * said before its wait, so that copies alone would order these warps' own loads and stores behind it. */
        la_grid_wait();
        la_gemm_multiply<TYPE, BN, STAGES>(a, group, items);
    }
}

enum { LA_MERGE_WARPS = 8 };

/* The pieces of few rows, added up in their order and finished: a warp takes a unit of a row, a lane a column. */
template <int BN> LA_KERNEL(la_gemm_merge, la_gemm_sm90_args)
{
    la_grid_wait();
    la_grid_release();
    const int unit = la_block_x() * LA_MERGE_WARPS + la_thread() / 32, m = la_block_y();
    const int columns = (a.p.N + BN - 1) / BN * BN;
    if (unit * LA_UNIT >= a.p.N) {
        return;
    }
    const float *from = a.partial + (int64_t)m * columns + unit * LA_UNIT + la_lane();
    float y = la_ldg(from);
    for (int piece = 1; piece < a.pieces; piece++) {
        y += la_ldg(from + (int64_t)piece * a.p.M * columns);
    }
    la_finish_lane(a.p, m, unit * LA_UNIT, y);
}

#endif
