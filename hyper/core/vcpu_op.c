/*
 * vcpu_op: a domain starts and stops its vCPUs, sets their timers and says where it wants their state kept.
 */
#include "event.h"
#include "hypercall.h"

#define MIN_PERIOD_NS 1000000ull

/* ---- up and down ------------------------------------------------------------------------------------------------ */

static int64_t set_context(struct vcpu *curr, struct vcpu *v, const struct vcpu_guest_context *context)
{
    struct domain *d = v->domain;
    domain_lock(d, curr);
    int rc = v->initialised ? -XEN_EEXIST : pv_set_context(v, context);
    if (!rc)
        v->initialised = true;
    domain_unlock(d, curr);
    return rc;
}

static int64_t initialise(struct vcpu *curr, struct vcpu *v, uint64_t arg)
{
    if (v->vcpu_info == &v->own_info) /* it would have nowhere to see its events */
        return -XEN_EINVAL;
    if (v->initialised)
        return -XEN_EEXIST;
    struct vcpu_guest_context *context = malloc(sizeof(*context));
    if (!context)
        return -XEN_ENOMEM;
    int64_t rc = copy_from_guest(context, arg, sizeof(*context)) ? -XEN_EFAULT : set_context(curr, v, context);
    free(context);
    return rc;
}

static int64_t up(struct vcpu *v)
{
    if (!v->initialised)
        return -XEN_EINVAL;
    atomic_store(&v->online, true);
    vcpu_wake(v);
    return 0;
}

static bool is_last_online(const struct vcpu *v)
{
    const struct domain *d = v->domain;
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i] != v && atomic_load(&d->vcpu[i]->online))
            return false;
    return true;
}

static int64_t down(struct vcpu *curr, struct vcpu *v)
{
    domain_lock(v->domain, curr);
    bool last = is_last_online(v);
    if (!last)
        atomic_store(&v->online, false);
    domain_unlock(v->domain, curr);
    if (last)
        domain_shutdown(v->domain, 0);
    else
        vcpu_sleep(v, false);
    return 0;
}

/* ---- timers ----------------------------------------------------------------------------------------------------- */

static int64_t set_periodic(struct vcpu *v, uint64_t arg)
{
    struct vcpu_set_periodic_timer op;
    if (copy_from_guest(&op, arg, sizeof(op)))
        return -XEN_EFAULT;
    if (op.period_ns < MIN_PERIOD_NS || op.period_ns > INT64_MAX)
        return -XEN_EINVAL;
    __atomic_store_n(&v->periodic_period_ns, op.period_ns, __ATOMIC_RELAXED);
    timer_set(&v->periodic, hv_now(v->domain->hv) + op.period_ns);
    return 0;
}

static int64_t stop_periodic(struct vcpu *v)
{
    __atomic_store_n(&v->periodic_period_ns, 0, __ATOMIC_RELAXED);
    timer_stop(&v->periodic);
    return 0;
}

static int64_t set_singleshot(struct vcpu *curr, struct vcpu *v, uint64_t arg)
{
    struct vcpu_set_singleshot_timer op;
    if (v != curr)
        return -XEN_EINVAL;
    if (copy_from_guest(&op, arg, sizeof(op)))
        return -XEN_EFAULT;
    if ((op.flags & VCPU_SSHOTTMR_future) && op.timeout_abs_ns < hv_now(v->domain->hv))
        return -XEN_ETIME;
    timer_set(&v->singleshot, op.timeout_abs_ns);
    return 0;
}

static int64_t stop_singleshot(struct vcpu *curr, struct vcpu *v)
{
    if (v != curr)
        return -XEN_EINVAL;
    timer_cancel(&v->singleshot);
    return 0;
}

/* ---- areas ------------------------------------------------------------------------------------------------------ */

/* From now on the vCPU's info is `to`, with all that the old place held. */
static void move_vcpu_info(struct vcpu *v, struct vcpu_info *to)
{
    struct hv *hv = v->domain->hv;
    lock(&hv->event_lock);
    time_lock(hv);
    memcpy(to, v->vcpu_info, sizeof(*to));
    v->vcpu_info = to;
    time_unlock(hv);
    evtchn_resync(v); /* events that came between the copy and now */
    unlock(&hv->event_lock);
    time_publish(v);
}

static int64_t register_vcpu_info(struct vcpu *curr, struct vcpu *v, uint64_t arg)
{
    struct vcpu_register_vcpu_info op;
    if (copy_from_guest(&op, arg, sizeof(op)))
        return -XEN_EFAULT;
    if (op.offset > PAGE_SIZE - sizeof(struct vcpu_info) || op.offset % sizeof(uint64_t))
        return -XEN_EINVAL;
    if (v != curr && atomic_load(&v->online))
        return -XEN_EINVAL;
    struct domain *d = v->domain;
    domain_lock(d, curr);
    struct page_info *pg = v->vcpu_info_page ? NULL : claim_guest_frame(curr, op.mfn);
    if (pg) {
        v->vcpu_info_page = pg;
        move_vcpu_info(v, (struct vcpu_info *)((char *)mfn_to_virt(d->hv, page_to_mfn(d->hv, pg)) + op.offset));
    }
    domain_unlock(d, curr);
    return pg ? 0 : -XEN_EINVAL;
}

static int64_t register_runstate(struct vcpu *v, uint64_t arg)
{
    struct vcpu_register_runstate_memory_area op;
    struct vcpu_runstate_info now;
    if (copy_from_guest(&op, arg, sizeof(op)))
        return -XEN_EFAULT;
    vcpu_runstate_get(v, &now);
    if (copy_to_guest(op.addr.v, &now, sizeof(now)))
        return -XEN_EFAULT;
    __atomic_store_n(&v->runstate_guest_vaddr, op.addr.v, __ATOMIC_SEQ_CST);
    return 0;
}

static int64_t get_runstate(struct vcpu *v, uint64_t arg)
{
    struct vcpu_runstate_info now;
    vcpu_runstate_get(v, &now);
    return copy_to_guest(arg, &now, sizeof(now)) ? -XEN_EFAULT : 0;
}

/* ---- the hypercall ---------------------------------------------------------------------------------------------- */

int64_t do_vcpu_op(struct vcpu *curr, uint64_t cmd, uint64_t vcpuid, uint64_t arg)
{
    struct vcpu *v = domain_vcpu(curr->domain, (uint32_t)vcpuid);
    if (!v)
        return -XEN_ENOENT;
    switch ((uint32_t)cmd) {
    case VCPUOP_initialise:
        return initialise(curr, v, arg);
    case VCPUOP_up:
        return up(v);
    case VCPUOP_down:
        return down(curr, v);
    case VCPUOP_is_up:
        return atomic_load(&v->online);
    case VCPUOP_get_runstate_info:
        return get_runstate(v, arg);
    case VCPUOP_register_runstate_memory_area:
        return register_runstate(v, arg);
    case VCPUOP_set_periodic_timer:
        return set_periodic(v, arg);
    case VCPUOP_stop_periodic_timer:
        return stop_periodic(v);
    case VCPUOP_set_singleshot_timer:
        return set_singleshot(curr, v, arg);
    case VCPUOP_stop_singleshot_timer:
        return stop_singleshot(curr, v);
    case VCPUOP_register_vcpu_info:
        return register_vcpu_info(curr, v, arg);
    case VCPUOP_get_physid: /* only of a Dom0 with pinned vCPUs */
        return -XEN_EINVAL;
    default: /* register_vcpu_time_memory_area, send_nmi: not built */
        return -XEN_ENOSYS;
    }
}
