/*
 * VEX-encoded instructions: as they are, with their operands replaced as in general.c.
 *
 * Up to three operands are general registers (BMI), and two scratch registers are enough for all of them: a destination may
 * share its scratch register with a source, even with the address of the memory operand, because an instruction reads all of
 * its sources before it writes. So rm and the destination in reg take r11, and vvvv takes r10.
 */
#include "cpu/dbt/translate.h"

/* The instruction with register fields r and v, and rm as `form` says. */
static void emit_vex(struct translator *t, const struct insn *i, unsigned r, unsigned v, enum rm_form form, unsigned m)
{
    struct emitter *e = &t->m;
    unsigned x = form == RM_PLACE && t->at.index >= 8, b = form == RM_REGISTER ? m >> 3 : t->at.base >= 8;
    emit1(e, 0xc4);
    emit1(e, (r & 8 ? 0 : 0x80) | (x ? 0 : 0x40) | (b ? 0 : 0x20) | i->map);
    emit1(e, (i->rex & 8 ? 0x80 : 0) | (~v & 15) << 3 | (i->vex_256 ? 4 : 0) | i->vex_pp);
    emit1(e, i->opcode);
    if (form == RM_REGISTER)
        emit1(e, 0xc0 | (r & 7) << 3 | (m & 7));
    else
        emit_modrm_mem(e, r, t->at.base, t->at.index, 0, t->at.disp);
    if (i->imm_bytes)
        emit1(e, i->imm);
}

/* A general register's place in the instruction: its own, or the scratch register, filled if it is read. */
static unsigned place(struct translator *t, unsigned guest, unsigned scratch, bool reads)
{
    if (host_of[guest] >= 0)
        return host_of[guest];
    if (reads)
        emit_load_gs(&t->m, scratch, REG_OFFSET(guest));
    return scratch;
}

static void store_back(struct translator *t, unsigned guest, unsigned scratch)
{
    if (host_of[guest] < 0)
        emit_store_gs(&t->m, REG_OFFSET(guest), scratch);
}

static void emit_with_registers(struct translator *t, const struct insn *i, enum rm_form form, unsigned m)
{
    bool v_gpr = i->access & V_GPR, v_out = i->access & V_WRITE, r_gpr = i->access & REG_GPR;
    unsigned v = v_gpr ? place(t, i->vvvv, T0, !v_out) : i->vvvv;
    unsigned r = r_gpr ? place(t, i->reg, T1, false) : i->reg;
    note_fault_point(t, i);
    emit_vex(t, i, r, v, form, m);
    if (v_out)
        store_back(t, i->vvvv, T0);
    if (r_gpr) /* after vvvv: mulx with one register twice keeps the high half */
        store_back(t, i->reg, T1);
    if (i->flags_touch)
        t->flags = FLAGS_HOST;
}

static bool is_spilled(bool gpr, unsigned guest) { return gpr && host_of[guest] < 0; }

static void translate_vex_memory(struct translator *t, const struct insn *i, uint16_t live_before)
{
    bool write = i->access & RM_WRITE;
    uint32_t masked = i->kind == INSN_MASKED_MOVE ? SLOW_MASKED : 0;
    emit_operand(t, i, i->memory_size | (write ? SLOW_WRITE : 0) | masked | operand_what(t, i), live_before);
    bool spilled = is_spilled(i->access & V_GPR, i->vvvv) || is_spilled(i->access & REG_GPR, i->reg);
    if (spilled)
        emit_flatten(t);
    emit_with_registers(t, i, RM_PLACE, 0);
    if (write)
        emit_commit(t);
}

static void translate_vex_registers(struct translator *t, const struct insn *i)
{
    bool m_gpr = i->access & RM_GPR;
    unsigned m = m_gpr ? place(t, i->rm, T1, i->access & RM_READ) : i->rm;
    emit_with_registers(t, i, RM_REGISTER, m);
    if (m_gpr && (i->access & RM_WRITE))
        store_back(t, i->rm, T1);
}

void translate_vex(struct translator *t, const struct insn *i, uint16_t live_before)
{
    if (i->kind == INSN_MASKED_MOVE && (t->single || segment_is_checked(t, insn_segment(i))))
        emit_exit(t, i->pc, DBT_RARE);
    else if (insn_is_memory(i))
        translate_vex_memory(t, i, live_before);
    else
        translate_vex_registers(t, i);
}

void translate_vzero(struct translator *t, const struct insn *i)
{
    emit1(&t->m, 0xc5);
    emit1(&t->m, i->vex_256 ? 0xfc : 0xf8);
    emit1(&t->m, i->opcode);
}
