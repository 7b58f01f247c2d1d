/*
 * push, pop, leave. Those of a block share look-ups as all accesses do, see groups.c.
 */
#include "cpu/dbt/translate.h"

static void move_stack(struct translator *t, int32_t disp) { emit_stack_lea(t, GUEST_RSP, GUEST_RSP, disp); }

/* For the two that need more than one look-up: afterwards T1 + T0 is the host's address of the slot. */
static void emit_slot_lookup(struct translator *t, uint64_t pc, int offset, uint32_t what)
{
    emit_stack_lea(t, T0, GUEST_RSP, offset);
    emit_tlb(t, pc, t->word | stack_what(t) | what);
    t->at = (struct place){T1, T0, 0, false};
}

static void push_one(struct translator *t, unsigned guest, int delta)
{
    if (guest == RSP) { /* the value before its own push */
        unsigned scratch = emit_scratch(t);
        emit_stack_lea(t, scratch, GUEST_RSP, delta);
        emit_at(t, 0x89, scratch, delta);
    } else {
        unsigned scratch = host_of[guest] < 0 ? emit_scratch(t) : 0;
        emit_at(t, 0x89, guest_in(t, guest, scratch), delta);
    }
}

/* Pushes in a row, if they share a look-up. Returns how many instructions were taken. */
unsigned translate_pushes(struct translator *t, const struct insn *i, unsigned left, uint16_t live_before)
{
    unsigned n = 0;
    int word = t->word;
    emit_stack_slot(t, i, -word, word | SLOW_WRITE, live_before);
    do {
        push_one(t, stack_register(&i[n]), -word * (int)n);
        n++;
    } while (n < left && i[n].kind == INSN_PUSH_REG && same_group(t, i, &i[n]));
    move_stack(t, -word * (int)n);
    emit_commit(t);
    return n;
}

static void pop_one(struct translator *t, unsigned guest, int delta)
{
    unsigned to = host_of[guest] >= 0 ? (unsigned)host_of[guest] : emit_scratch(t);
    emit_at(t, 0x8b, to, delta);
    if (host_of[guest] < 0)
        emit_store_gs(&t->m, REG_OFFSET(guest), to);
}

/* Pops in a row, if they share a look-up. */
unsigned translate_pops(struct translator *t, const struct insn *i, unsigned left, uint16_t live_before)
{
    unsigned n = 0;
    int word = t->word;
    emit_stack_slot(t, i, 0, word, live_before);
    do {
        pop_one(t, stack_register(&i[n]), word * (int)n);
        if (stack_register(&i[n++]) == RSP)
            return n;
    } while (n < left && i[n].kind == INSN_POP_REG && same_group(t, i, &i[n]) && stack_register(&i[n]) != RSP);
    move_stack(t, word * (int)n);
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
        t->at = (struct place){T1, T0, 0, false};
        emit_at(t, 0x8b, T0, 0);
        emit_store_gs(m, OFFSET(scratch1), T0);
    }
    emit_slot_lookup(t, i->pc, -(int)t->word, SLOW_WRITE);
    emit_flatten(t);
    emit_load_gs(m, T0, OFFSET(scratch1));
    emit_at(t, 0x89, T0, 0);
    move_stack(t, -(int)t->word);
    emit_commit(t);
}

void translate_pop_rm(struct translator *t, const struct insn *i, uint16_t live_before)
{
    struct emitter *m = &t->m;
    flags_give_up(t, live_before);
    emit_slot_lookup(t, i->pc, 0, 0);
    emit_at(t, 0x8b, T0, 0);
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
    t->at = (struct place){T1, T0, 0, false};
    emit_flatten(t);
    emit_load_gs(m, T0, OFFSET(scratch1));
    emit_at(t, 0x89, T0, 0);
    emit_commit(t);
}

void translate_push_imm(struct translator *t, const struct insn *i, int64_t imm, uint16_t live_before)
{
    struct emitter *m = &t->m;
    emit_stack_slot(t, i, -(int)t->word, t->word | SLOW_WRITE, live_before);
    if (t->compat || imm == (int32_t)imm) {
        emit_at(t, 0xc7, 0, 0);
        emit4(m, imm);
    } else {
        unsigned scratch = emit_scratch(t);
        emit_mov_imm(m, scratch, imm);
        emit_at(t, 0x89, scratch, 0);
    }
    move_stack(t, -(int)t->word);
    emit_commit(t);
}

void translate_leave(struct translator *t, const struct insn *i, uint16_t live_before)
{
    if (!emit_group_base(t, i, H_RBP, 0, t->word | stack_what(t), live_before)) {
        flags_give_up(t, live_before);
        emit_stack_lea(t, T0, H_RBP, 0);
        emit_tlb(t, i->pc, t->word | stack_what(t));
        t->at = (struct place){T1, T0, 0, false};
    }
    emit_stack_lea(t, GUEST_RSP, H_RBP, t->word);
    emit_at(t, 0x8b, H_RBP, 0);
}
