/*
 * sched_op: a vCPU gives up its CPU, waits, or ends its domain. And set_timer_op, the wake-up call that goes with it.
 */
#include "../public/sched.h"

#include "event.h"
#include "hypercall.h"

#define MAX_POLLED_PORTS 128u

static int64_t block(struct vcpu *curr)
{
    __atomic_store_n(&curr->vcpu_info->evtchn_upcall_mask, 0, __ATOMIC_SEQ_CST);
    vcpu_block(curr);
    return 0;
}

/* ---- poll ------------------------------------------------------------------------------------------------------- */

/* 1: one of the ports is pending; 0: none. */
static int any_port_pending(struct domain *d, const struct sched_poll *poll)
{
    for (uint32_t i = 0; i < poll->nr_ports; i++) {
        evtchn_port_t port;
        if (copy_from_guest(&port, poll->ports + i * sizeof(port), sizeof(port)))
            return -XEN_EFAULT;
        int pending = evtchn_is_pending(d, port);
        if (pending)
            return pending;
    }
    return 0;
}

static void begin_poll(struct vcpu *v, uint32_t port)
{
    timer_stop(&v->poll_timer);
    atomic_fetch_add(&v->domain->nr_pollers, 1);
    atomic_store(&v->poll_port, port);
}

static void end_poll(struct vcpu *v)
{
    if (atomic_exchange(&v->poll_port, 0))
        atomic_fetch_sub(&v->domain->nr_pollers, 1);
    atomic_store(&v->sched.blocked, false);
}

/* The vCPU says that it polls before it looks at the ports, as whoever sets one looks for pollers afterwards. */
static int64_t poll(struct vcpu *curr, uint64_t arg)
{
    struct sched_poll op;
    evtchn_port_t only = ~0u;
    if (copy_from_guest(&op, arg, sizeof(op)))
        return -XEN_EFAULT;
    if (op.nr_ports > MAX_POLLED_PORTS)
        return -XEN_EINVAL;
    if (op.nr_ports == 1 && copy_from_guest(&only, op.ports, sizeof(only)))
        return -XEN_EFAULT;
    if (!only)
        return -XEN_EINVAL;
    begin_poll(curr, only);
    atomic_store(&curr->sched.blocked, true);
    int rc = vcpu_event_pending(curr) ? 1 : any_port_pending(curr->domain, &op);
    if (rc) {
        end_poll(curr);
        return rc < 0 ? rc : 0;
    }
    if (op.timeout)
        timer_set(&curr->poll_timer, op.timeout);
    return 0;
}

/* ---- shutdown --------------------------------------------------------------------------------------------------- */

static int64_t shutdown(struct domain *caller, uint64_t arg)
{
    struct sched_shutdown op;
    if (copy_from_guest(&op, arg, sizeof(op)))
        return -XEN_EFAULT;
    if (caller->is_privileged) /* the host goes down by other means */
        return -XEN_EPERM;
    domain_shutdown(caller, (uint8_t)op.reason);
    return 0;
}

/* The reason that a later shutdown of any kind will have. */
static int64_t shutdown_code(struct domain *caller, uint64_t arg)
{
    struct sched_shutdown op;
    uint32_t none = ~0u;
    if (copy_from_guest(&op, arg, sizeof(op)))
        return -XEN_EFAULT;
    atomic_compare_exchange_strong(&caller->shutdown_code, &none, (uint8_t)op.reason);
    return 0;
}

static int64_t remote_shutdown(struct domain *caller, uint64_t arg)
{
    struct sched_remote_shutdown op;
    if (copy_from_guest(&op, arg, sizeof(op)))
        return -XEN_EFAULT;
    struct domain *d = get_domain(caller->hv, caller, op.domain_id);
    if (!d)
        return -XEN_ESRCH;
    bool allowed = caller->is_privileged && d != caller;
    if (allowed)
        domain_shutdown(d, (uint8_t)op.reason);
    put_domain(d);
    return allowed ? 0 : -XEN_EPERM;
}

/* ---- watchdog --------------------------------------------------------------------------------------------------- */

static int64_t new_watchdog(struct domain *d, uint32_t seconds)
{
    if (!seconds)
        return -XEN_EINVAL;
    for (unsigned i = 0; i < ARRAY_SIZE(d->watchdog); i++) {
        if (d->watchdog[i].in_use)
            continue;
        d->watchdog[i].in_use = true;
        timer_set(&d->watchdog[i].timer, hv_now(d->hv) + seconds * NSEC_PER_SEC);
        return i + 1;
    }
    return -XEN_ENOSPC;
}

static int64_t change_watchdog(struct domain *d, uint32_t id, uint32_t seconds)
{
    struct domain_watchdog *w = &d->watchdog[id - 1];
    if (!w->in_use)
        return -XEN_EINVAL;
    if (seconds) {
        timer_set(&w->timer, hv_now(d->hv) + seconds * NSEC_PER_SEC);
    } else {
        timer_cancel(&w->timer);
        w->in_use = false;
    }
    return 0;
}

static int64_t watchdog(struct vcpu *curr, struct domain *d, uint64_t arg)
{
    struct sched_watchdog op;
    if (copy_from_guest(&op, arg, sizeof(op)))
        return -XEN_EFAULT;
    if (op.id > ARRAY_SIZE(d->watchdog))
        return -XEN_EINVAL;
    domain_lock(d, curr);
    int64_t rc = op.id ? change_watchdog(d, op.id, op.timeout) : new_watchdog(d, op.timeout);
    domain_unlock(d, curr);
    return rc;
}

/* ---- the hypercalls --------------------------------------------------------------------------------------------- */

int64_t do_sched_op(struct vcpu *curr, struct domain *caller, uint64_t cmd, uint64_t arg)
{
    switch ((uint32_t)cmd) {
    case SCHEDOP_shutdown:
        return shutdown(caller, arg);
    case SCHEDOP_shutdown_code:
        return shutdown_code(caller, arg);
    case SCHEDOP_remote_shutdown:
        return remote_shutdown(caller, arg);
    case SCHEDOP_watchdog:
        return caller->is_privileged ? -XEN_EPERM : watchdog(curr, caller, arg);
    case SCHEDOP_pin_override:
        return -XEN_EPERM;
    }
    if (!curr) /* a process waits by other means, and its host's scheduler is asked elsewhere */
        return (uint32_t)cmd == SCHEDOP_yield ? 0 : -XEN_ENOSYS;
    switch ((uint32_t)cmd) {
    case SCHEDOP_yield:
        vcpu_yield(curr);
        return 0;
    case SCHEDOP_block:
        return block(curr);
    case SCHEDOP_poll:
        return poll(curr, arg);
    default:
        return -XEN_ENOSYS;
    }
}

int64_t do_set_timer_op(struct vcpu *curr, uint64_t timeout)
{
    if (timeout)
        timer_set(&curr->singleshot, timeout);
    else
        timer_cancel(&curr->singleshot);
    return 0;
}
