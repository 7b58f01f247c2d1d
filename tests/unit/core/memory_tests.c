/*
 * Named tests of the core's memory files: `memory_tests NAME` runs one, without a name it lists them.
 */
#include "harness.h"

#include "public/memory.h"

#define RW (PTE_PRESENT | PTE_RW)
#define RO PTE_PRESENT
#define HANDLE(p) ((uint64_t)(uintptr_t)(p))

static struct hv *hv;
static struct domain *dom0, *d;
static struct vcpu *v;

static void setup(void)
{
    hv = machine_new(16);
    dom0 = domain_new(hv, 0, DOMAIN_PROCESS, 0, 0);
    d = domain_new(hv, 1, DOMAIN_PV, 1000, 2);
    v = d->vcpu[0];
    set_caller(d, v);
}

/* Every test ends as it began: all frames are free again. */
static void teardown(void)
{
    uint64_t all = hv->nr_frames - 256;
    int rc;

    set_caller(dom0, NULL);
    CHECK_EQ(audit(hv), 0);
    atomic_store(&d->dying, DOMDYING_dying);
    while ((rc = domain_relinquish_memory(d)) == -XEN_ERESTART)
        ;
    CHECK_EQ(rc, 0);
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(hv->free_frames, all);
    domain_free(d);
    domain_free(dom0);
    machine_free(hv);
}

static uint64_t pte(struct page_info *pg, uint64_t flags)
{
    return gfn_of(d, pg) << PAGE_SHIFT | flags;
}

/* An address space: one table of each level. va 0x1000 * i is entry i of the L1. */
struct space { struct page_info *l4, *l3, *l2, *l1; };

static struct space space_new(void)
{
    struct space s = {frame_new(d), frame_new(d), frame_new(d), frame_new(d)};

    words(hv, s.l4)[0] = pte(s.l3, RW);
    words(hv, s.l3)[0] = pte(s.l2, RW);
    words(hv, s.l2)[0] = pte(s.l1, RW);
    return s;
}

static int64_t mmuext(unsigned cmd, uint64_t arg1, uint64_t arg2)
{
    struct mmuext_op op = {.cmd = cmd, .arg1.mfn = arg1, .arg2.vcpumask = arg2};

    return do_mmuext_op(current_caller.vcpu, current_caller.domain, HANDLE(&op), 1, 0,
                        current_caller.domain == d ? DOMID_SELF : d->id);
}

static int64_t update(struct page_info *table, unsigned slot, uint64_t val)
{
    struct mmu_update u = {.ptr = (gfn_of(d, table) << PAGE_SHIFT) + slot * 8, .val = val};

    return do_mmu_update(v, d, HANDLE(&u), 1, 0, DOMID_SELF);
}

static struct space space_loaded(void)
{
    struct space s = space_new();

    CHECK_EQ(mmuext(MMUEXT_NEW_BASEPTR, gfn_of(d, s.l4), 0), 0);
    return s;
}

/* ---- tests ------------------------------------------------------------------------------------------------------ */

static void test_heap_orders(void)
{
    struct page_info *pg[MAX_ORDER];
    uint64_t free = hv->free_frames;

    for (unsigned order = 0; order <= 10; order++) {
        pg[order] = alloc_heap_pages(hv, order);
        CHECK(pg[order]);
        CHECK_EQ(mfn_x(page_to_mfn(hv, pg[order])) & ((1u << order) - 1), 0);
        memset(mfn_to_virt(hv, page_to_mfn(hv, pg[order])), 0x5a, PAGE_SIZE << order);
    }
    CHECK(!alloc_heap_pages(hv, 12));
    CHECK_EQ(hv->free_frames, free - 2047);
    for (unsigned order = 0; order <= 10; order++)
        free_heap_pages(hv, pg[order], order);
    CHECK_EQ(hv->free_frames, free);
    CHECK_EQ(audit(hv), 0);
}

static void test_heap_zeroes(void)
{
    struct page_info *all[4096];
    unsigned n = 0;

    for (int round = 0; round < 2; round++) {
        for (n = 0; (all[n] = alloc_heap_pages(hv, 0)); n++) {
            uint64_t *w = words(hv, all[n]);

            for (unsigned i = 0; i < 512; i++)
                CHECK_EQ(w[i], 0);
            w[17] = ~0ull;
        }
        CHECK_EQ(n, hv->nr_frames - 256);
        CHECK_EQ(hv->free_frames, 0);
        for (unsigned i = 0; i < n; i += 2) /* no two neighbours: nothing is punched */
            free_heap_pages(hv, all[i], 0);
        CHECK_EQ(audit(hv), 0);
        for (unsigned i = 0; i < n; i += 2) {
            all[i] = alloc_heap_pages(hv, 0);
            CHECK_EQ(words(hv, all[i])[17], 0);
        }
        for (unsigned i = 0; i < n; i++)
            free_heap_pages(hv, all[i], 0);
        CHECK_EQ(audit(hv), 0);
    }
}

static void test_quota(void)
{
    struct page_info *pg = alloc_domheap_pages(d, 9);

    CHECK(pg && d->tot_pages == 512 && d->refs == 2);
    CHECK(!alloc_domheap_pages(d, 9));
    for (unsigned i = 512; i < 1000; i++)
        CHECK(frame_new(d));
    CHECK(!frame_new(d));
    CHECK(!get_page(pg, dom0));
    CHECK_EQ(audit(hv), 0);
}

static void test_space(void)
{
    struct space s = space_loaded();
    struct page_info *data = frame_new(d), *other = frame_new(d);

    CHECK_EQ(s.l4->type, PGT_l4_page_table);
    CHECK_EQ(s.l1->type, PGT_l1_page_table);
    CHECK_EQ(engine_calls.set_cr3, 1);
    CHECK_EQ(engine_calls.last_root, gfn_of(d, s.l4));
    CHECK_EQ(do_update_va_mapping(v, 0x3000, pte(data, RW), UVMF_INVLPG), 0);
    CHECK_EQ(engine_calls.flush_page, 1);
    CHECK_EQ(engine_calls.last_vaddr, 0x3000);
    CHECK(engine_calls.last_vcpu == v);
    CHECK_EQ(words(hv, s.l1)[3], pte(data, RW | PTE_USER));
    CHECK_EQ(data->type_count, 1);
    CHECK_EQ(do_update_va_mapping(v, 0x4000, pte(data, RW), UVMF_TLB_FLUSH | UVMF_ALL), 0);
    CHECK_EQ(engine_calls.flush_tlb, 1);
    CHECK(!engine_calls.last_vcpu);
    CHECK_EQ(data->count, 3);
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(do_update_va_mapping(v, 0x3000, pte(other, RO), 0), 0);
    CHECK_EQ(do_update_va_mapping(v, 0x4000, 0, 0), 0);
    CHECK_EQ(data->type_count, 0);
    CHECK_EQ(do_update_va_mapping(v, 0x200000, pte(data, RW), 0), -XEN_EINVAL); /* no L1 there */
    CHECK_EQ(do_update_va_mapping(v, M2P_VIRT_START, pte(data, RW), 0), -XEN_EINVAL);
    CHECK_EQ(do_update_va_mapping(v, 0x800000000000ull, pte(data, RW), UVMF_INVLPG), -XEN_EINVAL);
    CHECK_EQ(mmuext(MMUEXT_NEW_USER_BASEPTR, gfn_of(d, s.l4), 0), 0);
    CHECK_EQ(s.l4->type_count, 2);
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0), 0);
    CHECK_EQ(engine_calls.last_root, ~0ull);
    CHECK_EQ(mmuext(MMUEXT_NEW_BASEPTR, gfn_of(d, data), 0), 0); /* an empty page is a table, too */
    CHECK_EQ(s.l1->type_count, 0);
    CHECK_EQ(mmuext(MMUEXT_NEW_BASEPTR, gfn_of(d, data), 0), 0);
    CHECK_EQ(mmuext(MMUEXT_NEW_BASEPTR, ~0ull, 0), -XEN_EINVAL);
}

static void test_table_never_writable(void)
{
    struct space s = space_loaded();

    CHECK_EQ(update(s.l1, 5, pte(s.l1, RW)), -XEN_EBUSY);
    CHECK_EQ(update(s.l1, 5, pte(s.l4, RW)), -XEN_EBUSY);
    CHECK_EQ(update(s.l1, 5, pte(s.l4, RO)), 0);
    CHECK_EQ(update(s.l1, 5, pte(s.l4, RW)), -XEN_EBUSY); /* making it writable is no change of flags only */
    CHECK_EQ(words(hv, s.l1)[5], pte(s.l4, RO | PTE_USER));
    CHECK_EQ(update(s.l4, 4, pte(s.l4, RO)), -XEN_EINVAL); /* a linear table */
    CHECK_EQ(update(s.l4, 256, pte(s.l3, RO)), -XEN_EINVAL);
    CHECK_EQ(update(s.l4, 271, 0), -XEN_EINVAL);
    CHECK_EQ(update(s.l4, 272, pte(s.l3, RO)), 0);
    CHECK_EQ(update(s.l2, 1, pte(s.l1, RW | PTE_PSE)), -XEN_EINVAL);
    CHECK_EQ(update(s.l1, 6, pte(s.l1, RO | PTE_PCD)), -XEN_EINVAL);
    CHECK_EQ(update(s.l1, 6, pte(s.l1, RO | PTE_GLOBAL | 0xe00 | PTE_NX | 1ull << 55)), 0);
    CHECK_EQ(mmuext(MMUEXT_CLEAR_PAGE, gfn_of(d, s.l1), 0), -XEN_EINVAL);
}

static void test_foreign_frames(void)
{
    struct space s = space_loaded();
    struct domain *other = domain_new(hv, 2, DOMAIN_PV, 10, 0);
    struct page_info *theirs = frame_new(other);

    CHECK_EQ(update(s.l1, 0, pte(theirs, RO)), -XEN_EBUSY);
    CHECK_EQ(update(s.l2, 7, pte(theirs, RO)), -XEN_EINVAL);
    CHECK_EQ(update(s.l1, 0, (hv->nr_frames << PAGE_SHIFT) | RO), -XEN_EPERM);
    CHECK_EQ(update(s.l1, 0, (0xb8ull << PAGE_SHIFT) | RO), -XEN_EPERM);
    CHECK_EQ(update(s.l1, 0, PTE_ADDR | RO), -XEN_EINVAL);
    CHECK_EQ(update(s.l1, 0, PTE_ADDR | PTE_RW), 0); /* not present: anything goes */
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(domain_relinquish_memory(other), 0);
    domain_free(other);
}

static void test_failed_validation_holds_nothing(void)
{
    struct space s = space_new();
    struct page_info *data = frame_new(d);
    uint64_t *l1 = words(hv, s.l1);

    for (unsigned i = 0; i < 511; i++)
        l1[i] = pte(data, i % 2 ? RW : RO);
    l1[511] = pte(s.l3, RW); /* a table of the very space */
    CHECK_EQ(mmuext(MMUEXT_PIN_L4_TABLE, gfn_of(d, s.l4), 0), -XEN_EBUSY);
    CHECK_EQ(data->count, 1);
    CHECK_EQ(s.l2->count, 1);
    CHECK_EQ(audit(hv), 0);
    l1[511] = 0;
    CHECK_EQ(mmuext(MMUEXT_PIN_L4_TABLE, gfn_of(d, s.l4), 0), 0);
    CHECK_EQ(data->type_count, 255);
    CHECK_EQ(data->count, 512);
}

static void test_pins(void)
{
    struct space s = space_new();

    CHECK_EQ(mmuext(MMUEXT_UNPIN_TABLE, gfn_of(d, s.l4), 0), -XEN_EINVAL);
    CHECK_EQ(mmuext(MMUEXT_PIN_L4_TABLE, gfn_of(d, s.l4), 0), 0);
    CHECK_EQ(mmuext(MMUEXT_PIN_L4_TABLE, gfn_of(d, s.l4), 0), -XEN_EINVAL);
    CHECK_EQ(mmuext(MMUEXT_PIN_L3_TABLE, gfn_of(d, s.l4), 0), -XEN_EINVAL);
    CHECK_EQ(mmuext(MMUEXT_PIN_L1_TABLE, gfn_of(d, s.l1), 0), 0);
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(mmuext(MMUEXT_UNPIN_TABLE, gfn_of(d, s.l4), 0), 0);
    CHECK_EQ(s.l1->type_count, 1);
    CHECK_EQ(s.l2->type_count, 0);
    CHECK_EQ(audit(hv), 0);
    set_caller(dom0, NULL); /* a builder pins for its domain */
    CHECK_EQ(mmuext(MMUEXT_PIN_L4_TABLE, gfn_of(d, s.l4), 0), 0);
    CHECK_EQ(mmuext(MMUEXT_TLB_FLUSH_ALL, 0, 0), -XEN_EPERM);
    CHECK_EQ(mmuext(99, 0, 0), -XEN_EPERM);
}

static void test_write_tags_are_revoked(void)
{
    struct page_info *data = frame_new(d);

    tlb_touch(data);
    CHECK_EQ(mmuext(MMUEXT_PIN_L1_TABLE, gfn_of(d, data), 0), 0);
    CHECK_EQ(engine_calls.revoke, 1);
    CHECK_EQ(engine_calls.revoke_all, 0);
    CHECK_EQ(mmuext(MMUEXT_UNPIN_TABLE, gfn_of(d, data), 0), 0);
    CHECK_EQ(mmuext(MMUEXT_PIN_L1_TABLE, gfn_of(d, data), 0), 0);
    CHECK_EQ(engine_calls.revoke, 1);
}

static void test_generation_counts_lost_writers(void)
{
    struct space s = space_loaded();
    struct page_info *data = frame_new(d);
    uint32_t before;

    CHECK_EQ(update(s.l1, 0, pte(data, RW)), 0);
    CHECK_EQ(update(s.l1, 1, pte(data, RW)), 0);
    before = d->mm_generation;
    CHECK_EQ(update(s.l1, 0, pte(data, RO)), 0);
    CHECK_EQ(d->mm_generation, before);
    CHECK_EQ(update(s.l1, 1, 0), 0);
    CHECK_EQ(d->mm_generation, before + 1);
}

static void test_fast_path_and_ad_bits(void)
{
    struct space s = space_loaded();
    struct page_info *data = frame_new(d);
    struct mmu_update u = {.ptr = (gfn_of(d, s.l1) << PAGE_SHIFT) + 8};

    CHECK_EQ(update(s.l1, 1, pte(data, RW | PTE_DIRTY | PTE_ACCESSED)), 0);
    CHECK_EQ(update(s.l1, 1, pte(data, RW | PTE_NX)), 0);
    CHECK_EQ(words(hv, s.l1)[1], pte(data, RW | PTE_USER | PTE_NX));
    words(hv, s.l1)[1] |= PTE_DIRTY | PTE_ACCESSED; /* as a vCPU does */
    u.ptr |= MMU_PT_UPDATE_PRESERVE_AD;
    u.val = pte(data, RO);
    CHECK_EQ(do_mmu_update(v, d, HANDLE(&u), 1, 0, DOMID_SELF), 0);
    CHECK_EQ(words(hv, s.l1)[1], pte(data, RO | PTE_USER | PTE_DIRTY | PTE_ACCESSED));
    CHECK_EQ(data->type_count, 0);
}

static void test_code(void)
{
    struct space s = space_loaded();
    struct page_info *data = frame_new(d);

    CHECK_EQ(update(s.l1, 1, pte(data, RO)), 0);
    data->flags |= PGC_code;
    CHECK_EQ(update(s.l1, 1, pte(data, RO | 0x200)), 0);
    CHECK_EQ(engine_calls.unmap_code, 0);
    CHECK_EQ(update(s.l1, 1, pte(data, RO | PTE_NX)), 0);
    CHECK_EQ(engine_calls.unmap_code, 1);
    CHECK_EQ(update(s.l1, 1, pte(data, RO)), 0);
    CHECK_EQ(update(s.l4, 0, 0), 0); /* the engine hears of the entry, not of what lies below */
    CHECK_EQ(engine_calls.unmap_tables, 1);
    CHECK_EQ(engine_calls.unmap_code, 1);
    CHECK_EQ(mmuext(MMUEXT_CLEAR_PAGE, gfn_of(d, data), 0), 0);
    CHECK_EQ(engine_calls.frame_written, 1);
}

static void test_mmu_update_lists(void)
{
    struct page_info *data = frame_new(d);
    struct mmu_update u[200];
    uint32_t done = 77;
    uint64_t base = gfn_of(d, data) << PAGE_SHIFT;

    for (unsigned i = 0; i < 200; i++)
        u[i] = (struct mmu_update){.ptr = base + i * 8, .val = i + 1};
    preempt_after(2);
    CHECK_EQ(do_mmu_update(v, d, HANDLE(u), 200, HANDLE(&done), DOMID_SELF), -XEN_ERESTART);
    CHECK_EQ(done, 128);
    CHECK_EQ(continued.args[0], HANDLE(u + 128));
    CHECK_EQ(continued.args[1], 72 | 0x80000000u);
    CHECK_EQ(do_mmu_update(v, d, continued.args[0], continued.args[1], continued.args[2], continued.args[3]), 0);
    CHECK_EQ(done, 200);
    for (unsigned i = 0; i < 200; i++)
        CHECK_EQ(words(hv, data)[i], i + 1);
    u[150].ptr = 0;
    CHECK_EQ(do_mmu_update(v, d, HANDLE(u), 200, HANDLE(&done), DOMID_SELF), -XEN_EINVAL);
    CHECK_EQ(done, 150);
    CHECK_EQ(do_mmu_update(v, d, HANDLE(u), 1, 0, 0), -XEN_EPERM);
    u[0].ptr = base | 4;
    CHECK_EQ(do_mmu_update(v, d, HANDLE(u), 1, 0, DOMID_SELF), -XEN_ENOSYS);
    CHECK_EQ(do_mmu_update(v, d, 8, 1, HANDLE(&done), DOMID_SELF), -XEN_EFAULT);
    CHECK_EQ(done, 0);
    CHECK_EQ(do_mmu_update(v, d, HANDLE(u), 1, 0, DOMID_IO), -XEN_ESRCH);
    CHECK_EQ(do_mmu_update(v, d, HANDLE(u), 0, HANDLE(&done), DOMID_SELF), 0);
}

static void test_machphys(void)
{
    struct page_info *data = frame_new(d);
    uint64_t gfn = gfn_of(d, data);
    struct mmu_update u = {.ptr = gfn << PAGE_SHIFT | MMU_MACHPHYS_UPDATE, .val = 1234};
    const uint64_t *page = m2p_page(d, M2P_VIRT_START + gfn * 8);

    CHECK(page == hv->invalid_m2p_page);
    CHECK(!m2p_page(d, m2p_end(d)));
    CHECK_EQ(m2p_get(d, _gfn(gfn)), ~0ull);
    CHECK_EQ(do_mmu_update(v, d, HANDLE(&u), 1, 0, DOMID_SELF), 0);
    page = m2p_page(d, M2P_VIRT_START + gfn * 8);
    CHECK_EQ(page[gfn % 512], 1234);
    CHECK_EQ(page[(gfn + 1) % 512], ~0ull);
    CHECK_EQ(engine_calls.flush_page, 1);
    set_caller(dom0, NULL);
    u.val = 99;
    CHECK_EQ(do_mmu_update(NULL, dom0, HANDLE(&u), 1, 0, d->id), 0);
    CHECK_EQ(m2p_get(d, _gfn(gfn)), 99);
    u.ptr = gfn << PAGE_SHIFT;
    CHECK_EQ(do_mmu_update(NULL, dom0, HANDLE(&u), 1, 0, d->id | (d->id + 1u) << 16), 0);
    CHECK_EQ(words(hv, data)[0], 99);
    CHECK_EQ(do_mmu_update(NULL, dom0, HANDLE(&u), 1, 0, d->id), -XEN_EINVAL);
    CHECK_EQ(do_mmu_update(NULL, dom0, HANDLE(&u), 1, 0, 5), -XEN_ESRCH);
}

static void test_flushes(void)
{
    uint64_t mask = 2;

    CHECK_EQ(mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0, 0), 0);
    CHECK(engine_calls.last_vcpu == v);
    CHECK_EQ(mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, HANDLE(&mask)), 0);
    CHECK(engine_calls.last_vcpu == d->vcpu[1]);
    CHECK_EQ(mmuext(MMUEXT_INVLPG_MULTI, 0x5000, HANDLE(&mask)), 0);
    CHECK_EQ(engine_calls.flush_page, 1);
    CHECK_EQ(mmuext(MMUEXT_INVLPG_ALL, 0x900000000000ull, 0), 0);
    CHECK_EQ(engine_calls.flush_page, 1);
    CHECK_EQ(mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, 16), -XEN_EINVAL);
    CHECK_EQ(mmuext(MMUEXT_FLUSH_CACHE, 0, 0), -XEN_EACCES);
    CHECK_EQ(mmuext(MMUEXT_MARK_SUPER, ~0ull, 0), -XEN_EOPNOTSUPP);
    CHECK_EQ(mmuext(MMUEXT_SET_LDT, 0x1001, 3), -XEN_EINVAL);
    CHECK_EQ(mmuext(MMUEXT_SET_LDT, 0x1000, 3), 0);
    CHECK_EQ(v->pv.ldt_entries, 3);
    CHECK_EQ(mmuext(99, 0, 0), -XEN_ENOSYS);
}

static void test_copy_page(void)
{
    struct page_info *a = frame_new(d), *b = frame_new(d);

    memset(words(hv, a), 0x42, PAGE_SIZE);
    CHECK_EQ(mmuext(MMUEXT_COPY_PAGE, gfn_of(d, b), gfn_of(d, a)), 0);
    CHECK_EQ(memcmp(words(hv, a), words(hv, b), PAGE_SIZE), 0);
    CHECK_EQ(mmuext(MMUEXT_CLEAR_PAGE, gfn_of(d, a), 0), 0);
    CHECK_EQ(words(hv, a)[511], 0);
    CHECK_EQ(mmuext(MMUEXT_COPY_PAGE, gfn_of(d, b), 0), -XEN_EINVAL);
}

static void test_ptwr(void)
{
    struct space s = space_loaded();
    struct page_info *data = frame_new(d);

    CHECK_EQ(update(s.l1, 2, pte(s.l1, RO)), 0); /* the table sees itself at 0x2000 */
    CHECK(pv_ptwr_write(v, 0x2000 + 9 * 8, pte(data, RW), 8));
    CHECK_EQ(data->type_count, 1);
    CHECK(pv_ptwr_write(v, 0x2000 + 9 * 8, RO, 1)); /* RW, 32 bits of address stay */
    CHECK_EQ(words(hv, s.l1)[9], pte(data, RO | PTE_USER));
    CHECK_EQ(data->type_count, 0);
    CHECK(!pv_ptwr_write(v, 0x2000 + 9 * 8, pte(s.l1, RW), 8));
    CHECK(!pv_ptwr_write(v, 0x2000 + 9 * 8 + 2, 0, 4));
    CHECK(!pv_ptwr_write(v, 0x3000, 0, 8));
    CHECK_EQ(update(s.l1, 3, pte(s.l2, RO)), 0);
    CHECK(!pv_ptwr_write(v, 0x3000, 0, 8)); /* only level 1 */
}

static void test_descriptors(void)
{
    struct page_info *gdt = frame_new(d), *more = frame_new(d);
    uint64_t gfns[2] = {gfn_of(d, gdt), gfn_of(d, more)}, code = 0x00af9b000000ffffull, tss = 0x0000890000000067ull,
             gate = 0x00008c0000100000ull, trap_gate = 0x00008f0000100000ull;
    uint64_t addr = gfns[0] << PAGE_SHIFT;

    words(hv, gdt)[2] = code;
    words(hv, gdt)[3] = tss & ~(1ull << 47); /* not present: harmless */
    CHECK_EQ(do_set_gdt(v, HANDLE(gfns), 600), 0);
    CHECK_EQ(words(hv, gdt)[2], code | 3ull << 45);
    CHECK_EQ(gdt->type, PGT_seg_desc_page);
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(mmuext(MMUEXT_CLEAR_PAGE, gfns[0], 0), -XEN_EINVAL);
    CHECK_EQ(do_update_descriptor(v, addr + 8 * 5, code), 0);
    CHECK_EQ(words(hv, gdt)[5], code | 3ull << 45);
    CHECK_EQ(do_update_descriptor(v, addr + 8 * 5, tss), -XEN_EINVAL);
    CHECK_EQ(do_update_descriptor(v, addr + 8 * 5, trap_gate), -XEN_EINVAL);
    CHECK_EQ(do_update_descriptor(v, addr + 8 * 5 + 4, code), -XEN_EINVAL);
    CHECK_EQ(do_update_descriptor(v, addr + 8 * 6, gate), 0);
    CHECK_EQ(words(hv, gdt)[6], 0x00008c0000130000ull);
    CHECK_EQ(do_set_gdt(v, HANDLE(gfns), 512), 0);
    CHECK_EQ(more->type_count, 0);
    CHECK_EQ(do_set_gdt(v, HANDLE(gfns), FIRST_RESERVED_GDT_ENTRY + 1), -XEN_EINVAL);
    words(hv, more)[0] = tss;
    CHECK_EQ(do_set_gdt(v, HANDLE(gfns), 600), -XEN_EINVAL);
    CHECK_EQ(v->pv.gdt_entries, 512);
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(do_set_gdt(v, 0, 0), 0);
    CHECK_EQ(gdt->type_count, 0);
}

static void test_set_cr3_goes_back(void)
{
    struct space a = space_new(), b = space_new();
    struct page_info *bad = frame_new(d);

    words(hv, bad)[0] = pte(bad, RO);
    CHECK_EQ(pv_set_cr3(v, _gfn(gfn_of(d, a.l4)), _gfn(gfn_of(d, b.l4))), 0);
    CHECK_EQ(pv_set_cr3(v, _gfn(gfn_of(d, b.l4)), _gfn(gfn_of(d, bad))), -XEN_EINVAL);
    CHECK_EQ(gfn_x(v->pv.kernel_l4), gfn_of(d, a.l4));
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(pv_set_cr3(v, _gfn(gfn_of(d, b.l4)), INVALID_GFN), 0);
    CHECK_EQ(a.l1->type_count, 0);
    CHECK_EQ(audit(hv), 0);
}

static int64_t memory_op(uint64_t cmd, const void *arg)
{
    return do_memory_op(current_caller.vcpu, current_caller.domain, cmd, HANDLE(arg));
}

static void test_populate_and_decrease(void)
{
    xen_pfn_t list[8];
    struct xen_memory_reservation r = {
        .extent_start = HANDLE(list), .nr_extents = 8, .extent_order = 3, .domid = DOMID_SELF};
    uint64_t gfn;

    for (unsigned i = 0; i < 8; i++)
        list[i] = 100 + i * 8;
    CHECK_EQ(memory_op(XENMEM_populate_physmap, &r), 8);
    CHECK_EQ(d->tot_pages, 64);
    CHECK_EQ(m2p_get(d, _gfn(list[7] + 3)), 100 + 7 * 8 + 3);
    gfn = list[2];
    CHECK_EQ(audit(hv), 0);
    tlb_touch(&hv->frame_table[gfn]);
    preempt_after(5);
    CHECK_EQ(memory_op(XENMEM_decrease_reservation, &r), -XEN_ERESTART);
    CHECK_EQ(continued.args[0], XENMEM_decrease_reservation | 5 << 6);
    CHECK_EQ(d->tot_pages, 24);
    CHECK_EQ(memory_op(continued.args[0], &r), 8);
    CHECK_EQ(d->tot_pages, 0);
    CHECK_EQ(engine_calls.flush_tlb, 2);
    CHECK_EQ(m2p_get(d, _gfn(gfn)), ~0ull);
    CHECK(mfn_eq(physmap_lookup(&d->physmap, _gfn(gfn), NULL), INVALID_MFN));
    CHECK_EQ(memory_op(XENMEM_decrease_reservation, &r), 0);
    r.extent_order = 10;
    CHECK_EQ(memory_op(XENMEM_populate_physmap, &r), 0);
    r.extent_order = 9;
    CHECK_EQ(memory_op(XENMEM_increase_reservation, &r), 1); /* max_pages */
    r.domid = 0;
    CHECK_EQ(memory_op(XENMEM_increase_reservation, &r), 0);
    set_caller(dom0, NULL);
    r.domid = d->id;
    r.extent_order = 0;
    r.nr_extents = 1;
    list[0] = 5;
    CHECK_EQ(memory_op(XENMEM_populate_physmap, &r), 1);
    CHECK_EQ(m2p_get(d, _gfn(list[0])), 5);
}

static void test_mapped_frames_stay_until_unmapped(void)
{
    struct space s = space_loaded();
    struct page_info *data = frame_new(d);
    xen_pfn_t list[1] = {gfn_of(d, data)};
    struct xen_memory_reservation r = {.extent_start = HANDLE(list), .nr_extents = 1, .domid = DOMID_SELF};

    CHECK_EQ(update(s.l1, 0, pte(data, RW)), 0);
    CHECK_EQ(memory_op(XENMEM_decrease_reservation, &r), 1);
    CHECK_EQ(d->tot_pages, 5);
    CHECK_EQ(data->count, 1);
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(update(s.l1, 0, 0), 0);
    CHECK_EQ(engine_calls.revoke_all, 1);
    CHECK_EQ(d->tot_pages, 4);
    CHECK_EQ(update(s.l1, 0, (list[0] << PAGE_SHIFT) | RW), -XEN_EBUSY);
}

static void test_xenheap(void)
{
    struct space s = space_loaded();
    struct page_info *shared = alloc_xenheap_page(d);
    xen_pfn_t list[1] = {gfn_of(d, shared)};
    struct xen_memory_reservation r = {.extent_start = HANDLE(list), .nr_extents = 1, .domid = DOMID_SELF};

    CHECK_EQ(d->nr_xenheap_pages, 1);
    CHECK_EQ(update(s.l1, 0, pte(shared, RW)), 0);
    CHECK_EQ(shared->type_count, 1);
    CHECK_EQ(mmuext(MMUEXT_PIN_L1_TABLE, list[0], 0), -XEN_EINVAL);
    CHECK_EQ(update(s.l2, 3, pte(shared, RW)), -XEN_EINVAL);
    CHECK_EQ(memory_op(XENMEM_decrease_reservation, &r), 0);
    CHECK_EQ(do_set_gdt(v, HANDLE(list), 1), -XEN_EINVAL);
    CHECK_EQ(audit(hv), 0);
    CHECK_EQ(update(s.l1, 0, 0), 0);
    free_xenheap_page(d, shared);
    CHECK_EQ(d->nr_xenheap_pages, 0);
    CHECK_EQ(audit(hv), 0);
}

static void test_questions(void)
{
    struct xen_memory_domain who = {.domid = DOMID_SELF};
    struct xen_machphys_mapping m;
    struct e820entry map[2] = {{0, 1 << 20, 1}, {1 << 20, 5 << 20, 2}}, out[3];
    struct xen_foreign_memory_map set = {.domid = d->id, .map = {.nr_entries = 2, .buffer = HANDLE(map)}};
    struct xen_memory_map get = {.nr_entries = 3, .buffer = HANDLE(out)};

    CHECK_EQ(memory_op(XENMEM_maximum_ram_page, NULL), hv->nr_frames);
    frame_new(d);
    CHECK_EQ(memory_op(XENMEM_current_reservation, &who), 1);
    CHECK_EQ(memory_op(XENMEM_maximum_reservation, &who), 1000);
    CHECK_EQ(memory_op(XENMEM_maximum_gpfn, &who), 0);
    who.domid = 0;
    CHECK_EQ(memory_op(XENMEM_current_reservation, &who), -XEN_EPERM);
    who.domid = 9;
    CHECK_EQ(memory_op(XENMEM_current_reservation, &who), -XEN_ESRCH);
    CHECK_EQ(memory_op(XENMEM_machphys_mapping, &m), 0);
    CHECK_EQ(m.v_start, M2P_VIRT_START);
    CHECK_EQ(m.max_mfn, hv->nr_frames - 1);
    CHECK_EQ(memory_op(XENMEM_memory_map, &get), -XEN_ENOSYS);
    CHECK_EQ(memory_op(XENMEM_machine_memory_map, &get), -XEN_EPERM);
    set_caller(dom0, NULL);
    CHECK_EQ(memory_op(XENMEM_set_memory_map, &set), 0);
    CHECK_EQ(memory_op(XENMEM_set_memory_map, &set), 0);
    CHECK_EQ(memory_op(XENMEM_machine_memory_map, &get), 0);
    CHECK_EQ(get.nr_entries, 1);
    set_caller(d, v);
    get.nr_entries = 3;
    CHECK_EQ(memory_op(XENMEM_memory_map, &get), 0);
    CHECK_EQ(get.nr_entries, 2);
    CHECK_EQ(memcmp(out, map, sizeof(map)), 0);
    CHECK_EQ(memory_op(XENMEM_exchange, NULL), -XEN_EOPNOTSUPP);
    CHECK_EQ(memory_op(63, NULL), -XEN_ENOSYS);
    CHECK_EQ(memory_op(XENMEM_maximum_ram_page | 1 << 6, NULL), -XEN_EINVAL);
}

static void test_resources_and_claims(void)
{
    uint64_t list[40];
    struct xen_mem_acquire_resource r = {.domid = d->id, .type = XENMEM_resource_grant_table};
    struct xen_memory_reservation claim = {.domid = d->id, .nr_extents = 900};

    CHECK_EQ(memory_op(XENMEM_acquire_resource, &r), -XEN_EPERM);
    CHECK_EQ(memory_op(XENMEM_claim_pages, &claim), -XEN_EPERM);
    set_caller(dom0, NULL);
    CHECK_EQ(memory_op(XENMEM_acquire_resource, &r), 0);
    CHECK_EQ(r.nr_frames, 64);
    r.nr_frames = 40;
    r.frame = 24;
    r.frame_list = HANDLE(list);
    CHECK_EQ(memory_op(XENMEM_acquire_resource, &r), 0);
    CHECK_EQ(list[39], 1000 + 63);
    r.frame = 25;
    CHECK_EQ(memory_op(XENMEM_acquire_resource, &r), -XEN_EINVAL);
    r.type = 7;
    CHECK_EQ(memory_op(XENMEM_acquire_resource, &r), -XEN_EOPNOTSUPP);
    CHECK_EQ(memory_op(XENMEM_claim_pages, &claim), 0);
    claim.nr_extents = 1001;
    CHECK_EQ(memory_op(XENMEM_claim_pages, &claim), -XEN_EINVAL);
    d->max_pages = 1u << 20;
    claim.nr_extents = hv->nr_frames;
    CHECK_EQ(memory_op(XENMEM_claim_pages, &claim), -XEN_ENOMEM);
}

/* Teardown in small pieces, with everything that can hold a frame. */
static void test_relinquish(void)
{
    struct space s = space_new(), t = space_new();
    struct page_info *data[600], *released = frame_new(d), *granted = frame_new(d), *gdt = frame_new(d);
    uint64_t gfn = gfn_of(d, gdt);
    xen_pfn_t list[1] = {gfn_of(d, released)};
    struct xen_memory_reservation r = {.extent_start = HANDLE(list), .nr_extents = 1, .domid = DOMID_SELF};
    unsigned calls = 1;

    for (unsigned i = 0; i < 600; i++) {
        data[i] = frame_new(d);
        words(hv, i < 300 ? s.l1 : t.l1)[i % 300 + 10] = pte(data[i], RW);
    }
    CHECK_EQ(mmuext(MMUEXT_NEW_BASEPTR, gfn_of(d, s.l4), 0), 0);
    CHECK_EQ(mmuext(MMUEXT_NEW_BASEPTR, gfn_of(d, t.l4), 0), 0);
    CHECK_EQ(mmuext(MMUEXT_PIN_L4_TABLE, gfn_of(d, t.l4), 0), 0);
    CHECK_EQ(mmuext(MMUEXT_PIN_L4_TABLE, gfn_of(d, s.l4), 0), 0);
    CHECK_EQ(mmuext(MMUEXT_PIN_L1_TABLE, gfn_of(d, s.l1), 0), 0);
    CHECK_EQ(mmuext(MMUEXT_NEW_USER_BASEPTR, gfn_of(d, s.l4), 0), 0);
    CHECK_EQ(do_set_gdt(v, HANDLE(&gfn), 1), 0);
    CHECK_EQ(update(s.l1, 500, pte(released, RO)), 0);
    CHECK_EQ(memory_op(XENMEM_decrease_reservation, &r), 1);
    CHECK(get_page(granted, d)); /* as a backend that maps it does */
    CHECK_EQ(get_page_type(d, granted, PGT_writable_page), 0);
    expect_extra(granted, 1, 1);
    CHECK_EQ(audit(hv), 0);
    set_caller(dom0, NULL);
    atomic_store(&d->dying, DOMDYING_dying);
    while (domain_relinquish_memory(d) == -XEN_ERESTART)
        calls++;
    CHECK(calls > 2);
    CHECK_EQ(d->tot_pages, 1);
    CHECK_EQ(d->refs, 2);
    CHECK_EQ(granted->count, 1);
    CHECK_EQ(audit(hv), 0);
    expect_extra(granted, -1, -1);
    put_page_and_type(d, granted);
    CHECK_EQ(d->tot_pages, 0);
    CHECK_EQ(d->refs, 1);
}

static const struct { const char *name; void (*run)(void); } tests[] = {
#define T(n) {#n, test_##n}
    T(heap_orders), T(heap_zeroes), T(quota), T(space), T(table_never_writable), T(foreign_frames),
    T(failed_validation_holds_nothing), T(pins), T(write_tags_are_revoked), T(generation_counts_lost_writers),
    T(fast_path_and_ad_bits), T(code), T(mmu_update_lists), T(machphys), T(flushes), T(copy_page), T(ptwr),
    T(descriptors), T(set_cr3_goes_back), T(populate_and_decrease), T(mapped_frames_stay_until_unmapped), T(xenheap),
    T(questions), T(resources_and_claims), T(relinquish),
};

int main(int argc, char **argv)
{
    for (size_t i = 0; i < ARRAY_SIZE(tests); i++) {
        if (argc < 2) {
            puts(tests[i].name);
        } else if (!strcmp(argv[1], tests[i].name)) {
            setup();
            tests[i].run();
            teardown();
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
