/*
 * XSAVE and its family on guest memory, and the vCPU's extended state for the rest of the hypervisor.
 *
 * While a helper that may call C runs, the guest's XMM registers and the upper halves of its YMM registers are in the vCPU,
 * its x87 state and MXCSR in the CPU. An image is put together from these in C: what the guest may have (its XCR0) is less than
 * what the host's XSAVE would store, and nothing of the host's is to be seen. What an instruction reads or writes of guest
 * memory, and which images are refused, is as the manuals say; the "modified" optimisation of XSAVEOPT is not made, which is
 * allowed. SSE counts as always in use, x87 and AVX as the CPU says.
 *
 * No vector registers here: gcc may not use them, and the C library only where they were saved.
 */
#pragma GCC target("general-regs-only")
#include "cpu/dbt/dbt.h"
#include "cpu/operand.h"

#define LEGACY_X87_END 24      /* FCW to FDP, before MXCSR */
#define LEGACY_ST 32
#define LEGACY_XMM 160
#define MXCSR_VALID 0xffffu
#define COMPACT (1ull << 63)

enum { AREA_HEADER = offsetof(struct xstate, present), AREA_YMM = offsetof(struct xstate, ymm_high) };

static uint64_t leave(struct engine_vcpu *e, enum dbt_exit why)
{
    e->exit = why;
    return 0;
}

/* ---- guest memory ----------------------------------------------------------------------------------------------- */

/* An area is aligned to 64 bytes and so lies in two pages at most. */
struct area {
    uint64_t vaddr;
    uint8_t *page[2]; /* where the area begins, and its second page if it has come into play */
};

/* May the first `bytes` of it be accessed? To drop code takes the domain lock, and whoever had it meanwhile may have made a
 * page table of a page that was reached before: then all over again. */
static bool reach(struct engine_vcpu *e, struct area *a, unsigned bytes, bool write)
{
    unsigned pages = (a->vaddr & ~PAGE_MASK) + bytes > PAGE_SIZE ? 2 : 1;
    for (unsigned k = 0; k < pages;) {
        if (a->page[k] || (a->page[k] = mmu_access(e, k ? page_of(a->vaddr) + PAGE_SIZE : a->vaddr, write))) {
            k++;
            continue;
        }
        if (e->cpu.fault_error != FAULT_CODE_FRAME)
            return false;
        helper_drop_code(e);
        a->page[0] = a->page[1] = NULL;
        k = 0;
    }
    return !watches_data(e) || watch_access(e, a->vaddr, bytes, write);
}

/* Where bytes of an area that was reached are, and how many of `bytes` follow in the same page. */
static uint8_t *at(const struct area *a, unsigned offset, unsigned *bytes)
{
    unsigned first = PAGE_SIZE - (a->vaddr & ~PAGE_MASK);
    if (offset >= first)
        return a->page[1] + (offset - first);
    if (*bytes > first - offset)
        *bytes = first - offset;
    return a->page[0] + offset;
}

/* Pieces of whole words: volatile, so that nothing of the area is read twice. */
static void copy_words(volatile uint64_t *to, const volatile uint64_t *from, unsigned bytes)
{
    for (unsigned k = 0; k < bytes / 8; k++)
        to[k] = from[k];
}

static void put(const struct area *a, unsigned offset, const void *from, unsigned bytes)
{
    for (unsigned done = 0, n; done < bytes; done += n) {
        n = bytes - done;
        uint8_t *to = at(a, offset + done, &n);
        copy_words((uint64_t *)to, (const uint64_t *)((const uint8_t *)from + done), n);
    }
}

static void get(const struct area *a, unsigned offset, void *to, unsigned bytes)
{
    for (unsigned done = 0, n; done < bytes; done += n) {
        n = bytes - done;
        const uint8_t *from = at(a, offset + done, &n);
        copy_words((uint64_t *)((uint8_t *)to + done), (const uint64_t *)from, n);
    }
}

/* The area that an instruction names, checked against its segment and for alignment. False: e->exit is the fault. */
static bool find_area(struct engine_vcpu *e, struct area *a, uint64_t vaddr, uint64_t what, bool write)
{
    enum sreg sreg = ((what & SLOW_SEGMENTS) >> 20) - 1;
    *a = (struct area){0};
    if ((what & SLOW_SEGMENTS) && !locate(&e->cpu, sreg, vaddr, xsave_bytes(e->cpu.xcr0), write, &vaddr))
        return leave(e, mmu_fault_exit(e));
    a->vaddr = vaddr;
    return !(vaddr & 63) || leave(e, DBT_GP);
}

/* Of the vector registers 32-bit code has eight. */
static unsigned vector_bytes(const struct engine_vcpu *e) { return e->cpu.code ? sizeof(e->xmm) / 2 : sizeof(e->xmm); }

/* ---- saving ----------------------------------------------------------------------------------------------------- */

struct legacy { uint8_t bytes[512] __attribute__((aligned(16))); };

/* x87 and MXCSR; what it says of the last instruction is an address of the host's. */
static void read_x87(struct legacy *l, bool wide)
{
    if (wide)
        __asm__ volatile("fxsave64 %0" : "=m"(*l));
    else
        __asm__ volatile("fxsave %0" : "=m"(*l));
    *(uint64_t *)(l->bytes + FXSAVE_FIP) = *(uint64_t *)(l->bytes + FXSAVE_FDP) = 0;
}

static uint64_t x87_in_use(const struct engine_vcpu *e)
{
    uint32_t low, high;
    if (!cpu_tracks_use(engine_hv(e)->policy.features))
        return XCR0_X87;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return low & XCR0_X87;
}

static uint64_t xstate_in_use(const struct engine_vcpu *e)
{
    return (x87_in_use(e) | XCR0_SSE | (e->ymm_in_use ? XCR0_AVX : 0)) & e->cpu.xcr0;
}

uint64_t dbt_xstate_in_use(struct vcpu *v) { return xstate_in_use(v->engine); }

static uint64_t requested(const struct engine_vcpu *e)
{
    return e->cpu.xcr0 & ((uint32_t)e->cpu.regs[RAX] | e->cpu.regs[RDX] << 32);
}

static void save_components(struct engine_vcpu *e, const struct area *a, uint64_t saved, bool mxcsr, bool wide)
{
    static const uint64_t zero[32] = {0};
    struct legacy l;
    read_x87(&l, wide);
    if (saved & XCR0_X87) {
        put(a, 0, l.bytes, LEGACY_X87_END);
        put(a, LEGACY_ST, l.bytes + LEGACY_ST, LEGACY_XMM - LEGACY_ST);
    }
    if (mxcsr)
        put(a, FXSAVE_MXCSR, l.bytes + FXSAVE_MXCSR, 8);
    if (saved & XCR0_SSE)
        put(a, LEGACY_XMM, e->xmm, vector_bytes(e));
    if (saved & XCR0_AVX)
        put(a, AREA_YMM, e->ymm_in_use ? (const void *)e->ymm_high : zero, vector_bytes(e));
}

uint64_t help_xsave(struct engine_vcpu *e, uint64_t vaddr, uint64_t what)
{
    unsigned form = what & XSAVE_FORM;
    struct area a;
    uint64_t rfbm = requested(e), in_use = xstate_in_use(e), header[2];
    uint64_t saved = form == XSAVE_PLAIN ? rfbm : rfbm & in_use;
    if (!find_area(e, &a, vaddr, what, true))
        return 0;
    if (!reach(e, &a, saved & XCR0_AVX ? 832 : 576, true))
        return leave(e, mmu_fault_exit(e));
    save_components(e, &a, saved, form == XSAVE_COMPACT ? saved & XCR0_SSE : rfbm & (XCR0_SSE | XCR0_AVX), what & XSAVE_WIDE);
    get(&a, AREA_HEADER, header, 8);
    header[0] = form == XSAVE_COMPACT ? rfbm & in_use : (header[0] & ~rfbm) | (rfbm & in_use);
    header[1] = COMPACT | rfbm;
    put(&a, AREA_HEADER, header, form == XSAVE_COMPACT ? 16 : 8);
    return 1;
}

/* ---- restoring -------------------------------------------------------------------------------------------------- */

/* Would the CPU take an area with this header? */
static bool header_is_valid(const struct engine_vcpu *e, const uint64_t header[8])
{
    uint64_t present = header[0], layout = header[1], rest = 0, xcr0 = e->cpu.xcr0;
    bool compact = layout & COMPACT;
    for (unsigned k = compact ? 2 : 1; k < (compact ? 8 : 3); k++)
        rest |= header[k];
    if (rest || (compact && !(vcpu_features(e->vcpu) & CPU_BIT(XSAVEC))))
        return false;
    return compact ? !(layout & ~COMPACT & ~xcr0) && !(present & ~layout) : !(present & ~xcr0);
}

static void write_x87(const struct legacy *l, bool wide)
{
    if (wide)
        __asm__ volatile("fxrstor64 %0" : : "m"(*l));
    else
        __asm__ volatile("fxrstor %0" : : "m"(*l));
}

/* Puts x87 and MXCSR of the image into l, which holds the present ones. False: reserved bits of MXCSR. */
static bool load_x87(struct legacy *l, const struct area *a, uint64_t rfbm, uint64_t present, bool compact)
{
    uint64_t mxcsr;
    if (rfbm & XCR0_X87) {
        memset(l->bytes, 0, LEGACY_X87_END);
        memset(l->bytes + LEGACY_ST, 0, LEGACY_XMM - LEGACY_ST);
        *(uint16_t *)l->bytes = DEFAULT_FCW;
    }
    if (rfbm & present & XCR0_X87) {
        get(a, 0, l->bytes, LEGACY_X87_END);
        get(a, LEGACY_ST, l->bytes + LEGACY_ST, LEGACY_XMM - LEGACY_ST);
    }
    bool loads = compact ? rfbm & present & XCR0_SSE : rfbm & (XCR0_SSE | XCR0_AVX);
    if (!loads && !(rfbm & XCR0_SSE))
        return true;
    mxcsr = DEFAULT_MXCSR;
    if (loads)
        get(a, FXSAVE_MXCSR, &mxcsr, 8);
    if ((uint32_t)mxcsr & ~MXCSR_VALID)
        return false;
    *(uint32_t *)(l->bytes + FXSAVE_MXCSR) = mxcsr;
    return true;
}

/* Into the vCPU, from where the way out loads them. */
static void load_vectors(struct engine_vcpu *e, const struct area *a, uint64_t rfbm, uint64_t loaded)
{
    unsigned n = vector_bytes(e);
    if (rfbm & XCR0_SSE)
        memset(e->xmm, 0, n);
    if (loaded & XCR0_SSE)
        get(a, LEGACY_XMM, e->xmm, n);
    if (!(rfbm & XCR0_AVX))
        return;
    memset(e->ymm_high, 0, e->ymm_in_use ? n : sizeof(e->ymm_high));
    if (loaded & XCR0_AVX)
        get(a, AREA_YMM, e->ymm_high, n);
    if (n == sizeof(e->ymm_high) || !e->ymm_in_use)
        e->ymm_in_use = loaded & XCR0_AVX;
}

uint64_t help_xrstor(struct engine_vcpu *e, uint64_t vaddr, uint64_t what)
{
    struct area a;
    uint64_t rfbm = requested(e), header[8];
    struct legacy l;
    if (!find_area(e, &a, vaddr, what, false))
        return 0;
    if (!reach(e, &a, 576, false))
        return leave(e, mmu_fault_exit(e));
    get(&a, AREA_HEADER, header, sizeof(header));
    if (!header_is_valid(e, header))
        return leave(e, DBT_GP);
    uint64_t loaded = rfbm & header[0];
    if ((loaded & XCR0_AVX) && !reach(e, &a, 832, false))
        return leave(e, mmu_fault_exit(e));
    read_x87(&l, true);
    if (!load_x87(&l, &a, rfbm, header[0], header[1] & COMPACT))
        return leave(e, DBT_GP);
    write_x87(&l, what & XSAVE_WIDE);
    load_vectors(e, &a, rfbm, loaded);
    return 1;
}

/* ---- off the CPU ------------------------------------------------------------------------------------------------ */

void dbt_get_xstate(struct vcpu *v, struct xstate *out)
{
    const struct engine_vcpu *e = v->engine;
    memset(out, 0, sizeof(*out));
    memcpy(out->legacy, e->fpu, sizeof(out->legacy));
    memset(out->legacy + FXSAVE_FIP, 0, FXSAVE_MXCSR - FXSAVE_FIP); /* the host's addresses */
    memcpy(out->legacy + FXSAVE_MXCSR, &e->mxcsr, sizeof(e->mxcsr));
    memcpy(out->legacy + LEGACY_XMM, e->xmm, sizeof(e->xmm));
    out->present = XCR0_X87 | XCR0_SSE | (e->ymm_in_use ? XCR0_AVX : 0);
    if (e->ymm_in_use)
        memcpy(out->ymm_high, e->ymm_high, sizeof(e->ymm_high));
}

void dbt_set_xstate(struct vcpu *v, const struct xstate *in)
{
    struct engine_vcpu *e = v->engine;
    memset(e->fpu, 0, sizeof(e->fpu));
    *(uint16_t *)e->fpu = DEFAULT_FCW;
    if (in->present & XCR0_X87)
        memcpy(e->fpu, in->legacy, LEGACY_XMM);
    *(uint32_t *)(e->fpu + FXSAVE_MXCSR) = DEFAULT_MXCSR;
    memcpy(&e->mxcsr, in->legacy + FXSAVE_MXCSR, sizeof(e->mxcsr));
    e->mxcsr = in->present & (XCR0_SSE | XCR0_AVX) ? e->mxcsr & MXCSR_VALID : DEFAULT_MXCSR;
    memset(e->xmm, 0, sizeof(e->xmm));
    if (in->present & XCR0_SSE)
        memcpy(e->xmm, in->legacy + LEGACY_XMM, sizeof(e->xmm));
    e->ymm_in_use = in->present & XCR0_AVX;
    memcpy(e->ymm_high, in->ymm_high, sizeof(e->ymm_high));
}
