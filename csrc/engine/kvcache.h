/* kvcache.h - who owns which page of the KV pool: reference counts, free pages, block tables.
 *
 * Owns page numbers, not page contents, and no float. Invariants: a page is free exactly when its
 * count is 0; a page is written only by a table that holds its only reference
 * (la_kvcache_own); the lowest free number is handed out first, so that the committed part of the
 * mapping stays short. Called by scheduler.c; engine.c carries out the copies it lists.
 */
#ifndef LA_KVCACHE_H
#define LA_KVCACHE_H

#include "../base/base.h"

/* The pages of one sequence, in the order of positions. */
typedef struct la_table {
    int32_t *pages; /* [cap]; page i holds positions 64 i .. 64 i + 63 */
    int n;
    int cap;
} la_table;

/* Contents of page src to be copied to page dst before the next forward. */
typedef struct la_copy {
    int32_t src, dst;
} la_copy;

typedef struct la_kvcache {
    int64_t n_pages;
    int64_t n_used;
    int64_t high;     /* pages from here on were not used since the last la_kvcache_settle */
    int64_t low;      /* words of `vacant` below this one hold no free page */
    int32_t *refs;    /* [n_pages] */
    uint64_t *vacant; /* [ceil(n_pages/64)] bit set: free */
    la_copy *copies;  /* [max_copies], to be done in order */
    int n_copies;
    int max_copies;
} la_kvcache;

/* Pages that n_tokens positions take. */
static inline int la_kvcache_span(int n_tokens)
{
    return la_ceil_div(n_tokens, LA_PAGE);
}

la_status la_kvcache_init(la_kvcache *c, int64_t n_pages, int max_copies);
void la_kvcache_free(la_kvcache *c); /* what init took; the struct itself is the caller's */
size_t la_kvcache_bytes(int64_t n_pages, int max_copies); /* what init would take */

/* Appends a fresh page; 0 when none is free. */
int la_kvcache_grow(la_kvcache *c, la_table *t);
/* Makes page i of the table its own, by a copy when others hold it too; 0 when none is free. */
int la_kvcache_own(la_kvcache *c, la_table *t, int i);
/* Makes the empty table dst hold the first n pages of src as well. */
void la_kvcache_fork(la_kvcache *c, const la_table *src, int n, la_table *dst);
/* Lets go of all pages of the table. */
void la_kvcache_clear(la_kvcache *c, la_table *t);
/* Lowers `high` to one past the highest page in use and returns it; forgets copies into pages that
 * were given up before the copies were made. */
int64_t la_kvcache_settle(la_kvcache *c);

#endif
