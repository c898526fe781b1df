/* SPDX-License-Identifier: MIT */
/* usage.h: what protected VMs take of the host; all in pages. */
#ifndef INFILL_TEST_USAGE_H
#define INFILL_TEST_USAGE_H

#include <stdbool.h>

/* VmLck of this process: what counts against RLIMIT_MEMLOCK. */
long usage_locked(void);

/* Of the whole system. */
struct usage {
	long pinned;
	long tables; /* of all stages 2 */
};
struct usage usage_get(void);

/*
 * Wait, SECONDS at most, until MORE pages or more are pinned than BEFORE; with 0,
 * until no more than that are pinned and tables.
 */
bool usage_wait(const struct usage *before, long more, unsigned seconds);

#endif
