/* rope.c - rotary tables.
 *
 * Angles are products of fp32 positions and fp32 inverse frequencies, rounded to fp32 as the reference
 * implementations of the models round them; cosine and sine are then taken in double. Called once per
 * table by model.c when a model is created.
 */
#include "backend.h"

#include <math.h>

void la_rope_fill(const float *inv_freq, int half, int max_len, float scale, float *cos_out,
                  float *sin_out)
{
    for (int pos = 0; pos < max_len; pos++) {
        for (int i = 0; i < half; i++) {
            float angle = (float)pos * inv_freq[i];
            int64_t at = (int64_t)pos * half + i;
            cos_out[at] = (float)cos((double)angle) * scale;
            sin_out[at] = (float)sin((double)angle) * scale;
        }
    }
}
