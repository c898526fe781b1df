/* SPDX-License-Identifier: MIT */
/*
 * queue.c: the order of what is filled without a fault.  Internal; order and
 * rate may be tuned here and nowhere else.
 */
#include "image.h"
#include "queue.h"
#include "session.h"

#define HOLE_PAGES 65536 /* settled in one go: a byte of state each */
#define BURST_NS 50000000 /* of the rate: tokens that may be saved up */

static bool wants_trace(const struct infill_session *s)
{
	return s->options.fill != INFILL_FILL_NONE && !s->queue.trace_over;
}

static bool wants_rest(const struct infill_session *s)
{
	return s->options.fill == INFILL_FILL_ALL && !s->recording &&
	       s->queue.rest < s->pm.header->pages;
}

/* The missing pages at the front of what is left of the current trace run. */
static bool trace_run(struct infill_session *s, uint64_t max_bytes, struct queue_run *out)
{
	struct queue *q = &s->queue;
	const struct trace_run *run = &s->trace.run[q->run];
	uint64_t at = run->offset + q->run_done, left = run->length - q->run_done, skip, page;
	const struct pagemap_region *r = pagemap_at(&s->pm, at, &page);
	uint64_t pages, room;

	if (!r) { /* the image has more than the VM */
		q->run_done += SMALL_PAGE;
		return false;
	}
	skip = (at - r->offset) % r->page_size; /* a 4 KiB touch inside a huge page */
	pages = (left + skip + r->page_size - 1) / r->page_size;
	room = r->first + r->pages - page;
	pages = pages < room ? pages : room;
	room = max_bytes / r->page_size ? max_bytes / r->page_size : 1;
	pages = pages < room ? pages : room;
	pages = pagemap_run(&s->pm, page, pages, PAGE_MISSING);
	*out = (struct queue_run){ .region = r, .page = page, .count = pages, .trace = true };
	q->run_done += (pages ? pages : 1) * r->page_size - skip;
	return pages != 0;
}

static bool next_of_trace(struct infill_session *s, uint64_t max_bytes, struct queue_run *out)
{
	struct queue *q = &s->queue;

	while (q->run < s->trace.count) {
		bool found = trace_run(s, max_bytes, out);

		if (q->run_done >= s->trace.run[q->run].length) {
			q->run++;
			q->run_done = 0;
		}
		if (found)
			return true;
	}
	q->trace_over = true;
	return false;
}

/* The extent that OFFSET lies in, from the last answer if that covers it. */
static void look_up_extent(struct infill_session *s, uint64_t offset)
{
	struct queue *q = &s->queue;

	if (offset >= q->extent_from && offset < q->extent_end)
		return;
	q->extent_from = offset;
	q->extent_hole = image_hole(s->image, offset, &q->extent_end);
}

/* Cut a run of missing pages where the extent ends, and say whether it is a hole. */
static void cut_at_extent(struct infill_session *s, struct queue_run *run)
{
	const struct pagemap_region *r = run->region;
	uint64_t offset = pagemap_offset(r, run->page), pages;

	look_up_extent(s, offset);
	pages = (s->queue.extent_end - offset) / r->page_size;
	run->hole = s->queue.extent_hole && pages;
	if (!run->hole && s->queue.extent_hole)
		pages = 1; /* a huge page that is partly data */
	else if (!run->hole)
		pages = (s->queue.extent_end - offset + r->page_size - 1) / r->page_size;
	if (run->count > pages)
		run->count = pages;
}

static bool next_of_rest(struct infill_session *s, uint64_t max_bytes, struct queue_run *out)
{
	struct queue *q = &s->queue;
	uint64_t page = pagemap_next(&s->pm, q->rest, s->pm.header->pages, PAGE_MISSING), max;
	const struct pagemap_region *r;

	q->rest = page;
	if (page == s->pm.header->pages)
		return false;
	r = pagemap_region(&s->pm, page);
	max = r->first + r->pages - page;
	if (max > HOLE_PAGES)
		max = HOLE_PAGES;
	*out = (struct queue_run){ .region = r, .page = page, .count = max };
	cut_at_extent(s, out);
	max = max_bytes / r->page_size ? max_bytes / r->page_size : 1;
	if (!out->hole && out->count > max)
		out->count = max;
	out->count = pagemap_run(&s->pm, page, out->count, PAGE_MISSING);
	q->rest = page + out->count;
	return true;
}

/* A token bucket.  One chunk may overdraw it: the next waits longer. */
static void add_tokens(struct infill_session *s, uint64_t now)
{
	struct queue *q = &s->queue;
	double rate = (double)s->options.rate, burst = rate * BURST_NS / 1e9;

	if (q->tokens_ns)
		q->tokens += rate * (double)(now - q->tokens_ns) / 1e9;
	q->tokens_ns = now;
	if (q->tokens > burst)
		q->tokens = burst;
}

bool queue_next(struct infill_session *s, uint64_t max_bytes, uint64_t now, struct queue_run *run)
{
	if (wants_trace(s) && next_of_trace(s, max_bytes, run))
		return true;
	if (!wants_rest(s))
		return false;
	if (s->options.rate) {
		add_tokens(s, now);
		if (s->queue.tokens < 0)
			return false;
	}
	if (!next_of_rest(s, max_bytes, run))
		return false;
	if (s->options.rate && !run->hole)
		s->queue.tokens -= (double)(run->count * run->region->page_size);
	return true;
}

uint64_t queue_wait(struct infill_session *s, uint64_t now)
{
	if (wants_trace(s))
		return 0;
	if (!wants_rest(s))
		return UINT64_MAX;
	if (!s->options.rate)
		return 0;
	add_tokens(s, now);
	return s->queue.tokens >= 0 ? 0 : (uint64_t)(-s->queue.tokens * 1e9 / (double)s->options.rate);
}
