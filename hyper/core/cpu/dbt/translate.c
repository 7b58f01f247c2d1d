/*
 * One block: guest instructions in, host instructions out.
 *
 * Most instructions run as they are, with their memory operand replaced by the host address that the TLB look-up left in
 * r11 + r10, and with guest rsp, r10, r11 and r15 renamed or fetched from the vCPU. The hot half of the code cache gets the
 * straight way; TLB misses and unlinked jumps go to stubs in the cold half.
 *
 * Status flags. The look-up destroys the host's flags, so a block knows at each point where the guest's are: in the host's
 * flags, saved in cpu.status, or both. Backward liveness over the block, and a peek at what follows it in the same page,
 * tells when nobody will read them; then nothing is saved. Direct edges carry flags in the host, indirect ones saved.
 *
 * Precision. No instruction changes state before its last check; cold stubs know the guest pc. Whatever is odd (a store
 * across pages or to a frame with code) comes back as DBT_SPECIAL and is translated once more as a block of one instruction
 * in MODE_SINGLE, which goes through the bounce buffer.
 */
#include "cpu/dbt/dbt.h"
#include "cpu/dbt/emit.h"

#define OFFSET(field) ((uint32_t)offsetof(struct engine_vcpu, field))
#define REG_OFFSET(guest) (OFFSET(cpu.regs) + 8 * (guest))

enum { T0 = H_R10, T1 = H_R11, GUEST_RSP = H_R15 };

/* Where a guest register lives; -1: in the vCPU. */
static const int8_t host_of[NR_GPRS] = {H_RAX, H_RCX, H_RDX, H_RBX, GUEST_RSP, H_RBP, H_RSI, H_RDI,
                                        H_R8,  H_R9,  -1,    -1,    H_R12,     H_R13, H_R14, -1};

#define MAX_INSNS 64
#define MAX_SLOW 192

enum flags_at { FLAGS_HOST, FLAGS_SAVED, FLAGS_BOTH };

struct slow_stub { uint8_t *jump, *back; uint64_t pc; uint32_t what; };

struct translator {
    struct emitter m;
    struct engine_vcpu *e;
    struct engine_domain *ed;
    struct block *b;
    unsigned user; /* 0 or 1: which TLB and jump cache */
    bool single;
    enum flags_at flags;
    struct slow_stub slow[MAX_SLOW];
    unsigned nr_slow;
    const uint8_t *page; /* the host's view of the page the block starts in */
    uint64_t page_vaddr;
};

/* ---- flags ------------------------------------------------------------------------------------------------------ */

static void save_flags(struct translator *t)
{
    emit_mov(&t->m, T1, H_RAX);
    EMIT(&t->m, "\x9f\x0f\x90\xc0\x66"); /* lahf; seto al; and 16 bits of it: */
    emit_gs(&t->m, false, 0x89, H_RAX, OFFSET(cpu.status));
    emit_mov(&t->m, H_RAX, T1);
}

/* `busy`: r10 and r11 hold an address. */
static void restore_flags(struct translator *t, bool busy)
{
    if (busy)
        emit_store_gs(&t->m, OFFSET(scratch0), H_RAX);
    else
        emit_mov(&t->m, T1, H_RAX);
    emit_gs(&t->m, false, 0x1b7, H_RAX, OFFSET(cpu.status)); /* movzx eax, word */
    EMIT(&t->m, "\x04\x7f\x9e");                             /* add al, 127; sahf */
    if (busy)
        emit_load_gs(&t->m, H_RAX, OFFSET(scratch0));
    else
        emit_mov(&t->m, H_RAX, T1);
}

/* Before code that destroys the host's flags. `live`: flags somebody will still read. */
static void flags_give_up(struct translator *t, uint16_t live)
{
    if (live && t->flags == FLAGS_HOST)
        save_flags(t);
    t->flags = live ? FLAGS_SAVED : FLAGS_HOST;
}

static void flags_to_host(struct translator *t, bool busy)
{
    if (t->flags == FLAGS_SAVED) {
        restore_flags(t, busy);
        t->flags = FLAGS_BOTH;
    }
}

static void flags_to_vcpu(struct translator *t)
{
    if (t->flags == FLAGS_HOST)
        save_flags(t);
    t->flags = FLAGS_SAVED;
}

/* Must the host's flags be the guest's before this instruction runs? */
static bool needs_flags(const struct insn *i, uint16_t live_after)
{
    return i->flags_read || (i->flags_touch && (live_after & ~i->flags_kill));
}

/* Flags read from pc on before they are overwritten: looks a few instructions ahead in the block's own page, whose frame
 * is registered, so that a change of those bytes kills this block too. */
static uint16_t look_ahead(struct translator *t, uint64_t pc, unsigned depth)
{
    uint16_t dead = 0, live = 0;
    if (depth > 4)
        return X86_STATUS;
    for (unsigned n = 0; n < 16; n++) {
        if (page_of(pc) != t->page_vaddr || (pc & ~PAGE_MASK) > PAGE_SIZE - DECODE_BYTES)
            return live | (X86_STATUS & ~dead);
        struct insn i;
        decode(&i, t->page + (pc & ~PAGE_MASK), pc);
        live |= i.flags_read & ~dead;
        dead |= i.flags_kill;
        if ((live | dead) == X86_STATUS)
            return live;
        switch (i.kind) {
        case INSN_JMP: pc = i.target; continue;
        case INSN_CALL: return live | (look_ahead(t, i.target, depth + 1) & ~dead);
        case INSN_JCC: case INSN_JRCXZ:
            return live | ((look_ahead(t, i.target, depth + 1) | look_ahead(t, pc + i.length, depth + 1)) & ~dead);
        }
        if (insn_ends_block(&i))
            return live | (X86_STATUS & ~dead);
        pc += i.length;
    }
    return live | (X86_STATUS & ~dead);
}

static uint16_t live_at(struct translator *t, uint64_t pc)
{
    struct engine_domain *ed = t->ed;
    typeof(&ed->liveness[0]) known = &ed->liveness[pc * 0x9e3779b97f4a7c15ull >> 52];
    _Static_assert(LIVENESS_ENTRIES == 1 << (64 - 52), "the hash");
    if (page_of(pc) != t->page_vaddr)
        return X86_STATUS;
    if (known->pc != pc || known->generation != ed->liveness_generation || !mfn_eq(known->mfn, t->b->mfn)) {
        known->live = look_ahead(t, pc, 0);
        known->pc = pc;
        known->generation = ed->liveness_generation;
        known->mfn = t->b->mfn;
    }
    return known->live;
}

/* ---- addresses -------------------------------------------------------------------------------------------------- */

static void load_guest(struct translator *t, unsigned host, unsigned guest)
{
    if (host_of[guest] >= 0)
        emit_mov(&t->m, host, host_of[guest]);
    else
        emit_load_gs(&t->m, host, REG_OFFSET(guest));
}

/* The host register that holds a guest register now; a spilled one is fetched into `scratch`. */
static unsigned guest_in(struct translator *t, unsigned guest, unsigned scratch)
{
    if (host_of[guest] >= 0)
        return host_of[guest];
    emit_load_gs(&t->m, scratch, REG_OFFSET(guest));
    return scratch;
}

/* lea of the memory operand, without its segment. */
static void emit_address(struct translator *t, unsigned to, const struct insn *i, unsigned bytes)
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
        emit_mov_imm(&t->m, to, narrow ? (uint32_t)i->disp : (uint64_t)(int64_t)i->disp);
    else
        emit_op_mem(&t->m, !narrow, 0x8d, to, base, index, i->scale, i->disp);
}

/* The guest virtual address of the operand, in T0. */
static void emit_vaddr(struct translator *t, const struct insn *i)
{
    emit_address(t, T0, i, 8);
    if (i->segment)
        emit_gs(&t->m, true, 0x03, T0, i->segment == 1 + SREG_FS ? OFFSET(cpu.fs_base) : OFFSET(cpu.gs_base));
}

/* SLOW_STACK for an operand that is in the stack segment by default. */
static uint32_t stack_operand(const struct insn *i)
{
    return !i->segment && (i->base == RSP || i->base == RBP) ? SLOW_STACK : 0;
}

static uint32_t tag_offset(const struct translator *t, bool write)
{
    uint32_t tlb = OFFSET(tlb) + t->user * sizeof(struct tlb_entry) * TLB_ENTRIES;
    return tlb + (write ? offsetof(struct tlb_entry, write_tag) : offsetof(struct tlb_entry, read_tag));
}

static void emit_rip(struct translator *t, uint64_t pc)
{
    emit_mov_imm(&t->m, T1, pc);
    emit_store_gs(&t->m, OFFSET(cpu.rip), T1);
}

/* TLB look-up of the address in T0 for `what` (SLOW_*): afterwards T1 + T0 is the host's address. Flags are destroyed. */
static void emit_tlb(struct translator *t, uint64_t pc, uint32_t what)
{
    struct emitter *m = &t->m;
    if (t->single) {
        emit_rip(t, pc);
        emit_mov_imm(m, T1, what | SLOW_SPECIAL);
        emit_call(m, t->ed->tr.helper[HELP_ACCESS]);
        return;
    }
    emit_mov(m, T1, T0);
    EMIT(m, "\x49\xc1\xeb\x07\x41\x81\xe3"); /* shr r11, 7; and r11d, */
    emit4(m, (TLB_ENTRIES - 1) * sizeof(struct tlb_entry));
    EMIT(m, "\x65\x4d\x03\x93"); /* add r10, gs:[r11 + tag] */
    emit4(m, tag_offset(t, what & SLOW_WRITE));
    EMIT(m, "\x49\x81\xfa"); /* cmp r10, */
    emit4(m, PAGE_SIZE - (what & SLOW_SIZE));
    EMIT(m, "\x0f\x87"); /* ja slow */
    struct slow_stub *s = &t->slow[t->nr_slow++];
    ASSERT(t->nr_slow <= MAX_SLOW);
    s->jump = m->p;
    emit4(m, 0);
    EMIT(m, "\x65\x4d\x8b\x9b"); /* mov r11, gs:[r11 + host] */
    emit4(m, tag_offset(t, false) - offsetof(struct tlb_entry, read_tag) + offsetof(struct tlb_entry, host));
    *s = (struct slow_stub){s->jump, m->p, pc, what};
}

static void patch_rel32(uint8_t *at, const uint8_t *target)
{
    int32_t rel = (int32_t)(target - (at + 4));
    memcpy(at, &rel, 4);
}

static void emit_slow_stubs(struct translator *t)
{
    struct emitter *m = &t->m;
    for (unsigned k = 0; k < t->nr_slow; k++) {
        const struct slow_stub *s = &t->slow[k];
        patch_rel32(s->jump, m->p);
        EMIT(m, "\x65\x4d\x2b\x93"); /* sub r10, gs:[r11 + tag]: the address again */
        emit4(m, tag_offset(t, s->what & SLOW_WRITE));
        emit_rip(t, s->pc);
        emit_mov_imm(m, T1, s->what);
        emit_call(m, t->ed->tr.helper[HELP_ACCESS]);
        emit_jmp(m, s->back);
    }
}

/* After a store in a single-step block: what went to the bounce buffer goes to the guest. */
static void emit_commit(struct translator *t)
{
    if (t->single)
        emit_call(&t->m, t->ed->tr.helper[HELP_COMMIT]);
}

/* ---- leaving and jumping ---------------------------------------------------------------------------------------- */

static void emit_exit(struct translator *t, uint64_t rip, enum dbt_exit why)
{
    emit_rip(t, rip);
    emit_store_gs_imm(&t->m, OFFSET(exit), why);
    emit_jmp(&t->m, t->flags == FLAGS_SAVED ? t->ed->tr.exit_saved : t->ed->tr.exit_direct);
}

/* A jump (0xe9), call (0xe8) or conditional jump (0x0f80 | cc) to a guest pc, to be linked. */
static void emit_link(struct translator *t, unsigned opcode, uint64_t pc)
{
    emit_align_rel32(&t->m, opcode > 0xff ? 2 : 1);
    if (opcode > 0xff)
        emit1(&t->m, opcode >> 8);
    emit1(&t->m, opcode);
    struct link *l = &t->b->links[t->b->nr_links++];
    ASSERT(t->b->nr_links <= BLOCK_LINKS);
    *l = (struct link){.patch = t->m.p, .owner = t->b, .pc = pc};
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

/* Code whose every change of a mapping passes through unmap_code. */
static bool in_kernel_image(const struct translator *t) { return !t->user && t->b->pc >= CHAIN_START; }

/* Elsewhere the next page may be another one in the next address space: not into it, and not to an instruction that may
 * reach into it. */
static bool may_chain(const struct translator *t, uint64_t pc)
{
    if (in_kernel_image(t) && pc >= CHAIN_START)
        return true;
    return page_of(pc) == page_of(t->b->pc) && (pc & ~PAGE_MASK) <= PAGE_SIZE - INSN_MAX_BYTES;
}

static void emit_link_stubs(struct translator *t)
{
    for (unsigned k = 0; k < t->b->nr_links; k++) {
        struct link *l = &t->b->links[k];
        l->stub = t->m.p;
        patch_rel32(l->patch, l->stub);
        if (!t->single && !may_chain(t, l->pc)) {
            save_flags(t);
            emit_mov_imm(&t->m, T0, l->pc);
            emit_jump_indirect(t, false);
            continue;
        }
        emit_rip(t, l->pc);
        emit_mov_imm(&t->m, T1, (uint64_t)l);
        emit_store_gs(&t->m, OFFSET(link), T1);
        emit_jmp(&t->m, t->ed->tr.exit_direct);
    }
}

/* cmp r10, pc; jne miss */
static void emit_check_pc(struct translator *t, uint64_t pc, const uint8_t *miss)
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

/* ---- general instructions --------------------------------------------------------------------------------------- */

enum rm_form { RM_REGISTER, RM_SUM, RM_T1, RM_GS }; /* register m; [r11 + r10]; [r11]; gs:[m] */

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
    rex |= form == RM_REGISTER ? (m & 8) >> 3 : form == RM_SUM ? 3 : form == RM_T1 ? 1 : 0;
    bool low_byte = (i->reg_is_byte && r >= 4 && r < 8) || (i->rm_is_byte && form == RM_REGISTER && m >= 4 && m < 8);
    if (rex || (i->rex && low_byte)) /* spl bpl sil dil need a REX, ah ch dh bh must not have one */
        emit1(e, 0x40 | rex);
    if (i->map)
        emit1(e, 0x0f);
    emit1(e, i->opcode);
    switch (form) {
    case RM_REGISTER: emit1(e, 0xc0 | (r & 7) << 3 | (m & 7)); break;
    case RM_SUM: emit_modrm_mem(e, r, T1, T0, 0, 0); break;
    case RM_T1: emit_modrm_mem(e, r, T1, -1, 0, 0); break;
    case RM_GS:
        emit1(e, (r & 7) << 3 | 4);
        emit1(e, 0x25);
        emit4(e, m);
        break;
    }
    for (unsigned k = 0; k < i->imm_bytes; k++)
        emit1(e, i->imm >> (8 * k));
}

static void note_fault_point(struct translator *t, const struct insn *i)
{
    if (i->may_fault)
        fault_point_add(t->ed, t->m.p, i->pc << 1 | (t->flags == FLAGS_HOST));
}

static bool is_bit_string(const struct insn *i)
{
    return i->map == 1 && (i->opcode == 0xa3 || i->opcode == 0xab || i->opcode == 0xb3 || i->opcode == 0xbb);
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
    emit_tlb(t, i->pc, i->operand_size | (i->access & RM_WRITE ? SLOW_WRITE : 0) | stack_operand(i));
    emit_lea(m, T1, T1, T0, 0);
    load_guest(t, T0, i->reg);
    EMIT(m, "\x41\x83\xe2"); /* and r10d, bits */
    emit1(m, (1 << shift) - 1);
    if (need)
        flags_to_host(t, true);
    emit_insn(t, i, T0, RM_T1, 0);
    t->flags = FLAGS_HOST;
    if (i->access & RM_WRITE)
        emit_commit(t);
}

/* ah, ch, dh or bh with a memory operand: no REX is possible with them, so their byte works in r10b. */
static void translate_high_byte_memory(struct translator *t, const struct insn *i)
{
    emit_lea(&t->m, T1, T1, T0, 0);
    emit_gs(&t->m, false, 0x88, i->reg, OFFSET(scratch1));
    emit_gs(&t->m, false, 0x8a, T0, OFFSET(scratch1));
    emit_insn(t, i, T0, RM_T1, 0);
    if (i->access & REG_WRITE) {
        emit_gs(&t->m, false, 0x88, T0, OFFSET(scratch1));
        emit_gs(&t->m, false, 0x8a, i->reg, OFFSET(scratch1));
    }
}

static void translate_memory_form(struct translator *t, const struct insn *i, uint16_t live_before, bool need)
{
    bool write = i->access & RM_WRITE, gpr = i->access & REG_GPR;
    flags_give_up(t, live_before);
    if (is_bit_string(i)) {
        translate_bit_string(t, i, need);
        return;
    }
    emit_vaddr(t, i);
    emit_tlb(t, i->pc, i->memory_size | (write ? SLOW_WRITE : 0) | stack_operand(i));
    if (need)
        flags_to_host(t, true);
    if (gpr && byte_without_rex(i->reg_is_byte, i) && i->reg >= 4) {
        translate_high_byte_memory(t, i);
    } else if (gpr && host_of[i->reg] < 0) {
        emit_lea(&t->m, T1, T1, T0, 0);
        if ((i->access & REG_READ) || i->operand_size < 4)
            emit_load_gs(&t->m, T0, REG_OFFSET(i->reg));
        note_fault_point(t, i);
        emit_insn(t, i, T0, RM_T1, 0);
        if (i->access & REG_WRITE)
            emit_store_gs(&t->m, REG_OFFSET(i->reg), T0);
    } else {
        note_fault_point(t, i);
        emit_insn(t, i, gpr ? (byte_without_rex(i->reg_is_byte, i) ? i->reg : (unsigned)host_of[i->reg]) : i->reg, RM_SUM, 0);
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
        emit_insn(t, &turned, host_of[i->rm], RM_GS, REG_OFFSET(i->reg));
        return true;
    }
    if (!rm_spilled || reg_spilled || i->memory_size > i->operand_size)
        return false;
    bool reads_only = !(i->access & RM_WRITE) && (i->access & RM_READ);
    bool overwrites = (i->access & RM_WRITE) && !(i->access & RM_READ) && i->operand_size == 8;
    if (!reads_only && !overwrites)
        return false;
    note_fault_point(t, i);
    emit_insn(t, i, reg_gpr ? (unsigned)host_of[i->reg] : i->reg, RM_GS, REG_OFFSET(i->rm));
    return true;
}

static void translate_register_form(struct translator *t, const struct insn *i, bool need)
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
    if (reg_spill)
        emit_load_gs(&t->m, T0, REG_OFFSET(i->reg));
    if (rm_spill && !same)
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
    if (i->flags_touch)
        t->flags = FLAGS_HOST;
}

static void translate_verbatim(struct translator *t, const struct insn *i, bool need)
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

static void translate_register_opcode(struct translator *t, const struct insn *i)
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

/* 16 bits from r10 into a guest register, the rest of which stays. */
static void store_word(struct translator *t, unsigned guest)
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

static void translate_lea(struct translator *t, const struct insn *i)
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

static void load_selector(struct translator *t, unsigned sreg)
{
    emit_gs(&t->m, false, 0x1b7, T0, OFFSET(cpu.sreg) + 2 * sreg); /* movzx r10d, word */
}

static void translate_mov_from_segment(struct translator *t, const struct insn *i, uint16_t live_before)
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
    emit_tlb(t, i->pc, 2 | SLOW_WRITE | stack_operand(i));
    emit_lea(&t->m, T1, T1, T0, 0);
    load_selector(t, i->reg & 7);
    emit1(&t->m, 0x66);
    emit_op_mem(&t->m, false, 0x89, T0, T1, -1, 0, 0);
    emit_commit(t);
}

/* ---- the stack -------------------------------------------------------------------------------------------------- */

static void emit_push_address(struct translator *t, uint64_t pc, unsigned slots)
{
    emit_lea(&t->m, T0, GUEST_RSP, -1, -8 * (int)slots);
    emit_tlb(t, pc, 8 * slots | SLOW_WRITE | SLOW_STACK | (slots > 1 ? SLOW_GROUP : 0));
}

static void emit_pop_address(struct translator *t, uint64_t pc, unsigned slots)
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
static unsigned translate_pushes(struct translator *t, const struct insn *i, unsigned left, uint16_t live_before)
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
static unsigned translate_pops(struct translator *t, const struct insn *i, unsigned left, uint16_t live_before)
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

static void translate_push_rm(struct translator *t, const struct insn *i, uint16_t live_before)
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

static void translate_pop_rm(struct translator *t, const struct insn *i, uint16_t live_before)
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

static void translate_push_imm(struct translator *t, uint64_t pc, int64_t imm, uint16_t live_before)
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

static void translate_leave(struct translator *t, const struct insn *i, uint16_t live_before)
{
    flags_give_up(t, live_before);
    emit_lea(&t->m, T0, H_RBP, -1, 0);
    emit_tlb(t, i->pc, 8 | SLOW_STACK);
    emit_lea(&t->m, GUEST_RSP, H_RBP, -1, 8);
    emit_op_mem(&t->m, true, 0x8b, H_RBP, T1, T0, 0, 0);
}

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

static void translate_helper(struct translator *t, const struct insn *i, enum helper h, uint64_t argument)
{
    emit_rip(t, i->pc);
    emit_mov_imm(&t->m, T1, argument);
    emit_call(&t->m, t->ed->tr.helper[h]);
}

static void translate_string(struct translator *t, const struct insn *i, uint16_t live_before)
{
    flags_give_up(t, live_before);
    unsigned repeat = i->prefix_f3 ? 1 : i->prefix_f2 ? 2 : 0;
    uint64_t segment = i->segment ? i->segment : 0;
    translate_helper(t, i, t->single ? HELP_STRING_ALONE : HELP_STRING,
                     i->opcode | i->operand_size << 8 | repeat << 16 | segment << 20);
    if (i->flags_touch)
        t->flags = FLAGS_SAVED;
}

static void translate_fxsave(struct translator *t, const struct insn *i, uint16_t live_before)
{
    flags_give_up(t, live_before);
    emit_vaddr(t, i);
    translate_helper(t, i, i->kind == INSN_FXSAVE ? HELP_FXSAVE : HELP_FXRSTOR, i->rex & 8);
}

/* ---- ends of blocks --------------------------------------------------------------------------------------------- */

static void translate_jrcxz(struct translator *t, const struct insn *i, uint16_t live_after)
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

static void translate_call(struct translator *t, const struct insn *i, uint16_t live_before, uint16_t live_after)
{
    uint64_t ret = i->pc + i->length;
    translate_push_imm(t, i->pc, ret, live_before);
    if (live_after)
        flags_to_host(t, false);
    emit_link(t, 0xe8, i->target);
    emit_landing(t, ret);
}

static void load_target(struct translator *t, const struct insn *i)
{
    if (i->mod == 3) {
        load_guest(t, T0, i->rm);
        return;
    }
    emit_vaddr(t, i);
    emit_tlb(t, i->pc, 8 | stack_operand(i));
    emit_op_mem(&t->m, true, 0x8b, T0, T1, T0, 0, 0);
}

static void translate_call_indirect(struct translator *t, const struct insn *i, uint16_t live_before)
{
    struct emitter *m = &t->m;
    uint64_t ret = i->pc + i->length;
    flags_give_up(t, live_before);
    load_target(t, i);
    emit_store_gs(m, OFFSET(scratch1), T0);
    uint16_t live = t->flags == FLAGS_SAVED ? X86_STATUS : 0;
    translate_push_imm(t, i->pc, ret, live);
    emit_load_gs(m, T0, OFFSET(scratch1));
    emit_jump_indirect(t, true);
    emit_landing(t, ret);
}

static void translate_ret(struct translator *t, const struct insn *i, uint16_t live_before)
{
    flags_give_up(t, live_before);
    emit_pop_address(t, i->pc, 1);
    emit_op_mem(&t->m, true, 0x8b, T0, T1, T0, 0, 0);
    emit_lea(&t->m, GUEST_RSP, GUEST_RSP, -1, 8 + (int32_t)i->imm);
    if (t->single)
        emit_jmp(&t->m, t->ed->tr.jump_miss); /* the landing may lead far beyond a single step */
    else
        emit1(&t->m, 0xc3);
}

static void translate_iret(struct translator *t, const struct insn *i)
{
    flags_to_vcpu(t);
    translate_helper(t, i, HELP_IRET, i->operand_size);
    emit_load_gs(&t->m, T0, OFFSET(cpu.rip));
    emit_jmp(&t->m, t->single ? t->ed->tr.jump_miss : t->ed->tr.jump_indirect[t->user]);
}

/* ---- a block ---------------------------------------------------------------------------------------------------- */

/* One instruction, or a group; returns how many of `left` were taken. live: flags alive before and after it. */
static unsigned translate_insn(struct translator *t, const struct insn *i, unsigned left, uint16_t before, uint16_t after)
{
    bool need = needs_flags(i, after);
    if (i->fpu && (t->b->mode & MODE_NO_FPU)) {
        emit_exit(t, i->pc, DBT_NO_DEVICE);
        return left;
    }
    switch ((enum insn_kind)i->kind) {
    case INSN_NOP: break;
    case INSN_GENERAL:
        if (insn_is_memory(i) && (i->access & (RM_READ | RM_WRITE)))
            translate_memory_form(t, i, before, need);
        else
            translate_register_form(t, i, need);
        break;
    case INSN_VERBATIM: translate_verbatim(t, i, need); break;
    case INSN_REG_OPCODE: translate_register_opcode(t, i); break;
    case INSN_LEA: translate_lea(t, i); break;
    case INSN_PUSH_REG: return translate_pushes(t, i, left, before);
    case INSN_POP_REG: return translate_pops(t, i, left, before);
    case INSN_PUSH_IMM: translate_push_imm(t, i->pc, i->imm, before); break;
    case INSN_PUSH_RM: translate_push_rm(t, i, before); break;
    case INSN_POP_RM: translate_pop_rm(t, i, before); break;
    case INSN_LEAVE: translate_leave(t, i, before); break;
    case INSN_PUSHF:
        flags_to_vcpu(t);
        if (t->single) /* perhaps onto a frame with code: the interpreter may take the lock */
            emit_exit(t, i->pc, DBT_RARE);
        else
            translate_helper(t, i, HELP_PUSHF, 0);
        break;
    case INSN_POPF:
        flags_to_vcpu(t);
        translate_helper(t, i, HELP_POPF, 0);
        break;
    case INSN_STRING: translate_string(t, i, before); break;
    case INSN_CLD: case INSN_STD:
        emit_store_gs_imm(&t->m, OFFSET(cpu.direction), i->kind == INSN_STD);
        break;
    case INSN_MOV_FROM_SEG: translate_mov_from_segment(t, i, before); break;
    case INSN_FXSAVE: case INSN_FXRSTOR: translate_fxsave(t, i, before); break;
    case INSN_JCC:
        flags_to_host(t, false);
        emit_link(t, 0x0f80 | (i->opcode & 15), i->target);
        emit_link(t, 0xe9, i->pc + i->length);
        break;
    case INSN_JRCXZ: translate_jrcxz(t, i, after); break;
    case INSN_JMP:
        if (after)
            flags_to_host(t, false);
        emit_link(t, 0xe9, i->target);
        break;
    case INSN_CALL: translate_call(t, i, before, after); break;
    case INSN_CALL_INDIRECT: translate_call_indirect(t, i, before); break;
    case INSN_JMP_INDIRECT:
        flags_give_up(t, before);
        load_target(t, i);
        emit_jump_indirect(t, false);
        break;
    case INSN_RET: translate_ret(t, i, before); break;
    case INSN_IRET: translate_iret(t, i); break;
    case INSN_SYSCALL: emit_exit(t, i->pc + i->length, DBT_SYSCALL); break;
    case INSN_RARE: emit_exit(t, i->pc, DBT_RARE); break;
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
    unsigned n = 0;
    for (uint64_t q = pc; n < (t->single ? 1 : MAX_INSNS) && page_of(q) == t->page_vaddr;) {
        uint8_t bytes[DECODE_BYTES] = {0};
        unsigned offset = q & ~PAGE_MASK, here = PAGE_SIZE - offset;
        memcpy(bytes, t->page + offset, here < INSN_MAX_BYTES ? here : INSN_MAX_BYTES);
        decode(&insns[n], bytes, q);
        if (insns[n].length > here) { /* straddles: only as the last; alone where that may be another page tomorrow */
            if (n && !in_kernel_image(t))
                break;
            mfn_t next = mmu_fetch_frame(t->e, t->page_vaddr + PAGE_SIZE);
            if (mfn_eq(next, INVALID_MFN))
                break;
            code_frame_register(t->e, next);
            memcpy(bytes + here, frame_host(hv, next), INSN_MAX_BYTES - here);
            decode(&insns[n], bytes, q);
            if (insns[n].length > here)
                t->b->mfn2 = next;
        }
        q += insns[n++].length;
        if (insn_ends_block(&insns[n - 1]))
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
    uint16_t live = t->single ? X86_STATUS : live_at_end(t, last); /* after a single step everybody may look */
    for (int k = n - 1; k >= 0; k--) {
        after[k] = live;
        live = (live & ~insns[k].flags_kill) | insns[k].flags_read;
        before[k] = live;
    }
    t->b->checked_entry = t->m.p;
    if (!t->single) {
        emit_check_pc(t, t->b->pc, t->ed->tr.jump_miss);
        if (before[0])
            restore_flags(t, false);
    }
    t->b->entry = t->m.p;
    t->flags = FLAGS_HOST;
    if (may_loop(last) && !t->single) {
        emit_load_gs(&t->m, T1, OFFSET(poll));
        EMIT(&t->m, "\x45\x8b\x1b"); /* mov r11d, [r11] */
    }
    for (unsigned k = 0; k < n;)
        k += translate_insn(t, &insns[k], n - k, before[k], after[k]);
    if (!insn_ends_block(last)) {
        if (after[n - 1])
            flags_to_host(t, false);
        emit_link(t, 0xe9, last->pc + last->length);
    }
}

/* Targets that are translated already need no exit to be linked. */
static void link_what_is_there(struct translator *t)
{
    for (unsigned k = 0; k < t->b->nr_links; k++) {
        struct link *l = &t->b->links[k];
        struct block *to = may_chain(t, l->pc) ? block_lookup(t->e, l->pc, t->b->mode) : NULL;
        if (to)
            block_link(l, to);
    }
}

struct block *translate(struct engine_vcpu *e, uint64_t pc, unsigned mode)
{
    struct engine_domain *ed = e->vcpu->domain->engine;
    struct insn insns[MAX_INSNS];
    struct translator t = {.e = e, .ed = ed, .user = mode & MODE_USER, .single = mode & MODE_SINGLE};
    t.b = block_alloc(e, pc, mode);
    t.m.p = ed->hot;
    unsigned n = read_block(&t, insns, pc);
    bool cached = n && may_cache(&t);
    if (n && !cached && !t.single) { /* a backend may write to it unseen: one instruction at a time, never kept */
        t.single = true;
        t.b->mode |= MODE_SINGLE;
        n = 1;
    }
    if (!n)
        return NULL;
    emit_block(&t, insns, n);
    t.b->end = t.m.p;
    block_publish(ed);
    ed->hot = (uint8_t *)(((uintptr_t)t.m.p + 15) & ~15ull);
    t.m.p = ed->cold;
    emit_slow_stubs(&t);
    emit_link_stubs(&t);
    ed->cold = t.m.p;
    t.b->atomic = t.single && insn_is_memory(&insns[0]) && is_atomic(&insns[0]);
    t.b->bytes = insns[n - 1].pc + insns[n - 1].length - pc;
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
