/*
 * The run loop: enter translated code, see why it came back, put right what the engine can, hand the rest to the caller.
 *
 * What comes back most: a direct jump without a target yet (the block is found or made, the jump patched), an indirect jump
 * that missed the jump cache, and an instruction that must run alone, in a block of its own with a bounce buffer: see access.c.
 */
#include "cpu/dbt/dbt.h"

/* Of the block to run next; `extra`: MODE_SINGLE, MODE_PLAIN or 0. */
static unsigned block_mode(const struct engine_vcpu *e, unsigned extra)
{
    return (e->cpu.user_mode ? MODE_USER : 0) | (e->fpu_disabled ? MODE_NO_FPU : 0) | MODE_CODE(e->cpu.code) |
           (e->cpu.xcr0 & XCR0_AVX ? MODE_AVX : 0) | extra;
}

/* The jump cache and the shadow stack know only addresses: they are void when the code at them would be translated another
 * way, because the FPU or AVX was switched or the segments are others. */
static void check_mode(struct engine_vcpu *e)
{
    unsigned mode = block_mode(e, 0), index = mode_index(e);
    if (likely(e->mode_now[index] == mode))
        return;
    e->mode_now[index] = mode;
    jump_clear(e, index);
    e->shadow_rsp = e->shadow_top[index];
}

/* A jump inside a page stays inside its frame: while this vCPU waited for the lock, another may have mapped a new one here,
 * and the old block lives on in address spaces that still map its frame. */
static bool still_together(const struct link *l, const struct block *to)
{
    return page_of(l->pc) != page_of(l->owner->pc) || mfn_eq(l->owner->mfn, to->mfn);
}

/* The block at rip, made when it isn't there, and the way to it remembered. NULL: a fetch fault. */
static struct block *resolve_locked(struct engine_vcpu *e, unsigned extra)
{
    struct engine_domain *ed = e->vcpu->domain->engine;
    uint64_t pc = e->cpu.rip;
    unsigned mode = block_mode(e, extra);
    struct block *b = block_lookup(e, pc, mode);
    if (!b)
        b = translate(e, pc, mode);
    if (b && !b->dead && !extra) {
        struct link *l = e->link;
        if (!e->cpu.user_mode && pc < CHAIN_START)
            ed->kernel_low_code = true;
        if (l && !l->to && !l->owner->dead && l->pc == pc && (l->owner->mode & ~MODE_PLAIN) == mode && still_together(l, b) &&
            !watch_forbids_link(ed->domain, l->owner->pc, pc))
            block_link(ed, l, b);
        else
            jump_set(e, mode_index(e), pc, b->checked_entry);
    }
    e->link = NULL;
    return b;
}

static struct block *resolve(struct engine_vcpu *e, unsigned extra)
{
    domain_lock(e->vcpu->domain, e->vcpu);
    struct block *b = resolve_locked(e, extra);
    domain_unlock(e->vcpu->domain, e->vcpu);
    return b;
}

void drop_code_at(struct engine_vcpu *e, uint64_t vaddr)
{
    struct domain *d = e->vcpu->domain;
    struct page_info *pg;
    bool unlocked = atomic_load(&e->vcpu->in_guest);
    if (unlocked)
        domain_lock(d, e->vcpu);
    if (mmu_walk(e, vaddr, ACCESS_WRITE, &pg) && pg)
        code_frame_written(d, pg);
    if (unlocked)
        domain_unlock(d, e->vcpu);
}

#define UNGROUP_CYCLES (1ull << 25) /* about 10 ms: with UNGROUP_AFTER, failures may cost half a percent */

/* A group at rip failed. Where that happens all the time its block is translated anew, without it. */
static void group_failed(struct engine_vcpu *e)
{
    struct domain *d = e->vcpu->domain;
    struct engine_domain *ed = d->engine;
    uint8_t *slot = ungroup_slot(ed, e->cpu.rip);
    uint64_t now = __builtin_ia32_rdtsc();
    if (now - ed->ungroup_time > UNGROUP_CYCLES) {
        for (unsigned k = 0; k < sizeof(ed->ungroup); k++)
            if (ed->ungroup[k] < UNGROUP_AFTER)
                ed->ungroup[k] = 0;
        ed->ungroup_time = now;
    }
    if (*slot >= UNGROUP_AFTER || ++*slot < UNGROUP_AFTER)
        return;
    domain_lock(d, e->vcpu);
    mfn_t mfn = mmu_fetch_frame(e, e->cpu.rip);
    if (!mfn_eq(mfn, INVALID_MFN))
        code_frame_written(d, frame_page(d->hv, mfn));
    domain_unlock(d, e->vcpu);
}

static const enum engine_exit exit_of[DBT_EXITS] = {
    [DBT_PAGE_FAULT] = EXIT_PAGE_FAULT, [DBT_POLL] = EXIT_KICK,           [DBT_SYSCALL] = EXIT_SYSCALL,
    [DBT_INVALID] = EXIT_INVALID,       [DBT_PRIVILEGED] = EXIT_PRIVILEGED, [DBT_DIVIDE] = EXIT_DIVIDE,
    [DBT_GP] = EXIT_GP,                 [DBT_STACK] = EXIT_STACK,         [DBT_X87] = EXIT_X87,
    [DBT_SIMD] = EXIT_SIMD,             [DBT_ALIGNMENT] = EXIT_ALIGNMENT, [DBT_NO_DEVICE] = EXIT_NO_DEVICE,
};

static void enter(struct engine_vcpu *e, const uint8_t *entry)
{
    e->exit = DBT_LINK;
    e->link = NULL;
    ((enter_fn *)e->vcpu->domain->engine->tr.enter)(e, entry);
    e->stats.exits[e->exit]++;
}

/* One rare instruction; true: go on. A store to a frame with code is tried again at once: a new block at rip could make
 * code of that frame again, for ever. */
static bool run_rare(struct engine_vcpu *e)
{
    e->alone = true;
    while ((e->exit = interpret_rare(e)) == DBT_SPECIAL)
        drop_code_at(e, e->cpu.fault_vaddr);
    e->alone = false;
    return e->exit == DBT_LINK;
}

/* One instruction at rip, in a block of its own. False: it can't be fetched. A store to a page table, or a locked one, is
 * read, modified and written in one piece, although through the bounce buffer: nobody else runs meanwhile. */
static bool run_alone(struct engine_vcpu *e)
{
    struct domain *d = e->vcpu->domain;
    bool locked = e->page_table_write;
    struct block *b = NULL;
    if (!locked) {
        b = resolve(e, MODE_SINGLE);
        locked = b && b->atomic;
    }
    if (locked) {
        domain_lock(d, e->vcpu);
        domain_quiesce(d, e->vcpu);
        b = resolve_locked(e, MODE_SINGLE);
    }
    e->alone = true;
    if (b)
        enter(e, b->entry);
    e->alone = false;
    if (locked)
        domain_unlock(d, e->vcpu);
    if (e->page_table_write && e->exit == DBT_PAGE_FAULT && (e->cpu.fault_error & 3) == 3)
        e->page_table_refused = true; /* in a way that the bounce buffer doesn't do: no second try */
    e->page_table_write = false;
    e->stats.single_steps++;
    return b;
}

static enum engine_exit fetch_fault(const struct engine_vcpu *e)
{
    return e->cpu.fault_error == FAULT_NOT_CANONICAL ? EXIT_GP : EXIT_PAGE_FAULT;
}

/* At a breakpoint? Not when the guest has come back from there. */
static bool stop_here(struct engine_vcpu *e)
{
    e->cpu.debug = e->cpu.resume ? 0 : watch_execute(e);
    return e->cpu.debug;
}

enum engine_exit dbt_run(struct vcpu *v)
{
    struct engine_vcpu *e = v->engine;
    const struct trampolines *tr = &v->domain->engine->tr;
    const uint8_t *entry = NULL; /* where to go on; NULL: by the jump cache */
    bool single = e->single_step;
    check_mode(e);
    for (;;) {
        /* vcpu_kick sets `kick` before the pointer, so it is not lost when the pointer still looks untouched here. */
        if (atomic_load_explicit(&e->poll, memory_order_acquire) != &e->poll_target)
            atomic_store(&e->poll, &e->poll_target);
        if (atomic_load(&v->kick)) {
            e->single_step = single;
            return EXIT_KICK;
        }
        bool trap = e->cpu.other_flags & X86_TF, watched = e->watch.execute && watch_has_code(e, e->cpu.rip);
        bool alone = single || trap || watched;
        if (watched && stop_here(e))
            return EXIT_DEBUG;
        e->cpu.debug = 0;
        if (alone && !run_alone(e))
            return fetch_fault(e);
        if (!alone)
            enter(e, entry ? entry : tr->enter_indirect[mode_index(e)]);
        entry = NULL;
        single = e->single_step = false;
        if (e->exit == DBT_RARE && !run_rare(e))
            return exit_of[e->exit];
        if (e->exit == DBT_LINK || e->exit == DBT_INDIRECT || e->exit == DBT_SYSCALL)
            e->cpu.resume = false;
        switch (e->exit) {
        case DBT_LINK: case DBT_INDIRECT: case DBT_GROUP: {
            if (trap || e->cpu.debug) {
                e->cpu.debug |= trap ? DEBUG_STEP : 0;
                return EXIT_DEBUG;
            }
            if (alone || (e->watch.execute && watch_has_code(e, e->cpu.rip)))
                break;
            if (e->exit == DBT_GROUP)
                group_failed(e);
            struct block *b = resolve(e, e->exit == DBT_GROUP ? MODE_PLAIN : 0);
            if (!b)
                return fetch_fault(e);
            entry = b->entry;
            break;
        }
        case DBT_SPECIAL:
            single = true;
            break;
        default: return exit_of[e->exit];
        }
    }
}
