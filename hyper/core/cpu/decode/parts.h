/*
 * What the rooms of the decoder share: how a table row looks, and the steps after the tables.
 */
#ifndef UMXEN_DECODE_PARTS_H
#define UMXEN_DECODE_PARTS_H
#include "cpu/decode.h"
#include "cpu/engine.h"
#include "cpu/features.h"

enum size_rule { SIZE_V, SIZE_B, SIZE_64 }; /* by prefix; 8 bit; 64 bit in 64-bit code whatever the prefix */
enum imm_rule { IMM_NONE, IMM_8, IMM_16, IMM_Z, IMM_V, IMM_32, IMM_MOFFS, IMM_ENTER, IMM_FAR };
enum flag_rule { F_NONE, F_ALL, F_CARRY_IN, F_NOT_CF, F_CF, F_CMC, F_ZF, F_SHIFT, F_CC, F_SAHF, F_LAHF, F_SHLD, F_BIT };

struct opcode {
    uint8_t kind, access, size, imm, flags;
    bool modrm, lockable;
    uint8_t memory; /* bytes, 0: the operand size */
};

#define ALL X86_STATUS

/* How rows are written. */
#define E_G_READ (REG_GPR | REG_READ | RM_GPR | RM_READ)
#define E_G_RMW (E_G_READ | RM_WRITE)
#define G_E_RMW (E_G_READ | REG_WRITE)
#define G_E_LOAD (REG_GPR | REG_WRITE | RM_GPR | RM_READ)
#define E_G_STORE (REG_GPR | REG_READ | RM_GPR | RM_WRITE)
#define E_RMW (RM_GPR | RM_READ | RM_WRITE)
#define E_READ (RM_GPR | RM_READ)
#define E_STORE (RM_GPR | RM_WRITE)
#define PLAIN(k, sz, im, fl) {k, 0, sz, im, fl, false, false, 0}
#define MODRM(k, ac, sz, im, fl) {k, ac, sz, im, fl, true, false, 0}
#define LOCKED(k, ac, sz, im, fl) {k, ac, sz, im, fl, true, true, 0}
#define SIZED(k, ac, sz, im, fl, mem) {k, ac, sz, im, fl, true, false, mem}

extern const struct opcode one_byte[256], two_byte[256];
/* What means something else, or exists only, in 32-bit code: its row, otherwise NULL. */
const struct opcode *compat_row(uint8_t op);
/* Forms that 64-bit code lacks, as others that it has. */
void compat_rewrite(struct insn *i);

/* SSE and MMX: bytes of memory operand by mandatory prefix. */
enum {
    SSE_LOAD = 0, SSE_STORE = 1, SSE_IMM8 = 2, SSE_FLAGS = 4, SSE_REG_ONLY = 8, SSE_MEM_ONLY = 16, SSE_GROUP = 32,
    SSE_RM_GPR = 64,      /* rm, if a register, is a general one */
    SSE_WIDE = 128,       /* with REX.W its 8 bytes count */
    SSE_REP_FEATURE = 256 /* the feature is that of the forms with F3 and F2; the others are as old as SSE */
};
struct sse_opcode { uint8_t none, p66, f3, f2; uint16_t how; uint8_t feature; };
extern const struct sse_opcode sse[256], sse_0f38[256], sse_0f3a[256];
static inline bool is_sse(const struct sse_opcode *o) { return o->none || o->p66 || o->f3 || o->f2; }
/* Operands of an SSE opcode; the ModRM byte is decoded already. */
void sse_operands(struct insn *i, const struct sse_opcode *o);

/* Opcodes whose meaning depends on ModRM.reg or on their immediate. */
void decode_one_byte_group(struct insn *i);
void decode_two_byte_group(struct insn *i, uint64_t features);

/* After a VEX escape (c4, c5): all of the instruction; returns where it ends. */
const uint8_t *decode_vex(struct insn *i, const uint8_t *p, uint8_t escape, uint64_t features);
const uint8_t *decode_modrm(struct insn *i, const uint8_t *p);
const uint8_t *decode_imm(struct insn *i, const uint8_t *p, enum imm_rule rule);

/* Instructions of the map 0f 38 on general registers; operand_size is as the prefixes say. */
bool is_integer_0f38(uint8_t opcode);
void decode_integer_0f38(struct insn *i);

static inline void set_flags(struct insn *i, uint16_t kill, uint16_t touch, uint16_t read)
{
    i->flags_kill = kill;
    i->flags_touch = touch;
    i->flags_read = read;
}
#endif
