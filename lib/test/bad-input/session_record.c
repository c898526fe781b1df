// SPDX-License-Identifier: MIT
/*
 * session_record.c: places where a trace cannot be recorded to: the guest is
 * served all the same, and an event says why there is no trace.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rig.h"

#define PATH_SIZE 300

/* Touch enough for a trace of some 8 KiB, close the window, and see the event. */
static void assert_not_recorded(const char *path, int error, const char *says)
{
	struct rig rig = { .image = { .bytes = 32u << 20, .seed = 181 },
			   .session_options = { .fill = INFILL_FILL_NONE, .record = path,
						.record_settle_ns = 200000000 } };
	const struct rig_event *event;

	rig_need_userfaultfd();
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 0, 4000));
	event = rig_events_wait(rig.events, INFILL_EVENT_TRACE_FAILED, 0, 10000);
	assert_non_null(event);
	assert_int_equal(event->error, error);
	rig_assert_says(event->text, path);
	rig_assert_says(event->text, says);
	assert_int_equal(rig_events_count(rig.events, INFILL_EVENT_RECORDED), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RECORDED, 5000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(infill_session_error(rig.session, NULL), 0);
	rig_stop(&rig);
}

static void folder_that_is_missing(void **state)
{
	char path[PATH_SIZE];

	(void)state;
	snprintf(path, sizeof(path), "%s/no/such/folder/trace", fake_dir());
	assert_not_recorded(path, -ENOENT, "cannot write the trace");
}

static void folder_that_is_a_file(void **state)
{
	char path[PATH_SIZE];
	int fd;

	(void)state;
	snprintf(path, sizeof(path), "%s/file", fake_dir());
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	snprintf(path, sizeof(path), "%s/file/trace", fake_dir());
	assert_not_recorded(path, -ENOTDIR, "cannot write the trace");
}

/* A folder of that name: nothing in it is harmed. */
static void name_that_is_a_folder(void **state)
{
	char path[PATH_SIZE];
	struct stat status;

	(void)state;
	snprintf(path, sizeof(path), "%s/folder", fake_dir());
	assert_int_equal(mkdir(path, 0755), 0);
	assert_not_recorded(path, -EISDIR, "cannot write the trace");
	assert_int_equal(stat(path, &status), 0);
	assert_true(S_ISDIR(status.st_mode));
}

static void name_that_is_too_long(void **state)
{
	char path[PATH_SIZE + 300];
	size_t length;

	(void)state;
	length = (size_t)snprintf(path, sizeof(path), "%s/", fake_dir());
	memset(path + length, 'x', 280);
	path[length + 280] = 0;
	assert_not_recorded(path, -ENAMETOOLONG, "cannot write the trace");
}

/*
 * In a mount namespace of this process: a file system of SIZE.  What is
 * mounted ends with the process, and nobody else sees it.
 */
static void mount_small(char *folder, size_t size, const char *options, unsigned long flags)
{
	static bool entered;

	rig_need_root("only root can mount a small file system");
	if (!entered && (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)))
		rig_skip("no mount namespace of its own here");
	entered = true;
	snprintf(folder, size, "%s/mount-%lu-%s", fake_dir(), flags, options);
	assert_int_equal(mkdir(folder, 0755), 0);
	if (mount("infill-test", folder, "tmpfs", flags, options))
		rig_skip("a tmpfs cannot be mounted here");
}

/* The old trace stays whole when the new one does not fit. */
static void full_disk_keeps_the_old_trace(void **state)
{
	char folder[PATH_SIZE], path[PATH_SIZE + 16], command[PATH_SIZE + 64], text[16] = "";
	int fd;

	(void)state;
	mount_small(folder, sizeof(folder), "size=8k", 0);
	snprintf(path, sizeof(path), "%s/trace", folder);
	fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, "an older trace", 14), 14);
	assert_not_recorded(path, -ENOSPC, "No space left on device");
	assert_int_equal(pread(fd, text, 14, 0), 14);
	assert_string_equal(text, "an older trace");
	close(fd);
	snprintf(command, sizeof(command), "test \"$(ls -A '%s')\" = trace", folder);
	assert_int_equal(system(command), 0);
	umount2(folder, MNT_DETACH);
}

/* No half trace is left behind. */
static void full_disk_leaves_nothing(void **state)
{
	char folder[PATH_SIZE], path[PATH_SIZE + 16], command[PATH_SIZE + 64];

	(void)state;
	mount_small(folder, sizeof(folder), "size=4k", 0);
	snprintf(path, sizeof(path), "%s/trace", folder);
	assert_not_recorded(path, -ENOSPC, "No space left on device");
	snprintf(command, sizeof(command), "test -z \"$(ls -A '%s')\"", folder);
	assert_int_equal(system(command), 0);
	umount2(folder, MNT_DETACH);
}

static void read_only_file_system(void **state)
{
	char folder[PATH_SIZE], path[PATH_SIZE + 16];

	(void)state;
	mount_small(folder, sizeof(folder), "size=16k", MS_RDONLY);
	snprintf(path, sizeof(path), "%s/trace", folder);
	assert_not_recorded(path, -EROFS, "Read-only file system");
	umount2(folder, MNT_DETACH);
}

/* As another user, in a process of its own, with a userfaultfd that root made. */
static void no_permission(void **state)
{
	char folder[PATH_SIZE], path[PATH_SIZE + 16];
	int status;
	pid_t pid;

	(void)state;
	rig_need_root("only root can become another user");
	rig_need_userfaultfd();
	snprintf(folder, sizeof(folder), "%s/closed", fake_dir());
	assert_int_equal(mkdir(folder, 0700), 0);
	assert_int_equal(chmod(fake_dir(), 0755), 0);
	snprintf(path, sizeof(path), "%s/trace", folder);
	pid = fork();
	if (pid == 0) {
		struct rig rig = { .image = { .bytes = 1u << 20, .seed = 182 }, .adopt = true,
				   .session_options = { .fill = INFILL_FILL_NONE,
							.record = path } };
		const struct rig_event *event;

		rig_prepare(&rig);
		if (setgid(65534) || setuid(65534) || rig_start_prepared(&rig))
			_exit(1);
		if (fakevmm_verify(rig.vmm))
			_exit(2);
		infill_session_stop(rig.session);
		event = rig_events_wait(rig.events, INFILL_EVENT_TRACE_FAILED, 0, 0);
		_exit(!event ? 3 : event->error != -EACCES ? 4 : !strstr(event->text, path) ? 5 : 0);
	}
	status = fake_wait(pid, 30000);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(folder_that_is_missing),
		cmocka_unit_test(folder_that_is_a_file),
		cmocka_unit_test(name_that_is_a_folder),
		cmocka_unit_test(name_that_is_too_long),
		cmocka_unit_test(full_disk_keeps_the_old_trace),
		cmocka_unit_test(full_disk_leaves_nothing),
		cmocka_unit_test(read_only_file_system),
		cmocka_unit_test(no_permission),
	};

	return _cmocka_run_group_tests("bad-input/session_record", tests,
				       sizeof(tests) / sizeof(tests[0]), NULL, NULL);
}
