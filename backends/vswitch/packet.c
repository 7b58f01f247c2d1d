/*
 * The pool of pages and packets. A packet has at least one page, so there are as many packets as pages. Nothing here is
 * locked: the switch's lock is held by whoever calls.
 */
#include "packet.h"

#include <errno.h>
#include <stdlib.h>

int pool_init(struct pool *pool, void *memory, uint64_t bytes)
{
    if ((uintptr_t)memory % PACKET_PAGE || bytes < PACKET_PAGE || bytes >= 1ull << 32)
        return -EINVAL;
    *pool = (struct pool){.base = memory, .nr_pages = (uint32_t)(bytes / PACKET_PAGE)};
    pool->free_page = calloc(pool->nr_pages, sizeof(*pool->free_page));
    pool->packets = calloc(pool->nr_pages, sizeof(*pool->packets));
    if (!pool->free_page || !pool->packets) {
        pool_free(pool);
        return -ENOMEM;
    }
    for (uint32_t i = pool->nr_pages; i-- > 0;) {
        pool->free_page[pool->nr_free++] = i;
        pool->packets[i].next_free = pool->free_packet;
        pool->free_packet = &pool->packets[i];
    }
    return 0;
}

void pool_free(struct pool *pool)
{
    free(pool->free_page);
    free(pool->packets);
    *pool = (struct pool){0};
}

struct packet *packet_alloc(struct pool *pool)
{
    struct packet *p = pool->free_packet;
    if (!p)
        return NULL;
    pool->free_packet = p->next_free;
    p->refs = 1;
    p->bytes = 0;
    p->nr_spans = p->vlan = p->gso_size = 0;
    p->gso = GSO_NONE;
    p->checksum = CHECKSUM_COMPLETE;
    return p;
}

void packet_put(struct pool *pool, struct packet *p)
{
    if (--p->refs)
        return;
    for (uint32_t i = 0; i < p->nr_spans; i++)
        pool->free_page[pool->nr_free++] = p->span[i].at / PACKET_PAGE;
    p->next_free = pool->free_packet;
    pool->free_packet = p;
}

static struct span *new_span(struct pool *pool, struct packet *p)
{
    if (!pool->nr_free || p->nr_spans == PACKET_MAX_SPANS)
        return NULL;
    struct span *s = &p->span[p->nr_spans];
    s->at = pool->free_page[--pool->nr_free] * PACKET_PAGE + (p->nr_spans ? 0 : PACKET_ROOM);
    s->bytes = 0;
    p->nr_spans++;
    return s;
}

static uint32_t span_room(const struct span *s)
{
    return PACKET_PAGE - s->at % PACKET_PAGE - s->bytes;
}

uint32_t packet_extend(struct pool *pool, struct packet *p, uint32_t bytes, bool whole, uint32_t *at)
{
    struct span *s = p->nr_spans ? &p->span[p->nr_spans - 1] : NULL;
    bool head_short = p->nr_spans == 1 && s->bytes < PACKET_HEAD;
    uint32_t room = s ? span_room(s) : 0;
    if (!room || (whole && bytes > room && !head_short)) {
        s = new_span(pool, p);
        if (!s)
            return 0;
        room = span_room(s);
    }
    uint32_t n = bytes < room ? bytes : room;
    *at = s->at + s->bytes;
    s->bytes += n;
    p->bytes += n;
    return n;
}

void packet_trim(struct pool *pool, struct packet *p, uint32_t bytes)
{
    p->bytes = bytes;
    for (uint32_t i = 0; i < p->nr_spans; i++) {
        struct span *s = &p->span[i];
        s->bytes = s->bytes < bytes ? s->bytes : bytes;
        bytes -= s->bytes;
        if (!s->bytes)
            pool->free_page[pool->nr_free++] = s->at / PACKET_PAGE;
    }
    while (p->nr_spans && !p->span[p->nr_spans - 1].bytes)
        p->nr_spans--;
}

bool packet_append(struct pool *pool, struct packet *p, const void *from, uint32_t bytes)
{
    const uint8_t *data = from;
    while (bytes) {
        uint32_t at, n = packet_extend(pool, p, bytes, false, &at);
        if (!n)
            return false;
        memcpy(pool_at(pool, at), data, n);
        data += n;
        bytes -= n;
    }
    return true;
}

void packet_read(const struct pool *pool, const struct packet *p, uint32_t offset, void *to, uint32_t bytes)
{
    uint8_t *out = to;
    for (uint32_t i = 0; i < p->nr_spans && bytes; i++) {
        const struct span *s = &p->span[i];
        if (offset >= s->bytes) {
            offset -= s->bytes;
            continue;
        }
        uint32_t n = s->bytes - offset < bytes ? s->bytes - offset : bytes;
        memcpy(out, pool_at(pool, s->at + offset), n);
        out += n;
        bytes -= n;
        offset = 0;
    }
}

/* The addresses and the tag, in the room before the frame. The same bytes whoever asks, so sharers don't mind. */
static uint32_t build_tagged_header(struct pool *pool, const struct packet *p)
{
    uint32_t at = p->span[0].at / PACKET_PAGE * PACKET_PAGE;
    uint8_t *header = pool_at(pool, at);
    memcpy(header, packet_head(pool, p), 12);
    header[12] = 0x81;
    header[13] = 0x00;
    header[14] = (uint8_t)(p->vlan >> 8);
    header[15] = (uint8_t)p->vlan;
    return at;
}

uint32_t packet_pieces(struct pool *pool, struct packet *p, bool tagged, struct span *out)
{
    uint32_t n = 0;
    if (tagged)
        out[n++] = (struct span){build_tagged_header(pool, p), 12 + VLAN_TAG};
    for (uint32_t i = 0; i < p->nr_spans; i++) {
        uint32_t skip = tagged && !i ? 12 : 0;
        out[n++] = (struct span){p->span[i].at + skip, p->span[i].bytes - skip};
    }
    return n;
}

uint32_t packet_iovec(struct pool *pool, struct packet *p, bool tagged, struct iovec *out)
{
    struct span piece[PACKET_MAX_PIECES];
    uint32_t n = packet_pieces(pool, p, tagged, piece);
    for (uint32_t i = 0; i < n; i++)
        out[i] = (struct iovec){pool_at(pool, piece[i].at), piece[i].bytes};
    return n;
}
