/*
 * A ring of fixed records, overwritten from the oldest. Writers reserve a slot with one atomic add; a reader may see a
 * record half written, which its sequence number then betrays.
 */
#include "trace.h"

#define TRACE_RECORDS 4096u
#define TRACE_SHOWN 64u

struct trace_record {
    _Atomic uint64_t sequence; /* of the record, from 1; 0 while it is written */
    uint64_t ns, a, b;
    uint16_t event, domid, vcpu_id;
};

struct trace_ring {
    _Atomic bool enabled;
    _Atomic uint32_t mask;
    _Atomic uint64_t next;
    struct trace_record record[TRACE_RECORDS];
};

int trace_init(struct hv *hv)
{
    hv->trace = calloc(1, sizeof(*hv->trace));
    if (!hv->trace)
        return -XEN_ENOMEM;
    hv->trace->mask = ~0u;
    return 0;
}

void trace_destroy(struct hv *hv)
{
    free(hv->trace);
    hv->trace = NULL;
}

void trace_enable(struct hv *hv, bool on) { atomic_store(&hv->trace->enabled, on); }
void trace_set_mask(struct hv *hv, uint32_t events) { atomic_store(&hv->trace->mask, events); }

void trace_record(struct hv *hv, enum trace_event event, uint16_t domid, uint16_t vcpu_id, uint64_t a, uint64_t b)
{
    struct trace_ring *t = hv->trace;
    if (likely(!atomic_load_explicit(&t->enabled, memory_order_relaxed)) || !(t->mask & 1u << event))
        return;
    uint64_t n = atomic_fetch_add(&t->next, 1);
    struct trace_record *r = &t->record[n % TRACE_RECORDS];
    atomic_store(&r->sequence, 0);
    r->ns = hv_now(hv);
    r->event = event;
    r->domid = domid;
    r->vcpu_id = vcpu_id;
    r->a = a;
    r->b = b;
    atomic_store(&r->sequence, n + 1);
}

static void dump_one(struct hv *hv, const struct trace_record *r, uint64_t n)
{
    static const char *const name[TRACE_nr] = {"hypercall", "run", "stop", "event"};
    struct trace_record copy;
    memcpy(&copy, r, sizeof(copy));
    if (copy.sequence != n + 1 || copy.event >= TRACE_nr)
        return;
    hv_printk(hv, "%lu.%09lu d%uv%u %s %#lx %#lx", (unsigned long)(copy.ns / NSEC_PER_SEC),
              (unsigned long)(copy.ns % NSEC_PER_SEC), copy.domid, copy.vcpu_id, name[copy.event],
              (unsigned long)copy.a, (unsigned long)copy.b);
}

void trace_dump(struct hv *hv)
{
    struct trace_ring *t = hv->trace;
    uint64_t end = atomic_load(&t->next), first = end > TRACE_SHOWN ? end - TRACE_SHOWN : 0;
    for (uint64_t n = first; n < end; n++)
        dump_one(hv, &t->record[n % TRACE_RECORDS], n);
}
