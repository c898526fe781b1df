/* SPDX-License-Identifier: MIT */
/*
 * figure.h: what was measured: one sample per run, in rows, in groups.
 *
 * A row is one contender in one setting.  It has a few metrics, each with one
 * sample per run; rows of one group were measured interleaved, so that sample
 * i of one row and sample i of another belong to the same repetition and a
 * ratio can be taken between them.  Units are part of the metrics' names.
 */
#ifndef BENCH_FIGURE_H
#define BENCH_FIGURE_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#define FIGURE_RUNS 101

enum metric {
	METRIC_TOTAL_MS, /* restore begun until all is touched, or all is filled */
	METRIC_MIB_S,
	METRIC_CPU_MS,   /* of the whole process meanwhile */
	METRIC_P50_US,   /* of the touches of one run */
	METRIC_P99_US,
	METRIC_TOUCHES,  /* that were measured in one run */
	METRIC_OPEN_US,
	METRIC_MAP_US,
	METRIC_START_US,
	METRIC_RETURN_US, /* memory mapped and session started */
	METRIC_PRIVATE_KIB,
	METRIC_RSS_KIB,
	METRIC_LIMIT_KIB,
	METRICS
};

struct series {
	unsigned count;
	double sample[FIGURE_RUNS];
};

struct row {
	char group[64];
	char name[64];
	char skipped[160]; /* why there are no figures; "" if there are */
	struct series metric[METRICS];
};

/* The row of that name; a new one at the end of the table if there is none.  Never NULL. */
struct row *figure_row(const char *group, const char *name);

/* The row of that name, or NULL. */
struct row *figure_find(const char *group, const char *name);

void figure_add(struct row *row, enum metric metric, double value);

/* No figures in ROW, because of a reason that its reader can act on. */
void figure_skip(struct row *row, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Forget all samples of GROUP: they were a warm-up. */
void figure_forget(const char *group);

double series_median(const struct series *s);
double series_min(const struct series *s);
double series_max(const struct series *s);

/*
 * Median over runs of A's sample divided by B's sample of the same run.
 * Returns 0 and leaves *VALUE if either has none.
 */
bool figure_ratio(const struct row *a, const struct row *b, enum metric metric, double *value);

/* A ratio for the `ratios` object; LIMIT is its target, SENSE '<' or '>', 0: no target. */
void ratio_set(const char *name, double value, char sense, double limit);

/* All rows as aligned tables, then the ratios. */
void figure_print(void);

/* The same for the JSON file: new references. */
json_t *figure_json(void);
json_t *ratio_json(void);

#endif
