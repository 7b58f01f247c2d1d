/*
 * The CPUID leaves from 0x40000000 on, by which a guest finds the hypervisor.
 */
#ifndef UMXEN_PUBLIC_CPUID_H
#define UMXEN_PUBLIC_CPUID_H

/* cffi: begin */
/* Leaf +0: eax the last leaf, ebx ecx edx "XenVMMXenVMM". Leaf +1: eax major << 16 | minor. Leaf +2: eax
 * number of hypercall pages, ebx the MSR that fills them, ecx XEN_CPUID_FEAT1_*. Leaf +3: TSC. Leaf +4: HVM,
 * eax XEN_HVM_CPUID_*. Leaf +5: PV, ebx the machine address width. */
enum {
    XEN_CPUID_FIRST_LEAF = 0x40000000,
    XEN_CPUID_SIGNATURE_EBX = 0x566e6558,
    XEN_CPUID_SIGNATURE_ECX = 0x65584d4d,
    XEN_CPUID_SIGNATURE_EDX = 0x4d4d566e,
    XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1,
    XEN_HVM_CPUID_APIC_ACCESS_VIRT = 1,
    XEN_HVM_CPUID_X2APIC_VIRT = 2,
    XEN_HVM_CPUID_IOMMU_MAPPINGS = 4,
    XEN_HVM_CPUID_VCPU_ID_PRESENT = 8,
    XEN_HVM_CPUID_DOMID_PRESENT = 16,
    XEN_HVM_CPUID_EXT_DEST_ID = 32,
    XEN_HVM_CPUID_UPCALL_VECTOR = 64,
    XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK = 0xff,
    XEN_CPUID_MAX_NUM_LEAVES = 5
};
/* cffi: end */

#define XEN_CPUID_LEAF(i) (XEN_CPUID_FIRST_LEAF + (i))
#endif
