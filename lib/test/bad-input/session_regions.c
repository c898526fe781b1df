// SPDX-License-Identifier: MIT
/*
 * session_regions.c: memory that does not fit the image, or itself.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rig.h"

#define HVA 0x100000000000ull
#define MIB (1ull << 20)

/* ---- one region ---------------------------------------------------------------- */

static const struct {
	const char *name;
	struct infill_region region;
	int error;
	const char *says;
} single[] = {
	{ "length 0", { .hva = HVA, .length = 0 }, -EINVAL, "region" },
	{ "length not whole pages", { .hva = HVA, .length = MIB + 1 }, -EINVAL, "region" },
	{ "hva not aligned", { .hva = HVA + 512, .length = MIB }, -EINVAL, "region" },
	{ "gpa not aligned", { .hva = HVA, .gpa = 7, .length = MIB }, -EINVAL, "region" },
	{ "offset not aligned", { .hva = HVA, .offset = 100, .length = MIB }, -EINVAL, "region" },
	{ "hva wraps around", { .hva = UINT64_MAX - MIB + 1, .length = 2 * MIB }, -EINVAL,
	  "region" },
	{ "gpa wraps around", { .hva = HVA, .gpa = UINT64_MAX - 4095, .length = MIB }, -EINVAL,
	  "region" },
	{ "offset wraps around", { .hva = HVA, .offset = UINT64_MAX - 4095, .length = MIB }, -EINVAL,
	  "region" },
	{ "page size 3", { .hva = HVA, .length = MIB, .page_size = 3 }, -EINVAL, "page_size" },
	{ "page size 8192", { .hva = HVA, .length = MIB, .page_size = 8192 }, -EINVAL,
	  "page_size" },
	{ "page size 1 GiB", { .hva = 0x40000000, .length = 1ull << 30, .page_size = 1ull << 30 },
	  -EINVAL, "page_size" },
	{ "backing unknown", { .hva = HVA, .length = MIB, .backing = 9 }, -EINVAL, "backing" },
	{ "huge pages, length not whole", { .hva = HVA, .length = 3 * MIB, .page_size = 2 * MIB,
					    .backing = INFILL_BACKING_HUGETLB },
	  -EINVAL, "region" },
	{ "huge pages, hva not aligned", { .hva = HVA + 4096, .length = 2 * MIB,
					   .page_size = 2 * MIB, .backing = INFILL_BACKING_HUGETLB },
	  -EINVAL, "region" },
};

#define SINGLE (sizeof(single) / sizeof(single[0]))

static void region_is_refused(void **state)
{
	size_t i = (size_t)(uintptr_t)*state;
	struct infill_region region = single[i].region;
	struct infill_memory *memory;

	region.size = sizeof(region);
	assert_int_equal(infill_memory_new(&memory), 0);
	assert_int_equal(infill_memory_add(memory, &region), single[i].error);
	rig_assert_says(infill_error(), single[i].says);
	assert_int_equal(infill_memory_bytes(memory), 0);
	infill_memory_free(memory);
}

/* ---- two regions --------------------------------------------------------------- */

static const struct {
	const char *name;
	struct infill_region second; /* the first is [HVA, HVA + 4 MiB) at gpa 16 MiB */
	int error;
	const char *says;
} pairs[] = {
	{ "hva the same", { .hva = HVA, .gpa = 64 * MIB, .length = 4 * MIB }, -EEXIST, "hva" },
	{ "hva inside", { .hva = HVA + MIB, .gpa = 64 * MIB, .length = MIB }, -EEXIST, "hva" },
	{ "hva around", { .hva = HVA - MIB, .gpa = 64 * MIB, .length = 8 * MIB }, -EEXIST, "hva" },
	{ "hva by one page", { .hva = HVA + 4 * MIB - 4096, .gpa = 64 * MIB, .length = MIB },
	  -EEXIST, "hva" },
	{ "gpa the same", { .hva = HVA + 64 * MIB, .gpa = 16 * MIB, .length = 4 * MIB }, -EEXIST,
	  "gpa" },
	{ "gpa by one page", { .hva = HVA + 64 * MIB, .gpa = 12 * MIB + 4096, .length = 4 * MIB },
	  -EEXIST, "gpa" },
	{ "neighbours are no overlap",
	  { .hva = HVA + 4 * MIB, .gpa = 20 * MIB, .length = 4 * MIB }, 0, "" },
	{ "neighbours before are no overlap",
	  { .hva = HVA - 4 * MIB, .gpa = 12 * MIB, .length = 4 * MIB }, 0, "" },
};

#define PAIRS (sizeof(pairs) / sizeof(pairs[0]))

static void overlap_is_refused(void **state)
{
	size_t i = (size_t)(uintptr_t)*state;
	struct infill_region first = { .size = sizeof(first), .hva = HVA, .gpa = 16 * MIB,
				       .length = 4 * MIB },
			     second = pairs[i].second;
	struct infill_memory *memory;

	second.size = sizeof(second);
	assert_int_equal(infill_memory_new(&memory), 0);
	assert_int_equal(infill_memory_add(memory, &first), 0);
	assert_int_equal(infill_memory_add(memory, &second), pairs[i].error);
	if (pairs[i].error)
		rig_assert_says(infill_error(), pairs[i].says);
	assert_int_equal(infill_memory_bytes(memory),
			 4 * MIB + (pairs[i].error ? 0 : second.length));
	infill_memory_free(memory);
}

static void too_many_regions_are_refused(void **state)
{
	struct infill_memory *memory;
	struct infill_region region = { .size = sizeof(region), .length = MIB };

	(void)state;
	assert_int_equal(infill_memory_new(&memory), 0);
	for (unsigned i = 0; i < INFILL_MEMORY_REGIONS_MAX; i++) {
		region.hva = HVA + i * MIB;
		region.gpa = i * MIB;
		assert_int_equal(infill_memory_add(memory, &region), 0);
	}
	region.hva -= 100 * MIB;
	region.gpa += MIB;
	assert_int_equal(infill_memory_add(memory, &region), -ENOSPC);
	rig_assert_says(infill_error(), "64");
	infill_memory_free(memory);
}

/* ---- regions against the image and the process ----------------------------------- */

struct misfit {
	const char *name;
	uint64_t length, offset; /* of the region; the image has 4 MiB */
	int error;
	const char *says;
};

static const struct misfit misfits[] = {
	{ "longer than the image", 8 * MIB, 0, -ERANGE, "not the memory file of this VM" },
	{ "by one page", 4 * MIB, 4096, -ERANGE, "not the memory file of this VM" },
	{ "begins behind the end", MIB, 64 * MIB, -ERANGE, "not the memory file of this VM" },
	{ "begins far behind the end", MIB, 1ull << 62, -ERANGE, "not the memory file of this VM" },
	{ "ends at the end", MIB, 3 * MIB, 0, "" },
};

#define MISFITS (sizeof(misfits) / sizeof(misfits[0]))

static void region_must_lie_in_the_image(void **state)
{
	const struct misfit *misfit = *state;
	struct rig rig = { .image = { .bytes = 4 * MIB, .seed = 161 } };
	struct infill_region region = { .size = sizeof(region), .length = misfit->length,
					.offset = misfit->offset };

	rig_need_userfaultfd();
	rig_prepare(&rig);
	infill_memory_free(rig.memory);
	assert_int_equal(infill_memory_new(&rig.memory), 0);
	region.hva = (uintptr_t)mmap(NULL, misfit->length, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(infill_memory_add(rig.memory, &region), 0);
	assert_int_equal(rig_start_prepared(&rig), misfit->error);
	if (misfit->error) {
		rig_assert_says(infill_error(), misfit->says);
		rig_assert_says(infill_error(), rig.image.path);
		assert_null(rig.session);
	}
	rig_stop(&rig);
	munmap((void *)(uintptr_t)region.hva, misfit->length);
}

static void memory_without_regions_is_refused(void **state)
{
	struct rig rig = { .image = { .bytes = MIB, .seed = 162 } };

	(void)state;
	rig_prepare(&rig);
	infill_memory_free(rig.memory);
	assert_int_equal(infill_memory_new(&rig.memory), 0);
	assert_int_equal(rig_start_prepared(&rig), -EINVAL);
	rig_assert_says(infill_error(), "no region");
	rig_stop(&rig);
}

/* Addresses where this process has no memory cannot be registered. */
static void region_that_is_not_mapped_is_refused(void **state)
{
	struct rig rig = { .image = { .bytes = MIB, .seed = 163 } };
	struct infill_region region = { .size = sizeof(region), .length = MIB };
	void *at;

	(void)state;
	rig_need_userfaultfd();
	rig_prepare(&rig);
	at = mmap(NULL, MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(at != MAP_FAILED);
	assert_int_equal(munmap(at, MIB), 0);
	region.hva = (uintptr_t)at;
	infill_memory_free(rig.memory);
	assert_int_equal(infill_memory_new(&rig.memory), 0);
	assert_int_equal(infill_memory_add(rig.memory, &region), 0);
	assert_int_equal(rig_start_prepared(&rig), -EINVAL);
	rig_assert_says(infill_error(), "cannot register");
	assert_null(rig.session);
	rig_stop(&rig);
}

/* Clones share 4 KiB pages only. */
static void clone_of_huge_pages_is_refused(void **state)
{
	struct rig rig = { .image = { .bytes = 4 * MIB, .seed = 164 }, .minor = true };
	struct infill_region region = { .size = sizeof(region), .length = 4 * MIB,
					.hva = HVA, .page_size = 2 * MIB,
					.backing = INFILL_BACKING_HUGETLB };

	(void)state;
	rig_need_userfaultfd();
	rig_prepare(&rig);
	infill_memory_free(rig.memory);
	assert_int_equal(infill_memory_new(&rig.memory), 0);
	assert_int_equal(infill_memory_add(rig.memory, &region), 0);
	assert_int_equal(rig_start_prepared(&rig), -EINVAL);
	rig_assert_says(infill_error(), "4 KiB");
	rig_stop(&rig);
}

/* A fault outside of what the VMM named must end the session, not hang it. */
static void fault_outside_of_all_regions_is_an_error(void **state)
{
	struct rig rig = { .image = { .bytes = 4 * MIB, .seed = 165 }, .adopt = true, .regions = 2,
			   .session_options = { .fill = INFILL_FILL_NONE } };
	struct infill_region region = { .size = sizeof(region) };
	struct fakevmm_load load = { .passes = 1, .count = 1 };

	(void)state;
	rig_need_userfaultfd();
	rig_prepare(&rig);
	infill_memory_free(rig.memory);
	assert_int_equal(infill_memory_new(&rig.memory), 0);
	region.hva = (uintptr_t)rig.vmm->region[0].hva;
	region.length = rig.vmm->region[0].length;
	assert_int_equal(infill_memory_add(rig.memory, &region), 0);
	assert_int_equal(rig_start_prepared(&rig), 0);
	load.first = rig.vmm->pages - 1;
	fakevmm_start(rig.vmm, &load);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_END, 10000), -EFAULT);
	rig_assert_says(infill_error(), "none of the regions");
	assert_non_null(rig_events_wait(rig.events, INFILL_EVENT_ERROR, 0, 1000));
	fakevmm_abandon(rig.vmm);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	rig_stop(&rig);
}

/* Take all free huge pages but KEEP; the number taken. */
static size_t empty_pool(void **page, size_t most, size_t keep)
{
	size_t count = 0;

	while (count < most) {
		page[count] = mmap(NULL, FAKE_HUGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0);
		assert_true(page[count] != MAP_FAILED);
		if (madvise(page[count], FAKE_HUGE, MADV_POPULATE_WRITE)) {
			munmap(page[count], FAKE_HUGE);
			break;
		}
		count++;
	}
	while (count && keep--)
		munmap(page[--count], FAKE_HUGE);
	return count;
}

struct huge {
	bool adopt; /* the library does not know whose memory it is */
	uint32_t fill;
};

/*
 * The kernel says EEXIST where no huge page is free.  Taken for a page that is
 * there, it would be zeros to the guest, or SIGBUS.
 */
static void huge_pages_that_run_out_are_an_error(void **state)
{
	const struct huge *row = *state;
	struct rig rig = { .image = { .bytes = 16 * MIB, .seed = 166, .grain = FAKE_HUGE },
			   .backing = INFILL_BACKING_HUGETLB, .page_size = FAKE_HUGE,
			   .adopt = row->adopt, .session_options = { .fill = row->fill } };
	struct fakevmm_load load = { .passes = 1 };
	static void *page[4096];
	size_t taken;

	rig_need_userfaultfd();
	rig_need_hugepages(8);
	rig_prepare(&rig);
	taken = empty_pool(page, 4096, 3);
	assert_int_equal(rig_start_prepared(&rig), 0);
	fakevmm_start(rig.vmm, &load);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_END, 20000), -ENOMEM);
	rig_assert_says(infill_error(), "no huge page is free");
	assert_int_equal(rig_events_count(rig.events, INFILL_EVENT_RESIDENT), 0);
	assert_true(rig_counters(&rig).missing >= 5);
	fakevmm_abandon(rig.vmm);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	rig_stop(&rig);
	while (taken)
		munmap(page[--taken], FAKE_HUGE);
}

struct toggler {
	void *page;
	_Atomic bool stop;
};

/* Give a huge page back and take it again, as long as nobody else takes it. */
static void *toggle(void *arg)
{
	struct toggler *t = arg;

	while (!t->stop && !madvise(t->page, FAKE_HUGE, MADV_POPULATE_WRITE))
		madvise(t->page, FAKE_HUGE, MADV_DONTNEED);
	return NULL;
}

/* One that is free only just after the kernel had none to install is no proof that it has. */
static void huge_pages_that_come_and_go_are_not_believed(void **state)
{
	static void *page[4096];

	(void)state;
	rig_need_userfaultfd();
	rig_need_hugepages(8);
	for (unsigned round = 0; round < 40; round++) {
		struct rig rig = { .image = { .bytes = 16 * MIB, .seed = 167, .grain = FAKE_HUGE },
				   .backing = INFILL_BACKING_HUGETLB, .page_size = FAKE_HUGE,
				   .adopt = true };
		size_t taken = empty_pool(page, 4096, 0);
		struct toggler toggler = { .page = page[taken - 1] };
		pthread_t thread;

		rig_prepare(&rig);
		assert_int_equal(pthread_create(&thread, NULL, toggle, &toggler), 0);
		assert_int_equal(rig_start_prepared(&rig), 0);
		assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_END, 20000), -ENOMEM);
		toggler.stop = true;
		pthread_join(thread, NULL);
		/* The one that comes and goes may have been had. */
		assert_true(rig_counters(&rig).missing >= 7);
		assert_int_equal(rig_counters(&rig).duplicates, 0);
		rig_stop(&rig);
		while (taken)
			munmap(page[--taken], FAKE_HUGE);
	}
}

#define HUGE(name, row) \
	{ "huge pages run out: " name, huge_pages_that_run_out_are_an_error, NULL, NULL, \
	  (void *)(uintptr_t)(row) }

int main(void)
{
	static struct CMUnitTest tests[SINGLE + PAIRS + MISFITS + 12];
	static const struct huge huge[] = {
		{ false, INFILL_FILL_ALL }, { false, INFILL_FILL_NONE },
		{ true, INFILL_FILL_ALL }, { true, INFILL_FILL_NONE },
	};
	const struct CMUnitTest more[] = {
		cmocka_unit_test(too_many_regions_are_refused),
		cmocka_unit_test(memory_without_regions_is_refused),
		cmocka_unit_test(region_that_is_not_mapped_is_refused),
		cmocka_unit_test(clone_of_huge_pages_is_refused),
		cmocka_unit_test(fault_outside_of_all_regions_is_an_error),
		HUGE("fill all, own memory", &huge[0]),
		HUGE("fill none, own memory", &huge[1]),
		HUGE("fill all, adopted", &huge[2]),
		HUGE("fill none, adopted", &huge[3]),
		cmocka_unit_test(huge_pages_that_come_and_go_are_not_believed),
	};
	size_t count = 0;

	for (size_t i = 0; i < SINGLE; i++)
		tests[count++] = (struct CMUnitTest){ single[i].name, region_is_refused, NULL, NULL,
						      (void *)(uintptr_t)i };
	for (size_t i = 0; i < PAIRS; i++)
		tests[count++] = (struct CMUnitTest){ pairs[i].name, overlap_is_refused, NULL, NULL,
						      (void *)(uintptr_t)i };
	for (size_t i = 0; i < MISFITS; i++)
		tests[count++] = (struct CMUnitTest){ misfits[i].name, region_must_lie_in_the_image,
						      NULL, NULL, (void *)(uintptr_t)&misfits[i] };
	memcpy(&tests[count], more, sizeof(more));
	count += sizeof(more) / sizeof(more[0]);
	return _cmocka_run_group_tests("bad-input/session_regions", tests, count, NULL, NULL);
}
