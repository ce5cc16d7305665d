/* backend_graphs.h - steps of a token a sequence, run as graphs of a few sizes.
 *
 * Owns the sizes and the graphs of a workspace. Invariant: a graph of `size` tokens serves every step of as many
 * or fewer: all that differs between such steps lies in arrays on the device, and rows that only fill it up
 * read token 0 at position 0, keep nothing (page -1) and draw nothing. Included by backend.cu.
 */
#ifndef LA_BACKEND_GRAPHS_H
#define LA_BACKEND_GRAPHS_H

#include "backend_device.h"

enum { LA_GRAPH_TOKENS = 256 };                        /* of the largest */
enum { LA_GRAPH_SIZES = 2 + 1 + LA_GRAPH_TOKENS / 8 }; /* 1, 2, 4, then every 8 */

typedef struct la_graphs {
    la_rt_graph *of[LA_GRAPH_SIZES]; /* NULL: not wanted yet */
    const la_kv *kv;                 /* that they read */
    int64_t changes;                 /* la_cuda.changes when they were made */
    int noting;                      /* one is being made */
    uint8_t refused[LA_GRAPH_SIZES]; /* there was no memory for it since then */
} la_graphs;

/* Tokens of the graph that steps of n take, never above `most`, which is at least n; 0: they take none. */
int la_graph_size(int n, int most);
/* The graph of steps like this one, of as many tokens as la_graph_size said: made by fn where it is wanted first.
 * NULL: there was no memory for it, which is asked again when graphs are dropped. */
la_rt_graph *la_graphs_take(la_graphs *own, const la_ctx *c, int size, void (*fn)(la_ctx *c));
void la_graphs_drop(la_graphs *own);

#endif
