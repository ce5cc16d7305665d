/* heap.c - see heap.h. Push is one comparison; removal pairs the children up left to right and then
 * folds the pairs right to left, which is what makes it logarithmic on average. No recursion: a
 * queue of 100,000 requests must not grow the stack. */
#include "heap.h"

int la_heap_before(const la_heap_node *a, const la_heap_node *b)
{
    return a->hi != b->hi ? a->hi < b->hi : a->lo < b->lo;
}

/* Joins two trees; the lesser root becomes the root. Root links are the caller's. */
static la_heap_node *heap_join(la_heap_node *a, la_heap_node *b)
{
    if (a == NULL || b == NULL) {
        return a != NULL ? a : b;
    }
    if (la_heap_before(b, a)) {
        la_heap_node *t = a;
        a = b;
        b = t;
    }
    b->prev = a;
    b->next = a->child;
    if (a->child != NULL) {
        a->child->prev = b;
    }
    a->child = b;
    return a;
}

/* Makes one tree of a list of siblings. */
static la_heap_node *heap_fold(la_heap_node *first)
{
    la_heap_node *pairs = NULL; /* stack, linked by next */
    while (first != NULL) {
        la_heap_node *a = first;
        la_heap_node *b = a->next;
        first = b != NULL ? b->next : NULL;
        a = heap_join(a, b);
        a->next = pairs;
        pairs = a;
    }
    la_heap_node *root = NULL;
    while (pairs != NULL) {
        la_heap_node *rest = pairs->next;
        root = heap_join(root, pairs);
        pairs = rest;
    }
    if (root != NULL) {
        root->next = NULL;
        root->prev = NULL;
    }
    return root;
}

void la_heap_push(la_heap *h, la_heap_node *node)
{
    node->child = NULL;
    node->next = NULL;
    node->prev = NULL;
    h->top = heap_join(h->top, node);
    h->top->next = NULL;
    h->top->prev = NULL;
    h->n++;
}

void la_heap_remove(la_heap *h, la_heap_node *node)
{
    la_heap_node *rest = heap_fold(node->child);
    if (node == h->top) {
        h->top = rest;
    }
    else {
        if (node->prev->child == node) {
            node->prev->child = node->next;
        }
        else {
            node->prev->next = node->next;
        }
        if (node->next != NULL) {
            node->next->prev = node->prev;
        }
        h->top = heap_join(h->top, rest);
        h->top->next = NULL;
        h->top->prev = NULL;
    }
    node->child = NULL;
    node->next = NULL;
    node->prev = NULL;
    h->n--;
}
