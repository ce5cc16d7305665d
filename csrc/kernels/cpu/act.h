/* act.h - activation rows on their way into a product: bf16, or int8 per group in one or two lanes.
 *
 * Two lanes: x = scale * (q + rest / 254), rest rounded from what q leaves of x / scale, which is at
 * most half: 15 bits of the group's largest value.
 * Invariant: every level writes the same bits. Group maxima are compared as bit patterns, which
 * makes the maximum independent of the order and keeps a NaN visible: its group's scale becomes
 * NaN. Filled into the table by isa_*.c; called once per row before a product.
 */
#ifndef LA_ACT_H
#define LA_ACT_H

#include "../kernels.h"
#include "vec.h"

/* A group whose largest value is below this counts as zero: 127 / amax must stay finite. */
#define LA_ACT_TINY 1e-36f
/* Steps of the second lane in one of the first: half a step becomes 127. */
#define LA_ACT_FINER 254.0f

/* 16 values from k on, those beyond K zero. */
LA_INLINE void act_load16(const float *x, int k, int K, vf v[LA_LANES16])
{
    for (int i = 0; i < LA_LANES16; i++) {
        int left = K - k - i * VL;
        v[i] = left >= VL ? v_loadu(x + k + i * VL) : v_loadn(x + k + i * VL, left < 0 ? 0 : left);
    }
}

LA_INLINE void act_bf16(const float *x, int K, int group, uint16_t *out, la_act_meta *meta)
{
    vf sum[LA_LANES16];
    for (int i = 0; i < LA_LANES16; i++) {
        sum[i] = v_zero();
    }
    int end = (K + 31) / 32 * 32;
    int next = group;
    for (int k = 0; k < end; k += 16) {
        vf v[LA_LANES16];
        act_load16(x, k, K, v);
        for (int i = 0; i < LA_LANES16; i++) {
            v_store_bf16(out + k + i * VL, v[i]);
        }
        if (!meta || k >= K) {
            continue;
        }
        for (int i = 0; i < LA_LANES16; i++) {
            sum[i] = v_add(sum[i], v_load_bf16(out + k + i * VL));
        }
        if (k + 16 >= next || k + 16 >= K) {
            *meta++ = (la_act_meta){1.0f, v_sum16(sum), 0, 0};
            next += group;
            for (int i = 0; i < LA_LANES16; i++) {
                sum[i] = v_zero();
            }
        }
    }
}

/* Largest |x| of [k, end) as a bit pattern turned back into a float. */
LA_INLINE float act_amax(const float *x, int k, int end)
{
    vi mx[LA_LANES16];
    int32_t lane[16];
    for (int i = 0; i < LA_LANES16; i++) {
        mx[i] = vi_set1(0);
    }
    for (; k < end; k += 16) {
        vf v[LA_LANES16];
        act_load16(x, k, end, v);
        for (int i = 0; i < LA_LANES16; i++) {
            mx[i] = vi_max(mx[i], vi_bits(v_abs(v[i])));
        }
    }
    for (int i = 0; i < LA_LANES16; i++) {
        vi_storeu(lane + i * VL, mx[i]);
    }
    int32_t m = 0;
    for (int i = 0; i < 16; i++) {
        m = lane[i] > m ? lane[i] : m;
    }
    float f;
    memcpy(&f, &m, sizeof f);
    return f;
}

/* What the sum of a lane's codes adds to the group's meta. */
LA_INLINE la_act_meta act_meta(float scale, const vi sum[LA_LANES16])
{
    int32_t lane[16], isum = 0;
    for (int i = 0; i < LA_LANES16; i++) {
        vi_storeu(lane + i * VL, sum[i]);
    }
    for (int i = 0; i < 16; i++) {
        isum += lane[i];
    }
    return (la_act_meta){scale, scale * (float)isum, isum, 0};
}

/* lanes: 1 or 2, out[lane] and meta[lane] their rows. */
LA_INLINE void act_codes(const int lanes, const float *x, int K, int group, int8_t *const *out,
                         la_act_meta *const *meta)
{
    const vf hi = v_set1(127.0f), lo = v_set1(-127.0f), finer = v_set1(LA_ACT_FINER);
    for (int l = 0; l < lanes; l++) {
        memset(out[l] + K / 64 * 64, 0, (size_t)(K % 64 ? 64 : 0));
    }
    for (int k0 = 0, g = 0; k0 < K; k0 += group, g++) {
        int end = K - k0 < group ? K : k0 + group;
        float amax = act_amax(x, k0, end);
        int tiny = amax < LA_ACT_TINY;
        vf inv = v_set1(tiny ? 0.0f : 127.0f / amax);
        vi sum[2][LA_LANES16];
        for (int i = 0; i < LA_LANES16; i++) {
            sum[0][i] = sum[1][i] = vi_set1(0);
        }
        for (int k = k0; k < end; k += 16) {
            vf v[LA_LANES16];
            vi q[2][LA_LANES16];
            act_load16(x, k, end, v);
            for (int i = 0; i < LA_LANES16; i++) {
                vf y = v_max(v_min(v_mul(v[i], inv), hi), lo);
                q[0][i] = vi_from_f(y);
                sum[0][i] = vi_add(sum[0][i], q[0][i]);
                if (lanes == 2) {
                    q[1][i] = vi_from_f(v_mul(v_sub(y, v_from_i(q[0][i])), finer));
                    sum[1][i] = vi_add(sum[1][i], q[1][i]);
                }
            }
            for (int l = 0; l < lanes; l++) {
                vi_store_act(out[l] + k, q[l]);
            }
        }
        float scale = tiny ? 0.0f : amax / 127.0f;
        meta[0][g] = act_meta(scale, sum[0]);
        if (lanes == 2) {
            meta[1][g] = act_meta(scale / LA_ACT_FINER, sum[1]);
        }
    }
}

LA_INLINE void act_i8(const float *x, int K, int group, int8_t *out, la_act_meta *meta)
{
    act_codes(1, x, K, group, &out, &meta);
}

LA_INLINE void act_i8x2(const float *x, int K, int group, int8_t *out, size_t pitch,
                        la_act_meta *meta)
{
    int8_t *const rows[2] = {out, out + pitch};
    la_act_meta *const metas[2] = {meta, meta + (K + group - 1) / group};
    act_codes(2, x, K, group, rows, metas);
}

#endif
