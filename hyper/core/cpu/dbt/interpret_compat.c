/*
 * Instructions that only 32-bit code has: decimal arithmetic, pusha and popa, arpl. One at a time, as in interpret.c.
 */
#include "cpu/dbt/interpret.h"

/* eax ecx edx ebx esp ebp esi edi, the first one pushed first. */
static bool push_all(struct engine_vcpu *e, unsigned bytes)
{
    for (unsigned k = 0; k < 8; k++)
        if (!store_stack(e, -(int64_t)bytes * (k + 1), bytes, e->cpu.regs[RAX + k]))
            return false;
    stack_move(&e->cpu, -8 * (int64_t)bytes);
    return true;
}

static bool pop_all(struct engine_vcpu *e, unsigned bytes)
{
    uint64_t v[8];
    for (unsigned k = 0; k < 8; k++)
        if (!load_stack(e, bytes * (7 - k), bytes, &v[k]))
            return false;
    for (unsigned k = 0; k < 8; k++)
        if (k != RSP)
            set_register(&e->cpu, RAX + k, bytes, v[k]);
    stack_move(&e->cpu, 8 * bytes);
    return true;
}

static bool status_flag(const struct engine_vcpu *e, unsigned flag) { return (e->cpu.status >> 8) & flag; }

/* SF, ZF and PF of al; AF and CF as told, OF clear. */
static void set_decimal_flags(struct engine_vcpu *e, bool auxiliary, bool carry)
{
    uint8_t al = e->cpu.regs[RAX];
    e->cpu.status = ((al & X86_SF) | (al ? 0 : X86_ZF) | (__builtin_parity(al) ? 0 : X86_PF) | (auxiliary ? X86_AF : 0) |
                     (carry ? X86_CF : 0) | 2) << 8;
}

/* daa, das: al after an addition or subtraction of packed decimal digits. */
static void adjust_packed(struct engine_vcpu *e, bool subtract)
{
    unsigned al = e->cpu.regs[RAX] & 0xff, change = 0;
    bool carry = status_flag(e, X86_CF), low = (al & 15) > 9 || status_flag(e, X86_AF), high = al > 0x99 || carry;
    if (low)
        change += 6;
    if (high)
        change += 0x60;
    bool borrow = low && subtract && al < 6;
    set_register(&e->cpu, RAX, 1, subtract ? al - change : al + change);
    set_decimal_flags(e, low, high || borrow);
}

/* aaa, aas: the same with a digit in al and what it carries in ah. */
static void adjust_unpacked(struct engine_vcpu *e, bool subtract)
{
    unsigned ax = e->cpu.regs[RAX] & 0xffff;
    bool adjust = (ax & 15) > 9 || status_flag(e, X86_AF);
    if (adjust)
        ax = subtract ? ax - 0x106 : ax + 0x106;
    set_register(&e->cpu, RAX, 2, ax & 0xff0f);
    set_decimal_flags(e, adjust, adjust);
}

/* aam, aad: between a number in al and two digits in ah and al. False: a division by zero. */
static bool convert_digits(struct engine_vcpu *e, const struct insn *i)
{
    unsigned base = i->imm & 0xff, al = e->cpu.regs[RAX] & 0xff, ah = e->cpu.regs[RAX] >> 8 & 0xff;
    if (i->opcode == 0xd5)
        set_register(&e->cpu, RAX, 2, (al + ah * base) & 0xff);
    else if (base)
        set_register(&e->cpu, RAX, 2, al / base << 8 | al % base);
    else
        return false;
    set_decimal_flags(e, false, false);
    return true;
}

/* arpl: the requested privilege of a selector becomes at least that of another. */
static bool adjust_privilege(struct engine_vcpu *e, const struct insn *i)
{
    uint64_t selector = e->cpu.regs[i->rm], least = e->cpu.regs[i->reg] & 3;
    if (i->mod != 3 && !load_operand(e, i, 2, &selector))
        return false;
    bool change = (selector & 3) < least;
    selector = (selector & 0xfffc) | least;
    if (change && i->mod == 3)
        set_register(&e->cpu, i->rm, 2, selector);
    else if (change && !store_operand(e, i, 2, selector))
        return false;
    e->cpu.status = (e->cpu.status & ~(uint64_t)(X86_ZF << 8)) | (change ? X86_ZF << 8 : 0);
    return true;
}

enum dbt_exit interpret_compat(struct engine_vcpu *e, const struct insn *i)
{
    bool ok = true;
    switch (i->opcode) {
    case 0x27: case 0x2f: adjust_packed(e, i->opcode == 0x2f); break;
    case 0x37: case 0x3f: adjust_unpacked(e, i->opcode == 0x3f); break;
    case 0x60: ok = push_all(e, i->operand_size); break;
    case 0x61: ok = pop_all(e, i->operand_size); break;
    case 0x63: ok = adjust_privilege(e, i); break;
    case 0xd4: case 0xd5:
        if (!convert_digits(e, i))
            return DBT_DIVIDE;
        break;
    case 0xd6: set_register(&e->cpu, RAX, 1, status_flag(e, X86_CF) ? 0xff : 0); break; /* salc */
    }
    return ok ? DBT_LINK : mmu_fault_exit(e);
}

bool is_compat_only(const struct insn *i)
{
    if (!i->compat || i->map)
        return false;
    switch (i->opcode) {
    case 0x27: case 0x2f: case 0x37: case 0x3f: case 0x60: case 0x61: case 0x63: case 0xd4 ... 0xd6: return true;
    }
    return false;
}
