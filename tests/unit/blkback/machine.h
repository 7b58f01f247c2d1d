/* A frontend, its memory, its grants and its disk, for one queue. See machine.c. */
#ifndef TEST_BLKBACK_MACHINE_H
#define TEST_BLKBACK_MACHINE_H
#include "queue.h"

enum { FRAMES = 96, RING_FRAMES = 16, DISK_SECTORS = 512, EDGE_BYTES = 8192 };

struct machine {
    uint8_t *bank;
    uint32_t mapped[FRAMES]; /* how often */
    bool read_only[FRAMES], revoked[FRAMES];
    uint32_t nr_maps, nr_unmaps, nr_mapped;
    struct io_pool *pool;
    int image, journal, event, doorbell, status;
    struct blk_queue_config config;
    struct blk_queue *queue;
    uint32_t req_prod, rsp_cons;
};

/* `gref` g is frame RING_FRAMES + g. */
struct machine *machine_new(uint32_t pages, uint32_t protocol, uint32_t max_persistent);
void machine_start(struct machine *m, bool resuming);
void machine_stop(struct machine *m);
void machine_free(struct machine *m); /* checks that nothing is mapped and the image's edge is whole */
void machine_settle(struct machine *m);

uint8_t *machine_page(struct machine *m, uint32_t gref); /* the frontend's own view */
uint32_t entry_bytes(const struct machine *m);
void put_entry(struct machine *m, const void *entry, uint32_t bytes);
void publish(struct machine *m); /* what was put */
/* The next response; false when there is none. */
bool get_response(struct machine *m, struct blkif_response *out);
struct ring_indices *indices(struct machine *m);
bool notified(struct machine *m);

void fill_image(struct machine *m);
uint8_t image_byte(uint64_t at);
#endif
