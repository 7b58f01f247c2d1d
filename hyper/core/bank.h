/*
 * Banks of process domains: see bank.c.
 */
#ifndef UMXEN_BANK_H
#define UMXEN_BANK_H
#include "base.h"
#include "hv.h"

struct domain;
struct page_info;

struct bank {
    struct hv *hv;
    struct list link;      /* of hv->banks, by mfn; guarded by heap_lock */
    int fd;
    uint64_t base, nr_frames, serial;
    uint64_t nr_taken;     /* frames that have an owner or had one: handed out in order */
    uint64_t nr_live;      /* frames whose last reference is not gone; guarded by heap_lock */
    struct hv_process start; /* what a process domain finds at its start */
};

/* A bank of its own for a domain to be: `nr_frames` of the machine's budget. 0 or -XEN_E*. */
int bank_create(struct hv *hv, uint64_t nr_frames, struct bank **out);
/* All its frames are back; NULL is allowed. */
void bank_destroy(struct bank *b);
/* The next frame, its record all zero but for PGC_bank; NULL when there is none. */
struct page_info *bank_take(struct bank *b);
#endif
