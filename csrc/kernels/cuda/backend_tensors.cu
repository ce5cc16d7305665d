/* backend_tensors.cu - memory for tensors of users, and streams of others before and after ours.
 *
 * Owns the device's side of device.h: every call is a turn on the one stream that steps use, so tensors and models
 * keep an order among them without a wait. Invariant: a block that goes is used by nobody any more, since a free waits
 * for the whole device. In the table of backend.cu.
 */
#include "backend_device.h"

#include <string.h>

namespace {

int number(const la_backend *b)
{
    return la_cuda_of(b)->number;
}

/* Pieces of at most the staging buffer, each done before the next. */
template <class F> la_status in_pieces(la_cuda *cuda, size_t bytes, F move)
{
    for (size_t at = 0; at < bytes; at += LA_CUDA_STAGING) {
        size_t left = bytes - at, n = left < LA_CUDA_STAGING ? left : LA_CUDA_STAGING;
        if (move(at, n) != 0) {
            return la_cuda_failed(cuda);
        }
    }
    return LA_OK;
}

la_status upload(la_backend *b, void *dst, const void *src, size_t bytes)
{
    la_cuda_turn turn(b);
    return la_cuda_upload(turn.cuda, dst, src, bytes);
}

la_status download(la_backend *b, void *dst, const void *src, size_t bytes)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    return in_pieces(cuda, bytes, [&](size_t at, size_t n) {
        la_rt_copy(cuda->s, cuda->staging, static_cast<const uint8_t *>(src) + at, n, LA_RT_OUT);
        int bad = la_rt_stream_wait(cuda->s);
        if (bad == 0) {
            memcpy(static_cast<uint8_t *>(dst) + at, cuda->staging, n);
        }
        return bad;
    });
}

la_status alloc(la_backend *b, size_t bytes, void **out)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    *out = la_cuda_map(b, bytes);
    if (*out == NULL && la_rt_error(cuda->rt)[0] != '\0') {
        return la_cuda_failed(cuda);
    }
    return *out != NULL ? LA_OK
                        : cuda->host->fail(LA_ERR_MEMORY, "no memory for %zu bytes on cuda:%d",
                                           bytes, cuda->number);
}

void release(la_backend *b, void *p)
{
    la_cuda_unmap(b, p, 0);
}

int reaches(la_backend *b, const void *p, size_t bytes)
{
    la_cuda_turn turn(b);
    return la_rt_reaches(turn.cuda->rt, p, bytes);
}

uint64_t stream(la_backend *b)
{
    return la_rt_stream_number(la_cuda_of(b)->s);
}

la_status follow(la_backend *b, uint64_t other)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    if (!turn.ok) {
        return la_cuda_failed(cuda);
    }
    la_rt_event_record(cuda->passing, cuda->s);
    if (la_rt_event_hold(cuda->passing, other) != 0) {
        return la_rt_error(cuda->rt)[0] != '\0'
                   ? la_cuda_failed(cuda)
                   : cuda->host->fail(LA_ERR_ARGUMENT, "stream: %llu is no stream of cuda:%d",
                                      (unsigned long long)other, cuda->number);
    }
    return LA_OK;
}

la_status wait(la_backend *b)
{
    la_cuda_turn turn(b);
    return la_rt_stream_wait(turn.cuda->s) == 0 ? LA_OK : la_cuda_failed(turn.cuda);
}

la_device_ops make_ops()
{
    la_device_ops o = {};
    o.number = number;
    o.alloc = alloc;
    o.free = release;
    o.upload = upload;
    o.download = download;
    o.reaches = reaches;
    o.stream = stream;
    o.follow = follow;
    o.wait = wait;
    o.norm = la_cuda_norm;
    o.elements = la_cuda_elements;
    o.rope = la_cuda_rope;
    o.store = la_cuda_store;
    o.attend = la_cuda_attend_tensors;
    o.linear = la_cuda_linear_tensors;
    o.best = la_cuda_best;
    return o;
}

} // namespace

la_status la_cuda_failed(const la_cuda *cuda)
{
    return cuda->host->fail(LA_ERR_SYSTEM, "backend: cuda: %s", la_rt_error(cuda->rt));
}

la_status la_cuda_upload(la_cuda *cuda, void *dst, const void *src, size_t bytes)
{
    return in_pieces(cuda, bytes, [&](size_t at, size_t n) {
        memcpy(cuda->staging, static_cast<const uint8_t *>(src) + at, n);
        la_rt_copy(cuda->s, static_cast<uint8_t *>(dst) + at, cuda->staging, n, LA_RT_IN);
        return la_rt_stream_wait(cuda->s);
    });
}

extern const la_device_ops la_cuda_device_ops = make_ops();
