/* SPDX-License-Identifier: MIT */
/*
 * timeline_test.c: the log of installs: its lines, sharing, failing disks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "scratch.h"
#include "timeline.h"

static int open_log(const char *name)
{
	int fd = open(scratch(name), O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	return fd;
}

static struct timeline *new_log(int fd)
{
	struct timeline *t;

	assert_int_equal(timeline_new(&t, fd), 0);
	return t;
}

static const char *text_of(int fd)
{
	static char text[4096];
	ssize_t length = pread(fd, text, sizeof(text) - 1, 0);

	assert_true(length >= 0);
	text[length] = 0;
	return text;
}

static void each_install_is_a_line(void **state)
{
	int fd = open_log("lines");
	struct timeline *t = new_log(fd);

	(void)state;
	timeline_mark(t, 1, "start");
	timeline_install(t, 20, 0, 4096, TIMELINE_DEMAND);
	timeline_install(t, 21, 8192, 65536, TIMELINE_TRACE);
	timeline_install(t, 22, 1ull << 40, 2097152, TIMELINE_REST);
	timeline_install(t, 0, 12288, 4096, TIMELINE_ZERO);
	timeline_install(t, UINT64_MAX, UINT64_MAX, UINT64_MAX, TIMELINE_POISON);
	timeline_mark(t, 30, "trace-done");
	timeline_free(t);
	assert_string_equal(text_of(fd), "1 - - start\n"
					 "20 0 4096 demand\n"
					 "21 8192 65536 trace\n"
					 "22 1099511627776 2097152 rest\n"
					 "0 12288 4096 zero\n"
					 "18446744073709551615 18446744073709551615 "
					 "18446744073709551615 poison\n"
					 "30 - - trace-done\n");
	close(fd);
}

static void lines_wait_for_a_flush(void **state)
{
	int fd = open_log("flush");
	struct timeline *t = new_log(fd);

	(void)state;
	timeline_mark(t, 1, "a");
	assert_string_equal(text_of(fd), "");
	timeline_flush(t);
	assert_string_equal(text_of(fd), "1 - - a\n");
	timeline_flush(t);
	assert_string_equal(text_of(fd), "1 - - a\n");
	timeline_free(t);
	close(fd);
}

static void the_descriptor_is_duplicated(void **state)
{
	int fd = open_log("dup"), again;
	struct timeline *t = new_log(fd);
	unsigned fds;

	(void)state;
	fds = scratch_fds();
	close(fd);
	timeline_mark(t, 1, "a");
	timeline_free(t);
	assert_int_equal(scratch_fds(), fds - 2);
	again = open(scratch("dup"), O_RDONLY | O_CLOEXEC);
	assert_string_equal(text_of(again), "1 - - a\n");
	close(again);
}

static void an_overlong_mark_is_cut(void **state)
{
	int fd = open_log("long");
	struct timeline *t = new_log(fd);
	char mark[5000];

	(void)state;
	memset(mark, 'm', sizeof(mark) - 1);
	mark[sizeof(mark) - 1] = 0;
	timeline_mark(t, 5, mark);
	timeline_free(t);
	assert_string_equal(text_of(fd), "5 - - mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm\n");
	close(fd);
}

static void no_timeline_is_no_error(void **state)
{
	(void)state;
	timeline_install(NULL, 1, 2, 3, TIMELINE_REST);
	timeline_mark(NULL, 1, "a");
	timeline_flush(NULL);
	timeline_free(NULL);
}

static void only_files_are_taken(void **state)
{
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC), ends[2];
	struct timeline *t;

	(void)state;
	assert_int_equal(pipe(ends), 0);
	assert_int_equal(timeline_new(&t, ends[1]), -EINVAL);
	assert_int_equal(timeline_new(&t, null), -EINVAL);
	assert_int_equal(timeline_new(&t, -1), -EBADF);
	assert_null(t);
	close(ends[0]);
	close(ends[1]);
	close(null);
}

#define LINES 100000u

static pthread_barrier_t start;

static void *log_many(void *arg)
{
	struct timeline *t = arg;

	pthread_barrier_wait(&start);
	for (unsigned i = 0; i < LINES; i++)
		timeline_install(t, i, 123456789012, 4096, TIMELINE_DEMAND);
	return NULL;
}

/* Two timelines with a file between them, and two threads in one of them. */
static void shared_files_hold_whole_lines(void **state)
{
	int fd = open_log("shared");
	struct timeline *log[2] = { new_log(fd), new_log(fd) };
	pthread_t thread[3];
	unsigned lines = 0;
	char line[256];
	FILE *file;

	(void)state;
	pthread_barrier_init(&start, NULL, 3);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, log_many, log[i / 2]), 0);
	for (size_t i = 0; i < 3; i++)
		pthread_join(thread[i], NULL);
	pthread_barrier_destroy(&start);
	timeline_free(log[0]);
	timeline_free(log[1]);
	file = fdopen(fd, "r");
	rewind(file);
	for (; fgets(line, sizeof(line), file); lines++) {
		char *rest;

		assert_true(strtoul(line, &rest, 10) < LINES);
		assert_string_equal(rest, " 123456789012 4096 demand\n");
	}
	assert_int_equal(lines, 3 * LINES);
	fclose(file);
}

/* In a child, because the limit stays: the log ends where the disk does, and nothing else. */
static int log_on_a_full_disk(int fd)
{
	const struct rlimit limit = { 100000, 100000 };
	struct timeline *t;
	struct stat st;

	pthread_barrier_init(&start, NULL, 1);
	signal(SIGXFSZ, SIG_IGN);
	if (setrlimit(RLIMIT_FSIZE, &limit) || timeline_new(&t, fd))
		return 1;
	log_many(t);
	timeline_mark(t, 1, "end");
	timeline_flush(t);
	if (ftruncate(fd, 0))
		return 2;
	timeline_mark(t, 1, "later");
	timeline_free(t);
	return fstat(fd, &st) || st.st_size ? 3 : 0;
}

static void a_full_disk_ends_the_log(void **state)
{
	int fd = open_log("full"), status;
	pid_t child = fork();

	(void)state;
	if (!child)
		_exit(log_on_a_full_disk(fd));
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_install_is_a_line),
		cmocka_unit_test(lines_wait_for_a_flush),
		cmocka_unit_test(the_descriptor_is_duplicated),
		cmocka_unit_test(an_overlong_mark_is_cut),
		cmocka_unit_test(no_timeline_is_no_error),
		cmocka_unit_test(only_files_are_taken),
		cmocka_unit_test(shared_files_hold_whole_lines),
		cmocka_unit_test(a_full_disk_ends_the_log),
	};

	return cmocka_run_group_tests_name("timeline", tests, NULL, NULL);
}
