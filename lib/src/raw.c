/* SPDX-License-Identifier: MIT */
/*
 * raw.c: the raw image: a regular file whose byte N is byte N of guest memory,
 * as Firecracker and QEMU's memory-backend-file write it.
 *
 * "Changed" is told by size, mtime, inode and device.  Every write(2) sets the
 * mtime before it copies; a store through a shared mapping sets it when a
 * clean page is first written.  What cannot be seen: stores to a page that was
 * dirty already when the image was opened, and a write within the same tick
 * of the filesystem's clock as the one before the opening.
 * Internal; may change freely.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "err.h"
#include "image.h"
#include "image_ops.h"

#define RAW_MAX (1ull << 44) /* bytes: page numbers have 32 bits everywhere */

struct raw {
	struct infill_image image;
	int fd;
	dev_t device;
	int now_flags; /* of preadv2(2) for read_now */
};

static struct raw *raw_of(struct infill_image *image)
{
	return (struct raw *)image; /* its first member */
}

static void identity_of(const struct stat *st, struct infill_identity *identity)
{
	*identity = (struct infill_identity){
		.bytes = (uint64_t)st->st_size,
		.inode = st->st_ino,
		.mtime_sec = st->st_mtim.tv_sec,
		.mtime_nsec = st->st_mtim.tv_nsec,
	};
}

static int raw_fresh(struct infill_image *image)
{
	struct raw *raw = raw_of(image);
	struct infill_identity now;
	struct stat st;

	if (fstat(raw->fd, &st))
		return -errno;
	identity_of(&st, &now);
	if (st.st_dev != raw->device || now.bytes != image->identity.bytes ||
	    now.inode != image->identity.inode || now.mtime_sec != image->identity.mtime_sec ||
	    now.mtime_nsec != image->identity.mtime_nsec)
		return -ESTALE;
	return 0;
}

static int raw_read_now(struct infill_image *image, uint64_t offset, void *buffer, size_t length)
{
	struct raw *raw = raw_of(image);
	struct iovec vector = { buffer, length };
	ssize_t got = preadv2(raw->fd, &vector, 1, (off_t)offset, raw->now_flags);

	if (got == (ssize_t)length)
		return 0;
	if (got > 0)
		return -EAGAIN;
	if (got == 0)
		return -ENODATA;
	return errno == EINTR || errno == EOPNOTSUPP ? -EAGAIN : -errno;
}

static int raw_read(struct infill_image *image, uint64_t offset, void *buffer, size_t length)
{
	struct raw *raw = raw_of(image);

	for (size_t done = 0; done < length;) {
		ssize_t got = pread(raw->fd, (char *)buffer + done, length - done,
				    (off_t)(offset + done));

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got ? -errno : -ENODATA;
		done += (size_t)got;
	}
	return 0;
}

static void raw_prep(struct infill_image *image, struct io_uring_sqe *sqe, uint64_t offset,
		     void *buffer, size_t length)
{
	io_uring_prep_read(sqe, raw_of(image)->fd, buffer, (unsigned)length, offset);
}

static bool raw_hole(struct infill_image *image, uint64_t offset, uint64_t *end)
{
	struct raw *raw = raw_of(image);
	const off_t mask = ~(off_t)(IMAGE_PAGE - 1);
	off_t data = lseek(raw->fd, (off_t)offset, SEEK_DATA);
	off_t hole;

	*end = image->bytes;
	if (data < 0)
		return errno == ENXIO; /* else holes are not known here: all is data */
	if ((data & mask) > (off_t)offset) {
		*end = (uint64_t)(data & mask);
		return true;
	}
	hole = lseek(raw->fd, data, SEEK_HOLE);
	if (hole > data)
		*end = (uint64_t)((hole + (off_t)IMAGE_PAGE - 1) & mask);
	return false;
}

static void raw_will_need(struct infill_image *image, uint64_t offset, uint64_t length)
{
	posix_fadvise(raw_of(image)->fd, (off_t)offset, (off_t)length, POSIX_FADV_WILLNEED);
}

static void raw_close(struct infill_image *image)
{
	struct raw *raw = raw_of(image);

	close(raw->fd);
	free(raw);
}

static const struct image_ops raw_ops = {
	.read_now = raw_read_now,
	.read = raw_read,
	.prep = raw_prep,
	.hole = raw_hole,
	.will_need = raw_will_need,
	.fresh = raw_fresh,
	.close = raw_close,
};

static int raw_verify(const struct stat *st, const char *name)
{
	if (S_ISDIR(st->st_mode))
		return err_set(-EINVAL, "%s: is a directory: give the memory file in it", name);
	if (!S_ISREG(st->st_mode))
		return err_set(-EINVAL, "%s: is not a regular file: give the memory file of a "
					"snapshot", name);
	if (!st->st_size)
		return err_set(-EINVAL, "%s: is empty: give the memory file of a snapshot", name);
	if (st->st_size % IMAGE_PAGE)
		return err_set(-EINVAL, "%s: is %lld bytes, not a multiple of %u: it is cut short "
					"or no raw memory file", name, (long long)st->st_size,
			       IMAGE_PAGE);
	if ((uint64_t)st->st_size > RAW_MAX)
		return err_set(-EFBIG, "%s: is larger than 16 TiB: split it", name);
	return 0;
}

/*
 * Older kernels refuse RWF_NOWAIT on tmpfs, where a plain read does not wait
 * either.  On others that refuse it, read_now always says -EAGAIN.
 */
static int now_flags(int fd)
{
	char byte;
	struct iovec vector = { &byte, 1 };
	struct statfs fs;

	if (preadv2(fd, &vector, 1, 0, RWF_NOWAIT) >= 0 || errno != EOPNOTSUPP)
		return RWF_NOWAIT;
	return !fstatfs(fd, &fs) && fs.f_type == TMPFS_MAGIC ? 0 : RWF_NOWAIT;
}

static int raw_setup(struct raw *raw, const char *name)
{
	struct stat st;
	int code;

	if (fstat(raw->fd, &st))
		return err_set(-errno, "%s: cannot look at the image: %m", name);
	code = raw_verify(&st, name);
	if (code)
		return code;
	raw->image.name = strdup(name);
	if (!raw->image.name)
		return err_set(-ENOMEM, "%s: %m", name);
	raw->image.ops = &raw_ops;
	raw->image.bytes = (uint64_t)st.st_size;
	raw->device = st.st_dev;
	identity_of(&st, &raw->image.identity);
	/* What is read ahead is chosen by the queue, which knows what the guest needs. */
	posix_fadvise(raw->fd, 0, 0, POSIX_FADV_RANDOM);
	raw->now_flags = now_flags(raw->fd);
	return 0;
}

int raw_open(struct infill_image **image, int fd, const char *name)
{
	struct raw *raw = calloc(1, sizeof(*raw));
	int code;

	if (!raw) {
		close(fd);
		return err_set(-ENOMEM, "%s: %m", name);
	}
	raw->fd = fd;
	code = raw_setup(raw, name);
	if (code) {
		free(raw->image.name);
		close(fd);
		free(raw);
		return code;
	}
	*image = &raw->image;
	return 0;
}
