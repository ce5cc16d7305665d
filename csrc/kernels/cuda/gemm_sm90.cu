/* gemm_sm90.cu - launches of Hopper's products (gemm_sm90.h), and how K is cut.
 *
 * Owns the one tile they are built in, 128 x 128: its instruction serves one row as well as thousands, until a
 * GPU has shown which others give the same bits. Compiled for sm_90a alone. Launched by backend_product.cu.
 */
#include "gemm_sm90.h"

enum { BM = 128, BN = 128, STAGES = 6, SMS = 132, MOST_PIECES = 8, LEAST_BLOCKS = 8 };
/* Tiles times pieces up to which a block makes one piece only. */
enum { APART = 2 * SMS };

/* Into how many pieces K is cut: by N and K alone, so that the tiles of few rows fill five sixths of the waves
 * over a large GPU's multiprocessors, or as much as can be. */
int la_product_pieces(int N, int K)
{
    const int tiles = (N + BN - 1) / BN, blocks = (K + 63) / 64;
    int best = 1;
    double most = 0.0;
    for (int pieces = 1; pieces <= MOST_PIECES && (pieces == 1 || blocks / pieces >= LEAST_BLOCKS);
         pieces++) {
        const int items = tiles * pieces, waves = (items + SMS - 1) / SMS;
        const double full = (double)items / (double)(waves * SMS);
        if (full > most) {
            most = full;
            best = pieces;
        }
        if (most > 5.0 / 6.0) {
            break;
        }
    }
    return best;
}

size_t la_product_room(int M)
{
    return (size_t)(M < BM ? M : BM) * APART * BN * sizeof(float);
}

template <la_wgmma_type TYPE>
static void launch(la_rt_stream *s, const la_gemm_sm90_args *a, int blocks)
{
    using plan = la_gemm_sm90_plan<BN, STAGES>;
    la_rt_shape shape = {{blocks, 1, 1}, plan::THREADS, 0, plan::SMEM, 1};
    la_rt_launch(s, LA_ENTRY(la_gemm_sm90<TYPE, BN, STAGES>), a, sizeof *a, &shape);
}

void la_launch_product_sm90(la_rt_stream *s, const la_product_args *a, int half, float *partial,
                            int n_sms)
{
    const uint64_t K = (uint64_t)a->K, M = (uint64_t)a->M;
    const uint64_t rows = (uint64_t)((a->N + LA_UNIT - 1) / LA_UNIT * LA_UNIT);
    const la_tensor_shape x = {a->a, 2, 2, {K, M}, {K * 2}, {64, BM}, LA_SWIZZLE_128};
    const la_tensor_shape w = {a->w, 2, 2, {K, rows}, {K * 2}, {64, BN}, LA_SWIZZLE_128};
    const int tiles = ((a->M + BM - 1) / BM) * ((a->N + BN - 1) / BN);
    la_gemm_sm90_args args;
    args.p = *a;
    args.pieces = la_product_pieces(a->N, a->K);
    const int apart = tiles * args.pieces;
    args.partial = args.pieces > 1 && apart <= APART && apart <= 2 * n_sms ? partial : NULL;
    if (la_rt_tensor_map(s, &args.x, &x) != 0 || la_rt_tensor_map(s, &args.w, &w) != 0) {
        return;
    }
    const int items = args.partial != NULL ? apart : tiles, blocks = items < n_sms ? items : n_sms;
    half ? launch<LA_WGMMA_F16>(s, &args, blocks) : launch<LA_WGMMA_BF16>(s, &args, blocks);
    if (args.partial != NULL) {
        const int units = (a->N + LA_UNIT - 1) / LA_UNIT;
        la_rt_shape shape = {
            {(units + LA_MERGE_WARPS - 1) / LA_MERGE_WARPS, a->M, 1}, LA_MERGE_WARPS * 32, 0, 0, 1};
        la_rt_launch(s, LA_ENTRY(la_gemm_merge<BN>), &args, sizeof args, &shape);
    }
}
