/* kvcache.c - see kvcache.h. Free pages are a bit map searched from the lowest word that may hold
 * one: a stack of free numbers would be faster to pop, but it scatters a small working set over
 * the whole mapping, which then can never be given back. */
#include "kvcache.h"

la_status la_kvcache_init(la_kvcache *c, int64_t n_pages, int max_copies)
{
    *c = (la_kvcache){.n_pages = n_pages, .max_copies = max_copies};
    if (n_pages < 1 || n_pages > INT32_MAX) {
        return la_fail(LA_ERR_ARGUMENT, "kv_pages: expected 1 to %d, got %lld", INT32_MAX,
                       (long long)n_pages);
    }
    size_t n_words = (size_t)(n_pages + 63) / 64;
    c->refs = la_alloc((size_t)n_pages, sizeof *c->refs);
    c->vacant = la_alloc(n_words, sizeof *c->vacant);
    c->copies = la_alloc((size_t)max_copies, sizeof *c->copies);
    if (c->refs == NULL || c->vacant == NULL || c->copies == NULL) {
        la_kvcache_free(c);
        return la_fail(LA_ERR_MEMORY, "page tables of %lld pages", (long long)n_pages);
    }
    for (size_t w = 0; w < n_words; w++) {
        c->vacant[w] = ~(uint64_t)0;
    }
    if (n_pages % 64 != 0) {
        c->vacant[n_words - 1] = ((uint64_t)1 << (n_pages % 64)) - 1;
    }
    return LA_OK;
}

void la_kvcache_free(la_kvcache *c)
{
    la_free(c->refs);
    la_free(c->vacant);
    la_free(c->copies);
    *c = (la_kvcache){0};
}

size_t la_kvcache_bytes(int64_t n_pages, int max_copies)
{
    const la_kvcache *c = NULL; /* only sizes of what it points to are asked */
    return (size_t)n_pages * sizeof *c->refs + (size_t)(n_pages + 63) / 64 * sizeof *c->vacant +
           (size_t)max_copies * sizeof *c->copies;
}

/* The lowest free page, now with one reference; -1 when none is free. */
static int32_t kvcache_take(la_kvcache *c)
{
    if (c->n_used == c->n_pages) {
        return -1;
    }
    int64_t w = c->low;
    while (c->vacant[w] == 0) {
        w++;
    }
    c->low = w;
    int64_t page = w * 64 + __builtin_ctzll(c->vacant[w]);
    c->vacant[w] &= c->vacant[w] - 1;
    c->refs[page] = 1;
    c->n_used++;
    if (page >= c->high) {
        c->high = page + 1;
    }
    return (int32_t)page;
}

static void kvcache_drop(la_kvcache *c, int32_t page)
{
    if (--c->refs[page] == 0) {
        int64_t w = page / 64;
        c->vacant[w] |= (uint64_t)1 << (page % 64);
        c->n_used--;
        if (w < c->low) {
            c->low = w;
        }
    }
}

int la_kvcache_grow(la_kvcache *c, la_table *t)
{
    int32_t page = kvcache_take(c);
    if (page < 0) {
        return 0;
    }
    t->pages[t->n++] = page;
    return 1;
}

int la_kvcache_own(la_kvcache *c, la_table *t, int i)
{
    int32_t src = t->pages[i];
    if (c->refs[src] == 1) {
        return 1;
    }
    int32_t dst = c->n_copies < c->max_copies ? kvcache_take(c) : -1;
    if (dst < 0) {
        return 0;
    }
    c->copies[c->n_copies++] = (la_copy){src, dst};
    kvcache_drop(c, src);
    t->pages[i] = dst;
    return 1;
}

void la_kvcache_fork(la_kvcache *c, const la_table *src, int n, la_table *dst)
{
    for (int i = 0; i < n; i++) {
        c->refs[src->pages[i]]++;
        dst->pages[i] = src->pages[i];
    }
    dst->n = n;
}

void la_kvcache_clear(la_kvcache *c, la_table *t)
{
    for (int i = 0; i < t->n; i++) {
        kvcache_drop(c, t->pages[i]);
    }
    t->n = 0;
}

int64_t la_kvcache_settle(la_kvcache *c)
{
    while (c->high > 0 && c->refs[c->high - 1] == 0) {
        c->high--;
    }
    int n = 0;
    for (int i = 0; i < c->n_copies; i++) {
        if (c->refs[c->copies[i].dst] > 0) {
            c->copies[n++] = c->copies[i];
        }
    }
    c->n_copies = n;
    return c->high;
}
