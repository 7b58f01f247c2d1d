/*
 * The x86-64 decoder: bytes to struct insn, and nothing else, of 64-bit code and of 32-bit code in 64-bit mode. Tables say for each opcode what a translator must know:
 * which operands are general registers, what is read and written, how many bytes of memory, which status flags.
 *
 * Used by the translator and by the PV emulator. Anything the tables don't know is INSN_INVALID: an instruction that we
 * do not advertise in CPUID must not run, and one whose memory operand we can't size would reach past its page.
 */
#ifndef UMXEN_DECODE_H
#define UMXEN_DECODE_H
#include <stdbool.h>
#include <stdint.h>

#define INSN_MAX_BYTES 15
#define DECODE_BYTES 32 /* the decoder may look this far before it finds that an instruction is too long */

enum insn_kind {
    INSN_INVALID,   /* #UD */
    INSN_GENERAL,   /* ModRM form: run as it is, with operands replaced */
    INSN_REG_OPCODE, /* register in the opcode's low bits: mov r,imm; xchg rax,r; bswap */
    INSN_VERBATIM,  /* touches only rax, rdx, flags or the FPU: copied */
    INSN_NOP,
    INSN_LEA,
    INSN_JCC, INSN_JMP, INSN_JMP_INDIRECT, INSN_CALL, INSN_CALL_INDIRECT, INSN_RET, INSN_JRCXZ,
    INSN_PUSH_REG, INSN_POP_REG, INSN_PUSH_IMM, INSN_PUSH_RM, INSN_POP_RM, INSN_LEAVE,
    INSN_PUSHF, INSN_POPF,
    INSN_STRING,
    INSN_CLD, INSN_STD,
    INSN_MOV_FROM_SEG,
    INSN_FXSAVE, INSN_FXRSTOR, INSN_XSAVE, INSN_XRSTOR,
    INSN_MASKED_MOVE, /* as GENERAL, but elements of its memory operand that a mask leaves out are not accessed */
    INSN_IRET,
    INSN_RARE,       /* unprivileged but rare: interpreted (xlat, loop, enter, moffs, 16-bit stack operations, ...) */
    INSN_PRIVILEGED, /* the hypervisor decides: emulation or a fault */
    INSN_SYSCALL,
};

/* V: the register that VEX.vvvv names; read unless it is written. */
enum access { REG_GPR = 1, REG_READ = 2, REG_WRITE = 4, RM_GPR = 8, RM_READ = 16, RM_WRITE = 32, V_GPR = 64, V_WRITE = 128 };

struct insn {
    uint64_t pc;
    uint64_t target;     /* of direct jumps and calls */
    int64_t imm;
    int32_t disp;
    uint16_t flags_read; /* X86_STATUS bits: read, certainly overwritten, possibly changed */
    uint16_t flags_kill;
    uint16_t flags_touch;
    uint8_t length, kind, map, opcode; /* map: 0 one byte, 1 0f, 2 0f38, 3 0f3a */
    uint8_t feature;                   /* enum cpu_feature that it belongs to */
    uint8_t operand_size;              /* 1, 2, 4, 8 */
    uint8_t memory_size;               /* bytes the ModRM memory operand touches */
    uint8_t imm_bytes;
    uint8_t access;                    /* enum access */
    uint8_t rex, segment;              /* segment: 0, or 1 + overriding segment register; in 64-bit code FS and GS alone */
    bool compat;                       /* 32-bit code */
    bool prefix_66, prefix_f3, prefix_f2, prefix_lock;
    bool address_32;                   /* 67 in 64-bit code; always in 32-bit code */
    bool address_16;                   /* 67 in 32-bit code */
    bool has_modrm, has_sib, rip_relative;
    bool vex, vex_256, vsib;           /* VEX encoding; with 256 bits; the index is a vector register */
    uint8_t vvvv, vex_pp;              /* pp: the prefix that VEX implies: none, 66, F3, F2 */
    bool reg_is_byte, rm_is_byte;      /* byte registers: 4-7 without REX are ah ch dh bh */
    bool fpu;                          /* x87, MMX or SSE: #NM while CR0.TS */
    bool may_fault;                    /* can raise an exception of its own on the host (#DE, #GP, #XM, #MF) */
    uint8_t modrm, mod, reg, rm, scale;
    int8_t base, index;                /* -1: none */
};

/* Decodes the instruction at `bytes` (DECODE_BYTES readable) as if it lay at pc, of a CPU with `features` (cpu/features.h).
 * Always sets length to 1..15; longer or unknown ones, and those of other features, are INSN_INVALID. compat: as 32-bit code. */
void decode(struct insn *insn, const uint8_t *bytes, uint64_t pc, uint64_t features, bool compat);

static inline bool insn_is_memory(const struct insn *i) { return i->has_modrm && i->mod != 3; }
/* True when no instruction after it belongs to the same block. */
bool insn_ends_block(const struct insn *i);
#endif
