/*
 * One block request, copied out of the ring: what it asks, and whether it may. Pure; see request.c.
 */
#ifndef BLKBACK_REQUEST_H
#define BLKBACK_REQUEST_H
#include <stdbool.h>
#include <stdint.h>

#include "io/blkif.h"

#define SECTOR_SHIFT 9
#define SECTORS_PER_PAGE 8
#define MAX_SEGMENTS 256 /* of an indirect request */
#define SEGMENTS_PER_PAGE (4096 / sizeof(struct blkif_request_segment))
#define MAX_INDIRECT_PAGES ((MAX_SEGMENTS + SEGMENTS_PER_PAGE - 1) / SEGMENTS_PER_PAGE)
#define MAX_ENTRY_BYTES 112

enum blk_protocol { BLK_PROTOCOL_64 = 0, BLK_PROTOCOL_32 = 1 };

/* What a request is checked against. */
struct blk_disk {
    uint64_t nr_sectors;   /* of 512 bytes */
    uint32_t sector_bytes; /* the disk's own: 512 or 4096 */
    bool read_only;
    bool discard;
};

struct blk_request {
    uint64_t id;
    uint64_t sector;
    uint64_t nr_sectors; /* of a discard; of others known once their segments are */
    uint16_t nr_segments;
    uint8_t op;   /* never BLKIF_OP_INDIRECT: what the response says */
    bool indirect;
    bool secure;
    union {
        struct blkif_request_segment seg[BLKIF_MAX_SEGMENTS_PER_REQUEST];
        grant_ref_t indirect_grefs[BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST];
    };
};

uint32_t blk_entry_bytes(enum blk_protocol protocol);

/* From `entry`, a private copy of a ring slot. BLKIF_RSP_OKAY, or what the request is answered with; `out` has the
 * response's id and op in any case. */
int blk_request_parse(enum blk_protocol protocol, const void *entry, const struct blk_disk *disk, struct blk_request *out);

/* The request's segments, private copies too. Sets out->nr_sectors. */
int blk_request_check_segments(struct blk_request *request, const struct blkif_request_segment *segments,
                               const struct blk_disk *disk);

/* Writes the response as the protocol has it; returns its bytes. */
uint32_t blk_response_encode(enum blk_protocol protocol, const struct blkif_response *response, void *slot);

static inline bool blk_op_moves_data(uint8_t op)
{
    return op <= BLKIF_OP_WRITE_BARRIER || op == BLKIF_OP_FLUSH_DISKCACHE;
}
#endif
