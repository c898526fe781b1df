/* SPDX-License-Identifier: MIT */
/*
 * discard.c: pages that the VMM gives up while vCPUs' threads fill.  Internal
 * but for infill_session_discard().
 *
 * Some pages at a time, in this order:
 *
 *   hold    what is missing is claimed, what somebody is filling is waited for:
 *           from now on nobody installs there
 *   drop    the memory, and KVM's mappings with it
 *   settle  the state becomes removed, and then the bit is cleared
 *
 * Where the pager is another process it does the first and the state, and is
 * told before the memory goes.
 *
 * So no content of the image comes after the drop, and the guest cannot write
 * to a page that it could not have had before until the drop is over.
 */
#include <errno.h>

#include "err.h"
#include "remote_session.h"
#include "session.h"
#include "userfault.h"
#include "vcpu.h"

#define STEP_BYTES (2u << 20) /* held at a time: who needs one of the pages waits so long */

/* A part of what is given up, all in one region. */
struct part {
	const struct pagemap_region *region;
	uint64_t page, count;
};

/*
 * Returns when each of the pages is claimed by this thread, or settled.  Others
 * that hold pages wait for higher ones only, as this does.
 */
static void hold(struct infill_session *s, const struct part *p)
{
	uint64_t page = p->page, end = p->page + p->count;

	while (page < end) {
		page += pagemap_claim(&s->pm, page, end - page);
		if (page == end)
			break;
		switch (pagemap_get(&s->pm, page)) {
		case PAGE_MISSING: /* given back just now */
			break;
		case PAGE_FILLING:
			userfault_wait(s->userfault, &s->pm, page);
			break;
		default:
			page++;
		}
	}
}

/* They could not be dropped: what hold() claimed has its content from the image still. */
static void give_back(struct infill_session *s, const struct part *p)
{
	for (uint64_t page = p->page; page < p->page + p->count; page++)
		if (pagemap_get(&s->pm, page) == PAGE_FILLING)
			vcpu_settle(s, p->region, page, 1, PAGE_MISSING);
}

static int drop(struct infill_session *s, const struct part *p)
{
	int err = userfault_drop(s->userfault, p->region, p->page, p->count);

	return err ? err_set(err, "session: cannot discard %llu bytes at 0x%llx: %m",
			     (unsigned long long)(p->count * p->region->page_size),
			     (unsigned long long)pagemap_hva(p->region, p->page)) : 0;
}

/* Pages have no state here: the pager has. */
static int discard_remote(struct infill_session *s, const struct part *p)
{
	int err = remote_session_discard(s, p->region, p->page, p->count);

	if (!err)
		err = drop(s, p);
	if (err)
		return err;
	/* Its bits are gone with the flag if nothing is missing any more; cleared they are the same. */
	userfault_clear(s->userfault, p->region, p->page, p->count);
	atomic_fetch_add_explicit(&s->discarded, p->count, memory_order_relaxed);
	return 0;
}

static int discard_part(struct infill_session *s, const struct part *p)
{
	int err;

	if (s->remote)
		return discard_remote(s, p);
	hold(s, p);
	err = drop(s, p);
	if (err) {
		give_back(s, p);
		return err;
	}
	err = vcpu_settle(s, p->region, p->page, p->count, PAGE_REMOVED);
	if (!err)
		atomic_fetch_add_explicit(&s->discarded, p->count, memory_order_relaxed);
	return err;
}

/* What of [GPA, END) begins at GPA and lies in one region, MOST bytes at most. */
static int next_part(const struct infill_session *s, uint64_t gpa, uint64_t end, uint64_t most,
		     struct part *p)
{
	const struct pagemap_region *r = pagemap_find_gpa(&s->pm, gpa, &p->page);
	uint64_t length;

	if (!r)
		return err_set(-EFAULT, "session: discard 0x%llx: is in none of the memslots",
			       (unsigned long long)gpa);
	length = r->gpa + r->length - gpa;
	length = length < end - gpa ? length : end - gpa;
	if ((gpa - r->gpa) % r->page_size || length % r->page_size)
		return err_set(-EINVAL, "session: discard 0x%llx bytes at 0x%llx: pages have %llu",
			       (unsigned long long)length, (unsigned long long)gpa,
			       (unsigned long long)r->page_size);
	p->region = r;
	p->count = (length < most ? length : most) / r->page_size;
	return 0;
}

static uint64_t part_bytes(const struct part *p)
{
	return p->count * p->region->page_size;
}

int infill_session_discard(struct infill_session *s, uint64_t gpa, uint64_t length)
{
	struct part p;
	uint64_t end, at = gpa;
	int err = 0;

	if (!s->userfault)
		return err_set(-EINVAL, "session: was not started by infill_session_start_vm(): its "
					"userfaultfd sees what madvise() gives up");
	/* The guest would keep what is dropped, and nobody here knows what it has touched. */
	if (s->protected)
		return err_set(-EOPNOTSUPP, "session: cannot discard memory of a protected VM: what its "
					    "guest has touched is its own until the VM ends");
	if (!length || __builtin_add_overflow(gpa, length, &end))
		return err_set(-EINVAL, "session: discard 0x%llx bytes at 0x%llx: no such range",
			       (unsigned long long)length, (unsigned long long)gpa);
	while (!err && at < end) {
		err = next_part(s, at, end, UINT64_MAX, &p);
		at += err ? 0 : part_bytes(&p);
	}
	for (at = gpa; !err && at < end; at += part_bytes(&p)) {
		next_part(s, at, end, STEP_BYTES, &p);
		err = discard_part(s, &p);
	}
	return err;
}
