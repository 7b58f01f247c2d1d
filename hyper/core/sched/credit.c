/*
 * The credit scheduler: weight, cap, hard and soft affinity.
 *
 * Every vCPU has a virtual time that advances while it runs, the slower the greater its weight. The runnable vCPU furthest
 * behind is owed most and runs next: its credit. A domain's weight is shared by those of its vCPUs that were active in
 * the last accounting period. A weight that would entitle a vCPU to more than one physical CPU is reduced to what it can
 * use, so that virtual times of competitors stay close and what it can't use goes to the others in proportion.
 *
 * A vCPU that sleeps does not save up: when it wakes it is put at most BOOST_NS behind the least of the others. That is
 * enough to run before them at once (Xen's boost): it preempts whoever is furthest ahead, once that one has run for the
 * rate limit. Slices are 30 ms otherwise.
 *
 * A cap is a budget of the domain per accounting period, in ns of CPU time; what was overrun is owed, what was left is good
 * for one more period, or for ten while it waits for others to have their turn. A vCPU of a domain without budget waits in its queue, passed over, until the next period.
 *
 * Queues are per physical CPU, ordered by virtual time. A CPU takes the first of its own unless another queue's first is
 * further behind by more than a migration is worth; a CPU with an empty queue takes whatever it may.
 *
 * All under sched_lock. Accounting runs each 30 ms on the timer thread, while a vCPU waits or a capped domain runs.
 */
#include "../../public/domctl.h"
#include "../../public/sysctl.h"
#include "machine.h"

#define MS 1000000ll
#define PERIOD_NS (30 * MS)
#define BOOST_NS (10 * MS)
#define PREEMPT_NS (MS / 4)    /* a waking vCPU must be owed this much more than the one it stops */
#define MIGRATION_NS (MS / 2)  /* of virtual time at the default weight */
#define MIN_SLICE_NS (MS / 5)
#define DEFAULT_WEIGHT 256
#define HELD_PERIODS 10        /* a capped domain keeps that much budget while it can't run */

struct credit_domain {
    struct domain *domain;
    struct list link;
    uint16_t weight, cap;
    int64_t budget_ns;     /* when capped */
    uint32_t nr_active;    /* vCPUs, in the last period */
    uint32_t nr_running;
};

struct credit_vcpu {
    struct vcpu *vcpu;
    struct credit_domain *domain;
    struct list link;      /* of all vCPUs */
    int64_t vtime_ns;      /* at the time it last stopped */
    double weight;         /* effective */
    uint64_t ran_ns;       /* in this period */
    uint64_t charged_ns;   /* of the current run, to the domain's budget */
    bool active, slept;    /* in this period */
    double demand;         /* CPUs it would use if it could have them: at most 1 */
    bool satisfied, grouped; /* for the accounting */
};

struct credit_private {
    struct list domains, vcpus;
    struct list queue[64];
    uint32_t nr_queued;
    struct timer accounting;
    bool accounting_on;
    uint64_t period_start_ns;
    uint64_t slice_ns, ratelimit_ns;
};

static struct credit_private *private(struct hv *hv) { return hv->sched_priv; }
static struct credit_vcpu *of(const struct vcpu *v) { return v->sched.priv; }
static struct credit_vcpu *of_link(struct list *l) { return container_of(l, struct credit_vcpu, link); }
static struct credit_domain *domain_of_link(struct list *l) { return container_of(l, struct credit_domain, link); }
static struct vcpu *of_queue(struct list *l) { return container_of(l, struct vcpu, sched.run_queue); }

/* ---- virtual time ----------------------------------------------------------------------------------------------- */

static int64_t scaled(const struct credit_vcpu *c, int64_t ns) { return (int64_t)((double)ns * DEFAULT_WEIGHT / c->weight); }

/* Of a running vCPU too. */
static int64_t vtime_at(const struct credit_vcpu *c, uint64_t now)
{
    const struct vcpu *v = c->vcpu;
    return c->vtime_ns + (v->sched.running ? scaled(c, (int64_t)(now - v->sched.started_ns)) : 0);
}

static bool out_of_budget(const struct credit_domain *d) { return d->cap && d->budget_ns <= 0; }

/* Runs, or would if a CPU were free. */
static bool competes(const struct credit_vcpu *c)
{
    return c->vcpu->sched.running || (c->vcpu->sched.queued && !out_of_budget(c->domain));
}

/* Of those who compete now for the CPUs that `v` may use; its own when there are none. */
static int64_t least_vtime(struct hv *hv, const struct vcpu *v, uint64_t now)
{
    int64_t least = INT64_MAX;
    for (struct list *l = private(hv)->vcpus.next; l != &private(hv)->vcpus; l = l->next) {
        const struct credit_vcpu *c = of_link(l);
        if (c->vcpu == v || !competes(c) || !(c->vcpu->sched.hard_affinity & v->sched.hard_affinity))
            continue;
        int64_t vtime = vtime_at(c, now);
        if (vtime < least)
            least = vtime;
    }
    return least < INT64_MAX ? least : of(v)->vtime_ns;
}

/* ---- queues ----------------------------------------------------------------------------------------------------- */

static bool may_run_on(const struct vcpu *v, unsigned pcpu) { return v->sched.hard_affinity >> pcpu & 1; }

static void start_accounting(struct hv *hv)
{
    struct credit_private *p = private(hv);
    if (p->accounting_on)
        return;
    p->accounting_on = true;
    p->period_start_ns = hv_now(hv);
    timer_set(&p->accounting, p->period_start_ns + PERIOD_NS);
}

static void enqueue(struct hv *hv, struct vcpu *v, unsigned pcpu)
{
    struct credit_private *p = private(hv);
    struct list *at = p->queue[pcpu].prev;
    while (at != &p->queue[pcpu] && of(of_queue(at))->vtime_ns > of(v)->vtime_ns)
        at = at->prev;
    list_insert(&v->sched.run_queue, at);
    v->sched.pcpu = pcpu;
    p->nr_queued++;
    of(v)->active = true;
}

static void dequeue(struct hv *hv, struct vcpu *v)
{
    list_remove(&v->sched.run_queue);
    private(hv)->nr_queued--;
}

static struct vcpu *first_for(struct hv *hv, unsigned queue, unsigned pcpu)
{
    struct list *head = &private(hv)->queue[queue];
    for (struct list *l = head->next; l != head; l = l->next) {
        struct vcpu *v = of_queue(l);
        if (may_run_on(v, pcpu) && !out_of_budget(of(v)->domain))
            return v;
    }
    return NULL;
}

/* ---- waking ----------------------------------------------------------------------------------------------------- */

/* An idle CPU for it: the one it ran on last, one it likes, any. -1: none. */
static int find_idle(struct hv *hv, const struct vcpu *v)
{
    int found = -1;
    if (may_run_on(v, v->sched.pcpu) && sched_idle(hv, v->sched.pcpu))
        return (int)v->sched.pcpu;
    for (unsigned i = 0; i < hv->config.nr_pcpus; i++) {
        if (!may_run_on(v, i) || !sched_idle(hv, i))
            continue;
        if (v->sched.soft_affinity >> i & 1)
            return (int)i;
        found = (int)i;
    }
    return found;
}

/* The CPU whose vCPU is furthest ahead; -1: none is ahead of `v` enough to be stopped. */
static int find_victim(struct hv *hv, const struct vcpu *v, uint64_t now)
{
    int64_t most = of(v)->vtime_ns + PREEMPT_NS;
    int found = -1;
    for (unsigned i = 0; i < hv->config.nr_pcpus; i++) {
        const struct vcpu *current = sched_current(hv, i);
        if (!current || !may_run_on(v, i))
            continue;
        int64_t vtime = vtime_at(of(current), now);
        if (vtime > most) {
            most = vtime;
            found = (int)i;
        }
    }
    return found;
}

static void preempt(struct hv *hv, unsigned pcpu, uint64_t now)
{
    uint64_t until = sched_current(hv, pcpu)->sched.started_ns + private(hv)->ratelimit_ns;
    if (now >= until)
        sched_tickle(hv, pcpu);
    else
        sched_tickle_at(hv, pcpu, until);
}

static unsigned allowed_pcpu(struct hv *hv, const struct vcpu *v)
{
    for (unsigned i = 0; i < hv->config.nr_pcpus && !may_run_on(v, v->sched.pcpu); i++)
        if (may_run_on(v, i))
            return i;
    return v->sched.pcpu;
}

static void place(struct hv *hv, struct vcpu *v, uint64_t now)
{
    int pcpu = find_idle(hv, v);
    if (pcpu >= 0) {
        enqueue(hv, v, (unsigned)pcpu);
        sched_tickle(hv, (unsigned)pcpu);
        return;
    }
    pcpu = find_victim(hv, v, now);
    enqueue(hv, v, pcpu >= 0 ? (unsigned)pcpu : allowed_pcpu(hv, v));
    if (pcpu >= 0 && !out_of_budget(of(v)->domain))
        preempt(hv, (unsigned)pcpu, now);
}

static void limit_lag(struct hv *hv, struct credit_vcpu *c, int64_t limit_ns, uint64_t now)
{
    int64_t floor = least_vtime(hv, c->vcpu, now) - scaled(c, limit_ns);
    if (c->vtime_ns < floor)
        c->vtime_ns = floor;
}

static void credit_wake(struct hv *hv, struct vcpu *v)
{
    uint64_t now = hv_now(hv);
    limit_lag(hv, of(v), BOOST_NS, now);
    place(hv, v, now);
    start_accounting(hv);
}

static void credit_sleep(struct hv *hv, struct vcpu *v) { dequeue(hv, v); }

/* ---- choosing --------------------------------------------------------------------------------------------------- */

static struct vcpu *choose(struct hv *hv, unsigned pcpu)
{
    struct vcpu *best = first_for(hv, pcpu, pcpu);
    for (unsigned n = 1; n < hv->config.nr_pcpus; n++) {
        struct vcpu *v = first_for(hv, (pcpu + n) % hv->config.nr_pcpus, pcpu);
        if (!v)
            continue;
        int64_t worth = best && best->sched.pcpu == pcpu ? MIGRATION_NS : 0;
        if (!best || of(v)->vtime_ns + worth < of(best)->vtime_ns)
            best = v;
    }
    return best;
}

/* Takes what the current run has lasted from the domain's budget. */
static void charge(struct credit_vcpu *c, uint64_t ran_ns)
{
    if (c->domain->cap)
        c->domain->budget_ns -= (int64_t)(ran_ns - c->charged_ns);
    c->charged_ns = ran_ns;
}

static void charge_running(struct credit_private *p, uint64_t now)
{
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        struct credit_vcpu *c = of_link(l);
        if (c->vcpu->sched.running)
            charge(c, now - c->vcpu->sched.started_ns);
    }
}

/* What is left of a capped domain's budget is shared by those that use it up together. */
static uint64_t split_budget(struct hv *hv, const struct credit_domain *d)
{
    struct credit_private *p = private(hv);
    uint64_t now = hv_now(hv);
    charge_running(p, now);
    int64_t share = d->budget_ns / (d->nr_running + 1);
    if (share < MIN_SLICE_NS)
        share = MIN_SLICE_NS;
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        const struct credit_vcpu *c = of_link(l);
        if (c->domain == d && c->vcpu->sched.running)
            sched_tickle_at(hv, c->vcpu->sched.pcpu, now + (uint64_t)share);
    }
    return (uint64_t)share;
}

static uint64_t slice_of(struct hv *hv, const struct credit_domain *d)
{
    uint64_t slice = private(hv)->slice_ns, share = d->cap ? split_budget(hv, d) : slice;
    return share < slice ? share : slice;
}

static struct sched_decision credit_pick(struct hv *hv, unsigned pcpu)
{
    struct vcpu *v = choose(hv, pcpu);
    if (!v)
        return (struct sched_decision){NULL, 0};
    struct credit_domain *d = of(v)->domain;
    struct sched_decision decision = {v, slice_of(hv, d)};
    dequeue(hv, v);
    d->nr_running++;
    return decision;
}

/* Behind the next one that waits here. */
static void step_back(struct hv *hv, struct vcpu *v, unsigned pcpu)
{
    const struct vcpu *next = first_for(hv, pcpu, pcpu);
    if (next && of(v)->vtime_ns <= of(next)->vtime_ns)
        of(v)->vtime_ns = of(next)->vtime_ns + 1;
}

/* Somebody else will run here: an idle CPU may take what waits. */
static void offer(struct hv *hv, struct vcpu *v)
{
    int pcpu = find_idle(hv, v);
    if (pcpu >= 0)
        sched_tickle(hv, (unsigned)pcpu);
}

static void credit_put_prev(struct hv *hv, unsigned pcpu, struct vcpu *v, uint64_t ran_ns)
{
    struct credit_vcpu *c = of(v);
    c->vtime_ns += scaled(c, (int64_t)ran_ns);
    c->ran_ns += ran_ns;
    c->active = true;
    c->domain->nr_running--;
    charge(c, ran_ns);
    c->charged_ns = 0;
    if (c->domain->cap)
        start_accounting(hv);
    if (!v->sched.queued) {
        c->slept = true;
        return;
    }
    if (v->sched.yielding)
        step_back(hv, v, pcpu);
    bool others = first_for(hv, pcpu, pcpu) != NULL;
    unsigned to = allowed_pcpu(hv, v);
    enqueue(hv, v, to);
    start_accounting(hv);
    if (to != pcpu)
        sched_tickle(hv, to);
    else if (others)
        offer(hv, v);
}

/* ---- accounting ------------------------------------------------------------------------------------------------- */

static bool is_active(const struct credit_vcpu *c, uint64_t elapsed)
{
    return c->vcpu->sched.running || c->vcpu->sched.queued || (c->active && c->ran_ns > elapsed / 64);
}

static void count_active(struct credit_private *p, uint64_t elapsed)
{
    for (struct list *l = p->domains.next; l != &p->domains; l = l->next)
        domain_of_link(l)->nr_active = 0;
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        struct credit_vcpu *c = of_link(l);
        c->active = is_active(c, elapsed);
        c->demand = c->slept ? (double)c->ran_ns / (double)elapsed : 1;
        c->domain->nr_active += c->active;
        c->ran_ns = 0;
        c->slept = false;
    }
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        struct credit_vcpu *c = of_link(l);
        double n = c->domain->nr_active ? c->domain->nr_active : 1, cap = c->domain->cap / 100.0 / n;
        c->satisfied = false;
        c->weight = c->domain->weight / n;
        if (c->domain->cap && cap < c->demand)
            c->demand = cap;
    }
}

/* Active vCPUs with the same affinity compete with each other: a group. */
static bool in_group(const struct credit_vcpu *c, uint64_t affinity)
{
    return c->active && c->vcpu->sched.hard_affinity == affinity;
}

/* One whose share of what is left is all it can use; NULL: none. */
static struct credit_vcpu *find_satisfied(struct credit_private *p, uint64_t affinity, double cpus, double weight)
{
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        struct credit_vcpu *c = of_link(l);
        if (in_group(c, affinity) && !c->satisfied && c->weight * cpus >= c->demand * weight)
            return c;
    }
    return NULL;
}

/* Time flows to all in proportion to weight until each has what it can use. Those that fill a whole CPU would fall behind
 * for ever at their own weight: they get the one that entitles to exactly a CPU. */
static void limit_weights(struct credit_private *p, uint64_t affinity, double cpus)
{
    struct credit_vcpu *c;
    double weight = 0;
    unsigned waiting = 0;
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        if (in_group(of_link(l), affinity)) {
            weight += of_link(l)->weight;
            waiting++;
        }
    }
    while ((c = find_satisfied(p, affinity, cpus, weight))) {
        c->satisfied = true;
        cpus -= c->demand;
        weight -= c->weight;
        waiting--;
    }
    if (!waiting || cpus <= 0) /* enough for everybody: weights don't matter */
        return;
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next)
        if (in_group(of_link(l), affinity) && of_link(l)->satisfied && of_link(l)->demand >= 1)
            of_link(l)->weight = weight / cpus;
}

/* Nobody has to wait for others longer than two of its slices would explain: what is further ahead of those that wait has
 * come from elsewhere, or from other times. */
static void limit_lead(struct credit_private *p, uint64_t affinity, uint64_t now)
{
    int64_t least = INT64_MAX;
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        const struct credit_vcpu *c = of_link(l);
        if (in_group(c, affinity) && competes(c) && !c->vcpu->sched.running && c->vtime_ns < least)
            least = c->vtime_ns;
    }
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        struct credit_vcpu *c = of_link(l);
        if (!in_group(c, affinity))
            continue;
        c->grouped = true;
        if (least == INT64_MAX || !competes(c))
            continue;
        int64_t lead = vtime_at(c, now) - least - scaled(c, 2 * PERIOD_NS);
        if (lead > 0)
            c->vtime_ns -= lead;
    }
}

static void balance_groups(struct hv *hv, uint64_t now)
{
    struct credit_private *p = private(hv);
    uint64_t online = ~0ull >> (64 - hv->config.nr_pcpus);
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next)
        of_link(l)->grouped = false;
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        const struct credit_vcpu *c = of_link(l);
        uint64_t affinity = c->vcpu->sched.hard_affinity;
        if (!c->active || c->grouped)
            continue;
        limit_weights(p, affinity, __builtin_popcountll(affinity & online));
        limit_lead(p, affinity, now);
    }
}

/* The order within a queue may have changed with the virtual times. */
static void sort_queue(struct hv *hv, unsigned pcpu)
{
    struct list old, *it, *next;
    struct list *head = &private(hv)->queue[pcpu];
    if (list_empty(head))
        return;
    old = *head;
    old.next->prev = old.prev->next = &old;
    list_init(head);
    list_for_each_safe(it, next, &old) {
        struct vcpu *v = of_queue(it);
        dequeue(hv, v);
        enqueue(hv, v, pcpu);
    }
}

static int64_t budget_for(const struct credit_domain *d, uint64_t ns) { return (int64_t)(ns / 100 * d->cap); }

/* Its waiting vCPUs were passed over; now they compete again. */
static void readmit(struct hv *hv, const struct credit_domain *d, uint64_t now)
{
    struct credit_private *p = private(hv);
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next) {
        struct credit_vcpu *c = of_link(l);
        if (c->domain != d || !c->vcpu->sched.queued)
            continue;
        dequeue(hv, c->vcpu);
        limit_lag(hv, c, 4 * PERIOD_NS, now);
        place(hv, c->vcpu, now);
    }
}

/* Has budget, but others have the CPUs. */
static bool is_held_back(struct credit_private *p, const struct credit_domain *d)
{
    for (struct list *l = p->vcpus.next; l != &p->vcpus; l = l->next)
        if (of_link(l)->domain == d && of_link(l)->vcpu->sched.queued)
            return !out_of_budget(d);
    return false;
}

/* True while some capped domain needs the next period. */
static bool refill_budgets(struct hv *hv, uint64_t elapsed, uint64_t now)
{
    struct credit_private *p = private(hv);
    bool needed = false;
    charge_running(p, now);
    for (struct list *l = p->domains.next; l != &p->domains; l = l->next) {
        struct credit_domain *d = domain_of_link(l);
        bool waited = out_of_budget(d);
        if (!d->cap)
            continue;
        needed |= d->nr_active || d->budget_ns < 0;
        int64_t most = budget_for(d, PERIOD_NS) * (is_held_back(p, d) ? HELD_PERIODS : 1);
        d->budget_ns = (d->budget_ns < most ? d->budget_ns : most) + budget_for(d, elapsed);
        if (waited && !out_of_budget(d))
            readmit(hv, d, now);
    }
    return needed;
}

static void account(void *data)
{
    struct hv *hv = data;
    struct credit_private *p = private(hv);
    sched_lock(hv);
    uint64_t now = hv_now(hv), elapsed = now - p->period_start_ns;
    if (elapsed > 2 * PERIOD_NS)
        elapsed = 2 * PERIOD_NS;
    count_active(p, elapsed);
    balance_groups(hv, now);
    for (unsigned i = 0; i < hv->config.nr_pcpus; i++)
        sort_queue(hv, i);
    p->period_start_ns = now;
    p->accounting_on = refill_budgets(hv, elapsed, now) || p->nr_queued;
    if (p->accounting_on)
        timer_set(&p->accounting, now + PERIOD_NS);
    sched_unlock(hv);
}

/* ---- settings --------------------------------------------------------------------------------------------------- */

static int credit_adjust(struct hv *hv, struct domain *domain, void *data)
{
    struct xen_domctl_scheduler_op *op = data;
    struct credit_domain *d = domain->sched_priv;
    if (!d || op->cmd > XEN_DOMCTL_SCHEDOP_getinfo)
        return -XEN_EINVAL;
    sched_lock(hv);
    if (op->cmd == XEN_DOMCTL_SCHEDOP_putinfo) {
        if (op->u.credit.weight)
            d->weight = op->u.credit.weight;
        if (op->u.credit.cap != UINT16_MAX) {
            d->cap = op->u.credit.cap;
            d->budget_ns = budget_for(d, PERIOD_NS);
            start_accounting(hv);
        }
    } else {
        op->u.credit.weight = d->weight;
        op->u.credit.cap = d->cap;
    }
    sched_unlock(hv);
    return 0;
}

static int credit_adjust_global(struct hv *hv, void *data)
{
    struct xen_sysctl_scheduler_op *op = data;
    struct credit_private *p = private(hv);
    struct xen_sysctl_credit_schedule *s = &op->u.sched_credit;
    if (op->cmd == XEN_SYSCTL_SCHEDOP_putinfo) {
        if (s->tslice_ms > XEN_SYSCTL_CSCHED_TSLICE_MAX || s->tslice_ms < XEN_SYSCTL_CSCHED_TSLICE_MIN ||
            (s->ratelimit_us && (s->ratelimit_us > XEN_SYSCTL_SCHED_RATELIMIT_MAX ||
                                 s->ratelimit_us < XEN_SYSCTL_SCHED_RATELIMIT_MIN)) ||
            s->ratelimit_us > s->tslice_ms * 1000)
            return -XEN_EINVAL;
        sched_lock(hv);
        p->slice_ns = s->tslice_ms * (uint64_t)MS;
        p->ratelimit_ns = s->ratelimit_us * 1000ull;
        sched_unlock(hv);
    } else if (op->cmd != XEN_SYSCTL_SCHEDOP_getinfo) {
        return -XEN_EINVAL;
    }
    s->tslice_ms = (uint32_t)(p->slice_ns / MS);
    s->ratelimit_us = (uint32_t)(p->ratelimit_ns / 1000);
    s->vcpu_migr_delay_us = MIGRATION_NS / 1000;
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static int credit_init(struct hv *hv)
{
    struct credit_private *p = calloc(1, sizeof(*p));
    if (!p)
        return -XEN_ENOMEM;
    list_init(&p->domains);
    list_init(&p->vcpus);
    for (unsigned i = 0; i < ARRAY_SIZE(p->queue); i++)
        list_init(&p->queue[i]);
    p->slice_ns = PERIOD_NS;
    p->ratelimit_ns = MS;
    timer_init(&p->accounting, hv, account, hv);
    hv->sched_priv = p;
    return 0;
}

static void credit_destroy(struct hv *hv)
{
    timer_stop(&private(hv)->accounting);
    free(hv->sched_priv);
    hv->sched_priv = NULL;
}

static int credit_domain_init(struct domain *domain)
{
    struct credit_domain *d = calloc(1, sizeof(*d));
    if (!d)
        return -XEN_ENOMEM;
    d->domain = domain;
    d->weight = DEFAULT_WEIGHT;
    domain->sched_priv = d;
    sched_lock(domain->hv);
    list_append(&d->link, &private(domain->hv)->domains);
    sched_unlock(domain->hv);
    return 0;
}

static void credit_domain_destroy(struct domain *domain)
{
    struct credit_domain *d = domain->sched_priv;
    sched_lock(domain->hv);
    list_remove(&d->link);
    sched_unlock(domain->hv);
    free(d);
    domain->sched_priv = NULL;
}

static int credit_insert(struct hv *hv, struct vcpu *v)
{
    struct credit_vcpu *c = calloc(1, sizeof(*c));
    if (!c)
        return -XEN_ENOMEM;
    c->vcpu = v;
    c->domain = v->domain->sched_priv;
    c->weight = c->domain->weight;
    v->sched.priv = c;
    list_append(&c->link, &private(hv)->vcpus);
    return 0;
}

static void credit_remove(struct hv *hv, struct vcpu *v)
{
    (void)hv;
    list_remove(&of(v)->link);
    free(v->sched.priv);
    v->sched.priv = NULL;
}

static void credit_dump(struct hv *hv)
{
    for (unsigned i = 0; i < hv->config.nr_pcpus; i++)
        for (struct list *l = private(hv)->queue[i].next; l != &private(hv)->queue[i]; l = l->next) {
            const struct vcpu *v = of_queue(l);
            hv_printk(hv, "  CPU%u waits: d%uv%u virtual time %ld us%s", i, v->domain->id, v->id,
                      (long)(of(v)->vtime_ns / 1000), out_of_budget(of(v)->domain) ? " (capped)" : "");
        }
}

const struct scheduler sched_credit = {
    .name = "credit",
    .id = XEN_SCHEDULER_CREDIT,
    .init = credit_init,
    .destroy = credit_destroy,
    .vcpu_insert = credit_insert,
    .vcpu_remove = credit_remove,
    .wake = credit_wake,
    .sleep = credit_sleep,
    .pick = credit_pick,
    .put_prev = credit_put_prev,
    .adjust = credit_adjust,
    .adjust_global = credit_adjust_global,
    .domain_init = credit_domain_init,
    .domain_destroy = credit_domain_destroy,
    .dump = credit_dump,
};
