/*
 * The guest's memory as its instructions see it: the walk of its page tables through the physmap, the soft TLB in front,
 * and the flushes.
 *
 * The walk takes no lock. It is safe because its user is in_guest: a frame leaves the domain, or becomes a page table,
 * only after the vCPUs that may still reach it were quiesced and their TLB entries dropped (revoke_frame). For stores the
 * frame's write_tag tells revoke_frame whom to ask; it is set before the last look at the page tables' generation and at
 * the frame's type, and whoever changes those looks at write_tag afterwards: one of the two sees the other.
 *
 * No vector registers here: generated code calls in with the guest's in place.
 */
#pragma GCC target("general-regs-only")
#include "cpu/dbt/dbt.h"

/* ---- walk ------------------------------------------------------------------------------------------------------- */

static uint8_t *walk_fault(struct engine_vcpu *e, uint64_t vaddr, enum access_kind kind, bool present)
{
    e->cpu.fault_vaddr = vaddr;
    e->cpu.fault_error = (present ? 1 : 0) | (kind == ACCESS_WRITE ? 2 : 0) | (e->cpu.user_mode ? 4 : 0) |
                         (kind == ACCESS_FETCH ? 16 : 0);
    return NULL;
}

/* The hypervisor's part of the address space: the M2P table, read-only, and nothing else. */
static uint8_t *walk_hypervisor(struct engine_vcpu *e, uint64_t vaddr, enum access_kind kind)
{
    const uint8_t *page = m2p_page(e->vcpu->domain, vaddr);
    if (!page || kind != ACCESS_READ)
        return walk_fault(e, vaddr, kind, page != NULL);
    return (uint8_t *)page + (vaddr & ~PAGE_MASK);
}

static bool allowed(uint64_t pte, enum access_kind kind, uint64_t user_mode)
{
    return !(kind == ACCESS_WRITE && !(pte & PTE_RW)) && !(user_mode && !(pte & PTE_USER)) &&
           !(kind == ACCESS_FETCH && (pte & PTE_NX));
}

uint8_t *mmu_walk(struct engine_vcpu *e, uint64_t vaddr, enum access_kind kind, struct page_info **pg)
{
    struct domain *d = e->vcpu->domain;
    *pg = NULL;
    if (unlikely(!is_canonical(vaddr))) {
        e->cpu.fault_error = FAULT_NOT_CANONICAL;
        return NULL;
    }
    if (unlikely(vaddr >= HYPERVISOR_VIRT_START && vaddr < HYPERVISOR_VIRT_END))
        return walk_hypervisor(e, vaddr, kind);
    uint8_t *table = e->root[mode_index(e)];
    if (unlikely(!table))
        return walk_fault(e, vaddr, kind, false);
    for (int level = 3;; level--) {
        _Atomic uint64_t *entry = (_Atomic uint64_t *)table + ((vaddr >> (PAGE_SHIFT + 9 * level)) & 511);
        uint64_t pte = atomic_load_explicit(entry, memory_order_relaxed);
        uint64_t want = PTE_ACCESSED | (level == 0 && kind == ACCESS_WRITE ? PTE_DIRTY : 0);
        do {
            if (!(pte & PTE_PRESENT))
                return walk_fault(e, vaddr, kind, false);
            if (!allowed(pte, kind, e->cpu.user_mode))
                return walk_fault(e, vaddr, kind, true);
        } while ((pte & want) != want && !atomic_compare_exchange_weak(entry, &pte, pte | want));
        mfn_t mfn = physmap_lookup(&d->physmap, pte_gfn(pte), NULL);
        if (unlikely(mfn_eq(mfn, INVALID_MFN)))
            return walk_fault(e, vaddr, kind, false);
        table = frame_host(d->hv, mfn);
        if (level == 0) {
            *pg = frame_page(d->hv, mfn);
            return table + (vaddr & ~PAGE_MASK);
        }
    }
}

mfn_t mmu_fetch_frame(struct engine_vcpu *e, uint64_t pc)
{
    struct page_info *pg;
    uint8_t *host = mmu_walk(e, pc, ACCESS_FETCH, &pg);
    return host ? host_frame(engine_hv(e), host) : INVALID_MFN;
}

enum dbt_exit mmu_fault_exit(const struct engine_vcpu *e)
{
    if (e->cpu.fault_error == FAULT_NOT_CANONICAL || e->cpu.fault_error == FAULT_SEGMENT)
        return DBT_GP;
    if (e->cpu.fault_error == FAULT_STACK_SEGMENT)
        return DBT_STACK;
    bool alone = e->cpu.fault_error == FAULT_CODE_FRAME || e->cpu.fault_error == FAULT_WATCHED;
    return alone ? DBT_SPECIAL : DBT_PAGE_FAULT;
}

/* ---- filling ---------------------------------------------------------------------------------------------------- */

/* write_tag: bit 0 set; bit 1 several TLBs or addresses; bits 4-11 vCPU; from bit 12 the page's address. */
static uint64_t write_tag_of(const struct engine_vcpu *e, uint64_t vaddr)
{
    return page_of(vaddr) | (uint64_t)e->vcpu->id << 4 | 1;
}

static void note_write(struct engine_vcpu *e, struct page_info *pg, uint64_t vaddr)
{
    uint64_t mine = write_tag_of(e, vaddr), old = __atomic_load_n(&pg->write_tag, __ATOMIC_RELAXED);
    while (old != mine && !(old & 2))
        if (__atomic_compare_exchange_n(&pg->write_tag, &old, old ? old | 2 : mine, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED))
            break;
    atomic_thread_fence(memory_order_seq_cst);
}

/* May this frame be written through a TLB entry? Page tables and descriptor tables never; shared pages always. */
static bool frame_writable(const struct page_info *pg)
{
    uint32_t count = __atomic_load_n(&pg->type_count, __ATOMIC_RELAXED);
    uint8_t type = __atomic_load_n(&pg->type, __ATOMIC_RELAXED);
    return !count || type == PGT_writable_page || type == PGT_shared_page;
}

static void tlb_fill(struct engine_vcpu *e, uint64_t vaddr, uint8_t *host, bool write)
{
    unsigned mode = mode_index(e), i = tlb_index(vaddr);
    struct tlb_entry *t = &e->tlb[mode][i];
    uint64_t tag = -page_of(vaddr);
    if (watches_data(e) && watch_has_data(e, vaddr))
        return;
    e->stats.tlb_fills++;
    if (t->read_tag == tlb_no_tag(i) && e->nr_tlb_log[mode] < TLB_LOG)
        e->tlb_log[mode][e->nr_tlb_log[mode]++] = i;
    if (!mode && !(vaddr >> 63) && e->nr_low_log < TLB_LOW_LOG)
        e->low_log[e->nr_low_log++] = i;
    host -= vaddr & ~PAGE_MASK;
    if (t->read_tag != tag || t->host != host) {
        t->write_tag = tlb_no_tag(i);
        t->host = host;
        t->distance = (uint64_t)host + tag;
    }
    t->read_tag = tag;
    if (write)
        t->write_tag = tag;
}

/* The walk, and for stores the checks that make a write tag safe. NULL: a fault; code frames count as one unless
 * `code_ok` (then nothing is put into the TLB for them). */
static uint8_t *translate_address(struct engine_vcpu *e, uint64_t vaddr, bool write, bool code_ok)
{
    struct domain *d = e->vcpu->domain;
    struct page_info *pg;
    for (;;) {
        uint32_t generation = atomic_load(&d->mm_generation);
        uint8_t *host = mmu_walk(e, vaddr, write ? ACCESS_WRITE : ACCESS_READ, &pg);
        if (!host)
            return NULL;
        if (!write || !pg) {
            tlb_fill(e, vaddr, host, false);
            return host;
        }
        bool code = frame_has_code(pg); /* looked at once: a frame that loses its code meanwhile has no tag noted */
        if (!code)
            note_write(e, pg, vaddr);
        bool writable = frame_writable(pg);
        if (unlikely(atomic_load(&d->mm_generation) != generation))
            continue;
        if (unlikely(!writable))
            return walk_fault(e, vaddr, ACCESS_WRITE, true);
        if (code || frame_has_code(pg)) {
            if (code_ok)
                return host;
            e->cpu.fault_vaddr = vaddr;
            e->cpu.fault_error = FAULT_CODE_FRAME;
            return NULL;
        }
        tlb_fill(e, vaddr, host, true);
        return host;
    }
}

/* ---- what generated code asks for ------------------------------------------------------------------------------- */

static uint64_t leave(struct engine_vcpu *e, enum dbt_exit why)
{
    e->exit = why;
    return 0;
}

/* Through rsp or rbp a non-canonical address is #SS. */
static uint64_t leave_fault(struct engine_vcpu *e, uint64_t what)
{
    enum dbt_exit why = mmu_fault_exit(e);
    return leave(e, why == DBT_GP && (what & SLOW_STACK) ? DBT_STACK : why);
}

/* An operand over two pages: gathered in the bounce buffer, at the same alignment. */
static uint64_t bounce_crossing(struct engine_vcpu *e, uint64_t vaddr, uint64_t what)
{
    unsigned bytes = what & SLOW_SIZE;
    bool write = what & SLOW_WRITE;
    unsigned first = PAGE_SIZE - (vaddr & ~PAGE_MASK);
    uint8_t *to = e->bounce + (vaddr & 63);
    if (!is_canonical(vaddr + bytes - 1)) {
        e->cpu.fault_error = FAULT_NOT_CANONICAL;
        return leave_fault(e, what);
    }
    uint8_t *low = translate_address(e, vaddr, write, true);
    if (!low)
        return leave_fault(e, what);
    uint8_t *high = translate_address(e, next_page(e, vaddr), write, true);
    if (!high)
        return leave_fault(e, what);
    copy_plain(to, low, first);
    copy_plain(to + first, high, bytes - first);
    e->bounce_vaddr = vaddr;
    e->bounce_bytes = write ? bytes : 0;
    return (uint64_t)to;
}

/* The guest kernel writes to one of its page tables: HELP_COMMIT has the new value checked. The domain lock is held. */
static uint64_t bounce_page_table(struct engine_vcpu *e, uint64_t vaddr, unsigned bytes)
{
    struct page_info *pg;
    if (e->cpu.fault_error != 3 || bytes > 8 || (vaddr & 7) + bytes > 8)
        return leave(e, mmu_fault_exit(e));
    const uint8_t *host = mmu_walk(e, vaddr, ACCESS_READ, &pg);
    if (!host)
        return leave(e, mmu_fault_exit(e));
    uint8_t *to = e->bounce + (vaddr & 63);
    copy_plain(to, host, bytes);
    e->bounce_vaddr = vaddr;
    e->bounce_bytes = bytes;
    e->bounce_is_page_table = true;
    return (uint64_t)to;
}

static bool crosses_page(uint64_t vaddr, unsigned bytes) { return (vaddr & ~PAGE_MASK) + bytes > PAGE_SIZE; }

/* A range for several accesses. If the first of them can't be made its fault is reported, else the rest goes on one by one. */
static uint64_t slow_group(struct engine_vcpu *e, uint64_t vaddr, uint64_t what)
{
    uint64_t own = vaddr + (what >> SLOW_OWN_AT), own_what = what >> SLOW_OWN & 0xffff;
    if (watches_data(e) && watch_has_data(e, vaddr))
        return leave(e, DBT_GROUP); /* each access has to be looked at */
    if (!crosses_page(vaddr, what & SLOW_SIZE)) {
        uint8_t *host = translate_address(e, vaddr, what & SLOW_WRITE, false);
        if (host)
            return (uint64_t)host - vaddr + 1;
    }
    if (!crosses_page(own, own_what & SLOW_SIZE) && !translate_address(e, own, own_what & SLOW_WRITE, false))
        return leave_fault(e, what);
    return leave(e, DBT_GROUP);
}

uint64_t mmu_slow_access(struct engine_vcpu *e, uint64_t vaddr, uint64_t what)
{
    unsigned bytes = what & SLOW_SIZE;
    bool write = what & SLOW_WRITE, special = what & SLOW_SPECIAL;
    bool crosses = crosses_page(vaddr, bytes);
    if (what & SLOW_GROUP)
        return slow_group(e, vaddr, what);
    if (watches_data(e) && !watch_access(e, vaddr, bytes, write))
        return leave_fault(e, what);
    if (special) {
        e->bounce_bytes = 0;
        e->bounce_is_page_table = false;
    }
    if (crosses) {
        if (what & SLOW_MASKED)
            return leave(e, DBT_RARE);
        if (write && !special)
            return leave(e, DBT_SPECIAL);
        return bounce_crossing(e, vaddr, what);
    }
    uint8_t *host = translate_address(e, vaddr, write, special);
    if (!host && (what & SLOW_MASKED))
        return leave(e, DBT_RARE);
    if (!host && write && special && e->page_table_write)
        return bounce_page_table(e, vaddr, bytes);
    if (!host)
        return leave_fault(e, what);
    if (special && write && e->tlb[mode_index(e)][tlb_index(vaddr)].write_tag != -page_of(vaddr)) {
        uint8_t *to = e->bounce + (vaddr & 63); /* a frame with code: stored by HELP_COMMIT under the lock */
        copy_plain(to, host, bytes);
        e->bounce_vaddr = vaddr;
        e->bounce_bytes = bytes;
        return (uint64_t)to;
    }
    return (uint64_t)host;
}

/* ---- accesses by C ---------------------------------------------------------------------------------------------- */

uint8_t *mmu_access(struct engine_vcpu *e, uint64_t vaddr, bool write)
{
    const struct tlb_entry *t = &e->tlb[mode_index(e)][tlb_index(vaddr)];
    uint64_t offset = vaddr + (write ? t->write_tag : t->read_tag);
    return offset < PAGE_SIZE ? t->host + offset : translate_address(e, vaddr, write, false);
}

/* A value as one access, where the CPU would make one; at any address. */
typedef volatile uint16_t __attribute__((aligned(1), may_alias)) any16_t;
typedef volatile uint32_t __attribute__((aligned(1), may_alias)) any32_t;
typedef volatile uint64_t __attribute__((aligned(1), may_alias)) any64_t;

static uint64_t load_value(const uint8_t *p, unsigned bytes)
{
    switch (bytes) {
    case 1: return *(const volatile uint8_t *)p;
    case 2: return *(const any16_t *)p;
    case 4: return *(const any32_t *)p;
    default: return *(const any64_t *)p;
    }
}

static void store_value(uint8_t *p, unsigned bytes, uint64_t v)
{
    switch (bytes) {
    case 1: *(volatile uint8_t *)p = v; break;
    case 2: *(any16_t *)p = v; break;
    case 4: *(any32_t *)p = v; break;
    default: *(any64_t *)p = v; break;
    }
}

bool mmu_load(struct engine_vcpu *e, uint64_t vaddr, unsigned bytes, uint64_t *value)
{
    uint64_t v = 0;
    unsigned first = PAGE_SIZE - (vaddr & ~PAGE_MASK);
    if (watches_data(e) && !watch_access(e, vaddr, bytes, false))
        return false;
    const uint8_t *p = mmu_access(e, vaddr, false);
    if (!p)
        return false;
    if (bytes <= first) {
        v = load_value(p, bytes);
    } else {
        copy_plain(&v, p, first);
        p = mmu_access(e, next_page(e, vaddr), false);
        if (!p)
            return false;
        copy_plain((uint8_t *)&v + first, p, bytes - first);
    }
    *value = v;
    return true;
}

bool mmu_may_store(struct engine_vcpu *e, uint64_t vaddr, unsigned bytes)
{
    unsigned first = PAGE_SIZE - (vaddr & ~PAGE_MASK);
    return mmu_access(e, vaddr, true) && (bytes <= first || mmu_access(e, vaddr + first, true));
}

bool mmu_store(struct engine_vcpu *e, uint64_t vaddr, unsigned bytes, uint64_t value)
{
    unsigned first = PAGE_SIZE - (vaddr & ~PAGE_MASK);
    if (watches_data(e) && !watch_access(e, vaddr, bytes, true))
        return false;
    uint8_t *low = mmu_access(e, vaddr, true), *high = NULL;
    if (!low || (bytes > first && !(high = mmu_access(e, next_page(e, vaddr), true))))
        return false;
    if (!high) {
        store_value(low, bytes, value);
        return true;
    }
    copy_plain(low, &value, first);
    copy_plain(high, (uint8_t *)&value + first, bytes - first);
    return true;
}

bool mmu_read(struct engine_vcpu *e, uint64_t vaddr, void *to, size_t bytes)
{
    uint8_t *out = to;
    while (bytes) {
        size_t n = PAGE_SIZE - (vaddr & ~PAGE_MASK);
        if (n > bytes)
            n = bytes;
        const uint8_t *p = mmu_access(e, vaddr, false);
        if (!p)
            return false;
        copy_plain(out, p, n);
        out += n;
        vaddr += n;
        bytes -= n;
    }
    return true;
}

/* ---- flushes ---------------------------------------------------------------------------------------------------- */

static void entry_reset(struct tlb_entry *tlb, unsigned i) { tlb[i].read_tag = tlb[i].write_tag = tlb_no_tag(i); }

void mmu_flush_mode(struct engine_vcpu *e, unsigned mode)
{
    e->stats.tlb_flushes++;
    if (e->nr_tlb_log[mode] < TLB_LOG)
        for (unsigned k = 0; k < e->nr_tlb_log[mode]; k++)
            entry_reset(e->tlb[mode], e->tlb_log[mode][k]);
    else
        for (unsigned k = 0; k < TLB_ENTRIES; k++)
            entry_reset(e->tlb[mode], k);
    e->nr_tlb_log[mode] = 0;
    if (!mode)
        e->nr_low_log = 0;
}

/* Is it an entry of the lower half? Tags are negated addresses, and that of page 0 is 0. */
static bool is_low(const struct tlb_entry *t) { return (int64_t)(t->read_tag - 1) < 0; }

void mmu_flush_user_half(struct engine_vcpu *e)
{
    bool all = e->nr_low_log == TLB_LOW_LOG;
    for (unsigned k = 0; k < (all ? TLB_ENTRIES : e->nr_low_log); k++) {
        unsigned i = all ? k : e->low_log[k];
        if (is_low(&e->tlb[0][i]))
            entry_reset(e->tlb[0], i);
    }
    e->nr_low_log = 0;
}

void mmu_drop_page(struct engine_vcpu *e, uint64_t vaddr)
{
    for (unsigned mode = 0; mode < 2; mode++) {
        unsigned i = tlb_index(vaddr);
        if (e->tlb[mode][i].read_tag == -page_of(vaddr))
            entry_reset(e->tlb[mode], i);
    }
}

void mmu_drop_host_page(struct engine_vcpu *e, const uint8_t *host, bool all)
{
    for (unsigned mode = 0; mode < 2; mode++)
        for (unsigned i = 0; i < TLB_ENTRIES; i++) {
            struct tlb_entry *t = &e->tlb[mode][i];
            if (t->host != host)
                continue;
            t->write_tag = tlb_no_tag(i);
            if (all)
                t->read_tag = tlb_no_tag(i);
        }
}

/* ---- jump cache ------------------------------------------------------------------------------------------------- */

static void jump_reset(struct engine_vcpu *e, unsigned mode, unsigned first, unsigned second)
{
    e->jump[mode][first] = e->second[mode][second].entry = jump_miss(e);
}

void jump_clear(struct engine_vcpu *e, unsigned mode)
{
    if (e->nr_jump_log[mode] < JUMP_LOG)
        for (unsigned k = 0; k < e->nr_jump_log[mode]; k++)
            jump_reset(e, mode, e->jump_log[mode][k] >> SECOND_BITS, e->jump_log[mode][k] & (SECOND_ENTRIES - 1));
    else
        for (unsigned k = 0; k < JUMP_ENTRIES; k++)
            jump_reset(e, mode, k, k & (SECOND_ENTRIES - 1));
    e->nr_jump_log[mode] = 0;
}

void jump_set(struct engine_vcpu *e, unsigned mode, uint64_t pc, const uint8_t *entry)
{
    unsigned first = jump_index(pc), second = second_index(pc);
    e->jump[mode][first] = (uint64_t)entry;
    e->second[mode][second] = (struct second_jump){pc, (uint64_t)entry};
    if (e->nr_jump_log[mode] < JUMP_LOG)
        e->jump_log[mode][e->nr_jump_log[mode]++] = first << SECOND_BITS | second;
}

void jump_forget(struct engine_vcpu *e, unsigned mode, uint64_t pc, const uint8_t *entry)
{
    uint64_t *first = &e->jump[mode][jump_index(pc)], *second = &e->second[mode][second_index(pc)].entry;
    if (__atomic_load_n(first, __ATOMIC_RELAXED) == (uint64_t)entry)
        __atomic_store_n(first, jump_miss(e), __ATOMIC_RELAXED);
    if (__atomic_load_n(second, __ATOMIC_RELAXED) == (uint64_t)entry)
        __atomic_store_n(second, jump_miss(e), __ATOMIC_RELAXED);
}
