/*
 * Instructions that run as they are, with their operands replaced: rm in memory becomes the place in the host that
 * emit_operand found, guest rsp is renamed, guest r10, r11 and r15 are fetched from the vCPU or used there in place.
 */
#include "cpu/dbt/translate.h"

static bool byte_without_rex(bool is_byte, const struct insn *i) { return is_byte && !i->rex; }

/* The instruction with its operands replaced: register field r, rm as `form` says. */
static void emit_insn(struct translator *t, const struct insn *i, unsigned r, enum rm_form form, uint32_t m)
{
    struct emitter *e = &t->m;
    if (form == RM_GS)
        emit1(e, 0x65);
    if (i->prefix_lock)
        emit1(e, 0xf0);
    if (i->prefix_66)
        emit1(e, 0x66);
    if (i->prefix_f3 && i->map)
        emit1(e, 0xf3);
    if (i->prefix_f2 && i->map)
        emit1(e, 0xf2);
    unsigned rex = (i->rex & 8) | ((r & 8) >> 1);
    if (form == RM_REGISTER)
        rex |= (m & 8) >> 3;
    if (form == RM_PLACE)
        rex |= (t->at.index >= 8 ? 2 : 0) | (t->at.base >= 8 ? 1 : 0);
    bool low_byte = (i->reg_is_byte && r >= 4 && r < 8) || (i->rm_is_byte && form == RM_REGISTER && m >= 4 && m < 8);
    if (rex || (i->rex && low_byte)) /* spl bpl sil dil need a REX, ah ch dh bh must not have one */
        emit1(e, 0x40 | rex);
    if (i->map)
        emit1(e, 0x0f);
    if (i->map > 1)
        emit1(e, i->map == 2 ? 0x38 : 0x3a);
    emit1(e, i->opcode);
    switch (form) {
    case RM_REGISTER: emit1(e, 0xc0 | (r & 7) << 3 | (m & 7)); break;
    case RM_PLACE: emit_modrm_mem(e, r, t->at.base, t->at.index, 0, t->at.disp); break;
    case RM_GS:
        emit1(e, (r & 7) << 3 | 4);
        emit1(e, 0x25);
        emit4(e, m);
        break;
    }
    for (unsigned k = 0; k < i->imm_bytes; k++)
        emit1(e, i->imm >> (8 * k));
}

void note_fault_point(struct translator *t, const struct insn *i)
{
    if (i->may_fault)
        fault_point_add(t->ed, t->m.p, i->pc << 1 | (t->flags == FLAGS_HOST));
}

/* bt and friends with a register index: the address moves with it, by whole operands. */
static void translate_bit_string(struct translator *t, const struct insn *i, bool need)
{
    struct emitter *m = &t->m;
    unsigned shift = i->operand_size == 8 ? 6 : i->operand_size == 4 ? 5 : 4;
    emit_vaddr(t, i);
    unsigned h = guest_in(t, i->reg, T1);
    emit1(m, 0x4c | (h >> 3)); /* mov, movsxd or movsx r11, index */
    if (i->operand_size == 8) {
        emit1(m, 0x8b);
    } else if (i->operand_size == 4) {
        emit1(m, 0x63);
    } else {
        emit1(m, 0x0f);
        emit1(m, 0xbf);
    }
    emit1(m, 0xc0 | 3 << 3 | (h & 7));
    EMIT(m, "\x49\xc1\xfb"); /* sar r11, shift */
    emit1(m, shift);
    emit_op_mem(m, true, 0x8d, T0, T0, T1, shift - 3, 0);
    if (i->address_32 && !i->segment)
        EMIT(m, "\x45\x89\xd2"); /* mov r10d, r10d */
    emit_tlb(t, i->pc, i->operand_size | (i->access & RM_WRITE ? SLOW_WRITE : 0) | operand_what(t, i));
    emit_lea(m, T1, T1, T0, 0);
    load_guest(t, T0, i->reg);
    EMIT(m, "\x41\x83\xe2"); /* and r10d, bits */
    emit1(m, (1 << shift) - 1);
    if (need)
        flags_to_host(t, true);
    t->at = (struct place){T1, -1, 0, false};
    emit_insn(t, i, T0, RM_PLACE, 0);
    t->flags = FLAGS_HOST;
    if (i->access & RM_WRITE)
        emit_commit(t);
}

/* ah, ch, dh or bh with a memory operand: no REX is possible with them, so their byte works in r10b. */
static void translate_high_byte_memory(struct translator *t, const struct insn *i)
{
    emit_flatten(t);
    emit_gs(&t->m, false, 0x88, i->reg, OFFSET(scratch1));
    emit_gs(&t->m, false, 0x8a, T0, OFFSET(scratch1));
    emit_insn(t, i, T0, RM_PLACE, 0);
    if (i->access & REG_WRITE) {
        emit_gs(&t->m, false, 0x88, T0, OFFSET(scratch1));
        emit_gs(&t->m, false, 0x8a, i->reg, OFFSET(scratch1));
    }
}

void translate_memory_form(struct translator *t, const struct insn *i, uint16_t live_before, bool need)
{
    bool write = i->access & RM_WRITE, gpr = i->access & REG_GPR;
    if (is_bit_string(i)) {
        flags_give_up(t, live_before);
        translate_bit_string(t, i, need);
        return;
    }
    emit_operand(t, i, i->memory_size | (write ? SLOW_WRITE : 0) | operand_what(t, i), live_before);
    if (need)
        flags_to_host(t, !t->at.t1_free);
    if (gpr && byte_without_rex(i->reg_is_byte, i) && i->reg >= 4) {
        translate_high_byte_memory(t, i);
    } else if (gpr && host_of[i->reg] < 0) {
        unsigned scratch = emit_scratch(t);
        if ((i->access & REG_READ) || i->operand_size < 4)
            emit_load_gs(&t->m, scratch, REG_OFFSET(i->reg));
        note_fault_point(t, i);
        emit_insn(t, i, scratch, RM_PLACE, 0);
        if (i->access & REG_WRITE)
            emit_store_gs(&t->m, REG_OFFSET(i->reg), scratch);
    } else {
        note_fault_point(t, i);
        emit_insn(t, i, gpr ? (byte_without_rex(i->reg_is_byte, i) ? i->reg : (unsigned)host_of[i->reg]) : i->reg, RM_PLACE, 0);
    }
    if (i->flags_touch)
        t->flags = FLAGS_HOST;
    if (write)
        emit_commit(t);
}

/* Is a general register of 32 or 64 bits that lives in the vCPU, and may stand as a memory operand there? */
static bool spilled(const struct insn *i, bool gpr, unsigned guest)
{
    return gpr && i->operand_size >= 4 && !i->rm_is_byte && !i->reg_is_byte && host_of[guest] < 0;
}

/* Forms where a spilled operand needs no scratch register: it is read or overwritten in place. True when emitted. */
static bool translate_in_place(struct translator *t, const struct insn *i)
{
    bool reg_gpr = i->access & REG_GPR, rm_gpr = i->access & RM_GPR;
    if (!rm_gpr || is_bit_string(i))
        return false;
    bool rm_spilled = spilled(i, true, i->rm), reg_spilled = spilled(i, reg_gpr, i->reg);
    bool store_form = i->map == 0 && reg_gpr && ((i->opcode < 0x40 && (i->opcode & 7) == 1 && i->opcode != 0x39) || i->opcode == 0x89);
    if (store_form && reg_spilled && !rm_spilled) { /* op rm, reg turned into op reg, rm */
        struct insn turned = *i;
        turned.opcode += 2;
        if (t->in_t1 == i->reg)
            emit_insn(t, &turned, host_of[i->rm], RM_REGISTER, T1);
        else
            emit_insn(t, &turned, host_of[i->rm], RM_GS, REG_OFFSET(i->reg));
        return true;
    }
    if (!rm_spilled || reg_spilled || i->memory_size > i->operand_size)
        return false;
    bool reads_only = !(i->access & RM_WRITE) && (i->access & RM_READ);
    bool register_only = i->map == 1 && i->opcode == 0xc7; /* rdrand, rdseed */
    bool overwrites = (i->access & RM_WRITE) && !(i->access & RM_READ) && i->memory_size == 8 && !register_only;
    if (!reads_only && !overwrites)
        return false;
    note_fault_point(t, i);
    bool at_hand = t->in_t1 == i->rm;
    if (at_hand && overwrites)
        t->in_t1 = -1;
    emit_insn(t, i, reg_gpr ? (unsigned)host_of[i->reg] : i->reg, at_hand && reads_only ? RM_REGISTER : RM_GS,
              at_hand && reads_only ? (unsigned)T1 : REG_OFFSET(i->rm));
    return true;
}

void translate_register_form(struct translator *t, const struct insn *i, bool need)
{
    if (need)
        flags_to_host(t, false);
    if (translate_in_place(t, i)) {
        if (i->flags_touch)
            t->flags = FLAGS_HOST;
        return;
    }
    bool reg_gpr = (i->access & REG_GPR) && !byte_without_rex(i->reg_is_byte, i);
    bool rm_gpr = (i->access & RM_GPR) && !byte_without_rex(i->rm_is_byte, i);
    unsigned r = i->reg, m = i->rm;
    bool reg_spill = reg_gpr && host_of[r] < 0, rm_spill = rm_gpr && host_of[m] < 0, same = reg_spill && rm_spill && r == m;
    if (reg_gpr)
        r = reg_spill ? T0 : (unsigned)host_of[r];
    if (rm_gpr)
        m = !rm_spill ? (unsigned)host_of[m] : same ? T0 : T1;
    bool whole = i->operand_size >= 4 && !i->rm_is_byte; /* what is written leaves nothing of before */
    if (reg_spill && ((i->access & REG_READ) || same || !whole))
        emit_load_gs(&t->m, T0, REG_OFFSET(i->reg));
    if (rm_spill && !same && t->in_t1 != i->rm && ((i->access & RM_READ) || !whole))
        emit_load_gs(&t->m, T1, REG_OFFSET(i->rm));
    if (byte_without_rex(i->rm_is_byte, i) && i->rm >= 4 && (r & 8)) { /* movzx esp, ah: through the vCPU */
        emit_gs(&t->m, false, 0x88, i->rm, OFFSET(scratch1));
        emit_insn(t, i, r, RM_GS, OFFSET(scratch1));
    } else {
        note_fault_point(t, i);
        emit_insn(t, i, r, RM_REGISTER, m);
    }
    if (reg_spill && ((i->access & REG_WRITE) || (same && (i->access & RM_WRITE))))
        emit_store_gs(&t->m, REG_OFFSET(i->reg), T0);
    if (rm_spill && !same && (i->access & RM_WRITE))
        emit_store_gs(&t->m, REG_OFFSET(i->rm), T1);
    if (rm_spill && !same)
        t->in_t1 = i->rm;
    else if (reg_spill && t->in_t1 == i->reg)
        t->in_t1 = -1; /* perhaps written */
    if (i->flags_touch)
        t->flags = FLAGS_HOST;
}

bool keeps_t1(struct translator *t, const struct insn *i)
{
    if (i->kind == INSN_GENERAL)
        return i->mod == 3 && i->map < 2 && !i->vex;
    return (i->kind == INSN_NOP || i->kind == INSN_LEA || i->kind == INSN_REG_OPCODE || i->kind == INSN_VERBATIM ||
            i->kind == INSN_JCC) && keeps_distance(t, i);
}

void translate_verbatim(struct translator *t, const struct insn *i, bool need)
{
    struct emitter *m = &t->m;
    if (need)
        flags_to_host(t, false);
    note_fault_point(t, i);
    if (i->prefix_66)
        emit1(m, 0x66);
    if (i->rex)
        emit1(m, i->rex);
    if (i->map)
        emit1(m, 0x0f);
    emit1(m, i->opcode);
    if (i->has_modrm)
        emit1(m, i->modrm); /* fnstsw ax */
    for (unsigned k = 0; k < i->imm_bytes; k++)
        emit1(m, i->imm >> (8 * k));
    if (i->flags_touch)
        t->flags = FLAGS_HOST;
}

void translate_register_opcode(struct translator *t, const struct insn *i)
{
    struct emitter *m = &t->m;
    unsigned guest = (i->opcode & 7) | (i->rex & 1) << 3;
    bool move_imm = i->map == 0 && i->opcode >= 0xb0;
    if (move_imm && i->operand_size == 1 && !i->rex) { /* ah ch dh bh too */
        emit1(m, i->opcode);
        emit1(m, i->imm);
        return;
    }
    bool spill = host_of[guest] < 0;
    unsigned h = spill ? T0 : (unsigned)host_of[guest];
    if (move_imm && i->operand_size >= 4) {
        emit_mov_imm(m, h, i->operand_size == 8 ? (uint64_t)i->imm : (uint32_t)i->imm);
    } else {
        if (spill)
            emit_load_gs(m, T0, REG_OFFSET(guest));
        if (i->prefix_66 && i->operand_size == 2)
            emit1(m, 0x66);
        unsigned rex = (i->rex & 8) | (h >> 3);
        if (rex || (i->operand_size == 1 && i->rex))
            emit1(m, 0x40 | rex);
        if (i->map)
            emit1(m, 0x0f);
        emit1(m, (i->opcode & 0xf8) | (h & 7));
        for (unsigned k = 0; k < i->imm_bytes; k++)
            emit1(m, i->imm >> (8 * k));
    }
    if (spill)
        emit_store_gs(m, REG_OFFSET(guest), h);
}

void translate_lea(struct translator *t, const struct insn *i)
{
    if (i->operand_size == 2) {
        emit_address(t, T0, i, 8);
        store_word(t, i->reg);
        return;
    }
    int h = host_of[i->reg];
    emit_address(t, h < 0 ? T0 : h, i, i->operand_size);
    if (h < 0)
        emit_store_gs(&t->m, REG_OFFSET(i->reg), T0);
}
