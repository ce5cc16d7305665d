/* emu_machine.cpp - runs a grid: makes blocks and fibers, decides who goes on, ends on a fault.
 *
 * Owns the scheduler. Clusters run a few at a time; their threads take turns in rounds. A warp sits out some
 * rounds, in shares drawn from the seed, so that others overtake it; work in flight is finished between
 * turns. Invariant: when no thread can go on and nothing is in flight the grid is dead, and the report
 * says what each thread waits for. Implements la_emu_launch.
 */
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <signal.h>
#include <sys/mman.h>

#include "emu_fiber.h"
#include "emu_machine.h"

namespace emu {

Machine *machine;

namespace {

constexpr uint64_t SPINS = 20000; /* rounds without progress until a poll counts as a dead lock */

void switch_out()
{
    la_emu_switch(&machine->now->sp, machine->scheduler_sp);
}

std::string place(const Thread *t)
{
    char text[160];
    const la_emu_shape &s = machine->shape;
    const int *b = t->block->index;
    snprintf(text, sizeof text, "%s: block (%d, %d, %d), thread %d: ", s.name ? s.name : "kernel",
             b[0], b[1], b[2], t->id);
    return text;
}

void run_thread()
{
    Thread *t = machine->now;
    machine->entry(machine->args);
    leave_meetings(t);
    t->done = true;
    machine->progress++;
    switch_out();
    for (;;) { /* never scheduled again */
    }
}

Thread *take_thread()
{
    if (machine->idle.empty()) {
        auto t = std::make_unique<Thread>();
        size_t guard = 4096;
        void *m = mmap(nullptr, STACK_BYTES + guard, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) {
            return nullptr;
        }
        mprotect(m, guard, PROT_NONE);
        t->stack = static_cast<char *>(m) + guard;
        machine->idle.push_back(t.get());
        machine->pool.push_back(std::move(t));
    }
    Thread *t = machine->idle.back();
    machine->idle.pop_back();
    return t;
}

bool make_thread(Block *b, int id)
{
    Thread *t = take_thread();
    if (!t) {
        fault_late("out of memory for stacks");
        return false;
    }
    char *stack = t->stack;
    *t = Thread();
    t->stack = stack;
    t->block = b;
    t->id = id;
    t->sp = fiber_prepare(stack, STACK_BYTES, run_thread);
    b->threads.push_back(t);
    return true;
}

std::unique_ptr<Block> make_block(Cluster *c, const int index[3], int rank)
{
    auto b = std::make_unique<Block>();
    const la_emu_shape &s = machine->shape;
    b->cluster = c;
    std::copy(index, index + 3, b->index);
    b->rank = rank;
    b->live = machine->threads;
    b->may_write = !s.dependent;
    b->size = s.smem;
    b->smem.assign(s.smem + 16, 0xff);
    b->state.assign(s.smem + 16, UNSET);
    b->dirty.assign(s.smem / 4 + 4, 0);
    b->readers.assign(s.smem / 16 + 2, 0);
    b->warps.resize((machine->threads + 31) / 32);
    b->groups.resize((machine->threads + 127) / 128);
    for (Warp &w : b->warps) {
        static const int shares[] = {0, 0, 2, 8, 12, 15};
        w.skip = s.seed ? shares[draw(6)] : 0;
    }
    return b;
}

bool make_cluster(int number)
{
    const la_emu_shape &s = machine->shape;
    int per[3], first[3];
    for (int i = 0; i < 3; i++) {
        per[i] = s.grid[i] / s.cluster[i];
    }
    first[0] = number % per[0] * s.cluster[0];
    first[1] = number / per[0] % per[1] * s.cluster[1];
    first[2] = number / per[0] / per[1] * s.cluster[2];
    auto c = std::make_unique<Cluster>();
    int blocks = s.cluster[0] * s.cluster[1] * s.cluster[2];
    for (int r = 0; r < blocks; r++) {
        int at[3] = {first[0] + r % s.cluster[0], first[1] + r / s.cluster[0] % s.cluster[1],
                     first[2] + r / s.cluster[0] / s.cluster[1]};
        c->blocks.push_back(make_block(c.get(), at, r));
    }
    for (auto &b : c->blocks) {
        for (int i = 0; i < machine->threads; i++) {
            if (!make_thread(b.get(), i)) {
                return false;
            }
        }
        race_start(b.get(), c->blocks.size());
    }
    machine->clusters.push_back(std::move(c));
    return true;
}

bool can_run(const Thread *t)
{
    return !t->done && (!t->wait.counter || *t->wait.counter != t->wait.seen);
}

/* Runs a thread until it yields. False on a fault. */
bool turn(Thread *t)
{
    t->wait.counter = nullptr;
    machine->now = t;
    la_emu_switch(&machine->scheduler_sp, t->sp);
    machine->now = nullptr;
    if (t->done && machine->error.empty()) {
        t->block->live--;
    }
    if (!machine->copies.empty()) {
        advance_copies(false);
    }
    return machine->error.empty();
}

bool warp_can_run(const Block *b, size_t w)
{
    for (size_t i = w * 32; i < b->threads.size() && i < w * 32 + 32; i++) {
        if (can_run(b->threads[i])) {
            return true;
        }
    }
    return false;
}

/* One turn for each thread of a warp that can run. Returns whether any could. */
bool turn_warp(Block *b, size_t w)
{
    bool ran = false;
    size_t first = w * 32, n = std::min(b->threads.size() - first, size_t(32));
    size_t start = machine->shape.seed ? draw(uint32_t(n)) : 0;
    for (size_t i = 0; i < n && machine->error.empty(); i++) {
        Thread *t = b->threads[first + (start + i) % n];
        if (can_run(t)) {
            ran = true;
            turn(t);
        }
    }
    return ran;
}

void end_block(Block *b)
{
    std::string left = copies_left(b);
    if (left.empty()) {
        left = wgmma_left(b);
    }
    int registers = 0;
    for (const Warpgroup &g : b->groups) {
        registers = g.registers && registers >= 0 ? registers + g.registers * 128 : -1;
    }
    if (left.empty() && registers > 65536) {
        left = "the warpgroups ask for " + std::to_string(registers) + " registers of 65536";
    }
    for (auto &bar : b->barriers) {
        if (left.empty() && bar->tx != 0) {
            left = "barrier at " + std::to_string(bar->offset) + " still expects " +
                   std::to_string(bar->tx) + " bytes";
        }
    }
    if (!left.empty()) {
        fault_late("block (%d, %d, %d) ends, but %s", b->index[0], b->index[1], b->index[2],
                   left.c_str());
    }
}

/* Retires clusters whose threads have all ended. */
void retire()
{
    auto &list = machine->clusters;
    for (size_t i = 0; i < list.size();) {
        bool over = true;
        for (auto &b : list[i]->blocks) {
            over = over && b->live == 0;
        }
        if (!over) {
            i++;
            continue;
        }
        for (auto &b : list[i]->blocks) {
            end_block(b.get());
            machine->idle.insert(machine->idle.end(), b->threads.begin(), b->threads.end());
        }
        list.erase(list.begin() + long(i));
    }
}

/* What everyone waits for, the same reasons counted together. */
std::string stuck()
{
    std::map<std::string, std::pair<int, std::string>> reasons;
    for (auto &c : machine->clusters) {
        for (auto &b : c->blocks) {
            for (const Thread *t : b->threads) {
                if (t->done) {
                    continue;
                }
                char text[160];
                snprintf(text, sizeof text, "%s (at %u, %u)",
                         t->wait.counter ? t->wait.what : "poll", t->wait.where, t->wait.extra);
                auto &r = reasons[text];
                if (!r.first++) {
                    r.second = place(t);
                }
            }
        }
    }
    std::string all;
    for (auto &r : reasons) {
        all += "\n  " + std::to_string(r.second.first) + " threads wait: " + r.first + ", first " +
               r.second.second;
    }
    return all;
}

/* One round over all resident threads. False when the launch is over. */
bool run_round(uint64_t *quiet)
{
    uint64_t before = machine->progress;
    bool ran = false, skipped = false;
    struct Place {
        Block *b;
        size_t warp;
    };
    std::vector<Place> order;
    for (auto &c : machine->clusters) {
        for (auto &b : c->blocks) {
            for (size_t w = 0; w < b->warps.size(); w++) {
                order.push_back({b.get(), w});
            }
        }
    }
    uint32_t start = machine->shape.seed ? draw(uint32_t(order.size())) : 0;
    for (size_t i = 0; i < order.size() && machine->error.empty(); i++) {
        Place p = order[(i + start) % order.size()];
        Warp &w = p.b->warps[p.warp];
        if (w.skip && int(draw(16)) < w.skip) {
            skipped = skipped || warp_can_run(p.b, p.warp);
            continue;
        }
        ran = turn_warp(p.b, p.warp) || ran;
        if (machine->error.empty() && machine->eager && draw(machine->eager) == 0) {
            advance_wgmma(p.b);
        }
    }
    if (!machine->error.empty()) {
        return false;
    }
    if (!ran && !skipped && machine->copies.empty()) {
        fault_late("dead lock:%s", stuck().c_str());
        return false;
    }
    if (!machine->copies.empty() && ((!ran && !skipped) || *quiet > SPINS / 10)) {
        advance_copies(true);
    }
    *quiet = machine->progress != before ? 0 : *quiet + 1;
    if (*quiet > SPINS) {
        fault_late("threads poll for what never comes:%s", stuck().c_str());
        return false;
    }
    return true;
}

void run_grid()
{
    const la_emu_shape &s = machine->shape;
    int total = 1;
    for (int i = 0; i < 3; i++) {
        total *= s.grid[i] / s.cluster[i];
    }
    std::vector<int> order(static_cast<size_t>(total));
    for (int i = 0; i < total; i++) {
        order[size_t(i)] = i;
    }
    if (s.seed) {
        for (int i = total - 1; i > 0; i--) {
            std::swap(order[size_t(i)], order[draw(uint32_t(i + 1))]);
        }
    }
    size_t resident = size_t(s.resident ? s.resident : s.seed ? 1 + draw(3) : 1), next = 0;
    uint64_t quiet = 0;
    while (machine->error.empty()) {
        while (machine->clusters.size() < resident && next < order.size()) {
            if (!make_cluster(order[next++])) {
                return;
            }
        }
        if (machine->clusters.empty()) {
            break;
        }
        if (run_round(&quiet)) {
            retire();
        }
    }
    while (machine->error.empty() && !machine->copies.empty()) { /* stores that have been read */
        advance_copies(true);
    }
}

std::string check_shape(la_emu_shape *s)
{
    for (int i = 0; i < 3; i++) {
        s->grid[i] = s->grid[i] ? s->grid[i] : 1;
        s->block[i] = s->block[i] ? s->block[i] : 1;
        s->cluster[i] = s->cluster[i] ? s->cluster[i] : 1;
        if (s->grid[i] < 1 || s->block[i] < 1 || s->cluster[i] < 1) {
            return "grid, block and cluster have no negative extents";
        }
        if (s->grid[i] % s->cluster[i]) {
            return "the cluster does not divide the grid";
        }
    }
    if (s->block[1] != 1 || s->block[2] != 1 || s->block[0] > 1024) {
        return "a block has up to 1024 threads in one dimension";
    }
    if (s->cluster[0] * s->cluster[1] * s->cluster[2] > 8) {
        return "a cluster has at most 8 blocks";
    }
    if (s->smem > SMEM_LIMIT) {
        return "shared memory " + std::to_string(s->smem) + " of " + std::to_string(SMEM_LIMIT) +
               " bytes";
    }
    return "";
}

std::jmp_buf crash_point;
thread_local bool launching; /* this thread runs the grid */

void on_crash(int)
{
    if (launching && machine->crash) {
        std::jmp_buf *to = machine->crash;
        machine->crash = nullptr;
        std::longjmp(*to, 1);
    }
    signal(SIGSEGV, SIG_DFL); /* not ours: it happens again, and ends the process */
    signal(SIGBUS, SIG_DFL);
}

/* Runs with a handler for wild pointers of kernels, which would otherwise end the test process. */
void run_guarded()
{
    static char alternate[64 << 10];
    stack_t mine = {}, old_stack;
    mine.ss_sp = alternate;
    mine.ss_size = sizeof alternate;
    struct sigaction action = {}, old_segv, old_bus;
    action.sa_handler = on_crash;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaltstack(&mine, &old_stack);
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    launching = true;
    if (setjmp(crash_point) == 0) {
        machine->crash = &crash_point;
        run_grid();
    }
    else {
        std::string where = machine->now ? place(machine->now) : "";
        machine->now = nullptr;
        fault_late("%scrashed: a wild pointer, or more than %zu bytes of stack", where.c_str(),
                   STACK_BYTES);
    }
    machine->crash = nullptr;
    launching = false;
    sigaction(SIGSEGV, &old_segv, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
    sigaltstack(&old_stack, nullptr);
}

} // namespace

void fault_late(const char *format, ...)
{
    if (!machine->error.empty()) {
        return;
    }
    char text[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    const char *name = machine->shape.name ? machine->shape.name : "kernel";
    machine->error = machine->now ? place(machine->now) + text : std::string(name) + ": " + text;
}

void fault(const char *format, ...)
{
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fault_late("%s", text);
    switch_out();
    __builtin_unreachable();
}

uint32_t draw(uint32_t below)
{
    uint64_t x = machine->rng;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    machine->rng = x;
    return uint32_t((x >> 32) * below >> 32);
}

void yield()
{
    switch_out();
}

void preempt(uint32_t one_in)
{
    if (machine->shape.seed && draw(one_in) == 0) {
        machine->progress++;
        switch_out();
    }
}

void block_on(const uint64_t &counter, const char *what, uint32_t where, uint32_t extra)
{
    Thread *t = machine->now;
    machine->progress++;
    t->wait = {&counter, counter, what, where, extra};
    switch_out();
    machine->progress++;
}

} // namespace emu

extern "C" int la_emu_launch(void (*entry)(const void *args), const void *args,
                             const la_emu_shape *shape, char *error, size_t n)
{
    using namespace emu;
    static std::mutex one_at_a_time;
    static std::vector<std::unique_ptr<Thread>> pool;
    std::lock_guard<std::mutex> hold(one_at_a_time);
    Machine m;
    m.shape = *shape;
    m.error = check_shape(&m.shape);
    m.entry = entry;
    m.args = args;
    m.threads = m.shape.block[0];
    if (m.shape.writes != nullptr) {
        m.before = m.shape.writes->starts;
    }
    m.rng = 0x9e3779b97f4a7c15ull * (uint64_t(m.shape.seed) + 1);
    m.pool = std::move(pool);
    for (auto &t : m.pool) {
        m.idle.push_back(t.get());
    }
    machine = &m;
    static const uint32_t eagerness[] = {0, 0, 8, 64};
    m.eager = m.shape.seed ? eagerness[draw(4)] : 0;
    if (m.error.empty()) {
        run_guarded();
    }
    machine = nullptr;
    if (m.shape.writes != nullptr) {
        m.shape.writes->starts = m.wrote;
    }
    pool = std::move(m.pool);
    if (error && n) {
        snprintf(error, n, "%s", m.error.c_str());
    }
    return m.error.empty() ? 0 : -1;
}
