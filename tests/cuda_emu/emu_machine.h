/* emu_machine.h - what the emulator keeps of a running grid: threads, blocks, barriers, work in flight.
 *
 * Owns the structures that the emulator's files share. Invariant: between two switches exactly one fiber
 * runs, so nothing here needs a lock; a fault is recorded once and ends the launch. Every file of
 * tests/cuda_emu includes it; kernels see la_emu_ptx.h alone.
 */
#ifndef EMU_MACHINE_H
#define EMU_MACHINE_H

#include <csetjmp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "la_emu.h"
#include "la_emu_ptx.h"

namespace emu {

constexpr uint32_t SMEM_BASE = 1024;    /* where dynamic shared memory starts in a block's window */
constexpr uint32_t SMEM_LIMIT = 232448; /* bytes that a block may ask for */
constexpr uint32_t RANK_SHIFT = 24;     /* a mapped shared address: (rank + 1) << 24 | offset */
constexpr size_t STACK_BYTES = 128 << 10;

/* State of a byte of shared memory. */
enum ByteState : uint8_t { UNSET = 0, SET = 1, FLIGHT = 2, BARRIER = 3 };

struct Block;
struct Cluster;
struct Shadow; /* who wrote and read each word last, emu_race.cpp */

/* What has happened, as far as someone knows: a count for each warp of the cluster, and for its copies. */
typedef std::vector<uint32_t> Clock;

/* A thread waits for *counter to move on from `seen`. */
struct Wait {
    const uint64_t *counter = nullptr; /* nullptr: it can run */
    uint64_t seen = 0;
    const char *what = "";
    uint32_t where = 0; /* barrier, address: for the report */
    uint32_t extra = 0;
};

/* A copy in flight: runs of bytes, and what its end is told to. */
struct Run {
    uint8_t *global; /* NULL: zeros; of la_bulk_send unused */
    Block *block;    /* whose shared memory is written, or read by a store */
    uint32_t offset;
    uint32_t bytes;
};

struct Barrier;
struct Thread;

struct Copy {
    uint64_t id;
    bool store = false;       /* out of shared memory */
    bool read = false;        /* a store that has read its source */
    bool generic = false;     /* cp.async: writes as its thread would */
    Thread *thread = nullptr; /* who issued it */
    std::vector<Run> runs;
    std::vector<uint8_t> held; /* what a store has read */
    Block *from = nullptr;     /* la_bulk_send: the source */
    uint32_t from_offset = 0;
    std::vector<std::pair<Barrier *, int64_t>> tell; /* bytes for barriers; 0: an arrival */
    std::vector<uint64_t> after;                     /* copies that end before this one */
    uint32_t delay = 0;                              /* turns left to sit out */
};

struct Thread {
    Block *block = nullptr;
    int id = 0; /* in its block */
    void *sp = nullptr;
    char *stack = nullptr;
    bool done = false;
    bool fenced = false; /* wgmma.fence since the last wait */
    Wait wait;
    std::vector<uint32_t> dirty;          /* words written by it since its last proxy fence */
    std::vector<uint32_t> unfenced_bars;  /* barriers initialised since its last fence */
    uint64_t cluster_seen = ~uint64_t(0); /* generation that it arrived at; all ones: none */
    std::vector<std::vector<uint64_t>> async_groups, bulk_groups; /* ids of copies, oldest first */
    std::vector<uint64_t> async_open, bulk_open;
};

struct Barrier {
    uint32_t offset;
    uint32_t count, pending;
    int64_t tx = 0;
    uint64_t phase = 0;
    bool fenced = false; /* its initialisation is visible to copies and other blocks */
    Clock gather, done;  /* of those who arrived, of those in phases that have ended */
};

struct NamedBarrier {
    int count = 0, arrived = 0;
    uint64_t generation = 0;
    Clock gather, done;
};

/* Threads that meet at one instruction: 32 lanes under a mask, or a warpgroup. */
struct Meeting {
    std::string what;
    uint32_t mask = 0;
    int arrived = 0;
    uint32_t lanes = 0;
    std::vector<void *> slot;
    std::shared_ptr<uint64_t> generation;
};

struct Warp {
    std::vector<Meeting> open;
    uint32_t exited = 0;
    int skip = 0; /* sixteenths of the rounds that it sits out */
    Clock clock;
};

/* Accumulator registers of a warpgroup that products in flight own. */
struct Accumulator {
    float *d[128];
    int n;
    int pending[4] = {0, 0, 0, 0}; /* products that the warps have not waited for */
    std::vector<float> v;          /* [128][n] */
};

struct Wgmma {
    la_emu_wgmma form;
    uint64_t a, b;
    int accumulate;
    uint32_t regs[128][4];
    std::shared_ptr<Accumulator> d;
    bool done = false;
};

/* Products are issued by the warpgroup, committed and waited for by each warp for itself. */
struct Warpgroup {
    std::vector<Meeting> open;
    std::vector<std::shared_ptr<Wgmma>> loose;                     /* issued, not committed */
    std::vector<std::vector<std::shared_ptr<Wgmma>>> groups;       /* all of the block's life */
    size_t committed[4] = {0, 0, 0, 0}, retired[4] = {0, 0, 0, 0}; /* by warp */
    std::vector<std::shared_ptr<Accumulator>> owned;
    int registers = 0; /* setmaxnreg, 0: as launched */
};

struct Block {
    Cluster *cluster;
    int index[3];
    int rank;       /* in its cluster */
    int live;       /* threads */
    bool may_write; /* griddepcontrol.wait was executed, or need not be */
    uint32_t size;
    std::vector<uint8_t> smem;
    std::vector<uint8_t> state; /* ByteState, a byte each */
    std::vector<uint16_t>
        dirty; /* per 4 bytes: 1 + the thread that wrote and did not fence; 0: clean */
    std::vector<uint16_t> readers; /* per 16 bytes: copies out of it that have not read yet */
    std::vector<std::unique_ptr<Barrier>> barriers;
    NamedBarrier named[16];
    std::shared_ptr<Shadow> shadow;
    std::vector<Thread *> threads;
    std::vector<Warp> warps;
    std::vector<Warpgroup> groups;
};

struct Cluster {
    std::vector<std::unique_ptr<Block>> blocks;
    int arrived = 0;
    uint64_t generation = 0;
    Clock gather, done;
    uint32_t copies_done = 0;
};

struct Machine {
    la_emu_shape shape;
    void (*entry)(const void *) = nullptr;
    const void *args = nullptr;
    int threads = 0; /* of a block */
    std::vector<std::unique_ptr<Cluster>> clusters;
    std::vector<std::unique_ptr<Thread>> pool; /* threads with their stacks, for reuse */
    std::vector<Thread *> idle;
    std::vector<std::unique_ptr<Copy>> copies;
    uint64_t next_copy = 1;
    uint64_t copies_moved = 0; /* stages of copies that are done */
    Thread *now = nullptr;
    void *scheduler_sp = nullptr;
    std::jmp_buf *crash = nullptr;
    std::string error;
    std::vector<uintptr_t> before, wrote; /* allocations, by their starts, as la_emu_writes */
    uint64_t rng = 0;
    uint32_t eager = 0;    /* one in so many turns runs a wgmma before it is waited for; 0: none */
    uint64_t progress = 0; /* anything but a spin */
};

extern Machine *machine;

/* ---- emu_machine.cpp ---- */

/* Ends the launch with a reason; does not return when called from a fiber. */
[[noreturn]] void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Records a reason from the scheduler's own work. */
void fault_late(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint32_t draw(uint32_t below);
void yield();                  /* lets others run; the thread stays able to */
void preempt(uint32_t one_in); /* yields once in so many calls, never under seed 0 */
void block_on(const uint64_t &counter, const char *what, uint32_t where = 0, uint32_t extra = 0);

/* ---- emu_memory.cpp ---- */

/* The block and offset behind a shared address; faults if they do not exist. */
Block *find_shared(uint32_t address, uint32_t bytes, const char *what, uint32_t *offset);
void check_global(const void *p, size_t bytes, const char *what);
const char *global_fault(const void *p, size_t bytes); /* nullptr: it may be touched */
/* Behind a check of the same bytes: notes a write, or faults a read that ought to wait for the launch before. */
void note_global(const void *p, bool write, const char *what);
std::string shared_fault(const Block *b, uint32_t offset,
                         uint32_t bytes); /* "" or why not to read */
/* Whether the async proxy may read: all bytes set, none written without a proxy fence. "" or why not. */
std::string proxy_fault(const Block *b, uint32_t offset, uint32_t bytes);
void store_shared(Block *b, uint32_t offset, const void *from, uint32_t bytes, const Thread *by);
void mark(Block *b, uint32_t offset, uint32_t bytes, ByteState state);

/* ---- emu_barrier.cpp ---- */

Barrier *find_barrier(uint32_t address, const char *what, Block **owner = nullptr);
void transact(Barrier *bar, int64_t bytes); /* adds to the pending bytes */
void settle(Barrier *bar);                  /* ends the phase if nothing is pending */
void arrive(Barrier *bar, uint32_t count, const char *what);
void leave_meetings(Thread *t); /* of a thread that ends */
typedef std::function<void(void **slot)> Act;
void meet_warp(const char *what, uint32_t mask, void *slot, const Act &act);
void meet_group(const char *what, void *slot, const Act &act);

/* ---- emu_copy.cpp ---- */

void advance_copies(bool force);
std::string copies_left(const Block *b); /* "" or what is still in flight */

/* ---- emu_race.cpp ---- */

void race_start(Block *b, size_t blocks); /* once its threads are there */
void race_join(Clock *into, const Clock &from);
/* The thread's warp arrives somewhere, or goes on from there. */
void race_release(const Thread *t, Clock *into);
void race_acquire(const Thread *t, const Clock &from);
/* Notes a read. "", or the earlier write that nothing orders before it. */
std::string race_read(Block *b, uint32_t offset, uint32_t bytes, const Thread *by);
/* "", or the earlier write or read that nothing orders before this write. */
std::string race_check_write(Block *b, uint32_t offset, uint32_t bytes, const Thread *by,
                             bool atomic);
void race_write(Block *b, uint32_t offset, uint32_t bytes, const Thread *by,
                bool atomic);            /* NULL: a copy */
void race_copied(Block *b, Clock *into); /* behind the writes of a copy */

/* ---- emu_wgmma.cpp ---- */

void advance_wgmma(Block *b);
std::string wgmma_left(const Block *b);

} // namespace emu

#endif
