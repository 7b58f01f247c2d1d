/*
 * Decoding in four steps: prefixes, opcode table, ModRM with its addressing form, immediate; then the cases that depend
 * on ModRM.reg (the "groups") and on shift counts.
 *
 * A table entry is kind, operand access, size rule, immediate, flag rule. SSE opcodes have a table of their own with a
 * memory size per mandatory prefix (none, 66, F3, F2), 0 meaning that the combination does not exist.
 */
#include "cpu/decode.h"

#include <string.h>

#include "cpu/engine.h"

enum size_rule { SIZE_V, SIZE_B, SIZE_64 }; /* by prefix; 8 bit; 64 bit in long mode whatever the prefix */
enum imm_rule { IMM_NONE, IMM_8, IMM_16, IMM_Z, IMM_V, IMM_32, IMM_MOFFS, IMM_ENTER };
enum flag_rule { F_NONE, F_ALL, F_CARRY_IN, F_NOT_CF, F_CF, F_CMC, F_ZF, F_SHIFT, F_CC, F_SAHF, F_LAHF, F_SHLD, F_BIT };

struct opcode {
    uint8_t kind, access, size, imm, flags;
    bool modrm, lockable;
    uint8_t memory; /* bytes, 0: the operand size */
};

#define ALL X86_STATUS
#define E_G_READ (REG_GPR | REG_READ | RM_GPR | RM_READ)
#define E_G_RMW (E_G_READ | RM_WRITE)
#define G_E_RMW (E_G_READ | REG_WRITE)
#define G_E_LOAD (REG_GPR | REG_WRITE | RM_GPR | RM_READ)
#define E_G_STORE (REG_GPR | REG_READ | RM_GPR | RM_WRITE)
#define E_RMW (RM_GPR | RM_READ | RM_WRITE)
#define E_READ (RM_GPR | RM_READ)
#define E_STORE (RM_GPR | RM_WRITE)

/* The eight arithmetic groups: op r/m8,r8; r/m,r; r8,r/m8; r,r/m; al,imm8; eax,imm. cmp (7) writes nothing. */
#define ARITH(base, fl, lck, rmw_e, rmw_g)                                                                            \
    [base + 0] = {INSN_GENERAL, rmw_e, SIZE_B, IMM_NONE, fl, true, lck, 0},                                           \
    [base + 1] = {INSN_GENERAL, rmw_e, SIZE_V, IMM_NONE, fl, true, lck, 0},                                           \
    [base + 2] = {INSN_GENERAL, rmw_g, SIZE_B, IMM_NONE, fl, true, false, 0},                                         \
    [base + 3] = {INSN_GENERAL, rmw_g, SIZE_V, IMM_NONE, fl, true, false, 0},                                         \
    [base + 4] = {INSN_VERBATIM, 0, SIZE_B, IMM_8, fl, false, false, 0},                                              \
    [base + 5] = {INSN_VERBATIM, 0, SIZE_V, IMM_Z, fl, false, false, 0}
#define PLAIN(k, sz, im, fl) {k, 0, sz, im, fl, false, false, 0}
#define MODRM(k, ac, sz, im, fl) {k, ac, sz, im, fl, true, false, 0}
#define LOCKED(k, ac, sz, im, fl) {k, ac, sz, im, fl, true, true, 0}
#define SIZED(k, ac, sz, im, fl, mem) {k, ac, sz, im, fl, true, false, mem}

static const struct opcode one_byte[256] = {
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

static const struct opcode two_byte[256] = {
    [0x00 ... 0x01] = MODRM(INSN_PRIVILEGED, 0, SIZE_V, IMM_NONE, F_NONE),
    [0x02 ... 0x03] = SIZED(INSN_RARE, 0, SIZE_V, IMM_NONE, F_NONE, 2), /* lar, lsl */
    [0x05] = PLAIN(INSN_SYSCALL, SIZE_V, IMM_NONE, F_NONE),
    [0x06] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE), /* clts */
    [0x07 ... 0x09] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE), /* sysret, invd, wbinvd */
    [0x0d] = MODRM(INSN_NOP, 0, SIZE_V, IMM_NONE, F_NONE),              /* prefetchw */
    [0x18 ... 0x1f] = MODRM(INSN_NOP, 0, SIZE_V, IMM_NONE, F_NONE),
    [0x20 ... 0x23] = MODRM(INSN_PRIVILEGED, 0, SIZE_64, IMM_NONE, F_NONE), /* mov cr, dr */
    [0x30] = PLAIN(INSN_PRIVILEGED, SIZE_V, IMM_NONE, F_NONE),
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
    [0xb3] = LOCKED(INSN_GENERAL, E_G_RMW, SIZE_V, IMM_NONE, F_BIT),
    [0xb6] = SIZED(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_NONE, F_NONE, 1),
    [0xb7] = SIZED(INSN_GENERAL, G_E_LOAD, SIZE_V, IMM_NONE, F_NONE, 2),
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
    [0xf7] = MODRM(INSN_RARE, 0, SIZE_V, IMM_NONE, F_NONE), /* maskmovdqu */
};

/* SSE, SSE2, SSE3 and MMX: bytes of memory operand by mandatory prefix; R: register form only, M: memory form only. */
enum { SSE_LOAD = 0, SSE_STORE = 1, SSE_IMM8 = 2, SSE_FLAGS = 4, SSE_REG_ONLY = 8, SSE_MEM_ONLY = 16, SSE_GROUP = 32 };
struct sse_opcode { uint8_t none, p66, f3, f2, how; };
#define ARITH_SSE {16, 16, 4, 8, SSE_LOAD}
#define MMX_OR_XMM {8, 16, 0, 0, SSE_LOAD}

static const struct sse_opcode sse[256] = {
    [0x10] = ARITH_SSE,
    [0x11] = {16, 16, 4, 8, SSE_STORE},
    [0x12] = {8, 8, 16, 8, SSE_LOAD},
    [0x13] = {8, 8, 0, 0, SSE_STORE | SSE_MEM_ONLY},
    [0x14 ... 0x15] = {16, 16, 0, 0, SSE_LOAD},
    [0x16] = {8, 8, 16, 0, SSE_LOAD},
    [0x17] = {8, 8, 0, 0, SSE_STORE | SSE_MEM_ONLY},
    [0x28] = {16, 16, 0, 0, SSE_LOAD},
    [0x29] = {16, 16, 0, 0, SSE_STORE},
    [0x2a] = {8, 8, 4, 4, SSE_LOAD}, /* F3, F2: from a general register or memory of operand size */
    [0x2b] = {16, 16, 0, 0, SSE_STORE | SSE_MEM_ONLY},
    [0x2c ... 0x2d] = {8, 16, 4, 8, SSE_LOAD}, /* F3, F2: to a general register */
    [0x2e ... 0x2f] = {4, 8, 0, 0, SSE_LOAD | SSE_FLAGS},
    [0x50] = {16, 16, 0, 0, SSE_LOAD | SSE_REG_ONLY},
    [0x51] = ARITH_SSE,
    [0x52 ... 0x53] = {16, 0, 4, 0, SSE_LOAD},
    [0x54 ... 0x57] = {16, 16, 0, 0, SSE_LOAD},
    [0x58 ... 0x59] = ARITH_SSE,
    [0x5a] = {8, 16, 4, 8, SSE_LOAD},
    [0x5b] = {16, 16, 16, 0, SSE_LOAD},
    [0x5c ... 0x5f] = ARITH_SSE,
    [0x60 ... 0x62] = {4, 16, 0, 0, SSE_LOAD},
    [0x63 ... 0x6b] = MMX_OR_XMM,
    [0x6c ... 0x6d] = {0, 16, 0, 0, SSE_LOAD},
    [0x6e] = {4, 4, 0, 0, SSE_LOAD}, /* general register or memory of operand size */
    [0x6f] = {8, 16, 16, 0, SSE_LOAD},
    [0x70] = {8, 16, 16, 16, SSE_LOAD | SSE_IMM8},
    [0x71 ... 0x73] = {8, 16, 0, 0, SSE_LOAD | SSE_IMM8 | SSE_REG_ONLY | SSE_GROUP},
    [0x74 ... 0x76] = MMX_OR_XMM,
    [0x7c ... 0x7d] = {0, 16, 0, 16, SSE_LOAD},
    [0x7e] = {4, 4, 8, 0, SSE_STORE}, /* F3: a load, see sse_operands */
    [0x7f] = {8, 16, 16, 0, SSE_STORE},
    [0xc2] = {16, 16, 4, 8, SSE_LOAD | SSE_IMM8},
    [0xc4] = {2, 2, 0, 0, SSE_LOAD | SSE_IMM8},
    [0xc5] = {8, 16, 0, 0, SSE_LOAD | SSE_IMM8 | SSE_REG_ONLY},
    [0xc6] = {16, 16, 0, 0, SSE_LOAD | SSE_IMM8},
    [0xd0] = {0, 16, 0, 16, SSE_LOAD},
    [0xd1 ... 0xd5] = MMX_OR_XMM,
    [0xd6] = {0, 8, 8, 8, SSE_STORE}, /* F3, F2: register forms only */
    [0xd7] = {8, 16, 0, 0, SSE_LOAD | SSE_REG_ONLY},
    [0xd8 ... 0xe5] = MMX_OR_XMM,
    [0xe6] = {0, 16, 8, 16, SSE_LOAD},
    [0xe7] = {8, 16, 0, 0, SSE_STORE | SSE_MEM_ONLY},
    [0xe8 ... 0xef] = MMX_OR_XMM,
    [0xf0] = {0, 0, 0, 16, SSE_LOAD | SSE_MEM_ONLY},
    [0xf1 ... 0xf6] = MMX_OR_XMM,
    [0xf8 ... 0xfe] = MMX_OR_XMM,
};

static const uint16_t condition_flags[8] = {
    X86_OF, X86_CF, X86_ZF, X86_CF | X86_ZF, X86_SF, X86_PF, X86_SF | X86_OF, X86_SF | X86_OF | X86_ZF,
};

static void set_flags(struct insn *i, uint16_t kill, uint16_t touch, uint16_t read)
{
    i->flags_kill = kill;
    i->flags_touch = touch;
    i->flags_read = read;
}

static void apply_flag_rule(struct insn *i, enum flag_rule rule)
{
    switch (rule) {
    case F_NONE: break;
    case F_ALL: set_flags(i, ALL, ALL, 0); break;
    case F_CARRY_IN: set_flags(i, ALL, ALL, X86_CF); break;
    case F_NOT_CF: set_flags(i, ALL & ~X86_CF, ALL & ~X86_CF, 0); break;
    case F_CF: set_flags(i, X86_CF, X86_CF, 0); break;
    case F_CMC: set_flags(i, X86_CF, X86_CF, X86_CF); break;
    case F_ZF: set_flags(i, X86_ZF, X86_ZF, 0); break;
    case F_SHIFT: case F_SHLD: set_flags(i, 0, ALL, 0); break; /* count 0 changes nothing: see shift_flags */
    case F_CC: set_flags(i, 0, 0, condition_flags[(i->opcode >> 1) & 7]); break;
    case F_SAHF: set_flags(i, ALL & ~X86_OF, ALL & ~X86_OF, 0); break;
    case F_LAHF: set_flags(i, 0, 0, ALL); break;
    case F_BIT: set_flags(i, ALL & ~X86_ZF, ALL, 0); break;
    }
}

static const uint8_t *decode_prefixes(struct insn *i, const uint8_t *p, const uint8_t *end)
{
    for (; p < end; p++) {
        uint8_t rex = i->rex;
        i->rex = 0; /* one that isn't the last prefix has no effect */
        switch (*p) {
        case 0x66: i->prefix_66 = true; continue;
        case 0xf3: i->prefix_f3 = true; i->prefix_f2 = false; continue;
        case 0xf2: i->prefix_f2 = true; i->prefix_f3 = false; continue;
        case 0xf0: i->prefix_lock = true; continue;
        case 0x64: i->segment = 1 + SREG_FS; continue;
        case 0x65: i->segment = 1 + SREG_GS; continue;
        case 0x67: i->address_32 = true; continue;
        case 0x2e: case 0x36: case 0x3e: case 0x26: continue; /* no meaning in long mode */
        case 0x40 ... 0x4f: i->rex = *p; continue;
        }
        i->rex = rex;
        break;
    }
    return p;
}

static int32_t load32(const uint8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static const uint8_t *decode_modrm(struct insn *i, const uint8_t *p)
{
    uint8_t m = *p++;
    if (i->map == 1 && i->opcode >= 0x20 && i->opcode <= 0x23)
        m |= 0xc0; /* mov cr, dr: registers, whatever mod says */
    i->has_modrm = true;
    i->modrm = m;
    i->mod = m >> 6;
    i->reg = ((m >> 3) & 7) | ((i->rex & 4) << 1);
    i->rm = m & 7;
    if (i->mod == 3) {
        i->rm |= (i->rex & 1) << 3;
        return p;
    }
    if (i->rm == 4) {
        uint8_t sib = *p++;
        int index = ((sib >> 3) & 7) | ((i->rex & 2) << 2);
        i->scale = sib >> 6;
        i->index = index == 4 ? -1 : index;
        i->base = (sib & 7) | ((i->rex & 1) << 3);
        if ((sib & 7) == 5 && i->mod == 0) {
            i->base = -1;
            i->disp = load32(p);
            p += 4;
        }
    } else if (i->rm == 5 && i->mod == 0) {
        i->rip_relative = true;
        i->disp = load32(p);
        p += 4;
    } else {
        i->base = i->rm | ((i->rex & 1) << 3);
    }
    if (i->mod == 1) {
        i->disp = (int8_t)*p++;
    } else if (i->mod == 2) {
        i->disp = load32(p);
        p += 4;
    }
    return p;
}

static unsigned imm_bytes(const struct insn *i, enum imm_rule rule)
{
    switch (rule) {
    case IMM_NONE: return 0;
    case IMM_8: return 1;
    case IMM_16: return 2;
    case IMM_Z: return i->operand_size == 2 ? 2 : 4;
    case IMM_V: return i->operand_size == 8 ? 8 : i->operand_size == 2 ? 2 : 4;
    case IMM_32: return 4;
    case IMM_MOFFS: return i->address_32 ? 4 : 8;
    case IMM_ENTER: return 3;
    }
    return 0;
}

static const uint8_t *decode_imm(struct insn *i, const uint8_t *p, enum imm_rule rule)
{
    unsigned n = imm_bytes(i, rule);
    uint64_t v = 0;
    memcpy(&v, p, n);
    if (rule == IMM_MOFFS || rule == IMM_ENTER || rule == IMM_16)
        i->imm = v;
    else if (n && n < 8)
        i->imm = (int64_t)(v << (64 - 8 * n)) >> (64 - 8 * n);
    else
        i->imm = v;
    i->imm_bytes = n;
    return p + n;
}

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
    if (i->kind == INSN_PRIVILEGED) { /* far: m16:32, m16:64 */
        i->memory_size = i->operand_size + 2;
        if (i->mod == 3)
            i->kind = INSN_INVALID;
    } else if (i->kind != INSN_RARE) {
        i->operand_size = i->memory_size = 8;
    }
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
    i->fpu = r < 4;
    if (i->prefix_66 || i->prefix_f3 || i->prefix_f2)
        i->kind = INSN_INVALID;
    else if (r == 0 || r == 1)
        i->kind = r ? INSN_FXRSTOR : INSN_FXSAVE, i->memory_size = 0;
    else if (r == 2)
        i->may_fault = true;
    else if (r == 3)
        i->access = RM_WRITE;
    else
        i->kind = r == 7 ? INSN_NOP : INSN_INVALID;
}

static void group_9(struct insn *i) /* cmpxchg8b, cmpxchg16b */
{
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

static void decode_one_byte_group(struct insn *i)
{
    switch (i->opcode) {
    case 0x80: case 0x81: case 0x83: group_immediate(i); break;
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
    case 0x8d:
        if (i->mod == 3)
            i->kind = INSN_INVALID;
        break;
    }
}

static void decode_two_byte_group(struct insn *i)
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
    case 0xba: group_8(i); break;
    case 0xbc: case 0xbd: i->prefix_f3 = false; break; /* tzcnt, lzcnt are not offered: run as bsf, bsr */
    case 0xc3:
        if (i->mod == 3 || i->prefix_66 || i->prefix_f3 || i->prefix_f2)
            i->kind = INSN_INVALID;
        break;
    case 0xc7: group_9(i); break;
    case 0xf7:
        i->fpu = true;
        if (i->mod != 3 || !i->prefix_66 || i->prefix_f3 || i->prefix_f2)
            i->kind = INSN_INVALID; /* maskmovq is not built */
        break;
    }
}

static unsigned mandatory_size(const struct insn *i, const struct sse_opcode *o)
{
    return i->prefix_f3 ? o->f3 : i->prefix_f2 ? o->f2 : i->prefix_66 ? o->p66 : o->none;
}

/* Operands of an SSE opcode; the ModRM byte is decoded already. */
static void sse_operands(struct insn *i, const struct sse_opcode *o)
{
    bool scalar_prefix = i->prefix_f3 || i->prefix_f2;
    unsigned gpr_bytes = i->rex & 8 ? 8 : 4;
    i->fpu = i->may_fault = true;
    i->memory_size = mandatory_size(i, o);
    i->access = o->how & SSE_STORE ? RM_WRITE : RM_READ;
    if (o->how & SSE_FLAGS)
        set_flags(i, ALL, ALL, 0);
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
    /* Writing a 32-bit general register clears its upper half: the register counts as written, not merged. */
    i->operand_size = gpr_bytes;
    unsigned r = i->reg & 7;
    bool bad_group = (o->how & SSE_GROUP) &&
                     !(i->opcode == 0x73 ? r == 2 || r == 6 || (i->prefix_66 && (r == 3 || r == 7)) : r == 2 || r == 4 || r == 6);
    if (!mandatory_size(i, o) || bad_group || ((o->how & SSE_REG_ONLY) && i->mod != 3) ||
        ((o->how & SSE_MEM_ONLY) && i->mod == 3))
        i->kind = INSN_INVALID;
}

static bool is_sse(const struct sse_opcode *o) { return o->none || o->p66 || o->f3 || o->f2; }

static void finish(struct insn *i, const struct opcode *o)
{
    if (!i->memory_size && i->kind != INSN_FXSAVE && i->kind != INSN_FXRSTOR)
        i->memory_size = o->memory ? o->memory : i->operand_size;
    i->reg_is_byte = i->operand_size == 1 && (i->access & REG_GPR);
    i->rm_is_byte = (i->operand_size == 1 || (i->map == 1 && (i->opcode == 0xb6 || i->opcode == 0xbe))) &&
                    (i->access & RM_GPR);
    if (i->prefix_lock && !(o->lockable && insn_is_memory(i) && (i->access & RM_WRITE)))
        i->kind = INSN_INVALID;
    if (i->kind == INSN_JCC || i->kind == INSN_JMP || i->kind == INSN_CALL || i->kind == INSN_JRCXZ)
        i->target = i->pc + i->length + i->imm;
    if (i->kind == INSN_REG_OPCODE && i->opcode == 0x90 && i->map == 0 && (!(i->rex & 1) || i->prefix_f3))
        i->kind = INSN_NOP; /* nop, pause */
    if (i->map == 1 && i->opcode == 0x77 && (i->prefix_66 || i->prefix_f3 || i->prefix_f2))
        i->kind = INSN_INVALID;
    bool stack = i->kind == INSN_PUSH_REG || i->kind == INSN_POP_REG || i->kind == INSN_PUSH_IMM ||
                 i->kind == INSN_PUSHF || i->kind == INSN_POPF || i->kind == INSN_POP_RM;
    if (stack && i->prefix_66 && !(i->rex & 8)) {
        i->kind = INSN_RARE;
        if (i->opcode == 0x68)
            i->length -= 2, i->imm = (int16_t)i->imm; /* imm16 */
    }
    if ((i->kind == INSN_STRING && i->address_32) ||
        (i->prefix_66 && !(i->rex & 8) && i->map == 0 && (i->opcode == 0xc8 || i->opcode == 0xc9)))
        i->kind = INSN_INVALID; /* not built: 32-bit string addresses, 16-bit enter and leave */
    if (i->kind == INSN_STRING && (i->flags_kill & ALL) && (i->prefix_f3 || i->prefix_f2))
        i->flags_kill = 0; /* rcx may be zero */
    if ((i->map == 0 && i->opcode == 0x9b) || (i->map == 1 && i->opcode == 0x77))
        i->fpu = i->may_fault = true;
}

void decode(struct insn *i, const uint8_t *bytes, uint64_t pc)
{
    static const struct opcode sse_defaults = {.kind = INSN_GENERAL};
    memset(i, 0, sizeof(*i));
    i->pc = pc;
    i->base = i->index = -1;
    const uint8_t *p = decode_prefixes(i, bytes, bytes + INSN_MAX_BYTES - 1);
    const struct opcode *o;
    const struct sse_opcode *s = NULL;
    uint8_t op = *p++;
    if (op != 0x0f) {
        o = &one_byte[op];
    } else {
        op = *p++;
        i->map = op == 0x38 ? 2 : op == 0x3a ? 3 : 1;
        o = &two_byte[op];
        if (i->map == 1 && is_sse(&sse[op])) {
            s = &sse[op];
            o = &sse_defaults;
        }
    }
    i->opcode = op;
    i->kind = i->map > 1 ? INSN_INVALID : o->kind;
    i->access = o->access;
    bool wide = i->rex & 8;
    i->operand_size = o->size == SIZE_B ? 1 : o->size == SIZE_64 || wide ? 8 : i->prefix_66 ? 2 : 4;
    apply_flag_rule(i, o->flags);
    if (i->kind != INSN_INVALID && (o->modrm || s))
        p = decode_modrm(i, p);
    enum imm_rule imm = s ? (s->how & SSE_IMM8 ? IMM_8 : IMM_NONE) : o->imm;
    if (i->map == 0 && (op == 0xf6 || op == 0xf7) && (i->reg & 7) < 2)
        imm = op == 0xf6 ? IMM_8 : IMM_Z; /* test r/m,imm */
    if (i->kind != INSN_INVALID)
        p = decode_imm(i, p, imm);
    if (s)
        sse_operands(i, s);
    else if (i->has_modrm && i->kind != INSN_INVALID) {
        if (i->map)
            decode_two_byte_group(i);
        else
            decode_one_byte_group(i);
    }
    i->length = p - bytes;
    finish(i, o);
    if (p - bytes > INSN_MAX_BYTES) {
        i->kind = INSN_INVALID;
        i->length = INSN_MAX_BYTES;
    }
}

bool insn_ends_block(const struct insn *i)
{
    switch (i->kind) {
    case INSN_INVALID: case INSN_JCC: case INSN_JMP: case INSN_JMP_INDIRECT: case INSN_CALL: case INSN_CALL_INDIRECT:
    case INSN_RET: case INSN_JRCXZ: case INSN_IRET: case INSN_RARE: case INSN_PRIVILEGED: case INSN_SYSCALL:
        return true;
    }
    return false;
}
