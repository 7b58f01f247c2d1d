/*
 * xen_version: what this hypervisor is and offers. To its users it is Xen 4.17. And vm_assist, the guest's half of it.
 */
#include "../public/version.h"

#include "hypercall.h"

#define VERSION (4 << 16 | 17)

static int64_t give_text(uint64_t arg, const char *text, size_t bytes)
{
    char buffer[1024] = {0};
    snprintf(buffer, bytes, "%s", text);
    return copy_to_guest(arg, buffer, bytes) ? -XEN_EFAULT : 0;
}

static int64_t compile_info(uint64_t arg)
{
    struct xen_compile_info info = {0};
    snprintf(info.compiler, sizeof(info.compiler), "gcc %s", __VERSION__);
    snprintf(info.compile_by, sizeof(info.compile_by), "umxen");
    snprintf(info.compile_domain, sizeof(info.compile_domain), "localdomain");
    snprintf(info.compile_date, sizeof(info.compile_date), "unknown");
    return copy_to_guest(arg, &info, sizeof(info)) ? -XEN_EFAULT : 0;
}

static int64_t platform_parameters(uint64_t arg)
{
    struct xen_platform_parameters p = {.virt_start = HYPERVISOR_VIRT_START};
    return copy_to_guest(arg, &p, sizeof(p)) ? -XEN_EFAULT : 0;
}

static int64_t get_features(uint64_t arg)
{
    struct xen_feature_info info;
    if (copy_from_guest(&info, arg, sizeof(info)))
        return -XEN_EFAULT;
    if (info.submap_idx >= XENFEAT_NR_SUBMAPS)
        return -XEN_EINVAL;
    info.submap = 1u << XENFEAT_pae_pgdir_above_4gb | 1u << XENFEAT_mmu_pt_update_preserve_ad |
                  1u << XENFEAT_highmem_assist | 1u << XENFEAT_gnttab_map_avail_bits;
    return copy_to_guest(arg, &info, sizeof(info)) ? -XEN_EFAULT : 0;
}

int64_t do_xen_version(struct domain *caller, uint64_t cmd, uint64_t arg)
{
    switch ((uint32_t)cmd) {
    case XENVER_version: /* guests also make this call to let pending events in */
        return VERSION;
    case XENVER_extraversion:
        return give_text(arg, ".0", XEN_EXTRAVERSION_LEN);
    case XENVER_compile_info:
        return compile_info(arg);
    case XENVER_capabilities:
        return give_text(arg, "xen-3.0-x86_64 ", XEN_CAPABILITIES_INFO_LEN);
    case XENVER_changeset:
        return give_text(arg, "unavailable", XEN_CHANGESET_INFO_LEN);
    case XENVER_platform_parameters:
        return platform_parameters(arg);
    case XENVER_get_features:
        return get_features(arg);
    case XENVER_pagesize:
        return arg ? -XEN_EINVAL : (int64_t)PAGE_SIZE;
    case XENVER_guest_handle:
        return copy_to_guest(arg, caller->handle, sizeof(caller->handle)) ? -XEN_EFAULT : 0;
    case XENVER_commandline:
        return give_text(arg, caller->is_privileged ? caller->hv->command_line : "<denied>", sizeof(xen_commandline_t));
    case XENVER_build_id:
        return -XEN_ENODATA;
    default:
        return -XEN_ENOSYS;
    }
}

int64_t do_vm_assist(struct domain *d, uint64_t cmd, uint64_t type)
{
    const uint64_t offered = 1ull << VMASST_TYPE_4gb_segments | 1ull << VMASST_TYPE_4gb_segments_notify |
                             1ull << VMASST_TYPE_writable_pagetables | 1ull << VMASST_TYPE_pae_extended_cr3 |
                             1ull << VMASST_TYPE_architectural_iopl | 1ull << VMASST_TYPE_runstate_update_flag |
                             1ull << VMASST_TYPE_m2p_strict;
    uint32_t bit = (uint32_t)type;
    if (bit >= 64 || !(offered >> bit & 1))
        return -XEN_EINVAL;
    switch ((uint32_t)cmd) {
    case VMASST_CMD_enable:
        __atomic_fetch_or(&d->vm_assist, 1ull << bit, __ATOMIC_SEQ_CST);
        return 0;
    case VMASST_CMD_disable:
        __atomic_fetch_and(&d->vm_assist, ~(1ull << bit), __ATOMIC_SEQ_CST);
        return 0;
    default:
        return -XEN_ENOSYS;
    }
}
