/*
 * Groups: accesses of a block through one base that share a look-up.
 *
 * The first member looks up the whole range that the members touch; on a hit it lies in one page, and the distance from
 * guest addresses to host addresses goes into a slot of the vCPU. Every other member adds that distance to its own address:
 * no look-up, no branch, and the flags stay where they are.
 *
 * Which addresses have a common base is found out by following values: each register holds a symbol plus a constant; mov, lea,
 * add and push keep the symbol, anything else makes a new one. Fixed addresses and fs:, gs: are symbols of their own.
 *
 * Why the distance holds until the end of the block. A translation may vanish, or lose its right to be written, only after
 * whoever takes it away has quiesced this vCPU (mmu.c), and a vCPU is not in_guest only outside translated code, or in helpers
 * that take the lock: those end all groups. A TLB entry that another one evicts meanwhile stays true.
 *
 * When the look-up fails, the first member's own access is tried as usual, with its own fault. If that one is fine but the
 * range is not (it crosses a page, or a later member may not write), the rest of the block runs in a version without
 * groups: MODE_PLAIN. Where that happens too often the grouping itself is given up (group_failed in run.c).
 */
#include "cpu/dbt/translate.h"

#define MAX_RANGE 512 /* longer ones cross a page too often */
enum { SYMBOL_FIXED, SYMBOL_FS, SYMBOL_GS, FIRST_REGISTER_SYMBOL, MAX_SYMBOLS = 255 };

struct value { uint8_t symbol; int64_t offset; };
struct values {
    struct value reg[NR_GPRS];
    unsigned next;                /* symbol to give out */
    uint8_t open[MAX_SYMBOLS + 1]; /* the group that accesses through a symbol may still join */
    bool side_exit[MAX_INSNS];   /* since the group's first member */
};

/* ---- values ----------------------------------------------------------------------------------------------------- */

static void forget(struct values *v, unsigned reg)
{
    v->reg[reg] = (struct value){v->next < MAX_SYMBOLS ? v->next++ : MAX_SYMBOLS, 0};
}

static void forget_all(struct values *v)
{
    for (unsigned r = 0; r < NR_GPRS; r++)
        forget(v, r);
    memset(v->open, NO_GROUP, sizeof(v->open));
}

static void forget_byte_or_more(struct values *v, unsigned reg, bool high_byte_form)
{
    forget(v, high_byte_form && reg >= 4 && reg < 8 ? reg - 4 : reg);
}

/* add, sub, inc, dec of a whole register by a constant; mov from one to another. */
static bool follow_arithmetic(struct values *v, const struct insn *i)
{
    if (i->mod != 3 || i->operand_size != 8 || i->map)
        return false;
    unsigned what = i->reg & 7;
    if (i->opcode == 0x89)
        v->reg[i->rm] = v->reg[i->reg];
    else if (i->opcode == 0x8b)
        v->reg[i->reg] = v->reg[i->rm];
    else if ((i->opcode == 0x81 || i->opcode == 0x83) && (what == 0 || what == 5))
        v->reg[i->rm].offset += what ? -i->imm : i->imm;
    else if (i->opcode == 0xff && what < 2)
        v->reg[i->rm].offset += what ? -1 : 1;
    else
        return false;
    return true;
}

static void follow_general(struct values *v, const struct insn *i)
{
    if (follow_arithmetic(v, i))
        return;
    if ((i->access & (REG_GPR | REG_WRITE)) == (REG_GPR | REG_WRITE))
        forget_byte_or_more(v, i->reg, i->reg_is_byte && !i->rex);
    if (i->mod == 3 && (i->access & (RM_GPR | RM_WRITE)) == (RM_GPR | RM_WRITE))
        forget_byte_or_more(v, i->rm, i->rm_is_byte && !i->rex);
    bool one_byte_3 = i->map == 0 && (i->opcode == 0xf6 || i->opcode == 0xf7);
    bool compares = i->map == 1 && (i->opcode == 0xb0 || i->opcode == 0xb1 || i->opcode == 0xc7);
    if (one_byte_3 || compares) { /* mul, div, cmpxchg */
        forget(v, RAX);
        forget(v, RDX);
    }
}

/* What the registers hold after an instruction. */
static void follow(struct values *v, const struct insn *i)
{
    switch (i->kind) {
    case INSN_NOP: case INSN_CLD: case INSN_STD: case INSN_JCC: case INSN_CALL: case INSN_RET: break;
    case INSN_GENERAL:
        if (i->map > 1)
            forget_all(v);
        else
            follow_general(v, i);
        break;
    case INSN_LEA:
        if (i->operand_size == 8 && i->base >= 0 && i->index < 0 && !i->address_32)
            v->reg[i->reg] = (struct value){v->reg[i->base].symbol, v->reg[i->base].offset + i->disp};
        else
            forget(v, i->reg);
        break;
    case INSN_REG_OPCODE:
        forget_byte_or_more(v, stack_register(i), i->operand_size == 1 && !i->rex);
        forget(v, RAX); /* xchg */
        break;
    case INSN_VERBATIM:
        forget(v, RAX);
        forget(v, RDX);
        break;
    case INSN_PUSH_REG: case INSN_PUSH_IMM: v->reg[RSP].offset -= 8; break;
    case INSN_POP_REG:
        v->reg[RSP].offset += 8;
        forget(v, stack_register(i));
        break;
    case INSN_LEAVE:
        v->reg[RSP] = (struct value){v->reg[RBP].symbol, v->reg[RBP].offset + 8};
        forget(v, RBP);
        break;
    default: forget_all(v);
    }
}

/* ---- accesses --------------------------------------------------------------------------------------------------- */

struct range { struct value at; unsigned bytes; bool write; };

/* What a memory operand touches; false: not something that can be in a group. */
static bool operand_range(const struct values *v, const struct insn *i, struct range *r)
{
    if (!insn_is_memory(i) || i->address_32 || i->index >= 0 || i->vsib || is_bit_string(i) || (i->base >= 0 && i->segment))
        return false;
    if (i->base >= 0)
        r->at = v->reg[i->base];
    else
        r->at = (struct value){i->segment == 1 + SREG_FS ? SYMBOL_FS : i->segment == 1 + SREG_GS ? SYMBOL_GS : SYMBOL_FIXED, 0};
    r->at.offset += i->disp;
    if (i->rip_relative)
        r->at.offset += i->pc + i->length;
    return !(i->rip_relative && i->segment);
}

static bool access_range(const struct values *v, const struct insn *i, struct range *r)
{
    *r = (struct range){v->reg[RSP], 8, true};
    switch (i->kind) {
    case INSN_GENERAL:
        *r = (struct range){{0}, i->memory_size, i->access & RM_WRITE};
        return (i->access & (RM_READ | RM_WRITE)) && operand_range(v, i, r);
    case INSN_PUSH_REG: case INSN_PUSH_IMM: case INSN_CALL: r->at.offset -= 8; return true;
    case INSN_POP_REG: case INSN_RET: r->write = false; return true;
    case INSN_LEAVE: *r = (struct range){v->reg[RBP], 8, false}; return true;
    }
    return false;
}

/* ---- planning --------------------------------------------------------------------------------------------------- */

static bool fits(const struct group *g, const struct range *r, int64_t low, int64_t high, bool side_exit)
{
    if (r->write && !g->write && side_exit)
        return false;
    if (r->at.symbol == SYMBOL_FIXED)
        return page_of(low) == page_of(high - 1);
    return high - low <= MAX_RANGE;
}

static bool join(struct values *v, struct group *g, unsigned number, const struct range *r)
{
    int64_t low = r->at.offset < g->low ? r->at.offset : g->low;
    int64_t end = r->at.offset + r->bytes, high = end > g->high ? end : g->high;
    if (!fits(g, r, low, high, v->side_exit[number]))
        return false;
    g->low = low;
    g->high = high;
    g->write |= r->write;
    g->members++;
    return true;
}

static void open_group(struct translator *t, struct values *v, unsigned k, const struct range *r)
{
    int64_t end = r->at.offset + r->bytes;
    bool one_page = r->at.symbol != SYMBOL_FIXED || page_of(r->at.offset) == page_of(end - 1);
    if (!one_page || *ungroup_slot(t->ed, t->insns[k].pc) >= UNGROUP_AFTER)
        return;
    unsigned n = t->nr_groups++;
    t->group[n] = (struct group){.first = k, .members = 1, .first_offset = r->at.offset, .low = r->at.offset, .high = end,
                                 .write = r->write};
    v->side_exit[n] = false;
    v->open[r->at.symbol] = n;
    t->group_of[k] = n;
}

/* Groups of one are none, nor are those beyond the vCPU's slots. */
static void give_slots(struct translator *t)
{
    unsigned slots = 0;
    for (unsigned g = 0; g < t->nr_groups; g++) {
        if (t->group[g].members > 1 && slots < MAX_GROUPS)
            t->group[g].slot = slots++;
        else
            t->group[g].members = 0;
    }
}

void plan_groups(struct translator *t, unsigned n)
{
    struct values v = {.next = FIRST_REGISTER_SYMBOL};
    memset(t->group_of, NO_GROUP, sizeof(t->group_of));
    t->nr_groups = 0;
    t->held = NO_GROUP;
    if (t->single || t->compat || (t->b->mode & MODE_PLAIN))
        return;
    forget_all(&v);
    for (unsigned k = 0; k < n; k++) {
        struct range r;
        const struct insn *i = &t->insns[k];
        if (access_range(&v, i, &r) && r.bytes && r.at.symbol != MAX_SYMBOLS) {
            unsigned g = v.open[r.at.symbol];
            if (g != NO_GROUP && join(&v, &t->group[g], g, &r))
                t->group_of[k] = g;
            else
                open_group(t, &v, k, &r);
        }
        if (i->kind == INSN_JCC)
            memset(v.side_exit, true, sizeof(v.side_exit));
        follow(&v, i);
    }
    give_slots(t);
}

/* ---- emission --------------------------------------------------------------------------------------------------- */

static struct group *group_at(struct translator *t, const struct insn *i)
{
    unsigned g = t->group_of[i - t->insns];
    return g == NO_GROUP || !t->group[g].members ? NULL : &t->group[g];
}

static uint32_t slot_of(const struct group *g)
{
    return OFFSET(group_distance) + 8 * g->slot;
}

/* The look-up of the whole range around `own`, whose guest address is in T0. Afterwards T0 is the distance. */
static void emit_group_lookup(struct translator *t, const struct insn *i, const struct group *g, uint32_t own)
{
    uint64_t before = g->first_offset - g->low;
    if (before)
        emit_lea(&t->m, T0, T0, -1, -(int32_t)before);
    emit_tlb_distance(t, i->pc, SLOW_GROUP | (g->write ? SLOW_WRITE : 0) | (own & SLOW_STACK) | (g->high - g->low) |
                                    (uint64_t)(own & (SLOW_SIZE | SLOW_WRITE)) << SLOW_OWN | before << SLOW_OWN_AT);
    emit_store_gs(&t->m, slot_of(g), T0);
}

/* The distance of an instruction's group into T0; false: it is the first member, which has to look it up. */
static bool load_distance(struct translator *t, const struct insn *i)
{
    unsigned g = t->group_of[i - t->insns];
    if (t->group[g].first == i - t->insns)
        return false;
    if (t->held != g)
        emit_load_gs(&t->m, T0, slot_of(&t->group[g]));
    return true;
}

bool emit_group_operand(struct translator *t, const struct insn *i, uint32_t what, uint16_t live_before)
{
    struct group *g = group_at(t, i);
    if (!g)
        return false;
    if (!load_distance(t, i)) {
        flags_give_up(t, live_before);
        emit_vaddr(t, i);
        emit_group_lookup(t, i, g, what);
    }
    t->held = g - t->group;
    int64_t fixed = i->disp + (i->rip_relative ? (int64_t)(i->pc + i->length) : 0);
    if (i->segment)
        emit_load_gs(&t->m, T1, i->segment == 1 + SREG_FS ? OFFSET(cpu.fs_base) : OFFSET(cpu.gs_base));
    else if (i->base < 0 && fixed != (int32_t)fixed)
        emit_mov_imm(&t->m, T1, fixed);
    if (i->base >= 0)
        t->at = (struct place){guest_in(t, i->base, T1), T0, i->disp, host_of[i->base] >= 0};
    else if (i->segment)
        t->at = (struct place){T1, T0, i->disp, false};
    else if (fixed == (int32_t)fixed)
        t->at = (struct place){T0, -1, fixed, true};
    else
        t->at = (struct place){T1, T0, 0, false};
    return true;
}

bool emit_group_base(struct translator *t, const struct insn *i, unsigned base, int offset, uint32_t what, uint16_t live_before)
{
    struct group *g = group_at(t, i);
    if (!g)
        return false;
    if (!load_distance(t, i)) {
        flags_give_up(t, live_before);
        emit_lea(&t->m, T0, base, -1, offset);
        emit_group_lookup(t, i, g, what);
    }
    t->held = g - t->group;
    t->at = (struct place){base, T0, offset, true};
    return true;
}

bool same_group(struct translator *t, const struct insn *a, const struct insn *b)
{
    return group_at(t, a) && group_at(t, a) == group_at(t, b);
}

/* Does the instruction leave T0 alone? Those with a group do so themselves. */
bool keeps_distance(struct translator *t, const struct insn *i)
{
    if (group_at(t, i))
        return true;
    bool spilled = (i->has_modrm && (host_of[i->reg] < 0 || (i->mod == 3 && host_of[i->rm] < 0))) ||
                   (i->base >= 0 && host_of[i->base] < 0) || (i->index >= 0 && host_of[i->index] < 0);
    switch (i->kind) {
    case INSN_NOP: case INSN_CLD: case INSN_STD: case INSN_VERBATIM: case INSN_JCC: return true;
    case INSN_LEA: return !spilled && i->operand_size != 2;
    case INSN_REG_OPCODE: return host_of[stack_register(i)] >= 0;
    case INSN_GENERAL: return i->mod == 3 && i->map < 2 && !i->vex && !spilled;
    }
    return false;
}
