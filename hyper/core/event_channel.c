/*
 * Event channels: the port tables of all domains and the operations on them. How a set port reaches a guest's vCPU is
 * the business of evtchn_2l.c or evtchn_fifo.c, as the guest chose; a port of a process domain has descriptors instead and
 * belongs to the connection that made it.
 *
 * A doorbell is an eventfd of which we only hear by epoll. An upcall of Dom0's is one too. One that is shared with an
 * unprivileged process could be made blocking and full, and our write would wait for ever with event_lock held: there it is
 * a socket pair, whose other half is the client's, written with MSG_DONTWAIT. Nothing is read from it: it is shut down for
 * reading, so that nothing can be left in it.
 *
 * One lock, hv->event_lock, guards every table: a send touches two domains, and sections are a few hundred ns. Nothing
 * is called under it that could wait for a vCPU to leave its guest, since such a vCPU may be waiting for this lock.
 *
 * Ports 1..4095, with FIFO 1..131071; the lowest free one is handed out. A table grows by chunks of 128 ports.
 */
#include "event.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../public/event_channel.h"
#include "hypercall.h"
#include "trace.h"

#define CHUNK_PORTS 128u
#define CLOSED_AT_ONCE 32u
#define MAX_PORT_FDS 128u /* ports of one unprivileged connection that have descriptors */

enum port_state { ECS_FREE = 0, ECS_UNBOUND, ECS_INTERDOMAIN, ECS_VIRQ, ECS_IPI };

struct evtchn {
    uint8_t state;             /* enum port_state */
    bool pending;              /* while there is no place to say so: no upcall fd, its process paused, no FIFO word yet */
    bool rung;                 /* its doorbell, while its domain is paused */
    uint16_t notify_vcpu;
    uint16_t remote_domid;     /* unbound and interdomain */
    uint16_t virq;
    uint32_t remote_port;
    struct evtchn_place place; /* FIFO */
    uint32_t generation;       /* counts the lives of this port: see doorbell keys */
    struct domain *remote;     /* interdomain; it closes the port before it goes */
    struct hv_conn *conn;      /* the owner, of ports of a process domain */
    int upcall_fd, doorbell_fd; /* -1: not made yet */
    int client_fd;             /* the half of upcall_fd that is handed out; the same for an eventfd */
};

struct evtchn_table {
    struct evtchn **chunk;
    uint32_t nr_ports;   /* how many there can be: `chunk` has room for them */
    uint32_t first_free; /* no port below is free */
};

/* ---- tables ----------------------------------------------------------------------------------------------------- */

/* Room for `nr_ports`; there may be more of it already. */
static int set_nr_ports(struct evtchn_table *t, uint32_t nr_ports)
{
    if (nr_ports <= t->nr_ports)
        return 0;
    size_t old = t->nr_ports / CHUNK_PORTS, now = nr_ports / CHUNK_PORTS;
    struct evtchn **chunk = realloc(t->chunk, now * sizeof(*chunk));
    if (!chunk)
        return -XEN_ENOMEM;
    memset(chunk + old, 0, (now - old) * sizeof(*chunk));
    t->chunk = chunk;
    t->nr_ports = nr_ports;
    return 0;
}

int evtchn_init(struct domain *d)
{
    d->evtchn = calloc(1, sizeof(*d->evtchn));
    if (!d->evtchn)
        return -XEN_ENOMEM;
    d->evtchn->first_free = 1;
    d->max_evtchn_port = EVTCHN_FIFO_NR_CHANNELS - 1;
    return set_nr_ports(d->evtchn, EVTCHN_2L_NR_CHANNELS);
}

void evtchn_destroy(struct domain *d)
{
    if (!d->evtchn)
        return;
    evtchn_fifo_destroy(d);
    for (uint32_t i = 0; i < d->evtchn->nr_ports / CHUNK_PORTS; i++)
        free(d->evtchn->chunk[i]);
    free(d->evtchn->chunk);
    free(d->evtchn);
    d->evtchn = NULL;
}

/* NULL: out of range, or in a part of the table that never was used. */
static struct evtchn *port_entry(const struct domain *d, uint32_t port)
{
    if (!port || port >= d->evtchn->nr_ports || !d->evtchn->chunk[port / CHUNK_PORTS])
        return NULL;
    return &d->evtchn->chunk[port / CHUNK_PORTS][port % CHUNK_PORTS];
}

static struct evtchn *live_port(const struct domain *d, uint32_t port)
{
    struct evtchn *chn = port_entry(d, port);
    return chn && chn->state != ECS_FREE ? chn : NULL;
}

static int grow(struct evtchn_table *t, uint32_t port)
{
    struct evtchn *chunk = calloc(CHUNK_PORTS, sizeof(*chunk));
    if (!chunk)
        return -XEN_ENOMEM;
    for (unsigned i = 0; i < CHUNK_PORTS; i++)
        chunk[i].upcall_fd = chunk[i].doorbell_fd = chunk[i].client_fd = -1;
    t->chunk[port / CHUNK_PORTS] = chunk;
    return 0;
}

static uint32_t nr_usable_ports(const struct domain *d)
{
    return d->fifo_events ? EVTCHN_FIFO_NR_CHANNELS : EVTCHN_2L_NR_CHANNELS;
}

/* The lowest free port, or -XEN_E*. It stays free until the caller gives it a state. */
static int find_free_port(struct domain *d)
{
    struct evtchn_table *t = d->evtchn;
    if (atomic_load(&d->dying))
        return -XEN_EINVAL;
    for (uint32_t port = t->first_free; port <= d->max_evtchn_port && port < nr_usable_ports(d); port++) {
        if (!t->chunk[port / CHUNK_PORTS] && grow(t, port))
            return -XEN_ENOMEM;
        if (port_entry(d, port)->state == ECS_FREE) {
            t->first_free = port;
            return (int)port;
        }
    }
    return -XEN_ENOSPC;
}

static struct evtchn *take_port(struct domain *d, int port, enum port_state state, struct hv_conn *conn)
{
    struct evtchn *chn = port_entry(d, (uint32_t)port);
    chn->state = state;
    chn->pending = chn->rung = false;
    chn->notify_vcpu = 0;
    chn->place.priority = EVTCHN_FIFO_PRIORITY_DEFAULT;
    chn->conn = d->kind == DOMAIN_PROCESS ? conn : NULL;
    chn->generation++;
    d->hv->nr_ports++;
    return chn;
}

static void close_fds(struct hv *hv, struct evtchn *chn)
{
    if (chn->doorbell_fd >= 0) {
        doorbell_unwatch(hv, chn->doorbell_fd);
        close(chn->doorbell_fd);
    }
    if (chn->client_fd >= 0 && chn->client_fd != chn->upcall_fd)
        close(chn->client_fd);
    if (chn->upcall_fd >= 0)
        close(chn->upcall_fd);
    chn->upcall_fd = chn->doorbell_fd = chn->client_fd = -1;
}

static void free_port(struct domain *d, uint32_t port)
{
    struct evtchn *chn = port_entry(d, port);
    if (chn->upcall_fd >= 0 && chn->conn)
        chn->conn->nr_port_fds--;
    close_fds(d->hv, chn);
    chn->state = ECS_FREE;
    chn->conn = NULL;
    chn->remote = NULL;
    if (port < d->evtchn->first_free)
        d->evtchn->first_free = port;
    if (d->kind == DOMAIN_PV && d->fifo_events)
        evtchn_fifo_clear_pending(d, port);
    else if (d->kind == DOMAIN_PV)
        evtchn_2l_clear_pending(d, port);
    d->hv->nr_ports--;
}

/* ---- delivery --------------------------------------------------------------------------------------------------- */

static bool is_held(const struct domain *d) { return d->kind == DOMAIN_PROCESS && atomic_load(&d->pause_count); }

/* Neither blocks. A full buffer says that it is pending many times over. */
static void signal_upcall(const struct domain *d, const struct evtchn *chn)
{
    if (d->is_privileged)
        eventfd_write(chn->upcall_fd, 1);
    else
        send(chn->upcall_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void set_pending(struct domain *d, struct evtchn *chn, uint32_t port)
{
    trace_record(d->hv, TRACE_event, d->id, chn->notify_vcpu, port, chn->state);
    struct vcpu *v = d->vcpu[chn->notify_vcpu];
    if (d->kind == DOMAIN_PV && !v)
        return; /* not made yet: it will look at everything when it starts */
    if (d->kind == DOMAIN_PV && d->fifo_events)
        chn->pending = !evtchn_fifo_set_pending(v, port, &chn->place);
    else if (d->kind == DOMAIN_PV)
        evtchn_2l_set_pending(v, port);
    else if (chn->upcall_fd >= 0 && !is_held(d))
        signal_upcall(d, chn);
    else
        chn->pending = true;
}

static int send_locked(struct domain *d, uint32_t port)
{
    struct evtchn *chn = live_port(d, port);
    if (!chn)
        return -XEN_EINVAL;
    switch (chn->state) {
    case ECS_INTERDOMAIN:
        set_pending(chn->remote, port_entry(chn->remote, chn->remote_port), chn->remote_port);
        return 0;
    case ECS_IPI:
        set_pending(d, chn, port);
        return 0;
    case ECS_UNBOUND: /* nobody listens yet; the other side looks when it binds */
        return 0;
    default:
        return -XEN_EINVAL;
    }
}

int evtchn_send(struct domain *d, uint32_t port)
{
    lock(&d->hv->event_lock);
    int rc = send_locked(d, port);
    unlock(&d->hv->event_lock);
    return rc;
}

static void send_virq_locked(struct vcpu *v, uint32_t virq)
{
    uint32_t port = v->virq_port[virq];
    struct evtchn *chn = port ? live_port(v->domain, port) : NULL;
    if (chn)
        set_pending(v->domain, chn, port);
}

void send_vcpu_virq(struct vcpu *v, uint32_t virq)
{
    lock(&v->domain->hv->event_lock);
    send_virq_locked(v, virq);
    unlock(&v->domain->hv->event_lock);
}

void send_global_virq(struct hv *hv, uint32_t virq)
{
    lock(&hv->event_lock);
    if (hv->dom0 && hv->dom0->vcpu[0])
        send_virq_locked(hv->dom0->vcpu[0], virq);
    unlock(&hv->event_lock);
}

/* ---- file descriptors of process domains ------------------------------------------------------------------------ */

/* A doorbell's key: domid, port and the port's generation (mod 2^32). */
static uint64_t doorbell_key(const struct domain *d, uint32_t port, const struct evtchn *chn)
{
    return (uint64_t)d->id << 48 | (uint64_t)port << 32 | chn->generation;
}

static void make_upcall(const struct domain *d, struct evtchn *chn)
{
    int pair[2];
    if (d->is_privileged) {
        chn->upcall_fd = chn->client_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    } else if (!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair)) {
        shutdown(pair[0], SHUT_RD);
        chn->upcall_fd = pair[0];
        chn->client_fd = pair[1];
    }
}

static int make_fds(struct domain *d, uint32_t port, struct evtchn *chn)
{
    if (!d->is_privileged && chn->conn->nr_port_fds >= MAX_PORT_FDS)
        return -XEN_ENOSPC;
    make_upcall(d, chn);
    chn->doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (chn->upcall_fd < 0 || chn->doorbell_fd < 0 ||
        doorbell_watch(d->hv, chn->doorbell_fd, doorbell_key(d, port, chn))) {
        close_fds(d->hv, chn);
        return -XEN_EMFILE;
    }
    chn->conn->nr_port_fds++;
    if (chn->pending && !is_held(d)) {
        chn->pending = false;
        signal_upcall(d, chn);
    }
    return 0;
}

/* A port that the toolstack made for a domain is the first process's that asks for it. */
static int own_port(struct hv_conn *conn, struct evtchn *chn)
{
    if (!chn)
        return -XEN_EINVAL;
    if (!chn->conn)
        chn->conn = conn;
    return chn->conn == conn ? 0 : -XEN_EPERM;
}

int evtchn_port_fds(struct hv_conn *conn, uint32_t port, int *upcall, int *doorbell)
{
    struct domain *d = conn->domain;
    lock(&d->hv->event_lock);
    struct evtchn *chn = live_port(d, port);
    int rc = own_port(conn, chn);
    if (!rc && chn->upcall_fd < 0)
        rc = make_fds(d, port, chn);
    if (!rc) {
        *upcall = chn->client_fd;
        *doorbell = chn->doorbell_fd;
    }
    unlock(&d->hv->event_lock);
    return rc;
}

void evtchn_doorbell(struct hv *hv, uint64_t key)
{
    uint32_t port = key >> 32 & 0xffff;
    struct domain *d = get_domain(hv, NULL, key >> 48);
    if (!d)
        return;
    lock(&hv->event_lock);
    struct evtchn *chn = live_port(d, port);
    if (chn && doorbell_key(d, port, chn) == key) {
        if (is_held(d))
            chn->rung = true;
        else
            send_locked(d, port);
    }
    unlock(&hv->event_lock);
    put_domain(d);
}

/* The pause is over before the lock is taken: nothing is held any more that we don't see. */
static void send_held(struct domain *d, struct evtchn *chn, uint32_t port)
{
    if (chn->rung)
        send_locked(d, port);
    chn->rung = false;
    if (chn->pending && chn->upcall_fd >= 0) {
        chn->pending = false;
        signal_upcall(d, chn);
    }
}

void evtchn_send_held(struct domain *d)
{
    lock(&d->hv->event_lock);
    for (uint32_t port = 1; d->evtchn && !is_held(d) && port < EVTCHN_2L_NR_CHANNELS; port++)
        if (live_port(d, port))
            send_held(d, port_entry(d, port), port);
    unlock(&d->hv->event_lock);
}

/* ---- making ports ----------------------------------------------------------------------------------------------- */

static bool may_control(const struct domain *caller, const struct domain *d)
{
    return caller == d || caller->is_privileged;
}

static int alloc_unbound(struct domain *caller, struct hv_conn *conn, struct evtchn_alloc_unbound *op)
{
    struct domain *d = get_domain(caller->hv, caller, op->dom);
    if (!d)
        return -XEN_ESRCH;
    int port = -XEN_EPERM;
    if (may_control(caller, d)) {
        lock(&d->hv->event_lock);
        port = find_free_port(d);
        if (port > 0) {
            struct evtchn *chn = take_port(d, port, ECS_UNBOUND, d == caller ? conn : NULL);
            chn->remote_domid = op->remote_dom == DOMID_SELF ? caller->id : op->remote_dom;
            op->port = (uint32_t)port;
        }
        unlock(&d->hv->event_lock);
    }
    put_domain(d);
    return port < 0 ? port : 0;
}

int evtchn_make_unbound(struct domain *d, uint16_t remote)
{
    lock(&d->hv->event_lock);
    int port = find_free_port(d);
    if (port > 0)
        take_port(d, port, ECS_UNBOUND, NULL)->remote_domid = remote;
    unlock(&d->hv->event_lock);
    return port;
}

static void join(struct domain *ld, uint32_t lport, struct domain *rd, uint32_t rport)
{
    struct evtchn *l = port_entry(ld, lport), *r = port_entry(rd, rport);
    l->remote = rd;
    l->remote_domid = rd->id;
    l->remote_port = rport;
    r->state = ECS_INTERDOMAIN;
    r->remote = ld;
    r->remote_domid = ld->id;
    r->remote_port = lport;
}

static int bind_interdomain_locked(struct domain *ld, struct hv_conn *conn, struct domain *rd, uint32_t rport)
{
    int lport = find_free_port(ld);
    if (lport < 0)
        return lport;
    struct evtchn *r = live_port(rd, rport);
    if (!r || r->state != ECS_UNBOUND || r->remote_domid != ld->id)
        return -XEN_EINVAL;
    struct evtchn *l = take_port(ld, lport, ECS_INTERDOMAIN, conn);
    join(ld, (uint32_t)lport, rd, rport);
    set_pending(ld, l, (uint32_t)lport); /* what was sent before the binding would be lost */
    return lport;
}

static int bind_interdomain(struct domain *caller, struct hv_conn *conn, struct evtchn_bind_interdomain *op)
{
    struct domain *rd = get_domain(caller->hv, caller, op->remote_dom);
    if (!rd)
        return -XEN_ESRCH;
    lock(&caller->hv->event_lock);
    int lport = bind_interdomain_locked(caller, conn, rd, op->remote_port);
    unlock(&caller->hv->event_lock);
    put_domain(rd);
    if (lport < 0)
        return lport;
    op->local_port = (uint32_t)lport;
    return 0;
}

static bool virq_is_global(uint32_t virq)
{
    return virq != VIRQ_TIMER && virq != VIRQ_DEBUG && virq != VIRQ_XENOPROF && virq != VIRQ_XENPMU;
}

static int bind_virq(struct domain *caller, struct hv_conn *conn, struct evtchn_bind_virq *op)
{
    if (op->virq >= NR_VIRQS || (virq_is_global(op->virq) && op->vcpu))
        return -XEN_EINVAL;
    struct vcpu *v = domain_vcpu(caller, op->vcpu);
    if (!v)
        return -XEN_ENOENT;
    lock(&caller->hv->event_lock);
    int port = v->virq_port[op->virq] ? -XEN_EEXIST : find_free_port(caller);
    if (port > 0) {
        struct evtchn *chn = take_port(caller, port, ECS_VIRQ, conn);
        chn->notify_vcpu = (uint16_t)op->vcpu;
        chn->virq = (uint16_t)op->virq;
        v->virq_port[op->virq] = (uint32_t)port;
        op->port = (uint32_t)port;
    }
    unlock(&caller->hv->event_lock);
    return port < 0 ? port : 0;
}

static int bind_ipi(struct domain *caller, struct hv_conn *conn, struct evtchn_bind_ipi *op)
{
    if (!domain_vcpu(caller, op->vcpu))
        return -XEN_ENOENT;
    lock(&caller->hv->event_lock);
    int port = find_free_port(caller);
    if (port > 0) {
        take_port(caller, port, ECS_IPI, conn)->notify_vcpu = (uint16_t)op->vcpu;
        op->port = (uint32_t)port;
    }
    unlock(&caller->hv->event_lock);
    return port < 0 ? port : 0;
}

/* ---- closing ---------------------------------------------------------------------------------------------------- */

static void forget_virq(struct domain *d, const struct evtchn *chn, uint32_t port)
{
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->virq_port[chn->virq] == port)
            d->vcpu[i]->virq_port[chn->virq] = 0;
}

static int close_locked(struct domain *d, uint32_t port)
{
    struct evtchn *chn = live_port(d, port);
    if (!chn)
        return -XEN_EINVAL;
    if (chn->state == ECS_VIRQ)
        forget_virq(d, chn, port);
    if (chn->state == ECS_INTERDOMAIN) {
        struct evtchn *far = port_entry(chn->remote, chn->remote_port);
        if (chn->doorbell_fd >= 0) /* it may have rung unheard: once more than needed hurts nobody */
            set_pending(chn->remote, far, chn->remote_port);
        far->state = ECS_UNBOUND; /* its remote_domid is ours already: we may bind it again */
        far->remote = NULL;
    }
    free_port(d, port);
    return 0;
}

/* 0: the caller may use this port of its domain. A process may not use another's of the same domain. */
static int may_use(struct domain *d, struct hv_conn *conn, uint32_t port)
{
    struct evtchn *chn = live_port(d, port);
    return !chn ? -XEN_EINVAL : chn->conn != conn ? -XEN_EPERM : 0;
}

static int close_port(struct domain *d, struct hv_conn *conn, uint32_t port)
{
    lock(&d->hv->event_lock);
    int rc = may_use(d, conn, port);
    if (!rc)
        rc = close_locked(d, port);
    unlock(&d->hv->event_lock);
    return rc;
}

void evtchn_close_all(struct domain *d)
{
    lock(&d->hv->event_lock);
    for (uint32_t port = 1; d->evtchn && port < d->evtchn->nr_ports; port++)
        if (live_port(d, port))
            close_locked(d, port);
    d->fifo_events = false;
    unlock(&d->hv->event_lock);
}

void evtchn_close_conn(struct hv_conn *conn)
{
    struct domain *d = conn->domain;
    unsigned closed = 0;
    lock(&d->hv->event_lock);
    for (uint32_t port = 1; d->evtchn && port < d->evtchn->nr_ports; port++) {
        struct evtchn *chn = live_port(d, port);
        if (!chn || chn->conn != conn)
            continue;
        close_locked(d, port);
        if (++closed % CLOSED_AT_ONCE == 0) { /* let others through */
            unlock(&d->hv->event_lock);
            lock(&d->hv->event_lock);
        }
    }
    unlock(&d->hv->event_lock);
}

static int reset(struct domain *caller, struct hv_conn *conn, const struct evtchn_reset *op)
{
    struct domain *d = get_domain(caller->hv, caller, op->dom);
    if (!d)
        return -XEN_ESRCH;
    int rc = may_control(caller, d) ? 0 : -XEN_EPERM;
    if (!rc && conn && d == caller)
        evtchn_close_conn(conn); /* the other processes keep theirs */
    else if (!rc) {
        evtchn_close_all(d);
        evtchn_fifo_give_back(d);
    }
    put_domain(d);
    return rc;
}

/* ---- other operations ------------------------------------------------------------------------------------------- */

static void describe(const struct evtchn *chn, struct evtchn_status *op)
{
    static const uint32_t status[] = {
        [ECS_FREE] = EVTCHNSTAT_closed, [ECS_UNBOUND] = EVTCHNSTAT_unbound, [ECS_INTERDOMAIN] = EVTCHNSTAT_interdomain,
        [ECS_VIRQ] = EVTCHNSTAT_virq, [ECS_IPI] = EVTCHNSTAT_ipi,
    };
    op->status = chn ? status[chn->state] : EVTCHNSTAT_closed;
    if (!chn || chn->state == ECS_FREE)
        return;
    op->vcpu = chn->notify_vcpu;
    if (chn->state == ECS_UNBOUND) {
        op->u.unbound.dom = chn->remote_domid;
    } else if (chn->state == ECS_INTERDOMAIN) {
        op->u.interdomain.dom = chn->remote_domid;
        op->u.interdomain.port = chn->remote_port;
    } else if (chn->state == ECS_VIRQ) {
        op->u.virq = chn->virq;
    }
}

static int get_status(struct domain *caller, struct evtchn_status *op)
{
    struct domain *d = get_domain(caller->hv, caller, op->dom);
    if (!d)
        return -XEN_ESRCH;
    int rc = !may_control(caller, d) ? -XEN_EPERM : 0;
    if (!rc) {
        lock(&d->hv->event_lock);
        rc = op->port && op->port < nr_usable_ports(d) ? 0 : -XEN_EINVAL;
        if (!rc)
            describe(port_entry(d, op->port), op);
        unlock(&d->hv->event_lock);
    }
    put_domain(d);
    return rc;
}

static int bind_vcpu_locked(struct domain *d, struct hv_conn *conn, const struct evtchn_bind_vcpu *op)
{
    struct evtchn *chn = live_port(d, op->port);
    int rc = may_use(d, conn, op->port);
    if (rc)
        return rc;
    if (chn->state == ECS_IPI || (chn->state == ECS_VIRQ && !virq_is_global(chn->virq)))
        return -XEN_EINVAL;
    chn->notify_vcpu = (uint16_t)op->vcpu;
    return 0;
}

static int bind_vcpu(struct domain *d, struct hv_conn *conn, const struct evtchn_bind_vcpu *op)
{
    if (!domain_vcpu(d, op->vcpu))
        return -XEN_ENOENT;
    lock(&d->hv->event_lock);
    int rc = bind_vcpu_locked(d, conn, op);
    unlock(&d->hv->event_lock);
    return rc;
}

static int unmask(struct domain *d, struct hv_conn *conn, uint32_t port)
{
    lock(&d->hv->event_lock);
    struct evtchn *chn = live_port(d, port);
    int rc = may_use(d, conn, port);
    struct vcpu *v = !rc && d->kind == DOMAIN_PV ? d->vcpu[chn->notify_vcpu] : NULL;
    if (v && d->fifo_events)
        evtchn_fifo_unmask(v, port, &chn->place);
    else if (v)
        evtchn_2l_unmask(v, port);
    unlock(&d->hv->event_lock);
    return rc;
}

static int send_port(struct domain *d, struct hv_conn *conn, uint32_t port)
{
    lock(&d->hv->event_lock);
    int rc = may_use(d, conn, port);
    if (!rc)
        rc = send_locked(d, port);
    unlock(&d->hv->event_lock);
    return rc;
}

/* ---- the FIFO ABI ----------------------------------------------------------------------------------------------- */

/* From now on events go by words and queues; what is pending in the bits of the other ABI comes along. event_lock held. */
static int change_to_fifo(struct domain *d)
{
    if (d->fifo_events)
        return 0;
    int rc = set_nr_ports(d->evtchn, EVTCHN_FIFO_NR_CHANNELS);
    if (rc)
        return rc;
    for (uint32_t port = 1; port < EVTCHN_2L_NR_CHANNELS; port++) {
        struct evtchn *chn = live_port(d, port);
        if (chn)
            chn->pending = evtchn_2l_is_pending(d, port);
    }
    d->fifo_events = true;
    return 0;
}

static int init_control(struct vcpu *curr, struct evtchn_init_control *op)
{
    struct domain *d = curr->domain;
    int rc = evtchn_fifo_init_control(curr, op);
    if (rc)
        return rc;
    lock(&d->hv->event_lock);
    rc = change_to_fifo(d);
    unlock(&d->hv->event_lock);
    return rc;
}

/* Ports that got words by this, and are pending, are delivered now. */
static int expand_array(struct vcpu *curr, const struct evtchn_expand_array *op)
{
    struct domain *d = curr->domain;
    int rc = evtchn_fifo_expand_array(curr, op);
    lock(&d->hv->event_lock);
    for (uint32_t port = 1; !rc && d->fifo_events && port < d->evtchn->nr_ports; port++) {
        struct evtchn *chn = live_port(d, port);
        if (chn && chn->pending)
            set_pending(d, chn, port);
    }
    unlock(&d->hv->event_lock);
    return rc;
}

static int set_priority(struct domain *d, struct hv_conn *conn, const struct evtchn_set_priority *op)
{
    lock(&d->hv->event_lock);
    int rc = may_use(d, conn, op->port);
    if (!rc && op->priority > EVTCHN_FIFO_PRIORITY_MIN)
        rc = -XEN_EINVAL;
    if (!rc && !d->fifo_events)
        rc = -XEN_ENOSYS;
    if (!rc)
        port_entry(d, op->port)->place.priority = (uint8_t)op->priority;
    unlock(&d->hv->event_lock);
    return rc;
}

int evtchn_is_pending(struct domain *d, uint32_t port)
{
    lock(&d->hv->event_lock);
    int rc = !port || port >= nr_usable_ports(d) ? -XEN_EINVAL
             : d->fifo_events                    ? evtchn_fifo_is_pending(d, port)
                                                 : evtchn_2l_is_pending(d, port);
    unlock(&d->hv->event_lock);
    return rc;
}

static int64_t fifo_op(struct vcpu *curr, struct domain *d, struct hv_conn *conn, uint32_t cmd, uint64_t arg)
{
    struct evtchn_init_control control;
    struct evtchn_expand_array array;
    struct evtchn_set_priority priority;
    if (cmd == EVTCHNOP_set_priority)
        return copy_from_guest(&priority, arg, sizeof(priority)) ? -XEN_EFAULT : set_priority(d, conn, &priority);
    if (!curr) /* a process has descriptors instead */
        return -XEN_ENOSYS;
    if (cmd == EVTCHNOP_expand_array)
        return copy_from_guest(&array, arg, sizeof(array)) ? -XEN_EFAULT : expand_array(curr, &array);
    if (copy_from_guest(&control, arg, sizeof(control)))
        return -XEN_EFAULT;
    int rc = init_control(curr, &control);
    return !rc && copy_to_guest(arg, &control, sizeof(control)) ? -XEN_EFAULT : rc;
}

/* ---- the hypercall ---------------------------------------------------------------------------------------------- */

/* Operations that answer in their argument. When the answer can't be stored the port is made all the same, as in Xen. */
static int64_t op_with_answer(struct domain *d, struct hv_conn *conn, uint64_t cmd, uint64_t arg)
{
    union {
        struct evtchn_alloc_unbound alloc_unbound;
        struct evtchn_bind_interdomain bind_interdomain;
        struct evtchn_bind_virq bind_virq;
        struct evtchn_bind_ipi bind_ipi;
        struct evtchn_status status;
    } op;
    static const size_t size[] = {
        [EVTCHNOP_alloc_unbound] = sizeof(op.alloc_unbound), [EVTCHNOP_bind_interdomain] = sizeof(op.bind_interdomain),
        [EVTCHNOP_bind_virq] = sizeof(op.bind_virq),         [EVTCHNOP_bind_ipi] = sizeof(op.bind_ipi),
        [EVTCHNOP_status] = sizeof(op.status),
    };
    memset(&op, 0, sizeof(op));
    if (copy_from_guest(&op, arg, size[cmd]))
        return -XEN_EFAULT;
    int rc = cmd == EVTCHNOP_alloc_unbound      ? alloc_unbound(d, conn, &op.alloc_unbound)
             : cmd == EVTCHNOP_bind_interdomain ? bind_interdomain(d, conn, &op.bind_interdomain)
             : cmd == EVTCHNOP_bind_virq        ? bind_virq(d, conn, &op.bind_virq)
             : cmd == EVTCHNOP_bind_ipi         ? bind_ipi(d, conn, &op.bind_ipi)
                                                : get_status(d, &op.status);
    if (!rc && copy_to_guest(arg, &op, size[cmd]))
        return -XEN_EFAULT;
    return rc;
}

int64_t do_event_channel_op(struct vcpu *curr, struct domain *caller, struct hv_conn *conn, uint64_t cmd, uint64_t arg)
{
    uint32_t port;
    struct evtchn_bind_vcpu to_vcpu;
    struct evtchn_reset which;
    switch ((uint32_t)cmd) {
    case EVTCHNOP_alloc_unbound:
    case EVTCHNOP_bind_interdomain:
    case EVTCHNOP_bind_virq:
    case EVTCHNOP_bind_ipi:
    case EVTCHNOP_status:
        return op_with_answer(caller, conn, (uint32_t)cmd, arg);
    case EVTCHNOP_send:
        return copy_from_guest(&port, arg, sizeof(port)) ? -XEN_EFAULT : send_port(caller, conn, port);
    case EVTCHNOP_close:
        return copy_from_guest(&port, arg, sizeof(port)) ? -XEN_EFAULT : close_port(caller, conn, port);
    case EVTCHNOP_unmask:
        return copy_from_guest(&port, arg, sizeof(port)) ? -XEN_EFAULT : unmask(caller, conn, port);
    case EVTCHNOP_bind_vcpu:
        return copy_from_guest(&to_vcpu, arg, sizeof(to_vcpu)) ? -XEN_EFAULT : bind_vcpu(caller, conn, &to_vcpu);
    case EVTCHNOP_reset:
        return copy_from_guest(&which, arg, sizeof(which)) ? -XEN_EFAULT : reset(caller, conn, &which);
    case EVTCHNOP_init_control:
    case EVTCHNOP_expand_array:
    case EVTCHNOP_set_priority:
        return fifo_op(curr, caller, conn, (uint32_t)cmd, arg);
    case EVTCHNOP_bind_pirq: /* there are no physical interrupts */
        return -XEN_EINVAL;
    default:
        return -XEN_ENOSYS;
    }
}
