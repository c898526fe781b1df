// SPDX-License-Identifier: MIT
/*
 * fill.c: what is filled without a fault: nothing, the trace, or all of it,
 * at a bounded rate; and what is left in order when a session is stopped in
 * the middle.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "rig.h"

static void none_fills_only_what_is_touched(void **state)
{
	struct rig rig = { .session_options = { .fill = INFILL_FILL_NONE } };
	struct infill_counters c;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	for (uint64_t page = 100; page < 2000; page += 400)
		rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, page, 1));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 300), -ETIMEDOUT);
	c = rig_counters(&rig);
	assert_int_equal(c.rest_pages, 0);
	assert_int_equal(c.installs, c.demand_pages);
	assert_true(c.installs >= 5 && c.installs < 5 * 64);
	assert_int_equal(fakevmm_present(rig.vmm), c.installs);
	rig_stop(&rig);
}

static void trace_without_a_trace_is_there_at_once(void **state)
{
	struct rig rig = { .session_options = { .fill = INFILL_FILL_TRACE } };

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_TRACE, 5000), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 200), -ETIMEDOUT);
	assert_int_equal(rig_counters(&rig).installs, 0);
	rig_stop(&rig);
}

struct row {
	const char *name;
	enum infill_backing backing;
	uint64_t page_size;
	unsigned regions;
	bool adopt, cold;
};

static const struct row rows[] = {
	{ .name = "all, anon" },
	{ .name = "all, anon, 5 regions, adopted", .regions = 5, .adopt = true },
	{ .name = "all, anon, cold image", .cold = true },
	{ .name = "all, shmem", .backing = INFILL_BACKING_SHMEM },
	{ .name = "all, hugetlb", .backing = INFILL_BACKING_HUGETLB, .page_size = FAKE_HUGE },
	{ .name = "all, hugetlb, cold image", .backing = INFILL_BACKING_HUGETLB,
	  .page_size = FAKE_HUGE, .cold = true },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

static struct rig rig_of_row(const struct row *row)
{
	struct rig rig = {
		.image = { .bytes = 32u << 20, .seed = 21 },
		.backing = row->backing,
		.page_size = row->page_size,
		.regions = row->regions,
		.adopt = row->adopt,
	};

	if (row->page_size == FAKE_HUGE)
		rig_need_hugepages(rig.image.bytes / FAKE_HUGE);
	return rig;
}

/* Everything comes without a fault, and then no touch faults. */
static void all_fills_everything(void **state)
{
	const struct row *row = *state;
	struct rig rig = rig_of_row(row);
	struct infill_counters c;

	rig_prepare(&rig);
	if (row->cold)
		fakeimage_cool(&rig.image);
	assert_int_equal(rig_start_prepared(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 30000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	c = rig_counters(&rig);
	assert_int_equal(c.faults, 0);
	assert_int_equal(c.rest_pages, c.pages);
	assert_true(c.resident_ns >= c.start_ns);
	rig_assert_consistent(&rig);
	rig_stop(&rig);
}

/* Holes and zeros that nobody touched need not be installed, but must read as zero. */
static void all_leaves_holes_readable(void **state)
{
	struct rig rig = { .image = { .bytes = 32u << 20, .seed = 22, .hole_every = 3,
				      .zero_every = 3 } };

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 30000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_true(rig_counters(&rig).read_bytes <= rig.image.bytes / 3 * 2 + (4u << 20));
	rig_assert_consistent(&rig);
	rig_stop(&rig);
}

static void demand_is_right_while_all_fills(void **state)
{
	const struct row *row = *state;
	struct rig rig = rig_of_row(row);
	struct fakevmm_load load = {
		.pattern = FAKEVMM_RANDOM,
		.threads = 4,
		.passes = 2,
		.write_every = 4,
		.seed = 4,
	};

	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_run(rig.vmm, &load));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 30000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(rig_counters(&rig).installs, rig.vmm->pages);
	rig_assert_consistent(&rig);
	rig_stop(&rig);
}

/* A touched page does not wait behind the rate: the bound is for what nobody asked for. */
static void rate_bounds_the_rest_only(void **state)
{
	const uint64_t rate = 4u << 20;
	struct rig rig = {
		.image = { .bytes = 64u << 20, .seed = 23 },
		.session_options = { .rate = rate },
	};
	uint64_t begin, waited, rest;

	(void)state;
	rig_prepare(&rig);
	begin = fake_now_ns();
	assert_int_equal(rig_start_prepared(&rig), 0);
	for (unsigned i = 0; i < 8; i++) {
		fake_sleep_ms(200);
		rest = rig_counters(&rig).rest_pages * FAKE_PAGE;
		waited = fake_now_ns() - begin;
		assert_true(rest <= rate * 3 / 2 * waited / 1000000000u + (1u << 20));
	}
	assert_true(rest >= rate / 8);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 1), -ETIMEDOUT);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rest = rig_counters(&rig).rest_pages * FAKE_PAGE;
	waited = fake_now_ns() - begin;
	assert_true(rest <= rate * 3 / 2 * waited / 1000000000u + (1u << 20));
	assert_int_equal(rig_counters(&rig).demand_pages + rest / FAKE_PAGE, rig.vmm->pages);
	rig_stop(&rig);
}

static bool page_is_present(int pagemap, const struct fakevmm *vmm, uint64_t page)
{
	off_t at = (off_t)((uintptr_t)fakevmm_page(vmm, page) / FAKE_PAGE * 8);
	uint64_t entry;

	assert_int_equal(pread(pagemap, &entry, sizeof(entry), at), sizeof(entry));
	return entry >> 63;
}

/* Touch what is present only: the session is gone, a missing page would wait for ever. */
static void assert_present_pages_are_right(struct rig *rig)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t first, end;

	assert_true(fd >= 0);
	for (uint64_t page = 0; page < rig->vmm->pages; page = end + 1) {
		for (first = page; first < rig->vmm->pages; first++)
			if (page_is_present(fd, rig->vmm, first))
				break;
		for (end = first; end < rig->vmm->pages; end++)
			if (!page_is_present(fd, rig->vmm, end))
				break;
		if (end > first)
			rig_assert_load(rig->vmm, fakevmm_touch(rig->vmm, first, end - first));
	}
	close(fd);
}

static void stop_in_the_middle_leaves_whole_pages(void **state)
{
	struct fakeimage image = { .bytes = 16u << 20, .seed = 24 };
	uint64_t installed = 0;

	(void)state;
	fakeimage_make(&image);
	for (unsigned round = 0; round < 20; round++) {
		struct rig rig = { .image = image, .image_made = true, .adopt = true };
		uint64_t present;

		assert_int_equal(rig_start(&rig), 0);
		usleep(round * 200);
		infill_session_stop(rig.session);
		rig.session = NULL;
		present = fakevmm_present(rig.vmm);
		fake_sleep_ms(5);
		assert_int_equal(fakevmm_present(rig.vmm), present);
		installed += present;
		assert_present_pages_are_right(&rig);
		rig_stop(&rig);
	}
	assert_true(installed > 0);
	fakeimage_remove(&image);
}

static void stop_while_threads_fault_returns(void **state)
{
	struct fakeimage image = { .bytes = 16u << 20, .seed = 25 };

	(void)state;
	fakeimage_make(&image);
	for (unsigned round = 0; round < 10; round++) {
		struct rig rig = { .image = image, .image_made = true, .adopt = true };
		struct fakevmm_load load = { .threads = 2, .pattern = FAKEVMM_RANDOM };

		assert_int_equal(rig_start(&rig), 0);
		fakevmm_start(rig.vmm, &load);
		fake_sleep_ms(round);
		infill_session_stop(rig.session);
		rig.session = NULL;
		fakevmm_abandon(rig.vmm);
		rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
		rig_stop(&rig);
	}
	fakeimage_remove(&image);
}

int main(void)
{
	static struct CMUnitTest tests[2 * ROWS + 8];
	static char names[ROWS][80];
	const struct CMUnitTest more[] = {
		cmocka_unit_test(none_fills_only_what_is_touched),
		cmocka_unit_test(trace_without_a_trace_is_there_at_once),
		cmocka_unit_test(all_leaves_holes_readable),
		cmocka_unit_test(rate_bounds_the_rest_only),
		cmocka_unit_test(stop_in_the_middle_leaves_whole_pages),
		cmocka_unit_test(stop_while_threads_fault_returns),
	};

	for (size_t i = 0; i < ROWS; i++) {
		void *row = (void *)(uintptr_t)&rows[i];

		snprintf(names[i], sizeof(names[i]), "%s, while threads touch", rows[i].name);
		tests[i] = (struct CMUnitTest){ rows[i].name, all_fills_everything, NULL, NULL, row };
		tests[ROWS + i] = (struct CMUnitTest){ names[i], demand_is_right_while_all_fills,
						       NULL, NULL, row };
	}
	memcpy(&tests[2 * ROWS], more, sizeof(more));
	return _cmocka_run_group_tests("pager/fill", tests,
				       2 * ROWS + sizeof(more) / sizeof(more[0]), NULL, NULL);
}
