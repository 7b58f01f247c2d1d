/*
 * What CPUID tells a vCPU: its domain's policy, with what depends on the vCPU or on the moment, and Xen's own leaves.
 */
#include "cpu/engine.h"
#include "cpuid.h"
#include "machine.h"
#include "version.h"

enum { XSAVE = 1u << 26, OSXSAVE = 1u << 27 }; /* leaf 1 ecx */

static void set(uint32_t out[4], uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

static void xen_leaf(struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    switch (leaf - XEN_CPUID_FIRST_LEAF) {
    case 0:
        set(out, XEN_CPUID_FIRST_LEAF + XEN_CPUID_MAX_NUM_LEAVES, XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX,
            XEN_CPUID_SIGNATURE_EDX);
        break;
    case 1: set(out, 4 << 16 | 17, 0, 0, 0); break;
    case 2: set(out, 1, 0x40000000, XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0); break;
    case 3:
        if (subleaf == 0)
            set(out, 0, 0, tsc_khz(v->domain->hv), 0);
        break;
    case 5: set(out, 0, 40, 0, 0); break;
    }
}

/* A PV kernel learns from OSXSAVE whether Xen runs with it, before it sets the bit in its own CR4; user mode sees the latter. */
static bool shows_osxsave(const struct vcpu *v) { return !v->cpu->user_mode || (v->pv.cr4 & CR4_OSXSAVE); }

void pv_cpuid(struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    const struct cpu_policy *p = &v->domain->policy;
    set(out, 0, 0, 0, 0);
    if ((leaf & 0xffffff00) == XEN_CPUID_FIRST_LEAF) {
        xen_leaf(v, leaf, subleaf, out);
        return;
    }
    const struct xen_cpuid_leaf *l = cpu_policy_find(p, leaf, subleaf), *first = cpu_policy_find(p, leaf & 0x80000000, 0);
    if (!l || leaf > first->a)
        return;
    set(out, l->a, l->b, l->c, l->d);
    if (leaf == 1) {
        out[1] |= v->id << 24;
        out[2] |= (out[2] & XSAVE) && shows_osxsave(v) ? OSXSAVE : 0;
    } else if (leaf == 0xd && subleaf <= 1 && out[1]) { /* for what is enabled now; the compact form adds no gaps */
        out[1] = xsave_bytes(v->cpu->xcr0);
    }
}
