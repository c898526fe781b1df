/* SPDX-License-Identifier: MIT */
/*
 * start.c: how long a restore takes to return, for an image of 1 GiB and one
 * of 64 GiB, both sparse.  It must not grow with the size.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "machine.h"
#include "restored.h"

#define GROUP "restore returns, fill all"
#define GIB ((size_t)1 << 30)

struct sized {
	const char *name;
	size_t bytes;
	char path[512];
	struct row *row;
};

/* Times after each step: image open and pool started, memory mapped, session started. */
static int restore(struct engine *e, const struct sized *s, uint64_t step[3])
{
	struct infill_session_options session = { .size = sizeof(session) };
	struct infill_region region = { .size = sizeof(region), .length = s->bytes };
	int rc = infill_image_open(&e->image, s->path, NULL);

	if (!rc)
		rc = infill_pool_new(&e->pool, NULL);
	step[0] = now_ns();
	if (!rc)
		rc = infill_memory_new(&e->memory);
	if (!rc)
		rc = infill_memory_map(e->memory, &region);
	step[1] = now_ns();
	if (!rc)
		rc = infill_session_start(&e->session, e->pool, e->memory, e->image, &session);
	step[2] = now_ns();
	return rc;
}

static void run_start(struct sized *s)
{
	struct engine e = { 0 };
	uint64_t begin = now_ns(), step[3];

	if (restore(&e, s, step)) {
		figure_skip(s->row, "%s", infill_error());
	} else {
		figure_add(s->row, METRIC_OPEN_US, (step[0] - begin) / 1e3);
		figure_add(s->row, METRIC_MAP_US, (step[1] - step[0]) / 1e3);
		figure_add(s->row, METRIC_START_US, (step[2] - step[1]) / 1e3);
		figure_add(s->row, METRIC_RETURN_US, (step[2] - step[0]) / 1e3);
	}
	engine_stop(&e);
}

void start_run(const struct bench *b)
{
	struct sized size[2] = { { .name = "1 GiB, sparse", .bytes = GIB },
				 { .name = "64 GiB, sparse", .bytes = 64 * GIB } };
	unsigned runs = b->quick ? 11 : 41;
	double value;

	for (int i = 0; i < 2; i++) {
		content_sparse(size[i].path, sizeof(size[i].path), b->dir, size[i].bytes);
		size[i].row = figure_row(GROUP, size[i].name);
	}
	for (unsigned r = 0; r < runs; r++) {
		progress(r, runs, "restore returns");
		for (int i = 0; i < 2; i++)
			if (!size[(r + i) % 2].row->skipped[0])
				run_start(&size[(r + i) % 2]);
	}
	progress(1, 1, "");
	for (int i = 0; i < 2; i++)
		unlink(size[i].path);
	if (figure_ratio(size[1].row, size[0].row, METRIC_RETURN_US, &value))
		ratio_set("restore_64g_vs_1g", value, '<', 1.2);
}
