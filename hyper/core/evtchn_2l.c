/*
 * The 2-level event channel ABI: 4096 pending and mask bits in shared_info, a selector word per vCPU, and the upcall flag.
 *
 * The guest changes these words at any time, with and without locked instructions, so each step here is one atomic
 * operation. The order is the protocol: pending bit, then selector bit, then upcall flag, then the look at whether the
 * vCPU sleeps; a vCPU that goes to sleep sets `blocked` first and looks at the upcall flag afterwards.
 */
#include "event.h"

#include "domain.h"

static bool set_bit(xen_ulong_t *words, uint32_t bit)
{
    uint64_t mask = 1ull << (bit % 64);
    return __atomic_fetch_or(&words[bit / 64], mask, __ATOMIC_SEQ_CST) & mask;
}

static bool clear_bit(xen_ulong_t *words, uint32_t bit)
{
    uint64_t mask = 1ull << (bit % 64);
    return __atomic_fetch_and(&words[bit / 64], ~mask, __ATOMIC_SEQ_CST) & mask;
}

static bool test_bit(const xen_ulong_t *words, uint32_t bit)
{
    return __atomic_load_n(&words[bit / 64], __ATOMIC_SEQ_CST) >> (bit % 64) & 1;
}

bool vcpu_event_pending(const struct vcpu *v)
{
    return __atomic_load_n(&v->vcpu_info->evtchn_upcall_pending, __ATOMIC_SEQ_CST) &&
           !__atomic_load_n(&v->vcpu_info->evtchn_upcall_mask, __ATOMIC_SEQ_CST);
}

void vcpu_mark_events_pending(struct vcpu *v)
{
    if (__atomic_exchange_n(&v->vcpu_info->evtchn_upcall_pending, 1, __ATOMIC_SEQ_CST))
        return;
    if (!vcpu_unblock(v))
        vcpu_kick(v);
}

/* A port somebody polls wakes its poller even when it is masked. */
void evtchn_wake_pollers(struct domain *d, uint32_t port)
{
    if (likely(!atomic_load(&d->nr_pollers)))
        return;
    for (uint32_t i = 0; i < d->max_vcpus; i++) {
        struct vcpu *v = d->vcpu[i];
        uint32_t polled = v ? atomic_load(&v->poll_port) : 0;
        if (polled == ~0u || (polled && polled == port))
            vcpu_unblock(v);
    }
}

static void raise_selector(struct vcpu *v, uint32_t port)
{
    if (!set_bit(&v->vcpu_info->evtchn_pending_sel, port / 64))
        vcpu_mark_events_pending(v);
}

void evtchn_2l_set_pending(struct vcpu *v, uint32_t port)
{
    struct shared_info *s = v->domain->shared_info;
    if (set_bit(s->evtchn_pending, port))
        return;
    if (!test_bit(s->evtchn_mask, port))
        raise_selector(v, port);
    evtchn_wake_pollers(v->domain, port);
}

void evtchn_2l_clear_pending(struct domain *d, uint32_t port) { clear_bit(d->shared_info->evtchn_pending, port); }

void evtchn_2l_unmask(struct vcpu *v, uint32_t port)
{
    struct shared_info *s = v->domain->shared_info;
    if (clear_bit(s->evtchn_mask, port) && test_bit(s->evtchn_pending, port))
        raise_selector(v, port);
}

bool evtchn_2l_is_pending(const struct domain *d, uint32_t port)
{
    return test_bit(d->shared_info->evtchn_pending, port);
}

void evtchn_resync(struct vcpu *v)
{
    __atomic_store_n(&v->vcpu_info->evtchn_pending_sel, ~0ull, __ATOMIC_SEQ_CST);
    __atomic_store_n(&v->vcpu_info->evtchn_upcall_pending, 1, __ATOMIC_SEQ_CST);
    if (!vcpu_unblock(v))
        vcpu_kick(v);
}
