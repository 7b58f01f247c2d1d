/*
 * I/O by threads, where the kernel has no io_uring for us, and for what an io_uring does not do (BLKDISCARD).
 *
 * One pool serves all queues: a list of jobs under a lock, threads that take from its front. An engine's done jobs go onto
 * its own list, an eventfd says so. A job keeps its engine in a wrapper of its own, so that engines and pool know nothing
 * of what a struct io belongs to.
 *
 * Locks: pool->lock, then nothing; engine->lock, then nothing. Never both.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "io.h"

struct io_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct job *first, **last;
    bool stopping;
    uint32_t nr_threads;
    pthread_t thread[];
};

struct job {
    struct io *io;
    struct pool_engine *engine;
    struct job *next;
};

struct pool_engine {
    struct io_engine engine;
    struct io_pool *pool;
    int file;
    bool block_device;
    pthread_mutex_t lock;
    struct io *done;
};

/* ---- one job */

int io_move_data(int file, struct io *io)
{
    while (io->bytes) {
        ssize_t moved = io->kind == IO_READ ? preadv(file, io->iov, (int)io->nr_iov, (off_t)io->offset)
                                            : pwritev(file, io->iov, (int)io->nr_iov, (off_t)io->offset);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            return moved ? -errno : -EIO; /* 0: the file has been cut under us */
        io_advance(io, (uint64_t)moved);
    }
    return 0;
}

static int discard(int file, bool block_device, const struct io *io)
{
    uint64_t range[2] = {io->offset, io->bytes};
    int failed = block_device ? ioctl(file, BLKDISCARD, range)
                              : fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->offset,
                                          (off_t)io->bytes);
    return failed ? -errno : 0;
}

static int perform(const struct pool_engine *engine, struct io *io)
{
    switch (io->kind) {
    case IO_READ:
    case IO_WRITE:
        return io_move_data(engine->file, io);
    case IO_FLUSH:
        return fdatasync(engine->file) ? -errno : 0;
    case IO_DISCARD:
        return discard(engine->file, engine->block_device, io);
    }
    return -EINVAL;
}

static void finish(struct pool_engine *engine, struct io *io)
{
    pthread_mutex_lock(&engine->lock);
    io->next = engine->done;
    engine->done = io;
    eventfd_write(engine->engine.fd, 1); /* under the lock: once reaped, the engine may be gone */
    pthread_mutex_unlock(&engine->lock);
}

/* ---- the pool */

static struct job *next_job(struct io_pool *pool)
{
    struct job *job;

    pthread_mutex_lock(&pool->lock);
    while (!(job = pool->first) && !pool->stopping)
        pthread_cond_wait(&pool->wake, &pool->lock);
    if (job && !(pool->first = job->next))
        pool->last = &pool->first;
    pthread_mutex_unlock(&pool->lock);
    return job;
}

static void *worker(void *data)
{
    struct job *job;

    while ((job = next_job(data))) {
        job->io->result = perform(job->engine, job->io);
        finish(job->engine, job->io);
        free(job);
    }
    return NULL;
}

static bool start_workers(struct io_pool *pool, uint32_t nr_threads)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool->nr_threads < nr_threads && !pthread_create(&pool->thread[pool->nr_threads], NULL, worker, pool))
        pool->nr_threads++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool->nr_threads > 0;
}

struct io_pool *blk_pool_create(uint32_t nr_threads)
{
    struct io_pool *pool = calloc(1, sizeof(*pool) + nr_threads * sizeof(pthread_t));

    if (!pool)
        return NULL;
    pool->last = &pool->first;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    if (!start_workers(pool, nr_threads)) {
        blk_pool_destroy(pool);
        errno = EAGAIN;
        return NULL;
    }
    return pool;
}

void blk_pool_destroy(struct io_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t i = 0; i < pool->nr_threads; i++)
        pthread_join(pool->thread[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* ---- the engine */

static void pool_submit(struct io_engine *base, struct io *io)
{
    struct pool_engine *engine = (struct pool_engine *)base;
    struct job *job = malloc(sizeof(*job));

    if (!job) {
        io->result = -ENOMEM;
        finish(engine, io);
        return;
    }
    *job = (struct job){.io = io, .engine = engine};
    pthread_mutex_lock(&engine->pool->lock);
    *engine->pool->last = job;
    engine->pool->last = &job->next;
    pthread_cond_signal(&engine->pool->wake);
    pthread_mutex_unlock(&engine->pool->lock);
}

static void pool_commit(struct io_engine *base) { (void)base; }

static struct io *pool_reap(struct io_engine *base)
{
    struct pool_engine *engine = (struct pool_engine *)base;
    eventfd_t count;

    if (eventfd_read(base->fd, &count))
        return NULL;
    pthread_mutex_lock(&engine->lock);
    struct io *done = engine->done;
    engine->done = NULL;
    pthread_mutex_unlock(&engine->lock);
    return done;
}

static void pool_destroy(struct io_engine *base)
{
    struct pool_engine *engine = (struct pool_engine *)base;

    pthread_mutex_lock(&engine->lock); /* the last finish() is out of it */
    pthread_mutex_unlock(&engine->lock);
    pthread_mutex_destroy(&engine->lock);
    close(base->fd);
    free(engine);
}

static const struct io_engine_ops pool_ops = {pool_submit, pool_commit, pool_reap, pool_destroy};

struct io_engine *pool_engine_create(struct io_pool *pool, int file, bool block_device)
{
    struct pool_engine *engine = calloc(1, sizeof(*engine));

    if (!engine)
        return NULL;
    engine->engine.ops = &pool_ops;
    engine->engine.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    engine->pool = pool;
    engine->file = file;
    engine->block_device = block_device;
    pthread_mutex_init(&engine->lock, NULL);
    if (engine->engine.fd < 0) {
        free(engine);
        return NULL;
    }
    return &engine->engine;
}
