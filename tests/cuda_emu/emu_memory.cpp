/* emu_memory.cpp - every ordinary access of a kernel to memory, held against what is known of the bytes.
 *
 * Owns the registry of global allocations, of which a dependent launch reads nothing before its wait that the
 * launch before wrote, and the checks of shared memory: in bounds, aligned, written
 * before it is read, not in flight, no barrier, and clean when the async proxy reads it. Invariant: an
 * access that passes here is one that the program's order made legal. Implements the memory half of
 * la_emu_ptx.h and la_emu_register.
 */
#include <algorithm>
#include <map>
#include <mutex>

#include "emu_machine.h"

using namespace emu;

namespace {

struct Registry {
    std::mutex lock;
    std::map<uintptr_t, size_t> ranges; /* start, bytes */
};

Registry &registry()
{
    static Registry r;
    return r;
}

/* The range that served last: most accesses fall into it. Cleared when ranges change. */
uintptr_t recent_start, recent_end;

} // namespace

extern "C" void la_emu_register(const void *ptr, size_t bytes)
{
    std::lock_guard<std::mutex> hold(registry().lock);
    registry().ranges[reinterpret_cast<uintptr_t>(ptr)] = bytes;
    recent_start = recent_end = 0;
}

extern "C" void la_emu_forget(const void *ptr)
{
    std::lock_guard<std::mutex> hold(registry().lock);
    registry().ranges.erase(reinterpret_cast<uintptr_t>(ptr));
    recent_start = recent_end = 0;
}

namespace emu {

const char *global_fault(const void *p, size_t bytes)
{
    uintptr_t at = reinterpret_cast<uintptr_t>(p);
    if (at >= recent_start && at + bytes <= recent_end) {
        return nullptr;
    }
    std::lock_guard<std::mutex> hold(registry().lock);
    auto next = registry().ranges.upper_bound(at);
    if (next == registry().ranges.begin()) {
        return "is in no registered allocation";
    }
    --next;
    if (at >= next->first + next->second) {
        return "is in no registered allocation";
    }
    if (at + bytes > next->first + next->second) {
        return "runs over the end of its allocation";
    }
    recent_start = next->first;
    recent_end = next->first + next->second;
    return nullptr;
}

void check_global(const void *p, size_t bytes, const char *what)
{
    if (const char *why = global_fault(p, bytes)) {
        fault("%s of %zu bytes at %p of global memory, which %s", what, bytes, p, why);
    }
    if (reinterpret_cast<uintptr_t>(p) % bytes) {
        fault("%s of %zu bytes at %p of global memory is not aligned", what, bytes, p);
    }
}

void note_global(const void *p, bool write, const char *what)
{
    std::vector<uintptr_t> *of = write ? &machine->wrote : &machine->before;
    if (!write && machine->now->block->may_write) {
        return;
    }
    bool there = std::find(of->begin(), of->end(), recent_start) != of->end();
    if (write && !there) {
        of->push_back(recent_start);
    }
    else if (!write && there) {
        fault("%s at %p of global memory, which the launch before writes, before la_grid_wait",
              what, p);
    }
}

Block *find_shared(uint32_t address, uint32_t bytes, const char *what, uint32_t *offset)
{
    Block *b = machine->now->block;
    uint32_t rank = address >> RANK_SHIFT, at = address & ((1u << RANK_SHIFT) - 1);
    if (rank) {
        if (rank > b->cluster->blocks.size()) {
            fault("%s at shared address 0x%x, of no block of the cluster", what, address);
        }
        b = b->cluster->blocks[rank - 1].get();
        if (b->live == 0) {
            fault("%s in the shared memory of block %u of the cluster, which has ended", what,
                  rank - 1);
        }
    }
    if (at < SMEM_BASE || at - SMEM_BASE + bytes > b->size) {
        fault("%s of %u bytes at offset %lld of %u bytes of shared memory", what, bytes,
              (long long)at - SMEM_BASE, b->size);
    }
    *offset = at - SMEM_BASE;
    return b;
}

std::string shared_fault(const Block *b, uint32_t offset, uint32_t bytes)
{
    for (uint32_t i = offset; i < offset + bytes; i++) {
        if (b->state[i] != SET) {
            static const char *const why[] = {"which nobody has written", "",
                                              "where a copy is in flight", "which is a barrier"};
            return "shared memory at offset " + std::to_string(i) + ", " + why[b->state[i]];
        }
    }
    return "";
}

std::string proxy_fault(const Block *b, uint32_t offset, uint32_t bytes)
{
    std::string why = shared_fault(b, offset, bytes);
    for (uint32_t w = offset / 4; why.empty() && w < (offset + bytes + 3) / 4; w++) {
        if (b->dirty[w]) {
            why = "shared memory at offset " + std::to_string(w * 4) + ", which thread " +
                  std::to_string(b->dirty[w] - 1) +
                  " wrote without a proxy fence (la_fence_async) behind it";
        }
    }
    return why;
}

void mark(Block *b, uint32_t offset, uint32_t bytes, ByteState state)
{
    memset(b->state.data() + offset, state, bytes);
}

void store_shared(Block *b, uint32_t offset, const void *from, uint32_t bytes, const Thread *by)
{
    memcpy(b->smem.data() + offset, from, bytes);
    mark(b, offset, bytes, SET);
    if (!by || by->block != b) {
        return;
    }
    Thread *t = b->threads[size_t(by->id)];
    uint16_t owner = uint16_t(by->id + 1);
    for (uint32_t w = offset / 4; w < (offset + bytes + 3) / 4; w++) {
        if (b->dirty[w] != owner) {
            b->dirty[w] = owner;
            t->dirty.push_back(w);
        }
    }
}

} // namespace emu

uint32_t la_emu_smem(void)
{
    return SMEM_BASE;
}

static Block *aligned_shared(uint32_t at, uint32_t bytes, const char *what, uint32_t *offset)
{
    Block *b = find_shared(at, bytes, what, offset);
    if (at % bytes) {
        fault("%s of %u bytes at offset %u of shared memory is not aligned", what, bytes, *offset);
    }
    return b;
}

void la_emu_load_shared(uint32_t at, void *to, uint32_t bytes)
{
    preempt(64);
    uint32_t offset;
    Block *b = aligned_shared(at, bytes, "a load", &offset);
    std::string why = shared_fault(b, offset, bytes);
    if (why.empty()) {
        why = race_read(b, offset, bytes, machine->now);
    }
    if (!why.empty()) {
        fault("reads %s", why.c_str());
    }
    memcpy(to, b->smem.data() + offset, bytes);
}

static void check_overwrite(Block *b, uint32_t offset, uint32_t bytes, bool atomic)
{
    if (b->readers[offset / 16] || b->readers[(offset + bytes - 1) / 16]) {
        fault("writes shared memory at offset %u, which a store in flight still reads", offset);
    }
    for (uint32_t i = offset; i < offset + bytes; i++) {
        if (b->state[i] == FLIGHT || b->state[i] == BARRIER) {
            fault("writes shared memory at offset %u, %s", i,
                  b->state[i] == FLIGHT ? "where a copy is in flight" : "which is a barrier");
        }
    }
    std::string why = race_check_write(b, offset, bytes, machine->now, atomic);
    if (!why.empty()) {
        fault("writes %s", why.c_str());
    }
    race_write(b, offset, bytes, machine->now, atomic);
}

void la_emu_store_shared(uint32_t at, const void *from, uint32_t bytes)
{
    uint32_t offset;
    Block *b = aligned_shared(at, bytes, "a store", &offset);
    check_overwrite(b, offset, bytes, false);
    store_shared(b, offset, from, bytes, machine->now);
    preempt(64);
}

void la_emu_load_global(const void *p, void *to, uint32_t bytes)
{
    check_global(p, bytes, "a load");
    note_global(p, false, "a load");
    memcpy(to, p, bytes);
}

void la_emu_store_global(void *p, const void *from, uint32_t bytes)
{
    check_global(p, bytes, "a store");
    if (!machine->now->block->may_write) {
        fault("writes global memory before la_grid_wait in a dependent launch");
    }
    note_global(p, true, "a store");
    memcpy(p, from, bytes);
    preempt(64);
}

uint32_t la_emu_ldg_acquire(const uint32_t *p)
{
    yield(); /* a poll: others go on */
    uint32_t x;
    la_emu_load_global(p, &x, sizeof x);
    return x;
}

uint32_t la_emu_atomic_add(uint32_t *p, uint32_t x)
{
    uint32_t old, sum;
    la_emu_load_global(p, &old, sizeof old);
    sum = old + x;
    la_emu_store_global(p, &sum, sizeof sum);
    machine->progress++;
    return old;
}

uint32_t la_emu_atomic_add_shared(uint32_t at, uint32_t x)
{
    uint32_t offset, old, sum;
    Block *b = aligned_shared(at, sizeof old, "an atomic", &offset);
    std::string why = shared_fault(b, offset, sizeof old);
    if (!why.empty()) {
        fault("adds to %s", why.c_str());
    }
    memcpy(&old, b->smem.data() + offset, sizeof old);
    sum = old + x;
    check_overwrite(b, offset, sizeof sum, true);
    store_shared(b, offset, &sum, sizeof sum, machine->now);
    preempt(64);
    return old;
}

void la_emu_fence(void)
{
    preempt(4);
}

void la_emu_fence_async(void)
{
    Thread *t = machine->now;
    for (uint32_t w : t->dirty) {
        if (t->block->dirty[w] == t->id + 1) {
            t->block->dirty[w] = 0;
        }
    }
    t->dirty.clear();
    la_emu_fence_mbar_init(); /* covers what it orders, and more */
}
