/*
 * Physical CPUs and vCPUs in virtual time around hyper/core/sched/credit.c. A vCPU runs for `busy` ns, then sleeps for
 * `rest` ns, and again; busy 0 means that it never sleeps. Nothing here is smart: it does what core.c does.
 */
#include "machine.h"

#include "../public/domctl.h"

#define MAX_SIM_VCPUS 64
#define OVERHEAD_NS 20000 /* a tickled CPU stops this much later, as kicks and timers do */

struct pcpu {
    struct vcpu *current;
    bool awake;
    uint64_t end_ns; /* of the current run */
};

struct sim_vcpu {
    struct vcpu v;
    uint64_t busy_ns, rest_ns;
    uint64_t left_ns;      /* until it sleeps */
    uint64_t wakes_at_ns;  /* UINT64_MAX: it doesn't sleep */
    uint64_t ran_ns, runnable_since_ns, worst_wait_ns;
};

struct sim {
    struct hv hv;
    uint64_t now_ns;
    struct sim_vcpu *vcpu[MAX_SIM_VCPUS];
    unsigned nr_vcpus;
    struct domain *domain[MAX_SIM_VCPUS];
    unsigned nr_domains;
    struct timer *timer; /* the policy has one */
};

static struct sim *sim_of(const struct hv *hv) { return container_of(hv, struct sim, hv); }
static struct sim_vcpu *sim_vcpu_of(struct vcpu *v) { return container_of(v, struct sim_vcpu, v); }

/* ---- what the policy calls -------------------------------------------------------------------------------------- */

_Noreturn void hv_bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: %s\n", file, line, what);
    abort();
}

uint64_t hv_now(const struct hv *hv) { return sim_of(hv)->now_ns; }
void hv_printk(struct hv *hv, const char *format, ...) { (void)hv, (void)format; }
void sched_lock(struct hv *hv) { (void)hv; }
void sched_unlock(struct hv *hv) { (void)hv; }
struct vcpu *sched_current(struct hv *hv, unsigned pcpu) { return hv->pcpu[pcpu].current; }
bool sched_idle(struct hv *hv, unsigned pcpu) { return !hv->pcpu[pcpu].current && !hv->pcpu[pcpu].awake; }

void sched_tickle_at(struct hv *hv, unsigned pcpu, uint64_t when_ns)
{
    if (hv->pcpu[pcpu].current && when_ns < hv->pcpu[pcpu].end_ns)
        hv->pcpu[pcpu].end_ns = when_ns;
}

void sched_tickle(struct hv *hv, unsigned pcpu)
{
    if (hv->pcpu[pcpu].current)
        sched_tickle_at(hv, pcpu, sim_of(hv)->now_ns + OVERHEAD_NS);
    else
        hv->pcpu[pcpu].awake = true;
}

void timer_init(struct timer *t, struct hv *hv, void (*function)(void *), void *data)
{
    *t = (struct timer){.hv = hv, .function = function, .data = data};
    sim_of(hv)->timer = t;
}

void timer_set(struct timer *t, uint64_t expires_ns) { t->expires_ns = expires_ns; }
void timer_cancel(struct timer *t) { t->expires_ns = 0; }
void timer_stop(struct timer *t) { t->expires_ns = 0; }

/* ---- running ---------------------------------------------------------------------------------------------------- */

static void wake(struct sim *s, struct sim_vcpu *x)
{
    x->wakes_at_ns = UINT64_MAX;
    x->left_ns = x->busy_ns;
    x->runnable_since_ns = s->now_ns;
    x->v.sched.queued = true;
    sched_credit.wake(&s->hv, &x->v);
}

static void stop(struct sim *s, unsigned pcpu)
{
    struct pcpu *p = &s->hv.pcpu[pcpu];
    struct vcpu *v = p->current;
    struct sim_vcpu *x = sim_vcpu_of(v);
    uint64_t ran = s->now_ns - v->sched.started_ns;
    x->ran_ns += ran;
    x->left_ns -= ran < x->left_ns ? ran : x->left_ns;
    bool sleeps = x->busy_ns && !x->left_ns;
    p->current = NULL;
    v->sched.running = false;
    v->sched.queued = !sleeps;
    x->runnable_since_ns = s->now_ns;
    if (sleeps)
        x->wakes_at_ns = s->now_ns + x->rest_ns;
    p->awake = true;
    sched_credit.put_prev(&s->hv, pcpu, v, ran);
}

static void start(struct sim *s, unsigned pcpu)
{
    struct pcpu *p = &s->hv.pcpu[pcpu];
    p->awake = true;
    struct sched_decision next = sched_credit.pick(&s->hv, pcpu);
    p->awake = next.vcpu != NULL;
    if (!next.vcpu)
        return;
    struct sim_vcpu *x = sim_vcpu_of(next.vcpu);
    ASSERT(next.vcpu->sched.queued && !next.vcpu->sched.running);
    ASSERT(next.vcpu->sched.hard_affinity >> pcpu & 1);
    next.vcpu->sched.queued = false;
    next.vcpu->sched.running = true;
    next.vcpu->sched.pcpu = pcpu;
    next.vcpu->sched.started_ns = s->now_ns;
    p->current = next.vcpu;
    p->end_ns = s->now_ns + next.slice_ns;
    if (s->now_ns - x->runnable_since_ns > x->worst_wait_ns)
        x->worst_wait_ns = s->now_ns - x->runnable_since_ns;
}

static uint64_t run_end(const struct pcpu *p)
{
    const struct sim_vcpu *x = container_of(p->current, struct sim_vcpu, v);
    uint64_t sleeps = x->busy_ns ? p->current->sched.started_ns + x->left_ns : UINT64_MAX;
    return sleeps < p->end_ns ? sleeps : p->end_ns;
}

static uint64_t next_event(struct sim *s)
{
    uint64_t next = s->timer && s->timer->expires_ns ? s->timer->expires_ns : UINT64_MAX;
    for (unsigned i = 0; i < s->hv.config.nr_pcpus; i++)
        if (s->hv.pcpu[i].current && run_end(&s->hv.pcpu[i]) < next)
            next = run_end(&s->hv.pcpu[i]);
    for (unsigned i = 0; i < s->nr_vcpus; i++)
        if (s->vcpu[i]->wakes_at_ns < next)
            next = s->vcpu[i]->wakes_at_ns;
    return next > s->now_ns ? next : s->now_ns;
}

static void serve_cpus(struct sim *s)
{
    for (unsigned i = 0; i < s->hv.config.nr_pcpus; i++) {
        struct pcpu *p = &s->hv.pcpu[i];
        if (p->current && run_end(p) <= s->now_ns) {
            stop(s, i);
            start(s, i);
        }
    }
    for (unsigned i = 0; i < s->hv.config.nr_pcpus; i++)
        if (!s->hv.pcpu[i].current && s->hv.pcpu[i].awake)
            start(s, i);
}

static void step(struct sim *s)
{
    for (unsigned i = 0; i < s->nr_vcpus; i++)
        if (s->vcpu[i]->wakes_at_ns <= s->now_ns)
            wake(s, s->vcpu[i]);
    if (s->timer && s->timer->expires_ns && s->timer->expires_ns <= s->now_ns) {
        s->timer->expires_ns = 0;
        s->timer->function(s->timer->data);
    }
    serve_cpus(s);
}

/* ---- for the test ----------------------------------------------------------------------------------------------- */

struct sim *sim_new(unsigned nr_pcpus)
{
    struct sim *s = calloc(1, sizeof(*s));
    s->hv.config.nr_pcpus = nr_pcpus;
    s->hv.pcpu = calloc(nr_pcpus, sizeof(struct pcpu));
    s->now_ns = 1;
    ASSERT(!sched_credit.init(&s->hv));
    return s;
}

unsigned sim_domain(struct sim *s, unsigned weight, unsigned cap)
{
    struct domain *d = calloc(1, sizeof(*d));
    d->hv = &s->hv;
    d->id = (uint16_t)(s->nr_domains + 1);
    ASSERT(!sched_credit.domain_init(d));
    struct xen_domctl_scheduler_op op = {.cmd = XEN_DOMCTL_SCHEDOP_putinfo, .u.credit = {(uint16_t)weight, (uint16_t)cap}};
    ASSERT(!sched_credit.adjust(&s->hv, d, &op));
    s->domain[s->nr_domains] = d;
    return s->nr_domains++;
}

unsigned sim_vcpu(struct sim *s, unsigned domain, uint64_t affinity, uint64_t busy_ns, uint64_t rest_ns)
{
    struct sim_vcpu *x = calloc(1, sizeof(*x));
    x->v.domain = s->domain[domain];
    x->v.sched.hard_affinity = affinity;
    x->v.sched.soft_affinity = ~0ull;
    list_init(&x->v.sched.run_queue);
    x->busy_ns = busy_ns;
    x->rest_ns = rest_ns;
    x->wakes_at_ns = s->now_ns;
    ASSERT(!sched_credit.vcpu_insert(&s->hv, &x->v));
    s->vcpu[s->nr_vcpus] = x;
    return s->nr_vcpus++;
}

void sim_run(struct sim *s, uint64_t ns)
{
    uint64_t end = s->now_ns + ns, next;
    step(s);
    while ((next = next_event(s)) < end) {
        s->now_ns = next;
        step(s);
    }
    s->now_ns = end;
}

/* CPU time so far, of the current run as well. */
uint64_t sim_ran(struct sim *s, unsigned vcpu)
{
    const struct sim_vcpu *x = s->vcpu[vcpu];
    return x->ran_ns + (x->v.sched.running ? s->now_ns - x->v.sched.started_ns : 0);
}

/* Since it was last asked. */
uint64_t sim_worst_wait(struct sim *s, unsigned vcpu)
{
    uint64_t worst = s->vcpu[vcpu]->worst_wait_ns;
    s->vcpu[vcpu]->worst_wait_ns = 0;
    return worst;
}

void sim_free(struct sim *s)
{
    for (unsigned i = 0; i < s->nr_vcpus; i++) {
        if (s->vcpu[i]->v.sched.queued)
            sched_credit.sleep(&s->hv, &s->vcpu[i]->v);
        sched_credit.vcpu_remove(&s->hv, &s->vcpu[i]->v);
        free(s->vcpu[i]);
    }
    for (unsigned i = 0; i < s->nr_domains; i++) {
        sched_credit.domain_destroy(s->domain[i]);
        free(s->domain[i]);
    }
    sched_credit.destroy(&s->hv);
    free(s->hv.pcpu);
    free(s);
}
