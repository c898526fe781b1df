// SPDX-License-Identifier: MIT
/*
 * example.c: the README's 20-line VMM does what it says, and says what is
 * wrong.  The example is compiled into this program, so that it cannot be
 * forgotten by a build.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rig.h"

int restore_main(int argc, char **argv);

#define main restore_main
#include "../../../examples/restore.c"
#undef main

/* Run the example in a process of its own; its output (both streams) is in TEXT. */
static int run_example(char *argument, char *text, size_t size)
{
	char *argv[] = { (char *)(uintptr_t) "restore", argument, NULL };
	size_t length = 0;
	int fds[2], status;
	ssize_t n;
	pid_t pid;

	fake_deadline("the example", 60);
	assert_int_equal(pipe(fds), 0);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		dup2(fds[1], STDOUT_FILENO);
		dup2(fds[1], STDERR_FILENO);
		status = restore_main(argument ? 2 : 1, argv);
		fflush(NULL);
		_exit(status);
	}
	close(fds[1]);
	while ((n = read(fds[0], text + length, size - 1 - length)) > 0)
		length += (size_t)n;
	text[length] = 0;
	close(fds[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	fake_deadline("", 0);
	return WEXITSTATUS(status);
}

static void guest_sees_all_of_its_memory(void **state)
{
	struct fakeimage image = { .bytes = 8u << 20, .seed = 201, .hole_every = 5 };
	char text[300], expected[100];
	uint64_t sum = 0;

	(void)state;
	rig_need_userfaultfd();
	fakeimage_make(&image);
	for (uint64_t offset = 0; offset < image.bytes; offset += 8)
		sum += fakeimage_word(&image, offset);
	snprintf(expected, sizeof(expected), "8388608 bytes, sum %016llx\n",
		 (unsigned long long)sum);
	assert_int_equal(run_example(image.path, text, sizeof(text)), 0);
	assert_string_equal(text, expected);
	fakeimage_remove(&image);
}

static void wrong_image_is_named(void **state)
{
	char path[] = "/nonexistent/memory-file", text[300];

	(void)state;
	assert_int_equal(run_example(path, text, sizeof(text)), 1);
	assert_string_equal(text, "restore: /nonexistent/memory-file: cannot open the image: "
				  "No such file or directory\n");
}

static void wrong_usage_is_told(void **state)
{
	char text[300];

	(void)state;
	assert_int_equal(run_example(NULL, text, sizeof(text)), 2);
	assert_string_equal(text, "restore: usage: restore MEMORY_FILE [TRACE]\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(guest_sees_all_of_its_memory),
		cmocka_unit_test(wrong_image_is_named),
		cmocka_unit_test(wrong_usage_is_told),
	};

	return _cmocka_run_group_tests("pager/example", tests, sizeof(tests) / sizeof(tests[0]),
				       NULL, NULL);
}
