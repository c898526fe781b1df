/* SPDX-License-Identifier: MIT */
/*
 * loop.c: one turn of poll(2) at a time.  Internal; may change freely.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "loop.h"

int loop_init(struct loop *loop, size_t capacity)
{
	*loop = (struct loop){ .capacity = capacity };
	loop->fd = calloc(capacity, sizeof(*loop->fd));
	loop->entry = calloc(capacity, sizeof(*loop->entry));
	if (loop->fd && loop->entry)
		return 0;
	loop_free(loop);
	return -ENOMEM;
}

void loop_free(struct loop *loop)
{
	free(loop->fd);
	free(loop->entry);
	*loop = (struct loop){ 0 };
}

void loop_begin(struct loop *loop)
{
	loop->count = 0;
	loop->until = LOOP_NEVER;
}

void loop_add(struct loop *loop, int fd, short events, loop_fn *fn, void *arg)
{
	assert(loop->count < loop->capacity);
	loop->fd[loop->count] = (struct pollfd){ .fd = fd, .events = events };
	loop->entry[loop->count] = (struct loop_entry){ .fn = fn, .arg = arg };
	loop->count++;
}

void loop_until(struct loop *loop, uint64_t ns)
{
	if (ns < loop->until)
		loop->until = ns;
}

static int timeout(const struct loop *loop)
{
	uint64_t now;

	if (loop->until == LOOP_NEVER)
		return -1;
	now = loop_now();
	if (now >= loop->until)
		return 0;
	if (loop->until - now > 3600000 * LOOP_MS)
		return 3600000;
	return (int)((loop->until - now + LOOP_MS - 1) / LOOP_MS);
}

void loop_turn(struct loop *loop)
{
	int ready = poll(loop->fd, loop->count, timeout(loop));

	for (size_t i = 0; ready > 0 && i < loop->count; i++) {
		if (!loop->fd[i].revents)
			continue;
		ready--;
		loop->entry[i].fn(loop->entry[i].arg, loop->fd[i].fd, loop->fd[i].revents);
	}
}
