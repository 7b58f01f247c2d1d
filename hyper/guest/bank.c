/*
 * One reservation for all banks, so that C code finds any frame by one addition. What is not mapped faults; what has been
 * mapped stays until the window goes. The start is aligned so that the host can back a bank with huge pages.
 */
#define _GNU_SOURCE
#include "bank.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

#define HUGE_BYTES (2ull << 20)

void *bank_reserve(uint64_t bytes)
{
    uint8_t *room = mmap(NULL, bytes + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return NULL;
    uint8_t *window = (uint8_t *)(((uintptr_t)room + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1));
    if (window > room)
        munmap(room, (size_t)(window - room));
    if (window < room + HUGE_BYTES)
        munmap(window + bytes, (size_t)(room + HUGE_BYTES - window));
    return window;
}

void bank_release(void *window, uint64_t bytes) { munmap(window, bytes); }

int bank_map(void *window, uint64_t offset, int fd, uint64_t bytes)
{
    void *at = (uint8_t *)window + offset;
    return mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ? errno : 0;
}
