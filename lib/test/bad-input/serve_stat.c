/* SPDX-License-Identifier: MIT */
/*
 * serve_stat.c: infill_server_stat() and what it says when there is no
 * answer: no socket, nobody behind it, somebody else, silence.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fakeimage.h"
#include "fakeserver.h"
#include "fakevmm.h"
#include "infill.h"

static struct fakeserver server;
static struct fakeimage image = { .bytes = 1 << 20 };

static int start(void **state)
{
	struct infill_server_options options = { .size = sizeof(options) };

	(void)state;
	fake_deadline("serve_stat", 60);
	fakeimage_make(&image);
	options.image = image.path;
	fakeserver_start(&server, &options);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	return fakeserver_stop(&server);
}

static void answers(void **state)
{
	char *text;

	(void)state;
	assert_int_equal(infill_server_stat(server.socket, false, 5000, &text), 0);
	assert_non_null(strstr(text, "\"version\":\"" INFILL_VERSION "\""));
	free(text);
	assert_int_equal(infill_server_stat(server.socket, true, -1, &text), 0);
	assert_int_equal(text[0] && text[0] != '\n' && text[0] != '#', 0); /* no VM yet */
	free(text);
}

static void waits_for_a_new_worker(void **state)
{
	char *text;

	(void)state;
	for (int i = 0; i < 20; i++) {
		kill(fakeserver_worker(&server), SIGKILL);
		assert_int_equal(infill_server_stat(server.socket, false, 5000, &text), 0);
		free(text);
	}
}

static void expect(const char *path, int code, const char *why)
{
	char *text = (char *)1;

	assert_int_equal(infill_server_stat(path, false, 300, &text), code);
	assert_null(text);
	if (!strstr(infill_error(), why))
		fail_msg("says \"%s\", not \"%s\"", infill_error(), why);
}

static void a_worker_that_hangs_is_a_timeout(void **state)
{
	pid_t worker = fakeserver_worker(&server);
	uint64_t begin = fake_now_ns();

	(void)state;
	kill(worker, SIGSTOP);
	expect(server.socket, -ETIMEDOUT, "did not answer in time");
	kill(worker, SIGCONT);
	assert_in_range(fake_now_ns() - begin, 250000000, 20000000000);
}

static void a_path_that_is_wrong(void **state)
{
	(void)state;
	expect("", -EINVAL, "no path");
	expect("/nonexistent", -ENOENT, "/nonexistent: cannot connect");
	expect(image.path, -ECONNREFUSED, "no pager listens there");
}

/* A listener that says WHAT to the first that comes and closes; NULL: is silent. */
static pid_t impostor(const char *path, const char *what)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM, 0), client;
	pid_t pid;

	snprintf(at.sun_path, sizeof(at.sun_path), "%.100s", path);
	unlink(path);
	assert_int_equal(bind(sock, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(sock, 1), 0);
	pid = fork();
	if (pid) {
		close(sock);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed assertion leaves it behind otherwise */
	for (;;) {
		client = accept(sock, NULL, NULL);
		if (!what)
			continue;
		(void)!write(client, what, strlen(what));
		close(client);
	}
}

static void somebody_else_answers(void **state)
{
	static const struct {
		const char *says, *why;
		int code;
	} known[] = {
		{ "hello\n", "is no infill", -EPROTO },
		{ "{\"infill\":\"error\",\"what\":\"go away\"}\n", "refused: go away", -EPROTO },
		{ "", "did not answer in time", -ETIMEDOUT },
		{ "{\"half\":", "did not answer in time", -ETIMEDOUT },
		{ NULL, "did not answer in time", -ETIMEDOUT },
	};
	char path[120];

	(void)state;
	snprintf(path, sizeof(path), "%.80s/impostor", fake_dir());
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
		pid_t pid = impostor(path, known[i].says);

		expect(path, known[i].code, known[i].why);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers),
		cmocka_unit_test(waits_for_a_new_worker),
		cmocka_unit_test(a_worker_that_hangs_is_a_timeout),
		cmocka_unit_test(a_path_that_is_wrong),
		cmocka_unit_test(somebody_else_answers),
	};

	return cmocka_run_group_tests_name("serve_stat", tests, start, stop);
}
