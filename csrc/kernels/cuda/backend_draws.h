/* backend_draws.h - a step's draws, as backend.cu asks for them.
 *
 * Owns nothing: the room and its layout are backend_draws.cu's. Two steps may be under way, in turns of 0 and 1,
 * with pinned memory of their own; on the device one follows the other. A step is la_draws_pack (what rows ask for, to
 * the device), la_draws_launch for every tile of logits, la_draws_host for those rows of a tile that the device
 * does not draw, la_draws_fetch, and, once that was waited for, la_draws_give. Included by backend*.cu.
 */
#ifndef LA_BACKEND_DRAWS_H
#define LA_BACKEND_DRAWS_H

#include "backend_device.h"
#include "sample.h"

/* Where the arrays of draws lie, in pinned memory and, from `begin` on, in la_workspace.shared. */
typedef struct la_draws_layout {
    size_t begin, rules, words, drawn, tops, host, bytes; /* all but the first count from `begin` */
    int n_words, n_tops;                                  /* most of a step */
} la_draws_layout;

la_draws_layout la_draws_layout_of(const la_model_desc *d, const la_limits *limits, size_t begin);

/* What la_draws_open takes of the host's memory. */
size_t la_draws_host_bytes(const la_cuda *cuda, const la_model_desc *d, const la_limits *limits);

typedef struct la_draws la_draws;

la_status la_draws_open(la_cuda *cuda, const la_model *m, const la_workspace *w,
                        const la_limits *limits, size_t begin, la_draws **out);
void la_draws_close(la_cuda *cuda, la_draws *own);

/* Rows that the host draws of, or wants logits of. */
int la_draws_hosted(const la_batch *batch);
/* Rows from 0 on, as many as there is room for; returns the end of them. Where that is the last, others that want
 * nothing follow up to `size`. */
int la_draws_pack(la_draws *own, const la_ctx *c, int turn, int size);
/* Tokens, and those rows' newest tokens, that the step before draws. */
void la_draws_resume(la_draws *own, const la_ctx *c, int32_t *tokens);
/* Draws of the batch's rows first .. first + logits.n - 1; waits and packs again where they were not packed. */
void la_draws_launch(la_draws *own, la_ctx *c, int first, la_rows logits, float *scratch);
void la_draws_host(la_draws *own, la_ctx *c, int first, la_rows logits);
void la_draws_fetch(la_draws *own, const la_ctx *c);
void la_draws_give(const la_draws *own, const la_batch *batch, int turn);
/* la_backend_ops.draws_ahead */
int la_draws_ahead(const la_sampling *p);

#endif
