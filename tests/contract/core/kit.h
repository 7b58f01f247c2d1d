/*
 * What the tests here share: a machine, processes of Dom0, and guests whose kernel is a C function.
 *
 * A guest function is marked GUEST. All of them lie in one section, which is copied as a whole to every guest and mapped
 * read-only at CODE; so they may call one another and use what their argument points to, but no global, no string and
 * nothing of libc. The argument is a frame that guest and test share: each test says what lies there.
 */
#ifndef UMXEN_TEST_KIT_H
#define UMXEN_TEST_KIT_H
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "domctl.h"
#include "errno.h"
#include "event_channel.h"
#include "hv.h"
#include "memory.h"
#include "sched.h"
#include "vcpu.h"
#include "xen.h"

#define CHECK(c)                                                                                                      \
    do {                                                                                                              \
        if (!(c)) {                                                                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #c);                                                   \
            abort();                                                                                                  \
        }                                                                                                             \
    } while (0)

#define PAGE 4096u
#define MS 1000000ull

static inline void sleep_ns(uint64_t ns) { nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL); }

/* The program's alarm ends a wait that has no end. */
static inline void wait_until_set(const _Atomic bool *flag)
{
    while (!atomic_load(flag))
        sleep_ns(MS / 10);
}

static inline uint64_t thread_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000 * MS + (uint64_t)t.tv_nsec;
}

/* ---- the program ------------------------------------------------------------------------------------------------ */

struct test { const char *name; void (*run)(void); };
#define T(name) {#name, name}

/* Without an argument it lists its tests, with one it runs that. */
static inline int run_test(const struct test *tests, size_t nr_tests, int argc, char **argv, unsigned seconds)
{
    alarm(seconds);
    for (size_t i = 0; i < nr_tests; i++) {
        if (argc == 1)
            puts(tests[i].name);
        else if (!strcmp(argv[1], tests[i].name))
            tests[i].run();
    }
    return 0;
}

/* The end of each program. The core handles SIGSEGV itself, on its own stack, which the sanitizer must be told. */
#define PROGRAM(seconds, ...)                                                                                         \
    static const struct test tests[] = {__VA_ARGS__};                                                                 \
    int main(int argc, char **argv) { return run_test(tests, sizeof(tests) / sizeof(tests[0]), argc, argv, seconds); } \
    const char *__asan_default_options(void);                                                                         \
    const char *__asan_default_options(void)                                                                          \
    {                                                                                                                 \
        return "allow_user_segv_handler=1:handle_segv=0:use_sigaltstack=0:detect_leaks=0";                            \
    }

/* ---- a process of Dom0 ------------------------------------------------------------------------------------------ */

#define ARENA_BYTES (1u << 20)

struct process { hv_conn_t *conn; uint8_t *arena; uint32_t next; };

static inline void process_start_as(struct process *p, hv_t *hv, uint16_t domid)
{
    int fd = memfd_create("arena", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    CHECK(!ftruncate(fd, ARENA_BYTES) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    p->arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(p->arena != MAP_FAILED);
    p->next = PAGE;
    CHECK(!hv_conn_create(hv, domid, &p->conn) && !hv_conn_set_arena(p->conn, fd, ARENA_BYTES));
    close(fd);
}

static inline void process_start(struct process *p, hv_t *hv) { process_start_as(p, hv, 0); }

static inline void process_end(struct process *p)
{
    hv_conn_destroy(p->conn);
    munmap(p->arena, ARENA_BYTES);
}

/* A copy in the arena: its guest handle. */
static inline uint64_t give(struct process *p, const void *from, uint32_t bytes)
{
    if (p->next + bytes > ARENA_BYTES)
        p->next = PAGE;
    uint32_t at = p->next;
    p->next += (bytes + 63) & ~63u;
    memcpy(p->arena + at, from, bytes);
    return at;
}

static inline int64_t call(struct process *p, uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    int64_t ret;
    while ((ret = hv_conn_hypercall(p->conn, nr, (uint64_t[6]){a, b, c, d})) == -XEN_ERESTART)
        ;
    return ret;
}

/* Must succeed; the answer is in *op. */
static inline void domctl(struct process *p, uint32_t cmd, uint16_t domid, struct xen_domctl *op)
{
    op->cmd = cmd;
    op->domain = domid;
    op->interface_version = XEN_DOMCTL_INTERFACE_VERSION;
    uint64_t handle = give(p, op, sizeof(*op));
    CHECK(!call(p, __HYPERVISOR_domctl, handle, 0, 0, 0));
    memcpy(op, p->arena + handle, sizeof(*op));
}

static inline void simple_domctl(struct process *p, uint32_t cmd, uint16_t domid)
{
    struct xen_domctl op = {0};
    domctl(p, cmd, domid, &op);
}

/* Paused, without memory. */
static inline uint16_t create_domain(struct process *p, uint32_t nr_vcpus)
{
    struct xen_domctl op = {.u.createdomain = {.max_vcpus = nr_vcpus,
                                               .max_evtchn_port = 1023,
                                               .max_grant_frames = -1,
                                               .max_maptrack_frames = -1,
                                               .grant_opts = 1}};
    domctl(p, XEN_DOMCTL_createdomain, 0, &op);
    uint16_t domid = op.domain;
    op = (struct xen_domctl){.u.max_vcpus.max = nr_vcpus};
    domctl(p, XEN_DOMCTL_max_vcpus, domid, &op);
    op = (struct xen_domctl){.u.max_mem.max_memkb = 4096};
    domctl(p, XEN_DOMCTL_max_mem, domid, &op);
    return domid;
}

static inline void destroy_domain(struct process *p, uint16_t domid) { simple_domctl(p, XEN_DOMCTL_destroydomain, domid); }

/* ---- a machine -------------------------------------------------------------------------------------------------- */

#define MACHINE_BYTES (64ull << 20)

struct machine {
    hv_t *hv;
    struct process dom0;
    uint8_t *bank;
    struct hv_statistics at_start;
};

static inline void machine_start(struct machine *m, uint32_t nr_pcpus)
{
    struct hv_config config = {
        .nr_pcpus = nr_pcpus, .memory_bytes = MACHINE_BYTES, .command_line = "", .scheduler = "credit"};
    CHECK(!hv_create(&config, &m->hv) && !hv_start(m->hv));
    process_start(&m->dom0, m->hv);
    m->bank = mmap(NULL, hv_bank_bytes(m->hv), PROT_READ | PROT_WRITE, MAP_SHARED, hv_bank_fd(m->hv), 0);
    CHECK(m->bank != MAP_FAILED);
    hv_get_statistics(m->hv, &m->at_start);
}

/* Nothing that the test made may be left. */
static inline void machine_end(struct machine *m)
{
    struct hv_statistics now;
    hv_get_statistics(m->hv, &now);
    CHECK(!memcmp(&now, &m->at_start, sizeof(now)));
    munmap(m->bank, hv_bank_bytes(m->hv));
    process_end(&m->dom0);
    hv_destroy(m->hv);
}

/* ---- guests ----------------------------------------------------------------------------------------------------- */

#define GUEST __attribute__((section("guest"), noinline, used, no_sanitize_address))
#define CODE 0xffffffff80000000ull
#define DATA (CODE + CODE_PAGES * PAGE)
#define STACK_TOP(vcpu) (DATA + (2 + (vcpu)) * PAGE)
#define CODE_PAGES 4u
#define MAX_GUEST_VCPUS 8u
#define PTE_READ 5ull /* present, for the guest's kernel, which runs in ring 3 */
#define PTE_WRITE 7ull

extern const uint8_t __start_guest[], __stop_guest[];

/* Its frames: L4, L3, L2, L1; code; data; a stack for each vCPU; those that a test takes for itself. */
enum { L4, L3, L2, L1, CODE_FRAME, DATA_FRAME = CODE_FRAME + CODE_PAGES, STACKS, SPARE = STACKS + MAX_GUEST_VCPUS,
       NR_FRAMES = SPARE + 8 };

struct guest {
    struct machine *m;
    uint16_t domid;
    uint32_t nr_vcpus;
    uint64_t mfn[NR_FRAMES];
    void *data; /* what the guest sees at DATA, zeroed */
};

static inline void *frame_of(const struct guest *g, unsigned n) { return g->m->bank + g->mfn[n] * PAGE; }

static inline void set_pte(const struct guest *g, unsigned table, unsigned slot, unsigned frame, uint64_t flags)
{
    ((uint64_t *)frame_of(g, table))[slot] = g->mfn[frame] * PAGE | flags;
}

static inline void populate(struct guest *g)
{
    for (uint64_t n = 0; n < NR_FRAMES; n++)
        g->mfn[n] = n;
    uint64_t list = give(&g->m->dom0, g->mfn, sizeof(g->mfn));
    struct xen_memory_reservation r = {.extent_start = list, .nr_extents = NR_FRAMES, .domid = g->domid};
    uint64_t handle = give(&g->m->dom0, &r, sizeof(r));
    CHECK(call(&g->m->dom0, __HYPERVISOR_memory_op, XENMEM_populate_physmap, handle, 0, 0) == NR_FRAMES);
    memcpy(g->mfn, g->m->dom0.arena + list, sizeof(g->mfn));
    for (unsigned n = 0; n < NR_FRAMES; n++)
        memset(frame_of(g, n), 0, PAGE);
}

/* A guest with its memory and page tables, which may still be changed; it has no context and does not run. */
static inline void guest_create(struct guest *g, struct machine *m, uint32_t nr_vcpus)
{
    size_t code_bytes = (size_t)(__stop_guest - __start_guest);
    CHECK(nr_vcpus <= MAX_GUEST_VCPUS && code_bytes <= CODE_PAGES * PAGE);
    *g = (struct guest){.m = m, .nr_vcpus = nr_vcpus, .domid = create_domain(&m->dom0, nr_vcpus)};
    populate(g);
    g->data = frame_of(g, DATA_FRAME);
    set_pte(g, L4, CODE >> 39 & 511, L3, PTE_WRITE);
    set_pte(g, L3, CODE >> 30 & 511, L2, PTE_WRITE);
    set_pte(g, L2, CODE >> 21 & 511, L1, PTE_WRITE);
    for (unsigned n = 0; n < CODE_PAGES; n++) {
        size_t at = n * PAGE, left = at < code_bytes ? code_bytes - at : 0;
        memcpy(frame_of(g, CODE_FRAME + n), __start_guest + at, left < PAGE ? left : PAGE);
        set_pte(g, L1, n, CODE_FRAME + n, PTE_READ);
    }
    for (unsigned n = DATA_FRAME; n < SPARE; n++)
        set_pte(g, L1, n - CODE_FRAME, n, PTE_WRITE);
}

/* All its vCPUs begin in `kernel`, with DATA and their number. */
static inline void guest_start(struct guest *g, void (*kernel)(void *data, uint32_t vcpu))
{
    for (uint32_t n = 0; n < g->nr_vcpus; n++) {
        struct vcpu_guest_context context = {
            .flags = VGCF_in_kernel | VGCF_online,
            .user_regs = {.rip = CODE + (uint64_t)((const uint8_t *)kernel - __start_guest),
                          .rdi = DATA,
                          .rsi = n,
                          .rsp = STACK_TOP(n) - 8, /* as after a call */
                          .cs = FLAT_KERNEL_CS,
                          .ss = FLAT_KERNEL_SS},
            .ctrlreg[3] = g->mfn[L4] * PAGE,
        };
        struct xen_domctl op = {.u.vcpucontext = {.vcpu = n, .ctxt = give(&g->m->dom0, &context, sizeof(context))}};
        domctl(&g->m->dom0, XEN_DOMCTL_setvcpucontext, g->domid, &op);
    }
    simple_domctl(&g->m->dom0, XEN_DOMCTL_unpausedomain, g->domid);
}

static inline void guest_destroy(struct guest *g) { destroy_domain(&g->m->dom0, g->domid); }

/* A hypercall of a guest. */
__attribute__((always_inline)) static inline int64_t guest_call(uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    register uint64_t fourth __asm__("r10") = d;
    __asm__ volatile("syscall" : "+a"(nr), "+D"(a), "+S"(b), "+d"(c), "+r"(fourth) : : "rcx", "r11", "r8", "r9", "memory");
    return (int64_t)nr;
}
#endif
