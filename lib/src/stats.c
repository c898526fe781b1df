/* SPDX-License-Identifier: MIT */
/*
 * stats.c: hand a session's counters to whoever asks.
 * Internal; the meaning of each counter is ABI (infill.h).
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "err.h"
#include "stats.h"

bool stats_mark(_Atomic uint64_t *time, uint64_t ns)
{
	uint64_t unset = 0;

	return atomic_compare_exchange_strong(time, &unset, ns);
}

uint64_t stats_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t load(const _Atomic uint64_t *from)
{
	return atomic_load_explicit(from, memory_order_relaxed);
}

void stats_sum(struct stats *to, const struct stats *from)
{
	_Atomic uint64_t *const sums[] = {
		&to->faults, &to->demand_pages, &to->trace_pages, &to->rest_pages, &to->bytes,
		&to->zero_pages, &to->duplicates, &to->retries, &to->poisoned, &to->removed,
		&to->read_bytes, &to->slow_reads, &to->resumes, &to->prefault_bytes,
	};
	const _Atomic uint64_t *const parts[] = {
		&from->faults, &from->demand_pages, &from->trace_pages, &from->rest_pages,
		&from->bytes, &from->zero_pages, &from->duplicates, &from->retries,
		&from->poisoned, &from->removed, &from->read_bytes, &from->slow_reads,
		&from->resumes, &from->prefault_bytes,
	};
	_Atomic uint64_t *const times[] = {
		&to->start_ns, &to->restored_ns, &to->trace_done_ns, &to->first_work_ns,
		&to->resident_ns,
	};
	const _Atomic uint64_t *const other[] = {
		&from->start_ns, &from->restored_ns, &from->trace_done_ns, &from->first_work_ns,
		&from->resident_ns,
	};

	for (unsigned i = 0; i < sizeof(sums) / sizeof(sums[0]); i++)
		stats_add(sums[i], load(parts[i]));
	for (unsigned i = 0; i < sizeof(times) / sizeof(times[0]); i++)
		stats_mark(times[i], load(other[i]));
	histogram_merge(&to->latency, &from->latency);
}

static void read_counts(const struct stats *s, struct infill_counters *c)
{
	c->faults = load(&s->faults);
	c->demand_pages = load(&s->demand_pages);
	c->trace_pages = load(&s->trace_pages);
	c->rest_pages = load(&s->rest_pages);
	c->installs = c->demand_pages + c->trace_pages + c->rest_pages;
	c->bytes = load(&s->bytes);
	c->zero_pages = load(&s->zero_pages);
	c->duplicates = load(&s->duplicates);
	c->retries = load(&s->retries);
	c->poisoned = load(&s->poisoned);
	c->removed = load(&s->removed);
	c->read_bytes = load(&s->read_bytes);
	c->slow_reads = load(&s->slow_reads);
	c->resumes = load(&s->resumes);
	c->prefault_bytes = load(&s->prefault_bytes);
}

static void read_latency(const struct histogram *h, struct infill_counters *c)
{
	c->stall_ns = load(&h->sum);
	c->latency_p50_ns = histogram_percentile(h, 50);
	c->latency_p90_ns = histogram_percentile(h, 90);
	c->latency_p99_ns = histogram_percentile(h, 99);
	c->latency_p999_ns = histogram_percentile(h, 99.9);
	c->latency_max_ns = load(&h->max);
	c->latency_count = histogram_count(h);
}

static void read_times(const struct stats *s, struct infill_counters *c)
{
	c->start_ns = load(&s->start_ns);
	c->restored_ns = load(&s->restored_ns);
	c->trace_done_ns = load(&s->trace_done_ns);
	c->first_work_ns = load(&s->first_work_ns);
	c->resident_ns = load(&s->resident_ns);
}

int stats_read(const struct stats *s, struct infill_counters *counters)
{
	struct infill_counters mine = { 0 };
	const size_t least = offsetof(struct infill_counters, pages) + sizeof(mine.pages);
	size_t size = counters->size;

	if (size < least || size > 65536)
		return err_set(-EINVAL, "infill_counters: size is %zu: set it to "
					"sizeof(struct infill_counters)", size);
	mine.size = size;
	mine.pages = counters->pages;
	read_counts(s, &mine);
	read_latency(&s->latency, &mine);
	read_times(s, &mine);
	memcpy(counters, &mine, size < sizeof(mine) ? size : sizeof(mine));
	if (size > sizeof(mine))
		memset((char *)counters + sizeof(mine), 0, size - sizeof(mine));
	return 0;
}
