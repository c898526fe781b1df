// SPDX-License-Identifier: MIT
/*
 * guest.c: the VMM's process, and the console that is its standard input and output.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

/*
 * One answer may take this share of what the case may: a whole boot in an emulated machine must fit,
 * and what is left must suffice to say which of many restores it was that hung.
 */
#define WAIT_SHARE 8
#define WAIT_SECONDS 240 /* where no lab says what the case may take */

double wait_seconds(void)
{
	const char *limit = getenv("LAB_SECONDS");

	return limit ? atof(limit) / WAIT_SHARE : WAIT_SECONDS;
}

double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- a VMM ------------------------------------------------------------------------------ */

static void run_child(char **words, int in, int out)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(in, 0);
	dup2(out, 1);
	dup2(out, 2);
	execv(words[0], words);
	perror(words[0]);
	_exit(127);
}

void start(struct guest *guest, char **words)
{
	int in[2], out[2];

	memset(guest, 0, sizeof(*guest));
	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) {
		perror("pipe");
		exit(1);
	}
	guest->started = now();
	guest->pid = fork();
	if (guest->pid == 0)
		run_child(words, in[0], out[1]);
	close(in[0]);
	close(out[1]);
	guest->in = in[1];
	guest->out = out[0];
}

int finish(struct guest *guest)
{
	double deadline = now() + wait_seconds();
	char rest[256];
	int status = -1;
	pid_t got;

	/* Its last words, so that it is not stopped by a full pipe. */
	fcntl(guest->out, F_SETFL, O_NONBLOCK);
	while ((got = waitpid(guest->pid, &status, WNOHANG)) == 0 && now() < deadline) {
		ssize_t n = read(guest->out, rest, sizeof(rest) - 1);

		if (n > 0)
			printf("# console: %.*s\n", (int)n, rest);
		usleep(10000);
	}
	if (got == 0) {
		kill(guest->pid, SIGKILL);
		waitpid(guest->pid, NULL, 0);
	}
	close(guest->in);
	close(guest->out);
	if (got <= 0)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ---- its console -------------------------------------------------------------------------- */

/* Read one byte; false at the end, or when time is up. */
static bool read_byte(struct guest *guest, char *byte, double deadline)
{
	struct pollfd fd = { .fd = guest->out, .events = POLLIN };
	double left = deadline - now();

	return left > 0 && poll(&fd, 1, (int)(left * 1000) + 1) > 0 &&
	       read(guest->out, byte, 1) == 1;
}

bool read_line(struct guest *guest, double deadline)
{
	size_t used = 0;
	char byte;

	while (used < sizeof(guest->line) - 1) {
		if (!read_byte(guest, &byte, deadline))
			return false;
		if (byte == '\n')
			break;
		if (byte != '\r')
			guest->line[used++] = byte;
	}
	guest->line[used] = '\0';
	guest->said = now();
	return true;
}

bool expect(struct guest *guest, const char *begin)
{
	double deadline = now() + wait_seconds();

	while (read_line(guest, deadline)) {
		printf("# %.3f console: %s\n", guest->said - guest->started, guest->line);
		fflush(stdout);
		if (!strncmp(guest->line, begin, strlen(begin)))
			return true;
		/* What the VMM complains of, a trace that it ignores for one, is a failure, too. */
		if (!strncmp(guest->line, "BAD", 3) || !strncmp(guest->line, "DEAD", 4) ||
		    !strncmp(guest->line, "infill-vmm: ", 12))
			return false;
	}
	printf("# no line that begins with '%s'\n", begin);
	return false;
}

bool ask(struct guest *guest, const char *question, const char *begin)
{
	return write(guest->in, question, strlen(question)) == (ssize_t)strlen(question) &&
	       expect(guest, begin);
}

bool ask_sum(struct guest *guest, const char *question, const char *begin, uint64_t *sum)
{
	unsigned long long value, nanoseconds;

	if (!ask(guest, question, begin) ||
	    sscanf(guest->line + strlen(begin), "%llx %llu", &value, &nanoseconds) != 2)
		return false;
	*sum = value;
	/* A clock that stands still or jumps is wrong. */
	return nanoseconds > 1000 && (double)nanoseconds < wait_seconds() * 1e9;
}

/* ---- its life --------------------------------------------------------------------------- */

/* The end of input is what powers it off: init.c finds no line. */
bool power_off(struct guest *guest)
{
	if (!ask(guest, "\x04", ""))
		return false;
	return finish(guest) == 0;
}

bool take_snapshot(struct guest *guest, const char *suffix)
{
	char memory[64], state[64];
	char *words[] = { VMM, "snapshot", "--control", CONTROL, "--memory", memory, "--state", state,
			  NULL };
	struct guest client;
	int status;

	snprintf(memory, sizeof(memory), MEMORY "%s", suffix);
	snprintf(state, sizeof(state), STATE "%s", suffix);
	start(&client, words);
	status = finish(&client);
	return status == 0 && finish(guest) == 0;
}

bool boot(struct guest *guest, const char *kernel, const char *cpus,
	  const char *const memory[2], const char *append)
{
	char line[128], path[64];
	char *words[] = { VMM, "run", "--kernel", path, "--initrd", "/files/initrd", "--append", line,
			  "--memory", "256M", "--cpus", (char *)cpus, "--control", CONTROL,
			  (char *)memory[0], (char *)memory[1], NULL };

	snprintf(path, sizeof(path), "/files/%s", kernel);
	snprintf(line, sizeof(line), "console=ttyS0 panic=-1 %s", append);
	start(guest, words);
	return expect(guest, "filled ");
}

void kill_guest(struct guest *guest)
{
	kill(guest->pid, SIGKILL);
	finish(guest);
}
