/* desc.c - what a model's description may say.
 *
 * Owns the ranges of la_model_desc. Invariant: a description that passes has dimensions whose products
 * fit, tables for every layer and finite factors, so nothing after it checks again. Called by model.c.
 */
#include "slots.h"

#include <math.h>

enum {
    MAX_DIM = 1 << 24, /* keeps every product of two dimensions inside int64 */
    MAX_HEAD = 256
};

static la_status check_float(const char *name, float v)
{
    if (!isfinite(v)) {
        return la_fail(LA_ERR_ARGUMENT, "%s: %g is not a finite number", name, (double)v);
    }
    return LA_OK;
}

static la_status check_layers(const la_model_desc *d)
{
    if (d->layers == NULL) {
        return la_fail(LA_ERR_ARGUMENT, "layers: missing");
    }
    for (int l = 0; l < d->n_layers; l++) {
        int r = d->layers[l].rope;
        if (d->layers[l].window < 0) {
            return la_fail(LA_ERR_ARGUMENT, "layers[%d].window: %d is negative", l,
                           d->layers[l].window);
        }
        if (d->layers[l].moe != 0 && (d->layers[l].moe != 1 || d->n_experts == 0)) {
            return la_fail(LA_ERR_ARGUMENT, "layers[%d].moe: %d, n_experts is %d", l,
                           d->layers[l].moe, d->n_experts);
        }
        if (r < -1 || r >= LA_MAX_ROPE_TABLES || (r >= 0 && d->rope_inv_freq[r] == NULL)) {
            return la_fail(LA_ERR_ARGUMENT, "layers[%d].rope: table %d is not given", l, r);
        }
    }
    return LA_OK;
}

static la_status check_rope(const la_model_desc *d)
{
    la_status st = LA_OK;
    for (int i = 0; i < LA_MAX_ROPE_TABLES; i++) {
        for (int j = 0; d->rope_inv_freq[i] != NULL && j < d->d_rope / 2; j++) {
            LA_TRY(check_float("rope_inv_freq", d->rope_inv_freq[i][j]));
        }
        if (d->rope_inv_freq[i] != NULL) {
            LA_TRY(check_float("rope_scale", d->rope_scale[i]));
        }
    }
done:
    return st;
}

static la_status check_experts(const la_model_desc *d)
{
    la_status st;
    LA_TRY(la_check_int("n_experts", d->n_experts, 0, LA_MAX_EXPERTS));
    if (d->n_experts == 0) {
        return LA_OK;
    }
    int used = d->n_experts < LA_MAX_EXPERTS_USED ? d->n_experts : LA_MAX_EXPERTS_USED;
    LA_TRY(la_check_int("n_experts_used", d->n_experts_used, 1, used));
    LA_TRY(la_check_int("d_expert", d->d_expert, 1, MAX_DIM));
    LA_TRY(la_check_int("d_shared", d->d_shared, 0, MAX_DIM));
    LA_TRY(la_check_int("shared_gate", d->shared_gate, 0, d->d_shared != 0));
    LA_TRY(la_check_int("route_score", d->route_score, LA_ROUTE_SOFTMAX, LA_ROUTE_SIGMOID));
    LA_TRY(la_check_int("route_norm", d->route_norm, 0, 1));
    LA_TRY(check_float("route_scale", d->route_scale));
    LA_TRY(la_check_int("route_groups", d->route_groups, 1, d->n_experts));
    LA_TRY(la_check_int("route_groups_used", d->route_groups_used, 1, d->route_groups));
    int group = d->n_experts / d->route_groups;
    if (d->n_experts % d->route_groups != 0 || group * d->route_groups_used < d->n_experts_used) {
        return la_fail(
            LA_ERR_ARGUMENT,
            "route_groups: %d groups, of which %d are used, do not offer %d of %d experts",
            d->route_groups, d->route_groups_used, d->n_experts_used, d->n_experts);
    }
    LA_TRY(la_check_int("route_group_best", d->route_group_best, 1, group < 2 ? group : 2));
    LA_TRY(la_check_int("route_input", d->route_input, 0, 1));
    if (d->parallel) {
        return la_fail(LA_ERR_UNSUPPORTED, "parallel: layers with experts have serial blocks");
    }
done:
    return st;
}

la_status la_desc_check(const la_model_desc *d)
{
    la_status st;
    LA_TRY(la_check_int("n_layers", d->n_layers, 1, LA_MAX_LAYERS));
    LA_TRY(la_check_int("d_model", d->d_model, 1, MAX_DIM));
    LA_TRY(la_check_int("d_head", d->d_head, 1, MAX_HEAD));
    LA_TRY(la_check_int("n_heads", d->n_heads, 1, MAX_DIM / d->d_head / 3));
    LA_TRY(la_check_int("n_kv_heads", d->n_kv_heads, 1, d->n_heads));
    LA_TRY(la_check_int("d_ffn", d->d_ffn, 1, MAX_DIM));
    LA_TRY(la_check_int("n_vocab", d->n_vocab, 1, MAX_DIM));
    LA_TRY(la_check_int("max_len", d->max_len, 1, LA_MAX_POSITIONS));
    LA_TRY(la_check_int("norm", d->norm, LA_NORM_RMS, LA_NORM_LAYER));
    LA_TRY(la_check_int("act", d->act, LA_GATE_SILU, d->gated ? LA_GATE_CLIP : LA_GATE_RELU));
    LA_TRY(la_check_int("qk_norm", d->qk_norm, LA_QK_NORM_NONE, LA_QK_NORM_UNIT));
    LA_TRY(la_check_int("d_rope", d->d_rope, 0, d->d_head));
    LA_TRY(la_check_int("activation", d->activation, 0, LA_ACT_I8));
    LA_TRY(la_check_int("kv_form", d->kv_form, 0, LA_KV_FORM_COUNT - 1));
    LA_TRY(la_check_int("fast_math", d->fast_math, 0, 1));
    if (d->n_heads % d->n_kv_heads != 0) {
        return la_fail(LA_ERR_ARGUMENT, "n_kv_heads: %d does not divide n_heads %d", d->n_kv_heads,
                       d->n_heads);
    }
    if (d->d_rope % 2 != 0) {
        return la_fail(LA_ERR_ARGUMENT, "d_rope: %d is odd", d->d_rope);
    }
    LA_TRY(check_float("norm_eps", d->norm_eps));
    if (d->norm_eps < 0.0f) {
        return la_fail(LA_ERR_ARGUMENT, "norm_eps: %g is negative", (double)d->norm_eps);
    }
    LA_TRY(check_float("attn_scale", d->attn_scale));
    LA_TRY(check_float("attn_softcap", d->attn_softcap));
    LA_TRY(check_float("attn_grow", d->attn_grow));
    LA_TRY(la_check_int("attn_grow_every", d->attn_grow_every, 0, LA_MAX_POSITIONS));
    LA_TRY(check_float("logit_softcap", d->logit_softcap));
    LA_TRY(check_float("logit_scale", d->logit_scale));
    LA_TRY(check_float("embed_scale", d->embed_scale));
    LA_TRY(check_float("residual_scale", d->residual_scale));
    LA_TRY(check_experts(d));
    LA_TRY(check_layers(d));
    LA_TRY(check_rope(d));
    LA_TRY(la_latent_check_desc(d));
done:
    return st;
}
