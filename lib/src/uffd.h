/* SPDX-License-Identifier: MIT */
/*
 * uffd.h: a userfaultfd: registration, events, installs, and its errno rules.
 *
 * Installs take a range and return how far they came, so that the caller
 * decides about the page that stopped them:
 *
 *   0        all of it
 *   -EEXIST  the page at `done` is there already: harmless
 *   -EAGAIN  an event is unread, or its madvise() has not gone on yet: read
 *            events, look at the page's state again, retry
 *   -ESRCH   the VMM is gone
 *   -ENOENT  the VMM unmapped the page at `done`
 *   -EFAULT  the source cannot be read
 *   -ENOMEM and others: as ioctl_userfaultfd(2)
 *
 * Every install wakes the threads that wait for its pages.
 * Internal.
 */
#ifndef INFILL_UFFD_H
#define INFILL_UFFD_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Duplicate FD, check that it is a userfaultfd, make it non-blocking.  The new fd or -errno. */
int uffd_adopt(int fd);

/* Register LENGTH bytes at HVA; MINOR as well as missing faults if asked. */
int uffd_register(int uffd, uint64_t hva, uint64_t length, bool minor);

/* Stop watching a range; threads that wait there run on. */
int uffd_unregister(int uffd, uint64_t hva, uint64_t length);

int uffd_copy(int uffd, uint64_t hva, const void *from, uint64_t length, uint64_t *done);
int uffd_zero(int uffd, uint64_t hva, uint64_t length, uint64_t *done);
int uffd_continue(int uffd, uint64_t hva, uint64_t length, uint64_t *done);
int uffd_poison(int uffd, uint64_t hva, uint64_t length, uint64_t *done);

/* Let the threads that wait in the range fault again. */
void uffd_wake(int uffd, uint64_t hva, uint64_t length);

/* Is there an event to read, or an error to find? */
bool uffd_pending(int uffd);

/*
 * Read up to MAX events into EVENTS, which must be all zero beforehand.  The
 * number, 0 if there are none, or -errno.
 */
int uffd_read(int uffd, struct uffd_msg *events, unsigned max);

#endif
