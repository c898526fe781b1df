// SPDX-License-Identifier: MIT
/*
 * Measures how a Linux guest is restored in infill-vmm: it is booted, fills its store
 * (guest/init.c), and is saved; one restore records what it touches first.  Then it is
 * restored in each way in turn, answers a request, which touches a quarter of its store
 * at random, and checks all of it in order.  What it answers must be what it answered
 * before it was saved.  bench/vm runs this and reads what it prints:
 *
 *	run WAY started NS run NS work NS again NS checked NS
 *		CLOCK_MONOTONIC when the VMM was started, before its first KVM_RUN, at the
 *		answer, when it was told to check, and when it had checked
 *	stat WAY work|checked JSON	what infill-vmm stat said then
 *
 *	vm_perf [-r ROUNDS] [-w WAY,...]
 *
 * To measure another way add a line to `ways`, and one to bench/vm's WAYS.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

#define WORDS_MAX 24
/*
 * With asynchronous page faults an x86 guest halts until an interrupt says that a page is there.
 * QEMU's SVM delivers that late, it seems with the next tick of the guest's clock, so that a page
 * by userfaultfd takes milliseconds: see bench/README.md.
 */
#define APPEND "no-kvmapf"
#define STAT_SECONDS 60

/* How it is restored; NULL ends the words.  Nothing is filled that was not asked for. */
static const struct way {
	const char *name;
	const char *words[12];
} ways[] = {
	{ "eager-memfd", { "--engine", "eager", NULL } },
	{ "eager-memfd-prefault", { "--engine", "eager", "--prefault", NULL } },
	{ "eager-guest_memfd", { "--engine", "eager", "--backing", "guest-memfd", NULL } },
	{ "eager-guest_memfd-prefault",
	  { "--engine", "eager", "--backing", "guest-memfd", "--prefault", NULL } },
	{ "mmap-memfd", { "--engine", "mmap", NULL } },
	{ "uffd-memfd", { "--engine", "uffd", "--fill", "none", NULL } },
	{ "uffd-memfd-trace",
	  { "--engine", "uffd", "--fill", "trace", "--trace", TRACE, NULL } },
	{ "userfault-memfd", { "--engine", "userfault", "--fill", "none", NULL } },
	{ "userfault-memfd-trace",
	  { "--engine", "userfault", "--fill", "trace", "--trace", TRACE, NULL } },
	{ "userfault-memfd-trace-prefault",
	  { "--engine", "userfault", "--fill", "trace", "--trace", TRACE, "--prefault", NULL } },
	{ "userfault-guest_memfd",
	  { "--engine", "userfault", "--backing", "guest-memfd", "--fill", "none", NULL } },
	{ "userfault-guest_memfd-trace",
	  { "--engine", "userfault", "--backing", "guest-memfd", "--fill", "trace", "--trace",
	    TRACE, NULL } },
	{ "userfault-guest_memfd-trace-prefault",
	  { "--engine", "userfault", "--backing", "guest-memfd", "--fill", "trace", "--trace",
	    TRACE, "--prefault", NULL } },
};

/* What the guest answers when it was not saved. */
static uint64_t work_sum, all_sum;

static unsigned long long nanoseconds(double seconds)
{
	return (unsigned long long)(seconds * 1e9);
}

/* Print what the VMM says of itself, and have in *run when its vCPUs started. */
static bool print_stat(const char *way, const char *when, unsigned long long *run)
{
	char *words[] = { VMM, "stat", "--control", CONTROL, NULL };
	const char *found;
	struct guest client;
	bool good;

	start(&client, words);
	good = read_line(&client, now() + STAT_SECONDS);
	if (good)
		printf("stat %s %s %s\n", way, when, client.line);
	found = strstr(client.line, "\"run_ns\": ");
	fflush(stdout);
	good = good && found && sscanf(found, "\"run_ns\": %llu", run) == 1;
	return finish(&client) == 0 && good;
}

static bool measure(const struct way *way)
{
	char *words[WORDS_MAX] = { VMM, "restore", "--memory", MEMORY, "--state", STATE, "--control",
				   CONTROL };
	unsigned long long run = 0;
	double work, again;
	uint64_t sum = 0;
	struct guest guest;
	bool good;

	for (unsigned int n = 0; way->words[n]; n++)
		words[8 + n] = (char *)way->words[n];
	start(&guest, words);
	good = ask_sum(&guest, "go\n", "work 2 ok ", &sum) && sum == work_sum;
	work = guest.said;
	good = good && print_stat(way->name, "work", &run);
	again = now();
	good = good && ask_sum(&guest, "check\n", "all ok ", &sum) && sum == all_sum &&
	       print_stat(way->name, "checked", &run);
	if (good)
		printf("run %s started %llu run %llu work %llu again %llu checked %llu\n", way->name,
		       nanoseconds(guest.started), run, nanoseconds(work), nanoseconds(again),
		       nanoseconds(guest.said));
	else
		printf("%s: failed\n", way->name);
	fflush(stdout);
	kill_guest(&guest);
	unlink(CONTROL);
	return good;
}

/* One restore that is saved by nobody: the answers, and the trace. */
static bool record(void)
{
	char *words[] = { VMM, "restore", "--memory", MEMORY, "--state", STATE, "--engine", "uffd",
			  "--record", TRACE, NULL };
	struct guest guest;

	start(&guest, words);
	return ask_sum(&guest, "go\n", "work 2 ok ", &work_sum) &&
	       ask_sum(&guest, "check\n", "all ok ", &all_sum) && power_off(&guest);
}

/* Boot and save a guest that has answered one request. */
static bool prepare(void)
{
	static const char *const memory[] = { "--backing", "memfd" };
	struct guest guest;
	uint64_t sum;

	return boot(&guest, "vmlinuz", "1", memory, APPEND) &&
	       ask_sum(&guest, "go\n", "work 1 ok ", &sum) &&
	       take_snapshot(&guest, "") && record();
}

/* Whether WAY is in LIST, names with commas between them; NULL has all. */
static bool wanted(const char *list, const char *way)
{
	size_t length = strlen(way);

	for (const char *at = list; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (!strncmp(at, way, length) && (at[length] == ',' || !at[length]))
			return true;
	}
	return !list;
}

int main(int argc, char **argv)
{
	const char *list = NULL;
	int option, rounds = 3;
	bool good;

	while ((option = getopt(argc, argv, "r:w:")) != -1) {
		if (option == 'r')
			rounds = atoi(optarg);
		else if (option == 'w')
			list = optarg;
		else
			return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	good = prepare();
	for (int round = 0; round < rounds && good; round++)
		for (unsigned int i = 0; i < sizeof(ways) / sizeof(ways[0]) && good; i++)
			good = !wanted(list, ways[i].name) || measure(&ways[i]);
	printf("%s\n", good ? "done" : "failed");
	return !good;
}
