/* SPDX-License-Identifier: MIT */
/*
 * present.c: what /proc and /sys know about a huge page.  Internal.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "present.h"

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
#define ENTRY_PRESENT (1ull << 63)

static int pid_of(int pidfd)
{
	char path[64], line[128];
	int pid = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	file = fopen(path, "re");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file) && sscanf(line, "Pid: %d", &pid) != 1)
		;
	fclose(file);
	return pid;
}

int present_open(int pidfd)
{
	int pid = pidfd < 0 ? -1 : pid_of(pidfd);
	char path[64];

	if (pid <= 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static bool pool_is_empty(void)
{
	FILE *file = fopen(POOL, "re");
	unsigned long free_pages = 1;

	if (!file)
		return false;
	if (fscanf(file, "%lu", &free_pages) != 1)
		free_pages = 1;
	fclose(file);
	return !free_pages;
}

/* A kernel without page maps has this. */
static enum present own(uint64_t hva)
{
	unsigned char there;

	if (mincore((void *)(uintptr_t)hva, 1, &there))
		return PRESENT_NO; /* nothing is mapped there any more */
	return there & 1 ? PRESENT_YES : PRESENT_NO;
}

enum present present_huge(int pagemap, uint64_t hva)
{
	off_t at = (off_t)(hva / (uint64_t)sysconf(_SC_PAGESIZE) * sizeof(uint64_t));
	uint64_t entry;

	if (pagemap == PRESENT_OWN)
		return own(hva);
	if (pagemap >= 0 && pread(pagemap, &entry, sizeof(entry), at) == (ssize_t)sizeof(entry))
		return entry & ENTRY_PRESENT ? PRESENT_YES : PRESENT_NO;
	return pool_is_empty() ? PRESENT_NO : PRESENT_PERHAPS;
}
