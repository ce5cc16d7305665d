/* rows.cu - what happens to rows between products: lookup, norms, heads, gathering.
 *
 * Owns the row-wise kernels of launch.h. A block of fixed size takes one row, so the order of a sum is
 * that of its D values and nothing else: lanes take every BLOCK-th value, lanes of a warp are added by
 * halving, then warps are. Invariant: no kernel writes before la_grid_wait. Written on the wrappers that
 * every GPU from sm_80 on has. Launched by backend.cu.
 */
#include "la_ptx.h"
#include "launch.h"

#include <math.h>

extern "C" {
#include "../../model/backend.h"
}

enum { BLOCK = 256, WARPS = BLOCK / 32, HEAD_WARPS = 4, MAX_HEAD = 256 };

/* ---- numbers of 16 bits ---- */

LA_DEV float widen(uint16_t x, int half)
{
    return half ? la_f16_lo(x) : la_bf16_lo(x);
}

/* fp16 saturates: a row that leaves its range is wrong there, not everywhere. NaN stays. */
LA_DEV uint16_t narrow(float x, int half)
{
    const float most = 65504.0f;
    if (half) {
        x = x > most ? most : x < -most ? -most : x;
    }
    return (uint16_t)(half ? la_f16x2(x, 0.0f) : la_bf16x2(x, 0.0f));
}

/* ---- sums over a block ---- */

LA_DEV float warp_sum(float x)
{
    for (int bits = 16; bits > 0; bits /= 2) {
        x += la_shfl_xor_f32(x, bits);
    }
    return x;
}

/* `at`: WARPS floats of shared memory. All threads get the sum. */
LA_DEV float block_sum(float x, uint32_t at)
{
    x = warp_sum(x);
    la_sync_block(); /* an earlier sum has been read */
    if (la_lane() == 0) {
        la_sts_f32(at + 4 * (uint32_t)(la_thread() / 32), x);
    }
    la_sync_block();
    float sum = la_lds_f32(at + 4 * (uint32_t)(la_lane() % WARPS));
    for (int bits = WARPS / 2; bits > 0; bits /= 2) {
        sum += la_shfl_xor_f32(sum, bits);
    }
    return sum;
}

/* ---- norms ---- */

/* y = (x - mean) * inv * w + b of a row. */
typedef struct la_row_norm {
    const float *w, *b;
    float mean, inv;
} la_row_norm;

LA_DEV la_row_norm row_norm(const float *x, int D, int kind, float eps, const float *w,
                            const float *b)
{
    uint32_t at = la_smem();
    la_row_norm n = {w, b, 0.0f, 1.0f};
    if (kind < 0) {
        return n;
    }
    float sum = 0.0f;
    if (kind == LA_NORM_LAYER) {
        for (int i = la_thread(); i < D; i += BLOCK) {
            sum += la_ldg(x + i);
        }
        n.mean = block_sum(sum, at) / (float)D;
    }
    sum = 0.0f;
    for (int i = la_thread(); i < D; i += BLOCK) {
        float v = la_ldg(x + i) - n.mean;
        sum = la_fma(v, v, sum);
    }
    n.inv = 1.0f / sqrtf(block_sum(sum, at) / (float)D + eps);
    return n;
}

LA_DEV float normed(const la_row_norm *n, float x, int i)
{
    float y = (x - n->mean) * n->inv;
    y = n->w != NULL ? y * la_ldg(n->w + i) : y;
    return n->b != NULL ? y + la_ldg(n->b + i) : y;
}

LA_KERNEL(la_enter, la_enter_args)
{
    la_grid_wait();
    la_grid_release();
    const float *x = a.x + la_block_x() * a.ldx;
    uint16_t *out = a.out + (int64_t)la_block_x() * a.D;
    la_row_norm n =
        row_norm(x, a.D, a.norm, a.eps, a.norm < 0 ? NULL : a.w, a.norm < 0 ? NULL : a.b);
    for (int i = la_thread(); i < a.D; i += BLOCK) {
        la_stg(out + i, narrow(normed(&n, la_ldg(x + i), i), a.half));
    }
}

LA_KERNEL(la_add_norm, la_add_norm_args)
{
    la_grid_wait();
    la_grid_release();
    const float *y = a.y + la_block_x() * a.ldy;
    float *x = a.x + la_block_x() * a.ldx;
    la_row_norm n = row_norm(y, a.D, a.norm, a.eps, a.w, a.b);
    for (int i = la_thread(); i < a.D; i += BLOCK) {
        la_stg(x + i, la_fma(a.scale, normed(&n, la_ldg(y + i), i), la_ldg(x + i)));
    }
}

LA_KERNEL(la_norm_rows, la_norm_rows_args)
{
    la_grid_wait();
    la_grid_release();
    const float *x = a.x + la_block_x() * a.ldx;
    float *out = a.out + la_block_x() * a.ldo;
    la_row_norm n = row_norm(x, a.D, a.norm, a.eps, a.w, a.b);
    for (int i = la_thread(); i < a.D; i += BLOCK) {
        la_stg(out + i, normed(&n, la_ldg(x + i), i));
    }
}

/* ---- lookup, gathering ---- */

LA_KERNEL(la_embed, la_embed_args)
{
    la_grid_wait();
    la_grid_release();
    int t = la_block_x();
    const uint16_t *row = a.table + (int64_t)la_ldg(a.ids + t) * a.D;
    float *out = a.out + t * a.ldo;
    for (int i = la_thread(); i < a.D; i += BLOCK) {
        float x = widen(la_ldg(row + i), a.half) * a.scale;
        la_stg(out + i, a.add ? la_ldg(out + i) + x : x);
    }
}

LA_KERNEL(la_gather, la_gather_args)
{
    la_grid_wait();
    la_grid_release();
    int i = la_block_x(), from = a.from != NULL ? la_ldg(a.from + i) : i;
    const float *x = a.x + from * a.ldx;
    float *out = a.out + i * a.ldo;
    for (int k = la_thread(); k < a.D; k += BLOCK) {
        la_stg(out + k, la_ldg(x + k));
    }
}

/* ---- heads ---- */

/* Norms over all q heads and over all k heads of a row, in place. */
LA_KERNEL(la_heads_rows, la_heads_args)
{
    la_grid_wait();
    la_grid_release();
    int k = la_block_y(), first = k ? a.n_heads * a.d : 0;
    int D = (k ? a.n_kv_heads : a.n_heads) * a.d;
    float *x = a.y + la_block_x() * a.ldy + first;
    la_row_norm n = row_norm(x, D, LA_NORM_RMS, a.eps, k ? a.k_norm : a.q_norm, NULL);
    for (int i = la_thread(); i < D; i += BLOCK) {
        la_stg(x + i, normed(&n, la_ldg(x + i), i));
    }
}

/* The head's d values in shared memory at `at`, rotated by the position's angles. */
LA_DEV void rotate(const la_heads_args &a, uint32_t at, int pos)
{
    int half = a.d_rope / 2;
    for (int i = la_lane(); i < half; i += 32) {
        int lo = a.interleaved ? 2 * i : i, hi = a.interleaved ? lo + 1 : lo + half;
        float c = la_ldg(a.cos + (int64_t)pos * half + i);
        float s = la_ldg(a.sin + (int64_t)pos * half + i);
        float x = la_lds_f32(at + 4 * (uint32_t)lo), y = la_lds_f32(at + 4 * (uint32_t)hi);
        la_sts_f32(at + 4 * (uint32_t)lo, x * c - y * s);
        la_sts_f32(at + 4 * (uint32_t)hi, x * s + y * c);
    }
    la_sync_warp();
}

/* A warp a head: its values pass through shared memory, because rotation pairs them up. */
LA_KERNEL(la_heads, la_heads_args)
{
    la_grid_wait();
    la_grid_release();
    int t = la_block_x(), h = la_block_y() * HEAD_WARPS + la_thread() / 32;
    if (h >= a.n_heads + 2 * a.n_kv_heads) {
        return;
    }
    int is_q = h < a.n_heads, kv = is_q ? 0 : (h - a.n_heads) % a.n_kv_heads;
    int is_v = h >= a.n_heads + a.n_kv_heads, pos = la_ldg(a.pos + t);
    uint32_t at = la_smem() + (uint32_t)(la_thread() / 32 * MAX_HEAD * 4);
    const float *x = a.y + t * a.ldy + (int64_t)h * a.d;
    int unit = a.norm == LA_QK_NORM_UNIT && a.turned;
    int per_head = !is_v && (a.norm == LA_QK_NORM_HEAD || unit);
    float inv = 1.0f, sum = 0.0f;
    for (int i = la_lane(); per_head && i < a.d; i += 32) {
        float v = la_ldg(x + i);
        sum = la_fma(v, v, sum);
    }
    if (per_head) {
        inv = 1.0f / sqrtf(warp_sum(sum) / (float)a.d + a.eps);
    }
    const float *w = is_q ? a.q_norm : a.k_norm;
    for (int i = la_lane(); i < a.d; i += 32) {
        float v = la_ldg(x + i) * inv;
        la_sts_f32(at + 4 * (uint32_t)i,
                   per_head && a.norm == LA_QK_NORM_HEAD ? v * la_ldg(w + i) : v);
    }
    la_sync_warp();
    if (a.cos != NULL && !is_v) {
        rotate(a, at, pos);
    }
    if (is_q) {
        float grow = 1.0f;
        if (a.grow_every != 0 && !a.turned) {
            grow += a.grow * log1pf(floorf((float)(pos + 1) / (float)a.grow_every));
        }
        for (int i = la_lane(); i < a.d; i += 32) {
            la_stg(a.q + t * a.ldq + h * a.d + i, la_lds_f32(at + 4 * (uint32_t)i) * grow);
        }
        return;
    }
    int page = la_ldg(a.page + t);
    if (page < 0) {
        return;
    }
    uint8_t *block = a.pages.base + page * a.pages.page_bytes + kv * a.pages.head_bytes +
                     (is_v ? a.pages.k_bytes : 0);
    uint16_t *row = (uint16_t *)(void *)block + (pos % LA_PAGE) * a.d;
    for (int i = la_lane(); i < a.d; i += 32) {
        la_stg(row + i, narrow(la_lds_f32(at + 4 * (uint32_t)i), 0));
    }
}

/* ---- launches ---- */

extern "C" {

void la_launch_enter(la_rt_stream *s, const la_enter_args *a)
{
    la_rt_shape shape = {{a->n, 1, 1}, BLOCK, 0, WARPS * 4, 1};
    la_rt_launch(s, LA_ENTRY(la_enter), a, sizeof *a, &shape);
}

void la_launch_add_norm(la_rt_stream *s, const la_add_norm_args *a)
{
    la_rt_shape shape = {{a->n, 1, 1}, BLOCK, 0, WARPS * 4, 1};
    la_rt_launch(s, LA_ENTRY(la_add_norm), a, sizeof *a, &shape);
}

void la_launch_norm_rows(la_rt_stream *s, const la_norm_rows_args *a)
{
    la_rt_shape shape = {{a->n, 1, 1}, BLOCK, 0, WARPS * 4, 1};
    la_rt_launch(s, LA_ENTRY(la_norm_rows), a, sizeof *a, &shape);
}

void la_launch_embed(la_rt_stream *s, const la_embed_args *a)
{
    la_rt_shape shape = {{a->n, 1, 1}, BLOCK, 0, 0, 1};
    la_rt_launch(s, LA_ENTRY(la_embed), a, sizeof *a, &shape);
}

void la_launch_gather(la_rt_stream *s, const la_gather_args *a)
{
    la_rt_shape shape = {{a->n, 1, 1}, BLOCK, 0, 0, 1};
    la_rt_launch(s, LA_ENTRY(la_gather), a, sizeof *a, &shape);
}

void la_launch_heads(la_rt_stream *s, const la_heads_args *a)
{
    if (a->norm == LA_QK_NORM_ROW) {
        la_rt_shape rows = {{a->n, 2, 1}, BLOCK, 0, WARPS * 4, 1};
        la_rt_launch(s, LA_ENTRY(la_heads_rows), a, sizeof *a, &rows);
    }
    int heads = a->n_heads + 2 * a->n_kv_heads;
    la_rt_shape shape = {{a->n, (heads + HEAD_WARPS - 1) / HEAD_WARPS, 1},
                         HEAD_WARPS * 32,
                         0,
                         HEAD_WARPS * MAX_HEAD * 4,
                         1};
    la_rt_launch(s, LA_ENTRY(la_heads), a, sizeof *a, &shape);
}

} // extern "C"
