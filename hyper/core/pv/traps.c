/*
 * How a PV guest is entered: exceptions, system calls and events as frames on its kernel stack, and the way back (iret).
 *
 * From low addresses: rcx, r11, [ds, es, fs, gs], [error code], rip, cs | saved upcall mask << 32, rflags (IF = !mask), rsp,
 * ss. cs has its RPL cleared when the guest kernel was interrupted, so that the kernel can tell.
 */
#include "callback.h"
#include "cpu/segment.h"
#include "hypercall.h"
#include "machine.h"
#include "physdev.h"

void pv_set_mode(struct vcpu *v, bool user)
{
    struct cpu_state *c = v->cpu;
    if (c->user_mode == user)
        return;
    if (user) {
        v->pv.gs_base_kernel = c->gs_base;
        c->gs_base = v->pv.gs_base_user;
    } else {
        v->pv.gs_base_user = c->gs_base;
        c->gs_base = v->pv.gs_base_kernel;
    }
    engine()->set_mode(v, user);
}

/* VMASST_TYPE_architectural_iopl: the virtual IOPL is that in the flags of frames, and the kernel counts as ring 0. */
bool pv_architectural_iopl(const struct vcpu *v)
{
    return v->domain->vm_assist >> VMASST_TYPE_architectural_iopl & 1;
}

struct bounce { uint64_t address; bool has_error; uint32_t error; bool mask_events, with_segments; };

static bool enter_kernel(struct vcpu *v, const struct bounce *b)
{
    struct cpu_state *c = v->cpu;
    bool from_user = c->user_mode;
    uint64_t frame[12], cs = c->sreg[SREG_CS], ss = c->sreg[SREG_SS], rsp = c->regs[RSP], rflags = cpu_rflags(c);
    unsigned n = 0;
    uint8_t mask = v->vcpu_info->evtchn_upcall_mask;
    if (!from_user)
        cs &= ~3ull;
    rflags = (rflags & ~(uint64_t)(X86_IF | X86_IOPL)) | (mask ? 0 : X86_IF);
    if (pv_architectural_iopl(v))
        rflags |= v->pv.iopl << 12;
    frame[n++] = c->regs[RCX];
    frame[n++] = c->regs[R11];
    static const enum sreg data[] = {SREG_DS, SREG_ES, SREG_FS, SREG_GS};
    for (unsigned k = 0; b->with_segments && k < ARRAY_SIZE(data); k++)
        frame[n++] = c->sreg[data[k]];
    if (b->has_error)
        frame[n++] = b->error;
    frame[n++] = c->rip;
    frame[n++] = cs | (uint64_t)mask << 32;
    frame[n++] = rflags;
    frame[n++] = rsp;
    frame[n++] = ss;
    uint64_t sp = from_user ? v->pv.kernel_sp : rsp;
    sp = (sp & ~15ull) - 8 * n;
    pv_set_mode(v, false);
    if (!engine()->write(v, sp, frame, 8 * n)) {
        domain_crash(v->domain, "no stack for an entry to %#llx: sp %#llx, rip %#llx, %s", (unsigned long long)b->address,
                     (unsigned long long)sp, (unsigned long long)c->rip, from_user ? "user" : "kernel");
        return false;
    }
    c->regs[RSP] = sp;
    c->rip = b->address;
    cpu_set_flat(c, FLAT_KERNEL_CS, DESC_FLAT_CODE64, FLAT_KERNEL_SS);
    c->other_flags &= ~(uint64_t)(X86_TF | X86_NT | X86_AC);
    c->resume = false;
    if (b->mask_events)
        v->vcpu_info->evtchn_upcall_mask = 1;
    return true;
}

void pv_inject_exception(struct vcpu *v, unsigned vector, bool has_error, uint32_t error)
{
    if (!v->pv.trap[vector].address) {
        domain_crash(v->domain, "exception %u without a handler, error %#x, rip %#llx", vector, error,
                     (unsigned long long)v->cpu->rip);
        return;
    }
    struct bounce b = {v->pv.trap[vector].address, has_error, error, v->pv.trap[vector].flags & 4, false};
    enter_kernel(v, &b);
}

void pv_inject_page_fault(struct vcpu *v, uint64_t vaddr, uint32_t error)
{
    v->vcpu_info->arch.cr2 = vaddr;
    pv_inject_exception(v, 14, true, error);
}

bool pv_deliver_events(struct vcpu *v)
{
    if (likely(!vcpu_event_pending(v)) || !v->pv.event_callback)
        return false;
    struct bounce b = {v->pv.event_callback, false, 0, true, false};
    return enter_kernel(v, &b);
}

/* syscall in 32-bit code, as AMD's CPUs have it. */
static void system_call_32(struct vcpu *v)
{
    struct cpu_state *c = v->cpu;
    if (!v->pv.syscall32_callback || !c->user_mode) {
        c->rip -= 2;
        pv_inject_exception(v, 6, false, 0);
        return;
    }
    c->regs[RCX] = c->rip;
    c->regs[R11] = cpu_rflags(c);
    cpu_set_flat(c, FLAT_USER_CS32, DESC_FLAT_CODE32, FLAT_USER_SS32);
    struct bounce b = {v->pv.syscall32_callback, false, 0, v->pv.syscall32_masks_events, false};
    enter_kernel(v, &b);
}

void pv_system_call(struct vcpu *v)
{
    struct cpu_state *c = v->cpu;
    if (c->code) {
        system_call_32(v);
        return;
    }
    if (!v->pv.syscall_callback) {
        c->rip -= 2;
        pv_inject_exception(v, 6, false, 0);
        return;
    }
    c->regs[RCX] = c->rip;
    c->regs[R11] = cpu_rflags(c);
    cpu_set_flat(c, FLAT_USER_CS64, DESC_FLAT_CODE64, FLAT_USER_SS64);
    struct bounce b = {v->pv.syscall_callback, false, 0, v->pv.callback_flags & VGCF_syscall_disables_events, false};
    enter_kernel(v, &b);
}

/* As Xen's: the CPU saves nothing, so the frame has no address to return to, and TF is off. */
void pv_sysenter(struct vcpu *v)
{
    struct cpu_state *c = v->cpu;
    if (!v->pv.sysenter_callback || !c->user_mode) {
        pv_inject_exception(v, 13, true, 0);
        return;
    }
    c->rip = c->regs[RSP] = 0;
    c->sreg[SREG_CS] = 3;
    c->sreg[SREG_SS] = FLAT_USER_SS;
    c->other_flags &= ~(uint64_t)X86_TF;
    struct bounce b = {v->pv.sysenter_callback, false, 0, v->pv.sysenter_masks_events, false};
    enter_kernel(v, &b);
}

/* iret found segments that can't be loaded: the guest kernel is told, by a frame with the selectors of all of them. */
static void failsafe(struct vcpu *v)
{
    struct cpu_state *c = v->cpu;
    if (!v->pv.failsafe_callback) {
        domain_crash(v->domain, "iret: bad segments %#x %#x", c->sreg[SREG_CS], c->sreg[SREG_SS]);
        return;
    }
    struct bounce b = {v->pv.failsafe_callback, false, 0, v->pv.callback_flags & VGCF_failsafe_disables_events, true};
    enter_kernel(v, &b);
}

static bool load_user_segments(struct vcpu *v, uint16_t cs, uint16_t ss)
{
    uint32_t error;
    if (!pv_load_code_and_stack(v, cs, ss, &error))
        return true;
    cpu_set_flat(v->cpu, cs, DESC_FLAT_CODE64, ss);
    return false;
}

/* The way back from a frame, to the kernel or to user mode. */
int64_t do_iret(struct vcpu *v)
{
    struct cpu_state *c = v->cpu;
    struct iret_context ic;
    if (!engine()->read(v, c->regs[RSP], &ic, sizeof(ic))) {
        domain_crash(v->domain, "iret: no frame at %#llx", (unsigned long long)c->regs[RSP]);
        return 0;
    }
    bool user = (ic.cs & 3) == 3, good = true;
    c->regs[RAX] = ic.rax;
    if (!(ic.flags & VGCF_in_syscall)) {
        c->regs[R11] = ic.r11;
        c->regs[RCX] = ic.rcx;
    }
    if (user)
        good = load_user_segments(v, ic.cs, ic.ss | 3);
    else
        cpu_set_flat(c, FLAT_KERNEL_CS, DESC_FLAT_CODE64, FLAT_KERNEL_SS);
    if (user)
        pv_set_mode(v, true);
    c->rip = c->code ? (uint32_t)ic.rip : ic.rip;
    c->regs[RSP] = ic.rsp;
    cpu_set_rflags(c, ic.rflags);
    if (pv_architectural_iopl(v))
        v->pv.iopl = (ic.rflags & X86_IOPL) >> 12;
    c->resume = ic.rflags & X86_RF;
    if (ic.flags & VGCF_in_syscall) {
        c->regs[RCX] = ic.rip;
        c->regs[R11] = cpu_rflags(c);
    }
    __atomic_store_n(&v->vcpu_info->evtchn_upcall_mask, !(ic.rflags & X86_IF), __ATOMIC_SEQ_CST);
    if (!good)
        failsafe(v);
    return 0;
}

/* ---- what the guest registers ----------------------------------------------------------------------------------- */

int64_t do_set_trap_table(struct vcpu *v, uint64_t traps)
{
    if (!traps) {
        memset(v->pv.trap, 0, sizeof(v->pv.trap));
        return 0;
    }
    for (struct trap_info t;; traps += sizeof(t)) {
        if (hypercall_preempt_check()) /* a guest's list may be endless */
            return hypercall_continue(__HYPERVISOR_set_trap_table, 1, traps);
        if (copy_from_guest(&t, traps, sizeof(t)))
            return -XEN_EFAULT;
        if (!t.address)
            return 0;
        if (!is_canonical(t.address))
            return -XEN_EINVAL;
        v->pv.trap[t.vector].address = t.address;
        v->pv.trap[t.vector].cs = t.cs;
        v->pv.trap[t.vector].flags = t.flags;
    }
}

static void set_callback_flag(struct vcpu *v, uint32_t flag, uint16_t register_flags)
{
    if (register_flags & CALLBACKF_mask_events)
        v->pv.callback_flags |= flag;
    else
        v->pv.callback_flags &= ~flag;
}

static int64_t set_callback(struct vcpu *v, uint16_t type, uint64_t address, uint16_t flags)
{
    if (!is_canonical(address))
        return -XEN_EINVAL;
    switch (type) {
    case CALLBACKTYPE_event: v->pv.event_callback = address; return 0;
    case CALLBACKTYPE_failsafe:
        v->pv.failsafe_callback = address;
        set_callback_flag(v, VGCF_failsafe_disables_events, flags);
        return 0;
    case CALLBACKTYPE_syscall:
        v->pv.syscall_callback = address;
        set_callback_flag(v, VGCF_syscall_disables_events, flags);
        return 0;
    case CALLBACKTYPE_syscall32:
        v->pv.syscall32_callback = address;
        v->pv.syscall32_masks_events = flags & CALLBACKF_mask_events;
        return 0;
    case CALLBACKTYPE_sysenter:
        v->pv.sysenter_callback = address;
        v->pv.sysenter_masks_events = flags & CALLBACKF_mask_events;
        return 0;
    case CALLBACKTYPE_nmi: return 0; /* accepted as Xen does; no NMI is ever raised */
    }
    return -XEN_ENOSYS;
}

int64_t do_callback_op(struct vcpu *v, uint64_t cmd, uint64_t arg)
{
    struct callback_register r;
    struct callback_unregister u;
    switch (cmd) {
    case CALLBACKOP_register:
        return copy_from_guest(&r, arg, sizeof(r)) ? -XEN_EFAULT : set_callback(v, r.type, r.address, r.flags);
    case CALLBACKOP_unregister:
        if (copy_from_guest(&u, arg, sizeof(u)))
            return -XEN_EFAULT;
        return u.type == CALLBACKTYPE_nmi ? 0 : -XEN_EINVAL;
    }
    return -XEN_ENOSYS;
}

int64_t do_set_callbacks(struct vcpu *v, uint64_t event, uint64_t failsafe, uint64_t syscall)
{
    if (!is_canonical(event) || !is_canonical(failsafe) || !is_canonical(syscall))
        return -XEN_EINVAL;
    v->pv.event_callback = event;
    v->pv.failsafe_callback = failsafe;
    v->pv.syscall_callback = syscall;
    return 0;
}

int64_t do_stack_switch(struct vcpu *v, uint64_t ss, uint64_t sp)
{
    v->pv.kernel_ss = ss | 3;
    v->pv.kernel_sp = sp;
    return 0;
}

/* ---- segments, debug registers, FPU ----------------------------------------------------------------------------- */

int64_t do_set_segment_base(struct vcpu *v, uint64_t which, uint64_t base)
{
    if (which != SEGBASE_GS_USER_SEL && !is_canonical(base))
        return -XEN_EINVAL;
    switch (which) {
    case SEGBASE_FS: v->cpu->fs_base = base; return 0;
    case SEGBASE_GS_USER: v->pv.gs_base_user = base; return 0;
    case SEGBASE_GS_KERNEL: v->cpu->gs_base = base; return 0;
    case SEGBASE_GS_USER_SEL: return pv_set_gs_user_selector(v, base & 0xffff);
    }
    return -XEN_EINVAL;
}

/* Breakpoints on ports are not watched: refusing beats silence. */
static bool is_watchable(uint64_t dr7)
{
    for (unsigned n = 0; n < 4; n++)
        if ((dr7 >> 2 * n & 3) && (dr7 >> (16 + 4 * n) & 3) == 2)
            return false;
    return true;
}

static int64_t set_debugreg(struct vcpu *v, uint64_t reg, uint64_t value)
{
    v->pv.debugreg[reg] = value;
    engine()->set_debug(v, v->pv.debugreg);
    return 0;
}

int64_t do_set_debugreg(struct vcpu *v, uint64_t reg, uint64_t value)
{
    switch (reg) {
    case 0 ... 3:
        if (value >= HYPERVISOR_VIRT_START && value < HYPERVISOR_VIRT_END)
            return -XEN_EPERM;
        return set_debugreg(v, reg, value);
    case 4: case 6: v->pv.debugreg[6] = (value & 0xe00full) | 0xffff0ff0ull; return 0;
    case 5: case 7:
        if (value >> 32)
            return -XEN_EPERM;
        return is_watchable(value) ? set_debugreg(v, 7, (value & 0xffff27ffull) | 0x400) : -XEN_EOPNOTSUPP;
    }
    return -XEN_EINVAL;
}

int64_t do_get_debugreg(struct vcpu *v, uint64_t reg)
{
    if (reg == 4 || reg == 5)
        reg += 2;
    return reg < 8 ? (int64_t)v->pv.debugreg[reg] : -XEN_EINVAL;
}

int64_t do_fpu_taskswitch(struct vcpu *v, uint64_t set)
{
    v->pv.cr0_ts = set;
    engine()->set_fpu_disabled(v, set);
    return 0;
}

int64_t do_physdev_op(struct vcpu *v, uint64_t cmd, uint64_t arg)
{
    struct physdev_set_iopl iopl;
    switch (cmd) {
    case PHYSDEVOP_set_iopl:
        if (copy_from_guest(&iopl, arg, sizeof(iopl)))
            return -XEN_EFAULT;
        if (iopl.iopl > 3)
            return -XEN_EINVAL;
        v->pv.iopl = iopl.iopl;
        return 0;
    }
    return -XEN_ENOSYS; /* no physical devices: no other operation has a meaning */
}
