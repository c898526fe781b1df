/* SPDX-License-Identifier: MIT */
/*
 * stats.h: what a session has done: counters, times, latencies.
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
#include <stdbool.h>
#include <stdint.h>

#include "histogram.h"
#include "infill.h"

struct stats {
	_Atomic uint64_t faults, demand_pages, trace_pages, rest_pages, bytes, zero_pages, duplicates,
		retries, poisoned, removed, read_bytes, slow_reads, resumes, prefault_bytes;
	_Atomic uint64_t start_ns, restored_ns, trace_done_ns, first_work_ns, resident_ns;
	struct histogram latency; /* fault-to-wake; its sum is the stall */
};

/* counter += n, by the single writer. */
static inline void stats_add(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

/* Set a time once, to NS (not 0); false if it was set.  Any thread. */
bool stats_mark(_Atomic uint64_t *time, uint64_t ns);

/*
 * Add FROM's counters and latencies to TO's, which is private to the caller, and
 * take its times where TO has none.
 */
void stats_sum(struct stats *to, const struct stats *from);

/*
 * Everything in `infill_counters` but `pages`, which is left as it is; honours
 * counters->size: what a longer one has more becomes 0.  -EINVAL: no sane size.
 */
int stats_read(const struct stats *s, struct infill_counters *counters);

/* CLOCK_MONOTONIC in ns. */
uint64_t stats_now(void);

#endif
