/* probe.h - roofline probes over vec.h: memory reads and fp32 multiply-adds.
 *
 * Invariant: a probe's result depends on all it did, so nothing is optimised away. Which pattern
 * reads fastest differs between machines and from minute to minute; the caller tries several.
 * Included by isa_avx2.c and isa_avx512.c.
 */
#ifndef LA_PROBE_H
#define LA_PROBE_H

#include "../kernels.h"
#include "vec.h"

/* S streams of `part` bytes (a multiple of 512), 8 lines a round; hint 0 none, 1 all caches, 2
 * once. */
LA_INLINE vi probe_streams(const uint8_t *p, size_t part, const int S, const int hint, size_t ahead)
{
    vi any[8];
    LA_UNROLL
    for (int i = 0; i < 8; i++) {
        any[i] = vi_set1(0);
    }
    for (size_t at = 0; at < part; at += (size_t)(512 / S)) {
        LA_UNROLL
        for (int i = 0; i < 8; i++) {
            const uint8_t *line = p + (size_t)(i % S) * part + at + (size_t)(i / S) * 64;
            if (hint == 1) {
                __builtin_prefetch(line + ahead, 0, 3);
            }
            if (hint == 2) {
                __builtin_prefetch(line + ahead, 0, 0);
            }
            LA_UNROLL
            for (int v = 0; v < 16 / VL; v++) {
                any[i] = vi_or(any[i], vi_loadu(line + v * VL * 4));
            }
        }
    }
    LA_UNROLL
    for (int i = 1; i < 8; i++) {
        any[0] = vi_or(any[0], any[i]);
    }
    return any[0];
}

LA_INLINE vi probe_pattern(const uint8_t *p, size_t part, const int S, int ahead)
{
    if (ahead == 0) {
        return probe_streams(p, part, S, 0, 0);
    }
    return ahead > 0 ? probe_streams(p, part, S, 1, (size_t)ahead)
                     : probe_streams(p, part, S, 2, (size_t)-ahead);
}

/* streams: 1, 2, 4 or 8. ahead: bytes to prefetch ahead in each stream; negative: non-temporal. */
static uint64_t probe_read(const uint8_t *p, size_t n, int streams, int ahead)
{
    size_t part = n / (size_t)streams / 512 * 512;
    vi v;
    switch (streams) {
    case 1: v = probe_pattern(p, part, 1, ahead); break;
    case 2: v = probe_pattern(p, part, 2, ahead); break;
    case 4: v = probe_pattern(p, part, 4, ahead); break;
    default: v = probe_pattern(p, part, 8, ahead);
    }
    size_t at = part * (size_t)streams;
    for (; at + VL * 4 <= n; at += VL * 4) {
        v = vi_or(v, vi_loadu(p + at));
    }
    uint64_t lane[VL / 2], any = 0;
    vi_storeu(lane, v);
    for (int i = 0; i < VL / 2; i++) {
        any |= lane[i];
    }
    for (; at < n; at++) {
        any |= p[at];
    }
    return any;
}

/* AVX2 has 16 registers; 12 chains cover latency 6 at two a cycle. la_kernels_probe_ops counts
 * them. */
enum { PROBE_CHAINS = VL == 16 ? 16 : 12 };

static float probe_f32(int64_t n)
{
    vf acc[PROBE_CHAINS], half = v_set1(0.5f), one = v_set1(1.0f);
    LA_UNROLL
    for (int i = 0; i < PROBE_CHAINS; i++) {
        acc[i] = v_set1((float)i);
    }
    /* acc = acc * half + one: the accumulator is the operand that waits, as in a dot */
    for (int64_t j = 0; j < n; j++) {
        LA_UNROLL
        for (int i = 0; i < PROBE_CHAINS; i++) {
            acc[i] = v_fma(acc[i], half, one);
        }
    }
    float lane[VL], sum = 0.0f;
    LA_UNROLL
    for (int i = 1; i < PROBE_CHAINS; i++) {
        acc[0] = v_add(acc[0], acc[i]);
    }
    v_storeu(lane, acc[0]);
    for (int i = 0; i < VL; i++) {
        sum += lane[i];
    }
    return sum;
}

static void fill_probe(la_kernels *t)
{
    t->probe_read = probe_read;
    t->probe_f32 = probe_f32;
}

#endif
