/* SPDX-License-Identifier: MIT */
/*
 * present.h: is a huge page of the VMM really there?
 *
 * Where no huge page is free, the kernel answers an install with EEXIST, as if
 * somebody had been first (hugetlb_mfill_atomic_pte(), all kernels up to 7.3).
 * Believed, the guest would find zeros there, or SIGBUS.
 * Internal.
 */
#ifndef INFILL_PRESENT_H
#define INFILL_PRESENT_H

#include <stdint.h>

#define PRESENT_OWN (-2) /* in the place of a page map: the memory is this process's */

/*
 * Open the page map of the process that PIDFD names.  -1: that is not known, not
 * permitted, or this kernel has none.
 */
int present_open(int pidfd);

enum present { PRESENT_NO, PRESENT_YES, PRESENT_PERHAPS };

/*
 * Is the page at HVA there, although an install of it was refused?  Without a
 * page map (-1) nobody can tell: no while the pool has no free pages; else
 * perhaps, as it may not have had one a moment ago.
 */
enum present present_huge(int pagemap, uint64_t hva);

#endif
