/* rt_host.cpp - la_rt.h without a GPU: device memory is the host's, kernels run in the emulator.
 *
 * Owns streams as queues. What is asked of a stream is done as late as a wait allows and, among streams,
 * in an order drawn from a seed, so that a host buffer that is used too early shows.
 * Memory starts as 0xff bytes, which are no numbers. Held to CUDA's rules: copies between host and device
 * take pinned memory, both ends lie inside one allocation, nothing waits or allocates while a graph is
 * noted. What breaks one is the device's first error, and its text says what. Environment of the tests:
 * LLMACCEL_EMU_SEED (order of streams; 0: that of calls), LLMACCEL_EMU_KERNELS (the same inside kernels,
 * which takes long; 0 if not set), LLMACCEL_EMU_MEMORY (bytes of the device),
 * LLMACCEL_EMU_PLAIN=1 (reservations are plain memory), LLMACCEL_EMU_MISSING (la_rt_open fails so),
 * LLMACCEL_EMU_FAULT (the launch of this number fails), LLMACCEL_EMU_GRAPH (the graph of this number finds no
 * memory), LLMACCEL_EMU_GRANULE (so does the granule of this number), LLMACCEL_EMU_CC (the compute capability, 90).
 */
#include "rt_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

using namespace la_host;

namespace {

constexpr size_t GRANULE = (size_t)1 << 20;

int64_t alive_at_close = 0;
la_rt *newest = nullptr;

} // namespace

struct la_rt_graph {
    la_rt *rt;
    std::vector<op> list;
};

namespace {

void fail(la_rt *rt, const std::string &why)
{
    if (rt->error.empty()) {
        rt->error = why;
    }
}

uint32_t draw(la_rt *rt)
{
    rt->state = rt->state * 1664525u + 1013904223u;
    return rt->state >> 8;
}

void add_piece(la_rt *rt, uint8_t *p, size_t bytes, int pinned)
{
    memset(p, 0xff, bytes);
    rt->pieces[p] = {bytes, pinned};
    rt->used += pinned ? 0 : bytes;
    rt->counts.allocations++;
    rt->counts.alive++;
    if (!pinned) {
        la_emu_register(p, bytes);
    }
}

void forget_piece(la_rt *rt, uint8_t *p)
{
    auto found = rt->pieces.find(p);
    if (found == rt->pieces.end()) {
        fail(rt, "free: an address that is no allocation's, or was freed");
        return;
    }
    if (!found->second.pinned) {
        la_emu_forget(p);
        rt->used -= found->second.bytes;
    }
    rt->pieces.erase(found);
    rt->counts.alive--;
}

/* What is there may go from a device that has failed, too. */
bool may_free(la_rt *rt, const char *what)
{
    if (rt->noting != nullptr) {
        fail(rt, std::string(what) + ": a graph is being noted");
    }
    return rt->noting == nullptr;
}

bool may_allocate(la_rt *rt, const char *what)
{
    return may_free(rt, what) && rt->error.empty();
}

void *allocate(la_rt *rt, size_t bytes, int pinned, const char *what)
{
    size_t n = (bytes + 255) / 256 * 256 + 256;
    if (!may_allocate(rt, what) || (!pinned && rt->used + n > rt->capacity)) {
        return nullptr;
    }
    uint8_t *p = static_cast<uint8_t *>(aligned_alloc(256, n));
    if (p != nullptr) {
        add_piece(rt, p, bytes > 0 ? bytes : 1, pinned);
    }
    return p;
}

void unmap_granule(la_rt *rt, uint8_t *base, size_t i)
{
    uint8_t *granule = base + i * GRANULE;
    if (rt->ranges[base].mapped[i] != 0) {
        rt->ranges[base].mapped[i] = 0;
        forget_piece(rt, granule);
        madvise(granule, GRANULE, MADV_DONTNEED);
        mprotect(granule, GRANULE, PROT_NONE);
    }
}

/* Those of granules first .. end - 1 that are not there yet, or, where memory ends, none of them. */
bool map_granules(la_rt *rt, uint8_t *base, size_t first, size_t end)
{
    std::vector<size_t> fresh;
    bool room = true;
    for (size_t i = first; room && i < end; i++) {
        if (rt->ranges[base].mapped[i] == 0) {
            room = ++rt->granules != rt->granule_without_memory &&
                   rt->used + GRANULE * (fresh.size() + 1) <= rt->capacity;
            fresh.push_back(i);
        }
    }
    for (size_t i = 0; room && i < fresh.size(); i++) {
        uint8_t *granule = base + fresh[i] * GRANULE;
        mprotect(granule, GRANULE, PROT_READ | PROT_WRITE);
        rt->ranges[base].mapped[fresh[i]] = 1;
        add_piece(rt, granule, GRANULE, 0);
    }
    return room;
}

void run_launch(la_rt_stream *s, const op &o)
{
    la_rt *rt = s->rt;
    la_emu_shape shape = {};
    char why[512] = "";
    memcpy(shape.grid, o.shape.grid, sizeof shape.grid);
    shape.block[0] = o.shape.threads;
    shape.cluster[0] = o.shape.cluster;
    shape.smem = o.shape.smem;
    shape.seed = rt->kernels != 0 ? rt->kernels + draw(rt) : 0;
    shape.dependent = o.shape.dependent;
    shape.writes = &s->writes;
    if (++rt->counts.launches == rt->fault) {
        fail(rt, "a fault that was asked for");
    }
    else if (shape.grid[1] > LA_GRID_YZ || shape.grid[2] > LA_GRID_YZ) {
        fail(rt, "launch: more than 65535 blocks along y or z");
    }
    else if ((o.what == ASK
                  ? o.call(nullptr, o.args.data(), why, sizeof why)
                  : la_emu_launch(o.entry, o.args.data(), &shape, why, sizeof why)) != 0) {
        fail(rt, why);
    }
}

void run_copy(la_rt *rt, const op &o)
{
    if (!inside(rt, o.dst, o.bytes, o.way == LA_RT_OUT) ||
        !inside(rt, o.src, o.bytes, o.way == LA_RT_IN)) {
        fail(rt, "copy: outside of an allocation, or of host memory that is not pinned");
        return;
    }
    memmove(o.dst, o.src, o.bytes);
    rt->counts.copied_in += o.way == LA_RT_IN ? (int64_t)o.bytes : 0;
    rt->counts.copied_out += o.way == LA_RT_OUT ? (int64_t)o.bytes : 0;
}

void run_op(la_rt_stream *s, const op &o)
{
    la_rt *rt = s->rt;
    if (o.what == COPY || o.what == FILL || o.what == ASK) {
        s->writes.starts.clear(); /* it waited, and who follows waits for it */
    }
    switch (o.what) {
    case COPY: run_copy(rt, o); break;
    case FILL:
        inside(rt, o.dst, o.bytes, 0) ? (void)memset(o.dst, o.byte, o.bytes)
                                      : fail(rt, "fill: outside of an allocation");
        break;
    case LAUNCH:
    case ASK: run_launch(s, o); break;
    case EVENT: o.event->reached++; break;
    case HOLD: break; /* it is there: `advance` saw to it */
    case REPLAY:
        for (const op &each : *o.list) {
            if (rt->error.empty()) {
                run_op(s, each);
            }
        }
        break;
    }
}

/* Does it wait for another stream? */
bool held(const op &o)
{
    return o.what == HOLD && o.event->reached < o.place;
}

/* Does one thing, of a stream that the seed picks. False: there is nothing to do. */
bool advance(la_rt *rt)
{
    std::vector<la_rt_stream *> ready;
    for (la_rt_stream *s : rt->streams) {
        if (!s->queue.empty() && !held(s->queue.front())) {
            ready.push_back(s);
        }
    }
    if (ready.empty()) {
        return false;
    }
    la_rt_stream *s = ready[rt->seed != 0 ? draw(rt) % ready.size() : 0];
    op o = std::move(s->queue.front());
    s->queue.pop_front();
    if (rt->error.empty() || o.what == EVENT) { /* a failed device does nothing any more */
        run_op(s, o);
    }
    return true;
}

void finish_all(la_rt *rt)
{
    while (advance(rt)) {
    }
}

} // namespace

bool la_host::inside(la_rt *rt, const void *p, size_t bytes, int pinned)
{
    uint8_t *at = static_cast<uint8_t *>(const_cast<void *>(p)), *end = at + bytes;
    while (at < end) {
        auto found = rt->pieces.upper_bound(at);
        if (found == rt->pieces.begin()) {
            return false;
        }
        --found;
        uint8_t *stop = found->first + found->second.bytes;
        if (at >= stop || found->second.pinned != pinned) {
            return false;
        }
        at = stop;
    }
    return true;
}

void la_host::put(la_rt_stream *s, op &&o)
{
    la_rt *rt = s->rt;
    if (!rt->error.empty()) {
        return;
    }
    if (rt->noting == s) {
        if (o.what == REPLAY || o.what == EVENT || o.what == HOLD ||
            (o.what == COPY && o.way != LA_RT_WITHIN)) {
            fail(rt, "a graph takes launches, fills and copies within the device");
        }
        s->noted.push_back(std::move(o));
        return;
    }
    s->queue.push_back(std::move(o));
    if (rt->seed != 0 && draw(rt) % 4 == 0) {
        advance(rt); /* a device does not wait to be waited for */
    }
}

extern "C" {

int la_rt_open(int device, la_rt **out, char *why, size_t n)
{
    const char *missing = getenv("LLMACCEL_EMU_MISSING"), *seed = getenv("LLMACCEL_EMU_SEED");
    const char *kernels = getenv("LLMACCEL_EMU_KERNELS"), *fault = getenv("LLMACCEL_EMU_FAULT");
    const char *memory = getenv("LLMACCEL_EMU_MEMORY"), *plain = getenv("LLMACCEL_EMU_PLAIN");
    const char *graph = getenv("LLMACCEL_EMU_GRAPH"), *cc = getenv("LLMACCEL_EMU_CC");
    const char *granule = getenv("LLMACCEL_EMU_GRANULE");
    *out = nullptr;
    if (missing != nullptr || device != 0) {
        snprintf(why, n, "%s", missing != nullptr ? missing : "the emulator has device 0 alone");
        return -1;
    }
    la_rt *rt = new la_rt;
    rt->seed = seed != nullptr ? (uint32_t)strtoul(seed, nullptr, 10) : 1;
    rt->state = rt->seed;
    rt->kernels = kernels != nullptr ? (uint32_t)strtoul(kernels, nullptr, 10) : 0;
    rt->capacity = memory != nullptr ? strtoull(memory, nullptr, 10) : (size_t)1 << 30;
    rt->maps = plain == nullptr;
    rt->fault = fault != nullptr ? strtoll(fault, nullptr, 10) : 0;
    rt->cc = cc != nullptr ? (int)strtol(cc, nullptr, 10) : 90;
    rt->graph_without_memory = graph != nullptr ? strtoll(graph, nullptr, 10) : 0;
    rt->granule_without_memory = granule != nullptr ? strtoll(granule, nullptr, 10) : 0;
    *out = rt;
    newest = rt;
    return 0;
}

/* Counts of the runtime opened last; zeros once it is closed. For tests. */
void la_rt_host_count(la_rt_counts *out)
{
    *out = newest != nullptr ? newest->counts : la_rt_counts{};
}

/* The runtime opened last, while it is open. For tests. */
la_rt *la_rt_host_newest(void)
{
    return newest;
}

/* Of the runtimes closed so far: what was not given back. For tests. */
int64_t la_rt_host_left(void)
{
    return alive_at_close;
}

void la_rt_close(la_rt *rt)
{
    if (rt == nullptr) {
        return;
    }
    finish_all(rt);
    for (auto &stream : rt->defaults) {
        rt->counts.alive++;
        la_rt_stream_close(stream.second);
    }
    rt->error.clear(); /* all that is left goes, whatever failed */
    rt->noting = nullptr;
    while (!rt->ranges.empty()) {
        la_rt_release(rt, rt->ranges.begin()->first);
    }
    alive_at_close += rt->counts.alive; /* a device would keep it; tests have many */
    newest = newest == rt ? nullptr : newest;
    while (!rt->pieces.empty()) {
        uint8_t *p = rt->pieces.begin()->first;
        forget_piece(rt, p);
        free(p);
    }
    delete rt;
}

int la_rt_enter(la_rt *rt)
{
    return rt->error.empty() ? 0 : -1;
}

void la_rt_describe(la_rt *rt, la_rt_info *out)
{
    *out = {};
    snprintf(out->name, sizeof out->name, "emulator");
    out->cc = rt->cc;
    out->n_sms = 4;
    out->driver = 13000;
    out->runtime = 13000;
    out->maps = rt->maps;
    out->granule = GRANULE;
    out->smem = 232448;
    out->l2 = (size_t)50 << 20;
    out->memory_total = rt->capacity;
    out->memory_free = rt->capacity - rt->used;
}

void la_rt_count(const la_rt *rt, la_rt_counts *out)
{
    *out = rt->counts;
}

const char *la_rt_error(const la_rt *rt)
{
    return rt->error.c_str();
}

/* ---- memory ---------------------------------------------------------------------------------- */

void *la_rt_alloc(la_rt *rt, size_t bytes)
{
    return allocate(rt, bytes, 0, "alloc");
}

void la_rt_free(la_rt *rt, void *p)
{
    if (p != nullptr && may_free(rt, "free")) {
        finish_all(rt);
        forget_piece(rt, static_cast<uint8_t *>(p));
        free(p);
    }
}

void *la_rt_reserve(la_rt *rt, size_t bytes)
{
    size_t n = (bytes + GRANULE - 1) / GRANULE;
    if (!may_allocate(rt, "reserve") || (!rt->maps && rt->used + n * GRANULE > rt->capacity)) {
        return nullptr;
    }
    void *p =
        mmap(nullptr, n * GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        return nullptr;
    }
    rt->ranges[static_cast<uint8_t *>(p)] = {n * GRANULE, std::vector<char>(n, 0)};
    rt->counts.allocations++;
    rt->counts.alive++;
    if (!rt->maps && !map_granules(rt, static_cast<uint8_t *>(p), 0, n)) {
        la_rt_release(rt, p);
        return nullptr;
    }
    return p;
}

int la_rt_commit(la_rt *rt, void *p, size_t bytes)
{
    uint8_t *at = static_cast<uint8_t *>(p);
    if (!may_allocate(rt, "commit")) {
        return -1;
    }
    auto found = rt->ranges.upper_bound(at);
    size_t in = found != rt->ranges.begin() ? (size_t)(at - (--found)->first) : 1;
    if (in % GRANULE != 0 || bytes % GRANULE != 0 || in + bytes > found->second.bytes) {
        fail(rt, "commit: no whole granules of a reservation");
        return -1;
    }
    size_t first = in / GRANULE, end = first + bytes / GRANULE;
    return !rt->maps || map_granules(rt, found->first, first, end) ? 0 : -1;
}

void la_rt_decommit(la_rt *rt, void *p, size_t bytes)
{
    uint8_t *at = static_cast<uint8_t *>(p);
    auto found = rt->ranges.upper_bound(at);
    if (found == rt->ranges.begin() || !rt->maps || !may_free(rt, "decommit")) {
        return;
    }
    --found;
    rt->counts.waits++;
    finish_all(rt);
    size_t first = (size_t)(at - found->first) / GRANULE, end = first + bytes / GRANULE;
    for (size_t i = first; i < end && i < found->second.mapped.size(); i++) {
        unmap_granule(rt, found->first, i);
    }
}

void la_rt_release(la_rt *rt, void *p)
{
    auto found = rt->ranges.find(static_cast<uint8_t *>(p));
    if (p == nullptr || found == rt->ranges.end() || !may_free(rt, "release")) {
        return;
    }
    int maps = rt->maps;
    rt->maps = 1;
    la_rt_decommit(rt, p, found->second.bytes);
    rt->maps = maps;
    munmap(p, found->second.bytes);
    rt->ranges.erase(found);
    rt->counts.alive--;
}

void *la_rt_pin(la_rt *rt, size_t bytes)
{
    return allocate(rt, bytes, 1, "pin");
}

void la_rt_unpin(la_rt *rt, void *p)
{
    la_rt_free(rt, p);
}

/* ---- streams --------------------------------------------------------------------------------- */

la_rt_stream *la_rt_stream_open(la_rt *rt)
{
    la_rt_stream *s = new la_rt_stream{rt, {}, {}, {}};
    rt->streams.push_back(s);
    rt->counts.alive++;
    return s;
}

void la_rt_stream_close(la_rt_stream *s)
{
    if (s == nullptr) {
        return;
    }
    la_rt *rt = s->rt;
    finish_all(rt);
    rt->streams.erase(std::find(rt->streams.begin(), rt->streams.end(), s));
    rt->counts.alive--;
    delete s;
}

int la_rt_stream_wait(la_rt_stream *s)
{
    la_rt *rt = s->rt;
    rt->counts.waits++;
    if (rt->noting != nullptr) {
        fail(rt, "stream wait: a graph is being noted");
        return -1;
    }
    while (!s->queue.empty()) {
        (void)advance(rt);
    }
    return rt->error.empty() ? 0 : -1;
}

la_rt_event *la_rt_event_open(la_rt *rt)
{
    if (!rt->error.empty()) {
        return nullptr;
    }
    rt->counts.alive++;
    return new la_rt_event{rt, 0, 0};
}

void la_rt_event_close(la_rt_event *e)
{
    if (e != nullptr) {
        finish_all(e->rt);
        e->rt->counts.alive--;
        delete e;
    }
}

void la_rt_event_record(la_rt_event *e, la_rt_stream *s)
{
    if (!e->rt->error.empty()) {
        return;
    }
    op o = {};
    o.what = EVENT;
    o.event = e;
    e->recorded++;
    put(s, std::move(o));
}

int la_rt_event_wait(la_rt_event *e)
{
    la_rt *rt = e->rt;
    rt->counts.event_waits++;
    if (rt->noting != nullptr) {
        fail(rt, "event wait: a graph is being noted");
        return -1;
    }
    while (e->reached < e->recorded && advance(rt)) {
    }
    while (rt->seed != 0 && draw(rt) % 2 == 0 && advance(rt)) { /* a device does not stop there */
    }
    return rt->error.empty() ? 0 : -1;
}

void la_rt_copy(la_rt_stream *s, void *dst, const void *src, size_t bytes, la_rt_way way)
{
    op o = {};
    o.what = COPY;
    o.dst = dst;
    o.src = src;
    o.bytes = bytes;
    o.way = way;
    put(s, std::move(o));
}

void la_rt_fill(la_rt_stream *s, void *dst, int byte, size_t bytes)
{
    op o = {};
    o.what = FILL;
    o.dst = dst;
    o.byte = byte;
    o.bytes = bytes;
    put(s, std::move(o));
}

/* ---- launches and graphs --------------------------------------------------------------------- */

int la_rt_tensor_map(la_rt_stream *s, la_tensor_map *map, const la_tensor_shape *shape)
{
    char why[512] = "";
    if (la_emu_tensor_map(map, shape, why, sizeof why) != 0) {
        fail(s->rt, why);
    }
    return s->rt->error.empty() ? 0 : -1;
}

void la_rt_launch(la_rt_stream *s, la_entry entry, const void *args, size_t args_bytes,
                  const la_rt_shape *shape)
{
    op o = {};
    o.what = LAUNCH;
    o.entry = entry;
    o.args.resize((args_bytes + sizeof(line) - 1) / sizeof(line));
    memcpy(o.args.data(), args, args_bytes);
    o.shape = *shape;
    put(s, std::move(o));
}

void la_rt_ask(la_rt_stream *s, la_rt_call call, const void *args, size_t bytes)
{
    op o = {};
    o.what = ASK;
    o.call = call;
    o.args.resize((bytes + sizeof(line) - 1) / sizeof(line));
    memcpy(o.args.data(), args, bytes);
    put(s, std::move(o));
}

void la_rt_graph_begin(la_rt_stream *s)
{
    if (s->rt->noting != nullptr) {
        fail(s->rt, "begin graph: another one is being noted");
        return;
    }
    s->noted.clear();
    s->rt->noting = s;
}

la_rt_graph *la_rt_graph_end(la_rt_stream *s)
{
    la_rt *rt = s->rt;
    if (rt->noting != s || !rt->error.empty()) {
        fail(rt, "end graph: this stream notes none");
        rt->noting = nullptr;
        return nullptr;
    }
    rt->noting = nullptr;
    if (++rt->graphs == rt->graph_without_memory) {
        return nullptr;
    }
    rt->counts.alive++;
    rt->counts.graphs++;
    return new la_rt_graph{rt, std::move(s->noted)};
}

void la_rt_graph_run(la_rt_graph *g, la_rt_stream *s)
{
    op o = {};
    o.what = REPLAY;
    o.list = &g->list;
    s->rt->counts.replays++;
    put(s, std::move(o));
}

void la_rt_graph_free(la_rt_graph *g)
{
    if (g != nullptr) {
        finish_all(g->rt);
        g->rt->counts.alive--;
        delete g;
    }
}

} // extern "C"
