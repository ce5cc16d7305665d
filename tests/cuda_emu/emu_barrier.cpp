/* emu_barrier.cpp - everything at which threads meet: collectives, named barriers, mbarriers, clusters.
 *
 * Owns meetings (the lanes of a mask or a warpgroup come to one instruction; the last does the work for
 * all), phases of barriers in shared memory and the barrier of a cluster. Invariant: threads that meet
 * agree on the instruction and its parameters, or the launch ends with what they disagree on. Implements
 * the thread half of la_emu_ptx.h.
 */
#include "emu_machine.h"

using namespace emu;

/* ---- who ---- */

int la_emu_thread(void)
{
    return machine->now->id;
}

int la_emu_threads(void)
{
    return machine->threads;
}

int la_emu_block(int axis)
{
    return machine->now->block->index[axis];
}

int la_emu_grid(int axis)
{
    return machine->shape.grid[axis];
}

/* ---- meetings ---- */

namespace {

/* Joins or opens a meeting of `expected` threads under `mask`; the last one acts. Lanes may be at another
 * collective than those that wait for them, unless they in turn wait for these. */
void meet(std::vector<Meeting> &open, const char *what, uint32_t mask, int expected, int place,
          void *slot, const Act &act)
{
    size_t at = open.size();
    for (size_t i = 0; i < open.size(); i++) {
        Meeting &m = open[i];
        if (m.mask == mask && m.what != what) {
            fault("is at %s while others of its warp or warpgroup are at %s", what, m.what.c_str());
        }
        if (m.mask == mask) {
            at = i;
        }
        else if ((m.lanes & mask) && (m.mask >> place & 1)) {
            fault("%s: mask 0x%x, others brought 0x%x to %s", what, mask, m.mask, m.what.c_str());
        }
    }
    if (at == open.size()) {
        Meeting m;
        m.what = what;
        m.mask = mask;
        m.slot.assign(128, nullptr);
        m.generation = std::make_shared<uint64_t>(0);
        open.push_back(m);
    }
    Meeting &m = open[at];
    m.lanes |= 1u << (place % 32);
    m.slot[size_t(place)] = slot;
    if (++m.arrived < expected) {
        std::shared_ptr<uint64_t> generation = m.generation;
        block_on(*generation, what, mask);
        return;
    }
    Meeting whole = m;
    open.erase(open.begin() + long(at));
    act(whole.slot.data());
    ++*whole.generation;
    machine->progress++;
    preempt(4);
}

} // namespace

namespace emu {

void meet_warp(const char *what, uint32_t mask, void *slot, const Act &act)
{
    Thread *t = machine->now;
    Warp &w = t->block->warps[size_t(t->id / 32)];
    int lane = t->id % 32;
    if (!(mask >> lane & 1)) {
        fault("%s: lane %d is not in the mask 0x%x", what, lane, mask);
    }
    int first = t->id - lane;
    if (machine->threads - first < 32) {
        mask &= (1u << (machine->threads - first)) - 1;
    }
    if (w.exited & mask) {
        fault("%s: lanes 0x%x of the mask have ended", what, w.exited & mask);
    }
    meet(w.open, what, mask, __builtin_popcount(mask), lane, slot, act);
}

void meet_group(const char *what, void *slot, const Act &act)
{
    Thread *t = machine->now;
    if (machine->threads % 128) {
        fault("%s needs whole warpgroups; the block has %d threads", what, machine->threads);
    }
    int first = t->id / 128 * 4;
    for (int i = 0; i < 4; i++) {
        if (t->block->warps[size_t(first + i)].exited) {
            fault("%s: threads of the warpgroup have ended", what);
        }
    }
    meet(t->block->groups[size_t(t->id / 128)].open, what, ~0u, 128, t->id % 128, slot, act);
}

void leave_meetings(Thread *t)
{
    Warp &w = t->block->warps[size_t(t->id / 32)];
    w.exited |= 1u << (t->id % 32);
    for (const Meeting &m : w.open) {
        if (m.mask >> (t->id % 32) & 1) {
            fault("ends while others of its warp wait for it at %s", m.what.c_str());
        }
    }
    for (const Meeting &m : t->block->groups[size_t(t->id / 128)].open) {
        fault("ends while others of its warpgroup wait for it at %s", m.what.c_str());
    }
    for (const auto &g : {t->async_groups, t->bulk_groups}) {
        for (const auto &ids : g) {
            for (uint64_t id : ids) {
                for (const auto &c : machine->copies) {
                    if (c->id == id && (!c->store || !c->read)) {
                        fault("ends with a copy in flight that it has not waited for");
                    }
                }
            }
        }
    }
    if (!t->async_open.empty() || !t->bulk_open.empty()) {
        fault("ends with copies that belong to no committed group");
    }
}

} // namespace emu

static uint32_t shuffle_source(la_emu_collective kind, int lane, int by)
{
    switch (kind) {
    case LA_EMU_SHFL: return uint32_t(by) & 31;
    case LA_EMU_SHFL_XOR: return uint32_t((lane ^ by) & 31);
    case LA_EMU_SHFL_DOWN: return uint32_t(lane + by < 32 ? lane + by : lane);
    case LA_EMU_SHFL_UP: return uint32_t(lane - by >= 0 ? lane - by : lane);
    default: return uint32_t(lane);
    }
}

struct ShuffleSlot {
    uint32_t x, result;
    int by;
};

uint32_t la_emu_shuffle(la_emu_collective kind, uint32_t x, int by, uint32_t mask)
{
    static const char *const names[] = {"la_shfl",      "la_shfl_xor",  "la_shfl_down",
                                        "la_shfl_up",   "la_ballot",    "la_redux_add",
                                        "la_redux_min", "la_redux_max", "la_sync_warp"};
    ShuffleSlot mine = {x, 0, by};
    meet_warp(names[kind], mask, &mine, [kind](void **slot) {
        uint32_t all = kind == LA_EMU_MIN ? ~0u : 0;
        for (uint32_t i = 0; i < 32; i++) {
            auto *s = static_cast<ShuffleSlot *>(slot[i]);
            if (!s) {
                continue;
            }
            if (kind == LA_EMU_BALLOT) {
                all |= (s->x & 1) << i;
            }
            all = kind == LA_EMU_ADD ? all + s->x : all;
            all = kind == LA_EMU_MIN && s->x < all ? s->x : all;
            all = kind == LA_EMU_MAX && s->x > all ? s->x : all;
        }
        for (int i = 0; i < 32; i++) {
            auto *s = static_cast<ShuffleSlot *>(slot[i]);
            if (!s) {
                continue;
            }
            s->result = all;
            if (kind <= LA_EMU_SHFL_UP) {
                auto *from = static_cast<ShuffleSlot *>(slot[shuffle_source(kind, i, s->by)]);
                if (!from) {
                    fault("%s: lane %d reads a lane outside of the mask", names[kind], i);
                }
                s->result = from->x;
            }
        }
    });
    return mine.result;
}

int la_emu_elect(void)
{
    int mine = la_emu_thread() % 32;
    uint32_t leader = machine->shape.seed % 32;
    meet_warp("la_elect", ~0u, &mine, [](void **) {});
    return uint32_t(mine) == leader;
}

void la_emu_named_barrier(int id, int threads, int wait)
{
    preempt(4);
    Block *b = machine->now->block;
    if (id < 0 || id > 15) {
        fault("named barrier %d of 0..15", id);
    }
    if (threads < 1 || threads > machine->threads ||
        (threads % 32 && threads != machine->threads)) {
        fault("named barrier %d for %d threads of a block of %d: whole warps", id, threads,
              machine->threads);
    }
    NamedBarrier &bar = b->named[id];
    if (bar.arrived && bar.count != threads) {
        fault("named barrier %d for %d threads, others came for %d", id, threads, bar.count);
    }
    bar.count = threads;
    machine->progress++;
    race_release(machine->now, &bar.gather);
    if (++bar.arrived == threads) {
        bar.arrived = 0;
        bar.generation++;
        race_join(&bar.done, bar.gather);
        preempt(4);
    }
    else if (wait) {
        block_on(bar.generation, id ? "a named barrier" : "la_sync_block", uint32_t(id));
    }
    if (wait) {
        race_acquire(machine->now, bar.done);
    }
}

void la_emu_grid_wait(void)
{
    machine->now->block->may_write = true;
    preempt(4);
}

void la_emu_grid_release(void)
{
    preempt(4);
}

void la_emu_registers(int count)
{
    if (count % 8 || count < 24 || count > 256) {
        fault("setmaxnreg of %d: a multiple of 8 in 24..256", count);
    }
    Thread *t = machine->now;
    Warpgroup *g = &t->block->groups[size_t(t->id / 128)];
    meet_group("setmaxnreg", &count, [g](void **slot) {
        g->registers = *static_cast<int *>(slot[0]);
        for (int i = 1; i < 128; i++) {
            if (*static_cast<int *>(slot[i]) != g->registers) {
                fault("setmaxnreg differs inside the warpgroup");
            }
        }
    });
}

/* ---- barriers in shared memory ---- */

namespace emu {

Barrier *find_barrier(uint32_t address, const char *what, Block **owner)
{
    uint32_t offset;
    Block *b = find_shared(address, 8, what, &offset);
    if (offset % 8) {
        fault("%s: barrier at offset %u is not aligned to 8", what, offset);
    }
    if (owner) {
        *owner = b;
    }
    for (auto &bar : b->barriers) {
        if (bar->offset == offset) {
            if (b != machine->now->block && !bar->fenced) {
                fault("%s: the barrier's initialisation was not fenced for the cluster", what);
            }
            return bar.get();
        }
    }
    fault("%s: no barrier was initialised at offset %u", what, offset);
}

void settle(Barrier *bar)
{
    if (bar->pending == 0 && bar->tx == 0) {
        race_join(&bar->done, bar->gather);
        bar->phase++;
        bar->pending = bar->count;
        machine->progress++;
    }
}

void transact(Barrier *bar, int64_t bytes)
{
    bar->tx += bytes;
    if (bar->tx >= 1 << 20 || bar->tx <= -(1 << 20)) {
        fault_late("barrier at offset %u counts %lld bytes, beyond 2^20", bar->offset,
                   (long long)bar->tx);
    }
    settle(bar);
}

void arrive(Barrier *bar, uint32_t count, const char *what)
{
    if (bar->pending < count) {
        fault("%s: more arrivals at the barrier at offset %u than the %u of its phase", what,
              bar->offset, bar->count);
    }
    bar->pending -= count;
    settle(bar);
}

} // namespace emu

void la_emu_mbar_init(uint32_t at, uint32_t arrivals)
{
    uint32_t offset;
    Block *b = find_shared(at, 8, "la_mbar_init", &offset);
    if (offset % 8 || at >> RANK_SHIFT) {
        fault("la_mbar_init at offset %u: 8-byte aligned, of the thread's own block", offset);
    }
    if (arrivals < 1 || arrivals >= 1 << 20) {
        fault("la_mbar_init for %u arrivals: 1..2^20 - 1", arrivals);
    }
    for (uint32_t i = offset; i < offset + 8; i++) {
        if (b->state[i] == BARRIER || b->state[i] == FLIGHT) {
            fault("la_mbar_init at offset %u, %s", offset,
                  b->state[i] == BARRIER ? "which is a barrier already"
                                         : "where a copy is in flight");
        }
    }
    auto bar = std::make_unique<Barrier>();
    bar->offset = offset;
    bar->count = bar->pending = arrivals;
    b->barriers.push_back(std::move(bar));
    mark(b, offset, 8, BARRIER);
    machine->now->unfenced_bars.push_back(offset);
}

void la_emu_fence_mbar_init(void)
{
    Thread *t = machine->now;
    for (auto &bar : t->block->barriers) {
        for (uint32_t offset : t->unfenced_bars) {
            bar->fenced = bar->fenced || bar->offset == offset;
        }
    }
    t->unfenced_bars.clear();
}

void la_emu_mbar_inval(uint32_t at)
{
    Block *b;
    Barrier *bar = find_barrier(at, "la_mbar_inval", &b);
    for (const auto &c : machine->copies) {
        for (const auto &t : c->tell) {
            if (t.first == bar) {
                fault("la_mbar_inval of a barrier that a copy in flight will tell of its bytes");
            }
        }
    }
    mark(b, bar->offset, 8, UNSET);
    for (size_t i = 0; i < b->barriers.size(); i++) {
        if (b->barriers[i].get() == bar) {
            b->barriers.erase(b->barriers.begin() + long(i));
            return;
        }
    }
}

void la_emu_mbar_arrive(uint32_t at, int mapped)
{
    const char *what = mapped ? "la_mbar_arrive_cluster" : "la_mbar_arrive";
    if (!mapped && at >> RANK_SHIFT) {
        fault("la_mbar_arrive at a mapped address; use la_mbar_arrive_cluster");
    }
    Barrier *bar = find_barrier(at, what);
    race_release(machine->now, &bar->gather);
    arrive(bar, 1, what);
    preempt(2);
}

void la_emu_mbar_expect(uint32_t at, uint32_t bytes)
{
    Barrier *bar = find_barrier(at, "la_mbar_expect");
    bar->tx += bytes;
    race_release(machine->now, &bar->gather);
    arrive(bar, 1, "la_mbar_expect");
    preempt(2);
}

int la_emu_mbar_test(uint32_t at, uint32_t parity)
{
    Barrier *bar = find_barrier(at, "la_mbar_test");
    int done = (bar->phase & 1) != (parity & 1);
    if (!done) {
        yield();
    }
    else {
        race_acquire(machine->now, bar->done);
    }
    return done;
}

void la_emu_mbar_wait(uint32_t at, uint32_t parity)
{
    if (parity > 1) {
        fault("la_mbar_wait for parity %u: 0 or 1", parity);
    }
    Barrier *bar = find_barrier(at, "la_mbar_wait");
    preempt(4);
    while ((bar->phase & 1) == parity) {
        block_on(bar->phase, "la_mbar_wait", bar->offset, parity);
    }
    race_acquire(machine->now, bar->done);
}

/* ---- clusters ---- */

uint32_t la_emu_cluster_rank(void)
{
    return uint32_t(machine->now->block->rank);
}

uint32_t la_emu_cluster_blocks(void)
{
    return uint32_t(machine->now->block->cluster->blocks.size());
}

void la_emu_cluster_arrive(void)
{
    Thread *t = machine->now;
    Cluster *c = t->block->cluster;
    if (t->cluster_seen != ~uint64_t(0)) {
        fault("la_cluster_arrive twice without a la_cluster_wait between");
    }
    t->cluster_seen = c->generation;
    machine->progress++;
    race_release(t, &c->gather);
    if (++c->arrived == int(c->blocks.size()) * machine->threads) {
        c->arrived = 0;
        c->generation++;
        race_join(&c->done, c->gather);
    }
    preempt(2);
}

void la_emu_cluster_wait(void)
{
    Thread *t = machine->now;
    Cluster *c = t->block->cluster;
    if (t->cluster_seen == ~uint64_t(0)) {
        fault("la_cluster_wait without la_cluster_arrive");
    }
    if (c->generation == t->cluster_seen) {
        block_on(c->generation, "la_cluster_wait");
    }
    t->cluster_seen = ~uint64_t(0);
    race_acquire(t, c->done);
}

uint32_t la_emu_mapa(uint32_t at, uint32_t rank)
{
    uint32_t offset;
    find_shared(at, 1, "la_mapa", &offset);
    if (at >> RANK_SHIFT || rank >= machine->now->block->cluster->blocks.size()) {
        fault("la_mapa of 0x%x to block %u of %zu", at, rank,
              machine->now->block->cluster->blocks.size());
    }
    return (rank + 1) << RANK_SHIFT | at;
}
