/* fake_driver.cpp - as much of the CUDA runtime and driver as rt_cuda.cu needs for memory, kept on the host.
 *
 * Owns the rules of the driver's virtual memory: whole granules, mapped once, unmapped before their addresses go,
 * touched only after access was given (a page without it is PROT_NONE). fake_fail makes the n-th call of a name fail
 * with a code, fake_hide takes a driver call away, fake_left counts what was not given back. Streams, events, graphs
 * and launches do nothing. Built with rt_cuda.cu by test_cuda_driver.py, from the toolkit's headers.
 */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>
#include <string>

namespace {

constexpr size_t GRANULE = (size_t)2 << 20, MEMORY = (size_t)64 << 20;

struct world {
    std::map<std::string, int> calls, fail_at, code;
    std::string hidden;
    std::map<uint8_t *, size_t> ranges, plain;
    std::map<CUmemGenericAllocationHandle, int> handles; /* 1: mapped */
    std::map<uint8_t *, CUmemGenericAllocationHandle> mapped;
    CUmemGenericAllocationHandle next = 1;
    size_t used = 0;
};

world w;

int planned(const char *name)
{
    return ++w.calls[name] == w.fail_at[name] ? w.code[name] : 0;
}

#define MAY_FAIL(name)                       \
    if (int code_ = planned(name)) {         \
        return static_cast<CUresult>(code_); \
    }

uint8_t *at(CUdeviceptr p)
{
    return reinterpret_cast<uint8_t *>(p);
}

CUresult reserve(CUdeviceptr *out, size_t bytes, size_t, CUdeviceptr, unsigned long long)
{
    MAY_FAIL("cuMemAddressReserve")
    void *p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes % GRANULE != 0 || p == MAP_FAILED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    w.ranges[static_cast<uint8_t *>(p)] = bytes;
    *out = reinterpret_cast<CUdeviceptr>(p);
    return CUDA_SUCCESS;
}

CUresult release(CUdeviceptr p, size_t bytes)
{
    MAY_FAIL("cuMemAddressFree")
    auto first = w.mapped.lower_bound(at(p));
    if (w.ranges.count(at(p)) == 0 || w.ranges[at(p)] != bytes ||
        (first != w.mapped.end() && first->first < at(p) + bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    munmap(at(p), bytes);
    w.ranges.erase(at(p));
    return CUDA_SUCCESS;
}

CUresult create(CUmemGenericAllocationHandle *out, size_t bytes, const CUmemAllocationProp *prop,
                unsigned long long)
{
    MAY_FAIL("cuMemCreate")
    if (bytes != GRANULE || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
        prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (w.used + bytes > MEMORY) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    w.used += bytes;
    w.handles[w.next] = 0;
    *out = w.next++;
    return CUDA_SUCCESS;
}

CUresult drop(CUmemGenericAllocationHandle h)
{
    MAY_FAIL("cuMemRelease")
    if (w.handles.count(h) == 0 || w.handles[h] != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    w.handles.erase(h);
    w.used -= GRANULE;
    return CUDA_SUCCESS;
}

CUresult map_memory(CUdeviceptr p, size_t bytes, size_t offset, CUmemGenericAllocationHandle h,
                    unsigned long long)
{
    MAY_FAIL("cuMemMap")
    auto range = w.ranges.upper_bound(at(p));
    if (range == w.ranges.begin() || bytes != GRANULE || offset != 0 || w.handles.count(h) == 0 ||
        w.mapped.count(at(p)) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    --range;
    if ((size_t)(at(p) - range->first) % GRANULE != 0 ||
        at(p) + bytes > range->first + range->second) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    w.mapped[at(p)] = h;
    w.handles[h] = 1;
    return CUDA_SUCCESS;
}

CUresult unmap(CUdeviceptr p, size_t bytes)
{
    MAY_FAIL("cuMemUnmap")
    if (w.mapped.count(at(p)) == 0 || bytes != GRANULE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    w.handles[w.mapped[at(p)]] = 0;
    w.mapped.erase(at(p));
    madvise(at(p), bytes, MADV_DONTNEED);
    mprotect(at(p), bytes, PROT_NONE);
    return CUDA_SUCCESS;
}

CUresult access(CUdeviceptr p, size_t bytes, const CUmemAccessDesc *to, size_t n)
{
    MAY_FAIL("cuMemSetAccess")
    if (w.mapped.count(at(p)) == 0 || n != 1 || to->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    mprotect(at(p), bytes, PROT_READ | PROT_WRITE);
    return CUDA_SUCCESS;
}

CUresult granularity(size_t *out, const CUmemAllocationProp *, CUmemAllocationGranularity_flags)
{
    MAY_FAIL("cuMemGetAllocationGranularity")
    *out = GRANULE;
    return CUDA_SUCCESS;
}

const std::map<std::string, void *> DRIVER = {
    {"cuMemAddressReserve", reinterpret_cast<void *>(&reserve)},
    {"cuMemAddressFree", reinterpret_cast<void *>(&release)},
    {"cuMemCreate", reinterpret_cast<void *>(&create)},
    {"cuMemRelease", reinterpret_cast<void *>(&drop)},
    {"cuMemMap", reinterpret_cast<void *>(&map_memory)},
    {"cuMemUnmap", reinterpret_cast<void *>(&unmap)},
    {"cuMemSetAccess", reinterpret_cast<void *>(&access)},
    {"cuMemGetAllocationGranularity", reinterpret_cast<void *>(&granularity)},
};

} // namespace

extern "C" {

void fake_fail(const char *name, int n, int code)
{
    w.calls[name] = 0;
    w.fail_at[name] = n;
    w.code[name] = code;
}

void fake_hide(const char *name)
{
    w.hidden = name;
}

/* Ranges, handles and plain allocations that are there; then a fresh world, if nothing is. */
int fake_left(void)
{
    int left = (int)(w.ranges.size() + w.handles.size() + w.plain.size());
    if (left == 0) {
        w = world();
    }
    return left;
}

/* Of a driver that kept something: it is gone, and so is whatever made calls fail. */
void fake_forget(void)
{
    std::string hidden = w.hidden;
    w = world();
    w.hidden = hidden;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned int,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult *found)
{
    auto it = DRIVER.find(name);
    bool there = it != DRIVER.end() && w.hidden != name;
    *out = there ? it->second : nullptr;
    *found = there ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    if (w.used + bytes > MEMORY) {
        return cudaErrorMemoryAllocation;
    }
    *out = calloc(bytes, 1);
    w.plain[static_cast<uint8_t *>(*out)] = bytes;
    w.used += bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (p != nullptr) {
        w.used -= w.plain[static_cast<uint8_t *>(p)];
        w.plain.erase(static_cast<uint8_t *>(p));
        free(p);
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof *p);
    p->major = 9;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_, size_t *total)
{
    *free_ = MEMORY - w.used;
    *total = MEMORY;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *n, cudaDeviceAttr, int)
{
    *n = 0;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *n)
{
    *n = 13000;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *n)
{
    *n = 13000;
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t)
{
    return "an error of the fake";
}

const char *cudaGetErrorName(cudaError_t)
{
    return "fake";
}

#define NOTHING(name, ...)        \
    cudaError_t name(__VA_ARGS__) \
    {                             \
        return cudaSuccess;       \
    }

NOTHING(cudaGetLastError, void)
NOTHING(cudaSetDevice, int)
NOTHING(cudaDeviceSynchronize, void)
NOTHING(cudaMallocHost, void **, size_t)
NOTHING(cudaFreeHost, void *)
NOTHING(cudaStreamCreateWithFlags, cudaStream_t *, unsigned int)
NOTHING(cudaStreamSynchronize, cudaStream_t)
NOTHING(cudaStreamDestroy, cudaStream_t)
NOTHING(cudaStreamBeginCapture, cudaStream_t, cudaStreamCaptureMode)
NOTHING(cudaStreamEndCapture, cudaStream_t, cudaGraph_t *)
NOTHING(cudaEventCreateWithFlags, cudaEvent_t *, unsigned int)
NOTHING(cudaEventDestroy, cudaEvent_t)
NOTHING(cudaEventRecord, cudaEvent_t, cudaStream_t)
NOTHING(cudaEventSynchronize, cudaEvent_t)
NOTHING(cudaMemcpyAsync, void *, const void *, size_t, cudaMemcpyKind, cudaStream_t)
NOTHING(cudaMemsetAsync, void *, int, size_t, cudaStream_t)
NOTHING(cudaFuncSetAttribute, const void *, cudaFuncAttribute, int)
NOTHING(cudaLaunchKernelExC, const cudaLaunchConfig_t *, const void *, void **)
NOTHING(cudaGraphInstantiate, cudaGraphExec_t *, cudaGraph_t, unsigned long long)
NOTHING(cudaGraphLaunch, cudaGraphExec_t, cudaStream_t)
NOTHING(cudaGraphExecDestroy, cudaGraphExec_t)
NOTHING(cudaGraphDestroy, cudaGraph_t)

} // extern "C"
