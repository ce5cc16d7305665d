/* step.cu - what a step takes over from the one before it: a thread a token, and a thread a rule.
 *
 * Owns the kernel behind step.h. Invariant: a token and a rule that are known stay as they are. Launched by
 * backend_draws.cu, before anything of the step reads tokens or draws.
 */
#include "step.h"

#include "la_ptx.h"

enum { BLOCK = 256 };

LA_KERNEL(la_resume, la_resume_args)
{
    la_grid_wait();
    la_grid_release();
    int i = la_block_x() * BLOCK + la_thread();
    if (i < a.n_tokens) {
        int token = la_ldg(a.tokens + i);
        if (token < 0) {
            int drawn = la_ldg(&a.drawn[-1 - token].id);
            la_stg(a.tokens + i,
                   drawn < 0 ? 0 : drawn); /* of a draw that failed nobody asks for more */
        }
    }
    if (i < a.n_rules) {
        int newest = la_ldg(&a.rules[i].newest);
        if (newest <= -2) {
            la_stg(&a.rules[i].newest, la_ldg(&a.drawn[-2 - newest].id));
        }
    }
}

extern "C" void la_launch_resume(la_rt_stream *s, const la_resume_args *a)
{
    int most = a->n_tokens > a->n_rules ? a->n_tokens : a->n_rules;
    la_rt_shape shape = {{(most + BLOCK - 1) / BLOCK, 1, 1}, BLOCK, 0, 0, 1};
    la_rt_launch(s, LA_ENTRY(la_resume), a, sizeof *a, &shape);
}
