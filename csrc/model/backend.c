/* backend.c - opens a backend by name and forwards the public calls to its table.
 *
 * Owns nothing but the list of names. Backends in shared objects of their own come through backend_dl.c.
 * Called by the Python layer through llmaccel.h.
 */
#include "backend.h"

la_status la_backend_open(const char *name, const char *isa, int n_threads, la_backend **out)
{
    *out = NULL;
    if (name == NULL || strcmp(name, "cpu") == 0) {
        return la_backend_cpu_open(isa, n_threads, out);
    }
    if (strcmp(name, "cuda") == 0) {
        if (isa != NULL && strcmp(isa, "auto") != 0) {
            return la_fail(LA_ERR_ARGUMENT, "isa: '%s' is the CPU backend's; leave it out", isa);
        }
        return la_backend_load_beside("_cuda.so", out);
    }
    return la_fail(LA_ERR_ARGUMENT, "backend: '%s' is unknown; known: cpu, cuda", name);
}

void la_backend_close(la_backend *b)
{
    if (b != NULL) {
        b->ops->close(b);
    }
}

void la_backend_describe(const la_backend *b, la_backend_info *out)
{
    b->ops->describe(b, out);
}

la_status la_backend_library(la_backend *b, const char *file, int loaded)
{
    return b->ops->library != NULL
               ? b->ops->library(b, file, loaded)
               : la_fail(LA_ERR_UNSUPPORTED, "library: backend '%s' uses none", b->ops->name);
}

la_status la_backend_trace(la_backend *b, la_trace_fn fn, void *arg)
{
    if (fn != NULL && !b->ops->rows_in_reach) {
        return la_fail(LA_ERR_UNSUPPORTED, "trace: the rows of backend '%s' lie on its device",
                       b->ops->name);
    }
    b->trace = fn;
    b->trace_arg = arg;
    return LA_OK;
}

la_status la_backend_step_threads(la_backend *b, int n)
{
    if (n < 0 || n > b->n_threads) {
        return la_fail(LA_ERR_ARGUMENT, "n: expected 0 to %d, got %d", b->n_threads, n);
    }
    b->ops->step_threads(b, n);
    return LA_OK;
}

la_status la_backend_probe_read(la_backend *b, size_t bytes, int huge, double *gb_per_s)
{
    return b->ops->probe_read(b, bytes, huge, gb_per_s);
}

la_status la_backend_probe_peak(la_backend *b, const char *what, double *gop_per_s)
{
    return b->ops->probe_peak(b, what, gop_per_s);
}
