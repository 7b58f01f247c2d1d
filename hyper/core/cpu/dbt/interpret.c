/*
 * Rare unprivileged instructions, one at a time: not worth generated code. Runs between blocks, registers in the vCPU.
 */
#include "cpu/dbt/dbt.h"
#include "cpu/dbt/interpret.h"

static bool push(struct engine_vcpu *e, unsigned bytes, uint64_t v)
{
    if (!store_stack(e, -(int64_t)bytes, bytes, v))
        return false;
    stack_move(&e->cpu, -(int64_t)bytes);
    return true;
}

/* mov between the accumulator and an absolute address (a0-a3). */
static bool move_absolute(struct engine_vcpu *e, const struct insn *i)
{
    unsigned bytes = i->opcode & 1 ? i->operand_size : 1;
    uint64_t v;
    if (i->opcode >= 0xa2)
        return store_at(e, insn_segment(i), i->imm, bytes, e->cpu.regs[RAX]);
    if (!load_at(e, insn_segment(i), i->imm, bytes, &v))
        return false;
    set_register(&e->cpu, RAX, bytes, v);
    return true;
}

static bool xlat(struct engine_vcpu *e, const struct insn *i)
{
    uint64_t v, offset = (e->cpu.regs[RBX] + (e->cpu.regs[RAX] & 0xff)) & address_mask(i);
    if (!load_at(e, insn_segment(i), offset, 1, &v))
        return false;
    set_register(&e->cpu, RAX, 1, v);
    return true;
}

/* loopne, loope, loop; and jcxz, which counts nothing. */
static uint64_t loop_target(struct engine_vcpu *e, const struct insn *i, uint64_t next)
{
    uint64_t mask = address_mask(i), count = (e->cpu.regs[RCX] - (i->opcode != 0xe3)) & mask;
    set_register(&e->cpu, RCX, i->address_16 ? 2 : 8, count);
    bool zero = (e->cpu.status >> 8) & X86_ZF;
    bool taken = i->opcode == 0xe3 ? !count : count && (i->opcode == 0xe2 || zero == (i->opcode == 0xe1));
    return taken ? next + i->imm : next;
}

static bool enter(struct engine_vcpu *e, const struct insn *i)
{
    unsigned frame = i->imm & 0xffff, level = (i->imm >> 16) & 31;
    struct cpu_state *c = &e->cpu;
    uint64_t *r = c->regs, rbp = r[RBP], value, at, mask = stack_mask(c);
    int64_t word = stack_word(c), distance = -word;
    if (!store_stack(e, distance, word, rbp))
        return false;
    uint64_t top = (r[RSP] - word) & mask;
    for (unsigned k = 1; k < level; k++) {
        distance -= word;
        if (!load_at(e, SREG_SS, (rbp - word * k) & mask, word, &value) || !store_stack(e, distance, word, value))
            return false;
    }
    if (level) {
        distance -= word;
        if (!store_stack(e, distance, word, top))
            return false;
    }
    distance -= frame;
    if (!stack_address(c, distance, 1, true, &at) || !mmu_access(e, at, true)) /* the CPU tries the new top of the stack, too */
        return false;
    r[RBP] = top;
    stack_move(c, distance);
    return true;
}

/* 16-bit pops, to a register or to memory, whose address is computed with rsp already incremented. */
static bool pop_narrow(struct engine_vcpu *e, const struct insn *i, bool to_register, unsigned reg)
{
    uint64_t v;
    if (!load_stack(e, 0, 2, &v))
        return false;
    stack_move(&e->cpu, 2);
    if (to_register) {
        set_register(&e->cpu, reg, 2, v);
        return true;
    }
    if (store_operand(e, i, 2, v))
        return true;
    stack_move(&e->cpu, -2);
    return false;
}

static bool pop_flags(struct engine_vcpu *e, unsigned bytes)
{
    uint64_t v;
    if (!load_stack(e, 0, bytes, &v))
        return false;
    stack_move(&e->cpu, bytes);
    cpu_set_rflags(&e->cpu, bytes == 2 ? (cpu_rflags(&e->cpu) & ~0xffffull) | v : v);
    return true;
}

/* 16-bit push and pop forms, popf of a frame with TF, pushf onto a frame with code. */
static bool narrow_stack(struct engine_vcpu *e, const struct insn *i)
{
    uint64_t *r = e->cpu.regs, v;
    unsigned reg = (i->opcode & 7) | (i->rex & 1) << 3;
    switch (i->opcode) {
    case 0x50 ... 0x57: return push(e, 2, r[reg]);
    case 0x58 ... 0x5f: return pop_narrow(e, i, true, reg);
    case 0x68: case 0x6a: return push(e, 2, i->imm);
    case 0x9c: return push(e, i->kind == INSN_PUSHF ? stack_word(&e->cpu) : 2, cpu_rflags(&e->cpu) & ~(uint64_t)X86_RF);
    case 0x9d: return pop_flags(e, i->kind == INSN_POPF ? stack_word(&e->cpu) : 2);
    case 0xff:
        if (i->mod == 3)
            return push(e, 2, r[i->rm]);
        return load_operand(e, i, 2, &v) && push(e, 2, v);
    case 0x8f: return pop_narrow(e, i, i->mod == 3, i->rm);
    }
    return false;
}

/* lar, lsl: access rights and limit of a selector, ZF says whether it could be read. */
static bool segment_query(struct engine_vcpu *e, const struct insn *i)
{
    uint64_t selector = e->cpu.regs[i->rm], descriptor;
    if (i->mod != 3 && !load_operand(e, i, 2, &selector))
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

/* The MMX registers: translated code has run an MMX instruction just before, so ST0 is MM0. */
static void read_mmx(uint8_t out[8][16])
{
    uint8_t image[512] __attribute__((aligned(16)));
    __asm__ volatile("fxsave64 %0" : "=m"(image));
    memcpy(out, image + 32, 8 * 16);
}

/* maskmovdqu, maskmovq: bytes whose mask has its highest bit, to [rdi]. */
static bool masked_move(struct engine_vcpu *e, const struct insn *i)
{
    bool mmx = !i->prefix_66 && !i->vex;
    unsigned n = mmx ? 8 : 16;
    uint8_t mm[8][16];
    uint64_t at;
    if (mmx)
        read_mmx(mm);
    const uint8_t *data = mmx ? mm[i->reg & 7] : e->xmm[i->reg], *mask = mmx ? mm[i->rm & 7] : e->xmm[i->rm];
    if (!locate(&e->cpu, insn_segment(i), e->cpu.regs[RDI] & address_mask(i), n, true, &at))
        return false;
    for (unsigned k = 0; k < n; k++)
        if ((mask[k] & 0x80) && !mmu_access(e, page_of(at + k) == page_of(at) ? at : page_of(at + k), true))
            return false;
    for (unsigned k = 0; k < n; k++)
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
    uint64_t to;
    if (!operand_address(&e->cpu, i, bytes, true, &to) || !mmu_access(e, to, true) || !mmu_access(e, to + bytes - 1, true))
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

static bool is_rare(const struct insn *i)
{
    return i->kind == INSN_RARE || i->kind == INSN_POPF || i->kind == INSN_PUSHF || i->kind == INSN_MASKED_MOVE;
}

static bool interpret(struct engine_vcpu *e, const struct insn *i, uint64_t *next)
{
    if (i->kind == INSN_MASKED_MOVE)
        return interpret_masked_move(e, i);
    if (i->vsib)
        return interpret_gather(e, i);
    if (i->map == 1)
        return i->opcode == 0xf7 ? masked_move(e, i) : segment_query(e, i);
    switch (i->opcode) {
    case 0xa0 ... 0xa3: return move_absolute(e, i);
    case 0xd7: return xlat(e, i);
    case 0xe0 ... 0xe3: *next = loop_target(e, i, *next); return true;
    case 0xd9: case 0xdd: return store_fpu(e, i);
    case 0xc8: return enter(e, i);
    }
    return narrow_stack(e, i);
}

/* Is an address that isn't canonical one of the stack segment? */
static bool is_stack_fault(const struct engine_vcpu *e, const struct insn *i)
{
    if (i->vex)
        return !i->segment && (i->base == RSP || i->base == RBP);
    return i->opcode == 0xc8 || (i->opcode != 0xd7 && !is_canonical(e->cpu.regs[RSP]));
}

int interpret_rare(struct engine_vcpu *e)
{
    uint8_t bytes[DECODE_BYTES] = {0};
    struct insn i;
    unsigned got = engine()->fetch(e->vcpu, e->cpu.rip, bytes);
    decode(&i, bytes, e->cpu.rip, vcpu_features(e->vcpu), e->cpu.code);
    if (got < i.length || !is_rare(&i))
        return DBT_LINK; /* another vCPU has rewritten it since: run what is there now */
    uint64_t next = e->cpu.rip + i.length;
    if (is_compat_only(&i)) {
        enum dbt_exit why = interpret_compat(e, &i);
        if (why == DBT_LINK)
            e->cpu.rip = (uint32_t)next;
        return why;
    }
    if (!interpret(e, &i, &next)) {
        enum dbt_exit why = mmu_fault_exit(e);
        return why == DBT_GP && is_stack_fault(e, &i) ? DBT_STACK : why;
    }
    e->cpu.rip = e->cpu.code ? (uint32_t)next : next;
    return DBT_LINK;
}
