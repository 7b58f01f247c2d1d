/*
 * The two sides: memory and registers of the native program and of the guest.
 */
#define _GNU_SOURCE
#include "cpu/segment.h"
#include "harness.h"

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static void write_page(enum pool pool, unsigned n, const void *from)
{
    guest_page_written(m, v, pool, n);
    memcpy(guest_page(m, pool, n), from, PAGE_SIZE);
    memcpy(native_page(pool, n), from, PAGE_SIZE);
}

static void fill_pages(enum pool pool, unsigned pages)
{
    uint64_t words[PAGE_SIZE / 8];
    for (unsigned n = 0; n < pages; n++) {
        for (unsigned k = 0; k < ARRAY_SIZE(words); k++)
            words[k] = random_word();
        write_page(pool, n, words);
    }
}

/* As the file has it; natively each program ends in ud2. */
static void write_code_page(unsigned n)
{
    uint8_t page[PAGE_SIZE] = {0};
    uint64_t at = n * PAGE_SIZE, bytes = blob.header->code_bytes - at;
    memcpy(page, blob.code + at, bytes < PAGE_SIZE ? bytes : PAGE_SIZE);
    write_page(POOL_CODE, n, page);
    for (unsigned k = 0; k < blob.header->nr_programs; k++) {
        const struct program *p = &blob.program[k];
        if (!(p->flags & PROGRAM_INVALID) && p->end - at < PAGE_SIZE)
            native_page(POOL_CODE, n)[p->end - at] = 0x0f;
        if (!(p->flags & PROGRAM_INVALID) && p->end + 1 - at < PAGE_SIZE)
            native_page(POOL_CODE, n)[p->end + 1 - at] = 0x0b;
    }
}

void load_code(void)
{
    for (unsigned n = 0; n < DIV_ROUND_UP(blob.header->code_bytes, PAGE_SIZE); n++)
        write_code_page(n);
}

static void show(int window, unsigned page, enum permission perm, unsigned shown)
{
    if (m->shown[window][page] != shown && (here.program->flags & PROGRAM_NOT_HIGH))
        guest_switch(m, v, window, page, perm, shown);
    else
        guest_protect(m, v, window, page, perm, shown);
    native_protect(window, page, perm, shown);
}

/* Keeps what the page shows. */
void protect(int window, unsigned page, enum permission perm) { show(window, page, perm, m->shown[window][page]); }

void prepare_memory(const struct program *p)
{
    fill_pages(POOL_DATA, DATA_PAGES);
    fill_pages(POOL_STACK, STACK_PAGES);
    if (p->flags & PROGRAM_BIG)
        fill_pages(POOL_BIG, BIG_PAGES);
    if (p->flags & PROGRAM_WRITES_CODE)
        for (unsigned n = first_page(p); n <= last_page(p); n++) {
            protect(WINDOW_CODE, n, PERM_RWX);
            write_code_page(n);
        }
    for (unsigned k = 0; k < p->nr_rules; k++) {
        const struct rule *r = &blob.rule[p->first_rule + k];
        show(r->window, r->page, r->perm, here.run & 1 ? r->shown : r->page);
    }
}

void restore_permissions(const struct program *p)
{
    for (int w = WINDOW_DATA; w <= WINDOW_STACK; w++)
        for (unsigned n = 0; n < windows[w].pages; n++)
            show(w, n, windows[w].usual, n);
    for (unsigned n = first_page(p); n <= last_page(p); n++)
        show(WINDOW_CODE, n, windows[WINDOW_CODE].usual, n);
}

/* ---- the two CPUs ----------------------------------------------------------------------------------------------- */

/* 32-bit code: with flat segments; with FS limited and GS null; with everything limited. */
static void initial_segments(struct cpu_image *c)
{
    static const uint16_t usual[NR_SREGS] = {0x2b, 0x23, 0x2b, 0x2b, LDT_FS, LDT_GS};
    c->compat = true;
    for (unsigned k = 0; k < NR_SREGS; k++)
        c->selector[k] = usual[k];
    if (here.run % 3 == 1)
        c->selector[SREG_FS] = LDT_FS_LIMITED, c->selector[SREG_GS] = 0;
    if (here.run % 3 == 2)
        c->selector[SREG_ES] = c->selector[SREG_DS] = c->selector[SREG_SS] = LDT_DATA;
    for (unsigned k = 0; k < 8; k++)
        c->regs[k] = (uint32_t)c->regs[k];
}

void initial_state(struct cpu_image *c, const struct program *p)
{
    memset(c, 0, sizeof(*c));
    for (unsigned k = 0; k < NR_GPRS; k++)
        c->regs[k] = random_word();
    c->regs[RSP] = windows[WINDOW_STACK].vaddr + 2 * PAGE_SIZE + (random64() & 0x1f8);
    c->rip = CODE_START + p->entry;
    c->rflags = X86_IF | 2 | (random64() & (X86_STATUS | X86_DF)) | (options.trace ? X86_TF : 0);
    c->fs_base = windows[WINDOW_DATA].vaddr + 4 * PAGE_SIZE;
    c->gs_base = windows[WINDOW_DATA_HIGH].vaddr + 2 * PAGE_SIZE;
    *(uint16_t *)c->fx = 0x37f;
    *(uint32_t *)(c->fx + 24) = 0x1f80;
    for (unsigned k = 0; k < 32; k++)
        ((uint64_t *)(c->fx + 160))[k] = random_word();
    c->x.present = XCR0_X87 | XCR0_SSE;
    if (is_compat(p))
        initial_segments(c);
    if (!(m->domain.policy.features & CPU_BIT(AVX)))
        return;
    c->x.present |= XCR0_AVX;
    for (unsigned k = 0; random64() & 3 && k < 16; k++) /* sometimes not in use */
        memcpy(c->x.ymm_high[k], (uint64_t[2]){random_word(), random_word()}, 16);
}


void guest_load(const struct cpu_image *c, enum mode mode)
{
    struct cpu_state *s = v->cpu;
    engine()->set_mode(v, mode == USER);
    memcpy(s->regs, c->regs, sizeof(s->regs));
    s->rip = c->rip + (mode == KERNEL_HIGH ? HIGH_BASE : 0);
    cpu_set_rflags(s, c->rflags);
    s->fs_base = c->fs_base;
    s->gs_base = c->gs_base;
    static const uint16_t sreg[NR_SREGS] = {0, 0x33, 0x2b, 0, 0, 0};
    memcpy(s->sreg, sreg, sizeof(sreg));
    cpu_set_flat(s, 0x33, DESC_FLAT_CODE64, 0x2b);
    for (unsigned k = 0; c->compat && k < NR_SREGS; k++)
        cpu_set_segment(s, k, c->selector[k], k == SREG_CS ? DESC_FLAT_CODE32 : native_descriptor(c->selector[k]));
    if (c->compat) {
        s->fs_base = descriptor_base(s->descriptor[SREG_FS]);
        s->gs_base = descriptor_base(s->descriptor[SREG_GS]);
    }
    s->xcr0 = c->x.present;
    engine()->set_xstate(v, &c->x);
}

static void guest_store(struct cpu_image *c)
{
    const struct cpu_state *s = v->cpu;
    memcpy(c->regs, s->regs, sizeof(c->regs));
    c->rip = s->rip;
    c->rflags = cpu_rflags(s);
    c->fs_base = s->fs_base;
    c->gs_base = s->gs_base;
    engine()->get_xstate(v, &c->x);
}

static unsigned vector_of(enum engine_exit why)
{
    switch (why) {
    case EXIT_PAGE_FAULT: return VECTOR_PAGE_FAULT;
    case EXIT_PRIVILEGED: case EXIT_GP: return VECTOR_GP;
    case EXIT_INVALID: return VECTOR_INVALID;
    case EXIT_DIVIDE: return VECTOR_DIVIDE;
    case EXIT_DEBUG: return VECTOR_DEBUG;
    case EXIT_STACK: return VECTOR_STACK;
    case EXIT_X87: return VECTOR_X87;
    case EXIT_SIMD: return VECTOR_SIMD;
    case EXIT_ALIGNMENT: return VECTOR_ALIGNMENT;
    case EXIT_SYSCALL: return EVENT_END;
    default: return 1000 + why;
    }
}

void guest_run(struct cpu_image *c, struct event *e)
{
    enum engine_exit why;
    engine()->switch_in(v);
    atomic_store(&v->in_guest, true);
    while ((why = engine()->run(v)) == EXIT_KICK) {
        if (v->id == 0 && atomic_load(&kicked_at))
            latency[totals.kicks % LATENCIES] = now_ns() - atomic_exchange(&kicked_at, 0);
        atomic_store(&v->kick, false);
        totals.kicks++;
        domain_lock(&m->domain, v);
        domain_unlock(&m->domain, v);
    }
    atomic_store(&v->in_guest, false);
    engine()->switch_out(v);
    guest_store(c);
    *e = (struct event){.vector = vector_of(why), .error = v->cpu->fault_error, .cr2 = v->cpu->fault_vaddr};
    uint8_t bytes[INSN_MAX_BYTES] = {0};
    if (why == EXIT_SYSCALL) {
        c->rip -= 2;
    } else if (why == EXIT_PRIVILEGED && engine()->fetch(v, c->rip, bytes) && bytes[0] == 0xcc) { /* int3 is a trap */
        e->vector = VECTOR_BREAKPOINT;
        c->rip++;
    }
}

void native_step(struct cpu_image *c, struct event *e, const struct program *p)
{
    native_run(c, e);
    if (e->vector == VECTOR_INVALID && c->rip == CODE_START + p->end)
        e->vector = EVENT_END;
}
