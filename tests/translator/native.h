/*
 * The oracle: the same bytes on the host's own CPU, at the same addresses, until something happens.
 */
#ifndef TRANSLATOR_NATIVE_H
#define TRANSLATOR_NATIVE_H
#include "machine.h"

/* What a program may see of the CPU. */
struct cpu_image {
    uint64_t regs[NR_GPRS], rip, rflags, fs_base, gs_base;
    uint64_t compat;                  /* 32-bit code, with these segments instead of the two bases */
    uint64_t selector[NR_SREGS];
    union {
        struct xstate x;
        uint8_t fx[512];
    } __attribute__((aligned(64)));
};
/* Descriptors that programs of 32-bit code run with, in the LDT: their selectors. */
enum { LDT_FS = 0x07, LDT_GS = 0x0f, LDT_DATA = 0x17, LDT_FS_LIMITED = 0x1f };
uint64_t native_descriptor(uint16_t selector);

/* Why it stopped: x86 vector numbers. */
struct event { unsigned vector; uint64_t error, cr2; };
enum { VECTOR_DIVIDE = 0, VECTOR_DEBUG = 1, VECTOR_BREAKPOINT = 3, VECTOR_INVALID = 6, VECTOR_STACK = 12, VECTOR_GP = 13,
       VECTOR_PAGE_FAULT = 14, VECTOR_X87 = 16, VECTOR_ALIGNMENT = 17, VECTOR_SIMD = 19 };

/* After the engine has installed its handlers: ours must look first, with the guest's fs base in place. */
void native_init(struct machine *m);
uint8_t *native_page(enum pool pool, unsigned n);
void native_protect(int window, unsigned page, enum permission perm, unsigned shown);
extern volatile uint8_t native_active;
/* In a signal handler: the host's fs base again, when a native run was interrupted. */
void native_abandon(void);
/* Runs from c until a fault or trap; c is the state there. */
void native_run(struct cpu_image *c, struct event *e);
#endif
