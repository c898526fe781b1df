/* SPDX-License-Identifier: MIT */
/*
 * recording_test.c: what a recording takes in, and when it closes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "recording.h"
#include "scratch.h"

#define CAPACITY 100u
#define SECOND 1000000000ull
#define BEGIN (5 * SECOND) /* time of the first touch */

static const struct recording_limits limits = { .settle_ns = SECOND, .time_ns = 30 * SECOND,
						 .pages = 90 };

static struct recording *recording_new(void)
{
	struct recording *r = calloc(1, sizeof(*r) + (CAPACITY + 10) * sizeof(r->page[0]));

	r->capacity = CAPACITY;
	return r;
}

/* COUNT touches of a page each at NOW. */
static void touch(struct recording *r, unsigned count, uint64_t now)
{
	for (unsigned i = 0; i < count; i++)
		recording_add(r, 7, 1, now);
}

static void touches_are_kept_in_order(void **state)
{
	static const uint32_t want[] = { 9, 3, 4, 5, 9 };
	struct recording *r = recording_new();

	(void)state;
	recording_add(r, 9, 1, BEGIN);
	recording_add(r, 3, 3, BEGIN + 1);
	recording_add(r, 100, 0, BEGIN + 2);
	recording_add(r, 9, 1, BEGIN + 3);
	assert_int_equal(r->count, COUNT(want));
	for (size_t i = 0; i < COUNT(want); i++)
		assert_int_equal(r->page[i], want[i]);
	assert_int_equal(r->first_ns, BEGIN);
	free(r);
}

static void capacity_is_kept(void **state)
{
	struct recording *r = recording_new();

	(void)state;
	recording_add(r, 0, CAPACITY - 1, BEGIN);
	recording_add(r, 500, 5, BEGIN);
	recording_add(r, 600, 1, BEGIN);
	assert_int_equal(r->count, CAPACITY);
	assert_int_equal(r->page[CAPACITY - 1], 500);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(r->page[CAPACITY + i], 0);
	free(r);
}

/* A state file can be damaged: no store outside of it. */
static void a_count_past_the_capacity_is_full(void **state)
{
	struct recording *r = recording_new();

	(void)state;
	r->count = UINT64_MAX - 1;
	r->first_ns = BEGIN;
	recording_add(r, 1, 4, BEGIN);
	assert_int_equal(r->count, UINT64_MAX - 1);
	assert_true(recording_over(r, &limits, BEGIN));
	free(r);
}

static void nothing_is_over_before_the_first_touch(void **state)
{
	struct recording *r = recording_new();

	(void)state;
	assert_false(recording_over(r, &limits, UINT64_MAX));
	assert_int_equal(recording_next(r, &limits, BEGIN), UINT64_MAX);
	free(r);
}

struct step {
	unsigned touches;
	uint64_t touched, asked; /* after BEGIN, in ms */
	bool over;
	uint64_t next; /* ms; 0: not looked at */
};

static void follows(const struct step *step, size_t count)
{
	struct recording *r = recording_new();

	for (size_t i = 0; i < count; i++) {
		uint64_t asked = BEGIN + step[i].asked * 1000000;

		touch(r, step[i].touches, BEGIN + step[i].touched * 1000000);
		assert_int_equal(recording_over(r, &limits, asked), step[i].over);
		if (step[i].next)
			assert_int_equal(recording_next(r, &limits, asked),
					 step[i].next * 1000000);
	}
	free(r);
}

static void a_quiet_window_settles(void **state)
{
	static const struct step steps[] = {
		{ 15, 0, 0, false, 1000 }, { 0, 0, 999, false, 1 }, { 0, 0, 1000, true, 0 },
	};

	(void)state;
	follows(steps, COUNT(steps));
}

static void a_busy_window_is_followed_by_another(void **state)
{
	static const struct step steps[] = {
		{ 16, 0, 1000, false, 1000 }, { 16, 1500, 2000, false, 1000 },
		{ 15, 2500, 2999, false, 1 }, { 0, 0, 3000, true, 0 },
	};

	(void)state;
	follows(steps, COUNT(steps));
}

static void touches_of_an_earlier_window_do_not_count(void **state)
{
	static const struct step steps[] = {
		{ 50, 0, 1000, false, 1000 }, { 0, 0, 2000, true, 0 },
	};

	(void)state;
	follows(steps, COUNT(steps));
}

static void a_touch_counts_once_however_large(void **state)
{
	struct recording *r = recording_new();

	(void)state;
	recording_add(r, 0, 64, BEGIN);
	assert_true(recording_over(r, &limits, BEGIN + SECOND));
	free(r);
}

static void time_closes_a_guest_that_never_settles(void **state)
{
	struct recording_limits endless = { .settle_ns = SECOND, .time_ns = 3 * SECOND + SECOND / 2,
					    .pages = 1000 };
	struct recording *r = recording_new();

	(void)state;
	r->capacity = CAPACITY;
	for (unsigned second = 0; second < 3; second++) {
		touch(r, 16, BEGIN + second * SECOND);
		assert_false(recording_over(r, &endless, BEGIN + second * SECOND + SECOND - 1));
		assert_false(recording_over(r, &endless, BEGIN + second * SECOND + SECOND));
	}
	touch(r, 16, BEGIN + 3 * SECOND);
	assert_int_equal(recording_next(r, &endless, BEGIN + 3 * SECOND), SECOND / 2);
	assert_false(recording_over(r, &endless, BEGIN + endless.time_ns - 1));
	assert_true(recording_over(r, &endless, BEGIN + endless.time_ns));
	free(r);
}

static void pages_close_it(void **state)
{
	static const struct step steps[] = { { 89, 0, 1, false, 999 }, { 1, 1, 1, true, 0 } };

	(void)state;
	follows(steps, COUNT(steps));
}

static void a_full_recording_is_over(void **state)
{
	const struct recording_limits more = { SECOND, 30 * SECOND, 1000 };
	struct recording *r = recording_new();

	(void)state;
	touch(r, CAPACITY, BEGIN);
	assert_int_equal(recording_next(r, &more, BEGIN), 0);
	assert_true(recording_over(r, &more, BEGIN));
	free(r);
}

static void closed_is_for_good(void **state)
{
	struct recording *r = recording_new();

	(void)state;
	touch(r, 1, BEGIN);
	assert_int_equal(r->closed, 0);
	assert_true(recording_over(r, &limits, BEGIN + SECOND));
	assert_int_equal(r->closed, 1);
	touch(r, 50, BEGIN + SECOND);
	assert_int_equal(r->count, 1);
	assert_true(recording_over(r, &limits, BEGIN));
	assert_int_equal(recording_next(r, &limits, BEGIN), UINT64_MAX);
	free(r);
}

static void a_clock_that_is_behind_does_no_harm(void **state)
{
	struct recording *r = recording_new();

	(void)state;
	touch(r, 1, BEGIN);
	assert_false(recording_over(r, &limits, BEGIN - SECOND));
	assert_int_equal(recording_next(r, &limits, BEGIN - SECOND), SECOND);
	free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(touches_are_kept_in_order),
		cmocka_unit_test(capacity_is_kept),
		cmocka_unit_test(a_count_past_the_capacity_is_full),
		cmocka_unit_test(nothing_is_over_before_the_first_touch),
		cmocka_unit_test(a_quiet_window_settles),
		cmocka_unit_test(a_busy_window_is_followed_by_another),
		cmocka_unit_test(touches_of_an_earlier_window_do_not_count),
		cmocka_unit_test(a_touch_counts_once_however_large),
		cmocka_unit_test(time_closes_a_guest_that_never_settles),
		cmocka_unit_test(pages_close_it),
		cmocka_unit_test(a_full_recording_is_over),
		cmocka_unit_test(closed_is_for_good),
		cmocka_unit_test(a_clock_that_is_behind_does_no_harm),
	};

	return cmocka_run_group_tests_name("recording", tests, NULL, NULL);
}
