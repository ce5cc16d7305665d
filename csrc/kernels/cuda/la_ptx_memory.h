/* la_ptx_memory.h - loads, stores, atomics and the asynchronous copies that every GPU from sm_80 on has.
 *
 * Owns the wrappers of ld/st (shared, global), cp.async, fences and atomics on integers. Invariant: an
 * address is aligned to the size of the access; shared memory is named by a 32-bit address, which
 * la_smem() gives for its start. Sums of floats have no atomics here: their order would change bits.
 * Included by la_ptx.h.
 */
#ifndef LA_PTX_MEMORY_H
#define LA_PTX_MEMORY_H

#include "la_kernel.h"

/* 8 and 16 bytes that move in one access. */
typedef struct alignas(8) la_u32x2 {
    uint32_t x, y;
} la_u32x2;

typedef struct alignas(16) la_u32x4 {
    uint32_t x, y, z, w;
} la_u32x4;

#ifndef LA_EMU
extern __shared__ __align__(1024) uint8_t la_smem_bytes[];
#endif

/* The shared address of the block's dynamic shared memory, aligned to 1024 bytes. */
LA_DEV uint32_t la_smem(void)
{
    return LA_PTX(la_emu_smem(), (uint32_t)__cvta_generic_to_shared(la_smem_bytes));
}

/* ---- shared memory ---- */

LA_DEV uint32_t la_lds_u8(uint32_t at)
{
    uint32_t x;
    LA_PTX(x = la_emu_lds<uint8_t>(at),
           asm volatile("ld.shared.u8 %0, [%1];" : "=r"(x) : "r"(at) : "memory"));
    return x;
}

LA_DEV uint16_t la_lds_u16(uint32_t at)
{
    uint16_t x;
    LA_PTX(x = la_emu_lds<uint16_t>(at),
           asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(at) : "memory"));
    return x;
}

LA_DEV uint32_t la_lds(uint32_t at)
{
    uint32_t x;
    LA_PTX(x = la_emu_lds<uint32_t>(at),
           asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(at) : "memory"));
    return x;
}

LA_DEV float la_lds_f32(uint32_t at)
{
    float x;
    LA_PTX(x = la_emu_lds<float>(at),
           asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory"));
    return x;
}

LA_DEV la_u32x2 la_lds_x2(uint32_t at)
{
    la_u32x2 v;
    LA_PTX(v = la_emu_lds<la_u32x2>(at),
           asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x),
                        "=r"(v.y) : "r"(at) : "memory"));
    return v;
}

LA_DEV la_u32x4 la_lds_x4(uint32_t at)
{
    la_u32x4 v;
    LA_PTX(v = la_emu_lds<la_u32x4>(at),
           asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y),
                        "=r"(v.z), "=r"(v.w) : "r"(at) : "memory"));
    return v;
}

LA_DEV void la_sts_u8(uint32_t at, uint32_t x)
{
    LA_PTX(la_emu_sts(at, (uint8_t)x),
           asm volatile("st.shared.u8 [%0], %1;" ::"r"(at), "r"(x) : "memory"));
}

LA_DEV void la_sts_u16(uint32_t at, uint16_t x)
{
    LA_PTX(la_emu_sts(at, x), asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(x) : "memory"));
}

LA_DEV void la_sts(uint32_t at, uint32_t x)
{
    LA_PTX(la_emu_sts(at, x), asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(x) : "memory"));
}

LA_DEV void la_sts_f32(uint32_t at, float x)
{
    LA_PTX(la_emu_sts(at, x), asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory"));
}

LA_DEV void la_sts_x2(uint32_t at, la_u32x2 v)
{
    LA_PTX(la_emu_sts(at, v), asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(v.x),
                                           "r"(v.y) : "memory"));
}

LA_DEV void la_sts_x4(uint32_t at, la_u32x4 v)
{
    LA_PTX(la_emu_sts(at, v), asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at),
                                           "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"));
}

/* ---- global memory ---- */

/* Reads one element that kernels of the same launch may have written. */
template <class T> LA_DEV T la_ldg(const T *p)
{
    return LA_PTX(la_emu_ldg(p), *p);
}

/* 16 bytes that nothing writes during the launch and that are read once: past L1. */
LA_DEV la_u32x4 la_ldg_stream(const void *p)
{
    la_u32x4 v;
    LA_PTX(v = la_emu_ldg(static_cast<const la_u32x4 *>(p)),
           asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x),
                        "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p)));
    return v;
}

template <class T> LA_DEV void la_stg(T *p, T x)
{
    LA_PTX(la_emu_stg(p, x), *p = x);
}

/* Reads a word with the order of what its writer released before (la_stg_release): for flags. */
LA_DEV uint32_t la_ldg_acquire(const uint32_t *p)
{
    uint32_t x;
    LA_PTX(x = la_emu_ldg_acquire(p),
           asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory"));
    return x;
}

LA_DEV void la_stg_release(uint32_t *p, uint32_t x)
{
    LA_PTX(la_emu_stg(p, x),
           asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory"));
}

/* Adds and returns what was there. */
LA_DEV uint32_t la_atomic_add(uint32_t *p, uint32_t x)
{
    return LA_PTX(la_emu_atomic_add(p, x), atomicAdd(p, x));
}

/* The same on a word of the block's shared memory. */
LA_DEV uint32_t la_atomic_add_shared(uint32_t at, uint32_t x)
{
    uint32_t old;
    LA_PTX(
        old = la_emu_atomic_add_shared(at, x),
        asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(at), "r"(x) : "memory"));
    return old;
}

/* What the thread wrote before is seen, by any thread of the GPU, before what it writes after. */
LA_DEV void la_fence_gpu(void)
{
    LA_PTX(la_emu_fence(), __threadfence());
}

/* ---- cp.async: copies of a thread from global to shared memory ---- */

/* Copies 16 bytes, or `valid` of them and zeros behind. Done when la_cp_async_wait says so. */
LA_DEV void la_cp_async_16(uint32_t to, const void *from, int valid = 16)
{
    LA_PTX(la_emu_cp_async(to, from, 16, valid),
           asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                        "r"(valid) : "memory"));
}

/* Copies 4 bytes, or none of them and zeros. */
LA_DEV void la_cp_async_4(uint32_t to, const void *from, int valid = 4)
{
    LA_PTX(la_emu_cp_async(to, from, 4, valid),
           asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
                        "r"(valid) : "memory"));
}

/* Closes a group of the thread's copies. */
LA_DEV void la_cp_async_commit(void)
{
    LA_PTX(la_emu_cp_async_commit(), asm volatile("cp.async.commit_group;" :: : "memory"));
}

/* Waits until at most the last LEFT groups of the thread are unfinished. Others see them after a barrier. */
template <int LEFT> LA_DEV void la_cp_async_wait(void)
{
    LA_PTX(la_emu_cp_async_wait(LEFT),
           asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"));
}

#endif
