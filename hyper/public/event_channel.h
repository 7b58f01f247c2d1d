/*
 * Event channels: one-bit notifications between domains. A port is the local end's number; the far end's is
 * remote_port.
 */
#ifndef UMXEN_PUBLIC_EVENT_CHANNEL_H
#define UMXEN_PUBLIC_EVENT_CHANNEL_H
#include "xen.h"

/* cffi: begin */
typedef uint32_t evtchn_port_t;
typedef uint32_t event_word_t;

enum {
    EVTCHNOP_bind_interdomain = 0,
    EVTCHNOP_bind_virq = 1,
    EVTCHNOP_bind_pirq = 2,
    EVTCHNOP_close = 3,
    EVTCHNOP_send = 4,
    EVTCHNOP_status = 5,
    EVTCHNOP_alloc_unbound = 6,
    EVTCHNOP_bind_ipi = 7,
    EVTCHNOP_bind_vcpu = 8,
    EVTCHNOP_unmask = 9,
    EVTCHNOP_reset = 10,
    EVTCHNOP_init_control = 11,
    EVTCHNOP_expand_array = 12,
    EVTCHNOP_set_priority = 13,
    EVTCHNOP_reset_cont = 14 /* the hypervisor's own: a preempted reset */
};

struct evtchn_alloc_unbound {
    domid_t dom, remote_dom;
    evtchn_port_t port; /* out */
};

struct evtchn_bind_interdomain {
    domid_t remote_dom;
    evtchn_port_t remote_port;
    evtchn_port_t local_port; /* out */
};

struct evtchn_bind_virq {
    uint32_t virq;
    uint32_t vcpu;
    evtchn_port_t port; /* out */
};

enum { BIND_PIRQ__WILL_SHARE = 1 };

struct evtchn_bind_pirq {
    uint32_t pirq;
    uint32_t flags;
    evtchn_port_t port; /* out */
};

struct evtchn_bind_ipi {
    uint32_t vcpu;
    evtchn_port_t port; /* out */
};

struct evtchn_close {
    evtchn_port_t port;
};

struct evtchn_send {
    evtchn_port_t port;
};

enum {
    EVTCHNSTAT_closed = 0,
    EVTCHNSTAT_unbound = 1,
    EVTCHNSTAT_interdomain = 2,
    EVTCHNSTAT_pirq = 3,
    EVTCHNSTAT_virq = 4,
    EVTCHNSTAT_ipi = 5
};

struct evtchn_status {
    domid_t dom;
    evtchn_port_t port;
    uint32_t status; /* out, as all below */
    uint32_t vcpu;
    union {
        struct {
            domid_t dom;
        } unbound;
        struct {
            domid_t dom;
            evtchn_port_t port;
        } interdomain;
        uint32_t pirq;
        uint32_t virq;
    } u;
};

struct evtchn_bind_vcpu {
    evtchn_port_t port;
    uint32_t vcpu;
};

struct evtchn_unmask {
    evtchn_port_t port;
};

struct evtchn_reset {
    domid_t dom;
};

struct evtchn_init_control {
    uint64_t control_gfn;
    uint32_t offset;
    uint32_t vcpu;
    uint8_t link_bits; /* out */
    uint8_t _pad[7];
};

struct evtchn_expand_array {
    uint64_t array_gfn;
};

struct evtchn_set_priority {
    evtchn_port_t port;
    uint32_t priority;
};

/* Argument of event_channel_op_compat. */
struct evtchn_op {
    uint32_t cmd;
    union {
        struct evtchn_alloc_unbound alloc_unbound;
        struct evtchn_bind_interdomain bind_interdomain;
        struct evtchn_bind_virq bind_virq;
        struct evtchn_bind_pirq bind_pirq;
        struct evtchn_bind_ipi bind_ipi;
        struct evtchn_close close;
        struct evtchn_send send;
        struct evtchn_status status;
        struct evtchn_bind_vcpu bind_vcpu;
        struct evtchn_unmask unmask;
    } u;
};

enum { EVTCHN_2L_NR_CHANNELS = 4096 };

enum {
    EVTCHN_FIFO_PRIORITY_MAX = 0,
    EVTCHN_FIFO_PRIORITY_DEFAULT = 7,
    EVTCHN_FIFO_PRIORITY_MIN = 15,
    EVTCHN_FIFO_MAX_QUEUES = 16
};

/* Bits of an event_word_t; the low EVTCHN_FIFO_LINK_BITS name the next port of the queue. */
enum {
    EVTCHN_FIFO_PENDING = 31,
    EVTCHN_FIFO_MASKED = 30,
    EVTCHN_FIFO_LINKED = 29,
    EVTCHN_FIFO_BUSY = 28,
    EVTCHN_FIFO_LINK_BITS = 17,
    EVTCHN_FIFO_LINK_MASK = (1 << 17) - 1,
    EVTCHN_FIFO_NR_CHANNELS = 1 << 17
};

struct evtchn_fifo_control_block {
    uint32_t ready; /* bit n: queue n isn't empty */
    uint32_t _rsvd;
    event_word_t head[EVTCHN_FIFO_MAX_QUEUES];
};
/* cffi: end */

_Static_assert(sizeof(struct evtchn_alloc_unbound) == 8, "evtchn_alloc_unbound");
_Static_assert(sizeof(struct evtchn_bind_interdomain) == 12, "evtchn_bind_interdomain");
_Static_assert(sizeof(struct evtchn_bind_virq) == 12, "evtchn_bind_virq");
_Static_assert(sizeof(struct evtchn_bind_pirq) == 12, "evtchn_bind_pirq");
_Static_assert(sizeof(struct evtchn_bind_ipi) == 8, "evtchn_bind_ipi");
_Static_assert(sizeof(struct evtchn_close) == 4, "evtchn_close");
_Static_assert(sizeof(struct evtchn_send) == 4, "evtchn_send");
_Static_assert(sizeof(struct evtchn_status) == 24, "evtchn_status");
_Static_assert(sizeof(struct evtchn_bind_vcpu) == 8, "evtchn_bind_vcpu");
_Static_assert(sizeof(struct evtchn_unmask) == 4, "evtchn_unmask");
_Static_assert(sizeof(struct evtchn_reset) == 2, "evtchn_reset");
_Static_assert(sizeof(struct evtchn_init_control) == 24, "evtchn_init_control");
_Static_assert(sizeof(struct evtchn_expand_array) == 8, "evtchn_expand_array");
_Static_assert(sizeof(struct evtchn_set_priority) == 8, "evtchn_set_priority");
_Static_assert(sizeof(struct evtchn_op) == 28, "evtchn_op");
_Static_assert(sizeof(struct evtchn_fifo_control_block) == 72, "evtchn_fifo_control_block");
#endif
