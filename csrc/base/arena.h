/* arena.h - large pieces of memory that live as long as their owner, side by side in huge pages.
 *
 * Owns the blocks that packed weights lie in. A mapping per matrix would round each up to 2 MiB, or go
 * without huge pages below that; here pieces follow one another, and what is never taken is never
 * resident. Blocks come from whom the owner says, so they may be a device's. Invariant: a piece keeps
 * its address until it is given back, and the arena never looks into one. One thread at a time. Used
 * by model.c.
 */
#ifndef LA_ARENA_H
#define LA_ARENA_H

#include "base.h"

/* Where blocks come from: addresses on a page border, NULL on failure. */
typedef struct la_arena_source {
    void *(*map)(void *owner, size_t bytes);
    void (*unmap)(void *owner, void *p, size_t bytes);
    void *owner;
} la_arena_source;

/* An arena with a source and nothing else set is empty. */
typedef struct la_arena {
    la_arena_source from;
    struct la_arena_block *blocks;
    struct la_arena_piece *spare; /* given back */
} la_arena;

/* `bytes` on a page border, not cleared; NULL on failure. */
void *la_arena_take(la_arena *a, size_t bytes);
/* Keeps a piece for the next la_arena_take of as many bytes; NULL is a no-op. */
void la_arena_give(la_arena *a, void *p, size_t bytes);
/* Unmaps everything; the arena is empty again. */
void la_arena_clear(la_arena *a);

#endif
