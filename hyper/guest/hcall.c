/*
 * The process's end of a hypercall ring; public/hcall_ring.h has the protocol.
 *
 * A call waits for its answer before it returns, so one entry is in use at a time. The wait spins for SPIN_NS, as an awake
 * hypervisor answers within a microsecond, and then sleeps in a futex on rsp_prod. The futex can't tell that the hypervisor
 * died: the sleep ends each LOOK_NS for a look at the doorbell socket, whose other half the hypervisor holds.
 */
#define _GNU_SOURCE
#include "hcall.h"

#include <linux/futex.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "errno.h" /* ours: XEN_E* */
#include "hcall_ring.h"
#include "xen.h"

#define SPIN_NS 5000
#define LOOK_NS 200000000

struct hcall_ring {
    struct hcall_page *page;
    uint32_t prod;
    int doorbell;
    uint8_t *window;
    uint64_t window_addr;
    uint32_t window_bytes;
};

struct hcall_ring *hcall_open(int memfd, int doorbell_fd, void *window, uint64_t window_addr, uint32_t window_bytes)
{
    struct hcall_ring *r = malloc(sizeof(*r));
    void *page = r ? mmap(NULL, HCALL_RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0) : MAP_FAILED;
    if (page == MAP_FAILED) {
        free(r);
        return NULL;
    }
    *r = (struct hcall_ring){.page = page,
                             .prod = ((struct hcall_page *)page)->req_prod,
                             .doorbell = doorbell_fd,
                             .window = window,
                             .window_addr = window_addr,
                             .window_bytes = window_bytes};
    return r;
}

void hcall_close(struct hcall_ring *r)
{
    if (!r)
        return;
    munmap(r->page, HCALL_RING_BYTES);
    free(r);
}

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool answered(const struct hcall_ring *r)
{
    return __atomic_load_n(&r->page->rsp_prod, __ATOMIC_ACQUIRE) == r->prod;
}

static bool spin(const struct hcall_ring *r)
{
    uint64_t end = now_ns() + SPIN_NS;
    while (!answered(r) && now_ns() < end)
        for (int i = 0; i < 16; i++)
            __builtin_ia32_pause();
    return answered(r);
}

static bool is_gone(const struct hcall_ring *r)
{
    char byte;
    return __atomic_load_n(&r->page->closed, __ATOMIC_SEQ_CST) ||
           recv(r->doorbell, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* False: the hypervisor is gone. */
static bool sleep_until_answered(struct hcall_ring *r)
{
    const struct timespec look = {.tv_nsec = LOOK_NS};
    bool gone = false;
    __atomic_store_n(&r->page->client_waits, 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    while (!answered(r) && !gone) {
        uint32_t seen = __atomic_load_n(&r->page->rsp_prod, __ATOMIC_RELAXED);
        if (seen != r->prod && !(gone = is_gone(r)))
            syscall(SYS_futex, &r->page->rsp_prod, FUTEX_WAIT, seen, &look, NULL, 0);
    }
    __atomic_store_n(&r->page->client_waits, 0, __ATOMIC_RELAXED);
    return answered(r);
}

/* False: the hypervisor is gone. */
static bool submit(struct hcall_ring *r)
{
    __atomic_store_n(&r->page->req_prod, ++r->prod, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&r->page->server_waits, __ATOMIC_RELAXED))
        return true;
    return send(r->doorbell, "", 1, MSG_NOSIGNAL) == 1;
}

int64_t hcall(struct hcall_ring *r, uint32_t nr, const uint64_t args[5])
{
    struct hcall_entry *e = &r->page->entry[r->prod % HCALL_RING_ENTRIES];
    e->nr = nr;
    memcpy(e->args, args, sizeof(e->args));
    if (!submit(r) || (!spin(r) && !sleep_until_answered(r)))
        return -XEN_EIO;
    return e->ret;
}

/* ---- grant operations ------------------------------------------------------------------------------------------- */

static int grant_ops(struct hcall_ring *r, uint64_t cmd, void *ops, uint32_t n, uint32_t op_bytes)
{
    uint32_t room = r->window_bytes / op_bytes;
    if (!room)
        return -XEN_E2BIG;
    while (n) {
        uint32_t now = n < room ? n : room;
        memcpy(r->window, ops, (size_t)now * op_bytes);
        int64_t ret = hcall(r, __HYPERVISOR_grant_table_op, (uint64_t[5]){cmd, r->window_addr, now});
        if (ret < 0)
            return (int)ret;
        memcpy(ops, r->window, (size_t)now * op_bytes);
        ops = (uint8_t *)ops + (size_t)now * op_bytes;
        n -= now;
    }
    return 0;
}

int hcall_grant_map(struct hcall_ring *r, struct gnttab_map_grant_ref *ops, uint32_t n)
{
    return grant_ops(r, GNTTABOP_map_grant_ref, ops, n, sizeof(*ops));
}

int hcall_grant_unmap(struct hcall_ring *r, struct gnttab_unmap_grant_ref *ops, uint32_t n)
{
    return grant_ops(r, GNTTABOP_unmap_grant_ref, ops, n, sizeof(*ops));
}

int hcall_grant_copy(struct hcall_ring *r, struct gnttab_copy *ops, uint32_t n)
{
    return grant_ops(r, GNTTABOP_copy, ops, n, sizeof(*ops));
}
