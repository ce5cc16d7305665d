/* emu_copy.cpp - work in flight: TMA boxes and runs, cp.async, and when they are done.
 *
 * Owns tensor maps and copies. A load poisons its destination when it is issued and fills it at a time the
 * seed decides, in any order with others; a store reads its source late and writes later still. Invariant:
 * bytes in flight cannot be touched by anyone, and what the async proxy reads has been fenced. Implements
 * the copy half of la_emu_ptx.h and la_emu_tensor_map.
 */
#include <algorithm>
#include <cstdio>

#include "emu_machine.h"

using namespace emu;

namespace {

constexpr uint64_t MAGIC = 0x4c414d4150ull << 24; /* of a map that la_emu_tensor_map wrote */

la_tensor_shape decode(const la_tensor_map *map)
{
    if (reinterpret_cast<uintptr_t>(map) % 64) {
        fault("the tensor map at %p is not aligned to 64 bytes", static_cast<const void *>(map));
    }
    if ((map->words[1] & ~uint64_t(0xffffff)) != MAGIC) {
        fault("the tensor map at %p was not written by the runtime",
              static_cast<const void *>(map));
    }
    la_tensor_shape s;
    s.base = reinterpret_cast<const void *>(map->words[0]);
    s.rank = int(map->words[1] & 0xff);
    s.element_bytes = int(map->words[1] >> 8 & 0xff);
    s.swizzle = la_tensor_swizzle(map->words[1] >> 16 & 0xff);
    for (int i = 0; i < 5; i++) {
        s.dims[i] = map->words[2 + i];
        s.box[i] = uint32_t(map->words[11 + i]);
        if (i < 4) {
            s.stride[i] = map->words[7 + i];
        }
    }
    return s;
}

const char *shape_fault(const la_tensor_shape *s)
{
    static const uint64_t span[] = {1 << 16, 32, 64, 128};
    int e = s->element_bytes;
    if (s->rank < 1 || s->rank > 5) {
        return "rank: 1 to 5";
    }
    if (e != 1 && e != 2 && e != 4 && e != 8) {
        return "element_bytes: 1, 2, 4 or 8";
    }
    if (reinterpret_cast<uintptr_t>(s->base) % 16) {
        return "base: aligned to 16 bytes";
    }
    for (int i = 0; i < s->rank; i++) {
        if (s->dims[i] < 1 || s->dims[i] > uint64_t(1) << 32) {
            return "dims: 1 to 2^32";
        }
        if (s->box[i] < 1 || s->box[i] > 256) {
            return "box: 1 to 256";
        }
        if (i && (s->stride[i - 1] % 16 || s->stride[i - 1] >= uint64_t(1) << 40)) {
            return "stride: multiples of 16 under 2^40";
        }
    }
    if (s->box[0] * uint64_t(e) % 16) {
        return "box[0]: a multiple of 16 bytes";
    }
    if (s->swizzle < 0 || s->swizzle > LA_SWIZZLE_128 ||
        s->box[0] * uint64_t(e) > span[s->swizzle]) {
        return "swizzle: rows of the box fit into its span";
    }
    return nullptr;
}

uint32_t swizzled(uint32_t address, la_tensor_swizzle mode)
{
    static const uint32_t bits[] = {0, 1, 3, 7};
    return address ^ ((address >> 7 & bits[mode]) << 4);
}

/* The runs of one row of a box: `in` elements from the start are zeros or, by `live`, memory. */
void add_row(Copy *c, const la_tensor_shape &s, Block *b, uint32_t offset, int64_t x,
             const uint8_t *row)
{
    uint32_t e = uint32_t(s.element_bytes), bytes = s.box[0] * e;
    for (uint32_t at = 0; at < bytes; at += 16) {
        uint32_t to = swizzled(offset + at + SMEM_BASE, s.swizzle) - SMEM_BASE;
        int64_t first = x + at / e, last = first + int64_t(16 / e);
        if (row && first >= 0 && uint64_t(last) <= s.dims[0]) {
            c->runs.push_back({const_cast<uint8_t *>(row) + first * e, b, to, 16});
            continue;
        }
        for (uint32_t i = 0; i < 16; i += e) {
            int64_t at_x = first + i / e;
            bool live = row && at_x >= 0 && uint64_t(at_x) < s.dims[0];
            c->runs.push_back(
                {live ? const_cast<uint8_t *>(row) + at_x * e : nullptr, b, to + i, e});
        }
    }
}

/* All runs of a box. Rows that are in bounds must lie in registered memory. */
void add_box(Copy *c, const la_tensor_shape &s, Block *b, uint32_t offset, const int *at)
{
    uint32_t index[5] = {0, 0, 0, 0, 0};
    uint32_t rows = 1, row_bytes = s.box[0] * uint32_t(s.element_bytes);
    for (int i = 1; i < s.rank; i++) {
        rows *= s.box[i];
    }
    for (uint32_t r = 0; r < rows; r++) {
        const uint8_t *row = static_cast<const uint8_t *>(s.base);
        bool live = true;
        for (int i = 1; i < s.rank; i++) {
            int64_t p = int64_t(at[i]) + index[i];
            live = live && p >= 0 && uint64_t(p) < s.dims[i];
            row += live ? p * int64_t(s.stride[i - 1]) : 0;
        }
        int64_t first = std::max<int64_t>(at[0], 0);
        int64_t last = std::min<int64_t>(int64_t(at[0]) + s.box[0], int64_t(s.dims[0]));
        if (live && first < last) {
            const uint8_t *p = row + first * s.element_bytes;
            if (const char *why = global_fault(p, size_t(last - first) * size_t(s.element_bytes))) {
                fault("a box of a tensor touches %p, which %s", static_cast<const void *>(p), why);
            }
            note_global(p, c->store, "a box of a tensor");
        }
        add_row(c, s, b, offset + r * row_bytes, at[0], live ? row : nullptr);
        for (int i = 1; i < s.rank && ++index[i] == s.box[i]; i++) {
            index[i] = 0;
        }
    }
}

/* Takes the destination of a load from everyone. */
void claim(const Copy *c, const char *what)
{
    for (const Run &r : c->runs) {
        for (uint32_t i = r.offset; i < r.offset + r.bytes; i++) {
            uint8_t state = r.block->state[i];
            if (state == FLIGHT || state == BARRIER) {
                fault("%s into shared memory at offset %u, %s", what, i,
                      state == FLIGHT ? "where a copy is in flight" : "which is a barrier");
            }
            if (r.block->readers[i / 16]) {
                fault("%s into shared memory at offset %u, which a store in flight still reads",
                      what, i);
            }
            if (!c->generic && r.block->dirty[i / 4]) {
                fault("%s into shared memory at offset %u, which thread %d wrote without a proxy "
                      "fence"
                      " (la_fence_async) behind it",
                      what, i, r.block->dirty[i / 4] - 1);
            }
        }
        std::string why = race_check_write(r.block, r.offset, r.bytes, machine->now, false);
        if (!why.empty()) {
            fault("%s into %s", what, why.c_str());
        }
    }
    for (const Run &r : c->runs) {
        memset(r.block->smem.data() + r.offset, 0xff, r.bytes);
        mark(r.block, r.offset, r.bytes, FLIGHT);
    }
}

/* Lets a store read its source later; nobody may write there until it has. */
void lend(Block *b, uint32_t offset, uint32_t bytes, int by)
{
    for (uint32_t i = offset / 16; i < (offset + bytes + 15) / 16; i++) {
        b->readers[i] = uint16_t(b->readers[i] + by);
    }
}

void check_source(Block *b, uint32_t offset, uint32_t bytes, const char *what)
{
    std::string why = proxy_fault(b, offset, bytes);
    if (why.empty()) {
        why = race_read(b, offset, bytes, machine->now);
    }
    if (!why.empty()) {
        fault("%s reads %s", what, why.c_str());
    }
}

Barrier *loading_barrier(uint32_t address, const char *what)
{
    Barrier *bar = find_barrier(address, what);
    if (!bar->fenced) {
        fault("%s: the barrier's initialisation was not fenced (la_fence_mbar_init)", what);
    }
    return bar;
}

bool unfinished(uint64_t id, bool reads_only)
{
    for (const auto &c : machine->copies) {
        if (c->id == id) {
            return !(reads_only && c->read);
        }
    }
    return false;
}

bool any_unfinished(const std::vector<uint64_t> &ids, bool reads_only)
{
    for (uint64_t id : ids) {
        if (unfinished(id, reads_only)) {
            return true;
        }
    }
    return false;
}

/* First stage of a store, or of a copy between blocks: its source is read. */
void read_source(Copy *c)
{
    Block *b = c->from ? c->from : c->runs[0].block;
    for (const Run &r : c->runs) {
        uint32_t offset = c->from ? c->from_offset : r.offset;
        const uint8_t *p = b->smem.data() + offset;
        c->held.insert(c->held.end(), p, p + r.bytes);
        lend(b, offset, r.bytes, -1);
    }
    c->read = true;
}

void write_target(Copy *c)
{
    size_t at = 0;
    for (const Run &r : c->runs) {
        static const uint8_t zeros[256] = {0};
        if (c->store) {
            if (r.global) {
                memcpy(r.global, c->held.data() + at, r.bytes);
            }
        }
        else {
            const uint8_t *from = c->from ? c->held.data() + at : r.global ? r.global : zeros;
            const Thread *by = c->generic ? c->thread : nullptr;
            store_shared(r.block, r.offset, from, r.bytes, by);
            race_write(r.block, r.offset, r.bytes, by, false);
        }
        at += r.bytes;
    }
    for (auto &t : c->tell) {
        if (t.second) {
            race_copied(c->runs[0].block, &t.first->gather);
            transact(t.first, -t.second);
        }
        else if (t.first->pending == 0) {
            fault_late("more arrivals of cp.async at the barrier at offset %u than expected",
                       t.first->offset);
        }
        else {
            race_release(c->thread, &t.first->gather);
            t.first->pending--;
            settle(t.first);
        }
    }
}

/* One stage of a copy. Returns whether it has ended. */
bool move(Copy *c)
{
    machine->progress++;
    machine->copies_moved++;
    if ((c->store || c->from) && !c->read) {
        read_source(c);
        return false;
    }
    write_target(c);
    return true;
}

/* Puts a copy in flight; under seed 0 it ends at once. Returns its number. */
uint64_t start(std::unique_ptr<Copy> c)
{
    uint64_t id = machine->next_copy++;
    c->id = id;
    c->thread = machine->now;
    if (!machine->shape.seed && c->after.empty()) {
        while (!move(c.get())) {
        }
        return id;
    }
    static const uint32_t longest[] = {1, 8, 300, 20000};
    c->delay = draw(longest[draw(4)]);
    machine->copies.push_back(std::move(c));
    preempt(2);
    return id;
}

void wait_groups(std::vector<std::vector<uint64_t>> *groups, int left, bool reads_only)
{
    machine->progress++;
    preempt(2);
    size_t keep = size_t(left);
    if (groups->size() <= keep) {
        return;
    }
    size_t old = groups->size() - keep;
    for (size_t i = 0; i < old; i++) {
        while (any_unfinished((*groups)[i], reads_only)) {
            block_on(machine->copies_moved, "a group of copies", uint32_t(i));
        }
    }
    if (!reads_only) {
        groups->erase(groups->begin(), groups->begin() + long(old));
    }
}

} // namespace

namespace emu {

void advance_copies(bool force)
{
    auto &list = machine->copies;
    size_t tries = force ? 2 * list.size() : draw(4) == 0 ? 1 : 0;
    size_t first = draw(uint32_t(list.size()));
    for (size_t i = 0; i < tries; i++) {
        size_t at = (first + i) % list.size();
        Copy *c = list[at].get();
        if (any_unfinished(c->after, false)) {
            continue;
        }
        if (c->delay && !force) {
            c->delay--;
            continue;
        }
        if (move(c)) {
            list.erase(list.begin() + long(at));
        }
        return;
    }
}

std::string copies_left(const Block *b)
{
    for (const auto &c : machine->copies) {
        bool mine = c->from == b && !c->read;
        for (const Run &r : c->runs) {
            mine = mine || (r.block == b && !(c->store && c->read));
        }
        if (mine) {
            return "a copy of shared memory is still in flight";
        }
    }
    return "";
}

} // namespace emu

extern "C" int la_emu_tensor_map(la_tensor_map *map, const la_tensor_shape *shape, char *error,
                                 size_t n)
{
    const char *why = shape_fault(shape);
    if (why) {
        snprintf(error, n, "tensor map: %s", why);
        return -1;
    }
    memset(map, 0, sizeof *map);
    map->words[0] = reinterpret_cast<uintptr_t>(shape->base);
    map->words[1] = MAGIC | uint64_t(shape->swizzle) << 16 | uint64_t(shape->element_bytes) << 8 |
                    uint64_t(shape->rank);
    for (int i = 0; i < shape->rank; i++) {
        map->words[2 + i] = shape->dims[i];
        map->words[11 + i] = shape->box[i];
        if (i) {
            map->words[6 + i] = shape->stride[i - 1];
        }
    }
    return 0;
}

/* ---- tensors ---- */

void la_emu_tma_map(const la_tensor_map *map)
{
    decode(map);
}

static void check_box(const la_tensor_shape &s, uint32_t shared, size_t coordinates,
                      const char *what)
{
    static const uint32_t atom[] = {128, 256, 512, 1024};
    if (size_t(s.rank) != coordinates) {
        fault("%s with %zu coordinates of a tensor of rank %d", what, coordinates, s.rank);
    }
    if (shared % atom[s.swizzle]) {
        fault("%s at offset %u of shared memory, which must be aligned to %u for its swizzle", what,
              (shared & ((1u << RANK_SHIFT) - 1)) - SMEM_BASE, atom[s.swizzle]);
    }
}

static uint32_t box_bytes(const la_tensor_shape &s)
{
    uint32_t bytes = uint32_t(s.element_bytes);
    for (int i = 0; i < s.rank; i++) {
        bytes *= s.box[i];
    }
    return bytes;
}

void la_emu_tma_load(uint32_t to, const la_tensor_map *map, uint32_t bar, uint16_t blocks,
                     std::initializer_list<int> at)
{
    la_tensor_shape s = decode(map);
    check_box(s, to, at.size(), "la_tma_load");
    Cluster *cluster = machine->now->block->cluster;
    if (blocks >> cluster->blocks.size()) {
        fault("la_tma_load to blocks 0x%x of a cluster of %zu", blocks, cluster->blocks.size());
    }
    auto c = std::make_unique<Copy>();
    uint32_t offset, bytes = box_bytes(s);
    for (uint32_t rank = 0; rank < 16; rank++) {
        if (!blocks && rank) {
            break;
        }
        if (blocks && !(blocks >> rank & 1)) {
            continue;
        }
        uint32_t map_to = blocks ? (rank + 1) << RANK_SHIFT : 0;
        Block *b = find_shared(to | map_to, bytes, "la_tma_load", &offset);
        c->tell.push_back({loading_barrier(bar | map_to, "la_tma_load"), bytes});
        add_box(c.get(), s, b, offset, at.begin());
    }
    claim(c.get(), "la_tma_load");
    start(std::move(c));
}

void la_emu_tma_store(const la_tensor_map *map, uint32_t from, std::initializer_list<int> at)
{
    la_tensor_shape s = decode(map);
    check_box(s, from, at.size(), "la_tma_store");
    uint32_t offset, bytes = box_bytes(s);
    Block *b = find_shared(from, bytes, "la_tma_store", &offset);
    check_source(b, offset, bytes, "la_tma_store");
    if (!b->may_write) {
        fault("la_tma_store before la_grid_wait in a dependent launch");
    }
    auto c = std::make_unique<Copy>();
    c->store = true;
    add_box(c.get(), s, b, offset, at.begin());
    for (const Run &r : c->runs) {
        lend(b, r.offset, r.bytes, 1);
    }
    machine->now->bulk_open.push_back(start(std::move(c)));
}

/* ---- runs of bytes ---- */

static void check_run(const void *global, uint32_t shared, uint32_t bytes, const char *what)
{
    if (bytes == 0 || bytes % 16 || shared % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
        fault("%s of %u bytes, shared 0x%x, global %p: multiples of 16", what, bytes, shared,
              global);
    }
    if (global) {
        if (const char *why = global_fault(global, bytes)) {
            fault("%s of %u bytes at %p, which %s", what, bytes, global, why);
        }
    }
}

void la_emu_bulk_load(uint32_t to, const void *from, uint32_t bytes, uint32_t bar)
{
    check_run(from, to, bytes, "la_bulk_load");
    note_global(from, false, "la_bulk_load");
    auto c = std::make_unique<Copy>();
    uint32_t offset;
    Block *b = find_shared(to, bytes, "la_bulk_load", &offset);
    c->tell.push_back({loading_barrier(bar, "la_bulk_load"), bytes});
    c->runs.push_back({static_cast<uint8_t *>(const_cast<void *>(from)), b, offset, bytes});
    claim(c.get(), "la_bulk_load");
    start(std::move(c));
}

void la_emu_bulk_store(void *to, uint32_t from, uint32_t bytes)
{
    check_run(to, from, bytes, "la_bulk_store");
    uint32_t offset;
    Block *b = find_shared(from, bytes, "la_bulk_store", &offset);
    check_source(b, offset, bytes, "la_bulk_store");
    if (!b->may_write) {
        fault("la_bulk_store before la_grid_wait in a dependent launch");
    }
    note_global(to, true, "la_bulk_store");
    auto c = std::make_unique<Copy>();
    c->store = true;
    c->runs.push_back({static_cast<uint8_t *>(to), b, offset, bytes});
    lend(b, offset, bytes, 1);
    machine->now->bulk_open.push_back(start(std::move(c)));
}

void la_emu_bulk_send(uint32_t to, uint32_t from, uint32_t bytes, uint32_t bar)
{
    check_run(nullptr, to | from, bytes, "la_bulk_send");
    if (!(to >> RANK_SHIFT) || !(bar >> RANK_SHIFT) || to >> RANK_SHIFT != bar >> RANK_SHIFT) {
        fault("la_bulk_send to 0x%x, barrier 0x%x: mapped addresses of one block", to, bar);
    }
    auto c = std::make_unique<Copy>();
    uint32_t offset;
    Block *b = find_shared(to, bytes, "la_bulk_send", &offset);
    c->tell.push_back({loading_barrier(bar, "la_bulk_send"), bytes});
    c->runs.push_back({nullptr, b, offset, bytes});
    c->from = find_shared(from, bytes, "la_bulk_send", &c->from_offset);
    check_source(c->from, c->from_offset, bytes, "la_bulk_send");
    claim(c.get(), "la_bulk_send");
    lend(c->from, c->from_offset, bytes, 1);
    start(std::move(c));
}

void la_emu_bulk_commit(void)
{
    Thread *t = machine->now;
    t->bulk_groups.push_back(t->bulk_open);
    t->bulk_open.clear();
}

void la_emu_bulk_wait(int left, int reads_only)
{
    wait_groups(&machine->now->bulk_groups, left, reads_only);
}

/* ---- cp.async ---- */

void la_emu_cp_async(uint32_t to, const void *from, int bytes, int valid)
{
    uint32_t offset, n = uint32_t(bytes), v = uint32_t(valid);
    Block *b = find_shared(to, n, "cp.async", &offset);
    if (to % n || reinterpret_cast<uintptr_t>(from) % n) {
        fault("cp.async of %d bytes, shared 0x%x, global %p: aligned to its size", bytes, to, from);
    }
    if (valid < 0 || valid > bytes) {
        fault("cp.async of %d bytes, %d of them valid", bytes, valid);
    }
    auto c = std::make_unique<Copy>();
    c->generic = true;
    if (v) {
        if (const char *why = global_fault(from, v)) {
            fault("cp.async of %u bytes at %p, which %s", v, from, why);
        }
        note_global(from, false, "cp.async");
        c->runs.push_back({static_cast<uint8_t *>(const_cast<void *>(from)), b, offset, v});
    }
    if (v < n) {
        c->runs.push_back({nullptr, b, offset + v, n - v});
    }
    claim(c.get(), "cp.async");
    Thread *t = machine->now;
    t->async_open.push_back(start(std::move(c)));
}

void la_emu_cp_async_commit(void)
{
    Thread *t = machine->now;
    t->async_groups.push_back(t->async_open);
    t->async_open.clear();
}

void la_emu_cp_async_wait(int left)
{
    wait_groups(&machine->now->async_groups, left, false);
}

void la_emu_mbar_arrive_cp_async(uint32_t at)
{
    Thread *t = machine->now;
    auto c = std::make_unique<Copy>();
    c->tell.push_back({find_barrier(at, "la_mbar_arrive_cp_async"), 0});
    for (const auto &ids : t->async_groups) {
        c->after.insert(c->after.end(), ids.begin(), ids.end());
    }
    c->after.insert(c->after.end(), t->async_open.begin(), t->async_open.end());
    t->async_open.clear(); /* the barrier stands for them from here */
    start(std::move(c));
}
