/* SPDX-License-Identifier: MIT */
/*
 * ahead.c: filling that no fault asked for: reads ahead of it, and installs
 * in slices.  Internal.
 *
 * What a window of the image has in memory is installed straight from there;
 * the rest is read into chunks.  Reads of what is left stop while a fault
 * waits for the disk, and slices are small while faults keep coming, so that
 * a fault waits for one small slice at most.
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
#define READ_MAX (256u << 10)  /* read at a time */
#define FETCHES 16             /* runs taken between two looks at the events */

static struct chunk *chunk_new(struct infill_session *s, const struct queue_run *run, enum why why)
{
	struct chunk *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->session = s;
	c->run = *run;
	c->why = why;
	return c;
}

static uint64_t run_bytes(const struct queue_run *run)
{
	return run->count * run->region->page_size;
}

struct chunk *chunk_read(struct infill_session *s, const struct queue_run *run, enum why why)
{
	struct chunk *c = chunk_new(s, run, why);

	if (!c)
		return NULL;
	c->read.image = s->image;
	c->read.offset = pagemap_offset(run->region, run->page);
	c->read.length = run_bytes(run);
	c->read.buffer = pool_take_buffer(s->thread, c->read.length);
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
	if (c && c->read.buffer)
		pool_give_buffer(c->session->thread, c->read.buffer, c->read.length);
	free(c);
}

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
	s->ahead_bytes -= run_bytes(&c->run);
	/* The rest passes each window once; a trace comes back. */
	if (c->mapped && c->why == WHY_REST)
		window_drop(&s->windows, s->image, pagemap_offset(c->run.region, c->run.page));
	chunk_free(c);
}

/* The first COUNT pages of RUN; RUN becomes what is behind them. */
static struct queue_run split_off(struct queue_run *run, uint64_t count)
{
	struct queue_run front = *run;

	front.count = count < run->count ? count : run->count;
	run->page += front.count;
	run->count -= front.count;
	return front;
}

/* Have a run read, in pieces; they count as under way. */
static bool read_run(struct infill_session *s, struct queue_run run, enum why why)
{
	const uint64_t most = READ_MAX / run.region->page_size;

	while (run.count) {
		struct queue_run piece = split_off(&run, most ? most : 1);
		struct chunk *c = chunk_read(s, &piece, why);

		if (!c)
			return false;
		s->ahead_bytes += run_bytes(&piece);
		s->trace_reading += why == WHY_TRACE;
	}
	return true;
}

/* A chunk that needs no read, from a window's DATA or from the cache. */
static bool ready_run(struct infill_session *s, const struct queue_run *run, enum why why,
		      const char *data)
{
	struct chunk *c = chunk_new(s, run, why);

	if (!c)
		return false;
	c->data = data;
	c->mapped = data != NULL;
	c->cached = data == NULL;
	s->ahead_bytes += run_bytes(run);
	make_ready(s, c);
	return true;
}

/* Have the window of RUN populated; RUN itself is installed from it then. */
static bool map_run(struct infill_session *s, const struct queue_run *run, enum why why)
{
	struct chunk *c = chunk_new(s, run, why);

	if (!c)
		return false;
	c->read.image = s->image;
	window_range(s->image, pagemap_offset(run->region, run->page), &c->read.offset,
		     &c->read.length);
	c->read.drop_length = window_past(&s->windows, &c->read.drop);
	s->under_way++;
	s->ahead_bytes += run_bytes(run);
	s->trace_reading += why == WHY_TRACE;
	reader_submit(pool_reader(s->thread), &c->read);
	return true;
}

/* The trace does not wait for a thread that has the least right to a CPU. */
static bool map_now(struct infill_session *s, const struct queue_run *run)
{
	uint64_t offset = pagemap_offset(run->region, run->page), from;
	size_t bytes;
	bool ok;

	window_range(s->image, offset, &from, &bytes);
	ok = !image_populate(s->image, from, bytes);
	window_mapped(&s->windows, offset, ok);
	return ok ? ready_run(s, run, WHY_TRACE, image_at(s->image, offset)) :
		    read_run(s, *run, WHY_TRACE);
}

/* A run that the cache has nothing of, or there is no cache. */
static bool map_or_read(struct infill_session *s, const struct queue_run *run, enum why why)
{
	uint64_t offset = pagemap_offset(run->region, run->page), bytes = run_bytes(run);

	if (offset % WINDOW_BYTES + bytes > WINDOW_BYTES)
		return read_run(s, *run, why); /* a huge page that lies across windows */
	switch (window_ask(&s->windows, s->image, offset, bytes)) {
	case WINDOW_MAPPED:
		return ready_run(s, run, why, image_at(s->image, offset));
	case WINDOW_MAPPING:
		return why == WHY_TRACE ? map_now(s, run) : map_run(s, run, why);
	default:
		return read_run(s, *run, why);
	}
}

/* Get the content of RUN on its way; what the cache has needs none. */
static bool start_run(struct infill_session *s, struct queue_run run, enum why why)
{
	bool ok = true;

	if (!s->cache)
		return map_or_read(s, &run, why);
	while (ok && run.count) {
		uint64_t offset = pagemap_offset(run.region, run.page);
		size_t have = cache_present(s->cache, offset, run.count);
		struct queue_run part =
			split_off(&run, have ? have : cache_absent(s->cache, offset, run.count));

		ok = have ? ready_run(s, &part, why, NULL) : map_or_read(s, &part, why);
	}
	return ok;
}

/* Pages of a hole are settled without an install. */
static void settle_hole(struct infill_session *s, const struct queue_run *run)
{
	int err = pagemap_move(&s->pm, run->page, run->count, PAGE_REMOVED);

	if (err)
		session_fail(s, err);
	session_check_resident(s);
}

/* A fault waits for it.  The trace goes on: it is what the guest touches next. */
static bool disk_is_taken(const struct infill_session *s)
{
	return s->demand_reading && (s->queue.trace_over || !s->trace.count);
}

/*
 * Take a run from the queue and get its content on its way.  False: there is
 * none, or enough is on its way, or a fault waits for the disk.
 */
static bool fetch(struct infill_session *s, uint64_t now)
{
	struct queue_run run;

	if (s->over || disk_is_taken(s) || s->ahead_bytes >= AHEAD_BYTES ||
	    !queue_next(s, WINDOW_BYTES, now, &run))
		return false;
	if (run.hole)
		settle_hole(s, &run);
	else if (!start_run(s, run, run.trace ? WHY_TRACE : WHY_REST))
		session_fail(s, err_set(-ENOMEM, "memory: no room to read the image"));
	return true;
}

/* The mapping cannot be read any more: was the image changed, or is its disk failing? */
static void mapping_failed(struct infill_session *s, struct chunk *c)
{
	int err = infill_image_check(s->image);
	struct queue_run left = c->run;

	split_off(&left, c->done);
	if (err)
		session_fail(s, err);
	else if (!read_run(s, left, c->why))
		session_fail(s, err_set(-ENOMEM, "memory: no room to read the image"));
	retire(s);
}

/* Install wanted pages of the first ready chunk, BUDGET bytes at most but one page at least. */
static int install_some(struct infill_session *s, uint64_t *budget)
{
	struct chunk *c = s->ready;
	const struct pagemap_region *r = c->run.region;
	uint64_t count, most = *budget / r->page_size, done = 0;
	uint64_t page = queue_wanted(s, &c->run, c->run.page + c->done, &count);
	int err = 0;

	most = most ? most : 1;
	count = count < most ? count : most;
	if (count && c->cached)
		err = fill_cached(s, r, page, count, c->why, &done);
	else if (count)
		err = fill_data(s, r, page, count, c->data + (page - c->run.page) * r->page_size,
				c->mapped, c->why, &done);
	c->done = page + done - c->run.page;
	*budget -= done * r->page_size < *budget ? done * r->page_size : *budget;
	if (err == -EFAULT)
		mapping_failed(s, c);
	else if (!err && c->done == c->run.count)
		retire(s);
	return err == -EFAULT ? 0 : err;
}

static uint64_t slice_bytes(const struct infill_session *s, uint64_t now)
{
	return now - s->demand_ns < DEMAND_RECENT_NS ? SLICE_DEMAND : SLICE_MAX;
}

/*
 * Install a slice.  The image is verified before and after: what is copied
 * from a window is not looked at in between.  True: it went on.
 */
static bool install_slice(struct infill_session *s, uint64_t now)
{
	uint64_t budget = slice_bytes(s, now);
	int err = infill_image_check(s->image);
	bool went_on = false;

	while (!err && !s->over && budget && (s->ready || (!s->under_way && fetch(s, now)))) {
		went_on = true;
		if (s->ready)
			err = install_some(s, &budget);
		else
			break; /* its content is being read, or it was a long hole */
	}
	if (!err || err == -EAGAIN) {
		int stale = infill_image_check(s->image);

		err = stale ? stale : err;
	}
	if (err && err != -EAGAIN)
		session_fail(s, err);
	return went_on && err != -EAGAIN;
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
	window_drop_all(&s->windows, s->image);
	stats_mark(&s->pm.stats->trace_done_ns, stats_now());
	timeline_mark(s->timeline, stats_now(), "trace-done");
	session_event(s, INFILL_EVENT_TRACE_DONE, 0, 0, s->trace.bytes, NULL);
	session_reach(s, INFILL_WAIT_TRACE);
}

bool ahead_step(struct infill_session *s)
{
	uint64_t now;
	bool more;

	if (s->over || (s->resident && !s->ready))
		return false;
	now = stats_now();
	more = (s->ready || !queue_wait(s, now)) && install_slice(s, now);
	/* Reads and page tables go on beside the installs. */
	for (unsigned n = 0; n < FETCHES && fetch(s, now); n++)
		more = true;
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
	if (disk_is_taken(s) || s->ahead_bytes >= AHEAD_BYTES)
		return UINT64_MAX; /* a read will end */
	return queue_wait(s, now);
}

/* Read the halves by themselves: in the end a single page is known to be bad. */
static void read_halves(struct infill_session *s, struct chunk *c)
{
	struct queue_run rest = c->run, half = split_off(&rest, c->run.count / 2);

	if (!read_run(s, half, c->why) || !read_run(s, rest, c->why))
		session_fail(s, err_set(-ENOMEM, "memory: no room to read the image"));
}

/* The window is mapped, or has to be read after all. */
static void map_done(struct infill_session *s, struct chunk *c)
{
	bool ok = !c->read.result;

	window_mapped(&s->windows, c->read.offset, ok);
	if (ok) {
		c->data = image_at(s->image, pagemap_offset(c->run.region, c->run.page));
		c->mapped = true;
		make_ready(s, c);
		return;
	}
	s->ahead_bytes -= run_bytes(&c->run);
	if (!read_run(s, c->run, c->why))
		session_fail(s, err_set(-ENOMEM, "memory: no room to read the image"));
	chunk_free(c);
}

void ahead_read_done(struct infill_session *s, struct chunk *c)
{
	int err = c->read.result;

	s->trace_reading -= c->why == WHY_TRACE;
	if (!c->read.buffer) {
		map_done(s, c);
		return;
	}
	if (!err) {
		stats_add(&s->pm.stats->read_bytes, c->read.length);
		c->data = c->read.buffer;
		make_ready(s, c);
		return;
	}
	s->ahead_bytes -= run_bytes(&c->run);
	if (err == -ESTALE)
		session_fail(s, err_set(err, "%s: changed while it was served", image_name(s->image)));
	else if (c->run.count > 1)
		read_halves(s, c);
	else if (pagemap_get(&s->pm, c->run.page) == PAGE_MISSING)
		fill_poison(s, c->run.region, c->run.page, err);
	chunk_free(c);
}

void ahead_drop(struct infill_session *s)
{
	while (s->ready)
		retire(s);
	window_drop_all(&s->windows, s->image);
}
