/* SPDX-License-Identifier: MIT */
/*
 * bare.h: the two algorithms of example userfaultfd handlers, each on one
 * plain thread: poll(), read(), ioctl().
 */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <stdint.h>

#include "guest.h"

enum bare_algorithm {
	BARE_PAGE, /* install the page that faulted, in order of arrival */
	BARE_ALL,  /* at the first fault install everything by one call */
};

struct bare;

/*
 * Register G and start the thread, which copies from SOURCE (as large as G;
 * must outlive the handler).
 */
struct bare *bare_start(const struct guest *g, const uint8_t *source,
			enum bare_algorithm algorithm);

/* Stop the thread and close the userfaultfd. */
void bare_stop(struct bare *b);

#endif
