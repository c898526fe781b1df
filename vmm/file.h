/* SPDX-License-Identifier: MIT */
/*
 * file.h: reads and writes of whole lengths, and files that appear complete or
 * not at all.
 */
#ifndef INFILL_VMM_FILE_H
#define INFILL_VMM_FILE_H

#include <limits.h>
#include <stdint.h>

/* Open the regular file PATH to read it, and have its size; the fd, or -errno after vmm_error(). */
int file_open(const char *path, uint64_t *bytes);

/* All of LENGTH at OFFSET.  0, or -1 with errno; the end of the file is EIO. */
int file_read(int fd, void *data, uint64_t length, uint64_t offset);
int file_write(int fd, const void *data, uint64_t length, uint64_t offset);

/* A file under another name beside its own. */
struct new_file {
	int fd; /* -1: it is complete */
	const char *path;
	char name[PATH_MAX];
};

/* 0, or -errno after vmm_error().  PATH must stay valid. */
int file_new(struct new_file *file, const char *path);

/*
 * All of it was written: have it on the disk, still under the other name.  ERR: why it
 * could not be written, or 0; then it is removed.  0, or -errno after vmm_error().
 */
int file_complete(struct new_file *file, int err);

/* Give a complete file its name.  0, or -errno after vmm_error(); then it is removed. */
int file_place(struct new_file *file);

/* Remove a complete file that shall not get its name. */
void file_drop(struct new_file *file);

/* Have names that came or went in PATH's folder on the disk, where its filesystem can say so. */
void file_sync_folder(const char *path);

#endif
