/*
 * Decoding in four steps: prefixes, opcode table (tables.c, sse.c, maps.c), ModRM with its addressing form, immediate; then the cases
 * that depend on ModRM.reg or on shift counts (groups.c). VEX encodings go their own way (vex.c).
 */
#include "cpu/decode/parts.h"

#include <string.h>

static const uint16_t condition_flags[8] = {
    X86_OF, X86_CF, X86_ZF, X86_CF | X86_ZF, X86_SF, X86_PF, X86_SF | X86_OF, X86_SF | X86_OF | X86_ZF,
};

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

static bool is_rex(const struct insn *i, uint8_t byte) { return !i->compat && (byte & 0xf0) == 0x40; }

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
        case 0x67:
            i->address_16 = i->compat;
            i->address_32 = true;
            continue;
        case 0x26: case 0x2e: case 0x36: case 0x3e: /* no meaning in 64-bit code */
            if (i->compat)
                i->segment = 1 + (*p >> 3 & 3);
            continue;
        }
        if (is_rex(i, *p)) {
            i->rex = *p;
            continue;
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

/* The 16-bit forms: fixed pairs of registers. Returns bytes of displacement. */
static unsigned modrm_16(struct insn *i)
{
    static const int8_t base[8] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX}, index[8] = {RSI, RDI, RSI, RDI, -1, -1, -1, -1};
    i->base = base[i->rm];
    i->index = index[i->rm];
    if (i->rm == 6 && i->mod == 0)
        i->base = -1;
    return i->base < 0 || i->mod == 2 ? 2 : i->mod;
}

const uint8_t *decode_modrm(struct insn *i, const uint8_t *p)
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
    if (i->address_16) {
        unsigned n = modrm_16(i);
        i->disp = n == 2 ? (int16_t)(p[0] | p[1] << 8) : n ? (int8_t)*p : 0;
        return p + n;
    }
    if (i->rm == 4) {
        uint8_t sib = *p++;
        int index = ((sib >> 3) & 7) | ((i->rex & 2) << 2);
        i->has_sib = true;
        i->scale = sib >> 6;
        i->index = index == 4 && !i->vsib ? -1 : index;
        i->base = (sib & 7) | ((i->rex & 1) << 3);
        if ((sib & 7) == 5 && i->mod == 0) {
            i->base = -1;
            i->disp = load32(p);
            p += 4;
        }
    } else if (i->rm == 5 && i->mod == 0) {
        i->rip_relative = !i->compat;
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
    case IMM_MOFFS: return i->address_16 ? 2 : i->address_32 ? 4 : 8;
    case IMM_ENTER: return 3;
    case IMM_FAR: return i->operand_size + 2;
    }
    return 0;
}

const uint8_t *decode_imm(struct insn *i, const uint8_t *p, enum imm_rule rule)
{
    unsigned n = imm_bytes(i, rule);
    uint64_t v = 0;
    memcpy(&v, p, n);
    if (rule == IMM_MOFFS || rule == IMM_ENTER || rule == IMM_16 || rule == IMM_FAR)
        i->imm = v;
    else if (n && n < 8)
        i->imm = (int64_t)(v << (64 - 8 * n)) >> (64 - 8 * n);
    else
        i->imm = v;
    i->imm_bytes = n;
    return p + n;
}

static void finish(struct insn *i, const struct opcode *o)
{
    if (!i->memory_size && i->kind != INSN_FXSAVE && i->kind != INSN_FXRSTOR)
        i->memory_size = o->memory ? o->memory : i->operand_size;
    i->reg_is_byte = i->operand_size == 1 && (i->access & REG_GPR);
    i->rm_is_byte = (i->operand_size == 1 || (i->map == 1 && (i->opcode == 0xb6 || i->opcode == 0xbe)) ||
                     (i->map == 2 && i->opcode == 0xf0)) && (i->access & RM_GPR);
    if (i->prefix_lock && !(o->lockable && insn_is_memory(i) && (i->access & RM_WRITE)))
        i->kind = INSN_INVALID;
    bool branch = i->kind == INSN_JCC || i->kind == INSN_JMP || i->kind == INSN_CALL || i->kind == INSN_JRCXZ;
    if (branch)
        i->target = i->pc + i->length + i->imm;
    if (i->compat)
        i->target = (uint32_t)i->target;
    if (i->compat && i->prefix_66 && (branch || i->kind == INSN_RET))
        i->kind = INSN_INVALID; /* not built: 16-bit instruction pointers */
    if (i->kind == INSN_JRCXZ && i->address_16)
        i->kind = INSN_RARE;
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
    if (i->prefix_66 && !(i->rex & 8) && i->map == 0 && (i->opcode == 0xc8 || i->opcode == 0xc9))
        i->kind = INSN_INVALID; /* not built: 16-bit enter and leave */
    if (i->kind == INSN_STRING && (i->flags_kill & ALL) && (i->prefix_f3 || i->prefix_f2))
        i->flags_kill = 0; /* rcx may be zero */
    if ((i->map == 0 && i->opcode == 0x9b) || (i->map == 1 && i->opcode == 0x77))
        i->fpu = i->may_fault = true;
}

static unsigned operand_size(const struct insn *i, enum size_rule rule)
{
    if (rule == SIZE_B)
        return 1;
    if ((rule == SIZE_64 && !i->compat) || (i->rex & 8))
        return 8;
    return i->prefix_66 ? 2 : 4;
}

static void last_word(struct insn *i, unsigned bytes, uint64_t features)
{
    if (!(features >> i->feature & 1))
        i->kind = INSN_INVALID;
    if (bytes > INSN_MAX_BYTES) {
        i->kind = INSN_INVALID;
        i->length = INSN_MAX_BYTES;
    }
}

static const struct sse_opcode *find_sse(unsigned map, uint8_t opcode)
{
    static const struct sse_opcode *const table[4] = {NULL, sse, sse_0f38, sse_0f3a};
    return map && is_sse(&table[map][opcode]) ? &table[map][opcode] : NULL;
}

void decode(struct insn *i, const uint8_t *bytes, uint64_t pc, uint64_t features, bool compat)
{
    static const struct opcode sse_defaults = {.kind = INSN_GENERAL}, integer_0f38 = {.kind = INSN_GENERAL, .modrm = true},
                               unknown = {.kind = INSN_INVALID};
    memset(i, 0, sizeof(*i));
    i->pc = pc;
    i->base = i->index = -1;
    i->compat = i->address_32 = compat;
    const uint8_t *p = decode_prefixes(i, bytes, bytes + INSN_MAX_BYTES - 1);
    const struct opcode *o;
    const struct sse_opcode *s = NULL;
    uint8_t op = *p++;
    if ((op == 0xc4 || op == 0xc5) && (!compat || *p >= 0xc0)) { /* else les, lds */
        p = decode_vex(i, p, op, features);
        i->length = p - bytes;
        last_word(i, p - bytes, features);
        return;
    }
    if (op != 0x0f) {
        o = compat ? compat_row(op) : &one_byte[op];
    } else {
        op = *p++;
        i->map = op == 0x38 ? 2 : op == 0x3a ? 3 : 1;
        if (i->map > 1)
            op = *p++;
        s = find_sse(i->map, op);
        o = s ? &sse_defaults : i->map == 1 ? &two_byte[op] : i->map == 2 && is_integer_0f38(op) ? &integer_0f38 : &unknown;
    }
    i->opcode = op;
    i->kind = o->kind;
    i->access = o->access;
    i->operand_size = operand_size(i, o->size);
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
        if (i->map == 2)
            decode_integer_0f38(i);
        else if (i->map)
            decode_two_byte_group(i, features);
        else
            decode_one_byte_group(i);
    }
    i->length = p - bytes;
    if (compat)
        compat_rewrite(i);
    finish(i, o);
    if (i->map == 0 && (op & 0xfe) == 0x9e && !compat)
        i->feature = CPU_LAHF;
    last_word(i, p - bytes, features);
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
