/* la_ptx_thread.h - who a thread is, and how threads of a block meet: shuffles, votes, barriers.
 *
 * Owns the wrappers of special registers, warp collectives, named barriers, setmaxnreg and programmatic
 * dependent launch. Invariant: a collective names its lanes in a mask, and all of them arrive. Blocks are
 * one-dimensional in threads. Included by la_ptx.h.
 */
#ifndef LA_PTX_THREAD_H
#define LA_PTX_THREAD_H

#include "la_kernel.h"

#define LA_ALL_LANES 0xffffffffu

/* ---- who ---- */

/* Number of the thread in its block. */
LA_DEV int la_thread(void)
{
    return LA_PTX(la_emu_thread(), (int)threadIdx.x);
}

/* Threads of a block. */
LA_DEV int la_threads(void)
{
    return LA_PTX(la_emu_threads(), (int)blockDim.x);
}

LA_DEV int la_lane(void)
{
    return la_thread() & 31;
}

/* Coordinate of the block in the grid. */
LA_DEV int la_block_x(void)
{
    return LA_PTX(la_emu_block(0), (int)blockIdx.x);
}

LA_DEV int la_block_y(void)
{
    return LA_PTX(la_emu_block(1), (int)blockIdx.y);
}

LA_DEV int la_block_z(void)
{
    return LA_PTX(la_emu_block(2), (int)blockIdx.z);
}

/* Blocks of the grid along a coordinate. */
LA_DEV int la_grid_x(void)
{
    return LA_PTX(la_emu_grid(0), (int)gridDim.x);
}

LA_DEV int la_grid_y(void)
{
    return LA_PTX(la_emu_grid(1), (int)gridDim.y);
}

LA_DEV int la_grid_z(void)
{
    return LA_PTX(la_emu_grid(2), (int)gridDim.z);
}

/* ---- shuffles and votes ---- */

/* The value of lane `from` (mod 32). All lanes of `mask` arrive; `from` is one of them. */
LA_DEV uint32_t la_shfl(uint32_t x, int from, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_shuffle(LA_EMU_SHFL, x, from, mask), __shfl_sync(mask, x, from));
}

/* The value of lane `lane ^ bits`. */
LA_DEV uint32_t la_shfl_xor(uint32_t x, int bits, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_shuffle(LA_EMU_SHFL_XOR, x, bits, mask), __shfl_xor_sync(mask, x, bits));
}

/* The value of lane `lane + by`; past the warp's end the lane's own. */
LA_DEV uint32_t la_shfl_down(uint32_t x, int by, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_shuffle(LA_EMU_SHFL_DOWN, x, by, mask), __shfl_down_sync(mask, x, by));
}

/* The value of lane `lane - by`; before the warp's start the lane's own. */
LA_DEV uint32_t la_shfl_up(uint32_t x, int by, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_shuffle(LA_EMU_SHFL_UP, x, by, mask), __shfl_up_sync(mask, x, by));
}

LA_DEV float la_shfl_f32(float x, int from, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_f32(la_shfl(la_emu_bits(x), from, mask)), __shfl_sync(mask, x, from));
}

LA_DEV float la_shfl_xor_f32(float x, int bits, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_f32(la_shfl_xor(la_emu_bits(x), bits, mask)),
                  __shfl_xor_sync(mask, x, bits));
}

/* A value that is the same in all lanes, in a form that the compiler knows to be. */
LA_DEV int la_uniform(int x)
{
    return (int)la_shfl((uint32_t)x, 0);
}

/* A bit for each lane of the mask whose predicate holds. */
LA_DEV uint32_t la_ballot(int predicate, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_shuffle(LA_EMU_BALLOT, predicate != 0, 0, mask),
                  __ballot_sync(mask, predicate));
}

LA_DEV int la_any(int predicate, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_ballot(predicate, mask) != 0, __any_sync(mask, predicate));
}

LA_DEV int la_all(int predicate, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_ballot(predicate, mask) == mask, __all_sync(mask, predicate));
}

/* Sum and extremes of 32-bit integers over the lanes of the mask (redux.sync, sm_80). */
LA_DEV uint32_t la_redux_add(uint32_t x, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_shuffle(LA_EMU_ADD, x, 0, mask), __reduce_add_sync(mask, x));
}

LA_DEV uint32_t la_redux_min(uint32_t x, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_shuffle(LA_EMU_MIN, x, 0, mask), __reduce_min_sync(mask, x));
}

LA_DEV uint32_t la_redux_max(uint32_t x, uint32_t mask = LA_ALL_LANES)
{
    return LA_PTX(la_emu_shuffle(LA_EMU_MAX, x, 0, mask), __reduce_max_sync(mask, x));
}

/* ---- barriers ---- */

/* Lanes of the mask meet; what they wrote before is seen by them after. */
LA_DEV void la_sync_warp(uint32_t mask = LA_ALL_LANES)
{
    LA_PTX((void)la_emu_shuffle(LA_EMU_SYNC, 0, 0, mask), __syncwarp(mask));
}

/* All threads of the block meet (named barrier 0). */
LA_DEV void la_sync_block(void)
{
    LA_PTX(la_emu_named_barrier(0, la_emu_threads(), 1), __syncthreads());
}

/* `threads` threads, whole warps, meet at named barrier `id` (1..15; 0 is la_sync_block's). */
LA_DEV void la_bar_sync(int id, int threads)
{
    LA_PTX(la_emu_named_barrier(id, threads, 1),
           asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"));
}

/* Counts the warp in at a named barrier without waiting there. */
LA_DEV void la_bar_arrive(int id, int threads)
{
    LA_PTX(la_emu_named_barrier(id, threads, 0),
           asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"));
}

/* ---- dependent launch (sm_90; nothing below it, where a stream's order does the same) ---- */

/* Until here a kernel launched with programmatic dependence may run beside its predecessor; behind it all
 * that the predecessor wrote is seen. Nothing may be written to global memory before. */
LA_DEV void la_grid_wait(void)
{
#ifdef LA_EMU
    la_emu_grid_wait();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Lets the next kernel of the stream start, once every block has said so or ended. */
LA_DEV void la_grid_release(void)
{
#ifdef LA_EMU
    la_emu_grid_release();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
