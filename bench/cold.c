/* SPDX-License-Identifier: MIT */
/*
 * cold.c: a restore whose image is not in the page cache: some random pages,
 * each of which has to come from the disk.  The image is dropped before each
 * run; if it cannot be, there are no figures.
 */
#include <stdio.h>
#include <unistd.h>

#include "machine.h"
#include "restored.h"
#include "touch.h"

#define GROUP "cold image, random, 4 KiB, %u thread%s"
#define TOUCHES 2048

static void run_cold(const struct item *item)
{
	struct touch_team *team = touch_prepare(item->threads, item->pattern->count);
	struct touch touch = { .pattern = item->pattern, .threads = item->threads,
			       .write = restored_writes(item->contender) };
	struct touched touched;
	struct restored r;
	uint64_t start;

	if (!content_drop(&item->bench->content)) {
		figure_skip(item->row, "the image stays in the page cache in spite of "
				       "POSIX_FADV_DONTNEED");
		touch_dismiss(team);
		return;
	}
	start = now_ns();
	if (restored_begin(&r, item)) {
		touch.base = r.guest.base;
		touch.page = r.guest.page;
		touch_go(team, &touch, &touched);
		figure_add(item->row, METRIC_TOTAL_MS, (touched.end_ns - start) / 1e6);
		figure_add(item->row, METRIC_P50_US, touched.p50_us);
		figure_add(item->row, METRIC_P99_US, touched.p99_us);
		restored_end(&r);
	}
	touch_dismiss(team);
}

static void run_threads(const struct bench *b, const struct pattern *p, unsigned threads,
			const char *trace, const char *untraced)
{
	static const enum contender contenders[] = {
		CONTENDER_MAPPED, CONTENDER_PAGE, CONTENDER_NONE,
		CONTENDER_TRACE, CONTENDER_FILL,
	};
	enum { COUNT = sizeof(contenders) / sizeof(*contenders) };
	struct item item[COUNT];
	char group[64];

	snprintf(group, sizeof(group), GROUP, threads, threads == 1 ? "" : "s");
	for (size_t i = 0; i < COUNT; i++) {
		item[i] = (struct item){ .row = figure_row(group, contender_name(contenders[i])),
					 .run = run_cold, .bench = b, .contender = contenders[i],
					 .pattern = p, .trace = trace, .threads = threads };
		if (contenders[i] == CONTENDER_TRACE && untraced)
			figure_skip(item[i].row, "%s", untraced);
	}
	plan_run(item, COUNT, b->runs, group);
}

void cold_run(const struct bench *b)
{
	struct pattern p;
	const char *untraced;
	char trace[600];

	pattern_random(&p, b->content.bytes / CONTENT_PAGE, TOUCHES);
	snprintf(trace, sizeof(trace), "%s/cold.trace", b->dir);
	unlink(trace);
	untraced = restored_record(b, &p, BACKING_ANON, trace);
	run_threads(b, &p, 1, trace, untraced);
	run_threads(b, &p, 4, trace, untraced);
	unlink(trace);
	pattern_free(&p);
	content_warm(&b->content);
}
