/*
 * Status flags while a block is translated.
 *
 * A TLB look-up destroys the host's flags, so a block knows at each point where the guest's are: in the host's flags, saved
 * in cpu.status, or both. Backward liveness over the block, and a peek at what follows it in the same page (in the kernel image in another one as well), tells when nobody
 * will read them; then nothing is saved. Direct edges carry flags in the host, indirect ones saved.
 *
 * Saved means as lahf and seto leave them; `add al, 127; sahf` puts them back: the sum overflows iff bit 0 was set.
 */
#include "cpu/dbt/translate.h"

void save_flags(struct translator *t)
{
    t->in_t1 = -1;
    emit_mov(&t->m, T1, H_RAX);
    EMIT(&t->m, "\x9f\x0f\x90\xc0\x66"); /* lahf; seto al; and 16 bits of it: */
    emit_gs(&t->m, false, 0x89, H_RAX, OFFSET(cpu.status));
    emit_mov(&t->m, H_RAX, T1);
}

void restore_flags(struct translator *t, bool busy)
{
    t->in_t1 = -1;
    if (busy)
        emit_store_gs(&t->m, OFFSET(scratch0), H_RAX);
    else
        emit_mov(&t->m, T1, H_RAX);
    emit_gs(&t->m, false, 0x1b7, H_RAX, OFFSET(cpu.status)); /* movzx eax, word */
    EMIT(&t->m, "\x04\x7f\x9e");                             /* add al, 127; sahf */
    if (busy)
        emit_load_gs(&t->m, H_RAX, OFFSET(scratch0));
    else
        emit_mov(&t->m, H_RAX, T1);
}

void flags_give_up(struct translator *t, uint16_t live)
{
    if (live && t->flags == FLAGS_HOST)
        save_flags(t);
    t->flags = live ? FLAGS_SAVED : FLAGS_HOST;
}

void flags_to_host(struct translator *t, bool busy)
{
    if (t->flags == FLAGS_SAVED) {
        restore_flags(t, busy);
        t->flags = FLAGS_BOTH;
    }
}

void flags_to_vcpu(struct translator *t)
{
    if (t->flags == FLAGS_HOST)
        save_flags(t);
    t->flags = FLAGS_SAVED;
}

bool needs_flags(const struct insn *i, uint16_t live_after)
{
    return i->flags_read || (i->flags_touch && (live_after & ~i->flags_kill));
}

struct code_page { uint64_t vaddr; const uint8_t *host; mfn_t mfn; };

/* Flags read from pc on before they are overwritten: looks a few instructions ahead in one page, whose frame is registered,
 * so that a change of those bytes kills this block too. */
static uint16_t look_ahead(const struct translator *t, const struct code_page *page, uint64_t pc, unsigned depth)
{
    uint16_t dead = 0, live = 0;
    if (depth > 4)
        return X86_STATUS;
    for (unsigned n = 0; n < 16; n++) {
        if (page_of(pc) != page_of(page->vaddr) || (pc & ~PAGE_MASK) > PAGE_SIZE - DECODE_BYTES)
            return live | (X86_STATUS & ~dead);
        struct insn i;
        decode(&i, page->host + (pc & ~PAGE_MASK), pc, t->features, t->compat);
        live |= i.flags_read & ~dead;
        dead |= i.flags_kill;
        if ((live | dead) == X86_STATUS)
            return live;
        switch (i.kind) {
        case INSN_JMP: pc = i.target; continue;
        case INSN_CALL: return live | (look_ahead(t, page, i.target, depth + 1) & ~dead);
        case INSN_JCC: case INSN_JRCXZ:
            return live | ((look_ahead(t, page, i.target, depth + 1) | look_ahead(t, page, pc + i.length, depth + 1)) & ~dead);
        }
        if (insn_ends_block(&i))
            return live | (X86_STATUS & ~dead);
        pc += i.length;
    }
    return live | (X86_STATUS & ~dead);
}

/* The page of pc, if this block may rest on its bytes: its own, or in the kernel's image one other, whose changes and unmapping
 * kill the block. */
static bool page_at(struct translator *t, uint64_t pc, struct code_page *page)
{
    *page = (struct code_page){page_of(pc), t->page, t->b->mfn};
    if (page->vaddr == t->page_vaddr)
        return true;
    if (!in_kernel_image(t) || pc < CHAIN_START || t->single)
        return false;
    if (mfn_eq(t->b->peeked, INVALID_MFN)) {
        mfn_t mfn = mmu_fetch_frame(t->e, pc);
        if (mfn_eq(mfn, INVALID_MFN) || frame_page(t->ed->domain->hv, mfn)->foreign_writers)
            return false;
        code_frame_register(t->e, mfn);
        t->b->peeked = mfn;
        t->peeked_vaddr = page->vaddr;
    }
    page->host = frame_host(t->ed->domain->hv, t->b->peeked);
    page->mfn = t->b->peeked;
    return page->vaddr == t->peeked_vaddr;
}

uint16_t live_at(struct translator *t, uint64_t pc)
{
    struct engine_domain *ed = t->ed;
    struct code_page page;
    typeof(&ed->liveness[0]) known = &ed->liveness[pc * 0x9e3779b97f4a7c15ull >> 52];
    _Static_assert(LIVENESS_ENTRIES == 1 << (64 - 52), "the hash");
    if (!page_at(t, pc, &page))
        return X86_STATUS;
    if (known->pc != pc || known->generation != ed->liveness_generation || !mfn_eq(known->mfn, page.mfn) ||
        known->compat != t->compat) {
        known->live = look_ahead(t, &page, pc, 0);
        known->pc = pc;
        known->generation = ed->liveness_generation;
        known->mfn = page.mfn;
        known->compat = t->compat;
    }
    return known->live;
}
