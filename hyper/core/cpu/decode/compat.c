/*
 * 32-bit code: what its opcodes mean where 64-bit code has something else, or nothing. The translator's output is 64-bit code,
 * so short forms that it can't use are rewritten to long ones.
 */
#include "cpu/decode/parts.h"

#define PUSH_POP_SEGMENT PLAIN(INSN_PRIVILEGED, SIZE_64, IMM_NONE, F_NONE)
#define DECIMAL PLAIN(INSN_RARE, SIZE_B, IMM_NONE, F_NONE)

static const struct opcode own[256] = {
    [0x06 ... 0x07] = PUSH_POP_SEGMENT,
    [0x0e] = PUSH_POP_SEGMENT,
    [0x16 ... 0x17] = PUSH_POP_SEGMENT,
    [0x1e ... 0x1f] = PUSH_POP_SEGMENT,
    [0x27] = DECIMAL, /* daa */
    [0x2f] = DECIMAL, /* das */
    [0x37] = DECIMAL, /* aaa */
    [0x3f] = DECIMAL, /* aas */
    [0x40 ... 0x4f] = {INSN_GENERAL, E_RMW, SIZE_V, IMM_NONE, F_NOT_CF, false, false, 0}, /* inc, dec */
    [0x60 ... 0x61] = PLAIN(INSN_RARE, SIZE_V, IMM_NONE, F_NONE),                         /* pusha, popa */
    [0x62] = MODRM(INSN_PRIVILEGED, 0, SIZE_V, IMM_NONE, F_NONE),                         /* bound */
    [0x63] = SIZED(INSN_RARE, 0, SIZE_V, IMM_NONE, F_NONE, 2),                            /* arpl */
    [0x82] = LOCKED(INSN_GENERAL, E_RMW, SIZE_B, IMM_8, F_ALL),                           /* as 80 */
    [0x9a] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_FAR, F_NONE),                             /* far call */
    [0xa0] = {INSN_GENERAL, G_E_LOAD, SIZE_B, IMM_MOFFS, F_NONE, false, false, 0},
    [0xa1] = {INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_MOFFS, F_NONE, false, false, 0},
    [0xa2] = {INSN_GENERAL, E_G_STORE, SIZE_B, IMM_MOFFS, F_NONE, false, false, 0},
    [0xa3] = {INSN_GENERAL, E_G_STORE, SIZE_V, IMM_MOFFS, F_NONE, false, false, 0},
    [0xc4 ... 0xc5] = MODRM(INSN_PRIVILEGED, 0, SIZE_V, IMM_NONE, F_NONE), /* les, lds */
    [0xce] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE),             /* into */
    [0xd4 ... 0xd5] = PLAIN(INSN_RARE, SIZE_B, IMM_8, F_NONE),             /* aam, aad */
    [0xd6] = PLAIN(INSN_RARE, SIZE_B, IMM_NONE, F_NONE),                   /* salc */
    [0xea] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_FAR, F_NONE),              /* far jump */
};

const struct opcode *compat_row(uint8_t op) { return own[op].kind ? &own[op] : &one_byte[op]; }

void compat_rewrite(struct insn *i)
{
    uint8_t op = i->opcode;
    if (i->map || i->kind != INSN_GENERAL)
        return;
    if (op >= 0x40 && op <= 0x4f) { /* ff /0, /1 */
        i->has_modrm = true;
        i->mod = 3;
        i->reg = op >> 3 & 1;
        i->rm = op & 7;
        i->opcode = 0xff;
    } else if (op == 0x82) {
        i->opcode = 0x80;
    } else if (op >= 0xa0 && op <= 0xa3) { /* 8a 8b 88 89 with a displacement alone */
        static const uint8_t long_form[4] = {0x8a, 0x8b, 0x88, 0x89};
        i->has_modrm = true;
        i->disp = i->imm;
        i->imm_bytes = 0;
        i->opcode = long_form[op - 0xa0];
    }
}
