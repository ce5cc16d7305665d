/* step.h - what a step takes over from the one before it, on the device.
 *
 * Owns the launch that puts drawn tokens where the next step reads them, so that no host stands between two
 * steps. Invariant: it runs before anything of its step draws. Used by backend.cu and the tests.
 */
#ifndef LA_STEP_H
#define LA_STEP_H

#include "sample.h"

#ifdef __cplusplus
extern "C" {
#endif

/* tokens[t] < 0 becomes the id of drawn[-1 - tokens[t]], rules[i].newest <= -2 that of drawn[-2 - newest]. */
typedef struct la_resume_args {
    int32_t *tokens;       /* [n_tokens] */
    la_draw_rule *rules;   /* [n_rules] */
    const la_drawn *drawn; /* of the step before */
    int n_tokens, n_rules;
} la_resume_args;
void la_launch_resume(la_rt_stream *s, const la_resume_args *a);

#ifdef __cplusplus
}
#endif

#endif
