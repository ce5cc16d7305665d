/* backend_dl.c - loads a backend that lives in a shared object of its own.
 *
 * Owns the search for the file, the check that both sides were built from the same structures, and the
 * table of what such a backend may call. Invariant: whatever is missing or does not fit is a
 * LA_ERR_UNSUPPORTED that says what; loading never ends the process. An object stays loaded until the process
 * ends, since drivers leave threads and handlers behind. Called by backend.c and through llmaccel.h.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

#include "backend.h"
#include "dequant.h"

static void source_values(const la_source *part, int row, int k0, int n, float *out)
{
    const la_source_type s = la_source_info(part->dtype);
    const uint8_t *at = (const uint8_t *)part->data + (size_t)row * la_source_row(&s, part->cols);
    la_dequant_f32(part->dtype, at, k0, n, out);
}

static la_status pack_unit(const la_weight *w, const la_source *parts, int n_parts, int paired,
                           int u, uint8_t *unit)
{
    la_weight one = *w;
    void *scratch = la_alloc(1, la_pack_scratch());
    if (scratch == NULL) {
        return la_fail(LA_ERR_MEMORY, "weights: no memory to pack rows of %d", w->K);
    }
    /* where the weight would begin if the unit lay in it */
    one.data = (uint8_t *)((uintptr_t)unit - (uintptr_t)u * w->unit_bytes);
    int bad = la_pack_unit(&one, parts, n_parts, paired, u, scratch);
    la_free(scratch);
    return bad != 0 ? la_pack_failed(bad, n_parts) : LA_OK;
}

static const la_host_api host_api = {
    .fail = la_fail,
    .alloc = la_alloc,
    .free = la_free,
    .kv_layout_of = la_kv_layout_of,
    .source_values = source_values,
    .pack_unit = pack_unit,
    .drawer_open = la_drawer_open,
    .drawer_bytes = la_drawer_bytes,
    .drawer_close = la_drawer_close,
    .drawer_run = la_drawer_run,
};

la_status la_backend_load(const char *path, int device, la_backend **out)
{
    *out = NULL;
    if (access(path, R_OK) != 0) {
        return la_fail(LA_ERR_UNSUPPORTED, "backend: this build has no %s", path);
    }
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (object == NULL) {
        return la_fail(LA_ERR_UNSUPPORTED, "backend: %s", dlerror());
    }
    la_backend_entry entry;
    void *symbol = dlsym(object, LA_BACKEND_ENTRY);
    if (symbol == NULL) {
        return la_fail(LA_ERR_UNSUPPORTED, "backend: %s holds no backend (no %s)", path,
                       LA_BACKEND_ENTRY);
    }
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from object to function */
    int st = entry(LA_BACKEND_ABI, &host_api, device, out);
    if (st < 0) {
        return la_fail(
            LA_ERR_UNSUPPORTED,
            "backend: %s was built from other sources (interface %d, here %d); build both "
            "again",
            path, -st, (int)LA_BACKEND_ABI);
    }
    return (la_status)st;
}

la_status la_backend_load_beside(const char *file, la_backend **out)
{
    Dl_info self;
    char path[4096];
    *out = NULL;
    if (dladdr(&host_api, &self) == 0 || self.dli_fname == NULL) {
        return la_fail(LA_ERR_SYSTEM, "backend: cannot find the folder of this library");
    }
    const char *end = strrchr(self.dli_fname, '/');
    int n = end != NULL ? (int)(end - self.dli_fname) + 1 : 0;
    if (snprintf(path, sizeof path, "%.*s%s", n, self.dli_fname, file) >= (int)sizeof path) {
        return la_fail(LA_ERR_SYSTEM, "backend: the path of this library is too long");
    }
    return la_backend_load(path, 0, out);
}
