/*
 * The hypercall ring: memory that a process of a process domain shares with the hypervisor. Ours, not Xen's.
 *
 * One producer (a thread of the process), one consumer (a thread of the hypervisor). Indices are free-running; entry i is
 * entry[i % HCALL_RING_ENTRIES]. The producer fills entries, then stores req_prod; the consumer serves them in order, stores
 * `ret` into each and counts rsp_prod up. A side that is about to sleep says so in its `waits` word and looks once more; the
 * other side stores its index first and looks at `waits` afterwards, both with a full barrier between. The consumer sleeps in
 * a read of the doorbell socket (one byte wakes it), the producer in a futex on rsp_prod.
 */
#ifndef UMXEN_PUBLIC_HCALL_RING_H
#define UMXEN_PUBLIC_HCALL_RING_H
#include <stdint.h>

#define HCALL_RING_ENTRIES 16u
#define HCALL_RING_BYTES 4096u

struct hcall_entry {
    uint64_t nr, args[5];
    int64_t ret; /* never -XEN_ERESTART */
    uint64_t reserved;
};

struct hcall_page {
    uint32_t req_prod, client_waits; /* the process's */
    uint32_t pad0[14];
    uint32_t rsp_prod, server_waits; /* the hypervisor's */
    uint32_t closed;                 /* nothing is served any more: req_prod made no sense, or the connection ended */
    uint32_t pad1[13];
    struct hcall_entry entry[HCALL_RING_ENTRIES];
};

_Static_assert(sizeof(struct hcall_entry) == 64, "one cache line");
_Static_assert(sizeof(struct hcall_page) == 128 + 64 * HCALL_RING_ENTRIES, "layout");
#endif
