/* SPDX-License-Identifier: MIT */
/*
 * recording.h: a trace while it is being recorded.
 *
 * The struct lives in the session's state memfd and survives the process.
 * Single writer.  The window ends when the guest has settled, after a time,
 * or when enough pages are there; recording_over() finds that out and closes
 * the recording for good.  Internal.
 */
#ifndef INFILL_RECORDING_H
#define INFILL_RECORDING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct recording {
	_Atomic uint64_t count;     /* pages in `page` */
	_Atomic uint64_t capacity;
	_Atomic uint64_t first_ns;  /* first touch; 0: none yet */
	_Atomic uint64_t window_ns; /* begin of the settle window under way */
	_Atomic uint64_t window_count; /* touches in it */
	_Atomic uint32_t closed;    /* set by recording_over(), never cleared */
	uint32_t reserved;
	_Atomic uint32_t page[];
};

#define RECORDING_SETTLED 16 /* fewer first touches than this in a settle window close it */

struct recording_limits {
	uint64_t settle_ns, time_ns, pages;
};

/*
 * Add the first touch of COUNT pages from PAGE on at time NOW (not 0).  One
 * call is one touch, however large the guest's page is.  Ignored once closed
 * or full; what no longer fits is left out.
 */
void recording_add(struct recording *r, uint32_t page, uint32_t count, uint64_t now);

/*
 * Is the window over at NOW?  (settled, too long, or full; never before the
 * first touch)  Closes the recording when it says so for the first time, and
 * begins the next settle window when one has passed that was busy.
 */
bool recording_over(struct recording *r, const struct recording_limits *limits, uint64_t now);

/* When to ask again: ns from NOW; UINT64_MAX: not before the next touch, or never. */
uint64_t recording_next(const struct recording *r, const struct recording_limits *limits,
			uint64_t now);

#endif
