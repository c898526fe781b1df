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

int __kvm_userfault(struct kvm_vcpu *vcpu, const struct kvm_memory_slot *slot,
		    gfn_t gfn, bool write, bool exec, bool private,
		    bool prefault);

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

static inline int __kvm_userfault(struct kvm_vcpu *vcpu,
				  const struct kvm_memory_slot *slot, gfn_t gfn,
				  bool write, bool exec, bool private,
				  bool prefault)
{
	return 0;
}

#endif /* CONFIG_HAVE_KVM_USERFAULT */

/**
 * kvm_userfault() - May a page be mapped?
 * @vcpu:	The vCPU that needs it.
 * @slot:	The memslot that has it.
 * @gfn:	Its canonical gfn, i.e. not one of a nested guest.
 * @write:	What kind of access, for userspace's information.
 * @exec:	Likewise.
 * @private:	Likewise.
 * @prefault:	The vCPU doesn't need the page, but userspace asked for it to be
 *		mapped: kvm_run is not written.
 *
 * Call with kvm->srcu held, after snapshotting kvm->mmu_invalidate_seq and
 * before resolving the pfn, so that setting a bit and then invalidating the
 * mapping can't be missed.  Reads userspace memory, i.e. may sleep, and must
 * not be called with mmu_lock or mmap_lock held.
 *
 * Return: 0 if the page may be mapped, or -EFAULT if it may not.  In the latter
 * case an exit has been prepared, which has KVM_MEMORY_EXIT_FLAG_USERFAULT if
 * the page's bit is set, and doesn't if the bitmap is inaccessible.
 */
static inline int kvm_userfault(struct kvm_vcpu *vcpu,
				const struct kvm_memory_slot *slot, gfn_t gfn,
				bool write, bool exec, bool private,
				bool prefault)
{
	if (likely(!kvm_slot_has_userfault(slot)))
		return 0;

	return __kvm_userfault(vcpu, slot, gfn, write, exec, private, prefault);
}

#endif /* __KVM_USERFAULT_H */
