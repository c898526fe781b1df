// SPDX-License-Identifier: MIT
/*
 * PID 1 of the guest: fills a store, says `filled`, then does what the serial console tells it.
 *
 * Lines read:
 *	go			answer a request: follow a chain through a quarter of the store
 *	check			check all of it, on all CPUs at once
 *	arm			have a timer armed on each CPU, and leave it
 *	clock			wait for those, and then for a short one on each CPU
 * Lines printed:
 *	filled RECORDS
 *	work N ok SUM NS	request N is answered; NS is what it took by the guest's clock
 *	all ok SUM NS		every record was checked
 *	BAD page P offset O	a byte is not what was stored there
 *	armed CPUS
 *	clock ok CPUS NS	all timers fired; NS is CLOCK_MONOTONIC behind them
 *	BAD clock of CPU N...	a CPU's clock does not agree with that of the first thread
 * snapshot.py, vm.py and lab/programs read these lines: change both sides together.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "cpus.h"
#include "store.h"

#define NAP_NS	20000000u	/* of `clock` */
#define ARM_NS	500000000u	/* of `arm`: long enough to be saved meanwhile */

static unsigned int cpus;

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Power off rather than return: a PID 1 that ends is a kernel panic with a screen full of text. */
static void die(const char *what)
{
	printf("DEAD %s: %s\n", what, strerror(errno));
	tcdrain(1);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void mount_all(void)
{
	static const char *const points[][2] = {
		{ "/proc", "proc" }, { "/sys", "sysfs" }, { "/dev", "devtmpfs" },
	};

	for (unsigned int i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		mkdir(points[i][0], 0755);
		if (mount(points[i][1], points[i][0], points[i][1], 0, NULL) && errno != EBUSY)
			die(points[i][0]);
	}
}

/* Open the console anew: the one that the kernel gives has no devtmpfs behind it yet. */
static void open_console(void)
{
	struct termios t;
	int fd = open("/dev/console", O_RDWR);

	if (fd < 0)
		return;
	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	if (fd > 2)
		close(fd);
	setvbuf(stdout, NULL, _IOLBF, 512);
	if (tcgetattr(0, &t))
		return;
	t.c_lflag &= ~(tcflag_t)(ECHO | ECHONL);
	t.c_oflag &= ~(tcflag_t)ONLCR;
	tcsetattr(0, TCSANOW, &t);
}

static void bad_page(const struct store_bad *bad)
{
	printf("BAD page %" PRIu32 " offset %" PRIu32 "\n", bad->page, bad->offset);
}

static void answer(struct store *store, unsigned int request)
{
	struct store_bad bad;
	uint64_t sum, start = now();

	if (store_work(store, &sum, &bad))
		bad_page(&bad);
	else
		printf("work %u ok %016" PRIx64 " %" PRIu64 "\n", request, sum, now() - start);
}

/* ---- on all CPUs --------------------------------------------------------------------------- */

static void start_all(struct cpus_run *run, void (*fn)(unsigned int number, void *arg), void *arg)
{
	errno = cpus_start(run, fn, arg);
	if (errno)
		die("threads");
}

/* A check of which each CPU has a share. */
struct shares {
	const struct store *store;
	struct store_bad bad[CPUS_MAX];
	int failed[CPUS_MAX];
};

static void check_share(unsigned int number, void *arg)
{
	struct shares *shares = arg;

	shares->failed[number] = store_check_part(shares->store, number, cpus,
						  &shares->bad[number]);
}

/* As store_check() does it, with the same answer. */
static int check_all(const struct store *store, uint64_t *sum, struct store_bad *bad)
{
	struct shares shares = { .store = store };
	struct cpus_run run = { 0 };
	int failed = 0;

	start_all(&run, check_share, &shares);
	cpus_wait(&run);
	for (unsigned int n = 0; n < cpus; n++)
		if (shares.failed[n] && (!failed || shares.bad[n].page < bad->page)) {
			*bad = shares.bad[n];
			failed = -1;
		}
	if (!failed)
		*sum = store_sum(store);
	return failed;
}

/* bench/vm counts the instructions of a guest with one CPU: it has no threads. */
static void check(const struct store *store)
{
	struct store_bad bad;
	uint64_t sum, start = now();

	if (cpus > 1 ? check_all(store, &sum, &bad) : store_check(store, &sum, &bad))
		bad_page(&bad);
	else
		printf("all ok %016" PRIx64 " %" PRIu64 "\n", sum, now() - start);
}

/* What each CPU's clock says when it has slept. */
struct naps {
	uint32_t ns;
	uint64_t over[CPUS_MAX];
};

static void nap(unsigned int number, void *arg)
{
	struct naps *naps = arg;
	const struct timespec time = { .tv_nsec = naps->ns };

	clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
	naps->over[number] = now();
}

static struct cpus_run armed;

static void arm(void)
{
	static struct naps naps = { .ns = ARM_NS };

	cpus_wait(&armed);
	start_all(&armed, nap, &naps);
	printf("armed %u\n", cpus);
}

/*
 * What `arm` left is waited for first: a timer that is armed on a CPU may have the hardware fire
 * for one that was forgotten.
 */
static void show_clock(void)
{
	struct naps naps = { .ns = NAP_NS };
	struct cpus_run run = { 0 };
	uint64_t before, after;

	cpus_wait(&armed);
	before = now();
	start_all(&run, nap, &naps);
	cpus_wait(&run);
	after = now();
	for (unsigned int n = 0; n < cpus; n++)
		if (naps.over[n] < before + NAP_NS || naps.over[n] > after) {
			printf("BAD clock of CPU %u: %" PRIu64 " is not in %" PRIu64 " + %u to %" PRIu64
			       "\n", n, naps.over[n], before, NAP_NS, after);
			return;
		}
	printf("clock ok %u %" PRIu64 "\n", cpus, after);
}

int main(void)
{
	struct store *store;
	char line[64];

	mount_all();
	open_console();
	cpus = cpus_find();
	store = store_create();
	if (!store)
		die("store");
	printf("filled %u\n", STORE_RECORDS);
	for (unsigned int request = 1; fgets(line, sizeof(line), stdin); ) {
		if (strcmp(line, "go\n") == 0)
			answer(store, request++);
		else if (strcmp(line, "check\n") == 0)
			check(store);
		else if (strcmp(line, "arm\n") == 0)
			arm();
		else if (strcmp(line, "clock\n") == 0)
			show_clock();
		else
			printf("unknown %s", line);
	}
	die("console");
	return 1;
}
