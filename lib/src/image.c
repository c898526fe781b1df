/* SPDX-License-Identifier: MIT */
/*
 * image.c: what holds for every kind of image: ranges, the verdict "stale",
 * opening and messages.  How bytes are found is in raw.c, behind image_ops.h.
 *
 * A read gives bytes, and only then is the source looked at again: a change
 * that came before the bytes were read shows, one that comes later does not
 * matter.  The verdict is kept, because a file that was changed and put back
 * may have given wrong bytes to another page.
 * Internal; the functions of infill.h are ABI.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "err.h"
#include "image.h"
#include "image_ops.h"
#include "options.h"

/* open(2) must not wait for a FIFO's writer, but reads by io_uring need the flag gone. */
static int open_plain(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return err_set(-errno, "%s: cannot open the image: %m", path);
	if (fcntl(fd, F_SETFL, 0) < 0) {
		int code = err_set(-errno, "%s: cannot open the image: %m", path);

		close(fd);
		return code;
	}
	return fd;
}

static int open_options(struct infill_image_options *to,
			const struct infill_image_options *options)
{
	int code = OPTIONS_COPY(to, options, infill_image_options);

	if (code)
		return code;
	if (to->flags)
		return err_set(-EINVAL, "infill_image_options: flags 0x%x: not known", to->flags);
	return 0;
}

int infill_image_open(struct infill_image **image, const char *path,
		      const struct infill_image_options *options)
{
	struct infill_image_options o;
	int fd, code;

	*image = NULL;
	code = open_options(&o, options);
	if (code)
		return code;
	fd = open_plain(path);
	if (fd < 0)
		return fd;
	return raw_open(image, fd, path);
}

/* What a descriptor of the caller's must and must not be. */
static int fd_usable(int fd, const char *name)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return err_set(-errno, "%s: cannot use the image's file descriptor: %m", name);
	if ((flags & O_ACCMODE) == O_WRONLY || flags & O_PATH)
		return err_set(-EBADF, "%s: is not open for reading: open it with O_RDONLY", name);
	if (flags & (O_DIRECT | O_NONBLOCK))
		return err_set(-EINVAL, "%s: is open with O_DIRECT or O_NONBLOCK: "
					"open it without", name);
	return 0;
}

int infill_image_open_fd(struct infill_image **image, int fd, const char *name,
			 const struct infill_image_options *options)
{
	struct infill_image_options o;
	int own, code;

	*image = NULL;
	if (!name)
		name = "image";
	code = open_options(&o, options);
	if (!code)
		code = fd_usable(fd, name);
	if (code)
		return code;
	own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return err_set(-errno, "%s: cannot duplicate the file descriptor: %m", name);
	return raw_open(image, own, name);
}

uint64_t infill_image_bytes(const struct infill_image *image)
{
	return image->bytes;
}

void infill_image_identity(const struct infill_image *image, struct infill_identity *identity)
{
	*identity = image->identity;
}

const char *image_name(const struct infill_image *image)
{
	return image->name;
}

int infill_image_check(struct infill_image *image)
{
	int code = -ESTALE;

	if (!atomic_load_explicit(&image->stale, memory_order_relaxed)) {
		code = image->ops->fresh(image);
		if (!code)
			return 0;
		if (code == -ESTALE)
			atomic_store_explicit(&image->stale, true, memory_order_relaxed);
	}
	if (code == -ESTALE)
		return err_set(code, "%s: has changed since it was opened: serve a file that "
				     "nobody writes", image->name);
	return err_set(code, "%s: cannot look at the image: %m", image->name);
}

void infill_image_close(struct infill_image *image)
{
	char *name;

	if (!image)
		return;
	name = image->name;
	image->ops->close(image);
	free(name);
}

static bool in_range(const struct infill_image *image, uint64_t offset, size_t length)
{
	return offset <= image->bytes && length <= image->bytes - offset;
}

static int range_error(const struct infill_image *image, uint64_t offset, size_t length)
{
	return err_set(-ERANGE, "%s: %zu bytes at %llu reach past its end at %llu", image->name,
		       length, (unsigned long long)offset, (unsigned long long)image->bytes);
}

/* A change explains any other error, and is the error to report. */
static int read_error(struct infill_image *image, int code, uint64_t offset, size_t length)
{
	int fresh = infill_image_check(image);

	if (fresh)
		return fresh;
	if (code == -ENODATA)
		code = -EIO;
	return err_set(code, "%s: cannot read %zu bytes at %llu: %m", image->name, length,
		       (unsigned long long)offset);
}

int image_read_unverified(struct infill_image *image, uint64_t offset, void *buffer, size_t length)
{
	int code;

	if (!in_range(image, offset, length))
		return range_error(image, offset, length);
	code = image->ops->read_now(image, offset, buffer, length);
	return !code || code == -EAGAIN ? code : read_error(image, code, offset, length);
}

int image_read_now(struct infill_image *image, uint64_t offset, void *buffer, size_t length)
{
	int code = image_read_unverified(image, offset, buffer, length);

	return code ? code : infill_image_check(image);
}

int image_read(struct infill_image *image, uint64_t offset, void *buffer, size_t length)
{
	int code;

	if (!in_range(image, offset, length))
		return range_error(image, offset, length);
	code = image->ops->read(image, offset, buffer, length);
	return code ? read_error(image, code, offset, length) : infill_image_check(image);
}

void image_prep(struct infill_image *image, struct io_uring_sqe *sqe, uint64_t offset,
		void *buffer, size_t length)
{
	image->ops->prep(image, sqe, offset, buffer, length);
}

/*
 * A read stops short in front of a bad sector, and would do so each time that
 * it is submitted again.  Look at the page where it stopped, to find the error.
 */
static int read_rest(struct infill_image *image, uint64_t offset)
{
	char page[IMAGE_PAGE];
	uint64_t left = image->bytes - offset;
	int code = image_read(image, offset, page, left < sizeof(page) ? left : sizeof(page));

	return code ? code : -EAGAIN;
}

int image_end(struct infill_image *image, int result, uint64_t offset, size_t length)
{
	if (!in_range(image, offset, length))
		return range_error(image, offset, length);
	if (result == -EAGAIN || result == -EINTR) {
		int code = infill_image_check(image);

		return code ? code : -EAGAIN;
	}
	if (result < 0)
		return read_error(image, result, offset, length);
	if ((size_t)result < length)
		return read_rest(image, offset + (unsigned)result);
	return infill_image_check(image);
}

bool image_hole(struct infill_image *image, uint64_t offset, uint64_t *end)
{
	bool hole;

	*end = image->bytes;
	if (offset >= image->bytes)
		return false;
	hole = image->ops->hole(image, offset, end);
	/* A file that was cut ends in what looks like a hole: let a read find that out. */
	return hole && !infill_image_check(image);
}

void image_will_need(struct infill_image *image, uint64_t offset, uint64_t length)
{
	if (image->ops->will_need && in_range(image, offset, length))
		image->ops->will_need(image, offset, length);
}
