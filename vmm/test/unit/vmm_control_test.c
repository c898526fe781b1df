/* SPDX-License-Identifier: MIT */
/*
 * vmm_control_test.c: what the control socket's path may be taken by.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sys/socket.h>

#include "control.h"
#include "error.h"
#include "scratch.h"

static bool connects(const char *path)
{
	return control_stat(path) != -ECONNREFUSED;
}

static void one_that_was_left_is_taken_over(void **arg)
{
	const char *path = scratch("left");
	int fd = control_listen(path);

	(void)arg;
	assert_true(fd >= 0);
	close(fd); /* as of a process that was killed */
	assert_int_equal(access(path, F_OK), 0);
	assert_false(connects(path));
	fd = control_listen(path);
	assert_true(fd >= 0);
	control_close(fd, path);
	assert_int_equal(access(path, F_OK), -1);
}

static void one_that_is_used_is_refused(void **arg)
{
	const char *path = scratch("used");
	int fd = control_listen(path);
	struct stat before, after;

	(void)arg;
	assert_true(fd >= 0);
	assert_int_equal(stat(path, &before), 0);
	/* Also when connections wait that nobody has accepted, until no more can. */
	for (int i = 0; i < 8; i++) {
		assert_int_equal(control_listen(path), -EADDRINUSE);
		assert_non_null(strstr(vmm_error_text(), "another process listens there"));
	}
	assert_int_equal(stat(path, &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	control_close(fd, path);
}

static void what_is_no_socket_is_refused(void **arg)
{
	const char *path = scratch_file("file", "text", 4);

	(void)arg;
	assert_int_equal(control_listen(path), -EADDRINUSE);
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(symlink("file", scratch("link")), 0);
	assert_int_equal(control_listen(scratch("link")), -EADDRINUSE);
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(control_listen(scratch("no/folder")), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_that_was_left_is_taken_over),
		cmocka_unit_test(one_that_is_used_is_refused),
		cmocka_unit_test(what_is_no_socket_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
