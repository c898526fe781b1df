/* SPDX-License-Identifier: MIT */
/*
 * image_ops.h: what a kind of image (raw now) gives to image.c.
 *
 * image.c verifies the range before each call and `fresh` after each that
 * gave bytes, and keeps the verdict: an operation needs to do neither.
 * Another kind of image adds a file beside raw.c and a line in image.c's open.
 * Internal.
 */
#ifndef INFILL_IMAGE_OPS_H
#define INFILL_IMAGE_OPS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "infill.h"

struct io_uring_sqe;

struct image_ops {
	/* Read all of the range without waiting: 0, -EAGAIN, -errno; -ENODATA: the source ends. */
	int (*read_now)(struct infill_image *image, uint64_t offset, void *buffer, size_t length);
	/* The same, waiting; never -EAGAIN. */
	int (*read)(struct infill_image *image, uint64_t offset, void *buffer, size_t length);
	void (*prep)(struct infill_image *image, struct io_uring_sqe *sqe, uint64_t offset,
		     void *buffer, size_t length);
	/* As image_will_need(). */
	void (*will_need)(struct infill_image *image, uint64_t offset, uint64_t length);
	/* As image_hole(); offset is inside the image. */
	bool (*hole)(struct infill_image *image, uint64_t offset, uint64_t *end);
	/* 0; -ESTALE: the source is another one now; else it cannot be told. */
	int (*fresh)(struct infill_image *image);
	/* Free IMAGE and what it holds, but not its name. */
	void (*close)(struct infill_image *image);
};

/* The first member of each kind's own struct. */
struct infill_image {
	const struct image_ops *ops;
	char *name; /* for messages; owned */
	uint64_t bytes;
	struct infill_identity identity;
	atomic_bool stale; /* set once, never cleared */
};

/*
 * Make an image of the open regular file FD, which it takes over even when it
 * fails.  NAME is for messages only.
 */
int raw_open(struct infill_image **image, int fd, const char *name);

#endif
