/*
 * Memory accesses: the TLB look-up in front of each, its stub for misses, and what follows a store in a single step.
 *
 * The look-up computes `address + tag`: the offset in the page on a hit, something huge otherwise; one compare with
 * 4096 - size says hit, right page and no page crossing. Misses go to a stub in the cold half, which knows the guest pc, calls
 * HELP_ACCESS and comes back with the host's address as if the entry had hit.
 *
 * Precision. No instruction changes state before its last check. Whatever is odd (a store across pages or to a frame with code)
 * comes back as DBT_SPECIAL and is translated once more as a block of one instruction in MODE_SINGLE, where each access goes
 * through the bounce buffer.
 */
#include "cpu/dbt/translate.h"

static uint32_t tag_offset(const struct translator *t, bool write)
{
    uint32_t tlb = OFFSET(tlb) + t->user * sizeof(struct tlb_entry) * TLB_ENTRIES;
    return tlb + (write ? offsetof(struct tlb_entry, write_tag) : offsetof(struct tlb_entry, read_tag));
}

static void emit_lookup(struct translator *t, uint64_t pc, uint64_t what)
{
    struct emitter *m = &t->m;
    emit_mov(m, T1, T0);
    EMIT(m, "\x49\xc1\xeb\x07\x41\x81\xe3"); /* shr r11, 7; and r11d, */
    emit4(m, (TLB_ENTRIES - 1) * sizeof(struct tlb_entry));
    EMIT(m, "\x65\x4d\x03\x93"); /* add r10, gs:[r11 + tag] */
    emit4(m, tag_offset(t, what & SLOW_WRITE));
    EMIT(m, "\x49\x81\xfa"); /* cmp r10, */
    emit4(m, PAGE_SIZE - (what & SLOW_SIZE));
    EMIT(m, "\x0f\x87"); /* ja slow */
    ASSERT(t->nr_slow < MAX_SLOW);
    t->slow[t->nr_slow++] = (struct slow_stub){m->p, NULL, pc, what};
    emit4(m, 0);
}

static uint32_t entry_offset(const struct translator *t, size_t field)
{
    return tag_offset(t, false) - offsetof(struct tlb_entry, read_tag) + field;
}

/* T0 is an offset in a segment that is not simply all there is. */
static void emit_segment(struct translator *t, uint64_t pc, uint64_t what)
{
    emit_rip(t, pc);
    emit_mov_imm(&t->m, T1, what);
    emit_call(&t->m, t->ed->tr.helper[HELP_SEGMENT]);
    EMIT(&t->m, "\x45\x89\xda"); /* mov r10d, r11d */
}

void emit_tlb(struct translator *t, uint64_t pc, uint64_t what)
{
    struct emitter *m = &t->m;
    if (what & SLOW_SEGMENTS)
        emit_segment(t, pc, what);
    if (t->single) {
        emit_rip(t, pc);
        emit_mov_imm(m, T1, what | SLOW_SPECIAL);
        emit_call(m, t->ed->tr.helper[HELP_ACCESS]);
        return;
    }
    emit_lookup(t, pc, what);
    EMIT(m, "\x65\x4d\x8b\x9b"); /* mov r11, gs:[r11 + host] */
    emit4(m, entry_offset(t, offsetof(struct tlb_entry, host)));
    t->slow[t->nr_slow - 1].back = m->p;
}

void emit_tlb_distance(struct translator *t, uint64_t pc, uint64_t what)
{
    emit_lookup(t, pc, what);
    EMIT(&t->m, "\x65\x4d\x8b\x93"); /* mov r10, gs:[r11 + distance] */
    emit4(&t->m, entry_offset(t, offsetof(struct tlb_entry, distance)));
    t->slow[t->nr_slow - 1].back = t->m.p;
}

void emit_slow_stubs(struct translator *t)
{
    struct emitter *m = &t->m;
    for (unsigned k = 0; k < t->nr_slow; k++) {
        const struct slow_stub *s = &t->slow[k];
        patch_rel32(m, s->jump, m->p);
        EMIT(m, "\x65\x4d\x2b\x93"); /* sub r10, gs:[r11 + tag]: the address again */
        emit4(m, tag_offset(t, s->what & SLOW_WRITE));
        emit_rip(t, s->pc);
        emit_mov_imm(m, T1, s->what);
        emit_call(m, t->ed->tr.helper[HELP_ACCESS]);
        if (s->what & SLOW_GROUP)
            emit_lea(m, T0, T1, -1, -1);
        emit_jmp(m, s->back);
    }
}

void emit_operand(struct translator *t, const struct insn *i, uint32_t what, uint16_t live_before)
{
    if (emit_group_operand(t, i, what, live_before))
        return;
    flags_give_up(t, live_before);
    emit_vaddr(t, i);
    emit_tlb(t, i->pc, what);
    t->at = (struct place){T1, T0, 0, false};
}

void emit_stack_slot(struct translator *t, const struct insn *i, int offset, uint32_t what, uint16_t live_before)
{
    if (emit_group_base(t, i, GUEST_RSP, offset, what | stack_what(t), live_before))
        return;
    flags_give_up(t, live_before);
    emit_stack_lea(t, T0, GUEST_RSP, offset);
    emit_tlb(t, i->pc, what | stack_what(t));
    t->at = (struct place){T1, T0, 0, false};
}

void emit_at(struct translator *t, unsigned op, unsigned reg, int delta)
{
    emit_op_mem(&t->m, !t->compat, op, reg, t->at.base, t->at.index, 0, t->at.disp + delta);
}

void emit_flatten(struct translator *t)
{
    emit_lea(&t->m, T1, t->at.base, t->at.index, t->at.disp);
    t->at = (struct place){T1, -1, 0, false};
    t->held = NO_GROUP;
}

unsigned emit_scratch(struct translator *t)
{
    if (t->at.t1_free)
        return T1;
    emit_flatten(t);
    return T0;
}

void emit_commit(struct translator *t)
{
    if (t->single)
        emit_call(&t->m, t->ed->tr.helper[HELP_COMMIT]);
}
