/*
 * What the harness's files share: the file of programs (blob.c), the state and memory of both sides (sides.c), comparison
 * (compare.c), lockstep runs (lockstep.c), disturbance (disturb.c), two vCPUs at once (smp.c).
 */
#ifndef TRANSLATOR_HARNESS_H
#define TRANSLATOR_HARNESS_H
#include "native.h"

#define HIGH_BASE 0xffffffff80000000ull
#define CODE_START (windows[WINDOW_CODE].vaddr)

/* ---- blob.c ----------------------------------------------------------------------------------------------------- */

enum {
    PROGRAM_WRITES_CODE = 1,   /* its pages are RWX, and fresh for each run */
    PROGRAM_BIG = 2,           /* uses WINDOW_BIG */
    PROGRAM_INVALID = 4,       /* its one instruction must be #UD to the guest; not run natively */
    PROGRAM_NOT_HIGH = 8,      /* computes with code addresses: not in the kernel's high part */
    PROGRAM_COMPAT = 16,       /* 32-bit code */
};
struct program {
    uint64_t seed;
    uint32_t entry, end;       /* offsets in the code */
    uint32_t first_resume, nr_resumes, first_rule, nr_rules;
    uint32_t flags, status_mask;
    uint32_t last, unused;     /* offset after its last byte: functions lie behind the end */
};
struct rule { uint8_t window, perm; uint16_t page, shown, unused; }; /* another page is shown in odd runs only */
struct header { char magic[8]; uint32_t nr_programs, nr_resumes, nr_rules, code_bytes; };


extern struct blob {
    struct header *header;
    struct program *program;
    uint32_t *resume;
    struct rule *rule;
    uint8_t *code;
} blob;
void blob_load(const char *path);
static inline unsigned first_page(const struct program *p) { return p->entry / PAGE_SIZE; }
static inline unsigned last_page(const struct program *p) { return (p->last - 1) / PAGE_SIZE; }

/* ---- what is going on ------------------------------------------------------------------------------------------- */

enum mode { USER, KERNEL, KERNEL_HIGH };
struct options {
    unsigned runs, kick_us, disturb_every, cache_kib, only, seconds, vcpus;
    bool trace, verbose, pair;
    uint64_t masked;
};
extern struct options options;
struct totals { _Atomic uint64_t programs, runs, events, mismatches, kicks, disturbed; };
extern struct totals totals;
/* When the last kick was made, and how long the last ones took to come through, in ns. */
#define LATENCIES 4096
extern _Atomic uint64_t kicked_at;
extern uint32_t latency[LATENCIES];
uint64_t now_ns(void);

extern struct machine *m;
/* Of this thread. */
extern __thread struct vcpu *v;
struct here {
    const struct program *program;
    unsigned index, run, event;
    enum mode mode;
    uint16_t partial;   /* of those, what a string instruction leaves undefined between two elements */
    uint16_t undefined; /* status flags that no instruction has defined since one left them undefined */
};
extern __thread struct here here;
extern __thread uint64_t random_state;
uint64_t random64(void);
uint64_t random_word(void);

/* ---- sides.c ---------------------------------------------------------------------------------------------------- */

enum { EVENT_END = 256 };
void load_code(void);
/* Fresh data, stack and permissions for a run of here.program; the same on both sides. */
void prepare_memory(const struct program *p);
void restore_permissions(const struct program *p);
void protect(int window, unsigned page, enum permission perm);
/* The state a run begins with, from random_state. */
void initial_state(struct cpu_image *c, const struct program *p);
static inline bool is_compat(const struct program *p) { return p->flags & PROGRAM_COMPAT; }
void guest_load(const struct cpu_image *c, enum mode mode);
void guest_run(struct cpu_image *c, struct event *e);
void native_step(struct cpu_image *c, struct event *e, const struct program *p);

/* ---- compare.c -------------------------------------------------------------------------------------------------- */

/* Prints what differs. */
void mismatch(const char *what, uint64_t native, uint64_t translated);
bool compare_state(const struct cpu_image *n, const struct cpu_image *g, uint64_t flags);
bool compare_all(const struct cpu_image *n, const struct event *ne, const struct cpu_image *g, const struct event *ge);
/* Before a single step: which flags it leaves undefined. */
void note_undefined(const struct cpu_image *n);
bool is_wild_branch(const struct cpu_image *n, const struct event *ne, const struct cpu_image *g, const struct event *ge);

/* ---- lockstep.c, disturb.c, smp.c ------------------------------------------------------------------------------- */

void run_program(unsigned index);
void disturb_start(void);
void smp_run(void);
#endif
