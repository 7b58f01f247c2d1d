/*
 * FIFO event channels as a guest sees them: the words and queues after it has sent to itself, and a guest that changes
 * everything it shares all the time. Built and run as hostile_tests.c is.
 */
#include "kit.h"

#define PENDING (1u << EVTCHN_FIFO_PENDING)
#define MASKED (1u << EVTCHN_FIFO_MASKED)
#define LINKED (1u << EVTCHN_FIFO_LINKED)
#define CONTROL_FRAME SPARE
#define ARRAY_FRAME (SPARE + 1)
#define CONTROL ((struct evtchn_fifo_control_block *)(DATA + (CONTROL_FRAME - DATA_FRAME) * PAGE + CONTROL_OFFSET))
#define WORDS ((volatile event_word_t *)(DATA + (ARRAY_FRAME - DATA_FRAME) * PAGE))
#define CONTROL_OFFSET 128u

struct fifo_data {
    struct evtchn_init_control control[2];
    struct evtchn_expand_array array;
    struct evtchn_bind_ipi ipi[4];
    struct evtchn_set_priority priority;
    struct evtchn_send send;
    struct evtchn_unmask unmask;
    int64_t failed; /* the line, or 0 */
    _Atomic bool ready, done;
    _Atomic uint32_t rounds;
};

#define MUST(data, c)                                                                                                 \
    do {                                                                                                              \
        if (!(c) && !(data)->failed)                                                                                  \
            (data)->failed = __LINE__;                                                                                \
    } while (0)

GUEST static int64_t event_op(uint32_t cmd, void *arg) { return guest_call(__HYPERVISOR_event_channel_op, cmd, (uint64_t)arg, 0, 0); }

GUEST static void send_to(struct fifo_data *d, uint32_t port)
{
    d->send.port = port;
    MUST(d, !event_op(EVTCHNOP_send, &d->send));
}

GUEST static void set_up(struct fifo_data *d)
{
    MUST(d, event_op(EVTCHNOP_expand_array, &d->array) == -XEN_EOPNOTSUPP);
    MUST(d, !event_op(EVTCHNOP_init_control, &d->control[0]));
    MUST(d, d->control[0].link_bits == EVTCHN_FIFO_LINK_BITS);
    MUST(d, event_op(EVTCHNOP_init_control, &d->control[0]) == -XEN_EINVAL); /* it has one */
    for (int i = 0; i < 4; i++)
        MUST(d, !event_op(EVTCHNOP_bind_ipi, &d->ipi[i]));
}

GUEST static void finish(struct fifo_data *d)
{
    atomic_store(&d->done, true);
    for (;;)
        guest_call(__HYPERVISOR_sched_op, SCHEDOP_block, 0, 0, 0);
}

GUEST static void queues(void *data, uint32_t vcpu)
{
    struct fifo_data *d = data;
    (void)vcpu;
    set_up(d);
    uint32_t a = d->ipi[0].port, b = d->ipi[1].port, urgent = d->ipi[2].port, masked = d->ipi[3].port;
    send_to(d, a); /* there is no word for it yet */
    d->priority = (struct evtchn_set_priority){urgent, EVTCHN_FIFO_PRIORITY_MIN + 1};
    MUST(d, event_op(EVTCHNOP_set_priority, &d->priority) == -XEN_EINVAL);
    d->priority.priority = EVTCHN_FIFO_PRIORITY_MAX;
    MUST(d, !event_op(EVTCHNOP_set_priority, &d->priority));
    WORDS[masked] = MASKED;
    MUST(d, !event_op(EVTCHNOP_expand_array, &d->array));
    send_to(d, b);
    send_to(d, b);
    send_to(d, urgent);
    send_to(d, masked);
    MUST(d, CONTROL->ready == (1u << EVTCHN_FIFO_PRIORITY_DEFAULT | 1u << EVTCHN_FIFO_PRIORITY_MAX));
    MUST(d, CONTROL->head[EVTCHN_FIFO_PRIORITY_DEFAULT] == a && CONTROL->head[EVTCHN_FIFO_PRIORITY_MAX] == urgent);
    MUST(d, WORDS[a] == (PENDING | LINKED | b) && WORDS[b] == (PENDING | LINKED) && WORDS[urgent] == (PENDING | LINKED));
    MUST(d, WORDS[masked] == (PENDING | MASKED));
    d->unmask.port = masked;
    MUST(d, !event_op(EVTCHNOP_unmask, &d->unmask));
    MUST(d, WORDS[masked] == (PENDING | LINKED) && WORDS[b] == (PENDING | LINKED | masked));
    /* The guest takes all three; the queue is empty, though its tail is remembered, and begins anew. */
    WORDS[a] = WORDS[b] = WORDS[masked] = 0;
    CONTROL->head[EVTCHN_FIFO_PRIORITY_DEFAULT] = 0;
    CONTROL->ready = 0;
    send_to(d, masked);
    send_to(d, a);
    MUST(d, CONTROL->head[EVTCHN_FIFO_PRIORITY_DEFAULT] == masked && WORDS[masked] == (PENDING | LINKED | a));
    finish(d);
}

/* vCPU 1 changes the words and the control block while vCPU 0 sends: whatever becomes of its events, nothing else does. */
GUEST static void garbage(void *data, uint32_t vcpu)
{
    struct fifo_data *d = data;
    uint64_t random = 88172645463325252ull;
    if (vcpu == 1) {
        while (!atomic_load(&d->ready))
            ;
        for (;;) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            WORDS[random % 8] = (uint32_t)(random >> 32);
            CONTROL->head[random % 16] = (uint32_t)(random >> 20);
            CONTROL->ready = (uint32_t)(random >> 10);
        }
    }
    set_up(d);
    MUST(d, !event_op(EVTCHNOP_expand_array, &d->array));
    atomic_store(&d->ready, true);
    for (uint32_t i = 0; i < 20000; i++) {
        send_to(d, d->ipi[i % 4].port);
        d->priority = (struct evtchn_set_priority){d->ipi[i % 4].port, i % 16};
        event_op(EVTCHNOP_set_priority, &d->priority);
        d->unmask.port = d->ipi[(i + 1) % 4].port;
        event_op(EVTCHNOP_unmask, &d->unmask);
    }
    finish(d);
}

static void run_guest(void (*kernel)(void *data, uint32_t vcpu), uint32_t nr_vcpus)
{
    struct machine m;
    struct guest g;
    machine_start(&m, 2);
    guest_create(&g, &m, nr_vcpus);
    for (unsigned n = CONTROL_FRAME; n <= ARRAY_FRAME; n++)
        set_pte(&g, L1, n - CODE_FRAME, n, PTE_WRITE);
    struct fifo_data *d = g.data;
    d->control[0] = (struct evtchn_init_control){.control_gfn = g.mfn[CONTROL_FRAME], .offset = CONTROL_OFFSET};
    d->array.array_gfn = g.mfn[ARRAY_FRAME];
    guest_start(&g, kernel);
    wait_until_set(&d->done);
    if (d->failed)
        fprintf(stderr, "%s:%d: a condition in the guest\n", __FILE__, (int)d->failed);
    CHECK(!d->failed);
    guest_destroy(&g);
    machine_end(&m);
}

static void words_and_queues(void) { run_guest(queues, 1); }
static void a_guest_that_changes_them(void) { run_guest(garbage, 2); }

PROGRAM(20,
        T(words_and_queues),
        T(a_guest_that_changes_them))
