/*
 * Memory hypercalls of PV guests: changes of page tables (mmu_update, update_va_mapping, writes to read-only tables),
 * pinning, CR3, TLB flushes (mmuext_op), descriptor tables. The rules are page_type.c's; here are the calls.
 *
 * All of it is under the lock of the domain whose memory it is. Page tables are named by gfn, so a privileged domain may
 * act on another's; entries that name another domain's frames are refused (grant maps of PV domains aren't built).
 *
 * Long lists stop every PREEMPT_EVERY entries when the pCPU is wanted.
 */
#include "hypercall.h"
#include "machine.h"

#define PREEMPT_EVERY 64
#define BATCH 16 /* requests copied from the guest at once */
#define MMU_UPDATE_PREEMPTED 0x80000000u /* in `count`: pdone holds what was done before */
#define MAX_LDT_ENTRIES 8192
#define GDT_ENTRIES_PER_FRAME 512

/* ---- whose memory ----------------------------------------------------------------------------------------------- */

static void owner_lock(struct domain *d, struct vcpu *curr)
{
    if (curr && curr->domain != d)
        domain_lock_foreign(d, curr);
    else
        domain_lock(d, curr);
}

static void owner_unlock(struct domain *d, struct vcpu *curr)
{
    if (curr && curr->domain != d)
        domain_unlock_foreign(d, curr);
    else
        domain_unlock(d, curr);
}

/* The domain that a call's foreigndom names, referenced. A caller is "self" and may not give its own id. */
static struct domain *get_pg_owner(struct domain *caller, uint16_t domid)
{
    if (domid == caller->id || domid > DOMID_SELF)
        return NULL;
    return get_domain(caller->hv, caller, domid);
}

static bool may_act_on(const struct domain *caller, const struct domain *d)
{
    return caller == d || caller->is_privileged;
}

/* A frame of d that may be written to: with a reference of PGT_writable_page, and its code forgotten. */
static struct page_info *get_writable_page(struct domain *d, gfn_t gfn)
{
    struct page_info *pg = get_page_from_gfn(d, gfn);

    if (!pg)
        return NULL;
    if (pg->flags & PGC_xen_heap || get_page_type(d, pg, PGT_writable_page)) {
        put_page(d->hv, pg);
        return NULL;
    }
    if (pg->flags & PGC_code)
        engine()->frame_written(d, current_of(d), pg);
    return pg;
}

/* ---- mmu_update ------------------------------------------------------------------------------------------------- */

struct update_owners {
    struct domain *pt, *pg; /* of the page tables, of the frames they name */
};

static int get_update_owners(struct domain *caller, uint32_t foreigndom, struct update_owners *o)
{
    uint32_t pt = foreigndom >> 16;

    o->pt = NULL;
    o->pg = get_pg_owner(caller, (uint16_t)foreigndom);
    if (o->pg && (!pt || pt - 1 < DOMID_FIRST_RESERVED))
        o->pt = get_domain(caller->hv, caller, pt ? (uint16_t)(pt - 1) : (uint16_t)DOMID_SELF);
    return o->pt && o->pg ? 0 : -XEN_ESRCH;
}

static void put_update_owners(struct update_owners *o)
{
    if (o->pt)
        put_domain(o->pt);
    if (o->pg)
        put_domain(o->pg);
}

static int update_frame(struct domain *d, struct page_info *pg, struct mmu_update req)
{
    uint64_t offset = req.ptr & (PAGE_SIZE - 1) & ~7ull;
    uint64_t *entry = (uint64_t *)((char *)mfn_to_virt(d->hv, page_to_mfn(d->hv, pg)) + offset);
    struct page_info *writable;

    if (pg->type_count && pg->type >= PGT_l1_page_table && pg->type <= PGT_l4_page_table)
        return mod_page_table_entry(d, current_of(d), pg, entry, req.val, (req.ptr & 7) == MMU_PT_UPDATE_PRESERVE_AD);
    writable = get_writable_page(d, page_to_gfn(d, pg));
    if (!writable)
        return -XEN_EINVAL;
    __atomic_store_n(entry, req.val, __ATOMIC_RELAXED);
    put_page_and_type(d, writable);
    return 0;
}

static int update_entry(struct domain *caller, const struct update_owners *o, struct mmu_update req)
{
    struct page_info *pg;
    int rc;

    if (!may_act_on(caller, o->pt) || !may_act_on(caller, o->pg))
        return -XEN_EPERM;
    if (o->pt != o->pg) /* frames of another domain */
        return -XEN_EINVAL;
    pg = get_page_from_gfn(o->pt, _gfn(req.ptr >> PAGE_SHIFT));
    if (!pg)
        return -XEN_EINVAL;
    rc = update_frame(o->pt, pg, req);
    put_page(caller->hv, pg);
    return rc;
}

static int update_machphys(struct domain *caller, const struct update_owners *o, struct mmu_update req)
{
    gfn_t gfn = _gfn(req.ptr >> PAGE_SHIFT);
    struct page_info *pg;
    int rc;

    if (o->pt != caller || !may_act_on(caller, o->pg))
        return -XEN_EPERM;
    if (o->pg->kind != DOMAIN_PV)
        return -XEN_EINVAL;
    pg = get_page_from_gfn(o->pg, gfn);
    if (!pg)
        return -XEN_EINVAL;
    rc = m2p_set(o->pg, gfn, req.val);
    put_page(caller->hv, pg);
    return rc;
}

static int update_one(struct domain *caller, const struct update_owners *o, struct mmu_update req)
{
    switch (req.ptr & 7) {
    case MMU_NORMAL_PT_UPDATE:
    case MMU_PT_UPDATE_PRESERVE_AD:
    case MMU_PT_UPDATE_NO_TRANSLATE:
        return update_entry(caller, o, req);
    case MMU_MACHPHYS_UPDATE:
        return update_machphys(caller, o, req);
    default:
        return -XEN_ENOSYS;
    }
}

/* A window on the guest's list of requests. Copied some at a time; one at a time where the list runs out of memory. */
struct batch {
    uint64_t list;
    uint32_t size, first, n;
};

static int batch_get(struct batch *b, void *requests, uint32_t i, uint32_t count)
{
    uint32_t n = count - i < BATCH ? count - i : BATCH;

    if (b->n && i - b->first < b->n)
        return 0;
    b->first = i;
    b->n = n;
    if (!copy_from_guest(requests, b->list + (uint64_t)i * b->size, (size_t)n * b->size))
        return 0;
    b->n = 1;
    if (n > 1 && !copy_from_guest(requests, b->list + (uint64_t)i * b->size, b->size))
        return 0;
    b->n = 0;
    return -XEN_EFAULT;
}

/* Where a list call stands: `i` of `count` done now, `done` before a preemption. */
struct progress {
    uint32_t count, i, done;
    uint64_t pdone;
};

static void progress_begin(struct progress *p, uint64_t count, uint64_t pdone)
{
    *p = (struct progress){.count = (uint32_t)count, .pdone = pdone};
    if (!(p->count & MMU_UPDATE_PREEMPTED))
        return;
    p->count &= ~MMU_UPDATE_PREEMPTED;
    if (pdone && copy_from_guest(&p->done, pdone, sizeof(p->done)))
        p->done = 0;
}

static int64_t progress_end(const struct progress *p, unsigned nr, struct batch *b, uint64_t foreigndom, int rc)
{
    uint32_t done = p->done + p->i;
    int64_t ret = rc;

    if (rc == -XEN_ERESTART)
        ret = hypercall_continue(nr, 4, b->list + (uint64_t)p->i * b->size,
                                 (uint64_t)((p->count - p->i) | MMU_UPDATE_PREEMPTED), p->pdone, foreigndom);
    if (p->pdone)
        copy_to_guest(p->pdone, &done, sizeof(done));
    return ret;
}

static bool must_stop(uint32_t i)
{
    return i && i % PREEMPT_EVERY == 0 && hypercall_preempt_check();
}

int64_t do_mmu_update(struct vcpu *curr, struct domain *caller, uint64_t ureqs, uint64_t count, uint64_t pdone,
                      uint64_t foreigndom)
{
    struct mmu_update req[BATCH];
    struct batch b = {.list = ureqs, .size = sizeof(req[0])};
    struct update_owners o;
    struct progress p;
    int rc;

    rc = get_update_owners(caller, (uint32_t)foreigndom, &o);
    if (!rc && !(may_act_on(caller, o.pt) && may_act_on(caller, o.pg)))
        rc = -XEN_EPERM;
    if (rc) {
        put_update_owners(&o);
        return rc;
    }
    progress_begin(&p, count, pdone);
    owner_lock(o.pg, curr);
    for (; !rc && p.i < p.count; p.i += !rc) {
        if (must_stop(p.i))
            rc = -XEN_ERESTART;
        else
            rc = batch_get(&b, req, p.i, p.count);
        if (!rc)
            rc = update_one(caller, &o, req[p.i - b.first]);
    }
    owner_unlock(o.pg, curr);
    put_update_owners(&o);
    return progress_end(&p, __HYPERVISOR_mmu_update, &b, foreigndom, rc);
}

/* ---- pins and CR3 ----------------------------------------------------------------------------------------------- */

static int pin_table(struct domain *d, gfn_t gfn, enum page_type type)
{
    struct page_info *pg = get_page_from_gfn(d, gfn);
    int rc;

    if (!pg)
        return -XEN_EINVAL;
    rc = atomic_load(&d->dying) ? -XEN_EINVAL : get_page_type(d, pg, type);
    if (!rc && pg->pinned) {
        put_page_type(d, pg);
        rc = -XEN_EINVAL;
    }
    if (rc) {
        put_page(d->hv, pg);
        return rc;
    }
    pg->pinned = true;
    return 0;
}

static int unpin_table(struct domain *d, gfn_t gfn)
{
    struct page_info *pg = get_page_from_gfn(d, gfn);
    int rc = -XEN_EINVAL;

    if (!pg)
        return rc;
    if (pg->pinned) {
        pg->pinned = false;
        put_page_and_type(d, pg);
        rc = 0;
    }
    put_page(d->hv, pg);
    return rc;
}

/* Takes the references that a CR3 holds. INVALID_GFN: none. */
static int get_root(struct domain *d, gfn_t l4)
{
    struct page_info *pg;
    int rc;

    if (gfn_eq(l4, INVALID_GFN))
        return 0;
    pg = get_page_from_gfn(d, l4);
    if (!pg)
        return -XEN_EINVAL;
    rc = get_page_type(d, pg, PGT_l4_page_table);
    if (rc)
        put_page(d->hv, pg);
    return rc;
}

static void put_root(struct domain *d, gfn_t l4)
{
    if (!gfn_eq(l4, INVALID_GFN))
        put_page_and_type(d, mfn_to_page(d->hv, physmap_lookup(&d->physmap, l4, NULL)));
}

static int switch_root(struct vcpu *v, bool user, gfn_t l4)
{
    gfn_t *root = user ? &v->pv.user_l4 : &v->pv.kernel_l4, old = *root;
    int rc = gfn_eq(old, l4) ? 0 : get_root(v->domain, l4);

    if (rc)
        return rc;
    *root = l4;
    if (v->engine)
        engine()->set_cr3(v, user, gfn_x(l4));
    if (!gfn_eq(old, l4))
        put_root(v->domain, old);
    return 0;
}

int pv_set_cr3(struct vcpu *v, gfn_t kernel_l4, gfn_t user_l4)
{
    gfn_t old = v->pv.kernel_l4;
    int rc = get_root(v->domain, old); /* so that going back can't fail */

    if (rc)
        return rc;
    rc = switch_root(v, false, kernel_l4);
    if (!rc) {
        rc = switch_root(v, true, user_l4);
        if (rc)
            switch_root(v, false, old);
    }
    put_root(v->domain, old);
    return rc;
}

void pv_drop_tables(struct vcpu *v)
{
    gfn_t kernel_l4 = v->pv.kernel_l4, user_l4 = v->pv.user_l4;

    v->pv.kernel_l4 = v->pv.user_l4 = INVALID_GFN;
    put_root(v->domain, kernel_l4);
    put_root(v->domain, user_l4);
}

/* ---- mmuext_op -------------------------------------------------------------------------------------------------- */

/* Addresses that are the guest's own. */
static bool is_guest_vaddr(uint64_t vaddr)
{
    return is_canonical(vaddr) && (vaddr < HYPERVISOR_VIRT_START || vaddr >= HYPERVISOR_VIRT_END);
}

struct flush {
    bool one_page;
    uint64_t vaddr;
};

static void flush_vcpu(struct vcpu *curr, struct vcpu *v, const struct flush *f)
{
    struct domain *d = curr->domain;

    if (!f->one_page)
        engine()->flush_tlb(d, curr, v, FLUSH_ALL);
    else if (is_guest_vaddr(f->vaddr))
        engine()->flush_page(d, curr, v, f->vaddr);
}

/* Flushes the vCPUs of a bitmap in guest memory, as long as the domain has vCPUs. */
static int flush_mask(struct vcpu *curr, uint64_t mask, const struct flush *f)
{
    struct domain *d = curr->domain;
    uint64_t bits = 0;

    for (uint32_t id = 0; id < d->max_vcpus; id++) {
        if (id % 64 == 0 && copy_from_guest(&bits, mask + id / 8, sizeof(bits)))
            return -XEN_EFAULT;
        if ((bits >> id % 64 & 1) && d->vcpu[id])
            flush_vcpu(curr, d->vcpu[id], f);
    }
    return 0;
}

static int set_ldt(struct vcpu *v, uint64_t base, uint32_t entries)
{
    if (!entries)
        base = 0;
    if (entries > MAX_LDT_ENTRIES || (base & (PAGE_SIZE - 1)) || !is_guest_vaddr(base))
        return -XEN_EINVAL;
    v->pv.ldt_base = base;
    v->pv.ldt_entries = entries;
    return 0;
}

static int clear_page(struct domain *d, gfn_t gfn)
{
    struct page_info *pg = get_writable_page(d, gfn);

    if (!pg)
        return -XEN_EINVAL;
    memset(mfn_to_virt(d->hv, page_to_mfn(d->hv, pg)), 0, PAGE_SIZE);
    put_page_and_type(d, pg);
    return 0;
}

static int copy_page(struct domain *d, gfn_t to, gfn_t from)
{
    struct page_info *src = get_page_from_gfn(d, from), *dst;

    if (!src)
        return -XEN_EINVAL;
    dst = get_writable_page(d, to);
    if (dst) {
        memmove(mfn_to_virt(d->hv, page_to_mfn(d->hv, dst)), mfn_to_virt(d->hv, page_to_mfn(d->hv, src)), PAGE_SIZE);
        put_page_and_type(d, dst);
    }
    put_page(d->hv, src);
    return dst ? 0 : -XEN_EINVAL;
}

/* Operations on the caller's own address space. */
static int mmuext_self(struct vcpu *curr, const struct mmuext_op *op)
{
    gfn_t gfn = _gfn(op->arg1.mfn);
    struct flush all = {0}, one = {.one_page = true, .vaddr = op->arg1.linear_addr};
    int rc;

    switch (op->cmd) {
    case MMUEXT_NEW_BASEPTR:
        return gfn_eq(gfn, INVALID_GFN) ? -XEN_EINVAL : switch_root(curr, false, gfn);
    case MMUEXT_NEW_USER_BASEPTR:
        if (gfn_eq(gfn, INVALID_GFN))
            return -XEN_EINVAL;
        gfn = gfn_x(gfn) ? gfn : INVALID_GFN;
        return gfn_eq(gfn, curr->pv.user_l4) ? 0 : switch_root(curr, true, gfn);
    case MMUEXT_TLB_FLUSH_LOCAL:
        flush_vcpu(curr, curr, &all);
        return 0;
    case MMUEXT_INVLPG_LOCAL:
        flush_vcpu(curr, curr, &one);
        return 0;
    case MMUEXT_TLB_FLUSH_ALL:
        flush_vcpu(curr, NULL, &all);
        return 0;
    case MMUEXT_INVLPG_ALL:
        flush_vcpu(curr, NULL, &one);
        return 0;
    case MMUEXT_TLB_FLUSH_MULTI:
    case MMUEXT_INVLPG_MULTI:
        rc = flush_mask(curr, op->arg2.vcpumask, op->cmd == MMUEXT_INVLPG_MULTI ? &one : &all);
        return rc ? -XEN_EINVAL : 0;
    case MMUEXT_FLUSH_CACHE: /* only of use with devices, which no domain has */
        return -XEN_EACCES;
    case MMUEXT_FLUSH_CACHE_GLOBAL:
        return -XEN_EINVAL;
    case MMUEXT_SET_LDT:
        return set_ldt(curr, op->arg1.linear_addr, op->arg2.nr_ents);
    default:
        return -XEN_ENOSYS;
    }
}

static int mmuext_one(struct vcpu *curr, struct domain *d, const struct mmuext_op *op)
{
    switch (op->cmd) {
    case MMUEXT_PIN_L1_TABLE:
    case MMUEXT_PIN_L2_TABLE:
    case MMUEXT_PIN_L3_TABLE:
    case MMUEXT_PIN_L4_TABLE:
        return pin_table(d, _gfn(op->arg1.mfn), (enum page_type)(PGT_l1_page_table + op->cmd - MMUEXT_PIN_L1_TABLE));
    case MMUEXT_UNPIN_TABLE:
        return unpin_table(d, _gfn(op->arg1.mfn));
    case MMUEXT_CLEAR_PAGE:
        return clear_page(d, _gfn(op->arg1.mfn));
    case MMUEXT_COPY_PAGE:
        return copy_page(d, _gfn(op->arg1.mfn), _gfn(op->arg2.src_mfn));
    case MMUEXT_MARK_SUPER:
    case MMUEXT_UNMARK_SUPER:
        return -XEN_EOPNOTSUPP;
    default:
        return curr && curr->domain == d ? mmuext_self(curr, op) : -XEN_EPERM;
    }
}

int64_t do_mmuext_op(struct vcpu *curr, struct domain *caller, uint64_t uops, uint64_t count, uint64_t pdone,
                     uint64_t foreigndom)
{
    struct mmuext_op op[BATCH];
    struct batch b = {.list = uops, .size = sizeof(op[0])};
    struct domain *d = get_pg_owner(caller, (uint16_t)foreigndom);
    struct progress p;
    int rc = 0;

    if (!d)
        return -XEN_ESRCH;
    if (d->kind != DOMAIN_PV || !may_act_on(caller, d)) {
        rc = d->kind != DOMAIN_PV ? -XEN_EINVAL : -XEN_EPERM;
        put_domain(d);
        return rc;
    }
    progress_begin(&p, count, pdone);
    owner_lock(d, curr);
    for (; !rc && p.i < p.count; p.i += !rc) {
        if (must_stop(p.i))
            rc = -XEN_ERESTART;
        else
            rc = batch_get(&b, op, p.i, p.count);
        if (!rc)
            rc = mmuext_one(curr, d, &op[p.i - b.first]);
    }
    owner_unlock(d, curr);
    put_domain(d);
    return progress_end(&p, __HYPERVISOR_mmuext_op, &b, foreigndom, rc);
}

/* ---- entries by address ----------------------------------------------------------------------------------------- */

/* The L1 entry for an address in the current kernel address space, and the frame it lies in; NULL: there is none. */
static uint64_t *find_l1e(struct vcpu *v, uint64_t vaddr, struct page_info **table)
{
    struct domain *d = v->domain;
    gfn_t gfn = v->pv.kernel_l4;

    if (!is_guest_vaddr(vaddr) || gfn_eq(gfn, INVALID_GFN))
        return NULL;
    for (unsigned level = 4;; level--) {
        mfn_t mfn = physmap_lookup(&d->physmap, gfn, NULL);
        uint64_t *entry, pte;

        ASSERT(!mfn_eq(mfn, INVALID_MFN)); /* the entry above holds it */
        entry = (uint64_t *)mfn_to_virt(d->hv, mfn) + (vaddr >> (PAGE_SHIFT + 9 * (level - 1)) & 511);
        if (level == 1) {
            *table = mfn_to_page(d->hv, mfn);
            return entry;
        }
        pte = __atomic_load_n(entry, __ATOMIC_RELAXED);
        if (!(pte & PTE_PRESENT))
            return NULL;
        gfn = pte_gfn(pte);
    }
}

static int flush_after_update(struct vcpu *curr, uint64_t vaddr, uint64_t flags)
{
    struct flush f = {.one_page = (flags & UVMF_FLUSHTYPE_MASK) == UVMF_INVLPG, .vaddr = vaddr};
    uint64_t whom = flags & ~(uint64_t)UVMF_FLUSHTYPE_MASK;

    if (!f.one_page && (flags & UVMF_FLUSHTYPE_MASK) != UVMF_TLB_FLUSH)
        return 0;
    if (whom != UVMF_LOCAL && whom != UVMF_ALL)
        return flush_mask(curr, whom, &f);
    flush_vcpu(curr, whom == UVMF_ALL ? NULL : curr, &f);
    return 0;
}

int64_t do_update_va_mapping(struct vcpu *curr, uint64_t va, uint64_t val, uint64_t flags)
{
    struct domain *d = curr->domain;
    struct page_info *table;
    uint64_t *entry;
    int rc;

    domain_lock(d, curr);
    entry = find_l1e(curr, va, &table);
    rc = entry ? mod_page_table_entry(d, curr, table, entry, val, false) : -XEN_EINVAL;
    if (!rc)
        rc = flush_after_update(curr, va, flags);
    domain_unlock(d, curr);
    return rc;
}

/* The entry of an L1 table that a write to `vaddr` would change, when `vaddr` is mapped read-only to one. */
static uint64_t *find_written_entry(struct vcpu *v, uint64_t vaddr, unsigned bytes, struct page_info **table)
{
    struct domain *d = v->domain;
    uint64_t *l1e, pte;
    mfn_t mfn;

    if ((bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8) || (vaddr & (bytes - 1)) ||
        (v->cpu && v->cpu->user_mode))
        return NULL;
    l1e = find_l1e(v, vaddr, table);
    if (!l1e)
        return NULL;
    pte = __atomic_load_n(l1e, __ATOMIC_RELAXED);
    if ((pte & (PTE_PRESENT | PTE_RW)) != PTE_PRESENT)
        return NULL;
    mfn = physmap_lookup(&d->physmap, pte_gfn(pte), NULL);
    ASSERT(!mfn_eq(mfn, INVALID_MFN));
    *table = mfn_to_page(d->hv, mfn);
    if (!(*table)->type_count || (*table)->type != PGT_l1_page_table || (*table)->owner != d->id)
        return NULL;
    return (uint64_t *)mfn_to_virt(d->hv, mfn) + (vaddr & (PAGE_SIZE - 1)) / sizeof(uint64_t);
}

/* `val` put over the bytes of `full` that a write of `bytes` at `vaddr` covers. */
static uint64_t merge(uint64_t full, uint64_t val, uint64_t vaddr, unsigned bytes)
{
    unsigned shift = (vaddr & 7) * 8;
    uint64_t mask = (bytes == 8 ? ~0ull : (1ull << bytes * 8) - 1) << shift;

    return (full & ~mask) | (val << shift & mask);
}

bool pv_ptwr_write(struct vcpu *curr, uint64_t vaddr, uint64_t val, unsigned bytes)
{
    struct domain *d = curr->domain;
    struct page_info *table;
    uint64_t *entry = find_written_entry(curr, vaddr, bytes, &table);

    if (!entry)
        return false;
    val = merge(__atomic_load_n(entry, __ATOMIC_RELAXED), val, vaddr, bytes);
    return !mod_page_table_entry(d, curr, table, entry, val, false);
}

/* ---- descriptor tables ------------------------------------------------------------------------------------------ */

void pv_drop_gdt(struct vcpu *v)
{
    struct domain *d = v->domain;

    v->pv.gdt_entries = 0;
    for (unsigned i = 0; i < NR_GDT_FRAMES; i++) {
        mfn_t mfn = v->pv.gdt_frame[i];

        v->pv.gdt_frame[i] = INVALID_MFN;
        if (!mfn_eq(mfn, INVALID_MFN))
            put_page_and_type(d, mfn_to_page(d->hv, mfn));
    }
}

int pv_set_gdt_frames(struct vcpu *v, const uint64_t *gfns, unsigned entries)
{
    struct domain *d = v->domain;
    struct page_info *pg[NR_GDT_FRAMES];
    unsigned n = DIV_ROUND_UP(entries, GDT_ENTRIES_PER_FRAME), i;

    if (entries > FIRST_RESERVED_GDT_ENTRY)
        return -XEN_EINVAL;
    for (i = 0; i < n; i++) {
        pg[i] = get_page_from_gfn(d, _gfn(gfns[i]));
        if (pg[i] && !get_page_type(d, pg[i], PGT_seg_desc_page))
            continue;
        if (pg[i])
            put_page(d->hv, pg[i]);
        while (i--)
            put_page_and_type(d, pg[i]);
        return -XEN_EINVAL;
    }
    pv_drop_gdt(v);
    for (i = 0; i < n; i++)
        v->pv.gdt_frame[i] = page_to_mfn(d->hv, pg[i]);
    v->pv.gdt_entries = entries;
    return 0;
}

int64_t do_set_gdt(struct vcpu *curr, uint64_t frame_list, uint64_t entries)
{
    struct domain *d = curr->domain;
    uint64_t gfns[NR_GDT_FRAMES];
    uint32_t n = (uint32_t)entries;
    int rc;

    if (n > FIRST_RESERVED_GDT_ENTRY)
        return -XEN_EINVAL;
    if (n && copy_from_guest(gfns, frame_list, DIV_ROUND_UP(n, GDT_ENTRIES_PER_FRAME) * sizeof(gfns[0])))
        return -XEN_EFAULT;
    domain_lock(d, curr);
    rc = pv_set_gdt_frames(curr, gfns, n);
    domain_unlock(d, curr);
    return rc;
}

/* A descriptor goes into a table in use, or into any frame that may be written to. */
static int store_descriptor(struct domain *d, struct page_info *pg, uint64_t offset, uint64_t descriptor)
{
    enum page_type type = pg->type_count && pg->type == PGT_seg_desc_page ? PGT_seg_desc_page : PGT_writable_page;
    int rc = pg->flags & PGC_xen_heap ? -XEN_EINVAL : get_page_type(d, pg, type);

    if (rc)
        return rc;
    if (pg->flags & PGC_code)
        engine()->frame_written(d, current_of(d), pg);
    __atomic_store_n((uint64_t *)((char *)mfn_to_virt(d->hv, page_to_mfn(d->hv, pg)) + offset), descriptor,
                     __ATOMIC_RELAXED);
    put_page_type(d, pg);
    return 0;
}

int64_t do_update_descriptor(struct vcpu *curr, uint64_t gaddr, uint64_t desc)
{
    struct domain *d = curr->domain;
    struct page_info *pg;
    int rc = -XEN_EINVAL;

    if ((gaddr & 7) || !check_descriptor(&desc))
        return rc;
    domain_lock(d, curr);
    pg = get_page_from_gfn(d, _gfn(gaddr >> PAGE_SHIFT));
    if (pg) {
        rc = store_descriptor(d, pg, gaddr & (PAGE_SIZE - 1), desc);
        put_page(d->hv, pg);
    }
    domain_unlock(d, curr);
    return rc ? -XEN_EINVAL : 0;
}
