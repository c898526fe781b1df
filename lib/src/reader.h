/* SPDX-License-Identifier: MIT */
/*
 * reader.h: reads of an image that nobody waits for, many at once.
 *
 * Where io_uring is permitted each read is one of its operations; where it is
 * not (a container's seccomp profile, kernel.io_uring_disabled) a few threads
 * read instead.  The caller sees no difference.
 *
 * One thread uses a reader.  A request and its buffer belong to the reader
 * from reader_submit() until reader_reap() returns it.
 * Internal.
 */
#ifndef INFILL_READER_H
#define INFILL_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "infill.h"

struct reader;

struct reader_request {
	struct infill_image *image;
	uint64_t offset;
	size_t length;
	void *buffer;
	int result; /* on return: 0, or -errno as of image_end() */
	struct reader_request *next; /* the reader's */
};

int reader_new(struct reader **reader);

/* Becomes readable when requests are done; call reader_seen() then, and reap them all. */
int reader_fd(const struct reader *reader);
void reader_seen(struct reader *reader);

/* Take a request; it starts at the next reader_flush() at the latest. */
void reader_submit(struct reader *reader, struct reader_request *request);
void reader_flush(struct reader *reader);

/* A request that is done, or NULL. */
struct reader_request *reader_reap(struct reader *reader);

/* Requests that are under way. */
unsigned reader_busy(const struct reader *reader);

/* No request may be under way. */
void reader_free(struct reader *reader);

#endif
