/* id_heap.h - heaps of ids in an array: the one that comes first by its key is at the root.
 *
 * Owns the sifting; the order is the caller's function, of which a compiler makes part of the loop.
 * Invariant: where the order is total, what comes out depends on keys alone. Included by balance.c and
 * by what chooses among the tokens of a row (backend_cpu_sample.c, backend_cpu_filter.c).
 */
#ifndef LA_ID_HEAP_H
#define LA_ID_HEAP_H

#include <stdint.h>

/* Does id a come before id b? key: [ids] */
typedef int (*la_id_order)(const float *key, int32_t a, int32_t b);

/* Smaller key first, equal keys by id. */
static inline int la_id_least(const float *key, int32_t a, int32_t b)
{
    return key[a] < key[b] || (key[a] == key[b] && a < b);
}

/* Restores heap[n], of which place i alone may belong further down. */
static inline void la_id_heap_sift(la_id_order before, const float *key, int32_t *heap, int n,
                                   int i)
{
    for (;;) {
        int first = i, l = 2 * i + 1, r = l + 1;
        if (l < n && before(key, heap[l], heap[first])) {
            first = l;
        }
        if (r < n && before(key, heap[r], heap[first])) {
            first = r;
        }
        if (first == i) {
            return;
        }
        int32_t t = heap[i];
        heap[i] = heap[first];
        heap[first] = t;
        i = first;
    }
}

/* Makes a heap of n ids in any order. */
static inline void la_id_heap_make(la_id_order before, const float *key, int32_t *heap, int n)
{
    for (int i = n / 2 - 1; i >= 0; i--) {
        la_id_heap_sift(before, key, heap, n, i);
    }
}

#endif
