/* inbox.c - see inbox.h. */
#include "inbox.h"

#include <string.h>

la_status la_inbox_init(la_inbox *box)
{
    memset(box, 0, sizeof *box);
    box->next_id = 1;
    la_live **buckets = la_alloc(LA_INBOX_BUCKETS, sizeof *buckets);
    if (buckets == NULL) {
        return la_fail(LA_ERR_MEMORY, "engine: table of requests");
    }
    if (pthread_mutex_init(&box->mutex, NULL) != 0) {
        la_free(buckets);
        return la_fail(LA_ERR_SYSTEM, "engine: cannot create a mutex");
    }
    box->buckets = buckets; /* set only when the mutex exists: la_inbox_free relies on it */
    return LA_OK;
}

void la_inbox_free(la_inbox *box)
{
    if (box->buckets == NULL) {
        return;
    }
    for (int i = 0; i < LA_INBOX_BUCKETS; i++) {
        while (box->buckets[i] != NULL) {
            la_live *live = box->buckets[i];
            box->buckets[i] = live->next_in_bucket;
            la_free(live);
        }
    }
    la_free(box->buckets);
    pthread_mutex_destroy(&box->mutex);
    memset(box, 0, sizeof *box);
}

void la_inbox_lock(la_inbox *box)
{
    (void)pthread_mutex_lock(&box->mutex); /* fails for a mutex that is not one only */
}

void la_inbox_unlock(la_inbox *box)
{
    (void)pthread_mutex_unlock(&box->mutex);
}

int la_inbox_enter(la_inbox *box)
{
    la_inbox_lock(box);
    int first = !box->stepping;
    box->stepping = 1;
    la_inbox_unlock(box);
    return first;
}

void la_inbox_leave(la_inbox *box)
{
    la_inbox_lock(box);
    box->stepping = 0;
    la_inbox_unlock(box);
}

static la_live **inbox_bucket(la_inbox *box, int64_t id)
{
    return &box->buckets[id % LA_INBOX_BUCKETS];
}

la_status la_inbox_put(la_inbox *box, la_live *live, int64_t *id)
{
    la_inbox_lock(box);
    if (box->lost[0] != '\0') {
        la_status st = la_fail(LA_ERR_SYSTEM, "engine: its device has failed: %s", box->lost);
        la_inbox_unlock(box);
        la_free(live);
        return st;
    }
    *id = box->next_id++;
    la_live **bucket = inbox_bucket(box, *id);
    live->id = *id;
    live->next_in_bucket = *bucket;
    *bucket = live;
    if (box->first_new == NULL) {
        box->first_new = live;
    }
    else {
        box->last_new->next_new = live;
    }
    box->last_new = live;
    box->n_live++;
    box->n_new += live->n_branches;
    la_inbox_unlock(box);
    return LA_OK;
}

/* Marks branches of a live request; the next step acts on it. */
static la_status inbox_mark(la_inbox *box, la_live *live, int branch)
{
    if (branch >= live->n_branches) {
        return la_fail(LA_ERR_ARGUMENT, "branch: %d, request %lld has %d", branch,
                       (long long)live->id, live->n_branches);
    }
    if (branch < 0) {
        memset(live->cancelled, 1, (size_t)live->n_branches);
    }
    else {
        live->cancelled[branch] = 1;
    }
    if (!live->in_cancels) {
        live->in_cancels = 1;
        live->next_cancel = box->first_cancel;
        box->first_cancel = live;
    }
    return LA_OK;
}

la_live *la_inbox_find(la_inbox *box, int64_t id)
{
    la_live *live = id > 0 ? *inbox_bucket(box, id) : NULL;
    while (live != NULL && live->id != id) {
        live = live->next_in_bucket;
    }
    return live;
}

la_status la_inbox_cancel(la_inbox *box, int64_t id, int branch)
{
    la_status st = LA_OK;
    la_inbox_lock(box);
    if (id < 1 || id >= box->next_id) {
        st = la_fail(LA_ERR_ARGUMENT, "request: no request was given the id %lld", (long long)id);
    }
    else {
        la_live *live = la_inbox_find(box, id);
        if (live != NULL) { /* else it has ended: nothing is left to cancel */
            st = inbox_mark(box, live, branch);
        }
    }
    la_inbox_unlock(box);
    return st;
}

void la_inbox_forget(la_inbox *box, la_live *live)
{
    la_inbox_lock(box);
    la_live **link = inbox_bucket(box, live->id);
    while (*link != live) {
        link = &(*link)->next_in_bucket;
    }
    *link = live->next_in_bucket;
    if (live->in_cancels) { /* cancelled after its last branch ended on its own */
        la_live **c = &box->first_cancel;
        while (*c != live) {
            c = &(*c)->next_cancel;
        }
        *c = live->next_cancel;
    }
    box->n_live--;
    la_inbox_unlock(box);
}
