/*
 * Entry points of the small guest: the first instruction, events, traps. Notes that say how to load it.
 */
#define VIRT_BASE 0xffffffff80000000

    .section .text.start, "ax"
    .globl _start
_start: /* rsi = start_info, on the boot stack, events masked */
    cld
    mov $boot_stack_top, %rsp
    mov %rsi, %rdi
    xor %ebp, %ebp
    call small_main
    ud2

/* The hypervisor fills it in: call number n is at n * 32. */
    .balign 4096
    .globl hypercall_page
hypercall_page:
    .skip 4096, 0xcc

    .text
/*
 * The frame, from rsp up: rcx, r11, rip, cs, rflags, rsp, ss. Its seven words leave the stack 8 off a
 * multiple of 16, the seven pushed here set it right for the call. The iret call wants rax, r11, rcx, flags
 * in front of rip: its entry in the hypercall page pushes the first three itself, and is jumped to.
 */
    .globl event_entry
event_entry:
    push %rax
    push %rdi
    push %rsi
    push %rdx
    push %r8
    push %r9
    push %r10
    cld
    call handle_events
    pop %r10
    pop %r9
    pop %r8
    pop %rdx
    pop %rsi
    pop %rdi
    pop %rax
    pop %rcx
    pop %r11
    push $0
    jmp hypercall_page + 23 * 32

/* A failed return to user mode: there is none here. */
    .globl failsafe_entry
failsafe_entry:
    mov $-1, %edi
    mov %rsp, %rsi
    and $-16, %rsp
    call trap
    ud2

/* Traps are reported and end the guest, so nothing is saved. */
    .macro trap_stub vector
    .balign 32
    mov $\vector, %edi
    mov %rsp, %rsi
    and $-16, %rsp
    call trap
    ud2
    .endm

    .balign 32
    .globl trap_stubs
trap_stubs:
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19
    trap_stub \vector
    .endr

    .bss
    .balign 16
boot_stack:
    .skip 16384
boot_stack_top:

/* The page that update_va_mapping puts the hypervisor's shared page over. */
    .balign 4096
    .globl shared_info
shared_info:
    .skip 4096

    .macro note_text type, text
    .balign 4
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:  .asciz "\text"
2:  .balign 4
    .endm
    .macro note_number type, value
    .balign 4
    .long 4, 8, \type
    .asciz "Xen"
    .quad \value
    .endm

    .section .note.Xen, "a", @note
    note_text 6, "umxen-small"      /* GUEST_OS */
    note_text 7, "1"                /* GUEST_VERSION */
    note_text 8, "generic"          /* LOADER */
    note_text 5, "xen-3.0"          /* XEN_VERSION */
    note_text 9, "yes"              /* PAE_MODE */
    note_text 10, "!writable_page_tables|pae_pgdir_above_4gb" /* FEATURES */
    note_number 3, VIRT_BASE        /* VIRT_BASE */
    note_number 1, _start           /* ENTRY */
    note_number 2, hypercall_page   /* HYPERCALL_PAGE */
    .section .note.GNU-stack, "", @progbits
