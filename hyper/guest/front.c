/*
 * Request rings, seen from the frontend.
 *
 * A ring is a page (or several) with four free-running 32-bit indices in front and a power of two of equal slots behind.
 * The frontend puts requests into slots and moves req_prod; the backend overwrites consumed slots with responses and
 * moves rsp_prod. A slot is the frontend's again when it has taken the response, so at most nr_entries are on the way.
 * Entries are copied as bytes: which fields they have is for the driver of the device to know, not for the ring.
 *
 * Each side says in *_event at which index of the other it wants to be woken. Whoever moves an index compares the old and
 * the new one with the event after a full barrier; whoever goes to sleep writes the event, then a full barrier, then looks
 * once more. One of both sees the other, so no wake-up is lost.
 *
 * Backends are believed as little as guests are: rsp_prod is loaded once per call and may not run past what was asked.
 */
#include "front.h"

#include <string.h>

#define HEADER_BYTES 64

static uint32_t *shared_index(const struct front_ring *ring, enum front_index which)
{
    return (uint32_t *)ring->page + which;
}

static uint8_t *slot(const struct front_ring *ring, uint32_t index)
{
    return ring->page + HEADER_BYTES + (size_t)(index & (ring->nr_entries - 1)) * ring->entry_bytes;
}

int front_ring_init(struct front_ring *ring, void *page, uint32_t bytes, uint32_t entry_bytes)
{
    if (!entry_bytes || bytes < HEADER_BYTES + entry_bytes)
        return -1;
    uint32_t fit = (bytes - HEADER_BYTES) / entry_bytes, entries = 1;

    while (entries * 2 <= fit)
        entries *= 2;
    *ring = (struct front_ring){.page = page, .nr_entries = entries, .entry_bytes = entry_bytes};
    memset(page, 0, bytes);
    front_ring_store(ring, FRONT_REQ_EVENT, 1);
    front_ring_store(ring, FRONT_RSP_EVENT, 1);
    return 0;
}

uint32_t front_ring_room(const struct front_ring *ring)
{
    return ring->nr_entries - (ring->req_prod_pvt - ring->rsp_cons);
}

int front_ring_put(struct front_ring *ring, const void *request, uint32_t bytes)
{
    if (!front_ring_room(ring) || bytes > ring->entry_bytes)
        return -1;
    memcpy(slot(ring, ring->req_prod_pvt++), request, bytes);
    return 0;
}

int front_ring_push(struct front_ring *ring)
{
    uint32_t *shared = shared_index(ring, FRONT_REQ_PROD), now = ring->req_prod_pvt;
    uint32_t before = __atomic_load_n(shared, __ATOMIC_RELAXED);

    __atomic_store_n(shared, now, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return now - front_ring_load(ring, FRONT_REQ_EVENT) < now - before;
}

int32_t front_ring_take(struct front_ring *ring, void *to, uint32_t bytes, uint32_t max)
{
    uint32_t ready = __atomic_load_n(shared_index(ring, FRONT_RSP_PROD), __ATOMIC_ACQUIRE) - ring->rsp_cons;

    if (ready > ring->req_prod_pvt - ring->rsp_cons || bytes > ring->entry_bytes)
        return -1;
    if (ready > max)
        ready = max;
    for (uint32_t i = 0; i < ready; i++)
        memcpy((uint8_t *)to + (size_t)i * bytes, slot(ring, ring->rsp_cons + i), bytes);
    ring->rsp_cons += ready;
    return (int32_t)ready;
}

int front_ring_sleep(struct front_ring *ring)
{
    front_ring_store(ring, FRONT_RSP_EVENT, ring->rsp_cons + 1);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return front_ring_load(ring, FRONT_RSP_PROD) != ring->rsp_cons;
}

uint32_t front_ring_load(const struct front_ring *ring, enum front_index which)
{
    return __atomic_load_n(shared_index(ring, which), __ATOMIC_ACQUIRE);
}

void front_ring_store(struct front_ring *ring, enum front_index which, uint32_t value)
{
    __atomic_store_n(shared_index(ring, which), value, __ATOMIC_RELEASE);
}
