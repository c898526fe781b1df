// SPDX-License-Identifier: MIT
/*
 * session_options.c: options, descriptors and state files that a session
 * refuses; nothing of a refused session is left behind.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rig.h"

static unsigned open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	assert_non_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

/* ---- option structs --------------------------------------------------------------- */

#define FULL sizeof(struct infill_session_options)

static const struct {
	const char *name;
	struct infill_session_options options;
	int error;
	const char *says;
} refused[] = {
	{ "size 1", { .size = 1 }, -EINVAL, "infill_session_options" },
	{ "size 0", { .size = 0 }, -EINVAL, "infill_session_options" },
	{ "fill unknown", { .size = FULL, .fill = 3 }, -EINVAL, "fill" },
	{ "trace and record", { .size = FULL, .trace = "a", .record = "b" }, -EINVAL, "trace" },
	{ "record_pages without end", { .size = FULL, .record = "b", .record_pages = UINT64_MAX },
	  -EINVAL, "record_pages" },
	{ "reserved is used", { .size = FULL, .reserved = 1 }, -EINVAL, "reserved" },
	{ "watch_fd is closed", { .size = FULL, .watch_fd = 1 << 20 }, -EBADF, "watch_fd" },
	{ "timeline_fd is closed", { .size = FULL, .timeline_fd = 1 << 20 }, -EBADF, "timeline" },
};

#define REFUSED (sizeof(refused) / sizeof(refused[0]))

static void option_is_refused(void **state)
{
	size_t i = (size_t)(uintptr_t)*state;
	struct rig rig = { .image = { .bytes = 1u << 20 } };
	struct infill_session *session = NULL;
	unsigned files;

	rig_need_userfaultfd();
	rig_prepare(&rig);
	files = open_files();
	assert_int_equal(infill_session_start(&session, rig.pool, rig.memory, rig.source,
					      &refused[i].options),
			 refused[i].error);
	rig_assert_says(infill_error(), refused[i].says);
	assert_null(session);
	assert_int_equal(open_files(), files);
	rig_stop(&rig);
}

/* A newer caller's struct is taken if what this library does not know is zero. */
static void longer_struct_is_taken_only_if_its_rest_is_zero(void **state)
{
	struct {
		struct infill_session_options o;
		uint64_t later[4];
	} options = { .o = { .size = sizeof(options) } };
	struct rig rig = { .image = { .bytes = 1u << 20 } };

	(void)state;
	rig_need_userfaultfd();
	rig_prepare(&rig);
	options.later[3] = 1;
	assert_int_equal(infill_session_start(&rig.session, rig.pool, rig.memory, rig.source,
					      &options.o),
			 -E2BIG);
	rig_assert_says(infill_error(), "does not know");
	options.later[3] = 0;
	assert_int_equal(infill_session_start(&rig.session, rig.pool, rig.memory, rig.source,
					      &options.o),
			 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
}

static void no_options_are_the_defaults(void **state)
{
	struct rig rig = { .image = { .bytes = 1u << 20 } };

	(void)state;
	rig_need_userfaultfd();
	rig_prepare(&rig);
	assert_int_equal(infill_session_start(&rig.session, rig.pool, rig.memory, rig.source, NULL),
			 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
}

/* ---- userfaultfds ------------------------------------------------------------------- */

static int fd_closed(void)
{
	return 1 << 20;
}

static int fd_of_a_file(void)
{
	return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static int fd_of_a_memfd(void)
{
	return memfd_create("no-userfaultfd", MFD_CLOEXEC);
}

static int fd_of_a_pipe(void)
{
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	close(fds[1]);
	return fds[0];
}

static const struct {
	const char *name;
	int (*open)(void);
} no_uffds[] = {
	{ "userfaultfd is closed", fd_closed },
	{ "userfaultfd is a device", fd_of_a_file },
	{ "userfaultfd is a memfd", fd_of_a_memfd },
	{ "userfaultfd is a pipe", fd_of_a_pipe },
};

#define NO_UFFDS (sizeof(no_uffds) / sizeof(no_uffds[0]))

static void what_is_no_userfaultfd_is_refused(void **state)
{
	size_t i = (size_t)(uintptr_t)*state;
	struct rig rig = { .image = { .bytes = 1u << 20 } };
	struct infill_session *session = NULL;
	unsigned files;
	int fd;

	rig_prepare(&rig);
	fd = no_uffds[i].open();
	files = open_files();
	assert_int_equal(infill_session_adopt(&session, rig.pool, rig.memory, rig.source, fd, NULL),
			 -EBADF);
	rig_assert_says(infill_error(), "userfaultfd");
	assert_null(session);
	assert_int_equal(open_files(), files);
	close(fd);
	rig_stop(&rig);
}

/* Where userfaultfd is not permitted the message says what to do. */
static void userfaultfd_that_is_not_permitted(void **state)
{
	struct infill_host host = { .size = sizeof(host) };
	int status;
	pid_t pid;

	(void)state;
	rig_need_root("only root can become another user");
	assert_int_equal(infill_host_probe(&host), 0);
	if (host.sysctl == 1)
		rig_skip("vm.unprivileged_userfaultfd permits it to everybody");
	assert_int_equal(access("/dev/userfaultfd", F_OK) || host.device_error, 0);
	pid = fork();
	if (pid == 0) {
		struct rig rig = { .image = { .bytes = 1u << 20 } };
		int err;

		rig_prepare(&rig);
		if (setgid(65534) || setuid(65534))
			_exit(1);
		err = rig_start_prepared(&rig);
		_exit(err != -EPERM			       ? 2 :
		      strstr(infill_error(), "infill doctor") ? 0 :
								3);
	}
	status = fake_wait(pid, 30000);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- state files -------------------------------------------------------------------- */

static void spoil_nothing(int fd)
{
	(void)fd;
}

static void spoil_empty(int fd)
{
	assert_int_equal(ftruncate(fd, 0), 0);
}

static void spoil_short(int fd)
{
	off_t size = lseek(fd, 0, SEEK_END);

	assert_int_equal(ftruncate(fd, size - 4096), 0);
}

static void spoil_long(int fd)
{
	off_t size = lseek(fd, 0, SEEK_END);

	assert_int_equal(ftruncate(fd, size + 4096), 0);
}

static void spoil_magic(int fd)
{
	assert_int_equal(pwrite(fd, "?", 1, 0), 1);
}

static void spoil_layout(int fd)
{
	assert_int_equal(pwrite(fd, "????", 4, 8), 4);
}

static void spoil_all(int fd)
{
	off_t size = lseek(fd, 0, SEEK_END);

	for (off_t at = 0; at < size; at += 8) {
		uint64_t word = fake_mix((uint64_t)at);

		assert_int_equal(pwrite(fd, &word, 8, at), 8);
	}
}

static const struct {
	const char *name;
	void (*spoil)(int fd);
	int error;
} states[] = {
	{ "state is sound", spoil_nothing, 0 },	      { "state is empty", spoil_empty, -EINVAL },
	{ "state is short", spoil_short, -EINVAL },   { "state is long", spoil_long, -EINVAL },
	{ "state has no magic", spoil_magic, -EINVAL },
	{ "state of another layout", spoil_layout, -EINVAL },
	{ "state is noise", spoil_all, -EINVAL },
};

#define STATES (sizeof(states) / sizeof(states[0]))

/* A copy is spoilt: the session's own file is mapped by it. */
static int state_copy(const struct rig *rig)
{
	int from = infill_session_state_fd(rig->session), to = memfd_create("copy", MFD_CLOEXEC);
	off_t size = lseek(from, 0, SEEK_END);
	char *buffer = malloc((size_t)size);

	assert_non_null(buffer);
	assert_int_equal(pread(from, buffer, (size_t)size, 0), size);
	assert_int_equal(write(to, buffer, (size_t)size), size);
	free(buffer);
	return to;
}

static void damaged_state_is_refused(void **state)
{
	size_t i = (size_t)(uintptr_t)*state;
	struct rig rig = { .image = { .bytes = 4u << 20, .seed = 191 }, .adopt = true,
			   .session_options = { .fill = INFILL_FILL_NONE } };
	struct infill_session_options options = { .size = sizeof(options) };
	unsigned files;
	int fd;

	rig_need_userfaultfd();
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 0, 100));
	fd = state_copy(&rig);
	infill_session_stop(rig.session);
	rig.session = NULL;
	states[i].spoil(fd);
	files = open_files();
	assert_int_equal(infill_session_resume(&rig.session, rig.pool, rig.source, rig.vmm->uffd, fd,
					       &options),
			 states[i].error);
	if (states[i].error) {
		rig_assert_says(infill_error(), "state file");
		assert_null(rig.session);
		assert_int_equal(open_files(), files);
	} else {
		rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	}
	close(fd);
	rig_stop(&rig);
}

static void state_of_another_image_is_refused(void **state)
{
	struct rig rig = { .image = { .bytes = 4u << 20, .seed = 192 }, .adopt = true,
			   .session_options = { .fill = INFILL_FILL_NONE } };
	struct fakeimage image = { .bytes = 4u << 20, .seed = 193 };
	struct infill_image *other;
	struct infill_session *session = NULL;
	int fd;

	(void)state;
	rig_need_userfaultfd();
	fakeimage_make(&image);
	assert_int_equal(infill_image_open(&other, image.path, NULL), 0);
	assert_int_equal(rig_start(&rig), 0);
	fd = state_copy(&rig);
	assert_int_equal(infill_session_resume(&session, rig.pool, other, rig.vmm->uffd, fd, NULL),
			 -ESTALE);
	rig_assert_says(infill_error(), "another image");
	assert_null(session);
	close(fd);
	rig_stop(&rig);
	infill_image_close(other);
	fakeimage_remove(&image);
}

static void state_of_other_regions_is_refused(void **state)
{
	struct rig rig = { .image = { .bytes = 4u << 20, .seed = 194 }, .adopt = true,
			   .session_options = { .fill = INFILL_FILL_NONE } };
	struct infill_region region = { .size = sizeof(region) };
	struct infill_session *session = NULL;
	struct infill_memory *memory;
	int fd;

	(void)state;
	rig_need_userfaultfd();
	assert_int_equal(rig_start(&rig), 0);
	fd = state_copy(&rig);
	assert_int_equal(infill_memory_new(&memory), 0);
	region.hva = (uintptr_t)rig.vmm->region[0].hva;
	region.length = 2u << 20;
	assert_int_equal(infill_memory_add(memory, &region), 0);
	assert_int_equal(infill_session_adopt_state(&session, rig.pool, memory, rig.source,
						    rig.vmm->uffd, fd, NULL),
			 -EINVAL);
	rig_assert_says(infill_error(), "other regions");
	assert_null(session);
	infill_memory_free(memory);
	close(fd);
	rig_stop(&rig);
}

static void bad_state_descriptors_are_refused(void **state)
{
	struct rig rig = { .image = { .bytes = 1u << 20, .seed = 195 }, .adopt = true };
	struct infill_session *session = NULL;
	int (*const open_fd[])(void) = { fd_closed, fd_of_a_file, fd_of_a_pipe };

	(void)state;
	rig_need_userfaultfd();
	rig_prepare(&rig);
	for (unsigned i = 0; i < 3; i++) {
		int fd = open_fd[i]();

		assert_true(infill_session_resume(&session, rig.pool, rig.source, rig.vmm->uffd, fd,
						  NULL) < 0);
		rig_assert_says(infill_error(), "state file");
		assert_null(session);
		close(fd);
	}
	rig_stop(&rig);
}

/* A session on a userfaultfd has no vCPUs, and sees by itself what is given up. */
static void what_is_of_start_vm_is_refused(void **state)
{
	struct rig rig = { .image = { .bytes = 1u << 20 } };
	struct infill_vcpu *vcpu;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_fill(rig.session, 0, FAKE_PAGE), -EINVAL);
	rig_assert_says(infill_error(), "infill_session_start_vm()");
	assert_int_equal(infill_session_discard(rig.session, 0, FAKE_PAGE), -EINVAL);
	rig_assert_says(infill_error(), "infill_session_start_vm()");
	assert_int_equal(infill_vcpu_new(&vcpu, rig.session, 0), -EINVAL);
	rig_assert_says(infill_error(), "infill_session_start_vm()");
	rig_stop(&rig);
}

int main(void)
{
	static struct CMUnitTest tests[REFUSED + NO_UFFDS + STATES + 8];
	const struct CMUnitTest more[] = {
		cmocka_unit_test(longer_struct_is_taken_only_if_its_rest_is_zero),
		cmocka_unit_test(no_options_are_the_defaults),
		cmocka_unit_test(userfaultfd_that_is_not_permitted),
		cmocka_unit_test(state_of_another_image_is_refused),
		cmocka_unit_test(state_of_other_regions_is_refused),
		cmocka_unit_test(bad_state_descriptors_are_refused),
		cmocka_unit_test(what_is_of_start_vm_is_refused),
	};
	size_t count = 0;

	for (size_t i = 0; i < REFUSED; i++)
		tests[count++] = (struct CMUnitTest){ refused[i].name, option_is_refused, NULL, NULL,
						      (void *)(uintptr_t)i };
	for (size_t i = 0; i < NO_UFFDS; i++)
		tests[count++] = (struct CMUnitTest){ no_uffds[i].name,
						      what_is_no_userfaultfd_is_refused, NULL, NULL,
						      (void *)(uintptr_t)i };
	for (size_t i = 0; i < STATES; i++)
		tests[count++] = (struct CMUnitTest){ states[i].name, damaged_state_is_refused, NULL,
						      NULL, (void *)(uintptr_t)i };
	memcpy(&tests[count], more, sizeof(more));
	count += sizeof(more) / sizeof(more[0]);
	return _cmocka_run_group_tests("bad-input/session_options", tests, count, NULL, NULL);
}
