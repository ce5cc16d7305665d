/* backend_product.cu - the linear layers of the CUDA backend: how rows enter, and which kernel multiplies.
 *
 * Owns the room that products take of a step: rows on their way in, 16 bits a number, and sums of pieces of K.
 * Invariant: the device and a weight's format decide on the kernel (4 bits: gemm_w4.cu; 16 bits on Hopper: wgmma,
 * elsewhere mma.sync), never the number of rows, so a row's bits do not know its company, unless the model has
 * fast_math (backend_fast.cu). Called by backend.cu.
 */
#include "backend_device.h"

static size_t entered_bytes(const la_model_desc *d, int T)
{
    size_t bytes = (size_t)T * (size_t)la_cuda_widest(d) * sizeof(uint16_t);
    return (bytes + 255) / 256 * 256;
}

/* Of rows on their way in, and of sums of our own products. */
static size_t own_bytes(const la_model_desc *d, int T)
{
    return (entered_bytes(d, T) + la_product_room(T) + 255) / 256 * 256;
}

size_t la_cuda_linear_bytes(const la_model_desc *d, int T)
{
    return own_bytes(d, T) + la_cuda_fast_bytes(d, T);
}

/* Rows to 16 bits, at the start of the room. */
static const uint16_t *enter(const la_ctx *c, const la_cuda_linear_args *l, int half)
{
    la_enter_args a = {};
    a.x = l->in.p;
    a.ldx = l->in.ld;
    a.w = l->norm.w;
    a.b = l->norm.b;
    a.out = reinterpret_cast<uint16_t *>(l->room);
    a.n = l->in.n;
    a.D = l->m->K;
    a.half = half;
    a.norm = l->norm.w != NULL ? c->m->desc.norm : -1;
    a.eps = c->m->desc.norm_eps;
    la_launch_enter(la_cuda_of(c->b)->s, &a);
    return a.out;
}

void la_cuda_multiply(la_cuda *cuda, const la_weight *w, const la_product_args *a, float *partial)
{
    int half = w->f.pack == LA_PACK_F16;
    if (la_cuda_is_w4(w)) {
        la_w4_form f = {w->f.row_scale ? 0 : w->f.group, w->f.has_offset, w->f.scale_type == LA_F32,
                        (int64_t)w->unit_bytes};
        la_launch_product_w4(cuda->s, a, &f);
    }
    else if (cuda->info.cc == 90) {
        la_launch_product_sm90(cuda->s, a, half, partial, cuda->info.n_sms);
    }
    else {
        la_launch_product(cuda->s, a, half);
    }
}

void la_cuda_linear(const la_ctx *c, const la_cuda_linear_args *l)
{
    const la_model_desc *d = &c->m->desc;
    la_cuda *cuda = la_cuda_of(c->b);
    float *partial = reinterpret_cast<float *>(l->room + entered_bytes(d, c->w->max_tokens));
    int half = -1, col = 0;
    la_product_args a = {};
    for (int p = 0; p < l->m->n_parts; p++) {
        const la_weight *w = &l->m->part[p];
        if (half != (w->f.pack == LA_PACK_F16)) {
            half = w->f.pack == LA_PACK_F16;
            a.a = enter(c, l, half);
        }
        a.w = reinterpret_cast<const uint16_t *>(w->data);
        a.bias = l->m->bias != NULL ? l->m->bias + col : NULL;
        a.out = l->out.p + col;
        a.ldo = l->out.ld;
        a.M = l->in.n;
        a.N = w->N;
        a.K = l->m->K;
        a.finish = {l->epi->kind == LA_HEADS ? LA_STORE : l->epi->kind, d->act, l->m->paired,
                    l->epi->scale, l->epi->softcap};
        if (!d->fast_math || la_cuda_is_w4(w) ||
            !la_cuda_fast(c, &a, half, l->room + own_bytes(d, c->w->max_tokens))) {
            la_cuda_multiply(cuda, w, &a, partial); /* what the library does not make */
        }
        col += w->N;
    }
}
