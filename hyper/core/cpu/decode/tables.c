/*
 * The opcode tables: kind, operand access, size rule, immediate, flag rule. What a row can't say because it depends on
 * ModRM.reg or a shift count is in groups.c.
 */
#include "cpu/decode/parts.h"

/* The eight arithmetic groups: op r/m8,r8; r/m,r; r8,r/m8; r,r/m; al,imm8; eax,imm. cmp (7) writes nothing. */
#define ARITH(base, fl, lck, rmw_e, rmw_g)                                                                            \
    [base + 0] = {INSN_GENERAL, rmw_e, SIZE_B, IMM_NONE, fl, true, lck, 0},                                           \
    [base + 1] = {INSN_GENERAL, rmw_e, SIZE_V, IMM_NONE, fl, true, lck, 0},                                           \
    [base + 2] = {INSN_GENERAL, rmw_g, SIZE_B, IMM_NONE, fl, true, false, 0},                                         \
    [base + 3] = {INSN_GENERAL, rmw_g, SIZE_V, IMM_NONE, fl, true, false, 0},                                         \
    [base + 4] = {INSN_VERBATIM, 0, SIZE_B, IMM_8, fl, false, false, 0},                                              \
    [base + 5] = {INSN_VERBATIM, 0, SIZE_V, IMM_Z, fl, false, false, 0}
const struct opcode one_byte[256] = {
    ARITH(0x00, F_ALL, true, E_G_RMW, G_E_RMW),
    ARITH(0x08, F_ALL, true, E_G_RMW, G_E_RMW),
    ARITH(0x10, F_CARRY_IN, true, E_G_RMW, G_E_RMW),
    ARITH(0x18, F_CARRY_IN, true, E_G_RMW, G_E_RMW),
    ARITH(0x20, F_ALL, true, E_G_RMW, G_E_RMW),
    ARITH(0x28, F_ALL, true, E_G_RMW, G_E_RMW),
    ARITH(0x30, F_ALL, true, E_G_RMW, G_E_RMW),
    ARITH(0x38, F_ALL, false, E_G_READ, E_G_READ),
    [0x50 ... 0x57] = PLAIN(INSN_PUSH_REG, SIZE_64, IMM_NONE, F_NONE),
    [0x58 ... 0x5f] = PLAIN(INSN_POP_REG, SIZE_64, IMM_NONE, F_NONE),
    [0x63] = SIZED(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_NONE, F_NONE, 4), /* movsxd */
    [0x68] = PLAIN(INSN_PUSH_IMM, SIZE_64, IMM_32, F_NONE),
    [0x69] = MODRM(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_Z, F_ALL),
    [0x6a] = PLAIN(INSN_PUSH_IMM, SIZE_64, IMM_8, F_NONE),
    [0x6b] = MODRM(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_8, F_ALL),
    [0x6c ... 0x6f] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE), /* ins, outs */
    [0x70 ... 0x7f] = PLAIN(INSN_JCC, SIZE_64, IMM_8, F_CC),
    [0x80] = LOCKED(INSN_GENERAL, E_RMW, SIZE_B, IMM_8, F_ALL),
    [0x81] = LOCKED(INSN_GENERAL, E_RMW, SIZE_V, IMM_Z, F_ALL),
    [0x83] = LOCKED(INSN_GENERAL, E_RMW, SIZE_V, IMM_8, F_ALL),
    [0x84] = MODRM(INSN_GENERAL, E_G_READ, SIZE_B, IMM_NONE, F_ALL),
    [0x85] = MODRM(INSN_GENERAL, E_G_READ, SIZE_V, IMM_NONE, F_ALL),
    [0x86] = LOCKED(INSN_GENERAL, E_G_RMW | REG_WRITE, SIZE_B, IMM_NONE, F_NONE),
    [0x87] = LOCKED(INSN_GENERAL, E_G_RMW | REG_WRITE, SIZE_V, IMM_NONE, F_NONE),
    [0x88] = MODRM(INSN_GENERAL, E_G_STORE, SIZE_B, IMM_NONE, F_NONE),
    [0x89] = MODRM(INSN_GENERAL, E_G_STORE, SIZE_V, IMM_NONE, F_NONE),
    [0x8a] = MODRM(INSN_GENERAL, G_E_LOAD, SIZE_B, IMM_NONE, F_NONE),
    [0x8b] = MODRM(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_NONE, F_NONE),
    [0x8c] = SIZED(INSN_MOV_FROM_SEG, 0, SIZE_V, IMM_NONE, F_NONE, 2),
    [0x8d] = MODRM(INSN_LEA, REG_GPR | REG_WRITE, SIZE_V, IMM_NONE, F_NONE),
    [0x8e] = SIZED(INSN_PRIVILEGED, 0, SIZE_V, IMM_NONE, F_NONE, 2),
    [0x8f] = MODRM(INSN_POP_RM, E_STORE, SIZE_64, IMM_NONE, F_NONE),
    [0x90 ... 0x97] = {INSN_REG_OPCODE, REG_READ | REG_WRITE, SIZE_V, IMM_NONE, F_NONE, false, false, 0},
    [0x98 ... 0x99] = PLAIN(INSN_VERBATIM, SIZE_V, IMM_NONE, F_NONE),
    [0x9b] = PLAIN(INSN_VERBATIM, SIZE_V, IMM_NONE, F_NONE), /* fwait */
    [0x9c] = PLAIN(INSN_PUSHF, SIZE_64, IMM_NONE, F_LAHF),
    [0x9d] = PLAIN(INSN_POPF, SIZE_64, IMM_NONE, F_ALL),
    [0x9e] = PLAIN(INSN_VERBATIM, SIZE_V, IMM_NONE, F_SAHF),
    [0x9f] = PLAIN(INSN_VERBATIM, SIZE_V, IMM_NONE, F_LAHF),
    [0xa0 ... 0xa3] = PLAIN(INSN_RARE, SIZE_V, IMM_MOFFS, F_NONE),
    [0xa4] = PLAIN(INSN_STRING, SIZE_B, IMM_NONE, F_NONE),
    [0xa5] = PLAIN(INSN_STRING, SIZE_V, IMM_NONE, F_NONE),
    [0xa6] = PLAIN(INSN_STRING, SIZE_B, IMM_NONE, F_ALL),
    [0xa7] = PLAIN(INSN_STRING, SIZE_V, IMM_NONE, F_ALL),
    [0xa8] = PLAIN(INSN_VERBATIM, SIZE_B, IMM_8, F_ALL),
    [0xa9] = PLAIN(INSN_VERBATIM, SIZE_V, IMM_Z, F_ALL),
    [0xaa] = PLAIN(INSN_STRING, SIZE_B, IMM_NONE, F_NONE),
    [0xab] = PLAIN(INSN_STRING, SIZE_V, IMM_NONE, F_NONE),
    [0xac] = PLAIN(INSN_STRING, SIZE_B, IMM_NONE, F_NONE),
    [0xad] = PLAIN(INSN_STRING, SIZE_V, IMM_NONE, F_NONE),
    [0xae] = PLAIN(INSN_STRING, SIZE_B, IMM_NONE, F_ALL),
    [0xaf] = PLAIN(INSN_STRING, SIZE_V, IMM_NONE, F_ALL),
    [0xb0 ... 0xb7] = {INSN_REG_OPCODE, REG_WRITE, SIZE_B, IMM_8, F_NONE, false, false, 0},
    [0xb8 ... 0xbf] = {INSN_REG_OPCODE, REG_WRITE, SIZE_V, IMM_V, F_NONE, false, false, 0},
    [0xc0] = MODRM(INSN_GENERAL, E_RMW, SIZE_B, IMM_8, F_SHIFT),
    [0xc1] = MODRM(INSN_GENERAL, E_RMW, SIZE_V, IMM_8, F_SHIFT),
    [0xc2] = PLAIN(INSN_RET, SIZE_64, IMM_16, F_NONE),
    [0xc3] = PLAIN(INSN_RET, SIZE_64, IMM_NONE, F_NONE),
    [0xc6] = MODRM(INSN_GENERAL, E_STORE, SIZE_B, IMM_8, F_NONE),
    [0xc7] = MODRM(INSN_GENERAL, E_STORE, SIZE_V, IMM_Z, F_NONE),
    [0xc8] = PLAIN(INSN_RARE, SIZE_64, IMM_ENTER, F_NONE),
    [0xc9] = PLAIN(INSN_LEAVE, SIZE_64, IMM_NONE, F_NONE),
    [0xca] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_16, F_NONE),
    [0xcb] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE),
    [0xcc] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE),
    [0xcd] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_8, F_NONE),
    [0xcf] = PLAIN(INSN_IRET, SIZE_V, IMM_NONE, F_NONE),
    [0xd0] = MODRM(INSN_GENERAL, E_RMW, SIZE_B, IMM_NONE, F_SHIFT),
    [0xd1] = MODRM(INSN_GENERAL, E_RMW, SIZE_V, IMM_NONE, F_SHIFT),
    [0xd2] = MODRM(INSN_GENERAL, E_RMW, SIZE_B, IMM_NONE, F_SHIFT),
    [0xd3] = MODRM(INSN_GENERAL, E_RMW, SIZE_V, IMM_NONE, F_SHIFT),
    [0xd7] = PLAIN(INSN_RARE, SIZE_B, IMM_NONE, F_NONE), /* xlat */
    [0xd8 ... 0xdf] = MODRM(INSN_GENERAL, 0, SIZE_V, IMM_NONE, F_NONE), /* x87, see group_x87 */
    [0xe0 ... 0xe2] = PLAIN(INSN_RARE, SIZE_64, IMM_8, F_NONE),          /* loopne loope loop */
    [0xe3] = PLAIN(INSN_JRCXZ, SIZE_64, IMM_8, F_NONE),
    [0xe4 ... 0xe7] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_8, F_NONE), /* in, out */
    [0xe8] = PLAIN(INSN_CALL, SIZE_64, IMM_32, F_NONE),
    [0xe9] = PLAIN(INSN_JMP, SIZE_64, IMM_32, F_NONE),
    [0xeb] = PLAIN(INSN_JMP, SIZE_64, IMM_8, F_NONE),
    [0xec ... 0xef] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE),
    [0xf1] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE), /* icebp */
    [0xf4] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE), /* hlt */
    [0xf5] = PLAIN(INSN_VERBATIM, SIZE_V, IMM_NONE, F_CMC),
    [0xf6] = LOCKED(INSN_GENERAL, E_RMW, SIZE_B, IMM_NONE, F_ALL), /* see group_3 */
    [0xf7] = LOCKED(INSN_GENERAL, E_RMW, SIZE_V, IMM_NONE, F_ALL),
    [0xf8 ... 0xf9] = PLAIN(INSN_VERBATIM, SIZE_V, IMM_NONE, F_CF),
    [0xfa ... 0xfb] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE), /* cli, sti */
    [0xfc] = PLAIN(INSN_CLD, SIZE_V, IMM_NONE, F_NONE),
    [0xfd] = PLAIN(INSN_STD, SIZE_V, IMM_NONE, F_NONE),
    [0xfe] = LOCKED(INSN_GENERAL, E_RMW, SIZE_B, IMM_NONE, F_NOT_CF),
    [0xff] = LOCKED(INSN_GENERAL, E_RMW, SIZE_V, IMM_NONE, F_NOT_CF), /* see group_5 */
};

const struct opcode two_byte[256] = {
    [0x00 ... 0x01] = MODRM(INSN_PRIVILEGED, 0, SIZE_V, IMM_NONE, F_NONE),
    [0x02 ... 0x03] = SIZED(INSN_RARE, 0, SIZE_V, IMM_NONE, F_NONE, 2), /* lar, lsl */
    [0x05] = PLAIN(INSN_SYSCALL, SIZE_V, IMM_NONE, F_NONE),
    [0x06] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE), /* clts */
    [0x07 ... 0x09] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE), /* sysret, invd, wbinvd */
    [0x0d] = MODRM(INSN_NOP, 0, SIZE_V, IMM_NONE, F_NONE),              /* prefetchw */
    [0x18 ... 0x1f] = MODRM(INSN_NOP, 0, SIZE_V, IMM_NONE, F_NONE),
    [0x20 ... 0x23] = MODRM(INSN_PRIVILEGED, 0, SIZE_64, IMM_NONE, F_NONE), /* mov cr, dr */
    [0x30] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE),
    [0x34 ... 0x35] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE), /* sysenter, sysexit */
    [0x31] = PLAIN(INSN_VERBATIM, SIZE_V, IMM_NONE, F_NONE), /* rdtsc */
    [0x32 ... 0x33] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE),
    [0x40 ... 0x4f] = MODRM(INSN_GENERAL, G_E_RMW, SIZE_V, IMM_NONE, F_CC),
    [0x77] = PLAIN(INSN_VERBATIM, SIZE_V, IMM_NONE, F_NONE), /* emms */
    [0x80 ... 0x8f] = PLAIN(INSN_JCC, SIZE_64, IMM_32, F_CC),
    [0x90 ... 0x9f] = MODRM(INSN_GENERAL, E_STORE, SIZE_B, IMM_NONE, F_CC),
    [0xa0 ... 0xa1] = PLAIN(INSN_PRIVILEGED, SIZE_64, IMM_NONE, F_NONE), /* push, pop fs */
    [0xa2] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE),           /* cpuid */
    [0xa3] = MODRM(INSN_GENERAL, E_G_READ, SIZE_V, IMM_NONE, F_BIT),
    [0xa4] = MODRM(INSN_GENERAL, E_G_RMW, SIZE_V, IMM_8, F_SHLD),
    [0xa5] = MODRM(INSN_GENERAL, E_G_RMW, SIZE_V, IMM_NONE, F_SHLD),
    [0xa8 ... 0xa9] = PLAIN(INSN_PRIVILEGED, SIZE_64, IMM_NONE, F_NONE), /* push, pop gs */
    [0xab] = LOCKED(INSN_GENERAL, E_G_RMW, SIZE_V, IMM_NONE, F_BIT),
    [0xac] = MODRM(INSN_GENERAL, E_G_RMW, SIZE_V, IMM_8, F_SHLD),
    [0xad] = MODRM(INSN_GENERAL, E_G_RMW, SIZE_V, IMM_NONE, F_SHLD),
    [0xae] = SIZED(INSN_GENERAL, RM_READ, SIZE_V, IMM_NONE, F_NONE, 4), /* see group_15 */
    [0xaf] = MODRM(INSN_GENERAL, G_E_RMW, SIZE_V, IMM_NONE, F_ALL),
    [0xb0] = LOCKED(INSN_GENERAL, E_G_RMW, SIZE_B, IMM_NONE, F_ALL),
    [0xb1] = LOCKED(INSN_GENERAL, E_G_RMW, SIZE_V, IMM_NONE, F_ALL),
    [0xb2] = MODRM(INSN_PRIVILEGED, 0, SIZE_V, IMM_NONE, F_NONE), /* lss */
    [0xb4 ... 0xb5] = MODRM(INSN_PRIVILEGED, 0, SIZE_V, IMM_NONE, F_NONE), /* lfs, lgs */
    [0xb3] = LOCKED(INSN_GENERAL, E_G_RMW, SIZE_V, IMM_NONE, F_BIT),
    [0xb6] = SIZED(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_NONE, F_NONE, 1),
    [0xb7] = SIZED(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_NONE, F_NONE, 2),
    [0xb8] = MODRM(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_NONE, F_ALL), /* with F3: popcnt */
    [0xba] = LOCKED(INSN_GENERAL, E_RMW, SIZE_V, IMM_8, F_BIT), /* see group_8 */
    [0xbb] = LOCKED(INSN_GENERAL, E_G_RMW, SIZE_V, IMM_NONE, F_BIT),
    [0xbc ... 0xbd] = MODRM(INSN_GENERAL, G_E_RMW, SIZE_V, IMM_NONE, F_ALL), /* bsf, bsr */
    [0xbe] = SIZED(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_NONE, F_NONE, 1),
    [0xbf] = SIZED(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_NONE, F_NONE, 2),
    [0xc0] = LOCKED(INSN_GENERAL, E_G_RMW | REG_WRITE, SIZE_B, IMM_NONE, F_ALL),
    [0xc1] = LOCKED(INSN_GENERAL, E_G_RMW | REG_WRITE, SIZE_V, IMM_NONE, F_ALL),
    [0xc3] = MODRM(INSN_GENERAL, E_G_STORE, SIZE_V, IMM_NONE, F_NONE), /* movnti */
    [0xc7] = LOCKED(INSN_GENERAL, RM_READ | RM_WRITE, SIZE_V, IMM_NONE, F_ZF), /* cmpxchg8b, 16b */
    [0xc8 ... 0xcf] = {INSN_REG_OPCODE, REG_READ | REG_WRITE, SIZE_V, IMM_NONE, F_NONE, false, false, 0}, /* bswap */
    [0xf7] = MODRM(INSN_RARE, 0, SIZE_V, IMM_NONE, F_NONE), /* maskmovq, maskmovdqu */
};
