// SPDX-License-Identifier: MIT
/*
 * trace.c: recording which pages are touched first, and replaying them so
 * that they fault no more.  Damaged and foreign traces: bad-input/session_trace.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rig.h"

#define PATH_MAX_OWN 200

static void path_of(char *path, const char *name)
{
	snprintf(path, PATH_MAX_OWN, "%s/%s", fake_dir(), name);
	unlink(path);
}

/* Blocks of the image that the imaginary guest touches, in this order. */
static const struct {
	uint64_t first, count;
} touched[] = { { 3000, 200 }, { 17, 1 }, { 900, 77 }, { 2000, 512 }, { 40, 3 }, { 3900, 100 } };

#define TOUCHED (sizeof(touched) / sizeof(touched[0]))
#define TOUCHED_PAGES (200 + 1 + 77 + 512 + 3 + 100)

static uint64_t touch_all(struct rig *rig)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < TOUCHED; i++) {
		rig_assert_load(rig->vmm, fakevmm_touch(rig->vmm, touched[i].first,
							touched[i].count));
		pages += touched[i].count;
	}
	return pages;
}

/* Record IMAGE's touches to PATH; returns the pages that were touched. */
static uint64_t record(const struct fakeimage *image, const char *path, uint32_t fill)
{
	struct rig rig = {
		.image = *image,
		.image_made = true,
		/* The window closes with the last page, however slow the machine is. */
		.session_options = { .fill = fill, .record = path,
				     .record_settle_ns = 20000000000,
				     .record_pages = TOUCHED_PAGES },
	};
	uint64_t pages;

	assert_int_equal(rig_start(&rig), 0);
	pages = touch_all(&rig);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RECORDED, 10000), 0);
	assert_int_equal(pages, TOUCHED_PAGES);
	assert_non_null(rig_events_wait(rig.events, INFILL_EVENT_RECORDED, 0, 5000));
	assert_int_equal(rig_events_count(rig.events, INFILL_EVENT_TRACE_FAILED), 0);
	rig_stop(&rig);
	return pages;
}

static void replayed_pages_do_not_fault(void **state)
{
	struct fakeimage image = { .bytes = 16u << 20, .seed = 31 };
	char path[PATH_MAX_OWN];
	struct rig rig = { .image_made = true,
			   .session_options = { .fill = INFILL_FILL_TRACE, .trace = path } };
	struct infill_counters c;
	uint64_t pages;

	(void)state;
	path_of(path, "trace");
	fakeimage_make(&image);
	rig.image = image;
	pages = record(&image, path, INFILL_FILL_NONE);
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_TRACE, 10000), 0);
	assert_non_null(rig_events_wait(rig.events, INFILL_EVENT_TRACE_DONE, 0, 5000));
	touch_all(&rig);
	c = rig_counters(&rig);
	assert_int_equal(c.faults, 0);
	assert_int_equal(c.trace_pages, c.installs);
	assert_true(c.trace_pages >= pages && c.trace_pages < pages + pages / 4 + 64);
	assert_true(c.trace_done_ns >= c.start_ns);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
	fakeimage_remove(&image);
}

static void all_goes_on_after_the_trace(void **state)
{
	struct fakeimage image = { .bytes = 16u << 20, .seed = 32 };
	char path[PATH_MAX_OWN];
	struct rig rig = { .image_made = true, .session_options = { .trace = path } };
	struct infill_counters c;

	(void)state;
	path_of(path, "trace");
	fakeimage_make(&image);
	rig.image = image;
	record(&image, path, INFILL_FILL_NONE);
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	c = rig_counters(&rig);
	assert_true(c.trace_pages > 0 && c.rest_pages > 0);
	assert_int_equal(c.installs, c.pages);
	assert_true(c.trace_done_ns <= c.resident_ns);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
	fakeimage_remove(&image);
}

static void fill_none_replays_nothing(void **state)
{
	struct fakeimage image = { .bytes = 16u << 20, .seed = 33 };
	char path[PATH_MAX_OWN];
	struct rig rig = { .image_made = true,
			   .session_options = { .fill = INFILL_FILL_NONE, .trace = path } };

	(void)state;
	path_of(path, "trace");
	fakeimage_make(&image);
	rig.image = image;
	record(&image, path, INFILL_FILL_NONE);
	assert_int_equal(rig_start(&rig), 0);
	fake_sleep_ms(300);
	assert_int_equal(rig_counters(&rig).installs, 0);
	rig_stop(&rig);
	fakeimage_remove(&image);
}

/* Read a timeline: the offset and the class of each line of an install. */
static size_t timeline_read(const char *path, const char *class, uint64_t *offset, size_t max)
{
	FILE *file = fopen(path, "re");
	unsigned long long ns, at, bytes;
	char line[200], name[32];
	size_t count = 0;

	assert_non_null(file);
	while (fgets(line, sizeof(line), file) && count < max)
		if (sscanf(line, "%llu %llu %llu %31s", &ns, &at, &bytes, name) == 4 &&
		    !strcmp(name, class))
			offset[count++] = at;
	fclose(file);
	return count;
}

/* More touches than are merged at once: what was touched first comes first. */
static void replay_keeps_the_order_of_first_touch(void **state)
{
	struct fakeimage image = { .bytes = 32u << 20, .seed = 34 };
	char path[PATH_MAX_OWN], timeline[PATH_MAX_OWN];
	struct rig recorder = { .image_made = true,
				.session_options = { .fill = INFILL_FILL_NONE, .record = path } };
	struct rig rig = { .image_made = true, .threads = 1,
			   .session_options = { .fill = INFILL_FILL_TRACE, .trace = path } };
	static uint64_t offset[4096];
	uint64_t half = 4096;
	size_t count;

	(void)state;
	path_of(path, "trace");
	path_of(timeline, "timeline");
	fakeimage_make(&image);
	recorder.image = rig.image = image;
	assert_int_equal(rig_start(&recorder), 0);
	rig_assert_load(recorder.vmm, fakevmm_touch(recorder.vmm, half, half));
	rig_assert_load(recorder.vmm, fakevmm_touch(recorder.vmm, 0, half));
	rig_stop(&recorder);

	rig.session_options.timeline_fd = open(timeline, O_CREAT | O_WRONLY | O_APPEND, 0600);
	assert_true(rig.session_options.timeline_fd > 0);
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_TRACE, 10000), 0);
	assert_int_equal(rig_counters(&rig).trace_pages, 2 * half);
	close(rig.session_options.timeline_fd);
	rig_stop(&rig);
	count = timeline_read(timeline, "trace", offset, 4096);
	assert_true(count >= 2);
	assert_true(offset[0] >= half * FAKE_PAGE && offset[0] < (half + 2048) * FAKE_PAGE);
	assert_true(offset[count - 1] < half * FAKE_PAGE);
	fakeimage_remove(&image);
}

static void rest_waits_for_the_recording_window(void **state)
{
	char path[PATH_MAX_OWN];
	struct rig rig = { .session_options = { .record = path, .record_settle_ns = 2000000000 } };

	(void)state;
	path_of(path, "trace");
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 100, 50));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RECORDED, 200), -ETIMEDOUT);
	assert_int_equal(rig_counters(&rig).rest_pages, 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RECORDED, 10000), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	assert_true(rig_counters(&rig).rest_pages > 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
}

struct window {
	const char *name;
	uint64_t settle_ns, time_ns, pages;
};

static const struct window windows[] = {
	{ "window closes when touches settle", 200000000, 0, 0 },
	{ "window closes after its time", 0, 500000000, 0 },
	{ "window closes after its pages", 0, 0, 200 },
};

/* Touch at a steady pace, so that only the limit under test can close the window. */
static void window_closes(void **state)
{
	const struct window *window = *state;
	char path[PATH_MAX_OWN];
	struct rig rig = {
		.image = { .bytes = 64u << 20, .seed = 35 },
		.session_options = {
			.fill = INFILL_FILL_NONE,
			.record = path,
			.record_settle_ns = window->settle_ns,
			.record_time_ns = window->time_ns,
			.record_pages = window->pages,
		},
	};
	struct fakevmm_load load = { .pattern = FAKEVMM_RANDOM, .touch_pause_us = 300 };
	struct stat status;

	path_of(path, "trace");
	assert_int_equal(rig_start(&rig), 0);
	if (window->settle_ns)
		load = (struct fakevmm_load){ .passes = 1, .count = 100 };
	fakevmm_start(rig.vmm, &load);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RECORDED, 10000), 0);
	/* Not because there was nothing left to touch. */
	assert_true(rig_counters(&rig).installs < rig.vmm->pages / 2);
	fakevmm_stop(rig.vmm);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	assert_int_equal(stat(path, &status), 0);
	assert_true(status.st_size > 0);
	rig_stop(&rig);
}

static void open_recording_is_written_at_the_stop(void **state)
{
	struct fakeimage image = { .bytes = 8u << 20, .seed = 36 };
	char path[PATH_MAX_OWN];
	struct rig recorder = { .image_made = true,
				.session_options = { .fill = INFILL_FILL_NONE, .record = path } };
	struct rig rig = { .image_made = true,
			   .session_options = { .fill = INFILL_FILL_TRACE, .trace = path } };

	(void)state;
	path_of(path, "trace");
	fakeimage_make(&image);
	recorder.image = rig.image = image;
	assert_int_equal(rig_start(&recorder), 0);
	rig_assert_load(recorder.vmm, fakevmm_touch(recorder.vmm, 500, 10));
	rig_stop(&recorder);
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_TRACE, 10000), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 500, 10));
	assert_int_equal(rig_counters(&rig).faults, 0);
	rig_stop(&rig);
	fakeimage_remove(&image);
}

/* Threads that go the same way miss the same page at once: more than one event, one touch. */
static void a_page_that_several_touch_is_recorded_once(void **state)
{
	const struct fakevmm_load load = { .threads = 8, .passes = 1 };
	char path[PATH_MAX_OWN];
	struct rig rig = { .session_options = { .fill = INFILL_FILL_NONE, .record = path } };
	const struct rig_event *recorded;

	(void)state;
	path_of(path, "once.trace");
	for (unsigned round = 0; round < 4; round++) {
		struct rig one = rig;

		assert_int_equal(rig_start(&one), 0);
		rig_assert_load(one.vmm, fakevmm_run(one.vmm, &load));
		assert_int_equal(infill_session_wait(one.session, INFILL_WAIT_RECORDED, 10000), 0);
		recorded = rig_events_wait(one.events, INFILL_EVENT_RECORDED, 0, 5000);
		assert_non_null(recorded);
		assert_int_equal(recorded->length, one.vmm->pages * FAKE_PAGE);
		rig_stop(&one);
	}
}

/* Pages that were given back before the replay reached them must stay zero. */
static void replay_does_not_bring_removed_pages_back(void **state)
{
	struct fakeimage image = { .bytes = 16u << 20, .seed = 37 };
	char path[PATH_MAX_OWN];

	(void)state;
	path_of(path, "trace");
	fakeimage_make(&image);
	record(&image, path, INFILL_FILL_NONE);
	for (unsigned round = 0; round < 10; round++) {
		struct rig rig = { .image = image, .image_made = true,
				   .session_options = { .trace = path } };

		assert_int_equal(rig_start(&rig), 0);
		for (uint64_t page = 3999; page > 2000; page -= 37)
			assert_int_equal(fakevmm_remove(rig.vmm, page, 5), 0);
		assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
		rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
		rig_stop(&rig);
	}
	fakeimage_remove(&image);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(replayed_pages_do_not_fault),
		cmocka_unit_test(all_goes_on_after_the_trace),
		cmocka_unit_test(fill_none_replays_nothing),
		cmocka_unit_test(replay_keeps_the_order_of_first_touch),
		cmocka_unit_test(rest_waits_for_the_recording_window),
		{ windows[0].name, window_closes, NULL, NULL, (void *)(uintptr_t)&windows[0] },
		{ windows[1].name, window_closes, NULL, NULL, (void *)(uintptr_t)&windows[1] },
		{ windows[2].name, window_closes, NULL, NULL, (void *)(uintptr_t)&windows[2] },
		cmocka_unit_test(open_recording_is_written_at_the_stop),
		cmocka_unit_test(a_page_that_several_touch_is_recorded_once),
		cmocka_unit_test(replay_does_not_bring_removed_pages_back),
	};

	return _cmocka_run_group_tests("pager/trace", tests, sizeof(tests) / sizeof(tests[0]), NULL,
				       NULL);
}
