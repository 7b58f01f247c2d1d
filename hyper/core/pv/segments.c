/*
 * Segment registers of a PV guest: what selectors name, and the rules for loading them.
 *
 * Everything of a guest runs at CPL 3, as with Xen, and descriptors count as DPL 3. Code segments may be 64-bit ones, or 32-bit
 * ones of 4 GiB at 0; data segments may have any base, limit and direction. 16-bit code and 16-bit stacks are refused.
 */
#include "cpu/segment.h"
#include "machine.h"

enum { NOT_PRESENT = 11, STACK = 12, GP = 13 };

/* The LDT lies in the guest kernel's address space, whatever runs. */
static bool read_ldt(struct vcpu *v, unsigned index, uint64_t *descriptor)
{
    bool user = v->cpu->user_mode;
    engine()->set_mode(v, false);
    bool ok = index < v->pv.ldt_entries && engine()->read(v, v->pv.ldt_base + 8ull * index, descriptor, 8);
    engine()->set_mode(v, user);
    return ok;
}

bool pv_read_descriptor(struct vcpu *v, uint16_t selector, uint64_t *descriptor)
{
    unsigned index = selector >> 3;
    if (selector & 4)
        return read_ldt(v, index, descriptor);
    switch (selector & ~7) { /* the flat segments at the end of the GDT are ours */
    case FLAT_RING3_CS32 & ~7: *descriptor = DESC_FLAT_CODE32; return true;
    case FLAT_RING3_DS32 & ~7: *descriptor = DESC_FLAT_DATA32; return true;
    case FLAT_RING3_CS64 & ~7: *descriptor = DESC_FLAT_CODE64; return true;
    }
    if (!(selector & ~3) || index >= v->pv.gdt_entries || mfn_eq(v->pv.gdt_frame[index >> 9], INVALID_MFN))
        return false;
    const uint64_t *table = mfn_to_virt(v->domain->hv, v->pv.gdt_frame[index >> 9]);
    *descriptor = __atomic_load_n(&table[index & 511], __ATOMIC_RELAXED);
    return true;
}

static int refuse(unsigned vector, uint16_t selector, uint32_t *error)
{
    *error = selector & ~3u;
    return vector;
}

int pv_find_code(struct vcpu *v, uint16_t selector, uint64_t *descriptor, uint32_t *error)
{
    uint64_t d;
    if (!(selector & ~3) || !pv_read_descriptor(v, selector, &d))
        return refuse(GP, selector, error);
    if (!descriptor_is_runnable(d | DESC_PRESENT))
        return refuse(GP, selector, error);
    if (!(d & DESC_PRESENT))
        return refuse(NOT_PRESENT, selector, error);
    *descriptor = d;
    return 0;
}

/* The stack segment of 32-bit code: 32-bit data that may be written. 64-bit code may do without one. */
static int find_stack(struct vcpu *v, uint16_t selector, bool compat, uint64_t *descriptor, uint32_t *error)
{
    uint64_t d;
    *descriptor = 0;
    if (!(selector & ~3))
        return compat || (selector & 3) != 3 ? refuse(GP, 0, error) : 0;
    if ((selector & 3) != 3 || !pv_read_descriptor(v, selector, &d))
        return refuse(GP, selector, error);
    bool writable = (d & (DESC_NOT_SYSTEM | DESC_CODE | DESC_READ_WRITE)) == (DESC_NOT_SYSTEM | DESC_READ_WRITE);
    if (!writable || (compat && !(d & DESC_BIG)))
        return refuse(GP, selector, error);
    if (!(d & DESC_PRESENT))
        return refuse(STACK, selector, error);
    *descriptor = d;
    return 0;
}

static int find_data(struct vcpu *v, uint16_t selector, uint64_t *descriptor, uint32_t *error)
{
    uint64_t d;
    *descriptor = 0;
    if (!(selector & ~3))
        return 0;
    if (!pv_read_descriptor(v, selector, &d) || !(d & DESC_NOT_SYSTEM) || (d & DESC_CODE && !(d & DESC_READ_WRITE)))
        return refuse(GP, selector, error);
    if (!(d & DESC_PRESENT))
        return refuse(NOT_PRESENT, selector, error);
    *descriptor = d;
    return 0;
}

int pv_load_segment(struct vcpu *v, unsigned sreg, uint16_t selector, uint32_t *error)
{
    struct cpu_state *c = v->cpu;
    uint64_t d;
    int vector = sreg == SREG_SS ? find_stack(v, selector, c->code, &d, error) : find_data(v, selector, &d, error);
    if (vector)
        return vector;
    cpu_set_segment(c, sreg, selector, d);
    if (sreg == SREG_FS)
        c->fs_base = descriptor_base(d);
    else if (sreg == SREG_GS)
        c->gs_base = descriptor_base(d);
    return 0;
}

int pv_load_code_and_stack(struct vcpu *v, uint16_t cs, uint16_t ss, uint32_t *error)
{
    uint64_t code, stack;
    int vector = pv_find_code(v, cs, &code, error);
    if (!vector)
        vector = find_stack(v, ss, !(code & DESC_LONG), &stack, error);
    if (vector)
        return vector;
    cpu_set_segment(v->cpu, SREG_SS, ss, stack);
    cpu_set_segment(v->cpu, SREG_CS, cs | 3, code);
    return 0;
}

void pv_reload_segments(struct vcpu *v)
{
    struct cpu_state *c = v->cpu;
    uint32_t error;
    for (enum sreg s = 0; s < NR_SREGS; s++)
        if (s == SREG_CS ? pv_find_code(v, c->sreg[s], &c->descriptor[s], &error)
                         : find_data(v, c->sreg[s], &c->descriptor[s], &error))
            c->descriptor[s] = s == SREG_CS ? DESC_FLAT_CODE64 : 0;
    cpu_update_code(c);
}

int64_t pv_set_gs_user_selector(struct vcpu *v, uint16_t selector)
{
    uint64_t d;
    uint32_t error;
    if (find_data(v, selector, &d, &error)) /* as Xen: a bad selector becomes null */
        d = selector = 0;
    v->pv.gs_base_user = descriptor_base(d);
    cpu_set_segment(v->cpu, SREG_GS, selector, d);
    return 0;
}
