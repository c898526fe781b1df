/* SPDX-License-Identifier: MIT */
/*
 * histogram_test.c: quantiles against sorted data, and the percentile text
 * against what HdrHistogram 2.1.11 (Debian's libhdrhistogram-java) prints.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <sys/mman.h>

#include "histogram.h"
#include "scratch.h"

#define LARGEST ((1ull << 37) - 1)

static struct histogram *histogram_new(void)
{
	return calloc(1, sizeof(struct histogram));
}

static uint64_t random_state = 88172645463325252ull;

static uint64_t random_value(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	return random_state ^= random_state << 17;
}

/* The highest value that shares VALUE's bucket: 3 significant digits. */
static uint64_t highest_equivalent(uint64_t value)
{
	uint64_t size = 1;

	while (value / size >= 2048)
		size *= 2;
	return value / size * size + size - 1;
}

static void empty_has_no_percentiles(void **state)
{
	struct histogram *h = histogram_new();

	(void)state;
	assert_int_equal(histogram_count(h), 0);
	assert_int_equal(histogram_percentile(h, 50), 0);
	assert_int_equal(histogram_percentile(h, 100), 0);
	free(h);
}

static void percentiles_of_one_to_a_thousand(void **state)
{
	static const struct {
		double percent;
		uint64_t value;
	} table[] = {
		{ 0, 1 },     { -5, 1 },      { 0.1, 1 },    { 0.11, 2 },     { 1, 10 },
		{ 50, 500 },  { 50.01, 501 }, { 90, 900 },   { 99, 990 },     { 99.9, 999 },
		{ 16.1, 161 }, { 99.91, 1000 }, { 100, 1000 },   { 200, 1000 },
	};
	struct histogram *h = histogram_new();

	(void)state;
	for (uint64_t i = 1000; i; i--)
		histogram_record(h, i);
	assert_int_equal(histogram_count(h), 1000);
	for (size_t i = 0; i < COUNT(table); i++)
		assert_int_equal(histogram_percentile(h, table[i].percent), table[i].value);
	free(h);
}

static void each_value_has_three_digits(void **state)
{
	(void)state;
	for (unsigned bit = 0; bit < 37; bit++)
		for (int step = -1; step <= 1; step++) {
			uint64_t value = (1ull << bit) + (uint64_t)step, at;
			struct histogram *h = histogram_new();

			histogram_record(h, value);
			histogram_record(h, LARGEST);
			at = histogram_percentile(h, 50);
			assert_int_equal(at, highest_equivalent(value));
			assert_true(at >= value && at - value <= value / 1000);
			free(h);
		}
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void random_data_has_the_quantiles_of_a_sorted_array(void **state)
{
	enum { N = 54321 };
	static const double percents[] = { 0.5, 10, 25, 50, 75, 90, 99, 99.9, 99.99 };
	uint64_t *value = malloc(N * sizeof(*value));
	struct histogram *h = histogram_new();
	uint64_t sum = 0;

	(void)state;
	for (size_t i = 0; i < N; i++) {
		value[i] = random_value() >> (27 + random_value() % 37);
		sum += value[i];
		histogram_record(h, value[i]);
	}
	qsort(value, N, sizeof(*value), by_value);
	assert_int_equal(h->sum, sum);
	assert_int_equal(h->max, value[N - 1]);
	assert_int_equal(histogram_count(h), N);
	for (size_t i = 0; i < COUNT(percents); i++) {
		uint64_t exact = value[(size_t)ceil(percents[i] / 100 * N) - 1];

		assert_int_equal(histogram_percentile(h, percents[i]), highest_equivalent(exact));
	}
	assert_int_equal(histogram_percentile(h, 100), value[N - 1]);
	free(h);
	free(value);
}

static void no_percentile_is_above_the_maximum(void **state)
{
	struct histogram *h = histogram_new();

	(void)state;
	histogram_record(h, 1000000); /* its bucket ends at 1000447 */
	assert_int_equal(histogram_percentile(h, 50), 1000000);
	assert_int_equal(histogram_percentile(h, 100), 1000000);
	free(h);
}

static void too_large_counts_as_the_largest(void **state)
{
	struct histogram *h = histogram_new();

	(void)state;
	histogram_record(h, LARGEST);
	histogram_record(h, LARGEST + 1);
	histogram_record(h, 1ull << 62);
	assert_int_equal(h->bucket[HISTOGRAM_BUCKETS - 1], 3);
	assert_int_equal(h->max, 1ull << 62);
	assert_int_equal(histogram_percentile(h, 100), LARGEST);
	free(h);
}

static void merging_is_recording_both(void **state)
{
	struct histogram *a = histogram_new(), *b = histogram_new(), *both = histogram_new();

	(void)state;
	for (unsigned i = 0; i < 5000; i++) {
		uint64_t value = random_value() >> (27 + random_value() % 37);

		histogram_record(i % 3 ? a : b, value);
		histogram_record(both, value);
	}
	histogram_merge(a, b);
	assert_memory_equal(a, both, sizeof(*a));
	free(a);
	free(b);
	free(both);
}

/* ---- text --------------------------------------------------------------------- */

static char *text_of(const struct histogram *h)
{
	static char text[65536];
	int fd = memfd_create("text", MFD_CLOEXEC);
	ssize_t length;

	assert_int_equal(histogram_write(h, fd), 0);
	length = pread(fd, text, sizeof(text) - 1, 0);
	assert_true(length > 0);
	text[length] = 0;
	close(fd);
	return text;
}

static const char *const golden =
	"       Value     Percentile TotalCount 1/(1-Percentile)\n"
	"\n"
	"       1.000 0.000000000000          2           1.00\n"
	"       1.000 0.100000000000          2           1.11\n"
	"       1.000 0.200000000000          2           1.25\n"
	"       1.500 0.300000000000          3           1.43\n"
	"       1.500 0.400000000000          3           1.67\n"
	"       3.001 0.500000000000          5           2.00\n"
	"       3.001 0.550000000000          5           2.22\n"
	"       3.001 0.600000000000          5           2.50\n"
	"       3.001 0.650000000000          5           2.86\n"
	"       3.001 0.700000000000          5           3.33\n"
	"     250.111 0.750000000000          6           4.00\n"
	"     250.111 0.775000000000          6           4.44\n"
	"     250.111 0.800000000000          6           5.00\n"
	"     250.111 0.825000000000          6           5.71\n"
	"     250.111 0.850000000000          6           6.67\n"
	"    1000.447 0.875000000000          7           8.00\n"
	"    1000.447 1.000000000000          7\n"
	/* HdrHistogram takes the mean of the buckets' middles, 179.963; this one is exact. */
	"#[Mean    =      179.929, StdDeviation   =      345.631]\n"
	"#[Max     =     1000.447, Total count    =            7]\n"
	"#[Buckets =           27, SubBuckets     =         2048]\n";

static struct histogram *golden_data(void)
{
	static const uint64_t values[] = { 1000, 1000, 1500, 3000, 3001, 250000, 1000000 };
	struct histogram *h = histogram_new();

	for (size_t i = 0; i < COUNT(values); i++)
		histogram_record(h, values[i]);
	return h;
}

static void text_is_hdrhistograms(void **state)
{
	struct histogram *h = golden_data();

	(void)state;
	assert_string_equal(text_of(h), golden);
	free(h);
}

static void text_does_not_depend_on_the_locale(void **state)
{
	static const char *const commas[] = { "de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "fr_FR" };
	struct histogram *h = golden_data();
	const char *locale = NULL;

	(void)state;
	for (size_t i = 0; i < COUNT(commas) && !locale; i++)
		locale = setlocale(LC_NUMERIC, commas[i]);
	if (!locale) {
		free(h);
		print_message("no locale with decimal commas is installed\n");
		skip();
	}
	assert_string_equal(text_of(h), golden);
	setlocale(LC_NUMERIC, "C");
	free(h);
}

static void text_of_nothing_has_no_rows(void **state)
{
	struct histogram *h = histogram_new();

	(void)state;
	assert_string_equal(text_of(h),
			    "       Value     Percentile TotalCount 1/(1-Percentile)\n\n"
			    "#[Mean    =        0.000, StdDeviation   =        0.000]\n"
			    "#[Max     =        0.000, Total count    =            0]\n"
			    "#[Buckets =           27, SubBuckets     =         2048]\n");
	free(h);
}

static void text_of_one_value_ends(void **state)
{
	static const uint64_t values[] = { 0, 1, 2047, 2048, LARGEST, UINT64_MAX };

	(void)state;
	for (size_t i = 0; i < COUNT(values); i++) {
		struct histogram *h = histogram_new();

		histogram_record(h, values[i]);
		alarm(10);
		assert_non_null(strstr(text_of(h), " 1.000000000000          1\n#["));
		assert_non_null(strstr(text_of(h), "StdDeviation   =        0.000]"));
		alarm(0);
		free(h);
	}
}

static void write_errors_are_told(void **state)
{
	struct histogram *h = golden_data();
	int full = open("/dev/full", O_WRONLY | O_CLOEXEC);

	(void)state;
	assert_int_equal(histogram_write(h, -1), -EBADF);
	assert_int_equal(histogram_write(h, full), -ENOSPC);
	close(full);
	free(h);
}

/* ---- one writer, one reader ------------------------------------------------------ */

static void *record_many(void *arg)
{
	for (uint64_t i = 0; i < 300000; i++)
		histogram_record(arg, i % 5000);
	return NULL;
}

static void reading_while_it_is_written(void **state)
{
	struct histogram *h = histogram_new();
	uint64_t before = 0;
	pthread_t writer;

	(void)state;
	assert_int_equal(pthread_create(&writer, NULL, record_many, h), 0);
	while (before < 300000) {
		uint64_t count = histogram_count(h);

		assert_true(count >= before);
		assert_true(histogram_percentile(h, 99) < 5001);
		assert_non_null(strstr(text_of(h), "#[Max"));
		before = count;
	}
	pthread_join(writer, NULL);
	free(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(empty_has_no_percentiles),
		cmocka_unit_test(percentiles_of_one_to_a_thousand),
		cmocka_unit_test(each_value_has_three_digits),
		cmocka_unit_test(random_data_has_the_quantiles_of_a_sorted_array),
		cmocka_unit_test(no_percentile_is_above_the_maximum),
		cmocka_unit_test(too_large_counts_as_the_largest),
		cmocka_unit_test(merging_is_recording_both),
		cmocka_unit_test(text_is_hdrhistograms),
		cmocka_unit_test(text_does_not_depend_on_the_locale),
		cmocka_unit_test(text_of_nothing_has_no_rows),
		cmocka_unit_test(text_of_one_value_ends),
		cmocka_unit_test(write_errors_are_told),
		cmocka_unit_test(reading_while_it_is_written),
	};

	return cmocka_run_group_tests_name("histogram", tests, NULL, NULL);
}
