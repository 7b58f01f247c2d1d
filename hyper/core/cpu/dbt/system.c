/*
 * Segment registers, and the instructions that are calls of helpers.c: strings, fxsave.
 */
#include "cpu/dbt/translate.h"

static void load_selector(struct translator *t, unsigned sreg)
{
    emit_gs(&t->m, false, 0x1b7, T0, OFFSET(cpu.sreg) + 2 * sreg); /* movzx r10d, word */
}

void translate_mov_from_segment(struct translator *t, const struct insn *i, uint16_t live_before)
{
    if (i->mod == 3) {
        load_selector(t, i->reg & 7);
        if (i->operand_size == 2)
            store_word(t, i->rm);
        else if (host_of[i->rm] < 0)
            emit_store_gs(&t->m, REG_OFFSET(i->rm), T0);
        else
            emit_mov(&t->m, host_of[i->rm], T0);
        return;
    }
    flags_give_up(t, live_before);
    emit_vaddr(t, i);
    emit_tlb(t, i->pc, 2 | SLOW_WRITE | operand_what(t, i));
    emit_lea(&t->m, T1, T1, T0, 0);
    load_selector(t, i->reg & 7);
    emit1(&t->m, 0x66);
    emit_op_mem(&t->m, false, 0x89, T0, T1, -1, 0, 0);
    emit_commit(t);
}

void translate_helper(struct translator *t, const struct insn *i, enum helper h, uint64_t argument)
{
    emit_rip(t, i->pc);
    emit_mov_imm(&t->m, T1, argument);
    emit_call(&t->m, t->ed->tr.helper[h]);
}

void translate_string(struct translator *t, const struct insn *i, uint16_t live_before)
{
    flags_give_up(t, live_before);
    unsigned repeat = i->prefix_f3 ? 1 : i->prefix_f2 ? 2 : 0;
    unsigned segment = i->segment ? i->segment - 1 : SREG_DS, address = i->address_16 ? 2 : i->address_32 ? 4 : 8;
    translate_helper(t, i, t->single ? HELP_STRING_ALONE : HELP_STRING,
                     i->opcode | i->operand_size << 8 | repeat << 16 | segment << 20 | address << 24);
    if (i->flags_touch)
        t->flags = FLAGS_SAVED;
}

void translate_fxsave(struct translator *t, const struct insn *i, uint16_t live_before)
{
    flags_give_up(t, live_before);
    emit_vaddr(t, i);
    enum sreg sreg = insn_segment(i);
    translate_helper(t, i, i->kind == INSN_FXSAVE ? HELP_FXSAVE : HELP_FXRSTOR,
                     (i->rex & 8) | (segment_is_checked(t, sreg) ? SLOW_SEGMENT(sreg) : 0));
}

void translate_xsave(struct translator *t, const struct insn *i, uint16_t live_before)
{
    enum xsave_form form = i->map == 1 && i->opcode == 0xc7 ? XSAVE_COMPACT : (i->reg & 7) == 6 ? XSAVE_OPTIMISED : XSAVE_PLAIN;
    flags_give_up(t, live_before);
    emit_vaddr(t, i);
    enum sreg sreg = insn_segment(i);
    translate_helper(t, i, i->kind == INSN_XSAVE ? HELP_XSAVE : HELP_XRSTOR,
                     form | (i->rex & 8 ? XSAVE_WIDE : 0) | (segment_is_checked(t, sreg) ? SLOW_SEGMENT(sreg) : 0));
}
