/* SPDX-License-Identifier: MIT */
/*
 * stats_test.c: counters and times of a session, and how they are read.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "infill.h"
#include "scratch.h"
#include "stats.h"

static struct stats *stats_new(void)
{
	return calloc(1, sizeof(struct stats));
}

static void each_counter_is_read_as_itself(void **state)
{
	struct stats *s = stats_new();
	struct infill_counters c = { .size = sizeof(c), .pages = 77 };
	_Atomic uint64_t *const from[] = {
		&s->faults, &s->demand_pages, &s->trace_pages, &s->rest_pages, &s->bytes,
		&s->zero_pages, &s->duplicates, &s->retries, &s->poisoned, &s->removed,
		&s->read_bytes, &s->slow_reads, &s->resumes, &s->start_ns, &s->restored_ns,
		&s->trace_done_ns, &s->first_work_ns, &s->resident_ns, &s->prefault_bytes,
	};
	const uint64_t *const to[] = {
		&c.faults, &c.demand_pages, &c.trace_pages, &c.rest_pages, &c.bytes,
		&c.zero_pages, &c.duplicates, &c.retries, &c.poisoned, &c.removed,
		&c.read_bytes, &c.slow_reads, &c.resumes, &c.start_ns, &c.restored_ns,
		&c.trace_done_ns, &c.first_work_ns, &c.resident_ns, &c.prefault_bytes,
	};

	(void)state;
	for (size_t i = 0; i < COUNT(from); i++) {
		stats_add(from[i], 100 + i);
		stats_add(from[i], 1000);
	}
	assert_int_equal(stats_read(s, &c), 0);
	for (size_t i = 0; i < COUNT(to); i++)
		assert_int_equal(*to[i], 1100 + i);
	assert_int_equal(c.installs, 1101 + 1102 + 1103);
	assert_int_equal(c.pages, 77);
	free(s);
}

/* Of two writers: each counter is the sum, and the times are of the first that has them. */
static void a_sum_has_all_of_both(void **state)
{
	struct stats *a = stats_new(), *b = stats_new(), *sum = stats_new();
	const size_t words = offsetof(struct stats, latency) / sizeof(uint64_t);
	const size_t first_time = offsetof(struct stats, start_ns) / sizeof(uint64_t);

	(void)state;
	/* The counters and then the times are the words before the histogram. */
	for (size_t i = 0; i < words; i++) {
		stats_add((_Atomic uint64_t *)a + i, 10 + i);
		stats_add((_Atomic uint64_t *)b + i, 1000 * i + 7);
	}
	histogram_record(&a->latency, 100);
	histogram_record(&b->latency, 2000);
	stats_sum(sum, a);
	stats_sum(sum, b);
	for (size_t i = 0; i < words; i++)
		assert_int_equal(((_Atomic uint64_t *)sum)[i], i < first_time ? 1001 * i + 17 : 10 + i);
	assert_int_equal(histogram_count(&sum->latency), 2);
	assert_int_equal(sum->latency.sum, 2100);
	free(a);
	free(b);
	free(sum);
}

static void latencies_are_read(void **state)
{
	struct stats *s = stats_new();
	struct infill_counters c = { .size = sizeof(c) };

	(void)state;
	for (uint64_t i = 1; i <= 1000; i++)
		histogram_record(&s->latency, i);
	assert_int_equal(stats_read(s, &c), 0);
	assert_int_equal(c.stall_ns, 500500);
	assert_int_equal(c.latency_p50_ns, 500);
	assert_int_equal(c.latency_p90_ns, 900);
	assert_int_equal(c.latency_p99_ns, 990);
	assert_int_equal(c.latency_p999_ns, 999);
	assert_int_equal(c.latency_max_ns, 1000);
	free(s);
}

static void an_older_caller_gets_what_it_knows(void **state)
{
	struct stats *s = stats_new();
	struct infill_counters c;

	(void)state;
	stats_add(&s->faults, 5);
	stats_add(&s->demand_pages, 6);
	memset(&c, 0x55, sizeof(c));
	c.size = offsetof(struct infill_counters, installs);
	assert_int_equal(stats_read(s, &c), 0);
	assert_int_equal(c.size, offsetof(struct infill_counters, installs));
	assert_int_equal(c.faults, 5);
	assert_int_equal(c.installs, 0x5555555555555555u);
	free(s);
}

static void a_newer_caller_gets_zeros(void **state)
{
	struct stats *s = stats_new();
	struct {
		struct infill_counters c;
		char more[40], end;
	} newer;

	(void)state;
	memset(&newer, 0x55, sizeof(newer));
	newer.c.size = offsetof(__typeof__(newer), end);
	assert_int_equal(stats_read(s, &newer.c), 0);
	assert_int_equal(newer.c.size, offsetof(__typeof__(newer), end));
	for (size_t i = 0; i < sizeof(newer.more); i++)
		assert_int_equal(newer.more[i], 0);
	assert_int_equal(newer.end, 0x55);
	free(s);
}

static void absurd_sizes_are_refused(void **state)
{
	static const size_t sizes[] = { 0, 1, 15, 65537, SIZE_MAX };
	struct stats *s = stats_new();
	struct infill_counters c;

	(void)state;
	for (size_t i = 0; i < COUNT(sizes); i++) {
		c.size = sizes[i];
		assert_int_equal(stats_read(s, &c), -EINVAL);
	}
	free(s);
}

static void the_first_mark_counts(void **state)
{
	struct stats *s = stats_new();

	(void)state;
	assert_true(stats_mark(&s->restored_ns, 11));
	assert_false(stats_mark(&s->restored_ns, 12));
	assert_int_equal(s->restored_ns, 11);
	free(s);
}

#define MARKS 300000u

static pthread_barrier_t start;

static void *mark_all(void *arg)
{
	_Atomic uint64_t *time = arg;
	uintptr_t won = 0;

	pthread_barrier_wait(&start);
	for (unsigned i = 0; i < MARKS; i++)
		won += stats_mark(&time[i], 1);
	return (void *)won;
}

static void one_of_many_threads_marks(void **state)
{
	_Atomic uint64_t *time = calloc(MARKS, sizeof(*time));
	pthread_t thread[4];
	uintptr_t won = 0;

	(void)state;
	pthread_barrier_init(&start, NULL, COUNT(thread));
	for (size_t i = 0; i < COUNT(thread); i++)
		assert_int_equal(pthread_create(&thread[i], NULL, mark_all, (void *)time), 0);
	for (size_t i = 0; i < COUNT(thread); i++) {
		void *part;

		pthread_join(thread[i], &part);
		won += (uintptr_t)part;
	}
	assert_int_equal(won, MARKS);
	pthread_barrier_destroy(&start);
	free((void *)time);
}

static void now_is_the_monotonic_clock(void **state)
{
	struct timespec before, after;
	uint64_t now;

	(void)state;
	clock_gettime(CLOCK_MONOTONIC, &before);
	now = stats_now();
	clock_gettime(CLOCK_MONOTONIC, &after);
	assert_true(now >= (uint64_t)before.tv_sec * 1000000000u + (uint64_t)before.tv_nsec);
	assert_true(now <= (uint64_t)after.tv_sec * 1000000000u + (uint64_t)after.tv_nsec);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_counter_is_read_as_itself),
		cmocka_unit_test(a_sum_has_all_of_both),
		cmocka_unit_test(latencies_are_read),
		cmocka_unit_test(an_older_caller_gets_what_it_knows),
		cmocka_unit_test(a_newer_caller_gets_zeros),
		cmocka_unit_test(absurd_sizes_are_refused),
		cmocka_unit_test(the_first_mark_counts),
		cmocka_unit_test(one_of_many_threads_marks),
		cmocka_unit_test(now_is_the_monotonic_clock),
	};

	return cmocka_run_group_tests_name("stats", tests, NULL, NULL);
}
