/*
 * What must survive this process: which requests a queue has taken and which answers it owes. See journal.c.
 */
#ifndef BLKBACK_JOURNAL_H
#define BLKBACK_JOURNAL_H
#include <stdbool.h>
#include <stdint.h>

#include "request.h"

#define JOURNAL_MAGIC 0x4b4c4255u /* "UBLK" */
#define JOURNAL_VERSION 1
#define JOURNAL_HEADER_BYTES 64

struct journal_slot {
    uint32_t busy;      /* holds a request */
    uint32_t req_index; /* where in the ring it stood: it counts once `req_cons` is beyond that */
    uint32_t answered;  /* rsp_index is set */
    uint32_t rsp_index; /* its answer's: it is over once `rsp_prod` is beyond that */
    uint8_t entry[MAX_ENTRY_BYTES];
};

struct journal {
    uint32_t magic, version;
    uint32_t nr_entries, protocol;
    uint32_t req_cons; /* requests before this one are in slots, or answered */
    uint32_t rsp_prod; /* answers before this one are in rsp[] */
    uint32_t written; /* writes that are done */
    uint32_t flushed; /* of these, on stable storage for sure; see queue.c */
    uint8_t pad[JOURNAL_HEADER_BYTES - 32];
    struct blkif_response rsp[]; /* nr_entries, by index modulo that; struct journal_slot[nr_entries] behind them */
};

/* cffi: begin */
uint32_t blk_journal_bytes(uint32_t nr_entries);
/* Writes that were answered, and no flush since then, by the journal in `fd`. */
uint32_t blk_journal_unflushed(int fd);
/* cffi: end */

void journal_init(struct journal *journal, uint32_t nr_entries, enum blk_protocol protocol);
/* Whether a predecessor's journal is one for such a ring, and each index in it makes sense. */
bool journal_fits(const struct journal *journal, uint32_t nr_entries, enum blk_protocol protocol);
struct journal_slot *journal_slots(struct journal *journal);

/* Taking requests: note each, then all at once they are ours. */
void journal_note(struct journal *journal, uint32_t slot, uint32_t req_index, const void *entry);
void journal_take(struct journal *journal, uint32_t req_cons);

/* Answers `slot`: from now on the answer, and not the request, is what a successor owes. Returns its index. */
uint32_t journal_answer(struct journal *journal, uint32_t slot, const struct blkif_response *response);

/* A write, or a flush begun when `written` was so high, is done. */
void journal_written(struct journal *journal);
void journal_flushed(struct journal *journal, uint32_t written);

/* For a successor: whether `slot` holds a request that is to be done again; frees it if not. */
bool journal_recover(struct journal *journal, uint32_t slot);
#endif
