// SPDX-License-Identifier: MIT
/*
 * Runs a Linux guest in infill-vmm, through pipes, and prints TAP: the guest fills a
 * store and checks it (guest/init.c), is snapshotted, restored by every engine with
 * every kind of memory, and each time checks its data, works on it, sees its clock go
 * on, and powers off.
 *
 *	vm [-c CPUS] [-r RUNS]
 *		CPUS vCPUs: 1 and 2 when it is not said.  RUNS: only restores whose number
 *		(the order of `restores`) is in this list of hexadecimal digits
 *
 * To have another restore tried add a line to `restores`.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define VMM "/files/infill-vmm"
#define CONTROL "/tmp/control"
#define MEMORY "/tmp/memory"
#define STATE "/tmp/state"
#define TRACE "/tmp/trace"
/* Of a guest in an emulated machine; a whole boot must fit. */
#define WAIT_SECONDS 240
#define WORDS_MAX 24

/* What is restored; NULL ends the words. */
static const struct {
	const char *name;
	const char *words[8];
} restores[] = {
	{ "eager, memfd", { "--engine", "eager", NULL } },
	{ "eager, guest-memfd", { "--engine", "eager", "--backing", "guest-memfd", NULL } },
	{ "mmap", { "--engine", "mmap", NULL } },
	{ "uffd, memfd, recording", { "--engine", "uffd", "--record", TRACE, NULL } },
	{ "uffd, memfd, by the trace", { "--engine", "uffd", "--trace", TRACE, NULL } },
	{ "eager, hugetlb", { "--engine", "eager", "--backing", "hugetlb", NULL } },
	{ "uffd, hugetlb", { "--engine", "uffd", "--backing", "hugetlb", NULL } },
	{ "userfault, memfd", { "--engine", "userfault", NULL } },
	{ "userfault, guest-memfd",
	  { "--engine", "userfault", "--backing", "guest-memfd", NULL } },
	{ "userfault, guest-memfd, by the trace, prefaulted",
	  { "--engine", "userfault", "--backing", "guest-memfd", "--trace", TRACE, "--prefault",
	    NULL } },
	{ "userfault, hugetlb", { "--engine", "userfault", "--backing", "hugetlb", NULL } },
	{ "eager, guest-memfd, prefaulted",
	  { "--engine", "eager", "--backing", "guest-memfd", "--prefault", NULL } },
};

/* A VMM that runs, and its console. */
struct guest {
	pid_t pid;
	int in, out;
	char line[512];
	size_t used;
	double started;
};

static unsigned int tests, failed;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

__attribute__((format(printf, 2, 3)))
static bool ok(bool good, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("%sok %u - ", good ? "" : "not ", ++tests);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	failed += !good;
	return good;
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

static void start(struct guest *guest, char **words)
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

/* The status that it ended with; -1 when it had to be killed. */
static int finish(struct guest *guest)
{
	double deadline = now() + WAIT_SECONDS;
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
	return got > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
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

/* Read a line without its end into guest->line. */
static bool read_line(struct guest *guest, double deadline)
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
	return true;
}

/* Wait for a line that begins with @begin; it is in guest->line.  What else is said is a comment. */
static bool expect(struct guest *guest, const char *begin)
{
	double deadline = now() + WAIT_SECONDS;

	while (read_line(guest, deadline)) {
		printf("# %.3f console: %s\n", now() - guest->started, guest->line);
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

static bool ask(struct guest *guest, const char *question, const char *begin)
{
	return write(guest->in, question, strlen(question)) == (ssize_t)strlen(question) &&
	       expect(guest, begin);
}

/* The store's sum and what the guest's clock says of the time that it took. */
static bool ask_sum(struct guest *guest, const char *question, const char *begin, uint64_t *sum)
{
	unsigned long long value, nanoseconds;

	if (!ask(guest, question, begin) ||
	    sscanf(guest->line + strlen(begin), "%llx %llu", &value, &nanoseconds) != 2)
		return false;
	*sum = value;
	/* A clock that stands still or jumps is wrong. */
	return nanoseconds > 1000 && nanoseconds < WAIT_SECONDS * 1000000000ull;
}

/* ---- tests -------------------------------------------------------------------------------- */

/* The end of input is what powers it off: init.c finds no line. */
static bool power_off(struct guest *guest)
{
	if (!ask(guest, "\x04", ""))
		return false;
	return finish(guest) == 0;
}

/* Save the guest, which ends it, to files with @suffix. */
static bool take_snapshot(struct guest *guest, const char *suffix)
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

static bool boot(struct guest *guest, const char *cpus, const char *backing)
{
	char *words[] = { VMM, "run", "--kernel", "/files/vmlinuz", "--initrd", "/files/initrd",
			  "--append", "console=ttyS0 panic=-1", "--memory", "256M", "--cpus",
			  (char *)cpus, "--backing", (char *)backing, "--control", CONTROL, NULL };

	start(guest, words);
	return expect(guest, "filled ");
}

/* What the guest answers before it is saved must be what it answers after. */
struct answers {
	uint64_t all, work;
};

static void kill_guest(struct guest *guest)
{
	kill(guest->pid, SIGKILL);
	finish(guest);
}

static void test_restore(unsigned int i, const char *cpus, const struct answers *expected)
{
	char *words[WORDS_MAX] = { VMM, "restore", "--memory", MEMORY, "--state", STATE };
	struct answers found = { 0 };
	struct guest guest;
	bool good;

	for (unsigned int n = 0; restores[i].words[n]; n++)
		words[6 + n] = (char *)restores[i].words[n];
	start(&guest, words);
	good = ask_sum(&guest, "check\n", "all ok ", &found.all) && found.all == expected->all;
	good = ok(good, "%s CPUs: %s: the data is what it was", cpus, restores[i].name);
	if (!good)
		return kill_guest(&guest);
	good = ask_sum(&guest, "go\n", "work 2 ok ", &found.work);
	ok(good, "%s CPUs: %s: it works on", cpus, restores[i].name);
	ok(power_off(&guest), "%s CPUs: %s: power-off", cpus, restores[i].name);
}

/* A guest that was restored, and is not all there yet, is saved as any other. */
static void test_again(const char *cpus, const struct answers *expected)
{
	char *first[] = { VMM, "restore", "--memory", MEMORY, "--state", STATE, "--engine", "uffd",
			  "--control", CONTROL, NULL };
	char *second[] = { VMM, "restore", "--memory", MEMORY "2", "--state", STATE "2", "--engine",
			   "eager", NULL };
	struct answers found = { 0 };
	struct guest guest;
	bool good;

	start(&guest, first);
	good = ask_sum(&guest, "go\n", "work 2 ok ", &found.work) && take_snapshot(&guest, "2");
	if (!ok(good, "%s CPUs: again: snapshot of a restored guest", cpus))
		return kill_guest(&guest);
	start(&guest, second);
	good = ask_sum(&guest, "go\n", "work 3 ok ", &found.work) &&
	       ask_sum(&guest, "check\n", "all ok ", &found.all) && found.all != expected->all;
	if (!ok(good, "%s CPUs: again: the data is what it was, and what was written since", cpus))
		return kill_guest(&guest);
	ok(power_off(&guest), "%s CPUs: again: power-off", cpus);
	unlink(MEMORY "2");
	unlink(STATE "2");
}

static void test_all(const char *cpus, const char *backing, const char *runs)
{
	struct answers answers = { 0 };
	struct guest guest;
	bool good = boot(&guest, cpus, backing);

	good = good && ask_sum(&guest, "go\n", "work 1 ok ", &answers.work) &&
	       ask_sum(&guest, "check\n", "all ok ", &answers.all);
	if (!ok(good, "%s CPUs, %s: boots, fills, checks", cpus, backing))
		return kill_guest(&guest);
	if (!ok(take_snapshot(&guest, ""), "%s CPUs, %s: snapshot", cpus, backing))
		return;
	for (unsigned int i = 0; i < sizeof(restores) / sizeof(restores[0]); i++)
		if (!runs || strchr(runs, "0123456789abcdef"[i]))
			test_restore(i, cpus, &answers);
	test_again(cpus, &answers);
}

int main(int argc, char **argv)
{
	const char *cpus = NULL, *runs = NULL;
	int option;

	while ((option = getopt(argc, argv, "c:r:")) != -1) {
		if (option == 'c')
			cpus = optarg;
		else if (option == 'r')
			runs = optarg;
		else
			return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	printf("TAP version 13\n");
	if (cpus) {
		test_all(cpus, "memfd", runs);
	} else {
		test_all("1", "memfd", runs);
		test_all("2", "guest-memfd", runs);
	}
	printf("1..%u\n", tests);
	return failed != 0;
}
