/*
 * The same-ISA translator's own structures.
 *
 * Translated code runs with the guest's registers in the host's: all but four in place; guest rsp in host r15; guest
 * r10, r11, r15 in memory; host r10, r11 are scratch; host rsp is a private shadow stack, where a guest call is a host
 * call. The gs base points to the vCPU's struct engine_vcpu. XMM, x87 and MXCSR are the guest's own.
 *
 * Rooms: decode (../decode.h), emit.h (bytes of host instructions), translate.c (a block; translate.h names its rooms),
 * trampolines.c (generated ways in and out), mmu.c (page walk, soft TLB, guest accesses), blocks.c (the code cache, links,
 * invalidation), helpers.c (what generated code calls), interpret.c (rare instructions), run.c (the run loop), host_faults.c
 * (signals), requests.c (what the rest of the hypervisor asks for), runtime.c (life, the engine's table).
 *
 * Locks: the domain lock guards the code cache and all books in struct engine_domain. The soft TLB and jump cache of a
 * vCPU belong to its thread while it is in_guest, and to whoever holds the domain lock and has quiesced otherwise; single
 * jump-cache slots may be reset by the lock's holder at any time.
 */
#ifndef UMXEN_DBT_H
#define UMXEN_DBT_H
#include "cpu/decode.h"
#include "domain.h"
#include "machine.h"

/* ---- soft TLB --------------------------------------------------------------------------------------------------- */

#define TLB_BITS 12 /* 4,096 entries suffice: more did not pay */
#define TLB_ENTRIES (1 << TLB_BITS)

/* The tags are the negated page address, so that adding one to an address leaves the offset in the page, and a single
 * unsigned compare with 4096 - size says hit, right page and no page crossing. */
struct tlb_entry {
    uint64_t read_tag, write_tag;
    uint8_t *host; /* of the page */
    uint64_t distance; /* host - guest address */
};
/* The tag of an empty entry still fits one page, at an address that may not even be canonical: it has to be one that is
 * looked up in another entry. */
static inline uint64_t tlb_no_tag(unsigned index) { return index ? 0x0000800000000000ull : 0x0000800000001000ull; }

/* Jump cache: where to go for a guest pc. Slots point to a block's checked entry, or lead out. */
#define JUMP_BITS 15
#define JUMP_ENTRIES (1 << JUMP_BITS)

/* A second one behind it, by another hash: what collides there is found here, without leaving translated code. Empty entries
 * lead out. */
#define SECOND_BITS 14
#define SECOND_ENTRIES (1 << SECOND_BITS)
struct second_jump { uint64_t pc, entry; };

#define MAX_GROUPS 16

#define TLB_LOG 512   /* slots used since the last flush, so that a flush touches few */
#define TLB_LOW_LOG 64 /* of those the kernel's TLB uses for the lower half: a change of CR3 drops them alone */
#define JUMP_LOG 1024

/* Why generated code came back. */
enum dbt_exit {
    DBT_LINK = 0, /* a direct jump without a target yet: engine_vcpu.link */
    DBT_INDIRECT, /* jump-cache miss at cpu.rip */
    DBT_SPECIAL,  /* the instruction at rip must run alone, through the bounce buffer */
    DBT_PAGE_FAULT,
    DBT_POLL,
    DBT_SYSCALL,
    DBT_INVALID,
    DBT_PRIVILEGED,
    DBT_RARE,
    DBT_DIVIDE,
    DBT_GP,
    DBT_STACK,
    DBT_X87,
    DBT_SIMD,
    DBT_ALIGNMENT,
    DBT_NO_DEVICE,
    DBT_GROUP,    /* a group of accesses at rip cannot share a look-up: on without groups */
    DBT_EXITS
};

/* What generated code calls (helpers.c). */
enum helper {
    HELP_ACCESS,       /* a guest address missed the TLB: r10 vaddr, r11 SLOW_*; returns the host address */
    HELP_STRING,       /* r11: opcode | size << 8 | repeat << 16 */
    HELP_STRING_ALONE, /* the same in a single-step block: may take the lock to store to code */
    HELP_COMMIT,       /* the store waiting in the bounce buffer */
    HELP_PUSHF,
    HELP_POPF,
    HELP_IRET,
    HELP_FXSAVE,       /* r10: vaddr */
    HELP_FXRSTOR,
    HELP_SEGMENT,      /* r10: offset, r11: SLOW_* with a segment; returns the address with bit 32 set */
    HELP_XSAVE,        /* r10: vaddr, or an offset; r11: enum xsave_form, SLOW_SEGMENT */
    HELP_XRSTOR,
    NR_HELPERS
};

struct block;
struct link;

/* DR0-3 as DR7 enables them: see watch.c. A bit per register in the masks. */
#define NR_WATCHPOINTS 4
struct watchpoints { uint64_t address[NR_WATCHPOINTS]; uint8_t bytes[NR_WATCHPOINTS], execute, write, access; };

/* Per vCPU; the gs base of translated code. */
struct engine_vcpu {
    struct cpu_state cpu; /* first: its registers are at gs:0 */
    uint64_t scratch0, scratch1;
    uint64_t self;
    uint64_t host_rsp;         /* C's stack while in translated code */
    uint64_t shadow_rsp;       /* the other way round */
    uint64_t entry;            /* where enter jumps */
    struct link *link;
    uint64_t exit;             /* enum dbt_exit */
    _Atomic(uint32_t *) poll;  /* loaded through by blocks that end in a back edge; a kick makes it point to a guard page */
    uint32_t poll_target;
    uint32_t pad;
    uint32_t mxcsr, host_mxcsr; /* the guest's while C runs; what C runs with */
    uint64_t group_distance[MAX_GROUPS]; /* of the block that is running */
    uint64_t (*helper[NR_HELPERS])(struct engine_vcpu *, uint64_t, uint64_t); /* 0: leave, e->exit says why */
    uint8_t xmm[16][16] __attribute__((aligned(16)));
    uint8_t ymm_high[16][16];   /* the upper halves, while C runs; mean something only if: */
    uint64_t ymm_in_use;        /* not all of them are zero */
    uint8_t bounce[192] __attribute__((aligned(64))); /* the largest operand, 108 bytes, at any alignment */
    uint64_t bounce_vaddr, bounce_bytes; /* a store waiting for dbt_commit_store; 0 bytes: none */

    struct vcpu *vcpu;
    uint8_t *root[2];          /* host address of the L4 table by mode; NULL: none */
    uint64_t loaded_user_root; /* whose translations the user TLB holds */
    uint64_t shadow_top[2], shadow_saved; /* by mode; of the mode that isn't running */
    bool fpu_disabled;
    bool fpu_valid;
    uint64_t mode_now[2];      /* block modes by guest mode that jump cache and shadow stack lead to */
    struct watchpoints watch;
    bool alone;                /* what runs is one instruction: watched accesses are noted */
    bool single_step;          /* run one instruction as a block of its own next */
    bool page_table_write;     /* and its store goes to a page table, through pv_ptwr_write */
    bool page_table_refused;   /* which was refused: the guest gets its fault */
    _Atomic bool in_helper;    /* waits for the domain lock and then goes back to its code: see cache_flush */
    bool bounce_is_page_table;
    uint8_t fpu[512] __attribute__((aligned(16))); /* fxsave image while off the CPU */
    struct engine_statistics stats;

    uint32_t tlb_log[2][TLB_LOG], nr_tlb_log[2];
    uint32_t low_log[TLB_LOW_LOG], nr_low_log;
    uint32_t jump_log[2][JUMP_LOG], nr_jump_log[2];
    /* From here on pages appear when they are first written: see blank.c. */
    struct tlb_entry tlb[2][TLB_ENTRIES] __attribute__((aligned(PAGE_SIZE))); /* by mode: 0 kernel, 1 user */
    uint64_t jump[2][JUMP_ENTRIES];
    struct second_jump second[2][SECOND_ENTRIES];
};

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

/* What makes the same bytes translate differently. */
enum block_mode {
    MODE_USER = 1, MODE_SINGLE = 2, MODE_NO_FPU = 4, MODE_AVX = 128 /* XCR0 has it */,
    MODE_PLAIN = 256 /* without groups, see groups.c */
};
#define MODE_CODE(code) ((code) << 3) /* CODE_*, four bits */

/* A direct jump out of a block: a rel32 at `patch` that goes to `stub` until it is linked. */
struct link {
    uint8_t *patch, *stub;
    struct block *owner, *to;
    struct link *next_incoming;
    uint64_t pc;
};

#define BLOCK_LINKS 4
#define MAX_LINKS (3 * MAX_BLOCKS)
struct block {
    uint64_t pc;
    uint8_t *entry;         /* for direct jumps: flags in the host's */
    uint8_t *checked_entry; /* for indirect ones: compares r10 with pc first, flags saved */
    uint8_t *end;
    mfn_t mfn, mfn2;        /* frames of its bytes; mfn2 invalid unless it straddles */
    mfn_t peeked;           /* frame whose bytes said which flags are dead; invalid unless it is another one */
    struct block *hash_next;
    struct link *links, *incoming;
    uint8_t nr_links;
    uint16_t mode;
    bool dead;
    bool atomic; /* of MODE_SINGLE: a locked instruction, which runs while the other vCPUs stand still */
};

struct page_blocks { struct block *block; struct page_blocks *next; };

#define BLOCK_HASH_BITS 15
#define LIVENESS_ENTRIES 4096
#define HOT_BYTES (48u << 20)
#define COLD_BYTES (48u << 20)
#define CACHE_BYTES (HOT_BYTES + COLD_BYTES)
#define SHADOW_BYTES (256u << 10) /* a guard page lies below */
#define MAX_BLOCKS (1u << 18)
#define MAX_FAULT_POINTS (1u << 20)

/* Host addresses of the trampolines, at the start of each domain's code cache. */
struct trampolines {
    uint8_t *enter;              /* enter_fn: C's way in, to any entry */
    uint8_t *enter_indirect[2];  /* an entry for it: through the jump cache to cpu.rip; by mode */
    uint8_t *jump_indirect[2];   /* r10: guest target, flags saved */
    uint8_t *jump_second[2];     /* where failed checks go: to the second jump cache, by mode */
    uint8_t *jump_miss;          /* for generated code; empty slots of jump caches point to the machine's */
    uint8_t *helper[NR_HELPERS]; /* r10, r11: arguments; comes back, or leaves when the helper says so */
    uint8_t *exit_direct;        /* leave: flags are in the host's, registers live */
    uint8_t *exit_saved;         /* leave: flags are saved, registers live */
    uint8_t *poll, *underflow, *end;
};

/* Per domain: the code cache and its books, all guarded by the domain lock. */
struct engine_domain {
    struct domain *domain;
    ptrdiff_t alias;                /* from a byte of the cache to where it can be written */
    uint8_t *cache, *hot, *cold, *hot_start, *cold_start, *cold_end, *hot_end;
    struct trampolines tr;
    uint32_t *guard;                /* an inaccessible page: where a kicked vCPU's poll pointer points */
    struct block *blocks;           /* in order of their host address */
    struct link *links;             /* those of a block lie together */
    uint32_t nr_blocks, nr_links;
    struct block **hash;
    struct page_blocks **page_list; /* by mfn - sparse */
    struct page_blocks *page_pool, *page_free;
    uint32_t nr_page_pool;
    /* Host offset -> guest pc of instructions that may raise an exception on the host; sorted, append-only. */
    uint32_t *fault_offset;
    uint64_t *fault_pc;
    _Atomic uint32_t nr_faults;
    uint64_t liveness_generation;   /* bumped when code changes */
    struct { uint64_t pc, generation; mfn_t mfn; uint16_t live; bool compat; } liveness[LIVENESS_ENTRIES]; /* what live_at found */
    bool kernel_low_code;           /* kernel code was run below CHAIN_START */
    uint8_t ungroup[1 << 12];       /* recent failures of groups by hashed pc: see group_failed */
    uint64_t ungroup_time;
    uint64_t top_l4_entry;          /* last seen entry 511: chains across pages rest on it */
    struct engine_statistics stats;
};

#define DEFAULT_MXCSR 0x1f80u /* all exceptions masked: what C is compiled for */
#define DEFAULT_FCW 0x37f
/* In an fxsave image. */
enum { FXSAVE_FIP = 8, FXSAVE_FDP = 16, FXSAVE_MXCSR = 24, FXSAVE_XMM = 160 };

/* Code at or above this in guest kernel mode may be chained directly across pages: every removal of a mapping there passes
 * through the hypervisor (unmap_code). User code and low addresses change with CR3. */
#define CHAIN_START 0xffffffff80000000ull

static inline unsigned mode_index(const struct engine_vcpu *e) { return e->cpu.user_mode; }
/* Where an access over a page end goes on: 32-bit code has no addresses beyond 4 GiB. */
static inline uint64_t next_page(const struct engine_vcpu *e, uint64_t vaddr)
{
    uint64_t next = (vaddr & PAGE_MASK) + PAGE_SIZE;
    return e->cpu.code ? (uint32_t)next : next;
}
static inline uint64_t page_of(uint64_t vaddr) { return vaddr & PAGE_MASK; }
static inline unsigned tlb_index(uint64_t vaddr) { return (vaddr >> PAGE_SHIFT) & (TLB_ENTRIES - 1); }
static inline unsigned jump_index(uint64_t pc) { return (pc ^ (pc >> 12)) & (JUMP_ENTRIES - 1); }
#define SECOND_MULTIPLIER 0x61c88647
static inline unsigned second_index(uint64_t pc) { return (uint32_t)pc * SECOND_MULTIPLIER >> (32 - SECOND_BITS); }
static inline struct hv *engine_hv(const struct engine_vcpu *e) { return e->vcpu->domain->hv; }

/* ---- mmu.c ------------------------------------------------------------------------------------------------------ */
enum access_kind { ACCESS_READ = 0, ACCESS_WRITE = 1, ACCESS_FETCH = 2 };
/* Host address of a guest byte; NULL after a fault, described in cpu.fault_*. Sets accessed and dirty bits. */
uint8_t *mmu_walk(struct engine_vcpu *e, uint64_t vaddr, enum access_kind kind, struct page_info **pg);
/* At UNGROUP_AFTER a group that begins at pc has failed too often to be tried again. */
static inline uint8_t *ungroup_slot(struct engine_domain *ed, uint64_t pc)
{
    return &ed->ungroup[pc * 0x9e3779b97f4a7c15ull >> 52];
}
#define UNGROUP_AFTER 100

static inline struct page_info *frame_page(struct hv *hv, mfn_t mfn) { return &hv->frame_table[mfn_x(mfn)]; }
static inline uint8_t *frame_host(struct hv *hv, mfn_t mfn) { return hv->bank_base + (mfn_x(mfn) << PAGE_SHIFT); }
static inline mfn_t host_frame(struct hv *hv, const uint8_t *host)
{
    return _mfn((uint64_t)(host - hv->bank_base) >> PAGE_SHIFT);
}
static inline bool frame_has_code(const struct page_info *pg)
{
    return pg && (__atomic_load_n(&pg->flags, __ATOMIC_RELAXED) & PGC_code);
}
/* memcpy without vector registers: they are the guest's while helpers run. */
static inline void copy_plain(void *to, const void *from, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

/* Frame of the code at pc; INVALID_MFN after a fault. */
mfn_t mmu_fetch_frame(struct engine_vcpu *e, uint64_t pc);
/* As mmu_walk, through the TLB; a store to a frame with code answers NULL and FAULT_CODE_FRAME. */
uint8_t *mmu_access(struct engine_vcpu *e, uint64_t vaddr, bool write);
/* Little-endian values of 1 to 8 bytes, across pages too; a store checks all of it before it writes any. */
bool mmu_load(struct engine_vcpu *e, uint64_t vaddr, unsigned bytes, uint64_t *value);
bool mmu_store(struct engine_vcpu *e, uint64_t vaddr, unsigned bytes, uint64_t value);
bool mmu_may_store(struct engine_vcpu *e, uint64_t vaddr, unsigned bytes);
/* A missed access of generated code: the host address, or 0 with e->exit set. `what`: SLOW_*. */
uint64_t mmu_slow_access(struct engine_vcpu *e, uint64_t vaddr, uint64_t what);
/* The exit that reports cpu.fault_*. */
enum dbt_exit mmu_fault_exit(const struct engine_vcpu *e);
bool mmu_read(struct engine_vcpu *e, uint64_t vaddr, void *to, size_t bytes);
bool mmu_write(struct engine_vcpu *e, uint64_t vaddr, const void *from, size_t bytes);
void mmu_flush_mode(struct engine_vcpu *e, unsigned mode);
void mmu_flush_user_half(struct engine_vcpu *e);
void mmu_drop_page(struct engine_vcpu *e, uint64_t vaddr);
void mmu_drop_host_page(struct engine_vcpu *e, const uint8_t *host, bool all);
void jump_clear(struct engine_vcpu *e, unsigned mode);
void jump_set(struct engine_vcpu *e, unsigned mode, uint64_t pc, const uint8_t *entry);
/* Forgets one way to pc, if it leads to `entry`. */
void jump_forget(struct engine_vcpu *e, unsigned mode, uint64_t pc, const uint8_t *entry);

/* ---- blocks.c (domain lock held) -------------------------------------------------------------------------------- */
struct block *block_lookup(struct engine_vcpu *e, uint64_t pc, unsigned mode);
/* A new, empty block; flushes the cache when it is full (then every link and shadow stack is void). */
struct block *block_alloc(struct engine_vcpu *e, uint64_t pc, unsigned mode);
void block_publish(struct engine_domain *ed);
void block_insert(struct engine_domain *ed, struct block *b);
void block_link(struct engine_domain *ed, struct link *l, struct block *to);
void block_kill_frame(struct engine_domain *ed, mfn_t mfn);
void block_unlink_frame(struct engine_domain *ed, mfn_t mfn); /* cuts the jumps into its blocks, keeps them */
void block_unlink_all(struct engine_domain *ed);
struct block *block_by_host(struct engine_domain *ed, uint64_t host_pc);
/* Marks a frame as holding translated code: no TLB may write it without asking. */
void code_frame_register(struct engine_vcpu *e, mfn_t mfn);
/* A store to, or change of, a frame with code. */
void code_frame_written(struct domain *d, struct page_info *pg);
void cache_flush(struct engine_vcpu *e);
int cache_create(struct engine_domain *ed);
void cache_destroy(struct engine_domain *ed);
void fault_point_add(struct engine_domain *ed, const uint8_t *host, uint64_t pc);
bool fault_point_find(struct engine_domain *ed, uint64_t host, uint64_t *pc);
void revoke_write_tag(struct domain *d, struct vcpu *curr, struct page_info *pg);

/* ---- blank.c ---------------------------------------------------------------------------------------------------- */
/* Per machine: the empty tables that every vCPU begins with, and where empty slots of jump caches point. */
struct engine_machine { int blank_fd; uint8_t *page, *jump_miss; };
int blank_create(struct hv *hv);
void blank_destroy(struct hv *hv);
/* Maps empty tables into a new vCPU. */
bool blank_map(struct engine_vcpu *e);
static inline uint64_t jump_miss(const struct engine_vcpu *e) { return (uint64_t)engine_hv(e)->engine->jump_miss; }

/* ---- perf_map.c ------------------------------------------------------------------------------------------------- */
void perf_map_open(struct hv *hv);
void perf_map_close(struct hv *hv);
void perf_map_add(struct engine_domain *ed, const uint8_t *from, const uint8_t *to, const char *what, uint64_t pc);

/* ---- watch.c ---------------------------------------------------------------------------------------------------- */
static inline bool watches_data(const struct engine_vcpu *e) { return unlikely(e->watch.write | e->watch.access); }
/* Notes a hit; false, when not `alone`: a fault that means "run this alone". */
bool watch_access(struct engine_vcpu *e, uint64_t vaddr, unsigned bytes, bool write);
/* Is there a watched operand, or a breakpoint, on the page? */
bool watch_has_data(const struct engine_vcpu *e, uint64_t vaddr);
bool watch_has_code(const struct engine_vcpu *e, uint64_t pc);
/* Breakpoints at rip: bits of DR6. */
unsigned watch_execute(const struct engine_vcpu *e);
/* A direct jump must not lead into a page with a breakpoint of any vCPU. */
bool watch_forbids_link(struct domain *d, uint64_t from, uint64_t to);
void dbt_set_debug(struct vcpu *v, const uint64_t debugreg[8]);

/* ---- translate.c (domain lock held) ----------------------------------------------------------------------------- */
/* NULL after a fetch fault. */
struct block *translate(struct engine_vcpu *e, uint64_t pc, unsigned mode);

/* ---- trampolines.c ---------------------------------------------------------------------------------------------- */
void trampolines_emit(struct engine_domain *ed);
/* The exit of a missed jump alone; returns its address. */
uint8_t *trampoline_miss_emit(uint8_t *page, ptrdiff_t alias);
typedef void enter_fn(struct engine_vcpu *e, const uint8_t *entry);

/* ---- helpers.c: called from generated code on C's stack, without SSE -------------------------------------------- */
/* `what` of slow_access. A group's look-up (SLOW_GROUP) says in the upper half what its first member's own access is, and how
 * far from the start; it is answered with the distance + 1. */
enum {
    SLOW_SIZE = 0x1fff, SLOW_WRITE = 0x2000, SLOW_SPECIAL = 0x4000, SLOW_GROUP = 0x8000, SLOW_STACK = 0x10000 /* #SS, not #GP */,
    SLOW_MASKED = 0x20000 /* not all of it need be there: interpret.c decides */,
    SLOW_OWN = 32, SLOW_OWN_AT = 48
};
#define SLOW_SEGMENTS 0x700000u
#define SLOW_SEGMENT(sreg) ((1u + (sreg)) << 20) /* r10 is an offset in it, to be checked against its limit */
void helpers_init(struct engine_vcpu *e);
/* A store at cpu.fault_vaddr was refused because its frame holds code: that code goes. The vector registers were saved. */
void helper_drop_code(struct engine_vcpu *e);

/* ---- xstate.c --------------------------------------------------------------------------------------------------- */
enum xsave_form { XSAVE_PLAIN, XSAVE_OPTIMISED, XSAVE_COMPACT, XSAVE_FORM = 0xff, XSAVE_WIDE = 0x100 /* with REX.W */ };
uint64_t help_xsave(struct engine_vcpu *e, uint64_t vaddr, uint64_t form);
uint64_t help_xrstor(struct engine_vcpu *e, uint64_t vaddr, uint64_t form);
/* XINUSE of the vCPU that is on this thread, registers saved. */
uint64_t dbt_xstate_in_use(struct vcpu *v);
void dbt_get_xstate(struct vcpu *v, struct xstate *out);
void dbt_set_xstate(struct vcpu *v, const struct xstate *in);

/* ---- interpret.c ------------------------------------------------------------------------------------------------ */
/* One unprivileged instruction at rip. 0: done; else the exit to take. */
int interpret_rare(struct engine_vcpu *e);
/* interpret_vector.c; false after a fault. */
bool interpret_masked_move(struct engine_vcpu *e, const struct insn *i);
bool interpret_gather(struct engine_vcpu *e, const struct insn *i);

/* ---- host_faults.c ---------------------------------------------------------------------------------------------- */
void host_faults_install(void);
/* For this thread: a stack for the handlers; whose code it may be executing from now on, NULL for nobody's. */
int host_faults_start(void);
void host_faults_stop(void);
void host_faults_expect(struct engine_vcpu *e);

/* ---- run.c ------------------------------------------------------------------------------------------------------ */
enum engine_exit dbt_run(struct vcpu *v);
/* A C-side access was refused because the frame holds code: kill that code, so that it can be tried again. */
void drop_code_at(struct engine_vcpu *e, uint64_t vaddr);

/* ---- requests.c: see engine.h ----------------------------------------------------------------------------------- */
void dbt_set_mode(struct vcpu *v, bool user);
void dbt_set_fpu_disabled(struct vcpu *v, bool ts);
void dbt_set_cr3(struct vcpu *v, bool user, uint64_t l4_gfn);
void dbt_flush_tlb(struct domain *d, struct vcpu *curr, struct vcpu *v, enum flush_scope scope);
void dbt_flush_page(struct domain *d, struct vcpu *curr, struct vcpu *v, uint64_t vaddr);
void dbt_revoke_frame(struct domain *d, struct vcpu *curr, struct page_info *pg, bool all);
void dbt_unmap_code(struct domain *d, struct vcpu *curr, struct page_info *pg);
void dbt_unmap_tables(struct domain *d, struct vcpu *curr, struct page_info *table, unsigned slot);
void dbt_frame_written(struct domain *d, struct vcpu *curr, struct page_info *pg);

void shadow_stack_reset(struct engine_vcpu *e);
#endif
