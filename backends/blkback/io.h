/*
 * Doing a request's I/O: three engines behind one table of functions. See uring.c, pool.c and nbd.c.
 *
 * A queue's thread alone calls an engine: submit() any number, commit() to set them going, reap() what is done when `fd` is
 * readable (and whenever it likes). Every submitted io comes back once, with `result`.
 */
#ifndef BLKBACK_IO_H
#define BLKBACK_IO_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum io_kind { IO_READ, IO_WRITE, IO_FLUSH, IO_DISCARD };

struct io {
    enum io_kind kind;
    int result; /* 0 or -errno, once done */
    uint64_t offset, bytes;
    uint32_t nr_iov;
    struct iovec *iov; /* the engine may move it forward */
    struct io *next;   /* the engine's, until done */
    uint64_t cookie;   /* the engine's: a name for it on the wire */
};

struct io_engine;

struct io_engine_ops {
    void (*submit)(struct io_engine *engine, struct io *io);
    void (*commit)(struct io_engine *engine);
    struct io *(*reap)(struct io_engine *engine); /* a list, or NULL; never waits */
    void (*destroy)(struct io_engine *engine);    /* nothing is in flight, or it is given up */
};

struct io_engine {
    const struct io_engine_ops *ops;
    int fd; /* readable when reap() has something */
};

/* cffi: begin */
struct io_pool;
/* Threads that several queues share. NULL: errno says why. */
struct io_pool *blk_pool_create(uint32_t nr_threads);
/* No queue uses it any more. */
void blk_pool_destroy(struct io_pool *pool);
/* Whether this kernel lets us have an io_uring. */
int blk_uring_works(void);
/* cffi: end */

/* `file` is read and written at offsets; a block device discards by BLKDISCARD. NULL: no memory, no descriptor. */
struct io_engine *pool_engine_create(struct io_pool *pool, int file, bool block_device);
/* The same by io_uring, with `pool` for what a ring does not do; NULL where the kernel refuses one. */
struct io_engine *uring_engine_create(struct io_pool *pool, int file, bool block_device, uint32_t depth);
/* `socket` speaks NBD's transmission phase. It may be exchanged when its server was started again. */
struct io_engine *nbd_engine_create(int socket);
bool nbd_engine_lost(const struct io_engine *engine);
void nbd_engine_replace(struct io_engine *engine, int socket);

/* Moves all of a read's or write's data, waiting for it; the result. */
int io_move_data(int file, struct io *io);

/* `bytes` of it are done: true when that was all, else the rest is in offset, bytes and iov. */
static inline bool io_advance(struct io *io, uint64_t bytes)
{
    io->offset += bytes;
    io->bytes -= bytes;
    while (io->nr_iov && bytes >= io->iov->iov_len) {
        bytes -= io->iov->iov_len;
        io->iov++;
        io->nr_iov--;
    }
    if (io->nr_iov) {
        io->iov->iov_base = (char *)io->iov->iov_base + bytes;
        io->iov->iov_len -= bytes;
    }
    return io->bytes == 0;
}
#endif
