/*
 * Block devices: one ring per queue, of 1 to 16 pages. The first byte of a request says what it is, and with that which of
 * the structures below lies in the slot. Sectors are 512 bytes everywhere in the protocol, whatever the disk's own
 * sector size; a segment is a run of sectors inside one granted frame.
 *
 * These are the layouts of 64-bit frontends. Those of a 32-bit one ("x86_32-abi" in its `protocol` node) align 64-bit
 * fields to 4 bytes; backends/blkback/request.c knows them.
 */
#ifndef UMXEN_PUBLIC_IO_BLKIF_H
#define UMXEN_PUBLIC_IO_BLKIF_H
#include <stdint.h>

#include "../grant_table.h"
#include "ring.h"

/* cffi: begin */
enum {
    BLKIF_OP_READ = 0,
    BLKIF_OP_WRITE = 1,
    BLKIF_OP_WRITE_BARRIER = 2,   /* after all writes before it, before all after it, and on stable storage */
    BLKIF_OP_FLUSH_DISKCACHE = 3, /* all completed writes to stable storage */
    BLKIF_OP_RESERVED_1 = 4,
    BLKIF_OP_DISCARD = 5,
    BLKIF_OP_INDIRECT = 6 /* a read or write whose segments lie in granted frames of their own */
};

enum {
    BLKIF_MAX_SEGMENTS_PER_REQUEST = 11,
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8,
    BLKIF_DISCARD_SECURE = 1 << 0
};

enum { BLKIF_RSP_OKAY = 0, BLKIF_RSP_ERROR = -1, BLKIF_RSP_EOPNOTSUPP = -2 };

/* Bits of the backend's `info` node. */
enum { VDISK_CDROM = 1, VDISK_REMOVABLE = 2, VDISK_READONLY = 4 };

struct blkif_request_segment {
    grant_ref_t gref;
    uint8_t first_sect, last_sect; /* both are part of it */
};

struct blkif_request {
    uint8_t operation;
    uint8_t nr_segments;
    uint16_t handle;
    uint64_t id; /* comes back in the response */
    uint64_t sector_number;
    struct blkif_request_segment seg[BLKIF_MAX_SEGMENTS_PER_REQUEST];
};

struct blkif_request_discard {
    uint8_t operation;
    uint8_t flag; /* BLKIF_DISCARD_SECURE */
    uint16_t handle;
    uint64_t id;
    uint64_t sector_number;
    uint64_t nr_sectors;
};

struct blkif_request_indirect {
    uint8_t operation;
    uint8_t indirect_op; /* BLKIF_OP_READ or BLKIF_OP_WRITE */
    uint16_t nr_segments;
    uint64_t id;
    uint64_t sector_number;
    uint16_t handle;
    grant_ref_t indirect_grefs[BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST]; /* frames full of struct blkif_request_segment */
};

struct blkif_response {
    uint64_t id;
    uint8_t operation; /* of an indirect request: its indirect_op */
    int16_t status;    /* BLKIF_RSP_* */
};

union blkif_sring_entry {
    struct blkif_request req;
    struct blkif_response rsp;
};

struct blkif_sring {
    RING_IDX req_prod, req_event;
    RING_IDX rsp_prod, rsp_event;
    union {
        struct {
            uint8_t smartpoll_active;
        } netif;
        struct {
            uint8_t msg;
        } tapif_user;
        uint8_t pvt_pad[4];
    } pvt;
    uint8_t __pad[44];
    union blkif_sring_entry ring[1]; /* 32 in a page */
};
/* cffi: end */

#define XEN_IO_PROTO_ABI_X86_32 "x86_32-abi"
#define XEN_IO_PROTO_ABI_X86_64 "x86_64-abi"

_Static_assert(sizeof(struct blkif_request_segment) == 8, "blkif_request_segment");
_Static_assert(sizeof(struct blkif_request) == 112, "blkif_request");
_Static_assert(sizeof(struct blkif_request_discard) == 32, "blkif_request_discard");
_Static_assert(sizeof(struct blkif_request_indirect) == 64, "blkif_request_indirect");
_Static_assert(sizeof(struct blkif_response) == 16, "blkif_response");
_Static_assert(sizeof(union blkif_sring_entry) == 112, "blkif_sring_entry");
_Static_assert(sizeof(struct blkif_sring) == 176, "blkif_sring");
#endif
