/*
 * The trace ring: what happened last, for debugging a machine. Off until XEN_SYSCTL_TBUFOP_enable; then one record
 * costs some 20 ns. Debug key 'T' prints the newest records to the hypervisor console.
 */
#ifndef UMXEN_TRACE_CORE_H
#define UMXEN_TRACE_CORE_H
#include "machine.h"

enum trace_event { TRACE_hypercall, TRACE_run, TRACE_stop, TRACE_event, TRACE_nr };

int trace_init(struct hv *hv);
void trace_destroy(struct hv *hv);
void trace_enable(struct hv *hv, bool on);
void trace_set_mask(struct hv *hv, uint32_t events);
void trace_dump(struct hv *hv);
void trace_record(struct hv *hv, enum trace_event event, uint16_t domid, uint16_t vcpu_id, uint64_t a, uint64_t b);
#endif
