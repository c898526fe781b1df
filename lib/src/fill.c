/* SPDX-License-Identifier: MIT */
/*
 * fill.c: the session's thread's installs, one run at a time, and what follows
 * for the faults that wait.  Internal.
 * Speed matters here: each line is on the path of a demand fault.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "cache.h"
#include "demand.h"
#include "err.h"
#include "fill.h"
#include "image.h"
#include "install.h"
#include "uffd.h"
#include "userfault.h"

#define GAP_TRIES 64 /* to find a gap between two removals */

/*
 * Installs that met EAGAIN work again when the thread in madvise() has run, and
 * before it, or another one, is in the next: a VMM that floods REMOVE leaves
 * short gaps only.  They are looked for here, where the content is at hand,
 * with this CPU left to the VMM in between, until the next event is there:
 * then there is no gap before it is read.  What no fault waits for can wait.
 */
static bool gap_may_come(const struct infill_session *s, enum why why, unsigned tries)
{
	if (why != WHY_DEMAND || tries == GAP_TRIES || uffd_pending(s->uffd))
		return false;
	sched_yield();
	return true;
}

static int install(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		   uint64_t count, const void *data, enum how how, enum why why, uint64_t *done)
{
	unsigned tries = 0;
	int err;

	do
		err = install_pages(s, r, page, count, data, how, done);
	while (err == -EAGAIN && !*done && gap_may_come(s, why, tries++));
	return err;
}

/*
 * The kernel is short of memory: wait a while, it may be a passing limit.  A pool
 * of huge pages is most often too small from the start, and vCPUs that wait for a
 * userfaultfd cannot be told; those that exit wait by themselves.
 */
static int no_memory(struct infill_session *s, const struct pagemap_region *r)
{
	bool wait = r->backing != INFILL_BACKING_HUGETLB || s->userfault;

	if (wait && install_may_pass(&s->no_memory_ns))
		return -EAGAIN;
	return install_failed(r, -ENOMEM);
}

/* COUNT pages of this thread's are there, or read as zero: vCPUs may have them. */
static int hand_over(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		     uint64_t count, enum page_state to)
{
	int err = pagemap_move(&s->pm, page, count, to);

	if (!err && s->userfault)
		userfault_clear(s->userfault, r, page, count);
	return err;
}

/* They are not, and somebody else may try. */
static void put_back(struct infill_session *s, uint64_t page, uint64_t count)
{
	pagemap_move(&s->pm, page, count, PAGE_MISSING);
	if (s->userfault)
		userfault_wake(s->userfault, page, count);
}

/*
 * One page stopped an install with ERR.  0: it is settled, go on behind it;
 * else stop.  The page is in PAGE_FILLING.
 */
static int settle_odd(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		      int err)
{
	enum page_state to = install_outcome(err);

	if (to == PAGE_FILLING)
		return err == -ENOMEM ? no_memory(s, r) : err;
	stats_add(&s->pm.stats->duplicates, to == PAGE_PRESENT);
	err = hand_over(s, r, page, 1, to);
	/* A thread may wait for it all the same. */
	uffd_wake(s->uffd, pagemap_hva(r, page), r->page_size);
	demand_settled(s, page, 1);
	return err;
}

/* What stopped a run for good, after the rest of it was put back. */
static int stop(struct infill_session *s, int err)
{
	switch (err) {
	case -EAGAIN:
		s->retries++;
		stats_add(&s->pm.stats->retries, 1);
		return err;
	case -ESRCH:
		session_end(s);
		return err;
	}
	session_fail(s, err);
	return err;
}

/* The kernel has N more pages. */
static int installed(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		     uint64_t n, enum how how, enum why why)
{
	int err = hand_over(s, r, page, n, PAGE_PRESENT);

	s->retries = 0;
	s->no_memory_ns = 0;
	install_count(s, s->pm.stats, r, page, n, how, why);
	demand_settled(s, page, n);
	return err;
}

/*
 * Install a run of missing pages, all in one way.  Where a vCPU was first, it
 * wakes who waits for the page, and the run ends before it.
 */
static int put(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
	       uint64_t count, const char *data, enum how how, enum why why, uint64_t *settled)
{
	uint64_t most;
	int err = 0;

	count = pagemap_claim(&s->pm, page, count);
	if (!count) {
		demand_settled(s, page, 1);
		*settled = 1;
		return 0;
	}
	most = count;
	for (*settled = 0; !err && *settled < count;) {
		uint64_t at = page + *settled, left = count - *settled, n;
		uint64_t try = left < most ? left : most;

		err = install(s, r, at, try, data ? data + *settled * r->page_size : NULL, how, why,
			      &n);
		if (n) {
			int moved = installed(s, r, at, n, how, why);

			*settled += n;
			err = moved ? moved : err;
		}
		if (install_shorter(err, try - n)) {
			most = install_shorter(err, try - n);
			err = 0;
		} else if (err) {
			err = settle_odd(s, r, page + *settled, err);
			*settled += !err;
		}
	}
	if (!err)
		return 0;
	if (*settled < count)
		put_back(s, page + *settled, count - *settled);
	return stop(s, err);
}

/* Zero pages that nobody touched: the kernel gives zeros by itself, later. */
static int leave_zero(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		      uint64_t count, uint64_t *settled)
{
	uint64_t mine = pagemap_claim(&s->pm, page, count);
	int err = mine ? hand_over(s, r, page, mine, PAGE_REMOVED) : 0;

	*settled = mine ? mine : 1; /* that one is a vCPU's */
	if (err)
		session_fail(s, err);
	return err;
}

void fill_hole(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
	       uint64_t count)
{
	uint64_t settled;
	int err = 0;

	for (uint64_t done = 0; !err && done < count; done += settled)
		err = leave_zero(s, r, page + done, count - done, &settled);
	session_check_resident(s);
}

static int put_data(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		    uint64_t count, const char *data, bool zero, enum why why, uint64_t *settled)
{
	int err = 0;

	if (zero && why == WHY_REST && !s->protected)
		return leave_zero(s, r, page, count, settled);
	if (zero)
		return put(s, r, page, count, NULL, HOW_ZERO, why, settled);
	if (!s->cache)
		return put(s, r, page, count, data, HOW_COPY, why, settled);
	*settled = 0;
	err = cache_put(s->cache, pagemap_offset(r, page), data, count * r->page_size);
	if (err) {
		session_fail(s, err);
		return err;
	}
	return put(s, r, page, count, NULL, HOW_CONTINUE, why, settled);
}

static void find_zeros(const struct pagemap_region *r, uint64_t count, const char *data, bool *zero)
{
	for (uint64_t i = 0; i < count; i++)
		zero[i] = image_is_zero(data + i * r->page_size, r->page_size);
}

int fill_data(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
	      uint64_t count, const void *data, enum why why, uint64_t *done)
{
	bool zero[SLICE_MAX / SMALL_PAGE];
	int err = 0;

	for (*done = 0; !err && *done < count;) {
		uint64_t left = count - *done, n = 1, settled;
		const char *from = (const char *)data + *done * r->page_size;

		left = left < SLICE_MAX / SMALL_PAGE ? left : SLICE_MAX / SMALL_PAGE;
		find_zeros(r, left, from, zero);
		for (uint64_t i = 0; !err && i < left; i += n) {
			n = pagemap_run(&s->pm, page + *done, left - i, PAGE_MISSING);
			if (!n) { /* filled meanwhile */
				n = 1;
				++*done;
				continue;
			}
			for (uint64_t k = 1; k < n; k++)
				if (zero[i + k] != zero[i])
					n = k;
			err = put_data(s, r, page + *done, n, from + i * r->page_size, zero[i], why,
				       &settled);
			*done += settled;
			n = settled; /* on: the next may be a vCPU's */
		}
	}
	session_check_resident(s);
	return err;
}

/* Those of COUNT pages that are missing; the bytes come from elsewhere. */
static int fill_by(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		   uint64_t count, enum how how, enum why why, uint64_t *done)
{
	int err = 0;

	for (*done = 0; !err && *done < count;) {
		uint64_t n = pagemap_run(&s->pm, page + *done, count - *done, PAGE_MISSING), settled = 1;

		if (n)
			err = put(s, r, page + *done, n, NULL, how, why, &settled);
		*done += settled;
	}
	session_check_resident(s);
	return err;
}

int fill_cached(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		uint64_t count, enum why why, uint64_t *done)
{
	return fill_by(s, r, page, count, HOW_CONTINUE, why, done);
}

int fill_zeros(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
	       uint64_t count, enum why why, uint64_t *done)
{
	return fill_by(s, r, page, count, HOW_ZERO, why, done);
}

/* Runs of pages that this thread has claimed. */
struct claims {
	unsigned runs;
	struct {
		uint64_t page, count;
	} run[SLICE_MAX / SMALL_PAGE];
};

/*
 * Claim those of COUNT pages from PAGE on that are missing, and read them to where they
 * belong.  *DONE: how far.  0, or why the next one cannot be read.
 */
static int read_in_place(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
			 uint64_t count, struct claims *c, uint64_t *done)
{
	uint64_t n;

	c->runs = 0;
	for (*done = 0; *done < count && c->runs < SLICE_MAX / SMALL_PAGE; *done += n) {
		uint64_t at = page + *done;
		int err;

		n = pagemap_claim(&s->pm, at, count - *done);
		if (!n) { /* it is there, or a vCPU fills it */
			n = 1;
			continue;
		}
		err = image_read_unverified(s->image, pagemap_offset(r, at),
					    userfault_target(s->userfault, r, at),
					    n * r->page_size);
		if (err) {
			put_back(s, at, n);
			return err;
		}
		c->run[c->runs].page = at;
		c->run[c->runs++].count = n;
	}
	return 0;
}

/* They were verified.  The first one last: its answer says how far a vCPU need not ask again. */
static int give_claims(struct infill_session *s, const struct pagemap_region *r,
		       const struct claims *c, enum why why)
{
	int err = 0;

	for (unsigned i = c->runs; i-- > 0;) {
		int one = installed(s, r, c->run[i].page, c->run[i].count, HOW_COPY, why);

		stats_add(&s->pm.stats->read_bytes, c->run[i].count * r->page_size);
		err = one ? one : err;
	}
	if (err)
		session_fail(s, err);
	session_check_resident(s);
	return err;
}

int fill_in_place(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		  uint64_t count, enum why why, uint64_t *done)
{
	struct claims c;
	int err = read_in_place(s, r, page, count, &c, done);
	int changed = c.runs ? infill_image_check(s->image) : 0;

	if (!changed) {
		int moved = give_claims(s, r, &c, why);

		return moved ? moved : *done ? 0 : err;
	}
	for (unsigned i = 0; i < c.runs; i++)
		put_back(s, c.run[i].page, c.run[i].count);
	*done = 0;
	return changed;
}

/*
 * Zero for a page that was removed, or dropped without an event; its state
 * stays.  Removed pages stay removed because the VMM's madvise() may drop them
 * only now: the next fault there has to find zero again, also where a cache
 * has content at that place.
 */
static int zero_over(struct infill_session *s, const struct pagemap_region *r, uint64_t page)
{
	uint64_t n;
	int err = install(s, r, page, 1, NULL, HOW_ZERO, WHY_DEMAND, &n);

	if (!err)
		install_count(s, s->pm.stats, r, page, 1, HOW_ZERO, WHY_DEMAND);
	if (err == -EEXIST || err == -ENOENT ||
	    (err == -ENOMEM && pagemap_get(&s->pm, page) == PAGE_PRESENT)) {
		/* Huge pages may be used up although this one is there: let the thread see. */
		stats_add(&s->pm.stats->duplicates, err == -EEXIST);
		uffd_wake(s->uffd, pagemap_hva(r, page), r->page_size);
		err = 0;
	} else if (err == -ENOMEM) {
		err = no_memory(s, r);
	}
	if (err)
		return stop(s, err);
	s->retries = 0;
	s->no_memory_ns = 0;
	demand_settled(s, page, 1);
	return 0;
}

int fill_zero(struct infill_session *s, const struct pagemap_region *r, uint64_t page)
{
	uint64_t settled;
	int err;

	if (pagemap_get(&s->pm, page) != PAGE_MISSING)
		return zero_over(s, r, page);
	err = put(s, r, page, 1, NULL, HOW_ZERO, WHY_DEMAND, &settled);
	session_check_resident(s);
	return err;
}

int fill_none(struct infill_session *s, const struct pagemap_region *r, uint64_t page)
{
	int err = pagemap_move(&s->pm, page, 1, PAGE_REMOVED);

	if (err) {
		session_fail(s, err);
		return err;
	}
	uffd_wake(s->uffd, pagemap_hva(r, page), r->page_size);
	demand_settled(s, page, 1);
	return 0;
}

int fill_again(struct infill_session *s, const struct pagemap_region *r, uint64_t page)
{
	uint64_t n;
	int err = install(s, r, page, 1, NULL, HOW_CONTINUE, WHY_DEMAND, &n);

	if (err == -EEXIST) {
		stats_add(&s->pm.stats->duplicates, 1);
		uffd_wake(s->uffd, pagemap_hva(r, page), r->page_size);
		err = 0;
	}
	if (err)
		return stop(s, err);
	demand_settled(s, page, 1);
	return 0;
}

/* Its bit stays set: a vCPU that needs the page is told by its exit. */
static int poisoned(struct infill_session *s, uint64_t page)
{
	int err = pagemap_move(&s->pm, page, 1, PAGE_POISONED);

	if (!err && s->userfault)
		userfault_wake(s->userfault, page, 1);
	return err;
}

int fill_poison(struct infill_session *s, const struct pagemap_region *r, uint64_t page, int error)
{
	uint64_t n;
	int err;

	if (pagemap_get(&s->pm, page) == PAGE_POISONED) { /* touched again */
		err = install(s, r, page, 1, NULL, HOW_POISON, WHY_DEMAND, &n);
		if (err && err != -EEXIST)
			return stop(s, err);
		uffd_wake(s->uffd, pagemap_hva(r, page), r->page_size);
		demand_settled(s, page, 1);
		return 0;
	}
	if (!pagemap_claim(&s->pm, page, 1)) { /* a vCPU tries to read it */
		demand_settled(s, page, 1);
		return 0;
	}
	err = install(s, r, page, 1, NULL, HOW_POISON, WHY_DEMAND, &n);
	if (!err)
		err = poisoned(s, page);
	else if (err == -EEXIST || err == -ENOENT)
		return settle_odd(s, r, page, err);
	if (err) {
		put_back(s, page, 1);
		if (err == -EINVAL || err == -ENOTTY)
			err = err_set(-EOPNOTSUPP,
				      "%s: offset %llu cannot be read (%s), and this kernel cannot "
				      "poison the page: it needs Linux 6.6",
				      image_name(s->image),
				      (unsigned long long)pagemap_offset(r, page),
				      strerror(-error));
		return stop(s, err);
	}
	install_count(s, s->pm.stats, r, page, 1, HOW_POISON, WHY_DEMAND);
	demand_settled(s, page, 1);
	install_poisoned(s, r, page, error);
	session_check_resident(s);
	return 0;
}
