/*
 * The other side of a queue. Machine memory is one allocation; a frame is poisoned for ASan unless it is a ring page or
 * mapped, so whatever the data path touches without a mapping ends the program (preadv and pwritev are looked at as well).
 * The frontend itself goes through machine_page(), which lifts the poison for as long as the next one is not asked for.
 */
#define _GNU_SOURCE
#include "machine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "journal.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(a, n) ((void)(a), (void)(n))
#define __asan_unpoison_memory_region(a, n) ((void)(a), (void)(n))
#endif

static uint32_t lent; /* frame the frontend looks at */

static void guard(struct machine *m, uint32_t frame)
{
    uint8_t *at = m->bank + frame * 4096;

    if (m->mapped[frame] || frame < m->config.nr_ring_pages)
        __asan_unpoison_memory_region(at, 4096);
    else
        __asan_poison_memory_region(at, 4096);
}

static int map(void *context, struct gnttab_map_grant_ref *ops, uint32_t n)
{
    struct machine *m = context;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t frame = RING_FRAMES + ops[i].ref;

        assert(ops[i].dom == 7 && ops[i].flags & GNTMAP_device_map);
        ops[i].status = GNTST_bad_gntref;
        if (ops[i].ref >= FRAMES - RING_FRAMES || m->revoked[frame])
            continue;
        if (m->read_only[frame] && !(ops[i].flags & GNTMAP_readonly))
            continue;
        ops[i].status = GNTST_okay;
        ops[i].handle = frame;
        ops[i].dev_bus_addr = (uint64_t)frame << 12;
        m->mapped[frame]++;
        m->nr_mapped++;
        m->nr_maps++;
        guard(m, frame);
    }
    return 0;
}

static int unmap(void *context, struct gnttab_unmap_grant_ref *ops, uint32_t n)
{
    struct machine *m = context;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t frame = ops[i].handle;

        assert(frame < FRAMES && m->mapped[frame] && ops[i].dev_bus_addr == (uint64_t)frame << 12);
        m->mapped[frame]--;
        m->nr_mapped--;
        m->nr_unmaps++;
        ops[i].status = GNTST_okay;
        guard(m, frame);
    }
    return 0;
}

uint8_t image_byte(uint64_t at) { return (uint8_t)(at / 512 * 7 + at % 512); }

void fill_image(struct machine *m)
{
    uint8_t *all = malloc(DISK_SECTORS * 512 + EDGE_BYTES);

    for (uint64_t at = 0; at < DISK_SECTORS * 512; at++)
        all[at] = image_byte(at);
    memset(all + DISK_SECTORS * 512, 0xed, EDGE_BYTES);
    assert(pwrite(m->image, all, DISK_SECTORS * 512 + EDGE_BYTES, 0) == DISK_SECTORS * 512 + EDGE_BYTES);
    free(all);
}

struct machine *machine_new(uint32_t pages, uint32_t protocol, uint32_t max_persistent)
{
    struct machine *m = calloc(1, sizeof(*m));

    m->bank = aligned_alloc(4096, FRAMES * 4096);
    memset(m->bank, 0, FRAMES * 4096);
    m->pool = blk_pool_create(2);
    m->image = memfd_create("image", 0);
    m->journal = memfd_create("journal", 0);
    m->event = eventfd(0, EFD_NONBLOCK);
    m->doorbell = eventfd(0, EFD_NONBLOCK);
    m->status = eventfd(0, EFD_NONBLOCK);
    m->config = (struct blk_queue_config){
        .pool = m->pool, .nr_ring_pages = pages, .protocol = protocol, .max_persistent = max_persistent, .domid = 7,
        .upcall_fd = m->event, .doorbell_fd = m->doorbell, .journal_fd = m->journal, .status_fd = m->status,
        .backing = BLK_FILE, .file = m->image, .nr_sectors = DISK_SECTORS, .sector_bytes = 512, .discard = 1,
    };
    for (uint32_t i = 0; i < MAX_RING_PAGES; i++)
        m->config.ring_mfn[i] = pages - 1 - i; /* not in order in memory */
    assert(ftruncate(m->journal, blk_journal_bytes(blk_ring_entries(pages, protocol))) == 0);
    fill_image(m);
    for (uint32_t frame = 0; frame < FRAMES; frame++)
        guard(m, frame);
    indices(m)->rsp_event = indices(m)->req_event = 1;
    return m;
}

void machine_start(struct machine *m, bool resuming)
{
    struct grant_source source = {m, map, unmap, m->bank, FRAMES};

    m->config.resuming = resuming;
    m->queue = queue_create_with(&m->config, &source);
    assert(m->queue);
    queue_begin(m->queue);
}

void machine_stop(struct machine *m)
{
    machine_settle(m);
    blk_queue_destroy(m->queue);
    m->queue = NULL;
    assert(!m->nr_mapped);
}

void machine_free(struct machine *m)
{
    uint8_t edge[EDGE_BYTES];

    if (m->queue)
        machine_stop(m);
    assert(pread(m->image, edge, sizeof(edge), DISK_SECTORS * 512) == EDGE_BYTES);
    for (uint32_t i = 0; i < EDGE_BYTES; i++)
        assert(edge[i] == 0xed);
    assert(lseek(m->image, 0, SEEK_END) == DISK_SECTORS * 512 + EDGE_BYTES);
    blk_pool_destroy(m->pool);
    close(m->image), close(m->journal), close(m->event), close(m->doorbell), close(m->status);
    __asan_unpoison_memory_region(m->bank, FRAMES * 4096);
    free(m->bank);
    free(m);
}

void machine_settle(struct machine *m)
{
    guard(m, lent);
    while (queue_step(m->queue) || !queue_idle(m->queue))
        if (!queue_idle(m->queue))
            usleep(20);
}

uint8_t *machine_page(struct machine *m, uint32_t gref)
{
    guard(m, lent);
    lent = RING_FRAMES + gref;
    __asan_unpoison_memory_region(m->bank + lent * 4096, 4096);
    return m->bank + lent * 4096;
}

struct ring_indices *indices(struct machine *m)
{
    return (struct ring_indices *)(m->bank + m->config.ring_mfn[0] * 4096);
}

uint32_t entry_bytes(const struct machine *m) { return blk_entry_bytes((enum blk_protocol)m->config.protocol); }

static uint8_t *slot_byte(struct machine *m, uint32_t index, uint32_t offset)
{
    uint32_t entries = blk_ring_entries(m->config.nr_ring_pages, m->config.protocol);
    uint32_t at = 64 + index % entries * entry_bytes(m) + offset;

    return m->bank + m->config.ring_mfn[at / 4096] * 4096 + at % 4096;
}

void put_entry(struct machine *m, const void *entry, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i++)
        *slot_byte(m, m->req_prod, i) = ((const uint8_t *)entry)[i];
    m->req_prod++;
}

void publish(struct machine *m) { __atomic_store_n(&indices(m)->req_prod, m->req_prod, __ATOMIC_RELEASE); }

bool get_response(struct machine *m, struct blkif_response *out)
{
    uint32_t narrow = m->config.protocol == BLK_PROTOCOL_32;
    uint8_t raw[16];

    if (m->rsp_cons == __atomic_load_n(&indices(m)->rsp_prod, __ATOMIC_ACQUIRE))
        return false;
    for (uint32_t i = 0; i < sizeof(raw); i++)
        raw[i] = *slot_byte(m, m->rsp_cons, i);
    m->rsp_cons++;
    memcpy(&out->id, raw, 8);
    out->operation = raw[8];
    memcpy(&out->status, raw + (narrow ? 10 : 10), 2);
    return true;
}

bool notified(struct machine *m)
{
    eventfd_t count;

    return eventfd_read(m->doorbell, &count) == 0;
}
