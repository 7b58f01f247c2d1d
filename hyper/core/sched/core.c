/*
 * The mechanism of scheduling: pCPU threads, vCPU states, time accounts. Who runs next is the policy's choice.
 *
 * A vCPU is in one of four places, all changed under sched_lock: running (a pCPU thread is in vcpu_run with it), queued
 * (the policy has it), blocked, or held (offline, paused, its domain ended). A pCPU thread asks the policy, runs what it
 * got until sched_must_stop, hands it back, asks again; without work it sleeps on a futex and costs nothing.
 *
 * No wake-up is lost: who blocks sets `blocked` and then looks for events; who sends an event sets it and then looks at
 * `blocked`. Both are sequentially consistent, so one of them sees the other. The lock-free flags that end a run (resched,
 * blocked, pause counts) are followed by a kick; a vCPU looks at them before it enters the guest and after each kick.
 *
 * Waking a pCPU is a system call, so it is done after sched_lock is dropped: sched_unlock does it.
 *
 * The slice timer is lazy: it is moved only to an earlier time, and when it fires too early it is set again. Guests that
 * block and wake thousands of times a second so touch the timer heap some thirty times.
 */
#define _GNU_SOURCE
#include "sched.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "machine.h"
#include "trace.h"

#define PCPU_NICE 5 /* backends on the same cores get through */

struct pcpu {
    struct hv *hv;
    unsigned id;
    pthread_t thread;
    bool started;
    struct vcpu *current;
    _Atomic bool resched; /* the current vCPU shall stop */
    _Atomic int awake;    /* futex: 0 only while the thread sleeps or is about to, untickled */
    struct timer slice;
    uint64_t slice_end_ns, timer_at_ns; /* when the slice ends; when the timer fires, 0: not set */
    uint64_t idle_since_ns, idle_ns;
};

/* ---- the lock and the sleep of pCPUs ---------------------------------------------------------------------------- */

static void futex_wake(_Atomic int *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }
static void futex_wait(_Atomic int *word, int value) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0); }

void sched_lock(struct hv *hv) { lock(&hv->sched_lock); }

void sched_unlock(struct hv *hv)
{
    uint64_t wake = hv->pcpus_to_wake;
    hv->pcpus_to_wake = 0;
    unlock(&hv->sched_lock);
    for (; wake; wake &= wake - 1)
        futex_wake(&hv->pcpu[__builtin_ctzll(wake)].awake);
}

struct vcpu *sched_current(struct hv *hv, unsigned pcpu) { return hv->pcpu[pcpu].current; }

bool sched_idle(struct hv *hv, unsigned pcpu)
{
    return !hv->pcpu[pcpu].current && !atomic_load(&hv->pcpu[pcpu].awake);
}

static void stop_current(struct pcpu *p)
{
    atomic_store(&p->resched, true);
    if (p->current)
        vcpu_kick(p->current);
}

void sched_tickle(struct hv *hv, unsigned pcpu)
{
    struct pcpu *p = &hv->pcpu[pcpu];
    if (p->current)
        stop_current(p);
    else if (!atomic_exchange(&p->awake, 1))
        hv->pcpus_to_wake |= 1ull << pcpu;
}

/* ---- slices ----------------------------------------------------------------------------------------------------- */

static void set_slice_end(struct pcpu *p, uint64_t when_ns)
{
    p->slice_end_ns = when_ns;
    if (!p->timer_at_ns || when_ns < p->timer_at_ns) {
        p->timer_at_ns = when_ns;
        timer_set(&p->slice, when_ns);
    }
}

void sched_tickle_at(struct hv *hv, unsigned pcpu, uint64_t when_ns)
{
    struct pcpu *p = &hv->pcpu[pcpu];
    if (when_ns < p->slice_end_ns)
        set_slice_end(p, when_ns);
}

static void slice_timer(void *data)
{
    struct pcpu *p = data;
    sched_lock(p->hv);
    p->timer_at_ns = 0;
    if (p->current) {
        if (hv_now(p->hv) >= p->slice_end_ns)
            stop_current(p);
        else
            set_slice_end(p, p->slice_end_ns);
    }
    sched_unlock(p->hv);
}

/* ---- time accounts ---------------------------------------------------------------------------------------------- */

/* sched_lock held. */
static void change_runstate(struct vcpu *v, int state, uint64_t now)
{
    struct vcpu_runstate_info *r = &v->runstate;
    if (r->state == state)
        return;
    if (now > r->state_entry_time)
        r->time[r->state] += now - r->state_entry_time;
    r->state = state;
    r->state_entry_time = now;
}

/* Of a vCPU that neither runs nor is queued. */
static int resting_state(const struct vcpu *v)
{
    return atomic_load(&v->sched.blocked) && atomic_load(&v->online) ? RUNSTATE_blocked : RUNSTATE_offline;
}

static void runstate_now(const struct vcpu *v, struct vcpu_runstate_info *out, uint64_t now)
{
    *out = v->runstate;
    if (now > out->state_entry_time)
        out->time[out->state] += now - out->state_entry_time;
}

void vcpu_runstate_get(struct vcpu *v, struct vcpu_runstate_info *out)
{
    struct hv *hv = v->domain->hv;
    sched_lock(hv);
    runstate_now(v, out, hv_now(hv));
    sched_unlock(hv);
}

uint64_t domain_cpu_time(struct domain *d)
{
    struct vcpu_runstate_info r;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < d->max_vcpus; i++) {
        if (!d->vcpu[i])
            continue;
        vcpu_runstate_get(d->vcpu[i], &r);
        sum += r.time[RUNSTATE_running];
    }
    return sum;
}

/* The guest's own copy, written before the vCPU goes on running. It is the guest's virtual address, of its kernel mode, so
 * a vCPU stopped in user mode misses this update. The lock stands for in_guest. */
static void write_guest_runstate(struct vcpu *v)
{
    struct domain *d = v->domain;
    uint64_t vaddr = __atomic_load_n(&v->runstate_guest_vaddr, __ATOMIC_RELAXED);
    if (!vaddr || v->cpu->user_mode)
        return;
    struct vcpu_runstate_info r = v->runstate; /* only we change it now */
    bool flagged = d->vm_assist >> VMASST_TYPE_runstate_update_flag & 1;
    uint64_t entered = r.state_entry_time;
    uint64_t entry_vaddr = vaddr + offsetof(struct vcpu_runstate_info, state_entry_time);
    domain_lock(d, NULL);
    if (flagged) {
        r.state_entry_time |= XEN_RUNSTATE_UPDATE;
        engine()->write(v, entry_vaddr, &r.state_entry_time, sizeof(r.state_entry_time));
    }
    engine()->write(v, vaddr, &r, sizeof(r));
    if (flagged)
        engine()->write(v, entry_vaddr, &entered, sizeof(entered));
    domain_unlock(d, NULL);
}

/* ---- vCPU states ------------------------------------------------------------------------------------------------ */

bool vcpu_runnable(const struct vcpu *v)
{
    const struct domain *d = v->domain;
    return atomic_load(&v->online) && !atomic_load(&v->sched.blocked) && !atomic_load(&v->pause_count) &&
           !atomic_load(&d->pause_count) && !atomic_load(&d->is_shutting_down) && !atomic_load(&d->dying);
}

bool sched_must_stop(const struct vcpu *v)
{
    const struct hv *hv = v->domain->hv;
    return atomic_load(&hv->pcpu[v->sched.pcpu].resched) || !vcpu_runnable(v) || atomic_load(&hv->stopping);
}

static void wake_locked(struct hv *hv, struct vcpu *v)
{
    if (v->sched.running || v->sched.queued)
        return;
    bool runnable = vcpu_runnable(v);
    change_runstate(v, runnable ? RUNSTATE_runnable : resting_state(v), hv_now(hv));
    if (runnable) {
        v->sched.queued = true;
        hv->scheduler->wake(hv, v);
    }
}

void vcpu_wake(struct vcpu *v)
{
    struct hv *hv = v->domain->hv;
    sched_lock(hv);
    wake_locked(hv, v);
    sched_unlock(hv);
}

static void stop_if_held(struct hv *hv, struct vcpu *v)
{
    if (vcpu_runnable(v))
        return;
    if (v->sched.queued) {
        v->sched.queued = false;
        hv->scheduler->sleep(hv, v);
    }
    if (v->sched.running)
        vcpu_kick(v);
    else
        change_runstate(v, resting_state(v), hv_now(hv));
}

void vcpu_sleep(struct vcpu *v, bool sync)
{
    struct hv *hv = v->domain->hv;
    sched_lock(hv);
    stop_if_held(hv, v);
    if (sync && v->sched.running) {
        sched_unlock(hv); /* with the wake-ups */
        sched_lock(hv);
    }
    while (sync && v->sched.running)
        pthread_cond_wait(&hv->vcpu_stopped, &hv->sched_lock);
    sched_unlock(hv);
}

void vcpu_block(struct vcpu *v)
{
    atomic_store(&v->sched.blocked, true);
    if (vcpu_event_pending(v))
        atomic_store(&v->sched.blocked, false);
}

bool vcpu_unblock(struct vcpu *v)
{
    struct hv *hv = v->domain->hv;
    if (!atomic_load(&v->sched.blocked))
        return false;
    sched_lock(hv);
    if (atomic_exchange(&v->poll_port, 0))
        atomic_fetch_sub(&v->domain->nr_pollers, 1);
    bool was_blocked = atomic_exchange(&v->sched.blocked, false);
    wake_locked(hv, v);
    sched_unlock(hv);
    return was_blocked;
}

void vcpu_yield(struct vcpu *v)
{
    struct hv *hv = v->domain->hv;
    v->sched.yielding = true;
    atomic_store(&hv->pcpu[v->sched.pcpu].resched, true);
}

void sched_set_affinity(struct vcpu *v, uint64_t hard, uint64_t soft)
{
    struct hv *hv = v->domain->hv;
    sched_lock(hv);
    v->sched.hard_affinity = hard;
    v->sched.soft_affinity = soft;
    if (v->sched.queued) {
        hv->scheduler->sleep(hv, v);
        hv->scheduler->wake(hv, v);
    } else if (v->sched.running && !(hard >> v->sched.pcpu & 1)) {
        stop_current(&hv->pcpu[v->sched.pcpu]);
    }
    sched_unlock(hv);
}

/* ---- pCPU threads ----------------------------------------------------------------------------------------------- */

/* sched_lock held. */
static void begin_run(struct pcpu *p, const struct sched_decision *next)
{
    struct vcpu *v = next->vcpu;
    uint64_t now = hv_now(p->hv);
    v->sched.queued = false;
    v->sched.running = true;
    v->sched.pcpu = p->id;
    v->sched.started_ns = now;
    p->current = v;
    atomic_store(&p->resched, false);
    change_runstate(v, RUNSTATE_running, now);
    set_slice_end(p, now + next->slice_ns);
}

/* sched_lock held. */
static void end_run(struct pcpu *p, struct vcpu *v)
{
    struct hv *hv = p->hv;
    uint64_t now = hv_now(hv);
    p->current = NULL;
    v->sched.running = false;
    v->sched.queued = vcpu_runnable(v);
    change_runstate(v, v->sched.queued ? RUNSTATE_runnable : resting_state(v), now);
    hv->scheduler->put_prev(hv, p->id, v, now - v->sched.started_ns);
    v->sched.yielding = false;
    pthread_cond_broadcast(&hv->vcpu_stopped);
    if (atomic_load(&v->domain->is_shutting_down))
        hv_post_work(hv);
}

static void run_engine(struct pcpu *p, struct vcpu *v)
{
    trace_record(p->hv, TRACE_run, v->domain->id, (uint16_t)v->id, p->id, 0);
    write_guest_runstate(v);
    engine()->switch_in(v);
    vcpu_run(v);
    engine()->switch_out(v);
    atomic_store(&v->in_guest, false);
    trace_record(p->hv, TRACE_stop, v->domain->id, (uint16_t)v->id, p->id, 0);
}

static void run(struct pcpu *p, const struct sched_decision *next)
{
    struct vcpu *v = next->vcpu;
    begin_run(p, next);
    sched_unlock(p->hv);
    if (vcpu_runnable(v)) /* else it was paused while it waited */
        run_engine(p, v);
    sched_lock(p->hv);
    end_run(p, v);
}

/* sched_lock held. */
static void idle(struct pcpu *p)
{
    struct hv *hv = p->hv;
    uint64_t since = hv_now(hv);
    p->idle_since_ns = since;
    atomic_store(&p->awake, 0);
    sched_unlock(hv);
    while (!atomic_load(&p->awake) && !atomic_load(&hv->stopping))
        futex_wait(&p->awake, 0);
    sched_lock(hv);
    atomic_store(&p->awake, 1);
    p->idle_ns += hv_now(hv) - since;
    p->idle_since_ns = 0;
}

static void *pcpu_thread(void *data)
{
    struct pcpu *p = data;
    struct hv *hv = p->hv;
    prctl(PR_SET_TIMERSLACK, 1000ul);
    if (engine()->pcpu_start(hv))
        hv_bug(__FILE__, __LINE__, "the engine could not start on a pCPU thread");
    sched_lock(hv);
    while (!atomic_load(&hv->stopping)) {
        struct sched_decision next = hv->scheduler->pick(hv, p->id);
        if (next.vcpu)
            run(p, &next);
        else
            idle(p);
    }
    sched_unlock(hv);
    engine()->pcpu_stop(hv);
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static const struct scheduler *find_policy(const char *name)
{
    static const struct scheduler *const policy[] = {&sched_credit, &sched_null};
    if (!name)
        return &sched_credit;
    for (unsigned i = 0; i < ARRAY_SIZE(policy); i++)
        if (!strcmp(policy[i]->name, name))
            return policy[i];
    return NULL;
}

int sched_init(struct hv *hv)
{
    hv->scheduler = find_policy(hv->config.scheduler);
    if (!hv->scheduler)
        return -XEN_EINVAL;
    hv->pcpu = calloc(hv->config.nr_pcpus, sizeof(*hv->pcpu));
    if (!hv->pcpu)
        return -XEN_ENOMEM;
    for (unsigned i = 0; i < hv->config.nr_pcpus; i++) {
        struct pcpu *p = &hv->pcpu[i];
        p->hv = hv;
        p->id = i;
        p->awake = 1; /* its thread looks at the queue when it starts */
        p->slice_end_ns = UINT64_MAX;
        timer_init(&p->slice, hv, slice_timer, p);
    }
    return hv->scheduler->init(hv);
}

int sched_start(struct hv *hv)
{
    for (unsigned i = 0; i < hv->config.nr_pcpus; i++) {
        struct pcpu *p = &hv->pcpu[i];
        char name[16];
        snprintf(name, sizeof(name), "umxen-cpu%u", i % 1000);
        int rc = hv_thread_create(&p->thread, name, PCPU_NICE, pcpu_thread, p);
        if (rc)
            return rc;
        p->started = true;
    }
    return 0;
}

/* hv->stopping is set. */
void sched_stop(struct hv *hv)
{
    for (unsigned i = 0; i < hv->config.nr_pcpus; i++) {
        sched_lock(hv);
        sched_tickle(hv, i);
        sched_unlock(hv);
        futex_wake(&hv->pcpu[i].awake);
        if (hv->pcpu[i].started)
            pthread_join(hv->pcpu[i].thread, NULL);
        hv->pcpu[i].started = false;
    }
}

void sched_destroy(struct hv *hv)
{
    if (hv->sched_priv)
        hv->scheduler->destroy(hv);
    free(hv->pcpu);
    hv->pcpu = NULL;
}

static uint64_t all_pcpus(const struct hv *hv) { return ~0ull >> (64 - hv->config.nr_pcpus); }

int sched_vcpu_init(struct vcpu *v)
{
    struct hv *hv = v->domain->hv;
    list_init(&v->sched.run_queue);
    v->sched.hard_affinity = v->sched.soft_affinity = ~0ull;
    v->sched.pcpu = (v->domain->id + v->id) % (unsigned)__builtin_popcountll(all_pcpus(hv));
    sched_lock(hv);
    int rc = hv->scheduler->vcpu_insert(hv, v);
    sched_unlock(hv);
    return rc;
}

void sched_vcpu_destroy(struct vcpu *v)
{
    struct hv *hv = v->domain->hv;
    sched_lock(hv);
    ASSERT(!v->sched.running);
    stop_if_held(hv, v);
    hv->scheduler->vcpu_remove(hv, v);
    sched_unlock(hv);
}

/* ---- questions -------------------------------------------------------------------------------------------------- */

uint64_t sched_idle_time(struct hv *hv, unsigned pcpu)
{
    struct pcpu *p = &hv->pcpu[pcpu];
    sched_lock(hv);
    uint64_t ns = p->idle_ns + (p->idle_since_ns ? hv_now(hv) - p->idle_since_ns : 0);
    sched_unlock(hv);
    return ns;
}

void sched_dump(struct hv *hv)
{
    sched_lock(hv);
    for (unsigned i = 0; i < hv->config.nr_pcpus; i++) {
        const struct vcpu *v = hv->pcpu[i].current;
        if (v)
            hv_printk(hv, "CPU%u: d%uv%u", i, v->domain->id, v->id);
        else
            hv_printk(hv, "CPU%u: idle", i);
    }
    if (hv->scheduler->dump)
        hv->scheduler->dump(hv);
    sched_unlock(hv);
}
