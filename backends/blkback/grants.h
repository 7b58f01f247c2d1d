/*
 * The frontend's frames, mapped: for a request, or for good (persistent grants). See grants.c.
 */
#ifndef BLKBACK_GRANTS_H
#define BLKBACK_GRANTS_H
#include <stdbool.h>
#include <stdint.h>

#include "grant_table.h"

/* How to reach the hypervisor and machine memory; the tests have another one. As hcall_grant_map. */
struct grant_source {
    void *context;
    int (*map)(void *context, struct gnttab_map_grant_ref *ops, uint32_t n);
    int (*unmap)(void *context, struct gnttab_unmap_grant_ref *ops, uint32_t n);
    uint8_t *bank; /* frame mfn is at bank + (mfn << 12) */
    uint64_t max_mfn;
};

struct grant {
    grant_ref_t gref;
    grant_handle_t handle;
    uint64_t mfn;
    uint32_t uses;
    bool persistent; /* in the table and the list */
    bool failed;     /* to be mapped */
    struct grant *same_bucket;
    struct grant *newer, *older; /* by last use */
};

struct grants;

/* `max_persistent` 0: none are kept. NULL: no memory. */
struct grants *grants_create(const struct grant_source *source, domid_t domid, uint32_t max_persistent);
/* Unmaps everything. No grant may be in use. */
void grants_destroy(struct grants *grants);

/* Maps n <= GRANTS_AT_ONCE frames, writable or not; out[i] for grefs[i]. False: none are, the frontend is to blame. */
#define GRANTS_AT_ONCE 256
bool grants_get(struct grants *grants, const grant_ref_t *grefs, uint32_t n, bool writable, struct grant **out);
/* What is not kept stays mapped until grants_flush(), which is due before the answer is published. */
void grants_put(struct grants *grants, struct grant **held, uint32_t n);
void grants_flush(struct grants *grants);

void *grants_page(const struct grants *grants, const struct grant *grant);
uint32_t grants_nr_persistent(const struct grants *grants);
#endif
