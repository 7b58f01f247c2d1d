/*
 * What the rooms of the translator share: the state of a block in the making, and what each room offers the others.
 * translate.c first; every function here appends host instructions for a piece of a guest instruction, or for one.
 */
#ifndef UMXEN_TRANSLATE_H
#define UMXEN_TRANSLATE_H
#include "cpu/dbt/dbt.h"
#include "cpu/dbt/emit.h"
#include "cpu/operand.h"

#define OFFSET(field) ((uint32_t)offsetof(struct engine_vcpu, field))
#define REG_OFFSET(guest) (OFFSET(cpu.regs) + 8 * (guest))

enum { T0 = H_R10, T1 = H_R11, GUEST_RSP = H_R15 };

/* Where a guest register lives; -1: in the vCPU. */
static const int8_t host_of[NR_GPRS] = {H_RAX, H_RCX, H_RDX, H_RBX, GUEST_RSP, H_RBP, H_RSI, H_RDI,
                                        H_R8,  H_R9,  -1,    -1,    H_R12,     H_R13, H_R14, -1};

#define MAX_INSNS 64
#define MAX_SLOW 192

enum flags_at { FLAGS_HOST, FLAGS_SAVED, FLAGS_BOTH };

struct slow_stub { uint8_t *jump, *back; uint64_t pc, what; };

/* Accesses that share a look-up: see groups.c. */
struct group { uint8_t first, members, slot; bool write; int64_t first_offset, low, high; };
#define NO_GROUP 0xff

/* Where a memory operand is in the host: [base + index + disp]; index -1: none. */
struct place { int base, index; int32_t disp; bool t1_free; };

struct translator {
    struct emitter m;
    struct engine_vcpu *e;
    struct engine_domain *ed;
    struct block *b;
    unsigned user; /* 0 or 1: which TLB and jump cache */
    bool single;
    uint64_t features; /* that the guest may use */
    bool compat;    /* 32-bit code, */
    unsigned code;  /* CODE_*, */
    unsigned word;  /* and bytes of a stack slot */
    enum flags_at flags;
    const uint8_t *page; /* the host's view of the page the block starts in */
    uint64_t page_vaddr, peeked_vaddr;
    struct place at; /* what emit_operand and emit_stack_slot found */
    unsigned nr_slow, nr_groups;
    uint8_t held; /* the group whose distance is in T0 */
    int8_t in_t1; /* the guest register that T1 holds as well as the vCPU; -1: none */
    /* Not cleared at the start of a block: */
    uint8_t group_of[MAX_INSNS];
    struct group group[MAX_INSNS];
    struct slow_stub slow[MAX_SLOW];
    struct insn insns[MAX_INSNS];
};

/* ---- flags.c ---------------------------------------------------------------------------------------------------- */
void save_flags(struct translator *t);
/* `busy`: r10 and r11 hold an address. */
void restore_flags(struct translator *t, bool busy);
/* Before code that destroys the host's flags. `live`: flags somebody will still read. */
void flags_give_up(struct translator *t, uint16_t live);
void flags_to_host(struct translator *t, bool busy);
void flags_to_vcpu(struct translator *t);
/* Must the host's flags be the guest's before this instruction runs? */
bool needs_flags(const struct insn *i, uint16_t live_after);
/* Flags that will be read from pc on before they are overwritten. */
uint16_t live_at(struct translator *t, uint64_t pc);

/* ---- operands.c ------------------------------------------------------------------------------------------------- */
void load_guest(struct translator *t, unsigned host, unsigned guest);
/* The host register that holds a guest register now; a spilled one is fetched into `scratch`. */
unsigned guest_in(struct translator *t, unsigned guest, unsigned scratch);
/* lea of the memory operand, without its segment. */
void emit_address(struct translator *t, unsigned to, const struct insn *i, unsigned bytes);
/* The guest virtual address of the operand, in T0; an offset when operand_what says that it is to be checked. */
void emit_vaddr(struct translator *t, const struct insn *i);
/* 16 bits from r10 into a guest register, the rest of which stays. */
void store_word(struct translator *t, unsigned guest);
/* What emit_tlb must know of the operand's segment: SLOW_STACK for one that is in the stack segment by default, SLOW_SEGMENT. */
uint32_t operand_what(const struct translator *t, const struct insn *i);
bool segment_is_checked(const struct translator *t, enum sreg sreg);
/* The same of the stack segment. */
static inline uint32_t stack_what(const struct translator *t)
{
    return SLOW_STACK | (segment_is_checked(t, SREG_SS) ? SLOW_SEGMENT(SREG_SS) : 0);
}
/* lea for the stack pointer: 32 bits of it in 32-bit code. */
void emit_stack_lea(struct translator *t, unsigned to, unsigned base, int32_t disp);
static inline unsigned stack_register(const struct insn *i) { return (i->opcode & 7) | (i->rex & 1) << 3; }
/* bt and friends with a register index: the address moves with it. */
static inline bool is_bit_string(const struct insn *i)
{
    return i->map == 1 && (i->opcode == 0xa3 || i->opcode == 0xab || i->opcode == 0xb3 || i->opcode == 0xbb);
}

/* ---- access.c --------------------------------------------------------------------------------------------------- */
/* TLB look-up of the address in T0 for `what` (SLOW_*): afterwards T1 + T0 is the host's address. Flags are destroyed. */
void emit_tlb(struct translator *t, uint64_t pc, uint64_t what);
/* The same for a group: T0 becomes the distance from guest to host addresses. */
void emit_tlb_distance(struct translator *t, uint64_t pc, uint64_t what);
/* Look-up of the instruction's memory operand, or of the stack slot at rsp + offset; the place is t->at. Flags may be destroyed. */
void emit_operand(struct translator *t, const struct insn *i, uint32_t what, uint16_t live_before);
void emit_stack_slot(struct translator *t, const struct insn *i, int offset, uint32_t what, uint16_t live_before);
/* An instruction with one register and t->at; `delta` further on. */
void emit_at(struct translator *t, unsigned op, unsigned reg, int delta);
/* A scratch register that t->at doesn't need; the place may change. */
unsigned emit_scratch(struct translator *t);
/* The place in T1 alone. */
void emit_flatten(struct translator *t);
void emit_slow_stubs(struct translator *t);
/* After a store in a single-step block: what went to the bounce buffer goes to the guest. */
void emit_commit(struct translator *t);

/* ---- groups.c --------------------------------------------------------------------------------------------------- */
void plan_groups(struct translator *t, unsigned n);
/* False: not in a group. */
bool emit_group_operand(struct translator *t, const struct insn *i, uint32_t what, uint16_t live_before);
/* An access at a host register + offset. */
bool emit_group_base(struct translator *t, const struct insn *i, unsigned base, int offset, uint32_t what, uint16_t live_before);
bool same_group(struct translator *t, const struct insn *a, const struct insn *b);
/* Does the instruction leave T0 alone, or care for t->held itself? */
bool keeps_distance(struct translator *t, const struct insn *i);

/* ---- general.c -------------------------------------------------------------------------------------------------- */
void translate_memory_form(struct translator *t, const struct insn *i, uint16_t live_before, bool need);
void translate_register_form(struct translator *t, const struct insn *i, bool need);
void translate_verbatim(struct translator *t, const struct insn *i, bool need);
void translate_register_opcode(struct translator *t, const struct insn *i);
void translate_lea(struct translator *t, const struct insn *i);

enum rm_form { RM_REGISTER, RM_PLACE, RM_GS }; /* register m; t->at; gs:[m] */
/* The instruction that comes next may raise an exception on the host: whose it is. */
void note_fault_point(struct translator *t, const struct insn *i);

/* ---- vector.c --------------------------------------------------------------------------------------------------- */
void translate_vex(struct translator *t, const struct insn *i, uint16_t live_before);
void translate_vzero(struct translator *t, const struct insn *i);

/* ---- stack.c ---------------------------------------------------------------------------------------------------- */
/* How many of the `left` instructions were taken. */
unsigned translate_pushes(struct translator *t, const struct insn *i, unsigned left, uint16_t live_before);
unsigned translate_pops(struct translator *t, const struct insn *i, unsigned left, uint16_t live_before);
void translate_push_rm(struct translator *t, const struct insn *i, uint16_t live_before);
void translate_pop_rm(struct translator *t, const struct insn *i, uint16_t live_before);
void translate_push_imm(struct translator *t, const struct insn *i, int64_t imm, uint16_t live_before);
void translate_leave(struct translator *t, const struct insn *i, uint16_t live_before);

/* ---- system.c --------------------------------------------------------------------------------------------------- */
void translate_mov_from_segment(struct translator *t, const struct insn *i, uint16_t live_before);
void translate_helper(struct translator *t, const struct insn *i, enum helper h, uint64_t argument);
void translate_string(struct translator *t, const struct insn *i, uint16_t live_before);
void translate_fxsave(struct translator *t, const struct insn *i, uint16_t live_before);
void translate_xsave(struct translator *t, const struct insn *i, uint16_t live_before);

/* Does the instruction leave T1 alone, or care for t->in_t1 itself? */
bool keeps_t1(struct translator *t, const struct insn *i);

/* ---- jumps.c ---------------------------------------------------------------------------------------------------- */
void emit_rip(struct translator *t, uint64_t pc);
void emit_exit(struct translator *t, uint64_t rip, enum dbt_exit why);
/* A jump (0xe9), call (0xe8) or conditional jump (0x0f80 | cc) to a guest pc, to be linked. */
void emit_link(struct translator *t, unsigned opcode, uint64_t pc);
void emit_link_stubs(struct translator *t);
/* A jump or call to a guest pc: linked, or through the jump cache. `live`: flags that are read there. */
void emit_direct(struct translator *t, bool call, uint64_t pc, uint16_t live);
/* cmp r10, pc; jne miss */
void emit_check_pc(struct translator *t, uint64_t pc, const uint8_t *miss);
/* Code whose every change of a mapping passes through unmap_code. */
bool in_kernel_image(const struct translator *t);
/* May a direct jump lead to pc? */
bool may_chain(const struct translator *t, uint64_t pc);
void translate_jmp_indirect(struct translator *t, const struct insn *i, uint16_t live_before);
void translate_jrcxz(struct translator *t, const struct insn *i, uint16_t live_after);
void translate_call(struct translator *t, const struct insn *i, uint16_t live_before, uint16_t live_after);
void translate_call_indirect(struct translator *t, const struct insn *i, uint16_t live_before);
void translate_ret(struct translator *t, const struct insn *i, uint16_t live_before);
void translate_iret(struct translator *t, const struct insn *i);
#endif
