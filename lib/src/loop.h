/* SPDX-License-Identifier: MIT */
/*
 * loop.h: one turn of poll(2) at a time, for the daemon's two processes.
 * Who waits for a file adds it anew for each turn, so that nothing has to be
 * taken out when it is closed.  Internal; may change freely.
 */
#ifndef INFILL_LOOP_H
#define INFILL_LOOP_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/*
 * Called when FD has something.  An earlier call of the same turn may have
 * closed or replaced what ARG stands for: compare FD first.
 */
typedef void loop_fn(void *arg, int fd, short revents);

struct loop_entry {
	loop_fn *fn;
	void *arg;
};

struct loop {
	size_t count, capacity;
	struct pollfd *fd;
	struct loop_entry *entry;
	uint64_t until;
};

#define LOOP_MS 1000000ull
#define LOOP_NEVER UINT64_MAX

/* CLOCK_MONOTONIC in ns. */
static inline uint64_t loop_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Make room for CAPACITY files.  0 or -ENOMEM. */
int loop_init(struct loop *loop, size_t capacity);
void loop_free(struct loop *loop);

/* Begin a turn: forget all files and times. */
void loop_begin(struct loop *loop);

/* Wait for EVENTS of FD as well. */
void loop_add(struct loop *loop, int fd, short events, loop_fn *fn, void *arg);

/* Wait until NS at the latest. */
void loop_until(struct loop *loop, uint64_t ns);

/* Wait, and call who has something. */
void loop_turn(struct loop *loop);

#endif
