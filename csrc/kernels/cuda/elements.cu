/* elements.cu - what users want of single numbers: activations, gates, sums, wider types, results of draws.
 *
 * Owns the kernels that go over an array element by element, a thread EACH of them, with the arithmetic that finishes
 * products (product_finish.h). Invariant: an element is read and written by one thread, so a result may lie where
 * an operand does. Launched by backend_kernels.cu.
 */
#include "product_finish.h"
#include "sample.h"

enum { BLOCK = 256, EACH = 4 };

/* ---- numbers ---- */

LA_DEV float operand(const la_device_elements &a, int64_t i)
{
    return la_ldg(static_cast<const float *>(a.x) + i);
}

LA_DEV float wide(const la_device_elements &a, int64_t i)
{
    uint32_t bits = la_ldg(static_cast<const uint16_t *>(a.x) + i);
    return a.op == LA_ELEMENT_F16 ? la_f16_lo(bits) : la_bf16_lo(bits);
}

LA_DEV float element(const la_device_elements &a, int64_t i)
{
    float x;
    switch (a.op) {
    case LA_ELEMENT_ADD: return la_fma(a.scale, operand(a, i), la_ldg(a.y + i));
    case LA_ELEMENT_ACT:
        x = operand(a, i);
        return a.act == LA_GATE_CLIP ? la_gate_up(a.act, x, 0.0f) : la_gate(a.act, x);
    case LA_ELEMENT_ACT_MUL: return la_gate_up(a.act, operand(a, i), la_ldg(a.y + i));
    case LA_ELEMENT_SOFTCAP:
        x = operand(a, i) * a.scale;
        return a.cap != 0.0f ? a.cap * tanhf(x / a.cap) : x;
    default: return wide(a, i);
    }
}

LA_KERNEL(la_elements, la_device_elements)
{
    la_grid_wait();
    la_grid_release();
    int64_t first = (int64_t)la_block_x() * BLOCK * EACH + la_thread();
    LA_UNROLL
    for (int k = 0; k < EACH; k++) {
        int64_t i = first + k * BLOCK;
        if (i < a.n) {
            la_stg(a.out + i, element(a, i));
        }
    }
}

/* ---- results of draws ---- */

LA_KERNEL(la_pick, la_pick_args)
{
    la_grid_wait();
    la_grid_release();
    int64_t i = (int64_t)la_block_x() * BLOCK + la_thread();
    if (i >= (int64_t)a.n * a.k) {
        return;
    }
    if (a.tops == NULL) {
        la_stg(a.ids + i, (int64_t)la_ldg(&a.drawn[i].id));
        return;
    }
    int id = la_ldg(&a.tops[i].id);
    la_stg(a.ids + i, (int64_t)id);
    la_stg(a.values + i, la_ldg(a.logits + i / a.k * a.V + id));
}

/* ---- launches ---- */

extern "C" {

void la_launch_elements(la_rt_stream *s, const la_device_elements *a)
{
    const int at_once = BLOCK * EACH;
    la_rt_shape shape = {{(int)(((int64_t)a->n + at_once - 1) / at_once), 1, 1}, BLOCK, 0, 0, 1};
    la_rt_launch(s, LA_ENTRY(la_elements), a, sizeof *a, &shape);
}

void la_launch_pick(la_rt_stream *s, const la_pick_args *a)
{
    int64_t n = (int64_t)a->n * a->k;
    la_rt_shape shape = {{(int)((n + BLOCK - 1) / BLOCK), 1, 1}, BLOCK, 0, 0, 1};
    la_rt_launch(s, LA_ENTRY(la_pick), a, sizeof *a, &shape);
}

} // extern "C"
