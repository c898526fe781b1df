/* SPDX-License-Identifier: MIT */
/*
 * kvm_api.h: what of KVM's API the headers of an older kernel lack.
 *
 * KVM Userfault is in no release yet: its numbers are those of the series in
 * kernel/, and change with it.
 * Internal.
 */
#ifndef INFILL_KVM_API_H
#define INFILL_KVM_API_H

#include <linux/kvm.h>
#include <stdint.h>

#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236
#endif
#ifndef KVM_CAP_GUEST_MEMFD_FLAGS
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#endif
#ifndef KVM_CAP_USERFAULT
#define KVM_CAP_USERFAULT 20252
#endif
#ifndef KVM_VM_TYPE_ARM_PROTECTED /* Linux 7.1 */
#define KVM_VM_TYPE_ARM_PROTECTED (1UL << 31)
#endif
#ifndef KVM_MEM_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#endif
#ifndef KVM_MEM_USERFAULT
#define KVM_MEM_USERFAULT (1UL << 3)
#endif
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#ifndef KVM_MEMORY_EXIT_FLAG_USERFAULT
#define KVM_MEMORY_EXIT_FLAG_USERFAULT (1ULL << 4)
#endif

/* struct kvm_userspace_memory_region2 with the member that the series adds. */
struct kvm_api_region {
	uint32_t slot;
	uint32_t flags;
	uint64_t guest_phys_addr;
	uint64_t memory_size;
	uint64_t userspace_addr;
	uint64_t guest_memfd_offset;
	uint32_t guest_memfd;
	uint32_t pad1;
	uint64_t userfault_bitmap;
	uint64_t pad2[13];
};
#define KVM_API_SET_REGION _IOW(KVMIO, 0x49, struct kvm_api_region)

/* struct kvm_pre_fault_memory. */
struct kvm_api_pre_fault {
	uint64_t gpa;
	uint64_t size;
	uint64_t flags;
	uint64_t padding[5];
};
#define KVM_API_PRE_FAULT _IOWR(KVMIO, 0xd5, struct kvm_api_pre_fault)

/* kvm_run's `memory_fault`: its union begins at the same place in every version. */
struct kvm_api_memory_fault {
	uint64_t flags;
	uint64_t gpa;
	uint64_t size;
};

static inline const struct kvm_api_memory_fault *kvm_api_memory_fault(const struct kvm_run *run)
{
	return (const struct kvm_api_memory_fault *)&run->padding;
}

#endif
