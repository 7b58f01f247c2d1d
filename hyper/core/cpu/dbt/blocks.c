/*
 * The code cache of a domain: blocks, the direct jumps between them, and their death.
 *
 * The cache is mapped twice, to run and to write: no memory is both writable and executable at one address.
 *
 * A block is known by (pc, mode, the frames of its bytes). Direct jumps are rel32s patched to the target block, within a
 * page always, across pages only in the kernel's high part (CHAIN_START), where every change of a mapping is seen. All
 * other control flow goes through the jump cache, which is cleared with the TLB.
 *
 * Invalidation is by frame: any store to a frame with code, through whatever alias, by the guest or for it, kills the
 * frame's blocks. A dead block's bytes stay until the cache is flushed as a whole, so a vCPU that is just executing one
 * comes out safely at its end. When the cache is full everything goes at once: other vCPUs quiesce, shadow stacks and
 * jump caches are reset.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/dbt/dbt.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif

static unsigned hash_of(uint64_t pc) { return pc * 0x9e3779b97f4a7c15ull >> (64 - BLOCK_HASH_BITS); }

/* ---- the books -------------------------------------------------------------------------------------------------- */

static void *map_sparse(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void unmap(void *p, size_t bytes)
{
    if (p)
        munmap(p, bytes);
}

/* Twice the same memory, once to run and once to write. False: the host has no executable memfds. */
static bool map_code(struct engine_domain *ed)
{
    int fd = memfd_create("umxen-code", MFD_CLOEXEC | MFD_EXEC);
    if (fd < 0) /* a kernel that doesn't know the flag */
        fd = memfd_create("umxen-code", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    uint8_t *run = MAP_FAILED, *write = MAP_FAILED;
    if (!ftruncate(fd, CACHE_BYTES)) {
        run = mmap(NULL, CACHE_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_NORESERVE, fd, 0);
        write = mmap(NULL, CACHE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    }
    close(fd);
    if (run != MAP_FAILED && write != MAP_FAILED) {
        ed->cache = run;
        ed->alias = write - run;
        return true;
    }
    if (run != MAP_FAILED)
        munmap(run, CACHE_BYTES);
    if (write != MAP_FAILED)
        munmap(write, CACHE_BYTES);
    hv_printk(ed->domain->hv, "no code cache: this host refuses executable memfds (vm.memfd_noexec, SELinux?)");
    return false;
}

#define TRAMPOLINE_BYTES (4 * PAGE_SIZE) /* the last of these pages is the poll guard */
static size_t page_list_bytes(const struct engine_domain *ed)
{
    return ed->domain->hv->nr_frames * sizeof(struct page_blocks *);
}

int cache_create(struct engine_domain *ed)
{
    if (!map_code(ed))
        return -XEN_ENOMEM;
    ed->blocks = map_sparse(MAX_BLOCKS * sizeof(struct block));
    ed->links = map_sparse(MAX_LINKS * sizeof(struct link));
    ed->hash = map_sparse(sizeof(struct block *) << BLOCK_HASH_BITS);
    ed->page_list = map_sparse(page_list_bytes(ed));
    ed->page_pool = map_sparse(3 * MAX_BLOCKS * sizeof(struct page_blocks));
    ed->fault_offset = map_sparse(MAX_FAULT_POINTS * sizeof(uint32_t));
    ed->fault_pc = map_sparse(MAX_FAULT_POINTS * sizeof(uint64_t));
    if (!ed->cache || !ed->blocks || !ed->links || !ed->hash || !ed->page_list || !ed->page_pool || !ed->fault_offset ||
        !ed->fault_pc) {
        cache_destroy(ed);
        return -XEN_ENOMEM;
    }
    ed->hot_start = ed->hot = ed->cache + TRAMPOLINE_BYTES;
    ed->hot_end = ed->cold_start = ed->cold = ed->cache + HOT_BYTES;
    ed->cold_end = ed->cache + CACHE_BYTES;
    ed->guard = (uint32_t *)(ed->hot_start - PAGE_SIZE);
    trampolines_emit(ed);
    if (mprotect(ed->guard, PAGE_SIZE, PROT_NONE)) {
        cache_destroy(ed);
        return -XEN_ENOMEM;
    }
    return 0;
}

void cache_destroy(struct engine_domain *ed)
{
    unmap(ed->cache + ed->alias, CACHE_BYTES);
    unmap(ed->cache, CACHE_BYTES);
    unmap(ed->blocks, MAX_BLOCKS * sizeof(struct block));
    unmap(ed->links, MAX_LINKS * sizeof(struct link));
    unmap(ed->hash, sizeof(struct block *) << BLOCK_HASH_BITS);
    unmap(ed->page_list, page_list_bytes(ed));
    unmap(ed->page_pool, 3 * MAX_BLOCKS * sizeof(struct page_blocks));
    unmap(ed->fault_offset, MAX_FAULT_POINTS * sizeof(uint32_t));
    unmap(ed->fault_pc, MAX_FAULT_POINTS * sizeof(uint64_t));
}

static void for_each_engine(struct domain *d, void (*f)(struct engine_vcpu *, void *), void *arg)
{
    for (unsigned i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->engine)
            f(d->vcpu[i]->engine, arg);
}

void shadow_stack_reset(struct engine_vcpu *e)
{
    struct engine_domain *ed = e->vcpu->domain->engine;
    for (unsigned mode = 0; mode < 2; mode++)
        *(uint64_t *)e->shadow_top[mode] = (uint64_t)ed->tr.underflow;
    e->shadow_rsp = e->shadow_top[mode_index(e)];
    e->shadow_saved = e->shadow_top[!mode_index(e)];
}

static void forget_code(struct engine_vcpu *e, void *unused)
{
    (void)unused;
    jump_clear(e, 0);
    jump_clear(e, 1);
    shadow_stack_reset(e);
    e->link = NULL;
}

static bool others_in_helpers(const struct engine_vcpu *e)
{
    const struct domain *d = e->vcpu->domain;
    for (unsigned i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->engine && d->vcpu[i]->engine != e && atomic_load(&d->vcpu[i]->engine->in_helper))
            return true;
    return false;
}

/* All others leave their code. Those that wait for the lock inside a helper still have to return to theirs: they get it. */
static void wait_for_others(struct engine_vcpu *e)
{
    struct domain *d = e->vcpu->domain;
    domain_quiesce(d, e->vcpu);
    while (others_in_helpers(e)) {
        domain_unlock(d, e->vcpu);
        sched_yield();
        domain_lock(d, e->vcpu);
        domain_quiesce(d, e->vcpu);
    }
}

void cache_flush(struct engine_vcpu *e)
{
    struct domain *d = e->vcpu->domain;
    struct engine_domain *ed = d->engine;
    wait_for_others(e);
    for (uint32_t i = 0; i < ed->nr_blocks; i++) {
        struct block *b = &ed->blocks[i];
        mfn_t frames[3] = {b->mfn, b->mfn2, b->peeked};
        for (unsigned k = 0; k < 3; k++)
            if (!mfn_eq(frames[k], INVALID_MFN) && ed->page_list[mfn_x(frames[k])]) { /* else it may be another's by now */
                ed->page_list[mfn_x(frames[k])] = NULL;
                __atomic_and_fetch(&frame_page(d->hv, frames[k])->flags, ~PGC_code, __ATOMIC_SEQ_CST);
            }
    }
    memset(ed->hash, 0, sizeof(struct block *) << BLOCK_HASH_BITS);
    ed->hot = ed->hot_start;
    ed->cold = ed->cold_start;
    ed->nr_blocks = ed->nr_links = ed->nr_page_pool = ed->nr_faults = 0;
    ed->page_free = NULL;
    ed->liveness_generation++;
    ed->stats.cache_flushes++;
    for_each_engine(d, forget_code, NULL);
}

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

struct block *block_lookup(struct engine_vcpu *e, uint64_t pc, unsigned mode)
{
    struct engine_domain *ed = e->vcpu->domain->engine;
    mfn_t mfn = INVALID_MFN; /* walked for when there is a candidate */
    for (struct block *b = ed->hash[hash_of(pc)]; b; b = b->hash_next) {
        if (b->pc != pc || b->mode != mode)
            continue;
        if (mfn_eq(mfn, INVALID_MFN) && mfn_eq(mfn = mmu_fetch_frame(e, pc), INVALID_MFN))
            return NULL;
        if (!mfn_eq(b->mfn, mfn))
            continue;
        if (mfn_eq(b->mfn2, INVALID_MFN) || mfn_eq(b->mfn2, mmu_fetch_frame(e, page_of(pc) + PAGE_SIZE)))
            return b;
    }
    return NULL;
}

#define BLOCK_ROOM 65536 /* more than any block needs, in either half */
struct block *block_alloc(struct engine_vcpu *e, uint64_t pc, unsigned mode)
{
    struct engine_domain *ed = e->vcpu->domain->engine;
    if (ed->nr_blocks == MAX_BLOCKS || ed->hot_end - ed->hot < BLOCK_ROOM || ed->cold_end - ed->cold < BLOCK_ROOM ||
        ed->nr_links + BLOCK_LINKS > MAX_LINKS || ed->nr_page_pool + 3 > 3 * MAX_BLOCKS || ed->nr_faults + 256 > MAX_FAULT_POINTS)
        cache_flush(e);
    struct block *b = &ed->blocks[ed->nr_blocks]; /* counted by block_publish */
    memset(b, 0, sizeof(*b));
    b->pc = pc;
    b->mode = mode;
    b->links = &ed->links[ed->nr_links]; /* counted by block_publish as well */
    b->mfn = b->mfn2 = b->peeked = INVALID_MFN;
    return b;
}

/* A fault handler of another vCPU may be searching the blocks: they are counted when their address is known. */
void block_publish(struct engine_domain *ed)
{
    ed->nr_links += ed->blocks[ed->nr_blocks].nr_links;
    __atomic_store_n(&ed->nr_blocks, ed->nr_blocks + 1, __ATOMIC_RELEASE);
}

static void page_list_add(struct engine_domain *ed, mfn_t mfn, struct block *b)
{
    struct page_blocks *p = ed->page_free;
    if (p)
        ed->page_free = p->next;
    else
        p = &ed->page_pool[ed->nr_page_pool++];
    *p = (struct page_blocks){b, ed->page_list[mfn_x(mfn)]};
    ed->page_list[mfn_x(mfn)] = p;
}

void block_insert(struct engine_domain *ed, struct block *b)
{
    struct block **bucket = &ed->hash[hash_of(b->pc)];
    b->hash_next = *bucket;
    *bucket = b;
    page_list_add(ed, b->mfn, b);
    if (!mfn_eq(b->mfn2, INVALID_MFN))
        page_list_add(ed, b->mfn2, b);
    if (!mfn_eq(b->peeked, INVALID_MFN))
        page_list_add(ed, b->peeked, b);
}

/* The last block whose code starts at or before a host address. */
struct block *block_by_host(struct engine_domain *ed, uint64_t host)
{
    uint32_t low = 0, high = __atomic_load_n(&ed->nr_blocks, __ATOMIC_ACQUIRE);
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if ((uint64_t)ed->blocks[middle].checked_entry <= host)
            low = middle;
        else
            high = middle;
    }
    return &ed->blocks[low];
}

/* ---- links ------------------------------------------------------------------------------------------------------ */

/* Other vCPUs may be running the instruction: the four bytes lie in one cache line and change in one store. */
static void patch(const struct engine_domain *ed, struct link *l, const uint8_t *target)
{
    __atomic_store_n((int32_t *)(l->patch + ed->alias), (int32_t)(target - (l->patch + 4)), __ATOMIC_RELEASE);
}

void block_link(struct engine_domain *ed, struct link *l, struct block *to)
{
    l->to = to;
    l->next_incoming = to->incoming;
    to->incoming = l;
    patch(ed, l, to->entry);
}

static void cut_incoming(struct engine_domain *ed, struct block *b)
{
    for (struct link *l = b->incoming, *next; l; l = next) {
        next = l->next_incoming;
        l->to = NULL;
        l->next_incoming = NULL;
        patch(ed, l, l->stub);
    }
    b->incoming = NULL;
}

static void cut_outgoing(struct engine_domain *ed, struct block *b)
{
    for (unsigned i = 0; i < b->nr_links; i++) {
        struct link *l = &b->links[i];
        if (!l->to)
            continue;
        struct link **at = &l->to->incoming;
        while (*at != l)
            at = &(*at)->next_incoming;
        *at = l->next_incoming;
        l->to = NULL;
        l->next_incoming = NULL;
        patch(ed, l, l->stub);
    }
}

static void forget_jump(struct engine_vcpu *e, void *arg)
{
    struct block *b = arg;
    jump_forget(e, b->mode & MODE_USER, b->pc, b->checked_entry);
}

static void cut_all_ways_in(struct engine_domain *ed, struct block *b)
{
    cut_incoming(ed, b);
    for_each_engine(ed->domain, forget_jump, b);
}

static void block_kill(struct engine_domain *ed, struct block *b)
{
    b->dead = true;
    cut_all_ways_in(ed, b);
    cut_outgoing(ed, b);
    struct block **at = &ed->hash[hash_of(b->pc)];
    while (*at && *at != b)
        at = &(*at)->hash_next;
    if (*at)
        *at = b->hash_next;
    ed->stats.blocks_killed++;
}

void block_kill_frame(struct engine_domain *ed, mfn_t mfn)
{
    ed->stats.page_invalidations++;
    ed->liveness_generation++;
    for (struct page_blocks *p = ed->page_list[mfn_x(mfn)], *next; p; p = next) {
        next = p->next;
        if (!p->block->dead)
            block_kill(ed, p->block);
        p->next = ed->page_free;
        ed->page_free = p;
    }
    ed->page_list[mfn_x(mfn)] = NULL;
    __atomic_and_fetch(&frame_page(ed->domain->hv, mfn)->flags, ~PGC_code, __ATOMIC_SEQ_CST);
}

void block_unlink_frame(struct engine_domain *ed, mfn_t mfn)
{
    for (struct page_blocks *p = ed->page_list[mfn_x(mfn)]; p; p = p->next) {
        if (p->block->dead)
            continue;
        if (mfn_eq(p->block->peeked, mfn)) /* what it saw may be another page's tomorrow, and no look-up would tell */
            block_kill(ed, p->block);
        else
            cut_all_ways_in(ed, p->block);
    }
}

void block_unlink_all(struct engine_domain *ed)
{
    for (uint32_t i = 0; i < ed->nr_blocks; i++) {
        struct block *b = &ed->blocks[i];
        if (!b->dead && !mfn_eq(b->peeked, INVALID_MFN))
            block_kill(ed, b);
        else if (!b->dead)
            cut_incoming(ed, b);
    }
}

/* ---- frames with code ------------------------------------------------------------------------------------------- */

struct frame_drop { const uint8_t *host; bool all; };
static void drop_frame(struct engine_vcpu *e, void *arg)
{
    const struct frame_drop *f = arg;
    mmu_drop_host_page(e, f->host, f->all);
}

/* No TLB of the domain may write this frame any more. The tag says where to look: mostly one page of one vCPU. */
void revoke_write_tag(struct domain *d, struct vcpu *curr, struct page_info *pg)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t tag = __atomic_load_n(&pg->write_tag, __ATOMIC_SEQ_CST);
    if (!tag)
        return;
    unsigned id = (tag >> 4) & 0xff;
    if (!curr || (tag & 2) || id != curr->id)
        domain_quiesce(d, curr);
    tag = __atomic_exchange_n(&pg->write_tag, 0, __ATOMIC_SEQ_CST);
    struct frame_drop f = {frame_host(d->hv, _mfn(pg - d->hv->frame_table)), false};
    if (tag & 2)
        for_each_engine(d, drop_frame, &f);
    else if (id < d->max_vcpus && d->vcpu[id] && d->vcpu[id]->engine)
        mmu_drop_page(d->vcpu[id]->engine, page_of(tag));
}

void code_frame_register(struct engine_vcpu *e, mfn_t mfn)
{
    struct page_info *pg = frame_page(engine_hv(e), mfn);
    if (pg->flags & PGC_code)
        return;
    __atomic_or_fetch(&pg->flags, PGC_code, __ATOMIC_SEQ_CST);
    revoke_write_tag(e->vcpu->domain, e->vcpu, pg);
}

void code_frame_written(struct domain *d, struct page_info *pg)
{
    if (pg->flags & PGC_code)
        block_kill_frame(d->engine, _mfn(pg - d->hv->frame_table));
}

/* ---- host faults ------------------------------------------------------------------------------------------------ */

void fault_point_add(struct engine_domain *ed, const uint8_t *host, uint64_t pc)
{
    uint32_t n = ed->nr_faults;
    ed->fault_offset[n] = host - ed->cache;
    ed->fault_pc[n] = pc;
    atomic_store_explicit(&ed->nr_faults, n + 1, memory_order_release);
}

bool fault_point_find(struct engine_domain *ed, uint64_t host, uint64_t *pc)
{
    uint32_t low = 0, high = atomic_load_explicit(&ed->nr_faults, memory_order_acquire), at = host - (uint64_t)ed->cache;
    if (!high || ed->fault_offset[0] > at)
        return false;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (ed->fault_offset[middle] <= at)
            low = middle;
        else
            high = middle;
    }
    *pc = ed->fault_pc[low];
    return true;
}
