/*
 * Tests of timers and of the machine's clock. Each is a function named in the table at the end; the program runs the one
 * it is asked for and fails by abort.
 */
#include <sched.h>
#include <time.h>
#include <x86intrin.h>

#include "machine.h"

#define MS 1000000ull
#define CHECK(c)                                                                                                      \
    do {                                                                                                              \
        if (!(c)) {                                                                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #c);                                                   \
            abort();                                                                                                  \
        }                                                                                                             \
    } while (0)

/* ---- the rest of the machine ------------------------------------------------------------------------------------ */

_Noreturn void hv_bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: %s\n", file, line, what);
    abort();
}

int hv_thread_create(pthread_t *thread, const char *name, int nice, void *(*function)(void *), void *argument)
{
    (void)name, (void)nice;
    return pthread_create(thread, NULL, function, argument);
}

static struct domain *only_domain;
struct domain *next_domain(struct hv *hv, uint32_t first)
{
    (void)hv;
    return only_domain && first <= only_domain->id ? only_domain : NULL;
}
void put_domain(struct domain *d) { (void)d; }

static struct hv *start(void)
{
    struct hv *hv = calloc(1, sizeof(*hv));
    CHECK(!clock_init(hv));
    CHECK(!timers_init(hv));
    CHECK(!timers_start(hv));
    return hv;
}

static void stop(struct hv *hv)
{
    timers_stop(hv);
    timers_destroy(hv);
    clock_destroy(hv);
    free(hv);
}

static void sleep_ms(unsigned ms) { nanosleep(&(struct timespec){ms / 1000, (long)(ms % 1000 * MS)}, NULL); }

/* ---- timers ----------------------------------------------------------------------------------------------------- */

#define MANY 500

struct probe {
    struct timer timer;
    uint64_t due_ns, fired_ns;
    _Atomic int count;
    _Atomic int *order;
    int place;
};

static void fire(void *data)
{
    struct probe *p = data;
    p->fired_ns = hv_now(p->timer.hv);
    if (p->order)
        p->place = atomic_fetch_add(p->order, 1);
    atomic_fetch_add(&p->count, 1);
}

static void they_fire_in_order_and_in_time(void)
{
    struct hv *hv = start();
    static struct probe probe[MANY];
    _Atomic int order = 0;
    unsigned seed = 1;
    uint64_t now = hv_now(hv);
    for (int i = 0; i < MANY; i++) {
        probe[i].order = &order;
        timer_init(&probe[i].timer, hv, fire, &probe[i]);
        probe[i].due_ns = now + 20 * MS + (uint64_t)(rand_r(&seed) % 60) * MS;
        timer_set(&probe[i].timer, probe[i].due_ns);
    }
    sleep_ms(200);
    for (int i = 0; i < MANY; i++) {
        CHECK(atomic_load(&probe[i].count) == 1);
        CHECK(probe[i].fired_ns >= probe[i].due_ns);
        for (int k = 0; k < MANY; k++)
            CHECK(probe[i].due_ns >= probe[k].due_ns || probe[i].place < probe[k].place);
    }
    stop(hv);
}

static void an_earlier_one_wakes_the_thread(void)
{
    struct hv *hv = start();
    struct probe far = {0}, near = {0};
    timer_init(&far.timer, hv, fire, &far);
    timer_init(&near.timer, hv, fire, &near);
    timer_set(&far.timer, hv_now(hv) + 10000 * MS);
    sleep_ms(10);
    timer_set(&near.timer, hv_now(hv) + 5 * MS);
    sleep_ms(100);
    CHECK(atomic_load(&near.count) == 1 && !atomic_load(&far.count));
    timer_set(&far.timer, hv_now(hv) + 5 * MS); /* moved to earlier */
    sleep_ms(100);
    CHECK(atomic_load(&far.count) == 1);
    stop(hv);
}

static void what_is_past_fires_at_once(void)
{
    struct hv *hv = start();
    struct probe p = {0};
    timer_init(&p.timer, hv, fire, &p);
    timer_set(&p.timer, 0);
    sleep_ms(50);
    CHECK(atomic_load(&p.count) == 1);
    stop(hv);
}

static void stopped_ones_do_not_fire(void)
{
    struct hv *hv = start();
    static struct probe probe[MANY];
    uint64_t now = hv_now(hv);
    for (int i = 0; i < MANY; i++) {
        timer_init(&probe[i].timer, hv, fire, &probe[i]);
        timer_set(&probe[i].timer, now + 30 * MS + (uint64_t)(i * 7919 % 50) * MS / 10);
    }
    for (int i = 0; i < MANY; i += 2)
        timer_stop(&probe[i].timer);
    for (int i = 1; i < MANY; i += 4)
        timer_cancel(&probe[i].timer);
    sleep_ms(100);
    for (int i = 0; i < MANY; i++)
        CHECK(atomic_load(&probe[i].count) == (i % 4 == 3));
    stop(hv);
}

static void again(void *data)
{
    struct probe *p = data;
    if (atomic_fetch_add(&p->count, 1) < 9)
        timer_set(&p->timer, hv_now(p->timer.hv) + MS);
    else
        timer_stop(&p->timer); /* from the function itself: doesn't wait */
}

static void a_function_may_set_and_stop_its_own(void)
{
    struct hv *hv = start();
    struct probe p = {0};
    timer_init(&p.timer, hv, again, &p);
    timer_set(&p.timer, 1);
    sleep_ms(100);
    CHECK(atomic_load(&p.count) == 10);
    stop(hv);
}

static _Atomic bool inside;
static void linger(void *data)
{
    struct probe *p = data;
    atomic_store(&inside, true);
    sleep_ms(50);
    atomic_store(&inside, false);
    atomic_fetch_add(&p->count, 1);
    timer_set(&p->timer, hv_now(p->timer.hv) + MS);
}

static void stop_waits_for_a_running_function(void)
{
    struct hv *hv = start();
    struct probe p = {0};
    timer_init(&p.timer, hv, linger, &p);
    timer_set(&p.timer, 1);
    while (!atomic_load(&inside))
        sched_yield();
    timer_stop(&p.timer);
    CHECK(!atomic_load(&inside) && atomic_load(&p.count) == 1);
    sleep_ms(80);
    CHECK(atomic_load(&p.count) == 1); /* although it had set itself again */
    stop(hv);
}

/* ---- time ------------------------------------------------------------------------------------------------------- */

static uint64_t host_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

/* As a guest computes it. */
static uint64_t guest_ns(const struct vcpu_time_info *t)
{
    uint64_t delta = __rdtsc() - t->tsc_timestamp;
    delta = t->tsc_shift < 0 ? delta >> -t->tsc_shift : delta << t->tsc_shift;
    return t->system_time + (uint64_t)((unsigned __int128)delta * t->tsc_to_system_mul >> 32);
}

static void time_never_goes_back_and_follows_the_host(void)
{
    struct hv *hv = start();
    CHECK(!clock_start(hv));
    uint64_t last = 0, start_host = host_ns(), start_ours = hv_now(hv);
    while (host_ns() - start_host < 3200 * MS) {
        uint64_t now = hv_now(hv);
        CHECK(now >= last);
        last = now;
    }
    int64_t off = (int64_t)(hv_now(hv) - start_ours) - (int64_t)(host_ns() - start_host);
    CHECK(llabs(off) < 200000);
    stop(hv);
}

static void guests_compute_the_same_time(void)
{
    struct hv *hv = start();
    struct domain d = {.hv = hv, .id = 1, .max_vcpus = 1};
    struct shared_info shared = {0};
    struct vcpu v = {.domain = &d, .vcpu_info = &shared.vcpu_info[0]};
    d.vcpu[0] = &v;
    d.shared_info = &shared;
    const struct vcpu_time_info *t = &v.vcpu_info->time;
    time_publish(&v);
    CHECK(t->version == 2);
    for (int i = 0; i < 1000; i++) {
        uint64_t before = hv_now(hv), guest = guest_ns(t), after = hv_now(hv);
        CHECK(before <= guest + 100 && guest <= after + 100); /* rdtsc isn't ordered */
    }
    only_domain = &d;
    CHECK(!clock_start(hv));
    sleep_ms(1700); /* two calibrations */
    CHECK(t->version >= 6 && t->version % 2 == 0);
    uint64_t before = hv_now(hv), guest = guest_ns(t), after = hv_now(hv);
    CHECK(before <= guest + 100 && guest <= after + 100);
    time_publish_wallclock(&d);
    CHECK(llabs((int64_t)shared.wc_sec - (int64_t)time(NULL)) < 60 && shared.wc_nsec < NSEC_PER_SEC);
    timers_stop(hv);
    only_domain = NULL;
    stop(hv);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

#define T(name) {#name, name}
static const struct { const char *name; void (*run)(void); } test[] = {
    T(they_fire_in_order_and_in_time), T(an_earlier_one_wakes_the_thread),
    T(what_is_past_fires_at_once), T(stopped_ones_do_not_fire),
    T(a_function_may_set_and_stop_its_own), T(stop_waits_for_a_running_function),
    T(time_never_goes_back_and_follows_the_host), T(guests_compute_the_same_time),
};

int main(int argc, char **argv)
{
    for (unsigned i = 0; i < ARRAY_SIZE(test); i++) {
        if (argc < 2)
            puts(test[i].name);
        else if (!strcmp(argv[1], test[i].name))
            return test[i].run(), 0;
    }
    return argc < 2 ? 0 : 2;
}
