/*
 * Byte rings shared with a guest: one producer, one consumer, no lock.
 *
 * Indices are free-running 32-bit counters; a byte lies at index modulo the ring's size, a power of two. The producer
 * writes bytes and then stores prod with release; the consumer loads prod with acquire, copies, and stores cons with
 * release, after which the bytes may be overwritten. The acquire load of the other side's index is the other half.
 *
 * The other side may change anything in the page at any time. Each index is loaded once per call; prod - cons above the
 * ring's size is the other side's fault and answers -1. Whatever it writes, no copy leaves the ring.
 */
#include "rings.h"

#include <string.h>

#define BOGUS (-1)

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Bytes from index `cons` on, at most `max`. The ring is not advanced. */
static int32_t peek(const char *ring, uint32_t size, uint32_t cons, const uint32_t *shared_prod, void *to, uint32_t max)
{
    uint32_t used = __atomic_load_n(shared_prod, __ATOMIC_ACQUIRE) - cons;

    if (used > size)
        return BOGUS;
    uint32_t bytes = min_u32(used, max);
    uint32_t at = cons & (size - 1);
    uint32_t first = min_u32(bytes, size - at);

    memcpy(to, ring + at, first);
    memcpy((char *)to + first, ring, bytes - first);
    return (int32_t)bytes;
}

static int32_t take(const char *ring, uint32_t size, uint32_t *shared_cons, const uint32_t *shared_prod, void *to,
                    uint32_t max)
{
    uint32_t cons = __atomic_load_n(shared_cons, __ATOMIC_RELAXED);
    int32_t bytes = peek(ring, size, cons, shared_prod, to, max);

    if (bytes > 0)
        __atomic_store_n(shared_cons, cons + (uint32_t)bytes, __ATOMIC_RELEASE);
    return bytes;
}

static int32_t produce(char *ring, uint32_t size, const uint32_t *shared_cons, uint32_t *shared_prod, const void *from,
                       uint32_t max)
{
    uint32_t prod = __atomic_load_n(shared_prod, __ATOMIC_RELAXED);
    uint32_t used = prod - __atomic_load_n(shared_cons, __ATOMIC_ACQUIRE);

    if (used > size)
        return BOGUS;
    uint32_t bytes = min_u32(size - used, max);
    uint32_t at = prod & (size - 1);
    uint32_t first = min_u32(bytes, size - at);

    memcpy(ring + at, from, first);
    memcpy(ring, (const char *)from + first, bytes - first);
    __atomic_store_n(shared_prod, prod + bytes, __ATOMIC_RELEASE);
    return (int32_t)bytes;
}

int32_t ring_xenstore_peek(const struct xenstore_domain_interface *page, void *to, uint32_t max)
{
    uint32_t cons = __atomic_load_n(&page->req_cons, __ATOMIC_RELAXED);

    return peek(page->req, sizeof(page->req), cons, &page->req_prod, to, max);
}

int32_t ring_xenstore_consume(struct xenstore_domain_interface *page, uint32_t bytes)
{
    uint32_t cons = __atomic_load_n(&page->req_cons, __ATOMIC_RELAXED);
    uint32_t used = __atomic_load_n(&page->req_prod, __ATOMIC_RELAXED) - cons;

    if (used > sizeof(page->req) || bytes > used)
        return BOGUS;
    __atomic_store_n(&page->req_cons, cons + bytes, __ATOMIC_RELEASE);
    return (int32_t)bytes;
}

int32_t ring_xenstore_write(struct xenstore_domain_interface *page, const void *from, uint32_t bytes)
{
    return produce(page->rsp, sizeof(page->rsp), &page->rsp_cons, &page->rsp_prod, from, bytes);
}

uint32_t ring_xenstore_req_cons(const struct xenstore_domain_interface *page)
{
    return __atomic_load_n(&page->req_cons, __ATOMIC_RELAXED);
}

uint32_t ring_xenstore_rsp_prod(const struct xenstore_domain_interface *page)
{
    return __atomic_load_n(&page->rsp_prod, __ATOMIC_RELAXED);
}

void ring_xenstore_reset(struct xenstore_domain_interface *page)
{
    __atomic_store_n(&page->req_cons, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&page->req_prod, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&page->rsp_cons, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&page->rsp_prod, 0, __ATOMIC_RELEASE);
}

int32_t ring_console_read(struct xencons_interface *page, void *to, uint32_t max)
{
    return take(page->out, sizeof(page->out), &page->out_cons, &page->out_prod, to, max);
}

int32_t ring_console_write(struct xencons_interface *page, const void *from, uint32_t bytes)
{
    return produce(page->in, sizeof(page->in), &page->in_cons, &page->in_prod, from, bytes);
}

/* ---- the guest's ends of the same rings -------------------------------------------------------------------------- */

int32_t ring_xenstore_ask(struct xenstore_domain_interface *page, const void *from, uint32_t bytes)
{
    return produce(page->req, sizeof(page->req), &page->req_cons, &page->req_prod, from, bytes);
}

int32_t ring_xenstore_answer(struct xenstore_domain_interface *page, void *to, uint32_t max)
{
    return take(page->rsp, sizeof(page->rsp), &page->rsp_cons, &page->rsp_prod, to, max);
}

int32_t ring_console_print(struct xencons_interface *page, const void *from, uint32_t bytes)
{
    return produce(page->out, sizeof(page->out), &page->out_cons, &page->out_prod, from, bytes);
}

int32_t ring_console_type(struct xencons_interface *page, void *to, uint32_t max)
{
    return take(page->in, sizeof(page->in), &page->in_cons, &page->in_prod, to, max);
}
