/* llmaccel.h - the public C interface of the llmaccel core.
 *
 * Ownership, in five sentences:
 * (1) `create`/`open` gives and `free`/`close` takes; freeing NULL is a no-op; on failure *out is NULL.
 * (2) Pointers you pass are borrowed for the call; those kept longer say KEPT.
 * (3) Pointers you get are valid until the next call on the same object.
 * (4) An engine dies before its model, a model before its backend; the caller sees to the order.
 * (5) Nothing here exits, aborts, prints or keeps mutable globals; errors are a la_status and a
 *     thread-local message.
 *
 * Dimension letters: T tokens, D model, H heads, K kv heads, d head size, F ffn, V vocab, L layers.
 */
#ifndef LLMACCEL_H
#define LLMACCEL_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "sampling.h"

typedef enum la_status {
    LA_OK = 0,
    LA_ERR_ARGUMENT,    /* a value is out of range; the message names it */
    LA_ERR_SHAPE,       /* a tensor does not have the shape the model asks for */
    LA_ERR_MEMORY,      /* an allocation or reservation failed */
    LA_ERR_UNSUPPORTED, /* known, but not available in this build, backend or format */
    LA_ERR_REQUEST,     /* one request is invalid; nothing else is affected */
    LA_ERR_STATE,       /* the object is not in a state that allows the call */
    LA_ERR_SYSTEM       /* the operating system refused something, or a device failed */
} la_status;

/* The message of the calling thread's last failed call; "" if none. */
const char *la_last_error(void);

typedef struct la_backend la_backend;
typedef struct la_model la_model;
typedef struct la_engine la_engine;

/* ---- backend: where the arithmetic runs ---------------------------------------------------- */

typedef struct la_backend_info {
    const char *name;   /* "cpu", "cuda" */
    const char *isa;    /* "scalar", "avx2", "avx512", "vnni", "bf16"; cuda: "sm_90", ... */
    const char *device; /* its name; NULL: the processor */
    size_t memory_free, memory_total; /* of a device, now; 0: the process's own */
    int grows;               /* of a device, 1: its KV caches take memory as they grow, 0: whole */
    int64_t graphs, replays; /* of steps, on a device: made, and run since it was opened */
    const char *library;     /* of la_backend_library; NULL: none */
    int64_t library_products,
        library_refused;         /* asked of it, for a step or graph; not done by it */
    int n_asked;                 /* threads asked for, 0: one per usable processor */
    int n_threads;               /* threads of the pool, the caller included */
    int n_cpus;                  /* processors this process may use (affinity and cgroup quota) */
    const char *const *slots;    /* kernel slot names, NULL-terminated */
    const char *const *slot_isa; /* ISA chosen for each slot, same order */
} la_backend_info;

/* name: "cpu", or "cuda": la_backend_load of _cuda.so beside this library, first device. isa: NULL or "auto" for the
 * best present, else the highest level to use. n_threads: 0 for one per usable processor, which is also the most that
 * are started. Negative: exactly -n_threads, however few the processors; for tests. */
la_status la_backend_open(const char *name, const char *isa, int n_threads, la_backend **out);
/* The backend in a shared object at `path` that was built from these sources. LA_ERR_UNSUPPORTED says why it cannot
 * be used: it is not there, no driver or one too old, no such device. The object stays loaded. */
la_status la_backend_load(const char *path, int device, la_backend **out);
void la_backend_close(la_backend *b);
void la_backend_describe(const la_backend *b, la_backend_info *out);
/* The products of models with `fast_math` on a device: cuBLASLt in the shared object `file`, a path or a name. loaded:
 * 1 takes it only where the process has it already. LA_ERR_UNSUPPORTED says why not; a second is not looked at. */
la_status la_backend_library(la_backend *b, const char *file, int loaded);

/* One call of a step: op ("embed", "qkv", ...), its layer (-1: none), rows and columns of what it wrote,
 * and a checksum of those values. */
typedef void (*la_trace_fn)(void *arg, const char *op, int layer, int rows, int cols,
                            uint64_t checksum);
/* Calls fn after every op of every step from here on; NULL: no more. arg is KEPT. No step may run. Unsupported
 * where rows lie on a device. */
la_status la_backend_trace(la_backend *b, la_trace_fn fn, void *arg);

/* Short steps run on n of the threads from here on, whatever others do; 0: on as many as pay. For tests. */
la_status la_backend_step_threads(la_backend *b, int n);

/* Ways of reading that the probes try: streams, prefetch distances, who takes which bytes. */
enum { LA_READ_PATTERNS = 9 };
const char *la_read_pattern_name(int pattern); /* NULL beyond the last */
/* Reads of `bytes` of fresh memory by all threads, best round of each pattern; GB/s (1e9).
 * huge: 1 asks for pages of 2 MiB, 0 for the smallest. gb_per_s: [LA_READ_PATTERNS]. */
la_status la_backend_probe_read(la_backend *b, size_t bytes, int huge, double *gb_per_s);
/* Peak of one dot instruction on all threads; operations (2 per multiply-add) per second / 1e9.
 * what: "f32", "bf16", "int8". Unsupported where the ISA lacks it. */
la_status la_backend_probe_peak(la_backend *b, const char *what, double *gop_per_s);

/* ---- model: named tensors to logits ---------------------------------------------------------- */

enum { LA_NORM_RMS = 0, LA_NORM_LAYER };
/* LA_GATE_CLIP, gated only: (up + 1) * gate * sigmoid(1.702 gate), gate <= 7, -7 <= up <= 7 (gpt-oss) */
enum { LA_GATE_SILU = 0, LA_GATE_GELU, LA_GATE_GELU_TANH, LA_GATE_RELU, LA_GATE_CLIP };
/* UNIT: per head, without weights, in layers that rotate (Llama-4) */
enum { LA_QK_NORM_NONE = 0, LA_QK_NORM_HEAD, LA_QK_NORM_ROW, LA_QK_NORM_UNIT };
enum { LA_ATTN_HEADS = 0, LA_ATTN_LATENT }; /* LATENT: all heads read one latent a token (MLA) */
/* Largest n_layers and max_len of a model; config.py has the same. */
enum { LA_MAX_ROPE_TABLES = 2, LA_MAX_LAYERS = 4096, LA_MAX_POSITIONS = 1 << 24 };
enum { LA_ROUTE_SOFTMAX = 0, LA_ROUTE_SIGMOID };
enum { LA_MAX_EXPERTS = 1024, LA_MAX_EXPERTS_USED = 32, LA_MAX_BALANCE_SLOTS = 1 << 16 };

typedef struct la_layer_desc {
    int window; /* sliding window: a token sees the last `window` tokens, itself included; 0: all */
    int rope;   /* index of the rope table; -1: no rotation in this layer */
    int moe;    /* 1: experts instead of LA_GATE_UP and LA_DOWN */
} la_layer_desc;

/* One row of a family table, in numbers. A feature that is off is a neutral value or an unset tensor. */
typedef struct la_model_desc {
    int n_layers;   /* L */
    int d_model;    /* D */
    int n_heads;    /* H */
    int n_kv_heads; /* K, divides H; latents: 1 */
    int d_head;     /* d, up to 256; H*d need not be D; latents: of queries, d_nope + d_rope */
    int d_ffn;      /* F */
    int n_vocab;    /* V */
    int max_len;    /* positions the rope tables (and pos_embed) cover */
    int norm;       /* LA_NORM_* */
    float norm_eps;
    int act;              /* LA_GATE_* */
    int gated;            /* 1: act(gate) * up; 0: act(up) */
    int parallel;         /* 1: x + attn(n1(x)) + ffn(n2(x)) (GPT-NeoX) */
    int qk_norm;          /* LA_QK_NORM_*: before the rotation, per head or over the whole row */
    int d_rope;           /* rotated dimensions of a head, even, <= d; 0: none */
    int rope_interleaved; /* pairs (2i, 2i+1) instead of (i, i + d_rope/2) */
    int attn;             /* LA_ATTN_*; the rest of LATENT, else 0: */
    int kv_rank,
        q_rank;       /* r, width of a latent, a multiple of 4; of what queries are made of, 0: x */
    int d_nope, d_v;  /* of a query head what is not rotated, before d_rope; of a value head */
    float latent_eps; /* of the norms of latents */
    float attn_scale; /* multiplies q.k */
    float attn_softcap;  /* c * tanh(s / c); 0: off */
    float attn_grow;     /* q *= 1 + grow * log1p(floor((pos + 1) / every)) where nothing rotates */
    int attn_grow_every; /* tokens; 0: off */
    float logit_softcap; /* the same on logits; 0: off */
    float logit_scale;   /* multiplies logits, before the softcap */
    float embed_scale;   /* multiplies embeddings */
    float residual_scale; /* multiplies each block's output before it is added */
    /* layers with experts; a score is softmax or sigmoid of a router's logit */
    int n_experts;         /* E; 0: no such layers */
    int n_experts_used;    /* a token's: those of the largest score + LA_ROUTER_CORRECTION */
    int d_expert;          /* F of one expert */
    int d_shared;          /* F of what every token passes beside them; 0: nothing */
    int shared_gate;       /* 1: it counts sigmoid(x g), g being LA_ROUTER's second part */
    int route_score;       /* LA_ROUTE_*: an expert counts its score */
    int route_norm;        /* 1: divided by the sum of those used */
    float route_scale;     /* and multiplied by this */
    int route_groups;      /* experts are chosen from the best groups of neighbours; 1: from all */
    int route_groups_used; /* how many groups */
    int route_group_best;  /* how many of a group's largest make it good, 1 or 2 */
    int route_input;       /* 1: the weight multiplies what enters an expert, not what leaves it */
    int activation; /* la_act_form of products with grouped weights: floats ask for fp32 weights */
    int kv_form;    /* la_kv_form of the KV cache */
    int fast_math; /* 1: float products by la_backend_library, whose bits may change with the batch */
    const la_layer_desc *layers;                    /* [L] */
    const float *rope_inv_freq[LA_MAX_ROPE_TABLES]; /* [d_rope/2] each, or NULL */
    float rope_scale[LA_MAX_ROPE_TABLES];           /* multiplies cos and sin (yarn, longrope) */
} la_model_desc;

/* Tensor slots. Matrices are [N, K] row-major (rows are outputs); vectors are fp32 after the set. */
typedef enum la_slot {
    /* whole model; layer is ignored */
    LA_EMBED = 0,       /* [V, D] */
    LA_POS_EMBED,       /* [max positions >= max_len, D]; unset: none */
    LA_FINAL_NORM,      /* [D] */
    LA_FINAL_NORM_BIAS, /* [D] */
    LA_HEAD,            /* [V, D]; unset: tied to LA_EMBED */
    /* per layer */
    LA_ATTN_NORM,      /* [D]; unset: the block reads x itself (OLMo-2) */
    LA_ATTN_NORM_BIAS, /* [D] */
    LA_QKV,            /* parts q [H*d, D], k [K*d, D], v [K*d, D] */
    LA_QKV_BIAS,       /* parts [H*d], [K*d], [K*d] */
    LA_Q_NORM,         /* [d] for HEAD, [H*d] for ROW */
    LA_K_NORM,         /* [d] for HEAD, [K*d] for ROW */
    LA_O,              /* [D, H*d], latents: [D, H*d_v] */
    LA_O_BIAS,         /* [D] */
    LA_ATTN_POST_NORM, /* [D]; norm of the block's output before it is added */
    LA_FFN_NORM,       /* [D] */
    LA_FFN_NORM_BIAS,  /* [D] */
    LA_GATE_UP,        /* gated: parts gate [F, D], up [F, D]; else part up [F, D] */
    LA_GATE_UP_BIAS,   /* parts [F] (, [F]) */
    LA_DOWN,           /* [D, F] */
    LA_DOWN_BIAS,      /* [D] */
    LA_FFN_POST_NORM,  /* [D] */
    LA_MLA_IN, /* latents, in place of QKV: q_a [q_rank, D] (or q [H*d, D]), kv_a [r + d_rope, D] */
    LA_MLA_IN_BIAS, /* of both */
    LA_MLA_Q_NORM,  /* [q_rank] */
    LA_MLA_KV_NORM, /* [r] */
    LA_MLA_Q,       /* [H*d, q_rank]; unset where q_rank is 0 */
    LA_MLA_UK,      /* [H*r, d_nope]: each head's query to the latent, always floats */
    LA_MLA_UV,      /* [H*d_v, r]: each head's latent to the value, always floats */
    LA_SINKS,       /* [H]; of each head's softmax one more logit, whose value is 0 */
    /* layers with experts */
    LA_ROUTER,      /* part [E, D], with shared_gate a second [1, D]; fp32 whatever the recipe */
    LA_ROUTER_BIAS, /* [E]; added to logits */
    LA_ROUTER_CORRECTION, /* [E]; added to scores where experts are chosen */
    LA_SHARED_GATE_UP,    /* gated: parts [d_shared, D] twice, else once */
    LA_SHARED_DOWN,       /* [D, d_shared] */
    /* the same, set once for each expert */
    LA_EXPERT_GATE_UP,      /* gated: parts gate, up [d_expert, D]; else part up */
    LA_EXPERT_GATE_UP_BIAS, /* parts [d_expert] (, [d_expert]) */
    LA_EXPERT_DOWN,         /* [D, d_expert] */
    LA_EXPERT_DOWN_BIAS,    /* [D] */
    LA_SLOT_COUNT
} la_slot;

/* One checkpoint tensor, or a run of its rows. data may be NULL where only sizes are asked. */
typedef struct la_source {
    const void *data; /* rows one after another, no padding between them */
    size_t bytes;     /* of data */
    la_dtype dtype;
    int rows; /* N (vectors: 1) */
    int cols; /* K */
    const int32_t
        *order; /* [cols] of ordered plain rows: which k of the layer's row is at each place */
    la_rounding rounding; /* of the rows that a matrix multiplies, where products are fp32 */
} la_source;

typedef struct la_limits {
    int max_seqs;         /* sequences in a step */
    int max_batch_tokens; /* tokens in a step */
    int max_len;          /* tokens of a sequence, prompt and output; <= desc max_len */
    int64_t kv_pages;     /* cap of the page pool */
    int host_threads; /* that draw what a device leaves to the host; 0: one per usable processor */
} la_limits;

typedef struct la_plan {
    size_t kv_page_bytes;   /* one 64-token page, all layers */
    size_t workspace_bytes; /* activations, logits tile, scratch of every thread */
    size_t rope_bytes;
    size_t host_bytes; /* of the host, where the rest is a device's: pinned arrays, draws */
} la_plan;

/* What float tensors become when they are packed. Values are LA_PACK_I8 and LA_PACK_F8 with one scale per
 * output row, LA_PACK_I4 with one per 128 or 32 k, or LA_PACK_I6 with one per 16 k as LA_F16_I8. */
typedef enum la_quant {
    LA_QUANT_KEEP = 0,
    LA_QUANT_INT8,
    LA_QUANT_W4G128,
    LA_QUANT_W4G32,
    LA_QUANT_FP8,
    LA_QUANT_W6G16,
    LA_QUANT_COUNT
} la_quant;

/* Forms of a model's matrices. Block-quantized (GGUF) tensors are never quantized again: they stay exact,
 * or become fp32 where floats is LA_F32. */
typedef struct la_recipe {
    la_dtype floats; /* what is not quantized: LA_F32, LA_BF16, LA_F16; LA_DTYPE_COUNT: its own */
    la_quant body;   /* qkv, o, gate_up, down, of experts too, mla_in, mla_q */
    la_quant head;
    la_quant embed; /* the head's where the two are tied: the matrix exists once */
    uint64_t wide;  /* bit 1 << la_slot: LA_ACT_I8X2 in place of LA_ACT_I8 (bf16 below VNNI) */
} la_recipe;

/* Numbers only; loads nothing. b NULL: a CPU backend that la_backend_open would open with n_threads. */
la_status la_model_plan(const la_backend *b, const la_model_desc *desc, const la_limits *limits,
                        int n_threads, la_plan *out);
/* Packed bytes of one slot filled from these parts (data ignored). */
la_status la_model_weight_bytes(const la_model_desc *desc, la_recipe recipe, la_slot slot,
                                const la_source *parts, int n_parts, size_t *bytes);

/* The desc is copied. */
la_status la_model_create(la_backend *b, const la_model_desc *desc, la_recipe recipe,
                          la_model **out);
/* Packs parts into the slot, by all threads; replaces what the slot held. expert: of LA_EXPERT_* slots, whose
 * experts must agree in format; else ignored. Parts without a rule of rounding take over the slot's, if it had one.
 * LA_ERR_SHAPE names a part that is to be quantized and holds a value that is not finite. */
la_status la_model_set(la_model *m, la_slot slot, int layer, int expert, const la_source *parts,
                       int n_parts);
/* Checks that every tensor the desc needs is set; the model can run afterwards. */
la_status la_model_finish(la_model *m);
void la_model_free(la_model *m);
/* Packed matrices and vectors, as la_model_weight_bytes counts them; rope tables come besides. */
size_t la_model_bytes(const la_model *m);
/* Bytes that one decoded token reads: every weight once (of experts those it uses), the head once, no embedding. */
size_t la_model_token_bytes(const la_model *m);
/* Reads those bytes, pass after pass for `seconds`, computing nothing; GB/s (1e9). No step may run
 * meanwhile: it would wait, and its time would count. */
la_status la_model_read(la_model *m, int pattern, double seconds, double *gb_per_s);
/* A part of a slot where it lies: row r is row first + r of the units (kernels/kernels.h), paired: row first + r % 16
 * of unit r / 16; a vector (unit_bytes 0): likewise its values. dtype LA_DTYPE_COUNT: codes, or another order. */
typedef struct la_shown {
    const void *data;
    size_t bytes, unit_bytes;
    la_dtype dtype;
    int first, rows, cols, paired;
} la_shown;
/* Until the slot is set again. LA_ERR_UNSUPPORTED where weights lie on a device. */
la_status la_model_show(la_model *m, la_slot slot, int layer, int expert, int part, la_shown *out);
/* The same as fp32 out [rows, cols], a vector [rows], whatever it is kept as. */
la_status la_model_copy(la_model *m, la_slot slot, int layer, int expert, int part, float *out);
la_slot la_slot_from_name(const char *name); /* "embed", "qkv", ...; LA_SLOT_COUNT if unknown */
const char *la_slot_name(la_slot slot);

/* ---- balance: copies of busy experts ----------------------------------------------------------- */

/* Slots, each for one expert, are spread over devices, these over nodes. Groups of neighbouring experts stay
 * on one node where they divide evenly; otherwise all experts go anywhere. */
typedef struct la_balance {
    int n_layers, n_experts;
    int n_slots; /* of a layer, at least n_experts; a multiple of n_devices */
    int n_groups, n_nodes;
    int n_devices; /* a multiple of n_nodes */
} la_balance;

/* Do the numbers fit each other, up to LA_MAX_LAYERS layers and LA_MAX_BALANCE_SLOTS slots? */
la_status la_balance_check(const la_balance *balance);
/* load: [L][E], finite and not negative. slots: [L][n_slots] the expert of each slot, device by device;
 * copies: [L][E] how many slots each expert has. */
la_status la_balance_experts(const la_balance *balance, const float *load, int32_t *slots,
                             int32_t *copies);

/* ---- engine: requests to tokens --------------------------------------------------------------- */

typedef struct la_request {
    const int32_t *prompt; /* [n_prompt], at least one */
    int n_prompt;
    la_sampling sampling;  /* arrays are copied */
    int n_branches;        /* continuations that share the prompt's pages (vLLM's n) */
    const int32_t *suffix; /* teacher-forced continuations, one after another, or NULL */
    const int *suffix_len; /* [n_branches]; each >= 1; their tokens come as LA_EVENT_PROMPT */
    int skip_first;        /* 1: only branch 0 scores its suffix's first token, and has prompt_* */
    /* Written while the request runs, KEPT until it ends; NULL: not wanted. State s is of state_layers[s]:
     * 0 the embeddings, l what layer l - 1 gives, L that of the last after the final norm. */
    float *logits; /* [n_prompt, V] */
    float *
        drawn_logits; /* [n_branches, max_tokens, V] that each token was drawn from; not with logits */
    float *states;    /* [n_states, state_to - state_from, D] of these prompt positions */
    float *drawn_states;         /* [n_branches, n_states, max_tokens, D] behind drawn_logits */
    const int32_t *state_layers; /* [n_states] copied */
    int n_states, state_from, state_to;
    la_logits_fn process; /* KEPT with the two below; or NULL */
    void *process_arg;
    float *process_rows; /* [n_branches, V] where process finds logits */
    int priority;        /* lower runs first */
    double timeout;      /* seconds from the call; <= 0: none */
    int beam; /* LA_BEAM_*: n_branches beams, temperature 0; tokens come at the end, best first */
    double length_penalty; /* beam: scores are sums of log probabilities / length^this */
} la_request;

/* vLLM's rule, and transformers' with its three ways to stop early (csrc/engine/beam.h); 0: none. */
enum { LA_BEAM_VLLM = 1, LA_BEAM_SOON, LA_BEAM_FIRST, LA_BEAM_NEVER };
enum { LA_EVENT_TOKEN = 0, LA_EVENT_PROMPT, LA_EVENT_FINISH };
enum { LA_FINISH_STOP = 0, LA_FINISH_LENGTH, LA_FINISH_ABORT, LA_FINISH_TIMEOUT };
/* A pattern was repeated; la_request.process failed; nothing was left to draw; the device failed. */
enum { LA_FINISH_REPETITION = 4, LA_FINISH_FAILED, LA_FINISH_EMPTY, LA_FINISH_LOST };
typedef struct la_event {
    int64_t request;  /* what la_engine_add gave */
    int branch, kind; /* LA_EVENT_* */
    int position;     /* index of the token in prompt + suffix or output */
    int32_t token;    /* FINISH: the stop id that ended it, or -1 */
    int reason;       /* FINISH: LA_FINISH_* */
    float logprob;    /* of token, as la_sampling.report says. NaN if not asked */
    int rank;         /* of token, from 1; 0 if not asked */
    int n_top;
    const int32_t *top_ids;    /* [n_top] best first, then those scored by id */
    const float *top_logprobs; /* [n_top] */
    double scheduled; /* CLOCK_MONOTONIC seconds of the step that first fed the request; 0: none */
} la_event;

typedef struct la_engine_stats {
    int running, waiting; /* sequences */
    int64_t pages_cap, pages_committed, pages_used;
    size_t kv_bytes;        /* committed */
    size_t workspace_bytes; /* la_plan's and la_engine_bytes */
    int64_t steps, prompt_tokens, output_tokens, recomputed_tokens, preemptions;
    int64_t step_allocations; /* heap allocations made inside la_engine_step: stays 0 */
    int last_step_tokens;
    double last_step_seconds, last_plan_seconds, last_forward_seconds; /* plan: before that */
    double forward_seconds; /* of all steps, in the model; the rest of a step is bookkeeping */
} la_engine_stats;

la_status la_engine_create(la_model *m, const la_limits *limits, la_engine **out);
void la_engine_free(la_engine *e);
/* Bytes of an engine's own arrays (events, results, page tables), beside la_plan's. Loads nothing. */
size_t la_engine_bytes(const la_model_desc *desc, const la_limits *limits);
/* Any thread, any time. Validates, copies, returns an id > 0. LA_ERR_SYSTEM once the device has failed. */
la_status la_engine_add(la_engine *e, const la_request *r, int64_t *id);
/* Any thread, any time. branch < 0: all. Takes effect when the next step starts. */
la_status la_engine_cancel(la_engine *e, int64_t id, int branch);
/* One step: schedule, forward, sample, commit. One thread at a time. *n is 0 when nothing was to do. LA_ERR_SYSTEM:
 * the device failed, its draws are lost; all requests ended (LA_FINISH_LOST), of which later steps tell alone. */
la_status la_engine_step(la_engine *e, const la_event **events, int *n);
int la_engine_has_work(la_engine *e);
/* Tokens that a branch has stored and bytes of their pages, [layer][page][kv head], which go to out unless it is
 * NULL: it has *bytes, or LA_ERR_ARGUMENT. Not while another steps. LA_ERR_UNSUPPORTED: pages lie on a device. */
la_status la_engine_kv(la_engine *e, int64_t id, int branch, int *n, size_t *bytes, uint8_t *out);
void la_engine_get_stats(la_engine *e, la_engine_stats *out);
/* Tokens of every expert so far, [L][E] (0 in layers without experts); returns L * E. out may be NULL. */
size_t la_engine_expert_load(la_engine *e, int64_t *out);
/* Test hook: forces the n youngest running sequences to be preempted before the next step. */
la_status la_engine_preempt(la_engine *e, int n);

#endif
