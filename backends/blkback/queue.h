/*
 * One ring and the thread that serves it. See queue.c.
 */
#ifndef BLKBACK_QUEUE_H
#define BLKBACK_QUEUE_H
#include <stdbool.h>
#include <stdint.h>

#include "grants.h"
#include "hcall.h"
#include "io.h"
#include "request.h"

#define MAX_RING_PAGES 16

/* cffi: begin */
enum { BLK_FILE = 0, BLK_BLOCK_DEVICE = 1, BLK_NBD = 2 };

/* A way to hyper that several queues share. */
struct blk_hypervisor;
/* `ring` stays the caller's; `bank` is where machine memory is mapped. NULL: no memory. */
struct blk_hypervisor *blk_hypervisor_create(struct hcall_ring *ring, uint64_t bank, uint64_t max_mfn);
void blk_hypervisor_destroy(struct blk_hypervisor *hypervisor);

struct blk_queue_config {
    struct blk_hypervisor *hypervisor;
    struct io_pool *pool;
    uint64_t ring_mfn[16];
    uint32_t nr_ring_pages;
    uint32_t protocol; /* enum blk_protocol */
    uint32_t max_persistent;
    uint16_t domid;
    uint8_t resuming;    /* `journal_fd` is a predecessor's */
    uint8_t use_uring;
    int upcall_fd, doorbell_fd;
    int journal_fd; /* a memfd of blk_journal_bytes(); the caller's */
    int status_fd;  /* an eventfd, written when blk_queue_state() has changed; the caller's */
    int backing;    /* BLK_* */
    int file;       /* the image, the caller's; or a socket, then the queue's own */
    uint64_t nr_sectors;
    uint32_t sector_bytes;
    uint8_t read_only, discard;
};

enum {
    BLK_STATE_LOST = 1,     /* the NBD server is gone: blk_queue_replace() */
    BLK_STATE_PRODUCER = 2, /* the frontend's producer index ran away: nothing more is taken */
    BLK_STATE_JOURNAL = 4   /* the frontend's ring does not fit the journal */
};

struct blk_statistics {
    uint64_t rd_req, wr_req, oo_req, f_req, ds_req;
    uint64_t rd_sect, wr_sect;
    uint64_t errors, persistent_grants, in_flight;
    uint64_t unflushed; /* writes since the last flush: what a server with a cache of its own may lose with its life */
};

struct blk_queue;
uint32_t blk_ring_entries(uint32_t nr_ring_pages, uint32_t protocol);
/* NULL: errno says why. Nothing is served before blk_queue_start(). */
struct blk_queue *blk_queue_create(const struct blk_queue_config *config);
int blk_queue_start(struct blk_queue *queue); /* 0 or -errno */
/* Ends the thread once all that was taken is answered. If the NBD server is gone, what is open is answered with an error
 * (`closing`), or left to a successor of this process. Blocks. */
void blk_queue_stop(struct blk_queue *queue, int closing);
void blk_queue_destroy(struct blk_queue *queue); /* stopped */

/* While it runs, from any one thread: */
uint32_t blk_queue_state(const struct blk_queue *queue);
void blk_queue_replace(struct blk_queue *queue, int socket);
void blk_queue_resize(struct blk_queue *queue, uint64_t nr_sectors);
void blk_queue_statistics(const struct blk_queue *queue, struct blk_statistics *out);
/* cffi: end */

/* The same with other grants, and step by step: what the thread does until there is nothing to do. For tests. */
struct blk_queue *queue_create_with(const struct blk_queue_config *config, const struct grant_source *source);
void queue_begin(struct blk_queue *queue);
bool queue_step(struct blk_queue *queue);
bool queue_idle(const struct blk_queue *queue);
#endif
