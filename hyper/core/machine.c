/*
 * The machine: made, started, stopped. Dom0 is part of it from the beginning: a process domain, privileged, whose work is
 * done by connections (conn.c).
 *
 * Threads: one per physical CPU (sched/core.c), one for timers (timer.c), one for doorbells and deferred work (conn.c),
 * one per hypercall ring (hcall_ring.c).
 * They run C only and take no signal but those of faults, which engines use.
 */
#define _GNU_SOURCE
#include "machine.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "grant_table.h"
#include "hypercall.h"
#include "trace.h"

_Noreturn void hv_bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "umxen: broken invariant at %s:%d: %s\n", file, line, what);
    abort();
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

struct thread_start {
    void *(*function)(void *);
    void *argument;
    char name[16];
    int nice;
};

static void *thread_main(void *data)
{
    struct thread_start start = *(struct thread_start *)data;
    free(data);
    pthread_setname_np(pthread_self(), start.name);
    if (start.nice)
        setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), start.nice);
    return start.function(start.argument);
}

static void block_signals(sigset_t *old)
{
    static const int of_faults[] = {SIGSEGV, SIGFPE, SIGBUS, SIGILL, SIGTRAP};
    sigset_t all;
    sigfillset(&all);
    for (unsigned i = 0; i < ARRAY_SIZE(of_faults); i++)
        sigdelset(&all, of_faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, old);
}

int hv_thread_create(pthread_t *thread, const char *name, int nice, void *(*function)(void *), void *argument)
{
    struct thread_start *start = calloc(1, sizeof(*start));
    if (!start)
        return -XEN_ENOMEM;
    *start = (struct thread_start){.function = function, .argument = argument, .nice = nice};
    snprintf(start->name, sizeof(start->name), "%s", name);
    sigset_t old;
    block_signals(&old);
    int error = pthread_create(thread, NULL, thread_main, start);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error) {
        free(start);
        return -XEN_EAGAIN;
    }
    return 0;
}

/* ---- creation --------------------------------------------------------------------------------------------------- */

static int check_config(const struct hv_config *c)
{
    if (c->nr_pcpus < 1 || c->nr_pcpus > 64 * SCHED_AFFINITY_WORDS)
        return -XEN_EINVAL;
    if (!c->memory_bytes || c->memory_bytes % (2u << 20))
        return -XEN_EINVAL;
    if (c->console_bytes & (c->console_bytes - 1))
        return -XEN_EINVAL;
    return 0;
}

static void init_locks(struct hv *hv)
{
    lock_init(&hv->domctl_lock);
    lock_init(&hv->domlist_lock);
    lock_init(&hv->event_lock);
    lock_init(&hv->sched_lock);
    lock_init(&hv->heap_lock);
    pthread_cond_init(&hv->vcpu_stopped, NULL);
    list_init(&hv->conns);
}

/* Its connections come later. */
static int create_dom0(struct hv *hv)
{
    struct domain *d;
    int rc = domain_create(hv, 0, DOMAIN_PROCESS, 1, NULL, &d);
    if (rc)
        return rc;
    hv->dom0 = d;
    d->is_privileged = true;
    if ((rc = grant_table_init(d, 64, 1u << 20)) || (rc = process_vcpu_create(d))) {
        put_domain(d);
        return rc;
    }
    d->controller_pauses = 0;
    d->pause_count = 0;
    time_publish_wallclock(d);
    return domain_enter_list(d);
}

static int build(struct hv *hv)
{
    int rc;
    if ((rc = console_init(hv)) || (rc = trace_init(hv)) || (rc = clock_init(hv)) || (rc = timers_init(hv)) ||
        (rc = heap_init(hv)))
        return rc;
    cpu_policy_max(&hv->policy, tsc_khz(hv));
    if ((rc = sched_init(hv)))
        return rc;
    if ((rc = doorbells_init(hv)))
        return rc;
    if ((rc = engine()->machine_init(hv)))
        return rc;
    return create_dom0(hv);
}

int hv_create(const struct hv_config *config, hv_t **out)
{
    int rc = check_config(config);
    if (rc)
        return rc;
    struct hv *hv = calloc(1, sizeof(*hv));
    if (!hv)
        return -XEN_ENOMEM;
    hv->config = *config;
    hv->bank_fd = -1;
    hv->next_domid = 1;
    hv->command_line = strdup(config->command_line ? config->command_line : "");
    hv->config.command_line = hv->command_line;
    init_locks(hv);
    rc = hv->command_line ? build(hv) : -XEN_ENOMEM;
    if (rc) {
        hv_destroy(hv);
        return rc;
    }
    hv->config.scheduler = hv->scheduler->name;
    hv_printk(hv, "Xen version 4.17.0 (umxen)");
    hv_printk(hv, "Command line: %s", hv->command_line);
    hv_printk(hv, "%u CPUs, %lu MiB of memory, scheduler: %s, engine: %s", config->nr_pcpus,
              (unsigned long)(config->memory_bytes >> 20), hv->scheduler->name, engine()->name);
    hv_printk(hv, "Guests are offered %s", cpu_level(hv->policy.features));
    *out = hv;
    return 0;
}

int hv_start(hv_t *hv)
{
    int rc;
    if ((rc = timers_start(hv)) || (rc = clock_start(hv)) || (rc = doorbells_start(hv)))
        return rc;
    return sched_start(hv);
}

/* ---- destruction ------------------------------------------------------------------------------------------------ */

static void destroy_conns(struct hv *hv)
{
    while (!list_empty(&hv->conns))
        hv_conn_destroy(container_of(hv->conns.next, struct hv_conn, link));
}

static void destroy_domain(struct domain *d)
{
    while (domain_kill(d) == -XEN_ERESTART)
        ;
}

static void destroy_domains(struct hv *hv)
{
    for (unsigned id = DOMID_FIRST_RESERVED; id-- > 0;)
        if (hv->domain[id])
            destroy_domain(hv->domain[id]);
}

void hv_destroy(hv_t *hv)
{
    if (!hv)
        return;
    atomic_store(&hv->stopping, true);
    if (hv->pcpu)
        sched_stop(hv);
    if (hv->timers)
        timers_stop(hv);
    if (hv->doorbells)
        doorbells_stop(hv);
    destroy_conns(hv);
    destroy_domains(hv);
    if (hv->frame_table)
        engine()->machine_destroy(hv);
    if (hv->doorbells)
        doorbells_destroy(hv);
    if (hv->pcpu)
        sched_destroy(hv);
    if (hv->timers)
        timers_destroy(hv);
    if (hv->bank_base)
        heap_destroy(hv);
    clock_destroy(hv);
    trace_destroy(hv);
    console_destroy(hv);
    pthread_cond_destroy(&hv->vcpu_stopped);
    free(hv->command_line);
    free(hv);
}

/* ---- questions -------------------------------------------------------------------------------------------------- */

static uint32_t count_domains(struct hv *hv)
{
    uint32_t n = 0;
    lock(&hv->domlist_lock);
    for (unsigned id = 0; id < DOMID_FIRST_RESERVED; id++)
        n += hv->domain[id] != NULL;
    unlock(&hv->domlist_lock);
    return n;
}

void hv_get_statistics(hv_t *hv, struct hv_statistics *out)
{
    *out = (struct hv_statistics){.nr_domains = count_domains(hv), .nr_rings = atomic_load(&hv->nr_rings)};
    lock(&hv->event_lock);
    out->nr_ports = hv->nr_ports;
    out->nr_grant_maps = hv->nr_grant_maps;
    out->nr_conns = hv->nr_conns;
    unlock(&hv->event_lock);
    lock(&hv->heap_lock);
    out->total_frames = hv->nr_frames - 1;
    out->free_frames = hv->free_frames;
    out->nr_banks = hv->nr_banks;
    unlock(&hv->heap_lock);
}

int hv_bank_fd(hv_t *hv) { return hv->bank_fd; }
uint64_t hv_bank_bytes(hv_t *hv) { return hv->nr_frames << PAGE_SHIFT; }
uint64_t hv_max_mfn(hv_t *hv) { return hv->max_mfn; }
