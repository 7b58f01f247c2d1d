/*
 * Machine memory: the frame table, the allocator, page types, and each domain's physmap.
 *
 * A PV guest's page tables hold gfns. Every domain has a physmap that says which machine frame a gfn is; the tables'
 * entries are translated through it when a page table is validated and when the soft TLB is filled. gfns of PV
 * domains are handed out globally unique (today a new frame's gfn equals its mfn), so that Xen's own tools see no
 * difference.
 */
#ifndef UMXEN_MM_H
#define UMXEN_MM_H
#include "base.h"

struct domain;
struct vcpu;
struct hv;

/* ---- frame table ------------------------------------------------------------------------------------------------ */

/* Types of a frame, exclusive: a frame has one type while its type count is above zero. */
enum page_type {
    PGT_none = 0,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_seg_desc_page, /* GDT or LDT */
    PGT_writable_page,
    PGT_shared_page,   /* of the hypervisor, mappable by its owner: shared_info, grant table. Never a page table. */
};

enum {
    PGC_allocated = 1u << 0, /* the owner's own reference; cleared once, by the free */
    PGC_xen_heap = 1u << 1,  /* shared_info, grant frames: given to a domain but not its RAM */
    PGC_code = 1u << 2,      /* the owner's engine holds translations of it: no TLB may hold a write tag */
    PGC_scrub = 1u << 3,     /* free, but not yet zeroed */
    PGC_free = 1u << 4,
    PGC_bank = 1u << 5,      /* of a process domain's bank: it never goes to the heap */
};

/* One per machine frame. Everything but `count` (atomic) is changed under the owner's lock, or under the heap lock
 * while the frame is free. */
struct page_info {
    _Atomic uint32_t count;  /* references; the frame is freed when it falls to zero */
    uint32_t flags;          /* PGC_* */
    uint16_t owner;          /* domid; DOMID_INVALID while free */
    uint8_t type;            /* enum page_type, meaningful while type_count > 0 */
    uint8_t order;           /* of the free chunk it heads */
    bool pinned;             /* MMUEXT_PIN_Lx_TABLE: holds one reference of the type */
    bool validated;          /* the entries of a page table were checked and hold references */
    uint16_t foreign_writers; /* writable maps by process domains: no translation of this frame may be cached */
    uint32_t type_count;
    uint32_t next, prev;     /* mfns: free list (0 ends it), or the owner's page list: 0 ends it, the first's prev is the last */
    /* Which TLB may hold a write tag of this frame: see tlb_note_write in cpu/engine.h. 0: none. */
    uint64_t write_tag;
};

struct page_info *mfn_to_page(struct hv *hv, mfn_t mfn);
mfn_t page_to_mfn(struct hv *hv, const struct page_info *pg);
void *mfn_to_virt(struct hv *hv, mfn_t mfn);
bool mfn_valid(const struct hv *hv, mfn_t mfn);

/* ---- frame allocator (page_alloc.c) ----------------------------------------------------------------------------- */

#define MAX_ORDER 20 /* 4 GiB */
int heap_init(struct hv *hv);
void heap_destroy(struct hv *hv);
/* Allocates 2^order contiguous frames, zeroed, owned by nobody. NULL when there are none. Takes hv->heap_lock. */
struct page_info *alloc_heap_pages(struct hv *hv, unsigned order);
void free_heap_pages(struct hv *hv, struct page_info *pg, unsigned order);
/* The same, owned by `d`: counted against d->max_pages (-> NULL when above), on its page list, count 1 + PGC_allocated each. */
struct page_info *alloc_domheap_pages(struct domain *d, unsigned order);
/* One frame for a domain's shared_info or grant table: PGC_xen_heap, not counted, type PGT_shared_page with one reference. */
struct page_info *alloc_xenheap_page(struct domain *d);
void free_xenheap_page(struct domain *d, struct page_info *pg);

/* All frames that a process domain's bank still has become its RAM. 0, or -XEN_ENOMEM: more than its max_pages. */
int bank_to_domheap(struct domain *d);

/* References of a frame are taken and dropped under the lock of its owner. A frame whose last reference goes leaves the
 * domain: its gfn is unmapped, every TLB of the owner forgets it (the engine may quiesce: hold no lock below the domain's),
 * then it goes back to the heap. */
bool get_page(struct page_info *pg, const struct domain *d); /* false: not d's, or being freed, or would overflow */
void put_page(struct hv *hv, struct page_info *pg);          /* frees at zero */
/* One reference of each of n frames of d, with one TLB flush for all that leave. Overwrites the array. */
void put_pages(struct domain *d, struct page_info **pages, unsigned n);

/* ---- page types (page_type.c); the caller holds the owner's domain lock ----------------------------------------- */

/* The vCPU this thread serves a hypercall of, when it is one of d's. */
struct vcpu *current_of(const struct domain *d);

/* Takes a reference of `type` on a frame of `d`, validating a page table's whole subtree at the first.
 * 0, -XEN_EINVAL (contents or type conflict), -XEN_EBUSY, -XEN_ENOMEM... Nothing is held on failure. */
int get_page_type(struct domain *d, struct page_info *pg, enum page_type type);
void put_page_type(struct domain *d, struct page_info *pg);
/* A general and a type reference together; nothing is held on failure. */
int get_page_and_type(struct domain *d, struct page_info *pg, enum page_type type);
void put_page_and_type(struct domain *d, struct page_info *pg);

/* ---- physmap ---------------------------------------------------------------------------------------------------- */

enum p2m_type { p2m_none = 0, p2m_ram, p2m_logdirty, p2m_shared, p2m_paged, p2m_mmio, p2m_grant };

/* An entry: mfn << 8 | p2m_type. The table covers every gfn of the machine, in one sparse mapping. */
struct physmap {
    _Atomic uint64_t *entry;
    uint64_t nr_gfns;
};
int physmap_init(struct domain *d);
void physmap_destroy(struct domain *d);
void physmap_set(struct domain *d, gfn_t gfn, mfn_t mfn, enum p2m_type type);
/* The machine frame behind a gfn, or INVALID_MFN; `type` may be NULL. Lock-free. */
static inline mfn_t physmap_lookup(const struct physmap *p, gfn_t gfn, enum p2m_type *type)
{
    if (gfn_x(gfn) >= p->nr_gfns)
        return INVALID_MFN;
    uint64_t e = atomic_load_explicit(&p->entry[gfn_x(gfn)], memory_order_relaxed);
    if (type)
        *type = (enum p2m_type)(e & 0xff);
    return (e & 0xff) == p2m_none ? INVALID_MFN : _mfn(e >> 8);
}
/* The frame behind a gfn of `d` with a reference taken, or NULL. */
struct page_info *get_page_from_gfn(struct domain *d, gfn_t gfn);
/* Where its owner sees a frame. A frame keeps its gfn until its last reference is gone, as entries name frames by gfn. */
gfn_t page_to_gfn(const struct domain *d, const struct page_info *pg);

/* ---- per-domain machine-to-phys table, read-only to the guest at 0xffff800000000000 ----------------------------- */

/* Pages of 512 entries, made when first written; all others are one shared page of INVALID_M2P_ENTRY. */
#define M2P_VIRT_START 0xffff800000000000ull
int m2p_init(struct domain *d);
void m2p_destroy(struct domain *d);
int m2p_set(struct domain *d, gfn_t gfn, uint64_t pfn);
uint64_t m2p_get(const struct domain *d, gfn_t gfn);
/* Host address of the table's page behind a guest address inside the window, or NULL beyond its end. */
const void *m2p_page(const struct domain *d, uint64_t vaddr);
uint64_t m2p_end(const struct domain *d); /* guest address one past the table */

/* ---- guest-visible operations; on the caller's pCPU, caller's domain lock NOT held (they take it) ---------------- */

#define PTE_PRESENT 0x001ull
#define PTE_RW 0x002ull
#define PTE_USER 0x004ull
#define PTE_PWT 0x008ull
#define PTE_PCD 0x010ull
#define PTE_ACCESSED 0x020ull
#define PTE_DIRTY 0x040ull
#define PTE_PSE 0x080ull
#define PTE_GLOBAL 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull
static inline gfn_t pte_gfn(uint64_t pte) { return _gfn((pte & PTE_ADDR) >> PAGE_SHIFT); }

/* page_type.c: changes one entry of a validated page-table frame with all checks. `ptr` is the entry inside the frame
 * `pg` of type L1..L4. preserve_ad keeps the hardware's A/D bits. Used by mmu_update, update_va_mapping and ptwr. */
int mod_page_table_entry(struct domain *d, struct vcpu *curr, struct page_info *pg, uint64_t *ptr, uint64_t val,
                         bool preserve_ad);
/* Makes a descriptor fit for a PV guest's tables (DPL); false: of a kind it may not have. */
bool check_descriptor(uint64_t *descriptor);
int64_t do_memory_op(struct vcpu *curr, struct domain *caller, uint64_t cmd, uint64_t arg);   /* memory.c */
int64_t do_mmu_update(struct vcpu *curr, struct domain *caller, uint64_t ureqs, uint64_t count, uint64_t pdone,
                      uint64_t foreigndom);                                                     /* pv/mm.c */
int64_t do_mmuext_op(struct vcpu *curr, struct domain *caller, uint64_t uops, uint64_t count, uint64_t pdone,
                     uint64_t foreigndom);
int64_t do_update_va_mapping(struct vcpu *curr, uint64_t va, uint64_t val, uint64_t flags);
int64_t do_set_gdt(struct vcpu *curr, uint64_t frame_list, uint64_t entries);
int64_t do_update_descriptor(struct vcpu *curr, uint64_t gaddr, uint64_t desc);
/* A guest's write to its own read-only page-table page: checked and done as mmu_update would. Lock held, others quiesced.
 * True when `bytes` (1, 2, 4, 8, inside one entry) of `val` were stored. */
bool pv_ptwr_write(struct vcpu *curr, uint64_t vaddr, uint64_t val, unsigned bytes);
/* Loads: setvcpucontext and VCPUOP_initialise take CR3 and GDT references through these. Lock held. */
int pv_set_cr3(struct vcpu *v, gfn_t kernel_l4, gfn_t user_l4);
void pv_drop_tables(struct vcpu *v);
int pv_set_gdt_frames(struct vcpu *v, const uint64_t *gfns, unsigned entries);
void pv_drop_gdt(struct vcpu *v);
/* Gives back a dying domain's memory, a bounded piece at a time: 0 when done, -XEN_ERESTART to be called again. No vCPU of
 * it runs any more; takes the lock itself. Frames that others still map (grants) stay, with d->tot_pages above zero, until
 * they are let go; a domain with frames holds a reference of itself. */
int domain_relinquish_memory(struct domain *d);
#endif
