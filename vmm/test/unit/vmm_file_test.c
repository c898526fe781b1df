/* SPDX-License-Identifier: MIT */
/*
 * vmm_file_test.c: what a kernel, an initrd or a memory file may be.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>

#include "error.h"
#include "memory.h"
#include "scratch.h"

static void only_a_regular_file_is_opened(void **arg)
{
	uint64_t bytes = 0;
	int fd;

	(void)arg;
	fd = file_open(scratch_file("good", "12345", 5), &bytes);
	assert_true(fd >= 0);
	assert_int_equal(bytes, 5);
	assert_int_equal(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
	close(fd);
	/* Nobody writes to it: who waits for that waits for ever. */
	assert_int_equal(mkfifo(scratch("fifo"), 0600), 0);
	assert_int_equal(file_open(scratch("fifo"), &bytes), -EINVAL);
	assert_non_null(strstr(vmm_error_text(), "fifo: not a regular file"));
	assert_int_equal(mkdir(scratch("folder"), 0700), 0);
	assert_int_equal(file_open(scratch("folder"), &bytes), -EINVAL);
	assert_int_equal(file_open("/dev/null", &bytes), -EINVAL);
	assert_int_equal(file_open(scratch("none"), &bytes), -ENOENT);
}

static void a_memory_file_has_the_size_of_memory(void **arg)
{
	const char *path = scratch_file("memory", "12345", 5);
	int fd = memory_open(path, 5);

	(void)arg;
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(memory_open(path, 6), -EINVAL);
	assert_non_null(strstr(vmm_error_text(), "not the memory file of the state"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_a_regular_file_is_opened),
		cmocka_unit_test(a_memory_file_has_the_size_of_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
