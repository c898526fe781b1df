/* SPDX-License-Identifier: MIT */
/*
 * remote_session.h: a session whose pager is another process: this one has the
 * VM, its memslots and bitmaps, and a thread that hears what the pager says.
 * Internal.
 */
#ifndef INFILL_REMOTE_SESSION_H
#define INFILL_REMOTE_SESSION_H

#include "session.h"

/* End the connection and the thread.  No vCPU may be in a call. */
void remote_session_stop(struct infill_session *s);

/*
 * For a thread that needs PAGE of R: ask the pager if it is missing.  STOP as
 * remote_ask().  *COUNT: pages from PAGE on that are there now.  0, or as
 * infill_vcpu_exit().
 */
int remote_session_page(struct infill_session *s, unsigned thread, const struct pagemap_region *r,
			uint64_t page, const volatile uint8_t *stop, uint64_t *count);

/* Have the pager write nothing any more to COUNT pages from PAGE on.  0, or as infill_vcpu_exit(). */
int remote_session_discard(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
			   uint64_t count);

#endif
