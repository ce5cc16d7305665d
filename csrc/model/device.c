/* device.c - the calls of device.h, handed to a backend's table.
 *
 * Owns nothing. Invariant: la_device_number was not -1, but for la_device_number itself. Called by the Python layer.
 */
#include "backend.h"

static const la_device_ops *ops_of(const la_backend *b)
{
    return b->ops->device;
}

int la_device_number(const la_backend *b)
{
    return ops_of(b) != NULL ? ops_of(b)->number(b) : -1;
}

la_status la_device_alloc(la_backend *b, size_t bytes, void **out)
{
    return ops_of(b)->alloc(b, bytes > 0 ? bytes : 1, out);
}

void la_device_free(la_backend *b, void *on_device)
{
    if (on_device != NULL) {
        ops_of(b)->free(b, on_device);
    }
}

la_status la_device_upload(la_backend *b, void *on_device, const void *host, size_t bytes)
{
    return ops_of(b)->upload(b, on_device, host, bytes);
}

la_status la_device_download(la_backend *b, void *host, const void *on_device, size_t bytes)
{
    return ops_of(b)->download(b, host, on_device, bytes);
}

void la_device_copy(la_backend *b, void *on_device, const void *on_source, size_t bytes)
{
    b->ops->copy(b, on_device, on_source, bytes);
}

int la_device_reaches(la_backend *b, const void *on_device, size_t bytes)
{
    return ops_of(b)->reaches(b, on_device, bytes);
}

uint64_t la_device_stream(la_backend *b)
{
    return ops_of(b)->stream(b);
}

la_status la_device_follow(la_backend *b, uint64_t number)
{
    return ops_of(b)->follow(b, number);
}

la_status la_device_wait(la_backend *b)
{
    return ops_of(b)->wait(b);
}

/* ---- kernels ----------------------------------------------------------------------------------- */

la_status la_device_run_norm(la_backend *b, const la_device_norm *a)
{
    return ops_of(b)->norm(b, a);
}

la_status la_device_run_elements(la_backend *b, const la_device_elements *a)
{
    return ops_of(b)->elements(b, a);
}

la_status la_device_run_rope(la_backend *b, const la_device_rope *a)
{
    return ops_of(b)->rope(b, a);
}

la_status la_device_run_store(la_backend *b, const la_device_store *a)
{
    return ops_of(b)->store(b, a);
}

la_status la_device_run_attend(la_backend *b, const la_device_attend *a)
{
    return ops_of(b)->attend(b, a);
}

la_status la_device_run_linear(la_backend *b, const la_device_linear *a)
{
    return ops_of(b)->linear(b, a);
}

la_status la_device_run_best(la_backend *b, const la_device_best *a)
{
    return ops_of(b)->best(b, a);
}

la_status la_device_pack(la_backend *b, la_weight *w, const la_source *source)
{
    void *room = NULL;
    la_status st;
    LA_TRY(la_device_alloc(b, (size_t)w->n_units * w->unit_bytes, &room));
    w->data = room;
    LA_TRY(b->ops->pack(b, w, source, 1, 0));
    room = NULL;
done:
    la_device_free(b, room);
    if (st != LA_OK) {
        w->data = NULL;
    }
    return st;
}
