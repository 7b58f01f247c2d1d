/*
 * Request rings, seen from the frontend. See front.c.
 */
#ifndef UMXEN_GUEST_FRONT_H
#define UMXEN_GUEST_FRONT_H
#include <stdint.h>

/* cffi: begin */
/* `page` is the shared ring: 64 bytes of indices, then `nr_entries` (a power of two) of `entry_bytes` each. */
struct front_ring {
    uint8_t *page;
    uint32_t nr_entries, entry_bytes;
    uint32_t req_prod_pvt, rsp_cons;
};

enum front_index { FRONT_REQ_PROD = 0, FRONT_REQ_EVENT = 1, FRONT_RSP_PROD = 2, FRONT_RSP_EVENT = 3 };

/* An empty ring in `bytes` bytes of memory that no backend sees yet. -1: not even one entry fits. */
int front_ring_init(struct front_ring *ring, void *page, uint32_t bytes, uint32_t entry_bytes);
/* Requests that may be put before a response is taken. */
uint32_t front_ring_room(const struct front_ring *ring);
/* Copies one request, at most entry_bytes long, into the next slot; not yet visible. -1: no room. */
int front_ring_put(struct front_ring *ring, const void *request, uint32_t bytes);
/* Shows the backend all that was put. 1: it wants to be notified. */
int front_ring_push(struct front_ring *ring);
/* Takes up to `max` responses of `bytes` each. Their number, or -1: the backend has answered more than was asked. */
int32_t front_ring_take(struct front_ring *ring, void *to, uint32_t bytes, uint32_t max);
/* Asks for a notification at the next response. 1: there is one already, take again. */
int front_ring_sleep(struct front_ring *ring);
/* The shared indices as they are, for those who study or break the protocol. */
uint32_t front_ring_load(const struct front_ring *ring, enum front_index which);
void front_ring_store(struct front_ring *ring, enum front_index which, uint32_t value);
/* cffi: end */
#endif
