/* device.h - memory of a backend's device for tensors of users, and the order of their streams with ours.
 *
 * The second public header, beside llmaccel.h. Pointers named on_* lead to the device's memory. Everything is done on
 * one stream, in the order of the calls and at some time after each; calls that say so wait. Invariant: a
 * backend without a device (la_device_number -1) is asked for nothing else here. Any thread, any time.
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

#endif
