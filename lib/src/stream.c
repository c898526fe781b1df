/* SPDX-License-Identifier: MIT */
/* stream.c: which faults follow one another.  Internal. */
#include "stream.h"

uint64_t streams_window(struct streams *streams, uint64_t page, uint64_t most)
{
	struct stream *t;
	uint64_t gap;

	for (t = streams->stream; t < streams->stream + STREAMS; t++) {
		/* Pages that were there already are passed over. One fault is no stream yet. */
		gap = t->window > 1 ? t->window : 0;
		if (!t->window || page <= t->last || page > t->next + gap)
			continue;
		if (t->window < most)
			t->window *= 2;
		t->last = page;
		t->next = page + t->window;
		return t->window;
	}
	streams->stream[streams->turn++ % STREAMS] =
		(struct stream){ .last = page, .next = page + 1, .window = 1 };
	return 1;
}
