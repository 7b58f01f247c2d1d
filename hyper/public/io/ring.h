/*
 * Shared rings: requests one way, responses back, in the same slots. The frontend owns req_prod and rsp_event, the backend
 * rsp_prod and req_event; how far each side has consumed is its own knowledge. Indices run freely and are masked only to
 * address a slot. `*_event` holds the index at which its owner wants to be notified next.
 *
 * All indices lie in the frontend's page: a backend keeps copies of its own two and trusts only those.
 */
#ifndef UMXEN_PUBLIC_IO_RING_H
#define UMXEN_PUBLIC_IO_RING_H
#include <stdbool.h>
#include <stdint.h>

/* cffi: begin */
typedef unsigned int RING_IDX;
/* cffi: end */

/* The beginning of every ring; its entries follow at byte 64. */
struct ring_indices {
    RING_IDX req_prod, req_event;
    RING_IDX rsp_prod, rsp_event;
};

enum { RING_HEADER_BYTES = 64 };

/* Entries of `entry_bytes` in a ring of `bytes`: the largest power of two that fits. */
static inline uint32_t ring_entries(uint32_t bytes, uint32_t entry_bytes)
{
    uint32_t fit = (bytes - RING_HEADER_BYTES) / entry_bytes;

    return 1u << (31 - __builtin_clz(fit));
}

static inline RING_IDX ring_req_prod(const struct ring_indices *ring)
{
    return __atomic_load_n(&ring->req_prod, __ATOMIC_ACQUIRE);
}

/* Publishes responses up to `prod`, `old` being the index published before. True: the frontend wants to be notified. */
static inline bool ring_push_responses(struct ring_indices *ring, RING_IDX old, RING_IDX prod)
{
    __atomic_store_n(&ring->rsp_prod, prod, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    RING_IDX event = __atomic_load_n(&ring->rsp_event, __ATOMIC_RELAXED);

    return prod - event < prod - old;
}

/* Before sleeping: true when there are requests beyond `cons` after all; else the next one notifies us. */
static inline bool ring_final_check_requests(struct ring_indices *ring, RING_IDX cons)
{
    if (ring_req_prod(ring) != cons)
        return true;
    __atomic_store_n(&ring->req_event, cons + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return ring_req_prod(ring) != cons;
}
#endif
