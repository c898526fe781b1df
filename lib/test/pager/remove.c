// SPDX-License-Identifier: MIT
/*
 * remove.c: a balloon gives pages back while others touch and the pager
 * fills: a page that was given back is zero, and stays what was written to it
 * afterwards.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "rig.h"

struct row {
	const char *name;
	enum infill_backing backing;
	uint64_t page_size;
	uint32_t fill;
	bool minor, adopt;
	unsigned remove_pages, remove_pause_us, write_every;
};

static const struct row rows[] = {
	{ "anon, fill none", 0, 0, INFILL_FILL_NONE, false, false, 0, 0, 5 },
	{ "anon, fill all", 0, 0, INFILL_FILL_ALL, false, false, 0, 0, 5 },
	{ "anon, fill all, single pages, adopted", 0, 0, INFILL_FILL_ALL, false, true, 1, 0, 0 },
	{ "anon, fill all, long ranges", 0, 0, INFILL_FILL_ALL, false, false, 900, 300, 5 },
	{ "anon, fill none, slow balloon", 0, 0, INFILL_FILL_NONE, false, true, 32, 2000, 0 },
	{ "shmem, fill none", INFILL_BACKING_SHMEM, 0, INFILL_FILL_NONE, false, false, 0, 0, 5 },
	{ "shmem, fill all", INFILL_BACKING_SHMEM, 0, INFILL_FILL_ALL, false, true, 0, 0, 5 },
	{ "hugetlb, fill none", INFILL_BACKING_HUGETLB, FAKE_HUGE, INFILL_FILL_NONE, false, false, 2,
	  500, 5 },
	{ "hugetlb, fill all", INFILL_BACKING_HUGETLB, FAKE_HUGE, INFILL_FILL_ALL, false, true, 2,
	  500, 5 },
	{ "clone, fill none", 0, 0, INFILL_FILL_NONE, true, true, 0, 0, 5 },
	{ "clone, fill all", 0, 0, INFILL_FILL_ALL, true, true, 0, 0, 5 },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

static struct rig rig_of_row(const struct row *row)
{
	bool huge = row->page_size == FAKE_HUGE;
	struct rig rig = {
		.image = { .bytes = huge ? 16u << 20 : 8u << 20, .seed = 51, .hole_every = 11,
			   .zero_every = 11, .grain = huge ? FAKE_HUGE : FAKE_PAGE },
		.backing = row->backing,
		.page_size = row->page_size,
		.minor = row->minor,
		.adopt = row->adopt,
		.session_options = { .fill = row->fill },
	};

	/* One more: memory that is given back is in use until the page is freed. */
	if (huge)
		rig_need_hugepages(rig.image.bytes / FAKE_HUGE + 4);
	return rig;
}

static void flood_keeps_every_page_right(void **state)
{
	const struct row *row = *state;
	struct rig rig = rig_of_row(row);
	struct fakevmm_load load = {
		.pattern = FAKEVMM_RANDOM,
		.threads = 3,
		.passes = row->page_size ? 20 : 5,
		.write_every = row->write_every,
		.removers = 2,
		.remove_pages = row->remove_pages,
		.remove_pause_us = row->remove_pause_us,
		/* While madvise() calls overlap without a gap no install succeeds at all. */
		.remove_ms = row->remove_pause_us ? 10000 : 1000,
		.seed = 5,
	};
	struct infill_counters c;

	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_run(rig.vmm, &load));
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	c = rig_counters(&rig);
	/* A fill that is done before the first removal has nothing to be told any more. */
	assert_true((c.removed > 0 || c.resident_ns) && c.removed <= rig.vmm->shared->removed);
	/* Huge pages change while they are read. */
	if (!row->page_size)
		assert_true(rig.vmm->shared->unjudged < rig.vmm->shared->touches / 2);
	rig_assert_consistent(&rig);
	rig_stop(&rig);
}

/* All of it is given back while all of it is being filled: what wins must be zero. */
static void removal_during_fill_wins(void **state)
{
	const struct row *row = *state;

	for (unsigned round = 0; round < 10; round++) {
		struct rig rig = rig_of_row(row);

		rig.image.hole_every = rig.image.zero_every = 0;
		assert_int_equal(rig_start(&rig), 0);
		for (uint64_t page = 0; page < rig.vmm->pages; page += 1 + round)
			assert_int_equal(fakevmm_remove(rig.vmm, page, 1), 0);
		if (row->fill == INFILL_FILL_ALL)
			assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT,
							     20000),
					 0);
		rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
		rig_stop(&rig);
	}
}

static void removal_after_resident_is_zero(void **state)
{
	const struct row *row = *state;
	struct rig rig = rig_of_row(row);

	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	assert_int_equal(fakevmm_remove(rig.vmm, 1, 3), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(fakevmm_remove(rig.vmm, 0, rig.vmm->pages), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
}

/*
 * Between the pager's reading of a REMOVE and the removal itself the page may
 * be touched and installed; it must not come back with the image's content
 * when the removal then takes that away.
 */
static void removal_that_takes_effect_late_is_zero(void **state)
{
	const struct row *row = *state;
	struct rig rig = rig_of_row(row);
	struct fakevmm_load load = {
		.pattern = FAKEVMM_RANDOM,
		.threads = 3,
		.count = 128,
		.removers = 1, /* two would keep installs out of each other's gap */
		.remove_pages = 128,
		.remove_pause_us = 200,
		.lock_often = true,
		.seed = 6,
	};

	rig.image.hole_every = rig.image.zero_every = 0;
	assert_int_equal(rig_start(&rig), 0);
	fakevmm_start(rig.vmm, &load);
	fake_sleep_ms(1500);
	fakevmm_stop(rig.vmm);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
}

struct removal {
	struct fakevmm *vmm;
	uint64_t first, count;
	int result;
};

static void *remove_in_thread(void *arg)
{
	struct removal *removal = arg;

	removal->result = fakevmm_remove(removal->vmm, removal->first, removal->count);
	return NULL;
}

/* Start a removal that blocks, as nobody reads its event yet. */
static pthread_t removal_begin(struct removal *removal)
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, remove_in_thread, removal), 0);
	while (!atomic_load(&removal->vmm->shared->removing))
		fake_sleep_ms(1);
	fake_sleep_ms(100);
	assert_int_equal(atomic_load(&removal->vmm->shared->removing), 1);
	return thread;
}

/*
 * The REMOVE waits in the userfaultfd before the pager has it: every install
 * is refused (EAGAIN) until the event was read.
 */
static void event_that_waits_before_the_session_is_applied(void **state)
{
	struct rig rig = { .image = { .seed = 52 }, .adopt = true };
	struct removal removal = { .first = 200, .count = 64 };
	pthread_t thread;

	(void)state;
	rig_prepare(&rig);
	removal.vmm = rig.vmm;
	thread = removal_begin(&removal);
	assert_int_equal(rig_start_prepared(&rig), 0);
	pthread_join(thread, NULL);
	assert_int_equal(removal.result, 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(rig_counters(&rig).removed, 64);
	rig_stop(&rig);
}

/*
 * A fault and then a REMOVE of its page wait in the userfaultfd; the kernel
 * gives the fault first.  The page is zero nevertheless.
 */
static void fault_that_is_read_before_its_remove_is_zero(void **state)
{
	struct rig rig = { .image = { .seed = 53 }, .adopt = true,
			   .session_options = { .fill = INFILL_FILL_NONE } };
	struct fakevmm_load load = { .passes = 1, .first = 220, .count = 1 };
	struct removal removal = { .first = 200, .count = 64 };
	pthread_t thread;

	(void)state;
	rig_prepare(&rig);
	removal.vmm = rig.vmm;
	fakevmm_start(rig.vmm, &load);
	assert_true(fakevmm_wait_waiting(rig.vmm, 220, 5000));
	thread = removal_begin(&removal);
	assert_int_equal(rig_start_prepared(&rig), 0);
	pthread_join(thread, NULL);
	assert_int_equal(removal.result, 0);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
}

/* Many threads remove at once, so that the queue of events is longer than one read. */
static void many_removes_in_the_queue_are_all_applied(void **state)
{
	struct rig rig = { .image = { .bytes = 16u << 20, .seed = 54 }, .adopt = true };
	static struct removal removal[200];
	pthread_t thread[200];

	(void)state;
	rig_prepare(&rig);
	for (unsigned i = 0; i < 200; i++) {
		removal[i] = (struct removal){ rig.vmm, i * 20, 7, 0 };
		assert_int_equal(pthread_create(&thread[i], NULL, remove_in_thread, &removal[i]), 0);
	}
	fake_sleep_ms(200);
	assert_int_equal(rig_start_prepared(&rig), 0);
	for (unsigned i = 0; i < 200; i++) {
		pthread_join(thread[i], NULL);
		assert_int_equal(removal[i].result, 0);
	}
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(rig_counters(&rig).removed, 200 * 7);
	rig_stop(&rig);
}

/* A removal that is not aligned to the region's end, and one that covers a whole region. */
static void edges_of_regions_are_right(void **state)
{
	struct rig rig = { .image = { .bytes = 4u << 20, .seed = 55 }, .regions = 4 };
	uint64_t share;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	share = rig.vmm->pages / 4;
	assert_int_equal(fakevmm_remove(rig.vmm, 0, 1), 0);
	assert_int_equal(fakevmm_remove(rig.vmm, share - 1, 1), 0);
	assert_int_equal(fakevmm_remove(rig.vmm, share, 1), 0);
	assert_int_equal(fakevmm_remove(rig.vmm, 2 * share, share), 0);
	assert_int_equal(fakevmm_remove(rig.vmm, 4 * share - 1, 1), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
}

int main(void)
{
	static struct CMUnitTest tests[3 * ROWS + 8];
	static const struct row late[] = {
		{ .name = "anon", .fill = INFILL_FILL_NONE },
		{ .name = "shmem", .fill = INFILL_FILL_NONE, .backing = INFILL_BACKING_SHMEM },
		{ .name = "clone", .fill = INFILL_FILL_NONE, .minor = true },
	};
	static char names[2 * ROWS][100];
	const struct CMUnitTest more[] = {
		{ "anon: removal that takes effect late", removal_that_takes_effect_late_is_zero,
		  NULL, NULL, (void *)(uintptr_t)&late[0] },
		{ "shmem: removal that takes effect late", removal_that_takes_effect_late_is_zero,
		  NULL, NULL, (void *)(uintptr_t)&late[1] },
		{ "clone: removal that takes effect late", removal_that_takes_effect_late_is_zero,
		  NULL, NULL, (void *)(uintptr_t)&late[2] },
		cmocka_unit_test(event_that_waits_before_the_session_is_applied),
		cmocka_unit_test(fault_that_is_read_before_its_remove_is_zero),
		cmocka_unit_test(many_removes_in_the_queue_are_all_applied),
		cmocka_unit_test(edges_of_regions_are_right),
	};

	for (size_t i = 0; i < ROWS; i++) {
		void *row = (void *)(uintptr_t)&rows[i];

		snprintf(names[2 * i], sizeof(names[0]), "%s: removal during the fill", rows[i].name);
		snprintf(names[2 * i + 1], sizeof(names[0]), "%s: removal when resident",
			 rows[i].name);
		tests[3 * i] = (struct CMUnitTest){ rows[i].name, flood_keeps_every_page_right,
						    NULL, NULL, row };
		tests[3 * i + 1] = (struct CMUnitTest){ names[2 * i], removal_during_fill_wins,
							NULL, NULL, row };
		tests[3 * i + 2] = (struct CMUnitTest){ names[2 * i + 1],
							removal_after_resident_is_zero, NULL, NULL,
							row };
	}
	memcpy(&tests[3 * ROWS], more, sizeof(more));
	return _cmocka_run_group_tests("pager/remove", tests,
				       3 * ROWS + sizeof(more) / sizeof(more[0]), NULL, NULL);
}
