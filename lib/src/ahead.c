/* SPDX-License-Identifier: MIT */
/*
 * ahead.c: filling that no fault asked for: reads ahead of it, and installs
 * in slices.  Internal.
 *
 * A run that the image can map is installed straight from there; any other
 * is read into a chunk.  Reads stop while a fault waits for the disk, and
 * slices are small while faults keep coming, so that a fault waits for one
 * small install at most.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ahead.h"
#include "cache.h"
#include "err.h"
#include "fill.h"
#include "image.h"
#include "pool.h"

#define AHEAD_BYTES (4u << 20) /* under way or ready, for each session: two huge pages */
#define RUN_MAX (2u << 20)     /* taken from the queue, and mapped, at a time */
#define READ_MAX (256u << 10)  /* read at a time */

static struct chunk *chunk_new(struct infill_session *s, const struct pagemap_region *r,
			       uint64_t page, uint64_t count, enum why why)
{
	struct chunk *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->session = s;
	c->region = r;
	c->page = page;
	c->count = count;
	c->why = why;
	return c;
}

struct chunk *chunk_read(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
			 uint64_t count, enum why why)
{
	struct chunk *c = chunk_new(s, r, page, count, why);

	if (!c)
		return NULL;
	c->read.image = s->image;
	c->read.offset = pagemap_offset(r, page);
	c->read.length = count * r->page_size;
	c->read.buffer = aligned_alloc(4096, c->read.length);
	if (!c->read.buffer) {
		free(c);
		return NULL;
	}
	s->under_way++;
	reader_submit(pool_reader(s->thread), &c->read);
	return c;
}

void chunk_free(struct chunk *c)
{
	if (c)
		free(c->read.buffer);
	free(c);
}

static uint64_t chunk_bytes(const struct chunk *c)
{
	return c->count * c->region->page_size;
}

/* Its content is here: behind the others, or, to go on with it, before them. */
static void make_ready(struct infill_session *s, struct chunk *c)
{
	c->next = NULL;
	*s->ready_tail = c;
	s->ready_tail = &c->next;
}

/* The first ready chunk is settled, or given up. */
static void retire(struct infill_session *s)
{
	struct chunk *c = s->ready;

	s->ready = c->next;
	if (!s->ready)
		s->ready_tail = &s->ready;
	s->ahead_bytes -= chunk_bytes(c);
	if (c->mapped)
		image_unmap(s->image, pagemap_offset(c->region, c->page), chunk_bytes(c));
	chunk_free(c);
}

/* Have a run read, in pieces; they count as under way. */
static bool read_run(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		     uint64_t count, enum why why)
{
	const uint64_t most = READ_MAX / r->page_size ? READ_MAX / r->page_size : 1;

	for (uint64_t n; count; page += n, count -= n) {
		struct chunk *c;

		n = count < most ? count : most;
		c = chunk_read(s, r, page, n, why);
		if (!c)
			return false;
		s->ahead_bytes += chunk_bytes(c);
		s->trace_reading += why == WHY_TRACE;
	}
	return true;
}

/* A chunk that needs no read, from DATA or from the cache. */
static bool ready_run(struct infill_session *s, const struct queue_run *run, enum why why,
		      const void *data)
{
	struct chunk *c = chunk_new(s, run->region, run->page, run->count, why);

	if (!c)
		return false;
	c->data = data;
	c->mapped = data != NULL;
	c->cached = data == NULL;
	s->ahead_bytes += chunk_bytes(c);
	make_ready(s, c);
	return true;
}

/* Pages that the cache has need no content.  RUN becomes what is behind them. */
static bool take_cached(struct infill_session *s, struct queue_run *run, enum why why)
{
	uint64_t offset = pagemap_offset(run->region, run->page);
	struct queue_run have = *run;

	have.count = cache_present(s->cache, offset, run->count);
	if (have.count && !ready_run(s, &have, why, NULL))
		return false;
	run->page += have.count;
	run->count -= have.count;
	return true;
}

/*
 * Get the content of RUN on its way: what the cache has, and what is in the
 * page cache, is ready; the rest is read.
 */
static bool start_run(struct infill_session *s, struct queue_run *run, enum why why)
{
	const struct pagemap_region *r = run->region;
	const void *data;

	while (run->count) {
		struct queue_run part = *run;
		uint64_t offset;

		if (s->cache && !take_cached(s, run, why))
			return false;
		part = *run;
		if (!part.count)
			break;
		offset = pagemap_offset(r, part.page);
		if (s->cache)
			part.count = cache_absent(s->cache, offset, part.count);
		data = image_map(s->image, offset, part.count * r->page_size);
		if (data ? !ready_run(s, &part, why, data) :
			   !read_run(s, r, part.page, part.count, why))
			return false;
		run->page += part.count;
		run->count -= part.count;
	}
	return true;
}

/* Pages of a hole are settled without an install. */
static void settle_hole(struct infill_session *s, const struct queue_run *run)
{
	int err = pagemap_move(&s->pm, run->page, run->count, PAGE_REMOVED);

	if (err)
		session_fail(s, err);
	session_check_resident(s);
}

/* Take runs from the queue until enough is on its way.  True: took some. */
static bool fetch(struct infill_session *s, uint64_t now)
{
	struct queue_run run;
	bool took = false;

	/* The disk is for faults while one waits for it. */
	while (!s->over && !s->demand_reading && s->ahead_bytes < AHEAD_BYTES &&
	       (!s->ready || !s->ready->mapped) && queue_next(s, RUN_MAX, now, &run)) {
		took = true;
		if (run.hole) {
			settle_hole(s, &run); /* up to 64 Ki pages: look at the events now */
			break;
		}
		if (!start_run(s, &run, run.trace ? WHY_TRACE : WHY_REST))
			session_fail(s, err_set(-ENOMEM, "memory: no room to read the image"));
	}
	return took;
}

/* The mapping cannot be read any more: was the image changed, or is its disk failing? */
static void mapping_failed(struct infill_session *s, struct chunk *c)
{
	int err = infill_image_check(s->image);

	if (err)
		session_fail(s, err);
	else if (!read_run(s, c->region, c->page + c->done, c->count - c->done, c->why))
		session_fail(s, err_set(-ENOMEM, "memory: no room to read the image"));
	retire(s);
}

static uint64_t slice_pages(const struct infill_session *s, const struct chunk *c, uint64_t now)
{
	uint64_t bytes = now - s->demand_ns < DEMAND_RECENT_NS ? SLICE_DEMAND : SLICE_MAX;
	uint64_t pages = bytes / c->region->page_size, left = c->count - c->done;

	pages = pages ? pages : 1;
	return pages < left ? pages : left;
}

/* Install a slice of the first ready chunk.  True: it went on. */
static bool install_slice(struct infill_session *s, uint64_t now)
{
	struct chunk *c = s->ready;
	uint64_t page = c->page + c->done, count = slice_pages(s, c, now), done;
	int err;

	if (c->cached)
		err = fill_cached(s, c->region, page, count, c->why, &done);
	else
		err = fill_data(s, c->region, page, count, c->data + c->done * c->region->page_size,
				c->mapped, c->why, &done);
	c->done += done;
	if (c->mapped && !err) {
		/* The kernel copied it just now: was it still the image that was opened? */
		err = infill_image_check(s->image);
		if (err)
			session_fail(s, err);
	}
	if (err == -EFAULT)
		mapping_failed(s, c);
	else if (c->done == c->count)
		retire(s);
	return err != -EAGAIN;
}

/* All of the trace was handed out and has arrived. */
static void check_trace_done(struct infill_session *s)
{
	const struct chunk *c;

	if (!s->queue.trace_over || !s->trace.count || s->trace_told || s->trace_reading)
		return;
	for (c = s->ready; c; c = c->next)
		if (c->why == WHY_TRACE)
			return;
	s->trace_told = true;
	stats_mark(&s->pm.stats->trace_done_ns, stats_now());
	timeline_mark(s->timeline, stats_now(), "trace-done");
	session_event(s, INFILL_EVENT_TRACE_DONE, 0, 0, s->trace.bytes, NULL);
	session_reach(s, INFILL_WAIT_TRACE);
}

bool ahead_step(struct infill_session *s)
{
	uint64_t now = stats_now();
	bool more = false;

	if (s->over)
		return false;
	if (s->ready)
		more = install_slice(s, now);
	more |= fetch(s, now);
	if (!s->over)
		check_trace_done(s);
	return more && !s->over;
}

uint64_t ahead_wait(struct infill_session *s, uint64_t now)
{
	if (s->over || s->retries)
		return UINT64_MAX;
	if (s->ready)
		return 0;
	if (s->demand_reading || s->ahead_bytes)
		return UINT64_MAX; /* a read will end */
	return queue_wait(s, now);
}

/* Read the halves by themselves: in the end a single page is known to be bad. */
static void split(struct infill_session *s, struct chunk *c)
{
	uint64_t half = c->count / 2;

	if (!read_run(s, c->region, c->page, half, c->why) ||
	    !read_run(s, c->region, c->page + half, c->count - half, c->why))
		session_fail(s, err_set(-ENOMEM, "memory: no room to read the image"));
}

void ahead_read_done(struct infill_session *s, struct chunk *c)
{
	int err = c->read.result;

	s->trace_reading -= c->why == WHY_TRACE;
	if (!err) {
		stats_add(&s->pm.stats->read_bytes, c->read.length);
		c->data = c->read.buffer;
		make_ready(s, c);
		return;
	}
	s->ahead_bytes -= chunk_bytes(c);
	if (err == -ESTALE)
		session_fail(s, err_set(err, "%s: changed while it was served", image_name(s->image)));
	else if (c->count > 1)
		split(s, c);
	else if (pagemap_get(&s->pm, c->page) == PAGE_MISSING)
		fill_poison(s, c->region, c->page, err);
	chunk_free(c);
}

void ahead_drop(struct infill_session *s)
{
	while (s->ready)
		retire(s);
}
