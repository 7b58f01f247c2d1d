/*
 * What guests transmit: requests out of the ring, packets into the switch.
 *
 * A request is copied out of the ring once, and noted in the shadow, before anything is believed of it. A packet's bytes
 * are fetched by grant copies, many packets to a batch; when the batch is done the requests are answered and the packets
 * go on. Answers are given in ring order: an answer lies in its request's entry, and frontends count on it.
 *
 * Xen's distinctions: a packet that is only wrong gets NETIF_RSP_ERROR in each of its entries and is dropped; requests that
 * no frontend could have meant (more than there are, across a page, unknown extra info) end the device.
 */
#include "../vswitch/offload.h"
#include "vif.h"

/* One packet's requests, copied out. */
struct request {
    uint32_t first, nr, nr_extras, nr_slots;
    bool has_gso, has_add, has_del, refused;
    struct netif_extra_info gso, add, del;
    struct netif_tx_request slot[FATAL_SLOTS]; /* last: only what is used is initialised */
};

/* ---- out of the ring -------------------------------------------------------------------------------------------- */

static void note(struct queue *q, uint32_t index, uint16_t id, bool is_extra)
{
    struct shadow *s = q->shadow;
    s->tx[index % RING_ENTRIES].id = id;
    s->tx[index % RING_ENTRIES].is_extra = is_extra;
    ring_store(&s->tx_cons, index + 1);
}

/* The next entry, copied once. It is not taken yet. */
static struct netif_tx_request peek_slot(const struct queue *q)
{
    return *(const volatile struct netif_tx_request *)&q->tx->ring[q->tx_cons % RING_ENTRIES].req;
}

static bool take_slot(struct queue *q, uint32_t *left, struct netif_tx_request *out)
{
    if (!*left)
        return false;
    *out = peek_slot(q);
    note(q, q->tx_cons++, out->id, false);
    --*left;
    return true;
}

static bool take_extra(struct queue *q, uint32_t *left, struct netif_extra_info *out)
{
    if (!*left)
        return false;
    memcpy(out, &q->tx->ring[q->tx_cons % RING_ENTRIES], sizeof(*out));
    __asm__ volatile("" ::: "memory"); /* the copy is what is looked at */
    note(q, q->tx_cons++, 0, true);
    --*left;
    return true;
}

static const char *take_extras(struct queue *q, uint32_t *left, struct request *r)
{
    struct netif_extra_info extra;
    do {
        if (!take_extra(q, left, &extra))
            return "extra info is missing in the transmit ring";
        r->nr_extras++;
        switch (extra.type) {
        case XEN_NETIF_EXTRA_TYPE_GSO:
            r->gso = extra;
            r->has_gso = true;
            break;
        case XEN_NETIF_EXTRA_TYPE_MCAST_ADD:
            r->add = extra;
            r->has_add = true;
            break;
        case XEN_NETIF_EXTRA_TYPE_MCAST_DEL:
            r->del = extra;
            r->has_del = true;
            break;
        case XEN_NETIF_EXTRA_TYPE_HASH: /* no hash was ever agreed on */
            r->refused = true;
            break;
        default:
            return "extra info of an unknown type in the transmit ring";
        }
    } while (extra.flags & XEN_NETIF_EXTRA_FLAG_MORE);
    return NULL;
}

static const char *take_more_slots(struct queue *q, uint32_t *left, struct request *r)
{
    while (r->slot[r->nr_slots - 1].flags & NETTXF_more_data) {
        if (r->nr_slots == FATAL_SLOTS)
            return "too many slots in one transmitted packet";
        struct netif_tx_request *s = &r->slot[r->nr_slots];
        if (!take_slot(q, left, s))
            return "a transmitted packet asks for more slots than the ring holds";
        r->nr_slots++;
        if (s->offset + (uint32_t)s->size > PACKET_PAGE)
            return "a transmit request crosses a page";
        if (s->size > r->slot[0].size)
            r->refused = true;
        else
            r->slot[0].size = (uint16_t)(r->slot[0].size - s->size);
    }
    return NULL;
}

/*
 * The packet that begins with the slot peeked into r->slot[0]. What is wrong beyond repair, or NULL. After it the first
 * slot's size is its own, no more the packet's.
 */
static const char *take_request(struct queue *q, uint32_t left, struct request *r)
{
    const char *fault = NULL;
    r->first = q->tx_cons;
    note(q, q->tx_cons++, r->slot[0].id, false);
    left--;
    r->nr_slots = 1;
    uint32_t bytes = r->slot[0].size;
    if (r->slot[0].flags & NETTXF_extra_info)
        fault = take_extras(q, &left, r);
    if (!fault)
        fault = take_more_slots(q, &left, r);
    r->nr = q->tx_cons - r->first;
    if (!fault && !r->refused && r->slot[0].offset + (uint32_t)r->slot[0].size > PACKET_PAGE)
        fault = "a transmit request crosses a page";
    if (bytes < ETH_HEADER || r->nr_slots > MAX_SLOTS)
        r->refused = true;
    return fault;
}

/* ---- multicast lists -------------------------------------------------------------------------------------------- */

static int find_multicast(const struct vif *vif, const uint8_t *mac)
{
    for (uint32_t i = 0; i < vif->nr_multicast; i++)
        if (!memcmp(vif->multicast[i], mac, 6))
            return (int)i;
    return -1;
}

static bool change_multicast(struct vif *vif, const struct request *r)
{
    const uint8_t *mac = r->has_add ? r->add.u.mcast.addr : r->del.u.mcast.addr;
    int at = find_multicast(vif, mac);
    if (r->has_del && at >= 0)
        memmove(vif->multicast[at], vif->multicast[--vif->nr_multicast], 6);
    if (r->has_del || at >= 0)
        return true;
    if (vif->nr_multicast == NB_MAX_MULTICAST)
        return false;
    memcpy(vif->multicast[vif->nr_multicast++], mac, 6);
    return true;
}

/* ---- into the batch --------------------------------------------------------------------------------------------- */

/* Copies that fetch one slot; it is cut where a page of ours ends. False: no pages. */
static bool fetch_slot(struct netback *nb, struct queue *q, struct packet *p, const struct netif_tx_request *s)
{
    uint32_t offset = s->offset, bytes = s->size;
    while (bytes) {
        uint32_t at, n = packet_extend(&nb->sw->pool, p, bytes, true, &at);
        if (!n)
            return false;
        struct gnttab_copy *op = new_op(nb);
        *op = (struct gnttab_copy){.len = (uint16_t)n, .flags = GNTCOPY_source_gref, .status = GNTST_general_error};
        op->source.u.ref = s->gref;
        op->source.domid = q->vif->domid;
        op->source.offset = (uint16_t)offset;
        op->dest.u.gmfn = nb->first_gmfn + at / PACKET_PAGE;
        op->dest.domid = DOMID_SELF;
        op->dest.offset = (uint16_t)(at % PACKET_PAGE);
        offset += n;
        bytes -= n;
    }
    return true;
}

static bool describe(struct packet *p, const struct request *r)
{
    uint16_t flags = r->slot[0].flags;
    if (flags & NETTXF_csum_blank)
        p->checksum = CHECKSUM_PARTIAL;
    else if (flags & NETTXF_data_validated)
        p->checksum = CHECKSUM_VERIFIED;
    if (!r->has_gso)
        return true;
    p->gso = r->gso.u.gso.type;
    p->gso_size = r->gso.u.gso.size;
    return p->gso_size && (p->gso == GSO_TCP4 || p->gso == GSO_TCP6);
}

static void drop(struct netback *nb, struct tx_item *item)
{
    if (item->p)
        packet_put(&nb->sw->pool, item->p);
    item->p = NULL;
    item->status = NETIF_RSP_ERROR;
    nb->nr_ops = item->op; /* the batch's last ones */
    item->nr_ops = 0;
}

static void fetch(struct netback *nb, struct tx_item *item, const struct request *r)
{
    bool ok = !r->refused && (item->p = packet_alloc(&nb->sw->pool)) && describe(item->p, r);
    for (uint32_t i = 0; ok && i < r->nr_slots; i++)
        ok = fetch_slot(nb, item->q, item->p, &r->slot[i]);
    item->nr_ops = nb->nr_ops - item->op;
    if (!ok)
        drop(nb, item);
}

static void add_item(struct netback *nb, struct queue *q, const struct request *r)
{
    struct tx_item *item = &nb->tx[nb->nr_tx++];
    *item = (struct tx_item){.q = q, .first = r->first, .nr = r->nr, .nr_extras = r->nr_extras, .op = nb->nr_ops};
    if (r->has_add || r->has_del)
        item->status = change_multicast(q->vif, r) ? NETIF_RSP_OKAY : NETIF_RSP_ERROR;
    else
        fetch(nb, item, r);
    q->tx_dirty = true;
}

/* Whether the guest may send its next packet now; if not, the queue is woken when it may. */
static bool has_credit(struct queue *q, uint16_t bytes)
{
    struct vif *vif = q->vif;
    if (credit_take(&vif->port.rate, bytes, vif->nb->sw->now_ns))
        return true;
    vif->state.throttled++;
    q->tx_source.wake_ns = vif->port.rate.window_ends_ns;
    return false;
}

/* Nothing there: ask for an event, and look once more. */
static bool went_idle(struct queue *q)
{
    __atomic_store_n(&q->tx->req_event, q->tx_cons + 1, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return ring_load(&q->tx->req_prod) == q->tx_cons;
}

static bool batch_has_room(const struct netback *nb)
{
    return nb->nr_tx < BATCH_PACKETS && nb->nr_ops + 2 * FATAL_SLOTS <= BATCH_OPS;
}

static bool pages_left(const struct netback *nb) { return nb->sw->pool.nr_free > 2 * PACKET_MAX_SPANS; }

bool tx_collect(struct netback *nb, struct queue *q)
{
    for (uint32_t n = 0; n < QUANTUM; n++) {
        uint32_t left = ring_load(&q->tx->req_prod) - q->tx_cons;
        if (left > RING_ENTRIES || q->tx_cons - q->tx_rsp + left > RING_ENTRIES) {
            vif_fault(q->vif, "the transmit ring ran away");
            return false;
        }
        if (!left) {
            if (went_idle(q))
                return false;
            continue;
        }
        if (!batch_has_room(nb) || !pages_left(nb))
            return true;
        struct request r;
        memset(&r, 0, offsetof(struct request, slot));
        r.slot[0] = peek_slot(q);
        if (!has_credit(q, r.slot[0].size))
            return false;
        const char *fault = take_request(q, left, &r);
        if (fault) {
            vif_fault(q->vif, fault);
            return false;
        }
        add_item(nb, q, &r);
    }
    return true;
}

/* ---- after the copies ------------------------------------------------------------------------------------------- */

static void respond(struct queue *q, uint32_t index, int16_t status)
{
    struct netif_tx_response *rsp = &q->tx->ring[index % RING_ENTRIES].rsp;
    if (q->shadow->tx[index % RING_ENTRIES].is_extra) {
        rsp->status = NETIF_RSP_NULL;
    } else {
        rsp->id = q->shadow->tx[index % RING_ENTRIES].id;
        rsp->status = status;
    }
}

/* Makes the answers seen; whether the guest wants an event for them. */
static bool publish(struct queue *q, uint32_t end)
{
    uint32_t before = q->tx_rsp;
    q->tx_rsp = end;
    __atomic_store_n(&q->tx->rsp_prod, end, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return end - ring_load(&q->tx->rsp_event) < end - before;
}

static void judge(struct netback *nb, struct tx_item *item)
{
    for (uint32_t i = 0; i < item->nr_ops; i++)
        if (nb->op[item->op + i].status != GNTST_okay)
            item->status = NETIF_RSP_ERROR;
    if (item->status == NETIF_RSP_OKAY)
        return;
    item->q->vif->state.tx_errors++;
    if (item->p)
        packet_put(&nb->sw->pool, item->p);
    item->p = NULL;
}

static void answer(struct netback *nb, struct tx_item *item)
{
    struct queue *q = item->q;
    if (q->vif->fault)
        return;
    for (uint32_t i = 0; i < item->nr; i++)
        respond(q, item->first + i, item->status);
    bool last = item == &nb->tx[nb->nr_tx - 1] || item[1].q != q;
    if (last && publish(q, item->first + item->nr))
        q->tx_notify = true;
}

void tx_finish(struct netback *nb)
{
    for (uint32_t i = 0; i < nb->nr_tx; i++) {
        judge(nb, &nb->tx[i]);
        answer(nb, &nb->tx[i]);
    }
    for (uint32_t i = 0; i < nb->nr_tx; i++)
        if (nb->tx[i].p)
            switch_input(&nb->tx[i].q->vif->port, nb->tx[i].p);
    nb->nr_tx = nb->nr_ops = 0;
}

/* Requests a killed predecessor took and did not answer: lost packets. */
void tx_resume(struct queue *q)
{
    uint32_t taken = q->shadow->tx_cons;
    if (taken - q->tx_rsp > RING_ENTRIES)
        taken = q->tx_rsp;
    for (uint32_t i = q->tx_rsp; i != taken; i++)
        respond(q, i, NETIF_RSP_DROPPED);
    q->tx_cons = taken;
    q->tx_notify = publish(q, taken);
}
