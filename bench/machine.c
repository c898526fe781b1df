/* SPDX-License-Identifier: MIT */
/*
 * machine.c: clock, errors, progress, the huge-page pool, the description of the
 * machine.  Anything here may change; figures do not depend on it.
 */
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "infill.h"

#define POOL "/proc/sys/vm/nr_hugepages"

#define POOL_SPARE 16 /* for others, and for pages that are freed late */

static size_t pool_added;
static pid_t pool_owner;

void fail(const char *what, const char *format, ...)
{
	va_list ap;

	progress(1, 1, "");
	fprintf(stderr, "restore: %s: ", what);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

void *machine_alloc(size_t bytes, const char *what)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		fail(what, "%zu bytes of memory: %s", bytes, strerror(errno));
	return p;
}

void machine_free(void *memory, size_t bytes)
{
	if (memory)
		munmap(memory, bytes);
}

unsigned machine_cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		return 1;
	return (unsigned)CPU_COUNT(&set);
}

/* First line of PATH without its newline, or "". */
static void read_line(const char *path, char *line, size_t size)
{
	FILE *f = fopen(path, "r");

	line[0] = '\0';
	if (!f)
		return;
	if (fgets(line, (int)size, f))
		line[strcspn(line, "\n")] = '\0';
	fclose(f);
}

/* Take back what was added, and no more: others may use the pool too. */
static void pool_restore(void)
{
	char text[32];
	size_t pages;
	ssize_t n;
	int fd;

	if (pool_owner != getpid())
		return;
	fd = open(POOL, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = '\0';
	pages = strtoul(text, NULL, 10);
	n = snprintf(text, sizeof(text), "%zu", pages > pool_added ? pages - pool_added : 0);
	if (pwrite(fd, text, (size_t)n, 0) == n)
		pool_owner = 0;
	close(fd);
}

static void on_signal(int number)
{
	pool_restore();
	signal(number, SIG_DFL);
	raise(number);
}

static void pool_watch(void)
{
	static const int number[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGABRT, SIGSEGV };

	pool_owner = getpid();
	atexit(pool_restore);
	for (size_t i = 0; i < sizeof(number) / sizeof(*number); i++)
		signal(number[i], on_signal);
}

static size_t pool_free_pages(void)
{
	char line[32];

	read_line("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", line, sizeof(line));
	return strtoul(line, NULL, 10);
}

static bool pool_grow(size_t pages)
{
	char line[32];
	FILE *f;

	read_line(POOL, line, sizeof(line));
	f = fopen(POOL, "w");
	if (!f)
		return false;
	pool_added = pages;
	pool_watch();
	fprintf(f, "%zu", strtoul(line, NULL, 10) + pages);
	return !fclose(f);
}

const char *machine_hugepages(size_t count)
{
	static char why[128];
	size_t have = pool_free_pages();

	if (have >= count + POOL_SPARE)
		return NULL;
	if (!pool_grow(count + POOL_SPARE - have)) {
		snprintf(why, sizeof(why), "%zu of %zu free 2 MiB pages, and " POOL ": %s", have,
			 count, strerror(errno));
		return why;
	}
	have = pool_free_pages();
	if (have >= count)
		return NULL;
	pool_restore();
	snprintf(why, sizeof(why), "only %zu of %zu 2 MiB pages could be reserved", have, count);
	return why;
}

static void cpu_model(char *model, size_t size)
{
	char line[256];
	FILE *f = fopen("/proc/cpuinfo", "r");

	snprintf(model, size, "unknown");
	while (f && fgets(line, sizeof(line), f)) {
		char *colon = strstr(line, ": ");

		if (strncmp(line, "model name", 10) || !colon)
			continue;
		colon[strcspn(colon, "\n")] = '\0';
		snprintf(model, size, "%s", colon + 2);
		break;
	}
	if (f)
		fclose(f);
}

json_t *machine_json(void)
{
	char model[128], thp[64], load[64], clocksource[32];
	struct utsname u;

	uname(&u);
	cpu_model(model, sizeof(model));
	read_line("/sys/kernel/mm/transparent_hugepage/enabled", thp, sizeof(thp));
	read_line("/proc/loadavg", load, sizeof(load));
	read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", clocksource,
		  sizeof(clocksource));
	return json_pack("{s:s,s:s,s:s,s:i,s:I,s:s,s:s,s:s,s:s}", "cpu", model, "arch", u.machine,
			 "kernel", u.release, "cpus", (int)machine_cpus(), "memory_mib",
			 (json_int_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) >> 20, "thp",
			 thp, "loadavg", load, "clocksource", clocksource, "infill",
			 infill_version());
}

void machine_print(void)
{
	json_t *machine = machine_json();
	const char *key;
	json_t *value;

	json_object_foreach(machine, key, value) {
		if (json_is_string(value))
			printf("%-12s %s\n", key, json_string_value(value));
		else
			printf("%-12s %" JSON_INTEGER_FORMAT "\n", key, json_integer_value(value));
	}
	json_decref(machine);
}

void progress(size_t done, size_t total, const char *what)
{
	enum { WIDTH = 24 };
	size_t filled = total ? done * WIDTH / total : 0;

	if (!isatty(STDERR_FILENO))
		return;
	if (done >= total) {
		fprintf(stderr, "\r\033[K");
		return;
	}
	fprintf(stderr, "\r\033[K[%.*s%.*s] %3zu %% %s", (int)filled, "########################",
		(int)(WIDTH - filled), "                        ", done * 100 / total, what);
}

uint64_t machine_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dull;
}
