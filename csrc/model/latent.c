/* latent.c - weights of attention over latents (MLA): one small matrix for each head.
 *
 * Owns the packing of LA_MLA_UK and LA_MLA_UV, the halves of a checkpoint's kv_b. A head's rows are packed
 * as units of their own, so that products of heads do not share one. Invariant: they are floats whatever
 * the rest is quantized to, in the model's float form; fp32 and block-quantized parts become bf16 unless
 * the model's activations are fp32. Called by model.c.
 */
#include "slots.h"

enum {
    MOST_RANK = 1 << 13,
    MOST_QUERY_RANK = 1 << 20,
    MOST_VALUE = 256, /* as heads without latents */
    MOST_COLUMNS = 1
        << 24 /* of all heads' latents, keys and values: products with rows stay in int64 */
};

la_status la_latent_check_desc(const la_model_desc *d)
{
    la_status st;
    LA_TRY(la_check_int("attn", d->attn, LA_ATTN_HEADS, LA_ATTN_LATENT));
    if (d->attn == LA_ATTN_HEADS) {
        LA_TRY(la_check_int("kv_rank", d->kv_rank, 0, 0));
        LA_TRY(la_check_int("q_rank", d->q_rank, 0, 0));
        return LA_OK;
    }
    LA_TRY(la_check_int("kv_rank", d->kv_rank, 4, MOST_RANK));
    LA_TRY(la_check_int("q_rank", d->q_rank, 0, MOST_QUERY_RANK));
    LA_TRY(la_check_int("d_nope", d->d_nope, 1, d->d_head));
    LA_TRY(la_check_int("d_v", d->d_v, 1, MOST_VALUE));
    LA_TRY(la_check_int("d_rope", d->d_rope, 2, d->d_head));
    LA_TRY(la_check_int("n_kv_heads", d->n_kv_heads, 1, 1));
    LA_TRY(
        la_check_int("n_heads", d->n_heads, 1, MOST_COLUMNS / (d->kv_rank + d->d_rope + d->d_v)));
    LA_TRY(la_check_int("qk_norm", d->qk_norm, LA_QK_NORM_NONE, LA_QK_NORM_NONE));
    if (d->kv_rank % 4 != 0 || d->d_nope + d->d_rope != d->d_head) {
        return la_fail(
            LA_ERR_ARGUMENT,
            "kv_rank, d_nope, d_rope, d_head: %d, %d, %d, %d; kv_rank is a multiple of 4 and "
            "d_head the sum of the others",
            d->kv_rank, d->d_nope, d->d_rope, d->d_head);
    }
    if (d->kv_form == LA_KV_I8) {
        return la_fail(LA_ERR_UNSUPPORTED, "kv_form: latents are kept as f32, bf16 or f8, not i8");
    }
    if (!(d->latent_eps > 0.0f && d->latent_eps < 1.0f)) {
        return la_fail(LA_ERR_ARGUMENT, "latent_eps: expected 0 to 1, got %g", d->latent_eps);
    }
done:
    return st;
}

size_t la_head_matrix_bytes(const la_head_matrix *m)
{
    return m->head_bytes * (size_t)m->n_heads;
}

/* The rows of head h. */
static la_source rows_of(const la_source *part, int n_heads, int h)
{
    la_source s = *part;
    s.rows /= n_heads;
    s.bytes /= (size_t)n_heads;
    s.data = part->data != NULL ? (const uint8_t *)part->data + s.bytes * (size_t)h : NULL;
    return s;
}

la_status la_latent_plan(const la_model_desc *d, la_recipe recipe, const la_source *part,
                         la_head_matrix *out)
{
    la_format f = {LA_PACK_F32, 0, 0, 0, 0};
    la_source one = rows_of(part, d->n_heads, 0);
    la_dtype form = recipe.floats != LA_DTYPE_COUNT ? recipe.floats : part->dtype;
    if (form != LA_F16 && form != LA_BF16) { /* blocks of codes and fp32 */
        form = la_act_is_float(d->activation) ? LA_F32 : LA_BF16;
    }
    if (form != LA_F32) {
        f.pack = form == LA_F16 ? LA_PACK_F16 : LA_PACK_BF16;
    }
    *out = (la_head_matrix){.n_heads = d->n_heads, .rounding = part->rounding};
    la_status st = la_pack_plan(f, &one, 1, 0, &out->one);
    out->head_bytes = (size_t)out->one.n_units * out->one.unit_bytes;
    return st;
}

void la_latent_clear(la_arena *weights, la_head_matrix *m)
{
    if (m->n_heads != 0) {
        la_arena_give(weights, m->one.data, la_head_matrix_bytes(m));
    }
    *m = (la_head_matrix){.n_heads = 0};
}

la_status la_latent_set(la_model *m, la_head_matrix *dst, const la_source *part)
{
    la_status st;
    la_head_matrix fresh;
    LA_TRY(la_latent_plan(&m->desc, m->recipe, part, &fresh));
    fresh.one.data = la_arena_take(&m->weights, la_head_matrix_bytes(&fresh));
    if (fresh.one.data == NULL) {
        fresh.n_heads = 0;
        return la_fail(LA_ERR_MEMORY, "weights: cannot map %zu bytes",
                       fresh.head_bytes * (size_t)m->desc.n_heads);
    }
    for (int h = 0; h < fresh.n_heads; h++) {
        la_weight w = fresh.one;
        la_source own = rows_of(part, fresh.n_heads, h);
        w.data += fresh.head_bytes * (size_t)h;
        LA_TRY(m->b->ops->pack(m->b, &w, &own, 1, 0));
    }
    la_latent_clear(&m->weights, dst);
    *dst = fresh;
    return LA_OK;
done:
    la_latent_clear(&m->weights, &fresh);
    return st;
}
