/*
 * What domctl and sysctl share.
 */
#ifndef UMXEN_CONTROL_H
#define UMXEN_CONTROL_H
#include "../public/domctl.h"
#include "../public/sysctl.h"
#include "hypercall.h"

void fill_domain_info(struct domain *d, struct xen_domctl_getdomaininfo *info);
/* Bitmaps of at most 64 bits from and to the caller's, of whatever length that has; 0 or -XEN_EFAULT. */
int bitmap_from_guest(uint64_t *bits, const struct xenctl_bitmap *map);
int bitmap_to_guest(const struct xenctl_bitmap *map, uint64_t bits);
/* policy_op.c; op is the answer, too. */
int64_t sysctl_cpu_policy(struct hv *hv, struct xen_sysctl_cpu_policy *op);
int64_t sysctl_cpu_featureset(struct hv *hv, struct xen_sysctl_cpu_featureset *op);
int64_t domctl_get_cpu_policy(struct domain *d, struct xen_domctl_cpu_policy *op);
int64_t domctl_set_cpu_policy(struct domain *d, struct xen_domctl_cpu_policy *op);
/* extstate.c; likewise. */
int64_t domctl_get_extstate(struct domain *d, struct vcpu *v, struct xen_domctl_vcpuextstate *op);
int64_t domctl_set_extstate(struct domain *d, struct vcpu *v, struct xen_domctl_vcpuextstate *op);
static inline uint64_t all_cpus(const struct hv *hv) { return ~0ull >> (64 - hv->config.nr_pcpus); }
#endif
