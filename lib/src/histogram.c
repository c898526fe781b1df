/* SPDX-License-Identifier: MIT */
/*
 * histogram.c: log-linear buckets and their percentile text.
 *
 * The buckets are those of HdrHistogram with 3 significant digits, and the
 * text is that of its outputPercentileDistribution(), to the column: its
 * plotters read it.  Change neither.
 * A reader sees a writer's stores in any order, so each count that a result
 * depends on is read once.  No libm: three lines here spare every user of the
 * static library a flag.
 */
#include <errno.h>
#include <float.h>
#include <locale.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "err.h"
#include "histogram.h"

#define LINEAR 2048u          /* values with a bucket each */
#define HALF (LINEAR / 2)     /* buckets of a power of two */
#define LINEAR_BITS 11        /* log2(LINEAR) */
#define LARGEST ((1ull << 37) - 1)
#define HALVINGS 27           /* "Buckets" of the footer: LINEAR << 26 is past LARGEST */
#define TICKS 5               /* rows per half of the distance to 100 % */

static unsigned bucket_of(uint64_t ns)
{
	unsigned shift;

	if (ns > LARGEST)
		ns = LARGEST;
	if (ns < LINEAR)
		return (unsigned)ns;
	shift = 63 - (unsigned)__builtin_clzll(ns) - (LINEAR_BITS - 1);
	return LINEAR + (shift - 1) * HALF + (unsigned)((ns >> shift) - HALF);
}

static unsigned shift_of(unsigned bucket)
{
	return bucket < LINEAR ? 0 : (bucket - LINEAR) / HALF + 1;
}

static uint64_t lowest_in(unsigned bucket)
{
	if (bucket < LINEAR)
		return bucket;
	return (uint64_t)(HALF + (bucket - LINEAR) % HALF) << shift_of(bucket);
}

static uint64_t highest_in(unsigned bucket)
{
	return lowest_in(bucket) + (1ull << shift_of(bucket)) - 1;
}

static uint64_t load(const _Atomic uint64_t *from)
{
	return atomic_load_explicit(from, memory_order_relaxed);
}

static void add(_Atomic uint64_t *to, uint64_t n)
{
	atomic_store_explicit(to, load(to) + n, memory_order_relaxed);
}

void histogram_record(struct histogram *h, uint64_t ns)
{
	if (ns > load(&h->max))
		atomic_store_explicit(&h->max, ns, memory_order_relaxed);
	add(&h->sum, ns);
	add(&h->bucket[bucket_of(ns)], 1);
}

void histogram_merge(struct histogram *to, const struct histogram *from)
{
	uint64_t max = load(&from->max);

	if (max > load(&to->max))
		atomic_store_explicit(&to->max, max, memory_order_relaxed);
	add(&to->sum, load(&from->sum));
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		uint64_t n = load(&from->bucket[i]);

		if (n)
			add(&to->bucket[i], n);
	}
}

uint64_t histogram_count(const struct histogram *h)
{
	uint64_t count = 0;

	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
		count += load(&h->bucket[i]);
	return count;
}

/* How many values are at or below PERCENT: rounded up, at least one. */
static uint64_t rank_of(double percent, uint64_t count)
{
	double exact;
	uint64_t rank;

	if (!(percent > 0))
		return 1;
	if (percent >= 100)
		return count;
	/* A step down, so that 99.9 % of 1000 is the 999th for all that 99.9 is no binary fraction. */
	exact = percent * (1 - DBL_EPSILON / 2) * (double)count / 100;
	rank = (uint64_t)exact;
	if (exact > (double)rank)
		rank++;
	return !rank ? 1 : rank > count ? count : rank;
}

uint64_t histogram_percentile(const struct histogram *h, double percent)
{
	uint64_t count = histogram_count(h), seen = 0, rank, max, at;

	if (!count)
		return 0;
	rank = rank_of(percent, count);
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += load(&h->bucket[i]);
		if (seen < rank)
			continue;
		max = load(&h->max);
		at = highest_in(i);
		return at < max ? at : max;
	}
	return load(&h->max);
}

/* A copy that does not change while rows are made from it. */
struct rows {
	uint64_t bucket[HISTOGRAM_BUCKETS];
	uint64_t count;
	uint64_t sum;
	unsigned last; /* the highest bucket in use */
	FILE *file;
};

static void rows_copy(struct rows *rows, const struct histogram *h)
{
	rows->sum = load(&h->sum);
	rows->count = 0;
	rows->last = 0;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		rows->bucket[i] = load(&h->bucket[i]);
		rows->count += rows->bucket[i];
		if (rows->bucket[i])
			rows->last = i;
	}
}

static double microseconds(uint64_t ns)
{
	return (double)ns / 1000;
}

/* The next percentile to print: each half of the distance to 100 % has TICKS rows. */
static double next_level(double level)
{
	double half = 50;

	while (100 - level <= half)
		half /= 2;
	return level + half / TICKS;
}

/*
 * One row for each level, with the value of the bucket that reaches it.  Each
 * bucket gives as many rows as it reaches levels, but the highest gives only
 * one, because its rows would never end; the row of 100 % comes last.
 */
static void rows_body(struct rows *rows)
{
	double level = 0;
	uint64_t seen = 0;

	for (unsigned i = 0; rows->count && i <= rows->last; i++) {
		seen += rows->bucket[i];
		while (rows->bucket[i] && 100 * (double)seen / (double)rows->count >= level) {
			fprintf(rows->file, "%12.3f %2.12f %10llu %14.2f\n",
				microseconds(highest_in(i)), level / 100, (unsigned long long)seen,
				1 / (1 - level / 100));
			level = next_level(level);
			if (seen == rows->count)
				break;
		}
	}
	if (rows->count)
		fprintf(rows->file, "%12.3f %2.12f %10llu\n", microseconds(highest_in(rows->last)),
			1.0, (unsigned long long)rows->count);
}

/* Newton's: falls from above until it no longer can. */
static double square_root(double square)
{
	double root = square > 1 ? square : 1;

	if (!(square > 0))
		return 0;
	for (;;) {
		double next = (root + square / root) / 2;

		if (next >= root)
			return root;
		root = next;
	}
}

static double middle_of(unsigned bucket)
{
	return (double)(lowest_in(bucket) + (1ull << shift_of(bucket) >> 1));
}

/* From the middles of the buckets alone: around the exact mean, one value would deviate. */
static double rows_deviation(const struct rows *rows)
{
	double sum = 0, squares = 0, mean;

	for (unsigned i = 0; i <= rows->last; i++)
		sum += (double)rows->bucket[i] * middle_of(i);
	mean = sum / (double)rows->count;
	for (unsigned i = 0; i <= rows->last; i++)
		squares += (double)rows->bucket[i] * (middle_of(i) - mean) * (middle_of(i) - mean);
	return square_root(squares / (double)rows->count);
}

static void rows_footer(struct rows *rows)
{
	double mean = rows->count ? (double)rows->sum / (double)rows->count : 0;
	double deviation = rows->count ? rows_deviation(rows) : 0;

	fprintf(rows->file, "#[Mean    = %12.3f, StdDeviation   = %12.3f]\n", mean / 1000,
		deviation / 1000);
	fprintf(rows->file, "#[Max     = %12.3f, Total count    = %12llu]\n",
		microseconds(rows->count ? highest_in(rows->last) : 0),
		(unsigned long long)rows->count);
	fprintf(rows->file, "#[Buckets = %12u, SubBuckets     = %12u]\n", HALVINGS, LINEAR);
}

/* A host program's locale must not turn the points into commas. */
static int rows_print(struct rows *rows)
{
	locale_t c = newlocale(LC_ALL_MASK, "C", NULL);
	locale_t old;

	if (!c)
		return -ENOMEM;
	old = uselocale(c);
	fprintf(rows->file, "%12s %14s %10s %14s\n\n", "Value", "Percentile", "TotalCount",
		"1/(1-Percentile)");
	rows_body(rows);
	rows_footer(rows);
	uselocale(old);
	freelocale(c);
	return 0;
}

static int write_all(int fd, const char *text, size_t length)
{
	while (length) {
		ssize_t put = write(fd, text, length);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return put ? -errno : -EIO;
		text += put;
		length -= (size_t)put;
	}
	return 0;
}

int histogram_write(const struct histogram *h, int fd)
{
	struct rows *rows = malloc(sizeof(*rows));
	char *text = NULL;
	size_t length = 0;
	int code = -ENOMEM;

	if (!rows)
		return err_set(code, "latencies: %m");
	rows->file = open_memstream(&text, &length);
	if (rows->file) {
		rows_copy(rows, h);
		code = rows_print(rows);
		if (fclose(rows->file) && !code)
			code = -ENOMEM;
	}
	if (!code)
		code = write_all(fd, text, length);
	free(text);
	free(rows);
	return code ? err_set(code, "latencies: cannot write them: %m") : 0;
}
