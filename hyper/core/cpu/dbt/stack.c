/*
 * push, pop, leave. Pushes in a row share one look-up, so do pops with the ret behind them; a group that crosses a page or
 * faults runs again one by one, and one that does so often is not grouped any more (see ungroup in run.c).
 */
#include "cpu/dbt/translate.h"

static void emit_push_address(struct translator *t, uint64_t pc, unsigned slots)
{
    emit_lea(&t->m, T0, GUEST_RSP, -1, -8 * (int)slots);
    emit_tlb(t, pc, 8 * slots | SLOW_WRITE | SLOW_STACK | (slots > 1 ? SLOW_GROUP : 0));
}

void emit_pop_address(struct translator *t, uint64_t pc, unsigned slots)
{
    emit_lea(&t->m, T0, GUEST_RSP, -1, 0);
    emit_tlb(t, pc, 8 * slots | SLOW_STACK | (slots > 1 ? SLOW_GROUP : 0));
}

static unsigned stack_register(const struct insn *i) { return (i->opcode & 7) | (i->rex & 1) << 3; }

static bool may_group(const struct translator *t, uint64_t pc)
{
    return !t->single && *ungroup_slot(t->ed, pc) < UNGROUP_AFTER;
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
            emit_lea(m, T0, GUEST_RSP, -1, -8 * (int)k); /* the value before its own push */
        emit_store(m, T1, 8 * (n - 1 - k), guest == RSP ? T0 : guest_in(t, guest, T0));
    }
    emit_lea(m, GUEST_RSP, GUEST_RSP, -1, -8 * (int)n);
    emit_commit(t);
    return n;
}

static void pop_to(struct translator *t, unsigned guest, int32_t offset)
{
    if (host_of[guest] >= 0) {
        emit_load(&t->m, host_of[guest], T1, offset);
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
        pop_to(t, stack_register(&i[k]), 8 * k);
    if (ret) {
        emit_load(m, T0, T1, 8 * n);
        emit_lea(m, GUEST_RSP, GUEST_RSP, -1, 8 * (n + 1) + (int32_t)i[n].imm);
        emit1(m, 0xc3);
        return n + 1;
    }
    if (!to_rsp)
        emit_lea(m, GUEST_RSP, GUEST_RSP, -1, 8 * n);
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
        emit_tlb(t, i->pc, 8 | stack_operand(i));
        emit_op_mem(m, true, 0x8b, T0, T1, T0, 0, 0);
        emit_store_gs(m, OFFSET(scratch1), T0);
    }
    emit_push_address(t, i->pc, 1);
    emit_lea(m, T1, T1, T0, 0);
    emit_load_gs(m, T0, OFFSET(scratch1));
    emit_store(m, T1, 0, T0);
    emit_lea(m, GUEST_RSP, GUEST_RSP, -1, -8);
    emit_commit(t);
}

void translate_pop_rm(struct translator *t, const struct insn *i, uint16_t live_before)
{
    struct emitter *m = &t->m;
    flags_give_up(t, live_before);
    emit_pop_address(t, i->pc, 1);
    emit_op_mem(m, true, 0x8b, T0, T1, T0, 0, 0);
    if (i->mod == 3) {
        emit_lea(m, GUEST_RSP, GUEST_RSP, -1, 8);
        if (host_of[i->rm] >= 0)
            emit_mov(m, host_of[i->rm], T0);
        else
            emit_store_gs(m, REG_OFFSET(i->rm), T0);
        return;
    }
    /* The address is computed with rsp already incremented, but rsp may change only when the store can't fail. */
    emit_store_gs(m, OFFSET(scratch1), T0);
    emit_lea(m, GUEST_RSP, GUEST_RSP, -1, 8);
    emit_vaddr(t, i);
    emit_lea(m, GUEST_RSP, GUEST_RSP, -1, -8);
    emit_tlb(t, i->pc, 8 | SLOW_WRITE | stack_operand(i));
    emit_lea(m, GUEST_RSP, GUEST_RSP, -1, 8);
    emit_lea(m, T1, T1, T0, 0);
    emit_load_gs(m, T0, OFFSET(scratch1));
    emit_store(m, T1, 0, T0);
    emit_commit(t);
}

void translate_push_imm(struct translator *t, uint64_t pc, int64_t imm, uint16_t live_before)
{
    struct emitter *m = &t->m;
    flags_give_up(t, live_before);
    emit_push_address(t, pc, 1);
    if (imm == (int32_t)imm) {
        emit_op_mem(m, true, 0xc7, 0, T1, T0, 0, 0);
        emit4(m, imm);
    } else {
        emit_lea(m, T1, T1, T0, 0);
        emit_mov_imm(m, T0, imm);
        emit_store(m, T1, 0, T0);
    }
    emit_lea(m, GUEST_RSP, GUEST_RSP, -1, -8);
    emit_commit(t);
}

void translate_leave(struct translator *t, const struct insn *i, uint16_t live_before)
{
    flags_give_up(t, live_before);
    emit_lea(&t->m, T0, H_RBP, -1, 0);
    emit_tlb(t, i->pc, 8 | SLOW_STACK);
    emit_lea(&t->m, GUEST_RSP, H_RBP, -1, 8);
    emit_op_mem(&t->m, true, 0x8b, H_RBP, T1, T0, 0, 0);
}
