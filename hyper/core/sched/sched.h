/*
 * The scheduler: mechanism in core.c, policies behind one table of operations.
 *
 * A vCPU is runnable when it is online, not blocked and nobody paused it. Exactly one pCPU runs it at a time, and its
 * thread executes vcpu_run (pv/entry.c) until the slice ends, it blocks, is paused or its domain dies. All state here is
 * guarded by hv->sched_lock. pCPU threads without work sleep.
 */
#ifndef UMXEN_SCHED_H
#define UMXEN_SCHED_H
#include "base.h"

struct hv;
struct vcpu;
struct domain;
struct vcpu_runstate_info;

#define SCHED_AFFINITY_WORDS 1 /* 64 pCPUs */

struct sched_unit {
    struct list run_queue;       /* the policy's */
    void *priv;                  /* the policy's per-vCPU state */
    uint32_t pcpu;               /* where it runs or ran last */
    bool running;                /* a pCPU thread is in vcpu_run with it */
    bool queued;                 /* the policy has it as runnable, waiting */
    _Atomic bool blocked;        /* SCHEDOP_block or poll, until an event */
    bool yielding;
    uint64_t hard_affinity, soft_affinity; /* bit per pCPU */
    uint64_t started_ns;         /* of the current run */
};

struct sched_decision { struct vcpu *vcpu; uint64_t slice_ns; }; /* vcpu NULL: idle */

struct scheduler {
    const char *name;   /* "credit" */
    uint32_t id;        /* XEN_SCHEDULER_CREDIT */
    int (*init)(struct hv *hv);
    void (*destroy)(struct hv *hv);
    int (*vcpu_insert)(struct hv *hv, struct vcpu *v);
    void (*vcpu_remove)(struct hv *hv, struct vcpu *v);
    void (*wake)(struct hv *hv, struct vcpu *v);                 /* became runnable: enqueue, tickle a pCPU */
    void (*sleep)(struct hv *hv, struct vcpu *v);                /* stopped being runnable while queued */
    struct sched_decision (*pick)(struct hv *hv, unsigned pcpu); /* whom to run now; removes it from the queue */
    /* It stopped running; it goes back to the queue if v->sched.queued. */
    void (*put_prev)(struct hv *hv, unsigned pcpu, struct vcpu *v, uint64_t ran_ns);
    int (*adjust)(struct hv *hv, struct domain *d, void *op);    /* struct xen_domctl_scheduler_op; NULL: nothing to set */
    int (*adjust_global)(struct hv *hv, void *op);               /* struct xen_sysctl_scheduler_op; NULL: nothing to set */
    int (*domain_init)(struct domain *d);                        /* may be NULL, as the next */
    void (*domain_destroy)(struct domain *d);
    void (*dump)(struct hv *hv);                                 /* to the console; may be NULL */
};
extern const struct scheduler sched_credit, sched_null;

int sched_init(struct hv *hv);
int sched_start(struct hv *hv);    /* the pCPU threads */
void sched_stop(struct hv *hv);
void sched_destroy(struct hv *hv);
int sched_vcpu_init(struct vcpu *v);
void sched_vcpu_destroy(struct vcpu *v);

bool vcpu_runnable(const struct vcpu *v);
/* Something that makes it runnable may have changed (event, unpause, up): enqueue it if so. */
void vcpu_wake(struct vcpu *v);
/* Stops it (pause, down, dying): kicks it; `sync` waits until no pCPU runs it. Not from its own thread when sync. */
void vcpu_sleep(struct vcpu *v, bool sync);
/* SCHEDOP_block from its own thread: marks it blocked unless an event is pending. It stops when vcpu_run returns. */
void vcpu_block(struct vcpu *v);
void vcpu_yield(struct vcpu *v);
/* Wakes a blocked vCPU because an event arrived; true if it was blocked: then it will look at its events itself. */
bool vcpu_unblock(struct vcpu *v);
/* True when vcpu_run must return: slice over, blocked, paused, dying, machine stopping. Cheap, lock-free. */
bool sched_must_stop(const struct vcpu *v);
/* For policies, which run with sched_lock held. */
void sched_tickle(struct hv *hv, unsigned pcpu); /* makes a pCPU look at its queue again */
void sched_tickle_at(struct hv *hv, unsigned pcpu, uint64_t when_ns); /* not before; its slice ends then */
struct vcpu *sched_current(struct hv *hv, unsigned pcpu); /* NULL: none */
bool sched_idle(struct hv *hv, unsigned pcpu); /* runs nothing, and was not tickled since */
/* sched_lock with what must follow it: pCPUs that were tickled are woken once it is dropped. */
void sched_lock(struct hv *hv);
void sched_unlock(struct hv *hv);
uint64_t sched_idle_time(struct hv *hv, unsigned pcpu);
void sched_set_affinity(struct vcpu *v, uint64_t hard, uint64_t soft);
void sched_dump(struct hv *hv);
void vcpu_runstate_get(struct vcpu *v, struct vcpu_runstate_info *out);
uint64_t domain_cpu_time(struct domain *d);
#endif
