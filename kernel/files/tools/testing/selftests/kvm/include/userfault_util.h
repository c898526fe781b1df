/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests of KVM Userfault share: a memslot's bitmap, its flag, and the exit
 * that a vCPU takes on a page whose bit is set.
 */
#ifndef SELFTEST_KVM_USERFAULT_UTIL_H
#define SELFTEST_KVM_USERFAULT_UTIL_H

#include "kvm_util.h"

/*
 * A bitmap with a clear bit for each of @nr_pages pages of the host.  It starts
 * on a page of its own, so that it can be unmapped or protected.
 */
u64 *userfault_alloc_bitmap(u64 nr_pages);
void userfault_free_bitmap(u64 *bitmap, u64 nr_pages);

/*
 * Set or clear the bits of pages, other bits of which may be changed at the same
 * time.  What was written to a page before its bit is cleared is visible to who
 * sees the bit clear.
 */
void userfault_set(u64 *bitmap, u64 page, u64 nr_pages);
void userfault_clear(u64 *bitmap, u64 page, u64 nr_pages);
bool userfault_is_set(u64 *bitmap, u64 page);

/* What KVM_CAP_USERFAULT returns for the VM. */
unsigned int userfault_cap(struct kvm_vm *vm);

/*
 * Change a memslot's flags, and the bitmap that it's given along with them.
 * Without KVM_MEM_USERFAULT the bitmap is ignored.
 */
int __userfault_set_flags(struct kvm_vm *vm, u32 slot, u32 flags, void *bitmap);
void userfault_set_flags(struct kvm_vm *vm, u32 slot, u32 flags, void *bitmap);

/*
 * Set or clear KVM_MEM_USERFAULT if it isn't yet, as a change to nothing is an
 * error for guest_memfd, and leave the other flags alone.
 */
void userfault_enable(struct kvm_vm *vm, u32 slot, u64 *bitmap);
void userfault_disable(struct kvm_vm *vm, u32 slot);

/* Did the KVM_RUN that returned @ret with errno @err exit for a missing page? */
bool is_userfault_exit(struct kvm_vcpu *vcpu, int ret, int err);

/* Run the vCPU, which has to exit for the page at @gpa. */
void vcpu_run_to_userfault(struct kvm_vcpu *vcpu, gpa_t gpa);

#endif /* SELFTEST_KVM_USERFAULT_UTIL_H */
