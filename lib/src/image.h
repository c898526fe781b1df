/* SPDX-License-Identifier: MIT */
/*
 * image.h: where page content comes from.  Never writes.
 *
 * An image is read in two ways.  `read_now` gives what is in the page cache
 * and never waits; `prep`/`end` is one asynchronous read on the caller's
 * io_uring.  Each verifies, after the bytes were read and before they are
 * used, that the file is the one that was opened: otherwise -ESTALE, and the
 * image stays stale for good.  It is not mapped: what is copied from a mapping
 * to the guest cannot be verified before the guest sees it.
 *
 * A packed or remote image is another set of image_ops: all offsets are of
 * the unpacked memory, and `fd` based shortcuts stay inside image.c.
 *
 * Internal; may change freely.  Any thread may call everything but close.
 */
#ifndef INFILL_IMAGE_H
#define INFILL_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "infill.h"

struct io_uring_sqe;

#define IMAGE_PAGE 4096u

/*
 * Read [offset, offset + length) into BUFFER without waiting for a device.
 * 0; -EAGAIN: not in memory; -EIO and others: as read(2); -ESTALE.
 * A range that reaches past the end is -ERANGE.
 */
int image_read_now(struct infill_image *image, uint64_t offset, void *buffer, size_t length);

/*
 * The same, but not verified: for several reads, whose bytes may only be used when
 * infill_image_check() has said 0 behind the last one.  -ESTALE where a read fails.
 */
int image_read_unverified(struct infill_image *image, uint64_t offset, void *buffer, size_t length);

/* As image_read_now(), waiting. */
int image_read(struct infill_image *image, uint64_t offset, void *buffer, size_t length);

/* Prepare SQE to read the range into BUFFER.  The caller sets the user data. */
void image_prep(struct infill_image *image, struct io_uring_sqe *sqe, uint64_t offset,
		void *buffer, size_t length);

/*
 * Judge RESULT (cqe->res) of such a read.  0: all of LENGTH is there;
 * -EAGAIN: submit again (interrupted, or short without being at the end);
 * else the error.
 */
int image_end(struct infill_image *image, int result, uint64_t offset, size_t length);

/* Ask for a range to be read into memory, without waiting for it. */
void image_will_need(struct infill_image *image, uint64_t offset, uint64_t length);

/*
 * Is OFFSET (page aligned) in a hole?  *END becomes the end of the hole or of
 * the data that it is in, page aligned (inward for holes: a page that is
 * partly data is data).  A system call or two; no caching.
 */
bool image_hole(struct infill_image *image, uint64_t offset, uint64_t *end);

/* Is all of BUFFER (LENGTH a multiple of 64, 8-byte aligned) zero? */
bool image_is_zero(const void *buffer, size_t length);

const char *image_name(const struct infill_image *image);

#endif
