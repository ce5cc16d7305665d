/* gemm_bf16_sm90.cu - the tiles in which the bf16 product of Hopper is built.
 *
 * Owns the instances of gemm_bf16_sm90.h: 128 x 256 for products that fill the GPU, 128 x 128 and 128 x 64 for
 * those with fewer columns. Compiled for sm_90a alone, by tests: no part of the backend yet.
 */
#include "gemm_bf16_sm90.h"

LA_INSTANCE(la_gemm_bf16_args, la_gemm_bf16_sm90<256, 3>)
LA_INSTANCE(la_gemm_bf16_args, la_gemm_bf16_sm90<128, 5>)
LA_INSTANCE(la_gemm_bf16_args, la_gemm_bf16_sm90<64, 6>)
