/* attention.cu - attention of every token over the pages of its sequence, on any GPU from sm_80 on.
 *
 * A block takes one token and one kv head, with all query heads of that (G of them):
 *
 *     page of 64 tokens:   K [64][d] --+            V [64][d] --+
 *     q [G][d] ------------ scores [G][64] -> p [G][64] -------- o [G][d]
 *
 * Invariant: pages are met in their order from the first that counts, 64 whole tokens each, so a token's
 * result depends on its own position and pages alone, in prefill and in decode. What a page holds
 * behind the last token that counts is never read. Launched by backend.cu.
 */
#include "la_ptx.h"
#include "launch.h"

#include <math.h>

extern "C" {
#include "../../model/backend.h"
}

enum { THREADS = 128, LOG2E_BITS = 0x3fb8aa3b };

/* Where things lie in shared memory; rows of K are a word longer, so that neighbouring tokens lie in
 * different banks. */
typedef struct la_room {
    uint32_t q, o, p, state, k,
        v; /* state: of each head maximum, sum and what o is multiplied by */
    uint32_t k_pitch, bytes;
} la_room;

/* What a launch brings. */
typedef struct la_attend_call {
    la_attend_paged_args a;
    la_room at; /* from the start of shared memory */
} la_attend_call;

static la_room room_of(int group, int d)
{
    la_room r;
    uint32_t head = (uint32_t)(group * d) * 4;
    r.q = 0;
    r.o = r.q + head;
    r.p = r.o + head;
    r.state = r.p + (uint32_t)group * LA_PAGE * 4;
    r.k = (r.state + (uint32_t)group * 12 + 15) / 16 * 16;
    r.k_pitch = (uint32_t)d * 2 + 4;
    r.v = r.k + LA_PAGE * r.k_pitch;
    r.bytes = r.v + LA_PAGE * (uint32_t)d * 2;
    return r;
}

/* Tokens first .. last of a page, K and V, to shared memory. */
LA_DEV void load_page(const la_attend_paged_args &a, const la_room &r, const uint8_t *block,
                      int first, int last)
{
    int words = a.d / 2, n = (last - first + 1) * words;
    const uint32_t *k = (const uint32_t *)(const void *)block + first * words;
    const uint32_t *v = (const uint32_t *)(const void *)(block + a.pages.k_bytes) + first * words;
    for (int i = la_thread(); i < n; i += THREADS) {
        uint32_t token = (uint32_t)(first + i / words), at = (uint32_t)(i % words) * 4;
        la_sts(r.k + token * r.k_pitch + at, la_ldg(k + i));
        la_sts(r.v + token * (uint32_t)words * 4 + at, la_ldg(v + i));
    }
}

/* Scores of tokens first .. last; a thread takes a head and a token. */
LA_DEV void score_page(const la_attend_paged_args &a, const la_room &r, int group, int first,
                       int last)
{
    for (int i = la_thread(); i < group * LA_PAGE; i += THREADS) {
        uint32_t g = (uint32_t)(i / LA_PAGE), t = (uint32_t)(i % LA_PAGE);
        if ((int)t < first || (int)t > last) {
            continue;
        }
        float sum = 0.0f;
        for (uint32_t j = 0; j < (uint32_t)a.d; j += 2) {
            uint32_t k = la_lds(r.k + t * r.k_pitch + j * 2);
            uint32_t q = r.q + (g * (uint32_t)a.d + j) * 4;
            sum = la_fma(la_lds_f32(q), la_bf16_lo(k), sum);
            sum = la_fma(la_lds_f32(q + 4), la_bf16_hi(k), sum);
        }
        sum *= a.scale;
        sum = a.softcap != 0.0f ? a.softcap * tanhf(sum / a.softcap) : sum;
        la_sts_f32(r.p + (g * LA_PAGE + t) * 4, sum);
    }
}

/* Scores to weights; a warp takes a head, a lane two tokens. */
LA_DEV void weigh_page(const la_room &r, int group, int first, int last)
{
    const float log2e = la_float(LOG2E_BITS);
    for (int g = la_thread() / 32; g < group; g += THREADS / 32) {
        uint32_t state = r.state + (uint32_t)g * 12, row = r.p + (uint32_t)(g * LA_PAGE) * 4;
        float s[2], m, old = la_lds_f32(state), sum = 0.0f;
        for (int i = 0; i < 2; i++) {
            int t = la_lane() + 32 * i;
            s[i] = t >= first && t <= last ? la_lds_f32(row + (uint32_t)t * 4) : -INFINITY;
        }
        m = fmaxf(s[0], s[1]);
        for (int bits = 16; bits > 0; bits /= 2) {
            m = fmaxf(m, la_shfl_xor_f32(m, bits));
        }
        m = fmaxf(m, old);
        for (int i = 0; i < 2; i++) {
            s[i] = s[i] == -INFINITY ? 0.0f : la_exp2((s[i] - m) * log2e);
            sum += s[i];
            la_sts_f32(row + (uint32_t)(la_lane() + 32 * i) * 4, s[i]);
        }
        for (int bits = 16; bits > 0; bits /= 2) {
            sum += la_shfl_xor_f32(sum, bits);
        }
        float fade = old == -INFINITY ? 0.0f : la_exp2((old - m) * log2e);
        float all = la_fma(la_lds_f32(state + 4), fade, sum);
        la_sync_warp(); /* all lanes have read the state */
        if (la_lane() == 0) {
            la_sts_f32(state, m);
            la_sts_f32(state + 4, all);
            la_sts_f32(state + 8, fade);
        }
    }
}

/* o = fade * o + p V; a thread takes two neighbouring values of a head. */
LA_DEV void add_page(const la_attend_paged_args &a, const la_room &r, int group, int first,
                     int last)
{
    int words = a.d / 2;
    for (int i = la_thread(); i < group * words; i += THREADS) {
        uint32_t g = (uint32_t)(i / words), at = r.o + (uint32_t)i * 8;
        float fade = la_lds_f32(r.state + g * 12 + 8);
        float lo = la_lds_f32(at) * fade, hi = la_lds_f32(at + 4) * fade;
        for (int t = first; t <= last; t++) {
            float p = la_lds_f32(r.p + (g * LA_PAGE + (uint32_t)t) * 4);
            uint32_t v = la_lds(r.v + (uint32_t)(t * words + i % words) * 4);
            lo = la_fma(p, la_bf16_lo(v), lo);
            hi = la_fma(p, la_bf16_hi(v), hi);
        }
        la_sts_f32(at, lo);
        la_sts_f32(at + 4, hi);
    }
}

LA_DEV la_room moved(la_room r, uint32_t by)
{
    r.q += by;
    r.o += by;
    r.p += by;
    r.state += by;
    r.k += by;
    r.v += by;
    return r;
}

LA_DEV void attend_token(const la_attend_paged_args &a, const la_room &r)
{
    int t = la_block_x(), kv = la_block_y(), group = a.n_heads / a.n_kv_heads;
    int pos = la_ldg(a.pos + t), from = a.window > 0 && pos >= a.window ? pos - a.window + 1 : 0;
    const int32_t *table = a.table + la_ldg(a.first + t);
    const float *q = a.q + t * a.ldq + (int64_t)kv * group * a.d;
    for (int i = la_thread(); i < group * a.d; i += THREADS) {
        la_sts_f32(r.q + (uint32_t)i * 4, la_ldg(q + i));
        la_sts_f32(r.o + (uint32_t)i * 4, 0.0f);
    }
    for (int g = la_thread(); g < group; g += THREADS) {
        la_sts_f32(r.state + (uint32_t)g * 12, -INFINITY);
        la_sts_f32(r.state + (uint32_t)g * 12 + 4, 0.0f);
    }
    for (int page = from / LA_PAGE; page <= pos / LA_PAGE; page++) {
        int base = page * LA_PAGE, first = from > base ? from - base : 0;
        int last = pos - base < LA_PAGE ? pos - base : LA_PAGE - 1;
        const uint8_t *block =
            a.pages.base + la_ldg(table + page) * a.pages.page_bytes + kv * a.pages.head_bytes;
        la_sync_block(); /* the page before has been read */
        load_page(a, r, block, first, last);
        la_sync_block();
        score_page(a, r, group, first, last);
        la_sync_block();
        weigh_page(r, group, first, last);
        la_sync_block();
        add_page(a, r, group, first, last);
    }
    la_sync_block();
    float *out = a.out + t * a.ldo + (int64_t)kv * group * a.d;
    for (int i = la_thread(); i < group * a.d; i += THREADS) {
        uint32_t g = (uint32_t)(i / a.d), state = r.state + g * 12;
        float all = la_lds_f32(state + 4);
        if (a.sinks != NULL) {
            float sink = la_ldg(a.sinks + kv * group + (int)g);
            all += la_exp2((sink - la_lds_f32(state)) * la_float(LOG2E_BITS));
        }
        la_stg(out + i, la_lds_f32(r.o + (uint32_t)i * 4) / all);
    }
}

LA_KERNEL(la_attend_paged, la_attend_call)
{
    la_grid_wait();
    la_grid_release();
    attend_token(a.a, moved(a.at, la_smem()));
}

extern "C" {

uint32_t la_attend_paged_smem(int group, int d)
{
    return room_of(group, d).bytes;
}

void la_launch_attend_paged(la_rt_stream *s, const la_attend_paged_args *a)
{
    la_attend_call call = {*a, room_of(a->n_heads / a->n_kv_heads, a->d)};
    la_rt_shape shape = {{a->n, a->n_kv_heads, 1}, THREADS, 0, call.at.bytes, 1};
    la_rt_launch(s, LA_ENTRY(la_attend_paged), &call, sizeof call, &shape);
}

} // extern "C"
