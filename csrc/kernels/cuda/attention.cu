/* attention.cu - attention of every token over the pages of its sequence, by mma.sync, on any GPU from sm_80 on.
 *
 * A row is a (token, query head) pair; a block takes rows of neighbouring tokens of one sequence and one kv head, a
 * warp 16 of them, all heads that share the keys side by side:
 *
 *     page of 64 tokens:     K [64][d] --+               V [64][d] --+      a stage: pages come by cp.async,
 *     q [16][d] in bf16 ----- scores [16][64] -> p in bf16 ------------ o   while the one before is worked at
 *
 * Scores, weights and sums stay in registers. Few rows: the warps of a block make the same scores and share out
 * the columns of V. Tokens are cut into chunks of LA_CHUNK at absolute positions. Where a step has few tokens, chunks
 * are dealt out to all blocks and a second launch folds their results; elsewhere a block folds those of its rows.
 * Invariant, of finite values: an element of scores and values is one chain of products, in the order of d and of tokens; a page of
 * which a row counts nothing leaves that row as it is; chunks are folded in their order by one function. So a row's
 * bits depend on its own position and pages alone, whatever the tile, in prefill and in decode. Of a page only
 * tokens that some row of the tile counts are read, the others are zeros. Launched by backend_attend.cu.
 */
#include "la_ptx.h"
#include "launch.h"

#include <math.h>

extern "C" {
#include "../../model/backend.h"
}

enum { LOG2E_BITS = 0x3fb8aa3b, AT_ONCE = 8 /* chunks that a merge reads */, FEW = 16 /* rows */ };
enum { TILES = LA_PAGE / 8, STEPS = LA_PAGE / 16, MERGERS = 128 };

/* What a launch brings. */
typedef struct la_attend_call {
    la_attend_paged_args a;
    uint32_t
        pitch; /* bytes of a row in shared memory; odd in 16s, so that 8 rows meet a bank once */
    uint32_t rows; /* of q, before the stages */
    int wide;      /* d in whole steps of 16 */
    int stages;    /* 1 or 2 */
} la_attend_call;

/* What a block works at: rows row .. row + n - 1 of a run of tokens, counted in heads. */
typedef struct la_work {
    int token, row, n, group;
    int from, to; /* tokens that some row counts */
    int apart;    /* 1: a chunk of several, whose result is left for la_attend_merge */
    const int32_t *table;
} la_work;

LA_DEV int token_of_row(const la_work &u, int row)
{
    return u.token + (u.row + row) / u.group;
}

LA_DEV int head_of_row(const la_work &u, int row)
{
    return la_block_y() * u.group + (u.row + row) % u.group;
}

/* The first token that one at `pos` counts. */
LA_DEV int first_of(const la_attend_paged_args &a, int pos)
{
    return a.window > 0 && pos >= a.window ? pos - a.window + 1 : 0;
}

LA_DEV la_work work_of(const la_attend_paged_args &a, la_attend_tile tile, int most)
{
    la_work u;
    u.token = tile.token;
    u.row = tile.row;
    u.group = a.n_heads / a.n_kv_heads;
    u.n = tile.n * u.group - tile.row;
    u.n = u.n < most ? u.n : most;
    u.from = first_of(a, la_ldg(a.pos + token_of_row(u, 0)));
    u.to = la_ldg(a.pos + token_of_row(u, u.n - 1));
    u.apart = 0;
    u.table = a.table + la_ldg(a.first + u.token);
    return u;
}

/* What a lane holds of the 16 rows of its warp: rows lane / 4 and 8 on, of each 8 columns two, as la_mma_bf16
 * leaves them. Maxima are in units of log2. */
template <int COLS> struct la_lane_rows {
    int n;                                  /* rows that are there */
    int open, last;                         /* positions of the first and of the last */
    int column;                             /* the first, of values */
    int pos[2];                             /* -1: no row */
    float most[2], sum[2];                  /* of the chunk; the sum is this lane's part */
    float top[2], mass[2];                  /* of the chunks before */
    float o[COLS / 8][4], all[COLS / 8][4]; /* values: of the chunk, of those before */
};

/* ---- the way in ---- */

/* Tokens first .. last of K or V, [64][d] each, to a stage in pieces; zeros for all others and behind d. */
template <int PIECE>
LA_DEV void load_pieces(const la_attend_call &c, const uint8_t *k, uint32_t to, int first, int last)
{
    const int row = c.a.d * 2, n = c.wide * 2 / PIECE, by = la_threads() / n,
              rest = la_threads() % n;
    int t = la_thread() / n, i = la_thread() % n;
    while (t < LA_PAGE) {
        const int at = i * PIECE, there = t >= first && t <= last && at < row ? PIECE : 0;
        const uint8_t *from = there ? k + t * row + at : k;
        const uint32_t into = to + (uint32_t)t * c.pitch + (uint32_t)at;
        if (PIECE == 16) {
            la_cp_async_16(into, from, there);
            la_cp_async_16(into + LA_PAGE * c.pitch, from + c.a.pages.k_bytes, there);
        }
        else {
            la_cp_async_4(into, from, there);
            la_cp_async_4(into + LA_PAGE * c.pitch, from + c.a.pages.k_bytes, there);
        }
        t += by;
        i += rest;
        if (i >= n) {
            i -= n;
            t++;
        }
    }
}

/* What counts of a page, to a stage: K, then V. A group of copies, empty behind the last page. */
LA_DEV void load_page(const la_attend_call &c, const la_work &u, uint32_t to, int page)
{
    if (page <= u.to / LA_PAGE) {
        const la_pages &p = c.a.pages;
        const uint8_t *k =
            p.base + la_ldg(u.table + page) * p.page_bytes + la_block_y() * p.head_bytes;
        const int first = u.from - page * LA_PAGE, last = u.to - page * LA_PAGE;
        if (c.a.d % 8 == 0) {
            load_pieces<16>(c, k, to, first, last);
        }
        else {
            load_pieces<4>(c, k, to, first, last);
        }
    }
    la_cp_async_commit();
}

/* Queries in bf16; zeros where a warp's rows end before 16, and behind d. */
LA_DEV void load_queries(const la_attend_call &c, const la_work &u, uint32_t to)
{
    const int rows = (u.n + 15) / 16 * 16;
    for (int row = la_thread() / 32; row < rows; row += la_threads() / 32) {
        const int there = row < u.n;
        const float *q = c.a.q;
        if (there) {
            q += token_of_row(u, row) * c.a.ldq + (int64_t)head_of_row(u, row) * c.a.d;
        }
        for (int i = la_lane() * 2; i < c.wide; i += 64) {
            const int in = there && i < c.a.d;
            const float x = in ? la_ldg(q + i) : 0.0f, y = in ? la_ldg(q + i + 1) : 0.0f;
            la_sts(to + (uint32_t)row * c.pitch + (uint32_t)i * 2, la_bf16x2(x, y));
        }
    }
}

template <int COLS>
LA_DEV void begin_rows(const la_attend_call &c, const la_work &u, int row, int column,
                       la_lane_rows<COLS> &r)
{
    r = {};
    r.n = u.n - row < 16 ? u.n - row : 16;
    r.column = column;
    r.pos[0] = r.pos[1] = -1;
    r.most[0] = r.most[1] = r.top[0] = r.top[1] = -INFINITY;
    if (r.n <= 0) {
        return;
    }
    r.open = la_ldg(c.a.pos + token_of_row(u, row));
    r.last = la_ldg(c.a.pos + token_of_row(u, row + r.n - 1));
    LA_UNROLL
    for (int h = 0; h < 2; h++) {
        const int own = la_lane() / 4 + 8 * h;
        r.pos[h] = own < r.n ? la_ldg(c.a.pos + token_of_row(u, row + own)) : -1;
    }
}

/* ---- a page ---- */

/* s = q K^T, a chain over d in steps of 16. */
LA_DEV void score_page(const la_attend_call &c, uint32_t q, uint32_t k, float (&s)[TILES][4])
{
    const int lane = la_lane(), steps = c.wide / 16;
    q += (uint32_t)(lane % 16) * c.pitch + (uint32_t)(lane / 16 * 16);
    k += (uint32_t)(lane / 16 * 8 + lane % 8) * c.pitch + (uint32_t)(lane / 8 % 2 * 16);
    LA_UNROLL
    for (int step = 0; step < steps; step++, q += 32, k += 32) {
        uint32_t x[4];
        la_ldmatrix_x4(x, q);
        LA_UNROLL
        for (int j = 0; j < TILES; j += 2) { /* 16 tokens: two matrices of d, twice */
            uint32_t b[4];
            la_ldmatrix_x4(b, k + (uint32_t)(j * 8) * c.pitch);
            const uint32_t near[2] = {b[0], b[1]}, far[2] = {b[2], b[3]};
            la_mma_bf16(s[j], x, near);
            la_mma_bf16(s[j + 1], x, far);
        }
    }
}

/* Sums to scores in units of log2; -INFINITY where a row does not count a token. */
template <int COLS>
LA_DEV void grade_page(const la_attend_paged_args &a, const la_lane_rows<COLS> &r, int base,
                       float (&s)[TILES][4])
{
    const float log2e = la_float(LOG2E_BITS), plain = a.scale * log2e;
    const float in = a.softcap != 0.0f ? a.scale / a.softcap : 0.0f, out = a.softcap * log2e;
    const int edge = base < first_of(a, r.last) || base + LA_PAGE - 1 > r.open;
    LA_UNROLL
    for (int j = 0; j < TILES; j++) {
        LA_UNROLL
        for (int i = 0; i < 4; i++) {
            s[j][i] = a.softcap != 0.0f ? out * tanhf(s[j][i] * in) : s[j][i] * plain;
            if (edge) {
                const int t = base + j * 8 + la_lane() % 4 * 2 + i % 2, pos = r.pos[i / 2];
                s[j][i] = t <= pos && t >= first_of(a, pos) ? s[j][i] : -INFINITY;
            }
        }
    }
}

/* Scores to weights in bf16, as A of the next product; sums are of what was rounded. */
template <int COLS>
LA_DEV void weigh_page(float (&s)[TILES][4], la_lane_rows<COLS> &r, uint32_t (&p)[STEPS][4])
{
    LA_UNROLL
    for (int h = 0; h < 2; h++) {
        float most = r.most[h], sum = 0.0f;
        LA_UNROLL
        for (int j = 0; j < TILES; j++) {
            most = fmaxf(most, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
        }
        most = fmaxf(most, la_shfl_xor_f32(most, 1));
        most = fmaxf(most, la_shfl_xor_f32(most, 2));
        const float fade = r.most[h] == -INFINITY ? 0.0f : la_exp2(r.most[h] - most);
        const float base = most == -INFINITY ? 0.0f : most; /* nothing counts yet */
        LA_UNROLL
        for (int j = 0; j < TILES; j++) {
            const float x = la_exp2(s[j][2 * h] - base), y = la_exp2(s[j][2 * h + 1] - base);
            const uint32_t pair = la_bf16x2(x, y);
            p[j / 2][j % 2 * 2 + h] = pair;
            sum += la_bf16_lo(pair) + la_bf16_hi(pair);
        }
        r.sum[h] = la_fma(r.sum[h], fade, sum);
        r.most[h] = most;
        LA_UNROLL
        for (int j = 0; j < COLS / 8; j++) {
            r.o[j][2 * h] *= fade;
            r.o[j][2 * h + 1] *= fade;
        }
    }
}

/* o += p V, a chain over the tokens; columns behind d are those of the last 16 again and are kept nowhere. */
template <int COLS>
LA_DEV void add_page(const la_attend_call &c, const uint32_t (&p)[STEPS][4], uint32_t v,
                     la_lane_rows<COLS> &r)
{
    const int lane = la_lane(), end = c.wide - 16;
    v += (uint32_t)(lane % 16) * c.pitch + (uint32_t)(lane / 16 * 16);
    LA_UNROLL
    for (int step = 0; step < STEPS; step++) {
        LA_UNROLL
        for (int j = 0; j < COLS / 8; j += 2) {
            const int column = r.column + j * 8;
            uint32_t b[4];
            la_ldmatrix_x4_trans(b, v + (uint32_t)(step * 16) * c.pitch +
                                        (uint32_t)(column < end ? column : end) * 2);
            const uint32_t near[2] = {b[0], b[1]}, far[2] = {b[2], b[3]};
            la_mma_bf16(r.o[j], p[step], near);
            la_mma_bf16(r.o[j + 1], p[step], far);
        }
    }
}

/* ---- chunks ---- */

/* How a running maximum moves on: what is behind it, and what comes, are multiplied so. */
typedef struct la_fold {
    float most, old, fresh;
} la_fold;

LA_DEV la_fold fold_of(float most, float next)
{
    la_fold f = {fmaxf(most, next), 0.0f, 0.0f};
    f.old = most == -INFINITY ? 0.0f : la_exp2(most - f.most);
    f.fresh = next == -INFINITY ? 0.0f : la_exp2(next - f.most);
    return f;
}

/* What a chunk brings joins what is there. */
LA_DEV float folded(const la_fold &f, float there, float next)
{
    return la_fma(next, f.fresh, there * f.old);
}

/* The sum of a row, of whose parts four lanes have one each. */
LA_DEV float whole_sum(float part)
{
    part += la_shfl_xor_f32(part, 1);
    return part + la_shfl_xor_f32(part, 2);
}

/* The chunk joins those before it, and the next one begins. */
template <int COLS> LA_DEV void fold_chunk(la_lane_rows<COLS> &r)
{
    LA_UNROLL
    for (int h = 0; h < 2; h++) {
        const la_fold f = fold_of(r.top[h], r.most[h]);
        r.mass[h] = folded(f, r.mass[h], whole_sum(r.sum[h]));
        LA_UNROLL
        for (int i = 0; i < COLS / 4; i++) {
            float &o = r.o[i / 2][2 * h + i % 2], &all = r.all[i / 2][2 * h + i % 2];
            all = folded(f, all, o);
            o = 0.0f;
        }
        r.top[h] = f.most;
        r.most[h] = -INFINITY;
        r.sum[h] = 0.0f;
    }
}

/* What values are divided by, of weights that add up to `sum` under the maximum `most`. */
LA_DEV float divisor(const la_attend_paged_args &a, int head, float most, float sum)
{
    if (a.sinks == NULL) {
        return sum;
    }
    return sum + la_exp2(la_ldg(a.sinks + head) * la_float(LOG2E_BITS) - most);
}

template <int COLS>
LA_DEV void store_rows(const la_attend_paged_args &a, const la_work &u, int row,
                       const la_lane_rows<COLS> &r)
{
    LA_UNROLL
    for (int h = 0; h < 2; h++) {
        const int own = la_lane() / 4 + 8 * h;
        if (own >= r.n) {
            continue;
        }
        const int head = head_of_row(u, row + own);
        const float by = divisor(a, head, r.top[h], r.mass[h]);
        float *out = a.out + token_of_row(u, row + own) * a.ldo + (int64_t)head * a.d;
        LA_UNROLL
        for (int j = 0; j < COLS / 8; j++) {
            const int column = r.column + j * 8 + la_lane() % 4 * 2;
            if (column < a.d) {
                la_stg(out + column, r.all[j][2 * h] / by);
                la_stg(out + column + 1, r.all[j][2 * h + 1] / by);
            }
        }
    }
}

/* Of a chunk that is one of several: values, maximum, sum. */
template <int COLS>
LA_DEV void store_chunk(const la_attend_paged_args &a, const la_work &u, int row, int item,
                        const la_lane_rows<COLS> &r)
{
    LA_UNROLL
    for (int h = 0; h < 2; h++) {
        const int own = la_lane() / 4 + 8 * h;
        const float sum = whole_sum(r.sum[h]);
        if (own >= r.n) {
            continue;
        }
        float *to = a.partial + ((int64_t)item * a.n_heads + head_of_row(u, row + own)) * (a.d + 2);
        LA_UNROLL
        for (int j = 0; j < COLS / 8; j++) {
            const int column = r.column + j * 8 + la_lane() % 4 * 2;
            if (column < a.d) {
                la_stg(to + column, r.o[j][2 * h]);
                la_stg(to + column + 1, r.o[j][2 * h + 1]);
            }
        }
        if (r.column == 0 && la_lane() % 4 == 0) {
            la_stg(to + a.d, r.most[h]);
            la_stg(to + a.d + 1, sum);
        }
    }
}

/* ---- tiles and items ---- */

/* The pages of a block's rows, one after another; chunks are folded where they end. */
template <int COLS>
LA_DEV void walk(const la_attend_call &c, const la_work &u, int row, la_lane_rows<COLS> &r)
{
    const uint32_t q = la_smem() + (uint32_t)row * c.pitch, stage = 2 * LA_PAGE * c.pitch;
    const uint32_t stages = la_smem() + c.rows * c.pitch;
    const int last = u.to / LA_PAGE;
    int page = u.from / LA_PAGE;
    for (int i = 0; i < c.stages; i++) {
        load_page(c, u, stages + (uint32_t)((page + i) & (c.stages - 1)) * stage, page + i);
    }
    for (; page <= last; page++) {
        const int base = page * LA_PAGE;
        const uint32_t k = stages + (uint32_t)(page & (c.stages - 1)) * stage;
        if (c.stages == 1) {
            la_cp_async_wait<0>();
        }
        else {
            la_cp_async_wait<1>();
        }
        la_sync_block(); /* the page is there, of the first one queries too */
        if (r.n > 0 && base <= r.last && base + LA_PAGE > first_of(c.a, r.open)) {
            float s[TILES][4] = {};
            uint32_t p[STEPS][4];
            score_page(c, q, k, s);
            grade_page(c.a, r, base, s);
            weigh_page(s, r, p);
            add_page(c, p, k + LA_PAGE * c.pitch, r);
        }
        if (!u.apart && (page == last || (base + LA_PAGE) % LA_CHUNK == 0)) {
            fold_chunk(r);
        }
        la_sync_block(); /* the page has been read by all */
        load_page(c, u, k, page + c.stages);
    }
}

/* Rows of a block; item: of a chunk apart. */
template <int COLS, int SLICES, int GROUPS>
LA_DEV void attend(const la_attend_call &c, const la_work &u, int item)
{
    const int warp = la_thread() / 32, row = warp % GROUPS * 16;
    la_lane_rows<COLS> r;
    load_queries(c, u, la_smem());
    begin_rows(c, u, row, SLICES == 1 ? 0 : warp / GROUPS * COLS, r);
    walk(c, u, row, r);
    if (r.n <= 0) {
        return;
    }
    if (u.apart) {
        store_chunk(c.a, u, row, item, r);
    }
    else {
        store_rows(c.a, u, row, r);
    }
}

LA_DEV la_attend_tile tile_of(const la_attend_paged_args &a, int most)
{
    la_attend_tile tile = {la_block_x(), 1, la_block_z() * most};
    if (a.tiles != NULL) {
        const la_attend_tile *from = a.tiles + la_block_x();
        tile.token = la_ldg(&from->token);
        tile.n = la_ldg(&from->n);
        tile.row = la_ldg(&from->row);
    }
    return tile;
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
template <int COLS, int SLICES, int GROUPS> LA_DEV void attend_items(const la_attend_call &c)
{
    const int n = la_ldg(c.a.items + c.a.n);
    for (int item = la_block_x(); item < n; item += la_grid_x()) {
        const int t = token_of(c.a, item), chunk = item - la_ldg(c.a.items + t);
        la_work u = work_of(c.a, {t, 1, la_block_z() * GROUPS * 16}, GROUPS * 16);
        if (chunk < u.from / LA_CHUNK) {
            continue; /* before the window */
        }
        const int start = chunk * LA_CHUNK, stop = start + LA_CHUNK - 1;
        u.apart = u.from / LA_CHUNK != u.to / LA_CHUNK;
        u.from = u.from > start ? u.from : start;
        u.to = u.to < stop ? u.to : stop;
        attend<COLS, SLICES, GROUPS>(c, u, item);
    }
}

/* Blocks that a multiprocessor has at a time, of heads of up to so many values. */
static constexpr int blocks_of(int values, int groups)
{
    return values > 128 ? 1 : groups > 1 ? 2 : 3;
}

/* A block has GROUPS times 16 rows, and a warp COLS columns of values: SLICES warps for the same rows. */
template <int COLS, int SLICES, int GROUPS>
LA_KERNEL_BOUNDS(la_attend_paged, la_attend_call, SLICES * GROUPS * 32,
                 blocks_of(COLS *SLICES, GROUPS))
{
    la_grid_wait();
    la_grid_release();
    if (a.a.items == NULL) {
        attend<COLS, SLICES, GROUPS>(a, work_of(a.a, tile_of(a.a, GROUPS * 16), GROUPS * 16), 0);
    }
    else {
        attend_items<COLS, SLICES, GROUPS>(a);
    }
}

/* Chunks of a token that has several, folded in their order as fold_chunk does. */
LA_KERNEL(la_attend_merge, la_attend_paged_args)
{
    la_grid_wait();
    la_grid_release();
    const int t = la_block_x(), group = a.n_heads / a.n_kv_heads, pos = la_ldg(a.pos + t);
    const int first = first_of(a, pos) / LA_CHUNK, last = pos / LA_CHUNK;
    if (first == last) {
        return;
    }
    const int64_t step = (int64_t)a.n_heads * (a.d + 2);
    const float *from = a.partial + la_ldg(a.items + t) * step;
    const int i = la_block_z() * MERGERS + la_thread();
    if (i < group * a.d) {
        const int head = la_block_y() * group + i / a.d;
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
                    const la_fold f = fold_of(most, top[j]);
                    o = folded(f, o, value[j]);
                    sum = folded(f, sum, weight[j]);
                    most = f.most;
                }
            }
        }
        la_stg(a.out + t * a.ldo + (int64_t)head * a.d + i % a.d, o / divisor(a, head, most, sum));
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

/* ---- launches ---- */

template <int COLS, int SLICES, int GROUPS>
static void launch(la_rt_stream *s, const la_attend_paged_args *a, const la_attend_device *on)
{
    la_attend_call c = {*a, 0, GROUPS * 16, (a->d + 15) / 16 * 16, 2};
    c.pitch = (uint32_t)c.wide * 2 + 16;
    const uint32_t q = c.rows * c.pitch, stage = 2 * LA_PAGE * c.pitch;
    c.stages = q + 2 * stage <= on->smem ? 2 : 1;
    const uint32_t bytes = q + (uint32_t)c.stages * stage;
    const int group = a->n_heads / a->n_kv_heads, high = (group + GROUPS * 16 - 1) / (GROUPS * 16);
    la_rt_shape shape = {{a->tiles != NULL ? a->n_tiles : a->n, a->n_kv_heads, high},
                         SLICES * GROUPS * 32,
                         0,
                         bytes,
                         1};
    if (a->items != NULL) { /* as many blocks as there is room for at a time, if there are chunks */
        const int fit = (int)((on->smem + 1024) / (bytes + 1024));
        const int most = blocks_of(COLS * SLICES, GROUPS), each = fit < most ? fit : most;
        const int wide =
            each * on->n_sms / (a->n_kv_heads * high); /* a late one doubles the time */
        shape.grid[0] = wide > 0 ? wide : 1;
    }
    else if (a->tiles != NULL) {
        shape.grid[2] = 1;
    }
    la_rt_launch(s, LA_ENTRY(la_attend_paged<COLS, SLICES, GROUPS>), &c, sizeof c, &shape);
}

extern "C" {

void la_launch_chunks(la_rt_stream *s, const la_chunks_args *a)
{
    la_rt_shape shape = {{1, 1, 1}, 32, 0, 0, 1};
    la_rt_launch(s, LA_ENTRY(la_chunks), a, sizeof *a, &shape);
}

void la_launch_attend_paged(la_rt_stream *s, const la_attend_paged_args *a,
                            const la_attend_device *on)
{
    const int few = a->n_heads / a->n_kv_heads <= FEW && (a->items != NULL || a->tiles == NULL);
    if (a->d <= 64) {
        few ? launch<16, 4, 1>(s, a, on) : launch<64, 1, 4>(s, a, on);
    }
    else if (a->d <= 128) {
        few ? launch<32, 4, 1>(s, a, on) : launch<128, 1, 4>(s, a, on);
    }
    else {
        few ? launch<64, 4, 1>(s, a, on) : launch<128, 2, 4>(s, a, on);
    }
    if (a->items != NULL) {
        const int values = a->n_heads / a->n_kv_heads * a->d;
        la_rt_shape merge = {
            {a->n, a->n_kv_heads, (values + MERGERS - 1) / MERGERS}, MERGERS, 0, 0, 1};
        la_rt_launch(s, LA_ENTRY(la_attend_merge), a, sizeof *a, &merge);
    }
}

} // extern "C"
