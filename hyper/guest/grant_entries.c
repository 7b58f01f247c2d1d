/*
 * A grant table entry is shared with the hypervisor, which marks it while it is in use. So the order matters: frame and
 * grantee are written before the flags that make the entry valid, and it is ended by exchanging the flags for zero only
 * while no mark is in them; whoever marks it does so by an exchange as well, so one of the two fails.
 */
#include "grant_entries.h"

#define GTF_used (GTF_reading | GTF_writing)

void grant_entry_set(struct grant_entry_v1 *entry, uint16_t domid, uint32_t frame, int readonly)
{
    __atomic_store_n(&entry->frame, frame, __ATOMIC_RELAXED);
    __atomic_store_n(&entry->domid, domid, __ATOMIC_RELAXED);
    uint16_t flags = (uint16_t)(GTF_permit_access | (readonly ? GTF_readonly : 0));
    __atomic_store_n(&entry->flags, flags, __ATOMIC_RELEASE);
}

int grant_entry_end(struct grant_entry_v1 *entry)
{
    uint16_t flags = __atomic_load_n(&entry->flags, __ATOMIC_RELAXED);
    do {
        if (flags & GTF_used)
            return -1;
    } while (!__atomic_compare_exchange_n(&entry->flags, &flags, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return 0;
}

int grant_entry_is_used(const struct grant_entry_v1 *entry)
{
    return (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & GTF_used) != 0;
}
