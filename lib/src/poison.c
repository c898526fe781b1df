/* SPDX-License-Identifier: MIT */
/* poison.c: memory that nobody fills any more.  Internal. */
#include <errno.h>

#include "install.h"
#include "poison.h"
#include "uffd.h"
#include "userfault.h"

/* COUNT pages from PAGE on.  False: somebody may wait for one of them for ever. */
static bool poison_run(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		       uint64_t count)
{
	uint64_t most = count, done;
	bool all = true;

	while (count) {
		uint64_t try = count < most ? count : most;
		int err = install_pages(s, r, page, try, NULL, HOW_POISON, &done);

		page += done;
		count -= done;
		most = 2 * try;
		if (install_shorter(err, try - done)) {
			most = install_shorter(err, try - done);
		} else if (err) {
			/* It is there, or its memory is gone, or there is none for the kernel's tables. */
			if (err != -EEXIST && err != -ENOENT && err != -ENOMEM)
				return false;
			all &= err != -ENOMEM;
			page++;
			count--;
		}
	}
	return all;
}

static bool poison_region(struct infill_session *s, const struct pagemap_region *r)
{
	uint64_t end = r->first + r->pages, page = r->first, run;
	bool all = true;

	for (; page < end; page += run) {
		for (run = 0; page + run < end; run++)
			if (!userfault_missing(s->userfault, r, page + run))
				break;
		if (run)
			all &= poison_run(s, r, page, run);
		else
			run = 1;
	}
	return all;
}

void poison_missing(struct infill_session *s)
{
	for (unsigned i = 0; s->uffd >= 0 && i < s->pm.header->regions; i++) {
		const struct pagemap_region *r = &s->pm.header->region[i];

		if (r->backing == INFILL_BACKING_GUEST_MEMFD || !poison_region(s, r))
			continue;
		/* What has its bit clear and is not there reads as zero: nobody need wait for that. */
		uffd_unregister(s->uffd, r->hva, r->length);
	}
}
