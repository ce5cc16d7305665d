/* py_kernels_cache.h - pages of keys and values in some memory, and attention over them.
 *
 * Owns their addresses: page p of kv head h lies at (p * n_heads + h) * head_bytes. Used by
 * py_kernels_cache.c, where the memory is the user's, and by py_kernels_pages.c, where it is ours.
 */
#ifndef LA_PY_KERNELS_CACHE_H
#define LA_PY_KERNELS_CACHE_H

#include "py_kernels_attend.h"

typedef struct py_cache_layout {
    la_kv_form form;
    int n_heads, d;
    size_t k_bytes;    /* of one head's K in a page; V follows */
    size_t head_bytes; /* of both, a multiple of 64 */
    size_t page_bytes; /* of all heads */
} py_cache_layout;

/* What the rows of a call read: job->pages. */
typedef struct py_cache_view {
    py_cache_layout at;
    const uint8_t *data;      /* [n_pages] pages */
    const int32_t *tables;    /* [n_tables][width] pages of each sequence; NULL: one, 0, 1, 2, .. */
    const int32_t *sequences; /* [T] which table a query's tokens are in; NULL: the one */
    int n_pages, n_tables, n_sequences, width;
} py_cache_view;

/* 0, or -1 with an exception set that names what is wrong. dtype: F32, BF16, int8 or fp8. */
int py_cache_layout_of(const py_state *state, const char *dtype, int n_heads, int d,
                       py_cache_layout *out);
/* k and v [n_heads][d] of one token into slot `slot` (0..63) of a page; slot 0 clears it first. */
void py_cache_store(const la_kernels *t, const py_cache_layout *at, uint8_t *page, int slot,
                    const float *k, const float *v);
/* Is every page that a row reads one of the cache? 0, or -1 with an exception set. */
int py_cache_check(const py_state *state, const py_attend_job *job);
/* The share of py_attend for a job whose pages are a py_cache_view. */
void py_cache_attend(void *job, int tid, int nth);

#endif
