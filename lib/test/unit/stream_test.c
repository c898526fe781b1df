/* SPDX-License-Identifier: MIT */
/* stream_test.c: which faults are taken for a stream, and how far ahead of them is filled. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "stream.h"

#define MOST 16

static void faults_one_behind_the_other_double_the_window(void **state)
{
	static const uint64_t expected[] = { 1, 2, 4, 8, 16, 16, 16 };
	struct streams s = { 0 };
	uint64_t page = 1000;

	(void)state;
	for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
		assert_int_equal(streams_window(&s, page, MOST), expected[i]);
		page += expected[i];
	}
}

static void pages_that_are_there_do_not_end_a_stream(void **state)
{
	struct streams s = { 0 };

	(void)state;
	assert_int_equal(streams_window(&s, 10, MOST), 1);
	assert_int_equal(streams_window(&s, 11, MOST), 2);
	/* 13 and 14 were there already; then the window from 15 on ended before 17. */
	assert_int_equal(streams_window(&s, 15, MOST), 4);
	assert_int_equal(streams_window(&s, 17, MOST), 8);
}

static void a_gap_before_there_is_a_stream_is_none(void **state)
{
	struct streams s = { 0 };

	(void)state;
	assert_int_equal(streams_window(&s, 10, MOST), 1);
	assert_int_equal(streams_window(&s, 12, MOST), 1);
	assert_int_equal(streams_window(&s, 11, MOST), 2);
}

static void faults_at_random_or_downwards_are_no_stream(void **state)
{
	struct streams s = { 0 };

	(void)state;
	for (uint64_t page = 5000; page > 4000; page -= 10)
		assert_int_equal(streams_window(&s, page, MOST), 1);
	for (uint64_t i = 1; i < 1000; i++)
		assert_int_equal(streams_window(&s, i * 7919 % 100003 * 64, MOST), 1);
}

static void streams_beside_each_other_are_told_apart(void **state)
{
	struct streams s = { 0 };

	(void)state;
	for (unsigned i = 0; i < STREAMS; i++)
		assert_int_equal(streams_window(&s, i * 10000, MOST), 1);
	for (unsigned i = 0; i < STREAMS; i++)
		assert_int_equal(streams_window(&s, i * 10000 + 1, MOST), 2);
	/* One more, and the oldest is forgotten. */
	assert_int_equal(streams_window(&s, 500000, MOST), 1);
	assert_int_equal(streams_window(&s, 3, MOST), 1);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(faults_one_behind_the_other_double_the_window),
		cmocka_unit_test(pages_that_are_there_do_not_end_a_stream),
		cmocka_unit_test(a_gap_before_there_is_a_stream_is_none),
		cmocka_unit_test(faults_at_random_or_downwards_are_no_stream),
		cmocka_unit_test(streams_beside_each_other_are_told_apart),
	};

	return cmocka_run_group_tests_name("unit/stream_test", tests, NULL, NULL);
}
