/*
 * The engine's table: domains and vCPUs from creation to their end, on and off a thread, guest memory and FPU state for the rest
 * of the hypervisor. The run loop is run.c, signals are host_faults.c, flushes and frames requests.c.
 */
#include <cpuid.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/dbt/dbt.h"

#define ARCH_SET_GS 0x1001
#define HWCAP2_FSGSBASE 2
#define CPUID_LAHF 1u               /* leaf 0x80000001 ecx */
#define CPUID_INVARIANT_TSC (1u << 8) /* leaf 0x80000007 edx */

/* ---- life ------------------------------------------------------------------------------------------------------- */

/* What this CPU and kernel must have, and what is only slower or less exact without. */
static bool host_suffices(struct hv *hv)
{
    uint32_t a, b, c = 0, d = 0, power = 0;
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & CPUID_LAHF)) {
        hv_printk(hv, "this CPU has no lahf in 64-bit code, which translated code is made of");
        return false;
    }
    if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE))
        hv_printk(hv, "no FSGSBASE here: each switch between vCPUs costs a system call more");
    if (!__get_cpuid(0x80000007, &a, &b, &c, &power) || !(power & CPUID_INVARIANT_TSC))
        hv_printk(hv, "this CPU's TSC is not invariant: clocks of guests will be wrong where its rate changes");
    return true;
}

static int dbt_machine_init(struct hv *hv)
{
    if (!host_suffices(hv))
        return -XEN_EOPNOTSUPP;
    perf_map_open(hv);
    host_faults_install();
    return blank_create(hv);
}

static void dbt_machine_destroy(struct hv *hv)
{
    blank_destroy(hv);
    perf_map_close(hv);
}

static int dbt_pcpu_start(struct hv *hv)
{
    (void)hv;
    return host_faults_start();
}

static void dbt_pcpu_stop(struct hv *hv)
{
    (void)hv;
    host_faults_stop();
}

static int dbt_domain_create(struct domain *d)
{
    struct engine_domain *ed = calloc(1, sizeof(*ed));
    if (!ed)
        return -XEN_ENOMEM;
    ed->domain = d;
    int rc = cache_create(ed);
    if (rc) {
        free(ed);
        return rc;
    }
    d->engine = ed;
    return 0;
}

static void dbt_domain_destroy(struct domain *d)
{
    if (!d->engine)
        return;
    cache_destroy(d->engine);
    free(d->engine);
    d->engine = NULL;
}

static uint64_t shadow_stack_create(void)
{
    size_t bytes = SHADOW_BYTES + 2 * PAGE_SIZE; /* guard, stack, and the page with the sentinel */
    uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return 0;
    mprotect(p, PAGE_SIZE, PROT_NONE);
    return (uint64_t)p + PAGE_SIZE + SHADOW_BYTES;
}

static void shadow_stack_destroy(uint64_t top)
{
    if (top)
        munmap((void *)(top - SHADOW_BYTES - PAGE_SIZE), SHADOW_BYTES + 2 * PAGE_SIZE);
}

static void dbt_vcpu_destroy(struct vcpu *v)
{
    struct engine_vcpu *e = v->engine;
    if (!e)
        return;
    v->engine = NULL;
    v->cpu = NULL;
    shadow_stack_destroy(e->shadow_top[0]);
    shadow_stack_destroy(e->shadow_top[1]);
    munmap(e, sizeof(*e));
}

static int dbt_vcpu_create(struct vcpu *v)
{
    struct engine_vcpu *e = mmap(NULL, sizeof(*e), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (e == MAP_FAILED)
        return -XEN_ENOMEM;
    e->vcpu = v;
    e->self = (uint64_t)e;
    v->engine = e;
    v->cpu = &e->cpu;
    e->shadow_top[0] = shadow_stack_create();
    e->shadow_top[1] = shadow_stack_create();
    if (!e->shadow_top[0] || !e->shadow_top[1] || !blank_map(e)) {
        dbt_vcpu_destroy(v);
        return -XEN_ENOMEM;
    }
    atomic_store(&e->poll, &e->poll_target);
    cpu_set_rflags(&e->cpu, X86_IF);
    e->cpu.xcr0 = XCR0_X87 | XCR0_SSE;
    *(uint16_t *)e->fpu = 0x37f;          /* x87 control word */
    *(uint32_t *)(e->fpu + FXSAVE_MXCSR) = e->mxcsr = e->host_mxcsr = DEFAULT_MXCSR;
    helpers_init(e);
    shadow_stack_reset(e);
    return 0;
}

static void set_gs_base(uint64_t base)
{
    if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE)
        __asm__ volatile("wrgsbase %0" : : "r"(base));
    else
        syscall(SYS_arch_prctl, ARCH_SET_GS, base);
}

static void dbt_switch_in(struct vcpu *v)
{
    set_gs_base(v->engine->self);
    __asm__ volatile("fxrstor64 %0" : : "m"(v->engine->fpu));
    host_faults_expect(v->engine);
}

static void dbt_switch_out(struct vcpu *v)
{
    host_faults_expect(NULL);
    __asm__ volatile("fxsave64 %0" : "+m"(v->engine->fpu));
    __asm__ volatile("fninit");
}

static void dbt_kick(struct vcpu *v) { atomic_store(&v->engine->poll, v->domain->engine->guard); }

void engine_kick(struct vcpu *v) { engine()->kick(v); }

static bool dbt_retry_page_table_write(struct vcpu *v)
{
    struct engine_vcpu *e = v->engine;
    struct page_info *pg;
    if (e->page_table_refused) {
        e->page_table_refused = false;
        return false;
    }
    uint64_t vaddr = e->cpu.fault_vaddr, error = e->cpu.fault_error;
    bool is_table = mmu_walk(e, vaddr, ACCESS_READ, &pg) && pg && pg->type_count && pg->type == PGT_l1_page_table;
    e->cpu.fault_vaddr = vaddr;
    e->cpu.fault_error = error;
    e->single_step = e->page_table_write = is_table;
    return is_table;
}

/* ---- guest memory, FPU state, figures --------------------------------------------------------------------------- */

static bool dbt_read(struct vcpu *v, uint64_t vaddr, void *to, size_t bytes) { return mmu_read(v->engine, vaddr, to, bytes); }

static bool dbt_write(struct vcpu *v, uint64_t vaddr, const void *from, size_t bytes)
{
    struct engine_vcpu *e = v->engine;
    const uint8_t *in = from;
    while (bytes) {
        size_t n = PAGE_SIZE - (vaddr & ~PAGE_MASK);
        if (n > bytes)
            n = bytes;
        uint8_t *p = mmu_access(e, vaddr, true);
        if (!p) {
            if (e->cpu.fault_error != FAULT_CODE_FRAME)
                return false;
            drop_code_at(e, vaddr);
            continue;
        }
        memcpy(p, in, n);
        in += n;
        vaddr += n;
        bytes -= n;
    }
    return true;
}

static unsigned dbt_fetch(struct vcpu *v, uint64_t vaddr, uint8_t *to)
{
    struct engine_vcpu *e = v->engine;
    struct page_info *pg;
    unsigned here = PAGE_SIZE - (vaddr & ~PAGE_MASK), n = here < INSN_MAX_BYTES ? here : INSN_MAX_BYTES;
    const uint8_t *p = mmu_walk(e, vaddr, ACCESS_FETCH, &pg);
    if (!p)
        return 0;
    memcpy(to, p, n);
    if (n == INSN_MAX_BYTES || !(p = mmu_walk(e, vaddr + n, ACCESS_FETCH, &pg)))
        return n;
    memcpy(to + n, p, INSN_MAX_BYTES - n);
    return INSN_MAX_BYTES;
}

static uint64_t books_bytes(const struct engine_domain *ed)
{
    return sizeof(*ed) + ed->nr_blocks * sizeof(struct block) + ed->nr_links * sizeof(struct link) +
           ed->nr_page_pool * sizeof(struct page_blocks) + ed->nr_faults * (sizeof(uint32_t) + sizeof(uint64_t)) +
           (sizeof(struct block *) << BLOCK_HASH_BITS);
}

static void dbt_statistics(struct domain *d, struct engine_statistics *out)
{
    memset(out, 0, sizeof(*out));
    const struct engine_domain *ed = d->engine;
    if (!ed)
        return;
    *out = ed->stats;
    out->code_bytes = (ed->hot - ed->hot_start) + (ed->cold - ed->cold_start);
    out->memory_bytes = out->code_bytes + books_bytes(ed);
    for (unsigned i = 0; i < d->max_vcpus; i++) {
        if (!d->vcpu[i] || !d->vcpu[i]->engine)
            continue;
        const struct engine_statistics *s = &d->vcpu[i]->engine->stats;
        out->memory_bytes += sizeof(struct engine_vcpu); /* at most: see blank.c */
        out->tlb_fills += s->tlb_fills;
        out->tlb_flushes += s->tlb_flushes;
        out->single_steps += s->single_steps;
        for (unsigned k = 0; k < ARRAY_SIZE(out->exits); k++)
            out->exits[k] += s->exits[k];
    }
}
_Static_assert(DBT_EXITS <= ENGINE_EXITS, "each kind of exit has a counter");

static const char *dbt_exit_name(unsigned index)
{
    static const char *const name[DBT_EXITS] = {
        "link", "jump cache miss", "special", "page fault", "poll", "system call", "invalid opcode", "privileged",
        "rare", "divide", "general protection", "stack", "x87", "simd", "alignment", "no device", "group",
    };
    return index < DBT_EXITS ? name[index] : "?";
}

const struct engine_ops dbt_engine = {
    .name = "dbt",
    .machine_init = dbt_machine_init,
    .machine_destroy = dbt_machine_destroy,
    .pcpu_start = dbt_pcpu_start,
    .pcpu_stop = dbt_pcpu_stop,
    .domain_create = dbt_domain_create,
    .domain_destroy = dbt_domain_destroy,
    .vcpu_create = dbt_vcpu_create,
    .vcpu_destroy = dbt_vcpu_destroy,
    .switch_in = dbt_switch_in,
    .switch_out = dbt_switch_out,
    .run = dbt_run,
    .kick = dbt_kick,
    .retry_page_table_write = dbt_retry_page_table_write,
    .set_mode = dbt_set_mode,
    .set_fpu_disabled = dbt_set_fpu_disabled,
    .set_debug = dbt_set_debug,
    .set_cr3 = dbt_set_cr3,
    .flush_tlb = dbt_flush_tlb,
    .flush_page = dbt_flush_page,
    .revoke_frame = dbt_revoke_frame,
    .unmap_code = dbt_unmap_code,
    .unmap_tables = dbt_unmap_tables,
    .frame_written = dbt_frame_written,
    .read = dbt_read,
    .write = dbt_write,
    .fetch = dbt_fetch,
    .get_xstate = dbt_get_xstate,
    .set_xstate = dbt_set_xstate,
    .xstate_in_use = dbt_xstate_in_use,
    .statistics = dbt_statistics,
    .exit_name = dbt_exit_name,
};
