/*
 * Timers: one heap per machine, served by the timer thread (timer.c). A timer's function runs on that thread with no
 * lock held; it must be short and may take event_lock and sched_lock.
 */
#ifndef UMXEN_TIMER_H
#define UMXEN_TIMER_H
#include "base.h"

struct hv;
struct timer {
    struct hv *hv;
    uint64_t expires_ns; /* hv_now(); 0: not set */
    uint32_t heap_index; /* 1-based place in the heap, 0: not in it */
    void (*function)(void *data);
    void *data;
};
void timer_init(struct timer *t, struct hv *hv, void (*function)(void *), void *data);
void timer_set(struct timer *t, uint64_t expires_ns);
/* It won't be started any more, but may be running. For callers with event_lock or sched_lock. */
void timer_cancel(struct timer *t);
/* After it returns the function isn't running and won't be started (may be called from the function itself). */
void timer_stop(struct timer *t);
int timers_init(struct hv *hv);
int timers_start(struct hv *hv);
void timers_stop(struct hv *hv);
void timers_destroy(struct hv *hv);
#endif
