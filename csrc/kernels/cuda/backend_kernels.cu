/* backend_kernels.cu - single kernels on tensors of users, by the launches that steps are made of.
 *
 * Owns the device's side of llmaccel.kernels: what a call needs beside its tensors (rows on their way into a product,
 * numbers of pages, rules of draws) lies in one room, which grows and is used by call after call in the order of the
 * stream; what a call needs beyond ROOM_KEPT goes with the next call. Invariant: no launch depends on how many rows
 * come along, as in steps, so a call of many goes in blocks of them. In the table of backend_tensors.cu.
 */
#include "backend_device.h"
#include "sample.h"

#include <string.h>

namespace {

enum { MOST_HEAD = 256, ROWS_AT_ONCE = 1 << 15 };
const size_t BLOCK_BYTES = (size_t)64 << 20; /* rows on their way to pages or into a product */
const size_t ROOM_KEPT = (size_t)128 << 20;

size_t aligned(size_t n)
{
    return (n + 255) / 256 * 256;
}

/* Of n rows of so many bytes. */
int rows_at_once(size_t bytes, int n)
{
    size_t fit = BLOCK_BYTES / bytes;
    int most = fit < 1 ? 1 : fit > ROWS_AT_ONCE ? ROWS_AT_ONCE : (int)fit;
    return most < n ? most : n;
}

/* What a call has taken of the room. */
struct room {
    la_cuda *cuda;
    size_t used;

    template <class T> T *take(size_t n)
    {
        T *at = reinterpret_cast<T *>(cuda->room + used);
        used += aligned(n * sizeof(T));
        return at;
    }
};

/* Of an allocation that was refused: the device's failure, if it has one. */
la_status no_memory(const la_cuda *cuda, size_t bytes)
{
    return la_rt_error(cuda->rt)[0] != '\0'
               ? la_cuda_failed(cuda)
               : cuda->host->fail(LA_ERR_MEMORY, "no memory for %zu bytes of scratch on cuda:%d",
                                  bytes, cuda->number);
}

/* As many bytes as a call is going to take. What an earlier one asked for has happened when its room goes. */
la_status make_room(la_cuda *cuda, size_t bytes)
{
    if (bytes <= cuda->room_bytes && (bytes > ROOM_KEPT || cuda->room_bytes <= ROOM_KEPT)) {
        return LA_OK;
    }
    la_rt_free(cuda->rt, cuda->room);
    cuda->room = static_cast<uint8_t *>(la_rt_alloc(cuda->rt, bytes));
    cuda->room_bytes = cuda->room != NULL ? bytes : 0;
    return cuda->room != NULL ? LA_OK : no_memory(cuda, bytes);
}

/* The numbers 0 .. n - 1 on the device. */
la_status make_counting(la_cuda *cuda, int n)
{
    if (n <= cuda->n_counting) {
        return LA_OK;
    }
    int32_t *host = static_cast<int32_t *>(cuda->host->alloc((size_t)n, sizeof *host));
    int32_t *made = static_cast<int32_t *>(la_rt_alloc(cuda->rt, (size_t)n * sizeof *made));
    la_status st = LA_OK;
    if (host == NULL || made == NULL) {
        st = no_memory(cuda, (size_t)n * sizeof *made);
    }
    for (int i = 0; st == LA_OK && i < n; i++) {
        host[i] = i;
    }
    st = st == LA_OK ? la_cuda_upload(cuda, made, host, (size_t)n * sizeof *made) : st;
    cuda->host->free(host);
    la_rt_free(cuda->rt, st == LA_OK ? cuda->counting : made);
    if (st == LA_OK) {
        cuda->counting = made;
        cuda->n_counting = n;
    }
    return st;
}

/* Of a call that only asked for launches. */
la_status asked(const la_cuda_turn &turn)
{
    return la_rt_error(turn.cuda->rt)[0] == '\0' ? LA_OK : la_cuda_failed(turn.cuda);
}

la_status unsupported(const la_cuda *cuda, const char *what)
{
    return cuda->host->fail(LA_ERR_UNSUPPORTED, "%s on cuda:%d; take .to('cpu') of it", what,
                            cuda->number);
}

la_pages pages_of(const la_device_cache *c)
{
    la_pages p = {c->base, (int64_t)(c->head_bytes * (size_t)c->n_heads), (int64_t)c->head_bytes,
                  (int64_t)c->k_bytes};
    return p;
}

la_status check_cache(const la_cuda *cuda, const la_device_cache *c)
{
    return c->d % 2 != 0 ? unsupported(cuda, "cache: heads of an odd size have no kernels") : LA_OK;
}

} // namespace

/* ---- rows ------------------------------------------------------------------------------------ */

la_status la_cuda_norm(la_backend *b, const la_device_norm *a)
{
    la_cuda_turn turn(b);
    la_norm_rows_args r = {a->x, a->D, a->w, a->b, a->out, a->D, a->n, a->D, a->kind, a->eps};
    la_launch_norm_rows(turn.cuda->s, &r);
    return asked(turn);
}

la_status la_cuda_elements(la_backend *b, const la_device_elements *a)
{
    la_cuda_turn turn(b);
    la_launch_elements(turn.cuda->s, a);
    return asked(turn);
}

/* Queries without keys and values: a token's angles are those of its number. */
la_status la_cuda_rope(la_backend *b, const la_device_rope *a)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    if (a->d > MOST_HEAD || (a->H + 3) / 4 > LA_GRID_YZ) {
        return unsupported(cuda,
                           "x: heads of more than 256 values, or more than 262140 heads, have "
                           "no kernel");
    }
    int most = a->T < ROWS_AT_ONCE ? a->T : ROWS_AT_ONCE;
    la_status st = make_counting(cuda, most);
    la_heads_args r = {};
    for (int t = 0; st == LA_OK && t < a->T; t += r.n) { /* numbers count from 0 in each block */
        int64_t values = (int64_t)t * a->H * a->d, angles = (int64_t)t * a->h;
        r.y = const_cast<float *>(a->x) + values; /* read only: no norms over whole rows */
        r.ldy = r.ldq = (int64_t)a->H * a->d;
        r.q = a->out + values;
        r.pos = cuda->counting;
        r.cos = a->cos + angles;
        r.sin = a->sin + angles;
        r.n = a->T - t < most ? a->T - t : most;
        r.n_heads = a->H;
        r.d = a->d;
        r.d_rope = 2 * a->h;
        r.interleaved = a->interleaved;
        r.norm = LA_QK_NORM_NONE;
        r.turned = 1;
        la_launch_heads(cuda->s, &r);
    }
    return st == LA_OK ? asked(turn) : st;
}

/* ---- pages ----------------------------------------------------------------------------------- */

namespace {

/* Tokens of a store, of which `from`, page and place are known: their rows side by side, then to their pages. */
void store_rows(la_cuda *cuda, const la_device_store *a, const int32_t *from, int n, float *rows)
{
    int width = a->cache.n_heads * a->cache.d;
    la_gather_args g = {a->k, width, from, rows, 2 * (int64_t)width, n, width};
    la_launch_gather(cuda->s, &g);
    g.x = a->v;
    g.out = rows + width;
    la_launch_gather(cuda->s, &g);
    la_heads_args h = {};
    h.y = rows;
    h.ldy = 2 * (int64_t)width;
    h.page = from + n;
    h.pos = from + 2 * n;
    h.pages = pages_of(&a->cache);
    h.n = n;
    h.n_kv_heads = a->cache.n_heads;
    h.d = a->cache.d;
    h.norm = LA_QK_NORM_NONE;
    la_launch_heads(cuda->s, &h);
}

} // namespace

la_status la_cuda_store(la_backend *b, const la_device_store *a)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    size_t row = 2 * (size_t)a->cache.n_heads * (size_t)a->cache.d * sizeof(float);
    int most = rows_at_once(row, a->T);
    size_t lists = aligned((size_t)most * 3 * sizeof(int32_t));
    la_status st = check_cache(cuda, &a->cache);
    st = st == LA_OK ? make_room(cuda, lists + aligned((size_t)most * row)) : st;
    int32_t *host = reinterpret_cast<int32_t *>(cuda->staging);
    for (int t = 0; st == LA_OK && t < a->T;) {
        room own = {cuda, 0};
        int32_t *from = own.take<int32_t>((size_t)most * 3);
        float *rows = own.take<float>((size_t)most * row / sizeof(float));
        int n = 0, end = a->T - t < most ? a->T : t + most;
        for (int i = t; i < end; i++) {
            n += a->slots[i] >= 0;
        }
        for (int k = 0; t < end; t++) {
            if (a->slots[t] >= 0) {
                host[k] = t;
                host[n + k] = a->slots[t] / LA_PAGE;
                host[2 * n + k++] = a->slots[t] % LA_PAGE;
            }
        }
        if (n > 0) {
            la_rt_copy(cuda->s, from, host, (size_t)n * 3 * sizeof *from, LA_RT_IN);
            st = la_rt_stream_wait(cuda->s) == 0 ? LA_OK : la_cuda_failed(cuda);
            store_rows(cuda, a, from, n, rows);
        }
    }
    return st == LA_OK ? asked(turn) : st;
}

namespace {

size_t most_tiles(const la_device_attend *a)
{
    return la_cuda_attend_most(a->T, a->H / a->cache.n_heads);
}

/* Tiles of the runs of tokens that follow each other in their sequence. */
int make_tiles(const la_device_attend *a, la_attend_tile *to)
{
    int made = 0;
    for (int t = 0, n; t < a->T; t += n) {
        for (n = 1; t + n < a->T && a->sequences[t + n] == a->sequences[t] &&
                    a->positions[t + n] == a->positions[t] + n;
             n++) {
        }
        made += la_cuda_attend_tiles(to + made, t, n, a->H / a->cache.n_heads);
    }
    return made;
}

/* What attention reads of a call beside its tensors, to the device: positions, where tables begin, tables, tiles. */
la_status send_tables(la_cuda *cuda, const la_device_attend *a, int32_t *to, int *n_tiles)
{
    size_t T = (size_t)a->T, n = (size_t)a->n_tables * (size_t)a->width;
    size_t most = most_tiles(a) * sizeof(la_attend_tile) / sizeof(int32_t);
    int32_t *host = static_cast<int32_t *>(cuda->host->alloc(2 * T + n + most, sizeof *host));
    if (host == NULL) {
        return cuda->host->fail(LA_ERR_MEMORY, "tables: out of memory");
    }
    memcpy(host, a->positions, T * sizeof *host);
    for (size_t i = 0; i < T; i++) {
        host[T + i] = a->sequences[i] * a->width;
    }
    memcpy(host + 2 * T, a->tables, n * sizeof *host);
    *n_tiles = make_tiles(a, reinterpret_cast<la_attend_tile *>(host + 2 * T + n));
    la_status st = la_cuda_upload(
        cuda, to, host, (2 * T + n) * sizeof *host + (size_t)*n_tiles * sizeof(la_attend_tile));
    cuda->host->free(host);
    return st;
}

int longest(const la_device_attend *a)
{
    int most = 0;
    for (int i = 0; i < a->T; i++) {
        most = a->positions[i] >= most ? a->positions[i] + 1 : most;
    }
    return most;
}

} // namespace

la_status la_cuda_attend_tensors(la_backend *b, const la_device_attend *a)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    la_model_desc d = {}; /* what the room of chunks depends on */
    d.attn = LA_ATTN_HEADS;
    d.n_heads = a->H;
    d.d_head = a->cache.d;
    la_cuda_attend_room chunks = la_cuda_attend_room_of(&d, a->T, longest(a));
    size_t numbers = 2 * (size_t)a->T + (size_t)a->n_tables * (size_t)a->width;
    size_t lists = numbers + most_tiles(a) * sizeof(la_attend_tile) / sizeof(int32_t);
    la_status st = check_cache(cuda, &a->cache);
    if (st == LA_OK && a->cache.n_heads > LA_GRID_YZ) {
        st = unsupported(cuda, "q: as many heads have no kernel");
    }
    chunks.bytes = a->T <= chunks.tokens ? chunks.bytes : 0;
    st = st == LA_OK ? make_room(cuda, aligned(lists * 4) + chunks.bytes) : st;
    room own = {cuda, 0};
    int32_t *pos = own.take<int32_t>(lists);
    uint8_t *at = own.take<uint8_t>(chunks.bytes);
    la_attend_paged_args r = {};
    st = st == LA_OK ? send_tables(cuda, a, pos, &r.n_tiles) : st;
    if (st != LA_OK) {
        return st;
    }
    r.q = a->q;
    r.ldq = r.ldo = (int64_t)a->H * a->cache.d;
    r.out = a->out;
    r.pos = pos;
    r.first = pos + a->T;
    r.table = pos + 2 * a->T;
    if ((size_t)r.n_tiles < most_tiles(a)) { /* else no tokens share one */
        r.tiles = reinterpret_cast<const la_attend_tile *>(pos + numbers);
    }
    r.sinks = a->sinks;
    r.pages = pages_of(&a->cache);
    r.n = a->T;
    r.n_heads = a->H;
    r.n_kv_heads = a->cache.n_heads;
    r.d = a->cache.d;
    r.window = a->window;
    r.scale = a->scale;
    r.softcap = a->softcap;
    la_cuda_attend_begin(cuda, &chunks, at, pos, a->T);
    la_cuda_attend(cuda, &chunks, at, &r);
    return asked(turn);
}

/* ---- products -------------------------------------------------------------------------------- */

la_status la_cuda_linear_tensors(la_backend *b, const la_device_linear *a)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    const la_weight *w = a->w;
    const int most = rows_at_once((size_t)w->K * sizeof(uint16_t), a->M);
    size_t numbers = (size_t)most * (size_t)w->K, columns = (size_t)w->n_units * LA_UNIT;
    la_status st = make_room(cuda, aligned(numbers * sizeof(uint16_t)) +
                                       aligned(columns * sizeof(float)) + la_product_room(most));
    if (st != LA_OK) {
        return st;
    }
    room own = {cuda, 0};
    uint16_t *entered = own.take<uint16_t>(numbers);
    float *bias = own.take<float>(columns);
    float *partial = own.take<float>(la_product_room(most) / sizeof(float));
    if (a->bias != NULL) { /* whole units of it are read */
        la_rt_fill(cuda->s, bias, 0, columns * sizeof *bias);
        la_rt_copy(cuda->s, bias, a->bias, (size_t)w->N * sizeof *bias, LA_RT_WITHIN);
    }
    la_product_args p = {};
    p.a = entered;
    p.w = reinterpret_cast<const uint16_t *>(w->data);
    p.bias = a->bias != NULL ? bias : NULL;
    p.ldo = w->N;
    p.N = w->N;
    p.K = w->K;
    p.finish.kind = LA_STORE;
    p.finish.scale = 1.0f;
    for (int first = 0; first < a->M; first += p.M) {
        p.M = a->M - first < most ? a->M - first : most;
        p.out = a->out + (int64_t)first * w->N;
        la_enter_args e = {a->x + (int64_t)first * w->K, w->K, NULL, NULL, entered, p.M, w->K,
                           w->f.pack == LA_PACK_F16,     -1,   0.0f};
        la_launch_enter(cuda->s, &e);
        la_cuda_multiply(cuda, w, &p, partial);
    }
    return asked(turn);
}

/* ---- the largest ----------------------------------------------------------------------------- */

namespace {

/* Rows first .. first + n - 1; rules lie in pinned memory and say where a row's best go. */
void best_rows(la_cuda *cuda, const la_device_best *a, int first, int n, room own)
{
    size_t rows = (size_t)n;
    la_sample_args s = {};
    s.logits = a->x + (int64_t)first * a->V;
    s.ldl = a->V;
    s.rules = own.take<la_draw_rule>(rows);
    s.drawn = own.take<la_drawn>(rows);
    s.tops = own.take<la_top>(rows * (size_t)a->k);
    s.n = n;
    s.V = a->V;
    la_launch_sample(cuda->s, &s);
    la_pick_args p = {};
    p.logits = s.logits;
    p.drawn = s.drawn;
    p.tops = a->values != NULL ? s.tops : NULL;
    p.ids = a->ids + (int64_t)first * a->k;
    p.values = a->values != NULL ? a->values + (int64_t)first * a->k : NULL;
    p.n = n;
    p.V = a->V;
    p.k = a->k;
    la_launch_pick(cuda->s, &p);
}

} // namespace

la_status la_cuda_best(la_backend *b, const la_device_best *a)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    int most = a->n < ROWS_AT_ONCE ? a->n : ROWS_AT_ONCE, ranks = a->values != NULL;
    size_t rows = (size_t)most, tops = rows * (size_t)a->k * sizeof(la_top);
    if (a->V > LA_SAMPLE_VOCABULARY || (ranks && a->k > LA_SAMPLE_TOPS)) {
        return unsupported(cuda, "k: more than 32, or of rows of more than 4194304, has no kernel");
    }
    la_status st = make_room(cuda, aligned(rows * sizeof(la_draw_rule)) +
                                       aligned(rows * sizeof(la_drawn)) + aligned(tops));
    la_draw_rule *rules = reinterpret_cast<la_draw_rule *>(cuda->staging);
    for (int i = 0; st == LA_OK && i < most; i++) {
        la_draw_rule r = {};
        r.repetition = 1.0f;
        r.top_p = 1.0f;
        r.target = ranks ? 0 : -1; /* temperature 0: the largest is drawn */
        r.n_top = ranks ? a->k : -1;
        r.top_at = i * a->k;
        r.allowed_at = -1;
        r.newest = -1;
        rules[i] = r;
    }
    if (st == LA_OK) {
        la_rt_copy(cuda->s, cuda->room, rules, rows * sizeof *rules, LA_RT_IN);
        st = la_rt_stream_wait(cuda->s) == 0 ? LA_OK : la_cuda_failed(cuda);
    }
    for (int first = 0, n = 0; st == LA_OK && first < a->n; first += n) {
        n = a->n - first < most ? a->n - first : most;
        best_rows(cuda, a, first, n, {cuda, 0});
    }
    return st == LA_OK ? asked(turn) : st;
}
