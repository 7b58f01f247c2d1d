/*
 * sysctl: how Dom0's control tools look at and change the whole host. Versioned as domctl is.
 */
#ifndef UMXEN_PUBLIC_SYSCTL_H
#define UMXEN_PUBLIC_SYSCTL_H
#include "xen.h"
#include "domctl.h"
#include "physdev.h"

/* cffi: begin */
enum { XEN_SYSCTL_INTERFACE_VERSION = 0x15 };

enum {
    XEN_SYSCTL_readconsole = 1,
    XEN_SYSCTL_tbuf_op = 2,
    XEN_SYSCTL_physinfo = 3,
    XEN_SYSCTL_sched_id = 4,
    XEN_SYSCTL_perfc_op = 5,
    XEN_SYSCTL_getdomaininfolist = 6,
    XEN_SYSCTL_debug_keys = 7,
    XEN_SYSCTL_getcpuinfo = 8,
    XEN_SYSCTL_availheap = 9,
    XEN_SYSCTL_get_pmstat = 10,
    XEN_SYSCTL_cpu_hotplug = 11,
    XEN_SYSCTL_pm_op = 12,
    XEN_SYSCTL_page_offline_op = 14,
    XEN_SYSCTL_lockprof_op = 15,
    XEN_SYSCTL_cputopoinfo = 16,
    XEN_SYSCTL_numainfo = 17,
    XEN_SYSCTL_cpupool_op = 18,
    XEN_SYSCTL_scheduler_op = 19,
    XEN_SYSCTL_coverage_op = 20,
    XEN_SYSCTL_psr_cmt_op = 21,
    XEN_SYSCTL_pcitopoinfo = 22,
    XEN_SYSCTL_psr_alloc = 23,
    XEN_SYSCTL_get_cpu_levelling_caps = 25,
    XEN_SYSCTL_get_cpu_featureset = 26,
    XEN_SYSCTL_livepatch_op = 27,
    XEN_SYSCTL_get_cpu_policy = 29
};

struct xen_sysctl_readconsole {
    uint8_t clear;
    uint8_t incremental; /* start at `index` instead of the oldest byte */
    uint8_t pad0, pad1;
    uint32_t index; /* in and out */
    xen_guest_handle_t buffer;
    uint32_t count; /* in: room; out: bytes */
};

enum {
    XEN_SYSCTL_TBUFOP_get_info = 0,
    XEN_SYSCTL_TBUFOP_set_cpu_mask = 1,
    XEN_SYSCTL_TBUFOP_set_evt_mask = 2,
    XEN_SYSCTL_TBUFOP_set_size = 3,
    XEN_SYSCTL_TBUFOP_enable = 4,
    XEN_SYSCTL_TBUFOP_disable = 5
};

struct xen_sysctl_tbuf_op {
    uint32_t cmd;
    struct xenctl_bitmap cpu_mask;
    uint32_t evt_mask;
    uint64_t buffer_mfn;
    uint32_t size;
};

enum {
    XEN_SYSCTL_PHYSCAP_hvm = 1,
    XEN_SYSCTL_PHYSCAP_pv = 2,
    XEN_SYSCTL_PHYSCAP_directio = 4,
    XEN_SYSCTL_PHYSCAP_hap = 8,
    XEN_SYSCTL_PHYSCAP_shadow = 16,
    XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share = 32,
    XEN_SYSCTL_PHYSCAP_vmtrace = 64,
    XEN_SYSCTL_PHYSCAP_vpmu = 128,
    XEN_SYSCTL_PHYSCAP_gnttab_v1 = 256,
    XEN_SYSCTL_PHYSCAP_gnttab_v2 = 512,
    XEN_SYSCTL_PHYSCAP_MAX = 512
};

struct xen_sysctl_physinfo {
    uint32_t threads_per_core;
    uint32_t cores_per_socket;
    uint32_t nr_cpus;
    uint32_t max_cpu_id;
    uint32_t nr_nodes;
    uint32_t max_node_id;
    uint32_t cpu_khz;
    uint32_t capabilities; /* XEN_SYSCTL_PHYSCAP_* */
    uint32_t arch_capabilities;
    uint32_t pad;
    uint64_t total_pages;
    uint64_t free_pages;
    uint64_t scrub_pages;
    uint64_t outstanding_pages;
    uint64_t max_mfn;
    uint32_t hw_cap[8];
};

struct xen_sysctl_sched_id {
    uint32_t sched_id; /* XEN_SCHEDULER_* */
};

struct xen_sysctl_getdomaininfolist {
    domid_t first_domain;
    uint32_t max_domains;
    xen_guest_handle_t buffer; /* struct xen_domctl_getdomaininfo[max_domains] */
    uint32_t num_domains;      /* out */
};

struct xen_sysctl_debug_keys {
    xen_guest_handle_t keys;
    uint32_t nr_keys;
};

struct xen_sysctl_cpuinfo {
    uint64_t idletime; /* ns */
};

struct xen_sysctl_getcpuinfo {
    uint32_t max_cpus;
    xen_guest_handle_t info; /* struct xen_sysctl_cpuinfo[max_cpus] */
    uint32_t nr_cpus;        /* out */
};

struct xen_sysctl_availheap {
    uint32_t min_bitwidth;
    uint32_t max_bitwidth;
    int32_t node; /* -1: all */
    uint64_t avail_bytes;
};

enum {
    XEN_SYSCTL_CPU_HOTPLUG_ONLINE = 0,
    XEN_SYSCTL_CPU_HOTPLUG_OFFLINE = 1,
    XEN_SYSCTL_CPU_HOTPLUG_SMT_ENABLE = 2,
    XEN_SYSCTL_CPU_HOTPLUG_SMT_DISABLE = 3
};

struct xen_sysctl_cpu_hotplug {
    uint32_t cpu;
    uint32_t op;
};

#define XEN_INVALID_CORE_ID 0xffffffffU
#define XEN_INVALID_SOCKET_ID 0xffffffffU
#define XEN_INVALID_NODE_ID 0xffffffffU
#define XEN_INVALID_MEM_SZ 0xffffffffU
#define XEN_INVALID_NODE_DIST 0xffffffffU
#define XEN_INVALID_DEV 0xfffffffeU

struct xen_sysctl_cputopo {
    uint32_t core;
    uint32_t socket;
    uint32_t node;
};

struct xen_sysctl_cputopoinfo {
    uint32_t num_cpus;
    xen_guest_handle_t cputopo; /* struct xen_sysctl_cputopo[num_cpus]; null: ask for the number */
};

struct xen_sysctl_meminfo {
    uint64_t memsize;
    uint64_t memfree;
};

struct xen_sysctl_numainfo {
    uint32_t num_nodes;
    xen_guest_handle_t meminfo;  /* struct xen_sysctl_meminfo[num_nodes] */
    xen_guest_handle_t distance; /* uint32_t[num_nodes * num_nodes] */
};

struct xen_sysctl_pcitopoinfo {
    uint32_t num_devs;
    xen_guest_handle_t devs;  /* struct physdev_pci_device[num_devs] */
    xen_guest_handle_t nodes; /* uint32_t[num_devs] */
};

enum {
    XEN_SYSCTL_CPUPOOL_OP_CREATE = 1,
    XEN_SYSCTL_CPUPOOL_OP_DESTROY = 2,
    XEN_SYSCTL_CPUPOOL_OP_INFO = 3,
    XEN_SYSCTL_CPUPOOL_OP_ADDCPU = 4,
    XEN_SYSCTL_CPUPOOL_OP_RMCPU = 5,
    XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN = 6,
    XEN_SYSCTL_CPUPOOL_OP_FREEINFO = 7
};
#define XEN_SYSCTL_CPUPOOL_PAR_ANY 0xffffffffU

struct xen_sysctl_cpupool_op {
    uint32_t op;
    uint32_t cpupool_id;
    uint32_t sched_id;
    uint32_t domid;
    uint32_t cpu;
    uint32_t n_dom;
    struct xenctl_bitmap cpumap;
};

enum {
    XEN_SYSCTL_SCHED_RATELIMIT_MAX = 500000, /* us */
    XEN_SYSCTL_SCHED_RATELIMIT_MIN = 100,
    XEN_SYSCTL_CSCHED_TSLICE_MAX = 1000, /* ms */
    XEN_SYSCTL_CSCHED_TSLICE_MIN = 1,
    XEN_SYSCTL_CSCHED_MGR_DLY_MAX_US = 100000
};

struct xen_sysctl_credit_schedule {
    uint32_t tslice_ms;
    uint32_t ratelimit_us;
    uint32_t vcpu_migr_delay_us;
};

struct xen_sysctl_credit2_schedule {
    uint32_t ratelimit_us;
};

struct xen_sysctl_sched_arinc653 {
    xen_guest_handle_t schedule;
};

enum { XEN_SYSCTL_SCHEDOP_putinfo = 0, XEN_SYSCTL_SCHEDOP_getinfo = 1 };

struct xen_sysctl_scheduler_op {
    uint32_t cpupool_id;
    uint32_t sched_id;
    uint32_t cmd; /* XEN_SYSCTL_SCHEDOP_* */
    union {
        struct xen_sysctl_sched_arinc653 sched_arinc653;
        struct xen_sysctl_credit_schedule sched_credit;
        struct xen_sysctl_credit2_schedule sched_credit2;
    } u;
};

struct xen_sysctl_cpu_levelling_caps {
    uint32_t caps;
};

enum {
    XEN_SYSCTL_cpu_featureset_raw = 0,
    XEN_SYSCTL_cpu_featureset_host = 1,
    XEN_SYSCTL_cpu_featureset_pv = 2,
    XEN_SYSCTL_cpu_featureset_hvm = 3,
    XEN_SYSCTL_cpu_featureset_pv_max = 4,
    XEN_SYSCTL_cpu_featureset_hvm_max = 5
};

struct xen_sysctl_cpu_featureset {
    uint32_t index; /* XEN_SYSCTL_cpu_featureset_* */
    uint32_t nr_features;
    xen_guest_handle_t features; /* uint32_t[nr_features]; null: ask for the number */
};

enum {
    XEN_SYSCTL_cpu_policy_raw = 0,
    XEN_SYSCTL_cpu_policy_host = 1,
    XEN_SYSCTL_cpu_policy_pv_max = 2,
    XEN_SYSCTL_cpu_policy_hvm_max = 3,
    XEN_SYSCTL_cpu_policy_pv_default = 4,
    XEN_SYSCTL_cpu_policy_hvm_default = 5
};

struct xen_sysctl_cpu_policy {
    uint32_t index; /* XEN_SYSCTL_cpu_policy_* */
    uint32_t nr_leaves;
    uint32_t nr_msrs;
    uint32_t _rsvd;
    xen_guest_handle_t leaves; /* struct xen_cpuid_leaf[nr_leaves] */
    xen_guest_handle_t msrs;   /* struct xen_msr_entry[nr_msrs] */
};

struct xen_sysctl {
    uint32_t cmd;
    uint32_t interface_version;
    union {
        struct xen_sysctl_readconsole readconsole;
        struct xen_sysctl_tbuf_op tbuf_op;
        struct xen_sysctl_physinfo physinfo;
        struct xen_sysctl_cputopoinfo cputopoinfo;
        struct xen_sysctl_pcitopoinfo pcitopoinfo;
        struct xen_sysctl_numainfo numainfo;
        struct xen_sysctl_sched_id sched_id;
        struct xen_sysctl_getdomaininfolist getdomaininfolist;
        struct xen_sysctl_debug_keys debug_keys;
        struct xen_sysctl_getcpuinfo getcpuinfo;
        struct xen_sysctl_availheap availheap;
        struct xen_sysctl_cpu_hotplug cpu_hotplug;
        struct xen_sysctl_cpupool_op cpupool_op;
        struct xen_sysctl_scheduler_op scheduler_op;
        struct xen_sysctl_cpu_levelling_caps cpu_levelling_caps;
        struct xen_sysctl_cpu_featureset cpu_featureset;
        struct xen_sysctl_cpu_policy cpu_policy;
        uint8_t pad[128];
    } u;
};
/* cffi: end */

_Static_assert(sizeof(struct xen_sysctl_readconsole) == 24, "xen_sysctl_readconsole");
_Static_assert(sizeof(struct xen_sysctl_tbuf_op) == 48, "xen_sysctl_tbuf_op");
_Static_assert(sizeof(struct xen_sysctl_physinfo) == 112, "xen_sysctl_physinfo");
_Static_assert(sizeof(struct xen_sysctl_sched_id) == 4, "xen_sysctl_sched_id");
_Static_assert(sizeof(struct xen_sysctl_getdomaininfolist) == 24, "xen_sysctl_getdomaininfolist");
_Static_assert(sizeof(struct xen_sysctl_debug_keys) == 16, "xen_sysctl_debug_keys");
_Static_assert(sizeof(struct xen_sysctl_cpuinfo) == 8, "xen_sysctl_cpuinfo");
_Static_assert(sizeof(struct xen_sysctl_getcpuinfo) == 24, "xen_sysctl_getcpuinfo");
_Static_assert(sizeof(struct xen_sysctl_availheap) == 24, "xen_sysctl_availheap");
_Static_assert(sizeof(struct xen_sysctl_cpu_hotplug) == 8, "xen_sysctl_cpu_hotplug");
_Static_assert(sizeof(struct xen_sysctl_cputopo) == 12, "xen_sysctl_cputopo");
_Static_assert(sizeof(struct xen_sysctl_cputopoinfo) == 16, "xen_sysctl_cputopoinfo");
_Static_assert(sizeof(struct xen_sysctl_meminfo) == 16, "xen_sysctl_meminfo");
_Static_assert(sizeof(struct xen_sysctl_numainfo) == 24, "xen_sysctl_numainfo");
_Static_assert(sizeof(struct xen_sysctl_pcitopoinfo) == 24, "xen_sysctl_pcitopoinfo");
_Static_assert(sizeof(struct xen_sysctl_cpupool_op) == 40, "xen_sysctl_cpupool_op");
_Static_assert(sizeof(struct xen_sysctl_credit_schedule) == 12, "xen_sysctl_credit_schedule");
_Static_assert(sizeof(struct xen_sysctl_credit2_schedule) == 4, "xen_sysctl_credit2_schedule");
_Static_assert(sizeof(struct xen_sysctl_sched_arinc653) == 8, "xen_sysctl_sched_arinc653");
_Static_assert(sizeof(struct xen_sysctl_scheduler_op) == 32, "xen_sysctl_scheduler_op");
_Static_assert(sizeof(struct xen_sysctl_cpu_levelling_caps) == 4, "xen_sysctl_cpu_levelling_caps");
_Static_assert(sizeof(struct xen_sysctl_cpu_featureset) == 16, "xen_sysctl_cpu_featureset");
_Static_assert(sizeof(struct xen_sysctl_cpu_policy) == 32, "xen_sysctl_cpu_policy");
_Static_assert(sizeof(struct xen_sysctl) == 136, "xen_sysctl");
_Static_assert(offsetof(struct xen_sysctl, u) == 8, "xen_sysctl.u");
#endif
