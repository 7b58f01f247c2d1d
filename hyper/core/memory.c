/*
 * memory_op: how many frames a domain has, which, and what the machine's and the domain's memory maps look like.
 *
 * The extent calls answer how many extents were done. A long one stops when the pCPU is wanted and goes on at the extent
 * that is carried above the command's MEMOP_EXTENT_SHIFT bits.
 *
 * Frames that leave a domain go through put_pages in batches, so that each batch costs one TLB flush.
 */
#include "grant_table.h"
#include "hypercall.h"
#include "machine.h"
#include "public/memory.h"

#define MEMOP_EXTENT_SHIFT 6
#define MEMOP_CMD_MASK ((1u << MEMOP_EXTENT_SHIFT) - 1)
#define MAX_EXTENTS (UINT32_MAX >> MEMOP_EXTENT_SHIFT)
#define MAX_ORDER_DOMU 9  /* 2 MiB */
#define MAX_ORDER_DOM0 12 /* 16 MiB */
#define MAX_MEMORY_MAP 128
#define E820_RAM 1
#define RESOURCE_BATCH 32
#define LEAVING_BATCH 256

struct call {
    struct vcpu *curr;
    struct domain *caller;
    uint64_t arg;
    uint32_t op, start; /* the command, and the extent it goes on at */
};

/* ---- the domain a call is about --------------------------------------------------------------------------------- */

/* 0 and a referenced domain; a caller acts on itself or is privileged. */
static int get_target(const struct call *c, uint16_t domid, struct domain **out)
{
    struct domain *d = get_domain(c->caller->hv, c->caller, domid);

    if (!d)
        return -XEN_ESRCH;
    if (d != c->caller && !c->caller->is_privileged) {
        put_domain(d);
        return -XEN_EPERM;
    }
    *out = d;
    return 0;
}

static void target_lock(const struct call *c, struct domain *d)
{
    if (c->curr && c->curr->domain != d)
        domain_lock_foreign(d, c->curr);
    else
        domain_lock(d, c->curr);
}

static void target_unlock(const struct call *c, struct domain *d)
{
    if (c->curr && c->curr->domain != d)
        domain_unlock_foreign(d, c->curr);
    else
        domain_unlock(d, c->curr);
}

static int64_t continue_at(const struct call *c, uint64_t extent)
{
    return hypercall_continue(__HYPERVISOR_memory_op, 2, c->op | extent << MEMOP_EXTENT_SHIFT, c->arg);
}

/* ---- more and less memory --------------------------------------------------------------------------------------- */

struct extents {
    const struct call *call;
    struct domain *d;
    struct xen_memory_reservation r;
    struct page_info *leaving[LEAVING_BATCH];
    unsigned nr_leaving;
};

static uint64_t extent_handle(const struct extents *e, uint64_t i)
{
    return e->r.extent_start + i * sizeof(xen_pfn_t);
}

static bool order_is_allowed(const struct call *c, uint32_t order)
{
    return order <= (c->caller->is_privileged ? MAX_ORDER_DOM0 : MAX_ORDER_DOMU);
}

/* New frames get their gfns. */
static void physmap_add(struct domain *d, struct page_info *pg, unsigned order)
{
    for (uint64_t i = 0; i < 1ull << order; i++)
        physmap_set(d, page_to_gfn(d, &pg[i]), page_to_mfn(d->hv, &pg[i]), p2m_ram);
}

static struct page_info *extent_alloc(struct extents *e)
{
    struct page_info *pg;

    if (atomic_load(&e->d->dying))
        return NULL;
    pg = alloc_domheap_pages(e->d, e->r.extent_order);
    if (pg)
        physmap_add(e->d, pg, e->r.extent_order);
    return pg;
}

static bool extent_answer(const struct extents *e, uint64_t i, const struct page_info *pg)
{
    xen_pfn_t gfn = gfn_x(page_to_gfn(e->d, pg));

    return !copy_to_guest(extent_handle(e, i), &gfn, sizeof(gfn));
}

static bool increase_reservation(struct extents *e, uint64_t i)
{
    struct page_info *pg = extent_alloc(e);

    return pg && (!e->r.extent_start || extent_answer(e, i, pg));
}

static bool populate_physmap(struct extents *e, uint64_t i)
{
    struct page_info *pg;
    xen_pfn_t pfn;

    if (copy_from_guest(&pfn, extent_handle(e, i), sizeof(pfn)))
        return false;
    pg = extent_alloc(e);
    if (!pg)
        return false;
    for (uint64_t j = 0; j < 1ull << e->r.extent_order; j++)
        if (m2p_set(e->d, page_to_gfn(e->d, &pg[j]), pfn + j))
            return false;
    return extent_answer(e, i, pg);
}

static void leaving_flush(struct extents *e)
{
    put_pages(e->d, e->leaving, e->nr_leaving);
    e->nr_leaving = 0;
}

/* The domain lets a frame go. Whoever has it mapped keeps it so until then. */
static bool remove_page(struct extents *e, gfn_t gfn)
{
    struct page_info *pg = get_page_from_gfn(e->d, gfn);

    if (!pg)
        return false;
    if (pg->flags & PGC_xen_heap) {
        put_page(e->d->hv, pg);
        return false;
    }
    if (pg->flags & PGC_allocated) {
        __atomic_and_fetch(&pg->flags, ~(uint32_t)PGC_allocated, __ATOMIC_RELAXED);
        put_page(e->d->hv, pg); /* ours remains */
    }
    e->leaving[e->nr_leaving++] = pg;
    if (e->nr_leaving == LEAVING_BATCH)
        leaving_flush(e);
    return true;
}

static bool decrease_reservation(struct extents *e, uint64_t i)
{
    xen_pfn_t gfn;

    if (copy_from_guest(&gfn, extent_handle(e, i), sizeof(gfn)))
        return false;
    for (uint64_t j = 0; j < 1ull << e->r.extent_order; j++)
        if (!remove_page(e, _gfn(gfn + j)))
            return false;
    return true;
}

static bool extent_do(struct extents *e, uint64_t i)
{
    switch (e->call->op) {
    case XENMEM_increase_reservation:
        return increase_reservation(e, i);
    case XENMEM_decrease_reservation:
        return decrease_reservation(e, i);
    default:
        return populate_physmap(e, i);
    }
}

/* An address limit that our frames, all below the bank's size, might not meet can't be honoured. */
static bool reservation_is_sane(const struct call *c, const struct xen_memory_reservation *r)
{
    uint32_t bits = XENMEMF_get_address_bits(r->mem_flags);

    if (r->nr_extents > MAX_EXTENTS || c->start >= r->nr_extents || !order_is_allowed(c, r->extent_order))
        return false;
    if ((r->mem_flags & XENMEMF_exact_node_request) && !c->caller->is_privileged)
        return false;
    if ((r->mem_flags & XENMEMF_populate_on_demand) && c->op == XENMEM_populate_physmap)
        return false;
    return !bits || bits >= 64 || 1ull << bits >= c->caller->hv->nr_frames << PAGE_SHIFT;
}

static int64_t memory_reservation(const struct call *c)
{
    struct extents e;
    bool stop = false;
    uint64_t i = c->start;

    if (copy_from_guest(&e.r, c->arg, sizeof(e.r)) || !reservation_is_sane(c, &e.r) || get_target(c, e.r.domid, &e.d))
        return c->start;
    if (e.d->kind != DOMAIN_PV) { /* a process's memory isn't ours */
        put_domain(e.d);
        return c->start;
    }
    e.call = c;
    e.nr_leaving = 0;
    target_lock(c, e.d);
    while (i < e.r.nr_extents) {
        stop = i > c->start && hypercall_preempt_check();
        if (stop || !extent_do(&e, i))
            break;
        i++;
    }
    leaving_flush(&e);
    target_unlock(c, e.d);
    put_domain(e.d);
    return stop ? continue_at(c, i) : (int64_t)i;
}

/* Is there room for `nr` frames of a domain in all? Nothing is set aside: one builder works at a time. */
static int64_t claim_pages(const struct call *c)
{
    struct hv *hv = c->caller->hv;
    struct xen_memory_reservation r;
    struct domain *d;
    int64_t rc = 0;

    if (copy_from_guest(&r, c->arg, sizeof(r)))
        return -XEN_EFAULT;
    if (r.extent_start || r.extent_order || r.mem_flags)
        return -XEN_EINVAL;
    d = r.domid < DOMID_FIRST_RESERVED ? get_domain(hv, c->caller, r.domid) : NULL;
    if (!d)
        return -XEN_EINVAL;
    lock(&hv->heap_lock);
    if (!c->caller->is_privileged)
        rc = -XEN_EPERM;
    else if (r.nr_extents && (r.nr_extents <= d->tot_pages || r.nr_extents > d->max_pages))
        rc = -XEN_EINVAL;
    else if (r.nr_extents && r.nr_extents - d->tot_pages > hv->free_frames)
        rc = -XEN_ENOMEM;
    unlock(&hv->heap_lock);
    put_domain(d);
    return rc;
}

/* ---- questions -------------------------------------------------------------------------------------------------- */

static int64_t maximum_gpfn(const struct domain *d)
{
    uint64_t max_pfn = d->shared_info ? __atomic_load_n(&d->shared_info->arch.max_pfn, __ATOMIC_RELAXED) : 0;

    /* The guest wrote it: it must not read as an error. */
    return max_pfn && max_pfn <= INT64_MAX ? (int64_t)(max_pfn - 1) : 0;
}

static int64_t memory_domain(const struct call *c)
{
    struct xen_memory_domain which;
    struct domain *d;
    int64_t ret;

    if (copy_from_guest(&which, c->arg, sizeof(which)))
        return -XEN_EFAULT;
    ret = get_target(c, which.domid, &d);
    if (ret)
        return ret;
    if (c->op == XENMEM_maximum_gpfn) {
        ret = maximum_gpfn(d);
    } else {
        lock(&d->hv->heap_lock);
        ret = (int64_t)(c->op == XENMEM_current_reservation ? d->tot_pages : d->max_pages);
        unlock(&d->hv->heap_lock);
    }
    put_domain(d);
    return ret;
}

static int64_t machphys_mapping(const struct call *c)
{
    struct xen_machphys_mapping m = {.v_start = M2P_VIRT_START, .v_end = m2p_end(c->caller)};

    if (!c->caller->m2p)
        return -XEN_EOPNOTSUPP;
    m.max_mfn = (m.v_end - m.v_start) / sizeof(xen_pfn_t) - 1;
    return copy_to_guest(c->arg, &m, sizeof(m)) ? -XEN_EFAULT : 0;
}

/* ---- memory maps ------------------------------------------------------------------------------------------------ */

static int64_t memory_map(const struct call *c)
{
    struct domain *d = c->caller;
    struct xen_memory_map map;
    int64_t rc = 0;

    if (copy_from_guest(&map, c->arg, sizeof(map)))
        return -XEN_EFAULT;
    domain_lock(d, c->curr);
    if (!d->memory_map || !d->nr_memory_map) {
        rc = -XEN_ENOSYS;
    } else {
        if (map.nr_entries > d->nr_memory_map)
            map.nr_entries = d->nr_memory_map;
        if (copy_to_guest(map.buffer, d->memory_map, map.nr_entries * sizeof(struct e820entry)) ||
            copy_to_guest(c->arg, &map, sizeof(map)))
            rc = -XEN_EFAULT;
    }
    domain_unlock(d, c->curr);
    return rc;
}

static int64_t set_memory_map(const struct call *c)
{
    struct xen_foreign_memory_map map;
    struct e820entry *entries;
    struct domain *d;
    int64_t rc;
    void *old;

    if (copy_from_guest(&map, c->arg, sizeof(map)))
        return -XEN_EFAULT;
    if (map.map.nr_entries > MAX_MEMORY_MAP)
        return -XEN_EINVAL;
    rc = get_target(c, map.domid, &d);
    if (rc)
        return rc;
    entries = calloc(map.map.nr_entries + 1, sizeof(*entries));
    if (!entries)
        rc = -XEN_ENOMEM;
    else if (copy_from_guest(entries, map.map.buffer, map.map.nr_entries * sizeof(*entries)))
        rc = -XEN_EFAULT;
    if (rc) {
        free(entries);
        put_domain(d);
        return rc;
    }
    target_lock(c, d);
    old = d->memory_map;
    d->memory_map = (void *)entries;
    d->nr_memory_map = map.map.nr_entries;
    target_unlock(c, d);
    free(old);
    put_domain(d);
    return 0;
}

/* The machine is one bank of RAM above the first MiB. */
static int64_t machine_memory_map(const struct call *c)
{
    uint64_t bytes = c->caller->hv->nr_frames << PAGE_SHIFT;
    struct e820entry entry = {.addr = 1u << 20, .size = bytes - (1u << 20), .type = E820_RAM};
    struct xen_memory_map map;

    if (!c->caller->is_privileged)
        return -XEN_EPERM;
    if (copy_from_guest(&map, c->arg, sizeof(map)))
        return -XEN_EFAULT;
    if (map.buffer && map.nr_entries < 2)
        return -XEN_EINVAL;
    if (map.buffer && copy_to_guest(map.buffer, &entry, sizeof(entry)))
        return -XEN_EFAULT;
    map.nr_entries = 1;
    return copy_to_guest(c->arg, &map, sizeof(map)) ? -XEN_EFAULT : 0;
}

/* ---- frames of the hypervisor that belong to a domain ----------------------------------------------------------- */

/* How many frames there are; 0: no such resource. */
static uint32_t resource_frames(const struct domain *d, const struct xen_mem_acquire_resource *r)
{
    if (r->type != XENMEM_resource_grant_table || r->id != XENMEM_resource_grant_table_id_shared)
        return 0;
    return grant_table_max_frames(d);
}

/* grant_table_frame takes the domain lock. */
static int64_t resource_list(struct domain *d, const struct xen_mem_acquire_resource *r)
{
    xen_pfn_t list[RESOURCE_BATCH];

    for (uint32_t i = 0; i < r->nr_frames;) {
        uint32_t n = 0;

        for (; n < RESOURCE_BATCH && i + n < r->nr_frames; n++) {
            mfn_t mfn;
            int rc = grant_table_frame(d, (uint32_t)r->frame + i + n, &mfn);

            if (rc)
                return rc;
            list[n] = mfn_x(mfn);
        }
        if (copy_to_guest(r->frame_list + (uint64_t)i * sizeof(list[0]), list, n * sizeof(list[0])))
            return -XEN_EFAULT;
        i += n;
    }
    return 0;
}

static int64_t resource_map(const struct call *c, struct domain *d, struct xen_mem_acquire_resource *r)
{
    uint32_t max = resource_frames(d, r);

    if (r->type != XENMEM_resource_grant_table && r->type != XENMEM_resource_ioreq_server &&
        r->type != XENMEM_resource_vmtrace_buf)
        return -XEN_EOPNOTSUPP;
    if (!max)
        return -XEN_EINVAL;
    if (!r->frame_list) {
        if (r->nr_frames)
            return -XEN_EINVAL;
        return copy_to_guest(c->arg + offsetof(struct xen_mem_acquire_resource, nr_frames), &max, sizeof(max))
                   ? -XEN_EFAULT
                   : 0;
    }
    if (!r->nr_frames || r->frame + r->nr_frames > max)
        return -XEN_EINVAL;
    return resource_list(d, r);
}

static int64_t acquire_resource(const struct call *c)
{
    struct xen_mem_acquire_resource r;
    struct domain *d;
    int64_t rc;

    if (copy_from_guest(&r, c->arg, sizeof(r)))
        return -XEN_EFAULT;
    if (r.pad || r.frame >> 32 || (r.frame + r.nr_frames) >> 32)
        return -XEN_EINVAL;
    if (r.domid == DOMID_SELF || r.domid == c->caller->id)
        return -XEN_EPERM;
    rc = get_target(c, r.domid, &d);
    if (rc)
        return rc;
    rc = resource_map(c, d, &r);
    put_domain(d);
    return rc;
}

/* ---- what PV guests may not, or this machine doesn't have -------------------------------------------------------- */

/* The same answer for every domain that the caller may ask about. */
static int64_t refuse(const struct call *c, domid_t domid, int why)
{
    struct domain *d;
    int64_t rc = get_target(c, domid, &d);

    if (rc)
        return rc;
    put_domain(d);
    return why;
}

/* A guest's physmap is only an HVM guest's to change. */
static int64_t change_physmap(const struct call *c)
{
    struct xen_add_to_physmap x; /* all three calls begin with the domain, this one with the space further on */

    if (copy_from_guest(&x, c->arg, c->op == XENMEM_add_to_physmap ? sizeof(x) : sizeof(x.domid)))
        return -XEN_EFAULT;
    if (c->op == XENMEM_add_to_physmap && x.space == XENMAPSPACE_gmfn_foreign)
        return -XEN_ENOSYS;
    return refuse(c, x.domid, -XEN_EACCES);
}

static int64_t pod_target(const struct call *c)
{
    struct xen_pod_target x;

    return copy_from_guest(&x, c->arg, sizeof(x)) ? -XEN_EFAULT : refuse(c, x.domid, -XEN_EINVAL);
}

static int64_t vnuma_info(const struct call *c)
{
    struct xen_vnuma_topology_info x;

    if (copy_from_guest(&x, c->arg, sizeof(x)))
        return -XEN_EFAULT;
    return x.pad ? -XEN_EINVAL : refuse(c, x.domid, -XEN_EOPNOTSUPP);
}

static int64_t reserved_device_memory_map(const struct call *c)
{
    struct xen_reserved_device_memory_map map;

    if (copy_from_guest(&map, c->arg, sizeof(map)))
        return -XEN_EFAULT;
    if (map.flags & ~(uint32_t)XENMEM_RDM_ALL)
        return -XEN_EINVAL;
    map.nr_entries = 0;
    return copy_to_guest(c->arg, &map, sizeof(map)) ? -XEN_EFAULT : 0;
}

static int64_t memory_op_once(const struct call *c)
{
    switch (c->op) {
    case XENMEM_maximum_ram_page:
        return (int64_t)c->caller->hv->nr_frames;
    case XENMEM_current_reservation:
    case XENMEM_maximum_reservation:
    case XENMEM_maximum_gpfn:
        return memory_domain(c);
    case XENMEM_machphys_mapping:
        return machphys_mapping(c);
    case XENMEM_memory_map:
        return memory_map(c);
    case XENMEM_set_memory_map:
        return set_memory_map(c);
    case XENMEM_machine_memory_map:
        return machine_memory_map(c);
    case XENMEM_claim_pages:
        return claim_pages(c);
    case XENMEM_acquire_resource:
        return acquire_resource(c);
    case XENMEM_add_to_physmap:
    case XENMEM_add_to_physmap_batch:
    case XENMEM_remove_from_physmap:
        return change_physmap(c);
    case XENMEM_set_pod_target:
    case XENMEM_get_pod_target:
        return pod_target(c);
    case XENMEM_get_vnumainfo:
        return vnuma_info(c);
    case XENMEM_reserved_device_memory_map:
        return reserved_device_memory_map(c);
    case XENMEM_get_sharing_freed_pages:
    case XENMEM_get_sharing_shared_pages:
        return 0;
    case XENMEM_exchange: /* physically contiguous memory, for devices */
    case XENMEM_machphys_mfn_list:
    case XENMEM_machphys_compat_mfn_list:
    case XENMEM_paging_op:
    case XENMEM_access_op:
    case XENMEM_sharing_op:
        return -XEN_EOPNOTSUPP;
    default:
        return -XEN_ENOSYS;
    }
}

int64_t do_memory_op(struct vcpu *curr, struct domain *caller, uint64_t cmd, uint64_t arg)
{
    struct call c = {.curr = curr,
                     .caller = caller,
                     .arg = arg,
                     .op = cmd & MEMOP_CMD_MASK,
                     .start = (uint32_t)(cmd >> MEMOP_EXTENT_SHIFT)};

    switch (c.op) {
    case XENMEM_increase_reservation:
    case XENMEM_decrease_reservation:
    case XENMEM_populate_physmap:
        return memory_reservation(&c);
    default:
        return cmd >> MEMOP_EXTENT_SHIFT ? -XEN_EINVAL : memory_op_once(&c);
    }
}
