/* part_rows.h - which rows a part of a matrix multiplies: their order and how they are rounded first.
 *
 * Owns the checks of la_source.order and la_source.rounding, which come from files, and the copy of an
 * order that a matrix keeps. Invariant: an order that passed indexes inside the row. Called by model.c.
 */
#ifndef LA_PART_ROWS_H
#define LA_PART_ROWS_H

#include "../llmaccel.h"

int la_part_is_ordered(const la_source *part);
/* Do two parts take the same rows, k for k? Where only sizes are asked, it is assumed of their order. */
int la_parts_same_rows(const la_source *a, const la_source *b);
/* activation: la_act_form; rows are rounded before fp32 products alone. */
la_status la_part_check_rows(la_slot slot, const la_source *part, int activation);
/* A copy of the part's order [cols], or NULL where it has none. */
la_status la_part_order(int32_t **dst, const la_source *part);

#endif
