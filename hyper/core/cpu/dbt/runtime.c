/*
 * The engine's table: the run loop, host faults, kicks, and the requests of the rest of the hypervisor.
 *
 * A host fault in translated code is the guest's exception, a kick, or an overflow of the shadow stack; anything else goes
 * to whoever had the signal before us, because it is a bug. The handlers are the only process-wide state; they find their
 * vCPU through a thread-local pointer, so several machines in one process share them.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "cpu/dbt/dbt.h"

#define ARCH_SET_GS 0x1001
#define DEFAULT_MXCSR 0x1f80 /* all exceptions masked: what C is compiled for */
#define HWCAP2_FSGSBASE 2

static __thread struct engine_vcpu *running; /* the vCPU whose code this thread may be executing */
static __thread uint8_t *signal_stack;
#define SIGNAL_STACK_BYTES 65536

/* ---- host faults ------------------------------------------------------------------------------------------------ */

enum { TRAP_DIVIDE = 0, TRAP_INVALID = 6, TRAP_GP = 13, TRAP_PAGE_FAULT = 14, TRAP_X87 = 16, TRAP_ALIGNMENT = 17, TRAP_SIMD = 19 };

static struct sigaction previous[NSIG];
static pthread_once_t handlers_once = PTHREAD_ONCE_INIT;

static bool leave_translated(struct engine_vcpu *e, ucontext_t *uc, uint64_t rip, enum dbt_exit why)
{
    e->cpu.rip = rip;
    e->exit = why;
    uc->uc_mcontext.gregs[REG_RIP] = (greg_t)e->vcpu->domain->engine->tr.exit_saved;
    return true;
}

/* The poll load hit the guard page: at the head of a block, or in the indirect jump, which has its target in r10. */
static bool on_poll(struct engine_vcpu *e, ucontext_t *uc, uint64_t host_pc)
{
    struct engine_domain *ed = e->vcpu->domain->engine;
    if (host_pc < (uint64_t)ed->tr.end)
        return leave_translated(e, uc, uc->uc_mcontext.gregs[REG_R10], DBT_POLL);
    e->cpu.rip = block_by_host(ed, host_pc)->pc;
    uc->uc_mcontext.gregs[REG_RIP] = (greg_t)ed->tr.poll;
    return true;
}

static bool on_exception(struct engine_vcpu *e, ucontext_t *uc, uint64_t host_pc, unsigned trap)
{
    uint64_t point, rflags = uc->uc_mcontext.gregs[REG_EFL];
    if (!fault_point_find(e->vcpu->domain->engine, host_pc, &point))
        return false;
    if (point & 1)
        e->cpu.status = (rflags & 0xd5) << 8 | 2 << 8 | ((rflags >> 11) & 1);
    uint64_t pc = (uint64_t)((int64_t)point >> 1);
    switch (trap) {
    case TRAP_DIVIDE: return leave_translated(e, uc, pc, DBT_DIVIDE);
    case TRAP_INVALID: return leave_translated(e, uc, pc, DBT_INVALID);
    case TRAP_GP: return leave_translated(e, uc, pc, DBT_GP);
    case TRAP_X87: return leave_translated(e, uc, pc, DBT_X87);
    case TRAP_ALIGNMENT: return leave_translated(e, uc, pc, DBT_ALIGNMENT);
    case TRAP_SIMD: return leave_translated(e, uc, pc, DBT_SIMD);
    }
    return false;
}

/* The push that found the guard page was a call's, or in a trampoline: then the way back from there comes along. */
static void restart_shadow_stack(const struct engine_domain *ed, ucontext_t *uc, uint64_t host_pc, uint64_t top)
{
    if (host_pc < (uint64_t)ed->tr.end) {
        uint64_t back = *(uint64_t *)uc->uc_mcontext.gregs[REG_RSP];
        top -= sizeof(back);
        *(uint64_t *)top = back;
    }
    uc->uc_mcontext.gregs[REG_RSP] = top;
}

static bool on_guest_fault(struct engine_vcpu *e, siginfo_t *info, ucontext_t *uc)
{
    struct engine_domain *ed = e->vcpu->domain->engine;
    uint64_t host_pc = uc->uc_mcontext.gregs[REG_RIP], at = (uint64_t)info->si_addr;
    unsigned trap = uc->uc_mcontext.gregs[REG_TRAPNO];
    if (host_pc - (uint64_t)ed->cache >= CACHE_BYTES)
        return false;
    if (trap != TRAP_PAGE_FAULT)
        return on_exception(e, uc, host_pc, trap);
    if (at - (uint64_t)ed->guard < PAGE_SIZE)
        return on_poll(e, uc, host_pc);
    uint64_t top = e->shadow_top[mode_index(e)];
    if (at - (top - SHADOW_BYTES - PAGE_SIZE) < PAGE_SIZE) { /* calls without returns: start over, returns will miss */
        restart_shadow_stack(ed, uc, host_pc, top);
        return true;
    }
    return false;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    if (running && on_guest_fault(running, info, context))
        return;
    const struct sigaction *old = &previous[number];
    if (old->sa_flags & SA_SIGINFO) {
        old->sa_sigaction(number, info, context);
    } else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) {
        old->sa_handler(number);
    } else { /* the default action, at the instruction that faults again */
        struct sigaction dfl = {.sa_handler = SIG_DFL};
        sigaction(number, &dfl, NULL);
    }
}

static void install_handlers(void)
{
    static const int numbers[] = {SIGSEGV, SIGFPE, SIGBUS, SIGILL};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++)
        sigaction(numbers[i], &action, &previous[numbers[i]]);
}

/* ---- the run loop ----------------------------------------------------------------------------------------------- */

static unsigned block_mode(const struct engine_vcpu *e, bool single)
{
    return (e->cpu.user_mode ? MODE_USER : 0) | (single ? MODE_SINGLE : 0) | (e->fpu_disabled ? MODE_NO_FPU : 0);
}

/* A jump inside a page stays inside its frame: while this vCPU waited for the lock, another may have mapped a new one here,
 * and the old block lives on in address spaces that still map its frame. */
static bool still_together(const struct link *l, const struct block *to)
{
    return page_of(l->pc) != page_of(l->owner->pc) || mfn_eq(l->owner->mfn, to->mfn);
}

/* The block at rip, made when it isn't there, and the way to it remembered. NULL: a fetch fault. */
static struct block *resolve_locked(struct engine_vcpu *e, bool single)
{
    struct engine_domain *ed = e->vcpu->domain->engine;
    uint64_t pc = e->cpu.rip;
    unsigned mode = block_mode(e, single);
    struct block *b = block_lookup(e, pc, mode);
    if (!b)
        b = translate(e, pc, mode);
    if (b && !b->dead && !single) {
        struct link *l = e->link;
        if (!e->cpu.user_mode && pc < CHAIN_START)
            ed->kernel_low_code = true;
        if (l && !l->to && !l->owner->dead && l->pc == pc && l->owner->mode == mode && still_together(l, b))
            block_link(l, b);
        else
            jump_set(e, mode_index(e), pc, b->checked_entry);
    }
    e->link = NULL;
    return b;
}

static struct block *resolve(struct engine_vcpu *e, bool single)
{
    domain_lock(e->vcpu->domain, e->vcpu);
    struct block *b = resolve_locked(e, single);
    domain_unlock(e->vcpu->domain, e->vcpu);
    return b;
}

/* A C-side access was refused because the frame holds code: kill that code, so that it can be tried again. */
static void drop_code_at(struct engine_vcpu *e, uint64_t vaddr)
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

/* A grouped stack access at rip has failed often enough: translate its block anew, ungrouped. */
static void ungroup(struct engine_vcpu *e)
{
    struct domain *d = e->vcpu->domain;
    uint8_t *slot = ungroup_slot(d->engine, e->cpu.rip);
    if (*slot != UNGROUP_AFTER)
        return;
    ++*slot;
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
    while ((e->exit = interpret_rare(e)) == DBT_SPECIAL)
        drop_code_at(e, e->cpu.fault_vaddr);
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
        b = resolve(e, true);
        locked = b && b->atomic;
    }
    if (locked) {
        domain_lock(d, e->vcpu);
        domain_quiesce(d, e->vcpu);
        b = resolve_locked(e, true);
    }
    if (b)
        enter(e, b->entry);
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

static enum engine_exit dbt_run(struct vcpu *v)
{
    struct engine_vcpu *e = v->engine;
    const struct trampolines *tr = &v->domain->engine->tr;
    const uint8_t *entry = NULL; /* where to go on; NULL: by the jump cache */
    bool single = e->single_step;
    for (;;) {
        atomic_store(&e->poll, &e->poll_target);
        if (atomic_load(&v->kick)) {
            e->single_step = single;
            return EXIT_KICK;
        }
        bool trap = e->cpu.other_flags & X86_TF;
        bool alone = single || trap;
        if (alone && !run_alone(e))
            return fetch_fault(e);
        if (!alone)
            enter(e, entry ? entry : tr->enter_indirect[mode_index(e)]);
        entry = NULL;
        single = e->single_step = false;
        if (e->exit == DBT_RARE && !run_rare(e))
            return exit_of[e->exit];
        switch (e->exit) {
        case DBT_LINK: case DBT_INDIRECT: {
            if (trap)
                return EXIT_DEBUG;
            if (alone)
                break;
            struct block *b = resolve(e, false);
            if (!b)
                return fetch_fault(e);
            entry = b->entry;
            break;
        }
        case DBT_SPECIAL:
            ungroup(e);
            single = true;
            break;
        default: return exit_of[e->exit];
        }
    }
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static int dbt_machine_init(struct hv *hv)
{
    (void)hv;
    pthread_once(&handlers_once, install_handlers);
    return 0;
}

static void dbt_machine_destroy(struct hv *hv) { (void)hv; }

static int dbt_pcpu_start(struct hv *hv)
{
    (void)hv;
    signal_stack = malloc(SIGNAL_STACK_BYTES);
    if (!signal_stack)
        return -XEN_ENOMEM;
    stack_t stack = {.ss_sp = signal_stack, .ss_size = SIGNAL_STACK_BYTES};
    sigaltstack(&stack, NULL);
    return 0;
}

static void dbt_pcpu_stop(struct hv *hv)
{
    (void)hv;
    stack_t off = {.ss_flags = SS_DISABLE};
    sigaltstack(&off, NULL);
    free(signal_stack);
    signal_stack = NULL;
}

static int dbt_domain_create(struct domain *d)
{
    struct engine_domain *ed = calloc(1, sizeof(*ed));
    if (!ed)
        return -XEN_ENOMEM;
    ed->domain = d;
    int rc = cache_create(ed);
    if (rc) {
        free(ed);
        return rc;
    }
    d->engine = ed;
    return 0;
}

static void dbt_domain_destroy(struct domain *d)
{
    if (!d->engine)
        return;
    cache_destroy(d->engine);
    free(d->engine);
    d->engine = NULL;
}

static uint64_t shadow_stack_create(void)
{
    size_t bytes = SHADOW_BYTES + 2 * PAGE_SIZE; /* guard, stack, and the page with the sentinel */
    uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return 0;
    mprotect(p, PAGE_SIZE, PROT_NONE);
    return (uint64_t)p + PAGE_SIZE + SHADOW_BYTES;
}

static void shadow_stack_destroy(uint64_t top)
{
    if (top)
        munmap((void *)(top - SHADOW_BYTES - PAGE_SIZE), SHADOW_BYTES + 2 * PAGE_SIZE);
}

static void dbt_vcpu_destroy(struct vcpu *v)
{
    struct engine_vcpu *e = v->engine;
    if (!e)
        return;
    v->engine = NULL;
    v->cpu = NULL;
    shadow_stack_destroy(e->shadow_top[0]);
    shadow_stack_destroy(e->shadow_top[1]);
    munmap(e, sizeof(*e));
}

static int dbt_vcpu_create(struct vcpu *v)
{
    struct engine_vcpu *e = mmap(NULL, sizeof(*e), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (e == MAP_FAILED)
        return -XEN_ENOMEM;
    e->vcpu = v;
    e->self = (uint64_t)e;
    v->engine = e;
    v->cpu = &e->cpu;
    e->shadow_top[0] = shadow_stack_create();
    e->shadow_top[1] = shadow_stack_create();
    if (!e->shadow_top[0] || !e->shadow_top[1]) {
        dbt_vcpu_destroy(v);
        return -XEN_ENOMEM;
    }
    atomic_store(&e->poll, &e->poll_target);
    cpu_set_rflags(&e->cpu, X86_IF);
    *(uint16_t *)e->fpu = 0x37f;          /* x87 control word */
    *(uint32_t *)(e->fpu + FXSAVE_MXCSR) = e->mxcsr = e->host_mxcsr = DEFAULT_MXCSR;
    helpers_init(e);
    mmu_init(e);
    shadow_stack_reset(e);
    return 0;
}

static void set_gs_base(uint64_t base)
{
    if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE)
        __asm__ volatile("wrgsbase %0" : : "r"(base));
    else
        syscall(SYS_arch_prctl, ARCH_SET_GS, base);
}

static void dbt_switch_in(struct vcpu *v)
{
    set_gs_base(v->engine->self);
    __asm__ volatile("fxrstor64 %0" : : "m"(v->engine->fpu));
    running = v->engine;
}

static void dbt_switch_out(struct vcpu *v)
{
    running = NULL;
    __asm__ volatile("fxsave64 %0" : "+m"(v->engine->fpu));
    __asm__ volatile("fninit");
}

static void dbt_kick(struct vcpu *v) { atomic_store(&v->engine->poll, v->domain->engine->guard); }

void engine_kick(struct vcpu *v) { engine()->kick(v); }

static bool dbt_retry_page_table_write(struct vcpu *v)
{
    struct engine_vcpu *e = v->engine;
    struct page_info *pg;
    if (e->page_table_refused) {
        e->page_table_refused = false;
        return false;
    }
    uint64_t vaddr = e->cpu.fault_vaddr, error = e->cpu.fault_error;
    bool is_table = mmu_walk(e, vaddr, ACCESS_READ, &pg) && pg && pg->type_count && pg->type == PGT_l1_page_table;
    e->cpu.fault_vaddr = vaddr;
    e->cpu.fault_error = error;
    e->single_step = e->page_table_write = is_table;
    return is_table;
}

/* ---- modes, roots, flushes -------------------------------------------------------------------------------------- */

static void dbt_set_mode(struct vcpu *v, bool user)
{
    struct engine_vcpu *e = v->engine;
    if (e->cpu.user_mode == user)
        return;
    uint64_t other = e->shadow_saved;
    e->shadow_saved = e->shadow_rsp;
    e->shadow_rsp = other;
    e->cpu.user_mode = user;
    if (user && e->loaded_user_root != (uint64_t)e->root[1]) {
        e->loaded_user_root = (uint64_t)e->root[1];
        mmu_flush_mode(e, 1);
        jump_clear(e, 1);
        e->shadow_rsp = e->shadow_top[1];
    }
}

static void dbt_set_fpu_disabled(struct vcpu *v, bool ts)
{
    struct engine_vcpu *e = v->engine;
    if (e->fpu_disabled == ts)
        return;
    e->fpu_disabled = ts;
    jump_clear(e, 0);
    jump_clear(e, 1);
    shadow_stack_reset(e); /* landings lead to blocks of the other kind */
}

static void flush_vcpu(struct vcpu *v, enum flush_scope scope)
{
    struct engine_vcpu *e = v->engine;
    if (scope == FLUSH_USER_HALF) {
        mmu_flush_user_half(e);
        return;
    }
    for (unsigned mode = 0; mode < 2; mode++) {
        mmu_flush_mode(e, mode);
        jump_clear(e, mode);
    }
}

static void dbt_set_cr3(struct vcpu *v, bool user, uint64_t l4_gfn)
{
    struct engine_vcpu *e = v->engine;
    struct domain *d = v->domain;
    mfn_t mfn = physmap_lookup(&d->physmap, _gfn(l4_gfn), NULL);
    uint8_t *root = mfn_eq(mfn, INVALID_MFN) ? NULL : frame_host(d->hv, mfn);
    if (user) {
        e->root[1] = root;
        e->loaded_user_root = ~0ull; /* even the same frame may hold another tree */
        return;
    }
    if (root == e->root[0]) { /* a guest's way to flush */
        flush_vcpu(v, FLUSH_ALL);
        return;
    }
    e->root[0] = root;
    mmu_flush_user_half(e);
    if (d->engine->kernel_low_code)
        jump_clear(e, 0);
    uint64_t top = root ? *(uint64_t *)(root + 511 * 8) & (PTE_ADDR | PTE_PRESENT) : 0;
    if (top != d->engine->top_l4_entry) { /* chains across pages rest on it */
        if (d->engine->top_l4_entry)
            block_unlink_all(d->engine);
        d->engine->top_l4_entry = top;
    }
}

static void dbt_flush_tlb(struct domain *d, struct vcpu *curr, struct vcpu *v, enum flush_scope scope)
{
    if (v != curr || !v)
        domain_quiesce(d, curr);
    for (unsigned i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->engine && (!v || d->vcpu[i] == v))
            flush_vcpu(d->vcpu[i], scope);
}

static void drop_vcpu_page(struct vcpu *v, uint64_t vaddr)
{
    struct engine_vcpu *e = v->engine;
    mmu_drop_page(e, vaddr);
    jump_clear(e, 1);
    if (vaddr >= CHAIN_START || v->domain->engine->kernel_low_code)
        jump_clear(e, 0);
}

static void dbt_flush_page(struct domain *d, struct vcpu *curr, struct vcpu *v, uint64_t vaddr)
{
    if (v != curr || !v)
        domain_quiesce(d, curr);
    for (unsigned i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->engine && (!v || d->vcpu[i] == v))
            drop_vcpu_page(d->vcpu[i], vaddr);
}

static void dbt_revoke_frame(struct domain *d, struct vcpu *curr, struct page_info *pg, bool all)
{
    if (!d->engine)
        return;
    revoke_write_tag(d, curr, pg);
    if (!all)
        return;
    domain_quiesce(d, curr);
    code_frame_written(d, pg);
    const uint8_t *host = frame_host(d->hv, _mfn(pg - d->hv->frame_table));
    for (unsigned i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->engine)
            mmu_drop_host_page(d->vcpu[i]->engine, host, true);
}

static void dbt_unmap_code(struct domain *d, struct vcpu *curr, struct page_info *pg)
{
    (void)curr;
    if (d->engine && (pg->flags & PGC_code))
        block_unlink_frame(d->engine, _mfn(pg - d->hv->frame_table));
}

/* The table that an entry names, or NULL. */
static struct page_info *table_below(struct domain *d, uint64_t pte)
{
    mfn_t mfn = pte & PTE_PRESENT ? physmap_lookup(&d->physmap, pte_gfn(pte), NULL) : INVALID_MFN;
    return mfn_eq(mfn, INVALID_MFN) ? NULL : frame_page(d->hv, mfn);
}

/* Does this slot of a table lead to the addresses where direct jumps cross pages? They are the last two slots of the L3 table
 * under the last slot of L4. */
static bool leads_to_chains(struct domain *d, struct page_info *table, unsigned slot)
{
    struct page_info *l3 = table_below(d, d->engine->top_l4_entry);
    if (table->type == PGT_l4_page_table)
        return slot == 511;
    if (!l3 || table->type == PGT_l3_page_table)
        return l3 && table == l3 && slot >= 510;
    const uint64_t *entry = (const uint64_t *)frame_host(d->hv, _mfn(l3 - d->hv->frame_table));
    return table == table_below(d, entry[510]) || table == table_below(d, entry[511]);
}

static void dbt_unmap_tables(struct domain *d, struct vcpu *curr, struct page_info *table, unsigned slot)
{
    (void)curr;
    if (d->engine && leads_to_chains(d, table, slot))
        block_unlink_all(d->engine);
}

static void dbt_frame_written(struct domain *d, struct vcpu *curr, struct page_info *pg)
{
    (void)curr;
    if (d->engine)
        code_frame_written(d, pg);
}

/* ---- guest memory for the rest of the hypervisor ---------------------------------------------------------------- */

static bool dbt_read(struct vcpu *v, uint64_t vaddr, void *to, size_t bytes) { return mmu_read(v->engine, vaddr, to, bytes); }

static bool dbt_write(struct vcpu *v, uint64_t vaddr, const void *from, size_t bytes)
{
    struct engine_vcpu *e = v->engine;
    const uint8_t *in = from;
    while (bytes) {
        size_t n = PAGE_SIZE - (vaddr & ~PAGE_MASK);
        if (n > bytes)
            n = bytes;
        uint8_t *p = mmu_access(e, vaddr, true);
        if (!p) {
            if (e->cpu.fault_error != FAULT_CODE_FRAME)
                return false;
            drop_code_at(e, vaddr);
            continue;
        }
        memcpy(p, in, n);
        in += n;
        vaddr += n;
        bytes -= n;
    }
    return true;
}

static unsigned dbt_fetch(struct vcpu *v, uint64_t vaddr, uint8_t *to)
{
    struct engine_vcpu *e = v->engine;
    struct page_info *pg;
    unsigned here = PAGE_SIZE - (vaddr & ~PAGE_MASK), n = here < INSN_MAX_BYTES ? here : INSN_MAX_BYTES;
    const uint8_t *p = mmu_walk(e, vaddr, ACCESS_FETCH, &pg);
    if (!p)
        return 0;
    memcpy(to, p, n);
    if (n == INSN_MAX_BYTES || !(p = mmu_walk(e, vaddr + n, ACCESS_FETCH, &pg)))
        return n;
    memcpy(to + n, p, INSN_MAX_BYTES - n);
    return INSN_MAX_BYTES;
}

static void dbt_get_fpu(struct vcpu *v, void *image)
{
    memcpy(image, v->engine->fpu, 512);
    memset((uint8_t *)image + FXSAVE_FIP, 0, FXSAVE_MXCSR - FXSAVE_FIP);
    memcpy((uint8_t *)image + FXSAVE_MXCSR, &v->engine->mxcsr, sizeof(v->engine->mxcsr));
    memcpy((uint8_t *)image + FXSAVE_XMM, v->engine->xmm, sizeof(v->engine->xmm));
}

static void dbt_set_fpu(struct vcpu *v, const void *image)
{
    memcpy(v->engine->fpu, image, 512);
    v->engine->mxcsr = *(uint32_t *)(v->engine->fpu + FXSAVE_MXCSR) & 0xffff;
    *(uint32_t *)(v->engine->fpu + FXSAVE_MXCSR) = DEFAULT_MXCSR;
    memcpy(v->engine->xmm, (const uint8_t *)image + FXSAVE_XMM, sizeof(v->engine->xmm));
}

static void dbt_statistics(struct domain *d, struct engine_statistics *out)
{
    memset(out, 0, sizeof(*out));
    if (!d->engine)
        return;
    *out = d->engine->stats;
    out->code_bytes = (d->engine->hot - d->engine->hot_start) + (d->engine->cold - d->engine->cold_start);
    for (unsigned i = 0; i < d->max_vcpus; i++) {
        if (!d->vcpu[i] || !d->vcpu[i]->engine)
            continue;
        const struct engine_statistics *s = &d->vcpu[i]->engine->stats;
        out->tlb_fills += s->tlb_fills;
        out->tlb_flushes += s->tlb_flushes;
        out->single_steps += s->single_steps;
        for (unsigned k = 0; k < ARRAY_SIZE(out->exits); k++)
            out->exits[k] += s->exits[k];
    }
}

static const char *dbt_exit_name(unsigned index)
{
    static const char *const name[DBT_EXITS] = {
        "link", "jump cache miss", "special", "page fault", "poll", "system call", "invalid opcode", "privileged",
        "rare", "divide", "general protection", "stack", "x87", "simd", "alignment", "no device",
    };
    return index < DBT_EXITS ? name[index] : "?";
}

const struct engine_ops dbt_engine = {
    .name = "dbt",
    .machine_init = dbt_machine_init,
    .machine_destroy = dbt_machine_destroy,
    .pcpu_start = dbt_pcpu_start,
    .pcpu_stop = dbt_pcpu_stop,
    .domain_create = dbt_domain_create,
    .domain_destroy = dbt_domain_destroy,
    .vcpu_create = dbt_vcpu_create,
    .vcpu_destroy = dbt_vcpu_destroy,
    .switch_in = dbt_switch_in,
    .switch_out = dbt_switch_out,
    .run = dbt_run,
    .kick = dbt_kick,
    .retry_page_table_write = dbt_retry_page_table_write,
    .set_mode = dbt_set_mode,
    .set_fpu_disabled = dbt_set_fpu_disabled,
    .set_cr3 = dbt_set_cr3,
    .flush_tlb = dbt_flush_tlb,
    .flush_page = dbt_flush_page,
    .revoke_frame = dbt_revoke_frame,
    .unmap_code = dbt_unmap_code,
    .unmap_tables = dbt_unmap_tables,
    .frame_written = dbt_frame_written,
    .read = dbt_read,
    .write = dbt_write,
    .fetch = dbt_fetch,
    .get_fpu = dbt_get_fpu,
    .set_fpu = dbt_set_fpu,
    .statistics = dbt_statistics,
    .exit_name = dbt_exit_name,
};
