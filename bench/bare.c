/* SPDX-License-Identifier: MIT */
/*
 * bare.c: example handlers, as their authors write them.  The loop is the
 * yardstick of demand faults: keep it as short as it is.
 */
#include "bare.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "machine.h"

#define BATCH 16

struct bare {
	struct guest guest;
	const uint8_t *source;
	enum bare_algorithm algorithm;
	int uffd, stop;
	pthread_t thread;
};

static void install(const struct bare *b, uint64_t offset, uint64_t length)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)b->guest.base + offset,
		.src = (uintptr_t)b->source + offset,
		.len = length,
	};
	struct uffdio_range range = { copy.dst, length };

	while (ioctl(b->uffd, UFFDIO_COPY, &copy)) {
		if (errno == EEXIST) {
			/* Served between the fault and this copy. */
			ioctl(b->uffd, UFFDIO_WAKE, &range);
			return;
		}
		if (errno != EAGAIN)
			fail("handler", "UFFDIO_COPY: %s", strerror(errno));
		/* Part of it was copied: go on from there. */
		if (copy.copy > 0) {
			copy.dst += (uint64_t)copy.copy;
			copy.src += (uint64_t)copy.copy;
			copy.len -= (uint64_t)copy.copy;
		}
	}
}

static void serve(const struct bare *b, uint64_t address)
{
	uint64_t offset = (address - (uintptr_t)b->guest.base) & ~(uint64_t)(b->guest.page - 1);

	install(b, offset, b->guest.page);
}

static void *handle(void *arg)
{
	struct bare *b = arg;
	struct pollfd fds[2] = { { b->uffd, POLLIN, 0 }, { b->stop, POLLIN, 0 } };
	struct uffd_msg msg[BATCH];
	bool all = false;

	while (poll(fds, 2, -1) >= 0 && !fds[1].revents) {
		ssize_t n = read(b->uffd, msg, sizeof(msg));

		for (ssize_t i = 0; i < n / (ssize_t)sizeof(*msg); i++) {
			if (b->algorithm == BARE_ALL && !all)
				install(b, 0, b->guest.bytes);
			else
				serve(b, msg[i].arg.pagefault.address);
			all = true;
		}
	}
	return NULL;
}

struct bare *bare_start(const struct guest *g, const uint8_t *source,
			enum bare_algorithm algorithm)
{
	struct bare *b = calloc(1, sizeof(*b));

	if (!b)
		fail("handler", "no memory");
	*b = (struct bare){ *g, source, algorithm, guest_register(g), eventfd(0, EFD_CLOEXEC), 0 };
	if (b->stop < 0 || pthread_create(&b->thread, NULL, handle, b))
		fail("handler", "cannot start its thread");
	return b;
}

void bare_stop(struct bare *b)
{
	if (eventfd_write(b->stop, 1))
		fail("handler", "cannot be stopped: %s", strerror(errno));
	pthread_join(b->thread, NULL);
	close(b->uffd);
	close(b->stop);
	free(b);
}
