/*
 * What a network card does with headers: complete a checksum, cut a large TCP packet into segments.
 */
#ifndef UMXEN_VSWITCH_OFFLOAD_H
#define UMXEN_VSWITCH_OFFLOAD_H
#include "packet.h"

#define MIN_MSS 88u /* Linux' own least; a smaller one would only make work */

/* Where things are in an IP packet over Ethernet, offsets from the frame's start. All headers lie in the first span. */
struct headers {
    uint8_t ip_version, protocol; /* protocol: TCP or UDP */
    uint16_t ip, transport, payload;
    uint16_t checksum; /* the transport's field */
    uint32_t end;      /* of the IP packet; padding follows */
};
enum { PROTOCOL_TCP = 6, PROTOCOL_UDP = 17 };

/* False: not TCP or UDP over IP, a fragment, or malformed. */
bool parse_headers(const struct pool *pool, const struct packet *p, struct headers *out);
/* Writes the full transport checksum into the packet. False: it has none that we know. */
bool complete_checksum(struct pool *pool, struct packet *p);
/* Whether a GSO packet is what it says: TCP of that version, a header, a sane segment size. */
bool gso_is_sane(const struct pool *pool, const struct packet *p);
/* Longest IP packet of the segments a GSO packet stands for. */
uint32_t gso_segment_bytes(const struct headers *h, const struct packet *p);

/* Cuts `p` and hands each segment, checksum complete, to `emit`, which owns it. False: out of pages in between. */
typedef void (*emit_fn)(void *context, struct packet *segment);
bool segment_packet(struct pool *pool, const struct packet *p, emit_fn emit, void *context);

uint16_t checksum_fold(uint64_t sum);
uint64_t checksum_bytes(const void *data, uint32_t bytes);
#endif
