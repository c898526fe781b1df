/* SPDX-License-Identifier: MIT */
/*
 * content.c: the image file and its copies in memory.  The content may be
 * changed as long as no page is zero and content_word() tells pages apart.
 */
#include "content.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"

static void make_folder(const char *dir)
{
	char path[512];

	snprintf(path, sizeof(path), "%s", dir);
	for (char *p = path + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		mkdir(path, 0777);
		*p = '/';
	}
	if (mkdir(path, 0777) && errno != EEXIST)
		fail(dir, "cannot be made: %s", strerror(errno));
}

static void fill_pages(uint8_t *buffer, uint64_t first, size_t pages)
{
	for (size_t i = 0; i < pages; i++) {
		uint64_t *word = (uint64_t *)(buffer + i * CONTENT_PAGE);
		uint64_t state = content_word(first + i);

		word[0] = state;
		for (size_t k = 1; k < CONTENT_PAGE / sizeof(*word); k++)
			word[k] = machine_random(&state);
	}
}

static void write_all(int fd, const char *path, const uint8_t *data, size_t bytes, off_t at)
{
	while (bytes) {
		ssize_t n = pwrite(fd, data, bytes, at);

		if (n < 0)
			fail(path, "cannot be written: %s", strerror(errno));
		data += n;
		at += n;
		bytes -= (size_t)n;
	}
}

static int create(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

	if (fd < 0)
		fail(path, "cannot be created: %s", strerror(errno));
	return fd;
}

static void write_image(const char *path, size_t bytes)
{
	enum { STEP = CONTENT_HUGE };
	uint8_t *buffer = machine_alloc(STEP, "image");
	char part[520];
	int fd;

	snprintf(part, sizeof(part), "%s.new", path);
	fd = create(part);
	for (size_t at = 0; at < bytes; at += STEP) {
		fill_pages(buffer, at / CONTENT_PAGE, STEP / CONTENT_PAGE);
		write_all(fd, part, buffer, STEP, (off_t)at);
		progress(at, bytes, "image");
	}
	progress(1, 1, "");
	if (fsync(fd) || close(fd) || rename(part, path))
		fail(path, "cannot be written: %s", strerror(errno));
	machine_free(buffer, STEP);
}

/* Is the file at C->path an image that an earlier run made? */
static bool is_there(const struct content *c)
{
	struct stat st;
	uint64_t first = 0, last = 0;
	int fd = open(c->path, O_RDONLY | O_CLOEXEC);
	bool same;

	if (fd < 0)
		return false;
	same = !fstat(fd, &st) && (size_t)st.st_size == c->bytes &&
	       pread(fd, &first, 8, 0) == 8 &&
	       pread(fd, &last, 8, (off_t)(c->bytes - CONTENT_PAGE)) == 8 &&
	       first == content_word(0) && last == content_word(c->bytes / CONTENT_PAGE - 1);
	close(fd);
	return same;
}

static uint8_t *make_buffer(size_t bytes, int advice)
{
	uint8_t *p = mmap(NULL, bytes + CONTENT_HUGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		fail("source buffer", "%zu bytes of memory: %s", bytes, strerror(errno));
	p = (uint8_t *)(((uintptr_t)p + CONTENT_HUGE - 1) & ~(uintptr_t)(CONTENT_HUGE - 1));
	madvise(p, bytes, advice);
	fill_pages(p, 0, bytes / CONTENT_PAGE);
	return p;
}

void content_make(struct content *c, const char *dir, size_t bytes, bool buffers)
{
	make_folder(dir);
	c->bytes = bytes;
	snprintf(c->path, sizeof(c->path), "%s/image-%zu.mem", dir, bytes >> 20);
	if (!is_there(c))
		write_image(c->path, bytes);
	if (buffers) {
		c->buffer = make_buffer(bytes, MADV_NOHUGEPAGE);
		c->huge = make_buffer(bytes, MADV_HUGEPAGE);
	}
	content_warm(c);
}

void content_sparse(char *path, size_t size, const char *dir, size_t bytes)
{
	uint8_t *buffer = machine_alloc(CONTENT_HUGE, "image");
	int fd;

	make_folder(dir);
	snprintf(path, size, "%s/sparse-%zu.mem", dir, bytes >> 20);
	fd = create(path);
	fill_pages(buffer, 0, CONTENT_HUGE / CONTENT_PAGE);
	write_all(fd, path, buffer, CONTENT_HUGE, 0);
	write_all(fd, path, buffer, CONTENT_HUGE, (off_t)(bytes - CONTENT_HUGE));
	if (fsync(fd) || close(fd))
		fail(path, "cannot be written: %s", strerror(errno));
	machine_free(buffer, CONTENT_HUGE);
}

static int open_image(const struct content *c)
{
	int fd = open(c->path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fail(c->path, "cannot be opened: %s", strerror(errno));
	return fd;
}

void content_warm(const struct content *c)
{
	uint8_t *buffer = machine_alloc(CONTENT_HUGE, "image");
	int fd = open_image(c);

	for (size_t at = 0; at < c->bytes; at += CONTENT_HUGE)
		if (pread(fd, buffer, CONTENT_HUGE, (off_t)at) != (ssize_t)CONTENT_HUGE)
			fail(c->path, "cannot be read: %s", strerror(errno));
	close(fd);
	machine_free(buffer, CONTENT_HUGE);
}

uint8_t *content_map(const struct content *c, int flags)
{
	int fd = open_image(c);
	uint8_t *p = mmap(NULL, c->bytes, PROT_READ, MAP_PRIVATE | flags, fd, 0);

	if (p == MAP_FAILED)
		fail(c->path, "cannot be mapped: %s", strerror(errno));
	close(fd);
	return p;
}

bool content_drop(const struct content *c)
{
	size_t pages = c->bytes / CONTENT_PAGE, cached = 0;
	uint8_t *map, *there;
	int fd = open_image(c);

	fdatasync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
	map = content_map(c, 0);
	there = machine_alloc(pages, "page cache");
	if (mincore(map, c->bytes, there))
		fail(c->path, "page cache unknown: %s", strerror(errno));
	for (size_t i = 0; i < pages; i++)
		cached += there[i] & 1;
	machine_free(there, pages);
	munmap(map, c->bytes);
	return cached < pages / 100;
}

void content_free(struct content *c)
{
	machine_free(c->buffer, c->bytes);
	machine_free(c->huge, c->bytes);
	c->buffer = c->huge = NULL;
}
