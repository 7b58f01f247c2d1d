/*
 * Opcodes whose meaning depends on ModRM.reg (the "groups"), x87, shift counts.
 */
#include "cpu/decode/parts.h"

/* Bytes of an x87 memory operand by opcode - 0xd8 and ModRM.reg; 0: no such instruction. */
static const uint8_t x87_bytes[8][8] = {
    {4, 4, 4, 4, 4, 4, 4, 4}, {4, 0, 4, 4, 28, 2, 28, 2},    {4, 4, 4, 4, 4, 4, 4, 4}, {4, 4, 4, 4, 0, 10, 0, 10},
    {8, 8, 8, 8, 8, 8, 8, 8}, {8, 8, 8, 8, 108, 0, 108, 2}, {2, 2, 2, 2, 2, 2, 2, 2}, {2, 2, 2, 2, 10, 8, 10, 8},
};
/* Which of them are stores, a bit per ModRM.reg. */
static const uint8_t x87_stores[8] = {0x00, 0xcc, 0x00, 0x8e, 0x00, 0xce, 0x00, 0xce};

static void group_x87(struct insn *i)
{
    unsigned row = i->opcode - 0xd8, r = i->reg & 7;
    i->fpu = i->may_fault = true;
    i->operand_size = 4;
    if (i->mod != 3 && r == 1 && (row & 1) && row != 1)
        i->feature = CPU_SSE3; /* fisttp */
    if (i->mod != 3) {
        i->memory_size = x87_bytes[row][r];
        i->access = (x87_stores[row] >> r) & 1 ? RM_WRITE : RM_READ;
        if (!i->memory_size)
            i->kind = INSN_INVALID;
        else if ((row == 1 || row == 5) && r == 6)
            i->kind = INSN_RARE; /* fnstenv, fnsave: they store an address of the host's */
        return;
    }
    if ((row == 3 || row == 7) && (r == 5 || r == 6))
        set_flags(i, ALL, ALL, 0); /* fcomi and friends */
    if ((row == 2 || row == 3) && r < 4)
        i->flags_read = X86_CF | X86_ZF | X86_PF; /* fcmov */
    if (row == 7 && i->modrm == 0xe0)
        i->kind = INSN_VERBATIM; /* fnstsw ax: the translator emits both bytes */
    else if (row == 7 && r == 4)
        i->kind = INSN_INVALID;
}

/* Shifts and rotates: an immediate count of zero changes nothing, any other kills what the operation defines. */
static void group_shift(struct insn *i)
{
    unsigned r = i->reg & 7;
    bool rotate = r < 4, by_cl = i->opcode >= 0xd2;
    unsigned count = i->opcode < 0xd0 ? i->imm & (i->operand_size == 8 ? 63 : 31) : 1;
    if (rotate)
        i->flags_touch = X86_CF | X86_OF;
    if (r == 2 || r == 3)
        i->flags_read = X86_CF;
    if (by_cl)
        i->flags_read |= i->flags_touch; /* a count of zero keeps them: they must be in the host's flags before */
    else if (count)
        i->flags_kill = i->flags_touch;
    else
        i->flags_touch = 0;
}

static void group_3(struct insn *i) /* test not neg mul imul div idiv */
{
    unsigned r = i->reg & 7;
    if (r == 2)
        set_flags(i, 0, 0, 0);
    if (r != 2 && r != 3) {
        i->access &= ~RM_WRITE;
        if (i->prefix_lock)
            i->kind = INSN_INVALID;
    }
    i->may_fault = r >= 6;
}

/* In memory: an offset and a selector behind it. */
static void far_pointer(struct insn *i)
{
    i->memory_size = i->operand_size + 2;
    if (i->mod == 3)
        i->kind = INSN_INVALID;
}

static void group_5(struct insn *i) /* inc dec call callf jmp jmpf push */
{
    static const uint8_t kind[8] = {INSN_GENERAL, INSN_GENERAL, INSN_CALL_INDIRECT, INSN_PRIVILEGED,
                                    INSN_JMP_INDIRECT, INSN_PRIVILEGED, INSN_PUSH_RM, INSN_INVALID};
    unsigned r = i->reg & 7;
    i->kind = kind[r];
    if (r < 2)
        return;
    set_flags(i, 0, 0, 0);
    i->access &= ~RM_WRITE;
    if (i->prefix_lock)
        i->kind = INSN_INVALID;
    if (r == 6 && i->prefix_66 && !(i->rex & 8))
        i->kind = INSN_RARE;
    if (i->kind == INSN_PRIVILEGED) /* far: m16:32, m16:64 */
        far_pointer(i);
    else if (i->compat && i->prefix_66 && r != 6)
        i->kind = INSN_INVALID; /* not built: 16-bit instruction pointers */
    else if (i->kind != INSN_RARE)
        i->operand_size = i->memory_size = i->compat ? 4 : 8;
}

static void group_8(struct insn *i) /* bt bts btr btc with imm8 */
{
    unsigned r = i->reg & 7;
    if (r < 4)
        i->kind = INSN_INVALID;
    if (r == 4) {
        i->access &= ~RM_WRITE;
        if (i->prefix_lock)
            i->kind = INSN_INVALID;
    }
}

static void group_15(struct insn *i) /* fxsave fxrstor ldmxcsr stmxcsr xsave lfence mfence sfence clflush */
{
    unsigned r = i->reg & 7;
    i->memory_size = 4;
    if (i->mod == 3) {
        i->kind = r >= 5 && !i->prefix_f3 && !i->prefix_f2 && !i->prefix_66 ? INSN_GENERAL : INSN_INVALID;
        i->access = 0;
        return;
    }
    i->fpu = r < 7;
    if (i->prefix_66 || i->prefix_f3 || i->prefix_f2)
        i->kind = INSN_INVALID;
    else if (r >= 4 && r <= 6)
        i->kind = r == 5 ? INSN_XRSTOR : INSN_XSAVE, i->feature = r == 6 ? CPU_XSAVEOPT : CPU_XSAVE;
    else if (r == 0 || r == 1)
        i->kind = r ? INSN_FXRSTOR : INSN_FXSAVE, i->memory_size = 0;
    else if (r == 2)
        i->may_fault = true;
    else if (r == 3)
        i->access = RM_WRITE;
    else
        i->kind = r == 7 ? INSN_NOP : INSN_INVALID;
}

static void random_number(struct insn *i) /* rdrand, rdseed */
{
    i->feature = (i->reg & 7) == 6 ? CPU_RDRAND : CPU_RDSEED;
    i->access = RM_GPR | RM_WRITE;
    set_flags(i, ALL, ALL, 0);
    if (i->prefix_f3 || i->prefix_f2)
        i->kind = INSN_INVALID;
}

static void group_9(struct insn *i) /* cmpxchg8b cmpxchg16b xsavec rdrand rdseed */
{
    if (i->mod == 3 && (i->reg & 7) >= 6) {
        random_number(i);
        return;
    }
    if (i->mod != 3 && (i->reg & 7) == 4) { /* xsavec */
        i->kind = i->prefix_66 || i->prefix_f3 || i->prefix_f2 || i->prefix_lock ? INSN_INVALID : INSN_XSAVE;
        i->feature = CPU_XSAVEC;
        i->fpu = true;
        return;
    }
    i->feature = i->rex & 8 ? CPU_CX16 : CPU_BASE;
    if ((i->reg & 7) != 1 || i->mod == 3)
        i->kind = INSN_INVALID;
    i->memory_size = i->rex & 8 ? 16 : 8;
    i->may_fault = true; /* alignment of the 16-byte form */
}

static void group_immediate(struct insn *i) /* 80 81 83 */
{
    unsigned r = i->reg & 7;
    if (r == 7) {
        i->access &= ~RM_WRITE;
        if (i->prefix_lock)
            i->kind = INSN_INVALID;
    }
    if (r == 2 || r == 3)
        i->flags_read = X86_CF;
}

void decode_one_byte_group(struct insn *i)
{
    switch (i->opcode) {
    case 0x80: case 0x81: case 0x82: case 0x83: group_immediate(i); break;
    case 0x8c:
        if ((i->reg & 7) > 5)
            i->kind = INSN_INVALID;
        break;
    case 0x8f:
        if (i->reg & 7)
            i->kind = INSN_INVALID;
        break;
    case 0xc6: case 0xc7:
        if (i->reg & 7)
            i->kind = INSN_INVALID; /* xabort, xbegin */
        break;
    case 0xc0: case 0xc1: case 0xd0 ... 0xd3: group_shift(i); break;
    case 0xd8 ... 0xdf: group_x87(i); break;
    case 0xf6: case 0xf7: group_3(i); break;
    case 0xfe:
        if ((i->reg & 7) > 1)
            i->kind = INSN_INVALID;
        break;
    case 0xff: group_5(i); break;
    case 0xc4: case 0xc5: far_pointer(i); break;
    case 0x62:
        i->memory_size = 2 * i->operand_size;
        if (i->mod == 3)
            i->kind = INSN_INVALID;
        break;
    case 0x8d:
        if (i->mod == 3)
            i->kind = INSN_INVALID;
        break;
    }
}

/* bsf, bsr; with F3 tzcnt and lzcnt where they are offered, otherwise F3 has no meaning (the host would think otherwise). */
static void group_bit_scan(struct insn *i, uint64_t features)
{
    if (features >> (i->opcode == 0xbc ? CPU_BMI1 : CPU_LZCNT) & 1)
        i->access &= i->prefix_f3 ? ~REG_READ : ~0;
    else
        i->prefix_f3 = false;
}

static void group_popcnt(struct insn *i)
{
    i->feature = CPU_POPCNT;
    if (!i->prefix_f3)
        i->kind = INSN_INVALID;
}

void decode_two_byte_group(struct insn *i, uint64_t features)
{
    switch (i->opcode) {
    case 0xa4: case 0xac: /* shld, shrd imm8 */
        if (i->imm & (i->operand_size == 8 ? 63 : 31))
            i->flags_kill = ALL;
        else
            i->flags_touch = 0;
        break;
    case 0xa5: case 0xad: i->flags_read = ALL; break;
    case 0xae: group_15(i); break;
    case 0xb2: case 0xb4: case 0xb5: far_pointer(i); break;
    case 0xba: group_8(i); break;
    case 0xb8: group_popcnt(i); break;
    case 0xbc: case 0xbd: group_bit_scan(i, features); break;
    case 0xc3:
        if (i->mod == 3 || i->prefix_66 || i->prefix_f3 || i->prefix_f2)
            i->kind = INSN_INVALID;
        break;
    case 0xc7: group_9(i); break;
    case 0xf7:
        i->fpu = true;
        if (i->mod != 3 || i->prefix_f3 || i->prefix_f2)
            i->kind = INSN_INVALID;
        break;
    }
}
