/*
 * VEX encodings: AVX, AVX2, FMA, F16C, and the forms of AES, PCLMULQDQ and GFNI with three operands; and BMI on general
 * registers.
 *
 * One row per map, opcode and implied prefix: which feature has it with 128 and with 256 bits (none: it does not exist),
 * memory, and what is peculiar. Rows of AVX are for W 0 and 1 unless they say otherwise; a register in vvvv that nobody uses
 * must be given as 1111. Memory operands may be misaligned, but for the moves that want alignment, which the host checks.
 */
#include "cpu/decode/parts.h"

/* Memory operands that are no fixed number of bytes. */
enum { FULL = 64, HALF, QUARTER, EIGHTH, BY_W }; /* of the vector; 4 or 8 bytes by W */
enum {
    NDS = 1,            /* vvvv is a vector register */
    NDS_REG = 2,        /* in the register form only */
    STORE = 4,          /* rm is written */
    IMM = 8,
    REG_ONLY = 0x10, MEM_ONLY = 0x20,
    W0 = 0x40, W1 = 0x80, /* W must be this */
    RM_G = 0x100,       /* a register in rm is a general one */
    REG_G = 0x200,      /* so is reg; it is written */
    V_G = 0x400,        /* so is vvvv */
    V_OUT = 0x800,      /* and it is written */
    FLAGS = 0x1000,     /* all status flags are defined */
    MASKED = 0x2000,    /* elements that the mask leaves out are not accessed */
    GATHER = 0x4000,
    GROUP = 0x8000,     /* see group_vex */
};

struct vex_opcode { uint8_t narrow, wide; uint8_t memory; uint16_t how; };

#define AVX(m, how) {CPU_AVX, CPU_AVX, m, how}
#define AVX_128(m, how) {CPU_AVX, 0, m, how}
#define AVX_256(m, how) {0, CPU_AVX, m, how}
#define AVX_AVX2(m, how) {CPU_AVX, CPU_AVX2, m, how}
#define AVX2(m, how) {CPU_AVX2, CPU_AVX2, m, how}
#define AVX2_256(m, how) {0, CPU_AVX2, m, how}
#define OTHER(narrow, wide, m, how) {CPU_##narrow, CPU_##wide, m, how}
#define BMI(n, how) {CPU_BMI##n, 0, BY_W, RM_G | how}
#define FLOATS(how) {AVX(FULL, how), AVX(FULL, how)}
#define ARITH {AVX(FULL, NDS), AVX(FULL, NDS), AVX(4, NDS), AVX(8, NDS)}
#define INT {[P66] = AVX_AVX2(FULL, NDS)}

enum { NP, P66, PF3, PF2 };

static const struct vex_opcode vex_0f[256][4] = {
    [0x10] = {AVX(FULL, 0), AVX(FULL, 0), AVX(4, NDS_REG), AVX(8, NDS_REG)},
    [0x11] = {AVX(FULL, STORE), AVX(FULL, STORE), AVX(4, STORE | NDS_REG), AVX(8, STORE | NDS_REG)},
    [0x12] = {AVX_128(8, NDS), AVX_128(8, NDS | MEM_ONLY), AVX(FULL, 0), OTHER(AVX, AVX, FULL, GROUP)},
    [0x13] = {AVX_128(8, STORE | MEM_ONLY), AVX_128(8, STORE | MEM_ONLY)},
    [0x14 ... 0x15] = FLOATS(NDS),
    [0x16] = {AVX_128(8, NDS), AVX_128(8, NDS | MEM_ONLY), AVX(FULL, 0)},
    [0x17] = {AVX_128(8, STORE | MEM_ONLY), AVX_128(8, STORE | MEM_ONLY)},
    [0x28] = FLOATS(0),
    [0x29] = FLOATS(STORE),
    [0x2a] = {[PF3] = AVX(BY_W, NDS | RM_G), [PF2] = AVX(BY_W, NDS | RM_G)},
    [0x2b] = FLOATS(STORE | MEM_ONLY),
    [0x2c ... 0x2d] = {[PF3] = AVX(4, REG_G), [PF2] = AVX(8, REG_G)},
    [0x2e ... 0x2f] = {AVX(4, FLAGS), AVX(8, FLAGS)},
    [0x50] = FLOATS(REG_G | REG_ONLY),
    [0x51] = {AVX(FULL, 0), AVX(FULL, 0), AVX(4, NDS), AVX(8, NDS)},
    [0x52 ... 0x53] = {[NP] = AVX(FULL, 0), [PF3] = AVX(4, NDS)},
    [0x54 ... 0x57] = FLOATS(NDS),
    [0x58 ... 0x59] = ARITH,
    [0x5a] = {AVX(HALF, 0), AVX(FULL, 0), AVX(4, NDS), AVX(8, NDS)},
    [0x5b] = {AVX(FULL, 0), AVX(FULL, 0), AVX(FULL, 0)},
    [0x5c ... 0x5f] = ARITH,
    [0x60 ... 0x6d] = INT,
    [0x6e] = {[P66] = AVX_128(BY_W, RM_G)},
    [0x6f] = {[P66] = AVX(FULL, 0), [PF3] = AVX(FULL, 0)},
    [0x70] = {[P66] = AVX_AVX2(FULL, IMM), [PF3] = AVX_AVX2(FULL, IMM), [PF2] = AVX_AVX2(FULL, IMM)},
    [0x71 ... 0x73] = {[P66] = AVX_AVX2(FULL, NDS | IMM | REG_ONLY | GROUP)}, /* vvvv: the destination */
    [0x74 ... 0x76] = INT,
    [0x77] = {AVX(0, 0)}, /* vzeroupper, vzeroall: no ModRM */
    [0x7c ... 0x7d] = {[P66] = AVX(FULL, NDS), [PF2] = AVX(FULL, NDS)},
    [0x7e] = {[P66] = AVX_128(BY_W, STORE | RM_G), [PF3] = AVX_128(8, 0)},
    [0x7f] = {[P66] = AVX(FULL, STORE), [PF3] = AVX(FULL, STORE)},
    [0xae] = {AVX_128(4, MEM_ONLY | GROUP)}, /* vldmxcsr, vstmxcsr */
    [0xc2] = {AVX(FULL, NDS | IMM), AVX(FULL, NDS | IMM), AVX(4, NDS | IMM), AVX(8, NDS | IMM)},
    [0xc4] = {[P66] = AVX_128(2, NDS | IMM | RM_G)},
    [0xc5] = {[P66] = AVX_128(2, IMM | REG_G | REG_ONLY)},
    [0xc6] = FLOATS(NDS | IMM),
    [0xd0] = {[P66] = AVX(FULL, NDS), [PF2] = AVX(FULL, NDS)},
    [0xd1 ... 0xd3] = {[P66] = AVX_AVX2(16, NDS)}, /* shifts by a count */
    [0xd4 ... 0xd5] = INT,
    [0xd6] = {[P66] = AVX_128(8, STORE)},
    [0xd7] = {[P66] = AVX_AVX2(FULL, REG_G | REG_ONLY)},
    [0xd8 ... 0xe0] = INT,
    [0xe1 ... 0xe2] = {[P66] = AVX_AVX2(16, NDS)},
    [0xe3 ... 0xe5] = INT,
    [0xe6] = {[P66] = AVX(FULL, 0), [PF3] = AVX(HALF, 0), [PF2] = AVX(FULL, 0)},
    [0xe7] = {[P66] = AVX(FULL, STORE | MEM_ONLY)},
    [0xe8 ... 0xef] = INT,
    [0xf0] = {[PF2] = AVX(FULL, MEM_ONLY)},
    [0xf1 ... 0xf3] = {[P66] = AVX_AVX2(16, NDS)},
    [0xf4 ... 0xf6] = INT,
    [0xf7] = {[P66] = AVX_128(16, REG_ONLY)}, /* vmaskmovdqu */
    [0xf8 ... 0xfe] = INT,
};

#define PACKED_FMA {[P66] = OTHER(FMA, FMA, FULL, NDS)}
#define SCALAR_FMA {[P66] = OTHER(FMA, FMA, BY_W, NDS)}

static const struct vex_opcode vex_0f38[256][4] = {
    [0x00 ... 0x0b] = INT,
    [0x0c ... 0x0d] = {[P66] = AVX(FULL, NDS | W0)},
    [0x0e ... 0x0f] = {[P66] = AVX(FULL, FLAGS | W0)},
    [0x13] = {[P66] = OTHER(F16C, F16C, HALF, W0)},
    [0x16] = {[P66] = AVX2_256(FULL, NDS | W0)},
    [0x17] = {[P66] = AVX(FULL, FLAGS)},
    [0x18] = {[P66] = AVX(4, W0 | GROUP)}, /* broadcasts: from a register with AVX2 only */
    [0x19] = {[P66] = AVX_256(8, W0 | GROUP)},
    [0x1a] = {[P66] = AVX_256(16, W0 | MEM_ONLY)},
    [0x1c ... 0x1e] = {[P66] = AVX_AVX2(FULL, 0)},
    [0x20] = {[P66] = AVX_AVX2(HALF, 0)}, /* vpmovsx */
    [0x21] = {[P66] = AVX_AVX2(QUARTER, 0)},
    [0x22] = {[P66] = AVX_AVX2(EIGHTH, 0)},
    [0x23] = {[P66] = AVX_AVX2(HALF, 0)},
    [0x24] = {[P66] = AVX_AVX2(QUARTER, 0)},
    [0x25] = {[P66] = AVX_AVX2(HALF, 0)},
    [0x28 ... 0x29] = INT,
    [0x2a] = {[P66] = AVX_AVX2(FULL, MEM_ONLY)},
    [0x2b] = INT,
    [0x2c ... 0x2d] = {[P66] = AVX(FULL, NDS | W0 | MEM_ONLY | MASKED)},
    [0x2e ... 0x2f] = {[P66] = AVX(FULL, NDS | W0 | MEM_ONLY | MASKED | STORE)},
    [0x30] = {[P66] = AVX_AVX2(HALF, 0)}, /* vpmovzx */
    [0x31] = {[P66] = AVX_AVX2(QUARTER, 0)},
    [0x32] = {[P66] = AVX_AVX2(EIGHTH, 0)},
    [0x33] = {[P66] = AVX_AVX2(HALF, 0)},
    [0x34] = {[P66] = AVX_AVX2(QUARTER, 0)},
    [0x35] = {[P66] = AVX_AVX2(HALF, 0)},
    [0x36] = {[P66] = AVX2_256(FULL, NDS | W0)},
    [0x37 ... 0x40] = INT,
    [0x41] = {[P66] = AVX_128(FULL, 0)},
    [0x45] = {[P66] = AVX2(FULL, NDS)}, /* shifts by counts */
    [0x46] = {[P66] = AVX2(FULL, NDS | W0)},
    [0x47] = {[P66] = AVX2(FULL, NDS)},
    [0x58] = {[P66] = AVX2(4, W0)},
    [0x59] = {[P66] = AVX2(8, W0)},
    [0x5a] = {[P66] = AVX2_256(16, W0 | MEM_ONLY)},
    [0x78] = {[P66] = AVX2(1, W0)},
    [0x79] = {[P66] = AVX2(2, W0)},
    [0x8c] = {[P66] = AVX2(FULL, NDS | MEM_ONLY | MASKED)},
    [0x8e] = {[P66] = AVX2(FULL, NDS | MEM_ONLY | MASKED | STORE)},
    [0x90 ... 0x93] = {[P66] = AVX2(BY_W, NDS | MEM_ONLY | GATHER)},
    [0x96 ... 0x98] = PACKED_FMA, [0x99] = SCALAR_FMA, [0x9a] = PACKED_FMA, [0x9b] = SCALAR_FMA,
    [0x9c] = PACKED_FMA, [0x9d] = SCALAR_FMA, [0x9e] = PACKED_FMA, [0x9f] = SCALAR_FMA,
    [0xa6 ... 0xa8] = PACKED_FMA, [0xa9] = SCALAR_FMA, [0xaa] = PACKED_FMA, [0xab] = SCALAR_FMA,
    [0xac] = PACKED_FMA, [0xad] = SCALAR_FMA, [0xae] = PACKED_FMA, [0xaf] = SCALAR_FMA,
    [0xb6 ... 0xb8] = PACKED_FMA, [0xb9] = SCALAR_FMA, [0xba] = PACKED_FMA, [0xbb] = SCALAR_FMA,
    [0xbc] = PACKED_FMA, [0xbd] = SCALAR_FMA, [0xbe] = PACKED_FMA, [0xbf] = SCALAR_FMA,
    [0xcf] = {[P66] = OTHER(GFNI, GFNI, FULL, NDS | W0)},
    [0xdb] = {[P66] = {CPU_AES, 0, FULL, 0}},
    [0xdc ... 0xdf] = {[P66] = OTHER(AES, VAES, FULL, NDS)},
    [0xf2] = {[NP] = BMI(1, REG_G | V_G | FLAGS)},       /* andn */
    [0xf3] = {[NP] = BMI(1, V_G | V_OUT | FLAGS | GROUP)}, /* blsr blsmsk blsi */
    [0xf5] = {[NP] = BMI(2, REG_G | V_G | FLAGS), [PF3] = BMI(2, REG_G | V_G), [PF2] = BMI(2, REG_G | V_G)},
    [0xf6] = {[PF2] = BMI(2, REG_G | V_G | V_OUT)},      /* mulx */
    [0xf7] = {[NP] = BMI(1, REG_G | V_G | FLAGS), [P66] = BMI(2, REG_G | V_G), [PF3] = BMI(2, REG_G | V_G),
              [PF2] = BMI(2, REG_G | V_G)},
};

static const struct vex_opcode vex_0f3a[256][4] = {
    [0x00 ... 0x01] = {[P66] = AVX2_256(FULL, IMM | W1)},
    [0x02] = {[P66] = AVX2(FULL, NDS | IMM | W0)},
    [0x04 ... 0x05] = {[P66] = AVX(FULL, IMM | W0)},
    [0x06] = {[P66] = AVX_256(FULL, NDS | IMM | W0)},
    [0x08 ... 0x09] = {[P66] = AVX(FULL, IMM)},
    [0x0a] = {[P66] = AVX(4, NDS | IMM)},
    [0x0b] = {[P66] = AVX(8, NDS | IMM)},
    [0x0c ... 0x0d] = {[P66] = AVX(FULL, NDS | IMM)},
    [0x0e ... 0x0f] = {[P66] = AVX_AVX2(FULL, NDS | IMM)},
    [0x14] = {[P66] = AVX_128(1, STORE | IMM | RM_G)},
    [0x15] = {[P66] = AVX_128(2, STORE | IMM | RM_G)},
    [0x16] = {[P66] = AVX_128(BY_W, STORE | IMM | RM_G)},
    [0x17] = {[P66] = AVX_128(4, STORE | IMM | RM_G)},
    [0x18] = {[P66] = AVX_256(16, NDS | IMM | W0)},
    [0x19] = {[P66] = AVX_256(16, STORE | IMM | W0)},
    [0x1d] = {[P66] = OTHER(F16C, F16C, HALF, STORE | IMM | W0)},
    [0x20] = {[P66] = AVX_128(1, NDS | IMM | RM_G)},
    [0x21] = {[P66] = AVX_128(4, NDS | IMM)},
    [0x22] = {[P66] = AVX_128(BY_W, NDS | IMM | RM_G)},
    [0x38] = {[P66] = AVX2_256(16, NDS | IMM | W0)},
    [0x39] = {[P66] = AVX2_256(16, STORE | IMM | W0)},
    [0x40] = {[P66] = AVX(FULL, NDS | IMM)},
    [0x41] = {[P66] = AVX_128(FULL, NDS | IMM)},
    [0x42] = {[P66] = AVX_AVX2(FULL, NDS | IMM)},
    [0x44] = {[P66] = OTHER(PCLMULQDQ, VPCLMULQDQ, FULL, NDS | IMM)},
    [0x46] = {[P66] = AVX2_256(FULL, NDS | IMM | W0)},
    [0x4a ... 0x4b] = {[P66] = AVX(FULL, NDS | IMM | W0)}, /* a fourth register in the immediate */
    [0x4c] = {[P66] = AVX_AVX2(FULL, NDS | IMM | W0)},
    [0x60 ... 0x63] = {[P66] = AVX_128(FULL, IMM | FLAGS)},
    [0xce ... 0xcf] = {[P66] = OTHER(GFNI, GFNI, FULL, NDS | IMM | W1)},
    [0xdf] = {[P66] = {CPU_AES, 0, FULL, IMM}},
    [0xf0] = {[PF2] = BMI(2, REG_G | IMM)}, /* rorx */
};

static const struct vex_opcode *find_vex(const struct insn *i)
{
    static const struct vex_opcode none = {0};
    switch (i->map) {
    case 1: return &vex_0f[i->opcode][i->vex_pp];
    case 2: return &vex_0f38[i->opcode][i->vex_pp];
    case 3: return &vex_0f3a[i->opcode][i->vex_pp];
    }
    return &none;
}

/* The prefix itself; its R, X, B and W become those of a REX prefix. */
static const uint8_t *vex_prefix(struct insn *i, const uint8_t *p, uint8_t escape)
{
    uint8_t last = *p++;
    i->vex = true;
    i->map = 1;
    i->rex = last & 0x80 ? 0 : 4;
    if (escape == 0xc4) {
        i->map = last & 31;
        i->rex = ~last >> 5 & 7;
        last = *p++;
        i->rex |= last & 0x80 ? 8 : 0;
    }
    i->vvvv = ~last >> 3 & 15;
    i->vex_256 = last & 4;
    i->vex_pp = last & 3;
    if (i->compat)
        i->rex &= 8; /* eight registers */
    return p;
}

static unsigned vex_memory(const struct insn *i, const struct vex_opcode *o)
{
    unsigned full = i->vex_256 ? 32 : 16;
    switch (o->memory) {
    case FULL: return full;
    case HALF: return full / 2;
    case QUARTER: return full / 4;
    case EIGHTH: return full / 8;
    case BY_W: return i->rex & 8 ? 8 : 4;
    }
    return o->memory;
}

/* Rows whose form depends on more. False: it does not exist. */
static bool group_vex(struct insn *i, uint64_t features)
{
    unsigned r = i->reg & 7;
    if (i->map == 2 && i->opcode != 0xf3) /* broadcasts */
        return i->mod != 3 || (features & CPU_BIT(AVX2));
    switch (i->opcode) {
    case 0x12: /* movddup */
        if (!i->vex_256)
            i->memory_size = 8;
        return true;
    case 0x71: case 0x72: return r == 2 || r == 4 || r == 6;
    case 0x73: return r == 2 || r == 3 || r == 6 || r == 7;
    case 0xae:
        i->access = r == 3 ? RM_WRITE : RM_READ;
        return r == 2 || r == 3;
    case 0xf3: return r >= 1 && r <= 3;
    }
    return false;
}

static void vex_access(struct insn *i, const struct vex_opcode *o)
{
    i->access = o->how & STORE ? RM_WRITE : RM_READ;
    if (o->how & RM_G)
        i->access |= RM_GPR;
    if (o->how & REG_G)
        i->access |= REG_GPR | REG_WRITE;
    if (o->how & V_G)
        i->access |= o->how & V_OUT ? V_GPR | V_WRITE : V_GPR;
    if (o->how & FLAGS)
        set_flags(i, ALL, ALL, 0);
}

static bool vex_exists(struct insn *i, const struct vex_opcode *o, uint64_t features)
{
    bool wide = i->rex & 8, memory = i->mod != 3;
    bool uses_v = (o->how & (NDS | V_G)) || ((o->how & NDS_REG) && !memory);
    bool general = o->narrow == CPU_BMI1 || o->narrow == CPU_BMI2;
    if ((!uses_v && i->vvvv) || ((o->how & W0) && wide) || ((o->how & W1) && !wide) || ((o->how & REG_ONLY) && memory) ||
        ((o->how & MEM_ONLY) && !memory) || (!general && !(features & CPU_BIT(AVX))))
        return false;
    if (i->compat)
        i->vvvv &= 7; /* not looked at before: where nobody uses it, all of it must be 1 */
    if ((o->how & GATHER) && (!i->has_sib || i->index == (int)i->reg || i->index == (int)i->vvvv || i->reg == i->vvvv))
        return false;
    return !(o->how & GROUP) || group_vex(i, features);
}

const uint8_t *decode_vex(struct insn *i, const uint8_t *p, uint8_t escape, uint64_t features)
{
    bool refused = i->prefix_66 || i->prefix_f3 || i->prefix_f2 || i->prefix_lock || i->rex;
    i->kind = INSN_INVALID;
    p = vex_prefix(i, p, escape);
    i->opcode = *p++;
    const struct vex_opcode *o = find_vex(i);
    i->feature = i->vex_256 ? o->wide : o->narrow;
    if (refused || !i->feature)
        return p;
    if (i->compat && (o->how & (RM_G | REG_G | V_G)))
        i->rex = 0; /* W has no meaning */
    bool zero = i->map == 1 && i->opcode == 0x77;
    i->vsib = o->how & GATHER;
    if (!zero)
        p = decode_modrm(i, p);
    p = decode_imm(i, p, o->how & IMM ? IMM_8 : IMM_NONE);
    if (i->compat && i->map == 3 && i->opcode >= 0x4a && i->opcode <= 0x4c)
        i->imm &= 0x7f; /* the register in it */
    vex_access(i, o);
    i->memory_size = vex_memory(i, o);
    i->operand_size = i->rex & 8 ? 8 : 4;
    i->fpu = i->may_fault = o->narrow != CPU_BMI1 && o->narrow != CPU_BMI2;
    if (zero ? !i->vvvv : vex_exists(i, o, features))
        i->kind = zero ? INSN_VERBATIM : o->how & GATHER || (i->map == 1 && i->opcode == 0xf7) ? INSN_RARE
                                         : o->how & MASKED ? INSN_MASKED_MOVE : INSN_GENERAL;
    return p;
}
