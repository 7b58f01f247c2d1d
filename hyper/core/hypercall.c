/*
 * Hypercalls: one table by number, the copying of arguments from and to whoever calls, and continuations.
 *
 * A long call stops when its pCPU wants the thread back and goes on later: for a vCPU by executing the same instruction
 * again with changed registers, inside a multicall with its entry in guest memory changed, for a connection by repeating
 * the call (conn.c keeps the changed arguments).
 */
#include "hypercall.h"

#include <stdarg.h>

#include "grant_table.h"
#include "trace.h"

__thread struct caller current_caller;

/* The multicall this thread is in. */
static __thread struct multicall { bool active, preempted; struct multicall_entry entry; } multicall;

/* ---- copying ---------------------------------------------------------------------------------------------------- */

static uint8_t *arena_range(const struct hv_conn *conn, uint64_t offset, size_t bytes)
{
    if (!offset || offset > conn->arena_bytes || bytes > conn->arena_bytes - offset)
        return NULL;
    return conn->arena + offset;
}

int copy_from_guest(void *to, uint64_t from, size_t bytes)
{
    const struct caller *c = &current_caller;
    if (!bytes)
        return 0;
    if (c->vcpu)
        return engine()->read(c->vcpu, from, to, bytes) ? 0 : -XEN_EFAULT;
    const uint8_t *p = c->conn ? arena_range(c->conn, from, bytes) : NULL;
    if (!p)
        return -XEN_EFAULT;
    memcpy(to, p, bytes);
    return 0;
}

int copy_to_guest(uint64_t to, const void *from, size_t bytes)
{
    const struct caller *c = &current_caller;
    if (!bytes)
        return 0;
    if (c->vcpu)
        return engine()->write(c->vcpu, to, from, bytes) ? 0 : -XEN_EFAULT;
    uint8_t *p = c->conn ? arena_range(c->conn, to, bytes) : NULL;
    if (!p)
        return -XEN_EFAULT;
    memcpy(p, from, bytes);
    return 0;
}

int clear_guest(uint64_t to, size_t bytes)
{
    static const uint8_t zero[256];
    while (bytes) {
        size_t n = bytes < sizeof(zero) ? bytes : sizeof(zero);
        if (copy_to_guest(to, zero, n))
            return -XEN_EFAULT;
        to += n;
        bytes -= n;
    }
    return 0;
}

/* ---- continuations ---------------------------------------------------------------------------------------------- */

bool hypercall_preempt_check(void)
{
    const struct caller *c = &current_caller;
    if (c->vcpu)
        return atomic_load_explicit(&c->vcpu->kick, memory_order_relaxed) || sched_must_stop(c->vcpu);
    return c->conn && hv_now(c->conn->hv) > c->channel->deadline_ns;
}

static void continue_vcpu(struct vcpu *v, unsigned nr, unsigned nr_args, const uint64_t *args)
{
    static const enum reg argument[6] = {RDI, RSI, RDX, R10, R8, R9};
    v->cpu->regs[RAX] = nr;
    for (unsigned i = 0; i < nr_args; i++)
        v->cpu->regs[argument[i]] = args[i];
    v->hypercall_restarts++;
}

int64_t hypercall_continue(unsigned nr, unsigned nr_args, ...)
{
    uint64_t args[6] = {0};
    va_list list;
    va_start(list, nr_args);
    for (unsigned i = 0; i < nr_args && i < 6; i++)
        args[i] = va_arg(list, uint64_t);
    va_end(list);
    const struct caller *c = &current_caller;
    if (multicall.active) {
        multicall.entry.op = nr;
        memcpy(multicall.entry.args, args, nr_args * sizeof(args[0]));
    } else if (c->vcpu) {
        continue_vcpu(c->vcpu, nr, nr_args, args);
    } else if (c->conn) {
        c->channel->continuation.valid = true;
        memcpy(c->channel->continuation.args, args, sizeof(args));
    }
    return -XEN_ERESTART;
}

/* ---- multicall -------------------------------------------------------------------------------------------------- */

static int64_t do_multicall(uint64_t list, uint64_t count)
{
    uint32_t nr_calls = (uint32_t)count;
    if (multicall.active)
        return -XEN_EINVAL;
    for (uint32_t i = 0; i < nr_calls; i++, list += sizeof(struct multicall_entry)) {
        if (i && hypercall_preempt_check())
            return hypercall_continue(__HYPERVISOR_multicall, 2, list, (uint64_t)(nr_calls - i));
        if (copy_from_guest(&multicall.entry, list, sizeof(multicall.entry)))
            return -XEN_EFAULT;
        multicall.active = true;
        int64_t ret = do_hypercall(multicall.entry.op, multicall.entry.args);
        multicall.active = false;
        if (ret == HYPERCALL_LEFT) /* the rest would run as calls of user mode */
            return ret;
        if (ret == -XEN_ERESTART) { /* the rest of this one, then the others */
            if (copy_to_guest(list, &multicall.entry, sizeof(multicall.entry)))
                return -XEN_EFAULT;
            return hypercall_continue(__HYPERVISOR_multicall, 2, list, (uint64_t)(nr_calls - i));
        }
        if (copy_to_guest(list + offsetof(struct multicall_entry, result), &ret, sizeof(ret)))
            return -XEN_EFAULT;
    }
    return 0;
}

static int64_t leave(struct vcpu *v)
{
    do_iret(v);
    return HYPERCALL_LEFT;
}

/* ---- calls in older clothes ------------------------------------------------------------------------------------- */

static int64_t event_channel_op_compat(const struct caller *c, uint64_t arg)
{
    uint32_t cmd;
    if (copy_from_guest(&cmd, arg, sizeof(cmd)))
        return -XEN_EFAULT;
    return do_event_channel_op(c->vcpu, c->domain, c->conn, cmd, arg + 4);
}

static int64_t sched_op_compat(const struct caller *c, uint64_t cmd, uint64_t arg)
{
    enum { yield = 0, block = 1, shutdown = 2 };
    if ((uint32_t)cmd == shutdown) {
        domain_shutdown(c->domain, (uint8_t)arg);
        return 0;
    }
    return (uint32_t)cmd <= block ? do_sched_op(c->vcpu, c->domain, cmd, 0) : -XEN_ENOSYS;
}

static int64_t update_va_mapping_otherdomain(const struct caller *c, const uint64_t *a)
{
    if ((uint16_t)a[3] != DOMID_SELF && (uint16_t)a[3] != c->domain->id)
        return -XEN_EPERM;
    return do_update_va_mapping(c->vcpu, a[0], a[1], a[2]);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

typedef int64_t call_fn(const struct caller *c, const uint64_t *a);

#define CALL(name, expression)                                                                                        \
    static int64_t call_##name(const struct caller *c, const uint64_t *a)                                             \
    {                                                                                                                 \
        (void)c, (void)a;                                                                                             \
        return expression;                                                                                            \
    }

CALL(set_trap_table, do_set_trap_table(c->vcpu, a[0]))
CALL(mmu_update, do_mmu_update(c->vcpu, c->domain, a[0], a[1], a[2], a[3]))
CALL(set_gdt, do_set_gdt(c->vcpu, a[0], a[1]))
CALL(stack_switch, do_stack_switch(c->vcpu, a[0], a[1]))
CALL(set_callbacks, do_set_callbacks(c->vcpu, a[0], a[1], a[2]))
CALL(fpu_taskswitch, do_fpu_taskswitch(c->vcpu, a[0]))
CALL(sched_op_compat, sched_op_compat(c, a[0], a[1]))
CALL(set_debugreg, do_set_debugreg(c->vcpu, a[0], a[1]))
CALL(get_debugreg, do_get_debugreg(c->vcpu, a[0]))
CALL(update_descriptor, do_update_descriptor(c->vcpu, a[0], a[1]))
CALL(memory_op, do_memory_op(c->vcpu, c->domain, a[0], a[1]))
CALL(multicall, do_multicall(a[0], a[1]))
CALL(update_va_mapping, do_update_va_mapping(c->vcpu, a[0], a[1], a[2]))
CALL(set_timer_op, do_set_timer_op(c->vcpu, a[0]))
CALL(event_channel_op_compat, event_channel_op_compat(c, a[0]))
CALL(xen_version, do_xen_version(c->domain, a[0], a[1]))
CALL(console_io, do_console_io(c->vcpu, a[0], a[1], a[2]))
CALL(grant_table_op, do_grant_table_op(c->vcpu, c->domain, c->conn, a[0], a[1], a[2]))
CALL(vm_assist, do_vm_assist(c->domain, a[0], a[1]))
CALL(update_va_mapping_otherdomain, update_va_mapping_otherdomain(c, a))
CALL(iret, leave(c->vcpu))
CALL(vcpu_op, do_vcpu_op(c->vcpu, a[0], a[1], a[2]))
CALL(set_segment_base, do_set_segment_base(c->vcpu, a[0], a[1]))
CALL(mmuext_op, do_mmuext_op(c->vcpu, c->domain, a[0], a[1], a[2], a[3]))
CALL(sched_op, do_sched_op(c->vcpu, c->domain, a[0], a[1]))
CALL(callback_op, do_callback_op(c->vcpu, a[0], a[1]))
CALL(event_channel_op, do_event_channel_op(c->vcpu, c->domain, c->conn, a[0], a[1]))
CALL(physdev_op, do_physdev_op(c->vcpu, a[0], a[1]))
CALL(sysctl, do_sysctl(c->domain, a[0]))
CALL(domctl, do_domctl(c->domain, a[0]))

enum { FOR_VCPUS = 1, FOR_PROCESSES = 2, FOR_ALL = 3, FOR_DOM0 = 4 };

#define ENTRY(n, who) [__HYPERVISOR_##n] = {call_##n, who}
static const struct { call_fn *function; uint8_t who; } table[] = {
    ENTRY(set_trap_table, FOR_VCPUS),
    ENTRY(mmu_update, FOR_ALL),
    ENTRY(set_gdt, FOR_VCPUS),
    ENTRY(stack_switch, FOR_VCPUS),
    ENTRY(set_callbacks, FOR_VCPUS),
    ENTRY(fpu_taskswitch, FOR_VCPUS),
    ENTRY(sched_op_compat, FOR_VCPUS),
    ENTRY(set_debugreg, FOR_VCPUS),
    ENTRY(get_debugreg, FOR_VCPUS),
    ENTRY(update_descriptor, FOR_VCPUS),
    ENTRY(memory_op, FOR_ALL),
    ENTRY(multicall, FOR_ALL),
    ENTRY(update_va_mapping, FOR_VCPUS),
    ENTRY(set_timer_op, FOR_VCPUS),
    ENTRY(event_channel_op_compat, FOR_ALL),
    ENTRY(xen_version, FOR_ALL),
    ENTRY(console_io, FOR_ALL),
    ENTRY(grant_table_op, FOR_ALL),
    ENTRY(vm_assist, FOR_VCPUS),
    ENTRY(update_va_mapping_otherdomain, FOR_VCPUS),
    ENTRY(iret, FOR_VCPUS),
    ENTRY(vcpu_op, FOR_VCPUS),
    ENTRY(set_segment_base, FOR_VCPUS),
    ENTRY(mmuext_op, FOR_ALL),
    ENTRY(sched_op, FOR_ALL),
    ENTRY(callback_op, FOR_VCPUS),
    ENTRY(event_channel_op, FOR_ALL),
    ENTRY(physdev_op, FOR_VCPUS),
    ENTRY(sysctl, FOR_ALL | FOR_DOM0),
    ENTRY(domctl, FOR_ALL | FOR_DOM0),
};

/* Calls of a real Xen that an unprivileged domain may not make, and that we haven't built for Dom0. */
static int64_t not_built(const struct caller *c, uint64_t nr)
{
    return nr == __HYPERVISOR_platform_op && !c->domain->is_privileged ? -XEN_EPERM : -XEN_ENOSYS;
}

int64_t do_hypercall(uint64_t nr, const uint64_t args[6])
{
    const struct caller *c = &current_caller;
    if (nr >= ARRAY_SIZE(table) || !table[nr].function)
        return not_built(c, nr);
    trace_record(c->domain->hv, TRACE_hypercall, c->domain->id, c->vcpu ? (uint16_t)c->vcpu->id : 0, nr, args[0]);
    if (!(table[nr].who & (c->vcpu ? FOR_VCPUS : FOR_PROCESSES)))
        return -XEN_EPERM;
    if ((table[nr].who & FOR_DOM0) && !c->domain->is_privileged)
        return -XEN_EPERM;
    return table[nr].function(c, args);
}
