/*
 * domctl: how Dom0's control tools build, change and end one domain. Versioned: a caller built for another
 * XEN_DOMCTL_INTERFACE_VERSION is refused with XEN_EACCES. Every command number is here; union members are
 * here for the commands that are served or soon will be.
 */
#ifndef UMXEN_PUBLIC_DOMCTL_H
#define UMXEN_PUBLIC_DOMCTL_H
#include "xen.h"
#include "event_channel.h"
#include "grant_table.h"
#include "memory.h"

/* cffi: begin */
enum { XEN_DOMCTL_INTERFACE_VERSION = 0x15 };

enum {
    XEN_DOMCTL_createdomain = 1,
    XEN_DOMCTL_destroydomain = 2,
    XEN_DOMCTL_pausedomain = 3,
    XEN_DOMCTL_unpausedomain = 4,
    XEN_DOMCTL_getdomaininfo = 5,
    XEN_DOMCTL_setvcpuaffinity = 9,
    XEN_DOMCTL_shadow_op = 10,
    XEN_DOMCTL_max_mem = 11,
    XEN_DOMCTL_setvcpucontext = 12,
    XEN_DOMCTL_getvcpucontext = 13,
    XEN_DOMCTL_getvcpuinfo = 14,
    XEN_DOMCTL_max_vcpus = 15,
    XEN_DOMCTL_scheduler_op = 16,
    XEN_DOMCTL_setdomainhandle = 17,
    XEN_DOMCTL_setdebugging = 18,
    XEN_DOMCTL_irq_permission = 19,
    XEN_DOMCTL_iomem_permission = 20,
    XEN_DOMCTL_ioport_permission = 21,
    XEN_DOMCTL_hypercall_init = 22,
    XEN_DOMCTL_soft_reset_cont = 23, /* the hypervisor's own: a preempted soft_reset */
    XEN_DOMCTL_settimeoffset = 24,
    XEN_DOMCTL_getvcpuaffinity = 25,
    XEN_DOMCTL_real_mode_area = 26,
    XEN_DOMCTL_resumedomain = 27,
    XEN_DOMCTL_sendtrigger = 28,
    XEN_DOMCTL_subscribe = 29,
    XEN_DOMCTL_gethvmcontext = 33,
    XEN_DOMCTL_sethvmcontext = 34,
    XEN_DOMCTL_set_address_size = 35,
    XEN_DOMCTL_get_address_size = 36,
    XEN_DOMCTL_assign_device = 37,
    XEN_DOMCTL_bind_pt_irq = 38,
    XEN_DOMCTL_memory_mapping = 39,
    XEN_DOMCTL_ioport_mapping = 40,
    XEN_DOMCTL_set_ext_vcpucontext = 42,
    XEN_DOMCTL_get_ext_vcpucontext = 43,
    XEN_DOMCTL_set_opt_feature = 44,
    XEN_DOMCTL_test_assign_device = 45,
    XEN_DOMCTL_set_target = 46,
    XEN_DOMCTL_deassign_device = 47,
    XEN_DOMCTL_unbind_pt_irq = 48,
    XEN_DOMCTL_get_device_group = 50,
    XEN_DOMCTL_debug_op = 54,
    XEN_DOMCTL_gethvmcontext_partial = 55,
    XEN_DOMCTL_vm_event_op = 56,
    XEN_DOMCTL_mem_sharing_op = 57,
    XEN_DOMCTL_gettscinfo = 59,
    XEN_DOMCTL_settscinfo = 60,
    XEN_DOMCTL_getpageframeinfo3 = 61,
    XEN_DOMCTL_setvcpuextstate = 62,
    XEN_DOMCTL_getvcpuextstate = 63,
    XEN_DOMCTL_set_access_required = 64,
    XEN_DOMCTL_audit_p2m = 65,
    XEN_DOMCTL_set_virq_handler = 66,
    XEN_DOMCTL_set_broken_page_p2m = 67,
    XEN_DOMCTL_setnodeaffinity = 68,
    XEN_DOMCTL_getnodeaffinity = 69,
    XEN_DOMCTL_cacheflush = 71,
    XEN_DOMCTL_get_vcpu_msrs = 72,
    XEN_DOMCTL_set_vcpu_msrs = 73,
    XEN_DOMCTL_setvnumainfo = 74,
    XEN_DOMCTL_psr_cmt_op = 75,
    XEN_DOMCTL_monitor_op = 77,
    XEN_DOMCTL_psr_alloc = 78,
    XEN_DOMCTL_soft_reset = 79,
    XEN_DOMCTL_vuart_op = 81,
    XEN_DOMCTL_get_cpu_policy = 82,
    XEN_DOMCTL_set_cpu_policy = 83,
    XEN_DOMCTL_vmtrace_op = 84,
    XEN_DOMCTL_get_paging_mempool_size = 85,
    XEN_DOMCTL_set_paging_mempool_size = 86,
    XEN_DOMCTL_gdbsx_guestmemio = 1000,
    XEN_DOMCTL_gdbsx_pausevcpu = 1001,
    XEN_DOMCTL_gdbsx_unpausevcpu = 1002,
    XEN_DOMCTL_gdbsx_domstatus = 1003
};

/* createdomain: xen_domctl.domain is the id wanted, or 0 or >= DOMID_FIRST_RESERVED for any; the id comes
 * back in the same place. */
enum {
    XEN_DOMCTL_CDF_hvm = 1,
    XEN_DOMCTL_CDF_hap = 2,
    XEN_DOMCTL_CDF_s3_integrity = 4,
    XEN_DOMCTL_CDF_oos_off = 8,
    XEN_DOMCTL_CDF_xs_domain = 16,
    XEN_DOMCTL_CDF_iommu = 32,
    XEN_DOMCTL_CDF_nested_virt = 64,
    XEN_DOMCTL_CDF_vpmu = 128,
    XEN_DOMCTL_CDF_MAX = 128,
    XEN_DOMCTL_IOMMU_no_sharept = 1,
    XEN_DOMCTL_IOMMU_MAX = 1,
    XEN_DOMCTL_GRANT_version_mask = 0xf
};

struct xen_domctl_createdomain {
    uint32_t ssidref;
    xen_domain_handle_t handle;
    uint32_t flags; /* XEN_DOMCTL_CDF_* */
    uint32_t iommu_opts;
    uint32_t max_vcpus;
    uint32_t max_evtchn_port;
    int32_t max_grant_frames;    /* negative: the host's default */
    int32_t max_maptrack_frames; /* likewise */
    uint32_t grant_opts;         /* highest grant table version */
    uint32_t vmtrace_size;
    uint32_t cpupool_id;
    struct xen_arch_domainconfig arch;
};

enum {
    XEN_DOMINF_dying = 1,
    XEN_DOMINF_hvm_guest = 2,
    XEN_DOMINF_shutdown = 4,
    XEN_DOMINF_paused = 8,
    XEN_DOMINF_blocked = 16,
    XEN_DOMINF_running = 32,
    XEN_DOMINF_debugged = 64,
    XEN_DOMINF_xs_domain = 128,
    XEN_DOMINF_hap = 256,
    XEN_DOMINF_shutdownmask = 255, /* flags >> shutdownshift & shutdownmask: SHUTDOWN_* */
    XEN_DOMINF_shutdownshift = 16
};
#define XEN_INVALID_MAX_VCPU_ID 0xffffffffU

/* Answers for the first domain with an id >= the one asked. */
struct xen_domctl_getdomaininfo {
    domid_t domain;
    uint16_t pad1;
    uint32_t flags; /* XEN_DOMINF_* */
    uint64_t tot_pages;
    uint64_t max_pages;
    uint64_t outstanding_pages;
    uint64_t shr_pages;
    uint64_t paged_pages;
    uint64_t shared_info_frame; /* gmfn */
    uint64_t cpu_time;          /* ns, all vCPUs */
    uint32_t nr_online_vcpus;
    uint32_t max_vcpu_id;
    uint32_t ssidref;
    xen_domain_handle_t handle;
    uint32_t cpupool;
    uint8_t gpaddr_bits;
    uint8_t pad2[7];
    struct xen_arch_domainconfig arch_config;
};

/* getpageframeinfo3 replaces each frame number of the array by one of these. */
#define XEN_DOMCTL_PFINFO_LTAB_SHIFT 28
#define XEN_DOMCTL_PFINFO_NOTAB 0x00000000U
#define XEN_DOMCTL_PFINFO_L1TAB 0x10000000U
#define XEN_DOMCTL_PFINFO_L2TAB 0x20000000U
#define XEN_DOMCTL_PFINFO_L3TAB 0x30000000U
#define XEN_DOMCTL_PFINFO_L4TAB 0x40000000U
#define XEN_DOMCTL_PFINFO_LTABTYPE_MASK 0x70000000U
#define XEN_DOMCTL_PFINFO_LPINTAB 0x80000000U
#define XEN_DOMCTL_PFINFO_XTAB 0xf0000000U
#define XEN_DOMCTL_PFINFO_XALLOC 0xe0000000U
#define XEN_DOMCTL_PFINFO_BROKEN 0xd0000000U
#define XEN_DOMCTL_PFINFO_LTAB_MASK 0xf0000000U

struct xen_domctl_getpageframeinfo3 {
    uint64_t num;
    xen_guest_handle_t array; /* xen_pfn_t[num] */
};

enum {
    XEN_DOMCTL_SHADOW_OP_OFF = 0,
    XEN_DOMCTL_SHADOW_OP_ENABLE_TEST = 1,
    XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY = 2,
    XEN_DOMCTL_SHADOW_OP_CLEAN = 11, /* read the dirty log and reset it */
    XEN_DOMCTL_SHADOW_OP_PEEK = 12,
    XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION = 30,
    XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION = 31,
    XEN_DOMCTL_SHADOW_OP_ENABLE = 32,
    XEN_DOMCTL_SHADOW_ENABLE_REFCOUNT = 2,
    XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY = 4,
    XEN_DOMCTL_SHADOW_ENABLE_TRANSLATE = 8,
    XEN_DOMCTL_SHADOW_ENABLE_EXTERNAL = 16,
    XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL = 1
};

struct xen_domctl_shadow_op_stats {
    uint32_t fault_count;
    uint32_t dirty_count;
};

struct xen_domctl_shadow_op {
    uint32_t op;
    uint32_t mode;
    uint32_t mb;
    xen_guest_handle_t dirty_bitmap;
    uint64_t pages;
    struct xen_domctl_shadow_op_stats stats;
};

struct xen_domctl_max_mem {
    uint64_t max_memkb;
};

struct xen_domctl_vcpucontext {
    uint32_t vcpu;
    xen_guest_handle_t ctxt; /* struct vcpu_guest_context */
};

struct xen_domctl_getvcpuinfo {
    uint32_t vcpu;
    uint8_t online;
    uint8_t blocked;
    uint8_t running;
    uint64_t cpu_time; /* ns */
    uint32_t cpu;      /* where it runs or ran last */
};

struct xen_domctl_nodeaffinity {
    struct xenctl_bitmap nodemap;
};

enum { XEN_VCPUAFFINITY_HARD = 1, XEN_VCPUAFFINITY_SOFT = 2, XEN_VCPUAFFINITY_FORCE = 4 };

struct xen_domctl_vcpuaffinity {
    uint32_t vcpu;
    uint32_t flags; /* XEN_VCPUAFFINITY_* */
    struct xenctl_bitmap cpumap_hard;
    struct xenctl_bitmap cpumap_soft;
};

struct xen_domctl_max_vcpus {
    uint32_t max;
};

enum {
    XEN_SCHEDULER_CREDIT = 5,
    XEN_SCHEDULER_CREDIT2 = 6,
    XEN_SCHEDULER_ARINC653 = 7,
    XEN_SCHEDULER_RTDS = 8,
    XEN_SCHEDULER_NULL = 9
};

struct xen_domctl_sched_credit {
    uint16_t weight;
    uint16_t cap; /* percent of one CPU, 0: none */
};

struct xen_domctl_sched_credit2 {
    uint16_t weight;
    uint16_t cap;
};

enum { XEN_DOMCTL_SCHEDRT_extra = 1 };

struct xen_domctl_sched_rtds {
    uint32_t period; /* us */
    uint32_t budget; /* us */
    uint32_t flags;
};

struct xen_domctl_schedparam_vcpu {
    union {
        struct xen_domctl_sched_credit credit;
        struct xen_domctl_sched_credit2 credit2;
        struct xen_domctl_sched_rtds rtds;
    } u;
    uint32_t vcpuid;
};

enum {
    XEN_DOMCTL_SCHEDOP_putinfo = 0,
    XEN_DOMCTL_SCHEDOP_getinfo = 1,
    XEN_DOMCTL_SCHEDOP_putvcpuinfo = 2,
    XEN_DOMCTL_SCHEDOP_getvcpuinfo = 3
};

struct xen_domctl_scheduler_op {
    uint32_t sched_id; /* XEN_SCHEDULER_* */
    uint32_t cmd;      /* XEN_DOMCTL_SCHEDOP_* */
    union {
        struct xen_domctl_sched_credit credit;
        struct xen_domctl_sched_credit2 credit2;
        struct xen_domctl_sched_rtds rtds;
        struct {
            xen_guest_handle_t vcpus; /* struct xen_domctl_schedparam_vcpu[nr_vcpus] */
            uint32_t nr_vcpus;
            uint32_t padding;
        } v;
    } u;
};

struct xen_domctl_setdomainhandle {
    xen_domain_handle_t handle;
};

struct xen_domctl_setdebugging {
    uint8_t enable;
};

struct xen_domctl_irq_permission {
    uint32_t pirq;
    uint8_t allow_access;
    uint8_t pad[3];
};

struct xen_domctl_iomem_permission {
    uint64_t first_mfn;
    uint64_t nr_mfns;
    uint8_t allow_access;
};

struct xen_domctl_ioport_permission {
    uint32_t first_port;
    uint32_t nr_ports;
    uint8_t allow_access;
};

struct xen_domctl_hypercall_init {
    uint64_t gmfn; /* the frame to fill with hypercall stubs */
};

struct xen_domctl_settimeoffset {
    int64_t time_offset_seconds;
};

struct xen_domctl_hvmcontext {
    uint32_t size;
    xen_guest_handle_t buffer; /* null: ask for the size */
};

struct xen_domctl_hvmcontext_partial {
    uint32_t type;
    uint32_t instance;
    uint64_t bufsz;
    xen_guest_handle_t buffer;
};

struct xen_domctl_address_size {
    uint32_t size; /* bits */
};

enum {
    XEN_DOMCTL_SENDTRIGGER_NMI = 0,
    XEN_DOMCTL_SENDTRIGGER_RESET = 1,
    XEN_DOMCTL_SENDTRIGGER_INIT = 2,
    XEN_DOMCTL_SENDTRIGGER_POWER = 3,
    XEN_DOMCTL_SENDTRIGGER_SLEEP = 4
};

struct xen_domctl_sendtrigger {
    uint32_t trigger;
    uint32_t vcpu;
};

struct hvm_vmce_vcpu {
    uint64_t caps;
    uint64_t mci_ctl2_bank0;
    uint64_t mci_ctl2_bank1;
    uint64_t mcg_ext_ctl;
};

struct xen_domctl_ext_vcpucontext {
    uint32_t vcpu;
    uint32_t size; /* get: how much of this is filled in; set: how much to take */
    uint64_t syscall32_callback_eip;
    uint64_t sysenter_callback_eip;
    uint16_t syscall32_callback_cs;
    uint16_t sysenter_callback_cs;
    uint8_t syscall32_disables_events;
    uint8_t sysenter_disables_events;
    union {
        uint64_t mcg_cap;
        struct hvm_vmce_vcpu vmce;
    };
};

struct xen_domctl_set_target {
    domid_t target;
};

struct xen_domctl_cpu_policy {
    uint32_t nr_leaves;
    uint32_t nr_msrs;
    xen_guest_handle_t leaves; /* struct xen_cpuid_leaf[nr_leaves] */
    xen_guest_handle_t msrs;   /* struct xen_msr_entry[nr_msrs] */
    uint32_t err_leaf, err_subleaf, err_msr;
};

struct xen_domctl_subscribe {
    uint32_t port;
};

enum { XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF = 0, XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON = 1 };

struct xen_domctl_debug_op {
    uint32_t op;
    uint32_t vcpu;
};

struct xen_domctl_tsc_info {
    uint32_t tsc_mode;
    uint32_t gtsc_khz;
    uint32_t incarnation;
    uint32_t pad;
    uint64_t elapsed_nsec;
};

struct xen_domctl_gdbsx_memio {
    uint64_t pgd3val; /* 0: the current address space */
    uint64_t gva;
    uint64_t uva;
    uint32_t len;
    uint8_t gwr;     /* 1: write to the guest */
    uint32_t remain; /* out: bytes not done */
};

struct xen_domctl_gdbsx_pauseunp_vcpu {
    uint32_t vcpu;
};

struct xen_domctl_gdbsx_domstatus {
    uint8_t paused;
    uint32_t vcpu_id;
    uint32_t vcpu_ev;
};

struct xen_domctl_audit_p2m {
    uint64_t orphans;
    uint64_t m2p_bad;
    uint64_t p2m_bad;
};

struct xen_domctl_set_virq_handler {
    uint32_t virq;
};

struct xen_domctl_vcpuextstate {
    uint32_t vcpu;
    uint64_t xfeature_mask;
    uint64_t size;
    xen_guest_handle_t buffer;
};

struct xen_domctl_set_access_required {
    uint8_t access_required;
};

struct xen_domctl_cacheflush {
    xen_pfn_t start_pfn, nr_pfns;
};

struct xen_domctl_paging_mempool {
    uint64_t size; /* bytes */
};

struct xen_domctl_vcpu_msr {
    uint32_t index;
    uint32_t reserved;
    uint64_t value;
};

struct xen_domctl_vcpu_msrs {
    uint32_t vcpu;
    uint32_t msr_count;
    xen_guest_handle_t msrs; /* struct xen_domctl_vcpu_msr[msr_count]; null: ask for the count */
};

struct xen_domctl_vnuma {
    uint32_t nr_vnodes;
    uint32_t nr_vmemranges;
    uint32_t nr_vcpus;
    uint32_t pad;
    xen_guest_handle_t vdistance;
    xen_guest_handle_t vcpu_to_vnode;
    xen_guest_handle_t vnode_to_pnode;
    xen_guest_handle_t vmemrange;
};

struct xen_domctl {
    uint32_t cmd;
    uint32_t interface_version;
    domid_t domain;
    uint16_t _pad[3];
    union {
        struct xen_domctl_createdomain createdomain;
        struct xen_domctl_getdomaininfo getdomaininfo;
        struct xen_domctl_getpageframeinfo3 getpageframeinfo3;
        struct xen_domctl_nodeaffinity nodeaffinity;
        struct xen_domctl_vcpuaffinity vcpuaffinity;
        struct xen_domctl_shadow_op shadow_op;
        struct xen_domctl_max_mem max_mem;
        struct xen_domctl_vcpucontext vcpucontext;
        struct xen_domctl_getvcpuinfo getvcpuinfo;
        struct xen_domctl_max_vcpus max_vcpus;
        struct xen_domctl_scheduler_op scheduler_op;
        struct xen_domctl_setdomainhandle setdomainhandle;
        struct xen_domctl_setdebugging setdebugging;
        struct xen_domctl_irq_permission irq_permission;
        struct xen_domctl_iomem_permission iomem_permission;
        struct xen_domctl_ioport_permission ioport_permission;
        struct xen_domctl_hypercall_init hypercall_init;
        struct xen_domctl_settimeoffset settimeoffset;
        struct xen_domctl_tsc_info tsc_info;
        struct xen_domctl_hvmcontext hvmcontext;
        struct xen_domctl_hvmcontext_partial hvmcontext_partial;
        struct xen_domctl_address_size address_size;
        struct xen_domctl_sendtrigger sendtrigger;
        struct xen_domctl_ext_vcpucontext ext_vcpucontext;
        struct xen_domctl_set_target set_target;
        struct xen_domctl_subscribe subscribe;
        struct xen_domctl_debug_op debug_op;
        struct xen_domctl_cpu_policy cpu_policy;
        struct xen_domctl_vcpuextstate vcpuextstate;
        struct xen_domctl_vcpu_msrs vcpu_msrs;
        struct xen_domctl_set_access_required access_required;
        struct xen_domctl_audit_p2m audit_p2m;
        struct xen_domctl_set_virq_handler set_virq_handler;
        struct xen_domctl_gdbsx_memio gdbsx_guest_memio;
        struct xen_domctl_cacheflush cacheflush;
        struct xen_domctl_gdbsx_pauseunp_vcpu gdbsx_pauseunp_vcpu;
        struct xen_domctl_gdbsx_domstatus gdbsx_domstatus;
        struct xen_domctl_vnuma vnuma;
        struct xen_domctl_paging_mempool paging_mempool;
        uint8_t pad[128];
    } u;
};
/* cffi: end */

#define XEN_DOMCTL_GRANT_version(v) ((v) & XEN_DOMCTL_GRANT_version_mask)

_Static_assert(sizeof(struct xen_domctl_createdomain) == 64, "xen_domctl_createdomain");
_Static_assert(sizeof(struct xen_domctl_getdomaininfo) == 112, "xen_domctl_getdomaininfo");
_Static_assert(sizeof(struct xen_domctl_getpageframeinfo3) == 16, "xen_domctl_getpageframeinfo3");
_Static_assert(sizeof(struct xen_domctl_shadow_op_stats) == 8, "xen_domctl_shadow_op_stats");
_Static_assert(sizeof(struct xen_domctl_shadow_op) == 40, "xen_domctl_shadow_op");
_Static_assert(sizeof(struct xen_domctl_max_mem) == 8, "xen_domctl_max_mem");
_Static_assert(sizeof(struct xen_domctl_vcpucontext) == 16, "xen_domctl_vcpucontext");
_Static_assert(sizeof(struct xen_domctl_getvcpuinfo) == 24, "xen_domctl_getvcpuinfo");
_Static_assert(sizeof(struct xen_domctl_nodeaffinity) == 16, "xen_domctl_nodeaffinity");
_Static_assert(sizeof(struct xen_domctl_vcpuaffinity) == 40, "xen_domctl_vcpuaffinity");
_Static_assert(sizeof(struct xen_domctl_max_vcpus) == 4, "xen_domctl_max_vcpus");
_Static_assert(sizeof(struct xen_domctl_sched_credit) == 4, "xen_domctl_sched_credit");
_Static_assert(sizeof(struct xen_domctl_sched_credit2) == 4, "xen_domctl_sched_credit2");
_Static_assert(sizeof(struct xen_domctl_sched_rtds) == 12, "xen_domctl_sched_rtds");
_Static_assert(sizeof(struct xen_domctl_schedparam_vcpu) == 16, "xen_domctl_schedparam_vcpu");
_Static_assert(sizeof(struct xen_domctl_scheduler_op) == 24, "xen_domctl_scheduler_op");
_Static_assert(sizeof(struct xen_domctl_setdomainhandle) == 16, "xen_domctl_setdomainhandle");
_Static_assert(sizeof(struct xen_domctl_setdebugging) == 1, "xen_domctl_setdebugging");
_Static_assert(sizeof(struct xen_domctl_irq_permission) == 8, "xen_domctl_irq_permission");
_Static_assert(sizeof(struct xen_domctl_iomem_permission) == 24, "xen_domctl_iomem_permission");
_Static_assert(sizeof(struct xen_domctl_ioport_permission) == 12, "xen_domctl_ioport_permission");
_Static_assert(sizeof(struct xen_domctl_hypercall_init) == 8, "xen_domctl_hypercall_init");
_Static_assert(sizeof(struct xen_domctl_settimeoffset) == 8, "xen_domctl_settimeoffset");
_Static_assert(sizeof(struct xen_domctl_hvmcontext) == 16, "xen_domctl_hvmcontext");
_Static_assert(sizeof(struct xen_domctl_hvmcontext_partial) == 24, "xen_domctl_hvmcontext_partial");
_Static_assert(sizeof(struct xen_domctl_address_size) == 4, "xen_domctl_address_size");
_Static_assert(sizeof(struct xen_domctl_sendtrigger) == 8, "xen_domctl_sendtrigger");
_Static_assert(sizeof(struct hvm_vmce_vcpu) == 32, "hvm_vmce_vcpu");
_Static_assert(sizeof(struct xen_domctl_ext_vcpucontext) == 64, "xen_domctl_ext_vcpucontext");
_Static_assert(sizeof(struct xen_domctl_set_target) == 2, "xen_domctl_set_target");
_Static_assert(sizeof(struct xen_domctl_cpu_policy) == 40, "xen_domctl_cpu_policy");
_Static_assert(sizeof(struct xen_domctl_subscribe) == 4, "xen_domctl_subscribe");
_Static_assert(sizeof(struct xen_domctl_debug_op) == 8, "xen_domctl_debug_op");
_Static_assert(sizeof(struct xen_domctl_tsc_info) == 24, "xen_domctl_tsc_info");
_Static_assert(sizeof(struct xen_domctl_gdbsx_memio) == 40, "xen_domctl_gdbsx_memio");
_Static_assert(sizeof(struct xen_domctl_gdbsx_pauseunp_vcpu) == 4, "xen_domctl_gdbsx_pauseunp_vcpu");
_Static_assert(sizeof(struct xen_domctl_gdbsx_domstatus) == 12, "xen_domctl_gdbsx_domstatus");
_Static_assert(sizeof(struct xen_domctl_audit_p2m) == 24, "xen_domctl_audit_p2m");
_Static_assert(sizeof(struct xen_domctl_set_virq_handler) == 4, "xen_domctl_set_virq_handler");
_Static_assert(sizeof(struct xen_domctl_vcpuextstate) == 32, "xen_domctl_vcpuextstate");
_Static_assert(sizeof(struct xen_domctl_set_access_required) == 1, "xen_domctl_set_access_required");
_Static_assert(sizeof(struct xen_domctl_cacheflush) == 16, "xen_domctl_cacheflush");
_Static_assert(sizeof(struct xen_domctl_paging_mempool) == 8, "xen_domctl_paging_mempool");
_Static_assert(sizeof(struct xen_domctl_vcpu_msr) == 16, "xen_domctl_vcpu_msr");
_Static_assert(sizeof(struct xen_domctl_vcpu_msrs) == 16, "xen_domctl_vcpu_msrs");
_Static_assert(sizeof(struct xen_domctl_vnuma) == 48, "xen_domctl_vnuma");
_Static_assert(sizeof(struct xen_domctl) == 144, "xen_domctl");
_Static_assert(offsetof(struct xen_domctl, u) == 16, "xen_domctl.u");
#endif
