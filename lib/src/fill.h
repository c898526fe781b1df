/* SPDX-License-Identifier: MIT */
/*
 * fill.h: move pages into the guest and settle their states.
 * Internal; called on the session's thread only.
 *
 * All return 0, or
 *   -EAGAIN  installs have to wait for an event to be read (the pages that
 *            are left stay missing); session->retries counts how often
 * Every other failure ends the session here and returns its error.
 */
#ifndef INFILL_FILL_H
#define INFILL_FILL_H

#include <stdint.h>

#include "session.h"

/*
 * Install those of COUNT pages from PAGE on that are missing; DATA is their
 * content.  Zero pages are not copied, and if nobody touched them (WHY_REST)
 * not even installed, but for a protected VM.  *DONE: pages that are settled,
 * from the first on.
 */
int fill_data(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
	      uint64_t count, const void *data, enum why why, uint64_t *done);

/*
 * The same where userfault_in_place() says so, and pages that the guest touches now
 * or soon: they are read from the image to where they belong, which takes a call and
 * a copy less.  Zero pages get memory, too.  No vCPU sees them before their bits
 * are clear, which is after they were verified.  *DONE may be less than COUNT.  If it
 * is 0 the first one cannot be read in this way: returns why, as image_read_now(), or
 * -EFAULT where there is no memory for it.  It is missing as before, and nothing has
 * failed.
 */
int fill_in_place(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		  uint64_t count, enum why why, uint64_t *done);

/* Map pages that the cache has. */
int fill_cached(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		uint64_t count, enum why why, uint64_t *done);

/*
 * Install zeros in those of COUNT pages that are missing.  A protected VM gets
 * its holes so: once a page's bit is clear nothing is done to it any more, so it
 * has to be there.
 */
int fill_zeros(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
	       uint64_t count, enum why why, uint64_t *done);

/* Pages of a hole are settled without an install. */
void fill_hole(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
	       uint64_t count);

/* Install zeros for a page that was removed, or that is in a hole, or was dropped. */
int fill_zero(struct infill_session *s, const struct pagemap_region *r, uint64_t page);

/*
 * Of a protected VM: a thread has waited for a page that is there, so let it see.
 * If the VMM has dropped the page it waits for it again, and gets zeros then.
 */
int fill_none(struct infill_session *s, const struct pagemap_region *r, uint64_t page);

/* Map a present page of the cache again. */
int fill_again(struct infill_session *s, const struct pagemap_region *r, uint64_t page);

/* The page cannot be read, because of ERROR: the guest must see a memory error there. */
int fill_poison(struct infill_session *s, const struct pagemap_region *r, uint64_t page, int error);

#endif
