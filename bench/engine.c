/* SPDX-License-Identifier: MIT */
/*
 * engine.c: infill as an embedder calls it.  Everything that restoring takes
 * is done anew each time: image, pool, session.
 */
#include "engine.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "machine.h"

#define WAIT_MS 60000

static int describe(struct engine *e, const struct guest *g)
{
	struct infill_region region = {
		.size = sizeof(region),
		.hva = (uintptr_t)g->base,
		.length = g->bytes,
		.page_size = g->page,
		.backing = g->backing == BACKING_ANON	 ? INFILL_BACKING_ANON :
			   g->backing == BACKING_HUGETLB ? INFILL_BACKING_HUGETLB :
							   INFILL_BACKING_SHMEM,
	};
	int rc = infill_memory_new(&e->memory);

	return rc ? rc : infill_memory_add(e->memory, &region);
}

static int begin(struct engine *e, const struct engine_settings *s, const struct guest *g)
{
	struct infill_session_options session = {
		.size = sizeof(session),
		.fill = s->fill,
		.rate = s->rate,
		.cache = s->cache,
		.trace = s->trace,
		.record = s->record,
		.record_pages = s->record_pages,
	};
	int rc = infill_image_open(&e->image, s->image, NULL);

	if (!rc)
		rc = infill_pool_new(&e->pool, NULL);
	if (!rc)
		rc = describe(e, g);
	if (!rc)
		rc = infill_session_start(&e->session, e->pool, e->memory, e->image, &session);
	return rc;
}

int engine_start(struct engine *e, const struct engine_settings *s, const struct guest *g)
{
	int rc;

	memset(e, 0, sizeof(*e));
	rc = begin(e, s, g);
	if (!rc)
		return 0;
	snprintf(e->why, sizeof(e->why), "%s", infill_error());
	if (!e->why[0])
		snprintf(e->why, sizeof(e->why), "%s", strerror(-rc));
	engine_stop(e);
	return rc;
}

void engine_wait(struct engine *e, enum infill_wait what)
{
	int rc = infill_session_wait(e->session, what, WAIT_MS);

	if (rc)
		fail("infill", "waiting for event %d: %s", what,
		     infill_error()[0] ? infill_error() : strerror(-rc));
}

void engine_stop(struct engine *e)
{
	infill_session_stop(e->session);
	infill_memory_free(e->memory);
	infill_pool_free(e->pool);
	infill_image_close(e->image);
	e->session = NULL;
	e->memory = NULL;
	e->pool = NULL;
	e->image = NULL;
}

int engine_cache_new(struct engine_cache *c, const char *path)
{
	int rc;

	memset(c, 0, sizeof(*c));
	rc = infill_image_open(&c->image, path, NULL);
	if (!rc)
		rc = infill_cache_new(&c->cache, c->image);
	if (rc) {
		snprintf(c->why, sizeof(c->why), "%s", infill_error());
		engine_cache_free(c);
	}
	return rc;
}

void engine_cache_free(struct engine_cache *c)
{
	infill_cache_free(c->cache);
	infill_image_close(c->image);
	c->cache = NULL;
	c->image = NULL;
}
