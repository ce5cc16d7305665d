/* part_rows.c - see part_rows.h. */
#include "part_rows.h"

#include <math.h>

#include "../base/base.h"
#include "slots.h"

int la_part_is_ordered(const la_source *part)
{
    return la_plain_of((int)part->dtype).ordered;
}

int la_parts_same_rows(const la_source *a, const la_source *b)
{
    int n = la_part_is_ordered(a) + la_part_is_ordered(b);
    if (memcmp(&a->rounding, &b->rounding, sizeof a->rounding) != 0) {
        return 0;
    }
    if (n != 2 || a->order == NULL || b->order == NULL) {
        return n != 1;
    }
    return memcmp(a->order, b->order, (size_t)a->cols * sizeof *a->order) == 0;
}

static la_status check_order(la_slot slot, const la_source *part)
{
    if (slot == LA_EMBED || slot == LA_POS_EMBED) {
        return la_fail(LA_ERR_SHAPE, "%s: columns in another order than the layer's",
                       la_slot_name(slot));
    }
    for (int k = 0; part->order != NULL && k < part->cols; k++) {
        if (part->order[k] < 0 || part->order[k] >= part->cols) {
            return la_fail(LA_ERR_SHAPE, "%s: column %d is said to be number %d of %d",
                           la_slot_name(slot), k, (int)part->order[k], part->cols);
        }
    }
    return LA_OK;
}

static la_status check_rounding(la_slot slot, const la_source *part, int activation)
{
    la_rounding r = part->rounding;
    if (r.kind == LA_ROUND_NONE) {
        return LA_OK;
    }
    const char *name = la_slot_name(slot);
    if (r.kind < 0 || r.kind >= LA_ROUND_COUNT) {
        return la_fail(LA_ERR_SHAPE, "%s: rows are rounded in way %d, which is none", name, r.kind);
    }
    if (r.group < 0) {
        return la_fail(LA_ERR_SHAPE, "%s: rows are rounded by groups of %d", name, r.group);
    }
    if (!isfinite(r.scale) || r.scale < 0.0f) {
        return la_fail(LA_ERR_SHAPE, "%s: rows are rounded with a scale of %g", name,
                       (double)r.scale);
    }
    if (r.kind == LA_ROUND_I8_OFFSET && r.scale != 0.0f) {
        return la_fail(LA_ERR_SHAPE,
                       "%s: rows are rounded about an offset with a fixed scale of %g", name,
                       (double)r.scale);
    }
    if (!la_act_is_float(activation)) {
        return la_fail(LA_ERR_SHAPE, "%s: rows are rounded before products that are not of fp32",
                       name);
    }
    return LA_OK;
}

la_status la_part_check_rows(la_slot slot, const la_source *part, int activation)
{
    la_status st = LA_OK;
    if (la_part_is_ordered(part) && la_slot_is_per_head(slot)) {
        return la_fail(LA_ERR_UNSUPPORTED,
                       "%s: matrices of heads whose columns are in activation order",
                       la_slot_name(slot));
    }
    if (la_part_is_ordered(part)) {
        LA_TRY(check_order(slot, part));
    }
    LA_TRY(check_rounding(slot, part, activation));
done:
    return st;
}

la_status la_part_order(int32_t **dst, const la_source *part)
{
    size_t n = (size_t)part->cols;
    if (!la_part_is_ordered(part)) {
        return LA_OK;
    }
    if (part->order == NULL) {
        return la_fail(LA_ERR_ARGUMENT, "weights: a part in another order comes without it");
    }
    *dst = la_alloc(n, sizeof **dst);
    if (*dst == NULL) {
        return la_fail(LA_ERR_MEMORY, "weights: out of memory for the order of %zu columns", n);
    }
    memcpy(*dst, part->order, n * sizeof **dst);
    return LA_OK;
}
