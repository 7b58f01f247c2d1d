/*
 * Grant tables: a domain lets another one map, copy or take single frames of its own. `gref` indexes the
 * granter's table, `handle` is the mapper's name for one mapping.
 */
#ifndef UMXEN_PUBLIC_GRANT_TABLE_H
#define UMXEN_PUBLIC_GRANT_TABLE_H
#include "xen.h"

/* cffi: begin */
typedef uint32_t grant_ref_t;
typedef uint32_t grant_handle_t;
typedef uint16_t grant_status_t; /* version 2 keeps GTF_reading and GTF_writing in an array of these */

/* Entries that the toolstack fills in before the guest starts. */
enum { GNTTAB_NR_RESERVED_ENTRIES = 8, GNTTAB_RESERVED_CONSOLE = 0, GNTTAB_RESERVED_XENSTORE = 1 };

enum {
    GTF_invalid = 0,
    GTF_permit_access = 1,
    GTF_accept_transfer = 2,
    GTF_transitive = 3,
    GTF_type_mask = 3,
    _GTF_readonly = 2,
    GTF_readonly = 1 << 2,
    _GTF_reading = 3,
    GTF_reading = 1 << 3, /* set by the hypervisor while a mapping exists */
    _GTF_writing = 4,
    GTF_writing = 1 << 4, /* likewise, a writable one */
    _GTF_PWT = 5,
    GTF_PWT = 1 << 5,
    _GTF_PCD = 6,
    GTF_PCD = 1 << 6,
    _GTF_PAT = 7,
    GTF_PAT = 1 << 7,
    _GTF_sub_page = 8,
    GTF_sub_page = 1 << 8,
    _GTF_transfer_committed = 2,
    GTF_transfer_committed = 1 << 2,
    _GTF_transfer_completed = 3,
    GTF_transfer_completed = 1 << 3
};

struct grant_entry_v1 {
    uint16_t flags;
    domid_t domid; /* who may use it */
    uint32_t frame;
};

struct grant_entry_header {
    uint16_t flags;
    domid_t domid;
};

union grant_entry_v2 {
    struct grant_entry_header hdr;
    struct {
        struct grant_entry_header hdr;
        uint32_t pad0;
        uint64_t frame;
    } full_page;
    struct {
        struct grant_entry_header hdr;
        uint16_t page_off;
        uint16_t length;
        uint64_t frame;
    } sub_page;
    struct {
        struct grant_entry_header hdr;
        domid_t trans_domid;
        uint16_t pad0;
        grant_ref_t gref;
    } transitive;
    uint32_t __spacer[4];
};

enum {
    GNTTABOP_map_grant_ref = 0,
    GNTTABOP_unmap_grant_ref = 1,
    GNTTABOP_setup_table = 2,
    GNTTABOP_dump_table = 3,
    GNTTABOP_transfer = 4,
    GNTTABOP_copy = 5,
    GNTTABOP_query_size = 6,
    GNTTABOP_unmap_and_replace = 7,
    GNTTABOP_set_version = 8,
    GNTTABOP_get_status_frames = 9,
    GNTTABOP_get_version = 10,
    GNTTABOP_swap_grant_ref = 11,
    GNTTABOP_cache_flush = 12
};

struct gnttab_map_grant_ref {
    uint64_t host_addr; /* in: virtual address; with GNTMAP_contains_pte, machine address of the entry */
    uint32_t flags;     /* GNTMAP_* */
    grant_ref_t ref;
    domid_t dom;
    int16_t status; /* out: GNTST_* */
    grant_handle_t handle;
    uint64_t dev_bus_addr;
};

struct gnttab_unmap_grant_ref {
    uint64_t host_addr;
    uint64_t dev_bus_addr;
    grant_handle_t handle;
    int16_t status;
};

struct gnttab_setup_table {
    domid_t dom;
    uint32_t nr_frames;
    int16_t status;
    xen_guest_handle_t frame_list; /* out: xen_pfn_t[nr_frames] */
};

struct gnttab_dump_table {
    domid_t dom;
    int16_t status;
};

struct gnttab_transfer {
    xen_pfn_t mfn;
    domid_t domid;
    grant_ref_t ref;
    int16_t status;
};

enum { GNTCOPY_source_gref = 1, GNTCOPY_dest_gref = 2 };

struct gnttab_copy_ptr {
    union {
        grant_ref_t ref;
        xen_pfn_t gmfn;
    } u;
    domid_t domid;
    uint16_t offset;
};

struct gnttab_copy {
    struct gnttab_copy_ptr source, dest;
    uint16_t len; /* must not cross a page at either end */
    uint16_t flags;
    int16_t status;
};

struct gnttab_query_size {
    domid_t dom;
    uint32_t nr_frames;
    uint32_t max_nr_frames;
    int16_t status;
};

struct gnttab_unmap_and_replace {
    uint64_t host_addr;
    uint64_t new_addr;
    grant_handle_t handle;
    int16_t status;
};

struct gnttab_set_version {
    uint32_t version;
};

struct gnttab_get_status_frames {
    uint32_t nr_frames;
    domid_t dom;
    int16_t status;
    xen_guest_handle_t frame_list; /* out: uint64_t[nr_frames] */
};

struct gnttab_get_version {
    domid_t dom;
    uint16_t pad;
    uint32_t version;
};

struct gnttab_swap_grant_ref {
    grant_ref_t ref_a;
    grant_ref_t ref_b;
    int16_t status;
};

struct gnttab_cache_flush {
    union {
        uint64_t dev_bus_addr;
        grant_ref_t ref;
    } a;
    uint16_t offset;
    uint16_t length;
    uint32_t op; /* GNTTAB_CACHE_* */
};

enum { GNTTAB_CACHE_CLEAN = 1, GNTTAB_CACHE_INVAL = 2 };
#define GNTTAB_CACHE_SOURCE_GREF 0x80000000U

enum {
    GNTMAP_device_map = 1,
    GNTMAP_host_map = 2,
    GNTMAP_readonly = 4,
    GNTMAP_application_map = 8, /* user mode of the mapper may touch it as well */
    GNTMAP_contains_pte = 16,
    _GNTMAP_guest_avail0 = 16
};
#define GNTMAP_guest_avail_mask 0xffff0000U

/* Not errno: the status field of each grant operation. */
enum {
    GNTST_okay = 0,
    GNTST_general_error = -1,
    GNTST_bad_domain = -2,
    GNTST_bad_gntref = -3,
    GNTST_bad_handle = -4,
    GNTST_bad_virt_addr = -5,
    GNTST_bad_dev_addr = -6,
    GNTST_no_device_space = -7,
    GNTST_permission_denied = -8,
    GNTST_bad_page = -9,
    GNTST_bad_copy_arg = -10,
    GNTST_address_too_big = -11,
    GNTST_eagain = -12,
    GNTST_no_space = -13
};
/* cffi: end */

_Static_assert(sizeof(struct grant_entry_v1) == 8, "grant_entry_v1");
_Static_assert(sizeof(struct grant_entry_header) == 4, "grant_entry_header");
_Static_assert(sizeof(union grant_entry_v2) == 16, "grant_entry_v2");
_Static_assert(sizeof(struct gnttab_map_grant_ref) == 32, "gnttab_map_grant_ref");
_Static_assert(sizeof(struct gnttab_unmap_grant_ref) == 24, "gnttab_unmap_grant_ref");
_Static_assert(sizeof(struct gnttab_setup_table) == 24, "gnttab_setup_table");
_Static_assert(sizeof(struct gnttab_dump_table) == 4, "gnttab_dump_table");
_Static_assert(sizeof(struct gnttab_transfer) == 24, "gnttab_transfer");
_Static_assert(sizeof(struct gnttab_copy_ptr) == 16, "gnttab_copy_ptr");
_Static_assert(sizeof(struct gnttab_copy) == 40, "gnttab_copy");
_Static_assert(sizeof(struct gnttab_query_size) == 16, "gnttab_query_size");
_Static_assert(sizeof(struct gnttab_unmap_and_replace) == 24, "gnttab_unmap_and_replace");
_Static_assert(sizeof(struct gnttab_set_version) == 4, "gnttab_set_version");
_Static_assert(sizeof(struct gnttab_get_status_frames) == 16, "gnttab_get_status_frames");
_Static_assert(sizeof(struct gnttab_get_version) == 8, "gnttab_get_version");
_Static_assert(sizeof(struct gnttab_swap_grant_ref) == 12, "gnttab_swap_grant_ref");
_Static_assert(sizeof(struct gnttab_cache_flush) == 16, "gnttab_cache_flush");
#endif
