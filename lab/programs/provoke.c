// SPDX-License-Identifier: MIT
/*
 * Does what a case must not do, one thing by its name, so that a test can see that it is noticed.
 * To have another thing noticed add a function and a line to main's table.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

static int log_text(const char *text)
{
	int fd = open("/dev/kmsg", O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0) {
		perror("/dev/kmsg");
		return 1;
	}
	close(fd);
	return 0;
}

static int do_ok(void)
{
	puts("fine");
	return 0;
}

static int do_warn(void)
{
	return log_text("<4>WARNING: provoked\n");
}

/* As a WARN does whose text was lost. */
static int do_taint(void)
{
	FILE *file = fopen("/proc/sys/kernel/tainted", "w");

	return !file || fputs("512", file) < 0 || fclose(file);
}

static int do_exit(void)
{
	puts("last words");
	return 3;
}

static int do_signal(void)
{
	return raise(SIGKILL);
}

static int do_tap(void)
{
	puts("TAP version 13\n1..2\nok 1 - one\nnot ok 2 - two");
	return 0;
}

static int do_short(void)
{
	puts("TAP version 13\n1..2\nok 1 - one");
	return 0;
}

static int do_hang(void)
{
	puts("about to hang");
	fflush(stdout);
	/* With a child that ignores what can be ignored. */
	if (fork() == 0)
		signal(SIGTERM, SIG_IGN);
	return pause();
}

static int do_flood(void)
{
	while (puts("more, and more, and more, and more, and more, and more, and more") >= 0)
		;
	return 1;
}

/* The machine goes away in the middle of a case. */
static int do_vanish(void)
{
	return reboot(RB_POWER_OFF);
}

static int do_skip(void)
{
	puts("1..0 # SKIP provoked");
	return 4;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} table[] = {
		{ "ok", do_ok }, { "warn", do_warn }, { "taint", do_taint }, { "exit", do_exit },
		{ "signal", do_signal }, { "tap", do_tap }, { "short", do_short }, { "hang", do_hang },
		{ "flood", do_flood }, { "vanish", do_vanish }, { "skip", do_skip },
	};

	for (unsigned int i = 0; argc == 2 && i < sizeof(table) / sizeof(table[0]); i++)
		if (!strcmp(argv[1], table[i].name))
			return table[i].run();
	fprintf(stderr, "usage: provoke THING\n");
	return 2;
}
