/*
 * Network devices: a transmit and a receive ring per queue, and one control ring per device. A ring is one page that the
 * frontend grants; an entry is first a request, then the response to it.
 *
 * A packet is one or more transmit requests: `size` of the first is the length of the whole packet, of each further one its
 * own length, and all but the last carry NETTXF_more_data. Extra-info entries (NETTXF_extra_info) stand between the first
 * request and the second; each takes a ring entry, and is answered with NETIF_RSP_NULL. Received packets are the same with
 * responses; there the `status` of each is the number of bytes in that buffer, or an error below zero.
 */
#ifndef UMXEN_PUBLIC_IO_NETIF_H
#define UMXEN_PUBLIC_IO_NETIF_H
#include <stdint.h>

#include "../grant_table.h"

/* cffi: begin */
enum {
    XEN_NETIF_NR_SLOTS_MIN = 18, /* entries of one packet that every backend takes */
    XEN_NETIF_MAX_TX_SIZE = 0xffff
};

enum {
    _NETTXF_csum_blank = 0,
    NETTXF_csum_blank = 1 << 0, /* the transport checksum covers the pseudo header only: to be completed */
    _NETTXF_data_validated = 1,
    NETTXF_data_validated = 1 << 1,
    _NETTXF_more_data = 2,
    NETTXF_more_data = 1 << 2,
    _NETTXF_extra_info = 3,
    NETTXF_extra_info = 1 << 3
};

struct netif_tx_request {
    grant_ref_t gref;
    uint16_t offset;
    uint16_t flags; /* NETTXF_* */
    uint16_t id;    /* comes back in the response */
    uint16_t size;
};

struct netif_tx_response {
    uint16_t id;
    int16_t status; /* NETIF_RSP_* */
};

enum {
    XEN_NETIF_EXTRA_TYPE_NONE = 0,
    XEN_NETIF_EXTRA_TYPE_GSO = 1,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD = 2,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL = 3,
    XEN_NETIF_EXTRA_TYPE_HASH = 4,
    XEN_NETIF_EXTRA_TYPE_MAX = 5,
    _XEN_NETIF_EXTRA_FLAG_MORE = 0,
    XEN_NETIF_EXTRA_FLAG_MORE = 1 << 0, /* another extra-info entry follows */
    XEN_NETIF_GSO_TYPE_NONE = 0,
    XEN_NETIF_GSO_TYPE_TCPV4 = 1,
    XEN_NETIF_GSO_TYPE_TCPV6 = 2
};

struct netif_extra_info {
    uint8_t type;  /* XEN_NETIF_EXTRA_TYPE_* */
    uint8_t flags; /* XEN_NETIF_EXTRA_FLAG_* */
    union {
        struct {
            uint16_t size; /* bytes of payload of each segment */
            uint8_t type;  /* XEN_NETIF_GSO_TYPE_* */
            uint8_t pad;
            uint16_t features;
        } gso;
        struct {
            uint8_t addr[6];
        } mcast;
        struct {
            uint8_t type;
            uint8_t algorithm;
            uint8_t value[4];
        } hash;
        uint16_t pad[3];
    } u;
};

struct netif_rx_request {
    uint16_t id;
    uint16_t pad;
    grant_ref_t gref; /* a buffer of one page */
};

enum {
    _NETRXF_data_validated = 0,
    NETRXF_data_validated = 1 << 0,
    _NETRXF_csum_blank = 1,
    NETRXF_csum_blank = 1 << 1,
    _NETRXF_more_data = 2,
    NETRXF_more_data = 1 << 2,
    _NETRXF_extra_info = 3,
    NETRXF_extra_info = 1 << 3,
    _NETRXF_gso_prefix = 4,
    NETRXF_gso_prefix = 1 << 4
};

struct netif_rx_response {
    uint16_t id;
    uint16_t offset;
    uint16_t flags; /* NETRXF_* */
    int16_t status; /* bytes, or NETIF_RSP_* below zero */
};

enum { NETIF_RSP_DROPPED = -2, NETIF_RSP_ERROR = -1, NETIF_RSP_OKAY = 0, NETIF_RSP_NULL = 1 };

union netif_tx_sring_entry {
    struct netif_tx_request req;
    struct netif_tx_response rsp;
};

struct netif_tx_sring {
    uint32_t req_prod, req_event; /* the backend wants an event when req_prod reaches req_event */
    uint32_t rsp_prod, rsp_event;
    union {
        uint8_t pvt_pad[4];
    } pvt;
    uint8_t __pad[44];
    union netif_tx_sring_entry ring[1]; /* as many as fit in the page, a power of two: 256 */
};

union netif_rx_sring_entry {
    struct netif_rx_request req;
    struct netif_rx_response rsp;
};

struct netif_rx_sring {
    uint32_t req_prod, req_event;
    uint32_t rsp_prod, rsp_event;
    union {
        uint8_t pvt_pad[4];
    } pvt;
    uint8_t __pad[44];
    union netif_rx_sring_entry ring[1]; /* 256 in a page */
};

/* The control ring: the frontend asks how packets shall be spread over its queues. */
enum {
    _XEN_NETIF_CTRL_HASH_TYPE_IPV4 = 0,
    XEN_NETIF_CTRL_HASH_TYPE_IPV4 = 1 << 0,
    _XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP = 1,
    XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP = 1 << 1,
    _XEN_NETIF_CTRL_HASH_TYPE_IPV6 = 2,
    XEN_NETIF_CTRL_HASH_TYPE_IPV6 = 1 << 2,
    _XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP = 3,
    XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP = 1 << 3,
    XEN_NETIF_CTRL_HASH_ALGORITHM_NONE = 0,
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ = 1
};

enum {
    XEN_NETIF_CTRL_TYPE_INVALID = 0,
    XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS = 1,
    XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS = 2,
    XEN_NETIF_CTRL_TYPE_SET_HASH_KEY = 3,
    XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE = 4,
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE = 5,
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING = 6,
    XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM = 7,
    XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE = 8,
    XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING = 9,
    XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING = 10
};

enum {
    XEN_NETIF_CTRL_STATUS_SUCCESS = 0,
    XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED = 1,
    XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER = 2,
    XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW = 3
};

struct xen_netif_ctrl_request {
    uint16_t id;
    uint16_t type; /* XEN_NETIF_CTRL_TYPE_* */
    uint32_t data[3];
};

struct xen_netif_ctrl_response {
    uint16_t id;
    uint16_t type;
    uint32_t status; /* XEN_NETIF_CTRL_STATUS_* */
    uint32_t data;
};

/* Grants that the backend shall keep mapped: an array of these in a granted page. */
struct xen_netif_gref {
    grant_ref_t ref;
    uint16_t flags; /* XEN_NETIF_CTRLF_GREF_* */
    uint16_t status;
};

enum { _XEN_NETIF_CTRLF_GREF_readonly = 0, XEN_NETIF_CTRLF_GREF_readonly = 1 << 0 };

union xen_netif_ctrl_sring_entry {
    struct xen_netif_ctrl_request req;
    struct xen_netif_ctrl_response rsp;
};

struct xen_netif_ctrl_sring {
    uint32_t req_prod, req_event;
    uint32_t rsp_prod, rsp_event;
    union {
        uint8_t pvt_pad[4];
    } pvt;
    uint8_t __pad[44];
    union xen_netif_ctrl_sring_entry ring[1]; /* 128 in a page */
};
/* cffi: end */

_Static_assert(sizeof(struct netif_tx_request) == 12, "netif_tx_request");
_Static_assert(sizeof(struct netif_tx_response) == 4, "netif_tx_response");
_Static_assert(sizeof(struct netif_extra_info) == 8, "netif_extra_info");
_Static_assert(sizeof(struct netif_rx_request) == 8, "netif_rx_request");
_Static_assert(sizeof(struct netif_rx_response) == 8, "netif_rx_response");
_Static_assert(sizeof(union netif_tx_sring_entry) == 12, "netif_tx_sring_entry");
_Static_assert(sizeof(union netif_rx_sring_entry) == 8, "netif_rx_sring_entry");
_Static_assert(sizeof(struct netif_tx_sring) == 76, "netif_tx_sring");
_Static_assert(sizeof(struct netif_rx_sring) == 72, "netif_rx_sring");
_Static_assert(sizeof(struct xen_netif_ctrl_request) == 16, "xen_netif_ctrl_request");
_Static_assert(sizeof(struct xen_netif_ctrl_response) == 12, "xen_netif_ctrl_response");
_Static_assert(sizeof(struct xen_netif_gref) == 8, "xen_netif_gref");
_Static_assert(sizeof(union xen_netif_ctrl_sring_entry) == 16, "xen_netif_ctrl_sring_entry");
_Static_assert(sizeof(struct xen_netif_ctrl_sring) == 80, "xen_netif_ctrl_sring");
#endif
