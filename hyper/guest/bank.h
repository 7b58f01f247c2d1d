/*
 * The window in which a process sees machine memory: frame mfn at window + (mfn << 12), whichever bank it lies in.
 */
#ifndef UMXEN_GUEST_BANK_H
#define UMXEN_GUEST_BANK_H
#include <stdint.h>

/* cffi: begin */
/* Address space without memory, at a multiple of 2 MiB; NULL: there is none. */
void *bank_reserve(uint64_t bytes);
void bank_release(void *window, uint64_t bytes);
/* Maps `bytes` of the memfd into the window, at `offset`; 0 or the host's errno. */
int bank_map(void *window, uint64_t offset, int fd, uint64_t bytes);
/* cffi: end */
#endif
