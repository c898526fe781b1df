/* SPDX-License-Identifier: MIT */
/*
 * ahead.c: filling that no fault asked for: reads ahead of it, and installs
 * in slices.  Internal.
 *
 * What is in the page cache is read into the thread's own buffer, which stays
 * in the CPU's cache, and installed from there at once; the rest is read into
 * chunks.  Reads of what is left stop while a fault waits for the disk, and
 * slices are small while faults keep coming, so that a fault waits for one
 * small slice at most.
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
#include "userfault.h"

#define AHEAD_BYTES (4u << 20) /* under way or ready, for each session: two huge pages */
#define CHUNK_MAX (2u << 20)   /* taken from the queue at a time */
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

/* A chunk that can be installed: the cache has it, or it is read at that moment. */
static bool ready_run(struct infill_session *s, const struct queue_run *run, enum why why,
		      bool cached)
{
	struct chunk *c = chunk_new(s, run, why);

	if (!c)
		return false;
	c->cached = cached;
	s->ahead_bytes += run_bytes(run);
	make_ready(s, c);
	return true;
}

static bool start_run(struct infill_session *s, struct queue_run run, enum why why)
{
	bool ok = true;

	if (!s->cache)
		return ready_run(s, &run, why, false);
	while (ok && run.count) {
		uint64_t offset = pagemap_offset(run.region, run.page);
		size_t have = cache_present(s->cache, offset, run.count);
		struct queue_run part =
			split_off(&run, have ? have : cache_absent(s->cache, offset, run.count));

		ok = ready_run(s, &part, why, have);
	}
	return ok;
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
	    !queue_next(s, CHUNK_MAX, now, &run))
		return false;
	if (run.hole && !s->protected)
		fill_hole(s, run.region, run.page, run.count);
	else if (!start_run(s, run, run.trace ? WHY_TRACE : WHY_REST))
		session_fail(s, err_set(-ENOMEM, "memory: no room to read the image"));
	return true;
}

/* Its bytes are not all in memory, or one of them is bad: have the rest of it read. */
static int read_later(struct infill_session *s, struct chunk *c)
{
	struct queue_run left = c->run;

	split_off(&left, c->done);
	s->ahead_bytes -= run_bytes(&left);
	c->run.count = c->done;
	return read_run(s, left, c->why) ? 0 :
					   err_set(-ENOMEM, "memory: no room to read the image");
}

/* Where the wanted pages from PAGE on end that BUDGET bytes are enough for; one page at least. */
static uint64_t slice_end(const struct infill_session *s, const struct chunk *c, uint64_t page,
			  uint64_t budget)
{
	const uint64_t size = c->run.region->page_size, per = size < SLICE_MAX ? SLICE_MAX / size : 1;
	uint64_t end = c->run.page + c->run.count, left = budget / size ? budget / size : 1;
	uint64_t at = page, first, count;

	end = end - page < per ? end : page + per;
	while (left && at < end) {
		first = queue_wanted(s, &c->run, at, &count);
		if (!count || first >= end)
			break;
		count = count < end - first ? count : end - first;
		count = count < left ? count : left;
		left -= count;
		at = first + count;
	}
	return at;
}

/*
 * Install those of the pages from PAGE to END that are wanted; DATA is theirs.  NULL:
 * the cache has them, or they are read where they belong.
 */
static int install_wanted(struct infill_session *s, struct chunk *c, uint64_t page, uint64_t end,
			  const char *data, uint64_t *budget)
{
	const struct pagemap_region *r = c->run.region;
	uint64_t at = page, count, done;
	int err = 0;

	while (!err && at < end) {
		uint64_t first = queue_wanted(s, &c->run, at, &count);

		if (!count || first >= end)
			break;
		count = count < end - first ? count : end - first;
		if (c->cached)
			err = fill_cached(s, r, first, count, c->why, &done);
		else if (c->run.hole)
			err = fill_zeros(s, r, first, count, c->why, &done);
		else if (!data)
			err = fill_in_place(s, r, first, count, c->why, &done);
		else
			err = fill_data(s, r, first, count, data + (first - page) * r->page_size,
					c->why, &done);
		at = first + done;
		*budget -= done * r->page_size < *budget ? done * r->page_size : *budget;
	}
	c->done = (err ? at : end) - c->run.page;
	return err;
}

/* What the guest is about to touch gets memory in any case, zero or not; the rest may not. */
static bool in_place(const struct chunk *c)
{
	return c->why == WHY_TRACE && userfault_in_place(c->run.region);
}

/* The same, read from the image at this moment. */
static int read_and_install(struct infill_session *s, struct chunk *c, uint64_t page, uint64_t end,
			    uint64_t *budget)
{
	size_t length = (end - page) * c->run.region->page_size;
	char *buffer;
	int err;

	if (in_place(c)) {
		err = install_wanted(s, c, page, end, NULL, budget);
		return err && err != -ESTALE ? read_later(s, c) : err;
	}
	buffer = pool_buffer(s->thread, length);
	if (!buffer)
		return err_set(-ENOMEM, "memory: no room to read the image");
	err = image_read_now(s->image, pagemap_offset(c->run.region, page), buffer, length);
	if (err && err != -ESTALE) {
		err = read_later(s, c);
	} else if (!err) {
		stats_add(&s->pm.stats->read_bytes, length);
		err = install_wanted(s, c, page, end, buffer, budget);
	}
	return err;
}

/* Install wanted pages of the first ready chunk, BUDGET bytes at most but one page at least. */
static int install_some(struct infill_session *s, uint64_t *budget)
{
	struct chunk *c = s->ready;
	uint64_t count, page = queue_wanted(s, &c->run, c->run.page + c->done, &count);
	uint64_t end = count ? slice_end(s, c, page, *budget) : page;
	const char *data = c->data;
	int err;

	c->done = page - c->run.page;
	if (data)
		data += c->done * c->run.region->page_size;
	if (data || c->cached || c->run.hole || !count)
		err = install_wanted(s, c, page, end, data, budget);
	else
		err = read_and_install(s, c, page, end, budget);
	if (!err && c->done == c->run.count)
		retire(s);
	return err;
}

static uint64_t slice_bytes(const struct infill_session *s, uint64_t now)
{
	return now - s->demand_ns < DEMAND_RECENT_NS ? SLICE_DEMAND : SLICE_MAX;
}

/* Install a slice.  True: it went on. */
static bool install_slice(struct infill_session *s, uint64_t now)
{
	uint64_t budget = slice_bytes(s, now);
	bool went_on = false;
	int err = 0;

	while (!err && !s->over && !s->resident && budget &&
	       (s->ready || (!s->under_way && fetch(s, now)))) {
		went_on = true;
		if (s->ready)
			err = install_some(s, &budget);
		else
			break; /* its content is being read, or it was a long hole */
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
	/* An earlier process may have said so. */
	if (stats_mark(&s->pm.stats->trace_done_ns, stats_now()))
		timeline_mark(s->timeline, stats_now(), "trace-done");
	session_event(s, INFILL_EVENT_TRACE_DONE, 0, 0, s->trace.bytes, NULL);
	session_reach(s, INFILL_WAIT_TRACE);
}

/* Nothing is missing: the image is not looked at any more, whatever becomes of it. */
static void leave_image(struct infill_session *s)
{
	ahead_drop(s);
	s->queue.trace_over |= s->options.fill != INFILL_FILL_NONE;
	check_trace_done(s);
}

bool ahead_step(struct infill_session *s)
{
	uint64_t now;
	bool more;

	if (s->over)
		return false;
	if (s->resident) {
		leave_image(s);
		return false;
	}
	now = stats_now();
	more = (s->ready || !queue_wait(s, now)) && install_slice(s, now);
	/* Reads go on beside the installs. */
	for (unsigned n = 0; n < FETCHES && fetch(s, now); n++)
		more = true;
	if (!s->over)
		check_trace_done(s);
	return more && !s->over;
}

uint64_t ahead_wait(struct infill_session *s, uint64_t now)
{
	if (s->over || s->resident || s->retries)
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
	s->ahead_bytes -= run_bytes(&c->run);
	if (s->resident)
		; /* somebody was faster, and the image is not needed any more */
	else if (err == -ESTALE)
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
}
