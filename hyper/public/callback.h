/*
 * callback_op: where the hypervisor enters a PV kernel for events, failed returns, system calls and NMIs.
 */
#ifndef UMXEN_PUBLIC_CALLBACK_H
#define UMXEN_PUBLIC_CALLBACK_H
#include "xen.h"

/* cffi: begin */
enum { CALLBACKOP_register = 0, CALLBACKOP_unregister = 1 };

enum {
    CALLBACKTYPE_event = 0,
    CALLBACKTYPE_failsafe = 1,
    CALLBACKTYPE_syscall = 2,
    CALLBACKTYPE_sysenter_deprecated = 3,
    CALLBACKTYPE_nmi = 4,
    CALLBACKTYPE_sysenter = 5,
    CALLBACKTYPE_syscall32 = 7
};

enum { CALLBACKF_mask_events = 1 }; /* enter with events masked; always so for event */

struct callback_register {
    uint16_t type;
    uint16_t flags;
    xen_callback_t address;
};

struct callback_unregister {
    uint16_t type;
    uint16_t _unused;
};
/* cffi: end */

_Static_assert(sizeof(struct callback_register) == 16, "callback_register");
_Static_assert(sizeof(struct callback_unregister) == 4, "callback_unregister");
#endif
