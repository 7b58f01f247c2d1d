/*
 * Operands: where a guest register lives, and the guest address of a memory operand.
 */
#include "cpu/dbt/translate.h"

void load_guest(struct translator *t, unsigned host, unsigned guest)
{
    if (host_of[guest] >= 0)
        emit_mov(&t->m, host, host_of[guest]);
    else
        emit_load_gs(&t->m, host, REG_OFFSET(guest));
}

unsigned guest_in(struct translator *t, unsigned guest, unsigned scratch)
{
    if (host_of[guest] >= 0)
        return host_of[guest];
    emit_load_gs(&t->m, scratch, REG_OFFSET(guest));
    return scratch;
}

void emit_address(struct translator *t, unsigned to, const struct insn *i, unsigned bytes)
{
    bool narrow = bytes != 8 || i->address_32;
    if (i->rip_relative) {
        uint64_t a = i->pc + i->length + i->disp;
        emit_mov_imm(&t->m, to, narrow ? (uint32_t)a : a);
        return;
    }
    int base = i->base < 0 ? -1 : (int)guest_in(t, i->base, T0);
    int index = i->index < 0 ? -1 : (int)guest_in(t, i->index, T1);
    if (base < 0 && index < 0)
        emit_mov_imm(&t->m, to, narrow ? (uint32_t)i->disp & address_mask(i) : (uint64_t)(int64_t)i->disp);
    else
        emit_op_mem(&t->m, !narrow, 0x8d, to, base, index, i->scale, i->disp);
    if (i->address_16 && (base >= 0 || index >= 0))
        emit_movzx_word(&t->m, to, to);
}

bool segment_is_checked(const struct translator *t, enum sreg sreg)
{
    switch (sreg) {
    case SREG_FS: return t->code & CODE_CHECKED_FS;
    case SREG_GS: return t->code & CODE_CHECKED_GS;
    case SREG_CS: return t->compat; /* not to be written: no need to be quick */
    default: return t->code & CODE_CHECKED;
    }
}

void emit_vaddr(struct translator *t, const struct insn *i)
{
    emit_address(t, T0, i, 8);
    enum sreg sreg = insn_segment(i);
    if ((sreg == SREG_FS || sreg == SREG_GS) && !segment_is_checked(t, sreg))
        emit_gs(&t->m, !t->compat, 0x03, T0, sreg == SREG_FS ? OFFSET(cpu.fs_base) : OFFSET(cpu.gs_base));
}

void emit_stack_lea(struct translator *t, unsigned to, unsigned base, int32_t disp)
{
    emit_op_mem(&t->m, !t->compat, 0x8d, to, base, -1, 0, disp);
}

void store_word(struct translator *t, unsigned guest)
{
    int h = host_of[guest];
    if (h < 0) {
        emit1(&t->m, 0x66);
        emit_gs(&t->m, false, 0x89, T0, REG_OFFSET(guest));
        return;
    }
    emit1(&t->m, 0x66);
    emit1(&t->m, 0x44 | (h >> 3));
    emit1(&t->m, 0x89);
    emit1(&t->m, 0xc0 | (T0 & 7) << 3 | (h & 7));
}

uint32_t operand_what(const struct translator *t, const struct insn *i)
{
    enum sreg sreg = insn_segment(i);
    return (sreg == SREG_SS ? SLOW_STACK : 0) | (segment_is_checked(t, sreg) ? SLOW_SEGMENT(sreg) : 0);
}
