/*
 * Page types: what keeps a PV guest inside its own memory.
 *
 * A guest writes its own page tables, so every entry that the MMU may follow is checked before it counts. Each frame has
 * at most one type at a time, with a count of uses: writable (one per writable entry), page table of level 1 to 4 (one
 * per entry of the level above, per CR3, per pin) or descriptor table. As the types exclude each other, no table can be
 * written but through here. Entries hold what they name: an L1 entry one general reference, and one of
 * PGT_writable_page when it is writable; an entry of level n one general reference and one of the type of level n - 1.
 *
 * A table is validated when it gets its first reference of its type, and devalidated, giving all of that back, with the
 * last. The recursion is at most four deep. As no table may refer to one of its own level or above, there are no cycles.
 * For a domain being torn down devalidation is put off instead (frame_is_pending), so that it can be done in small pieces.
 *
 * Entries' accessed and dirty bits are set by running vCPUs meanwhile, without the lock: entries in use are exchanged.
 * All else here is under the domain lock.
 *
 * Soft TLBs remember translations. A guest flushes those that it made stale, or harms only itself, but it must not keep
 * the right to write to a frame that became a page table, so getting such a type revokes write tags. A fill that is
 * under way in another vCPU notes its tag first and then looks at mm_generation and the type; we change those first and
 * then look at the tag.
 */
#include "hypercall.h"
#include "machine.h"

#define NR_ENTRIES 512
#define MAX_TYPE_COUNT 0x80000000u
#define PTE_CACHE (PTE_PWT | PTE_PCD | PTE_PSE) /* bit 7 of an L1 entry is PAT */
#define L1_DISALLOW PTE_CACHE /* a domain without devices has nothing to map uncached */
#define TABLE_DISALLOW (PTE_CACHE | PTE_GLOBAL)
#define IS_TABLE(type) ((type) >= PGT_l1_page_table && (type) <= PGT_l4_page_table)
/* The hypervisor's part of an L4 table. */
#define FIRST_XEN_SLOT 256
#define LAST_XEN_SLOT 271

_Static_assert(PGT_l1_page_table == 1 && PGT_l4_page_table == 4, "a table's type is its level");

struct vcpu *current_of(const struct domain *d)
{
    struct vcpu *v = current_caller.vcpu;

    return v && v->domain == d ? v : NULL;
}

static bool is_xen_slot(unsigned level, unsigned slot)
{
    return level == 4 && slot >= FIRST_XEN_SLOT && slot <= LAST_XEN_SLOT;
}

/* The frame that an entry of a validated table names: it holds a reference, so it is there. */
static struct page_info *pte_page(const struct domain *d, uint64_t pte)
{
    mfn_t mfn = physmap_lookup(&d->physmap, pte_gfn(pte), NULL);

    ASSERT(!mfn_eq(mfn, INVALID_MFN));
    return &d->hv->frame_table[mfn_x(mfn)];
}

/* ---- what entries hold ------------------------------------------------------------------------------------------ */

static bool pte_holds_writable(const struct page_info *pg, uint64_t pte)
{
    return (pte & PTE_RW) && !(pg->flags & PGC_xen_heap);
}

static int get_page_from_l1e(struct domain *d, uint64_t pte)
{
    struct page_info *pg;

    if (pte & L1_DISALLOW)
        return -XEN_EINVAL;
    pg = get_page_from_gfn(d, pte_gfn(pte));
    if (!pg) { /* another domain's frame, or a device's */
        if ((pte & PTE_ADDR) == PTE_ADDR)
            return -XEN_EINVAL;
        return mfn_valid(d->hv, _mfn(gfn_x(pte_gfn(pte)))) ? -XEN_EBUSY : -XEN_EPERM;
    }
    if (pte_holds_writable(pg, pte) && get_page_type(d, pg, PGT_writable_page)) {
        put_page(d->hv, pg);
        return -XEN_EBUSY;
    }
    return 0;
}

static void put_page_from_l1e(struct domain *d, uint64_t pte)
{
    struct page_info *pg = pte_page(d, pte);

    if (pte_holds_writable(pg, pte))
        put_page_type(d, pg);
    put_page(d->hv, pg);
}

static int get_page_from_table_entry(struct domain *d, uint64_t pte, unsigned level)
{
    struct page_info *pg;
    int rc;

    if (pte & TABLE_DISALLOW)
        return -XEN_EINVAL;
    pg = get_page_from_gfn(d, pte_gfn(pte));
    if (!pg)
        return -XEN_EINVAL;
    rc = get_page_type(d, pg, (enum page_type)(level - 1));
    if (rc)
        put_page(d->hv, pg);
    return rc;
}

static int get_page_from_entry(struct domain *d, uint64_t pte, unsigned level)
{
    return level == 1 ? get_page_from_l1e(d, pte) : get_page_from_table_entry(d, pte, level);
}

static void put_page_from_entry(struct domain *d, uint64_t pte, unsigned level)
{
    if (level == 1)
        put_page_from_l1e(d, pte);
    else
        put_page_and_type(d, pte_page(d, pte));
}

/* ---- tables ----------------------------------------------------------------------------------------------------- */

/* Drops what the first `n` entries hold. */
static void put_entries(struct domain *d, const uint64_t *table, unsigned level, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint64_t pte = __atomic_load_n(&table[i], __ATOMIC_RELAXED);

        if ((pte & PTE_PRESENT) && !is_xen_slot(level, i))
            put_page_from_entry(d, pte, level);
    }
}

/* Entries of a new table. The guest's kernel runs at CPL 3 as its processes do, so every entry is a user's one. */
static int validate_table(struct domain *d, uint64_t *table, unsigned level)
{
    for (unsigned i = 0; i < NR_ENTRIES; i++) {
        uint64_t pte = table[i];
        int rc;

        if (is_xen_slot(level, i)) {
            table[i] = 0;
            continue;
        }
        if (!(pte & PTE_PRESENT))
            continue;
        rc = get_page_from_entry(d, pte, level);
        if (rc) {
            put_entries(d, table, level, i);
            return rc;
        }
        if (!(pte & PTE_USER))
            table[i] = pte | PTE_USER;
    }
    return 0;
}

/* A present descriptor may be code, data or a call gate. Segments get DPL 3, where the guest's kernel runs; a gate gets
 * DPL 0, so that using it faults, and keeps its own in the selector's RPL. False: refused. */
bool check_descriptor(uint64_t *descriptor)
{
    enum { TYPE_S = 0x1f00, DPL = 0x6000, PRESENT = 0x8000, S = 0x1000, CALL_GATE = 0xc00 };
    uint32_t low = (uint32_t)*descriptor, high = (uint32_t)(*descriptor >> 32);
    uint32_t dpl = (high & DPL) >> 13, selector = low >> 16;

    if (!(high & PRESENT))
        return true;
    if (high & S) {
        *descriptor |= (uint64_t)DPL << 32;
        return true;
    }
    if (!(high & TYPE_S)) /* the second half of a gate */
        return true;
    if ((high & TYPE_S) != CALL_GATE || (high & 0xff))
        return false;
    if (selector >> 3 >= FIRST_RESERVED_GDT_ENTRY && selector != FLAT_KERNEL_CS && !(selector & 4))
        return false;
    if (dpl < 3)
        dpl = 3;
    high &= ~(uint32_t)DPL;
    low = (low & 0xffff) | ((selector & ~3u) | dpl) << 16;
    *descriptor = (uint64_t)high << 32 | low;
    return true;
}

static int validate_descriptors(uint64_t *table)
{
    for (unsigned i = 0; i < NR_ENTRIES; i++) {
        uint64_t descriptor = table[i];

        if (!check_descriptor(&descriptor))
            return -XEN_EINVAL;
        if (descriptor != table[i])
            table[i] = descriptor;
    }
    return 0;
}

static int validate(struct domain *d, struct page_info *pg)
{
    uint64_t *table = mfn_to_virt(d->hv, page_to_mfn(d->hv, pg));

    if (pg->flags & PGC_code) /* entries may be changed here */
        engine()->frame_written(d, current_of(d), pg);
    return pg->type == PGT_seg_desc_page ? validate_descriptors(table) : validate_table(d, table, pg->type);
}

/* ---- types ------------------------------------------------------------------------------------------------------ */

/* A table of a dying domain that lost its last reference and is still to be devalidated; holds a general reference. */
static bool frame_is_pending(const struct page_info *pg)
{
    return !pg->type_count && pg->validated;
}

/* A fill in another vCPU reads both without the lock: the count says whether the type means anything. */
static void set_type(struct page_info *pg, enum page_type type, uint32_t count)
{
    if (!count)
        __atomic_store_n(&pg->type_count, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&pg->type, (uint8_t)type, __ATOMIC_RELEASE);
    if (count)
        __atomic_store_n(&pg->type_count, count, __ATOMIC_RELEASE);
}

/* The first reference: the frame changes its type. */
static int take_type(struct domain *d, struct page_info *pg, enum page_type type)
{
    int rc = 0;

    if (pg->flags & PGC_xen_heap || frame_is_pending(pg))
        return -XEN_EINVAL;
    set_type(pg, type, 1);
    if (type == PGT_writable_page || type == PGT_shared_page)
        return 0;
    atomic_thread_fence(memory_order_seq_cst);
    if (__atomic_load_n(&pg->write_tag, __ATOMIC_RELAXED))
        engine()->revoke_frame(d, current_of(d), pg, false);
    rc = validate(d, pg);
    if (rc) {
        set_type(pg, PGT_none, 0);
        return rc;
    }
    pg->validated = true;
    return 0;
}

int get_page_type(struct domain *d, struct page_info *pg, enum page_type type)
{
    if (likely(pg->type_count)) {
        if (pg->type != type || pg->type_count >= MAX_TYPE_COUNT)
            return -XEN_EINVAL;
        pg->type_count++;
        return 0;
    }
    return take_type(d, pg, type);
}

static void devalidate(struct domain *d, struct page_info *pg)
{
    if (IS_TABLE(pg->type))
        put_entries(d, mfn_to_virt(d->hv, page_to_mfn(d->hv, pg)), pg->type, NR_ENTRIES);
    pg->validated = false;
    pg->type = PGT_none;
}

void put_page_type(struct domain *d, struct page_info *pg)
{
    ASSERT(pg->type_count);
    if (likely(pg->type_count > 1)) {
        pg->type_count--;
        return;
    }
    if (pg->type == PGT_writable_page)
        atomic_fetch_add(&d->mm_generation, 1);
    if (!pg->validated) {
        set_type(pg, PGT_none, 0);
        return;
    }
    pg->type_count = 0;
    if (d->relinquish_cursor) {
        atomic_fetch_add(&pg->count, 1);
    } else {
        devalidate(d, pg);
    }
}

int get_page_and_type(struct domain *d, struct page_info *pg, enum page_type type)
{
    int rc;

    if (!get_page(pg, d))
        return -XEN_EINVAL;
    rc = get_page_type(d, pg, type);
    if (rc)
        put_page(d->hv, pg);
    return rc;
}

void put_page_and_type(struct domain *d, struct page_info *pg)
{
    put_page_type(d, pg);
    put_page(d->hv, pg);
}

/* ---- changing an entry ------------------------------------------------------------------------------------------ */

/* The engine cuts jumps into code that can no longer be reached through this entry. */
static void unmap_code(struct domain *d, struct vcpu *curr, struct page_info *table, unsigned slot, uint64_t pte)
{
    struct page_info *pg = pte_page(d, pte);

    if (pte & PTE_NX)
        return;
    if (table->type > PGT_l1_page_table)
        engine()->unmap_tables(d, curr, table, slot);
    else if (pg->flags & PGC_code)
        engine()->unmap_code(d, curr, pg);
}

/* Puts a new value in and returns what it replaced. */
static uint64_t entry_store(uint64_t *ptr, uint64_t val, bool preserve_ad)
{
    uint64_t old;

    if (!preserve_ad)
        return __atomic_exchange_n(ptr, val, __ATOMIC_SEQ_CST);
    old = __atomic_load_n(ptr, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(ptr, &old, val | (old & (PTE_ACCESSED | PTE_DIRTY)), false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST))
        ;
    return old;
}

/* True when both name the same frame in the same way, so that the new entry needs no other references. */
static bool holds_the_same(uint64_t old, uint64_t new, unsigned level)
{
    return !((old ^ new) & (PTE_ADDR | PTE_PRESENT | (level == 1 ? PTE_RW : 0)));
}

int mod_page_table_entry(struct domain *d, struct vcpu *curr, struct page_info *pg, uint64_t *ptr, uint64_t val,
                         bool preserve_ad)
{
    unsigned level = pg->type, slot = ((uintptr_t)ptr & (PAGE_SIZE - 1)) / sizeof(uint64_t);
    uint64_t old = __atomic_load_n(ptr, __ATOMIC_RELAXED); /* only its A and D bits may change under the lock */
    bool fast = false;
    int rc;

    if (is_xen_slot(level, slot))
        return -XEN_EINVAL;
    if (val & PTE_PRESENT) {
        if (val & (level == 1 ? L1_DISALLOW : TABLE_DISALLOW))
            return -XEN_EINVAL;
        val |= PTE_USER;
        fast = holds_the_same(old, val, level);
        rc = fast ? 0 : get_page_from_entry(d, val, level);
        if (rc)
            return rc;
    }
    if (pg->flags & PGC_code)
        engine()->frame_written(d, curr, pg);
    old = entry_store(ptr, val, preserve_ad);
    if (old & PTE_PRESENT) {
        if (!fast || ((old ^ val) & PTE_NX))
            unmap_code(d, curr, pg, slot, old);
        if (!fast)
            put_page_from_entry(d, old, level);
    }
    return 0;
}

/* ---- the end of a domain ---------------------------------------------------------------------------------------- *
 * Its page list is turned round: what is at the head is unpinned, loses the domain's own reference, is devalidated when
 * it waits for that, and goes to the end unless it is gone. Turns follow until one finds nothing to devalidate: one per
 * level of tables. relinquish_cursor: bit 0 says that teardown has begun, bit 1 that this turn has found something, the
 * rest counts the frames left in this turn. */

#define RELINQUISH_BUDGET 512
#define RELINQUISH_TABLE_COST 128

static struct page_info *page_list_rotate(struct domain *d)
{
    struct hv *hv = d->hv;
    struct page_info *pg = NULL, *last;

    lock(&hv->heap_lock);
    if (d->page_list) {
        uint32_t mfn = d->page_list;

        pg = &hv->frame_table[mfn];
        if (pg->next) {
            last = &hv->frame_table[pg->prev];
            d->page_list = pg->next;
            last->next = mfn;
            pg->next = 0;
            hv->frame_table[d->page_list].prev = mfn;
            pg->prev = (uint32_t)mfn_x(page_to_mfn(hv, last));
        }
    }
    unlock(&hv->heap_lock);
    return pg;
}

/* Returns what it cost. */
static unsigned relinquish_frame(struct domain *d, struct page_info *pg)
{
    bool allocated = pg->flags & PGC_allocated; /* then it stays until that reference goes */
    unsigned cost = 1;

    if (pg->pinned) {
        pg->pinned = false;
        put_page_and_type(d, pg);
    }
    if (frame_is_pending(pg)) {
        devalidate(d, pg);
        cost = RELINQUISH_TABLE_COST;
        d->relinquish_cursor |= 2;
        put_page(d->hv, pg);
    }
    if (allocated) {
        __atomic_and_fetch(&pg->flags, ~(uint32_t)PGC_allocated, __ATOMIC_RELAXED);
        put_page(d->hv, pg);
    }
    return cost;
}

static void relinquish_begin(struct domain *d)
{
    d->relinquish_cursor = 1;
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->kind == DOMAIN_PV) {
            pv_drop_tables(d->vcpu[i]);
            pv_drop_gdt(d->vcpu[i]);
        }
    d->relinquish_cursor += (int64_t)d->tot_pages << 2;
}

int domain_relinquish_memory(struct domain *d)
{
    int budget = RELINQUISH_BUDGET;
    bool more = true;

    domain_lock(d, NULL);
    if (!d->relinquish_cursor)
        relinquish_begin(d);
    while (more && budget > 0) {
        struct page_info *pg = d->relinquish_cursor >> 2 ? page_list_rotate(d) : NULL;

        if (pg) {
            budget -= (int)relinquish_frame(d, pg);
            d->relinquish_cursor -= 4;
        } else {
            more = d->page_list && (d->relinquish_cursor & 2);
            d->relinquish_cursor = 1 + (more ? (int64_t)d->tot_pages << 2 : 0);
        }
    }
    domain_unlock(d, NULL);
    return more ? -XEN_ERESTART : 0;
}
