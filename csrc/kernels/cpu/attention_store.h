/* attention_store.h - one token's key and value into a page, for every form of page.
 *
 * Owns the writing of page slots; layouts are drawn in kernels.h. A block is 64 codes, two lines as
 * bf16 pages have them (pair p = 0, 1 of 2 d or of 2 tok, 16 columns), stored as [4 column groups][2 p]
 * [4 columns][2 of the pair], so that byte unpacking yields whole lines. Codes of V are sign and
 * magnitude for int8 as for E4M3, so that one look-up opens both. A value is code * scale of
 * its token; a token of zeros has scale 0; padding codes are zero. Invariants: every level writes the same
 * bytes; V slots without a token are zeros, codes and scales, K slots without one may hold
 * anything. The scales of int8 and fp8 pages are made here, per token and head: there is nothing to calibrate.
 * Included by attention.h, which fills the slots, and by attention_mla_fma.h.
 */
#ifndef LA_ATTENTION_STORE_H
#define LA_ATTENTION_STORE_H

#include "attention_codes.h"
#include "attention_core.h"

static void kv_store_f32(const float *k, const float *v, int d, int tok, void *kp, void *vp)
{
    float *kb = (float *)kp + (int64_t)(tok / 16) * d * 16 + tok % 16;
    for (int i = 0; k != NULL && i < d; i++) {
        kb[(int64_t)i * 16] = k[i];
    }
    if (v == NULL) {
        return;
    }
    if (tok == 0) {
        memset(vp, 0, (size_t)((d + 15) / 16) * LA_PAGE * 16 * sizeof(float));
    }
    for (int i = 0; i < d; i += 16) {
        float *line = (float *)vp + ((int64_t)(i / 16) * LA_PAGE + tok) * 16;
        memcpy(line, v + i, (size_t)(d - i < 16 ? d - i : 16) * sizeof(float));
    }
}

/* Rounds d <= 256 values to h [d rounded up to 16], zeros behind them. */
LA_INLINE void kv_round(const float *x, int d, uint16_t *h)
{
    for (int i = 0; i < (d + 15) / 16 * 16; i += VL) {
        v_store_bf16(h + i, d - i >= VL ? v_loadu(x + i) : v_loadn(x + i, d > i ? d - i : 0));
    }
}

static void kv_store_bf16(const float *k, const float *v, int d, int tok, void *kp, void *vp)
{
    uint16_t h[ATTEND_MAX_D];
    if (k != NULL) {
        int pairs = (d + 1) / 2;
        uint32_t *kb = (uint32_t *)kp + (int64_t)(tok / 16) * pairs * 16 + tok % 16;
        kv_round(k, d, h);
        for (int i = 0; i < pairs; i++) {
            kb[(int64_t)i * 16] = h[2 * i] | (uint32_t)h[2 * i + 1] << 16;
        }
    }
    if (v != NULL) {
        if (tok == 0) {
            memset(vp, 0, (size_t)((d + 15) / 16) * LA_PAGE * 16 * sizeof(uint16_t));
        }
        uint16_t *vb = (uint16_t *)vp + (int64_t)(tok / 2) * 32 + tok % 2;
        kv_round(v, d, h);
        for (int i = 0; i < d; i++) {
            vb[(int64_t)(i / 16) * (LA_PAGE / 2) * 32 + i % 16 * 2] = h[i];
        }
    }
}

LA_INLINE void kv_store_codes(const float *k, const float *v, int d, int tok, const int f8,
                              void *kp, void *vp)
{
    uint8_t code[ATTEND_MAX_D];
    la_kv_form form = f8 ? LA_KV_F8 : LA_KV_I8;
    if (k != NULL) {
        int quads = (d + 3) / 4, col = tok % 16;
        uint8_t *kb = (uint8_t *)kp + (int64_t)(tok / 16) * quads * ATTEND_LINE;
        float *scale = (float *)kp + la_kv_k_bytes(form, d) / sizeof(float) - LA_PAGE;
        scale[tok] = kv_codes(k, d, f8, code);
        for (int i = 0; i < quads; i++, kb += ATTEND_LINE) {
            if (f8) {
                memcpy(kb + col / 4 * 16 + col % 4 * 2, code + 4 * i, 2);
                memcpy(kb + col / 4 * 16 + col % 4 * 2 + 8, code + 4 * i + 2, 2);
                continue;
            }
            uint32_t four;
            memcpy(&four, code + 4 * i, 4);
            four ^= 0x80808080u;
            memcpy(kb + col * 4, &four, 4);
        }
    }
    if (v != NULL) {
        size_t bytes = la_kv_v_bytes(form, d);
        if (tok == 0) {
            memset(vp, 0, bytes);
        }
        ((float *)vp + bytes / sizeof(float) - LA_PAGE)[tok] = kv_codes(v, d, f8, code);
        uint8_t *vb = (uint8_t *)vp + tok / 4 * ATTEND_LINE + tok % 4 / 2 * 8 + tok % 2;
        for (int i = 0; i < d; i++) {
            uint8_t c = code[i];
            c = !f8 && c > 127 ? (uint8_t)(128 + (256 - c) % 128) : c;
            vb[i / 16 * 16 * ATTEND_LINE + i % 16 / 4 * 16 + i % 4 * 2] = c;
        }
    }
}

static void kv_store_i8(const float *k, const float *v, int d, int tok, void *kp, void *vp)
{
    kv_store_codes(k, v, d, tok, 0, kp, vp);
}

static void kv_store_f8(const float *k, const float *v, int d, int tok, void *kp, void *vp)
{
    kv_store_codes(k, v, d, tok, 1, kp, vp);
}

#endif
