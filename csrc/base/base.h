/* base.h - errors, checked sizes and counted memory.
 *
 * Owns the thread-local error message, overflow-checked arithmetic and every allocation of the
 * library, so that tests can ask how many were made inside a step.
 * Invariant: la_fail is the only writer of the message. Included by every room but the kernels.
 */
#ifndef LA_BASE_H
#define LA_BASE_H

#include "../llmaccel.h"

#if defined(__GNUC__)
#define LA_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define LA_PRINTF(fmt, args)
#endif

/* Sets the calling thread's message and returns st. */
la_status la_fail(la_status st, const char *fmt, ...) LA_PRINTF(2, 3);
/* LA_ERR_ARGUMENT that names `name` where v is not lo .. hi. */
la_status la_check_int(const char *name, int v, int lo, int hi);

/* Runs x; on failure leaves through the label `done:` with st set. */
#define LA_TRY(x)          \
    do {                   \
        st = (x);          \
        if (st != LA_OK) { \
            goto done;     \
        }                  \
    } while (0)

/* 1 and *out on success, 0 on overflow. */
int la_size_mul(size_t a, size_t b, size_t *out);
int la_size_add(size_t a, size_t b, size_t *out);

static inline size_t la_round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static inline int la_ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* Zeroed memory of n items of `size` bytes; NULL on failure or overflow. Free with la_free. */
void *la_alloc(size_t n, size_t size);
void la_free(void *p);
/* Heap allocations made so far by the calling thread (la_alloc and la_map). */
int64_t la_alloc_count(void);
/* Adds what other threads did for the calling one (pool.c). */
void la_alloc_count_add(int64_t n);

/* Bytes of the system's smallest page. */
size_t la_page_bytes(void);
/* Zeroed anonymous memory, 2 MiB-aligned and advised to huge pages when large. NULL on failure. */
void *la_map(size_t bytes);
/* Address space only; commit before use. NULL on failure. */
void *la_reserve(size_t bytes);
/* Makes [p, p + bytes) usable; 0 on success. Fresh pages are zero. */
int la_commit(void *p, size_t bytes);
/* Gives the pages back to the system; the range stays reserved. */
void la_decommit(void *p, size_t bytes);
void la_unmap(void *p, size_t bytes);
/* Gives what the C heap holds free back to the system, where the C library can. */
void la_trim(void);

/* Seconds of a monotonic clock. */
double la_now(void);

#endif
