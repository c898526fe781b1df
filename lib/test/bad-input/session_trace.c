// SPDX-License-Identifier: MIT
/*
 * session_trace.c: traces that cannot be used: each is reported by an event
 * with its error and its file's name, and the session goes on without it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rig.h"

#define PATH_SIZE 300

static struct fakeimage image = { .bytes = 8u << 20, .seed = 171 };
static char good[PATH_SIZE];
static off_t good_size;

/* A true trace of `image`, for all tests. */
static int record_good(void **state)
{
	struct rig rig = { .image_made = true,
			   .session_options = { .fill = INFILL_FILL_NONE, .record = good } };
	struct stat status;
	int fd;

	(void)state;
	snprintf(good, sizeof(good), "%s/good-trace", fake_dir());
	fakeimage_make(&image);
	rig.image = image;
	fd = infill_host_userfaultfd(0);
	if (fd < 0)
		return 0; /* each test is skipped */
	close(fd);
	if (rig_start(&rig))
		return -1;
	fakevmm_touch(rig.vmm, 50, 400);
	rig_stop(&rig);
	if (stat(good, &status))
		return -1;
	good_size = status.st_size;
	return 0;
}

static void copy_good(const char *path)
{
	char command[2 * PATH_SIZE + 16];

	snprintf(command, sizeof(command), "cp '%s' '%s'", good, path);
	assert_int_equal(system(command), 0);
}

static void change_byte(const char *path, off_t at)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	unsigned char byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 0x40;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

/* ---- ways to spoil a trace ----------------------------------------------------- */

static void flip_in_magic(const char *path)
{
	copy_good(path);
	change_byte(path, 0);
}

static void flip_in_middle(const char *path)
{
	copy_good(path);
	change_byte(path, good_size / 2);
}

static void flip_last(const char *path)
{
	copy_good(path);
	change_byte(path, good_size - 1);
}

static void cut_short(const char *path)
{
	copy_good(path);
	assert_int_equal(truncate(path, good_size - 4), 0);
}

static void cut_in_header(const char *path)
{
	copy_good(path);
	assert_int_equal(truncate(path, 10), 0);
}

static void grow(const char *path)
{
	int fd;

	copy_good(path);
	fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	assert_int_equal(write(fd, "more", 4), 4);
	close(fd);
}

static void empty(const char *path)
{
	copy_good(path);
	assert_int_equal(truncate(path, 0), 0);
}

static void noise(const char *path)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	uint64_t word[512];

	for (unsigned i = 0; i < 512; i++)
		word[i] = fake_mix(i);
	assert_int_equal(write(fd, word, sizeof(word)), sizeof(word));
	close(fd);
}

static void missing(const char *path)
{
	(void)path;
}

static void folder(const char *path)
{
	assert_int_equal(mkdir(path, 0755), 0);
}

static void fifo(const char *path)
{
	assert_int_equal(mkfifo(path, 0600), 0);
}

static void the_image_itself(const char *path)
{
	assert_int_equal(symlink(image.path, path), 0);
}

static const struct {
	const char *name;
	void (*make)(const char *path);
	int error;
	const char *says;
} bad[] = {
	{ "a byte of the magic is wrong", flip_in_magic, -EBADMSG, "is not a trace" },
	{ "a byte in the middle is wrong", flip_in_middle, -EBADMSG, "is damaged" },
	{ "the last byte is wrong", flip_last, -EBADMSG, "is damaged" },
	{ "cut short", cut_short, -EBADMSG, "is damaged" },
	{ "cut in its header", cut_in_header, -EBADMSG, "" },
	{ "too long", grow, -EBADMSG, "is damaged" },
	{ "empty", empty, -EBADMSG, "" },
	{ "noise", noise, -EBADMSG, "is not a trace" },
	{ "the image itself", the_image_itself, -EBADMSG, "is not a trace" },
	{ "missing", missing, -ENOENT, "cannot open the trace" },
	{ "a folder", folder, -EINVAL, "not a regular file" },
	{ "a fifo", fifo, -EINVAL, "not a regular file" },
};

#define BAD (sizeof(bad) / sizeof(bad[0]))

static void assert_ignored(struct rig *rig, int error, const char *path, const char *says)
{
	const struct rig_event *event =
		rig_events_wait(rig->events, INFILL_EVENT_TRACE_IGNORED, 0, 5000);

	assert_non_null(event);
	assert_int_equal(event->error, error);
	rig_assert_says(event->text, path);
	rig_assert_says(event->text, says);
	assert_int_equal(infill_session_wait(rig->session, INFILL_WAIT_TRACE, 5000), 0);
	assert_int_equal(infill_session_wait(rig->session, INFILL_WAIT_RESIDENT, 20000), 0);
	rig_assert_load(rig->vmm, fakevmm_verify(rig->vmm));
	assert_int_equal(rig_counters(rig).trace_pages, 0);
	assert_int_equal(rig_events_count(rig->events, INFILL_EVENT_ERROR), 0);
}

static void bad_trace_is_reported_and_ignored(void **state)
{
	size_t i = (size_t)(uintptr_t)*state;
	char path[PATH_SIZE];
	struct rig rig = { .image = image, .image_made = true, .session_options.trace = path };

	rig_need_userfaultfd();
	snprintf(path, sizeof(path), "%s/bad-trace-%zu", fake_dir(), i);
	bad[i].make(path);
	assert_int_equal(rig_start(&rig), 0);
	assert_ignored(&rig, bad[i].error, path, bad[i].says);
	rig_stop(&rig);
}

/* ---- traces of another image ---------------------------------------------------- */

static void trace_of_another_image_is_ignored(void **state)
{
	struct rig rig = { .image = { .bytes = 8u << 20, .seed = 172 },
			   .session_options.trace = good };

	(void)state;
	rig_need_userfaultfd();
	assert_int_equal(rig_start(&rig), 0);
	assert_ignored(&rig, -ESTALE, good, "from another image");
	rig_stop(&rig);
}

/* The same file name and size, but written since: pages mean something else now. */
static void trace_from_before_a_change_is_ignored(void **state)
{
	struct fakeimage other = { .bytes = 8u << 20, .seed = 173 };
	char path[PATH_SIZE];
	struct rig recorder = { .image_made = true,
				.session_options = { .fill = INFILL_FILL_NONE, .record = path } };
	struct rig rig = { .image_made = true, .session_options.trace = path };
	int fd;

	(void)state;
	rig_need_userfaultfd();
	snprintf(path, sizeof(path), "%s/old-trace", fake_dir());
	fakeimage_make(&other);
	recorder.image = rig.image = other;
	assert_int_equal(rig_start(&recorder), 0);
	rig_assert_load(recorder.vmm, fakevmm_touch(recorder.vmm, 0, 100));
	rig_stop(&recorder);
	fake_sleep_ms(20);
	fd = open(other.path, O_RDWR | O_CLOEXEC);
	assert_int_equal(futimens(fd, NULL), 0);
	close(fd);
	assert_int_equal(rig_start(&rig), 0);
	assert_ignored(&rig, -ESTALE, path, "from this one before it changed");
	rig_stop(&rig);
	fakeimage_remove(&other);
}

/* A good trace works after all of this. */
static void good_trace_is_replayed(void **state)
{
	struct rig rig = { .image = image, .image_made = true,
			   .session_options = { .fill = INFILL_FILL_TRACE, .trace = good } };

	(void)state;
	rig_need_userfaultfd();
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_TRACE, 5000), 0);
	assert_int_equal(rig_events_count(rig.events, INFILL_EVENT_TRACE_IGNORED), 0);
	assert_true(rig_counters(&rig).trace_pages >= 400);
	rig_stop(&rig);
}

int main(void)
{
	static struct CMUnitTest tests[BAD + 4];
	const struct CMUnitTest more[] = {
		cmocka_unit_test(trace_of_another_image_is_ignored),
		cmocka_unit_test(trace_from_before_a_change_is_ignored),
		cmocka_unit_test(good_trace_is_replayed),
	};

	for (size_t i = 0; i < BAD; i++)
		tests[i] = (struct CMUnitTest){ bad[i].name, bad_trace_is_reported_and_ignored, NULL,
						NULL, (void *)(uintptr_t)i };
	memcpy(&tests[BAD], more, sizeof(more));
	return _cmocka_run_group_tests("bad-input/session_trace", tests,
				       BAD + sizeof(more) / sizeof(more[0]), record_good, NULL);
}
