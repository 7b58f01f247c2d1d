/*
 * 32-bit code under a 64-bit kernel, without a C library: what is different from 64-bit code, each piece with a checksum or a
 * result on a line of its own. The same program gives the same lines on any CPU; the last one is "compat: done".
 */
#include "small32.h"

static void line(const char *name, uint32_t value)
{
    put(name);
    put_hex(value);
    put("\n");
}

static uint32_t mix(uint32_t sum, uint32_t v) { return (sum ^ v ^ v >> 15) * 0x01000193 + 1; }

/* ---- faults: the handler goes on at `resume` with what happened kept here ------------------------------------------ */

static struct { uint32_t signo, trapno, error, cr2, eip_known; } fault;
static volatile uint32_t resume, expected_eip;

static void on_fault(int signo, struct siginfo *info, struct ucontext *uc)
{
    (void)info;
    fault.signo = signo;
    fault.trapno = uc->regs.trapno;
    fault.error = uc->regs.err;
    fault.cr2 = uc->regs.cr2;
    fault.eip_known = uc->regs.eip == expected_eip;
    uc->regs.eip = resume;
    __asm__("mov %%cs, %0" : "=r"(uc->regs.cs)); /* it may be what was wrong */
}

/* Runs `code`, which may fault at its label 1. */
#define TRY(code, ...)                                                                                                \
    do {                                                                                                              \
        memset(&fault, 0, sizeof(fault));                                                                             \
        __asm__ volatile("movl $9f, %0; movl $1f, %1\n" code "\n9:" : "=m"(resume), "=m"(expected_eip) __VA_ARGS__);    \
    } while (0)

static uint32_t fault_sum(bool with_address)
{
    uint32_t sum = fault.signo << 24 | fault.trapno << 16 | (fault.error & 0xffff);
    return mix(sum, fault.eip_known) ^ (with_address ? fault.cr2 : 0);
}

/* ---- decimal arithmetic ----------------------------------------------------------------------------------------- */

#define DECIMAL(name, instruction, mask)                                                                              \
    static uint32_t name(void)                                                                                        \
    {                                                                                                                 \
        uint32_t sum = 0;                                                                                             \
        for (uint32_t v = 0; v < 0x400; v++)                                                                          \
            for (uint32_t in = 0; in < 4; in++) {                                                                     \
                uint32_t ax = (v & 0xff) | (v & 0x300) << 4 | 0xabcd0000, flags = (in & 1) | (in & 2) << 3, out;      \
                __asm__ volatile("push %3; popf; " instruction "; pushf; pop %1"                                     \
                                 : "=a"(ax), "=r"(out) : "0"(ax), "r"(flags | 0x202) : "cc");                        \
                sum = mix(mix(sum, ax), out & (mask));                                                                \
            }                                                                                                         \
        return sum;                                                                                                   \
    }
DECIMAL(sum_daa, "daa", 0xd5)
DECIMAL(sum_das, "das", 0xd5)
DECIMAL(sum_aaa, "aaa", 0x11)
DECIMAL(sum_aas, "aas", 0x11)
DECIMAL(sum_aam, "aam", 0xc4)
DECIMAL(sum_aam7, "aam $7", 0xc4)
DECIMAL(sum_aad, "aad", 0xc4)
DECIMAL(sum_salc, ".byte 0xd6", 0)

static void decimal(void)
{
    line("daa", sum_daa());
    line("das", sum_das());
    line("aaa", sum_aaa());
    line("aas", sum_aas());
    line("aam", sum_aam());
    line("aam 7", sum_aam7());
    line("aad", sum_aad());
    line("salc", sum_salc());
    TRY("1: aam $0", : : "eax");
    line("aam 0", fault_sum(false));
}

/* ---- short forms, stack ----------------------------------------------------------------------------------------- */

static void stack(void)
{
    uint32_t a, b, c;
    __asm__ volatile("mov $0x7fffffff, %%eax; stc; inc %%eax; pushf; pop %%ecx; dec %%ax; mov %%eax, %%edx"
                     : "=d"(a), "=c"(b) : : "eax", "cc");
    line("inc dec", mix(a, b & 0x8d5));
    __asm__ volatile("push %%ebx; mov %%esp, %%ebx; mov $1, %%eax; mov $2, %%ecx; mov $3, %%edx; pusha; addl $5, 28(%%esp); "
                     "mov %%ebx, %%esi; sub 12(%%esp), %%esi; popa; sub %%esp, %%ebx; mov %%ebx, %%edx; pop %%ebx"
                     : "=a"(a), "=c"(b), "=d"(c) : : "esi", "cc");
    line("pusha popa", mix(mix(a, b), c));
    __asm__ volatile("mov $0x11112222, %%eax; mov %%esp, %%ecx; pushaw; pop %%edx; popw %%si; popaw; mov %%ecx, %%esp"
                     : "=d"(a) : : "eax", "ecx", "esi", "edi", "ebx", "memory");
    __asm__ volatile("mov %%esp, %%ecx; push $0x12345678; pushw $0x55; popw %%ax; pop %%edx; sub %%esp, %%ecx"
                     : "=d"(a), "=a"(b), "=c"(c) : : "memory");
    line("push pop", mix(mix(a, b & 0xffff), c));
    __asm__ volatile("push %%ebp; mov %%esp, %%ebp; mov %%esp, %%ecx; enter $24, $3; sub %%esp, %%ecx; leave; "
                     "mov %%esp, %%edx; sub %%ebp, %%edx; pop %%ebp" : "=c"(a), "=d"(b) : : "memory");
    line("enter leave", mix(a, b));
    __asm__ volatile("mov %%esp, %%ecx; pushf; push %%cs; push $1f; iret; 1: sub %%esp, %%ecx" : "=c"(a) : : "memory", "cc");
    line("iret", a);
    __asm__ volatile("call 1f; 1: pop %%ecx; sub $1b, %%ecx; push $2f; ret; ud2; 2: mov $3f, %%eax; push %%ecx; call *%%eax; "
                     "jmp 4f; 3: mov $7, %%edx; ret $4; 4:" : "=c"(a), "=d"(b) : : "eax", "memory");
    line("call ret", mix(a, b));
}

/* ---- bound, into, arpl ------------------------------------------------------------------------------------------ */

static void checks(void)
{
    static const int32_t bounds[2] = {-5, 100};
    uint32_t sum = 0;
    for (int32_t v = -8; v < 110; v += 4) {
        TRY("1: bound %[v], %[bounds]; nop", : [v] "r"(v), [bounds] "m"(bounds) : "memory");
        sum = mix(sum, fault_sum(false));
    }
    line("bound", sum);
    TRY("mov $0x7fffffff, %%eax; inc %%eax; into; 1: nop", : : "eax", "cc", "memory");
    line("into, taken", fault_sum(false));
    TRY("xor %%eax, %%eax; 1: into", : : "eax", "cc", "memory");
    line("into, not taken", fault_sum(false));
    TRY("1: int3; nop", : : "memory");
    line("int3", fault.signo << 8 | fault.trapno);
    TRY("1: int $0x81", : : "memory");
    line("int 0x81", fault_sum(false));
    TRY("1: hlt", : : "memory");
    line("hlt", fault_sum(false));
    for (uint32_t k = sum = 0; k < 16; k++) {
        uint32_t a = 0x1230 | (k & 3), z;
        __asm__ volatile("arpl %w2, %w0; setz %%cl; movzbl %%cl, %1" : "+r"(a), "=c"(z) : "r"(k >> 2) : "cc");
        sum = mix(mix(sum, a), z);
    }
    line("arpl", sum);
}

/* ---- addresses -------------------------------------------------------------------------------------------------- */

static uint8_t area[256];

static void addresses(void)
{
    uint32_t a, b;
    uint8_t *top = map(0xffffc000, 4096);
    line("top", (uint32_t)top);
    for (unsigned k = 0; k < sizeof(area); k++)
        area[k] = k * 7;
    __asm__ volatile("mov $0x80000010, %%ecx; mov %c2-0x20(%%ecx,%%ecx), %0; mov $0xfffffff0, %%edx; mov %c2+0x40(%%edx), %1"
                     : "=a"(a), "=b"(b) : "i"(area) : "ecx", "edx");
    line("wrap", mix(a, b)); /* base + index and base + displacement go round at 4 GiB */
    __asm__ volatile("mov $0x12340010, %%ebx; mov $0x5678ffff, %%esi; lea 1(%%bx), %%eax; lea 5(%%bx,%%si), %%edx"
                     : "=a"(a), "=d"(b) : : "ebx", "esi");
    line("lea, 16 bit", mix(a, b));
    TRY("1: movl (%%bx,%%si), %%eax", : "b"(0x10), "S"(0x8000) : "eax", "memory");
    line("16-bit address", fault_sum(true));
    __asm__ volatile("mov $0x50002, %%ecx; xor %%eax, %%eax; 1: inc %%eax; .byte 0x67; loop 1b; mov %%ecx, %%edx; jcxz 2f; ud2; 2:"
                     : "=a"(a), "=d"(b) : : "ecx", "cc");
    line("loop, 16 bit", mix(a, b));
    __asm__ volatile("mov %2, %%eax; movb %2+9, %%dl; movl $0x55aa55aa, %2+12; movl %2+12, %1" : "=&a"(a), "=d"(b) : "m"(area[0]));
    line("absolute", mix(a, b));
    TRY("1: movl 0x10, %%eax", : : "eax", "memory");
    line("page fault", fault_sum(true));
    TRY("mov $0xfffff000, %%eax; 1: movl (%%eax), %%eax", : : "eax", "memory");
    line("page fault, top", fault_sum(true));
}

static void strings(void)
{
    uint8_t copy[300];
    uint32_t sum = 0, left, at;
    __asm__ volatile("cld; rep movsb" : "=c"(left), "=D"(at) : "0"(256), "1"(copy), "S"(area) : "memory");
    sum = mix(left, at - (uint32_t)copy);
    __asm__ volatile("repne scasb; sete %%al; movzbl %%al, %%eax" : "=c"(left), "=D"(at), "=a"(left) : "0"(256), "1"(copy), "2"(77));
    sum = mix(mix(sum, left), at - (uint32_t)copy);
    __asm__ volatile("std; rep stosl; cld" : "=c"(left), "=D"(at) : "0"(8), "1"(copy + 100), "a"(0x01020304) : "memory");
    for (unsigned k = 0; k < 256; k++)
        sum = mix(sum, copy[k]);
    line("strings", sum);
}

/* ---- segments --------------------------------------------------------------------------------------------------- */

static uint32_t ldt_entry(unsigned n, uint32_t base, uint32_t limit, unsigned contents, bool read_only, bool pages)
{
    struct user_desc d = {n, base, limit, 1, contents, read_only, pages, 0, 1};
    return call3(SYS_modify_ldt, 0x11, (long)&d, sizeof(d)) ? 0 : n << 3 | 7;
}

static void thread_area(void)
{
    uint32_t *tls = map(0, 8192), a, b, c;
    struct user_desc d = {-1u, (uint32_t)tls + 4096, 0xfffff, 1, 0, 0, 1, 0, 1};
    line("set_thread_area", call3(SYS_set_thread_area, (long)&d, 0, 0));
    tls[1024] = 0x1111;
    tls[1023] = 0x2222; /* at -4 */
    __asm__ volatile("mov %w3, %%gs; movl %%gs:0, %0; movl %%gs:-4, %1; mov $-4, %%edx; addl %%gs:4(%%edx), %1; "
                     "movl $5, %%gs:8; mov %%gs, %2" : "=&r"(a), "=&r"(b), "=&c"(c) : "a"(d.entry_number << 3 | 3) : "edx");
    line("gs", mix(mix(a, b), tls[1026]));
    line("selector", c);
}

static void limits(void)
{
    uint8_t *p = map(0, 8192);
    uint32_t data, a, sum = 0;
    for (unsigned k = 0; k < 8192; k++)
        p[k] = k * 13;
    data = ldt_entry(0, (uint32_t)p, 0xfff, CONTENTS_DATA, false, false);
    line("modify_ldt", data);
    static const uint32_t offset[] = {0, 0xff0, 0xffc, 0xffd, 0xfff, 0x1000, 0xfffffffc, 0xffffffff};
    __asm__ volatile("mov %w0, %%fs" : : "r"(data));
    for (unsigned k = 0; k < sizeof(offset) / 4; k++) {
        TRY("1: movl %%fs:(%[at]), %%eax; movl %%eax, %[a]", , [a] "=m"(a) : [at] "r"(offset[k]) : "eax", "memory");
        sum = mix(mix(sum, fault_sum(false)), fault.signo ? 0 : a);
    }
    line("limit", sum);
    data = ldt_entry(1, (uint32_t)p, 0xfff, CONTENTS_EXPAND_DOWN, false, false);
    __asm__ volatile("mov %w0, %%fs" : : "r"(data));
    static const uint32_t above[] = {0, 0xfff, 0x1000, 0x1ffc};
    for (unsigned k = sum = 0; k < sizeof(above) / 4; k++) {
        TRY("1: addb $1, %%fs:(%[at]); movl %%fs:(%[at]), %%eax; movl %%eax, %[a]", , [a] "=m"(a) : [at] "r"(above[k]) : "eax", "memory");
        sum = mix(mix(sum, fault_sum(false)), fault.signo ? 0 : a);
    }
    line("expand-down", sum);
    data = ldt_entry(2, (uint32_t)p + 16, 0, CONTENTS_DATA, true, true);
    __asm__ volatile("mov %w0, %%es" : : "r"(data));
    TRY("1: movl $1, %%es:4", : : "memory");
    sum = fault_sum(false);
    TRY("1: movl %%es:4, %%eax; movl %%eax, %[a]", , [a] "=m"(a) : : "eax", "memory");
    line("read-only", mix(mix(sum, fault_sum(false)), a));
    TRY("mov $2, %%ecx; mov $0xffb, %%edi; xor %%eax, %%eax; 1: repe scasl", : : "eax", "ecx", "edi", "cc", "memory");
    line("string over the limit", fault_sum(false));
    TRY("1: movl %%cs:(%[at]), %%eax; movl $1, %%cs:(%[at])", : [at] "r"(&area) : "eax", "memory");
    line("store through cs", fault_sum(false));
    TRY("xor %%eax, %%eax; mov %%eax, %%fs; 1: movl %%fs:(%[at]), %%eax", : [at] "r"(&area) : "eax", "memory");
    line("null", fault_sum(false));
    TRY("mov $0x1234, %%eax; 1: mov %%eax, %%fs", : : "eax", "memory");
    line("no such selector", fault_sum(false));
    __asm__ volatile("mov %%ds, %%eax; mov %%eax, %%es" : : : "eax");
}

/* Everything through a stack and data segment that do not begin at 0. */
static void moved(void)
{
    uint8_t *p = map(0, 65536);
    uint32_t data = ldt_entry(3, (uint32_t)p, 0xffff, CONTENTS_DATA, false, false), a, b, sum;
    static uint16_t flat;
    for (unsigned k = 0; k < 65536; k++)
        p[k] = k ^ k >> 8;
    __asm__ volatile("mov %%ss, %0" : "=r"(flat));
    __asm__ volatile(
        "push %%ebp; push %%ebx; mov %%esp, %%esi; mov %w3, %%ss; mov $0x8000, %%esp; mov %w3, %%ds; mov %w3, %%es\n"
        "push $0x11; push %%ecx; call 1f; jmp 2f; 1: mov %%esp, %%ebp; mov 4(%%ebp), %%ecx; add 0x1234, %%ecx; ret $4\n"
        "2: pop %%edx; pushf; popw %%ax; popw %%ax; pusha; popa; mov $0x100, %%edi; mov $0x20, %%ecx; mov $0x55, %%al; cld\n"
        "rep stosb; mov %%edi, %%ecx; add 0x110, %%ecx; movl $3, (%%edx); addl %%esp, %%ecx\n"
        "mov %%cs:%c4, %%ax; mov %%ax, %%ss; mov %%esi, %%esp; mov %%ax, %%ds; mov %%ax, %%es; pop %%ebx; pop %%ebp"
        : "=&c"(a), "=&d"(b) : "0"(7), "b"(data), "i"(&flat) : "eax", "esi", "edi", "memory", "cc");
    sum = mix(a, b);
    for (unsigned k = 0x7fe0; k < 0x8000; k++)
        sum = mix(sum, k >= 0x7ff4 && k < 0x7ff8 ? 0 : p[k] == (uint8_t)(k ^ k >> 8)); /* code addresses, flags */
    line("moved stack", sum);
    TRY("mov %w[data], %%ds; 1: movl 0xfffe, %%eax", : [data] "r"(data) : "eax", "memory");
    __asm__ volatile("mov %%ss, %%eax; mov %%eax, %%ds; mov %%eax, %%es" : : : "eax");
    line("limit of ds", fault_sum(false));
}

static void far(void)
{
    uint32_t a, b, selector;
    static struct { uint32_t offset; uint16_t selector; } __attribute__((packed)) pointer = {0x1234, 0};
    __asm__ volatile("mov %%ds, %0" : "=r"(selector));
    pointer.selector = selector;
    __asm__ volatile("push %%es; push %%fs; les %2, %%eax; lfs %2, %%ecx; mov %%fs, %%edx; add %%ecx, %%eax; pop %%fs; pop %%es"
                     : "=&a"(a), "=&d"(b) : "m"(pointer) : "ecx");
    line("les lfs", mix(a, b));
    __asm__ volatile("push %%ds; pop %%es; push %%gs; pop %%gs; push %%cs; pop %0; verr %w0; setz %%al; verw %w0; setz %%ah"
                     : "=&c"(a), "=a"(b) : : "cc");
    line("verr verw", mix(a & 0xffff, b & 0xffff));
    __asm__ volatile("mov %%cs, %%eax; mov %%eax, 1f+4; ljmp *1f; .data; 1: .long 2f, 0; .text; 2: lcall $0x23, $3f; jmp 4f;"
                     "3: mov 4(%%esp), %%eax; lret; 4:" : "=a"(a) : : "memory");
    line("ljmp lcall lret", a);
    __asm__ volatile("mov $0x11223344, %%ecx; ljmp $0x33, $1f\n .code64\n 1: mov $0x1234567890, %%rax; mov %%rax, %%r8; inc %%r8\n"
                     "shr $4, %%r8; mov %%r8d, %%edx; lea 2f(%%rip), %%rbx; push $0x23; push %%rbx; lretq\n .code32\n 2:"
                     : "=d"(a), "=c"(b) : : "eax", "ebx", "memory", "cc");
    line("to 64-bit code and back", mix(a, b));
}

/* ---- system calls ----------------------------------------------------------------------------------------------- */

static uint32_t sysinfo; /* of the auxiliary vector: the vdso's entry */

static void system_calls(void)
{
    uint32_t a = call3(SYS_getpid, 0, 0, 0), b = a;
    if (sysinfo)
        __asm__ volatile("call *%2" : "=a"(b) : "0"(SYS_getpid), "m"(sysinfo) : "memory");
    line("vdso", (sysinfo != 0) << 4 | (a == b));
    line("unknown call", call3(0x1000, 0, 0, 0));
}

/* ---- floating point --------------------------------------------------------------------------------------------- */

static void floating(void)
{
    static uint8_t image[512] __attribute__((aligned(16)));
    double d = 1.5, e;
    uint32_t sum = 0;
    __asm__ volatile("fldl %1; fldpi; fmulp; fstpl %0; movsd %1, %%xmm7; mulsd %%xmm7, %%xmm7; movsd %%xmm7, %1"
                     : "=m"(e), "+m"(d) : : "memory");
    for (unsigned k = 0; k < 8; k++)
        sum = mix(mix(sum, ((uint8_t *)&d)[k]), ((uint8_t *)&e)[k]);
    memset(image, 0x5a, sizeof(image));
    __asm__ volatile("fninit; pxor %%xmm0, %%xmm0; fxsave %0; pcmpeqb %%xmm7, %%xmm7; fxrstor %0; fxsave %0" : "+m"(image));
    for (unsigned k = 160 + 128; k < 416; k++) /* xmm8 to 15 do not exist here */
        sum = mix(sum, image[k]);
    line("floating point", sum);
}

/* ---- signals and threads ---------------------------------------------------------------------------------------- */

static volatile uint32_t ticks;
static void on_tick(int signo, struct siginfo *info, struct ucontext *uc)
{
    (void)signo, (void)info, (void)uc;
    ticks++;
}

static void timers(void)
{
    uint32_t every[4] = {0, 2000, 0, 2000}, none[4] = {0}, sum = 0;
    handle(SIGVTALRM, on_tick);
    call3(SYS_setitimer, 1, (long)every, 0);
    for (uint32_t n = 0; ticks < 10; n++)
        __asm__ volatile("pusha; popa; addl $1, %0; subl $1, %0" : "+m"(sum));
    call3(SYS_setitimer, 1, (long)none, 0);
    line("ticks", sum);
}

static void on_bad_return(int signo, struct siginfo *info, struct ucontext *uc)
{
    (void)signo, (void)info;
    uc->regs.cs = 0x4f; /* in the LDT, and data */
}

/* A handler that returns to a code segment that is none. */
static void bad_return(void)
{
    handle(SIGTRAP, on_bad_return);
    memset(&fault, 0, sizeof(fault));
    __asm__ volatile("movl $9f, %0; int3; nop; 9:" : "=m"(resume) : : "memory");
    line("bad return", fault.signo);
    handle(SIGTRAP, on_fault);
}

#define NR_THREADS 4
#define ROUNDS 20000
static volatile uint32_t counter, plain, lock_word, running = NR_THREADS;

static void thread_main(uint32_t number)
{
    uint32_t own;
    for (unsigned k = 0; k < ROUNDS; k++) {
        __asm__ volatile("lock incl %0" : "+m"(counter));
        while (({ uint32_t v = 1; __asm__ volatile("xchg %0, %1" : "+r"(v), "+m"(lock_word)); v; }))
            call3(SYS_sched_yield, 0, 0, 0);
        plain = plain + 1;
        __asm__ volatile("" : : : "memory");
        lock_word = 0;
        __asm__ volatile("movl %%gs:0, %0" : "=r"(own));
        if (own != number)
            line("the thread area of another thread", own);
    }
    __asm__ volatile("lock decl %0" : "+m"(running));
    call3(SYS_futex, (long)&running, 1, 100);
    call3(SYS_exit, 0, 0, 0);
}

/* The child returns from the system call on a stack of its own, where its function and argument lie. */
static long start_thread(uint32_t number)
{
    uint32_t *own = map(0, 65536), *top = own + 16384 - 4;
    struct user_desc d = {0, (uint32_t)own, 0xfffff, 1, 0, 0, 1, 0, 1};
    uint16_t gs;
    long ret;
    __asm__ volatile("mov %%gs, %0" : "=r"(gs));
    d.entry_number = gs >> 3;
    own[0] = number;
    top[0] = (uint32_t)thread_main;
    top[1] = 0;
    top[2] = number;
    /* VM FS FILES SIGHAND THREAD SYSVSEM SETTLS */
    __asm__ volatile("int $0x80; test %%eax, %%eax; jnz 1f; ret; 1:"
                     : "=a"(ret) : "0"(SYS_clone), "b"(0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x80000), "c"(top),
                       "d"(0), "S"(&d) : "memory", "cc");
    return ret;
}

static void threads(void)
{
    for (unsigned k = 0; k < NR_THREADS; k++)
        if (start_thread(k + 100) < 0)
            put("no thread\n");
    for (uint32_t left; (left = running);)
        call6(SYS_futex, (long)&running, 0, left, 0, 0, 0);
    line("threads", mix(counter, plain));
}

/* ---- start ------------------------------------------------------------------------------------------------------ */

__attribute__((used)) void start(uint32_t *sp)
{
    uint32_t *p = sp + 1 + sp[0] + 1;
    while (*p++)
        ;
    for (; p[0]; p += 2)
        if (p[0] == 32)
            sysinfo = p[1];
    static const int signals[] = {SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV};
    for (unsigned k = 0; k < sizeof(signals) / sizeof(*signals); k++)
        handle(signals[k], on_fault);
    thread_area();
    decimal();
    stack();
    checks();
    addresses();
    strings();
    limits();
    moved();
    far();
    system_calls();
    floating();
    timers();
    bad_return();
    threads();
    put("compat: done\n");
    call3(SYS_exit_group, 0, 0, 0);
}
__asm__(".globl _start\n_start: mov %esp, %eax; and $-16, %esp; sub $12, %esp; push %eax; call start\n");
