/*
 * sysctl: what Dom0's tools ask about, and do to, the machine as a whole.
 */
#include "../public/sysctl.h"

#include <cpuid.h>

#include "control.h"
#include "trace.h"

struct call {
    struct hv *hv;
    struct xen_sysctl op;
    bool copyback;
};

/* ---- the machine ------------------------------------------------------------------------------------------------ */

/* The words of real Xen's boot_cpu_data.x86_capability that tools print. */
static void fill_hw_cap(uint32_t cap[8])
{
    uint32_t a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d))
        cap[0] = d, cap[1] = c;
    if (__get_cpuid(0x80000001, &a, &b, &c, &d))
        cap[2] = d, cap[3] = c;
    if (__get_cpuid_count(0xd, 1, &a, &b, &c, &d))
        cap[4] = a;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d))
        cap[5] = b, cap[6] = c;
    if (__get_cpuid(0x80000007, &a, &b, &c, &d))
        cap[7] = d;
}

static int64_t physinfo(struct call *c)
{
    struct xen_sysctl_physinfo *op = &c->op.u.physinfo;
    memset(op, 0, sizeof(*op));
    op->threads_per_core = 1;
    op->cores_per_socket = op->nr_cpus = c->hv->config.nr_pcpus;
    op->max_cpu_id = op->nr_cpus - 1;
    op->nr_nodes = 1;
    op->cpu_khz = (uint32_t)tsc_khz(c->hv);
    op->capabilities = XEN_SYSCTL_PHYSCAP_pv | XEN_SYSCTL_PHYSCAP_gnttab_v1;
    op->total_pages = c->hv->nr_frames;
    op->max_mfn = c->hv->nr_frames - 1;
    lock(&c->hv->heap_lock);
    op->free_pages = c->hv->free_frames;
    unlock(&c->hv->heap_lock);
    fill_hw_cap(op->hw_cap);
    c->copyback = true;
    return 0;
}

static int64_t cpu_policy(struct call *c)
{
    c->copyback = true;
    return sysctl_cpu_policy(c->hv, &c->op.u.cpu_policy);
}

static int64_t cpu_featureset(struct call *c)
{
    c->copyback = true;
    return sysctl_cpu_featureset(c->hv, &c->op.u.cpu_featureset);
}

static int64_t getcpuinfo(struct call *c)
{
    struct xen_sysctl_getcpuinfo *op = &c->op.u.getcpuinfo;
    uint32_t n = op->max_cpus < c->hv->config.nr_pcpus ? op->max_cpus : c->hv->config.nr_pcpus;
    for (uint32_t i = 0; i < n; i++) {
        struct xen_sysctl_cpuinfo info = {.idletime = sched_idle_time(c->hv, i)};
        if (copy_to_guest(op->info + i * sizeof(info), &info, sizeof(info)))
            return -XEN_EFAULT;
    }
    op->nr_cpus = n;
    c->copyback = true;
    return 0;
}

static int64_t cputopoinfo(struct call *c)
{
    struct xen_sysctl_cputopoinfo *op = &c->op.u.cputopoinfo;
    uint32_t nr_cpus = c->hv->config.nr_pcpus;
    for (uint32_t i = 0; op->cputopo && i < op->num_cpus && i < nr_cpus; i++) {
        struct xen_sysctl_cputopo topo = {.core = i};
        if (copy_to_guest(op->cputopo + i * sizeof(topo), &topo, sizeof(topo)))
            return -XEN_EFAULT;
    }
    op->num_cpus = nr_cpus;
    c->copyback = true;
    return 0;
}

/* One node, at a distance of 10 from itself. */
static int64_t numainfo(struct call *c)
{
    struct xen_sysctl_numainfo *op = &c->op.u.numainfo;
    lock(&c->hv->heap_lock);
    struct xen_sysctl_meminfo memory = {c->hv->nr_frames << PAGE_SHIFT, c->hv->free_frames << PAGE_SHIFT};
    unlock(&c->hv->heap_lock);
    uint32_t distance = 10;
    if (op->meminfo && op->num_nodes && copy_to_guest(op->meminfo, &memory, sizeof(memory)))
        return -XEN_EFAULT;
    if (op->distance && op->num_nodes && copy_to_guest(op->distance, &distance, sizeof(distance)))
        return -XEN_EFAULT;
    op->num_nodes = 1;
    c->copyback = true;
    return 0;
}

static int64_t availheap(struct call *c)
{
    struct xen_sysctl_availheap *op = &c->op.u.availheap;
    if (op->node != -1 && op->node != 0)
        return -XEN_EINVAL;
    lock(&c->hv->heap_lock);
    op->avail_bytes = c->hv->free_frames << PAGE_SHIFT;
    unlock(&c->hv->heap_lock);
    c->copyback = true;
    return 0;
}

/* ---- domains ---------------------------------------------------------------------------------------------------- */

static int64_t getdomaininfolist(struct call *c)
{
    struct xen_sysctl_getdomaininfolist *op = &c->op.u.getdomaininfolist;
    struct xen_domctl_getdomaininfo info;
    struct domain *d;
    uint32_t id = op->first_domain, n = 0;
    while (n < op->max_domains && (d = next_domain(c->hv, id))) {
        id = d->id + 1u;
        fill_domain_info(d, &info);
        put_domain(d);
        if (copy_to_guest(op->buffer + n * sizeof(info), &info, sizeof(info)))
            return -XEN_EFAULT;
        n++;
    }
    op->num_domains = n;
    c->copyback = true;
    return 0;
}

/* ---- scheduling ------------------------------------------------------------------------------------------------- */

static int64_t sched_id(struct call *c)
{
    c->op.u.sched_id.sched_id = c->hv->scheduler->id;
    c->copyback = true;
    return 0;
}

static int64_t scheduler_op(struct call *c)
{
    struct xen_sysctl_scheduler_op *op = &c->op.u.scheduler_op;
    const struct scheduler *policy = c->hv->scheduler;
    if (op->cpupool_id)
        return -XEN_ESRCH;
    if (op->sched_id != policy->id)
        return -XEN_EINVAL;
    if (!policy->adjust_global)
        return -XEN_EOPNOTSUPP;
    c->copyback = true;
    return policy->adjust_global(c->hv, op);
}

static uint32_t count_domains(struct hv *hv)
{
    struct hv_statistics s;
    hv_get_statistics(hv, &s);
    return s.nr_domains;
}

/* There is one pool with all CPUs and domains. */
static int64_t cpupool_op(struct call *c)
{
    struct xen_sysctl_cpupool_op *op = &c->op.u.cpupool_op;
    c->copyback = true;
    switch (op->op) {
    case XEN_SYSCTL_CPUPOOL_OP_INFO:
        if (op->cpupool_id && op->cpupool_id != XEN_SYSCTL_CPUPOOL_PAR_ANY)
            return -XEN_ENOENT;
        op->cpupool_id = 0;
        op->sched_id = c->hv->scheduler->id;
        op->n_dom = count_domains(c->hv);
        return bitmap_to_guest(&op->cpumap, all_cpus(c->hv));
    case XEN_SYSCTL_CPUPOOL_OP_FREEINFO:
        return bitmap_to_guest(&op->cpumap, 0);
    case XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN:
        return op->cpupool_id ? -XEN_ENOENT : 0;
    default:
        return -XEN_EOPNOTSUPP;
    }
}

/* ---- console and debugging -------------------------------------------------------------------------------------- */

static int64_t readconsole(struct call *c)
{
    struct xen_sysctl_readconsole *op = &c->op.u.readconsole;
    uint32_t room = op->count, done = 0, index = op->index;
    char piece[1024];
    bool more = true;
    while (more && done < room) {
        uint32_t n = room - done < sizeof(piece) ? room - done : sizeof(piece), asked = n;
        console_read(c->hv, piece, &n, op->clear, op->incremental || done, &index);
        if (copy_to_guest(op->buffer + done, piece, n))
            return -XEN_EFAULT;
        done += n;
        more = n == asked;
    }
    op->count = done;
    op->index = index;
    c->copyback = true;
    return 0;
}

static void show_domains(struct hv *hv)
{
    struct domain *d;
    for (uint32_t id = 0; (d = next_domain(hv, id)); put_domain(d)) {
        id = d->id + 1u;
        hv_printk(hv, "d%u: %s refs=%u dying=%d pauses=%u pages=%lu/%lu shutdown=%d", d->id,
                  d->kind == DOMAIN_PV ? "PV" : "process", d->refs, d->dying, d->pause_count,
                  (unsigned long)d->tot_pages, (unsigned long)d->max_pages, d->is_shutting_down);
        for (uint32_t i = 0; i < d->max_vcpus; i++)
            if (d->vcpu[i])
                hv_printk(hv, "  v%u: %s%s%s CPU%u", i, d->vcpu[i]->online ? "up" : "down",
                          d->vcpu[i]->sched.running ? " running" : "", d->vcpu[i]->sched.blocked ? " blocked" : "",
                          d->vcpu[i]->sched.pcpu);
    }
}

static void show_memory(struct hv *hv)
{
    hv_printk(hv, "%lu frames, %lu free", (unsigned long)hv->nr_frames, (unsigned long)hv->free_frames);
}

static void show_events(struct hv *hv)
{
    hv_printk(hv, "%u event channel ports, %u grant mappings, %u connections", hv->nr_ports, hv->nr_grant_maps,
              hv->nr_conns);
}

int hv_get_engine_statistics(hv_t *hv, uint16_t from, struct hv_engine_statistics *out)
{
    struct domain *d;
    struct engine_statistics s;
    for (uint32_t id = from; (d = next_domain(hv, id)); put_domain(d)) {
        id = d->id + 1u;
        if (d->kind != DOMAIN_PV || !d->engine)
            continue;
        engine()->statistics(d, &s);
        *out = (struct hv_engine_statistics){
            s.blocks, s.instructions, s.code_bytes, s.memory_bytes, s.cache_flushes, s.tlb_fills, s.tlb_flushes,
            s.page_invalidations, s.blocks_killed, s.single_steps, {0}};
        memcpy(out->exits, s.exits, sizeof(out->exits));
        put_domain(d);
        return id - 1;
    }
    return -XEN_ESRCH;
}
_Static_assert(sizeof(((struct hv_engine_statistics *)0)->exits) == sizeof(uint64_t) * ENGINE_EXITS, "exits");

const char *hv_engine_exit_name(uint32_t index) { return engine()->exit_name(index); }

static void show_engine(struct hv *hv)
{
    struct domain *d;
    struct engine_statistics s;
    for (uint32_t id = 0; (d = next_domain(hv, id)); put_domain(d)) {
        id = d->id + 1u;
        if (d->kind != DOMAIN_PV)
            continue;
        engine()->statistics(d, &s);
        hv_printk(hv, "d%u: %lu blocks of %lu instructions, %lu KiB of code, %lu KiB in all, %lu cache flushes", d->id, s.blocks,
                  s.instructions, s.code_bytes >> 10, s.memory_bytes >> 10, s.cache_flushes);
        hv_printk(hv, "  TLB: %lu fills, %lu flushes; %lu frames of code invalidated with %lu blocks; %lu single steps",
                  s.tlb_fills, s.tlb_flushes, s.page_invalidations, s.blocks_killed, s.single_steps);
        for (unsigned k = 0; k < ARRAY_SIZE(s.exits); k++)
            if (s.exits[k])
                hv_printk(hv, "  exit %s: %lu", engine()->exit_name(k), s.exits[k]);
    }
}

static void show_help(struct hv *hv)
{
    hv_printk(hv, "keys: c CPU engine, e events, h help, m memory, q domains, r run queues, T trace");
}

static const struct { char key; void (*show)(struct hv *hv); } debug_key[] = {
    {'c', show_engine}, {'e', show_events}, {'h', show_help}, {'m', show_memory},
    {'q', show_domains}, {'r', sched_dump}, {'T', trace_dump},
};

static int64_t debug_keys(struct call *c)
{
    const struct xen_sysctl_debug_keys *op = &c->op.u.debug_keys;
    for (uint32_t i = 0; i < op->nr_keys; i++) {
        char key;
        if (i == 64)
            return -XEN_E2BIG;
        if (copy_from_guest(&key, op->keys + i, 1))
            return -XEN_EFAULT;
        for (unsigned k = 0; k < ARRAY_SIZE(debug_key); k++)
            if (debug_key[k].key == key)
                debug_key[k].show(c->hv);
    }
    return 0;
}

/* Our ring is not Xen's trace buffer: it is switched here and shown by debug key 'T'. */
static int64_t tbuf_op(struct call *c)
{
    switch (c->op.u.tbuf_op.cmd) {
    case XEN_SYSCTL_TBUFOP_enable:
        trace_enable(c->hv, true);
        return 0;
    case XEN_SYSCTL_TBUFOP_disable:
        trace_enable(c->hv, false);
        return 0;
    case XEN_SYSCTL_TBUFOP_set_evt_mask:
        trace_set_mask(c->hv, c->op.u.tbuf_op.evt_mask);
        return 0;
    default:
        return -XEN_EOPNOTSUPP;
    }
}

/* ---- the hypercall ---------------------------------------------------------------------------------------------- */

typedef int64_t sysctl_fn(struct call *c);

static sysctl_fn *const table[] = {
    [XEN_SYSCTL_readconsole] = readconsole,
    [XEN_SYSCTL_tbuf_op] = tbuf_op,
    [XEN_SYSCTL_physinfo] = physinfo,
    [XEN_SYSCTL_sched_id] = sched_id,
    [XEN_SYSCTL_getdomaininfolist] = getdomaininfolist,
    [XEN_SYSCTL_debug_keys] = debug_keys,
    [XEN_SYSCTL_getcpuinfo] = getcpuinfo,
    [XEN_SYSCTL_availheap] = availheap,
    [XEN_SYSCTL_cputopoinfo] = cputopoinfo,
    [XEN_SYSCTL_numainfo] = numainfo,
    [XEN_SYSCTL_cpupool_op] = cpupool_op,
    [XEN_SYSCTL_scheduler_op] = scheduler_op,
    [XEN_SYSCTL_get_cpu_featureset] = cpu_featureset,
    [XEN_SYSCTL_get_cpu_policy] = cpu_policy,
};

int64_t do_sysctl(struct domain *caller, uint64_t arg)
{
    struct call c = {.hv = caller->hv};
    if (copy_from_guest(&c.op, arg, sizeof(c.op)))
        return -XEN_EFAULT;
    if (c.op.interface_version != XEN_SYSCTL_INTERFACE_VERSION)
        return -XEN_EACCES;
    sysctl_fn *function = c.op.cmd < ARRAY_SIZE(table) ? table[c.op.cmd] : NULL;
    if (!function)
        return -XEN_ENOSYS;
    int64_t rc = function(&c);
    if (c.copyback && copy_to_guest(arg, &c.op, sizeof(c.op)))
        return -XEN_EFAULT;
    return rc;
}
