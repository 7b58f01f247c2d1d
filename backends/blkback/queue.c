/*
 * The data path: one thread per ring, no lock, no GIL.
 *
 * A turn of the loop takes all requests the frontend has published, sets their I/O going, collects what is done and answers
 * it, with one notification for the lot; when a turn has found nothing it asks for an event and sleeps on three descriptors:
 * the event channel's, the I/O engine's, and `wake` for the control side (stop, another NBD socket).
 *
 * Trust: the ring pages and every frame belong to the frontend and change at any time. A slot is copied out once and into
 * the journal (journal.c); indirect segments are copied once; only copies are checked and used. Of the indices in the ring
 * only req_prod is read; rsp_prod only by a successor of a killed process, and then it must lie where the journal says.
 *
 * There are as many `struct inflight` as ring entries. A frontend has at most that many requests without an answer; one that
 * publishes more has lost its mind or means harm, and nothing more is taken from it (BLK_STATE_PRODUCER).
 *
 * Requests go through `held`, first in first out, because of barriers: a barrier starts when nothing is in flight, and
 * nothing starts before it is done. A request is up to two steps of I/O: a barrier is write, flush; a flush with data is
 * flush, write.
 *
 * An NBD server may keep what a format needs (qcow2's tables) in memory until a flush. So writes since the last flush are
 * counted, in the journal too: if the server dies with some, they may be lost and the control side ends the device. To make
 * that rare, and not to leave it to the guest, a queue flushes by itself a moment after the last write, and at least every
 * second.
 *
 * Grants that are not kept are unmapped, all at once, before the answers are published: the frontend may end their access
 * at that moment.
 */
#define _GNU_SOURCE
#include "queue.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "journal.h"

#define NO_STEP (-1)
#define FLUSH_IDLE_MS 100
#define FLUSH_NS 1000000000ull
#define COMMIT_AGAIN_MS 1000 /* a kernel short of memory may not have taken what was submitted */

struct inflight {
    struct io io; /* first: an io is its request */
    struct blk_request request;
    int second_step;
    int16_t status;
    bool barrier;
    bool under_way; /* the engine has it */
    uint32_t slot, nr_grants;
    uint32_t written; /* when its flush began */
    struct inflight *next;
    struct grant *grant[MAX_SEGMENTS];
    struct iovec iov[MAX_SEGMENTS];
};

struct fifo {
    struct inflight *first, **last;
};

struct blk_queue {
    struct blk_disk disk;
    uint64_t new_nr_sectors; /* atomic */
    enum blk_protocol protocol;
    struct ring_indices *ring;
    uint8_t *page[MAX_RING_PAGES];
    uint32_t nr_pages, nr_entries, entry_bytes;
    uint32_t req_cons, rsp_prod; /* ours; the frontend's copies are never believed */
    struct journal *journal;
    struct grants *grants;
    struct io_engine *engine;
    bool nbd;
    int upcall_fd, doorbell_fd, status_fd, wake_fd;
    int new_socket;  /* atomic; -1: none */
    uint32_t state;  /* atomic; BLK_STATE_* */
    bool stopping;   /* atomic */
    bool closing;    /* the device is, not only this process */
    bool running, resuming, barrier_under_way;
    uint32_t nr_in_flight;
    struct inflight *inflight; /* [nr_entries], by journal slot */
    uint32_t nr_free, *free_slot;
    struct fifo held, done;
    struct inflight own_flush; /* nobody's request */
    uint64_t own_flush_ns;     /* when the last one began */
    struct blk_statistics statistics; /* atomic, each */
    pthread_t thread;
};

static void count(uint64_t *counter, uint64_t by) { __atomic_store_n(counter, *counter + by, __ATOMIC_RELAXED); }

static void fifo_init(struct fifo *fifo) { *fifo = (struct fifo){NULL, &fifo->first}; }

static void fifo_put(struct fifo *fifo, struct inflight *f)
{
    f->next = NULL;
    *fifo->last = f;
    fifo->last = &f->next;
}

static struct inflight *fifo_take(struct fifo *fifo)
{
    struct inflight *f = fifo->first;

    if (f && !(fifo->first = f->next))
        fifo->last = &fifo->first;
    return f;
}

static void raise_state(struct blk_queue *q, uint32_t state)
{
    if (!(__atomic_fetch_or(&q->state, state, __ATOMIC_ACQ_REL) & state))
        eventfd_write(q->status_fd, 1);
}

static bool is_faulty(const struct blk_queue *q) { return q->state & (BLK_STATE_PRODUCER | BLK_STATE_JOURNAL); }

/* ---- the ring's pages */

/* Copies a slot out or in; slots may lie across pages, and pages anywhere. */
static void access_slot(struct blk_queue *q, uint32_t index, void *private, uint32_t bytes, bool out)
{
    uint32_t at = RING_HEADER_BYTES + (index & (q->nr_entries - 1)) * q->entry_bytes;
    uint8_t *mine = private;

    while (bytes) {
        uint32_t left = 4096 - at % 4096, part = bytes < left ? bytes : left;
        uint8_t *shared = q->page[at / 4096] + at % 4096;

        memcpy(out ? mine : shared, out ? shared : mine, part);
        at += part, mine += part, bytes -= part;
    }
    __asm__ volatile("" ::: "memory"); /* nothing is read from the ring a second time */
}

static void write_response(struct blk_queue *q, uint32_t index, const struct blkif_response *response)
{
    uint8_t encoded[sizeof(*response)];

    access_slot(q, index, encoded, blk_response_encode(q->protocol, response, encoded), false);
}

static void notify(const struct blk_queue *q) { eventfd_write(q->doorbell_fd, 1); }

/* ---- answering */

static void release(struct blk_queue *q, struct inflight *f)
{
    grants_put(q->grants, f->grant, f->nr_grants);
    f->nr_grants = 0;
}

static void finish(struct blk_queue *q, struct inflight *f, int status)
{
    f->status = (int16_t)status;
    if (status != BLKIF_RSP_OKAY)
        count(&q->statistics.errors, 1);
    release(q, f);
    fifo_put(&q->done, f);
}

/* Answers all that is done: journal, ring, index, one event. True when there was anything. */
static bool answer(struct blk_queue *q)
{
    uint32_t before = q->rsp_prod;

    if (!q->done.first)
        return false;
    grants_flush(q->grants);
    for (struct inflight *f; (f = fifo_take(&q->done));) {
        struct blkif_response response = {.id = f->request.id, .operation = f->request.op, .status = f->status};

        q->free_slot[q->nr_free++] = f->slot;
        write_response(q, journal_answer(q->journal, f->slot, &response), &response);
        q->rsp_prod++;
    }
    if (ring_push_responses(q->ring, before, q->rsp_prod))
        notify(q);
    return true;
}

/* ---- starting */

static void submit(struct blk_queue *q, struct inflight *f, enum io_kind kind)
{
    f->io.kind = kind;
    f->written = q->journal->written;
    f->io.offset = f->request.sector << SECTOR_SHIFT;
    f->io.bytes = kind == IO_FLUSH ? 0 : f->request.nr_sectors << SECTOR_SHIFT;
    q->engine->ops->submit(q->engine, &f->io);
}

/* The segments of an indirect request, copied out of the frontend's frames. */
static bool fetch_segments(struct blk_queue *q, const struct blk_request *request, struct blkif_request_segment *out)
{
    uint32_t nr_pages = (request->nr_segments + SEGMENTS_PER_PAGE - 1) / SEGMENTS_PER_PAGE;
    struct grant *grant[MAX_INDIRECT_PAGES];

    if (!grants_get(q->grants, request->indirect_grefs, nr_pages, false, grant))
        return false;
    for (uint32_t i = 0, left = request->nr_segments; i < nr_pages; i++) {
        uint32_t n = left < SEGMENTS_PER_PAGE ? left : (uint32_t)SEGMENTS_PER_PAGE;

        memcpy(out + i * SEGMENTS_PER_PAGE, grants_page(q->grants, grant[i]), n * sizeof(*out));
        left -= n;
    }
    __asm__ volatile("" ::: "memory");
    grants_put(q->grants, grant, nr_pages);
    return true;
}

/* Segments that follow each other in machine memory are one piece. */
static void build_iov(struct blk_queue *q, struct inflight *f, const struct blkif_request_segment *segments)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < f->nr_grants; i++) {
        char *from = (char *)grants_page(q->grants, f->grant[i]) + (segments[i].first_sect << SECTOR_SHIFT);
        size_t bytes = (size_t)(segments[i].last_sect - segments[i].first_sect + 1) << SECTOR_SHIFT;

        if (n && (char *)f->iov[n - 1].iov_base + f->iov[n - 1].iov_len == from)
            f->iov[n - 1].iov_len += bytes;
        else
            f->iov[n++] = (struct iovec){from, bytes};
    }
    f->io.iov = f->iov;
    f->io.nr_iov = n;
}

/* Checks and maps a request's data. */
static int prepare_data(struct blk_queue *q, struct inflight *f)
{
    struct blkif_request_segment fetched[MAX_SEGMENTS];
    const struct blkif_request_segment *segments = f->request.seg;
    grant_ref_t gref[MAX_SEGMENTS];
    uint32_t n = f->request.nr_segments;

    if (f->request.indirect) {
        if (!fetch_segments(q, &f->request, fetched))
            return BLKIF_RSP_ERROR;
        segments = fetched;
    }
    int status = blk_request_check_segments(&f->request, segments, &q->disk);

    if (status != BLKIF_RSP_OKAY)
        return status;
    for (uint32_t i = 0; i < n; i++)
        gref[i] = segments[i].gref;
    if (!grants_get(q->grants, gref, n, f->request.op == BLKIF_OP_READ, f->grant))
        return BLKIF_RSP_ERROR;
    f->nr_grants = n;
    build_iov(q, f, segments);
    return BLKIF_RSP_OKAY;
}

static void count_request(struct blk_queue *q, const struct blk_request *request)
{
    struct blk_statistics *s = &q->statistics;

    switch (request->op) {
    case BLKIF_OP_READ:
        count(&s->rd_req, 1);
        count(&s->rd_sect, request->nr_sectors);
        return;
    case BLKIF_OP_DISCARD:
        count(&s->ds_req, 1);
        return;
    case BLKIF_OP_FLUSH_DISKCACHE:
    case BLKIF_OP_WRITE_BARRIER:
        count(&s->f_req, 1);
        break;
    default:
        count(&s->wr_req, 1);
    }
    count(&s->wr_sect, request->nr_sectors);
}

static enum io_kind first_step(const struct inflight *f, int *second)
{
    bool data = f->request.nr_segments > 0;

    *second = NO_STEP;
    switch (f->request.op) {
    case BLKIF_OP_READ:
        return IO_READ;
    case BLKIF_OP_WRITE:
        return IO_WRITE;
    case BLKIF_OP_DISCARD:
        return IO_DISCARD;
    case BLKIF_OP_WRITE_BARRIER:
        *second = data ? IO_FLUSH : NO_STEP;
        return data ? IO_WRITE : IO_FLUSH;
    default:
        *second = data ? IO_WRITE : NO_STEP;
        return IO_FLUSH;
    }
}

static void start(struct blk_queue *q, struct inflight *f)
{
    int status = f->status; /* of parsing */

    if (status == BLKIF_RSP_OKAY && f->request.op != BLKIF_OP_DISCARD)
        status = prepare_data(q, f);
    if (status != BLKIF_RSP_OKAY) {
        finish(q, f, status);
        return;
    }
    count_request(q, &f->request);
    q->barrier_under_way = f->barrier;
    q->nr_in_flight++;
    f->under_way = true;
    submit(q, f, first_step(f, &f->second_step));
}

/* Starts what may start. */
static void pump(struct blk_queue *q)
{
    while (q->held.first && !q->barrier_under_way && !(q->held.first->barrier && q->nr_in_flight))
        start(q, fifo_take(&q->held));
}

static void hold(struct blk_queue *q, uint32_t slot)
{
    struct inflight *f = &q->inflight[slot];

    f->slot = slot;
    f->nr_grants = 0;
    f->status =
        (int16_t)blk_request_parse(q->protocol, journal_slots(q->journal)[slot].entry, &q->disk, &f->request);
    f->barrier = f->request.op == BLKIF_OP_WRITE_BARRIER && f->status == BLKIF_RSP_OKAY;
    fifo_put(&q->held, f);
}

/* Takes all that the frontend has published. True when there was anything. */
static bool take(struct blk_queue *q)
{
    uint32_t prod = ring_req_prod(q->ring), first = q->req_cons;
    uint8_t entry[MAX_ENTRY_BYTES] = {0};

    if (is_faulty(q) || prod == first)
        return false;
    if (prod - q->rsp_prod > q->nr_entries || prod - first > q->nr_free) {
        raise_state(q, BLK_STATE_PRODUCER);
        return false;
    }
    q->disk.nr_sectors = __atomic_load_n(&q->new_nr_sectors, __ATOMIC_RELAXED);
    uint32_t taken = q->nr_free;

    for (uint32_t i = first; i != prod; i++) {
        access_slot(q, i, entry, q->entry_bytes, true);
        journal_note(q->journal, q->free_slot[--q->nr_free], i, entry);
    }
    journal_take(q->journal, prod);
    q->req_cons = prod;
    while (taken > q->nr_free)
        hold(q, q->free_slot[--taken]);
    return true;
}

/* ---- completing */

static int status_of(int result)
{
    if (!result)
        return BLKIF_RSP_OKAY;
    return result == -EOPNOTSUPP ? BLKIF_RSP_EOPNOTSUPP : BLKIF_RSP_ERROR;
}

static void note_durability(struct blk_queue *q, const struct inflight *f)
{
    if (f->io.result)
        return;
    if (f->io.kind == IO_FLUSH)
        journal_flushed(q->journal, f->written);
    else if (f->io.kind != IO_READ)
        journal_written(q->journal);
    __atomic_store_n(&q->statistics.unflushed, q->journal->written - q->journal->flushed, __ATOMIC_RELAXED);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static bool wants_flush(const struct blk_queue *q)
{
    return q->nbd && q->statistics.unflushed && !q->own_flush.under_way;
}

static void flush_by_itself(struct blk_queue *q)
{
    q->own_flush_ns = now_ns();
    q->own_flush.under_way = true;
    q->nr_in_flight++;
    submit(q, &q->own_flush, IO_FLUSH);
    q->engine->ops->commit(q->engine);
}

static void complete(struct blk_queue *q, struct inflight *f)
{
    int second = f->second_step;

    note_durability(q, f);
    if (f == &q->own_flush) {
        f->under_way = false;
        q->nr_in_flight--;
        return;
    }
    f->second_step = NO_STEP;
    if (!f->io.result && second != NO_STEP) {
        submit(q, f, (enum io_kind)second);
        return;
    }
    q->nr_in_flight--;
    f->under_way = false;
    if (f->barrier)
        q->barrier_under_way = false;
    finish(q, f, status_of(f->io.result));
}

static bool collect(struct blk_queue *q)
{
    struct io *io = q->engine->ops->reap(q->engine);
    bool any = io != NULL;

    for (struct io *next; io; io = next) {
        next = io->next;
        complete(q, (struct inflight *)io);
    }
    return any;
}

/* ---- a predecessor's requests */

/* What it has answered but perhaps not published goes into the ring again. */
static bool republish(struct blk_queue *q)
{
    uint32_t published = __atomic_load_n(&q->ring->rsp_prod, __ATOMIC_ACQUIRE);

    if (q->rsp_prod - published > q->nr_entries)
        return false;
    for (uint32_t i = published; i != q->rsp_prod; i++)
        write_response(q, i, &q->journal->rsp[i & (q->nr_entries - 1)]);
    (void)ring_push_responses(q->ring, published, q->rsp_prod);
    return true;
}

static int by_req_index(const void *a, const void *b, void *queue)
{
    const struct blk_queue *q = queue;
    const struct journal_slot *slots = journal_slots(q->journal);
    uint32_t age_a = q->req_cons - slots[*(const uint32_t *)a].req_index;
    uint32_t age_b = q->req_cons - slots[*(const uint32_t *)b].req_index;

    return age_a < age_b ? 1 : age_a > age_b ? -1 : 0; /* the oldest first */
}

/* What it has taken and not answered is done again, in the order of the ring. */
static void replay(struct blk_queue *q)
{
    uint32_t *again = calloc(q->nr_entries, sizeof(*again)), n = 0;

    if (!again) {
        raise_state(q, BLK_STATE_JOURNAL);
        return;
    }
    for (uint32_t slot = 0; slot < q->nr_entries; slot++) {
        if (journal_recover(q->journal, slot))
            again[n++] = slot;
        else
            q->free_slot[q->nr_free++] = slot;
    }
    qsort_r(again, n, sizeof(*again), by_req_index, q);
    for (uint32_t i = 0; i < n; i++)
        hold(q, again[i]);
    free(again);
}

static void begin_anew(struct blk_queue *q)
{
    journal_init(q->journal, q->nr_entries, q->protocol);
    q->req_cons = q->rsp_prod = __atomic_load_n(&q->ring->rsp_prod, __ATOMIC_ACQUIRE);
    q->journal->req_cons = q->journal->rsp_prod = q->rsp_prod;
    while (q->nr_free < q->nr_entries) {
        q->free_slot[q->nr_free] = q->nr_entries - 1 - q->nr_free;
        q->nr_free++;
    }
}

void queue_begin(struct blk_queue *q)
{
    if (!q->resuming) {
        begin_anew(q);
        return;
    }
    q->req_cons = q->journal->req_cons;
    q->rsp_prod = q->journal->rsp_prod;
    if (!journal_fits(q->journal, q->nr_entries, q->protocol) || !republish(q)) {
        raise_state(q, BLK_STATE_JOURNAL);
        return;
    }
    replay(q);
    notify(q); /* it may have been published, but not told */
}

/* ---- the loop */

static void look_at_control(struct blk_queue *q)
{
    int socket = __atomic_exchange_n(&q->new_socket, -1, __ATOMIC_ACQ_REL);

    if (socket >= 0) {
        __atomic_fetch_and(&q->state, ~(uint32_t)BLK_STATE_LOST, __ATOMIC_ACQ_REL);
        nbd_engine_replace(q->engine, socket);
    }
    if (q->nbd && nbd_engine_lost(q->engine))
        raise_state(q, BLK_STATE_LOST);
}

static bool is_stopping(const struct blk_queue *q) { return __atomic_load_n(&q->stopping, __ATOMIC_ACQUIRE); }

/* One turn. False: there was nothing to do. */
bool queue_step(struct blk_queue *q)
{
    bool took = !is_stopping(q) && take(q);

    pump(q);
    q->engine->ops->commit(q->engine);
    bool collected = collect(q);

    pump(q);
    q->engine->ops->commit(q->engine);
    bool answered = answer(q);

    __atomic_store_n(&q->statistics.in_flight, q->nr_in_flight, __ATOMIC_RELAXED);
    __atomic_store_n(&q->statistics.persistent_grants, grants_nr_persistent(q->grants), __ATOMIC_RELAXED);
    look_at_control(q);
    if (wants_flush(q) && now_ns() - q->own_flush_ns > FLUSH_NS)
        flush_by_itself(q);
    return took || collected || answered;
}

bool queue_idle(const struct blk_queue *q) { return !q->nr_in_flight && !q->held.first && !q->done.first; }

static void wait_for_work(struct blk_queue *q)
{
    struct pollfd fd[3] = {
        {.fd = q->engine->fd, .events = POLLIN},
        {.fd = q->wake_fd, .events = POLLIN},
        {.fd = is_stopping(q) || is_faulty(q) ? -1 : q->upcall_fd, .events = POLLIN},
    };
    eventfd_t value;

    if (fd[2].fd >= 0 && ring_final_check_requests(q->ring, q->req_cons))
        return;
    int ready = poll(fd, 3, wants_flush(q) ? FLUSH_IDLE_MS : q->nr_in_flight ? COMMIT_AGAIN_MS : -1);

    if (ready == 0 && wants_flush(q))
        flush_by_itself(q);
    if (ready <= 0)
        return;
    if (fd[1].revents)
        eventfd_read(q->wake_fd, &value);
    if (fd[2].revents)
        eventfd_read(q->upcall_fd, &value);
}

/* The NBD server will not answer any more: what is open is answered with an error. */
static void give_up(struct blk_queue *q)
{
    struct inflight *f;

    while ((f = fifo_take(&q->held)))
        finish(q, f, BLKIF_RSP_ERROR);
    for (uint32_t i = 0; i < q->nr_entries; i++)
        if (q->inflight[i].under_way)
            finish(q, &q->inflight[i], BLKIF_RSP_ERROR);
    q->own_flush.under_way = false;
    q->nr_in_flight = 0;
    answer(q);
}

static void *serve(void *data)
{
    struct blk_queue *q = data;

    queue_begin(q);
    while (!is_stopping(q) || (!queue_idle(q) && !(q->state & BLK_STATE_LOST)))
        if (!queue_step(q))
            wait_for_work(q);
    if (q->closing)
        give_up(q);
    return NULL;
}

/* ---- the hypervisor */

struct blk_hypervisor {
    pthread_mutex_t lock; /* of the ring: one thread at a time */
    struct hcall_ring *ring;
    uint8_t *bank;
    uint64_t max_mfn;
};

static int map(void *context, struct gnttab_map_grant_ref *ops, uint32_t n)
{
    struct blk_hypervisor *hypervisor = context;

    pthread_mutex_lock(&hypervisor->lock);
    int rc = hcall_grant_map(hypervisor->ring, ops, n);
    pthread_mutex_unlock(&hypervisor->lock);
    return rc;
}

static int unmap(void *context, struct gnttab_unmap_grant_ref *ops, uint32_t n)
{
    struct blk_hypervisor *hypervisor = context;

    pthread_mutex_lock(&hypervisor->lock);
    int rc = hcall_grant_unmap(hypervisor->ring, ops, n);
    pthread_mutex_unlock(&hypervisor->lock);
    return rc;
}

struct blk_hypervisor *blk_hypervisor_create(struct hcall_ring *ring, uint64_t bank, uint64_t max_mfn)
{
    struct blk_hypervisor *hypervisor = calloc(1, sizeof(*hypervisor));

    if (!hypervisor)
        return NULL;
    pthread_mutex_init(&hypervisor->lock, NULL);
    hypervisor->ring = ring;
    hypervisor->bank = (uint8_t *)(uintptr_t)bank;
    hypervisor->max_mfn = max_mfn;
    return hypervisor;
}

void blk_hypervisor_destroy(struct blk_hypervisor *hypervisor)
{
    if (hypervisor)
        pthread_mutex_destroy(&hypervisor->lock);
    free(hypervisor);
}

/* ---- life */

uint32_t blk_ring_entries(uint32_t nr_ring_pages, uint32_t protocol)
{
    return ring_entries(nr_ring_pages * 4096, blk_entry_bytes((enum blk_protocol)protocol));
}

static struct io_engine *make_engine(const struct blk_queue_config *config, uint32_t depth)
{
    bool block_device = config->backing == BLK_BLOCK_DEVICE;
    struct io_engine *engine = NULL;

    if (config->backing == BLK_NBD)
        return nbd_engine_create(config->file);
    if (config->use_uring)
        engine = uring_engine_create(config->pool, config->file, block_device, depth);
    return engine ? engine : pool_engine_create(config->pool, config->file, block_device);
}

static void copy_config(struct blk_queue *q, const struct blk_queue_config *config, const struct grant_source *source)
{
    q->protocol = (enum blk_protocol)config->protocol;
    q->nr_pages = config->nr_ring_pages;
    for (uint32_t i = 0; i < q->nr_pages; i++)
        q->page[i] = source->bank + (config->ring_mfn[i] << 12);
    q->ring = (struct ring_indices *)q->page[0];
    q->entry_bytes = blk_entry_bytes(q->protocol);
    q->nr_entries = blk_ring_entries(q->nr_pages, config->protocol);
    q->disk = (struct blk_disk){config->nr_sectors, config->sector_bytes, config->read_only, config->discard};
    q->new_nr_sectors = config->nr_sectors;
    q->nbd = config->backing == BLK_NBD;
    q->upcall_fd = config->upcall_fd;
    q->doorbell_fd = config->doorbell_fd;
    q->status_fd = config->status_fd;
    q->resuming = config->resuming;
    q->new_socket = -1;
    fifo_init(&q->held);
    fifo_init(&q->done);
}

static bool acquire_parts(struct blk_queue *q, const struct blk_queue_config *config, const struct grant_source *source)
{
    q->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    q->inflight = calloc(q->nr_entries, sizeof(*q->inflight));
    q->free_slot = calloc(q->nr_entries, sizeof(*q->free_slot));
    q->journal = mmap(NULL, blk_journal_bytes(q->nr_entries), PROT_READ | PROT_WRITE, MAP_SHARED, config->journal_fd, 0);
    if (q->wake_fd < 0 || !q->inflight || !q->free_slot || q->journal == MAP_FAILED)
        return false;
    q->grants = grants_create(source, config->domid, config->max_persistent);
    q->engine = q->grants ? make_engine(config, q->nr_entries) : NULL;
    return q->engine != NULL;
}

struct blk_queue *queue_create_with(const struct blk_queue_config *config, const struct grant_source *source)
{
    if (!config->nr_ring_pages || config->nr_ring_pages > MAX_RING_PAGES || config->protocol > BLK_PROTOCOL_32) {
        errno = EINVAL;
        return NULL;
    }
    struct blk_queue *q = calloc(1, sizeof(*q));

    if (!q)
        return NULL;
    copy_config(q, config, source);
    if (!acquire_parts(q, config, source)) {
        int error = errno;

        blk_queue_destroy(q);
        errno = error;
        return NULL;
    }
    return q;
}

struct blk_queue *blk_queue_create(const struct blk_queue_config *config)
{
    const struct blk_hypervisor *hypervisor = config->hypervisor;
    struct grant_source source = {config->hypervisor, map, unmap, hypervisor->bank, hypervisor->max_mfn};

    for (uint32_t i = 0; i < config->nr_ring_pages && i < MAX_RING_PAGES; i++) {
        if (config->ring_mfn[i] >= hypervisor->max_mfn) {
            errno = EINVAL;
            return NULL;
        }
    }
    return queue_create_with(config, &source);
}

int blk_queue_start(struct blk_queue *q)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&q->thread, NULL, serve, q);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    q->running = error == 0;
    return -error;
}

void blk_queue_stop(struct blk_queue *q, int closing)
{
    q->closing = closing;
    __atomic_store_n(&q->stopping, true, __ATOMIC_RELEASE);
    eventfd_write(q->wake_fd, 1);
    if (q->running)
        pthread_join(q->thread, NULL);
    q->running = false;
}

void blk_queue_destroy(struct blk_queue *q)
{
    if (!q)
        return;
    if (q->engine)
        q->engine->ops->destroy(q->engine);
    for (uint32_t i = 0; q->grants && i < q->nr_entries; i++)
        release(q, &q->inflight[i]); /* given up */
    grants_destroy(q->grants);
    if (q->journal && q->journal != MAP_FAILED)
        munmap(q->journal, blk_journal_bytes(q->nr_entries));
    if (q->wake_fd >= 0)
        close(q->wake_fd);
    if (q->new_socket >= 0)
        close(q->new_socket);
    free(q->inflight);
    free(q->free_slot);
    free(q);
}

/* ---- control */

uint32_t blk_queue_state(const struct blk_queue *q) { return __atomic_load_n(&q->state, __ATOMIC_ACQUIRE); }

void blk_queue_replace(struct blk_queue *q, int socket)
{
    int old = __atomic_exchange_n(&q->new_socket, socket, __ATOMIC_ACQ_REL);

    if (old >= 0)
        close(old);
    eventfd_write(q->wake_fd, 1);
}

void blk_queue_resize(struct blk_queue *q, uint64_t nr_sectors)
{
    __atomic_store_n(&q->new_nr_sectors, nr_sectors, __ATOMIC_RELAXED);
}

void blk_queue_statistics(const struct blk_queue *q, struct blk_statistics *out)
{
    const uint64_t *from = (const uint64_t *)&q->statistics;
    uint64_t *to = (uint64_t *)out;

    for (size_t i = 0; i < sizeof(*out) / sizeof(*to); i++)
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}
