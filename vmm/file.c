/* SPDX-License-Identifier: MIT */
/*
 * file.c: see file.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "file.h"

int file_read(int fd, void *data, uint64_t length, uint64_t offset)
{
	char *at = data;

	while (length) {
		ssize_t n = pread(fd, at, length, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			errno = EIO;
		if (n <= 0)
			return -1;
		at += n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
	return 0;
}

int file_write(int fd, const void *data, uint64_t length, uint64_t offset)
{
	const char *at = data;

	while (length) {
		ssize_t n = pwrite(fd, at, length, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		at += n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
	return 0;
}

int file_new(struct new_file *file, const char *path)
{
	file->path = path;
	file->fd = -1;
	errno = ENAMETOOLONG;
	if (snprintf(file->name, sizeof(file->name), "%s.new.%d", path, (int)getpid()) <
	    (int)sizeof(file->name))
		file->fd = open(file->name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return file->fd < 0 ? vmm_error(-errno, "%s: %m", path) : 0;
}

int file_finish(struct new_file *file, int err)
{
	if (!err && fsync(file->fd))
		err = -errno;
	close(file->fd);
	if (!err && rename(file->name, file->path))
		err = -errno;
	if (!err)
		return 0;
	unlink(file->name);
	return vmm_error(err, "%s: %m", file->path);
}
