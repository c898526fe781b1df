/* SPDX-License-Identifier: MIT */
/*
 * pagemap.c: page states in a shared memfd.  Internal; the model is in
 * pagemap.h.  Whoever changes a struct in the file changes PAGEMAP_LAYOUT by
 * that (it hashes their sizes); whoever changes a meaning bumps its version.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "err.h"
#include "memory.h"
#include "pagemap.h"

#define MAGIC "INFILLST"
#define VERSION 1u
#define PAGEMAP_LAYOUT                                                                     \
	(VERSION << 24 ^ (uint32_t)(sizeof(struct pagemap_header) * 31 + sizeof(struct stats) * 7 + \
				    sizeof(struct recording) + PAGEMAP_EVENTS))

#define ALIGN 4096u
#define EVENTS_AT align_up(sizeof(struct pagemap_header))
#define STATS_AT (EVENTS_AT + align_up(PAGEMAP_EVENTS * sizeof(struct uffd_msg)))
#define RECORDING_AT (STATS_AT + align_up(sizeof(struct stats)))

static inline uint64_t align_up(uint64_t n)
{
	return (n + ALIGN - 1) & ~(uint64_t)(ALIGN - 1);
}

/* Which states a page may come from, as a mask by the state that it goes to. */
#define FROM(s) (1u << (s))
static const uint8_t may_come_from[PAGE_STATES] = {
	[PAGE_MISSING] = FROM(PAGE_FILLING),
	[PAGE_FILLING] = FROM(PAGE_MISSING),
	[PAGE_PRESENT] = FROM(PAGE_FILLING),
	[PAGE_REMOVED] = FROM(PAGE_MISSING) | FROM(PAGE_FILLING) | FROM(PAGE_PRESENT) |
			 FROM(PAGE_POISONED) | FROM(PAGE_REMOVED),
	[PAGE_POISONED] = FROM(PAGE_FILLING),
};

static inline bool is_missing(enum page_state s)
{
	return s == PAGE_MISSING || s == PAGE_FILLING;
}

/* The layout of a new file, written to HEADER. */
static void lay_out(struct pagemap_header *h, const struct infill_memory *memory,
		    const struct infill_identity *image, uint64_t record_capacity)
{
	memset(h, 0, sizeof(*h));
	memcpy(h->magic, MAGIC, sizeof(h->magic));
	h->layout = PAGEMAP_LAYOUT;
	h->image = *image;
	h->regions = memory->count;
	h->record_capacity = record_capacity;
	for (unsigned i = 0; i < memory->count; i++) {
		const struct infill_region *from = &memory->region[i];

		h->region[i] = (struct pagemap_region){
			.gpa = from->gpa,
			.hva = from->hva,
			.length = from->length,
			.offset = from->offset,
			.page_size = from->page_size,
			.first = h->pages,
			.pages = from->length / from->page_size,
			.backing = from->backing,
		};
		h->pages += h->region[i].pages;
	}
	h->recording_at = RECORDING_AT;
	h->states_at = RECORDING_AT +
		       align_up(sizeof(struct recording) + record_capacity * sizeof(uint32_t));
	h->bytes = h->states_at + align_up(h->pages);
}

/* Is H, read from a file of FILE_BYTES, a header that this build wrote? */
static bool header_sound(const struct pagemap_header *h, uint64_t file_bytes)
{
	uint64_t pages = 0;

	if (memcmp(h->magic, MAGIC, sizeof(h->magic)) || h->layout != PAGEMAP_LAYOUT ||
	    h->bytes != file_bytes || !h->regions || h->regions > INFILL_MEMORY_REGIONS_MAX ||
	    h->recording_at != RECORDING_AT || h->record_capacity > UINT32_MAX ||
	    h->states_at != RECORDING_AT + align_up(sizeof(struct recording) +
						    h->record_capacity * sizeof(uint32_t)))
		return false;
	for (unsigned i = 0; i < h->regions; i++) {
		const struct pagemap_region *r = &h->region[i];

		if (r->first != pages || !r->page_size || r->pages != r->length / r->page_size)
			return false;
		pages += r->pages;
	}
	return pages == h->pages && h->bytes == h->states_at + align_up(pages);
}

static bool same_regions(const struct pagemap_header *h, const struct infill_memory *memory)
{
	struct pagemap_header wanted;

	if (!memory)
		return true;
	lay_out(&wanted, memory, &h->image, h->record_capacity);
	return h->regions == wanted.regions &&
	       !memcmp(h->region, wanted.region, sizeof(h->region));
}

static int map_file(struct pagemap *pm, uint64_t bytes)
{
	void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pm->fd, 0);

	if (map == MAP_FAILED)
		return err_set(-errno, "state file: cannot map %llu bytes: %m",
			       (unsigned long long)bytes);
	pm->header = map;
	pm->events = (struct uffd_msg *)((char *)map + EVENTS_AT);
	pm->stats = (struct stats *)((char *)map + STATS_AT);
	pm->recording = (struct recording *)((char *)map + RECORDING_AT);
	pm->state = (_Atomic uint8_t *)((char *)map + pm->header->states_at);
	return 0;
}

static int set_up(struct pagemap *pm, const struct infill_memory *memory,
		  const struct infill_identity *image, uint64_t record_capacity)
{
	struct pagemap_header h;
	int err;

	if (!memory || !memory->count)
		return err_set(-EINVAL, "state file: is empty, and there are no regions to start it");
	lay_out(&h, memory, image, record_capacity);
	/* What a process that died in here left behind must be gone first. */
	if (ftruncate(pm->fd, 0) || ftruncate(pm->fd, (off_t)h.bytes) ||
	    pwrite(pm->fd, &h, sizeof(h), 0) != (ssize_t)sizeof(h))
		return err_set(-errno, "state file: cannot set it up: %m");
	err = map_file(pm, h.bytes);
	if (err)
		return err;
	atomic_store_explicit(&pm->recording->capacity, record_capacity, memory_order_relaxed);
	atomic_store_explicit(&pm->header->ready, 1, memory_order_release);
	pm->missing = h.pages;
	return 0;
}

/* Pages that were in the middle of an ioctl are asked for again. */
static void recover(struct pagemap *pm)
{
	for (uint64_t page = 0; page < pm->header->pages; page++) {
		enum page_state s = pagemap_get(pm, page);

		if (s == PAGE_FILLING)
			atomic_store_explicit(&pm->state[page], PAGE_MISSING, memory_order_relaxed);
		if (is_missing(s))
			pm->missing++;
	}
}

static int take_over(struct pagemap *pm, const struct pagemap_header *h, uint64_t file_bytes,
		     const struct infill_memory *memory, const struct infill_identity *image)
{
	int err;

	if (!header_sound(h, file_bytes))
		return err_set(-EINVAL, "state file: is damaged, or of another version of infill");
	if (!same_regions(h, memory))
		return err_set(-EINVAL, "state file: belongs to a VM with other regions");
	if (memcmp(&h->image, image, sizeof(*image)))
		return err_set(-ESTALE, "state file: belongs to another image, or the image changed");
	err = map_file(pm, h->bytes);
	if (!err)
		recover(pm);
	return err;
}

int pagemap_open(struct pagemap *pm, int fd, const struct infill_memory *memory,
		 const struct infill_identity *image, uint64_t record_capacity, bool *resumed)
{
	struct pagemap_header h = { 0 };
	struct stat st;
	int err;

	memset(pm, 0, sizeof(*pm));
	pm->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (pm->fd < 0 || fstat(pm->fd, &st)) {
		err = err_set(-errno, "state file: %m");
		goto fail;
	}
	if (pread(pm->fd, &h, sizeof(h), 0) < 0) {
		err = err_set(-errno, "state file: cannot read it: %m");
		goto fail;
	}
	*resumed = atomic_load_explicit(&h.ready, memory_order_acquire) != 0;
	if (*resumed)
		err = take_over(pm, &h, (uint64_t)st.st_size, memory, image);
	else
		err = set_up(pm, memory, image, record_capacity);
	if (err)
		goto fail;
	/* Present while the kernel copies events to it: best effort, the limit may be small. */
	(void)!mlock(pm->events, ALIGN);
	return 0;
fail:
	pagemap_close(pm);
	return err;
}

void pagemap_close(struct pagemap *pm)
{
	if (pm->header)
		munmap(pm->header, pm->header->bytes);
	if (pm->fd >= 0)
		close(pm->fd);
	pm->header = NULL;
	pm->fd = -1;
}

const struct pagemap_region *pagemap_find(const struct pagemap *pm, uint64_t hva, uint64_t *page)
{
	for (unsigned i = 0; i < pm->header->regions; i++) {
		const struct pagemap_region *r = &pm->header->region[i];

		if (hva - r->hva < r->length) {
			*page = r->first + (hva - r->hva) / r->page_size;
			return r;
		}
	}
	return NULL;
}

const struct pagemap_region *pagemap_find_gpa(const struct pagemap *pm, uint64_t gpa, uint64_t *page)
{
	for (unsigned i = 0; i < pm->header->regions; i++) {
		const struct pagemap_region *r = &pm->header->region[i];

		if (gpa - r->gpa < r->length) {
			*page = r->first + (gpa - r->gpa) / r->page_size;
			return r;
		}
	}
	return NULL;
}

const struct pagemap_region *pagemap_region(const struct pagemap *pm, uint64_t page)
{
	for (unsigned i = 0; i < pm->header->regions; i++) {
		const struct pagemap_region *r = &pm->header->region[i];

		if (page - r->first < r->pages)
			return r;
	}
	return NULL;
}

const struct pagemap_region *pagemap_at(const struct pagemap *pm, uint64_t offset, uint64_t *page)
{
	for (unsigned i = 0; i < pm->header->regions; i++) {
		const struct pagemap_region *r = &pm->header->region[i];

		if (offset - r->offset < r->length) {
			*page = r->first + (offset - r->offset) / r->page_size;
			return r;
		}
	}
	return NULL;
}

int pagemap_move(struct pagemap *pm, uint64_t page, uint64_t count, enum page_state to)
{
	uint64_t was = 0;

	for (uint64_t i = 0; i < count; i++) {
		enum page_state from = pagemap_get(pm, page + i);

		if (from >= PAGE_STATES || !(may_come_from[to] & FROM(from)))
			return err_set(-EPROTO, "page %llu: may not go from state %d to %d",
				       (unsigned long long)(page + i), from, to);
		was += is_missing(from);
	}
	for (uint64_t i = 0; i < count; i++)
		atomic_store_explicit(&pm->state[page + i], to, memory_order_release);
	/* Other threads look at it, see pagemap_missing(), or move pages of their own. */
	was -= is_missing(to) ? count : 0;
	if (was)
		__atomic_fetch_sub(&pm->missing, was, __ATOMIC_RELAXED);
	return 0;
}

uint64_t pagemap_claim(struct pagemap *pm, uint64_t page, uint64_t count)
{
	uint64_t n = 0;

	for (; n < count; n++) {
		uint8_t from = PAGE_MISSING;

		if (!atomic_compare_exchange_strong_explicit(&pm->state[page + n], &from, PAGE_FILLING,
							     memory_order_acquire,
							     memory_order_relaxed))
			break;
	}
	return n;
}

uint64_t pagemap_run(const struct pagemap *pm, uint64_t page, uint64_t count,
		     enum page_state state)
{
	uint64_t n = 0;

	while (n < count && pagemap_get(pm, page + n) == state)
		n++;
	return n;
}

/* Eight pages at a time: most of a large guest is in one state. */
uint64_t pagemap_next(const struct pagemap *pm, uint64_t page, uint64_t end, enum page_state state)
{
	const uint64_t ones = 0x0101010101010101u;

	while (page < end) {
		uint64_t word, differs;

		if (page % 8 || end - page < 8) {
			if (pagemap_get(pm, page) == state)
				return page;
			page++;
			continue;
		}
		memcpy(&word, (const void *)&pm->state[page], sizeof(word));
		differs = word ^ ones * state;
		/* The lowest high bit that is left marks the first byte that is equal. */
		differs = (differs - ones) & ~differs & ones << 7;
		if (differs)
			return page + (uint64_t)__builtin_ctzll(differs) / 8;
		page += 8;
	}
	return end;
}

bool pagemap_settled(const struct pagemap *pm)
{
	uint64_t end = pm->header->pages;

	return pagemap_next(pm, 0, end, PAGE_MISSING) == end &&
	       pagemap_next(pm, 0, end, PAGE_FILLING) == end;
}
