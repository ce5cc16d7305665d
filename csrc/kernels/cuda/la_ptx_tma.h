/* la_ptx_tma.h - bulk copies by the tensor memory accelerator: boxes of tensors, runs of bytes.
 *
 * Owns the wrappers of cp.async.bulk and cp.async.bulk.tensor. A load ends by adding its bytes, those out of
 * bounds included, to a barrier (la_mbar_expect); a store reads shared memory until its group has been
 * waited for. Invariant: one thread issues a copy; shared addresses are multiples of 128 for boxes (1024,
 * 512, 256 with swizzles of 128, 64, 32 bytes) and of 16 for runs. Coordinates count elements, the fastest
 * first. Included by la_ptx_sm90.h.
 */
#ifndef LA_PTX_TMA_H
#define LA_PTX_TMA_H

#include "la_kernel.h"

/* How long L2 keeps what a load brings: operands of the _hint forms. */
#define LA_L2_EVICT_FIRST 0x12F0000000000000ull
#define LA_L2_EVICT_LAST 0x14F0000000000000ull
#define LA_L2_NORMAL 0x1000000000000000ull

/* Fetches a tensor map before its first use. */
LA_DEV void la_tma_prefetch_map(const la_tensor_map *map)
{
    LA_PTX(la_emu_tma_map(map), asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"));
}

/* ---- tensors: overloads of one to five coordinates ---- */

/* Copies the box at these coordinates to shared memory; zeros stand for what is out of bounds. */
LA_DEV void la_tma_load(uint32_t to, const la_tensor_map *map, uint32_t bar, int c0)
{
    LA_PTX(
        la_emu_tma_load(to, map, bar, 0, {c0}),
        asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3}], [%2];" ::"r"(to),
                     "l"(map), "r"(bar), "r"(c0) : "memory"));
}

LA_DEV void la_tma_load(uint32_t to, const la_tensor_map *map, uint32_t bar, int c0, int c1)
{
    LA_PTX(
        la_emu_tma_load(to, map, bar, 0, {c0, c1}),
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                     "l"(map), "r"(bar), "r"(c0), "r"(c1) : "memory"));
}

LA_DEV void la_tma_load(uint32_t to, const la_tensor_map *map, uint32_t bar, int c0, int c1, int c2)
{
    LA_PTX(
        la_emu_tma_load(to, map, bar, 0, {c0, c1, c2}),
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
                     "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2) : "memory"));
}

LA_DEV void la_tma_load(uint32_t to, const la_tensor_map *map, uint32_t bar, int c0, int c1, int c2,
                        int c3)
{
    LA_PTX(
        la_emu_tma_load(to, map, bar, 0, {c0, c1, c2, c3}),
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
                     "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory"));
}

LA_DEV void la_tma_load(uint32_t to, const la_tensor_map *map, uint32_t bar, int c0, int c1, int c2,
                        int c3, int c4)
{
    LA_PTX(
        la_emu_tma_load(to, map, bar, 0, {c0, c1, c2, c3, c4}),
        asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
                     "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4) : "memory"));
}

/* The same with a hint for L2. */
LA_DEV void la_tma_load_hint(uint32_t to, const la_tensor_map *map, uint32_t bar, uint64_t hint,
                             int c0)
{
    LA_PTX(
        (void)hint;
        la_emu_tma_load(to, map, bar, 0, {c0}),
        asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".L2::cache_hint [%0], [%1, {%4}], [%2], %3;" ::"r"(to),
                     "l"(map), "r"(bar), "l"(hint), "r"(c0) : "memory"));
}

LA_DEV void la_tma_load_hint(uint32_t to, const la_tensor_map *map, uint32_t bar, uint64_t hint,
                             int c0, int c1)
{
    LA_PTX(
        (void)hint;
        la_emu_tma_load(to, map, bar, 0, {c0, c1}),
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".L2::cache_hint [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(to),
                     "l"(map), "r"(bar), "l"(hint), "r"(c0), "r"(c1) : "memory"));
}

LA_DEV void la_tma_load_hint(uint32_t to, const la_tensor_map *map, uint32_t bar, uint64_t hint,
                             int c0, int c1, int c2)
{
    LA_PTX(
        (void)hint;
        la_emu_tma_load(to, map, bar, 0, {c0, c1, c2}),
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".L2::cache_hint [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(to),
                     "l"(map), "r"(bar), "l"(hint), "r"(c0), "r"(c1), "r"(c2) : "memory"));
}

LA_DEV void la_tma_load_hint(uint32_t to, const la_tensor_map *map, uint32_t bar, uint64_t hint,
                             int c0, int c1, int c2, int c3)
{
    LA_PTX(
        (void)hint;
        la_emu_tma_load(to, map, bar, 0, {c0, c1, c2, c3}),
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".L2::cache_hint [%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(to),
                     "l"(map), "r"(bar), "l"(hint), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory"));
}

LA_DEV void la_tma_load_hint(uint32_t to, const la_tensor_map *map, uint32_t bar, uint64_t hint,
                             int c0, int c1, int c2, int c3, int c4)
{
    LA_PTX(
        (void)hint;
        la_emu_tma_load(to, map, bar, 0, {c0, c1, c2, c3, c4}),
        asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".L2::cache_hint [%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(to),
                     "l"(map), "r"(bar), "l"(hint), "r"(c0), "r"(c1), "r"(c2), "r"(c3),
                     "r"(c4) : "memory"));
}

/* The same into every block of the cluster whose bit is set in `blocks`, at the same offsets of their
 * shared memory; each block's own barrier counts the bytes. */
LA_DEV void la_tma_load_multicast(uint32_t to, const la_tensor_map *map, uint32_t bar,
                                  uint16_t blocks, int c0)
{
    LA_PTX(
        la_emu_tma_load(to, map, bar, blocks, {c0}),
        asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%4}], [%2], %3;" ::"r"(to),
                     "l"(map), "r"(bar), "h"(blocks), "r"(c0) : "memory"));
}

LA_DEV void la_tma_load_multicast(uint32_t to, const la_tensor_map *map, uint32_t bar,
                                  uint16_t blocks, int c0, int c1)
{
    LA_PTX(
        la_emu_tma_load(to, map, bar, blocks, {c0, c1}),
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(to),
                     "l"(map), "r"(bar), "h"(blocks), "r"(c0), "r"(c1) : "memory"));
}

LA_DEV void la_tma_load_multicast(uint32_t to, const la_tensor_map *map, uint32_t bar,
                                  uint16_t blocks, int c0, int c1, int c2)
{
    LA_PTX(
        la_emu_tma_load(to, map, bar, blocks, {c0, c1, c2}),
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(to),
                     "l"(map), "r"(bar), "h"(blocks), "r"(c0), "r"(c1), "r"(c2) : "memory"));
}

LA_DEV void la_tma_load_multicast(uint32_t to, const la_tensor_map *map, uint32_t bar,
                                  uint16_t blocks, int c0, int c1, int c2, int c3)
{
    LA_PTX(la_emu_tma_load(to, map, bar, blocks, {c0, c1, c2, c3}),
           asm volatile(
               "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
               ".multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(to),
               "l"(map), "r"(bar), "h"(blocks), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory"));
}

LA_DEV void la_tma_load_multicast(uint32_t to, const la_tensor_map *map, uint32_t bar,
                                  uint16_t blocks, int c0, int c1, int c2, int c3, int c4)
{
    LA_PTX(
        la_emu_tma_load(to, map, bar, blocks, {c0, c1, c2, c3, c4}),
        asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(to),
                     "l"(map), "r"(bar), "h"(blocks), "r"(c0), "r"(c1), "r"(c2), "r"(c3),
                     "r"(c4) : "memory"));
}

/* Copies a box from shared memory; what is out of bounds is not written. Belongs to the thread's open
 * group of stores. */
LA_DEV void la_tma_store(const la_tensor_map *map, uint32_t from, int c0)
{
    LA_PTX(la_emu_tma_store(map, from, {c0}),
           asm volatile(
               "cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%0, {%2}], [%1];" ::"l"(map),
               "r"(from), "r"(c0) : "memory"));
}

LA_DEV void la_tma_store(const la_tensor_map *map, uint32_t from, int c0, int c1)
{
    LA_PTX(la_emu_tma_store(map, from, {c0, c1}),
           asm volatile(
               "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
                   map),
               "r"(from), "r"(c0), "r"(c1) : "memory"));
}

LA_DEV void la_tma_store(const la_tensor_map *map, uint32_t from, int c0, int c1, int c2)
{
    LA_PTX(
        la_emu_tma_store(map, from, {c0, c1, c2}),
        asm volatile(
            "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
                map),
            "r"(from), "r"(c0), "r"(c1), "r"(c2) : "memory"));
}

LA_DEV void la_tma_store(const la_tensor_map *map, uint32_t from, int c0, int c1, int c2, int c3)
{
    LA_PTX(
        la_emu_tma_store(map, from, {c0, c1, c2, c3}),
        asm volatile(
            "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::
                "l"(map),
            "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory"));
}

LA_DEV void la_tma_store(const la_tensor_map *map, uint32_t from, int c0, int c1, int c2, int c3,
                         int c4)
{
    LA_PTX(la_emu_tma_store(map, from, {c0, c1, c2, c3, c4}),
           asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, "
                        "%5, %6}], [%1];" ::"l"(map),
                        "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4) : "memory"));
}

/* ---- runs of bytes: multiples of 16, aligned to 16 ---- */

LA_DEV void la_bulk_load(uint32_t to, const void *from, uint32_t bytes, uint32_t bar)
{
    LA_PTX(la_emu_bulk_load(to, from, bytes, bar),
           asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                        " [%0], [%1], %2, [%3];" ::"r"(to),
                        "l"(from), "r"(bytes), "r"(bar) : "memory"));
}

LA_DEV void la_bulk_load_hint(uint32_t to, const void *from, uint32_t bytes, uint32_t bar,
                              uint64_t hint)
{
    LA_PTX((void)hint;
           la_emu_bulk_load(to, from, bytes, bar),
           asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                        ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                        "l"(from), "r"(bytes), "r"(bar), "l"(hint) : "memory"));
}

/* Belongs to the thread's open group of stores. */
LA_DEV void la_bulk_store(void *to, uint32_t from, uint32_t bytes)
{
    LA_PTX(la_emu_bulk_store(to, from, bytes),
           asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                        "r"(from), "r"(bytes) : "memory"));
}

/* From the block's shared memory to that of another of the cluster; `to` and `bar` are mapped (la_mapa). */
LA_DEV void la_bulk_send(uint32_t to, uint32_t from, uint32_t bytes, uint32_t bar)
{
    LA_PTX(la_emu_bulk_send(to, from, bytes, bar),
           asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
                        " [%0], [%1], %2, [%3];" ::"r"(to),
                        "r"(from), "r"(bytes), "r"(bar) : "memory"));
}

/* ---- groups of stores ---- */

LA_DEV void la_bulk_commit(void)
{
    LA_PTX(la_emu_bulk_commit(), asm volatile("cp.async.bulk.commit_group;" :: : "memory"));
}

/* Waits until at most the thread's last LEFT groups still read shared memory, which may be reused then. */
template <int LEFT> LA_DEV void la_bulk_wait_read(void)
{
    LA_PTX(la_emu_bulk_wait(LEFT, 1),
           asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory"));
}

/* Waits until at most the thread's last LEFT groups are unfinished; the others have been written. */
template <int LEFT> LA_DEV void la_bulk_wait(void)
{
    LA_PTX(la_emu_bulk_wait(LEFT, 0),
           asm volatile("cp.async.bulk.wait_group %0;" ::"n"(LEFT) : "memory"));
}

#endif
