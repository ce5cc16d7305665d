/* slots.h - expected shapes of tensor slots; see slots.c. */
#ifndef LA_SLOTS_H
#define LA_SLOTS_H

#include "backend.h"

typedef struct la_shape {
    int is_vector;
    int rows[3]; /* rows of each part; vectors: their lengths */
    int n_parts;
    int cols;      /* matrices */
    int more_rows; /* the checkpoint may have more rows than are used */
} la_shape;

la_shape la_slot_shape(const la_model_desc *d, la_slot slot);
/* Slot, layer, number of parts, shapes, types and byte counts (data may be NULL). */
la_status la_slot_check(const la_model_desc *d, la_slot slot, int layer, const la_source *parts,
                        int n_parts);

#endif
