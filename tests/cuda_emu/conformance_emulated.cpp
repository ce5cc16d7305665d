/* conformance_emulated.cpp - the conformance kernels in the emulator; see conformance.h.
 *
 * Owns the emulator's half of la_conform_run: input and output are where the caller has them, shifted into
 * aligned copies as device memory is. Called by tests/test_cuda_conformance.py.
 */
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "la_emu.h"
#include "conformance.h"

#define ROW(name, threads, blocks, cluster, ...) \
    {name, LA_ENTRY(__VA_ARGS__), threads, blocks, cluster},

static const la_conform_entry table[] = {LA_CONFORM_ALL(ROW)};
static const int n_entries = int(sizeof table / sizeof table[0]);

extern "C" const char *la_conform_name(int i)
{
    return i < n_entries ? table[i].name : nullptr;
}

static int run_entry(const la_conform_entry &e, const la_conform_call *call, uint8_t *in,
                     uint8_t *out, char *error, size_t n)
{
    la_conform_args a = {};
    memcpy(a.p, call->p, sizeof a.p);
    a.in = in;
    a.out = out;
    la_tensor_shape shape = call->shape;
    shape.base = shape.base ? out : in;
    if (shape.rank && la_emu_tensor_map(&a.map, &shape, error, n)) {
        return -1;
    }
    la_emu_shape s = {};
    s.name = e.name;
    s.grid[0] = e.blocks;
    s.block[0] = e.threads;
    s.cluster[0] = e.cluster;
    s.smem = LA_CONFORM_SMEM;
    s.seed = call->seed;
    return la_emu_launch(e.entry, &a, &s, error, n);
}

extern "C" int la_conform_run(const char *name, const la_conform_call *call, char *error, size_t n)
{
    for (const la_conform_entry &e : table) {
        if (strcmp(e.name, name)) {
            continue;
        }
        const std::align_val_t line{256};
        auto *in = static_cast<uint8_t *>(operator new(call->in_bytes, line));
        auto *out = static_cast<uint8_t *>(operator new(call->out_bytes, line));
        memcpy(in, call->in, call->in_bytes);
        memcpy(out, call->out, call->out_bytes);
        la_emu_register(in, call->in_bytes);
        la_emu_register(out, call->out_bytes);
        int status = run_entry(e, call, in, out, error, n);
        memcpy(call->out, out, call->out_bytes);
        la_emu_forget(in);
        la_emu_forget(out);
        operator delete(in, line);
        operator delete(out, line);
        return status;
    }
    snprintf(error, n, "no conformance kernel has the name %s", name);
    return -1;
}
