/* SPDX-License-Identifier: MIT */
/*
 * pagemap.h: the single truth about each page of a VM, in a memfd that
 * outlives the process.
 *
 * The file is all that another process needs, beside the userfaultfd and the
 * image, to go on with a session:
 *
 *   header      what it is, the regions, the image's identity
 *   events      the batch of userfaultfd events that is being handled
 *   stats       counters and latencies
 *   recording   first touches, if a trace is being recorded
 *   states      one byte for each page
 *
 * States, and who may move a page between them:
 *
 *   missing   -> filling    about to be installed
 *   missing   -> removed    the VMM gave the page up, or its content is zero
 *   filling   -> removed    its content is zero, and need not be installed, or
 *                           the VMM gave it up (infill_session_discard())
 *   filling   -> present    installed, or found installed (EEXIST)
 *   filling   -> missing    put off (EAGAIN), or its process died
 *   filling   -> poisoned   cannot be read
 *   present   -> removed    the VMM gave the page up
 *   poisoned  -> removed    the same
 *
 * `removed` is for good: the page reads as zero, and whatever the guest writes
 * there the kernel keeps by itself.
 *
 * `present` is only set after the kernel has the page, so a missing-page
 * fault on a present page means that the VMM dropped it without an event, and
 * zero is its content.  `filling` lasts for one ioctl; what a dead process
 * left in it may or may not be installed, and is asked for again: the kernel
 * answers EEXIST if it is.
 *
 * Events are read into the file before they are looked at and are cleared
 * after they are applied, so that a process can die in between.
 *
 * A session on a userfaultfd has one thread that writes.  With KVM Userfault
 * vCPUs fill pages, too: who moves a page from missing to filling, by
 * pagemap_claim(), owns it until it moves it on.  Any thread or process reads
 * states and stats.
 * Internal.  The layout is private to one build of the library (PAGEMAP_LAYOUT
 * is checked): the process that resumes is the same program.
 */
#ifndef INFILL_PAGEMAP_H
#define INFILL_PAGEMAP_H

#include <linux/userfaultfd.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "infill.h"
#include "stats.h"
#include "trace.h"

enum page_state {
	PAGE_MISSING = 0, /* a new file is all missing without being written */
	PAGE_FILLING,
	PAGE_PRESENT,
	PAGE_REMOVED,
	PAGE_POISONED,
	PAGE_STATES,
};

#define PAGEMAP_EVENTS 64 /* in a batch */

/* A region; its pages are numbered from `first` on, regions in hva order. */
struct pagemap_region {
	uint64_t gpa, hva, length, offset, page_size, first, pages;
	uint32_t backing, reserved;
};

struct pagemap_header {
	char magic[8];
	uint32_t layout;
	_Atomic uint32_t ready;       /* set when all of the set-up is done */
	_Atomic uint32_t independent; /* resident and unregistered: needs no pager */
	uint32_t regions;
	uint64_t pages;
	uint64_t bytes;          /* of the file */
	uint64_t recording_at, states_at;
	uint64_t record_capacity;
	struct infill_identity image;
	struct pagemap_region region[INFILL_MEMORY_REGIONS_MAX];
};

struct pagemap {
	int fd;
	uint64_t missing; /* pages in PAGE_MISSING or PAGE_FILLING; kept by pagemap_move() */
	struct pagemap_header *header;
	struct uffd_msg *events;
	struct stats *stats;
	struct recording *recording;
	_Atomic uint8_t *state;
};

/*
 * Make the file FD (empty, or with a set-up that was cut short) the state of
 * MEMORY, or map the state that it already holds.  FD is duplicated.  MEMORY
 * may be NULL if the file is set up.  *RESUMED says which it was.
 * -EINVAL: not a state file, or of other regions or another build; -ESTALE:
 * of another image.
 */
int pagemap_open(struct pagemap *pm, int fd, const struct infill_memory *memory,
		 const struct infill_identity *image, uint64_t record_capacity, bool *resumed);
void pagemap_close(struct pagemap *pm);

/* The region that HVA lies in and the number of its page, or NULL. */
const struct pagemap_region *pagemap_find(const struct pagemap *pm, uint64_t hva, uint64_t *page);

/* The same by guest-physical address. */
const struct pagemap_region *pagemap_find_gpa(const struct pagemap *pm, uint64_t gpa,
					      uint64_t *page);

/* The region of page number PAGE. */
const struct pagemap_region *pagemap_region(const struct pagemap *pm, uint64_t page);

/*
 * The page that holds image byte OFFSET, if some region does: images may be
 * larger than memory.  Returns its region or NULL.
 */
const struct pagemap_region *pagemap_at(const struct pagemap *pm, uint64_t offset,
					uint64_t *page);

static inline uint64_t pagemap_hva(const struct pagemap_region *r, uint64_t page)
{
	return r->hva + (page - r->first) * r->page_size;
}

static inline uint64_t pagemap_offset(const struct pagemap_region *r, uint64_t page)
{
	return r->offset + (page - r->first) * r->page_size;
}

static inline enum page_state pagemap_get(const struct pagemap *pm, uint64_t page)
{
	return atomic_load_explicit(&pm->state[page], memory_order_relaxed);
}

/* pm->missing, for any thread. */
static inline uint64_t pagemap_missing(const struct pagemap *pm)
{
	return __atomic_load_n(&pm->missing, __ATOMIC_RELAXED);
}

/*
 * Move COUNT pages from their states, each of which must allow it, to TO.
 * 0, or -EPROTO, with nothing moved, if one may not: a defect of the library.
 */
int pagemap_move(struct pagemap *pm, uint64_t page, uint64_t count, enum page_state to);

/*
 * Move those of at most COUNT pages from PAGE on that are missing, up to the
 * first that is not, to PAGE_FILLING, and return how many: they are the
 * caller's, and no other thread's.
 */
uint64_t pagemap_claim(struct pagemap *pm, uint64_t page, uint64_t count);

/* How many of at most COUNT pages from PAGE on are in STATE, counted from the first. */
uint64_t pagemap_run(const struct pagemap *pm, uint64_t page, uint64_t count,
		     enum page_state state);

/* Is no page missing or being filled?  Looks at all of them. */
bool pagemap_settled(const struct pagemap *pm);

/* The first page from PAGE on, before END, in STATE; END if none. */
uint64_t pagemap_next(const struct pagemap *pm, uint64_t page, uint64_t end,
		      enum page_state state);

#endif
