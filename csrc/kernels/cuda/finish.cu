/* finish.cu - what follows a product that a library left as plain sums: a warp takes a unit of a row.
 *
 * Owns nothing but the launch: the arithmetic is product_finish.h's, as behind our own products. Launched by
 * backend_fast.cu.
 */
#include "product_finish.h"

enum { FINISH_WARPS = 8 };

LA_KERNEL(la_finish_sums, la_finish_args)
{
    la_grid_wait();
    la_grid_release();
    const int unit = la_block_x() * FINISH_WARPS + la_thread() / 32, m = la_block_y();
    if (unit * LA_UNIT >= a.p.N) {
        return;
    }
    const float *from = a.y + (int64_t)m * a.ldy + unit * LA_UNIT + la_lane();
    la_finish_lane(a.p, m, unit * LA_UNIT, la_ldg(from));
}

extern "C" void la_launch_finish(la_rt_stream *s, const la_finish_args *a)
{
    const int units = (a->p.N + LA_UNIT - 1) / LA_UNIT;
    la_rt_shape shape = {
        {(units + FINISH_WARPS - 1) / FINISH_WARPS, a->p.M, 1}, FINISH_WARPS * 32, 0, 0, 1};
    la_rt_launch(s, LA_ENTRY(la_finish_sums), a, sizeof *a, &shape);
}
