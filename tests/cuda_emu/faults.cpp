/* faults.cpp - small kernels with one fault each, to see that the emulator names it.
 *
 * Owns the kernels and their list; each is right but for the line that its name speaks of. Invariant: no
 * fault ends the process. Called by tests/test_cuda_faults.py, which holds the messages.
 */
#include <cstring>

#include "la_emu.h"
#include "la_ptx_sm90.h"

typedef struct fault_args {
    la_tensor_map map;  /* [64][64] of 16 bits, boxes of 64 x 8, 128-byte swizzle */
    const uint32_t *in; /* [4096] */
    uint32_t *out;      /* [4096] */
} fault_args;

static uint32_t smem_at(int offset)
{
    return la_smem() + uint32_t(offset);
}

/* A barrier at 16384 for one arrival, ready for all. */
static uint32_t make_barrier()
{
    const uint32_t bar = smem_at(16384);
    if (la_thread() == 0) {
        la_mbar_init(bar, 1);
        la_fence_mbar_init();
    }
    la_sync_block();
    return bar;
}

LA_KERNEL(none, fault_args)
{
    la_stg(a.out + la_thread(), la_ldg(a.in + la_thread()));
}

/* ---- memory ---- */

LA_KERNEL(unwritten, fault_args)
{
    la_stg(a.out, la_lds(smem_at(64)));
}

LA_KERNEL(past_shared, fault_args)
{
    la_sts(smem_at(32768 - 4), 1);
    la_sts(smem_at(32768), 1);
}

LA_KERNEL(misaligned, fault_args)
{
    la_sts_x4(smem_at(8), {1, 2, 3, 4});
}

LA_KERNEL(past_global, fault_args)
{
    la_stg(a.out + 4095 + la_thread() / 127, 1u);
}

LA_KERNEL(unregistered, fault_args)
{
    uint32_t local = 0;
    la_stg(&local, la_ldg(a.in));
}

LA_KERNEL(misaligned_global, fault_args)
{
    const char *p = reinterpret_cast<const char *>(a.in) + 4;
    la_stg(a.out, la_ldg(reinterpret_cast<const la_u32x4 *>(p)).x);
}

LA_KERNEL(wild_pointer, fault_args)
{
    volatile uint32_t *p = reinterpret_cast<volatile uint32_t *>(uintptr_t(16));
    *p = la_ldg(a.in);
}

static uint32_t deep(const volatile uint32_t *p, uint32_t n)
{
    volatile uint32_t pad[256];
    memset(const_cast<uint32_t *>(pad), int(n), sizeof pad);
    return n == 0 ? pad[*p % 256] : deep(pad, n - 1) + pad[n % 256];
}

LA_KERNEL(deep_stack, fault_args)
{
    const uint32_t zero = 0;
    la_stg(a.out, deep(&zero, 100000));
}

/* ---- threads ---- */

LA_KERNEL(lane_missing, fault_args)
{
    if (la_lane() != 5) {
        la_stg(a.out, la_shfl(1, 0));
    }
}

LA_KERNEL(lane_not_in_mask, fault_args)
{
    la_stg(a.out, la_shfl(1, 0, 0xff));
}

LA_KERNEL(source_not_in_mask, fault_args)
{
    if (la_lane() < 8) {
        la_stg(a.out, la_shfl(1, 8, 0xff));
    }
}

LA_KERNEL(masks_differ, fault_args)
{
    la_stg(a.out, la_shfl(1, 0, la_lane() < 16 ? ~0u : ~1u | 1u << la_lane()));
}

LA_KERNEL(collectives_differ, fault_args)
{
    la_stg(a.out, la_lane() < 16 ? la_shfl(1, 0) : la_ballot(1));
}

LA_KERNEL(barrier_in_branch, fault_args)
{
    if (la_thread() < 96) {
        la_sync_block();
    }
}

LA_KERNEL(barrier_counts_differ, fault_args)
{
    la_bar_sync(1, la_thread() < 32 ? 64 : 128);
}

LA_KERNEL(no_sync, fault_args)
{
    la_sts(smem_at(la_thread() * 4), 1);
    la_stg(a.out + la_thread(), la_lds(smem_at((127 - la_thread()) * 4)));
}

LA_KERNEL(read_unordered, fault_args)
{
    if (la_thread() < 32) {
        la_sts(smem_at(la_thread() * 4), 1);
    }
    else {
        la_stg(a.out + la_thread(), la_lds(smem_at(la_lane() * 4)));
    }
}

LA_KERNEL(write_unordered, fault_args)
{
    if (la_thread() < 32) {
        la_sts(smem_at(la_thread() * 4), 1);
    }
    la_sync_block();
    la_stg(a.out + la_thread(), la_lds(smem_at(la_lane() * 4)));
    if (la_thread() >= 96) {
        la_sts(smem_at(la_lane() * 4), 2);
    }
}

LA_KERNEL(copy_read_unordered, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 64);
        la_bulk_load(smem_at(0), a.in, 64, bar);
        la_mbar_wait(bar, 0);
    }
    if (la_thread() >= 32) {
        for (int i = 0; i < 2000; i++) {
            la_sync_warp(); /* long enough, as a rule */
        }
        la_stg(a.out + la_thread(), la_lds(smem_at(0)));
    }
}

LA_KERNEL(halves_and_atomics, fault_args)
{
    if (la_thread() == 0) {
        la_sts(smem_at(1024), 0);
    }
    la_sync_block();
    la_sts_u16(smem_at(la_thread() / 32 * 2), 7); /* warps share words, not bytes */
    la_atomic_add_shared(smem_at(1024), 1);
    la_sync_block();
    la_stg(a.out + la_thread(), la_lds(smem_at(0)) + la_lds(smem_at(1024)));
}

LA_KERNEL(poll_for_nothing, fault_args)
{
    while (la_ldg_acquire(a.in) != 12345) {
    }
}

LA_KERNEL(odd_registers, fault_args)
{
    la_regs_grow<100>();
}

LA_KERNEL(early_load, fault_args)
{
    const uint32_t x = la_ldg(a.in + la_thread());
    la_grid_wait();
    la_stg(a.out + la_thread(), x);
}

LA_KERNEL(early_cp_async, fault_args)
{
    la_cp_async_16(smem_at(la_thread() * 16), a.in + la_thread() * 4);
    la_grid_wait();
}

LA_KERNEL(early_run, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 64);
        la_bulk_load(smem_at(0), a.in, 64, bar);
        la_grid_wait();
    }
}

LA_KERNEL(early_box, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 1024);
        la_tma_load(smem_at(0), &a.map, bar, 0, 0);
        la_grid_wait();
    }
}

/* Right: what the launch before does not write may be read early. */
LA_KERNEL(early_load_of_others, fault_args)
{
    const uint32_t x = la_ldg(a.out + 2048 + la_thread());
    la_grid_wait();
    la_stg(a.out + la_thread(), x + la_ldg(a.in + la_thread()) + 1);
}

LA_KERNEL(early_write, fault_args)
{
    la_stg(a.out + la_thread(), 1u);
    la_grid_wait();
}

/* ---- barriers ---- */

LA_KERNEL(over_arrival, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 64);
        la_mbar_arrive(bar);
    }
}

LA_KERNEL(barrier_made_twice, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 1) {
        la_mbar_init(bar, 1);
    }
}

LA_KERNEL(barrier_overwritten, fault_args)
{
    la_sts_x4(make_barrier(), {0, 0, 0, 0});
}

LA_KERNEL(phase_never_ends, fault_args)
{
    la_mbar_wait(make_barrier(), 0);
}

LA_KERNEL(no_barrier, fault_args)
{
    la_mbar_wait(smem_at(0), 0);
}

LA_KERNEL(remote_barrier_unfenced, fault_args)
{
    if (la_thread() == 0) {
        la_mbar_init(smem_at(16384), 256);
    }
    la_cluster_sync();
    la_mbar_arrive_cluster(la_mapa(smem_at(16384), 1));
    la_cluster_sync();
}

/* ---- copies ---- */

LA_KERNEL(cp_async_unwaited, fault_args)
{
    la_cp_async_16(smem_at(la_thread() * 16), a.in + la_thread() * 4);
    la_cp_async_commit();
    la_stg(a.out + la_thread(), la_lds(smem_at(la_thread() * 16)));
    la_cp_async_wait<0>();
}

LA_KERNEL(cp_async_of_others, fault_args)
{
    la_cp_async_16(smem_at(la_thread() * 16), a.in + la_thread() * 4);
    la_cp_async_commit();
    la_cp_async_wait<0>();
    la_stg(a.out + la_thread(), la_lds(smem_at((127 - la_thread()) * 16)));
}

LA_KERNEL(cp_async_uncommitted, fault_args)
{
    la_cp_async_16(smem_at(la_thread() * 16), a.in + la_thread() * 4);
    la_cp_async_wait<0>();
}

LA_KERNEL(map_of_nothing, fault_args)
{
    static const la_tensor_map empty = {};
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 1024);
        la_tma_load(smem_at(0), &empty, bar, 0, 0);
    }
}

LA_KERNEL(too_few_coordinates, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 1024);
        la_tma_load(smem_at(0), &a.map, bar, 0);
    }
}

LA_KERNEL(box_misaligned, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 1024);
        la_tma_load(smem_at(128), &a.map, bar, 0, 0);
    }
}

LA_KERNEL(two_loads_into_one, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 2048);
        la_tma_load(smem_at(0), &a.map, bar, 0, 0);
        la_tma_load(smem_at(0), &a.map, bar, 0, 8);
    }
    la_mbar_wait(bar, 0);
}

LA_KERNEL(load_over_dirty_bytes, fault_args)
{
    const uint32_t bar = make_barrier();
    la_sts(smem_at(la_thread() * 4), 1);
    la_sync_block();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 1024);
        la_tma_load(smem_at(0), &a.map, bar, 0, 0);
    }
    la_mbar_wait(bar, 0);
}

LA_KERNEL(odd_run, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 24);
        la_bulk_load(smem_at(0), a.in, 24, bar);
    }
}

LA_KERNEL(run_past_global, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 64);
        la_bulk_load(smem_at(0), a.in + 4092, 64, bar);
    }
    la_mbar_wait(bar, 0);
}

LA_KERNEL(load_nobody_waits_for, fault_args)
{
    const uint32_t bar = make_barrier();
    if (la_thread() == 0) {
        la_mbar_expect(bar, 64);
        la_bulk_load(smem_at(0), a.in, 64, bar);
    }
}

LA_KERNEL(store_outlives_block, fault_args)
{
    la_sts(smem_at(la_thread() * 4), uint32_t(la_thread()) + 1);
    la_fence_async();
    la_sync_block();
    if (la_thread() == 0) {
        la_bulk_store(a.out, smem_at(0), 512);
        la_bulk_commit();
        la_bulk_wait_read<0>();
    }
}

LA_KERNEL(source_overwritten, fault_args)
{
    if (la_thread() == 0) {
        for (int i = 0; i < 8; i++) {
            la_sts(smem_at(i * 4), uint32_t(i));
        }
        la_fence_async();
        la_bulk_store(a.out, smem_at(0), 32);
        la_bulk_commit();
        la_sts(smem_at(0), 7);
        la_bulk_wait<0>();
    }
}

/* ---- clusters ---- */

LA_KERNEL(block_has_ended, fault_args)
{
    la_sts(smem_at(la_thread() * 4), 1);
    la_cluster_sync();
    if (la_cluster_rank() == 0) {
        for (int i = 0; i < 64; i++) {
            la_stg(a.out + la_thread(), la_lds_cluster(la_mapa(smem_at(la_thread() * 4), 1)));
        }
    }
}

LA_KERNEL(no_such_block, fault_args)
{
    la_stg(a.out, la_mapa(smem_at(0), 2));
}

/* ---- products ---- */

/* Two operands of zeros, fenced; 64 rows at 0 and at 8192. */
static void fill_operands()
{
    for (int i = la_thread() * 16; i < 16384; i += la_threads() * 16) {
        la_sts_x4(smem_at(i), {0, 0, 0, 0});
    }
    la_fence_async();
    la_sync_block();
}

LA_KERNEL(accumulator_touched, fault_args)
{
    float d[32] = {0};
    fill_operands();
    la_wgmma_fence();
    la_wgmma_ss<LA_WGMMA_BF16, 64>(d, la_wgmma_desc_rows(smem_at(0)),
                                   la_wgmma_desc_rows(smem_at(8192)), 1);
    la_wgmma_commit();
    d[3] = 1.0f;
    la_wgmma_wait<0>();
    la_stg(a.out + la_thread(), la_bits(d[3]));
}

LA_KERNEL(descriptors_differ, fault_args)
{
    float d[32] = {0};
    fill_operands();
    la_wgmma_fence();
    la_wgmma_ss<LA_WGMMA_BF16, 64>(d, la_wgmma_desc_rows(smem_at(la_thread() / 64 * 1024)),
                                   la_wgmma_desc_rows(smem_at(8192)), 1);
    la_wgmma_commit();
    la_wgmma_wait<0>();
    la_stg(a.out + la_thread(), la_bits(d[3]));
}

LA_KERNEL(warp_missing, fault_args)
{
    float d[32] = {0};
    fill_operands();
    if (la_thread() < 96) {
        la_wgmma_fence();
        la_wgmma_ss<LA_WGMMA_BF16, 64>(d, la_wgmma_desc_rows(smem_at(0)),
                                       la_wgmma_desc_rows(smem_at(8192)), 1);
        la_wgmma_commit();
        la_wgmma_wait<0>();
    }
    la_stg(a.out + la_thread(), la_bits(d[3]));
}

LA_KERNEL(matrix_row_misaligned, fault_args)
{
    uint32_t r[4];
    fill_operands();
    la_ldmatrix_x4(r, smem_at(la_lane() * 40));
    la_stg(a.out + la_thread(), r[0]);
}

/* ---- the list ---- */

struct fault_row {
    const char *name;
    la_entry entry;
    int blocks, cluster, dependent;
};

#define ROW(name) {#name, LA_ENTRY(name), 1, 1, 0}
#define PAIR(name) {#name, LA_ENTRY(name), 2, 2, 0}

static const fault_row rows[] = {
    ROW(none),
    ROW(unwritten),
    ROW(past_shared),
    ROW(misaligned),
    ROW(past_global),
    ROW(unregistered),
    ROW(misaligned_global),
    ROW(wild_pointer),
    ROW(deep_stack),
    ROW(lane_missing),
    ROW(lane_not_in_mask),
    ROW(source_not_in_mask),
    ROW(masks_differ),
    ROW(collectives_differ),
    ROW(barrier_in_branch),
    ROW(barrier_counts_differ),
    ROW(no_sync),
    ROW(read_unordered),
    ROW(write_unordered),
    ROW(copy_read_unordered),
    ROW(halves_and_atomics),
    ROW(poll_for_nothing),
    ROW(odd_registers),
    {"early_write", LA_ENTRY(early_write), 1, 1, 1},
    {"early_load", LA_ENTRY(early_load), 1, 1, 1},
    {"early_cp_async", LA_ENTRY(early_cp_async), 1, 1, 1},
    {"early_run", LA_ENTRY(early_run), 1, 1, 1},
    {"early_box", LA_ENTRY(early_box), 1, 1, 1},
    {"early_load_of_others", LA_ENTRY(early_load_of_others), 1, 1, 1},
    ROW(over_arrival),
    ROW(barrier_made_twice),
    ROW(barrier_overwritten),
    ROW(phase_never_ends),
    ROW(no_barrier),
    PAIR(remote_barrier_unfenced),
    ROW(cp_async_unwaited),
    ROW(cp_async_of_others),
    ROW(cp_async_uncommitted),
    ROW(map_of_nothing),
    ROW(too_few_coordinates),
    ROW(box_misaligned),
    ROW(two_loads_into_one),
    ROW(load_over_dirty_bytes),
    ROW(odd_run),
    ROW(run_past_global),
    ROW(load_nobody_waits_for),
    ROW(store_outlives_block),
    ROW(source_overwritten),
    PAIR(block_has_ended),
    PAIR(no_such_block),
    ROW(accumulator_touched),
    ROW(descriptors_differ),
    ROW(warp_missing),
    ROW(matrix_row_misaligned),
};

extern "C" const char *fault_name(int i)
{
    return i < int(sizeof rows / sizeof rows[0]) ? rows[i].name : nullptr;
}

extern "C" int fault_run(int i, const uint32_t *in, uint32_t *out, uint32_t seed, char *error,
                         size_t n)
{
    fault_args a = {};
    a.in = in;
    a.out = out;
    la_tensor_shape shape = {in, 2, 2, {64, 64}, {128}, {64, 8}, LA_SWIZZLE_128};
    if (la_emu_tensor_map(&a.map, &shape, error, n)) {
        return -1;
    }
    la_emu_shape s = {};
    s.name = rows[i].name;
    s.grid[0] = rows[i].blocks;
    s.block[0] = 128;
    s.cluster[0] = rows[i].cluster;
    s.smem = 32768;
    s.seed = seed;
    s.dependent = rows[i].dependent;
    la_emu_writes before = {{reinterpret_cast<uintptr_t>(in)}};
    s.writes = &before;
    return la_emu_launch(rows[i].entry, &a, &s, error, n);
}
