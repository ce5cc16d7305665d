/* attention.cu - attention of every token over the pages of its sequence, on any GPU from sm_80 on.
 *
 * A block takes one token and one kv head, with all query heads of that (G of them):
 *
 *     page of 64 tokens:   K [64][d] --+            V [64][d] --+
 *     q [G][d] ------------ scores [G][64] -> p [G][64] -------- o [G][d]
 *
 * Tokens are cut into chunks of LA_CHUNK at absolute positions. Where a step has few tokens, chunks are dealt out
 * to all blocks and a second launch folds their results; elsewhere a block folds those of its token one by one.
 * Invariant: within a chunk pages are met in their order from the first that counts, and chunks are folded in
 * theirs by the same arithmetic, so a token's result depends on its own position and pages alone, in prefill
 * and in decode. What a page holds behind the last token that counts is never read. Launched by backend_attend.cu.
 */
#include "la_ptx.h"
#include "launch.h"

#include <math.h>

extern "C" {
#include "../../model/backend.h"
}

enum { THREADS = 128, LOG2E_BITS = 0x3fb8aa3b, AT_ONCE = 8 /* chunks that a merge reads */ };

/* Where things lie in shared memory; rows of K are a word longer, so that neighbouring tokens lie in
 * different banks. */
typedef struct la_room {
    uint32_t q, o, p, k, v;
    uint32_t state;     /* of each head maximum, sum and what o is multiplied by */
    uint32_t all, sums; /* o and state of the chunks before, of blocks that fold */
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
    r.all = r.state + (uint32_t)group * 12;
    r.sums = r.all + head;
    r.k = (r.sums + (uint32_t)group * 12 + 15) / 16 * 16;
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
        la_cp_async_4(r.k + token * r.k_pitch + at, k + i);
        la_cp_async_4(r.v + token * (uint32_t)words * 4 + at, v + i);
    }
    la_cp_async_commit();
    la_cp_async_wait<0>(); /* all of the page is asked for at once */
}

/* Scores of tokens first .. last; a thread takes two heads and a token, whose keys it reads once. */
LA_DEV void score_page(const la_attend_paged_args &a, const la_room &r, int group, int first,
                       int last)
{
    for (int i = la_thread(); i < (group + 1) / 2 * LA_PAGE; i += THREADS) {
        const int g = i / LA_PAGE * 2, t = i % LA_PAGE, heads = group - g < 2 ? 1 : 2;
        if (t < first || t > last) {
            continue;
        }
        const uint32_t k = r.k + (uint32_t)t * r.k_pitch, q = r.q + (uint32_t)(g * a.d) * 4;
        const uint32_t other = q + (uint32_t)((heads - 1) * a.d) * 4;
        float sum[2] = {0.0f, 0.0f};
        for (uint32_t j = 0; j < (uint32_t)a.d; j += 2) {
            const uint32_t pair = la_lds(k + j * 2);
            const la_u32x2 x = la_lds_x2(q + j * 4), y = la_lds_x2(other + j * 4);
            sum[0] = la_fma(la_float(x.x), la_bf16_lo(pair), sum[0]);
            sum[1] = la_fma(la_float(y.x), la_bf16_lo(pair), sum[1]);
            sum[0] = la_fma(la_float(x.y), la_bf16_hi(pair), sum[0]);
            sum[1] = la_fma(la_float(y.y), la_bf16_hi(pair), sum[1]);
        }
        for (int h = 0; h < heads; h++) {
            float s = (h == 0 ? sum[0] : sum[1]) * a.scale;
            s = a.softcap != 0.0f ? a.softcap * tanhf(s / a.softcap) : s;
            la_sts_f32(r.p + (uint32_t)((g + h) * LA_PAGE + t) * 4, s);
        }
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

/* o = fade * o + p V; a thread takes two neighbouring values of two heads, and reads V once. */
LA_DEV void add_page(const la_attend_paged_args &a, const la_room &r, int group, int first,
                     int last)
{
    const int words = a.d / 2;
    for (int i = la_thread(); i < (group + 1) / 2 * words; i += THREADS) {
        const int g = i / words * 2, heads = group - g < 2 ? 1 : 2;
        const uint32_t at = r.o + (uint32_t)(g * words + i % words) * 8;
        const uint32_t p = r.p + (uint32_t)(g * LA_PAGE) * 4;
        const uint32_t next = (uint32_t)((heads - 1) * words) * 8; /* to the other head */
        const uint32_t row = (uint32_t)((heads - 1) * LA_PAGE) * 4;
        float o[2][2];
        LA_UNROLL
        for (int h = 0; h < 2; h++) {
            const uint32_t from = at + (h != 0 ? next : 0u);
            const int head = h < heads ? g + h : g;
            const float fade = la_lds_f32(r.state + (uint32_t)head * 12 + 8);
            o[h][0] = la_lds_f32(from) * fade;
            o[h][1] = la_lds_f32(from + 4) * fade;
        }
        for (int t = first; t <= last; t++) {
            const uint32_t v = la_lds(r.v + (uint32_t)(t * words + i % words) * 4);
            const float x = la_lds_f32(p + (uint32_t)t * 4);
            const float y = la_lds_f32(p + row + (uint32_t)t * 4);
            o[0][0] = la_fma(x, la_bf16_lo(v), o[0][0]);
            o[0][1] = la_fma(x, la_bf16_hi(v), o[0][1]);
            o[1][0] = la_fma(y, la_bf16_lo(v), o[1][0]);
            o[1][1] = la_fma(y, la_bf16_hi(v), o[1][1]);
        }
        LA_UNROLL
        for (int h = 0; h < 2; h++) {
            if (h < heads) {
                la_sts_f32(at + (h != 0 ? next : 0u), o[h][0]);
                la_sts_f32(at + (h != 0 ? next : 0u) + 4, o[h][1]);
            }
        }
    }
}

LA_DEV la_room moved(la_room r, uint32_t by)
{
    r.q += by;
    r.o += by;
    r.p += by;
    r.state += by;
    r.all += by;
    r.sums += by;
    r.k += by;
    r.v += by;
    return r;
}

/* How a running maximum moves on: what is behind it, and what comes, are multiplied so. */
typedef struct la_fold {
    float most, old, fresh;
} la_fold;

LA_DEV la_fold fold_of(float most, float next)
{
    const float log2e = la_float(LOG2E_BITS);
    la_fold f = {fmaxf(most, next), 0.0f, 0.0f};
    f.old = most == -INFINITY ? 0.0f : la_exp2((most - f.most) * log2e);
    f.fresh = next == -INFINITY ? 0.0f : la_exp2((next - f.most) * log2e);
    return f;
}

/* A result, of values that add up to `o` under the maximum `most` with the weights `sum`. */
LA_DEV float settle(const la_attend_paged_args &a, int head, float o, float most, float sum)
{
    if (a.sinks != NULL) {
        sum += la_exp2((la_ldg(a.sinks + head) - most) * la_float(LOG2E_BITS));
    }
    return o / sum;
}

/* A token as a block meets it, with the heads of one head of keys. */
typedef struct la_query {
    int t, pos, from; /* tokens from .. pos count */
    int head, kv, group;
    const int32_t *table; /* pages of its sequence */
} la_query;

LA_DEV la_query query_of(const la_attend_paged_args &a, int t)
{
    la_query u;
    u.t = t;
    u.pos = la_ldg(a.pos + t);
    u.from = a.window > 0 && u.pos >= a.window ? u.pos - a.window + 1 : 0;
    u.kv = la_block_y();
    u.group = a.n_heads / a.n_kv_heads;
    u.head = u.kv * u.group;
    u.table = a.table + la_ldg(a.first + t);
    return u;
}

/* Values, maxima and sums of a chunk, to shared memory; q is there or comes with it. */
LA_DEV void attend_chunk(const la_attend_paged_args &a, const la_room &r, const la_query &u,
                         int chunk)
{
    int start = chunk * LA_CHUNK, stop = start + LA_CHUNK - 1;
    int from = u.from > start ? u.from : start, to = u.pos < stop ? u.pos : stop;
    const float *q = a.q + u.t * a.ldq + (int64_t)u.head * a.d;
    la_sync_block(); /* the chunk before has been read */
    for (int i = la_thread(); i < u.group * a.d; i += THREADS) {
        la_sts_f32(r.q + (uint32_t)i * 4, la_ldg(q + i));
        la_sts_f32(r.o + (uint32_t)i * 4, 0.0f);
    }
    for (int g = la_thread(); g < u.group; g += THREADS) {
        la_sts_f32(r.state + (uint32_t)g * 12, -INFINITY);
        la_sts_f32(r.state + (uint32_t)g * 12 + 4, 0.0f);
    }
    for (int page = from / LA_PAGE; page <= to / LA_PAGE; page++) {
        int base = page * LA_PAGE, first = from > base ? from - base : 0;
        int last = to - base < LA_PAGE ? to - base : LA_PAGE - 1;
        const uint8_t *block =
            a.pages.base + la_ldg(u.table + page) * a.pages.page_bytes + u.kv * a.pages.head_bytes;
        la_sync_block(); /* the page before has been read */
        load_page(a, r, block, first, last);
        la_sync_block();
        score_page(a, r, u.group, first, last);
        la_sync_block();
        weigh_page(r, u.group, first, last);
        la_sync_block();
        add_page(a, r, u.group, first, last);
    }
    la_sync_block();
}

/* The results of heads whose values lie at `o` and maxima and sums at `state`. */
LA_DEV void store_heads(const la_attend_paged_args &a, const la_query &u, uint32_t o,
                        uint32_t state)
{
    float *out = a.out + u.t * a.ldo + (int64_t)u.head * a.d;
    for (int i = la_thread(); i < u.group * a.d; i += THREADS) {
        uint32_t g = (uint32_t)(i / a.d), at = state + g * 12;
        float x = la_lds_f32(o + (uint32_t)i * 4);
        la_stg(out + i, settle(a, u.head + (int)g, x, la_lds_f32(at), la_lds_f32(at + 4)));
    }
}

/* The chunk in shared memory joins those before it. */
LA_DEV void fold_chunk(const la_attend_paged_args &a, const la_room &r, const la_query &u)
{
    for (int i = la_thread(); i < u.group * a.d; i += THREADS) {
        uint32_t g = (uint32_t)(i / a.d) * 12, at = r.all + (uint32_t)i * 4;
        la_fold f = fold_of(la_lds_f32(r.sums + g), la_lds_f32(r.state + g));
        la_sts_f32(at, la_fma(la_lds_f32(r.o + (uint32_t)i * 4), f.fresh, la_lds_f32(at) * f.old));
    }
    la_sync_block(); /* all have seen the maxima */
    for (int i = la_thread(); i < u.group; i += THREADS) {
        uint32_t g = (uint32_t)i * 12;
        la_fold f = fold_of(la_lds_f32(r.sums + g), la_lds_f32(r.state + g));
        la_sts_f32(r.sums + g, f.most);
        la_sts_f32(r.sums + g + 4, la_fma(la_lds_f32(r.state + g + 4), f.fresh,
                                          la_lds_f32(r.sums + g + 4) * f.old));
    }
}

/* All chunks of a token, one after another. */
LA_DEV void attend_token(const la_attend_paged_args &a, const la_room &r)
{
    la_query u = query_of(a, la_block_x());
    int first = u.from / LA_CHUNK, last = u.pos / LA_CHUNK;
    for (int i = la_thread(); i < u.group * a.d; i += THREADS) {
        la_sts_f32(r.all + (uint32_t)i * 4, 0.0f);
    }
    for (int g = la_thread(); g < u.group; g += THREADS) {
        la_sts_f32(r.sums + (uint32_t)g * 12, -INFINITY);
        la_sts_f32(r.sums + (uint32_t)g * 12 + 4, 0.0f);
    }
    for (int chunk = first; chunk <= last; chunk++) {
        attend_chunk(a, r, u, chunk);
        fold_chunk(a, r, u);
    }
    la_sync_block();
    store_heads(a, u, r.all, r.sums);
}

/* The token of an item: the last whose first item is not behind it. */
LA_DEV int token_of(const la_attend_paged_args &a, int item)
{
    int lo = 0, hi = a.n;
    while (hi - lo > 1) {
        int half = (lo + hi) / 2;
        if (la_ldg(a.items + half) <= item) {
            lo = half;
        }
        else {
            hi = half;
        }
    }
    return lo;
}

/* Chunks of all tokens, dealt out to blocks. A token's only chunk is its result. */
LA_DEV void attend_items(const la_attend_paged_args &a, const la_room &r)
{
    int n = la_ldg(a.items + a.n);
    for (int item = la_block_x(); item < n; item += la_grid_x()) {
        la_query u = query_of(a, token_of(a, item));
        int chunk = item - la_ldg(a.items + u.t);
        if (chunk < u.from / LA_CHUNK) {
            continue; /* before the window */
        }
        attend_chunk(a, r, u, chunk);
        if (u.from / LA_CHUNK == u.pos / LA_CHUNK) {
            store_heads(a, u, r.o, r.state);
            continue;
        }
        float *to = a.partial + ((int64_t)item * a.n_heads + u.head) * (a.d + 2);
        for (int i = la_thread(); i < u.group * a.d; i += THREADS) {
            la_stg(to + i / a.d * (a.d + 2) + i % a.d, la_lds_f32(r.o + (uint32_t)i * 4));
        }
        for (int i = la_thread(); i < u.group * 2; i += THREADS) {
            la_stg(to + i / 2 * (a.d + 2) + a.d + i % 2,
                   la_lds_f32(r.state + (uint32_t)(i / 2 * 12 + i % 2 * 4)));
        }
    }
}

LA_KERNEL(la_attend_paged, la_attend_call)
{
    la_grid_wait();
    la_grid_release();
    if (a.a.items == NULL) {
        attend_token(a.a, moved(a.at, la_smem()));
    }
    else {
        attend_items(a.a, moved(a.at, la_smem()));
    }
}

/* Chunks of a token that has several, folded in their order by the arithmetic of fold_chunk. */
LA_KERNEL(la_attend_merge, la_attend_paged_args)
{
    la_grid_wait();
    la_grid_release();
    la_query u = query_of(a, la_block_x());
    int first = u.from / LA_CHUNK, last = u.pos / LA_CHUNK;
    if (first == last) {
        return;
    }
    int64_t step = (int64_t)a.n_heads * (a.d + 2);
    const float *from = a.partial + la_ldg(a.items + u.t) * step;
    float *out = a.out + u.t * a.ldo + (int64_t)u.head * a.d;
    for (int i = la_thread(); i < u.group * a.d; i += THREADS) {
        int head = u.head + i / a.d;
        const float *of = from + (int64_t)head * (a.d + 2);
        float most = -INFINITY, sum = 0.0f, o = 0.0f;
        for (int chunk = first; chunk <= last; chunk += AT_ONCE) {
            float value[AT_ONCE], top[AT_ONCE], weight[AT_ONCE];
            LA_UNROLL
            for (int j = 0; j < AT_ONCE; j++) { /* those beyond the last are read and not used */
                const float *p = of + (chunk + j < last ? chunk + j : last) * step;
                value[j] = la_ldg(p + i % a.d);
                top[j] = la_ldg(p + a.d);
                weight[j] = la_ldg(p + a.d + 1);
            }
            LA_UNROLL
            for (int j = 0; j < AT_ONCE; j++) {
                if (chunk + j <= last) {
                    la_fold f = fold_of(most, top[j]);
                    o = la_fma(value[j], f.fresh, o * f.old);
                    sum = la_fma(weight[j], f.fresh, sum * f.old);
                    most = f.most;
                }
            }
        }
        la_stg(out + i, settle(a, head, o, most, sum));
    }
}

/* Which items are a token's: one for each chunk up to its position. A warp, a lane a token. */
LA_KERNEL(la_chunks, la_chunks_args)
{
    la_grid_wait();
    la_grid_release();
    int t = la_lane();
    uint32_t sum = t < a.n ? (uint32_t)(la_ldg(a.pos + t) / LA_CHUNK + 1) : 0u;
    for (int by = 1; by < 32; by *= 2) {
        uint32_t before = la_shfl_up(sum, by);
        sum += t >= by ? before : 0u;
    }
    if (t == 0) {
        la_stg(a.items, 0);
    }
    if (t < a.n) {
        la_stg(a.items + t + 1, (int32_t)sum);
    }
}

extern "C" {

uint32_t la_attend_paged_smem(int group, int d)
{
    return room_of(group, d).bytes;
}

void la_launch_chunks(la_rt_stream *s, const la_chunks_args *a)
{
    la_rt_shape shape = {{1, 1, 1}, 32, 0, 0, 1};
    la_rt_launch(s, LA_ENTRY(la_chunks), a, sizeof *a, &shape);
}

void la_launch_attend_paged(la_rt_stream *s, const la_attend_paged_args *a, int blocks)
{
    la_attend_call call = {*a, room_of(a->n_heads / a->n_kv_heads, a->d)};
    int wide = (blocks + a->n_kv_heads - 1) / a->n_kv_heads;
    la_rt_shape shape = {
        {a->items == NULL ? a->n : wide, a->n_kv_heads, 1}, THREADS, 0, call.at.bytes, 1};
    la_rt_launch(s, LA_ENTRY(la_attend_paged), &call, sizeof call, &shape);
    if (a->items != NULL) {
        la_rt_shape merge = {{a->n, a->n_kv_heads, 1}, THREADS, 0, 0, 1};
        la_rt_launch(s, LA_ENTRY(la_attend_merge), a, sizeof *a, &merge);
    }
}

} // extern "C"
