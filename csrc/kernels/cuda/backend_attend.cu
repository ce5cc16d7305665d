/* backend_attend.cu - attention of a step: whose rows share a block, which steps have their chunks dealt out, and the
 * room for that.
 *
 * Owns both decisions, the second by the number of tokens alone, and the array of items that layers share. Invariant:
 * neither changes a bit (attention.cu), and no tile has tokens of two sequences. Called by backend.cu and
 * backend_kernels.cu.
 */
#include "backend_device.h"

static const size_t MOST_TOKENS = 32;
static const size_t MOST_BYTES = (size_t)128 << 20; /* of partial results */
static const size_t ITEMS = 256;                    /* bytes of items: 33 numbers */

la_cuda_attend_room la_cuda_attend_room_of(const la_model_desc *d, int T, int max_len)
{
    la_cuda_attend_room room = {0, 0};
    if (max_len <= LA_CHUNK || d->attn != LA_ATTN_HEADS) {
        return room;
    }
    size_t chunks = ((size_t)max_len + LA_CHUNK - 1) / LA_CHUNK;
    size_t token = chunks * (size_t)d->n_heads * (size_t)(d->d_head + 2) * sizeof(float);
    size_t tokens = MOST_BYTES / token;
    tokens = tokens < MOST_TOKENS ? tokens : MOST_TOKENS;
    room.tokens = (size_t)T < tokens ? T : (int)tokens;
    room.bytes = room.tokens > 0 ? ITEMS + (size_t)room.tokens * token : 0;
    return room;
}

void la_cuda_attend_begin(la_cuda *cuda, const la_cuda_attend_room *room, uint8_t *at,
                          const int32_t *pos, int n)
{
    if (n <= room->tokens) {
        la_chunks_args a = {pos, reinterpret_cast<int32_t *>(at), n};
        la_launch_chunks(cuda->s, &a);
    }
}

int la_cuda_attend_tiles(la_attend_tile *to, int token, int n, int group)
{
    int made = 0, last = (n * group - 1) / LA_ATTEND_ROWS;
    for (int i = last; i >= 0; i--) {
        la_attend_tile tile = {token, n, i * LA_ATTEND_ROWS};
        to[made++] = tile;
    }
    return made;
}

void la_cuda_attend(la_cuda *cuda, const la_cuda_attend_room *room, uint8_t *at,
                    la_attend_paged_args *a)
{
    int dealt = a->n <= room->tokens;
    la_attend_device on = {cuda->info.n_sms, (uint32_t)cuda->info.smem};
    a->items = dealt ? reinterpret_cast<int32_t *>(at) : NULL;
    a->partial = dealt ? reinterpret_cast<float *>(at + ITEMS) : NULL;
    la_launch_attend_paged(cuda->s, a, &on);
}
