/*
 * Native runs. A small trampoline loads every register from the image and jumps; the only way back is a signal, whose
 * frame holds the state of the interrupted program. The handler restores the fs base first: until then nothing here may
 * use thread-local storage.
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_GS 0x1001
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003
#define ALTERNATE_STACK (512u << 10)

static uint8_t *memory; /* all pools */
static int memory_fd;
static uint64_t host_fs;
static struct cpu_image *current;
static struct event *current_event;
static struct sigaction engine_action[NSIG];

extern uint64_t native_stack, native_target, native_has_avx;
void native_enter(const struct cpu_image *c);
extern const uint8_t native_leave[];

__asm__(".pushsection .bss\n"
        ".globl native_active, native_stack, native_target, native_has_avx\n"
        ".balign 8\n"
        "native_stack: .skip 8\n"
        "native_target: .skip 8\n"
        "native_active: .skip 8\n"
        "native_has_avx: .skip 8\n"
        "native_compat: .skip 8\n"
        "native_ss: .skip 8\n"
        ".popsection\n"
        ".pushsection .data\n"
        "native_far: .long 0, 0x23\n" /* where to in 32-bit code */
        ".popsection\n");

/* Offsets of struct cpu_image; checked below. 32-bit code is entered by a far jump, with its segments loaded. */
__asm__(".text\n.globl native_enter, native_leave\n"
        "native_enter:\n"
        " push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        " mov %rdi, %rbx\n"
        " mov %rsp, native_stack(%rip)\n"
        " cmpl $0, 160(%rbx); jne 1f\n"
        " mov $158, %eax; mov $0x1002, %edi; mov 144(%rbx), %rsi; syscall\n" /* arch_prctl */
        " mov $158, %eax; mov $0x1001, %edi; mov 152(%rbx), %rsi; syscall\n"
        " jmp 2f\n"
        "1: mov 200(%rbx), %fs; mov 208(%rbx), %gs; mov 168(%rbx), %es; mov 192(%rbx), %ds\n"
        "2: cmpq $0, native_has_avx(%rip)\n"
        " jz 1f; mov $7, %eax; xor %edx, %edx; xrstor64 256(%rbx); jmp 2f\n"
        "1: fxrstor64 256(%rbx)\n"
        "2:\n"
        " mov 128(%rbx), %rax; mov %rax, native_target(%rip)\n"
        " mov %eax, native_far(%rip)\n"
        " mov 160(%rbx), %rax; mov %rax, native_compat(%rip)\n"
        " mov 184(%rbx), %rax; mov %rax, native_ss(%rip)\n"
        " pushq 136(%rbx)\n"
        " movb $1, native_active(%rip)\n"
        " mov 0(%rbx), %rax; mov 8(%rbx), %rcx; mov 16(%rbx), %rdx\n"
        " mov 40(%rbx), %rbp; mov 48(%rbx), %rsi; mov 56(%rbx), %rdi\n"
        " mov 64(%rbx), %r8; mov 72(%rbx), %r9; mov 80(%rbx), %r10; mov 88(%rbx), %r11\n"
        " mov 96(%rbx), %r12; mov 104(%rbx), %r13; mov 112(%rbx), %r14; mov 120(%rbx), %r15\n"
        " cmpb $0, native_compat(%rip); jne 3f\n"
        " popfq\n"
        " mov 32(%rbx), %rsp; mov 24(%rbx), %rbx\n"
        " jmp *native_target(%rip)\n"
        "3: popfq\n"
        " mov native_ss(%rip), %ss\n"
        " mov 32(%rbx), %rsp; mov 24(%rbx), %rbx\n"
        " ljmp *native_far(%rip)\n"
        "native_leave:\n"
        " fninit\n"
        " cmpq $0, native_has_avx(%rip); jz 1f; vzeroupper; 1:\n"
        " pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        " ret\n");
_Static_assert(offsetof(struct cpu_image, rip) == 128 && offsetof(struct cpu_image, x) == 256 &&
               offsetof(struct cpu_image, compat) == 160 && offsetof(struct cpu_image, selector) == 168,
               "offsets in native_enter");

static long raw_arch_prctl(long code, uint64_t value)
{
    long ret;
    __asm__ volatile("syscall" : "=a"(ret) : "0"(SYS_arch_prctl), "D"(code), "S"(value) : "rcx", "r11", "memory");
    return ret;
}

static const uint8_t gregs_order[NR_GPRS] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

/* A step inside native_enter, or the one that its last jump takes. */
__attribute__((no_sanitize("address", "undefined"))) static bool is_own_step(const ucontext_t *uc)
{
    uint64_t rip = uc->uc_mcontext.gregs[REG_RIP];
    if (uc->uc_mcontext.gregs[REG_TRAPNO] != VECTOR_DEBUG)
        return false;
    if (rip - (uint64_t)native_enter < (uint64_t)native_leave - (uint64_t)native_enter)
        return true;
    bool arrived = rip == native_target;
    native_target = 1;
    return arrived;
}

/* A signal frame's FPU part is an XSAVE area in the standard format, if its software bytes say so. */
__attribute__((no_sanitize("address", "undefined"))) static void read_xstate(struct xstate *x, const uint8_t *frame)
{
    const struct xstate *f = (const struct xstate *)frame;
    bool extended = *(const uint32_t *)(frame + 464) == 0x46505853;
    memcpy(x->legacy, f->legacy, sizeof(x->legacy));
    memset(x->ymm_high, 0, sizeof(x->ymm_high));
    if (extended && (f->present & XCR0_AVX))
        memcpy(x->ymm_high, f->ymm_high, sizeof(x->ymm_high));
    x->present = XCR0_X87 | XCR0_SSE | (native_has_avx ? XCR0_AVX : 0);
}

__attribute__((no_sanitize("address", "undefined"))) static void on_signal(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    if (!native_active) {
        const struct sigaction *a = &engine_action[number];
        if (a->sa_flags & SA_SIGINFO)
            a->sa_sigaction(number, info, context);
        else
            signal(number, SIG_DFL);
        return;
    }
    if (is_own_step(uc))
        return;
    raw_arch_prctl(ARCH_SET_FS, host_fs);
    native_active = 0;
    struct cpu_image *c = current;
    greg_t *g = uc->uc_mcontext.gregs;
    for (unsigned k = 0; k < NR_GPRS; k++)
        c->regs[k] = g[gregs_order[k]];
    c->rip = g[REG_RIP];
    c->rflags = g[REG_EFL];
    read_xstate(&c->x, (const uint8_t *)uc->uc_mcontext.fpregs);
    *current_event = (struct event){.vector = g[REG_TRAPNO], .error = g[REG_ERR], .cr2 = g[REG_CR2]};
    g[REG_RIP] = (greg_t)native_leave;
    g[REG_RSP] = (greg_t)native_stack;
    g[REG_EFL] = 0x202;
    g[REG_CSGSFS] = 0x33 | 0x2bll << 48; /* 64-bit code again */
}

void native_abandon(void)
{
    if (native_active)
        raw_arch_prctl(ARCH_SET_FS, host_fs);
}

void native_run(struct cpu_image *c, struct event *e)
{
    current = c;
    current_event = e;
    __asm__ volatile("" ::: "memory");
    native_enter(c);
    static const uint32_t usual_mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(usual_mxcsr) : "memory");
    uint8_t *fx = c->fx; /* a frame says nothing about these */
    memset(fx + 416, 0, 96);
}

/* ---- segments --------------------------------------------------------------------------------------------------- */

/* All are data of 32 bits that may be written: at FS_BASE, at GS_BASE of programs.py, at 0 up to 0x6fffffff, FS once more. */
static const uint64_t ldt[] = {0x50cff3004000ffffull, 0x50cff3002000ffffull, 0x00c6f3000000ffffull, 0x5040f30040002fffull};

uint64_t native_descriptor(uint16_t selector)
{
    static const uint64_t flat = 0x00cff3000000ffffull;
    return selector & 4 ? ldt[selector >> 3] : selector ? flat : 0;
}

static void set_ldt(void)
{
    for (unsigned k = 0; k < ARRAY_SIZE(ldt); k++) {
        uint64_t d = ldt[k];
        struct { uint32_t entry, base, limit, flags; } entry = {
            k, (d >> 16 & 0xffffff) | (d >> 56) << 24, (d & 0xffff) | (d >> 32 & 0xf0000),
            1 | (d >> 55 & 1) << 4 | 1 << 6}; /* 32 bit, pages, usable */
        if (syscall(SYS_modify_ldt, 0x11, &entry, sizeof(entry)))
            die("modify_ldt: %s", strerror(errno));
    }
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

uint8_t *native_page(enum pool pool, unsigned n) { return memory + (pool_start(pool) + n) * PAGE_SIZE; }

static int protection(enum permission p)
{
    static const int bits[] = {[PERM_NONE] = PROT_NONE,
                               [PERM_R] = PROT_READ,
                               [PERM_RW] = PROT_READ | PROT_WRITE,
                               [PERM_RX] = PROT_READ | PROT_EXEC,
                               [PERM_RWX] = PROT_READ | PROT_WRITE | PROT_EXEC};
    return bits[p];
}

static enum permission now[NR_WINDOWS][CODE_PAGES];
static uint16_t shown_now[NR_WINDOWS][CODE_PAGES];

void native_protect(int window, unsigned page, enum permission perm, unsigned shown)
{
    void *at = (void *)(windows[window].vaddr + page * PAGE_SIZE);
    if (shown_now[window][page] != shown) {
        uint64_t offset = (pool_start(windows[window].pool) + shown) * PAGE_SIZE;
        if (mmap(at, PAGE_SIZE, protection(perm), MAP_SHARED | MAP_FIXED | MAP_POPULATE, memory_fd, offset) != at)
            die("mmap: %s", strerror(errno));
    } else if (now[window][page] != perm && mprotect(at, PAGE_SIZE, protection(perm))) {
        die("mprotect: %s", strerror(errno));
    }
    now[window][page] = perm;
    shown_now[window][page] = shown;
}

static void map_windows(void)
{
    int fd = memory_fd = memfd_create("native", MFD_CLOEXEC);
    size_t bytes = POOL_PAGES * PAGE_SIZE;
    if (fd < 0 || ftruncate(fd, bytes))
        die("no memory for the native run");
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        die("no memory for the native run");
    memset(memory, 0, bytes);
    for (int w = 0; w < NR_WINDOWS; w++) {
        void *at = (void *)windows[w].vaddr;
        int flags = MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE;
        void *p = mmap(at, windows[w].pages * PAGE_SIZE, protection(windows[w].usual), flags, fd,
                       pool_start(windows[w].pool) * PAGE_SIZE);
        if (p != at)
            die("%p is taken", at);
        for (unsigned k = 0; k < windows[w].pages; k++)
            now[w][k] = windows[w].usual, shown_now[w][k] = k;
    }
}

void native_init(struct machine *m)
{
    set_ldt();
    static const int numbers[] = {SIGSEGV, SIGFPE, SIGBUS, SIGILL, SIGTRAP};
    (void)m;
    native_has_avx = cpu_features_of_host() >> CPU_AVX & 1;
    raw_arch_prctl(ARCH_GET_FS, (uint64_t)&host_fs);
    map_windows();
    stack_t stack = {.ss_sp = mmap(NULL, ALTERNATE_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                     .ss_size = ALTERNATE_STACK};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    for (unsigned k = 0; k < ARRAY_SIZE(numbers); k++)
        sigaction(numbers[k], &action, &engine_action[numbers[k]]);
}
