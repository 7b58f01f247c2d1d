/*
 * Rare unprivileged instructions, one at a time: not worth generated code. Runs between blocks, registers in the vCPU.
 */
#include "cpu/dbt/dbt.h"
#include "cpu/operand.h"

static bool push(struct engine_vcpu *e, unsigned bytes, uint64_t v)
{
    if (!mmu_store(e, e->cpu.regs[RSP] - bytes, bytes, v))
        return false;
    e->cpu.regs[RSP] -= bytes;
    return true;
}

/* mov between the accumulator and an absolute address (a0-a3). */
static bool move_absolute(struct engine_vcpu *e, const struct insn *i)
{
    unsigned bytes = i->opcode & 1 ? i->operand_size : 1;
    uint64_t v, a = i->imm + segment_base(&e->cpu, i);
    if (i->opcode >= 0xa2)
        return mmu_store(e, a, bytes, e->cpu.regs[RAX]);
    if (!mmu_load(e, a, bytes, &v))
        return false;
    set_register(&e->cpu, RAX, bytes, v);
    return true;
}

static bool xlat(struct engine_vcpu *e, const struct insn *i)
{
    uint64_t v, a = e->cpu.regs[RBX] + (e->cpu.regs[RAX] & 0xff);
    if (i->address_32)
        a = (uint32_t)a;
    a += segment_base(&e->cpu, i);
    if (!mmu_load(e, a, 1, &v))
        return false;
    set_register(&e->cpu, RAX, 1, v);
    return true;
}

static uint64_t loop_target(struct engine_vcpu *e, const struct insn *i, uint64_t next)
{
    uint64_t count = e->cpu.regs[RCX] - 1;
    if (i->address_32)
        count = (uint32_t)count;
    e->cpu.regs[RCX] = count;
    bool zero = (e->cpu.status >> 8) & X86_ZF;
    bool taken = count && (i->opcode == 0xe2 || zero == (i->opcode == 0xe1));
    return taken ? next + i->imm : next;
}

static bool enter(struct engine_vcpu *e, const struct insn *i)
{
    unsigned frame = i->imm & 0xffff, level = (i->imm >> 16) & 31;
    uint64_t *r = e->cpu.regs, rsp = r[RSP], rbp = r[RBP], value;
    if (!mmu_store(e, rsp - 8, 8, rbp))
        return false;
    uint64_t top = rsp -= 8;
    for (unsigned k = 1; k < level; k++) {
        if (!mmu_load(e, rbp - 8 * k, 8, &value) || !mmu_store(e, rsp - 8, 8, value))
            return false;
        rsp -= 8;
    }
    if (level) {
        if (!mmu_store(e, rsp - 8, 8, top))
            return false;
        rsp -= 8;
    }
    if (!mmu_access(e, rsp - frame, true)) /* the CPU tries the new top of the stack, too */
        return false;
    r[RBP] = top;
    r[RSP] = rsp - frame;
    return true;
}

/* 16-bit push and pop forms, popf of a frame with TF, pushf onto a frame with code. */
static bool narrow_stack(struct engine_vcpu *e, const struct insn *i)
{
    uint64_t *r = e->cpu.regs, v;
    unsigned reg = (i->opcode & 7) | (i->rex & 1) << 3;
    switch (i->opcode) {
    case 0x50 ... 0x57: return push(e, 2, r[reg]);
    case 0x58 ... 0x5f:
        if (!mmu_load(e, r[RSP], 2, &v))
            return false;
        r[RSP] += 2;
        set_register(&e->cpu, reg, 2, v);
        return true;
    case 0x68: case 0x6a: return push(e, 2, i->imm);
    case 0x9c: return push(e, i->kind == INSN_PUSHF ? 8 : 2, cpu_rflags(&e->cpu));
    case 0x9d: {
        unsigned bytes = i->kind == INSN_POPF ? 8 : 2;
        if (!mmu_load(e, r[RSP], bytes, &v))
            return false;
        r[RSP] += bytes;
        cpu_set_rflags(&e->cpu, bytes == 2 ? (cpu_rflags(&e->cpu) & ~0xffffull) | v : v);
        return true;
    }
    case 0xff:
        if (i->mod == 3)
            return push(e, 2, r[i->rm]);
        return mmu_load(e, operand_address(&e->cpu, i), 2, &v) && push(e, 2, v);
    case 0x8f:
        if (!mmu_load(e, r[RSP], 2, &v))
            return false;
        r[RSP] += 2;
        if (i->mod == 3) {
            set_register(&e->cpu, i->rm, 2, v);
            return true;
        }
        if (mmu_store(e, operand_address(&e->cpu, i), 2, v))
            return true;
        r[RSP] -= 2;
        return false;
    }
    return false;
}

/* lar, lsl: access rights and limit of a selector, ZF says whether it could be read. */
static bool segment_query(struct engine_vcpu *e, const struct insn *i)
{
    uint64_t selector = e->cpu.regs[i->rm], descriptor;
    if (i->mod != 3 && !mmu_load(e, operand_address(&e->cpu, i), 2, &selector))
        return false;
    bool ok = pv_read_descriptor(e->vcpu, selector, &descriptor) && (descriptor >> 47 & 1);
    e->cpu.status = (e->cpu.status & ~(uint64_t)(X86_ZF << 8)) | (ok ? X86_ZF << 8 : 0);
    if (!ok)
        return true;
    uint64_t limit = (descriptor & 0xffff) | (descriptor >> 32 & 0xf0000);
    if (descriptor >> 55 & 1)
        limit = limit << 12 | 0xfff;
    set_register(&e->cpu, i->reg, i->operand_size, i->opcode == 3 ? limit : descriptor >> 32 & 0xffff00);
    return true;
}

/* maskmovdqu: bytes whose mask has its highest bit, to [rdi]. */
static bool masked_move(struct engine_vcpu *e, const struct insn *i)
{
    const uint8_t *data = e->xmm[i->reg], *mask = e->xmm[i->rm];
    uint64_t at = (i->address_32 ? (uint32_t)e->cpu.regs[RDI] : e->cpu.regs[RDI]) + segment_base(&e->cpu, i);
    for (unsigned k = 0; k < 16; k++)
        if ((mask[k] & 0x80) && !mmu_access(e, page_of(at + k) == page_of(at) ? at : page_of(at + k), true))
            return false;
    for (unsigned k = 0; k < 16; k++)
        if ((mask[k] & 0x80) && !mmu_store(e, at + k, 1, data[k]))
            return false;
    return true;
}

/* fnstenv and fnsave (d9, dd): the FPU is the guest's still. What they store of the last instruction is the host's address,
 * so it reads as 0. Memory is looked at first, since the instructions change the FPU. */
static bool store_fpu(struct engine_vcpu *e, const struct insn *i)
{
    bool save = i->opcode == 0xdd, narrow = i->prefix_66;
    uint8_t image[108];
    unsigned environment = narrow ? 14 : 28, bytes = environment + (save ? 80 : 0), pointers = narrow ? 6 : 12;
    uint64_t to = operand_address(&e->cpu, i);
    if (!mmu_access(e, to, true) || !mmu_access(e, to + bytes - 1, true))
        return false;
    if (save && narrow)
        __asm__ volatile("data16 fnsave %0" : "=m"(image));
    else if (save)
        __asm__ volatile("fnsave %0" : "=m"(image));
    else if (narrow)
        __asm__ volatile("data16 fnstenv %0" : "=m"(image));
    else
        __asm__ volatile("fnstenv %0" : "=m"(image));
    memset(image + pointers, 0, environment - pointers);
    for (unsigned k = 0; k < bytes; k++)
        if (!mmu_store(e, to + k, 1, image[k]))
            return false;
    return true;
}

int interpret_rare(struct engine_vcpu *e)
{
    uint8_t bytes[DECODE_BYTES] = {0};
    struct insn i;
    unsigned got = engine()->fetch(e->vcpu, e->cpu.rip, bytes);
    decode(&i, bytes, e->cpu.rip, vcpu_features(e->vcpu));
    if (got < i.length || (i.kind != INSN_RARE && i.kind != INSN_POPF && i.kind != INSN_PUSHF))
        return DBT_LINK; /* another vCPU has rewritten it since: run what is there now */
    uint64_t next = e->cpu.rip + i.length;
    bool ok;
    if (i.map == 1 && i.opcode == 0xf7)
        ok = masked_move(e, &i);
    else if (i.map == 1)
        ok = segment_query(e, &i);
    else if (i.opcode >= 0xa0 && i.opcode <= 0xa3)
        ok = move_absolute(e, &i);
    else if (i.opcode == 0xd7)
        ok = xlat(e, &i);
    else if (i.opcode >= 0xe0 && i.opcode <= 0xe2)
        ok = true, next = loop_target(e, &i, next);
    else if (i.opcode == 0xd9 || i.opcode == 0xdd)
        ok = store_fpu(e, &i);
    else if (i.opcode == 0xc8)
        ok = enter(e, &i);
    else
        ok = narrow_stack(e, &i);
    if (!ok) {
        enum dbt_exit why = mmu_fault_exit(e);
        bool stack = i.opcode == 0xc8 || (i.opcode != 0xd7 && !is_canonical(e->cpu.regs[RSP]));
        return why == DBT_GP && stack ? DBT_STACK : why;
    }
    e->cpu.rip = next;
    return DBT_LINK;
}
