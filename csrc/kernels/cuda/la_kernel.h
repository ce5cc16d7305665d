/* la_kernel.h - how a GPU kernel is declared and named, for nvcc and for the host emulator alike.
 *
 * Owns LA_KERNEL, LA_ENTRY, LA_DEV and the opaque tensor map that kernels take inside their arguments.
 * A kernel is one function of one argument struct passed by value; it is compiled by nvcc, and by a
 * C++17 compiler with -DLA_EMU as a plain function that tests/cuda_emu runs with one fiber a thread.
 * Invariant: nothing here needs a CUDA header, so host code that only fills argument structs includes it
 * too. Used by every kernel (through la_ptx.h) and by whoever launches one.
 *
 *     typedef struct la_copy_args { const float *src; float *dst; int64_t n; } la_copy_args;
 *     template <int VEC> LA_KERNEL(la_copy, la_copy_args) { ... a.src ... a.n ... }
 *     la_rt_launch(stream, LA_ENTRY(la_copy<4>), &args, sizeof args, &shape)
 */
#ifndef LA_KERNEL_H
#define LA_KERNEL_H

#include <stddef.h>
#include <stdint.h>

/* What launches a kernel: on the device the kernel's address, in the emulator a call with its arguments. */
#ifdef LA_EMU
typedef void (*la_entry)(const void *args);
#else
typedef const void *la_entry;
#endif

/* A TMA tensor map: 128 opaque bytes, written by the runtime (CUtensorMap) or by la_emu_tensor_map. */
typedef struct alignas(64) la_tensor_map {
    uint64_t words[16];
} la_tensor_map;

typedef enum la_tensor_swizzle {
    LA_SWIZZLE_NONE = 0,
    LA_SWIZZLE_32,
    LA_SWIZZLE_64,
    LA_SWIZZLE_128
} la_tensor_swizzle;

/* What a tensor map is made of. Dimensions run from the fastest; elements out of bounds read as zero and
 * are not written. */
typedef struct la_tensor_shape {
    const void *base;   /* of device memory, 16-byte aligned */
    int element_bytes;  /* 1, 2, 4 or 8 */
    int rank;           /* 1..5 */
    uint64_t dims[5];   /* elements */
    uint64_t stride[4]; /* bytes from one index to the next of dims[1..], multiples of 16 */
    uint32_t box[5];    /* elements, 1..256 each */
    la_tensor_swizzle swizzle;
} la_tensor_shape;

#ifdef LA_EMU

#include "la_emu_ptx.h"

#define LA_DEV static inline
#define LA_UNROLL
#define LA_KERNEL(name, args_t) inline void name([[maybe_unused]] const args_t &a)
#define LA_KERNEL_BOUNDS(name, args_t, threads, blocks) LA_KERNEL(name, args_t)

template <auto kernel> struct la_entry_of;
template <class args_t, void (*kernel)(const args_t &)> struct la_entry_of<kernel> {
    static void call(const void *args)
    {
        kernel(*static_cast<const args_t *>(args));
    }
};
#define LA_ENTRY(...) (&la_entry_of<(__VA_ARGS__)>::call)

#else

#define LA_DEV static __device__ __forceinline__
#define LA_UNROLL _Pragma("unroll")
#define LA_KERNEL(name, args_t) __global__ void name(const __grid_constant__ args_t a)
/* With the most threads of a block and the fewest blocks of an SM, which decide the registers. */
#define LA_KERNEL_BOUNDS(name, args_t, threads, blocks) \
    __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ args_t a)
#define LA_ENTRY(...) (reinterpret_cast<la_entry>(__VA_ARGS__))

#endif

/* The two bodies of a wrapper: a call into the emulator, then what the device runs. */
#ifdef LA_EMU
#define LA_PTX(emulated, ...) emulated
#else
#define LA_PTX(emulated, ...) __VA_ARGS__
#endif

/* Emits a kernel that nothing in its file launches: LA_INSTANCE(la_copy_args, la_copy<4>). */
#ifdef LA_EMU
#define LA_INSTANCE(args_t, ...) template void __VA_ARGS__(const args_t &a);
#else
#define LA_INSTANCE(args_t, ...) \
    template __global__ void __VA_ARGS__(const __grid_constant__ args_t a);
#endif

#endif
