/* backend_device.h - what the files of the CUDA backend share: the device in use.
 *
 * Owns struct la_cuda. Memory and models (what is refused, how weights lie) are in backend_model.cu, steps
 * and opening in backend.cu. Invariant: the device's first failure stays, so a call after it does
 * nothing; a thread that uses it has a turn, since engines have threads of their own and the runtime takes
 * one at a time. Included by backend*.cu only.
 */
#ifndef LA_BACKEND_DEVICE_H
#define LA_BACKEND_DEVICE_H

#include <pthread.h>

#include "launch.h"

extern "C" {
#include "../../model/backend.h"
}

static const size_t LA_CUDA_STAGING = (size_t)16 << 20; /* bytes of an upload */

typedef struct la_cuda {
    la_backend head;
    const la_host_api *host;
    pthread_mutex_t turns; /* recursive */
    la_rt *rt;
    la_rt_stream *s;
    la_rt_info info;
    int number;           /* of the device */
    la_rt_event *passing; /* recorded for streams of others */
    uint8_t *room;        /* [room_bytes] scratch of kernels on tensors of users */
    size_t room_bytes;
    int32_t *counting; /* [n_counting] 0, 1, 2, .. */
    int n_counting;
    int64_t changes;           /* of what models are made of: graphs hold its addresses */
    uint8_t *staging;          /* [LA_CUDA_STAGING] pinned */
    struct la_cublas *library; /* of la_cuda_library, or NULL */
    int64_t library_products, library_refused; /* asked of it, and not done by it */
    char isa[16];
    const char *slots[1]; /* none */
} la_cuda;

static inline la_cuda *la_cuda_of(la_backend *b)
{
    return reinterpret_cast<la_cuda *>(b);
}

static inline const la_cuda *la_cuda_of(const la_backend *b)
{
    return reinterpret_cast<const la_cuda *>(b);
}

/* The device is this thread's for as long as the object lives; ok: it has not failed. */
struct la_cuda_turn {
    la_cuda *cuda;
    int ok;

    explicit la_cuda_turn(const la_backend *b) : cuda(const_cast<la_cuda *>(la_cuda_of(b)))
    {
        pthread_mutex_lock(&cuda->turns);
        ok = la_rt_enter(cuda->rt) == 0;
    }
    ~la_cuda_turn()
    {
        pthread_mutex_unlock(&cuda->turns);
    }
    la_cuda_turn(const la_cuda_turn &) = delete;
    la_cuda_turn &operator=(const la_cuda_turn &) = delete;
};

/* Widest K of any product. */
int la_cuda_widest(const la_model_desc *d);

/* Attention of a step (backend_attend.cu): where chunks of few tokens leave their results. */
typedef struct la_cuda_attend_room {
    int tokens;   /* of steps whose chunks are dealt out; 0: of none */
    size_t bytes; /* items, then partial results */
} la_cuda_attend_room;
la_cuda_attend_room la_cuda_attend_room_of(const la_model_desc *d, int T, int max_len);
/* Tiles of a run of n tokens from `token` on, which follow each other in a sequence, to `to`: as many as it returns, at
 * most la_cuda_attend_most for all runs of T tokens; those that count most tokens come first. */
int la_cuda_attend_tiles(la_attend_tile *to, int token, int n, int group);
static inline size_t la_cuda_attend_most(int T, int group)
{
    return (size_t)T * (size_t)((group + LA_ATTEND_ROWS - 1) / LA_ATTEND_ROWS);
}
/* Once a step, before its layers; then for each. pos, table, first of a->... are set, and tiles if there are any. */
void la_cuda_attend_begin(la_cuda *cuda, const la_cuda_attend_room *room, uint8_t *at,
                          const int32_t *pos, int n);
void la_cuda_attend(la_cuda *cuda, const la_cuda_attend_room *room, uint8_t *at,
                    la_attend_paged_args *a);

/* A linear layer of a step, heads left as raw rows. */
typedef struct la_cuda_linear_args {
    uint8_t *room; /* la_cuda_linear_bytes of the step's most rows, 256-byte aligned */
    const la_matrix *m;
    la_rows in, out;
    la_norm norm;
    const la_epilogue *epi;
} la_cuda_linear_args;
/* Rows that have entered times a weight, by the kernel of its format; partial: la_product_room(a->M) bytes. */
void la_cuda_multiply(la_cuda *cuda, const la_weight *w, const la_product_args *a, float *partial);
/* 4-bit codes that la_launch_product_w4 takes? */
int la_cuda_is_w4(const la_weight *w);
size_t la_cuda_linear_bytes(const la_model_desc *d, int T);
void la_cuda_linear(const la_ctx *c, const la_cuda_linear_args *l);

/* Products by a library (backend_fast.cu), of models with fast_math: la_cuda_fast_bytes of the step's most rows at
 * room, 256-byte aligned. 0: the library does not make this one, and nothing was asked for. */
size_t la_cuda_fast_bytes(const la_model_desc *d, int T);
int la_cuda_fast(const la_ctx *c, const la_product_args *a, int half, uint8_t *room);
/* Of la_backend_ops, for tensors of users (backend_tensors.cu). */
extern const la_device_ops la_cuda_device_ops;
/* What has failed, as an error. */
la_status la_cuda_failed(const la_cuda *cuda);
/* From host memory, done on return. */
la_status la_cuda_upload(la_cuda *cuda, void *dst, const void *src, size_t bytes);
/* Kernels of la_device_ops (backend_kernels.cu). */
la_status la_cuda_norm(la_backend *b, const la_device_norm *a);
la_status la_cuda_elements(la_backend *b, const la_device_elements *a);
la_status la_cuda_rope(la_backend *b, const la_device_rope *a);
la_status la_cuda_store(la_backend *b, const la_device_store *a);
la_status la_cuda_attend_tensors(la_backend *b, const la_device_attend *a);
la_status la_cuda_linear_tensors(la_backend *b, const la_device_linear *a);
la_status la_cuda_best(la_backend *b, const la_device_best *a);

/* Of la_backend_ops. */
la_status la_cuda_library(la_backend *b, const char *file, int loaded);
void *la_cuda_map(la_backend *b, size_t bytes);
void la_cuda_unmap(la_backend *b, void *p, size_t bytes);
void *la_cuda_reserve(la_backend *b, size_t bytes);
int la_cuda_commit(la_backend *b, void *p, size_t bytes);
void la_cuda_decommit(la_backend *b, void *p, size_t bytes);
void la_cuda_release(la_backend *b, void *p, size_t bytes);
void *la_cuda_keep(la_backend *b, void *host, size_t bytes);
void la_cuda_drop(la_backend *b, void *kept);
void la_cuda_copy(la_backend *b, void *dst, const void *src, size_t bytes);
la_status la_cuda_accept(const la_backend *b, const la_model_desc *d, la_recipe recipe);
la_status la_cuda_pack(la_backend *b, const la_weight *w, const la_source *parts, int n_parts,
                       int paired);

#endif
