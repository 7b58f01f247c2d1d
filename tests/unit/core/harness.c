#include "harness.h"

#include <signal.h>
#include <stdarg.h>

#include "grant_table.h"

struct engine_calls engine_calls;
struct continued continued;
__thread struct caller current_caller;

#define MAX_FRAMES 4096
static bool remembered[MAX_FRAMES]; /* by some TLB */
static int extra_count[MAX_FRAMES], extra_types[MAX_FRAMES];
static unsigned preempt_in;

/* ---- what the files under test need ----------------------------------------------------------------------------- */

void hv_bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "BUG %s:%d: %s\n", file, line, what);
    abort();
}

int copy_from_guest(void *to, uint64_t from, size_t bytes)
{
    if (from < 4096)
        return -XEN_EFAULT;
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return 0;
}

int copy_to_guest(uint64_t to, const void *from, size_t bytes)
{
    if (to < 4096)
        return -XEN_EFAULT;
    memcpy((void *)(uintptr_t)to, from, bytes);
    return 0;
}

bool hypercall_preempt_check(void)
{
    return preempt_in && !--preempt_in;
}

void preempt_after(unsigned n)
{
    preempt_in = n;
}

int64_t hypercall_continue(unsigned nr, unsigned nr_args, ...)
{
    va_list ap;

    va_start(ap, nr_args);
    continued = (struct continued){.nr = nr, .nr_args = nr_args, .set = true};
    for (unsigned i = 0; i < nr_args; i++)
        continued.args[i] = va_arg(ap, uint64_t);
    va_end(ap);
    return -XEN_ERESTART;
}

void domain_lock(struct domain *d, struct vcpu *curr)
{
    CHECK(!curr || curr->domain == d);
    lock(&d->lock);
}

void domain_unlock(struct domain *d, struct vcpu *curr)
{
    CHECK(!curr || curr->domain == d);
    unlock(&d->lock);
}

void domain_lock_foreign(struct domain *d, struct vcpu *curr)
{
    CHECK(curr && curr->domain != d);
    lock(&d->lock);
}

void domain_unlock_foreign(struct domain *d, struct vcpu *curr)
{
    (void)curr;
    unlock(&d->lock);
}

struct domain *get_domain(struct hv *hv, struct domain *caller, uint16_t domid)
{
    struct domain *d = domid == DOMID_SELF ? caller : domid < DOMID_FIRST_RESERVED ? hv->domain[domid] : NULL;

    if (d)
        atomic_fetch_add(&d->refs, 1);
    return d;
}

void put_domain(struct domain *d)
{
    CHECK(atomic_fetch_sub(&d->refs, 1) > 1); /* the test itself holds one */
}

int grant_table_frame(struct domain *d, uint32_t index, mfn_t *out)
{
    (void)d;
    *out = _mfn(1000 + index);
    return 0;
}

uint32_t grant_table_max_frames(const struct domain *d)
{
    (void)d;
    return 64;
}

/* ---- the engine ------------------------------------------------------------------------------------------------- */

void engine_forget(void)
{
    memset(&engine_calls, 0, sizeof(engine_calls));
}

void tlb_touch(struct page_info *pg)
{
    remembered[pg - current_caller.domain->hv->frame_table] = true;
    pg->write_tag = 1;
}

static void forget(struct page_info *pg, struct hv *hv)
{
    remembered[pg - hv->frame_table] = false;
    pg->write_tag = 0;
}

void tlb_gone(struct domain *d)
{
    for (uint64_t i = 1; i < d->hv->nr_frames; i++)
        if (d->hv->frame_table[i].owner == d->id)
            forget(&d->hv->frame_table[i], d->hv);
}

static void e_flush_tlb(struct domain *d, struct vcpu *curr, struct vcpu *v, enum flush_scope scope)
{
    (void)curr;
    CHECK(scope == FLUSH_ALL);
    engine_calls.flush_tlb++;
    engine_calls.last_vcpu = v;
    if (!v || d->max_vcpus == 1)
        tlb_gone(d);
}

static void e_flush_page(struct domain *d, struct vcpu *curr, struct vcpu *v, uint64_t vaddr)
{
    (void)d, (void)curr;
    engine_calls.flush_page++;
    engine_calls.last_vaddr = vaddr;
    engine_calls.last_vcpu = v;
}

static void e_revoke_frame(struct domain *d, struct vcpu *curr, struct page_info *pg, bool all)
{
    (void)curr;
    engine_calls.revoke++;
    engine_calls.revoke_all += all;
    forget(pg, d->hv);
}

static void e_unmap_code(struct domain *d, struct vcpu *curr, struct page_info *pg)
{
    (void)d, (void)curr, (void)pg;
    engine_calls.unmap_code++;
}

static void e_unmap_tables(struct domain *d, struct vcpu *curr, struct page_info *table, unsigned slot)
{
    (void)d, (void)curr, (void)table, (void)slot;
    engine_calls.unmap_tables++;
}

static void e_frame_written(struct domain *d, struct vcpu *curr, struct page_info *pg)
{
    (void)d, (void)curr;
    engine_calls.frame_written++;
    pg->flags &= ~(uint32_t)PGC_code;
}

static void e_set_cr3(struct vcpu *v, bool user, uint64_t l4)
{
    (void)user;
    engine_calls.set_cr3++;
    engine_calls.last_vcpu = v;
    engine_calls.last_root = l4;
}

const struct engine_ops dbt_engine = {
    .name = "counting",
    .flush_tlb = e_flush_tlb,
    .flush_page = e_flush_page,
    .revoke_frame = e_revoke_frame,
    .unmap_code = e_unmap_code,
    .unmap_tables = e_unmap_tables,
    .frame_written = e_frame_written,
    .set_cr3 = e_set_cr3,
};

/* ---- machines and domains --------------------------------------------------------------------------------------- */

struct hv *machine_new(unsigned mib)
{
    struct hv *hv = calloc(1, sizeof(*hv));

    hv->config.memory_bytes = (uint64_t)mib << 20;
    lock_init(&hv->heap_lock);
    CHECK_EQ(heap_init(hv), 0);
    CHECK(hv->nr_frames <= MAX_FRAMES);
    memset(remembered, 0, sizeof(remembered));
    memset(extra_count, 0, sizeof(extra_count));
    memset(extra_types, 0, sizeof(extra_types));
    engine_forget();
    preempt_in = 0;
    return hv;
}

void machine_free(struct hv *hv)
{
    heap_destroy(hv);
    free(hv);
}

struct domain *domain_new(struct hv *hv, unsigned domid, int kind, uint64_t max_pages, unsigned nr_vcpus)
{
    struct domain *d = calloc(1, sizeof(*d));

    d->hv = hv;
    d->id = (uint16_t)domid;
    d->kind = (enum domain_kind)kind;
    d->max_pages = max_pages;
    d->max_vcpus = nr_vcpus;
    d->is_privileged = domid == 0;
    d->refs = 1;
    lock_init(&d->lock);
    hv->domain[domid] = d;
    if (kind == DOMAIN_PV) {
        d->engine = (struct engine_domain *)d; /* never looked into */
        CHECK_EQ(physmap_init(d), 0);
        CHECK_EQ(m2p_init(d), 0);
    }
    for (unsigned i = 0; i < nr_vcpus; i++) {
        struct vcpu *v = calloc(1, sizeof(*v));

        v->domain = d;
        v->id = i;
        v->engine = (struct engine_vcpu *)v; /* never looked into */
        v->pv.kernel_l4 = v->pv.user_l4 = INVALID_GFN;
        for (unsigned j = 0; j < NR_GDT_FRAMES; j++)
            v->pv.gdt_frame[j] = INVALID_MFN;
        d->vcpu[i] = v;
    }
    return d;
}

void domain_free(struct domain *d)
{
    CHECK_EQ(d->tot_pages, 0);
    CHECK_EQ(d->page_list, 0);
    CHECK_EQ(d->refs, 1);
    physmap_destroy(d);
    m2p_destroy(d);
    free(d->memory_map);
    for (unsigned i = 0; i < d->max_vcpus; i++)
        free(d->vcpu[i]);
    d->hv->domain[d->id] = NULL;
    free(d);
}

void set_caller(struct domain *d, struct vcpu *v)
{
    current_caller = (struct caller){.vcpu = v, .domain = d};
}

struct page_info *frame_new(struct domain *d)
{
    struct page_info *pg = alloc_domheap_pages(d, 0);

    if (pg)
        physmap_set(d, page_to_gfn(d, pg), page_to_mfn(d->hv, pg), p2m_ram);
    return pg;
}

uint64_t gfn_of(struct domain *d, struct page_info *pg)
{
    return gfn_x(page_to_gfn(d, pg));
}

uint64_t *words(struct hv *hv, struct page_info *pg)
{
    return mfn_to_virt(hv, page_to_mfn(hv, pg));
}

void expect_extra(struct page_info *pg, int count, int type_count)
{
    struct hv *hv = current_caller.domain->hv;

    extra_count[pg - hv->frame_table] += count;
    extra_types[pg - hv->frame_table] += type_count;
}

/* ---- the audit -------------------------------------------------------------------------------------------------- */

static int wrong_frames;

#define SHOULD(c, ...)                                                                                                \
    do {                                                                                                              \
        if (!(c)) {                                                                                                   \
            fprintf(stderr, "audit: %s: ", #c);                                                                       \
            fprintf(stderr, __VA_ARGS__);                                                                             \
            fputc('\n', stderr);                                                                                      \
            wrong_frames++;                                                                                           \
        }                                                                                                             \
    } while (0)

static unsigned want_count[MAX_FRAMES], want_types[MAX_FRAMES];

static void count_table(struct hv *hv, uint64_t mfn)
{
    struct page_info *pg = &hv->frame_table[mfn];
    struct domain *d = hv->domain[pg->owner];
    uint64_t *table = words(hv, pg);

    for (unsigned i = 0; i < 512; i++) {
        uint64_t pte = table[i];
        enum p2m_type type;
        mfn_t to;

        if (!(pte & PTE_PRESENT))
            continue;
        SHOULD(pg->type != PGT_l4_page_table || i < 256 || i > 271, "slot %u of table %lu", i, mfn);
        SHOULD(pte & PTE_USER, "entry %u of table %lu", i, mfn);
        to = physmap_lookup(&d->physmap, pte_gfn(pte), &type);
        SHOULD(!mfn_eq(to, INVALID_MFN) && type == p2m_ram, "entry %u of table %lu", i, mfn);
        if (mfn_eq(to, INVALID_MFN))
            continue;
        want_count[mfn_x(to)]++;
        SHOULD(hv->frame_table[mfn_x(to)].owner == d->id, "entry %u of table %lu", i, mfn);
        if (pg->type > PGT_l1_page_table) {
            want_types[mfn_x(to)]++;
            SHOULD(hv->frame_table[mfn_x(to)].type == pg->type - 1, "entry %u of table %lu", i, mfn);
        } else if ((pte & PTE_RW) && !(hv->frame_table[mfn_x(to)].flags & PGC_xen_heap)) {
            want_types[mfn_x(to)]++;
            SHOULD(hv->frame_table[mfn_x(to)].type == PGT_writable_page, "entry %u of table %lu", i, mfn);
        }
    }
}

static void count_gfn(struct domain *d, gfn_t gfn)
{
    mfn_t mfn = gfn_eq(gfn, INVALID_GFN) ? INVALID_MFN : physmap_lookup(&d->physmap, gfn, NULL);

    if (mfn_eq(mfn, INVALID_MFN))
        return;
    want_count[mfn_x(mfn)]++;
    want_types[mfn_x(mfn)]++;
}

static void count_vcpu(struct vcpu *v)
{
    count_gfn(v->domain, v->pv.kernel_l4);
    count_gfn(v->domain, v->pv.user_l4);
    for (unsigned i = 0; i < NR_GDT_FRAMES; i++) {
        uint64_t mfn = mfn_x(v->pv.gdt_frame[i]);

        if (mfn != ~0ull) {
            want_count[mfn]++;
            want_types[mfn]++;
        }
    }
}

static void audit_frame(struct hv *hv, uint64_t mfn, bool is_free)
{
    struct page_info *pg = &hv->frame_table[mfn];

    if (is_free) {
        SHOULD(!pg->count, "free frame %lu", mfn);
        SHOULD(!remembered[mfn], "free frame %lu is in a TLB", mfn);
        return;
    }
    if (!pg->count)
        return; /* the test's own, or reserved */
    want_count[mfn] += !!(pg->flags & PGC_allocated) + pg->pinned + extra_count[mfn];
    want_types[mfn] += pg->pinned + !!(pg->flags & PGC_xen_heap) + extra_types[mfn];
    SHOULD(pg->count == want_count[mfn], "frame %lu: %u, not %u", mfn, pg->count, want_count[mfn]);
    SHOULD(pg->type_count == want_types[mfn], "frame %lu: %u, not %u", mfn, pg->type_count, want_types[mfn]);
    SHOULD(pg->type_count || pg->type == PGT_none, "frame %lu", mfn);
    SHOULD(pg->validated == (pg->type_count && pg->type >= PGT_l1_page_table && pg->type <= PGT_seg_desc_page),
           "frame %lu", mfn);
    SHOULD(!(pg->validated && pg->write_tag), "frame %lu", mfn);
}

static uint64_t audit_heap(struct hv *hv, uint8_t *is_free)
{
    uint64_t total = 0;

    for (unsigned order = 0; order <= MAX_ORDER; order++)
        for (uint32_t mfn = hv->free_list[order], prev = 0; mfn; prev = mfn, mfn = hv->frame_table[mfn].next) {
            struct page_info *pg = &hv->frame_table[mfn];

            SHOULD((pg->flags & PGC_free) && pg->order == order && pg->prev == prev, "chunk %u", mfn);
            SHOULD(!(mfn & ((1u << order) - 1)) && mfn >= 256 && mfn + (1ull << order) <= hv->nr_frames, "chunk %u", mfn);
            for (uint64_t i = 0; i < 1ull << order; i++) {
                SHOULD(!is_free[mfn + i], "frame %lu is free twice", mfn + i);
                SHOULD(!i || !(pg[i].flags & PGC_free), "frame %lu inside a chunk", mfn + i);
                is_free[mfn + i] = 1;
            }
            total += 1ull << order;
        }
    SHOULD(total == hv->free_frames, "%lu free, %lu on lists", hv->free_frames, total);
    return total;
}

static void audit_domain(struct domain *d, const uint8_t *is_free)
{
    struct hv *hv = d->hv;
    uint32_t last = d->page_list ? hv->frame_table[d->page_list].prev : 0;
    uint64_t n = 0;

    for (uint32_t mfn = d->page_list, prev = last; mfn; prev = mfn, mfn = hv->frame_table[mfn].next, n++) {
        struct page_info *pg = &hv->frame_table[mfn];

        SHOULD(pg->owner == d->id && pg->count && !is_free[mfn] && pg->prev == prev, "frame %u of domain %u", mfn, d->id);
        SHOULD(mfn != last || !pg->next, "frame %u of domain %u", mfn, d->id);
    }
    SHOULD(n == d->tot_pages && n <= d->max_pages, "domain %u has %lu", d->id, n);
    for (uint64_t gfn = 0; gfn < d->physmap.nr_gfns; gfn++) {
        mfn_t mfn = physmap_lookup(&d->physmap, _gfn(gfn), NULL);

        if (mfn_eq(mfn, INVALID_MFN))
            continue;
        SHOULD(hv->frame_table[mfn_x(mfn)].owner == d->id && !is_free[mfn_x(mfn)], "gfn %lu of domain %u", gfn, d->id);
    }
}

int audit(struct hv *hv)
{
    static uint8_t is_free[MAX_FRAMES];

    wrong_frames = 0;
    memset(is_free, 0, sizeof(is_free));
    memset(want_count, 0, sizeof(want_count));
    memset(want_types, 0, sizeof(want_types));
    audit_heap(hv, is_free);
    for (unsigned id = 0; id < DOMID_FIRST_RESERVED; id++) {
        struct domain *d = hv->domain[id];

        if (!d)
            continue;
        audit_domain(d, is_free);
        for (unsigned i = 0; i < d->max_vcpus; i++)
            count_vcpu(d->vcpu[i]);
    }
    for (uint64_t mfn = 256; mfn < hv->nr_frames; mfn++) {
        struct page_info *pg = &hv->frame_table[mfn];

        if (!is_free[mfn] && pg->count && pg->validated && pg->type <= PGT_l4_page_table)
            count_table(hv, mfn);
    }
    for (uint64_t mfn = 256; mfn < hv->nr_frames; mfn++)
        audit_frame(hv, mfn, is_free[mfn]);
    return -wrong_frames;
}
