/* SPDX-License-Identifier: MIT */
/*
 * plan.c: the order of runs.
 */
#include "plan.h"

#include <stdlib.h>

#include "machine.h"

const char *contender_name(enum contender c)
{
	static const char *const name[CONTENDERS] = {
		[CONTENDER_MAPPED] = "mapped file, read",
		[CONTENDER_MAPPED_WRITE] = "mapped file, written",
		[CONTENDER_PAGE] = "page per fault",
		[CONTENDER_PAGE_BUFFER] = "page per fault, warm buffer",
		[CONTENDER_ALL] = "all at first fault",
		[CONTENDER_NONE] = "infill none",
		[CONTENDER_TRACE] = "infill trace",
		[CONTENDER_FILL] = "infill all",
	};

	return name[c];
}

static void shuffle(size_t *order, size_t count, uint64_t *state)
{
	for (size_t i = count; i > 1; i--) {
		size_t k = machine_random(state) % i, other = order[k];

		order[k] = order[i - 1];
		order[i - 1] = other;
	}
}

void plan_run(struct item *items, size_t count, unsigned runs, const char *what)
{
	size_t *order = calloc(count + 1, sizeof(*order));
	uint64_t state = 0x1f83d9abfb41bd6bull;

	if (!order)
		fail(what, "no memory");
	for (size_t i = 0; i < count; i++)
		order[i] = i;
	for (unsigned r = 0; r < runs; r++) {
		shuffle(order, count, &state);
		for (size_t i = 0; i < count; i++) {
			const struct item *item = &items[order[i]];

			progress(r * count + i, runs * count, what);
			if (!item->row->skipped[0])
				item->run(item);
		}
	}
	progress(1, 1, what);
	free(order);
}
