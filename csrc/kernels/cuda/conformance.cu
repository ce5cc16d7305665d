/* conformance.cu - the conformance kernels on a GPU; see conformance.h.
 *
 * Owns the device's half of la_conform_run, over the CUDA runtime and the driver's tensor maps, found at run
 * time. Built apart from the backend, for the run that records golden vectors. Invariant: a failure is a
 * reason in the caller's buffer. Compiled for sm_90a alone.
 */
#include <cuda.h>
#include <cuda_runtime.h>
#include <stdio.h>
#include <string.h>

#include "conformance.h"

#define ROW(name, threads, blocks, cluster, ...) \
    {name, LA_ENTRY(__VA_ARGS__), threads, blocks, cluster},

static const la_conform_entry *la_conform_table(int *n)
{
    static const la_conform_entry table[] = {LA_CONFORM_ALL(ROW)};
    *n = (int)(sizeof table / sizeof table[0]);
    return table;
}

extern "C" __attribute__((visibility("default"))) const char *la_conform_name(int i)
{
    int n;
    const la_conform_entry *table = la_conform_table(&n);
    return i < n ? table[i].name : NULL;
}

/* Names the first call that failed. */
static int la_conform_check(cudaError_t status, const char *what, char *error, size_t n)
{
    if (status != cudaSuccess) {
        snprintf(error, n, "%s: %s", what, cudaGetErrorString(status));
        return -1;
    }
    return 0;
}

static int la_conform_map(la_tensor_map *map, const la_tensor_shape *s, void *base, char *error,
                          size_t n)
{
    static_assert(sizeof *map == sizeof(CUtensorMap), "a tensor map has 128 bytes");
    const CUtensorMapDataType types[] = {
        CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_UINT16,
        CU_TENSOR_MAP_DATA_TYPE_UINT32, CU_TENSOR_MAP_DATA_TYPE_UINT64}; /* of 1, 2, 4, 8 bytes */
    const CUtensorMapSwizzle modes[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                        CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
    const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    cuuint64_t dims[5], stride[4];
    cuuint32_t box[5];
    int log = 0;
    while (log < 3 && (1 << log) < s->element_bytes) {
        log++;
    }
    for (int i = 0; i < s->rank; i++) {
        dims[i] = s->dims[i];
        box[i] = s->box[i];
        if (i) {
            stride[i - 1] = s->stride[i - 1];
        }
    }
    void *function = NULL;
    cudaDriverEntryPointQueryResult found;
    cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                          12000, cudaEnableDefault, &found);
    if (la_conform_check(status, "cuTensorMapEncodeTiled", error, n) || !function) {
        return -1;
    }
    auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    CUresult result =
        encode(reinterpret_cast<CUtensorMap *>(map), types[log], (cuuint32_t)s->rank, base, dims,
               stride, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, modes[s->swizzle],
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        snprintf(error, n, "cuTensorMapEncodeTiled: error %d", (int)result);
        return -1;
    }
    return 0;
}

static int la_conform_launch(const la_conform_entry *e, la_conform_args *a, char *error, size_t n)
{
    cudaLaunchConfig_t config;
    memset(&config, 0, sizeof config);
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)e->cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.gridDim = dim3((unsigned)e->blocks, 1, 1);
    config.blockDim = dim3((unsigned)e->threads, 1, 1);
    config.dynamicSmemBytes = LA_CONFORM_SMEM;
    config.attrs = &cluster;
    config.numAttrs = 1;
    void *args[] = {a};
    cudaError_t status = cudaFuncSetAttribute(e->entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              LA_CONFORM_SMEM);
    if (la_conform_check(status, "cudaFuncSetAttribute", error, n)) {
        return -1;
    }
    status = cudaLaunchKernelExC(&config, e->entry, args);
    if (la_conform_check(status, "launch", error, n)) {
        return -1;
    }
    return la_conform_check(cudaDeviceSynchronize(), e->name, error, n);
}

/* Copies in, launches, copies out; the memory is its caller's. */
static int la_conform_on_device(const la_conform_entry *e, const la_conform_call *call, void *in,
                                void *out, char *error, size_t n)
{
    la_conform_args a;
    memset(&a, 0, sizeof a);
    memcpy(a.p, call->p, sizeof a.p);
    a.in = static_cast<const uint8_t *>(in);
    a.out = static_cast<uint8_t *>(out);
    cudaError_t status = cudaMemcpy(in, call->in, call->in_bytes, cudaMemcpyHostToDevice);
    if (status == cudaSuccess) {
        status = cudaMemcpy(out, call->out, call->out_bytes, cudaMemcpyHostToDevice);
    }
    if (la_conform_check(status, "copy in", error, n)) {
        return -1;
    }
    void *base = call->shape.base ? out : in;
    if (call->shape.rank && la_conform_map(&a.map, &call->shape, base, error, n)) {
        return -1;
    }
    if (la_conform_launch(e, &a, error, n)) {
        return -1;
    }
    status = cudaMemcpy(call->out, out, call->out_bytes, cudaMemcpyDeviceToHost);
    return la_conform_check(status, "copy out", error, n);
}

extern "C" __attribute__((visibility("default"))) int
la_conform_run(const char *name, const la_conform_call *call, char *error, size_t n)
{
    int count;
    const la_conform_entry *table = la_conform_table(&count);
    for (int i = 0; i < count; i++) {
        if (strcmp(table[i].name, name)) {
            continue;
        }
        void *in = NULL, *out = NULL;
        int status = la_conform_check(cudaMalloc(&in, call->in_bytes), "memory", error, n);
        if (!status) {
            status = la_conform_check(cudaMalloc(&out, call->out_bytes), "memory", error, n);
        }
        if (!status) {
            status = la_conform_on_device(&table[i], call, in, out, error, n);
        }
        cudaFree(in);
        cudaFree(out);
        return status;
    }
    snprintf(error, n, "no conformance kernel has the name %s", name);
    return -1;
}
