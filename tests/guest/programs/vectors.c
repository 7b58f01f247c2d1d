/*
 * What a guest's user space makes of its CPU: static, run on the host and in guests. Built with -march=x86-64-v3 it can compute;
 * built for any x86-64 it runs where extensions are masked.
 *
 *   vectors levels           what the compiler's run-time library finds
 *   vectors compute          numbers that only depend on the instructions being right
 *   vectors threads N MS     N threads, each with vector registers of its own, and signals that change them
 *   vectors try NAME         one instruction of an extension; SIGILL where there is none
 *   vectors leaves           CPUID leaf 0xd, XCR0 and XINUSE
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* glibc's own names of what its ifuncs choose from. */
size_t __strlen_avx2(const char *) __attribute__((weak));
size_t __strlen_evex(const char *) __attribute__((weak));
size_t __strlen_sse2(const char *) __attribute__((weak));

/* The function itself, whether the address is its own or that of its PLT entry. */
static const void *resolved(const void *f)
{
    const uint8_t *p = f;
    p += memcmp(p, "\xf3\x0f\x1e\xfa", 4) ? 0 : 4; /* endbr64 */
    p += *p == 0xf2;                               /* bnd */
    int32_t offset;
    if (p[0] != 0xff || p[1] != 0x25)
        return f;
    memcpy(&offset, p + 2, sizeof(offset));
    return *(void *const *)(p + 6 + offset);
}

static void choices(void)
{
    const void *f = resolved((const void *)strlen);
    printf("strlen %s\n", f == (const void *)__strlen_avx2 ? "avx2" : f == (const void *)__strlen_evex ? "evex"
                         : f == (const void *)__strlen_sse2 ? "sse2" : "other");
}

#define HAS(name) printf("%s %d\n", name, !!__builtin_cpu_supports(name))

static void levels(void)
{
    HAS("x86-64-v2"); HAS("x86-64-v3"); HAS("ssse3"); HAS("sse4.2"); HAS("popcnt"); HAS("avx"); HAS("avx2"); HAS("fma");
    choices();
    HAS("bmi"); HAS("bmi2"); HAS("lzcnt"); HAS("f16c"); HAS("movbe"); HAS("aes"); HAS("avx512f"); HAS("xsavec");
}

#ifdef __AVX2__
/* ---- computing -------------------------------------------------------------------------------------------------- */

#define N 96
static double a[N][N], b[N][N], c[N][N];
static int32_t table[4096], picked[4096];

static uint64_t mixed(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    return x ^ x >> 29;
}

static uint64_t sum_of(const void *p, size_t n)
{
    uint64_t sum = 0;
    for (size_t k = 0; k < n; k++)
        sum = mixed(sum + ((const uint8_t *)p)[k] + k);
    return sum;
}

static void multiply(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            a[i][j] = i * 0.5 + j, b[i][j] = i - j * 0.25, c[i][j] = 0;
    for (int i = 0; i < N; i++)
        for (int k = 0; k < N; k++)
            for (int j = 0; j < N; j++)
                c[i][j] += a[i][k] * b[k][j];
    printf("multiply %016llx\n", (unsigned long long)sum_of(c, sizeof(c)));
}

static void gather(void)
{
    for (int k = 0; k < 4096; k++)
        table[k] = mixed(k);
    for (int k = 0; k < 4096; k += 8) {
        __m256i index = _mm256_and_si256(_mm256_loadu_si256((__m256i *)&table[k]), _mm256_set1_epi32(4095));
        __m256i mask = _mm256_cmpgt_epi32(_mm256_loadu_si256((__m256i *)&table[k]), _mm256_setzero_si256());
        __m256i v = _mm256_mask_i32gather_epi32(_mm256_set1_epi32(k), table, index, mask, 4);
        _mm256_maskstore_epi32(&picked[k], mask, v);
    }
    printf("gather %016llx\n", (unsigned long long)sum_of(picked, sizeof(picked)));
}

static void bits(void)
{
    uint64_t x = 1, sum = 0;
    for (int k = 0; k < 100000; k++) {
        x = mixed(x + k);
        sum += _pdep_u64(x, 0x0f0f0f0f0f0f0f0full) ^ _pext_u64(x, 0xff00ff00ff00ff00ull);
        sum += _tzcnt_u64(x) * 3 + _lzcnt_u64(x) * 5 + __builtin_popcountll(x) * 7 + _blsr_u64(x) + _andn_u64(x, sum);
        sum ^= __builtin_bswap64(x);
    }
    printf("bits %016llx\n", (unsigned long long)sum);
}

static void strings(void)
{
    static char text[70000], copy[70000];
    for (unsigned k = 0; k < sizeof(text) - 1; k++)
        text[k] = 'a' + k % 23;
    uint64_t sum = 0;
    for (unsigned k = 0; k < 200; k++) {
        memmove(copy + k, text + 3 * k, sizeof(text) - 4 * k);
        sum += strlen(copy + k) + !!strchr(text + k, 'z') + (uint64_t)(memchr(copy, 'w', 999) ? 1 : 0);
        sum += memcmp(text, copy + k, 5000) > 0;
    }
    printf("strings %016llx\n", (unsigned long long)(sum + sum_of(copy, sizeof(copy))));
}

static void compute(void)
{
    multiply();
    gather();
    bits();
    strings();
}
#else
static uint64_t mixed(uint64_t x) { return x * 0xff51afd7ed558ccdull ^ x >> 29; }
static void compute(void) { puts("not built for it"); }
#endif

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static atomic_int stop, wrong;
static _Atomic uint64_t rounds;

/* Fills every register, lets others run, and looks. */
static int registers_stay(uint64_t seed)
{
    uint64_t in[16][4], out[16][4];
    for (unsigned k = 0; k < 64; k++)
        in[k / 4][k % 4] = mixed(seed + k);
#define EACH(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define LOAD(n) "vmovdqu " #n "*32(%[in]), %%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n ", " #n "*32(%[out])\n"
    long ret;
    __asm__ volatile(EACH(LOAD) "mov $24, %%eax\nsyscall\n" EACH(STORE) /* sched_yield */
                     : "=&a"(ret)
                     : [in] "r"(in), [out] "r"(out)
                     : "rcx", "r11", "memory", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8",
                       "ymm9", "ymm10", "ymm11", "ymm12", "ymm13", "ymm14", "ymm15");
    return !memcmp(in, out, sizeof(in));
}

static void *thread(void *number)
{
    for (uint64_t k = 1; !stop; k++) {
        if (!registers_stay((uintptr_t)number << 32 | k))
            atomic_store(&wrong, 1), atomic_store(&stop, 1);
        rounds++;
    }
    return NULL;
}

static void on_alarm(int number)
{
    (void)number;
    registers_stay((uintptr_t)&number * rounds);
}

static int threads(int n, int ms)
{
    pthread_t t[64];
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval timer = {{0, 3000}, {0, 3000}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    for (int k = 0; k < n; k++)
        pthread_create(&t[k], NULL, thread, (void *)(uintptr_t)(k + 1));
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += ms / 1000;
    do
        usleep(1000), clock_gettime(CLOCK_MONOTONIC, &now);
    while (!stop && now.tv_sec <= end.tv_sec);
    stop = 1;
    for (int k = 0; k < n; k++)
        pthread_join(t[k], NULL);
    printf("threads %s\n", wrong ? "lost registers" : rounds > 100 ? "ok" : "hardly ran");
    return wrong;
}

/* ---- instructions ----------------------------------------------------------------------------------------------- */

static int try(const char *name)
{
#define TRY(n, text)                                                                                                  \
    if (!strcmp(name, n)) {                                                                                           \
        __asm__ volatile(text : : : "rax", "rcx", "rdx", "ymm0", "ymm1", "cc");                                       \
        puts("ran");                                                                                                  \
        return 0;                                                                                                     \
    }
    TRY("ssse3", "pshufb %%xmm1, %%xmm0")
    TRY("sse4_2", "crc32b %%al, %%ecx")
    TRY("popcnt", "popcnt %%eax, %%ecx")
    TRY("avx", "vaddps %%ymm0, %%ymm1, %%ymm0")
    TRY("avx2", "vpaddb %%ymm0, %%ymm1, %%ymm0")
    TRY("fma", "vfmadd213ps %%ymm0, %%ymm1, %%ymm0")
    TRY("bmi1", "andn %%eax, %%ecx, %%edx")
    TRY("bmi2", "rorx $3, %%eax, %%ecx")
    TRY("aes", "aesenc %%xmm0, %%xmm1")
    TRY("rdrand", "rdrand %%eax")
    TRY("xsave", "xor %%ecx, %%ecx; xgetbv")
    /* With BMI1 tzcnt: ZF says that the result is 0. Without, bsf, where it says that the source was. */
    TRY("tzcnt", "mov $1, %%eax; rep bsf %%eax, %%ecx; jz 1f; ud2; 1:")
    return 2;
}

static void leaves(void)
{
    uint32_t a, b, c, d, low, high;
    for (unsigned k = 0; k < 3; k++) {
        __cpuid_count(0xd, k, a, b, c, d);
        printf("d.%u %x %x %x %x\n", k, a, b, c, d);
    }
    for (unsigned k = 0; k < 2; k++) {
        __asm__ volatile("vzeroupper; xgetbv" : "=a"(low), "=d"(high) : "c"(k));
        printf("xgetbv.%u %x\n", k, low);
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "levels"))
        levels();
    else if (!strcmp(what, "compute"))
        compute();
    else if (!strcmp(what, "threads") && argc > 3)
        return threads(atoi(argv[2]), atoi(argv[3]));
    else if (!strcmp(what, "try") && argc > 2)
        return try(argv[2]);
    else if (!strcmp(what, "leaves"))
        leaves();
    else
        return 2;
    return 0;
}
