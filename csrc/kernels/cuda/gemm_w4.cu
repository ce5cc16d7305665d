/* gemm_w4.cu - products of bf16 rows and 4-bit weights in groups by mma.sync, on any GPU from sm_80 on.
 *
 * Weights are the 16 rows of a product and tokens its 8 columns, so that one token costs an eighth of what it would
 * as a row. A block takes a unit of 32 weight rows and up to NT times 8 tokens; its warps take runs of 128 k in
 * turns, a lane 16 bytes of each 32 k:
 *
 *     unit:  per group  scales [32] (offsets [32])  then for each 32 k [lane][4] u32, the words of rows g, g + 8,
 *            g + 16, g + 24 for k = 8t .. 8t + 7 (g = lane / 4, t = lane % 4), nibbles as the CPU's I4
 *
 * so a lane's k are neighbours and 16 bytes of a row of x are what it multiplies them with. Codes become integers in
 * bf16, exactly; a group's sum is multiplied by its scale in fp32. Invariant: an element is the sum of WARPS
 * sums in their order, each of groups in theirs, whatever NT and M are. Launched by backend_product.cu.
 */
#include "product_finish.h"

enum { WARPS = 16, RUN = 4 /* blocks of 32 k */, PITCH = LA_UNIT + 4 };

/* What a launch brings. */
typedef struct la_w4_call {
    la_product_args p;
    la_w4_form f;
    int log;               /* a group has 1 << log blocks of 32 k */
    int head, group_bytes; /* of a group: bytes of scales and offsets, of all */
} la_w4_call;

/* Where block b of a unit lies. */
LA_DEV const uint8_t *block_at(const la_w4_call &a, const uint8_t *unit, int b)
{
    const int group = b >> a.log;
    return unit + (int64_t)group * a.group_bytes + a.head + (b - (group << a.log)) * 512;
}

/* The lane's words of block b; zeros beyond K. */
LA_DEV la_u32x4 load_block(const la_w4_call &a, const uint8_t *unit, int b)
{
    const la_u32x4 none = {0, 0, 0, 0};
    return b * 32 < a.p.K ? la_ldg_stream(block_at(a, unit, b) + la_lane() * 16) : none;
}

LA_DEV void load_run(const la_w4_call &a, const uint8_t *unit, int run, la_u32x4 (&w)[RUN])
{
    LA_UNROLL
    for (int j = 0; j < RUN; j++) {
        w[j] = load_block(a, unit, run * RUN + j);
    }
}

/* Pair PAIR of a word's codes, less their zero, as bf16. */
template <int PAIR, int OFFSET> LA_DEV uint32_t codes_of(uint32_t word)
{
    const uint32_t zero = OFFSET ? 0xc300c300u : 0xc308c308u; /* -128, -136 */
    return la_fma_bf16x2(la_i4_bf16x2<PAIR>(word), 0x3f803f80u, zero);
}

/* A scale or offset of the lane's four rows. */
template <int WIDE> LA_DEV void load_factors(const uint8_t *from, float (&to)[4])
{
    LA_UNROLL
    for (int j = 0; j < 4; j++) {
        const int row = la_lane() / 4 + 8 * j;
        to[j] = WIDE ? la_ldg((const float *)(const void *)from + row)
                     : la_f16_lo(la_ldg((const uint16_t *)(const void *)from + row));
    }
}

/* Products of 32 k: of both halves of the unit's rows, and of ones where offsets want sums of x. */
template <int NT, int OFFSET>
LA_DEV void multiply_block(const la_w4_call &a, const la_u32x4 &w, int m0, int k,
                           float (&acc)[2 + OFFSET][NT][4])
{
    const uint32_t lo[2][4] = {{codes_of<0, OFFSET>(w.x), codes_of<0, OFFSET>(w.y),
                                codes_of<1, OFFSET>(w.x), codes_of<1, OFFSET>(w.y)},
                               {codes_of<0, OFFSET>(w.z), codes_of<0, OFFSET>(w.w),
                                codes_of<1, OFFSET>(w.z), codes_of<1, OFFSET>(w.w)}};
    const uint32_t hi[2][4] = {{codes_of<2, OFFSET>(w.x), codes_of<2, OFFSET>(w.y),
                                codes_of<3, OFFSET>(w.x), codes_of<3, OFFSET>(w.y)},
                               {codes_of<2, OFFSET>(w.z), codes_of<2, OFFSET>(w.w),
                                codes_of<3, OFFSET>(w.z), codes_of<3, OFFSET>(w.w)}};
    const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    LA_UNROLL
    for (int i = 0; i < NT; i++) {
        const int m = m0 + i * 8 + la_lane() / 4;
        const la_u32x4 none = {0, 0, 0, 0};
        const uint16_t *from = a.p.a + (int64_t)m * a.p.K + k + la_lane() % 4 * 8;
        const la_u32x4 x = m < a.p.M ? la_ldg((const la_u32x4 *)(const void *)from) : none;
        const uint32_t front[2] = {x.x, x.y}, back[2] = {x.z, x.w};
        LA_UNROLL
        for (int h = 0; h < 2; h++) {
            la_mma_bf16(acc[h][i], lo[h], front);
            la_mma_bf16(acc[h][i], hi[h], back);
        }
        if (OFFSET) {
            la_mma_bf16(acc[1 + OFFSET][i], ones, front);
            la_mma_bf16(acc[1 + OFFSET][i], ones, back);
        }
    }
}

/* A group's sums, which start again, join the others. */
template <int NT, int OFFSET, int WIDE>
LA_DEV void fold_group(const la_w4_call &a, const uint8_t *unit, int group,
                       float (&acc)[2 + OFFSET][NT][4], float (&sum)[2][NT][4])
{
    const uint8_t *head = unit + (int64_t)group * a.group_bytes;
    float scale[4], offset[4];
    load_factors<WIDE>(head, scale);
    if (OFFSET) {
        load_factors<WIDE>(head + a.head / 2, offset);
    }
    LA_UNROLL
    for (int i = 0; i < NT; i++) {
        LA_UNROLL
        for (int e = 0; e < 4; e++) {
            LA_UNROLL
            for (int h = 0; h < 2; h++) {
                sum[h][i][e] = la_fma(scale[2 * h + e / 2], acc[h][i][e], sum[h][i][e]);
                if (OFFSET) {
                    const float x = acc[1 + OFFSET][i][e];
                    sum[h][i][e] = la_fma(offset[2 * h + e / 2], x, sum[h][i][e]);
                }
                acc[h][i][e] = 0.0f;
            }
            if (OFFSET) {
                acc[1 + OFFSET][i][e] = 0.0f;
            }
        }
    }
}

/* Sums of warps, added up in their order and finished: a warp takes a token, a lane a weight row. */
template <int NT>
LA_DEV void finish_block(const la_w4_call &a, int m0, const float (&sum)[2][NT][4])
{
    const uint32_t warp = (uint32_t)(la_thread() / 32), one = NT * 8 * PITCH * 4;
    LA_UNROLL
    for (int i = 0; i < NT; i++) {
        LA_UNROLL
        for (int e = 0; e < 4; e++) {
            LA_UNROLL
            for (int h = 0; h < 2; h++) {
                const int token = i * 8 + la_lane() % 4 * 2 + e % 2;
                const int row = h * 16 + e / 2 * 8 + la_lane() / 4;
                la_sts_f32(la_smem() + warp * one + (uint32_t)(token * PITCH + row) * 4,
                           sum[h][i][e]);
            }
        }
    }
    la_sync_block();
    for (int token = (int)warp; token < NT * 8 && m0 + token < a.p.M; token += WARPS) {
        const uint32_t at = la_smem() + (uint32_t)(token * PITCH + la_lane()) * 4;
        float y = la_lds_f32(at);
        for (uint32_t i = 1; i < WARPS; i++) {
            y += la_lds_f32(at + i * one);
        }
        la_finish_lane(a.p, m0 + token, la_block_x() * LA_UNIT, y);
    }
}

template <int NT, int OFFSET, int WIDE> LA_KERNEL_BOUNDS(la_w4, la_w4_call, WARPS * 32, 1)
{
    const uint8_t *unit = (const uint8_t *)(const void *)a.p.w + la_block_x() * a.f.unit_bytes;
    const int m0 = la_block_y() * NT * 8, blocks = a.p.K / 32;
    int run = la_thread() / 32;
    float acc[2 + OFFSET][NT][4] = {}, sum[2][NT][4] = {};
    constexpr int AHEAD =
        NT < 4; /* else sums take the registers, and warps hide each other's waits */
    la_u32x4 w[RUN], next[RUN];
    if (AHEAD) {
        load_run(a, unit, run, w);
    }
    la_grid_wait();
    la_grid_release();
    for (; run * RUN < blocks; run += WARPS) {
        if (AHEAD) {
            load_run(a, unit, run + WARPS, next);
        }
        LA_UNROLL
        for (int j = 0; j < RUN; j++) {
            const int b = run * RUN + j;
            if (b < blocks) {
                const la_u32x4 now = AHEAD ? w[j] : load_block(a, unit, b);
                multiply_block<NT, OFFSET>(a, now, m0, b * 32, acc);
                if (j == RUN - 1 || b + 1 == blocks || ((b + 1) & ((1 << a.log) - 1)) == 0) {
                    fold_group<NT, OFFSET, WIDE>(a, unit, b >> a.log, acc, sum);
                }
            }
        }
        LA_UNROLL
        for (int j = 0; AHEAD && j < RUN; j++) {
            w[j] = next[j];
        }
    }
    finish_block<NT>(a, m0, sum);
}

template <int NT> static void launch(la_rt_stream *s, const la_w4_call *a)
{
    la_rt_shape shape = {{(a->p.N + LA_UNIT - 1) / LA_UNIT, (a->p.M + NT * 8 - 1) / (NT * 8), 1},
                         WARPS * 32,
                         0,
                         WARPS * NT * 8 * PITCH * 4,
                         1};
    la_entry entry = a->f.wide ? LA_ENTRY(la_w4<NT, 0, 1>) : LA_ENTRY(la_w4<NT, 0, 0>);
    if constexpr (NT < 4) { /* sums of x take registers too */
        if (a->f.has_offset) {
            entry = a->f.wide ? LA_ENTRY(la_w4<NT, 1, 1>) : LA_ENTRY(la_w4<NT, 1, 0>);
        }
    }
    la_rt_launch(s, entry, a, sizeof *a, &shape);
}

extern "C" void la_launch_product_w4(la_rt_stream *s, const la_product_args *a, const la_w4_form *f)
{
    la_w4_call call = {*a, *f, 0, LA_UNIT * (f->wide ? 4 : 2) * (1 + f->has_offset), 0};
    for (int k = 32; f->group != 0 && k < f->group; k *= 2) {
        call.log++;
    }
    call.log = f->group != 0 ? call.log : 30;
    call.group_bytes = call.head + f->group * 16;
    if (a->M <= 8) {
        launch<1>(s, &call);
    }
    else if (a->M <= 16 || f->has_offset) {
        launch<2>(s, &call);
    }
    else {
        launch<4>(s, &call);
    }
}
