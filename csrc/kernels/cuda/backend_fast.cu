/* backend_fast.cu - float products by cuBLASLt, for models with fast_math.
 *
 * Owns the choice of what the library finishes itself and what a launch of ours finishes behind it, and the room of
 * both. Invariant: a product is asked for as a whole or not at all; what the library does not make, our own kernels
 * do, and la_backend_info counts it. Called by backend_product.cu, opened through backend.cu's table.
 */
#include "backend_device.h"
#include "cublaslt.h"

#include <stdio.h>

static const size_t ROOM = (size_t)32 << 20; /* of the library */
static const size_t SUMS_MOST = (size_t)64
                                << 20; /* of sums that wait to be finished, at least of a row */

la_status la_cuda_library(la_backend *b, const char *file, int loaded)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    char why[1024] = "";
    if (!turn.ok) {
        return la_cuda_failed(cuda);
    }
    if (cuda->library == NULL) {
        cuda->library = la_cublas_open(file, loaded, why, sizeof why);
    }
    return cuda->library != NULL ? LA_OK : cuda->host->fail(LA_ERR_UNSUPPORTED, "library: %s", why);
}

static size_t widest_sums(const la_model_desc *d)
{
    size_t heads = (size_t)(d->n_heads + 2 * d->n_kv_heads) * (size_t)d->d_head;
    size_t most = (size_t)d->d_ffn * 2 > heads ? (size_t)d->d_ffn * 2 : heads;
    most = most > (size_t)d->n_vocab ? most : (size_t)d->n_vocab;
    most = most > (size_t)d->d_model ? most : (size_t)d->d_model;
    return (most + LA_UNIT) * sizeof(float); /* whole units */
}

static size_t sums_bytes(const la_model_desc *d, int T)
{
    size_t row = widest_sums(d), all = row * (size_t)T, most = SUMS_MOST > row ? SUMS_MOST : row;
    return ((all < most ? all : most) + 255) / 256 * 256;
}

size_t la_cuda_fast_bytes(const la_model_desc *d, int T)
{
    return d->fast_math ? ROOM + sums_bytes(d, T) : 0;
}

/* Does the library's own end of a product, alpha (a w^T) + beta out + bias, do? */
static int ends_there(const la_product_args *a)
{
    switch (a->finish.kind) {
    case LA_STORE: return 1;
    case LA_ADD: return a->bias == NULL || a->finish.scale == 1.0f;
    case LA_LOGITS: return a->finish.softcap == 0.0f && a->bias == NULL;
    default: return 0;
    }
}

/* Rows of sums that are finished together. */
static int rows_at_once(const la_model_desc *d, const la_product_args *a, int T)
{
    size_t pitch = (size_t)((a->N + LA_UNIT - 1) / LA_UNIT * LA_UNIT) * sizeof(float);
    size_t rows = sums_bytes(d, T) / pitch;
    rows = rows < (size_t)LA_GRID_YZ ? rows : (size_t)LA_GRID_YZ;
    return rows < (size_t)a->M ? (int)rows : a->M;
}

/* The sums of rows `first` on to the room, then what is made of them. */
static void finish_rows(la_cuda *cuda, const la_product_args *a, la_cublas_product *p, int first)
{
    la_finish_args end = {*a, p->out, p->ldo};
    p->a = a->a + (int64_t)first * a->K;
    end.p.M = p->M;
    end.p.out = a->out + (int64_t)first * a->ldo;
    la_cublas_ask(cuda->library, cuda->s, p);
    la_launch_finish(cuda->s, &end);
}

/* Bytes that every block of so many rows of K lies apart by, as a power of two. */
static uint32_t block_alignment(int rows, int K)
{
    const size_t bytes = (size_t)rows * (size_t)K * sizeof(uint16_t);
    const size_t least = bytes & (~bytes + 1);
    return (uint32_t)(least < 256 ? least : 256);
}

/* Through sums in the room, some rows at a time. 0: the library does not make them. */
static int multiply_apart(const la_ctx *c, const la_product_args *a, la_cublas_product *p)
{
    la_cuda *cuda = la_cuda_of(c->b);
    const int step = rows_at_once(&c->m->desc, a, c->w->max_tokens), left = a->M % step;
    p->N =
        (a->N + LA_UNIT - 1) / LA_UNIT * LA_UNIT; /* zeros behind the last: gates have their ups */
    p->ldo = p->N;
    p->out = reinterpret_cast<float *>(static_cast<uint8_t *>(p->room) + ROOM);
    p->a = a->a;
    p->a_align = step < a->M ? block_alignment(step, a->K) : 0; /* one answer for every block */
    p->M = step;
    int can = la_cublas_can(cuda->library, p);
    p->M = left;
    p->a = a->a + (int64_t)(a->M - left) * a->K;
    can = can && (left == 0 || la_cublas_can(cuda->library, p));
    for (int first = 0; can && first < a->M; first += step) {
        p->M = a->M - first < step ? a->M - first : step;
        finish_rows(cuda, a, p, first);
    }
    return can;
}

int la_cuda_fast(const la_ctx *c, const la_product_args *a, int half, uint8_t *room)
{
    la_cuda *cuda = la_cuda_of(c->b);
    la_cublas_product p = {};
    p.w = a->w;
    p.room = room;
    p.room_bytes = ROOM;
    p.K = a->K;
    p.type = half ? LA_CUBLAS_F16 : LA_CUBLAS_BF16;
    p.alpha = 1.0f;
    int can;
    if (ends_there(a)) {
        p.a = a->a;
        p.bias = a->bias;
        p.out = a->out;
        p.ldo = a->ldo;
        p.M = a->M;
        p.N = a->N;
        p.alpha = a->finish.kind == LA_STORE ? 1.0f : a->finish.scale;
        p.beta = a->finish.kind == LA_ADD ? 1.0f : 0.0f;
        can = la_cublas_can(cuda->library, &p);
        if (can) {
            la_cublas_ask(cuda->library, cuda->s, &p);
        }
    }
    else {
        can = multiply_apart(c, a, &p);
    }
    cuda->library_products += can;
    cuda->library_refused += !can;
    return can;
}
