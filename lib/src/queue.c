/* SPDX-License-Identifier: MIT */
/*
 * queue.c: the order of what is filled without a fault.  Internal; order and
 * rate may be tuned here and nowhere else.
 */
#include "image.h"
#include "queue.h"
#include "session.h"

#define SPAN_BYTES (256u << 10) /* runs of the trace that are read together: all of them ... */
#define GAP_BYTES (16u << 10)   /* ... and what may lie between two */
#define HOLE_PAGES 16384 /* settled in one go: a byte of state each */
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

/* At most MAX_BYTES of COUNT pages, but one at least. */
static uint64_t limit(const struct pagemap_region *r, uint64_t count, uint64_t max_bytes)
{
	uint64_t most = max_bytes / r->page_size ? max_bytes / r->page_size : 1;

	return count < most ? count : most;
}

/* The pages of region R that run N of the trace touches: [*FIRST, *END). */
static void pages_of(const struct infill_session *s, const struct pagemap_region *r, size_t n,
		     uint64_t *first, uint64_t *end)
{
	const struct trace_run *run = &s->trace.run[n];
	uint64_t last = run->offset + run->length - 1;

	*first = run->offset > r->offset ? r->first + (run->offset - r->offset) / r->page_size :
					   r->first;
	*end = last < r->offset		    ? r->first :
	       last - r->offset < r->length ? r->first + (last - r->offset) / r->page_size + 1 :
					      r->first + r->pages;
}

/* Join the runs behind OUT that lie close behind it in the image as well. */
static void join_close_runs(struct infill_session *s, struct queue_run *out)
{
	const struct pagemap_region *r = out->region;
	uint64_t most = limit(r, r->pages, SPAN_BYTES);

	for (; out->to < s->trace.count; out->to++) {
		uint64_t offset = s->trace.run[out->to].offset, first, end;

		if (offset < r->offset || offset - r->offset >= r->length)
			break;
		pages_of(s, r, out->to, &first, &end);
		if (first < out->page + out->count || end - out->page > most ||
		    (first - out->page - out->count) * r->page_size > GAP_BYTES)
			break;
		out->count = end - out->page;
	}
	s->queue.run = out->to;
	s->queue.run_done = 0;
}

/* A part of the current trace run, with what is close behind it.  False: none of it is missing. */
static bool trace_run(struct infill_session *s, uint64_t max_bytes, struct queue_run *out)
{
	struct queue *q = &s->queue;
	const struct trace_run *run = &s->trace.run[q->run];
	uint64_t at = run->offset + q->run_done, page, first, end;
	const struct pagemap_region *r = pagemap_at(&s->pm, at, &page);

	if (!r) { /* the image has more than the VM */
		q->run_done += SMALL_PAGE;
		return false;
	}
	pages_of(s, r, q->run, &first, &end);
	*out = (struct queue_run){ .region = r, .trace = true, .from = q->run, .to = q->run + 1 };
	out->page = pagemap_next(&s->pm, page, end, PAGE_MISSING);
	out->count = out->page < end ? limit(r, end - out->page, max_bytes) : 0;
	q->run_done = pagemap_offset(r, out->page + out->count) - run->offset;
	if (!out->count)
		return false;
	if (q->run_done >= run->length)
		join_close_runs(s, out);
	return true;
}

static bool next_of_trace(struct infill_session *s, uint64_t max_bytes, struct queue_run *out)
{
	struct queue *q = &s->queue;

	while (q->run < s->trace.count) {
		bool found = trace_run(s, max_bytes, out);

		if (q->run < s->trace.count && q->run_done >= s->trace.run[q->run].length) {
			q->run++;
			q->run_done = 0;
		}
		if (found)
			return true;
	}
	q->trace_over = true;
	return false;
}

uint64_t queue_wanted(const struct infill_session *s, const struct queue_run *run, uint64_t at,
		      uint64_t *count)
{
	uint64_t run_end = run->page + run->count, first, end;

	if (!run->trace) {
		*count = run_end - at;
		return at;
	}
	for (size_t n = run->from; n < run->to; n++) {
		pages_of(s, run->region, n, &first, &end);
		end = end < run_end ? end : run_end;
		first = first > at ? first : at;
		if (first < end) {
			*count = end - first;
			return first;
		}
	}
	*count = 0;
	return run_end;
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

/* Is nothing to be installed for it? */
static bool is_free(const struct infill_session *s, const struct queue_run *run)
{
	return run->hole && !s->protected;
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
	if (!is_free(s, out))
		out->count = limit(r, out->count, max_bytes);
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
	if (s->options.rate && !is_free(s, run))
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
