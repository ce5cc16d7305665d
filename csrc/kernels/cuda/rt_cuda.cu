/* rt_cuda.cu - la_rt.h by the CUDA runtime, which is linked in whole, and a few driver calls.
 *
 * Owns everything that touches CUDA's own interface. The driver is found by the runtime when a device is
 * opened, so a machine without one loads this object and is told so. Invariant: whatever a call returns
 * goes through `ok`, which keeps the first failure; running out of memory alone is none. Ranges are
 * mapped granule by granule by the driver's virtual memory calls; where a driver refuses these, a
 * reservation is plain memory. Called through la_rt.h.
 */
#include "rt_cuda.h"

#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace {

/* Driver calls, by the addresses that the runtime finds. */
struct driver_calls {
    decltype(&cuMemAddressReserve) reserve;
    decltype(&cuMemAddressFree) release;
    decltype(&cuMemCreate) create;
    decltype(&cuMemRelease) drop;
    decltype(&cuMemMap) map;
    decltype(&cuMemUnmap) unmap;
    decltype(&cuMemSetAccess) access;
    decltype(&cuMemGetAllocationGranularity) granularity;
    decltype(&cuTensorMapEncodeTiled) tensor_map;
};

/* A reservation and what is mapped of it. */
struct range {
    range *next;
    uint8_t *base;
    size_t bytes;
    CUmemGenericAllocationHandle
        *granules; /* [bytes / granule], 0: not mapped; NULL: plain memory */
};

} // namespace

struct la_rt {
    int device;
    la_rt_info info;
    driver_calls driver;
    range *ranges;
    la_rt_counts counts;
    int capturing;
    char error[256];
};

struct la_rt_graph {
    la_rt *rt;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    int launches;
};

namespace {

/* Did it work? Keeps the first failure. */
int ok(la_rt *rt, cudaError_t st, const char *what)
{
    if (st == cudaSuccess) {
        return rt->error[0] == '\0';
    }
    if (rt->error[0] == '\0') {
        snprintf(rt->error, sizeof rt->error, "%s: %s (%s)", what, cudaGetErrorString(st),
                 cudaGetErrorName(st));
    }
    return 0;
}

int failed(la_rt *rt)
{
    return rt->error[0] != '\0';
}

/* Out of memory is for the caller to say, and leaves nothing behind. */
int got(la_rt *rt, cudaError_t st, const char *what)
{
    if (st == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return 0;
    }
    if (!ok(rt, st, what)) {
        return 0;
    }
    rt->counts.allocations++;
    rt->counts.alive++;
    return 1;
}

template <class call> int find(call *out, const char *name)
{
    void *address = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t st =
        cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &found);
    *out = reinterpret_cast<call>(address);
    if (st != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return st == cudaSuccess && found == cudaDriverEntryPointSuccess;
}

CUmemAllocationProp granule_of(const la_rt *rt)
{
    CUmemAllocationProp p;
    memset(&p, 0, sizeof p);
    p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    p.location.id = rt->device;
    return p;
}

int device_number(cudaDeviceAttr what, int device)
{
    int n = 0;
    return cudaDeviceGetAttribute(&n, what, device) == cudaSuccess ? n : 0;
}

range *range_of(la_rt *rt, const void *p)
{
    const uint8_t *at = static_cast<const uint8_t *>(p);
    range *r = rt->ranges;
    while (r != nullptr && (at < r->base || at >= r->base + r->bytes)) {
        r = r->next;
    }
    return r;
}

/* `ok` of the driver's calls; running out of memory is for the caller to say. */
int mapped(la_rt *rt, CUresult st, const char *what)
{
    if (st != CUDA_SUCCESS && st != CUDA_ERROR_OUT_OF_MEMORY && !failed(rt)) {
        snprintf(rt->error, sizeof rt->error, "%s: error %d of the driver", what, (int)st);
    }
    return st == CUDA_SUCCESS;
}

void unmap_granule(la_rt *rt, range *r, size_t i)
{
    size_t n = rt->info.granule;
    if (r->granules[i] != 0) {
        CUresult st = rt->driver.unmap(reinterpret_cast<CUdeviceptr>(r->base + i * n), n);
        (void)mapped(rt, st, "unmap memory");
        (void)mapped(rt, rt->driver.drop(r->granules[i]), "give memory back");
        r->granules[i] = 0;
        rt->counts.alive--;
    }
}

/* 1: mapped; 0: no memory left, or the device has failed. */
int map_granule(la_rt *rt, range *r, size_t i)
{
    size_t n = rt->info.granule;
    CUdeviceptr at = reinterpret_cast<CUdeviceptr>(r->base + i * n);
    CUmemAllocationProp p = granule_of(rt);
    CUmemAccessDesc access;
    memset(&access, 0, sizeof access);
    access.location = p.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    CUmemGenericAllocationHandle h = 0;
    if (!mapped(rt, rt->driver.create(&h, n, &p, 0), "create memory")) {
        return 0;
    }
    if (!mapped(rt, rt->driver.map(at, n, 0, h, 0), "map memory")) {
        (void)rt->driver.drop(h);
        return 0;
    }
    r->granules[i] = h;
    rt->counts.allocations++;
    rt->counts.alive++;
    if (!mapped(rt, rt->driver.access(at, n, &access, 1), "access to memory")) {
        unmap_granule(rt, r, i);
        return 0;
    }
    return 1;
}

/* Does this driver map memory? One granule is reserved, mapped and given back; what fails is no error of the
 * device, whose reservations are plain memory then. */
int can_map(la_rt *rt, size_t granule)
{
    CUmemGenericAllocationHandle handle = 0;
    CUdeviceptr base = 0;
    range r = {nullptr, nullptr, granule, &handle};
    rt->info.granule = granule;
    if (rt->driver.reserve(&base, granule, 0, 0, 0) != CUDA_SUCCESS) {
        return 0;
    }
    r.base = reinterpret_cast<uint8_t *>(base);
    int maps = map_granule(rt, &r, 0);
    if (maps) {
        unmap_granule(rt, &r, 0);
    }
    maps = rt->driver.release(base, granule) == CUDA_SUCCESS && maps && rt->error[0] == '\0';
    rt->error[0] = '\0';
    memset(&rt->counts, 0, sizeof rt->counts);
    return maps;
}

/* Finds the driver's calls and whether ranges can be mapped. */
void find_driver(la_rt *rt)
{
    driver_calls *d = &rt->driver;
    int maps = 0;
    size_t granule = 0;
    CUmemAllocationProp p = granule_of(rt);
    maps = find(&d->reserve, "cuMemAddressReserve") && find(&d->release, "cuMemAddressFree") &&
           find(&d->create, "cuMemCreate") && find(&d->drop, "cuMemRelease") &&
           find(&d->map, "cuMemMap") && find(&d->unmap, "cuMemUnmap") &&
           find(&d->access, "cuMemSetAccess") &&
           find(&d->granularity, "cuMemGetAllocationGranularity");
    maps = maps &&
           d->granularity(&granule, &p, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) == CUDA_SUCCESS &&
           granule > 0 && can_map(rt, granule);
    (void)find(&d->tensor_map,
               "cuTensorMapEncodeTiled"); /* la_rt_tensor_map says so if it is not there */
    rt->info.maps = maps;
    rt->info.granule = maps ? granule : (size_t)2 << 20;
}

int no_driver(cudaError_t st, char *why, size_t n)
{
    int runtime = 0;
    (void)cudaRuntimeGetVersion(&runtime);
    (void)cudaGetLastError();
    if (st == cudaErrorInsufficientDriver) {
        /* the runtime says the same of no driver at all */
        snprintf(why, n, "no NVIDIA driver, or one older than CUDA %d.%d needs", runtime / 1000,
                 runtime % 1000 / 10);
    }
    else {
        snprintf(why, n, "%s", cudaGetErrorString(st));
    }
    return -1;
}

} // namespace

extern "C" {

int la_rt_open(int device, la_rt **out, char *why, size_t n)
{
    int count = 0;
    *out = nullptr;
    cudaError_t st = cudaGetDeviceCount(&count);
    if (st != cudaSuccess) {
        return no_driver(st, why, n);
    }
    if (device < 0 || device >= count) {
        snprintf(why, n, "device %d of %d", device, count);
        return -1;
    }
    la_rt *rt = static_cast<la_rt *>(calloc(1, sizeof *rt));
    cudaDeviceProp p;
    if (rt == nullptr || cudaSetDevice(device) != cudaSuccess ||
        cudaGetDeviceProperties(&p, device) != cudaSuccess || cudaFree(nullptr) != cudaSuccess) {
        snprintf(why, n, "device %d: %s", device, cudaGetErrorString(cudaGetLastError()));
        free(rt);
        return -1;
    }
    rt->device = device;
    snprintf(rt->info.name, sizeof rt->info.name, "%s", p.name);
    rt->info.cc = 10 * p.major + p.minor;
    rt->info.n_sms = p.multiProcessorCount;
    rt->info.l2 = (size_t)p.l2CacheSize;
    rt->info.smem = (size_t)device_number(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    (void)cudaDriverGetVersion(&rt->info.driver);
    (void)cudaRuntimeGetVersion(&rt->info.runtime);
    find_driver(rt);
    *out = rt;
    return 0;
}

void la_rt_close(la_rt *rt)
{
    if (rt == nullptr) {
        return;
    }
    (void)cudaDeviceSynchronize();
    while (rt->ranges != nullptr) {
        la_rt_release(rt, rt->ranges->base);
    }
    free(rt);
}

int la_rt_enter(la_rt *rt)
{
    return ok(rt, cudaSetDevice(rt->device), "device") ? 0 : -1;
}

void la_rt_describe(la_rt *rt, la_rt_info *out)
{
    *out = rt->info;
    (void)cudaMemGetInfo(&out->memory_free, &out->memory_total);
}

void la_rt_count(const la_rt *rt, la_rt_counts *out)
{
    *out = rt->counts;
}

const char *la_rt_error(const la_rt *rt)
{
    return rt->error;
}

/* ---- memory ---------------------------------------------------------------------------------- */

void *la_rt_alloc(la_rt *rt, size_t bytes)
{
    void *p = nullptr;
    return !failed(rt) && got(rt, cudaMalloc(&p, bytes > 0 ? bytes : 1), "malloc") ? p : nullptr;
}

void la_rt_free(la_rt *rt, void *p)
{
    if (p != nullptr) {
        (void)ok(rt, cudaFree(p), "free");
        rt->counts.alive--;
    }
}

void *la_rt_reserve(la_rt *rt, size_t bytes)
{
    size_t n = rt->info.granule, count = (bytes + n - 1) / n;
    range *r = static_cast<range *>(calloc(1, sizeof *r));
    if (r == nullptr || failed(rt)) {
        free(r);
        return nullptr;
    }
    r->bytes = count * n;
    if (rt->info.maps) {
        CUdeviceptr base = 0;
        r->granules =
            static_cast<CUmemGenericAllocationHandle *>(calloc(count, sizeof *r->granules));
        if (r->granules != nullptr &&
            rt->driver.reserve(&base, r->bytes, 0, 0, 0) == CUDA_SUCCESS) {
            r->base = reinterpret_cast<uint8_t *>(base);
            rt->counts.allocations++;
            rt->counts.alive++;
        }
    }
    else {
        r->base = static_cast<uint8_t *>(la_rt_alloc(rt, r->bytes));
    }
    if (r->base == nullptr) {
        free(r->granules);
        free(r);
        return nullptr;
    }
    r->next = rt->ranges;
    rt->ranges = r;
    return r->base;
}

int la_rt_commit(la_rt *rt, void *p, size_t bytes)
{
    range *r = range_of(rt, p);
    if (r == nullptr || failed(rt)) {
        return -1;
    }
    if (r->granules == nullptr) {
        return 0;
    }
    size_t n = rt->info.granule;
    size_t first = (size_t)(static_cast<uint8_t *>(p) - r->base) / n, end = first + bytes / n;
    uint8_t *fresh = static_cast<uint8_t *>(calloc(end - first + 1, 1));
    int bad = fresh == nullptr;
    for (size_t i = first; !bad && i < end; i++) {
        fresh[i - first] = r->granules[i] == 0;
        bad = fresh[i - first] && !map_granule(rt, r, i);
    }
    for (size_t i = first; bad && fresh != nullptr && i < end; i++) {
        if (fresh[i - first]) { /* those that were there before stay */
            unmap_granule(rt, r, i);
        }
    }
    free(fresh);
    return bad ? -1 : 0;
}

void la_rt_decommit(la_rt *rt, void *p, size_t bytes)
{
    range *r = range_of(rt, p);
    if (r == nullptr || r->granules == nullptr) {
        return;
    }
    rt->counts.waits++;
    (void)ok(rt, cudaDeviceSynchronize(), "wait");
    size_t n = rt->info.granule, first = (size_t)(static_cast<uint8_t *>(p) - r->base) / n;
    for (size_t i = first; i < first + bytes / n; i++) {
        unmap_granule(rt, r, i);
    }
}

void la_rt_release(la_rt *rt, void *p)
{
    range *r = p != nullptr ? range_of(rt, p) : nullptr;
    if (r == nullptr) {
        return;
    }
    if (r->granules != nullptr) {
        la_rt_decommit(rt, r->base, r->bytes);
        (void)rt->driver.release(reinterpret_cast<CUdeviceptr>(r->base), r->bytes);
        rt->counts.alive--;
    }
    else {
        la_rt_free(rt, r->base);
    }
    range **at = &rt->ranges;
    while (*at != r) {
        at = &(*at)->next;
    }
    *at = r->next;
    free(r->granules);
    free(r);
}

void *la_rt_pin(la_rt *rt, size_t bytes)
{
    void *p = nullptr;
    return !failed(rt) && got(rt, cudaMallocHost(&p, bytes > 0 ? bytes : 1), "pin") ? p : nullptr;
}

void la_rt_unpin(la_rt *rt, void *p)
{
    if (p != nullptr) {
        (void)ok(rt, cudaFreeHost(p), "unpin");
        rt->counts.alive--;
    }
}

/* ---- streams --------------------------------------------------------------------------------- */

la_rt_stream *la_rt_stream_open(la_rt *rt)
{
    la_rt_stream *s = static_cast<la_rt_stream *>(calloc(1, sizeof *s));
    if (s == nullptr ||
        !ok(rt, cudaStreamCreateWithFlags(&s->s, cudaStreamNonBlocking), "stream")) {
        free(s);
        return nullptr;
    }
    s->rt = rt;
    rt->counts.alive++;
    return s;
}

void la_rt_stream_close(la_rt_stream *s)
{
    if (s != nullptr) {
        (void)cudaStreamSynchronize(s->s);
        (void)cudaStreamDestroy(s->s);
        s->rt->counts.alive--;
        free(s);
    }
}

int la_rt_stream_wait(la_rt_stream *s)
{
    s->rt->counts.waits++;
    return ok(s->rt, cudaStreamSynchronize(s->s), "wait") ? 0 : -1;
}

la_rt_event *la_rt_event_open(la_rt *rt)
{
    la_rt_event *e = static_cast<la_rt_event *>(calloc(1, sizeof *e));
    if (e == nullptr || failed(rt) ||
        !ok(rt, cudaEventCreateWithFlags(&e->e, cudaEventDisableTiming), "event")) {
        free(e);
        return nullptr;
    }
    e->rt = rt;
    rt->counts.alive++;
    return e;
}

void la_rt_event_close(la_rt_event *e)
{
    if (e != nullptr) {
        (void)cudaEventDestroy(e->e);
        e->rt->counts.alive--;
        free(e);
    }
}

void la_rt_event_record(la_rt_event *e, la_rt_stream *s)
{
    if (!failed(e->rt)) {
        (void)ok(e->rt, cudaEventRecord(e->e, s->s), "record event");
    }
}

int la_rt_event_wait(la_rt_event *e)
{
    e->rt->counts.event_waits++;
    return ok(e->rt, cudaEventSynchronize(e->e), "wait for event") ? 0 : -1;
}

void la_rt_copy(la_rt_stream *s, void *dst, const void *src, size_t bytes, la_rt_way way)
{
    static const cudaMemcpyKind kinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                                           cudaMemcpyDeviceToDevice};
    if (failed(s->rt) || bytes == 0) {
        return;
    }
    s->rt->counts.copied_in += way == LA_RT_IN ? (int64_t)bytes : 0;
    s->rt->counts.copied_out += way == LA_RT_OUT ? (int64_t)bytes : 0;
    (void)ok(s->rt, cudaMemcpyAsync(dst, src, bytes, kinds[way], s->s), "copy");
}

void la_rt_fill(la_rt_stream *s, void *dst, int byte, size_t bytes)
{
    if (!failed(s->rt) && bytes != 0) {
        (void)ok(s->rt, cudaMemsetAsync(dst, byte, bytes, s->s), "fill");
    }
}

/* ---- launches and graphs --------------------------------------------------------------------- */

int la_rt_tensor_map(la_rt_stream *s, la_tensor_map *map, const la_tensor_shape *shape)
{
    static const CUtensorMapSwizzle swizzles[] = {
        CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B,
        CU_TENSOR_MAP_SWIZZLE_128B};
    const CUtensorMapDataType type = shape->element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                     : shape->element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                     : shape->element_bytes == 4 ? CU_TENSOR_MAP_DATA_TYPE_UINT32
                                                                 : CU_TENSOR_MAP_DATA_TYPE_UINT64;
    static_assert(sizeof(CUtensorMap) == sizeof *map, "a tensor map is 128 bytes");
    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    cuuint64_t dims[5], strides[4];
    cuuint32_t box[5];
    la_rt *rt = s->rt;
    for (int i = 0; i < shape->rank; i++) {
        dims[i] = shape->dims[i];
        box[i] = shape->box[i];
        if (i > 0) {
            strides[i - 1] = shape->stride[i - 1];
        }
    }
    CUresult st = rt->driver.tensor_map == nullptr
                      ? CUDA_ERROR_NOT_FOUND
                      : rt->driver.tensor_map(
                            reinterpret_cast<CUtensorMap *>(map), type, (cuuint32_t)shape->rank,
                            const_cast<void *>(shape->base), dims, strides, box, steps,
                            CU_TENSOR_MAP_INTERLEAVE_NONE, swizzles[shape->swizzle],
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return mapped(rt, st, "tensor map") && !failed(rt) ? 0 : -1;
}

void la_rt_launch(la_rt_stream *s, la_entry entry, const void *args, size_t args_bytes,
                  const la_rt_shape *shape)
{
    la_rt *rt = s->rt;
    (void)args_bytes; /* the kernel's own parameter says it */
    if (failed(rt)) {
        return;
    }
    /* all there is: a launch that asks for less must not lower what a graph was made with */
    if (shape->smem > 48 * 1024 &&
        !ok(rt,
            cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)rt->info.smem),
            "shared memory")) {
        return;
    }
    cudaLaunchAttribute attrs[2];
    cudaLaunchConfig_t config;
    memset(&config, 0, sizeof config);
    memset(attrs, 0, sizeof attrs);
    const int *g = shape->grid;
    config.gridDim = dim3(g[0] > 0 ? (unsigned)g[0] : 1u, g[1] > 0 ? (unsigned)g[1] : 1u,
                          g[2] > 0 ? (unsigned)g[2] : 1u);
    config.blockDim = dim3((unsigned)shape->threads);
    config.dynamicSmemBytes = shape->smem;
    config.stream = s->s;
    config.attrs = attrs;
    if (shape->cluster > 1) {
        attrs[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attrs[config.numAttrs].val.clusterDim.x = (unsigned)shape->cluster;
        attrs[config.numAttrs].val.clusterDim.y = 1;
        attrs[config.numAttrs++].val.clusterDim.z = 1;
    }
    if (shape->dependent && rt->info.cc >= 90) {
        attrs[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attrs[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    void *params[] = {const_cast<void *>(args)};
    (void)ok(rt, cudaLaunchKernelExC(&config, entry, params), "launch");
    rt->counts.launches += !rt->capturing;
    s->launches++;
}

void la_rt_ask(la_rt_stream *s, la_rt_call call, const void *args, size_t bytes)
{
    la_rt *rt = s->rt;
    char why[160] = "";
    (void)bytes; /* it is read before call returns */
    if (!failed(rt) && call(s->s, args, why, sizeof why) != 0) {
        snprintf(rt->error, sizeof rt->error, "%s", why);
    }
    rt->counts.launches += !rt->capturing;
    s->launches++;
}

void la_rt_graph_begin(la_rt_stream *s)
{
    if (!failed(s->rt) &&
        ok(s->rt, cudaStreamBeginCapture(s->s, cudaStreamCaptureModeThreadLocal), "begin graph")) {
        s->rt->capturing = 1;
        s->launches = 0;
    }
}

la_rt_graph *la_rt_graph_end(la_rt_stream *s)
{
    la_rt *rt = s->rt;
    la_rt_graph *g = static_cast<la_rt_graph *>(calloc(1, sizeof *g));
    cudaGraph_t graph = nullptr;
    cudaError_t st = rt->capturing ? cudaStreamEndCapture(s->s, &graph) : cudaErrorInvalidValue;
    rt->capturing = 0;
    if (st == cudaSuccess && g != nullptr) {
        st = cudaGraphInstantiate(&g->exec, graph, 0);
    }
    if (st == cudaErrorMemoryAllocation) { /* the caller can do without */
        (void)cudaGetLastError();
    }
    else {
        (void)ok(rt, st, "graph");
    }
    if (g == nullptr || st != cudaSuccess || failed(rt)) {
        if (g != nullptr && g->exec != nullptr) {
            (void)cudaGraphExecDestroy(g->exec);
        }
        if (graph != nullptr) {
            (void)cudaGraphDestroy(graph);
        }
        free(g);
        return nullptr;
    }
    g->rt = rt;
    g->graph = graph;
    g->launches = s->launches;
    rt->counts.alive++;
    rt->counts.graphs++;
    return g;
}

void la_rt_graph_run(la_rt_graph *g, la_rt_stream *s)
{
    if (!failed(s->rt) && ok(s->rt, cudaGraphLaunch(g->exec, s->s), "run graph")) {
        s->rt->counts.replays++;
        s->rt->counts.launches += g->launches;
    }
}

void la_rt_graph_free(la_rt_graph *g)
{
    if (g != nullptr) {
        (void)cudaGraphExecDestroy(g->exec);
        (void)cudaGraphDestroy(g->graph);
        g->rt->counts.alive--;
        free(g);
    }
}

} // extern "C"
