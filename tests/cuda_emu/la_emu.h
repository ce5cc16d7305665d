/* la_emu.h - the door of the host emulator: memory it may touch, tensor maps, a launch.
 *
 * Owns what a host runtime needs to run kernels without a GPU. A launch runs the whole grid before it
 * returns, with one fiber per CUDA thread, in an order drawn from the seed. Invariant: a fault of a
 * kernel is an error string that names kernel, block, thread and reason; the process goes on. Launches
 * exclude each other, so they may come from any thread. Used by the emulated runtime and by the tests.
 */
#ifndef LA_EMU_H
#define LA_EMU_H

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "la_kernel.h"

/* Starts of the allocations that a launch wrote. Whoever in a block waits first does so for all of it. */
struct la_emu_writes {
    std::vector<uintptr_t> starts;
};

extern "C" {

typedef struct la_emu_shape {
    const char *name; /* of the kernel, for messages; may be NULL */
    int grid[3];      /* blocks; 0 counts as 1, here and below */
    int block[3];     /* threads */
    int cluster[3];   /* blocks of a cluster; must divide the grid */
    uint32_t smem;    /* dynamic shared memory, bytes */
    uint32_t seed;    /* of order and delays; 0: in order, copies at once, wgmma at its wait */
    int resident;     /* clusters that run side by side; 0: the seed decides (1 to 3) */
    int dependent;    /* launched with programmatic dependence: writes before the wait are faults */
    /* Of the launch before, against which reads before the wait are held; then of this one. May be NULL. */
    la_emu_writes *writes;
} la_emu_shape;

/* Runs a kernel over its grid. Returns 0, or -1 with the reason in error[n]. args are read during the
 * call only, by the kernel's own copy. */
int la_emu_launch(void (*entry)(const void *args), const void *args, const la_emu_shape *shape,
                  char *error, size_t n);

/* Global memory that kernels may read and write; every access is held against what is registered. */
void la_emu_register(const void *ptr, size_t bytes);
void la_emu_forget(const void *ptr);

/* Writes the map of a tensor, held to the rules of cuTensorMapEncodeTiled. Returns 0, or -1 with the
 * reason in error[n]. */
int la_emu_tensor_map(la_tensor_map *map, const la_tensor_shape *shape, char *error, size_t n);
}

#endif
