// SPDX-License-Identifier: MIT
/*
 * Runs a Linux guest in infill-vmm, through pipes, and prints TAP: the guest fills a
 * store and checks it (guest/init.c), is snapshotted, restored by every engine with
 * every kind of memory, and each time has its timers fire and its clock go on, checks
 * its data, on all CPUs at once, works on it, and powers off.
 *
 *	vm [-p] [-k KERNEL] [-c CPUS] [-r RUNS]
 *		-p: pKVM's host: it goes on in protected VMs (`protected_restores`), and is booted in one.
 *		KERNEL: of the case's files: vmlinuz when it is not said.  CPUS vCPUs: 1 and 4
 *		when it is not said.  RUNS: only restores whose number (the order of `restores`,
 *		then `served`) is that of a letter in this list: a for the first; v: their image
 *		changes; w: ended by a signal before they run; x: their pager is lost; y and z:
 *		saved once more
 *
 * To have another restore tried add a line to `restores`, or to `served`: these have
 * `infill serve` as their pager, and are tried once more while its worker is killed
 * with SIGKILL again and again.
 */
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "guest.h"
#include "pager.h"

#define WORDS_MAX 24
#define USERFAULT_TRACE TRACE "2" /* recorded by that engine, and not by uffd */
#define TRACE_COUNT_AT 48         /* infill-trace(7) */

/* Ask the VMM to save its guest, which fails, and leaves nothing. */
static bool save_fails(void)
{
	char *words[] = { VMM, "snapshot", "--control", CONTROL, "--memory", MEMORY "2", "--state",
			  STATE "2", NULL };
	struct guest client;

	start(&client, words);
	return finish(&client) == 1 && access(MEMORY "2", F_OK) && access(STATE "2", F_OK);
}

/* What is restored; NULL ends the words. */
struct restore {
	const char *name;
	const char *words[10];
};

static const struct restore restores[] = {
	{ "eager, memfd", { "--engine", "eager", NULL } },
	{ "eager, guest-memfd", { "--engine", "eager", "--backing", "guest-memfd", NULL } },
	{ "mmap", { "--engine", "mmap", NULL } },
	{ "uffd, memfd, recording", { "--engine", "uffd", "--record", TRACE, NULL } },
	{ "uffd, memfd, by the trace", { "--engine", "uffd", "--trace", TRACE, NULL } },
	{ "eager, hugetlb", { "--engine", "eager", "--backing", "hugetlb", NULL } },
	{ "uffd, hugetlb", { "--engine", "uffd", "--backing", "hugetlb", NULL } },
	{ "userfault, memfd, recording",
	  { "--engine", "userfault", "--record", USERFAULT_TRACE, NULL } },
	{ "userfault, guest-memfd",
	  { "--engine", "userfault", "--backing", "guest-memfd", NULL } },
	{ "userfault, guest-memfd, by the trace, prefaulted",
	  { "--engine", "userfault", "--backing", "guest-memfd", "--trace", USERFAULT_TRACE,
	    "--prefault", NULL } },
	{ "userfault, hugetlb", { "--engine", "userfault", "--backing", "hugetlb", NULL } },
	{ "eager, guest-memfd, prefaulted",
	  { "--engine", "eager", "--backing", "guest-memfd", "--prefault", NULL } },
	{ "uffd, anonymous", { "--engine", "uffd", "--backing", "anonymous", NULL } },
};

static const struct restore served[] = {
	{ "userfault, memfd, served", { "--engine", "userfault", "--pager", PAGER, NULL } },
	{ "userfault, guest-memfd, served",
	  { "--engine", "userfault", "--backing", "guest-memfd", "--pager", PAGER, NULL } },
};

/* They go on in a protected VM: the snapshot is of one that was not, since the host read it. */
static const struct restore protected_restores[] = {
	/* Nothing forbids it another VM, though the host has features that the guest was not given. */
	{ "eager, not protected", { "--engine", "eager", NULL } },
	{ "eager, protected, prefaulted",
	  { "--engine", "eager", "--protected", "--prefault", NULL } },
	{ "userfault, protected, recording",
	  { "--engine", "userfault", "--protected", "--record", TRACE, NULL } },
	{ "userfault, protected, by the trace, prefaulted",
	  { "--engine", "userfault", "--protected", "--trace", TRACE, "--prefault", NULL } },
};

static const struct restore protected_served = {
	"userfault, protected, served",
	{ "--engine", "userfault", "--protected", "--pager", PAGER, NULL },
};

#define COUNT(rows) (sizeof(rows) / sizeof((rows)[0]))

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
	struct clock clock;
	double ran; /* seconds since then in which a VMM ran it, at most */
};

/* ---- restores ----------------------------------------------------------------------------- */

static void start_restore(struct guest *guest, const struct restore *restore, bool memory)
{
	char *words[WORDS_MAX] = { VMM, "restore", "--state", STATE, "--memory", MEMORY };
	unsigned int used = memory ? 6 : 4;

	for (unsigned int n = 0; restore->words[n]; n++)
		words[used++] = (char *)restore->words[n];
	words[used] = NULL;
	start(guest, words);
}

/* The first question: timers that were armed are not known to be lost once others fire. */
static bool check_timers(struct guest *guest, const char *cpus, const char *name, const char *how,
			 const struct answers *expected, struct clock *clock)
{
	bool good = ask_clock(guest, cpus, clock) &&
		    clock_went(&expected->clock, clock, 0,
			       expected->ran + clock->said - guest->started);

	if (!ok(good, "%s CPUs: %s%s: its timers and its clock go on", cpus, name, how))
		kill_guest(guest);
	return good;
}

static bool check_data(struct guest *guest, const char *cpus, const char *name, const char *how,
		       const struct answers *expected)
{
	struct answers found = { 0 };
	struct clock first;
	bool good;

	if (!check_timers(guest, cpus, name, how, expected, &first))
		return false;
	good = ask_sum(guest, "check\n", "all ok ", &found.all) && found.all == expected->all;
	ok(good, "%s CPUs: %s%s: the data is what it was", cpus, name, how);
	if (good) {
		good = ask_clock(guest, cpus, &found.clock) &&
		       clock_went(&first, &found.clock, found.clock.asked - first.said,
				  found.clock.said - first.asked);
		ok(good, "%s CPUs: %s%s: its clock keeps time", cpus, name, how);
	}
	if (!good)
		kill_guest(guest);
	return good;
}

static void work_on(struct guest *guest, const char *cpus, const char *name, const char *how)
{
	struct answers found = { 0 };
	bool good = ask_sum(guest, "go\n", "work 2 ok ", &found.work);

	ok(good, "%s CPUs: %s%s: it works on", cpus, name, how);
	ok(power_off(guest), "%s CPUs: %s%s: power-off", cpus, name, how);
}

/* The trace that the VMM is told to write; NULL: none. */
static const char *trace_of(const struct restore *restore)
{
	for (unsigned int n = 0; restore->words[n]; n++)
		if (!strcmp(restore->words[n], "--record"))
			return restore->words[n + 1];
	return NULL;
}

/* How many pages there are in a trace; 0, too, when it is not there. */
static uint64_t pages_of(const char *trace)
{
	int fd = open(trace, O_RDONLY | O_CLOEXEC);
	uint64_t pages = 0;

	if (fd >= 0 && pread(fd, &pages, sizeof(pages), TRACE_COUNT_AT) != sizeof(pages))
		pages = 0;
	close(fd);
	printf("# %s: %llu pages\n", trace, (unsigned long long)pages);
	return pages;
}

static void test_restore(const struct restore *restore, const char *cpus,
			 const struct answers *expected)
{
	const char *trace = trace_of(restore);
	struct guest guest;

	if (trace)
		unlink(trace);
	start_restore(&guest, restore, true);
	if (!check_data(&guest, cpus, restore->name, "", expected))
		return;
	work_on(&guest, cpus, restore->name, "");
	if (trace)
		ok(pages_of(trace), "%s CPUs: %s: a trace", cpus, restore->name);
}

/* The pager is asked to end while the guest works on: it does when it is needed no more. */
static void test_served(const struct restore *restore, const char *cpus,
			const struct answers *expected, bool killed)
{
	const char *how = killed ? ", killed" : "";
	struct guest guest;
	bool good;

	if (!ok(start_pager(killed, "16"), "%s CPUs: %s%s: the pager", cpus, restore->name, how))
		return;
	start_restore(&guest, restore, false);
	good = check_data(&guest, cpus, restore->name, how, expected);
	ok(stop_pager(killed), "%s CPUs: %s%s: the pager's end", cpus, restore->name, how);
	if (good)
		work_on(&guest, cpus, restore->name, how);
}

/* The pager dies, all of it, before the guest has its pages: the VMM ends, and nothing hangs. */
static void test_lost(const struct restore *restore, const char *cpus)
{
	struct guest guest;
	bool good;

	if (!ok(start_pager(false, "1"), "%s CPUs: %s, lost: the pager", cpus, restore->name))
		return;
	start_restore(&guest, restore, false);
	good = write(guest.in, "check\n", 6) == 6 && lose_pager();
	good = !expect(&guest, "all ok ") && good &&
	       strstr(guest.line, "the connection has ended");
	ok(finish(&guest) == 1 && good, "%s CPUs: %s, lost: the VMM says so and ends", cpus,
	   restore->name);
}

/*
 * It waits for a pager that says nothing, and is asked to end: it does at once, which is by the
 * signal, since no guest runs yet.
 */
static void test_signal(const char *cpus)
{
	const struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = PAGER };
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct pollfd fd = { .fd = listener, .events = POLLIN };
	struct guest guest;
	bool good;

	good = !bind(listener, (const struct sockaddr *)&address, sizeof(address)) &&
	       !listen(listener, 1);
	if (!ok(good, "%s CPUs: a pager that says nothing", cpus))
		return;
	start_restore(&guest, &served[0], false);
	good = poll(&fd, 1, (int)(wait_seconds() * 1000)) == 1 && !kill(guest.pid, SIGTERM);
	ok(finish(&guest) == 128 + SIGTERM && good, "%s CPUs: a signal ends it while it waits", cpus);
	close(listener);
	unlink(PAGER);
}

/*
 * The image changes, and its pager can fill no more.  An idle guest cannot be saved then, and one
 * that touches what is missing waits for it, on arm64 where no signal reaches it: both VMMs end.
 */
static void test_changed(const char *cpus)
{
	static const struct restore rows[] = {
		{ "uffd", { "--engine", "uffd", "--fill", "none", "--control", CONTROL, NULL } },
		{ "userfault", { "--engine", "userfault", "--fill", "none", "--control", CONTROL,
				 NULL } },
	};
	struct answers found;

	for (unsigned int i = 0; i < 2 * COUNT(rows); i++) {
		const struct restore *row = &rows[i / 2];
		const bool touches = i % 2;
		struct guest guest;
		bool good;

		start_restore(&guest, row, true);
		good = ask_sum(&guest, "go\n", "work 2 ok ", &found.work) &&
		       !utimensat(AT_FDCWD, MEMORY, NULL, 0);
		if (touches)
			good = !ask(&guest, "check\n", "all ok ") && good &&
			       strstr(guest.line, MEMORY ": ") && strstr(guest.line, "changed ");
		else
			good = save_fails() && good;
		ok(finish(&guest) == 1 && good, "%s CPUs: %s, the image changed: %s, and the VMM ends",
		   cpus, row->name, touches ? "what is missing stays so" : "no snapshot");
	}
}

/* Those that RUNS names; each of `served` has two letters. */
static void test_restores(const char *cpus, const struct answers *expected, const char *runs)
{
	char letter = 'a';

	for (unsigned int i = 0; i < COUNT(restores); i++, letter++)
		if (!runs || strchr(runs, letter))
			test_restore(&restores[i], cpus, expected);
	for (unsigned int i = 0; i < 2 * COUNT(served); i++, letter++)
		if (!runs || strchr(runs, letter))
			test_served(&served[i / 2], cpus, expected, i % 2);
	for (unsigned int i = 0; i < COUNT(served); i++)
		if (!runs || strchr(runs, 'x'))
			test_lost(&served[i], cpus);
	if (!runs || strchr(runs, 'w'))
		test_signal(cpus);
	if (!runs || strchr(runs, 'v'))
		test_changed(cpus);
}

/* It says what it has done while its vCPUs are in KVM_RUN, where an idle guest stays. */
static bool says_stat(void)
{
	char *words[] = { VMM, "stat", "--control", CONTROL, NULL };
	struct guest client;
	bool good;

	start(&client, words);
	good = read_line(&client, now() + wait_seconds()) && strstr(client.line, "\"pf_taken\": ") &&
	       strstr(client.line, "\"demand_pages\": ");
	return finish(&client) == 0 && good;
}

/* A guest that was restored, and is not all there yet, is saved as any other. */
static void test_again(const struct restore *restore, bool pager_serves, const char *cpus,
		       const struct answers *expected)
{
	struct restore first = { "", { "--control", CONTROL } };
	char *second[] = { VMM, "restore", "--memory", MEMORY "2", "--state", STATE "2", "--engine",
			   "eager", NULL };
	struct answers found = { 0 }, then = *expected;
	struct clock clock;
	struct guest guest;
	bool good;

	for (unsigned int n = 0; restore->words[n]; n++)
		first.words[n + 2] = restore->words[n];
	if (pager_serves && !ok(start_pager(false, "1"), "%s CPUs: again: the pager", cpus))
		return;
	start_restore(&guest, &first, !pager_serves);
	good = ask_sum(&guest, "go\n", "work 2 ok ", &found.work);
	ok(good && says_stat(), "%s CPUs: again: %s: it says what it has done", cpus, restore->name);
	good = good && take_snapshot(&guest, "2");
	then.ran += now() - guest.started;
	if (pager_serves)
		ok(stop_pager(false), "%s CPUs: again: the pager's end", cpus);
	if (!ok(good, "%s CPUs: again: %s: snapshot of a restored guest", cpus, restore->name))
		return kill_guest(&guest);
	start(&guest, second);
	if (!check_timers(&guest, cpus, "again: ", restore->name, &then, &clock))
		return;
	good = ask_sum(&guest, "go\n", "work 3 ok ", &found.work) &&
	       ask_sum(&guest, "check\n", "all ok ", &found.all) && found.all != expected->all;
	if (!ok(good, "%s CPUs: again: %s: the data is what it was, and what was written since", cpus,
		restore->name))
		return kill_guest(&guest);
	ok(power_off(&guest), "%s CPUs: again: %s: power-off", cpus, restore->name);
	unlink(MEMORY "2");
	unlink(STATE "2");
}

static void test_all_again(const char *cpus, const struct answers *expected, const char *runs)
{
	static const struct restore by_uffd = { "uffd, memfd", { "--engine", "uffd", NULL } };

	if (!runs || strchr(runs, 'y'))
		test_again(&by_uffd, false, cpus, expected);
	if (!runs || strchr(runs, 'z'))
		test_again(&served[1], true, cpus, expected);
}

/*
 * A protected guest reads the host's counter.  When it goes on that has leapt by the time that the
 * machine ran before the guest was booted.
 */
static void test_protected_restores(const char *cpus, const struct answers *expected)
{
	struct answers then = *expected;

	then.ran += now() + wait_seconds();
	for (unsigned int i = 0; i < COUNT(protected_restores); i++)
		test_restore(&protected_restores[i], cpus, &then);
	test_served(&protected_served, cpus, &then, true);
}

/* Without pKVM there are none, and what is said names what would have to be there. */
static void test_no_protected(const char *kernel)
{
	char path[64];
	char *words[] = { VMM, "run", "--kernel", path, "--memory", "256M", "--protected", NULL };
	struct guest guest;
	bool said;

	snprintf(path, sizeof(path), "/files/%s", kernel);
	start(&guest, words);
	said = read_line(&guest, now() + wait_seconds()) &&
	       (strstr(guest.line, "kvm-arm.mode=protected") ||
		strstr(guest.line, "pKVM is arm64's"));
	ok(finish(&guest) == 1 && said, "--protected: refused where KVM is not pKVM");
}

/* Boots in a protected VM, of which the host has no snapshot. */
static void test_protected(const char *kernel, const char *cpus)
{
	static const char *const memory[] = { "--protected", NULL };
	struct answers answers = { 0 };
	struct guest guest;
	bool good = boot(&guest, kernel, cpus, memory, "");

	good = good && ask_sum(&guest, "go\n", "work 1 ok ", &answers.work) &&
	       ask_sum(&guest, "check\n", "all ok ", &answers.all);
	if (!ok(good, "%s CPUs, protected: boots, fills, checks", cpus))
		return kill_guest(&guest);
	good = save_fails() && read_line(&guest, now() + wait_seconds()) &&
	       strstr(guest.line, "the guest's alone");
	ok(good, "%s CPUs, protected: no snapshot", cpus);
	good = ask_sum(&guest, "go\n", "work 2 ok ", &answers.work);
	ok(good, "%s CPUs, protected: it works on", cpus);
	ok(power_off(&guest), "%s CPUs, protected: power-off", cpus);
}

#define FEW_BYTES (16 << 20) /* that a guest of Linux needs more than */

/* Run by a process of its own, which cannot undo it: under a limit that counts for root, too. */
static bool meets_limit(const char *kernel)
{
	static const char *const memory[] = { "--protected", NULL };
	const struct rlimit limit = { FEW_BYTES, FEW_BYTES };
	struct guest guest;

	if (prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK) || setrlimit(RLIMIT_MEMLOCK, &limit)) {
		printf("# limit: %m\n");
		return false;
	}
	if (boot(&guest, kernel, "1", memory, "")) {
		kill_guest(&guest);
		return false;
	}
	return strstr(guest.line, "KVM_RUN") && strstr(guest.line, "raise RLIMIT_MEMLOCK") &&
	       finish(&guest) == 1;
}

/* A protected guest's memory is locked: what is said when the limit is reached says what to do. */
static void test_protected_limit(const char *kernel)
{
	int status = -1;
	pid_t child;

	fflush(stdout);
	child = fork();
	if (child == 0) {
		bool good = meets_limit(kernel);

		fflush(stdout);
		_exit(!good);
	}
	ok(waitpid(child, &status, 0) == child && status == 0, "protected: RLIMIT_MEMLOCK");
}

/* Boot the guest that is restored, and save it.  False after a failure. */
static bool make_snapshot(const char *kernel, const char *cpus, const char *const memory[2],
			  struct answers *answers)
{
	const char *what = memory[1] ? memory[1] : memory[0];
	struct guest guest;
	bool good = boot(&guest, kernel, cpus, memory, "");

	good = good && ask_sum(&guest, "go\n", "work 1 ok ", &answers->work) &&
	       ask_sum(&guest, "check\n", "all ok ", &answers->all) &&
	       ask_clock(&guest, cpus, &answers->clock) && arm_timers(&guest);
	if (!ok(good, "%s CPUs, %s: boots, fills, checks, sleeps", cpus, what)) {
		kill_guest(&guest);
		return false;
	}
	if (!ok(take_snapshot(&guest, ""), "%s CPUs, %s: snapshot", cpus, what))
		return false;
	answers->ran = now() - answers->clock.asked;
	return true;
}

static void test_all(const char *kernel, const char *cpus, const char *backing, const char *runs)
{
	const char *const memory[] = { "--backing", backing };
	struct answers answers = { 0 };

	if (!make_snapshot(kernel, cpus, memory, &answers))
		return;
	test_restores(cpus, &answers, runs);
	test_all_again(cpus, &answers, runs);
}

static void test_pkvm(const char *kernel, const char *cpus)
{
	static const char *const memory[] = { "--protectable", NULL };
	struct answers answers = { 0 };

	test_protected(kernel, cpus);
	test_protected_limit(kernel);
	if (make_snapshot(kernel, cpus, memory, &answers))
		test_protected_restores(cpus, &answers);
}

int main(int argc, char **argv)
{
	const char *kernel = "vmlinuz", *cpus = NULL, *runs = NULL;
	bool pkvm = false;
	int option;

	while ((option = getopt(argc, argv, "pk:c:r:")) != -1) {
		if (option == 'k')
			kernel = optarg;
		else if (option == 'c')
			cpus = optarg;
		else if (option == 'r')
			runs = optarg;
		else if (option == 'p')
			pkvm = true;
		else
			return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	printf("TAP version 13\n");
	if (sysconf(_SC_PAGESIZE) != 4096) {
		puts("1..0 # SKIP infill refuses pages of 4 KiB on this host, whose own are larger");
		return 0;
	}
	if (pkvm) {
		test_pkvm(kernel, cpus ? cpus : "2");
	} else {
		test_no_protected(kernel);
		test_all(kernel, cpus ? cpus : "1", "memfd", runs);
		if (!cpus)
			test_all(kernel, "4", "guest-memfd", runs);
	}
	printf("1..%u\n", tests);
	return failed != 0;
}
