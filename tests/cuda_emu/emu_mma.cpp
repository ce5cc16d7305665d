/* emu_mma.cpp - products of a warp and the moves of their operands, by the documented fragment layouts.
 *
 * Owns mma.sync, ldmatrix and stmatrix on the host. The lanes of a warp meet; the last computes for all.
 * Invariant: all 32 lanes take part with the same parameters. Sums run over depth in order, in float with a
 * product each; hardware adds in an order of its own, so results agree within rounding. Implements the
 * product half of la_emu_ptx.h for a warp.
 */
#include "emu_machine.h"

using namespace emu;

namespace {

struct MmaSlot {
    float *d;
    int32_t *di;
    const uint32_t *a, *b;
};

float element(la_emu_type type, const uint32_t *words, int i)
{
    switch (type) {
    case LA_EMU_BF16: return la_emu_bf16(words[i / 2] >> (i % 2 * 16) & 0xffff);
    case LA_EMU_F16: return la_emu_f16(words[i / 2] >> (i % 2 * 16) & 0xffff);
    case LA_EMU_E4M3: return la_emu_e4m3(words[i / 4] >> (i % 4 * 8) & 0xff);
    }
    return 0;
}

/* Gathers A [16][depth] and B [depth][8] from fragments; `pick(words, i)` is element i of a lane. */
template <class T, class Pick>
void gather(void **slot, int per_word, T (*a)[32], T (*b)[8], const Pick &pick)
{
    int quarter = per_word * 4; /* columns that word 0 of the four lanes of a row cover */
    for (int lane = 0; lane < 32; lane++) {
        auto *s = static_cast<MmaSlot *>(slot[lane]);
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4 * per_word; i++) {
            int word = i / per_word, k = t * per_word + i % per_word + word / 2 * quarter;
            a[g + word % 2 * 8][k] = pick(s->a, i);
            if (word < 2) {
                b[t * per_word + i % per_word + word * quarter][g] = pick(s->b, i);
            }
        }
    }
}

template <class T> void multiply(void **slot, int depth, T (*a)[32], T (*b)[8])
{
    for (int lane = 0; lane < 32; lane++) {
        auto *s = static_cast<MmaSlot *>(slot[lane]);
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            T sum = s->d ? T(s->d[i]) : T(s->di[i]);
            for (int k = 0; k < depth; k++) {
                sum += a[row][k] * b[k][column];
            }
            if (s->d) {
                s->d[i] = float(sum);
            }
            else {
                s->di[i] = int32_t(sum);
            }
        }
    }
}

} // namespace

void la_emu_mma(la_emu_type type, float *d, const uint32_t *a, const uint32_t *b)
{
    static const char *const names[] = {"la_mma_bf16", "la_mma_f16", "la_mma_e4m3"};
    MmaSlot mine = {d, nullptr, a, b};
    meet_warp(names[type], ~0u, &mine, [type](void **slot) {
        float am[16][32], bm[32][8];
        int per_word = type == LA_EMU_E4M3 ? 4 : 2;
        gather(slot, per_word, am, bm,
               [type](const uint32_t *words, int i) { return element(type, words, i); });
        multiply(slot, 8 * per_word, am, bm);
    });
}

void la_emu_mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b)
{
    MmaSlot mine = {nullptr, d, a, b};
    meet_warp("la_mma_s8", ~0u, &mine, [](void **slot) {
        int32_t am[16][32], bm[32][8];
        gather(slot, 4, am, bm, [](const uint32_t *words, int i) {
            return int32_t(int8_t(words[i / 4] >> (i % 4 * 8)));
        });
        multiply(slot, 32, am, bm);
    });
}

namespace {

struct MatrixSlot {
    uint32_t row;
    uint32_t *r;
    const uint32_t *from;
};

/* The block and offset of a row of 16 bytes. */
Block *matrix_row(const MatrixSlot *s, const char *what, uint32_t *offset)
{
    Block *b = find_shared(s->row, 16, what, offset);
    if (s->row % 16) {
        fault("%s: a row at offset %u is not aligned to 16 bytes", what, *offset);
    }
    return b;
}

/* Where element (row, column) of a matrix lies: lane and half of its word. */
void holder(int row, int column, int trans, int *lane, int *half)
{
    *lane = trans ? column * 4 + row / 2 : row * 4 + column / 2;
    *half = trans ? row % 2 : column % 2;
}

void load_matrices(void **slot, int count, int trans)
{
    for (int m = 0; m < count; m++) {
        for (int row = 0; row < 8; row++) {
            uint32_t offset;
            auto *s = static_cast<MatrixSlot *>(slot[m * 8 + row]);
            Block *b = matrix_row(s, "la_ldmatrix", &offset);
            std::string why = shared_fault(b, offset, 16);
            if (why.empty()) {
                why = race_read(b, offset, 16, machine->now);
            }
            if (!why.empty()) {
                fault("la_ldmatrix reads %s", why.c_str());
            }
            for (int column = 0; column < 8; column++) {
                uint16_t x;
                int lane, half;
                memcpy(&x, b->smem.data() + offset + column * 2, 2);
                holder(row, column, trans, &lane, &half);
                uint32_t *r = static_cast<MatrixSlot *>(slot[lane])->r + m;
                *r = half ? (*r & 0xffff) | uint32_t(x) << 16 : (*r & 0xffff0000u) | x;
            }
        }
    }
}

} // namespace

void la_emu_ldmatrix(uint32_t *r, uint32_t row, int count, int trans)
{
    MatrixSlot mine = {row, r, nullptr};
    meet_warp(trans ? "la_ldmatrix_trans" : "la_ldmatrix", ~0u, &mine,
              [=](void **slot) { load_matrices(slot, count, trans); });
}

/* Each lane stores the row whose address it brings, so that the row is known as its own. */
void la_emu_stmatrix(uint32_t row, const uint32_t *r, int count, int trans)
{
    struct {
        MatrixSlot slot;
        uint16_t row[8];
    } mine = {{row, nullptr, r}, {0}};
    meet_warp(trans ? "la_stmatrix_trans" : "la_stmatrix", ~0u, &mine, [=](void **slot) {
        for (int i = 0; i < count * 64; i++) {
            int lane, half, m = i / 64, at = i / 8 % 8, column = i % 8;
            holder(at, column, trans, &lane, &half);
            const uint32_t *words = static_cast<MatrixSlot *>(slot[lane])->from;
            auto *to = static_cast<decltype(&mine)>(slot[m * 8 + at]);
            to->row[column] = uint16_t(words[m] >> (half * 16));
        }
    });
    if (la_emu_thread() % 32 < count * 8) {
        la_emu_store_shared(row, mine.row, sizeof mine.row);
    }
}
