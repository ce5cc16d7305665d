/* gemm_scalar.h - products and probes that read like their formula; every slot has its scalar body
 * here.
 *
 * Invariant: the integer products (gemm_i*_i8) are the definition of their bits: per group an exact
 * integer dot, f = fma(dot, scale_w * scale_a, f), then f = fma(offset, sum_a, f), or with one scale
 * a row and no offset f = fma(dot, scale_a, f) and at the end f * scale_w; every level agrees with it
 * bit for bit. Other products may round differently between levels. Included by isa_scalar.c.
 */
#ifndef LA_GEMM_SCALAR_H
#define LA_GEMM_SCALAR_H

#include <math.h>

#include "../kernels.h"

static const float *scalar_row_f32(const la_gemm *g, int m)
{
    return (const float *)(const void *)(g->a + (size_t)m * g->a_pitch);
}

static const uint16_t *scalar_row_u16(const la_gemm *g, int m)
{
    return (const uint16_t *)(const void *)(g->a + (size_t)m * g->a_pitch);
}

static void gemm_f32_f32(const la_gemm *g)
{
    for (int u = 0; u < g->n_units; u++) {
        const float *w = (const float *)(const void *)(g->w + (size_t)u * g->w_pitch); /* [K][32] */
        for (int m = 0; m < g->M; m++) {
            const float *a = scalar_row_f32(g, m);
            float sum[LA_UNIT] = {0};
            for (int k = 0; k < g->K; k++) {
                for (int j = 0; j < LA_UNIT; j++) {
                    sum[j] += a[k] * w[(size_t)k * LA_UNIT + (size_t)j];
                }
            }
            memcpy(g->c + (size_t)m * (size_t)g->ldc + u * LA_UNIT, sum, sizeof sum);
        }
    }
}

static void gemm_f16_f32(const la_gemm *g)
{
    for (int u = 0; u < g->n_units; u++) {
        const uint16_t *w = (const uint16_t *)(const void *)(g->w + (size_t)u * g->w_pitch);
        for (int m = 0; m < g->M; m++) {
            const float *a = scalar_row_f32(g, m);
            float sum[LA_UNIT] = {0};
            for (int k = 0; k < g->K; k++) {
                for (int j = 0; j < LA_UNIT; j++) {
                    sum[j] +=
                        a[k] * la_f16_to_f32(w[(size_t)(k / 2) * 64 + (size_t)(2 * j + k % 2)]);
                }
            }
            memcpy(g->c + (size_t)m * (size_t)g->ldc + u * LA_UNIT, sum, sizeof sum);
        }
    }
}

static void gemm_bf16_bf16(const la_gemm *g)
{
    for (int u = 0; u < g->n_units; u++) {
        const uint16_t *w = (const uint16_t *)(const void *)(g->w + (size_t)u * g->w_pitch);
        for (int m = 0; m < g->M; m++) {
            const uint16_t *a = scalar_row_u16(g, m);
            float sum[LA_UNIT] = {0};
            for (int k = 0; k < g->K; k++) {
                float ak = la_bf16_to_f32(a[k]);
                for (int j = 0; j < LA_UNIT; j++) {
                    sum[j] +=
                        ak * la_bf16_to_f32(w[(size_t)(k / 2) * 64 + (size_t)(2 * j + k % 2)]);
                }
            }
            memcpy(g->c + (size_t)m * (size_t)g->ldc + u * LA_UNIT, sum, sizeof sum);
        }
    }
}

/* Code of column j and k of the group; codes: the group's steps. */
static uint8_t scalar_code(la_format f, const uint8_t *codes, int j, int k)
{
    int i = k % 8; /* bytes hold k 0 4 1 5 2 6 3 7; nibbles in the same order, low ones first */
    int at = 2 * (i % 4) + i / 4;
    if (f.pack == LA_PACK_I8 || f.pack == LA_PACK_F8) {
        return codes[(k / 8) * 256 + (at / 4) * 128 + 4 * j + at % 4];
    }
    int span = la_format_step(f), eight = k % span / 8; /* of the step */
    const uint8_t *step = codes + (size_t)(k / span) * la_format_codes(f, span);
    int low = step[eight * 128 + 4 * j + at % 4] >> (at / 4 * 4) & 15;
    if (f.pack != LA_PACK_I5 && f.pack != LA_PACK_I6) {
        return (uint8_t)low;
    }
    int bits = f.pack == LA_PACK_I5 ? 1 : 2, part = 4 * eight + j / 16 * 2 + at / 4;
    int high = step[span / 8 * 128 + 4 * (j % 16) + at % 4] >> (bits * part);
    return (uint8_t)(low | (high & ((1 << bits) - 1)) << 4);
}

/* What a code stands for before its scale. */
static float scalar_value(la_format f, uint8_t code)
{
    const uint16_t *table = la_pack_table(f.pack);
    if (table != NULL) {
        return la_bf16_to_f32(table[code]);
    }
    return f.pack == LA_PACK_F8 ? la_f8_to_f32(code) : (float)(code - la_format_zero(f));
}

/* Scale (i = 0) or offset (i = 1) of column j in the group that begins at k; head: where the group's
 * scales are, or the unit if they lie at its head. */
static float scalar_scale(la_format f, const uint8_t *head, int i, int j, int k)
{
    if (f.scale_type == LA_F16_I8) {
        const uint16_t *outer = (const uint16_t *)(const void *)(head + la_format_outer(f, i, k));
        int8_t inner = (int8_t)head[la_format_inner(f, i, k) + (size_t)j];
        return la_f16_to_f32(outer[j]) * (float)inner;
    }
    if (f.scale_type == LA_E8M0) {
        return la_e8m0_to_f32(head[la_format_inner(f, i, k) + (size_t)j]);
    }
    if (f.scale_type == LA_F16) {
        return la_f16_to_f32(((const uint16_t *)(const void *)head)[i * LA_UNIT + j]);
    }
    return ((const float *)(const void *)head)[i * LA_UNIT + j];
}

static void unpack_row(const uint8_t *unit, la_format f, int n, int K, float *out)
{
    const uint16_t *half = (const uint16_t *)(const void *)unit;
    for (int k = 0; k < K && f.group == 0; k++) {
        if (f.pack == LA_PACK_F32) {
            out[k] = ((const float *)(const void *)unit)[(size_t)k * LA_UNIT + (size_t)n];
        }
        else {
            uint16_t h = half[(size_t)(k / 2) * 64 + (size_t)(2 * n + k % 2)];
            out[k] = f.pack == LA_PACK_F16 ? la_f16_to_f32(h) : la_bf16_to_f32(h);
        }
    }
    const uint8_t *group = unit + la_format_unit_header(f, K);
    for (int k0 = 0; k0 < K && f.group != 0; k0 += f.group) {
        const uint8_t *head = la_format_header(f) == 0 ? unit : group;
        const uint8_t *codes = group + la_format_header(f);
        int kn = K - k0 < f.group ? K - k0 : f.group;
        float scale = scalar_scale(f, head, 0, n, k0);
        float offset = f.has_offset ? scalar_scale(f, head, 1, n, k0) : 0.0f;
        for (int k = 0; k < kn; k++) {
            out[k0 + k] = scale * scalar_value(f, scalar_code(f, codes, n, k)) + offset;
        }
        group = codes + la_format_codes(f, kn);
    }
}

/* Column j of a group's codes [from, end) by a row, which begins where the group does. */
static float scalar_dot_i8(la_format f, const uint8_t *codes, int j, int from, int end,
                           const int8_t *a)
{
    int32_t dot = 0;
    for (int k = from; k < end; k++) {
        int i = k % 8, at = 2 * (i % 4) + i / 4; /* where act_i8 put k */
        dot += (scalar_code(f, codes, j, k) - la_format_zero(f)) * a[k - i + at];
    }
    return (float)dot;
}

static float scalar_dot_bf16(la_format f, const uint8_t *codes, int j, int from, int end,
                             const uint16_t *a)
{
    float dot = 0.0f;
    for (int k = from; k < end; k++) {
        dot += scalar_value(f, scalar_code(f, codes, j, k)) * la_bf16_to_f32(a[k]);
    }
    return dot;
}

/* k of an activation group. */
static int scalar_fold(const la_gemm *g) { return g->fold ? g->fold : g->f.group; }

/* One row and one unit of a grouped product. a8 or a16 is the row, the other is NULL. */
static void scalar_grouped(const la_gemm *g, const uint8_t *w, const int8_t *a8,
                           const uint16_t *a16, const la_act_meta *meta, float *c)
{
    for (int j = 0; j < LA_UNIT; j++) {
        c[j] = 0.0f;
    }
    const int late = g->f.row_scale && !g->f.has_offset;
    const uint8_t *group = w + la_format_unit_header(g->f, g->K);
    for (int k0 = 0; k0 < g->K; k0 += g->f.group) {
        const uint8_t *head = la_format_header(g->f) == 0 ? w : group;
        const uint8_t *codes = group + la_format_header(g->f);
        int kn = g->K - k0 < g->f.group ? g->K - k0 : g->f.group;
        for (int from = 0; from < kn; from += scalar_fold(g), meta++) {
            int end = kn - from < scalar_fold(g) ? kn : from + scalar_fold(g);
            for (int j = 0; j < LA_UNIT; j++) {
                float scale = late ? 1.0f : scalar_scale(g->f, head, 0, j, k0);
                float dot = a8 ? scalar_dot_i8(g->f, codes, j, from, end, a8 + k0)
                               : scalar_dot_bf16(g->f, codes, j, from, end, a16 + k0);
                c[j] = fmaf(dot, scale * meta->scale, c[j]);
                if (g->f.has_offset) {
                    c[j] = fmaf(scalar_scale(g->f, head, 1, j, k0), meta->sum, c[j]);
                }
            }
        }
        group = codes + la_format_codes(g->f, kn);
    }
    for (int j = 0; j < LA_UNIT && late; j++) {
        c[j] *= scalar_scale(g->f, w, 0, j, 0);
    }
}

static void gemm_grouped(const la_gemm *g, int int8)
{
    int n_groups = (g->K + scalar_fold(g) - 1) / scalar_fold(g);
    for (int u = 0; u < g->n_units; u++) {
        for (int m = 0; m < g->M; m++) {
            const uint8_t *a = g->a + (size_t)m * g->a_pitch;
            scalar_grouped(g, g->w + (size_t)u * g->w_pitch, int8 ? (const int8_t *)a : NULL,
                           int8 ? NULL : (const uint16_t *)(const void *)a,
                           g->meta + (size_t)m * (size_t)n_groups,
                           g->c + (size_t)m * (size_t)g->ldc + u * LA_UNIT);
        }
    }
}

static void gemm_i8_bf16(const la_gemm *g) { gemm_grouped(g, 0); }

static void gemm_i8_i8(const la_gemm *g) { gemm_grouped(g, 1); }

static void gemm_i4_bf16(const la_gemm *g) { gemm_grouped(g, 0); }

static void gemm_i4_i8(const la_gemm *g) { gemm_grouped(g, 1); }

static void gemm_f8_bf16(const la_gemm *g) { gemm_grouped(g, 0); }

static void gemm_i5_bf16(const la_gemm *g) { gemm_grouped(g, 0); }

static void gemm_i5_i8(const la_gemm *g) { gemm_grouped(g, 1); }

static void gemm_i6_bf16(const la_gemm *g) { gemm_grouped(g, 0); }

static void gemm_i6_i8(const la_gemm *g) { gemm_grouped(g, 1); }

static void gemm_t4_bf16(const la_gemm *g) { gemm_grouped(g, 0); }

/* streams: 1, 2, 4 or 8 places read at once. The scalar level leaves prefetching to the machine. */
static uint64_t probe_read(const uint8_t *p, size_t n, int streams, int ahead)
{
    uint64_t any = 0, x;
    size_t part = n / (size_t)streams / 8 * 8;
    (void)ahead;
    for (size_t i = 0; i < part; i += 8) {
        for (int s = 0; s < streams; s++) {
            memcpy(&x, p + (size_t)s * part + i, sizeof x);
            any |= x;
        }
    }
    for (size_t i = part * (size_t)streams; i < n; i++) {
        any |= p[i];
    }
    return any;
}

static float probe_f32(int64_t n)
{
    float acc[16] = {0};
    for (int64_t i = 0; i < n; i++) {
        for (int j = 0; j < 16; j++) {
            acc[j] = acc[j] * 0.5f + 1.0f;
        }
    }
    float sum = 0.0f;
    for (int j = 0; j < 16; j++) {
        sum += acc[j];
    }
    return sum;
}

static float probe_bf16(int64_t n)
{
    float acc[16] = {0};
    for (int64_t i = 0; i < n; i++) {
        for (int j = 0; j < 16; j++) {
            float a = la_bf16_to_f32((uint16_t)(i & 0x3fff));
            acc[j] += la_bf16_to_f32((uint16_t)(0x3c00 + j)) * a;
        }
    }
    float sum = 0.0f;
    for (int j = 0; j < 16; j++) {
        sum += acc[j];
    }
    return sum;
}

static float probe_i8(int64_t n)
{
    uint32_t acc[16] = {0};
    for (int64_t i = 0; i < n; i++) {
        for (int j = 0; j < 16; j++) {
            acc[j] += (uint32_t)((int)(i & 127) * (j + 1));
        }
    }
    uint32_t sum = 0;
    for (int j = 0; j < 16; j++) {
        sum += acc[j];
    }
    return (float)sum;
}

static void fill_gemm(la_kernels *t)
{
    t->unpack_row = unpack_row;
    t->gemm_f32_f32 = gemm_f32_f32;
    t->gemm_f16_f32 = gemm_f16_f32;
    t->gemm_bf16_bf16 = gemm_bf16_bf16;
    t->gemm_i8_bf16 = gemm_i8_bf16;
    t->gemm_i8_i8 = gemm_i8_i8;
    t->gemm_i4_bf16 = gemm_i4_bf16;
    t->gemm_i4_i8 = gemm_i4_i8;
    t->gemm_f8_bf16 = gemm_f8_bf16;
    t->gemm_i5_bf16 = gemm_i5_bf16;
    t->gemm_i5_i8 = gemm_i5_i8;
    t->gemm_i6_bf16 = gemm_i6_bf16;
    t->gemm_i6_i8 = gemm_i6_i8;
    t->gemm_t4_bf16 = gemm_t4_bf16;
    t->probe_read = probe_read;
    t->probe_f32 = probe_f32;
    t->probe_bf16 = probe_bf16;
    t->probe_i8 = probe_i8;
}

#endif
