/*
 * The ways into and out of translated code, generated at the start of each domain's code cache so that every jump to
 * them is a rel32.
 *
 * Two stacks: C's, and the shadow stack on which guest calls are host calls. Two states of the flags: in the host's, or
 * saved in cpu.status as lahf and seto leave them. `add al, 127; sahf` puts them back: the sum overflows iff bit 0 was set.
 */
#include "cpu/dbt/dbt.h"
#include "cpu/dbt/emit.h"

#define OFFSET(field) ((uint32_t)offsetof(struct engine_vcpu, field))

/* Guest registers and where they live on the host while translated code runs. */
static const struct { uint8_t guest, host; } live[] = {
    {RAX, H_RAX}, {RCX, H_RCX}, {RDX, H_RDX}, {RBX, H_RBX}, {RSP, H_R15}, {RBP, H_RBP}, {RSI, H_RSI},
    {RDI, H_RDI}, {R8, H_R8},   {R9, H_R9},   {R12, H_R12}, {R13, H_R13}, {R14, H_R14},
};

static void save_registers(struct emitter *m)
{
    for (unsigned i = 0; i < ARRAY_SIZE(live); i++)
        emit_store_gs(m, OFFSET(cpu.regs) + 8 * live[i].guest, live[i].host);
}

static void load_registers(struct emitter *m)
{
    for (unsigned i = 0; i < ARRAY_SIZE(live); i++)
        emit_load_gs(m, live[i].host, OFFSET(cpu.regs) + 8 * live[i].guest);
}

/* movups between xmm0-15 and the vCPU that `base` points to. */
static void move_xmm(struct emitter *m, unsigned base, bool store)
{
    for (unsigned i = 0; i < 16; i++) {
        if (i & 8)
            emit1(m, 0x44);
        emit1(m, 0x0f);
        emit1(m, store ? 0x11 : 0x10);
        emit1(m, 0x80 | (i & 7) << 3 | base);
        emit4(m, OFFSET(xmm) + 16 * i);
    }
}

/* vextractf128 or vinsertf128: the upper half of a YMM register to or from the vCPU that rdi points to. */
static void move_high(struct emitter *m, unsigned i, bool store)
{
    emit1(m, 0xc4);
    emit1(m, i & 8 ? 0x63 : 0xe3);
    emit1(m, store ? 0x7d : 0x05 | (~i & 15) << 3);
    emit1(m, store ? 0x19 : 0x18);
    emit1(m, 0x80 | (i & 7) << 3 | H_RDI);
    emit4(m, OFFSET(ymm_high) + 16 * i);
    emit1(m, 1);
}

/* vorps ymm(to), ymm(to), ymm(from); to is 0 or 1. */
static void or_vectors(struct emitter *m, unsigned to, unsigned from)
{
    emit1(m, 0xc4);
    emit1(m, from & 8 ? 0xc1 : 0xe1);
    emit1(m, (~to & 15) << 3 | 4);
    emit1(m, 0x56);
    emit1(m, 0xc0 | to << 3 | (from & 7));
}

/* Vector registers to the vCPU that rdi points to. The upper halves only if they are not all zero, which is looked at by or-ing
 * them together: to ask the CPU (xgetbv with ecx 1) takes three times as long. Afterwards they are zero: with dirty ones every
 * SSE instruction of C would be slower. rdx stays. */
static void save_vectors(struct emitter *m, uint64_t features)
{
    move_xmm(m, H_RDI, true);
    if (!(features & CPU_BIT(AVX)))
        return;
    move_high(m, 0, true);
    move_high(m, 1, true);
    for (unsigned i = 2; i < 16; i++)
        or_vectors(m, i & 1, i);
    or_vectors(m, 0, 1);
    EMIT(m, "\xc4\xe3\x7d\x19\xc0\x01\xc4\xe2\x79\x17\xc0"); /* vextractf128 xmm0, ymm0, 1; vptest xmm0, xmm0 */
    emit_store_gs_imm(m, OFFSET(ymm_in_use), 0);
    EMIT(m, "\x0f\x84"); /* jz */
    uint8_t *zero = m->p;
    emit4(m, 0);
    emit_store_gs_imm(m, OFFSET(ymm_in_use), XCR0_AVX);
    for (unsigned i = 2; i < 16; i++)
        move_high(m, i, true);
    patch_rel32(m, zero, m->p);
    EMIT(m, "\xc5\xf8\x77"); /* vzeroupper */
}

/* The other way round. The upper halves are zero: C and its library leave them so. */
static void load_vectors(struct emitter *m, uint64_t features)
{
    move_xmm(m, H_RDI, false);
    if (!(features & CPU_BIT(AVX)))
        return;
    emit_gs(m, true, 0x83, 7, OFFSET(ymm_in_use)); /* cmp qword gs:[], 0 */
    EMIT(m, "\0\x0f\x84");
    uint8_t *skip = m->p;
    emit4(m, 0);
    for (unsigned i = 0; i < 16; i++)
        move_high(m, i, false);
    patch_rel32(m, skip, m->p);
}

static void save_flags_from_host(struct emitter *m) /* rax is free */
{
    EMIT(m, "\x9f\x0f\x90\xc0\x0f\xb7\xc0"); /* lahf; seto al; movzx eax, ax */
    emit_store_gs(m, OFFSET(cpu.status), H_RAX);
}

static void emit_enter(struct emitter *m, struct trampolines *tr, uint64_t features)
{
    tr->enter = m->p;
    EMIT(m, "\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57\x48\x83\xec\x08"); /* push rbx rbp r12-r15; sub rsp, 8 */
    emit_store_gs(m, OFFSET(host_rsp), H_RSP);
    emit_store_gs(m, OFFSET(entry), H_RSI);
    load_vectors(m, features);
    emit_gs(m, false, 0x1ae, 2, OFFSET(mxcsr)); /* ldmxcsr */
    emit_load_gs(m, H_RSP, OFFSET(shadow_rsp));
    emit_load_gs(m, H_RAX, OFFSET(cpu.status));
    EMIT(m, "\x04\x7f\x9e"); /* add al, 127; sahf */
    load_registers(m);
    emit_gs(m, false, 0xff, 4, OFFSET(entry)); /* jmp gs:[entry] */
}

static uint8_t *emit_exits(struct emitter *m, struct trampolines *tr, uint64_t features)
{
    tr->poll = m->p;
    emit_store_gs_imm(m, OFFSET(exit), DBT_POLL);
    tr->exit_direct = m->p;
    save_registers(m);
    save_flags_from_host(m);
    emit1(m, 0xe9); /* jmp stored */
    uint8_t *to_stored = m->p;
    emit4(m, 0);
    tr->underflow = m->p; /* a guest return without its call: the sentinel is the last word of the shadow stack */
    EMIT(m, "\x48\x8d\x64\x24\xf8"); /* lea rsp, [rsp-8]: keep it there */
    tr->jump_miss = m->p;
    emit_store_gs(m, OFFSET(cpu.rip), H_R10);
    emit_store_gs_imm(m, OFFSET(exit), DBT_INDIRECT);
    tr->exit_saved = m->p;
    save_registers(m);
    uint8_t *stored = m->p;
    patch_rel32(m, to_stored, stored);
    emit_gs(m, false, 0x1ae, 3, OFFSET(mxcsr)); /* stmxcsr: C must not run with exceptions that the guest unmasked */
    emit_gs(m, false, 0x1ae, 2, OFFSET(host_mxcsr));
    emit_store_gs(m, OFFSET(shadow_rsp), H_RSP);
    emit_load_gs(m, H_RSP, OFFSET(host_rsp));
    emit_load_gs(m, H_RDI, OFFSET(self));
    save_vectors(m, features);
    EMIT(m, "\x48\x83\xc4\x08\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3"); /* add rsp, 8; pop r15-r12 rbp rbx; ret */
    return stored;
}

/* May it take locks or call the C library, or does it work on the vector registers? Then they are in the vCPU meanwhile. */
static bool calls_c(enum helper h)
{
    return h == HELP_COMMIT || h == HELP_STRING_ALONE || h == HELP_FXSAVE || h == HELP_FXRSTOR || h == HELP_XSAVE ||
           h == HELP_XRSTOR;
}

/* Calls a helper on C's stack with (self, r10, r11). Its result goes to r11, r10 becomes 0: host address as r11 + r10. */
static void emit_helper(struct emitter *m, struct trampolines *tr, enum helper h, const uint8_t *stored, uint64_t features)
{
    bool full = calls_c(h);
    tr->helper[h] = m->p;
    if (full)
        emit1(m, 0x9c); /* pushfq: on the shadow stack */
    save_registers(m);
    emit_load_gs(m, H_RDI, OFFSET(self));
    emit_mov(m, H_RSI, H_R10);
    emit_mov(m, H_RDX, H_R11);
    emit_store_gs(m, OFFSET(shadow_rsp), H_RSP);
    emit_load_gs(m, H_RSP, OFFSET(host_rsp));
    if (full)
        save_vectors(m, features);
    emit_gs(m, false, 0xff, 2, OFFSET(helper) + 8 * h); /* call gs:[helper] */
    if (full) {
        emit_load_gs(m, H_RDI, OFFSET(self));
        load_vectors(m, features);
    }
    emit_load_gs(m, H_RSP, OFFSET(shadow_rsp));
    emit_mov(m, H_R11, H_RAX);
    EMIT(m, "\x48\x85\xc0\x0f\x84"); /* test rax, rax; jz leave */
    uint8_t *leave = m->p;
    emit4(m, 0);
    load_registers(m);
    EMIT(m, "\x45\x31\xd2"); /* xor r10d, r10d */
    if (full)
        emit1(m, 0x9d); /* popfq */
    emit1(m, 0xc3);
    patch_rel32(m, leave, m->p);
    emit_lea(m, H_RSP, H_RSP, -1, full ? 16 : 8); /* drop the return address (and flags) */
    emit_jmp(m, stored);
}

static void emit_jump_indirect(struct emitter *m, struct trampolines *tr, unsigned mode)
{
    tr->enter_indirect[mode] = m->p;
    emit_load_gs(m, H_R10, OFFSET(cpu.rip));
    tr->jump_indirect[mode] = m->p;
    emit_load_gs(m, H_R11, OFFSET(poll));
    EMIT(m, "\x45\x8b\x1b"); /* mov r11d, [r11]: faults when kicked */
    emit_mov(m, H_R11, H_R10);
    EMIT(m, "\x49\xc1\xeb\x0c\x45\x31\xd3\x41\x81\xe3"); /* shr r11, 12; xor r11d, r10d; and r11d, mask */
    emit4(m, JUMP_ENTRIES - 1);
    EMIT(m, "\x65\x42\xff\x24\xdd"); /* jmp gs:[r11 * 8 + table] */
    emit4(m, OFFSET(jump) + mode * JUMP_ENTRIES * 8);
}

uint8_t *trampoline_miss_emit(uint8_t *page, ptrdiff_t alias)
{
    struct emitter m = {page, alias};
    struct trampolines tr;
    emit_exits(&m, &tr, cpu_features_of_host()); /* of a domain that is offered less, the upper halves are zero */
    ASSERT(m.p <= page + PAGE_SIZE);
    return tr.jump_miss;
}

/* r10: guest target, flags saved; the slot of the jump cache led elsewhere. */
static void emit_jump_second(struct emitter *m, struct trampolines *tr, unsigned mode)
{
    uint32_t table = OFFSET(second) + mode * SECOND_ENTRIES * sizeof(struct second_jump);
    tr->jump_second[mode] = m->p;
    EMIT(m, "\x45\x69\xda"); /* imul r11d, r10d, */
    emit4(m, SECOND_MULTIPLIER);
    EMIT(m, "\x41\xc1\xeb"); /* shr r11d, */
    emit1(m, 32 - SECOND_BITS - 4);
    EMIT(m, "\x41\x81\xe3"); /* and r11d, */
    emit4(m, (SECOND_ENTRIES - 1) << 4);
    EMIT(m, "\x65\x4d\x3b\x93"); /* cmp r10, gs:[r11 + pc] */
    emit4(m, table + offsetof(struct second_jump, pc));
    emit_jcc(m, 5, tr->jump_miss);
    EMIT(m, "\x65\x41\xff\xa3"); /* jmp gs:[r11 + entry] */
    emit4(m, table + offsetof(struct second_jump, entry));
}
_Static_assert(sizeof(struct second_jump) == 1 << 4, "the index above");

void trampolines_emit(struct engine_domain *ed)
{
    struct emitter m = {ed->cache, ed->alias};
    struct trampolines *tr = &ed->tr;
    uint64_t features = ed->domain->policy.features;
    emit_enter(&m, tr, features);
    uint8_t *stored = emit_exits(&m, tr, features);
    for (unsigned h = 0; h < NR_HELPERS; h++)
        emit_helper(&m, tr, h, stored, features);
    emit_jump_indirect(&m, tr, 0);
    emit_jump_indirect(&m, tr, 1);
    emit_jump_second(&m, tr, 0);
    emit_jump_second(&m, tr, 1);
    tr->end = m.p;
    perf_map_add(ed, ed->cache, m.p, "trampolines", 0);
    ASSERT(tr->end <= (uint8_t *)ed->guard);
}
