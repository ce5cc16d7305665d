/* sample.cu - from a row of logits to a token, its logprob and the best alternatives, without sorting.
 *
 * Owns the kernel behind sample.h. A block takes a row and passes over it a bounded number of times:
 *
 *     raw row --largest--> --sums of exp--> lse                        (where logprobs are wanted)
 *        | rules, in `ruled`
 *        v
 *     p = exp(x / T - top), in `ruled`, and how many p and how much of them lie in each of 2048 bins
 *        |                       no filter: by slices of 4096 in the order of ids
 *        v
 *     walk: the bin in which a set ends, its members (in shared memory if they are few), the next 11 bits
 *           of p, and so on down to the id: the first so many, or so much, in the order (p falling, id rising)
 *
 * Masses of bins are sums of integers, since a bin lies within a power of two, so no order of threads can show.
 * Bounded whatever the row: equal values only make a bin's members many. Launched by backend_draws.cu.
 */
#include "sample_row.h"

/* ---- rules ---- */

LA_DEV int penalizes(const la_draw_rule *r)
{
    return la_ldg(&r->repetition) != 1.0f || la_ldg(&r->frequency) != 0.0f ||
           la_ldg(&r->presence) != 0.0f;
}

/* A token that was seen, and generated `count` times. */
LA_DEV void penalize(const la_draw_rule *r, float *at, int count)
{
    float v = la_ldg(at), repetition = la_ldg(&r->repetition);
    v = v > 0.0f ? v / repetition : v * repetition;
    float by = la_ldg(&r->frequency) * (float)count + la_ldg(&r->presence);
    la_stg(at, count > 0 ? v - by : v);
}

/* The row after allowed, banned, biases and penalties, in that order. */
LA_DEV void apply_rules(const la_sample_args &a, const la_draw_rule *r, const float *x,
                        float *ruled)
{
    int allowed = la_ldg(&r->allowed_at), n_ban = la_ldg(&r->n_ban), n_bias = la_ldg(&r->n_bias);
    int n_seen = la_ldg(&r->n_seen);
    const uint32_t *bits = a.words + (allowed < 0 ? 0 : allowed);
    la_row_each(x, a.V, [&](float v, int i) {
        int may = allowed < 0 || (la_ldg(bits + i / 32) >> (i % 32) & 1u) != 0;
        la_stg(ruled + i, may ? v : -INFINITY);
    });
    la_sync_block();
    const uint32_t *list = a.words + la_ldg(&r->ban_at);
    int newest = la_ldg(&r->newest);
    for (int i = la_thread(); i < n_ban; i += BLOCK) {
        int after = (int)la_ldg(list + 2 * i + 1);
        if (after < 0 || after == newest) {
            la_stg(ruled + la_ldg(list + 2 * i), -INFINITY);
        }
    }
    la_sync_block();
    list = a.words + la_ldg(&r->bias_at);
    for (int i = la_thread(); i < n_bias; i += BLOCK) {
        float *at = ruled + la_ldg(list + 2 * i);
        la_stg(at, la_ldg(at) + la_float(la_ldg(list + 2 * i + 1)));
    }
    list = a.words + la_ldg(&r->seen_at);
    uint32_t mark = la_smem() + COUNTER_AT; /* has the newest token been found in the list? */
    if (la_thread() == 0) {
        la_sts(mark, newest < 0);
    }
    la_sync_block();
    for (int i = la_thread(); i < n_seen; i += BLOCK) {
        int id = (int)la_ldg(list + 2 * i), count = (int)la_ldg(list + 2 * i + 1);
        if (id == newest) {
            la_sts(mark, 1);
        }
        penalize(r, ruled + id, count + (id == newest));
    }
    la_sync_block();
    if (la_thread() == 0 && penalizes(r) && la_lds(mark) == 0) {
        penalize(r, ruled + newest, 1);
    }
    la_sync_block();
}

LA_DEV int has_rules(const la_draw_rule *r)
{
    return la_ldg(&r->allowed_at) >= 0 || la_ldg(&r->n_ban) != 0 || la_ldg(&r->n_bias) != 0 ||
           la_ldg(&r->n_seen) != 0 || (la_ldg(&r->newest) >= 0 && penalizes(r));
}

/* ---- walks down a row, best first ---- */

/* Place of a value in the order (value falling, id rising), as a number: the first is the largest.
 * 32 bits of the value, ID_BITS of what is left of the ids. */
LA_DEV uint64_t place_of(uint32_t key, int id)
{
    return (uint64_t)key << ID_BITS | (uint32_t)((1 << ID_BITS) - 1 - id);
}

LA_DEV int id_of(uint64_t place)
{
    return (1 << ID_BITS) - 1 - (int)(place & ((1u << ID_BITS) - 1));
}

/* Of a logit: its bits in the order of numbers, NaN last, both zeros the same. */
LA_DEV uint64_t place_of_logit(float x, int id)
{
    uint32_t bits = la_bits(x + 0.0f);
    return place_of(!(x == x) ? 0u : bits >> 31 != 0 ? ~bits : bits | 0x80000000u, id);
}

/* Of a p in (0, 1]: no more than 30 bits. */
LA_DEV uint64_t place_of_p(float p, int id)
{
    return place_of(la_bits(p) << 2, id);
}

/* A p as mantissa * 2^(exponent - 150), from its place; subnormal ones have exponent 1. */
LA_DEV uint32_t mantissa_of(uint64_t place)
{
    uint32_t bits = (uint32_t)(place >> (ID_BITS + 2));
    return (bits & 0x7fffffu) | (bits >= 0x800000u ? 0x800000u : 0u);
}

LA_DEV double unit_of(int exponent)
{
    return (double)la_float((uint32_t)(exponent > 1 ? exponent : 1) << 23) * 0x1p-23;
}

LA_DEV void clear_bins(uint32_t at)
{
    for (int i = la_thread(); i < 3 * BINS; i += BLOCK) {
        la_sts(at + 4 * (uint32_t)i, 0);
    }
    la_sync_block();
}

/* One more in a bin, and its mantissa, of which 64 bits are kept. */
LA_DEV void add_to_bin(uint32_t at, int bin, uint32_t mantissa)
{
    at += 4 * (uint32_t)bin;
    la_atomic_add_shared(at, 1);
    if (mantissa != 0 && la_atomic_add_shared(at + 4 * BINS, mantissa) + mantissa < mantissa) {
        la_atomic_add_shared(at + 8 * BINS, 1);
    }
}

LA_DEV int bin_count(uint32_t at, int bin)
{
    return (int)la_lds(at + 4 * (uint32_t)bin);
}

LA_DEV double bin_mass(uint32_t at, int bin, int exponent)
{
    at += 4 * (uint32_t)bin;
    uint64_t sum = (uint64_t)la_lds(at + 8 * BINS) << 32 | la_lds(at + 4 * BINS);
    return (double)sum * unit_of(exponent);
}

/* A row that is walked: of p, or of logits (which weigh nothing). WHOLE holds its bins. */
typedef struct la_path {
    const float *x;
    int V, weighs;
} la_path;

/* Where a walk is: what lies before, and the upper bits of the place it has come to. */
typedef struct la_mark {
    int n, exponent;
    double mass;
    uint64_t place;
} la_mark;

/* f(place) for the thread's share: of the list where listed >= 0, else of the row. */
template <class F> LA_DEV void each_place(const la_path *path, int listed, F f)
{
    for (int i = la_thread(); i < listed; i += BLOCK) {
        f(la_row_get(la_smem() + LIST_AT + 8 * (uint32_t)i));
    }
    if (listed < 0) {
        la_row_each(path->x, path->V, [&](float x, int i) {
            if (!path->weighs) {
                f(place_of_logit(x, i));
            }
            else if (x > 0.0f) {
                f(place_of_p(x, i));
            }
        });
    }
}

/* What a lane finds in its bins: the one where `limit` members or a mass of `want` are reached, else its last. */
LA_DEV void search_bins(uint32_t hist, int level, la_mark at, int limit, double want)
{
    int per_lane = BINS / 32, bin = -1;
    for (int k = 0; k < per_lane; k++) {
        int b = BINS - 1 - la_lane() * per_lane - k, count = bin_count(hist, b);
        if (count == 0) {
            continue;
        }
        int exponent = level == 0 ? b >> BINS_EXPONENT : at.exponent;
        if (bin >= 0) {
            at.n += bin_count(hist, bin);
            at.mass += bin_mass(hist, bin, level == 0 ? bin >> BINS_EXPONENT : at.exponent);
        }
        bin = b;
        if (at.n + count >= limit || at.mass + bin_mass(hist, b, exponent) >= want) {
            break;
        }
    }
    uint32_t found = la_smem() + FOUND_AT;
    la_row_put(found, la_row_bits(at.mass));
    la_sts(found + 8, (uint32_t)bin);
    la_sts(found + 12, (uint32_t)bin_count(hist, bin));
    la_sts(found + 16, (uint32_t)at.n);
}

/* One level down: the bin in which the walk ends, by one warp for all. */
LA_DEV int descend(uint32_t hist, int level, int bits, int limit, double want, la_mark *at)
{
    la_sync_block(); /* all is counted, and what was found before has been read */
    if (la_thread() < 32) {
        int per_lane = BINS / 32, n = 0;
        double mass = 0.0;
        for (int k = 0; k < per_lane; k++) {
            int b = BINS - 1 - la_lane() * per_lane - k, count = bin_count(hist, b);
            n += count;
            mass += count == 0 ? 0.0
                               : bin_mass(hist, b, level == 0 ? b >> BINS_EXPONENT : at->exponent);
        }
        int sum = la_row_scan_warp(n);
        double weight = la_row_scan_warp(mass);
        int here = n > 0 && (at->n + sum >= limit || at->mass + weight >= want);
        uint32_t ends = la_ballot(here), some = la_ballot(n > 0);
        double before = la_row_shuffle_up(weight, 1);
        la_mark mine = *at;
        mine.n += sum - n;
        mine.mass += la_lane() == 0 ? 0.0 : before;
        /* the first lane where it ends; by rounding all may be less than was asked for: the last one */
        if (ends != 0 ? here && (ends & ((1u << la_lane()) - 1)) == 0
                      : n > 0 && some >> la_lane() == 1) {
            search_bins(hist, level, mine, limit, want);
        }
    }
    la_sync_block();
    uint32_t found = la_smem() + FOUND_AT;
    int bin = (int)la_lds(found + 8);
    at->mass = la_row_double(la_row_get(found));
    at->n = (int)la_lds(found + 16);
    at->place = at->place << bits | (uint32_t)bin;
    at->exponent = level == 0 ? bin >> BINS_EXPONENT : at->exponent;
    return (int)la_lds(found + 12);
}

/* Places of the row that pass `want(place)`, at most LISTED, into the list in any order. */
template <class F> LA_DEV void fill_list(const la_path *path, F wanted)
{
    uint32_t counter = la_smem() + COUNTER_AT;
    if (la_thread() == 0) {
        la_sts(counter, 0);
    }
    la_sync_block();
    each_place(path, -1, [&](uint64_t place) {
        if (wanted(place)) {
            la_row_put(la_smem() + LIST_AT + 8 * la_atomic_add_shared(counter, 1), place);
        }
    });
    la_sync_block();
}

/* Down the order until `limit` members or a mass of `want` are reached; the last one is in the mark. */
LA_DEV la_mark walk(const la_path *path, int limit, double want)
{
    const int all = 32 + ID_BITS;
    la_mark at = {0, 0, 0.0, 0};
    int done = 11, listed = -1;
    int members = descend(la_smem() + WHOLE_AT, 0, done, limit, want, &at);
    if (members <= LISTED) {
        uint64_t bin = at.place;
        fill_list(path, [&](uint64_t place) { return place >> (all - 11) == bin; });
        listed = members;
    }
    for (int level = 1; level < 5; level++) {
        int bits = level == 2 ? 10 : 11, below = all - done - bits;
        uint32_t hist = la_smem() + PART_AT;
        uint64_t above = at.place;
        clear_bins(hist);
        each_place(path, listed, [&](uint64_t place) {
            if (place >> (below + bits) == above) {
                add_to_bin(hist, (int)(place >> below & ((1u << bits) - 1)),
                           path->weighs ? mantissa_of(place) : 0);
            }
        });
        descend(hist, level, bits, limit, want, &at);
        done += bits;
    }
    at.n += 1;
    at.mass += path->weighs ? (double)mantissa_of(at.place) * unit_of(at.exponent) : 0.0;
    return at;
}

/* ---- drawing ---- */

/* Philox 4x32-10, the CPU's: in [0, 1), 53 bits. */
LA_DEV double uniform(const la_draw_rule *r)
{
    uint64_t key = la_ldg(&r->seed), stream = la_ldg(&r->stream), counter = la_ldg(&r->counter);
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream,
                     (uint32_t)(stream >> 32)};
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    LA_UNROLL
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t x = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, y = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[0] = x;
        c[1] = (uint32_t)p1;
        c[2] = y;
        c[3] = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)(((uint64_t)c[0] << 32 | c[1]) >> 11) * 0x1p-53;
}

/* The id at which the running sum of p passes `want`, in the order of ids: by slices, then in one, of which a
 * thread has eight. `best` where rounding finds none. */
LA_DEV int draw_in_order(const float *p, int V, double want, int best)
{
    double sum = 0.0;
    int s = 0;
    for (; (s + 1) * LA_SLICE < V && !(sum + la_row_slice(s) > want); s++) {
        sum += la_row_slice(s);
    }
    int first = s * LA_SLICE + 8 * la_thread();
    float v[8];
    double mine = 0.0;
    LA_UNROLL
    for (int j = 0; j < 8; j++) {
        v[j] = first + j < V ? la_ldg(p + first + j) : 0.0f;
        mine += (double)v[j];
    }
    double to_here = la_row_scan_warp(mine);
    uint32_t at = la_smem() + WARP_AT;
    la_sync_block();
    if (la_lane() == 31) {
        la_row_put(at + 8 * (uint32_t)(la_thread() / 32), la_row_bits(to_here));
    }
    la_sync_block();
    for (int w = 0; w < la_thread() / 32; w++) {
        sum += la_row_double(la_row_get(at + 8 * (uint32_t)w));
    }
    double before = la_row_shuffle_up(to_here, 1);
    sum += la_lane() == 0 ? 0.0 : before;
    uint32_t found = UINT32_MAX, last = 0; /* last + 1, 0: none */
    LA_UNROLL
    for (int j = 0; j < 8; j++) {
        sum += (double)v[j];
        if (v[j] > 0.0f) {
            found = sum > want && found == UINT32_MAX ? (uint32_t)(first + j) : found;
            last = (uint32_t)(first + j) + 1;
        }
    }
    found = la_redux_min(found);
    last = la_redux_max(last);
    la_sync_block();
    if (la_lane() == 0) {
        la_row_put(at + 8 * (uint32_t)(la_thread() / 32), (uint64_t)last << 32 | found);
    }
    la_sync_block();
    uint64_t other = la_row_get(at + 8 * (uint32_t)(la_lane() % WARPS));
    found = la_redux_min((uint32_t)other);
    last = la_redux_max((uint32_t)(other >> 32));
    return found != UINT32_MAX ? (int)found : last != 0 ? (int)last - 1 : best;
}

/* The row's draw: x [V] after the rules; p goes to `out`, which may be x. */
LA_DEV int draw(const la_draw_rule *r, const float *x, float *out, int V)
{
    float scale = 1.0f / la_ldg(&r->temperature), top_p = la_ldg(&r->top_p);
    float floor = la_ldg(&r->min_p);
    int top_k = la_ldg(&r->top_k), filtered = top_k > 0 || top_p < 1.0f;
    la_best best = la_row_best(x, V, 1.0f);
    float top = best.value * scale;
    if (!(top > -INFINITY) || top == INFINITY) { /* nothing to choose from, or one infinite logit */
        return la_row_best(x, V, scale).id;
    }
    uint32_t hist = la_smem() + WHOLE_AT;
    if (filtered) {
        clear_bins(hist);
    }
    auto p_of = [&](float v, int i) {
        float p = la_row_exp(v * scale - top);
        p = p > 0.0f && p >= floor ? p : 0.0f; /* NaN counts for nothing */
        la_stg(out + i, p);
        if (filtered && p > 0.0f) {
            uint64_t place = place_of_p(p, i);
            add_to_bin(hist, (int)(place >> (32 + ID_BITS - 11)), mantissa_of(place));
        }
        return p;
    };
    if (floor > 0.0f) {
        la_row_sum_slices<double>(x, V, p_of);
    }
    else {
        la_row_sum_slices<float>(x, V, p_of);
    }
    double total = la_row_all_slices(V), u = uniform(r);
    if (!filtered) {
        return draw_in_order(out, V, u * total, best.id);
    }
    la_path path = {out, V, 1};
    double want = top_k > 0 ? (double)INFINITY : (double)top_p * total;
    la_mark end = walk(&path, top_k > 0 ? top_k : V, want);
    if (top_k > 0 && top_p < 1.0f) {
        end = walk(&path, end.n, (double)top_p * end.mass);
    }
    /* past u of it, not at it */
    return id_of(walk(&path, end.n, nextafter(u * end.mass, (double)INFINITY)).place);
}

/* ---- logprobs ---- */

/* The row's n largest, in order, with their logprobs. */
LA_DEV void report_best(const float *x, int V, int n, double lse, la_top *tops)
{
    la_path path = {x, V, 0};
    uint32_t hist = la_smem() + WHOLE_AT;
    clear_bins(hist);
    each_place(&path, -1,
               [&](uint64_t place) { add_to_bin(hist, (int)(place >> (32 + ID_BITS - 11)), 0); });
    uint64_t least = walk(&path, n, (double)INFINITY).place;
    fill_list(&path, [&](uint64_t place) { return place >= least; });
    if (la_thread() < n) {
        uint64_t mine = la_row_get(la_smem() + LIST_AT + 8 * (uint32_t)la_thread());
        int before = 0, id = id_of(mine);
        for (int i = 0; i < n; i++) {
            before += la_row_get(la_smem() + LIST_AT + 8 * (uint32_t)i) > mine;
        }
        la_stg(&tops[before].id, id);
        la_stg(&tops[before].logprob, (float)((double)la_ldg(x + id) - lse));
    }
    la_sync_block();
}

/* 1 + how many are larger. */
LA_DEV int rank_of(const float *x, int V, float value)
{
    uint32_t larger = 0;
    la_row_each(x, V, [&](float v, int) { larger += v > value; });
    larger = la_redux_add(larger);
    uint32_t at = la_smem() + WARP_AT;
    la_sync_block();
    if (la_lane() == 0) {
        la_sts(at + 8 * (uint32_t)(la_thread() / 32), larger);
    }
    la_sync_block();
    return 1 + (int)la_redux_add(la_lane() < WARPS ? la_lds(at + 8 * (uint32_t)la_lane()) : 0);
}

LA_KERNEL_BOUNDS(la_sample, la_sample_args, BLOCK, 1)
{
    la_grid_wait();
    la_grid_release();
    const la_draw_rule *r = a.rules + la_block_x();
    const float *x = a.logits + la_block_x() * a.ldl;
    float *ruled = a.ruled + la_block_x() * a.ldr;
    la_drawn *drawn = a.drawn + la_block_x();
    int token = la_ldg(&r->target), n_top = la_ldg(&r->n_top);
    if (token < -1) {
        return;
    }
    double lse = 0.0;
    if (n_top >= 0) {
        float best = la_row_best(x, a.V, 1.0f).value;
        la_row_sum_slices<float>(x, a.V, [&](float v, int) { return la_row_exp(v * 1.0f - best); });
        lse = (double)best + log(la_row_all_slices(a.V));
    }
    if (token == -1) {
        const float *from = x;
        int empty = 0;
        if (has_rules(r)) {
            apply_rules(a, r, x, ruled);
            from = ruled;
            empty = la_row_best(ruled, a.V, 1.0f).value == -INFINITY;
        }
        token = empty                             ? LA_DRAW_EMPTY
                : la_ldg(&r->temperature) <= 0.0f ? la_row_best(from, a.V, 1.0f).id
                                                  : draw(r, from, ruled, a.V);
    }
    if (la_thread() == 0) {
        la_stg(&drawn->id, token);
    }
    if (n_top < 0 || token == LA_DRAW_EMPTY) {
        return;
    }
    float value = la_ldg(x + token);
    int rank = rank_of(x, a.V, value);
    if (la_thread() == 0) {
        la_stg(&drawn->logprob, (float)((double)value - lse));
        la_stg(&drawn->rank, rank);
    }
    if (n_top > 0) {
        report_best(x, a.V, n_top, lse, a.tops + la_ldg(&r->top_at));
    }
}

extern "C" void la_launch_sample(la_rt_stream *s, const la_sample_args *a)
{
    la_rt_shape shape = {{a->n, 1, 1}, BLOCK, 0, SMEM, 1};
    la_rt_launch(s, LA_ENTRY(la_sample), a, sizeof *a, &shape);
}
