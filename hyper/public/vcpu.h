/*
 * vcpu_op: start and stop a domain's other vCPUs, its timers, and the areas it wants kept up to date.
 */
#ifndef UMXEN_PUBLIC_VCPU_H
#define UMXEN_PUBLIC_VCPU_H
#include "xen.h"

/* cffi: begin */
enum {
    VCPUOP_initialise = 0, /* argument: struct vcpu_guest_context */
    VCPUOP_up = 1,
    VCPUOP_down = 2,
    VCPUOP_is_up = 3,
    VCPUOP_get_runstate_info = 4,
    VCPUOP_register_runstate_memory_area = 5,
    VCPUOP_set_periodic_timer = 6,
    VCPUOP_stop_periodic_timer = 7,
    VCPUOP_set_singleshot_timer = 8,
    VCPUOP_stop_singleshot_timer = 9,
    VCPUOP_register_vcpu_info = 10,
    VCPUOP_send_nmi = 11,
    VCPUOP_get_physid = 12,
    VCPUOP_register_vcpu_time_memory_area = 13
};

enum { RUNSTATE_running = 0, RUNSTATE_runnable = 1, RUNSTATE_blocked = 2, RUNSTATE_offline = 3 };

struct vcpu_runstate_info {
    int32_t state;
    uint64_t state_entry_time; /* ns | XEN_RUNSTATE_UPDATE while being written, if the guest asked for it */
    uint64_t time[4];          /* ns spent in each RUNSTATE_* */
};
#define XEN_RUNSTATE_UPDATE 0x8000000000000000ULL

struct vcpu_register_runstate_memory_area {
    union {
        xen_guest_handle_t h;
        uint64_t v;
        uint64_t p;
    } addr;
};

struct vcpu_set_periodic_timer {
    uint64_t period_ns;
};

enum { VCPU_SSHOTTMR_future = 1 }; /* a time in the past is refused with XEN_ETIME */

struct vcpu_set_singleshot_timer {
    uint64_t timeout_abs_ns;
    uint32_t flags;
};

struct vcpu_register_vcpu_info {
    uint64_t mfn;
    uint32_t offset; /* bytes; the structure may not cross the page */
    uint32_t rsvd;
};

struct vcpu_get_physid {
    uint64_t phys_id;
};

struct vcpu_register_time_memory_area {
    union {
        xen_guest_handle_t h;
        uint64_t v;
        uint64_t p;
    } addr;
};
/* cffi: end */

#define xen_vcpu_physid_to_x86_apicid(physid) ((uint32_t)(physid))
#define xen_vcpu_physid_to_x86_acpiid(physid) ((uint32_t)((physid) >> 32))

_Static_assert(sizeof(struct vcpu_runstate_info) == 48, "vcpu_runstate_info");
_Static_assert(sizeof(struct vcpu_register_runstate_memory_area) == 8, "vcpu_register_runstate_memory_area");
_Static_assert(sizeof(struct vcpu_set_periodic_timer) == 8, "vcpu_set_periodic_timer");
_Static_assert(sizeof(struct vcpu_set_singleshot_timer) == 16, "vcpu_set_singleshot_timer");
_Static_assert(sizeof(struct vcpu_register_vcpu_info) == 16, "vcpu_register_vcpu_info");
_Static_assert(sizeof(struct vcpu_get_physid) == 8, "vcpu_get_physid");
_Static_assert(sizeof(struct vcpu_register_time_memory_area) == 8, "vcpu_register_time_memory_area");
#endif
