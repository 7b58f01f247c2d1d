/*
 * SSE, SSE2, SSE3 and MMX: a table of their own with a memory size per mandatory prefix (none, 66, F3, F2), 0 meaning that the
 * combination does not exist, and the opcodes with an operand in a general register. maps.c has more rows of this kind.
 */
#include "cpu/decode/parts.h"

#define ARITH_SSE {16, 16, 4, 8, SSE_LOAD, CPU_BASE}
#define MMX_OR_XMM {8, 16, 0, 0, SSE_LOAD, CPU_BASE}

const struct sse_opcode sse[256] = {
    [0x10] = ARITH_SSE,
    [0x11] = {16, 16, 4, 8, SSE_STORE, CPU_BASE},
    [0x12] = {8, 8, 16, 8, SSE_LOAD | SSE_REP_FEATURE, CPU_SSE3},
    [0x13] = {8, 8, 0, 0, SSE_STORE | SSE_MEM_ONLY, CPU_BASE},
    [0x14 ... 0x15] = {16, 16, 0, 0, SSE_LOAD, CPU_BASE},
    [0x16] = {8, 8, 16, 0, SSE_LOAD | SSE_REP_FEATURE, CPU_SSE3},
    [0x17] = {8, 8, 0, 0, SSE_STORE | SSE_MEM_ONLY, CPU_BASE},
    [0x28] = {16, 16, 0, 0, SSE_LOAD, CPU_BASE},
    [0x29] = {16, 16, 0, 0, SSE_STORE, CPU_BASE},
    [0x2a] = {8, 8, 4, 4, SSE_LOAD, CPU_BASE}, /* F3, F2: from a general register or memory of operand size */
    [0x2b] = {16, 16, 0, 0, SSE_STORE | SSE_MEM_ONLY, CPU_BASE},
    [0x2c ... 0x2d] = {8, 16, 4, 8, SSE_LOAD, CPU_BASE}, /* F3, F2: to a general register */
    [0x2e ... 0x2f] = {4, 8, 0, 0, SSE_LOAD | SSE_FLAGS, CPU_BASE},
    [0x50] = {16, 16, 0, 0, SSE_LOAD | SSE_REG_ONLY, CPU_BASE},
    [0x51] = ARITH_SSE,
    [0x52 ... 0x53] = {16, 0, 4, 0, SSE_LOAD, CPU_BASE},
    [0x54 ... 0x57] = {16, 16, 0, 0, SSE_LOAD, CPU_BASE},
    [0x58 ... 0x59] = ARITH_SSE,
    [0x5a] = {8, 16, 4, 8, SSE_LOAD, CPU_BASE},
    [0x5b] = {16, 16, 16, 0, SSE_LOAD, CPU_BASE},
    [0x5c ... 0x5f] = ARITH_SSE,
    [0x60 ... 0x62] = {4, 16, 0, 0, SSE_LOAD, CPU_BASE},
    [0x63 ... 0x6b] = MMX_OR_XMM,
    [0x6c ... 0x6d] = {0, 16, 0, 0, SSE_LOAD, CPU_BASE},
    [0x6e] = {4, 4, 0, 0, SSE_LOAD, CPU_BASE}, /* general register or memory of operand size */
    [0x6f] = {8, 16, 16, 0, SSE_LOAD, CPU_BASE},
    [0x70] = {8, 16, 16, 16, SSE_LOAD | SSE_IMM8, CPU_BASE},
    [0x71 ... 0x73] = {8, 16, 0, 0, SSE_LOAD | SSE_IMM8 | SSE_REG_ONLY | SSE_GROUP, CPU_BASE},
    [0x74 ... 0x76] = MMX_OR_XMM,
    [0x7c ... 0x7d] = {0, 16, 0, 16, SSE_LOAD, CPU_SSE3},
    [0x7e] = {4, 4, 8, 0, SSE_STORE, CPU_BASE}, /* F3: a load, see sse_operands */
    [0x7f] = {8, 16, 16, 0, SSE_STORE, CPU_BASE},
    [0xc2] = {16, 16, 4, 8, SSE_LOAD | SSE_IMM8, CPU_BASE},
    [0xc4] = {2, 2, 0, 0, SSE_LOAD | SSE_IMM8, CPU_BASE},
    [0xc5] = {8, 16, 0, 0, SSE_LOAD | SSE_IMM8 | SSE_REG_ONLY, CPU_BASE},
    [0xc6] = {16, 16, 0, 0, SSE_LOAD | SSE_IMM8, CPU_BASE},
    [0xd0] = {0, 16, 0, 16, SSE_LOAD, CPU_SSE3},
    [0xd1 ... 0xd5] = MMX_OR_XMM,
    [0xd6] = {0, 8, 8, 8, SSE_STORE, CPU_BASE}, /* F3, F2: register forms only */
    [0xd7] = {8, 16, 0, 0, SSE_LOAD | SSE_REG_ONLY, CPU_BASE},
    [0xd8 ... 0xe5] = MMX_OR_XMM,
    [0xe6] = {0, 16, 8, 16, SSE_LOAD, CPU_BASE},
    [0xe7] = {8, 16, 0, 0, SSE_STORE | SSE_MEM_ONLY, CPU_BASE},
    [0xe8 ... 0xef] = MMX_OR_XMM,
    [0xf0] = {0, 0, 0, 16, SSE_LOAD | SSE_MEM_ONLY, CPU_SSE3},
    [0xf1 ... 0xf6] = MMX_OR_XMM,
    [0xf8 ... 0xfe] = MMX_OR_XMM,
};

static unsigned mandatory_size(const struct insn *i, const struct sse_opcode *o)
{
    return i->prefix_f3 ? o->f3 : i->prefix_f2 ? o->f2 : i->prefix_66 ? o->p66 : o->none;
}

/* Opcodes of the map 0f with an operand in a general register, or that exist in one form only with some prefix. */
static void mixed_operands(struct insn *i, unsigned gpr_bytes)
{
    bool scalar_prefix = i->prefix_f3 || i->prefix_f2;
    switch (i->opcode) {
    case 0x2a:
        if (scalar_prefix)
            i->access |= RM_GPR, i->memory_size = gpr_bytes;
        break;
    case 0x2c: case 0x2d:
        if (scalar_prefix)
            i->access |= REG_GPR | REG_WRITE;
        break;
    case 0x6e: i->access |= RM_GPR, i->memory_size = gpr_bytes; break;
    case 0x7e:
        if (i->prefix_f3)
            i->access = RM_READ;
        else
            i->access |= RM_GPR, i->memory_size = gpr_bytes;
        break;
    case 0xc4: i->access |= RM_GPR; break;
    case 0x50: case 0xd7: case 0xc5: i->access = REG_GPR | REG_WRITE; break;
    case 0xd6:
        if (scalar_prefix && i->mod != 3)
            i->kind = INSN_INVALID;
        break;
    case 0x12: case 0x16:
        if (i->mod == 3 && i->prefix_66 && !scalar_prefix)
            i->kind = INSN_INVALID;
        break;
    }
}

void sse_operands(struct insn *i, const struct sse_opcode *o)
{
    unsigned gpr_bytes = i->rex & 8 ? 8 : 4;
    i->fpu = i->may_fault = true;
    i->memory_size = (o->how & SSE_WIDE) && gpr_bytes == 8 ? 8 : mandatory_size(i, o);
    i->access = (o->how & SSE_STORE ? RM_WRITE : RM_READ) | (o->how & SSE_RM_GPR ? RM_GPR : 0);
    if (o->how & SSE_FLAGS)
        set_flags(i, ALL, ALL, 0);
    if (!(o->how & SSE_REP_FEATURE) || i->prefix_f3 || i->prefix_f2)
        i->feature = o->feature;
    if (i->map == 1)
        mixed_operands(i, gpr_bytes);
    /* Writing a 32-bit general register clears its upper half: the register counts as written, not merged. */
    i->operand_size = gpr_bytes;
    unsigned r = i->reg & 7;
    bool bad_group = (o->how & SSE_GROUP) &&
                     !(i->opcode == 0x73 ? r == 2 || r == 6 || (i->prefix_66 && (r == 3 || r == 7)) : r == 2 || r == 4 || r == 6);
    if (!mandatory_size(i, o) || bad_group || ((o->how & SSE_REG_ONLY) && i->mod != 3) ||
        ((o->how & SSE_MEM_ONLY) && i->mod == 3))
        i->kind = INSN_INVALID;
}
