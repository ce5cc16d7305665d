/* vectors.c - norms, biases and the like: tensors of one row, as floats where the backend reads them.
 *
 * Owns their conversion and the order of a bias. Invariant: they are padded with zeros to whole units, and
 * a slot keeps what it had where a call fails. Declared in backend.h; called by model.c.
 */
#include "backend.h"

/* Hands n floats over in place of what *dst had. */
static la_status replace(la_backend *b, float **dst, float *v, size_t n)
{
    float *kept = b->ops->keep(b, v, n * sizeof *v);
    if (kept == NULL) {
        return la_fail(LA_ERR_MEMORY, "weights: no memory for a vector of %zu", n);
    }
    b->ops->drop(b, *dst);
    *dst = kept;
    return LA_OK;
}

la_status la_vector_set(la_backend *b, float **dst, const la_source *src)
{
    size_t n = la_round_up((size_t)src->cols, 16);
    float *v = la_alloc(n, sizeof(float));
    if (v == NULL) {
        return la_fail(LA_ERR_MEMORY, "weights: out of memory for a vector of %d", src->cols);
    }
    la_pack_vector(src, v);
    return replace(b, dst, v, n);
}

/* Biases follow the columns of the packed units: parts one after another, pairs 16 + 16. */
la_status la_bias_set(la_backend *b, la_matrix *m, const la_source *parts, int n_parts, int paired)
{
    size_t total = LA_UNIT, widest = 0;
    for (int i = 0; i < n_parts; i++) {
        size_t n = (size_t)parts[i].cols;
        total += la_round_up(n, LA_UNIT);
        widest = n > widest ? n : widest;
    }
    float *all = la_alloc(total, sizeof(float)), *v = la_alloc(widest, sizeof(float));
    if (all == NULL || v == NULL) {
        la_free(all);
        la_free(v);
        return la_fail(LA_ERR_MEMORY, "weights: out of memory for a bias");
    }
    size_t at = 0;
    for (int i = 0; i < n_parts; i++) {
        la_pack_vector(&parts[i], v);
        for (int j = 0; j < parts[i].cols; j++) {
            all[paired ? (size_t)(j / 16 * 32 + i * 16 + j % 16) : at + (size_t)j] = v[j];
        }
        at += (size_t)parts[i].cols;
    }
    la_free(v);
    return replace(b, &m->bias, all, total);
}
