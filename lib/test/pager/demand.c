// SPDX-License-Identifier: MIT
/*
 * demand.c: every page that a VMM touches has the image's content, whatever
 * the memory is made of, and is installed once.  A new kind of memory or of
 * access is a line in `rows`.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "rig.h"

struct row {
	const char *name;
	enum infill_backing backing;
	uint64_t page_size;
	unsigned regions;
	enum fakevmm_pattern pattern;
	unsigned threads;
	unsigned write_every;
	bool adopt, cold;
};

static const struct row rows[] = {
	{ .name = "anon, sequential" },
	{ .name = "anon, strided", .pattern = FAKEVMM_STRIDED },
	{ .name = "anon, random", .pattern = FAKEVMM_RANDOM },
	{ .name = "anon, random, 8 threads", .pattern = FAKEVMM_RANDOM, .threads = 8 },
	{ .name = "anon, random, 4 threads, writes", .pattern = FAKEVMM_RANDOM, .threads = 4,
	  .write_every = 3 },
	{ .name = "anon, sequential, 4 threads, 4 regions", .threads = 4, .regions = 4 },
	{ .name = "anon, random, 7 regions, adopted", .pattern = FAKEVMM_RANDOM, .regions = 7,
	  .adopt = true },
	{ .name = "anon, random, 4 threads, cold image", .pattern = FAKEVMM_RANDOM, .threads = 4,
	  .cold = true },
	{ .name = "shmem, sequential", .backing = INFILL_BACKING_SHMEM },
	{ .name = "shmem, random, 4 threads, writes", .backing = INFILL_BACKING_SHMEM,
	  .pattern = FAKEVMM_RANDOM, .threads = 4, .write_every = 3 },
	{ .name = "shmem, strided, 2 regions, adopted", .backing = INFILL_BACKING_SHMEM,
	  .pattern = FAKEVMM_STRIDED, .regions = 2, .adopt = true },
	{ .name = "hugetlb, sequential", .backing = INFILL_BACKING_HUGETLB, .page_size = FAKE_HUGE },
	{ .name = "hugetlb, random, 4 threads, writes", .backing = INFILL_BACKING_HUGETLB,
	  .page_size = FAKE_HUGE, .pattern = FAKEVMM_RANDOM, .threads = 4, .write_every = 3 },
	{ .name = "hugetlb, random, 2 regions, adopted",
	  .backing = INFILL_BACKING_HUGETLB, .page_size = FAKE_HUGE, .pattern = FAKEVMM_RANDOM,
	  .regions = 2, .adopt = true },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

static struct rig rig_of_row(const struct row *row)
{
	bool huge = row->page_size == FAKE_HUGE;
	struct rig rig = {
		.image = { .bytes = 16u << 20, .seed = 11, .hole_every = 7, .zero_every = 5,
			   .grain = huge ? FAKE_HUGE : FAKE_PAGE },
		.backing = row->backing,
		.page_size = row->page_size,
		.regions = row->regions,
		.adopt = row->adopt,
		.session_options = { .fill = INFILL_FILL_NONE },
	};

	if (huge)
		rig_need_hugepages(rig.image.bytes / FAKE_HUGE);
	return rig;
}

/* All that was touched was installed once, for demand, and zero pages without a copy. */
static void assert_counted(const struct rig *rig)
{
	struct infill_counters c = rig_counters(rig);

	rig_assert_consistent(rig);
	assert_int_equal(c.installs, c.pages);
	assert_int_equal(c.demand_pages, c.pages);
	assert_true(c.faults >= 1);
	assert_int_equal(c.poisoned, 0);
	assert_int_equal(c.removed, 0);
	if (rig->vmm->page_size == FAKE_PAGE)
		assert_int_equal(c.zero_pages,
				 c.pages - fakeimage_data_pages(&rig->image, FAKE_PAGE));
}

static void touched_pages_are_right(void **state)
{
	const struct row *row = *state;
	struct rig rig = rig_of_row(row);
	struct fakevmm_load load = {
		.pattern = row->pattern,
		.threads = row->threads,
		.write_every = row->write_every,
		.passes = 1,
		.seed = 3,
	};

	rig_prepare(&rig);
	if (row->cold)
		fakeimage_cool(&rig.image);
	assert_int_equal(rig_start_prepared(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_run(rig.vmm, &load));
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_counted(&rig);
	rig_stop(&rig);
}

/*
 * A third of memory is there, one page here and one there: going through all of it
 * takes a fault for a window of pages, not one for what lies between two of those.
 */
static void what_is_there_does_not_end_a_stream(void **state)
{
	struct rig rig = { .session_options = { .fill = INFILL_FILL_NONE } };
	uint64_t before;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	for (uint64_t page = rig.vmm->pages; page-- > 0;)
		if (page % 3 == 0)
			rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, page, 1));
	before = rig_counters(&rig).faults;
	assert_int_equal(before, (rig.vmm->pages + 2) / 3);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_true(rig_counters(&rig).faults - before < 50);
	rig_stop(&rig);
}

static void resident_pages_fault_no_more(void **state)
{
	struct rig rig = { .session_options = { .fill = INFILL_FILL_NONE } };
	uint64_t faults;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 5000), 0);
	assert_non_null(rig_events_wait(rig.events, INFILL_EVENT_RESIDENT, 0, 5000));
	faults = rig_counters(&rig).faults;
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(rig_counters(&rig).faults, faults);
	rig_stop(&rig);
}

static void many_threads_on_one_page_get_it(void **state)
{
	struct rig rig = { .session_options = { .fill = INFILL_FILL_NONE } };
	struct fakevmm_load load = { .threads = 32, .passes = 1, .count = 1 };

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	for (load.first = 5; load.first < 1500; load.first += 131)
		rig_assert_load(rig.vmm, fakevmm_run(rig.vmm, &load));
	rig_assert_consistent(&rig);
	rig_stop(&rig);
}

/* The VMM may have installed pages before the handshake: its content stays. */
static void pages_that_the_vmm_installed_stay(void **state)
{
	const struct row *row = *state;
	struct rig rig = rig_of_row(row);
	struct infill_counters c;

	rig.adopt = true;
	rig.image.zero_every = rig.image.hole_every = 0;
	rig.populate = row->page_size == FAKE_HUGE ? 2 : 300;
	rig.session_options.fill = INFILL_FILL_ALL;
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	c = rig_counters(&rig);
	assert_int_equal(c.duplicates, rig.populate);
	assert_int_equal(c.installs, c.pages - rig.populate);
	rig_assert_consistent(&rig);
	rig_stop(&rig);
}

static void image_may_be_larger_than_memory(void **state)
{
	struct fakeimage whole = { .bytes = 8u << 20, .seed = 12 };
	struct rig rig = { .image_made = true };

	(void)state;
	fakeimage_make(&whole);
	rig.image = whole;
	rig.image.bytes = 2u << 20;
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(rig_counters(&rig).bytes, 2u << 20);
	rig_stop(&rig);
	fakeimage_remove(&whole);
}

/* Zero pages cost no memory: the kernel maps its own zero page, which counts nowhere. */
static void zero_pages_take_no_memory(void **state)
{
	struct rig rig = {
		.image = { .bytes = 64u << 20, .seed = 13, .hole_every = 1 },
		.session_options = { .fill = INFILL_FILL_NONE },
	};
	unsigned long rss[2], size;

	(void)state;
#ifdef __SANITIZE_THREAD__
	rig_skip("ThreadSanitizer takes memory of its own for each page");
#endif
	assert_int_equal(rig_start(&rig), 0);
	for (int i = 0; i < 2; i++) {
		FILE *file = fopen("/proc/self/statm", "re");

		assert_non_null(file);
		assert_int_equal(fscanf(file, "%lu %lu", &size, &rss[i]), 2);
		fclose(file);
		if (!i)
			rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	}
	assert_true(rss[1] < rss[0] + (16u << 20) / FAKE_PAGE);
	assert_int_equal(rig_counters(&rig).zero_pages, rig.vmm->pages);
	rig_stop(&rig);
}

int main(void)
{
	static struct CMUnitTest tests[ROWS + 9];
	static const struct row plain = { .name = "anon" },
				shmem = { .backing = INFILL_BACKING_SHMEM },
				huge = { .backing = INFILL_BACKING_HUGETLB,
					 .page_size = FAKE_HUGE };
	const struct CMUnitTest more[] = {
		cmocka_unit_test(what_is_there_does_not_end_a_stream),
		cmocka_unit_test(resident_pages_fault_no_more),
		cmocka_unit_test(many_threads_on_one_page_get_it),
		{ "anon: pages that the VMM installed stay", pages_that_the_vmm_installed_stay,
		  NULL, NULL, (void *)(uintptr_t)&plain },
		{ "shmem: pages that the VMM installed stay", pages_that_the_vmm_installed_stay,
		  NULL, NULL, (void *)(uintptr_t)&shmem },
		{ "hugetlb: pages that the VMM installed stay", pages_that_the_vmm_installed_stay,
		  NULL, NULL, (void *)(uintptr_t)&huge },
		cmocka_unit_test(image_may_be_larger_than_memory),
		cmocka_unit_test(zero_pages_take_no_memory),
	};
	size_t count = ROWS + sizeof(more) / sizeof(more[0]);

	for (size_t i = 0; i < ROWS; i++)
		tests[i] = (struct CMUnitTest){ rows[i].name, touched_pages_are_right, NULL, NULL,
						(void *)(uintptr_t)&rows[i] };
	memcpy(&tests[ROWS], more, sizeof(more));
	return _cmocka_run_group_tests("pager/demand", tests, count, NULL, NULL);
}
