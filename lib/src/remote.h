/* SPDX-License-Identifier: MIT */
/*
 * remote.h: the VMM's side of a pager in another process: the connection, and
 * the channels over which threads that miss a page ask for it: wire.h.
 *
 * Who waits for an answer waits for the end of the connection as well.  A
 * worker of the pager that dies ends nothing: its supervisor has every socket
 * too, and the next worker says "ask again".  Internal.
 */
#ifndef INFILL_REMOTE_H
#define INFILL_REMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "infill.h"
#include "wire.h"

struct remote;

/*
 * Connect to the pager at PATH and hand it the bitmaps (BITMAP_FD), the
 * guest_memfds of MEMORY, UFFD (-1: none) and THREADS channels, or as many as
 * there may be, and one more.  PROTECTED: the VM is.  Returns when it serves the VM, within
 * REMOTE_MS.  The fds stay the caller's.  -EPROTO and others: it refused, with
 * its reason; -ETIMEDOUT; -ECONNRESET; as connect(2).
 */
int remote_connect(struct remote **remote, const char *path, const struct infill_memory *memory,
		   int bitmap_fd, int uffd, bool protected, unsigned threads);

/* End the connection: who waits is told -ECONNRESET.  Any thread. */
void remote_shutdown(struct remote *remote);

/* After remote_shutdown(), when no thread is in a call. */
void remote_free(struct remote *remote);

/*
 * Have the page at GPA filled, over the channel of THREAD: 0 is for who is no
 * vCPU.  *FIRST and *BYTES: what is there now.  STOP: what a signal handler sets
 * to have the thread give up, looked at now and then, since the signal may come
 * just before the wait; NULL: no signal ends it.  0; -EHWPOISON: it cannot be
 * read; -EINTR: a signal came, or STOP is set; -ECONNRESET: the connection has
 * ended; else why the pager fills no more.  Any thread; two of one THREAD take
 * turns.
 */
int remote_ask(struct remote *remote, unsigned thread, uint64_t gpa, const volatile uint8_t *stop,
	       uint64_t *first, uint64_t *bytes);

/*
 * Tell the pager that BYTES from GPA on, whole pages of one region, are given
 * up: from this call's end on it writes nothing there.  0; -ECONNRESET; else
 * why it refuses.  Any thread; waits for others that do the same.
 */
int remote_discard(struct remote *remote, uint64_t gpa, uint64_t bytes);

/*
 * Wait for the next notice, TIMEOUT_MS at most (-1: no bound); TEXT has
 * WIRE_NOTICE_MAX bytes.  0, -ETIMEDOUT, -ECONNRESET.  One thread.
 */
int remote_notice(struct remote *remote, struct wire_notice *notice, char *text, int timeout_ms);

#endif
