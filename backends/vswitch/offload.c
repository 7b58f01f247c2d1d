/*
 * Checksums and segmentation.
 *
 * Internet checksums are sums of 16-bit words with end-around carry; they come out right in the host's byte order when
 * stored in it, so nothing is swapped. A piece that begins at an odd offset has its sum's bytes exchanged.
 *
 * Headers are what the guest wrote, but in our own copy: once parsed, offsets hold. Every one is checked against the first
 * span, which holds PACKET_HEAD bytes or the whole packet; headers longer than that are nobody's.
 */
#include "offload.h"

#include <arpa/inet.h>

#define ETHERTYPE_IP4 0x0800
#define ETHERTYPE_IP6 0x86dd
#define IP6_HEADER 40u
#define MAX_EXTENSIONS 8

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }

static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v);
}

/* ---- sums ------------------------------------------------------------------------------------------------------- */

uint64_t checksum_bytes(const void *data, uint32_t bytes)
{
    const uint8_t *p = data;
    uint64_t sum = 0, word;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        memcpy(&word, p, 8);
        sum += (uint32_t)word;
        sum += word >> 32;
    }
    if (bytes) {
        word = 0;
        memcpy(&word, p, bytes);
        sum += (uint32_t)word;
        sum += word >> 32;
    }
    return sum;
}

uint16_t checksum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* A folded sum, so that it may be moved by a byte. */
static uint64_t moved(uint64_t sum, bool odd)
{
    uint16_t s = checksum_fold(sum);
    return odd ? (uint16_t)(s << 8 | s >> 8) : s;
}

static uint64_t checksum_range(const struct pool *pool, const struct packet *p, uint32_t from, uint32_t end)
{
    uint64_t sum = 0;
    uint32_t at = 0, done = 0;
    for (uint32_t i = 0; i < p->nr_spans && at < end; at += p->span[i++].bytes) {
        uint32_t first = from > at ? from - at : 0;
        uint32_t last = end - at < p->span[i].bytes ? end - at : p->span[i].bytes;
        if (first >= last)
            continue;
        sum += moved(checksum_bytes(pool_at(pool, p->span[i].at + first), last - first), done & 1);
        done += last - first;
    }
    return sum;
}

static uint64_t pseudo_header(const uint8_t *frame, const struct headers *h, uint32_t transport_bytes)
{
    uint64_t sum = htons((uint16_t)transport_bytes) + htons(h->protocol);
    if (h->ip_version == 4)
        return sum + checksum_bytes(frame + h->ip + 12, 8);
    return sum + checksum_bytes(frame + h->ip + 8, 32);
}

/* ---- headers ---------------------------------------------------------------------------------------------------- */

static bool parse_ip4(const uint8_t *frame, uint32_t head, struct headers *h)
{
    const uint8_t *ip = frame + h->ip;
    if (h->ip + 20u > head || ip[0] >> 4 != 4)
        return false;
    uint32_t header = (ip[0] & 15u) * 4, total = get16(ip + 2);
    if (header < 20 || header > total || (get16(ip + 6) & 0x3fff))
        return false;
    h->protocol = ip[9];
    h->transport = (uint16_t)(h->ip + header);
    h->end = h->ip + total;
    return true;
}

static bool parse_ip6(const uint8_t *frame, uint32_t head, struct headers *h)
{
    if (h->ip + IP6_HEADER > head || frame[h->ip] >> 4 != 6)
        return false;
    uint32_t at = h->ip + IP6_HEADER;
    uint8_t next = frame[h->ip + 6];
    h->end = at + get16(frame + h->ip + 4);
    for (int i = 0; i < MAX_EXTENSIONS; i++) {
        if (next != 0 && next != 43 && next != 60) { /* hop-by-hop, routing, destination options */
            h->protocol = next;
            h->transport = (uint16_t)at;
            return at <= h->end;
        }
        if (at + 8 > head)
            return false;
        next = frame[at];
        at += (frame[at + 1] + 1u) * 8;
    }
    return false;
}

static bool parse_transport(const uint8_t *frame, uint32_t head, struct headers *h)
{
    const uint8_t *t = frame + h->transport;
    if (h->protocol == PROTOCOL_UDP) {
        h->checksum = (uint16_t)(h->transport + 6);
        h->payload = (uint16_t)(h->transport + 8);
        return h->payload <= head && h->payload <= h->end;
    }
    if (h->protocol != PROTOCOL_TCP || h->transport + 20u > head || (t[12] >> 4) < 5)
        return false;
    h->checksum = (uint16_t)(h->transport + 16);
    h->payload = (uint16_t)(h->transport + (t[12] >> 4) * 4);
    return h->payload <= head && h->payload <= h->end;
}

bool parse_headers(const struct pool *pool, const struct packet *p, struct headers *h)
{
    const uint8_t *frame = packet_head(pool, p);
    uint32_t head = packet_head_bytes(p);
    if (head < ETH_HEADER)
        return false;
    uint16_t type = get16(frame + 12);
    h->ip = ETH_HEADER;
    h->ip_version = type == ETHERTYPE_IP4 ? 4 : type == ETHERTYPE_IP6 ? 6 : 0;
    bool ok = h->ip_version == 4 ? parse_ip4(frame, head, h) : h->ip_version == 6 && parse_ip6(frame, head, h);
    return ok && h->end <= p->bytes && parse_transport(frame, head, h);
}

bool complete_checksum(struct pool *pool, struct packet *p)
{
    struct headers h;
    if (!parse_headers(pool, p, &h))
        return false;
    uint8_t *frame = packet_head(pool, p);
    memset(frame + h.checksum, 0, 2);
    uint64_t sum = pseudo_header(frame, &h, h.end - h.transport) + checksum_range(pool, p, h.transport, h.end);
    uint16_t value = (uint16_t)~checksum_fold(sum);
    if (!value && h.protocol == PROTOCOL_UDP)
        value = 0xffff;
    memcpy(frame + h.checksum, &value, 2);
    p->checksum = CHECKSUM_VERIFIED;
    return true;
}

/* ---- segments --------------------------------------------------------------------------------------------------- */

bool gso_is_sane(const struct pool *pool, const struct packet *p)
{
    struct headers h;
    return p->gso_size >= MIN_MSS && parse_headers(pool, p, &h) && h.protocol == PROTOCOL_TCP &&
           h.ip_version == (p->gso == GSO_TCP4 ? 4 : 6);
}

uint32_t gso_segment_bytes(const struct headers *h, const struct packet *p)
{
    uint32_t whole = h->end - h->ip, cut = h->payload - h->ip + p->gso_size;
    return cut < whole ? cut : whole;
}

static void adjust_ip(uint8_t *frame, const struct headers *h, uint32_t index, uint32_t end)
{
    uint8_t *ip = frame + h->ip;
    if (h->ip_version == 6) {
        put16(ip + 4, end - h->ip - IP6_HEADER);
        return;
    }
    put16(ip + 2, end - h->ip);
    put16(ip + 4, get16(ip + 4) + index);
    memset(ip + 10, 0, 2);
    uint16_t sum = (uint16_t)~checksum_fold(checksum_bytes(ip, h->transport - h->ip));
    memcpy(ip + 10, &sum, 2);
}

static void adjust_tcp(uint8_t *frame, const struct headers *h, uint32_t done, bool last)
{
    enum { FIN = 1, PSH = 8, CWR = 0x80 };
    uint8_t *tcp = frame + h->transport;
    put32(tcp + 4, get32(tcp + 4) + done);
    if (!last)
        tcp[13] &= (uint8_t)~(FIN | PSH);
    if (done)
        tcp[13] &= (uint8_t)~CWR;
}

static bool append_range(struct pool *pool, struct packet *to, const struct packet *from, uint32_t offset, uint32_t bytes)
{
    while (bytes) {
        uint32_t at, n = packet_extend(pool, to, bytes, false, &at);
        if (!n)
            return false;
        packet_read(pool, from, offset, pool_at(pool, at), n);
        offset += n;
        bytes -= n;
    }
    return true;
}

static struct packet *make_segment(struct pool *pool, const struct packet *p, const struct headers *h, uint32_t done,
                                   uint32_t bytes)
{
    struct packet *s = packet_alloc(pool);
    if (!s)
        return NULL;
    s->vlan = p->vlan;
    if (!append_range(pool, s, p, 0, h->payload) || !append_range(pool, s, p, h->payload + done, bytes)) {
        packet_put(pool, s);
        return NULL;
    }
    uint8_t *frame = packet_head(pool, s);
    adjust_ip(frame, h, done / p->gso_size, h->payload + bytes);
    adjust_tcp(frame, h, done, h->payload + done + bytes == h->end);
    complete_checksum(pool, s);
    return s;
}

bool segment_packet(struct pool *pool, const struct packet *p, emit_fn emit, void *context)
{
    struct headers h;
    if (!parse_headers(pool, p, &h))
        return false;
    uint32_t total = h.end - h.payload;
    uint32_t done = 0;
    do {
        uint32_t bytes = total - done < p->gso_size ? total - done : p->gso_size;
        struct packet *s = make_segment(pool, p, &h, done, bytes);
        if (!s)
            return false;
        emit(context, s);
        done += bytes;
    } while (done < total);
    return true;
}
