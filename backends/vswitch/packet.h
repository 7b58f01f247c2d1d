/*
 * Packets: a chain of pages out of one bounded pool, shared by reference.
 *
 * A span is what a packet uses of one page. Spans need not be full: the slots a guest sent stay as they were cut, so that a
 * slot is copied in once and out once. The headers are in the first span: it holds PACKET_HEAD bytes, or the whole packet.
 * Its first PACKET_ROOM bytes of the page are free: there the header of the frame with a VLAN tag is built.
 */
#ifndef UMXEN_VSWITCH_PACKET_H
#define UMXEN_VSWITCH_PACKET_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#define PACKET_PAGE 4096u
#define PACKET_ROOM 64u
#define PACKET_HEAD 256u
#define PACKET_MAX_SPANS 20u
#define PACKET_MAX_BYTES 65535u
#define ETH_HEADER 14u
#define VLAN_TAG 4u
/* What a packet may become on its way out: a span more for the tagged header. */
#define PACKET_MAX_PIECES (PACKET_MAX_SPANS + 1)

enum packet_checksum { CHECKSUM_COMPLETE, CHECKSUM_PARTIAL, CHECKSUM_VERIFIED };
enum packet_gso { GSO_NONE = 0, GSO_TCP4 = 1, GSO_TCP6 = 2 };

struct span {
    uint32_t at; /* offset in the pool's memory; never crosses a page */
    uint32_t bytes;
};

struct packet {
    struct packet *next_free;
    uint32_t refs, bytes;
    uint16_t nr_spans, vlan, gso_size;
    uint8_t gso, checksum;
    struct span span[PACKET_MAX_SPANS];
};

struct pool {
    uint8_t *base;
    uint32_t nr_pages, nr_free;
    uint32_t *free_page; /* a stack of page numbers */
    struct packet *packets, *free_packet;
};

int pool_init(struct pool *pool, void *memory, uint64_t bytes);
void pool_free(struct pool *pool);

/* An empty packet, referenced once; NULL: none is left. */
struct packet *packet_alloc(struct pool *pool);
void packet_put(struct pool *pool, struct packet *p);
static inline void packet_get(struct packet *p) { p->refs++; }

/*
 * Room for up to `bytes` more at the end: where, and how many of them. 0: no page is left, or the packet is full. With
 * `whole`, a new page rather than a part of the last one, unless the header is not complete yet.
 */
uint32_t packet_extend(struct pool *pool, struct packet *p, uint32_t bytes, bool whole, uint32_t *at);
/* Cuts off all after the first `bytes`, pages included. */
void packet_trim(struct pool *pool, struct packet *p, uint32_t bytes);
/* Copies in at the end; false: no room. */
bool packet_append(struct pool *pool, struct packet *p, const void *from, uint32_t bytes);
/* Copies out; the bytes must be there. */
void packet_read(const struct pool *pool, const struct packet *p, uint32_t offset, void *to, uint32_t bytes);
/* The frame's pieces, with its VLAN tag in front if it is to be `tagged`. Returns how many, up to PACKET_MAX_PIECES. */
uint32_t packet_pieces(struct pool *pool, struct packet *p, bool tagged, struct span *out);
uint32_t packet_iovec(struct pool *pool, struct packet *p, bool tagged, struct iovec *out);

static inline uint8_t *pool_at(const struct pool *pool, uint32_t at) { return pool->base + at; }
static inline uint8_t *packet_head(const struct pool *pool, const struct packet *p) { return pool_at(pool, p->span[0].at); }
/* Bytes of its headers that lie together. */
static inline uint32_t packet_head_bytes(const struct packet *p) { return p->span[0].bytes; }
#endif
