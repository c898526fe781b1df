/* SPDX-License-Identifier: MIT */
/*
 * stream.h: faults at consecutive pages, which are filled in growing runs, as
 * read-ahead does.  Internal; one thread uses a `struct streams`.
 */
#ifndef INFILL_STREAM_H
#define INFILL_STREAM_H

#include <stdint.h>

#define STREAMS 8

struct stream {
	uint64_t last, next; /* the last fault; the next one comes here, or a window off */
	uint32_t window; /* pages; 0: not used yet */
};

struct streams {
	struct stream stream[STREAMS];
	unsigned turn;
};

/*
 * How many pages from PAGE on to fill for a fault there: more than one only
 * where faults come one behind the other, or, once they have, no further than a
 * window from there; twice as many each time, up to MOST (a power of two).
 */
uint64_t streams_window(struct streams *streams, uint64_t page, uint64_t most);

#endif
