/*
 * Adoption: how a toolstack gets a process domain. It creates an ordinary PV domain, gives it its limits, and has it
 * adopted: the empty domain makes room for a process domain of the same id, with a bank of its own. Nothing is converted, so
 * no thread ever meets a domain that changes its kind; what others have bound to the empty one is gone with it.
 *
 * The start of day, in the order of the bank: shared_info; the whole grant table, one entry per frame of the bank; the pages
 * of xenstore and console, granted to Dom0 by the reserved references; free RAM. Two ports wait for Dom0 to bind them.
 *
 * domctl_lock is held throughout, so ids and limits stand still.
 */
#include <fcntl.h>
#include <time.h>

#include "../public/grant_table.h"
#include "bank.h"
#include "grant_table.h"
#include "hypercall.h"

#define MIN_BANK_FRAMES 16u
#define MAX_BANK_FRAMES (1u << 18) /* 1 GiB */
#define MIN_GRANT_FRAMES 2u
#define MAX_GRANT_FRAMES 64u
#define GRANTS_PER_FRAME (PAGE_SIZE / sizeof(struct grant_entry_v1))
#define WAIT_TRIES 1000
#define WAIT_NS 20000

static uint32_t grant_frames_for(uint64_t nr_frames)
{
    uint64_t n = DIV_ROUND_UP(nr_frames, GRANTS_PER_FRAME);
    return n < MIN_GRANT_FRAMES ? MIN_GRANT_FRAMES : n > MAX_GRANT_FRAMES ? MAX_GRANT_FRAMES : (uint32_t)n;
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

static bool has_run(const struct domain *d)
{
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->initialised)
            return true;
    return false;
}

static int check(struct domain *d, uint64_t bank_bytes)
{
    uint64_t nr_frames = bank_bytes >> PAGE_SHIFT;
    if (bank_bytes % PAGE_SIZE || nr_frames < MIN_BANK_FRAMES || nr_frames > MAX_BANK_FRAMES)
        return -XEN_EINVAL;
    if (d->kind != DOMAIN_PV || atomic_load(&d->dying) || atomic_load(&d->is_shutting_down) || !d->controller_pauses ||
        has_run(d))
        return -XEN_EINVAL;
    lock(&d->hv->heap_lock);
    bool empty = !d->tot_pages, fits = nr_frames - 1 - grant_frames_for(nr_frames) <= d->max_pages;
    unlock(&d->hv->heap_lock);
    return !empty ? -XEN_EBUSY : !fits ? -XEN_ENOMEM : 0;
}

/* ---- the start of day ------------------------------------------------------------------------------------------- */

static void take_over_settings(struct domain *d, const struct domain *old)
{
    memcpy(d->handle, old->handle, sizeof(d->handle));
    d->max_pages = old->max_pages;
    d->max_evtchn_port = old->max_evtchn_port;
    d->time_offset_seconds = old->time_offset_seconds;
}

static int make_ports(struct domain *d, struct hv_process *start)
{
    int store = evtchn_make_unbound(d, 0), console = store > 0 ? evtchn_make_unbound(d, 0) : store;
    if (console < 0)
        return console;
    start->store_port = (uint32_t)store;
    start->console_port = (uint32_t)console;
    return 0;
}

static int make_grant_table(struct domain *d, struct hv_process *start)
{
    mfn_t first, last;
    uint32_t nr = grant_frames_for(d->bank->nr_frames);
    int rc;
    if ((rc = grant_table_init(d, nr, 0)) || (rc = grant_table_frame(d, nr - 1, &last)) ||
        (rc = grant_table_frame(d, 0, &first)))
        return rc;
    start->grant_mfn = mfn_x(first);
    start->nr_grant_frames = nr;
    ASSERT(mfn_x(last) == mfn_x(first) + nr - 1);
    return 0;
}

static void seed_grant(struct domain *d, uint32_t ref, uint64_t mfn)
{
    struct grant_entry_v1 *table = mfn_to_virt(d->hv, _mfn(d->bank->start.grant_mfn));
    table[ref] = (struct grant_entry_v1){.flags = GTF_permit_access, .domid = 0, .frame = (uint32_t)mfn};
}

static int build_process(struct domain *old, uint64_t bank_bytes, struct domain **out)
{
    struct hv *hv = old->hv;
    struct bank *bank;
    struct domain *d;
    int rc = bank_create(hv, bank_bytes >> PAGE_SHIFT, &bank);
    if (rc || (rc = domain_create(hv, old->id, DOMAIN_PROCESS, 1, bank, &d)))
        return rc;
    struct hv_process *start = &bank->start;
    *start = (struct hv_process){.base_mfn = bank->base, .nr_frames = bank->nr_frames, .serial = bank->serial};
    start->shared_info_mfn = mfn_x(page_to_mfn(hv, d->shared_info_page));
    take_over_settings(d, old);
    if ((rc = make_grant_table(d, start)) || (rc = process_vcpu_create(d)) || (rc = make_ports(d, start))) {
        put_domain(d);
        return rc;
    }
    start->store_mfn = bank->base + bank->nr_taken;
    start->console_mfn = start->store_mfn + 1;
    start->first_free_mfn = start->store_mfn + 2;
    seed_grant(d, GNTTAB_RESERVED_XENSTORE, start->store_mfn);
    seed_grant(d, GNTTAB_RESERVED_CONSOLE, start->console_mfn);
    *out = d;
    return 0;
}

/* ---- taking the place ------------------------------------------------------------------------------------------- */

static bool id_is_free(struct hv *hv, uint16_t id)
{
    lock(&hv->domlist_lock);
    bool is_free = !hv->domain[id];
    unlock(&hv->domlist_lock);
    return is_free;
}

/* The old domain goes with its last reference: ours, unless somebody has just looked it up. */
static bool remove_old(struct domain *old)
{
    struct hv *hv = old->hv;
    uint16_t id = old->id;
    old->is_replaced = true;
    while (domain_kill(old) == -XEN_ERESTART)
        ;
    put_domain(old);
    for (int i = 0; i < WAIT_TRIES && !id_is_free(hv, id); i++)
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
    return id_is_free(hv, id);
}

/* Takes over the reference of `old`. */
static int replace(struct domain *old, uint64_t bank_bytes, struct hv_process *out)
{
    struct domain *d;
    int rc = build_process(old, bank_bytes, &d);
    if (rc) {
        put_domain(old);
        return rc;
    }
    rc = remove_old(old) ? domain_enter_list(d) : -XEN_EBUSY;
    if (rc) {
        put_domain(d);
        return rc;
    }
    BUG_ON(bank_to_domheap(d)); /* checked, and limits stand still */
    time_publish_wallclock(d);
    *out = d->bank->start;
    return 0;
}

int hv_adopt(hv_t *hv, uint16_t domid, uint64_t bank_bytes, struct hv_process *out)
{
    lock(&hv->domctl_lock);
    struct domain *d = domid < DOMID_FIRST_RESERVED ? get_domain(hv, NULL, domid) : NULL;
    int rc = d ? check(d, bank_bytes) : -XEN_ESRCH;
    if (!rc)
        rc = replace(d, bank_bytes, out);
    else if (d)
        put_domain(d);
    unlock(&hv->domctl_lock);
    return rc;
}

int hv_process_bank(hv_t *hv, uint16_t domid, struct hv_process *out, int *fd)
{
    struct domain *d = domid < DOMID_FIRST_RESERVED ? get_domain(hv, NULL, domid) : NULL;
    if (!d)
        return -XEN_ESRCH;
    int rc = d->bank ? 0 : -XEN_ENOENT;
    if (!rc) {
        *out = d->bank->start;
        *fd = fcntl(d->bank->fd, F_DUPFD_CLOEXEC, 0);
        rc = *fd < 0 ? -XEN_EMFILE : 0;
    }
    put_domain(d);
    return rc;
}
