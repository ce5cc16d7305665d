/* rt_host_others.cpp - streams and memory of other libraries, on the emulated device.
 *
 * Owns the numbers of streams: 1 and 2 are made when somebody names them, every other is the address of an open
 * stream. Invariant: a stream that was made to wait does nothing until the event has got to its place, whatever order
 * the seed draws. la_rt_host_* are for tests, which play the other library. See la_rt.h.
 */
#include "rt_host.h"

#include <algorithm>

using namespace la_host;

extern "C" {

/* The stream of this number; NULL: there is none. */
la_rt_stream *la_rt_host_stream(la_rt *rt, uint64_t number)
{
    if (number == 1 || number == 2) {
        la_rt_stream *&stream = rt->defaults[number];
        if (stream == nullptr) {
            stream = la_rt_stream_open(rt);
            rt->counts.alive--; /* every device has it */
        }
        return stream;
    }
    la_rt_stream *stream = reinterpret_cast<la_rt_stream *>(number);
    bool open = std::count(rt->streams.begin(), rt->streams.end(), stream) != 0;
    return open ? stream : nullptr;
}

/* How often it was made to wait for an event. */
int64_t la_rt_host_holds(la_rt *rt, uint64_t number)
{
    return rt->holds[number];
}

uint64_t la_rt_stream_number(const la_rt_stream *s)
{
    return reinterpret_cast<uint64_t>(s);
}

int la_rt_event_hold(la_rt_event *e, uint64_t number)
{
    la_rt_stream *stream = la_rt_host_stream(e->rt, number);
    if (stream == nullptr || !e->rt->error.empty()) {
        return -1;
    }
    op o = {};
    o.what = HOLD;
    o.event = e;
    o.place = e->recorded;
    e->rt->holds[number]++;
    put(stream, std::move(o));
    return 0;
}

int la_rt_reaches(la_rt *rt, const void *p, size_t bytes)
{
    return inside(rt, p, bytes > 0 ? bytes : 1, 0);
}

} // extern "C"
