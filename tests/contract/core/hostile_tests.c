/*
 * What guests and Dom0's processes once could do to the hypervisor. Each test is a function named in the table at the end;
 * the program, which has the whole core in it and runs under the address sanitizer, runs the one it is asked for. It
 * fails by abort, by the sanitizer, or by its alarm.
 */
#include "kit.h"

/* ---- a domain that is being freed ------------------------------------------------------------------------------- */

struct looker { struct process process; _Atomic uint16_t domid; _Atomic bool stop; };

static void *look_up(void *data)
{
    struct looker *l = data;
    while (!atomic_load(&l->stop)) {
        struct evtchn_status op = {.dom = atomic_load(&l->domid), .port = 1};
        uint64_t handle = give(&l->process, &op, sizeof(op));
        int64_t rc = call(&l->process, __HYPERVISOR_event_channel_op, EVTCHNOP_status, handle, 0, 0);
        CHECK(rc == 0 || rc == -XEN_ESRCH);
    }
    return NULL;
}

/* A lookup found a domain whose last reference was gone: it took the next one, dropped it, and the domain was freed twice.
 * All it took was a process that asked for a guest's ports while it was destroyed. */
static void lookups_of_a_domain_being_freed(void)
{
    struct machine m;
    struct looker l[2] = {0}; /* when one drops the last reference, the other may still find the domain */
    pthread_t thread[2];
    machine_start(&m, 1);
    for (int k = 0; k < 2; k++) {
        process_start(&l[k].process, m.hv);
        CHECK(!pthread_create(&thread[k], NULL, look_up, &l[k]));
    }
    for (int i = 0; i < 200; i++) {
        uint16_t domid = create_domain(&m.dom0, 1);
        for (int k = 0; k < 2; k++)
            atomic_store(&l[k].domid, domid);
        destroy_domain(&m.dom0, domid);
    }
    for (int k = 0; k < 2; k++) {
        atomic_store(&l[k].stop, true);
        pthread_join(thread[k], NULL);
        process_end(&l[k].process);
    }
    machine_end(&m);
}

/* ---- timers of a stopped vCPU ----------------------------------------------------------------------------------- */

struct timer_data { _Atomic bool running[MAX_GUEST_VCPUS]; struct vcpu_set_periodic_timer timer; };

GUEST static void set_timer_of_vcpu_0(void *data, uint32_t vcpu)
{
    struct timer_data *shared = data;
    for (;;) {
        guest_call(__HYPERVISOR_vcpu_op, VCPUOP_set_periodic_timer, 0, (uint64_t)&shared->timer, 0);
        atomic_store(&shared->running[vcpu], true);
    }
}

/* Of a killed domain each vCPU was stopped and its timers with it, one after the other: those that still ran set the first
 * one's again. It stayed in the timer heap when its vCPU was freed. */
static void timers_of_a_stopped_vcpu(void)
{
    struct machine m;
    struct guest g;
    machine_start(&m, 6);
    for (int i = 0; i < 20; i++) {
        guest_create(&g, &m, 6);
        struct timer_data *shared = g.data;
        shared->timer.period_ns = 100 * MS;
        guest_start(&g, set_timer_of_vcpu_0);
        for (uint32_t n = 0; n < g.nr_vcpus; n++)
            wait_until_set(&shared->running[n]);
        guest_destroy(&g);
    }
    machine_end(&m);
}

/* ---- a trap table without an end -------------------------------------------------------------------------------- */

#define ENDLESS (1ull << 39) /* the second slot of the L4 */

GUEST static void set_endless_trap_table(void *data, uint32_t vcpu)
{
    (void)vcpu;
    atomic_store((_Atomic bool *)data, true);
    guest_call(__HYPERVISOR_set_trap_table, ENDLESS, 0, 0, 0);
    for (;;)
        ;
}

/* set_trap_table read on until an entry without address, and looked at nothing else. 512 GiB of entries, which cost a guest
 * four frames, kept a pCPU for hours; and the control thread too, once it wanted to pause that guest. */
static void endless_trap_table(void)
{
    enum { TABLE_L3 = SPARE, TABLE_L2, TABLE_L1, TABLE };
    struct machine m;
    struct guest g;
    machine_start(&m, 1);
    guest_create(&g, &m, 1);
    set_pte(&g, L4, ENDLESS >> 39, TABLE_L3, PTE_WRITE);
    struct trap_info *entry = frame_of(&g, TABLE);
    for (unsigned i = 0; i < 512; i++) {
        set_pte(&g, TABLE_L3, i, TABLE_L2, PTE_WRITE);
        set_pte(&g, TABLE_L2, i, TABLE_L1, PTE_WRITE);
        set_pte(&g, TABLE_L1, i, TABLE, PTE_WRITE);
        entry[i % (PAGE / sizeof(*entry))].address = CODE;
    }
    guest_start(&g, set_endless_trap_table);
    wait_until_set(g.data);
    sleep_ns(20 * MS);
    simple_domctl(&m.dom0, XEN_DOMCTL_pausedomain, g.domid);
    guest_destroy(&g);
    machine_end(&m);
}

/* ---- page tables of another domain ------------------------------------------------------------------------------ */

struct update_data { uint32_t foreigndom[2]; int64_t result[2]; _Atomic bool done; };

GUEST static void update_foreign_tables(void *data, uint32_t vcpu)
{
    (void)vcpu;
    struct update_data *shared = data;
    for (unsigned i = 0; i < 2; i++)
        shared->result[i] = guest_call(__HYPERVISOR_mmu_update, 0, 0, 0, shared->foreigndom[i]);
    atomic_store(&shared->done, true);
    for (;;)
        guest_call(__HYPERVISOR_sched_op, SCHEDOP_block, 0, 0, 0);
}

/* mmu_update took the lock of the domain that its caller named, and then refused request after request: any guest could
 * slow down any other. Without a request it took the lock and said yes, which is what shows here. */
static void mmu_update_of_a_foreign_domain(void)
{
    struct machine m;
    struct guest g;
    machine_start(&m, 1);
    uint16_t other = create_domain(&m.dom0, 1);
    guest_create(&g, &m, 1);
    struct update_data *shared = g.data;
    shared->foreigndom[0] = other;                         /* its frames */
    shared->foreigndom[1] = (other + 1u) << 16 | DOMID_SELF; /* its tables */
    guest_start(&g, update_foreign_tables);
    wait_until_set(&shared->done);
    CHECK(shared->result[0] == -XEN_EPERM);
    CHECK(shared->result[1] == -XEN_EPERM);
    guest_destroy(&g);
    destroy_domain(&m.dom0, other);
    machine_end(&m);
}

/* ---- unmapping a lot at once ------------------------------------------------------------------------------------ */

/* When an entry of a page table went, code in the frames below it was looked for through all its tables. 2^27 entries, of
 * three tables that point to the next 512 times each, took a second or two under the domain lock. */
static void unmap_of_a_high_level_entry(void)
{
    enum { WIDE_L3 = SPARE, WIDE_L2, WIDE_L1, LEAF };
    struct machine m;
    struct guest g;
    machine_start(&m, 1);
    guest_create(&g, &m, 1);
    for (unsigned i = 0; i < 512; i++) {
        set_pte(&g, WIDE_L3, i, WIDE_L2, PTE_WRITE);
        set_pte(&g, WIDE_L2, i, WIDE_L1, PTE_WRITE);
        set_pte(&g, WIDE_L1, i, LEAF, PTE_READ);
    }
    set_pte(&g, L4, 1, WIDE_L3, PTE_WRITE);
    set_pte(&g, L4, 2, WIDE_L3, PTE_WRITE); /* so that the tables stay tables when the first entry goes */
    struct mmuext_op pin = {.cmd = MMUEXT_PIN_L4_TABLE, .arg1.mfn = g.mfn[L4]};
    CHECK(!call(&m.dom0, __HYPERVISOR_mmuext_op, give(&m.dom0, &pin, sizeof(pin)), 1, 0, g.domid));
    struct mmu_update clear = {.ptr = g.mfn[L4] * PAGE + 1 * sizeof(uint64_t)};
    uint64_t handle = give(&m.dom0, &clear, sizeof(clear)), owners = (g.domid + 1u) << 16 | g.domid;
    uint64_t began = thread_cpu_ns();
    CHECK(!call(&m.dom0, __HYPERVISOR_mmu_update, handle, 1, 0, owners));
    CHECK(thread_cpu_ns() - began < 50 * MS);
    guest_destroy(&g);
    machine_end(&m);
}

/* ---- a polled port that changes --------------------------------------------------------------------------------- */

#define POLLS 10000u

struct poll_data { struct sched_poll poll; _Atomic uint32_t port, polls; _Atomic bool done; };

GUEST static void poll_a_changing_port(void *data, uint32_t vcpu)
{
    struct poll_data *shared = data;
    if (vcpu == 1)
        for (uint32_t i = 0;; i++)
            atomic_store_explicit(&shared->port, i & 4, memory_order_relaxed);
    while (!atomic_load(&shared->port))
        ; /* the other runs now */
    while (atomic_fetch_add(&shared->polls, 1) < POLLS)
        while (guest_call(__HYPERVISOR_sched_op, SCHEDOP_poll, (uint64_t)&shared->poll, 0, 0))
            ; /* the port was 0: not one that can be polled */
    atomic_store(&shared->done, true);
    for (;;)
        guest_call(__HYPERVISOR_sched_op, SCHEDOP_block, 0, 0, 0);
}

/* SCHEDOP_poll reads the port of a single one twice. When it was 0 at first, which meant "does not poll", and a port the
 * second time, the vCPU slept and neither its timeout nor any port woke it. */
static void poll_of_a_changing_port(void)
{
    struct machine m;
    struct guest g;
    machine_start(&m, 2);
    guest_create(&g, &m, 2);
    struct poll_data *shared = g.data;
    shared->poll = (struct sched_poll){
        .ports = DATA + offsetof(struct poll_data, port), .nr_ports = 1, .timeout = 1 /* long ago */};
    guest_start(&g, poll_a_changing_port);
    wait_until_set(&shared->done);
    guest_destroy(&g);
    machine_end(&m);
}

PROGRAM(20,
        T(lookups_of_a_domain_being_freed),
        T(timers_of_a_stopped_vcpu),
        T(endless_trap_table),
        T(mmu_update_of_a_foreign_domain),
        T(unmap_of_a_high_level_entry),
        T(poll_of_a_changing_port))
