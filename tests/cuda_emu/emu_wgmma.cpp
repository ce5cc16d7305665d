/* emu_wgmma.cpp - products of a warpgroup: descriptors, fragments, and the time they take.
 *
 * Owns wgmma on the host. A product is checked when it is issued and runs later, at the latest when it is
 * waited for; until then its accumulators hold NaN in the threads' registers, and a shared operand that is
 * refilled meanwhile is a fault. Invariant: the 128 threads agree on form and descriptors. Implements the
 * warpgroup half of la_emu_ptx.h.
 */
#include "emu_machine.h"

using namespace emu;

namespace {

constexpr uint32_t POISON = 0x7fdead00; /* a NaN that no arithmetic makes */

struct WgmmaSlot {
    la_emu_wgmma form;
    float *d;
    uint64_t a, b;
    const uint32_t *a_registers;
    int accumulate;
    bool fenced;
};

struct Operand {
    uint32_t start, inner, outer;
    int swizzle; /* bytes of its span; 0: none */
    int trans;
    int rows, element_bytes;
};

int depth_of(const la_emu_wgmma &f)
{
    return f.type == LA_EMU_E4M3 ? 32 : 16;
}

Operand decode(uint64_t d, const la_emu_wgmma &f, int rows, int trans)
{
    static const int spans[] = {0, 128, 64, 32};
    Operand o;
    o.start = uint32_t(d & 0x3fff) << 4;
    o.inner = uint32_t(d >> 16 & 0x3fff) << 4;
    o.outer = uint32_t(d >> 32 & 0x3fff) << 4;
    o.swizzle = spans[d >> 62];
    o.trans = trans;
    o.rows = rows;
    o.element_bytes = f.type == LA_EMU_E4M3 ? 1 : 2;
    if (d >> 49 & 7) {
        fault("wgmma: a descriptor with a base offset; keep atoms aligned to 8 rows of their "
              "swizzle");
    }
    return o;
}

/* The shared address of 16 bytes: of row r at byte `at` of depth, or, transposed, of depth k at byte `at`
 * of its rows. */
uint32_t chunk_address(const Operand &o, int line, int at)
{
    uint32_t l = uint32_t(line), c = uint32_t(at) / 16, address;
    uint32_t span = o.swizzle ? uint32_t(o.swizzle) : 16;
    if (!o.trans) {
        address = o.start + l / 8 * o.outer + l % 8 * span;
        address += o.swizzle ? c * 16 : c * o.inner;
    }
    else if (o.swizzle) {
        address =
            o.start + c * 16 / span * o.inner + c * 16 % span + l % 8 * span + l / 8 * o.outer;
    }
    else {
        address = o.start + c * o.outer + l % 8 * 16 + l / 8 * o.inner;
    }
    uint32_t bits = span / 16 - 1;
    return address ^ ((address >> 7 & bits) << 4);
}

/* Calls `visit(line, byte, offset)` for every 16 bytes of an operand; offset in shared memory. */
template <class Visit> void walk(const Operand &o, int depth, const Visit &visit)
{
    int lines = o.trans ? depth : o.rows;
    int bytes = (o.trans ? o.rows : depth) * o.element_bytes;
    for (int line = 0; line < lines; line++) {
        for (int at = 0; at < bytes; at += 16) {
            visit(line, at, chunk_address(o, line, at));
        }
    }
}

void check_operand(Block *b, const Operand &o, int depth, const char *name)
{
    int first = machine->now->id / 128 * 128;
    static const char *const what = "wgmma";
    if (o.swizzle && o.start % 16) {
        fault("%s: operand %s is not aligned", what, name);
    }
    walk(o, depth, [&](int line, int, uint32_t address) {
        if (address < SMEM_BASE || address - SMEM_BASE + 16 > b->size) {
            fault("%s: operand %s reaches offset %lld of %u bytes of shared memory (line %d)", what,
                  name, (long long)address - SMEM_BASE, b->size, line);
        }
        std::string why = proxy_fault(b, address - SMEM_BASE, 16);
        for (int w = 0; w < 4 && why.empty(); w++) {
            why = race_read(b, address - SMEM_BASE, 16, b->threads[size_t(first + w * 32)]);
        }
        if (!why.empty()) {
            fault("%s: operand %s (line %d) reads %s", what, name, line, why.c_str());
        }
    });
}

float element(int type, const uint8_t *p)
{
    uint16_t x;
    if (type == LA_EMU_E4M3) {
        return la_emu_e4m3(*p);
    }
    memcpy(&x, p, 2);
    return type == LA_EMU_BF16 ? la_emu_bf16(x) : la_emu_f16(x);
}

/* Reads an operand as m[depth][rows]. Returns a reason if bytes are no longer there. */
std::string read_operand(Block *b, const Operand &o, int type, int depth, std::vector<float> *m)
{
    std::string why;
    m->resize(size_t(depth * o.rows));
    walk(o, depth, [&](int line, int at, uint32_t address) {
        uint32_t offset = address - SMEM_BASE;
        if (why.empty()) {
            why = shared_fault(b, offset, 16);
        }
        for (int i = 0; i < 16 / o.element_bytes; i++) {
            int along = at / o.element_bytes + i;
            int row = o.trans ? along : line, k = o.trans ? line : along;
            (*m)[size_t(k * o.rows + row)] =
                element(type, b->smem.data() + offset + i * o.element_bytes);
        }
    });
    return why;
}

void read_registers(const Wgmma &w, int depth, std::vector<float> *m)
{
    int per_word = depth / 8, bytes = w.form.type == LA_EMU_E4M3 ? 1 : 2;
    m->resize(size_t(depth * 64));
    for (int t = 0; t < 128; t++) {
        const auto *p = reinterpret_cast<const uint8_t *>(w.regs[t]);
        for (int i = 0; i < 4 * per_word; i++) {
            int word = i / per_word;
            int row = t / 32 * 16 + t % 32 / 4 + word % 2 * 8;
            int k = t % 4 * per_word + i % per_word + word / 2 * per_word * 4;
            (*m)[size_t(k * 64 + row)] = element(w.form.type, p + i * bytes);
        }
    }
}

/* Runs a product on its accumulators' copy. */
void run(Block *b, Wgmma *w)
{
    int depth = depth_of(w->form), n = w->form.n;
    std::vector<float> a, bm, sum(size_t(64 * n), 0.0f);
    std::string why;
    if (w->form.a_in_registers) {
        read_registers(*w, depth, &a);
    }
    else {
        why = read_operand(b, decode(w->a, w->form, 64, w->form.trans_a), w->form.type, depth, &a);
    }
    std::string other =
        read_operand(b, decode(w->b, w->form, n, w->form.trans_b), w->form.type, depth, &bm);
    why = why.empty() ? other : why;
    if (!why.empty()) {
        fault_late("block (%d, %d, %d): a wgmma in flight reads %s: it was given back too early",
                   b->index[0], b->index[1], b->index[2], why.c_str());
    }
    for (int row = 0; row < 64; row++) {
        float *out = sum.data() + row * n;
        for (int k = 0; k < depth; k++) {
            float x = a[size_t(k * 64 + row)];
            const float *y = bm.data() + k * n;
            for (int c = 0; c < n; c++) {
                out[c] += x * y[c];
            }
        }
    }
    for (int t = 0; t < 128; t++) {
        float *d = w->d->v.data() + t * n / 2;
        for (int i = 0; i < n / 2; i++) {
            int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8,
                column = i / 4 * 8 + t % 4 * 2 + i % 2;
            d[i] = sum[size_t(row * n + column)] + (w->accumulate ? d[i] : 0.0f);
        }
    }
    w->done = true;
}

/* Gives a warp's accumulators back to its threads' registers. */
void release(Warpgroup *g, Accumulator *acc, int warp)
{
    for (int t = warp * 32; t < warp * 32 + 32; t++) {
        for (int i = 0; i < acc->n; i++) {
            if (la_emu_bits(acc->d[t][i]) != POISON) {
                fault("an accumulator of a wgmma in flight was written before la_wgmma_wait");
            }
            acc->d[t][i] = acc->v[size_t(t * acc->n + i)];
        }
    }
    const int *p = acc->pending;
    for (size_t i = 0; i < g->owned.size() && !(p[0] | p[1] | p[2] | p[3]); i++) {
        if (g->owned[i].get() == acc) {
            g->owned.erase(g->owned.begin() + long(i));
            return;
        }
    }
}

/* The accumulators of a product: those in flight under the same registers, or these taken over. */
std::shared_ptr<Accumulator> own(Warpgroup *g, void **slot, int n)
{
    for (auto &acc : g->owned) {
        bool same = true, touch = false;
        for (int t = 0; t < 128; t++) {
            float *d = static_cast<WgmmaSlot *>(slot[t])->d;
            same = same && d == acc->d[t] && n == acc->n;
            touch = touch || (d < acc->d[t] + acc->n && acc->d[t] < d + n);
        }
        if (same) {
            return acc;
        }
        if (touch) {
            fault("wgmma: accumulators overlap those of another shape in flight");
        }
    }
    auto acc = std::make_shared<Accumulator>();
    acc->n = n;
    for (int t = 0; t < 128; t++) {
        acc->d[t] = static_cast<WgmmaSlot *>(slot[t])->d;
        acc->v.insert(acc->v.end(), acc->d[t], acc->d[t] + n);
        for (int i = 0; i < n; i++) {
            acc->d[t][i] = la_emu_f32(POISON);
        }
    }
    g->owned.push_back(acc);
    return acc;
}

Warpgroup *group_of(const Thread *t)
{
    return &t->block->groups[size_t(t->id / 128)];
}

void issue(Warpgroup *g, void **slot)
{
    auto *first = static_cast<WgmmaSlot *>(slot[0]);
    Block *b = machine->now->block;
    auto w = std::make_shared<Wgmma>();
    w->form = first->form;
    w->a = first->a;
    w->b = first->b;
    w->accumulate = first->accumulate;
    for (int t = 0; t < 128; t++) {
        auto *s = static_cast<WgmmaSlot *>(slot[t]);
        if (memcmp(&s->form, &w->form, sizeof w->form) || s->a != w->a || s->b != w->b ||
            s->accumulate != w->accumulate) {
            fault("wgmma: form, descriptors or accumulation differ inside the warpgroup");
        }
        if (!s->fenced) {
            fault("wgmma: thread %d has no la_wgmma_fence since it last owned its registers",
                  machine->now->id / 128 * 128 + t);
        }
        if (s->a_registers) {
            memcpy(w->regs[t], s->a_registers, sizeof w->regs[t]);
        }
    }
    int depth = depth_of(w->form);
    if (!w->form.a_in_registers) {
        check_operand(b, decode(w->a, w->form, 64, w->form.trans_a), depth, "A");
    }
    check_operand(b, decode(w->b, w->form, w->form.n, w->form.trans_b), depth, "B");
    w->d = own(g, slot, w->form.n / 2);
    for (int &pending : w->d->pending) {
        pending++;
    }
    g->loose.push_back(w);
}

/* To the waiting warp a product reads its operands until now. */
void note_reads(Block *b, const Wgmma &w)
{
    auto note = [b](const Operand &o, int depth) {
        walk(o, depth, [b](int, int, uint32_t address) {
            std::string why = race_read(b, address - SMEM_BASE, 16, machine->now);
            if (!why.empty()) {
                fault("a wgmma in flight reads %s", why.c_str());
            }
        });
    };
    if (!w.form.a_in_registers) {
        note(decode(w.a, w.form, 64, w.form.trans_a), depth_of(w.form));
    }
    note(decode(w.b, w.form, w.form.n, w.form.trans_b), depth_of(w.form));
}

void wait(Warpgroup *g, int warp, size_t left)
{
    size_t &at = g->retired[warp];
    for (; at + left < g->committed[warp]; at++) {
        for (auto &w : g->groups[at]) {
            if (!w->done) {
                run(machine->now->block, w.get());
            }
            note_reads(machine->now->block, *w);
            if (--w->d->pending[warp] == 0) {
                release(g, w->d.get(), warp);
            }
        }
    }
}

} // namespace

namespace emu {

/* Runs the oldest product that has been committed, before anybody waits for it. */
void advance_wgmma(Block *b)
{
    for (Warpgroup &g : b->groups) {
        for (size_t i = g.retired[0]; i < g.groups.size(); i++) {
            for (auto &w : g.groups[i]) {
                if (!w->done) {
                    run(b, w.get());
                    return;
                }
            }
        }
    }
}

std::string wgmma_left(const Block *b)
{
    for (const Warpgroup &g : b->groups) {
        for (size_t retired : g.retired) {
            if (!g.loose.empty() || retired < g.groups.size()) {
                return "products of a warpgroup have not been waited for";
            }
        }
    }
    return "";
}

} // namespace emu

void la_emu_wgmma_issue(la_emu_wgmma form, float *d, uint64_t a, const uint32_t *a_registers,
                        uint64_t b, int accumulate)
{
    Thread *t = machine->now;
    Warpgroup *g = group_of(t);
    WgmmaSlot mine = {form, d, a, b, a_registers, accumulate != 0, t->fenced};
    meet_group("wgmma", &mine, [g](void **slot) { issue(g, slot); });
}

void la_emu_wgmma_fence(void)
{
    machine->now->fenced = true;
    int none = 0;
    meet_warp("la_wgmma_fence", ~0u, &none, [](void **) {});
}

void la_emu_wgmma_commit(void)
{
    Thread *t = machine->now;
    Warpgroup *g = group_of(t);
    int none = 0, warp = t->id / 32 % 4;
    meet_warp("la_wgmma_commit", ~0u, &none, [g, warp](void **) {
        if (++g->committed[warp] > g->groups.size()) {
            g->groups.push_back(g->loose);
            g->loose.clear();
        }
    });
}

void la_emu_wgmma_wait(int left)
{
    Thread *t = machine->now;
    Warpgroup *g = group_of(t);
    int none = 0, warp = t->id / 32 % 4;
    meet_warp("la_wgmma_wait", ~0u, &none,
              [g, warp, left](void **) { wait(g, warp, size_t(left)); });
    t->fenced = false;
}
