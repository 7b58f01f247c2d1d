/*
 * Vifs: the hook in the switch's loop, connecting and disconnecting, faults.
 *
 * A turn: the queues whose guests have rung, or that were not finished last time, give their packets to a batch of grant
 * copies, each a quantum of them; the batch is one trip to the hypervisor. What the switch then finds for other guests is
 * in their queues, and goes out in a second batch. Each queue's event is sent once, at the end. So nobody starves, and the
 * busier it gets the fewer trips and events a packet costs.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "../vswitch/offload.h"
#include "vif.h"

#define DRAIN_NS (10 * NSEC_PER_SEC)
#define STALL_NS (60 * NSEC_PER_SEC)
#define RETRY_NS (NSEC_PER_SEC / 1000) /* when pages were short */

static struct vif *vif_of(struct port *port) { return container_of(port, struct vif, port); }

/* ---- batches ---------------------------------------------------------------------------------------------------- */

int nb_copy_by_hcall(void *ring, struct gnttab_copy *ops, uint32_t n) { return hcall_grant_copy(ring, ops, n); }

struct gnttab_copy *new_op(struct netback *nb) { return &nb->op[nb->nr_ops++]; }

void copy_batch(struct netback *nb)
{
    if (nb->nr_ops && !nb->gone && nb->copy(nb->context, nb->op, nb->nr_ops)) {
        nb->gone = true;
        vs_news(nb->sw);
    }
}

static void run_tx_batch(struct netback *nb)
{
    if (!nb->nr_tx)
        return;
    copy_batch(nb);
    tx_finish(nb);
}

static void run_rx_batch(struct netback *nb)
{
    copy_batch(nb);
    rx_finish(nb);
}

/* ---- the turn --------------------------------------------------------------------------------------------------- */

/* One pass over those with work; the ones left unfinished are in the list again. */
static void serve_tx(struct netback *nb)
{
    struct link now;
    links_init(&now);
    while (!links_empty(&nb->tx_active)) {
        struct link *l = nb->tx_active.next;
        links_remove(l);
        links_append(l, &now);
    }
    while (!links_empty(&now)) {
        struct queue *q = container_of(now.next, struct queue, tx_link);
        links_remove(&q->tx_link);
        bool more = tx_collect(nb, q);
        q->vif->state.batches++;
        if (more)
            links_append(&q->tx_link, &nb->tx_active);
        if (nb->nr_tx > BATCH_PACKETS - QUANTUM / 2 || nb->nr_ops > BATCH_OPS / 2)
            run_tx_batch(nb);
    }
    run_tx_batch(nb);
}

static void serve_rx(struct netback *nb)
{
    while (!links_empty(&nb->rx_active)) {
        struct queue *q = container_of(nb->rx_active.next, struct queue, rx_link);
        links_remove(&q->rx_link);
        bool more = rx_collect(nb, q);
        q->vif->state.copies += nb->nr_ops;
        if (more)
            links_append(&q->rx_link, &nb->rx_active);
        if (more || nb->nr_ops > BATCH_OPS / 2)
            run_rx_batch(nb);
    }
    run_rx_batch(nb);
}

static void ring_bell(struct queue *q, bool *wanted, int doorbell)
{
    if (!*wanted)
        return;
    *wanted = false;
    q->vif->state.notifications++;
    if (write(doorbell, &(uint64_t){1}, 8) < 0)
        return; /* full: the guest has an event coming */
}

static void notify(struct queue *q)
{
    if (q->shared_channel && q->tx_notify)
        q->rx_notify = false;
    ring_bell(q, &q->tx_notify, q->tx_doorbell);
    ring_bell(q, &q->rx_notify, q->rx_doorbell);
}

/* Events to send, packets that have waited too long. */
static uint64_t finish_queues(struct netback *nb)
{
    uint64_t wake = NEVER;
    for_each_link(l, &nb->vifs) {
        struct vif *vif = container_of(l, struct vif, link);
        for (uint32_t i = 0; vif->connected && !vif->fault && i < vif->nr_queues; i++) {
            notify(&vif->queue[i]);
            uint64_t at = rx_check_stalled(nb, &vif->queue[i]);
            wake = at < wake ? at : wake;
        }
    }
    return wake;
}

static bool turn(struct hook *hook, uint64_t *wake_ns)
{
    struct netback *nb = container_of(hook, struct netback, hook);
    if (nb->gone)
        return false;
    serve_tx(nb);
    serve_rx(nb);
    *wake_ns = finish_queues(nb);
    bool short_of_pages = nb->sw->pool.nr_free <= 2 * PACKET_MAX_SPANS;
    if (short_of_pages && !links_empty(&nb->tx_active))
        *wake_ns = nb->sw->now_ns + RETRY_NS;
    return !links_empty(&nb->tx_active) && !short_of_pages;
}

/* ---- what the guest rings for ----------------------------------------------------------------------------------- */

static void drain(int fd)
{
    uint64_t buffer[8];
    while (read(fd, buffer, sizeof(buffer)) > 0)
        ;
}

static void want_tx(struct queue *q)
{
    if (links_empty(&q->tx_link))
        links_append(&q->tx_link, &q->vif->nb->tx_active);
}

static void want_rx(struct queue *q)
{
    q->stalled = false;
    if (q->head != q->tail && links_empty(&q->rx_link))
        links_append(&q->rx_link, &q->vif->nb->rx_active);
}

static void tx_ready(struct source *s, uint32_t events)
{
    struct queue *q = container_of(s, struct queue, tx_source);
    (void)events;
    drain(s->fd);
    if (q->tx_source.wake_ns == NEVER) /* else it waits for its rate */
        want_tx(q);
    if (q->shared_channel)
        want_rx(q);
}

static void tx_wake(struct source *s) { want_tx(container_of(s, struct queue, tx_source)); }

static void rx_ready(struct source *s, uint32_t events)
{
    (void)events;
    drain(s->fd);
    want_rx(container_of(s, struct queue, rx_source));
}

static void ctrl_ready(struct source *s, uint32_t events)
{
    (void)events;
    drain(s->fd);
    ctrl_serve(container_of(s, struct vif, ctrl_source));
}

/* ---- as a port -------------------------------------------------------------------------------------------------- */

/* Packets of one flow stay in one queue, so they stay in order. */
static uint32_t choose_queue(const struct vif *vif, const struct packet *p)
{
    struct headers h;
    const struct pool *pool = &vif->nb->sw->pool;
    if (vif->nr_queues == 1 || !parse_headers(pool, p, &h))
        return 0;
    const uint8_t *frame = packet_head(pool, p);
    uint64_t sum = checksum_bytes(frame + h.transport, 4);
    sum += h.ip_version == 4 ? checksum_bytes(frame + h.ip + 12, 8) : checksum_bytes(frame + h.ip + 8, 32);
    return (uint32_t)((sum * 0x9e3779b97f4a7c15ull) >> 40) % vif->nr_queues;
}

static void output(struct port *port, struct packet *p)
{
    struct vif *vif = vif_of(port);
    if (vif->connected)
        rx_enqueue(&vif->queue[choose_queue(vif, p)], p);
}

static bool wants_multicast(struct port *port, const uint8_t *mac)
{
    const struct vif *vif = vif_of(port);
    for (uint32_t i = 0; vif->multicast_control && i < vif->nr_multicast; i++)
        if (!memcmp(vif->multicast[i], mac, 6))
            return true;
    return !vif->multicast_control;
}

/* ---- connecting ------------------------------------------------------------------------------------------------- */

static void unwatch_queue(struct queue *q)
{
    struct vswitch *sw = q->vif->nb->sw;
    source_remove(sw, &q->tx_source);
    if (!q->shared_channel)
        source_remove(sw, &q->rx_source);
}

static int watch_queue(struct queue *q, const struct nb_queue *from)
{
    struct vswitch *sw = q->vif->nb->sw;
    int rc = source_add(sw, &q->tx_source, from->tx_upcall, EPOLLIN);
    if (rc || q->shared_channel)
        return rc;
    rc = source_add(sw, &q->rx_source, from->rx_upcall, EPOLLIN);
    if (rc)
        source_remove(sw, &q->tx_source);
    return rc;
}

static int attach_rings(struct queue *q, bool resume)
{
    q->tx_cons = q->tx_rsp = ring_load(&q->tx->rsp_prod);
    q->rx_cons = q->rx_rsp = ring_load(&q->rx->rsp_prod);
    if (resume && q->shadow->magic == SHADOW_MAGIC) {
        tx_resume(q);
        rx_resume(q);
    } else {
        memset(q->shadow, 0, sizeof(*q->shadow));
        q->shadow->tx_cons = q->tx_cons;
        q->shadow->rx_cons = q->rx_cons;
        q->shadow->magic = SHADOW_MAGIC;
    }
    bool ran_away = ring_load(&q->tx->req_prod) - q->tx_cons > RING_ENTRIES ||
                    ring_load(&q->rx->req_prod) - q->rx_cons > RING_ENTRIES;
    return ran_away ? -ERANGE : 0;
}

static int connect_queue(struct vif *vif, struct queue *q, const struct nb_queue *from, bool resume)
{
    *q = (struct queue){.vif = vif, .tx = from->tx_ring, .rx = from->rx_ring, .shadow = from->shadow};
    q->tx_source = (struct source){.ready = tx_ready, .wake = tx_wake};
    q->rx_source = (struct source){.ready = rx_ready};
    q->tx_doorbell = from->tx_doorbell;
    q->rx_doorbell = from->rx_doorbell;
    q->shared_channel = from->tx_upcall == from->rx_upcall;
    links_init(&q->tx_link);
    links_init(&q->rx_link);
    int rc = attach_rings(q, resume);
    if (!rc)
        rc = watch_queue(q, from);
    if (!rc)
        want_tx(q);
    return rc;
}

static void disconnect_queue(struct queue *q)
{
    unwatch_queue(q);
    links_remove(&q->tx_link);
    links_remove(&q->rx_link);
    rx_drop_all(q);
}

static void disconnect(struct vif *vif)
{
    if (!vif->connected)
        return;
    for (uint32_t i = 0; i < vif->nr_queues; i++)
        disconnect_queue(&vif->queue[i]);
    if (vif->ctrl)
        source_remove(vif->nb->sw, &vif->ctrl_source);
    vif->connected = vif->port.carrier = false;
    vif->nr_queues = vif->nr_multicast = 0;
    vif->ctrl = NULL;
}

static int connect_ctrl(struct vif *vif, const struct nb_connection *c)
{
    if (!c->ctrl_ring)
        return 0;
    vif->ctrl = c->ctrl_ring;
    vif->ctrl_doorbell = c->ctrl_doorbell;
    vif->ctrl_source = (struct source){.ready = ctrl_ready};
    vif->ctrl_cons = ring_load(&vif->ctrl->rsp_prod);
    int rc = source_add(vif->nb->sw, &vif->ctrl_source, c->ctrl_upcall, EPOLLIN);
    if (rc)
        vif->ctrl = NULL;
    else
        ctrl_serve(vif);
    return rc;
}

static int connect_all(struct vif *vif, const struct nb_connection *c)
{
    int rc = 0;
    vif->connected = true;
    vif->fault = NULL;
    vif->scatter_gather = c->scatter_gather;
    vif->multicast_control = c->multicast_control;
    vif->port.caps = c->caps;
    while (!rc && vif->nr_queues < c->nr_queues) {
        uint32_t i = vif->nr_queues;
        rc = connect_queue(vif, &vif->queue[i], &c->queue[i], c->resume);
        vif->nr_queues += !rc;
    }
    if (!rc)
        rc = connect_ctrl(vif, c);
    if (rc)
        disconnect(vif);
    vif->port.carrier = !rc;
    return rc;
}

int nb_vif_connect(nb_vif_t *vif, const struct nb_connection *connection)
{
    if (!connection->nr_queues || connection->nr_queues > NB_MAX_QUEUES)
        return -EINVAL;
    vs_lock(vif->nb->sw);
    int rc = vif->connected ? -EISCONN : connect_all(vif, connection);
    vs_wake(vif->nb->sw);
    vs_unlock(vif->nb->sw);
    return rc;
}

int nb_vif_disconnect(nb_vif_t *vif)
{
    vs_lock(vif->nb->sw);
    disconnect(vif);
    vs_unlock(vif->nb->sw);
    return 0;
}

/* The queues' own memory stays: a batch may still name them. */
void vif_fault(struct vif *vif, const char *why)
{
    if (vif->fault)
        return;
    vif->fault = why;
    vif->port.carrier = false;
    for (uint32_t i = 0; i < vif->nr_queues; i++) {
        struct queue *q = &vif->queue[i];
        links_remove(&q->tx_link);
        links_remove(&q->rx_link);
        source_want(vif->nb->sw, &q->tx_source, 0);
        if (!q->shared_channel)
            source_want(vif->nb->sw, &q->rx_source, 0);
        q->tx_source.wake_ns = NEVER;
        rx_drop_all(q);
    }
    if (vif->ctrl)
        source_want(vif->nb->sw, &vif->ctrl_source, 0);
    vs_news(vif->nb->sw);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static void destroy(struct port *port)
{
    struct vif *vif = vif_of(port);
    disconnect(vif);
    links_remove(&vif->link);
    free(vif);
}

static const struct port_ops vif_ops = {.output = output, .wants_multicast = wants_multicast, .destroy = destroy};

int nb_vif_create(netback_t *nb, vs_network_t *net, uint16_t domid, nb_vif_t **out)
{
    struct vif *vif = calloc(1, sizeof(*vif));
    if (!vif)
        return -ENOMEM;
    vif->nb = nb;
    vif->domid = domid;
    vs_lock(nb->sw);
    port_init(&vif->port, net, &vif_ops, 0);
    vif->port.carrier = false;
    links_append(&vif->link, &nb->vifs);
    vs_unlock(nb->sw);
    *out = vif;
    return 0;
}

vs_port_t *nb_vif_port(nb_vif_t *vif) { return &vif->port; }

const char *nb_vif_fault(nb_vif_t *vif)
{
    vs_lock(vif->nb->sw);
    const char *fault = vif->fault;
    vs_unlock(vif->nb->sw);
    return fault;
}

int nb_vif_state(nb_vif_t *vif, struct nb_vif_state *out)
{
    vs_lock(vif->nb->sw);
    *out = vif->state;
    out->connected = vif->connected;
    for (uint32_t i = 0; i < vif->nr_queues; i++)
        out->stalled |= vif->queue[i].stalled;
    vs_unlock(vif->nb->sw);
    return 0;
}

int nb_create(vswitch_t *sw, nb_copy_fn copy, void *context, uint64_t first_gmfn, netback_t **out)
{
    struct netback *nb = calloc(1, sizeof(*nb));
    if (!nb)
        return -ENOMEM;
    nb->hook.turn = turn;
    nb->sw = sw;
    nb->copy = copy;
    nb->context = context;
    nb->first_gmfn = first_gmfn;
    nb_set_patience(nb, DRAIN_NS, STALL_NS);
    links_init(&nb->vifs);
    links_init(&nb->tx_active);
    links_init(&nb->rx_active);
    vs_lock(sw);
    sw->hook = &nb->hook;
    vs_unlock(sw);
    *out = nb;
    return 0;
}

void nb_destroy(netback_t *nb)
{
    if (!nb)
        return;
    vs_lock(nb->sw);
    nb->sw->hook = NULL;
    vs_unlock(nb->sw);
    free(nb);
}

int nb_gone(netback_t *nb)
{
    vs_lock(nb->sw);
    bool gone = nb->gone;
    vs_unlock(nb->sw);
    return gone;
}

void nb_set_patience(netback_t *nb, uint64_t drain_ns, uint64_t stall_ns)
{
    nb->drain_ns = drain_ns;
    nb->stall_ns = stall_ns;
}
