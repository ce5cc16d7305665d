/* backend.h - the device table: what a backend offers to the forward pass.
 *
 * Owns la_backend_ops and the structures both sides read. A call of the table is one phase: every
 * thread of the backend enters it with its own la_ctx, takes its share by (tid, nth) and leaves after a
 * barrier. A device's backend has one thread, whose calls only ask for work. Structures are the host's;
 * what their pointers to numbers lead to (weights, vectors, rows, pages) is memory of the backend, whose
 * addresses others reckon with and never follow. What a batch brings is the host's throughout.
 * Invariant: ops of a step cannot fail (a device that does says so at the end of `run`); a backend
 * computes a row from that row alone.
 * Implemented by backend_cpu.c and, in an object of its own, by ../kernels/cuda/backend.cu; used by model.c,
 * workspace.c and forward.c.
 */
#ifndef LA_BACKEND_H
#define LA_BACKEND_H

#include "../base/arena.h"
#include "device_ops.h"
#include "model.h"
#include "pack.h"

/* A linear layer: weights side by side in output columns (q, k, v may differ in format). */
typedef struct la_matrix {
    la_weight part[3];
    int n_parts; /* 0: not set */
    int N, K;
    int paired;              /* gate and up interleaved 16 + 16 */
    int activation;          /* la_act_form of products with grouped parts */
    float *bias;             /* columns of the units in order, zero-padded; NULL: none */
    int32_t *order[3];       /* [K] of a part: which k of a row meets its k; NULL: all stay */
    la_rounding rounding[3]; /* of the rows that a part multiplies */
} la_matrix;

typedef struct la_norm {
    float *w; /* [D]; NULL: no norm */
    float *b; /* [D] or NULL */
} la_norm;

/* A small matrix for each head, as floats. */
typedef struct la_head_matrix {
    la_weight one;     /* of head 0 */
    int n_heads;       /* 0: not set */
    size_t head_bytes; /* from one to the next */
    la_rounding
        rounding; /* of the latent that kv_b multiplies, before it is stored; of both halves */
} la_head_matrix;

/* Attention over latents (MLA): q_a and kv_a, q_b, and the halves of kv_b. */
typedef struct la_latent {
    la_matrix in, q;
    la_head_matrix uk, uv;
    float *q_norm, *kv_norm; /* [q_rank], [r] */
} la_latent;

/* What a layer with experts has instead of gate_up and down. */
typedef struct la_moe {
    la_matrix router;  /* fp32; columns: experts, then the shared expert's gate */
    float *correction; /* [E] or NULL */
    la_matrix *up;     /* [E] gate_up of every expert, one format */
    la_matrix *down;   /* [E] likewise */
    la_matrix shared_up, shared_down;
} la_moe;

typedef struct la_layer {
    la_norm attn_norm, ffn_norm, attn_post_norm, ffn_post_norm;
    float *q_norm, *k_norm; /* [d] or the whole row; NULL: none */
    float *sinks;           /* [H]; NULL: none */
    la_matrix qkv, o, gate_up, down;
    la_latent latent;
    la_moe *moe; /* NULL: gate_up and down */
} la_layer;

/* Rows of floats: n rows, ld floats apart. */
typedef struct la_rows {
    float *p;
    int n;
    int ld;
} la_rows;

typedef enum la_epilogue_kind {
    LA_STORE = 0, /* out = y */
    LA_ADD,       /* out += scale * y */
    LA_ACT,       /* out = act(y), gated: act(gate) * up */
    LA_LOGITS,    /* out = softcap(scale * y) */
    LA_HEADS      /* q: norm, rope, to out; k: norm, rope, to its page; v: to its page */
} la_epilogue_kind;

/* What happens to a finished tile, after the bias. */
typedef struct la_epilogue {
    la_epilogue_kind kind;
    float scale;
    float softcap;
    int layer; /* LA_HEADS */
} la_epilogue;

/* Bytes of one KV page and where things lie in it: [layer][kv head][k block | v block]; of latents
 * [layer][k block]. */
typedef struct la_kv_layout {
    size_t k_bytes, head_bytes, layer_bytes, page_bytes;
} la_kv_layout;

struct la_kv {
    la_backend *b;
    la_kv_layout at;
    uint8_t *base;
    int64_t max_pages, committed;
    int64_t slab; /* pages committed at a time */
};

/* Where the tokens of a step go: k experts each, and the same pairs (token, slot) sorted by expert, which
 * are the rows of the experts' products. Experts keep the order of tokens. */
typedef struct la_routes {
    int32_t *expert; /* [T][k] best first */
    float *weight;   /* [T][k] */
    int32_t *row;    /* [T][k] of the products */
    int32_t *entry;  /* [T k] of each row: token * k + slot */
    int32_t *first;  /* [E + 1] first row of each expert */
} la_routes;

/* Sums of exp over a slice of a row of logits, each against its own maximum: as they are, and under the
 * row's temperature. */
typedef struct la_mass {
    double raw, tempered;
} la_mass;

enum { LA_SLICE = 4096 }; /* logits of one la_mass */
/* Rows of the tile of logits: x 152k vocabulary x 4 B = 19 MB; on the host as many more as take no more. */
enum { LA_LOGIT_ROWS = 32, LA_LOGIT_MOST = 96, LA_LOGIT_FLOATS = LA_LOGIT_ROWS * 152064 };

/* Buffers of a step. Every row starts 64-byte aligned and its padding stays zero. */
struct la_workspace {
    la_backend *b;
    void *own; /* the backend's, of la_backend_ops.equip */
    uint8_t *base;
    size_t bytes;
    int max_tokens;
    int logit_rows; /* rows of the logits tile */
    la_rows x;      /* [T, D] residual stream */
    la_rows y;    /* [T, max(D, (H + 2K) d)] block output before a post-norm; raw qkv or latents */
    la_rows q, a; /* [T, H d]; with latents a [T, H d_v] */
    la_rows u;    /* latents: [T, q_rank] what queries are made of */
    la_rows z;    /* latents: [T, H (r + d_rope)] queries, then in the first r what they found */
    la_rows h;    /* [T, F] */
    la_rows logits;   /* [logit_rows, V] */
    la_rows best;     /* [logit_rows, ceil(V/32)] largest logit of every unit, written with them */
    la_mass *mass;    /* [logit_rows][ceil(V/LA_SLICE)] */
    la_rows router;   /* [T, E (+ 1)] logits of experts, then of the shared expert's gate */
    la_rows expert_h; /* [T k, d_expert] rows in the order of la_routes */
    la_rows shared_h; /* [T, d_shared] */
    la_routes routes; /* of steps whose rows are shared out */
    int64_t *expert_load; /* [L][E] tokens so far; NULL: no experts */
    int *pos;             /* [T] absolute position of each token */
    int32_t *page;        /* [T] page of each token */
    uint8_t *shared;      /* of the op that runs: converted rows, results of chunks or experts */
    uint8_t *local;       /* per-thread scratch, local_bytes each */
    size_t shared_bytes, local_bytes;
};

struct la_model {
    la_backend *b;
    la_model_desc desc;
    la_layer_desc *layer_desc; /* [L] */
    float *inv_freq[LA_MAX_ROPE_TABLES];
    float *rope_cos[LA_MAX_ROPE_TABLES], *rope_sin[LA_MAX_ROPE_TABLES]; /* [max_len][d_rope/2] */
    la_recipe recipe;
    la_arena weights; /* every packed matrix */
    int ready;
    la_matrix embed, pos_embed, head;
    la_norm final_norm;
    la_layer *layers; /* [L] */
};

/* One thread's view of a step. */
typedef struct la_ctx {
    la_backend *b;
    la_model *m;
    la_kv *kv;
    la_workspace *w;
    const la_batch *batch;
    int tid, nth;
} la_ctx;

typedef struct la_backend_ops {
    const char *name;
    int rows_in_reach; /* host code may read rows: tracing */
    void (*close)(la_backend *b);
    void (*describe)(const la_backend *b, la_backend_info *out);
    la_status (*library)(la_backend *b, const char *file, int loaded); /* NULL: it uses none */
    la_status (*probe_read)(la_backend *b, size_t bytes, int huge, double *gb_per_s);
    la_status (*probe_peak)(la_backend *b, const char *what, double *gop_per_s);
    /* Reads what a decoded token reads, for `seconds`; `pattern` is checked, the model ready. */
    la_status (*read_weights)(la_model *m, int pattern, double seconds, double *gb_per_s);
    /* ---- memory ---- */
    /* Zeroed, on a page border; NULL on failure. */
    void *(*map)(la_backend *b, size_t bytes);
    void (*unmap)(la_backend *b, void *p, size_t bytes);
    /* Addresses alone; commit makes ranges of whole granules usable and zeroes them: 0, -1 where memory is short,
     * which leaves things as they were, or a la_status whose error is said. */
    void *(*reserve)(la_backend *b, size_t bytes);
    int (*commit)(la_backend *b, void *p, size_t bytes);
    void (*decommit)(la_backend *b, void *p, size_t bytes);
    void (*release)(la_backend *b, void *p, size_t bytes);
    /* Takes over an array of la_alloc that ops are to read; returns where they do, NULL on failure. */
    void *(*keep)(la_backend *b, void *host, size_t bytes);
    void (*drop)(la_backend *b, void *kept);
    /* Both in pages of KV; in the order of steps. */
    void (*copy)(la_backend *b, void *dst, const void *src, size_t bytes);
    /* ---- models ---- */
    /* LA_ERR_UNSUPPORTED names what of a description this backend does not have. */
    la_status (*accept)(const la_backend *b, const la_model_desc *d, la_recipe recipe);
    /* Packs all units of w, by all threads; w->data is set and freed by the caller, its bytes are those of
     * kernels.h's layout, in which order they lie there is the backend's. LA_ERR_SHAPE where a value that is
     * to be quantized is not finite, LA_ERR_UNSUPPORTED where there are no products of the format. */
    la_status (*pack)(la_backend *b, const la_weight *w, const la_source *parts, int n_parts,
                      int paired);
    /* Row 32 u + j of w, of unit u its row j, as fp32 out [K]; NULL: weights are out of the host's reach. */
    void (*unpack)(const la_backend *b, const la_weight *w, int row, float *out);
    /* fn on every thread that takes part in a step. Afterwards the rows' results are there, or they are after
     * `results`, which a backend has that works on while the host goes on: at most two steps are then
     * under way, and the second may feed what the first draws. */
    la_status (*run)(la_backend *b, void (*fn)(la_ctx *c), const la_ctx *proto);
    la_status (*results)(la_workspace *w);    /* of the oldest step; NULL: run waits */
    int (*draws_ahead)(const la_sampling *p); /* may rows of such draws have a `newest`? */
    /* LA_ERR_SYSTEM with the reason once the device has failed, for good; NULL: there is nothing to fail */
    la_status (*alive)(la_backend *b);
    void (*step_threads)(la_backend *b, int n);
    /* LA_ERR_ARGUMENT where a step of these limits is too large to be shared out. */
    la_status (*check)(const la_model_desc *d, const la_limits *limits);
    /* Scratch a workspace must offer: of the step, and of each thread. */
    void (*scratch)(const la_model_desc *d, const la_limits *limits, size_t *shared, size_t *local);
    /* What a backend needs for the steps of a workspace beside its bytes: w->own; and what of that is the
     * host's memory where the workspace is not, NULL: nothing. */
    size_t (*host_bytes)(const la_backend *b, const la_model_desc *d, const la_limits *limits);
    la_status (*equip)(la_workspace *w, const la_model *m, const la_limits *limits);
    void (*strip)(la_workspace *w);
    /* ---- ops of a step ---- */
    /* nothing but the barrier */
    void (*meet)(la_ctx *c);
    void (*embed)(la_ctx *c, la_rows x);
    /* norm of the rows that enter; norm.w NULL: as they are */
    void (*linear)(la_ctx *c, const la_matrix *m, la_rows in, la_rows out, la_norm norm,
                   const la_epilogue *epi);
    /* norm, rope and KV store of raw [T, (H + 2K) d] rows: what LA_HEADS does for whole rows */
    void (*heads)(la_ctx *c, int layer, la_rows qkv, la_rows q);
    void (*attend)(la_ctx *c, int layer, la_rows q, la_rows a);
    /* ---- of latents ---- */
    /* y [T, q_rank or H d, r + d_rope]: u = norm(first q_rank); page <- norm(next r), rope(rest) */
    void (*latent)(la_ctx *c, int layer, la_rows y, la_rows u);
    /* q [T, H d] to z [T, H (r + d_rope)]: each head's d_nope through its matrix, the rest rotated */
    void (*absorb)(la_ctx *c, int layer, la_rows q, la_rows z);
    /* the first r of each head of z through its matrix: a [T, H d_v] */
    void (*expand)(la_ctx *c, int layer, la_rows z, la_rows a);
    /* logits and choice of experts for norm(x) [T, D]; what they are given; x += scale * what they give */
    void (*route)(la_ctx *c, int layer, la_rows x);
    void (*moe_up)(la_ctx *c, int layer, la_rows x);
    void (*moe_down)(la_ctx *c, int layer, la_rows x);
    /* x += scale * norm(y) */
    void (*add_norm)(la_ctx *c, la_rows y, la_norm norm, float scale, la_rows x);
    /* Floats of the tokens that the batch wants rows of, in place: row i becomes that of wanted row i, whose
     * token is i or a later one. */
    void (*narrow)(la_ctx *c, la_rows rows, int width);
    /* results of wanted rows first .. first+logits.n-1 */
    void (*sample)(la_ctx *c, int first, la_rows logits);
    /* the rows of x that the batch's captures want of this layer; norm.w set: normed. NULL: no captures */
    void (*capture)(la_ctx *c, int layer, la_rows x, la_norm norm);
    /* ---- tensors of users; NULL: they lie in host memory ---- */
    const la_device_ops *device;
} la_backend_ops;

/* First member of every backend. */
struct la_backend {
    const la_backend_ops *ops;
    int n_threads;
    size_t granule;    /* of commit */
    la_trace_fn trace; /* NULL: off */
    void *trace_arg;
};

la_status la_backend_cpu_open(const char *isa, int n_threads, la_backend **out);

/* Draws from logits that lie in host memory, for backends whose own memory is elsewhere: a pool of threads and
 * their scratch (backend_cpu_draw.c). */
typedef struct la_drawer la_drawer;
la_status la_drawer_open(const la_model_desc *d, int max_rows, int n_threads, la_drawer **out);
size_t la_drawer_bytes(const la_model_desc *d, int max_rows, int n_threads);
void la_drawer_close(la_drawer *w);
/* Results of wanted rows first .. first+logits.n-1 of the batch, as la_backend_ops.sample. */
void la_drawer_run(la_drawer *w, la_model *m, const la_batch *batch, int first, la_rows logits);

/* ---- backends in shared objects of their own (backend_dl.c) ---- */

/* What such a one may call of this library: it links none of its symbols. */
typedef struct la_host_api {
    la_status (*fail)(la_status st, const char *fmt, ...);
    void *(*alloc)(size_t n, size_t size);
    void (*free)(void *p);
    la_kv_layout (*kv_layout_of)(const la_model_desc *d);
    /* k0 .. k0 + n of row `row` of a part, n at most 256, k0 a multiple of 256 */
    void (*source_values)(const la_source *part, int row, int k0, int n, float *out);
    /* la_pack_unit to `unit`, its error said */
    la_status (*pack_unit)(const la_weight *w, const la_source *parts, int n_parts, int paired,
                           int u, uint8_t *unit);
    la_status (*drawer_open)(const la_model_desc *d, int max_rows, int n_threads, la_drawer **out);
    size_t (*drawer_bytes)(const la_model_desc *d, int max_rows, int n_threads);
    void (*drawer_close)(la_drawer *w);
    void (*drawer_run)(la_drawer *w, la_model *m, const la_batch *batch, int first, la_rows logits);
} la_host_api;

/* Both sides must have been compiled from the same structures: a number to raise when one changes its meaning, and
 * their sizes, which notice most of what is forgotten. */
enum {
    LA_BACKEND_ABI = (5 << 24) +
    (int)(sizeof(la_backend_ops) + LA_DEVICE_ABI + sizeof(la_host_api)) * 1024 +
    (int)(sizeof(struct la_model) + sizeof(la_layer) + sizeof(struct la_workspace) +
          sizeof(la_batch) + sizeof(la_sample_row) + sizeof(la_capture) + sizeof(la_span) +
          sizeof(la_source) + sizeof(struct la_kv) + sizeof(la_limits) + sizeof(la_epilogue) +
          sizeof(la_layer_desc) + sizeof(struct la_backend) + sizeof(la_backend_info) +
          sizeof(la_ctx))
};

/* The one symbol that it exports. abi comes first: where it is not the object's own, nothing else is read
 * and minus the object's is returned. */
typedef int (*la_backend_entry)(int abi, const la_host_api *host, int device, la_backend **out);
#define LA_BACKEND_ENTRY "la_backend_entry_open"

/* la_backend_load of a file in the folder of this library. */
la_status la_backend_load_beside(const char *file, la_backend **out);

enum { LA_GRANULE_MOST = 256 }; /* columns that a product may finish as one */
/* Columns of the smallest block of whole units and whole heads; LA_HEADS needs it <= LA_GRANULE_MOST. */
int la_head_granule(int d_head);
la_kv_layout la_kv_layout_of(const la_model_desc *d);

/* vectors.c: a vector as floats, and a bias in the order of a matrix's columns, replacing what was there. */
la_status la_vector_set(la_backend *b, float **dst, const la_source *src);
la_status la_bias_set(la_backend *b, la_matrix *m, const la_source *parts, int n_parts, int paired);

/* latent.c: what concerns latents in a desc, and the tensors that a head has for itself. */
la_status la_latent_check_desc(const la_model_desc *d);
/* Sizes of UK or UV for all heads; errors as la_pack_plan. */
la_status la_latent_plan(const la_model_desc *d, la_recipe recipe, const la_source *part,
                         la_head_matrix *out);
la_status la_latent_set(la_model *m, la_head_matrix *dst, const la_source *part);
void la_latent_clear(la_arena *weights, la_head_matrix *m);
size_t la_head_matrix_bytes(const la_head_matrix *m);
/* cos and sin of every position, from inverse frequencies; tables are fixed at load. */
void la_rope_fill(const float *inv_freq, int half, int max_len, float scale, float *cos_out,
                  float *sin_out);
/* Lays a workspace out; with base == NULL only w->bytes and sizes are filled. */
void la_workspace_layout(const la_backend_ops *ops, const la_model_desc *d, const la_limits *limits,
                         int n_threads, la_workspace *w);
const la_backend_ops *la_backend_cpu_ops(void);

/* forward.c: the transformer, run by every thread. */
void la_forward(la_ctx *c);

#endif
