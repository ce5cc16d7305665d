/* la_rt.h - the runtime calls of the CUDA backend: memory, streams, graphs, launches.
 *
 * Owns the list, which has two implementations: rt_cuda.cu calls the CUDA runtime, and
 * tests/cuda_emu/rt_host.cpp keeps "device" memory on the host and runs kernels in the emulator, so that
 * all of the backend is tested without a GPU. Invariants: the first failure of a device stays its error,
 * every later call that can fail fails too, and nothing else happens any more; what a stream is asked to
 * do happens in its order and, as seen from other streams and the host, at any time up to a wait for it.
 * One thread at a time. Called by backend.cu and by the launchers beside the kernels.
 */
#ifndef LA_RT_H
#define LA_RT_H

#include "la_kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct la_rt la_rt; /* a device that is in use */
typedef struct la_rt_stream la_rt_stream;
typedef struct la_rt_graph la_rt_graph;
typedef struct la_rt_event la_rt_event;

typedef struct la_rt_info {
    char name[96];
    int cc;              /* compute capability, 90 for 9.0 */
    int n_sms;           /* multiprocessors */
    int driver, runtime; /* versions, 13000 for 13.0 */
    int maps;            /* 1: la_rt_commit maps memory, 0: a reservation has it at once */
    size_t granule;      /* of la_rt_commit and la_rt_decommit */
    size_t smem;         /* shared memory a block may have */
    size_t l2;           /* bytes of the second-level cache */
    size_t memory_free, memory_total;
} la_rt_info;

/* What was done so far: tests hold the loop over steps to it. */
typedef struct la_rt_counts {
    int64_t allocations;           /* of device and pinned memory, reservations and commits */
    int64_t alive;                 /* of them, streams, events and graphs: not given back yet */
    int64_t waits;                 /* of the host for all work of a stream or of the device */
    int64_t launches;              /* of kernels, those of replayed graphs included */
    int64_t replays;               /* of graphs */
    int64_t copied_in, copied_out; /* bytes to the device and from it */
    int64_t graphs;                /* made */
    int64_t event_waits;           /* of the host for an event, behind which a stream may go on */
} la_rt_counts;

/* Opens device `device`. 0, or -1 with what stands in the way in why[n]: no driver, one that is older than
 * this runtime, no such device. */
int la_rt_open(int device, la_rt **out, char *why, size_t n);
/* Waits for all work and closes. All that came from the device was given back before, reservations aside,
 * which go with it: a device keeps what was not, the emulator counts it. NULL is a no-op. */
void la_rt_close(la_rt *rt);
/* Before other calls where another thread made the last ones. 0, or -1 if the device has failed. */
int la_rt_enter(la_rt *rt);
void la_rt_describe(la_rt *rt, la_rt_info *out);
void la_rt_count(const la_rt *rt, la_rt_counts *out);
/* What failed first; "" while nothing has. */
const char *la_rt_error(const la_rt *rt);

/* ---- memory: NULL, or -1, on failure -------------------------------------------------------- */

/* Device memory, 256-byte aligned, of any content. Running out of it is not an error of the device. */
void *la_rt_alloc(la_rt *rt, size_t bytes);
void la_rt_free(la_rt *rt, void *p);
/* Addresses, which stay; ranges of whole granules come and go. Fresh ones hold anything. A commit that fails
 * leaves those that were there before. */
void *la_rt_reserve(la_rt *rt, size_t bytes);
int la_rt_commit(la_rt *rt, void *p, size_t bytes);
/* Waits for all work first. */
void la_rt_decommit(la_rt *rt, void *p, size_t bytes);
void la_rt_release(la_rt *rt, void *p);
/* Host memory that copies may use; it does not move. */
void *la_rt_pin(la_rt *rt, size_t bytes);
void la_rt_unpin(la_rt *rt, void *p);

/* ---- streams -------------------------------------------------------------------------------- */

la_rt_stream *la_rt_stream_open(la_rt *rt);
void la_rt_stream_close(la_rt_stream *s);
/* Until all that the stream was asked for is done. 0, or -1 if the device has failed. */
int la_rt_stream_wait(la_rt_stream *s);

/* A place in a stream's work: record moves it behind all that the stream was asked for so far. */
la_rt_event *la_rt_event_open(la_rt *rt);
void la_rt_event_close(la_rt_event *e);
void la_rt_event_record(la_rt_event *e, la_rt_stream *s);
/* Until that place is reached. 0, or -1 if the device has failed. */
int la_rt_event_wait(la_rt_event *e);

/* ---- streams and memory of others in this process (rt_cuda_others.cu) ---- */

/* How others know a stream: by the number that DLPack gives it, its handle; 1 is the legacy default stream and 2
 * the calling thread's. */
uint64_t la_rt_stream_number(const la_rt_stream *s);
/* What stream `number` is asked from here on waits for the place where e was recorded last; the host does not. 0, or
 * -1: there is no such stream, or the device has failed. A wrong number is no error of the device. */
int la_rt_event_hold(la_rt_event *e, uint64_t number);
/* 1: kernels of the device may use [p, p + bytes), whoever allocated it. */
int la_rt_reaches(la_rt *rt, const void *p, size_t bytes);

typedef enum la_rt_way { LA_RT_IN = 0, LA_RT_OUT, LA_RT_WITHIN } la_rt_way;
/* Host memory is pinned; it is read, or written, until a wait. */
void la_rt_copy(la_rt_stream *s, void *dst, const void *src, size_t bytes, la_rt_way way);
void la_rt_fill(la_rt_stream *s, void *dst, int byte, size_t bytes);

/* ---- launches and graphs -------------------------------------------------------------------- */

enum { LA_GRID_YZ = 65535 }; /* most blocks along y, and along z */

typedef struct la_rt_shape {
    int grid[3];   /* blocks; 0 counts as 1, y and z up to LA_GRID_YZ */
    int threads;   /* of a block */
    int cluster;   /* blocks along the first coordinate that share a cluster; 0: none */
    uint32_t smem; /* dynamic shared memory, bytes */
    int dependent; /* 1: may start beside its predecessor, up to la_grid_wait */
} la_rt_shape;

/* Writes the map of a tensor, by the rules of cuTensorMapEncodeTiled. 0, or -1 if the device has failed. */
int la_rt_tensor_map(la_rt_stream *s, la_tensor_map *map, const la_tensor_shape *shape);
/* args are copied. */
void la_rt_launch(la_rt_stream *s, la_entry entry, const void *args, size_t args_bytes,
                  const la_rt_shape *shape);
/* What a library asks of a stream by itself: 0, or -1 with what failed in why[n]. */
typedef int (*la_rt_call)(void *stream, const void *args, char *why, size_t n);
/* call(the stream's own handle, args) when the stream comes to it, in a graph whenever that runs; on CUDA at once, as
 * it only asks there. args are copied; what fails is the device's error. */
void la_rt_ask(la_rt_stream *s, la_rt_call call, const void *args, size_t bytes);
/* From begin to end the stream takes note of launches, what libraries ask, copies within the device and fills instead of doing
 * them; waiting or allocating meanwhile is an error. end gives NULL on failure; running out of memory is not
 * an error of the device. */
void la_rt_graph_begin(la_rt_stream *s);
la_rt_graph *la_rt_graph_end(la_rt_stream *s);
void la_rt_graph_run(la_rt_graph *g, la_rt_stream *s);
void la_rt_graph_free(la_rt_graph *g);

#ifdef __cplusplus
}
#endif

#endif
