/* SPDX-License-Identifier: MIT */
/*
 * trace.c: the trace file, and what is replayed from it.
 *
 * The file, version 1; all numbers little-endian, nothing aligned by padding:
 *
 *   offset size
 *        0    8  magic "infilltr"
 *        8    4  version, 1
 *       12    4  bytes of the header, 56: the pages begin here
 *       16    8  image: size in bytes
 *       24    8  image: inode
 *       32    8  image: time of last modification, seconds (signed)
 *       40    8  image: ... and nanoseconds (signed)
 *       48    8  number of pages, N
 *       56   4N  page numbers (byte offset in the image / 4096), in the order
 *                in which the guest first touched them
 *    56+4N    8  XXH3, 64 bits, of all bytes before
 *
 * The file has no further bytes.  Every change of this needs another version.
 * A trace comes from wherever its user got it: trust none of it.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL /* no run-time dependency for one function */
#include <xxhash.h>

#include "err.h"
#include "trace.h"

#define PAGE 4096u
#define VERSION 1u
#define FILE_MAX (1ull << 30)

static const char magic[8] = { 'i', 'n', 'f', 'i', 'l', 'l', 't', 'r' };

struct header {
	char magic[8];
	uint32_t version, length;
	uint64_t bytes, inode, mtime_sec, mtime_nsec;
	uint64_t count;
};

#define LEAST (sizeof(struct header) + sizeof(uint64_t)) /* bytes of an empty trace */

/* ---- runs ---------------------------------------------------------------- */

/* What trace_merge() works on. */
struct merge {
	struct trace *trace;
	size_t capacity;  /* of trace->run */
	uint64_t *seen;   /* a bit for each page up to the highest */
	uint32_t *window; /* pages of the window under way */
};

static bool first_time(uint64_t *seen, uint32_t page)
{
	uint64_t bit = 1ull << page % 64;
	bool first = !(seen[page / 64] & bit);

	seen[page / 64] |= bit;
	return first;
}

static int by_page(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static int grow(struct merge *m)
{
	size_t capacity = m->capacity ? 2 * m->capacity : 64;
	struct trace_run *run;

	if (m->trace->count < m->capacity)
		return 0;
	run = reallocarray(m->trace->run, capacity, sizeof(*run));
	if (!run)
		return -ENOMEM;
	m->trace->run = run;
	m->capacity = capacity;
	return 0;
}

/* Append COUNT sorted pages; neighbours within them are joined. */
static int append(struct merge *m, const uint32_t *page, size_t count)
{
	struct trace *t = m->trace;

	for (size_t i = 0; i < count; i++) {
		uint64_t offset = (uint64_t)page[i] * PAGE;

		if (i && page[i] == page[i - 1] + 1) {
			t->run[t->count - 1].length += PAGE;
			continue;
		}
		if (grow(m))
			return -ENOMEM;
		t->run[t->count++] = (struct trace_run){ offset, PAGE };
	}
	t->bytes += (uint64_t)count * PAGE;
	return 0;
}

static int merge_window(struct merge *m, const uint32_t *page, size_t count)
{
	size_t have = 0;

	for (size_t i = 0; i < count; i++)
		if (first_time(m->seen, page[i]))
			m->window[have++] = page[i];
	qsort(m->window, have, sizeof(*m->window), by_page);
	return append(m, m->window, have);
}

static int merge_all(struct merge *m, const uint32_t *page, size_t count, size_t window,
		     size_t most)
{
	uint32_t last = 0;
	int code = 0;

	for (size_t i = 0; i < count; i++)
		if (page[i] > last)
			last = page[i];
	m->seen = calloc(last / 64 + 1, sizeof(*m->seen));
	m->window = calloc(most < count ? most : count, sizeof(*m->window));
	if (!m->seen || !m->window)
		code = -ENOMEM;
	for (size_t at = 0; !code && at < count;) {
		size_t n = count - at < window ? count - at : window;

		code = merge_window(m, page + at, n);
		at += n;
		window = window < most / 2 ? 2 * window : most;
	}
	free(m->window);
	free(m->seen);
	return code;
}

int trace_merge(struct trace *trace, const uint32_t *page, size_t count, size_t window,
		size_t most)
{
	struct merge m = { .trace = trace };
	int code;

	*trace = (struct trace){ 0 };
	if (!count)
		return 0;
	if (!window)
		window = 1;
	code = merge_all(&m, page, count, window, window < most ? most : window);
	if (code) {
		trace_free(trace);
		return err_set(code, "trace: cannot merge %zu pages: %m", count);
	}
	return 0;
}

void trace_free(struct trace *trace)
{
	free(trace->run);
	*trace = (struct trace){ 0 };
}

/* ---- reading --------------------------------------------------------------- */

static int damaged(const char *name, const char *why)
{
	return err_set(-EBADMSG, "%s: is damaged: %s: record it again", name, why);
}

static void take_header(struct header *h, const void *data)
{
	memcpy(h, data, sizeof(*h));
	h->version = le32toh(h->version);
	h->length = le32toh(h->length);
	h->bytes = le64toh(h->bytes);
	h->inode = le64toh(h->inode);
	h->mtime_sec = le64toh(h->mtime_sec);
	h->mtime_nsec = le64toh(h->mtime_nsec);
	h->count = le64toh(h->count);
}

static int verify_header(const struct header *h, size_t length, const char *name)
{
	if (memcmp(h->magic, magic, sizeof(magic)))
		return err_set(-EBADMSG, "%s: is not a trace: record one", name);
	if (h->version != VERSION)
		return err_set(-EPROTO, "%s: is a trace of version %u, but %u is known: "
					"record it again", name, h->version, VERSION);
	if (h->length != sizeof(*h))
		return damaged(name, "wrong header");
	if ((length - LEAST) % sizeof(uint32_t) || h->count != (length - LEAST) / sizeof(uint32_t))
		return damaged(name, "wrong length");
	return 0;
}

static int verify_sum(const char *data, size_t length, const char *name)
{
	uint64_t sum;

	memcpy(&sum, data + length - sizeof(sum), sizeof(sum));
	if (le64toh(sum) != XXH3_64bits(data, length - sizeof(sum)))
		return damaged(name, "wrong checksum");
	return 0;
}

static int verify_identity(const struct header *h, const struct infill_identity *identity,
			   const char *name)
{
	if (h->bytes == identity->bytes && h->inode == identity->inode &&
	    (int64_t)h->mtime_sec == identity->mtime_sec &&
	    (int64_t)h->mtime_nsec == identity->mtime_nsec)
		return 0;
	return err_set(-ESTALE, "%s: was recorded from another image, or from this one before it "
				"changed: record it again", name);
}

static int take_pages(struct trace *trace, const char *data, size_t count, uint64_t bytes,
		      const char *name)
{
	uint32_t *page;
	int code = 0;

	if (!count)
		return 0;
	page = malloc(count * sizeof(*page));
	if (!page)
		return err_set(-ENOMEM, "%s: %m", name);
	memcpy(page, data, count * sizeof(*page));
	for (size_t i = 0; i < count && !code; i++) {
		page[i] = le32toh(page[i]);
		if (page[i] >= bytes / PAGE)
			code = damaged(name, "names a page past the end of the image");
	}
	if (!code)
		code = trace_merge(trace, page, count, TRACE_WINDOW, TRACE_WINDOW_MAX);
	free(page);
	return code;
}

int trace_parse(struct trace *trace, const void *data, size_t length,
		const struct infill_identity *identity, const char *name)
{
	struct header h;
	int code;

	*trace = (struct trace){ 0 };
	if (length < LEAST)
		return damaged(name, "cut short");
	take_header(&h, data);
	code = verify_header(&h, length, name);
	if (!code)
		code = verify_sum(data, length, name);
	if (!code)
		code = verify_identity(&h, identity, name);
	if (code)
		return code;
	return take_pages(trace, (const char *)data + sizeof(h), (size_t)h.count, identity->bytes,
			  name);
}

static int read_whole(int fd, char *data, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t got = read(fd, data + done, length - done);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got ? -errno : -EBADMSG;
		done += (size_t)got;
	}
	return 0;
}

static int load_open(struct trace *trace, int fd, const char *path,
		     const struct infill_identity *identity)
{
	struct stat st;
	char *data;
	int code;

	if (fstat(fd, &st))
		return err_set(-errno, "%s: cannot look at the trace: %m", path);
	if (!S_ISREG(st.st_mode))
		return err_set(-EINVAL, "%s: is not a regular file: give a recorded trace", path);
	if ((uint64_t)st.st_size > FILE_MAX)
		return err_set(-EFBIG, "%s: is larger than any trace: give a recorded trace", path);
	data = malloc((size_t)st.st_size + 1);
	if (!data)
		return err_set(-ENOMEM, "%s: %m", path);
	code = read_whole(fd, data, (size_t)st.st_size);
	if (code)
		code = err_set(code, "%s: cannot read the trace: %m", path);
	else
		code = trace_parse(trace, data, (size_t)st.st_size, identity, path);
	free(data);
	return code;
}

int trace_load(struct trace *trace, const char *path, const struct infill_identity *identity)
{
	int fd, code;

	*trace = (struct trace){ 0 };
	/* NONBLOCK: do not wait for a FIFO's writer. */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return err_set(-errno, "%s: cannot open the trace: %m", path);
	code = load_open(trace, fd, path, identity);
	close(fd);
	return code;
}

/* ---- writing --------------------------------------------------------------- */

static void put_header(void *data, const struct infill_identity *identity, size_t count)
{
	struct header h = {
		.version = htole32(VERSION),
		.length = htole32(sizeof(h)),
		.bytes = htole64(identity->bytes),
		.inode = htole64(identity->inode),
		.mtime_sec = htole64((uint64_t)identity->mtime_sec),
		.mtime_nsec = htole64((uint64_t)identity->mtime_nsec),
		.count = htole64(count),
	};

	memcpy(h.magic, magic, sizeof(magic));
	memcpy(data, &h, sizeof(h));
}

/* The whole file in memory, LENGTH bytes; NULL: no memory. */
static char *compose(const struct infill_identity *identity, const uint32_t *page, size_t count,
		     size_t length)
{
	char *data = malloc(length), *at;
	uint64_t sum;

	if (!data)
		return NULL;
	put_header(data, identity, count);
	at = data + sizeof(struct header);
	for (size_t i = 0; i < count; i++, at += sizeof(*page)) {
		uint32_t one = htole32(page[i]);

		memcpy(at, &one, sizeof(one));
	}
	sum = htole64(XXH3_64bits(data, length - sizeof(sum)));
	memcpy(at, &sum, sizeof(sum));
	return data;
}

static int write_whole(int fd, const char *data, size_t length)
{
	while (length) {
		ssize_t put = write(fd, data, length);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return put ? -errno : -EIO;
		data += put;
		length -= (size_t)put;
	}
	return fsync(fd) ? -errno : 0;
}

/* The new name itself must reach the disk.  Some filesystems cannot say so: not an error. */
static void sync_folder(const char *path)
{
	char *copy = strdup(path);
	int fd;

	if (!copy)
		return;
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0) {
		(void)!fsync(fd);
		close(fd);
	}
	free(copy);
}

static int replace(const char *path, const char *temporary, const char *data, size_t length)
{
	int code, fd;

	unlink(temporary); /* of a process with this id that was killed */
	fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return -errno;
	code = write_whole(fd, data, length);
	if (close(fd) && !code)
		code = -errno;
	if (!code && rename(temporary, path))
		code = -errno;
	if (code)
		unlink(temporary);
	return code;
}

static int save_bytes(const char *path, const char *data, size_t length)
{
	char *temporary;
	int code;

	/* Threads of one process may save to one path at once: the thread's id. */
	if (asprintf(&temporary, "%s.tmp.%d", path, (int)gettid()) < 0)
		return -ENOMEM;
	code = replace(path, temporary, data, length);
	free(temporary);
	if (!code)
		sync_folder(path);
	return code;
}

int trace_save(const char *path, const struct infill_identity *identity, const uint32_t *page,
	       size_t count)
{
	size_t length = LEAST + count * sizeof(*page);
	char *data;
	int code;

	if (count > (FILE_MAX - LEAST) / sizeof(*page))
		return err_set(-EFBIG, "%s: cannot write the trace: %zu pages are too many", path,
			       count);
	for (size_t i = 0; i < count; i++)
		if (page[i] >= identity->bytes / PAGE)
			return err_set(-EINVAL, "%s: cannot write the trace: page %u is past the "
						"end of the image", path, page[i]);
	data = compose(identity, page, count, length);
	code = data ? save_bytes(path, data, length) : -ENOMEM;
	free(data);
	return code ? err_set(code, "%s: cannot write the trace: %m", path) : 0;
}

/* ---- by address ------------------------------------------------------------- */

static int by_offset(const void *a, const void *b)
{
	const struct trace_run *x = a, *y = b;

	return (x->offset > y->offset) - (x->offset < y->offset);
}

int trace_index_new(struct trace_index *index, const struct trace *trace)
{
	*index = (struct trace_index){ .count = trace->count };
	if (!trace->count)
		return 0;
	index->run = malloc(trace->count * sizeof(*index->run));
	if (!index->run)
		return err_set(-ENOMEM, "trace: no memory for its index");
	memcpy(index->run, trace->run, trace->count * sizeof(*index->run));
	qsort(index->run, index->count, sizeof(*index->run), by_offset);
	return 0;
}

void trace_index_free(struct trace_index *index)
{
	free(index->run);
	*index = (struct trace_index){ 0 };
}

const struct trace_run *trace_index_find(const struct trace_index *index, uint64_t offset)
{
	size_t low = 0, high = index->count;

	/* The last run that begins at OFFSET or before: a page is in one run only. */
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (index->run[middle].offset <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || offset - index->run[low - 1].offset >= index->run[low - 1].length)
		return NULL;
	return &index->run[low - 1];
}
