/* backend_model.cu - the device's memory and the models in it.
 *
 * Owns what a model may be (`la_cuda_accept` names what there are no kernels for), how weights lie (rows of 16 bits,
 * as many as whole units have, gates and ups in turns of 16; 4-bit codes as gemm_w4.cu draws them) and the uploads. Invariant: an upload has
 * happened when its call returns, so the one staging buffer is free again. In the table of backend.cu.
 */
#include "backend_device.h"
#include "sample.h"

#include <string.h>

/* ---- memory ---------------------------------------------------------------------------------- */

void *la_cuda_map(la_backend *b, size_t bytes)
{
    la_cuda_turn turn(b);
    void *p = turn.ok ? la_rt_alloc(turn.cuda->rt, bytes) : NULL;
    if (p != NULL) {
        la_rt_fill(turn.cuda->s, p, 0, bytes);
    }
    return p;
}

void la_cuda_unmap(la_backend *b, void *p, size_t)
{
    la_cuda_turn turn(b);
    la_rt_free(turn.cuda->rt, p);
}

void *la_cuda_reserve(la_backend *b, size_t bytes)
{
    la_cuda_turn turn(b);
    return turn.ok ? la_rt_reserve(turn.cuda->rt, bytes) : NULL;
}

int la_cuda_commit(la_backend *b, void *p, size_t bytes)
{
    la_cuda_turn turn(b);
    int bad = !turn.ok || la_rt_commit(turn.cuda->rt, p, bytes) != 0;
    if (la_rt_error(turn.cuda->rt)[0] != '\0') {
        return la_cuda_failed(turn.cuda);
    }
    if (bad) {
        return -1;
    }
    la_rt_fill(turn.cuda->s, p, 0, bytes);
    return 0;
}

void la_cuda_decommit(la_backend *b, void *p, size_t bytes)
{
    la_cuda_turn turn(b);
    la_rt_decommit(turn.cuda->rt, p, bytes);
}

void la_cuda_release(la_backend *b, void *p, size_t)
{
    la_cuda_turn turn(b);
    la_rt_release(turn.cuda->rt, p);
}

/* What is in the staging buffer to dst, done on return. */
static int upload(la_cuda *cuda, void *dst, size_t bytes)
{
    la_rt_copy(cuda->s, dst, cuda->staging, bytes, LA_RT_IN);
    return la_rt_stream_wait(cuda->s);
}

void *la_cuda_keep(la_backend *b, void *host, size_t bytes)
{
    la_cuda_turn turn(b);
    la_cuda *cuda = turn.cuda;
    void *p = turn.ok ? la_rt_alloc(cuda->rt, bytes) : NULL;
    cuda->changes++;
    int bad = p == NULL || la_cuda_upload(cuda, p, host, bytes) != LA_OK;
    cuda->host->free(host);
    if (bad) {
        la_rt_free(cuda->rt, p);
        return NULL;
    }
    return p;
}

/* Models drop the bias and the order of each matrix that they replace, NULL too: no pack need count as a change. */
void la_cuda_drop(la_backend *b, void *kept)
{
    la_cuda_turn turn(b);
    turn.cuda->changes++;
    la_rt_free(turn.cuda->rt, kept);
}

void la_cuda_copy(la_backend *b, void *dst, const void *src, size_t bytes)
{
    la_cuda_turn turn(b);
    la_rt_copy(turn.cuda->s, dst, src, bytes, LA_RT_WITHIN);
}

/* ---- models ---------------------------------------------------------------------------------- */

int la_cuda_widest(const la_model_desc *d)
{
    int hd = d->n_heads * d->d_head, k = d->d_model > d->d_ffn ? d->d_model : d->d_ffn;
    return k > hd ? k : hd;
}

/* Of la_kv_form and la_quant, as options spell them. */
static const char *const KV_NAMES[] = {"float32", "bfloat16", "int8", "fp8"};
static const char *const QUANT_NAMES[] = {"none", "int8", "w4g128", "w4g32", "fp8", "w6g16"};
static_assert(sizeof KV_NAMES / sizeof *KV_NAMES == LA_KV_FORM_COUNT, "a name a form");
static_assert(sizeof QUANT_NAMES / sizeof *QUANT_NAMES == LA_QUANT_COUNT, "a name a form");

/* An option has a value that there are no kernels for. has: those that it may have. */
static la_status lacks(const la_cuda *cuda, const char *option, const char *value, const char *has)
{
    return cuda->host->fail(LA_ERR_UNSUPPORTED,
                            "backend: 'cuda' has no %s='%s' yet, only %s; 'cpu' has it", option,
                            value, has);
}

/* The number formats that options name. */
static la_status accept_formats(const la_cuda *cuda, const la_model_desc *d, la_recipe recipe)
{
    if (recipe.floats == LA_F32) {
        return lacks(cuda, "dtype", "float32", "'bfloat16' and 'float16'");
    }
    if (d->kv_form != LA_KV_BF16) {
        return lacks(cuda, "kv_cache_dtype", KV_NAMES[d->kv_form], "'bfloat16'");
    }
    const la_quant quants[] = {recipe.body, recipe.head, recipe.embed};
    for (int i = 0; i < 3; i++) {
        int w4 = i == 0 && (quants[i] == LA_QUANT_W4G128 || quants[i] == LA_QUANT_W4G32);
        if (quants[i] != LA_QUANT_KEEP && !w4) {
            return lacks(cuda, "quantization", QUANT_NAMES[quants[i]], "'w4g128' and 'w4g32'");
        }
    }
    if (d->activation == LA_ACT_I8) {
        return lacks(cuda, "activation", "int8", "'bfloat16'");
    }
    return LA_OK;
}

la_status la_cuda_accept(const la_backend *b, const la_model_desc *d, la_recipe recipe)
{
    const la_cuda *cuda = la_cuda_of(b);
    const char *what = NULL;
    if (d->attn != LA_ATTN_HEADS) {
        what = "attention over latents (MLA)";
    }
    else if (d->n_experts != 0) {
        what = "layers with experts";
    }
    else if (d->d_model % 8 != 0 || d->d_ffn % 8 != 0 || d->n_heads * d->d_head % 8 != 0) {
        what = "widths that are no multiples of 8";
    }
    else if ((size_t)la_cuda_widest(d) * sizeof(float) > LA_CUDA_STAGING) {
        what = "matrices of rows as wide";
    }
    else if (d->n_vocab > LA_SAMPLE_VOCABULARY) {
        what = "as large a vocabulary";
    }
    else if (d->d_head % 2 != 0) {
        what = "heads of an odd size";
    }
    else if (d->n_kv_heads > LA_GRID_YZ || (d->n_heads + 2 * d->n_kv_heads + 3) / 4 >
                                               LA_GRID_YZ) { /* blocks of la_launch_heads */
        what = "as many heads";
    }
    if (what != NULL) {
        return cuda->host->fail(LA_ERR_UNSUPPORTED, "backend: 'cuda' has no %s yet; 'cpu' has",
                                what);
    }
    la_status st = accept_formats(cuda, d, recipe);
    if (st != LA_OK) {
        return st;
    }
    if (d->fast_math && cuda->library == NULL) {
        return cuda->host->fail(LA_ERR_STATE, "fast_math: no library was loaded for its products");
    }
    return LA_OK;
}

/* Row `row` of a part as K numbers of 16 bits. */
static void narrow_row(const la_cuda *cuda, const la_source *part, int row, int half, uint16_t *out)
{
    int K = part->cols;
    if (part->dtype == (half ? LA_F16 : LA_BF16)) {
        const uint16_t *rows = static_cast<const uint16_t *>(part->data);
        memcpy(out, rows + (size_t)row * (size_t)K, (size_t)K * 2);
        return;
    }
    for (int k = 0; k < K; k += 256) {
        float v[256];
        int n = K - k < 256 ? K - k : 256;
        cuda->host->source_values(part, row, k, n, v);
        for (int i = 0; i < n; i++) {
            out[k + i] = half ? la_f32_to_f16(v[i]) : la_f32_to_bf16(v[i]);
        }
    }
}

/* Row n of a weight's units; zeros where it has none. */
static void pack_row(const la_cuda *cuda, const la_source *parts, int n_parts, int paired, int n,
                     int half, uint16_t *out)
{
    int i = paired ? n % LA_UNIT / 16 : 0;
    int row = paired ? n / LA_UNIT * 16 + n % 16 : n;
    while (!paired && i < n_parts && row >= parts[i].rows) {
        row -= parts[i++].rows;
    }
    if (i < n_parts && row < parts[i].rows) {
        narrow_row(cuda, &parts[i], row, half, out);
    }
    else {
        memset(out, 0, (size_t)parts[0].cols * 2);
    }
}

/* Rows of 16 bits, as many as fit into an upload at a time. */
static la_status pack_rows(la_cuda *cuda, const la_weight *w, const la_source *parts, int n_parts,
                           int paired)
{
    int rows = w->n_units * LA_UNIT, half = w->f.pack == LA_PACK_F16;
    size_t pitch = (size_t)w->K * 2; /* accept saw to it that an upload holds it */
    int at_once = (int)(LA_CUDA_STAGING / pitch);
    for (int n = 0; n < rows; n += at_once) {
        int end = rows - n < at_once ? rows : n + at_once;
        for (int i = n; i < end; i++) {
            uint8_t *to = cuda->staging + (size_t)(i - n) * pitch;
            pack_row(cuda, parts, n_parts, paired, i, half, reinterpret_cast<uint16_t *>(to));
        }
        if (upload(cuda, w->data + (size_t)n * pitch, (size_t)(end - n) * pitch) != 0) {
            return la_cuda_failed(cuda);
        }
    }
    return LA_OK;
}

/* The codes of 32 k of a unit, from the CPU's four steps of [32 rows] words to lanes of four words. */
static void turn_block(uint8_t *block)
{
    uint32_t from[4][LA_UNIT], to[32][4];
    memcpy(from, block, sizeof from);
    for (int lane = 0; lane < 32; lane++) {
        for (int j = 0; j < 4; j++) {
            to[lane][j] = from[lane % 4][lane / 4 + 8 * j];
        }
    }
    memcpy(block, to, sizeof to);
}

static la_status pack_w4(la_cuda *cuda, const la_weight *w, const la_source *parts, int n_parts,
                         int paired)
{
    size_t head = la_format_scales(w->f);
    int at_once = (int)(LA_CUDA_STAGING / w->unit_bytes);
    for (int first = 0; first < w->n_units; first += at_once) {
        int end = w->n_units - first < at_once ? w->n_units : first + at_once;
        for (int u = first; u < end; u++) {
            uint8_t *unit = cuda->staging + (size_t)(u - first) * w->unit_bytes;
            la_status st = cuda->host->pack_unit(w, parts, n_parts, paired, u, unit);
            if (st != LA_OK) {
                return st;
            }
            for (int k = 0; k < w->K; k += 32, unit += 512) {
                unit += k == 0 || (!w->f.row_scale && k % w->f.group == 0) ? head : 0;
                turn_block(unit);
            }
        }
        if (upload(cuda, w->data + (size_t)first * w->unit_bytes,
                   (size_t)(end - first) * w->unit_bytes) != 0) {
            return la_cuda_failed(cuda);
        }
    }
    return LA_OK;
}

/* Codes and scales that la_launch_product_w4 takes, K apart. */
static int has_w4_format(const la_weight *w)
{
    return w->f.pack == LA_PACK_I4 && w->f.group >= 32 &&
           (w->f.scale_type == LA_F16 || w->f.scale_type == LA_F32);
}

int la_cuda_is_w4(const la_weight *w)
{
    return has_w4_format(w) && w->K % 32 == 0;
}

/* Of la_pack. */
static const char *const PACK_NAMES[] = {"float32",     "float16",   "bfloat16",    "8-bit codes",
                                         "4-bit codes", "fp8 codes", "5-bit codes", "6-bit codes",
                                         "nf4 codes",   "fp4 codes", "e2m1 codes",  "iq4 codes"};
static_assert(sizeof PACK_NAMES / sizeof *PACK_NAMES == LA_PACK_COUNT, "a name a form");

static const char *scale_name(int type)
{
    switch (type) {
    case LA_F16: return "float16";
    case LA_F32: return "float32";
    case LA_F16_I8: return "int8 times float16";
    default: return "power-of-two";
    }
}

/* Says what a matrix is that there are no products for, and which there are. */
static la_status refuse_format(const la_cuda *cuda, const la_weight *w)
{
    const char *name = PACK_NAMES[w->f.pack], *has = "bfloat16, float16, and 4-bit codes with "
                                                     "float16 or float32 scales for groups of 32 "
                                                     "or more";
    if (has_w4_format(w) || w->f.pack == LA_PACK_F16 || w->f.pack == LA_PACK_BF16) {
        return cuda->host->fail(LA_ERR_UNSUPPORTED,
                                "backend: 'cuda' multiplies %s where K is a multiple of %d, which "
                                "%d is not; 'cpu' does",
                                name, w->f.pack == LA_PACK_I4 ? 32 : 8, w->K);
    }
    if (w->f.pack == LA_PACK_F32) {
        return cuda->host->fail(LA_ERR_UNSUPPORTED,
                                "backend: 'cuda' has no products of %s weights yet, only of %s; "
                                "a model's dtype='bfloat16' rounds them, 'cpu' has them",
                                name, has);
    }
    return cuda->host->fail(
        LA_ERR_UNSUPPORTED,
        "backend: 'cuda' has no products of %s with %s scales for %s of %d yet, "
        "only of %s; 'cpu' has them",
        name, scale_name(w->f.scale_type), w->f.row_scale ? "rows" : "groups",
        w->f.row_scale ? w->K : w->f.group, has);
}

la_status la_cuda_pack(la_backend *b, const la_weight *w, const la_source *parts, int n_parts,
                       int paired)
{
    la_cuda *cuda = la_cuda_of(b);
    int w4 = la_cuda_is_w4(w), rows = w->f.pack == LA_PACK_F16 || w->f.pack == LA_PACK_BF16;
    for (int i = 0; i < n_parts; i++) {
        if (parts[i].order != NULL) {
            return cuda->host->fail(LA_ERR_UNSUPPORTED,
                                    "backend: 'cuda' has no columns in activation order yet; 'cpu' "
                                    "has");
        }
    }
    if (!w4 && (!rows || w->K % 8 != 0)) {
        return refuse_format(cuda, w);
    }
    if ((size_t)w->K * 2 > LA_CUDA_STAGING || (w4 && w->unit_bytes > LA_CUDA_STAGING)) {
        return cuda->host->fail(LA_ERR_UNSUPPORTED,
                                "backend: 'cuda' has no matrices of rows as wide as %d yet; 'cpu' "
                                "has",
                                w->K);
    }
    la_cuda_turn turn(b);
    if (!turn.ok) {
        return la_cuda_failed(cuda);
    }
    return w4 ? pack_w4(cuda, w, parts, n_parts, paired)
              : pack_rows(cuda, w, parts, n_parts, paired);
}
