/*
 * sched_op: a vCPU gives up its CPU, or a domain ends.
 */
#ifndef UMXEN_PUBLIC_SCHED_H
#define UMXEN_PUBLIC_SCHED_H
#if defined(_PTHREAD_H) && !defined(_SCHED_H)
#error "this file stands in for libc's sched.h: use -iquote for hyper/public, not -I (see its README)"
#endif
#include "event_channel.h"

/* cffi: begin */
enum {
    SCHEDOP_yield = 0,
    SCHEDOP_block = 1, /* unmasks events, sleeps until one is pending */
    SCHEDOP_shutdown = 2,
    SCHEDOP_poll = 3,
    SCHEDOP_remote_shutdown = 4,
    SCHEDOP_shutdown_code = 5,
    SCHEDOP_watchdog = 6,
    SCHEDOP_pin_override = 7
};

enum {
    SHUTDOWN_poweroff = 0,
    SHUTDOWN_reboot = 1,
    SHUTDOWN_suspend = 2,
    SHUTDOWN_crash = 3,
    SHUTDOWN_watchdog = 4,
    SHUTDOWN_soft_reset = 5,
    SHUTDOWN_MAX = 5
};

struct sched_shutdown {
    uint32_t reason;
};

struct sched_poll {
    xen_guest_handle_t ports; /* evtchn_port_t[nr_ports] */
    uint32_t nr_ports;
    uint64_t timeout; /* absolute system time in ns, 0: never */
};

struct sched_remote_shutdown {
    domid_t domain_id;
    uint32_t reason;
};

struct sched_watchdog {
    uint32_t id;      /* 0: a new one */
    uint32_t timeout; /* seconds, 0: stop */
};

struct sched_pin_override {
    int32_t pcpu; /* negative: give it back */
};
/* cffi: end */

_Static_assert(sizeof(struct sched_shutdown) == 4, "sched_shutdown");
_Static_assert(sizeof(struct sched_poll) == 24, "sched_poll");
_Static_assert(sizeof(struct sched_remote_shutdown) == 8, "sched_remote_shutdown");
_Static_assert(sizeof(struct sched_watchdog) == 8, "sched_watchdog");
_Static_assert(sizeof(struct sched_pin_override) == 4, "sched_pin_override");
#endif
