/* SPDX-License-Identifier: MIT */
/*
 * demand.c: time until a guest has touched all it wants, and what each touch
 * cost it, for every contender over patterns, page sizes and numbers of
 * faulting threads.  The clock starts before the restore is begun.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "machine.h"
#include "restored.h"
#include "touch.h"

#define PATTERNS 3

static void run_touch(const struct item *item)
{
	struct touch_team *team = touch_prepare(item->threads, item->pattern->count);
	struct touch touch = { .pattern = item->pattern, .threads = item->threads,
			       .write = restored_writes(item->contender) };
	struct touched touched;
	uint64_t start = now_ns();
	struct restored r;

	if (restored_begin(&r, item)) {
		touch.base = r.guest.base;
		touch.page = r.guest.page;
		touch_go(team, &touch, &touched);
		figure_add(item->row, METRIC_TOTAL_MS, (touched.end_ns - start) / 1e6);
		figure_add(item->row, METRIC_P50_US, touched.p50_us);
		figure_add(item->row, METRIC_P99_US, touched.p99_us);
		figure_add(item->row, METRIC_TOUCHES, (double)touched.count);
		restored_end(&r);
	}
	touch_dismiss(team);
}

static void group_of(char *group, size_t size, const struct pattern *p, enum backing backing,
		     unsigned threads)
{
	snprintf(group, size, "touch, %s, %s, %u thread%s", p->name,
		 backing == BACKING_HUGETLB ? "2 MiB" : "4 KiB", threads, threads == 1 ? "" : "s");
}

static bool fits(enum contender c, enum backing backing)
{
	if (backing != BACKING_HUGETLB)
		return true;
	/* A file on a disk cannot be mapped in 2 MiB pages. */
	return c != CONTENDER_MAPPED && c != CONTENDER_MAPPED_WRITE;
}

static void add_item(struct item *item, const struct bench *b, enum contender c,
		     enum backing backing, const struct pattern *p, const char *trace,
		     unsigned threads)
{
	char group[64];

	group_of(group, sizeof(group), p, backing, threads);
	*item = (struct item){ .row = figure_row(group, contender_name(c)), .run = run_touch,
			       .bench = b, .contender = c, .backing = backing, .pattern = p,
			       .trace = trace, .threads = threads };
	if (backing == BACKING_HUGETLB && b->huge_missing)
		figure_skip(item->row, "%s", b->huge_missing);
}

/* All contenders on one pattern and page size, interleaved; threads after one another. */
static void run_pattern(const struct bench *b, const struct pattern *p, enum backing backing)
{
	struct item item[CONTENDERS];
	char trace[600], what[64];
	const char *untraced = b->huge_missing;

	snprintf(trace, sizeof(trace), "%s/%s.trace", b->dir, p->name);
	unlink(trace);
	if (backing != BACKING_HUGETLB || !untraced)
		untraced = restored_record(b, p, backing, trace);
	for (size_t t = 0; t < 4 && b->threads[t]; t++) {
		size_t count = 0;

		for (enum contender c = 0; c < CONTENDERS; c++) {
			if (!fits(c, backing))
				continue;
			add_item(&item[count], b, c, backing, p, trace, b->threads[t]);
			if (c == CONTENDER_TRACE && untraced)
				figure_skip(item[count].row, "%s", untraced);
			count++;
		}
		group_of(what, sizeof(what), p, backing, b->threads[t]);
		plan_run(item, count, b->runs, what);
	}
	unlink(trace);
}

static void add_ratio(const char *group, const char *name, enum contender a, enum contender b,
		      enum metric metric, double target)
{
	double value;

	if (figure_ratio(figure_find(group, contender_name(a)),
			 figure_find(group, contender_name(b)), metric, &value))
		ratio_set(name, value, target > 0 ? '<' : 0, target);
}

static void add_ratios(void)
{
	const char *one = "touch, random, 4 KiB, 1 thread";
	const char *huge = "touch, random, 2 MiB, 1 thread";

	add_ratio(one, "demand_median_vs_bare", CONTENDER_NONE, CONTENDER_PAGE, METRIC_P50_US,
		  1.15);
	add_ratio(one, "demand_median_vs_bare_buffer", CONTENDER_NONE, CONTENDER_PAGE_BUFFER,
		  METRIC_P50_US, 0);
	add_ratio(one, "demand_p99_vs_bare", CONTENDER_NONE, CONTENDER_PAGE, METRIC_P99_US, 0);
	add_ratio(huge, "demand_median_vs_bare_2m", CONTENDER_NONE, CONTENDER_PAGE, METRIC_P50_US,
		  0);
	add_ratio(one, "naive_page_vs_infill_random", CONTENDER_PAGE, CONTENDER_FILL,
		  METRIC_TOTAL_MS, 0);
	add_ratio(one, "naive_all_vs_infill_random", CONTENDER_ALL, CONTENDER_FILL,
		  METRIC_TOTAL_MS, 0);
	add_ratio(one, "mapped_written_vs_infill_random", CONTENDER_MAPPED_WRITE, CONTENDER_FILL,
		  METRIC_TOTAL_MS, 0);
}

static void add_recorded_ratios(void)
{
	const char *one = "touch, recorded, 4 KiB, 1 thread";

	add_ratio(one, "naive_page_vs_infill_trace_recorded", CONTENDER_PAGE, CONTENDER_TRACE,
		  METRIC_TOTAL_MS, 0);
	add_ratio(one, "naive_all_vs_infill_trace_recorded", CONTENDER_ALL, CONTENDER_TRACE,
		  METRIC_TOTAL_MS, 0);
	add_ratio(one, "mapped_vs_infill_trace_recorded", CONTENDER_MAPPED, CONTENDER_TRACE,
		  METRIC_TOTAL_MS, 0);
	add_ratio(one, "mapped_written_vs_infill_trace_recorded", CONTENDER_MAPPED_WRITE,
		  CONTENDER_TRACE, METRIC_TOTAL_MS, 0);
}

static void run_size(const struct bench *b, enum backing backing, size_t page)
{
	static struct pattern all[BACKINGS][PATTERNS];
	struct pattern *p = all[backing];
	size_t granules = b->content.bytes / page;

	pattern_sequential(&p[0], granules);
	pattern_random(&p[1], granules, granules);
	run_pattern(b, &p[0], backing);
	run_pattern(b, &p[1], backing);
	if (b->recorded) {
		pattern_recorded(&p[2], b->recorded, b->content.bytes, page);
		run_pattern(b, &p[2], backing);
	}
	for (size_t i = 0; i < PATTERNS; i++)
		pattern_free(&p[i]);
}

void demand_run(const struct bench *b)
{
	run_size(b, BACKING_ANON, CONTENT_PAGE);
	run_size(b, BACKING_HUGETLB, CONTENT_HUGE);
	add_ratios();
	if (b->recorded)
		add_recorded_ratios();
}
