/*
 * Hypercalls: their dispatch, and how their arguments reach guest memory.
 */
#ifndef UMXEN_HYPERCALL_H
#define UMXEN_HYPERCALL_H
#include "machine.h"

/* One caller's way in: the control socket of a connection, or a ring of it. Served by one thread at a time. */
struct hcall_channel {
    /* A preempted call goes on with changed arguments when its caller repeats it with the same ones. */
    struct continuation { bool valid; uint64_t nr, asked[6], args[6]; } continuation;
    uint64_t deadline_ns;        /* of the current call: preempted when past */
};

struct hv_conn {
    struct hv *hv;
    struct domain *domain;
    struct list link;
    uint8_t *arena;              /* set once: other threads use it without a lock */
    uint64_t arena_bytes;
    struct list grant_maps;      /* guarded by event_lock */
    uint32_t nr_port_fds;        /* the same */
    int hangup_fd;               /* an eventfd: the domain is being destroyed; -1 of Dom0 */
    struct hcall_channel socket;
    struct list rings;           /* hcall_ring.c; the control thread's */
    uint32_t nr_rings;
};

/* Who calls: a vCPU of a CPU domain, or a connection of a process domain. Exactly one is set. */
struct caller {
    struct vcpu *vcpu;
    struct hv_conn *conn;
    struct domain *domain;
    struct hcall_channel *channel; /* of conn */
};

/* The caller of the hypercall this thread is serving. Guest handles are resolved through it: virtual addresses of the
 * current vCPU's address space, or offsets in the connection's arena. */
extern __thread struct caller current_caller;

/* 0 or -XEN_EFAULT. The guest's memory is hostile and changing: copy once, check the copy, use the copy. Whether the
 * domain lock is held does not matter. */
int copy_from_guest(void *to, uint64_t from, size_t bytes);
int copy_to_guest(uint64_t to, const void *from, size_t bytes);
int clear_guest(uint64_t to, size_t bytes);

/* True when the pCPU wants the thread back: a long hypercall stops here. */
bool hypercall_preempt_check(void);
/* Answer of a call to be continued: for a vCPU the instruction is run again with these arguments; for a connection
 * it travels to the server, which calls again with the same ones (so progress must live in guest memory or an object).
 * The arguments are uint64_t each. Returns -XEN_ERESTART. */
int64_t hypercall_continue(unsigned nr, unsigned nr_args, ...);

/* One hypercall of the current caller. Called without locks. */
#define HYPERCALL_LEFT INT64_MIN /* an iret: the vCPU's registers are those of where it went, no result belongs there */
int64_t do_hypercall(uint64_t nr, const uint64_t args[6]);

/* The same as a connection: one bounded piece (conn.c). */
int64_t conn_hypercall(struct hv_conn *conn, struct hcall_channel *channel, uint64_t nr, const uint64_t args[6]);
/* Tells the processes of a domain that it ends. */
void conns_hang_up(struct domain *d);
/* The connection's domain is paused: its calls are answered -XEN_ERESTART meanwhile. */
bool conn_is_held(const struct hv_conn *conn);
/* Ends the threads of its rings and waits for them (hcall_ring.c). */
void hcall_rings_end(struct hv_conn *conn);
/* No one can change the size of this memfd any more; 0 or -1. */
int seal_size(int fd);

int64_t do_domctl(struct domain *caller, uint64_t arg);
int64_t do_sysctl(struct domain *caller, uint64_t arg);
int64_t do_sched_op(struct vcpu *curr, struct domain *caller, uint64_t cmd, uint64_t arg);
int64_t do_vcpu_op(struct vcpu *curr, uint64_t cmd, uint64_t vcpuid, uint64_t arg);
int64_t do_console_io(struct vcpu *curr, uint64_t cmd, uint64_t count, uint64_t arg);
int64_t do_xen_version(struct domain *caller, uint64_t cmd, uint64_t arg);
int64_t do_set_timer_op(struct vcpu *curr, uint64_t timeout);
int64_t do_vm_assist(struct domain *d, uint64_t cmd, uint64_t type);
#endif
