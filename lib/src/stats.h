/* SPDX-License-Identifier: MIT */
/*
 * stats.h: what a session has done: counters, times, a latency histogram.
 *
 * The structs live in the session's state memfd, so that a resumed session
 * goes on counting; they hold no pointers.  One thread writes (plain relaxed
 * stores, no locked instruction); any thread or process reads.
 * The layout is private to one build: pagemap.c refuses a state file of
 * another layout.
 */
#ifndef INFILL_STATS_H
#define INFILL_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#include "infill.h"

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

struct stats {
	_Atomic uint64_t faults, demand_pages, trace_pages, rest_pages, bytes, zero_pages, duplicates,
		retries, poisoned, removed, read_bytes, slow_reads, resumes;
	_Atomic uint64_t start_ns, restored_ns, trace_done_ns, first_work_ns, resident_ns;
	struct histogram latency; /* fault-to-wake; its sum is the stall */
};

/* counter += n, by the single writer. */
static inline void stats_add(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

/* Set a time once; false if it was set. */
bool stats_mark(_Atomic uint64_t *time, uint64_t ns);

/* Everything in `infill_counters` but `pages`; honours counters->size. */
int stats_read(const struct stats *s, struct infill_counters *counters);

/* CLOCK_MONOTONIC in ns. */
uint64_t stats_now(void);

#endif
