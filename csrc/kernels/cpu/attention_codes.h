/* attention_codes.h - a head's values as int8 or E4M3 codes with one scale.
 *
 * Owns the rounding of keys and values into int8 and fp8 pages and of queries for integer scores.
 * Invariants: every level gives the same bits; the largest value of the head becomes 127 or 448, so nothing
 * is clipped; a head that is not finite gets a scale that is not. Included by attention_store.h and
 * attention_scores.h.
 */
#ifndef LA_ATTENTION_CODES_H
#define LA_ATTENTION_CODES_H

#include "act.h"

/* |x| <= 448 to E4M3, to nearest even: the adder rounds normals in place, subnormals are multiples
 * of 2^-9. Codes of lanes that are not finite are not defined; their scale is not finite either. */
LA_INLINE vi kv_e4m3(vf x)
{
    vi u = vi_bits(x), a = vi_and(u, vi_set1(0x7fffffff));
    vi odd = vi_and(vi_shr(a, 20), vi_set1(1));
    vi normal = vi_add(vi_shr(vi_add(a, vi_add(odd, vi_set1(0x7ffff))), 20), vi_set1(-(120 << 3)));
    vf small = v_bits(vi_from_f(v_mul(v_bits(a), v_set1(512.0f))));
    vi code = vi_bits(v_gt_select(v_set1(0x1p-6f), v_bits(a), small, v_bits(normal)));
    return vi_or(vi_and(code, vi_set1(0x7f)), vi_and(vi_shr(u, 24), vi_set1(0x80)));
}

/* Codes of x [d], zeros up to the next 16, and what multiplies them. */
LA_INLINE float kv_codes(const float *x, int d, const int f8, uint8_t *code)
{
    float amax = act_amax(x, 0, d), top = f8 ? 448.0f : 127.0f;
    int tiny = amax < LA_ACT_TINY;
    vf inv = v_set1(tiny ? 0.0f : top / amax), hi = v_set1(top), lo = v_set1(-top);
    for (int i = 0; i < d; i += 16) {
        vf v[LA_LANES16];
        int32_t lane[16];
        act_load16(x, i, d, v);
        for (int j = 0; j < LA_LANES16; j++) {
            vf y = v_max(v_min(v_mul(v[j], inv), hi), lo);
            vi_storeu(lane + j * VL, f8 ? kv_e4m3(y) : vi_from_f(y));
        }
        for (int j = 0; j < 16; j++) {
            code[i + j] = (uint8_t)lane[j];
        }
    }
    return tiny ? 0.0f : amax / top;
}

#endif
