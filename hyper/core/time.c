/*
 * Time. One clock for the machine: system time = ns_base + (TSC - tsc_base) scaled, and every vCPU is told exactly these
 * numbers in its vcpu_time_info, so that guests, who read the same TSC, and hv_now agree to the nanosecond.
 *
 * The TSC's rate is measured for some milliseconds at the start and then once a second against CLOCK_MONOTONIC. A new
 * rate starts at the present reading, so time never jumps; what it is ahead or behind is made up over the next
 * second, by at most 500 ppm. All vCPUs are told at once, by the timer thread.
 *
 * XEN_PVCLOCK_TSC_STABLE_BIT, which lets guests trust readings across vCPUs, is set when the host's TSC is invariant.
 *
 * Locks: clock->lock is a leaf. Readers of the clock use its sequence number.
 */
#include <cpuid.h>
#include <time.h>
#include <x86intrin.h>

#include "machine.h"

#define CALIBRATION_NS 4000000
#define MAX_SLEW_NS 500000 /* per second */
#define WALLCLOCK_STEP_NS 50000000ll
#define BASELINE_NS (64 * NSEC_PER_SEC)

struct sample { uint64_t tsc, ns; };

/* What vcpu_time_info holds. */
struct scale { uint64_t tsc_base, ns_base; uint32_t mul; int8_t shift; };

struct clock {
    lock_t lock;
    _Atomic uint32_t sequence; /* odd while the scale changes */
    struct scale scale;
    struct sample origin, baseline;
    double tsc_hz;
    bool stable;
    int64_t wallclock_ns; /* CLOCK_REALTIME at system time 0 */
    struct timer tick;
};

/* ---- host clocks ------------------------------------------------------------------------------------------------ */

static uint64_t clock_ns(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

static uint64_t read_tsc(void)
{
    _mm_lfence();
    return __rdtsc();
}

/* A TSC and a monotonic reading of the same moment: the closest pair of eight. */
static struct sample take_sample(void)
{
    struct sample best = {0, 0};
    uint64_t narrowest = UINT64_MAX;
    for (int i = 0; i < 8; i++) {
        uint64_t before = read_tsc(), ns = clock_ns(CLOCK_MONOTONIC), after = read_tsc();
        if (after - before < narrowest) {
            narrowest = after - before;
            best = (struct sample){before + (after - before) / 2, ns};
        }
    }
    return best;
}

static bool tsc_is_invariant(void)
{
    uint32_t a, b, c, d;
    return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & 1u << 8);
}

/* ---- scale ------------------------------------------------------------------------------------------------------ */

static void set_rate(struct scale *s, double tsc_hz)
{
    double hz = tsc_hz;
    s->shift = 0;
    for (; hz > 2e9; hz /= 2)
        s->shift--;
    for (; hz <= 1e9; hz *= 2)
        s->shift++;
    s->mul = (uint32_t)(4294967296.0 * 1e9 / hz);
}

static uint64_t scale_tsc(const struct scale *s, uint64_t tsc)
{
    uint64_t delta = tsc > s->tsc_base ? tsc - s->tsc_base : 0;
    delta = s->shift < 0 ? delta >> -s->shift : delta << s->shift;
    return s->ns_base + (uint64_t)((unsigned __int128)delta * s->mul >> 32);
}

static struct scale read_scale(struct clock *c)
{
    struct scale s;
    uint32_t sequence;
    do {
        while ((sequence = atomic_load_explicit(&c->sequence, memory_order_acquire)) & 1)
            _mm_pause();
        s = c->scale;
        atomic_thread_fence(memory_order_acquire);
    } while (atomic_load_explicit(&c->sequence, memory_order_relaxed) != sequence);
    return s;
}

static void write_scale(struct clock *c, const struct scale *s)
{
    atomic_fetch_add(&c->sequence, 1);
    c->scale = *s;
    atomic_fetch_add(&c->sequence, 1);
}

uint64_t hv_now(const struct hv *hv)
{
    struct scale s = read_scale(hv->clock);
    return scale_tsc(&s, read_tsc());
}

uint64_t tsc_khz(const struct hv *hv) { return (uint64_t)(hv->clock->tsc_hz / 1000); }

/* ---- publication ------------------------------------------------------------------------------------------------ */

void time_lock(struct hv *hv) { lock(&hv->clock->lock); }
void time_unlock(struct hv *hv) { unlock(&hv->clock->lock); }

static void publish_locked(struct clock *c, struct vcpu_time_info *t)
{
    uint32_t version = (__atomic_load_n(&t->version, __ATOMIC_RELAXED) + 1) | 1;
    __atomic_store_n(&t->version, version, __ATOMIC_SEQ_CST);
    __atomic_store_n(&t->tsc_timestamp, c->scale.tsc_base, __ATOMIC_RELAXED);
    __atomic_store_n(&t->system_time, c->scale.ns_base, __ATOMIC_RELAXED);
    __atomic_store_n(&t->tsc_to_system_mul, c->scale.mul, __ATOMIC_RELAXED);
    __atomic_store_n(&t->tsc_shift, c->scale.shift, __ATOMIC_RELAXED);
    __atomic_store_n(&t->flags, c->stable ? XEN_PVCLOCK_TSC_STABLE_BIT : 0, __ATOMIC_RELAXED);
    __atomic_store_n(&t->version, version + 1, __ATOMIC_SEQ_CST);
}

void time_publish(struct vcpu *v)
{
    struct clock *c = v->domain->hv->clock;
    lock(&c->lock);
    publish_locked(c, &v->vcpu_info->time);
    unlock(&c->lock);
}

void time_publish_wallclock(struct domain *d)
{
    struct clock *c = d->hv->clock;
    struct shared_info *s = d->shared_info;
    lock(&c->lock);
    int64_t ns = c->wallclock_ns + d->time_offset_seconds * (int64_t)NSEC_PER_SEC;
    uint64_t seconds = ns > 0 ? (uint64_t)ns / NSEC_PER_SEC : 0;
    uint32_t version = (__atomic_load_n(&s->wc_version, __ATOMIC_RELAXED) + 1) | 1;
    __atomic_store_n(&s->wc_version, version, __ATOMIC_SEQ_CST);
    __atomic_store_n(&s->wc_sec, (uint32_t)seconds, __ATOMIC_RELAXED);
    __atomic_store_n(&s->wc_sec_hi, (uint32_t)(seconds >> 32), __ATOMIC_RELAXED);
    __atomic_store_n(&s->wc_nsec, ns > 0 ? (uint32_t)((uint64_t)ns % NSEC_PER_SEC) : 0, __ATOMIC_RELAXED);
    __atomic_store_n(&s->wc_version, version + 1, __ATOMIC_SEQ_CST);
    unlock(&c->lock);
}

static void publish_domain(struct domain *d, bool wallclock)
{
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i])
            time_publish(d->vcpu[i]);
    if (wallclock)
        time_publish_wallclock(d);
}

static void publish_all(struct hv *hv, bool wallclock)
{
    struct domain *d;
    for (uint32_t id = 0; (d = next_domain(hv, id)); ) {
        id = d->id + 1u;
        publish_domain(d, wallclock);
        put_domain(d);
    }
}

/* ---- calibration ------------------------------------------------------------------------------------------------ */

static double measured_hz(const struct sample *from, const struct sample *to)
{
    return (double)(to->tsc - from->tsc) * 1e9 / (double)(to->ns - from->ns);
}

/* After a suspend of the host, or where the TSC jumps: our time goes on from its last reading. */
static void start_over(struct clock *c, const struct sample *now, uint64_t ours)
{
    c->baseline = *now;
    c->origin.ns = now->ns - ours;
}

static bool plausible(const struct clock *c, double tsc_hz)
{
    return tsc_hz > 0.99 * c->tsc_hz && tsc_hz < 1.01 * c->tsc_hz;
}

/* Goes on from the present reading at a rate that brings the clock to where it should be in a second. */
static void recalibrate(struct clock *c, const struct sample *now)
{
    struct scale s = c->scale;
    uint64_t ours = scale_tsc(&s, now->tsc);
    if (!plausible(c, measured_hz(&c->baseline, now)))
        start_over(c, now, ours);
    else
        c->tsc_hz = measured_hz(&c->baseline, now);
    int64_t behind = (int64_t)(now->ns - c->origin.ns) - (int64_t)ours;
    if (behind > MAX_SLEW_NS)
        behind = MAX_SLEW_NS;
    if (behind < -MAX_SLEW_NS)
        behind = -MAX_SLEW_NS;
    set_rate(&s, c->tsc_hz / (1.0 + (double)behind / 1e9));
    s.tsc_base = now->tsc;
    s.ns_base = ours;
    write_scale(c, &s);
    if (now->ns - c->baseline.ns > BASELINE_NS)
        c->baseline = *now;
}

static bool wallclock_stepped(struct clock *c, const struct sample *now)
{
    int64_t at_zero = (int64_t)(clock_ns(CLOCK_REALTIME) - scale_tsc(&c->scale, now->tsc));
    if (llabs(at_zero - c->wallclock_ns) < WALLCLOCK_STEP_NS)
        return false;
    c->wallclock_ns = at_zero;
    return true;
}

static void tick(void *data)
{
    struct hv *hv = data;
    struct clock *c = hv->clock;
    struct sample now = take_sample();
    lock(&c->lock);
    if (now.ns > c->baseline.ns + NSEC_PER_SEC / 10)
        recalibrate(c, &now);
    bool stepped = wallclock_stepped(c, &now);
    unlock(&c->lock);
    publish_all(hv, stepped);
    timer_set(&c->tick, hv_now(hv) + NSEC_PER_SEC);
}

int clock_init(struct hv *hv)
{
    struct clock *c = calloc(1, sizeof(*c));
    if (!c)
        return -XEN_ENOMEM;
    hv->clock = c;
    lock_init(&c->lock);
    c->stable = tsc_is_invariant();
    c->origin = take_sample();
    nanosleep(&(struct timespec){.tv_nsec = CALIBRATION_NS}, NULL);
    struct sample now = take_sample();
    c->tsc_hz = measured_hz(&c->origin, &now);
    c->baseline = c->origin;
    c->scale = (struct scale){.tsc_base = now.tsc, .ns_base = now.ns - c->origin.ns};
    set_rate(&c->scale, c->tsc_hz);
    c->wallclock_ns = (int64_t)(clock_ns(CLOCK_REALTIME) - hv_now(hv));
    timer_init(&c->tick, hv, tick, hv);
    return 0;
}

int clock_start(struct hv *hv)
{
    timer_set(&hv->clock->tick, hv_now(hv) + NSEC_PER_SEC / 2);
    return 0;
}

void clock_destroy(struct hv *hv)
{
    free(hv->clock);
    hv->clock = NULL;
}
