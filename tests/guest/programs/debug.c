/*
 * Debugging as Linux programs do it, of a child by ptrace and of oneself by TF: single steps, breakpoints and watchpoints in
 * the debug registers, int3, icebp. One line per experiment; the same lines on any CPU. The last one is "debug: done".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static void fail(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    fflush(NULL);
    exit(1);
}

/* ---- what the child runs ---------------------------------------------------------------------------------------- */

extern const char code_start[], code_end[], bp_here[], bp_loop[];
void traced_code(void *area);
__asm__(".text\n.balign 64\n"
        ".globl traced_code\n"
        "traced_code: push %rbx; mov %rdi, %rbx\n"
        "code_start: nop; push %rax; pop %rax; xor %eax, %eax; inc %eax\n"
        " lea 64(%rbx), %rdi; mov %rbx, %rsi; mov $3, %ecx; cld; rep movsb\n"
        " xor %eax, %eax; mov $4, %ecx; lea 64(%rbx), %rdi; repe scasb\n"
        " xor %ecx, %ecx; rep stosb\n"
        " xor %eax, %eax; cpuid; mov %rdi, %rbx; sub $64, %rbx; and $-4096, %rbx\n"
        " mov %ss, %eax; mov %eax, %ss; nop; nop\n"
        " pushf; pop %rax; push %rax; popf; nop\n"
        " mov $39, %eax; syscall; nop\n" /* getpid */
        " call 1f; jmp 2f; 1: ret; 2: mov $3, %ecx; 3: loop 3b\n"
        " movdqu (%rbx), %xmm0; movdqu %xmm0, 32(%rbx); fld1; fstpt 128(%rbx); fxsave64 512(%rbx); lock incl 4(%rbx); xlat\n"
        " enter $16, $0; leave; mov %fs, %eax; rdtsc; sub $128, %rsp; mov %rsp, %rax; lea 9f(%rip), %rcx\n"
        " push $0; mov %ss, (%rsp); push %rax; pushf; push $0; mov %cs, (%rsp); push %rcx; iretq\n"
        "9: nop; add $128, %rsp\n"
        "code_end: pop %rbx; ret\n"
        ".balign 64\n"
        "bp_function: nop; mov $5, %ecx\n"
        "bp_loop: dec %ecx; jnz bp_loop\n"
        "bp_here: add $1, %rdi; mov %rdi, %rax; ret\n"
        ".globl bp_function\n"
        "access_all: mov $0x55, %eax; lea -8(%rdi), %rsi\n" /* around the eight bytes at rdi */
        " mov (%rsi), %rcx; mov %rcx, (%rsi); mov 8(%rsi), %cl; mov %al, 15(%rsi); movl $1, 16(%rsi); mov %rax, 1(%rsi)\n"
        " mov 9(%rsi), %cx; lock incl 12(%rsi); push 8(%rsi); pop 8(%rsi); movdqu (%rsi), %xmm0; movdqu %xmm0, 4(%rsi)\n"
        " mov $20, %ecx; mov %rsi, %rdi; cld; rep stosb; fldz; fstpt 2(%rsi); cmpb $0, 8(%rsi); btsl $5, 8(%rsi); xchg %eax, 8(%rsi)\n"
        " ret\n"
        ".globl access_all\n");
long bp_function(long v);
void access_all(void *at);

static uint8_t area[8192] __attribute__((aligned(4096)));

static void child(int experiment)
{
    if (ptrace(PTRACE_TRACEME, 0, 0, 0))
        _exit(1);
    raise(SIGSTOP);
    if (experiment == 0)
        traced_code(area);
    else if (experiment == 1)
        for (long k = 0; k < 3; k++)
            bp_function(k);
    else if (experiment == 2)
        access_all(area + 64);
    else
        access_all(area + 4096 - 4);
    _exit(0);
}

static pid_t start(int experiment)
{
    int status;
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0)
        fail("fork");
    if (!pid)
        child(experiment);
    if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
        fail("the child did not stop");
    return pid;
}

static struct user_regs_struct registers(pid_t pid)
{
    struct user_regs_struct r;
    if (ptrace(PTRACE_GETREGS, pid, 0, &r))
        fail("getregs");
    return r;
}

static void set_debug(pid_t pid, unsigned n, unsigned long v)
{
    if (ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[n]), v))
        printf("debug register %u: %s\n", n, strerror(errno));
}

/* 0: it ended. */
static int go_on(pid_t pid, int request)
{
    int status;
    if (ptrace(request, pid, 0, 0) || waitpid(pid, &status, 0) != pid)
        fail("ptrace");
    if (!WIFSTOPPED(status))
        return 0;
    if (WSTOPSIG(status) != SIGTRAP) {
        printf("stopped by signal %d\n", WSTOPSIG(status));
        exit(1);
    }
    return 1;
}

/* ---- experiments ------------------------------------------------------------------------------------------------ */

static void steps(void)
{
    pid_t pid = start(0);
    unsigned n = 0, inside = 0;
    printf("steps at");
    while (go_on(pid, PTRACE_SINGLESTEP) && n++ < 100000) {
        unsigned long rip = registers(pid).rip;
        if (rip < (unsigned long)code_start || rip > (unsigned long)code_end)
            continue;
        siginfo_t info;
        ptrace(PTRACE_GETSIGINFO, pid, 0, &info);
        printf(" %lx", rip - (unsigned long)code_start);
        if (info.si_code != TRAP_TRACE)
            printf("/%d", info.si_code);
        inside++;
        if (rip != (unsigned long)code_end)
            continue;
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        break;
    }
    printf("\nsteps: %u\n", inside);
}

static void breakpoints(void)
{
    pid_t pid = start(1);
    set_debug(pid, 0, (unsigned long)bp_here);
    set_debug(pid, 1, (unsigned long)bp_loop);
    set_debug(pid, 7, 1 | 4);
    printf("breakpoints at");
    while (go_on(pid, PTRACE_CONT)) {
        unsigned long dr6 = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg[6]), 0);
        struct user_regs_struct r = registers(pid);
        printf(" %lx/%lx/%llx", (unsigned long)r.rip - (unsigned long)bp_loop, dr6 & 0xf00f, r.rdi);
        set_debug(pid, 6, 0);
    }
    printf("\n");
}

static void watch(int experiment, unsigned long at, unsigned type, unsigned length)
{
    pid_t pid = start(experiment);
    set_debug(pid, 2, at);
    set_debug(pid, 7, 0x10 | type << 24 | length << 26);
    printf("watch %lx type %u length %u:", at - (unsigned long)area, type, length);
    while (go_on(pid, PTRACE_CONT)) {
        unsigned long dr6 = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg[6]), 0);
        printf(" %lx/%lx", (unsigned long)registers(pid).rip - (unsigned long)access_all, dr6 & 0xf00f);
        set_debug(pid, 6, 0);
    }
    printf("\n");
}

static volatile unsigned traps, last_code, sum;
static void on_trap(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    (void)number;
    traps++;
    last_code = info->si_code;
    sum = sum * 31 + (uint32_t)(uc->uc_mcontext.gregs[REG_RIP] - (greg_t)code_start);
    if (traps > 100)
        uc->uc_mcontext.gregs[REG_EFL] &= ~0x100ll;
}

static void oneself(void)
{
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    __asm__ volatile("pushf; orl $0x100, (%%rsp); popf; nop; nop; pushf; andl $~0x100, (%%rsp); popf; nop" : : : "memory", "cc");
    printf("own TF: %u traps, code %d\n", traps, last_code);
    traps = 0;
    __asm__ volatile(".byte 0xf1" : : : "memory");
    printf("icebp: %u, code %d\n", traps, last_code);
    __asm__ volatile("int3" : : : "memory");
    printf("int3: %u, code %d\n", traps, last_code);
}

/* Breakpoints of the kernel's own, by perf: kernel code and data. `symbol` from /proc/kallsyms. */
static unsigned long address_of(const char *symbol)
{
    char line[256], name[200];
    unsigned long at, found = 0;
    FILE *f = fopen("/proc/kallsyms", "r");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "%lx %*c %199s", &at, name) == 2 && !strcmp(name, symbol))
            found = at;
    if (f)
        fclose(f);
    return found;
}

static void kernel_breakpoint(const char *symbol)
{
    struct perf_event_attr attr = {.type = PERF_TYPE_BREAKPOINT, .size = sizeof(attr), .bp_type = HW_BREAKPOINT_X,
                                   .bp_addr = address_of(symbol), .bp_len = sizeof(long)};
    int fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
    uint64_t count = 0;
    if (fd < 0)
        fail("perf_event_open");
    for (unsigned k = 0; k < 1000; k++)
        syscall(SYS_getppid);
    if (read(fd, &count, sizeof(count)) != sizeof(count))
        fail("perf");
    close(fd);
    printf("breakpoint at %s: %llu\n", symbol, (unsigned long long)count);
}

int main(int argc, char **argv)
{
    setbuf(stdout, NULL);
    if (argc > 1) {
        kernel_breakpoint(argv[1]);
        return 0;
    }
    steps();
    breakpoints();
    for (unsigned length = 0; length < 4; length++)
        for (unsigned type = 1; type < 4; type += 2)
            watch(2, (unsigned long)area + 64, type, length);
    watch(3, (unsigned long)area + 4096, 1, 2);
    watch(3, (unsigned long)area + 4096 - 8, 3, 2);
    oneself();
    printf("debug: done\n");
    return 0;
}
