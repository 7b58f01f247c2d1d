/*
 * Connections: the host processes that act for a process domain, each with its arena (guest handles of its hypercalls
 * are offsets in it), its event ports, its grant mappings and its hypercall rings (hcall_ring.c); all go with it.
 *
 * The doorbell thread waits on the doorbells of all bound ports. A doorbell is watched edge-triggered: every write to an
 * eventfd is an edge, so the thread need not read it. Clients keep duplicates of the descriptors, so a closed port is
 * taken out of the epoll set explicitly, and an event read out before that is recognised by the port's generation in
 * its key. The same thread does the work that arises where locks forbid to do it (hv_post_work): shutdowns, console news.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "event.h"
#include "grant_table.h"
#include "hypercall.h"

#define MAX_ARENA_BYTES (64ull << 20)
#define MAX_UNPRIVILEGED_ARENA_BYTES (16ull << 20) /* of host memory that no domain is charged for */
#define CALL_BUDGET_NS 100000 /* of one call: the control thread serves others as well */
#define WORK_KEY (~0ull)
#define EVENTS_AT_ONCE 64

struct doorbells {
    int epoll_fd, work_fd;
    pthread_t thread;
    bool started;
};

/* ---- connections ------------------------------------------------------------------------------------------------ */

/* event_lock held. */
static void hang_up(struct hv_conn *conn)
{
    if (conn->hangup_fd >= 0)
        eventfd_write(conn->hangup_fd, 1);
}

void conns_hang_up(struct domain *d)
{
    struct list *it, *next;
    lock(&d->hv->event_lock);
    list_for_each_safe(it, next, &d->hv->conns)
        if (container_of(it, struct hv_conn, link)->domain == d)
            hang_up(container_of(it, struct hv_conn, link));
    unlock(&d->hv->event_lock);
}

int hv_conn_hangup_fd(hv_conn_t *conn) { return conn->hangup_fd; }

int hv_conn_create(hv_t *hv, uint16_t domid, hv_conn_t **out)
{
    struct domain *d = domid < DOMID_FIRST_RESERVED ? get_domain(hv, NULL, domid) : NULL;
    if (!d)
        return -XEN_ESRCH;
    struct hv_conn *conn = d->kind == DOMAIN_PROCESS ? calloc(1, sizeof(*conn)) : NULL;
    if (!conn) {
        int rc = d->kind == DOMAIN_PROCESS ? -XEN_ENOMEM : -XEN_EINVAL;
        put_domain(d);
        return rc;
    }
    conn->hangup_fd = d->is_privileged ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (conn->hangup_fd < 0 && !d->is_privileged) {
        free(conn);
        put_domain(d);
        return -XEN_EMFILE;
    }
    conn->hv = hv;
    conn->domain = d;
    list_init(&conn->grant_maps);
    list_init(&conn->rings);
    lock(&hv->event_lock);
    list_append(&conn->link, &hv->conns);
    hv->nr_conns++;
    if (atomic_load(&d->dying)) /* too late to be told */
        hang_up(conn);
    unlock(&hv->event_lock);
    *out = conn;
    return 0;
}

static bool has_connection(struct domain *d)
{
    struct list *it, *next;
    list_for_each_safe(it, next, &d->hv->conns)
        if (container_of(it, struct hv_conn, link)->domain == d)
            return true;
    return false;
}

/* A guest whose processes are gone and that did not shut down. */
static void mourn(struct domain *d)
{
    if (!d->is_privileged && !atomic_load(&d->dying) && !atomic_load(&d->is_shutting_down))
        domain_crash(d, "its last process is gone");
}

static void drop_arena(struct hv_conn *conn)
{
    if (conn->arena)
        munmap(conn->arena, conn->arena_bytes);
    conn->arena = NULL;
    conn->arena_bytes = 0;
}

int hv_conn_end(hv_conn_t *conn)
{
    hcall_rings_end(conn);
    evtchn_close_conn(conn);
    return grant_unmap_some(conn);
}

void hv_conn_destroy(hv_conn_t *conn)
{
    if (!conn)
        return;
    struct hv *hv = conn->hv;
    while (hv_conn_end(conn) == -XEN_ERESTART)
        ;
    drop_arena(conn);
    lock(&hv->event_lock);
    list_remove(&conn->link);
    hv->nr_conns--;
    bool was_last = !has_connection(conn->domain);
    unlock(&hv->event_lock);
    if (was_last)
        mourn(conn->domain);
    if (conn->hangup_fd >= 0)
        close(conn->hangup_fd);
    put_domain(conn->domain);
    free(conn);
}

/* A client that could shrink its memfd could make us fault; so could one of huge pages that the host hasn't got. */
static int check_arena(int fd, uint64_t bytes)
{
    const int needed = F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat st;
    struct statfs fs;
    if (!bytes || bytes % PAGE_SIZE || bytes > MAX_ARENA_BYTES)
        return -XEN_EINVAL;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & needed) != needed)
        return -XEN_EINVAL;
    if (fstatfs(fd, &fs) || fs.f_type != TMPFS_MAGIC)
        return -XEN_EINVAL;
    if (fstat(fd, &st) || (uint64_t)st.st_size < bytes)
        return -XEN_EINVAL;
    return 0;
}

int hv_conn_set_arena(hv_conn_t *conn, int fd, uint64_t bytes)
{
    int rc = conn->arena ? -XEN_EBUSY : check_arena(fd, bytes);
    if (rc)
        return rc;
    void *arena = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (arena == MAP_FAILED)
        return -XEN_ENOMEM;
    conn->arena = arena;
    conn->arena_bytes = bytes;
    return 0;
}

int hv_conn_make_arena(hv_conn_t *conn, uint64_t bytes, int *out)
{
    uint64_t max = conn->domain->is_privileged ? MAX_ARENA_BYTES : MAX_UNPRIVILEGED_ARENA_BYTES;
    if (!bytes || bytes % PAGE_SIZE || bytes > max)
        return -XEN_EINVAL;
    int fd = memfd_create("umxen-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -XEN_EMFILE;
    int rc = ftruncate(fd, (off_t)bytes) || seal_size(fd) ? -XEN_ENOMEM : hv_conn_set_arena(conn, fd, bytes);
    if (rc)
        close(fd);
    else
        *out = fd;
    return rc;
}

int hv_conn_port_fds(hv_conn_t *conn, uint32_t port, int *upcall, int *doorbell)
{
    return evtchn_port_fds(conn, port, upcall, doorbell);
}

/* The same call again goes on where the last one stopped; any other starts afresh. */
static bool take_continuation(struct continuation *c, uint64_t nr, const uint64_t args[6], uint64_t now[6])
{
    bool same = c->valid && c->nr == nr && !memcmp(c->asked, args, sizeof(c->asked));
    memcpy(now, same ? c->args : args, sizeof(c->args));
    c->valid = false;
    return same;
}

bool conn_is_held(const struct hv_conn *conn)
{
    return atomic_load(&conn->domain->pause_count) && !atomic_load(&conn->domain->dying);
}

int64_t conn_hypercall(struct hv_conn *conn, struct hcall_channel *channel, uint64_t nr, const uint64_t args[6])
{
    struct continuation *c = &channel->continuation;
    uint64_t now[6];
    if (atomic_load(&conn->domain->dying))
        return -XEN_ESRCH;
    if (conn_is_held(conn))
        return -XEN_ERESTART;
    take_continuation(c, nr, args, now);
    channel->deadline_ns = hv_now(conn->hv) + CALL_BUDGET_NS;
    current_caller = (struct caller){.conn = conn, .domain = conn->domain, .channel = channel};
    int64_t ret = do_hypercall(nr, now);
    current_caller = (struct caller){0};
    if (ret == -XEN_ERESTART && c->valid) {
        c->nr = nr;
        memcpy(c->asked, args, sizeof(c->asked));
    }
    return ret;
}

int64_t hv_conn_hypercall(hv_conn_t *conn, uint64_t nr, const uint64_t args[6])
{
    return conn_hypercall(conn, &conn->socket, nr, args);
}

/* ---- doorbells and deferred work -------------------------------------------------------------------------------- */

int doorbell_watch(struct hv *hv, int fd, uint64_t key)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = key};
    return epoll_ctl(hv->doorbells->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -XEN_ENOMEM : 0;
}

void doorbell_unwatch(struct hv *hv, int fd)
{
    epoll_ctl(hv->doorbells->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

void hv_post_work(struct hv *hv)
{
    if (hv->doorbells && eventfd_write(hv->doorbells->work_fd, 1))
        BUG_ON(errno != EAGAIN);
}

static void do_work(struct hv *hv)
{
    domain_shutdown_work(hv);
    console_work(hv);
}

static void *doorbell_thread(void *data)
{
    struct hv *hv = data;
    struct epoll_event event[EVENTS_AT_ONCE];
    while (!atomic_load(&hv->stopping)) {
        int n = epoll_wait(hv->doorbells->epoll_fd, event, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < n; i++) {
            if (event[i].data.u64 == WORK_KEY)
                do_work(hv);
            else
                evtchn_doorbell(hv, event[i].data.u64);
        }
    }
    return NULL;
}

int doorbells_init(struct hv *hv)
{
    struct doorbells *b = calloc(1, sizeof(*b));
    if (!b)
        return -XEN_ENOMEM;
    hv->doorbells = b;
    b->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    b->work_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (b->epoll_fd < 0 || b->work_fd < 0)
        return -XEN_EMFILE;
    return doorbell_watch(hv, b->work_fd, WORK_KEY);
}

int doorbells_start(struct hv *hv)
{
    int rc = hv_thread_create(&hv->doorbells->thread, "umxen-doorbell", 0, doorbell_thread, hv);
    hv->doorbells->started = rc == 0;
    return rc;
}

/* hv->stopping is set. */
void doorbells_stop(struct hv *hv)
{
    hv_post_work(hv);
    if (hv->doorbells->started)
        pthread_join(hv->doorbells->thread, NULL);
    hv->doorbells->started = false;
}

void doorbells_destroy(struct hv *hv)
{
    if (hv->doorbells->epoll_fd >= 0)
        close(hv->doorbells->epoll_fd);
    if (hv->doorbells->work_fd >= 0)
        close(hv->doorbells->work_fd);
    free(hv->doorbells);
    hv->doorbells = NULL;
}
