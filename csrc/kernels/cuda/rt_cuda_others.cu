/* rt_cuda_others.cu - streams and memory of other libraries in this process, by the CUDA runtime.
 *
 * Owns the calls of la_rt.h that name what others made. Invariant: what they hand over may be wrong, so an error here
 * is the caller's answer and never becomes the device's. CUDA's own handles of the default streams are DLPack's
 * numbers, 1 and 2. Called through la_rt.h.
 */
#include "rt_cuda.h"

static_assert(sizeof(cudaStream_t) == sizeof(uint64_t), "a handle is a number of 64 bits");

extern "C" {

uint64_t la_rt_stream_number(const la_rt_stream *s)
{
    return reinterpret_cast<uint64_t>(s->s);
}

int la_rt_event_hold(la_rt_event *e, uint64_t number)
{
    cudaStream_t other = reinterpret_cast<cudaStream_t>(number);
    if (la_rt_error(e->rt)[0] != '\0') {
        return -1;
    }
    if (cudaStreamWaitEvent(other, e->e, 0) != cudaSuccess) {
        (void)cudaGetLastError();
        return -1;
    }
    return 0;
}

int la_rt_reaches(la_rt *rt, const void *p, size_t bytes)
{
    const uint8_t *first = static_cast<const uint8_t *>(p);
    const uint8_t *ends[2] = {first, first + (bytes > 0 ? bytes - 1 : 0)};
    int device = -1, there = la_rt_enter(rt) == 0 && cudaGetDevice(&device) == cudaSuccess;
    for (int i = 0; there && i < 2; i++) {
        cudaPointerAttributes at;
        there = cudaPointerGetAttributes(&at, ends[i]) == cudaSuccess &&
                at.type == cudaMemoryTypeDevice && at.device == device;
    }
    (void)cudaGetLastError();
    return there;
}

} // extern "C"
