/* SPDX-License-Identifier: MIT */
/*
 * guest.c: guest memory and its userfaultfd.  New kinds of backing go here.
 */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "content.h"
#include "infill.h"
#include "machine.h"

#ifndef UFFD_FEATURE_MINOR_SHMEM
#define UFFD_FEATURE_MINOR_SHMEM (1u << 10)
#endif
#ifndef UFFDIO_REGISTER_MODE_MINOR
#define UFFDIO_REGISTER_MODE_MINOR (1u << 2)
#endif

static int new_memfd(size_t bytes)
{
	int fd = memfd_create("bench", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		fail("guest memory", "memfd of %zu bytes: %s", bytes, strerror(errno));
	return fd;
}

int guest_cache(const uint8_t *content, size_t bytes)
{
	int fd = new_memfd(bytes);

	for (size_t at = 0; at < bytes;) {
		ssize_t n = pwrite(fd, content + at, bytes - at, (off_t)at);

		if (n <= 0)
			fail("guest memory", "memfd cannot be written: %s", strerror(errno));
		at += (size_t)n;
	}
	return fd;
}

void guest_map(struct guest *g, enum backing backing, size_t bytes, int cache_fd)
{
	/* Without a reservation hugetlb would fail later, in the middle of a run. */
	int flags = backing == BACKING_HUGETLB ? 0 : MAP_NORESERVE, fd = -1;

	*g = (struct guest){ .bytes = bytes, .page = CONTENT_PAGE, .backing = backing };
	if (backing == BACKING_SHMEM) {
		fd = new_memfd(bytes);
		flags |= MAP_SHARED;
	} else if (backing == BACKING_MINOR) {
		fd = cache_fd;
		flags |= MAP_PRIVATE;
	} else {
		flags |= MAP_PRIVATE | MAP_ANONYMOUS;
	}
	if (backing == BACKING_HUGETLB) {
		g->page = CONTENT_HUGE;
		flags |= MAP_HUGETLB;
	}
	g->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (g->base == MAP_FAILED)
		fail("guest memory", "%zu bytes cannot be mapped: %s", bytes, strerror(errno));
	if (fd >= 0 && fd != cache_fd)
		close(fd);
	if (backing != BACKING_HUGETLB)
		madvise(g->base, bytes, MADV_NOHUGEPAGE);
}

void guest_unmap(struct guest *g)
{
	if (g->base)
		munmap(g->base, g->bytes);
	g->base = NULL;
}

int guest_register(const struct guest *g)
{
	struct uffdio_register reg = {
		.range = { (uintptr_t)g->base, g->bytes },
		.mode = g->backing == BACKING_MINOR ? UFFDIO_REGISTER_MODE_MINOR :
						      UFFDIO_REGISTER_MODE_MISSING,
	};
	int fd = infill_host_userfaultfd(g->backing == BACKING_MINOR ? UFFD_FEATURE_MINOR_SHMEM :
								       0);

	if (fd < 0)
		fail("userfaultfd", "%s: `infill doctor` says what to do", strerror(-fd));
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		fail("userfaultfd", "guest memory cannot be registered: %s", strerror(errno));
	return fd;
}
