/*
 * CPU policies: what CPUID tells a domain, leaf by leaf, and so what its vCPUs may execute.
 *
 * The machine has one, the most it can offer; a domain begins with that and may be given less before it first runs
 * (XEN_DOMCTL_set_cpu_policy). What depends on the vCPU or changes while it runs is filled in by pv/cpuid.c.
 */
#ifndef UMXEN_CPU_POLICY_H
#define UMXEN_CPU_POLICY_H
#include "base.h"
#include "cpu/features.h"

#define MAX_POLICY_LEAVES 64u
#define NR_POLICY_MSRS 2u
#define NR_FEATURESET_WORDS 12u
/* RDCL_NO SKIP_VMENTRY MDS_NO TAA_NO: no speculation across our guests' modes to mitigate. */
#define CPU_ARCH_CAPABILITIES 0x131ull

struct cpu_policy {
    uint32_t nr_leaves;
    struct xen_cpuid_leaf leaf[MAX_POLICY_LEAVES]; /* in order; subleaf XEN_CPUID_NO_SUBLEAF where there are none */
    uint64_t features;                             /* what the leaves say, for the decoder */
};

/* What this host can offer. */
void cpu_policy_max(struct cpu_policy *p, uint64_t khz);
/* The same leaves with what the host's own CPUID says. */
void cpu_policy_host(struct cpu_policy *p, const struct cpu_policy *max);
/* One of them, or NULL. */
const struct xen_cpuid_leaf *cpu_policy_find(const struct cpu_policy *p, uint32_t leaf, uint32_t subleaf);
/* Takes over a leaf, as far as `max` has what it asks for; what only the hypervisor can know stays. -XEN_ERANGE: there is no
 * such leaf. cpu_policy_settle afterwards: features whose prerequisite is missing go, too. */
int cpu_policy_set_leaf(struct cpu_policy *p, const struct cpu_policy *max, const struct xen_cpuid_leaf *leaf);
void cpu_policy_settle(struct cpu_policy *p);
/* The MSRs that belong to a policy. */
void cpu_policy_msrs(struct xen_msr_entry msr[NR_POLICY_MSRS]);
/* The words of XEN_SYSCTL_get_cpu_featureset. */
void cpu_policy_featureset(const struct cpu_policy *p, uint32_t word[NR_FEATURESET_WORDS]);

/* Bytes of an XSAVE area with the components in xcr0; those offered all lie where the standard format has them. */
static inline uint32_t xsave_bytes(uint64_t xcr0) { return xcr0 & XCR0_AVX ? 832 : 576; }
static inline uint64_t policy_xcr0(const struct cpu_policy *p)
{
    uint64_t ymm = p->features & CPU_BIT(AVX) ? XCR0_AVX : 0;
    return p->features & CPU_BIT(XSAVE) ? XCR0_X87 | XCR0_SSE | ymm : 0;
}
#endif
