/*
 * Hypercalls through a ring, for C threads of a process: no trio, no socket message, no GIL. See hcall.c. Any extension
 * module may compile hcall.c into itself.
 */
#ifndef UMXEN_GUEST_HCALL_H
#define UMXEN_GUEST_HCALL_H
#include <stdint.h>

#include "grant_table.h"

/* cffi: begin */
struct hcall_ring;

/* `memfd` and `doorbell_fd` stay the caller's and open while the ring is; `window` is where this process sees the piece of
 * its arena whose guest handle is `window_addr`: room for arguments. NULL: no memory. */
struct hcall_ring *hcall_open(int memfd, int doorbell_fd, void *window, uint64_t window_addr, uint32_t window_bytes);
void hcall_close(struct hcall_ring *ring);
/* One hypercall, by one thread at a time; blocks until it is done. -XEN_EIO: the hypervisor is gone, or ended the ring. */
int64_t hcall(struct hcall_ring *ring, uint32_t nr, const uint64_t args[5]);
/* Any number of grant operations, split as the window asks for. 0: all were tried, and each op has its status; -XEN_E*: of the
 * ops that were not tried the status is unchanged. */
int hcall_grant_map(struct hcall_ring *ring, struct gnttab_map_grant_ref *ops, uint32_t n);
int hcall_grant_unmap(struct hcall_ring *ring, struct gnttab_unmap_grant_ref *ops, uint32_t n);
int hcall_grant_copy(struct hcall_ring *ring, struct gnttab_copy *ops, uint32_t n);
/* cffi: end */
#endif
