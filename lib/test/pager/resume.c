// SPDX-License-Identifier: MIT
/*
 * resume.c: a session that is stopped and gone on with, from its state file
 * and its userfaultfd, while threads touch, write and give pages back.
 * That a killed process leaves the same: group crash.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rig.h"

/* Stop, and go on from what is left. */
static void cycle(struct rig *rig)
{
	struct infill_session_options options = rig->session_options;
	int state = fcntl(infill_session_state_fd(rig->session), F_DUPFD_CLOEXEC, 3);

	options.size = sizeof(options);
	options.cache = rig->cache;
	options.event = rig_events_add;
	options.event_arg = rig->events;
	assert_true(state >= 0);
	infill_session_stop(rig->session);
	rig->session = NULL;
	if (infill_session_resume(&rig->session, rig->pool, rig->source, rig->vmm->uffd, state,
				  &options))
		fail_msg("resume: %s", infill_error());
	close(state);
}

struct row {
	const char *name;
	enum infill_backing backing;
	uint64_t page_size;
	bool minor;
	uint32_t fill;
	uint64_t rate;
	unsigned cycles;
};

static const struct row rows[] = {
	{ "anon, fill none, 1000 times", 0, 0, false, INFILL_FILL_NONE, 0, 1000 },
	{ "anon, fill all, slow", 0, 0, false, INFILL_FILL_ALL, 2u << 20, 300 },
	{ "shmem, fill none", INFILL_BACKING_SHMEM, 0, false, INFILL_FILL_NONE, 0, 200 },
	{ "hugetlb, fill none", INFILL_BACKING_HUGETLB, FAKE_HUGE, false, INFILL_FILL_NONE, 0, 200 },
	{ "clone, fill none", 0, 0, true, INFILL_FILL_NONE, 0, 200 },
	{ "clone, fill all, slow", 0, 0, true, INFILL_FILL_ALL, 2u << 20, 200 },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

static void stop_and_resume_cost_nothing(void **state)
{
	const struct row *row = *state;
	bool huge = row->page_size == FAKE_HUGE;
	struct rig rig = {
		.image = { .bytes = 32u << 20, .seed = 91, .hole_every = 13, .zero_every = 13,
			   .grain = huge ? FAKE_HUGE : FAKE_PAGE },
		.adopt = true,
		.backing = row->backing,
		.page_size = row->page_size,
		.minor = row->minor,
		.session_options = { .fill = row->fill, .rate = row->rate },
	};
	struct fakevmm_load load = { .pattern = FAKEVMM_RANDOM, .threads = 2, .write_every = 7,
				     .removers = 1, .remove_pages = huge ? 2 : 32,
				     .remove_pause_us = 1000, .touch_pause_us = huge ? 500 : 0 };
	struct infill_counters c;

	if (huge)
		rig_need_hugepages(rig.image.bytes / FAKE_HUGE + 4);
	assert_int_equal(rig_start(&rig), 0);
	fakevmm_start(rig.vmm, &load);
	for (unsigned i = 0; i < row->cycles && !fakevmm_error(rig.vmm)[0]; i++) {
		usleep(i % 7 * 300);
		cycle(&rig);
	}
	fakevmm_stop(rig.vmm);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	c = rig_counters(&rig);
	assert_int_equal(c.resumes, row->cycles);
	assert_true(c.faults > 0 && c.removed > 0);
	rig_assert_consistent(&rig);
	rig_stop(&rig);
}

/* Counters, times and latencies go on where they were. */
static void counters_outlive_a_resume(void **state)
{
	struct rig rig = { .adopt = true, .session_options = { .fill = INFILL_FILL_NONE } };
	struct infill_counters before, after;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 0, 500));
	assert_int_equal(infill_session_mark(rig.session, INFILL_MARK_RESTORED), 0);
	before = rig_counters(&rig);
	cycle(&rig);
	after = rig_counters(&rig);
	assert_int_equal(after.resumes, 1);
	after.resumes = 0;
	assert_memory_equal(&before, &after, sizeof(before));
	rig_stop(&rig);
}

/* A page that was removed before stays zero, one that was present is not missing. */
static void states_outlive_a_resume(void **state)
{
	struct rig rig = { .adopt = true, .session_options = { .fill = INFILL_FILL_NONE } };
	uint64_t faults;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 0, 500));
	assert_int_equal(fakevmm_remove(rig.vmm, 400, 300), 0);
	cycle(&rig);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	faults = rig_counters(&rig).faults;
	cycle(&rig);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(rig_counters(&rig).faults, faults);
	rig_stop(&rig);
}

/* Nobody serves: the VMM faults and gives pages back meanwhile, and waits. */
static void what_happened_between_is_served(void **state)
{
	struct rig rig = { .adopt = true, .session_options = { .fill = INFILL_FILL_NONE } };
	struct fakevmm_load load = { .passes = 1, .threads = 3, .pattern = FAKEVMM_RANDOM,
				     .removers = 1, .remove_pause_us = 300 };
	struct infill_session_options options = { .size = sizeof(options),
						  .fill = INFILL_FILL_NONE };
	int fd;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	fd = fcntl(infill_session_state_fd(rig.session), F_DUPFD_CLOEXEC, 3);
	infill_session_stop(rig.session);
	fakevmm_start(rig.vmm, &load);
	fake_sleep_ms(200);
	assert_int_equal(infill_session_resume(&rig.session, rig.pool, rig.source, rig.vmm->uffd, fd,
					       &options),
			 0);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	close(fd);
	rig_stop(&rig);
}

static void resident_session_can_be_resumed(void **state)
{
	struct rig rig = { .adopt = true };

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	cycle(&rig);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 5000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(fakevmm_remove(rig.vmm, 5, 50), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
}

/* A recording goes on, and has what was touched before and after. */
static void recording_outlives_a_resume(void **state)
{
	char path[200];
	struct rig rig = { .adopt = true,
			   .session_options = { .fill = INFILL_FILL_NONE, .record = path } };
	struct rig replay = { .image_made = true,
			      .session_options = { .fill = INFILL_FILL_TRACE, .trace = path } };

	(void)state;
	snprintf(path, sizeof(path), "%s/resumed-trace", fake_dir());
	rig.image = (struct fakeimage){ .bytes = 8u << 20, .seed = 92 };
	fakeimage_make(&rig.image);
	rig.image_made = true;
	replay.image = rig.image;
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 100, 30));
	cycle(&rig);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 900, 30));
	rig_stop(&rig);
	assert_int_equal(rig_start(&replay), 0);
	assert_int_equal(infill_session_wait(replay.session, INFILL_WAIT_TRACE, 5000), 0);
	rig_assert_load(replay.vmm, fakevmm_touch(replay.vmm, 100, 30));
	rig_assert_load(replay.vmm, fakevmm_touch(replay.vmm, 900, 30));
	assert_int_equal(rig_counters(&replay).faults, 0);
	rig_stop(&replay);
	fakeimage_remove(&rig.image);
}

static unsigned count_lines(const char *path, const char *end)
{
	FILE *file = fopen(path, "re");
	unsigned count = 0;
	char line[200];

	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		count += strstr(line, end) != NULL;
	fclose(file);
	return count;
}

/* What came about once is said once in the timeline, whichever process is asked. */
static void timeline_says_once_that_the_trace_is_in(void **state)
{
	char path[200], timeline[200];
	struct rig recorder = { .session_options = { .fill = INFILL_FILL_NONE, .record = path } };
	struct rig rig = { .adopt = true, .image_made = true,
			   .session_options = { .trace = path } };
	uint64_t done;

	(void)state;
	snprintf(path, sizeof(path), "%s/once-trace", fake_dir());
	snprintf(timeline, sizeof(timeline), "%s/once-timeline", fake_dir());
	recorder.image = (struct fakeimage){ .bytes = 8u << 20, .seed = 93 };
	fakeimage_make(&recorder.image);
	recorder.image_made = true;
	rig.image = recorder.image;
	assert_int_equal(rig_start(&recorder), 0);
	rig_assert_load(recorder.vmm, fakevmm_touch(recorder.vmm, 100, 30));
	rig_stop(&recorder);
	rig.session_options.timeline_fd =
		open(timeline, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
	assert_true(rig.session_options.timeline_fd > 0);
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_TRACE, 20000), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	done = rig_counters(&rig).trace_done_ns;
	for (unsigned i = 0; i < 3; i++) {
		cycle(&rig);
		assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_TRACE, 20000), 0);
	}
	assert_int_equal(rig_counters(&rig).trace_done_ns, done);
	close(rig.session_options.timeline_fd);
	rig_stop(&rig);
	assert_int_equal(count_lines(timeline, " - - trace-done\n"), 1);
	assert_int_equal(count_lines(timeline, " - - resident\n"), 1);
	assert_int_equal(count_lines(timeline, " - - resumed\n"), 3);
	fakeimage_remove(&rig.image);
}

/* The state file can be the caller's own, made before there is a session. */
static void callers_state_file_is_begun_and_resumed(void **state)
{
	struct rig rig = { .adopt = true };
	struct infill_session_options options = { .size = sizeof(options),
						  .fill = INFILL_FILL_NONE };
	int fd = memfd_create("state", MFD_CLOEXEC);

	(void)state;
	assert_true(fd >= 0);
	rig_prepare(&rig);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(infill_session_adopt_state(&rig.session, rig.pool, rig.memory,
							    rig.source, rig.vmm->uffd, fd, &options),
				 0);
		rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 300 * i, 300));
		assert_int_equal(fakevmm_remove(rig.vmm, 300 * i + 100, 50), 0);
		assert_int_equal(rig_counters(&rig).resumes, i);
		infill_session_stop(rig.session);
	}
	assert_int_equal(infill_session_adopt_state(&rig.session, rig.pool, rig.memory, rig.source,
						    rig.vmm->uffd, fd, &options),
			 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	close(fd);
	rig_stop(&rig);
}

int main(void)
{
	static struct CMUnitTest tests[ROWS + 8];
	const struct CMUnitTest more[] = {
		cmocka_unit_test(counters_outlive_a_resume),
		cmocka_unit_test(states_outlive_a_resume),
		cmocka_unit_test(what_happened_between_is_served),
		cmocka_unit_test(resident_session_can_be_resumed),
		cmocka_unit_test(recording_outlives_a_resume),
		cmocka_unit_test(timeline_says_once_that_the_trace_is_in),
		cmocka_unit_test(callers_state_file_is_begun_and_resumed),
	};

	for (size_t i = 0; i < ROWS; i++)
		tests[i] = (struct CMUnitTest){ rows[i].name, stop_and_resume_cost_nothing, NULL,
						NULL, (void *)(uintptr_t)&rows[i] };
	memcpy(&tests[ROWS], more, sizeof(more));
	return _cmocka_run_group_tests("pager/resume", tests, ROWS + sizeof(more) / sizeof(more[0]),
				       NULL, NULL);
}
