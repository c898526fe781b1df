/* SPDX-License-Identifier: MIT */
/*
 * demand.h: what a userfaultfd reports: faults to serve, pages given up.
 * Internal; called on the session's thread only.
 */
#ifndef INFILL_DEMAND_H
#define INFILL_DEMAND_H

#include "session.h"

/* Read a batch of events and serve it.  False: it cannot be read, never again. */
bool demand_events(struct infill_session *s);

/* A vCPU asks for PAGE, which is missing: channel.h.  demand_serve() serves it. */
void demand_exit(struct infill_session *s, const struct pagemap_region *r, uint64_t page);

/* COUNT pages from PAGE on are given up: they are zero from now on, whatever the image has. */
void demand_discard(struct infill_session *s, uint64_t page, uint64_t count);

/* Apply what an earlier process read and did not apply, and let everybody fault again. */
void demand_resume(struct infill_session *s);

/* Try again what waits, but for slow reads. */
void demand_serve(struct infill_session *s);

/* A chunk that was read for faults is here. */
void demand_read_done(struct infill_session *s, struct chunk *c);

/* COUNT pages from PAGE on are settled: whoever waited for them was woken. */
void demand_settled(struct infill_session *s, uint64_t page, uint64_t count);

#endif
