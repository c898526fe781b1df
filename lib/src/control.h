/* SPDX-License-Identifier: MIT */
/*
 * control.h: requests that are not VMs: stat, hdr, mark, cache.  Answers are written
 * as their readers take them, for a bounded time, so that a reader that is
 * stuck holds up nobody.  Internal; the JSON is documented in infill-stat(1).
 */
#ifndef INFILL_CONTROL_H
#define INFILL_CONTROL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop.h"
#include "vmset.h"

struct answer {
	uint64_t id;
	int sock;
	char *text;
	size_t length, done;
	uint64_t deadline;
	struct answer *next;
};

struct control {
	struct vmset *set;
	struct answer *first;
	/* Called before the first byte is written, and when the request is done with. */
	void (*answering)(void *arg, uint64_t id);
	void (*answered)(void *arg, uint64_t id, bool shared);
	void *arg;
};

/* Answer the request in JSON; SOCK is control's from now on. */
void control_take(struct control *control, uint64_t id, int sock, const char *json, size_t length);

/* Take part in a turn. */
void control_poll(struct control *control, struct loop *loop);

/* Drop what has not been written. */
void control_free(struct control *control);

/* A new object that says what G's session has done; ENDED: and does no more. */
json_t *control_describe(const struct guest *g, bool ended);

#endif
