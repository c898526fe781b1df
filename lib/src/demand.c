/* SPDX-License-Identifier: MIT */
/*
 * demand.c: from an event to an installed page.  Internal.  This is the path
 * that a vCPU waits for: nothing here may block, and a fault whose page is
 * not in memory must not hold up the next.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ahead.h"
#include "cache.h"
#include "channel.h"
#include "demand.h"
#include "err.h"
#include "fill.h"
#include "image.h"
#include "pool.h"
#include "uffd.h"
#include "userfault.h"

#define READ_WINDOW (64u << 10) /* read for one fault that is not in the page cache */
#define READS_MAX 64            /* demand chunks under way; more faults wait */
#define COLD_BYTES (1u << 20)   /* read, without being installed, once faults come back to it */

static int add_waiting(struct infill_session *s, const struct waiting *w)
{
	if (s->waiting_count == s->waiting_size) {
		unsigned size = s->waiting_size ? 2 * s->waiting_size : PAGEMAP_EVENTS;
		struct waiting *all = realloc(s->waiting, size * sizeof(*all));

		if (!all)
			return err_set(-ENOMEM, "memory: no room for a fault");
		s->waiting = all;
		s->waiting_size = size;
	}
	s->waiting[s->waiting_count++] = *w;
	return 0;
}

void demand_settled(struct infill_session *s, uint64_t page, uint64_t count)
{
	uint64_t now = 0;

	if (s->channels)
		channels_settled(s, page, count);
	for (unsigned i = 0; i < s->waiting_count;) {
		struct waiting *w = &s->waiting[i];

		if (w->page - page >= count) {
			i++;
			continue;
		}
		if (!now)
			now = stats_now();
		histogram_record(&s->pm.stats->latency, now - w->since);
		/* Keep the order of arrival. */
		memmove(w, w + 1, (--s->waiting_count - i) * sizeof(*w));
	}
}

/*
 * How many pages from PAGE on to install for a fault there: more than one
 * only where faults come one behind the other.  A recording wants to see
 * every first touch.
 */
static uint64_t stream_window(struct infill_session *s, uint64_t page)
{
	return s->recording ? 1 : streams_window(&s->streams, page, STREAM_WINDOW_MAX);
}

/*
 * How many pages from a fault's on to install for it, the last one missing: the
 * stream's window.  A vCPU that exits has come a long way: it gets the rest of its run
 * of the trace, too.  What is there already does not end them.
 */
static uint64_t window_for(struct infill_session *s, const struct pagemap_region *r,
			   const struct waiting *w)
{
	bool small = r->page_size == SMALL_PAGE;
	uint64_t want = small ? stream_window(s, w->page) : 1;
	uint64_t trace = small && w->exit && !s->recording ? session_trace_window(s, r, w->page) : 1;
	uint64_t room = r->first + r->pages - w->page;

	want = want > trace ? want : trace;
	want = want < room ? want : room;
	while (want > 1 && pagemap_get(&s->pm, w->page + want - 1) != PAGE_MISSING)
		want--;
	return want;
}

/* A chunk that is read for another fault and brings PAGE as well, or NULL. */
static struct chunk *chunk_under_way(const struct infill_session *s, uint64_t page)
{
	for (unsigned i = 0; i < s->waiting_count; i++) {
		struct chunk *c = s->waiting[i].chunk;

		if (c && page - c->run.page < c->run.count)
			return c;
	}
	return NULL;
}

/*
 * NULL: too many are under way, or there is no memory.  The fault waits, while
 * others are served, until one of them is done; if there is none, for a while.
 */
static struct chunk *read_for_demand(struct infill_session *s, const struct pagemap_region *r,
				     uint64_t page, uint64_t count)
{
	const struct queue_run run = { .region = r, .page = page, .count = count };
	struct chunk *c = s->demand_reading < READS_MAX ? chunk_read(s, &run, WHY_DEMAND) : NULL;

	s->demand_reading += c != NULL;
	s->retries += !c && !s->demand_reading;
	return c;
}

/* Does nobody need to look for the page in the image? */
static bool in_hole(struct infill_session *s, const struct pagemap_region *r, uint64_t page)
{
	uint64_t offset = pagemap_offset(r, page), end;

	return image_hole(s->image, offset, &end) && end - offset >= r->page_size;
}

/*
 * The second slow read in one part of the image: others will follow, so have
 * all of it read into the page cache, behind the read that a fault waits for.
 */
static void expect_more(struct infill_session *s, uint64_t offset)
{
	uint64_t number = offset / COLD_BYTES + 1, from = offset - offset % COLD_BYTES;
	uint64_t left = infill_image_bytes(s->image) - from;
	struct cold *c = &s->cold[number % COLD_PARTS];

	if (c->number != number) {
		*c = (struct cold){ .number = number };
		return;
	}
	if (c->asked)
		return;
	c->asked = true;
	reader_flush(pool_reader(s->thread));
	image_will_need(s->image, from, left < COLD_BYTES ? left : COLD_BYTES);
}

/* Ask the disk.  The window around the page, because its neighbours are likely next. */
static void read_slowly(struct infill_session *s, const struct pagemap_region *r, struct waiting *w)
{
	uint64_t per = READ_WINDOW / r->page_size ? READ_WINDOW / r->page_size : 1;
	uint64_t first = w->page - (w->page - r->first) % per;
	uint64_t end = r->first + r->pages;

	w->chunk = chunk_under_way(s, w->page);
	if (w->chunk)
		return;
	w->chunk = read_for_demand(s, r, first, end - first < per ? end - first : per);
	stats_add(&s->pm.stats->slow_reads, w->chunk != NULL);
	expect_more(s, pagemap_offset(r, w->page));
}

/* A page that is not in memory: it is in a hole, or has to be read. */
static int zero_or_read(struct infill_session *s, const struct pagemap_region *r, struct waiting *w)
{
	if (in_hole(s, r, w->page))
		return fill_zero(s, r, w->page);
	read_slowly(s, r, w);
	return 0;
}

static int cached(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		  uint64_t count)
{
	uint64_t done;
	size_t have = cache_present(s->cache, pagemap_offset(r, page), count);

	return have ? fill_cached(s, r, page, have, WHY_DEMAND, &done) : -ENOENT;
}

/*
 * Install COUNT pages from PAGE on, those that are missing: DATA is theirs.  The run
 * that PAGE begins comes last, as it lets who waits for it go on, and tells a vCPU how
 * far it need not ask again.
 */
static int fill_window(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		       uint64_t count, const char *data)
{
	uint64_t first = pagemap_run(&s->pm, page, count, PAGE_MISSING), done;
	int err = 0;

	if (first < count)
		err = fill_data(s, r, page + first, count - first, data + first * r->page_size,
				WHY_DEMAND, &done);
	return err ? err : fill_data(s, r, page, first, data, WHY_DEMAND, &done);
}

static int read_and_fill(struct infill_session *s, const struct pagemap_region *r,
			 struct waiting *w, uint64_t count)
{
	uint64_t page = w->page;
	char *hot = pool_buffer(s->thread, count * r->page_size);
	int err;

	if (!hot)
		return zero_or_read(s, r, w);
	err = image_read_now(s->image, pagemap_offset(r, page), hot, count * r->page_size);
	if (err && count > 1) {
		count = 1;
		err = image_read_now(s->image, pagemap_offset(r, page), hot, r->page_size);
	}
	switch (err) {
	case 0:
		stats_add(&s->pm.stats->read_bytes, count * r->page_size);
		return fill_window(s, r, page, count, hot);
	case -EAGAIN:
		return zero_or_read(s, r, w);
	case -ESTALE:
		session_fail(s, err);
		return err;
	}
	return fill_poison(s, r, page, err);
}

static int serve_missing(struct infill_session *s, const struct pagemap_region *r, struct waiting *w)
{
	uint64_t page = w->page, count = window_for(s, r, w), done;
	int err = -ENOENT;

	s->served_to = page + count;
	if (s->cache) {
		err = cached(s, r, page, count);
	} else if (userfault_in_place(r)) {
		err = fill_in_place(s, r, page, count, WHY_DEMAND, &done);
		if (err && !s->over) { /* it cannot be read, or has no memory: find out */
			err = -ENOENT;
			count = 1;
		}
	}
	if (err == -ENOENT)
		err = read_and_fill(s, r, w, count);
	s->served_to = 0;
	return err;
}

/* Serve one fault, or start to.  -EAGAIN: later.  Its entry goes when the page is settled. */
static int serve_one(struct infill_session *s, struct waiting *w)
{
	const struct pagemap_region *r = pagemap_region(&s->pm, w->page);

	switch (pagemap_get(&s->pm, w->page)) {
	case PAGE_PRESENT:
		if (w->exit) { /* never dropped: its bit was set */
			demand_settled(s, w->page, 1);
			return 0;
		}
		if (w->minor)
			return fill_again(s, r, w->page);
		return s->protected ? fill_none(s, r, w->page) : fill_zero(s, r, w->page);
	case PAGE_REMOVED:
		return fill_zero(s, r, w->page);
	case PAGE_POISONED:
		return fill_poison(s, r, w->page, -EIO);
	case PAGE_FILLING: /* by a vCPU, which wakes whoever waits, however it ends */
		demand_settled(s, w->page, 1);
		return 0;
	default:
		return serve_missing(s, r, w);
	}
}

/* Entry I was of PAGE: the next to look at.  What is settled is gone, duplicates with it. */
static unsigned entry_after(const struct infill_session *s, unsigned i, uint64_t page)
{
	return i + (i < s->waiting_count && s->waiting[i].page == page);
}

void demand_serve(struct infill_session *s)
{
	unsigned i = 0;

	while (i < s->waiting_count && !s->over) {
		uint64_t page = s->waiting[i].page;

		if (!s->waiting[i].chunk && serve_one(s, &s->waiting[i]))
			return;
		i = entry_after(s, i, page);
	}
}

static void remove_pages(struct infill_session *s, uint64_t page, uint64_t count)
{
	int err;

	stats_add(&s->pm.stats->removed, count);
	err = pagemap_move(&s->pm, page, count, PAGE_REMOVED);
	if (err)
		session_fail(s, err);
}

static void remove_range(struct infill_session *s, uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < s->pm.header->regions; i++) {
		const struct pagemap_region *r = &s->pm.header->region[i];
		uint64_t from = start > r->hva ? start : r->hva;
		uint64_t to = end < r->hva + r->length ? end : r->hva + r->length;
		uint64_t first, count;

		if (from >= to)
			continue;
		/* madvise() works on whole pages; round inwards all the same. */
		first = r->first + (from - r->hva + r->page_size - 1) / r->page_size;
		count = r->first + (to - r->hva) / r->page_size;
		remove_pages(s, first, count > first ? count - first : 0);
	}
}

static void apply_removes(struct infill_session *s)
{
	for (unsigned i = 0; i < PAGEMAP_EVENTS && s->pm.events[i].event; i++) {
		const struct uffd_msg *m = &s->pm.events[i];

		if (m->event == UFFD_EVENT_REMOVE || m->event == UFFD_EVENT_UNMAP)
			remove_range(s, m->arg.remove.start, m->arg.remove.end);
	}
}

/* A fault that is to be served: W says whose. */
static void await(struct infill_session *s, const struct pagemap_region *r, const struct waiting *w)
{
	int err;

	if (s->recording && pagemap_get(&s->pm, w->page) == PAGE_MISSING)
		session_record(s, r, w->page, w->since);
	err = add_waiting(s, w);
	if (err)
		session_fail(s, err);
}

void demand_exit(struct infill_session *s, const struct pagemap_region *r, uint64_t page)
{
	const struct waiting w = { .page = page, .since = stats_now(), .exit = true };

	stats_add(&s->pm.stats->faults, 1);
	s->demand_ns = w.since;
	await(s, r, &w);
}

/* Reads of them that are under way find them removed when they end. */
void demand_discard(struct infill_session *s, uint64_t page, uint64_t count)
{
	remove_pages(s, page, count);
	session_check_resident(s);
}

static void add_fault(struct infill_session *s, const struct uffd_msg *m, uint64_t now)
{
	struct waiting w = { .since = now,
			     .minor = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR };
	const struct pagemap_region *r;

	stats_add(&s->pm.stats->faults, 1);
	r = pagemap_find(&s->pm, m->arg.pagefault.address, &w.page);
	if (!r) {
		session_fail(s, err_set(-EFAULT,
					"userfaultfd: a fault at 0x%llx, which is in none of the "
					"regions that the VMM named",
					(unsigned long long)m->arg.pagefault.address));
		return;
	}
	await(s, r, &w);
}

static void add_faults(struct infill_session *s)
{
	uint64_t now = stats_now();

	for (unsigned i = 0; i < PAGEMAP_EVENTS && s->pm.events[i].event; i++)
		if (s->pm.events[i].event == UFFD_EVENT_PAGEFAULT) {
			s->demand_ns = now;
			add_fault(s, &s->pm.events[i], now);
		}
}

/* The events are applied: a process that dies from here on need not know them. */
static void clear_events(struct infill_session *s)
{
	unsigned n = 0;

	/* Orders the states before the cleared events, as a resuming process sees them. */
	atomic_thread_fence(memory_order_release);
	while (n < PAGEMAP_EVENTS && s->pm.events[n].event)
		n++;
	memset(s->pm.events, 0, n * sizeof(*s->pm.events));
}

bool demand_events(struct infill_session *s)
{
	int n = uffd_read(s->uffd, s->pm.events, PAGEMAP_EVENTS);

	if (n < 0) {
		session_fail(s, err_set(n, "userfaultfd: cannot read events: %m"));
		return false;
	}
	if (!n)
		return true;
	/* A fault can be read before a REMOVE that came earlier. */
	apply_removes(s);
	if (!s->over)
		add_faults(s);
	clear_events(s);
	session_check_resident(s);
	demand_serve(s);
	return true;
}

void demand_resume(struct infill_session *s)
{
	apply_removes(s);
	clear_events(s);
	for (unsigned i = 0; i < s->pm.header->regions && s->uffd >= 0; i++)
		uffd_wake(s->uffd, s->pm.header->region[i].hva, s->pm.header->region[i].length);
}

/* Only the pages that were asked for: the rest of the window is in the page cache now. */
static void install_read(struct infill_session *s, struct chunk *c)
{
	const struct pagemap_region *r = c->run.region;
	unsigned i = 0;

	while (i < s->waiting_count && !s->over) {
		struct waiting *w = &s->waiting[i];
		uint64_t page = w->page, done;

		if (w->chunk == c) {
			w->chunk = NULL;
			if (pagemap_get(&s->pm, page) != PAGE_MISSING)
				serve_one(s, w);
			else
				fill_data(s, r, page, 1, c->data + (page - c->run.page) * r->page_size,
					  WHY_DEMAND, &done);
		}
		i = entry_after(s, i, page);
	}
}

/* Something in the window could not be read: find out whether it is a page that was asked for. */
static void read_failed(struct infill_session *s, struct chunk *c)
{
	unsigned i = 0;

	while (i < s->waiting_count && !s->over) {
		struct waiting *w = &s->waiting[i];
		uint64_t page = w->page;

		if (w->chunk == c) {
			w->chunk = NULL;
			if (c->run.count > 1)
				w->chunk = read_for_demand(s, c->run.region, page, 1);
			else if (pagemap_get(&s->pm, page) == PAGE_MISSING)
				fill_poison(s, c->run.region, page, c->read.result);
			else
				serve_one(s, w);
		}
		i = entry_after(s, i, page);
	}
}

void demand_read_done(struct infill_session *s, struct chunk *c)
{
	s->demand_reading--;
	if (c->read.result == -ESTALE && !s->resident) {
		session_fail(s, err_set(-ESTALE, "%s: changed while it was served",
					image_name(s->image)));
	} else if (c->read.result) {
		read_failed(s, c);
	} else {
		stats_add(&s->pm.stats->read_bytes, c->read.length);
		c->data = c->read.buffer;
		install_read(s, c);
	}
	chunk_free(c);
	/* Faults that found too many reads under way. */
	demand_serve(s);
}
