// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM Userfault: the bitmap of a memslot, and the exits for pages that are set
 * in it.
 *
 * Enabling.  A memslot with the flag replaces the one without.  Once SRCU has
 * been synchronized no fault uses the old memslot any more, and only then the
 * architecture zaps what has been mapped through it; zapping any earlier would
 * miss mappings that are being made.
 *
 * Clearing a bit.  Userspace provides the content, then clears the bit with
 * release semantics.  The bit is read before the pfn is resolved, with a read
 * barrier in between, so whoever sees the bit clear maps the content.
 *
 * Setting a bit while the flag is on doesn't unmap the page.  That takes an
 * invalidation afterwards, e.g. to punch a hole or to toggle the flag.
 */

#include <linux/kvm_host.h>
#include <linux/kvm_userfault.h>
#include <linux/uaccess.h>

int kvm_userfault_check_region(const struct kvm_userspace_memory_region2 *mem,
			       const struct kvm_memory_slot *old)
{
	unsigned long nr_pages = mem->memory_size >> PAGE_SHIFT;
	unsigned long bitmap = mem->userfault_bitmap;

	/* To delete a memslot, the flags don't matter. */
	if (!(mem->flags & KVM_MEM_USERFAULT) || !mem->memory_size)
		return 0;

	if (bitmap != mem->userfault_bitmap)
		return -EINVAL;

	if (!bitmap || !IS_ALIGNED(bitmap, sizeof(u64)) ||
	    mem->userfault_bitmap != untagged_addr(mem->userfault_bitmap) ||
	    !access_ok((void __user *)bitmap,
		       ALIGN(nr_pages, BITS_PER_TYPE(u64)) / BITS_PER_BYTE))
		return -EINVAL;

	/*
	 * Bits that are set in another bitmap would have no effect on what is
	 * mapped already.
	 */
	if (kvm_slot_has_userfault(old) &&
	    (unsigned long)old->userfault_bitmap != bitmap)
		return -EINVAL;

	return 0;
}

void kvm_userfault_set_bitmap(struct kvm_memory_slot *slot,
			      const struct kvm_userspace_memory_region2 *mem)
{
	if (kvm_slot_has_userfault(slot))
		slot->userfault_bitmap = u64_to_user_ptr(mem->userfault_bitmap);
}
