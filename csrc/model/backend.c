/* backend.c - opens a backend by name and forwards the public calls to its table.
 *
 * Owns nothing but the list of names. A backend that lives in a shared object of its own joins here.
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
        return la_fail(LA_ERR_UNSUPPORTED, "backend: this build has no CUDA backend");
    }
    return la_fail(LA_ERR_ARGUMENT, "backend: '%s' is unknown; known: cpu", name);
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

void la_backend_trace(la_backend *b, la_trace_fn fn, void *arg)
{
    b->trace = fn;
    b->trace_arg = arg;
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
