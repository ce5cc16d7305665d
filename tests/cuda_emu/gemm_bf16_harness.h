/* gemm_bf16_harness.h - one call that runs the bf16 product on arrays of the host.
 *
 * Owns the tensor maps and the launch around la_gemm_bf16_sm90, for tests that compare its output. It has no
 * include guard on purpose: the mutation tests include it once behind every changed copy of the kernel,
 * in a namespace each. Included by generated sources.
 */
#include "la_emu.h"

/* What a test hands over; the arrays belong to it. */
static int harness_run(const void *x, const void *w, const float *bias, void *out, const int *mnk,
                       const int *launch, char *error, size_t n)
{
    using plan = la_gemm_bf16_plan<HARNESS_BN, HARNESS_STAGES>;
    const int M = mnk[0], N = mnk[1], K = mnk[2];
    la_gemm_bf16_args a;
    a.bias = bias;
    a.M = M;
    a.N = N;
    a.K = K;
    const uint64_t rows = (uint64_t)M, columns = (uint64_t)N, depth = (uint64_t)K;
    la_tensor_shape of_x = {x, 2, 2, {depth, rows}, {depth * 2}, {64, 128}, LA_SWIZZLE_128};
    la_tensor_shape of_w = {
        w, 2, 2, {depth, columns}, {depth * 2}, {64, HARNESS_BN}, LA_SWIZZLE_128};
    la_tensor_shape of_out = {out, 2, 2, {columns, rows}, {columns * 2}, {64, 64}, LA_SWIZZLE_128};
    if (la_emu_tensor_map(&a.x, &of_x, error, n) || la_emu_tensor_map(&a.w, &of_w, error, n) ||
        la_emu_tensor_map(&a.out, &of_out, error, n)) {
        return -1;
    }
    la_emu_shape shape = {};
    shape.name = "la_gemm_bf16_sm90";
    shape.grid[0] = launch[0];
    shape.block[0] = plan::THREADS;
    shape.smem = plan::SMEM;
    shape.seed = (uint32_t)launch[1];
    shape.dependent = 1;
    return la_emu_launch(LA_ENTRY(la_gemm_bf16_sm90<HARNESS_BN, HARNESS_STAGES>), &a, &shape, error,
                         n);
}
