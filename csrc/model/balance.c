/* balance.c - which experts get copies and which device holds what, from their load (EPLB).
 *
 * Owns the plan of DeepSeek's published balancer: groups of experts are packed on nodes, inside a node the
 * expert with the largest load per copy gets one more until all slots are taken, copies are packed on the
 * node's devices. Packing is greedy: heaviest first, each to the least loaded pack with room, ties to the
 * lower index. Invariant: every device has as many slots, every expert at least one copy. Called through
 * llmaccel.h; reads no model.
 */
#include "id_heap.h"

#include <math.h>

#include "../base/base.h"

/* One layer's room. Experts of a node lie together after the first packing: place p holds expert at[p]. */
typedef struct room {
    float *weight;  /* [slots] of what is packed */
    int32_t *order; /* [slots] heaviest first */
    int32_t *pack;  /* [slots] where each went */
    int32_t *rank;  /* [slots] and as which of the pack */
    float *sum;     /* [slots] of a pack */
    int32_t *items; /* [slots] in a pack */
    int32_t *at;    /* [E] */
    int32_t *of;    /* [slots] place of each copy of a node */
    int32_t *count; /* [E] copies of each place */
    int32_t *heap;  /* [slots] */
} room;

/* Heaviest first, equal weights by index: merges runs from order into pack and back. */
static void sort_weights(const room *r, int n)
{
    int32_t *from = r->order, *to = r->pack;
    for (int i = 0; i < n; i++) {
        from[i] = i;
    }
    for (int width = 1; width < n; width *= 2) {
        for (int lo = 0; lo < n; lo += 2 * width) {
            int mid = lo + width < n ? lo + width : n, end = mid + width < n ? mid + width : n;
            for (int i = lo, j = mid, k = lo; k < end; k++) {
                int left = i < mid && (j >= end || r->weight[from[i]] >= r->weight[from[j]]);
                to[k] = left ? from[i++] : from[j++];
            }
        }
        int32_t *turn = from;
        from = to;
        to = turn;
    }
    if (from != r->order) {
        memcpy(r->order, from, (size_t)n * sizeof *from);
    }
}

/* n items of weight[] into packs of n / n_packs each. */
static void pack_items(const room *r, int n, int n_packs)
{
    int most = n / n_packs;
    if (most == 1) {
        for (int i = 0; i < n; i++) {
            r->pack[i] = i;
            r->rank[i] = 0;
        }
        return;
    }
    sort_weights(r, n);
    for (int p = 0; p < n_packs; p++) {
        r->sum[p] = 0.0f;
        r->items[p] = 0;
        r->heap[p] = p;
    }
    for (int i = 0, open = n_packs; i < n; i++) {
        int item = r->order[i], best = r->heap[0];
        r->pack[item] = best;
        r->rank[item] = r->items[best]++;
        r->sum[best] += r->weight[item];
        if (r->items[best] == most) {
            r->heap[0] = r->heap[--open];
        }
        la_id_heap_sift(la_id_least, r->sum, r->heap, open, 0);
    }
}

/* Groups to nodes: at[] lists the experts of node 0, 1, .. */
static void place_groups(const la_balance *b, const float *load, const room *r)
{
    int size = b->n_experts / b->n_groups, per_node = b->n_groups / b->n_nodes;
    for (int g = 0; g < b->n_groups; g++) {
        r->weight[g] = 0.0f;
        for (int i = 0; i < size; i++) {
            r->weight[g] += load[g * size + i];
        }
    }
    pack_items(r, b->n_groups, b->n_nodes);
    for (int g = 0; g < b->n_groups; g++) {
        int first = (r->pack[g] * per_node + r->rank[g]) * size;
        for (int i = 0; i < size; i++) {
            r->at[first + i] = g * size + i;
        }
    }
}

/* Copies of a node's experts, places first .. first + n - 1, until `slots` are taken. */
static void copy_experts(const float *load, const room *r, int first, int n, int slots)
{
    float *key = r->weight; /* [n] load of a copy, negative: the largest comes first */
    for (int i = 0; i < n; i++) {
        r->count[first + i] = 1;
        r->of[i] = first + i;
        r->heap[i] = i;
        key[i] = -load[r->at[first + i]];
    }
    la_id_heap_make(la_id_least, key, r->heap, n);
    for (int i = n; i < slots; i++) {
        int next = r->heap[0], place = first + next;
        r->of[i] = place;
        key[next] = -load[r->at[place]] / (float)++r->count[place];
        la_id_heap_sift(la_id_least, key, r->heap, n, 0);
    }
}

static void balance_layer(const la_balance *b, const float *load, const room *r, int32_t *slots,
                          int32_t *copies)
{
    int n = b->n_experts / b->n_nodes, per_node = b->n_slots / b->n_nodes;
    int devices = b->n_devices / b->n_nodes, per_device = b->n_slots / b->n_devices;
    place_groups(b, load, r);
    for (int node = 0; node < b->n_nodes; node++) {
        copy_experts(load, r, node * n, n, per_node);
        for (int i = 0; i < per_node; i++) {
            r->weight[i] = load[r->at[r->of[i]]] / (float)r->count[r->of[i]];
        }
        pack_items(r, per_node, devices);
        for (int i = 0; i < per_node; i++) {
            int slot = node * per_node + r->pack[i] * per_device + r->rank[i];
            slots[slot] = r->at[r->of[i]];
        }
    }
    for (int p = 0; p < b->n_experts; p++) {
        copies[r->at[p]] = r->count[p];
    }
}

static la_status check_divides(const char *name, int n, int by, const char *what)
{
    if (n % by != 0) {
        return la_fail(LA_ERR_ARGUMENT, "%s: %d is no multiple of %d %s", name, n, by, what);
    }
    return LA_OK;
}

la_status la_balance_check(const la_balance *b)
{
    la_status st;
    LA_TRY(la_check_int("load: layers", b->n_layers, 1, LA_MAX_LAYERS));
    LA_TRY(la_check_int("load: experts", b->n_experts, 1, LA_MAX_BALANCE_SLOTS));
    LA_TRY(la_check_int("slots", b->n_slots, b->n_experts, LA_MAX_BALANCE_SLOTS));
    LA_TRY(la_check_int("devices", b->n_devices, 1, b->n_slots));
    LA_TRY(la_check_int("nodes", b->n_nodes, 1, b->n_devices));
    LA_TRY(la_check_int("groups", b->n_groups, 1, b->n_experts));
    LA_TRY(check_divides("slots", b->n_slots, b->n_devices, "devices"));
    LA_TRY(check_divides("devices", b->n_devices, b->n_nodes, "nodes"));
    if (b->n_experts % b->n_groups != 0) {
        return la_fail(LA_ERR_ARGUMENT, "groups: %d do not divide %d experts", b->n_groups,
                       b->n_experts);
    }
done:
    return st;
}

static la_status check_load(const la_balance *b, const float *load)
{
    for (int64_t i = 0; i < (int64_t)b->n_layers * b->n_experts; i++) {
        if (!isfinite(load[i]) || load[i] < 0.0f) {
            return la_fail(LA_ERR_ARGUMENT, "load: of expert %d in layer %d is %g",
                           (int)(i % b->n_experts), (int)(i / b->n_experts), (double)load[i]);
        }
    }
    return LA_OK;
}

la_status la_balance_experts(const la_balance *balance, const float *load, int32_t *slots,
                             int32_t *copies)
{
    la_status st;
    void *base = NULL;
    la_balance b = *balance;
    LA_TRY(la_balance_check(&b));
    LA_TRY(check_load(&b, load));
    if (b.n_groups % b.n_nodes != 0) { /* all experts over all devices */
        b.n_groups = b.n_nodes = 1;
    }
    size_t n = (size_t)b.n_slots;
    base = la_alloc(n, 10 * sizeof(int32_t));
    if (base == NULL) {
        st = la_fail(LA_ERR_MEMORY, "balance: no memory for %d slots", b.n_slots);
        goto done;
    }
    float *f = base;
    int32_t *i = (int32_t *)(void *)(f + 2 * n);
    room r = {f, i, i + n, i + 2 * n, f + n, i + 3 * n, i + 4 * n, i + 5 * n, i + 6 * n, i + 7 * n};
    for (int64_t l = 0; l < b.n_layers; l++) {
        balance_layer(&b, load + l * b.n_experts, &r, slots + l * b.n_slots,
                      copies + l * b.n_experts);
    }
done:
    la_free(base);
    return st;
}
