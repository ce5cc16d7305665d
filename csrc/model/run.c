/* run.c - a finished model at work: steps and their results, and reading of all its weights.
 *
 * Owns no state: it asks the model's backend. Invariant: a backend without `results` has them when a
 * step returns. Called by the engine through model.h, and by python/py_model.c.
 */
#include "backend.h"

la_status la_model_read(la_model *m, int pattern, double seconds, double *gb_per_s)
{
    *gb_per_s = 0.0;
    if (!m->ready) {
        return la_fail(LA_ERR_STATE, "read: this model is not finished");
    }
    if (pattern < 0 || pattern >= LA_READ_PATTERNS) {
        return la_fail(LA_ERR_ARGUMENT, "pattern: expected 0 to %d, got %d", LA_READ_PATTERNS - 1,
                       pattern);
    }
    if (!(seconds >= 0.0 && seconds <= 60.0)) {
        return la_fail(LA_ERR_ARGUMENT, "seconds: expected 0 to 60, got %g", seconds);
    }
    return m->b->ops->read_weights(m, pattern, seconds, gb_per_s);
}

const la_model_desc *la_model_desc_of(const la_model *m)
{
    return &m->desc;
}

int la_model_ready(const la_model *m)
{
    return m->ready;
}

int la_model_shows_states(const la_model *m)
{
    return m->b->ops->capture != NULL;
}

la_status la_model_forward(la_model *m, la_kv *kv, la_workspace *w, const la_batch *batch)
{
    la_ctx proto = {m->b, m, kv, w, batch, 0, 1};
    return m->b->ops->run(m->b, la_forward, &proto);
}

la_status la_model_results(la_model *m, la_workspace *w)
{
    return m->b->ops->results != NULL ? m->b->ops->results(w) : LA_OK;
}

la_status la_model_alive(const la_model *m)
{
    return m->b->ops->alive != NULL ? m->b->ops->alive(m->b) : LA_OK;
}

int la_model_ahead(const la_model *m)
{
    return m->b->ops->results != NULL;
}

int la_model_draws_ahead(const la_model *m, const la_sampling *p)
{
    return m->b->ops->results != NULL && m->b->ops->draws_ahead(p);
}
