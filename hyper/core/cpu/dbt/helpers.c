/*
 * What generated code calls: string instructions, flags on the stack, iret within a mode, fxsave.
 *
 * Helpers run on C's stack with the guest's integer registers stored in the vCPU and its vector registers still in the
 * host's: no vector instruction here, and no call into libc. They return 0 to leave, with e->exit set and rip at their
 * instruction; restartable instructions leave their progress in the registers, as the CPU does.
 */
#pragma GCC target("general-regs-only")
#include "cpu/dbt/dbt.h"
#include "cpu/operand.h"

static uint64_t leave(struct engine_vcpu *e, enum dbt_exit why)
{
    e->exit = why;
    return 0;
}

static uint64_t leave_fault(struct engine_vcpu *e) { return leave(e, mmu_fault_exit(e)); }

/* Through rsp a non-canonical address is #SS. */
static uint64_t leave_stack_fault(struct engine_vcpu *e)
{
    enum dbt_exit why = mmu_fault_exit(e);
    return leave(e, why == DBT_GP ? DBT_STACK : why);
}

static uint64_t help_access(struct engine_vcpu *e, uint64_t vaddr, uint64_t what) { return mmu_slow_access(e, vaddr, what); }

/* The segment in `what` (SLOW_SEGMENT). */
static enum sreg segment_in(uint64_t what) { return (what >> 20 & 7) - 1; }

static uint64_t help_segment(struct engine_vcpu *e, uint64_t offset, uint64_t what)
{
    uint64_t vaddr;
    if (!locate(&e->cpu, segment_in(what), offset, what & SLOW_SIZE, what & SLOW_WRITE, &vaddr))
        return leave_fault(e);
    return vaddr | 1ull << 32;
}

/* ---- string instructions ---------------------------------------------------------------------------------------- */

struct string_op {
    unsigned opcode, bytes;
    unsigned repeat;      /* 1: rep, repe; 2: repne */
    enum sreg segment;    /* of the source; the target's is ES */
    uint64_t mask;        /* of addresses and the counter */
    bool checked;         /* segments have limits: one element at a time */
    int64_t step;
};

/* Addresses of the source and of the target; false: a segment refuses them. */
static bool source_at(struct engine_vcpu *e, const struct string_op *s, uint64_t *vaddr)
{
    return locate(&e->cpu, s->segment, e->cpu.regs[RSI] & s->mask, s->bytes, false, vaddr);
}

static bool target_at(struct engine_vcpu *e, const struct string_op *s, bool write, uint64_t *vaddr)
{
    return locate(&e->cpu, SREG_ES, e->cpu.regs[RDI] & s->mask, s->bytes, write, vaddr);
}

/* As the CPU does: 32 bits clear the rest, 16 bits leave it. */
static void advance(uint64_t *r, const struct string_op *s, int64_t by)
{
    uint64_t kept = s->mask == 0xffff ? *r & ~s->mask : 0;
    *r = kept | ((*r + by) & s->mask);
}

static uint64_t accumulator(const struct engine_vcpu *e, unsigned bytes)
{
    return bytes == 8 ? e->cpu.regs[RAX] : e->cpu.regs[RAX] & ((1ull << 8 * bytes) - 1);
}

static void set_accumulator(struct engine_vcpu *e, unsigned bytes, uint64_t v)
{
    uint64_t *rax = &e->cpu.regs[RAX];
    if (bytes >= 4)
        *rax = v; /* 32 bits clear the rest */
    else
        *rax = (*rax & ~((1ull << 8 * bytes) - 1)) | v;
}

/* Flags of a - b at the operand's size, as cmp leaves them. */
static void set_compare_flags(struct engine_vcpu *e, uint64_t a, uint64_t b, unsigned bytes)
{
    unsigned shift = 64 - 8 * bytes;
    uint64_t wide, narrow;
    uint8_t overflow;
    __asm__("cmp %3, %2\n\tlahf\n\tseto %1\n\tmovzbl %%ah, %%eax"
            : "=&a"(wide), "=&d"(overflow) : "r"(a << shift), "r"(b << shift) : "cc");
    __asm__("cmpb %b2, %b1\n\tlahf\n\tmovzbl %%ah, %%eax" : "=&a"(narrow) : "q"(a), "q"(b) : "cc");
    wide = (wide & ~(uint64_t)(X86_AF | X86_PF)) | (narrow & (X86_AF | X86_PF)); /* those two look at the low byte */
    e->cpu.status = wide << 8 | overflow;
}

/* Elements that can be moved at once: up to a page end on either side, forward only. 0: one by one. */
static uint64_t run_length(const struct string_op *s, uint64_t count, uint64_t from, uint64_t to)
{
    if (!s->repeat || s->checked || s->step < 0 || count <= 8 / s->bytes)
        return 0;
    uint64_t n = PAGE_SIZE - (from & ~PAGE_MASK), m = PAGE_SIZE - (to & ~PAGE_MASK);
    n = (n < m ? n : m) / s->bytes;
    return n < count ? n : count;
}

static void fill(uint8_t *to, uint64_t value, unsigned bytes, uint64_t count)
{
    switch (bytes) {
    case 1: __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    case 2: __asm__ volatile("rep stosw" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    case 4: __asm__ volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    default: __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    }
}

/* Overlapping runs repeat elements, as the CPU does: the unit of the copy matters. */
static void move(uint8_t *to, const uint8_t *from, unsigned bytes, uint64_t count)
{
    switch (bytes) {
    case 1: __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    case 2: __asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    case 4: __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    default: __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    }
}

/* A run at once, or one element. Returns elements done, 0 after a fault. */
static uint64_t move_some(struct engine_vcpu *e, const struct string_op *s)
{
    uint64_t from, into, value;
    if (!source_at(e, s, &from) || !target_at(e, s, true, &into))
        return 0;
    uint64_t n = run_length(s, e->cpu.regs[RCX] & s->mask, from, into);
    if (n) {
        uint8_t *source = mmu_access(e, from, false);
        uint8_t *to = source ? mmu_access(e, into, true) : NULL;
        if (!to)
            return 0;
        move(to, source, s->bytes, n);
        return n;
    }
    return mmu_load(e, from, s->bytes, &value) && mmu_store(e, into, s->bytes, value);
}

static uint64_t store_some(struct engine_vcpu *e, const struct string_op *s)
{
    uint64_t *r = e->cpu.regs, into;
    if (!target_at(e, s, true, &into))
        return 0;
    uint64_t n = run_length(s, r[RCX] & s->mask, into, into);
    if (!n)
        return mmu_store(e, into, s->bytes, r[RAX]);
    uint8_t *to = mmu_access(e, into, true);
    if (!to)
        return 0;
    fill(to, r[RAX], s->bytes, n);
    return n;
}

static uint64_t load_one(struct engine_vcpu *e, const struct string_op *s)
{
    uint64_t from, value;
    if (!source_at(e, s, &from) || !mmu_load(e, from, s->bytes, &value))
        return 0;
    set_accumulator(e, s->bytes, value);
    return 1;
}

static uint64_t compare_one(struct engine_vcpu *e, const struct string_op *s, bool scan)
{
    uint64_t a = accumulator(e, s->bytes), b, from, other;
    if ((!scan && (!source_at(e, s, &from) || !mmu_load(e, from, s->bytes, &a))) || !target_at(e, s, false, &other) ||
        !mmu_load(e, other, s->bytes, &b))
        return 0;
    set_compare_flags(e, a, b, s->bytes);
    return 1;
}

static uint64_t string_step(struct engine_vcpu *e, const struct string_op *s)
{
    uint64_t *r = e->cpu.regs, n = 0;
    bool uses_rsi = false, uses_rdi = true;
    switch (s->opcode & 0xfe) {
    case 0xa4: n = move_some(e, s); uses_rsi = true; break;
    case 0xaa: n = store_some(e, s); break;
    case 0xac: n = load_one(e, s); uses_rsi = true; uses_rdi = false; break;
    case 0xa6: n = compare_one(e, s, false); uses_rsi = true; break;
    case 0xae: n = compare_one(e, s, true); break;
    }
    if (uses_rsi && n)
        advance(&r[RSI], s, s->step * n);
    if (uses_rdi && n)
        advance(&r[RDI], s, s->step * n);
    return n;
}

/* A single step, or a watched access, is reported after each element. */
static bool stops_between_elements(const struct engine_vcpu *e)
{
    return e->alone && ((e->cpu.other_flags & X86_TF) || e->cpu.debug);
}

static uint64_t help_string(struct engine_vcpu *e, uint64_t unused, uint64_t what)
{
    (void)unused;
    struct string_op s = {.opcode = what & 0xff, .bytes = (what >> 8) & 0xff, .repeat = (what >> 16) & 3,
                          .segment = (what >> 20) & 15, .mask = ~0ull >> (64 - 8 * (what >> 24 & 15)),
                          .checked = (e->cpu.code & ~(uint64_t)CODE_COMPAT) || watches_data(e) ||
                                     stops_between_elements(e)};
    s.step = e->cpu.direction ? -(int64_t)s.bytes : s.bytes;
    bool compares = (s.opcode & 0xfe) == 0xa6 || (s.opcode & 0xfe) == 0xae;
    uint64_t *rcx = &e->cpu.regs[RCX];
    while (!s.repeat || (*rcx & s.mask)) {
        uint64_t n = string_step(e, &s);
        if (!n)
            return leave_fault(e);
        if (!s.repeat)
            return 1;
        advance(rcx, &s, -(int64_t)n);
        bool equal = (e->cpu.status >> 8) & X86_ZF;
        if (compares && equal != (s.repeat == 1))
            return 1;
        if ((*rcx & s.mask) && stops_between_elements(e))
            return leave(e, DBT_LINK);
        if ((*rcx & s.mask) && atomic_load_explicit(&e->vcpu->kick, memory_order_relaxed))
            return leave(e, DBT_POLL); /* a long one is interruptible between elements */
    }
    return 1;
}

/* The domain lock, in the middle of translated code; false: it is held already. */
static bool lock_in_helper(struct engine_vcpu *e)
{
    if (!atomic_load(&e->vcpu->in_guest))
        return false;
    atomic_store(&e->in_helper, true);
    domain_lock(e->vcpu->domain, e->vcpu);
    atomic_store(&e->in_helper, false);
    return true;
}

void helper_drop_code(struct engine_vcpu *e)
{
    struct domain *d = e->vcpu->domain;
    struct page_info *pg;
    bool locked = lock_in_helper(e);
    if (mmu_walk(e, e->cpu.fault_vaddr, ACCESS_WRITE, &pg) && pg)
        code_frame_written(d, pg);
    if (locked)
        domain_unlock(d, e->vcpu);
}

/* In a block of its own, with the vector registers saved: may take the domain lock, so a store to code goes through. */
static uint64_t help_string_alone(struct engine_vcpu *e, uint64_t r10, uint64_t what)
{
    for (;;) {
        if (help_string(e, r10, what))
            return 1;
        if (e->exit != DBT_SPECIAL)
            return 0;
        helper_drop_code(e);
    }
}

/* ---- stores that wait in the bounce buffer ---------------------------------------------------------------------- */

static uint8_t *commit_page(struct engine_vcpu *e, uint64_t vaddr)
{
    struct page_info *pg;
    uint8_t *host = mmu_walk(e, vaddr, ACCESS_WRITE, &pg);
    if (host && pg)
        code_frame_written(e->vcpu->domain, pg);
    return host;
}

static uint64_t commit_page_table(struct engine_vcpu *e, uint64_t vaddr, const uint8_t *from, unsigned bytes)
{
    uint64_t value = 0;
    ASSERT(!atomic_load(&e->vcpu->in_guest)); /* run_alone holds the lock */
    copy_plain(&value, from, bytes);
    e->bounce_is_page_table = false;
    if (pv_ptwr_write(e->vcpu, vaddr, value, bytes))
        return 1;
    e->page_table_refused = true;
    e->cpu.fault_vaddr = vaddr;
    e->cpu.fault_error = 3;
    return leave(e, DBT_PAGE_FAULT);
}

static uint64_t help_commit(struct engine_vcpu *e, uint64_t r10, uint64_t r11)
{
    (void)r10;
    (void)r11;
    if (!e->bounce_bytes)
        return 1;
    uint64_t vaddr = e->bounce_vaddr, bytes = e->bounce_bytes, first = PAGE_SIZE - (vaddr & ~PAGE_MASK);
    const uint8_t *from = e->bounce + (vaddr & 63);
    e->bounce_bytes = 0;
    if (e->bounce_is_page_table)
        return commit_page_table(e, vaddr, from, bytes);
    bool locked = lock_in_helper(e);
    uint8_t *low = commit_page(e, vaddr), *high = bytes > first ? commit_page(e, next_page(e, vaddr)) : low;
    if (low && high) { /* else another vCPU unmapped it meanwhile: as if the store had come before that */
        copy_plain(low, from, bytes < first ? bytes : first);
        if (bytes > first)
            copy_plain(high, from + first, bytes - first);
    }
    if (locked)
        domain_unlock(e->vcpu->domain, e->vcpu);
    return 1;
}

/* ---- flags on the stack, iret ----------------------------------------------------------------------------------- */

static uint64_t help_pushf(struct engine_vcpu *e, uint64_t r10, uint64_t bytes)
{
    (void)r10;
    uint64_t at;
    if (!stack_address(&e->cpu, -(int64_t)bytes, bytes, true, &at) || !mmu_store(e, at, bytes, cpu_rflags(&e->cpu) & ~(uint64_t)X86_RF))
        return leave_stack_fault(e);
    stack_move(&e->cpu, -(int64_t)bytes);
    return 1;
}

static uint64_t help_popf(struct engine_vcpu *e, uint64_t r10, uint64_t bytes)
{
    (void)r10;
    uint64_t rflags, at;
    if (!stack_address(&e->cpu, 0, bytes, false, &at) || !mmu_load(e, at, bytes, &rflags))
        return leave_stack_fault(e);
    if (rflags & X86_TF)
        return leave(e, DBT_RARE); /* single-stepping starts: out of the block */
    stack_move(&e->cpu, bytes);
    cpu_set_rflags(&e->cpu, rflags);
    return 1;
}

/* iret to the same mode, as Linux uses it to serialise; anything else is the hypervisor's. */
static uint64_t help_iret(struct engine_vcpu *e, uint64_t r10, uint64_t operand_size)
{
    (void)r10;
    uint64_t frame[5];
    unsigned bytes = operand_size == 8 ? 8 : 4;
    if (operand_size == 2)
        return leave(e, DBT_PRIVILEGED);
    for (unsigned k = 0; k < 5; k++)
        if (!mmu_load(e, e->cpu.regs[RSP] + k * bytes, bytes, &frame[k]))
            return leave_stack_fault(e);
    uint16_t cs = frame[1], ss = frame[4];
    if (cs != e->cpu.sreg[SREG_CS] || ss != e->cpu.sreg[SREG_SS] || (frame[2] & X86_TF) || !is_canonical(frame[0]))
        return leave(e, DBT_PRIVILEGED);
    e->cpu.rip = frame[0];
    cpu_set_rflags(&e->cpu, frame[2]);
    e->cpu.regs[RSP] = frame[3];
    return 1;
}

/* ---- FPU image -------------------------------------------------------------------------------------------------- */


/* May all of the image be written? */
static bool image_writable(struct engine_vcpu *e, uint64_t vaddr)
{
    const uint64_t pages[2] = {vaddr, page_of(vaddr + 511)};
    for (unsigned k = 0; k < 2; k++)
        while (!mmu_access(e, pages[k], true)) {
            if (e->cpu.fault_error != FAULT_CODE_FRAME)
                return false;
            helper_drop_code(e);
        }
    return true;
}

/* Of the vector registers 32-bit code has eight. */
static size_t xmm_bytes(const struct engine_vcpu *e) { return e->cpu.code ? sizeof(e->xmm) / 2 : sizeof(e->xmm); }

static bool image_address(struct engine_vcpu *e, uint64_t *vaddr, uint64_t what, bool write)
{
    return !(what & SLOW_SEGMENTS) || locate(&e->cpu, segment_in(what), *vaddr, 512, write, vaddr);
}

static uint64_t help_fxsave(struct engine_vcpu *e, uint64_t vaddr, uint64_t what)
{
    uint8_t image[512] __attribute__((aligned(16)));
    if (!image_address(e, &vaddr, what, true))
        return leave_fault(e);
    if (vaddr & 15)
        return leave(e, DBT_GP);
    if (!image_writable(e, vaddr))
        return leave_fault(e);
    for (uint64_t at = 0; at < sizeof(image); at += 8) { /* reserved parts keep what memory held */
        uint64_t *word = (uint64_t *)(image + at);
        if (!mmu_load(e, vaddr + at, 8, word))
            return leave_fault(e);
    }
    uint8_t high[sizeof(e->xmm) / 2];
    copy_plain(high, image + FXSAVE_XMM + sizeof(high), sizeof(high));
    if (what & 8)
        __asm__ volatile("fxsave64 %0" : "+m"(image));
    else
        __asm__ volatile("fxsave %0" : "+m"(image));
    copy_plain(image + FXSAVE_XMM, e->xmm, xmm_bytes(e));
    if (e->cpu.code)
        copy_plain(image + FXSAVE_XMM + sizeof(high), high, sizeof(high));
    *(uint64_t *)(image + FXSAVE_FIP) = *(uint64_t *)(image + FXSAVE_FDP) = 0; /* host addresses */
    for (uint64_t at = 0; at < sizeof(image); at += 8)
        if (!mmu_store(e, vaddr + at, 8, *(uint64_t *)(image + at)))
            return leave_fault(e);
    return 1;
}

static uint64_t help_fxrstor(struct engine_vcpu *e, uint64_t vaddr, uint64_t what)
{
    uint8_t image[512] __attribute__((aligned(16)));
    if (!image_address(e, &vaddr, what, false))
        return leave_fault(e);
    if (vaddr & 15)
        return leave(e, DBT_GP);
    for (uint64_t at = 0; at < sizeof(image); at += 8)
        if (!mmu_load(e, vaddr + at, 8, (uint64_t *)(image + at)))
            return leave_fault(e);
    if (*(uint32_t *)(image + 24) & ~0xffffu)
        return leave(e, DBT_GP); /* reserved MXCSR bits */
    copy_plain(e->xmm, image + FXSAVE_XMM, xmm_bytes(e)); /* the way out loads them */
    if (what & 8)
        __asm__ volatile("fxrstor64 %0" : : "m"(image));
    else
        __asm__ volatile("fxrstor %0" : : "m"(image));
    return 1;
}

void helpers_init(struct engine_vcpu *e)
{
    e->helper[HELP_ACCESS] = help_access;
    e->helper[HELP_STRING] = help_string;
    e->helper[HELP_STRING_ALONE] = help_string_alone;
    e->helper[HELP_COMMIT] = help_commit;
    e->helper[HELP_PUSHF] = help_pushf;
    e->helper[HELP_POPF] = help_popf;
    e->helper[HELP_IRET] = help_iret;
    e->helper[HELP_FXSAVE] = help_fxsave;
    e->helper[HELP_FXRSTOR] = help_fxrstor;
    e->helper[HELP_SEGMENT] = help_segment;
    e->helper[HELP_XSAVE] = help_xsave;
    e->helper[HELP_XRSTOR] = help_xrstor;
}
