/* carver.h - hands out the parts of one block of memory, or only measures how large it must be.
 *
 * Owns the sizes, checked against overflow; the block is its caller's. Invariant: the pass that
 * measures and the pass that hands out run the same code, so the two cannot differ. Called by
 * request.c and beam.c, which lay out a request together.
 */
#ifndef LA_CARVER_H
#define LA_CARVER_H

#include <string.h>

#include "../base/base.h"

typedef struct la_carver {
    char *base; /* NULL: only measures */
    size_t used;
    int overflow;
} la_carver;

/* The next n items of `size` bytes, zero; NULL where only measured, or for none. */
static inline void *la_carve(la_carver *c, size_t n, size_t size)
{
    size_t bytes;
    size_t at = c->used;
    if (!la_size_mul(n, size, &bytes) || bytes > SIZE_MAX / 2 ||
        !la_size_add(at, la_round_up(bytes, 16), &c->used)) {
        c->overflow = 1;
        return NULL;
    }
    return c->base == NULL || n == 0 ? NULL : c->base + at;
}

/* The same for n ids, with a copy of those at `from`. */
static inline int32_t *la_carve_copy(la_carver *c, const int32_t *from, int n)
{
    int32_t *to = la_carve(c, (size_t)n, sizeof *to);
    if (to != NULL) {
        memcpy(to, from, (size_t)n * sizeof *to);
    }
    return to;
}

#endif
