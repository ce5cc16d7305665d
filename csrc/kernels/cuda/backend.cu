/* backend.cu - the CUDA backend: la_backend_ops on one device, one stream.
 *
 * Owns opening, the table and the order of launches of an op; memory and models are in backend_model.cu. Rows
 * are fp32 as on the CPU; into a product they go as 16 bits (those of its weights, fp16 saturated), weights are rows of 16 bits, pages bf16.
 * A step uploads what the batch brings from pinned memory and asks for every kernel (steps of a token a sequence: for
 * a graph of them, made when it is first wanted) and for what was drawn (backend_draws.cu); `results` waits for
 * that, if the engine likes after the next step was asked for. Invariant: what is not computed here is refused by name before a weight is read (`accept`) or when it is set (`pack`). Compiled by nvcc,
 * and by a C++ compiler for the emulator; opened through backend_dl.c.
 */
#include "backend_draws.h"
#include "backend_graphs.h"
#include "backend_states.h"
#include "cublaslt.h"

#include <stdio.h>
#include <string.h>

namespace {

/* Where the arrays of a step lie, in pinned memory and at the start of la_workspace.shared. */
struct step_layout {
    size_t tokens, pos, page, first, rows, tables, bytes;
    la_draws_layout draws; /* behind them */
    size_t linear, attend; /* rooms behind those, of the device alone */
};

/* la_workspace.own */
struct step_room {
    step_layout at;
    la_cuda_attend_room attend;
    size_t tiles;             /* where those of the step are, behind its tables */
    int n_tiles;              /* 0: tokens have their own */
    uint8_t *pinned[2];       /* [at.bytes], of steps in turns */
    la_rt_event *done[2];     /* their results are on the host */
    const la_batch *batch[2]; /* of those under way */
    int turn, n_under_way;
    la_draws *draws;
    la_cuda_states states;
    la_graphs graphs;
};

size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

la_status no_probe(const la_cuda *cuda)
{
    return cuda->host->fail(LA_ERR_UNSUPPORTED, "probe: backend 'cuda' has none");
}

la_status probe_read(la_backend *b, size_t, int, double *gb_per_s)
{
    memset(gb_per_s, 0, LA_READ_PATTERNS * sizeof *gb_per_s);
    return no_probe(la_cuda_of(b));
}

la_status probe_peak(la_backend *b, const char *, double *gop_per_s)
{
    *gop_per_s = 0.0;
    return no_probe(la_cuda_of(b));
}

la_status read_weights(la_model *m, int, double, double *gb_per_s)
{
    *gb_per_s = 0.0;
    return no_probe(la_cuda_of(m->b));
}

la_status alive(la_backend *b)
{
    la_cuda_turn turn(b);
    return turn.ok ? LA_OK : la_cuda_failed(turn.cuda);
}

/* ---- steps ----------------------------------------------------------------------------------- */

int group_of(const la_model_desc *d)
{
    return d->n_kv_heads > 0 ? d->n_heads / d->n_kv_heads : 0;
}

step_layout layout_of(const la_model_desc *d, const la_limits *limits)
{
    step_layout at;
    size_t T = (size_t)limits->max_batch_tokens, one = round_up(T * 4, 256);
    size_t pages = ((size_t)limits->max_len + LA_PAGE - 1) / LA_PAGE;
    size_t n_seqs = (size_t)limits->max_seqs < T ? (size_t)limits->max_seqs : T;
    at.tokens = 0;
    at.pos = one;
    at.page = 2 * one;
    at.first = 3 * one;
    at.rows = 4 * one;
    at.tables = 5 * one;
    size_t tiles = la_cuda_attend_most(limits->max_batch_tokens, group_of(d));
    at.bytes = at.tables + round_up(n_seqs * pages * 4 + tiles * sizeof(la_attend_tile), 256);
    at.draws = la_draws_layout_of(d, limits, at.bytes);
    size_t tile = LA_LOGIT_ROWS, rows = T < tile ? T : tile;
    size_t linear = la_cuda_linear_bytes(d, limits->max_batch_tokens);
    size_t ruled = rows * round_up((size_t)d->n_vocab, 16) * sizeof(float);
    /* rows on their way into a product, or logits after the rules of sampling */
    at.linear = at.bytes + at.draws.bytes;
    at.attend = at.linear + round_up(linear > ruled ? linear : ruled, 256);
    return at;
}

la_status check(const la_model_desc *, const la_limits *)
{
    return LA_OK; /* la_limits_check lets 2^20 tokens pass: a grid's x, in tiles of 64 a grid's y */
}

void scratch(const la_model_desc *d, const la_limits *limits, size_t *shared, size_t *local)
{
    int T = limits->max_batch_tokens;
    *shared = layout_of(d, limits).attend + la_cuda_attend_room_of(d, T, limits->max_len).bytes;
    *local = 0;
}

size_t host_bytes(const la_backend *b, const la_model_desc *d, const la_limits *limits)
{
    return 2 * layout_of(d, limits).bytes + la_draws_host_bytes(la_cuda_of(b), d, limits);
}

void strip(la_workspace *w)
{
    la_cuda_turn turn(w->b);
    la_cuda *cuda = turn.cuda;
    step_room *own = static_cast<step_room *>(w->own);
    if (own != NULL) {
        if (own->n_under_way > 0) {
            (void)la_rt_stream_wait(cuda->s);
        }
        la_graphs_drop(&own->graphs);
        for (int i = 0; i < 2; i++) {
            la_rt_unpin(cuda->rt, own->pinned[i]);
            la_rt_event_close(own->done[i]);
        }
        la_draws_close(cuda, own->draws);
        cuda->host->free(own);
        w->own = NULL;
    }
}

la_status equip(la_workspace *w, const la_model *m, const la_limits *limits)
{
    la_cuda_turn turn(w->b);
    la_cuda *cuda = turn.cuda;
    step_room *own = static_cast<step_room *>(cuda->host->alloc(1, sizeof *own));
    w->own = own;
    if (own == NULL) {
        return cuda->host->fail(LA_ERR_MEMORY, "workspace: out of memory");
    }
    if (!turn.ok) {
        strip(w);
        return la_cuda_failed(cuda);
    }
    own->at = layout_of(&m->desc, limits);
    own->attend = la_cuda_attend_room_of(&m->desc, limits->max_batch_tokens, limits->max_len);
    int bad = 0;
    for (int i = 0; i < 2; i++) {
        own->pinned[i] = static_cast<uint8_t *>(la_rt_pin(cuda->rt, own->at.bytes));
        own->done[i] = la_rt_event_open(cuda->rt);
        bad |= own->pinned[i] == NULL || own->done[i] == NULL;
    }
    la_status st =
        bad ? cuda->host->fail(LA_ERR_MEMORY, "workspace: cannot pin %zu bytes", 2 * own->at.bytes)
            : la_draws_open(cuda, m, w, limits, own->at.bytes, &own->draws);
    if (st != LA_OK) {
        strip(w);
    }
    return st;
}

/* An array of the step, on the device or in pinned memory. */
int32_t *array_at(uint8_t *base, size_t at)
{
    return reinterpret_cast<int32_t *>(base + at);
}

step_room *room_of(const la_ctx *c)
{
    return static_cast<step_room *>(c->w->own);
}

const int32_t *on_device(const la_ctx *c, size_t at)
{
    return array_at(c->w->shared, at);
}

/* The tiles of a step that runs as it is, to pinned memory at own->tiles. */
void make_tiles(step_room *own, const la_ctx *c, uint8_t *pinned)
{
    la_attend_tile *to = reinterpret_cast<la_attend_tile *>(pinned + own->tiles);
    own->n_tiles = 0;
    for (int s = 0; s < c->batch->n_spans; s++) {
        const la_span *span = &c->batch->spans[s];
        own->n_tiles += la_cuda_attend_tiles(to + own->n_tiles, span->first_token, span->n_tokens,
                                             group_of(&c->m->desc));
    }
}

/* What kernels read of the batch, to the device, and rows that fill it up to `size` tokens. */
void upload_batch(la_cuda *cuda, const la_ctx *c, int size)
{
    step_room *own = room_of(c);
    uint8_t *pinned = own->pinned[own->turn];
    const la_batch *batch = c->batch;
    int32_t *pos = array_at(pinned, own->at.pos), *page = array_at(pinned, own->at.page);
    int32_t *first = array_at(pinned, own->at.first);
    int32_t *rows = array_at(pinned, own->at.rows);
    int32_t *tables = array_at(pinned, own->at.tables), n = 0;
    memcpy(pinned + own->at.tokens, batch->tokens, (size_t)batch->n_tokens * 4);
    for (int s = 0; s < batch->n_spans; s++) {
        const la_span *span = &batch->spans[s];
        for (int i = 0; i < span->n_tokens; i++) {
            int t = span->first_token + i;
            pos[t] = span->first_pos + i;
            page[t] = span->pages[pos[t] / LA_PAGE];
            first[t] = n;
        }
        int pages = (span->first_pos + span->n_tokens + LA_PAGE - 1) / LA_PAGE;
        memcpy(tables + n, span->pages, (size_t)pages * 4);
        n += pages;
    }
    for (int i = 0; i < batch->n_rows; i++) {
        rows[i] = batch->rows[i].token;
    }
    for (int t = batch->n_tokens; t < size; t++) {
        array_at(pinned, own->at.tokens)[t] = pos[t] = first[t] = 0;
        page[t] = -1;
        rows[t] = t;
    }
    own->tiles = own->at.tables + (size_t)n * 4;
    own->n_tiles = 0; /* a graph serves steps of any runs */
    if (size == 0 && batch->n_spans < batch->n_tokens) {
        make_tiles(own, c, pinned);
    }
    size_t tiles = (size_t)own->n_tiles * sizeof(la_attend_tile);
    la_rt_copy(cuda->s, c->w->shared, pinned, own->tiles + tiles, LA_RT_IN);
}

/* Tokens of the graph that a step like this one takes: one whose tokens all have rows, and no more of them than a
 * tile of logits holds where the host draws of it; 0: it runs as it is. */
int graph_size(const la_ctx *c)
{
    int n = c->batch->n_tokens, most = c->w->max_tokens;
    if (c->batch->n_rows != n || c->batch->n_captures != 0 ||
        (n > c->w->logit_rows && la_draws_hosted(c->batch))) {
        return 0;
    }
    return la_graph_size(n, most);
}

la_status run(la_backend *b, void (*fn)(la_ctx *c), const la_ctx *proto)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    la_ctx c = *proto;
    if (turn.ok) {
        step_room *own = room_of(&c);
        la_draws *draws = own->draws;
        int size = graph_size(&c);
        upload_batch(cuda, &c, size);
        int all = la_draws_pack(draws, &c, own->turn, size) == c.batch->n_rows;
        la_rt_graph *graph = all && size > 0 ? la_graphs_take(&own->graphs, &c, size, fn) : NULL;
        if (graph != NULL) {
            la_rows logits = c.w->logits;
            logits.n = c.batch->n_rows < c.w->logit_rows ? c.batch->n_rows : c.w->logit_rows;
            la_rt_graph_run(graph, cuda->s);
            la_draws_host(draws, &c, 0, logits);
        }
        else {
            fn(&c);
            la_cuda_states_end(&own->states, cuda);
        }
        la_draws_fetch(draws, &c);
        la_rt_event_record(own->done[own->turn], cuda->s);
        own->batch[own->turn] = c.batch;
        own->turn = !own->turn;
        own->n_under_way++;
    }
    if (!turn.ok) {
        return la_cuda_failed(cuda);
    }
    return LA_OK;
}

la_status results(la_workspace *w)
{
    la_cuda_turn turn(w->b);
    la_cuda *cuda = turn.cuda;
    step_room *own = static_cast<step_room *>(w->own);
    int oldest = own->n_under_way == 2 ? own->turn : !own->turn;
    own->n_under_way--;
    if (!turn.ok || la_rt_event_wait(own->done[oldest]) != 0) {
        return la_cuda_failed(cuda);
    }
    la_draws_give(own->draws, own->batch[oldest], oldest);
    return LA_OK;
}

void step_threads(la_backend *, int)
{
}

void meet(la_ctx *)
{
}

/* ---- ops of a step --------------------------------------------------------------------------- */

void lookup(la_ctx *c, const la_matrix *m, size_t ids, float scale, int add, la_rows x)
{
    la_embed_args a = {};
    a.table = reinterpret_cast<const uint16_t *>(m->part[0].data);
    a.ids = on_device(c, ids);
    a.out = x.p;
    a.ldo = x.ld;
    a.n = x.n;
    a.D = c->m->desc.d_model;
    a.half = m->part[0].f.pack == LA_PACK_F16;
    a.add = add;
    a.scale = scale;
    la_launch_embed(la_cuda_of(c->b)->s, &a);
}

void embed(la_ctx *c, la_rows x)
{
    const step_layout *at = &room_of(c)->at;
    la_draws_resume(room_of(c)->draws, c, array_at(c->w->shared, at->tokens));
    la_cuda_attend_begin(la_cuda_of(c->b), &room_of(c)->attend, c->w->shared + at->attend,
                         on_device(c, at->pos), c->batch->n_tokens);
    lookup(c, &c->m->embed, at->tokens, c->m->desc.embed_scale, 0, x);
    if (c->m->pos_embed.n_parts != 0) {
        lookup(c, &c->m->pos_embed, at->pos, 1.0f, 1, x);
    }
}

void heads(la_ctx *c, int layer, la_rows qkv, la_rows q);

void linear(la_ctx *c, const la_matrix *m, la_rows in, la_rows out, la_norm norm,
            const la_epilogue *epi)
{
    la_cuda_linear_args a = {c->w->shared + room_of(c)->at.linear, m, in, out, norm, epi};
    if (epi->kind == LA_HEADS) { /* whole rows first: heads need other columns of theirs */
        a.out = c->w->y;
        a.out.n = in.n;
    }
    la_cuda_linear(c, &a);
    if (epi->kind == LA_HEADS) {
        heads(c, epi->layer, a.out, out);
    }
}

la_pages pages_of(const la_ctx *c, int layer)
{
    const la_kv_layout *at = &c->kv->at;
    la_pages p = {c->kv->base + (size_t)layer * at->layer_bytes, (int64_t)at->page_bytes,
                  (int64_t)at->head_bytes, (int64_t)at->k_bytes};
    return p;
}

void heads(la_ctx *c, int layer, la_rows qkv, la_rows q)
{
    const la_model_desc *d = &c->m->desc;
    const la_layer *w = &c->m->layers[layer];
    int table = c->m->layer_desc[layer].rope, turned = table >= 0 && d->d_rope != 0;
    la_heads_args a = {};
    a.y = qkv.p;
    a.ldy = qkv.ld;
    a.q = q.p;
    a.ldq = q.ld;
    a.pos = on_device(c, room_of(c)->at.pos);
    a.page = on_device(c, room_of(c)->at.page);
    a.q_norm = w->q_norm;
    a.k_norm = w->k_norm;
    a.cos = turned ? c->m->rope_cos[table] : NULL;
    a.sin = turned ? c->m->rope_sin[table] : NULL;
    a.pages = pages_of(c, layer);
    a.n = qkv.n;
    a.n_heads = d->n_heads;
    a.n_kv_heads = d->n_kv_heads;
    a.d = d->d_head;
    a.d_rope = d->d_rope;
    a.interleaved = d->rope_interleaved;
    a.norm = d->qk_norm;
    a.eps = d->norm_eps;
    a.turned = table >= 0;
    a.grow = d->attn_grow;
    a.grow_every = d->attn_grow_every;
    la_launch_heads(la_cuda_of(c->b)->s, &a);
}

void attend(la_ctx *c, int layer, la_rows q, la_rows out)
{
    const la_model_desc *d = &c->m->desc;
    const step_layout *at = &room_of(c)->at;
    la_attend_paged_args a = {};
    a.q = q.p;
    a.ldq = q.ld;
    a.out = out.p;
    a.ldo = out.ld;
    a.pos = on_device(c, at->pos);
    a.table = on_device(c, at->tables);
    a.first = on_device(c, at->first);
    a.sinks = c->m->layers[layer].sinks;
    a.n_tiles = room_of(c)->n_tiles;
    if (a.n_tiles > 0) {
        a.tiles = reinterpret_cast<const la_attend_tile *>(on_device(c, room_of(c)->tiles));
    }
    a.pages = pages_of(c, layer);
    a.n = q.n;
    a.n_heads = d->n_heads;
    a.n_kv_heads = d->n_kv_heads;
    a.d = d->d_head;
    a.window = c->m->layer_desc[layer].window;
    a.scale = d->attn_scale;
    a.softcap = d->attn_softcap;
    la_cuda_attend(la_cuda_of(c->b), &room_of(c)->attend, c->w->shared + at->attend, &a);
}

void add_norm(la_ctx *c, la_rows y, la_norm norm, float scale, la_rows x)
{
    la_add_norm_args a = {};
    a.y = y.p;
    a.ldy = y.ld;
    a.w = norm.w;
    a.b = norm.b;
    a.x = x.p;
    a.ldx = x.ld;
    a.n = x.n;
    a.D = c->m->desc.d_model;
    a.norm = c->m->desc.norm;
    a.eps = c->m->desc.norm_eps;
    a.scale = scale;
    la_launch_add_norm(la_cuda_of(c->b)->s, &a);
}

/* By way of y, which nobody needs between two products and which is as wide as heads are (latents might be
 * wider): blocks move rows in no order. */
void narrow(la_ctx *c, la_rows rows, int width)
{
    la_rt_stream *s = la_cuda_of(c->b)->s;
    const int32_t *from = on_device(c, room_of(c)->at.rows);
    la_rows y = c->w->y;
    la_gather_args there = {rows.p, rows.ld, from, y.p, y.ld, c->batch->n_rows, width};
    la_gather_args back = {y.p, y.ld, NULL, rows.p, rows.ld, c->batch->n_rows, width};
    la_launch_gather(s, &there);
    la_launch_gather(s, &back);
}

void capture(la_ctx *c, int layer, la_rows x, la_norm norm)
{
    la_cuda_states_take(&room_of(c)->states, c, layer, x, norm);
}

/* Logits after the rules go where rows on their way into a product were. */
void sample(la_ctx *c, int first, la_rows logits)
{
    step_room *own = room_of(c);
    float *scratch = reinterpret_cast<float *>(c->w->shared + own->at.linear);
    la_draws_launch(own->draws, c, first, logits, scratch);
    if (!own->graphs.noting) { /* a graph holds what the device does */
        /* a user's processor, called by the host's draws, may upload */
        la_cuda_states_end(&own->states, la_cuda_of(c->b));
        la_draws_host(own->draws, c, first, logits);
    }
}

/* ---- opening --------------------------------------------------------------------------------- */

void close_backend(la_backend *b)
{
    la_cuda *cuda = la_cuda_of(b);
    (void)la_rt_enter(cuda->rt);
    la_rt_unpin(cuda->rt, cuda->staging);
    la_rt_event_close(cuda->passing);
    la_rt_free(cuda->rt, cuda->room);
    la_rt_free(cuda->rt, cuda->counting);
    la_rt_stream_close(cuda->s);
    la_cublas_close(cuda->library);
    la_rt_close(cuda->rt);
    pthread_mutex_destroy(&cuda->turns);
    cuda->host->free(cuda);
}

void describe(const la_backend *b, la_backend_info *out)
{
    la_cuda_turn turn(b);
    const la_cuda *cuda = turn.cuda;
    la_rt_info now;
    la_rt_counts done;
    la_rt_describe(cuda->rt, &now);
    la_rt_count(cuda->rt, &done);
    *out = {};
    out->name = b->ops->name;
    out->isa = cuda->isa;
    out->device = cuda->info.name;
    out->memory_free = now.memory_free;
    out->memory_total = now.memory_total;
    out->grows = now.maps;
    out->library = cuda->library != NULL ? la_cublas_name(cuda->library) : NULL;
    out->library_products = cuda->library_products;
    out->library_refused = cuda->library_refused;
    out->graphs = done.graphs;
    out->replays = done.replays;
    out->n_threads = 1;
    out->n_cpus = 1;
    out->slots = cuda->slots;
    out->slot_isa = cuda->slots;
}

la_backend_ops make_ops()
{
    la_backend_ops o = {}; /* latents and experts: refused by accept, so never called */
    o.name = "cuda";
    o.close = close_backend;
    o.describe = describe;
    o.library = la_cuda_library;
    o.probe_read = probe_read;
    o.probe_peak = probe_peak;
    o.read_weights = read_weights;
    o.map = la_cuda_map;
    o.unmap = la_cuda_unmap;
    o.reserve = la_cuda_reserve;
    o.commit = la_cuda_commit;
    o.decommit = la_cuda_decommit;
    o.release = la_cuda_release;
    o.keep = la_cuda_keep;
    o.drop = la_cuda_drop;
    o.copy = la_cuda_copy;
    o.accept = la_cuda_accept;
    o.pack = la_cuda_pack;
    o.run = run;
    o.results = results;
    o.draws_ahead = la_draws_ahead;
    o.alive = alive;
    o.step_threads = step_threads;
    o.check = check;
    o.scratch = scratch;
    o.host_bytes = host_bytes;
    o.equip = equip;
    o.strip = strip;
    o.meet = meet;
    o.embed = embed;
    o.linear = linear;
    o.heads = heads;
    o.attend = attend;
    o.add_norm = add_norm;
    o.narrow = narrow;
    o.sample = sample;
    o.capture = capture;
    o.device = &la_cuda_device_ops;
    return o;
}

const la_backend_ops cuda_ops = make_ops();

} // namespace

/* la_backend_entry */
extern "C" __attribute__((visibility("default"))) int
la_backend_entry_open(int abi, const la_host_api *host, int device, la_backend **out)
{
    char why[256] = "";
    if (abi != LA_BACKEND_ABI) {
        return -LA_BACKEND_ABI;
    }
    *out = NULL;
    la_cuda *cuda = static_cast<la_cuda *>(host->alloc(1, sizeof *cuda));
    if (cuda == NULL) {
        return host->fail(LA_ERR_MEMORY, "backend: out of memory");
    }
    if (la_rt_open(device, &cuda->rt, why, sizeof why) != 0) {
        host->free(cuda);
        return host->fail(LA_ERR_UNSUPPORTED, "backend: cuda: %s", why);
    }
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&cuda->turns, &kind);
    pthread_mutexattr_destroy(&kind);
    la_rt_describe(cuda->rt, &cuda->info);
    snprintf(cuda->isa, sizeof cuda->isa, "sm_%d", cuda->info.cc);
    cuda->head.ops = &cuda_ops;
    cuda->head.n_threads = 1;
    cuda->head.granule = cuda->info.granule;
    cuda->host = host;
    cuda->number = device;
    cuda->s = la_rt_stream_open(cuda->rt);
    cuda->passing = la_rt_event_open(cuda->rt);
    cuda->staging = static_cast<uint8_t *>(la_rt_pin(cuda->rt, LA_CUDA_STAGING));
    if (cuda->info.cc < 80 || cuda->s == NULL || cuda->passing == NULL || cuda->staging == NULL) {
        int cc = cuda->info.cc;
        close_backend(&cuda->head);
        return cc < 80 ? host->fail(LA_ERR_UNSUPPORTED,
                                    "backend: cuda: a device of sm_%d; sm_80 is the first", cc)
                       : host->fail(LA_ERR_MEMORY, "backend: cuda: no memory");
    }
    *out = &cuda->head;
    return LA_OK;
}
