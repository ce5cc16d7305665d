/* rt_cuda.h - streams and events as the two files of the CUDA runtime see them.
 *
 * Owns what la_rt_stream and la_rt_event are made of: rt_cuda.cu opens and closes them, rt_cuda_others.cu ties them to
 * streams of other libraries. Included by these two.
 */
#ifndef LA_RT_CUDA_H
#define LA_RT_CUDA_H

#include "la_rt.h"

#include <cuda_runtime.h>

struct la_rt_stream {
    la_rt *rt;
    cudaStream_t s;
    int launches; /* of the graph that is being noted */
};

struct la_rt_event {
    la_rt *rt;
    cudaEvent_t e;
};

#endif
