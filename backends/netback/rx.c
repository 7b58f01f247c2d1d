/*
 * What guests receive: packets that wait, into buffers that the guest has granted.
 *
 * A packet's pieces go into buffers as they are, a buffer for each, so that each is copied once; only where that would take
 * more buffers than a packet may have are they packed. The first buffer's response carries the flags; one ring entry after
 * it holds the extra info of a GSO packet. Responses are in ring order, an entry's response over its request.
 *
 * A guest that gives no buffers: packets wait in a bounded queue, are dropped after drain_ns, and after stall_ns without
 * room the queue counts as stalled and takes nothing until there are buffers again. As Xen's netback, but per queue.
 */
#include "vif.h"

/* A piece of a packet and where it goes: buffer `slot`, `offset` in it. */
struct placed { struct span span; uint32_t slot, offset; };

/* ---- layout ----------------------------------------------------------------------------------------------------- */

static uint32_t place(const struct span *piece, uint32_t nr_pieces, bool packed, struct placed *out, uint32_t *nr_slots)
{
    uint32_t n = 0, slot = 0, used = 0;
    for (uint32_t i = 0; i < nr_pieces; i++) {
        struct span s = piece[i];
        if (!packed && used && used + s.bytes > PACKET_PAGE) {
            slot++;
            used = 0;
        }
        while (s.bytes) {
            if (used == PACKET_PAGE) {
                slot++;
                used = 0;
            }
            uint32_t part = s.bytes < PACKET_PAGE - used ? s.bytes : PACKET_PAGE - used;
            out[n++] = (struct placed){{s.at, part}, slot, used};
            s.at += part;
            s.bytes -= part;
            used += part;
        }
    }
    *nr_slots = slot + 1;
    return n;
}

#define MAX_PLACED (2 * PACKET_MAX_PIECES + 1)

static uint32_t layout(struct queue *q, struct packet *p, struct placed *out, uint32_t *nr_slots)
{
    struct span piece[PACKET_MAX_PIECES];
    uint32_t nr = packet_pieces(&q->vif->nb->sw->pool, p, port_sends_tagged(&q->vif->port, p), piece);
    uint32_t n = place(piece, nr, !q->vif->scatter_gather, out, nr_slots);
    if (*nr_slots >= MAX_SLOTS)
        n = place(piece, nr, true, out, nr_slots);
    return n;
}

/* ---- the queue of what waits ------------------------------------------------------------------------------------- */

static void pop(struct queue *q)
{
    struct packet *p = q->waiting[q->head++ % RX_QUEUE];
    q->pages -= p->nr_spans;
    packet_put(&q->vif->nb->sw->pool, p);
}

void rx_drop_all(struct queue *q)
{
    while (q->head != q->tail)
        pop(q);
}

void rx_enqueue(struct queue *q, struct packet *p)
{
    struct vif *vif = q->vif;
    struct vswitch *sw = vif->nb->sw;
    bool full = q->tail - q->head == RX_QUEUE || !queue_may_grow(&sw->pool, q->pages, RX_QUEUE_PAGES, p->nr_spans);
    if (q->stalled || full || (!vif->scatter_gather && p->bytes + VLAN_TAG > PACKET_PAGE)) {
        vif->port.count.tx_dropped_full++;
        return;
    }
    if (q->head == q->tail)
        q->last_buffer_ns = sw->now_ns;
    packet_get(p);
    q->waiting_since[q->tail % RX_QUEUE] = sw->now_ns;
    q->waiting[q->tail++ % RX_QUEUE] = p;
    q->pages += p->nr_spans;
    if (links_empty(&q->rx_link))
        links_append(&q->rx_link, &vif->nb->rx_active);
}

uint64_t rx_check_stalled(struct netback *nb, struct queue *q)
{
    uint64_t now = nb->sw->now_ns;
    while (q->head != q->tail && now - q->waiting_since[q->head % RX_QUEUE] >= nb->drain_ns) {
        pop(q);
        q->vif->port.count.tx_dropped_full++;
        if (now - q->last_buffer_ns >= nb->stall_ns)
            q->stalled = true;
    }
    return q->head == q->tail ? NEVER : q->waiting_since[q->head % RX_QUEUE] + nb->drain_ns;
}

/* ---- into the batch --------------------------------------------------------------------------------------------- */

static struct rx_item *take_buffer(struct netback *nb, struct queue *q, uint32_t *gref)
{
    volatile struct netif_rx_request *req = &q->rx->ring[q->rx_cons % RING_ENTRIES].req;
    struct rx_item *item = &nb->rx[nb->nr_rx++];
    *item = (struct rx_item){.q = q, .index = q->rx_cons, .op = nb->nr_ops};
    item->response.id = req->id;
    *gref = req->gref;
    q->shadow->rx[q->rx_cons % RING_ENTRIES].id = item->response.id;
    q->shadow->rx[q->rx_cons % RING_ENTRIES].gref = *gref;
    ring_store(&q->shadow->rx_cons, ++q->rx_cons);
    return item;
}

static void fill(struct netback *nb, struct rx_item *item, uint32_t gref, const struct placed *piece)
{
    struct gnttab_copy *op = new_op(nb);
    *op = (struct gnttab_copy){.flags = GNTCOPY_dest_gref, .status = GNTST_general_error};
    op->len = (uint16_t)piece->span.bytes;
    op->source.u.gmfn = nb->first_gmfn + piece->span.at / PACKET_PAGE;
    op->source.domid = DOMID_SELF;
    op->source.offset = (uint16_t)(piece->span.at % PACKET_PAGE);
    op->dest.u.ref = gref;
    op->dest.domid = item->q->vif->domid;
    op->dest.offset = (uint16_t)piece->offset;
    item->nr_ops++;
    item->response.status = (int16_t)(item->response.status + op->len);
}

static void take_extra_entry(struct netback *nb, struct queue *q, const struct packet *p)
{
    uint32_t unused;
    struct rx_item *item = take_buffer(nb, q, &unused);
    item->is_extra = true;
    item->extra.type = XEN_NETIF_EXTRA_TYPE_GSO;
    item->extra.u.gso.size = p->gso_size;
    item->extra.u.gso.type = p->gso;
}

static uint16_t first_flags(const struct packet *p, bool extra)
{
    uint16_t flags = extra ? NETRXF_extra_info : 0;
    if (p->checksum == CHECKSUM_PARTIAL)
        return (uint16_t)(flags | NETRXF_csum_blank | NETRXF_data_validated);
    return (uint16_t)(p->checksum == CHECKSUM_VERIFIED ? flags | NETRXF_data_validated : flags);
}

static void fill_buffers(struct netback *nb, struct queue *q, const struct packet *p, const struct placed *piece,
                         uint32_t n, bool extra)
{
    struct rx_item *item = NULL;
    uint32_t gref = 0, slot = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        if (piece[i].slot != slot) {
            if (item)
                item->response.flags |= NETRXF_more_data;
            item = take_buffer(nb, q, &gref);
            item->response.flags = slot == UINT32_MAX ? first_flags(p, extra) : 0;
            if (slot == UINT32_MAX && extra) {
                take_extra_entry(nb, q, p);
            }
            slot = piece[i].slot;
        }
        if (!item->nr_ops)
            item->op = nb->nr_ops;
        fill(nb, item, gref, &piece[i]);
    }
}

/* Too few buffers: an event when there may be enough, and a second look. */
static bool has_room(struct queue *q, uint32_t needed)
{
    if (ring_load(&q->rx->req_prod) - q->rx_cons >= needed)
        return true;
    __atomic_store_n(&q->rx->req_event, q->rx_cons + needed, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return ring_load(&q->rx->req_prod) - q->rx_cons >= needed;
}

static bool ring_is_sane(struct queue *q)
{
    uint32_t left = ring_load(&q->rx->req_prod) - q->rx_cons;
    if (left <= RING_ENTRIES && q->rx_cons - q->rx_rsp + left <= RING_ENTRIES)
        return true;
    vif_fault(q->vif, "the receive ring ran away");
    return false;
}

bool rx_collect(struct netback *nb, struct queue *q)
{
    struct placed piece[MAX_PLACED];
    for (uint32_t i = 0; i < QUANTUM && q->head != q->tail; i++) {
        struct packet *p = q->waiting[q->head % RX_QUEUE];
        uint32_t nr_slots, n = layout(q, p, piece, &nr_slots);
        if (nb->nr_ops + n > BATCH_OPS || nb->nr_rx + nr_slots + 1 > BATCH_OPS)
            return true;
        if (!ring_is_sane(q) || !has_room(q, nr_slots + (p->gso != GSO_NONE)))
            return false;
        bool extra = p->gso && (q->vif->port.caps & (VS_TSO4 | VS_TSO6));
        fill_buffers(nb, q, p, piece, n, extra);
        q->last_buffer_ns = nb->sw->now_ns;
        q->rx_dirty = true;
        /* The pages are read by the batch: nothing allocates before it is done. */
        pop(q);
    }
    return q->head != q->tail;
}

/* ---- after the copies ------------------------------------------------------------------------------------------- */

static bool publish(struct queue *q, uint32_t end)
{
    uint32_t before = q->rx_rsp;
    q->rx_rsp = end;
    __atomic_store_n(&q->rx->rsp_prod, end, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return end - ring_load(&q->rx->rsp_event) < end - before;
}

static void answer(struct netback *nb, struct rx_item *item)
{
    struct queue *q = item->q;
    union netif_rx_sring_entry *entry = &q->rx->ring[item->index % RING_ENTRIES];
    for (uint32_t i = 0; i < item->nr_ops; i++)
        if (nb->op[item->op + i].status != GNTST_okay)
            item->response.status = NETIF_RSP_ERROR;
    q->vif->state.rx_copy_errors += item->response.status < 0;
    if (item->is_extra)
        memcpy(entry, &item->extra, sizeof(item->extra));
    else
        entry->rsp = item->response;
}

void rx_finish(struct netback *nb)
{
    for (uint32_t i = 0; i < nb->nr_rx; i++) {
        struct rx_item *item = &nb->rx[i];
        if (item->q->vif->fault)
            continue;
        answer(nb, item);
        if ((i + 1 == nb->nr_rx || item[1].q != item->q) && publish(item->q, item->index + 1))
            item->q->rx_notify = true;
    }
    nb->nr_rx = nb->nr_ops = 0;
}

/* Buffers a killed predecessor took and may have filled: they go back as errors, and the guest gives them again. */
void rx_resume(struct queue *q)
{
    uint32_t taken = q->shadow->rx_cons;
    if (taken - q->rx_rsp > RING_ENTRIES)
        taken = q->rx_rsp;
    for (uint32_t i = q->rx_rsp; i != taken; i++)
        q->rx->ring[i % RING_ENTRIES].rsp =
            (struct netif_rx_response){.id = q->shadow->rx[i % RING_ENTRIES].id, .status = NETIF_RSP_ERROR};
    q->rx_cons = taken;
    q->rx_notify = publish(q, taken);
}
