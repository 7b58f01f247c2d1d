/*
 * A vif from inside: its queues, what they share, and the batches in which their grant copies are made.
 */
#ifndef UMXEN_NETBACK_VIF_H
#define UMXEN_NETBACK_VIF_H
#include "../vswitch/switch.h"
#include "io/netif.h"
#include "netback.h"

#define RING_ENTRIES 256u
#define CTRL_ENTRIES 128u
#define RX_QUEUE 512u      /* packets that wait for a guest's buffers */
#define RX_QUEUE_PAGES 1024u
#define MAX_SLOTS XEN_NETIF_NR_SLOTS_MIN
#define FATAL_SLOTS 20u    /* as Linux' netback: this many in one packet is no mistake any more */
#define BATCH_OPS 512u
#define BATCH_PACKETS 128u
#define QUANTUM 64u        /* packets of one queue in a turn */

/*
 * What a successor needs: how far we have come, and of each request that may not have been answered what its ring entry
 * held, because the answer overwrites it. An entry is written before the index that covers it.
 */
struct shadow {
    uint32_t magic, tx_cons, rx_cons;
    struct { uint16_t id; uint16_t is_extra; } tx[RING_ENTRIES];
    struct { uint16_t id, pad; uint32_t gref; } rx[RING_ENTRIES];
};
_Static_assert(sizeof(struct shadow) <= NB_SHADOW_BYTES, "shadow");
#define SHADOW_MAGIC 0x6e657462u

struct queue {
    struct vif *vif;
    struct link tx_link, rx_link; /* of netback's lists of those with work */
    struct source tx_source, rx_source;
    struct netif_tx_sring *tx;
    struct netif_rx_sring *rx;
    struct shadow *shadow;
    int tx_doorbell, rx_doorbell;
    bool shared_channel, tx_notify, rx_notify, tx_dirty, rx_dirty, stalled;
    uint32_t tx_cons, tx_rsp, rx_cons, rx_rsp;
    struct packet *waiting[RX_QUEUE];
    uint64_t waiting_since[RX_QUEUE];
    uint32_t head, tail, pages;
    uint64_t last_buffer_ns; /* when the guest last had room for what waited */
};

struct vif {
    struct port port;
    struct netback *nb;
    struct link link;
    uint16_t domid;
    bool connected, scatter_gather, multicast_control;
    const char *fault;
    uint32_t nr_queues, nr_multicast;
    uint8_t multicast[NB_MAX_MULTICAST][6];
    struct xen_netif_ctrl_sring *ctrl;
    struct source ctrl_source;
    int ctrl_doorbell;
    uint32_t ctrl_cons;
    struct nb_vif_state state;
    struct queue queue[NB_MAX_QUEUES];
};

/* A transmitted packet under way: `nr` ring entries from `first` on. */
struct tx_item {
    struct queue *q;
    struct packet *p; /* NULL: there is nothing to forward */
    uint32_t first, nr, nr_extras, op, nr_ops;
    int16_t status;
};

/* A buffer of the guest being filled. */
struct rx_item {
    struct queue *q;
    uint32_t index, op, nr_ops;
    struct netif_rx_response response;
    struct netif_extra_info extra;
    bool is_extra;
};

struct netback {
    struct hook hook;
    struct vswitch *sw;
    nb_copy_fn copy;
    void *context;
    uint64_t first_gmfn, drain_ns, stall_ns;
    bool gone;
    struct link vifs, tx_active, rx_active;
    uint32_t nr_ops, nr_tx, nr_rx;
    struct gnttab_copy op[BATCH_OPS];
    struct tx_item tx[BATCH_PACKETS];
    struct rx_item rx[BATCH_OPS];
};

static inline uint32_t ring_load(const uint32_t *shared) { return __atomic_load_n(shared, __ATOMIC_ACQUIRE); }
static inline void ring_store(uint32_t *shared, uint32_t v) { __atomic_store_n(shared, v, __ATOMIC_RELEASE); }

/* The guest's rings make no sense: they are not touched any more. */
void vif_fault(struct vif *vif, const char *why);
void copy_batch(struct netback *nb);
struct gnttab_copy *new_op(struct netback *nb);

/* tx.c: collects up to a quantum; false: the queue has nothing more for now. */
bool tx_collect(struct netback *nb, struct queue *q);
void tx_finish(struct netback *nb);
void tx_resume(struct queue *q);
/* rx.c */
bool rx_collect(struct netback *nb, struct queue *q);
void rx_finish(struct netback *nb);
void rx_resume(struct queue *q);
void rx_enqueue(struct queue *q, struct packet *p);
void rx_drop_all(struct queue *q);
/* Drops what has waited too long; the time of the next look. */
uint64_t rx_check_stalled(struct netback *nb, struct queue *q);
/* ctrl.c */
void ctrl_serve(struct vif *vif);
#endif
