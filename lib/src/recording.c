/* SPDX-License-Identifier: MIT */
/*
 * recording.c: take first touches in, and decide when the working set is
 * complete.  A recording that runs too long holds what the guest did later
 * and spoils the trace; hence three limits, of which the first that is
 * reached counts.
 * Internal; the layout is that of the state file of one build.
 */
#include "recording.h"

static uint64_t load(const _Atomic uint64_t *from)
{
	return atomic_load_explicit(from, memory_order_relaxed);
}

static void store(_Atomic uint64_t *to, uint64_t n)
{
	atomic_store_explicit(to, n, memory_order_relaxed);
}

static bool closed(const struct recording *r)
{
	return atomic_load_explicit(&r->closed, memory_order_relaxed);
}

static void begin_window(struct recording *r, uint64_t now)
{
	store(&r->window_count, 0);
	store(&r->window_ns, now);
}

void recording_add(struct recording *r, uint32_t page, uint32_t count, uint64_t now)
{
	uint64_t have = load(&r->count), capacity = load(&r->capacity);

	if (closed(r) || have >= capacity || !count)
		return;
	if (!load(&r->first_ns)) {
		begin_window(r, now);
		store(&r->first_ns, now);
	}
	if (count > capacity - have)
		count = (uint32_t)(capacity - have);
	for (uint32_t i = 0; i < count; i++)
		atomic_store_explicit(&r->page[have + i], page + i, memory_order_relaxed);
	store(&r->window_count, load(&r->window_count) + 1);
	/* Whoever goes on after a crash must not see a count before its pages. */
	atomic_store_explicit(&r->count, have + count, memory_order_release);
}

static uint64_t since(uint64_t begin, uint64_t now)
{
	return now > begin ? now - begin : 0;
}

static bool full(const struct recording *r, const struct recording_limits *limits)
{
	uint64_t count = load(&r->count);

	return count >= limits->pages || count >= load(&r->capacity);
}

static bool settled(struct recording *r, const struct recording_limits *limits, uint64_t now)
{
	if (since(load(&r->window_ns), now) < limits->settle_ns)
		return false;
	if (load(&r->window_count) < RECORDING_SETTLED)
		return true;
	begin_window(r, now);
	return false;
}

bool recording_over(struct recording *r, const struct recording_limits *limits, uint64_t now)
{
	uint64_t first = load(&r->first_ns);

	if (closed(r))
		return true;
	if (!first)
		return false;
	if (!full(r, limits) && since(first, now) < limits->time_ns && !settled(r, limits, now))
		return false;
	atomic_store_explicit(&r->closed, 1, memory_order_release);
	return true;
}

static uint64_t left(uint64_t begin, uint64_t length, uint64_t now)
{
	uint64_t gone = since(begin, now);

	return gone < length ? length - gone : 0;
}

uint64_t recording_next(const struct recording *r, const struct recording_limits *limits,
			uint64_t now)
{
	uint64_t first = load(&r->first_ns), settle, end;

	if (closed(r) || !first)
		return UINT64_MAX;
	if (full(r, limits))
		return 0;
	settle = left(load(&r->window_ns), limits->settle_ns, now);
	end = left(first, limits->time_ns, now);
	return settle < end ? settle : end;
}
