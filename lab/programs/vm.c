// SPDX-License-Identifier: MIT
/*
 * Runs a Linux guest in infill-vmm, through pipes, and prints TAP: the guest fills a
 * store and checks it (guest/init.c), is snapshotted, restored by every engine with
 * every kind of memory, and each time checks its data, works on it, sees its clock go
 * on, and powers off.
 *
 *	vm [-c CPUS] [-r RUNS]
 *		CPUS vCPUs: 1 and 4 when it is not said.  RUNS: only restores whose number
 *		(the order of `restores`) is in this list of hexadecimal digits
 *
 * To have another restore tried add a line to `restores`.
 */
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

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

static unsigned int tests, failed;

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

/* ---- tests -------------------------------------------------------------------------------- */

/* What the guest answers before it is saved must be what it answers after. */
struct answers {
	uint64_t all, work;
};

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

/* It says what it has done while its vCPUs are in KVM_RUN, where an idle guest stays. */
static bool says_stat(void)
{
	char *words[] = { VMM, "stat", "--control", CONTROL, NULL };
	struct guest client;
	bool good;

	start(&client, words);
	good = read_line(&client, now() + 30) && strstr(client.line, "\"pf_taken\": ") &&
	       strstr(client.line, "\"demand_pages\": ");
	return finish(&client) == 0 && good;
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
	good = ask_sum(&guest, "go\n", "work 2 ok ", &found.work);
	ok(good && says_stat(), "%s CPUs: again: it says what it has done", cpus);
	good = good && take_snapshot(&guest, "2");
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
	bool good = boot(&guest, cpus, backing, "");

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
		test_all("4", "guest-memfd", runs);
	}
	printf("1..%u\n", tests);
	return failed != 0;
}
