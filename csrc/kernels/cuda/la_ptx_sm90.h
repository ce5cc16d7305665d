/* la_ptx_sm90.h - Hopper's own instructions: barriers in memory, TMA, clusters, products of a warpgroup.
 *
 * Owns nothing itself: it gathers the wrappers that need sm_90a, and la_ptx.h. Invariant: files that
 * include it are compiled for sm_90a alone (named *_sm90.cu), because code for an `a` target does not run
 * on any other GPU. Kernels for every GPU include la_ptx.h.
 */
#ifndef LA_PTX_SM90_H
#define LA_PTX_SM90_H

#include "la_ptx.h"
#include "la_ptx_mbar.h"
#include "la_ptx_tma.h"
#include "la_ptx_cluster.h"
#include "la_ptx_wgmma.h"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "la_ptx_sm90.h: compile this file for sm_90a"
#endif

#endif
