/* SPDX-License-Identifier: MIT */
/*
 * fill.c: installs, one run at a time, and what the kernel answers.  Internal.
 * Speed matters here: each line is on the path of a demand fault.
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "cache.h"
#include "demand.h"
#include "err.h"
#include "fill.h"
#include "image.h"
#include "present.h"
#include "uffd.h"
#include "userfault.h"

#define NO_MEMORY_NS 5000000000u /* so long may installs fail with ENOMEM */
#define GAP_TRIES 64             /* to find a gap between two removals */

/* How a run of pages gets in. */
enum how { HOW_COPY, HOW_ZERO, HOW_CONTINUE, HOW_POISON };

/* A huge page of zeros to copy from: hugetlb has no UFFDIO_ZEROPAGE. */
static const void *zeros(void)
{
	static _Atomic(const void *) shared;
	const void *z = shared, *expected = NULL;

	if (z)
		return z;
	z = mmap(NULL, HUGE_PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (z == MAP_FAILED)
		return NULL;
	if (atomic_compare_exchange_strong(&shared, &expected, z))
		return z;
	munmap((void *)(uintptr_t)z, HUGE_PAGE);
	return expected;
}

static int install_once(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
			uint64_t count, const void *data, enum how how, uint64_t *done)
{
	uint64_t hva = pagemap_hva(r, page), length = count * r->page_size;
	int err;

	if (r->backing == INFILL_BACKING_GUEST_MEMFD) {
		/* Nobody can fault there but KVM Userfault's vCPUs, and what is new reads as zero. */
		err = how == HOW_COPY ? userfault_write(s->userfault, r, page, count, data) : 0;
		*done = err ? 0 : count;
		return err;
	}
	if (how == HOW_ZERO && r->backing == INFILL_BACKING_HUGETLB) {
		data = zeros();
		how = HOW_COPY;
		length = r->page_size; /* one at a time: there is one page of zeros */
		if (!data)
			return *done = 0, -ENOMEM;
	}
	switch (how) {
	case HOW_COPY:
		err = uffd_copy(s->uffd, hva, data, length, done);
		break;
	case HOW_ZERO:
		err = uffd_zero(s->uffd, hva, length, done);
		break;
	case HOW_CONTINUE:
		err = uffd_continue(s->uffd, hva, length, done);
		break;
	default:
		err = uffd_poison(s->uffd, hva, length, done);
		break;
	}
	*done /= r->page_size;
	return err;
}

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
		err = install_once(s, r, page, count, data, how, done);
	while (err == -EAGAIN && !*done && gap_may_come(s, why, tries++));
	if (err == -EEXIST && r->backing == INFILL_BACKING_HUGETLB && how != HOW_POISON &&
	    !present_huge(s->pagemap, pagemap_hva(r, page + *done)))
		return -ENOMEM;
	return err;
}

static void count_installed(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
			    uint64_t count, enum how how, enum why why)
{
	static const enum timeline_class class[] = {
		[WHY_DEMAND] = TIMELINE_DEMAND,
		[WHY_TRACE] = TIMELINE_TRACE,
		[WHY_REST] = TIMELINE_REST,
	};
	struct stats *st = s->pm.stats;

	if (how == HOW_POISON) {
		stats_add(&st->poisoned, count);
	} else {
		stats_add(why == WHY_DEMAND ? &st->demand_pages :
			  why == WHY_TRACE  ? &st->trace_pages :
					      &st->rest_pages,
			  count);
		stats_add(&st->bytes, count * r->page_size);
		if (how == HOW_ZERO)
			stats_add(&st->zero_pages, count);
	}
	if (s->timeline)
		timeline_install(s->timeline, stats_now(), pagemap_offset(r, page),
				 count * r->page_size,
				 how == HOW_ZERO   ? TIMELINE_ZERO :
				 how == HOW_POISON ? TIMELINE_POISON :
						     class[why]);
}

/* The kernel is short of memory: wait a while, it may be a passing limit. */
static int no_memory(struct infill_session *s, const struct pagemap_region *r)
{
	uint64_t now = stats_now();

	if (!s->no_memory_ns)
		s->no_memory_ns = now;
	if (r->backing != INFILL_BACKING_HUGETLB && now - s->no_memory_ns < NO_MEMORY_NS)
		return -EAGAIN;
	return err_set(-ENOMEM, "memory: cannot install a page: %s",
		       r->backing == INFILL_BACKING_HUGETLB ?
			       "no huge page is free: raise vm.nr_hugepages" :
			       "no memory within the limits of the VMM's control group");
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
	switch (err) {
	case -EEXIST: /* somebody was first; a thread may wait for it all the same */
		stats_add(&s->pm.stats->duplicates, 1);
		err = hand_over(s, r, page, 1, PAGE_PRESENT);
		uffd_wake(s->uffd, pagemap_hva(r, page), r->page_size);
		demand_settled(s, page, 1);
		return err;
	case -ENOENT: /* the VMM has unmapped it, or moved it away */
		err = hand_over(s, r, page, 1, PAGE_REMOVED);
		uffd_wake(s->uffd, pagemap_hva(r, page), r->page_size);
		demand_settled(s, page, 1);
		return err;
	case -ENOMEM:
		err = no_memory(s, r);
		break;
	}
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
	count_installed(s, r, page, n, how, why);
	demand_settled(s, page, n);
	return err;
}

/*
 * Install a run of missing pages, all in one way.  The kernel answers ENOENT
 * to a range that crosses a border of VMAs, which mprotect() and madvise() on
 * a part of the memory make: then shorter ranges are tried.  Where a vCPU was
 * first, it wakes who waits for the page, and the run ends before it.
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
		if (err == -ENOENT && try - n > 1) {
			most = (try - n) / 2;
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

	if (zero && why == WHY_REST) {
		return leave_zero(s, r, page, count, settled);
	}
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

int fill_cached(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		uint64_t count, enum why why, uint64_t *done)
{
	int err = 0;

	for (*done = 0; !err && *done < count;) {
		uint64_t n = pagemap_run(&s->pm, page + *done, count - *done, PAGE_MISSING), settled = 1;

		if (n)
			err = put(s, r, page + *done, n, NULL, HOW_CONTINUE, why, &settled);
		*done += settled;
	}
	session_check_resident(s);
	return err;
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
		count_installed(s, r, page, 1, HOW_ZERO, WHY_DEMAND);
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
	uint64_t n, offset = pagemap_offset(r, page);
	char text[160];
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
				      image_name(s->image), (unsigned long long)offset,
				      strerror(-error));
		return stop(s, err);
	}
	count_installed(s, r, page, 1, HOW_POISON, WHY_DEMAND);
	demand_settled(s, page, 1);
	snprintf(text, sizeof(text), "offset %llu, %llu bytes: cannot be read (%s): poisoned",
		 (unsigned long long)offset, (unsigned long long)r->page_size, strerror(-error));
	session_event(s, INFILL_EVENT_POISON, error, offset, r->page_size, text);
	session_check_resident(s);
	return 0;
}
