/*
 * The start of the small guest: traps, the shared page, events, console; then what the command line says.
 */
#include "small.h"

extern char trap_stubs[];
struct start_info *start_info;

enum { TRAP_STUB_BYTES = 32, NR_TRAPS = 20, PTE_PRESENT_RW_USER_AD = 0x67 };

/* Frame of a trap: rcx, r11, an error code for some, rip. Vector -1: the failsafe callback. */
_Noreturn void trap(int vector, const uint64_t *frame)
{
    bool has_error = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
    print("umxen: trap %d, error %lx, rip %lx, cr2 %lx\n", vector, has_error ? frame[2] : 0UL,
          frame[2 + has_error], shared_info.vcpu_info[0].arch.cr2);
    shut_down(SHUTDOWN_crash);
}

static void register_traps(void)
{
    struct trap_info table[NR_TRAPS + 1] = {0};
    for (int i = 0; i < NR_TRAPS; i++) {
        table[i].vector = (uint8_t)i;
        table[i].cs = FLAT_KERNEL_CS;
        table[i].address = addr(trap_stubs) + (uint64_t)i * TRAP_STUB_BYTES;
    }
    /* A row with address 0 ends the table, and NMI (2) has no row of its own. */
    hypercall(__HYPERVISOR_set_trap_table, addr(table), 0, 0, 0, 0);
}

void small_main(struct start_info *info)
{
    start_info = info;
    register_traps();
    long ret = hypercall(__HYPERVISOR_update_va_mapping, addr(&shared_info),
                         info->shared_info | PTE_PRESENT_RW_USER_AD, UVMF_INVLPG, 0, 0);
    console_init();
    print("umxen: small guest reached, %lu pages, \"%s\"\n", info->nr_pages, (const char *)info->cmd_line);
    if (ret) {
        print("umxen: the shared page cannot be mapped: %ld\n", ret);
        shut_down(SHUTDOWN_crash);
    }
    events_init();
    xenstore_init();
    behave((const char *)info->cmd_line);
    shut_down(SHUTDOWN_poweroff);
}
