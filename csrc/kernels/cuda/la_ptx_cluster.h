/* la_ptx_cluster.h - blocks of a cluster: who they are, how they meet, each other's shared memory.
 *
 * Owns the wrappers of cluster registers, barrier.cluster, mapa and accesses through shared::cluster.
 * Invariant: a block's shared memory is reached only between two meetings of the cluster, so that it has
 * started and has not ended. Included by la_ptx_sm90.h.
 */
#ifndef LA_PTX_CLUSTER_H
#define LA_PTX_CLUSTER_H

#include "la_kernel.h"
#include "la_ptx_memory.h"

/* Number of the block in its cluster, and how many there are. */
LA_DEV uint32_t la_cluster_rank(void)
{
    uint32_t r;
    LA_PTX(r = la_emu_cluster_rank(), asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)));
    return r;
}

LA_DEV uint32_t la_cluster_blocks(void)
{
    uint32_t r;
    LA_PTX(r = la_emu_cluster_blocks(), asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r)));
    return r;
}

/* Every thread of every block of the cluster arrives, then waits; writes before are seen after. */
LA_DEV void la_cluster_arrive(void)
{
    LA_PTX(la_emu_cluster_arrive(),
           asm volatile("barrier.cluster.arrive.release.aligned;" :: : "memory"));
}

LA_DEV void la_cluster_wait(void)
{
    LA_PTX(la_emu_cluster_wait(),
           asm volatile("barrier.cluster.wait.acquire.aligned;" :: : "memory"));
}

LA_DEV void la_cluster_sync(void)
{
    la_cluster_arrive();
    la_cluster_wait();
}

/* The address by which the cluster knows `at` of block `rank`; `at` is an address of this block's. */
LA_DEV uint32_t la_mapa(uint32_t at, uint32_t rank)
{
    uint32_t r;
    LA_PTX(r = la_emu_mapa(at, rank),
           asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(at), "r"(rank)));
    return r;
}

/* Reads and writes at mapped addresses. */
LA_DEV uint32_t la_lds_cluster(uint32_t at)
{
    uint32_t x;
    LA_PTX(x = la_emu_lds<uint32_t>(at),
           asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(x) : "r"(at) : "memory"));
    return x;
}

LA_DEV la_u32x4 la_lds_cluster_x4(uint32_t at)
{
    la_u32x4 v;
    LA_PTX(v = la_emu_lds<la_u32x4>(at),
           asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y),
                        "=r"(v.z), "=r"(v.w) : "r"(at) : "memory"));
    return v;
}

LA_DEV void la_sts_cluster(uint32_t at, uint32_t x)
{
    LA_PTX(la_emu_sts(at, x),
           asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(at), "r"(x) : "memory"));
}

LA_DEV void la_sts_cluster_x4(uint32_t at, la_u32x4 v)
{
    LA_PTX(la_emu_sts(at, v),
           asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x),
                        "r"(v.y), "r"(v.z), "r"(v.w) : "memory"));
}

/* Arrives at a barrier of any block of the cluster, by its mapped address. */
LA_DEV void la_mbar_arrive_cluster(uint32_t bar)
{
    LA_PTX(la_emu_mbar_arrive(bar, 1),
           asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
               bar) : "memory"));
}

#endif
