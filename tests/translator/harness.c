/*
 * The program: options, what to do with faults of its own, totals. See README.md, then lockstep.c.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include "harness.h"

struct options options = {.runs = 6, .only = ~0u, .seconds = 30, .vcpus = 1};
struct totals totals;
struct machine *m;
__thread struct vcpu *v;
__thread struct here here;

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
        fprintf(stderr, "\nsignal %d, vector %d, address %p in translated code at offset %#llx (hot to %#llx), "
                "block of pc %#llx\n",
                number, (int)g[REG_TRAPNO], info->si_addr, (unsigned long long)offset,
                (unsigned long long)(ed->hot - ed->cache), (unsigned long long)b->pc);
    } else
        fprintf(stderr, "signal %d, vector %d, address %p at %#llx\n", number, (int)g[REG_TRAPNO], info->si_addr,
                (unsigned long long)rip);
    fprintf(stderr, "guest rip %#llx rsp %#llx, host rsp %#llx r10 %#llx r11 %#llx; program %u run %u event %u\n",
            (unsigned long long)v->cpu->rip, (unsigned long long)v->cpu->regs[RSP], (unsigned long long)g[REG_RSP],
            (unsigned long long)g[REG_R10], (unsigned long long)g[REG_R11], here.index, here.run, here.event);
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
    const char *side = native_active ? "native" : "translated";
    native_abandon();
    int n = snprintf(text, sizeof(text), "{\"failed\": %u, \"mismatch\": \"no end within %u s, %s, guest rip %#llx\"}\n",
                     here.index, options.seconds, side, (unsigned long long)v->cpu->rip);
    if (write(1, text, n) < 0 || 1)
        _exit(4);
}

static int by_size(const void *a, const void *b) { return *(const uint32_t *)a < *(const uint32_t *)b ? -1 : 1; }

/* Microseconds of one in two, and of one in a hundred kicks. */
static void kick_latency(double *median, double *slow)
{
    unsigned n = totals.kicks < LATENCIES ? totals.kicks : LATENCIES;
    qsort(latency, n, sizeof(*latency), by_size);
    *median = n ? latency[n / 2] / 1e3 : 0;
    *slow = n ? latency[n - 1 - n / 100] / 1e3 : 0;
}

static void print_totals(void)
{
    double median, slow;
    kick_latency(&median, &slow);
    struct engine_statistics s;
    engine()->statistics(&m->domain, &s);
    printf("{\"programs\": %llu, \"runs\": %llu, \"events\": %llu, \"mismatches\": %llu, \"kicks\": %llu, "
           "\"disturbed\": %llu, \"blocks\": %llu, \"translated\": %llu, \"killed\": %llu, \"cache_flushes\": %llu, "
           "\"single_steps\": %llu, \"code_bytes\": %llu, \"kick_us\": %.1f, \"slow_kick_us\": %.1f}\n",
           (unsigned long long)totals.programs, (unsigned long long)totals.runs, (unsigned long long)totals.events,
           (unsigned long long)totals.mismatches, (unsigned long long)totals.kicks, (unsigned long long)totals.disturbed,
           (unsigned long long)s.blocks, (unsigned long long)s.instructions, (unsigned long long)s.blocks_killed,
           (unsigned long long)s.cache_flushes, (unsigned long long)s.single_steps, (unsigned long long)s.code_bytes, median, slow);
}

static const char *parse(int argc, char **argv)
{
    int c;
    static const struct option longer[] = {{"runs", 1, 0, 'r'},    {"kick-us", 1, 0, 'k'}, {"disturb", 1, 0, 'd'},
                                           {"cache-kib", 1, 0, 'c'}, {"only", 1, 0, 'o'},  {"trace", 0, 0, 't'},
                                           {"seconds", 1, 0, 's'}, {"vcpus", 1, 0, 'p'}, {"pair", 0, 0, '2'},
                                           {"verbose", 0, 0, 'v'}, {"mask", 1, 0, 'm'}, {0}};
    while ((c = getopt_long(argc, argv, "", longer, NULL)) != -1)
        switch (c) {
        case 'r': options.runs = atoi(optarg); break;
        case 'k': options.kick_us = atoi(optarg); break;
        case 'd': options.disturb_every = atoi(optarg); break;
        case 'c': options.cache_kib = atoi(optarg); break;
        case 'o': options.only = atoi(optarg); break;
        case 'p': options.vcpus = atoi(optarg); break;
        case '2': options.pair = true, options.vcpus = 2; break;
        case 's': options.seconds = atoi(optarg); break;
        case 't': options.trace = true; break;
        case 'm': options.masked = strtoull(optarg, NULL, 0); break;
        case 'v': options.verbose = true; break;
        default: die("unknown option");
        }
    if (optind != argc - 1)
        die("usage: harness [options] FILE");
    return argv[optind];
}

int main(int argc, char **argv)
{
    blob_load(parse(argc, argv));
    catch_lost_faults();
    m = machine_create(options.vcpus, options.masked);
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
    disturb_start();
    if (options.vcpus > 1)
        smp_run();
    for (unsigned k = 0; options.vcpus == 1 && k < blob.header->nr_programs; k++)
        if (options.only == ~0u || options.only == k)
            run_program(k);
    print_totals();
    fflush(stdout);
    _exit(totals.mismatches ? 1 : 0);
}
