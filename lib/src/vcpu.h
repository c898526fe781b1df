/* SPDX-License-Identifier: MIT */
/*
 * vcpu.h: a vCPU's thread as a filler: what it missed it fills itself.
 *
 * Nothing here waits for the session's thread or takes a lock that another
 * vCPU's fault takes: pages are claimed one by one in the pagemap, and what is
 * counted is the vCPU's own until somebody asks.  But a first touch that is
 * recorded, and a line of the timeline, are written under a lock of the session.
 * Internal.
 */
#ifndef INFILL_VCPU_H
#define INFILL_VCPU_H

#include "session.h"

/*
 * COUNT pages, which the caller has claimed and is not the session's thread, are
 * in state TO: let vCPUs have them, or wake who waits, to look again.  0, or
 * -EPROTO: as pagemap_move().
 */
int vcpu_settle(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		uint64_t count, enum page_state to);

/* Add what the vCPUs of S, past and present, have counted to TO, which is private to the caller. */
void vcpu_add_stats(struct infill_session *s, struct stats *to);

/* Free what is kept of vCPUs that are gone, and of prefaults that did not come to their end. */
void vcpu_free_retired(struct infill_session *s);

#endif
