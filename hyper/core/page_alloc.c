/*
 * Machine memory: the bank, the frame table, the frame allocator, references of frames.
 *
 * The main bank is one sealed memfd, mapped whole and sparse; mfn n lies at byte n << 12. Behind it the window has room for
 * the banks of process domains (bank.c). The frame table covers the window, is a sparse mapping as well, and all zeroes
 * means "never used", so that starting a machine touches nothing.
 *
 * Free memory is kept in naturally aligned chunks of 2^order frames, one list per order, linked through the frame table
 * by mfn. Only the first frame of a free chunk says so (PGC_free, order): a chunk is split and merged with its buddy
 * without touching what is inside. A frame inside is known free by its count of zero.
 *
 * Zeroing is lazy. A frame never used is zero because the memfd is; a freed one carries PGC_scrub and is zeroed when it
 * is handed out again. When freed frames have merged into 2 MiB (PUNCH_ORDER, a huge page of the host) the memory itself is
 * given back to the host and is zero from then on; smaller holes would split the host's huge pages.
 *
 * Locks: heap_lock guards the free lists, tot_pages and the domains' page lists. References of a frame are atomic, but
 * dropped under its owner's lock, as the last one needs the owner's TLBs flushed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bank.h"
#include "hypercall.h"
#include "machine.h"

#define PUNCH_ORDER 9
#define NR_RESERVED_FRAMES 256u /* the first MiB of a PC isn't RAM; mfn 0 ends lists */
#define MAX_COUNT 0x80000000u
#define HUGE_BYTES (2ull << 20)
#define BANKS_FRAMES (1ull << 24) /* 64 GiB of numbers for the banks of process domains */

struct page_info *mfn_to_page(struct hv *hv, mfn_t mfn)
{
    return &hv->frame_table[mfn_x(mfn)];
}

mfn_t page_to_mfn(struct hv *hv, const struct page_info *pg)
{
    return _mfn((uint64_t)(pg - hv->frame_table));
}

void *mfn_to_virt(struct hv *hv, mfn_t mfn)
{
    return hv->bank_base + (mfn_x(mfn) << PAGE_SHIFT);
}

bool mfn_valid(const struct hv *hv, mfn_t mfn)
{
    return mfn_x(mfn) >= NR_RESERVED_FRAMES && mfn_x(mfn) < hv->nr_frames;
}

/* ---- chunks; heap_lock held ------------------------------------------------------------------------------------- */

static void chunk_insert(struct hv *hv, uint32_t mfn, unsigned order)
{
    struct page_info *pg = &hv->frame_table[mfn];
    uint32_t first = hv->free_list[order];

    pg->flags |= PGC_free;
    pg->order = (uint8_t)order;
    pg->next = first;
    pg->prev = 0;
    if (first)
        hv->frame_table[first].prev = mfn;
    hv->free_list[order] = mfn;
}

static void chunk_remove(struct hv *hv, uint32_t mfn)
{
    struct page_info *pg = &hv->frame_table[mfn];

    if (pg->prev)
        hv->frame_table[pg->prev].next = pg->next;
    else
        hv->free_list[pg->order] = pg->next;
    if (pg->next)
        hv->frame_table[pg->next].prev = pg->prev;
    pg->flags &= ~(uint32_t)PGC_free;
}

/* Gives the host its memory back. Where it can't (a full host, an odd kernel) PGC_scrub stays. */
static void punch(struct hv *hv, uint32_t mfn, unsigned order)
{
    if (fallocate(hv->bank_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)((uint64_t)mfn << PAGE_SHIFT),
                  (off_t)(PAGE_SIZE << order)))
        return;
    for (uint64_t i = 0; i < 1ull << order; i++)
        hv->frame_table[mfn + i].flags &= ~(uint32_t)PGC_scrub;
}

static void chunk_free(struct hv *hv, uint32_t mfn, unsigned order)
{
    hv->free_frames += 1ull << order;
    if (order >= PUNCH_ORDER)
        punch(hv, mfn, order);
    for (; order < MAX_ORDER; order++) {
        uint64_t buddy = mfn ^ 1ull << order;
        const struct page_info *pg = &hv->frame_table[buddy];

        if (buddy + (1ull << order) > hv->nr_frames || !(pg->flags & PGC_free) || pg->order != order)
            break;
        chunk_remove(hv, (uint32_t)buddy);
        mfn &= ~(1u << order);
        if (order + 1 == PUNCH_ORDER)
            punch(hv, mfn, PUNCH_ORDER);
    }
    chunk_insert(hv, mfn, order);
}

/* First frame of a chunk, 0 when there is none. */
static uint32_t chunk_alloc(struct hv *hv, unsigned order)
{
    unsigned have = order;
    uint32_t mfn;

    while (have <= MAX_ORDER && !hv->free_list[have])
        have++;
    if (have > MAX_ORDER || 1ull << order > hv->free_frames)
        return 0;
    mfn = hv->free_list[have];
    chunk_remove(hv, mfn);
    while (have > order) {
        have--;
        chunk_insert(hv, mfn + (1u << have), have);
    }
    hv->free_frames -= 1ull << order;
    return mfn;
}

/* ---- the machine's memory --------------------------------------------------------------------------------------- */

static void *map_sparse(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

/* The window lies at a multiple of 2 MiB, so that the host can back banks with huge pages. The main bank is mapped at its
 * beginning. */
static uint8_t *map_window(int fd, uint64_t bytes, uint64_t window_bytes)
{
    uint8_t *room = mmap(NULL, window_bytes + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint8_t *base;

    if (room == MAP_FAILED)
        return NULL;
    base = (uint8_t *)(((uintptr_t)room + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1));
    if (mmap(base, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED) {
        munmap(room, window_bytes + HUGE_BYTES);
        return NULL;
    }
    if (base > room)
        munmap(room, (size_t)(base - room));
    if (base < room + HUGE_BYTES)
        munmap(base + window_bytes, (size_t)(room + HUGE_BYTES - base));
    madvise(base, bytes, MADV_HUGEPAGE);
    return base;
}

static int main_bank_create(struct hv *hv, uint64_t bytes)
{
    hv->bank_fd = memfd_create("umxen-bank", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (hv->bank_fd < 0)
        return -XEN_ENOMEM;
    if (ftruncate(hv->bank_fd, (off_t)bytes) ||
        fcntl(hv->bank_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return -XEN_ENOMEM;
    hv->bank_base = map_window(hv->bank_fd, bytes, hv->max_mfn << PAGE_SHIFT);
    return hv->bank_base ? 0 : -XEN_ENOMEM;
}

static void heap_seed(struct hv *hv)
{
    uint64_t mfn = NR_RESERVED_FRAMES;

    while (mfn < hv->nr_frames) {
        unsigned order = (unsigned)__builtin_ctzll(mfn);

        if (order > MAX_ORDER)
            order = MAX_ORDER;
        while (mfn + (1ull << order) > hv->nr_frames)
            order--;
        chunk_insert(hv, (uint32_t)mfn, order);
        hv->free_frames += 1ull << order;
        mfn += 1ull << order;
    }
}

int heap_init(struct hv *hv)
{
    uint64_t bytes = hv->config.memory_bytes;
    int rc;

    hv->bank_fd = -1;
    hv->bank_base = NULL;
    hv->frame_table = NULL;
    hv->invalid_m2p_page = NULL;
    list_init(&hv->banks);
    if (!bytes || bytes % HUGE_BYTES || (bytes >> PAGE_SHIFT) + BANKS_FRAMES > UINT32_MAX)
        return -XEN_EINVAL;
    memset(hv->free_list, 0, sizeof(hv->free_list));
    hv->free_frames = 0;
    hv->nr_frames = bytes >> PAGE_SHIFT;
    hv->first_bank_mfn = hv->next_bank_mfn = hv->nr_frames;
    hv->max_mfn = hv->nr_frames + BANKS_FRAMES;
    rc = main_bank_create(hv, bytes);
    if (!rc) {
        hv->frame_table = map_sparse(hv->max_mfn * sizeof(struct page_info));
        hv->invalid_m2p_page = map_sparse(PAGE_SIZE);
        if (!hv->frame_table || !hv->invalid_m2p_page)
            rc = -XEN_ENOMEM;
    }
    if (rc) {
        heap_destroy(hv);
        return rc;
    }
    memset(hv->invalid_m2p_page, 0xff, PAGE_SIZE);
    heap_seed(hv);
    return 0;
}

void heap_destroy(struct hv *hv)
{
    if (hv->bank_base)
        munmap(hv->bank_base, hv->max_mfn << PAGE_SHIFT);
    if (hv->bank_fd >= 0)
        close(hv->bank_fd);
    if (hv->frame_table)
        munmap(hv->frame_table, hv->max_mfn * sizeof(struct page_info));
    if (hv->invalid_m2p_page)
        munmap(hv->invalid_m2p_page, PAGE_SIZE);
    hv->bank_base = NULL;
    hv->bank_fd = -1;
    hv->frame_table = NULL;
    hv->invalid_m2p_page = NULL;
}

/* ---- frames without an owner ------------------------------------------------------------------------------------ */

/* A frame just taken from the heap: zeroed, its record fresh. Without the heap lock: nobody else knows the frame. */
static void frame_prepare(struct hv *hv, struct page_info *pg, uint16_t owner, uint32_t flags)
{
    if (pg->flags & PGC_scrub)
        memset(mfn_to_virt(hv, page_to_mfn(hv, pg)), 0, PAGE_SIZE);
    pg->flags = flags;
    pg->owner = owner;
    pg->type = PGT_none;
    pg->order = 0;
    pg->pinned = pg->validated = false;
    pg->foreign_writers = 0;
    pg->type_count = 0;
    pg->write_tag = 0;
}

struct page_info *alloc_heap_pages(struct hv *hv, unsigned order)
{
    uint32_t mfn;

    if (order > MAX_ORDER)
        return NULL;
    lock(&hv->heap_lock);
    mfn = chunk_alloc(hv, order);
    unlock(&hv->heap_lock);
    if (!mfn)
        return NULL;
    for (uint64_t i = 0; i < 1ull << order; i++)
        frame_prepare(hv, &hv->frame_table[mfn + i], DOMID_INVALID, 0);
    return &hv->frame_table[mfn];
}

/* A frame of a bank is the bank's until all of it goes. heap_lock held. */
static void bank_frame_free(struct domain *d, struct page_info *pg)
{
    ASSERT(!atomic_load_explicit(&pg->count, memory_order_relaxed));
    pg->flags = PGC_bank;
    pg->owner = DOMID_INVALID;
    d->bank->nr_live--;
}

/* heap_lock held. */
static void frames_free(struct hv *hv, struct page_info *pg, unsigned order)
{
    for (uint64_t i = 0; i < 1ull << order; i++) {
        ASSERT(!atomic_load_explicit(&pg[i].count, memory_order_relaxed) && !(pg[i].flags & PGC_free));
        pg[i].flags = PGC_scrub;
        pg[i].owner = DOMID_INVALID;
        pg[i].write_tag = 0;
    }
    chunk_free(hv, (uint32_t)mfn_x(page_to_mfn(hv, pg)), order);
}

void free_heap_pages(struct hv *hv, struct page_info *pg, unsigned order)
{
    lock(&hv->heap_lock);
    frames_free(hv, pg, order);
    unlock(&hv->heap_lock);
}

/* ---- frames of a domain ----------------------------------------------------------------------------------------- */

/* heap_lock held. */
static void page_list_append(struct domain *d, struct page_info *pg)
{
    struct hv *hv = d->hv;
    uint32_t mfn = (uint32_t)mfn_x(page_to_mfn(hv, pg));

    pg->next = 0;
    if (d->page_list) {
        struct page_info *first = &hv->frame_table[d->page_list];

        pg->prev = first->prev;
        hv->frame_table[first->prev].next = mfn;
        first->prev = mfn;
    } else {
        pg->prev = mfn;
        d->page_list = mfn;
    }
}

/* heap_lock held. */
static void page_list_remove(struct domain *d, struct page_info *pg)
{
    struct hv *hv = d->hv;
    uint32_t mfn = (uint32_t)mfn_x(page_to_mfn(hv, pg));

    if (d->page_list == mfn) {
        d->page_list = pg->next;
        if (pg->next)
            hv->frame_table[pg->next].prev = pg->prev;
    } else {
        hv->frame_table[pg->prev].next = pg->next;
        hv->frame_table[pg->next ? pg->next : d->page_list].prev = pg->prev;
    }
    pg->next = pg->prev = 0;
}

/* Takes a chunk out of the domain's quota. heap_lock held. */
static uint32_t quota_alloc(struct domain *d, unsigned order)
{
    uint64_t nr = 1ull << order;
    uint32_t mfn;

    if (d->tot_pages + nr > d->max_pages)
        return 0;
    mfn = chunk_alloc(d->hv, order);
    if (!mfn)
        return 0;
    if (!d->tot_pages)
        atomic_fetch_add(&d->refs, 1); /* a domain with frames isn't forgotten */
    d->tot_pages += nr;
    return mfn;
}

struct page_info *alloc_domheap_pages(struct domain *d, unsigned order)
{
    struct hv *hv = d->hv;
    struct page_info *pg;
    uint32_t mfn;

    if (order > MAX_ORDER)
        return NULL;
    lock(&hv->heap_lock);
    mfn = quota_alloc(d, order);
    unlock(&hv->heap_lock);
    if (!mfn)
        return NULL;
    pg = &hv->frame_table[mfn];
    for (uint64_t i = 0; i < 1ull << order; i++)
        frame_prepare(hv, &pg[i], d->id, PGC_allocated);
    lock(&hv->heap_lock);
    for (uint64_t i = 0; i < 1ull << order; i++) {
        page_list_append(d, &pg[i]);
        atomic_store_explicit(&pg[i].count, 1, memory_order_release);
    }
    unlock(&hv->heap_lock);
    return pg;
}

/* Each frame is charged to the domain before anybody can know it. */
int bank_to_domheap(struct domain *d)
{
    struct hv *hv = d->hv;
    struct page_info *pg;
    uint64_t nr = d->bank->nr_frames - d->bank->nr_taken;

    if (!nr || d->tot_pages + nr > d->max_pages)
        return -XEN_ENOMEM;
    atomic_fetch_add(&d->refs, 1); /* as in quota_alloc */
    while ((pg = bank_take(d->bank))) {
        pg->owner = d->id;
        pg->flags |= PGC_allocated;
        physmap_set(d, page_to_gfn(d, pg), page_to_mfn(hv, pg), p2m_ram);
        lock(&hv->heap_lock);
        d->tot_pages++;
        page_list_append(d, pg);
        unlock(&hv->heap_lock);
        atomic_store_explicit(&pg->count, 1, memory_order_release);
    }
    return 0;
}

struct page_info *alloc_xenheap_page(struct domain *d)
{
    struct page_info *pg = d->bank ? bank_take(d->bank) : alloc_heap_pages(d->hv, 0);

    if (!pg)
        return NULL;
    pg->owner = d->id;
    pg->flags |= PGC_xen_heap | PGC_allocated;
    pg->type = PGT_shared_page;
    pg->type_count = 1;
    physmap_set(d, page_to_gfn(d, pg), page_to_mfn(d->hv, pg), p2m_ram);
    lock(&d->hv->heap_lock);
    d->nr_xenheap_pages++;
    unlock(&d->hv->heap_lock);
    atomic_store_explicit(&pg->count, 1, memory_order_release);
    return pg;
}

void free_xenheap_page(struct domain *d, struct page_info *pg)
{
    ASSERT((pg->flags & (PGC_xen_heap | PGC_allocated)) == (PGC_xen_heap | PGC_allocated) && pg->owner == d->id);
    __atomic_and_fetch(&pg->flags, ~(uint32_t)PGC_allocated, __ATOMIC_RELAXED);
    put_pages(d, &pg, 1);
}

/* ---- references ------------------------------------------------------------------------------------------------- */

bool get_page(struct page_info *pg, const struct domain *d)
{
    uint32_t count = atomic_load_explicit(&pg->count, memory_order_acquire);

    do {
        if (!count || count >= MAX_COUNT || pg->owner != d->id)
            return false;
    } while (!atomic_compare_exchange_weak(&pg->count, &count, count + 1));
    return true;
}

/* No entry and no grant names the frame any more, and none can: its gfn goes first, then what the TLBs remember. */
static void unmap_gfn(struct domain *d, const struct page_info *pg)
{
    gfn_t gfn = page_to_gfn(d, pg);

    m2p_set(d, gfn, ~0ull);
    physmap_set(d, gfn, INVALID_MFN, p2m_none);
}

static void forget_frames(struct domain *d, struct page_info **pages, unsigned n)
{
    struct vcpu *curr = current_of(d);

    if (!d->engine)
        return;
    for (unsigned i = 0; i < n; i++)
        if (pages[i]->flags & PGC_code)
            engine()->frame_written(d, curr, pages[i]);
    if (d->relinquish_cursor) /* its vCPUs never run again */
        return;
    if (n == 1)
        engine()->revoke_frame(d, curr, pages[0], true);
    else
        engine()->flush_tlb(d, curr, NULL, FLUSH_ALL);
}

/* Back to the heap. True when these were the domain's last frames. */
static bool return_frames(struct domain *d, struct page_info **pages, unsigned n)
{
    struct hv *hv = d->hv;
    uint64_t before;
    bool last;

    lock(&hv->heap_lock);
    before = d->tot_pages;
    for (unsigned i = 0; i < n; i++) {
        if (pages[i]->flags & PGC_xen_heap) {
            d->nr_xenheap_pages--;
        } else {
            page_list_remove(d, pages[i]);
            d->tot_pages--;
        }
        if (pages[i]->flags & PGC_bank)
            bank_frame_free(d, pages[i]);
        else
            frames_free(hv, pages[i], 0);
    }
    last = before && !d->tot_pages;
    unlock(&hv->heap_lock);
    return last;
}

void put_pages(struct domain *d, struct page_info **pages, unsigned n)
{
    unsigned leaving = 0;

    for (unsigned i = 0; i < n; i++) {
        struct page_info *pg = pages[i];
        uint32_t count = atomic_fetch_sub(&pg->count, 1);

        ASSERT(count);
        if (count > 1)
            continue;
        ASSERT(pg->type_count == (pg->flags & PGC_xen_heap ? 1 : 0) && !pg->validated);
        unmap_gfn(d, pg);
        pages[leaving++] = pg;
    }
    if (!leaving)
        return;
    forget_frames(d, pages, leaving);
    if (return_frames(d, pages, leaving))
        put_domain(d);
}

void put_page(struct hv *hv, struct page_info *pg)
{
    uint32_t count = atomic_load(&pg->count);

    do {
        ASSERT(count);
        if (count == 1) {
            ASSERT(hv->domain[pg->owner]);
            put_pages(hv->domain[pg->owner], &pg, 1);
            return;
        }
    } while (!atomic_compare_exchange_weak(&pg->count, &count, count - 1));
}
