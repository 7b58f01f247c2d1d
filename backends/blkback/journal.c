/*
 * The journal of one queue, in a memfd that hyper keeps. Slots of the ring can't serve: an answer overwrites the slot of
 * some older request that may still be under way. So each request is copied into a slot here before the private req_cons
 * passes it, and each answer into rsp[] before it goes into the ring.
 *
 * A killed process leaves its stores in program order (each thread's are seen by whoever maps the page later), so plain
 * stores with release order do. Every step has one store that makes it count:
 *   taken     req_cons passes req_index   (before: the slot is rubbish, the request is read again from the ring)
 *   answered  rsp_prod passes rsp_index   (before: the request is done again; reads, writes, discards may be repeated)
 *   published rsp_prod of the shared ring  (before: the successor writes the answers from rsp[] into the ring again)
 * After the second the slot may be used again; `busy` is then cleared, and what a crash leaves between is seen by the
 * indices. One thread uses a journal.
 */
#include "journal.h"

#include <string.h>
#include <unistd.h>

#define STORE(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELEASE)

uint32_t blk_journal_bytes(uint32_t nr_entries)
{
    return JOURNAL_HEADER_BYTES + nr_entries * (uint32_t)(sizeof(struct blkif_response) + sizeof(struct journal_slot));
}

struct journal_slot *journal_slots(struct journal *journal)
{
    return (struct journal_slot *)&journal->rsp[journal->nr_entries];
}

void journal_init(struct journal *journal, uint32_t nr_entries, enum blk_protocol protocol)
{
    memset(journal, 0, blk_journal_bytes(nr_entries));
    journal->version = JOURNAL_VERSION;
    journal->nr_entries = nr_entries;
    journal->protocol = protocol;
    STORE(journal->magic, JOURNAL_MAGIC);
}

bool journal_fits(const struct journal *journal, uint32_t nr_entries, enum blk_protocol protocol)
{
    return journal->magic == JOURNAL_MAGIC && journal->version == JOURNAL_VERSION &&
           journal->nr_entries == nr_entries && journal->protocol == (uint32_t)protocol &&
           journal->req_cons - journal->rsp_prod <= nr_entries;
}

void journal_note(struct journal *journal, uint32_t slot, uint32_t req_index, const void *entry)
{
    struct journal_slot *s = &journal_slots(journal)[slot];

    memcpy(s->entry, entry, sizeof(s->entry));
    s->answered = 0;
    s->req_index = req_index;
    STORE(s->busy, 1);
}

void journal_take(struct journal *journal, uint32_t req_cons) { STORE(journal->req_cons, req_cons); }

uint32_t journal_answer(struct journal *journal, uint32_t slot, const struct blkif_response *response)
{
    struct journal_slot *s = &journal_slots(journal)[slot];
    uint32_t index = journal->rsp_prod;

    journal->rsp[index & (journal->nr_entries - 1)] = *response;
    s->rsp_index = index;
    STORE(s->answered, 1);
    STORE(journal->rsp_prod, index + 1);
    STORE(s->busy, 0);
    return index;
}

void journal_written(struct journal *journal) { STORE(journal->written, journal->written + 1); }

void journal_flushed(struct journal *journal, uint32_t written) { STORE(journal->flushed, written); }

uint32_t blk_journal_unflushed(int fd)
{
    struct journal header;

    if (pread(fd, &header, sizeof(header), 0) != sizeof(header))
        return 0;
    return header.written - header.flushed;
}

static bool passed(uint32_t index, uint32_t by) { return (int32_t)(by - index) > 0; }

bool journal_recover(struct journal *journal, uint32_t slot)
{
    struct journal_slot *s = &journal_slots(journal)[slot];
    bool taken = passed(s->req_index, journal->req_cons);
    bool over = s->answered && passed(s->rsp_index, journal->rsp_prod);

    if (s->busy && taken && !over) {
        s->answered = 0;
        return true;
    }
    STORE(s->busy, 0);
    return false;
}
