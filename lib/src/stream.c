/* SPDX-License-Identifier: MIT */
/* stream.c: which faults follow one another.  Internal. */
#include "stream.h"

uint64_t streams_window(struct streams *streams, uint64_t page, uint64_t most)
{
	struct stream *t;

	for (t = streams->stream; t < streams->stream + STREAMS; t++) {
		if (t->next != page || !t->window)
			continue;
		if (t->window < most)
			t->window *= 2;
		t->next = page + t->window;
		return t->window;
	}
	streams->stream[streams->turn++ % STREAMS] = (struct stream){ .next = page + 1, .window = 1 };
	return 1;
}
