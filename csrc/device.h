/* device.h - what a backend's device does for tensors of users: memory, the order of streams, single kernels.
 *
 * The second public header, beside llmaccel.h. Pointers named on_*, and those of kernels' arguments that do not say
 * host, lead to the device's memory. Everything is done on one stream, in the order of the calls and at some time
 * after each; calls that say so wait. Invariant: a backend without a device (la_device_number -1) is asked for
 * nothing else here, and a kernel finds its arguments checked: sizes are positive, places hold what is said, numbers of
 * pages are of the cache. What a device has no kernel for is LA_ERR_UNSUPPORTED, by the name of the
 * argument in llmaccel.kernels. Any thread, any time.
 */
#ifndef LA_DEVICE_H
#define LA_DEVICE_H

#include "llmaccel.h"

/* Its number, as CUDA and DLPack count devices; -1: the backend computes in host memory. */
int la_device_number(const la_backend *b);

/* ---- memory ---------------------------------------------------------------------------------- */

/* Cleared, 256-byte aligned. */
la_status la_device_alloc(la_backend *b, size_t bytes, void **out);
/* Waits until nothing on the device uses it any more. NULL is a no-op. */
void la_device_free(la_backend *b, void *on_device);
/* From host memory and to it, of any kind; done on return. */
la_status la_device_upload(la_backend *b, void *on_device, const void *host, size_t bytes);
la_status la_device_download(la_backend *b, void *host, const void *on_device, size_t bytes);
void la_device_copy(la_backend *b, void *on_device, const void *on_source, size_t bytes);
/* 1: kernels of the device may use these bytes, whoever allocated them. */
int la_device_reaches(la_backend *b, const void *on_device, size_t bytes);

/* ---- streams of others ----------------------------------------------------------------------- */

/* The number by which DLPack's producers know ours. */
uint64_t la_device_stream(la_backend *b);
/* What stream `number` is asked from here on happens after all that was asked here so far; the host does not wait.
 * 1 is CUDA's legacy default stream, 2 the calling thread's, else a handle. LA_ERR_ARGUMENT: it is none. */
la_status la_device_follow(la_backend *b, uint64_t number);
/* Until all that was asked here so far is done. */
la_status la_device_wait(la_backend *b);

/* ---- kernels: rows are fp32, one after another without gaps ----------------------------------- */

/* out = norm(x) * w + b, row by row; out may be x. */
typedef struct la_device_norm {
    const float *x, *w, *b; /* [n][D], [D], [D] or NULL */
    float *out;             /* [n][D] */
    int n, D, kind;         /* LA_NORM_* */
    float eps;
} la_device_norm;
la_status la_device_run_norm(la_backend *b, const la_device_norm *a);

/* Element by element: out may be x or y. */
enum {
    LA_ELEMENT_F16 = 0, /* x, 16-bit numbers, as fp32 */
    LA_ELEMENT_BF16,
    LA_ELEMENT_ADD,     /* y + scale x */
    LA_ELEMENT_ACT,     /* act(x) */
    LA_ELEMENT_ACT_MUL, /* act(x) y */
    LA_ELEMENT_SOFTCAP, /* cap tanh(scale x / cap); cap 0: scale x */
    LA_ELEMENT_COUNT
};
typedef struct la_device_elements {
    const void *x;  /* [n] fp32, or 16 bits wide */
    const float *y; /* [n] or NULL */
    float *out;     /* [n] */
    int n, op, act; /* LA_ELEMENT_*, LA_GATE_* */
    float scale, cap;
} la_device_elements;
la_status la_device_run_elements(la_backend *b, const la_device_elements *a);

/* Rotates the first 2 h values of every head; out may be x. */
typedef struct la_device_rope {
    const float *x, *cos, *sin; /* [T][H][d], [T][h], [T][h] */
    float *out;                 /* [T][H][d] */
    int T, H, d, h, interleaved;
} la_device_rope;
la_status la_device_run_rope(la_backend *b, const la_device_rope *a);

/* Pages of 64 tokens in bf16 for one layer, page p of kv head h at (p K + h) head_bytes, its values k_bytes on. */
typedef struct la_device_cache {
    uint8_t *base; /* 4-byte aligned */
    int n_heads, d;
    size_t k_bytes, head_bytes;
} la_device_cache;

/* Tokens to their slots: page * 64 + place, each once, or -1 for nowhere. */
typedef struct la_device_store {
    const float *k, *v;   /* [T][K][d] */
    const int32_t *slots; /* [T] host */
    la_device_cache cache;
    int T;
} la_device_store;
la_status la_device_run_store(la_backend *b, const la_device_store *a);

/* Attention of every token over the pages of its sequence, up to its position. */
typedef struct la_device_attend {
    const float *q, *sinks;               /* [T][H][d], [H] or NULL */
    float *out;                           /* [T][H][d] */
    const int32_t *tables;                /* [n_tables][width] host: pages */
    const int32_t *sequences, *positions; /* [T] host */
    la_device_cache cache;
    int T, H, n_tables, width, window; /* window 0: all tokens */
    float scale, softcap;
} la_device_attend;
la_status la_device_run_attend(la_backend *b, const la_device_attend *a);

/* out = x W^T + bias; rows enter as 16 bits, those of the weight's form. */
typedef struct la_device_linear {
    const float *x, *bias;     /* [M][K], [N] or NULL */
    const struct la_weight *w; /* of la_device_pack */
    float *out;                /* [M][N] */
    int M;
} la_device_linear;
la_status la_device_run_linear(la_backend *b, const la_device_linear *a);
/* Room for a planned weight, w->data, and its units from host memory; on failure there is none. */
la_status la_device_pack(la_backend *b, struct la_weight *w, const la_source *source);

/* The k largest values of each row, best first, of equal ones the lowest index; NaN comes last. values NULL: the
 * largest alone, 0 where all are NaN. */
typedef struct la_device_best {
    const float *x; /* [n][V] */
    int64_t *ids;   /* [n][k] */
    float *values;  /* [n][k] or NULL */
    int n, V, k;
} la_device_best;
la_status la_device_run_best(la_backend *b, const la_device_best *a);

#endif
