/*
 * The xen_version hypercall: who am I running on. To a PV guest it is also the cheapest call that lets
 * pending events in (XENVER_version with a null argument).
 */
#ifndef UMXEN_PUBLIC_VERSION_H
#define UMXEN_PUBLIC_VERSION_H
#include "xen.h"
#include "features.h"

/* cffi: begin */
enum {
    XENVER_version = 0, /* major << 16 | minor, as the return value */
    XENVER_extraversion = 1,
    XENVER_compile_info = 2,
    XENVER_capabilities = 3, /* space separated: "xen-3.0-x86_64 ..." */
    XENVER_changeset = 4,
    XENVER_platform_parameters = 5,
    XENVER_get_features = 6,
    XENVER_pagesize = 7,
    XENVER_guest_handle = 8,
    XENVER_commandline = 9,
    XENVER_build_id = 10
};

typedef char xen_extraversion_t[16];
typedef char xen_capabilities_info_t[1024];
typedef char xen_changeset_info_t[64];
typedef char xen_commandline_t[1024];
enum { XEN_EXTRAVERSION_LEN = 16, XEN_CAPABILITIES_INFO_LEN = 1024, XEN_CHANGESET_INFO_LEN = 64 };

struct xen_compile_info {
    char compiler[64];
    char compile_by[16];
    char compile_domain[32];
    char compile_date[32];
};

struct xen_platform_parameters {
    xen_ulong_t virt_start;
};

struct xen_feature_info {
    uint32_t submap_idx; /* in: which 32 features */
    uint32_t submap;     /* out: bit n is feature submap_idx * 32 + n */
};

struct xen_build_id {
    uint32_t len; /* in: room in buf */
    unsigned char buf[];
};
/* cffi: end */

_Static_assert(sizeof(struct xen_compile_info) == 144, "xen_compile_info");
_Static_assert(sizeof(struct xen_platform_parameters) == 8, "xen_platform_parameters");
_Static_assert(sizeof(struct xen_feature_info) == 8, "xen_feature_info");
_Static_assert(sizeof(struct xen_build_id) == 4, "xen_build_id");
#endif
