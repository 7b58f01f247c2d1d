/*
 * What the rest of the hypervisor asks of the engine about memory: another mode or page-table root, flushes, frames that change
 * hands, code that may have changed. The domain lock is held by callers, except where engine.h says it isn't needed; other vCPUs
 * quiesce here when their caches are touched.
 */
#include "cpu/dbt/dbt.h"

void dbt_set_mode(struct vcpu *v, bool user)
{
    struct engine_vcpu *e = v->engine;
    if (e->cpu.user_mode == user)
        return;
    uint64_t other = e->shadow_saved;
    e->shadow_saved = e->shadow_rsp;
    e->shadow_rsp = other;
    e->cpu.user_mode = user;
    if (user && e->loaded_user_root != (uint64_t)e->root[1]) {
        e->loaded_user_root = (uint64_t)e->root[1];
        mmu_flush_mode(e, 1);
        jump_clear(e, 1);
        e->shadow_rsp = e->shadow_top[1];
    }
}

void dbt_set_fpu_disabled(struct vcpu *v, bool ts)
{
    struct engine_vcpu *e = v->engine;
    if (e->fpu_disabled == ts)
        return;
    e->fpu_disabled = ts; /* see check_mode */
}

static void flush_vcpu(struct vcpu *v, enum flush_scope scope)
{
    struct engine_vcpu *e = v->engine;
    if (scope == FLUSH_USER_HALF) {
        mmu_flush_user_half(e);
        return;
    }
    for (unsigned mode = 0; mode < 2; mode++) {
        mmu_flush_mode(e, mode);
        jump_clear(e, mode);
    }
}

void dbt_set_cr3(struct vcpu *v, bool user, uint64_t l4_gfn)
{
    struct engine_vcpu *e = v->engine;
    struct domain *d = v->domain;
    mfn_t mfn = physmap_lookup(&d->physmap, _gfn(l4_gfn), NULL);
    uint8_t *root = mfn_eq(mfn, INVALID_MFN) ? NULL : frame_host(d->hv, mfn);
    if (user) {
        e->root[1] = root;
        e->loaded_user_root = ~0ull; /* even the same frame may hold another tree */
        return;
    }
    if (root == e->root[0]) { /* a guest's way to flush */
        flush_vcpu(v, FLUSH_ALL);
        return;
    }
    e->root[0] = root;
    mmu_flush_user_half(e);
    if (d->engine->kernel_low_code)
        jump_clear(e, 0);
    uint64_t top = root ? *(uint64_t *)(root + 511 * 8) & (PTE_ADDR | PTE_PRESENT) : 0;
    if (top != d->engine->top_l4_entry) { /* chains across pages rest on it */
        if (d->engine->top_l4_entry)
            block_unlink_all(d->engine);
        d->engine->top_l4_entry = top;
    }
}

void dbt_flush_tlb(struct domain *d, struct vcpu *curr, struct vcpu *v, enum flush_scope scope)
{
    if (v != curr || !v)
        domain_quiesce(d, curr);
    for (unsigned i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->engine && (!v || d->vcpu[i] == v))
            flush_vcpu(d->vcpu[i], scope);
}

static void drop_vcpu_page(struct vcpu *v, uint64_t vaddr)
{
    struct engine_vcpu *e = v->engine;
    mmu_drop_page(e, vaddr);
    jump_clear(e, 1);
    if (vaddr >= CHAIN_START || v->domain->engine->kernel_low_code)
        jump_clear(e, 0);
}

void dbt_flush_page(struct domain *d, struct vcpu *curr, struct vcpu *v, uint64_t vaddr)
{
    if (v != curr || !v)
        domain_quiesce(d, curr);
    for (unsigned i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->engine && (!v || d->vcpu[i] == v))
            drop_vcpu_page(d->vcpu[i], vaddr);
}

void dbt_revoke_frame(struct domain *d, struct vcpu *curr, struct page_info *pg, bool all)
{
    if (!d->engine)
        return;
    revoke_write_tag(d, curr, pg);
    if (!all)
        return;
    domain_quiesce(d, curr);
    code_frame_written(d, pg);
    const uint8_t *host = frame_host(d->hv, _mfn(pg - d->hv->frame_table));
    for (unsigned i = 0; i < d->max_vcpus; i++)
        if (d->vcpu[i] && d->vcpu[i]->engine)
            mmu_drop_host_page(d->vcpu[i]->engine, host, true);
}

void dbt_unmap_code(struct domain *d, struct vcpu *curr, struct page_info *pg)
{
    (void)curr;
    if (d->engine && (pg->flags & PGC_code))
        block_unlink_frame(d->engine, _mfn(pg - d->hv->frame_table));
}

/* The table that an entry names, or NULL. */
static struct page_info *table_below(struct domain *d, uint64_t pte)
{
    mfn_t mfn = pte & PTE_PRESENT ? physmap_lookup(&d->physmap, pte_gfn(pte), NULL) : INVALID_MFN;
    return mfn_eq(mfn, INVALID_MFN) ? NULL : frame_page(d->hv, mfn);
}

/* Does this slot of a table lead to the addresses where direct jumps cross pages? They are the last two slots of the L3 table
 * under the last slot of L4. */
static bool leads_to_chains(struct domain *d, struct page_info *table, unsigned slot)
{
    struct page_info *l3 = table_below(d, d->engine->top_l4_entry);
    if (table->type == PGT_l4_page_table)
        return slot == 511;
    if (!l3 || table->type == PGT_l3_page_table)
        return l3 && table == l3 && slot >= 510;
    const uint64_t *entry = (const uint64_t *)frame_host(d->hv, _mfn(l3 - d->hv->frame_table));
    return table == table_below(d, entry[510]) || table == table_below(d, entry[511]);
}

void dbt_unmap_tables(struct domain *d, struct vcpu *curr, struct page_info *table, unsigned slot)
{
    (void)curr;
    if (d->engine && leads_to_chains(d, table, slot))
        block_unlink_all(d->engine);
}

void dbt_frame_written(struct domain *d, struct vcpu *curr, struct page_info *pg)
{
    (void)curr;
    if (d->engine)
        code_frame_written(d, pg);
}
