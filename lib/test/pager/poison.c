// SPDX-License-Identifier: MIT
/*
 * poison.c: an image that cannot be read in places, or is slow in places.
 * What cannot be read raises a memory error at exactly that page; what is
 * slow holds up nobody else.  The image is on a real file system that fails
 * (fake/fakefuse.h).
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "fakefuse.h"
#include "rig.h"

#define FAR 1024 /* pages: further than any read-ahead reaches */

struct row {
	const char *name;
	enum infill_backing backing;
	uint64_t page_size;
	bool minor;
};

static const struct row rows[] = {
	{ "anon", 0, 0, false },
	{ "shmem", INFILL_BACKING_SHMEM, 0, false },
	{ "hugetlb", INFILL_BACKING_HUGETLB, FAKE_HUGE, false },
	{ "clone", 0, 0, true },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

static void rig_on_fuse(struct rig *rig, struct fakefuse *fuse, const struct row *row)
{
	int err;

	if (row->page_size == FAKE_HUGE)
		rig_need_hugepages(rig->image.bytes / FAKE_HUGE);
	rig->backing = row->backing;
	rig->page_size = row->page_size;
	rig->minor = row->minor;
	err = fakefuse_start(fuse, &rig->image);
	if (err)
		rig_skip("no FUSE here: neither /dev/fuse nor the right to mount");
	rig->source_fd = fuse->fd;
}

/* Make COUNT of VMM's pages from PAGE on unreadable, and expect it. */
static void make_bad(struct fakefuse *fuse, struct rig *rig, unsigned slot, uint64_t page,
		     uint64_t count)
{
	uint64_t size = rig->vmm->page_size;

	/* Of a huge page one bad block is enough. */
	atomic_store(&fuse->control->bad[slot].offset, page * size);
	atomic_store(&fuse->control->bad[slot].length,
		     size == FAKE_HUGE ? FAKE_PAGE : count * size);
	for (uint64_t i = page; i < page + count; i++)
		fakevmm_expect(rig->vmm, i, FAKEVMM_POISONED);
}

/* One page, a run in the middle, and the first and the last one. */
static uint64_t make_some_bad(struct fakefuse *fuse, struct rig *rig)
{
	uint64_t last = rig->vmm->pages - 1;

	make_bad(fuse, rig, 0, 0, 1);
	make_bad(fuse, rig, 1, 3, 1);
	make_bad(fuse, rig, 2, last / 2 + 2, last > 100 ? 5 : 1);
	make_bad(fuse, rig, 3, last, 1);
	return last > 100 ? 8 : 4;
}

static void assert_poison_reported(struct rig *rig, uint64_t pages)
{
	uint64_t bytes = 0;
	unsigned count;

	/* A page is one event, which comes after the thread that waited was woken. */
	rig_events_wait(rig->events, INFILL_EVENT_POISON, (unsigned)pages - 1, 10000);
	count = rig_events_count(rig->events, INFILL_EVENT_POISON);
	for (unsigned i = 0; i < count; i++) {
		const struct rig_event *event =
			rig_events_wait(rig->events, INFILL_EVENT_POISON, i, 0);

		assert_int_equal(event->error, -EIO);
		assert_true(event->length > 0 && event->text[0]);
		for (uint64_t at = 0; at < event->length; at += rig->vmm->page_size)
			assert_int_equal(atomic_load(&rig->vmm->state[(event->offset + at) /
								      rig->vmm->page_size]) & 0xff,
					 FAKEVMM_POISONED);
		bytes += event->length;
	}
	assert_int_equal(bytes, pages * rig->vmm->page_size);
	assert_int_equal(rig_counters(rig).poisoned, pages);
}

static struct rig rig_plain(const struct row *row, uint32_t fill)
{
	return (struct rig){
		.image = { .bytes = row->page_size ? 16u << 20 : 4u << 20, .seed = 61 },
		.session_options = { .fill = fill },
	};
}

static void unreadable_pages_are_poisoned_on_touch(void **state)
{
	struct rig rig = rig_plain(*state, INFILL_FILL_NONE);
	struct fakevmm_load load = { .pattern = FAKEVMM_RANDOM, .threads = 3, .passes = 2 };
	struct fakefuse fuse;
	uint64_t bad;

	rig_on_fuse(&rig, &fuse, *state);
	rig_prepare(&rig);
	bad = make_some_bad(&fuse, &rig);
	assert_int_equal(rig_start_prepared(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_run(rig.vmm, &load));
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_poison_reported(&rig, bad);
	rig_stop(&rig);
	fakefuse_stop(&fuse);
}

static void unreadable_pages_are_poisoned_by_the_fill(void **state)
{
	struct rig rig = rig_plain(*state, INFILL_FILL_ALL);
	struct fakefuse fuse;
	uint64_t bad;

	rig_on_fuse(&rig, &fuse, *state);
	rig_prepare(&rig);
	bad = make_some_bad(&fuse, &rig);
	assert_int_equal(rig_start_prepared(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	assert_poison_reported(&rig, bad);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(rig_counters(&rig).installs, rig.vmm->pages - bad);
	rig_stop(&rig);
	fakefuse_stop(&fuse);
}

static void hold(struct fakefuse *fuse, uint64_t page)
{
	atomic_store(&fuse->control->held.offset, page * FAKE_PAGE);
	atomic_store(&fuse->control->held.length, FAKE_PAGE);
}

static void let_go(struct fakefuse *fuse)
{
	atomic_store(&fuse->control->held.length, 0);
}

/* A fault that waits for the device does not hold up a fault at another page. */
static void slow_read_holds_up_nobody_else(void **state)
{
	const struct row *row = *state;
	struct rig rig = { .image = { .bytes = 16u << 20, .seed = 62 },
			   .session_options = { .fill = INFILL_FILL_NONE } };
	struct fakevmm_load slow = { .passes = 1, .first = 2 * FAR, .count = 1 };
	struct fakevmm_load fast = { .passes = 1, .count = FAR };
	struct fakevmm second; /* the same memory, for a second set of threads */
	struct fakefuse fuse;

	rig_on_fuse(&rig, &fuse, row);
	assert_int_equal(rig_start(&rig), 0);
	second = *rig.vmm;
	hold(&fuse, 2 * FAR);
	fakevmm_start(rig.vmm, &slow);
	assert_true(fakevmm_wait_waiting(rig.vmm, 2 * FAR, 10000));
	rig_assert_load(&second, fakevmm_run(&second, &fast));
	assert_true(atomic_load(&fuse.control->holding) > 0);
	let_go(&fuse);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
	fakefuse_stop(&fuse);
}

/* Nor does a background read that waits. */
static void slow_fill_holds_up_no_fault(void **state)
{
	const struct row *row = *state;
	struct rig rig = { .image = { .bytes = 16u << 20, .seed = 63 } };
	struct fakefuse fuse;

	rig_on_fuse(&rig, &fuse, row);
	hold(&fuse, 10);
	assert_int_equal(rig_start(&rig), 0);
	while (!atomic_load(&fuse.control->holding))
		fake_sleep_ms(1);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, FAR, 2 * FAR));
	assert_true(atomic_load(&fuse.control->holding) > 0);
	let_go(&fuse);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
	fakefuse_stop(&fuse);
}

/* The page is given back while its content is on its way: it must not arrive. */
static void removal_while_the_read_is_under_way_wins(void **state)
{
	const struct row *row = *state;
	struct rig rig = { .image = { .bytes = 16u << 20, .seed = 64 } };
	struct fakefuse fuse;

	rig_on_fuse(&rig, &fuse, row);
	hold(&fuse, 10);
	assert_int_equal(rig_start(&rig), 0);
	while (!atomic_load(&fuse.control->holding))
		fake_sleep_ms(1);
	assert_int_equal(fakevmm_remove(rig.vmm, 9, 3), 0);
	let_go(&fuse);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
	fakefuse_stop(&fuse);
}

static void *stop_in_thread(void *arg)
{
	infill_session_stop(arg);
	return NULL;
}

/* A stop waits for a read that is under way, and for nothing behind it. */
static void stop_ends_with_the_read_under_way(void **state)
{
	const struct row *row = *state;
	/* So slow that it cannot be through before the other thread has come to stop it. */
	struct rig rig = { .image = { .bytes = 64u << 20, .seed = 65 }, .adopt = true,
			   .session_options = { .rate = 1 << 20 } };
	struct fakefuse fuse;
	pthread_t thread;

	rig_on_fuse(&rig, &fuse, row);
	hold(&fuse, 10);
	assert_int_equal(rig_start(&rig), 0);
	while (!atomic_load(&fuse.control->holding))
		fake_sleep_ms(1);
	assert_int_equal(pthread_create(&thread, NULL, stop_in_thread, rig.session), 0);
	fake_sleep_ms(100);
	let_go(&fuse);
	pthread_join(thread, NULL);
	rig.session = NULL;
	assert_true(fakevmm_present(rig.vmm) < rig.vmm->pages);
	rig_stop(&rig);
	fakefuse_stop(&fuse);
}

/* The device comes back with an error for one of two faults: only that one is hit. */
static void error_after_a_wait_hits_its_page_only(void **state)
{
	const struct row *row = *state;
	struct rig rig = { .image = { .bytes = 16u << 20, .seed = 66 },
			   .session_options = { .fill = INFILL_FILL_NONE } };
	struct fakevmm_load load = { .passes = 1, .first = 2 * FAR, .count = 1 };
	struct fakefuse fuse;

	rig_on_fuse(&rig, &fuse, row);
	assert_int_equal(rig_start(&rig), 0);
	hold(&fuse, 2 * FAR);
	make_bad(&fuse, &rig, 0, 2 * FAR, 1);
	fakevmm_start(rig.vmm, &load);
	assert_true(fakevmm_wait_waiting(rig.vmm, 2 * FAR, 10000));
	let_go(&fuse);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_poison_reported(&rig, 1);
	rig_stop(&rig);
	fakefuse_stop(&fuse);
}

/*
 * While the read is under way the VMM installs the page itself and wakes
 * nobody: the pager finds it there, and has to wake who waits.
 */
static void page_that_came_otherwise_wakes_who_waits(void **state)
{
	const struct row *row = *state;
	struct rig rig = { .image = { .bytes = 16u << 20, .seed = 67 }, .adopt = true,
			   .session_options = { .fill = INFILL_FILL_NONE } };
	struct fakevmm_load load = { .passes = 1, .first = FAR, .count = 1 };
	struct uffdio_copy copy = { .len = FAKE_PAGE, .mode = UFFDIO_COPY_MODE_DONTWAKE };
	static _Alignas(FAKE_PAGE) uint64_t content[FAKE_PAGE / sizeof(uint64_t)];
	struct fakefuse fuse;

	rig_on_fuse(&rig, &fuse, row);
	assert_int_equal(rig_start(&rig), 0);
	hold(&fuse, FAR);
	fakevmm_start(rig.vmm, &load);
	assert_true(fakevmm_wait_waiting(rig.vmm, FAR, 10000));
	while (!atomic_load(&fuse.control->holding))
		fake_sleep_ms(1);
	fakeimage_fill(&rig.image, FAR * FAKE_PAGE, content, FAKE_PAGE);
	copy.dst = (uintptr_t)fakevmm_page(rig.vmm, FAR);
	copy.src = (uintptr_t)content;
	assert_int_equal(ioctl(rig.vmm->uffd, UFFDIO_COPY, &copy), 0);
	let_go(&fuse);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	assert_int_equal(rig_counters(&rig).duplicates, 1);
	rig_stop(&rig);
	fakefuse_stop(&fuse);
}

#define TEST(row, function) \
	{ #function, function, NULL, NULL, (void *)(uintptr_t)(row) }

int main(void)
{
	static struct CMUnitTest tests[2 * ROWS + 16];
	static char names[2 * ROWS][100];
	const struct row *plain = &rows[0];
	const struct CMUnitTest more[] = {
		TEST(plain, slow_read_holds_up_nobody_else),
		TEST(plain, slow_fill_holds_up_no_fault),
		TEST(plain, removal_while_the_read_is_under_way_wins),
		TEST(plain, stop_ends_with_the_read_under_way),
		TEST(plain, page_that_came_otherwise_wakes_who_waits),
		TEST(plain, error_after_a_wait_hits_its_page_only),
	};

	for (size_t i = 0; i < ROWS; i++) {
		void *row = (void *)(uintptr_t)&rows[i];

		snprintf(names[2 * i], sizeof(names[0]), "%s: poisoned on touch", rows[i].name);
		snprintf(names[2 * i + 1], sizeof(names[0]), "%s: poisoned by the fill",
			 rows[i].name);
		tests[2 * i] = (struct CMUnitTest){ names[2 * i],
						    unreadable_pages_are_poisoned_on_touch, NULL,
						    NULL, row };
		tests[2 * i + 1] = (struct CMUnitTest){ names[2 * i + 1],
							unreadable_pages_are_poisoned_by_the_fill,
							NULL, NULL, row };
	}
	memcpy(&tests[2 * ROWS], more, sizeof(more));
	return _cmocka_run_group_tests("pager/poison", tests,
				       2 * ROWS + sizeof(more) / sizeof(more[0]), NULL, NULL);
}
