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
 * Make bitmaps with every bit set for the regions of PM, which are those of
 * MEMORY, and register them with the memslots of the VM that VM_FD names
 * (duplicated): memslots are created, or get the flag if they exist.
 * -EOPNOTSUPP: a page is smaller than the host's; else as
 * KVM_SET_USER_MEMORY_REGION2.  What was registered is undone on failure.
 */
int userfault_new(struct userfault **uf, int vm_fd, const struct infill_memory *memory,
		  const struct pagemap *pm);

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

/* COUNT pages were put back to missing, or poisoned: wake who waits, to look again. */
void userfault_wake(struct userfault *uf, uint64_t page, uint64_t count);

/* Wait, briefly, while PAGE is being filled.  It may still be when this returns. */
void userfault_wait(struct userfault *uf, const struct pagemap *pm, uint64_t page);

#endif
