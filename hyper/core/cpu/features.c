/*
 * The table of features, and what the host has of them.
 */
#include "cpu/features.h"

#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };
#define LEAF(l, s, r, b, n) {0x##l, s, r, b, CPU_##n}

const struct cpu_feature_bit cpu_feature_bit[NR_CPU_FEATURES] = {
    [CPU_SSE3] = LEAF(1, 0, ECX, 0, BASE),
    [CPU_PCLMULQDQ] = LEAF(1, 0, ECX, 1, BASE),
    [CPU_SSSE3] = LEAF(1, 0, ECX, 9, SSE3),
    [CPU_FMA] = LEAF(1, 0, ECX, 12, AVX),
    [CPU_CX16] = LEAF(1, 0, ECX, 13, BASE),
    [CPU_SSE41] = LEAF(1, 0, ECX, 19, SSSE3),
    [CPU_SSE42] = LEAF(1, 0, ECX, 20, SSE41),
    [CPU_MOVBE] = LEAF(1, 0, ECX, 22, BASE),
    [CPU_POPCNT] = LEAF(1, 0, ECX, 23, BASE),
    [CPU_AES] = LEAF(1, 0, ECX, 25, BASE),
    [CPU_XSAVE] = LEAF(1, 0, ECX, 26, BASE),
    [CPU_AVX] = LEAF(1, 0, ECX, 28, XSAVE),
    [CPU_F16C] = LEAF(1, 0, ECX, 29, AVX),
    [CPU_RDRAND] = LEAF(1, 0, ECX, 30, BASE),
    [CPU_BMI1] = LEAF(7, 0, EBX, 3, BASE),
    [CPU_AVX2] = LEAF(7, 0, EBX, 5, AVX),
    [CPU_BMI2] = LEAF(7, 0, EBX, 8, BASE),
    [CPU_RDSEED] = LEAF(7, 0, EBX, 18, BASE),
    [CPU_ADX] = LEAF(7, 0, EBX, 19, BASE),
    [CPU_SHA] = LEAF(7, 0, EBX, 29, BASE),
    [CPU_GFNI] = LEAF(7, 0, ECX, 8, BASE),
    [CPU_VAES] = LEAF(7, 0, ECX, 9, AVX),
    [CPU_VPCLMULQDQ] = LEAF(7, 0, ECX, 10, AVX),
    [CPU_XSAVEOPT] = LEAF(d, 1, EAX, 0, XSAVE),
    [CPU_XSAVEC] = LEAF(d, 1, EAX, 1, XSAVE),
    [CPU_XGETBV1] = LEAF(d, 1, EAX, 2, XSAVE),
    [CPU_LAHF] = LEAF(80000001, 0, ECX, 0, BASE),
    [CPU_LZCNT] = LEAF(80000001, 0, ECX, 5, BASE),
    [CPU_PREFETCHW] = LEAF(80000001, 0, ECX, 8, BASE),
};

uint64_t cpu_features_closed(uint64_t features)
{
    features |= CPU_BIT(BASE);
    for (uint64_t before = 0; before != features;) {
        before = features;
        for (unsigned f = 1; f < NR_CPU_FEATURES; f++)
            if (!(features >> cpu_feature_bit[f].needs & 1))
                features &= ~(1ull << f);
    }
    return features;
}

static bool host_has(const struct cpu_feature_bit *b)
{
    uint32_t out[4] = {0};
    return __get_cpuid_count(b->leaf, b->subleaf, &out[EAX], &out[EBX], &out[ECX], &out[EDX]) && out[b->reg] >> b->bit & 1;
}

/* What the host's kernel has switched on in XCR0; 0: XSAVE itself is off. */
static uint32_t host_xcr0(void)
{
    uint32_t a, b, c, d, xcr0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(d) : "c"(0));
    return xcr0;
}

uint64_t cpu_features_of_host(void)
{
    uint64_t features = CPU_BIT(BASE);
    uint32_t xcr0 = host_xcr0();
    for (unsigned f = 1; f < NR_CPU_FEATURES; f++)
        if (host_has(&cpu_feature_bit[f]))
            features |= 1ull << f;
    if ((xcr0 & (XCR0_SSE | XCR0_AVX)) != (XCR0_SSE | XCR0_AVX))
        features &= ~CPU_BIT(AVX);
    if (!xcr0)
        features &= ~CPU_BIT(XSAVE);
    return cpu_features_closed(features);
}

const char *cpu_level(uint64_t features)
{
    const uint64_t v2 = CPU_BIT(SSE3) | CPU_BIT(SSSE3) | CPU_BIT(SSE41) | CPU_BIT(SSE42) | CPU_BIT(POPCNT) | CPU_BIT(CX16) |
                        CPU_BIT(LAHF);
    const uint64_t v3 = v2 | CPU_BIT(AVX) | CPU_BIT(AVX2) | CPU_BIT(FMA) | CPU_BIT(F16C) | CPU_BIT(BMI1) | CPU_BIT(BMI2) |
                        CPU_BIT(LZCNT) | CPU_BIT(MOVBE) | CPU_BIT(XSAVE);
    return (features & v3) == v3 ? "x86-64-v3" : (features & v2) == v2 ? "x86-64-v2" : "x86-64-v1";
}
