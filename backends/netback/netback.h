/*
 * Network interfaces of guests as ports of the switch. See vif.c for the rings, ../vswitch for what happens to frames.
 *
 * Functions take the switch's lock. 0 or -errno of the host.
 */
#ifndef UMXEN_NETBACK_H
#define UMXEN_NETBACK_H
#include <stdint.h>

#include "../vswitch/vswitch.h"
#include "hcall.h"

/* cffi: begin */
typedef struct netback netback_t;
typedef struct vif nb_vif_t;

#define NB_MAX_QUEUES 8
#define NB_SHADOW_BYTES 4096
#define NB_MAX_MULTICAST 64

/* Does the copies and writes each op's status; not 0: the hypervisor is gone. */
typedef int (*nb_copy_fn)(void *context, struct gnttab_copy *ops, uint32_t n);
/* The one for a hypercall ring. */
int nb_copy_by_hcall(void *ring, struct gnttab_copy *ops, uint32_t n);

/* `first_gmfn`: of the switch's memory, in the arena that the copies are made from and to. */
int nb_create(vswitch_t *sw, nb_copy_fn copy, void *context, uint64_t first_gmfn, netback_t **out);
void nb_destroy(netback_t *nb); /* after its vifs, while the switch's thread does not run */
int nb_gone(netback_t *nb);     /* whether copies fail because the hypervisor is gone */

/* A port that has no carrier until it is connected. vs_port_destroy(nb_vif_port(vif)) ends it. */
int nb_vif_create(netback_t *nb, vs_network_t *net, uint16_t domid, nb_vif_t **out);
vs_port_t *nb_vif_port(nb_vif_t *vif);

struct nb_queue {
    void *tx_ring, *rx_ring; /* pages shared with the guest */
    void *shadow;            /* NB_SHADOW_BYTES that survive us */
    int tx_upcall, tx_doorbell, rx_upcall, rx_doorbell; /* the same twice where one event channel serves both */
};
struct nb_connection {
    uint32_t nr_queues;
    uint32_t resume;            /* a killed predecessor has served these rings */
    uint32_t caps;              /* VS_*: what the guest takes */
    uint32_t scatter_gather;    /* takes packets of more than one buffer */
    uint32_t multicast_control; /* wants only the multicasts that it asks for */
    void *ctrl_ring;            /* NULL: none */
    int ctrl_upcall, ctrl_doorbell;
    struct nb_queue queue[8];
};
/* Rings, shadows and descriptors stay the caller's and valid until nb_vif_disconnect. */
int nb_vif_connect(nb_vif_t *vif, const struct nb_connection *connection);
int nb_vif_disconnect(nb_vif_t *vif);
/* Why the guest's rings are not served any more, in words; NULL: they are. */
const char *nb_vif_fault(nb_vif_t *vif);

struct nb_vif_state {
    uint32_t connected, stalled; /* stalled: the guest gives no buffers; what is for it is dropped */
    uint64_t tx_errors, rx_copy_errors, throttled, batches, copies, notifications;
};
int nb_vif_state(nb_vif_t *vif, struct nb_vif_state *out);
/* How long packets wait for buffers, and after how long without any a guest counts as stalled. Tests shorten them. */
void nb_set_patience(netback_t *nb, uint64_t drain_ns, uint64_t stall_ns);
/* cffi: end */
#endif
