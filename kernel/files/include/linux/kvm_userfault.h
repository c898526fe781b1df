/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * KVM Userfault: guest memory whose content userspace has yet to provide.
 *
 * For a memslot with KVM_MEM_USERFAULT, userspace keeps a bitmap with a bit for
 * each page.  KVM doesn't map a page whose bit is set; a vCPU that needs it
 * exits.  KVM only ever reads the bitmap.
 */
#ifndef __KVM_USERFAULT_H
#define __KVM_USERFAULT_H

#include <linux/kvm.h>
#include <linux/kvm_host.h>

#ifdef CONFIG_HAVE_KVM_USERFAULT

static inline bool kvm_slot_has_userfault(const struct kvm_memory_slot *slot)
{
	return slot && (slot->flags & KVM_MEM_USERFAULT);
}

int kvm_userfault_check_region(const struct kvm_userspace_memory_region2 *mem,
			       const struct kvm_memory_slot *old);
void kvm_userfault_set_bitmap(struct kvm_memory_slot *slot,
			      const struct kvm_userspace_memory_region2 *mem);

#else

static inline bool kvm_slot_has_userfault(const struct kvm_memory_slot *slot)
{
	return false;
}

static inline int
kvm_userfault_check_region(const struct kvm_userspace_memory_region2 *mem,
			   const struct kvm_memory_slot *old)
{
	return 0;
}

static inline void
kvm_userfault_set_bitmap(struct kvm_memory_slot *slot,
			 const struct kvm_userspace_memory_region2 *mem)
{
}

#endif /* CONFIG_HAVE_KVM_USERFAULT */

#endif /* __KVM_USERFAULT_H */
