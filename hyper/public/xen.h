/*
 * The root of the guest ABI: base types, hypercall numbers, PV start of day, shared page, page table calls.
 * The layouts and numbers are those of Xen 4.17 on x86-64. Guest handles are plain 64-bit guest addresses.
 */
#ifndef UMXEN_PUBLIC_XEN_H
#define UMXEN_PUBLIC_XEN_H
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
typedef uint16_t domid_t;
typedef uint64_t xen_pfn_t;
typedef uint64_t xen_ulong_t;
typedef uint64_t xen_callback_t;
typedef uint64_t tsc_timestamp_t;
typedef uint64_t xen_guest_handle_t; /* an address of the caller's (arena offset for processes) */
typedef uint8_t xen_domain_handle_t[16]; /* a UUID, in the order it is printed */

/* Numbers of hypercalls: rax on entry, or the offset / 32 in the hypercall page. */
enum {
    __HYPERVISOR_set_trap_table = 0,
    __HYPERVISOR_mmu_update = 1,
    __HYPERVISOR_set_gdt = 2,
    __HYPERVISOR_stack_switch = 3,
    __HYPERVISOR_set_callbacks = 4,
    __HYPERVISOR_fpu_taskswitch = 5,
    __HYPERVISOR_sched_op_compat = 6,
    __HYPERVISOR_platform_op = 7,
    __HYPERVISOR_set_debugreg = 8,
    __HYPERVISOR_get_debugreg = 9,
    __HYPERVISOR_update_descriptor = 10,
    __HYPERVISOR_memory_op = 12,
    __HYPERVISOR_multicall = 13,
    __HYPERVISOR_update_va_mapping = 14,
    __HYPERVISOR_set_timer_op = 15,
    __HYPERVISOR_event_channel_op_compat = 16,
    __HYPERVISOR_xen_version = 17,
    __HYPERVISOR_console_io = 18,
    __HYPERVISOR_physdev_op_compat = 19,
    __HYPERVISOR_grant_table_op = 20,
    __HYPERVISOR_vm_assist = 21,
    __HYPERVISOR_update_va_mapping_otherdomain = 22,
    __HYPERVISOR_iret = 23,
    __HYPERVISOR_vcpu_op = 24,
    __HYPERVISOR_set_segment_base = 25,
    __HYPERVISOR_mmuext_op = 26,
    __HYPERVISOR_xsm_op = 27,
    __HYPERVISOR_nmi_op = 28,
    __HYPERVISOR_sched_op = 29,
    __HYPERVISOR_callback_op = 30,
    __HYPERVISOR_xenoprof_op = 31,
    __HYPERVISOR_event_channel_op = 32,
    __HYPERVISOR_physdev_op = 33,
    __HYPERVISOR_hvm_op = 34,
    __HYPERVISOR_sysctl = 35,
    __HYPERVISOR_domctl = 36,
    __HYPERVISOR_kexec_op = 37,
    __HYPERVISOR_tmem_op = 38,
    __HYPERVISOR_argo_op = 39,
    __HYPERVISOR_xenpmu_op = 40,
    __HYPERVISOR_dm_op = 41,
    __HYPERVISOR_hypfs_op = 42,
    __HYPERVISOR_arch_0 = 48,
    __HYPERVISOR_arch_1 = 49,
    __HYPERVISOR_arch_2 = 50,
    __HYPERVISOR_arch_3 = 51,
    __HYPERVISOR_arch_4 = 52,
    __HYPERVISOR_arch_5 = 53,
    __HYPERVISOR_arch_6 = 54,
    __HYPERVISOR_arch_7 = 55
};

/* Domain ids from DOMID_FIRST_RESERVED on name no real domain. */
enum {
    DOMID_FIRST_RESERVED = 0x7ff0,
    DOMID_SELF = 0x7ff0,    /* the caller */
    DOMID_IO = 0x7ff1,      /* owner of device memory */
    DOMID_XEN = 0x7ff2,     /* owner of the hypervisor's shareable frames */
    DOMID_COW = 0x7ff3,     /* owner of shared (deduplicated) frames */
    DOMID_INVALID = 0x7ff4, /* "no domain" */
    DOMID_IDLE = 0x7fff,
    DOMID_MASK = 0x7fff
};

enum {
    VIRQ_TIMER = 0,        /* per vCPU: its timer fired */
    VIRQ_DEBUG = 1,        /* per vCPU: print your state */
    VIRQ_CONSOLE = 2,      /* Dom0: a byte came in on the host console */
    VIRQ_DOM_EXC = 3,      /* Dom0: some domain shut down or died */
    VIRQ_TBUF = 4,
    VIRQ_DEBUGGER = 6,
    VIRQ_XENOPROF = 7,
    VIRQ_CON_RING = 8,     /* Dom0: the hypervisor console has new text */
    VIRQ_PCPU_STATE = 9,
    VIRQ_MEM_EVENT = 10,
    VIRQ_ARGO = 11,
    VIRQ_ENOMEM = 12,
    VIRQ_XENPMU = 13,
    VIRQ_ARCH_0 = 16,
    VIRQ_ARCH_1 = 17,
    VIRQ_ARCH_2 = 18,
    VIRQ_ARCH_3 = 19,
    VIRQ_ARCH_4 = 20,
    VIRQ_ARCH_5 = 21,
    VIRQ_ARCH_6 = 22,
    VIRQ_ARCH_7 = 23,
    NR_VIRQS = 24
};

/* Low two bits of mmu_update.ptr. */
enum {
    MMU_NORMAL_PT_UPDATE = 0,
    MMU_MACHPHYS_UPDATE = 1,
    MMU_PT_UPDATE_PRESERVE_AD = 2, /* keep accessed and dirty bits set meanwhile */
    MMU_PT_UPDATE_NO_TRANSLATE = 3
};

struct mmu_update {
    uint64_t ptr; /* machine address of the entry | MMU_* */
    uint64_t val;
};

enum {
    MMUEXT_PIN_L1_TABLE = 0,
    MMUEXT_PIN_L2_TABLE = 1,
    MMUEXT_PIN_L3_TABLE = 2,
    MMUEXT_PIN_L4_TABLE = 3,
    MMUEXT_UNPIN_TABLE = 4,
    MMUEXT_NEW_BASEPTR = 5,
    MMUEXT_TLB_FLUSH_LOCAL = 6,
    MMUEXT_INVLPG_LOCAL = 7,
    MMUEXT_TLB_FLUSH_MULTI = 8,
    MMUEXT_INVLPG_MULTI = 9,
    MMUEXT_TLB_FLUSH_ALL = 10,
    MMUEXT_INVLPG_ALL = 11,
    MMUEXT_FLUSH_CACHE = 12,
    MMUEXT_SET_LDT = 13,
    MMUEXT_NEW_USER_BASEPTR = 15,
    MMUEXT_CLEAR_PAGE = 16,
    MMUEXT_COPY_PAGE = 17,
    MMUEXT_FLUSH_CACHE_GLOBAL = 18,
    MMUEXT_MARK_SUPER = 19,
    MMUEXT_UNMARK_SUPER = 20
};

struct mmuext_op {
    uint32_t cmd;
    union {
        xen_pfn_t mfn;
        uint64_t linear_addr;
    } arg1;
    union {
        uint32_t nr_ents;            /* SET_LDT */
        xen_guest_handle_t vcpumask; /* *_MULTI: bitmap of vCPUs */
        xen_pfn_t src_mfn;           /* COPY_PAGE */
    } arg2;
};

/* Flags of update_va_mapping. With UVMF_MULTI the rest is the address of a vCPU bitmap. */
enum {
    UVMF_NONE = 0,
    UVMF_TLB_FLUSH = 1,
    UVMF_INVLPG = 2,
    UVMF_FLUSHTYPE_MASK = 3,
    UVMF_MULTI = 0,
    UVMF_LOCAL = 0,
    UVMF_ALL = 4
};

enum { CONSOLEIO_write = 0, CONSOLEIO_read = 1 };

enum { VMASST_CMD_enable = 0, VMASST_CMD_disable = 1 };
enum {
    VMASST_TYPE_4gb_segments = 0,
    VMASST_TYPE_4gb_segments_notify = 1,
    VMASST_TYPE_writable_pagetables = 2, /* stores to page tables are checked and carried out */
    VMASST_TYPE_pae_extended_cr3 = 3,
    VMASST_TYPE_architectural_iopl = 4,
    VMASST_TYPE_runstate_update_flag = 5,
    VMASST_TYPE_m2p_strict = 32
};

struct multicall_entry {
    xen_ulong_t op, result;
    xen_ulong_t args[6];
};

enum { XEN_PVCLOCK_TSC_STABLE_BIT = 1, XEN_PVCLOCK_GUEST_STOPPED = 2 }; /* vcpu_time_info.flags */

/* System time in ns = system_time + (((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32).
 * `version` is odd while it is being written. */
struct vcpu_time_info {
    uint32_t version;
    uint32_t pad0;
    uint64_t tsc_timestamp;
    uint64_t system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags;
    uint8_t pad1[2];
};

struct arch_vcpu_info {
    uint64_t cr2;
    uint64_t pad;
};

struct vcpu_info {
    uint8_t evtchn_upcall_pending;
    uint8_t evtchn_upcall_mask;
    xen_ulong_t evtchn_pending_sel; /* bit n: word n of shared_info.evtchn_pending is worth a look */
    struct arch_vcpu_info arch;
    struct vcpu_time_info time;
};

struct arch_shared_info {
    uint64_t max_pfn;
    xen_pfn_t pfn_to_mfn_frame_list_list;
    uint64_t nmi_reason;
    uint64_t p2m_cr3; /* not 0: the P2M is linear at p2m_vaddr in this address space */
    uint64_t p2m_vaddr;
    uint64_t p2m_generation;
};

enum { XEN_LEGACY_MAX_VCPUS = 32 }; /* vCPUs beyond must register their vcpu_info */

struct shared_info {
    struct vcpu_info vcpu_info[XEN_LEGACY_MAX_VCPUS];
    xen_ulong_t evtchn_pending[64];
    xen_ulong_t evtchn_mask[64];
    uint32_t wc_version; /* wall clock at system time 0; version as in vcpu_time_info */
    uint32_t wc_sec;
    uint32_t wc_nsec;
    uint32_t wc_sec_hi;
    struct arch_shared_info arch;
};

enum { MAX_GUEST_CMDLINE = 1024 };

/* What rsi points at when a PV kernel starts. */
struct start_info {
    char magic[32]; /* "xen-3.0-x86_64" */
    uint64_t nr_pages;
    uint64_t shared_info; /* machine address */
    uint32_t flags;       /* SIF_* */
    xen_pfn_t store_mfn;
    uint32_t store_evtchn;
    union {
        struct {
            xen_pfn_t mfn;
            uint32_t evtchn;
        } domU;
        struct {
            uint32_t info_off;
            uint32_t info_size;
        } dom0;
    } console;
    uint64_t pt_base; /* virtual address of the L4 table */
    uint64_t nr_pt_frames;
    uint64_t mfn_list;  /* virtual address of the P2M */
    uint64_t mod_start; /* virtual address of the initrd, or its pfn with SIF_MOD_START_PFN */
    uint64_t mod_len;
    int8_t cmd_line[MAX_GUEST_CMDLINE];
    uint64_t first_p2m_pfn; /* where the P2M lies when it isn't part of the initial mapping */
    uint64_t nr_p2m_frames;
};

enum {
    SIF_PRIVILEGED = 1,
    SIF_INITDOMAIN = 2,
    SIF_MULTIBOOT_MOD = 4,
    SIF_MOD_START_PFN = 8,
    SIF_VIRT_P2M_4TOOLS = 16,
    SIF_PM_MASK = 0xff00
};

struct xen_multiboot_mod_list {
    uint32_t mod_start;
    uint32_t mod_end;
    uint32_t cmdline;
    uint32_t pad;
};

/* Selectors of the flat descriptors that every PV guest finds in its GDT. */
enum {
    FLAT_RING3_CS32 = 0xe023,
    FLAT_RING3_CS64 = 0xe033,
    FLAT_RING3_DS32 = 0xe02b,
    FLAT_RING3_DS64 = 0,
    FLAT_RING3_SS32 = 0xe02b,
    FLAT_RING3_SS64 = 0xe02b,
    FLAT_KERNEL_DS64 = 0,
    FLAT_KERNEL_DS32 = 0xe02b,
    FLAT_KERNEL_DS = 0,
    FLAT_KERNEL_CS64 = 0xe033,
    FLAT_KERNEL_CS32 = 0xe023,
    FLAT_KERNEL_CS = 0xe033,
    FLAT_KERNEL_SS64 = 0xe02b,
    FLAT_KERNEL_SS32 = 0xe02b,
    FLAT_KERNEL_SS = 0xe02b,
    FLAT_USER_DS64 = 0,
    FLAT_USER_DS32 = 0xe02b,
    FLAT_USER_DS = 0,
    FLAT_USER_CS64 = 0xe033,
    FLAT_USER_CS32 = 0xe023,
    FLAT_USER_CS = 0xe033,
    FLAT_USER_SS64 = 0xe02b,
    FLAT_USER_SS32 = 0xe02b,
    FLAT_USER_SS = 0xe02b
};

/* A guest's GDT ends here; what follows is the hypervisor's. */
enum {
    FIRST_RESERVED_GDT_PAGE = 14,
    FIRST_RESERVED_GDT_BYTE = 14 * 4096,
    FIRST_RESERVED_GDT_ENTRY = 14 * 512
};

/* `which` of set_segment_base. */
enum { SEGBASE_FS = 0, SEGBASE_GS_USER = 1, SEGBASE_GS_KERNEL = 2, SEGBASE_GS_USER_SEL = 3 };

/* L4 slots 256..271 belong to the hypervisor; the machine-to-phys table opens them, read-only to guests. */
#define HYPERVISOR_VIRT_START 0xffff800000000000UL
#define HYPERVISOR_VIRT_END 0xffff880000000000UL
#define MACH2PHYS_VIRT_START 0xffff800000000000UL
#define MACH2PHYS_VIRT_END 0xffff804000000000UL
#define MACH2PHYS_NR_ENTRIES 0x800000000UL

enum {
    VGCF_I387_VALID = 1,
    VGCF_IN_KERNEL = 4,
    VGCF_i387_valid = 1,
    VGCF_in_kernel = 4,
    VGCF_failsafe_disables_events = 8,
    VGCF_syscall_disables_events = 16,
    VGCF_online = 32,
    VGCF_in_syscall = 256, /* iret_context.flags: leave by sysret, so rcx and r11 need no restoring */
    VGCF_IN_SYSCALL = 256
};

/* What a PV guest leaves on its stack for the iret hypercall, lowest address first. */
struct iret_context {
    uint64_t rax, r11, rcx, flags, rip, cs, rflags, rsp, ss;
};

struct cpu_user_regs {
    union { uint64_t r15; uint32_t r15d; uint16_t r15w; uint8_t r15b; };
    union { uint64_t r14; uint32_t r14d; uint16_t r14w; uint8_t r14b; };
    union { uint64_t r13; uint32_t r13d; uint16_t r13w; uint8_t r13b; };
    union { uint64_t r12; uint32_t r12d; uint16_t r12w; uint8_t r12b; };
    union { uint64_t rbp; uint32_t ebp; uint16_t bp; uint8_t bpl; };
    union { uint64_t rbx; uint32_t ebx; uint16_t bx; struct { uint8_t bl, bh; }; };
    union { uint64_t r11; uint32_t r11d; uint16_t r11w; uint8_t r11b; };
    union { uint64_t r10; uint32_t r10d; uint16_t r10w; uint8_t r10b; };
    union { uint64_t r9; uint32_t r9d; uint16_t r9w; uint8_t r9b; };
    union { uint64_t r8; uint32_t r8d; uint16_t r8w; uint8_t r8b; };
    union { uint64_t rax; uint32_t eax; uint16_t ax; struct { uint8_t al, ah; }; };
    union { uint64_t rcx; uint32_t ecx; uint16_t cx; struct { uint8_t cl, ch; }; };
    union { uint64_t rdx; uint32_t edx; uint16_t dx; struct { uint8_t dl, dh; }; };
    union { uint64_t rsi; uint32_t esi; uint16_t si; uint8_t sil; };
    union { uint64_t rdi; uint32_t edi; uint16_t di; uint8_t dil; };
    uint32_t error_code;
    uint32_t entry_vector;
    union { uint64_t rip; uint32_t eip; uint16_t ip; };
    uint16_t cs, _pad0[1];
    uint8_t saved_upcall_mask;
    uint8_t _pad1[3];
    union { uint64_t rflags; uint32_t eflags; uint16_t flags; };
    union { uint64_t rsp; uint32_t esp; uint16_t sp; uint8_t spl; };
    uint16_t ss, _pad2[3];
    uint16_t es, _pad3[3];
    uint16_t ds, _pad4[3];
    uint16_t fs, _pad5[3];
    uint16_t gs, _pad6[3];
};

/* One row of set_trap_table; a row with address 0 ends the table. */
struct trap_info {
    uint8_t vector;
    uint8_t flags; /* bits 0-1: privilege a software interrupt needs; bit 2: enter with events masked */
    uint16_t cs;
    uint64_t address;
};

struct vcpu_guest_context {
    struct { char x[512]; } fpu_ctxt; /* fxsave image */
    uint64_t flags;                   /* VGCF_* */
    struct cpu_user_regs user_regs;
    struct trap_info trap_ctxt[256];
    uint64_t ldt_base, ldt_ents;
    uint64_t gdt_frames[16], gdt_ents;
    uint64_t kernel_ss, kernel_sp;
    uint64_t ctrlreg[8]; /* [3] kernel base, [1] user mode base or 0: each xen_pfn_to_cr3(mfn) */
    uint64_t debugreg[8];
    uint64_t event_callback_eip;
    uint64_t failsafe_callback_eip;
    uint64_t syscall_callback_eip;
    uint64_t vm_assist;
    uint64_t fs_base;
    uint64_t gs_base_kernel;
    uint64_t gs_base_user;
};

/* Which platform devices the hypervisor provides; 0 for PV. */
enum {
    XEN_X86_EMU_LAPIC = 1,
    XEN_X86_EMU_HPET = 2,
    XEN_X86_EMU_PM = 4,
    XEN_X86_EMU_RTC = 8,
    XEN_X86_EMU_IOAPIC = 16,
    XEN_X86_EMU_PIC = 32,
    XEN_X86_EMU_VGA = 64,
    XEN_X86_EMU_IOMMU = 128,
    XEN_X86_EMU_PIT = 256,
    XEN_X86_EMU_USE_PIRQ = 512,
    XEN_X86_EMU_VPCI = 1024,
    XEN_X86_EMU_ALL = 2047
};
enum { XEN_X86_MSR_RELAXED = 1, XEN_X86_MISC_FLAGS_MAX = 1 };

struct xen_arch_domainconfig {
    uint32_t emulation_flags; /* XEN_X86_EMU_* */
    uint32_t misc_flags;      /* XEN_X86_MSR_RELAXED */
};

#define XEN_CPUID_NO_SUBLEAF 0xffffffffU

struct xen_cpuid_leaf {
    uint32_t leaf, subleaf;
    uint32_t a, b, c, d;
};

struct xen_msr_entry {
    uint32_t idx;
    uint32_t flags; /* must be 0 */
    uint64_t val;
};

struct xenctl_bitmap {
    xen_guest_handle_t bitmap;
    uint32_t nr_bits;
};

enum { XEN_HVM_DEBUGCONS_IOPORT = 0xe9 };

typedef struct mmu_update mmu_update_t;
typedef struct mmuext_op mmuext_op_t;
typedef struct multicall_entry multicall_entry_t;
typedef struct vcpu_time_info vcpu_time_info_t;
typedef struct vcpu_info vcpu_info_t;
typedef struct shared_info shared_info_t;
typedef struct start_info start_info_t;
typedef struct cpu_user_regs cpu_user_regs_t;
typedef struct trap_info trap_info_t;
typedef struct vcpu_guest_context vcpu_guest_context_t;
typedef struct xen_cpuid_leaf xen_cpuid_leaf_t;
typedef struct xen_msr_entry xen_msr_entry_t;
/* cffi: end */

#define TI_GET_DPL(_ti) ((_ti)->flags & 3)
#define TI_GET_IF(_ti) ((_ti)->flags & 4)
#define xen_pfn_to_cr3(pfn) ((uint64_t)(pfn) << 12)
#define xen_cr3_to_pfn(cr3) ((uint64_t)(cr3) >> 12)
/* In front of an instruction it asks the hypervisor to emulate it (used for cpuid). */
#define XEN_EMULATE_PREFIX ".byte 0x0f,0x0b,0x78,0x65,0x6e ; "

_Static_assert(sizeof(struct mmu_update) == 16, "mmu_update");
_Static_assert(sizeof(struct mmuext_op) == 24, "mmuext_op");
_Static_assert(sizeof(struct multicall_entry) == 64, "multicall_entry");
_Static_assert(sizeof(struct vcpu_time_info) == 32, "vcpu_time_info");
_Static_assert(sizeof(struct arch_vcpu_info) == 16, "arch_vcpu_info");
_Static_assert(sizeof(struct vcpu_info) == 64, "vcpu_info");
_Static_assert(sizeof(struct arch_shared_info) == 48, "arch_shared_info");
_Static_assert(sizeof(struct shared_info) == 3136, "shared_info");
_Static_assert(sizeof(struct start_info) == 1168, "start_info");
_Static_assert(sizeof(struct xen_multiboot_mod_list) == 16, "xen_multiboot_mod_list");
_Static_assert(sizeof(struct iret_context) == 72, "iret_context");
_Static_assert(sizeof(struct cpu_user_regs) == 200, "cpu_user_regs");
_Static_assert(sizeof(struct trap_info) == 16, "trap_info");
_Static_assert(sizeof(struct vcpu_guest_context) == 5168, "vcpu_guest_context");
_Static_assert(sizeof(struct xen_arch_domainconfig) == 8, "xen_arch_domainconfig");
_Static_assert(sizeof(struct xen_cpuid_leaf) == 24, "xen_cpuid_leaf");
_Static_assert(sizeof(struct xen_msr_entry) == 16, "xen_msr_entry");
_Static_assert(sizeof(struct xenctl_bitmap) == 16, "xenctl_bitmap");
#endif
