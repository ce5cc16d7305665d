/* cublaslt.h - products of NVIDIA's cuBLASLt, where that is: found at run time, never linked.
 *
 * Owns the library that is in use and what it answered about shapes. A product is out = alpha * a w^T + beta * out
 * + bias with rows as ours are. Invariant: what is asked of a stream was found possible before, by the same
 * shape, types and alignments, and fits the room. Its sums may be cut by the number of rows, so only models with
 * fast_math use it (backend_fast.cu); benchmarks do as a peer, with FP8 too.
 */
#ifndef LA_CUBLASLT_H
#define LA_CUBLASLT_H

#include "la_rt.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct la_cublas la_cublas;

/* The library in `file`, a path or a name for the loader; loaded: only if the process has it already. A version
 * whose interface is known (13.*). NULL: why[n] says what stands in the way. */
la_cublas *la_cublas_open(const char *file, int loaded, char *why, size_t n);
/* The object itself stays loaded. */
void la_cublas_close(la_cublas *c);
/* Its version and where it lies. */
const char *la_cublas_name(const la_cublas *c);

typedef enum la_cublas_type { LA_CUBLAS_BF16 = 0, LA_CUBLAS_F16, LA_CUBLAS_E4M3 } la_cublas_type;

typedef struct la_cublas_product {
    const void *a; /* [M] rows of K */
    const void *w; /* [N] rows of K */
    const float
        *a_scale; /* E4M3: [ceil(K / 128)][M], of 128 k of a row; ceil: the number rounded up */
    const float
        *w_scale; /* E4M3: [ceil(N / 128)][ceil(K / 128) rounded up to 4], of 128 rows by 128 k */
    const float *bias; /* [N] or NULL */
    float *out;        /* [M] rows of ldo */
    int64_t ldo;
    void *room; /* [room_bytes], 256-byte aligned; nothing else uses it until the product is done */
    size_t room_bytes;
    int M, N, K;
    int type;          /* la_cublas_type of a and w */
    float alpha, beta; /* beta 0: out is not read */
    uint32_t a_align;  /* bytes, a power of two: the most that is promised of a; 0: as it lies */
} la_cublas_product;

/* Does the library make such products? Its answer is kept. */
int la_cublas_can(la_cublas *c, const la_cublas_product *p);
/* Asks the stream for it; la_cublas_can said yes. What fails is the device's error. */
void la_cublas_ask(la_cublas *c, la_rt_stream *s, const la_cublas_product *p);

#ifdef __cplusplus
}
#endif

#endif
