/* SPDX-License-Identifier: MIT */
/*
 * install.h: one install, whichever thread does it, and what the kernel's
 * answer to it means.
 *
 * The session's thread (fill.c) and vCPUs' threads (vcpu.c) install alike.  What
 * they do not have in common is theirs: whom to wake, how to wait, whose
 * counters.  The pages are the caller's: it has claimed them, or the session
 * has one thread.
 * Internal.  Any thread.
 */
#ifndef INFILL_INSTALL_H
#define INFILL_INSTALL_H

#include "session.h"

/* How a run of pages gets in. */
enum how { HOW_COPY, HOW_ZERO, HOW_CONTINUE, HOW_POISON };

/*
 * Put COUNT pages from PAGE on into memory; *DONE of them, the first ones, are
 * there.  DATA is their content, for HOW_COPY.  0, also if fewer were done; or
 * what stopped it, as in uffd.h, but -ENOMEM where no huge page is free.
 */
int install_pages(const struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		  uint64_t count, const void *data, enum how how, uint64_t *done);

/*
 * ERR stopped an install with LEFT pages not done.  How many of these to try
 * next: fewer, where the range may cross a border of VMAs; 0: ERR is about the
 * first of them.
 */
uint64_t install_shorter(int err, uint64_t left);

/*
 * What the page that stopped an install with ERR has become: PAGE_PRESENT:
 * somebody was first; PAGE_REMOVED: the VMM has unmapped it, or moved it away;
 * PAGE_FILLING: ERR is to be waited out (-EAGAIN, -ENOMEM), or for good.
 */
enum page_state install_outcome(int err);

/*
 * May ERR still pass, that installs have met since *SINCE (0: only now, which
 * sets it)?  The caller tries again after a while; *SINCE is set to 0 by the
 * next install that goes well.
 */
bool install_may_pass(uint64_t *since);

/* Install has failed in R with ERR, for good: sets the text and returns ERR. */
int install_failed(const struct pagemap_region *r, int err);

/* COUNT pages were installed in this way, because of WHY: ST counts them, the timeline has them. */
void install_count(struct infill_session *s, struct stats *st, const struct pagemap_region *r,
		   uint64_t page, uint64_t count, enum how how, enum why why);

/* PAGE cannot be read because of ERROR: tell it, and set the text.  -EHWPOISON. */
int install_poisoned(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		     int error);

#endif
