/*
 * A PV vCPU's whole state as Xen's vcpu_guest_context: start of day, VCPUOP_initialise, setvcpucontext and its reverse; and
 * the hypercall page.
 */
#include "cpu/engine.h"
#include "machine.h"

int pv_vcpu_init(struct vcpu *v)
{
    v->pv.kernel_l4 = v->pv.user_l4 = INVALID_GFN;
    for (unsigned k = 0; k < NR_GDT_FRAMES; k++)
        v->pv.gdt_frame[k] = INVALID_MFN;
    v->pv.cr4 = 0x620; /* PAE OSFXSR OSXMMEXCPT */
    v->pv.debugreg[6] = 0xffff0ff0;
    v->pv.debugreg[7] = 0x400;
    return 0;
}

void pv_vcpu_destroy(struct vcpu *v) { (void)v; /* its page references went with pv_drop_tables and pv_drop_gdt */ }

static bool context_is_sane(const struct vcpu_guest_context *c)
{
    return is_canonical(c->user_regs.rip) && is_canonical(c->event_callback_eip) && is_canonical(c->syscall_callback_eip) &&
           is_canonical(c->failsafe_callback_eip) && is_canonical(c->fs_base) && is_canonical(c->gs_base_kernel) &&
           is_canonical(c->gs_base_user) && c->gdt_ents <= 512 * NR_GDT_FRAMES;
}

static const uint8_t reg_order[NR_GPRS] = {RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15};

static uint64_t *reg_field(struct cpu_user_regs *u, unsigned reg)
{
    switch (reg) {
    case RAX: return &u->rax;
    case RCX: return &u->rcx;
    case RDX: return &u->rdx;
    case RBX: return &u->rbx;
    case RSP: return &u->rsp;
    case RBP: return &u->rbp;
    case RSI: return &u->rsi;
    case RDI: return &u->rdi;
    case R8: return &u->r8;
    case R9: return &u->r9;
    case R10: return &u->r10;
    case R11: return &u->r11;
    case R12: return &u->r12;
    case R13: return &u->r13;
    case R14: return &u->r14;
    default: return &u->r15;
    }
}

static void set_registers(struct vcpu *v, const struct vcpu_guest_context *c)
{
    struct cpu_state *s = v->cpu;
    struct cpu_user_regs u = c->user_regs;
    for (unsigned k = 0; k < NR_GPRS; k++)
        s->regs[reg_order[k]] = *reg_field(&u, reg_order[k]);
    s->rip = u.rip;
    cpu_set_rflags(s, u.rflags);
    s->sreg[SREG_ES] = u.es;
    s->sreg[SREG_CS] = u.cs | 3;
    s->sreg[SREG_SS] = u.ss | 3;
    s->sreg[SREG_DS] = u.ds;
    s->sreg[SREG_FS] = u.fs;
    s->sreg[SREG_GS] = u.gs;
    pv_reload_segments(v);
}

static void set_traps(struct vcpu *v, const struct vcpu_guest_context *c)
{
    memset(v->pv.trap, 0, sizeof(v->pv.trap));
    for (unsigned k = 0; k < 256; k++) {
        const struct trap_info *t = &c->trap_ctxt[k];
        if (!t->address || !is_canonical(t->address))
            continue;
        v->pv.trap[t->vector].address = t->address;
        v->pv.trap[t->vector].cs = t->cs;
        v->pv.trap[t->vector].flags = t->flags;
    }
}

int pv_set_context(struct vcpu *v, const struct vcpu_guest_context *c)
{
    if (!context_is_sane(c))
        return -XEN_EINVAL;
    bool user = !(c->flags & VGCF_in_kernel);
    gfn_t user_l4 = c->ctrlreg[1] ? _gfn(c->ctrlreg[1] >> PAGE_SHIFT) : INVALID_GFN;
    int rc = pv_set_gdt_frames(v, c->gdt_frames, c->gdt_ents);
    if (!rc)
        rc = pv_set_cr3(v, _gfn(c->ctrlreg[3] >> PAGE_SHIFT), user_l4);
    if (rc)
        return rc;
    set_registers(v, c);
    set_traps(v, c);
    v->pv.event_callback = c->event_callback_eip;
    v->pv.failsafe_callback = c->failsafe_callback_eip;
    v->pv.syscall_callback = c->syscall_callback_eip;
    v->pv.callback_flags = c->flags & (VGCF_failsafe_disables_events | VGCF_syscall_disables_events);
    v->pv.iopl = (c->user_regs.rflags & X86_IOPL) >> 12; /* the virtual one: secondary vCPUs get it this way */
    v->pv.kernel_ss = c->kernel_ss;
    v->pv.kernel_sp = c->kernel_sp;
    v->pv.ldt_base = c->ldt_base;
    v->pv.ldt_entries = c->ldt_ents;
    for (unsigned k = 0; k < 4; k++)
        do_set_debugreg(v, k, c->debugreg[k]);
    do_set_debugreg(v, 7, c->debugreg[7]);
    if (c->ctrlreg[4])
        v->pv.cr4 = c->ctrlreg[4] & (0x7ff | CR4_OSXSAVE);
    v->cpu->fs_base = c->fs_base;
    v->pv.gs_base_kernel = c->gs_base_kernel;
    v->pv.gs_base_user = c->gs_base_user;
    v->cpu->gs_base = user ? c->gs_base_user : c->gs_base_kernel;
    engine()->set_mode(v, user);
    if (c->flags & VGCF_I387_VALID) {
        struct xstate x = {.present = XCR0_X87 | XCR0_SSE};
        memcpy(x.legacy, &c->fpu_ctxt, sizeof(x.legacy));
        engine()->set_xstate(v, &x);
    }
    v->initialised = true;
    return 0;
}

void pv_get_context(struct vcpu *v, struct vcpu_guest_context *c)
{
    const struct cpu_state *s = v->cpu;
    memset(c, 0, sizeof(*c));
    bool user = s->user_mode;
    c->flags = VGCF_I387_VALID | (user ? 0 : VGCF_in_kernel) | (atomic_load(&v->online) ? VGCF_online : 0) |
               v->pv.callback_flags;
    struct xstate x;
    engine()->get_xstate(v, &x);
    memcpy(&c->fpu_ctxt, x.legacy, sizeof(x.legacy));
    for (unsigned k = 0; k < NR_GPRS; k++)
        *reg_field(&c->user_regs, reg_order[k]) = s->regs[reg_order[k]];
    c->user_regs.rip = s->rip;
    c->user_regs.rflags = cpu_rflags(s) | v->pv.iopl << 12;
    c->user_regs.es = s->sreg[SREG_ES];
    c->user_regs.cs = user ? s->sreg[SREG_CS] : s->sreg[SREG_CS] & ~3;
    c->user_regs.ss = s->sreg[SREG_SS];
    c->user_regs.ds = s->sreg[SREG_DS];
    c->user_regs.fs = s->sreg[SREG_FS];
    c->user_regs.gs = s->sreg[SREG_GS];
    for (unsigned k = 0; k < 256; k++)
        c->trap_ctxt[k] = (struct trap_info){k, v->pv.trap[k].flags, v->pv.trap[k].cs, v->pv.trap[k].address};
    for (unsigned k = 0; k < NR_GDT_FRAMES; k++)
        c->gdt_frames[k] = mfn_eq(v->pv.gdt_frame[k], INVALID_MFN) ? 0 : mfn_x(v->pv.gdt_frame[k]);
    c->gdt_ents = v->pv.gdt_entries;
    c->ldt_base = v->pv.ldt_base;
    c->ldt_ents = v->pv.ldt_entries;
    c->kernel_ss = v->pv.kernel_ss;
    c->kernel_sp = v->pv.kernel_sp;
    c->ctrlreg[0] = 0x80050033 | (v->pv.cr0_ts ? 8 : 0);
    c->ctrlreg[1] = gfn_eq(v->pv.user_l4, INVALID_GFN) ? 0 : gfn_x(v->pv.user_l4) << PAGE_SHIFT;
    c->ctrlreg[2] = v->vcpu_info->arch.cr2;
    c->ctrlreg[3] = gfn_eq(v->pv.kernel_l4, INVALID_GFN) ? 0 : gfn_x(v->pv.kernel_l4) << PAGE_SHIFT;
    c->ctrlreg[4] = v->pv.cr4;
    memcpy(c->debugreg, v->pv.debugreg, sizeof(c->debugreg));
    c->event_callback_eip = v->pv.event_callback;
    c->failsafe_callback_eip = v->pv.failsafe_callback;
    c->syscall_callback_eip = v->pv.syscall_callback;
    c->vm_assist = v->domain->vm_assist;
    c->fs_base = s->fs_base;
    c->gs_base_kernel = user ? v->pv.gs_base_kernel : s->gs_base;
    c->gs_base_user = user ? s->gs_base : v->pv.gs_base_user;
}

/* Entry n lies at n * 32: push rcx; push r11; mov eax, n; syscall; pop r11; pop rcx; ret. iret has no way back. */
void pv_hypercall_page(void *page)
{
    uint8_t *p = page;
    memset(p, 0xcc, PAGE_SIZE);
    for (uint32_t n = 0; n < PAGE_SIZE / 32; n++, p += 32) {
        if (n == __HYPERVISOR_iret) {
            static const uint8_t iret[] = {0x51, 0x41, 0x53, 0x50, 0xb8, __HYPERVISOR_iret, 0, 0, 0, 0x0f, 0x05};
            memcpy(p, iret, sizeof(iret));
            continue;
        }
        const uint8_t call[] = {0x51, 0x41, 0x53, 0xb8, n, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3};
        memcpy(p, call, sizeof(call));
    }
}
