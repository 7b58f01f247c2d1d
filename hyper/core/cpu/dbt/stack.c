/*
 * push, pop, leave. Pushes in a row share one look-up, so do pops with the ret behind them; a group that crosses a page or
 * faults runs again one by one, and one that does so often is not grouped any more (see ungroup in run.c).
 */
#include "cpu/dbt/translate.h"

/* What emit_tlb must know of the stack segment. */
static uint32_t stack_what(const struct translator *t)
{
    return SLOW_STACK | (segment_is_checked(t, SREG_SS) ? SLOW_SEGMENT(SREG_SS) : 0);
}

void emit_load_word(struct translator *t, unsigned to, int32_t disp)
{
    emit_op_mem(&t->m, !t->compat, 0x8b, to, T1, -1, 0, disp);
}

void emit_load_word_sum(struct translator *t, unsigned to) { emit_op_mem(&t->m, !t->compat, 0x8b, to, T1, T0, 0, 0); }

void emit_store_word(struct translator *t, int32_t disp, unsigned from)
{
    emit_op_mem(&t->m, !t->compat, 0x89, from, T1, -1, 0, disp);
}

static void move_stack(struct translator *t, int32_t disp) { emit_stack_lea(t, GUEST_RSP, GUEST_RSP, disp); }

static void emit_push_address(struct translator *t, uint64_t pc, unsigned slots)
{
    emit_stack_lea(t, T0, GUEST_RSP, -(int)(t->word * slots));
    emit_tlb(t, pc, t->word * slots | SLOW_WRITE | stack_what(t) | (slots > 1 ? SLOW_GROUP : 0));
}

void emit_pop_address(struct translator *t, uint64_t pc, unsigned slots)
{
    emit_stack_lea(t, T0, GUEST_RSP, 0);
    emit_tlb(t, pc, t->word * slots | stack_what(t) | (slots > 1 ? SLOW_GROUP : 0));
}

static unsigned stack_register(const struct insn *i) { return (i->opcode & 7) | (i->rex & 1) << 3; }

static bool may_group(const struct translator *t, uint64_t pc)
{
    return !t->single && !segment_is_checked(t, SREG_SS) && *ungroup_slot(t->ed, pc) < UNGROUP_AFTER;
}

/* Pushes in a row share one look-up. Returns how many instructions were taken. */
unsigned translate_pushes(struct translator *t, const struct insn *i, unsigned left, uint16_t live_before)
{
    struct emitter *m = &t->m;
    unsigned n = 1;
    if (may_group(t, i->pc))
        while (n < left && i[n].kind == INSN_PUSH_REG && n < 16)
            n++;
    flags_give_up(t, live_before);
    emit_push_address(t, i->pc, n);
    emit_lea(m, T1, T1, T0, 0);
    for (unsigned k = 0; k < n; k++) {
        unsigned guest = stack_register(&i[k]);
        if (guest == RSP)
            emit_stack_lea(t, T0, GUEST_RSP, -(int)(t->word * k)); /* the value before its own push */
        emit_store_word(t, t->word * (n - 1 - k), guest == RSP ? T0 : guest_in(t, guest, T0));
    }
    move_stack(t, -(int)(t->word * n));
    emit_commit(t);
    return n;
}

static void pop_to(struct translator *t, unsigned guest, int32_t offset)
{
    if (host_of[guest] >= 0) {
        emit_load_word(t, host_of[guest], offset);
        return;
    }
    emit_load(&t->m, T0, T1, offset);
    emit_store_gs(&t->m, REG_OFFSET(guest), T0);
}

/* Pops in a row, and a ret after them, share one look-up. */
unsigned translate_pops(struct translator *t, const struct insn *i, unsigned left, uint16_t live_before)
{
    struct emitter *m = &t->m;
    unsigned n = 1;
    bool ret = false, to_rsp = stack_register(i) == RSP;
    if (may_group(t, i->pc) && !to_rsp) {
        while (n < left && i[n].kind == INSN_POP_REG && n < 16 && stack_register(&i[n]) != RSP)
            n++;
        ret = n < left && i[n].kind == INSN_RET;
    }
    flags_give_up(t, live_before);
    emit_pop_address(t, i->pc, n + ret);
    emit_lea(m, T1, T1, T0, 0);
    for (unsigned k = 0; k < n; k++)
        pop_to(t, stack_register(&i[k]), t->word * k);
    if (ret) {
        emit_load_word(t, T0, t->word * n);
        move_stack(t, t->word * (n + 1) + (int32_t)i[n].imm);
        emit1(m, 0xc3);
        return n + 1;
    }
    if (!to_rsp)
        move_stack(t, t->word * n);
    return n;
}

void translate_push_rm(struct translator *t, const struct insn *i, uint16_t live_before)
{
    struct emitter *m = &t->m;
    flags_give_up(t, live_before);
    if (i->mod == 3) {
        emit_store_gs(m, OFFSET(scratch1), guest_in(t, i->rm, T0));
    } else {
        emit_vaddr(t, i);
        emit_tlb(t, i->pc, t->word | operand_what(t, i));
        emit_load_word_sum(t, T0);
        emit_store_gs(m, OFFSET(scratch1), T0);
    }
    emit_push_address(t, i->pc, 1);
    emit_lea(m, T1, T1, T0, 0);
    emit_load_gs(m, T0, OFFSET(scratch1));
    emit_store_word(t, 0, T0);
    move_stack(t, -(int)t->word);
    emit_commit(t);
}

void translate_pop_rm(struct translator *t, const struct insn *i, uint16_t live_before)
{
    struct emitter *m = &t->m;
    flags_give_up(t, live_before);
    emit_pop_address(t, i->pc, 1);
    emit_load_word_sum(t, T0);
    if (i->mod == 3) {
        move_stack(t, t->word);
        if (host_of[i->rm] >= 0)
            emit_mov(m, host_of[i->rm], T0);
        else
            emit_store_gs(m, REG_OFFSET(i->rm), T0);
        return;
    }
    /* The address is computed with rsp already incremented, but rsp may change only when the store can't fail. */
    emit_store_gs(m, OFFSET(scratch1), T0);
    move_stack(t, t->word);
    emit_vaddr(t, i);
    move_stack(t, -(int)t->word);
    emit_tlb(t, i->pc, t->word | SLOW_WRITE | operand_what(t, i));
    move_stack(t, t->word);
    emit_lea(m, T1, T1, T0, 0);
    emit_load_gs(m, T0, OFFSET(scratch1));
    emit_store_word(t, 0, T0);
    emit_commit(t);
}

void translate_push_imm(struct translator *t, uint64_t pc, int64_t imm, uint16_t live_before)
{
    struct emitter *m = &t->m;
    flags_give_up(t, live_before);
    emit_push_address(t, pc, 1);
    if (t->compat || imm == (int32_t)imm) {
        emit_op_mem(m, !t->compat, 0xc7, 0, T1, T0, 0, 0);
        emit4(m, imm);
    } else {
        emit_lea(m, T1, T1, T0, 0);
        emit_mov_imm(m, T0, imm);
        emit_store(m, T1, 0, T0);
    }
    move_stack(t, -(int)t->word);
    emit_commit(t);
}

void translate_leave(struct translator *t, const struct insn *i, uint16_t live_before)
{
    flags_give_up(t, live_before);
    emit_stack_lea(t, T0, H_RBP, 0);
    emit_tlb(t, i->pc, t->word | stack_what(t));
    emit_stack_lea(t, GUEST_RSP, H_RBP, t->word);
    emit_load_word_sum(t, H_RBP);
}
