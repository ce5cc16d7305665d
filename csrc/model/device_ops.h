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
} la_device_ops;

#endif
