/* SPDX-License-Identifier: MIT */
/*
 * figure.c: rows of samples, medians, the tables and the JSON.
 * Metrics may be added; the names in `names` are read by scripts and stay.
 */
#include "figure.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

#define ROWS_MAX 512
#define RATIOS_MAX 64

static const struct {
	const char *json, *head;
	int digits;
} names[METRICS] = {
	[METRIC_TOTAL_MS] = { "total_ms", "total ms", 1 },
	[METRIC_MIB_S] = { "rate_mib_s", "MiB/s", 0 },
	[METRIC_CPU_MS] = { "cpu_ms", "CPU ms", 1 },
	[METRIC_P50_US] = { "p50_us", "p50 us", 2 },
	[METRIC_P99_US] = { "p99_us", "p99 us", 2 },
	[METRIC_TOUCHES] = { "touches", "touches", 0 },
	[METRIC_OPEN_US] = { "open_us", "open us", 1 },
	[METRIC_MAP_US] = { "map_us", "map us", 1 },
	[METRIC_START_US] = { "start_us", "start us", 1 },
	[METRIC_RETURN_US] = { "return_us", "return us", 1 },
	[METRIC_PRIVATE_KIB] = { "private_kib", "private KiB", 0 },
	[METRIC_RSS_KIB] = { "rss_kib", "RSS KiB", 0 },
	[METRIC_LIMIT_KIB] = { "limit_kib", "limit KiB", 0 },
};

struct ratio {
	const char *name;
	double value, limit;
	char sense;
};

static struct row *rows[ROWS_MAX];
static size_t row_count;
static struct ratio ratios[RATIOS_MAX];
static size_t ratio_count;

struct row *figure_find(const char *group, const char *name)
{
	for (size_t i = 0; i < row_count; i++)
		if (!strcmp(rows[i]->group, group) && !strcmp(rows[i]->name, name))
			return rows[i];
	return NULL;
}

struct row *figure_row(const char *group, const char *name)
{
	struct row *row = figure_find(group, name);

	if (row)
		return row;
	if (row_count == ROWS_MAX)
		fail("table", "more than %d rows", ROWS_MAX);
	row = calloc(1, sizeof(*row));
	if (!row)
		fail("table", "no memory");
	snprintf(row->group, sizeof(row->group), "%s", group);
	snprintf(row->name, sizeof(row->name), "%s", name);
	rows[row_count++] = row;
	return row;
}

void figure_add(struct row *row, enum metric metric, double value)
{
	struct series *s = &row->metric[metric];

	if (s->count < FIGURE_RUNS)
		s->sample[s->count++] = value;
}

void figure_skip(struct row *row, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(row->skipped, sizeof(row->skipped), format, ap);
	va_end(ap);
}

void figure_forget(const char *group)
{
	for (size_t i = 0; i < row_count; i++)
		if (!strcmp(rows[i]->group, group))
			memset(rows[i]->metric, 0, sizeof(rows[i]->metric));
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(const double *value, unsigned count)
{
	double sorted[FIGURE_RUNS];

	if (!count)
		return 0;
	memcpy(sorted, value, count * sizeof(*value));
	qsort(sorted, count, sizeof(*sorted), by_value);
	return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

double series_median(const struct series *s)
{
	return median(s->sample, s->count);
}

double series_min(const struct series *s)
{
	double least = s->count ? s->sample[0] : 0;

	for (unsigned i = 1; i < s->count; i++)
		if (s->sample[i] < least)
			least = s->sample[i];
	return least;
}

double series_max(const struct series *s)
{
	double most = s->count ? s->sample[0] : 0;

	for (unsigned i = 1; i < s->count; i++)
		if (s->sample[i] > most)
			most = s->sample[i];
	return most;
}

bool figure_ratio(const struct row *a, const struct row *b, enum metric metric, double *value)
{
	double quotient[FIGURE_RUNS];
	unsigned count;

	if (!a || !b)
		return false;
	count = a->metric[metric].count;
	if (b->metric[metric].count < count)
		count = b->metric[metric].count;
	for (unsigned i = 0; i < count; i++)
		quotient[i] = a->metric[metric].sample[i] / b->metric[metric].sample[i];
	if (count)
		*value = median(quotient, count);
	return count > 0;
}

void ratio_set(const char *name, double value, char sense, double limit)
{
	if (ratio_count == RATIOS_MAX)
		fail("table", "more than %d ratios", RATIOS_MAX);
	ratios[ratio_count++] = (struct ratio){ name, value, limit, sense };
}

/* Which metrics have a sample in GROUP. */
static unsigned group_metrics(const char *group)
{
	unsigned used = 0;

	for (size_t i = 0; i < row_count; i++)
		for (int m = 0; m < METRICS; m++)
			if (!strcmp(rows[i]->group, group) && rows[i]->metric[m].count)
				used |= 1u << m;
	return used;
}

static void print_row(const struct row *row, unsigned used)
{
	printf("  %-38s", row->name);
	if (row->skipped[0]) {
		printf("  skipped: %s\n", row->skipped);
		return;
	}
	for (int m = 0; m < METRICS; m++) {
		if (!(used & 1u << m))
			continue;
		if (row->metric[m].count)
			printf(" %11.*f", names[m].digits, series_median(&row->metric[m]));
		else
			printf(" %11s", "");
	}
	putchar('\n');
}

static void print_group(const char *group)
{
	unsigned used = group_metrics(group);

	printf("\n%-40s", group);
	for (int m = 0; m < METRICS; m++)
		if (used & 1u << m)
			printf(" %11s", names[m].head);
	putchar('\n');
	for (size_t i = 0; i < row_count; i++)
		if (!strcmp(rows[i]->group, group))
			print_row(rows[i], used);
}

static bool reached(const struct ratio *r)
{
	return r->sense == '<' ? r->value <= r->limit : r->value >= r->limit;
}

static void print_ratios(void)
{
	printf("\n%-48s %9s  %s\n", "ratios (median over runs)", "", "target");
	for (size_t i = 0; i < ratio_count; i++) {
		const struct ratio *r = &ratios[i];

		printf("  %-46s %9.*f", r->name, r->value < 1e4 ? 3 : 0, r->value);
		if (r->sense)
			printf("  %c= %-5.4g %s", r->sense, r->limit, reached(r) ? "reached" : "missed");
		putchar('\n');
	}
}

void figure_print(void)
{
	for (size_t i = 0; i < row_count; i++) {
		bool first = true;

		for (size_t k = 0; k < i; k++)
			if (!strcmp(rows[k]->group, rows[i]->group))
				first = false;
		if (first)
			print_group(rows[i]->group);
	}
	print_ratios();
}

static void json_series(json_t *object, int metric, const struct series *s)
{
	char key[64];

	snprintf(key, sizeof(key), "%s_median", names[metric].json);
	json_object_set_new(object, key, json_real(series_median(s)));
	snprintf(key, sizeof(key), "%s_min", names[metric].json);
	json_object_set_new(object, key, json_real(series_min(s)));
	snprintf(key, sizeof(key), "%s_max", names[metric].json);
	json_object_set_new(object, key, json_real(series_max(s)));
}

json_t *figure_json(void)
{
	json_t *list = json_array();

	for (size_t i = 0; i < row_count; i++) {
		json_t *object = json_pack("{s:s,s:s}", "group", rows[i]->group, "name",
					   rows[i]->name);

		if (rows[i]->skipped[0])
			json_object_set_new(object, "skipped", json_string(rows[i]->skipped));
		for (int m = 0; m < METRICS; m++)
			if (rows[i]->metric[m].count)
				json_series(object, m, &rows[i]->metric[m]);
		json_array_append_new(list, object);
	}
	return list;
}

json_t *ratio_json(void)
{
	json_t *object = json_object();

	for (size_t i = 0; i < ratio_count; i++)
		json_object_set_new(object, ratios[i].name, json_real(ratios[i].value));
	return object;
}
