// SPDX-License-Identifier: MIT
/*
 * fakeserver.c: a pager daemon in a process of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fakeserver.h"
#include "fakevmm.h"

#define STAT_MS 5000

static void log_line(int level, const char *line, void *arg)
{
	int fd = *(int *)arg;

	dprintf(fd, "%d %s\n", level, line);
}

static void server_main(const struct fakeserver *server,
			const struct infill_server_options *given, int stop, int ready)
{
	struct infill_server_options options = *given;
	int fd = open(server->log, O_CREAT | O_TRUNC | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
	int err;

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	alarm(0);
	options.size = sizeof(options);
	options.socket = server->socket;
	options.stop_fd = stop;
	options.ready_fd = ready;
	options.log = log_line;
	options.log_arg = &fd;
	err = infill_server_run(&options);
	if (err)
		dprintf(fd, "end: %s: %s\n", strerror(-err), infill_error());
	_exit(err ? 1 : 0);
}

void fakeserver_start(struct fakeserver *server, const struct infill_server_options *options)
{
	static unsigned number;
	struct pollfd listens = { .events = POLLIN };
	int stop[2], ready[2];
	char byte;

	snprintf(server->socket, sizeof(server->socket), "%s/pager-%u", fake_dir(), number);
	snprintf(server->log, sizeof(server->log), "%s/pager-%u.log", fake_dir(), number++);
	if (pipe2(stop, O_CLOEXEC) || pipe2(ready, O_CLOEXEC))
		fake_die("pipe of the server");
	fflush(NULL);
	server->supervisor = fork();
	if (server->supervisor == 0) {
		close(stop[1]);
		close(ready[0]);
		server_main(server, options, stop[0], ready[1]);
	}
	close(stop[0]);
	close(ready[1]);
	server->stop_fd = stop[1];
	listens.fd = ready[0];
	errno = ETIMEDOUT;
	if (poll(&listens, 1, 10000) != 1 || read(ready[0], &byte, 1) != 1)
		fake_die("the server does not listen");
	close(ready[0]);
}

int fakeserver_stop(struct fakeserver *server)
{
	int status;

	close(server->stop_fd);
	status = fake_wait(server->supervisor, 10000);
	if (status == -ETIMEDOUT) {
		kill(server->supervisor, SIGKILL);
		waitpid(server->supervisor, NULL, 0);
	}
	return status;
}

/* ---- what it says ---- */

static json_t *stat_load(const struct fakeserver *server)
{
	char *text = NULL;
	json_t *root;

	if (infill_server_stat(server->socket, false, STAT_MS, &text))
		return NULL;
	root = json_loads(text, 0, NULL);
	free(text);
	return root;
}

static uint64_t number_of(const json_t *object, const char *name)
{
	const json_t *value = json_object_get(object, name);

	return json_is_integer(value) ? (uint64_t)json_integer_value(value) : UINT64_MAX;
}

uint64_t fakeserver_number(const struct fakeserver *server, const char *name)
{
	json_t *root = stat_load(server);
	uint64_t value = number_of(root, name);

	json_decref(root);
	return value;
}

pid_t fakeserver_worker(const struct fakeserver *server)
{
	uint64_t pid = fakeserver_number(server, "worker_pid");

	return pid == UINT64_MAX ? 0 : (pid_t)pid;
}

uint64_t fakeserver_sum(const struct fakeserver *server, const char *counter, unsigned *count)
{
	json_t *root = stat_load(server), *vms = json_object_get(root, "vms"), *vm;
	uint64_t sum = 0;
	size_t i;

	json_array_foreach(vms, i, vm)
		sum += number_of(vm, counter);
	if (count)
		*count = (unsigned)json_array_size(vms);
	json_decref(root);
	return sum;
}

bool fakeserver_vm(const struct fakeserver *server, pid_t pid, const char *field, uint64_t *number,
		   char *text, size_t size)
{
	json_t *root = stat_load(server), *vms = json_object_get(root, "vms"), *vm;
	bool found = false;
	size_t i;

	json_array_foreach(vms, i, vm) {
		const char *string = json_string_value(json_object_get(vm, field));

		if (number_of(vm, "pid") != (uint64_t)pid)
			continue;
		found = true;
		if (number)
			*number = number_of(vm, field);
		if (text)
			snprintf(text, size, "%s", string ? string : "");
	}
	json_decref(root);
	return found;
}

pid_t fakeserver_worker_wait(const struct fakeserver *server, pid_t not, unsigned timeout_ms)
{
	uint64_t end = fake_now_ns() + timeout_ms * 1000000ull;

	do {
		pid_t pid = fakeserver_worker(server);

		if (pid > 0 && pid != not)
			return pid;
		fake_sleep_ms(1);
	} while (fake_now_ns() < end);
	return 0;
}

bool fakeserver_kill_worker(const struct fakeserver *server, pid_t worker)
{
	if (kill(worker, SIGKILL))
		fake_die("kill the worker");
	if (fakeserver_worker_wait(server, worker, 20000))
		return true;
	fakeserver_tail(server, 20);
	return false;
}

unsigned fakeserver_kills(unsigned otherwise)
{
	const char *text = getenv("INFILL_CRASH_KILLS");
	unsigned kills = text ? (unsigned)strtoul(text, NULL, 10) : 0;

	return kills ? kills : otherwise;
}

void fakeserver_tail(const struct fakeserver *server, unsigned lines)
{
	char command[240];

	snprintf(command, sizeof(command), "tail -n %u '%s' >&2", lines, server->log);
	if (system(command))
		fprintf(stderr, "no log of the server\n");
}
