/* SPDX-License-Identifier: MIT */
/*
 * touch.h: threads that touch guest memory as vCPUs would, and what each
 * touch cost as seen by the thread itself.
 *
 * Threads are not pinned.  A touch reads the first 8 bytes of a granule (or
 * writes them back too), and they must be those of the image.
 */
#ifndef BENCH_TOUCH_H
#define BENCH_TOUCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pattern.h"

struct touch {
	const uint8_t *base;          /* guest memory */
	size_t page;                  /* granule in bytes */
	const struct pattern *pattern;
	unsigned threads;
	bool write;                   /* read and write, as a guest that uses its memory does */
	bool missing_only;            /* ask mincore() first, measure only what is not there */
	uint64_t gap_ns;              /* between two touches; 0: back to back */
	size_t most;                  /* touches to measure at most; 0: all */
	const atomic_bool *stop;      /* give up when set; may be NULL */
};

struct touched {
	uint64_t end_ns; /* when the last thread was done */
	size_t count;    /* touches measured */
	double p50_us, p99_us;
};

struct touch_team;

/* Start the threads; they wait for touch_go(). */
struct touch_team *touch_prepare(unsigned threads, size_t most);

/* Touch, and wait until all is done.  fail() if a byte is wrong. */
void touch_go(struct touch_team *team, const struct touch *touch, struct touched *result);

void touch_dismiss(struct touch_team *team);

#endif
