/* gemm_sm90_harness.h - one call that runs Hopper's product on arrays of the host.
 *
 * Owns the tensor maps and the launches around la_gemm_sm90, for tests that compare its output. It has no
 * include guard on purpose: the mutation tests include it once behind every changed copy of the kernel,
 * in a namespace each. Included by generated sources.
 */
#include "la_emu.h"

/* What a test hands over; the arrays belong to it. partial NULL: blocks add up all pieces. launch: blocks, seed,
 * pieces. */
static int harness_run(const la_product_args *p, float *partial, const int *launch, char *error,
                       size_t n)
{
    using plan = la_gemm_sm90_plan<HARNESS_BN, HARNESS_STAGES>;
    la_gemm_sm90_args a;
    a.p = *p;
    a.partial = partial;
    a.pieces = launch[2];
    const uint64_t rows = (uint64_t)p->M, columns = ((uint64_t)p->N + 31) / 32 * 32;
    const uint64_t depth = (uint64_t)p->K;
    la_tensor_shape of_x = {p->a, 2, 2, {depth, rows}, {depth * 2}, {64, 128}, LA_SWIZZLE_128};
    la_tensor_shape of_w = {p->w,          2, 2, {depth, columns}, {depth * 2}, {64, HARNESS_BN},
                            LA_SWIZZLE_128};
    if (la_emu_tensor_map(&a.x, &of_x, error, n) || la_emu_tensor_map(&a.w, &of_w, error, n)) {
        return -1;
    }
    la_emu_writes writes;
    la_emu_shape shape = {};
    shape.name = "la_gemm_sm90";
    shape.grid[0] = launch[0];
    shape.block[0] = plan::THREADS;
    shape.smem = plan::SMEM;
    shape.seed = (uint32_t)launch[1];
    shape.dependent = 1;
    shape.writes = &writes;
    int st = la_emu_launch(LA_ENTRY(la_gemm_sm90<LA_WGMMA_BF16, HARNESS_BN, HARNESS_STAGES>), &a,
                           &shape, error, n);
    if (st == 0 && partial != nullptr) {
        shape.name = "la_gemm_merge";
        shape.grid[0] = (int)((columns / 32 + LA_MERGE_WARPS - 1) / LA_MERGE_WARPS);
        shape.grid[1] = p->M;
        shape.block[0] = LA_MERGE_WARPS * 32;
        shape.smem = 0;
        st = la_emu_launch(LA_ENTRY(la_gemm_merge<HARNESS_BN>), &a, &shape, error, n);
    }
    return st;
}
