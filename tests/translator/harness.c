/*
 * Programs run twice, translated and natively, in lockstep from event to event; everything a program can see is compared
 * at each event. The file of programs comes from programs.py; README.md describes the options and what is printed.
 *
 * An event is a fault, or the end: a `syscall` for the translator, which the native copy of the code has as `ud2`. After
 * a page fault on one of our pages the page is made accessible and the program goes on; after any other event it goes
 * on at the next resume point, an address that the generator lists.
 *
 * Status flags are compared at the end only (and after each instruction with --trace): in between the translator need
 * not know flags that nobody will read. A page fault that is repaired leaves each side its own flags, which shows a
 * flag that was lost although it was alive.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "native.h"

#define HIGH_BASE 0xffffffff80000000ull
#define CODE_START (windows[WINDOW_CODE].vaddr)

/* ---- the file of programs --------------------------------------------------------------------------------------- */

enum {
    PROGRAM_WRITES_CODE = 1,   /* its pages are RWX, and fresh for each run */
    PROGRAM_BIG = 2,           /* uses WINDOW_BIG */
    PROGRAM_INVALID = 4,       /* its one instruction must be #UD to the guest; not run natively */
    PROGRAM_NOT_HIGH = 8,      /* computes with code addresses: not in the kernel's high part */
};
struct program {
    uint64_t seed;
    uint32_t entry, end;       /* offsets in the code */
    uint32_t first_resume, nr_resumes, first_rule, nr_rules;
    uint32_t flags, status_mask;
    uint32_t last, unused;     /* offset after its last byte: functions lie behind the end */
};
struct rule { uint8_t window, perm; uint16_t page, shown, unused; }; /* another page is shown in odd runs only */
struct header { char magic[8]; uint32_t nr_programs, nr_resumes, nr_rules, code_bytes; };

static struct {
    struct header *header;
    struct program *program;
    uint32_t *resume;
    struct rule *rule;
    uint8_t *code;
} blob;

static struct {
    unsigned runs, kick_us, disturb_every, cache_kib, only, seconds;
    bool trace, verbose;
} options = {.runs = 6, .only = ~0u, .seconds = 30};

static void load(const char *path)
{
    int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        die("%s can't be read", path);
    uint8_t *p = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED || memcmp(p, "UMXPROG1", 8))
        die("%s is not a file of programs", path);
    close(fd);
    blob.header = (struct header *)p;
    blob.program = (struct program *)(p + sizeof(struct header));
    blob.resume = (uint32_t *)(blob.program + blob.header->nr_programs);
    blob.rule = (struct rule *)(blob.resume + blob.header->nr_resumes);
    blob.code = (uint8_t *)(blob.rule + blob.header->nr_rules);
    if (blob.header->code_bytes > CODE_PAGES * PAGE_SIZE)
        die("too much code");
}

enum mode { USER, KERNEL, KERNEL_HIGH };
static const char *const mode_name[] = {"user", "kernel", "kernel-high"};

static struct {
    const struct program *program;
    unsigned index, run, event;
    enum mode mode;
    uint16_t undefined; /* status flags that no instruction has defined since one left them undefined */
} here;

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static struct machine *m;
static struct vcpu *v;

static uint64_t random_state;
static uint64_t random64(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* Numbers that instructions find interesting. */
static uint64_t random_word(void)
{
    static const uint64_t edge[] = {0, 1, ~0ull, 0x7f, 0x80, 0x7fff, 0x8000, 0x7fffffff, 0x80000000, 0xffffffff,
                                    0x7fffffffffffffff, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000,
                                    0x7ff0000000000000, 0x7ff8000000000000, 0x3f8000003f800000, 0x7f8000007fc00000};
    uint64_t r = random64();
    switch (r & 7) {
    case 0: return edge[(r >> 8) % ARRAY_SIZE(edge)];
    case 1: return (int64_t)r >> 56;
    case 2: return (int64_t)r >> 44;
    case 3: { /* a double, or two floats, of a moderate size */
        double d = (double)((int64_t)r >> 40) / 64;
        float f[2] = {(float)d, (float)((int32_t)r >> 12) / 16};
        uint64_t bits;
        memcpy(&bits, r & 64 ? (void *)&d : (void *)f, 8);
        return bits;
    }
    default: return random64();
    }
}

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

static void load_code(void)
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
static void protect(int window, unsigned page, enum permission perm) { show(window, page, perm, m->shown[window][page]); }

static unsigned first_page(const struct program *p) { return p->entry / PAGE_SIZE; }
static unsigned last_page(const struct program *p) { return (p->last - 1) / PAGE_SIZE; }

static void prepare_memory(const struct program *p)
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

static void restore_permissions(const struct program *p)
{
    for (int w = WINDOW_DATA; w <= WINDOW_STACK; w++)
        for (unsigned n = 0; n < windows[w].pages; n++)
            show(w, n, windows[w].usual, n);
    for (unsigned n = first_page(p); n <= last_page(p); n++)
        show(WINDOW_CODE, n, windows[WINDOW_CODE].usual, n);
}

/* ---- the two CPUs ----------------------------------------------------------------------------------------------- */

enum { EVENT_END = 256 };

static void initial_state(struct cpu_image *c, const struct program *p)
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
}


static void guest_load(const struct cpu_image *c, enum mode mode)
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
    engine()->set_fpu(v, c->fx);
}

static void guest_store(struct cpu_image *c)
{
    const struct cpu_state *s = v->cpu;
    memcpy(c->regs, s->regs, sizeof(c->regs));
    c->rip = s->rip;
    c->rflags = cpu_rflags(s);
    c->fs_base = s->fs_base;
    c->gs_base = s->gs_base;
    engine()->get_fpu(v, c->fx);
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

static uint64_t nr_kicks;
static void guest_run(struct cpu_image *c, struct event *e)
{
    enum engine_exit why;
    engine()->switch_in(v);
    atomic_store(&v->in_guest, true);
    while ((why = engine()->run(v)) == EXIT_KICK) {
        atomic_store(&v->kick, false);
        nr_kicks++;
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

/* With --trace the CPU stops after each element of a string instruction, the translator after all of them. */
static void native_step(struct cpu_image *c, struct event *e, const struct program *p)
{
    uint64_t before;
    do {
        before = c->rip;
        native_run(c, e);
    } while (e->vector == VECTOR_DEBUG && c->rip == before);
    if (e->vector == VECTOR_INVALID && c->rip == CODE_START + p->end)
        e->vector = EVENT_END;
}

/* ---- comparison ------------------------------------------------------------------------------------------------- */

static struct { uint64_t programs, runs, events, instructions, mismatches; } totals;

static void mismatch(const char *what, uint64_t native, uint64_t translated)
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

static bool compare_fpu(const uint8_t *n, const uint8_t *g)
{
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
    return ok;
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
    decode(i, bytes, n->rip);
}

static uint16_t undefined_flags(const struct insn *i)
{
    unsigned r = i->reg & 7;
    if (i->map == 1)
        switch (i->opcode) {
        case 0xa3: case 0xab: case 0xb3: case 0xbb: case 0xba: return X86_OF | X86_SF | X86_PF;
        case 0xa4: case 0xa5: case 0xac: case 0xad: return X86_OF;
        case 0xbc: case 0xbd: return X86_STATUS & ~X86_ZF;
        case 0xaf: return X86_SF | X86_ZF | X86_PF;
        default: return 0;
        }
    switch (i->opcode) {
    case 0xc0: case 0xc1: case 0xd0 ... 0xd3: return i->operand_size > 2 ? X86_OF : X86_OF | X86_CF;
    case 0x69: case 0x6b: return X86_SF | X86_ZF | X86_PF;
    case 0xf6: case 0xf7: return r >= 6 ? X86_STATUS : r >= 4 ? X86_SF | X86_ZF | X86_PF : 0;
    default: return 0;
    }
}

/* Before a single step. */
static void note_undefined(const struct cpu_image *n)
{
    struct insn i;
    decode_here(&i, n);
    here.undefined = (here.undefined & ~i.flags_kill) | undefined_flags(&i);
}

/* A branch to an address that isn't canonical: Intel's CPUs fault at the branch, AMD's and the translator after it. */
static bool is_wild_branch(const struct cpu_image *n, const struct event *ne, const struct cpu_image *g, const struct event *ge)
{
    struct insn i;
    if (ne->vector != VECTOR_GP || ge->vector != VECTOR_GP || is_canonical(g->rip))
        return false;
    decode_here(&i, n);
    return i.kind == INSN_RET || i.kind == INSN_JMP_INDIRECT || i.kind == INSN_CALL_INDIRECT;
}

/* Which byte of an FPU image is touched first is up to the CPU. */
static bool same_fault_address(const struct cpu_image *n, uint64_t native, uint64_t translated)
{
    struct insn i;
    decode_here(&i, n);
    if (i.kind == INSN_FXSAVE || i.kind == INSN_FXRSTOR || i.memory_size > 16)
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

static bool compare_all(const struct cpu_image *n, const struct event *ne, const struct cpu_image *g, const struct event *ge)
{
    uint64_t flags = X86_DF | X86_AC | X86_ID | X86_NT;
    if (ne->vector == EVENT_END || ne->vector == VECTOR_DEBUG || (n->rflags & X86_TF))
        flags |= here.program->status_mask & ~(uint64_t)here.undefined;
    return compare_event(n, ne, ge) & compare_registers(n, g) & compare("rflags", n->rflags & flags, g->rflags & flags) &
           compare_fpu(n->fx, g->fx) & compare_memory(here.program);
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

/* Masks and clears the exception, and lets the instruction run again. */
static bool repair_fpu(struct cpu_image *n, struct cpu_image *g, unsigned vector)
{
    struct cpu_image *both[2] = {n, g};
    for (unsigned k = 0; k < 2; k++) {
        if (vector == VECTOR_SIMD)
            *(uint32_t *)(both[k]->fx + 24) = 0x1f80;
        else
            *(uint16_t *)(both[k]->fx + 2) &= 0x7f00;
    }
    engine()->set_fpu(v, g->fx);
    return true;
}

/* Makes the page accessible as the access wants it. False: not ours, or code that the program may not write. */
static bool repair(struct cpu_image *n, struct cpu_image *g, const struct event *e)
{
    uint64_t cr2 = e->cr2;
    if (e->vector == VECTOR_SIMD || e->vector == VECTOR_X87)
        return repair_fpu(n, g, e->vector);
    unsigned page;
    int w = window_of(cr2, &page);
    if (e->vector != VECTOR_PAGE_FAULT || w < 0)
        return false;
    bool fetch = e->error & 16, write = e->error & 2, code = w == WINDOW_CODE;
    if ((fetch && !code) || (write && code) || w == WINDOW_CODE_ALIAS)
        return false;
    protect(w, page, code ? PERM_RX : PERM_RW);
    return true;
}

/* On at the next resume point, with flags that both sides know. */
static void resume(struct cpu_image *n)
{
    const struct program *p = here.program;
    uint64_t to = p->end;
    here.undefined = 0;
    for (unsigned k = 0; k < p->nr_resumes; k++) {
        uint64_t at = blob.resume[p->first_resume + k];
        if (CODE_START + at > n->rip && at < to)
            to = at;
    }
    n->rip = CODE_START + to;
    n->rflags = (n->rflags & ~(uint64_t)(X86_STATUS | X86_RF)) | (random64() & X86_STATUS);
    v->cpu->rip = n->rip + (here.mode == KERNEL_HIGH ? HIGH_BASE : 0);
    cpu_set_rflags(v->cpu, n->rflags);
}

#define MAX_EVENTS 400
static bool lockstep(struct cpu_image *n)
{
    struct cpu_image g;
    struct event ne, ge;
    unsigned limit = options.trace ? 100000 : MAX_EVENTS;
    for (here.event = 0; here.event < limit; here.event++) {
        if (n->rflags & X86_TF)
            note_undefined(n);
        native_step(n, &ne, here.program);
        guest_run(&g, &ge);
        totals.events++;
        if (options.verbose)
            fprintf(stderr, "program %u run %u event %u: vector %u at %llx\n", here.index, here.run, here.event, ne.vector,
                    (unsigned long long)n->rip);
        if (ne.vector == VECTOR_ALIGNMENT || is_wild_branch(n, &ne, &g, &ge)) /* EFLAGS.AC has no effect here */
            return true;
        if (!compare_all(n, &ne, &g, &ge))
            return false;
        if (ne.vector == EVENT_END)
            return true;
        if (ne.vector != VECTOR_DEBUG && !repair(n, &g, &ne))
            resume(n);
    }
    return true;
}

/* One instruction that the guest must not have, whatever the host can do. */
static bool must_be_invalid(struct cpu_image *n)
{
    struct cpu_image g;
    struct event ge, expected = {.vector = VECTOR_INVALID};
    here.event = 0;
    guest_run(&g, &ge);
    totals.events++;
    return compare_all(n, &expected, &g, &ge);
}

static void run_once(const struct program *p)
{
    struct cpu_image state;
    random_state = p->seed + here.run * 1000003ull;
    engine()->set_mode(v, false); /* where a guest changes its tables */
    prepare_memory(p);
    initial_state(&state, p);
    guest_load(&state, here.mode);
    here.undefined = 0;
    totals.runs++;
    if (!(p->flags & PROGRAM_INVALID ? must_be_invalid(&state) : lockstep(&state))) {
        totals.mismatches++;
        printf("{\"failed\": %u}\n", here.index);
    }
    restore_permissions(p);
}

static void run_program(unsigned index)
{
    static const enum mode order[] = {USER, USER, KERNEL_HIGH, KERNEL_HIGH, KERNEL, USER};
    const struct program *p = &blob.program[index];
    uint64_t before = totals.mismatches;
    here.program = p;
    here.index = index;
    totals.programs++;
    for (unsigned run = 0; run < options.runs && totals.mismatches == before; run++) {
        here.run = run;
        here.mode = order[run % ARRAY_SIZE(order)];
        if (here.mode == KERNEL_HIGH && (p->flags & PROGRAM_NOT_HIGH))
            here.mode = KERNEL;
        alarm(options.seconds);
        run_once(p);
    }
}

/* ---- disturbance ------------------------------------------------------------------------------------------------ */

static uint64_t disturb_state = 12345;
static unsigned random_below(unsigned n)
{
    disturb_state = disturb_state * 6364136223846793005ull + 1442695040888963407ull;
    return (disturb_state >> 33) % n;
}

static uint64_t nr_disturbed;
static void kill_code_at(struct vcpu *curr, uint64_t pc)
{
    mfn_t mfn = mmu_fetch_frame(curr->engine, pc);
    if (!mfn_eq(mfn, INVALID_MFN))
        engine()->frame_written(curr->domain, curr, frame_page(curr->domain->hv, mfn));
}

static void disturb_now(struct domain *d, struct vcpu *curr)
{
    if (random_below(options.disturb_every))
        return;
    nr_disturbed++;
    struct page_info *data = guest_page_info(m, POOL_DATA, random_below(DATA_PAGES));
    switch (random_below(9)) {
    case 0: engine()->flush_tlb(d, curr, curr, FLUSH_ALL); break;
    case 1: engine()->flush_tlb(d, curr, NULL, FLUSH_USER_HALF); break;
    case 2: kill_code_at(curr, curr->cpu->rip); break;
    case 3: engine()->flush_page(d, curr, NULL, windows[WINDOW_DATA].vaddr + random_below(DATA_PAGES) * PAGE_SIZE); break;
    case 4: engine()->revoke_frame(d, curr, data, random_below(2)); break;
    case 5: engine()->revoke_frame(d, curr, guest_page_info(m, POOL_STACK, random_below(STACK_PAGES)), random_below(2)); break;
    case 6: engine()->unmap_code(d, curr, guest_page_info(m, POOL_CODE, random_below(CODE_PAGES))); break;
    case 7: vcpu_kick(curr); break;
    case 8:
        if (!random_below(8) && !curr->engine->in_helper) /* nobody flushes while this vCPU waits in a helper */
            cache_flush(curr->engine);
        break;
    }
}

static void *kick_thread(void *unused)
{
    (void)unused;
    for (;;) {
        struct timespec pause = {.tv_nsec = options.kick_us * 1000l};
        nanosleep(&pause, NULL);
        vcpu_kick(v);
    }
    return NULL;
}

static void start_kicks(void)
{
    pthread_t thread;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (pthread_create(&thread, NULL, kick_thread, NULL))
        die("no thread");
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* ---- main ------------------------------------------------------------------------------------------------------- */

/* What the engine's handler passes on: a bug in it, or in translated code. */
static void on_lost_fault(int number, siginfo_t *info, void *context)
{
    const greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    struct engine_domain *ed = m->domain.engine;
    uint64_t rip = g[REG_RIP], offset = rip - (uint64_t)ed->cache;
    if (offset < CACHE_BYTES) {
        const struct block *b = block_by_host(ed, rip);
        fprintf(stderr, "code at %p:", (void *)b->checked_entry);
        for (const uint8_t *p = b->checked_entry; p < b->checked_entry + 160; p++)
            fprintf(stderr, " %02x", *p);
        fprintf(stderr, "\nsignal %d, vector %d, address %p in translated code at offset %#llx (hot to %#llx), block of pc %#llx\n",
                number, (int)g[REG_TRAPNO], info->si_addr, (unsigned long long)offset,
                (unsigned long long)(ed->hot - ed->cache), (unsigned long long)b->pc);
    } else
        fprintf(stderr, "signal %d, vector %d, address %p at %#llx\n", number, (int)g[REG_TRAPNO], info->si_addr,
                (unsigned long long)rip);
    fprintf(stderr, "guest rip %#llx rsp %#llx, host rsp %#llx r10 %#llx r11 %#llx; program %u run %u event %u mode %s\n",
            (unsigned long long)v->cpu->rip, (unsigned long long)v->cpu->regs[RSP], (unsigned long long)g[REG_RSP],
            (unsigned long long)g[REG_R10], (unsigned long long)g[REG_R11], here.index, here.run, here.event,
            mode_name[here.mode]);
    printf("{\"failed\": %u, \"mismatch\": \"signal %d\"}\n", here.index, number);
    fflush(NULL);
    _exit(5);
}

static void catch_lost_faults(void)
{
    struct sigaction action = {.sa_sigaction = on_lost_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
}

static void on_alarm(int number)
{
    (void)number;
    char text[200];
    int n = snprintf(text, sizeof(text), "{\"failed\": %u, \"mismatch\": \"no end within %u s, %s, guest rip %#llx\"}\n", here.index,
                     options.seconds, native_active ? "native" : "translated", (unsigned long long)v->cpu->rip);
    if (write(1, text, n) < 0 || 1)
        _exit(4);
}

static void print_totals(void)
{
    struct engine_statistics s;
    engine()->statistics(&m->domain, &s);
    printf("{\"programs\": %llu, \"runs\": %llu, \"events\": %llu, \"mismatches\": %llu, \"kicks\": %llu, "
           "\"disturbed\": %llu, \"blocks\": %llu, \"translated\": %llu, \"killed\": %llu, \"cache_flushes\": %llu, "
           "\"single_steps\": %llu, \"code_bytes\": %llu}\n",
           (unsigned long long)totals.programs, (unsigned long long)totals.runs, (unsigned long long)totals.events,
           (unsigned long long)totals.mismatches, (unsigned long long)nr_kicks, (unsigned long long)nr_disturbed,
           (unsigned long long)s.blocks, (unsigned long long)s.instructions, (unsigned long long)s.blocks_killed,
           (unsigned long long)s.cache_flushes, (unsigned long long)s.single_steps, (unsigned long long)s.code_bytes);
}

static const char *parse(int argc, char **argv)
{
    int c;
    static const struct option longer[] = {{"runs", 1, 0, 'r'},    {"kick-us", 1, 0, 'k'}, {"disturb", 1, 0, 'd'},
                                           {"cache-kib", 1, 0, 'c'}, {"only", 1, 0, 'o'},  {"trace", 0, 0, 't'},
                                           {"seconds", 1, 0, 's'}, {"verbose", 0, 0, 'v'}, {0}};
    while ((c = getopt_long(argc, argv, "", longer, NULL)) != -1)
        switch (c) {
        case 'r': options.runs = atoi(optarg); break;
        case 'k': options.kick_us = atoi(optarg); break;
        case 'd': options.disturb_every = atoi(optarg); break;
        case 'c': options.cache_kib = atoi(optarg); break;
        case 'o': options.only = atoi(optarg); break;
        case 's': options.seconds = atoi(optarg); break;
        case 't': options.trace = true; break;
        case 'v': options.verbose = true; break;
        default: die("unknown option");
        }
    if (optind != argc - 1)
        die("usage: harness [options] FILE");
    return argv[optind];
}

int main(int argc, char **argv)
{
    load(parse(argc, argv));
    catch_lost_faults();
    m = machine_create(1);
    v = &m->vcpu[0];
    if (engine()->pcpu_start(&m->hv))
        die("no pCPU");
    native_init(m);
    struct sigaction alarm_action = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK};
    sigaction(SIGALRM, &alarm_action, NULL);
    load_code();
    if (options.cache_kib) { /* room for little more than a block or two */
        struct engine_domain *ed = m->domain.engine;
        ed->hot_end = ed->hot_start + options.cache_kib * 1024;
    }
    if (options.disturb_every)
        disturb = disturb_now;
    if (options.kick_us)
        start_kicks();
    for (unsigned k = 0; k < blob.header->nr_programs; k++)
        if (options.only == ~0u || options.only == k)
            run_program(k);
    print_totals();
    fflush(stdout);
    _exit(totals.mismatches ? 1 : 0);
}
