/* la_ptx_wgmma.h - matrix products of a warpgroup (wgmma) with operands in shared memory.
 *
 * Owns the wrappers of wgmma for every N of 8..256 and their shared-memory descriptors. D of 64 x N lies in
 * the threads of four warps: with w = warp, g = lane / 4, t = lane % 4, d[4j + i] is row 16w + g + 8 (i / 2),
 * column 8j + 2t + i % 2. A from registers lies like that of mma.sync, warp w holding rows 16w.. Depth: 16
 * for 16-bit operands, 32 for E4M3. Invariant: a product runs until la_wgmma_wait; until then its
 * accumulators, A registers and shared operands belong to it. Included by la_ptx_sm90.h.
 *
 * The order of use: la_wgmma_fence (before the first product, and after any other use of the registers),
 * products, la_wgmma_commit, la_wgmma_wait. Waits and commits stand outside of branches, and la_wgmma_pin
 * holds the accumulators around them, or the compiler serializes products.
 */
#ifndef LA_PTX_WGMMA_H
#define LA_PTX_WGMMA_H

#include "la_kernel.h"

typedef enum la_wgmma_type { LA_WGMMA_BF16, LA_WGMMA_F16, LA_WGMMA_E4M3 } la_wgmma_type;

/* ---- order ---- */

/* Orders the warpgroup's accesses to registers (and to shared memory written before) before products. */
LA_DEV void la_wgmma_fence(void)
{
    LA_PTX(la_emu_wgmma_fence(), asm volatile("wgmma.fence.sync.aligned;" :: : "memory"));
}

/* Closes a group of products. */
LA_DEV void la_wgmma_commit(void)
{
    LA_PTX(la_emu_wgmma_commit(), asm volatile("wgmma.commit_group.sync.aligned;" :: : "memory"));
}

/* Waits until at most the last LEFT groups are unfinished. */
template <int LEFT> LA_DEV void la_wgmma_wait(void)
{
    LA_PTX(la_emu_wgmma_wait(LEFT),
           asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"));
}

/* Keeps the compiler from moving accumulators across this point. */
template <int COUNT> LA_DEV void la_wgmma_pin(float (&d)[COUNT])
{
#ifdef LA_EMU
    (void)d;
#else
    LA_UNROLL
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+f"(d[i])::"memory");
    }
#endif
}

/* ---- descriptors ---- */

/* Describes an operand in shared memory: its address, how its rows are swizzled, and two distances in
 * bytes. With depth fastest ("K-major") `outer` is from 8 rows to the next 8, and `inner` counts without
 * swizzle only: from 16 bytes of depth to the next. Transposed (16-bit only) `inner` is from one run of
 * 128, 64 or 32 bytes of rows to the next, `outer` from 8 steps of depth to the next. */
LA_DEV uint64_t la_wgmma_desc(uint32_t at, la_tensor_swizzle swizzle, uint32_t inner,
                              uint32_t outer)
{
    uint64_t mode = swizzle == LA_SWIZZLE_NONE ? 0 : 4 - (uint64_t)swizzle;
    return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)((inner & 0x3ffff) >> 4) << 16 |
           (uint64_t)((outer & 0x3ffff) >> 4) << 32 | mode << 62;
}

/* Rows of 128 bytes of depth, as TMA writes a box with 128-byte swizzle. A step of 32 bytes of depth adds 2
 * to the descriptor, 8 rows add 64. */
LA_DEV uint64_t la_wgmma_desc_rows(uint32_t at)
{
    return la_wgmma_desc(at, LA_SWIZZLE_128, 16, 1024);
}

/* ---- the products ---- */

#ifndef LA_EMU

/* Registers of D by N, as operands and as text. */
#define LA_WGMMA_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LA_WGMMA_D8 LA_WGMMA_FOUR(0)
#define LA_WGMMA_D16 LA_WGMMA_D8, LA_WGMMA_FOUR(4)
#define LA_WGMMA_D24 LA_WGMMA_D16, LA_WGMMA_FOUR(8)
#define LA_WGMMA_D32 LA_WGMMA_D24, LA_WGMMA_FOUR(12)
#define LA_WGMMA_D40 LA_WGMMA_D32, LA_WGMMA_FOUR(16)
#define LA_WGMMA_D48 LA_WGMMA_D40, LA_WGMMA_FOUR(20)
#define LA_WGMMA_D56 LA_WGMMA_D48, LA_WGMMA_FOUR(24)
#define LA_WGMMA_D64 LA_WGMMA_D56, LA_WGMMA_FOUR(28)
#define LA_WGMMA_D72 LA_WGMMA_D64, LA_WGMMA_FOUR(32)
#define LA_WGMMA_D80 LA_WGMMA_D72, LA_WGMMA_FOUR(36)
#define LA_WGMMA_D88 LA_WGMMA_D80, LA_WGMMA_FOUR(40)
#define LA_WGMMA_D96 LA_WGMMA_D88, LA_WGMMA_FOUR(44)
#define LA_WGMMA_D104 LA_WGMMA_D96, LA_WGMMA_FOUR(48)
#define LA_WGMMA_D112 LA_WGMMA_D104, LA_WGMMA_FOUR(52)
#define LA_WGMMA_D120 LA_WGMMA_D112, LA_WGMMA_FOUR(56)
#define LA_WGMMA_D128 LA_WGMMA_D120, LA_WGMMA_FOUR(60)
#define LA_WGMMA_D136 LA_WGMMA_D128, LA_WGMMA_FOUR(64)
#define LA_WGMMA_D144 LA_WGMMA_D136, LA_WGMMA_FOUR(68)
#define LA_WGMMA_D152 LA_WGMMA_D144, LA_WGMMA_FOUR(72)
#define LA_WGMMA_D160 LA_WGMMA_D152, LA_WGMMA_FOUR(76)
#define LA_WGMMA_D168 LA_WGMMA_D160, LA_WGMMA_FOUR(80)
#define LA_WGMMA_D176 LA_WGMMA_D168, LA_WGMMA_FOUR(84)
#define LA_WGMMA_D184 LA_WGMMA_D176, LA_WGMMA_FOUR(88)
#define LA_WGMMA_D192 LA_WGMMA_D184, LA_WGMMA_FOUR(92)
#define LA_WGMMA_D200 LA_WGMMA_D192, LA_WGMMA_FOUR(96)
#define LA_WGMMA_D208 LA_WGMMA_D200, LA_WGMMA_FOUR(100)
#define LA_WGMMA_D216 LA_WGMMA_D208, LA_WGMMA_FOUR(104)
#define LA_WGMMA_D224 LA_WGMMA_D216, LA_WGMMA_FOUR(108)
#define LA_WGMMA_D232 LA_WGMMA_D224, LA_WGMMA_FOUR(112)
#define LA_WGMMA_D240 LA_WGMMA_D232, LA_WGMMA_FOUR(116)
#define LA_WGMMA_D248 LA_WGMMA_D240, LA_WGMMA_FOUR(120)
#define LA_WGMMA_D256 LA_WGMMA_D248, LA_WGMMA_FOUR(124)
#define LA_WGMMA_T8 "%0, %1, %2, %3"
#define LA_WGMMA_T16 LA_WGMMA_T8 ", %4, %5, %6, %7"
#define LA_WGMMA_T24 LA_WGMMA_T16 ", %8, %9, %10, %11"
#define LA_WGMMA_T32 LA_WGMMA_T24 ", %12, %13, %14, %15"
#define LA_WGMMA_T40 LA_WGMMA_T32 ", %16, %17, %18, %19"
#define LA_WGMMA_T48 LA_WGMMA_T40 ", %20, %21, %22, %23"
#define LA_WGMMA_T56 LA_WGMMA_T48 ", %24, %25, %26, %27"
#define LA_WGMMA_T64 LA_WGMMA_T56 ", %28, %29, %30, %31"
#define LA_WGMMA_T72 LA_WGMMA_T64 ", %32, %33, %34, %35"
#define LA_WGMMA_T80 LA_WGMMA_T72 ", %36, %37, %38, %39"
#define LA_WGMMA_T88 LA_WGMMA_T80 ", %40, %41, %42, %43"
#define LA_WGMMA_T96 LA_WGMMA_T88 ", %44, %45, %46, %47"
#define LA_WGMMA_T104 LA_WGMMA_T96 ", %48, %49, %50, %51"
#define LA_WGMMA_T112 LA_WGMMA_T104 ", %52, %53, %54, %55"
#define LA_WGMMA_T120 LA_WGMMA_T112 ", %56, %57, %58, %59"
#define LA_WGMMA_T128 LA_WGMMA_T120 ", %60, %61, %62, %63"
#define LA_WGMMA_T136 LA_WGMMA_T128 ", %64, %65, %66, %67"
#define LA_WGMMA_T144 LA_WGMMA_T136 ", %68, %69, %70, %71"
#define LA_WGMMA_T152 LA_WGMMA_T144 ", %72, %73, %74, %75"
#define LA_WGMMA_T160 LA_WGMMA_T152 ", %76, %77, %78, %79"
#define LA_WGMMA_T168 LA_WGMMA_T160 ", %80, %81, %82, %83"
#define LA_WGMMA_T176 LA_WGMMA_T168 ", %84, %85, %86, %87"
#define LA_WGMMA_T184 LA_WGMMA_T176 ", %88, %89, %90, %91"
#define LA_WGMMA_T192 LA_WGMMA_T184 ", %92, %93, %94, %95"
#define LA_WGMMA_T200 LA_WGMMA_T192 ", %96, %97, %98, %99"
#define LA_WGMMA_T208 LA_WGMMA_T200 ", %100, %101, %102, %103"
#define LA_WGMMA_T216 LA_WGMMA_T208 ", %104, %105, %106, %107"
#define LA_WGMMA_T224 LA_WGMMA_T216 ", %108, %109, %110, %111"
#define LA_WGMMA_T232 LA_WGMMA_T224 ", %112, %113, %114, %115"
#define LA_WGMMA_T240 LA_WGMMA_T232 ", %116, %117, %118, %119"
#define LA_WGMMA_T248 LA_WGMMA_T240 ", %120, %121, %122, %123"
#define LA_WGMMA_T256 LA_WGMMA_T248 ", %124, %125, %126, %127"

/* Operand numbers behind those of D: o0 = N / 2 and on. */
#define LA_WGMMA_SS16(N, type, o0, o1, o2, o3, o4)                                           \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2 ", 0;\n"                           \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type             \
                 " {" LA_WGMMA_T##N "}, %" #o0 ", %" #o1 ", p, 1, 1, %" #o3 ", %" #o4 ";\n}" \
                 : LA_WGMMA_D##N                                                             \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(TA), "n"(TB))
#define LA_WGMMA_SS8(N, type, o0, o1, o2)                                        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2 ", 0;\n"               \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32." type "." type \
                 " {" LA_WGMMA_T##N "}, %" #o0 ", %" #o1 ", p, 1, 1;\n}"         \
                 : LA_WGMMA_D##N                                                 \
                 : "l"(a), "l"(b), "r"(accumulate))
#define LA_WGMMA_RS16(N, type, o0, o1, o2, o3, o4, o5, o6)                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5 ", 0;\n"                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type         \
                 " {" LA_WGMMA_T##N "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4 \
                                    ", p, 1, 1, %" #o6 ";\n}"                            \
                 : LA_WGMMA_D##N                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TB))
#define LA_WGMMA_RS8(N, type, o0, o1, o2, o3, o4, o5)                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5 ", 0;\n"                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32." type "." type         \
                 " {" LA_WGMMA_T##N "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4 \
                                    ", p, 1, 1;\n}"                                      \
                 : LA_WGMMA_D##N                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))

template <int N> struct la_wgmma_form;
#define LA_WGMMA_FORM(N, o0, o1, o2, o3, o4, o5, o6)                                         \
    template <> struct la_wgmma_form<N> {                                                    \
        template <la_wgmma_type T, int TA, int TB>                                           \
        static __device__ __forceinline__ void ss(float (&d)[N / 2], uint64_t a, uint64_t b, \
                                                  int accumulate)                            \
        {                                                                                    \
            if constexpr (T == LA_WGMMA_BF16) {                                              \
                LA_WGMMA_SS16(N, "bf16", o0, o1, o2, o3, o4);                                \
            }                                                                                \
            else if constexpr (T == LA_WGMMA_F16) {                                          \
                LA_WGMMA_SS16(N, "f16", o0, o1, o2, o3, o4);                                 \
            }                                                                                \
            else {                                                                           \
                LA_WGMMA_SS8(N, "e4m3", o0, o1, o2);                                         \
            }                                                                                \
        }                                                                                    \
        template <la_wgmma_type T, int TB>                                                   \
        static __device__ __forceinline__ void rs(float (&d)[N / 2], const uint32_t (&a)[4], \
                                                  uint64_t b, int accumulate)                \
        {                                                                                    \
            if constexpr (T == LA_WGMMA_BF16) {                                              \
                LA_WGMMA_RS16(N, "bf16", o0, o1, o2, o3, o4, o5, o6);                        \
            }                                                                                \
            else if constexpr (T == LA_WGMMA_F16) {                                          \
                LA_WGMMA_RS16(N, "f16", o0, o1, o2, o3, o4, o5, o6);                         \
            }                                                                                \
            else {                                                                           \
                LA_WGMMA_RS8(N, "e4m3", o0, o1, o2, o3, o4, o5);                             \
            }                                                                                \
        }                                                                                    \
    };
LA_WGMMA_FORM(8, 4, 5, 6, 7, 8, 9, 10)
LA_WGMMA_FORM(16, 8, 9, 10, 11, 12, 13, 14)
LA_WGMMA_FORM(24, 12, 13, 14, 15, 16, 17, 18)
LA_WGMMA_FORM(32, 16, 17, 18, 19, 20, 21, 22)
LA_WGMMA_FORM(40, 20, 21, 22, 23, 24, 25, 26)
LA_WGMMA_FORM(48, 24, 25, 26, 27, 28, 29, 30)
LA_WGMMA_FORM(56, 28, 29, 30, 31, 32, 33, 34)
LA_WGMMA_FORM(64, 32, 33, 34, 35, 36, 37, 38)
LA_WGMMA_FORM(72, 36, 37, 38, 39, 40, 41, 42)
LA_WGMMA_FORM(80, 40, 41, 42, 43, 44, 45, 46)
LA_WGMMA_FORM(88, 44, 45, 46, 47, 48, 49, 50)
LA_WGMMA_FORM(96, 48, 49, 50, 51, 52, 53, 54)
LA_WGMMA_FORM(104, 52, 53, 54, 55, 56, 57, 58)
LA_WGMMA_FORM(112, 56, 57, 58, 59, 60, 61, 62)
LA_WGMMA_FORM(120, 60, 61, 62, 63, 64, 65, 66)
LA_WGMMA_FORM(128, 64, 65, 66, 67, 68, 69, 70)
LA_WGMMA_FORM(136, 68, 69, 70, 71, 72, 73, 74)
LA_WGMMA_FORM(144, 72, 73, 74, 75, 76, 77, 78)
LA_WGMMA_FORM(152, 76, 77, 78, 79, 80, 81, 82)
LA_WGMMA_FORM(160, 80, 81, 82, 83, 84, 85, 86)
LA_WGMMA_FORM(168, 84, 85, 86, 87, 88, 89, 90)
LA_WGMMA_FORM(176, 88, 89, 90, 91, 92, 93, 94)
LA_WGMMA_FORM(184, 92, 93, 94, 95, 96, 97, 98)
LA_WGMMA_FORM(192, 96, 97, 98, 99, 100, 101, 102)
LA_WGMMA_FORM(200, 100, 101, 102, 103, 104, 105, 106)
LA_WGMMA_FORM(208, 104, 105, 106, 107, 108, 109, 110)
LA_WGMMA_FORM(216, 108, 109, 110, 111, 112, 113, 114)
LA_WGMMA_FORM(224, 112, 113, 114, 115, 116, 117, 118)
LA_WGMMA_FORM(232, 116, 117, 118, 119, 120, 121, 122)
LA_WGMMA_FORM(240, 120, 121, 122, 123, 124, 125, 126)
LA_WGMMA_FORM(248, 124, 125, 126, 127, 128, 129, 130)
LA_WGMMA_FORM(256, 128, 129, 130, 131, 132, 133, 134)

#endif

/* d[64 x N] (+)= A[64 x depth] B[depth x N], both in shared memory (la_wgmma_desc); with `accumulate` 0 d is
 * overwritten. TA, TB: transposed, with rows fastest (16-bit types). */
template <la_wgmma_type T, int N, int TA = 0, int TB = 0>
LA_DEV void la_wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate)
{
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "wgmma has columns in eights up to 256");
    static_assert(T != LA_WGMMA_E4M3 || (!TA && !TB), "8-bit operands have depth fastest");
    LA_PTX(la_emu_wgmma_issue({(int)T, N, TA, TB, 0}, d, a, nullptr, b, accumulate),
           la_wgmma_form<N>::template ss<T, TA, TB>(d, a, b, accumulate));
}

/* The same with A in registers. */
template <la_wgmma_type T, int N, int TB = 0>
LA_DEV void la_wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate)
{
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "wgmma has columns in eights up to 256");
    static_assert(T != LA_WGMMA_E4M3 || !TB, "8-bit operands have depth fastest");
    LA_PTX(la_emu_wgmma_issue({(int)T, N, 0, TB, 1}, d, 0, a, b, accumulate),
           la_wgmma_form<N>::template rs<T, TB>(d, a, b, accumulate));
}

#endif
