/* table.c - which function fills which slot of the kernel list.
 *
 * Owns the choice: levels fill bottom-up, so the highest level that has a kernel wins. Invariant:
 * the scalar level fills every slot. Called by model/backend_cpu.c and the tests.
 */
#include "../kernels.h"

typedef void (*la_fill)(la_kernels *t);

/* LA_HAVE_ISA_<NAME> says that the build could compile isa_<name>.c. */
static const la_fill fills[LA_ISA_COUNT] = {
    la_kernels_fill_scalar,
#ifdef LA_HAVE_ISA_AVX2
    [LA_ISA_AVX2] = la_kernels_fill_avx2,
#endif
#ifdef LA_HAVE_ISA_AVX512
    [LA_ISA_AVX512] = la_kernels_fill_avx512,
#endif
#ifdef LA_HAVE_ISA_VNNI
    [LA_ISA_VNNI] = la_kernels_fill_vnni,
#endif
#ifdef LA_HAVE_ISA_BF16
    [LA_ISA_BF16] = la_kernels_fill_bf16,
#endif
};

static const char *const names[] = {
#define LA_KERNEL_NAME(name, result, args) #name,
    LA_KERNELS(LA_KERNEL_NAME)
#undef LA_KERNEL_NAME
};

int la_kernels_have(la_isa isa)
{
    return (int)isa >= 0 && isa < LA_ISA_COUNT && fills[isa] != NULL;
}

int la_kernels_count(void) { return (int)(sizeof names / sizeof names[0]); }

const char *la_kernels_name(int slot)
{
    return slot >= 0 && slot < la_kernels_count() ? names[slot] : NULL;
}

void la_kernels_select(la_isa isa, la_kernels *out, la_isa *which)
{
    for (int level = 0; level <= (int)isa; level++) {
        if (!la_kernels_have((la_isa)level)) {
            continue;
        }
        la_kernels t;
        memset(&t, 0, sizeof t);
        fills[level](&t);
        int slot = 0;
#define LA_KERNEL_TAKE(name, result, args) \
    if (t.name) {                          \
        out->name = t.name;                \
        if (which) {                       \
            which[slot] = (la_isa)level;   \
        }                                  \
    }                                      \
    slot++;
        LA_KERNELS(LA_KERNEL_TAKE)
#undef LA_KERNEL_TAKE
        (void)slot;
    }
}

la_store_fn la_kernels_store(const la_kernels *t, la_kv_form form)
{
    const la_store_fn slots[LA_KV_FORM_COUNT] = {[LA_KV_F32] = t->kv_store_f32,
                                                 [LA_KV_BF16] = t->kv_store_bf16,
                                                 [LA_KV_I8] = t->kv_store_i8,
                                                 [LA_KV_F8] = t->kv_store_f8};
    return slots[form];
}

la_attend_fn la_kernels_attend(const la_kernels *t, la_kv_form form)
{
    const la_attend_fn slots[LA_KV_FORM_COUNT] = {[LA_KV_F32] = t->attend_f32,
                                                  [LA_KV_BF16] = t->attend_bf16,
                                                  [LA_KV_I8] = t->attend_i8,
                                                  [LA_KV_F8] = t->attend_f8};
    return slots[form];
}

/* NULL for int8, which latents do not have. */
la_mla_store_fn la_kernels_mla_store(const la_kernels *t, la_kv_form form)
{
    const la_mla_store_fn slots[LA_KV_FORM_COUNT] = {[LA_KV_F32] = t->mla_store_f32,
                                                     [LA_KV_BF16] = t->mla_store_bf16,
                                                     [LA_KV_F8] = t->mla_store_f8};
    return slots[form];
}

la_attend_fn la_kernels_mla_attend(const la_kernels *t, la_kv_form form)
{
    const la_attend_fn slots[LA_KV_FORM_COUNT] = {[LA_KV_F32] = t->mla_attend_f32,
                                                  [LA_KV_BF16] = t->mla_attend_bf16,
                                                  [LA_KV_F8] = t->mla_attend_f8};
    return slots[form];
}

la_gemm_fn la_kernels_gemm(const la_kernels *t, la_format f, la_act_form form)
{
    const la_gemm_fn slots[LA_PACK_COUNT][LA_ACT_FORM_COUNT] = {
        [LA_PACK_F32] = {[LA_ACT_F32] = t->gemm_f32_f32, [LA_ACT_F64] = t->gemm_f32_f64},
        [LA_PACK_F16] = {[LA_ACT_F32] = t->gemm_f16_f32},
        [LA_PACK_BF16] = {[LA_ACT_BF16] = t->gemm_bf16_bf16},
        [LA_PACK_F8] = {[LA_ACT_BF16] = t->gemm_f8_bf16},
        [LA_PACK_I8] = {[LA_ACT_BF16] = t->gemm_i8_bf16, [LA_ACT_I8] = t->gemm_i8_i8},
        [LA_PACK_I4] = {[LA_ACT_BF16] = t->gemm_i4_bf16, [LA_ACT_I8] = t->gemm_i4_i8},
        [LA_PACK_I5] = {[LA_ACT_BF16] = t->gemm_i5_bf16, [LA_ACT_I8] = t->gemm_i5_i8},
        [LA_PACK_I6] = {[LA_ACT_BF16] = t->gemm_i6_bf16, [LA_ACT_I8] = t->gemm_i6_i8},
        [LA_PACK_NF4] = {[LA_ACT_BF16] = t->gemm_t4_bf16},
        [LA_PACK_FP4] = {[LA_ACT_BF16] = t->gemm_t4_bf16},
        [LA_PACK_E2M1] = {[LA_ACT_BF16] = t->gemm_t4_bf16},
        [LA_PACK_IQ4] = {[LA_ACT_BF16] = t->gemm_t4_bf16}};
    return slots[f.pack][form == LA_ACT_I8X2 ? LA_ACT_I8 : form];
}

la_probe_ops la_kernels_probe_ops(la_isa isa)
{
    /* accumulators x values x 2 operations per multiply-add */
    static const la_probe_ops ops[LA_ISA_COUNT] = {
        [LA_ISA_SCALAR] = {16 * 2, 0, 0},
        [LA_ISA_AVX2] = {12 * 8 * 2, 0, 0},
        [LA_ISA_AVX512] = {16 * 16 * 2, 0, 0},
        [LA_ISA_VNNI] = {16 * 16 * 2, 0, 16 * 64 * 2},
        [LA_ISA_BF16] = {16 * 16 * 2, 16 * 32 * 2, 16 * 64 * 2},
    };
    la_probe_ops none = {0, 0, 0};
    return la_kernels_have(isa) ? ops[isa] : none;
}
