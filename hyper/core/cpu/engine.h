/*
 * CPU engines: who executes a vCPU's instructions. One table of operations; everything PV (bounce frames, privileged
 * operations, hypercalls) stands above it, in pv/, written once.
 */
#ifndef UMXEN_ENGINE_H
#define UMXEN_ENGINE_H
#include "base.h"

struct hv;
struct domain;
struct vcpu;
struct page_info;

enum reg { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, NR_GPRS };
enum sreg { SREG_ES, SREG_CS, SREG_SS, SREG_DS, SREG_FS, SREG_GS, NR_SREGS };

#define X86_CF 0x001u
#define X86_PF 0x004u
#define X86_AF 0x010u
#define X86_ZF 0x040u
#define X86_SF 0x080u
#define X86_TF 0x100u
#define X86_IF 0x200u
#define X86_DF 0x400u
#define X86_OF 0x800u
#define X86_IOPL 0x3000u
#define X86_NT 0x4000u
#define X86_RF 0x10000u
#define X86_VM 0x20000u
#define X86_AC 0x40000u
#define X86_ID 0x200000u
#define X86_STATUS (X86_CF | X86_PF | X86_AF | X86_ZF | X86_SF | X86_OF)

/* The architectural state, between two instructions. RFLAGS is split the way an engine that runs the guest's arithmetic
 * natively wants it; cpu_rflags puts it together. */
struct cpu_state {
    uint64_t regs[NR_GPRS];
    uint64_t rip;
    uint64_t status;      /* SF ZF AF PF CF in bits 8-15 as lahf leaves them in ah, OF in bit 0 */
    uint64_t direction;   /* 0 or 1 */
    uint64_t other_flags; /* TF NT RF AC ID, in their places */
    uint64_t fs_base, gs_base;
    uint64_t user_mode;   /* 0: guest kernel, 1: guest user. Changed only by pv/entry.c through engine->set_mode */
    uint64_t fault_vaddr; /* of EXIT_PAGE_FAULT */
    uint64_t fault_error; /* its error code: P, W, U, I; or one of FAULT_* */
    uint64_t xcr0;        /* may be changed between two runs */
    uint16_t sreg[NR_SREGS];
    uint64_t descriptor[NR_SREGS]; /* what the selectors named when they were loaded; 0: nothing. See cpu/segment.h */
    uint64_t code;        /* CODE_*, from the descriptors */
    uint64_t debug;       /* of EXIT_DEBUG: bits for DR6 */
    bool resume;          /* RF: no breakpoint at the next instruction */
};

/* Not 64-bit code: 32-bit addresses and operands, and segments that mean something. */
#define CODE_COMPAT 1u
/* Its segments other than FS and GS are not all 4 GiB at 0, FS is limited (or null), GS is: accesses have to be checked. */
#define CODE_CHECKED 2u
#define CODE_CHECKED_FS 4u
#define CODE_CHECKED_GS 8u
/* An XSAVE area in the standard format. */
struct xstate {
    uint8_t legacy[512]; /* fxsave image */
    uint64_t present;    /* XSTATE_BV */
    uint64_t layout;     /* XCOMP_BV */
    uint64_t reserved[6];
    uint8_t ymm_high[16][16];
};
_Static_assert(sizeof(struct xstate) == 832, "an XSAVE area with AVX");

#define FAULT_NOT_CANONICAL (~0ull - 1) /* #GP instead */
#define FAULT_WATCHED (~0ull - 4)       /* inside the engine only: a watched operand, outside a single step */
#define FAULT_SEGMENT (~0ull - 2)       /* refused by a segment of 32-bit code: #GP(0) */
#define FAULT_STACK_SEGMENT (~0ull - 3) /* #SS(0) */
#define FAULT_CODE_FRAME (~0ull)        /* inside the engine only: a store to a frame with translated code */

#define DEBUG_STEP 0x4000u /* BS of DR6 */

static inline bool is_canonical(uint64_t vaddr) { return (uint64_t)((int64_t)(vaddr << 16) >> 16) == vaddr; }

static inline uint64_t cpu_rflags(const struct cpu_state *c)
{
    return ((c->status >> 8) & 0xd5) | ((c->status & 1) << 11) | (c->direction << 10) | c->other_flags | X86_IF | 2 |
           (c->resume ? X86_RF : 0);
}
static inline void cpu_set_rflags(struct cpu_state *c, uint64_t rflags)
{
    c->status = ((rflags & 0xd5) | 2) << 8 | ((rflags >> 11) & 1);
    c->direction = (rflags >> 10) & 1;
    c->other_flags = rflags & (X86_TF | X86_NT | X86_AC | X86_ID);
}

/* Why run() came back. rip is precise: of the instruction for faults and emulations, after it for traps. */
enum engine_exit {
    EXIT_KICK,        /* vcpu_kick, or nothing in particular: look around and come again */
    EXIT_SYSCALL,     /* rip is after the instruction, which is two bytes long */
    EXIT_PAGE_FAULT,
    EXIT_PRIVILEGED,  /* an instruction that CPL 3 may not do, or whose meaning is the hypervisor's: decode at rip */
    EXIT_INVALID,     /* #UD */
    EXIT_DIVIDE,      /* #DE */
    EXIT_DEBUG,       /* #DB: after a single step or a watched access, or at a breakpoint: cpu_state.debug */
    EXIT_NO_DEVICE,   /* #NM */
    EXIT_GP,          /* #GP(0) */
    EXIT_STACK,       /* #SS(0): non-canonical address through rsp or rbp */
    EXIT_X87,         /* #MF */
    EXIT_SIMD,        /* #XM */
    EXIT_ALIGNMENT,   /* #AC */
};

enum flush_scope {
    FLUSH_ALL,        /* every translation of every vCPU */
    FLUSH_USER_HALF,  /* vaddr below 2^47 in the kernel's view: CR3 changed */
};

#define ENGINE_EXITS 17 /* kinds of ways out of translated code that are counted */
struct engine_statistics {
    uint64_t blocks, instructions, code_bytes, cache_flushes;
    uint64_t memory_bytes; /* what the engine holds for the domain: code, books, state of vCPUs */
    uint64_t exits[ENGINE_EXITS], tlb_fills, tlb_flushes, page_invalidations, blocks_killed, single_steps;
};

struct engine_ops {
    const char *name;
    int (*machine_init)(struct hv *hv);
    void (*machine_destroy)(struct hv *hv);
    int (*pcpu_start)(struct hv *hv);           /* on each pCPU thread, before it runs anything */
    void (*pcpu_stop)(struct hv *hv);
    int (*domain_create)(struct domain *d);
    void (*domain_destroy)(struct domain *d);
    int (*vcpu_create)(struct vcpu *v);         /* sets v->engine and v->cpu */
    void (*vcpu_destroy)(struct vcpu *v);
    /* Puts the vCPU on this thread (FPU, segment bases) and takes it off again. */
    void (*switch_in)(struct vcpu *v);
    void (*switch_out)(struct vcpu *v);
    /* Runs from v->cpu->rip until an exit. No lock held; in_guest is managed inside. */
    enum engine_exit (*run)(struct vcpu *v);
    void (*kick)(struct vcpu *v);
    /* After EXIT_PAGE_FAULT on a present, read-only mapping: if it is a page table of the guest's, the instruction is run once
     * more with its store made through pv_ptwr_write. False: not such a write, or refused before. */
    bool (*retry_page_table_write)(struct vcpu *v);
    void (*set_mode)(struct vcpu *v, bool user);
    void (*set_fpu_disabled)(struct vcpu *v, bool ts); /* CR0.TS */
    void (*set_debug)(struct vcpu *v, const uint64_t debugreg[8]); /* curr's own; breakpoints as DR7 enables them */
    /* Page-table roots changed (curr's own, domain lock not needed): gfn of the L4 per mode. */
    void (*set_cr3)(struct vcpu *v, bool user, uint64_t l4_gfn);
    /* Other vCPUs are quiesced by the engine when it must; domain lock held by the caller. NULL v: every vCPU of d. */
    void (*flush_tlb)(struct domain *d, struct vcpu *curr, struct vcpu *v, enum flush_scope scope);
    void (*flush_page)(struct domain *d, struct vcpu *curr, struct vcpu *v, uint64_t vaddr);
    /* The frame is about to change type or owner, or became read-only: no TLB of its owner may write to it any more
     * (`all`: may touch it at all). Lock held. */
    void (*revoke_frame)(struct domain *d, struct vcpu *curr, struct page_info *pg, bool all);
    /* An L1 entry of d that pointed to this frame was removed or changed: direct jumps into its code are cut. */
    void (*unmap_code)(struct domain *d, struct vcpu *curr, struct page_info *pg);
    /* The same for an entry of a higher level: what lies under it may be anything. */
    void (*unmap_tables)(struct domain *d, struct vcpu *curr, struct page_info *table, unsigned slot);
    /* The hypervisor or a backend has written to (or is about to write to) this frame: its code is stale. Lock held. */
    void (*frame_written)(struct domain *d, struct vcpu *curr, struct page_info *pg);
    /* Guest-virtual access of the running vCPU in its current mode, as its own instructions would: false after a fault,
     * described in v->cpu->fault_*. With the domain lock held or not (then in_guest is set). */
    bool (*read)(struct vcpu *v, uint64_t vaddr, void *to, size_t bytes);
    bool (*write)(struct vcpu *v, uint64_t vaddr, const void *from, size_t bytes);
    /* Fetches up to 15 bytes of code at vaddr; returns how many could be read. */
    unsigned (*fetch)(struct vcpu *v, uint64_t vaddr, uint8_t *to);
    /* Not while it runs. Components that aren't `present` are in their initial state. */
    void (*get_xstate)(struct vcpu *v, struct xstate *out);
    void (*set_xstate)(struct vcpu *v, const struct xstate *in);
    /* XINUSE of the vCPU that is on this thread. */
    uint64_t (*xstate_in_use)(struct vcpu *v);
    void (*statistics)(struct domain *d, struct engine_statistics *out);
    const char *(*exit_name)(unsigned index); /* of engine_statistics.exits */
};
extern const struct engine_ops dbt_engine;

/* One engine today; the others will come behind this. */
static inline const struct engine_ops *engine(void) { return &dbt_engine; }
void engine_kick(struct vcpu *v);
#endif
