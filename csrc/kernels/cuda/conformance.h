/* conformance.h - every wrapper of la_ptx*.h alone in a kernel, on input that a test brings.
 *
 * Owns the kernels and the list of them. A kernel moves its input to where the instruction wants it as it
 * lies (an image of shared memory, words of registers), executes the instruction and stores all that came
 * out, so that layouts are computed by the test, in NumPy, and nowhere here. The same list runs in the
 * emulator and, by conformance.cu, on a GPU, whose output becomes the golden vectors of the emulator.
 */
#ifndef LA_CONFORMANCE_H
#define LA_CONFORMANCE_H

#include "la_ptx_sm90.h"

typedef struct la_conform_args {
    la_tensor_map map;
    const uint8_t *in;
    uint8_t *out;
    int32_t p[16];
} la_conform_args;

/* ---- moving input and output ---- */

LA_DEV uint32_t la_conform_word(const la_conform_args &a, int i)
{
    return la_ldg(reinterpret_cast<const uint32_t *>(a.in) + i);
}

LA_DEV void la_conform_put(const la_conform_args &a, int i, uint32_t x)
{
    la_stg(reinterpret_cast<uint32_t *>(a.out) + i, x);
}

/* `bytes` of input, a multiple of 16, to shared memory at `to`; for all threads, and for copies. */
LA_DEV void la_conform_fill(const uint8_t *from, uint32_t to, int bytes)
{
    for (int i = la_thread() * 16; i < bytes; i += la_threads() * 16) {
        la_sts_x4(to + i, la_ldg(reinterpret_cast<const la_u32x4 *>(from + i)));
    }
    la_fence_async();
    la_sync_block();
}

LA_DEV void la_conform_dump(const la_conform_args &a, uint32_t from, int bytes, int to)
{
    la_sync_block();
    for (int i = la_thread() * 16; i < bytes; i += la_threads() * 16) {
        la_stg(reinterpret_cast<la_u32x4 *>(a.out + to + i), la_lds_x4(from + i));
    }
}

/* A barrier behind the image, for copies of all tests. */
LA_DEV uint32_t la_conform_barrier(uint32_t arrivals)
{
    const uint32_t bar = la_smem() + 65536;
    if (la_thread() == 0) {
        la_mbar_init(bar, arrivals);
        la_fence_mbar_init();
    }
    la_sync_block();
    return bar;
}

/* ---- products ---- */

/* p: of A offset, inner, outer, swizzle; the same of B; bytes of the image; accumulate. Behind the image
 * [128][4] words of A and [128][N / 2] floats of D. */
template <la_wgmma_type T, int N, int TA, int TB, int RS>
LA_KERNEL_BOUNDS(la_conform_wgmma, la_conform_args, 128, 1)
{
    const uint32_t smem = la_smem();
    la_conform_fill(a.in, smem, a.p[8]);
    const int words = a.p[8] / 4 + la_thread() * 4, sums = a.p[8] / 4 + 512 + la_thread() * (N / 2);
    uint32_t x[4];
    float d[N / 2];
    LA_UNROLL
    for (int i = 0; i < 4; i++) {
        x[i] = la_conform_word(a, words + i);
    }
    LA_UNROLL
    for (int i = 0; i < N / 2; i++) {
        d[i] = la_float(la_conform_word(a, sums + i));
    }
    const uint64_t ad = la_wgmma_desc(smem + a.p[0], (la_tensor_swizzle)a.p[3], a.p[1], a.p[2]);
    const uint64_t bd = la_wgmma_desc(smem + a.p[4], (la_tensor_swizzle)a.p[7], a.p[5], a.p[6]);
    la_wgmma_pin(d);
    la_wgmma_fence();
    if constexpr (RS) {
        la_wgmma_rs<T, N, TB>(d, x, bd, a.p[9]);
    }
    else {
        la_wgmma_ss<T, N, TA, TB>(d, ad, bd, a.p[9]);
    }
    la_wgmma_commit();
    la_wgmma_pin(d);
    la_wgmma_wait<0>();
    la_wgmma_pin(d);
    LA_UNROLL
    for (int i = 0; i < N / 2; i++) {
        la_conform_put(a, la_thread() * (N / 2) + i, la_bits(d[i]));
    }
}

/* [32 lanes][4 words of A, 2 of B, 4 of D] to [32][4]. T: bf16, f16, E4M3, signed bytes. */
template <int T> LA_KERNEL(la_conform_mma, la_conform_args)
{
    uint32_t x[4], y[2];
    float d[4];
    int32_t s[4];
    for (int i = 0; i < 10; i++) {
        uint32_t word = la_conform_word(a, la_thread() * 10 + i);
        if (i < 4) {
            x[i] = word;
        }
        else if (i < 6) {
            y[i - 4] = word;
        }
        else {
            d[i - 6] = la_float(word);
            s[i - 6] = (int32_t)word;
        }
    }
    if constexpr (T == 0) {
        la_mma_bf16(d, x, y);
    }
    else if constexpr (T == 1) {
        la_mma_f16(d, x, y);
    }
    else if constexpr (T == 2) {
        la_mma_e4m3(d, x, y);
    }
    else {
        la_mma_s8(s, x, y);
    }
    for (int i = 0; i < 4; i++) {
        la_conform_put(a, la_thread() * 4 + i, T == 3 ? (uint32_t)s[i] : la_bits(d[i]));
    }
}

/* ---- moves of operands ---- */

/* An image of 2048 bytes, then the offsets of the rows that lanes bring; to [32][COUNT]. */
template <int COUNT, int TRANS> LA_KERNEL(la_conform_ldmatrix, la_conform_args)
{
    uint32_t r[COUNT];
    la_conform_fill(a.in, la_smem(), 2048);
    const uint32_t row = la_smem() + la_conform_word(a, 512 + la_thread());
    if constexpr (COUNT == 4 && !TRANS) {
        la_ldmatrix_x4(r, row);
    }
    else if constexpr (COUNT == 4) {
        la_ldmatrix_x4_trans(r, row);
    }
    else if constexpr (!TRANS) {
        la_ldmatrix_x2(r, row);
    }
    else {
        la_ldmatrix_x2_trans(r, row);
    }
    for (int i = 0; i < COUNT; i++) {
        la_conform_put(a, la_thread() * COUNT + i, r[i]);
    }
}

/* The same image and offsets, then [32][COUNT] words; to the image behind the store. */
template <int COUNT, int TRANS> LA_KERNEL(la_conform_stmatrix, la_conform_args)
{
    uint32_t r[COUNT];
    la_conform_fill(a.in, la_smem(), 2048);
    const uint32_t row = la_smem() + la_conform_word(a, 512 + la_thread());
    for (int i = 0; i < COUNT; i++) {
        r[i] = la_conform_word(a, 544 + la_thread() * COUNT + i);
    }
    if constexpr (COUNT == 4 && !TRANS) {
        la_stmatrix_x4(row, r);
    }
    else if constexpr (COUNT == 4) {
        la_stmatrix_x4_trans(row, r);
    }
    else if constexpr (!TRANS) {
        la_stmatrix_x2(row, r);
    }
    else {
        la_stmatrix_x2_trans(row, r);
    }
    la_conform_dump(a, la_smem(), 2048, 0);
}

/* ---- copies ---- */

/* p: rank, coordinates, bytes of the box; the box as it lies in shared memory. HINT: with a hint for L2. */
template <int HINT> LA_KERNEL(la_conform_tma_load, la_conform_args)
{
    const uint32_t bar = la_conform_barrier(1), to = la_smem();
    const int32_t *p = a.p;
    if (la_thread() == 0) {
        la_tma_prefetch_map(&a.map);
        la_mbar_expect(bar, p[6]);
        if (HINT) {
            const uint64_t hint = LA_L2_EVICT_FIRST;
            switch (p[0]) {
            case 1: la_tma_load_hint(to, &a.map, bar, hint, p[1]); break;
            case 2: la_tma_load_hint(to, &a.map, bar, hint, p[1], p[2]); break;
            case 3: la_tma_load_hint(to, &a.map, bar, hint, p[1], p[2], p[3]); break;
            case 4: la_tma_load_hint(to, &a.map, bar, hint, p[1], p[2], p[3], p[4]); break;
            case 5: la_tma_load_hint(to, &a.map, bar, hint, p[1], p[2], p[3], p[4], p[5]); break;
            }
        }
        else {
            switch (p[0]) {
            case 1: la_tma_load(to, &a.map, bar, p[1]); break;
            case 2: la_tma_load(to, &a.map, bar, p[1], p[2]); break;
            case 3: la_tma_load(to, &a.map, bar, p[1], p[2], p[3]); break;
            case 4: la_tma_load(to, &a.map, bar, p[1], p[2], p[3], p[4]); break;
            case 5: la_tma_load(to, &a.map, bar, p[1], p[2], p[3], p[4], p[5]); break;
            }
        }
    }
    la_mbar_wait(bar, 0);
    la_conform_dump(a, to, p[6], 0);
}

/* The same, sent by block 0 of a cluster of two to both. */
LA_KERNEL(la_conform_tma_multicast, la_conform_args)
{
    const uint32_t bar = la_conform_barrier(1), to = la_smem();
    const int32_t *p = a.p;
    if (la_thread() == 0) {
        la_mbar_expect(bar, p[6]);
    }
    la_cluster_sync();
    if (la_thread() == 0 && la_cluster_rank() == 0) {
        la_tma_load_multicast(to, &a.map, bar, 3, p[1], p[2]);
    }
    la_mbar_wait(bar, 0);
    la_conform_dump(a, to, p[6], (int)la_cluster_rank() * p[6]);
}

/* p as above: the input is the box in shared memory, the map is that of the output. */
LA_KERNEL(la_conform_tma_store, la_conform_args)
{
    const uint32_t from = la_smem();
    const int32_t *p = a.p;
    la_conform_fill(a.in, from, p[6]);
    if (la_thread() == 0) {
        switch (p[0]) {
        case 1: la_tma_store(&a.map, from, p[1]); break;
        case 2: la_tma_store(&a.map, from, p[1], p[2]); break;
        case 3: la_tma_store(&a.map, from, p[1], p[2], p[3]); break;
        case 4: la_tma_store(&a.map, from, p[1], p[2], p[3], p[4]); break;
        case 5: la_tma_store(&a.map, from, p[1], p[2], p[3], p[4], p[5]); break;
        }
        la_bulk_commit();
        la_bulk_wait_read<0>();
        la_bulk_wait<0>();
    }
}

/* p: bytes; in to shared memory to out, both ways by bulk copies. */
template <int HINT> LA_KERNEL(la_conform_bulk, la_conform_args)
{
    const uint32_t bar = la_conform_barrier(1);
    if (la_thread() == 0) {
        la_mbar_expect(bar, a.p[0]);
        if (HINT) {
            la_bulk_load_hint(la_smem(), a.in, a.p[0], bar, LA_L2_EVICT_LAST);
        }
        else {
            la_bulk_load(la_smem(), a.in, a.p[0], bar);
        }
        la_mbar_wait(bar, 0);
        la_bulk_store(a.out, la_smem(), a.p[0]);
        la_bulk_commit();
        la_bulk_wait<0>();
    }
}

/* A line of 16 or 4 bytes a thread; the thread's word of p[0].. says how many of them are valid. */
template <int BYTES> LA_KERNEL(la_conform_cp_async, la_conform_args)
{
    const uint32_t to = la_smem() + la_thread() * BYTES;
    const int valid = (int)la_conform_word(a, a.p[0] + la_thread());
    if constexpr (BYTES == 16) {
        la_cp_async_16(to, a.in + la_thread() * BYTES, valid);
    }
    else {
        la_cp_async_4(to, a.in + la_thread() * BYTES, valid);
    }
    la_cp_async_commit();
    la_cp_async_wait<0>();
    la_conform_dump(a, la_smem(), 32 * BYTES, 0);
}

/* The same under a barrier that all threads' copies arrive at. */
LA_KERNEL(la_conform_cp_async_barrier, la_conform_args)
{
    const uint32_t bar = la_conform_barrier((uint32_t)la_threads());
    la_cp_async_16(la_smem() + la_thread() * 16, a.in + la_thread() * 16);
    la_mbar_arrive_cp_async(bar);
    la_mbar_wait(bar, 0);
    la_conform_dump(a, la_smem(), 512, 0);
}

/* ---- clusters ---- */

/* Two blocks; each reads the other's word, stores one there, sends it 512 bytes and counts it in. */
LA_KERNEL(la_conform_cluster, la_conform_args)
{
    const uint32_t smem = la_smem(), bar = la_conform_barrier(1), count = bar + 8;
    const uint32_t rank = la_cluster_rank(), other = rank ^ 1;
    const int thread = la_thread(), base = (int)rank * 512;
    if (thread == 0) {
        la_mbar_init(count, 32);
        la_fence_mbar_init();
        la_mbar_expect(bar, 512);
    }
    la_conform_fill(a.in + rank * 512, smem, 512);
    la_cluster_sync();
    la_conform_put(a, base + thread, la_lds_cluster(la_mapa(smem + thread * 4, other)));
    const la_u32x4 v = la_lds_cluster_x4(la_mapa(smem + thread * 16, other));
    la_conform_put(a, base + 32 + thread, v.x ^ v.y ^ v.z ^ v.w);
    la_sts_cluster(la_mapa(smem + 1024 + thread * 4, other), rank * 1000 + thread);
    const la_u32x4 line = {rank, other, (uint32_t)thread, 7};
    la_sts_cluster_x4(la_mapa(smem + 2048 + thread * 16, other), line);
    la_mbar_arrive_cluster(la_mapa(count, other));
    if (thread == 0) {
        la_bulk_send(la_mapa(smem + 4096, other), smem, 512, la_mapa(bar, other));
    }
    la_mbar_wait(count, 0);
    la_mbar_wait(bar, 0);
    la_conform_put(a, base + 64 + thread, la_lds(smem + 1024 + thread * 4));
    la_conform_put(a, base + 96 + thread, la_lds(smem + 2048 + thread * 16 + 8));
    la_conform_put(a, base + 128 + thread, la_lds(smem + 4096 + thread * 16 + 12));
    la_conform_put(a, base + 160 + thread, la_cluster_blocks() * 16 + rank);
    la_cluster_arrive();
    la_cluster_wait();
}

/* ---- threads ---- */

/* [32] words; a row of 32 for each collective. */
LA_KERNEL(la_conform_warp, la_conform_args)
{
    const int lane = la_lane();
    const uint32_t x = la_conform_word(a, lane), half = lane < 16 ? 0xffffu : 0xffff0000u;
    la_conform_put(a, lane, la_shfl(x, lane * 7 + 3));
    la_conform_put(a, 32 + lane, la_shfl_xor(x, 5));
    la_conform_put(a, 64 + lane, la_shfl_down(x, 3));
    la_conform_put(a, 96 + lane, la_shfl_up(x, 9));
    la_conform_put(a, 128 + lane, la_shfl_xor(x, 8, half));
    la_conform_put(a, 160 + lane, la_ballot((int)(x & 1)));
    la_conform_put(a, 192 + lane, la_ballot((int)(x & 2), half));
    la_conform_put(a, 224 + lane, (uint32_t)(la_any(x == 7) * 2 + la_all(x != 7)));
    la_conform_put(a, 256 + lane, la_redux_add(x));
    la_conform_put(a, 288 + lane, la_redux_min(x, half));
    la_conform_put(a, 320 + lane, la_redux_max(x));
    la_conform_put(a, 352 + lane, la_redux_add((uint32_t)la_elect()));
    la_conform_put(a, 384 + lane, la_bits(la_shfl_xor_f32(la_float(x), 16)));
    la_conform_put(a, 416 + lane, la_bits(la_shfl_f32(la_float(x), 31 - lane)));
    la_conform_put(a, 448 + lane, (uint32_t)la_uniform(lane + 5));
}

/* 128 threads, two blocks: numbers of threads and blocks, barriers by name, sums by atomics. out is zeros. */
LA_KERNEL(la_conform_block, la_conform_args)
{
    const uint32_t sum = la_smem();
    const int thread = la_thread(), warp = thread / 32;
    if (thread == 0) {
        la_sts(sum, 0);
    }
    la_sync_block();
    la_atomic_add_shared(sum, la_conform_word(a, thread));
    if (warp == 0) {
        la_bar_sync(3, 64);
    }
    else if (warp == 1) {
        la_bar_arrive(3, 64);
    }
    la_sync_block();
    const int at = la_block_x() * 512 + thread * 4;
    la_conform_put(a, at, la_lds(sum));
    la_conform_put(a, at + 1, (uint32_t)(thread * 1000 + la_threads()));
    la_conform_put(a, at + 2, (uint32_t)(la_grid_x() * 100 + la_grid_y() * 10 + la_grid_z()));
    la_conform_put(a, at + 3, (uint32_t)(la_block_y() * 10 + la_block_z()));
    la_atomic_add(reinterpret_cast<uint32_t *>(a.out) + 1024, la_conform_word(a, thread));
    la_fence_gpu();
}

/* Phases of a barrier as a thread sees them: tests before and after arrivals, bytes and waits. */
LA_KERNEL(la_conform_mbar, la_conform_args)
{
    const uint32_t bar = la_conform_barrier(2);
    if (la_thread() == 0) {
        la_conform_put(a, 0, (uint32_t)la_mbar_test(bar, 1));
        la_conform_put(a, 1, (uint32_t)la_mbar_test(bar, 0));
        la_mbar_arrive(bar);
        la_conform_put(a, 2, (uint32_t)la_mbar_test(bar, 0));
        la_mbar_arrive(bar);
        la_conform_put(a, 3, (uint32_t)la_mbar_test(bar, 0));
        la_conform_put(a, 4, (uint32_t)la_mbar_test(bar, 1));
        la_mbar_arrive(bar);
        la_mbar_expect(bar, 256);
        la_conform_put(a, 5, (uint32_t)la_mbar_test(bar, 1));
        la_bulk_load(la_smem(), a.in, 256, bar);
        la_mbar_wait(bar, 1);
        la_conform_put(a, 6, (uint32_t)la_mbar_test(bar, 1));
        la_conform_put(a, 7, la_lds(la_smem() + 252));
        la_mbar_inval(bar);
        la_sts(bar, 11);
        la_conform_put(a, 8, la_lds(bar));
    }
}

/* Every width of loads and stores: each puts what it read into one word. 64 bytes of input. */
LA_KERNEL(la_conform_memory, la_conform_args)
{
    const uint32_t smem = la_smem();
    la_conform_fill(a.in, smem, 64);
    const la_u32x2 two = la_lds_x2(smem + 8);
    const la_u32x4 four = la_lds_x4(smem + 16), stream = la_ldg_stream(a.in + 32);
    la_conform_put(a, 0, la_lds_u8(smem + 3));
    la_conform_put(a, 1, la_lds_u16(smem + 6));
    la_conform_put(a, 2, la_lds(smem + 12));
    la_conform_put(a, 3, la_bits(la_lds_f32(smem + 4)));
    la_conform_put(a, 4, two.x ^ two.y);
    la_conform_put(a, 5, four.x ^ (four.y << 1) ^ (four.z << 2) ^ (four.w << 3));
    la_conform_put(a, 6, stream.x ^ (stream.y << 1) ^ (stream.z << 2) ^ (stream.w << 3));
    la_conform_put(a, 7, la_ldg_acquire(reinterpret_cast<const uint32_t *>(a.in) + 5));
    la_stg_release(reinterpret_cast<uint32_t *>(a.out) + 8, two.y);
    la_sync_block();
    if (la_thread() == 0) {
        la_sts_u8(smem, four.x);
        la_sts_u16(smem + 2, (uint16_t)four.y);
        la_sts(smem + 4, four.z);
        la_sts_f32(smem + 8, la_float(four.w));
        la_sts_x2(smem + 16, two);
        la_sts_x4(smem + 32, stream);
    }
    la_conform_dump(a, smem, 64, 48);
}

/* ---- numbers: p[0] triples of words to as many words ---- */

typedef enum la_conform_op {
    LA_CONFORM_BF16X2,
    LA_CONFORM_F16X2,
    LA_CONFORM_E4M3X2,
    LA_CONFORM_E4M3X2_F16X2,
    LA_CONFORM_BF16_LO,
    LA_CONFORM_BF16_HI,
    LA_CONFORM_F16_LO,
    LA_CONFORM_F16_HI,
    LA_CONFORM_FMA_BF16X2,
    LA_CONFORM_FMA_F16X2,
    LA_CONFORM_LOP3,
    LA_CONFORM_PRMT,
    LA_CONFORM_I4_BF16X2,
    LA_CONFORM_I4_F16X2,
    LA_CONFORM_FMA,
    LA_CONFORM_EXP2,
    LA_CONFORM_LOG2,
    LA_CONFORM_RCP,
    LA_CONFORM_RSQRT
} la_conform_op;

template <int OP> LA_DEV uint32_t la_conform_number(uint32_t x, uint32_t y, uint32_t z)
{
    const float fx = la_float(x), fy = la_float(y), fz = la_float(z);
    switch (OP) {
    case LA_CONFORM_BF16X2: return la_bf16x2(fx, fy);
    case LA_CONFORM_F16X2: return la_f16x2(fx, fy);
    case LA_CONFORM_E4M3X2: return la_e4m3x2(fx, fy);
    case LA_CONFORM_E4M3X2_F16X2: return la_e4m3x2_f16x2(x);
    case LA_CONFORM_BF16_LO: return la_bits(la_bf16_lo(x));
    case LA_CONFORM_BF16_HI: return la_bits(la_bf16_hi(x));
    case LA_CONFORM_F16_LO: return la_bits(la_f16_lo(x));
    case LA_CONFORM_F16_HI: return la_bits(la_f16_hi(x));
    case LA_CONFORM_FMA_BF16X2: return la_fma_bf16x2(x, y, z);
    case LA_CONFORM_FMA_F16X2: return la_fma_f16x2(x, y, z);
    case LA_CONFORM_LOP3: return la_lop3<0x6a>(x, y, z);
    case LA_CONFORM_PRMT: return la_prmt(x, y, z);
    case LA_CONFORM_I4_BF16X2:
        return la_i4_bf16x2<0>(x) ^ (la_i4_bf16x2<1>(x) << 4) ^ (la_i4_bf16x2<2>(x) << 8) ^
               (la_i4_bf16x2<3>(x) << 12);
    case LA_CONFORM_I4_F16X2:
        return la_i4_f16x2<0>(x) ^ (la_i4_f16x2<1>(x) << 4) ^ (la_i4_f16x2<2>(x) << 8) ^
               (la_i4_f16x2<3>(x) << 12);
    case LA_CONFORM_FMA: return la_bits(la_fma(fx, fy, fz));
    case LA_CONFORM_EXP2: return la_bits(la_exp2(fx));
    case LA_CONFORM_LOG2: return la_bits(la_log2(fx));
    case LA_CONFORM_RCP: return la_bits(la_rcp(fx));
    case LA_CONFORM_RSQRT: return la_bits(la_rsqrt(fx));
    }
    return 0;
}

template <int OP> LA_KERNEL(la_conform_numbers, la_conform_args)
{
    for (int i = la_thread(); i < a.p[0]; i += la_threads()) {
        la_conform_put(a, i,
                       la_conform_number<OP>(la_conform_word(a, i * 3),
                                             la_conform_word(a, i * 3 + 1),
                                             la_conform_word(a, i * 3 + 2)));
    }
}

/* ---- the list: X(name, threads, blocks, cluster, kernel) ---- */

#define LA_CONFORM_WGMMA(X, N)                                                     \
    X("wgmma_bf16_ss_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_BF16, N, 0, 0, 0>) \
    X("wgmma_bf16_rs_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_BF16, N, 0, 0, 1>) \
    X("wgmma_e4m3_ss_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_E4M3, N, 0, 0, 0>)
#define LA_CONFORM_WGMMA_MORE(X, N)                                                     \
    X("wgmma_f16_ss_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_F16, N, 0, 0, 0>)        \
    X("wgmma_f16_rs_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_F16, N, 0, 0, 1>)        \
    X("wgmma_e4m3_rs_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_E4M3, N, 0, 0, 1>)      \
    X("wgmma_bf16_ss_tb_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_BF16, N, 0, 1, 0>)   \
    X("wgmma_bf16_ss_ta_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_BF16, N, 1, 0, 0>)   \
    X("wgmma_bf16_ss_tatb_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_BF16, N, 1, 1, 0>) \
    X("wgmma_bf16_rs_tb_" #N, 128, 1, 1, la_conform_wgmma<LA_WGMMA_BF16, N, 0, 1, 1>)

/* clang-format off */
#define LA_CONFORM_WGMMA_ALL(X)                                                                    \
    LA_CONFORM_WGMMA(X, 8) LA_CONFORM_WGMMA(X, 16) LA_CONFORM_WGMMA(X, 24)                         \
    LA_CONFORM_WGMMA(X, 32) LA_CONFORM_WGMMA(X, 40) LA_CONFORM_WGMMA(X, 48)                        \
    LA_CONFORM_WGMMA(X, 56) LA_CONFORM_WGMMA(X, 64) LA_CONFORM_WGMMA(X, 72)                        \
    LA_CONFORM_WGMMA(X, 80) LA_CONFORM_WGMMA(X, 88) LA_CONFORM_WGMMA(X, 96)                        \
    LA_CONFORM_WGMMA(X, 104) LA_CONFORM_WGMMA(X, 112) LA_CONFORM_WGMMA(X, 120)                     \
    LA_CONFORM_WGMMA(X, 128) LA_CONFORM_WGMMA(X, 136) LA_CONFORM_WGMMA(X, 144)                     \
    LA_CONFORM_WGMMA(X, 152) LA_CONFORM_WGMMA(X, 160) LA_CONFORM_WGMMA(X, 168)                     \
    LA_CONFORM_WGMMA(X, 176) LA_CONFORM_WGMMA(X, 184) LA_CONFORM_WGMMA(X, 192)                     \
    LA_CONFORM_WGMMA(X, 200) LA_CONFORM_WGMMA(X, 208) LA_CONFORM_WGMMA(X, 216)                     \
    LA_CONFORM_WGMMA(X, 224) LA_CONFORM_WGMMA(X, 232) LA_CONFORM_WGMMA(X, 240)                     \
    LA_CONFORM_WGMMA(X, 248) LA_CONFORM_WGMMA(X, 256)                                              \
    LA_CONFORM_WGMMA_MORE(X, 64) LA_CONFORM_WGMMA_MORE(X, 128) LA_CONFORM_WGMMA_MORE(X, 256)
/* clang-format on */

#define LA_CONFORM_ALL(X)                                                     \
    LA_CONFORM_WGMMA_ALL(X)                                                   \
    X("mma_bf16", 32, 1, 1, la_conform_mma<0>)                                \
    X("mma_f16", 32, 1, 1, la_conform_mma<1>)                                 \
    X("mma_e4m3", 32, 1, 1, la_conform_mma<2>)                                \
    X("mma_s8", 32, 1, 1, la_conform_mma<3>)                                  \
    X("ldmatrix_x4", 32, 1, 1, la_conform_ldmatrix<4, 0>)                     \
    X("ldmatrix_x4_trans", 32, 1, 1, la_conform_ldmatrix<4, 1>)               \
    X("ldmatrix_x2", 32, 1, 1, la_conform_ldmatrix<2, 0>)                     \
    X("ldmatrix_x2_trans", 32, 1, 1, la_conform_ldmatrix<2, 1>)               \
    X("stmatrix_x4", 32, 1, 1, la_conform_stmatrix<4, 0>)                     \
    X("stmatrix_x4_trans", 32, 1, 1, la_conform_stmatrix<4, 1>)               \
    X("stmatrix_x2", 32, 1, 1, la_conform_stmatrix<2, 0>)                     \
    X("stmatrix_x2_trans", 32, 1, 1, la_conform_stmatrix<2, 1>)               \
    X("tma_load", 32, 1, 1, la_conform_tma_load<0>)                           \
    X("tma_load_hint", 32, 1, 1, la_conform_tma_load<1>)                      \
    X("tma_multicast", 32, 2, 2, la_conform_tma_multicast)                    \
    X("tma_store", 32, 1, 1, la_conform_tma_store)                            \
    X("bulk", 32, 1, 1, la_conform_bulk<0>)                                   \
    X("bulk_hint", 32, 1, 1, la_conform_bulk<1>)                              \
    X("cp_async_16", 32, 1, 1, la_conform_cp_async<16>)                       \
    X("cp_async_4", 32, 1, 1, la_conform_cp_async<4>)                         \
    X("cp_async_barrier", 32, 1, 1, la_conform_cp_async_barrier)              \
    X("cluster", 32, 2, 2, la_conform_cluster)                                \
    X("warp", 32, 1, 1, la_conform_warp)                                      \
    X("block", 128, 2, 1, la_conform_block)                                   \
    X("mbar", 32, 1, 1, la_conform_mbar)                                      \
    X("memory", 32, 1, 1, la_conform_memory)                                  \
    X("bf16x2", 128, 1, 1, la_conform_numbers<LA_CONFORM_BF16X2>)             \
    X("f16x2", 128, 1, 1, la_conform_numbers<LA_CONFORM_F16X2>)               \
    X("e4m3x2", 128, 1, 1, la_conform_numbers<LA_CONFORM_E4M3X2>)             \
    X("e4m3x2_f16x2", 128, 1, 1, la_conform_numbers<LA_CONFORM_E4M3X2_F16X2>) \
    X("bf16_lo", 128, 1, 1, la_conform_numbers<LA_CONFORM_BF16_LO>)           \
    X("bf16_hi", 128, 1, 1, la_conform_numbers<LA_CONFORM_BF16_HI>)           \
    X("f16_lo", 128, 1, 1, la_conform_numbers<LA_CONFORM_F16_LO>)             \
    X("f16_hi", 128, 1, 1, la_conform_numbers<LA_CONFORM_F16_HI>)             \
    X("fma_bf16x2", 128, 1, 1, la_conform_numbers<LA_CONFORM_FMA_BF16X2>)     \
    X("fma_f16x2", 128, 1, 1, la_conform_numbers<LA_CONFORM_FMA_F16X2>)       \
    X("lop3", 128, 1, 1, la_conform_numbers<LA_CONFORM_LOP3>)                 \
    X("prmt", 128, 1, 1, la_conform_numbers<LA_CONFORM_PRMT>)                 \
    X("i4_bf16x2", 128, 1, 1, la_conform_numbers<LA_CONFORM_I4_BF16X2>)       \
    X("i4_f16x2", 128, 1, 1, la_conform_numbers<LA_CONFORM_I4_F16X2>)         \
    X("fma", 128, 1, 1, la_conform_numbers<LA_CONFORM_FMA>)                   \
    X("exp2", 128, 1, 1, la_conform_numbers<LA_CONFORM_EXP2>)                 \
    X("log2", 128, 1, 1, la_conform_numbers<LA_CONFORM_LOG2>)                 \
    X("rcp", 128, 1, 1, la_conform_numbers<LA_CONFORM_RCP>)                   \
    X("rsqrt", 128, 1, 1, la_conform_numbers<LA_CONFORM_RSQRT>)

/* ---- running one: the interface of the two hosts ---- */

enum { LA_CONFORM_SMEM = 66560 };

typedef struct la_conform_call {
    const void *in; /* host memory */
    void *out;      /* host memory, copied in before the launch and out behind it */
    size_t in_bytes, out_bytes;
    la_tensor_shape shape; /* rank 0: no map; base: NULL stands for in, anything else for out */
    int32_t p[16];
    uint32_t seed; /* of the emulator */
} la_conform_call;

typedef struct la_conform_entry {
    const char *name;
    la_entry entry;
    int threads, blocks, cluster;
} la_conform_entry;

#ifdef __cplusplus
extern "C" {
#endif
/* Names in the order of the list, NULL behind the last. */
const char *la_conform_name(int i);
/* Runs the kernel of this name. 0, or -1 with the reason in error[n]. */
int la_conform_run(const char *name, const la_conform_call *call, char *error, size_t n);
#ifdef __cplusplus
}
#endif

#endif
