/*
 * Instructions that CPL 3 may not do, or whose result is the hypervisor's to choose: decoded at rip, done or refused with
 * #GP as Xen does for a PV guest.
 */
#include "cpu/operand.h"
#include "hypercall.h"
#include "machine.h"

enum { DEBUG = 1, OVERFLOW = 4, BOUND = 5, UD = 6, SS = 12, GP = 13 };

/* One emulation. Every step may fail with an exception, after which nothing else happens. */
struct emulation {
    struct vcpu *v;
    struct cpu_state *c;
    struct insn insn;
    uint64_t next;
    bool resume; /* RF for the next instruction */
};

static bool raise_gp(struct emulation *m, uint32_t error)
{
    pv_inject_exception(m->v, GP, true, error);
    return false;
}

static bool raise_fault(struct emulation *m)
{
    if (m->c->fault_error == FAULT_STACK_SEGMENT) {
        pv_inject_exception(m->v, SS, true, 0);
        return false;
    }
    if (m->c->fault_error == FAULT_NOT_CANONICAL || m->c->fault_error == FAULT_SEGMENT)
        return raise_gp(m, 0);
    pv_inject_page_fault(m->v, m->c->fault_vaddr, m->c->fault_error);
    return false;
}

/* `bytes` at `distance` behind the memory operand. */
static bool load(struct emulation *m, unsigned distance, void *to, size_t bytes)
{
    uint64_t at, offset = (operand_offset(m->c, &m->insn) + distance) & address_mask(&m->insn);
    return (locate(m->c, insn_segment(&m->insn), offset, bytes, false, &at) && engine()->read(m->v, at, to, bytes)) ||
           raise_fault(m);
}

static bool store(struct emulation *m, const void *from, size_t bytes)
{
    uint64_t at;
    return (operand_address(m->c, &m->insn, bytes, true, &at) && engine()->write(m->v, at, from, bytes)) || raise_fault(m);
}

/* At rsp + distance. */
static bool load_stack(struct emulation *m, int64_t distance, void *to, size_t bytes)
{
    uint64_t at;
    return (stack_address(m->c, distance, bytes, false, &at) && engine()->read(m->v, at, to, bytes)) || raise_fault(m);
}

static bool store_stack(struct emulation *m, int64_t distance, const void *from, size_t bytes)
{
    uint64_t at;
    return (stack_address(m->c, distance, bytes, true, &at) && engine()->write(m->v, at, from, bytes)) || raise_fault(m);
}

/* ---- segments --------------------------------------------------------------------------------------------------- */

static bool raise(struct emulation *m, int vector, uint32_t error)
{
    pv_inject_exception(m->v, vector, true, error);
    return false;
}

static bool load_segment(struct emulation *m, unsigned sreg, uint16_t selector)
{
    uint32_t error;
    if (sreg == SREG_CS || sreg >= NR_SREGS) {
        pv_inject_exception(m->v, UD, false, 0);
        return false;
    }
    int vector = pv_load_segment(m->v, sreg, selector, &error);
    return !vector || raise(m, vector, error);
}

static bool mov_to_segment(struct emulation *m)
{
    uint16_t selector = m->c->regs[m->insn.rm];
    if (m->insn.mod != 3 && !load(m, 0, &selector, 2))
        return false;
    return load_segment(m, m->insn.reg & 7, selector);
}

static bool push_segment(struct emulation *m, unsigned sreg)
{
    uint64_t value = m->c->sreg[sreg];
    int64_t bytes = m->insn.operand_size;
    if (!store_stack(m, -bytes, &value, bytes))
        return false;
    stack_move(m->c, -bytes);
    return true;
}

static bool pop_segment(struct emulation *m, unsigned sreg)
{
    uint64_t value;
    unsigned bytes = m->insn.operand_size;
    if (!load_stack(m, 0, &value, bytes) || !load_segment(m, sreg, value))
        return false;
    stack_move(m->c, bytes);
    return true;
}

/* les lds lss lfs lgs: an offset to a register, the selector behind it to a segment register. */
static bool load_far_pointer(struct emulation *m)
{
    static const struct { uint8_t opcode, sreg; } pointer[] = {
        {0xc4, SREG_ES}, {0xc5, SREG_DS}, {0xb2, SREG_SS}, {0xb4, SREG_FS}, {0xb5, SREG_GS},
    };
    uint64_t offset = 0;
    uint16_t selector;
    unsigned bytes = m->insn.operand_size, k = 0;
    while (pointer[k].opcode != m->insn.opcode)
        k++;
    if (!load(m, 0, &offset, bytes) || !load(m, bytes, &selector, 2) || !load_segment(m, pointer[k].sreg, selector))
        return false;
    set_register(m->c, m->insn.reg, bytes, offset);
    return true;
}

/* A far transfer: rip is checked against the segment by the next fetch. */
static bool go_far(struct emulation *m, uint16_t selector, uint64_t rip)
{
    uint64_t code;
    uint32_t error;
    int vector = pv_find_code(m->v, selector, &code, &error);
    if (vector)
        return raise(m, vector, error);
    cpu_set_segment(m->c, SREG_CS, selector | 3, code);
    m->next = m->c->code ? (uint32_t)rip : rip;
    return true;
}

static bool far_return(struct emulation *m)
{
    unsigned bytes = m->insn.operand_size;
    uint64_t rip = 0, cs = 0, mask = stack_mask(m->c);
    if (!load_stack(m, 0, &rip, bytes) || !load_stack(m, bytes, &cs, bytes) || !go_far(m, cs, rip))
        return false;
    m->c->regs[RSP] = (m->c->regs[RSP] + 2 * bytes + (m->insn.opcode == 0xca ? m->insn.imm : 0)) & mask;
    return true;
}

/* iret within the current mode: the hypercall is the only way to change it. 64-bit code always gets a new stack. */
static bool native_iret(struct emulation *m)
{
    unsigned bytes = m->insn.operand_size, words = m->c->code ? 3 : 5;
    uint64_t f[5] = {0}, mask = stack_mask(m->c);
    uint32_t error;
    for (unsigned k = 0; k < words; k++)
        if (!load_stack(m, k * bytes, &f[k], bytes))
            return false;
    if (words == 3) {
        if (!go_far(m, f[1], f[0]))
            return false;
        m->c->regs[RSP] = (m->c->regs[RSP] + 3 * bytes) & mask;
    } else {
        int vector = pv_load_code_and_stack(m->v, f[1], f[4] | 3, &error);
        if (vector)
            return raise(m, vector, error);
        m->next = m->c->code ? (uint32_t)f[0] : f[0];
        m->c->regs[RSP] = f[3];
    }
    cpu_set_rflags(m->c, bytes == 2 ? (cpu_rflags(m->c) & ~0xffffull) | f[2] : f[2]);
    m->resume = f[2] & X86_RF;
    return true;
}

/* call, when `call`, or jmp to selector:rip. */
static bool far_transfer(struct emulation *m, bool call, uint16_t selector, uint64_t rip)
{
    int64_t bytes = m->insn.operand_size;
    uint64_t back = m->next, cs = m->c->sreg[SREG_CS], mask = stack_mask(m->c), code;
    uint32_t error;
    int vector = call ? pv_find_code(m->v, selector, &code, &error) : 0; /* before anything is pushed */
    if (vector)
        return raise(m, vector, error);
    if (call && (!store_stack(m, -bytes, &cs, bytes) || !store_stack(m, -2 * bytes, &back, bytes)))
        return false;
    if (!go_far(m, selector, rip))
        return false;
    if (call)
        m->c->regs[RSP] = (m->c->regs[RSP] - 2 * bytes) & mask;
    return true;
}

/* Through m16:16, m16:32 or m16:64. */
static bool far_indirect(struct emulation *m)
{
    unsigned bytes = m->insn.operand_size;
    uint64_t rip = 0;
    uint16_t cs;
    return load(m, 0, &rip, bytes) && load(m, bytes, &cs, 2) && far_transfer(m, (m->insn.reg & 7) == 3, cs, rip);
}

/* To an address in the instruction: 32-bit code only. */
static bool far_direct(struct emulation *m)
{
    unsigned bits = 8 * m->insn.operand_size;
    uint64_t imm = m->insn.imm;
    return far_transfer(m, m->insn.opcode == 0x9a, imm >> bits, imm & ((1ull << bits) - 1));
}

/* ---- interrupts, ports, flags ----------------------------------------------------------------------------------- */

static bool software_interrupt(struct emulation *m, unsigned vector)
{
    const struct pv_vcpu *pv = &m->v->pv;
    if (!pv->trap[vector].address || (pv->trap[vector].flags & 3) < (m->c->user_mode ? 3 : 1))
        return raise_gp(m, vector * 8 + 2);
    m->c->rip = m->next;
    pv_inject_exception(m->v, vector, false, 0);
    return false; /* rip is the handler's */
}

static bool into(struct emulation *m)
{
    return (cpu_rflags(m->c) & X86_OF) ? software_interrupt(m, OVERFLOW) : true;
}

/* A signed index between two bounds in memory. */
static bool bound(struct emulation *m)
{
    unsigned bytes = m->insn.operand_size;
    int32_t wide[2], index = m->c->regs[m->insn.reg];
    int16_t narrow[2];
    if (!load(m, 0, bytes == 2 ? (void *)narrow : wide, 2 * bytes))
        return false;
    if (bytes == 2)
        wide[0] = narrow[0], wide[1] = narrow[1], index = (int16_t)index;
    if (index >= wide[0] && index <= wide[1])
        return true;
    pv_inject_exception(m->v, BOUND, false, 0);
    return false;
}

/* The guest's virtual I/O privilege: ports answer as an empty bus does. */
static bool io_allowed(struct emulation *m)
{
    uint64_t ring = m->c->user_mode ? 3 : pv_architectural_iopl(m->v) ? 0 : 1;
    return m->v->pv.iopl >= ring;
}

static bool port_io(struct emulation *m)
{
    if (!io_allowed(m))
        return raise_gp(m, 0);
    bool in = !(m->insn.opcode & 2), byte = !(m->insn.opcode & 1);
    if (in)
        set_register(m->c, RAX, byte ? 1 : m->insn.operand_size == 2 ? 2 : 4, ~0ull);
    return true;
}

/* ---- MSRs, control and debug registers -------------------------------------------------------------------------- */

enum {
    MSR_TSC = 0x10, MSR_ARCH_CAPABILITIES = 0x10a, MSR_MISC_ENABLE = 0x1a0, MSR_PAT = 0x277, MSR_EFER = 0xc0000080,
    MSR_FS_BASE = 0xc0000100, MSR_GS_BASE, MSR_KERNEL_GS_BASE,
};
#define EFER_VALUE 0xd01ull                 /* SCE LME LMA NXE */
#define PAT_VALUE 0x0000050100070406ull     /* Xen's */

static bool read_msr(struct emulation *m)
{
    uint64_t value;
    switch ((uint32_t)m->c->regs[RCX]) {
    case MSR_TSC: value = __builtin_ia32_rdtsc(); break;
    case MSR_ARCH_CAPABILITIES: value = CPU_ARCH_CAPABILITIES; break;
    case MSR_MISC_ENABLE: value = 1; break;
    case MSR_PAT: value = PAT_VALUE; break;
    case MSR_EFER: value = EFER_VALUE; break;
    case MSR_FS_BASE: value = m->c->fs_base; break;
    case MSR_GS_BASE: value = m->c->gs_base; break;
    case MSR_KERNEL_GS_BASE: value = m->v->pv.gs_base_user; break;
    default: return raise_gp(m, 0);
    }
    m->c->regs[RAX] = (uint32_t)value;
    m->c->regs[RDX] = value >> 32;
    return true;
}

static bool write_msr(struct emulation *m)
{
    uint64_t value = (uint32_t)m->c->regs[RAX] | m->c->regs[RDX] << 32;
    switch ((uint32_t)m->c->regs[RCX]) {
    case MSR_FS_BASE: case MSR_GS_BASE: case MSR_KERNEL_GS_BASE:
        if (!is_canonical(value))
            return raise_gp(m, 0);
        break;
    case MSR_EFER: return value == EFER_VALUE || raise_gp(m, 0);
    case MSR_PAT: return value == PAT_VALUE || raise_gp(m, 0);
    default: return raise_gp(m, 0);
    }
    switch ((uint32_t)m->c->regs[RCX]) {
    case MSR_FS_BASE: m->c->fs_base = value; break;
    case MSR_GS_BASE: m->c->gs_base = value; break;
    case MSR_KERNEL_GS_BASE: m->v->pv.gs_base_user = value; break;
    }
    return true;
}

#define CR0_TS 8ull
#define CR0_VALUE 0x80050033ull

static bool read_cr(struct emulation *m)
{
    uint64_t value;
    switch (m->insn.reg) {
    case 0: value = CR0_VALUE | (m->v->pv.cr0_ts ? CR0_TS : 0); break;
    case 2: value = m->v->vcpu_info->arch.cr2; break;
    case 3: value = gfn_x(m->v->pv.kernel_l4) << PAGE_SHIFT; break;
    case 4: value = m->v->pv.cr4; break;
    default:
        pv_inject_exception(m->v, UD, false, 0);
        return false;
    }
    m->c->regs[m->insn.rm] = value;
    return true;
}

static int write_cr3(struct vcpu *v, uint64_t value)
{
    domain_lock(v->domain, v);
    int rc = pv_set_cr3(v, _gfn((value & PTE_ADDR) >> PAGE_SHIFT), v->pv.user_l4);
    domain_unlock(v->domain, v);
    return rc;
}

/* Bits a guest may have in its view of CR4: VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT, and OSXSAVE. */
static uint64_t cr4_allowed(const struct vcpu *v)
{
    return 0x7ffull | (v->domain->policy.features & CPU_BIT(XSAVE) ? CR4_OSXSAVE : 0);
}

static bool write_cr(struct emulation *m)
{
    uint64_t value = m->c->regs[m->insn.rm];
    switch (m->insn.reg) {
    case 0:
        if ((value ^ CR0_VALUE) & ~CR0_TS)
            return raise_gp(m, 0);
        do_fpu_taskswitch(m->v, value & CR0_TS);
        return true;
    case 2: m->v->vcpu_info->arch.cr2 = value; return true;
    case 3: return !write_cr3(m->v, value) || raise_gp(m, 0);
    case 4:
        if (value & ~cr4_allowed(m->v))
            return raise_gp(m, 0);
        m->v->pv.cr4 = value;
        return true;
    }
    pv_inject_exception(m->v, UD, false, 0);
    return false;
}

static bool debug_register(struct emulation *m, bool write)
{
    uint64_t *r = &m->c->regs[m->insn.rm];
    if (write)
        return !do_set_debugreg(m->v, m->insn.reg, *r) || raise_gp(m, 0);
    int64_t value = do_get_debugreg(m->v, m->insn.reg);
    if (m->insn.reg > 7) {
        pv_inject_exception(m->v, UD, false, 0);
        return false;
    }
    *r = value;
    return true;
}

/* ---- XCR0 ------------------------------------------------------------------------------------------------------- */

static bool undefined(struct emulation *m)
{
    pv_inject_exception(m->v, UD, false, 0);
    return false;
}

static bool xgetbv(struct emulation *m)
{
    uint64_t value = m->c->xcr0, features = vcpu_features(m->v);
    uint32_t which = m->c->regs[RCX];
    if (!(features & CPU_BIT(XSAVE)) || m->insn.prefix_66 || m->insn.prefix_f3 || m->insn.prefix_f2)
        return undefined(m);
    if (which > 1 || (which && !(features & CPU_BIT(XGETBV1))))
        return raise_gp(m, 0);
    if (which)
        value = engine()->xstate_in_use(m->v);
    m->c->regs[RAX] = (uint32_t)value;
    m->c->regs[RDX] = value >> 32;
    return true;
}

static bool xsetbv(struct emulation *m)
{
    uint64_t value = (uint32_t)m->c->regs[RAX] | m->c->regs[RDX] << 32, all = policy_xcr0(&m->v->domain->policy);
    if (!all || m->insn.prefix_66 || m->insn.prefix_f3 || m->insn.prefix_f2)
        return undefined(m);
    bool sane = (value & XCR0_X87) && !(value & ~all) && (!(value & XCR0_AVX) || (value & XCR0_SSE));
    if (m->c->user_mode || (uint32_t)m->c->regs[RCX] || !sane)
        return raise_gp(m, 0);
    m->c->xcr0 = value;
    m->v->pv.xcr0_accum |= value;
    return true;
}

/* ---- groups 6 and 7 --------------------------------------------------------------------------------------------- */

static bool store_word(struct emulation *m, uint64_t value)
{
    if (m->insn.mod != 3)
        return store(m, &value, 2);
    set_register(m->c, m->insn.rm, m->insn.operand_size, value);
    return true;
}

static bool group_6(struct emulation *m) /* sldt str lldt ltr verr verw */
{
    uint16_t selector = m->c->regs[m->insn.rm];
    uint64_t d;
    switch (m->insn.reg & 7) {
    case 0: case 1: return store_word(m, 0);
    case 4: case 5:
        if (m->insn.mod != 3 && !load(m, 0, &selector, 2))
            return false;
        bool write = (m->insn.reg & 7) == 5, code = false;
        bool ok = pv_read_descriptor(m->v, selector, &d) && (d >> 44 & 1) && (d >> 47 & 1);
        if (ok) {
            code = d >> 43 & 1;
            ok = write ? !code && (d >> 41 & 1) : !code || (d >> 41 & 1);
        }
        m->c->status = (m->c->status & ~(uint64_t)(X86_ZF << 8)) | (ok ? X86_ZF << 8 : 0);
        return true;
    case 2: case 3: return raise_gp(m, 0);
    }
    pv_inject_exception(m->v, UD, false, 0);
    return false;
}

/* Where Xen maps the GDT of a PV vCPU 0; the low 16 bits of CR0. */
#define GDT_VADDR 0xffff82e000000000ull

static bool group_7(struct emulation *m) /* sgdt sidt lgdt lidt smsw lmsw invlpg */
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) table = {0, 0};
    unsigned r = m->insn.reg & 7;
    if (m->insn.modrm == 0xd0)
        return xgetbv(m);
    if (m->insn.modrm == 0xd1)
        return xsetbv(m);
    if (m->insn.mod == 3 && r != 4 && r != 6) { /* vmcall, monitor, swapgs, rdtscp...: not offered */
        pv_inject_exception(m->v, UD, false, 0);
        return false;
    }
    switch (r) {
    case 0: case 1:
        table.limit = r ? 256 * 16 - 1 : 0xffff;
        table.base = GDT_VADDR;
        return store(m, &table, m->c->code ? 6 : sizeof(table));
    case 4: return store_word(m, CR0_VALUE & 0xffff);
    case 7:
        if (m->c->user_mode)
            return raise_gp(m, 0);
        domain_lock(m->v->domain, m->v);
        engine()->flush_page(m->v->domain, m->v, m->v, operand_offset(m->c, &m->insn) + segment_base(m->c, insn_segment(&m->insn)));
        domain_unlock(m->v->domain, m->v);
        return true;
    }
    return raise_gp(m, 0);
}

/* ---- dispatch --------------------------------------------------------------------------------------------------- */

static bool cpuid(struct emulation *m)
{
    uint32_t out[4];
    uint64_t *r = m->c->regs;
    pv_cpuid(m->v, r[RAX], r[RCX], out);
    r[RAX] = out[0];
    r[RBX] = out[1];
    r[RCX] = out[2];
    r[RDX] = out[3];
    return true;
}

static bool kernel_only(struct emulation *m)
{
    if (m->c->user_mode)
        return raise_gp(m, 0);
    switch (m->insn.opcode) {
    case 0x06: do_fpu_taskswitch(m->v, 0); return true; /* clts */
    case 0x09: return true;                             /* wbinvd: caches are coherent */
    case 0x20: return read_cr(m);
    case 0x21: return debug_register(m, false);
    case 0x22: return write_cr(m);
    case 0x23: return debug_register(m, true);
    case 0x30: return write_msr(m);
    case 0x32: return read_msr(m);
    }
    return raise_gp(m, 0);
}

static bool emulate_two_byte(struct emulation *m)
{
    switch (m->insn.opcode) {
    case 0x34: pv_sysenter(m->v); return false;
    case 0x00: return group_6(m);
    case 0x01: return group_7(m);
    case 0xa0: return push_segment(m, SREG_FS);
    case 0xa1: return pop_segment(m, SREG_FS);
    case 0xa2: return cpuid(m);
    case 0xb2: case 0xb4: case 0xb5: return load_far_pointer(m);
    case 0xa8: return push_segment(m, SREG_GS);
    case 0xa9: return pop_segment(m, SREG_GS);
    }
    return kernel_only(m);
}

static bool emulate_one_byte(struct emulation *m)
{
    unsigned op = m->insn.opcode;
    switch (op) {
    case 0x06: case 0x0e: case 0x16: case 0x1e: return push_segment(m, op >> 3);
    case 0x07: case 0x17: case 0x1f: return pop_segment(m, op >> 3);
    case 0x62: return bound(m);
    case 0x8e: return mov_to_segment(m);
    case 0x9a: case 0xea: return far_direct(m);
    case 0xc4: case 0xc5: return load_far_pointer(m);
    case 0xce: return into(m);
    case 0xca: case 0xcb: return far_return(m);
    case 0xcc: return software_interrupt(m, 3);
    case 0xcd: return software_interrupt(m, m->insn.imm & 0xff);
    case 0xcf: return native_iret(m);
    case 0xe4 ... 0xe7: case 0xec ... 0xef: return port_io(m);
    case 0xf1:
        m->c->rip = m->next;
        pv_inject_exception(m->v, 1, false, 0);
        return false;
    case 0xfa: case 0xfb: return io_allowed(m) || raise_gp(m, 0); /* IF is always set; Xen ignores these too */
    case 0xff: return far_indirect(m);
    }
    return raise_gp(m, 0); /* hlt, ins, outs */
}

static bool decode_at_rip(struct emulation *m)
{
    uint8_t bytes[DECODE_BYTES] = {0};
    unsigned got = engine()->fetch(m->v, m->c->rip, bytes);
    decode(&m->insn, bytes, m->c->rip, vcpu_features(m->v), m->c->code);
    m->next = m->c->rip + m->insn.length;
    if (m->c->code)
        m->next = (uint32_t)m->next;
    return got >= m->insn.length;
}

/* The instruction is done; `step`: TF was set before it. */
static void retire(struct emulation *m, bool step)
{
    m->c->rip = m->next;
    m->c->resume = m->resume;
    if (!step)
        return;
    m->v->pv.debugreg[6] |= DEBUG_STEP;
    pv_inject_exception(m->v, DEBUG, false, 0);
}

/* After a load of SS, the CPU takes no trap before the next instruction is done as well. */
static bool loads_stack_segment(const struct insn *i)
{
    return i->map ? i->opcode == 0xb2 : i->opcode == 0x17 || (i->opcode == 0x8e && (i->reg & 7) == SREG_SS);
}

void pv_emulate_privileged(struct vcpu *v)
{
    struct emulation m = {.v = v, .c = v->cpu};
    bool step = v->cpu->other_flags & X86_TF;
    /* Another vCPU may have rewritten the instruction since it was translated: run what is there now. */
    if (!decode_at_rip(&m) || (m.insn.kind != INSN_PRIVILEGED && m.insn.kind != INSN_IRET))
        return;
    if (m.insn.map ? emulate_two_byte(&m) : emulate_one_byte(&m))
        retire(&m, step && !loads_stack_segment(&m.insn));
}

/* ud2 followed by "xen": the guest asks for the next instruction to be emulated, to see Xen's CPUID. */
static const uint8_t forced_emulation[5] = {0x0f, 0x0b, 'x', 'e', 'n'};

void pv_invalid_opcode(struct vcpu *v)
{
    uint8_t bytes[DECODE_BYTES] = {0};
    struct insn i;
    unsigned got = engine()->fetch(v, v->cpu->rip, bytes);
    decode(&i, bytes, v->cpu->rip, vcpu_features(v), v->cpu->code);
    if (i.kind != INSN_INVALID)
        return;
    if (got >= 7 && !memcmp(bytes, forced_emulation, 5) && bytes[5] == 0x0f && bytes[6] == 0xa2) {
        struct emulation m = {.v = v, .c = v->cpu, .next = v->cpu->rip + 7};
        if (cpuid(&m))
            retire(&m, v->cpu->other_flags & X86_TF);
        return;
    }
    pv_inject_exception(v, UD, false, 0);
}
