/* SPDX-License-Identifier: MIT */
/*
 * timeline.c: lines into a buffer, buffers into a file.
 * A line is made without printf(3): it lies in the way of a vCPU that waits.
 * Internal; the format of the lines is documented (infill-attach(1)) and stays.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "err.h"
#include "timeline.h"

#define BUFFER 65536
#define LONGEST 128 /* the longest line: three numbers and a word */
#define MARK_MAX 32   /* bytes of a mark; a longer one is cut */

struct timeline {
	pthread_mutex_t lock; /* of all that follows */
	int fd;
	bool ended; /* a write failed: nothing is kept any more */
	size_t used;
	char buffer[BUFFER];
};

static const char *const class_name[] = {
	[TIMELINE_DEMAND] = "demand",
	[TIMELINE_TRACE] = "trace",
	[TIMELINE_REST] = "rest",
	[TIMELINE_ZERO] = "zero",
	[TIMELINE_POISON] = "poison",
};

int timeline_new(struct timeline **timeline, int fd)
{
	struct timeline *t;
	struct stat st;

	*timeline = NULL;
	if (fstat(fd, &st))
		return err_set(-errno, "timeline: cannot use its file descriptor: %m");
	if (!S_ISREG(st.st_mode))
		return err_set(-EINVAL, "timeline: is not a regular file: give a file");
	t = calloc(1, sizeof(*t));
	if (!t)
		return err_set(-ENOMEM, "timeline: %m");
	t->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (t->fd < 0) {
		int code = -errno;

		free(t);
		return err_set(code, "timeline: cannot duplicate its file descriptor: %m");
	}
	pthread_mutex_init(&t->lock, NULL);
	*timeline = t;
	return 0;
}

/* One write holds whole lines only; a disk that takes half of them is full. */
static void write_out(struct timeline *t)
{
	ssize_t put;

	if (!t->used || t->ended)
		return;
	do {
		put = write(t->fd, t->buffer, t->used);
	} while (put < 0 && errno == EINTR);
	t->ended = put != (ssize_t)t->used;
	t->used = 0;
}

static char *put_number(char *at, uint64_t n)
{
	char digit[20];
	size_t count = 0;

	do {
		digit[count++] = (char)('0' + n % 10);
	} while (n /= 10);
	while (count)
		*at++ = digit[--count];
	return at;
}

static char *put_word(char *at, const char *word, size_t most)
{
	size_t length = strnlen(word, most);

	memcpy(at, word, length);
	return at + length;
}

/* Room for a line, or NULL after the end; with the lock held. */
static char *line_begin(struct timeline *t, uint64_t ns)
{
	if (t->used > BUFFER - LONGEST)
		write_out(t);
	if (t->ended)
		return NULL;
	return put_number(t->buffer + t->used, ns);
}

static void line_end(struct timeline *t, char *at)
{
	*at++ = '\n';
	t->used = (size_t)(at - t->buffer);
}

void timeline_install(struct timeline *t, uint64_t ns, uint64_t offset, uint64_t bytes,
		      enum timeline_class class)
{
	char *at;

	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	at = line_begin(t, ns);
	if (at) {
		*at++ = ' ';
		at = put_number(at, offset);
		*at++ = ' ';
		at = put_number(at, bytes);
		*at++ = ' ';
		line_end(t, put_word(at, class_name[class], MARK_MAX));
	}
	pthread_mutex_unlock(&t->lock);
}

void timeline_mark(struct timeline *t, uint64_t ns, const char *mark)
{
	char *at;

	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	at = line_begin(t, ns);
	if (at)
		line_end(t, put_word(put_word(at, " - - ", 5), mark, MARK_MAX));
	pthread_mutex_unlock(&t->lock);
}

void timeline_flush(struct timeline *t)
{
	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	write_out(t);
	pthread_mutex_unlock(&t->lock);
}

void timeline_free(struct timeline *t)
{
	if (!t)
		return;
	timeline_flush(t);
	pthread_mutex_destroy(&t->lock);
	close(t->fd);
	free(t);
}
