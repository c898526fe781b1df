/* SPDX-License-Identifier: MIT */
/*
 * histogram.h: latencies in log-linear buckets, and HdrHistogram's text.
 *
 * The struct lives in shared memory and holds no pointers.  One thread writes
 * (plain relaxed stores, no locked instruction); any thread or process reads.
 * Its layout may change with HISTOGRAM_BUCKETS only.  Internal.
 */
#ifndef INFILL_HISTOGRAM_H
#define INFILL_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

/*
 * Log-linear buckets, 3 significant digits: values below 2048 ns have a
 * bucket each, and every further power of two is cut into 1024, up to
 * 2^37 ns (137 s); larger values count as the largest.
 */
#define HISTOGRAM_BUCKETS (2048u + 26u * 1024u)

struct histogram {
	_Atomic uint64_t max; /* exact */
	_Atomic uint64_t sum; /* exact, ns */
	_Atomic uint64_t bucket[HISTOGRAM_BUCKETS];
};

/* Add one value.  Single writer. */
void histogram_record(struct histogram *h, uint64_t ns);

/* Add all of FROM to TO, which is private to the caller. */
void histogram_merge(struct histogram *to, const struct histogram *from);

/* The value, in ns, that PERCENT of all are at or below (highest equivalent
 * value of its bucket, at most max); 0 if empty. */
uint64_t histogram_percentile(const struct histogram *h, double percent);

uint64_t histogram_count(const struct histogram *h);

/* HdrHistogram's percentile text ("outputPercentileDistribution"), scaled to
 * microseconds, 5 ticks per half distance.  0 or -errno. */
int histogram_write(const struct histogram *h, int fd);

#endif
