/*
 * Timers: a binary heap ordered by expiry, and one thread that sleeps until its top.
 *
 * Setting a timer wakes the thread only if it would otherwise sleep too long; a timer moved to later costs a spurious
 * wake-up at most. Guest timers and slices are a few hundred a second per vCPU, so one lock and one thread suffice.
 * Times are hv_now(); the thread converts to CLOCK_MONOTONIC for each sleep and looks again when it wakes, so that a
 * drift between the two shows as a second short sleep. The kernel's timer slack of 50 us is turned off for it.
 */
#include "timer.h"

#include <sys/prctl.h>
#include <time.h>

#include "machine.h"

struct timers {
    lock_t lock;
    pthread_cond_t wake, idle;
    pthread_t thread;
    bool started, stop;
    struct timer **heap; /* 1-based */
    uint32_t nr, capacity;
    struct timer *running;
    uint64_t sleeping_until; /* 0: awake */
};

/* ---- heap ------------------------------------------------------------------------------------------------------- */

static void place(struct timers *ts, struct timer *t, uint32_t i)
{
    ts->heap[i] = t;
    t->heap_index = i;
}

static void sift_up(struct timers *ts, struct timer *t)
{
    uint32_t i = t->heap_index;
    for (; i > 1 && ts->heap[i / 2]->expires_ns > t->expires_ns; i /= 2)
        place(ts, ts->heap[i / 2], i);
    place(ts, t, i);
}

static void sift_down(struct timers *ts, struct timer *t)
{
    uint32_t i = t->heap_index, child;
    while ((child = 2 * i) <= ts->nr) {
        if (child < ts->nr && ts->heap[child + 1]->expires_ns < ts->heap[child]->expires_ns)
            child++;
        if (ts->heap[child]->expires_ns >= t->expires_ns)
            break;
        place(ts, ts->heap[child], i);
        i = child;
    }
    place(ts, t, i);
}

static void reserve(struct timers *ts)
{
    if (ts->nr + 2 <= ts->capacity)
        return;
    ts->capacity = ts->capacity ? 2 * ts->capacity : 64;
    ts->heap = realloc(ts->heap, ts->capacity * sizeof(*ts->heap));
    BUG_ON(!ts->heap);
}

static void heap_insert(struct timers *ts, struct timer *t)
{
    reserve(ts);
    place(ts, t, ++ts->nr);
    sift_up(ts, t);
}

static void heap_remove(struct timers *ts, struct timer *t)
{
    struct timer *last = ts->heap[ts->nr--];
    if (last != t) {
        place(ts, last, t->heap_index);
        sift_up(ts, last);
        sift_down(ts, last);
    }
    t->heap_index = 0;
}

/* ---- interface -------------------------------------------------------------------------------------------------- */

void timer_init(struct timer *t, struct hv *hv, void (*function)(void *), void *data)
{
    *t = (struct timer){.hv = hv, .function = function, .data = data};
}

void timer_set(struct timer *t, uint64_t expires_ns)
{
    struct timers *ts = t->hv->timers;
    lock(&ts->lock);
    t->expires_ns = expires_ns ? expires_ns : 1;
    if (t->heap_index) {
        sift_up(ts, t);
        sift_down(ts, t);
    } else {
        heap_insert(ts, t);
    }
    bool wake = t->expires_ns < ts->sleeping_until;
    if (wake)
        ts->sleeping_until = 0;
    unlock(&ts->lock);
    if (wake)
        pthread_cond_signal(&ts->wake);
}

static void cancel_locked(struct timers *ts, struct timer *t)
{
    if (t->heap_index)
        heap_remove(ts, t);
    t->expires_ns = 0;
}

void timer_cancel(struct timer *t)
{
    struct timers *ts = t->hv->timers;
    lock(&ts->lock);
    cancel_locked(ts, t);
    unlock(&ts->lock);
}

void timer_stop(struct timer *t)
{
    struct timers *ts = t->hv->timers;
    lock(&ts->lock);
    cancel_locked(ts, t);
    while (ts->running == t && !pthread_equal(ts->thread, pthread_self())) {
        pthread_cond_wait(&ts->idle, &ts->lock);
        cancel_locked(ts, t); /* it may have set itself again */
    }
    unlock(&ts->lock);
}

/* ---- the thread ------------------------------------------------------------------------------------------------- */

static void sleep_until(struct timers *ts, uint64_t expires_ns, uint64_t now_ns)
{
    struct timespec at;
    ts->sleeping_until = expires_ns;
    if (expires_ns == UINT64_MAX) {
        pthread_cond_wait(&ts->wake, &ts->lock);
    } else {
        clock_gettime(CLOCK_MONOTONIC, &at);
        uint64_t ns = (uint64_t)at.tv_sec * NSEC_PER_SEC + (uint64_t)at.tv_nsec + (expires_ns - now_ns);
        at.tv_sec = (time_t)(ns / NSEC_PER_SEC);
        at.tv_nsec = (long)(ns % NSEC_PER_SEC);
        pthread_cond_timedwait(&ts->wake, &ts->lock, &at);
    }
    ts->sleeping_until = 0;
}

static void expire(struct timers *ts, struct timer *t)
{
    cancel_locked(ts, t);
    ts->running = t;
    unlock(&ts->lock);
    t->function(t->data);
    lock(&ts->lock);
    ts->running = NULL;
    pthread_cond_broadcast(&ts->idle);
}

static void *timer_thread(void *data)
{
    struct hv *hv = data;
    struct timers *ts = hv->timers;
    prctl(PR_SET_TIMERSLACK, 1000ul);
    lock(&ts->lock);
    while (!ts->stop) {
        uint64_t now = hv_now(hv);
        struct timer *first = ts->nr ? ts->heap[1] : NULL;
        if (first && first->expires_ns <= now)
            expire(ts, first);
        else
            sleep_until(ts, first && first->expires_ns - now < 3600 * NSEC_PER_SEC ? first->expires_ns : UINT64_MAX, now);
    }
    unlock(&ts->lock);
    return NULL;
}

int timers_init(struct hv *hv)
{
    struct timers *ts = calloc(1, sizeof(*ts));
    if (!ts)
        return -XEN_ENOMEM;
    lock_init(&ts->lock);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&ts->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_cond_init(&ts->idle, NULL);
    hv->timers = ts;
    return 0;
}

int timers_start(struct hv *hv)
{
    struct timers *ts = hv->timers;
    lock(&ts->lock); /* the thread reads ts->thread through timer_stop */
    int rc = hv_thread_create(&ts->thread, "umxen-timer", 0, timer_thread, hv);
    ts->started = rc == 0;
    unlock(&ts->lock);
    return rc;
}

void timers_stop(struct hv *hv)
{
    struct timers *ts = hv->timers;
    lock(&ts->lock);
    ts->stop = true;
    pthread_cond_signal(&ts->wake);
    unlock(&ts->lock);
    if (ts->started)
        pthread_join(ts->thread, NULL);
    ts->started = false;
}

void timers_destroy(struct hv *hv)
{
    struct timers *ts = hv->timers;
    pthread_cond_destroy(&ts->wake);
    pthread_cond_destroy(&ts->idle);
    free(ts->heap);
    free(ts);
    hv->timers = NULL;
}
