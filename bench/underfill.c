/* SPDX-License-Identifier: MIT */
/*
 * underfill.c: what a demand fault costs while the background fill runs,
 * against the same faults without it.  Only touches of pages that mincore()
 * says are missing are measured: with a fill running, most are not.
 */
#include <pthread.h>
#include <stdio.h>

#include "machine.h"
#include "restored.h"
#include "touch.h"

#define GROUP "faults under fill, random, 4 KiB, 1 thread"
#define PACE_NS 100000u   /* 10,000 touches a second */
#define IDLE_PACED 2000   /* touches without a fill, which would go on for ever */
#define IDLE_CLOSE 20000

struct watch {
	struct restored *restored;
	atomic_bool stop;
};

/* The measurement ends when there is nothing left to miss. */
static void *watch_resident(void *arg)
{
	struct watch *w = arg;

	engine_wait(&w->restored->engine, INFILL_WAIT_RESIDENT);
	atomic_store(&w->stop, true);
	return NULL;
}

static void measure(const struct item *item, struct restored *r, struct touch_team *team)
{
	struct watch watch = { .restored = r };
	struct touch touch = { .base = r->guest.base, .page = r->guest.page,
			       .pattern = item->pattern, .threads = 1, .missing_only = true,
			       .gap_ns = item->gap_ns, .stop = &watch.stop };
	struct touched touched;
	pthread_t thread;

	if (!item->fill)
		touch.most = item->gap_ns ? IDLE_PACED : IDLE_CLOSE;
	else if (pthread_create(&thread, NULL, watch_resident, &watch))
		fail("threads", "cannot start one more");
	touch_go(team, &touch, &touched);
	if (item->fill)
		pthread_join(thread, NULL);
	figure_add(item->row, METRIC_P50_US, touched.p50_us);
	figure_add(item->row, METRIC_P99_US, touched.p99_us);
	figure_add(item->row, METRIC_TOUCHES, (double)touched.count);
}

static void run_underfill(const struct item *item)
{
	struct touch_team *team = touch_prepare(1, item->pattern->count);
	struct restored r;

	if (restored_begin(&r, item)) {
		measure(item, &r, team);
		restored_end(&r);
	}
	touch_dismiss(team);
}

static void add_ratios(void)
{
	static const struct {
		const char *name, *fill, *idle;
	} pair[] = {
		{ "demand_p99_under_fill_vs_idle_paced", "infill all, paced", "infill none, paced" },
		{ "demand_p99_under_fill_vs_idle_close", "infill all, back to back",
		  "infill none, back to back" },
	};
	double value, worst = 0;

	for (size_t i = 0; i < sizeof(pair) / sizeof(*pair); i++) {
		if (!figure_ratio(figure_find(GROUP, pair[i].fill),
				  figure_find(GROUP, pair[i].idle), METRIC_P99_US, &value))
			return;
		ratio_set(pair[i].name, value, 0, 0);
		worst = value > worst ? value : worst;
	}
	ratio_set("demand_p99_under_fill_vs_idle", worst, '<', 2);
}

void underfill_run(const struct bench *b)
{
	struct item item[6];
	struct pattern p;
	size_t count = 0;

	pattern_random(&p, b->content.bytes / CONTENT_PAGE, b->content.bytes / CONTENT_PAGE);
	for (int kind = 0; kind < 6; kind++) {
		static const char *const name[] = {
			"infill none, paced", "infill none, back to back",
			"infill all, paced", "infill all, back to back",
			"infill all at 256 MiB/s, paced", "infill all at 256 MiB/s, back to back",
		};

		item[count++] = (struct item){
			.row = figure_row(GROUP, name[kind]), .run = run_underfill, .bench = b,
			.contender = kind < 2 ? CONTENDER_NONE : CONTENDER_FILL,
			.fill = kind >= 2, .rate = kind >= 4 ? 256u << 20 : 0,
			.gap_ns = kind % 2 ? 0 : PACE_NS, .pattern = &p, .threads = 1,
		};
	}
	plan_run(item, count, b->runs, "faults under fill");
	add_ratios();
	pattern_free(&p);
}
