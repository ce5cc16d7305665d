/* rt_host.h - the emulated runtime's device, streams and events as its two files see them.
 *
 * Owns the structures: a stream is a queue of what it was asked for. rt_host.cpp does it, rt_host_others.cpp
 * plays the streams of other libraries. Included by these two.
 */
#ifndef LA_RT_HOST_H
#define LA_RT_HOST_H

#include "la_rt.h"

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "la_emu.h"

namespace la_host {

/* Of arguments, which may hold a tensor map. */
struct alignas(64) line {
    uint64_t words[8];
};

enum kind { COPY, FILL, LAUNCH, ASK, REPLAY, EVENT, HOLD };

struct op {
    kind what;
    void *dst;
    const void *src;
    size_t bytes;
    int byte;
    la_rt_way way;
    la_entry entry;
    la_rt_call call;
    std::vector<line> args;
    la_rt_shape shape;
    const std::vector<op> *list;
    la_rt_event *event;
    int64_t place; /* HOLD: nothing more of the stream until the event has got there */
};

struct piece {
    size_t bytes;
    int pinned;
};

struct range {
    size_t bytes;
    std::vector<char> mapped; /* of each granule */
};

/* Puts an op behind what the stream was asked for; a failed device takes none. */
void put(la_rt_stream *s, op &&o);
/* Does [p, p + bytes) lie in memory of this kind? Neighbouring granules count as one. */
bool inside(la_rt *rt, const void *p, size_t bytes, int pinned);

} // namespace la_host

struct la_rt {
    std::map<uint8_t *, la_host::piece>
        pieces; /* by first byte: device memory, pinned memory, mapped granules */
    std::map<uint8_t *, la_host::range> ranges;
    std::vector<la_rt_stream *> streams;
    std::map<uint64_t, la_rt_stream *> defaults; /* 1 and 2, once somebody named them */
    std::map<uint64_t, int64_t> holds;           /* how often each stream was made to wait */
    la_rt_counts counts = {};
    la_rt_stream *noting = nullptr;
    uint32_t seed = 0, kernels = 0, state = 1;
    size_t used = 0, capacity = 0;
    int64_t fault = 0, graphs = 0, graph_without_memory = 0;
    int64_t granules = 0, granule_without_memory = 0;
    int maps = 1, cc = 90;
    std::string error;
};

struct la_rt_stream {
    la_rt *rt;
    std::deque<la_host::op> queue;
    std::vector<la_host::op> noted;
    la_emu_writes writes; /* of its last launch; none, where something else came after it */
};

struct la_rt_event {
    la_rt *rt;
    int64_t recorded, reached; /* places so far */
};

#endif
