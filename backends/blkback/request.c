/*
 * Reading requests. Everything here works on a copy that the guest can't change any more, so what has been checked stays
 * true; nothing here touches a ring, a grant or a file.
 *
 * The two ABIs differ in alignment only: 64-bit fields stand at multiples of 8 in one, of 4 in the other. A table says
 * where; "native" is the 64-bit one, as hyper's guests are.
 *
 * What Linux's blkback answers is answered here: unknown operations with EOPNOTSUPP, everything malformed with ERROR. A
 * request may have no segments only where it stands for more than its data (flush, barrier).
 */
#include "request.h"

#include <stddef.h>
#include <string.h>

struct layout {
    uint32_t entry_bytes, response_bytes;
    uint32_t id, sector, segments;          /* reads and writes */
    uint32_t discard_sectors;               /* discard */
    uint32_t indirect_grefs;                /* indirect */
    uint32_t response_op, response_status;
};

static const struct layout layouts[] = {
    [BLK_PROTOCOL_64] = {
        .entry_bytes = sizeof(union blkif_sring_entry),
        .response_bytes = sizeof(struct blkif_response),
        .id = offsetof(struct blkif_request, id),
        .sector = offsetof(struct blkif_request, sector_number),
        .segments = offsetof(struct blkif_request, seg),
        .discard_sectors = offsetof(struct blkif_request_discard, nr_sectors),
        .indirect_grefs = offsetof(struct blkif_request_indirect, indirect_grefs),
        .response_op = offsetof(struct blkif_response, operation),
        .response_status = offsetof(struct blkif_response, status),
    },
    [BLK_PROTOCOL_32] = {
        .entry_bytes = 108,
        .response_bytes = 12,
        .id = 4,
        .sector = 12,
        .segments = 20,
        .discard_sectors = 20,
        .indirect_grefs = 24,
        .response_op = 8,
        .response_status = 10,
    },
};

_Static_assert(sizeof(union blkif_sring_entry) == MAX_ENTRY_BYTES, "the larger entry");

uint32_t blk_entry_bytes(enum blk_protocol protocol) { return layouts[protocol].entry_bytes; }

static bool beyond_the_end(uint64_t sector, uint64_t nr_sectors, const struct blk_disk *disk)
{
    return sector > disk->nr_sectors || nr_sectors > disk->nr_sectors - sector;
}

static bool misaligned(uint64_t sector, uint64_t nr_sectors, const struct blk_disk *disk)
{
    return ((sector | nr_sectors) & ((disk->sector_bytes >> SECTOR_SHIFT) - 1)) != 0;
}

static int parse_discard(const struct layout *at, const uint8_t *entry, const struct blk_disk *disk, struct blk_request *out)
{
    memcpy(&out->nr_sectors, entry + at->discard_sectors, sizeof(out->nr_sectors));
    out->secure = entry[1] & BLKIF_DISCARD_SECURE;
    if (!disk->discard || out->secure)
        return BLKIF_RSP_EOPNOTSUPP;
    if (disk->read_only || !out->nr_sectors || beyond_the_end(out->sector, out->nr_sectors, disk))
        return BLKIF_RSP_ERROR;
    return misaligned(out->sector, out->nr_sectors, disk) ? BLKIF_RSP_ERROR : BLKIF_RSP_OKAY;
}

static int parse_indirect(const struct layout *at, const uint8_t *entry, struct blk_request *out)
{
    out->indirect = true;
    out->op = entry[1];
    memcpy(&out->nr_segments, entry + 2, sizeof(out->nr_segments));
    memcpy(out->indirect_grefs, entry + at->indirect_grefs, sizeof(out->indirect_grefs));
    if (out->op != BLKIF_OP_READ && out->op != BLKIF_OP_WRITE)
        return BLKIF_RSP_EOPNOTSUPP;
    return out->nr_segments && out->nr_segments <= MAX_SEGMENTS ? BLKIF_RSP_OKAY : BLKIF_RSP_ERROR;
}

static int parse_direct(const struct layout *at, const uint8_t *entry, struct blk_request *out)
{
    bool may_be_empty = out->op == BLKIF_OP_FLUSH_DISKCACHE || out->op == BLKIF_OP_WRITE_BARRIER;

    out->nr_segments = entry[1];
    memcpy(out->seg, entry + at->segments, sizeof(out->seg));
    if (out->nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST || (!out->nr_segments && !may_be_empty))
        return BLKIF_RSP_ERROR;
    return BLKIF_RSP_OKAY;
}

int blk_request_parse(enum blk_protocol protocol, const void *entry, const struct blk_disk *disk, struct blk_request *out)
{
    const struct layout *at = &layouts[protocol];
    const uint8_t *bytes = entry;

    memset(out, 0, sizeof(*out));
    out->op = bytes[0];
    memcpy(&out->id, bytes + at->id, sizeof(out->id));
    memcpy(&out->sector, bytes + at->sector, sizeof(out->sector));
    if (out->op == BLKIF_OP_DISCARD)
        return parse_discard(at, bytes, disk, out);
    int status = BLKIF_RSP_EOPNOTSUPP;

    if (out->op == BLKIF_OP_INDIRECT)
        status = parse_indirect(at, bytes, out);
    else if (blk_op_moves_data(out->op))
        status = parse_direct(at, bytes, out);
    if (status == BLKIF_RSP_OKAY && out->op != BLKIF_OP_READ && out->nr_segments && disk->read_only)
        status = BLKIF_RSP_ERROR;
    return status;
}

int blk_request_check_segments(struct blk_request *request, const struct blkif_request_segment *segments,
                               const struct blk_disk *disk)
{
    uint64_t nr_sectors = 0;

    for (uint32_t i = 0; i < request->nr_segments; i++) {
        const struct blkif_request_segment *s = &segments[i];

        if (s->first_sect > s->last_sect || s->last_sect >= SECTORS_PER_PAGE ||
            misaligned(s->first_sect, s->last_sect + 1u, disk))
            return BLKIF_RSP_ERROR;
        nr_sectors += s->last_sect - s->first_sect + 1u;
    }
    request->nr_sectors = nr_sectors;
    if (nr_sectors && (beyond_the_end(request->sector, nr_sectors, disk) || misaligned(request->sector, 0, disk)))
        return BLKIF_RSP_ERROR;
    return BLKIF_RSP_OKAY;
}

uint32_t blk_response_encode(enum blk_protocol protocol, const struct blkif_response *response, void *slot)
{
    const struct layout *at = &layouts[protocol];
    uint8_t *bytes = slot;

    memset(bytes, 0, at->response_bytes);
    memcpy(bytes, &response->id, sizeof(response->id));
    bytes[at->response_op] = response->operation;
    memcpy(bytes + at->response_status, &response->status, sizeof(response->status));
    return at->response_bytes;
}
