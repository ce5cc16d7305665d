/* slots.c - what each tensor slot of a model must look like.
 *
 * Owns the table of slots: names, parts, expected shapes, whether the model needs them. Invariant: a
 * source that passes la_slot_check has exactly the shape the forward pass reads. Called by model.c.
 */
#include "slots.h"

#include <stdio.h>
#include <string.h>

static const char *const slot_names[LA_SLOT_COUNT] = {
    [LA_EMBED] = "embed",
    [LA_POS_EMBED] = "pos_embed",
    [LA_FINAL_NORM] = "final_norm",
    [LA_FINAL_NORM_BIAS] = "final_norm_bias",
    [LA_HEAD] = "head",
    [LA_ATTN_NORM] = "attn_norm",
    [LA_ATTN_NORM_BIAS] = "attn_norm_bias",
    [LA_QKV] = "qkv",
    [LA_QKV_BIAS] = "qkv_bias",
    [LA_Q_NORM] = "q_norm",
    [LA_K_NORM] = "k_norm",
    [LA_O] = "o",
    [LA_O_BIAS] = "o_bias",
    [LA_ATTN_POST_NORM] = "attn_post_norm",
    [LA_FFN_NORM] = "ffn_norm",
    [LA_FFN_NORM_BIAS] = "ffn_norm_bias",
    [LA_GATE_UP] = "gate_up",
    [LA_GATE_UP_BIAS] = "gate_up_bias",
    [LA_DOWN] = "down",
    [LA_DOWN_BIAS] = "down_bias",
    [LA_FFN_POST_NORM] = "ffn_post_norm",
    [LA_MLA_IN] = "mla_in",
    [LA_MLA_IN_BIAS] = "mla_in_bias",
    [LA_MLA_Q_NORM] = "mla_q_norm",
    [LA_MLA_KV_NORM] = "mla_kv_norm",
    [LA_MLA_Q] = "mla_q",
    [LA_MLA_UK] = "mla_uk",
    [LA_MLA_UV] = "mla_uv",
    [LA_SINKS] = "sinks",
    [LA_ROUTER] = "router",
    [LA_ROUTER_BIAS] = "router_bias",
    [LA_ROUTER_CORRECTION] = "router_correction",
    [LA_SHARED_GATE_UP] = "shared_gate_up",
    [LA_SHARED_DOWN] = "shared_down",
    [LA_EXPERT_GATE_UP] = "expert_gate_up",
    [LA_EXPERT_GATE_UP_BIAS] = "expert_gate_up_bias",
    [LA_EXPERT_DOWN] = "expert_down",
    [LA_EXPERT_DOWN_BIAS] = "expert_down_bias",
};

la_slot la_slot_from_name(const char *name)
{
    for (int i = 0; i < LA_SLOT_COUNT; i++) {
        if (strcmp(name, slot_names[i]) == 0) {
            return (la_slot)i;
        }
    }
    return LA_SLOT_COUNT;
}

const char *la_slot_name(la_slot slot)
{
    return (int)slot >= 0 && slot < LA_SLOT_COUNT ? slot_names[slot] : "?";
}

static la_shape matrix(int n0, int n1, int n2, int cols)
{
    la_shape s = {0, {n0, n1, n2}, 1 + (n1 > 0) + (n2 > 0), cols, 0};
    return s;
}

static la_shape vector(int n0, int n1, int n2)
{
    la_shape s = {1, {n0, n1, n2}, 1 + (n1 > 0) + (n2 > 0), 0, 0};
    return s;
}

la_shape la_slot_shape(const la_model_desc *d, la_slot slot)
{
    int D = d->d_model, F = d->d_ffn, V = d->n_vocab, E = d->n_experts, X = d->d_expert;
    int q = d->n_heads * d->d_head, k = d->n_kv_heads * d->d_head;
    int in = d->q_rank != 0 ? d->q_rank : q, latent = d->kv_rank + d->d_rope;
    la_shape s;
    switch (slot) {
    case LA_EMBED:
    case LA_HEAD: return matrix(V, 0, 0, D);
    case LA_POS_EMBED:
        s = matrix(d->max_len, 0, 0, D);
        s.more_rows = 1;
        return s;
    case LA_QKV: return matrix(q, k, k, D);
    case LA_QKV_BIAS: return vector(q, k, k);
    case LA_Q_NORM: return vector(d->qk_norm == LA_QK_NORM_ROW ? q : d->d_head, 0, 0);
    case LA_K_NORM: return vector(d->qk_norm == LA_QK_NORM_ROW ? k : d->d_head, 0, 0);
    case LA_SINKS: return vector(d->n_heads, 0, 0);
    case LA_O: return matrix(D, 0, 0, d->attn == LA_ATTN_LATENT ? d->n_heads * d->d_v : q);
    case LA_MLA_IN: return matrix(in, latent, 0, D);
    case LA_MLA_IN_BIAS: return vector(in, latent, 0);
    case LA_MLA_Q_NORM: return vector(d->q_rank, 0, 0);
    case LA_MLA_KV_NORM: return vector(d->kv_rank, 0, 0);
    case LA_MLA_Q: return matrix(q, 0, 0, d->q_rank);
    case LA_MLA_UK: return matrix(d->n_heads * d->kv_rank, 0, 0, d->d_nope);
    case LA_MLA_UV: return matrix(d->n_heads * d->d_v, 0, 0, d->kv_rank);
    case LA_GATE_UP: return matrix(F, d->gated ? F : 0, 0, D);
    case LA_GATE_UP_BIAS: return vector(F, d->gated ? F : 0, 0);
    case LA_DOWN: return matrix(D, 0, 0, F);
    case LA_ROUTER: return matrix(E, d->shared_gate, 0, D);
    case LA_ROUTER_BIAS:
    case LA_ROUTER_CORRECTION: return vector(E, 0, 0);
    case LA_SHARED_GATE_UP: return matrix(d->d_shared, d->gated ? d->d_shared : 0, 0, D);
    case LA_SHARED_DOWN: return matrix(D, 0, 0, d->d_shared);
    case LA_EXPERT_GATE_UP: return matrix(X, d->gated ? X : 0, 0, D);
    case LA_EXPERT_GATE_UP_BIAS: return vector(X, d->gated ? X : 0, 0);
    case LA_EXPERT_DOWN: return matrix(D, 0, 0, X);
    default: return vector(D, 0, 0);
    }
}

int la_heads_have_norms(const la_model_desc *d)
{
    return d->qk_norm == LA_QK_NORM_HEAD || d->qk_norm == LA_QK_NORM_ROW;
}

/* The classes below are runs of la_slot. */
_Static_assert(LA_EMBED == 0 && LA_HEAD + 1 == LA_ATTN_NORM, "slots of the model come first");
_Static_assert(LA_DOWN_BIAS == LA_GATE_UP + 3, "slots of a dense layer lie together");
_Static_assert(LA_MLA_UV == LA_MLA_IN + 6 && LA_MLA_UV == LA_MLA_UK + 1, "so do those of latents");
_Static_assert(LA_ROUTER == LA_SINKS + 1 && LA_EXPERT_DOWN_BIAS == LA_EXPERT_GATE_UP + 3 &&
                   LA_EXPERT_DOWN_BIAS + 1 == LA_SLOT_COUNT,
               "slots of layers with experts come last, each expert's own at the end");

int la_slot_is_of_model(la_slot slot)
{
    return slot < LA_ATTN_NORM;
}

static int is_dense(la_slot slot)
{
    return slot >= LA_GATE_UP && slot <= LA_DOWN_BIAS;
}

static int is_latent(la_slot slot)
{
    return slot >= LA_MLA_IN && slot <= LA_MLA_UV;
}

int la_slot_is_per_head(la_slot slot)
{
    return slot == LA_MLA_UK || slot == LA_MLA_UV;
}

int la_slot_is_per_expert(la_slot slot)
{
    return slot >= LA_EXPERT_GATE_UP;
}

int la_slot_is_routed(la_slot slot)
{
    return slot >= LA_ROUTER;
}

int la_slot_experts(const la_model_desc *d, la_slot slot)
{
    return la_slot_is_per_expert(slot) ? d->n_experts : 1;
}

const char *la_slot_place(la_slot slot, int layer, char room[LA_SLOT_PLACE])
{
    if (layer < 0 || la_slot_is_of_model(slot)) {
        return la_slot_name(slot);
    }
    snprintf(room, LA_SLOT_PLACE, "%s (layer %d)", la_slot_name(slot), layer);
    return room;
}

la_status la_slot_check_layer(const la_model_desc *d, la_slot slot, int layer)
{
    if ((int)slot < 0 || slot >= LA_SLOT_COUNT) {
        return la_fail(LA_ERR_ARGUMENT, "slot: %d is unknown", (int)slot);
    }
    char room[LA_SLOT_PLACE];
    if (la_slot_is_of_model(slot)) {
        return LA_OK;
    }
    if (layer < 0 || layer >= d->n_layers) {
        return la_fail(LA_ERR_ARGUMENT, "%s: layer %d of %d", la_slot_name(slot), layer,
                       d->n_layers);
    }
    int moe = d->layers[layer].moe;
    if (moe ? is_dense(slot) : la_slot_is_routed(slot)) {
        return la_fail(LA_ERR_ARGUMENT, "%s: this layer has %sexperts",
                       la_slot_place(slot, layer, room), moe ? "" : "no ");
    }
    return LA_OK;
}

/* Rows and columns of one part, and whether the checkpoint may have more rows. */
typedef struct part_shape {
    int rows, cols, more_rows;
} part_shape;

static la_status check_part(const char *place, const la_source *p, part_shape want)
{
    if (p->cols != want.cols || (want.more_rows ? p->rows < want.rows : p->rows != want.rows)) {
        return la_fail(LA_ERR_SHAPE, "%s: expected [%d, %d], got [%d, %d]", place, want.rows,
                       want.cols, p->rows, p->cols);
    }
    size_t bytes;
    la_status st = la_source_bytes(p->dtype, p->rows, p->cols, &bytes);
    if (st != LA_OK) {
        return st;
    }
    if (p->data != NULL && p->bytes != bytes) {
        return la_fail(LA_ERR_SHAPE, "%s: expected %zu bytes, got %zu", place, bytes, p->bytes);
    }
    return LA_OK;
}

/* Does a model of this description have such a slot? */
static la_status check_wanted(const la_model_desc *d, la_slot slot, const char *place)
{
    if ((slot == LA_SHARED_GATE_UP || slot == LA_SHARED_DOWN) && d->d_shared == 0) {
        return la_fail(LA_ERR_ARGUMENT, "%s: this model has no shared expert", place);
    }
    if ((is_latent(slot) || slot == LA_QKV || slot == LA_QKV_BIAS) &&
        is_latent(slot) != (d->attn == LA_ATTN_LATENT)) {
        return la_fail(LA_ERR_ARGUMENT, "%s: this model's attention has another form", place);
    }
    if ((slot == LA_MLA_Q_NORM || slot == LA_MLA_Q) && d->q_rank == 0) {
        return la_fail(LA_ERR_ARGUMENT, "%s: this model's queries are made of x", place);
    }
    if ((slot == LA_Q_NORM || slot == LA_K_NORM) && !la_heads_have_norms(d)) {
        return la_fail(LA_ERR_ARGUMENT, "%s: this model does not normalize heads", place);
    }
    return LA_OK;
}

la_status la_slot_check(const la_model_desc *d, la_slot slot, int layer, const la_source *parts,
                        int n_parts)
{
    if ((int)slot < 0 || slot >= LA_SLOT_COUNT) {
        return la_fail(LA_ERR_ARGUMENT, "slot: %d is unknown", (int)slot);
    }
    la_status st;
    char room[LA_SLOT_PLACE];
    const char *place = la_slot_place(slot, layer, room);
    LA_TRY(check_wanted(d, slot, place));
    la_shape s = la_slot_shape(d, slot);
    if (n_parts != s.n_parts) {
        return la_fail(LA_ERR_SHAPE, "%s: expected %d tensors, got %d", place, s.n_parts, n_parts);
    }
    for (int i = 0; i < n_parts; i++) {
        part_shape vector = {1, s.rows[i], 0}, matrix_part = {s.rows[i], s.cols, s.more_rows};
        LA_TRY(check_part(place, &parts[i], s.is_vector ? vector : matrix_part));
        if (s.is_vector && parts[i].dtype > LA_BF16) {
            return la_fail(LA_ERR_UNSUPPORTED, "%s: a vector cannot be block-quantized", place);
        }
    }
done:
    return st;
}
