/*
 * What other vCPUs and backends could do to a running one at any time.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <time.h>

#include "harness.h"

static __thread uint64_t disturb_state = 12345;
static unsigned random_below(unsigned n)
{
    disturb_state = disturb_state * 6364136223846793005ull + 1442695040888963407ull;
    return (disturb_state >> 33) % n;
}

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
    totals.disturbed++;
    struct page_info *data = guest_page_info(m, POOL_DATA, random_below(DATA_PAGES * options.vcpus));
    struct page_info *stack = guest_page_info(m, POOL_STACK, random_below(STACK_PAGES * options.vcpus));
    switch (random_below(9)) {
    case 0: engine()->flush_tlb(d, curr, curr, FLUSH_ALL); break;
    case 1: engine()->flush_tlb(d, curr, NULL, FLUSH_USER_HALF); break;
    case 2: kill_code_at(curr, curr->cpu->rip); break;
    case 3: engine()->flush_page(d, curr, NULL, windows[WINDOW_DATA].vaddr + random_below(DATA_PAGES) * PAGE_SIZE); break;
    case 4: engine()->revoke_frame(d, curr, data, random_below(2)); break;
    case 5: engine()->revoke_frame(d, curr, stack, random_below(2)); break;
    case 6: engine()->unmap_code(d, curr, guest_page_info(m, POOL_CODE, random_below(CODE_PAGES))); break;
    case 7: vcpu_kick(curr); break;
    case 8:
        if (!random_below(8) && !curr->engine->in_helper) /* nobody flushes while this vCPU waits in a helper */
            cache_flush(curr->engine);
        break;
    }
}

_Atomic uint64_t kicked_at;
uint32_t latency[LATENCIES];
uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void *kick_thread(void *unused)
{
    (void)unused;
    for (;;) {
        struct timespec pause = {.tv_nsec = options.kick_us * 1000l};
        nanosleep(&pause, NULL);
        atomic_store(&kicked_at, now_ns());
        for (unsigned k = 0; k < options.vcpus; k++)
            vcpu_kick(&m->vcpu[k]);
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

void disturb_start(void)
{
    if (options.disturb_every)
        disturb = disturb_now;
    if (options.kick_us)
        start_kicks();
}
