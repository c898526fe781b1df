// SPDX-License-Identifier: MIT
/*
 * fakeimage.c: image files for tests, whose every word is known from its
 * offset.  What fakeimage_word() gives must not depend on anything but the
 * struct: other processes compute it too.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fakeimage.h"

#define CHUNK (1u << 20)

static char dir_path[96];
static pid_t dir_owner;

void fake_die(const char *what)
{
	fprintf(stderr, "set-up: %s: %s\n", what, strerror(errno));
	exit(99);
}

uint64_t fake_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path);
}

/* A lab machine has no rm(1). */
static void dir_remove(void)
{
	if (getpid() != dir_owner)
		return;
	if (nftw(dir_path, remove_one, 16, FTW_DEPTH | FTW_PHYS))
		fprintf(stderr, "# %s was not removed\n", dir_path);
}

const char *fake_dir(void)
{
	const char *base = getenv("TMPDIR");

	if (dir_path[0])
		return dir_path;
	snprintf(dir_path, sizeof(dir_path), "%.64s/infill-test-XXXXXX", base ? base : "/tmp");
	if (!mkdtemp(dir_path))
		fake_die(dir_path);
	dir_owner = getpid();
	atexit(dir_remove);
	return dir_path;
}

enum fakeimage_kind fakeimage_kind(const struct fakeimage *image, uint64_t offset)
{
	uint64_t grain = image->grain ? image->grain : FAKE_PAGE;
	uint64_t hash = fake_mix(fake_mix(image->seed) ^ (offset / grain));

	if (image->hole_every && hash % image->hole_every == 0)
		return FAKEIMAGE_HOLE;
	if (image->zero_every && (hash >> 32) % image->zero_every == 0)
		return FAKEIMAGE_ZERO;
	return FAKEIMAGE_DATA;
}

uint64_t fakeimage_word(const struct fakeimage *image, uint64_t offset)
{
	if (fakeimage_kind(image, offset) != FAKEIMAGE_DATA)
		return 0;
	return fake_mix(offset + fake_mix(image->seed)) | 1;
}

void fakeimage_fill(const struct fakeimage *image, uint64_t offset, void *buffer, uint64_t length)
{
	uint64_t base = fake_mix(image->seed);
	uint64_t *word = buffer;

	for (uint64_t page = 0; page < length; page += FAKE_PAGE) {
		uint64_t end = length - page < FAKE_PAGE ? length : page + FAKE_PAGE;
		bool data = fakeimage_kind(image, offset + page) == FAKEIMAGE_DATA;

		for (uint64_t at = page; at < end; at += 8)
			word[at / 8] = data ? fake_mix(offset + at + base) | 1 : 0;
	}
}

static void write_chunk(const struct fakeimage *image, int fd, uint64_t offset, char *buffer)
{
	uint64_t length = image->bytes - offset < CHUNK ? image->bytes - offset : CHUNK;
	uint64_t begin = 0;

	fakeimage_fill(image, offset, buffer, length);
	while (begin < length) {
		uint64_t end = begin;

		while (end < length && fakeimage_kind(image, offset + end) != FAKEIMAGE_HOLE)
			end += FAKE_PAGE;
		if (end > length)
			end = length;
		if (end > begin &&
		    pwrite(fd, buffer + begin, end - begin, (off_t)(offset + begin)) !=
			    (ssize_t)(end - begin))
			fake_die(image->path);
		begin = end + FAKE_PAGE;
	}
}

void fakeimage_make(struct fakeimage *image)
{
	static unsigned number;
	char *buffer = malloc(CHUNK);
	int fd;

	snprintf(image->path, sizeof(image->path), "%s/image-%d-%u", fake_dir(), (int)getpid(),
		 number++);
	fd = open(image->path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644);
	if (fd < 0 || !buffer || ftruncate(fd, (off_t)image->bytes))
		fake_die(image->path);
	for (uint64_t offset = 0; offset < image->bytes; offset += CHUNK)
		write_chunk(image, fd, offset, buffer);
	free(buffer);
	close(fd);
}

void fakeimage_remove(struct fakeimage *image)
{
	unlink(image->path);
}

void fakeimage_cool(const struct fakeimage *image)
{
	int fd = open(image->path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		fake_die(image->path);
	close(fd);
}

static bool page_has_data(const struct fakeimage *image, uint64_t offset, uint64_t page)
{
	for (uint64_t at = 0; at < page; at += FAKE_PAGE)
		if (fakeimage_kind(image, offset + at) == FAKEIMAGE_DATA)
			return true;
	return false;
}

uint64_t fakeimage_data_pages(const struct fakeimage *image, uint64_t page)
{
	uint64_t count = 0;

	for (uint64_t offset = 0; offset < image->bytes; offset += page)
		count += page_has_data(image, offset, page);
	return count;
}
