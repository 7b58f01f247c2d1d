/*
 * What the guest sees of the CPU. Only what the engine implements is offered; the rest is #UD.
 */
#include "cpuid.h"

#include "cpu/engine.h"
#include "machine.h"
#include "version.h"

enum { /* leaf 1 edx */
    FPU = 1u << 0, DE = 1u << 2, TSC = 1u << 4, MSR = 1u << 5, PAE = 1u << 6, CX8 = 1u << 8, CMOV = 1u << 15,
    PAT = 1u << 16, CLFSH = 1u << 19, MMX = 1u << 23, FXSR = 1u << 24,
    SSE = 1u << 25, SSE2 = 1u << 26,
};
enum { SSE3 = 1u << 0, CX16 = 1u << 13, HYPERVISOR = 1u << 31 };    /* leaf 1 ecx */
enum { ERMS = 1u << 9, ARCH_CAPABILITIES = 1u << 29 };              /* leaf 7 ebx, edx */
enum { SYSCALL = 1u << 11, NX = 1u << 20, LM = 1u << 29, LAHF = 1u << 0 }; /* leaf 0x80000001 edx, ecx */

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

void pv_cpuid(struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    static const uint32_t brand[3][4] = { /* "umxen virtual CPU (dbt)", NUL-padded */
        {0x65786d75, 0x6976206e, 0x61757472, 0x5043206c}, {0x64282055, 0x00297462, 0, 0}, {0, 0, 0, 0}};
    set(out, 0, 0, 0, 0);
    if ((leaf & 0xffffff00) == XEN_CPUID_FIRST_LEAF) {
        xen_leaf(v, leaf, subleaf, out);
        return;
    }
    switch (leaf) {
    case 0: set(out, 0x16, 0x756e6547, 0x6c65746e, 0x49656e69); break; /* GenuineIntel */
    case 1:
        set(out, 0x306c1, v->id << 24 | 0x800, SSE3 | CX16 | HYPERVISOR,
            FPU | DE | TSC | MSR | PAE | CX8 | CMOV | PAT | CLFSH | MMX | FXSR | SSE | SSE2);
        break;
    case 7:
        if (subleaf == 0)
            set(out, 0, ERMS, 0, ARCH_CAPABILITIES);
        break;
    case 0x16: /* base, maximum and bus MHz: spares the guest a search for a timer chip */
        set(out, tsc_khz(v->domain->hv) / 1000, tsc_khz(v->domain->hv) / 1000, 100, 0);
        break;
    case 0x80000000: set(out, 0x80000008, 0, 0, 0); break;
    case 0x80000001: set(out, 0, 0, LAHF, SYSCALL | NX | LM); break;
    case 0x80000002 ... 0x80000004: memcpy(out, brand[leaf - 0x80000002], sizeof(brand[0])); break;
    case 0x80000007: set(out, 0, 0, 0, 1 << 8); break; /* invariant TSC */
    case 0x80000008: set(out, 0x3028, 0, 0, 0); break; /* 40 physical, 48 virtual bits */
    }
}
