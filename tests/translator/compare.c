/*
 * What both sides have to agree on: registers, flags, FPU, memory, and the event.
 */
#define _GNU_SOURCE
#include "harness.h"


static const char *const mode_name[] = {"user", "kernel", "kernel-high"};

void mismatch(const char *what, uint64_t native, uint64_t translated)
{
    printf("{\"mismatch\": \"%s\", \"native\": \"%#llx\", \"translated\": \"%#llx\", \"program\": %u, \"run\": %u, "
           "\"event\": %u, \"mode\": \"%s\"}\n",
           what, (unsigned long long)native, (unsigned long long)translated, here.index, here.run, here.event,
           mode_name[here.mode]);
    fflush(stdout);
}

/* In the kernel's high part code addresses are higher. */
static bool same(uint64_t native, uint64_t translated)
{
    return native == translated ||
           (here.mode == KERNEL_HIGH && native - CODE_START < CODE_PAGES * PAGE_SIZE && native + HIGH_BASE == translated);
}

static bool compare(const char *what, uint64_t native, uint64_t translated)
{
    if (same(native, translated))
        return true;
    mismatch(what, native, translated);
    return false;
}

static bool compare_registers(const struct cpu_image *n, const struct cpu_image *g)
{
    static const char *const name[NR_GPRS] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                              "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    bool ok = compare("rip", n->rip, g->rip);
    for (unsigned k = 0; k < NR_GPRS; k++)
        ok &= compare(name[k], n->regs[k], g->regs[k]);
    return ok;
}

static bool compare_high(const struct xstate *n, const struct xstate *g)
{
    bool ok = true;
    for (unsigned k = 0; k < 32; k++) {
        char name[16];
        snprintf(name, sizeof(name), "ymm%u.%u", k / 2, 2 + (k & 1));
        ok &= compare(name, ((const uint64_t *)n->ymm_high)[k], ((const uint64_t *)g->ymm_high)[k]);
    }
    return ok;
}

static bool compare_fpu(const struct xstate *native, const struct xstate *translated)
{
    const uint8_t *n = native->legacy, *g = translated->legacy;
    bool ok = compare("fcw", *(uint16_t *)n, *(uint16_t *)g) & compare("fsw", *(uint16_t *)(n + 2), *(uint16_t *)(g + 2)) &
              compare("ftw", n[4], g[4]) & compare("mxcsr", *(uint32_t *)(n + 24), *(uint32_t *)(g + 24));
    char name[16];
    for (unsigned k = 0; k < 48; k++) {
        uint64_t a, b, mask = k < 16 && k & 1 ? 0xffff : ~0ull;
        memcpy(&a, n + 32 + 8 * k, 8);
        memcpy(&b, g + 32 + 8 * k, 8);
        snprintf(name, sizeof(name), "%s%u.%u", k < 16 ? "st" : "xmm", (k < 16 ? k : k - 16) / 2, k & 1);
        ok &= compare(name, a & mask, b & mask);
    }
    return ok & compare_high(native, translated);
}

/* Code addresses in memory, perhaps partly overwritten since: the upper five bytes of a high one are c? ff ff ff ff. */
static bool same_bytes(uint64_t native, uint64_t translated)
{
    bool ok = here.mode == KERNEL_HIGH;
    for (unsigned k = 0; k < 64; k += 8) {
        uint8_t x = native >> k, y = translated >> k;
        ok &= x == y || (x == 0 && y == 0xff) || (x == CODE_START >> 24 && y == ((CODE_START + HIGH_BASE) >> 24 & 0xff));
    }
    return ok;
}

/* Eight bytes of a pool, over page ends too. */
static uint64_t pool_word(bool native, enum pool pool, unsigned at, unsigned pages)
{
    uint64_t word = 0;
    for (unsigned k = 0; k < 8 && at + k < pages * PAGE_SIZE; k++) {
        unsigned n = (at + k) / PAGE_SIZE;
        const uint8_t *page = native ? native_page(pool, n) : guest_page(m, pool, n);
        word |= (uint64_t)page[(at + k) % PAGE_SIZE] << 8 * k;
    }
    return word;
}

static bool compare_pages(enum pool pool, unsigned first, unsigned pages)
{
    static const char *const name[] = {"code", "data", "stack", "big"};
    unsigned end = (first + pages) * PAGE_SIZE;
    for (unsigned at = first * PAGE_SIZE; at < end; at++) {
        const uint8_t *a = native_page(pool, at / PAGE_SIZE), *b = guest_page(m, pool, at / PAGE_SIZE);
        if (!(at % PAGE_SIZE) && !memcmp(a, b, PAGE_SIZE))
            at += PAGE_SIZE - 1;
        else if (a[at % PAGE_SIZE] != b[at % PAGE_SIZE]) {
            unsigned word = at >= 3 ? at - 3 : 0; /* the first byte in which a high address differs is its fourth */
            uint64_t x = pool_word(true, pool, word, first + pages), y = pool_word(false, pool, word, first + pages);
            char what[64];
            snprintf(what, sizeof(what), "%s from offset %#x", name[pool], at);
            if (!same_bytes(x, y)) {
                mismatch(what, x, y);
                return false;
            }
            at += 4;
        }
    }
    return true;
}

/* The native copy of a program has other bytes at its end. */
static bool compare_code(const struct program *p)
{
    uint8_t *end = native_page(POOL_CODE, 0) + p->end;
    memcpy(end, "\x0f\x05", 2);
    bool ok = compare_pages(POOL_CODE, first_page(p), last_page(p) - first_page(p) + 1);
    memcpy(end, "\x0f\x0b", 2);
    return ok;
}

static bool compare_memory(const struct program *p)
{
    return compare_pages(POOL_DATA, 0, DATA_PAGES) & compare_pages(POOL_STACK, 0, STACK_PAGES) &
           (p->flags & PROGRAM_BIG ? compare_pages(POOL_BIG, 0, BIG_PAGES) : true) &
           (p->flags & PROGRAM_WRITES_CODE ? compare_code(p) : true);
}

/* The instruction the native CPU stopped at. */
static void decode_here(struct insn *i, const struct cpu_image *n)
{
    unsigned page;
    int w = window_of(n->rip, &page);
    uint8_t bytes[INSN_MAX_BYTES + 1] = {0};
    for (unsigned k = 0; w == WINDOW_CODE && k < INSN_MAX_BYTES; k++) {
        uint64_t at = n->rip - CODE_START + k;
        bytes[k] = at < CODE_PAGES * PAGE_SIZE ? *(native_page(POOL_CODE, 0) + at) : 0;
    }
    decode(i, bytes, n->rip, m->domain.policy.features, n->compat);
}

/* BMI and what else lives in the maps 0f 38 and 0f 3a. */
static uint16_t undefined_in_maps(const struct insn *i)
{
    if (i->feature != CPU_BMI1 && i->feature != CPU_BMI2)
        return 0;
    return i->opcode == 0xf7 ? X86_SF | X86_PF : X86_PF;
}

static uint16_t undefined_flags(const struct insn *i)
{
    unsigned r = i->reg & 7;
    if (i->map > 1)
        return i->flags_touch ? undefined_in_maps(i) : 0;
    if (i->map == 1)
        switch (i->opcode) {
        case 0xa3: case 0xab: case 0xb3: case 0xbb: case 0xba: return X86_OF | X86_SF | X86_PF;
        case 0xa4: case 0xa5: case 0xac: case 0xad: return X86_OF;
        case 0xbc: case 0xbd: return i->prefix_f3 ? X86_STATUS & ~(X86_ZF | X86_CF) : X86_STATUS & ~X86_ZF;
        case 0xaf: return X86_SF | X86_ZF | X86_PF;
        default: return 0;
        }
    switch (i->opcode) {
    case 0x27: case 0x2f: return i->compat ? X86_OF : 0;
    case 0x37: case 0x3f: return i->compat ? X86_OF | X86_SF | X86_ZF | X86_PF : 0;
    case 0xd4: case 0xd5: return i->compat ? X86_OF | X86_CF : 0;
    case 0xc0: case 0xc1: case 0xd0 ... 0xd3: return i->operand_size > 2 ? X86_OF : X86_OF | X86_CF;
    case 0x69: case 0x6b: return X86_SF | X86_ZF | X86_PF;
    case 0xf6: case 0xf7: return r >= 6 ? X86_STATUS : r >= 4 ? X86_SF | X86_ZF | X86_PF : 0;
    default: return 0;
    }
}

/* Before a single step. */
void note_undefined(const struct cpu_image *n)
{
    struct insn i;
    decode_here(&i, n);
    uint16_t kill = i.kind == INSN_STRING && n->regs[RCX] ? i.flags_touch : i.flags_kill;
    here.partial = i.kind == INSN_STRING ? i.flags_touch : 0;
    here.undefined = (here.undefined & ~kill) | undefined_flags(&i);
}

/* A branch to an address that isn't canonical: Intel's CPUs fault at the branch, AMD's and the translator after it. */
bool is_wild_branch(const struct cpu_image *n, const struct event *ne, const struct cpu_image *g, const struct event *ge)
{
    struct insn i;
    if (ne->vector != VECTOR_GP || (ge->vector != VECTOR_GP && ge->vector != VECTOR_DEBUG) || is_canonical(g->rip))
        return false;
    decode_here(&i, n);
    return i.kind == INSN_RET || i.kind == INSN_JMP_INDIRECT || i.kind == INSN_CALL_INDIRECT;
}

/* Which byte of an FPU image is touched first is up to the CPU. */
static bool same_fault_address(const struct cpu_image *n, uint64_t native, uint64_t translated)
{
    struct insn i;
    decode_here(&i, n);
    if (i.kind == INSN_FXSAVE || i.kind == INSN_FXRSTOR || i.kind == INSN_XSAVE || i.kind == INSN_XRSTOR ||
        i.kind == INSN_MASKED_MOVE || i.memory_size > 32)
        native = page_of(native), translated = page_of(translated);
    if (here.mode == KERNEL_HIGH && native + HIGH_BASE == translated) /* relative to rip */
        return true;
    return compare("cr2", native, translated);
}

static bool compare_event(const struct cpu_image *at, const struct event *n, const struct event *g)
{
    if (!compare("vector", n->vector, g->vector))
        return false;
    if (n->vector != VECTOR_PAGE_FAULT)
        return true;
    uint64_t mask = n->cr2 >= 0x7ffffffff000 ? ~1ull : ~0ull; /* what the host has mapped up there is not ours */
    return same_fault_address(at, n->cr2, g->cr2) &
           compare("error code", n->error & mask, (g->error | (here.mode == USER ? 0 : 4)) & mask);
}

bool compare_state(const struct cpu_image *n, const struct cpu_image *g, uint64_t flags)
{
    return compare_registers(n, g) & compare("rflags", n->rflags & flags, g->rflags & flags) & compare_fpu(&n->x, &g->x);
}

bool compare_all(const struct cpu_image *n, const struct event *ne, const struct cpu_image *g, const struct event *ge)
{
    uint64_t flags = X86_DF | X86_AC | X86_ID | X86_NT;
    if (ne->vector == EVENT_END || ne->vector == VECTOR_DEBUG || (n->rflags & X86_TF))
        flags |= here.program->status_mask & ~(uint64_t)here.undefined;
    return compare_event(n, ne, ge) & compare_state(n, g, flags) & compare_memory(here.program);
}
