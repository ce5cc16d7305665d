/* heap.h - an intrusive priority queue (pairing heap) of nodes that live inside their owners.
 *
 * Owns the links between nodes, never the nodes. Invariant: a node is in at most one heap, and no
 * operation allocates, so queues of any length may change inside a step. Order: (hi, lo), least
 * first. Used by scheduler.c (waiting and parked sequences) and engine.c (deadlines).
 */
#ifndef LA_HEAP_H
#define LA_HEAP_H

#include <stddef.h>
#include <stdint.h>

typedef struct la_heap_node {
    int64_t hi, lo;             /* the key; do not change it while the node is in a heap */
    struct la_heap_node *child; /* first child */
    struct la_heap_node *next;  /* right sibling */
    struct la_heap_node *prev;  /* left sibling, or the parent of a first child */
} la_heap_node;

typedef struct la_heap {
    la_heap_node *top; /* the least node, or NULL */
    int64_t n;
} la_heap;

/* The structure of type `type` whose member `member` is the node at p. */
#define LA_OWNER(p, type, member) ((type *)(void *)((char *)(p) - offsetof(type, member)))

int la_heap_before(const la_heap_node *a, const la_heap_node *b);
void la_heap_push(la_heap *h, la_heap_node *node);
/* Takes any node of the heap out of it. */
void la_heap_remove(la_heap *h, la_heap_node *node);

#endif
