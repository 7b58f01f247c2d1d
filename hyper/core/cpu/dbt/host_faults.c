/*
 * Host faults in translated code: the guest's exception, a kick, or an overflow of the shadow stack; anything else goes to
 * whoever had the signal before us, because it is a bug.
 *
 * The handlers are the only process-wide state; they find their vCPU through a thread-local pointer, so several machines in one
 * process share them. They run on a stack of their own: rsp is the shadow stack.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <ucontext.h>

#include "cpu/dbt/dbt.h"

static __thread struct engine_vcpu *running; /* the vCPU whose code this thread may be executing */
static __thread uint8_t *signal_stack;
#define SIGNAL_STACK_BYTES 65536

void host_faults_expect(struct engine_vcpu *e) { running = e; }

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

void host_faults_install(void) { pthread_once(&handlers_once, install_handlers); }

int host_faults_start(void)
{
    signal_stack = malloc(SIGNAL_STACK_BYTES);
    if (!signal_stack)
        return -XEN_ENOMEM;
    stack_t stack = {.ss_sp = signal_stack, .ss_size = SIGNAL_STACK_BYTES};
    if (sigaltstack(&stack, NULL)) { /* a container's filter? without it no guest fault can be taken */
        free(signal_stack);
        signal_stack = NULL;
        return -XEN_EPERM;
    }
    return 0;
}

void host_faults_stop(void)
{
    stack_t off = {.ss_flags = SS_DISABLE};
    sigaltstack(&off, NULL);
    free(signal_stack);
    signal_stack = NULL;
}
