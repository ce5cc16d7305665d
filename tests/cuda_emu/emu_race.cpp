/* emu_race.cpp - which accesses to shared memory the program has put in order, whatever the order of a run.
 *
 * Owns vector clocks of warps and of what they meet at, and for each word of shared memory who wrote and
 * read it last. An access that no barrier orders behind an earlier one of another warp, or behind a copy, is
 * a fault, even where this run did them in the right order. Invariant: lanes of a warp count as one, so
 * nothing is reported between them; copies in flight are emu_copy.cpp's business. Called by every file
 * that touches shared memory or lets threads meet.
 */
#include <algorithm>
#include <cstdlib>

#include "emu_machine.h"

namespace emu {

namespace {

constexpr uint32_t MOST_WARPS = 64; /* of a cluster; beyond them words are not watched */
constexpr uint8_t ATOMIC = 0x80;    /* of Word.bytes */

} // namespace

/* The last write of a word: who, when, which of its bytes. */
struct Word {
    uint32_t when;
    uint8_t who, bytes;
};

struct Shadow {
    uint32_t actors; /* warps of the cluster, and its copies as the last */
    Word *words;
    uint32_t *reads; /* [words][actors] when */

    Shadow(uint32_t bytes, uint32_t n) : actors(n)
    {
        uint32_t count = bytes / 4 + 4;
        words = static_cast<Word *>(calloc(count, sizeof *words));
        reads = static_cast<uint32_t *>(calloc(size_t(count) * n, sizeof *reads));
    }
    ~Shadow()
    {
        free(words);
        free(reads);
    }
    Shadow(const Shadow &) = delete;
    Shadow &operator=(const Shadow &) = delete;
};

static uint32_t warps_of_block()
{
    return uint32_t(machine->threads + 31) / 32;
}

static uint32_t actor(const Thread *t)
{
    return uint32_t(t->block->rank) * warps_of_block() + uint32_t(t->id / 32);
}

static Clock &clock_of(const Thread *t)
{
    return t->block->warps[size_t(t->id / 32)].clock;
}

void race_start(Block *b, size_t blocks)
{
    uint32_t actors = uint32_t(blocks) * warps_of_block() + 1;
    if (actors > MOST_WARPS || b->size == 0) {
        return;
    }
    b->shadow = std::make_shared<Shadow>(b->size, actors);
    for (size_t w = 0; w < b->warps.size(); w++) {
        b->warps[w].clock.assign(actors, 0);
        b->warps[w].clock[size_t(b->rank) * b->warps.size() + w] = 1;
    }
}

void race_join(Clock *into, const Clock &from)
{
    into->resize(std::max(into->size(), from.size()), 0);
    for (size_t i = 0; i < from.size(); i++) {
        (*into)[i] = std::max((*into)[i], from[i]);
    }
}

void race_release(const Thread *t, Clock *into)
{
    Clock &mine = clock_of(t);
    if (!mine.empty()) {
        race_join(into, mine);
        mine[actor(t)]++;
    }
}

void race_acquire(const Thread *t, const Clock &from)
{
    Clock &mine = clock_of(t);
    if (!mine.empty()) {
        race_join(&mine, from);
    }
}

/* Bytes of word w that an access of [offset, offset + bytes) touches, a bit each. */
static uint8_t touched(uint32_t w, uint32_t offset, uint32_t bytes)
{
    uint32_t first = std::max(offset, w * 4) - w * 4,
             last = std::min(offset + bytes, w * 4 + 4) - w * 4;
    return uint8_t((1u << last) - (1u << first));
}

static std::string name(const Block *b, uint32_t who)
{
    uint32_t per = warps_of_block();
    if (who + 1 == b->shadow->actors) {
        return "a copy";
    }
    std::string text = "warp " + std::to_string(who % per);
    return who / per == uint32_t(b->rank) ? text : text + " of block " + std::to_string(who / per);
}

static std::string unordered(const Block *b, uint32_t word, const char *did, uint32_t who)
{
    return "shared memory at offset " + std::to_string(word * 4) + ", which " + name(b, who) + " " +
           did + ": nothing orders the two";
}

/* The write of a word that this access is not ordered behind; "" if there is none. */
static std::string write_before(const Block *b, uint32_t w, uint8_t mask, const Clock &mine)
{
    const Word &word = b->shadow->words[w];
    if (!word.when || !(word.bytes & mask & ~ATOMIC) || word.when <= mine[word.who]) {
        return "";
    }
    return unordered(b, w, "wrote", word.who);
}

std::string race_read(Block *b, uint32_t offset, uint32_t bytes, const Thread *by)
{
    const Clock &mine = clock_of(by);
    if (!b->shadow) {
        return "";
    }
    uint32_t me = actor(by);
    for (uint32_t w = offset / 4; w < (offset + bytes + 3) / 4; w++) {
        std::string why = write_before(b, w, touched(w, offset, bytes), mine);
        if (!why.empty()) {
            return why;
        }
        b->shadow->reads[size_t(w) * b->shadow->actors + me] = mine[me];
    }
    return "";
}

std::string race_check_write(Block *b, uint32_t offset, uint32_t bytes, const Thread *by,
                             bool atomic)
{
    const Clock &mine = clock_of(by);
    if (!b->shadow) {
        return "";
    }
    uint32_t n = b->shadow->actors, me = actor(by);
    for (uint32_t w = offset / 4; w < (offset + bytes + 3) / 4; w++) {
        uint8_t mask = touched(w, offset, bytes);
        bool both = atomic && b->shadow->words[w].bytes & ATOMIC;
        std::string why = both ? "" : write_before(b, w, mask, mine);
        const uint32_t *reads = b->shadow->reads + size_t(w) * n;
        for (uint32_t i = 0; why.empty() && mask == 15 && i < n; i++) {
            if (i != me && reads[i] > mine[i]) {
                why = unordered(b, w, "reads", i);
            }
        }
        if (!why.empty()) {
            return why;
        }
    }
    return "";
}

void race_write(Block *b, uint32_t offset, uint32_t bytes, const Thread *by, bool atomic)
{
    if (!b->shadow) {
        return;
    }
    uint32_t who = by ? actor(by) : b->shadow->actors - 1;
    uint32_t when = by ? clock_of(by)[who] : b->cluster->copies_done + 1;
    for (uint32_t w = offset / 4; w < (offset + bytes + 3) / 4; w++) {
        uint8_t mask = touched(w, offset, bytes);
        b->shadow->words[w] = {when, uint8_t(who), uint8_t(atomic ? mask | ATOMIC : mask)};
    }
}

/* A copy has ended: who waits for the barrier that it tells sees what it wrote. */
void race_copied(Block *b, Clock *into)
{
    if (b->shadow) {
        into->resize(b->shadow->actors, 0);
        into->back() = ++b->cluster->copies_done;
    }
}

} // namespace emu
