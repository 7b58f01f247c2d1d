/*
 * Each domain's two tables between guest frames and others: the physmap (gfn -> machine frame), which only we read, and
 * the machine-to-phys table (gfn -> the guest's own pfn), which the guest reads at M2P_VIRT_START.
 *
 * The physmap is one sparse mapping over every gfn that the domain may have: an entry costs memory only near used ones. It is
 * written under the domain lock and read without it when a TLB is filled, hence the atomics.
 *
 * The machine-to-phys table is made of pages of 512 entries. Absent ones are all the one page of hv->invalid_m2p_page,
 * so a guest that looks at frames of others sees INVALID_M2P_ENTRY. When a page takes its place, TLBs that remember the
 * common page are told.
 */
#include <sys/mman.h>

#include "bank.h"
#include "hypercall.h"
#include "machine.h"

#define M2P_PER_PAGE (PAGE_SIZE / sizeof(uint64_t))
#define INVALID_M2P (~0ull)

struct m2p {
    uint64_t nr_pages;
    _Atomic(uint64_t *) page[]; /* NULL: the common one */
};

int physmap_init(struct domain *d)
{
    uint64_t nr_gfns = d->bank ? d->bank->base + d->bank->nr_frames : d->hv->nr_frames;
    void *p = mmap(NULL, nr_gfns * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    if (p == MAP_FAILED)
        return -XEN_ENOMEM;
    d->physmap.entry = p;
    d->physmap.nr_gfns = nr_gfns;
    return 0;
}

void physmap_destroy(struct domain *d)
{
    if (d->physmap.entry)
        munmap((void *)d->physmap.entry, d->physmap.nr_gfns * sizeof(uint64_t));
    d->physmap.entry = NULL;
    d->physmap.nr_gfns = 0;
}

void physmap_set(struct domain *d, gfn_t gfn, mfn_t mfn, enum p2m_type type)
{
    if (gfn_x(gfn) < d->physmap.nr_gfns)
        atomic_store_explicit(&d->physmap.entry[gfn_x(gfn)], type == p2m_none ? 0 : mfn_x(mfn) << 8 | type,
                              memory_order_release);
}

gfn_t page_to_gfn(const struct domain *d, const struct page_info *pg)
{
    return _gfn(mfn_x(page_to_mfn(d->hv, pg)));
}

struct page_info *get_page_from_gfn(struct domain *d, gfn_t gfn)
{
    enum p2m_type type = p2m_none;
    mfn_t mfn = physmap_lookup(&d->physmap, gfn, &type);
    struct page_info *pg;

    if (mfn_eq(mfn, INVALID_MFN) || type != p2m_ram)
        return NULL;
    pg = mfn_to_page(d->hv, mfn);
    return get_page(pg, d) ? pg : NULL;
}

/* ---- machine-to-phys -------------------------------------------------------------------------------------------- */

int m2p_init(struct domain *d)
{
    uint64_t nr_pages = DIV_ROUND_UP(d->hv->nr_frames, M2P_PER_PAGE);

    d->m2p = calloc(1, sizeof(struct m2p) + nr_pages * sizeof(uint64_t *));
    if (!d->m2p)
        return -XEN_ENOMEM;
    d->m2p->nr_pages = nr_pages;
    return 0;
}

void m2p_destroy(struct domain *d)
{
    if (!d->m2p)
        return;
    for (uint64_t i = 0; i < d->m2p->nr_pages; i++)
        free(atomic_load(&d->m2p->page[i]));
    free(d->m2p);
    d->m2p = NULL;
}

static uint64_t *m2p_make_page(struct domain *d, uint64_t index)
{
    uint64_t *page = aligned_alloc(PAGE_SIZE, PAGE_SIZE);

    if (!page)
        return NULL;
    memset(page, 0xff, PAGE_SIZE);
    atomic_store_explicit(&d->m2p->page[index], page, memory_order_release);
    if (d->engine)
        engine()->flush_page(d, current_of(d), NULL, M2P_VIRT_START + index * PAGE_SIZE);
    return page;
}

int m2p_set(struct domain *d, gfn_t gfn, uint64_t pfn)
{
    uint64_t index = gfn_x(gfn) / M2P_PER_PAGE;
    uint64_t *page;

    if (!d->m2p || index >= d->m2p->nr_pages)
        return pfn == INVALID_M2P ? 0 : -XEN_EINVAL;
    page = atomic_load_explicit(&d->m2p->page[index], memory_order_relaxed);
    if (!page) {
        if (pfn == INVALID_M2P)
            return 0;
        page = m2p_make_page(d, index);
        if (!page)
            return -XEN_ENOMEM;
    }
    __atomic_store_n(&page[gfn_x(gfn) % M2P_PER_PAGE], pfn, __ATOMIC_RELAXED);
    return 0;
}

uint64_t m2p_get(const struct domain *d, gfn_t gfn)
{
    uint64_t index = gfn_x(gfn) / M2P_PER_PAGE;
    const uint64_t *page;

    if (!d->m2p || index >= d->m2p->nr_pages)
        return INVALID_M2P;
    page = atomic_load_explicit(&d->m2p->page[index], memory_order_acquire);
    return page ? __atomic_load_n(&page[gfn_x(gfn) % M2P_PER_PAGE], __ATOMIC_RELAXED) : INVALID_M2P;
}

const void *m2p_page(const struct domain *d, uint64_t vaddr)
{
    uint64_t index = (vaddr - M2P_VIRT_START) >> PAGE_SHIFT;
    const uint64_t *page;

    if (!d->m2p || vaddr < M2P_VIRT_START || index >= d->m2p->nr_pages)
        return NULL;
    page = atomic_load_explicit(&d->m2p->page[index], memory_order_acquire);
    return page ? page : d->hv->invalid_m2p_page;
}

uint64_t m2p_end(const struct domain *d)
{
    return M2P_VIRT_START + (d->m2p ? d->m2p->nr_pages * PAGE_SIZE : 0);
}
