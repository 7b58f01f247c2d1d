/*
 * Forwarding: learning, VLANs, who may send what to whom.
 *
 * A frame is taken apart on its way in: its 802.1Q tag is removed and becomes packet->vlan, so that inside there is one kind
 * of frame. The way out puts the tag back where the port wants it. VLAN 0 stands for untagged frames; a priority tag
 * (VLAN id 0) counts as none. Frames for 01:80:c2:00:00:0x (spanning tree, pause) stop here, as at any bridge.
 *
 * Addresses are learned per VLAN in a set-associative table of fixed size: no chain that somebody could make long. The set
 * is chosen by a keyed hash, and a port owns at most FDB_PER_PORT entries, so that a guest inventing addresses neither
 * finds collisions nor displaces many of others. What is not found is flooded in its VLAN.
 */
#include "switch.h"

#include <errno.h>
#include <stdlib.h>

#include "offload.h"

#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_VLAN 0x8100
#define MAX_PACKET_HEADROOM 4

static bool is_multicast(const uint8_t *mac) { return mac[0] & 1; }
static bool is_broadcast(const uint8_t *mac) { return !memcmp(mac, "\xff\xff\xff\xff\xff\xff", 6); }
static bool is_link_local(const uint8_t *mac) { return !memcmp(mac, "\x01\x80\xc2\x00\x00", 5) && mac[5] < 16; }
static bool is_zero(const uint8_t *mac) { return !memcmp(mac, "\0\0\0\0\0", 6); }
static uint16_t ethertype(const uint8_t *frame) { return (uint16_t)(frame[12] << 8 | frame[13]); }

/* ---- credit ----------------------------------------------------------------------------------------------------- */

void credit_set(struct credit *c, uint64_t amount, uint64_t interval_ns)
{
    *c = (struct credit){.amount = amount, .interval_ns = interval_ns, .left = amount};
}

bool credit_take(struct credit *c, uint64_t n, uint64_t now_ns)
{
    if (!c->interval_ns)
        return true;
    bool fresh = now_ns >= c->window_ends_ns;
    if (fresh) {
        c->left = c->amount;
        c->window_ends_ns = now_ns + c->interval_ns;
    }
    if (n > c->left && !(fresh && n > c->amount))
        return false;
    c->left = n < c->left ? c->left - n : 0;
    return true;
}

/* ---- the table of addresses ------------------------------------------------------------------------------------- */

static struct fdb_entry *fdb_set(struct network *net, const uint8_t *mac, uint16_t vlan)
{
    uint64_t key = vlan;
    memcpy((uint8_t *)&key + 2, mac, 6);
    key = (key ^ net->sw->hash_key) * 0x9e3779b97f4a7c15ull;
    key = (key ^ key >> 29) * 0xbf58476d1ce4e5b9ull;
    return net->fdb[(key >> 32) % FDB_SETS];
}

static bool fdb_matches(const struct fdb_entry *e, const uint8_t *mac, uint16_t vlan)
{
    return e->port && e->vlan == vlan && !memcmp(e->mac, mac, 6);
}

static bool fdb_is_fresh(const struct network *net, const struct fdb_entry *e)
{
    return net->sw->now_ns - e->seen_ns <= net->ageing_ns;
}

static void fdb_clear(struct fdb_entry *e)
{
    if (e->port)
        e->port->nr_learned--;
    e->port = NULL;
}

static struct port *fdb_find(struct network *net, const uint8_t *mac, uint16_t vlan)
{
    struct fdb_entry *set = fdb_set(net, mac, vlan);
    for (uint32_t i = 0; i < FDB_WAYS; i++)
        if (fdb_matches(&set[i], mac, vlan) && fdb_is_fresh(net, &set[i]))
            return set[i].port;
    return NULL;
}

/* The entry to write: this address', a free or stale one, or the one longest unused. */
static struct fdb_entry *fdb_slot(struct network *net, struct port *port, const uint8_t *mac, uint16_t vlan)
{
    struct fdb_entry *set = fdb_set(net, mac, vlan), *best = &set[0], *own = NULL;
    for (uint32_t i = 0; i < FDB_WAYS; i++) {
        if (fdb_matches(&set[i], mac, vlan))
            return &set[i];
        if (set[i].port == port)
            own = &set[i];
        if (best->port && (!set[i].port || set[i].seen_ns < best->seen_ns))
            best = &set[i];
    }
    return port->nr_learned < FDB_PER_PORT ? best : own;
}

static void fdb_learn(struct port *port, const uint8_t *mac, uint16_t vlan)
{
    struct fdb_entry *e = fdb_slot(port->net, port, mac, vlan);
    if (!e)
        return;
    if (e->port != port) {
        fdb_clear(e);
        port->nr_learned++;
    }
    e->port = port;
    e->vlan = vlan;
    e->seen_ns = port->net->sw->now_ns;
    memcpy(e->mac, mac, 6);
}

static void fdb_forget(struct port *port)
{
    struct fdb_entry *e = &port->net->fdb[0][0];
    for (uint32_t i = 0; i < FDB_SETS * FDB_WAYS && port->nr_learned; i++)
        if (e[i].port == port)
            fdb_clear(&e[i]);
}

int vs_fdb_list(vs_network_t *net, struct vs_fdb_entry *out, uint32_t max)
{
    struct fdb_entry *e = &net->fdb[0][0];
    uint32_t n = 0;
    vs_lock(net->sw);
    uint64_t now = vs_clock();
    for (uint32_t i = 0; i < FDB_SETS * FDB_WAYS && n < max; i++) {
        if (!e[i].port || now - e[i].seen_ns > net->ageing_ns)
            continue;
        out[n] = (struct vs_fdb_entry){.vlan = e[i].vlan, .port = e[i].port};
        out[n].age_s = (uint32_t)((now - e[i].seen_ns) / NSEC_PER_SEC);
        memcpy(out[n++].mac, e[i].mac, 6);
    }
    vs_unlock(net->sw);
    return (int)n;
}

/* ---- VLANs ------------------------------------------------------------------------------------------------------ */

static bool in_trunks(const struct vs_port_settings *s, uint16_t vlan) { return s->trunks[vlan / 64] >> vlan % 64 & 1; }

static bool port_carries(const struct port *port, uint16_t vlan)
{
    const struct vs_port_settings *s = &port->set;
    if (s->vlan_mode != VS_TRUNK && vlan == s->tag)
        return true;
    return s->vlan_mode != VS_ACCESS && in_trunks(s, vlan);
}

bool port_sends_tagged(const struct port *port, const struct packet *p)
{
    if (!p->vlan || port->set.vlan_mode == VS_ACCESS)
        return false;
    return port->set.vlan_mode == VS_TRUNK || p->vlan != port->set.tag;
}

/* Removes an 802.1Q tag; its VLAN, or 0 where there is none. */
static uint16_t untag(struct pool *pool, struct packet *p)
{
    uint8_t *frame = packet_head(pool, p);
    if (ethertype(frame) != ETHERTYPE_VLAN || packet_head_bytes(p) < ETH_HEADER + VLAN_TAG)
        return 0;
    uint16_t vlan = (uint16_t)((frame[14] << 8 | frame[15]) & 0xfff);
    memmove(frame + VLAN_TAG, frame, 12);
    p->span[0].at += VLAN_TAG;
    p->span[0].bytes -= VLAN_TAG;
    p->bytes -= VLAN_TAG;
    return vlan;
}

/* False: the port may not send what it sent. */
static bool classify(struct port *port, struct packet *p)
{
    const struct vs_port_settings *s = &port->set;
    uint16_t tag = untag(&port->net->sw->pool, p);
    if (tag == 0xfff)
        return false;
    p->vlan = tag ? tag : (uint16_t)(s->vlan_mode == VS_TRUNK ? 0 : s->tag);
    if (tag && (s->vlan_mode == VS_ACCESS || !in_trunks(s, tag)))
        return false;
    return port_carries(port, p->vlan);
}

/* ---- in --------------------------------------------------------------------------------------------------------- */

/* Source address, and the sender in ARP packets. */
static bool is_spoofed(const struct port *port, const struct pool *pool, const struct packet *p)
{
    const uint8_t *frame = packet_head(pool, p);
    if (!port->set.anti_spoof)
        return false;
    if (memcmp(frame + 6, port->set.mac, 6))
        return true;
    if (ethertype(frame) != ETHERTYPE_ARP)
        return false;
    return packet_head_bytes(p) < ETH_HEADER + 14 || memcmp(frame + ETH_HEADER + 8, port->set.mac, 6);
}

/* Where a flood goes; false: to nobody else. */
static bool may_reach(const struct port *from, const struct port *to, const struct packet *p)
{
    if (to == from || !to->carrier || to->error || (from->set.isolated && to->set.isolated))
        return false;
    return port_carries(to, p->vlan);
}

static void flood(struct port *from, struct packet *p, const uint8_t *to_mac)
{
    uint8_t mac[6];
    memcpy(mac, to_mac, 6);
    bool ask = is_multicast(mac) && !is_broadcast(mac);
    for_each_link(l, &from->net->ports) {
        struct port *to = container_of(l, struct port, link);
        if (may_reach(from, to, p) && (!ask || !to->ops->wants_multicast || to->ops->wants_multicast(to, mac)))
            switch_output(to, p);
    }
}

static void forward(struct port *from, struct packet *p)
{
    struct pool *pool = &from->net->sw->pool;
    const uint8_t *frame = packet_head(pool, p);
    if (is_link_local(frame))
        return;
    struct port *to = is_multicast(frame) ? NULL : fdb_find(from->net, frame, p->vlan);
    if (to) {
        if (may_reach(from, to, p))
            switch_output(to, p);
    } else if (credit_take(&from->storm, 1, from->net->sw->now_ns)) {
        flood(from, p, frame);
    } else {
        from->count.rx_dropped_storm++;
    }
}

static uint64_t *refusal(struct port *port, struct packet *p)
{
    struct pool *pool = &port->net->sw->pool;
    if (p->bytes < ETH_HEADER || packet_head_bytes(p) < ETH_HEADER)
        return &port->count.rx_dropped_malformed;
    if (!classify(port, p))
        return &port->count.rx_dropped_vlan;
    const uint8_t *frame = packet_head(pool, p);
    if (p->bytes < ETH_HEADER || is_multicast(frame + 6) || is_zero(frame + 6) || (p->gso && !gso_is_sane(pool, p)))
        return &port->count.rx_dropped_malformed;
    return is_spoofed(port, pool, p) ? &port->count.rx_dropped_spoof : NULL;
}

void switch_input(struct port *port, struct packet *p)
{
    struct vswitch *sw = port->net->sw;
    port->count.rx_packets++;
    port->count.rx_bytes += p->bytes;
    uint64_t *refused = refusal(port, p);
    if (refused) {
        ++*refused;
    } else {
        capture_packet(&port->captures, p, port_sends_tagged(port, p));
        capture_packet(&port->net->captures, p, p->vlan != 0);
        fdb_learn(port, packet_head(&sw->pool, p) + 6, p->vlan);
        forward(port, p);
    }
    packet_put(&sw->pool, p);
}

/* ---- out -------------------------------------------------------------------------------------------------------- */

static void send_as_is(struct port *port, struct packet *p)
{
    port->count.tx_packets++;
    port->count.tx_bytes += p->bytes;
    capture_packet(&port->captures, p, port_sends_tagged(port, p));
    port->ops->output(port, p);
}

static void send_segment(void *context, struct packet *segment)
{
    struct port *port = context;
    port->count.segments++;
    send_as_is(port, segment);
    packet_put(&port->net->sw->pool, segment);
}

static void send_segments(struct port *port, struct packet *p)
{
    if (!segment_packet(&port->net->sw->pool, p, send_segment, port))
        port->count.tx_dropped_full++;
}

static uint32_t gso_cap(const struct packet *p) { return p->gso == GSO_TCP4 ? VS_TSO4 : VS_TSO6; }

static bool takes_checksum(const struct port *port, const struct packet *p)
{
    static const uint32_t both = VS_CSUM4 | VS_CSUM6;
    if (p->checksum != CHECKSUM_PARTIAL || (port->caps & both) == both)
        return true;
    struct headers h;
    if (!(port->caps & both) || !parse_headers(&port->net->sw->pool, p, &h))
        return false;
    return port->caps & (h.ip_version == 4 ? VS_CSUM4 : VS_CSUM6);
}

static bool fits_mtu(struct port *port, const struct packet *p)
{
    struct headers h;
    if (!port->set.mtu)
        return true;
    if (p->gso && parse_headers(&port->net->sw->pool, p, &h))
        return gso_segment_bytes(&h, p) <= port->set.mtu;
    return p->bytes <= port->set.mtu + ETH_HEADER + VLAN_TAG;
}

void switch_output(struct port *port, struct packet *p)
{
    if (!fits_mtu(port, p)) {
        port->count.tx_dropped_mtu++;
        return;
    }
    if (p->gso && !(port->caps & (gso_cap(p) | VS_BIG))) {
        send_segments(port, p);
        return;
    }
    if (!takes_checksum(port, p) || (p->gso && p->checksum == CHECKSUM_PARTIAL && !(port->caps & gso_cap(p))))
        port->count.checksums += complete_checksum(&port->net->sw->pool, p);
    send_as_is(port, p);
}

/* ---- networks and ports ----------------------------------------------------------------------------------------- */

static void set_limits(struct network *net, const struct vs_limits *limits)
{
    net->ageing_ns = limits->ageing_s * NSEC_PER_SEC;
    net->storm_pps = limits->storm_pps;
    for_each_link(l, &net->ports)
        credit_set(&container_of(l, struct port, link)->storm, limits->storm_pps, limits->storm_pps ? NSEC_PER_SEC : 0);
}

int vs_network_create(vswitch_t *sw, const struct vs_limits *limits, vs_network_t **out)
{
    struct network *net = calloc(1, sizeof(*net));
    if (!net)
        return -ENOMEM;
    net->sw = sw;
    links_init(&net->ports);
    links_init(&net->captures);
    set_limits(net, limits);
    vs_lock(sw);
    links_append(&net->link, &sw->networks);
    vs_unlock(sw);
    *out = net;
    return 0;
}

int vs_network_set_limits(vs_network_t *net, const struct vs_limits *limits)
{
    vs_lock(net->sw);
    set_limits(net, limits);
    vs_unlock(net->sw);
    return 0;
}

int vs_network_destroy(vs_network_t *net)
{
    struct vswitch *sw = net->sw;
    vs_lock(sw);
    bool busy = !links_empty(&net->ports);
    if (!busy) {
        captures_end(&net->captures);
        links_remove(&net->link);
        free(net);
    }
    vs_unlock(sw);
    return busy ? -EBUSY : 0;
}

int port_init(struct port *port, struct network *net, const struct port_ops *ops, uint32_t caps)
{
    port->net = net;
    port->ops = ops;
    port->caps = caps;
    port->carrier = true;
    links_init(&port->captures);
    credit_set(&port->storm, net->storm_pps, net->storm_pps ? NSEC_PER_SEC : 0);
    links_append(&port->link, &net->ports);
    return 0;
}

void port_detach(struct port *port)
{
    fdb_forget(port);
    captures_end(&port->captures);
    links_remove(&port->link);
}

void port_fail(struct port *port, int error)
{
    if (port->error)
        return;
    port->error = error;
    port->carrier = false;
    fdb_forget(port);
    vs_news(port->net->sw);
}

int vs_port_destroy(vs_port_t *port)
{
    struct vswitch *sw = port->net->sw;
    vs_lock(sw);
    port_detach(port);
    port->ops->destroy(port);
    vs_unlock(sw);
    return 0;
}

int vs_port_error(vs_port_t *port)
{
    vs_lock(port->net->sw);
    int error = port->error;
    vs_unlock(port->net->sw);
    return error;
}

int vs_port_set(vs_port_t *port, const struct vs_port_settings *settings)
{
    if (settings->vlan_mode > VS_NATIVE || settings->tag >= VS_VLANS - 1)
        return -EINVAL;
    vs_lock(port->net->sw);
    port->set = *settings;
    fdb_forget(port);
    credit_set(&port->rate, settings->rate_bytes, settings->rate_usec * NSEC_PER_USEC);
    vs_unlock(port->net->sw);
    return 0;
}

int vs_port_counters(vs_port_t *port, struct vs_counters *out)
{
    vs_lock(port->net->sw);
    *out = port->count;
    vs_unlock(port->net->sw);
    return 0;
}
