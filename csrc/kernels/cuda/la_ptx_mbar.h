/* la_ptx_mbar.h - barriers in shared memory that count arrivals and bytes; proxy fences; registers.
 *
 * Owns the wrappers of mbarrier, of the fences between ordinary accesses and asynchronous copies,
 * elect.sync and setmaxnreg. A barrier is 8 bytes of shared memory; a phase ends when all expected
 * arrivals and bytes have come, and the next begins. Invariant: a thread waits for a phase by its parity,
 * so nobody may fall behind by two. Included by la_ptx_sm90.h.
 */
#ifndef LA_PTX_MBAR_H
#define LA_PTX_MBAR_H

#include "la_kernel.h"

/* Makes a barrier whose phases take `arrivals` arrivals. One thread, once; la_fence_mbar_init and a
 * meeting of the block (or cluster) follow before anyone uses it. */
LA_DEV void la_mbar_init(uint32_t bar, uint32_t arrivals)
{
    LA_PTX(la_emu_mbar_init(bar, arrivals),
           asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar),
                        "r"(arrivals) : "memory"));
}

/* Makes the thread's new barriers visible to copies and to other blocks of the cluster. */
LA_DEV void la_fence_mbar_init(void)
{
    LA_PTX(la_emu_fence_mbar_init(),
           asm volatile("fence.mbarrier_init.release.cluster;" :: : "memory"));
}

/* Gives the 8 bytes back to other uses. */
LA_DEV void la_mbar_inval(uint32_t bar)
{
    LA_PTX(la_emu_mbar_inval(bar),
           asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar) : "memory"));
}

/* Arrives once; what the thread did before is seen by those whom the phase lets go. */
LA_DEV void la_mbar_arrive(uint32_t bar)
{
    LA_PTX(la_emu_mbar_arrive(bar, 0),
           asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"));
}

/* Arrives once and adds `bytes` to what copies must bring before the phase ends. */
LA_DEV void la_mbar_expect(uint32_t bar, uint32_t bytes)
{
    LA_PTX(la_emu_mbar_expect(bar, bytes),
           asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar),
                        "r"(bytes) : "memory"));
}

/* Arrives once when the thread's earlier cp.async copies are done, without raising the expected count. */
LA_DEV void la_mbar_arrive_cp_async(uint32_t bar)
{
    LA_PTX(
        la_emu_mbar_arrive_cp_async(bar),
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory"));
}

/* Whether the phase of this parity has ended. */
LA_DEV int la_mbar_test(uint32_t bar, uint32_t parity)
{
    int done;
    LA_PTX(done = la_emu_mbar_test(bar, parity),
           asm volatile("{\n.reg .pred p;\n"
                        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                        "selp.b32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(bar),
                        "r"(parity) : "memory"));
    return done;
}

/* Waits until the phase of this parity has ended. On a fresh barrier parity 1 counts as ended. Compiled with
 * LA_CHECK it traps after two seconds, so that a kernel that hangs costs seconds and is an error. */
LA_DEV void la_mbar_wait(uint32_t bar, uint32_t parity)
{
#if defined(LA_CHECK) && !defined(LA_EMU)
    uint64_t start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    while (!la_mbar_test(bar, parity)) {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        if (now - start > 2000000000ull) {
            __trap();
        }
    }
#else
    LA_PTX(la_emu_mbar_wait(bar, parity),
           asm volatile("{\n.reg .pred p;\n"
                        "LA_POLL_%=:\n"
                        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1, 10000000;\n"
                        "@!p bra LA_POLL_%=;\n}" ::"r"(bar),
                        "r"(parity) : "memory"));
#endif
}

/* Orders the thread's ordinary accesses to shared memory before asynchronous ones (TMA, wgmma) that
 * follow a barrier. Who writes what wgmma or a TMA store will read fences, then arrives. */
LA_DEV void la_fence_async(void)
{
    LA_PTX(la_emu_fence_async(), asm volatile("fence.proxy.async.shared::cta;" :: : "memory"));
}

/* One lane of a warp whose lanes are all here: 1 for it, 0 for the others. */
LA_DEV int la_elect(void)
{
    int mine;
    LA_PTX(mine = la_emu_elect(), asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\n"
                                               "selp.b32 %0, 1, 0, p;\n}" : "=r"(mine)));
    return mine;
}

/* Takes or gives back registers of the warpgroup's threads: COUNT each, a multiple of 8 in 24..256. */
template <int COUNT> LA_DEV void la_regs_grow(void)
{
    LA_PTX(la_emu_registers(COUNT),
           asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)));
}

template <int COUNT> LA_DEV void la_regs_shrink(void)
{
    LA_PTX(la_emu_registers(COUNT),
           asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)));
}

#endif
