/* inbox.h - what threads other than the stepping one may touch of an engine.
 *
 * Owns the mutex, the list of requests not yet seen by a step, the list of requests with branches
 * to cancel, the table of live requests by id, and the published statistics. Invariant: nothing is
 * read or written here but under the mutex; callers link and copy, and a step holds it only while it
 * takes what arrived, so that a caller never waits for a forward pass. Called by engine.c.
 */
#ifndef LA_INBOX_H
#define LA_INBOX_H

#include <pthread.h>

#include "request.h"

enum { LA_INBOX_BUCKETS = 4096, LA_LOST_TEXT = 256 };

typedef struct la_inbox {
    pthread_mutex_t mutex;
    int64_t next_id;
    int64_t n_live;     /* requests whose last event is still to come */
    int n_new;          /* sequences of the requests in the list below */
    la_live *first_new; /* in order of arrival */
    la_live *last_new;
    la_live *first_cancel;
    int n_preempt;           /* asked for by la_engine_preempt */
    int stepping;            /* a thread is in la_engine_step */
    char lost[LA_LOST_TEXT]; /* why no step will ever run again; "" while they do */
    la_live **buckets;       /* [LA_INBOX_BUCKETS] by id */
    la_engine_stats stats;   /* of the last finished step */
} la_inbox;

la_status la_inbox_init(la_inbox *box);
void la_inbox_free(la_inbox *box); /* and every live request */
/* Takes the request over, whatever comes of it; its id. LA_ERR_SYSTEM where no step will run again. */
la_status la_inbox_put(la_inbox *box, la_live *live, int64_t *id);
la_status la_inbox_cancel(la_inbox *box, int64_t id, int branch);
/* The request of that id; NULL: none is alive. Under the mutex or on the stepping thread. */
la_live *la_inbox_find(la_inbox *box, int64_t id);
/* Removes a request from the table; the caller frees it. */
void la_inbox_forget(la_inbox *box, la_live *live);
/* The stepping thread's: 0 if another is in. */
int la_inbox_enter(la_inbox *box);
void la_inbox_leave(la_inbox *box);
void la_inbox_lock(la_inbox *box);
void la_inbox_unlock(la_inbox *box);

#endif
