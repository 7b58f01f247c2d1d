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
#include <unistd.h>

#include "harness.h"

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
    engine()->set_xstate(v, &g->x);
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
    unsigned limit = options.trace ? 5000 : MAX_EVENTS;
    for (here.event = 0; here.event < limit; here.event++) {
        if (n->rflags & X86_TF)
            note_undefined(n);
        uint64_t before = n->rip;
        native_step(n, &ne, here.program);
        if (ne.vector == VECTOR_DEBUG && n->rip == before) /* between two elements of a string instruction */
            here.undefined |= here.partial;
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

void run_program(unsigned index)
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
        if (here.mode == KERNEL_HIGH && (p->flags & (PROGRAM_NOT_HIGH | PROGRAM_COMPAT)))
            here.mode = KERNEL;
        alarm(options.seconds);
        run_once(p);
    }
}
