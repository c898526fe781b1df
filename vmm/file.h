/* SPDX-License-Identifier: MIT */
/*
 * file.h: reads and writes of whole lengths, and files that appear complete or
 * not at all.
 */
#ifndef INFILL_VMM_FILE_H
#define INFILL_VMM_FILE_H

#include <limits.h>
#include <stdint.h>

/* All of LENGTH at OFFSET.  0, or -1 with errno; the end of the file is EIO. */
int file_read(int fd, void *data, uint64_t length, uint64_t offset);
int file_write(int fd, const void *data, uint64_t length, uint64_t offset);

/* A file under another name beside its own. */
struct new_file {
	int fd;
	const char *path;
	char name[PATH_MAX];
};

/* 0, or -errno after vmm_error().  PATH must stay valid. */
int file_new(struct new_file *file, const char *path);

/*
 * Give the file its name, when all of it is on the disk.  ERR: why it could not be
 * written, or 0; then it is removed.  0, or -errno after vmm_error().
 */
int file_finish(struct new_file *file, int err);

#endif
