/*
 * Hardware breakpoints: DR0 to DR3 as DR7 enables them, of one vCPU.
 *
 * Data. The pages of a watched operand are never put into the vCPU's TLB, so that each access takes the slow way and is looked
 * at. In an ordinary block a hit is refused with DBT_SPECIAL: the instruction runs again alone, the hit is noted, and the run
 * loop reports it after the instruction, as the CPU does.
 *
 * Code. The vCPU runs instructions on the page of a breakpoint one by one, and the run loop compares each address before it
 * runs. To see the vCPU arrive there its jump cache and shadow stack have no entries for that page; where jumps lead across
 * pages directly, in the kernel's high part, none is linked into the page (by no vCPU: blocks are shared).
 */
#pragma GCC target("general-regs-only")
#include "cpu/dbt/dbt.h"

enum { DR_EXECUTE, DR_WRITE, DR_IO, DR_ACCESS };
#define DR7_ENABLED(n) (3u << 2 * (n))
#define DR7_TYPE(dr7, n) ((dr7) >> (16 + 4 * (n)) & 3)
#define DR7_LENGTH(dr7, n) ((dr7) >> (18 + 4 * (n)) & 3)

bool watch_access(struct engine_vcpu *e, uint64_t vaddr, unsigned bytes, bool write)
{
    const struct watchpoints *w = &e->watch;
    unsigned hits = 0;
    for (unsigned n = 0; n < NR_WATCHPOINTS; n++) {
        bool active = ((write ? w->write : 0) | w->access) >> n & 1;
        if (active && vaddr < w->address[n] + w->bytes[n] && w->address[n] < vaddr + bytes)
            hits |= 1u << n;
    }
    if (hits && !e->alone) {
        e->cpu.fault_vaddr = vaddr;
        e->cpu.fault_error = FAULT_WATCHED;
        return false;
    }
    e->cpu.debug |= hits;
    return true;
}

bool watch_has_data(const struct engine_vcpu *e, uint64_t vaddr)
{
    const struct watchpoints *w = &e->watch;
    for (unsigned n = 0; n < NR_WATCHPOINTS; n++)
        if (((w->write | w->access) >> n & 1) && page_of(w->address[n]) == page_of(vaddr))
            return true;
    return false;
}

bool watch_has_code(const struct engine_vcpu *e, uint64_t pc)
{
    const struct watchpoints *w = &e->watch;
    for (unsigned n = 0; n < NR_WATCHPOINTS; n++)
        if ((w->execute >> n & 1) && page_of(w->address[n]) == page_of(pc))
            return true;
    return false;
}

unsigned watch_execute(const struct engine_vcpu *e)
{
    unsigned hits = 0;
    for (unsigned n = 0; n < NR_WATCHPOINTS; n++)
        if ((e->watch.execute >> n & 1) && e->watch.address[n] == e->cpu.rip)
            hits |= 1u << n;
    return hits;
}

bool watch_forbids_link(struct domain *d, uint64_t from, uint64_t to)
{
    if (page_of(from) == page_of(to))
        return false;
    for (unsigned i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->engine && d->vcpu[i]->engine->watch.execute && watch_has_code(d->vcpu[i]->engine, to))
            return true;
    return false;
}

static void watch_set(struct watchpoints *w, unsigned n, uint64_t address, uint64_t dr7)
{
    static const uint8_t length[4] = {1, 2, 8, 4};
    uint8_t bit = 1u << n;
    w->bytes[n] = length[DR7_LENGTH(dr7, n)];
    w->address[n] = address & ~(uint64_t)(w->bytes[n] - 1);
    switch (DR7_TYPE(dr7, n)) {
    case DR_EXECUTE:
        w->execute |= bit;
        w->address[n] = address;
        break;
    case DR_WRITE: w->write |= bit; break;
    case DR_ACCESS: w->access |= bit; break;
    }
}

/* Direct jumps into a page of kernel code, which other vCPUs may have linked. */
static void cut_links(struct engine_vcpu *e, uint64_t pc)
{
    struct domain *d = e->vcpu->domain;
    if (pc < CHAIN_START)
        return;
    bool unlocked = atomic_load(&e->vcpu->in_guest);
    if (unlocked)
        domain_lock(d, e->vcpu);
    mfn_t mfn = mmu_fetch_frame(e, pc);
    if (!mfn_eq(mfn, INVALID_MFN))
        block_unlink_frame(d->engine, mfn);
    if (unlocked)
        domain_unlock(d, e->vcpu);
}

void dbt_set_debug(struct vcpu *v, const uint64_t debugreg[8])
{
    struct engine_vcpu *e = v->engine;
    struct watchpoints new = {0};
    for (unsigned n = 0; n < NR_WATCHPOINTS; n++)
        if (debugreg[7] & DR7_ENABLED(n))
            watch_set(&new, n, debugreg[n], debugreg[7]);
    e->watch = new;
    for (unsigned n = 0; n < NR_WATCHPOINTS; n++) {
        if ((new.write | new.access) >> n & 1)
            mmu_drop_page(e, new.address[n]);
        if (new.execute >> n & 1)
            cut_links(e, new.address[n]);
    }
    if (!new.execute)
        return;
    jump_clear(e, 0);
    jump_clear(e, 1);
    shadow_stack_reset(e);
}
