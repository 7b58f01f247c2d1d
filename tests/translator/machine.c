/*
 * The stand-ins. Frames of the bank are scattered (page k of the pools is not frame k) and gfns are not mfns, so that a
 * confusion of any two of them shows. domain_lock and domain_quiesce are as in domain.c.
 */
#define _GNU_SOURCE
#include "machine.h"

#include <sched.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#define NR_FRAMES 4096u
#define TABLE_FRAMES 64u /* at the end of the bank */

/* All low enough for 32-bit displacements, but the one that is there to be far away. */
const struct window windows[NR_WINDOWS] = {
    [WINDOW_CODE] = {0x40000000, POOL_CODE, CODE_PAGES, PERM_RX},
    [WINDOW_CODE_ALIAS] = {0x48000000, POOL_CODE, CODE_PAGES, PERM_RW},
    [WINDOW_DATA] = {0x50000000, POOL_DATA, DATA_PAGES, PERM_RW},
    [WINDOW_DATA_HIGH] = {0x3edcba980000, POOL_DATA, DATA_PAGES, PERM_RW},
    [WINDOW_STACK] = {0x58000000, POOL_STACK, STACK_PAGES, PERM_RW},
    [WINDOW_BIG] = {0x60000000, POOL_BIG, BIG_PAGES, PERM_RW},
};

/* The same windows once more in the kernel's high part, for guest kernel mode. */
#define HIGH_BASE 0xffffffff80000000ull

static const unsigned pool_pages[NR_POOLS] = {CODE_PAGES, DATA_PAGES * MAX_VCPUS_HERE, STACK_PAGES * MAX_VCPUS_HERE,
                                              BIG_PAGES};

_Noreturn void die(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    fflush(NULL);
    _exit(3);
}

unsigned pool_start(enum pool p)
{
    unsigned n = 0;
    for (unsigned k = 0; k < p; k++)
        n += pool_pages[k];
    return n;
}

int window_of(uint64_t vaddr, unsigned *page)
{
    for (int w = 0; w < NR_WINDOWS; w++)
        if (vaddr - windows[w].vaddr < windows[w].pages * PAGE_SIZE) {
            *page = (vaddr - windows[w].vaddr) >> PAGE_SHIFT;
            return w;
        }
    return -1;
}

/* ---- frames ----------------------------------------------------------------------------------------------------- */

static mfn_t pool_mfn(unsigned k) { return _mfn(1 + k * 1499ull % (NR_FRAMES - TABLE_FRAMES - 1)); }
static gfn_t gfn_of(mfn_t mfn) { return _gfn(mfn_x(mfn) ^ 0x555); }

uint8_t *guest_page(struct machine *m, enum pool pool, unsigned n)
{
    return frame_host(&m->hv, pool_mfn(pool_start(pool) + n));
}

struct page_info *guest_page_info(struct machine *m, enum pool pool, unsigned n)
{
    return frame_page(&m->hv, pool_mfn(pool_start(pool) + n));
}

static uint64_t new_table(struct machine *m)
{
    mfn_t mfn = _mfn(--m->next_frame);
    struct page_info *pg = frame_page(&m->hv, mfn);
    if (m->next_frame < NR_FRAMES - TABLE_FRAMES)
        die("page tables need more frames");
    pg->type = PGT_l1_page_table;
    pg->type_count = 1;
    return gfn_x(gfn_of(mfn));
}

static uint64_t *table_at(struct machine *m, uint64_t gfn)
{
    return (uint64_t *)frame_host(&m->hv, physmap_lookup(&m->domain.physmap, _gfn(gfn), NULL));
}

/* The level 1 entry of an address; tables are made on the way. */
static _Atomic uint64_t *entry_in(struct machine *m, uint64_t root_gfn, uint64_t vaddr)
{
    uint64_t *table = table_at(m, root_gfn);
    for (int level = 3; level; level--) {
        uint64_t *e = &table[vaddr >> (PAGE_SHIFT + 9 * level) & 511];
        if (!*e)
            *e = new_table(m) << PAGE_SHIFT | PTE_PRESENT | PTE_RW | PTE_USER;
        table = table_at(m, (*e & PTE_ADDR) >> PAGE_SHIFT);
    }
    return (_Atomic uint64_t *)&table[vaddr >> PAGE_SHIFT & 511];
}

static _Atomic uint64_t *entry_of(struct machine *m, uint64_t vaddr) { return entry_in(m, m->root_gfn, vaddr); }

static uint64_t entry_value(int window, unsigned page, enum permission perm)
{
    uint64_t gfn = gfn_x(gfn_of(pool_mfn(pool_start(windows[window].pool) + page)));
    if (perm == PERM_NONE)
        return 0;
    return gfn << PAGE_SHIFT | PTE_PRESENT | PTE_USER | (perm == PERM_RW || perm == PERM_RWX ? PTE_RW : 0) |
           (perm == PERM_RX || perm == PERM_RWX ? 0 : PTE_NX);
}

void guest_protect(struct machine *m, struct vcpu *curr, int window, unsigned page, enum permission perm, unsigned shown)
{
    uint64_t vaddr = windows[window].vaddr + page * PAGE_SIZE, value = entry_value(window, shown, perm);
    struct domain *d = &m->domain;
    if (m->now[window][page] == perm && m->shown[window][page] == shown)
        return;
    struct page_info *pg = guest_page_info(m, windows[window].pool, m->shown[window][page]);
    m->now[window][page] = perm;
    m->shown[window][page] = shown;
    domain_lock(d, curr);
    atomic_store(entry_of(m, vaddr), value);
    atomic_store(entry_of(m, vaddr + HIGH_BASE), value);
    if (d->engine) {
        engine()->unmap_code(d, curr, pg);
        engine()->flush_page(d, curr, NULL, vaddr);
        engine()->flush_page(d, curr, NULL, vaddr + HIGH_BASE);
    }
    domain_unlock(d, curr);
}

void guest_switch(struct machine *m, struct vcpu *curr, int window, unsigned page, enum permission perm, unsigned shown)
{
    uint64_t other = m->other_root_gfn;
    m->now[window][page] = perm;
    m->shown[window][page] = shown;
    atomic_store(entry_of(m, windows[window].vaddr + page * PAGE_SIZE), entry_value(window, shown, perm));
    m->other_root_gfn = m->root_gfn;
    m->root_gfn = other;
    engine()->set_cr3(curr, false, other);
    engine()->set_cr3(curr, true, other);
}

void guest_page_written(struct machine *m, struct vcpu *curr, enum pool pool, unsigned n)
{
    struct page_info *pg = guest_page_info(m, pool, n);
    if (!frame_has_code(pg))
        return;
    domain_lock(&m->domain, curr);
    engine()->frame_written(&m->domain, curr, pg);
    domain_unlock(&m->domain, curr);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static void create_memory(struct machine *m)
{
    struct hv *hv = &m->hv;
    hv->nr_frames = NR_FRAMES;
    hv->bank_fd = memfd_create("bank", MFD_CLOEXEC);
    if (hv->bank_fd < 0 || ftruncate(hv->bank_fd, NR_FRAMES * PAGE_SIZE))
        die("no bank");
    hv->bank_base = mmap(NULL, NR_FRAMES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, hv->bank_fd, 0);
    hv->frame_table = calloc(NR_FRAMES, sizeof(*hv->frame_table));
    m->domain.physmap.entry = calloc(NR_FRAMES, sizeof(uint64_t));
    m->domain.physmap.nr_gfns = NR_FRAMES;
    if (hv->bank_base == MAP_FAILED || !hv->frame_table || !m->domain.physmap.entry)
        die("no memory");
    for (uint64_t n = 1; n < NR_FRAMES; n++) {
        uint64_t gfn = gfn_x(gfn_of(_mfn(n)));
        m->domain.physmap.entry[gfn] = n << 8 | p2m_ram;
        hv->frame_table[n].flags = PGC_allocated;
        hv->frame_table[n].count = 1;
    }
    m->next_frame = NR_FRAMES;
    m->root_gfn = new_table(m);
    m->other_root_gfn = new_table(m);
}

/* The address space of another vCPU: the same windows, but data and stack of its own. */
static uint64_t make_root(struct machine *m, unsigned id)
{
    uint64_t root_gfn = new_table(m);
    for (int w = 0; w < NR_WINDOWS; w++)
        for (unsigned k = 0; k < windows[w].pages; k++) {
            bool own = windows[w].pool == POOL_DATA || windows[w].pool == POOL_STACK;
            atomic_store(entry_in(m, root_gfn, windows[w].vaddr + k * PAGE_SIZE),
                         entry_value(w, k + (own ? id * windows[w].pages : 0), windows[w].usual));
        }
    return root_gfn;
}

struct machine *machine_create(unsigned nr_vcpus, uint64_t masked)
{
    struct machine *m = calloc(1, sizeof(*m));
    if (!m)
        die("no memory");
    struct domain *d = &m->domain;
    d->hv = &m->hv;
    d->kind = DOMAIN_PV;
    d->max_vcpus = nr_vcpus;
    d->policy.features = cpu_features_closed(cpu_features_of_host() & CPU_IMPLEMENTED & ~masked);
    lock_init(&d->lock);
    create_memory(m);
    for (int w = 0; w < NR_WINDOWS; w++)
        for (unsigned k = 0; k < windows[w].pages; k++)
            guest_protect(m, NULL, w, k, windows[w].usual, k);
    memcpy(table_at(m, m->other_root_gfn), table_at(m, m->root_gfn), PAGE_SIZE);
    if (engine()->machine_init(&m->hv) || engine()->domain_create(d))
        die("no engine");
    for (unsigned k = 0; k < nr_vcpus; k++) {
        struct vcpu *v = &m->vcpu[k];
        v->domain = d;
        v->id = k;
        d->vcpu[k] = v;
        if (engine()->vcpu_create(v))
            die("no vCPU");
        uint64_t root_gfn = k ? make_root(m, k) : m->root_gfn;
        engine()->set_cr3(v, false, root_gfn);
        engine()->set_cr3(v, true, root_gfn);
    }
    return m;
}

void machine_destroy(struct machine *m)
{
    for (unsigned k = 0; k < m->domain.max_vcpus; k++)
        engine()->vcpu_destroy(&m->vcpu[k]);
    engine()->domain_destroy(&m->domain);
    engine()->machine_destroy(&m->hv);
    munmap(m->hv.bank_base, NR_FRAMES * PAGE_SIZE);
    close(m->hv.bank_fd);
    free(m->hv.frame_table);
    free((void *)m->domain.physmap.entry);
    free(m);
}

/* ---- what the engine calls -------------------------------------------------------------------------------------- */

void (*disturb)(struct domain *d, struct vcpu *curr);

_Noreturn void hv_bug(const char *file, int line, const char *what) { die("%s:%d: broken: %s", file, line, what); }

void hv_printk(struct hv *hv, const char *format, ...)
{
    (void)hv;
    fprintf(stderr, "%s\n", format);
}

void domain_crash(struct domain *d, const char *why, ...)
{
    (void)d;
    die("domain crash: %s", why);
}

void domain_lock(struct domain *d, struct vcpu *curr)
{
    if (curr)
        atomic_store(&curr->in_guest, false);
    lock(&d->lock);
    if (curr && disturb)
        disturb(d, curr);
}

void domain_unlock(struct domain *d, struct vcpu *curr)
{
    if (curr)
        atomic_store(&curr->in_guest, true);
    unlock(&d->lock);
}

void domain_quiesce(struct domain *d, struct vcpu *curr)
{
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i] != curr && atomic_load(&d->vcpu[i]->in_guest))
            vcpu_kick(d->vcpu[i]);
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        while (d->vcpu[i] && d->vcpu[i] != curr && atomic_load(&d->vcpu[i]->in_guest))
            sched_yield();
}

const void *m2p_page(const struct domain *d, uint64_t vaddr)
{
    (void)d;
    (void)vaddr;
    return NULL;
}

bool pv_read_descriptor(struct vcpu *v, uint16_t selector, uint64_t *descriptor)
{
    (void)v;
    (void)selector;
    (void)descriptor;
    return false;
}

bool pv_ptwr_write(struct vcpu *v, uint64_t vaddr, uint64_t value, unsigned bytes)
{
    die("unexpected page table write %llx %llx %u of vCPU %u", (unsigned long long)vaddr, (unsigned long long)value, bytes,
        v->id);
}
