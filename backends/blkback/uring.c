/*
 * I/O by io_uring, by its three system calls' own hands: liburing would be a dependency for a hundred lines.
 *
 * The submission queue is as deep as the queue has requests, so there is always room; each request is one entry at a time
 * (a short transfer submits its rest). The completion queue is twice as deep and can't overflow. The ring's descriptor is
 * readable while there are completions.
 *
 * Writes through the page cache are the exception: most file systems have no way to start one without waiting, so the kernel
 * would hand each to a worker thread, at ten times the price of the copy into the cache. They are done at once, in submit().
 *
 * What a ring can't do goes to a pool engine inside, whose eventfd is then watched by the ring itself (a POLL_ADD entry,
 * armed while such an io is out), so that the owner still has one descriptor to wait for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"

struct uring_engine {
    struct io_engine engine;
    struct io_engine *pool; /* made when first needed */
    struct io_pool *threads;
    int file;
    bool block_device, cached;
    struct io *ready; /* done in submit() */
    uint32_t sq_tail, sq_submitted, nr_pooled;
    bool pool_watched;
    uint32_t *sq_khead, *sq_ktail, *sq_array, sq_mask, sq_entries;
    uint32_t *cq_khead, *cq_ktail, cq_mask;
    struct io_uring_sqe *sqe;
    struct io_uring_cqe *cqe;
    void *ring, *sqe_memory;
    size_t ring_bytes, sqe_bytes;
};

#define POOL_COOKIE 0 /* user_data of the POLL_ADD: no io has that address */

/* ---- system calls and mappings */

static int setup(uint32_t entries, struct io_uring_params *params)
{
    return (int)syscall(__NR_io_uring_setup, entries, params);
}

static int enter(struct uring_engine *u, uint32_t to_submit)
{
    return (int)syscall(__NR_io_uring_enter, u->engine.fd, to_submit, 0, 0, NULL, 0);
}

int blk_uring_works(void)
{
    struct io_uring_params params = {0};
    int fd = setup(2, &params);

    if (fd < 0)
        return 0;
    close(fd);
    return (params.features & IORING_FEAT_SINGLE_MMAP) && (params.features & IORING_FEAT_NODROP);
}

static bool map_ring(struct uring_engine *u, const struct io_uring_params *p)
{
    size_t sq_bytes = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    size_t cq_bytes = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    int how = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;

    u->ring_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
    u->sqe_bytes = p->sq_entries * sizeof(struct io_uring_sqe);
    u->ring = mmap(NULL, u->ring_bytes, how, flags, u->engine.fd, IORING_OFF_SQ_RING);
    u->sqe_memory = mmap(NULL, u->sqe_bytes, how, flags, u->engine.fd, IORING_OFF_SQES);
    if (u->ring == MAP_FAILED || u->sqe_memory == MAP_FAILED)
        return false;
    char *base = u->ring;

    u->sq_khead = (void *)(base + p->sq_off.head);
    u->sq_ktail = (void *)(base + p->sq_off.tail);
    u->sq_array = (void *)(base + p->sq_off.array);
    u->sq_mask = p->sq_entries - 1;
    u->sq_entries = p->sq_entries;
    u->cq_khead = (void *)(base + p->cq_off.head);
    u->cq_ktail = (void *)(base + p->cq_off.tail);
    u->cq_mask = p->cq_entries - 1;
    u->cqe = (void *)(base + p->cq_off.cqes);
    u->sqe = u->sqe_memory;
    return true;
}

/* ---- submission */

/* Hands over what stands in the queue. What the kernel does not take now, it is given again at the next call. */
static void uring_commit(struct io_engine *base)
{
    struct uring_engine *u = (struct uring_engine *)base;

    __atomic_store_n(u->sq_ktail, u->sq_tail, __ATOMIC_RELEASE);
    while (u->sq_submitted != u->sq_tail) {
        int taken = enter(u, u->sq_tail - u->sq_submitted);

        if (taken > 0)
            u->sq_submitted += (uint32_t)taken;
        else if (taken == 0 || errno != EINTR)
            break;
    }
}

/* An entry, zeroed. NULL: the queue is full, and the kernel takes nothing. */
static struct io_uring_sqe *next_entry(struct uring_engine *u)
{
    if (u->sq_tail - __atomic_load_n(u->sq_khead, __ATOMIC_ACQUIRE) == u->sq_entries)
        uring_commit(&u->engine);
    if (u->sq_tail - __atomic_load_n(u->sq_khead, __ATOMIC_ACQUIRE) == u->sq_entries)
        return NULL;
    uint32_t at = u->sq_tail++ & u->sq_mask;

    u->sq_array[at] = at;
    memset(&u->sqe[at], 0, sizeof(u->sqe[at]));
    return &u->sqe[at];
}

static void watch_pool(struct uring_engine *u)
{
    struct io_uring_sqe *sqe;

    if (u->pool_watched || !u->nr_pooled || !(sqe = next_entry(u)))
        return;
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = u->pool->fd;
    sqe->poll32_events = POLLIN;
    sqe->user_data = POOL_COOKIE;
    u->pool_watched = true;
}

static void submit_to_pool(struct uring_engine *u, struct io *io)
{
    u->nr_pooled++;
    u->pool->ops->submit(u->pool, io);
    watch_pool(u);
}

static void write_at_once(struct uring_engine *u, struct io *io)
{
    io->result = io_move_data(u->file, io);
    io->next = u->ready;
    u->ready = io;
}

static void uring_submit(struct io_engine *base, struct io *io)
{
    struct uring_engine *u = (struct uring_engine *)base;
    struct io_uring_sqe *sqe;

    if (io->kind == IO_WRITE && u->cached) {
        write_at_once(u, io);
        return;
    }
    if ((io->kind == IO_DISCARD && u->block_device) || !(sqe = next_entry(u))) {
        submit_to_pool(u, io);
        return;
    }
    sqe->fd = u->file;
    sqe->user_data = (uintptr_t)io;
    switch (io->kind) {
    case IO_READ:
    case IO_WRITE:
        sqe->opcode = io->kind == IO_READ ? IORING_OP_READV : IORING_OP_WRITEV;
        sqe->off = io->offset;
        sqe->addr = (uintptr_t)io->iov;
        sqe->len = io->nr_iov;
        break;
    case IO_FLUSH:
        sqe->opcode = IORING_OP_FSYNC;
        sqe->fsync_flags = IORING_FSYNC_DATASYNC;
        break;
    case IO_DISCARD:
        sqe->opcode = IORING_OP_FALLOCATE;
        sqe->off = io->offset;
        sqe->addr = io->bytes;
        sqe->len = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        break;
    }
}

/* ---- completion */

/* True when the io is done; a short transfer goes on, what the kernel only could not do just now is tried again. */
static bool completed(struct uring_engine *u, struct io *io, int32_t result)
{
    bool moves_data = io->kind == IO_READ || io->kind == IO_WRITE;

    io->result = 0;
    if (result == -EAGAIN || result == -EINTR) {
        uring_submit(&u->engine, io);
        return false;
    }
    if (result < 0)
        io->result = result;
    else if (moves_data && result == 0 && io->bytes)
        io->result = -EIO; /* the file has been cut under us */
    else if (moves_data && !io_advance(io, (uint64_t)result)) {
        uring_submit(&u->engine, io);
        return false;
    }
    return true;
}

static struct io *reap_pool(struct uring_engine *u, struct io *list)
{
    for (struct io *io = u->pool->ops->reap(u->pool), *next; io; io = next) {
        next = io->next;
        io->next = list;
        list = io;
        u->nr_pooled--;
    }
    return list;
}

static struct io *uring_reap(struct io_engine *base)
{
    struct uring_engine *u = (struct uring_engine *)base;
    uint32_t head = __atomic_load_n(u->cq_khead, __ATOMIC_RELAXED);
    uint32_t tail = __atomic_load_n(u->cq_ktail, __ATOMIC_ACQUIRE);
    uint32_t before = u->sq_tail;
    struct io *done = u->ready;

    u->ready = NULL;
    for (; head != tail; head++) {
        const struct io_uring_cqe *cqe = &u->cqe[head & u->cq_mask];
        struct io *io = (struct io *)(uintptr_t)cqe->user_data;

        if (!io) {
            u->pool_watched = false;
            done = reap_pool(u, done);
        } else if (completed(u, io, cqe->res)) {
            io->next = done;
            done = io;
        }
    }
    __atomic_store_n(u->cq_khead, head, __ATOMIC_RELEASE);
    watch_pool(u);
    if (u->sq_tail != before || u->sq_submitted != u->sq_tail)
        uring_commit(base);
    return done;
}

/* ---- life */

static void uring_destroy(struct io_engine *base)
{
    struct uring_engine *u = (struct uring_engine *)base;

    if (u->ring && u->ring != MAP_FAILED)
        munmap(u->ring, u->ring_bytes);
    if (u->sqe_memory && u->sqe_memory != MAP_FAILED)
        munmap(u->sqe_memory, u->sqe_bytes);
    close(base->fd);
    if (u->pool)
        u->pool->ops->destroy(u->pool);
    free(u);
}

static const struct io_engine_ops uring_ops = {uring_submit, uring_commit, uring_reap, uring_destroy};

struct io_engine *uring_engine_create(struct io_pool *pool, int file, bool block_device, uint32_t depth)
{
    struct io_uring_params params = {.flags = IORING_SETUP_CLAMP};
    struct uring_engine *u = calloc(1, sizeof(*u));

    if (!u)
        return NULL;
    u->engine.ops = &uring_ops;
    u->threads = pool;
    u->file = file;
    u->block_device = block_device;
    u->cached = !block_device && !(fcntl(file, F_GETFL) & O_DIRECT);
    u->engine.fd = setup(depth + 1, &params);
    if (u->engine.fd < 0) {
        free(u);
        return NULL;
    }
    u->pool = pool_engine_create(pool, file, block_device);
    if (!u->pool || !map_ring(u, &params) || !(params.features & IORING_FEAT_NODROP)) {
        uring_destroy(&u->engine);
        return NULL;
    }
    return &u->engine;
}
