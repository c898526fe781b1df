/* SPDX-License-Identifier: MIT */
/*
 * memory.c: the guest's regions.  Regions come from VMMs that nobody need
 * trust, so all that later code takes for granted is verified here: sizes and
 * alignment, no overflow in any sum, no overlap.
 * Internal; the functions of infill.h are ABI.
 */
#include <errno.h>
#include <linux/mman.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "err.h"
#include "memfd.h"
#include "memory.h"
#include "options.h"

#define SMALL 4096ull
#define LARGE (2ull << 20)

int infill_memory_new(struct infill_memory **memory)
{
	*memory = calloc(1, sizeof(**memory));
	return *memory ? 0 : err_set(-ENOMEM, "memory: %m");
}

static int bad(const struct infill_region *r, const char *why)
{
	return err_set(-EINVAL, "memory region at hva 0x%llx, 0x%llx bytes: %s",
		       (unsigned long long)r->hva, (unsigned long long)r->length, why);
}

static int verify_kind(const struct infill_region *r)
{
	if (r->page_size != SMALL && r->page_size != LARGE)
		return bad(r, "page_size must be 4096 or 2097152");
	if (r->backing > INFILL_BACKING_GUEST_MEMFD)
		return bad(r, "backing is not known");
	if (r->backing == INFILL_BACKING_HUGETLB && r->page_size != LARGE)
		return bad(r, "hugetlb memory needs a page_size of 2097152");
	if (r->reserved_slot)
		return bad(r, "reserved_slot must be 0");
	return 0;
}

static int verify_place(const struct infill_region *r)
{
	const uint64_t mask = r->page_size - 1;
	uint64_t end;

	if (!r->length)
		return bad(r, "is empty");
	if (r->length & mask)
		return bad(r, "length is not a multiple of page_size");
	if (r->hva & mask)
		return bad(r, "hva is not aligned to page_size");
	if (r->gpa & mask)
		return bad(r, "gpa is not aligned to page_size");
	if (r->offset % SMALL)
		return bad(r, "offset is not a multiple of 4096");
	if (__builtin_add_overflow(r->hva, r->length, &end))
		return bad(r, "hva wraps around");
	if (__builtin_add_overflow(r->gpa, r->length, &end))
		return bad(r, "gpa wraps around");
	if (__builtin_add_overflow(r->offset, r->length, &end))
		return bad(r, "offset wraps around");
	return 0;
}

static bool overlap(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
	return a < b + b_length && b < a + a_length;
}

static int overlap_error(const struct infill_region *a, const struct infill_region *b,
			 const char *what)
{
	return err_set(-EEXIST, "memory regions at hva 0x%llx and 0x%llx: overlap in %s",
		       (unsigned long long)a->hva, (unsigned long long)b->hva, what);
}

/*
 * Firecracker sends no gpa, so all are 0: that is no overlap.  One gpa that is
 * not 0 means that they are known, and then regions that came earlier count.
 */
static bool gpa_known(const struct infill_memory *m, const struct infill_region *r)
{
	bool known = r->gpa != 0;

	for (unsigned i = 0; i < m->count; i++)
		known |= m->region[i].gpa != 0;
	return known;
}

static int verify_gpa(const struct infill_memory *m, const struct infill_region *r)
{
	for (unsigned i = 0; i < m->count; i++) {
		const struct infill_region *a = &m->region[i];

		if (overlap(a->gpa, a->length, r->gpa, r->length))
			return overlap_error(a, r, "gpa");
		for (unsigned k = 0; k < i; k++)
			if (overlap(a->gpa, a->length, m->region[k].gpa, m->region[k].length))
				return overlap_error(a, &m->region[k], "gpa");
	}
	return 0;
}

static int verify_alone(const struct infill_memory *m, const struct infill_region *r)
{
	for (unsigned i = 0; i < m->count; i++)
		if (overlap(m->region[i].hva, m->region[i].length, r->hva, r->length))
			return overlap_error(&m->region[i], r, "hva");
	return gpa_known(m, r) ? verify_gpa(m, r) : 0;
}

static void insert(struct infill_memory *m, const struct infill_region *r, bool mapped)
{
	unsigned at = m->count++;

	for (; at && m->region[at - 1].hva > r->hva; at--) {
		m->region[at] = m->region[at - 1];
		m->mapped[at] = m->mapped[at - 1];
	}
	m->region[at] = *r;
	m->mapped[at] = mapped;
}

static int add(struct infill_memory *m, const struct infill_region *r, bool mapped)
{
	int code = verify_kind(r);

	if (!code)
		code = verify_place(r);
	if (!code)
		code = verify_alone(m, r);
	if (!code && m->count == INFILL_MEMORY_REGIONS_MAX)
		code = err_set(-ENOSPC, "memory: has more than %d regions",
			       INFILL_MEMORY_REGIONS_MAX);
	if (!code)
		insert(m, r, mapped);
	return code;
}

static int take(struct infill_region *to, const struct infill_region *region)
{
	int code = OPTIONS_COPY(to, region, infill_region);

	if (!code && !to->page_size)
		to->page_size = SMALL;
	return code;
}

int infill_memory_add(struct infill_memory *memory, const struct infill_region *region)
{
	struct infill_region r;
	int code = take(&r, region);

	return code ? code : add(memory, &r, false);
}

static void *map_shmem(size_t length)
{
	int fd = memfd_make("infill-guest", length);
	void *at;

	if (fd < 0) {
		errno = -fd;
		return MAP_FAILED;
	}
	at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	close(fd);
	return at;
}

static void *map_length(const struct infill_region *r, size_t length)
{
	const int private = MAP_PRIVATE | MAP_ANONYMOUS;

	if (r->backing == INFILL_BACKING_SHMEM)
		return map_shmem(length);
	if (r->backing == INFILL_BACKING_HUGETLB)
		return mmap(NULL, length, PROT_READ | PROT_WRITE,
			    private | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	return mmap(NULL, length, PROT_READ | PROT_WRITE, private | MAP_NORESERVE, -1, 0);
}

/*
 * mmap(2) aligns hugetlb to its pages, all else to 4096: map more and cut both
 * ends off.  The length is a multiple of the page size, so no sum wraps.
 */
static void *map_aligned(const struct infill_region *r)
{
	uint64_t more = r->backing == INFILL_BACKING_HUGETLB ? 0 : r->page_size - SMALL;
	char *at, *begin;

	at = map_length(r, r->length + more);
	if (at == MAP_FAILED || !more)
		return at;
	begin = (char *)(((uintptr_t)at + more) & ~(uintptr_t)(r->page_size - 1));
	if (begin > at)
		munmap(at, (size_t)(begin - at));
	if (begin < at + more)
		munmap(begin + r->length, (size_t)(at + more - begin));
	return begin;
}

static int map_error(const struct infill_region *r, int code)
{
	if (r->backing == INFILL_BACKING_HUGETLB)
		return err_set(code, "memory: cannot map %llu huge pages of 2 MiB: raise "
				     "vm.nr_hugepages: %m", (unsigned long long)(r->length / LARGE));
	return err_set(code, "memory: cannot map %llu bytes: %m", (unsigned long long)r->length);
}

/* What can be said about a region before its place is known. */
static int take_unplaced(struct infill_region *r, const struct infill_region *region)
{
	int code = take(r, region);

	if (code)
		return code;
	r->hva = 0;
	if (r->backing == INFILL_BACKING_GUEST_MEMFD)
		return bad(r, "a guest_memfd is made and mapped by who made the VM");
	code = verify_kind(r);
	return code ? code : verify_place(r);
}

int infill_memory_map(struct infill_memory *memory, struct infill_region *region)
{
	struct infill_region r;
	void *at;
	int code = take_unplaced(&r, region);

	if (code)
		return code;
	at = map_aligned(&r);
	if (at == MAP_FAILED)
		return map_error(&r, -errno);
	r.hva = (uintptr_t)at;
	code = add(memory, &r, true);
	if (code)
		munmap(at, r.length);
	else
		region->hva = r.hva;
	return code;
}

uint64_t infill_memory_bytes(const struct infill_memory *memory)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < memory->count; i++)
		bytes += memory->region[i].length;
	return bytes;
}

void infill_memory_free(struct infill_memory *memory)
{
	if (!memory)
		return;
	for (unsigned i = 0; i < memory->count; i++)
		if (memory->mapped[i])
			munmap((void *)(uintptr_t)memory->region[i].hva, memory->region[i].length);
	free(memory);
}
