/*
 * A vCPU's extended state for tools that save and load guests (XEN_DOMCTL_get/setvcpuextstate): XCR0, every component it ever
 * had, and an XSAVE area in the standard format.
 */
#include "control.h"

struct extended_state {
    uint64_t xcr0, xcr0_accum;
    struct xstate area;
};
#define HEADER_BYTES offsetof(struct extended_state, area)
#define LEAST_AREA 576u

static uint64_t state_bytes(uint64_t accum) { return HEADER_BYTES + (accum ? xsave_bytes(accum) : 0); }

static uint64_t machine_components(const struct domain *d) { return policy_xcr0(&d->hv->policy); }

/* A first call without room asks for the size. */
int64_t domctl_get_extstate(struct domain *d, struct vcpu *v, struct xen_domctl_vcpuextstate *op)
{
    struct extended_state s;
    uint64_t bytes = state_bytes(v->pv.xcr0_accum), mask = machine_components(d);
    if ((!op->size && !op->xfeature_mask) || !op->buffer) {
        op->xfeature_mask = mask;
        op->size = bytes;
        return 0;
    }
    if (op->size != bytes || op->xfeature_mask != mask)
        return -XEN_EINVAL;
    vcpu_pause(v);
    s.xcr0 = v->pv.xcr0_accum ? v->cpu->xcr0 : 0;
    s.xcr0_accum = v->pv.xcr0_accum;
    engine()->get_xstate(v, &s.area);
    vcpu_unpause(v);
    return copy_to_guest(op->buffer, &s, bytes) ? -XEN_EFAULT : 0;
}

static bool is_valid(const struct domain *d, const struct extended_state *s)
{
    uint64_t all = policy_xcr0(&d->policy), xcr0 = s->xcr0;
    bool sane = (xcr0 & XCR0_X87) && (!(xcr0 & XCR0_AVX) || (xcr0 & XCR0_SSE));
    uint64_t rest = s->area.layout;
    for (unsigned k = 0; k < ARRAY_SIZE(s->area.reserved); k++)
        rest |= s->area.reserved[k];
    return sane && !rest && !(xcr0 & ~s->xcr0_accum) && !(s->xcr0_accum & ~all) && !(s->area.present & ~s->xcr0_accum);
}

int64_t domctl_set_extstate(struct domain *d, struct vcpu *v, struct xen_domctl_vcpuextstate *op)
{
    struct extended_state s;
    memset(&s, 0, sizeof(s));
    if (op->size < HEADER_BYTES || op->size > state_bytes(machine_components(d)))
        return -XEN_EINVAL;
    if (copy_from_guest(&s, op->buffer, op->size))
        return -XEN_EFAULT;
    if (!s.xcr0 && !s.xcr0_accum)
        return 0;
    if (op->size < HEADER_BYTES + LEAST_AREA || !is_valid(d, &s))
        return -XEN_EINVAL;
    vcpu_pause(v);
    domain_lock(d, NULL);
    v->pv.xcr0_accum = s.xcr0_accum;
    v->cpu->xcr0 = s.xcr0;
    engine()->set_xstate(v, &s.area);
    domain_unlock(d, NULL);
    vcpu_unpause(v);
    return 0;
}
