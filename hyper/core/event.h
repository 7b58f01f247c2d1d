/*
 * Event channels. Port tables of all domains are guarded by hv->event_lock; the pending and mask bits in shared_info
 * are shared with guests and touched atomically only (evtchn_2l.c).
 */
#ifndef UMXEN_EVENT_H
#define UMXEN_EVENT_H
#include "base.h"

struct hv;
struct domain;
struct vcpu;
struct hv_conn;

int evtchn_init(struct domain *d);
void evtchn_destroy(struct domain *d);
int64_t do_event_channel_op(struct vcpu *curr, struct domain *caller, struct hv_conn *conn, uint64_t cmd, uint64_t arg);
/* EVTCHNOP_send without a hypercall: from the doorbell thread and backends. */
int evtchn_send(struct domain *d, uint32_t port);
/* The doorbell of the port that `key` names was rung, if it is still that port. */
void evtchn_doorbell(struct hv *hv, uint64_t key);
/* The eventfds of a port of this connection, made at the first call. */
int evtchn_port_fds(struct hv_conn *conn, uint32_t port, int *upcall, int *doorbell);
/* A port of `d`, a process domain, that only `remote` may bind and the first process that asks for it owns. */
int evtchn_make_unbound(struct domain *d, uint16_t remote);
/* What was held while the process domain was paused: its upcalls, and what it has sent. */
void evtchn_send_held(struct domain *d);
/* Closes all ports of a dying domain. */
void evtchn_close_all(struct domain *d);
/* Raises a virq. Per-vCPU ones (VIRQ_TIMER, VIRQ_DEBUG) on `v`; global ones wherever they are bound. */
void send_vcpu_virq(struct vcpu *v, uint32_t virq);
void send_global_virq(struct hv *hv, uint32_t virq);
/* Every port a dead connection owned is closed; the other ends become unbound. */
void evtchn_close_conn(struct hv_conn *conn);
/* True when an upcall is pending and not masked. Reads shared memory without a lock. */
bool vcpu_event_pending(const struct vcpu *v);
/* 1: the port is pending; 0: not; -XEN_EINVAL: it can't be one. */
int evtchn_is_pending(struct domain *d, uint32_t port);
/* After VCPUOP_register_vcpu_info moved the info: everything may have been missed. */
void evtchn_resync(struct vcpu *v);

/* What both ABIs between us and a guest need (evtchn_2l.c). */
void vcpu_mark_events_pending(struct vcpu *v);
void evtchn_wake_pollers(struct domain *d, uint32_t port);

/* evtchn_2l.c: sets a port pending for its vCPU, sets the selector and the upcall, wakes or kicks. event_lock held. */
void evtchn_2l_set_pending(struct vcpu *v, uint32_t port);
void evtchn_2l_clear_pending(struct domain *d, uint32_t port);
void evtchn_2l_unmask(struct vcpu *v, uint32_t port);
bool evtchn_2l_is_pending(const struct domain *d, uint32_t port);

/* evtchn_fifo.c: the same, where the port has a priority and was queued somewhere before. event_lock held. */
struct evtchn_place { uint8_t priority, last_priority; uint16_t last_vcpu; };
/* False: the guest has given no page with the port's word yet. */
bool evtchn_fifo_set_pending(struct vcpu *v, uint32_t port, struct evtchn_place *at);
void evtchn_fifo_clear_pending(struct domain *d, uint32_t port);
void evtchn_fifo_unmask(struct vcpu *v, uint32_t port, struct evtchn_place *at);
bool evtchn_fifo_is_pending(const struct domain *d, uint32_t port);
/* What the guest gives, without locks; 0 or -XEN_E*. */
struct evtchn_init_control;
struct evtchn_expand_array;
int evtchn_fifo_init_control(struct vcpu *curr, struct evtchn_init_control *op);
int evtchn_fifo_expand_array(struct vcpu *curr, const struct evtchn_expand_array *op);
/* Lets go of the guest's frames; no port is delivered by this ABI any more. */
void evtchn_fifo_give_back(struct domain *d);
void evtchn_fifo_destroy(struct domain *d);
#endif
