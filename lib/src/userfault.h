/* SPDX-License-Identifier: MIT */
/*
 * userfault.h: KVM Userfault of one VM: the bitmaps that say what is missing,
 * the memslots that they are registered with, and who waits for a page that
 * another thread is filling.
 *
 * A bit is a page of the host.  It is set from the start and cleared, with
 * release, once the page's content is in memory, never set again.  pagemap.h
 * has the truth about a page, the bit is what KVM knows of it: present or
 * removed pages may have their bit set for a moment, missing ones never have
 * it clear.
 * The bitmaps may be shared with a pager in another process, which fills: then
 * this process has the memslots, and the pager what is here but for those.
 * Internal.  Any thread, except where it says otherwise.
 */
#ifndef INFILL_USERFAULT_H
#define INFILL_USERFAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "infill.h"
#include "pagemap.h"

struct userfault;

/* 0, or -EOPNOTSUPP: the kernel, or this kind of VM, has no KVM Userfault. */
int userfault_check(int vm_fd);

/*
 * Is it a protected VM of pKVM?  What its guest has touched is the guest's, and
 * lost to the host: once a page's bit is clear nothing may be done to the page.
 */
bool userfault_protected(int vm_fd);

/* 0, or -EOPNOTSUPP, -EINVAL: a region of MEMORY is such as a protected VM cannot have. */
int userfault_check_protected(const struct infill_memory *memory);

/*
 * Make bitmaps with every bit set for the regions of PM, which are those of
 * MEMORY, and register them with the memslots of the VM that VM_FD names
 * (duplicated): memslots are created, or get the flag if they exist.
 * BITMAP_FD: a file where the bitmaps are one behind the other, as wire_write()
 * says; -1: private memory.  -EOPNOTSUPP: a page is smaller than the host's;
 * -EPERM: a protected VM has run; else as KVM_SET_USER_MEMORY_REGION2.  What was
 * registered is undone on failure.
 */
int userfault_new(struct userfault **uf, int vm_fd, int bitmap_fd,
		  const struct infill_memory *memory, const struct pagemap *pm);

/* What a pager has of a region: mappings of this process. */
struct userfault_part {
	void *bitmap, *target; /* TARGET is NULL for memory that has a userfaultfd */
	size_t bitmap_bytes, target_bytes;
};

/*
 * The pager's: bitmaps that a VMM made, PART for each region of PM.  The mappings
 * are the userfault's from now on, unless it fails.  The bits of pages that are
 * settled already are cleared: an earlier pager may have died before it did.
 */
int userfault_adopt(struct userfault **uf, const struct pagemap *pm,
		    const struct userfault_part *part);
void userfault_unmap(const struct userfault_part *part, unsigned count);

/*
 * Take the flag off all memslots: KVM asks no more, and maps huge pages again
 * where it can.  One thread, once.  0, or -errno of the first that refused.
 */
int userfault_disable(struct userfault *uf);

/*
 * Free.  The bitmap of a memslot that still has the flag stays, as its VM may
 * live on: its vCPUs go on to exit, and none reads zeros.
 */
void userfault_free(struct userfault *uf);

/* Where this process has PAGE, to be written before its bit is cleared. */
void *userfault_target(const struct userfault *uf, const struct pagemap_region *r, uint64_t page);

/*
 * May what the guest touches now or soon be read there from the image, before it is
 * verified?  Where no userfaultfd watches no vCPU sees a page before its bit is clear.
 */
static inline bool userfault_in_place(const struct pagemap_region *r)
{
	return r->backing == INFILL_BACKING_GUEST_MEMFD;
}

/*
 * Write the content of COUNT pages of memory that has no userfaultfd.  0, or
 * -ENOMEM (and others, as MADV_POPULATE_WRITE) where there is no memory for them.
 */
int userfault_write(const struct userfault *uf, const struct pagemap_region *r, uint64_t page,
		    uint64_t count, const void *data);

/*
 * Give back the memory of COUNT pages, on all mappings and KVM's: they read as
 * zero.  0, or -errno as madvise(2), and then some of them may be there yet.
 */
int userfault_drop(const struct userfault *uf, const struct pagemap_region *r, uint64_t page,
		   uint64_t count);

/* COUNT pages are there: let the guest have them, and wake who waits for them. */
void userfault_clear(struct userfault *uf, const struct pagemap_region *r, uint64_t page,
		     uint64_t count);

/* Is the bit of PAGE set?  If it is not, what was filled can be read. */
bool userfault_missing(const struct userfault *uf, const struct pagemap_region *r, uint64_t page);

/* How many pages have a bit that is set. */
uint64_t userfault_missing_pages(const struct userfault *uf);

/* No bit is set, and no memslot has the flag: give the bitmaps' memory back. */
void userfault_forget(struct userfault *uf);

/* COUNT pages were put back to missing, or poisoned: wake who waits, to look again. */
void userfault_wake(struct userfault *uf, uint64_t page, uint64_t count);

/* Wait, briefly, while PAGE is being filled.  It may still be when this returns. */
void userfault_wait(struct userfault *uf, const struct pagemap *pm, uint64_t page);

#endif
