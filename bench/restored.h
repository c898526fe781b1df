/* SPDX-License-Identifier: MIT */
/*
 * restored.h: a guest's memory, restored by one of the contenders.
 */
#ifndef BENCH_RESTORED_H
#define BENCH_RESTORED_H

#include "bare.h"
#include "engine.h"
#include "plan.h"

struct restored {
	struct guest guest;
	const struct bench *bench;
	uint8_t *image;     /* mapping that an example handler copies from, or NULL */
	struct bare *bare;  /* example handler, or NULL */
	struct engine engine;
	bool infill;
};

/*
 * Restore by ITEM's contender.  Returns when the guest may run: false, and
 * the item's row is skipped with the reason, if it cannot.
 */
bool restored_begin(struct restored *r, const struct item *item);
void restored_end(struct restored *r);

/* Does the contender's guest write what it touches? */
bool restored_writes(enum contender c);

/* Let infill record PATTERN to PATH.  NULL, or the reason why not. */
const char *restored_record(const struct bench *b, const struct pattern *pattern,
			    enum backing backing, const char *path);

#endif
