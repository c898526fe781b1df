/* SPDX-License-Identifier: MIT */
/*
 * scratch.h: files for the unit tests, in a folder of this process' own that
 * is removed at its end.  Test support; may change freely.
 */
#ifndef SCRATCH_H
#define SCRATCH_H

#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static char scratch_folder[96];
static pid_t scratch_owner;

static int scratch_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static void scratch_remove(void)
{
	if (getpid() == scratch_owner) /* not a child of the test */
		nftw(scratch_folder, scratch_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* The path of NAME in the folder; valid until the eighth call after this one. */
static inline const char *scratch(const char *name)
{
	static char path[8][192];
	static unsigned next;
	char *at = path[next++ % COUNT(path)];

	if (!scratch_owner) {
		const char *top = getenv("TMPDIR");

		snprintf(scratch_folder, sizeof(scratch_folder), "%.60s/infill-unit.XXXXXX",
			 top && *top ? top : "/tmp");
		if (!mkdtemp(scratch_folder) || chmod(scratch_folder, 0711)) {
			perror(scratch_folder);
			exit(1);
		}
		scratch_owner = getpid();
		atexit(scratch_remove);
	}
	snprintf(at, sizeof(path[0]), "%s/%s", scratch_folder, name);
	return at;
}

/* Make NAME with LENGTH bytes of DATA; its path. */
static inline const char *scratch_file(const char *name, const void *data, size_t length)
{
	const char *path = scratch(name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0 || write(fd, data, length) != (ssize_t)length || close(fd)) {
		perror(path);
		exit(1);
	}
	return path;
}

/* Number of open file descriptors, to find leaks. */
static inline unsigned scratch_fds(void)
{
	unsigned count = 0;

	for (int fd = 0; fd < 1024; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

#endif
