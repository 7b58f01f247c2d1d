/* Named tests of blkback's data path, and its fuzzer: `queue_tests NAME`, `queue_tests fuzz SEED COUNT`, without: the names. */
#define _GNU_SOURCE
#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "journal.h"
#include "machine.h"
#include "nbd_server.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #condition);                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static void wide_to_narrow(const struct blkif_request *r, uint8_t *out)
{
    memset(out, 0, 108);
    out[0] = r->operation, out[1] = r->nr_segments;
    memcpy(out + 4, &r->id, 8), memcpy(out + 12, &r->sector_number, 8), memcpy(out + 20, r->seg, sizeof(r->seg));
}

static void put(struct machine *m, const struct blkif_request *r)
{
    uint8_t narrow[108];

    wide_to_narrow(r, narrow);
    if (m->config.protocol == BLK_PROTOCOL_32)
        put_entry(m, narrow, sizeof(narrow));
    else
        put_entry(m, r, sizeof(*r));
}

/* A request of `n` whole frames, grefs from `gref` on. */
static struct blkif_request whole(uint8_t op, uint64_t sector, uint32_t gref, uint8_t n)
{
    struct blkif_request r = {.operation = op, .nr_segments = n, .id = 1000 + sector, .sector_number = sector};

    for (uint8_t i = 0; i < n && i < BLKIF_MAX_SEGMENTS_PER_REQUEST; i++)
        r.seg[i] = (struct blkif_request_segment){gref + i, 0, 7};
    return r;
}

/* Puts it, runs, and returns the status of its answer, the only one. */
static int ask(struct machine *m, const struct blkif_request *r)
{
    struct blkif_response response;

    put(m, r);
    publish(m);
    machine_settle(m);
    CHECK(get_response(m, &response));
    CHECK(response.id == r->id && response.operation == r->operation);
    CHECK(!get_response(m, &response));
    return response.status;
}

static struct blkif_request discard_of(uint64_t sector, uint64_t nr, uint8_t flag)
{
    struct blkif_request r = {0};
    struct blkif_request_discard d = {BLKIF_OP_DISCARD, flag, 0, 5, sector, nr};

    memcpy(&r, &d, sizeof(d));
    return r;
}

static void data_test(uint32_t pages, uint32_t protocol, uint32_t persistent, uint8_t use_uring)
{
    struct machine *m = machine_new(pages, protocol, persistent);
    struct blkif_request flush = {.operation = BLKIF_OP_FLUSH_DISKCACHE}, d = discard_of(0, 8, 0);

    m->config.use_uring = use_uring;
    machine_start(m, false);
    CHECK(ask(m, &flush) == BLKIF_RSP_OKAY && ask(m, &d) == BLKIF_RSP_OKAY);
    fill_image(m);
    for (uint64_t turn = 0; turn < 80; turn++) {
        uint64_t sector = turn * 5 % 400;
        struct blkif_request r = whole(BLKIF_OP_READ, sector, turn % 20, 1 + turn % 11);

        r.seg[0] = (struct blkif_request_segment){turn % 20, 3, 7};
        CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
        for (uint32_t at = 0; at < 5 * 512; at++)
            CHECK(machine_page(m, turn % 20)[3 * 512 + at] == image_byte(sector * 512 + at));
        memset(machine_page(m, turn % 20), (int)turn, 4096);
        r = whole(BLKIF_OP_WRITE, sector, turn % 20, 1);
        r.seg[0].first_sect = r.seg[0].last_sect = 2;
        CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
        uint8_t sector_now[512];

        CHECK(pread(m->image, sector_now, 512, sector * 512) == 512);
        CHECK(sector_now[0] == (uint8_t)turn && sector_now[511] == (uint8_t)turn);
        fill_image(m);
        CHECK(persistent || !m->nr_mapped);
    }
    machine_free(m);
}

static void data_64(void) { data_test(1, BLK_PROTOCOL_64, 100, 0); }
static void data_32(void) { data_test(1, BLK_PROTOCOL_32, 100, 0); }
static void data_16_pages(void) { data_test(16, BLK_PROTOCOL_64, 100, 0); }
static void data_unmapped(void) { data_test(2, BLK_PROTOCOL_64, 0, 0); }
static void data_io_uring(void) { data_test(1, BLK_PROTOCOL_64, 0, 1); } /* or threads, where there is none */
static void data_few_kept(void) { data_test(4, BLK_PROTOCOL_32, 6, 0); }

static void put_indirect(struct machine *m, uint8_t op, uint64_t sector, uint16_t n, uint32_t list)
{
    struct blkif_request_indirect r = {.operation = BLKIF_OP_INDIRECT, .indirect_op = op, .nr_segments = n, .id = 77,
                                       .sector_number = sector, .indirect_grefs = {list}};
    put_entry(m, &r, sizeof(r));
    publish(m);
    machine_settle(m);
}

static int answered(struct machine *m, uint8_t op)
{
    struct blkif_response response;

    CHECK(get_response(m, &response) && response.id == 77 && response.operation == op);
    return response.status;
}

static void indirect(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 100);
    struct blkif_request_segment list[60];

    machine_start(m, false);
    for (uint32_t i = 0; i < 60; i++)
        list[i] = (struct blkif_request_segment){i + 1, 0, 7};
    memcpy(machine_page(m, 0), list, sizeof(list));
    put_indirect(m, BLKIF_OP_READ, 32, 60, 0);
    CHECK(answered(m, BLKIF_OP_READ) == BLKIF_RSP_OKAY);
    for (uint32_t i = 0; i < 60; i++)
        CHECK(machine_page(m, i + 1)[17] == image_byte((32 + i * 8) * 512 + 17));
    put_indirect(m, BLKIF_OP_READ, 33, 60, 0); /* one sector too far */
    CHECK(answered(m, BLKIF_OP_READ) == BLKIF_RSP_ERROR);
    put_indirect(m, BLKIF_OP_READ, 0, 0, 0);
    CHECK(answered(m, BLKIF_OP_READ) == BLKIF_RSP_ERROR);
    put_indirect(m, BLKIF_OP_READ, 0, MAX_SEGMENTS + 1, 0);
    CHECK(answered(m, BLKIF_OP_READ) == BLKIF_RSP_ERROR);
    put_indirect(m, BLKIF_OP_FLUSH_DISKCACHE, 0, 1, 0);
    CHECK(answered(m, BLKIF_OP_FLUSH_DISKCACHE) == BLKIF_RSP_EOPNOTSUPP);
    put_indirect(m, BLKIF_OP_READ, 0, 1, 5000); /* no such grant */
    CHECK(answered(m, BLKIF_OP_READ) == BLKIF_RSP_ERROR);
    machine_free(m);
}

static void errors(void)
{
    static const struct { struct blkif_request r; int status; } table[] = {
        {{.operation = BLKIF_OP_READ, .nr_segments = 0}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_READ, .nr_segments = 12}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_READ, .nr_segments = 1, .seg = {{0, 5, 4}}}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_READ, .nr_segments = 1, .seg = {{0, 0, 8}}}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_READ, .nr_segments = 1, .seg = {{0, 0, 255}}}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_READ, .nr_segments = 1, .seg = {{999, 0, 7}}}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_WRITE, .nr_segments = 1, .sector_number = DISK_SECTORS, .seg = {{0, 0, 0}}}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_WRITE, .nr_segments = 1, .sector_number = DISK_SECTORS - 1, .seg = {{0, 0, 1}}}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_WRITE, .nr_segments = 1, .sector_number = DISK_SECTORS - 1, .seg = {{0, 0, 0}}}, BLKIF_RSP_OKAY},
        {{.operation = BLKIF_OP_WRITE, .nr_segments = 1, .sector_number = ~0ull, .seg = {{0, 0, 0}}}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_WRITE, .nr_segments = 1, .sector_number = 1ull << 55, .seg = {{0, 0, 0}}}, BLKIF_RSP_ERROR},
        {{.operation = BLKIF_OP_RESERVED_1, .nr_segments = 1}, BLKIF_RSP_EOPNOTSUPP},
        {{.operation = 200}, BLKIF_RSP_EOPNOTSUPP},
        {{.operation = BLKIF_OP_FLUSH_DISKCACHE}, BLKIF_RSP_OKAY},
        {{.operation = BLKIF_OP_FLUSH_DISKCACHE, .nr_segments = 1, .seg = {{0, 0, 7}}}, BLKIF_RSP_OKAY},
        {{.operation = BLKIF_OP_WRITE_BARRIER}, BLKIF_RSP_OKAY},
        {{.operation = BLKIF_OP_WRITE_BARRIER, .nr_segments = 1, .seg = {{0, 0, 7}}}, BLKIF_RSP_OKAY},
    };
    for (uint32_t protocol = 0; protocol < 2; protocol++) {
        struct machine *m = machine_new(1, protocol, 10);

        machine_start(m, false);
        for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++)
            CHECK(ask(m, &table[i].r) == table[i].status);
        machine_free(m);
    }
}

static void discard(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 10);
    struct blkif_request r = discard_of(8, 16, 0), bad[] = {discard_of(500, 13, 0), discard_of(1, ~0ull, 0), discard_of(0, 0, 0)};
    uint8_t bytes[512];

    machine_start(m, false);
    CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
    CHECK(pread(m->image, bytes, 512, 8 * 512) == 512 && !bytes[0] && !bytes[100]);
    CHECK(pread(m->image, bytes, 512, 24 * 512) == 512 && bytes[1] == image_byte(24 * 512 + 1));
    r = discard_of(8, 16, BLKIF_DISCARD_SECURE);
    CHECK(ask(m, &r) == BLKIF_RSP_EOPNOTSUPP);
    for (int i = 0; i < 3; i++)
        CHECK(ask(m, &bad[i]) == BLKIF_RSP_ERROR);
    machine_stop(m);
    m->config.discard = 0;
    machine_start(m, true);
    r = discard_of(8, 16, 0);
    CHECK(ask(m, &r) == BLKIF_RSP_EOPNOTSUPP);
    machine_free(m);
}

static void read_only(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 10);
    struct blkif_request r = whole(BLKIF_OP_READ, 0, 0, 2), w = whole(BLKIF_OP_WRITE, 0, 0, 2);
    struct blkif_request d = discard_of(0, 8, 0);

    m->config.read_only = 1;
    machine_start(m, false);
    CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
    CHECK(ask(m, &w) == BLKIF_RSP_ERROR);
    CHECK(ask(m, &d) == BLKIF_RSP_ERROR);
    machine_free(m);
}

static void sectors_of_4096(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 10);
    struct blkif_request good = whole(BLKIF_OP_READ, 8, 0, 2), odd_place = whole(BLKIF_OP_READ, 4, 0, 1);
    struct blkif_request odd_length = whole(BLKIF_OP_READ, 8, 0, 1);

    odd_length.seg[0].last_sect = 3;
    m->config.sector_bytes = 4096;
    machine_start(m, false);
    CHECK(ask(m, &good) == BLKIF_RSP_OKAY);
    CHECK(ask(m, &odd_place) == BLKIF_RSP_ERROR);
    CHECK(ask(m, &odd_length) == BLKIF_RSP_ERROR);
    machine_free(m);
}

/* Frames granted for reading only serve writes; frontends without persistent grants grant them so. */
static void granted_read_only(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 0);
    struct blkif_request r = whole(BLKIF_OP_READ, 0, 0, 1), w = whole(BLKIF_OP_WRITE, 0, 0, 1);

    m->read_only[RING_FRAMES] = true;
    machine_start(m, false);
    CHECK(ask(m, &w) == BLKIF_RSP_OKAY);
    CHECK(ask(m, &r) == BLKIF_RSP_ERROR);
    machine_free(m);
}

static void grants_are_kept(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 20);

    machine_start(m, false);
    for (uint32_t turn = 0; turn < 50; turn++) {
        struct blkif_request r = whole(BLKIF_OP_WRITE, turn, 0, 11);
        CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
    }
    CHECK(m->nr_maps == 11 && !m->nr_unmaps);
    for (uint32_t turn = 0; turn < 60; turn++) { /* more than are kept */
        struct blkif_request r = whole(BLKIF_OP_WRITE, turn, turn, 1);
        CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
        CHECK(m->nr_mapped <= 20);
    }
    struct blkif_request twice = whole(BLKIF_OP_READ, 0, 70, 4);

    twice.seg[1].gref = twice.seg[2].gref = 70;
    CHECK(ask(m, &twice) == BLKIF_RSP_OKAY);
    twice.seg[3].gref = 999; /* with one that fails, the others are put back */
    CHECK(ask(m, &twice) == BLKIF_RSP_ERROR);
    machine_free(m);
}

static void a_full_ring(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 100);
    struct blkif_response response;
    uint64_t seen = 0;

    machine_start(m, false);
    for (uint64_t turn = 0; turn < 10; turn++, seen = 0) {
        for (uint32_t i = 0; i < 32; i++) {
            struct blkif_request r = whole(i % 3 ? BLKIF_OP_READ : BLKIF_OP_WRITE, i * 8, i, 1);
            r.id = i;
            put(m, &r);
        }
        publish(m);
        machine_settle(m);
        while (get_response(m, &response)) {
            CHECK(response.status == BLKIF_RSP_OKAY && response.id < 32);
            seen |= 1ull << response.id;
        }
        CHECK(seen == 0xffffffff);
        CHECK(blk_queue_state(m->queue) == 0);
    }
    machine_free(m);
}

static void a_producer_that_runs_away(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 100);
    struct blkif_response response;

    machine_start(m, false);
    indices(m)->req_prod = 33;
    machine_settle(m);
    CHECK(blk_queue_state(m->queue) == BLK_STATE_PRODUCER);
    indices(m)->req_prod = 1;
    machine_settle(m);
    CHECK(!get_response(m, &response));
    machine_free(m);
}

static void events_only_when_asked(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 100);
    struct blkif_request r = whole(BLKIF_OP_READ, 0, 0, 1);

    machine_start(m, false);
    CHECK(ask(m, &r) == BLKIF_RSP_OKAY && notified(m));
    CHECK(ask(m, &r) == BLKIF_RSP_OKAY && !notified(m)); /* rsp_event still is 1 */
    indices(m)->rsp_event = 4;
    CHECK(ask(m, &r) == BLKIF_RSP_OKAY && !notified(m));
    CHECK(ask(m, &r) == BLKIF_RSP_OKAY && notified(m));
    machine_free(m);
}

static void resized(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 100);
    struct blkif_request r = whole(BLKIF_OP_READ, 400, 0, 1);

    machine_start(m, false);
    CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
    blk_queue_resize(m->queue, 404);
    CHECK(ask(m, &r) == BLKIF_RSP_ERROR);
    blk_queue_resize(m->queue, 408);
    CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
    machine_free(m);
}

static struct journal *mmap_journal(struct machine *m)
{
    void *at = mmap(NULL, lseek(m->journal, 0, SEEK_END), PROT_READ | PROT_WRITE, MAP_SHARED, m->journal, 0);

    CHECK(at != MAP_FAILED);
    return at;
}

/* What a kill leaves at each of its moments, made by hand; then a successor. */
static void successor(void)
{
    for (int moment = 0; moment < 4; moment++) {
        struct machine *m = machine_new(1, BLK_PROTOCOL_64, 100);
        struct blkif_request r = whole(BLKIF_OP_READ, 16, 1, 1);
        struct blkif_response response = {.id = r.id, .operation = r.operation};
        struct journal *j;

        machine_start(m, false);
        CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
        machine_stop(m);
        j = mmap_journal(m);
        put(m, &r);
        publish(m);
        if (moment >= 1) /* noted, not taken: read again from the ring */
            journal_note(j, 9, 1, &r);
        if (moment >= 2) /* taken, not answered: done again */
            journal_take(j, 2);
        if (moment >= 3) /* answered, not published: not done again */
            journal_answer(j, 9, &response);
        memset(machine_page(m, 1), 0xaa, 4096);
        machine_start(m, true);
        machine_settle(m);
        CHECK(get_response(m, &response) && response.id == r.id && response.status == BLKIF_RSP_OKAY);
        CHECK(!get_response(m, &response));
        CHECK(machine_page(m, 1)[0] == (moment < 3 ? image_byte(16 * 512) : 0xaa));
        CHECK(ask(m, &r) == BLKIF_RSP_OKAY);
        munmap(j, lseek(m->journal, 0, SEEK_END));
        machine_free(m);
    }
}

static void a_journal_of_another_ring(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 100);

    machine_start(m, true); /* it is empty */
    CHECK(blk_queue_state(m->queue) == BLK_STATE_JOURNAL);
    machine_stop(m);
    machine_start(m, false);
    machine_stop(m);
    indices(m)->rsp_prod = 1; /* more than was ever answered */
    machine_start(m, true);
    CHECK(blk_queue_state(m->queue) == BLK_STATE_JOURNAL);
    machine_free(m);
}

/* ---- over NBD */

static struct nbd_server *serve_nbd(struct machine *m, uint32_t replies, uint64_t garbage)
{
    int pair[2];

    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    if (m->queue)
        blk_queue_replace(m->queue, pair[0]);
    m->config.file = pair[0];
    m->config.backing = BLK_NBD;
    return nbd_server_start(pair[1], m->image, replies, garbage);
}

/* Runs until all is answered, or the server is lost. */
static void run_nbd(struct machine *m)
{
    while (queue_step(m->queue) || (!queue_idle(m->queue) && !(blk_queue_state(m->queue) & BLK_STATE_LOST)))
        usleep(20);
}

static void nbd_servers_that_die(void)
{
    for (uint32_t lives = 1; lives < 40; lives += 6) {
        struct machine *m = machine_new(1, BLK_PROTOCOL_64, 100);
        struct nbd_server *server = serve_nbd(m, lives, 0);
        struct blkif_response response;
        uint32_t answers = 0;

        machine_start(m, false);
        for (uint32_t i = 0; i < 32; i++) {
            struct blkif_request r = i % 4 == 3 ? discard_of(8 * 12 * (i % 5), 8, 0) : whole(i % 2, 8 * 11 * (i % 5), i, 11);
            memset(machine_page(m, i), 0, 1);
            put(m, &r);
        }
        publish(m);
        for (run_nbd(m); blk_queue_state(m->queue) & BLK_STATE_LOST; run_nbd(m)) {
            nbd_server_join(server);
            server = serve_nbd(m, lives * 2, 0);
            queue_step(m->queue); /* takes the socket */
        }
        for (; get_response(m, &response); answers++)
            CHECK(response.status == BLKIF_RSP_OKAY);
        CHECK(answers == 32);
        machine_stop(m);
        nbd_server_join(server);
        machine_free(m);
    }
}

/* Whatever a server answers, requests have their answers or the server is lost. */
static void nbd_servers_that_lie(void)
{
    for (uint64_t seed = 1; seed < 60; seed++) {
        struct machine *m = machine_new(1, BLK_PROTOCOL_64, seed % 2 * 100);
        struct nbd_server *server = serve_nbd(m, (uint32_t)seed % 9, seed);

        machine_start(m, false);
        for (uint32_t i = 0; i < 20; i++) {
            struct blkif_request r = whole(i % 2, i * 8, i, 1 + i % 11);
            put(m, &r);
        }
        publish(m);
        for (int turn = 0; turn < 200 && !(blk_queue_state(m->queue) & BLK_STATE_LOST); turn++, usleep(20))
            queue_step(m->queue);
        blk_queue_destroy(m->queue); /* in the middle of it */
        m->queue = NULL;
        CHECK(!m->nr_mapped);
        nbd_server_join(server);
        fill_image(m);
        machine_free(m);
    }
}

/* What a server may lose: counted until a flush, asked for or the queue's own. */
static void writes_not_flushed(void)
{
    struct machine *m = machine_new(1, BLK_PROTOCOL_64, 100);
    struct nbd_server *server = serve_nbd(m, 1000, 0);
    struct blkif_request w = whole(BLKIF_OP_WRITE, 0, 0, 1), f = {.operation = BLKIF_OP_FLUSH_DISKCACHE};
    struct blkif_response response;
    struct blk_statistics now;

    machine_start(m, false);
    usleep(1100000); /* so that its own flush is due at once */
    put(m, &w);
    publish(m);
    run_nbd(m);
    blk_queue_statistics(m->queue, &now);
    CHECK(now.unflushed == 0 && blk_journal_unflushed(m->journal) == 0);
    CHECK(get_response(m, &response));
    for (int i = 0; i < 3; i++)
        CHECK(ask(m, &w) == BLKIF_RSP_OKAY);
    blk_queue_statistics(m->queue, &now);
    CHECK(now.unflushed && blk_journal_unflushed(m->journal) == now.unflushed);
    CHECK(ask(m, &f) == BLKIF_RSP_OKAY);
    blk_queue_statistics(m->queue, &now);
    CHECK(now.unflushed == 0 && blk_journal_unflushed(m->journal) == 0);
    machine_stop(m);
    nbd_server_join(server);
    machine_free(m);
}

/* ---- rings full of nonsense */

static uint64_t random_state;

static uint32_t any(uint32_t below)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return below ? (uint32_t)(random_state >> 33) % below : 0;
}

static uint64_t some_number(void)
{
    static const uint64_t edges[] = {0, 1, 7, 8, 504, 511, 512, 513, 1ull << 32, 1ull << 55, 1ull << 63, ~0ull};

    return any(3) ? any(DISK_SECTORS) : edges[any(sizeof(edges) / sizeof(*edges))];
}

static void some_segments(struct blkif_request_segment *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        s[i].gref = any(20) ? any(FRAMES - RING_FRAMES) : any(1u << 31);
        s[i].first_sect = any(8) ? 0 : (uint8_t)any(256);
        s[i].last_sect = any(4) ? 7 : (uint8_t)any(256);
    }
}

static void some_request(struct machine *m)
{
    union {
        struct blkif_request r;
        struct blkif_request_discard d;
        struct blkif_request_indirect i;
        uint8_t raw[112];
    } u = {0};

    if (!any(6)) {
        for (size_t i = 0; i < sizeof(u.raw); i++)
            u.raw[i] = (uint8_t)any(256);
    } else {
        u.r.operation = any(10) ? (uint8_t)any(7) : (uint8_t)any(256);
        u.r.nr_segments = any(5) ? (uint8_t)any(12) : (uint8_t)any(256);
        u.r.id = any(1000);
        u.r.sector_number = some_number();
        some_segments(u.r.seg, 11);
        if (u.r.operation == BLKIF_OP_DISCARD)
            u.d.flag = any(5) == 0, u.d.nr_sectors = some_number();
        if (u.r.operation == BLKIF_OP_INDIRECT) {
            u.i.indirect_op = (uint8_t)any(3), u.i.nr_segments = (uint16_t)(any(5) ? any(70) : any(65536));
            for (int i = 0; i < 8; i++)
                u.i.indirect_grefs[i] = any(10) ? any(10) : any(1u << 31);
        }
    }
    put(m, &u.r);
}

static void some_event(struct machine *m)
{
    uint32_t room = blk_ring_entries(m->config.nr_ring_pages, m->config.protocol) - (m->req_prod - m->rsp_cons);
    struct blkif_response response;

    switch (any(12)) {
    case 0:
        m->revoked[RING_FRAMES + any(FRAMES - RING_FRAMES)] ^= 1;
        return;
    case 1:
        some_segments((void *)machine_page(m, any(10)), 512);
        return;
    case 2:
        blk_queue_resize(m->queue, any(3) ? DISK_SECTORS : any(DISK_SECTORS));
        return;
    case 3:
        indices(m)->rsp_event = any(2) ? m->rsp_cons + 1 : any(1u << 31);
        return;
    case 4:
        machine_stop(m);
        m->config.read_only = any(4) == 0;
        m->config.sector_bytes = any(4) ? 512 : 4096;
        machine_start(m, true);
        return;
    case 5:
        if (!any(30))
            indices(m)->req_prod = any(1u << 31);
        else if (!any(30))
            indices(m)->rsp_prod = any(1u << 31);
        return;
    default:
        for (uint32_t n = any(room + 1); n; n--)
            some_request(m);
        publish(m);
        machine_settle(m);
        while (get_response(m, &response) && m->rsp_cons != m->req_prod)
            CHECK(response.status <= 0 && response.status >= BLKIF_RSP_EOPNOTSUPP);
    }
}

/* Any ring contents give responses or a queue that says why it stops; never a touch outside granted frames or the image. */
static void fuzz(uint64_t seed)
{
    static const uint32_t kept[] = {0, 3, 30, 1000};
    static const uint32_t pages[] = {1, 1, 2, 16};
    random_state = seed * 2 + 1;
    struct machine *m = machine_new(pages[any(4)], any(2), kept[any(4)]);

    machine_start(m, false);
    for (int event = 0; event < 40; event++) {
        uint32_t before = m->req_prod;
        some_event(m);
        if (blk_queue_state(m->queue)) { /* it takes nothing more, whatever comes */
            uint32_t answers = indices(m)->rsp_prod;
            indices(m)->req_prod = before + 1;
            machine_settle(m);
            CHECK(indices(m)->rsp_prod == answers);
            break;
        }
    }
    machine_free(m);
}

#define T(name) {#name, name}
static const struct { const char *name; void (*run)(void); } tests[] = {
    T(data_64), T(data_32), T(data_16_pages), T(data_unmapped), T(data_few_kept), T(data_io_uring), T(indirect), T(errors), T(discard),
    T(read_only), T(sectors_of_4096), T(granted_read_only), T(grants_are_kept), T(a_full_ring),
    T(a_producer_that_runs_away), T(events_only_when_asked), T(resized), T(successor), T(a_journal_of_another_ring),
    T(nbd_servers_that_die), T(nbd_servers_that_lie), T(writes_not_flushed),
};

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "fuzz")) {
        for (uint64_t seed = strtoull(argv[2], NULL, 0), n = strtoull(argv[3], NULL, 0); n; n--, seed++) {
            fprintf(stderr, "seed %llu\r", (unsigned long long)seed);
            fuzz(seed);
        }
        return 0;
    }
    for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++) {
        if (argc < 2)
            puts(tests[i].name);
        else if (!strcmp(argv[1], tests[i].name))
            return tests[i].run(), 0;
    }
    return argc >= 2;
}
