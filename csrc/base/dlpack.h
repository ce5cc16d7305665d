/* dlpack.h - our declaration of the DLPack 1 exchange structures.
 *
 * Owns nothing but layouts: two libraries that agree on them can hand a tensor over without a copy.
 * Invariant: field order, widths and the capsule names are those of the published DLPack ABI, both the
 * unversioned form (capsule "dltensor") and the versioned one of 1.0 ("dltensor_versioned"); tests
 * check them against NumPy and torch. Used by python/py_tensor_dlpack.c.
 */
#ifndef LA_DLPACK_H
#define LA_DLPACK_H

#include <stdint.h>

/* 1.1 is the version that named the 8-bit floats. */
enum { LA_DL_MAJOR = 1, LA_DL_MINOR = 1 };

/* Device kinds: those that the host can read, and CUDA's memory. */
enum { LA_DL_CPU = 1, LA_DL_CUDA = 2, LA_DL_CUDA_HOST = 3, LA_DL_ROCM_HOST = 11 };

/* Kinds of element. */
enum {
    LA_DL_INT = 0,
    LA_DL_UINT = 1,
    LA_DL_FLOAT = 2,
    LA_DL_BFLOAT = 4,
    LA_DL_BOOL = 6,
    LA_DL_E4M3FN = 10,
    LA_DL_E5M2 = 12,
    LA_DL_E8M0FNU = 14
};

/* Bits of la_dl_versioned.flags. */
enum { LA_DL_READ_ONLY = 1, LA_DL_IS_COPIED = 2 };

typedef struct la_dl_device {
    int32_t type;
    int32_t id;
} la_dl_device;

typedef struct la_dl_dtype {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} la_dl_dtype;

typedef struct la_dl_tensor {
    void *data;
    la_dl_device device;
    int32_t ndim;
    la_dl_dtype dtype;
    int64_t *shape;       /* [ndim] */
    int64_t *strides;     /* [ndim], in elements; NULL: row-major without gaps */
    uint64_t byte_offset; /* of the first element from data */
} la_dl_tensor;

/* Before 1.0: no version, no flags. */
typedef struct la_dl_managed {
    la_dl_tensor tensor;
    void *owner;
    void (*deleter)(struct la_dl_managed *self);
} la_dl_managed;

typedef struct la_dl_version {
    uint32_t major;
    uint32_t minor;
} la_dl_version;

typedef struct la_dl_versioned {
    la_dl_version version;
    void *owner;
    void (*deleter)(struct la_dl_versioned *self);
    uint64_t flags;
    la_dl_tensor tensor;
} la_dl_versioned;

#endif
