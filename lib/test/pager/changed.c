// SPDX-License-Identifier: MIT
/*
 * changed.c: an image that is changed while it is served ends the session
 * with an error that says so; nobody ever reads a byte of the changed file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rig.h"

struct change {
	const char *name;
	void (*apply)(int fd, uint64_t bytes);
};

static void append(int fd, uint64_t bytes)
{
	assert_int_equal(pwrite(fd, "more", 4, (off_t)bytes), 4);
}

static void cut(int fd, uint64_t bytes)
{
	assert_int_equal(ftruncate(fd, (off_t)bytes / 2), 0);
}

static void cut_to_nothing(int fd, uint64_t bytes)
{
	(void)bytes;
	assert_int_equal(ftruncate(fd, 0), 0);
}

/* Content that no page of the guest may ever show. */
static void overwrite(int fd, uint64_t bytes)
{
	char *buffer = malloc(1u << 20);

	memset(buffer, 0x55, 1u << 20);
	for (uint64_t at = 0; at < bytes; at += 1u << 20)
		assert_int_equal(pwrite(fd, buffer, 1u << 20, (off_t)at), 1u << 20);
	free(buffer);
}

static void punch_a_hole(int fd, uint64_t bytes)
{
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes))
		overwrite(fd, bytes);
}

static void touch_mtime(int fd, uint64_t bytes)
{
	(void)bytes;
	assert_int_equal(futimens(fd, NULL), 0);
}

static const struct change changes[] = {
	{ "appended to", append },	   { "cut to half", cut },
	{ "cut to nothing", cut_to_nothing }, { "overwritten", overwrite },
	{ "punched", punch_a_hole },	   { "only its mtime changed", touch_mtime },
};

#define CHANGES (sizeof(changes) / sizeof(changes[0]))

struct row {
	char name[100];
	const struct change *change;
	bool minor;
	uint32_t fill;
	uint64_t rate;
};

/* An image that is old enough for any later change to have another mtime. */
static int image_make_old(struct rig *rig)
{
	const struct timespec old[2] = { { 1700000000, 0 }, { 1700000000, 0 } };
	int fd;

	rig->image.bytes = 8u << 20;
	rig->image.seed = 71;
	fakeimage_make(&rig->image);
	rig->image_made = true;
	fd = open(rig->image.path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(futimens(fd, old), 0);
	return fd;
}

static void assert_stale(struct rig *rig)
{
	const struct rig_event *event = rig_events_wait(rig->events, INFILL_EVENT_ERROR, 0, 10000);
	const char *text;

	assert_non_null(event);
	assert_int_equal(event->error, -ESTALE);
	rig_assert_says(event->text, rig->image.path);
	rig_assert_says(event->text, "changed");
	assert_int_equal(infill_session_wait(rig->session, INFILL_WAIT_END, 5000), -ESTALE);
	assert_int_equal(infill_session_wait(rig->session, INFILL_WAIT_RESIDENT, 5000), -ESTALE);
	assert_int_equal(infill_session_error(rig->session, &text), -ESTALE);
	assert_string_equal(text, event->text);
	assert_int_equal(infill_image_check(rig->source), -ESTALE);
}

/* Nothing of the changed image is seen by threads that are in the middle of it. */
static void changed_image_is_an_error(void **state)
{
	const struct row *row = *state;
	struct rig rig = {
		.minor = row->minor,
		.session_options = { .fill = row->fill, .rate = row->rate },
	};
	struct fakevmm_load load = { .pattern = FAKEVMM_RANDOM, .threads = 2,
				     /* So that the guest is not resident when the change comes. */
				     .touch_pause_us = 2000 };
	int fd = image_make_old(&rig);

	assert_int_equal(rig_start(&rig), 0);
	fakevmm_start(rig.vmm, &load);
	fake_sleep_ms(20);
	row->change->apply(fd, rig.image.bytes);
	assert_stale(&rig);
	fakevmm_abandon(rig.vmm);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	close(fd);
	rig_stop(&rig);
	fakeimage_remove(&rig.image);
}

/*
 * The session has ended in one of two ways, for good: everything is there and
 * right, and the image's fate does not matter any more; or it is an error.
 */
static void assert_one_end(struct rig *rig)
{
	int result = infill_session_wait(rig->session, INFILL_WAIT_RESIDENT, 20000);

	assert_true(result == 0 || result == -ESTALE);
	fake_sleep_ms(5);
	assert_int_equal(rig_events_count(rig->events, INFILL_EVENT_RESIDENT), result == 0);
	assert_int_equal(rig_events_count(rig->events, INFILL_EVENT_ERROR), result != 0);
	assert_int_equal(infill_session_error(rig->session, NULL), result);
}

/* The same at many moments of a fill at full speed. */
static void changed_during_the_fill_shows_nowhere(void **state)
{
	bool huge = *state != NULL;

	if (huge)
		rig_need_hugepages((8u << 20) / FAKE_HUGE);
	for (unsigned round = 0; round < 150; round++) {
		struct rig rig = {
			.page_size = huge ? FAKE_HUGE : 0,
			.backing = huge ? INFILL_BACKING_HUGETLB : INFILL_BACKING_ANON,
		};
		struct fakevmm_load load = { .threads = 1 + round % 2, .pattern = FAKEVMM_RANDOM };
		int fd = image_make_old(&rig);

		assert_int_equal(rig_start(&rig), 0);
		fakevmm_start(rig.vmm, &load);
		usleep(round % 50 * 75);
		changes[round % CHANGES].apply(fd, rig.image.bytes);
		assert_one_end(&rig);
		fakevmm_abandon(rig.vmm);
		rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
		if (!infill_session_error(rig.session, NULL))
			rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
		close(fd);
		rig_stop(&rig);
		fakeimage_remove(&rig.image);
	}
}

/* A name that now leads to another file changes nothing: the open file is the image. */
static void renamed_image_goes_on(void **state)
{
	struct rig rig = { .session_options = { .fill = INFILL_FILL_NONE } };
	struct fakeimage other = { .bytes = 8u << 20, .seed = 72 };
	int fd = image_make_old(&rig);

	(void)state;
	fakeimage_make(&other);
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(rename(other.path, rig.image.path), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	close(fd);
	rig_stop(&rig);
	fakeimage_remove(&rig.image);
}

/* What is resident does not need the image any more. */
static void resident_guest_outlives_its_image(void **state)
{
	struct rig rig = { 0 };
	int fd = image_make_old(&rig);

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	cut_to_nothing(fd, 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(fakevmm_remove(rig.vmm, 3, 100), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(infill_session_error(rig.session, NULL), 0);
	close(fd);
	rig_stop(&rig);
	fakeimage_remove(&rig.image);
}

static const struct {
	const char *name;
	bool minor;
	uint32_t fill;
	uint64_t rate;
} ways[] = {
	{ "fill none", false, INFILL_FILL_NONE, 0 },
	{ "slow fill", false, INFILL_FILL_ALL, 2u << 20 },
	{ "fill none, clone", true, INFILL_FILL_NONE, 0 },
	{ "slow fill, clone", true, INFILL_FILL_ALL, 2u << 20 },
};

#define WAYS (sizeof(ways) / sizeof(ways[0]))

int main(void)
{
	static struct row rows[WAYS * CHANGES];
	static struct CMUnitTest tests[WAYS * CHANGES + 8];
	const struct CMUnitTest more[] = {
		{ "changed during the fill", changed_during_the_fill_shows_nowhere, NULL, NULL,
		  NULL },
		{ "changed during the fill, hugetlb", changed_during_the_fill_shows_nowhere, NULL,
		  NULL, rows },
		cmocka_unit_test(renamed_image_goes_on),
		cmocka_unit_test(resident_guest_outlives_its_image),
	};

	for (size_t i = 0; i < WAYS * CHANGES; i++) {
		rows[i].change = &changes[i % CHANGES];
		rows[i].minor = ways[i / CHANGES].minor;
		rows[i].fill = ways[i / CHANGES].fill;
		rows[i].rate = ways[i / CHANGES].rate;
		snprintf(rows[i].name, sizeof(rows[i].name), "%s: %s", ways[i / CHANGES].name,
			 rows[i].change->name);
		tests[i] = (struct CMUnitTest){ rows[i].name, changed_image_is_an_error, NULL, NULL,
						&rows[i] };
	}
	memcpy(&tests[WAYS * CHANGES], more, sizeof(more));
	return _cmocka_run_group_tests("pager/changed", tests,
				       WAYS * CHANGES + sizeof(more) / sizeof(more[0]), NULL, NULL);
}
