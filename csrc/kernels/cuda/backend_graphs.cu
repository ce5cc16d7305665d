/* backend_graphs.cu - see backend_graphs.h.
 *
 * Owns nothing: the graphs are their workspace's. Steps of the same size take the same one, made when the first
 * of them comes; a change of weights or of the pages' place drops all. Called by backend.cu.
 */
#include "backend_graphs.h"

int la_graph_size(int n, int most)
{
    int size = n <= 2 ? n : n <= 4 ? 4 : (n + 7) / 8 * 8;
    if (n < 1 || size > LA_GRAPH_TOKENS) {
        return 0;
    }
    return size < most ? size : most;
}

/* Where the graph of a size lies, of the last one too, which `most` may have made odd. */
static int index_of(int size)
{
    return size <= 2 ? size - 1 : size <= 4 ? 2 : 2 + (size + 7) / 8;
}

void la_graphs_drop(la_graphs *own)
{
    for (int i = 0; i < LA_GRAPH_SIZES; i++) {
        la_rt_graph_free(own->of[i]);
        own->of[i] = NULL;
        own->refused[i] = 0;
    }
}

la_rt_graph *la_graphs_take(la_graphs *own, const la_ctx *c, int size, void (*fn)(la_ctx *c))
{
    la_cuda *cuda = la_cuda_of(c->b);
    const int at = index_of(size);
    if (own->changes != cuda->changes || own->kv != c->kv) {
        la_graphs_drop(own);
        own->changes = cuda->changes;
        own->kv = c->kv;
    }
    if (own->of[at] == NULL && !own->refused[at]) {
        la_batch filled = *c->batch; /* its arrays stay the batch's: ops that are noted read none */
        la_ctx noted = *c;
        filled.n_tokens = filled.n_rows = size;
        noted.batch = &filled;
        own->noting = 1;
        la_rt_graph_begin(cuda->s);
        fn(&noted);
        own->of[at] = la_rt_graph_end(cuda->s);
        own->refused[at] = own->of[at] == NULL;
        own->noting = 0;
    }
    return own->of[at];
}
