/*
 * Two vCPUs at once, each with data and stack of its own at the same addresses, over the same code: the code cache, its
 * links and its death are shared. Every program first runs natively, and what it leaves is kept; then two threads run all
 * programs again and again, in different orders, and compare. Programs that meet an event before their end are left out.
 */
#define _GNU_SOURCE
#include <unistd.h>

#include "harness.h"

#define PAGES (DATA_PAGES + STACK_PAGES)
struct result {
    bool usable;
    struct cpu_image state;
    uint8_t memory[PAGES][PAGE_SIZE];
};
static struct result *results;

static const struct { enum pool pool; unsigned pages; } private_pools[] = {
    {POOL_DATA, DATA_PAGES},
    {POOL_STACK, STACK_PAGES},
};

static void run_natively(unsigned index)
{
    const struct program *p = &blob.program[index];
    struct result *r = &results[index];
    struct event e;
    here = (struct here){.program = p, .index = index};
    random_state = p->seed;
    prepare_memory(p);
    initial_state(&r->state, p);
    native_step(&r->state, &e, p);
    r->usable = e.vector == EVENT_END && !(p->flags & PROGRAM_WRITES_CODE);
    unsigned at = 0;
    for (unsigned k = 0; k < ARRAY_SIZE(private_pools); k++)
        for (unsigned n = 0; n < private_pools[k].pages; n++)
            memcpy(r->memory[at++], native_page(private_pools[k].pool, n), PAGE_SIZE);
    restore_permissions(p);
}

/* Page n of what this vCPU has of a pool. */
static uint8_t *own_page(unsigned k, unsigned n)
{
    return guest_page(m, private_pools[k].pool, n + v->id * private_pools[k].pages);
}

static void fill_own_memory(void)
{
    for (unsigned k = 0; k < ARRAY_SIZE(private_pools); k++)
        for (unsigned n = 0; n < private_pools[k].pages; n++)
            for (unsigned word = 0; word < PAGE_SIZE / 8; word++)
                ((uint64_t *)own_page(k, n))[word] = random_word();
}

static bool own_memory_is(const struct result *r)
{
    unsigned at = 0;
    for (unsigned k = 0; k < ARRAY_SIZE(private_pools); k++)
        for (unsigned n = 0; n < private_pools[k].pages; n++, at++)
            if (memcmp(own_page(k, n), r->memory[at], PAGE_SIZE)) {
                mismatch(k ? "stack" : "data", n, n);
                return false;
            }
    return true;
}

static bool run_again(unsigned index)
{
    const struct program *p = &blob.program[index];
    const struct result *r = &results[index];
    struct cpu_image state;
    struct event e;
    random_state = p->seed;
    fill_own_memory();
    initial_state(&state, p);
    guest_load(&state, here.mode);
    guest_run(&state, &e);
    totals.runs++;
    if (e.vector != EVENT_END) {
        mismatch("vector", EVENT_END, e.vector);
        return false;
    }
    return compare_state(&r->state, &state, X86_DF | p->status_mask) & own_memory_is(r);
}

static void *vcpu_thread(void *vcpu)
{
    v = vcpu;
    if (v->id && engine()->pcpu_start(&m->hv))
        die("no pCPU");
    unsigned n = blob.header->nr_programs;
    for (unsigned run = 0; run < options.runs; run++)
        for (unsigned k = 0; k < n && !totals.mismatches; k++) {
            unsigned index = v->id && (run & 2) ? (k * 7 + run) % n : k; /* both about the same, or far apart */
            if (!results[index].usable)
                continue;
            here = (struct here){.program = &blob.program[index], .index = index, .run = run};
            here.mode = run & 1 ? KERNEL : USER;
            alarm(options.seconds);
            if (run_again(index))
                continue;
            totals.mismatches++;
            printf("{\"failed\": %u}\n", index);
        }
    return NULL;
}

/* Programs 0 and 1 at the same time, once in each mode: they judge themselves, and leave 0 in r15 when all was well. */
static void *pair_thread(void *vcpu)
{
    v = vcpu;
    if (v->id && engine()->pcpu_start(&m->hv))
        die("no pCPU");
    const struct program *p = &blob.program[v->id];
    here = (struct here){.program = p, .index = v->id, .mode = options.runs & 1 ? KERNEL : USER};
    struct cpu_image state;
    struct event e;
    random_state = p->seed;
    initial_state(&state, p);
    guest_load(&state, here.mode);
    alarm(options.seconds);
    guest_run(&state, &e);
    totals.runs++;
    if (e.vector == EVENT_END && !state.regs[R15])
        return NULL;
    mismatch("its own judgement", 0, e.vector == EVENT_END ? state.regs[R15] : e.vector);
    totals.mismatches++;
    return NULL;
}

static void run_on_both(void *(*function)(void *))
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, function, &m->vcpu[1]))
        die("no thread");
    function(&m->vcpu[0]);
    pthread_join(thread, NULL);
}

void smp_run(void)
{
    if (options.pair) {
        run_on_both(pair_thread);
        return;
    }
    size_t bytes = blob.header->nr_programs * sizeof(*results);
    results = aligned_alloc(64, bytes);
    if (!results)
        die("no memory");
    memset(results, 0, bytes);
    for (unsigned k = 0; k < blob.header->nr_programs; k++, totals.programs++)
        run_natively(k);
    run_on_both(vcpu_thread);
}
