/*
 * physdev_op: real interrupts and I/O privileges. Few of these mean anything to a PV guest without devices:
 * set_iopl, set_iobitmap and the probes. Structures are here for those; the other numbers are known so that
 * they can be refused by name.
 */
#ifndef UMXEN_PUBLIC_PHYSDEV_H
#define UMXEN_PUBLIC_PHYSDEV_H
#include "xen.h"

/* cffi: begin */
enum {
    PHYSDEVOP_IRQ_UNMASK_NOTIFY = 4,
    PHYSDEVOP_irq_status_query = 5,
    PHYSDEVOP_set_iopl = 6,
    PHYSDEVOP_set_iobitmap = 7,
    PHYSDEVOP_apic_read = 8,
    PHYSDEVOP_apic_write = 9,
    PHYSDEVOP_alloc_irq_vector = 10,
    PHYSDEVOP_free_irq_vector = 11,
    PHYSDEVOP_eoi = 12,
    PHYSDEVOP_map_pirq = 13,
    PHYSDEVOP_unmap_pirq = 14,
    PHYSDEVOP_manage_pci_add = 15,
    PHYSDEVOP_manage_pci_remove = 16,
    PHYSDEVOP_pirq_eoi_gmfn_v1 = 17,
    PHYSDEVOP_restore_msi = 19,
    PHYSDEVOP_manage_pci_add_ext = 20,
    PHYSDEVOP_setup_gsi = 21,
    PHYSDEVOP_get_free_pirq = 23,
    PHYSDEVOP_pci_mmcfg_reserved = 24,
    PHYSDEVOP_pci_device_add = 25,
    PHYSDEVOP_pci_device_remove = 26,
    PHYSDEVOP_restore_msi_ext = 27,
    PHYSDEVOP_pirq_eoi_gmfn_v2 = 28,
    PHYSDEVOP_pirq_eoi_gmfn = 28,
    PHYSDEVOP_dbgp_op = 29,
    PHYSDEVOP_prepare_msix = 30,
    PHYSDEVOP_release_msix = 31
};

struct physdev_eoi {
    uint32_t irq;
};

struct physdev_pirq_eoi_gmfn {
    xen_pfn_t gmfn;
};

enum { XENIRQSTAT_needs_eoi = 1, XENIRQSTAT_shared = 2 };

struct physdev_irq_status_query {
    uint32_t irq;
    uint32_t flags;
};

struct physdev_set_iopl {
    uint32_t iopl;
};

struct physdev_set_iobitmap {
    xen_guest_handle_t bitmap;
    uint32_t nr_ports;
};

struct physdev_apic {
    uint64_t apic_physbase;
    uint32_t reg;
    uint32_t value;
};

struct physdev_pci_device {
    uint16_t seg;
    uint8_t bus;
    uint8_t devfn;
};
/* cffi: end */

_Static_assert(sizeof(struct physdev_eoi) == 4, "physdev_eoi");
_Static_assert(sizeof(struct physdev_pirq_eoi_gmfn) == 8, "physdev_pirq_eoi_gmfn");
_Static_assert(sizeof(struct physdev_irq_status_query) == 8, "physdev_irq_status_query");
_Static_assert(sizeof(struct physdev_set_iopl) == 4, "physdev_set_iopl");
_Static_assert(sizeof(struct physdev_set_iobitmap) == 16, "physdev_set_iobitmap");
_Static_assert(sizeof(struct physdev_apic) == 16, "physdev_apic");
_Static_assert(sizeof(struct physdev_pci_device) == 4, "physdev_pci_device");
#endif
