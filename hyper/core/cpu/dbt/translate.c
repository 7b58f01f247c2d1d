/*
 * One block: guest instructions in, host instructions out.
 *
 * Most instructions run as they are, with their memory operand replaced by the host address that the TLB look-up left in
 * r11 + r10, and with guest rsp, r10, r11 and r15 renamed or fetched from the vCPU. The hot half of the code cache gets the
 * straight way; TLB misses and unlinked jumps go to stubs in the cold half.
 *
 * Here: reading the instructions, liveness of the flags over them, and who translates which. The rest by idea: flags.c,
 * operands.c, access.c, general.c, stack.c, jumps.c, system.c; translate.h has what they share.
 */
#include "cpu/dbt/translate.h"

/* One instruction, or a group; returns how many of `left` were taken. live: flags alive before and after it. */
static unsigned translate_insn(struct translator *t, const struct insn *i, unsigned left, uint16_t before, uint16_t after)
{
    bool need = needs_flags(i, after);
    if (!keeps_distance(t, i))
        t->held = NO_GROUP;
    if (!keeps_t1(t, i))
        t->in_t1 = -1;
    if (i->fpu && (t->b->mode & MODE_NO_FPU)) {
        emit_exit(t, i->pc, DBT_NO_DEVICE);
        return left;
    }
    switch ((enum insn_kind)i->kind) {
    case INSN_NOP: break;
    case INSN_MASKED_MOVE: translate_vex(t, i, before); break;
    case INSN_GENERAL:
        if (i->vex)
            translate_vex(t, i, before);
        else if (insn_is_memory(i) && (i->access & (RM_READ | RM_WRITE)))
            translate_memory_form(t, i, before, need);
        else
            translate_register_form(t, i, need);
        break;
    case INSN_VERBATIM:
        if (i->vex)
            translate_vzero(t, i);
        else
            translate_verbatim(t, i, need);
        break;
    case INSN_REG_OPCODE: translate_register_opcode(t, i); break;
    case INSN_LEA: translate_lea(t, i); break;
    case INSN_PUSH_REG: return translate_pushes(t, i, left, before);
    case INSN_POP_REG: return translate_pops(t, i, left, before);
    case INSN_PUSH_IMM: translate_push_imm(t, i, i->imm, before); break;
    case INSN_PUSH_RM: translate_push_rm(t, i, before); break;
    case INSN_POP_RM: translate_pop_rm(t, i, before); break;
    case INSN_LEAVE: translate_leave(t, i, before); break;
    case INSN_PUSHF:
        flags_to_vcpu(t);
        if (t->single) /* perhaps onto a frame with code: the interpreter may take the lock */
            emit_exit(t, i->pc, DBT_RARE);
        else
            translate_helper(t, i, HELP_PUSHF, t->word);
        break;
    case INSN_POPF:
        flags_to_vcpu(t);
        translate_helper(t, i, HELP_POPF, t->word);
        break;
    case INSN_STRING: translate_string(t, i, before); break;
    case INSN_CLD: case INSN_STD:
        emit_store_gs_imm(&t->m, OFFSET(cpu.direction), i->kind == INSN_STD);
        break;
    case INSN_MOV_FROM_SEG: translate_mov_from_segment(t, i, before); break;
    case INSN_FXSAVE: case INSN_FXRSTOR: translate_fxsave(t, i, before); break;
    case INSN_XSAVE: case INSN_XRSTOR: translate_xsave(t, i, before); break;
    case INSN_JCC:
        flags_to_host(t, false);
        emit_link(t, 0x0f80 | (i->opcode & 15), i->target);
        if (left == 1)
            emit_link(t, 0xe9, i->pc + i->length);
        break;
    case INSN_JRCXZ: translate_jrcxz(t, i, after); break;
    case INSN_JMP:
        emit_direct(t, false, i->target, after);
        break;
    case INSN_CALL: translate_call(t, i, before, after); break;
    case INSN_CALL_INDIRECT: translate_call_indirect(t, i, before); break;
    case INSN_JMP_INDIRECT: translate_jmp_indirect(t, i, before); break;
    case INSN_RET: translate_ret(t, i, before); break;
    case INSN_IRET: translate_iret(t, i); break;
    case INSN_SYSCALL: emit_exit(t, i->pc + i->length, DBT_SYSCALL); break;
    case INSN_RARE:
        if (i->map == 1 && i->opcode == 0xf7 && !i->prefix_66 && !i->vex) { /* maskmovq: what every MMX instruction does */
            note_fault_point(t, i);
            EMIT(&t->m, "\x44\x0f\xd7\xd0"); /* pmovmskb r10d, mm0 */
        }
        emit_exit(t, i->pc, DBT_RARE);
        break;
    case INSN_PRIVILEGED: emit_exit(t, i->pc, DBT_PRIVILEGED); break;
    case INSN_INVALID: emit_exit(t, i->pc, DBT_INVALID); break;
    }
    return 1;
}

/* Flags alive after the last instruction. */
static uint16_t live_at_end(struct translator *t, const struct insn *last)
{
    switch (last->kind) {
    case INSN_JCC: case INSN_JRCXZ: return live_at(t, last->target) | live_at(t, last->pc + last->length);
    case INSN_JMP: case INSN_CALL: return live_at(t, last->target);
    }
    return insn_ends_block(last) ? X86_STATUS : live_at(t, last->pc + last->length);
}

static bool may_loop(const struct insn *last)
{
    switch (last->kind) {
    case INSN_JCC: case INSN_JMP: case INSN_JRCXZ: return last->target <= last->pc;
    /* Forward calls as well: two in each of 60 functions run for ever without one backward jump. */
    case INSN_CALL: case INSN_CALL_INDIRECT: case INSN_JMP_INDIRECT: return true;
    }
    return false;
}

/* Does the block go on behind this instruction? Past a conditional jump forward, when not taken: mostly it isn't, and looked-up
 * bases, flags and the poll serve for longer. */
static bool goes_on(const struct translator *t, const struct insn *i, unsigned *side_exits)
{
    if (i->kind == INSN_JCC && !t->single)
        return i->target > i->pc && ++*side_exits < BLOCK_LINKS - 1;
    return !insn_ends_block(i);
}

/* Reads the block's instructions. The frames are registered as code before their bytes are read, so that a store in between
 * is seen; 0: the first one can't be fetched. */
static unsigned read_block(struct translator *t, struct insn *insns, uint64_t pc)
{
    struct hv *hv = t->ed->domain->hv;
    t->b->mfn = mmu_fetch_frame(t->e, pc);
    t->b->mfn2 = INVALID_MFN;
    if (mfn_eq(t->b->mfn, INVALID_MFN))
        return 0;
    code_frame_register(t->e, t->b->mfn);
    t->page = frame_host(hv, t->b->mfn);
    t->page_vaddr = page_of(pc);
    unsigned n = 0, side_exits = 0;
    for (uint64_t q = pc; n < (t->single ? 1 : MAX_INSNS) && page_of(q) == t->page_vaddr;) {
        uint8_t bytes[DECODE_BYTES] = {0};
        unsigned offset = q & ~PAGE_MASK, here = PAGE_SIZE - offset;
        memcpy(bytes, t->page + offset, here < INSN_MAX_BYTES ? here : INSN_MAX_BYTES);
        decode(&insns[n], bytes, q, t->features, t->compat);
        if (insns[n].length > here) { /* straddles: only as the last; alone where that may be another page tomorrow */
            if (n && !in_kernel_image(t))
                break;
            mfn_t next = mmu_fetch_frame(t->e, t->page_vaddr + PAGE_SIZE);
            if (mfn_eq(next, INVALID_MFN))
                break;
            code_frame_register(t->e, next);
            memcpy(bytes + here, frame_host(hv, next), INSN_MAX_BYTES - here);
            decode(&insns[n], bytes, q, t->features, t->compat);
            if (insns[n].length > here)
                t->b->mfn2 = next;
        }
        q += insns[n++].length;
        if (!goes_on(t, &insns[n - 1], &side_exits))
            break;
    }
    return n;
}

/* Its memory operand is read and written in one piece, as seen by other CPUs. */
static bool is_atomic(const struct insn *i)
{
    return i->prefix_lock || (i->map == 0 && (i->opcode == 0x86 || i->opcode == 0x87));
}

static bool may_cache(struct translator *t)
{
    struct hv *hv = t->ed->domain->hv;
    return !frame_page(hv, t->b->mfn)->foreign_writers &&
           (mfn_eq(t->b->mfn2, INVALID_MFN) || !frame_page(hv, t->b->mfn2)->foreign_writers);
}

static void emit_block(struct translator *t, const struct insn *insns, unsigned n)
{
    uint16_t after[MAX_INSNS], before[MAX_INSNS];
    const struct insn *last = &insns[n - 1];
    plan_groups(t, n);
    uint16_t live = t->single ? X86_STATUS : live_at_end(t, last); /* after a single step everybody may look */
    for (int k = n - 1; k >= 0; k--) {
        if (insns[k].kind == INSN_JCC && k < (int)n - 1)
            live |= live_at(t, insns[k].target);
        after[k] = live;
        live = (live & ~insns[k].flags_kill) | insns[k].flags_read;
        before[k] = live;
    }
    t->b->checked_entry = t->m.p;
    if (!t->single) {
        emit_check_pc(t, t->b->pc, t->ed->tr.jump_second[t->user]);
        if (before[0])
            restore_flags(t, false);
    }
    t->b->entry = t->m.p;
    t->flags = FLAGS_HOST;
    t->in_t1 = -1;
    if (may_loop(last) && !t->single) {
        emit_load_gs(&t->m, T1, OFFSET(poll));
        EMIT(&t->m, "\x45\x8b\x1b"); /* mov r11d, [r11] */
    }
    for (unsigned k = 0; k < n;)
        k += translate_insn(t, &insns[k], n - k, before[k], after[k]);
    if (!insn_ends_block(last)) {
        emit_direct(t, false, last->pc + last->length, after[n - 1]);
    }
}

/* Targets that are translated already need no exit to be linked. */
static void link_what_is_there(struct translator *t)
{
    for (unsigned k = 0; k < t->b->nr_links; k++) {
        struct link *l = &t->b->links[k];
        bool may_link = may_chain(t, l->pc) && !watch_forbids_link(t->ed->domain, t->b->pc, l->pc);
        struct block *to = may_link ? block_lookup(t->e, l->pc, t->b->mode & ~MODE_PLAIN) : NULL;
        if (to)
            block_link(t->ed, l, to);
    }
}

struct block *translate(struct engine_vcpu *e, uint64_t pc, unsigned mode)
{
    struct engine_domain *ed = e->vcpu->domain->engine;
    struct translator t;
    memset(&t, 0, offsetof(struct translator, group_of));
    t.e = e;
    t.ed = ed;
    t.user = mode & MODE_USER;
    t.single = mode & MODE_SINGLE;
    t.code = mode / MODE_CODE(1) & 15;
    t.compat = mode & MODE_CODE(CODE_COMPAT);
    t.features = cpu_features_enabled(e->vcpu->domain->policy.features, mode & MODE_AVX ? XCR0_AVX : 0);
    t.word = t.compat ? 4 : 8;
    t.b = block_alloc(e, pc, mode);
    t.m = (struct emitter){ed->hot, ed->alias};
    unsigned n = read_block(&t, t.insns, pc);
    bool cached = n && may_cache(&t);
    if (n && !cached && !t.single) { /* a backend may write to it unseen: one instruction at a time, never kept */
        t.single = true;
        t.b->mode |= MODE_SINGLE;
        n = 1;
    }
    if (!n)
        return NULL;
    emit_block(&t, t.insns, n);
    t.b->end = t.m.p;
    block_publish(ed);
    ed->hot = (uint8_t *)(((uintptr_t)t.m.p + 15) & ~15ull);
    perf_map_add(ed, t.b->checked_entry, t.m.p, t.user ? "user" : "kernel", pc);
    t.m.p = ed->cold;
    emit_slow_stubs(&t);
    emit_link_stubs(&t);
    perf_map_add(ed, ed->cold, t.m.p, t.user ? "user-cold" : "kernel-cold", pc);
    ed->cold = t.m.p;
    t.b->atomic = t.single && insn_is_memory(&t.insns[0]) && is_atomic(&t.insns[0]);
    ed->stats.blocks++;
    ed->stats.instructions += n;
    if (cached)
        block_insert(ed, t.b);
    else
        t.b->dead = true;
    if (cached && !t.single)
        link_what_is_there(&t);
    return t.b;
}
