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
    int64_t changes;  /* of what models are made of: graphs hold its addresses */
    uint8_t *staging; /* [LA_CUDA_STAGING] pinned */
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

/* Of la_backend_ops. */
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
