// SPDX-License-Identifier: MIT
/*
 * session_image.c: images that cannot be served, and images that stop being
 * what they were: each has its error and a message that names the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fakefuse.h"
#include "rig.h"

#define PATH_SIZE 300

/* ---- files that are no image ------------------------------------------------ */

static void make_nothing(const char *path)
{
	(void)path;
}

static void make_size(const char *path, off_t size)
{
	int fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, size), 0);
	close(fd);
}

static void make_empty(const char *path)
{
	make_size(path, 0);
}

static void make_odd(const char *path)
{
	make_size(path, 3 * FAKE_PAGE + 100);
}

static void make_one_byte(const char *path)
{
	make_size(path, 1);
}

static void make_folder(const char *path)
{
	assert_int_equal(mkdir(path, 0755), 0);
}

static void make_fifo(const char *path)
{
	assert_int_equal(mkfifo(path, 0644), 0);
}

static void make_loop(const char *path)
{
	assert_int_equal(symlink(path, path), 0);
}

static void make_device(const char *path)
{
	assert_int_equal(symlink("/dev/zero", path), 0);
}

static void make_proc(const char *path)
{
	assert_int_equal(symlink("/proc/self/status", path), 0);
}

static const struct {
	const char *name;
	void (*make)(const char *path);
	int error;
	const char *says;
} no_images[] = {
	{ "missing", make_nothing, -ENOENT, "cannot open the image" },
	{ "empty", make_empty, -EINVAL, "is empty" },
	{ "not whole pages", make_odd, -EINVAL, "not a multiple of 4096" },
	{ "one byte", make_one_byte, -EINVAL, "not a multiple of 4096" },
	{ "a folder", make_folder, -EINVAL, "is a directory" },
	{ "a fifo", make_fifo, -EINVAL, "not a regular file" },
	{ "a device", make_device, -EINVAL, "not a regular file" },
	{ "a file of /proc", make_proc, -EINVAL, "is empty" },
	{ "a link to itself", make_loop, -ELOOP, "cannot open the image" },
};

#define NO_IMAGES (sizeof(no_images) / sizeof(no_images[0]))

static void what_is_no_image_is_refused(void **state)
{
	size_t i = (size_t)(uintptr_t)*state;
	struct infill_image *image = NULL;
	char path[PATH_SIZE];

	/* A fifo without a writer must not keep open(2) waiting. */
	fake_deadline("opening what is no image", 20);
	snprintf(path, sizeof(path), "%s/no-image-%zu", fake_dir(), i);
	no_images[i].make(path);
	assert_int_equal(infill_image_open(&image, path, NULL), no_images[i].error);
	rig_assert_says(infill_error(), path);
	rig_assert_says(infill_error(), no_images[i].says);
	assert_null(image);
	fake_deadline("", 0);
}

/* Run as nobody: what the child finds wrong is its exit status. */
static void unreadable_image_is_refused(void **state)
{
	char path[PATH_SIZE];
	int status;
	pid_t pid;

	(void)state;
	rig_need_root("only root can become another user");
	assert_int_equal(chmod(fake_dir(), 0755), 0);
	snprintf(path, sizeof(path), "%s/secret", fake_dir());
	make_size(path, FAKE_PAGE);
	assert_int_equal(chmod(path, 0600), 0);
	pid = fork();
	if (pid == 0) {
		struct infill_image *image = NULL;

		if (setgid(65534) || setuid(65534))
			_exit(1);
		if (infill_image_open(&image, path, NULL) != -EACCES)
			_exit(2);
		_exit(strstr(infill_error(), path) && strstr(infill_error(), "Permission denied") ?
			      0 :
			      3);
	}
	status = fake_wait(pid, 10000);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- open files that are no image ------------------------------------------- */

static void bad_descriptors_are_refused(void **state)
{
	struct infill_image *image = NULL;
	char path[PATH_SIZE];
	int fds[2], fd;

	(void)state;
	snprintf(path, sizeof(path), "%s/written", fake_dir());
	make_size(path, FAKE_PAGE);
	assert_int_equal(infill_image_open_fd(&image, -1, "nothing", NULL), -EBADF);
	rig_assert_says(infill_error(), "nothing");
	assert_int_equal(infill_image_open_fd(&image, 1 << 20, "closed", NULL), -EBADF);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	assert_int_equal(infill_image_open_fd(&image, fd, "write-only", NULL), -EBADF);
	rig_assert_says(infill_error(), "write-only");
	close(fd);
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(infill_image_open_fd(&image, fds[0], "pipe", NULL), -EINVAL);
	rig_assert_says(infill_error(), "not a regular file");
	close(fds[0]);
	close(fds[1]);
	assert_null(image);
}

/* ---- images that change before the session begins ---------------------------- */

static void append(int fd, uint64_t bytes)
{
	assert_int_equal(pwrite(fd, "more", 4, (off_t)bytes), 4);
}

static void shrink(int fd, uint64_t bytes)
{
	assert_int_equal(ftruncate(fd, (off_t)bytes / 2), 0);
}

static void overwrite(int fd, uint64_t bytes)
{
	(void)bytes;
	assert_int_equal(pwrite(fd, "other", 5, 4096), 5);
}

static const struct {
	const char *name;
	void (*change)(int fd, uint64_t bytes);
} changes[] = { { "growing", append }, { "shrinking", shrink }, { "overwritten", overwrite } };

#define CHANGES (sizeof(changes) / sizeof(changes[0]))

static void changed_image_starts_no_session(void **state)
{
	const struct timespec old[2] = { { 1700000000, 0 }, { 1700000000, 0 } };
	size_t i = (size_t)(uintptr_t)*state;
	struct rig rig = { .image = { .bytes = 4u << 20, .seed = 151 }, .image_made = true };
	int fd;

	rig_need_userfaultfd();
	fakeimage_make(&rig.image);
	fd = open(rig.image.path, O_RDWR | O_CLOEXEC);
	assert_int_equal(futimens(fd, old), 0);
	rig_prepare(&rig);
	changes[i].change(fd, rig.image.bytes);
	assert_int_equal(rig_start_prepared(&rig), -ESTALE);
	rig_assert_says(infill_error(), rig.image.path);
	rig_assert_says(infill_error(), "changed");
	assert_null(rig.session);
	close(fd);
	rig_stop(&rig);
	fakeimage_remove(&rig.image);
}

/* ---- images that cannot be read at all --------------------------------------- */

/* Every page is poisoned and reported; nothing hangs, nothing reads as zero. */
static void image_without_a_readable_page_is_all_poison(void **state)
{
	struct rig rig = { .image = { .bytes = 1u << 20, .seed = 152 } };
	struct fakefuse fuse;

	(void)state;
	rig_need_userfaultfd();
	if (fakefuse_start(&fuse, &rig.image))
		rig_skip("no FUSE here: neither /dev/fuse nor the right to mount");
	rig.source_fd = fuse.fd;
	atomic_store(&fuse.control->bad[0].length, rig.image.bytes);
	rig_prepare(&rig);
	for (uint64_t page = 0; page < rig.vmm->pages; page++)
		fakevmm_expect(rig.vmm, page, FAKEVMM_POISONED);
	assert_int_equal(rig_start_prepared(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), 0);
	assert_int_equal(rig_counters(&rig).poisoned, rig.vmm->pages);
	assert_int_equal(rig_counters(&rig).installs, 0);
	rig_assert_says(rig_events_wait(rig.events, INFILL_EVENT_POISON, 0, 0)->text,
			"cannot be read");
	rig_stop(&rig);
	fakefuse_stop(&fuse);
}

/*
 * Its file system goes away in the middle.  Whether the file changed may not
 * be told any more, then the session ends; else the page is poisoned.
 */
static void image_whose_server_dies_is_an_error(void **state)
{
	struct rig rig = { .image = { .bytes = 8u << 20, .seed = 153 },
			   .session_options = { .fill = INFILL_FILL_NONE } };
	struct fakevmm_load load = { .passes = 1, .first = 1500, .count = 1 };
	const struct rig_event *error = NULL, *poison = NULL;
	struct fakefuse fuse;

	(void)state;
	rig_need_userfaultfd();
	if (fakefuse_start(&fuse, &rig.image))
		rig_skip("no FUSE here: neither /dev/fuse nor the right to mount");
	rig.source_fd = fuse.fd;
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 0, 10));
	fakefuse_stop(&fuse);
	fakevmm_expect(rig.vmm, 1500, FAKEVMM_POISONED);
	fakevmm_start(rig.vmm, &load);
	for (unsigned i = 0; i < 1000 && !error && !poison; i++) {
		error = rig_events_wait(rig.events, INFILL_EVENT_ERROR, 0, 5);
		poison = rig_events_wait(rig.events, INFILL_EVENT_POISON, 0, 5);
	}
	if (error)
		fakevmm_abandon(rig.vmm);
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	assert_true(error || poison);
	if (error)
		rig_assert_says(error->text, "image-by-fd: cannot");
	rig_stop(&rig);
}

int main(void)
{
	static struct CMUnitTest tests[NO_IMAGES + CHANGES + 8];
	const struct CMUnitTest more[] = {
		cmocka_unit_test(unreadable_image_is_refused),
		cmocka_unit_test(bad_descriptors_are_refused),
		cmocka_unit_test(image_without_a_readable_page_is_all_poison),
		cmocka_unit_test(image_whose_server_dies_is_an_error),
	};
	size_t count = 0;

	for (size_t i = 0; i < NO_IMAGES; i++)
		tests[count++] = (struct CMUnitTest){ no_images[i].name, what_is_no_image_is_refused,
						      NULL, NULL, (void *)(uintptr_t)i };
	for (size_t i = 0; i < CHANGES; i++)
		tests[count++] = (struct CMUnitTest){ changes[i].name,
						      changed_image_starts_no_session, NULL, NULL,
						      (void *)(uintptr_t)i };
	memcpy(&tests[count], more, sizeof(more));
	count += sizeof(more) / sizeof(more[0]);
	return _cmocka_run_group_tests("bad-input/session_image", tests, count, NULL, NULL);
}
