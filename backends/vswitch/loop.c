/*
 * The loop: wait for descriptors and times, let each source work, let the hook work, flush, again.
 *
 * Lock order: the switch's lock is the only one. The loop's thread gives it up to wait, and between turns to those who
 * wait for it: a mutex alone would let a busy thread take it again and again.
 *
 * A turn is bounded: each source does a burst's worth and is called again, because epoll is level-triggered here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "switch.h"

#define EVENTS_AT_ONCE 64
#define WAKE_KEY (~0ull)

uint64_t vs_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

/* ---- the lock --------------------------------------------------------------------------------------------------- */

void vs_lock(struct vswitch *sw)
{
    atomic_fetch_add(&sw->waiting, 1);
    pthread_mutex_lock(&sw->mutex);
    atomic_fetch_sub(&sw->waiting, 1);
}

void vs_unlock(struct vswitch *sw)
{
    if (!atomic_load(&sw->waiting))
        pthread_cond_broadcast(&sw->let_in);
    pthread_mutex_unlock(&sw->mutex);
}

/* The loop's own way in: last. */
static void lock_after_others(struct vswitch *sw)
{
    pthread_mutex_lock(&sw->mutex);
    while (atomic_load(&sw->waiting) && !atomic_load(&sw->stopping))
        pthread_cond_wait(&sw->let_in, &sw->mutex);
}

void vs_wake(struct vswitch *sw) { eventfd_write(sw->wake_fd, 1); }
void vs_news(struct vswitch *sw) { eventfd_write(sw->news_fd, 1); }
int vs_news_fd(vswitch_t *sw) { return sw->news_fd; }

/* ---- sources ---------------------------------------------------------------------------------------------------- */

static int take_slot(struct vswitch *sw, struct source *s)
{
    for (uint32_t i = 0; i < sw->nr_slots; i++)
        if (!sw->slots[i].source) {
            s->slot = i;
            sw->slots[i].source = s;
            return 0;
        }
    uint32_t n = sw->nr_slots ? 2 * sw->nr_slots : 64;
    struct slot *slots = realloc(sw->slots, n * sizeof(*slots));
    if (!slots)
        return -ENOMEM;
    memset(slots + sw->nr_slots, 0, (n - sw->nr_slots) * sizeof(*slots));
    s->slot = sw->nr_slots;
    sw->slots = slots;
    sw->nr_slots = n;
    slots[s->slot].source = s;
    return 0;
}

static uint64_t key_of(const struct vswitch *sw, const struct source *s)
{
    return (uint64_t)sw->slots[s->slot].generation << 32 | s->slot;
}

int source_add(struct vswitch *sw, struct source *s, int fd, uint32_t events)
{
    int rc = take_slot(sw, s);
    if (rc)
        return rc;
    s->fd = fd;
    s->events = events;
    s->wake_ns = NEVER;
    struct epoll_event event = {.events = events, .data.u64 = key_of(sw, s)};
    if (fd >= 0 && epoll_ctl(sw->epoll_fd, EPOLL_CTL_ADD, fd, &event)) {
        rc = -errno;
        sw->slots[s->slot].source = NULL;
        return rc;
    }
    links_append(&s->link, &sw->sources);
    return 0;
}

void source_want(struct vswitch *sw, struct source *s, uint32_t events)
{
    if (s->events == events)
        return;
    struct epoll_event event = {.events = events, .data.u64 = key_of(sw, s)};
    s->events = events;
    epoll_ctl(sw->epoll_fd, EPOLL_CTL_MOD, s->fd, &event);
}

void source_remove(struct vswitch *sw, struct source *s)
{
    if (s->fd >= 0)
        epoll_ctl(sw->epoll_fd, EPOLL_CTL_DEL, s->fd, NULL);
    sw->slots[s->slot].source = NULL;
    sw->slots[s->slot].generation++;
    links_remove(&s->link);
}

void flush_soon(struct vswitch *sw, struct flush *f)
{
    if (links_empty(&f->link))
        links_append(&f->link, &sw->flushes);
}

/* ---- a turn ----------------------------------------------------------------------------------------------------- */

static void run_events(struct vswitch *sw, const struct epoll_event *event, int n)
{
    for (int i = 0; i < n; i++) {
        if (event[i].data.u64 == WAKE_KEY) {
            eventfd_t ignored;
            eventfd_read(sw->wake_fd, &ignored);
            continue;
        }
        const struct slot *slot = &sw->slots[(uint32_t)event[i].data.u64];
        if (slot->source && slot->generation == event[i].data.u64 >> 32)
            slot->source->ready(slot->source, event[i].events);
    }
}

static void run_timers(struct vswitch *sw)
{
    struct link *next;
    for (struct link *l = sw->sources.next; l != &sw->sources; l = next) {
        struct source *s = container_of(l, struct source, link);
        next = l->next;
        if (s->wake_ns <= sw->now_ns) {
            s->wake_ns = NEVER;
            s->wake(s);
        }
    }
}

static void run_flushes(struct vswitch *sw)
{
    while (!links_empty(&sw->flushes)) {
        struct flush *f = container_of(sw->flushes.next, struct flush, link);
        links_remove(&f->link);
        f->flush(f);
    }
}

static uint64_t next_wake(struct vswitch *sw)
{
    uint64_t wake = NEVER;
    for_each_link(l, &sw->sources) {
        const struct source *s = container_of(l, struct source, link);
        wake = s->wake_ns < wake ? s->wake_ns : wake;
    }
    return wake;
}

/* Milliseconds until then, rounded up: a time that has not come is no reason to spin. */
static int wait_ms(const struct vswitch *sw, uint64_t wake_ns, int most)
{
    if (wake_ns == NEVER)
        return most;
    uint64_t now = vs_clock();
    uint64_t ms = wake_ns <= now ? 0 : (wake_ns - now + 999999) / 1000000;
    (void)sw;
    return most >= 0 && ms > (uint64_t)most ? most : ms > 60000 ? 60000 : (int)ms;
}

/* The lock is held before and after, not in between. */
static int turn(struct vswitch *sw, int timeout_ms)
{
    struct epoll_event event[EVENTS_AT_ONCE];
    pthread_mutex_unlock(&sw->mutex);
    int n = epoll_wait(sw->epoll_fd, event, EVENTS_AT_ONCE, timeout_ms);
    lock_after_others(sw);
    sw->now_ns = vs_clock();
    sw->turns++;
    sw->naps += timeout_ms != 0;
    run_events(sw, event, n);
    run_timers(sw);
    uint64_t wake = NEVER;
    bool more = sw->hook && sw->hook->turn(sw->hook, &wake);
    run_flushes(sw);
    uint64_t other = next_wake(sw);
    return more ? 0 : wait_ms(sw, wake < other ? wake : other, -1);
}

static void *loop(void *data)
{
    struct vswitch *sw = data;
    int timeout = 0;
    pthread_mutex_lock(&sw->mutex);
    while (!atomic_load(&sw->stopping))
        timeout = turn(sw, timeout);
    pthread_mutex_unlock(&sw->mutex);
    return NULL;
}

int vs_step(vswitch_t *sw, int timeout_ms)
{
    if (sw->running)
        return -EBUSY;
    pthread_mutex_lock(&sw->mutex);
    int wanted = turn(sw, timeout_ms);
    pthread_mutex_unlock(&sw->mutex);
    return wanted == 0;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static int open_fds(struct vswitch *sw)
{
    sw->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    sw->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sw->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = WAKE_KEY};
    if (sw->epoll_fd < 0 || sw->wake_fd < 0 || sw->news_fd < 0)
        return -errno;
    return epoll_ctl(sw->epoll_fd, EPOLL_CTL_ADD, sw->wake_fd, &event) ? -errno : 0;
}

int vs_create(void *memory, uint64_t bytes, vswitch_t **out)
{
    struct vswitch *sw = calloc(1, sizeof(*sw));
    if (!sw)
        return -ENOMEM;
    sw->epoll_fd = sw->wake_fd = sw->news_fd = -1;
    links_init(&sw->networks);
    links_init(&sw->sources);
    links_init(&sw->flushes);
    pthread_mutex_init(&sw->mutex, NULL);
    pthread_cond_init(&sw->let_in, NULL);
    sw->now_ns = vs_clock();
    if (getrandom(&sw->hash_key, sizeof(sw->hash_key), 0) < 0)
        sw->hash_key = sw->now_ns;
    int rc = pool_init(&sw->pool, memory, bytes);
    if (!rc)
        rc = open_fds(sw);
    if (rc) {
        vs_destroy(sw);
        return rc;
    }
    *out = sw;
    return 0;
}

static void destroy_network(struct network *net)
{
    while (!links_empty(&net->ports))
        vs_port_destroy(container_of(net->ports.next, struct port, link));
    vs_network_destroy(net);
}

void vs_destroy(vswitch_t *sw)
{
    if (!sw)
        return;
    vs_stop(sw);
    while (!links_empty(&sw->networks))
        destroy_network(container_of(sw->networks.next, struct network, link));
    int fds[] = {sw->epoll_fd, sw->wake_fd, sw->news_fd};
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    pthread_cond_destroy(&sw->let_in);
    pthread_mutex_destroy(&sw->mutex);
    pool_free(&sw->pool);
    free(sw->slots);
    free(sw);
}

int vs_start(vswitch_t *sw)
{
    if (sw->running)
        return -EBUSY;
    int rc = pthread_create(&sw->thread, NULL, loop, sw);
    sw->running = rc == 0;
    return -rc;
}

void vs_stop(vswitch_t *sw)
{
    if (!sw->running)
        return;
    atomic_store(&sw->stopping, true);
    vs_wake(sw);
    pthread_mutex_lock(&sw->mutex);
    pthread_cond_broadcast(&sw->let_in);
    pthread_mutex_unlock(&sw->mutex);
    pthread_join(sw->thread, NULL);
    atomic_store(&sw->stopping, false);
    sw->running = false;
}

int vs_statistics(vswitch_t *sw, struct vs_statistics *out)
{
    vs_lock(sw);
    *out = (struct vs_statistics){.nr_pages = sw->pool.nr_pages, .nr_free_pages = sw->pool.nr_free};
    out->turns = sw->turns;
    out->naps = sw->naps;
    for_each_link(l, &sw->networks) {
        out->nr_networks++;
        for_each_link(m, &container_of(l, struct network, link)->ports)
            out->nr_ports++;
    }
    vs_unlock(sw);
    return 0;
}
