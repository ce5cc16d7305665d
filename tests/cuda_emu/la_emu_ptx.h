/* la_emu_ptx.h - the emulator as kernels see it: one function behind each wrapper of la_ptx*.h.
 *
 * Owns the declarations that the LA_EMU halves of the wrappers call. They have C++ linkage and belong to
 * the thread (fiber) that calls them. Invariant: a fault inside one of them ends the launch and does not
 * return. Included by la_kernel.h under LA_EMU; implemented by emu_*.cpp.
 */
#ifndef LA_EMU_PTX_H
#define LA_EMU_PTX_H

#include <initializer_list>
#include <math.h>
#include <stdint.h>
#include <string.h>

struct la_tensor_map;

/* ---- threads (emu_barrier.cpp) ---- */

typedef enum la_emu_collective {
    LA_EMU_SHFL,
    LA_EMU_SHFL_XOR,
    LA_EMU_SHFL_DOWN,
    LA_EMU_SHFL_UP,
    LA_EMU_BALLOT,
    LA_EMU_ADD,
    LA_EMU_MIN,
    LA_EMU_MAX,
    LA_EMU_SYNC
} la_emu_collective;

int la_emu_thread(void);
int la_emu_threads(void);
int la_emu_block(int axis);
int la_emu_grid(int axis);
uint32_t la_emu_shuffle(la_emu_collective kind, uint32_t x, int by, uint32_t mask);
void la_emu_named_barrier(int id, int threads, int wait);
void la_emu_grid_wait(void);
void la_emu_grid_release(void);
int la_emu_elect(void);
void la_emu_registers(int count);

void la_emu_mbar_init(uint32_t bar, uint32_t arrivals);
void la_emu_mbar_inval(uint32_t bar);
void la_emu_mbar_arrive(uint32_t bar, int mapped);
void la_emu_mbar_expect(uint32_t bar, uint32_t bytes);
void la_emu_mbar_arrive_cp_async(uint32_t bar);
int la_emu_mbar_test(uint32_t bar, uint32_t parity);
void la_emu_mbar_wait(uint32_t bar, uint32_t parity);
void la_emu_fence_mbar_init(void);
void la_emu_fence_async(void);

uint32_t la_emu_cluster_rank(void);
uint32_t la_emu_cluster_blocks(void);
void la_emu_cluster_arrive(void);
void la_emu_cluster_wait(void);
uint32_t la_emu_mapa(uint32_t at, uint32_t rank);

/* ---- memory (emu_memory.cpp) ---- */

uint32_t la_emu_smem(void);
void la_emu_load_shared(uint32_t at, void *to, uint32_t bytes);
void la_emu_store_shared(uint32_t at, const void *from, uint32_t bytes);
void la_emu_load_global(const void *p, void *to, uint32_t bytes);
void la_emu_store_global(void *p, const void *from, uint32_t bytes);
uint32_t la_emu_ldg_acquire(const uint32_t *p);
uint32_t la_emu_atomic_add(uint32_t *p, uint32_t x);
uint32_t la_emu_atomic_add_shared(uint32_t at, uint32_t x);
void la_emu_fence(void);

template <class T> static inline T la_emu_lds(uint32_t at)
{
    T x;
    la_emu_load_shared(at, &x, sizeof x);
    return x;
}

template <class T> static inline void la_emu_sts(uint32_t at, T x)
{
    la_emu_store_shared(at, &x, sizeof x);
}

template <class T> static inline T la_emu_ldg(const T *p)
{
    T x;
    la_emu_load_global(p, &x, sizeof x);
    return x;
}

template <class T> static inline void la_emu_stg(T *p, T x)
{
    la_emu_store_global(p, &x, sizeof x);
}

/* ---- copies (emu_copy.cpp) ---- */

void la_emu_cp_async(uint32_t to, const void *from, int bytes, int valid);
void la_emu_cp_async_commit(void);
void la_emu_cp_async_wait(int left);
void la_emu_tma_map(const la_tensor_map *map);
void la_emu_tma_load(uint32_t to, const la_tensor_map *map, uint32_t bar, uint16_t blocks,
                     std::initializer_list<int> at);
void la_emu_tma_store(const la_tensor_map *map, uint32_t from, std::initializer_list<int> at);
void la_emu_bulk_load(uint32_t to, const void *from, uint32_t bytes, uint32_t bar);
void la_emu_bulk_store(void *to, uint32_t from, uint32_t bytes);
void la_emu_bulk_send(uint32_t to, uint32_t from, uint32_t bytes, uint32_t bar);
void la_emu_bulk_commit(void);
void la_emu_bulk_wait(int left, int reads_only);

/* ---- products (emu_mma.cpp, emu_wgmma.cpp) ---- */

typedef enum la_emu_type { LA_EMU_BF16, LA_EMU_F16, LA_EMU_E4M3 } la_emu_type;

typedef struct la_emu_wgmma {
    int type; /* la_emu_type, the numbers of la_wgmma_type */
    int n;
    int trans_a, trans_b;
    int a_in_registers;
} la_emu_wgmma;

void la_emu_mma(la_emu_type type, float *d, const uint32_t *a, const uint32_t *b);
void la_emu_mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b);
void la_emu_ldmatrix(uint32_t *r, uint32_t row, int count, int trans);
void la_emu_stmatrix(uint32_t row, const uint32_t *r, int count, int trans);
void la_emu_wgmma_issue(la_emu_wgmma form, float *d, uint64_t a, const uint32_t *a_registers,
                        uint64_t b, int accumulate);
void la_emu_wgmma_fence(void);
void la_emu_wgmma_commit(void);
void la_emu_wgmma_wait(int left);

/* ---- numbers (emu_number.cpp) ---- */

uint32_t la_emu_lop3(uint32_t x, uint32_t y, uint32_t z, int table);
uint32_t la_emu_prmt(uint32_t x, uint32_t y, uint32_t pick);
uint32_t la_emu_bf16x2(float lo, float hi);
uint32_t la_emu_f16x2(float lo, float hi);
float la_emu_f16(uint32_t bits);
uint32_t la_emu_fma_bf16x2(uint32_t x, uint32_t y, uint32_t z);
uint32_t la_emu_fma_f16x2(uint32_t x, uint32_t y, uint32_t z);
uint16_t la_emu_e4m3x2(float lo, float hi);
uint32_t la_emu_e4m3x2_f16x2(uint32_t codes);
float la_emu_e4m3(uint32_t code);

static inline uint32_t la_emu_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float la_emu_f32(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float la_emu_bf16(uint32_t bits)
{
    return la_emu_f32(bits << 16);
}

static inline float la_emu_fma(float x, float y, float z)
{
    return fmaf(x, y, z);
}

/* Subnormal numbers are zero, as .ftz has it. */
static inline float la_emu_flush(float x)
{
    return fpclassify(x) == FP_SUBNORMAL ? copysignf(0.0f, x) : x;
}

static inline float la_emu_exp2(float x)
{
    return la_emu_flush(exp2f(la_emu_flush(x)));
}

static inline float la_emu_log2(float x)
{
    return log2f(la_emu_flush(x));
}

static inline float la_emu_rcp(float x)
{
    return la_emu_flush(1.0f / la_emu_flush(x));
}

static inline float la_emu_rsqrt(float x)
{
    return 1.0f / sqrtf(la_emu_flush(x));
}

#endif
