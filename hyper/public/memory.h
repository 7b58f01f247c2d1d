/*
 * memory_op: how many frames a domain owns, where they sit in its physmap, what its memory map looks like.
 */
#ifndef UMXEN_PUBLIC_MEMORY_H
#define UMXEN_PUBLIC_MEMORY_H
#include "xen.h"
#include "physdev.h"

/* cffi: begin */
/* Low 6 bits of the command; a preempted call keeps its progress in the bits above. */
enum {
    XENMEM_increase_reservation = 0,
    XENMEM_decrease_reservation = 1,
    XENMEM_maximum_ram_page = 2,
    XENMEM_current_reservation = 3,
    XENMEM_maximum_reservation = 4,
    XENMEM_machphys_mfn_list = 5,
    XENMEM_populate_physmap = 6,
    XENMEM_add_to_physmap = 7,
    XENMEM_memory_map = 9,
    XENMEM_machine_memory_map = 10,
    XENMEM_exchange = 11,
    XENMEM_machphys_mapping = 12,
    XENMEM_set_memory_map = 13,
    XENMEM_maximum_gpfn = 14,
    XENMEM_remove_from_physmap = 15,
    XENMEM_set_pod_target = 16,
    XENMEM_get_pod_target = 17,
    XENMEM_get_sharing_freed_pages = 18,
    XENMEM_get_sharing_shared_pages = 19,
    XENMEM_paging_op = 20,
    XENMEM_access_op = 21,
    XENMEM_sharing_op = 22,
    XENMEM_add_to_physmap_batch = 23,
    XENMEM_claim_pages = 24,
    XENMEM_machphys_compat_mfn_list = 25,
    XENMEM_get_vnumainfo = 26,
    XENMEM_reserved_device_memory_map = 27,
    XENMEM_acquire_resource = 28
};

/* xen_memory_reservation.mem_flags: bits 0-7 limit the address width, bits 8-15 hold node + 1. */
enum {
    XENMEMF_populate_on_demand = 1 << 16,
    XENMEMF_exact_node_request = 1 << 17,
    XENMEMF_vnode = 1 << 18
};

struct xen_memory_reservation {
    xen_guest_handle_t extent_start; /* xen_pfn_t[nr_extents], in and out */
    xen_ulong_t nr_extents;
    uint32_t extent_order; /* each extent is 1 << extent_order frames */
    uint32_t mem_flags;
    domid_t domid;
};

struct xen_memory_exchange {
    struct xen_memory_reservation in;
    struct xen_memory_reservation out;
    xen_ulong_t nr_exchanged; /* in: 0; out: how far it got */
};

struct xen_memory_domain {
    domid_t domid;
};

struct xen_machphys_mfn_list {
    uint32_t max_extents;
    xen_guest_handle_t extent_start;
    uint32_t nr_extents;
};

struct xen_machphys_mapping {
    xen_ulong_t v_start, v_end;
    xen_ulong_t max_mfn; /* highest index of the table, not its length */
};

enum {
    XENMAPSPACE_shared_info = 0,
    XENMAPSPACE_grant_table = 1,
    XENMAPSPACE_gmfn = 2,
    XENMAPSPACE_gmfn_range = 3,
    XENMAPSPACE_gmfn_foreign = 4,
    XENMAPSPACE_dev_mmio = 5
};
#define XENMAPIDX_grant_table_status 0x80000000U

struct xen_add_to_physmap {
    domid_t domid;
    uint16_t size; /* frames, gmfn_range only */
    uint32_t space;
    xen_ulong_t idx;
    xen_pfn_t gpfn;
};

union xen_add_to_physmap_batch_extra {
    domid_t foreign_domid;
    uint16_t res0;
};

struct xen_add_to_physmap_batch {
    domid_t domid;
    uint16_t space;
    uint16_t size;
    union xen_add_to_physmap_batch_extra u;
    xen_guest_handle_t idxs;
    xen_guest_handle_t gpfns;
    xen_guest_handle_t errs; /* int[size] */
};

struct xen_remove_from_physmap {
    domid_t domid;
    xen_pfn_t gpfn;
};

struct xen_memory_map {
    uint32_t nr_entries;
    xen_guest_handle_t buffer; /* struct e820entry[nr_entries], 20 bytes each */
};

struct xen_foreign_memory_map {
    domid_t domid;
    struct xen_memory_map map;
};

struct xen_pod_target {
    uint64_t target_pages;
    uint64_t tot_pages;
    uint64_t pod_cache_pages;
    uint64_t pod_entries;
    domid_t domid;
};

struct xen_reserved_device_memory {
    xen_pfn_t start_pfn;
    xen_ulong_t nr_pages;
};

enum { XENMEM_RDM_ALL = 1 };

struct xen_reserved_device_memory_map {
    uint32_t flags;
    uint32_t nr_entries;
    xen_guest_handle_t buffer;
    union {
        struct physdev_pci_device pci;
    } dev;
};

enum {
    XENMEM_resource_ioreq_server = 0,
    XENMEM_resource_grant_table = 1,
    XENMEM_resource_vmtrace_buf = 2,
    XENMEM_resource_grant_table_id_shared = 0,
    XENMEM_resource_grant_table_id_status = 1,
    XENMEM_resource_ioreq_server_frame_bufioreq = 0
};

struct xen_mem_acquire_resource {
    domid_t domid;
    uint16_t type;
    uint32_t id;
    uint32_t nr_frames; /* 0 with a null frame_list asks for the size */
    uint32_t pad;
    uint64_t frame; /* first frame of the resource */
    xen_guest_handle_t frame_list;
};

struct xen_vmemrange {
    uint64_t start, end;
    uint32_t flags;
    uint32_t nid;
};

struct xen_vnuma_topology_info {
    domid_t domid;
    uint16_t pad;
    uint32_t nr_vnodes;
    uint32_t nr_vcpus;
    uint32_t nr_vmemranges;
    union {
        xen_guest_handle_t h;
        uint64_t pad;
    } vdistance;
    union {
        xen_guest_handle_t h;
        uint64_t pad;
    } vcpu_to_vnode;
    union {
        xen_guest_handle_t h;
        uint64_t pad;
    } vmemrange;
};
/* cffi: end */

#define XENMEMF_address_bits(x) (x)
#define XENMEMF_get_address_bits(x) ((x) & 0xffu)
#define XENMEMF_node(x) (((x) + 1) << 8)
#define XENMEMF_get_node(x) ((((x) >> 8) - 1) & 0xffu)
#define XENMEMF_exact_node(n) (XENMEMF_node(n) | XENMEMF_exact_node_request)
#define XENMEM_resource_ioreq_server_frame_ioreq(n) (1 + (n))

/* Packed, therefore not for cffi. Python: struct.Struct("<QQI"). */
struct e820entry {
    uint64_t addr;
    uint64_t size;
    uint32_t type;
} __attribute__((packed));

_Static_assert(sizeof(struct xen_memory_reservation) == 32, "xen_memory_reservation");
_Static_assert(sizeof(struct xen_memory_exchange) == 72, "xen_memory_exchange");
_Static_assert(sizeof(struct xen_memory_domain) == 2, "xen_memory_domain");
_Static_assert(sizeof(struct xen_machphys_mfn_list) == 24, "xen_machphys_mfn_list");
_Static_assert(sizeof(struct xen_machphys_mapping) == 24, "xen_machphys_mapping");
_Static_assert(sizeof(struct xen_add_to_physmap) == 24, "xen_add_to_physmap");
_Static_assert(sizeof(union xen_add_to_physmap_batch_extra) == 2, "xen_add_to_physmap_batch_extra");
_Static_assert(sizeof(struct xen_add_to_physmap_batch) == 32, "xen_add_to_physmap_batch");
_Static_assert(sizeof(struct xen_remove_from_physmap) == 16, "xen_remove_from_physmap");
_Static_assert(sizeof(struct xen_memory_map) == 16, "xen_memory_map");
_Static_assert(sizeof(struct xen_foreign_memory_map) == 24, "xen_foreign_memory_map");
_Static_assert(sizeof(struct xen_pod_target) == 40, "xen_pod_target");
_Static_assert(sizeof(struct xen_reserved_device_memory) == 16, "xen_reserved_device_memory");
_Static_assert(sizeof(struct xen_reserved_device_memory_map) == 24, "xen_reserved_device_memory_map");
_Static_assert(sizeof(struct xen_mem_acquire_resource) == 32, "xen_mem_acquire_resource");
_Static_assert(sizeof(struct xen_vmemrange) == 24, "xen_vmemrange");
_Static_assert(sizeof(struct xen_vnuma_topology_info) == 40, "xen_vnuma_topology_info");
_Static_assert(sizeof(struct e820entry) == 20, "e820entry");
#endif
