/* SPDX-License-Identifier: MIT */
/* usage.c: the kernel's counters of pages that are locked, pinned, or tables. */
#include "usage.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"
#include "vmrig.h"

static long read_counter(const char *path, const char *name)
{
	FILE *file = fopen(path, "re");
	char line[256];
	long value = -1;

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			sscanf(line + strlen(name), "%ld", &value);
	if (file)
		fclose(file);
	CHECK(value >= 0, "%s has no %s", path, name);
	return value;
}

long usage_locked(void)
{
	return read_counter("/proc/self/status", "VmLck:") * 1024 / GUEST_PAGE;
}

/* Have the counters of all CPUs added up. */
static void refresh(void)
{
	FILE *file = fopen("/proc/sys/vm/stat_refresh", "we");

	if (!file)
		return;
	fputs("1", file);
	fclose(file);
}

struct usage usage_get(void)
{
	refresh();
	return (struct usage){
		.pinned = read_counter("/proc/vmstat", "nr_foll_pin_acquired ") -
			  read_counter("/proc/vmstat", "nr_foll_pin_released "),
		.tables = read_counter("/proc/meminfo", "SecPageTables:") * 1024 / GUEST_PAGE,
	};
}

static bool reached(const struct usage *before, long more)
{
	struct usage now = usage_get();

	if (more)
		return now.pinned >= before->pinned + more;
	return now.pinned <= before->pinned && now.tables <= before->tables;
}

bool usage_wait(const struct usage *before, long more, unsigned seconds)
{
	for (unsigned i = 0; i < seconds * 100; i++) {
		if (reached(before, more))
			return true;
		usleep(10000);
	}
	return false;
}
