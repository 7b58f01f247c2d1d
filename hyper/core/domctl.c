/*
 * domctl: how Dom0's tools make, change and end a domain. All under hv->domctl_lock; anything long is done in pieces.
 *
 * Each call checks its own arguments and answers in place; `struct call` says whether the answer has to be copied back.
 */
#include <inttypes.h>

#include "control.h"
#include "grant_table.h"

#define DEFAULT_GRANT_FRAMES 64u
#define MAX_GRANT_FRAMES 256u
#define DEFAULT_MAPTRACK_FRAMES 1024u
#define MAPS_PER_FRAME 256u
#define MAX_PFINFO 1024u

struct call {
    struct hv *hv;
    struct domain *caller;
    struct domain *d; /* referenced; NULL for createdomain and getdomaininfo */
    struct xen_domctl op;
    bool copyback;
};

/* ---- bitmaps ---------------------------------------------------------------------------------------------------- */

int bitmap_from_guest(uint64_t *bits, const struct xenctl_bitmap *map)
{
    uint32_t n = map->nr_bits < 64 ? map->nr_bits : 64;
    *bits = 0;
    if (copy_from_guest(bits, map->bitmap, (n + 7) / 8))
        return -XEN_EFAULT;
    if (n < 64)
        *bits &= (1ull << n) - 1;
    return 0;
}

#define MAX_BITMAP_BITS 4096 /* more CPUs than Xen knows */
int bitmap_to_guest(const struct xenctl_bitmap *map, uint64_t bits)
{
    uint64_t bytes = ((uint64_t)map->nr_bits + 7) / 8, n = bytes < 8 ? bytes : 8;
    if (map->nr_bits > MAX_BITMAP_BITS)
        return -XEN_EINVAL;
    if (map->nr_bits < 64)
        bits &= (1ull << map->nr_bits) - 1;
    if (copy_to_guest(map->bitmap, &bits, n))
        return -XEN_EFAULT;
    return bytes > n && clear_guest(map->bitmap + n, bytes - n) ? -XEN_EFAULT : 0;
}

/* ---- information ------------------------------------------------------------------------------------------------ */

/* When the host lets them; what they may ask of us says whether they do. */
static bool processes_run(struct domain *d)
{
    return !atomic_load(&d->pause_count) && !atomic_load(&d->is_shutting_down) && !atomic_load(&d->dying);
}

static void count_vcpus(struct domain *d, struct xen_domctl_getdomaininfo *info)
{
    bool running = false, blocked = true;
    info->max_vcpu_id = XEN_INVALID_MAX_VCPU_ID;
    lock(&d->hv->sched_lock);
    for (uint32_t i = 0; i < d->max_vcpus; i++) {
        struct vcpu *v = d->vcpu[i];
        if (!v)
            continue;
        info->max_vcpu_id = i;
        if (!atomic_load(&v->online))
            continue;
        info->nr_online_vcpus++;
        blocked &= atomic_load(&v->sched.blocked);
        running |= v->sched.running;
    }
    unlock(&d->hv->sched_lock);
    if (d->kind == DOMAIN_PROCESS)
        running = processes_run(d), blocked = false;
    info->flags |= (running ? XEN_DOMINF_running : 0) | (blocked ? XEN_DOMINF_blocked : 0);
}

static uint32_t domain_flags(struct domain *d)
{
    uint32_t code = atomic_load(&d->shutdown_code) & XEN_DOMINF_shutdownmask;
    return (atomic_load(&d->dying) == DOMDYING_dead ? XEN_DOMINF_dying : 0) |
           (atomic_load(&d->is_shut_down) ? XEN_DOMINF_shutdown : 0) |
           (d->controller_pauses ? XEN_DOMINF_paused : 0) | code << XEN_DOMINF_shutdownshift;
}

void fill_domain_info(struct domain *d, struct xen_domctl_getdomaininfo *info)
{
    memset(info, 0, sizeof(*info));
    info->domain = d->id;
    info->flags = domain_flags(d);
    count_vcpus(d, info);
    lock(&d->hv->heap_lock);
    info->tot_pages = d->tot_pages;
    info->max_pages = d->max_pages;
    unlock(&d->hv->heap_lock);
    info->shared_info_frame = gfn_x(page_to_gfn(d, d->shared_info_page));
    info->cpu_time = d->kind == DOMAIN_PV ? domain_cpu_time(d) : 0;
    memcpy(info->handle, d->handle, sizeof(info->handle));
    info->gpaddr_bits = 46;
}

static int64_t getdomaininfo(struct call *c)
{
    if (c->op.domain >= DOMID_FIRST_RESERVED)
        return -XEN_EINVAL;
    struct domain *d = next_domain(c->hv, c->op.domain);
    if (!d)
        return -XEN_ESRCH;
    fill_domain_info(d, &c->op.u.getdomaininfo);
    c->op.domain = d->id;
    c->copyback = true;
    put_domain(d);
    return 0;
}

static int find_vcpu(struct call *c, uint32_t id, struct vcpu **out)
{
    if (id >= c->d->max_vcpus)
        return -XEN_EINVAL;
    *out = c->d->vcpu[id];
    return *out ? 0 : -XEN_ESRCH;
}

static int64_t getvcpuinfo(struct call *c)
{
    struct xen_domctl_getvcpuinfo *op = &c->op.u.getvcpuinfo;
    struct vcpu_runstate_info r;
    struct vcpu *v;
    int rc = find_vcpu(c, op->vcpu, &v);
    if (rc)
        return rc;
    vcpu_runstate_get(v, &r);
    op->online = atomic_load(&v->online);
    op->blocked = atomic_load(&v->sched.blocked);
    op->running = c->d->kind == DOMAIN_PROCESS ? processes_run(c->d) : r.state == RUNSTATE_running;
    op->cpu_time = r.time[RUNSTATE_running];
    op->cpu = v->sched.pcpu;
    c->copyback = true;
    return 0;
}

/* ---- creation and destruction ----------------------------------------------------------------------------------- */

static int check_create(const struct xen_domctl_createdomain *op)
{
    if (op->flags & ~(XEN_DOMCTL_CDF_MAX * 2u - 1u))
        return -XEN_EINVAL;
    if (op->flags & (XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_iommu | XEN_DOMCTL_CDF_nested_virt | XEN_DOMCTL_CDF_vpmu))
        return -XEN_EOPNOTSUPP; /* not built */
    if (op->flags & (XEN_DOMCTL_CDF_hap | XEN_DOMCTL_CDF_oos_off))
        return -XEN_EINVAL; /* of HVM guests only */
    if (!op->max_vcpus || op->max_vcpus > MAX_VCPUS)
        return -XEN_EINVAL;
    if (op->arch.emulation_flags & ~(uint32_t)XEN_X86_EMU_PIT)
        return -XEN_EINVAL;
    uint32_t version = op->grant_opts & XEN_DOMCTL_GRANT_version_mask;
    if (op->grant_opts & ~(uint32_t)XEN_DOMCTL_GRANT_version_mask || version != 1)
        return -XEN_EINVAL;
    if (op->max_grant_frames > (int32_t)MAX_GRANT_FRAMES)
        return -XEN_EINVAL;
    if (op->vmtrace_size)
        return -XEN_EOPNOTSUPP;
    return op->cpupool_id ? -XEN_ENOENT : 0;
}

static uint32_t or_default(int32_t asked, uint32_t by_default) { return asked < 0 ? by_default : (uint32_t)asked; }

static int set_up(struct domain *d, const struct xen_domctl_createdomain *op)
{
    uint32_t frames = or_default(op->max_grant_frames, DEFAULT_GRANT_FRAMES);
    uint64_t maps = (uint64_t)or_default(op->max_maptrack_frames, DEFAULT_MAPTRACK_FRAMES) * MAPS_PER_FRAME;
    int rc = grant_table_init(d, frames, maps < 1u << 24 ? (uint32_t)maps : 1u << 24);
    if (rc)
        return rc;
    if (op->max_evtchn_port < d->max_evtchn_port)
        d->max_evtchn_port = op->max_evtchn_port;
    memcpy(d->handle, op->handle, sizeof(d->handle));
    time_publish_wallclock(d);
    return domain_enter_list(d);
}

static int64_t createdomain(struct call *c)
{
    struct xen_domctl_createdomain *op = &c->op.u.createdomain;
    struct domain *d;
    uint16_t id = c->op.domain;
    int rc = check_create(op);
    if (rc)
        return rc;
    if (id && id < DOMID_FIRST_RESERVED && c->hv->domain[id])
        return -XEN_EEXIST;
    rc = domain_create(c->hv, id ? id : DOMID_INVALID, DOMAIN_PV, op->max_vcpus, NULL, &d);
    if (rc)
        return rc;
    if ((rc = set_up(d, op))) {
        put_domain(d);
        return rc;
    }
    c->op.domain = d->id;
    c->copyback = true;
    return 0;
}

static int64_t max_vcpus(struct call *c)
{
    if (c->d == c->caller || c->op.u.max_vcpus.max != c->d->max_vcpus)
        return -XEN_EINVAL;
    for (uint32_t i = 0; i < c->d->max_vcpus; i++) {
        if (c->d->vcpu[i])
            continue;
        int rc = vcpu_create(c->d, i);
        if (rc)
            return rc;
        if (hypercall_preempt_check())
            return -XEN_ERESTART;
    }
    return 0;
}

static int64_t destroydomain(struct call *c) { return c->d == c->caller ? -XEN_EINVAL : domain_kill(c->d); }

/* ---- running ---------------------------------------------------------------------------------------------------- */

static int64_t pausedomain(struct call *c)
{
    if (c->d == c->caller)
        return -XEN_EINVAL;
    c->d->controller_pauses++;
    domain_pause(c->d);
    return 0;
}

static int64_t unpausedomain(struct call *c)
{
    if (c->d == c->caller || !c->d->controller_pauses)
        return -XEN_EINVAL;
    c->d->creation_finished = true;
    c->d->controller_pauses--;
    domain_unpause(c->d);
    return 0;
}

static int64_t resumedomain(struct call *c)
{
    if (c->d == c->caller)
        return -XEN_EINVAL;
    domain_resume(c->d);
    return 0;
}

/* ---- contexts --------------------------------------------------------------------------------------------------- */

static int set_paused(struct domain *d, struct vcpu *v, const struct vcpu_guest_context *context)
{
    domain_pause(d);
    domain_lock(d, NULL);
    int rc = pv_set_context(v, context);
    if (!rc) {
        v->initialised = true;
        atomic_store(&v->online, context->flags & VGCF_online);
    }
    domain_unlock(d, NULL);
    if (!rc && !v->id)
        time_publish_wallclock(d);
    domain_unpause(d);
    return rc;
}

static int64_t setvcpucontext(struct call *c)
{
    const struct xen_domctl_vcpucontext *op = &c->op.u.vcpucontext;
    struct vcpu *v = domain_vcpu(c->d, op->vcpu);
    if (c->d->kind != DOMAIN_PV || !v)
        return -XEN_EINVAL;
    if (!op->ctxt) /* a reset: not built */
        return -XEN_EOPNOTSUPP;
    struct vcpu_guest_context *context = malloc(sizeof(*context));
    if (!context)
        return -XEN_ENOMEM;
    int64_t rc = copy_from_guest(context, op->ctxt, sizeof(*context)) ? -XEN_EFAULT : set_paused(c->d, v, context);
    free(context);
    return rc;
}

static int64_t getvcpucontext(struct call *c)
{
    const struct xen_domctl_vcpucontext *op = &c->op.u.vcpucontext;
    struct vcpu *v = domain_vcpu(c->d, op->vcpu);
    if (c->d->kind != DOMAIN_PV || !v)
        return -XEN_EINVAL;
    if (!v->initialised)
        return -XEN_ENODATA;
    struct vcpu_guest_context *context = calloc(1, sizeof(*context));
    if (!context)
        return -XEN_ENOMEM;
    vcpu_pause(v);
    domain_lock(c->d, NULL);
    pv_get_context(v, context);
    domain_unlock(c->d, NULL);
    context->flags |= atomic_load(&v->online) ? VGCF_online : 0;
    vcpu_unpause(v);
    int64_t rc = copy_to_guest(op->ctxt, context, sizeof(*context)) ? -XEN_EFAULT : 0;
    free(context);
    c->copyback = !rc;
    return rc;
}

static int64_t vcpuextstate(struct call *c)
{
    struct xen_domctl_vcpuextstate *op = &c->op.u.vcpuextstate;
    struct vcpu *v = domain_vcpu(c->d, op->vcpu);
    if (c->d->kind != DOMAIN_PV || c->d == c->caller)
        return -XEN_EINVAL;
    if (!v)
        return -XEN_ESRCH;
    if (c->op.cmd == XEN_DOMCTL_setvcpuextstate)
        return domctl_set_extstate(c->d, v, op);
    c->copyback = true;
    return domctl_get_extstate(c->d, v, op);
}

/* ---- CPU policy ------------------------------------------------------------------------------------------------- */

static int64_t cpu_policy(struct call *c)
{
    c->copyback = true;
    return c->op.cmd == XEN_DOMCTL_get_cpu_policy ? domctl_get_cpu_policy(c->d, &c->op.u.cpu_policy)
                                                  : domctl_set_cpu_policy(c->d, &c->op.u.cpu_policy);
}

/* ---- scheduling ------------------------------------------------------------------------------------------------- */

static int check_affinity(const struct xen_domctl_vcpuaffinity *op)
{
    bool hard = op->flags & XEN_VCPUAFFINITY_HARD, soft = op->flags & XEN_VCPUAFFINITY_SOFT;
    if ((!hard && !soft) || (hard && !op->cpumap_hard.bitmap) || (soft && !op->cpumap_soft.bitmap))
        return -XEN_EINVAL;
    return 0;
}

/* Takes what is asked and answers what is in effect. */
static int64_t set_affinity(struct call *c, struct vcpu *v, const struct xen_domctl_vcpuaffinity *op)
{
    uint64_t hard = v->sched.hard_affinity, soft = v->sched.soft_affinity, online = all_cpus(c->hv);
    if ((op->flags & XEN_VCPUAFFINITY_HARD) && bitmap_from_guest(&hard, &op->cpumap_hard))
        return -XEN_EFAULT;
    if ((op->flags & XEN_VCPUAFFINITY_SOFT) && bitmap_from_guest(&soft, &op->cpumap_soft))
        return -XEN_EFAULT;
    if (!(hard & online))
        return -XEN_EINVAL;
    sched_set_affinity(v, hard, soft);
    if ((op->flags & XEN_VCPUAFFINITY_HARD) && bitmap_to_guest(&op->cpumap_hard, hard & online))
        return -XEN_EFAULT;
    if ((op->flags & XEN_VCPUAFFINITY_SOFT) && bitmap_to_guest(&op->cpumap_soft, soft & hard & online))
        return -XEN_EFAULT;
    return 0;
}

static int64_t get_affinity(struct call *c, struct vcpu *v, const struct xen_domctl_vcpuaffinity *op)
{
    bool process = c->d->kind == DOMAIN_PROCESS;
    uint64_t hard = process ? ~0ull : v->sched.hard_affinity, soft = process ? ~0ull : v->sched.soft_affinity;
    if ((op->flags & XEN_VCPUAFFINITY_HARD) && bitmap_to_guest(&op->cpumap_hard, hard))
        return -XEN_EFAULT;
    if ((op->flags & XEN_VCPUAFFINITY_SOFT) && bitmap_to_guest(&op->cpumap_soft, soft))
        return -XEN_EFAULT;
    return 0;
}

static int64_t vcpuaffinity(struct call *c)
{
    const struct xen_domctl_vcpuaffinity *op = &c->op.u.vcpuaffinity;
    struct vcpu *v;
    int rc = find_vcpu(c, op->vcpu, &v);
    if (rc || (rc = check_affinity(op)))
        return rc;
    if (c->op.cmd == XEN_DOMCTL_getvcpuaffinity)
        return get_affinity(c, v, op);
    return c->d->kind == DOMAIN_PROCESS ? -XEN_EOPNOTSUPP : set_affinity(c, v, op);
}

static int64_t nodeaffinity(struct call *c)
{
    uint64_t nodes;
    if (c->op.cmd == XEN_DOMCTL_getnodeaffinity)
        return bitmap_to_guest(&c->op.u.nodeaffinity.nodemap, 1);
    if (bitmap_from_guest(&nodes, &c->op.u.nodeaffinity.nodemap))
        return -XEN_EFAULT;
    return nodes & 1 ? 0 : -XEN_EINVAL; /* there is one node */
}

static int64_t scheduler_op(struct call *c)
{
    struct xen_domctl_scheduler_op *op = &c->op.u.scheduler_op;
    const struct scheduler *policy = c->hv->scheduler;
    if (op->sched_id != policy->id || op->cmd > XEN_DOMCTL_SCHEDOP_getvcpuinfo)
        return -XEN_EINVAL;
    c->copyback = true;
    return policy->adjust ? policy->adjust(c->hv, c->d, op) : 0;
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static int64_t max_mem(struct call *c)
{
    lock(&c->hv->heap_lock);
    c->d->max_pages = c->op.u.max_mem.max_memkb >> (PAGE_SHIFT - 10);
    unlock(&c->hv->heap_lock);
    return 0;
}

static int64_t hypercall_init(struct call *c)
{
    struct domain *d = c->d;
    int64_t rc = -XEN_EINVAL;
    if (d->kind != DOMAIN_PV)
        return -XEN_EINVAL;
    domain_lock(d, NULL);
    struct page_info *pg = get_page_from_gfn(d, _gfn(c->op.u.hypercall_init.gmfn));
    if (pg && !get_page_type(d, pg, PGT_writable_page)) {
        engine()->frame_written(d, NULL, pg);
        pv_hypercall_page(mfn_to_virt(d->hv, page_to_mfn(d->hv, pg)));
        put_page_type(d, pg);
        rc = 0;
    }
    if (pg)
        put_page(d->hv, pg);
    domain_unlock(d, NULL);
    return rc;
}

/* Domain lock held. */
static uint64_t frame_kind(struct domain *d, uint64_t gfn)
{
    static const uint32_t kind[] = {
        [PGT_l1_page_table] = XEN_DOMCTL_PFINFO_L1TAB, [PGT_l2_page_table] = XEN_DOMCTL_PFINFO_L2TAB,
        [PGT_l3_page_table] = XEN_DOMCTL_PFINFO_L3TAB, [PGT_l4_page_table] = XEN_DOMCTL_PFINFO_L4TAB,
        [PGT_shared_page] = XEN_DOMCTL_PFINFO_NOTAB,
    };
    struct page_info *pg = get_page_from_gfn(d, _gfn(gfn));
    if (!pg)
        return XEN_DOMCTL_PFINFO_XTAB;
    uint32_t answer = pg->type_count ? kind[pg->type] : XEN_DOMCTL_PFINFO_NOTAB;
    if (pg->pinned)
        answer |= XEN_DOMCTL_PFINFO_LPINTAB;
    put_page(d->hv, pg);
    return answer;
}

static int64_t getpageframeinfo3(struct call *c)
{
    const struct xen_domctl_getpageframeinfo3 *op = &c->op.u.getpageframeinfo3;
    uint64_t piece[64];
    if (op->num > MAX_PFINFO)
        return -XEN_E2BIG;
    for (uint64_t done = 0; done < op->num;) {
        uint64_t n = op->num - done < ARRAY_SIZE(piece) ? op->num - done : ARRAY_SIZE(piece);
        uint64_t at = op->array + done * sizeof(piece[0]);
        if (copy_from_guest(piece, at, n * sizeof(piece[0])))
            return -XEN_EFAULT;
        domain_lock(c->d, NULL);
        for (uint64_t i = 0; i < n; i++)
            piece[i] = frame_kind(c->d, piece[i]);
        domain_unlock(c->d, NULL);
        if (copy_to_guest(at, piece, n * sizeof(piece[0])))
            return -XEN_EFAULT;
        done += n;
    }
    return 0;
}

static int64_t address_size(struct call *c)
{
    if (c->op.cmd == XEN_DOMCTL_get_address_size) {
        c->op.u.address_size.size = 64;
        c->copyback = true;
        return 0;
    }
    if (c->op.u.address_size.size == 64)
        return 0;
    return c->op.u.address_size.size == 32 ? -XEN_EOPNOTSUPP : -XEN_EINVAL;
}

/* ---- time ------------------------------------------------------------------------------------------------------- */

static int64_t settimeoffset(struct call *c)
{
    c->d->time_offset_seconds = c->op.u.settimeoffset.time_offset_seconds;
    time_publish_wallclock(c->d);
    return 0;
}

/* Guests read the host's TSC. Mode 1 wants every read emulated, which only makes sense when that were not stable. */
static int64_t settscinfo(struct call *c)
{
    const struct xen_domctl_tsc_info *op = &c->op.u.tsc_info;
    if (op->tsc_mode > 2)
        return -XEN_EINVAL;
    if (op->tsc_mode == 1)
        return -XEN_EOPNOTSUPP;
    c->d->tsc_mode = op->tsc_mode;
    c->d->tsc_incarnation = op->incarnation;
    return 0;
}

static int64_t gettscinfo(struct call *c)
{
    c->op.u.tsc_info = (struct xen_domctl_tsc_info){
        .tsc_mode = c->d->tsc_mode,
        .gtsc_khz = (uint32_t)tsc_khz(c->hv),
        .incarnation = c->d->tsc_incarnation,
        .elapsed_nsec = hv_now(c->hv) - c->d->created_ns,
    };
    c->copyback = true;
    return 0;
}

static int64_t setdomainhandle(struct call *c)
{
    memcpy(c->d->handle, c->op.u.setdomainhandle.handle, sizeof(c->d->handle));
    return 0;
}

/* ---- the hypercall ---------------------------------------------------------------------------------------------- */

typedef int64_t domctl_fn(struct call *c);

static domctl_fn *const table[] = {
    [XEN_DOMCTL_createdomain] = createdomain,
    [XEN_DOMCTL_destroydomain] = destroydomain,
    [XEN_DOMCTL_pausedomain] = pausedomain,
    [XEN_DOMCTL_unpausedomain] = unpausedomain,
    [XEN_DOMCTL_getdomaininfo] = getdomaininfo,
    [XEN_DOMCTL_setvcpuaffinity] = vcpuaffinity,
    [XEN_DOMCTL_getvcpuaffinity] = vcpuaffinity,
    [XEN_DOMCTL_max_mem] = max_mem,
    [XEN_DOMCTL_setvcpucontext] = setvcpucontext,
    [XEN_DOMCTL_getvcpucontext] = getvcpucontext,
    [XEN_DOMCTL_getvcpuinfo] = getvcpuinfo,
    [XEN_DOMCTL_max_vcpus] = max_vcpus,
    [XEN_DOMCTL_scheduler_op] = scheduler_op,
    [XEN_DOMCTL_setdomainhandle] = setdomainhandle,
    [XEN_DOMCTL_hypercall_init] = hypercall_init,
    [XEN_DOMCTL_settimeoffset] = settimeoffset,
    [XEN_DOMCTL_resumedomain] = resumedomain,
    [XEN_DOMCTL_set_address_size] = address_size,
    [XEN_DOMCTL_get_address_size] = address_size,
    [XEN_DOMCTL_gettscinfo] = gettscinfo,
    [XEN_DOMCTL_settscinfo] = settscinfo,
    [XEN_DOMCTL_getpageframeinfo3] = getpageframeinfo3,
    [XEN_DOMCTL_setnodeaffinity] = nodeaffinity,
    [XEN_DOMCTL_getnodeaffinity] = nodeaffinity,
    [XEN_DOMCTL_getvcpuextstate] = vcpuextstate,
    [XEN_DOMCTL_setvcpuextstate] = vcpuextstate,
    [XEN_DOMCTL_get_cpu_policy] = cpu_policy,
    [XEN_DOMCTL_set_cpu_policy] = cpu_policy,
};

/* Calls that change or look at what a killed domain has no more. */
static bool needs_living_domain(uint32_t cmd)
{
    return cmd != XEN_DOMCTL_destroydomain && cmd != XEN_DOMCTL_pausedomain && cmd != XEN_DOMCTL_unpausedomain &&
           cmd != XEN_DOMCTL_getvcpuinfo && cmd != XEN_DOMCTL_scheduler_op && cmd != XEN_DOMCTL_getvcpuaffinity;
}

static int64_t call_with_domain(struct call *c, domctl_fn *function)
{
    if (c->op.cmd == XEN_DOMCTL_createdomain || c->op.cmd == XEN_DOMCTL_getdomaininfo)
        return function(c);
    c->d = c->op.domain < DOMID_FIRST_RESERVED ? get_domain(c->hv, NULL, c->op.domain) : NULL;
    if (!c->d)
        return -XEN_ESRCH;
    int64_t rc = atomic_load(&c->d->dying) && needs_living_domain(c->op.cmd) ? -XEN_EINVAL : function(c);
    put_domain(c->d);
    return rc;
}

int64_t do_domctl(struct domain *caller, uint64_t arg)
{
    struct call c = {.hv = caller->hv, .caller = caller};
    if (copy_from_guest(&c.op, arg, sizeof(c.op)))
        return -XEN_EFAULT;
    if (c.op.interface_version != XEN_DOMCTL_INTERFACE_VERSION)
        return -XEN_EACCES;
    domctl_fn *function = c.op.cmd < ARRAY_SIZE(table) ? table[c.op.cmd] : NULL;
    if (!function)
        return -XEN_ENOSYS;
    lock(&c.hv->domctl_lock);
    int64_t rc = call_with_domain(&c, function);
    unlock(&c.hv->domctl_lock);
    if (c.copyback && copy_to_guest(arg, &c.op, sizeof(c.op)))
        return -XEN_EFAULT;
    return rc;
}
