/*
 * Event channels (2-level) and time of vCPU 0.
 *
 * The upcall moves pending bits into `fired`; those who wait look there with upcalls masked. SCHEDOP_block
 * unmasks and sleeps in one step, so an event between the look and the sleep is not lost.
 */
#include "small.h"
#include "callback.h"

extern char event_entry[], failsafe_entry[];

static volatile uint64_t fired;

static volatile struct vcpu_info *vcpu(void) { return &shared_info.vcpu_info[0]; }

void handle_events(void)
{
    vcpu()->evtchn_upcall_pending = 0;
    if (__atomic_exchange_n(&vcpu()->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST))
        fired |= __atomic_exchange_n(&shared_info.evtchn_pending[0], 0, __ATOMIC_SEQ_CST);
}

static void mask_events(void)
{
    vcpu()->evtchn_upcall_mask = 1;
    barrier();
}

static void unmask_events(void)
{
    barrier();
    vcpu()->evtchn_upcall_mask = 0;
    barrier();
    if (vcpu()->evtchn_upcall_pending)
        hypercall(__HYPERVISOR_xen_version, 0, 0, 0, 0, 0); /* any call delivers what is pending */
}

void events_init(void)
{
    struct callback_register event = {.type = CALLBACKTYPE_event, .address = addr(event_entry)};
    struct callback_register failsafe = {.type = CALLBACKTYPE_failsafe, .address = addr(failsafe_entry)};
    hypercall(__HYPERVISOR_callback_op, CALLBACKOP_register, addr(&event), 0, 0, 0);
    hypercall(__HYPERVISOR_callback_op, CALLBACKOP_register, addr(&failsafe), 0, 0, 0);
    memset((void *)shared_info.evtchn_mask, 0, sizeof(shared_info.evtchn_mask));
    unmask_events();
}

uint32_t bind_virq(uint32_t virq)
{
    struct evtchn_bind_virq bind = {.virq = virq};
    long ret = hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, addr(&bind), 0, 0, 0);
    return ret ? 0 : bind.port;
}

void notify(uint32_t port)
{
    struct evtchn_send send = {.port = port};
    hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_send, addr(&send), 0, 0, 0);
}

bool take_events(uint64_t ports)
{
    return __atomic_fetch_and(&fired, ~ports, __ATOMIC_SEQ_CST) & ports;
}

void wait_events(uint64_t ports)
{
    for (;;) {
        mask_events();
        if (fired & ports)
            break;
        hypercall(__HYPERVISOR_sched_op, SCHEDOP_block, 0, 0, 0, 0);
    }
    take_events(ports);
    unmask_events();
}

uint64_t system_time_ns(void)
{
    volatile struct vcpu_time_info *time = &vcpu()->time;
    for (;;) {
        uint32_t version = time->version;
        barrier();
        uint32_t low, high;
        __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
        uint64_t delta = ((uint64_t)high << 32 | low) - time->tsc_timestamp;
        delta = time->tsc_shift < 0 ? delta >> -time->tsc_shift : delta << time->tsc_shift;
        unsigned __int128 scaled = (unsigned __int128)delta * time->tsc_to_system_mul;
        uint64_t ns = time->system_time + (uint64_t)(scaled >> 32);
        barrier();
        if (!(version & 1) && version == time->version)
            return ns;
    }
}
