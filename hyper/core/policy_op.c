/*
 * CPU policies as Dom0's tools see and set them: lists of leaves and MSRs.
 */
#include "control.h"

/* Copies a list out when the caller has room for it: -XEN_ENOBUFS otherwise. *n becomes its length. */
static int give_list(uint64_t to, uint32_t *n, const void *list, uint32_t length, size_t item)
{
    if (!to) {
        *n = 0;
        return 0;
    }
    if (*n < length)
        return -XEN_ENOBUFS;
    *n = length;
    return copy_to_guest(to, list, length * item) ? -XEN_EFAULT : 0;
}

static int give_policy(const struct cpu_policy *p, uint64_t leaves, uint32_t *nr_leaves, uint64_t msrs, uint32_t *nr_msrs)
{
    struct xen_msr_entry msr[NR_POLICY_MSRS];
    cpu_policy_msrs(msr);
    int rc = give_list(leaves, nr_leaves, p->leaf, p->nr_leaves, sizeof(p->leaf[0]));
    return rc ? rc : give_list(msrs, nr_msrs, msr, NR_POLICY_MSRS, sizeof(msr[0]));
}

/* ---- the machine's ---------------------------------------------------------------------------------------------- */

int64_t sysctl_cpu_policy(struct hv *hv, struct xen_sysctl_cpu_policy *op)
{
    struct cpu_policy host;
    switch (op->index) {
    case XEN_SYSCTL_cpu_policy_raw: case XEN_SYSCTL_cpu_policy_host: cpu_policy_host(&host, &hv->policy); break;
    case XEN_SYSCTL_cpu_policy_pv_max: case XEN_SYSCTL_cpu_policy_pv_default: host = hv->policy; break;
    case XEN_SYSCTL_cpu_policy_hvm_max: case XEN_SYSCTL_cpu_policy_hvm_default: return -XEN_EOPNOTSUPP;
    default: return -XEN_EINVAL;
    }
    if (!op->leaves && !op->msrs) { /* asks how much room is enough for any */
        op->nr_leaves = MAX_POLICY_LEAVES;
        op->nr_msrs = NR_POLICY_MSRS;
        return 0;
    }
    return give_policy(&host, op->leaves, &op->nr_leaves, op->msrs, &op->nr_msrs);
}

int64_t sysctl_cpu_featureset(struct hv *hv, struct xen_sysctl_cpu_featureset *op)
{
    struct cpu_policy policy = hv->policy;
    uint32_t word[NR_FEATURESET_WORDS], n = op->nr_features;
    switch (op->index) {
    case XEN_SYSCTL_cpu_featureset_raw: case XEN_SYSCTL_cpu_featureset_host: cpu_policy_host(&policy, &hv->policy); break;
    case XEN_SYSCTL_cpu_featureset_pv: case XEN_SYSCTL_cpu_featureset_pv_max: break;
    case XEN_SYSCTL_cpu_featureset_hvm: case XEN_SYSCTL_cpu_featureset_hvm_max: return -XEN_EOPNOTSUPP;
    default: return -XEN_EINVAL;
    }
    cpu_policy_featureset(&policy, word);
    if (!op->features || n > NR_FEATURESET_WORDS)
        n = NR_FEATURESET_WORDS;
    op->nr_features = n;
    if (!op->features)
        return 0;
    return copy_to_guest(op->features, word, n * sizeof(word[0])) ? -XEN_EFAULT : 0;
}

/* ---- a domain's ------------------------------------------------------------------------------------------------- */

int64_t domctl_get_cpu_policy(struct domain *d, struct xen_domctl_cpu_policy *op)
{
    return give_policy(&d->policy, op->leaves, &op->nr_leaves, op->msrs, &op->nr_msrs);
}

static int take_leaves(struct cpu_policy *p, const struct cpu_policy *max, struct xen_domctl_cpu_policy *op)
{
    for (uint32_t k = 0; k < op->nr_leaves; k++) {
        struct xen_cpuid_leaf leaf;
        if (copy_from_guest(&leaf, op->leaves + k * sizeof(leaf), sizeof(leaf)))
            return -XEN_EFAULT;
        int rc = cpu_policy_set_leaf(p, max, &leaf);
        if (rc) {
            op->err_leaf = leaf.leaf;
            op->err_subleaf = leaf.subleaf;
            return rc;
        }
    }
    return 0;
}

/* They can be repeated as they are, nothing else. */
static int check_msrs(struct xen_domctl_cpu_policy *op)
{
    struct xen_msr_entry known[NR_POLICY_MSRS], msr;
    cpu_policy_msrs(known);
    for (uint32_t k = 0; k < op->nr_msrs; k++) {
        if (copy_from_guest(&msr, op->msrs + k * sizeof(msr), sizeof(msr)))
            return -XEN_EFAULT;
        op->err_msr = msr.idx;
        uint32_t at = 0;
        while (at < NR_POLICY_MSRS && known[at].idx != msr.idx)
            at++;
        if (at == NR_POLICY_MSRS)
            return -XEN_ERANGE;
        if (msr.flags || (msr.val & ~known[at].val))
            return -XEN_EINVAL;
    }
    op->err_msr = ~0u;
    return 0;
}

/* Nobody runs yet, so nothing was translated under the old policy. */
int64_t domctl_set_cpu_policy(struct domain *d, struct xen_domctl_cpu_policy *op)
{
    op->err_leaf = op->err_subleaf = op->err_msr = ~0u;
    if (d->kind != DOMAIN_PV)
        return -XEN_EINVAL;
    if (d->creation_finished)
        return -XEN_EEXIST;
    if (op->nr_leaves > MAX_POLICY_LEAVES || op->nr_msrs > NR_POLICY_MSRS)
        return -XEN_E2BIG;
    struct cpu_policy policy = d->policy;
    int rc = take_leaves(&policy, &d->hv->policy, op);
    if (!rc)
        rc = check_msrs(op);
    if (rc)
        return rc;
    cpu_policy_settle(&policy);
    d->policy = policy;
    return 0;
}
