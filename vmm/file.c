/* SPDX-License-Identifier: MIT */
/*
 * file.c: see file.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "file.h"

int file_open(const char *path, uint64_t *bytes)
{
	/* Not to wait for a FIFO's writer. */
	int err, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st = { 0 };

	if (fd < 0)
		return vmm_error(-errno, "%s: %m", path);
	/* Whoever reads a real file does not want the flag. */
	if (fstat(fd, &st) || fcntl(fd, F_SETFL, 0))
		err = vmm_error(-errno, "%s: %m", path);
	else if (!S_ISREG(st.st_mode))
		err = vmm_error(-EINVAL, "%s: not a regular file", path);
	else
		err = 0;
	*bytes = (uint64_t)st.st_size;
	if (!err)
		return fd;
	close(fd);
	return err;
}

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
	struct stat st;

	file->path = path;
	file->fd = -1;
	errno = ENAMETOOLONG;
	if (snprintf(file->name, sizeof(file->name), "%s.new.%d", path, (int)getpid()) >=
	    (int)sizeof(file->name))
		return vmm_error(-errno, "%s: %m", path);
	/* Not as late as when the file is written. */
	if (!lstat(path, &st) && S_ISDIR(st.st_mode))
		return vmm_error(-EISDIR, "%s: %m", path);
	unlink(file->name); /* of a process with this id that was killed */
	file->fd = open(file->name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return file->fd < 0 ? vmm_error(-errno, "%s: %m", path) : 0;
}

int file_complete(struct new_file *file, int err)
{
	if (!err && fsync(file->fd))
		err = -errno;
	if (close(file->fd) && !err)
		err = -errno;
	file->fd = -1;
	if (!err)
		return 0;
	unlink(file->name);
	return vmm_error(err, "%s: %m", file->path);
}

int file_place(struct new_file *file)
{
	int err = rename(file->name, file->path) ? -errno : 0;

	if (!err)
		return 0;
	unlink(file->name);
	return vmm_error(err, "%s: %m", file->path);
}

void file_drop(struct new_file *file)
{
	unlink(file->name);
}

void file_sync_folder(const char *path)
{
	char copy[PATH_MAX];
	int fd = -1;

	if (snprintf(copy, sizeof(copy), "%s", path) < (int)sizeof(copy))
		fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	(void)!fsync(fd);
	close(fd);
}
