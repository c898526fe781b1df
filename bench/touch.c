/* SPDX-License-Identifier: MIT */
/*
 * touch.c: the faulting threads.  What a touch is may change only together
 * with every figure that was published.
 */
#include "touch.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "content.h"
#include "machine.h"

struct member {
	struct touch_team *team;
	pthread_t thread;
	unsigned number;
	uint32_t *sample; /* nanoseconds */
	size_t count, wrong;
	uint64_t end_ns;
};

struct touch_team {
	unsigned threads;
	size_t most; /* samples that there is room for, per member */
	pthread_barrier_t begin, end;
	const struct touch *touch; /* NULL: go home */
	uint32_t *all;
	struct member member[];
};

/* Numbers of the granules of member M: from *AT on, *STEP apart, up to *END. */
static void share(const struct member *m, const struct touch *t, size_t *at, size_t *end,
		  size_t *step)
{
	size_t count = t->pattern->count;

	if (t->pattern->contiguous) {
		*at = count * m->number / t->threads;
		*end = count * (m->number + 1) / t->threads;
		*step = 1;
	} else {
		*at = m->number;
		*end = count;
		*step = t->threads;
	}
}

static bool is_missing(const uint8_t *at)
{
	unsigned char there = 0;

	return !mincore((void *)(uintptr_t)at, CONTENT_PAGE, &there) && !(there & 1);
}

static void touch_one(struct member *m, const struct touch *t, uint32_t granule)
{
	uint64_t page = (uint64_t)granule * (t->page / CONTENT_PAGE), value, begin, took;
	volatile uint64_t *at = (volatile uint64_t *)(uintptr_t)(t->base + page * CONTENT_PAGE);

	if (t->missing_only && !is_missing((const uint8_t *)(uintptr_t)at))
		return;
	begin = now_ns();
	value = *at;
	if (t->write)
		*at = value;
	took = now_ns() - begin;
	m->wrong += value != content_word(page);
	if (m->count < m->team->most)
		m->sample[m->count++] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
}

static void sleep_until(uint64_t at)
{
	struct timespec t = { (time_t)(at / 1000000000u), (long)(at % 1000000000u) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static void touch_share(struct member *m, const struct touch *t)
{
	size_t at, end, step;
	uint64_t due = now_ns();

	m->count = m->wrong = 0;
	share(m, t, &at, &end, &step);
	for (; at < end; at += step) {
		if (t->stop && atomic_load_explicit(t->stop, memory_order_relaxed))
			break;
		if (t->most && m->count >= t->most)
			break;
		if (t->gap_ns)
			sleep_until(due += t->gap_ns);
		touch_one(m, t, t->pattern->granule[at]);
	}
	m->end_ns = now_ns();
}

static void *work(void *arg)
{
	struct member *m = arg;

	prctl(PR_SET_TIMERSLACK, 1ul);
	for (;;) {
		pthread_barrier_wait(&m->team->begin);
		if (!m->team->touch)
			return NULL;
		touch_share(m, m->team->touch);
		pthread_barrier_wait(&m->team->end);
	}
}

struct touch_team *touch_prepare(unsigned threads, size_t most)
{
	struct touch_team *team = calloc(1, sizeof(*team) + threads * sizeof(team->member[0]));

	if (!team)
		fail("threads", "no memory");
	team->threads = threads;
	team->most = most;
	team->all = machine_alloc(threads * most * sizeof(*team->all), "samples");
	pthread_barrier_init(&team->begin, NULL, threads + 1);
	pthread_barrier_init(&team->end, NULL, threads + 1);
	for (unsigned i = 0; i < threads; i++) {
		struct member *m = &team->member[i];

		m->team = team;
		m->number = i;
		m->sample = team->all + i * most;
		if (pthread_create(&m->thread, NULL, work, m))
			fail("threads", "cannot start thread %u", i);
	}
	return team;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* Close up the members' samples, sort them, read the percentiles. */
static void gather(struct touch_team *team, struct touched *result)
{
	size_t count = 0, wrong = 0;

	*result = (struct touched){ 0 };
	for (unsigned i = 0; i < team->threads; i++) {
		struct member *m = &team->member[i];

		memmove(team->all + count, m->sample, m->count * sizeof(*m->sample));
		count += m->count;
		wrong += m->wrong;
		if (m->end_ns > result->end_ns)
			result->end_ns = m->end_ns;
	}
	if (wrong)
		fail("guest memory", "%zu of %zu pages have wrong content", wrong, count);
	result->count = count;
	if (!count)
		return;
	qsort(team->all, count, sizeof(*team->all), by_value);
	result->p50_us = team->all[count / 2] / 1e3;
	result->p99_us = team->all[count * 99 / 100] / 1e3;
}

void touch_go(struct touch_team *team, const struct touch *touch, struct touched *result)
{
	team->touch = touch;
	pthread_barrier_wait(&team->begin);
	pthread_barrier_wait(&team->end);
	gather(team, result);
}

void touch_dismiss(struct touch_team *team)
{
	team->touch = NULL;
	pthread_barrier_wait(&team->begin);
	for (unsigned i = 0; i < team->threads; i++)
		pthread_join(team->member[i].thread, NULL);
	pthread_barrier_destroy(&team->begin);
	pthread_barrier_destroy(&team->end);
	machine_free(team->all, team->threads * team->most * sizeof(*team->all));
	free(team);
}
