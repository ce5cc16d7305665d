/* slots.h - what descriptions and tensor slots must look like.
 *
 * Implemented by desc.c (ranges of a description) and slots.c (slots, their shapes and layers); called by
 * model.c, latent.c and part_rows.c. Invariant: what passes is what the forward pass reads.
 */
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

la_status la_desc_check(const la_model_desc *d);

la_shape la_slot_shape(const la_model_desc *d, la_slot slot);
/* Do heads have weights of a norm? */
int la_heads_have_norms(const la_model_desc *d);
/* Has the model it once, rather than each layer? */
int la_slot_is_of_model(la_slot slot);
/* Is it one of layers with experts? */
int la_slot_is_routed(la_slot slot);
/* Is it a small matrix for each head (latent.c)? */
int la_slot_is_per_head(la_slot slot);
/* Has every expert its own? */
int la_slot_is_per_expert(la_slot slot);
/* How often a layer has it: once, or once for each expert. */
int la_slot_experts(const la_model_desc *d, la_slot slot);
enum { LA_SLOT_PLACE = 64 };
/* "o (layer 3)", or the name alone where the layer is negative or the slot the model's; lies in room. */
const char *la_slot_place(la_slot slot, int layer, char room[LA_SLOT_PLACE]);
/* Does this layer have such a slot? */
la_status la_slot_check_layer(const la_model_desc *d, la_slot slot, int layer);
/* Number of parts, shapes, types and byte counts (data may be NULL) under a checked desc; the layer is for
 * messages, negative: of none. */
la_status la_slot_check(const la_model_desc *d, la_slot slot, int layer, const la_source *parts,
                        int n_parts);

/* The matrix that a slot or its bias belongs to, NULL: none; the vector of the other slots. The slot, layer and
 * expert are checked. */
la_matrix *la_matrix_of(la_model *m, la_slot slot, int layer, int expert);
float **la_vector_of(la_model *m, la_slot slot, int layer);

#endif
