/*
 * Netback's rings against frontends that write anything into them: fuzzed requests, indices and times of changing them.
 *
 * Invariant: any ring contents give responses or a closed vif, and copies touch granted frames only, never more of them than
 * the request allowed; every request that was taken is answered at its place, unless the vif is closed; in the end all
 * packets' pages are free. Built with ASan and UBSan. The hypervisor is played by copy(): a table of granted frames, refusals
 * now and then.
 *
 *   rings SEED COUNT    COUNT games from SEED on; says the seed of the one that fails
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../../backends/netback/vif.h"

#define POOL_BYTES (4u << 20)
#define POOL_GMFN 0x1000u
#define GUESTS 3u
#define GRANTS 64u
#define PATTERN 0xa5

struct guest {
    uint16_t domid;
    nb_vif_t *vif;
    uint8_t *tx, *rx, *ctrl, *shadow;
    uint8_t *frames; /* GRANTS pages, with a guard before and after each */
    bool granted[GRANTS], readonly[GRANTS];
    int upcall, doorbell;
    uint32_t tx_prod, rx_prod;
    bool connected, wild; /* wild: writes impossible indices */
};

static struct guest guests[GUESTS];
static uint8_t *pool;
static uint64_t state, seed;

static uint32_t rnd(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return below ? (uint32_t)(state >> 11) % below : 0;
}
static bool chance(uint32_t one_in) { return rnd(one_in) == 0; }

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "seed %llu: %s\n", (unsigned long long)seed, what);
    abort();
}

/* ---- the hypervisor --------------------------------------------------------------------------------------------- */

static uint8_t *grant_at(uint16_t domid, uint32_t ref, bool write)
{
    for (uint32_t i = 0; i < GUESTS; i++)
        if (guests[i].domid == domid && ref < GRANTS && guests[i].granted[ref] && !(write && guests[i].readonly[ref]))
            return guests[i].frames + (2 * ref + 1) * 4096;
    return NULL;
}

static uint8_t *side(const struct gnttab_copy_ptr *p, bool gref, bool write)
{
    if (gref)
        return grant_at(p->domid, p->u.ref, write);
    if (p->domid != DOMID_SELF || p->u.gmfn < POOL_GMFN || p->u.gmfn >= POOL_GMFN + POOL_BYTES / 4096)
        fail("a copy from or to a frame of ours outside the pool");
    return pool + (p->u.gmfn - POOL_GMFN) * 4096;
}

static void mutate_rings(void);

static int copy(void *context, struct gnttab_copy *ops, uint32_t n)
{
    (void)context;
    if (chance(4))
        mutate_rings(); /* guests run meanwhile */
    for (uint32_t i = 0; i < n; i++) {
        struct gnttab_copy *op = &ops[i];
        if (op->source.offset + op->len > 4096u || op->dest.offset + op->len > 4096u)
            fail("a copy across a page");
        bool from_guest = op->flags == GNTCOPY_source_gref, to_guest = op->flags == GNTCOPY_dest_gref;
        if (from_guest == to_guest)
            fail("a copy that is neither in nor out");
        uint8_t *from = side(&op->source, from_guest, false), *to = side(&op->dest, to_guest, true);
        if (!from || !to || chance(500)) {
            op->status = GNTST_general_error;
            continue;
        }
        memcpy(to + op->dest.offset, from + op->source.offset, op->len);
        op->status = GNTST_okay;
    }
    return 0;
}

/* ---- guests ----------------------------------------------------------------------------------------------------- */

static struct netif_tx_sring *tx_of(struct guest *g) { return (void *)g->tx; }
static struct netif_rx_sring *rx_of(struct guest *g) { return (void *)g->rx; }

static uint32_t any_ref(void) { return chance(30) ? rnd(UINT32_MAX) : rnd(GRANTS); }

/* A frame of `bytes`, mostly one that makes sense, at `offset` of a frame that is granted. */
static void write_frame(struct guest *g, uint32_t ref, uint32_t offset, uint32_t bytes)
{
    static const uint16_t types[] = {0x0800, 0x0800, 0x86dd, 0x0806, 0x8100, 0x88b5};
    uint8_t *f = g->frames + (2 * (ref % GRANTS) + 1) * 4096 + offset, *ip = f + 14;
    for (uint32_t i = 0; i < 128; i++)
        f[i] = (uint8_t)rnd(256);
    bool everyone = chance(3);
    memcpy(f, (uint8_t[]){2, 0, 0, 0, 0, (uint8_t)rnd(4)}, 6);
    if (everyone)
        memset(f, 0xff, 6);
    memcpy(f + 6, (uint8_t[]){2, 0, 0, 0, 0, (uint8_t)rnd(4)}, 6);
    uint16_t type = types[rnd(6)];
    f[12] = (uint8_t)(type >> 8);
    f[13] = (uint8_t)type;
    uint32_t inner = chance(10) ? rnd(65536) : bytes - 14;
    uint8_t protocol = chance(10) ? (uint8_t)rnd(64) : chance(3) ? 17 : 6;
    if (type == 0x0800) {
        memcpy(ip, (uint8_t[]){chance(10) ? (uint8_t)rnd(256) : 0x45, 0, (uint8_t)(inner >> 8), (uint8_t)inner, 0, 0, 0,
                               0, 64, protocol}, 10);
        ip[20 + 12] = (uint8_t)((chance(10) ? rnd(16) : 5) << 4);
    } else if (type == 0x86dd) {
        inner -= 40;
        memcpy(ip, (uint8_t[]){0x60, 0, 0, 0, (uint8_t)(inner >> 8), (uint8_t)inner, protocol, 64}, 8);
        ip[40 + 12] = (uint8_t)((chance(10) ? rnd(16) : 5) << 4);
    }
}

static void add_extra(struct guest *g, uint32_t index, bool more)
{
    struct netif_extra_info e = {0};
    e.type = (uint8_t)(chance(40) ? rnd(256) : chance(2) ? 1 : 1 + rnd(4));
    e.flags = more ? XEN_NETIF_EXTRA_FLAG_MORE : 0;
    if (e.type == XEN_NETIF_EXTRA_TYPE_GSO) {
        e.u.gso.size = (uint16_t)(chance(3) ? rnd(65536) : 500 + rnd(1500));
        e.u.gso.type = (uint8_t)(chance(4) ? rnd(4) : 1);
    } else {
        for (int i = 0; i < 6; i++)
            e.u.mcast.addr[i] = (uint8_t)rnd(4);
    }
    memcpy(&tx_of(g)->ring[index % RING_ENTRIES], &e, sizeof(e));
}

/* Requests of one packet, mostly as they should be. */
static uint32_t add_packet(struct guest *g, uint32_t at)
{
    uint32_t slots = chance(3) ? 1 + rnd(chance(20) ? 24 : 18) : 1, first = at, total = 0;
    struct netif_tx_request req = {any_ref(), (uint16_t)rnd(64), 0, (uint16_t)(at % RING_ENTRIES), 0};
    uint32_t extras = chance(4) ? 1 + rnd(3) : 0;
    uint16_t first_bytes = (uint16_t)(chance(30) ? rnd(4033) : 54 + rnd(1400));
    at++;
    for (uint32_t i = 0; i < extras; i++)
        add_extra(g, at++, i + 1 < extras ? !chance(50) : chance(50));
    for (uint32_t i = 1; i < slots; i++) {
        struct netif_tx_request more = {any_ref(), (uint16_t)(chance(50) ? rnd(4096) : 0),
                                        i + 1 < slots || chance(60) ? NETTXF_more_data : 0, (uint16_t)(at % RING_ENTRIES),
                                        (uint16_t)(chance(100) ? rnd(65536) : rnd(3500))};
        total += more.size;
        tx_of(g)->ring[at++ % RING_ENTRIES].req = more;
    }
    write_frame(g, req.gref, req.offset, first_bytes + total);
    req.size = (uint16_t)(chance(50) ? rnd(65536) : first_bytes + total);
    req.flags = (uint16_t)((slots > 1 ? NETTXF_more_data : 0) | (extras ? NETTXF_extra_info : 0) |
                           (chance(2) ? NETTXF_csum_blank : 0) | (chance(2) ? NETTXF_data_validated : 0));
    tx_of(g)->ring[first % RING_ENTRIES].req = req;
    return at;
}

static void transmit(struct guest *g)
{
    uint32_t done = __atomic_load_n(&tx_of(g)->rsp_prod, __ATOMIC_ACQUIRE);
    for (uint32_t n = rnd(6); n && g->tx_prod - done < RING_ENTRIES - 30; n--)
        g->tx_prod = add_packet(g, g->tx_prod);
    tx_of(g)->rsp_event = done + 1;
    __atomic_store_n(&tx_of(g)->req_prod, g->tx_prod, __ATOMIC_RELEASE);
}

static void offer(struct guest *g)
{
    uint32_t done = __atomic_load_n(&rx_of(g)->rsp_prod, __ATOMIC_ACQUIRE);
    for (uint32_t n = rnd(40); n && g->rx_prod - done < RING_ENTRIES; n--, g->rx_prod++)
        rx_of(g)->ring[g->rx_prod % RING_ENTRIES].req =
            (struct netif_rx_request){(uint16_t)(g->rx_prod % RING_ENTRIES), 0, any_ref()};
    rx_of(g)->rsp_event = done + 1;
    __atomic_store_n(&rx_of(g)->req_prod, g->rx_prod, __ATOMIC_RELEASE);
}

/* While netback works: contents anywhere, indices if the guest is that kind. */
static void mutate_rings(void)
{
    struct guest *g = &guests[rnd(GUESTS)];
    for (uint32_t n = rnd(8); n; n--) {
        g->tx[64 + rnd(4096 - 64)] = (uint8_t)rnd(256);
        g->rx[64 + rnd(4096 - 64)] = (uint8_t)rnd(256);
        g->ctrl[64 + rnd(4096 - 64)] = (uint8_t)rnd(256);
    }
    g->granted[rnd(GRANTS)] ^= chance(3);
    if (g->wild && chance(6)) {
        uint32_t *index = (uint32_t *)(chance(2) ? g->tx : chance(2) ? g->rx : g->ctrl) + rnd(4);
        *index = chance(2) ? rnd(UINT32_MAX) : *index + rnd(600) - 300;
    }
}

static void ring_bell(struct guest *g) { eventfd_write(g->upcall, 1); }

static void connect_guest(struct guest *g, bool resume)
{
    struct nb_connection c = {.nr_queues = 1, .resume = resume, .scatter_gather = rnd(4) != 0,
                              .multicast_control = chance(4), .caps = rnd(16)};
    c.queue[0] = (struct nb_queue){g->tx, g->rx, g->shadow, g->upcall, g->doorbell, g->upcall, g->doorbell};
    if (chance(2)) {
        c.ctrl_ring = g->ctrl;
        c.ctrl_upcall = c.ctrl_doorbell = g->doorbell; /* so it is served whenever anything is */
    }
    g->connected = nb_vif_connect(g->vif, &c) == 0;
}

static void init_guest(struct guest *g, uint32_t i, netback_t *nb, vs_network_t *net)
{
    *g = (struct guest){.domid = (uint16_t)(i + 1), .wild = chance(2)};
    g->tx = aligned_alloc(4096, 4096);
    g->rx = aligned_alloc(4096, 4096);
    g->ctrl = aligned_alloc(4096, 4096);
    g->shadow = aligned_alloc(4096, NB_SHADOW_BYTES);
    g->frames = aligned_alloc(4096, (2 * GRANTS + 1) * 4096);
    memset(g->frames, PATTERN, (2 * GRANTS + 1) * 4096);
    memset(g->tx, 0, 4096);
    memset(g->rx, 0, 4096);
    memset(g->ctrl, 0, 4096);
    memset(g->shadow, chance(4) ? (int)rnd(256) : 0, NB_SHADOW_BYTES);
    g->tx_prod = g->rx_prod = chance(2) ? UINT32_MAX - 100 : 0;
    for (uint32_t k = 0; k < 4; k++)
        ((uint32_t *)g->tx)[k] = ((uint32_t *)g->rx)[k] = g->tx_prod;
    for (uint32_t k = 0; k < GRANTS; k++) {
        g->granted[k] = !chance(10);
        g->readonly[k] = chance(4);
    }
    g->upcall = eventfd(0, EFD_NONBLOCK);
    g->doorbell = eventfd(0, EFD_NONBLOCK);
    if (nb_vif_create(nb, net, g->domid, &g->vif))
        fail("no vif");
    struct vs_port_settings settings = {.rate_bytes = chance(4) ? 20000 : 0, .rate_usec = 1000};
    if (!settings.rate_bytes)
        settings.rate_usec = 0;
    vs_port_set(nb_vif_port(g->vif), &settings);
    connect_guest(g, false);
}

/* What was not granted for writing is as it was. Frames granted at any time may have been written. */
static void check_guards(const struct guest *g)
{
    for (uint32_t k = 0; k <= GRANTS; k++)
        for (uint32_t i = 0; i < 4096; i++)
            if (g->frames[2 * k * 4096 + i] != PATTERN)
                fail("a write beside a granted frame");
}

static void end_guest(struct guest *g)
{
    check_guards(g);
    vs_port_destroy(nb_vif_port(g->vif));
    close(g->upcall);
    close(g->doorbell);
    free(g->tx), free(g->rx), free(g->ctrl), free(g->shadow), free(g->frames);
}

/* A guest that keeps to the protocol's indices gets every request answered. */
static void check_answered(struct guest *g)
{
    if (g->wild || !g->connected || nb_vif_fault(g->vif))
        return;
    if (tx_of(g)->rsp_prod != g->tx_prod)
        fail("a request without an answer");
}

static void play_round(vswitch_t *sw, struct guest *g)
{
    if (chance(3))
        mutate_rings();
    transmit(g);
    offer(g);
    ring_bell(g);
    for (int i = 0; i < 3; i++)
        vs_step(sw, 0);
    if (chance(40) || nb_vif_fault(g->vif)) {
        nb_vif_disconnect(g->vif);
        g->connected = false;
        if (chance(2)) {
            g->tx_prod = tx_of(g)->req_prod;
            g->rx_prod = rx_of(g)->req_prod;
            connect_guest(g, chance(2));
        }
    }
}

static void drain_uplink(int fd)
{
    uint8_t frame[70000];
    while (recv(fd, frame, sizeof(frame), MSG_DONTWAIT) > 0)
        ;
    if (chance(3)) {
        uint32_t n = 10 + rnd(1500);
        for (uint32_t i = 0; i < n; i++)
            frame[i] = (uint8_t)rnd(256);
        send(fd, frame, n, MSG_DONTWAIT);
    }
}

static void play(void)
{
    vswitch_t *sw;
    netback_t *nb;
    vs_network_t *net;
    vs_port_t *up;
    int pair[2];
    struct vs_limits limits = {300, 0};
    if (vs_create(pool, POOL_BYTES, &sw) || nb_create(sw, copy, NULL, POOL_GMFN, &nb) ||
        vs_network_create(sw, &limits, &net) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) ||
        vs_port_create(net, VS_DATAGRAM, pair[0], -1, rnd(64), &up))
        fail("setting up");
    nb_set_patience(nb, 1000000 * (1 + rnd(20)), 3000000);
    for (uint32_t i = 0; i < GUESTS; i++)
        init_guest(&guests[i], i, nb, net);
    for (uint32_t rounds = 5 + rnd(40); rounds; rounds--) {
        play_round(sw, &guests[rnd(GUESTS)]);
        drain_uplink(pair[1]);
    }
    for (int i = 0; i < 30; i++) {
        for (uint32_t k = 0; k < GUESTS; k++)
            ring_bell(&guests[k]);
        vs_step(sw, 1);
    }
    for (uint32_t i = 0; i < GUESTS; i++) {
        struct nb_vif_state s;
        nb_vif_state(guests[i].vif, &s);
        if (!s.throttled)
            check_answered(&guests[i]);
    }
    for (uint32_t i = 0; i < GUESTS; i++)
        end_guest(&guests[i]);
    vs_port_destroy(up);
    close(pair[1]);
    struct vs_statistics stats;
    vs_statistics(sw, &stats);
    if (stats.nr_free_pages != stats.nr_pages)
        fail("pages are lost");
    nb_destroy(nb);
    vs_destroy(sw);
}

int main(int argc, char **argv)
{
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, count = argc > 2 ? strtoull(argv[2], NULL, 0) : 100;
    pool = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (seed = first; seed < first + count; seed++) {
        state = seed * 0x9e3779b97f4a7c15ull + 1;
        for (int i = 0; i < 8; i++)
            rnd(2);
        play();
    }
    printf("%llu games\n", (unsigned long long)count);
    return 0;
}
