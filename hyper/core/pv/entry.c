/*
 * A vCPU on a pCPU thread: run the guest, look why it came back, do what it needs, again.
 *
 * in_guest is set all along but where the domain lock is held: see domain_lock. Exits that touch only this vCPU's state
 * (system calls, iret, page faults, emulated instructions) therefore take no lock.
 */
#include "cpu/segment.h"
#include "hypercall.h"
#include "machine.h"

/* Lets whoever waits for the lock (and so for us to be out of the guest) go first, then is in_guest again. */
static void pass_through_lock(struct vcpu *v)
{
    domain_lock(v->domain, v);
    domain_unlock(v->domain, v);
}

static void hypercall(struct vcpu *v)
{
    struct cpu_state *c = v->cpu;
    uint64_t nr = c->regs[RAX], rip = c->rip;
    if (nr == __HYPERVISOR_iret) {
        do_iret(v);
        return;
    }
    /* As SYSCALL leaves them; a kernel may have come from selectors of its own. */
    cpu_set_flat(c, FLAT_KERNEL_CS, DESC_FLAT_CODE64, FLAT_KERNEL_SS);
    const uint64_t args[6] = {c->regs[RDI], c->regs[RSI], c->regs[RDX], c->regs[R10], c->regs[R8], c->regs[R9]};
    int64_t ret = do_hypercall(nr, args);
    if (ret == HYPERCALL_LEFT)
        return;
    if (ret == -XEN_ERESTART) {
        c->rip = rip - 2; /* the syscall again, with the arguments hypercall_continue has left */
        return;
    }
    c->regs[RAX] = ret;
    c->regs[RCX] = rip;
    c->regs[R11] = cpu_rflags(c);
}

/* A guest kernel may write to its own read-only page tables: the store is made through the page-type checks. */
static bool is_page_table_write(const struct cpu_state *c)
{
    return !c->user_mode && (c->fault_error & 3) == 3 && c->fault_error < 0x10;
}

static void page_fault(struct vcpu *v)
{
    struct cpu_state *c = v->cpu;
    if (is_page_table_write(c) && engine()->retry_page_table_write(v))
        return;
    pv_inject_page_fault(v, c->fault_vaddr, c->fault_error);
}

static void handle_exit(struct vcpu *v, enum engine_exit why)
{
    switch (why) {
    case EXIT_KICK:
        atomic_store(&v->kick, false);
        pass_through_lock(v);
        break;
    case EXIT_SYSCALL:
        if (v->cpu->user_mode || v->cpu->code)
            pv_system_call(v);
        else
            hypercall(v);
        break;
    case EXIT_PAGE_FAULT: page_fault(v); break;
    case EXIT_PRIVILEGED: pv_emulate_privileged(v); break;
    case EXIT_INVALID: pv_invalid_opcode(v); break;
    case EXIT_DIVIDE: pv_inject_exception(v, 0, false, 0); break;
    case EXIT_DEBUG:
        v->pv.debugreg[6] |= v->cpu->debug;
        pv_inject_exception(v, 1, false, 0);
        break;
    case EXIT_NO_DEVICE:
        /* As Xen: the trap clears TS, the kernel need not. */
        do_fpu_taskswitch(v, 0);
        pv_inject_exception(v, 7, false, 0);
        break;
    case EXIT_GP: pv_inject_exception(v, 13, true, 0); break;
    case EXIT_STACK: pv_inject_exception(v, 12, true, 0); break;
    case EXIT_X87: pv_inject_exception(v, 16, false, 0); break;
    case EXIT_ALIGNMENT: pv_inject_exception(v, 17, true, 0); break;
    case EXIT_SIMD: pv_inject_exception(v, 19, false, 0); break;
    }
}

void vcpu_run(struct vcpu *v)
{
    current_caller = (struct caller){.vcpu = v, .domain = v->domain};
    pass_through_lock(v);
    while (!sched_must_stop(v)) {
        pv_deliver_events(v);
        handle_exit(v, engine()->run(v));
    }
    atomic_store(&v->in_guest, false);
    current_caller = (struct caller){0};
}
