/*
 * Extensions of the instruction set: what a host has and an engine implements, what a domain's CPUID policy offers, and so
 * what the decoder takes for an instruction at all. A set of them is a uint64_t.
 *
 * Everything not offered is #UD. Three things follow from the sets alone: F3 in front of bsf and bsr has no meaning without
 * BMI1 and LZCNT; features hang on others (AVX2 without AVX is none); and a vCPU whose XCR0 lacks AVX has none of the
 * instructions that change the upper halves of YMM registers.
 */
#ifndef UMXEN_FEATURES_H
#define UMXEN_FEATURES_H
#include <stdbool.h>
#include <stdint.h>

enum cpu_feature {
    CPU_BASE, /* x86-64 as first made: always there */
    CPU_SSE3, CPU_SSSE3, CPU_SSE41, CPU_SSE42, CPU_POPCNT, CPU_CX16, CPU_LAHF,
    CPU_AES, CPU_PCLMULQDQ, CPU_SHA, CPU_MOVBE, CPU_ADX, CPU_RDRAND, CPU_RDSEED,
    CPU_XSAVE, CPU_XSAVEOPT, CPU_XSAVEC, CPU_XGETBV1,
    CPU_AVX, CPU_AVX2, CPU_FMA, CPU_F16C, CPU_VAES, CPU_VPCLMULQDQ, CPU_GFNI,
    CPU_BMI1, CPU_BMI2, CPU_LZCNT, CPU_PREFETCHW,
    NR_CPU_FEATURES
};
#define CPU_BIT(name) (1ull << CPU_##name)
#define CPU_ALL ((1ull << NR_CPU_FEATURES) - 1)
/* What the engine implements. */
#define CPU_IMPLEMENTED                                                                                                    \
    (CPU_BIT(BASE) | CPU_BIT(SSE3) | CPU_BIT(SSSE3) | CPU_BIT(SSE41) | CPU_BIT(SSE42) | CPU_BIT(POPCNT) | CPU_BIT(CX16) |     \
     CPU_BIT(LAHF) | CPU_BIT(AES) | CPU_BIT(PCLMULQDQ) | CPU_BIT(SHA) | CPU_BIT(MOVBE) | CPU_BIT(ADX) | CPU_BIT(RDRAND) |       \
     CPU_BIT(RDSEED) | CPU_BIT(GFNI) | CPU_BIT(LZCNT) | CPU_BIT(PREFETCHW) | CPU_BIT(XSAVE) | CPU_BIT(XSAVEOPT) |           \
     CPU_BIT(XSAVEC) | CPU_BIT(XGETBV1) | CPU_BIT(AVX) | CPU_BIT(AVX2) | CPU_BIT(FMA) | CPU_BIT(F16C) | CPU_BIT(VAES) |       \
     CPU_BIT(VPCLMULQDQ) | CPU_BIT(BMI1) | CPU_BIT(BMI2))

/* Where CPUID says so. */
struct cpu_feature_bit {
    uint32_t leaf;
    uint8_t subleaf, reg, bit; /* reg: 0 eax, 1 ebx, 2 ecx, 3 edx */
    uint8_t needs;             /* another enum cpu_feature, or CPU_BASE */
};
extern const struct cpu_feature_bit cpu_feature_bit[NR_CPU_FEATURES]; /* CPU_BASE has none: leaf 0 */

/* State components of XCR0. */
#define XCR0_X87 1u
#define XCR0_SSE 2u
#define XCR0_AVX 4u

/* Without those whose prerequisite is missing. */
uint64_t cpu_features_closed(uint64_t features);
/* What this host can run. */
uint64_t cpu_features_of_host(void);
/* Does the host's XGETBV tell which state components are in use? A matter of speed only. */
static inline bool cpu_tracks_use(uint64_t features) { return features & CPU_BIT(XGETBV1); }

/* What a vCPU can run whose domain is offered `features`. */
static inline uint64_t cpu_features_enabled(uint64_t features, uint64_t xcr0)
{
    const uint64_t ymm = CPU_BIT(AVX) | CPU_BIT(AVX2) | CPU_BIT(FMA) | CPU_BIT(F16C) | CPU_BIT(VAES) | CPU_BIT(VPCLMULQDQ);
    return xcr0 & XCR0_AVX ? features : features & ~ymm;
}

/* "x86-64-v3" and the like. */
const char *cpu_level(uint64_t features);
#endif
