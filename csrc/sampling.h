/* sampling.h - how the tokens of a request are drawn: la_sampling, a part of llmaccel.h.
 *
 * Owns the numbers that a request brings beside its tokens. The order of what they do to a row: raw
 * logprobs, the caller's function, allowed, bans (stop ids before min_tokens, bad words, n-grams),
 * bias, penalties, DRY, top-n-sigma, temperature (dynamic or not), min_p, top_k, typical_p, top_p, XTC,
 * draw. That is vLLM's order, and what vLLM has not stands where llama.cpp has it; mirostat takes the
 * place of all after temperature. Invariant: a value that is off is neutral; ids are checked when a
 * request is added. Python's names for the fields are those of the table in python/py_params.c, which
 * a test compares with this struct. Included by llmaccel.h.
 */
#ifndef LA_SAMPLING_H
#define LA_SAMPLING_H

#include <stdint.h>

/* What is reported as a token's log probability: that, or its logit; raw, or as the draw was made from it: after
 * rules, temperature and filters, -INFINITY for what they dropped. Prompts have no draws, so theirs are raw. */
enum { LA_REPORT_LOGPROBS = 0, LA_REPORT_LOGITS, LA_REPORT_DRAWN_LOGPROBS, LA_REPORT_DRAWN_LOGITS };

typedef struct la_sampling {
    float temperature;        /* 0: argmax */
    float top_p;              /* (0, 1] */
    float min_p;              /* [0, 1] */
    int top_k;                /* 0: all */
    float presence_penalty;   /* generated tokens */
    float frequency_penalty;  /* generated tokens */
    float repetition_penalty; /* prompt and generated tokens; 1: off */
    int repeat_last_n;        /* penalties count these last tokens; -1: all */
    int no_repeat_ngram;      /* no sequence of that many tokens comes twice; 0: off */
    uint64_t seed;            /* counter RNG key; branch b draws from (seed, b, position) */
    int min_tokens;
    int max_tokens;               /* 0 allowed: score only */
    int logprobs;                 /* -1: none; 0: the sampled token; k: k best and the sampled */
    int prompt_logprobs;          /* the same for prompt tokens */
    int prompt_logprob_start;     /* first prompt token to score */
    int report;                   /* LA_REPORT_* of both */
    const int32_t *score_ids;     /* [n_score] scored with each sampled token, after the best */
    int n_score;                  /* at most V; 0 where logprobs is -1 */
    const int32_t *prompt_scores; /* [n_prompt_score] the same with each prompt token */
    int n_prompt_score;
    const int32_t *stop_ids; /* [n_stop] end the sequence; masked until min_tokens */
    int n_stop;
    const int32_t *bias_ids; /* [n_bias] */
    const float *bias;       /* [n_bias] */
    int n_bias;
    const int32_t *allowed; /* [n_allowed]; 0: all */
    int n_allowed;
    const int32_t *bad;     /* bad words: sequences one after another */
    const int32_t *bad_len; /* [n_bad] length of each */
    int n_bad;
    const int32_t *trace; /* [n_trace] emitted in place of draws; 0: none; at least max_tokens */
    int n_trace;
    float dry_multiplier; /* what would continue a repetition loses this; 0: off */
    float dry_base;       /* times dry_base^(its length - dry_allowed_length) */
    int dry_allowed_length;
    int dry_last_n;              /* looked for in these last tokens; -1: in all */
    const int32_t *dry_breakers; /* [n_dry_breakers] never part of one */
    int n_dry_breakers;
    float top_n_sigma; /* logits so many standard deviations below the best are dropped; 0: off */
    float dynatemp_range; /* temperature moves so far up and down; 0: off */
    float dynatemp_exponent;
    float typical_p;       /* (0, 1]: mass of what is nearest the entropy; 1: off */
    float xtc_probability; /* of dropping all but the last above the threshold; 0: off */
    float xtc_threshold;
    int mirostat; /* 1 or 2 holds the surprise of draws, in bits, near tau; 0: off */
    float mirostat_tau;
    float mirostat_eta; /* how fast */
    int pattern_count;  /* a pattern that comes so often ends the sequence, at least 2; 0: off */
    int pattern_min;    /* tokens of such a pattern */
    int pattern_max;
    int think_budget; /* tokens after think_start until think_end is emitted; -1: no limit */
    const int32_t *think_start; /* [n_think_start] */
    int n_think_start;
    const int32_t *think_end; /* [n_think_end] */
    int n_think_end;
} la_sampling;

/* Changes the logits [V] of a row before anything else of a draw; not 0: it failed, and its branch ends. arg: as
 * given with the request. Called on the thread that steps. */
typedef int (*la_logits_fn)(void *arg, int branch, float *logits);

#endif
