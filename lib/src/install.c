/* SPDX-License-Identifier: MIT */
/*
 * install.c: the ways into guest memory, and what the kernel answers.  Internal.
 * Speed matters here: each line is on the path of a demand fault.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "err.h"
#include "image.h"
#include "install.h"
#include "present.h"
#include "uffd.h"
#include "userfault.h"

#define PASSING_NS 5000000000u /* so long may installs fail with ENOMEM */
#define TRIES 8                /* to install a huge page of which nobody knows whether it is there */

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

/* To a guest_memfd, where nobody can fault but vCPUs that exit, and what is new reads as zero. */
static int write_pages(const struct infill_session *s, const struct pagemap_region *r,
		       uint64_t page, uint64_t count, const void *data, enum how how,
		       uint64_t *done)
{
	int err = how == HOW_COPY ? userfault_write(s->userfault, r, page, count, data) : 0;

	*done = err ? 0 : count;
	return err;
}

static int by_uffd(int uffd, uint64_t hva, uint64_t length, const void *data, enum how how,
		   uint64_t *done)
{
	switch (how) {
	case HOW_COPY:
		return uffd_copy(uffd, hva, data, length, done);
	case HOW_ZERO:
		return uffd_zero(uffd, hva, length, done);
	case HOW_CONTINUE:
		return uffd_continue(uffd, hva, length, done);
	default:
		return uffd_poison(uffd, hva, length, done);
	}
}

/*
 * The kernel says of a huge page that it is there, and may mean that none is
 * free: see present.h.  Believed, the guest would find zeros.  Where nobody can
 * tell a page that is free now may have come since the install, so that another
 * one goes well, or says the same again if the page is there.
 */
static int refused(const struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		   const void *data, enum how how, uint64_t *done)
{
	const uint64_t hva = pagemap_hva(r, page);
	int err = -EEXIST;

	for (unsigned tries = 0; err == -EEXIST && tries < TRIES; tries++) {
		enum present present = present_huge(s->pagemap, hva);

		if (present != PRESENT_PERHAPS)
			return present == PRESENT_YES ? -EEXIST : -ENOMEM;
		err = by_uffd(s->uffd, hva, r->page_size, data, how, done);
		*done /= r->page_size;
	}
	return err;
}

int install_pages(const struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		  uint64_t count, const void *data, enum how how, uint64_t *done)
{
	bool huge = r->backing == INFILL_BACKING_HUGETLB;
	int err;

	if (r->backing == INFILL_BACKING_GUEST_MEMFD)
		return write_pages(s, r, page, count, data, how, done);
	*done = 0;
	if (how == HOW_ZERO && huge) {
		data = zeros();
		how = HOW_COPY;
		count = 1; /* at a time: there is one page of zeros */
		if (!data)
			return -ENOMEM;
	}
	err = by_uffd(s->uffd, pagemap_hva(r, page), count * r->page_size, data, how, done);
	*done /= r->page_size;
	if (err == -EEXIST && huge && how != HOW_POISON)
		return *done ? 0 : refused(s, r, page, data, how, done);
	return err;
}

/* ---- answers ----------------------------------------------------------------- */

/*
 * The kernel answers ENOENT to a range that crosses a border of VMAs, which
 * mprotect() and madvise() on a part of the memory make.
 */
uint64_t install_shorter(int err, uint64_t left)
{
	return err == -ENOENT ? left / 2 : 0;
}

enum page_state install_outcome(int err)
{
	return err == -EEXIST ? PAGE_PRESENT : err == -ENOENT ? PAGE_REMOVED : PAGE_FILLING;
}

bool install_may_pass(uint64_t *since)
{
	uint64_t now = stats_now();

	if (!*since)
		*since = now;
	return now - *since < PASSING_NS;
}

int install_failed(const struct pagemap_region *r, int err)
{
	switch (err) {
	case -EAGAIN:
		return err_set(err, "userfaultfd: refuses installs");
	case -ENOMEM:
		return err_set(err, "memory: cannot install a page: %s",
			       r->backing == INFILL_BACKING_HUGETLB ?
				       "no huge page is free: raise vm.nr_hugepages" :
				       "no memory within the limits of the VMM's control group");
	}
	return err_set(err, "memory: cannot install a page: %m");
}

/* ---- what is told of it -------------------------------------------------------- */

void install_count(struct infill_session *s, struct stats *st, const struct pagemap_region *r,
		   uint64_t page, uint64_t count, enum how how, enum why why)
{
	static const enum timeline_class class[] = {
		[WHY_DEMAND] = TIMELINE_DEMAND,
		[WHY_TRACE] = TIMELINE_TRACE,
		[WHY_REST] = TIMELINE_REST,
	};

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

int install_poisoned(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		     int error)
{
	uint64_t offset = pagemap_offset(r, page);
	char text[160];

	snprintf(text, sizeof(text), "offset %llu, %llu bytes: cannot be read (%s): poisoned",
		 (unsigned long long)offset, (unsigned long long)r->page_size, strerror(-error));
	session_event(s, INFILL_EVENT_POISON, error, offset, r->page_size, text);
	return err_set(-EHWPOISON, "%s: %s", image_name(s->image), text);
}
