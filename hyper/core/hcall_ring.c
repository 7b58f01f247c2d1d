/*
 * Hypercall rings: grant operations and other hot calls of process domains, without the control socket.
 *
 * The hypervisor makes the ring's page and the doorbell, a socket pair, and hands the client its half, so that no property of
 * a client's descriptors matters. A thread per ring serves it: it copies each entry out once, runs the call as the ring's
 * connection, repeats it while it is preempted, and stores the answer. public/hcall_ring.h has the protocol.
 *
 * The page is the client's to write at any time. Only req_prod is read back, and a value out of range ends the ring; our own
 * indices are kept here. The thread waits in recv on our own half, whose flags the client can't reach; what wakes a client is
 * a futex, which can't block us. A ring ends when the client closes its half, or with its connection: that sets `stopping`,
 * shuts the socket down and joins the thread. A thread that has ended by itself is joined when its place is wanted.
 *
 * Spinning: a wake-up across CPUs costs 5 to 50 us, a call less than one. After a call the thread looks for the next one for
 * SPIN_NS before it sleeps; on a busy host longer spinning takes the CPU from the client it waits for.
 *
 * Locks: none. The list of a connection's rings belongs to the control thread; counts are atomic.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../public/hcall_ring.h"
#include "hypercall.h"

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83 /* off: a descriptor of the client's whose last close waits for ever never gets to us */
#endif
#define MAX_RINGS_PRIVILEGED 64u
#define MAX_RINGS 4u
#define SPIN_NS 5000u
#define HELD_NS 2000000 /* how often a paused domain's call looks whether it may go on */
#define UNPRIVILEGED_NICE 5 /* as physical CPUs: what a guest orders doesn't come before Dom0 */

struct hcall_ring {
    struct list link; /* of its connection */
    struct hv_conn *conn;
    struct hcall_channel channel;
    struct hcall_page *page;
    uint32_t served; /* our rsp_prod */
    int socket;
    pthread_t thread;
    _Atomic bool stopping, ended;
};

/* ---- serving ---------------------------------------------------------------------------------------------------- */

static uint32_t requests(const struct hcall_ring *r)
{
    return __atomic_load_n(&r->page->req_prod, __ATOMIC_ACQUIRE) - r->served;
}

static int64_t call_to_the_end(struct hcall_ring *r, const struct hcall_entry *e)
{
    const uint64_t args[6] = {e->args[0], e->args[1], e->args[2], e->args[3], e->args[4], 0};
    int64_t ret;
    while ((ret = conn_hypercall(r->conn, &r->channel, e->nr, args)) == -XEN_ERESTART) {
        if (atomic_load(&r->stopping))
            return -XEN_EIO;
        if (conn_is_held(r->conn))
            nanosleep(&(struct timespec){.tv_nsec = HELD_NS}, NULL);
    }
    return ret;
}

static void wake_client(struct hcall_ring *r)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (__atomic_load_n(&r->page->client_waits, __ATOMIC_RELAXED))
        syscall(SYS_futex, &r->page->rsp_prod, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void serve_one(struct hcall_ring *r)
{
    struct hcall_entry *shared = &r->page->entry[r->served % HCALL_RING_ENTRIES], copy;
    memcpy(&copy, shared, sizeof(copy));
    __asm__ volatile("" : : : "memory"); /* the copy is what is used */
    int64_t ret = call_to_the_end(r, &copy);
    __atomic_store_n(&shared->ret, ret, __ATOMIC_RELAXED);
    __atomic_store_n(&r->page->rsp_prod, ++r->served, __ATOMIC_RELEASE);
    wake_client(r);
}

static bool spin(const struct hcall_ring *r)
{
    uint64_t end = hv_now(r->conn->hv) + SPIN_NS;
    while (!requests(r) && hv_now(r->conn->hv) < end)
        for (int i = 0; i < 16; i++)
            __builtin_ia32_pause();
    return requests(r);
}

/* False: the other half is closed, or ours shut down. */
static bool sleep_until_rung(struct hcall_ring *r)
{
    char bytes[64];
    ssize_t n = 1;
    __atomic_store_n(&r->page->server_waits, 1, __ATOMIC_RELAXED);
    atomic_thread_fence(memory_order_seq_cst);
    if (!requests(r))
        n = recv(r->socket, bytes, sizeof(bytes), 0);
    __atomic_store_n(&r->page->server_waits, 0, __ATOMIC_RELAXED);
    return n > 0 || (n < 0 && errno == EINTR);
}

static void serve(struct hcall_ring *r)
{
    while (!atomic_load(&r->stopping)) {
        uint32_t n = requests(r);
        if (n > HCALL_RING_ENTRIES)
            return;
        if (n)
            serve_one(r);
        else if (!spin(r) && !sleep_until_rung(r))
            return;
    }
}

static void *ring_thread(void *data)
{
    struct hcall_ring *r = data;
    serve(r);
    __atomic_store_n(&r->page->closed, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &r->page->rsp_prod, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    shutdown(r->socket, SHUT_RDWR);
    atomic_fetch_sub(&r->conn->hv->nr_rings, 1);
    atomic_store(&r->ended, true);
    return NULL;
}

/* ---- making and ending ------------------------------------------------------------------------------------------ */

static void ring_free(struct hcall_ring *r)
{
    if (r->page)
        munmap(r->page, HCALL_RING_BYTES);
    if (r->socket >= 0)
        close(r->socket);
    free(r);
}

static void ring_join(struct hcall_ring *r)
{
    pthread_join(r->thread, NULL);
    list_remove(&r->link);
    r->conn->nr_rings--;
    ring_free(r);
}

static void join_ended(struct hv_conn *conn)
{
    struct list *it, *next;
    list_for_each_safe(it, next, &conn->rings) {
        struct hcall_ring *r = container_of(it, struct hcall_ring, link);
        if (atomic_load(&r->ended))
            ring_join(r);
    }
}

void hcall_rings_end(struct hv_conn *conn)
{
    struct list *it, *next;
    list_for_each_safe(it, next, &conn->rings) { /* all at once, then wait for each */
        struct hcall_ring *r = container_of(it, struct hcall_ring, link);
        atomic_store(&r->stopping, true);
        shutdown(r->socket, SHUT_RDWR);
    }
    list_for_each_safe(it, next, &conn->rings)
        ring_join(container_of(it, struct hcall_ring, link));
}

/* A sealed memfd, mapped; -1 or the fd. */
static int make_page(struct hcall_ring *r)
{
    int fd = memfd_create("umxen-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -1;
    void *page = MAP_FAILED;
    if (!ftruncate(fd, HCALL_RING_BYTES) && !seal_size(fd))
        page = mmap(NULL, HCALL_RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) {
        close(fd);
        return -1;
    }
    r->page = page;
    return fd;
}

/* fds: the page's memfd and the client's half of the doorbell, the caller's to close. */
static int make_parts(struct hcall_ring *r, int fds[2])
{
    int pair[2];
    if ((fds[0] = make_page(r)) < 0)
        return -XEN_EMFILE;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        close(fds[0]);
        return -XEN_EMFILE;
    }
    setsockopt(pair[0], SOL_SOCKET, SO_PASSRIGHTS, &(int){0}, sizeof(int)); /* Linux 6.16 */
    r->socket = pair[0];
    fds[1] = pair[1];
    return 0;
}

static int ring_start(struct hcall_ring *r, int fds[2])
{
    int nice = r->conn->domain->is_privileged ? 0 : UNPRIVILEGED_NICE;
    int rc = make_parts(r, fds);
    if (rc)
        return rc;
    atomic_fetch_add(&r->conn->hv->nr_rings, 1);
    rc = hv_thread_create(&r->thread, "umxen-ring", nice, ring_thread, r);
    if (rc) {
        atomic_fetch_sub(&r->conn->hv->nr_rings, 1);
        close(fds[0]);
        close(fds[1]);
    }
    return rc;
}

int hv_conn_open_ring(hv_conn_t *conn, int *memfd, int *doorbell)
{
    join_ended(conn);
    if (!conn->arena)
        return -XEN_EINVAL;
    if (conn->nr_rings >= (conn->domain->is_privileged ? MAX_RINGS_PRIVILEGED : MAX_RINGS))
        return -XEN_ENOSPC;
    struct hcall_ring *r = calloc(1, sizeof(*r));
    if (!r)
        return -XEN_ENOMEM;
    r->conn = conn;
    r->socket = -1;
    int fds[2], rc = ring_start(r, fds);
    if (rc) {
        ring_free(r);
        return rc;
    }
    list_append(&r->link, &conn->rings);
    conn->nr_rings++;
    *memfd = fds[0];
    *doorbell = fds[1];
    return 0;
}
