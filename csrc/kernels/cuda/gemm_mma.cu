/* gemm_mma.cu - products of 16-bit rows and weights by mma.sync, on any GPU from sm_80 on.
 *
 * A block computes BM rows by 64 columns, a warp all BM rows by 32 columns, which is one unit of weights:
 *
 *               64 columns
 *            +--------+--------+     K in steps of 64 (128 bytes a row), STAGES of them in flight by
 *     BM     | warp 0 | warp 1 |     cp.async; chunks of 16 bytes lie at c ^ (row % 8), so that ldmatrix
 *            +--------+--------+     meets each bank once
 *
 * Invariant: an element is one chain of products of 16 k, in the order of k, whatever BM is, so a row's
 * bits depend on that row alone. Gates and ups lie in turns of 16 columns, so both belong to one thread,
 * which finishes them in registers. Weights are asked for before the wait for what makes the rows.
 * Launched by backend.cu.
 */
#include "product_finish.h"

enum { BN = 64, BK = 64, STAGES = 4, THREADS = 64, ROW = 128 /* bytes of a row of a stage */ };

/* ---- the way in ---- */

/* Address of the 16 bytes of row `row` that hold k .. k + 8 of a stage. */
LA_DEV uint32_t chunk_at(uint32_t stage, int row, int c)
{
    return stage + (uint32_t)(row * ROW + ((c ^ (row & 7)) * 16));
}

/* Rows first .. first + n of src [rows][K], K step k0, to a stage; zeros beyond its rows and K. */
LA_DEV void load_tile(uint32_t to, const uint16_t *src, int first, int n, int rows, int K, int k0)
{
    for (int i = la_thread(); i < n * 8; i += THREADS) {
        int row = i / 8, c = i % 8, k = k0 + c * 8;
        int there = first + row < rows && k < K;
        const uint16_t *p = there ? src + (int64_t)(first + row) * K + k : src;
        la_cp_async_16(chunk_at(to, row, c), p, there ? 16 : 0);
    }
}

/* ---- the product ---- */

template <int BM, int HALF> LA_KERNEL(la_product, la_product_args)
{
    constexpr int TILES = BM / 16;
    constexpr uint32_t STAGE = (BM + BN) * ROW;
    int m0 = la_block_y() * BM, n0 = la_block_x() * BN,
        rows = (a.N + LA_UNIT - 1) / LA_UNIT * LA_UNIT;
    int steps = (a.K + BK - 1) / BK, warp = la_thread() / 32, lane = la_lane();
    float acc[TILES][4][4] = {};
    for (int s = 0; s < STAGES - 1 && s < steps; s++) { /* part of the first group below */
        load_tile(la_smem() + (uint32_t)s * STAGE + BM * ROW, a.w, n0, BN, rows, a.K, s * BK);
    }
    la_grid_wait();
    la_grid_release();
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            load_tile(la_smem() + (uint32_t)s * STAGE, a.a, m0, BM, a.M, a.K, s * BK);
        }
        la_cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        uint32_t stage = la_smem() + (uint32_t)(step % STAGES) * STAGE, w = stage + BM * ROW;
        la_cp_async_wait<STAGES - 2>();
        la_sync_block(); /* the stage is there, and the one before has been read by all */
        int next = step + STAGES - 1;
        if (next < steps) {
            uint32_t to = la_smem() + (uint32_t)(next % STAGES) * STAGE;
            load_tile(to, a.a, m0, BM, a.M, a.K, next * BK);
            load_tile(to + BM * ROW, a.w, n0, BN, rows, a.K, next * BK);
        }
        la_cp_async_commit();
        LA_UNROLL
        for (int k = 0; k < BK / 8; k += 2) {
            uint32_t b[2][4];
            LA_UNROLL
            for (int j = 0; j < 2; j++) { /* 16 columns: two matrices of k, twice */
                int row = warp * 32 + j * 16 + lane / 16 * 8 + lane % 8;
                la_ldmatrix_x4(b[j], chunk_at(w, row, k + lane / 8 % 2));
            }
            LA_UNROLL
            for (int i = 0; i < TILES; i++) {
                uint32_t x[4];
                la_ldmatrix_x4(x, chunk_at(stage, i * 16 + lane % 16, k + lane / 16));
                LA_UNROLL
                for (int j = 0; j < 4; j++) {
                    const uint32_t y[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    if (HALF) {
                        la_mma_f16(acc[i][j], x, y);
                    }
                    else {
                        la_mma_bf16(acc[i][j], x, y);
                    }
                }
            }
        }
    }
    la_cp_async_wait<0>();
    LA_UNROLL
    for (int i = 0; i < TILES; i++) {
        la_finish_unit(a, m0 + i * 16, n0 + warp * 32, acc[i]);
    }
}

template <int BM, int HALF> static void launch(la_rt_stream *s, const la_product_args *a)
{
    la_rt_shape shape = {
        {(a->N + BN - 1) / BN, (a->M + BM - 1) / BM, 1}, THREADS, 0, STAGES * (BM + BN) * ROW, 1};
    la_rt_launch(s, LA_ENTRY(la_product<BM, HALF>), a, sizeof *a, &shape);
}

extern "C" void la_launch_product(la_rt_stream *s, const la_product_args *a, int half)
{
    if (a->M <= 16) {
        half ? launch<16, 1>(s, a) : launch<16, 0>(s, a);
    }
    else {
        half ? launch<64, 1>(s, a) : launch<64, 0>(s, a);
    }
}
