/* SPDX-License-Identifier: MIT */
/*
 * pattern.h: in which order guest memory is touched.
 */
#ifndef BENCH_PATTERN_H
#define BENCH_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pattern {
	const char *name;
	uint32_t *granule; /* numbers of granules, each once, in order of touch */
	size_t count;
	bool contiguous;   /* each thread gets a stretch; else threads take turns */
};

/* All GRANULES in order. */
void pattern_sequential(struct pattern *p, size_t granules);

/* COUNT of GRANULES in an order that is random and always the same. */
void pattern_random(struct pattern *p, size_t granules, size_t count);

/*
 * What a real guest touched: the pages that the infill trace at PATH names,
 * those within BYTES, in granules of PAGE bytes.  fail() if it cannot be read.
 */
void pattern_recorded(struct pattern *p, const char *path, size_t bytes, size_t page);

void pattern_free(struct pattern *p);

#endif
