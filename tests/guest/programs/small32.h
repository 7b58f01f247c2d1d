/*
 * The least a 32-bit program needs without a C library: system calls, signals, threads, output.
 */
#ifndef SMALL32_H
#define SMALL32_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SYS_exit = 1, SYS_write = 4, SYS_getpid = 20, SYS_modify_ldt = 123, SYS_clone = 120, SYS_rt_sigaction = 174,
    SYS_mmap2 = 192, SYS_futex = 240, SYS_set_thread_area = 243, SYS_exit_group = 252, SYS_gettid = 224, SYS_setitimer = 104,
    SYS_sigaltstack = 186, SYS_sched_yield = 158,
};
enum { SIGILL = 4, SIGTRAP = 5, SIGBUS = 7, SIGFPE = 8, SIGSEGV = 11, SIGVTALRM = 26 };

static inline long call3(long nr, long a, long b, long c)
{
    long ret;
    __asm__ volatile("int $0x80" : "=a"(ret) : "0"(nr), "b"(a), "c"(b), "d"(c) : "memory");
    return ret;
}

/* mmap2 needs six arguments, the last in ebp. */
static inline long call6(long nr, long a, long b, long c, long d, long e, long f)
{
    long ret;
    __asm__ volatile("push %%ebp; mov %7, %%ebp; int $0x80; pop %%ebp"
                     : "=a"(ret) : "0"(nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e), "m"(f) : "memory");
    return ret;
}

static size_t length(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

static void put(const char *s) { call3(SYS_write, 1, (long)s, length(s)); }

static void put_hex(uint32_t v)
{
    char text[12] = " 0x00000000";
    for (unsigned k = 0; k < 8; k++)
        text[10 - k] = "0123456789abcdef"[v >> 4 * k & 15];
    put(text);
}

static inline void *map(uint32_t at, uint32_t bytes) /* read, write, execute; private, anonymous, fixed when at an address */
{
    return (void *)call6(SYS_mmap2, at, bytes, 7, at ? 0x32 : 0x22, -1, 0);
}

void *memset(void *to, int c, size_t n)
{
    uint8_t *p = to;
    while (n--)
        *p++ = c;
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    uint8_t *p = to;
    const uint8_t *q = from;
    while (n--)
        *p++ = *q++;
    return to;
}

/* ---- segments --------------------------------------------------------------------------------------------------- */

struct user_desc {
    uint32_t entry_number, base_addr, limit;
    uint32_t seg_32bit : 1, contents : 2, read_exec_only : 1, limit_in_pages : 1, seg_not_present : 1, useable : 1;
};
enum { CONTENTS_DATA = 0, CONTENTS_EXPAND_DOWN = 1, CONTENTS_CODE = 2 };

/* ---- signals ---------------------------------------------------------------------------------------------------- */

struct context { /* of a 32-bit frame */
    uint16_t gs, gsh, fs, fsh, es, esh, ds, dsh;
    uint32_t edi, esi, ebp, esp, ebx, edx, ecx, eax, trapno, err, eip;
    uint16_t cs, csh;
    uint32_t eflags, esp_at_signal;
    uint16_t ss, ssh;
    uint32_t fpstate, oldmask, cr2;
};
struct ucontext { uint32_t flags, link, stack[3]; struct context regs; };
struct siginfo { int32_t signo, error, code; uint32_t address; };

typedef void handler(int signo, struct siginfo *info, struct ucontext *uc);
void restore_rt(void);
__asm__(".text\nrestore_rt: mov $173, %eax; int $0x80\n");

static void handle(int signo, handler *h)
{
    struct { handler *h; uint32_t flags; void (*restorer)(void); uint32_t mask[2]; } action = {
        h, 0x4 | 0x04000000 | 0x40000000 /* SA_SIGINFO, SA_RESTORER, SA_NODEFER */, restore_rt, {0, 0}};
    call6(SYS_rt_sigaction, signo, (long)&action, 0, 8, 0, 0);
}
#endif
