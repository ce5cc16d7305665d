/* device_ops.h - what a backend with a device offers for tensors of users: la_device_ops, a part of backend.h.
 *
 * Owns the table behind device.h; contracts are there. Invariant: a call finds its arguments checked, and may be made
 * between the steps of any engine. Included by backend.h.
 */
#ifndef LA_DEVICE_OPS_H
#define LA_DEVICE_OPS_H

#include "../device.h"

typedef struct la_device_ops {
    int (*number)(const la_backend *b);
    /* ---- memory ---- */
    la_status (*alloc)(la_backend *b, size_t bytes, void **out);
    void (*free)(la_backend *b, void *p);
    la_status (*upload)(la_backend *b, void *dst, const void *src, size_t bytes);
    la_status (*download)(la_backend *b, void *dst, const void *src, size_t bytes);
    int (*reaches)(la_backend *b, const void *p, size_t bytes);
    /* ---- streams ---- */
    uint64_t (*stream)(la_backend *b);
    la_status (*follow)(la_backend *b, uint64_t number);
    la_status (*wait)(la_backend *b);
    /* ---- kernels ---- */
    la_status (*norm)(la_backend *b, const la_device_norm *a);
    la_status (*elements)(la_backend *b, const la_device_elements *a);
    la_status (*rope)(la_backend *b, const la_device_rope *a);
    la_status (*store)(la_backend *b, const la_device_store *a);
    la_status (*attend)(la_backend *b, const la_device_attend *a);
    la_status (*linear)(la_backend *b, const la_device_linear *a);
    la_status (*best)(la_backend *b, const la_device_best *a);
} la_device_ops;

/* Bytes of what crosses: a part of LA_BACKEND_ABI. */
enum {
    LA_DEVICE_ABI = sizeof(la_device_ops) + sizeof(la_device_norm) + sizeof(la_device_elements) +
    sizeof(la_device_rope) + sizeof(la_device_store) + sizeof(la_device_attend) +
    sizeof(la_device_linear) + sizeof(la_device_best)
};

#endif
