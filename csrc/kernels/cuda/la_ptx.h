/* la_ptx.h - the instructions of every GPU from sm_80 on, one documented wrapper each.
 *
 * Owns nothing itself: it gathers the generic wrappers by theme. A wrapper has two bodies behind one
 * signature (LA_PTX): inline PTX, and a call into the host emulator. Invariant: kernels touch shared
 * memory by 32-bit shared addresses and global memory by la_ldg and la_stg only, never through a pointer,
 * so that the emulator sees every access. Hopper's own instructions are in la_ptx_sm90.h.
 */
#ifndef LA_PTX_H
#define LA_PTX_H

#include "la_kernel.h"
#include "la_ptx_thread.h"
#include "la_ptx_memory.h"
#include "la_ptx_convert.h"
#include "la_ptx_mma.h"

#endif
