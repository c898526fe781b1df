/* SPDX-License-Identifier: MIT */
/*
 * engine.h: infill, through its public interface only, in this process.
 */
#ifndef BENCH_ENGINE_H
#define BENCH_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest.h"
#include "infill.h"

struct engine_settings {
	const char *image;
	enum infill_fill fill;
	uint64_t rate;              /* of the background fill; 0: no bound */
	const char *trace, *record; /* at most one */
	size_t record_pages;
	struct infill_cache *cache;
};

struct engine {
	struct infill_image *image;
	struct infill_memory *memory;
	struct infill_pool *pool;
	struct infill_session *session;
	char why[160]; /* of the last failure */
};

/*
 * Restore: open the image, start threads, register G, start.  Returns when
 * faults are served; 0, or -errno with a line in e->why.
 */
int engine_start(struct engine *e, const struct engine_settings *s, const struct guest *g);

/* Wait for the event, for a minute at most; fail() if it does not come. */
void engine_wait(struct engine *e, enum infill_wait what);

/* Stop and free everything but the guest's memory.  Safe after a failure. */
void engine_stop(struct engine *e);

/* A full or empty cache of the image at PATH; engine_cache_free() frees both. */
struct engine_cache {
	struct infill_image *image;
	struct infill_cache *cache;
	char why[160];
};

int engine_cache_new(struct engine_cache *c, const char *path);
void engine_cache_free(struct engine_cache *c);


#endif
