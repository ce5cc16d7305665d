/* base.c - see base.h. */
#include "base.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { LA_MESSAGE_BYTES = 512 };
static const size_t LA_HUGE = (size_t)2 << 20;

static _Thread_local char last_error[LA_MESSAGE_BYTES];
static _Thread_local int64_t alloc_count;

const char *la_last_error(void)
{
    return last_error;
}

la_status la_fail(la_status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(last_error, sizeof last_error, fmt, ap);
    va_end(ap);
    return st;
}

la_status la_check_int(const char *name, int v, int lo, int hi)
{
    if (v < lo || v > hi) {
        return la_fail(LA_ERR_ARGUMENT, "%s: expected %d to %d, got %d", name, lo, hi, v);
    }
    return LA_OK;
}

int la_size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

int la_size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

void *la_alloc(size_t n, size_t size)
{
    alloc_count++;
    return calloc(n ? n : 1, size ? size : 1);
}

void la_free(void *p)
{
    free(p);
}

int64_t la_alloc_count(void)
{
    return alloc_count;
}

void la_alloc_count_add(int64_t n)
{
    alloc_count += n;
}

size_t la_page_bytes(void)
{
    long bytes = sysconf(_SC_PAGESIZE); /* the C library keeps it */
    return bytes > 0 ? (size_t)bytes : 4096;
}

/* The length a mapping of `bytes` really has; la_unmap must be given the same `bytes`. */
static size_t map_length(size_t bytes)
{
    return la_round_up(bytes ? bytes : 1, bytes >= LA_HUGE ? LA_HUGE : la_page_bytes());
}

/* mmap that starts on a 2 MiB border when it is large, by trimming an oversized reservation. */
static void *map_aligned(size_t bytes, int prot, int flags)
{
    size_t len = map_length(bytes);
    size_t slack = len >= LA_HUGE ? LA_HUGE : 0;
    if (len < bytes || len + slack < len) {
        return NULL;
    }
    char *p = mmap(NULL, len + slack, prot, flags | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        return NULL;
    }
    if (slack != 0) {
        size_t head = la_round_up((size_t)(uintptr_t)p, LA_HUGE) - (size_t)(uintptr_t)p;
        if (head != 0) {
            munmap(p, head);
        }
        if (slack - head != 0) {
            munmap(p + head + len, slack - head);
        }
        p += head;
        madvise(p, len, MADV_HUGEPAGE); /* a refusal costs speed only */
    }
    return p;
}

void *la_map(size_t bytes)
{
    alloc_count++;
    return map_aligned(bytes, PROT_READ | PROT_WRITE, 0);
}

void *la_reserve(size_t bytes)
{
    alloc_count++;
    return map_aligned(bytes, PROT_NONE, MAP_NORESERVE);
}

int la_commit(void *p, size_t bytes)
{
    return mprotect(p, bytes, PROT_READ | PROT_WRITE);
}

void la_decommit(void *p, size_t bytes)
{
    madvise(p, bytes, MADV_DONTNEED);
    mprotect(p, bytes, PROT_NONE);
}

void la_unmap(void *p, size_t bytes)
{
    if (p != NULL) {
        munmap(p, map_length(bytes));
    }
}

void la_trim(void)
{
#ifdef __GLIBC__
    (void)malloc_trim(0);
#endif
}

double la_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
