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

#include <stdbool.h>
#include <stdint.h>

/*
 * Open the page map of the process that PIDFD names, or of this one (OWN).
 * -1: that is not known, or not permitted.
 */
int present_open(int pidfd, bool own);

/*
 * Is the page at HVA there, although an install of it was refused?  Without a
 * page map (-1) that is believed while the pool has free pages.
 */
bool present_huge(int pagemap, uint64_t hva);

#endif
