/*
 * Banks of process domains.
 *
 * The process that is such a domain maps its memory itself, so this memory must be a memfd of its own, with nothing in it
 * that isn't the domain's: its RAM, its shared_info, its grant table. A bank is a range of mfns beyond the main bank; it is
 * mapped at its place in the machine's window, so that mfn_to_virt and the frame table know no difference. Everything of
 * such a domain comes from its bank, and a bank serves one domain.
 *
 * A bank's frames are handed out once, in order, and don't return to any heap: when the last reference of the last one is
 * gone, the domain is freed and with it the bank: its memory is given back to the host, and the window shows nothing there.
 * Whoever still has the memfd sees zeroes. The frames are charged to the main bank's budget meanwhile.
 *
 * Ranges are given out in a circle through the window, so that a number is not seen again soon, and each bank has a serial
 * number, by which a process of Dom0 knows that its mapping is of an earlier bank at the same place.
 */
#define _GNU_SOURCE
#include "bank.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hypercall.h"

int seal_size(int fd) { return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL); }

static struct bank *bank_of(struct list *link) { return container_of(link, struct bank, link); }

/* ---- the place in the window; heap_lock held -------------------------------------------------------------------- */

/* Room for nr_frames from `from` on, before `end`: the bank to enter behind, or NULL. */
static struct list *find_gap(struct hv *hv, uint64_t from, uint64_t end, uint64_t nr_frames, uint64_t *base)
{
    struct list *it = &hv->banks;
    do {
        uint64_t gap = it == &hv->banks ? hv->first_bank_mfn : bank_of(it)->base + bank_of(it)->nr_frames;
        uint64_t gap_end = it->next == &hv->banks ? hv->max_mfn : bank_of(it->next)->base;
        if (gap < from)
            gap = from;
        if (gap_end > end)
            gap_end = end;
        if (gap < gap_end && gap_end - gap >= nr_frames) {
            *base = gap;
            return it;
        }
        it = it->next;
    } while (it != &hv->banks);
    return NULL;
}

static int place(struct hv *hv, struct bank *b)
{
    struct list *after = find_gap(hv, hv->next_bank_mfn, hv->max_mfn, b->nr_frames, &b->base);
    if (!after)
        after = find_gap(hv, hv->first_bank_mfn, hv->max_mfn, b->nr_frames, &b->base);
    if (!after)
        return -XEN_ENOSPC;
    if (b->nr_frames > hv->free_frames)
        return -XEN_ENOMEM;
    hv->free_frames -= b->nr_frames;
    hv->next_bank_mfn = b->base + b->nr_frames;
    b->serial = ++hv->last_bank_serial;
    hv->nr_banks++;
    list_insert(&b->link, after);
    return 0;
}

static void leave_place(struct bank *b)
{
    lock(&b->hv->heap_lock);
    ASSERT(!b->nr_live);
    list_remove(&b->link);
    b->hv->free_frames += b->nr_frames;
    b->hv->nr_banks--;
    unlock(&b->hv->heap_lock);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static void *window_of(const struct bank *b) { return b->hv->bank_base + (b->base << PAGE_SHIFT); }
static uint64_t bytes_of(const struct bank *b) { return b->nr_frames << PAGE_SHIFT; }

static int map_memory(struct bank *b)
{
    b->fd = memfd_create("umxen-process-bank", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (b->fd < 0)
        return -XEN_EMFILE;
    if (ftruncate(b->fd, (off_t)bytes_of(b)) || seal_size(b->fd))
        return -XEN_ENOMEM;
    void *at = mmap(window_of(b), bytes_of(b), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, b->fd, 0);
    return at == MAP_FAILED ? -XEN_ENOMEM : 0;
}

int bank_create(struct hv *hv, uint64_t nr_frames, struct bank **out)
{
    struct bank *b = calloc(1, sizeof(*b));
    if (!b)
        return -XEN_ENOMEM;
    *b = (struct bank){.hv = hv, .fd = -1, .nr_frames = nr_frames};
    lock(&hv->heap_lock);
    int rc = place(hv, b);
    unlock(&hv->heap_lock);
    if (rc) {
        free(b);
        return rc;
    }
    if ((rc = map_memory(b))) {
        bank_destroy(b);
        return rc;
    }
    *out = b;
    return 0;
}

/* The records of its frames are as new afterwards. */
static void forget_frames(struct bank *b)
{
    struct page_info *first = &b->hv->frame_table[b->base];
    memset(first, 0, b->nr_taken * sizeof(*first));
}

void bank_destroy(struct bank *b)
{
    if (!b)
        return;
    forget_frames(b);
    void *nothing = mmap(window_of(b), bytes_of(b), PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    BUG_ON(nothing == MAP_FAILED);
    if (b->fd >= 0) {
        fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes_of(b));
        close(b->fd);
    }
    leave_place(b);
    free(b);
}

struct page_info *bank_take(struct bank *b)
{
    if (b->nr_taken == b->nr_frames)
        return NULL;
    struct page_info *pg = &b->hv->frame_table[b->base + b->nr_taken++];
    pg->flags = PGC_bank;
    lock(&b->hv->heap_lock);
    b->nr_live++;
    unlock(&b->hv->heap_lock);
    return pg;
}
