/* model.c - a model's life: description, tensors one after another, a step.
 *
 * Owns la_model and every packed weight. Invariant: after la_model_finish all tensors the description
 * needs are set and have the shapes the forward pass reads; weights exist once (a source is packed, never
 * kept). Called through llmaccel.h by the Python layer and through model.h by the engine.
 */
#include "part_rows.h"
#include "slots.h"

#include "../base/cpu.h"

static la_status check_recipe(const la_model_desc *d, la_recipe r)
{
    la_status st;
    LA_TRY(la_check_int("body", (int)r.body, 0, LA_QUANT_COUNT - 1));
    LA_TRY(la_check_int("head", (int)r.head, 0, LA_QUANT_COUNT - 1));
    LA_TRY(la_check_int("embed", (int)r.embed, 0, LA_QUANT_COUNT - 1));
    if (r.floats != LA_F32 && r.floats != LA_F16 && r.floats != LA_BF16 &&
        r.floats != LA_DTYPE_COUNT) {
        return la_fail(LA_ERR_ARGUMENT, "floats: %d is no float type", (int)r.floats);
    }
    int quantized = r.body != LA_QUANT_KEEP || r.head != LA_QUANT_KEEP;
    if (quantized && la_act_is_float(d->activation)) {
        return la_fail(LA_ERR_ARGUMENT,
                       "activation: products of quantized weights take bf16 or i8");
    }
done:
    return st;
}

static la_status check_limits(const la_backend_ops *ops, const la_model_desc *d, const la_limits *l)
{
    la_status st;
    LA_TRY(la_check_int("max_num_seqs", l->max_seqs, 1, 1 << 16));
    LA_TRY(la_check_int("max_num_batched_tokens", l->max_batch_tokens, 1, 1 << 20));
    LA_TRY(la_check_int("max_model_len", l->max_len, 1, d->max_len));
    LA_TRY(la_check_int("host_threads", l->host_threads, 0, 1 << 16));
    LA_TRY(ops->check(d, l));
done:
    return st;
}

la_status la_limits_check(const la_model *m, const la_limits *limits)
{
    return check_limits(m->b->ops, &m->desc, limits);
}

la_status la_model_plan(const la_backend *b, const la_model_desc *d, const la_limits *limits,
                        int n_threads, la_plan *out)
{
    la_status st;
    const la_backend_ops *ops = b != NULL ? b->ops : la_backend_cpu_ops();
    *out = (la_plan){0, 0, 0, 0};
    n_threads = b != NULL ? b->n_threads : la_cpu_threads(n_threads);
    LA_TRY(la_desc_check(d));
    LA_TRY(check_limits(ops, d, limits));
    la_workspace w = {0};
    la_workspace_layout(ops, d, limits, n_threads, &w);
    out->workspace_bytes = w.bytes;
    out->host_bytes = ops->host_bytes != NULL ? ops->host_bytes(b, d, limits) : 0;
    out->kv_page_bytes = la_kv_layout_of(d).page_bytes;
    for (int i = 0; i < LA_MAX_ROPE_TABLES; i++) {
        if (d->rope_inv_freq[i] != NULL) {
            out->rope_bytes += (size_t)d->max_len * (size_t)d->d_rope * sizeof(float);
        }
    }
done:
    return st;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static size_t weight_bytes(const la_weight *w)
{
    return (size_t)w->n_units * w->unit_bytes;
}

static void drop(la_model *m, void *kept)
{
    m->b->ops->drop(m->b, kept);
}

static void matrix_clear(la_model *m, la_matrix *of)
{
    for (int i = 0; i < of->n_parts; i++) {
        la_arena_give(&m->weights, of->part[i].data, weight_bytes(&of->part[i]));
        drop(m, of->order[i]);
    }
    drop(m, of->bias);
    *of = (la_matrix){0};
}

/* What a backend reads of an array that it was handed; NULL, with the message set, where it has no room. */
static void *keep(la_model *m, void *host, size_t bytes)
{
    void *kept = m->b->ops->keep(m->b, host, bytes);
    if (kept == NULL) {
        la_fail(LA_ERR_MEMORY, "weights: no memory for a vector of %zu bytes", bytes);
    }
    return kept;
}

static int same_format(la_format a, la_format b)
{
    return a.pack == b.pack && a.group == b.group && a.has_offset == b.has_offset &&
           a.scale_type == b.scale_type && a.row_scale == b.row_scale;
}

static la_quant quant_of(la_recipe r, la_slot slot)
{
    switch (slot) {
    case LA_EMBED: return r.embed;
    case LA_HEAD: return r.head;
    case LA_POS_EMBED:
    case LA_ROUTER: return LA_QUANT_KEEP;
    default: return r.body;
    }
}

static int is_gate_up(la_slot slot)
{
    return slot == LA_GATE_UP || slot == LA_SHARED_GATE_UP || slot == LA_EXPERT_GATE_UP;
}

/* Sizes of a matrix: one weight where formats agree, else one per part. Nothing is mapped. */
static la_status matrix_plan(const la_model_desc *d, la_recipe recipe, la_slot slot,
                             const la_source *parts, int n_parts, la_matrix *out)
{
    la_status st = LA_OK;
    la_format f[3];
    int together = 1, paired = d->gated && is_gate_up(slot);
    if (slot == LA_ROUTER) { /* a bit decides which expert is read */
        recipe.floats = LA_F32;
    }
    la_dtype keep = la_act_is_float(d->activation) ? LA_F32 : recipe.floats;
    la_quant quant = quant_of(recipe, slot);
    int wide = d->activation == LA_ACT_I8 && (recipe.wide >> slot & 1u) != 0;
    *out = (la_matrix){.paired = paired, .K = parts[0].cols};
    out->activation = wide ? LA_ACT_I8X2 : d->activation;
    for (int i = 0; i < n_parts; i++) {
        la_dtype want = parts[i].dtype > LA_BF16 ? keep : recipe.floats;
        LA_TRY(
            la_pack_format(want, quant, paired ? parts : &parts[i], paired ? n_parts : 1, &f[i]));
        LA_TRY(la_part_check_rows(slot, &parts[i], d->activation));
        together = together && same_format(f[i], f[0]) && la_parts_same_rows(&parts[i], &parts[0]);
        if (paired && !together) {
            return la_fail(
                LA_ERR_SHAPE,
                "%s: gate and up have their columns in other orders, or rows rounded in other ways",
                la_slot_name(slot));
        }
        out->N += parts[i].rows;
    }
    for (int i = 0; i < n_parts; i++) {
        out->rounding[i] = parts[i].rounding;
    }
    if (together) {
        out->n_parts = 1;
        LA_TRY(la_pack_plan(f[0], parts, n_parts, paired, &out->part[0]));
        return LA_OK;
    }
    out->n_parts = n_parts;
    for (int i = 0; i < n_parts; i++) {
        LA_TRY(la_pack_plan(f[i], &parts[i], 1, 0, &out->part[i]));
    }
done:
    return st;
}

static la_status matrix_set(la_model *m, la_slot slot, la_matrix *dst, const la_source *parts,
                            int n_parts)
{
    la_status st;
    la_matrix fresh;
    LA_TRY(matrix_plan(&m->desc, m->recipe, slot, parts, n_parts, &fresh));
    for (int i = 0; i < fresh.n_parts; i++) {
        la_weight *w = &fresh.part[i];
        w->data = la_arena_take(&m->weights, weight_bytes(w));
        if (w->data == NULL) {
            st = la_fail(LA_ERR_MEMORY, "weights: cannot map %zu bytes", weight_bytes(w));
            goto done;
        }
        int split = fresh.n_parts > 1;
        LA_TRY(m->b->ops->pack(m->b, w, split ? &parts[i] : parts, split ? 1 : n_parts,
                               fresh.paired && !split));
        LA_TRY(la_part_order(&fresh.order[i], &parts[i]));
        if (fresh.order[i] != NULL) {
            fresh.order[i] = keep(m, fresh.order[i], (size_t)fresh.K * sizeof(int32_t));
            st = fresh.order[i] != NULL ? LA_OK : LA_ERR_MEMORY;
            LA_TRY(st);
        }
    }
    fresh.bias = dst->bias;
    dst->bias = NULL;
    matrix_clear(m, dst);
    *dst = fresh;
    return LA_OK;
done:
    matrix_clear(m, &fresh);
    return st;
}

la_matrix *la_matrix_of(la_model *m, la_slot slot, int layer, int expert)
{
    la_layer *w = &m->layers[la_slot_is_of_model(slot) ? 0 : layer];
    switch (slot) {
    case LA_EMBED: return &m->embed;
    case LA_POS_EMBED: return &m->pos_embed;
    case LA_HEAD: return &m->head;
    case LA_QKV:
    case LA_QKV_BIAS: return &w->qkv;
    case LA_O:
    case LA_O_BIAS: return &w->o;
    case LA_GATE_UP:
    case LA_GATE_UP_BIAS: return &w->gate_up;
    case LA_DOWN:
    case LA_DOWN_BIAS: return &w->down;
    case LA_MLA_IN:
    case LA_MLA_IN_BIAS: return &w->latent.in;
    case LA_MLA_Q: return &w->latent.q;
    case LA_ROUTER:
    case LA_ROUTER_BIAS: return &w->moe->router;
    case LA_SHARED_GATE_UP: return &w->moe->shared_up;
    case LA_SHARED_DOWN: return &w->moe->shared_down;
    case LA_EXPERT_GATE_UP:
    case LA_EXPERT_GATE_UP_BIAS: return &w->moe->up[expert];
    case LA_EXPERT_DOWN:
    case LA_EXPERT_DOWN_BIAS: return &w->moe->down[expert];
    default: return NULL;
    }
}

float **la_vector_of(la_model *m, la_slot slot, int layer)
{
    la_layer *l = &m->layers[layer < 0 || layer >= m->desc.n_layers ? 0 : layer];
    switch (slot) {
    case LA_FINAL_NORM: return &m->final_norm.w;
    case LA_FINAL_NORM_BIAS: return &m->final_norm.b;
    case LA_ATTN_NORM: return &l->attn_norm.w;
    case LA_ATTN_NORM_BIAS: return &l->attn_norm.b;
    case LA_Q_NORM: return &l->q_norm;
    case LA_K_NORM: return &l->k_norm;
    case LA_ATTN_POST_NORM: return &l->attn_post_norm.w;
    case LA_FFN_NORM: return &l->ffn_norm.w;
    case LA_FFN_NORM_BIAS: return &l->ffn_norm.b;
    case LA_FFN_POST_NORM: return &l->ffn_post_norm.w;
    case LA_MLA_Q_NORM: return &l->latent.q_norm;
    case LA_MLA_KV_NORM: return &l->latent.kv_norm;
    case LA_SINKS: return &l->sinks;
    case LA_ROUTER_CORRECTION: return &l->moe->correction;
    default: return NULL;
    }
}

la_status la_model_weight_bytes(const la_model_desc *d, la_recipe recipe, la_slot slot,
                                const la_source *parts, int n_parts, size_t *bytes)
{
    la_status st;
    *bytes = 0;
    LA_TRY(la_desc_check(d));
    LA_TRY(la_slot_check(d, slot, -1, parts, n_parts));
    if (la_slot_shape(d, slot).is_vector) {
        for (int i = 0; i < n_parts; i++) {
            *bytes += la_round_up((size_t)parts[i].cols, LA_UNIT) * sizeof(float);
        }
        return LA_OK;
    }
    la_matrix m;
    la_head_matrix heads;
    LA_TRY(check_recipe(d, recipe));
    if (la_slot_is_per_head(slot)) {
        LA_TRY(la_part_check_rows(slot, &parts[0], d->activation));
        LA_TRY(la_latent_plan(d, recipe, &parts[0], &heads));
        *bytes = la_head_matrix_bytes(&heads);
        return LA_OK;
    }
    LA_TRY(matrix_plan(d, recipe, slot, parts, n_parts, &m));
    for (int i = 0; i < m.n_parts; i++) {
        *bytes += weight_bytes(&m.part[i]);
        *bytes += la_part_is_ordered(&parts[i]) ? (size_t)m.K * sizeof(int32_t) : 0;
    }
done:
    return st;
}

/* The part that takes the place of one whose rows were rounded: they go on being so. */
static la_source rounded_as(const la_source *part, la_rounding before)
{
    la_source own = *part;
    own.rounding = own.rounding.kind == LA_ROUND_NONE ? before : own.rounding;
    return own;
}

la_status la_model_set(la_model *m, la_slot slot, int layer, int expert, const la_source *parts,
                       int n_parts)
{
    la_status st;
    LA_TRY(la_model_alive(m));
    LA_TRY(la_slot_check_layer(&m->desc, slot, layer));
    LA_TRY(la_slot_check(&m->desc, slot, layer, parts, n_parts));
    if (la_slot_is_per_expert(slot)) {
        LA_TRY(la_check_int("expert", expert, 0, m->desc.n_experts - 1));
    }
    for (int i = 0; i < n_parts; i++) {
        if (parts[i].data == NULL) {
            char room[LA_SLOT_PLACE];
            return la_fail(LA_ERR_ARGUMENT, "%s: no data", la_slot_place(slot, layer, room));
        }
    }
    la_shape shape = la_slot_shape(&m->desc, slot);
    la_matrix *dst = la_matrix_of(m, slot, layer, expert);
    if (la_slot_is_per_head(slot)) {
        la_latent *l = &m->layers[layer].latent;
        la_head_matrix *heads = slot == LA_MLA_UK ? &l->uk : &l->uv;
        la_source own = rounded_as(&parts[0], heads->rounding);
        LA_TRY(la_part_check_rows(slot, &own, m->desc.activation));
        LA_TRY(la_latent_set(m, heads, &own));
    }
    else if (!shape.is_vector) {
        la_source own[3];
        for (int i = 0; i < n_parts; i++) {
            own[i] = rounded_as(&parts[i], dst->rounding[i]);
        }
        LA_TRY(matrix_set(m, slot, dst, own, n_parts));
    }
    else if (dst != NULL) {
        int gate_up = slot == LA_GATE_UP_BIAS || slot == LA_EXPERT_GATE_UP_BIAS;
        LA_TRY(la_bias_set(m->b, dst, parts, n_parts, m->desc.gated && gate_up));
    }
    else {
        LA_TRY(la_vector_set(m->b, la_vector_of(m, slot, layer), &parts[0]));
    }
done:
    return st;
}

/* ---- life ------------------------------------------------------------------------------------ */

static la_status copy_tables(la_model *m, const la_model_desc *d)
{
    m->layer_desc = la_alloc((size_t)d->n_layers, sizeof *m->layer_desc);
    m->layers = la_alloc((size_t)d->n_layers, sizeof *m->layers);
    if (m->layer_desc == NULL || m->layers == NULL) {
        return la_fail(LA_ERR_MEMORY, "model: out of memory for %d layers", d->n_layers);
    }
    memcpy(m->layer_desc, d->layers, (size_t)d->n_layers * sizeof *d->layers);
    m->desc.layers = m->layer_desc;
    size_t half = (size_t)d->d_rope / 2, n = (size_t)d->max_len * half;
    for (int i = 0; i < LA_MAX_ROPE_TABLES; i++) {
        if (d->rope_inv_freq[i] == NULL || half == 0) {
            continue;
        }
        float *cos = la_alloc(n, sizeof(float)), *sin = la_alloc(n, sizeof(float));
        m->inv_freq[i] = la_alloc(half, sizeof(float));
        if (m->inv_freq[i] == NULL || cos == NULL || sin == NULL) {
            la_free(cos); /* the model lets go of what the backend has kept alone */
            la_free(sin);
            return la_fail(LA_ERR_MEMORY, "rope: out of memory for %d positions", d->max_len);
        }
        memcpy(m->inv_freq[i], d->rope_inv_freq[i], half * sizeof(float));
        m->desc.rope_inv_freq[i] = m->inv_freq[i];
        la_rope_fill(m->inv_freq[i], (int)half, d->max_len, d->rope_scale[i], cos, sin);
        m->rope_cos[i] = keep(m, cos, n * sizeof(float));
        m->rope_sin[i] = keep(m, sin, n * sizeof(float));
        if (m->rope_cos[i] == NULL || m->rope_sin[i] == NULL) {
            return LA_ERR_MEMORY;
        }
    }
    return LA_OK;
}

/* The room for a layer's experts, which come one by one. */
static la_status moe_create(la_model *m, la_moe **out)
{
    size_t n = (size_t)m->desc.n_experts;
    la_moe *moe = la_alloc(1, sizeof *moe);
    *out = moe;
    if (moe != NULL) {
        moe->up = la_alloc(n, sizeof *moe->up);
        moe->down = la_alloc(n, sizeof *moe->down);
    }
    if (moe == NULL || moe->up == NULL || moe->down == NULL) {
        return la_fail(LA_ERR_MEMORY, "model: out of memory for %zu experts", n);
    }
    return LA_OK;
}

static void moe_free(la_model *m, la_moe *moe)
{
    if (moe == NULL) {
        return;
    }
    for (int e = 0; e < m->desc.n_experts; e++) {
        if (moe->up != NULL) {
            matrix_clear(m, &moe->up[e]);
        }
        if (moe->down != NULL) {
            matrix_clear(m, &moe->down[e]);
        }
    }
    matrix_clear(m, &moe->router);
    matrix_clear(m, &moe->shared_up);
    matrix_clear(m, &moe->shared_down);
    drop(m, moe->correction);
    la_free(moe->up);
    la_free(moe->down);
    la_free(moe);
}

static void *map_weights(void *backend, size_t bytes)
{
    la_backend *b = backend;
    return b->ops->map(b, bytes);
}

static void unmap_weights(void *backend, void *p, size_t bytes)
{
    la_backend *b = backend;
    b->ops->unmap(b, p, bytes);
}

la_status la_model_create(la_backend *b, const la_model_desc *d, la_recipe recipe, la_model **out)
{
    la_status st;
    la_model *m = NULL;
    *out = NULL;
    LA_TRY(la_desc_check(d));
    LA_TRY(check_recipe(d, recipe));
    if (b->ops->alive != NULL) {
        LA_TRY(b->ops->alive(b));
    }
    LA_TRY(b->ops->accept(b, d, recipe));
    m = la_alloc(1, sizeof *m);
    if (m == NULL) {
        return la_fail(LA_ERR_MEMORY, "model: out of memory");
    }
    m->b = b;
    m->weights.from = (la_arena_source){map_weights, unmap_weights, b};
    m->desc = *d;
    m->recipe = recipe;
    LA_TRY(copy_tables(m, d));
    for (int l = 0; l < d->n_layers; l++) {
        if (d->layers[l].moe) {
            LA_TRY(moe_create(m, &m->layers[l].moe));
        }
    }
    *out = m;
    return LA_OK;
done:
    la_model_free(m);
    return st;
}

void la_model_free(la_model *m)
{
    if (m == NULL) {
        return;
    }
    for (int l = 0; m->layers != NULL && l < m->desc.n_layers; l++) {
        la_layer *w = &m->layers[l];
        la_norm *norms[] = {&w->attn_norm, &w->ffn_norm, &w->attn_post_norm, &w->ffn_post_norm};
        for (int i = 0; i < 4; i++) {
            drop(m, norms[i]->w);
            drop(m, norms[i]->b);
        }
        drop(m, w->q_norm);
        drop(m, w->k_norm);
        drop(m, w->sinks);
        matrix_clear(m, &w->qkv);
        matrix_clear(m, &w->o);
        matrix_clear(m, &w->gate_up);
        matrix_clear(m, &w->down);
        drop(m, w->latent.q_norm);
        drop(m, w->latent.kv_norm);
        matrix_clear(m, &w->latent.in);
        matrix_clear(m, &w->latent.q);
        la_latent_clear(&m->weights, &w->latent.uk);
        la_latent_clear(&m->weights, &w->latent.uv);
        moe_free(m, w->moe);
    }
    matrix_clear(m, &m->embed);
    matrix_clear(m, &m->pos_embed);
    matrix_clear(m, &m->head);
    la_arena_clear(&m->weights);
    drop(m, m->final_norm.w);
    drop(m, m->final_norm.b);
    for (int i = 0; i < LA_MAX_ROPE_TABLES; i++) {
        la_free(m->inv_freq[i]);
        drop(m, m->rope_cos[i]);
        drop(m, m->rope_sin[i]);
    }
    la_free(m->layers);
    la_free(m->layer_desc);
    la_free(m);
    la_trim();
}

static la_status need(int is_set, la_slot slot, int layer)
{
    if (!is_set) {
        char room[LA_SLOT_PLACE];
        return la_fail(LA_ERR_SHAPE, "%s: missing", la_slot_place(slot, layer, room));
    }
    return LA_OK;
}

/* What attention reads before its output. */
static la_status need_attention(const la_model *m, int l)
{
    la_status st = LA_OK;
    const la_layer *w = &m->layers[l];
    const la_latent *of = &w->latent;
    if (m->desc.attn != LA_ATTN_LATENT) {
        LA_TRY(need(w->qkv.n_parts != 0, LA_QKV, l));
        return LA_OK;
    }
    LA_TRY(need(of->in.n_parts != 0, LA_MLA_IN, l));
    LA_TRY(need(of->kv_norm != NULL, LA_MLA_KV_NORM, l));
    LA_TRY(need(of->uk.n_heads != 0, LA_MLA_UK, l));
    LA_TRY(need(of->uv.n_heads != 0, LA_MLA_UV, l));
    if (memcmp(&of->uk.rounding, &of->uv.rounding, sizeof of->uk.rounding) != 0) {
        return la_fail(LA_ERR_SHAPE, "%s (layer %d): its rows are rounded in other ways than %s's",
                       la_slot_name(LA_MLA_UK), l, la_slot_name(LA_MLA_UV));
    }
    if (m->desc.q_rank != 0) {
        LA_TRY(need(of->q_norm != NULL, LA_MLA_Q_NORM, l));
        LA_TRY(need(of->q.n_parts != 0, LA_MLA_Q, l));
    }
done:
    return st;
}

/* Experts of a layer are read by one product, so their weights are in one form. */
static la_status need_experts(const la_matrix *w, int n, la_slot slot, int layer)
{
    for (int e = 0; e < n; e++) {
        if (w[e].n_parts == 0) {
            return la_fail(LA_ERR_SHAPE, "%s (layer %d): expert %d is missing", la_slot_name(slot),
                           layer, e);
        }
        if (!same_format(w[e].part[0].f, w[0].part[0].f)) {
            return la_fail(LA_ERR_UNSUPPORTED,
                           "%s (layer %d): experts 0 and %d are stored in different formats",
                           la_slot_name(slot), layer, e);
        }
        if ((w[e].bias != NULL) != (w[0].bias != NULL)) {
            return la_fail(LA_ERR_SHAPE, "%s (layer %d): experts 0 and %d: one has a bias",
                           la_slot_name(slot), layer, e);
        }
    }
    return LA_OK;
}

static la_status need_moe(const la_model *m, const la_moe *w, int layer)
{
    la_status st;
    LA_TRY(need(w->router.n_parts != 0, LA_ROUTER, layer));
    LA_TRY(need_experts(w->up, m->desc.n_experts, LA_EXPERT_GATE_UP, layer));
    LA_TRY(need_experts(w->down, m->desc.n_experts, LA_EXPERT_DOWN, layer));
    if (m->desc.d_shared != 0) {
        LA_TRY(need(w->shared_up.n_parts != 0, LA_SHARED_GATE_UP, layer));
        LA_TRY(need(w->shared_down.n_parts != 0, LA_SHARED_DOWN, layer));
    }
done:
    return st;
}

la_status la_model_finish(la_model *m)
{
    la_status st;
    LA_TRY(need(m->embed.n_parts != 0, LA_EMBED, -1));
    LA_TRY(need(m->final_norm.w != NULL, LA_FINAL_NORM, -1));
    for (int l = 0; l < m->desc.n_layers; l++) {
        const la_layer *w = &m->layers[l];
        LA_TRY(need_attention(m, l));
        LA_TRY(need(w->o.n_parts != 0, LA_O, l));
        if (w->moe != NULL) {
            LA_TRY(need_moe(m, w->moe, l));
        }
        else {
            LA_TRY(need(w->gate_up.n_parts != 0, LA_GATE_UP, l));
            LA_TRY(need(w->down.n_parts != 0, LA_DOWN, l));
        }
        if (la_heads_have_norms(&m->desc)) {
            LA_TRY(need(w->q_norm != NULL, LA_Q_NORM, l));
            LA_TRY(need(w->k_norm != NULL, LA_K_NORM, l));
        }
    }
    m->ready = 1;
    la_trim(); /* headers, vocabularies and staging buffers of the load */
done:
    return st;
}

static size_t matrix_bytes(const la_matrix *m)
{
    size_t n = 0;
    for (int i = 0; i < m->n_parts; i++) {
        n += weight_bytes(&m->part[i]);
        n += m->order[i] != NULL ? (size_t)m->K * sizeof(int32_t) : 0;
    }
    return n;
}

/* Of the first n experts; all have the same size. */
static size_t moe_bytes(const la_moe *w, int n)
{
    size_t bytes =
        matrix_bytes(&w->router) + matrix_bytes(&w->shared_up) + matrix_bytes(&w->shared_down);
    for (int e = 0; e < n; e++) {
        bytes += matrix_bytes(&w->up[e]) + matrix_bytes(&w->down[e]);
    }
    return bytes;
}

static size_t layers_bytes(const la_model *m, int n_experts)
{
    size_t n = 0;
    for (int l = 0; l < m->desc.n_layers; l++) {
        const la_layer *w = &m->layers[l];
        const la_latent *of = &w->latent;
        n += matrix_bytes(&w->qkv) + matrix_bytes(&w->o) + matrix_bytes(&w->gate_up) +
             matrix_bytes(&w->down);
        n += matrix_bytes(&of->in) + matrix_bytes(&of->q) + la_head_matrix_bytes(&of->uk) +
             la_head_matrix_bytes(&of->uv);
        n += w->moe != NULL ? moe_bytes(w->moe, n_experts) : 0;
    }
    return n;
}

static int vector_is_set(const la_model *m, la_slot slot, int layer, int expert)
{
    la_model *any = (la_model *)(uintptr_t)m; /* matrix_of and vector_of only look */
    if (la_slot_is_routed(slot) && any->layers[layer].moe == NULL) {
        return 0;
    }
    const la_matrix *of = la_matrix_of(any, slot, layer, expert);
    return of != NULL ? of->bias != NULL : *la_vector_of(any, slot, layer) != NULL;
}

static size_t vector_bytes(const la_shape *shape)
{
    size_t n = 0;
    for (int i = 0; i < shape->n_parts; i++) {
        n += la_round_up((size_t)shape->rows[i], LA_UNIT) * sizeof(float);
    }
    return n;
}

static size_t vectors_bytes(const la_model *m)
{
    size_t n = 0;
    for (int s = 0; s < LA_SLOT_COUNT; s++) {
        la_shape shape = la_slot_shape(&m->desc, (la_slot)s);
        int layers = !shape.is_vector ? 0 : la_slot_is_of_model((la_slot)s) ? 1 : m->desc.n_layers;
        for (int l = 0; l < layers; l++) {
            for (int e = 0; e < la_slot_experts(&m->desc, (la_slot)s); e++) {
                n += vector_is_set(m, (la_slot)s, l, e) ? vector_bytes(&shape) : 0;
            }
        }
    }
    return n;
}

size_t la_model_bytes(const la_model *m)
{
    return layers_bytes(m, m->desc.n_experts) + matrix_bytes(&m->embed) +
           matrix_bytes(&m->pos_embed) + matrix_bytes(&m->head) + vectors_bytes(m);
}

size_t la_model_token_bytes(const la_model *m)
{
    return layers_bytes(m, m->desc.n_experts_used) +
           matrix_bytes(m->head.n_parts != 0 ? &m->head : &m->embed);
}
