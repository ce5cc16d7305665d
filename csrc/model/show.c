/* show.c - weights of a model as others see them: where they lie, and as floats.
 *
 * Owns no state. Invariant: only memory that host code may follow is shown; what is shown stays as it is
 * until the slot is set again or the model freed, which whoever shows it on has to prevent. Called by
 * python/py_model.c.
 */
#include "slots.h"

typedef struct place {
    la_slot slot;
    int layer, expert, part;
    la_shape shape; /* from here on found */
    int rows;       /* of the part; of a vector its length */
    int first;      /* of those before it */
} place;

/* Checks the place and fills in the rest of it. */
static la_status find(la_model *m, place *p)
{
    la_status st;
    const la_model_desc *d = &m->desc;
    if (m->b->ops->unpack == NULL) {
        return la_fail(LA_ERR_UNSUPPORTED, "weights: they lie on a device in this version");
    }
    LA_TRY(la_slot_check_layer(d, p->slot, p->layer));
    int experts = la_slot_is_per_expert(p->slot) ? d->n_experts : 1;
    LA_TRY(la_check_int("expert", p->expert, 0, experts - 1));
    p->shape = la_slot_shape(d, p->slot);
    LA_TRY(la_check_int("part", p->part, 0, p->shape.n_parts - 1));
    p->rows = p->shape.rows[p->part];
    for (int i = 0; i < p->part; i++) {
        p->first += p->shape.rows[i];
    }
done:
    return st;
}

static la_status not_set(const place *p)
{
    char room[LA_SLOT_PLACE];
    return la_fail(LA_ERR_STATE, "%s: not set", la_slot_place(p->slot, p->layer, room));
}

static la_dtype float_of(la_format f)
{
    static const la_dtype types[] = {LA_F32, LA_F16, LA_BF16}; /* LA_PACK_F32, .. */
    return f.pack <= LA_PACK_BF16 ? types[f.pack] : LA_DTYPE_COUNT;
}

static la_status show_vector(la_model *m, const place *p, la_shown *out)
{
    const la_matrix *of = la_matrix_of(m, p->slot, p->layer, p->expert);
    const float *v = of != NULL ? of->bias : *la_vector_of(m, p->slot, p->layer);
    if (v == NULL) {
        return not_set(p);
    }
    int paired = of != NULL && of->paired && p->shape.n_parts == 2, all = 0;
    for (int i = 0; i < p->shape.n_parts; i++) {
        all += p->shape.rows[i];
    }
    *out = (la_shown){.data = v, .dtype = LA_F32, .rows = p->rows, .paired = paired};
    out->first = paired ? 16 * p->part : p->first;
    /* pairs take turns 16 + 16, so what is shown ends with a whole unit */
    out->bytes = sizeof(float) * (paired ? la_round_up((size_t)p->rows, 16) * 2 : (size_t)all);
    return LA_OK;
}

static la_status show_heads(la_model *m, const place *p, la_shown *out)
{
    const la_latent *l = &m->layers[p->layer].latent;
    const la_head_matrix *of = p->slot == LA_MLA_UK ? &l->uk : &l->uv;
    if (of->n_heads == 0) {
        return not_set(p);
    }
    *out = (la_shown){.data = of->one.data,
                      .bytes = la_head_matrix_bytes(of),
                      .unit_bytes = of->one.unit_bytes,
                      .dtype = LA_DTYPE_COUNT, /* units of heads do not follow each other by rows */
                      .rows = of->n_heads * of->one.N,
                      .cols = of->one.K};
    return LA_OK;
}

/* The weight of a matrix that holds the part. */
static int weight_of(const la_matrix *of, const place *p)
{
    return of->n_parts > 1 ? p->part : 0;
}

static la_status show_matrix(la_model *m, const place *p, la_shown *out)
{
    const la_matrix *of = la_matrix_of(m, p->slot, p->layer, p->expert);
    if (of->n_parts == 0) {
        return not_set(p);
    }
    int i = weight_of(of, p);
    const la_weight *w = &of->part[i];
    *out = (la_shown){.data = w->data,
                      .bytes = (size_t)w->n_units * w->unit_bytes,
                      .unit_bytes = w->unit_bytes,
                      .dtype = of->order[i] == NULL ? float_of(w->f) : LA_DTYPE_COUNT,
                      .rows = p->shape.n_parts == 1 ? w->N : p->rows, /* positions may be more */
                      .cols = w->K,
                      .paired = of->paired};
    out->first = of->paired ? 16 * p->part : of->n_parts > 1 ? 0 : p->first;
    return LA_OK;
}

la_status la_model_show(la_model *m, la_slot slot, int layer, int expert, int part, la_shown *out)
{
    place p = {.slot = slot, .layer = layer, .expert = expert, .part = part};
    *out = (la_shown){.data = NULL};
    la_status st;
    LA_TRY(find(m, &p));
    if (p.shape.is_vector) {
        LA_TRY(show_vector(m, &p, out));
    }
    else if (la_slot_is_per_head(p.slot)) {
        LA_TRY(show_heads(m, &p, out));
    }
    else {
        LA_TRY(show_matrix(m, &p, out));
    }
done:
    return st;
}

/* Row r of what is shown, among the rows of all units. */
static int row_of(const la_shown *s, int r)
{
    return s->paired ? r / 16 * LA_UNIT + s->first + r % 16 : s->first + r;
}

static void copy_heads(la_model *m, const place *p, float *out)
{
    const la_latent *l = &m->layers[p->layer].latent;
    const la_head_matrix *of = p->slot == LA_MLA_UK ? &l->uk : &l->uv;
    for (int h = 0; h < of->n_heads; h++) {
        la_weight w = of->one;
        w.data += of->head_bytes * (size_t)h;
        for (int r = 0; r < w.N; r++, out += w.K) {
            m->b->ops->unpack(m->b, &w, r, out);
        }
    }
}

/* order: which k of a row each k of the weight is. */
static void in_order(const int32_t *order, const float *row, int K, float *out)
{
    for (int k = 0; k < K; k++) {
        out[order[k]] = row[k];
    }
}

la_status la_model_copy(la_model *m, la_slot slot, int layer, int expert, int part, float *out)
{
    place p = {.slot = slot, .layer = layer, .expert = expert, .part = part};
    la_shown s;
    float *row = NULL;
    la_status st;
    LA_TRY(la_model_show(m, slot, layer, expert, part, &s));
    LA_TRY(find(m, &p));
    if (p.shape.is_vector) {
        for (int r = 0; r < s.rows; r++) {
            out[r] = ((const float *)s.data)[row_of(&s, r)];
        }
        return LA_OK;
    }
    if (la_slot_is_per_head(p.slot)) {
        copy_heads(m, &p, out);
        return LA_OK;
    }
    const la_matrix *of = la_matrix_of(m, p.slot, p.layer, p.expert);
    int i = weight_of(of, &p);
    row = la_alloc((size_t)s.cols, sizeof *row);
    if (row == NULL) {
        return la_fail(LA_ERR_MEMORY, "weights: out of memory for a row of %d", s.cols);
    }
    for (int r = 0; r < s.rows; r++, out += s.cols) {
        float *to = of->order[i] != NULL ? row : out;
        m->b->ops->unpack(m->b, &of->part[i], row_of(&s, r), to);
        if (to == row) {
            in_order(of->order[i], row, s.cols, out);
        }
    }
done:
    la_free(row);
    return st;
}
