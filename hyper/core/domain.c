/*
 * Domains and vCPUs: their making, pausing, shutting down and end.
 *
 * References: the domain list holds one until domain_kill has finished, a domain with frames holds one, and so does whoever
 * looked the domain up. hv->domlist_lock, a leaf, guards list and count, so that a lookup never finds what is being freed.
 * A killed domain stays in the list, dying, until nobody maps its frames any more: as in Xen.
 *
 * Shutting down: domain_shutdown and domain_crash only set flags, since they are called with any lock held; the doorbell
 * thread sees that all vCPUs have stopped, and only then is the domain "shut down" and Dom0 told.
 *
 * The domain lock: a vCPU thread that waits for a lock is not in_guest, so whoever holds it and quiesces gets through.
 */
#include "domain.h"

#include <sched.h>
#include <stdarg.h>
#include <time.h>

#include "../public/sched.h"
#include "bank.h"
#include "grant_table.h"
#include "hypercall.h"

#define NO_SHUTDOWN_CODE (~0u)

/* ---- the list --------------------------------------------------------------------------------------------------- */

/* A domain without references is being freed, although it keeps its id until that is done. domlist_lock held. */
static struct domain *referenced(struct domain *d)
{
    if (!d || !atomic_load(&d->refs))
        return NULL;
    atomic_fetch_add(&d->refs, 1);
    return d;
}

struct domain *get_domain(struct hv *hv, struct domain *caller, uint16_t domid)
{
    struct domain *d = domid == DOMID_SELF ? caller : NULL;
    lock(&hv->domlist_lock);
    if (domid < DOMID_FIRST_RESERVED)
        d = hv->domain[domid];
    d = referenced(d);
    unlock(&hv->domlist_lock);
    return d;
}

struct domain *next_domain(struct hv *hv, uint32_t first)
{
    struct domain *d = NULL;
    lock(&hv->domlist_lock);
    for (uint32_t id = first; id < DOMID_FIRST_RESERVED && !d; id++)
        d = referenced(hv->domain[id]);
    unlock(&hv->domlist_lock);
    return d;
}

static void domain_free(struct domain *d);

void put_domain(struct domain *d)
{
    struct hv *hv = d->hv;
    lock(&hv->domlist_lock);
    bool last = atomic_fetch_sub(&d->refs, 1) == 1;
    unlock(&hv->domlist_lock);
    if (last)
        domain_free(d); /* it leaves the list there: until then its frames need it */
}

/* An id from 1 upward, wrapping, that no domain has. domctl_lock held. */
static int find_free_domid(struct hv *hv)
{
    for (uint32_t n = 1; n < DOMID_FIRST_RESERVED; n++) {
        uint16_t id = hv->next_domid;
        hv->next_domid = id + 1 < DOMID_FIRST_RESERVED ? id + 1 : 1;
        if (!hv->domain[id])
            return id;
    }
    return -XEN_ENOSPC;
}

int domain_enter_list(struct domain *d)
{
    struct hv *hv = d->hv;
    lock(&hv->domlist_lock);
    int rc = hv->domain[d->id] ? -XEN_EEXIST : 0;
    if (!rc)
        hv->domain[d->id] = d;
    unlock(&hv->domlist_lock);
    return rc;
}

static void leave_list(struct domain *d)
{
    lock(&d->hv->domlist_lock);
    if (d->hv->domain[d->id] == d)
        d->hv->domain[d->id] = NULL;
    unlock(&d->hv->domlist_lock);
}

/* ---- making ----------------------------------------------------------------------------------------------------- */

static int make_shared_info(struct domain *d)
{
    d->shared_info_page = alloc_xenheap_page(d);
    if (!d->shared_info_page)
        return -XEN_ENOMEM;
    d->shared_info = mfn_to_virt(d->hv, page_to_mfn(d->hv, d->shared_info_page));
    memset(d->shared_info->evtchn_mask, 0xff, sizeof(d->shared_info->evtchn_mask));
    for (unsigned i = 0; i < LEGACY_VCPUS; i++)
        d->shared_info->vcpu_info[i].evtchn_upcall_mask = 1;
    return 0;
}

static void watchdog_fired(void *data) { domain_shutdown(data, SHUTDOWN_watchdog); }

static void init_fields(struct domain *d)
{
    lock_init(&d->lock);
    d->refs = 1;
    d->shutdown_code = NO_SHUTDOWN_CODE;
    d->pause_count = d->controller_pauses = 1;
    d->created_ns = hv_now(d->hv);
    for (unsigned i = 0; i < ARRAY_SIZE(d->watchdog); i++)
        timer_init(&d->watchdog[i].timer, d->hv, watchdog_fired, d);
}

static int build(struct domain *d)
{
    const struct scheduler *policy = d->hv->scheduler;
    int rc;
    if ((rc = physmap_init(d)) || (rc = m2p_init(d)) || (rc = evtchn_init(d)) || (rc = make_shared_info(d)))
        return rc;
    if (d->kind == DOMAIN_PROCESS)
        return 0;
    if (policy->domain_init && (rc = policy->domain_init(d)))
        return rc;
    return engine()->domain_create(d);
}

int domain_create(struct hv *hv, uint16_t domid, enum domain_kind kind, uint32_t max_vcpus, struct bank *bank,
                  struct domain **out)
{
    if (!max_vcpus || max_vcpus > MAX_VCPUS)
        return -XEN_EINVAL;
    int id = domid < DOMID_FIRST_RESERVED && (domid || !hv->dom0) ? domid : find_free_domid(hv);
    if (id < 0)
        return id;
    struct domain *d = calloc(1, sizeof(*d));
    if (!d) {
        bank_destroy(bank);
        return -XEN_ENOMEM;
    }
    d->hv = hv;
    d->bank = bank;
    d->id = (uint16_t)id;
    d->kind = kind;
    d->max_vcpus = max_vcpus;
    d->policy = hv->policy;
    init_fields(d);
    int rc = build(d);
    if (rc) {
        put_domain(d);
        return rc;
    }
    *out = d;
    return 0;
}

/* ---- vCPUs ------------------------------------------------------------------------------------------------------ */

static void singleshot_fired(void *data) { send_vcpu_virq(data, VIRQ_TIMER); }

static void periodic_fired(void *data)
{
    struct vcpu *v = data;
    uint64_t period = __atomic_load_n(&v->periodic_period_ns, __ATOMIC_RELAXED), now = hv_now(v->domain->hv);
    send_vcpu_virq(v, VIRQ_TIMER);
    if (period)
        timer_set(&v->periodic, now + period);
}

static void poll_timed_out(void *data)
{
    struct vcpu *v = data;
    if (atomic_load(&v->poll_port))
        vcpu_unblock(v);
}

static void init_vcpu(struct domain *d, struct vcpu *v, uint32_t id)
{
    v->domain = d;
    v->id = id;
    v->vcpu_info = id < LEGACY_VCPUS ? &d->shared_info->vcpu_info[id] : &v->own_info;
    v->vcpu_info->evtchn_upcall_mask = 1;
    v->runstate.state = RUNSTATE_offline;
    v->runstate.state_entry_time = hv_now(d->hv);
    timer_init(&v->singleshot, d->hv, singleshot_fired, v);
    timer_init(&v->periodic, d->hv, periodic_fired, v);
    timer_init(&v->poll_timer, d->hv, poll_timed_out, v);
    list_init(&v->sched.run_queue);
}

static int build_vcpu(struct vcpu *v)
{
    int rc = engine()->vcpu_create(v);
    if (rc)
        return rc;
    if ((rc = pv_vcpu_init(v))) {
        engine()->vcpu_destroy(v);
        return rc;
    }
    if ((rc = sched_vcpu_init(v))) {
        pv_vcpu_destroy(v);
        engine()->vcpu_destroy(v);
    }
    return rc;
}

int vcpu_create(struct domain *d, uint32_t id)
{
    if (id >= d->max_vcpus)
        return -XEN_EINVAL;
    if (d->vcpu[id])
        return -XEN_EEXIST;
    void *memory;
    if (posix_memalign(&memory, 64, sizeof(struct vcpu)))
        return -XEN_ENOMEM;
    struct vcpu *v = memset(memory, 0, sizeof(*v));
    init_vcpu(d, v, id);
    int rc = d->kind == DOMAIN_PV ? build_vcpu(v) : 0;
    if (rc) {
        free(v);
        return rc;
    }
    time_publish(v);
    __atomic_store_n(&d->vcpu[id], v, __ATOMIC_SEQ_CST);
    return 0;
}

int process_vcpu_create(struct domain *d)
{
    int rc = vcpu_create(d, 0);
    if (rc)
        return rc;
    d->vcpu[0]->initialised = true;
    d->vcpu[0]->online = true;
    return 0;
}

/* ---- the domain lock -------------------------------------------------------------------------------------------- */

void domain_lock(struct domain *d, struct vcpu *curr)
{
    if (curr)
        atomic_store(&curr->in_guest, false);
    lock(&d->lock);
}

void domain_unlock(struct domain *d, struct vcpu *curr)
{
    if (curr)
        atomic_store(&curr->in_guest, true);
    unlock(&d->lock);
}

void domain_lock_foreign(struct domain *d, struct vcpu *curr) { domain_lock(d, curr); }

void domain_unlock_foreign(struct domain *d, struct vcpu *curr)
{
    unlock(&d->lock);
    if (curr) {
        lock(&curr->domain->lock); /* back into the guest only when nobody relies on its being out */
        domain_unlock(curr->domain, curr);
    }
}

void domain_lock_any(struct domain *d, struct vcpu *curr)
{
    if (curr && curr->domain == d)
        domain_lock(d, curr);
    else
        domain_lock_foreign(d, curr);
}

void domain_unlock_any(struct domain *d, struct vcpu *curr)
{
    if (curr && curr->domain == d)
        domain_unlock(d, curr);
    else
        domain_unlock_foreign(d, curr);
}

static void wait_until_out(struct vcpu *v)
{
    for (int i = 0; atomic_load(&v->in_guest); i++) {
        if (i < 1000)
            __builtin_ia32_pause();
        else if (i < 1020)
            sched_yield();
        else
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

void domain_quiesce(struct domain *d, struct vcpu *curr)
{
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i] != curr && atomic_load(&d->vcpu[i]->in_guest))
            vcpu_kick(d->vcpu[i]);
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i] != curr)
            wait_until_out(d->vcpu[i]);
}

/* ---- pausing ---------------------------------------------------------------------------------------------------- */

/* Process domains have no vCPU that a pCPU runs. */
static bool has_scheduled_vcpus(const struct domain *d) { return d->kind == DOMAIN_PV; }

static void for_each_vcpu(struct domain *d, void (*what)(struct vcpu *))
{
    for (uint32_t i = 0; has_scheduled_vcpus(d) && i < d->max_vcpus; i++)
        if (d->vcpu[i])
            what(d->vcpu[i]);
}

static void sleep_sync(struct vcpu *v) { vcpu_sleep(v, true); }
static void sleep_soon(struct vcpu *v) { vcpu_sleep(v, false); }

void vcpu_pause(struct vcpu *v)
{
    atomic_fetch_add(&v->pause_count, 1);
    if (has_scheduled_vcpus(v->domain))
        vcpu_sleep(v, true);
}

void vcpu_unpause(struct vcpu *v)
{
    if (atomic_fetch_sub(&v->pause_count, 1) == 1 && has_scheduled_vcpus(v->domain))
        vcpu_wake(v);
}

void domain_pause(struct domain *d)
{
    atomic_fetch_add(&d->pause_count, 1);
    for_each_vcpu(d, sleep_soon); /* all at once, then wait for each */
    for_each_vcpu(d, sleep_sync);
}

void domain_unpause(struct domain *d)
{
    if (atomic_fetch_sub(&d->pause_count, 1) != 1)
        return;
    for_each_vcpu(d, vcpu_wake);
    if (d->kind == DOMAIN_PROCESS)
        evtchn_send_held(d);
}

/* ---- shutting down ---------------------------------------------------------------------------------------------- */

void domain_shutdown(struct domain *d, uint32_t reason)
{
    uint32_t none = NO_SHUTDOWN_CODE;
    atomic_compare_exchange_strong(&d->shutdown_code, &none, reason);
    if (atomic_exchange(&d->is_shutting_down, true))
        return;
    for_each_vcpu(d, vcpu_kick);
    hv_post_work(d->hv);
}

void domain_crash(struct domain *d, const char *why, ...)
{
    char text[200];
    va_list args;
    va_start(args, why);
    vsnprintf(text, sizeof(text), why, args);
    va_end(args);
    if (!atomic_load(&d->is_shutting_down))
        hv_printk(d->hv, "Domain %u crashed: %s", d->id, text);
    domain_shutdown(d, SHUTDOWN_crash);
}

static bool any_vcpu_runs(struct domain *d)
{
    bool runs = false;
    lock(&d->hv->sched_lock);
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        runs |= d->vcpu[i] && d->vcpu[i]->sched.running;
    unlock(&d->hv->sched_lock);
    return runs;
}

/* A vCPU that still runs posts the work again when it stops. */
static void finish_shutdown(struct domain *d)
{
    for_each_vcpu(d, sleep_soon);
    if (!any_vcpu_runs(d) && !atomic_exchange(&d->is_shut_down, true))
        send_global_virq(d->hv, VIRQ_DOM_EXC);
}

void domain_shutdown_work(struct hv *hv)
{
    struct domain *d;
    for (uint32_t id = 0; (d = next_domain(hv, id));) {
        id = d->id + 1u;
        if (atomic_load(&d->is_shutting_down) && !atomic_load(&d->is_shut_down) && !atomic_load(&d->dying))
            finish_shutdown(d);
        put_domain(d);
    }
}

void domain_resume(struct domain *d)
{
    domain_pause(d);
    atomic_store(&d->shutdown_code, NO_SHUTDOWN_CODE);
    atomic_store(&d->is_shut_down, false);
    atomic_store(&d->is_shutting_down, false);
    domain_unpause(d);
}

/* ---- the end ---------------------------------------------------------------------------------------------------- */

enum kill_stage { KILL_begin, KILL_stop, KILL_events, KILL_memory, KILL_done };

/* All vCPUs are off their pCPUs by now: none of them can set another's timers again. */
static void retire_vcpu(struct vcpu *v)
{
    timer_stop(&v->singleshot);
    timer_stop(&v->periodic);
    timer_stop(&v->poll_timer);
    sched_vcpu_destroy(v);
}

struct page_info *claim_guest_frame(struct vcpu *curr, uint64_t gfn)
{
    struct domain *d = curr->domain;
    struct page_info *pg = get_page_from_gfn(d, _gfn(gfn));
    if (!pg)
        return NULL;
    if (get_page_type(d, pg, PGT_writable_page)) {
        put_page(d->hv, pg);
        return NULL;
    }
    pg->foreign_writers++;
    engine()->frame_written(d, curr, pg);
    return pg;
}

void release_guest_frame(struct domain *d, struct page_info *pg)
{
    pg->foreign_writers--;
    put_page_and_type(d, pg);
}

static void drop_vcpu_info(struct vcpu *v)
{
    struct domain *d = v->domain;
    if (!v->vcpu_info_page)
        return;
    lock(&d->hv->event_lock);
    time_lock(d->hv);
    v->vcpu_info = &v->own_info;
    time_unlock(d->hv);
    unlock(&d->hv->event_lock);
    domain_lock(d, NULL);
    release_guest_frame(d, v->vcpu_info_page);
    v->vcpu_info_page = NULL;
    domain_unlock(d, NULL);
}

static int finish_kill(struct domain *d)
{
    atomic_store(&d->dying, DOMDYING_dead);
    if (!d->is_replaced)
        send_global_virq(d->hv, VIRQ_DOM_EXC);
    put_domain(d); /* the list's */
    return 0;
}

/* domctl_lock held, or the machine is going down. The caller has a reference unless it is the latter. */
int domain_kill(struct domain *d)
{
    switch (d->kill_stage) {
    case KILL_begin:
        atomic_store(&d->dying, DOMDYING_dying);
        atomic_fetch_add(&d->pause_count, 1);
        for_each_vcpu(d, sleep_soon);
        conns_hang_up(d);
        d->kill_stage = KILL_stop;
        return -XEN_ERESTART;
    case KILL_stop:
        for_each_vcpu(d, sleep_sync);
        for_each_vcpu(d, retire_vcpu);
        for (unsigned i = 0; i < ARRAY_SIZE(d->watchdog); i++)
            timer_stop(&d->watchdog[i].timer);
        d->kill_stage = KILL_events;
        return -XEN_ERESTART;
    case KILL_events:
        evtchn_close_all(d);
        for_each_vcpu(d, drop_vcpu_info);
        evtchn_fifo_give_back(d);
        d->kill_stage = KILL_memory;
        return -XEN_ERESTART;
    case KILL_memory:
        if (domain_relinquish_memory(d))
            return -XEN_ERESTART;
        d->kill_stage = KILL_done;
        return finish_kill(d);
    default: /* a zombie: its frames are mapped by others */
        return 0;
    }
}

static void free_vcpu(struct domain *d, struct vcpu *v)
{
    if (d->kind == DOMAIN_PV) {
        pv_vcpu_destroy(v);
        engine()->vcpu_destroy(v);
    }
    free(v);
}

/* What a domain has of the hypervisor's own memory; it may be half built. */
static void free_shared_frames(struct domain *d)
{
    domain_lock(d, NULL);
    grant_table_destroy(d);
    if (d->shared_info_page)
        free_xenheap_page(d, d->shared_info_page);
    domain_unlock(d, NULL);
}

static void domain_free(struct domain *d)
{
    const struct scheduler *policy = d->hv->scheduler;
    free_shared_frames(d);
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i])
            free_vcpu(d, d->vcpu[i]);
    if (d->engine)
        engine()->domain_destroy(d);
    if (d->sched_priv && policy->domain_destroy)
        policy->domain_destroy(d);
    evtchn_destroy(d);
    m2p_destroy(d);
    physmap_destroy(d);
    bank_destroy(d->bank);
    free(d->memory_map);
    if (d->hv->dom0 == d)
        d->hv->dom0 = NULL;
    leave_list(d);
    pthread_mutex_destroy(&d->lock);
    free(d);
}
