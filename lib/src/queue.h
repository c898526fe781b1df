/* SPDX-License-Identifier: MIT */
/*
 * queue.h: what to fill next when no fault waits: the trace in first-touch
 * order, then what is left of the image, at a bounded rate.  Demand does not
 * pass through here: it is always first.
 * Internal; used by the session's thread.
 */
#ifndef INFILL_QUEUE_H
#define INFILL_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct infill_session;
struct pagemap_region;

struct queue {
	size_t run;           /* trace: the run that is handed out */
	uint64_t run_done;    /* bytes of it */
	bool trace_over;      /* all of the trace was handed out */
	uint64_t rest;        /* page to look at next */
	uint64_t extent_from; /* the extent of the image looked up last */
	uint64_t extent_end;
	bool extent_hole;
	double tokens; /* bytes that may be filled now, under a rate */
	uint64_t tokens_ns;
};

/*
 * Pages to fill: all of them or, of the trace, those that its runs FROM to TO
 * (excluded) name: what lies between them is too little to read around.
 */
struct queue_run {
	const struct pagemap_region *region;
	uint64_t page, count;
	bool trace; /* else what is left */
	bool hole;  /* reads as zero: nothing has to be installed */
	size_t from, to;
};

/*
 * Take the next run: at most MAX_BYTES (one page at least; holes may be
 * longer), its first page missing.  False: nothing now; ask again after
 * queue_wait().
 */
bool queue_next(struct infill_session *s, uint64_t max_bytes, uint64_t now, struct queue_run *run);

/*
 * The first pages of RUN from page AT on that it wants: returns the first and
 * sets *COUNT (0: none is left).
 */
uint64_t queue_wanted(const struct infill_session *s, const struct queue_run *run, uint64_t at,
		      uint64_t *count);

/* ns until queue_next() may have something; UINT64_MAX: only when something else changes. */
uint64_t queue_wait(struct infill_session *s, uint64_t now);

#endif
