/*
 * Control flow: how a block is left.
 *
 * Direct jumps are links: a rel32 that leads to a stub in the cold half until its target is translated, then to the target.
 * Where the next page may be another one in the next address space the stub looks into the jump cache instead. Indirect jumps
 * go through the jump cache: slots point to a block's checked entry, which compares the guest pc in r10 with its own.
 *
 * A guest call pushes for the guest, then is a host call; the guest's ret is a host ret to the landing behind that call, which
 * compares where the guest really wants to go with where it is.
 */
#include "cpu/dbt/translate.h"

void emit_rip(struct translator *t, uint64_t pc)
{
    emit_mov_imm(&t->m, T1, pc);
    emit_store_gs(&t->m, OFFSET(cpu.rip), T1);
}

void emit_exit(struct translator *t, uint64_t rip, enum dbt_exit why)
{
    emit_rip(t, rip);
    emit_store_gs_imm(&t->m, OFFSET(exit), why);
    emit_jmp(&t->m, t->flags == FLAGS_SAVED ? t->ed->tr.exit_saved : t->ed->tr.exit_direct);
}

void emit_link(struct translator *t, unsigned opcode, uint64_t pc)
{
    emit_align_rel32(&t->m, opcode > 0xff ? 2 : 1);
    if (opcode > 0xff)
        emit1(&t->m, opcode >> 8);
    emit1(&t->m, opcode);
    struct link *l = &t->b->links[t->b->nr_links++];
    ASSERT(t->b->nr_links <= BLOCK_LINKS);
    *l = (struct link){.patch = t->m.p, .owner = t->b, .pc = t->compat ? (uint32_t)pc : pc};
    emit4(&t->m, 0);
}

/* To the guest pc in T0; flags are saved or dead. A single step ends here. */
static void emit_jump_indirect(struct translator *t, bool call)
{
    struct emitter *m = &t->m;
    if (t->single) {
        if (call)
            emit_call(m, t->ed->tr.jump_miss);
        else
            emit_jmp(m, t->ed->tr.jump_miss);
        return;
    }
    emit_mov(m, T1, T0);
    EMIT(m, "\x49\xc1\xeb\x0c\x45\x31\xd3\x41\x81\xe3"); /* shr r11, 12; xor r11d, r10d; and r11d, */
    emit4(m, JUMP_ENTRIES - 1);
    emit1(m, 0x65);
    emit1(m, 0x42);
    emit1(m, 0xff);
    emit1(m, call ? 0x14 : 0x24);
    emit1(m, 0xdd);
    emit4(m, OFFSET(jump) + t->user * JUMP_ENTRIES * 8);
}

/* The same to a pc that is known now: its slot is, too. */
static void emit_jump_slot(struct translator *t, uint64_t pc, bool call)
{
    emit_mov_imm(&t->m, T0, pc);
    EMIT(&t->m, "\x65\xff"); /* jmp or call gs:[slot] */
    emit1(&t->m, call ? 0x14 : 0x24);
    emit1(&t->m, 0x25);
    emit4(&t->m, OFFSET(jump) + 8 * (t->user * JUMP_ENTRIES + jump_index(pc)));
}

bool in_kernel_image(const struct translator *t) { return !t->user && t->b->pc >= CHAIN_START; }

/* Elsewhere the next page may be another one in the next address space: not into it, and not to an instruction that may
 * reach into it. */
bool may_chain(const struct translator *t, uint64_t pc)
{
    if (in_kernel_image(t) && pc >= CHAIN_START)
        return true;
    return page_of(pc) == page_of(t->b->pc) && (pc & ~PAGE_MASK) <= PAGE_SIZE - INSN_MAX_BYTES;
}

void emit_link_stubs(struct translator *t)
{
    for (unsigned k = 0; k < t->b->nr_links; k++) {
        struct link *l = &t->b->links[k];
        l->stub = t->m.p;
        patch_rel32(&t->m, l->patch, l->stub);
        if (!t->single && !may_chain(t, l->pc)) {
            save_flags(t);
            emit_jump_slot(t, l->pc, false);
            continue;
        }
        emit_rip(t, l->pc);
        emit_mov_imm(&t->m, T1, (uint64_t)l);
        emit_store_gs(&t->m, OFFSET(link), T1);
        emit_jmp(&t->m, t->ed->tr.exit_direct);
    }
}

void emit_direct(struct translator *t, bool call, uint64_t pc, uint16_t live)
{
    if (t->single || may_chain(t, pc)) {
        if (live)
            flags_to_host(t, false);
        emit_link(t, call ? 0xe8 : 0xe9, pc);
    } else {
        if (live)
            flags_to_vcpu(t);
        emit_jump_slot(t, pc, call);
    }
}

void emit_check_pc(struct translator *t, uint64_t pc, const uint8_t *miss)
{
    struct emitter *m = &t->m;
    if ((int64_t)pc == (int32_t)pc) {
        EMIT(m, "\x49\x81\xfa");
        emit4(m, pc);
    } else {
        emit_mov_imm(m, T1, pc);
        EMIT(m, "\x4d\x39\xda");
    }
    emit_jcc(m, 5, miss);
}

/* Where a host ret comes back to: T0 holds where the guest wants to go. */
static void emit_landing(struct translator *t, uint64_t pc)
{
    emit_check_pc(t, pc, t->ed->tr.jump_indirect[t->user]);
    if (live_at(t, pc))
        restore_flags(t, false);
    emit_link(t, 0xe9, pc);
}

void translate_jrcxz(struct translator *t, const struct insn *i, uint16_t live_after)
{
    struct emitter *m = &t->m;
    if (live_after)
        flags_to_host(t, false);
    while (((uintptr_t)m->p & 63) > 40) /* the two jumps below must not be padded apart */
        emit1(m, 0x90);
    if (i->address_32)
        emit1(m, 0x67);
    EMIT(m, "\xe3\x05"); /* over one jmp rel32 */
    emit_link(t, 0xe9, i->pc + i->length);
    emit_link(t, 0xe9, i->target);
}

void translate_call(struct translator *t, const struct insn *i, uint16_t live_before, uint16_t live_after)
{
    uint64_t ret = t->compat ? (uint32_t)(i->pc + i->length) : i->pc + i->length;
    translate_push_imm(t, i, ret, live_before);
    emit_direct(t, true, i->target, live_after);
    emit_landing(t, ret);
}

static void load_target(struct translator *t, const struct insn *i)
{
    if (i->mod == 3) {
        if (t->compat)
            emit_stack_lea(t, T0, host_of[i->rm], 0); /* 32 bits of it */
        else
            load_guest(t, T0, i->rm);
        return;
    }
    emit_vaddr(t, i);
    emit_tlb(t, i->pc, t->word | operand_what(t, i));
    emit_op_mem(&t->m, !t->compat, 0x8b, T0, T1, T0, 0, 0);
}

void translate_call_indirect(struct translator *t, const struct insn *i, uint16_t live_before)
{
    struct emitter *m = &t->m;
    uint64_t ret = t->compat ? (uint32_t)(i->pc + i->length) : i->pc + i->length;
    flags_give_up(t, live_before);
    load_target(t, i);
    emit_store_gs(m, OFFSET(scratch1), T0);
    uint16_t live = t->flags == FLAGS_SAVED ? X86_STATUS : 0;
    translate_push_imm(t, i, ret, live);
    emit_load_gs(m, T0, OFFSET(scratch1));
    emit_jump_indirect(t, true);
    emit_landing(t, ret);
}

void translate_jmp_indirect(struct translator *t, const struct insn *i, uint16_t live_before)
{
    flags_give_up(t, live_before);
    load_target(t, i);
    emit_jump_indirect(t, false);
}

void translate_ret(struct translator *t, const struct insn *i, uint16_t live_before)
{
    emit_stack_slot(t, i, 0, t->word, live_before);
    flags_give_up(t, live_before);
    emit_at(t, 0x8b, T0, 0);
    emit_stack_lea(t, GUEST_RSP, GUEST_RSP, t->word + (int32_t)i->imm);
    if (t->single)
        emit_jmp(&t->m, t->ed->tr.jump_miss); /* the landing may lead far beyond a single step */
    else
        emit1(&t->m, 0xc3);
}

void translate_iret(struct translator *t, const struct insn *i)
{
    flags_to_vcpu(t);
    if (t->compat) {
        emit_exit(t, i->pc, DBT_PRIVILEGED);
        return;
    }
    translate_helper(t, i, HELP_IRET, i->operand_size);
    emit_load_gs(&t->m, T0, OFFSET(cpu.rip));
    emit_jmp(&t->m, t->single ? t->ed->tr.jump_miss : t->ed->tr.jump_indirect[t->user]);
}
