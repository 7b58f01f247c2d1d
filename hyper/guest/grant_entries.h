/*
 * Entries of a domain's own grant table, as its owner writes them. See grant_entries.c.
 */
#ifndef UMXEN_GUEST_GRANT_ENTRIES_H
#define UMXEN_GUEST_GRANT_ENTRIES_H
#include <stdint.h>

#include "grant_table.h"

/* cffi: begin */
/* The entry must not be in use. Memory written before is seen by who maps the frame. */
void grant_entry_set(struct grant_entry_v1 *entry, uint16_t domid, uint32_t frame, int readonly);
/* 0: nobody can use the frame through this entry any more. -1: somebody does, try again later. */
int grant_entry_end(struct grant_entry_v1 *entry);
/* Somebody maps or copies the frame now: GTF_reading or GTF_writing. */
int grant_entry_is_used(const struct grant_entry_v1 *entry);
/* cffi: end */
#endif
