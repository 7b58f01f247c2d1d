/*
 * Hypercalls go through the page that the hypervisor filled: the call for number n starts at n * 32.
 */
#include "small.h"

extern char hypercall_page[];

long hypercall(unsigned nr, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5)
{
    register uint64_t r10 __asm__("r10") = a4;
    register uint64_t r8 __asm__("r8") = a5;
    char *entry = hypercall_page + nr * 32;
    long ret;
    __asm__ volatile("call *%[entry]"
                     : "=a"(ret), "+D"(a1), "+S"(a2), "+d"(a3), "+r"(r10), "+r"(r8)
                     : [entry] "b"(entry)
                     : "rcx", "r11", "r9", "memory", "cc");
    return ret;
}

_Noreturn void shut_down(unsigned reason)
{
    struct sched_shutdown arg = {.reason = reason};
    for (;;)
        hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, addr(&arg), 0, 0, 0);
}
