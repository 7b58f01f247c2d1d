/*
 * Paravirtual guests: entry to and exit from the guest, exceptions and events as bounce frames, emulation of what a
 * PV kernel may not do itself.
 */
#ifndef UMXEN_PV_H
#define UMXEN_PV_H
#include "base.h"

struct vcpu;
struct domain;
struct vcpu_guest_context;

#define NR_GDT_FRAMES 14
#define CR4_OSXSAVE 0x40000u

struct pv_vcpu {
    struct { uint64_t address; uint16_t cs; uint8_t flags; } trap[256]; /* set_trap_table; flags: DPL 0-1, TI_mask 2 */
    uint64_t event_callback, failsafe_callback, syscall_callback, syscall32_callback, sysenter_callback;
    uint32_t callback_flags;      /* VGCF_syscall_disables_events, VGCF_failsafe_disables_events */
    bool syscall32_masks_events, sysenter_masks_events;
    uint64_t kernel_sp;
    uint16_t kernel_ss;
    uint64_t iopl;                /* virtual */
    bool cr0_ts;
    uint64_t cr4, debugreg[8];
    uint64_t xcr0_accum;          /* every component that XCR0 ever had */
    uint64_t gs_base_kernel, gs_base_user; /* of the mode that isn't running; the running one's is in cpu_state */
    gfn_t kernel_l4, user_l4;     /* INVALID_GFN: none. Each holds a reference of PGT_l4_page_table */
    mfn_t gdt_frame[NR_GDT_FRAMES]; /* INVALID_MFN: none. Each holds a reference of PGT_seg_desc_page */
    uint32_t gdt_entries;
    uint64_t ldt_base, ldt_entries;
    uint32_t bounce_depth;        /* nested failures to build a frame: a triple fault */
};

/* entry.c: what a pCPU thread calls. Returns when sched_must_stop. */
void vcpu_run(struct vcpu *v);

/* traps.c */
void pv_inject_exception(struct vcpu *v, unsigned vector, bool has_error, uint32_t error);
void pv_inject_page_fault(struct vcpu *v, uint64_t vaddr, uint32_t error);
void pv_system_call(struct vcpu *v);    /* from user mode, or from 32-bit code */
void pv_sysenter(struct vcpu *v);
bool pv_deliver_events(struct vcpu *v); /* true: the upcall frame was made */
void pv_set_mode(struct vcpu *v, bool user);
bool pv_architectural_iopl(const struct vcpu *v);
int64_t do_set_trap_table(struct vcpu *v, uint64_t traps);
int64_t do_callback_op(struct vcpu *v, uint64_t cmd, uint64_t arg);
int64_t do_set_callbacks(struct vcpu *v, uint64_t event, uint64_t failsafe, uint64_t syscall);
int64_t do_stack_switch(struct vcpu *v, uint64_t ss, uint64_t sp);
int64_t do_set_segment_base(struct vcpu *v, uint64_t which, uint64_t base);
int64_t do_set_debugreg(struct vcpu *v, uint64_t reg, uint64_t value);
int64_t do_get_debugreg(struct vcpu *v, uint64_t reg);
int64_t do_fpu_taskswitch(struct vcpu *v, uint64_t set);
int64_t do_iret(struct vcpu *v);
int64_t do_physdev_op(struct vcpu *v, uint64_t cmd, uint64_t arg);

/* emulate.c, cpuid.c */
void pv_emulate_privileged(struct vcpu *v);
void pv_invalid_opcode(struct vcpu *v); /* #UD, or the forced-emulation prefix */
void pv_cpuid(struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

/* segments.c. Those that return int: the vector of the exception that the load raises, with its error code, or 0. */
/* The descriptor a selector names, from the guest's GDT or LDT; false: null, out of range or not mapped. */
bool pv_read_descriptor(struct vcpu *v, uint16_t selector, uint64_t *descriptor);
/* A code segment that a far transfer may go to. */
int pv_find_code(struct vcpu *v, uint16_t selector, uint64_t *descriptor, uint32_t *error);
/* Not CS. sreg: enum sreg. */
int pv_load_segment(struct vcpu *v, unsigned sreg, uint16_t selector, uint32_t *error);
int pv_load_code_and_stack(struct vcpu *v, uint16_t cs, uint16_t ss, uint32_t *error);
/* All of them from the selectors; what can't be loaded is null, or flat 64-bit code. */
void pv_reload_segments(struct vcpu *v);
int64_t pv_set_gs_user_selector(struct vcpu *v, uint16_t selector);

/* domain.c of pv: contexts. Domain lock held, the vCPU not running. */
int pv_vcpu_init(struct vcpu *v);
void pv_vcpu_destroy(struct vcpu *v);
int pv_set_context(struct vcpu *v, const struct vcpu_guest_context *c);
void pv_get_context(struct vcpu *v, struct vcpu_guest_context *c);
/* Fills a frame with the hypercall page's 32-byte entries. */
void pv_hypercall_page(void *page);
#endif
