/*
 * The leaves of a CPU policy.
 *
 * Feature words come from the features that the host has and the engine implements, over a base that every x86-64 guest
 * gets; a domain's word is what was asked for, as far as the maximum has it. Family, model, brand and the like may be anything.
 * Caches are the host's, each for one vCPU alone: a C library takes the limits of its copies from them, and without any it
 * would bypass the caches from 16 KiB on.
 */
#include "cpu_policy.h"

#include <cpuid.h>

enum { /* leaf 1 edx */
    FPU = 1u << 0, DE = 1u << 2, TSC = 1u << 4, MSR = 1u << 5, PAE = 1u << 6, CX8 = 1u << 8, SEP = 1u << 11, CMOV = 1u << 15,
    PAT = 1u << 16, CLFSH = 1u << 19, MMX = 1u << 23, FXSR = 1u << 24,
    SSE = 1u << 25, SSE2 = 1u << 26,
};
enum { HYPERVISOR = 1u << 31 };                             /* leaf 1 ecx */
enum { ERMS = 1u << 9, ARCH_CAPABILITIES = 1u << 29 };      /* leaf 7 ebx, edx */
enum { SYSCALL = 1u << 11, NX = 1u << 20, LM = 1u << 29 };  /* leaf 0x80000001 edx */
enum { INVARIANT_TSC = 1u << 8 };                           /* leaf 0x80000007 edx */
enum { EAX, EBX, ECX, EDX };

#define NONE XEN_CPUID_NO_SUBLEAF
#define MAX_BASIC_LEAF 0x16u
#define MAX_EXTENDED_LEAF 0x80000008u

/* ---- leaves ----------------------------------------------------------------------------------------------------- */

static uint32_t *leaf_word(struct xen_cpuid_leaf *l, unsigned reg)
{
    return reg == EAX ? &l->a : reg == EBX ? &l->b : reg == ECX ? &l->c : &l->d;
}

const struct xen_cpuid_leaf *cpu_policy_find(const struct cpu_policy *p, uint32_t leaf, uint32_t subleaf)
{
    for (uint32_t k = 0; k < p->nr_leaves; k++)
        if (p->leaf[k].leaf == leaf && (p->leaf[k].subleaf == subleaf || p->leaf[k].subleaf == NONE))
            return &p->leaf[k];
    return NULL;
}

static struct xen_cpuid_leaf *find(struct cpu_policy *p, uint32_t leaf, uint32_t subleaf)
{
    return (struct xen_cpuid_leaf *)cpu_policy_find(p, leaf, subleaf);
}

static struct xen_cpuid_leaf *add(struct cpu_policy *p, uint32_t leaf, uint32_t subleaf, uint32_t a, uint32_t b, uint32_t c,
                                  uint32_t d)
{
    ASSERT(p->nr_leaves < MAX_POLICY_LEAVES);
    p->leaf[p->nr_leaves] = (struct xen_cpuid_leaf){leaf, subleaf, a, b, c, d};
    return &p->leaf[p->nr_leaves++];
}

/* ---- the maximum ------------------------------------------------------------------------------------------------ */

#define CACHE_TYPE 0x1fu
#define CACHE_SHARED 0xffffc000u /* by how many threads and cores */

static void add_caches(struct cpu_policy *p)
{
    static const uint32_t usual[3][3] = { /* 32 KiB of data, 32 of instructions, 1 MiB of both */
        {0x121, 0x01c0003f, 63}, {0x122, 0x01c0003f, 63}, {0x143, 0x03c0003f, 1023}};
    static const uint32_t source[2] = {4, 0x8000001d}; /* Intel's leaf, and AMD's of the same form */
    uint32_t a, b, c, d, n = 0;
    for (unsigned s = 0; s < ARRAY_SIZE(source) && !n; s++)
        for (; n < 4 && __get_cpuid_count(source[s], n, &a, &b, &c, &d) && (a & CACHE_TYPE); n++)
            add(p, 4, n, a & ~CACHE_SHARED, b, c, d & 7);
    for (; n < ARRAY_SIZE(usual) && !cpu_policy_find(p, 4, 2); n++)
        add(p, 4, n, usual[n][0], usual[n][1], usual[n][2], 0);
    add(p, 4, n, 0, 0, 0, 0);
}

static void add_basic(struct cpu_policy *p, uint64_t khz)
{
    add(p, 0, NONE, MAX_BASIC_LEAF, 0x756e6547, 0x6c65746e, 0x49656e69); /* GenuineIntel */
    add(p, 1, NONE, 0x306c1, 0x800, HYPERVISOR,
        FPU | DE | TSC | MSR | PAE | CX8 | SEP | CMOV | PAT | CLFSH | MMX | FXSR | SSE | SSE2);
    add(p, 2, NONE, 0xff01, 0, 0, 0); /* see leaf 4 */
    add(p, 3, NONE, 0, 0, 0, 0);
    add_caches(p);
    add(p, 5, NONE, 0, 0, 0, 0);
    add(p, 6, NONE, 0, 0, 0, 0);
    add(p, 7, 0, 1, ERMS, 0, ARCH_CAPABILITIES);
    add(p, 7, 1, 0, 0, 0, 0);
    for (uint32_t leaf = 8; leaf < 0xd; leaf++)
        add(p, leaf, leaf == 0xb ? 0 : NONE, 0, 0, 0, 0);
    for (uint32_t component = 0; component <= 2; component++)
        add(p, 0xd, component, 0, 0, 0, 0); /* see cpu_policy_settle */
    for (uint32_t leaf = 0xe; leaf < MAX_BASIC_LEAF; leaf++)
        add(p, leaf, NONE, 0, 0, 0, 0);
    /* Base, maximum and bus MHz: spares the guest a search for a timer chip. */
    add(p, MAX_BASIC_LEAF, NONE, khz / 1000, khz / 1000, 100, 0);
}

static void add_extended(struct cpu_policy *p)
{
    static const uint32_t brand[3][4] = { /* "umxen virtual CPU (dbt)", NUL-padded */
        {0x65786d75, 0x6976206e, 0x61757472, 0x5043206c}, {0x64282055, 0x00297462, 0, 0}, {0, 0, 0, 0}};
    add(p, 0x80000000, NONE, MAX_EXTENDED_LEAF, 0, 0, 0);
    add(p, 0x80000001, NONE, 0, 0, 0, SYSCALL | NX | LM);
    for (unsigned k = 0; k < 3; k++)
        add(p, 0x80000002 + k, NONE, brand[k][0], brand[k][1], brand[k][2], brand[k][3]);
    add(p, 0x80000005, NONE, 0, 0, 0, 0);
    add(p, 0x80000006, NONE, 0, 0, 0, 0);
    add(p, 0x80000007, NONE, 0, 0, 0, INVARIANT_TSC);
    add(p, MAX_EXTENDED_LEAF, NONE, 0x3028, 0, 0, 0); /* 40 physical, 48 virtual bits */
}

static void write_features(struct cpu_policy *p)
{
    for (unsigned f = 1; f < NR_CPU_FEATURES; f++) {
        const struct cpu_feature_bit *b = &cpu_feature_bit[f];
        uint32_t *word = leaf_word(find(p, b->leaf, b->subleaf), b->reg), bit = 1u << b->bit;
        *word = p->features >> f & 1 ? *word | bit : *word & ~bit;
    }
}

static uint64_t read_features(const struct cpu_policy *p)
{
    uint64_t features = 0;
    for (unsigned f = 1; f < NR_CPU_FEATURES; f++) {
        const struct cpu_feature_bit *b = &cpu_feature_bit[f];
        struct xen_cpuid_leaf l = *cpu_policy_find(p, b->leaf, b->subleaf);
        features |= (uint64_t)(*leaf_word(&l, b->reg) >> b->bit & 1) << f;
    }
    return features;
}

void cpu_policy_max(struct cpu_policy *p, uint64_t khz)
{
    memset(p, 0, sizeof(*p));
    p->features = cpu_features_closed(cpu_features_of_host() & CPU_IMPLEMENTED);
    add_basic(p, khz);
    add_extended(p);
    write_features(p);
    cpu_policy_settle(p);
}

void cpu_policy_host(struct cpu_policy *p, const struct cpu_policy *max)
{
    *p = *max;
    for (uint32_t k = 0; k < p->nr_leaves; k++) {
        struct xen_cpuid_leaf *l = &p->leaf[k];
        l->a = l->b = l->c = l->d = 0;
        __get_cpuid_count(l->leaf, l->subleaf == NONE ? 0 : l->subleaf, &l->a, &l->b, &l->c, &l->d);
    }
}

/* ---- less for a domain ------------------------------------------------------------------------------------------ */

/* Words of feature bits: leaf, subleaf, register. The first ones in the order of a feature set. */
static const struct feature_word { uint32_t leaf, subleaf; uint8_t reg; } feature_word[] = {
    {1, NONE, EDX}, {1, NONE, ECX}, {0x80000001, NONE, EDX}, {0x80000001, NONE, ECX}, {0xd, 1, EAX}, {7, 0, EBX},
    {7, 0, ECX}, {0x80000007, NONE, EDX}, {0x80000008, NONE, EBX}, {7, 0, EDX}, {7, 1, EAX}, {0x80000021, NONE, EAX},
};

/* Leaves that describe and promise nothing: whatever the tools say. Of leaf 1 the signature. */
static bool is_free(uint32_t leaf)
{
    return leaf == 3 || leaf == 0x16 || (leaf >= 0x80000002 && leaf <= 0x80000006);
}

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

int cpu_policy_set_leaf(struct cpu_policy *p, const struct cpu_policy *max, const struct xen_cpuid_leaf *in)
{
    struct xen_cpuid_leaf *to = find(p, in->leaf, in->subleaf), wanted = *in;
    if (in->leaf >> 16 == 0x4000) /* the hypervisor's own: pv_cpuid makes them */
        return 0;
    if (!to)
        return in->leaf <= MAX_BASIC_LEAF || in->leaf - 0x80000000u <= 0x21 ? 0 : -XEN_ERANGE;
    for (unsigned k = 0; k < ARRAY_SIZE(feature_word); k++) {
        const struct feature_word *w = &feature_word[k];
        if (w->leaf != to->leaf || w->subleaf != to->subleaf)
            continue;
        struct xen_cpuid_leaf most = *cpu_policy_find(max, to->leaf, to->subleaf);
        *leaf_word(to, w->reg) = *leaf_word(&wanted, w->reg) & *leaf_word(&most, w->reg);
    }
    if (is_free(in->leaf))
        *to = (struct xen_cpuid_leaf){to->leaf, to->subleaf, in->a, in->b, in->c, in->d};
    else if (in->leaf == 0)
        *to = (struct xen_cpuid_leaf){0, NONE, smaller(in->a, MAX_BASIC_LEAF), in->b, in->c, in->d};
    else if (in->leaf == 1)
        to->a = in->a;
    else if (in->leaf == 0x80000000)
        to->a = smaller(in->a, MAX_EXTENDED_LEAF);
    return 0;
}

/* The sizes are for the largest XCR0; pv_cpuid gives those for the present one. */
void cpu_policy_settle(struct cpu_policy *p)
{
    p->features = cpu_features_closed(read_features(p));
    write_features(p);
    struct xen_cpuid_leaf *sizes = find(p, 0xd, 0), *compact = find(p, 0xd, 1), *ymm = find(p, 0xd, 2);
    uint64_t xcr0 = policy_xcr0(p);
    sizes->a = xcr0;
    sizes->b = sizes->c = xcr0 ? xsave_bytes(xcr0) : 0;
    compact->b = p->features & CPU_BIT(XSAVEC) ? sizes->b : 0;
    ymm->a = xcr0 & XCR0_AVX ? 256 : 0;
    ymm->b = xcr0 & XCR0_AVX ? 576 : 0;
}

/* ---- other forms ------------------------------------------------------------------------------------------------ */

void cpu_policy_msrs(struct xen_msr_entry msr[NR_POLICY_MSRS])
{
    msr[0] = (struct xen_msr_entry){0xce, 0, 0}; /* PLATFORM_INFO: no CPUID faulting */
    msr[1] = (struct xen_msr_entry){0x10a, 0, CPU_ARCH_CAPABILITIES};
}

void cpu_policy_featureset(const struct cpu_policy *p, uint32_t word[NR_FEATURESET_WORDS])
{
    for (unsigned k = 0; k < NR_FEATURESET_WORDS; k++) {
        const struct xen_cpuid_leaf *found = cpu_policy_find(p, feature_word[k].leaf, feature_word[k].subleaf);
        struct xen_cpuid_leaf l = found ? *found : (struct xen_cpuid_leaf){0};
        word[k] = *leaf_word(&l, feature_word[k].reg);
    }
}
