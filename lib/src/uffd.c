/* SPDX-License-Identifier: MIT */
/*
 * uffd.c: the system calls of a userfaultfd and nothing else.  Internal; the
 * errno rules are in uffd.h.  Source: ioctl_userfaultfd(2) and
 * fs/userfaultfd.c of Linux 6.1 to 7.3.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "err.h"
#include "uffd.h"

#ifndef UFFDIO_POISON /* Linux 6.6; Debian 12's headers are of 6.1 */
#define _UFFDIO_POISON 0x08
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif

static bool is_userfaultfd(int fd)
{
	char path[64], target[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		return errno == ENOENT && fcntl(fd, F_GETFD) >= 0; /* no /proc: believe the caller */
	target[n] = '\0';
	return !strcmp(target, "anon_inode:[userfaultfd]");
}

int uffd_adopt(int fd)
{
	int flags, copy;

	if (!is_userfaultfd(fd))
		return err_set(-EBADF, "userfaultfd: the file descriptor is not a userfaultfd");
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return err_set(-errno, "userfaultfd: cannot duplicate it: %m");
	/* poll() reports an error, for ever, on a blocking userfaultfd. */
	flags = fcntl(copy, F_GETFL);
	if (!(flags & O_NONBLOCK) && fcntl(copy, F_SETFL, flags | O_NONBLOCK)) {
		int err = err_set(-errno, "userfaultfd: cannot make it non-blocking: %m");

		close(copy);
		return err;
	}
	return copy;
}

int uffd_register(int uffd, uint64_t hva, uint64_t length, bool minor)
{
	struct uffdio_register r = {
		.range = { hva, length },
		.mode = UFFDIO_REGISTER_MODE_MISSING | (minor ? UFFDIO_REGISTER_MODE_MINOR : 0),
	};

	if (!ioctl(uffd, UFFDIO_REGISTER, &r))
		return 0;
	return err_set(-errno, "userfaultfd: cannot register %llu bytes at 0x%llx%s: %m",
		       (unsigned long long)length, (unsigned long long)hva,
		       minor ? " for minor faults" : "");
}

int uffd_unregister(int uffd, uint64_t hva, uint64_t length)
{
	struct uffdio_range r = { hva, length };

	return ioctl(uffd, UFFDIO_UNREGISTER, &r) ? -errno : 0;
}

/*
 * After an install ioctl that gave RC and PROGRESS (bytes or -errno): go on
 * (0), or stop with the error.  A range that stopped after some progress
 * gives EAGAIN whatever stopped it; asking again tells the true reason.
 */
static int step(int rc, int64_t progress, uint64_t *done)
{
	if (progress > 0)
		*done += (uint64_t)progress;
	else if (rc)
		return -errno;
	return 0;
}

int uffd_copy(int uffd, uint64_t hva, const void *from, uint64_t length, uint64_t *done)
{
	int err = 0;

	for (*done = 0; !err && *done < length;) {
		struct uffdio_copy c = {
			.dst = hva + *done,
			.src = (uint64_t)(uintptr_t)from + *done,
			.len = length - *done,
		};
		int rc = ioctl(uffd, UFFDIO_COPY, &c);

		err = step(rc, c.copy, done);
	}
	return err;
}

int uffd_zero(int uffd, uint64_t hva, uint64_t length, uint64_t *done)
{
	int err = 0;

	for (*done = 0; !err && *done < length;) {
		struct uffdio_zeropage z = { .range = { hva + *done, length - *done } };
		int rc = ioctl(uffd, UFFDIO_ZEROPAGE, &z);

		err = step(rc, z.zeropage, done);
	}
	return err;
}

int uffd_continue(int uffd, uint64_t hva, uint64_t length, uint64_t *done)
{
	int err = 0;

	for (*done = 0; !err && *done < length;) {
		struct uffdio_continue c = { .range = { hva + *done, length - *done } };
		int rc = ioctl(uffd, UFFDIO_CONTINUE, &c);

		err = step(rc, c.mapped, done);
	}
	return err;
}

int uffd_poison(int uffd, uint64_t hva, uint64_t length, uint64_t *done)
{
	int err = 0;

	for (*done = 0; !err && *done < length;) {
		struct uffdio_poison p = { .range = { hva + *done, length - *done } };
		int rc = ioctl(uffd, UFFDIO_POISON, &p);

		err = step(rc, p.updated, done);
	}
	return err;
}

void uffd_wake(int uffd, uint64_t hva, uint64_t length)
{
	struct uffdio_range r = { hva, length };

	/* Fails only for a range that is no range; then nobody waits in it. */
	ioctl(uffd, UFFDIO_WAKE, &r);
}

bool uffd_pending(int uffd)
{
	struct pollfd p = { .fd = uffd, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

int uffd_read(int uffd, struct uffd_msg *events, unsigned max)
{
	ssize_t n;

	do
		n = read(uffd, events, max * sizeof(*events));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	return (int)(n / (ssize_t)sizeof(*events));
}
