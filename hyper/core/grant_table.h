/*
 * Grant tables, version 1. A table and its active entries are guarded by the granter's domain lock, as the types of the
 * granted frames are; the mapper's handles by hv->event_lock, taken for a moment inside.
 */
#ifndef UMXEN_GRANT_TABLE_CORE_H
#define UMXEN_GRANT_TABLE_CORE_H
#include "base.h"

struct domain;
struct vcpu;
struct hv_conn;

int grant_table_init(struct domain *d, uint32_t max_frames, uint32_t max_maps);
void grant_table_destroy(struct domain *d);
int64_t do_grant_table_op(struct vcpu *curr, struct domain *caller, struct hv_conn *conn, uint64_t cmd, uint64_t uop,
                          uint64_t count);
/* The machine frames of the table, made on demand: XENMEM_acquire_resource and XENMAPSPACE_grant_table. */
int grant_table_frame(struct domain *d, uint32_t index, mfn_t *out);
uint32_t grant_table_max_frames(const struct domain *d);
/* Unmaps some of what a dead connection had mapped: 0 when nothing is left, else -XEN_ERESTART. */
int grant_unmap_some(struct hv_conn *conn);
#endif
