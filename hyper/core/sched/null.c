/*
 * The null scheduler: every vCPU has a physical CPU of its own and keeps it. vCPUs beyond the number of CPUs wait until
 * one goes. No preemption, no accounting; for tests, and for guests that shall not disturb each other.
 */
#include "../../public/domctl.h"
#include "machine.h"

#define SLICE_NS NSEC_PER_SEC

struct null_private {
    struct vcpu *assigned[64];
    struct list waiting; /* by sched.run_queue */
};

static struct null_private *private(struct hv *hv) { return hv->sched_priv; }

static int null_init(struct hv *hv)
{
    struct null_private *n = calloc(1, sizeof(*n));
    if (!n)
        return -XEN_ENOMEM;
    list_init(&n->waiting);
    hv->sched_priv = n;
    return 0;
}

static void null_destroy(struct hv *hv)
{
    free(hv->sched_priv);
    hv->sched_priv = NULL;
}

static bool assign(struct hv *hv, struct vcpu *v)
{
    struct null_private *n = private(hv);
    for (unsigned i = 0; i < hv->config.nr_pcpus; i++) {
        if (n->assigned[i] || !(v->sched.hard_affinity >> i & 1))
            continue;
        n->assigned[i] = v;
        v->sched.pcpu = i;
        return true;
    }
    return false;
}

static bool is_assigned(struct hv *hv, const struct vcpu *v) { return private(hv)->assigned[v->sched.pcpu] == v; }

static int null_insert(struct hv *hv, struct vcpu *v)
{
    if (!assign(hv, v))
        list_append(&v->sched.run_queue, &private(hv)->waiting);
    return 0;
}

static void take_next(struct hv *hv)
{
    struct list *it, *next;
    list_for_each_safe(it, next, &private(hv)->waiting) {
        struct vcpu *v = container_of(it, struct vcpu, sched.run_queue);
        if (!assign(hv, v))
            continue;
        list_remove(it);
        if (v->sched.queued)
            sched_tickle(hv, v->sched.pcpu);
        return;
    }
}

static void null_remove(struct hv *hv, struct vcpu *v)
{
    if (is_assigned(hv, v)) {
        private(hv)->assigned[v->sched.pcpu] = NULL;
        take_next(hv);
    } else {
        list_remove(&v->sched.run_queue);
    }
}

static void null_wake(struct hv *hv, struct vcpu *v)
{
    if (is_assigned(hv, v))
        sched_tickle(hv, v->sched.pcpu);
}

static void null_sleep(struct hv *hv, struct vcpu *v) { (void)hv, (void)v; }

static struct sched_decision null_pick(struct hv *hv, unsigned pcpu)
{
    struct vcpu *v = private(hv)->assigned[pcpu];
    return (struct sched_decision){v && v->sched.queued ? v : NULL, SLICE_NS};
}

static void null_put_prev(struct hv *hv, unsigned pcpu, struct vcpu *v, uint64_t ran_ns)
{
    (void)hv, (void)pcpu, (void)v, (void)ran_ns;
}

const struct scheduler sched_null = {
    .name = "null",
    .id = XEN_SCHEDULER_NULL,
    .init = null_init,
    .destroy = null_destroy,
    .vcpu_insert = null_insert,
    .vcpu_remove = null_remove,
    .wake = null_wake,
    .sleep = null_sleep,
    .pick = null_pick,
    .put_prev = null_put_prev,
};
