/*
 * What the state machines in tests/property call: frames are named by mfn (0: none), answers are plain integers.
 */
#include "harness.h"

#include "public/memory.h"

static struct page_info *frame(struct hv *hv, uint64_t mfn)
{
    return mfn_to_page(hv, _mfn(mfn));
}

uint64_t drive_free_frames(struct hv *hv)
{
    return hv->free_frames;
}

uint64_t drive_alloc_heap(struct hv *hv, uint32_t order)
{
    struct page_info *pg = alloc_heap_pages(hv, order);

    return pg ? mfn_x(page_to_mfn(hv, pg)) : 0;
}

void drive_free_heap(struct hv *hv, uint64_t mfn, uint32_t order)
{
    free_heap_pages(hv, frame(hv, mfn), order);
}

/* Through the guest's own XENMEM_populate_physmap. */
uint64_t drive_alloc_domheap(struct domain *d, uint32_t order)
{
    xen_pfn_t list = 7;
    struct xen_memory_reservation r = {
        .extent_start = (uintptr_t)&list, .nr_extents = 1, .extent_order = order, .domid = DOMID_SELF};

    set_caller(d, d->vcpu[0]);
    return do_memory_op(d->vcpu[0], d, XENMEM_populate_physmap, (uintptr_t)&r) == 1 ? list : 0;
}

/* XENMEM_decrease_reservation: extents done. */
int64_t drive_release(struct domain *d, uint64_t mfn, uint32_t order)
{
    xen_pfn_t list = mfn;
    struct xen_memory_reservation r = {
        .extent_start = (uintptr_t)&list, .nr_extents = 1, .extent_order = order, .domid = DOMID_SELF};

    set_caller(d, d->vcpu[0]);
    return do_memory_op(d->vcpu[0], d, XENMEM_decrease_reservation, (uintptr_t)&r);
}

/* A reference from outside, as of a grant map. */
int drive_hold(struct domain *d, uint64_t mfn)
{
    set_caller(d, d->vcpu[0]);
    if (!get_page(frame(d->hv, mfn), d))
        return 0;
    expect_extra(frame(d->hv, mfn), 1, 0);
    return 1;
}

void drive_unhold(struct domain *d, uint64_t mfn)
{
    set_caller(d, d->vcpu[0]);
    expect_extra(frame(d->hv, mfn), -1, 0);
    put_page(d->hv, frame(d->hv, mfn));
}

int drive_is_zero(struct hv *hv, uint64_t mfn, uint32_t order)
{
    const uint64_t *w = mfn_to_virt(hv, _mfn(mfn));

    for (uint64_t i = 0; i < 512ull << order; i += 1 + i % 7)
        if (w[i])
            return 0;
    return 1;
}

void drive_fill(struct hv *hv, uint64_t mfn, uint32_t order)
{
    memset(mfn_to_virt(hv, _mfn(mfn)), 0xee, PAGE_SIZE << order);
}

/* How many calls it took. */
uint32_t drive_relinquish(struct domain *d)
{
    uint32_t calls = 1;

    set_caller(d, d->vcpu[0]);
    tlb_gone(d);
    atomic_store(&d->dying, DOMDYING_dying);
    while (domain_relinquish_memory(d) == -XEN_ERESTART)
        calls++;
    return calls;
}

uint64_t drive_tot_pages(struct domain *d)
{
    return d->tot_pages;
}

/* One mmu_update. */
int64_t drive_write(struct domain *d, uint64_t mfn, uint32_t slot, uint64_t val, int preserve_ad)
{
    struct mmu_update u = {.ptr = (mfn << PAGE_SHIFT) + slot * 8 + (preserve_ad ? MMU_PT_UPDATE_PRESERVE_AD : 0), .val = val};

    set_caller(d, d->vcpu[0]);
    return do_mmu_update(d->vcpu[0], d, (uintptr_t)&u, 1, 0, DOMID_SELF);
}

uint64_t drive_read(struct hv *hv, uint64_t mfn, uint32_t slot)
{
    return ((uint64_t *)mfn_to_virt(hv, _mfn(mfn)))[slot];
}

static int64_t mmuext(struct domain *d, uint32_t cmd, uint64_t mfn)
{
    struct mmuext_op op = {.cmd = cmd, .arg1.mfn = mfn};

    set_caller(d, d->vcpu[0]);
    return do_mmuext_op(d->vcpu[0], d, (uintptr_t)&op, 1, 0, DOMID_SELF);
}

int64_t drive_pin(struct domain *d, uint32_t level, uint64_t mfn)
{
    return mmuext(d, MMUEXT_PIN_L1_TABLE + level - 1, mfn);
}

int64_t drive_unpin(struct domain *d, uint64_t mfn)
{
    return mmuext(d, MMUEXT_UNPIN_TABLE, mfn);
}

int64_t drive_baseptr(struct domain *d, uint64_t mfn, int user)
{
    return mmuext(d, user ? MMUEXT_NEW_USER_BASEPTR : MMUEXT_NEW_BASEPTR, mfn);
}

uint32_t drive_type(struct hv *hv, uint64_t mfn)
{
    return frame(hv, mfn)->type_count ? frame(hv, mfn)->type : PGT_none;
}

uint32_t drive_type_count(struct hv *hv, uint64_t mfn)
{
    return frame(hv, mfn)->type_count;
}

uint32_t drive_count(struct hv *hv, uint64_t mfn)
{
    return frame(hv, mfn)->count;
}

void drive_touch(struct domain *d, uint64_t mfn)
{
    set_caller(d, d->vcpu[0]);
    tlb_touch(frame(d->hv, mfn));
}
